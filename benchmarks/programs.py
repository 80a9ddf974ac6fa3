"""How libraries answer when the terminal of a program ends: ``python benchmarks/programs.py [--ours] [--only ROW]``

Each library runs a program on a terminal. The program has said that it is ready, and reads nothing. It ends in six ways:
D, the program is killed; V, the kernel hangs the terminal up (TIOCVHANGUP, which only root may), and the program dies of
the SIGHUP; I, the same, but the program ignores SIGHUP; L, the program closes its side and lives on, as daemons do; C,
another task or thread closes it; R, somebody else revokes it, which only we can. Calls that block are made in threads.
"""

from __future__ import annotations

import fcntl
import functools
import importlib
import json
import os
import pathlib
import signal
import sys
from collections.abc import Awaitable, Callable
from typing import Any

import anyio
import anyio.abc
import anyio.to_thread
from conformance import (
    NOTHING,
    PENDING,
    TIOCVHANGUP,
    Cell,
    Columns,
    Library,
    asked_for,
    children,
    may_hang_up,
    measure,
    now,
    opened,
    print_cells,
    print_versions,
    revoked,
)

from asyncrevoke.adapters.pty import PtySession, PtyStream, start_pty

WAITS = """
import os, signal, tty
tty.setraw(0)
signal.signal(signal.SIGINT, signal.SIG_DFL)
signal.signal(signal.SIGUSR1, lambda *_: os.closerange(0, 3))
signal.alarm(60)
print(end="ready", flush=True)
while True:
    signal.pause()
"""
IGNORES = "import signal; signal.signal(signal.SIGHUP, signal.SIG_IGN)" + WAITS
READY = "ready"


# -- the libraries, each with a program that is ready --


def in_thread(call: Callable[..., object], *args: object) -> Awaitable[object]:
    return anyio.to_thread.run_sync(functools.partial(call, *args), abandon_on_cancel=True)


async def start_ptyprocess(program: str) -> Any:
    child = importlib.import_module("ptyprocess").PtyProcess.spawn([sys.executable, "-c", program])
    await in_thread(child.read, len(READY))
    return child


async def start_pexpect(program: str, **how: bool) -> Any:
    child = importlib.import_module("pexpect").spawn(sys.executable, ["-c", program])
    await expect(child, READY, **how)
    return child


async def expect(child: Any, pattern: str, *, async_: bool = False) -> object:
    expecting = functools.partial(child.expect, pattern, timeout=None, async_=async_)
    return await (expecting() if async_ else in_thread(expecting))


class Terminado:
    """A server in this process, and the websocket of a page that shows its terminal."""

    page: Any

    async def start(self, program: str) -> Terminado:
        terminado, web, websocket = map(importlib.import_module, ("terminado", "tornado.web", "tornado.websocket"))
        (sock,) = importlib.import_module("tornado.netutil").bind_sockets(0, "127.0.0.1")
        self.manager = terminado.NamedTermManager(shell_command=[sys.executable, "-c", program])
        pages = r"/(\w+)", terminado.TermSocket, {"term_manager": self.manager}
        importlib.import_module("tornado.httpserver").HTTPServer(web.Application([pages])).add_socket(sock)
        self.page = await websocket.websocket_connect(f"ws://127.0.0.1:{sock.getsockname()[1]}/terminal")
        while READY not in str(await self.read()):
            pass
        return self

    async def read(self) -> object:
        return await self.page.read_message()

    async def write(self, data: bytes) -> object:
        return await self.page.write_message(json.dumps(["stdin", data.decode()]))

    async def close(self) -> object:
        return await self.manager.terminate("terminal", force=True)


async def start_ours(program: str) -> tuple[PtySession, PtyStream]:
    session = await start_pty([sys.executable, "-c", program], name="program", kill_after=0.5)
    stream = session.open()
    await stream.receive()
    return session, stream


async def close_ours(port: tuple[PtySession, PtyStream]) -> None:
    session, stream = port
    await stream.aclose()
    await session.aclose()


