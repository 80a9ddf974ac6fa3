"""Libraries of others, unchanged but for one name: their `create_serial_connection` is ours."""

import asyncio
import contextlib
from collections.abc import AsyncIterator, Callable
from typing import Any

import anyio
import anyio.lowlevel
import pytest

from asyncrevoke.adapters.asyncio_streams import SerialTransport, create_serial_connection
from operations import asyncio_only
from ports import FarEnd, may_hang_up, serial_line

pytestmark = [pytest.mark.anyio, asyncio_only]


def library(module: str) -> Any:
    return pytest.importorskip(module, reason=f"{module} is not installed")


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
    monkeypatch.setattr(module, "create_serial_connection", create_serial_connection)
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
