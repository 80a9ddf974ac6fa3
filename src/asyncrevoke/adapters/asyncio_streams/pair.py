"""The reader and the writer of our serial transport. The transport ends whatever they wait for: there is no cancel
scope.
"""

from __future__ import annotations

import asyncio
import errno
from collections.abc import Callable
from typing import Any, Literal

import anyio

from asyncrevoke.adapters.serial import SerialRevokedError
from asyncrevoke.lowlevel import Revokable, RevokedError, Wait, answer, checkpoint, due

from .transport import SerialTransport
from .wrapped import ConnectionClosedError, revoked


class SerialReader(asyncio.StreamReader):
    """A reader of a serial port. Its `SerialWriter` completes it.

    A read whose data is there does not suspend. Only the loop brings data, so a task that reads on lets others run.
    Once the port is revoked, each read is a checkpoint. It raises a fresh `SerialRevokedError`, or returns the end of
    data if the profile says so. After a close it raises `anyio.ClosedResourceError`. Here that is a
    ConnectionResetError too, as for all readers and writers that were closed.

    :ivar handle: the node of the port
    :ivar uses: the node below it for the operations of reads and drains. The writer's `close` closes it
    """

    handle: Revokable
    uses: Revokable
    _buffer: bytearray
    _maybe_resume_transport: Callable[[], None]
    _eof: bool
    _loop: asyncio.AbstractEventLoop
    _paused: bool
    _transport: asyncio.ReadTransport
    _waiter: asyncio.Future[None] | None

    def open(self, handle: Revokable, uses: Revokable) -> None:
        """Be the reader of the port that is open as `handle`."""
        self.handle = handle
        self.uses = uses
        self._wait = Wait(uses, self._kicked, idle=True)

    async def read(self, n: int = -1) -> bytes:
        if revoked(self.uses) and not await self.goes_on():
            return self._refuse()
        if n <= 0:
            return await super().read(n)
        if not self._buffer and not self._eof:
            await self._wait_for_data("read")
        return self._take(n)

    async def readexactly(self, n: int) -> bytes:
        if revoked(self.uses) and not await self.goes_on():
            raise asyncio.IncompleteReadError(self._refuse(), n)
        if 0 < n <= len(self._buffer):
            return self._take(n)
        return await super().readexactly(n)

    async def readuntil(self, separator: Any = b"\n") -> bytes:
        if revoked(self.uses) and not await self.goes_on():
            raise asyncio.IncompleteReadError(self._refuse(), None)
        return await super().readuntil(separator)

    def at_eof(self) -> bool:
        if self.handle.revoked:
            try:
                _gone(self.handle, "read", in_flight=False)
            except anyio.EndOfStream:
                return True
        return super().at_eof()

    def _take(self, n: int) -> bytes:
        """Like asyncio's own reads, without a further coroutine."""
        data = bytes(self._buffer[:n])
        del self._buffer[:n]
        if self._paused:
            self._maybe_resume_transport()
        return data

    async def goes_on(self) -> bool:
        """Whether reads go on after the port is gone, to the end of the data that came before. It is a checkpoint."""
        await checkpoint()
        return False

    def _refuse(self) -> bytes:
        try:
            raise _gone(self.handle, "read", in_flight=False)
        except anyio.EndOfStream:
            return b""

    async def _wait_for_data(self, func_name: str) -> None:
        """Wait as an operation. It replaces asyncio's own method, in which all reads wait."""
        if self._waiter is not None:
            await super()._wait_for_data(func_name)  # type: ignore[misc]  # which refuses a second reader
        wait = self._wait
        try:
            wait.enter()
        except (RevokedError, anyio.ClosedResourceError):  # in the midst of a read
            self.end()
            return
        self._waiter = self._loop.create_future()
        try:
            if self._paused:
                self._paused = False
                self._transport.resume_reading()
            await self._waiter
        finally:
            self._waiter = None
            wait.leave()
        if wait.act is not None and not self._buffer:
            self.end()

    def end(self) -> None:
        """End the waiting read."""
        try:
            raise _gone(self.handle, "read", in_flight=True)
        except anyio.EndOfStream:
            self.feed_eof()

    def _kicked(self, _: Exception) -> None:
        if self._waiter is not None and not self._waiter.done():
            self._waiter.set_result(None)


class SerialWriter(asyncio.StreamWriter):
    """The writer of a serial port. Its `transport` is a `SerialTransport`.

    :ivar handle: the node of the port
    """

    _transport: SerialTransport

    def __init__(
        self,
        transport: SerialTransport,
        protocol: asyncio.StreamReaderProtocol,
        reader: SerialReader,
        loop: asyncio.AbstractEventLoop,
    ) -> None:
        super().__init__(transport, protocol, reader, loop)
        self.handle = transport.handle
        self.uses = self.handle.open("streams")
        reader.open(self.handle, self.uses)

    @property
    def transport(self) -> SerialTransport:
        return self._transport

    def write(self, data: Any) -> None:
        if revoked(self.uses):
            raise self._refusal()
        self._transport.write(data)

    def writelines(self, data: Any) -> None:
        if revoked(self.uses):
            raise self._refusal()
        self._transport.writelines(data)

    def write_eof(self) -> None:
        if revoked(self.uses):
            raise self._refusal()
        super().write_eof()

    async def drain(self) -> None:
        """If the buffer was above the high limit, wait until it is below the low one.

        :raises SerialRevokedError: if the port was revoked or unplugged, before or meanwhile
        :raises ~anyio.ClosedResourceError: if it was closed, before or meanwhile
        Cancellation: ends the waiting. Everything is still sent.
        """
        if due(self.uses):
            await checkpoint()
        if revoked(self.uses):
            raise self._refusal()
        if self._transport.full:
            room = self._transport.room()
            wait = Wait(self.uses, lambda error: None if room.done() else room.set_result(error))
            wait.enter()
            try:
                kicked = await room
            finally:
                wait.leave()
            if kicked is not None:
                raise _gone(self.handle, "write", in_flight=True)
        if self._transport.closing and not self.handle.revoked:  # else there is a grace
            raise ConnectionResetError(errno.ECONNRESET, "the port is closing: unsent data may be lost")

    def close(self) -> None:
        if not self.uses.closed:
            self.uses.close()  # first: in another thread or loop it raises, and nothing has changed
            super().close()

    async def wait_closed(self) -> None:
        """Wait until the port is closed, by anybody. It raises nothing, and you may cancel it."""
        await self._transport.wait_closed()

    def _refusal(self) -> Exception:
        return _gone(self.handle, "write", in_flight=False)


def _gone(handle: Revokable, kind: Literal["read", "write"], *, in_flight: bool) -> Exception:
    """The error of an operation on a port that was revoked, or that its owner, or its writer, has closed.

    :raises ~anyio.EndOfStream: if that is the profile's answer to reads
    """
    if handle.closed or not handle.revoked:
        return ConnectionClosedError(f"{handle.path!r} was closed by its owner")
    error = SerialRevokedError(handle, in_flight=in_flight)
    try:
        answer(error, handle, kind)
    except anyio.EndOfStream:
        if kind == "read":
            raise
    return error
