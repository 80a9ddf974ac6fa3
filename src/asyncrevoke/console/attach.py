"""The client's own terminal, attached to a share: raw, with an escape key, and as it was before when that ends."""

import base64
import contextlib
import errno
import os
import re
import select
import signal
import sys
import termios
import tty
from collections.abc import AsyncIterator
from typing import Literal, Self

import anyio
from anyio.streams.memory import MemoryObjectReceiveStream

from asyncrevoke.control.client import Control, Record
from asyncrevoke.control.lines import VERSION, ControlError
from asyncrevoke.lowlevel import os_errors, printable

from .escape import ESCAPE, HELP, HINT

QUIET = 1.0  # seconds without output after which who has nothing more to send detaches
_LONGEST = 10.0  # seconds after which he does so in any case
_PATIENCE = 2.0  # seconds for the server to let go
_PIECE = 4096  # bytes; a pipe that is ready takes so many
_DEC_MODES = re.compile(rb"\x1b\[\?([0-9;]+)([hl])")  # the alternate screen, mouse reports, a hidden cursor...
_ON_BEFORE = {b"7", b"25"}  # lines wrap, the cursor is seen


async def attach(
    control: Control, name: str, *, mode: Literal["write", "watch", "force"] = "write", wait: bool = False
) -> str:
    """Attach standard input and output to a share. Needs the main thread, for signals.

    Where standard input is no terminal, it is sent when the keyboard comes, and its end, followed by a second without
    output, or by ten of them, detaches. With "watch" it is not read.

    :param mode, wait: as in docs/control-protocol.md
    :returns: how it ended: "detached", or as the share did
    :raises ControlError: why, if it was taken away, or the server has gone
    :raises InterruptedError: by which signal it was ended
    :raises OSError: if standard output takes no more
    """
    with (
        anyio.open_signal_receiver(signal.SIGTERM, signal.SIGINT, signal.SIGHUP) as ends,
        anyio.open_signal_receiver(signal.SIGWINCH) as resized,
        _Terminal() as terminal,
    ):
        attachment = _Attachment(control, terminal, watches=mode == "watch")
        size = terminal.size() if terminal.raw else {}
        request = {"v": VERSION, "do": "attach", "name": name, "mode": mode, "wait": wait, **size}
        return await attachment.run(request, ends, resized)


class _Terminal:
    """Standard input and output. A terminal is raw until the exit, which also undoes what the program did to the screen."""

    def __init__(self) -> None:
        self.raw = os.isatty(0)
        self._out, self._err = 1, 2
        self._saying = anyio.Lock()
        self._modes: dict[bytes, bytes] = {}
        self._tail = b""

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
            if os.isatty(1):
                if not select.select([], [self._out], [], 0)[1]:  # nobody reads there: our last words are not to wait
                    termios.tcflush(self._out, termios.TCOFLUSH)
                os.write(self._out, b"\n" * self.raw + self._undo())
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
        """Write what the program has sent."""
        seen = self._tail + data
        for modes, switch in _DEC_MODES.findall(seen):
            self._modes.update(dict.fromkeys(modes.split(b";"), switch))
        self._tail = seen[-64:]
        await _write(self._out, data)

    async def say(self, text: str) -> None:
        """Say something of our own, on standard error."""
        text = printable(text)
        text = f"\r\n[{text}]\r\n" if self.raw else f"asyncrevoke: {text}\n"
        async with self._saying:
            await _write(self._err, text.encode(sys.stderr.encoding, "backslashreplace"))

    def _undo(self) -> bytes:
        undo = b""
        for mode, switch in self._modes.items():
            before = b"h" if mode in _ON_BEFORE else b"l"
            if switch != before:
                undo += b"\x1b[?%b%b" % (mode, before)
        return undo + b"\x1b[m" * bool(self._modes)


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


