"""One line for several streams. What comes goes to each of them, or to whoever reads. What they send is not mixed."""

from __future__ import annotations

import asyncio
import contextlib
import functools
import time
from collections.abc import Awaitable, Callable, Iterable
from types import EllipsisType
from typing import Any, TypedDict, Unpack

import anyio

from asyncrevoke._core.errors import RevokedError
from asyncrevoke._core.profile import Answers
from asyncrevoke._core.revokable import Revokable

from .face import Face
from .fd import Fd, Waiter

_ATOMIC = 4096  # bytes that are not mixed with another writer's, as pipe(7) has it


class Shared:
    """A line that any number of streams are open on. It is pulled: a stream that waits for data reads for all.

    With a backlog, a stream holds the line up if it is behind by more than half the backlog, as long as it goes on
    receiving. So the fastest is no faster than the slowest. A stream that has received nothing for `patience` seconds
    holds up nobody. One that has never received may be there to send: if it falls too far behind, it goes on, without its
    copies, and is revoked when it receives after all.

    :param receive: receives 1 to so many bytes, or raises EndOfStream. Cancelled, it has consumed nothing
    :param send_some: sends at least one byte of its argument, and returns how many
    :param backlog: bytes that a stream may be behind before it is revoked as too slow. None: there are no copies, and
        each byte goes to one reader
    :param patience: a stream holds the line up for so many seconds since it last received, or had nothing to receive
    :param exact: whether a cancelled `send_some` has sent nothing
    :param failed: turns the error of a read or write of the descriptor into the error to raise
    :param history: the number of latest bytes to keep for streams opened with `replay`. Only with a backlog
    :ivar fd: the line's descriptor, if our own waits are on it. On asyncio the loop's callback then reads, and wakes
        all who wait at once
    """

    fd: Fd | None = None

    def __init__(
        self,
        receive: Callable[[int], Awaitable[bytes]],
        send_some: Callable[[memoryview], Awaitable[int]],
        *,
        backlog: int | None,
        exact: bool = True,
        history: int = 0,
        patience: float = 0.0,
        failed: Callable[[Exception], Exception] = lambda exc: exc,
    ) -> None:
        if backlog is not None and not backlog > 0:
            raise ValueError(f"backlog is {backlog!r}: give bytes, 1 or more")
        if history < 0 or (history and backlog is None):
            raise ValueError(f"history is {history!r}: give bytes, 0 or more; more than 0 needs a backlog")
        self.streams: dict[SharedStream, None] = {}
        self.read = 0  # bytes, in all
        self.history = bytearray()
        self._receive = receive
        self._send_some = send_some
        self._backlog = backlog or 0  # of copies, one for each stream; 0: there are none
        self._exact = exact
        self._kept = history
        self._patience = patience
        self._failed = failed
        self._left = b""  # read for a task that was cancelled just then, where no stream gets a copy
        self._waiting: dict[SharedStream, asyncio.Future[Any]] = {}  # for the loop to read
        self._in_turn = 0  # those who read in a task of theirs, one after the other, where the loop does not
        self._behind = False  # perhaps somebody is so far behind that the line is held up
        self._taken: anyio.Event | None = None  # set when a stream has received, or has gone
        self._ended = False  # the last byte was read

    @functools.cached_property  # here and below: few ever need one, and it takes more than all else of a line
    def turn_to_write(self) -> anyio.Lock:
        return anyio.Lock()

    @functools.cached_property
    def _turn_to_read(self) -> anyio.Lock:
        return anyio.Lock()

    def keep(self, history: int) -> None:
        """Keep so many of the latest bytes from now on, where each stream gets a copy."""
        self._kept = history
        del self.history[: max(0, len(self.history) - history)]

    def receive_now(self, reader: SharedStream, max_bytes: int) -> bytes | None:
        """Receive what is there for `reader`, whose handle has admitted it. None: await `receive`, as every stream with
        copies does.
        """
        if self._left:
            data, self._left = self._left[:max_bytes], self._left[max_bytes:]
            return data
        fd = self.fd
        home = reader.handle._home
        assert home is not None  # in which it was admitted
        if self._backlog or fd is None or home.reactor is None:
            return None
        if fd.readable.told is not None:
            raise anyio.BusyResourceError("reading from")
        try:
            return self._read_now(fd, max_bytes)
        except RevokedError as error:
            raise _about(reader.handle, error) from error.__cause__

    async def receive(self, reader: SharedStream, max_bytes: int) -> bytes:
        """Wait for data for `reader`, as an operation of its handle."""
        handle = reader.handle
        home = handle._home
        assert home is not None  # in which it was admitted
        fd = self.fd
        try:
            if self._backlog:
                return await self._copy(reader, max_bytes, fd, home.reactor)
            if fd is None:
                with handle.using(idle=True):
                    return await self._receive(max_bytes)
            read = functools.partial(self._read_now, fd, max_bytes)
            return await fd.wait(handle, fd.readable, read, idle=True, late=self._keep)
        except RevokedError as error:
            raise _about(handle, error) from error.__cause__

    def _keep(self, result: bytes | Exception) -> None:
        if not isinstance(result, Exception):  # else the next one meets it, too
            self._left += result

    def _read_now(self, fd: Fd, max_bytes: int) -> bytes | None:
        try:
            return fd.read_now(max_bytes)
        except (anyio.EndOfStream, anyio.BrokenResourceError) as exc:
            raise self._failed(exc) from exc.__cause__

    async def _copy(
        self, reader: SharedStream, max_bytes: int, fd: Fd | None, reactor: asyncio.AbstractEventLoop | None
    ) -> bytes:
        """The data that has come for one reader, where each gets a copy."""
        reader.receives = True
        if reader.missed:
            reader.revoke(reader.missed)
            reader.handle._admit()
        unread = reader.unread
        while not unread:
            if self._ended:
                raise anyio.EndOfStream
            if fd is None or reactor is None or self._in_turn or (self._behind and self._slow()):
                await self._read_in_turn(reader)
            elif self._waiting or self._untaken() or not self._read_for_all(fd):
                await self._wait(reader, fd, reactor)
        data = bytes(unread if len(unread) <= max_bytes else unread[:max_bytes])
        del unread[: len(data)]
        reader.received = time.monotonic()
        if self._in_turn:
            self._tell_taken()
        return data

    async def _wait(self, reader: SharedStream, fd: Fd, reactor: asyncio.AbstractEventLoop) -> None:
        """Wait until the loop has read, or until it is this reader's turn."""
        waiter = Waiter(reader.handle, idle=True)
        waiter.enter()
        try:
            self._waiting[reader] = future = waiter.begin(reactor)
            if len(self._waiting) == 1:
                listen = functools.partial(self._listen, fd, reactor)
                reactor.call_soon(listen) if self._untaken() else listen()
            if (why := await future) is not None:
                raise why
            if waiter.act is not None and not reader.unread and not self._ended:  # woken for nothing, and kicked since
                raise reader.handle._error(waiter.act)
        finally:
            del self._waiting[reader]
            if not self._waiting:
                fd.readable.told = None
            waiter.leave()

    def _half(self) -> int:
        """The room that is left, if nobody is more than half of the backlog behind."""
        return self._backlog - self._backlog // 2

    def _untaken(self) -> bool:
        """Whether some stream has not taken what has come. It gets a turn before more is read, or it would never keep
        up.
        """
        return any(each.unread for each in self.streams)

    def _listen(self, fd: Fd, reactor: asyncio.AbstractEventLoop) -> None:
        if self._waiting:
            fd.readable.arm(reactor, functools.partial(self._came, fd))

    def _came(self, fd: Fd) -> bool:
        """The loop finds the line readable: read for all who wait, as somebody does."""
        if self._in_turn or (self._behind and self._slow()):
            self._wake()
        else:
            try:
                self._read_for_all(fd)
            except Exception as exc:  # noqa: BLE001  # raised in the tasks
                self._wake(exc)
        return True

    def _wake(self, why: Exception | None = None) -> None:
        for future in self._waiting.values():
            _resolve(future, why)

    def _read_for_all(self, fd: Fd) -> bool:
        """Read what is there. Return whether there was data, or the end of data."""
        try:
            data = self._read_now(fd, self._half())
        except anyio.EndOfStream:
            self._ended = True
            self._wake()
            return True
        if data is None:
            return False
        self._deliver(data)
        return True

    async def _read_in_turn(self, reader: SharedStream) -> None:
        self._in_turn += 1
        self._wake()
        try:
            with reader.handle.using(idle=True):
                async with self._turn_to_read:
                    if reader.unread or self._ended:
                        return
                    await self._wait_for_slow()
                    try:
                        self._deliver(await self._receive(self._half()))
                    except anyio.EndOfStream:
                        self._ended = True
        finally:
            self._in_turn -= 1

    def _slow(self) -> list[float]:
        """The times until which slow streams hold up the line: those that go on receiving, and have no room for half of
        the backlog.
        """
        until = [
            stream.received + self._patience
            for stream in self.streams
            if len(stream.unread) > self._kept + self._backlog // 2 and not stream.handle.revoked
        ]
        self._behind = bool(until)
        now = time.monotonic()
        return [each for each in until if each > now]

    async def _wait_for_slow(self) -> None:
        """Wait until every stream that goes on receiving has room for half of the backlog."""
        while until := self._slow():
            self._taken = anyio.Event()
            with anyio.move_on_after(min(0.5, max(until) - time.monotonic())):  # which may have been revoked meanwhile
                await self._taken.wait()

    def _deliver(self, data: bytes) -> None:
        """Give each stream a copy, and wake those who wait and do not take it at once."""
        self.read += len(data)
        if self._kept:
            self.history += data
            del self.history[: -self._kept]
        for stream in list(self.streams):
            if not stream.missed and (left := self._offer(stream, data)):
                self._keep_for(stream, left)

    def _offer(self, stream: SharedStream, data: bytes) -> bytes:
        """Offer data to a stream that waits and can take it at once. Return what is left."""
        future = self._waiting.get(stream)
        if stream.take is None or future is None or future.done() or stream.handle._acts:
            return data
        try:
            return stream.take(data)
        except Exception as exc:  # noqa: BLE001  # raised in the task
            _resolve(future, exc)
            return data

    def _keep_for(self, stream: SharedStream, data: bytes) -> None:
        if not stream.unread:
            stream.received = time.monotonic()
        stream.unread += data
        behind = len(stream.unread) - self._kept  # what was replayed is no delay of the reader's
        if behind > self._backlog // 2:
            self._behind = True
        if behind > self._backlog:
            why = f"it was {len(stream.unread)} bytes behind, and may be {self._backlog + self._kept}"
            if stream.receives:
                stream.revoke(why)
            else:
                stream.missed = why
                stream.unread.clear()
        if stream in self._waiting:
            _resolve(self._waiting[stream])

    def leave(self, stream: SharedStream) -> None:
        """The stream is gone."""
        self.streams.pop(stream, None)
        stream.left_at = self.read
        self._tell_taken()

    def _tell_taken(self) -> None:
        if self._taken is not None:
            self._taken.set()

    async def send(self, item: bytes, handle: Revokable) -> None:
        """Send all of `item` as an operation of `handle`, in pieces that are not mixed with others' data."""
        view = memoryview(item).cast("B")
        sent = 0
        locked = False
        try:
            if handle._acts:
                handle._admit()
            if not self.turn_to_write.locked():
                sent = self._write_now(view)
            if sent == len(view):
                return
            if sent % _ATOMIC:
                self.turn_to_write.acquire_nowait()
                locked = True
            with handle.using():
                while sent < len(view):
                    if not locked:
                        await self.turn_to_write.acquire()
                        locked = True
                    end = sent - sent % _ATOMIC + _ATOMIC
                    while view[sent:end]:
                        sent += await self._send_some(view[sent:end])
                    self.turn_to_write.release()
                    locked = False
        except RevokedError as error:
            error = _about(handle, error)
            error.sent = sent if self._exact else None
            raise error from error.__cause__
        finally:
            if locked:
                self.turn_to_write.release()

    def _write_now(self, item: memoryview) -> int:
        """Write what is accepted at once, and return how many bytes."""
        fd = self.fd
        sent = 0
        try:
            while fd is not None and sent < len(item) and (some := fd.write_now(item[sent:])):
                sent += some
        except anyio.BrokenResourceError as exc:
            if not sent:  # else the next meets it
                raise self._failed(exc) from exc.__cause__
        return sent


