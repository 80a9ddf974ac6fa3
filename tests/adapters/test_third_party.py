"""Libraries of others, unchanged but for one name: their `create_serial_connection` is that of a stand-in."""

import asyncio
import contextlib
import fcntl
import functools
import operator
from collections.abc import AsyncIterator, Callable
from typing import Any

import anyio
import anyio.lowlevel
import pytest

from asyncrevoke import Name
from asyncrevoke.adapters.serial import SerialRevokedError
from asyncrevoke.compat.serial_asyncio import SerialTransport, create_serial_connection
from operations import asyncio_only
from ports import FarEnd, may_hang_up, serial_line

pytestmark = [pytest.mark.anyio, asyncio_only]


def library(module: str) -> Any:
    return pytest.importorskip(module, reason=f"{module} is not installed")


def serialx() -> Any:
    library("serialx")
    return library("asyncrevoke.compat.serialx")


@contextlib.asynccontextmanager
async def joined(one: FarEnd, other: FarEnd) -> AsyncIterator[None]:
    """What is sent into one port comes out of the other."""

    async def pump() -> None:
        while True:
            one.send(other.received())
            other.send(one.received())
            await anyio.lowlevel.checkpoint()

    async with anyio.create_task_group() as tasks:
        tasks.start_soon(pump)
        yield
        tasks.cancel_scope.cancel()


# -- pymodbus --


class Line:
    """A client of pymodbus on one port, which a server of pymodbus may be joined to on the other."""

    def __init__(self, near: FarEnd, far: FarEnd) -> None:
        self.near = near
        self.far = far
        self.connected: list[bool] = []
        self.changed = asyncio.Event()
        self.client = library("pymodbus.client").AsyncModbusSerialClient(
            near.path, timeout=0.5, retries=0, reconnect_delay=0.1, trace_connect=self.connects
        )

    def connects(self, connected: bool) -> None:
        self.connected.append(connected)
        self.changed.set()

    async def until(self, log: list[bool]) -> None:
        while self.connected != log:
            self.changed.clear()
            await self.changed.wait()

    @property
    def transport(self) -> SerialTransport:
        transport = self.client.ctx.transport
        assert isinstance(transport, SerialTransport)
        return transport

    @contextlib.asynccontextmanager
    async def served(self) -> AsyncIterator[Any]:
        """Its server does not reopen a lost port: each time it is another."""
        simulator = library("pymodbus.simulator")
        data = simulator.SimData(0, values=[17, 4], datatype=simulator.DataType.REGISTERS)
        server = library("pymodbus.server").ModbusSerialServer(simulator.SimDevice(1, [data]), port=self.far.path)
        async with joined(self.near, self.far):
            await server.serve_forever(background=True)
            transport = server.transport
            yield server
            await server.shutdown()
            await transport.device.aclose()

    async def request(self) -> list[int]:
        registers: list[int] = (await self.client.read_holding_registers(0, count=2, device_id=1)).registers
        return registers


@contextlib.asynccontextmanager
async def modbus(monkeypatch: pytest.MonkeyPatch) -> AsyncIterator[Line]:
    module = library("pymodbus.transport.transport")
    monkeypatch.setattr(module, "create_serial_connection", create_serial_connection)
    with serial_line() as near, serial_line() as far, anyio.fail_after(30):
        line = Line(near, far)
        assert await line.client.connect()
        yield line
        transport = line.transport
        line.client.close()
        await transport.device.aclose()


async def test_a_pymodbus_client_and_server_talk(monkeypatch: pytest.MonkeyPatch) -> None:
    """Both on transports of ours, one request after another."""
    async with modbus(monkeypatch) as line, line.served() as server:
        assert isinstance(server.transport, SerialTransport)
        for _ in range(3):
            assert await line.request() == [17, 4]


@pytest.mark.parametrize(
    "end",
    [
        pytest.param(lambda line: line.transport.device.revoke("taken"), id="revoked"),
        pytest.param(
            lambda line: line.near.hang_up(),
            id="unplugged",
            marks=pytest.mark.skipif(not may_hang_up(), reason="TIOCVHANGUP is for root"),
        ),
    ],
)
async def test_a_pymodbus_request_is_over_by_its_own_timeout_and_the_next_is_served(
    monkeypatch: pytest.MonkeyPatch, end: Callable[[Line], object]
) -> None:
    """Taken away in mid-request, it is told at once; it connects again by itself, and the next generation serves."""
    async with modbus(monkeypatch) as line:
        async with line.served():
            assert await line.request() == [17, 4]
        request = asyncio.create_task(line.request())  # nobody answers
        while not line.near.received():
            await anyio.lowlevel.checkpoint()
        first = line.transport
        end(line)
        await line.until([True, False])
        assert not request.done()
        assert first.handle.released
        with pytest.raises(library("pymodbus.exceptions").ModbusException):
            await request
        await line.until([True, False, True])
        assert line.transport is not first
        async with line.served():
            assert await line.request() == [17, 4]


