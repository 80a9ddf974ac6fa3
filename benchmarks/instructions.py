"""What an operation costs in instructions, beside a peer: ``python benchmarks/instructions.py [part of a row's name]``

Counted by callgrind (apt: valgrind) are those of the process, not of the kernel: the difference of a run of 3,000 operations
and one of 1,000. The load of the machine changes nothing about them. Nothing fails when a goal is missed; the row says so.
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import gc
import os
import pathlib
import shutil
import subprocess
import sys
import tempfile
import tty
from collections.abc import AsyncIterator, Awaitable, Callable
from typing import Any, NamedTuple

import anyio
from ratios import ByHand, at_once, park

from asyncrevoke import FdStream, Revokable, open_serial
from asyncrevoke.adapters.asyncio_streams import wrap_streams
from asyncrevoke.compat import serial_asyncio as ours

SIZE = 16  # bytes of a record
OPEN: list[object] = []  # a writer that is dropped closes
Operation = Callable[[], Awaitable[object]]
Make = Callable[[], contextlib.AbstractAsyncContextManager[tuple[Operation, int | None]]]


class Row(NamedTuple):
    """What is compared: the operation of the one with that of the other."""

    what: str
    goal: float
    one: str
    other: str


ROWS = [
    Row("FdStream.receive, data there / by hand", 4.0, "fd", "hand"),
    Row("FdStream.receive, parked / by hand", 1.06, "fd parked", "hand parked"),
    Row("FdStream.receive_exactly, data there / StreamReader.readexactly", 1.0, "fd record", "reader record"),
    Row("open_serial stream, parked / pyserial-asyncio", 1.2, "serial parked", "pyserial-asyncio parked"),
    Row("drop-in reader, data there / pyserial-asyncio", 1.2, "drop-in", "pyserial-asyncio"),
    Row("drop-in reader, parked / pyserial-asyncio", 1.0, "drop-in parked", "pyserial-asyncio parked"),
    Row("wrapped StreamReader.read, data there / bare", 2.0, "wrapped", "reader"),
    Row("using(), does not suspend / CancelScope", 1.2, "using", "scope"),
    Row("using(), parks once / CancelScope", 1.1, "using parked", "scope parked"),
]


@contextlib.asynccontextmanager
async def pipe(kind: Callable[[int], Any], method: str = "receive") -> AsyncIterator[tuple[Operation, int]]:
    """A stream on a pipe, and where to write to."""
    read, write = os.pipe()
    receive = getattr(kind(read), method)
    yield lambda: receive(SIZE), write


@contextlib.asynccontextmanager
async def line(open_line: Callable[[str], Awaitable[Any]]) -> AsyncIterator[tuple[Operation, int]]:
    """A reader on a pty."""
    master, slave = os.openpty()
    tty.setraw(slave)
    read = await open_line(os.ttyname(slave))
    yield lambda: read(SIZE), master


async def serial(path: str) -> Any:
    return (await open_serial(path)).open("a").receive


def reader(module: Any) -> Callable[[str], Awaitable[Any]]:
    async def open_line(path: str) -> Any:
        pair = await module.open_serial_connection(url=path, baudrate=9600)
        OPEN.append(pair)
        return pair[0].read

    return open_line


@contextlib.asynccontextmanager
async def fed(method: str, *, wrapped: bool = False) -> AsyncIterator[tuple[Operation, None]]:
    """A reader whose data is there."""
    stream = asyncio.StreamReader(limit=1 << 30)
    stream.feed_data(bytes(SIZE * 5000))
    if wrapped:
        stream, _ = wrap_streams(stream, None)
    read = getattr(stream, method)
    yield lambda: read(SIZE), None


@contextlib.asynccontextmanager
async def bracket(
    make: Callable[[], contextlib.AbstractContextManager[object]], work: Operation
) -> AsyncIterator[tuple[Operation, None]]:
    async def operation() -> None:
        with make():
            await work()

    yield operation, None


def cases() -> dict[str, Make]:
    import serial_asyncio as theirs  # noqa: PLC0415  # not for those who ask what there is

    handle = Revokable("file")
    return {
        "fd": lambda: pipe(FdStream),
        "fd record": lambda: pipe(FdStream, "receive_exactly"),
        "hand": lambda: pipe(ByHand),
        "serial": lambda: line(serial),
        "drop-in": lambda: line(reader(ours)),
        "pyserial-asyncio": lambda: line(reader(theirs)),
        "reader": lambda: fed("read"),
        "reader record": lambda: fed("readexactly"),
        "wrapped": lambda: fed("read", wrapped=True),
        "using": lambda: bracket(handle.using, at_once),
        "scope": lambda: bracket(anyio.CancelScope, at_once),
        "using parked": lambda: bracket(handle.using, park),
        "scope parked": lambda: bracket(anyio.CancelScope, park),
    }


async def run(case: str, count: int) -> None:
    """The work of one process, which ends without cleaning up."""
    gc.disable()
    known = cases()
    parked = case not in known
    async with known[case.removesuffix(" parked") if parked else case]() as (operation, peer):
        call_soon = asyncio.get_running_loop().call_soon
        terminal = peer is not None and os.isatty(peer)
        if peer is not None and not parked and not terminal:
            os.write(peer, bytes(count * SIZE))
        for done in range(count):
            if peer is not None and parked:
                call_soon(call_soon, os.write, peer, bytes(SIZE))
            elif peer is not None and terminal and not done % 200:
                os.write(peer, bytes(200 * SIZE))
                for _ in range(10):
                    await asyncio.sleep(0)  # in which a transport reads
            await operation()
        os._exit(0)


def instructions(case: str) -> float:
    """Of one operation."""
    totals = []
    for count in 1000, 3000:
        with tempfile.TemporaryDirectory() as folder:
            out = f"{folder}/out"
            command = [
                "valgrind",
                "--tool=callgrind",
                f"--callgrind-out-file={out}",
                sys.executable,
                __file__,
                "--run",
                case,
            ]
            subprocess.run(
                [*command, str(count)], check=True, capture_output=True, env={**os.environ, "PYTHONHASHSEED": "0"}
            )
            words = pathlib.Path(out).read_text().split()
            totals.append(int(words[words.index("totals:") + 1]))
    return (totals[1] - totals[0]) / 2000


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("only", nargs="?", default="", help="a part of the names of the rows to measure")
    parser.add_argument("--run", nargs=2, metavar=("CASE", "COUNT"), help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.run:
        asyncio.run(run(options.run[0], int(options.run[1])))
    if not shutil.which("valgrind"):
        parser.exit(1, "valgrind is not installed: apt-get install valgrind\n")
    print(f"{'what':66} {'goal':>5} {'ratio':>6} {'one':>8} {'other':>8}")
    for row in ROWS:
        if options.only in row.what:
            one, other = instructions(row.one), instructions(row.other)
            missed = "" if one / other <= row.goal else "  missed"
            print(f"{row.what:66} {row.goal:5.2f} {one / other:6.2f} {one:8.0f} {other:8.0f}{missed}", flush=True)


if __name__ == "__main__":
    main()
