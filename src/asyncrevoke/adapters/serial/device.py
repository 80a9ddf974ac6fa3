"""A serial device that several may use, and that is taken away from all of them when it is unplugged.

The device is a node; its streams are children of it. What tells that it is gone, whoever comes upon it, is one revocation
of the node: the end of data or EIO, ENODEV, EPERM, ENXIO in any operation, or a hang-up while nobody uses it. Whether the
path is still there tells nothing: after an unplug it often is.
"""

from __future__ import annotations

import contextlib
import fcntl
import logging
import math
import os
import select
import termios
from collections.abc import Awaitable, Callable, Generator, Mapping
from dataclasses import dataclass
from types import EllipsisType
from typing import Any, Literal, Self, TypeVar, Unpack

import anyio
import anyio.abc
import anyio.lowlevel
from anyio.streams.file import FileStreamAttribute

from asyncrevoke.answers import Answers
from asyncrevoke.lowlevel import (
    Deadline,
    Fd,
    OffLoop,
    Resource,
    Revokable,
    RevokedError,
    Shared,
    SharedOptions,
    SharedStream,
    Watch,
    off_loop,
    os_errors,
)

from . import network
from .lines import AtOpen, ModemLines, drain, integer
from .port import GONE, Backend, Port, SerialException, explained, explaining, open_descriptor
from .rfc2217 import open_rfc2217
from .transports import open_pyserial_asyncio, open_serialx

logger = logging.getLogger("asyncrevoke")

T = TypeVar("T")
_KNOWN: dict[str, tuple[object, ...]] = {
    "bytesize": (5, 6, 7, 8),
    "parity": ("N", "E", "O", "M", "S"),
    "stopbits": (1, 1.5, 2),
}
_SWITCHES = ("xonxoff", "rtscts", "dsrdtr", "exclusive")
BackendName = Literal["descriptor", "pyserial-asyncio", "serialx"]
BACKENDS: dict[str, Backend] = {
    "descriptor": open_descriptor,
    "pyserial-asyncio": open_pyserial_asyncio,
    "serialx": open_serialx,
}


class SerialRevokedError(RevokedError, SerialException):
    """`RevokedError` of a serial stream: a `serial.SerialException` too, where pyserial is installed."""

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

    It is opened by ``async with`` or by ``await``, in a thread. pyserial is needed: ``asyncrevoke[serial]``.

    Other programs may use the port, too. It ends only when the kernel hangs it up; reading nothing ends nothing. Line
    settings, HUPCL among them, stay as another program sets them: `SerialStream.set_baudrate` puts yours back. Modem lines
    are read anew each time. O_NONBLOCK is set again before each read and write, as a child that was given `fileno` may
    clear it.

    Over the network, a far end that answers nothing, or takes nothing, is noticed within half a minute. What it sent before
    it closed is received first. "closed by the far end" is the reason of an orderly end; a broken one has the kernel's words.

    :param url: the path of a device, or ``rfc2217://host:port`` (needs ``asyncrevoke[serialx]``; `backend` says nothing
        there), or ``socket://host:port``, which has no
        settings (not with serialx), or what else pyserial's `serial_for_url` takes that has a descriptor
    :param baudrate, bytesize, parity, stopbits, xonxoff, rtscts, dsrdtr: as pyserial's
    :param exclusive: keep others out: programs that lock it, too (flock), and all without CAP_SYS_ADMIN (TIOCEXCL)
    :param dtr, rts: how these lines are from the opening on. They are set together, before the line settings. Linux itself
        raises both in open(2), so a low one is high for a moment. None: they stay as Linux makes them. Where there are no
        lines, as on a pty, False is taken, and True is an error
    :param hangup_on_close: whether the last close lowers both (HUPCL). None: as it is
    :param low_latency: have the driver hand over at once what comes (ASYNC_LOW_LATENCY). False: as it is
    :param backend: who waits: "descriptor" is ours; "pyserial-asyncio" and "serialx" are transports of those libraries, for
        asyncio alone
    :param fan_out: each stream gets a copy of all that comes. Else one task may read at a time. What a stream has not
        received when the port is taken away is thrown away
    :param backlog: with `fan_out`, bytes that a stream may be behind before it is revoked as too slow. Nobody is waited for:
        a device sends on, and what the driver has no room for is lost to all
    :param history: with `fan_out`, bytes of what came last that are kept for streams opened with `replay`
    :param close_timeout: seconds to wait for the kernel to close it; a stalled line takes it 31
    :param idle_limit: seconds after which it is taken away if nothing has come, whether anybody reads or not. None: never
    :param owner: what the device is opened on; a `Name` gives it a generation
    :param name: for errors and reports; left out: the url
    :param answers: a profile of `asyncrevoke.answers` for its streams. Left out: as the owner's
    :raises ValueError: if an option makes no sense
    Opening raises, too:
    :raises SerialException: an OSError, with errno, the port and what to do: missing, busy, forbidden, no terminal; or no
        thread, descriptor or memory is left
    :raises ImportError: if the backend's library is not installed
    :raises RevokedError: if the owner was revoked, also meanwhile; the port is closed then
    Cancellation: waits half a second at most until what was opened is closed again; a thread closes what comes later.
    """
    line = (baudrate, bytesize, parity, stopbits, xonxoff, rtscts, dsrdtr, exclusive)
    at_open = AtOpen(dtr, rts, hangup_on_close, low_latency)
    options = _Options(
        os.fspath(url), *line, at_open, backend, backlog if fan_out else None, history, close_timeout, idle_limit
    )
    return SerialDevice(options, owner, name or options.url, answers)


@dataclass(frozen=True, slots=True)
class _Options:
    """What `open_serial` takes, and explains."""

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
        _check_baudrate(self.url, self.baudrate)
        if self.url.startswith(network.SCHEMES):
            network.address(self.url)
        for option in "close_timeout", "idle_limit":
            if (seconds := getattr(self, option)) is not None and not seconds > 0:
                raise ValueError(f"{option} is {seconds!r}: give seconds, more than 0")
        for option, known in _KNOWN.items():
            if (given := getattr(self, option)) not in known:
                raise ValueError(f"{self.url!r}: {option} is {given!r}: give one of {', '.join(map(repr, known))}")

    @property
    def open(self) -> Backend:
        return open_rfc2217 if self.url.startswith("rfc2217://") else BACKENDS[self.backend]

    def settings(self) -> dict[str, Any]:
        """Those of pyserial's."""
        return {option: getattr(self, option) for option in (*_KNOWN, "baudrate", *_SWITCHES)}


