"""An open file of an entry, and the operations on it: each calls a handler, or waits for news."""

from __future__ import annotations

import errno
import inspect
import os
import time
from collections.abc import Awaitable, Callable
from types import TracebackType
from typing import TYPE_CHECKING, Any, Literal, Self, TypeAlias, TypedDict, TypeVar

import anyio
import anyio.abc
import anyio.lowlevel

from asyncrevoke.linux import POLLERR, POLLHUP, POLLIN, POLLNVAL, POLLOUT, POLLPRI
from asyncrevoke.lowlevel import Handled, Revokable, RevokedError, Use, answer

if TYPE_CHECKING:
    from .directory import Entry

T = TypeVar("T")
Maybe: TypeAlias = Awaitable[T] | T

_READY = POLLIN | POLLOUT  # where no handler says it: DEFAULT_POLLMASK (include/linux/poll.h)
_NEWS = POLLPRI | POLLERR  # kernfs_generic_poll (fs/kernfs/file.c)
_UNASKED = POLLERR | POLLHUP | POLLNVAL  # told whether asked for or not, as by poll(2)


class Handlers(TypedDict, total=False):
    """The handlers of an entry. Each is a plain function or an async one. What it raises goes to the caller of the
    operation.

    :ivar show: returns all of the text, as of an attribute in sysfs, when a file is read from its beginning. Later
        reads return the rest of the same text
    :ivar store: gets what is written. It returns how many bytes it took, or None for all
    :ivar read: instead of `show`: gets the operation, a size and an offset. It returns up to so many bytes, b"" at the
        end, or None if there are none yet. After None it is called again when there is news (`Entry.notify`). Then
        `cat` never ends, and `tail -f`, which needs `size` for it, follows at once. With b"" `cat` ends, and `tail -f`
        looks every second
    :ivar write: instead of `store`: gets the operation, the bytes and the offset
    :ivar poll: gets the operation. It returns which of `select.POLLIN` and so on are ready. Default: IN and OUT; PRI
        and ERR too, if there was news since the file was read; no IN after a `read` that had nothing. A program that
        polls before it has read that far gets IN, and then waits in `read`. For programs that poll before each read,
        give this handler
    :ivar control: gets the operation, a request and its argument, like an ioctl. It returns the answer
    :ivar size: returns the length, for programs that need it, as `tail -f` does. Default: 0
    :ivar open: gets the file that is being opened. Handlers may keep their own data in `file.private`
    :ivar release: gets the file, once, when it has been closed or revoked
    """

    show: Callable[[], Maybe[str | bytes]]
    store: Callable[[bytes], Maybe[int | None]]
    read: Callable[[Operation, int, int], Maybe[bytes | None]]
    write: Callable[[Operation, bytes, int], Maybe[int | None]]
    poll: Callable[[Operation], Maybe[int]]
    control: Callable[[Operation, int, Any], Maybe[Any]]
    size: Callable[[], Maybe[int]]
    open: Callable[[OpenFile], Maybe[object]]
    release: Callable[[OpenFile], Maybe[object]]


