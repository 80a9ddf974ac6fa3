"""A serial port: a `Device` that has line settings, modem lines, breaks and a queue to drain, and may be a connection.

`asyncrevoke.adapters.device` has what all devices share. This file has what is special to a terminal, and to the
libraries that may wait on it.
"""

from __future__ import annotations

import contextlib
import os
from collections.abc import Awaitable, Callable, Mapping
from contextlib import AbstractContextManager
from dataclasses import dataclass
from types import EllipsisType
from typing import Any, Literal, TypeVar, Unpack

import anyio

from asyncrevoke.adapters.device import Device, DeviceStream
from asyncrevoke.answers import Answers
from asyncrevoke.linux import fcntl, termios
from asyncrevoke.lowlevel import Fd, Revokable, RevokedError, SharedOptions, os_errors

from . import network
from .lines import AtOpen, ModemLines, drain, integer
from .port import GONE, Backend, Port, SerialException, explained, explaining, open_descriptor
from .rfc2217 import open_rfc2217
from .transports import open_pyserial_asyncio, open_serialx

T = TypeVar("T")
_KNOWN: dict[str, tuple[object, ...]] = {
    "baudrate": (),  # any number
    "bytesize": (5, 6, 7, 8),
    "parity": ("N", "E", "O", "M", "S"),
    "stopbits": (1, 1.5, 2),
    "xonxoff": (False, True),
    "rtscts": (False, True),
}
BackendName = Literal["descriptor", "pyserial-asyncio", "serialx"]
BACKENDS: dict[str, Backend] = {
    "descriptor": open_descriptor,
    "pyserial-asyncio": open_pyserial_asyncio,
    "serialx": open_serialx,
}


class SerialRevokedError(RevokedError, SerialException):
    """The `RevokedError` of a serial stream. If pyserial is installed, it is a `serial.SerialException` too."""

    @classmethod
    def of(cls, error: RevokedError) -> SerialRevokedError:
        new = cls(error.node, in_flight=error.in_flight, sent=error.sent)
        new.errno = error.errno
        return new


