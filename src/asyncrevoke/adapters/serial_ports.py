"""An opened serial port, by whichever library: three backends with one face, `Port`.

None of them blocks the loop: on a stalled line the kernel takes half a minute to close, and lets an open wait for that,
so both are done in threads. What is known of the libraries' faults is fenced off here.
"""

from __future__ import annotations

import asyncio
import contextlib
import errno
import functools
import importlib
import io
import os
import termios
from collections.abc import Awaitable, Callable, Iterator
from typing import TYPE_CHECKING, Any, Protocol

import anyio

from asyncrevoke import FdStream, OffLoop, off_loop

if TYPE_CHECKING:
    from serial import SerialException
else:
    try:
        from serial import SerialException
    except ImportError:  # serialx does without pyserial
        SerialException = OSError

#: What the kernel answers when the device behind a port is gone; EPERM while its driver lets go of it.
GONE = frozenset((errno.EIO, errno.ENODEV, errno.ENXIO, errno.EPERM))

__all__ = ["BACKENDS", "GONE", "Port", "SerialException", "explained"]

_BACKLOG = 65536  # bytes of a transport's that nobody has read, before it is stopped


class Port(Protocol):
    """An open port. One task reads at a time, and one writes."""

    @property
    def exact(self) -> bool:
        """Whether `send_some`, cancelled, has sent nothing."""

    @property
    def serial(self) -> Any:
        """The library's own object."""

    def fileno(self) -> int:
        """The descriptor, for requests to the driver. It stays the port's until `close`."""

    async def receive(self, max_bytes: int, /) -> bytes:
        """Receive some bytes. The end of data, or an error, means that the port is gone."""

    async def send_some(self, item: memoryview, /) -> int:
        """Send at least one byte, and return how many were taken."""

    def discard(self) -> None:
        """Throw away what the driver has handed over and nobody received."""

    def set_baudrate(self, baudrate: int, /) -> None:
        """Change it: a request to the driver, which is no call for the loop's thread."""

    def close(self) -> OffLoop[object] | None:
        """Begin to close it, when nobody is inside any more. Awaiting what it returns is awaiting that it is closed."""


Backend = Callable[[str, str, dict[str, Any]], Awaitable[Port]]


async def open_descriptor(url: str, name: str, settings: dict[str, Any]) -> Port:
    """Our own waits, on the descriptor of pyserial's `Serial`, which knows the settings."""
    return _DescriptorPort(await _open_pyserial(url, settings), name)


async def open_pyserial_asyncio(url: str, _: str, settings: dict[str, Any]) -> Port:
    """A transport of pyserial-asyncio."""
    serial_asyncio = _import("serial_asyncio", "serial")
    loop = _asyncio_loop("pyserial-asyncio")
    serial = await _open_pyserial(url, settings)
    close = serial.close
    # Its transport does both in the loop, even when it aborts: as long as a stalled line is stalled.
    serial.flush = serial.close = lambda: None
    serial.is_open = False  # else it asks for the timeouts that it has, and all settings are made anew, in the loop
    port = _TransportPort(loop)
    transport, _ = await serial_asyncio.connection_for_serial(loop, lambda: port, serial)
    serial.is_open = True
    port.connection_made(transport)
    return port.opened(serial.fileno(), functools.partial(setattr, serial, "baudrate"), close)


async def open_serialx(url: str, _: str, settings: dict[str, Any]) -> Port:
    """A transport of serialx, which opens in a thread itself."""
    serialx = _import("serialx", "serialx")
    loop = _asyncio_loop("serialx")
    settings = {"byte_size" if option == "bytesize" else option: value for option, value in settings.items()}
    port = _TransportPort(loop)
    with _explained(url, settings, serialx.SerialException):
        transport, _ = await serialx.create_serial_connection(loop, lambda: port, url, **settings)
        try:
            serial = transport.serial
            close = _keep_open(transport, port, serial.fileno())

            def configure() -> None:
                try:
                    serial.reconfigure_port()
                except BaseException:
                    close()
                    raise

            serial._min_read_size = 1  # with 0, a read of what was flushed meanwhile finds an end of data: an unplug
            transport.pause_reading()
            await off_loop(configure, late=lambda _: close())
            transport.resume_reading()
        except BaseException:
            transport.abort()
            raise
    return port.opened(serial.fileno(), lambda rate: serial.reconfigure_port(baudrate=rate), close)


