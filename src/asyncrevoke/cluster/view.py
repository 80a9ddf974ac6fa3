"""THE contract, C1 to C8: what a member knows of the log, and whom it may admit. Nothing here waits, reads or writes.

A member asks the log for what comes after its number, again and again. `View` is told each answer, with the time at which
it was asked for. It hands on the entries that are to be taken, and tells whom they refuse.

- C1 A member admits nobody before it has read the log to the head it saw when it began; a strict one, never when its lease
  is over.
- C2 The lease runs from the time at which the last answered read was *asked*. No ping, watch or library's opinion renews it.
- C3 An entry is taken before the number moves past it. To take one twice is harmless: at least once, in the log's order.
- C4 Admission looks at what is denied while nothing else can happen: an opener beside a revocation is refused or kicked.
- C5 Completion is bounded: whoever has not acknowledged an entry when lease and drift are over has failed closed, by C2. A
  member is known to the engine before it admits.
- C6 A log that is shorter than what was read, or is another one, fails closed at once. Members write back what they know,
  and then begin an epoch. Whoever has never admitted does not begin the first one of a log.
- C7 An entry speaks of sessions issued before it. It never takes those of a later login, also when it is read again.
- C8 An entry that has expired is dropped. Without `expires` it stays, until a later `readmit`.

A strict member fails closed in C6 though its lease is not over. An entry may have been appended and lost, which it has not
read; its author counts on C5, so a member that goes on reading must not seem to have lived through its lease.

Positions are the order of C7 and C8. In one epoch they have numbers. Of two epochs, the log tells which is the later one; if
it does not, each may be. A session may be revoked then, and a lock is not lifted. What stands in front of the first epoch of
a log, as of one that was wiped, belongs to that epoch. A member that makes a lost log good, or has not read of the epoch of
a login yet, may refuse it for that long.
"""

import time
from collections.abc import Iterator, Sequence
from dataclasses import replace
from functools import partial

from .entry import Entry, LogError, Position
from .log import Batch

_NEVER = float("-inf")
_DAY = 86400.0  # a member that is away for less finds the entry at its number, also if that has expired


class LogLostError(LogError):
    """The log does not hold what was read from it: it was wiped, or it is another one."""


