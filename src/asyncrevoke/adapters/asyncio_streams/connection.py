"""A serial port opened for a protocol, or as a pair of reader and writer."""

from __future__ import annotations

import asyncio
import errno
from collections.abc import Awaitable, Callable
from typing import Any, TypeVar

from asyncrevoke.adapters.serial import SerialDevice, open_serial

from .pair import SerialReader, SerialWriter
from .transport import SerialTransport

P = TypeVar("P", bound=asyncio.BaseProtocol)
T = TypeVar("T", bound=SerialTransport)
W = TypeVar("W", bound=SerialWriter)
#: Options of pyserial's and serialx's that have no effect on a transport here: its reads and writes never wait.
_VOID = (
    *("timeout", "read_timeout", "write_timeout", "writeTimeout", "inter_byte_timeout", "do_not_open"),
    *("connect_timeout", "receive_buffer_size", "read_buffer_size", "write_buffer_size"),
)


async def create_serial_connection(
    loop: asyncio.AbstractEventLoop, protocol_factory: Callable[[], P], url: str, baudrate: int = 9600, **options: Any
) -> tuple[SerialTransport, P]:
    """Open a serial port for a protocol, as pyserial-asyncio's function of this name and serialx's do.

    `connection_made` is called before this returns. `connection_lost` is called exactly once, last, and when the port
    is closed; a loop that ends does not wait for that. It gets a `RevokedError` if the port was revoked or unplugged,
    None if it was closed here, whichever came first. If `connection_made` raises, this call raises the same. The port
    is then closed, and the protocol is told nothing more. What the other callbacks raise is reported to the loop, and
    loses nothing.

    :param loop: the running one
    :param options: as for `open_serial`, or those of pyserial and serialx
    :raises: as `open_serial` and its opening
    Cancellation: nothing was opened.
    """
    if loop is not asyncio.get_running_loop():
        raise RuntimeError(f"{url!r}: give the running loop; a port is opened in no other")
    device = await opened(url, baudrate, options)
    transport = await connected(device, lambda: SerialTransport(loop, protocol_factory(), device))
    return transport, transport.get_protocol()  # type: ignore[return-value]  # what the factory has made


async def open_serial_connection(
    *, loop: asyncio.AbstractEventLoop | None = None, limit: int = 65536, url: str, baudrate: int = 9600, **options: Any
) -> tuple[SerialReader, SerialWriter]:
    """Open a serial port as a pair of reader and writer, as pyserial-asyncio's function of this name and serialx's do.

    They are revokable, like those of `wrap_streams`. Their errors are `serial.SerialException` too. As with other
    writers, a `close` sends everything written before; on a stalled line this never ends. `writer.transport.abort()`
    and a revocation of `writer.handle` end that.

    :param limit: of the reader's buffer, in bytes
    :param loop, options: as for `create_serial_connection`
    :raises: as `create_serial_connection`
    """
    loop = loop or asyncio.get_running_loop()
    return await opened_pair(
        lambda make: create_serial_connection(loop, make, url, baudrate, **options),
        loop,
        SerialReader(limit, loop),
        SerialWriter,
    )


async def opened(url: str, baudrate: int, options: dict[str, Any]) -> SerialDevice:
    """Open a port by options of pyserial's and serialx's, `translated`. As with serialx, low latency is tried, and not
    required.

    :raises: as `open_serial` and its opening
    """
    known = translated(url, options)
    try:
        return await open_serial(url, baudrate, **known)
    except OSError as exc:
        if exc.errno != errno.EOPNOTSUPP or not known.pop("low_latency", False):
            raise
    return await open_serial(url, baudrate, **known)


def translated(url: str, options: dict[str, Any]) -> dict[str, Any]:
    """Translate options of pyserial's and serialx's into those of `open_serial`.

    The timeouts of reads and writes are accepted, and mean nothing here. A line is set by `dtr_on_open` or
    `rts_on_open`, or both by `rtsdtr_on_open`: low, or as the driver makes it, which is high. On close both are
    lowered, or neither.

    :raises ValueError: for a state of the lines that no driver can leave
    """
    options = {option: value for option, value in options.items() if option not in _VOID}
    if "byte_size" in options:
        options["bytesize"] = options.pop("byte_size")
    if options.get("parity", "N") is None:
        options["parity"] = "N"
    if not options.get("low_latency", True):
        del options["low_latency"]
    both = options.pop("rtsdtr_on_open", None)
    for line in "dtr", "rts":
        state = options.pop(f"{line}_on_open", None)
        if _state(state if _state(both) is None else both) is False:
            options[line] = False
    both = options.pop("rtsdtr_on_close", None)
    given = [options.pop(f"{line}_on_close", ...) for line in ("dtr", "rts")]
    states = {_state(both)} if _state(both) is not None else {_state(each) for each in given if each is not ...}
    if states:
        if len(states) == 2 or True in states:
            raise ValueError(f"{url!r}: when it closes, the driver can lower DTR and RTS, or leave both as they are")
        options["hangup_on_close"] = states == {False}
    return options


def _state(pin: Any) -> bool | None:
    """Whether a line is high, low, or left alone, by our word or a PinState of serialx's."""
    value = getattr(pin, "value", pin)
    return None if value is None else bool(value)


async def connected(device: SerialDevice, make: Callable[[], T]) -> T:
    """Make a transport of an open device, tell its protocol, and begin. If that fails, close the device."""
    try:
        transport = make()
        try:
            transport.get_protocol().connection_made(transport)
        except BaseException:
            transport.set_protocol(asyncio.BaseProtocol())
            raise
        transport.begin()
        await asyncio.sleep(0)  # its task runs from here on: a loop that ends finds it, and it closes the port
    except BaseException:
        await device.aclose()
        raise
    return transport


async def opened_pair(
    create: Callable[[Callable[[], asyncio.BaseProtocol]], Awaitable[tuple[SerialTransport, Any]]],
    loop: asyncio.AbstractEventLoop,
    reader: SerialReader,
    writer: type[W],
) -> tuple[SerialReader, W]:
    """Open a transport for a protocol, and make a pair of reader and writer of it."""
    protocol = asyncio.StreamReaderProtocol(reader, loop=loop)
    transport, _ = await create(lambda: protocol)
    return reader, writer(transport, protocol, reader, loop)