def _keep_open(transport: Any, port: _TransportPort, fd: int) -> Callable[[], None]:
    """Have a transport of serialx leave its descriptor to us, whenever it is lost. It returns what closes it."""
    for name in "_fileno", "_call_connection_lost", "_fatal_error":
        if not hasattr(transport, name):
            raise ImportError(f"this version of serialx is not known here, as it has no {name}: take another backend")

    async def lost(exc: BaseException | None) -> None:
        port.connection_lost(exc)

    def close() -> None:
        transport._fileno = None
        os.close(fd)

    transport._call_connection_lost = lost  # its own closes in a pool, whose threads a loop that ends would wait for
    return close


BACKENDS: dict[str, Backend] = {
    "descriptor": open_descriptor,
    "pyserial-asyncio": open_pyserial_asyncio,
    "serialx": open_serialx,
}


async def _open_pyserial(url: str, settings: dict[str, Any]) -> Any:
    """A `Serial`, opened in a thread. Its reads and writes, which are its transport's, do not wait."""
    serial = _import("serial", "serial")

    def open_url() -> Any:
        # The last option sets VMIN to 1: with 0, a read that finds no data gives the end of data, as a hang-up does.
        port = serial.serial_for_url(url, timeout=0, write_timeout=0, inter_byte_timeout=0, **settings)
        try:
            port.fileno()
        except BaseException:
            port.close()
            raise
        return port

    with _explained(url, settings):
        return await off_loop(open_url, late=lambda port: port.close())


def _close_off_loop(close: Callable[[], object]) -> OffLoop[object] | None:
    try:
        return off_loop(close, patience=1.0)  # most ports close at once, also when the loop ends
    except anyio.NoEventLoopError:  # nobody who could be kept waiting
        close()
        return None


@contextlib.contextmanager
def _explained(url: str, settings: dict[str, Any], refusal: type[Exception] = ValueError) -> Iterator[None]:
    """Say of an open that failed what is wrong, with the name of the port and what to do."""
    try:
        yield
    except io.UnsupportedOperation as exc:
        raise ValueError(f"{url!r} has no descriptor to wait for: give the path of a device") from exc
    except OverflowError as exc:
        raise ValueError(f"{url!r}: the kernel takes no baudrate of {settings['baudrate']!r}") from exc
    except (ValueError, refusal) as exc:
        raise ValueError(f"{url!r}: {exc}") from exc
    except (OSError, termios.error) as exc:
        raise explained(url, exc) from exc


def explained(port: str, exc: BaseException) -> OSError:
    """The error of a request that failed, with the name of the port and what to do."""
    number = next((number for number in map(_number, _causes(exc)) if number is not None), None)
    return SerialException(number or errno.EIO, _HINTS.get(number) or f"it failed: {exc}", port)


_HINTS: dict[int | None, str] = {
    errno.ENOENT: "there is no such port: is it plugged in?",
    errno.ENXIO: "the device behind it is gone: wait until it is plugged in again",
    errno.ENODEV: "the device behind it is gone: wait until it is plugged in again",
    errno.EIO: "the device behind it does not answer: plug it in again",
    errno.EACCES: "you may not use it: be in the group that owns it, such as dialout",
    errno.EPERM: "you may not use it: be in the group that owns it, such as dialout",
    errno.EBUSY: "another program has it open, or this one has already: find it by `fuser`",
    errno.EAGAIN: "another program has it open, or this one has already: find it by `fuser`",
    errno.ENOTTY: "it is no serial port, or its driver cannot do that, as a pty has no modem lines",
    errno.EISDIR: "it is no serial port",
    errno.EINVAL: "it does not take these settings",
    errno.ECONNREFUSED: "nobody serves it there",
}


def _causes(exc: BaseException | None) -> Iterator[BaseException]:
    while exc is not None:
        yield exc
        exc = exc.__cause__ or exc.__context__


def _number(exc: BaseException) -> int | None:
    number = exc.args[0] if isinstance(exc, termios.error) else getattr(exc, "errno", None)
    return number if isinstance(number, int) else None


def _import(module: str, extra: str) -> Any:
    try:
        return importlib.import_module(module)
    except ImportError as exc:
        raise ImportError(f"{module} is not installed: pip install 'asyncrevoke[{extra}]'") from exc


