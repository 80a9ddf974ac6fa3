"""Any character device: its bytes, or its messages, if its driver keeps them apart."""

from __future__ import annotations

import contextlib
import errno
import functools
import os
import stat
from collections.abc import Iterable, Iterator
from types import EllipsisType
from typing import Any, Generic, Literal, Protocol, TypedDict, TypeVar, Unpack, overload, runtime_checkable

from asyncrevoke.answers import Answers
from asyncrevoke.linux import fcntl
from asyncrevoke.lowlevel import OffLoop, Revokable, close_off_loop, off_loop

from . import identity
from .device import PATIENCE, Device, FdLine, why_hung_up
from .explained import HINTS, explained
from .instrument import InstrumentStream
from .messages import EventStream, MessageStream, ReportStream
from .stream import DeviceStream

S = TypeVar("S", bound=DeviceStream | MessageStream[Any])
Mode = Literal["rw", "r", "w"]
_FLAGS = {"rw": os.O_RDWR, "r": os.O_RDONLY, "w": os.O_WRONLY}
_GONE = (errno.ENODEV, errno.ENXIO, errno.ESHUTDOWN)
_KINDS: dict[str, type[Any]] = {"hidraw": ReportStream, "evdev": EventStream, "usbtmc": InstrumentStream}
_EVIOCGRAB = 0x40044590  # include/uapi/linux/input.h


@runtime_checkable
class Opened(Protocol):
    """An object with a descriptor that another library has opened, such as an `InputDevice` of python-evdev's. That one
    is a path, too.
    """

    def fileno(self) -> int: ...

    def close(self) -> object: ...


class DeviceOptions(TypedDict, total=False):
    """The options of `open_device`, besides the device.

    :ivar mode: for reading or writing or both; some devices can only be read
    :ivar grab: get the events of an input device alone: no other program and no console gets them (EVIOCGRAB)
    :ivar subsystem: the kernel's subsystem in which an identity is looked for. Default: that of the kind, or hidraw,
        input, usbmisc, tty
    :ivar fan_out: each stream gets each message, or all bytes. Default: one task may receive at a time
    :ivar backlog: with `fan_out`, bytes that a stream may be behind before it is revoked as too slow. One that never
        receives may be there to send, and is not. A report takes 4 bytes more than it has. Data that the driver has no
        room for is lost to all
    :ivar close_timeout: seconds to wait for the kernel to close it
    :ivar idle_limit: seconds without data after which it is revoked, whether anybody reads or not. None: no limit
    :ivar owner: what it is opened on; a `Name` gives it a generation
    :ivar name: for errors and reports. Default: the device as you gave it
    :ivar answers: a profile of `asyncrevoke.answers` for its streams. Default: as at the owner
    """

    mode: Mode
    grab: bool
    subsystem: str
    fan_out: bool
    backlog: int
    close_timeout: float
    idle_limit: float | None
    owner: Revokable | None
    name: str
    answers: Answers | EllipsisType


@overload
def open_device(
    device: str | os.PathLike[str] | Opened, kind: type[S], **options: Unpack[DeviceOptions]
) -> CharacterDevice[S]: ...
@overload
def open_device(
    device: str | os.PathLike[str] | Opened, kind: None = None, **options: Unpack[DeviceOptions]
) -> CharacterDevice[Any]: ...
def open_device(
    device: str | os.PathLike[str] | Opened, kind: type[Any] | None = None, **options: Unpack[DeviceOptions]
) -> CharacterDevice[Any]:
    """Open a character device: ``async with open_device("/dev/hidraw0") as device: stream = device.open()``

    ``async with`` or ``await`` opens it, in a thread. For a serial port use `open_serial`, which makes its line
    settings. The device ends only when its driver says so: by ENODEV, ENXIO or ESHUTDOWN in any operation, or by EIO or
    the end of data in a read or write. While nobody uses it, a hang-up or an error of poll(2) ends it.

    Some drivers' reads block despite O_NONBLOCK. Then read in a thread: ``stream.request(lambda fd: os.read(fd, n))``.

    :param device: its path, which begins with / or a dot. Or its identity: its name in udev's /dev/input/by-id and the
        like, its USB serial number, its `uniq` or `phys` in sysfs, or its place on the bus, such as "1-2:1.0". Or an
        object that another library has opened; the device owns it from the opening on
    :param kind: the class of its streams. Default: `EventStream` for evdev, `ReportStream` for hidraw,
        `InstrumentStream` for usbtmc, otherwise `DeviceStream`
    :param options: see `DeviceOptions`
    :raises ValueError: if an option makes no sense Opening raises, too:
    :raises OSError: with errno, the device and what to do: missing, forbidden, grabbed, no character device, nothing to
        wait for. ENOTUNIQ, with both names, if two devices share the identity. Or no thread, descriptor or memory is
        left
    :raises RevokedError: if the owner was revoked, before or meanwhile. The device is closed then
    Cancellation: waits half a second at most until what was opened is closed again. If it is opened later, a thread
        closes it.
    """
    return CharacterDevice(device, kind, **options)


