"""A stand-in for serialx 1.15: ``from asyncrevoke.compat import serialx``. Its asyncio part is ours, the rest is
serialx's.
"""

from __future__ import annotations

import asyncio
import errno
import logging
import math
from collections.abc import Callable
from typing import Any, Generic, TypeVar

import serialx as _serialx
from serialx import ModemPins as ModemPins, Parity as Parity, PinState as PinState, StopBits as StopBits
from serialx.common import get_uri_handler

from asyncrevoke.adapters.asyncio_streams import (
    SerialReader,
    SerialTransport as _SerialTransport,
    SerialWriter,
    connected,
    opened,
    opened_pair,
)
from asyncrevoke.adapters.serial import SerialDevice, SerialRevokedError
from asyncrevoke.lowlevel import RevokedError, off_loop, os_errors

logger = logging.getLogger("asyncrevoke")

P = TypeVar("P", bound=asyncio.BaseProtocol)
T = TypeVar("T", bound=asyncio.WriteTransport)
_LACKING = (errno.ENOTTY, errno.EINVAL, errno.EOPNOTSUPP)  # a driver that has no lines
_CLOSE_TIMEOUT = 30.0  # seconds, as serialx's


def __getattr__(name: str) -> Any:
    """Return serialx's own attribute for every name that is not ours."""
    return getattr(_serialx, name)


