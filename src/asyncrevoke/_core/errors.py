"""The errors of revoked files, and a way to show untrusted text."""

from __future__ import annotations

import errno
from typing import TYPE_CHECKING, Any

import anyio

if TYPE_CHECKING:
    from .revokable import Revokable


def printable(text: str) -> str:
    """Return the text with its control characters shown as escapes, so that they start no line and control no
    terminal.
    """
    if text.isprintable():
        return text
    return "".join(each if each.isprintable() else repr(each)[1:-1] for each in text)


class RevokedError(anyio.BrokenResourceError, OSError):
    """The file was revoked, or something that it belongs to. Every operation raises a new one.

    :ivar node: the node that was used (None in an error that was pickled)
    :ivar name: its path of names, as in ``ttyUSB0/alice``
    :ivar reason: the reason that the first revocation gave
    :ivar generation: the number of the generation it belonged to, or None if there are no generations
    :ivar in_flight: True if the operation was running when it was kicked, False if it came later
    :ivar sent: the bytes accepted before the kick, or None if nobody can know
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
        self.node = node
        self.in_flight = in_flight
        self.sent = sent
        self._told = told
        self.errno = told[0] if told else errno.EIO

    # An error is made for every kicked operation. So what is costly is computed only when it is asked for.
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
    """You await what can only complete after you have gone on yourself. It is raised at once, and nothing is lost."""
