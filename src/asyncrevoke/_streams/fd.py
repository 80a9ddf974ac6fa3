"""A revocable stream over a descriptor whose waits we own: the same face, kicked by waiter.

The system call comes first; only if it would block is a waiter linked to the handle, and the kick resolves it. On
asyncio the readiness callback stays registered from one wait to the next, and is removed when it finds nobody waiting.
The descriptor is closed by the release alone, when the last waiter has left, so its number cannot be another file's
while anybody still waits on it.
"""

from __future__ import annotations

import asyncio
import contextlib
import errno
import functools
import os
import socket
import stat
import time
import warnings
from collections.abc import Awaitable, Callable, Iterable, Mapping
from types import EllipsisType
from typing import Any, TypeVar

import anyio
from anyio.streams.file import FileStreamAttribute

from asyncrevoke._core import loop
from asyncrevoke._core.errors import RevokedError
from asyncrevoke._core.profile import Answers
from asyncrevoke._core.revocation import Revocation
from asyncrevoke._core.revokable import Revokable, revoke_threadsafe

from .face import Face, Owner, handle_of

T = TypeVar("T")


class FdStream(Face):
    """A byte stream over a descriptor: a terminal, a pipe, a socket. Takes it over, and makes it non-blocking.

    :param fd: belongs to the stream from now on; on an error it is still yours
    :param owner: what it is opened on; a handle of it is made. None: the stream is a root of its own
    :param answers: a profile of `asyncrevoke.answers`. Left out: as the owner's
    :param also: further parents of the handle, such as a token; whichever goes first takes it
    :param close: what closes the descriptor, as its release
    :raises OSError: if `fd` is not open
    :raises RevokedError: if the owner was revoked

    A `RevokedError` of `send` tells by `sent` how many bytes were accepted. If an outer cancel scope is cancelled in the
    same step as the kick, the kick is reported and the cancellation comes at the next checkpoint.
    """

    def __init__(
        self,
        fd: int,
        owner: Owner = None,
        answers: Answers | EllipsisType = ...,
        *,
        name: str = "",
        also: Iterable[Revokable] = (),
        close: Callable[[int], object] = os.close,
    ) -> None:
        self._fd = -1  # until it is ours
        self._close = close
        try:
            os.fstat(fd)
        except (OSError, ValueError, OverflowError) as exc:
            raise OSError(errno.EBADF, f"descriptor {fd} is not open") from exc
        super().__init__(handle_of(owner, name or f"fd {fd}", also, self._release, answers), tty=os.isatty(fd))
        os.set_blocking(fd, False)
        self._fd = fd
        self._readable = _Side(fd, "reader", anyio.wait_readable)
        self._writable = _Side(fd, "writer", anyio.wait_writable)

    def fileno(self) -> int:
        """The descriptor, or -1 once it is released."""
        return self._fd

    @property
    def extra_attributes(self) -> Mapping[Any, Callable[[], Any]]:
        return {**super().extra_attributes, FileStreamAttribute.fileno: self.fileno}

    async def send_some(self, item: bytes | memoryview) -> int:
        """Send what is accepted at once, waiting until that is at least one byte. It returns how many.

        :raises: as `send`
        Cancellation: nothing was sent.
        """
        with self._writing:
            await anyio.lowlevel.checkpoint()
            try:
                self._check_end()
                return await self._transfer(self._writable, lambda: os.write(self._fd, item))
            except RevokedError as error:
                self._answer(error, "write")
                raise

    async def _receive(self, max_bytes: int) -> bytes:
        data = await self._transfer(self._readable, functools.partial(os.read, self._fd, max_bytes), idle=True)
        if not data:
            raise anyio.EndOfStream
        return data

    async def _send(self, item: bytes) -> None:
        view = memoryview(item).cast("B")
        sent = 0

        def write() -> None:
            nonlocal sent
            while sent < len(view):
                sent += os.write(self._fd, view[sent:])

        try:
            await self._transfer(self._writable, write)
        except RevokedError as error:
            error.sent = sent
            raise

    async def _send_eof(self) -> None:
        if not stat.S_ISSOCK(os.fstat(self._fd).st_mode):
            raise NotImplementedError(f"{self.handle.path!r} is not a socket: it has no end of data but aclose()")
        with socket.socket(fileno=os.dup(self._fd)) as peer:
            try:
                peer.shutdown(socket.SHUT_WR)
            except OSError as exc:
                raise anyio.BrokenResourceError(f"{self.handle.path!r}: {exc}") from exc

    async def _transfer(self, side: _Side, call: Callable[[], T], *, idle: bool = False) -> T:
        """Make the system call, waiting as often as it would block. All of it is one operation on the handle."""
        handle = self.handle
        if handle._acts and not handle._admits_use():
            raise handle._refusal()  # I1
        result = self._attempt(call)
        if not isinstance(result, BlockingIOError):
            return result
        home = handle._home
        task = None if home is None else home.task()
        if task is None:
            home, task = handle._here()
        assert home is not None
        if home.reactor is None:
            with handle.using(idle=idle):
                while isinstance(result, BlockingIOError):
                    await side.wait(self._fd)
                    result = self._attempt(call)
                return result
        waiter = _Waiter(handle, task, idle and not (home.inside and handle._inside(home, task)))
        uses = handle._uses
        if uses is None:
            uses = handle._first_use()
        uses[waiter] = None
        try:
            while isinstance(result, BlockingIOError):
                if waiter.act is None and await side.park(home.reactor, waiter):
                    result = self._attempt(call)
                else:
                    assert waiter.act is not None
                    raise handle._error(waiter.act)
            return result
        finally:
            del uses[waiter]
            if not uses and not handle._bare:
                handle._operations_left()

    def _attempt(self, call: Callable[[], T]) -> T | BlockingIOError:
        try:
            return call()
        except BlockingIOError as exc:
            return exc
        except OSError as exc:
            raise anyio.BrokenResourceError(f"{self.handle.path!r}: {exc}") from exc

    def _release(self) -> None:
        fd, self._fd = self._fd, -1
        self._readable.disarm()
        self._writable.disarm()
        self._close(fd)

    def __del__(self) -> None:
        if self._fd >= 0:
            unclosed = f"{self!r} was never closed"
            revoke_threadsafe(self.handle, "it was never closed")
            warnings.warn(unclosed, ResourceWarning, source=self, stacklevel=1)