class SerialTransport(_SerialTransport):
    """The transport of a serial port, which `connect` opens. If it is closed before that, it stays closed."""

    transport_name = "serial"
    max_size = 65536  # bytes that are read at a time

    def __init__(
        self, loop: asyncio.AbstractEventLoop, protocol: asyncio.BaseProtocol, extra: dict[str, Any] | None = None
    ) -> None:
        asyncio.Transport.__init__(self, extra)
        self.loop = loop
        self.set_protocol(protocol)
        self._given_up = False
        self._connecting: asyncio.Future[None] | None = None  # done when it is connected, or never will be
        self._connected = False
        self._close_timeout: float | None = _CLOSE_TIMEOUT

    async def connect(
        self, *, path: str | None, baudrate: int = 9600, close_timeout: float | None = _CLOSE_TIMEOUT, **options: Any
    ) -> None:
        """Open the port, and tell the protocol.

        :param close_timeout: seconds for which `close` goes on sending; then it aborts. None: no limit
        :param options: as for serialx, and for `open_serial`
        :raises OSError: if it cannot be opened: FileNotFoundError, PermissionError, or with EBUSY if another has it
            open
        :raises: otherwise as `open_serial` and its opening
        Cancellation: nothing was opened, and it is closed.
        """
        if path is None:
            raise ValueError("path is empty: give that of the port")
        if self._connecting is not None:
            raise RuntimeError(f"{path!r}: it was connected already")
        self._connecting = self.loop.create_future()
        self._close_timeout = close_timeout
        try:
            device = await _opened(path, baudrate, options)
            if self._given_up:
                await device.aclose()
            else:
                await connected(device, lambda: self._on(device))
        except BaseException:
            self._given_up = not self._connected
            raise
        finally:
            self._connecting.set_result(None)

    def _taken(self, error: Exception) -> None:
        super()._taken(error)
        if self.device.finished:
            self._why = None

    def _on(self, device: Any) -> SerialTransport:
        super().__init__(self.loop, self.get_protocol(), device)
        self._connected = True
        return self

    def is_closing(self) -> bool:
        return super().is_closing() if self._connected else self._given_up

    def close(self) -> None:
        self._given_up = True
        if self._connected:
            super().close()
            if self._close_timeout is not None and self.get_write_buffer_size():
                self.loop.call_later(self._close_timeout, self._close_timed_out)

    def _close_timed_out(self) -> None:
        if not self.handle.revoked:
            logger.warning("%r: %d bytes could not be sent, and are lost", self, self.get_write_buffer_size())
            super().abort()

    def abort(self) -> None:
        self._given_up = True
        if self._connected:
            super().abort()

    async def wait_closed(self) -> None:
        if self._connecting is not None:
            await asyncio.wait((self._connecting,))
        elif not self._given_up:
            raise RuntimeError("it was neither connected nor closed: this wait would never end")
        if self._connected:
            await super().wait_closed()

    def write(self, data: bytes | bytearray | memoryview) -> None:
        """Send the data. The port gets at once what it accepts.

        :raises SerialRevokedError: if the port was revoked or unplugged
        """
        if self.handle.revoked and not self.handle.closed:
            raise SerialRevokedError(self.handle)
        super().write(data)

    async def flush(self) -> None:
        """Wait until everything written is sent, by the driver, too.

        :raises SerialRevokedError: if the port was revoked or unplugged, before or meanwhile
        :raises ~anyio.ClosedResourceError: if it was closed, before or meanwhile
        Cancellation: ends the waiting. Everything is still sent.
        """
        await super().flush()

    async def get_modem_pins(self) -> ModemPins:
        """Read the modem lines. If there are none, they are undefined."""
        try:
            lines = await self.driver.modem_lines()
        except OSError as exc:
            if exc.errno not in _LACKING:
                raise
            return ModemPins()
        pins = {name: PinState.convert(getattr(lines, name)) for name in ("dtr", "rts", "cts", "dsr")}
        return ModemPins(**pins, car=PinState.convert(lines.cd), rng=PinState.convert(lines.ri))

    async def set_modem_pins(self, modem_pins: ModemPins | None = None, **pins: PinState | bool | None) -> None:
        """Set DTR and RTS. The far end sets the other lines. If the port has no lines, this does nothing."""
        wishes = modem_pins or ModemPins(**{name: PinState.convert(state) for name, state in pins.items()})
        try:
            await self.driver.set_modem_lines(dtr=wishes.dtr.to_bool(), rts=wishes.rts.to_bool())
        except OSError as exc:
            if exc.errno not in _LACKING:
                raise

    async def reconfigure_port(
        self,
        *,
        baudrate: int | None = None,
        parity: Parity | str | None = None,
        stopbits: StopBits | float | None = None,
        byte_size: int | None = None,
        xonxoff: bool | None = None,
        rtscts: bool | None = None,
        dsrdtr: bool | None = None,
    ) -> None:
        """Change the line settings that are given.

        :raises SerialRevokedError: if the port was revoked or unplugged, before or meanwhile
        :raises ~anyio.ClosedResourceError: if it was closed, before or meanwhile
        """
        given = {
            "baudrate": baudrate,
            "parity": None if parity is None else Parity(parity).value,
            "stopbits": None if stopbits is None else StopBits(stopbits).value,
            "bytesize": byte_size,
            "xonxoff": xonxoff,
            "rtscts": rtscts,
            "dsrdtr": dsrdtr,
        }
        settings = {name: value for name, value in given.items() if value is not None}
        try:
            with self.handle.using():
                await off_loop(lambda: self._configure(settings), patience=math.inf)
        except RevokedError as error:
            raise SerialRevokedError.of(error) from error.__cause__

    def _configure(self, settings: dict[str, Any]) -> None:
        serial = self.serial
        serial.is_open = False  # or each is made alone, which the kernel refuses if it can do nothing of it
        try:
            serial.apply_settings(settings)
        finally:
            serial.is_open = True
        with os_errors(self.device.url):
            serial.baudrate = serial.baudrate

    @property
    def baudrate(self) -> int:
        return int(self.serial.baudrate)

    @property
    def parity(self) -> Parity:
        return Parity(self.serial.parity)

    @property
    def stopbits(self) -> StopBits:
        return StopBits(self.serial.stopbits)

    @property
    def byte_size(self) -> int:
        return int(self.serial.bytesize)

    @property
    def exclusive(self) -> bool:
        return bool(self.serial.exclusive)


BaseSerialTransport = SerialTransport


class SerialStreamReader(SerialReader):
    """A reader of a serial port. If the far end closes a connection, you first read what it sent before, then the end
    of data.
    """

    async def goes_on(self) -> bool:
        return await super().goes_on() or self._finished()

    def end(self) -> None:
        if self._finished():
            self.feed_eof()
        else:
            super().end()

    def _finished(self) -> bool:
        assert isinstance(self._transport, SerialTransport)
        return self._transport.device.finished


