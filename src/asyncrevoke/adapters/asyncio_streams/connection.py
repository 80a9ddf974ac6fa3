"""A serial port as a transport of asyncio, or as a pair of reader and writer."""

from __future__ import annotations

import asyncio
import math
from collections.abc import Awaitable, Callable, Generator
from typing import Any, TypeVar

import anyio

from asyncrevoke.adapters.serial import SerialDevice, SerialRevokedError, open_serial
from asyncrevoke.lowlevel import RevokedError

from .wrapped import revocable

P = TypeVar("P", bound=asyncio.BaseProtocol)
#: Options of pyserial's and serialx's that say nothing to a transport.
_VOID = {"timeout", "read_timeout", "write_timeout", "writeTimeout", "inter_byte_timeout"}


async def create_serial_connection(
    loop: asyncio.AbstractEventLoop, protocol_factory: Callable[[], P], url: str, baudrate: int = 9600, **options: Any
) -> tuple[SerialTransport, P]:
    """Open a serial port for a protocol, as pyserial-asyncio's function of this name and serialx's do.

    `connection_made` is called before this returns. `connection_lost` is called exactly once, last, and when the port is
    closed (a loop that ends does not wait for that): with a `RevokedError` if it was revoked or unplugged, with None if it
    was closed here; whichever came first. What `connection_made` raises comes out of this call, and the port is closed,
    without another word to the protocol; what the other callbacks raise is reported to the loop, and loses nothing.

    :param loop: the running one
    :param options: as for `open_serial`; the timeouts of pyserial and serialx are taken, and mean nothing here
    :raises: as `open_serial` and its opening
    Cancellation: nothing was opened.
    """
    if loop is not asyncio.get_running_loop():
        raise RuntimeError(f"{url!r}: give the running loop; a port is opened in no other")
    options = {option: value for option, value in options.items() if option not in _VOID}
    if "byte_size" in options:
        options["bytesize"] = options.pop("byte_size")
    if options.pop("low_latency", False):
        raise ValueError(f"{url!r}: low_latency is not supported: set it by setserial(8)")
    device = await open_serial(url, baudrate, **options)
    try:
        protocol = protocol_factory()
        transport = SerialTransport(loop, protocol, device)
        protocol.connection_made(transport)
        transport.begin()
        await asyncio.sleep(0)  # its task runs from here on: a loop that ends finds it, and it closes the port
    except BaseException:
        await device.aclose()
        raise
    return transport, protocol


async def open_serial_connection(
    *, loop: asyncio.AbstractEventLoop | None = None, limit: int = 65536, url: str, baudrate: int = 9600, **options: Any
) -> tuple[asyncio.StreamReader, asyncio.StreamWriter]:
    """Open a serial port as a pair of reader and writer, as pyserial-asyncio's function of this name and serialx's do.

    They are revocable, as those of `wrap_streams`; their errors are `serial.SerialException` too. As with other writers, a
    `close` sends all that was written before, on a stalled line for ever; `writer.transport.abort()` and a revocation of
    `writer.handle` end that.

    :param limit: of the reader's buffer, in bytes
    :param loop, options: as for `create_serial_connection`
    :raises: as `create_serial_connection`
    """
    loop = loop or asyncio.get_running_loop()
    reader = asyncio.StreamReader(limit=limit, loop=loop)
    protocol = asyncio.StreamReaderProtocol(reader, loop=loop)
    transport, _ = await create_serial_connection(loop, lambda: protocol, url, baudrate, **options)
    writer = asyncio.StreamWriter(transport, protocol, reader, loop)
    return revocable(reader, writer, transport.handle, SerialRevokedError.of)


