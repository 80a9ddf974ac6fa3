"""Sets the port of a share over telnet, and tells its state: the access server of RFC 2217.

pyserial has one, `serial.rfc2217.PortManager`. It does not suit an event loop, because it asks the driver and answers in one
blocking step. It also raises on nonsense, and stores a command without end. It does not answer when a client asks for
notices, as serialx does.
"""

from __future__ import annotations

import contextlib
from collections.abc import Awaitable, Callable, Sequence
from typing import TYPE_CHECKING

import anyio
import anyio.abc

from asyncrevoke.adapters.serial import ModemLines, SerialDevice
from asyncrevoke.control.lines import ControlError
from asyncrevoke.lowlevel import Revokable

from .shared_port import SharedPort

if TYPE_CHECKING:
    from .client import Client
    from .console import Console

_SIGNATURE, _BAUDRATE, _DATABITS, _PARITY, _STOPBITS, _CONTROL = range(6)
_ASK_LINE, _ASK_MODEM, _LINE_MASK, _MODEM_MASK, _PURGE = 6, 7, 10, 11, 12
_ANSWER = 100
WORDS = _SIGNATURE + _ANSWER  # a text of any kind, which either side may send at any time
_ALWAYS = {_SIGNATURE: b"asyncrevoke", _ASK_LINE: b"\0", _LINE_MASK: b"\0"}  # errors of the line are not told
#: The setting of each command, and the values that its numbers stand for. The number 0 asks for the present value.
_VALUES: dict[int, tuple[str, Sequence[object]]] = {
    _DATABITS: ("databits", range(9)),
    _PARITY: ("parity", ("", "none", "odd", "even", "mark", "space")),
    _STOPBITS: ("stopbits", (0, 1, 2, 1.5)),
    _CONTROL: ("flow", ("", "none", "xonxoff", "rtscts")),
}
_INBOUND = 13  # from this number on: flow control of input, which is asked for, or set in six ways
_SWITCH, _SWITCHES = 4, ("break", "dtr", "rts")  # from this number on, three for each: ask, switch on, switch off
_ON, _OFF = 1, 2
_RECEIVED, _SENT = 1, 2  # bits that say what is purged
_STATE = {"cts": 0x10, "dsr": 0x20, "ri": 0x40, "cd": 0x80}
_POLL = 0.25  # seconds
_FOREVER = 86400.0