class SerialStreamWriter(SerialWriter, Generic[T]):
    """A writer of a serial port."""


class AsyncSerial(_serialx.AsyncSerial):
    """A serial port with a reader and a writer in one."""

    _url: str | None
    _connect_kwargs: dict[str, Any]
    _transport_cls: type[SerialTransport] | None  # type: ignore[assignment]  # ours is none of theirs

    async def open(self) -> None:
        """Open it.

        :raises SerialException: if it is open
        :raises: as `SerialTransport.connect`
        """
        if self._transport is not None:
            raise _serialx.SerialException("AsyncSerial is already open")
        self._reader, self._writer = await open_serial_connection(
            self._url, transport_cls=self._transport_cls, **self._connect_kwargs
        )
        self._transport: Any = self._writer.transport


async def create_serial_connection(  # noqa: PLR0917  # as serialx's
    loop: asyncio.AbstractEventLoop,
    protocol_factory: Callable[[], P],
    url: str | None,
    baudrate: int = 9600,
    parity: Parity | str | None = Parity.NONE,
    stopbits: StopBits | float = StopBits.ONE,
    xonxoff: bool = False,
    rtscts: bool = False,
    exclusive: bool = True,
    *,
    transport_cls: type[SerialTransport] | None = None,
    **kwargs: Any,
) -> tuple[SerialTransport, P]:
    """Open a serial port for a protocol.

    :param kwargs: as for `SerialTransport.connect`
    :raises: as `SerialTransport.connect`
    """
    if url is None and transport_cls is None:
        raise ValueError("there is neither a url nor a transport_cls: give one")
    if not issubclass(transport_cls or SerialTransport, SerialTransport):
        raise TypeError(f"{transport_cls!r} cannot be revoked: do not give transport_cls")
    protocol = protocol_factory()
    transport = (transport_cls or SerialTransport)(loop, protocol)
    settings: dict[str, Any] = {
        "parity": parity,
        "stopbits": stopbits,
        "xonxoff": xonxoff,
        "rtscts": rtscts,
        "exclusive": exclusive,
    }
    await transport.connect(path=url, baudrate=baudrate, **settings, **kwargs)
    return transport, protocol


async def open_serial_connection(*args: Any, **kwargs: Any) -> tuple[SerialReader, SerialStreamWriter[SerialTransport]]:
    """Open a serial port as a pair of reader and writer. The arguments are those of `create_serial_connection` from the url on."""
    loop = asyncio.get_running_loop()
    return await opened_pair(
        lambda make: create_serial_connection(loop, make, *args, **kwargs),
        loop,
        SerialStreamReader(loop=loop),
        SerialStreamWriter,
    )


def async_serial_for_url(
    url: str | None, *, transport_cls: type[SerialTransport] | None = None, **kwargs: Any
) -> AsyncSerial:
    """Return a port that ``async with``, or its `open`, opens."""
    return AsyncSerial(url, transport_cls=transport_cls, **kwargs)  # type: ignore[arg-type]


def get_serial_classes(url: str) -> tuple[type[_serialx.BaseSerial], type[SerialTransport]]:
    """Return two classes: serialx's, for blocking use, and our class of transports."""
    return get_uri_handler(url).sync_cls, SerialTransport


async def _opened(path: str, baudrate: int, options: dict[str, Any]) -> SerialDevice:
    try:
        return await opened(_url(path), baudrate, options)
    except RevokedError:
        raise
    except OSError as exc:  # pyserial's, which serialx's users do not know; this is of the class for its number
        raise OSError(exc.errno, exc.strerror, path) from exc


def _url(path: str) -> str:
    """Return a path or url without the scheme of a handler that serialx's users choose."""
    handler = get_uri_handler(path)
    return path.removeprefix(handler.scheme).removeprefix(handler.unique_scheme) if handler.strip_uri_scheme else path