class OpenFile(Handled):
    """An open file, as `Entry.open` returns it. Iterate over it to read on until the end.

    Each operation is a checkpoint. When the entry is removed, or the file revoked, waits for news end, and handlers end
    as the profile says. Later operations fail.

    :ivar handle: the node that is revoked
    :ivar offset: where the next `read` or `write` begins. One of these at a time moves it
    :ivar private: the handlers' own data
    :ivar blocking: whether a read waits for news if there are no bytes yet. False works like O_NONBLOCK
    :raises RevokedError: from each operation, if it was revoked, before or meanwhile; its `errno` is the profile's
    :raises ~anyio.ClosedResourceError: from each operation, if it was closed, before or meanwhile
    :raises OSError: from each operation, if the entry has no handler for it
    :raises: from each operation, what the handler raises
    Cancellation: of each operation cancels the handler.
    """

    handle: Revokable

    def __init__(self, entry: Entry) -> None:
        self.entry = entry
        self.offset = 0
        self.private: Any = None
        self.blocking = True
        self._position = anyio.ResourceGuard("reading from or writing to")
        self._shown: bytes | None = None
        self._seen = entry.running.events
        self._had_nothing = False  # when it was seen

    async def read(self, size: int = 65536) -> bytes:
        """Read up to so many bytes, and b"" at the end. If there are none yet, it waits for news.

        :raises BlockingIOError: instead of waiting, if it is not `blocking`
        :raises ~anyio.BusyResourceError: if another task is reading, writing or seeking
        """

        async def read(operation: Operation) -> bytes:
            with self._position:
                data = await self._read(operation, size, self.offset)
                self.offset += len(data)
                return data

        return await self._get(read)

    async def pread(self, size: int, offset: int) -> bytes:
        """Read as `read` does, at an offset. The file's own offset does not move."""
        return await self._get(lambda operation: self._read(operation, size, offset))

    async def write(self, data: bytes) -> int:
        """Write, and return how many bytes were taken.

        :raises ~anyio.BusyResourceError: if another task is reading, writing or seeking
        """

        async def write(operation: Operation) -> int:
            with self._position:
                taken = await self._write(operation, data, self.offset)
                self.offset += taken
                return taken

        return await self._operate("write", write)

    async def pwrite(self, data: bytes, offset: int) -> int:
        """Write as `write` does, at an offset. The file's own offset does not move."""
        return await self._operate("write", lambda operation: self._write(operation, data, offset))

    async def seek(self, offset: int, whence: int = os.SEEK_SET) -> int:
        """Move to an offset, from the beginning or from the present one. There is no end to seek from (seq_lseek).

        :raises OSError: EINVAL, if there is no such offset
        :raises ~anyio.BusyResourceError: if another task is reading, writing or seeking
        """

        async def seek(_: Operation) -> int:
            with self._position:
                there = offset + (self.offset if whence == os.SEEK_CUR else 0)
                if there < 0 or whence not in (os.SEEK_SET, os.SEEK_CUR):
                    raise OSError(errno.EINVAL, f"cannot seek by {offset} in way {whence}", self.handle.path)
                self.offset = there
                return there

        return await self._operate("read", seek)

    async def poll(self, events: int = _READY, *, wait: bool = True) -> int:
        """Wait until one of the events is ready, and return all that are ready, asked for or not.

        :param events: `select.POLLIN` and so on; ERR, HUP and NVAL always count
        :param wait: False: do not wait
        :raises RevokedError: only without a profile; with one, a revoked file polls as its whole mask
        """

        async def poll(operation: Operation) -> int:
            while True:
                seen = self.entry.running.events
                ready = await self._ready(operation)
                if ready & (events | _UNASKED) or not wait:
                    return ready
                await operation.wait_for_news(seen)

        try:
            return await self._operate("poll", poll, idle=True)
        except RevokedError as error:
            if error.node is not self.handle or self.handle.answers is None:
                raise
            return self.handle.answers.poll

    async def news(self, seen: int) -> None:
        """Wait until there was news since the entry's `running.events` was `seen`."""
        await self._operate("poll", lambda operation: operation.wait_for_news(seen), idle=True)

    async def control(self, request: int, argument: Any = None) -> Any:
        """Call the handler for a request, like an ioctl.

        :raises OSError: ENOTTY, if the entry has no such handler
        """

        async def control(operation: Operation) -> Any:
            if (handler := self.entry.handlers.get("control")) is None:
                raise self._lacks("control", errno.ENOTTY)
            return await call(handler, operation, request, argument)

        return await self._operate("ioctl", control)

    def __aiter__(self) -> Self:
        return self

    async def __anext__(self) -> bytes:
        if data := await self.read():
            return data
        raise StopAsyncIteration

    # -- what is done in an operation --

    async def _operate(
        self,
        kind: Literal["read", "write", "ioctl", "poll"],
        work: Callable[[Operation], Awaitable[T]],
        *,
        idle: bool = False,
    ) -> T:
        await anyio.lowlevel.checkpoint()
        try:
            with Operation(self, idle=idle) as operation:
                return await work(operation)
        except RevokedError as error:
            if kind != "poll":
                answer(error, self.handle, kind)
            raise

    async def _get(self, work: Callable[[Operation], Awaitable[bytes]]) -> bytes:
        try:
            return await self._operate("read", work, idle=True)
        except anyio.EndOfStream:  # the answer of some profiles
            return b""

    async def _read(self, operation: Operation, size: int, offset: int) -> bytes:
        if size < 0 or offset < 0:
            raise OSError(errno.EINVAL, f"cannot read {size} bytes at {offset}", self.handle.path)
        handlers = self.entry.handlers
        if "show" in handlers:
            if not offset or self._shown is None:
                self._seen = self.entry.running.events
                self._shown = self._bytes("show", await call(handlers["show"]))
            return self._shown[offset : offset + size]
        if (handler := handlers.get("read")) is None:
            raise self._lacks("show", errno.EINVAL)
        while True:
            self._seen = self.entry.running.events
            data = await call(handler, operation, size, offset)
            self._had_nothing = data is None
            if data is not None:
                break
            if not self.blocking:
                raise BlockingIOError(errno.EAGAIN, "there is nothing yet", self.handle.path)
            await operation.wait_for_news(self._seen)
        if len(found := self._bytes("read", data)) > size:
            raise ValueError(f"{self.handle.path!r}: 'read' was asked for {size} bytes, and returned {len(found)}")
        return found

    def _bytes(self, handler: str, data: object) -> bytes:
        if isinstance(data, str):
            return data.encode()
        if isinstance(data, bytes | bytearray | memoryview):
            return bytes(data)
        raise TypeError(f"{self.handle.path!r}: {handler!r} returned {data!r}: give bytes, or text")

    async def _write(self, operation: Operation, data: bytes, offset: int) -> int:
        if offset < 0:
            raise OSError(errno.EINVAL, f"cannot write at {offset}", self.handle.path)
        data = bytes(memoryview(data))
        if (store := self.entry.handlers.get("store")) is not None:
            taken = await call(store, data)
        elif (write := self.entry.handlers.get("write")) is not None:
            taken = await call(write, operation, data, offset)
        else:
            raise self._lacks("store", errno.EINVAL)
        if taken is None:
            return len(data)
        if type(taken) is not int or not 0 <= taken <= len(data):
            raise ValueError(
                f"{self.handle.path!r}: of {len(data)} bytes the handler took {taken!r}: return a number, or None"
            )
        return taken

    def _lacks(self, handler: str, number: int) -> OSError:
        return OSError(number, f"it has no handler {handler!r}", self.handle.path)

    async def _ready(self, operation: Operation) -> int:
        if "poll" not in self.entry.handlers:
            if self.entry.running.events != self._seen:
                return _READY | _NEWS
            return _READY & ~POLLIN if self._had_nothing else _READY
        ready = await call(self.entry.handlers["poll"], operation)
        if not isinstance(ready, int):
            raise TypeError(f"{self.handle.path!r}: 'poll' returned {ready!r}: give a mask, as select.POLLIN")
        return ready