def open_serial(
    url: str | os.PathLike[str],
    baudrate: int = 9600,
    *,
    bytesize: int = 8,
    parity: str = "N",
    stopbits: float = 1,
    xonxoff: bool = False,
    rtscts: bool = False,
    dsrdtr: bool = False,
    exclusive: bool = True,
    dtr: bool | None = None,
    rts: bool | None = None,
    hangup_on_close: bool | None = None,
    low_latency: bool = False,
    backend: BackendName = "descriptor",
    fan_out: bool = False,
    backlog: int = 65536,
    history: int = 0,
    close_timeout: float = 40.0,
    idle_limit: float | None = None,
    owner: Revokable | None = None,
    name: str = "",
    answers: Answers | EllipsisType = ...,
) -> SerialDevice:
    """Open a serial port: ``async with open_serial("/dev/ttyUSB0", 115200) as device: stream = device.open()``

    ``async with`` or ``await`` opens it, in a thread. It needs pyserial: ``asyncrevoke[serial]``.

    Other programs may use the port, too. It ends only when the kernel hangs it up; reading nothing ends nothing. Line
    settings, HUPCL among them, stay as another program sets them: `SerialStream.set_baudrate` puts yours back. Modem
    lines are read anew each time. O_NONBLOCK is set again before each read and write, because a child that was given
    `fileno` may clear it.

    Over the network, a far end that answers nothing, or accepts nothing, is noticed within half a minute. What it sent
    before it closed is received first. "closed by the far end" is the reason of an orderly end. For a broken connection
    the reason is the kernel's words.

    :param url: the path of a device, or ``socket://host:port``, which has no settings (not with serialx), or
        ``rfc2217://host:port`` (needs ``asyncrevoke[serialx]``, and ignores `backend`), or anything else with a
        descriptor that pyserial's `serial_for_url` takes
    :param baudrate, bytesize, parity, stopbits, xonxoff, rtscts, dsrdtr: as pyserial's
    :param exclusive: keep others out: programs that lock it, too (flock), and all without CAP_SYS_ADMIN (TIOCEXCL)
    :param dtr, rts: the state of these lines from the opening on. They are set together, before the line settings.
        Linux itself raises both in open(2), so a low one is high for a moment. None: they stay as Linux makes them. If
        there are no lines, as on a pty, False is accepted, and True is an error
    :param hangup_on_close: whether the last close lowers both (HUPCL). None: as it is
    :param low_latency: the driver delivers data at once (ASYNC_LOW_LATENCY). False: as it is
    :param backend: the library that waits. "descriptor" is ours; "pyserial-asyncio" and "serialx" are transports of
        those libraries, for asyncio alone
    :param fan_out: each stream gets a copy of all data. Default: one task may read at a time. Data that a stream has
        not received when the port is revoked is thrown away
    :param backlog: with `fan_out`, bytes that a stream may be behind before it is revoked: "... bytes behind" is the
        reason. One that never receives may be there to send, and is not. Nobody is waited for: a device sends on, and
        data that the driver has no room for is lost to all, as when nobody receives
    :param history: with `fan_out`, bytes of the latest data that are kept for streams opened with `replay`
    :param close_timeout: seconds to wait for the kernel to close it; a stalled line takes it 31
    :param idle_limit: seconds without data after which it is revoked, whether anybody reads or not. None: no limit
    :param owner: what the device is opened on; a `Name` gives it a generation
    :param name: for errors and reports. Default: the url
    :param answers: a profile of `asyncrevoke.answers` for its streams. Default: as at the owner
    :raises ValueError: if an option makes no sense Opening raises, too:
    :raises SerialException: an OSError, with errno, the port and what to do: missing, busy, forbidden, no terminal; or
        no thread, descriptor or memory is left
    :raises ImportError: if the backend's library is not installed
    :raises RevokedError: if the owner was revoked, before or meanwhile. The port is closed then
    Cancellation: waits half a second at most until what was opened is closed again. If it is opened later, a thread
        closes it.
    """
    line = (baudrate, bytesize, parity, stopbits, xonxoff, rtscts, dsrdtr, exclusive)
    at_open = AtOpen(dtr, rts, hangup_on_close, low_latency)
    options = _Options(
        os.fspath(url), *line, at_open, backend, backlog if fan_out else None, history, close_timeout, idle_limit
    )
    return SerialDevice(options, owner, name or options.url, answers)


@dataclass(frozen=True, slots=True)
class _Options:
    """The options of `open_serial`, which explains them."""

    url: str
    baudrate: int
    bytesize: int
    parity: str
    stopbits: float
    xonxoff: bool
    rtscts: bool
    dsrdtr: bool
    exclusive: bool
    at_open: AtOpen
    backend: BackendName
    backlog: int | None
    history: int
    close_timeout: float
    idle_limit: float | None

    def __post_init__(self) -> None:
        if self.backend not in BACKENDS:
            raise ValueError(f"backend is {self.backend!r}: give one of {', '.join(map(repr, BACKENDS))}")
        if self.url.startswith(network.SCHEMES):
            network.address(self.url)
        _check(self.url, {setting: getattr(self, setting) for setting in _KNOWN})

    @property
    def open(self) -> Backend:
        return open_rfc2217 if self.url.startswith("rfc2217://") else BACKENDS[self.backend]

    def settings(self) -> dict[str, Any]:
        """The settings of pyserial's."""
        return {option: getattr(self, option) for option in (*_KNOWN, "dsrdtr", "exclusive")}


