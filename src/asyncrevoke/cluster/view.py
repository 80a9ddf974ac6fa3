"""THE contract, C1 to C8: what a member knows of the log, and whom it may admit. Nothing here waits, reads or writes.

A member asks the log for what comes after its number, again and again. `View` is told each answer, with the time at which it
was asked for. It returns the entries to take, and says which sessions they refuse.

- C1 A member admits nobody before it has read the log to the head that it saw when it began. A strict member admits nobody
  when its lease is over.
- C2 The lease runs from the time at which the last answered read was *asked*. No ping, watch or library's opinion renews it.
- C3 An entry is taken before the number moves past it. So each is taken at least once, in the order of the log. To take one
  twice is harmless.
- C4 Admission looks at what is denied while nothing else can happen. An opener beside a revocation is refused or kicked.
- C5 Completion is bounded. A strict member that has not acknowledged an entry when its lease and the drift are over has
  failed closed, by C2. A member is known to the engine before it admits.
- C6 If the log is shorter than what was read, or is another one, a strict member fails closed at once. Members write back
  what they know, and then begin an epoch. A member that has never admitted does not begin the first epoch of a log.
- C7 An entry speaks of sessions issued before it. It never takes those of a later login, even when it is read again.
- C8 An entry that has expired is dropped. Without `expires` it stays, until a later `readmit`.

In C6, a strict member fails closed although its lease is not over. An entry may have been appended, and lost before the
member read it. Its author counts on C5: the member acknowledges the entry, or fails closed when its lease is over. A member
that read on in the new log would do neither.

In C7 and C8, positions say what is before and what is later. In one epoch, they are ordered by number. Of two epochs, the log
says which is the later one. If it does not, each may be the later one: then a session may be revoked, and a revocation is not
lifted. Entries in front of the first epoch of a log belong to that epoch. A log that was wiped may have such entries.

A member may refuse a login for a while: as long as it makes a lost log good, or has not read of the epoch of that login.
"""

import time
from collections.abc import Iterator, Sequence
from dataclasses import replace
from functools import partial

from .entry import Entry, LogError, Position
from .log import Batch

_NEVER = float("-inf")
_DAY = 86400.0  # a member that is away for less than this finds the entry at its number, even if it has expired


class LogLostError(LogError):
    """The log does not hold what was read from it: it was wiped, or it is another one."""


