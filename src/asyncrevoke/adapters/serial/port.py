"""An opened serial port, by any of the libraries: three backends with one interface, `Port`.

None of them blocks the loop. On a stalled line the kernel takes half a minute to close, and lets an open wait for that.
So threads do both. Known faults of the libraries are worked around here.
"""

import contextlib
import errno
import functools
import importlib
import io
import math
import os
import socket
import types
from collections.abc import Awaitable, Callable, Iterator, Mapping
from typing import TYPE_CHECKING, Any, Protocol, TypeVar

from asyncrevoke.adapters.device.device import PATIENCE, FdLine, Line, why_hung_up
from asyncrevoke.adapters.device.explained import HINTS, explained as device_explained
from asyncrevoke.linux import fcntl, termios
from asyncrevoke.lowlevel import Fd, Revokable, close_off_loop, off_loop

from . import network
from .lines import AtOpen, ModemLines, check_taken, discard_input, modem_lines, set_break, set_modem_lines

if TYPE_CHECKING:
    from serial import SerialException as SerialException  # noqa: PLC0414  # which is handed on
else:
    try:
        from serial import SerialException
    except ImportError:  # serialx does without pyserial
        SerialException = OSError

#: The kernel's answers when the device behind a port is gone; EPERM while its driver releases it.
GONE = frozenset((errno.EIO, errno.ENODEV, errno.ENXIO, errno.EPERM))

T = TypeVar("T")


class Port(Line, Protocol):
    """An open port."""

    @property
    def serial(self) -> Any:
        """The library's own object."""

    # Requests, which are waited for in any case: a driver may be inside the descriptor.

    async def discard(self) -> None:
        """Throw away data that has come and nobody received."""

    async def configure(self, settings: Mapping[str, Any], /) -> None:
        """Change these settings, by pyserial's names: all of them or none."""

    async def modem_lines(self) -> ModemLines:
        """Read the lines."""

    async def set_modem_lines(self, **lines: bool | None) -> None:
        """Set those that are given."""

    async def set_break(self, *, state: bool) -> None:
        """Begin or end a break."""


#: Opens a port, and gives its node a release as soon as there is something to release.
Backend = Callable[[str, Revokable, dict[str, Any], AtOpen], Awaitable[Port]]


async def open_descriptor(url: str, node: Revokable, settings: dict[str, Any], at_open: AtOpen) -> Port:
    """Open with our own waits, on the descriptor of pyserial's `Serial`, which knows the settings."""
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
    """Open a path like pyserial's `open`, but without the pipes that end its own waits. They take four descriptors."""
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
    """Connect like pyserial's `open`, but keep what the far end has sent already, and notice when it is gone."""
    port.logger, port._socket, port.is_open = None, network.connect(port.port), True
    port.close = types.MethodType(_disconnect, port)


def _disconnect(port: Any) -> None:
    if port.is_open:
        port.is_open = False
        network.disconnect(port._socket)


def why_over(fd: int, *, unread: bool = False) -> object:
    """Why the port is over. None if it is not, or if data that the far end of a connection has sent is not received
    yet.

    :param unread: whether data was taken from the descriptor and not received
    """
    try:
        connection = socket.socket(fileno=fd)
    except OSError:
        return why_hung_up(fd)
    try:
        return None if unread else network.why_over(connection)
    finally:
        connection.detach()


@contextlib.contextmanager
def explaining(url: str, settings: dict[str, Any]) -> Iterator[None]:
    """Explain the error of a failed open, with the name of the port and what to do."""
    try:
        yield
    except io.UnsupportedOperation as exc:
        raise ValueError(f"{url!r} has no descriptor to wait for: give the path of a device") from exc
    except OverflowError as exc:
        raise ValueError(f"{url!r}: the kernel does not accept a baudrate of {settings['baudrate']!r}") from exc
    except ValueError as exc:
        raise ValueError(f"{url!r}: {exc}") from exc
    except (OSError, termios.error) as exc:
        raise explained(url, exc) from exc


def explained(port: str, exc: BaseException) -> OSError:
    """Return the error of a failed request, with the port and what to do."""
    error = device_explained(port, exc, _HINTS, SerialException)
    if error.errno == errno.EAGAIN:  # it is locked; where TIOCEXCL keeps it, the kernel says EBUSY
        error = SerialException(errno.EBUSY, _HINTS[errno.EBUSY], port)
    return error


_HINTS: dict[int, str] = {
    **HINTS,
    errno.ENOENT: "there is no such port: is it plugged in?",
    errno.EIO: "the device behind it does not answer: plug it in again",
    errno.EACCES: "permission denied: join the group that owns it, such as dialout",
    errno.EPERM: "permission denied: join the group that owns it, such as dialout",
    errno.EBUSY: "another program has it open, or this one has already: find it by `fuser`",
    errno.ENOTTY: "it is not a serial port, or its driver cannot do that: a pty has no modem lines",
    errno.EISDIR: "it is not a serial port",
    errno.EINVAL: "it does not take these settings",
    errno.ECONNREFUSED: "no server listens there",
}


def imported(module: str, extra: str) -> Any:
    try:
        return importlib.import_module(module)
    except ImportError as exc:
        raise ImportError(f"{module} is not installed: pip install 'asyncrevoke[{extra}]'") from exc


class Driven:
    """Requests to a driver, made by threads."""

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


class _DescriptorPort(FdLine, Driven):
    def __init__(self, serial: Any, node: Revokable) -> None:
        self.serial = serial
        super().__init__(Fd(serial.fileno(), node, lambda _: close_off_loop(serial.close), shared=True))

    def why_over(self) -> object:
        return why_over(self.fileno())

    async def configure(self, settings: Mapping[str, Any]) -> None:
        await off_loop(lambda: configure_pyserial(self.serial, settings), patience=math.inf)


def configure_pyserial(serial: Any, settings: Mapping[str, Any]) -> None:
    """Change settings of a `Serial`: all of them or none."""

    def change(settings: Mapping[str, Any]) -> None:
        vars(serial).update({f"_{option}": value for option, value in settings.items()})
        serial.baudrate = serial.baudrate  # makes all of them, in one step

    configure(serial, settings, settings, change)


def configure(
    serial: Any,
    settings: Mapping[str, Any],
    in_its_words: Mapping[str, Any],
    change: Callable[[Mapping[str, Any]], object],
) -> None:
    """Let a library change settings of its port: all of them or none. It keeps what the driver has refused, so that is
    put back.
    """
    before = {option: vars(serial)[f"_{option}"] for option in in_its_words}
    try:
        change(in_its_words)
        check_taken(serial.fileno(), settings)
    except BaseException:
        change(before)
        raise


def serialx_words(settings: Mapping[str, Any]) -> dict[str, Any]:
    """Translate pyserial's settings into serialx's names."""
    return {"byte_size" if option == "bytesize" else option: value for option, value in settings.items()}