class SerialDevice(Resource):
    """An open serial port, as `open_serial` gives it. Closing it closes the port, and waits for that. A thread closes it;
    where none can be started, the loop's own does.

    :ivar url: what was opened
    :ivar finished: it is gone because the far end of a connection has closed it, in order
    """

    def __init__(self, options: _Options, owner: Revokable | None, name: str, answers: Answers | EllipsisType) -> None:
        self.url = options.url
        self.finished = False
        self._options = options
        self._owner = owner
        self._name = name
        self._answers = answers
        exact = options.open is open_descriptor
        self._shared = Shared(
            self._receive,
            self._send_some,
            backlog=options.backlog,
            exact=exact,
            history=options.history,
            failed=self.failed,
        )
        self._used = False
        self._node: Revokable | None = None
        self._port: Port | None = None
        self._watch: Watch | None = None

    def __await__(self) -> Generator[Any, Any, Self]:
        """Open it."""
        return self._open().__await__()

    async def __aenter__(self) -> Self:
        return self if self._node is not None else await self

    async def _open(self) -> Self:
        if self._used:
            raise RuntimeError(f"{self.url!r} was opened already: call open_serial() again")
        self._used = True
        try:
            async with (self._owner or Revokable()).opening(self._name, answers=self._answers) as node:
                settings = self._options.settings()
                with explaining(self.url, settings):
                    self._port = await self._options.open(self.url, node, settings, self._options.at_open)
                    self._shared.fd = self._port.fd
                    node.release = self._release
                    self._exclude(termios.TIOCEXCL)
                    # Once for each event: what a far end has sent before it closed stays there to be received.
                    events = select.EPOLLRDHUP | select.EPOLLET
                    if self._options.idle_limit is not None:
                        events |= select.EPOLLIN
                        self._port.deadline = Deadline(self._options.idle_limit, self._idle)
                        if self._port.fd is not None:
                            self._port.fd.heard = self._port.deadline.put_off
                    self._watch = Watch(self._port, self._stirred, events=events, closes=False)
                self._node = node
        except RevokedError as error:
            raise SerialRevokedError.of(error) from None
        return self

    @property
    def node(self) -> Revokable:  # type: ignore[override]  # it has none before
        """The node that is taken away, once it is open."""
        return self._opened[0]

    def open(self, name: str = "", **options: Unpack[SharedOptions]) -> SerialStream:
        """Open a stream on the port.

        :param options: as `SharedOptions` says
        :raises RevokedError, ~anyio.ClosedResourceError: if the device is gone
        """
        try:
            return SerialStream(self, self._shared, name, **options)
        except RevokedError as error:
            raise SerialRevokedError.of(error) from None

    def discard(self) -> None:
        """Throw away what was sent and the driver has not: what is sent next comes first. It does not wait.

        :raises RevokedError, ~anyio.ClosedResourceError: if the device is gone
        :raises OSError: if the driver refuses it
        """
        with self.node.using(), os_errors(self.url):
            termios.tcflush(self.fileno(), termios.TCOFLUSH)

    def failed(self, exc: Exception) -> RevokedError:
        """Take it from all, as an operation on its descriptor has failed or ended so. It returns the operation's error."""
        ended = isinstance(exc, anyio.EndOfStream | anyio.BrokenResourceError)
        self._gone((exc.__cause__ or self._opened[1].why_over() or "end of data") if ended else exc)
        return RevokedError(self.node, in_flight=True)

    def _gone(self, why: object) -> None:
        self.finished |= why == network.FINISHED and not self.node.revoked
        self.node.revoke(f"unplugged: {why}")

    def fileno(self) -> int:
        """The port's descriptor."""
        return self._opened[1].fileno()

    @property
    def fd(self) -> Fd:
        """The port's descriptor with our own waits on it, for what waits otherwise than our streams.

        :raises ValueError: if a library waits: open it with the backend "descriptor"
        """
        if (fd := self._opened[1].fd) is None:
            raise ValueError(
                f"{self.url!r}: open it with the backend 'descriptor'; {self._options.backend} waits itself"
            )
        return fd

    @property
    def serial(self) -> Any:
        """The library's own object for the port. What is done with it is not guarded, and may block."""
        return self._opened[1].serial

    @property
    def _opened(self) -> tuple[Revokable, Port]:
        if self._node is None or self._port is None:
            raise RuntimeError(f"{self.url!r} is not open: use `async with`, or await it")
        return self._node, self._port

    def __repr__(self) -> str:
        return f"<SerialDevice {self.url!r} {'not open' if self._node is None else f'of {self._node!r}'}>"

    def _stirred(self) -> None:
        port = self._opened[1]
        why = port.why_over()
        if why is not None:
            self._gone(why)
        elif port.deadline is not None:
            port.deadline.put_off()

    def _idle(self) -> None:
        self.node.revoke(f"nothing has come for {self._options.idle_limit:g} s")

    async def _receive(self, max_bytes: int) -> bytes:
        return await self._attempt(lambda: self._opened[1].receive(max_bytes))

    async def _send_some(self, item: memoryview) -> int:
        return await self._attempt(lambda: self._opened[1].send_some(item))

    async def _attempt(self, operation: Callable[[], Awaitable[T]]) -> T:
        """Await what goes to the port, inside an operation of a stream's. If the port is gone, it is taken from all.

        :raises SerialException: if the driver refuses it
        """
        try:
            return await operation()
        except (anyio.EndOfStream, anyio.BrokenResourceError) as exc:
            error = self.failed(exc)
        except OSError as exc:
            refused = explained(self._name, exc)
            if refused.errno not in GONE:
                raise refused from exc
            error = self.failed(exc)
        await anyio.lowlevel.checkpoint()  # where the kick comes, unless the owner opened it with none
        raise error

    async def _request(self, call: Callable[[int], T]) -> T:
        """Have a thread make a request to the driver, as `_attempt`. It is short, and waited for in any case."""

        def request() -> T:
            with os_errors(self._name):
                return call(self.fileno())

        return await self._attempt(lambda: off_loop(request, patience=math.inf))

    async def _set_baudrate(self, baudrate: int) -> None:
        """Change the baud rate, as `_request`."""
        _check_baudrate(self._name, baudrate)
        await self._ask(lambda port: port.set_baudrate(baudrate))

    async def _reset_input_buffer(self) -> None:
        """Throw away what has come, as `_request`."""
        await self._ask(lambda port: port.discard())

    async def _ask(self, request: Callable[[Port], Awaitable[T]]) -> T:
        """Have the port itself make a request, as `_attempt`."""

        async def ask() -> T:
            with os_errors(self._name):
                return await request(self._opened[1])

        return await self._attempt(ask)

    def _exclude(self, request: int) -> None:
        """Keep others out, or not any more: the kernel sets a bit, and asks no driver."""
        assert self._port is not None
        with contextlib.suppress(OSError):  # it is no terminal, or hung up
            if self._options.exclusive:
                fcntl.ioctl(self._port.fileno(), request)

    def _release(self) -> Awaitable[None] | None:
        assert self._port is not None
        for background in self._watch, self._port.deadline:
            if background is not None:
                background.close()
        self._exclude(termios.TIOCNXCL)  # or it lasts as long as any other program has the port open
        closing = self._port.close()
        return None if closing is None else self._closed(closing)

    async def _closed(self, closing: OffLoop[object]) -> None:
        try:
            with anyio.fail_after(self._options.close_timeout):
                await closing
        except anyio.get_cancelled_exc_class():  # by a loop that ends: nobody is left to be told
            if not closing.done():
                logger.warning("%r: its line is stalled, and the loop ends before the kernel has closed it", self.url)
        except TimeoutError as exc:
            raise TimeoutError(
                f"{self.url!r}: the kernel has not closed it in {self._options.close_timeout:g} s, as its line is stalled; it goes on"
            ) from exc