def _asyncio_loop(backend: str) -> asyncio.AbstractEventLoop:
    try:
        return asyncio.get_running_loop()
    except RuntimeError as exc:
        raise RuntimeError(f"the transports of {backend} need asyncio: take the backend 'descriptor'") from exc


class _DescriptorPort:
    exact = True

    def __init__(self, serial: Any, name: str) -> None:
        self.serial = serial
        self._stream = FdStream(serial.fileno(), name=name, close=lambda _: None)  # `close` does that

    def fileno(self) -> int:
        return self._stream.fileno()

    async def receive(self, max_bytes: int) -> bytes:
        return await self._stream.receive(max_bytes)

    async def send_some(self, item: memoryview) -> int:
        return await self._stream.send_some(item)

    def discard(self) -> None:
        """Nothing is: it is read when it is asked for."""

    def set_baudrate(self, baudrate: int) -> None:
        self.serial.baudrate = baudrate

    def close(self) -> OffLoop[object] | None:
        self._stream.handle.close()
        return _close_off_loop(self.serial.close)


class _TransportPort(asyncio.Protocol):
    """The port behind an asyncio transport. It stores no exception and shares no future, which could be poisoned."""

    exact = False  # what is left in a transport's buffer is thrown away

    def __init__(self, loop: asyncio.AbstractEventLoop) -> None:
        self._loop = loop
        self._transport: Any = None
        self._reader = anyio.ResourceGuard("reading from")
        self._unread = bytearray()
        self._reading = True
        self._writing = True  # the transport's buffer is empty
        self._lost = False
        self._why: BaseException | None = None
        self._changed = anyio.Event()

    def opened(self, fd: int, set_baudrate: Callable[[int], object], close: Callable[[], object]) -> _TransportPort:
        """What is known when the transport is open. `fd` stays open until `close` is called."""
        self._fd = fd
        self._set_baudrate = set_baudrate
        self._close = close
        return self

    # -- the transport tells --

    def connection_made(self, transport: Any) -> None:
        transport.set_write_buffer_limits(0)
        transport._fatal_error = self._failed
        self._transport = transport
        self.serial = transport.serial
        self._change()

    def data_received(self, data: bytes) -> None:
        self._unread += data
        if self._reading and len(self._unread) > _BACKLOG:
            self._reading = False
            self._transport.pause_reading()
        self._change()

    def pause_writing(self) -> None:
        self._writing = False

    def resume_writing(self) -> None:
        self._writing = True
        self._change()

    def connection_lost(self, exc: BaseException | None) -> None:
        self._lost = True
        self._why = self._why or exc
        self._change()

    def _failed(self, exc: BaseException, _: str = "") -> None:
        """In place of a transport's own, which tells the loop's error handler, too: an unplug is no case for that."""
        self._why = exc
        self._transport.abort()

    def _change(self) -> None:
        changed, self._changed = self._changed, anyio.Event()
        changed.set()

    # -- the port is asked --

    def fileno(self) -> int:
        return self._fd

    async def receive(self, max_bytes: int) -> bytes:
        with self._reader:
            while not self._unread:
                self._check()
                if not self._reading:
                    self._reading = True
                    self._transport.resume_reading()
                await self._changed.wait()
        data = bytes(self._unread[:max_bytes])
        del self._unread[:max_bytes]
        return data

    async def send_some(self, item: memoryview) -> int:
        await self._sent()  # what somebody sent who was cancelled: else its buffer has no bound
        try:
            self._transport.write(bytes(item))
        except OSError as exc:
            raise anyio.BrokenResourceError(str(exc)) from exc
        await self._sent()
        return len(item)

    async def _sent(self) -> None:
        self._check()
        while not self._writing or self._transport.is_closing():  # then it is lost, which we have not been told yet
            await self._changed.wait()
            self._check()

    def _check(self) -> None:
        if self._lost:
            raise anyio.BrokenResourceError(f"{self._why or 'closed'}") from self._why

    def discard(self) -> None:
        self._unread.clear()

    def set_baudrate(self, baudrate: int) -> None:
        self._set_baudrate(baudrate)

    def close(self) -> OffLoop[object] | None:
        self._fd = -1
        lost = self._transport.is_closing() and not self._transport.get_write_buffer_size()  # or about to be told so
        if not (lost or self._loop.is_closed()):  # twice is once too often for pyserial-asyncio
            self._transport.abort()
        return _close_off_loop(self._close)  # which the loop has no callbacks for any more
