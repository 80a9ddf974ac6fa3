"""A live view of shares and their clients. You can choose one and take it away."""

import argparse
import contextlib
import errno
import os
import re
import signal
from collections.abc import AsyncIterator, Iterator
from dataclasses import dataclass

import anyio

from asyncrevoke.control.client import Control, Record, connect
from asyncrevoke.control.lines import ControlError
from asyncrevoke.lowlevel import printable

from .commands import ago, table
from .fault import told
from .overview import state
from .person import does
from .sockets import Servers, look
from .terminal import Terminal

_EVERY = 1.0  # seconds. Events are shown at once
_PAUSE = 0.1  # seconds between two views, at least
_KEY = re.compile(r"\x1b[\[O].|.", re.DOTALL)
_STEPS = {"\x1b[A": -1, "\x1bOA": -1, "\x1b[B": 1, "\x1bOB": 1}
_HEAD = ["NAME", "STATE", "KEYBOARD", "IN B/S", "OUT B/S", "SINCE", "DEVICE, FROM"]
_HELP = "up and down choose, k takes away, q quits"


def run(args: argparse.Namespace) -> int:
    """Show it until the user quits. Return the exit status."""
    if not (os.isatty(0) and os.isatty(1)):
        raise OSError(errno.ENOTTY, "top needs a terminal. For a file or a pipe, use `asyncrevoke ls`")
    anyio.run(_run, args.socket)
    return 0


async def _run(socket: str) -> None:
    async with await look(socket) as asked, await look(socket) as watched:
        if not asked.controls:
            raise ControlError("gone", f"nothing is shared. Looked in {asked}")
        with anyio.open_signal_receiver(signal.SIGTERM, signal.SIGINT, signal.SIGHUP) as ends, Terminal() as terminal:
            await terminal.write(b"\x1b[?1049h\x1b[?25l\x1b[?7l")
            view = _View(terminal, asked)
            async with anyio.create_task_group() as tasks:
                for control in watched.controls.values():
                    tasks.start_soon(view.watch, control)
                tasks.start_soon(view.show)
                tasks.start_soon(_end_by, ends, tasks.cancel_scope)
                await view.obey()
                tasks.cancel_scope.cancel()


async def _end_by(ends: AsyncIterator[signal.Signals], scope: anyio.CancelScope) -> None:
    async for _ in ends:
        scope.cancel()


@dataclass
class _Row:
    """A share or an attached client, with the path that revokes it."""

    socket: str
    path: str
    cells: list[str]

    @property
    def key(self) -> tuple[str, str]:
        """The key that finds the row again in a later view."""
        return self.socket, self.path


class _View:
    """The screen, and the keys."""

    def __init__(self, terminal: Terminal, servers: Servers) -> None:
        self._terminal = terminal
        self._servers = servers
        self._rows: list[_Row] = []
        self._chosen = 0
        self._asking: _Row | None = None
        self._typed = ""
        self._message = _HELP
        self._news = anyio.Event()
        self._drawing = anyio.Lock()
        self._counts: dict[tuple[str, str], list[float]] = {}  # time of the last look, and the bytes until then

    async def watch(self, control: Control) -> None:
        """Have the view drawn again whenever an event comes."""
        with contextlib.suppress(ControlError):
            async for _ in control.watch():
                self._news.set()

    async def show(self) -> None:
        """Ask the servers every second, and draw.

        :raises ControlError: if no server is left
        """
        while self._servers.controls:
            found = await self._servers.shares()
            before = [row.key for row in self._rows][self._chosen : self._chosen + 1]
            self._rows = [row for path, shares in found.items() for share in shares for row in self._of(path, share)]
            self._chosen = next((number for number, row in enumerate(self._rows) if [row.key] == before), 0)
            await self._draw()
            await anyio.sleep(_PAUSE)
            with anyio.move_on_after(_EVERY - _PAUSE):
                await self._news.wait()
            self._news = anyio.Event()
        raise ControlError("gone", f"all servers have gone: {', '.join(self._servers.unanswered)}")

    def _of(self, socket: str, share: Record) -> Iterator[_Row]:
        name, now = share["name"], anyio.current_time()
        counts = [now, share["typed"], share["read"]]
        seconds, *moved = (new - old for new, old in zip(counts, self._counts.get((socket, name), counts), strict=True))
        self._counts[socket, name] = counts
        rates = [f"{max(0, each) / seconds:.0f}" if seconds else "" for each in moved]
        keyboard = share["keyboard"] or ""
        yield _Row(socket, name, [name, state(share), keyboard, *rates, ago(share["since"]), share["device"]])
        for each in share["who"]:
            cells = [f"  {each['name']}", does(each), "", "", "", ago(each["since"]), each["from"]]
            yield _Row(socket, f"{name}/{each['name']}", cells)

    async def _draw(self) -> None:
        width, height = os.get_terminal_size(1)
        head, *lines = table([_HEAD, *(row.cells for row in self._rows)])
        if self._rows:
            lines[self._chosen] = f"\x1b[7m{lines[self._chosen]:{width}}\x1b[m"
        first = max(0, self._chosen - height + 3)
        last = self._message if self._asking is None else f"reason for taking {self._asking.path} away: {self._typed}"
        shown = [head, *lines[first : first + height - 2], "\x1b[J" + printable(last)[: width - 1]]
        async with self._drawing:
            await self._terminal.write(b"\x1b[H" + "\r\n".join(f"{line}\x1b[K" for line in shown).encode())

    async def obey(self) -> None:
        """Obey keys, until the user quits."""
        while typed := await self._terminal.read():
            for key in _KEY.findall(typed.decode(errors="replace")):
                if self._asking is not None:
                    await self._answer(self._asking, key)
                elif key in _STEPS:
                    self._chosen = max(0, min(self._chosen + _STEPS[key], len(self._rows) - 1))
                elif key == "k" and self._rows:
                    self._asking, self._typed = self._rows[self._chosen], ""
                elif key in "q\x03":
                    return
            await self._draw()

    async def _answer(self, row: _Row, key: str) -> None:
        """Take a key of the reason. After the last one, take the row away."""
        if key in "\r\n":
            self._asking, self._message = None, await _revoke(row, self._typed)
        elif key in "\x03\x1b":
            self._asking = None
        else:
            self._typed = self._typed[:-1] if key in "\x7f\b" else self._typed + key * key.isprintable()


async def _revoke(row: _Row, reason: str) -> str:
    try:
        async with await connect(row.socket) as control:
            answer = await control.revoke(row.path, reason)
    except (ControlError, OSError) as error:
        return told(error)
    return f"{row.path} was taken away" + ("" if answer["done"] else ", and is still in use")
