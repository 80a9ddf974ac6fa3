"""A port is read, written and shared: bytes come from the far end of a pty, which is a process of its own."""

from __future__ import annotations

import asyncio
import contextlib
import gc
import importlib
import os
import pathlib
import signal
import socket
import time
import tracemalloc
import tty
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from functools import partial
from typing import Any

from by_hand import ByHand, Copy
from contest import Contest, Line

from asyncrevoke import FdStream, open_serial, start_pty

PIECE = 4096  # a pty gives no more at once
BAUDRATE = 115200
DROP_IN, PYSERIAL, FAST = "asyncrevoke.compat.serial_asyncio", "serial_asyncio", "serial_asyncio_fast"

#: Opens a port by its path; what that gives is what the traffic goes through.
Open = Callable[[str], contextlib.AbstractAsyncContextManager[Any]]


# -- ways of opening --


@contextlib.asynccontextmanager
async def by_fd(path: str) -> AsyncIterator[FdStream]:
    async with FdStream(os.open(path, os.O_RDWR | os.O_NOCTTY)) as stream:
        yield stream


@contextlib.asynccontextmanager
async def by_open_serial(path: str, **options: Any) -> AsyncIterator[Any]:
    async with await open_serial(path, BAUDRATE, **options) as device:
        yield device.open("a")


