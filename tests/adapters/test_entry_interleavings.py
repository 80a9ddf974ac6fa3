"""Entries in every order of open, read, poll, remove, remove a parent, remove itself: as test_interleavings.py searches."""

import asyncio
import select
from collections import Counter, defaultdict
from collections.abc import Callable, Coroutine
from typing import Any

import detangle
import pytest

from asyncrevoke import RevokedError, answers
from asyncrevoke.adapters.entries import Directory, Entry, OpenFile, Operation
from asyncrevoke.answers import Answers
from explorer import DEVIATIONS, Task, explore, turns

pytestmark = pytest.mark.timeout(60 * 10 ** (DEVIATIONS - 1))


class Ledger:
    """Keeps its own books of one run on a tree, top > a, b, and compares."""

    def __init__(self, profile: Answers | None) -> None:
        self.broken: list[str] = []
        self.removed: set[object] = set()
        self.inside: dict[Entry, list[Task | None]] = defaultdict(list)  # handlers that run
        self.leaving: list[Task | None] = []  # that remove their entry
        self.winner: dict[Entry, Task | None] = {}  # as long as its handler runs
        self.opened: Counter[OpenFile] = Counter()
        self.released: Counter[OpenFile] = Counter()
        self.tasks: list[Task] = []
        self.tree = Directory("fs") if profile is None else Directory("fs", answers=profile)
        self.top = self.tree.mkdir("top")
        self.a, self.b = self.entry("a"), self.entry("b")
        detangle.invariant(self.check)

    def require(self, holds: object, message: str) -> None:
        if not holds:
            self.broken.append(message)

    def is_removed(self, named: Any) -> bool:
        while named is not None and named not in self.removed:
            named = named.parent
        return named is not None

    def start(self, *works: Coroutine[Any, Any, object]) -> None:
        """Actors; that what they use was removed is no error."""
        for work in works:
            task = asyncio.create_task(self._run(work), name=repr(work).split()[2])
            task.add_done_callback(lambda _, work=work: work.close())  # type: ignore[misc]
            self.tasks.append(task)

    async def _run(self, work: Coroutine[Any, Any, object]) -> None:
        try:
            await work
        except (RevokedError, FileNotFoundError) as error:
            self.require(self.removed, f"refused, and nothing was removed: {error}")

    # -- handlers --

    def entry(self, name: str) -> Entry:
        async def show() -> str:
            await self.handler(entry)
            return "text"

        async def write(operation: Operation, *_: object) -> None:
            await self.handler(entry, operation)

        async def opened(file: OpenFile) -> None:
            await self.handler(entry)
            self.opened[file] += 1

        def release(file: OpenFile) -> None:
            self.released[file] += 1
            self.require(not file.handle.in_use, f"I2 {name} is released with users inside")
            self.require(self.is_removed(entry) or file.handle.closed, f"I2 {name} is released, and nobody asked")

        entry = self.top.create(name, show=show, write=write, open=opened, release=release, poll=lambda _: 0)
        return entry

    async def handler(self, entry: Entry, removes: Operation | None = None) -> None:
        task = asyncio.current_task()
        self.require(not self.is_removed(entry), f"I1 a handler of {entry.name} begins after the removal")
        self.inside[entry].append(task)
        try:
            await turns(1)
            if removes is not None:
                await self.remove_self(entry, removes)
        finally:
            self.inside[entry].remove(task)
            if self.winner.get(entry) is task:
                del self.winner[entry]

    async def remove_self(self, entry: Entry, operation: Operation) -> None:
        task = asyncio.current_task()
        first = not self.is_removed(entry)
        self.removed.add(entry)
        self.leaving.append(task)
        if first:
            self.winner[entry] = task
        won = await operation.remove_self()
        self.require(won == first, f"{entry.name} was removed from inside by another than its winner")
        others = [each for each in self.inside[entry] if each not in self.leaving]
        if won:
            self.require(not others, "the winner goes on beside other handlers")
            await turns(1)
        else:
            self.require(entry not in self.winner, "a loser goes on before the winner's operation is over")

    # -- actors --

    async def reads(self, entry: Entry) -> None:
        async with await entry.open() as file:
            self.require(await file.read() == b"text", "I6 what was shown is lost")

    async def polls(self, entry: Entry, after: int) -> None:
        async with await entry.open() as file:
            await turns(after)
            mask = await file.poll(select.POLLIN)
            self.require(self.is_removed(entry), "a poll that had nothing has ended")
            self.require(mask == answers.SYSFS.poll, f"a dead file polls as {mask}")

    async def removes_itself(self, entry: Entry, after: int) -> None:
        await turns(after)
        async with await entry.open() as file:
            await file.write(b"1")

    async def removes(self, named: Entry | Directory, after: int) -> None:
        await turns(after)
        self.removed.add(named)
        act = named.remove()
        below = [entry for entry in (self.a, self.b) if self.is_removed(entry)]
        self.require(all(entry.node.revoked for entry in below), "I1 remove() has returned")
        await act
        self.require(not any(self.inside[entry] for entry in below), "I4 a handler runs after the removal")
        self.require(all(entry.node.released for entry in below), "I4 not all is released")

    # -- what holds between any two steps, and in the end --

    def check(self) -> None:
        assert not self.broken, "; ".join(self.broken)
        for entry in (self.a, self.b):
            assert not entry.node.released or not self.inside[entry], f"I3 {entry} has a handler inside"
            assert entry.node.revoked == self.is_removed(entry), f"I1 {entry}"

    async def finish(self) -> None:
        await asyncio.sleep(1000)  # virtual seconds: until nothing is left that can happen
        for task in self.tasks:
            assert task.done(), f"I8 {task.get_name()} never ends"
            task.result()
        assert self.released == self.opened, f"I2 released {self.released}, opened {self.opened}"
        assert not any(each.node.in_use for each in (self.a, self.b)), "somebody is still inside"