class _Waiter:
    """An operation that waits for its descriptor: a user of the handle, as `Use` is."""

    __slots__ = ("act", "future", "idle", "node", "since", "task")

    def __init__(self, node: Revokable, task: loop.Task, idle: bool) -> None:
        self.node = node
        self.task = task
        self.idle = idle
        self.since = time.monotonic()
        self.act: Revocation | None = None
        self.future: asyncio.Future[bool] | None = None

    def kick(self, act: Revocation) -> bool:
        if self.node._kick is None:
            return False
        self.act = act
        if self.future is not None and not self.future.done():
            with contextlib.suppress(RuntimeError):  # its loop was closed with the task in it
                self.future.set_result(False)  # not an exception: nobody may be left to take it
        return True


class _Side:
    """The waits for one direction of a descriptor; there is one at a time."""

    __slots__ = ("_fd", "_future", "_idle", "_kind", "_loop", "wait")

    def __init__(self, fd: int, kind: str, wait: Callable[[int], Awaitable[None]]) -> None:
        self._fd = fd
        self._kind = kind
        self._loop: asyncio.AbstractEventLoop | None = None  # where the callback is registered
        self._future: asyncio.Future[bool] | None = None
        self._idle = False  # called with nobody waiting
        self.wait = wait

    async def park(self, loop: asyncio.AbstractEventLoop, waiter: _Waiter) -> bool:
        """Wait until the descriptor may be ready. It reports False if the waiter was kicked before (I6)."""
        if self._loop is not loop:
            getattr(loop, f"add_{self._kind}")(self._fd, self._ready)
            self._loop = loop
        self._idle = False
        waiter.future = self._future = loop.create_future()
        try:
            return await waiter.future
        finally:
            self._future = None

    def _ready(self) -> None:
        if self._future is None:
            if self._idle:
                self.disarm()  # left armed, a level-triggered loop would spin
            self._idle = True  # once is no reason: asyncio polls again before the reader that it woke has run
        elif not self._future.done():
            self._future.set_result(True)

    def disarm(self) -> None:
        loop, self._loop = self._loop, None
        if loop is not None and not loop.is_closed():
            getattr(loop, f"remove_{self._kind}")(self._fd)