class SerialDevice(Device[Port]):
    """An open serial port, as `open_serial` returns it. Closing it closes the port, and waits for that. A thread closes
    it; if none can be started, the loop's own thread does.

    :ivar finished: whether it is gone because the far end of a connection has closed it, in order
    """

    def __init__(self, options: _Options, owner: Revokable | None, name: str, answers: Answers | EllipsisType) -> None:
        super().__init__(
            options.url,
            owner,
            name,
            answers,
            backlog=options.backlog,
            history=options.history,
            exact=options.open is open_descriptor,
            idle_limit=options.idle_limit,
            close_timeout=options.close_timeout,
        )
        self.finished = False
        self._options = options

    @property
    def url(self) -> str:
        """The url that was opened."""
        return self.path

    def open(self, name: str = "", **options: Unpack[SharedOptions]) -> SerialStream:
        """Open a stream on the port.

        :param options: see `SharedOptions`
        :raises RevokedError, ~anyio.ClosedResourceError: if the device is gone
        """
        try:
            return SerialStream(self, name, tty=True, **options)
        except RevokedError as error:
            raise SerialRevokedError.of(error) from None

    def discard(self) -> None:
        """Throw away output that the driver has not sent. What you send next comes first. This does not wait.

        :raises RevokedError, ~anyio.ClosedResourceError: if the device is gone
        :raises OSError: if the driver refuses it
        """
        with self.node.using(), os_errors(self.url):
            termios.tcflush(self.fileno(), termios.TCOFLUSH)

    @property
    def fd(self) -> Fd:
        """The port's descriptor with our own waits on it, for code that waits otherwise than our streams.

        :raises ValueError: if a library waits: open it with the backend "descriptor"
        """
        if (fd := self.line.fd) is None:
            raise ValueError(
                f"{self.url!r}: open it with the backend 'descriptor'; {self._options.backend} waits itself"
            )
        return fd

    @property
    def serial(self) -> Any:
        """The library's own object for the port. What you do with it is not guarded, and may block."""
        return self.line.serial

    async def ask(self, request: Callable[[Port], Awaitable[T]]) -> T:
        """Make a request of the port itself, as `Device.attempt`."""

        async def ask() -> T:
            with os_errors(self.name):
                return await request(self.line)

        return await self.attempt(ask)

    async def _connect(self, node: Revokable) -> Port:
        port = await self._options.open(self.url, node, self._options.settings(), self._options.at_open)
        self._exclude(port, termios.TIOCEXCL)
        return port

    def _explaining(self) -> AbstractContextManager[None]:
        return explaining(self.url, self._options.settings())

    def _explained(self, exc: OSError) -> OSError:
        return explained(self.name, exc)

    def _is_end(self, exc: OSError, *, of_data: bool) -> bool:
        return of_data or explained(self.name, exc).errno in GONE

    def revoked_error(self, error: RevokedError) -> SerialRevokedError:
        return SerialRevokedError.of(error)

    def _gone(self, why: object) -> None:
        self.finished |= why == network.FINISHED and not self.node.revoked
        super()._gone(why)

    def _exclude(self, port: Port, request: int) -> None:
        """Keep others out, or stop that: the kernel sets a bit, and asks no driver."""
        with contextlib.suppress(OSError):  # it is no terminal, or hung up
            if self._options.exclusive:
                fcntl.ioctl(port.fileno(), request)

    def _release(self) -> Awaitable[None] | None:
        self._exclude(self.line, termios.TIOCNXCL)  # or it lasts as long as any other program has the port open
        return super()._release()


