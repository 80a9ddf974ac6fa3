"""A descriptor number, revoked from code that does not know of it: a C library, a thread in read(2).

revoke(2) of the BSDs puts a dead file behind the number (sys/kern/vfs_subr.c, deadfs). Here dup2(2) puts a tombstone
there. The number stays taken until its holder closes it, so nobody else's file can get it. Every operation on it
answers like a terminal that was hung up, or a socket whose peer is gone.

dup2 alone wakes nobody: a call that sleeps holds the file that it began with (fs/file.c, fdget). Such threads are found
and interrupted. Sets of epoll hold the file and not the number (fs/eventpoll.c). They get the tombstone in its place.
"""

import asyncio
import ctypes
import errno
import os
import pathlib
import platform
import re
import socket
import stat
import struct
import time
from collections.abc import Awaitable, Callable, Iterable, Iterator
from contextlib import ExitStack, suppress
from types import EllipsisType
from typing import TypeVar

import anyio
import anyio.abc
import anyio.lowlevel

from asyncrevoke.adapters.tty import TIOCVHANGUP
from asyncrevoke.answers import Answers
from asyncrevoke.linux import O_PATH, fcntl, resource
from asyncrevoke.lowlevel import (
    Handled,
    HasDescriptor,
    OffLoop,
    Owner,
    Revokable,
    handle_of,
    in_loop,
    off_loop,
    stop_using_threadsafe,
)

from . import sleepers

T = TypeVar("T")
_libc = ctypes.CDLL(None, use_errno=True)
_ADD, _DEL = 1, 2  # EPOLL_CTL_*, include/uapi/linux/eventpoll.h
_EVENT = struct.Struct("=IQ" if platform.machine() == "x86_64" else "=I4xQ")  # epoll_event, packed on x86_64 alone
_F_DUPFD_QUERY = 1027  # include/uapi/linux/fcntl.h, since Linux 6.10
_KCMP = 312 if platform.machine() == "x86_64" else 272
_STUBBORN = 0.064  # seconds between two looks at threads that seem to block signals


