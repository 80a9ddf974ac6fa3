"""A descriptor number that is taken away from code that knows nothing of it: a C library, a thread in read(2).

Where revoke(2) of the BSDs puts a dead file behind the number (sys/kern/vfs_subr.c, deadfs), dup2(2) puts a tombstone there:
the number stays taken until its holder closes it, so nobody else's file can come under it, and all that is done with it
answers as a terminal that was hung up, or a socket whose peer is gone.

dup2 alone wakes nobody: a call that sleeps holds on to the file that it began with (fs/file.c, fdget). Such threads are
found and interrupted; sets of epoll, which hold the file and not the number (fs/eventpoll.c), get the tombstone in its place.
"""

from __future__ import annotations

import asyncio
import ctypes
import errno
import fcntl
import os
import pathlib
import platform
import re
import socket
import stat
import struct
import time
import weakref
from collections.abc import Awaitable, Callable, Iterable, Iterator
from contextlib import suppress
from types import EllipsisType
from typing import Protocol, TypeVar

import anyio
import anyio.abc
import anyio.lowlevel

from asyncrevoke import OffLoop, Owner, Revocation, Revokable, handle_of, off_loop, revoke_threadsafe
from asyncrevoke.adapters import sleepers
from asyncrevoke.adapters.tty import TIOCVHANGUP
from asyncrevoke.answers import Answers

T = TypeVar("T")
_libc = ctypes.CDLL(None, use_errno=True)
_ADD, _DEL = 1, 2  # EPOLL_CTL_*, include/uapi/linux/eventpoll.h
_EVENT = struct.Struct("=IQ" if platform.machine() == "x86_64" else "=I4xQ")  # epoll_event, packed on x86_64 alone
_STUBBORN = 0.064  # seconds between two signals, of a thread that seems to block them


class HasDescriptor(Protocol):
    """A file, a socket."""

    def fileno(self) -> int: ...


class Descriptor(anyio.abc.AsyncResource):
    """A descriptor that others use by its number: ``Descriptor(fd).revoke("unplugged")``

    When the revocation is complete, no thread of this process sleeps on the file: those in read, write, poll, select, epoll
    and other calls met the tombstone. A call that was not asleep may have come to its result meanwhile. What has
    the file by another number (dup, fork) or by io_uring keeps it; so hang up or shut down the device, too.

    The number is its holder's to close, before or after. This keeps the file open until it is revoked or closed itself, to
    know it again: a number that by then means another file is left alone.

    :param fd: a descriptor, or what has one
    :param owner, name, also, answers: as for `RevokableStream`
    :raises OSError: EBADF if it is not open; without /proc
    :raises ValueError: if it belongs to the event loop, or is a set of epoll, which is one's own to close
    :raises RevokedError: if the owner was revoked
    """

    def __init__(
        self,
        fd: int | HasDescriptor,
        *,
        owner: Owner = None,
        name: str = "",
        also: Iterable[Revokable] = (),
        answers: Answers | EllipsisType = ...,
    ) -> None:
        self.fd = fd if isinstance(fd, int) else fd.fileno()
        if _is_epoll(self.fd) or self.fd in _of_the_loop():
            raise ValueError(f"descriptor {self.fd} belongs to an event loop, or is a set of epoll: close that")
        sleepers.check()
        try:
            self._file = os.dup(self.fd)
        except (OSError, OverflowError) as exc:
            raise OSError(errno.EBADF, f"descriptor {self.fd} is not open") from exc
        try:
            self._tombstone = _tombstone(is_socket=stat.S_ISSOCK(os.fstat(self.fd).st_mode))
            self.handle = handle_of(
                owner, name or f"descriptor {self.fd}", also, self._release, answers, kick=self._bury
            )
        except BaseException:
            os.close(self._file)
            raise
        self._lent = Revokable("lent")  # whose children carry the news into the loop's thread
        self._woken: OffLoop[None] | None = None

    async def lend(self, function: Callable[[int], T]) -> T:
        """Have a thread of its own call the function with the number, and await the result. An operation until it returns.

        :raises RevokedError, ~anyio.ClosedResourceError: if it was or is taken away, or closed
        :raises: what `function` raises
        Cancellation: ends the waiting. The thread goes on, as a user of this, until the function returns; its result is lost.
        """
        await anyio.lowlevel.checkpoint()
        with self.handle.using():
            self.handle.start_using()
            inside = self._lent.open(release=self.handle.stop_using)

            def call() -> T:
                try:
                    return function(self.fd)
                finally:
                    revoke_threadsafe(inside)

            return await off_loop(call)

    def revoke(self, reason: str = "", *, grace: float = 0.0) -> Revocation:
        """Take it away: `Revokable.revoke` of its handle."""
        return self.handle.revoke(reason, grace=grace)

    async def aclose(self) -> None:
        """Take it away, as its owner, and wait until nobody sleeps on it. The number stays its holder's to close."""
        await self.handle.aclose()

    def __repr__(self) -> str:
        return f"<Descriptor {self.fd}, {self.handle!r}>"

    def _bury(self, node: Revokable) -> None:
        """Put the tombstone in its place, and begin to wake those who sleep on the file."""
        if node is not self.handle or not _same(self._file, self.fd):
            return  # something else is taken away; or its holder has closed it
        sets = [(epoll, event) for epoll, event in _registrations(self.fd) if _changed(epoll, _DEL, self.fd, event)]
        os.dup2(self._tombstone.fd, self.fd, os.get_inheritable(self.fd))
        for epoll, event in sets:
            _changed(epoll, _ADD, self.fd, event)
        if threads := sleepers.perhaps_on(self.fd):
            sleepers.wake(threads)
            try:
                self._woken = off_loop(self._wake)
            except anyio.NoEventLoopError:
                self._wake()

    def _wake(self) -> None:
        """Wake those who sleep on the file, until there are none: the tombstone puts nobody to sleep."""
        pause = 0.001
        time.sleep(pause)
        while (threads := sleepers.on(self.fd)) and self._buried():
            if pause == _STUBBORN:
                self._end_the_device()
            sleepers.wake(threads)
            pause = min(2 * pause, _STUBBORN)
            time.sleep(pause)

    def _buried(self) -> bool:
        """Whether the number means the tombstone, and not what came under it when its holder had closed it."""
        try:
            return os.path.samestat(os.fstat(self.fd), os.fstat(self._tombstone.fd))
        except OSError:
            return False

    def _end_the_device(self) -> None:
        """For those whom no signal wakes: end the connection, for all who have it, or hang up the terminal, if we may."""
        _libc.shutdown(self._file, socket.SHUT_RDWR)
        with suppress(OSError):
            fcntl.ioctl(self._file, TIOCVHANGUP)

    def _release(self) -> Awaitable[None] | None:
        if self._woken is None:
            os.close(self._file)
            return None
        return self._close_when_woken(self._woken)

    async def _close_when_woken(self, woken: OffLoop[None]) -> None:
        try:
            await woken
        finally:
            os.close(self._file)