class SerialTransport(asyncio.Transport):
    """The transport of a serial port, which is closed with it.

    What is written when it is closing is ignored, as by other transports; `connection_lost` tells. For requests to the
    driver, such as `set_modem_lines`, open a stream of your own: ``transport.device.open()``; but leave the reading to this.

    :ivar device: the port
    :ivar handle: its node: awaiting its revocation is awaiting that the port is closed
    """

    def __init__(self, loop: asyncio.AbstractEventLoop, protocol: asyncio.BaseProtocol, device: SerialDevice) -> None:
        super().__init__()
        self.loop = loop
        self.device = device
        self._protocol: Any = protocol
        self._stream = device.open("transport")
        self.handle = device.node
        self._unsent = bytearray()
        self._sending = 0  # bytes that were taken out of it, and are on their way
        self._sent = asyncio.Event()  # all that was written
        self._sent.set()
        self._written = asyncio.Event()  # something was, or it is closing
        self._reading = asyncio.Event()
        self._reading.set()
        self._closing = False
        self._full = False
        self._reader: asyncio.Task[None] | None = None
        self._why: BaseException | None = None  # it ended, if it was not closed
        self.set_write_buffer_limits()

    def begin(self) -> None:
        """Begin to receive, after `connection_made`."""
        self._running = self.loop.create_task(self._run(), name=f"connection of {self.handle.path!r}")

    async def _run(self) -> None:
        try:
            async with asyncio.TaskGroup() as tasks:  # a closing reader is cancelled, and the writer goes on
                self._reader = tasks.create_task(self._read_all(), name=f"reader of {self.handle.path!r}")
                await self._write_all()
        except BaseExceptionGroup as group:
            self._why = group.exceptions[0]
        finally:
            why = None if isinstance(self._why, anyio.ClosedResourceError) else self._why
            if isinstance(why, RevokedError):
                why = SerialRevokedError.of(why)
            self._closing = True
            self._take_unsent()
            grace = math.inf if self.handle.revoked else 0.0  # others' grace is not cut short
            try:
                await (self.handle.close() if why is None else self.handle.revoke(str(why), grace=grace))
            except Exception as exc:  # noqa: BLE001  # the protocol is told in any case
                self._report("the port was not closed well", exc)
            except BaseExceptionGroup:
                pass  # the loop ends, and has cancelled the release: the thread that closes the port goes on
            finally:
                self._tell("connection_lost", why)

    async def _read_all(self) -> None:
        try:
            while not self._closing:
                with self.handle.using(idle=True):
                    data = await self._stream.receive()
                    while not self._reading.is_set():
                        await self._reading.wait()  # paused or not, it is noticed that the port is gone
                self._tell("data_received", data)
        except (RevokedError, anyio.ClosedResourceError) as exc:
            self._why = exc
            self._close()  # what is being sent has as long as the grace is

    async def _write_all(self) -> None:
        while self._unsent or not self._closing:
            if self._unsent:
                with self.handle.using(), self._stream.handle.using():  # all of it is one operation, which has a grace
                    while self._unsent:
                        piece = bytes(self._unsent[:4096])
                        del self._unsent[:4096]
                        self._sending = len(piece)
                        await self._stream.send(piece)
                        self._sending = 0
                        self._perhaps_resume()
                self._sent.set()
            else:
                self._sent.set()  # or thrown away
                self._written.clear()
                await self._written.wait()

    def _perhaps_pause(self) -> None:
        if not self._full and self.get_write_buffer_size() > self._high:
            self._full = True
            self._tell("pause_writing")

    def _perhaps_resume(self) -> None:
        if self._full and self.get_write_buffer_size() <= self._low:
            self._full = False
            self._tell("resume_writing")

    def _tell(self, callback: str, *args: object) -> None:
        """Call the protocol. What it raises is reported, and is no reason to lose anything."""
        try:
            getattr(self._protocol, callback)(*args)
        except (SystemExit, KeyboardInterrupt):
            raise
        except BaseException as exc:  # noqa: BLE001  # a CancelledError, too, such as that of a future it asks
            self._report(f"protocol.{callback}() failed", exc)

    def _report(self, message: str, exc: BaseException) -> None:
        self.loop.call_exception_handler(
            {"message": message, "exception": exc, "transport": self, "protocol": self._protocol}
        )

    # -- asyncio.Transport --

    def write(self, data: bytes | bytearray | memoryview) -> None:
        if self.is_closing() or not data:
            return
        self._unsent += data
        self._wake_writer()

    def _take_unsent(self) -> bytearray:
        unsent, self._unsent, self._sending = self._unsent, bytearray(), 0  # too late for what is on its way
        return unsent

    def _wake_writer(self) -> None:
        self._sent.clear()
        self._written.set()
        self._perhaps_pause()

    def close(self) -> None:
        """Send what was written, then close the port. Nothing is received any more."""
        if not self.is_closing():
            self._close()
            if self._reader is not None:
                self._reader.cancel()

    def _close(self) -> None:
        self._closing = True
        self._written.set()

    def abort(self) -> None:
        """Close the port now, and throw away what was written."""
        if not self.handle.revoked:  # whichever was first is told
            self._take_unsent()
            self.handle.close()

    def is_closing(self) -> bool:
        return self._closing or self.handle.revoked

    def can_write_eof(self) -> bool:
        return False

    def write_eof(self) -> None:
        raise NotImplementedError(f"{self.handle.path!r} is a serial port: it has no end of data but close()")

    def flush(self) -> Awaitable[None]:
        """Throw away what was written and not sent, as pyserial-asyncio's does. But awaited, as serialx's is: send all of it.

        ``await transport.flush()`` throws nothing away. It waits until the driver, too, has sent what it was given. Await it
        yourself: a task for it that is cancelled before it begins has thrown all away.

        :raises SerialRevokedError: if awaited, and the port was or is taken away or unplugged
        :raises ~anyio.ClosedResourceError: if awaited, and it was or is closed
        Cancellation: ends the waiting; all of it is sent.
        """
        flush = _Flush(self, bytearray() if self.is_closing() else self._take_unsent())  # a close sends all
        self._perhaps_resume()
        return flush

    async def _flushed(self, taken: bytearray) -> None:
        try:
            with self.handle.using():
                if taken:
                    self._unsent[:0] = taken
                    self._wake_writer()
                await self._sent.wait()
                await self._stream.drain()
        except RevokedError as error:
            raise SerialRevokedError.of(error) from error.__cause__

    def pause_reading(self) -> None:
        self._reading.clear()

    def resume_reading(self) -> None:
        self._reading.set()

    def is_reading(self) -> bool:
        return self._reading.is_set() and not self._closing

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
        return len(self._unsent) + self._sending

    def get_protocol(self) -> asyncio.BaseProtocol:
        return self._protocol  # type: ignore[no-any-return]

    def set_protocol(self, protocol: asyncio.BaseProtocol) -> None:
        self._protocol = protocol

    @property
    def serial(self) -> Any:
        """The object of pyserial. What is done with it is not guarded, and may block."""
        return self.device.serial

    def get_extra_info(self, name: str, default: Any = None) -> Any:
        return {"serial": self.device.serial}.get(name, default)

    def __repr__(self) -> str:
        return f"<SerialTransport of {self.handle!r}>"


class _Flush(Awaitable[None]):
    """What was taken out to be thrown away; and is put back, if this is awaited."""

    def __init__(self, transport: SerialTransport, taken: bytearray) -> None:
        self._transport = transport
        self._taken = taken

    def __await__(self) -> Generator[Any, Any, None]:
        taken, self._taken = self._taken, bytearray()
        return self._transport._flushed(taken).__await__()
