"""Serial ports over the network: a connection that ends, breaks or goes silent, over loopback sockets."""

import contextlib
import ctypes
import errno
import functools
import logging
import socket
import struct
import threading
from collections.abc import AsyncIterator, Callable
from typing import Any

import anyio
import anyio.lowlevel
import pytest
import serial

from asyncrevoke import SerialDevice, open_serial, serial_device, testing
from asyncrevoke.adapters.serial import ModemLines, SerialRevokedError, network, rfc2217
from calls import awake, parked, start
from conftest import BACKENDS, settle
from remote import Server, server

pytestmark = pytest.mark.anyio

#: Each backend that can, on each loop that it can.
everywhere = pytest.mark.parametrize(
    ("backend", "anyio_backend"),
    [
        pytest.param(backend, loop.values[0], id=f"{backend}-{loop.id}")
        for backend in ("descriptor", "pyserial-asyncio")
        for loop in BACKENDS
        if loop.id != "trio" or backend == "descriptor"
    ],
    indirect=["anyio_backend"],
)


@contextlib.asynccontextmanager
async def port(backend: str = "descriptor", **options: Any) -> AsyncIterator[tuple[SerialDevice, socket.socket]]:
    """An open port, and its far end."""
    with server() as (place, listening), anyio.fail_after(30):
        async with awake(), open_serial(f"socket://{place}", backend=backend, **options) as device:  # type: ignore[arg-type]
            with listening.accept()[0] as far:
                far.settimeout(10)
                yield device, far


async def released(device: SerialDevice) -> str:
    """Wait until it is taken away, and tell why."""
    while not device.node.released:
        await anyio.lowlevel.checkpoint()
    return device.node.reason


def reset(far: socket.socket) -> None:
    """Break the connection off, as a server that is killed with unread data does."""
    far.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
    far.close()


ENDS: dict[str, tuple[Callable[[socket.socket], object], str]] = {
    "closed": (socket.socket.close, "unplugged: closed by the far end"),
    "half": (lambda far: far.shutdown(socket.SHUT_WR), "unplugged: closed by the far end"),
    "broken": (reset, "unplugged: [Errno 104] Connection reset by peer"),
}


@everywhere
@pytest.mark.parametrize("end", ENDS)
@pytest.mark.parametrize("reading", [False, True])
async def test_an_end_is_noticed_and_told_from_a_break(backend: str, end: str, reading: bool) -> None:
    """Whether anybody reads or not."""
    act, reason = ENDS[end]
    async with port(backend) as (device, far), anyio.create_task_group() as group:
        stream = device.open()
        if reading:
            call = start(group, stream.receive)
            await parked(stream.handle)
        act(far)
        assert await released(device) == reason
        if reading:
            await call.done.wait()
            assert isinstance(call.error, SerialRevokedError)
            assert call.error.reason == reason


@everywhere
@pytest.mark.parametrize("end", ["closed", "broken"])
async def test_what_was_sent_before_the_end_is_received_first(backend: str, end: str) -> None:
    """The port is not taken away before."""
    async with port(backend) as (device, far):
        stream = device.open()
        far.send(b"last words")
        ENDS[end][0](far)
        await settle(50)
        assert not device.node.revoked
        assert await stream.receive(4) == b"last"
        assert await stream.receive() == b" words"
        with pytest.raises(SerialRevokedError) as caught:
            await stream.receive()
        assert caught.value.reason == ENDS[end][1]


@everywhere
async def test_the_kernel_is_asked_to_notice_silence(backend: str) -> None:
    """Within half a minute; and what is written is sent at once."""
    async with port(backend) as (device, _):
        with socket.socket(fileno=device.fileno()) as connection:
            assert connection.getsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE)
            options = {name: connection.getsockopt(socket.IPPROTO_TCP, name) for name in network._OPTIONS}
            connection.detach()
    assert options == network._OPTIONS
    assert options[socket.TCP_KEEPIDLE] + options[socket.TCP_KEEPINTVL] * options[socket.TCP_KEEPCNT] <= 30
    assert options[socket.TCP_USER_TIMEOUT] == 30_000