class _Tombstone:
    """What never waits, at a descriptor that is closed when nobody needs it any more."""

    def __init__(self, *, is_socket: bool) -> None:
        if is_socket:
            near, far = socket.socketpair()
            self.fd = near.detach()
            far.close()
        else:
            master, self.fd = os.openpty()
            os.close(master)  # which hangs it up
        weakref.finalize(self, os.close, self.fd)


_tombstones: weakref.WeakValueDictionary[bool, _Tombstone] = weakref.WeakValueDictionary()


def _tombstone(*, is_socket: bool) -> _Tombstone:
    """One serves the whole process."""
    found = _tombstones.get(is_socket)
    if found is None:
        found = _tombstones[is_socket] = _Tombstone(is_socket=is_socket)
    return found


def _same(known: int, fd: int) -> bool:
    """Whether both mean the same open file: whoever is told to be the owner of the one is that of the other."""
    owner = fcntl.fcntl(known, fcntl.F_GETOWN)
    try:
        for mark in (os.getpid(), 0):
            fcntl.fcntl(known, fcntl.F_SETOWN, mark)
            if fcntl.fcntl(fd, fcntl.F_GETOWN) != mark:
                return False
    except OSError:
        return False  # it is not open
    finally:
        fcntl.fcntl(known, fcntl.F_SETOWN, owner)
    return True


def _of_the_loop() -> set[int]:
    """By what asyncio's own loop is woken; those of other loops are not to be found."""
    try:
        owned = vars(asyncio.get_running_loop()).values()
    except (RuntimeError, TypeError):
        return set()
    return {each.fileno() for each in owned if isinstance(each, socket.socket)}


def _is_epoll(fd: int) -> bool:
    """Whether it is a set of epoll, and open."""
    with suppress(OSError):
        return str(pathlib.Path(f"/proc/self/fd/{fd}").readlink()) == "anon_inode:[eventpoll]"
    return False


def _registrations(fd: int) -> Iterator[tuple[int, bytes]]:
    """Where in sets of epoll the number stands: the set, and what it is to tell, as struct epoll_event."""
    for epoll in (int(file.name) for file in pathlib.Path("/proc/self/fd").iterdir()):
        if _is_epoll(epoll):
            told = pathlib.Path(f"/proc/self/fdinfo/{epoll}").read_text()
            for number, events, data in re.findall(r"tfd: *(\d+) events: *(\w+) data: *(\w+)", told):
                if int(number) == fd:
                    yield epoll, _EVENT.pack(int(events, 16), int(data, 16))


def _changed(epoll: int, change: int, fd: int, event: bytes) -> bool:
    """Change the set. It reports whether that was so: the number in it may be of a file that is gone."""
    failed: int = _libc.epoll_ctl(epoll, change, fd, event)
    return not failed
