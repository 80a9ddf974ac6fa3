"""The stand-ins for pyserial-asyncio and serialx: whole, and revocable."""

import asyncio
import contextlib
import errno
import inspect
import os
import socket
import struct
import threading
import types
from collections.abc import AsyncIterator, Awaitable, Callable
from typing import Any

import anyio
import anyio.lowlevel
import pytest
import serial

from asyncrevoke import Revokable
from asyncrevoke.adapters.asyncio_streams import translated
from asyncrevoke.adapters.serial import SerialRevokedError, open_serial
from asyncrevoke.compat import serial_asyncio
from calls import turns_beside
from conftest import settle
from operations import asyncio_only
from ports import serial_line

pytestmark = [pytest.mark.anyio, asyncio_only]
theirs = pytest.importorskip("serialx")
from asyncrevoke.compat import serialx  # noqa: E402  # needs theirs

BIG = bytes(1 << 20)  # no line holds that much
#: What a transport of pyserial-asyncio's has, as no transport of the base class tells.
PYSERIAL = "abort close flush get_extra_info loop pause_reading resume_reading serial set_write_buffer_limits write"


async def taken(operation: Callable[[], Awaitable[object]]) -> None:
    with pytest.raises(SerialRevokedError, match="taken"):
        await operation()


# -- the whole surface --


async def test_a_module_stands_in_for_every_name() -> None:
    """What is not ours is the library's own."""
    assert not {name for name in theirs.__all__ if not hasattr(serialx, name)}
    assert serialx.Parity is theirs.Parity
    plain = pytest.importorskip("serial_asyncio")
    public = {name for name, value in vars(plain).items() if not isinstance(value, types.ModuleType) and name[0] != "_"}
    assert not {name for name in public if not hasattr(serial_asyncio, name)}
    with pytest.raises(AttributeError):
        serialx.no_such_name  # noqa: B018


async def test_a_transport_has_all_that_theirs_has() -> None:
    """It is awaited where theirs is, and takes arguments of the same names."""
    with serial_line() as far:
        transport, _ = await serialx.create_serial_connection(loop(), asyncio.Protocol, far.path, 115200)
        for name in dir(theirs.SerialTransport):
            if name[0] != "_":
                ours, other = (inspect.getattr_static(each, name) for each in (type(transport), theirs.SerialTransport))
                assert inspect.iscoroutinefunction(ours) == inspect.iscoroutinefunction(other), name
        await transport.handle.close()
        plain, _ = await serial_asyncio.create_serial_connection(loop(), asyncio.Protocol, far.path)
        assert all(hasattr(plain, name) for name in PYSERIAL.split())
        await plain.handle.close()


def loop() -> asyncio.AbstractEventLoop:
    return asyncio.get_running_loop()


CALLS: dict[str, Callable[[str], Awaitable[Any]]] = {
    "url": lambda path: serialx.open_serial_connection(path, baudrate=115200),
    "all": lambda path: serialx.open_serial_connection(path, 115200, theirs.Parity.NONE, 1, False, False, False),
    "none": lambda path: serialx.open_serial_connection(path, parity=None, timeout=1, read_timeout=None, byte_size=8),
    "pins": lambda path: serialx.open_serial_connection(path, rts_on_open=theirs.PinState.HIGH, dtr_on_open=None),
    "scheme": lambda path: serialx.open_serial_connection(f"linux://{path}", 9600),
    "pyserial": lambda path: serial_asyncio.open_serial_connection(url=path, baudrate=9600, limit=10, exclusive=None),
}


@pytest.mark.parametrize("call", CALLS.values(), ids=CALLS)
async def test_a_pair_is_opened_by_their_arguments(call: Callable[[str], Awaitable[Any]]) -> None:
    """By position and by name; it is revocable."""
    with serial_line() as far, anyio.fail_after(20):
        reader, writer = await call(far.path)
        far.send(b"x")
        assert await reader.read(10) == b"x"
        await writer.handle.revoke("taken")
        await taken(lambda: reader.read(10))
        await writer.wait_closed()


