"""The interface of an engine. A log is a list of texts that many append to and read, with room for acknowledgements."""

import json
from abc import ABC, abstractmethod
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from typing import Literal, NamedTuple, Self
from urllib.parse import urlsplit

from .entry import LogRefusedError

Mode = Literal["strict", "best_effort"]
KEPT = 1000  # entries that are never dropped


@dataclass(frozen=True, slots=True)
class Member:
    """A member, as it describes itself with each read.

    :ivar id: id of this run. A host that was started again is another member
    :ivar lease: seconds for which an answered read is good
    :ivar position: position up to which it has taken the log
    :ivar number: number of the last entry that it has taken
    :ivar sessions: number of keys that are in use
    :ivar since: unix time at which it began
    :ivar age: seconds since it said this, by the engine's clock
    """

    host: str
    id: str
    mode: Mode
    lease: float
    position: str = ""
    number: int = 0
    sessions: int = 0
    since: float = 0.0
    age: float = field(default=0.0, compare=False)

    def dump(self) -> str:
        """Return it as text for the engine. The age is left to the engine."""
        facts = {name: getattr(self, name) for name in self.__slots__ if name != "age"}
        return json.dumps(facts, separators=(",", ":"))

    @classmethod
    def parse(cls, text: str, age: float) -> Self:
        """Read what `dump` has made. Fields that a later version added are ignored.

        :raises LogRefusedError: if it is something else
        """
        try:
            facts = json.loads(text)
            return cls(
                **{name: facts[name] for name in cls.__slots__ if name in facts and name != "age"}, age=max(0.0, age)
            )
        except (ValueError, TypeError, RecursionError):
            raise LogRefusedError(f"{str(text)[:80]!r} is not a member: only members may write to the log") from None


class Batch(NamedTuple):
    """An answer to a read.

    :ivar here: the text at the position that was read from. None: nothing is there, or it is there no longer
    :ivar texts: what comes after it, each with its number
    :ivar whole: whether that is all there was
    """

    here: str | None
    texts: Sequence[tuple[int, str]]
    whole: bool


class Log(ABC):
    """An engine. Each method raises `LogError` if the engine cannot be reached, or answers with an error.

    Numbers grow in the order in which entries become visible. So once you have read up to a number, no entry below it
    appears later. No method tries again by itself. If one is cancelled, its work may have been done.

    :ivar name: for messages, without a password
    """

    name: str

    @abstractmethod
    async def check(self) -> None:
        """Refuse an engine that would lose entries, or that this user may not use.

        :raises LogRefusedError: if it is refused. The message says what to change
        """

    @abstractmethod
    async def append(self, *texts: str) -> None:
        """Write texts at the end, in this order. After an error they may have been written: append the same again."""

    @abstractmethod
    async def read(self, after: int, wait: float, member: Member | None = None) -> Batch:
        """Read what comes after a number, or after 0 from the beginning. Wait for it up to so many seconds.

        :param member: the reader, which is made known *before* anything is read
        """

    @abstractmethod
    async def tell(self, told: Iterable[tuple[str, str]], keep: float) -> None:
        """Write acknowledgements, each an entry's id and a text. They may be dropped after `keep` seconds."""

    @abstractmethod
    async def told(self, about: str, after: int, wait: float) -> tuple[int, Sequence[str]]:
        """Read the acknowledgements of an entry. Wait for new ones up to so many seconds.

        :param after: the number that this returned before, or 0 at first
        """

    @abstractmethod
    async def members(self) -> list[Member]:
        """Return all members that were made known within a day and have not left."""

    @abstractmethod
    async def leave(self, member: Member) -> None:
        """Forget a member."""

    @abstractmethod
    async def drop(self, numbers: Sequence[int]) -> None:
        """Remove entries, but never the newest 1,000. If its position is gone, a member takes the log for wiped."""

    @abstractmethod
    async def time(self) -> float:
        """Return the unix time of the engine's clock."""

    @abstractmethod
    async def aclose(self) -> None:
        """Close the connections. You may call it twice."""


def place(url: str) -> str:
    """Return the hosts and the path of a url, for messages. The password and the options are left out.

    :raises ValueError: if a port is not a number. This happens if a password has characters that must be quoted. The
        message does not show it
    """
    try:
        parts = urlsplit(url)
        for host in parts.netloc.rpartition("@")[2].split(","):
            _ = urlsplit(f"//{host}").port
    except ValueError:
        raise ValueError(
            "the port of the url is not a number: quote special characters in the password, such as %2F for a slash"
        ) from None
    return (parts.netloc + parts.path).rpartition("@")[2]
