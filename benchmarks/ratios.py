"""What the guard costs, as ratios: ``python benchmarks/ratios.py [--quick] [part of a row's name]``

Each figure is the median, over pairs, of our time divided by that of the same work without us. What takes long is run
once on each side of a pair; single operations by small lots in turns, so that a machine that others use, too, slows
both sides alike. The spread is that of the middle half of the pairs. Nothing fails when an aim is missed; the row says so.
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import gc
import importlib.metadata
import os
import pathlib
import resource
import statistics
import sys
import tracemalloc
import tty
from collections.abc import Awaitable, Callable, Iterator
from functools import partial
from time import perf_counter
from typing import NamedTuple, Self

import anyio
import uvloop

from asyncrevoke import FdStream, Revokable, RevokedError

Sample = Callable[[], Awaitable[float]]
Opener = Callable[[], tuple[int, ...]]


class ByHand:
    """What one writes without a library: try first, and keep the reader registered from one wait to the next."""

    def __init__(self, fd: int) -> None:
        os.set_blocking(fd, False)
        self._fd = fd
        self._loop = asyncio.get_running_loop()
        self._waiter: asyncio.Future[None] | None = None
        self._registered = False

    async def receive(self, max_bytes: int = 65536) -> bytes:
        while True:
            try:
                return os.read(self._fd, max_bytes)
            except BlockingIOError:
                pass
            if not self._registered:
                self._loop.add_reader(self._fd, self._ready)
                self._registered = True
            self._waiter = self._loop.create_future()
            try:
                await self._waiter
            finally:
                self._waiter = None

    def _ready(self) -> None:
        if self._waiter is None:
            self._loop.remove_reader(self._fd)
            self._registered = False
        elif not self._waiter.done():
            self._waiter.set_result(None)

    def close(self) -> None:
        self._loop.remove_reader(self._fd)
        os.close(self._fd)

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(self, *_: object) -> None:
        self.close()


Kind = type[FdStream] | type[ByHand]


async def settle() -> None:
    """Let what was started run until it waits."""
    for _ in range(5):
        await anyio.lowlevel.checkpoint()


# -- one operation --


async def receive_ready(kind: Kind, ops: int) -> float:
    """Receive bytes that are there already."""
    theirs, ours = os.pipe()
    async with kind(theirs) as stream:
        os.write(ours, bytes(ops))
        begin = perf_counter()
        for _ in range(ops):
            await stream.receive(1)
        seconds = perf_counter() - begin
    os.close(ours)
    return seconds


async def receive_parked(kind: Kind, ops: int) -> float:
    """Throw a byte to and fro between two tasks: each has to wait for the other."""
    pipes = os.pipe(), os.pipe()

    async def play(stream: FdStream | ByHand, to: int) -> None:
        for _ in range(ops // 2):
            await stream.receive(1)
            os.write(to, b".")

    async with kind(pipes[0][0]) as here, kind(pipes[1][0]) as there:
        both = asyncio.gather(play(here, pipes[1][1]), play(there, pipes[0][1]))
        await settle()  # once both wait, each answer comes too late for the other's first attempt, so all of them wait
        begin = perf_counter()
        os.write(pipes[0][1], b".")
        await both
        seconds = perf_counter() - begin
    os.close(pipes[0][1])
    os.close(pipes[1][1])
    return seconds


async def at_once() -> None:
    """Do not suspend."""


async def park() -> None:
    loop = asyncio.get_running_loop()
    future = loop.create_future()
    loop.call_soon(future.set_result, None)
    await future


async def bracket(
    make: Callable[[], contextlib.AbstractContextManager[object]], work: Callable[[], Awaitable[None]], ops: int
) -> float:
    begin = perf_counter()
    for _ in range(ops):
        with make():
            await work()
    return perf_counter() - begin


# -- taking away --


async def streams_taken(opener: Opener, count: int) -> float:
    """Revoke streams that each have a parked receive, by way of their owner."""
    owner = Revokable("owner")
    opened = [opener() for _ in range(count)]
    tasks = await receivers([FdStream(fd, owner) for fd, *_ in opened])
    begin = perf_counter()
    await owner.revoke()
    seconds = perf_counter() - begin
    ended(tasks, opened)
    return seconds


async def streams_cancelled(opener: Opener, count: int) -> float:
    """Cancel those who receive, wait for them, and let go of the descriptors."""
    opened = [opener() for _ in range(count)]
    streams = [ByHand(fd) for fd, *_ in opened]
    tasks = await receivers(streams)
    begin = perf_counter()
    for task in tasks:
        task.cancel()
    await asyncio.wait(tasks)
    for stream in streams:
        stream.close()
    seconds = perf_counter() - begin
    ended(tasks, opened)
    return seconds


async def receivers(streams: list[FdStream] | list[ByHand]) -> list[asyncio.Task[None]]:
    async def receive(stream: FdStream | ByHand) -> None:
        with contextlib.suppress(RevokedError):
            await stream.receive()

    tasks = [asyncio.create_task(receive(stream)) for stream in streams]
    await settle()
    return tasks


def ended(tasks: list[asyncio.Task[None]], opened: list[tuple[int, ...]]) -> None:
    """Close the peers, and see that there was no cheating."""
    for fd, *peers in opened:
        for peer in peers:
            os.close(peer)
        with contextlib.suppress(OSError):
            os.fstat(fd)
            raise AssertionError(f"descriptor {fd} is still open")
    assert all(task.done() for task in tasks)


def open_event() -> tuple[int]:
    """A descriptor that is never ready, without a peer."""
    return (os.eventfd(0),)


def open_pty() -> tuple[int, int]:
    """A terminal, and its other end."""
    master, slave = os.openpty()
    tty.setraw(slave)
    return slave, master


async def uses_taken(nodes: int, count: int) -> float:
    """Revoke operations that are parked in `using()`, evenly spread over `nodes`."""
    owner = Revokable("owner")
    files = [owner.open("file") for _ in range(nodes)]

    async def operate(file: Revokable) -> None:
        with contextlib.suppress(RevokedError), file.using():
            await asyncio.get_running_loop().create_future()

    tasks = [asyncio.create_task(operate(files[number % nodes])) for number in range(count)]
    await settle()
    begin = perf_counter()
    await owner.revoke()
    seconds = perf_counter() - begin
    ended(tasks, [])
    return seconds


async def scopes_cancelled(count: int) -> float:
    """Cancel bare scopes around the same waits, and wait for their tasks."""
    scopes = [anyio.CancelScope() for _ in range(count)]

    async def operate(scope: anyio.CancelScope) -> None:
        with scope:
            await asyncio.get_running_loop().create_future()

    tasks = [asyncio.create_task(operate(scope)) for scope in scopes]
    await settle()
    begin = perf_counter()
    for scope in scopes:
        scope.cancel()
    await asyncio.wait(tasks)
    seconds = perf_counter() - begin
    ended(tasks, [])
    return seconds


# -- many handles --


def released() -> None:
    """All share it."""


async def opened_and_revoked(count: int, times: int) -> float:
    """The time per handle."""
    seconds = 0.0
    for _ in range(times):
        owner = Revokable("owner")
        begin = perf_counter()
        for _ in range(count):
            owner.open("file", release=released)
        await owner.revoke()
        seconds += perf_counter() - begin
    return seconds / (count * times)


def bytes_per_handle(count: int) -> float:
    owner = Revokable("owner")
    gc.collect()
    tracemalloc.start()  # so it counts from 0
    for _ in range(count):
        owner.open("file", release=released)
    held, _ = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    return held / count


# -- the table --


class Row(NamedTuple):
    what: str
    aim: float
    ours: Sample
    floor: Sample
    pairs: int
    turns: int = 1  # of each side in one pair
    loop: Callable[[], asyncio.AbstractEventLoop] = asyncio.new_event_loop
    descriptors: int = 0
    ptys: int = 0

    def lack(self) -> str:
        """What the system has too little of, or nothing."""
        soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
        if max(soft, hard) < self.descriptors:
            return f"needs {self.descriptors} descriptors, the hard limit is {hard}"
        if soft < self.descriptors:
            resource.setrlimit(resource.RLIMIT_NOFILE, (self.descriptors, hard))
        limit, used = (int(pathlib.Path(f"/proc/sys/kernel/pty/{name}").read_text()) for name in ("max", "nr"))
        return f"needs {self.ptys} ptys, {limit - used} are free" if limit - used < self.ptys else ""

    def ratios(self) -> list[float]:
        async def measure() -> list[float]:
            found: list[float] = []
            for _ in range(self.pairs + 1):
                seconds = {self.ours: 0.0, self.floor: 0.0}
                for turn in range(self.turns):
                    for sample in (self.ours, self.floor) if (len(found) + turn) % 2 else (self.floor, self.ours):
                        gc.collect()
                        seconds[sample] += await sample()
                found.append(seconds[self.ours] / seconds[self.floor])
            return found[1:]  # the first pair warms up

        with asyncio.Runner(loop_factory=self.loop) as runner:
            return runner.run(measure())


def rows(quick: bool) -> Iterator[Row]:
    many, pairs, turns, ops, ptys, few = (100, 2, 2, 20, 20, 2) if quick else (10_000, 25, 16, 250, 3_900, 15)
    for name, loop in (("asyncio", asyncio.new_event_loop), ("uvloop", uvloop.new_event_loop)):
        for what, sample in (("data ready", receive_ready), ("parked", receive_parked)):
            guarded, by_hand = partial(sample, FdStream, ops), partial(sample, ByHand, ops)
            yield Row(f"FdStream.receive, {what}, {name} / by hand", 1.05, guarded, by_hand, pairs, turns, loop)
    handle = Revokable("file")
    for what, work in (("parks once", park), ("does not suspend", at_once)):
        use, scope = (partial(bracket, make, work, ops) for make in (handle.using, anyio.CancelScope))
        yield Row(f"using(), {what} / CancelScope", 1.3, use, scope, pairs, turns)
    taken, cancelled = partial(streams_taken, open_event, many), partial(streams_cancelled, open_event, many)
    yield Row(f"revoke {many} receives / cancel and close", 1.1, taken, cancelled, few, descriptors=many + 100)
    for nodes in (1, many):
        ours, floor = partial(uses_taken, nodes, many), partial(scopes_cancelled, many)
        yield Row(f"revoke {many} uses on {nodes} nodes / CancelScope.cancel", 1.15, ours, floor, few)
    taken, cancelled = partial(streams_taken, open_pty, ptys), partial(streams_cancelled, open_pty, ptys)
    both = 2 * ptys + 100
    yield Row(f"revoke {ptys} ptys / cancel and close", 1.1, taken, cancelled, few, descriptors=both, ptys=ptys)
    large, small = partial(opened_and_revoked, 10 * many, 1), partial(opened_and_revoked, many // 10, 20)
    yield Row(f"open and revoke, per handle, {10 * many} / {many // 10}", 1.2, large, small, few)


def show(what: str, aim: float, found: list[float]) -> None:
    """Print one line of the table: ratios, or bytes."""
    middle, (low, _, high) = statistics.median(found), statistics.quantiles(found, n=4)
    digits = 0 if aim > 100 else 2
    missed = "" if middle <= aim else "  missed"
    print(f"{what:60} {aim:5.{digits}f} {middle:7.{digits}f}  {low:.{digits}f}..{high:.{digits}f}{missed}", flush=True)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("only", nargs="?", default="", help="a part of the names of the rows to measure")
    parser.add_argument("--quick", action="store_true", help="see that it runs; the figures mean nothing then")
    options = parser.parse_args()
    versions = [f"{name} {importlib.metadata.version(name)}" for name in ("anyio", "uvloop")]
    print(f"Python {sys.version.partition(' ')[0]}", *versions, f"\n{'what':60} {'aim':>5} {'median':>7}  spread")
    gc.freeze()  # the modules: so collecting before each run takes no time
    for row in rows(options.quick):
        if options.only in row.what:
            if lack := row.lack():
                print(f"{row.what:60} {row.aim:5.2f}  not measured: {lack}")
            else:
                show(row.what, row.aim, row.ratios())
    if options.only in "bytes per open handle":
        show("bytes per open handle", 200, [bytes_per_handle(1_000 if options.quick else 100_000) for _ in range(3)])


if __name__ == "__main__":
    main()
