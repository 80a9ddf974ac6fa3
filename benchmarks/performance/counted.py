"""What an operation costs in instructions, counted by callgrind.

They are those of the process and not of the kernel, and the load of the machine changes nothing about them.
"""

from __future__ import annotations

import asyncio
import contextlib
import gc
import importlib
import os
import pathlib
import subprocess
import sys
import tempfile
import tty
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator, Sequence
from functools import partial
from typing import Any

import anyio
from by_hand import ByHand
from contest import Contest, Line
from on_ports import DROP_IN, PYSERIAL, Open, by_open_serial, by_pair
from web import endpoint, revokable, served

from asyncrevoke import FdStream, Registry, Revokable
from asyncrevoke.adapters.asyncio_streams import wrap_streams
from asyncrevoke.cluster import Cluster, MemoryLog

SIZE = 16  # bytes of a record
OPERATIONS = 1000
TURNS = 10  # of the loop, in which a transport reads
DENIED = 1000  # entries of a cluster's log
Operation = Callable[[], Awaitable[object]]
Make = Callable[[], contextlib.AbstractAsyncContextManager[tuple[Operation, int | None]]]


@contextlib.asynccontextmanager
async def pipe(kind: Callable[[int], Any], method: str) -> AsyncIterator[tuple[Operation, int]]:
    """A stream on a pipe, and where to write to."""
    read, write = os.pipe()
    async with kind(read) as stream:
        receive = getattr(stream, method)
        yield lambda: receive(SIZE), write
    os.close(write)


@contextlib.asynccontextmanager
async def line(open_port: Open) -> AsyncIterator[tuple[Operation, int]]:
    """A reader on a pty."""
    master, slave = os.openpty()
    tty.setraw(slave)
    async with open_port(os.ttyname(slave)) as port:
        yield lambda: port.receive(SIZE), master
    os.close(slave)
    os.close(master)


@contextlib.asynccontextmanager
async def fed(method: str, *, wrapped: bool = False) -> AsyncIterator[tuple[Operation, None]]:
    """A reader whose data is there."""
    stream = asyncio.StreamReader(limit=1 << 30)
    stream.feed_data(bytes(SIZE * OPERATIONS * 2))
    if wrapped:
        stream, _ = wrap_streams(stream, None)
    read = getattr(stream, method)
    yield lambda: read(SIZE), None


async def at_once() -> None:
    """Do not suspend."""


async def park() -> None:
    loop = asyncio.get_running_loop()
    future = loop.create_future()
    loop.call_soon(future.set_result, None)
    await future


@contextlib.asynccontextmanager
async def bracket(
    make: Callable[[], contextlib.AbstractContextManager[object]], work: Operation
) -> AsyncIterator[tuple[Operation, None]]:
    async def operation() -> None:
        with make():
            await work()

    yield operation, None


async def use(cluster: Cluster) -> None:
    with cluster.live["alice", "token7"].using():
        pass


async def admit(cluster: Cluster) -> None:
    with cluster.admit("alice", "token7"):
        pass


async def admit_issued(cluster: Cluster) -> None:
    with cluster.admit("alice", "token7", issued=cluster.position):
        pass


@contextlib.asynccontextmanager
async def session(
    way: Callable[[Cluster], Awaitable[None]], *, held: bool = False, denied: int = 0
) -> AsyncIterator[tuple[Operation, None]]:
    """A session of a key begins and ends in a member of a cluster. The key may be held by another session."""
    cluster = Cluster(Registry(), MemoryLog(), lease=86400)
    await cluster.init()
    if denied:
        await cluster.append(*(cluster.entry("bob", f"token{number}") for number in range(denied)))
    async with anyio.create_task_group() as tasks:
        await tasks.start(cluster.run)
        with cluster.admit("alice", "token7") if held else contextlib.nullcontext():
            yield partial(way, cluster), None
        tasks.cancel_scope.cancel()


