"""The terminal, file or pipe of a client: it is read and written without blocking, and is as it was before in the end."""

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

_PIECE = 4096  # bytes; a pipe that is ready takes so many
_HELD = 65536  # bytes of output that wait while a line is typed to us


class Terminal:
    """Standard input and output. A terminal is raw until the exit, which also undoes what the program did to the screen.

    :ivar line: what is typed to us, and not to the program, with the question; None: nothing is
    :ivar over: it has ended
    """

    def __init__(self) -> None:
        self.raw = os.isatty(0)
        self.line: str | None = None
        self.over = False
        self._asks = False  # that line is the last that is shown
        self._fresh = True  # the cursor begins a line
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
        with contextlib.suppress(OSError, termios.error):  # it has gone itself
            if self.raw:
                termios.tcsetattr(0, termios.TCSANOW, self._settings)
            if self._shows:
                if not select.select([], [self._out], [], 0)[1]:  # nobody reads there: our last words are not to wait
                    termios.tcflush(self._out, termios.TCOFLUSH)
                os.write(self._out, b"\n" * (self.raw and not self._fresh) + self._screen.undo())
        for fd in {self._out, self._err} - {1, 2}:
            os.close(fd)

    def size(self) -> Record:
        """The size of the window as it is sent; nothing where it is not known, as on a serial line."""
        rows, columns = (min(each, 999) for each in reversed(os.get_terminal_size(0)))
        return {"size": (rows, columns)} if rows and columns else {}

    async def read(self) -> bytes:
        """Read what was typed; nothing, at the end."""
        try:
            with contextlib.suppress(PermissionError):  # a file does not let one wait: it is ready
                await anyio.wait_readable(0)
            return os.read(0, _PIECE)
        except OSError:  # EIO: the terminal has gone
            return b""

    async def write(self, data: bytes) -> None:
        """Write what the program has sent; while a line is typed to us, later."""
        if self._shows:
            self._screen.feed(data)
        self._held += data
        if self.line is None or len(self._held) > _HELD:
            async with self._writing:
                await self._write_held()
            if self.line is not None:
                await self.draw()

    async def room(self) -> None:
        """Wait until a terminal takes more: what it has not shown when it is full is thrown away in the end."""
        if self._shows:
            await anyio.wait_writable(self._out)

    async def say(self, *lines: str) -> None:
        """Say something of our own, on standard error."""
        form = "[{}]\r\n" if self.raw else "asyncrevoke: {}\n"
        async with self._writing:
            await self._tell("".join(form.format(printable(line)) for line in lines))
        if self.line is not None:
            await self.draw()

    async def draw(self) -> None:
        """Show the line that is typed to us as it is now; if it has ended, what has come meanwhile, too."""
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
        """Write a text of our own, which begins a line, unless it is a line that is typed to us, as before."""
        if self.raw and not self._fresh and not (asks and self._asks):
            text = "\r\n" + text
        self._asks = asks
        self._fresh = not asks
        await _write(self._err, text.encode(sys.stderr.encoding, "backslashreplace"))


def _unblocked(fd: int) -> int:
    """The same, not to block if it is a terminal; that must not be forced on the others who use it."""
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