class Running:
    """The operations that run on the files of an entry.

    :ivar events: how often there was news
    :ivar changed: when there was last news, in nanoseconds as of `time.time_ns`
    :ivar leaving: the operations that remove the entry from inside
    :ivar winner: the one of them that did it
    """

    def __init__(self) -> None:
        self.events = 0
        self.changed = time.time_ns()
        self.leaving: dict[Operation, None] = {}
        self.winner: Operation | None = None
        self._all: dict[Operation, None] = {}

    def notify(self) -> None:
        """Count news, and wake all who wait for them."""
        self.events += 1
        self.changed = time.time_ns()
        for operation in self._all:
            operation.wake()

    def enter(self, operation: Operation) -> None:
        """It has begun."""
        self._all[operation] = None

    def leave(self, operation: Operation) -> None:
        """Note the end of an operation. Those that wait for it look again."""
        del self._all[operation]
        self.leaving.pop(operation, None)
        self.look_again()

    def look_again(self) -> None:
        """Wake those that wait for operations to end: one has ended, or no longer counts."""
        for operation in self.leaving:
            operation.wake()

    def others(self) -> bool:
        """Whether there are operations of tasks other than those that remove the entry from inside."""
        leaving = {operation.task for operation in self.leaving}
        return any(operation.task not in leaving for operation in self._all)


