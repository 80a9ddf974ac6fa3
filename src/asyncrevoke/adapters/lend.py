"""Descriptors lent to another process, and taken back by the kernel's own means.

What is lent is an open file, so what takes it back takes every copy of it: those that the borrower has made, handed on, or
left to its children. The borrower need not run for that. Real kernels were asked: evdev of Linux 6.1 and 6.12, hidraw of
6.12, the others of 6.18.

=========== ============ ======================== ===================================================================
what is lent by           the borrower, from then  and
=========== ============ ======================== ===================================================================
evdev       EVIOCREVOKE  ENODEV; poll ERR|HUP     a file of its own is lent: the lender's stays, and is not to be grabbed
hidraw      HIDIOCREVOKE ENODEV; poll ERR|HUP     the same; Linux 6.12 and later. It wakes nobody: a read that waits gets
                                                  nothing, and ends with the device
a terminal  TIOCVHANGUP  b"", EIO; poll ERR|HUP   of everybody, the lender too; needs CAP_SYS_ADMIN
a socket    shutdown(2)  b"", EPIPE; poll HUP     of both, and the far end is told; what had come can still be read
=========== ============ ======================== ===================================================================

Anything else is refused, with the reason. A relay would be no pipe, file or device: it has no position, no mapping, no
request to a driver, and no bounds of messages. Where bytes are all that is needed, lend an end of a `socket.socketpair`,
and copy at the other: each byte is then copied twice more, and in between the lender has to run.
If the lender is killed, what it has lent stays lent.
"""

from __future__ import annotations

import array
import contextlib
import errno
import fcntl
import functools
import os
import pty
import socket
import stat
from collections.abc import Callable, Generator
from dataclasses import dataclass
from typing import Any, Self

import anyio

from asyncrevoke.adapters.device.device import why_hung_up
from asyncrevoke.adapters.device.identity import driver_of
from asyncrevoke.lowlevel import Resource, Revokable, close_off_loop

_EVIOCREVOKE, _HIDIOCREVOKE = 0x40044591, 0x4004480D  # include/uapi/linux/input.h, include/uapi/linux/hidraw.h
_TIOCVHANGUP = 0x5437  # include/uapi/asm-generic/ioctls.h


@dataclass(frozen=True, slots=True)
class Means:
    """How something is taken back.

    :ivar name: the kernel's name of it
    :ivar from_all: whether the lender, and whoever else has it, loses it with the borrower
    :ivar wakes: whether it ends what the borrower waits in; else it gets nothing there, but waits on
    """

    name: str
    from_all: bool
    wakes: bool
    held: Callable[[int], int]  # a descriptor of what is to be lent, for a descriptor that was given
    take: Callable[[int], object]


def _reopened(fd: int) -> int:
    flags = fcntl.fcntl(fd, fcntl.F_GETFL) & (os.O_ACCMODE | os.O_NONBLOCK)
    return os.open(f"/proc/self/fd/{fd}", flags | os.O_NOCTTY)


def _shut_down(fd: int) -> None:
    with socket.socket(fileno=os.dup(fd)) as lent, contextlib.suppress(OSError):  # it has ended already
        lent.shutdown(socket.SHUT_RDWR)


EVDEV = Means("EVIOCREVOKE", False, True, _reopened, lambda fd: fcntl.ioctl(fd, _EVIOCREVOKE, 0))
HIDRAW = Means("HIDIOCREVOKE", False, False, _reopened, lambda fd: fcntl.ioctl(fd, _HIDIOCREVOKE, 0))
#: By what `driver_of` tells.
DRIVERS = {"evdev": EVDEV, "hidraw": HIDRAW}
TERMINAL = Means("TIOCVHANGUP", True, True, os.dup, lambda fd: fcntl.ioctl(fd, _TIOCVHANGUP))
SOCKET = Means("shutdown", True, True, os.dup, _shut_down)


def means_for(fd: int) -> Means:
    """How what is behind a descriptor could be taken back, by this process, on this kernel.

    :raises OSError: EOPNOTSUPP, with the reason, if it could not; EPERM, if only another could; EBADF, if it is not open
    """
    status = os.fstat(fd)
    if stat.S_ISSOCK(status.st_mode):
        return SOCKET
    if not stat.S_ISCHR(status.st_mode):
        raise _no_means("only sockets and character devices can be taken back: lend a socket, and copy")
    if os.isatty(fd):
        return _hang_up(fd)
    driver = driver_of(fd)
    if driver not in DRIVERS:
        raise _no_means(f"the kernel cannot take a device of {driver or 'its driver'!r} back: lend a socket, and copy")
    _try(DRIVERS[driver], fd)
    return DRIVERS[driver]


