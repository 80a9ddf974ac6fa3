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
import os
import select
import socket
import stat
import termios
import warnings
from collections.abc import Awaitable, Callable, Iterable, Iterator, Mapping
from types import EllipsisType
from typing import Any, TypeVar

import anyio
from anyio.streams.file import FileStreamAttribute

from asyncrevoke._core import loop
from asyncrevoke._core.errors import RevokedError
from asyncrevoke._core.profile import Answers
from asyncrevoke._core.revocation import Revocation
from asyncrevoke._core.revokable import Revokable, revoke_threadsafe
from asyncrevoke._core.use import Operation

from .face import Face, Owner, handle_of

T = TypeVar("T")


class FdStream(Face):
    """A byte stream over a descriptor: a terminal, a pipe, a socket. Takes it over, and makes it non-blocking.

    :param fd: belongs to the stream from now on; on an error it is still yours. Programs that share its open file, as a
        shell shares standard input, find it non-blocking; if one undoes that, a read may block the loop. Then open one
        of your own: ``os.open("/proc/self/fd/0", os.O_RDWR | os.O_NOCTTY)``
    :param owner: what it is opened on; a handle of it is made. None: the stream is a root of its own
    :param answers: a profile of `asyncrevoke.answers`. Left out: as the owner's
    :param also: further parents of the handle, such as a token; whichever goes first takes it
    :param close: what closes the descriptor, as its release, which may be async
    :raises OSError: if `fd` is not open, or was opened with O_PATH
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
        handle = handle_of(owner, name or f"fd {fd}", also, answers=answers)
        try:
            self._fd = Fd(fd, handle, close)
        except BaseException:
            handle.close()
            raise
        handle.release = self._fd.close
        super().__init__(handle, tty=os.isatty(fd))

    def fileno(self) -> int:
        """The descriptor, or -1 once it is released."""
        return self._fd.number

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
                return await self._transfer(self._fd.writable, lambda: self._fd.write(item))
            except RevokedError as error:
                self._answer(error, "write")
                raise

    async def _receive(self, max_bytes: int) -> bytes:
        data = await self._transfer(self._fd.readable, lambda: self._fd.take(max_bytes), idle=True)
        if not data:
            raise anyio.EndOfStream
        return data

    async def _send(self, item: bytes) -> None:
        view = memoryview(item).cast("B")
        sent = 0

        def write() -> None:
            nonlocal sent
            while sent < len(view):
                sent += self._fd.write(view[sent:])

        try:
            await self._transfer(self._fd.writable, write)
        except RevokedError as error:
            error.sent = sent
            raise

    async def _send_eof(self) -> None:
        if not stat.S_ISSOCK(os.fstat(self._fd.number).st_mode):
            raise NotImplementedError(f"{self.handle.path!r} is not a socket: it has no end of data but aclose()")
        with socket.socket(fileno=os.dup(self._fd.number)) as peer:
            try:
                peer.shutdown(socket.SHUT_WR)
            except OSError as exc:
                raise anyio.BrokenResourceError(f"{self.handle.path!r}: {exc}") from exc

    async def _transfer(self, side: _Side, call: Callable[[], T], *, idle: bool = False) -> T:
        """Make the system call, waiting as often as it would block. All of it is one operation on the handle."""
        handle = self.handle
        if handle._acts and not handle._admits_use():
            raise handle._refusal()  # I1
        result = self._fd.attempt(call)
        if not isinstance(result, BlockingIOError):
            return result
        waiter = _Waiter(handle, idle)
        home = waiter.enter()
        assert home is not None
        if home.reactor is None:
            waiter.leave()
            with handle.using(idle=idle):
                while isinstance(result, BlockingIOError):
                    await side.wait(self._fd.number)
                    result = self._fd.attempt(call)
                return result
        try:
            while isinstance(result, BlockingIOError):
                waiter.future = side.armed(home.reactor)
                if waiter.act is not None or not await waiter.future:
                    assert waiter.act is not None
                    raise handle._error(waiter.act)
                result = self._fd.attempt(call)
            return result
        finally:
            waiter.leave()


class Fd:
    """A descriptor that does not block, and the waits on it, unguarded: whoever waits is inside an operation, which ends
    before this is closed. One task at a time reads, and one writes.

    :param fd: belongs to this from now on
    :param node: whose it is, for errors; it is revoked if this is dropped without being closed
    :param close: what closes the descriptor
    :param end: the errno that means the end of data, besides reading nothing
    :param shared: other programs use it, too: O_NONBLOCK is set again before each call, and an end of data that is typed
        on a terminal means nothing
    :raises OSError: EBADF, if `fd` is not open for reading or writing; it is still yours then
    """

    number = -1  # the descriptor's; so once it is closed, and where it never was ours

    def __init__(
        self, fd: int, node: Revokable, close: Callable[[int], object] = os.close, *, end: int = 0, shared: bool = False
    ) -> None:
        try:
            self._master = os.fstat(fd).st_rdev == os.makedev(5, 2)  # of a pty, whoever has opened /dev/ptmx
            os.set_blocking(fd, False)
        except (OSError, ValueError, OverflowError) as exc:
            raise OSError(errno.EBADF, f"descriptor {fd} is not open for reading or writing") from exc
        self.number = fd
        self.readable = _Side(fd, "reader", anyio.wait_readable)
        self.writable = _Side(fd, "writer", anyio.wait_writable)
        self._node = node
        self._close = close
        self._end = end
        self._shared = shared
        self._reading = anyio.ResourceGuard("reading from")

    async def read(self, max_bytes: int) -> bytes:
        """Read 1 to `max_bytes` bytes. Raises as `Face.receive` does, but for revocation. Cancellation: nothing was consumed."""
        with self._reading:
            try:
                while isinstance(data := self.attempt(lambda: self.take(max_bytes)), BlockingIOError):
                    await self.readable.ready()
            except anyio.BrokenResourceError as exc:
                if getattr(exc.__cause__, "errno", None) != self._end:
                    raise
                raise anyio.EndOfStream from exc
        if not data:
            raise anyio.EndOfStream
        return data

    async def write_some(self, item: memoryview) -> int:
        """Write what is accepted at once, at least one byte, and return how many. Cancellation: nothing was written."""
        await anyio.lowlevel.checkpoint()
        while isinstance(written := self.attempt(lambda: self.write(item)), BlockingIOError):
            await self.writable.ready()
        return written

    def take(self, max_bytes: int) -> bytes:
        """Read what is there, or nothing at the end of data.

        A terminal whose VMIN another program has set to 0 reads nothing where there is no data yet. One that is hung up has
        no settings any more.
        """
        data = os.read(self.number, max_bytes)
        if not data:
            with contextlib.suppress(termios.error):  # it is no terminal, or hung up
                settings = termios.tcgetattr(self.number)
                if self._shared or not settings[3] & termios.ICANON:
                    raise BlockingIOError
        return data

    def write(self, item: bytes | memoryview) -> int:
        """Write what is accepted at once, and return how many bytes. Raises as os.write(); use `attempt`."""
        if self._master and _polls(self.number, select.POLLHUP):  # it takes what nobody will read
            raise OSError(errno.EIO, "nobody has the terminal open on the other side")
        return os.write(self.number, item)

    def attempt(self, call: Callable[[], T]) -> T | BlockingIOError:
        """Make a system call, which returns or, if it would block, gives BlockingIOError."""
        try:
            if self._shared:
                os.set_blocking(self.number, False)
            return call()
        except BlockingIOError as exc:
            return exc
        except OSError as exc:
            raise anyio.BrokenResourceError(f"{self._node.path!r}: {exc}") from exc

    def close(self) -> Any:
        """Wait no more, and close it. As a release: what closes it may return an awaitable."""
        fd, self.number = self.number, -1
        self.readable.disarm()
        self.writable.disarm()
        return self._close(fd)

    def __repr__(self) -> str:
        return f"<descriptor {self.number} of {self._node!r}>"

    def __del__(self) -> None:
        if self.number >= 0:
            unclosed = f"{self!r} was never closed"
            revoke_threadsafe(self._node, "it was never closed")
            warnings.warn(unclosed, ResourceWarning, source=self, stacklevel=1)


class _Waiter(Operation):
    """An operation that waits for its descriptor."""

    __slots__ = ("future",)

    def __init__(self, node: Revokable, idle: bool) -> None:
        super().__init__(node, idle)
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
    """The waits for one direction of a descriptor; there is one at a time, and a callback beside it."""

    __slots__ = ("_call", "_fd", "_future", "_idle", "_kind", "_loop", "_lost_by_errors", "wait")

    def __init__(self, fd: int, kind: str, wait: Callable[[int], Awaitable[None]]) -> None:
        self._fd = fd
        self._kind = kind
        self._loop: asyncio.AbstractEventLoop | None = None  # where the callback is registered
        self._future: asyncio.Future[bool] | None = None
        self._call: Callable[[], object] | None = None
        self._idle = False  # called with nobody waiting
        self.wait = wait

    async def ready(self) -> None:
        """Wait until the descriptor may be ready."""
        home = loop.current()
        assert home is not None
        await (self.wait(self._fd) if home.reactor is None else self.armed(home.reactor))

    def armed(self, reactor: asyncio.AbstractEventLoop) -> asyncio.Future[bool]:
        """A future that is True when the descriptor may be ready, unless a kick has been first (I6)."""
        self._arm(reactor)
        self._future = reactor.create_future()
        return self._future

    def call(self, reactor: asyncio.AbstractEventLoop, call: Callable[[], object] | None) -> None:
        """Have the loop call this as often as the descriptor may be ready, until it is given None."""
        self._call = call
        if call is not None:
            self._arm(reactor)

    def _arm(self, reactor: asyncio.AbstractEventLoop) -> None:
        if self._loop is not reactor:
            getattr(reactor, f"add_{self._kind}")(self._fd, self._ready)
            self._loop = reactor
            self._lost_by_errors = not isinstance(reactor, asyncio.SelectorEventLoop)
        self._idle = False

    def _ready(self) -> None:
        if self._lost_by_errors and _polls(self._fd, select.POLLERR):
            reactor = self._loop
            self.disarm()  # libuv has ended it, and uvloop tells nobody: the next wait begins anew
            if self._call is not None and reactor is not None:
                self._arm(reactor)
        if self._future is not None and not self._future.done():
            self._future.set_result(True)
        elif self._call is None:
            if self._idle:
                self.disarm()  # left armed, a level-triggered loop would spin
            self._idle = True  # once is no reason: asyncio polls again before the reader that it woke has run
        if self._call is not None:
            self._call()

    def disarm(self) -> None:
        reactor, self._loop = self._loop, None
        if reactor is not None and not reactor.is_closed():
            getattr(reactor, f"remove_{self._kind}")(self._fd)


@contextlib.contextmanager
def os_errors(what: str) -> Iterator[None]:
    """Raise the error of a terminal's settings, which is none of these, as an OSError that names the terminal."""
    try:
        yield
    except termios.error as exc:
        raise OSError(*exc.args, what) from exc


def _polls(fd: int, event: int) -> bool:
    """Whether poll(2) tells of that now: POLLERR or POLLHUP, which it tells unasked."""
    poller = select.poll()
    poller.register(fd, 0)
    return any(events & event for _, events in poller.poll(0))
