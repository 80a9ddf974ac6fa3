"""Programs of ours: the console server beside ser2net, `ls --who`, and how long importing takes."""

from __future__ import annotations

import asyncio
import base64
import contextlib
import gc
import json
import os
import pathlib
import select
import socket
import subprocess
import sys
import tempfile
import time
import tty
from collections.abc import Awaitable, Callable, Iterator, Sequence
from functools import partial
from typing import NamedTuple

import anyio
from contest import Contest, Line

from asyncrevoke import Registry, Revokable
from asyncrevoke.control import serve

# -- the console server --

ATTACH = {"v": 1, "do": "attach", "name": "port", "mode": "watch", "wait": True}
SER2NET = """connection: &port
  accepter: tcp,127.0.0.1,{number}
  connector: serialdev,{port},115200n81,local
  options: {{max-connections: 100, kickolduser: false}}
"""


class Client:
    """Counts the bytes of the device that come over a connection."""

    def __init__(self, connection: socket.socket) -> None:
        self.connection, self.got = connection, 0

    def read(self) -> None:
        self.got += len(self.receive())

    def receive(self) -> bytes:
        if data := self.connection.recv(1 << 18):
            return data
        raise EOFError("the server has closed the connection")


class Attached(Client):
    """A client of ours: they come in records."""

    _cut_off = b""

    def read(self) -> None:
        *lines, self._cut_off = (self._cut_off + self.receive()).split(b"\n")
        self.got += sum(len(base64.b64decode(json.loads(line).get("data", ""))) for line in lines)


class Server(NamedTuple):
    """How it is started, and how a client connects."""

    command: list[str]
    connect: Callable[[], Client]


def share(port: str, folder: str) -> Server:
    def connect() -> Client:
        connection = socket.socket(socket.AF_UNIX)
        connection.connect(f"{folder}/socket")
        connection.sendall(json.dumps(ATTACH).encode() + b"\n")
        return Attached(connection)

    options = ["--name", "port", "--socket", f"{folder}/socket", "--baudrate", "115200"]
    return Server([sys.executable, "-m", "asyncrevoke", "share", *options, port], connect)


def free_address() -> tuple[str, int]:
    with socket.create_server(("127.0.0.1", 0)) as free:
        return "127.0.0.1", int(free.getsockname()[1])


def share_by_tcp(port: str, folder: str) -> Server:
    address = free_address()
    options = ["--socket", f"{folder}/socket", "--baudrate", "115200", "--listen", f"tcp://127.0.0.1:{address[1]}"]
    command = [sys.executable, "-m", "asyncrevoke", "share", *options, port]
    return Server(command, lambda: Client(socket.create_connection(address)))


def ser2net(port: str, folder: str) -> Server:
    address = free_address()
    config = pathlib.Path(folder, "config.yaml")
    config.write_text(SER2NET.format(number=address[1], port=port))
    command = ["ser2net", "-n", "-c", str(config), "-P", f"{folder}/pid"]
    return Server(command, lambda: Client(socket.create_connection(address)))


class Clients:
    """All of them are read when something comes for one."""

    def __init__(self, clients: Sequence[Client]) -> None:
        self._poll = select.poll()
        self._clients = {client.connection.fileno(): client for client in clients}
        for fd in self._clients:
            self._poll.register(fd, select.POLLIN)

    def read(self, seconds: float) -> bool:
        ready = self._poll.poll(seconds * 1000)
        for fd, _ in ready:
            self._clients[fd].read()
        return bool(ready)

    def least(self) -> int:
        return min(client.got for client in self._clients.values())

    def forget(self) -> None:
        for client in self._clients.values():
            client.got = 0


def console(make: Callable[[str, str], Server], count: int, lines: int) -> float:
    """Microseconds of a server for each line of 64 bytes that it hands on to all its clients, at 1,000 a second."""
    master, slave = os.openpty()
    tty.setraw(slave)
    with tempfile.TemporaryDirectory() as folder, contextlib.ExitStack() as stack:
        for fd in master, slave:
            stack.callback(os.close, fd)
        server, null = make(os.ttyname(slave), folder), subprocess.DEVNULL
        process = stack.enter_context(subprocess.Popen(server.command, stdout=null, stderr=null))
        stack.callback(process.terminate)
        connected = [until_it_listens(process, server.connect) for _ in range(count)]
        for client in connected:
            stack.enter_context(client.connection)
        clients = Clients(connected)
        while not clients.least():  # until the port is open, and all are attached
            os.write(master, b".")
            clients.read(0.05)
        while clients.read(0.2):
            pass
        clients.forget()
        due, before = time.perf_counter(), cpu(process.pid)
        for _ in range(lines):
            os.write(master, bytes(64))
            due += 0.001
            while (left := due - time.perf_counter()) > 0:
                clients.read(left)
        while clients.least() < 64 * lines:
            if not clients.read(5.0):
                raise TimeoutError(f"{server.command[0]} has not handed on all")
        return (cpu(process.pid) - before) / lines * 1e6


