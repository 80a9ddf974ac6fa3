"""A share by telnet (RFC 854), for a person at a terminal, or for a program that also sets the port (RFC 2217)."""

from __future__ import annotations

import contextlib
import re
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import anyio
import anyio.abc

from asyncrevoke.control.lines import ControlError
from asyncrevoke.lowlevel import FdStream, printable

from .front import size
from .raw import RawFront
from .rfc2217 import WORDS, PortControl

if TYPE_CHECKING:
    from .client import Client
    from .console import Console

_IAC, _SB, _SE = b"\xff", b"\xfa", b"\xf0"
_WILL, _WONT, _DO, _DONT = b"\xfb", b"\xfc", b"\xfd", b"\xfe"
_BREAK, _INTERRUPT, _ARE_YOU_THERE = b"\xf3", b"\xf4", b"\xf6"
_BINARY, _ECHO, _NO_GO_AHEAD, _WINDOW, _PORT = b"\x00", b"\x01", b"\x03", b"\x1f", b"\x2c"
#: One of these: data; a verb with its option; what is between SB and SE; any other command, or a doubled IAC.
_ITEM = re.compile(
    rb"([^\xff]+)|\xff(?:([\xfb-\xfe])(.)|\xfa((?:[^\xff]|\xff[^\xf0])*)\xff\xf0|([^\xfa-\xfe]))", re.DOTALL
)
_LONGEST = 1024  # bytes of a command


