"""Entries of the log, their positions, and the text of both."""

import json
import secrets
import time
from dataclasses import asdict, dataclass
from typing import Literal, NamedTuple, Self, get_args

VERSION = 1
Do = Literal["revoke", "readmit", "init"]
_DO = get_args(Do)


class LogError(Exception):
    """The log cannot be read or written now. The message names it, and says why."""


class LogRefusedError(LogError):
    """The log cannot be used as it is. The message says what to change. Trying again does not help."""


class Position(NamedTuple):
    """A place in the log. Store it with a token when you issue it: ``str(cluster.position)``, and `parse` it later.

    Positions of one epoch are in the order of their numbers. A member that has read two epochs knows their order.

    :ivar epoch: names the log. A log that was wiped and begun again has another epoch
    :ivar number: number of the entry, as the engine counts them
    """

    epoch: str
    number: int

    def __str__(self) -> str:
        return f"{self.epoch}.{self.number}"

    @classmethod
    def parse(cls, text: object) -> Self:
        """Read what `str` has made. A `Position` is returned as it is.

        :raises ValueError: if it is not a position
        """
        if isinstance(text, cls):
            return text
        epoch, _, number = text.partition(".") if isinstance(text, str) else ("", "", "")
        if not (number.isascii() and number.isdigit()):
            raise ValueError(
                f"{text!r} is not a position: give str(cluster.position), as it was when the token was issued"
            )
        return cls(epoch, int(number))


@dataclass(frozen=True, slots=True)
class Entry:
    """One line of the log: revoke a path, admit it again, or begin an epoch.

    :ivar id: the same in all copies of the entry. The id of an "init" names the epoch
    :ivar path: path of a key. All keys below it are meant, too. Empty: everything
    :ivar grace: seconds to finish, as in `Revokable.revoke`
    :ivar expires: unix time at which the entry ends. None: never. Sessions that it revokes must not live longer
    :ivar before: the entry speaks of sessions issued before this position (C7). None: its own position
    """

    do: Do
    path: tuple[str, ...] = ()
    reason: str = ""
    expires: float | None = None
    grace: float = 0.0
    before: Position | None = None
    id: str = ""

    @classmethod
    def new(cls, do: Do, path: tuple[str, ...] = (), **facts: float | str | None) -> Self:
        """Make an entry with an id of its own."""
        return cls(do, path, **facts, id=secrets.token_hex(8))  # type: ignore[arg-type]

    @property
    def name(self) -> str:
        """The path, as messages show it."""
        return "/".join(self.path) or "everything"

    @property
    def expired(self) -> bool:
        """Whether it no longer has an effect (C8)."""
        return self.expires is not None and self.expires <= time.time()

    def dump(self) -> str:
        """Return the text for the log. No two texts are the same: a copy that is written back must differ from what was read."""
        facts = {name: value for name, value in asdict(self).items() if value not in (None, "", 0.0)}
        if self.before is not None:
            facts["before"] = str(self.before)
        return json.dumps({"v": VERSION, "salt": secrets.token_hex(4)} | facts, separators=(",", ":"))

    @classmethod
    def parse(cls, text: str, where: object) -> Self:
        """Read what `dump` has made.

        :param where: place of the text, for the message
        :raises LogRefusedError: if it is something else, or has another version
        """
        try:
            facts = json.loads(text)
            if (version := facts.pop("v")) == VERSION:
                facts.pop("salt", None)
                before = Position.parse(facts.pop("before")) if "before" in facts else None
                path = facts.pop("path", [])
                return cls(path=tuple(path) if isinstance(path, list) else path, before=before, **facts)
        except (ValueError, TypeError, AttributeError, KeyError, RecursionError):
            raise LogRefusedError(
                f"{str(text)[:80]!r} at {where} is not an entry: only members may write to the log"
            ) from None
        raise LogRefusedError(
            f"the entry at {where} has version {version!r}, but this host knows {VERSION}: upgrade this host"
        )

    def __post_init__(self) -> None:
        """Refuse facts that do not make an entry."""
        is_text = isinstance(self.path, tuple) and all(
            isinstance(each, str) for each in (self.id, self.reason, *self.path)
        )
        is_number = isinstance(self.grace, int | float) and isinstance(self.expires, int | float | None)
        is_number = is_number and self.grace >= 0 and (self.expires is None or self.do == "revoke")
        if not (self.do in _DO and self.id and is_text and is_number):
            raise ValueError(f"{self!r} is not an entry")