class Pair:
    """A reader and a writer as one stream."""

    def __init__(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.receive, self.receive_exactly, self._writer = reader.read, reader.readexactly, writer

    async def send(self, data: bytes) -> None:
        self._writer.write(data)
        await self._writer.drain()


@contextlib.asynccontextmanager
async def by_pair(module: str, path: str) -> AsyncIterator[Pair]:
    """Open it by a module's `open_serial_connection`."""
    reader, writer = await importlib.import_module(module).open_serial_connection(url=path, baudrate=BAUDRATE)
    yield Pair(reader, writer)
    writer.transport.abort()
    await asyncio.sleep(0.01)


class Sink(asyncio.Protocol):
    def __init__(self) -> None:
        self.got, self.want = 0, 0
        self.done = asyncio.get_running_loop().create_future()

    def data_received(self, data: bytes) -> None:
        self.got += len(data)
        if self.got >= self.want:
            self.done.set_result(None)


@contextlib.asynccontextmanager
async def by_protocol(module: str, path: str) -> AsyncIterator[Sink]:
    connect = importlib.import_module(module).create_serial_connection
    transport, sink = await connect(asyncio.get_running_loop(), Sink, path, baudrate=BAUDRATE)
    yield sink
    transport.abort()
    await asyncio.sleep(0.01)


@contextlib.asynccontextmanager
async def by_number(path: str) -> AsyncIterator[int]:
    fd = os.open(path, os.O_RDWR | os.O_NOCTTY)
    yield fd
    os.close(fd)


@contextlib.asynccontextmanager
async def by_pty(total: int, _path: str) -> AsyncIterator[Any]:
    """A session of its own, whose program is the far end."""
    async with await start_pty(["head", "-c", str(total), "/dev/zero"]) as session:
        yield session.open("a")


@contextlib.asynccontextmanager
async def to_all(readers: int, total: int, path: str) -> AsyncIterator[list[Any]]:
    async with await open_serial(path, BAUDRATE, fan_out=True, backlog=total) as device:
        yield [device.open(str(number)) for number in range(readers)]


@contextlib.asynccontextmanager
async def to_all_by_hand(readers: int, path: str) -> AsyncIterator[list[Copy]]:
    copies = [Copy() for _ in range(readers)]
    async with ByHand(os.open(path, os.O_RDWR | os.O_NOCTTY)) as port:

        async def pump() -> None:
            while True:
                data = await port.receive()
                for copy in copies:
                    copy.feed(data)

        task = asyncio.create_task(pump())
        yield copies
        task.cancel()


# -- traffic --


class Receive:
    """`count` pieces of `size` come at once, and are taken as they come."""

    def __init__(self, count: int, size: int) -> None:
        self.count, self.size, self.total = count, size, count * size

    def far(self, fd: int, _control: socket.socket) -> None:
        left = self.total
        while left > 0:
            left -= os.write(fd, bytes(min(left, 65536)))

    async def near(self, port: Any, _control: socket.socket) -> None:
        left = self.total
        while left > 0:
            left -= len(await port.receive(PIECE))


class ReceiveBlocking(Receive):
    async def near(self, fd: Any, _control: socket.socket) -> None:
        left = self.total
        while left > 0:
            left -= len(os.read(fd, PIECE))


class ReceiveByProtocol(Receive):
    async def near(self, sink: Any, _control: socket.socket) -> None:
        sink.want = self.total
        await sink.done


class ReceiveByAll(Receive):
    async def near(self, ports: Any, control: socket.socket) -> None:
        await asyncio.gather(*(super(ReceiveByAll, self).near(port, control) for port in ports))


class Records(Receive):
    async def near(self, port: Any, _control: socket.socket) -> None:
        for _ in range(self.count):
            await port.receive_exactly(self.size)


class Echo(Receive):
    """Each piece is sent, and comes back, before the next."""

    def far(self, fd: int, _control: socket.socket) -> None:
        left = self.total
        while left > 0:
            left -= os.write(fd, os.read(fd, 65536))

    async def near(self, port: Any, _control: socket.socket) -> None:
        piece = bytes(self.size)
        for _ in range(self.count):
            await port.send(piece)
            left = self.size
            while left > 0:
                left -= len(await port.receive(PIECE))


class Send(Receive):
    """It is over when the far end has it all."""

    def far(self, fd: int, control: socket.socket) -> None:
        left = self.total
        while left > 0:
            left -= len(os.read(fd, 65536))
        control.send(b".")

    async def near(self, port: Any, control: socket.socket) -> None:
        piece = bytes(self.size)
        for _ in range(self.count):
            await port.send(piece)
        control.setblocking(False)
        await asyncio.get_running_loop().sock_recv(control, 1)


@contextlib.contextmanager
def far_end(traffic: Receive) -> Iterator[tuple[str, socket.socket]]:
    """The path of a port, and a socket to its far end, which begins when it is sent a byte."""
    master, slave = os.openpty()
    tty.setraw(slave)
    ours, theirs = socket.socketpair()
    process = os.fork()
    if not process:
        try:
            ours.close()
            if theirs.recv(1):
                traffic.far(master, theirs)
                theirs.recv(1)
        finally:
            os._exit(0)
    theirs.close()
    try:
        yield os.ttyname(slave), ours
    finally:
        os.kill(process, signal.SIGKILL)
        os.waitpid(process, 0)
        ours.close()
        os.close(master)
        os.close(slave)


def cpu(traffic: Receive, open_port: Open, share: int = 1) -> float:
    """Microseconds of this process for each piece, and of them for each who shares it."""

    async def run() -> float:
        async with asyncio.timeout(60), open_port(path) as port:
            control.send(b".")
            began = time.process_time()
            await traffic.near(port, control)
            return time.process_time() - began

    with far_end(traffic) as (path, control):
        return asyncio.run(run()) / traffic.count / share * 1e6


# -- what an open port holds --


def descriptors() -> int:
    return len(list(pathlib.Path("/proc/self/fd").iterdir()))


async def open_device(path: str) -> tuple[Any, Any]:
    opened = await open_serial(path, BAUDRATE)
    return opened, opened.open("a")


async def open_connection(module: str, path: str) -> tuple[Any, Any]:
    connect, loop = importlib.import_module(module).create_serial_connection, asyncio.get_running_loop()
    opened: tuple[Any, Any] = await connect(loop, asyncio.Protocol, path, baudrate=BAUDRATE)
    return opened


def held(what: str, open_port: Callable[[str], Awaitable[tuple[Any, Any]]], count: int) -> float:
    """Bytes or descriptors of each of `count` open ports."""

    async def run() -> float:
        opened = [await open_port(paths[0])]  # what the first loads is not its own
        gc.collect()
        before = descriptors()
        tracemalloc.start()  # so it counts from 0
        for path in paths[1:]:
            opened.append(await open_port(path))  # noqa: PERF401  # the list would be made twice
        gc.collect()
        size, _ = tracemalloc.get_traced_memory()
        tracemalloc.stop()
        found = (size if what == "bytes" else descriptors() - before) / count
        for port, _ in opened:
            port.abort() if isinstance(port, asyncio.Transport) else await port.aclose()
        await asyncio.sleep(0.05)
        return found

    pairs = [os.openpty() for _ in range(count + 1)]
    paths = [os.ttyname(slave) for _, slave in pairs]
    try:
        return asyncio.run(run())
    finally:
        for fd in (fd for pair in pairs for fd in pair):
            os.close(fd)


# -- contests --


def contests(scale: float) -> Iterator[Contest]:
    pairs = {"drop-in": DROP_IN, "pyserial-asyncio": PYSERIAL, "pyserial-asyncio-fast": FAST, "serialx": "serialx"}

    def size(full: int) -> int:
        return max(2, int(full * scale))

    def by_all(traffic: Receive, way: Callable[[str, str], Any]) -> dict[str, Callable[[], float]]:
        return {name: partial(cpu, traffic, partial(way, module)) for name, module in pairs.items()}

    def against(goals: dict[str, float]) -> list[Line]:
        return [Line("drop-in", other, goals.get(other)) for other in pairs if other != "drop-in"]

    traffic: Receive = ReceiveByProtocol(size(512), PIECE)
    lines = against({"pyserial-asyncio": 0.35, "serialx": 0.7})
    yield Contest("protocol, RX of 4 KiB", "us CPU", by_all(traffic, by_protocol), lines)
    for what, goal, traffic in (
        ("echo of 16 B", 0.8, Echo(size(400), 16)),
        ("echo of 1 KiB", 0.8, Echo(size(400), 1024)),
        ("TX of 4 KiB", 1.0, Send(size(256), PIECE)),
    ):
        lines = against({"pyserial-asyncio": goal})
        if isinstance(traffic, Send):  # from -fast most of the time then goes into tracebacks of its own assertions
            lines = [line for line in lines if line.other != "pyserial-asyncio-fast"]
        yield Contest(what, "us CPU", by_all(traffic, by_pair), lines)

    traffic = Receive(size(512), PIECE)
    ways = by_all(traffic, by_pair) | {
        "open_serial": partial(cpu, traffic, by_open_serial),
        "blocking read": partial(cpu, ReceiveBlocking(traffic.count, PIECE), by_number),
    }
    lines = [Line("open_serial", "pyserial-asyncio", 0.28), Line("open_serial", "blocking read", 1.3)]
    yield Contest("RX of 4 KiB", "us CPU", ways, lines)

    traffic = Records(size(32768), 16)
    ours: dict[str, Open] = {
        "FdStream": by_fd,
        "open_serial": by_open_serial,
        "fan-out": partial(by_open_serial, fan_out=True),
        "pty": partial(by_pty, traffic.total),
    }
    ways = by_all(traffic, by_pair) | {name: partial(cpu, traffic, way) for name, way in ours.items()}
    lines = [*(Line(name, "pyserial-asyncio", 0.4) for name in ours), Line("drop-in", "pyserial-asyncio")]
    yield Contest("records of 16 B", "us CPU", ways, lines)

    for readers, count in (1, size(256)), (10, size(256)), (100, size(64)):
        traffic = ReceiveByAll(count, PIECE)
        ways = {
            "fan-out": partial(cpu, traffic, partial(to_all, readers, traffic.total), readers),
            "by hand": partial(cpu, traffic, partial(to_all_by_hand, readers), readers),
        }
        what = f"delivery of 4 KiB, readers: {readers}"
        yield Contest(what, "us CPU", ways, [Line("fan-out", "by hand", 1.5)])

    count = size(100)
    opened = {"open_serial": open_device} | {
        name: partial(open_connection, pairs[name]) for name in ("drop-in", "serialx")
    }
    for what, goal in ("bytes", 4500.0), ("descriptors", 2.0):
        ways = {name: partial(held, what, way, count) for name, way in opened.items()}
        lines = [Line("open_serial", "serialx", goal, absolute=True), Line("drop-in", "serialx", absolute=True)]
        yield Contest(f"{what} of an open port", what, ways, lines, 3, descriptors=8 * count + 100, ptys=count + 1)
