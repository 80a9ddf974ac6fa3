"""A serial port behind a server of RFC 2217. serialx knows the protocol, and we wait for the connection."""

from __future__ import annotations

import contextlib
import dataclasses
import errno
import importlib
import os
import socket
from collections.abc import Mapping
from typing import Any

import anyio

from asyncrevoke.adapters.device.device import PATIENCE
from asyncrevoke.lowlevel import Deadline, Fd, Revokable, off_loop

from . import network
from .lines import AtOpen, ModemLines
from .port import Port, imported, serialx_words, why_over

_ANSWER = 5.0  # seconds
_BACKLOG = 65536  # bytes that are taken while nobody reads
_PIECE = 4096


async def open_rfc2217(url: str, node: Revokable, settings: dict[str, Any], at_open: AtOpen) -> Port:
    """Connect and configure in a thread."""
    imported("serialx", "serialx")
    protocol = importlib.import_module("serialx.platforms.serial_rfc2217")
    serial = protocol.RFC2217Serial(url, connect_timeout=_ANSWER, **settings)

    def open_url() -> _Rfc2217Port:
        inside = vars(serial)
        if not {"_engine", "_socket", "_data_buffer"} <= inside.keys():
            raise ImportError("this version of serialx is not supported: install another")
        # It would ask for notices of the lines, and wait for an answer that pyserial's server does not give.
        inside["_engine"].build_state_mask_commands = tuple
        serial.open()
        try:
            inside["_socket"].settimeout(_ANSWER)
            serial.set_modem_pins(dtr=at_open.dtr, rts=at_open.rts)
            left = dataclasses.replace(at_open, dtr=None, rts=None)
            left.apply(inside["_socket"].fileno())  # which refuses it
            network.keep_alive(inside["_socket"])
            return _Rfc2217Port(
                node, protocol, serial, {"dtr": at_open.dtr is not False, "rts": at_open.rts is not False}
            )
        except BaseException:
            serial.close()
            raise

    port = await off_loop(open_url, late=_Rfc2217Port.close, patience=PATIENCE)
    node.release = port.close
    return port


class _Rfc2217Port:
    """The port. A task that waits, for data or for an answer, takes what comes for all."""

    fd: Fd | None = None
    deadline: Deadline | None = None

    def __init__(self, node: Revokable, protocol: Any, serial: Any, ours: dict[str, bool]) -> None:
        self.serial = serial
        self._ours = ours
        self._protocol = protocol
        self._engine = vars(serial)["_engine"]
        self._connection: socket.socket = vars(serial)["_socket"]
        self._unread: bytearray = vars(serial)["_data_buffer"]
        self._unsent = bytearray()
        self._sending = anyio.Lock()
        self._asking = anyio.Lock()
        self._taking = False
        self._taken = anyio.Event()
        self._why: object = None
        self._fd = Fd(self._connection.fileno(), node, lambda _: None, shared=True)  # `close` closes it

    def fileno(self) -> int:
        return self._fd.number

    async def receive(self, max_bytes: int) -> bytes:
        while not self._unread:
            await self._wait()
        data = bytes(self._unread[:max_bytes])
        del self._unread[:max_bytes]
        return data

    async def send_some(self, item: memoryview) -> int:
        await self._flush()  # what somebody sent who was cancelled: else it has no bound
        piece = bytes(item[:_PIECE])
        self._unsent += self._protocol.iac_escape(piece)
        await self._flush()
        return len(piece)

    async def configure(self, settings: Mapping[str, Any]) -> None:
        kinds = {"parity": self._protocol.Parity, "stopbits": self._protocol.StopBits}
        words = {name: kinds[name](each) if name in kinds else each for name, each in serialx_words(settings).items()}
        for command in self._engine.build_port_config_commands(self._protocol.PortSettingsUpdate(**words)):
            if await self._ask(command) != command:
                raise OSError(errno.EINVAL, os.strerror(errno.EINVAL))

    async def discard(self) -> None:
        await self._ask(self._protocol.PurgeDataCmd(what=self._protocol.PurgeDataValue.RECEIVE))
        self._unread.clear()

    async def modem_lines(self) -> ModemLines:
        """Return what the server has told last of the far end's lines, and what was last asked of ours. Few servers
        tell of these.
        """
        theirs = self._engine.get_modem_pins()
        seen = {"cts": theirs.cts, "dsr": theirs.dsr, "ri": theirs.rng, "cd": theirs.car}
        return ModemLines(**{line: pin.to_bool() for line, pin in seen.items()}, **self._ours)

    async def set_modem_lines(self, **lines: bool | None) -> None:
        for line, state in lines.items():
            if state is not None:
                await self._control(f"SET_{line.upper()}_{'ON' if state else 'OFF'}")
                self._ours[line] = state

    async def set_break(self, *, state: bool) -> None:
        await self._control(f"SET_BREAK_{'ON' if state else 'OFF'}")

    async def _control(self, name: str) -> None:
        await self._ask(self._protocol.SetControlCmd(control=self._protocol.ControlCmdId[name]))

    def why_over(self) -> object:
        self._why = self._why or why_over(self._fd.number)
        while (
            not self._why and not self._taking and len(self._unread) < _BACKLOG
        ):  # the server's notices, too, hide an end
            with contextlib.suppress(anyio.EndOfStream, anyio.BrokenResourceError):  # of which is told below
                data = self._fd.read_now(_BACKLOG)
                if data is None:
                    break
                self._take(data)
            self._why = why_over(self._fd.number)
        return None if self._unread else self._why

    def close(self) -> None:
        self._fd.close()
        network.disconnect(self._connection)

    async def _ask(self, command: Any) -> Any:
        """Send a command, and wait for its answer, one at a time: answers do not say which command they answer.

        :raises OSError: ETIMEDOUT, if none comes
        """
        with anyio.move_on_after(_ANSWER, shield=True):
            async with self._asking:
                self._engine.pop_pending_rfc2217(command.CMD_ID)  # of one that came too late
                self._unsent += self._protocol.encode_command(command)
                await self._flush()
                while (answer := self._engine.pop_pending_rfc2217(command.CMD_ID)) is None:
                    await self._wait()
                return answer
        raise OSError(errno.ETIMEDOUT, "the server does not answer")

    async def _wait(self) -> None:
        """Wait until something has come, whichever task takes it."""
        if self._taking:
            await self._taken.wait()
            return
        self._taking = True
        try:
            self._take(await self._fd.read(_BACKLOG))
        finally:
            self._taking = False
            taken, self._taken = self._taken, anyio.Event()
            taken.set()

    def _take(self, data: bytes) -> None:
        come, answers = self._engine.feed(data)
        self._unread += come
        if come and self.deadline is not None:
            self.deadline.put_off()
        for answer in answers:
            self._unsent += self._protocol.encode_command(answer)
        if answers and not self._sending.locked():  # whoever sends takes them along
            del self._unsent[: self._fd.write_now(bytes(self._unsent)) or 0]

    async def _flush(self) -> None:
        async with self._sending:
            while self._unsent:
                del self._unsent[: await self._fd.write_some(memoryview(bytes(self._unsent)))]
