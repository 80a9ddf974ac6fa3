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
import functools
import os
import pathlib
import platform
import re
import socket
import stat
import struct
import time
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

    When the revocation is complete, those that slept on the file in read, write, poll, select, epoll and so on have met the
    tombstone. What has the file by another number (dup, fork) or by io_uring keeps it; so hang up or shut down the device,
    too.

    The number is its holder's to close, before or after. This keeps the file open until it is revoked or closed itself, to
    know it again: a number that by then means another file is left alone. So close this, too, when the holder is done:
    until then the other side sees no end.

    Not yet to be relied on in these cases. A holder who closes the number while it is revoked: what is opened under it in that
    moment may be taken, and sets of epoll keep the number. No descriptor is free, or the process has given up privileges
    (setuid): it may be complete with the file untouched, or a thread asleep. A file that other processes have, and revoke at
    the same time: the number may keep it. Threads in select for exceptional conditions alone or in splice may keep it from
    being complete; those in vmsplice, or in waitid on a pidfd, are not woken.

    A thread that was not begun by `lend` is no user of the handle: it is neither counted nor named, and has no grace. The
    tombstone of a socket is one of AF_UNIX: to write there is EPIPE, and SIGPIPE to a program that does not ignore it, as
    Python does; a connect that was under way may report success.

    :param fd: a descriptor, or what has one
    :param owner, name, also, answers: as for `RevokableStream`
    :raises OSError: EBADF if it is not open; without /proc
    :raises NotImplementedError: on other machines than x86_64 and aarch64
    :raises ValueError: if it is a set of epoll, as the event loop has one, or wakes asyncio's own. What the loop only watches
        may be taken: its reader meets the end of data
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
        """Have a thread of its own call the function with the number, and await the result.

        It is an operation until the function returns, not an idle one, and an unnamed straggler where it does not.

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
        registered = [each for each in _registrations(self.fd, self._file) if _epoll_ctl(_DEL, self.fd, *each)]
        os.dup2(self._tombstone, self.fd, os.get_inheritable(self.fd))
        self._register(registered)
        if threads := sleepers.perhaps_on(self.fd):
            sleepers.wake(threads)
            try:
                self._woken = off_loop(lambda: self._wake(threads))
            except anyio.NoEventLoopError:
                self._wake(threads)

    def _register(self, registered: Iterable[tuple[int, bytes]] = ()) -> None:
        """Have the tombstone in the sets of epoll: where the file was, and where it came while we looked."""
        for epoll, event in (*registered, *_registrations(self.fd, self._file)):
            _epoll_ctl(_ADD, self.fd, epoll, event)  # which refuses what is there already

    def _wake(self, threads: list[int]) -> None:
        """See that those have left the call they were in, and wake who still sleeps: the tombstone puts nobody to sleep."""
        pause = 0.001
        while (asleep := sleepers.on(self.fd)) or (threads := sleepers.unheard(threads)):
            if not self._buried():
                return
            if asleep and pause == _STUBBORN:
                self._end_the_device()
            sleepers.wake(asleep)
            time.sleep(pause)
            pause = min(2 * pause, _STUBBORN)
        if self._buried():
            self._register()  # they may have been in epoll_ctl

    def _buried(self) -> bool:
        """Whether the number means the tombstone, and not what came under it when its holder had closed it."""
        try:
            return os.path.samestat(os.fstat(self.fd), os.fstat(self._tombstone))
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


@functools.cache
def _tombstone(*, is_socket: bool) -> int:
    """What never waits. One serves all numbers of the process, for as long as it runs."""
    if is_socket:
        near, far = socket.socketpair()
        far.close()
        return near.detach()
    master, slave = os.openpty()
    os.close(master)  # which hangs it up
    return slave


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


def _registrations(fd: int, file: int) -> Iterator[tuple[int, bytes]]:
    """The sets of epoll that have the file by this number, and what they are to tell, as struct epoll_event."""
    inode = os.fstat(file).st_ino
    for epoll in (int(each.name) for each in pathlib.Path("/proc/self/fd").iterdir()):
        if _is_epoll(epoll):
            try:
                told = pathlib.Path(f"/proc/self/fdinfo/{epoll}").read_text()
            except FileNotFoundError:
                continue  # it was closed
            for number, events, data, ino in re.findall(r"tfd: *(\d+) events: *(\w+) data: *(\w+) .*ino:(\w+)", told):
                if (int(number), int(ino, 16)) == (fd, inode):
                    yield epoll, _EVENT.pack(int(events, 16), int(data, 16))


def _epoll_ctl(change: int, fd: int, epoll: int, event: bytes) -> bool:
    """Change the set. It reports whether that was so: the number in it may be of a file that is gone."""
    failed: int = _libc.epoll_ctl(epoll, change, fd, event)
    return not failed