PEERS = {
    "ptyprocess": Library(
        "ptyprocess",
        start_ptyprocess,
        lambda child: in_thread(child.read),
        lambda child, data: in_thread(child.write, data),
        lambda child: in_thread(child.close),
    ),
    "pexpect": Library(
        "pexpect",
        start_pexpect,
        lambda child: expect(child, "never"),
        lambda child, data: in_thread(child.send, data),
        lambda child: in_thread(child.close),
    ),
    "pexpect, async_": Library(
        "pexpect",
        lambda program: start_pexpect(program, async_=True),
        lambda child: expect(child, "never", async_=True),
        lambda child, data: now(lambda: child.send(data)),
        lambda child: now(child.close),
    ),
    "terminado": Library(
        "terminado",
        lambda program: Terminado().start(program),
        lambda server: server.read(),
        lambda server, data: server.write(data),
        lambda server: server.close(),
    ),
}
OURS = {
    "start_pty": Library(
        "asyncrevoke",
        start_ours,
        lambda port: port[1].receive(),
        lambda port, data: port[1].send(data),
        close_ours,
        lambda port: revoked(port[0]),
    )
}


# -- one cell, in its process --


class Program(Cell):
    """A program of a library, what befalls its terminal, and what is left of it."""

    def __init__(self, library: Library, event: str, tasks: anyio.abc.TaskGroup) -> None:
        self.event = event
        self._library = library
        self._tasks = tasks
        self._masters = masters()
        self.path = IGNORES if event in "IL" else WAITS

    async def open(self) -> None:
        await super().open()
        self._pid = children(os.getpid())[-1]

    def _end(self) -> None:
        if self.event in "DL":
            os.kill(self._pid, signal.SIGKILL if self.event == "D" else signal.SIGUSR1)
        elif self.event in "VI":
            fd = opened(str(pathlib.Path(f"/proc/{self._pid}/fd/0").readlink()))
            fcntl.ioctl(fd, TIOCVHANGUP)
            os.close(fd)
        else:
            super()._end()

    async def left(self) -> str:
        """Let a read be told of the end, close it, and see what is left before and after."""
        outcome = self._start(self._read)
        await anyio.sleep(PENDING)
        await self._happen()
        await outcome()
        before = self._left()
        closed = await (self._closing if self.event == "C" else self._start(self._close))()
        after = self._left() + ("" if closed == NOTHING else f", close: {closed}")
        return after if self.event == "C" else f"{before}; closed: {after}"

    def _left(self) -> str:
        """What this process still has of it: the terminal's descriptor, and the program."""
        descriptor = ["descriptor"] if masters() > self._masters else []
        try:
            state = pathlib.Path(f"/proc/{self._pid}/stat").read_text().rpartition(")")[2].split()[0]
        except FileNotFoundError:
            return "".join(descriptor) or "nothing"
        return ", ".join([*descriptor, "zombie" if state == "Z" else "program"])

    async def reopen(self) -> str:
        """Close it while it is read, and start another one, which gets the same numbers."""
        self._start(self._read)
        await anyio.sleep(PENDING)
        await self._start(self._close)()
        return await self._start(self.open)()


def masters() -> int:
    """The number of terminals that this process has open for programs."""
    open_files = pathlib.Path("/proc/self/fd").iterdir()
    return sum(each.is_symlink() and each.readlink().name == "ptmx" for each in open_files)


# -- all of them --

COLUMNS: Columns = [
    ("read", "read pending", "DVILCR"),
    ("write", "write of 1 MiB pending", "DVILCR"),
    ("later", "later read / write", "DVILCR"),
    ("left", "left when the read is over; closed", "DVILCR"),
    ("reopen", "closed under a read; the next one is started", "-"),
]
ENDINGS = "DV", "L", "I", "C", "R"


def main() -> None:
    options = asked_for(__doc__, OURS, PEERS)
    found = measure(options.rows, "-DVILCR" if may_hang_up() else "-DLCR", Program, COLUMNS)
    if options.json:
        print(json.dumps({row: {" ".join(cell): told for cell, told in cells.items()} for row, cells in found.items()}))
        return
    print_versions("ptyprocess", "pexpect", "terminado", "tornado", "anyio")
    print_cells(found, COLUMNS, ENDINGS)
    for row in options.lacking:
        print(f"{row} is not installed.")


if __name__ == "__main__":
    main()