def _resolve(future: asyncio.Future[Any], result: Exception | None = None) -> None:
    if not future.done():
        with contextlib.suppress(RuntimeError):  # its loop was closed with the task in it
            future.set_result(result)


def _about(handle: Revokable, error: RevokedError) -> RevokedError:
    """Turn the error of a revocation of the whole line into one of `handle`."""
    return error if error.node is handle or not handle._acts else RevokedError(handle, in_flight=True)


class SharedOptions(TypedDict, total=False):
    """The options of every way of opening a stream on a shared line.

    :ivar also: further parents, such as a token. Whichever is revoked first takes the stream along
    :ivar answers: a profile of `asyncrevoke.answers`. Default: as at the owner
    :ivar replay: the stream gets the history first: the latest data that any stream has read
    :ivar take: with copies, the loop calls it with what comes while `receive` waits. It returns what it leaves to
        `receive`; if that is nothing, no task runs. `receive` raises what it raises. It is not called where the loop
        does not read, as on trio, or while the line is held up: then `receive` returns everything
    """

    also: Iterable[Revokable]
    answers: Answers | EllipsisType
    replay: bool
    take: Callable[[bytes], bytes]


class SharedStream(Face):
    """A stream on a shared line, with a handle of its own.

    :ivar unread: bytes that have come for it, and were not received
    :ivar received: when it last received, or had nothing to receive
    :ivar receives: whether it has ever received, where each stream gets a copy
    :ivar missed: why it must not receive any more: it gets no copies, because it has never taken any
    :ivar left_at: where it has left the line, in bytes from the line's beginning
    """

    left_at = 0
    receives = False
    missed = ""

    def __init__(
        self, shared: Shared, owner: Revokable, name: str = "", *, tty: bool = False, **options: Unpack[SharedOptions]
    ) -> None:
        handle = owner.open(
            name, also=options.get("also", ()), release=self._leave, answers=options.get("answers", ...)
        )
        super().__init__(handle, tty=tty)
        self.shared = shared
        self.unread = bytearray(shared.history if options.get("replay") else b"")
        self.take = options.get("take")
        self.received = time.monotonic()
        shared.streams[self] = None

    def forget(self) -> None:
        """Throw away the bytes that have come for it and were not received."""
        self.unread.clear()
        self.missed = ""
        self._ahead, self._at = b"", 0

    def _leave(self) -> None:
        self.shared.leave(self)

    def _receive_now(self, max_bytes: int) -> bytes | None:
        return self.shared.receive_now(self, max_bytes)

    async def _receive(self, max_bytes: int) -> bytes:
        return await self.shared.receive(self, max_bytes)

    async def _send(self, item: bytes) -> None:
        await self.shared.send(item, self.handle)