class Operation:
    """One operation on a file, as its handler gets it.

    :ivar file: the file
    :param counted: count it even if the entry is permanent
    """

    def __init__(self, file: OpenFile, *, idle: bool, counted: bool = False) -> None:
        self.file = file
        self._counted = counted or not file.entry.permanent
        self._running = file.entry.running
        self._idle = idle
        self._use: Use | None = None  # there is none of what is not counted
        self._woken: anyio.Event | None = None

    @property
    def kicked(self) -> bool:
        """Whether this operation must end, because the entry was removed or the file revoked."""
        return self._use is not None and self._use.kicked

    @property
    def task(self) -> object:
        """The task it runs in."""
        return None if self._use is None else self._use.task

    def on_kick(self, hook: Callable[[], object]) -> None:
        """Register `hook`, to end what the handler waits for. The removal calls it, or it is called at once if that has
        been.

        Models debugfs_enter_cancellation (fs/debugfs/file.c).
        """
        if self._use is not None:
            self._use.on_kick(hook)

    async def remove_self(self, reason: str = "removed by itself") -> bool:
        """Remove the entry from inside one of its handlers, and wait until none of its other handlers runs.

        Return whether this call has removed it. If several try, one wins, and the others wait until the winner's whole
        operation is over. This call does not wait for those others; whoever awaits the removal does. If handlers are
        cancelled, this one is, too. Models kernfs_remove_self (fs/kernfs/dir.c).

        :raises OSError: as `Entry.remove`
        Cancellation: ends the waiting. The entry is removed all the same.
        """
        running = self._running
        won = not self.file.entry.node.revoked
        self.file.entry.remove(reason)
        running.leaving[self] = None
        running.look_again()
        if won:
            running.winner = self
        if (winner := running.winner) in (None, self):
            await self._until(lambda: not running.others())
        else:
            await self._until(lambda: winner not in running.leaving)
        return won

    async def wait_for_news(self, seen: int) -> None:
        """Wait until there was news since `Running.events` was `seen`.

        :raises RevokedError, ~anyio.ClosedResourceError: instead, if this operation must end
        """
        if self._use is None:  # of what is permanent, but its file may be taken away: the wait alone is an operation
            with Operation(self.file, idle=True, counted=True) as waiting:
                await waiting.wait_for_news(seen)
            return
        await self._until(lambda: self.kicked or self._running.events != seen)
        if self.kicked:
            handle = self.file.handle
            if handle.closed:
                raise anyio.ClosedResourceError(f"{handle.path!r} was closed by its owner during this operation")
            raise RevokedError(handle, in_flight=True)

    async def _until(self, ready: Callable[[], bool]) -> None:
        if self._woken is None and not ready():
            self.on_kick(self.wake)
        while not ready():
            if self._woken is None or self._woken.is_set():  # else another part of the handler waits already
                self._woken = anyio.Event()
            await self._woken.wait()

    def wake(self) -> None:
        """Let it look again at what it waits for."""
        if self._woken is not None:
            self._woken.set()

    def __enter__(self) -> Self:
        handle = self.file.handle
        if self._counted or handle.revoked:
            self._use = handle.using(idle=self._idle)
            self._use.__enter__()
        self._running.enter(self)
        return self

    def __exit__(self, kind: type[BaseException] | None, exc: BaseException | None, tb: TracebackType | None) -> None:
        self._running.leave(self)
        if self._use is not None:
            self._use.__exit__(kind, exc, tb)


async def call(handler: Callable[..., Maybe[T]], *args: object) -> T:
    """Call a handler, plain or async."""
    result = handler(*args)
    return await result if inspect.isawaitable(result) else result
