"""An opened serial port, by whichever library: three backends with one face, `Port`.

None of them blocks the loop: on a stalled line the kernel takes half a minute to close, and lets an open wait for that,
so both are done in threads. What is known of the libraries' faults is fenced off here.
"""

import contextlib
import errno
import fcntl
import functools
import importlib
import io
import math
import os
import select
import socket
import termios
import types
from collections.abc import Awaitable, Callable, Iterator
from typing import TYPE_CHECKING, Any, Protocol, TypeVar

from asyncrevoke.lowlevel import Deadline, Fd, OffLoop, Revokable, close_off_loop, off_loop

from . import network
from .lines import AtOpen, ModemLines, discard_input, modem_lines, set_break, set_modem_lines

if TYPE_CHECKING:
    from serial import SerialException as SerialException  # noqa: PLC0414  # which is handed on
else:
    try:
        from serial import SerialException
    except ImportError:  # serialx does without pyserial
        SerialException = OSError

#: What the kernel answers when the device behind a port is gone; EPERM while its driver lets go of it.
GONE = frozenset((errno.EIO, errno.ENODEV, errno.ENXIO, errno.EPERM))
#: Seconds for which a cancelled open waits until the port is closed again, as most are at once: the next open needs it free.
PATIENCE = 0.5

T = TypeVar("T")


class Port(Protocol):
    """An open port. One task reads at a time, and one writes.

    :ivar fd: the descriptor with our own waits on it, or None where a library waits
    :ivar deadline: put off by whatever takes from the descriptor what has come: the watch may find nothing there then
    """

    fd: Fd | None
    deadline: Deadline | None

    @property
    def serial(self) -> Any:
        """The library's own object."""

    def fileno(self) -> int:
        """The descriptor, for requests to the driver. It stays the port's until `close`."""

    async def receive(self, max_bytes: int, /) -> bytes:
        """Receive some bytes. The end of data, or an error, means that the port is gone."""

    async def send_some(self, item: memoryview, /) -> int:
        """Send at least one byte, and return how many were taken."""

    def why_over(self) -> object:
        """Why it is over, or None: it is not, or what has come is not received yet."""

    # Requests, which are waited for in any case: a driver may be inside the descriptor.

    async def discard(self) -> None:
        """Throw away what has come and nobody received."""

    async def set_baudrate(self, baudrate: int, /) -> None:
        """Change it."""

    async def modem_lines(self) -> ModemLines:
        """Read the lines."""

    async def set_modem_lines(self, **lines: bool | None) -> None:
        """Set those that are given."""

    async def set_break(self, *, state: bool) -> None:
        """Begin or end a break."""

    def close(self) -> OffLoop[object] | None:
        """Begin to close it, when nobody is inside any more. Awaiting what it returns is awaiting that it is closed."""


#: Opens a port, and has its node release it as soon as there is something to release.
Backend = Callable[[str, Revokable, dict[str, Any], AtOpen], Awaitable[Port]]


async def open_descriptor(url: str, node: Revokable, settings: dict[str, Any], at_open: AtOpen) -> Port:
    """Our own waits, on the descriptor of pyserial's `Serial`, which knows the settings."""
    return _DescriptorPort(await open_pyserial(url, node, settings, at_open), node)


async def open_pyserial(url: str, node: Revokable, settings: dict[str, Any], at_open: AtOpen) -> Any:
    """A `Serial`, opened in a thread. Its reads and writes, which are its transport's, do not wait."""
    serial = imported("serial", "serial")

    def open_url() -> Any:
        # The last option sets VMIN to 1: with 0, a read that finds no data gives the end of data, as a hang-up does.
        options = {"timeout": 0, "write_timeout": 0, "inter_byte_timeout": 0, "do_not_open": True, **settings}
        port = serial.serial_for_url(url, **options)
        if "://" not in url:
            _open_path(port, at_open)
            return port
        try:
            if url.startswith("socket://"):
                _connect(port)
            else:
                port.open()
            at_open.apply(port.fileno())
        except BaseException:
            port.close()
            raise
        return port

    port = await off_loop(open_url, late=lambda port: port.close(), patience=PATIENCE)
    node.release = functools.partial(close_off_loop, port.close)
    return port


def _open_path(port: Any, at_open: AtOpen) -> None:
    """Open what pyserial's `open` would, without the pipes that end its own waits, four descriptors."""
    fd = os.open(port.port, os.O_RDWR | os.O_NOCTTY | os.O_NONBLOCK)
    try:
        if port.exclusive:
            fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)  # before anything is changed
        at_open.apply(fd)
        port.fd, port.is_open = fd, True
        port.baudrate = port.baudrate  # makes all settings
        termios.tcflush(fd, termios.TCIFLUSH)
    except BaseException:
        port.is_open = False
        os.close(fd)
        raise
    port.close = types.MethodType(_close_path, port)


def _close_path(port: Any) -> None:
    if port.is_open:
        port.is_open = False
        os.close(port.fd)


