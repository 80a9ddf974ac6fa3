"""A revokable stream over a descriptor, with waits of our own: the same face, kicked by waiter.

The system call comes first. Only if it would block is a waiter linked to the handle, and the kick resolves it. On
asyncio the readiness callback stays registered from one wait to the next. It is removed when it finds nobody waiting.
Only the release closes the descriptor, when the last waiter has left. So no other file can get the number while anybody
still waits on it.
"""

from __future__ import annotations

import asyncio
import contextlib
import errno
import functools
import os
import select
import socket
import stat
import warnings
from collections.abc import Awaitable, Callable, Iterable, Iterator, Mapping
from types import EllipsisType
from typing import Any, TypeVar

import anyio
from anyio.streams.file import FileStreamAttribute

from asyncrevoke import linux
from asyncrevoke._core import loop
from asyncrevoke._core.errors import RevokedError
from asyncrevoke._core.profile import Answers
from asyncrevoke._core.revocation import Revocation
from asyncrevoke._core.revokable import Revokable, due, revoke_threadsafe
from asyncrevoke._core.use import Operation

from .face import Face, Owner, handle_of

T = TypeVar("T")


class FdStream(Face):
    """A byte stream over a descriptor: a terminal, a pipe, a socket. The stream owns the descriptor, and makes it
    non-blocking.

    :param fd: the stream owns it from now on; on an error you still own it. Programs that share its open file, as a
        shell shares standard input, find it non-blocking. If one of them undoes that, a read may block the loop. Then
        open your own: ``os.open("/proc/self/fd/0", os.O_RDWR | os.O_NOCTTY)``
    :param owner: what it is opened on; the stream opens a handle there. None: the stream is a root of its own
    :param answers: a profile of `asyncrevoke.answers`. Default: as at the owner
    :param also: further parents of the handle, such as a token. Whichever is revoked first takes the stream along
    :param close: closes the descriptor, as its release. It may be async
    :raises OSError: if `fd` is not open, or was opened with O_PATH
    :raises ImportError: on Windows
    :raises RevokedError: if the owner was revoked

    If `send` raises `RevokedError`, its `sent` is the number of bytes that were accepted. If an outer cancel scope is
    cancelled in the same step as the kick, the kick is reported, and the cancellation comes at the next checkpoint.
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
        """Send what is accepted at once, and return how many bytes. It waits until that is at least one.

        :raises: as `send`
        Cancellation: nothing was sent.
        """
        with self._writing:
            if due(self.handle):
                await loop.checkpoint()
            try:
                self._check_end()
                if self.handle._acts:
                    self.handle._admit()
                sent = self._fd.write_now(item)
                if sent is None:
                    sent = await self._fd.wait(self.handle, self._fd.writable, lambda: self._fd.write_now(item))
            except RevokedError as error:
                self._answer(error, "write")
                raise
            return sent

    def _receive_now(self, max_bytes: int) -> bytes | None:
        return self._fd.read_now(max_bytes)

    async def _receive(self, max_bytes: int) -> bytes:
        read = functools.partial(self._fd.read_now, max_bytes)
        return await self._fd.wait(self.handle, self._fd.readable, read, idle=True, late=self._put_back)

    async def _send(self, item: bytes) -> None:
        view = memoryview(item).cast("B")
        sent = 0

        def write() -> int | None:
            nonlocal sent
            while sent < len(view):
                some = self._fd.write_now(view[sent:])
                if some is None:
                    return None
                sent += some
            return sent

        try:
            if self.handle._acts:
                self.handle._admit()
            if write() is None:
                await self._fd.wait(self.handle, self._fd.writable, write)
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


class Fd:
    """A non-blocking descriptor and the waits on it, without a guard. Whoever waits is inside an operation, which ends
    before this is closed.

    One task at a time reads, and one writes.

    :param fd: this object owns it from now on
    :param node: its node, for errors. It is revoked if this is dropped without being closed
    :param close: closes the descriptor
    :param end: the errno that means the end of data, besides reading nothing
    :param shared: other programs use it, too. O_NONBLOCK is set again before each call, and an end of data that is
        typed on a terminal means nothing
    :raises OSError: EBADF, if `fd` is not open for reading or writing. You still own it then
    """

    number = -1  # the descriptor's; so once it is closed, and where it never was ours
    heard: Callable[[], object] | None = None  # called when something was read

    def __init__(
        self, fd: int, node: Revokable, close: Callable[[int], object] = os.close, *, end: int = 0, shared: bool = False
    ) -> None:
        try:
            self._master = linux.makedev(5, 2) == os.fstat(fd).st_rdev  # of a pty, whoever has opened /dev/ptmx
            os.set_blocking(fd, False)
        except (OSError, ValueError, OverflowError) as exc:
            raise OSError(errno.EBADF, f"descriptor {fd} is not open for reading or writing") from exc
        self.number = fd
        self.readable = Side(fd, "reader", anyio.wait_readable)
        self.writable = Side(fd, "writer", anyio.wait_writable)
        self._node = node
        self._close = close
        self._end = end
        self._shared = shared
        self._reading = anyio.ResourceGuard("reading from")

    async def read(self, max_bytes: int) -> bytes:
        """Read 1 to `max_bytes` bytes. Raises as `Face.receive` does, but for revocation. Cancellation: nothing was consumed."""
        with self._reading:
            while (data := self.read_now(max_bytes)) is None:
                await self.readable.ready()
        return data

    async def write_some(self, item: memoryview) -> int:
        """Write what is accepted at once, at least one byte, and return how many. Cancellation: nothing was written."""
        await anyio.lowlevel.checkpoint()
        while (written := self.write_now(item)) is None:
            await self.writable.ready()
        return written

    def read_now(self, max_bytes: int) -> bytes | None:
        """Read what is there, or return None if nothing is.

        If another program has set a terminal's VMIN to 0, a read returns nothing where there is no data yet. A terminal
        that is hung up has no settings any more.
        """
        try:
            if self._shared:
                os.set_blocking(self.number, False)
            data = os.read(self.number, max_bytes)
        except BlockingIOError:
            return None
        except OSError as exc:
            raise (anyio.EndOfStream if exc.errno == self._end else self._broken(exc)) from exc
        if data:
            if self.heard is not None:
                self.heard()
            return data
        with contextlib.suppress(linux.termios.error):  # it is no terminal, or hung up
            settings = linux.termios.tcgetattr(self.number)
            if self._shared or not settings[3] & linux.termios.ICANON:
                return None
        raise anyio.EndOfStream

    def write_now(self, item: bytes | bytearray | memoryview) -> int | None:
        """Write what is accepted, and return how many bytes, or None if nothing is."""
        try:
            if self._shared:
                os.set_blocking(self.number, False)
            if self._master and _unasked(self.number).poll(0):  # it takes what nobody will read
                raise OSError(errno.EIO, "nobody has the terminal open on the other side")  # noqa: TRY301
            return os.write(self.number, item)
        except BlockingIOError:
            return None
        except OSError as exc:
            raise self._broken(exc) from exc

    def _broken(self, exc: OSError) -> Exception:
        return anyio.BrokenResourceError(f"{self._node.path!r}: {exc}")

    async def wait(
        self,
        handle: Revokable,
        side: Side,
        call: Callable[[], T | None],
        *,
        idle: bool = False,
        late: Callable[[T | Exception], object] | None = None,
    ) -> T:
        """Make the call whenever the descriptor is ready, until it returns something other than None. All of it is one
        operation on the handle.

        :param late: lets the loop make the call at once. It gets the result, or what was raised, if the task was
            cancelled in that very moment
        """
        waiter = Waiter(handle, idle)
        home = waiter.enter()
        assert home is not None
        result: T | None
        if home.reactor is None:
            waiter.leave()
            with handle.using(idle=idle):
                while (result := call()) is None:
                    await side.wait(self.number)
                return result
        try:
            while True:
                future = waiter.begin(home.reactor)
                side.arm(home.reactor, functools.partial(_tell, future, None if late is None else call))
                result = await found(future, late)
                if result is not None or (late is None and (result := call()) is not None):
                    return result
        finally:
            side.told = None  # or the loop would keep this, through its callback
            waiter.leave()

    def close(self) -> Any:
        """Stop waiting, and close it, as a release: what closes it may return an awaitable."""
        fd, self.number = self.number, -1
        self.readable.disarm()
        self.writable.disarm()
        return self._close(fd)

    def __repr__(self) -> str:
        return f"<descriptor {self.number} of {self._node!r}>"

    def __del__(self) -> None:
        if self.number != -1:
            unclosed = f"{self!r} was never closed"
            revoke_threadsafe(self._node, "it was never closed")
            warnings.warn(unclosed, ResourceWarning, source=self, stacklevel=1)


class Waiter(Operation):
    """An operation that waits for a future. An exception is set as its result, because nobody may be left to take
    it.
    """

    __slots__ = ("future",)

    def __init__(self, node: Revokable, idle: bool) -> None:
        self.node = node
        self.idle = idle
        self.act = None
        self.future: asyncio.Future[Any] | None = None

    def begin(self, reactor: asyncio.AbstractEventLoop) -> asyncio.Future[Any]:
        """Return what is to be awaited next."""
        self.future = reactor.create_future()
        if self.act is not None:
            self.future.set_result(self.node._error(self.act))
        return self.future

    def kick(self, act: Revocation) -> bool:
        if self.node._kick is None:
            return False
        self.act = act
        if self.future is not None and not self.future.done():
            with contextlib.suppress(RuntimeError):  # its loop was closed with the task in it
                self.future.set_result(self.node._error(act))
        return True


async def found(future: asyncio.Future[Any], late: Callable[[Any], object] | None = None) -> Any:
    """Return the result of a waiter, or raise it."""
    try:
        result = await future
    except BaseException:
        result = future.result() if future.done() and not future.cancelled() else None
        if late is not None and result is not None and not isinstance(result, RevokedError | anyio.ClosedResourceError):
            late(result)
        raise
    if isinstance(result, Exception):
        raise result
    return result


class Side:
    """The waits for one direction of a descriptor. There is one at a time, and a callback beside it."""

    __slots__ = ("_call", "_errors", "_fd", "_idle", "_kind", "_loop", "told", "wait")

    def __init__(self, fd: int, kind: str, wait: Callable[[int], Awaitable[None]]) -> None:
        self._fd = fd
        self._kind = kind
        self._loop: asyncio.AbstractEventLoop | None = None  # where the callback is registered
        self._call: Callable[[], object] | None = None
        self.told: Callable[[], bool] | None = None
        self.wait = wait

    async def ready(self) -> None:
        """Wait until the descriptor may be ready."""
        home = loop.current()
        assert home is not None
        if home.reactor is None:
            await self.wait(self._fd)
        else:
            future = home.reactor.create_future()
            self.arm(home.reactor, functools.partial(_tell, future, None))
            try:
                await future
            finally:
                self.told = None

    def arm(self, reactor: asyncio.AbstractEventLoop, told: Callable[[], bool]) -> None:
        """Let the loop call `told` when the descriptor may be ready, until it reports that nobody waits."""
        self.told = told
        self._register(reactor)

    def call(self, reactor: asyncio.AbstractEventLoop, call: Callable[[], object] | None) -> None:
        """Let the loop make this call whenever the descriptor may be ready. None ends it."""
        self._call = call
        if call is not None:
            self._register(reactor)

    def _register(self, reactor: asyncio.AbstractEventLoop) -> None:
        if self._loop is not reactor:
            getattr(reactor, f"add_{self._kind}")(self._fd, self._ready)
            self._loop = reactor
            self._errors = None if isinstance(reactor, asyncio.SelectorEventLoop) else _unasked(self._fd)
        self._idle = False  # called with nobody waiting

    def _ready(self) -> None:
        if self._errors is not None and (polled := self._errors.poll(0)) and polled[0][1] & select.POLLERR:
            reactor = self._loop
            assert reactor is not None  # which calls this
            self.disarm()  # libuv has ended it, and uvloop tells nobody: the next wait begins anew
            if self._call is not None or self.told is not None:
                self._register(reactor)
        waited = self.told is not None and self.told()
        if self._call is not None:
            self._call()
        elif not waited:
            if self._idle:
                self.disarm()  # left armed, a level-triggered loop would spin
            self._idle = True  # once is no reason: asyncio polls again before the reader that it woke has run

    def disarm(self) -> None:
        reactor, self._loop = self._loop, None
        if reactor is not None and not reactor.is_closed():
            getattr(reactor, f"remove_{self._kind}")(self._fd)


def _tell(future: asyncio.Future[Any], call: Callable[[], object] | None) -> bool:
    """Give the waiter the result of the call, or None without a call. Return whether somebody waits for it."""
    if future.done():
        return False
    try:
        result = None if call is None else call()
    except Exception as exc:  # noqa: BLE001  # raised in the task
        result = exc
    if (result is not None or call is None) and not future.done():  # the call may have taken it away
        future.set_result(result)
    return True


@contextlib.contextmanager
def os_errors(what: str) -> Iterator[None]:
    """Raise the error of a terminal's settings as an OSError that names the terminal; it is not one itself."""
    try:
        yield
    except linux.termios.error as exc:
        raise OSError(*exc.args, what) from exc


def _unasked(fd: int) -> select.poll:
    """Reports, when it is polled, what poll(2) reports of it unasked: POLLERR and POLLHUP."""
    poller = select.poll()
    poller.register(fd, 0)
    return poller