class _Attachment:
    def __init__(self, control: Control, terminal: _Terminal, *, watches: bool) -> None:
        self._control = control
        self._terminal = terminal
        self._watches = watches
        self._escaped = False
        self._yours = False
        self._here = True
        self._may_type = anyio.Event()
        self._heard = 0.0
        self._unsent, self._to_send = anyio.create_memory_object_stream[Record](1000)  # the escape key works meanwhile
        self._tasks = anyio.create_task_group()
        self._outcome: str | Exception | None = None

    async def run(
        self, request: Record, ends: AsyncIterator[signal.Signals], resized: AsyncIterator[signal.Signals]
    ) -> str:
        with self._unsent, self._to_send:
            await self._control.send(request)
            async with self._tasks as tasks:
                tasks.start_soon(self._end_by, ends)
                tasks.start_soon(self._follow, resized)
                tasks.start_soon(self._send, self._to_send)
                tasks.start_soon(self._hear)
                if self._terminal.raw:
                    tasks.start_soon(self._keys)
                elif not self._watches:
                    tasks.start_soon(self._pipe)
        assert self._outcome is not None
        if isinstance(self._outcome, Exception):
            raise self._outcome
        return self._outcome

    def _end(self, outcome: str | Exception) -> None:
        self._outcome = self._outcome or outcome
        self._tasks.cancel_scope.cancel()

    async def _end_by(self, ends: AsyncIterator[signal.Signals]) -> None:
        async for signum in ends:
            self._end(InterruptedError(errno.EINTR, f"ended by {signum.name}"))

    async def _follow(self, resized: AsyncIterator[signal.Signals]) -> None:
        async for _ in resized:
            if self._terminal.raw and (size := self._terminal.size()):
                await self._unsent.send(size)

    async def _send(self, to_send: MemoryObjectReceiveStream[Record]) -> None:
        with contextlib.suppress(ControlError, anyio.BusyResourceError):  # gone: `_hear` is told
            async for record in to_send:
                await self._control.send(record)

    # -- from the share --

    async def _hear(self) -> None:
        try:
            while "ok" not in (record := await self._control.receive()):
                await self._take(record)
            self._end(printable(str(record.get("ended"))))
        except (ControlError, OSError) as error:
            self._end(error)
        except (ValueError, TypeError) as error:
            self._end(ControlError("garbage", f"the server sent what makes no sense: {error}"))

    async def _take(self, record: Record) -> None:
        self._heard = anyio.current_time()
        match record:
            case {"data": data}:
                await self._terminal.write(base64.b64decode(data))
            case {"attached": path}:
                await self._terminal.say(f"attached as {path}" + f"; {HINT}" * self._terminal.raw)
            case {"keyboard": holder, "yours": yours}:
                await self._hand(holder, bool(yours), str(record.get("reason", "")))
            case {"away": why}:
                self._may_type_if(here=False)
                await self._terminal.say(f"away: {why}")
            case {"back": _}:
                self._may_type_if(here=True)
                await self._terminal.say("back again")

    async def _hand(self, holder: str | None, yours: bool, why: str) -> None:
        self._may_type_if(yours=yours)
        if yours:
            await self._terminal.say("you have the keyboard")
            return
        has = f"{holder} has the keyboard" if holder else "nobody has the keyboard"
        has += f" ({why})" if why else ""
        what = "" if self._watches else ": what you type is thrown away" if self._terminal.raw else ": waiting for it"
        await self._terminal.say(has + what)

    def _may_type_if(self, *, yours: bool | None = None, here: bool | None = None) -> None:
        self._yours = self._yours if yours is None else yours
        self._here = self._here if here is None else here
        if self._yours and self._here:
            self._may_type.set()
        elif self._may_type.is_set():
            self._may_type = anyio.Event()

    # -- to the share --

    async def _keys(self) -> None:
        while data := await self._terminal.read():
            typed = bytearray()
            for key in data:
                if self._escaped:
                    self._escaped = False
                    if key in b"q.":
                        await self._type(bytes(typed))
                        await self._detach()
                        return
                    if key == ord("c"):
                        typed.clear()
                        await self._interrupt()
                        continue
                    if key != ESCAPE:
                        self._tasks.start_soon(self._terminal.say, HELP)  # ctrl-] q works meanwhile
                        continue
                elif key == ESCAPE:
                    self._escaped = True
                    continue
                elif key == 3 and self._watches:  # ctrl-C has no other meaning here
                    await self._detach()
                    return
                typed.append(key)
            await self._type(bytes(typed))
        await self._detach()

    async def _pipe(self) -> None:
        while True:
            await self._may_type.wait()
            if not (data := await self._terminal.read()):
                break
            await self._may_type.wait()
            await self._type(data)
        self._heard = anyio.current_time()
        with anyio.move_on_after(_LONGEST):
            while (until := self._heard + QUIET) > anyio.current_time():  # noqa: ASYNC110  # more may come meanwhile
                await anyio.sleep_until(until)
        await self._detach()

    async def _type(self, data: bytes) -> None:
        if data:  # what is typed without the keyboard, the server throws away
            await self._unsent.send({"data": base64.b64encode(data).decode()})

    async def _interrupt(self) -> None:
        """Have ctrl-C typed before all that was typed so far, which is thrown away."""
        with contextlib.suppress(anyio.WouldBlock):
            while True:
                self._to_send.receive_nowait()
        await self._unsent.send({"interrupt": True})

    async def _detach(self) -> None:
        """What was typed comes first; a server that does not answer is left alone."""
        with anyio.move_on_after(_PATIENCE):
            await self._unsent.send({"detach": True})
            await anyio.sleep_forever()
        self._end("detached")