@pytest.mark.parametrize(
    "bad",
    [{"url": None}, {"url": "socket://localhost"}, {"transport_cls": asyncio.Transport}, {"byte_size": 99}, {"no": 1}],
)
async def test_what_makes_no_sense_is_refused(bad: dict[str, Any]) -> None:
    """Before the protocol is told anything."""
    with serial_line() as far, pytest.raises((ValueError, TypeError)):
        await serialx.create_serial_connection(loop(), asyncio.Protocol, **{"url": far.path, "baudrate": 9600, **bad})


async def test_positional_arguments_are_pyserials() -> None:
    """In their order; none too many, and none twice."""
    with serial_line() as far:
        positional = (far.path, 19200, 7, "E", 2, 1.0, True)
        transport, _ = await serial_asyncio.create_serial_connection(loop(), asyncio.Protocol, *positional)
        got = transport.serial
        assert (got.baudrate, got.bytesize, got.parity, got.stopbits, got.xonxoff) == (19200, 7, "E", 2, True)
        await transport.handle.close()
        for args, kwargs in ((far.path, *range(12)), {}), ((far.path, 9600), {"baudrate": 9600}):
            with pytest.raises(TypeError):
                await serial_asyncio.create_serial_connection(loop(), asyncio.Protocol, *args, **kwargs)


LOW, HIGH, UNDEFINED = theirs.PinState.LOW, theirs.PinState.HIGH, theirs.PinState.UNDEFINED


@pytest.mark.parametrize(
    ("given", "ours"),
    [
        ({"byte_size": 7, "parity": None}, {"bytesize": 7, "parity": "N"}),
        ({"read_timeout": 1, "do_not_open": True, "connect_timeout": 2, "low_latency": False}, {}),
        ({"dtr_on_open": HIGH, "rts_on_open": UNDEFINED, "rtsdtr_on_open": None}, {}),
        ({"rts_on_close": ..., "fan_out": True}, {"fan_out": True}),
    ],
)
async def test_options_are_translated(given: dict[str, Any], ours: dict[str, Any]) -> None:
    """What means nothing here is left out; what is ours stays."""
    assert translated("port", given) == ours


@pytest.mark.parametrize("lines", [{"dtr_on_close": HIGH}, {"dtr_on_close": LOW, "rts_on_close": UNDEFINED}])
async def test_lines_that_no_driver_leaves_so_are_refused(lines: dict[str, Any]) -> None:
    """At the close both are lowered, or neither."""
    with pytest.raises(ValueError, match="when it closes"):
        translated("port", lines)


@pytest.mark.skipif("low_latency" not in inspect.signature(open_serial).parameters, reason="open_serial has none yet")
@pytest.mark.parametrize("module", [serialx, serial_asyncio])
async def test_low_latency_is_a_wish(module: Any) -> None:
    """A pty has none, and is opened all the same, with its lines as they are asked for."""
    with serial_line() as far:
        options = {"low_latency": True, "dtr_on_open": LOW, "rts_on_open": False}
        transport, _ = await module.create_serial_connection(loop(), asyncio.Protocol, far.path, 9600, **options)
        await transport.handle.close()


# -- pyserial-asyncio --


async def test_two_may_open_a_port_as_with_pyserial() -> None:
    """Unless one asks to be alone."""
    with serial_line() as far:
        pair = [
            (await serial_asyncio.create_serial_connection(loop(), asyncio.Protocol, far.path))[0] for _ in range(2)
        ]
        for transport in pair:
            transport.flush()
            await transport.handle.close()


async def test_an_open_port_is_taken_over() -> None:
    """With the settings it has."""
    with serial_line() as far:
        port = serial.Serial(far.path, 19200, stopbits=2)
        reader = asyncio.StreamReader()
        make = lambda: asyncio.StreamReaderProtocol(reader)  # noqa: E731
        transport, _ = await serial_asyncio.connection_for_serial(loop(), make, port)
        assert (transport.serial.baudrate, transport.serial.stopbits, port.is_open) == (19200, 2, False)
        far.send(b"x")
        assert await reader.read(1) == b"x"
        await transport.handle.close()


# -- serialx --