async def parent_and_child(ledger: Ledger, moment: int) -> None:
    """An entry, and then the directory, are removed while they are opened, read and polled."""
    ledger.start(ledger.reads(ledger.a), ledger.polls(ledger.a, 1), ledger.reads(ledger.b), ledger.polls(ledger.b, 0))
    ledger.start(ledger.removes(ledger.a, moment), ledger.removes(ledger.top, moment + 1))


async def directory_first(ledger: Ledger, moment: int) -> None:
    """The root goes, then what is below it; an opening and a poll come about that time."""
    ledger.start(ledger.removes(ledger.tree, moment), ledger.removes(ledger.b, 2), ledger.removes(ledger.top, 3))
    ledger.start(ledger.polls(ledger.b, 2), ledger.reads(ledger.b))


async def two_from_inside(ledger: Ledger, moment: int) -> None:
    """Two handlers remove their own entry, beside one that reads it, one that polls, and one who removes it from outside."""
    ledger.start(ledger.removes_itself(ledger.a, 0), ledger.removes_itself(ledger.a, 1), ledger.reads(ledger.a))
    ledger.start(ledger.polls(ledger.a, 1), ledger.removes(ledger.a, moment))


async def inside_and_above(ledger: Ledger, moment: int) -> None:
    """A handler removes its own entry while the directory is removed, and news come."""

    async def notifies() -> None:
        await turns(moment)
        ledger.a.notify()

    ledger.start(ledger.removes_itself(ledger.a, 0), ledger.removes_itself(ledger.b, 1), ledger.polls(ledger.a, 0))
    ledger.start(notifies(), ledger.removes(ledger.top, moment))


Scenario = Callable[[Ledger, int], Coroutine[Any, Any, None]]
SCENARIOS: dict[Scenario, tuple[int, ...]] = {
    parent_and_child: (1, 3),
    directory_first: (2,),
    two_from_inside: (2, 4, 6),
    inside_and_above: (3, 5),
}


@pytest.mark.parametrize(
    ("scenario", "moment"),
    [
        pytest.param(scenario, moment, id=f"{scenario.__name__}-{moment}")
        for scenario, moments in SCENARIOS.items()
        for moment in moments
    ],
)
@pytest.mark.parametrize("profile", [answers.SYSFS, None], ids=["SYSFS", "cancels"])
def test_every_order(
    scenario: Scenario, moment: int, profile: Answers | None, record_property: Callable[[str, object], None]
) -> None:
    """The ledger agrees in each order of the steps, where handlers finish and where they are cancelled."""

    async def run() -> None:
        ledger = Ledger(profile)
        await scenario(ledger, moment)
        await ledger.finish()

    explore(run, record_property)