def until_it_listens(process: subprocess.Popen[bytes], connect: Callable[[], Client]) -> Client:
    while process.poll() is None:
        with contextlib.suppress(ConnectionRefusedError, FileNotFoundError):
            return connect()
        time.sleep(0.05)
    raise RuntimeError(f"it has ended with {process.returncode}: {process.args!r}")


def cpu(process: int) -> float:
    """The seconds that its threads have run."""
    tasks = pathlib.Path(f"/proc/{process}/task").iterdir()
    return sum(int((task / "schedstat").read_text().split()[0]) for task in tasks) / 1e9


# -- who uses it --


async def longest_turn(work: Awaitable[object]) -> float:
    """Milliseconds that the loop runs at the most, while something goes on, before another task's turn comes."""
    worst, going = 0.0, asyncio.ensure_future(work)
    gc.collect()
    gc.freeze()  # what was made for this is not collected by those who tell of it
    while not going.done():
        began = time.thread_time()
        await asyncio.sleep(0)
        worst = max(worst, time.thread_time() - began)
    gc.unfreeze()
    await going
    return worst * 1e3


def told(operations: int, tell: Callable[[Registry, Revokable], Awaitable[object]]) -> float:
    """The longest turn while it is told who is inside of one handle."""

    async def run() -> float:
        registry = Registry()
        handle = registry.name("port").open("file")

        async def operate() -> None:
            with handle.using():
                await asyncio.get_running_loop().create_future()

        tasks = [asyncio.create_task(operate()) for _ in range(operations)]
        await asyncio.sleep(0)
        worst = await longest_turn(tell(registry, handle))
        for task in tasks:
            task.cancel()
        await asyncio.wait(tasks)
        return worst

    return asyncio.run(run())


async def by_users(_registry: Registry, handle: Revokable) -> None:
    handle.users()


async def by_ls(registry: Registry, _handle: Revokable) -> None:
    with tempfile.TemporaryDirectory() as folder:
        async with anyio.create_task_group() as tasks:
            await tasks.start(serve, registry, f"{folder}/socket")
            ls = ["-m", "asyncrevoke", "ls", "--who", "--socket", f"{folder}/socket"]
            client = await asyncio.create_subprocess_exec(sys.executable, *ls, stdout=asyncio.subprocess.DEVNULL)
            assert await client.wait() == 0
            tasks.cancel_scope.cancel()


# -- starting --


def started(*arguments: str) -> float:
    """Milliseconds that a Python uses from its start to its end."""
    no_output = [(os.POSIX_SPAWN_OPEN, 1, os.devnull, os.O_WRONLY, 0)]
    process = os.posix_spawn(sys.executable, [sys.executable, *arguments], os.environ, file_actions=no_output)
    _, status, usage = os.wait4(process, 0)
    assert status == 0
    return (usage.ru_utime + usage.ru_stime) * 1e3


def contests(scale: float) -> Iterator[Contest]:
    ways: dict[str, Callable[[], float]]
    for clients, goal in (1, 1.5), (10, 1.5), (100, 1.0):
        servers = {"share": share, "share by TCP": share_by_tcp, "ser2net": ser2net}
        ways = {name: partial(console, server, clients, int(1000 * scale)) for name, server in servers.items()}
        what = f"console server, 64-byte lines, clients: {clients}"
        goals = [Line(name, "ser2net", goal) for name in ("share", "share by TCP")]
        yield Contest(what, "us CPU", ways, goals, 7)
    operations = int(10_000 * scale)
    ways = {"users()": partial(told, operations, by_users), "ls --who": partial(told, operations, by_ls)}
    longest = [Line(name, "", 10, absolute=True) for name in ways]
    yield Contest("longest turn, 10,000 operations", "ms CPU", ways, longest, 7)
    programs = {
        "import asyncrevoke": ("-c", "import asyncrevoke"),  # which imports a name when it is first used
        "from asyncrevoke import Revokable": ("-c", "from asyncrevoke import Revokable"),
        "asyncrevoke --help": ("-m", "asyncrevoke", "--help"),
        "import asyncio, anyio": ("-c", "import asyncio, anyio"),
    }
    ways = {name: partial(started, *arguments) for name, arguments in programs.items()}
    *ours, floor = programs
    goals = [Line(name, floor, goal) for name, goal in zip(ours, (1.15, 1.15, 1.6), strict=True)]
    yield Contest("start", "ms CPU", ways, goals, 15)