async def test_a_port_is_opened_used_closed_and_opened_again() -> None:
    """By ``async with``, as serialx's AsyncSerial."""
    with serial_line() as far, anyio.fail_after(20):
        port = serialx.async_serial_for_url(far.path, baudrate=115200)
        for _ in range(2):
            async with port:
                assert port.is_open
                await port.write(b"ping\n")
                await port.flush()
                assert far.received() == b"ping\n"
                far.send(b"pong\n")
                assert await port.readline() == b"pong\n"
                with pytest.raises(theirs.SerialException, match="already open"):
                    await port.open()
            assert not port.is_open


async def test_a_port_that_is_taken_away_says_so_in_every_operation() -> None:
    """Reads and writes, requests to the driver and settings."""
    with serial_line() as far, anyio.fail_after(20):
        port = serialx.async_serial_for_url(far.path, baudrate=115200)
        await port.open()
        transport = port.transport
        assert isinstance(transport, serialx.SerialTransport)
        reading = asyncio.create_task(port.read(1))
        await settle()
        await transport.handle.revoke("taken")
        for operation in (
            *(lambda: reading, lambda: port.read(1), lambda: port.write(b"x"), port.drain, port.flush),
            *(port.get_modem_pins, lambda: port.set_modem_pins(rts=True), lambda: port.reconfigure_port(baudrate=9600)),
        ):
            await taken(operation)
        with pytest.raises(SerialRevokedError, match="taken"):
            transport.write(b"x")
        await port.close()


async def test_settings_are_told_and_changed() -> None:
    """Those that are given; a pty has no modem lines."""
    with serial_line() as far:
        async with serialx.async_serial_for_url(far.path, baudrate=115200, exclusive=True) as port:
            assert (port.baudrate, port.parity, port.stopbits, port.byte_size, port.exclusive) == (
                *(115200, theirs.Parity.NONE, theirs.StopBits.ONE, 8, True),
            )
            await port.reconfigure_port(baudrate=9600, parity="E", stopbits=2, xonxoff=True)
            assert (port.baudrate, port.parity, port.stopbits) == (9600, theirs.Parity.EVEN, theirs.StopBits.TWO)
            with pytest.raises(ValueError, match="byte"):
                await port.reconfigure_port(byte_size=99)
            await port.set_modem_pins(rts=True)
            assert await port.get_modem_pins() == theirs.ModemPins()
            await port.write(b"still")
            assert far.received() == b"still"


async def test_a_port_is_opened_for_one_alone_unless_all_are_content() -> None:
    """The second is refused as busy, and changes nothing for the first; once that is taken away others are let in."""
    with serial_line() as far, anyio.fail_after(20):
        first, _ = await serialx.create_serial_connection(loop(), asyncio.Protocol, far.path)
        with pytest.raises(OSError, match="another program has it open") as info:
            await serialx.create_serial_connection(loop(), asyncio.Protocol, far.path)
        assert info.value.errno == errno.EBUSY
        first.write(b"first")
        assert far.received() == b"first"
        await first.handle.revoke("taken")
        both = [
            (await serialx.create_serial_connection(loop(), asyncio.Protocol, far.path, exclusive=False))[0]
            for _ in range(2)
        ]
        for transport in both:
            await transport.handle.close()


async def test_a_read_that_is_given_up_loses_nothing() -> None:
    """By a timeout, with half a line there: the next read has all of it."""
    with serial_line() as far, anyio.fail_after(20):
        async with serialx.async_serial_for_url(far.path, baudrate=115200) as port:
            far.send(b"half a ")
            for seconds in 0.001, 0:
                with pytest.raises(TimeoutError):
                    await asyncio.wait_for(port.readline(), seconds)
            far.send(b"line\n")
            assert await port.readline() == b"half a line\n"


