"""Attaches the user's terminal to a share. The terminal is raw, has an escape key, and is restored at the end."""

import base64
import contextlib
import errno
import math
import os
import signal
from collections.abc import AsyncIterator
from typing import Literal

import anyio
from anyio.streams.memory import MemoryObjectReceiveStream

from asyncrevoke.control.client import Control, Record
from asyncrevoke.control.lines import VERSION, ControlError
from asyncrevoke.lowlevel import printable

from .escape import HINT
from .menu import Menu, present
from .terminal import Terminal

QUIET = 1.0  # seconds without output, after which a client with nothing more to send detaches
_LONGEST = 10.0  # seconds after which it detaches in any case
_PATIENCE = 2.0  # seconds for the server to answer, and for the terminal to take the last output
_PAUSE = 0.4  # seconds after the escape key until the menu shows itself


async def attach(
    control: Control, name: str, *, mode: Literal["write", "watch", "force"] = "write", wait: bool = False
) -> str:
    """Attach standard input and output to a share. Needs the main thread, for signals.

    If standard input is not a terminal, it is sent when the keyboard comes. Earlier output is not shown then. After its end
    this waits for a second without output, ten seconds at most, and detaches. With "watch" it is not read.

    :param mode, wait: as in docs/control-protocol.md
    :returns: "detached", or how the share ended
    :raises ControlError: if it was taken away, or the server has gone. The message says why
    :raises InterruptedError: if a signal ended it
    :raises OSError: if standard output takes no more
    """
    with (
        anyio.open_signal_receiver(signal.SIGTERM, signal.SIGINT, signal.SIGHUP) as ends,
        anyio.open_signal_receiver(signal.SIGWINCH) as resized,
        Terminal() as terminal,
    ):
        attachment = _Attachment(control, terminal, watches=mode == "watch")
        size = terminal.size() if terminal.raw else {}
        history = terminal.raw or mode == "watch"
        request = {"v": VERSION, "do": "attach", "name": name, "mode": mode, "wait": wait, "history": history, **size}
        return await attachment.run({**request, "from": _whence()}, ends, resized)


def _whence() -> str:
    """Say where we are: the terminal, and the host by SSH, as in who(1)."""
    terminal = os.ttyname(0).removeprefix("/dev/") if os.isatty(0) else ""
    return " ".join(filter(None, (terminal, *os.environ.get("SSH_CONNECTION", "").split()[:1])))


class _Attachment:
    def __init__(self, control: Control, terminal: Terminal, *, watches: bool) -> None:
        self._control = control
        self._terminal = terminal
        self._watches = watches
        self._menu = Menu(self, watches=watches)
        self._name = ""
        self._excuse = ""  # shown once to a user who types now
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
            outcome = await self._take_all()
            self._terminal.line = None
            await self._terminal.write(b"")  # output that has waited for it
            with anyio.move_on_after(_PATIENCE):
                await self._terminal.room()
            self._end(outcome)
        except OSError as error:
            self._end(error)
        except (ValueError, TypeError, LookupError, AttributeError, OverflowError) as error:
            self._end(ControlError("garbage", f"the server sent what makes no sense: {error}"))

    async def _take_all(self) -> str | ControlError:
        try:
            while "ok" not in (record := await self._control.receive()):
                await self._take(record)
        except ControlError as error:
            return error
        return printable(str(record.get("ended")))

    async def _take(self, record: Record) -> None:
        self._heard = anyio.current_time()
        match record:
            case {"data": data}:
                await self._terminal.write(base64.b64decode(data))
            case {"attached": path}:
                self._name = str(path).rpartition("/")[2]
                await self._terminal.say(f"attached as {path}" + f"; {HINT}" * self._terminal.raw)
            case {"keyboard": holder, "yours": yours}:
                await self._hand(holder, bool(yours), str(record.get("reason", "")), str(record.get("by", "")))
            case {"away": why}:
                self._may_type_if(here=False)
                await self._terminal.say(f"away: {why}")
            case {"back": _}:
                self._may_type_if(here=True)
                await self._terminal.say("back again")
            case {"said": text, "by": by}:
                await self._terminal.say(f"{by} says: {text}")
            case {"who": who}:
                await self._terminal.say(*present(who, self._name))
            case {"port": port}:
                self._menu.port(port)
            case {"refused": what, "message": why}:
                self._refuse(what, str(why))

    def _refuse(self, what: object, why: str) -> None:
        if what != "type":
            self._menu.refused(why)
        elif self._terminal.raw:
            self._menu.denied = why  # shown with the holder of the keyboard, too
        else:  # waiting for the keyboard would be in vain
            self._end(ControlError("forbidden", why))

    async def _hand(self, holder: str | None, yours: bool, why: str, by: str) -> None:
        self._may_type_if(yours=yours)
        self._excuse = ""
        if yours:
            await self._terminal.say("you have the keyboard")
            return
        has = f"{holder or 'nobody'} has the keyboard"
        if self._terminal.raw:
            self._excuse = f"not typed: {self._menu.denied or f'{has}; ctrl-] t takes it'}"
        why = ": ".join(filter(None, (by and f"taken from you by {by}", why)))
        has += f" ({why})" if why else ""
        await self._terminal.say(has if self._terminal.raw or self._watches else f"{has}: waiting for it")

    def _may_type_if(self, *, yours: bool | None = None, here: bool | None = None) -> None:
        self._yours = self._yours if yours is None else yours
        self._here = self._here if here is None else here
        if self._yours and self._here:
            self._may_type.set()
        elif self._may_type.is_set():
            self._may_type = anyio.Event()

    # -- to the share --

    def say_soon(self, *lines: str) -> None:
        self._tasks.start_soon(self._terminal.say, *lines)

    def ask_soon(self, line: str, *, over: bool = False) -> None:
        self._terminal.line, self._terminal.over = line, over
        self._tasks.start_soon(self._terminal.draw)

    async def _keys(self) -> None:
        while True:
            data = None
            with anyio.move_on_after(_PAUSE if self._menu.waits else math.inf):
                data = await self._terminal.read()
            if data is None:
                self._menu.show()
            elif not data or await self._obey(data):
                break
        await self._detach()

    async def _obey(self, keys: bytes) -> bool:
        """Do what the keys mean, and report whether they detach."""
        typed = b""
        for each in self._menu.keys(keys):
            if isinstance(each, bytes):
                typed += each
            elif "interrupt" in each:
                typed = b""
                await self._interrupt()
            else:
                await self._type(typed)
                typed = b""
                if "detach" in each:
                    return True
                await self._unsent.send(each)
        await self._type(typed)
        return False

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
        if data:  # the server throws away what is typed without the keyboard
            self._excuse_once()
            await self._unsent.send({"data": base64.b64encode(data).decode()})

    def _excuse_once(self) -> None:
        if self._excuse:
            self.say_soon(self._excuse)
            self._excuse = ""

    async def _interrupt(self) -> None:
        """Throw away what was typed so far and not sent, and have ctrl-C typed."""
        with contextlib.suppress(anyio.WouldBlock):
            while True:
                self._to_send.receive_nowait()
        self._excuse_once()
        await self._unsent.send({"interrupt": True})

    async def _detach(self) -> None:
        """Detach after all that was typed. A server that does not answer is not waited for."""
        with anyio.move_on_after(_PATIENCE):
            await self._unsent.send({"detach": True})
            await anyio.sleep_forever()
        self._end("detached")