def _connect(port: Any) -> None:
    """Open what pyserial's `open` would, but keep what the far end has sent already, and notice when it is gone."""
    port.logger, port._socket, port.is_open = None, network.connect(port.port), True
    port.close = types.MethodType(_disconnect, port)


def _disconnect(port: Any) -> None:
    if port.is_open:
        port.is_open = False
        network.disconnect(port._socket)


def why_over(fd: int, *, unread: bool = False) -> object:
    """Why the port is over, or None: it is not, or what a far end of a connection has sent is not received yet.

    :param unread: some of that has been taken from the descriptor
    """
    try:
        connection = socket.socket(fileno=fd)
    except OSError:
        poll = select.poll()
        poll.register(fd, 0)  # which tells of hang-ups and errors unasked
        return "the kernel has hung it up" if poll.poll(0) else None
    try:
        return None if unread else network.why_over(connection)
    finally:
        connection.detach()


@contextlib.contextmanager
def explaining(url: str, settings: dict[str, Any]) -> Iterator[None]:
    """Say of an open that failed what is wrong, with the name of the port and what to do."""
    try:
        yield
    except io.UnsupportedOperation as exc:
        raise ValueError(f"{url!r} has no descriptor to wait for: give the path of a device") from exc
    except OverflowError as exc:
        raise ValueError(f"{url!r}: the kernel takes no baudrate of {settings['baudrate']!r}") from exc
    except ValueError as exc:
        raise ValueError(f"{url!r}: {exc}") from exc
    except (OSError, termios.error) as exc:
        raise explained(url, exc) from exc


def explained(port: str, exc: BaseException) -> OSError:
    """The error of a request that failed, with the name of the port and what to do."""
    number, words = next(filter(None, map(_told, _causes(exc))), (errno.EIO, f"it failed: {exc}"))
    if number == errno.EAGAIN:  # it is locked; where TIOCEXCL keeps it, the kernel says EBUSY
        number = errno.EBUSY
    return SerialException(number, _HINTS.get(number, words), port)


_HINTS: dict[int, str] = {
    errno.ENOENT: "there is no such port: is it plugged in?",
    errno.ENXIO: "the device behind it is gone: wait until it is plugged in again",
    errno.ENODEV: "the device behind it is gone: wait until it is plugged in again",
    errno.EIO: "the device behind it does not answer: plug it in again",
    errno.EACCES: "you may not use it: be in the group that owns it, such as dialout",
    errno.EPERM: "you may not use it: be in the group that owns it, such as dialout",
    errno.EBUSY: "another program has it open, or this one has already: find it by `fuser`",
    errno.ENOTTY: "it is no serial port, or its driver cannot do that, as a pty has no modem lines",
    errno.EISDIR: "it is no serial port",
    errno.EINVAL: "it does not take these settings",
    errno.ECONNREFUSED: "nobody serves it there",
}


def _causes(exc: BaseException | None) -> Iterator[BaseException]:
    while exc is not None:
        yield exc
        exc = exc.__cause__ or exc.__context__


def _told(exc: BaseException) -> tuple[int, str] | None:
    """The number and the words of the kernel's, if the error has them."""
    match exc.args if isinstance(exc, (OSError, termios.error)) else ():
        case int() as number, str() as words:
            return number, words
    return None


def imported(module: str, extra: str) -> Any:
    try:
        return importlib.import_module(module)
    except ImportError as exc:
        raise ImportError(f"{module} is not installed: pip install 'asyncrevoke[{extra}]'") from exc


class Driven:
    """What is asked of a driver, by threads."""

    def fileno(self) -> int:
        raise NotImplementedError

    async def discard(self) -> None:
        await self._request(discard_input)

    async def modem_lines(self) -> ModemLines:
        return await self._request(modem_lines)

    async def set_modem_lines(self, **lines: bool | None) -> None:
        await self._request(lambda fd: set_modem_lines(fd, **lines))

    async def set_break(self, *, state: bool) -> None:
        await self._request(lambda fd: set_break(fd, state=state))

    async def _request(self, call: Callable[[int], T]) -> T:
        return await off_loop(lambda: call(self.fileno()), patience=math.inf)


class _DescriptorPort(Driven):
    fd: Fd | None
    deadline: Deadline | None = None

    def __init__(self, serial: Any, node: Revokable) -> None:
        self.serial = serial
        self.fd = self._fd = Fd(serial.fileno(), node, lambda _: None, shared=True)  # `close` closes it

    def fileno(self) -> int:
        return self._fd.number

    async def receive(self, max_bytes: int) -> bytes:
        return await self._fd.read(max_bytes)

    async def send_some(self, item: memoryview) -> int:
        return await self._fd.write_some(item)

    def why_over(self) -> object:
        return why_over(self._fd.number)

    async def set_baudrate(self, baudrate: int) -> None:
        await off_loop(functools.partial(setattr, self.serial, "baudrate", baudrate), patience=math.inf)

    def close(self) -> OffLoop[object] | None:
        self._fd.close()
        return close_off_loop(self.serial.close)