class SerialStream(DeviceStream):
    """One stream on a `SerialDevice`, as `SerialDevice.open` returns it.

    Besides those of every stream, its operations are requests to the driver, which answer by the profile's `ioctl`.
    Threads make them: cancelled or kicked, they end when the driver has answered.

    :raises RevokedError: from each, if the port was revoked or unplugged, before or meanwhile
    :raises ~anyio.ClosedResourceError: from each, if this stream was closed, before or meanwhile
    :raises SerialException: from each, an OSError, if the driver refuses it, or no thread can be started
    """

    device: SerialDevice

    async def modem_lines(self) -> ModemLines:
        """Read the modem lines."""
        return await self.guarded(lambda: self.device.ask(lambda port: port.modem_lines()))

    async def set_modem_lines(self, *, rts: bool | None = None, dtr: bool | None = None) -> None:
        """Set the modem lines that are given."""
        await self.guarded(lambda: self.device.ask(lambda port: port.set_modem_lines(rts=rts, dtr=dtr)))

    async def set_baudrate(self, baudrate: int) -> None:
        """Change the baud rate, for all streams.

        :raises ValueError: if it is not a baud rate
        """
        await self.configure(baudrate=baudrate)

    async def configure(self, **settings: Any) -> None:
        """Change line settings, for all streams: `baudrate`, `bytesize`, `parity`, `stopbits`, `xonxoff`, `rtscts`. The
        next open uses those of `open_serial` again.

        :raises ValueError: if there is no such setting, or it makes no sense
        :raises SerialException: if the driver refuses one. All are as before then. Over the network, those before it
            stay changed
        """

        async def change() -> None:
            _check(self.device.name, settings)
            await self.device.ask(lambda port: port.configure(settings))

        await self.guarded(change)

    async def send_break(self, seconds: float = 0.25) -> None:
        """Hold the line in its break condition.

        :raises ValueError: if `seconds` is negative or not a number; nothing has changed then
        Cancellation: ends the break.
        """
        if not seconds >= 0.0:
            raise ValueError(f"seconds is {seconds!r}: give 0 or more")

        async def hold() -> None:
            try:
                await self.device.ask(lambda port: port.set_break(state=True))
                await anyio.sleep(seconds)
            finally:
                # What it says the first has said, or the port is gone; and a cancellation is not to be hidden.
                with contextlib.suppress(SerialException, RevokedError):
                    await self.device.ask(lambda port: port.set_break(state=False))

        await self.guarded(hold)

    async def drain(self) -> None:
        """Wait until the driver has sent what it was given.

        tcdrain(3) alone would report success when the device is unplugged meanwhile, and could not be ended on a
        stalled line. So the queue is watched first, and the port is asked after that.

        Cancellation: ends the waiting. Queued data stays queued.
        """

        async def wait() -> None:
            while not await sent():  # noqa: ASYNC110  # the driver tells nobody
                await anyio.sleep(0.01)

        async def sent() -> bool:
            async with self.shared.turn_to_write:  # or another stream's data could stall the tcdrain
                if await self.device.request(_queued):
                    return False
                await self.device.request(drain)
                await self.device.request(_queued)
                return True

        await self.guarded(wait)

    async def reset_input_buffer(self) -> None:
        """Throw away data that has come and was not received: by this stream; in the driver, by any stream."""
        await self.guarded(lambda: self.device.ask(lambda port: port.discard()))
        self.forget()

    async def reset_output_buffer(self) -> None:
        """Throw away data of all streams that the driver has not sent."""
        await self.guarded(lambda: self.device.request(lambda fd: termios.tcflush(fd, termios.TCOFLUSH)))

    async def _send_eof(self) -> None:
        raise NotImplementedError(f"{self.handle.path!r} is a serial port: it has no end of data but aclose()")


def _check(port: str, settings: Mapping[str, object]) -> None:
    for setting, given in settings.items():
        known = _KNOWN.get(setting, ())
        if setting == "baudrate":
            if type(given) is not int or not 0 < given < 2**31:
                raise ValueError(f"{port!r}: baudrate is {given!r}: give bits per second, such as 115200")
        elif given not in known:
            what = f"{setting} is {given!r}" if known else f"there is no setting {setting!r}"
            raise ValueError(f"{port!r}: {what}: give one of {', '.join(map(repr, known or _KNOWN))}")


def _queued(fd: int) -> int:
    """The bytes that the driver was given and has not sent."""
    return integer(fd, termios.TIOCOUTQ)
