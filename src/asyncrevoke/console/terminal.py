"""The terminal, file or pipe of a client. It is read and written without blocking, and restored at the end."""

import contextlib
import os
import select
import sys
from typing import Self

import anyio

from asyncrevoke.control.client import Record
from asyncrevoke.linux import termios, tty
from asyncrevoke.lowlevel import os_errors, printable

from .screen import Screen

_PIECE = 4096  # bytes that a ready pipe takes
_HELD = 65536  # bytes of output that wait while a line is typed into the menu


class Terminal:
    """Standard input and output. A terminal is raw until the exit. The exit also undoes what the program did to the screen.

    :ivar line: the line that is typed into the menu, with its question. None: no line is typed
    :ivar over: whether that line has ended
    """

    def __init__(self) -> None:
        self.raw = os.isatty(0)
        self.line: str | None = None
        self.over = False
        self._asks = False  # that line is the last one shown
        self._fresh = True  # the cursor is at the start of a line
        self._held = b""
        self._shows = os.isatty(1)
        self._screen = Screen()
        self._out, self._err = 1, 2
        self._writing = anyio.Lock(fast_acquire=True)

    def __enter__(self) -> Self:
        self._out, self._err = _unblocked(1), _unblocked(2)
        if self.raw:
            with os_errors("standard input"):
                self._settings = termios.tcgetattr(0)
                tty.setraw(0, termios.TCSANOW)
        return self

    def __exit__(self, *_: object) -> None:
        with contextlib.suppress(OSError, termios.error):  # the terminal has gone
            if self.raw:
                termios.tcsetattr(0, termios.TCSANOW, self._settings)
            if self._shows:
                if not select.select([], [self._out], [], 0)[1]:  # nobody reads there, so our last words do not wait
                    termios.tcflush(self._out, termios.TCOFLUSH)
                os.write(self._out, b"\n" * (self.raw and not self._fresh) + self._screen.undo())
        for fd in {self._out, self._err} - {1, 2}:
            os.close(fd)

    def size(self) -> Record:
        """Return the size of the window as it is sent. It is empty if the size is unknown, as on a serial line."""
        rows, columns = (min(each, 999) for each in reversed(os.get_terminal_size(0)))
        return {"size": (rows, columns)} if rows and columns else {}

    async def read(self) -> bytes:
        """Read what was typed. The result is empty at the end."""
        try:
            with contextlib.suppress(PermissionError):  # a file cannot be waited for: it is ready
                await anyio.wait_readable(0)
            return os.read(0, _PIECE)
        except OSError:  # EIO: the terminal has gone
            return b""

    async def write(self, data: bytes) -> None:
        """Write what the program sent. While a line is typed into the menu, this is put off."""
        if self._shows:
            self._screen.feed(data)
        self._held += data
        if self.line is None or len(self._held) > _HELD:
            async with self._writing:
                await self._write_held()
            if self.line is not None:
                await self.draw()

    async def room(self) -> None:
        """Wait until a terminal takes more. Output that a full terminal has not shown is thrown away at the end."""
        if self._shows:
            await anyio.wait_writable(self._out)

    async def say(self, *lines: str) -> None:
        """Say a message on standard error."""
        form = "[{}]\r\n" if self.raw else "asyncrevoke: {}\n"
        async with self._writing:
            await self._tell("".join(form.format(printable(line)) for line in lines))
        if self.line is not None:
            await self.draw()

    async def draw(self) -> None:
        """Show the line that is typed into the menu. If it has ended, also show the output that came meanwhile."""
        async with self._writing:
            if self.line is not None:
                room = os.get_terminal_size(0).columns or 80
                await self._tell("\r\x1b[K" + printable(self.line)[1 - room :], asks=True)
                if self.over:
                    self.line = None
                    await self._write_held()

    async def _write_held(self) -> None:
        if self._asks:
            await self._tell("")
        while self._held:
            held, self._held = self._held, b""
            self._fresh = held.endswith(b"\n")
            await _write(self._out, held)

    async def _tell(self, text: str, *, asks: bool = False) -> None:
        """Write a text of our own. It starts a line, unless it goes on with the line that is typed into the menu."""
        if self.raw and not self._fresh and not (asks and self._asks):
            text = "\r\n" + text
        self._asks = asks
        self._fresh = not asks
        await _write(self._err, text.encode(sys.stderr.encoding, "backslashreplace"))


def _unblocked(fd: int) -> int:
    """Return a descriptor that does not block, if this is a terminal. Other users of the terminal keep theirs."""
    if os.isatty(fd):
        with contextlib.suppress(OSError):
            return os.open(f"/proc/self/fd/{fd}", os.O_WRONLY | os.O_NONBLOCK | os.O_NOCTTY | os.O_CLOEXEC)
    return fd


async def _write(fd: int, data: bytes) -> None:
    unwritten = memoryview(data)
    while unwritten:
        with contextlib.suppress(PermissionError):
            await anyio.wait_writable(fd)
        with contextlib.suppress(BlockingIOError):
            unwritten = unwritten[os.write(fd, unwritten[:_PIECE]) :]