def go_silent(far: socket.socket) -> None:
    """Have the kernel drop all that comes for it, as if its cable were cut: a filter that takes no packet."""
    instruction = ctypes.create_string_buffer(struct.pack("HBBI", 0x06, 0, 0, 0))  # BPF_RET, of nothing
    program = struct.pack("HxxxxxxP", 1, ctypes.addressof(instruction))
    far.setsockopt(socket.SOL_SOCKET, 26, program)  # SO_ATTACH_FILTER


@pytest.fixture
def soon(monkeypatch: pytest.MonkeyPatch) -> None:
    """As short as the kernel takes it."""
    for option in socket.TCP_KEEPIDLE, socket.TCP_KEEPINTVL, socket.TCP_KEEPCNT:
        monkeypatch.setitem(network._OPTIONS, option, 1)
    monkeypatch.setitem(network._OPTIONS, socket.TCP_USER_TIMEOUT, 100)


@pytest.mark.usefixtures("soon")
async def test_a_far_end_that_goes_silent_is_noticed() -> None:
    """Nobody sends or reads: the kernel asks whether it is still there, and is not answered."""
    async with port() as (device, far):
        go_silent(far)
        assert await released(device) == "unplugged: [Errno 110] Connection timed out"


@pytest.mark.usefixtures("soon")
async def test_a_far_end_that_takes_nothing_is_noticed() -> None:
    """It is there, and reads nothing: a send does not wait for ever."""
    async with port() as (device, _), device.open() as stream:
        with pytest.raises(SerialRevokedError) as caught:
            await stream.send(bytes(64 << 20))
        assert caught.value.reason == "unplugged: [Errno 110] Connection timed out"


@everywhere
async def test_what_has_come_from_the_far_end_is_thrown_away(backend: str) -> None:
    """By `reset_input_buffer`, wherever it is: pyserial's does so, too."""
    async with port(backend) as (device, far), device.open() as stream:
        far.send(b"old")
        assert await stream.receive(1) == b"o"
        await stream.reset_input_buffer()
        far.send(b"new")
        assert await stream.receive() == b"new"


async def test_a_drain_waits_until_the_far_end_has_it() -> None:
    """There is no driver: its kernel has said that all has come."""
    async with port() as (device, far), device.open() as stream:
        await stream.send(b"x")
        await stream.drain()
        far.setblocking(False)
        assert far.recv(9) == b"x"


@pytest.mark.parametrize("scheme", ["socket", "rfc2217"])
@pytest.mark.parametrize("place", ["", "localhost", "localhost:0", "localhost:x", "localhost:70000", ":2217"])
def test_a_place_that_is_none_is_refused_at_once(scheme: str, place: str) -> None:
    """A ValueError that shows the url."""
    with pytest.raises(ValueError, match=f"{scheme}://{place}'"):
        open_serial(f"{scheme}://{place}")


async def test_it_is_closed_for_others_who_have_the_descriptor_too() -> None:
    """A child that was given it does not keep the far end waiting."""
    async with port() as (device, far):
        with socket.socket(fileno=device.fileno()) as connection:
            child = connection.dup()
            connection.detach()
        with child:
            await device.aclose()
            assert far.recv(1) == b""


async def test_a_connection_is_made_again_when_the_last_one_is_closed(caplog: pytest.LogCaptureFixture) -> None:
    """One at a time, however it ended; and while nobody serves, it is tried again and told once."""
    caplog.set_level(logging.INFO, "asyncrevoke")
    often: dict[str, Any] = {"debounce": 0.001, "max_delay": 0.01, "source": "kernel"}
    with server() as (place, listening), anyio.fail_after(30):
        async with awake(), serial_device(f"socket://{place}", **often) as devices:
            for end in ENDS:
                device = await anext(devices)
                with listening.accept()[0] as far:
                    listening.setblocking(False)
                    with pytest.raises(BlockingIOError):
                        listening.accept()
                    listening.settimeout(10)
                    ENDS[end][0](far)
                    assert await released(device) == ENDS[end][1]
            address = listening.getsockname()
            listening.close()

            def serve_again() -> None:
                again.bind(address)
                again.listen()

            with socket.socket() as again:
                again.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
                async with anyio.create_task_group() as tasks:
                    tasks.start_soon(when, lambda: caplog.records, serve_again)
                    assert (await anext(devices)).node.generation == 4
                again.accept()[0].close()
    (record,) = caplog.records
    assert "no server listens there" in record.message