#: The part of a contender's name before the comma.
CASES: dict[str, Make] = {
    "FdStream": partial(pipe, FdStream, "receive"),
    "FdStream record": partial(pipe, FdStream, "receive_exactly"),
    "by hand": partial(pipe, ByHand, "receive"),
    "open_serial": partial(line, by_open_serial),
    "drop-in": partial(line, partial(by_pair, DROP_IN)),
    "pyserial-asyncio": partial(line, partial(by_pair, PYSERIAL)),
    "StreamReader": partial(fed, "read"),
    "StreamReader record": partial(fed, "readexactly"),
    "wrapped reader": partial(fed, "read", wrapped=True),
    "using() at once": lambda: bracket(Revokable("file").using, at_once),
    "using() parked": lambda: bracket(Revokable("file").using, park),
    "CancelScope at once": lambda: bracket(anyio.CancelScope, at_once),
    "CancelScope parked": lambda: bracket(anyio.CancelScope, park),
    "using() of a key": partial(session, use),
    "admit() of a key": partial(session, admit),
    "using() of a held key": partial(session, use, held=True),
    "admit() of a held key": partial(session, admit, held=True),
    "admit() beside denied keys": partial(session, admit, held=True, denied=DENIED),
    "admit() of a key issued later": partial(session, admit_issued, denied=DENIED),
    "asgi request (key in use)": lambda: served(revokable(in_use=True)),
    "asgi request (key unused)": lambda: served(revokable(in_use=False)),
    "uvicorn request": lambda: served(endpoint),
    "asgi websocket message": lambda: served(revokable(in_use=False), websocket=True),
    "uvicorn websocket message": lambda: served(endpoint, websocket=True),
}


async def operate(operation: Operation, peer: int | None, count: int, *, parked: bool) -> None:
    """Do the operation so often between two marks, before which all data has come that is to be there."""
    if peer is not None and not parked:
        for begin in range(0, count, 200):
            os.write(peer, bytes(min(200, count - begin) * SIZE))
            for _ in range(TURNS):
                await asyncio.sleep(0)
    mark()
    call_soon = asyncio.get_running_loop().call_soon
    for _ in range(count):
        if peer is not None and parked:
            call_soon(call_soon, os.write, peer, bytes(SIZE))
        await operation()
    mark()


def mark() -> None:
    """Call a function of libc that nothing else here calls: callgrind writes down what it has counted."""
    os.getpriority(os.PRIO_PROCESS, 0)


async def run(case: str, count: int) -> None:
    name, _, parked = case.partition(", ")
    gc.collect()
    gc.disable()
    async with CASES[name]() as (operation, peer):
        for operations in count // 10, count:
            await operate(operation, peer, operations, parked=parked == "parked")
    gc.enable()


class Counted(Contest):
    def measure(self, names: Sequence[str], _rounds: int) -> dict[str, list[float]]:
        """Run all of them in one process: each has four dumps, of which the last is that of its operations."""
        with tempfile.TemporaryDirectory() as folder:
            count = ["valgrind", "--tool=callgrind", f"--callgrind-out-file={folder}/out", "--dump-before=getpriority"]
            command = [*count, sys.executable, __file__, str(OPERATIONS), *names]
            subprocess.run(command, check=True, capture_output=True, env=os.environ | {"PYTHONHASHSEED": "0"})
            dumps = [
                pathlib.Path(f"{folder}/out.{4 * number}").read_text().split() for number in range(1, len(names) + 1)
            ]
        return {
            name: [int(words[words.index("totals:") + 1]) / OPERATIONS]
            for name, words in zip(names, dumps, strict=True)
        }


def contests(_scale: float) -> Iterator[Contest]:
    lines = [
        Line("FdStream, ready", "by hand, ready", 4.0),
        Line("FdStream, parked", "by hand, parked", 1.06),
        Line("FdStream, ready on uvloop", "by hand, ready on uvloop", 4.0),
        Line("FdStream, parked on uvloop", "by hand, parked on uvloop", 1.06),
        Line("FdStream record, ready", "StreamReader record, ready", 1.0),
        Line("open_serial, parked", "pyserial-asyncio, parked", 1.2),
        Line("drop-in, ready", "pyserial-asyncio, ready", 1.2),
        Line("drop-in, parked", "pyserial-asyncio, parked", 1.0),
        Line("wrapped reader, ready", "StreamReader, ready", 2.0),
        Line("using() at once", "CancelScope at once", 0.6, 1.2),
        Line("using() parked", "CancelScope parked", 0.9, 1.1),
        Line("admit() of a key", "using() of a key", 1.1),
        Line("admit() of a held key", "using() of a held key", 1.1),
        Line("admit() beside denied keys", "using() of a held key"),
        Line("admit() of a key issued later", "using() of a key"),
        Line("asgi request (key in use)", "uvicorn request", 1.05),
        Line("asgi request (key unused)", "uvicorn request", 1.05),
        Line("asgi websocket message", "uvicorn websocket message", 1.05),
    ]
    yield Counted("instructions", "instr", {}, lines, needs="valgrind")


def main(count: str, *cases: str) -> None:
    for each in cases:
        case, _, uvloop = each.partition(" on ")
        factory = importlib.import_module("uvloop").new_event_loop if uvloop else asyncio.new_event_loop
        with asyncio.Runner(loop_factory=factory) as runner:
            runner.run(run(case, int(count)))


if __name__ == "__main__":
    main(*sys.argv[1:])