async def test_a_pymodbus_server_that_lost_its_port_is_followed_by_another(monkeypatch: pytest.MonkeyPatch) -> None:
    """Its listener is closed as it always is, and the port can be opened again at once."""
    async with modbus(monkeypatch) as line:
        async with line.served() as server:
            assert await line.request() == [17, 4]
            await server.transport.device.revoke("taken")
        async with line.served():
            assert await line.request() == [17, 4]


# -- dsmr-parser --


def telegram(watts: int) -> bytes:
    """What a Dutch electricity meter sends each second: a telegram of DSMR 5, with its CRC."""
    text = f"/KFM5KAIFA-METER\r\n\r\n1-3:0.2.8(50)\r\n1-0:1.7.0({watts / 1000:06.3f}*kW)\r\n!"
    return f"{text}{library('dsmr_parser.parsers').TelegramParser.crc16(text):04X}\r\n".encode()


async def test_dsmr_parser_reads_on_after_a_revocation(monkeypatch: pytest.MonkeyPatch) -> None:
    """It is told that the first connection is lost, half a telegram is forgotten, and a second connection reads on."""
    module = library("dsmr_parser.clients.protocol")
    monkeypatch.setattr(module, "create_serial_connection", serialx().create_serial_connection)
    read: list[Any] = []
    came = asyncio.Event()

    def received(parsed: Any) -> None:
        read.append(int(parsed.CURRENT_ELECTRICITY_USAGE.value * 1000))
        came.set()

    with serial_line() as far, anyio.fail_after(20):
        for watts in (244, 1301):
            came.clear()
            transport, protocol = await module.create_dsmr_reader(far.path, "5", received)
            far.send(telegram(watts))
            await came.wait()
            far.send(telegram(9999)[:30])
            await transport.handle.revoke("taken")
            await protocol.wait_closed()
    assert read == [244, 1301]


# -- zigpy-znp --


class Radio:
    """A coordinator of Zigbee networks behind a port, that answers as much as its library asks for when it connects."""

    ANSWERS = {  # noqa: RUF012  # to a request of a subsystem, by its number
        b"\x21\x01": b"\x79\x00",  # ping: what it can do, as Z-Stack 1.2 does
        b"\x21\x02": bytes((2, 0, 2, 6, 3)),  # version
        b"\x27\x49": bytes(28),  # a device that it knows
    }

    def __init__(self, far: FarEnd) -> None:
        self.far = far
        self.unanswered = b""

    @contextlib.asynccontextmanager
    async def answering(self) -> AsyncIterator[None]:
        async def answer() -> None:
            while True:
                self.unanswered += self.far.received()
                while self.unanswered:
                    length, request = self.unanswered[1], self.unanswered[2:4]
                    self.unanswered = self.unanswered[length + 5 :]
                    data = self.ANSWERS[request]
                    frame = bytes((len(data), request[0] + 0x40, request[1])) + data
                    self.far.send(b"\xfe" + frame + bytes((functools.reduce(operator.xor, frame),)))
                await anyio.lowlevel.checkpoint()

        async with anyio.create_task_group() as tasks:
            tasks.start_soon(answer)
            yield
            tasks.cancel_scope.cancel()


def excluded(far: FarEnd) -> bool:
    """Whether whoever opened the port keeps others out, which lasts longer than a descriptor (TIOCGEXCL)."""
    return fcntl.ioctl(far._slave, 0x80045440, bytes(4)) != bytes(4)


class Listener:
    """Of an application of zigpy's: what a program would open the radio again for."""

    def __init__(self) -> None:
        self.lost: list[Exception | None] = []

    def connection_lost(self, exc: Exception | None) -> None:
        self.lost.append(exc)


async def test_a_zigbee_radio_is_taken_away_in_mid_request_and_the_next_generation_serves(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Its application is told once, by the error; the port is free by then, and a second application uses it."""
    application = library("zigpy_znp.zigbee.application").ControllerApplication
    version = library("zigpy_znp.commands").SYS.Version.Req
    name = Name("radio")
    ours = functools.partial(serialx().create_serial_connection, owner=name)
    monkeypatch.setattr(library("zigpy.serial"), "serialx_create_serial_connection", ours)
    with serial_line() as far, anyio.fail_after(30):
        radio, listener = Radio(far), Listener()
        for generation in 1, 2:
            app = application({"device": {"path": far.path}})
            app.add_listener(listener)
            async with radio.answering():
                await app.connect()
                assert (await app._znp.request(version())).MajorRel == 2
            assert excluded(far)
            request = asyncio.create_task(app._znp.request(version()))
            while not far.received():
                await anyio.lowlevel.checkpoint()
            await name.current.revoke("taken")
            await app._znp._uart.wait_until_closed()
            error = listener.lost[-1]
            assert isinstance(error, SerialRevokedError)
            assert (len(listener.lost), error.generation, error.reason) == (generation, generation, "taken")
            assert not excluded(far)
            assert not request.done()
            await app.disconnect()  # by which the library itself ends all requests
            with pytest.raises(asyncio.CancelledError):
                await request
