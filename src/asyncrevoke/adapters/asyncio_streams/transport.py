"""A serial port as a transport of asyncio."""

from __future__ import annotations

import asyncio
import functools
import math
from collections.abc import Awaitable, Generator
from typing import Any

import anyio

from asyncrevoke.adapters.serial import SerialDevice, SerialRevokedError, SerialStream
from asyncrevoke.lowlevel import Revocation, RevokedError, Wait

from .wrapped import revoked

_MOST = 65536  # bytes that are read at a time


class SerialTransport(asyncio.Transport):
    """The transport of a serial port, which is closed with it.

    The loop's callbacks read and write. The one task only waits for the end. What you write to a closing transport is
    ignored, as by other transports, and `connection_lost` tells. For requests to the driver, such as `set_modem_lines`,
    open your own stream: ``transport.device.open()``. Do not read or send on it: this transport does.

    :ivar device: the port
    :ivar handle: its node. Await its revocation to wait until the port is closed
    :ivar full: the protocol should stop writing for now: `pause_writing` was the last call to it
    :ivar closing: it was closed, or its port revoked: what you write is ignored
    """

    def __init__(self, loop: asyncio.AbstractEventLoop, protocol: asyncio.BaseProtocol, device: SerialDevice) -> None:
        super().__init__()
        self.loop = loop
        self.device = device
        self.handle = device.node
        self.full = False
        self._fd = device.fd
        self._unsent = bytearray()
        self._sent = asyncio.Event()  # all that was written
        self._sent.set()
        self._room: dict[asyncio.Future[Any], None] = {}  # of those who wait for it
        self._held = 0  # reasons to keep for later what is written
        self._reading = True
        self.closing = False
        self._ending = asyncio.Event()  # nothing more is received; it is closed when all is sent
        self._act: Revocation | None = None
        self._why: RevokedError | None = None  # it ended, if it was not closed
        self.set_protocol(protocol)
        self.set_write_buffer_limits()
        # Nobody's: its own tasks, too, may end it. The first ends at once, the second has the grace.
        self._operations = Wait(self.handle, self._taken, idle=True), Wait(self.handle, lambda _: self._take_unsent())
        for operation in self._operations:
            operation.enter()
            operation.task = None
        self._running = loop.create_task(self._run(), name=f"connection of {self.handle.path!r}")

    def begin(self) -> None:
        """Begin to receive, after `connection_made`."""
        self._listen()

    async def _run(self) -> None:
        try:
            await self._ending.wait()
            await self._sent.wait()
        finally:
            try:
                await self._left()
            except Exception as exc:  # noqa: BLE001  # the protocol is told in any case
                self._report("closing the port failed", exc)
            except BaseExceptionGroup:
                pass  # the loop ends, and has cancelled the release: the thread that closes the port goes on
            finally:
                self._tell("connection_lost", self._why)

    def _left(self) -> Revocation:
        """Leave the port, which is closed then. Return the awaitable of that, each time the same."""
        if self._act is None:  # others' grace is not cut short
            self._act = self.handle.revoke(grace=math.inf) if self.handle.revoked else self.handle.close()
            self._stop_reading()
            self._take_unsent()
            for operation in self._operations:
                operation.leave()
        return self._act

    def _taken(self, error: Exception) -> None:
        if isinstance(error, RevokedError) and not self._ending.is_set():
            self._why = SerialRevokedError.of(error)
        self._stop_reading()
        self._ending.set()

    def _stop_reading(self) -> None:
        self.closing = True
        self._listen()

    def _listen(self) -> None:
        self._fd.readable.call(self.loop, self._read_ready if self.is_reading() else None)

    def _read_ready(self) -> None:
        if revoked(self.handle):  # and will be kicked
            return
        try:
            data = self._fd.read_now(_MOST)
        except (anyio.EndOfStream, anyio.BrokenResourceError) as exc:
            self.device.failed(exc)
            return
        if data is not None:
            try:
                self._told.data_received(data)
            except BaseException as exc:  # noqa: BLE001  # as `_tell` does, without a call more
                self._failed("data_received", exc)

    def _write_now(self, data: bytes | bytearray | memoryview) -> int:
        """Write what the port accepts, and return how many bytes."""
        try:
            return self._fd.write_now(data) or 0
        except anyio.BrokenResourceError as exc:
            self.device.failed(exc)
            return len(data)

    def _write_ready(self) -> None:
        del self._unsent[: self._write_now(self._unsent)]
        self._perhaps_resume()
        if not self._unsent:
            self._take_unsent()

    def _take_unsent(self) -> bytearray:
        """Take all unsent data back: nothing is to be sent any more."""
        unsent, self._unsent = self._unsent, bytearray()
        self._fd.writable.call(self.loop, None)
        self._sent.set()
        if self.closing:
            self._ending.set()
        return unsent

    def _send_later(self, data: bytes | bytearray | memoryview) -> None:
        if not self._unsent:
            self._sent.clear()
            if not self._held:
                self._fd.writable.call(self.loop, self._write_ready)
        self._unsent += data
        self._perhaps_pause()

    def _let_go(self) -> None:
        self._held -= 1
        if self._unsent and not self._held:
            self._fd.writable.call(self.loop, self._write_ready)

    @functools.cached_property
    def driver(self) -> SerialStream:
        """A stream for requests to the driver."""
        return self.device.open("transport")

    def room(self) -> asyncio.Future[Any]:
        """A future that is done when this is not `full` any more. The caller, too, may set its result."""
        future = self.loop.create_future()
        self._room[future] = None
        future.add_done_callback(self._room.pop)
        return future

    def _perhaps_pause(self) -> None:
        if not self.full and len(self._unsent) > self._high:
            self.full = True
            self._tell("pause_writing")

    def _perhaps_resume(self) -> None:
        if self.full and len(self._unsent) <= self._low:
            self.full = False
            self._tell("resume_writing")
            for future in self._room:
                if not future.done():
                    future.set_result(None)

    def _tell(self, callback: str, *args: object) -> None:
        try:
            getattr(self._told, callback)(*args)
        except BaseException as exc:  # noqa: BLE001
            self._failed(callback, exc)

    def _failed(self, callback: str, exc: BaseException) -> None:
        """Report what the protocol raises, even the CancelledError of a future it asks. Nothing is lost because of
        it.
        """
        if isinstance(exc, SystemExit | KeyboardInterrupt):
            raise exc
        self._report(f"protocol.{callback}() failed", exc)

    def _report(self, message: str, exc: BaseException) -> None:
        self.loop.call_exception_handler(
            {"message": message, "exception": exc, "transport": self, "protocol": self._protocol}
        )

    # -- asyncio.Transport --

    def write(self, data: bytes | bytearray | memoryview) -> None:
        if self.closing or revoked(self.handle) or not data:
            return
        if not isinstance(data, bytes):
            data = memoryview(data).cast("B")
        written = 0 if self._unsent or self._held else self._write_now(data)
        if written < len(data):
            self._send_later(memoryview(data)[written:])

    def close(self) -> None:
        """Send everything written, then close the port. Nothing is received any more."""
        if not self.is_closing():
            if self._unsent:
                self._stop_reading()
            else:
                self._left()

    def abort(self) -> None:
        """Close the port now, and throw away data that is not sent."""
        if not self.handle.revoked:  # whichever was first is told
            self.handle.close()
        self._take_unsent()

    async def wait_closed(self) -> None:
        """Wait until the port is closed, by anybody, and `connection_lost` was called. You may cancel it."""
        await asyncio.wait((self._running,))

    def is_closing(self) -> bool:
        return self.closing or revoked(self.handle)

    def can_write_eof(self) -> bool:
        return False

    def write_eof(self) -> None:
        raise NotImplementedError(f"{self.handle.path!r} is a serial port: it has no end of data but close()")

    def flush(self) -> Awaitable[None]:
        """Throw away data that is not sent, as pyserial-asyncio's does. If you await it, as serialx's is awaited, it
        sends all data.

        ``await transport.flush()`` throws nothing away. It waits until the driver, too, has sent what it was given.
        Await it directly. If you make a task for it that is cancelled before it begins, all data is thrown away.

        :raises SerialRevokedError: if awaited, and the port was revoked or unplugged, before or meanwhile
        :raises ~anyio.ClosedResourceError: if awaited, and it was closed, before or meanwhile
        Cancellation: ends the waiting. Everything is still sent.
        """
        taken = bytearray() if self.is_closing() else self._take_unsent()  # a close sends all
        if taken:
            self._held += 1  # until a task has put it back, if it is to be awaited
            self.loop.call_soon(self.loop.call_soon, self._let_go)
        self._perhaps_resume()
        return _Flush(self, taken)

    async def _flushed(self, taken: bytearray) -> None:
        try:
            with self.handle.using():
                driver = self.driver
                if taken:
                    later, self._unsent = self._unsent, bytearray()
                    self._send_later(taken + later)
                await self._sent.wait()
                self._held += 1  # or it could stall the request to the driver, for which a revocation waits
                try:
                    await driver.drain()
                finally:
                    self._let_go()
        except RevokedError as error:
            raise SerialRevokedError.of(error) from error.__cause__

    def pause_reading(self) -> None:
        self._reading = False
        self._listen()

    def resume_reading(self) -> None:
        self._reading = True
        self._listen()

    def is_reading(self) -> bool:
        return self._reading and not self.closing

    def set_write_buffer_limits(self, high: int | None = None, low: int | None = None) -> None:
        if high is None:
            high = 65536 if low is None else 4 * low
        low = high // 4 if low is None else low
        if not high >= low >= 0:
            raise ValueError(f"high is {high!r} and low is {low!r}: give bytes, high the larger")
        self._high, self._low = high, low
        self._perhaps_pause()

    def get_write_buffer_limits(self) -> tuple[int, int]:
        return self._low, self._high

    def get_write_buffer_size(self) -> int:
        return len(self._unsent)

    def get_protocol(self) -> asyncio.BaseProtocol:
        return self._protocol

    def set_protocol(self, protocol: asyncio.BaseProtocol) -> None:
        self._protocol = protocol
        self._told: Any = _Buffered(protocol) if isinstance(protocol, asyncio.BufferedProtocol) else protocol

    @property
    def serial(self) -> Any:
        """The object of pyserial. What you do with it is not guarded, and may block."""
        return self.device.serial

    def get_extra_info(self, name: str, default: Any = None) -> Any:
        return {"serial": self.device.serial}.get(name, default)

    def __repr__(self) -> str:
        return f"<SerialTransport of {self.handle!r}>"


class _Buffered:
    """Passes data to a BufferedProtocol, as others get it."""

    def __init__(self, protocol: asyncio.BufferedProtocol) -> None:
        self._protocol = protocol

    def __getattr__(self, callback: str) -> Any:
        return getattr(self._protocol, callback)

    def data_received(self, data: bytes) -> None:
        while data:
            room = memoryview(self._protocol.get_buffer(len(data)))
            if not (size := min(len(room), len(data))):
                raise RuntimeError("get_buffer() returned an empty buffer")
            room[:size] = data[:size]
            self._protocol.buffer_updated(size)
            data = data[size:]


class _Flush(Awaitable[None]):
    """Data that was taken out to be thrown away. It is put back if this is awaited."""

    def __init__(self, transport: SerialTransport, taken: bytearray) -> None:
        self._transport = transport
        self._taken = taken

    def __await__(self) -> Generator[Any, Any, None]:
        taken, self._taken = self._taken, bytearray()
        return self._transport._flushed(taken).__await__()
