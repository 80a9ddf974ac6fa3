"""The kernel's means to take an open file back from whoever has it."""

from __future__ import annotations

import contextlib
import errno
import os
import socket
import stat
from collections.abc import Callable, Iterator
from dataclasses import dataclass

from asyncrevoke.adapters.device.identity import driver_of
from asyncrevoke.linux import fcntl, pty

_EVIOCREVOKE, _HIDIOCREVOKE = 0x40044591, 0x4004480D  # include/uapi/linux/input.h, include/uapi/linux/hidraw.h
_TIOCVHANGUP = 0x5437  # include/uapi/asm-generic/ioctls.h


@dataclass(frozen=True, slots=True)
class Means:
    """A means to take an open file back.

    :ivar name: the kernel's name for it, or that it is a relay
    :ivar from_all: whether the lender and everybody else lose it with the borrower
    :ivar wakes: whether it ends the borrower's waits. If not, the borrower gets no more data, but waits on
    :ivar cost: what a relay costs, and what the borrower cannot do with it. "" if the file itself is lent
    """

    name: str
    from_all: bool
    wakes: bool
    held: Callable[[int], int]  # a descriptor of what is to be lent, for a descriptor that was given
    take: Callable[[int], object]
    cost: str = ""
    begin: Callable[[], object] | None = None  # called when it is lent


def _reopened(fd: int) -> int:
    flags = fcntl.fcntl(fd, fcntl.F_GETFL) & (os.O_ACCMODE | os.O_NONBLOCK)
    return os.open(f"/proc/self/fd/{fd}", flags | os.O_NOCTTY)


@contextlib.contextmanager
def as_socket(fd: int) -> Iterator[socket.socket]:
    """Return the socket by another object, without another descriptor, for which there may be no room."""
    there = socket.socket(fileno=fd)
    try:
        yield there
    finally:
        there.detach()


def _shut_down(fd: int) -> None:
    with as_socket(fd) as lent, contextlib.suppress(OSError):  # it has ended already
        lent.shutdown(socket.SHUT_RDWR)


EVDEV = Means("EVIOCREVOKE", False, True, _reopened, lambda fd: fcntl.ioctl(fd, _EVIOCREVOKE, 0))
HIDRAW = Means("HIDIOCREVOKE", False, False, _reopened, lambda fd: fcntl.ioctl(fd, _HIDIOCREVOKE, 0))
#: By the result of `driver_of`.
DRIVERS = {"evdev": EVDEV, "hidraw": HIDRAW}
TERMINAL = Means("TIOCVHANGUP", True, True, os.dup, lambda fd: fcntl.ioctl(fd, _TIOCVHANGUP))
SOCKET = Means("shutdown", True, True, os.dup, _shut_down)


def means_for(fd: int) -> Means:
    """Return the means by which this process, on this kernel, could take back what is behind a descriptor.

    :raises OSError: EOPNOTSUPP, with the reason, if there is none; EPERM, if only another process could; EBADF, if it
        is not open
    """
    mode = os.fstat(fd).st_mode
    if stat.S_ISSOCK(mode):
        return SOCKET
    if stat.S_ISFIFO(mode):
        raise no_means("the kernel cannot take a pipe back: relay it")
    if stat.S_ISREG(mode):
        raise no_means(
            "the kernel cannot take files or memory back: truncating is SIGBUS in the borrower, which can prevent it "
            "by a seal. Lend an entry of a tree of yours, or a socket, and copy"
        )
    if not stat.S_ISCHR(mode):
        raise no_means("only sockets and character devices can be taken back: lend a socket, and copy")
    if os.isatty(fd):
        return _hang_up(fd)
    driver = driver_of(fd)
    if driver not in DRIVERS:
        raise no_means(f"the kernel cannot take a device of {driver or 'its driver'!r} back: lend a socket, and copy")
    _try(DRIVERS[driver], fd)
    return DRIVERS[driver]


def is_master(fd: int) -> bool:
    """Whether it is the master of a pty."""
    return os.fstat(fd).st_rdev == os.makedev(5, 2)


def _hang_up(fd: int) -> Means:
    if is_master(fd):
        raise no_means("the master of a pty cannot be hung up: lend its slave")
    trial = pty.openpty()
    try:
        fcntl.ioctl(trial[1], _TIOCVHANGUP)
    except PermissionError as exc:
        words = "only root may hang up a terminal (CAP_SYS_ADMIN): be root, or relay it"
        raise PermissionError(errno.EPERM, words) from exc
    finally:
        for each in trial:
            os.close(each)
    return TERMINAL


def _try(means: Means, fd: int) -> None:
    """Try it on a file that nobody has."""
    trial = means.held(fd)
    try:
        means.take(trial)
    except OSError as exc:
        if exc.errno not in (errno.EINVAL, errno.ENOTTY):
            raise
        raise no_means(f"this kernel has no {means.name}: lend a socket, and copy") from exc
    finally:
        os.close(trial)


def no_means(why: str) -> OSError:
    return OSError(errno.EOPNOTSUPP, why)
