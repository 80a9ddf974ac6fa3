"""The common part of all devices: several may use one, and an unplug revokes it for all.

The device is a node, and its streams are its children. The first sign that it is gone revokes the node once. A sign is
the end of data or an error in any operation, or a hang-up while nobody uses it. The path is no sign: after an unplug it
is often still there.
"""

from __future__ import annotations

import errno
import logging
import math
import select
from abc import abstractmethod
from collections.abc import Awaitable, Callable, Generator
from contextlib import AbstractContextManager
from types import EllipsisType
from typing import Any, Generic, Protocol, Self, TypeVar

import anyio
import anyio.lowlevel

from asyncrevoke.answers import Answers
from asyncrevoke.linux import EPOLLET, EPOLLRDHUP, POLLIN
from asyncrevoke.lowlevel import (
    Deadline,
    Fd,
    OffLoop,
    Resource,
    Revokable,
    RevokedError,
    Shared,
    Watch,
    off_loop,
    os_errors,
)

logger = logging.getLogger("asyncrevoke")

#: Seconds for which a cancelled open waits until the device is closed again, as most are at once: the next open needs it free.
PATIENCE = 0.5

T = TypeVar("T")


class Line(Protocol):
    """The line through which a device is used while it is open. One task reads at a time, and one writes.

    :ivar fd: the descriptor with our own waits on it, or None if a library waits
    :ivar deadline: put off by code that takes data from the descriptor, because the watch may then find nothing there
    """

    fd: Fd | None
    deadline: Deadline | None

    def fileno(self) -> int:
        """The descriptor, for requests to the driver. The line owns it until `close`."""

    async def receive(self, max_bytes: int, /) -> bytes:
        """Receive some bytes. The end of data, or an error, may mean that the device is gone."""

    async def send_some(self, item: memoryview, /) -> int:
        """Send at least one byte, and return how many were accepted."""

    def why_over(self) -> object:
        """Why the line is over. None if it is not, or if data that has come is not received yet."""

    def close(self) -> OffLoop[object] | None:
        """Begin to close it, when nobody is inside any more. Await the result to wait until it is closed."""


class FdLine:
    """A line with our own waits."""

    fd: Fd | None
    deadline: Deadline | None = None

    def __init__(self, fd: Fd) -> None:
        self.fd = self._fd = fd

    def fileno(self) -> int:
        return self._fd.number

    async def receive(self, max_bytes: int) -> bytes:
        return await self._fd.read(max_bytes)

    async def send_some(self, item: memoryview) -> int:
        return await self._fd.write_some(item)

    def why_over(self) -> object:
        return why_hung_up(self._fd.number)

    def close(self) -> OffLoop[object] | None:
        closing: OffLoop[object] | None = self._fd.close()
        return closing


def why_hung_up(fd: int) -> str | None:
    """Why the line is over, if its driver says so."""
    poll = select.poll()
    poll.register(fd, 0)  # which tells of hang-ups and errors unasked
    return "the kernel has hung it up" if poll.poll(0) else None


L = TypeVar("L", bound=Line)