async def when(true: Callable[[], object], call: Callable[[], object]) -> None:
    while not true():
        await anyio.lowlevel.checkpoint()
    call()


# -- RFC 2217 --


@contextlib.asynccontextmanager
async def remote(**options: Any) -> AsyncIterator[tuple[SerialDevice, Server]]:
    """A port behind a server of RFC 2217, and the server."""
    with server() as (place, listening), contextlib.closing(Server(listening)) as far, anyio.fail_after(30):
        async with awake(), open_serial(f"rfc2217://{place}", **options) as device:
            yield device, far


async def test_a_remote_port_is_used_as_a_local_one() -> None:
    """Whatever the bytes are, in pieces of whatever size; on trio, too."""
    data = bytes(range(256)) * 400
    async with remote() as (device, far), device.open() as stream, anyio.create_task_group() as group:
        start(group, stream.send, data)
        got = b""
        while len(got) < len(data):
            got += await stream.receive(1000)
    assert got == data
    assert far.came == data


async def test_a_remote_port_has_the_settings_and_lines_that_were_asked_for() -> None:
    """From the opening on; None leaves a line as the server has it."""
    async with remote(baudrate=19200, bytesize=7, parity="E", stopbits=2, rtscts=True, dtr=False, rts=False) as (
        _,
        far,
    ):
        port = far.port
        assert (port.baudrate, port.bytesize, port.parity, port.stopbits) == (19200, 7, "E", 2)
        assert (port.rtscts, port.dtr, port.rts) == (True, False, False)
    async with remote() as (_, far):
        assert (far.port.dtr, far.port.rts) == (True, True)


@pytest.mark.parametrize("reading", [False, True])
async def test_a_remote_ports_rate_can_be_changed(reading: bool) -> None:
    """While somebody reads, and while nobody does; the server has done it then."""
    async with remote() as (device, far), anyio.create_task_group() as group:
        stream, other = device.open(), device.open()
        if reading:
            call = start(group, other.receive)
            await parked(other.handle)
        async with anyio.create_task_group() as both:
            for _ in range(2):
                both.start_soon(stream.set_baudrate, 57600)
        assert far.port.baudrate == 57600
        await stream.send(b"x")
        if reading:
            await call.done.wait()
            assert call.outcome == b"x"
        else:
            assert await other.receive() == b"x"


async def test_a_remote_ports_settings_can_be_changed() -> None:
    """All of them; the server has done it then."""
    async with remote() as (device, far), device.open() as stream:
        await stream.configure(baudrate=19200, bytesize=7, parity="E", stopbits=2, rtscts=True, xonxoff=False)
        port = far.port
        assert (port.baudrate, port.bytesize, port.parity, port.stopbits) == (19200, 7, "E", 2)
        assert (port.rtscts, port.xonxoff) == (True, False)


async def test_a_remote_ports_lines_are_set_and_told() -> None:
    """Ours as they were set last, and those of the far end as the server has told last."""
    async with remote(dtr=False) as (device, far), device.open() as stream:
        assert await stream.modem_lines() == ModemLines(cts=True, dsr=True, ri=False, cd=True, rts=True, dtr=False)
        async with anyio.create_task_group() as group:
            group.start_soon(functools.partial(stream.set_modem_lines, rts=False, dtr=True))
            group.start_soon(stream.modem_lines)
        assert (far.port.rts, far.port.dtr) == (False, True)
        far.manager.check_modem_lines()
        await stream.set_baudrate(19200)  # whose answer comes after the notice
        assert await stream.modem_lines() == ModemLines(cts=False, dsr=True, ri=False, cd=True, rts=False, dtr=True)


async def test_a_break_is_held_at_a_remote_port() -> None:
    """And ended, also when it is cancelled."""
    async with remote() as (device, far), device.open() as stream:
        with anyio.CancelScope() as scope:
            async with anyio.create_task_group() as group:
                group.start_soon(stream.send_break, 3600)
                group.start_soon(when, lambda: far.port.break_condition, scope.cancel)
        assert not far.port.break_condition