class View:
    """What one member knows.

    :param lease: seconds that an answered read is good for
    :param strict: whether it admits nobody afterwards
    :ivar number: up to which the log was taken
    :ivar position: the same, to be stored with what is issued now. While a lost log is made good, that of the old one
    :ivar fresh: the time at which the last answered read was asked, on the member's clock
    :ivar until: when it admits nobody any more, on the same clock
    :ivar known: whether the log was read to its end once, so that the engine is told of the member from now on
    """

    def __init__(self, lease: float, *, strict: bool) -> None:
        self.number = 0
        self.position = Position("", 0)
        self.fresh = _NEVER
        self.until = _NEVER
        self.known = False
        self.denied: dict[tuple[str, ...], list[str]] = {}  # ids of revocations, by path
        self._lifted: dict[tuple[str, ...], list[str]] = {}  # of readmissions
        self._entries: dict[str, Entry] = {}
        self._numbers: dict[str, int] = {}  # of those that are in this log
        self._admitted = False  # ever
        self._epoch = ""
        self._here: str | None = None  # the text at the number
        self._lost: frozenset[str] = frozenset()  # epochs of logs that were lost
        self._lease = lease
        self._strict = strict

    @property
    def begun(self) -> bool:
        """Whether the log, as far as it was read, has the beginning of an epoch."""
        return bool(self._epoch)

    @property
    def sound(self) -> bool:
        """Whether the log has begun, and holds all that is known, in an epoch later than those that were lost (C6)."""
        return (
            self.begun and len(self._numbers) == len(self._entries) and self._lost.issubset(self._before(self._epoch))
        )

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
            if entry.do == "init" and entry.before is None:
                entry = self._begin(entry)
            if self._learn(entry, number):
                yield self._entries[entry.id]  # C3: not past it yet
            self.number = number
            self._here = text
            if self.sound:
                self.position = Position(self._epoch, number)
        if batch.whole and self.sound:  # C1
            if self.known:  # C5
                self._admitted = True
                self.fresh = asked  # C2
                self.until = asked + self._lease if self._strict else float("inf")
            self.known = True

    def _begin(self, init: Entry) -> Entry:
        """Enter an epoch, if this is no late copy of an earlier one's beginning. What is earlier is noted in its path."""
        earlier = self._before(self._epoch)
        if init.id in (self._epoch, *earlier):
            return init
        init = replace(init, path=tuple(sorted({*init.path, *earlier, self._epoch} - {""})))
        if not self._epoch:  # what stands in front of it
            for key, number in self._numbers.items():
                entry = self._entries[key]
                self._entries[key] = replace(entry, before=entry.before or Position(init.id, number))
        self._epoch = init.id
        return init

    def _learn(self, entry: Entry, number: int) -> bool:
        """Note what an entry says. It reports whether there is something to take."""
        key = entry.id
        known = self._entries.get(key)
        is_taken = known is not None and key not in self._numbers  # before the log was lost
        if entry.before is None and self._epoch:
            entry = replace(entry, before=Position(self._epoch, number))
        if known is None and entry.do != "init":
            (self.denied if entry.do == "revoke" else self._lifted).setdefault(entry.path, []).append(key)
        if known is None or known.before is None or (entry.before and self.is_before(entry.before, known.before)):
            self._entries[key] = entry
        if self._entries[key].before == entry.before:  # or its author has appended it again, after a loss
            self._numbers[key] = number
        return not is_taken and self._in_force(self._entries[key])

    def denial(self, path: tuple[str, ...], issued: Position | None) -> Entry | None:
        """The entry that refuses a session, if there is one."""
        denied = self.denied
        for end in range(len(path) + 1):
            if (here := path[:end]) in denied:
                for entry in map(self._entries.__getitem__, denied[here]):
                    if self.covers(entry, issued) and self._in_force(entry):
                        return entry
        return None

    def _in_force(self, entry: Entry) -> bool:
        if entry.do != "revoke" or entry.expired:  # C8
            return False
        return not any(self._lifts(self._entries[key], entry) for key in self._lifted.get(entry.path, ()))

    def _lifts(self, readmit: Entry, entry: Entry) -> bool:
        if entry.before is None or readmit.before is None:
            return False
        return not self.is_before(readmit.before, entry.before)

    def covers(self, entry: Entry, issued: Position | None) -> bool:
        """Whether an entry speaks of what was issued at that position (C7). What has no position is as old as can be."""
        return issued is None or entry.before is None or self.is_before(issued, entry.before)

    def is_before(self, one: Position, other: Position) -> bool:
        """Whether a position is earlier than another, or may be."""
        if one.epoch == other.epoch:
            return one.number < other.number
        return other.epoch not in self._before(one.epoch)

    def _before(self, epoch: str) -> Sequence[str]:
        """The epochs that are known to be earlier than one."""
        return self._entries[epoch].path if epoch in self._entries else ()

    def drop_expired(self) -> list[int]:
        """Forget what expired a day ago (C8), and tell the numbers under which it stands in the log."""
        now = time.time()
        gone = [entry for entry in self._entries.values() if entry.expires and entry.expires + _DAY <= now]
        for entry in gone:
            del self._entries[entry.id]
            self.denied[entry.path].remove(entry.id)
            if not self.denied[entry.path]:
                del self.denied[entry.path]
        return sorted(self._numbers.pop(entry.id) for entry in gone if entry.id in self._numbers)

    # -- a log that was lost --

    def lose(self) -> None:
        """Read from the beginning, knowing what was known; a strict member admits nobody meanwhile (C6)."""
        if self._strict:
            self.until = _NEVER
        self._lost = frozenset(entry.id for entry in self._entries.values() if entry.do == "init")
        self.fresh = _NEVER
        self.number = 0
        self._here = None
        self._epoch = ""
        self._numbers = {}

    def to_write_back(self) -> list[Entry]:
        """What is known and is not in the log that was read to its end; when all is, the beginning of an epoch.

        Nothing: the log is as good as the one before, or this member has never admitted.
        """
        if self.sound:
            return []
        missing = [entry for key, entry in self._entries.items() if key not in self._numbers]
        if missing or not (self.begun or self._admitted):
            return missing
        return [Entry.new("init", tuple(sorted(self._lost)))]  # the last of all: who is new here admits nobody before


#: Seconds, in which a sleeping machine counts as well, unlike in those of Linux's `time.monotonic`.
clock = partial(time.clock_gettime, time.CLOCK_BOOTTIME) if hasattr(time, "CLOCK_BOOTTIME") else time.monotonic