class TelnetFront(RawFront):
    """A connection that speaks telnet, with bytes of eight bits. The far end shows what it gets, and does not echo keys."""

    def __init__(self, stream: FdStream, wire: anyio.abc.ByteStream, console: Console) -> None:
        super().__init__(stream, wire)
        self._console = console
        self._control: PortControl | None = None
        # The options of each side, and whether they are on. None: the far end has not answered yet.
        self._ours: dict[bytes, bool | None] = dict.fromkeys((_BINARY, _ECHO, _NO_GO_AHEAD))
        self._theirs: dict[bytes, bool | None] = dict.fromkeys((_BINARY, _NO_GO_AHEAD, _WINDOW))
        if console.port is not None:
            self._theirs[_PORT] = None
        self._cut_off = b""  # a command of which the rest has not come yet
        self._after_return = False
        self._untold = ""
        self._types_in_vain = False  # it types without the keyboard, and was told so
        self._watches = False  # it is told the modem lines

    # -- to the person --

    def show_now(self, data: bytes) -> bytes:
        return data if _IAC in data else super().show_now(data)

    async def show(self, data: bytes) -> None:
        await self.send(data.replace(_IAC, _IAC + _IAC))

    async def tell(self, news: Mapping[str, Any]) -> None:
        match news:
            case {"attached": _}:
                offers = [_IAC + _WILL + option for option in self._ours]
                await self.send(b"".join([*offers, *(_IAC + _DO + option for option in self._theirs)]))
            case {"away": why}:
                await self._say(f"it is away: {why}")
            case {"back": _}:
                await self._say("it is back")
            case {"said": text, "by": who}:
                await self._say(f"{who}: {text}")
            case {"yours": True} if self._types_in_vain:
                self._types_in_vain = False
                await self._say("you have the keyboard")

    async def end(self, why: str) -> None:
        if self._theirs.get(_PORT) is None:
            self._theirs[_PORT] = False  # it has not said that it is a program, and has no time left to
        await self._say(why)
        await super().end(why)

    async def _say(self, text: str) -> None:
        """Tell a person in the data, or a program by its protocol: nothing is mixed into a program's data.

        Until the far end has answered which of the two it is, the text is kept.
        """
        is_program = self._theirs.get(_PORT, False)
        if is_program is None:
            self._untold = text
        elif is_program:
            await self._answer(WORDS, printable(text).encode())
        else:
            await self.send(f"\r\n[asyncrevoke: {printable(text)}]\r\n".encode())

    # -- from the person --

    async def hear(self, client: Client) -> str:
        if self._console.port is not None:
            self._control = PortControl(self._console, self._console.port, client, self._answer)
        outcome: str | Exception
        async with anyio.create_task_group() as self._tasks:
            try:
                outcome = await super().hear(client)
            except Exception as exc:  # noqa: BLE001  # it is raised below, outside of a group
                outcome = exc
            self._tasks.cancel_scope.cancel()
        if isinstance(outcome, Exception):
            raise outcome
        return outcome

    async def _heard(self, client: Client, data: bytes) -> None:
        data, at = self._cut_off + data, 0
        while item := _ITEM.match(data, at):
            at = item.end()
            text, verb, option, words, command = item.groups()
            if text is not None:
                await self._type(client, self._returned(text))
            elif verb is not None:
                await self._negotiate(verb, option)
            elif words is not None:
                await self._obey(client, words.replace(_IAC + _IAC, _IAC))
            elif command == _IAC:
                await self._type(client, _IAC)
            elif command == _INTERRUPT:
                await client.interrupt()
            elif command == _BREAK and self._control is not None:
                await self._control.send_break()
            elif command == _ARE_YOU_THERE:
                await self._say("yes")
        self._cut_off = data[at:]
        if len(self._cut_off) > _LONGEST:
            why = f"a telnet command has no end within {_LONGEST} bytes: {self._cut_off[:20]!r}..."
            raise ControlError("garbage", why)

    async def _type(self, client: Client, data: bytes) -> None:
        await self._excuse(client)
        await client.type(data)

    async def _excuse(self, client: Client) -> None:
        """Tell once why the client types in vain, and sets nothing."""
        if client.keyboard is None and not self._types_in_vain:
            self._types_in_vain = True
            holder = self._console.keyboard
            who = "nobody" if holder is None else holder.name
            await self._say(f"{who} has the keyboard: what you type is thrown away")

    def _returned(self, data: bytes) -> bytes:
        """Return what was typed. The return key may have sent two bytes, of which one is kept."""
        if self._theirs[_BINARY]:
            return data
        if self._after_return and data[:1] in (b"\n", b"\0"):
            data = data[1:]
        self._after_return = data.endswith(b"\r")
        return re.sub(rb"\r[\n\0]", b"\r", data)

    async def _negotiate(self, verb: bytes, option: bytes) -> None:
        """Answer a request that changes something. Were others answered, both ends would answer each other for ever."""
        agrees = verb in (_WILL, _DO)
        side, yes, no = (self._theirs, _DO, _DONT) if verb in (_WILL, _WONT) else (self._ours, _WILL, _WONT)
        before = side.get(option, False)
        now = agrees and option in side
        if option in side:
            side[option] = now
        if (before is not None and now != before) or (agrees and not now):
            await self.send(_IAC + (yes if now else no) + option)
        if side is self._theirs and option == _PORT:
            if now and not self._watches and self._control is not None:
                self._watches = True
                self._tasks.start_soon(self._watch, self._control)
            told, self._untold = self._untold, ""
            if told:
                await self._say(told)

    async def _watch(self, control: PortControl) -> None:
        with contextlib.suppress(anyio.BrokenResourceError, anyio.ClosedResourceError):  # the connection is over
            await control.watch()

    async def _answer(self, command: int, value: bytes) -> None:
        words = _PORT + bytes([command]) + value.replace(_IAC, _IAC + _IAC)
        await self.send(_IAC + _SB + words + _IAC + _SE)

    async def _obey(self, client: Client, words: bytes) -> None:
        if words[:1] == _WINDOW and len(words) == 5:
            with contextlib.suppress(ControlError):  # it is not the size of a window
                client.resize(size([words[3] << 8 | words[4], words[1] << 8 | words[2]]))
        elif words[:1] == _PORT and len(words) > 1 and self._control is not None:
            if not self._theirs[_PORT]:  # pyserial may take our request for an answer, and never agree to it
                await self._negotiate(_WILL, _PORT)
            await self._excuse(client)
            await self._control.obey(words[1], words[2:], self._tasks)
