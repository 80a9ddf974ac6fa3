"""A stand-in for pyserial-asyncio 0.6: ``from asyncrevoke.compat import serial_asyncio``.

There are three differences. It opens and closes in a thread. `connection_made` is called before
`create_serial_connection` returns. Reads and writes raise `serial.SerialException` when the port is revoked or
unplugged.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import Any, TypeVar

from asyncrevoke.adapters.asyncio_streams import (
    SerialReader,
    SerialTransport,
    SerialWriter,
    create_serial_connection as _create,
    opened_pair,
)
from asyncrevoke.lowlevel import off_loop

P = TypeVar("P", bound=asyncio.BaseProtocol)
__version__ = "0.6"
__all__ = ["SerialTransport", "connection_for_serial", "create_serial_connection", "open_serial_connection"]
_POSITIONAL = (
    *("url", "baudrate", "bytesize", "parity", "stopbits", "timeout", "xonxoff", "rtscts"),
    *("write_timeout", "dsrdtr", "inter_byte_timeout", "exclusive"),
)


async def create_serial_connection(
    loop: asyncio.AbstractEventLoop, protocol_factory: Callable[[], P], *args: Any, **kwargs: Any
) -> tuple[SerialTransport, P]:
    """Open a serial port for a protocol. The arguments are those of pyserial's `serial_for_url`, and of `open_serial`.

    :raises: as `asyncrevoke.adapters.asyncio_streams.create_serial_connection`
    Cancellation: nothing was opened.
    """
    if len(args) > len(_POSITIONAL):
        raise TypeError(f"{len(args)} arguments for a port: give {len(_POSITIONAL)} at the most")
    options = dict(zip(_POSITIONAL, args, strict=False))
    if twice := options.keys() & kwargs.keys():
        raise TypeError(f"given twice: {', '.join(sorted(twice))}")
    options |= kwargs
    options["exclusive"] = bool(options.get("exclusive"))
    return await _create(loop, protocol_factory, **options)


async def connection_for_serial(
    loop: asyncio.AbstractEventLoop, protocol_factory: Callable[[], P], serial_instance: Any
) -> tuple[SerialTransport, P]:
    """Use a port that is open as pyserial's `Serial`. It is closed and opened anew: use `transport.serial` from then
    on.

    :raises: as `create_serial_connection`
    Cancellation: the port is closed.
    """
    settings = serial_instance.get_settings()
    await off_loop(serial_instance.close)
    return await create_serial_connection(
        loop, protocol_factory, serial_instance.port, exclusive=serial_instance.exclusive, **settings
    )


async def open_serial_connection(
    *, loop: asyncio.AbstractEventLoop | None = None, limit: int | None = None, **kwargs: Any
) -> tuple[SerialReader, SerialWriter]:
    """Open a serial port as a pair of reader and writer, like `create_serial_connection`.

    :param limit: of the reader's buffer, in bytes
    """
    loop = loop or asyncio.get_running_loop()
    return await opened_pair(
        lambda make: create_serial_connection(loop, make, **kwargs),
        loop,
        SerialReader(65536 if limit is None else limit, loop),
        SerialWriter,
    )
