"""A log in the memory of this process: for tests."""

import time
from collections import defaultdict
from collections.abc import Callable, Iterable, Sequence

import anyio

from .log import KEPT, Batch, Log, Member


class MemoryLog(Log):
    """A log for several clusters in one process, for tests. It ends with the process."""

    name = "memory:"

    def __init__(self) -> None:
        self._texts: dict[int, str] = {}
        self._last = 0
        self._told: defaultdict[str, list[str]] = defaultdict(list)
        self._members: dict[str, tuple[float, Member]] = {}
        self._changed = anyio.Event()

    async def check(self) -> None:
        """Refuse nothing: this engine is always suitable."""

    async def append(self, *texts: str) -> None:
        for text in texts:
            self._last += 1
            self._texts[self._last] = text
        self._change()

    async def read(self, after: int, wait: float, member: Member | None = None) -> Batch:
        if member is not None:
            self._members[member.id] = time.monotonic(), member
        await self._until(lambda: self._last != after, wait)
        return Batch(self._texts.get(after), [each for each in self._texts.items() if each[0] > after], whole=True)

    async def tell(self, told: Iterable[tuple[str, str]], keep: float) -> None:
        del keep  # they are kept as long as the process lives
        for about, text in told:
            self._told[about].append(text)
        self._change()

    async def told(self, about: str, after: int, wait: float) -> tuple[int, Sequence[str]]:
        await self._until(lambda: len(self._told[about]) > after, wait)
        return len(self._told[about]), self._told[about][after:]

    async def members(self) -> list[Member]:
        now = time.monotonic()
        return [Member.parse(member.dump(), now - said) for said, member in self._members.values()]

    async def leave(self, member: Member) -> None:
        self._members.pop(member.id, None)

    async def drop(self, numbers: Sequence[int]) -> None:
        for number in {*numbers} & {*list(self._texts)[:-KEPT]}:
            del self._texts[number]

    async def time(self) -> float:
        return time.time()

    async def aclose(self) -> None:
        """Close nothing: there are no connections."""

    def wipe(self) -> None:
        """Lose everything, like an engine that did not write to a disk."""
        self._texts.clear()
        self._last = 0
        self._change()

    async def _until(self, so: Callable[[], bool], wait: float) -> None:
        with anyio.move_on_after(wait):
            while not so():
                await self._changed.wait()

    def _change(self) -> None:
        self._changed.set()
        self._changed = anyio.Event()
