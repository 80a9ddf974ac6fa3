"""A serial port opened for a protocol, or as a pair of reader and writer."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import Any, TypeVar

from asyncrevoke.adapters.serial import open_serial

from .pair import SerialReader, SerialWriter
from .transport import SerialTransport

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
        try:
            protocol.connection_made(transport)
        except BaseException:
            transport.set_protocol(asyncio.BaseProtocol())
            raise
        transport.begin()
        await asyncio.sleep(0)  # its task runs from here on: a loop that ends finds it, and it closes the port
    except BaseException:
        await device.aclose()
        raise
    return transport, protocol


async def open_serial_connection(
    *, loop: asyncio.AbstractEventLoop | None = None, limit: int = 65536, url: str, baudrate: int = 9600, **options: Any
) -> tuple[SerialReader, SerialWriter]:
    """Open a serial port as a pair of reader and writer, as pyserial-asyncio's function of this name and serialx's do.

    They are revocable, as those of `wrap_streams`; their errors are `serial.SerialException` too. As with other writers, a
    `close` sends all that was written before, on a stalled line for ever; `writer.transport.abort()` and a revocation of
    `writer.handle` end that.

    :param limit: of the reader's buffer, in bytes
    :param loop, options: as for `create_serial_connection`
    :raises: as `create_serial_connection`
    """
    loop = loop or asyncio.get_running_loop()
    reader = SerialReader(limit=limit, loop=loop)
    protocol = asyncio.StreamReaderProtocol(reader, loop=loop)
    transport, _ = await create_serial_connection(loop, lambda: protocol, url, baudrate, **options)
    return reader, SerialWriter(transport, protocol, reader, loop)
