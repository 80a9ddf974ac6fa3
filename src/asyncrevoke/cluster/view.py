"""THE contract, C1 to C8: what a member knows of the log, and whom it may admit. Nothing here waits, reads or writes.

A member asks the log for what comes after its position, again and again. `View` is told each answer, with the time at which
it was asked for. It hands on the entries that are to be taken, and tells whom they refuse.

- C1 A member admits nobody before it has read the log to the head it saw when it began; a strict one, never when its lease
  is over.
- C2 The lease runs from the time at which the last answered read was *asked*. No ping, watch or library's opinion renews it.
- C3 An entry is taken before the position moves past it. To take one twice is harmless: at least once, in the log's order.
- C4 Admission looks at what is denied while nothing else can happen: an opener beside a revocation is refused or kicked.
- C5 Completion is bounded: whoever has not acknowledged an entry when lease and drift are over has failed closed, by C2.
- C6 A log that is shorter than what was read, or is another one, fails closed at once. Members write back what they know.
- C7 An entry speaks of sessions issued before it. It never takes those of a later login, also when it is read again.
- C8 An entry that has expired is dropped. Without `expires` it stays, until a `readmit`.

A strict member fails closed in C6 though its lease is not over. An entry may have been appended and lost, which it has not
read; its author counts on C5, so a member that goes on reading must not seem to have lived through its lease.
"""

import time
from collections.abc import Iterator
from dataclasses import replace
from functools import partial

from .entry import Entry, LogError, Position
from .log import Batch

_NEVER = float("-inf")


class LogLostError(LogError):
    """The log does not hold what was read from it: it was wiped, or it is another one."""


class View:
    """What one member knows.

    :param lease: seconds that an answered read is good for
    :param strict: whether it admits nobody afterwards
    :ivar position: up to which the log was taken
    :ivar fresh: the time at which the last answered read was asked, on the member's clock
    :ivar until: when it admits nobody any more, on the same clock
    """

    def __init__(self, lease: float, *, strict: bool) -> None:
        self.position = Position("", 0)
        self.fresh = _NEVER
        self.until = _NEVER
        self.entries: dict[
            str, tuple[int, Entry]
        ] = {}  # by id: those in force, and readmissions; with their number here
        self.denied: dict[tuple[str, ...], list[Entry]] = {}
        self._readmitted: dict[tuple[str, ...], list[Entry]] = {}
        self._lease = lease
        self._strict = strict
        self._here: str | None = None  # the text at the position
        self._epochs: dict[str, int] = {}  # in the log's order
        self._before_loss: set[str] | None = None  # the epochs of the log that was lost, until that is made good

    @property
    def begun(self) -> bool:
        """Whether the log, as far as it was read, has the beginning of an epoch."""
        return bool(self._epochs)

    def answered(self, batch: Batch, asked: float) -> Iterator[Entry]:
        """Go through an answer. Each entry that is yielded is refused to all already. Take it before you ask for the next one.

        :param asked: when the read was begun
        :raises LogLostError: if the answer is not from the log that was read before (C6)
        :raises LogRefusedError: if an entry is none, or of another version
        """
        if batch.here != self._here:
            raise LogLostError("the log does not hold what was read from it: it was wiped, or is another one")
        for number, text in batch.texts:
            entry = Entry.parse(text, number)
            if entry.do == "init":
                self._epochs.setdefault(entry.id, len(self._epochs))
            epoch = entry.id if entry.do == "init" else self.position.epoch
            if self._learn(entry, Position(epoch, number)):
                yield self.entries[entry.id][1]  # C3: not past it yet
            self.position = Position(epoch, number)
            self._here = text
        if batch.whole and self.begun and not self.lost:  # C1
            self.fresh = asked  # C2
            self.until = asked + self._lease if self._strict else float("inf")

    def _learn(self, entry: Entry, here: Position) -> bool:
        """Note what an entry says. It reports whether there is something to take."""
        if entry.do == "init":
            return False
        if (known := self.entries.get(entry.id)) is not None:
            self.entries[entry.id] = here.number, known[1]
            return False
        entry = replace(entry, before=entry.before or here)
        self.entries[entry.id] = here.number, entry
        if entry.do == "readmit":
            self._readmitted.setdefault(entry.path, []).append(entry)
            self._deny(
                entry.path, [each for each in self.denied.get(entry.path, ()) if not self.covers(entry, each.before)]
            )
        elif not entry.expired and not any(
            self.covers(each, entry.before) for each in self._readmitted.get(entry.path, ())
        ):
            self.denied.setdefault(entry.path, []).append(entry)
            return True
        return False

    def _deny(self, path: tuple[str, ...], entries: list[Entry]) -> None:
        self.denied[path] = entries
        if not entries:
            del self.denied[path]

    def covers(self, entry: Entry, issued: Position | None) -> bool:
        """Whether an entry speaks of what was issued at that position (C7). What has no position is as old as can be.

        An epoch that this log does not tell of is older than all of those it tells of.
        """
        return issued is None or entry.before is None or self.is_before(issued, entry.before)

    def is_before(self, one: Position, other: Position) -> bool:
        """Whether a position is earlier than another, or may be: of two epochs that are not in this log, nobody knows."""
        if one.epoch == other.epoch:
            return one.number < other.number
        return self._epochs.get(one.epoch, -1) <= self._epochs.get(other.epoch, -1)

    def denial(self, path: tuple[str, ...], issued: Position | None) -> Entry | None:
        """The entry that refuses a session, if there is one."""
        denied = self.denied
        for end in range(len(path) + 1):
            if (here := path[:end]) in denied:
                for entry in denied[here]:
                    if self.covers(entry, issued) and not entry.expired:
                        return entry
        return None

    def drop_expired(self) -> list[int]:
        """Forget what has expired (C8), and tell the numbers under which it stands in the log."""
        gone = {key: number for key, (number, entry) in self.entries.items() if entry.expired}
        for key in gone:
            path = self.entries.pop(key)[1].path
            self._deny(path, [each for each in self.denied.get(path, ()) if each.id not in gone])
        return sorted(gone.values())

    # -- a log that was lost --

    def lose(self) -> None:
        """Read from the beginning, knowing what was known; a strict member admits nobody meanwhile (C6)."""
        if self._strict:
            self.until = _NEVER
        self._before_loss = (self._before_loss or set()) | set(self._epochs)
        self._epochs = {}
        self._here = None
        self.position = Position("", 0)
        self.entries = {key: (0, entry) for key, (_, entry) in self.entries.items()}  # not here

    @property
    def lost(self) -> bool:
        """Whether the log was lost, and that is not made good yet."""
        return self._before_loss is not None

    def to_write_back(self) -> list[Entry]:
        """What is known and is not in the log that was read to its end; when all is, the beginning of an epoch.

        Nothing: the log is as good as the one before. Read to its end once more, and then it admits.
        """
        missing = [entry for number, entry in self.entries.values() if not number and not entry.expired]
        if missing:
            return missing
        if set(self._epochs) <= (self._before_loss or set()):
            return [Entry.new("init")]  # the last of all: who is new here admits nobody before
        self._before_loss = None
        return []


#: Seconds, in which a sleeping machine counts as well, unlike in those of `time.monotonic`.
clock = partial(time.clock_gettime, getattr(time, "CLOCK_BOOTTIME", time.CLOCK_MONOTONIC))
