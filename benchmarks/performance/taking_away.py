"""Much is taken away at once, and many handles are open."""

from __future__ import annotations

import asyncio
import contextlib
import gc
import os
import tracemalloc
import tty
from collections.abc import Awaitable, Callable, Coroutine, Iterator
from functools import partial
from time import perf_counter
from typing import Any

import anyio
from by_hand import ByHand
from contest import Contest, Line

from asyncrevoke import FdStream, Revokable, RevokedError

Opener = Callable[[], tuple[int, ...]]


async def taken(tasks: list[asyncio.Task[None]], take: Callable[[], Awaitable[object]]) -> float:
    """Milliseconds until all is taken away from tasks that wait for it."""
    for _ in range(5):
        await anyio.lowlevel.checkpoint()
    begin = perf_counter()
    await take()
    seconds = perf_counter() - begin
    assert all(task.done() for task in tasks)
    return seconds * 1e3


async def streams_taken(opener: Opener, count: int) -> float:
    """Revoke streams that each have a parked receive, by way of their owner."""
    owner = Revokable("owner")
    opened = [opener() for _ in range(count)]
    milliseconds = await taken(receivers([FdStream(fd, owner) for fd, *_ in opened]), owner.revoke)
    ended(opened)
    return milliseconds


async def streams_cancelled(opener: Opener, count: int) -> float:
    """Cancel those who receive, wait for them, and let go of the descriptors."""
    opened = [opener() for _ in range(count)]
    streams = [ByHand(fd) for fd, *_ in opened]
    tasks = receivers(streams)

    async def take() -> None:
        for task in tasks:
            task.cancel()
        await asyncio.wait(tasks)
        for stream in streams:
            stream.close()

    milliseconds = await taken(tasks, take)
    ended(opened)
    return milliseconds


def receivers(streams: list[FdStream] | list[ByHand]) -> list[asyncio.Task[None]]:
    async def receive(stream: FdStream | ByHand) -> None:
        with contextlib.suppress(RevokedError):
            await stream.receive()

    return [asyncio.create_task(receive(stream)) for stream in streams]


def ended(opened: list[tuple[int, ...]]) -> None:
    """Close the peers, and see that there was no cheating."""
    for fd, *peers in opened:
        for peer in peers:
            os.close(peer)
        with contextlib.suppress(OSError):
            os.fstat(fd)
            raise AssertionError(f"descriptor {fd} is still open")


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

    return await taken([asyncio.create_task(operate(files[each % nodes])) for each in range(count)], owner.revoke)


async def scopes_cancelled(count: int) -> float:
    """Cancel bare scopes around the same waits, and wait for their tasks."""
    scopes = [anyio.CancelScope() for _ in range(count)]

    async def operate(scope: anyio.CancelScope) -> None:
        with scope:
            await asyncio.get_running_loop().create_future()

    tasks = [asyncio.create_task(operate(scope)) for scope in scopes]

    async def take() -> None:
        for scope in scopes:
            scope.cancel()
        await asyncio.wait(tasks)

    return await taken(tasks, take)


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
    return seconds / (count * times) * 1e6


def bytes_per_handle(count: int) -> float:
    owner = Revokable("owner")
    tracemalloc.start()  # so it counts from 0
    for _ in range(count):
        owner.open("file", release=released)
    gc.collect()
    held, _ = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    return held / count


def contests(scale: float) -> Iterator[Contest]:
    def on_a_loop(work: Callable[..., Coroutine[Any, Any, float]], *args: int | Opener) -> Callable[[], float]:
        return lambda: asyncio.run(work(*args))

    many, ptys = int(10_000 * scale), int(3_900 * scale)
    for count, what, opener, ends in (many, "10,000 receives", open_event, 1), (ptys, "3,900 ptys", open_pty, 2):
        ways = {
            "revoke": on_a_loop(streams_taken, opener, count),
            "cancel and close": on_a_loop(streams_cancelled, opener, count),
        }
        lines, needed = [Line("revoke", "cancel and close", 1.1)], (count * ends + 100, count * (ends - 1))
        yield Contest(f"{what} taken away", "ms", ways, lines, 11, *needed)
    ways = {
        "one node": on_a_loop(uses_taken, 1, many),
        "a node each": on_a_loop(uses_taken, many, many),
        "CancelScope.cancel": on_a_loop(scopes_cancelled, many),
    }
    lines = [Line(name, "CancelScope.cancel", 1.15) for name in ("one node", "a node each")]
    yield Contest("10,000 uses taken away", "ms", ways, lines, 11)
    few, lot = many // 10, many * 10
    ways = {"100,000": on_a_loop(opened_and_revoked, lot, 1), "1,000": on_a_loop(opened_and_revoked, few, 20)}
    yield Contest("open and revoke, per handle", "us", ways, [Line("100,000", "1,000", 1.2)], 11)
    ways = {"Revokable": partial(bytes_per_handle, lot)}
    yield Contest("an open handle", "bytes", ways, [Line("Revokable", "", 200, absolute=True)], 3)