class Device(Resource, Generic[L]):
    """An open device. Closing it closes what was opened, and waits for that. A thread closes it; if none can be
    started, the loop's own thread does.

    A subclass has `_connect`, and methods that explain errors.

    :ivar path: the path that was opened
    :ivar name: for errors and reports
    :ivar shared: the line, for its streams
    """

    def __init__(
        self,
        path: str,
        owner: Revokable | None,
        name: str,
        answers: Answers | EllipsisType,
        *,
        backlog: int | None,
        history: int = 0,
        exact: bool = True,
        idle_limit: float | None,
        close_timeout: float,
    ) -> None:
        for option, seconds in ("close_timeout", close_timeout), ("idle_limit", idle_limit):
            if seconds is not None and not seconds > 0:
                raise ValueError(f"{option} is {seconds!r}: give seconds, more than 0")
        self.path = path
        self._owner = owner
        self.name = name
        self._answers = answers
        self._idle_limit = idle_limit
        self._close_timeout = close_timeout
        self.shared = Shared(
            self._receive, self._send_some, backlog=backlog, exact=exact, history=history, failed=self.failed
        )
        self._used = False
        self._node: Revokable | None = None
        self._line: L | None = None
        self._watch: Watch | None = None

    @abstractmethod
    async def _connect(self, node: Revokable) -> L:
        """Open it, and give the node a release as soon as there is something to release."""

    @abstractmethod
    def _explaining(self) -> AbstractContextManager[object]:
        """Explain the error of a failed open, with the name of the device and what to do."""

    @abstractmethod
    def _explained(self, exc: OSError) -> OSError:
        """Explain the error of an operation in the same way."""

    @abstractmethod
    def _is_end(self, exc: OSError, *, of_data: bool) -> bool:
        """Whether the error says that the device is gone, and not that its driver refuses something.

        :param of_data: it is the error of a read or a write
        """

    def revoked_error(self, error: RevokedError) -> RevokedError:
        """The error of this kind of device."""
        return error

    def __await__(self) -> Generator[Any, Any, Self]:
        """Open it."""
        return self._open().__await__()

    async def __aenter__(self) -> Self:
        return self if self._node is not None else await self

    async def _open(self) -> Self:
        if self._used:
            raise RuntimeError(f"{self.path!r} was opened already: make another")
        self._used = True
        try:
            async with (self._owner or Revokable()).opening(self.name, answers=self._answers) as node:
                with self._explaining():
                    line = self._line = await self._connect(node)
                    self.shared.fd = line.fd
                    node.release = self._release
                    self._begin_to_watch(line)
                self._node = node
        except RevokedError as error:
            raise self.revoked_error(error) from None
        return self

    def _begin_to_watch(self, line: L) -> None:
        # Once for each event: what a far end has sent before it closed stays there to be received.
        events = EPOLLRDHUP | EPOLLET
        if self._idle_limit is not None:
            events |= POLLIN
            line.deadline = Deadline(self._idle_limit, self._idle)
            if line.fd is not None:
                line.fd.heard = line.deadline.put_off
        try:
            self._watch = Watch(line, self._stirred, events=events, closes=False)
        except PermissionError as exc:
            raise OSError(errno.EOPNOTSUPP, "nobody can wait for it: its driver has no poll") from exc

    @property
    def node(self) -> Revokable:  # type: ignore[override]  # it has none before
        """The node that is revoked, once the device is open."""
        if self._node is None:
            raise self._not_open()
        return self._node

    def failed(self, exc: Exception) -> Exception:
        """Return the error to raise for an operation on its descriptor that has failed or ended in this way. If it says
        that the device is gone, the device is revoked, and the error is a `RevokedError`.
        """
        of_data = isinstance(exc, anyio.EndOfStream | anyio.BrokenResourceError)
        why = exc.__cause__ if of_data else exc
        if isinstance(why, OSError) and not self._is_end(why, of_data=of_data):
            return self._explained(why)
        self._gone(why or self.line.why_over() or "end of data")
        return RevokedError(self.node, in_flight=True)

    def _gone(self, why: object) -> None:
        self.node.revoke(f"unplugged: {why}")

    def fileno(self) -> int:
        """Its descriptor."""
        return self.line.fileno()

    @property
    def line(self) -> L:
        """The line through which it is used, as soon as there is one."""
        if self._line is None:
            raise self._not_open()
        return self._line

    def _not_open(self) -> RuntimeError:
        return RuntimeError(f"{self.path!r} is not open: use `async with`, or await it")

    def __repr__(self) -> str:
        of = "not open" if self._node is None else f"of {self._node!r}"
        return f"<{type(self).__name__} {self.path!r} {of}>"

    def _stirred(self) -> None:
        line = self.line
        why = line.why_over()
        if why is not None:
            self._gone(why)
        elif line.deadline is not None:
            line.deadline.put_off()

    def _idle(self) -> None:
        self.node.revoke(f"nothing has come for {self._idle_limit:g} s")

    async def _receive(self, max_bytes: int) -> bytes:
        return await self.attempt(lambda: self.line.receive(max_bytes))

    async def _send_some(self, item: memoryview) -> int:
        return await self.attempt(lambda: self.line.send_some(item))

    async def attempt(self, operation: Callable[[], Awaitable[T]]) -> T:
        """Await something sent to the device, inside an operation of a stream. If the device is gone, it is revoked.

        :raises OSError: if the driver refuses it
        """
        try:
            return await operation()
        except (anyio.EndOfStream, anyio.BrokenResourceError) as exc:
            error = self.failed(exc)
        except OSError as exc:
            error = self.failed(exc)
            if not isinstance(error, RevokedError):
                raise error from exc
        await anyio.lowlevel.checkpoint()  # where the kick comes, unless the owner opened it with none
        raise error

    async def request(self, call: Callable[[int], T]) -> T:
        """Make a request to the driver in a thread, as `attempt`. It is short, and waited for in any case."""

        def request() -> T:
            with os_errors(self.name):
                return call(self.fileno())

        return await self.attempt(lambda: off_loop(request, patience=math.inf))

    def _release(self) -> Awaitable[None] | None:
        for background in self._watch, self.line.deadline:
            if background is not None:
                background.close()
        closing = self.line.close()
        return None if closing is None else self._closed(closing)

    async def _closed(self, closing: OffLoop[object]) -> None:
        try:
            with anyio.fail_after(self._close_timeout):
                await closing
        except anyio.get_cancelled_exc_class():  # by a loop that ends: nobody is left to be told
            if not closing.done():
                logger.warning("%r: its line is stalled; the loop ends before the kernel has closed it", self.path)
        except TimeoutError as exc:
            raise TimeoutError(
                f"{self.path!r}: its line is stalled, and the kernel has not closed it in {self._close_timeout:g} s; it goes on"
            ) from exc