class View:
    """What one member knows.

    :param lease: seconds for which an answered read is good
    :param strict: whether the member admits nobody after that
    :ivar number: number of the last entry that was taken
    :ivar position: the same as a position, to store with what is issued now. While a lost log is made good, it stays that
        of the old log
    :ivar fresh: time at which the last answered read was asked, on the member's clock
    :ivar until: time from which the member admits nobody, on the same clock
    :ivar known: whether the log was read to its end once. From then on the engine is told of the member
    """

    def __init__(self, lease: float, *, strict: bool) -> None:
        self.number = 0
        self.position = Position("", 0)
        self.fresh = _NEVER
        self.until = _NEVER
        self.known = False
        self.denied: dict[tuple[str, ...], list[str]] = {}  # ids of revocations, by path
        self._lifted: dict[tuple[str, ...], list[str]] = {}  # ids of readmissions, by path
        self._entries: dict[str, Entry] = {}  # all that are known, by id
        self._numbers: dict[str, int] = {}  # numbers of those that are in this log, by id
        self._admitted = False  # it has admitted at some time
        self._epoch = ""
        self._here: str | None = None  # text of the entry at the number
        self._lost: frozenset[str] = frozenset()  # epochs of logs that were lost
        self._lease = lease
        self._strict = strict

    @property
    def begun(self) -> bool:
        """Whether an epoch begins in the log, as far as it was read."""
        return bool(self._epoch)

    @property
    def sound(self) -> bool:
        """Whether the log has begun, holds all that is known, and has a later epoch than the logs that were lost (C6)."""
        return (
            self.begun and len(self._numbers) == len(self._entries) and self._lost.issubset(self._before(self._epoch))
        )

    def answered(self, batch: Batch, asked: float) -> Iterator[Entry]:
        """Go through an answer, and yield each entry to take. Take it before you ask for the next one.

        When an entry is yielded, `denial` refuses the sessions that it names already.

        :param asked: time at which the read was begun
        :raises LogLostError: if the answer is not from the log that was read before (C6)
        :raises LogRefusedError: if a text is not an entry, or has another version
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
        """Enter an epoch, unless this is a late copy of the beginning of an earlier one.

        The path of the entry that is returned has the epochs that are earlier.
        """
        earlier = self._before(self._epoch)
        if init.id in (self._epoch, *earlier):
            return init
        init = replace(init, path=tuple(sorted({*init.path, *earlier, self._epoch} - {""})))
        if not self._epoch:  # the entries in front of the first epoch belong to it
            for key, number in self._numbers.items():
                entry = self._entries[key]
                self._entries[key] = replace(entry, before=entry.before or Position(init.id, number))
        self._epoch = init.id
        return init

    def _learn(self, entry: Entry, number: int) -> bool:
        """Note what an entry says. Return whether there is something to take away."""
        key = entry.id
        known = self._entries.get(key)
        is_taken = known is not None and key not in self._numbers  # before the log was lost
        if entry.before is None and self._epoch:
            entry = replace(entry, before=Position(self._epoch, number))
        if known is None and entry.do != "init":
            (self.denied if entry.do == "revoke" else self._lifted).setdefault(entry.path, []).append(key)
        if known is None or known.before is None or (entry.before and self.is_before(entry.before, known.before)):
            self._entries[key] = entry
        if self._entries[key].before == entry.before:  # otherwise its author has appended it again, after a loss
            self._numbers[key] = number
        return not is_taken and self._in_force(self._entries[key])

    def denial(self, path: tuple[str, ...], issued: Position | None) -> Entry | None:
        """Return the entry that refuses a session, or None."""
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
        """Whether an entry speaks of what was issued at that position (C7). Without a position, it counts as older."""
        return issued is None or entry.before is None or self.is_before(issued, entry.before)

    def is_before(self, one: Position, other: Position) -> bool:
        """Whether a position is earlier than another one, or may be earlier."""
        if one.epoch == other.epoch:
            return one.number < other.number
        return other.epoch not in self._before(one.epoch)

    def _before(self, epoch: str) -> Sequence[str]:
        """Return the epochs that are known to be earlier than this one."""
        return self._entries[epoch].path if epoch in self._entries else ()

    def drop_expired(self) -> list[int]:
        """Forget entries that expired a day ago or earlier (C8). Return the numbers of those that are in the log."""
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
        """Start again from the beginning of the log, and keep what is known. A strict member admits nobody meanwhile (C6)."""
        if self._strict:
            self.until = _NEVER
        self._lost = frozenset(entry.id for entry in self._entries.values() if entry.do == "init")
        self.fresh = _NEVER
        self.number = 0
        self._here = None
        self._epoch = ""
        self._numbers = {}

    def to_write_back(self) -> list[Entry]:
        """Return what this member should append to the log, once it was read to its end (C6).

        These are the entries that are known and not in it. When it has all of them, it is the beginning of an epoch. It is
        nothing if the log is as good as the one before, or if it has no epoch and this member has never admitted.
        """
        if self.sound:
            return []
        missing = [entry for key, entry in self._entries.items() if key not in self._numbers]
        if missing or not (self.begun or self._admitted):
            return missing
        return [Entry.new("init", tuple(sorted(self._lost)))]  # it comes last, since new members admit nobody before it


#: Seconds of a clock that goes on while the machine sleeps. That of Linux's `time.monotonic` does not.
clock = partial(time.clock_gettime, time.CLOCK_BOOTTIME) if hasattr(time, "CLOCK_BOOTTIME") else time.monotonic