class Descriptor(Handled):
    """A descriptor that other code uses by its number: ``Descriptor(fd).revoke("unplugged")``

    When the revocation is complete, threads that slept on the file in read, write, poll, select, epoll and so on have
    met the tombstone. Code that has the file in another way keeps it: by another number (dup, fork), mmap, io_uring or
    io_submit. So hang up or shut down the device, too. If no descriptor is free, sleepers cannot be looked for: that is
    raised, and the number is dead. If the limit of descriptors was lowered below the number, that is raised, and the
    number's holder keeps it.

    The holder must still close the number, before or after. This object keeps the file open until it is revoked or
    closed itself, to recognise the file. If the number means another file by then, it is left alone. So are threads
    that sleep on the file by a number that was closed. So close this object, too, when the holder is done. Until then
    the other side sees no end, and sets of epoll still report the file. It takes three descriptors, and a pty if the
    file is not a socket. When they are closed, the process loses its locks of fcntl(2) on the file, as with any
    descriptor of it.

    Its limits:

    - If the holder closes the number in the very moment in which it is replaced, whatever gets the number next may be
      lost. A thread that just changes an epoll registration of the number may get an error that it is not there.
    - If a thread blocks SIGURG, you can only see that it sleeps on the file, and not in a poll that SIGSTOP has
      interrupted. It is waited for, until the number is closed. To end it, a connection is shut down, or a terminal
      hung up, for all who have it. If it was just about to sleep, it may still do so when the revocation is complete.
    - Calls to which the tombstone has no answer sleep on, at the tombstone: select for exceptional conditions alone,
      and splice from or to a pipe that is not ready.
    - If two objects have one number, the second does not wait for threads that the first wakes.
    - A forked child shares the sets of epoll that it has inherited. If the child makes a `Descriptor` of an inherited
      number, that changes its parent's set. A `Descriptor` that its parent has made changes no set in the child.
    - The loop stands still for some 10 microseconds for each descriptor that the process has open. For a regular file
      it does not: its number is replaced a little later.

    Only threads begun by `lend` are users of the handle. Other threads are neither counted nor named, and have no
    grace. The tombstone of a socket is a socket of AF_UNIX. A write there is EPIPE, and SIGPIPE to a program that does
    not ignore it, as Python does. A connect that was under way may report success.

    :param fd: a descriptor, or an object with one
    :param owner, name, also, answers: as for `RevokableStream`
    :raises OSError: EBADF if it is not open; without a pty or a descriptor left; without /proc; or if the process may
        not look into its own threads, as after setuid(2): prctl(PR_SET_DUMPABLE, 1) allows it again
    :raises NotImplementedError: on other machines than x86_64 and aarch64; or if open files cannot be told apart. That
        needs Linux 6.10, or kcmp(2), which containers tend to forbid without CAP_SYS_PTRACE
    :raises ValueError: if it is a set of epoll, as the event loop has one; if it wakes asyncio's own loop; or if it was
        opened with O_PATH, which nobody can read. A descriptor that the loop only watches is allowed: its reader meets
        the end of data
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
        with ExitStack() as ours:
            try:
                self._file = os.dup(self.fd)
            except (OSError, OverflowError) as exc:
                if isinstance(exc, OSError) and exc.errno != errno.EBADF:
                    raise
                raise OSError(errno.EBADF, f"descriptor {self.fd} is not open") from exc
            ours.callback(os.close, self._file)
            if fcntl.fcntl(self._file, fcntl.F_GETFL) & O_PATH:
                raise ValueError(
                    f"descriptor {self.fd} was opened with O_PATH: it only names a file, and cannot read it"
                )
            if not _same(self._file, self.fd):
                raise NotImplementedError(
                    "open files cannot be told apart: needs Linux 6.10, or kcmp(2), which is forbidden here"
                )
            kind = stat.S_IFMT(os.fstat(self._file).st_mode)
            self._is_regular = kind in (stat.S_IFREG, stat.S_IFDIR)
            self._tombstone = _tombstone(is_socket=kind == stat.S_IFSOCK)
            ours.callback(os.close, self._tombstone)
            self._spare = ours.enter_context(pathlib.Path("/proc/self/stat").open("rb"))
            self.handle = handle_of(
                owner, name or f"descriptor {self.fd}", also, self._release, answers, kick=self._bury
            )
            self._ours = ours.pop_all()
        self._process = os.getpid()
        # Registrations of files with the same inode, as all of eventfd have one.
        self._others: list[tuple[int, bytes]] = []
        self._woken: OffLoop[None] | None = None

    async def lend(self, function: Callable[[int], T]) -> T:
        """Call the function with the number, in a thread of its own, and await the result.

        The call is an operation until the function returns, and not an idle one. Until it returns, it is a straggler
        without a name.

        :raises RevokedError, ~anyio.ClosedResourceError: if it was revoked or closed, before or meanwhile
        :raises OSError: ENOMEM, if no thread can be started
        :raises: what `function` raises
        Cancellation: ends the waiting. The thread goes on, as a user of this, until the function returns. Its result is
            lost.
        """
        await anyio.lowlevel.checkpoint()
        with self.handle.using():
            self.handle.start_using()

            def call() -> T:
                try:
                    return function(self.fd)
                finally:
                    stop_using_threadsafe(self.handle)

            try:
                called = off_loop(call)
            except BaseException:  # no thread can be started
                self.handle.stop_using()
                raise
            return await called

    def __repr__(self) -> str:
        return f"<Descriptor {self.fd}, {self.handle!r}>"

    def _bury(self, node: Revokable) -> None:
        """Put the tombstone in its place, and begin to wake threads that are in a call on the file."""
        if node is not self.handle or not _same(self._file, self.fd):
            return  # something else is taken away; or its holder has closed it
        self._spare.close()  # /proc is not to be read without a free descriptor
        if not self._is_regular:
            self._replace()
        try:
            self._woken = off_loop(self._wake)
        except (RuntimeError, OSError):  # without a loop, or with no thread to be had
            self._wake()

    def _replace(self) -> None:
        if self.fd >= resource.getrlimit(resource.RLIMIT_NOFILE)[0]:  # which was lowered: dup2 would refuse it
            raise OSError(
                errno.EBADF, f"descriptor {self.fd} stays: it is above the limit of descriptors, RLIMIT_NOFILE"
            )
        moved: list[tuple[int, bytes]] = []
        with suppress(OSError):  # somebody else has that descriptor by now: it is looked for once more
            for each in self._registered():
                if _epoll_ctl(_DEL, self.fd, *each):
                    moved.append(each)
                else:
                    self._others.append(each)
        if not _same(self._file, self.fd):
            return  # he has closed it just now
        os.dup2(self._tombstone, self.fd, os.get_inheritable(self.fd))
        self._register(moved)

    def _registered(self) -> Iterator[tuple[int, bytes]]:
        """Its registrations in sets of epoll, without those that a child has from its parent: they are its parent's."""
        return _registrations(self.fd, self._file) if self._process == os.getpid() else iter(())

    def _register(self, registered: Iterable[tuple[int, bytes]]) -> None:
        """Put the tombstone into the sets of epoll."""
        for epoll, event in registered:
            _epoll_ctl(_ADD, self.fd, epoll, event)  # which refuses what is there already

    def _wake(self) -> None:
        """Make all threads leave the call that they are in. This may outlast the loop, so only this closes the file."""
        with self._ours:
            if self._is_regular:
                self._replace()  # which may last: it flushes the file, as each close does, to a server that may be slow
            threads = sleepers.perhaps_on(self.fd)
            sleepers.wake(threads)
            pause = 0.001
            while threads := sleepers.unheard(threads, sleepers.on(self.fd) if self._buried() else []):
                if pause == _STUBBORN and any(map(sleepers.is_deaf, threads)):
                    self._end_the_device()
                time.sleep(pause)
                pause = min(2 * pause, _STUBBORN)
            if self._buried():  # they may have been in epoll_ctl
                self._register(each for each in self._registered() if each not in self._others)

    def _buried(self) -> bool:
        """Whether the number means the tombstone, and not a file that got it after its holder had closed it."""
        return _same(self._tombstone, self.fd)

    def _end_the_device(self) -> None:
        """End the connection, for all who have it, or hang up the terminal, if we may. It is for threads that no signal
        wakes.
        """
        _libc.shutdown(self._file, socket.SHUT_RDWR)
        with suppress(OSError):
            fcntl.ioctl(self._file, TIOCVHANGUP)

    def _release(self) -> Awaitable[None] | None:
        woken = self._woken
        try:  # a thread, as the last close of a line, or a connection, may wait for its output
            woken = woken or off_loop(self._ours.close)
        except (RuntimeError, OSError):
            self._ours.close()
            return None
        if in_loop():
            return woken
        woken.result()
        return None