async def test_all_arrives_in_both_directions_at_a_time() -> None:
    """In order, and more than the line and the buffers hold."""
    data = bytes(range(256)) * 2048
    with serial_line() as far, anyio.fail_after(60):
        reader, writer = await serialx.open_serial_connection(far.path, baudrate=115200)
        os.set_blocking(far._master, True)

        async def send() -> None:
            for start in range(0, len(data), 10_000):
                writer.write(data[start : start + 10_000])
                await writer.drain()

        def received() -> bytes:
            got = b""
            while len(got) < len(data):
                got += os.read(far._master, 65536)
            return got

        def sent() -> None:
            unsent = memoryview(data)
            while unsent:
                unsent = unsent[os.write(far._master, unsent) :]

        there, _, here, _ = await asyncio.gather(
            asyncio.to_thread(received), asyncio.to_thread(sent), reader.readexactly(len(data)), send()
        )
        assert here == there == data
        await writer.handle.close()


async def test_a_connect_that_is_cancelled_leaves_a_closed_transport_and_a_free_port() -> None:
    """Its protocol is told nothing, or of both ends, where the port was open already. It can be opened again at once."""
    with serial_line() as far, anyio.fail_after(20):
        for _ in range(10):
            lost = Lost()
            transport = serialx.SerialTransport(loop(), lost)
            connecting = asyncio.create_task(transport.connect(path=far.path, baudrate=9600))
            await asyncio.sleep(0)
            connecting.cancel()
            with pytest.raises(asyncio.CancelledError):
                await connecting
            await transport.wait_closed()
            assert transport.is_closing()
            assert lost.log in ([], ["made", None])
            again, _ = await serialx.create_serial_connection(loop(), Lost, far.path, exclusive=True)
            await again.handle.close()


class Lost(asyncio.Protocol):
    """A protocol that notes how its connection ended."""

    def __init__(self) -> None:
        self.log: list[object] = []

    def connection_made(self, _: asyncio.BaseTransport) -> None:
        self.log.append("made")

    def connection_lost(self, exc: Exception | None) -> None:
        self.log.append(exc)


async def test_a_stalled_close_is_given_up_when_its_time_is_over() -> None:
    """What could not be sent is lost, and the protocol is told that it was closed here."""
    with serial_line() as far, anyio.fail_after(20):
        transport, lost = await serialx.create_serial_connection(loop(), Lost, far.path, 115200, close_timeout=0.01)
        transport.write(BIG)
        transport.close()
        assert transport.get_write_buffer_size()
        await transport.wait_closed()
        assert lost.log == ["made", None]
        assert transport.get_write_buffer_size() == 0
        transport.write(b"too late")


@pytest.mark.parametrize("end", ["close", "abort"])
@pytest.mark.parametrize("when", ["before", "meanwhile"])
async def test_a_transport_that_is_closed_before_it_is_open_stays_closed(end: str, when: str) -> None:
    """Whoever waits for that is told, and the protocol is told nothing."""
    with serial_line() as far, anyio.fail_after(20):
        lost = Lost()
        transport = serialx.SerialTransport(loop(), lost)
        assert not transport.is_closing()
        if when == "before":
            getattr(transport, end)()
            await transport.wait_closed()
        connecting = asyncio.create_task(transport.connect(path=far.path, baudrate=9600))
        if transport._connecting is None:  # it begins in the loop's next turn; an eager task has begun
            loop().call_soon(getattr(transport, end))  # before it can go on
        else:
            getattr(transport, end)()
        await connecting
        await transport.wait_closed()
        assert transport.is_closing()
        assert lost.log == []


async def test_a_connect_that_fails_leaves_a_closed_transport() -> None:
    """It cannot be connected a second time, and nobody waits for ever. The error is of the class that serialx's is."""
    lost = Lost()
    transport = serialx.SerialTransport(loop(), lost)
    with pytest.raises(RuntimeError, match="neither"):
        await transport.wait_closed()
    with pytest.raises(FileNotFoundError, match="no such port"):
        await transport.connect(path="/dev/there is none")
    await transport.wait_closed()
    assert transport.is_closing()
    with pytest.raises(RuntimeError, match="already"):
        await transport.connect(path="/dev/there is none")
    assert lost.log == []


# -- ports over the network --