class PortControl:
    """Sets the port for one client, and tells that client its state. Only with the keyboard does a client change something.

    :param send: sends a command of the protocol: its number, and its value
    """

    def __init__(
        self, console: Console, port: SharedPort, client: Client, send: Callable[[int, bytes], Awaitable[None]]
    ) -> None:
        self._console = console
        self._port = port
        self._client = client
        self._send = send
        self._lines = {"dtr": True, "rts": True}  # as they were set last, for a driver that has none
        self._without: SerialDevice | None = None  # a device whose driver has none
        self._breaking: anyio.CancelScope | None = None
        self._over = anyio.Event()  # set when the break is over
        self._mask = 0xFF
        self._told = 0

    async def obey(self, command: int, value: bytes, tasks: anyio.abc.TaskGroup) -> None:
        """Do what a command asks for, after all that was typed before it. Answer with the state after that."""
        first = value[0] if value else 0
        if command in _ALWAYS:
            value = _ALWAYS[command]
        elif command == _BAUDRATE:
            await self._set("baudrate", int.from_bytes(value[:4]))
            value = self._port.settings.baudrate.to_bytes(4)
        elif command in (_DATABITS, _PARITY, _STOPBITS):
            value = bytes([await self._choose(command, first)])
        elif command == _CONTROL:
            value = bytes([await self._act(first, tasks)])
        elif command == _ASK_MODEM:
            value = bytes([await self._state()])
        elif command == _MODEM_MASK:
            self._mask = first
        elif command == _PURGE:
            if first & _RECEIVED:
                self._client.forget()
            if first & _SENT:
                self._client.discard()
        else:
            return
        await self._send(command + _ANSWER, value)

    async def _choose(self, command: int, number: int) -> int:
        name, words = _VALUES[command]
        await self._set(name, words[number] if number < len(words) else 0)
        return words.index(getattr(self._port.settings, name))

    async def _act(self, number: int, tasks: anyio.abc.TaskGroup) -> int:
        if number >= _INBOUND:
            return _INBOUND + await self._choose(_CONTROL, 0)  # it is the same as that of output
        switch, wish = divmod(number - _SWITCH, 3)
        if switch < 0:
            return await self._choose(_CONTROL, number)
        is_on = await self._switch(_SWITCHES[switch], wish, tasks)
        return _SWITCH + 3 * switch + (_ON if is_on else _OFF)

    async def watch(self) -> None:
        """Tell the modem lines that the device drives, such as CTS: now, and whenever they have changed."""
        await self._send(_ASK_MODEM + _ANSWER, bytes([await self._state()]))
        while True:
            await anyio.sleep(_POLL)
            before, now = self._told, await self._state()
            if (before ^ now) & self._mask:
                await self._send(_ASK_MODEM + _ANSWER, bytes([(now | (before ^ now) >> 4) & self._mask]))

    async def send_break(self) -> None:
        if keyboard := await self._keyboard():
            with contextlib.suppress(ControlError):
                await self._port.ask(lambda stream: stream.send_break(), [keyboard])

    async def _keyboard(self) -> Revokable | None:
        """Return the keyboard of the client, if it has it, after all that it typed before is on its way to the device."""
        if self._client.keyboard is not None:
            await self._client.typed_out()
        return self._client.keyboard

    async def _set(self, name: str, wish: object) -> None:
        if wish and (keyboard := await self._keyboard()):
            with contextlib.suppress(ControlError, ValueError):  # the answer is the value that stays
                before, settings = self._port.settings, self._port.settings.changed({name: wish})
                await self._port.configure(settings, [keyboard])
                if settings != before:
                    self._console.note(f"{self._client.name} has set it to {settings}")

    async def _switch(self, name: str, wish: int, tasks: anyio.abc.TaskGroup) -> bool:
        """Switch a line or the break on (1) or off (2), as far as possible. Return whether it is on."""
        keyboard = await self._keyboard() if wish else None
        if name == "break":
            if self._breaking is not None and wish == _OFF:
                self._breaking.cancel()
                await self._over.wait()
            elif self._breaking is None and wish == _ON and keyboard:
                self._breaking, self._over = anyio.CancelScope(), anyio.Event()
                tasks.start_soon(self._hold_break, keyboard)
            return self._breaking is not None
        if keyboard:
            line = {name: wish == _ON}
            self._lines |= line  # for a port without lines, such as a pty, the answer is the wish, as in pyserial
            with contextlib.suppress(ControlError):
                await self._port.ask(lambda stream: stream.set_modem_lines(**line), [keyboard])
                self._console.note(f"{self._client.name} has set {name} {'on' if line[name] else 'off'}")
        return bool(getattr(await self._modem_lines(), name, self._lines[name]))

    async def _hold_break(self, keyboard: Revokable) -> None:
        assert self._breaking is not None
        try:
            with self._breaking, contextlib.suppress(ControlError):
                self._console.note(f"{self._client.name} sends a break")
                await self._port.ask(lambda stream: stream.send_break(_FOREVER), [keyboard])
        finally:
            self._breaking = None
            self._over.set()

    async def _state(self) -> int:
        lines = await self._modem_lines()
        self._told = sum(bit for line, bit in _STATE.items() if getattr(lines, line, False))
        return self._told

    async def _modem_lines(self) -> ModemLines | None:
        """Return the modem lines. None: the driver has none, or there is no device now."""
        device = self._port.device
        if device is not None and device is not self._without:
            try:
                with device.node.using():
                    return await device.ask(lambda port: port.modem_lines())
            except (OSError, anyio.ClosedResourceError):
                self._without = device
        return None