def _hang_up(fd: int) -> Means:
    if os.fstat(fd).st_rdev == os.makedev(5, 2):
        raise _no_means("the master of a pty is not hung up: lend its slave")
    trial = pty.openpty()
    try:
        fcntl.ioctl(trial[1], _TIOCVHANGUP)
    except PermissionError as exc:
        raise PermissionError(errno.EPERM, "a terminal is hung up by root alone (CAP_SYS_ADMIN)") from exc
    finally:
        for each in trial:
            os.close(each)
    return TERMINAL


def _try(means: Means, fd: int) -> None:
    """Take back a file that nobody has."""
    trial = means.held(fd)
    try:
        means.take(trial)
    except OSError as exc:
        if exc.errno not in (errno.EINVAL, errno.ENOTTY):
            raise
        raise _no_means(f"this kernel has no {means.name}: lend a socket, and copy") from exc
    finally:
        os.close(trial)


def _no_means(why: str) -> OSError:
    return OSError(errno.EOPNOTSUPP, why)


def lend(fd: int, *, to: socket.socket, owner: Revokable | None = None, name: str = "", message: bytes = b"\0") -> Loan:
    """Lend a descriptor: ``async with lend(fd, to=socket, owner=alice): ...``; then ``alice.revoke()`` takes it back.

    It is lent by ``async with`` or by ``await``, and taken back when it is revoked, or closed, or its owner is. When that
    has been awaited, what the borrower has is dead: the kernel was asked. `Loan.means` says how it is taken back.

    :param fd: what is lent. It stays yours
    :param to: a Unix socket, at whose other end is the borrower, who receives it by `socket.recv_fds`
    :param owner: what the loan is opened on
    :param name: for errors and reports
    :param message: what is sent with it, at least a byte
    :raises ValueError: if there is no message
    Lending raises, too:
    :raises OSError: as `means_for`; or the borrower is gone, or has no room for a descriptor
    :raises RevokedError: if the owner was revoked, also meanwhile
    Cancellation: it is not lent, or taken back.
    """
    if not message:
        raise ValueError("message is empty: give one byte or more")
    return Loan(fd, to, owner, name or f"loan of fd {fd}", message)


class Loan(Resource):
    """What is lent, as `lend` gives it. Closing it takes it back.

    :ivar means: how it is taken back, once it is lent
    """

    means: Means

    def __init__(self, fd: int, to: socket.socket, owner: Revokable | None, name: str, message: bytes) -> None:
        self._fd = fd
        self._to = to
        self._owner = owner
        self._name = name
        self._message = message

    def __await__(self) -> Generator[Any, Any, Self]:
        """Lend it."""
        return self._lend().__await__()

    async def __aenter__(self) -> Self:
        return await self

    async def _lend(self) -> Self:
        async with (self._owner or Revokable()).opening(self._name) as node:
            self.means = means_for(self._fd)
            held = self.means.held(self._fd)
            node.release = functools.partial(os.close, held)
            await self._send(held)
            node.release = functools.partial(close_off_loop, functools.partial(self._take, held))
        self.node = node
        return self

    async def _send(self, held: int) -> None:
        rights = [(socket.SOL_SOCKET, socket.SCM_RIGHTS, array.array("i", [held]))]
        while True:
            try:
                sent = self._to.sendmsg([self._message], rights, socket.MSG_DONTWAIT | socket.MSG_NOSIGNAL)
            except BlockingIOError:
                await anyio.wait_writable(self._to)
            else:
                break
        if sent != len(self._message):
            raise OSError(errno.EMSGSIZE, f"{self._name}: {sent} bytes of the message were sent: make it shorter")

    def _take(self, held: int) -> None:
        """Take it back, and ask the kernel whether it is.

        :raises OSError: EBUSY, if it is not
        """
        try:
            with contextlib.suppress(OSError):  # it has gone by itself, as by an unplug; else the kernel tells below
                self.means.take(held)
            if why_hung_up(held) is None:
                raise OSError(errno.EBUSY, f"{self._name}: {self.means.name} has not taken it back")
        finally:
            os.close(held)