@contextlib.asynccontextmanager
async def networked(module: Any) -> AsyncIterator[tuple[asyncio.StreamReader, asyncio.StreamWriter, socket.socket]]:
    """A pair on a connection, its far end, and what that has sent already."""
    with socket.create_server(("127.0.0.1", 0)) as server, anyio.fail_after(20):
        url = "socket://{}:{}".format(*server.getsockname())
        reader, writer = await module.open_serial_connection(url=url, baudrate=9600)
        with server.accept()[0] as far:
            far.sendall(b"one\ntwo\nthr")
            assert await reader.readline() == b"one\n"
            yield reader, writer, far
            writer.close()
            await writer.wait_closed()


def reset(far: socket.socket) -> None:
    far.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
    far.close()


async def test_what_was_sent_before_the_far_end_closed_is_read_first() -> None:
    """Then the data is at its end, again and again, and others run meanwhile. What is written is refused."""
    async with networked(serialx) as (reader, writer, far):
        far.close()
        node: Revokable = reader.handle  # type: ignore[attr-defined]
        while not node.released:
            await anyio.lowlevel.checkpoint()
        assert node.reason == "unplugged: closed by the far end"
        assert await reader.readline() == b"two\n"
        assert not reader.at_eof()
        with pytest.raises(asyncio.IncompleteReadError) as info:
            await reader.readexactly(4)
        assert info.value.partial == b"thr"
        assert await turns_beside(lambda: reader.read(10), 100) > 2
        assert reader.at_eof()
        assert (await reader.read(), await reader.readline()) == (b"", b"")
        with pytest.raises(SerialRevokedError, match="closed by the far end"):
            writer.write(b"x")


async def test_more_than_a_reader_holds_is_read_to_its_end() -> None:
    """What was held back by its limit comes before the end of data."""
    async with networked(serialx) as (reader, _, far):
        assert await reader.readline() == b"two\n"

        def send() -> None:
            far.sendall(BIG)
            far.close()

        sending = threading.Thread(target=send)
        sending.start()
        while not reader._paused:  # type: ignore[attr-defined]
            await anyio.lowlevel.checkpoint()
        assert await reader.read() == b"thr" + BIG
        sending.join()


async def test_a_read_is_ended_where_the_far_end_closes() -> None:
    """By what has come so far."""
    async with networked(serialx) as (reader, _, far):
        assert await reader.readline() == b"two\n"
        reading = asyncio.create_task(reader.readline())
        await settle()
        far.close()
        assert await reading == b"thr"


@pytest.mark.parametrize(
    ("module", "end", "why"),
    [
        (serialx, reset, "Connection reset"),
        (serial_asyncio, reset, "Connection reset"),
        (serial_asyncio, socket.socket.close, "closed by the far end"),
    ],
)
async def test_a_connection_that_ends_says_so_in_a_read(
    module: Any, end: Callable[[socket.socket], None], why: str
) -> None:
    """One that is broken; with pyserial-asyncio each."""
    async with networked(module) as (reader, _, far):
        assert await reader.readline() == b"two\n"
        reading = asyncio.create_task(reader.readexactly(10))
        await settle()
        end(far)
        for operation in lambda: reading, lambda: reader.read(10):
            with pytest.raises(SerialRevokedError, match=why):
                await operation()


@pytest.mark.parametrize(("end", "error"), [(socket.socket.close, type(None)), (reset, SerialRevokedError)])
async def test_a_protocol_is_told_how_a_connection_ended(
    end: Callable[[socket.socket], None], error: type[object]
) -> None:
    """In order without an error, as serialx tells it."""
    with socket.create_server(("127.0.0.1", 0)) as server, anyio.fail_after(20):
        url = "socket://{}:{}".format(*server.getsockname())
        transport, lost = await serialx.create_serial_connection(loop(), Lost, url)
        end(server.accept()[0])
        await transport.wait_closed()
        assert [type(told) for told in lost.log[1:]] == [error]


async def test_an_owner_takes_a_drop_in_along() -> None:
    """As every option of ours, `owner` can be given through theirs."""
    owner = Revokable("owner")
    with serial_line() as far, anyio.fail_after(20):
        for create in serialx.create_serial_connection, serial_asyncio.create_serial_connection:
            transport, lost = await create(loop(), Lost, far.path, 9600, owner=owner)
            await transport.handle.revoke("taken")
            await transport.wait_closed()
            assert isinstance(lost.log[-1], SerialRevokedError)