async def test_a_server_that_does_not_answer_is_an_error_of_the_request(monkeypatch: pytest.MonkeyPatch) -> None:
    """Which names the port; and the port stays."""
    async with remote() as (device, far), device.open() as stream:
        with monkeypatch.context() as patch:
            patch.setattr(rfc2217, "_ANSWER", 0.01)
            patch.setattr(far.manager, "_telnet_process_subnegotiation", lambda _: None)
            with pytest.raises(serial.SerialException, match="the server does not answer: 'rfc2217://") as info:
                await stream.set_baudrate(19200)
        assert info.value.errno == errno.ETIMEDOUT
        await stream.send(b"x")
        assert await stream.receive() == b"x"


async def test_what_has_come_from_a_remote_port_is_thrown_away() -> None:
    """Here, and at the server."""
    async with remote() as (device, far), device.open() as stream:
        await stream.send(b"old")
        assert await stream.receive(1) == b"o"
        await stream.reset_input_buffer()
        await stream.drain()
        far.write(b"new")
        assert await stream.receive() == b"new"


@pytest.mark.parametrize("reading", [False, True])
async def test_the_end_of_a_remote_port_is_noticed(reading: bool) -> None:
    """Though the server has told of its lines since, which nobody has read."""
    async with remote() as (device, far), anyio.create_task_group() as group:
        stream = device.open()
        if reading:
            call = start(group, stream.receive)
            await parked(stream.handle)
        far.write(b"\xff\xfa\x2c\x6b\x30\xff\xf0")  # NOTIFY-MODEMSTATE
        far.shut()
        assert await released(device) == "unplugged: closed by the far end"
        if reading:
            await call.done.wait()
            assert isinstance(call.error, SerialRevokedError)


async def test_what_a_remote_port_said_before_its_end_is_received_first() -> None:
    """As from any connection."""
    async with remote() as (device, far), device.open() as stream:
        far.write(b"last words")
        far.shut()
        await settle(50)
        assert not device.node.revoked
        assert await stream.receive() == b"last words"
        with pytest.raises(SerialRevokedError, match="closed by the far end"):
            await stream.receive()


@pytest.mark.parametrize("option", ["low_latency", "hangup_on_close"])
async def test_what_a_server_cannot_do_is_an_error_that_says_what_to_leave_out(option: str) -> None:
    """And the connection is closed."""
    with (
        server() as (place, listening),
        contextlib.closing(Server(listening)),
        pytest.raises(serial.SerialException, match=f"do not give {option}") as info,
    ):
        await open_serial(f"rfc2217://{place}", **{option: True})  # type: ignore[arg-type]
    assert info.value.errno == errno.EOPNOTSUPP


async def test_a_remote_port_is_kept_alive() -> None:
    """As any connection."""
    async with remote() as (device, _):
        with socket.socket(fileno=device.fileno()) as connection:
            assert connection.getsockopt(socket.IPPROTO_TCP, socket.TCP_USER_TIMEOUT) == 30_000
            connection.detach()


async def test_a_remote_port_from_which_nothing_comes_is_taken_away_if_a_limit_was_set() -> None:
    """As any other."""
    async with remote(idle_limit=0.01) as (device, _):
        assert await released(device) == "nothing has come for 0.01 s"


async def test_a_server_that_speaks_something_else_is_an_error() -> None:
    """It breaks off at once, as one that serves another client may."""
    with server() as (place, listening):
        thread = threading.Thread(target=lambda: reset(listening.accept()[0]))
        thread.start()
        with pytest.raises(serial.SerialException, match=f"rfc2217://{place}"):
            await open_serial(f"rfc2217://{place}")
        thread.join()


async def test_a_remote_port_keeps_the_contract() -> None:
    """It can be taken away as everything else can."""

    @contextlib.asynccontextmanager
    async def maker() -> AsyncIterator[testing.Subject]:
        with server() as (place, listening), contextlib.closing(Server(listening)) as far:
            async with open_serial(f"rfc2217://{place}") as device:
                stream = device.open("s")
                yield testing.Subject(
                    stream.handle,
                    stream.receive,
                    quick=functools.partial(stream.send, b"x"),
                    feed=lambda: far.write(b"hello"),
                    close=stream.aclose,
                    owner=device.node,
                )

    await testing.check_revokable(maker)