class CharacterDevice(Device[FdLine], Generic[S]):
    """An open character device, as `open_device` returns it.

    :ivar path: the path of the opened node, even if you gave an identity
    """

    def __init__(
        self,
        device: str | os.PathLike[str] | Opened,
        kind: type[S] | None,
        *,
        mode: Mode = "rw",
        grab: bool = False,
        subsystem: str = "",
        fan_out: bool = False,
        backlog: int = 65536,
        close_timeout: float = 40.0,
        idle_limit: float | None = None,
        owner: Revokable | None = None,
        name: str = "",
        answers: Answers | EllipsisType = ...,
    ) -> None:
        if mode not in _FLAGS:
            raise ValueError(f"mode is {mode!r}: give one of {', '.join(map(repr, _FLAGS))}")
        if fan_out and backlog < 4096:
            raise ValueError(f"backlog is {backlog!r}: give bytes, 4096 or more")
        given: Opened | None = None
        if isinstance(device, Opened):
            given, path = device, f"fd {device.fileno()}"
        else:
            path = os.fspath(device)
        if not path:
            raise ValueError("device is empty: give a path or an identity")
        super().__init__(
            path,
            owner,
            name or path,
            answers,
            backlog=backlog if fan_out else None,
            idle_limit=idle_limit,
            close_timeout=close_timeout,
        )
        self._given = given
        self._kind = kind
        self._flags = _FLAGS[mode]
        self._grab = grab
        self._fan_out = fan_out
        kinds = (ReportStream, EventStream, DeviceStream) if kind is None else (kind,)
        self._subsystems = [subsystem] if subsystem else [name for each in kinds for name in each.subsystems]

    def open(self, name: str = "", *, also: Iterable[Revokable] = (), answers: Answers | EllipsisType = ...) -> S:
        """Open a stream on the device.

        :param also: further parents, such as a token. Whichever is revoked first takes the stream along
        :param answers: a profile of `asyncrevoke.answers`. Default: as at the owner
        :raises RevokedError, ~anyio.ClosedResourceError: if the device is gone
        """
        node = self.node
        assert self._kind is not None, node
        return self._kind(self, name, also=also, answers=answers)

    def find(self) -> None:
        """Find its node, if you gave an identity. Otherwise the opening does so. It reads files: call it in a thread.

        :raises OSError: as `open_device`
        """
        if self._given is None and not self.path.startswith(("/", ".")):
            self.path = identity.find(self.path, self._subsystems)

    async def _connect(self, node: Revokable) -> FdLine:
        number = await off_loop(self._open_node, late=self._close_node, patience=PATIENCE)
        node.release = functools.partial(self._closing, number)
        assert self._kind is not None
        return FdLine(self._kind.fd(number, node, self._closing, shared=True))

    def _open_node(self) -> int:
        if self._given is not None:
            fd = self._given.fileno()
        else:
            self.find()
            fd = os.open(self.path, self._flags | os.O_NONBLOCK | os.O_NOCTTY)
        try:
            if self._given is None and not stat.S_ISCHR(os.fstat(fd).st_mode):
                raise OSError(errno.EINVAL, "it is not a character device")  # noqa: TRY301
            if self._grab:
                with _needs_evdev():
                    fcntl.ioctl(fd, _EVIOCGRAB, 1)
            self._kind = self._kind or _KINDS.get(identity.driver_of(fd), DeviceStream)
            if self._fan_out and issubclass(self._kind, InstrumentStream):
                raise OSError(errno.EOPNOTSUPP, "an instrument answers only the stream that asks: do not give fan_out")  # noqa: TRY301
        except BaseException:
            self._close_node(fd)
            raise
        return fd

    def _closing(self, fd: int) -> OffLoop[object] | None:
        return close_off_loop(functools.partial(self._close_node, fd))

    def _close_node(self, fd: int) -> None:
        if self._grab:
            with contextlib.suppress(OSError):  # it is gone, or was not grabbed
                fcntl.ioctl(fd, _EVIOCGRAB, 0)  # or it lasts as long as anybody else has this descriptor, too
        if self._given is not None:
            self._given.close()
        else:
            os.close(fd)

    @contextlib.contextmanager
    def _explaining(self) -> Iterator[None]:
        try:
            yield
        except OSError as exc:
            raise _explained(self.path, exc) from exc

    def _explained(self, exc: OSError) -> OSError:
        return _explained(self.name, exc)

    def _is_end(self, exc: OSError, *, of_data: bool) -> bool:
        return exc.errno in _GONE or (of_data and exc.errno == errno.EIO) or why_hung_up(self.fileno()) is not None


def _explained(device: str, exc: OSError) -> OSError:
    own = exc.errno is None or exc.strerror != os.strerror(exc.errno)  # words, which say what to do already
    return explained(device, exc, {} if own else HINTS)


@contextlib.contextmanager
def _needs_evdev() -> Iterator[None]:
    try:
        yield
    except OSError as exc:
        if exc.errno not in (errno.ENOTTY, errno.EINVAL, errno.EBADRQC):
            raise
        raise OSError(errno.EOPNOTSUPP, "only evdev devices can be grabbed: do not give grab") from exc
