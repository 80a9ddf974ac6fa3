"""How libraries answer when a port ends under their users: ``python benchmarks/conformance.py [--ours] [--only ROW]``

Each library has the slave of a pty open as its serial port. The port ends in four ways: V, the kernel hangs it up
(TIOCVHANGUP, which only root may); M, the master is closed; C, another task closes it; R, somebody else revokes it, which
only we can. Each cell is a process of its own, so a hang or a spin hurts no other. The line is never read at the far end,
so a write of 1 MiB that reports success has lost data.
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import fcntl
import importlib
import importlib.metadata
import json
import logging
import os
import pathlib
import platform
import re
import select
import signal
import time
import tty
from collections.abc import Awaitable, Callable, Sequence
from typing import Any, NamedTuple

import anyio
import anyio.abc
import anyio.lowlevel
import trio

from asyncrevoke import FdStream, RevokedError, open_serial

TIOCVHANGUP = 0x5437
FULL = bytes(1 << 20)
PATIENCE = 2.0  # seconds, after which it is a hang
PENDING = 0.1  # seconds in which an operation certainly begins to wait
IDLE = 0.25  # seconds in which a process with nothing to do should use no time
DEADLINE = 20.0  # seconds for one process
AT_ONCE = 8  # processes, which mostly sleep

HANGS, SPINS, NOTHING, QUOTE = "**HANGS**", "**spins**", "None", "'"


# -- the libraries --


class Library(NamedTuple):
    """How a library opens a port, and what is done with the port that it gives."""

    module: str
    open: Callable[[str], Awaitable[Any]]
    read: Callable[[Any], Awaitable[object]]
    write: Callable[[Any, bytes], Awaitable[object]]  # all of it, and wait until the port has taken it
    close: Callable[[Any], Awaitable[object]]
    revoke: Callable[[Any], object] | None = None
    backend: str = "asyncio"


def streams(module: str, revoke: Callable[[Any], object] | None = None) -> Library:
    """Reader and writer, by the function that all libraries of this kind have."""

    async def open_port(path: str) -> Any:
        return await importlib.import_module(module).open_serial_connection(url=path, baudrate=115200)

    return Library(module, open_port, lambda port: port[0].read(100), write_and_drain, close_and_wait, revoke)


async def write_and_drain(port: Any, data: bytes) -> None:
    port[1].write(data)
    await port[1].drain()


async def close_and_wait(port: Any) -> None:
    port[1].close()
    await port[1].wait_closed()


async def open_pipes(path: str) -> Any:
    loop, reader = asyncio.get_running_loop(), asyncio.StreamReader()
    reading, _ = await loop.connect_read_pipe(
        lambda: asyncio.StreamReaderProtocol(reader), os.fdopen(opened(path), "rb", 0)
    )
    writing, flow = await loop.connect_write_pipe(asyncio.streams.FlowControlMixin, os.fdopen(opened(path), "wb", 0))
    return reader, asyncio.StreamWriter(writing, flow, None, loop), reading


async def close_pipes(port: Any) -> None:
    port[2].close()
    port[1].close()


def opened(path: str) -> int:
    fd = os.open(path, os.O_RDWR | os.O_NOCTTY | os.O_NONBLOCK)
    tty.setraw(fd)
    return fd


async def read_fd(fd: int) -> bytes:
    await anyio.wait_readable(fd)
    return os.read(fd, 100)


async def write_fd(fd: int, data: bytes) -> None:
    while data:
        await anyio.wait_writable(fd)
        data = data[os.write(fd, data) :]


async def notify_and_close_fd(fd: int) -> None:
    anyio.notify_closing(fd)
    os.close(fd)


def serial(backend: Any) -> Library:
    async def open_port(path: str) -> Any:
        device = await open_serial(path, 115200, backend=backend)
        return device, device.open()

    async def close_both(port: Any) -> None:
        await port[1].aclose()
        await port[0].aclose()

    read, write, revoke = (
        lambda port: port[1].receive(),
        lambda port, data: port[1].send(data),
        lambda port: revoked(port[0]),
    )
    return Library("serialx" if backend == "serialx" else "asyncrevoke", open_port, read, write, close_both, revoke)


async def now(call: Callable[[], object]) -> object:
    return call()


def revoked(what: Any) -> None:
    what.revoke("needed elsewhere")


PEERS = {
    "pyserial-asyncio": streams("serial_asyncio"),
    "pyserial-asyncio-fast": streams("serial_asyncio_fast"),
    "serialx": streams("serialx"),
    "aioserial": Library(
        "aioserial",
        lambda path: now(lambda: importlib.import_module("aioserial").AioSerial(path)),
        lambda port: port.read_async(1),
        lambda port, data: port.write_async(data),
        lambda port: now(port.close),
    ),
    "asyncio pipes": Library("asyncio", open_pipes, lambda port: port[0].read(100), write_and_drain, close_pipes),
    "anyio.wait_readable": Library(
        "anyio", lambda path: now(lambda: opened(path)), read_fd, write_fd, lambda fd: now(lambda: os.close(fd))
    ),
    "anyio, notify_closing": Library(
        "anyio", lambda path: now(lambda: opened(path)), read_fd, write_fd, notify_and_close_fd
    ),
    "trio FdStream": Library(
        "trio",
        lambda path: now(lambda: trio.lowlevel.FdStream(opened(path))),
        lambda port: port.receive_some(100),
        lambda port, data: port.send_all(data),
        lambda port: port.aclose(),
        backend="trio",
    ),
}
OURS = {
    "open_serial": serial("descriptor"),
    "open_serial, pyserial-asyncio": serial("pyserial-asyncio"),
    "open_serial, serialx": serial("serialx"),
    "open_serial_connection": streams("asyncrevoke.adapters.asyncio_streams", lambda port: revoked(port[1].handle)),
    "FdStream": Library(
        "asyncrevoke",
        lambda path: now(lambda: FdStream(opened(path), name="port")),
        lambda port: port.receive(),
        lambda port, data: port.send(data),
        lambda port: port.aclose(),
        revoked,
    ),
}


# -- one cell, in its process --


class Cell:
    """A port of a library, what befalls it, and what those who use it are told."""

    def __init__(self, library: Library, event: str, tasks: anyio.abc.TaskGroup) -> None:
        self.event = event
        self.master, self._slave = os.openpty()
        tty.setraw(self._slave)
        os.set_blocking(self.master, False)
        self.path = os.ttyname(self._slave)
        self._library = library
        self._tasks = tasks
        self._port: Any = None

    async def open(self) -> None:
        self._port = await self._library.open(self.path)

    async def _told(self, operation: Callable[[], Awaitable[object]]) -> str:
        try:
            return repr(await operation())
        except Exception as exc:  # noqa: BLE001  # it is what the table is about
            words = exc.reason if isinstance(exc, RevokedError) else str(exc).partition("\n")[0]
            words = re.sub(" at 0x[0-9a-f]+", "", words.replace(self.path, "port"))
            told = f"{type(exc).__name__}: {words}".rstrip(": ")
            return told if len(told) < 80 else f"{told[:70]}..."

    def _start(self, operation: Callable[[], Awaitable[object]]) -> Callable[[], Awaitable[str]]:
        """Begin an operation in a task of its own. What is given back waits for what becomes of it."""
        ended, told = anyio.Event(), HANGS

        async def run() -> None:
            nonlocal told
            told = await self._told(operation)
            ended.set()

        async def outcome() -> str:
            with anyio.move_on_after(PATIENCE):
                await ended.wait()
            return told

        self._tasks.start_soon(run)
        return outcome

    def _read(self) -> Awaitable[object]:
        return self._library.read(self._port)

    def _close(self) -> Awaitable[object]:
        return self._library.close(self._port)

    async def _happen(self) -> None:
        self._end()
        await anyio.sleep(PENDING)

    def _end(self) -> None:
        """Let the port end."""
        if self.event == "V":
            fcntl.ioctl(self._slave, TIOCVHANGUP)
        elif self.event == "M":
            os.close(self.master)
        elif self.event == "C":
            self._closing = self._start(self._close)
        elif self._library.revoke is not None:
            self._library.revoke(self._port)

    async def _pending(self, operation: Callable[[], Awaitable[object]]) -> str:
        outcome = self._start(operation)
        await anyio.sleep(PENDING)
        waiting = await spinning("while it waits")
        await self._happen()
        told = await outcome()
        if self.event == "C" and await self._closing() == HANGS:
            waiting += "; close waits"
        return told + waiting + await spinning("afterwards")

    async def read(self) -> str:
        return await self._pending(self._read)

    async def write(self) -> str:
        return await self._pending(lambda: self._library.write(self._port, FULL))

    async def later(self) -> str:
        await self._happen()
        read = await self._start(self._read)()
        write = await self._start(lambda: self._library.write(self._port, b"x"))()
        return both(read, write)

    async def loop(self) -> str:
        """Read on after the end, as code that knows no end does, and see whether anybody else has a turn."""
        await self._happen()
        reads = turns = 0

        async def other() -> None:
            nonlocal turns
            while True:
                await anyio.lowlevel.checkpoint()
                turns += 1

        async def all_reads() -> str:
            nonlocal reads
            before, end = turns, time.monotonic() + IDLE
            while time.monotonic() < end:
                await self._read()
                reads += 1
            return "others run" if turns > before else "nobody else runs"

        self._tasks.start_soon(other)
        told = await self._start(all_reads)()
        return f"{SPINS} {reads / IDLE:.0f}/s, {told.strip(QUOTE)}" if told[0] == QUOTE else told

    async def parts(self) -> str:
        """Write more than fits at once, with a far end that reads it; then do nothing."""
        outcome = self._start(lambda: self._library.write(self._port, FULL))
        left = len(FULL)
        with anyio.move_on_after(5 * PATIENCE):
            while left:
                with contextlib.suppress(BlockingIOError):
                    left -= len(os.read(self.master, 65536))
                await anyio.lowlevel.checkpoint()
        return await outcome() + await spinning("when idle")

    async def second(self) -> str:
        self._start(self._read)
        await anyio.sleep(PENDING)
        told = await self._start(self._read)()
        return "waits" if told == HANGS else told

    async def twice(self) -> str:
        await self._happen()
        return both(await self._start(self._close)(), await self._start(self._close)())

    async def reopen(self) -> str:
        self._start(self._read)
        await anyio.sleep(PENDING)
        told = HANGS
        with anyio.move_on_after(PATIENCE):  # in this very task: nobody else has a turn unless the library gives one
            await self._told(self._close)
            told = await self._told(self.open)
            os.write(self.master, b"new")
            if told == NOTHING:
                told = HANGS
                told = await self._told(self._read)
        return told


def both(first: str, second: str) -> str:
    return first if first == second else f"{first} / {second}"


async def spinning(when: str) -> str:
    for _ in range(3):  # what is still being cleared away is no spin
        begin = time.process_time()
        await anyio.sleep(IDLE)
        share = (time.process_time() - begin) / IDLE
        if share < 0.3:
            return ""
    return f" {SPINS} {when}, {share:.0%} CPU"


async def find(kind: type[Cell], library: Library, column: str, event: str) -> None:
    async with anyio.create_task_group() as tasks:
        cell = kind(library, event, tasks)
        await cell.open()
        print(json.dumps(await getattr(cell, column)()), flush=True)
        signal.pause()  # until it is killed: what hangs is not waited for


# -- all of them --

Columns = list[tuple[str, str, str]]  # column, heading, and the events it is about
COLUMNS: Columns = [
    ("read", "read pending", "VMCR"),
    ("write", "write of 1 MiB pending", "VMCR"),
    ("later", "later read / write", "VMCR"),
    ("loop", "loop of reads", "VM"),
    ("parts", "write of 1 MiB that is read, then idle", "-"),
    ("second", "second reader", "-"),
    ("twice", "close / close again, after", "VM"),
    ("reopen", "close, open, read at once", "-"),
]
ENDINGS = "VM", "C", "R"  # from afar, by another task, by somebody else
Found = dict[tuple[str, str], str]  # by column and event


def start(kind: type[Cell], library: Library, column: str, event: str) -> tuple[int, int]:
    """Begin a process. It reports by the pipe that is given back."""
    theirs, ours = os.pipe()
    pid = os.fork()
    if not pid:
        os.dup2(ours, 1)
        os.dup2(os.open(os.devnull, os.O_WRONLY), 2)
        logging.disable()
        signal.alarm(round(2 * DEADLINE))  # if nobody is there any more to end it
        with contextlib.suppress(BaseException):
            anyio.run(find, kind, library, column, event, backend=library.backend)
        os._exit(1)
    os.close(ours)
    return pid, theirs


def end(pid: int, pipe: int) -> str:
    """What a process has reported, or did instead."""
    told = os.read(pipe, 65536) if select.select([pipe], [], [], 0)[0] else None
    os.close(pipe)
    for each in *children(pid), pid:
        with contextlib.suppress(ProcessLookupError):
            os.kill(each, signal.SIGKILL)
    _, _, usage = os.wait4(pid, 0)
    if told:
        return str(json.loads(told))
    busy = usage.ru_utime + usage.ru_stime > DEADLINE / 4
    return "**crashes**" if told is not None else f"{SPINS if busy else HANGS}, nobody else runs"


def children(pid: int) -> list[int]:
    """The programs that a process has started, and not reaped yet."""
    return [
        int(child)
        for task in pathlib.Path(f"/proc/{pid}/task").iterdir()
        for child in (task / "children").read_text().split()
    ]


def measure(rows: dict[str, Library], events: str, kind: type[Cell], columns: Columns) -> dict[str, Found]:
    todo = [
        (row, column, event)
        for row, library in rows.items()
        for column, _, about in columns
        for event in about
        if event in events and (event != "R" or library.revoke)
    ]
    found: dict[str, Found] = {row: {} for row in rows}
    running: dict[int, tuple[int, float, tuple[str, str, str]]] = {}
    while todo or running:
        while todo and len(running) < AT_ONCE:
            row, column, event = todo.pop(0)
            pid, pipe = start(kind, rows[row], column, event)
            running[pipe] = pid, time.monotonic() + DEADLINE, (row, column, event)
        ready = select.select(list(running), [], [], 0.1)[0]
        for pipe, (pid, deadline, (row, column, event)) in list(running.items()):
            if pipe in ready or time.monotonic() > deadline:
                del running[pipe]
                found[row][column, event] = end(pid, pipe)
    return found


def verdicts(found: Found) -> list[str]:
    """Where it hangs, spins, and reports success for lost data; and whether the three endings are told apart."""

    def where(true: Callable[[str], bool], *columns: str) -> str:
        cells = [(column, event) for column, _, about in COLUMNS for event in about if column in columns]
        return ", ".join(f"{cell[0]} {cell[1]}".rstrip(" -") for cell in cells if true(found.get(cell, ""))) or "no"

    def apart(column: str) -> bool:
        remote, local, third = ({found[column, each] for each in about if (column, each) in found} for about in ENDINGS)
        hangs = any(HANGS in told for told in remote | local | third)
        return bool(remote and local and third) and not (hangs or remote & local or remote & third or local & third)

    every = [column for column, _, _ in COLUMNS]
    return [
        where(lambda told: HANGS in told, *every),
        where(lambda told: SPINS in told, *every),
        where(lambda told: told.split(" / ")[-1].startswith((NOTHING, "1")), "write", "later"),
        "yes" if apart("read") and apart("write") else "no",
    ]


def table(head: list[str], lines: list[list[str]]) -> None:
    for line in [head, ["---"] * len(head), *lines]:
        print("|", " | ".join(line), "|")
    print()


def may_hang_up() -> bool:
    master, slave = os.openpty()
    try:
        fcntl.ioctl(slave, TIOCVHANGUP)
    except PermissionError:
        return False
    finally:
        os.close(master)
        os.close(slave)
    return True


def asked_for(doc: str, ours: dict[str, Library], peers: dict[str, Library]) -> argparse.Namespace:
    """What the command line asks for: the `rows` to measure, the names of `lacking` ones, and whether as `json`."""
    parser = argparse.ArgumentParser(description=doc.partition("\n")[0])
    parser.add_argument("--ours", action="store_true", help="our rows only")
    parser.add_argument("--only", default="", metavar="ROW", help="the rows with this in their names")
    parser.add_argument("--json", action="store_true", help="print what was found, for programs")
    options = parser.parse_args()
    rows = {row: library for row, library in (ours if options.ours else peers | ours).items() if options.only in row}
    options.rows, options.lacking = {}, []
    for row, library in rows.items():
        try:
            importlib.import_module(library.module)  # once, for all the processes
        except ImportError:
            options.lacking.append(row)
        else:
            options.rows[row] = library
    return options


def print_versions(*names: str) -> None:
    system = [f"Linux {platform.release()}", f"Python {platform.python_version()}"]
    print(", ".join([*system, *filter(None, map(version, names))]), "\n")


def print_cells(found: dict[str, Found], columns: Columns, endings: Sequence[str]) -> None:
    """A table for each column, with what each row was told at each ending."""
    measured = {event for cells in found.values() for _, event in cells}
    for column, heading, about in columns:
        shown = [ending for ending in endings if ending[0] in about] or ["-"]
        heads = [" or ".join(event for event in ending if event in measured - {"-"}) for ending in shown]
        lines = [[row, *(merged(cells, column, ending) for ending in shown)] for row, cells in found.items()]
        table([f"**{heading}**", *heads], lines)


def main() -> None:
    options = asked_for(__doc__, OURS, PEERS)
    events = "-VMCR" if may_hang_up() else "-MCR"
    found = measure(options.rows, events, Cell, COLUMNS)
    if options.json:
        named = {row: {" ".join(cell): told for cell, told in cells.items()} for row, cells in found.items()}
        print(json.dumps({row: [cells, verdicts(found[row])] for row, cells in named.items()}))
        return
    print_versions("anyio", "trio", "pyserial", "pyserial-asyncio", "pyserial-asyncio-fast", "serialx", "aioserial")
    if "V" not in events:
        print("Without V, as only root may use TIOCVHANGUP.\n")
    head = ["", "hangs", "spins", "success for lost data", "tells the three endings apart"]
    lines = [[row, *verdicts(cells)] for row, cells in found.items()]
    table(head, lines + [[row, "not installed", "", "", ""] for row in options.lacking])
    print_cells(found, COLUMNS, ENDINGS)


def merged(cells: Found, column: str, ending: str) -> str:
    """What the events of one ending gave: once, if they gave the same."""
    told = {event: cells[column, event] for event in ending if (column, event) in cells}
    one = len(set(told.values())) == 1
    return next(iter(told.values())) if one else "; ".join(f"{event}: {each}" for event, each in told.items())


def version(name: str) -> str:
    with contextlib.suppress(importlib.metadata.PackageNotFoundError):
        return f"{name} {importlib.metadata.version(name)}"
    return ""


if __name__ == "__main__":
    main()