class SerialStream(SharedStream):
    """One stream on a `SerialDevice`, as `SerialDevice.open` gives it.

    Besides those of every stream, its operations are requests to the driver, which answer by the profile's `ioctl`. They
    are made in threads: cancelled or kicked, they end when the driver has answered.

    :raises RevokedError: from each, if the port was or is taken away or unplugged
    :raises ~anyio.ClosedResourceError: from each, if this stream was or is closed
    :raises SerialException: from each, an OSError, if the driver refuses it, or no thread can be started
    """

    def __init__(self, device: SerialDevice, shared: Shared, name: str, **options: Unpack[SharedOptions]) -> None:
        super().__init__(shared, device.node, name, tty=True, **options)
        self._device = device

    @property
    def extra_attributes(self) -> Mapping[Any, Callable[[], Any]]:
        return {**super().extra_attributes, FileStreamAttribute.fileno: self._device.fileno}

    async def modem_lines(self) -> ModemLines:
        """Read the lines."""
        return await self._guarded(lambda: self._device._ask(lambda port: port.modem_lines()))

    async def set_modem_lines(self, *, rts: bool | None = None, dtr: bool | None = None) -> None:
        """Set those that are given."""
        await self._guarded(lambda: self._device._ask(lambda port: port.set_modem_lines(rts=rts, dtr=dtr)))

    async def set_baudrate(self, baudrate: int) -> None:
        """Change the baud rate, for all streams.

        :raises ValueError: if it is none
        """
        await self._guarded(lambda: self._device._set_baudrate(baudrate))

    async def send_break(self, seconds: float = 0.25) -> None:
        """Hold the line in its break condition.

        Cancellation: ends the break.
        """

        async def hold() -> None:
            try:
                await self._device._ask(lambda port: port.set_break(state=True))
                await anyio.sleep(seconds)
            finally:
                # What it says the first has said, or the port is gone; and a cancellation is not to be hidden.
                with contextlib.suppress(SerialException, RevokedError):
                    await self._device._ask(lambda port: port.set_break(state=False))

        await self._guarded(hold)

    async def drain(self) -> None:
        """Wait until the driver has sent what it was given.

        tcdrain(3) alone would report success when the device is unplugged meanwhile, and on a stalled line could not be
        ended: so its queue is watched first, and the port asked after it.

        Cancellation: ends the waiting; what is queued stays so.
        """

        async def wait() -> None:
            while not await sent():  # noqa: ASYNC110  # the driver tells nobody
                await anyio.sleep(0.01)

        async def sent() -> bool:
            async with self.shared.turn_to_write:  # or another stream's data could stall the tcdrain
                if await self._device._request(_queued):
                    return False
                await self._device._request(drain)
                await self._device._request(_queued)
                return True

        await self._guarded(wait)

    async def reset_input_buffer(self) -> None:
        """Throw away what has come and was not received, by this stream; in the driver, by any."""
        await self._guarded(self._device._reset_input_buffer)
        self.forget()

    async def reset_output_buffer(self) -> None:
        """Throw away what the driver was given by any stream, and has not sent."""
        await self._guarded(lambda: self._device._request(lambda fd: termios.tcflush(fd, termios.TCOFLUSH)))

    async def _guarded(self, operation: Callable[[], Awaitable[T]]) -> T:
        await anyio.lowlevel.checkpoint()
        try:
            with self.handle.using():
                return await operation()
        except RevokedError as error:
            self._answer(error, "ioctl")
            raise

    async def _send_eof(self) -> None:
        raise NotImplementedError(f"{self.handle.path!r} is a serial port: it has no end of data but aclose()")

    def _answer(self, error: RevokedError, kind: Literal["read", "write", "ioctl"]) -> None:
        super()._answer(error, kind)
        raise SerialRevokedError.of(error) from error.__cause__


def _check_baudrate(port: str, baudrate: int) -> None:
    if not (isinstance(baudrate, int) and not isinstance(baudrate, bool) and 0 < baudrate < 2**31):
        raise ValueError(f"{port!r}: baudrate is {baudrate!r}: give bits per second, such as 115200")


def _queued(fd: int) -> int:
    """The bytes that the driver was given and has not sent."""
    return integer(fd, termios.TIOCOUTQ)