def _tombstone(*, is_socket: bool) -> int:
    """Make a file that never blocks. Each number has its own, which leaves the sets of epoll when the number is
    closed.
    """
    if is_socket:
        near, far = socket.socketpair()
        far.close()
        return near.detach()
    try:
        master, slave = os.openpty()
    except OSError as exc:
        raise OSError(exc.errno, f"no pty for the tombstone: {exc.strerror}") from exc
    os.close(master)  # which hangs it up
    return slave


def _same(known: int, fd: int) -> bool:
    """Whether both mean the same open file (fs/fcntl.c, f_dupfd_query; kernel/kcmp.c)."""
    try:
        return fcntl.fcntl(known, _F_DUPFD_QUERY, fd) == 1
    except OSError as exc:
        if exc.errno == errno.EBADF:
            return False  # it is not open
    mine, file = os.getpid(), 0  # KCMP_FILE
    compared: int = _libc.syscall(_KCMP, mine, mine, file, ctypes.c_ulong(known), ctypes.c_ulong(fd))
    return compared == 0


def _of_the_loop() -> set[int]:
    """Whether it wakes asyncio's own loop. The descriptors of other loops cannot be found."""
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
    """The sets of epoll that have the file by this number, and the registrations, as struct epoll_event."""
    inode = os.fstat(file).st_ino
    for epoll in (int(each.name) for each in pathlib.Path("/proc/self/fd").iterdir()):
        if _is_epoll(epoll):
            try:
                told = pathlib.Path(f"/proc/self/fdinfo/{epoll}").read_text()
            except FileNotFoundError:
                continue  # it was closed
            for events, data, ino in re.findall(rf"tfd: *{fd} events: *(\w+) data: *(\w+) .*ino:(\w+)", told):
                if int(ino, 16) == inode:
                    yield epoll, _EVENT.pack(int(events, 16), int(data, 16))


def _epoll_ctl(change: int, fd: int, epoll: int, event: bytes) -> bool:
    """Change the set. Return whether that succeeded: the number in it may be of a file that is gone."""
    failed: int = _libc.epoll_ctl(epoll, change, fd, event)
    return not failed
