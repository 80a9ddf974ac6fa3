"""The errors of what was taken away, and how they show text of others."""

from __future__ import annotations

import errno
from typing import TYPE_CHECKING, Any

import anyio

if TYPE_CHECKING:
    from .revokable import Revokable


def printable(text: str) -> str:
    """A text whose control characters are shown, and do nothing: they begin no line, and tell a terminal nothing."""
    if text.isprintable():
        return text
    return "".join(each if each.isprintable() else repr(each)[1:-1] for each in text)


class RevokedError(anyio.BrokenResourceError, OSError):
    """The file was taken away: by a revocation of it, or of something it belongs to. Raised anew for every operation.

    :ivar node: the node that was used (None in an error that was pickled)
    :ivar name: its path of names, as in ``ttyUSB0/alice``
    :ivar reason: what the first revocation gave as its reason
    :ivar generation: the number of the generation it belonged to, or None where there are none
    :ivar in_flight: True if the operation was running when it was kicked, False if it came later
    :ivar sent: the bytes accepted before the kick, or None where nobody can know
    :ivar errno: EIO, or what the profile in use says
    """

    def __init__(
        self,
        node: Revokable | None,
        *,
        in_flight: bool = False,
        sent: int | None = None,
        told: tuple[int, str, str, int | None] | None = None,
    ) -> None:
        super().__init__()
        self.node = node
        self.in_flight = in_flight
        self.sent = sent
        self._told = told
        self.errno = told[0] if told else errno.EIO

    # What costs is worked out when it is asked for: an error is made for every kicked operation.
    @property
    def _facts(self) -> tuple[str, str, int | None]:
        """Its name, reason and generation."""
        if self.node is not None:
            return self.node.path, self.node.reason, self.node.generation
        return self._told[1:] if self._told else ("", "", None)

    @property
    def name(self) -> str:
        return self._facts[0]

    @property
    def reason(self) -> str:
        return self._facts[1]

    @property
    def generation(self) -> int | None:
        return self._facts[2]

    def __str__(self) -> str:
        name, reason, generation = self._facts
        number = "" if generation is None else f" (generation {generation})"
        why = f": {reason}" if reason else ""
        sent = f"; {self.sent} bytes were accepted before" if self.in_flight and self.sent is not None else ""
        return printable(f"{name or 'the file'!r}{number} was revoked{why}{sent}")

    def __repr__(self) -> str:
        return f"{type(self).__name__}({str(self)!r})"

    @property
    def strerror(self) -> str:  # type: ignore[override]  # OSError's is a plain attribute; ours is worked out
        return str(self)

    def __reduce__(self) -> tuple[Any, ...]:
        told = (self.errno, *self._facts)
        return _unpickled, (type(self), self.in_flight, self.sent, told)


def _unpickled(
    kind: type[RevokedError], in_flight: bool, sent: int | None, told: tuple[int, str, str, int | None]
) -> RevokedError:
    return kind(None, in_flight=in_flight, sent=sent, told=told)


class RevokeDeadlock(RuntimeError):
    """The caller awaits what can only complete after the caller itself has gone on. Raised at once, nothing is lost."""
