"""A serial device that several use, and that is unplugged: the same on all three backends, over ptys."""

import asyncio
import contextlib
import errno
import fcntl
import functools
import math
import os
import pathlib
import pickle
import select
import socket
import subprocess
import sys
import termios
import threading
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from typing import Any

import anyio
import anyio.abc
import anyio.lowlevel
import pytest
import serial
import serialx.platforms.serial_posix

from asyncrevoke import Name, Revokable, RevokedError, SerialDevice, SerialStream, answers, open_serial, testing
from asyncrevoke.adapters.serial import ModemLines, SerialRevokedError
from asyncrevoke.lowlevel import Deadline
from calls import Call, awake, parked, start
from conftest import BACKENDS, settle
from operations import asyncio_only
from ports import FarEnd, as_root, may_hang_up, serial_line
from sockets import BIG

pytestmark = pytest.mark.anyio

Patch = pytest.MonkeyPatch
Unplug = Callable[[FarEnd], None]

KINDS = ["descriptor", "pyserial-asyncio", "serialx"]
TRANSPORTS = KINDS[1:]


def on(kinds: list[str], *loops: str) -> pytest.MarkDecorator:
    """Each backend on each of these event loops; the transports on no trio."""
    cases = [
        pytest.param(kind, loop.values[0], id=f"{kind}-{loop.id}")
        for kind in kinds
        for loop in BACKENDS
        if loop.id in loops and (loop.id != "trio" or kind == "descriptor")
    ]
    return pytest.mark.parametrize(("backend", "anyio_backend"), cases, indirect=["anyio_backend"])


everywhere = on(KINDS, "asyncio", "uvloop", "eager", "trio")
on_each = on(KINDS, "asyncio", "trio")
on_asyncio = on(KINDS, "asyncio")
on_transports = on(TRANSPORTS, "asyncio", "uvloop")

#: An unplug: what the kernel does, and what everybody may do to a pty.
unplugs = pytest.mark.parametrize(
    "unplug",
    [
        pytest.param(
            FarEnd.hang_up, marks=pytest.mark.skipif(not may_hang_up(), reason="TIOCVHANGUP needs CAP_SYS_ADMIN")
        ),
        FarEnd.close,
    ],
)


def opened(url: str, backend: str, **options: Any) -> SerialDevice:
    return open_serial(url, backend=backend, **options)  # type: ignore[arg-type]


@contextlib.asynccontextmanager
async def port(backend: str, **options: Any) -> AsyncIterator[tuple[SerialDevice, FarEnd]]:
    with serial_line() as end, anyio.fail_after(30):
        async with awake(), opened(end.path, backend, **options) as device:
            yield device, end


async def until(true: Callable[[], object]) -> None:
    """What the kernel or a thread does in its own time."""
    while not true():
        await anyio.lowlevel.checkpoint()


def master(end: FarEnd) -> int:
    return end._master


def held(path: str) -> int:
    """How many descriptors of this process are open on the port; one is the far end's."""
    return sum(is_port(int(entry.name), path) for entry in pathlib.Path("/proc/self/fd").iterdir())


def is_port(fd: int, path: str) -> bool:
    try:
        return pathlib.Path(f"/proc/self/fd/{fd}").readlink() == pathlib.Path(path)
    except OSError:
        return False


class Stalled:
    """A system call on the port that lasts until it is let go, if it is made by a thread of ours."""

    def __init__(self, patch: Patch, module: Any, name: str, only: Callable[..., object] = lambda *_: True) -> None:
        self.begun = threading.Event()
        self.go_on = threading.Event()
        self.ended = threading.Event()
        self.calls: list[tuple[Any, ...]] = []
        call = getattr(module, name)

        def stalled(*args: Any) -> Any:
            if threading.current_thread() is threading.main_thread() or not only(*args):
                return call(*args)
            self.calls.append(args)
            self.begun.set()
            assert self.go_on.wait(30)
            try:
                return call(*args)
            finally:
                self.ended.set()

        patch.setattr(module, name, stalled)


Stall = Callable[..., Stalled]


@pytest.fixture
def stall(monkeypatch: Patch) -> Iterator[Stall]:
    made: list[Stalled] = []

    def make(module: Any, name: str, only: Callable[..., object] = lambda *_: True) -> Stalled:
        made.append(Stalled(monkeypatch, module, name, only))
        return made[-1]

    yield make
    for each in made:
        each.go_on.set()
    threads_end()


def threads_end() -> None:
    for thread in threading.enumerate():
        if thread.name.startswith("off loop"):
            thread.join(30)


def stall_close(stall: Stall, path: str) -> Stalled:
    """The last close of the port, the one that would wait for a stalled line."""
    return stall(os, "close", lambda fd: is_port(fd, path) and "off loop" in threading.current_thread().name)


# -- the contract --


@everywhere
@pytest.mark.parametrize("fan_out", [False, True])
@pytest.mark.parametrize("what", ["stream", "device"])
async def test_it_keeps_the_contract(backend: str, fan_out: bool, what: str) -> None:
    """A stream, and the device below it, can be taken away as everything else can."""

    @contextlib.asynccontextmanager
    async def maker() -> AsyncIterator[testing.Subject]:
        with serial_line() as end:
            async with opened(end.path, backend, fan_out=fan_out) as device:
                stream = device.open("s")
                node, close = (stream.handle, stream.aclose) if what == "stream" else (device.node, device.aclose)

                async def wait() -> bytes:
                    await anyio.lowlevel.checkpoint()
                    with node.using(idle=True):
                        return await stream.receive()

                yield testing.Subject(
                    node,
                    stream.receive if what == "stream" else wait,
                    quick=functools.partial(stream.send, b"x") if what == "stream" else None,
                    feed=lambda: end.send(b"hello"),
                    close=close,
                    gone=None if what == "stream" else lambda: held(end.path) == 1,
                    owner=device.node if what == "stream" else None,
                )

    await testing.check_revokable(maker)


# -- unplugged --


USES: dict[str, Callable[[SerialStream], Awaitable[object]]] = {
    "reading": SerialStream.receive,
    "writing": lambda stream: stream.send(bytes(1 << 20)),
    "a break": lambda stream: stream.send_break(1000),
    "draining": SerialStream.drain,
}


@everywhere
@unplugs
@pytest.mark.parametrize("use", USES)
async def test_an_unplug_ends_what_waits_and_is_one_revocation_for_all(
    backend: str, unplug: Unplug, use: str, monkeypatch: Patch, caplog: pytest.LogCaptureFixture
) -> None:
    """Who waits gets the one clear error, and so does every other stream then, with the same reason."""
    accepted = 0
    write, ioctl = os.write, fcntl.ioctl

    def counted(fd: int, data: bytes) -> int:
        nonlocal accepted
        taken = write(fd, data)
        accepted += taken if is_port(fd, end.path) else 0
        return taken

    def queued(fd: int, request: int, *rest: Any) -> Any:
        return b"\1\0\0\0" if request == termios.TIOCOUTQ else ioctl(fd, request, *rest)

    monkeypatch.setattr(os, "write", counted)
    monkeypatch.setattr(fcntl, "ioctl", queued)  # a pty's driver has nothing queued, ever
    async with port(backend) as (device, end), anyio.create_task_group() as group:
        user, other = device.open("user"), device.open("other")
        call = start(group, USES[use], user)
        await parked(user.handle)
        unplug(end)
        await call.done.wait()
        error = call.error
        with pytest.raises(SerialRevokedError) as late:
            await other.receive()
        assert isinstance(error, serial.SerialException)
        assert error.in_flight
        assert not late.value.in_flight
        assert error.reason.startswith("unplugged")
        assert late.value.reason == error.reason == device.node.reason
        if use == "writing":
            assert error.sent == (accepted if backend == "descriptor" else None)
            assert 0 < accepted < 1 << 20
    assert device.node.released
    assert not caplog.records  # as of a release that failed


@everywhere
@unplugs
@pytest.mark.parametrize("fan_out", [False, True])
@pytest.mark.parametrize("paused", [False, True])
async def test_an_unplug_is_noticed_while_nobody_uses_it(
    backend: str, unplug: Unplug, fan_out: bool, paused: bool
) -> None:
    """Also when a transport has stopped reading, as nobody takes what has come."""
    async with port(backend, fan_out=fan_out) as (device, end):
        stream = device.open()
        if paused:
            await pour(end, 1 << 20)
        unplug(end)
        await until(lambda: device.node.released)
        assert device.node.reason.startswith("unplugged")
        with pytest.raises(SerialRevokedError):
            await stream.modem_lines()


@on_each
async def test_an_unplug_waits_for_a_request_that_is_inside_the_driver(backend: str, stall: Stall) -> None:
    """The descriptor is not closed below it, and it gets the answer of a kicked operation or the driver's."""
    driver = stall(fcntl, "ioctl", lambda _, request, *__: request == termios.TIOCMGET)
    async with port(backend) as (device, end), anyio.create_task_group() as group:
        call = start(group, device.open().modem_lines)
        await until(driver.begun.is_set)
        end.close()
        await until(lambda: device.node.revoked)
        act = device.revoke()
        await settle()
        assert not act.done()
        assert held(end.path + " (deleted)")
        driver.go_on.set()
        await call.done.wait()
        assert call.error.reason.startswith("unplugged")
        await act


@on_each
@unplugs
async def test_an_unplug_while_it_opens_is_an_error_of_the_open(
    backend: str, unplug: Unplug, monkeypatch: Patch
) -> None:
    """It is opened no more, says which port, and nothing is left open."""
    lock = fcntl.flock

    def unplugged(fd: int, how: int) -> None:
        unplug(end)
        lock(fd, how)

    monkeypatch.setattr(fcntl, "flock", unplugged)
    with serial_line() as end, pytest.raises(serial.SerialException, match=end.path) as info:
        await opened(end.path, backend)
    assert info.value.errno == errno.EIO


@on_asyncio
@pytest.mark.parametrize("number", [errno.EIO, errno.ENODEV, errno.ENXIO, errno.EPERM])
@pytest.mark.parametrize(("what", "module"), [("read", os), ("write", os), ("ioctl", fcntl)])
async def test_what_the_kernel_says_of_a_gone_device_is_an_unplug(
    backend: str, number: int, what: str, module: Any, monkeypatch: Patch
) -> None:
    """EIO, ENODEV, ENXIO and EPERM, from any call on the port."""
    call = getattr(module, what)

    def gone(fd: int, *rest: Any) -> Any:
        if is_port(fd, end.path):
            raise OSError(number, os.strerror(number))
        return call(fd, *rest)

    async with port(backend) as (device, end):
        stream = device.open()
        monkeypatch.setattr(module, what, gone)
        if what == "read":
            os.write(master(end), b"x")
        operations: dict[str, Callable[[], Awaitable[object]]] = {
            "read": stream.receive,
            "write": lambda: stream.send(b"x"),
            "ioctl": stream.modem_lines,
        }
        with pytest.raises(SerialRevokedError) as info:
            await operations[what]()
        assert info.value.reason.startswith("unplugged")
        assert os.strerror(number) in info.value.reason
        monkeypatch.undo()


@on_each
async def test_what_termios_raises_is_told_in_words(backend: str, monkeypatch: Patch) -> None:
    """Its error is no OSError, and shows as a tuple."""

    def gone(*_: object) -> None:
        raise termios.error(errno.EIO, "Input/output error")

    async with port(backend) as (device, end):
        with monkeypatch.context() as patch:
            patch.setattr(termios, "tcflush", gone)
            with pytest.raises(SerialRevokedError) as info:
                await device.open().reset_input_buffer()
        assert info.value.reason == f"unplugged: [Errno 5] Input/output error: '{end.path}'"


@on_each
async def test_settings_that_the_driver_refuses_are_told_in_words(backend: str, monkeypatch: Patch) -> None:
    """Of an error that we know nothing better of, as the kernel does."""

    def refuse(*_: object) -> None:
        raise termios.error(errno.EPROTO, "Protocol error")

    with serial_line() as end, monkeypatch.context() as patch:
        patch.setattr(termios, "tcgetattr", refuse)
        patch.setattr(serialx.platforms.serial_posix, "tcgetattr", refuse)
        with pytest.raises(serial.SerialException, match=f"Errno 71.*Protocol error: '{end.path}'$") as info:
            await opened(end.path, backend)
    assert "(71" not in str(info.value)


@on_each
@pytest.mark.parametrize("number", [errno.ENOTTY, errno.EINVAL])
async def test_what_the_driver_refuses_is_no_unplug(backend: str, number: int, monkeypatch: Patch) -> None:
    """It is an error of that one request, which names the port."""

    def refuse(*_: object) -> None:
        raise OSError(number, os.strerror(number))

    async with port(backend) as (device, end):
        stream = device.open()
        with monkeypatch.context() as patch:
            patch.setattr(fcntl, "ioctl", refuse)
            with pytest.raises(serial.SerialException, match=end.path) as info:
                await stream.modem_lines()
        assert not isinstance(info.value, RevokedError)
        assert info.value.errno == number
        await stream.send(b"x")


@on_each
@pytest.mark.parametrize("number", [errno.EPIPE, errno.EOPNOTSUPP, errno.ENOTTY])
async def test_who_cannot_send_a_break_says_so(backend: str, number: int, monkeypatch: Patch) -> None:
    """A driver, or a USB device, in whatever way: it is no unplug, and the words say what it is."""

    def refuse(*_: object) -> None:
        raise OSError(number, os.strerror(number))

    async with port(backend) as (device, end):
        stream = device.open()
        with monkeypatch.context() as patch:
            patch.setattr(fcntl, "ioctl", refuse)
            with pytest.raises(serial.SerialException, match=f"it cannot send a break: '{end.path}'"):
                await stream.send_break(0)
        await stream.send(b"x")


@pytest.mark.parametrize("seconds", [-0.1, math.nan])
async def test_a_break_of_less_than_no_time_is_refused_before_it_begins(seconds: float, monkeypatch: Patch) -> None:
    """The line is left alone."""
    called: list[object] = []
    async with port(KINDS[0]) as (device, _):
        stream = device.open()
        with monkeypatch.context() as patch:
            patch.setattr(fcntl, "ioctl", lambda *args: called.append(args))
            with pytest.raises(ValueError, match="seconds is"):
                await stream.send_break(seconds)
    assert called == []


class Driver:
    """A driver in place of the kernel's, as a pty has no lines: it notes what it is asked, and has RTS and CTS set."""

    def __init__(self, patch: Patch) -> None:
        self.asked: list[tuple[int, int]] = []
        patch.setattr(fcntl, "ioctl", self._ioctl)
        patch.setattr(termios, "tcflush", lambda _, queue: self.asked.append((0, queue)))

    def _ioctl(self, _: int, request: int, given: bytes = bytes(4)) -> bytes:
        self.asked.append((request, int.from_bytes(given, sys.byteorder)))
        return (termios.TIOCM_RTS | termios.TIOCM_CTS).to_bytes(4, sys.byteorder)


@on_each
async def test_requests_are_those_of_the_driver(backend: str, monkeypatch: Patch) -> None:
    """Each reads or sets what it says, and a break that is cancelled is ended."""
    async with port(backend) as (device, _):
        stream = device.open()
        with monkeypatch.context() as patch:
            driver = Driver(patch)
            assert await stream.modem_lines() == ModemLines(
                cts=True, dsr=False, ri=False, cd=False, rts=True, dtr=False
            )
            await stream.set_modem_lines(rts=True, dtr=False)
            await stream.reset_input_buffer()
            await stream.reset_output_buffer()
            with anyio.CancelScope() as scope:
                async with anyio.create_task_group() as group:
                    group.start_soon(stream.send_break, 3600)
                    await until(lambda: len(driver.asked) == 6)
                    scope.cancel()
        assert driver.asked == [
            (termios.TIOCMGET, 0),
            (termios.TIOCMBIS, termios.TIOCM_RTS),
            (termios.TIOCMBIC, termios.TIOCM_DTR),
            (0, termios.TCIFLUSH),
            (0, termios.TCOFLUSH),
            (0x5427, 0),  # TIOCSBRK
            (0x5428, 0),  # TIOCCBRK
        ]


@on_asyncio
@pytest.mark.parametrize("idle_limit", [None, 3600])
async def test_a_closed_device_leaves_no_task_and_no_watch(backend: str, idle_limit: float | None) -> None:
    """Not even as long as the loop goes on."""

    def left() -> tuple[int, int]:
        links = [str(entry.readlink()) for entry in pathlib.Path("/proc/self/fd").iterdir() if entry.is_symlink()]
        return len(asyncio.all_tasks()), sum("eventpoll" in link for link in links)

    with serial_line() as end:
        before = left()
        async with opened(end.path, backend, idle_limit=idle_limit):
            pass
        await settle()
        assert left() == before


LEFT_OPEN = """
import asyncio, gc, os, tracemalloc, tty
from asyncrevoke import open_serial
kept = []
async def open_some(number):
    for _ in range(number):
        ours, line = os.openpty()
        tty.setraw(line)
        device = await open_serial(os.ttyname(line))
        kept.append((ours, line, device, device.open()))
    gc.collect()
async def main():
    await open_some(2)  # what all ports share is made
    tracemalloc.start()
    await open_some(100)
    print(tracemalloc.get_traced_memory()[0] // 100)
asyncio.run(main())
"""


def test_an_open_port_takes_little_memory_and_leaves_without_a_word() -> None:
    """With a stream no more than 5 kB: what few streams need, such as a lock, is made when one does. A program that ends
    with ports open closes them, and has nothing to say about it.
    """
    ran = subprocess.run([sys.executable, "-c", LEFT_OPEN], capture_output=True, text=True, timeout=60)
    assert (ran.returncode, ran.stderr) == (0, "")
    assert int(ran.stdout) < 5000


@on_each
async def test_an_unplug_is_told_where_nobody_is_kicked(backend: str) -> None:
    """Below an owner with ``kick=None`` who comes upon it gets the same error, and not the library's."""
    async with port(backend, owner=Revokable("owner", kick=None)) as (device, end), anyio.create_task_group() as group:
        stream = device.open()
        call = start(group, stream.receive)
        await parked(stream.handle)
        end.close()
        await call.done.wait()
        assert isinstance(call.error, SerialRevokedError)
        assert call.error.in_flight
        assert call.error.reason.startswith("unplugged")


@on_asyncio
async def test_the_end_of_a_socket_is_an_unplug(backend: str) -> None:
    """What the far end of a socket:// has sent before is received first. serialx's has no descriptor, and says so."""
    async with await anyio.create_tcp_listener(local_host="127.0.0.1") as listener:
        url = f"socket://127.0.0.1:{listener.extra(anyio.abc.SocketAttribute.local_port)}"
        if backend == "serialx":
            with pytest.raises(ValueError, match=url):
                await open_serial(url, backend="serialx")
            return
        async with opened(url, backend) as device:
            stream = device.open()
            async with await listener.listeners[0].accept() as peer:  # type: ignore[attr-defined]
                await peer.send(b"last words")
            assert await stream.receive() == b"last words"
            with pytest.raises(SerialRevokedError, match="unplugged"):
                await stream.receive()


@on(["descriptor", "pyserial-asyncio"], "asyncio")
async def test_what_the_far_end_of_a_socket_says_first_is_received(backend: str, monkeypatch: Patch) -> None:
    """Also what comes while it is still being opened, which pyserial throws away."""
    connect = socket.create_connection

    def slowly(*args: Any, **options: Any) -> socket.socket:
        connection = connect(*args, **options)
        assert select.select([connection], [], [], 20)[0]
        return connection

    async def greet(peer: anyio.abc.SocketStream) -> None:
        async with peer:
            await peer.send(b"220 ready")
            await anyio.sleep_forever()

    monkeypatch.setattr(socket, "create_connection", slowly)
    async with (
        await anyio.create_tcp_listener(local_host="127.0.0.1") as listener,
        anyio.create_task_group() as group,
    ):
        group.start_soon(listener.serve, greet)
        url = f"socket://127.0.0.1:{listener.extra(anyio.abc.SocketAttribute.local_port)}"
        async with opened(url, backend) as device:
            assert await device.open().receive() == b"220 ready"
        group.cancel_scope.cancel()


# -- shared --


@on_each
async def test_one_task_may_read_unless_each_gets_a_copy(backend: str) -> None:
    """A second reader is refused, as busy; the first goes on."""
    async with port(backend) as (device, end), anyio.create_task_group() as group:
        first, second = device.open("first"), device.open("second")
        call = start(group, first.receive)
        await parked(first.handle)
        with pytest.raises(anyio.BusyResourceError):
            await second.receive()
        end.send(b"for the first")
        await call.done.wait()
        assert call.outcome == b"for the first"


@on_each
async def test_who_is_too_far_behind_is_revoked_and_the_others_go_on(backend: str) -> None:
    """With `fan_out`, each gets a copy of all that comes, as long as it keeps up."""
    async with port(backend, fan_out=True, backlog=3000) as (device, end):
        quick, slow = device.open("quick"), device.open("slow")
        got = b""
        for byte in b"abcd":
            end.send(bytes([byte]) * 1000)
            while len(got) % 1000 or not got.endswith(bytes([byte])):
                got += await quick.receive()
        assert len(got) == 4000
        with pytest.raises(SerialRevokedError, match="behind"):
            await slow.receive()
        await quick.send(b"x")
        assert not device.node.revoked


@on_each
async def test_what_several_send_is_not_mixed_within_4096_bytes(backend: str) -> None:
    """Whole blocks of each arrive."""
    async with port(backend) as (device, end), anyio.create_task_group() as group:
        for byte in b"abc":
            start(group, device.open().send, bytes([byte]) * 4096 * 3)
        data = b""
        while len(data) < 3 * 3 * 4096:
            data += end.received()
            await anyio.lowlevel.checkpoint()
    assert {len(set(data[at : at + 4096])) for at in range(0, len(data), 4096)} == {1}


@on_each
async def test_nobody_sends_while_another_drains(backend: str, stall: Stall) -> None:
    """The kernel's tcdrain cannot be ended: what is sent meanwhile, on a line that stalls, would keep it for ever."""
    async with port(backend) as (device, end), anyio.create_task_group() as group:
        driver = stall(termios, "tcdrain")
        start(group, device.open().drain)
        await until(driver.begun.is_set)
        call = start(group, device.open().send, b"x")
        await settle()
        assert (call.done.is_set(), end.received()) == (False, b"")
        driver.go_on.set()
        await call.done.wait()
        assert end.received(5) == b"x"


async def pour(end: FarEnd, enough: int) -> int:
    """Send until it is enough, or nothing has been taken for a while."""
    sent = stuck = 0
    while sent < enough and stuck < 300:
        try:
            sent += os.write(master(end), bytes(4096))
            stuck = 0
        except BlockingIOError:
            stuck += 1
            await anyio.lowlevel.checkpoint()
    return sent


@everywhere
async def test_a_flood_that_nobody_reads_stays_with_who_sends_it(backend: str) -> None:
    """Memory is bounded, and all that was taken is received later."""
    async with port(backend) as (device, end):
        sent = await pour(end, 16 << 20)
        assert sent < 1 << 20
        stream = device.open()
        while sent:
            sent -= len(await stream.receive())


@on_transports
async def test_sends_that_are_cancelled_do_not_pile_up(backend: str) -> None:
    """A transport holds no more than one piece, however often a timeout ends the waiting."""
    async with port(backend) as (device, _):
        stream = device.open()
        for _ in range(20):
            async with anyio.create_task_group() as group:
                start(group, stream.send, BIG)
                await parked(stream.handle)
                group.cancel_scope.cancel()
        assert device.line._transport.get_write_buffer_size() <= 4096  # type: ignore[attr-defined]


# -- what is asked for at the opening --


@on_each
async def test_an_open_port_takes_one_descriptor(backend: str) -> None:
    """And all of a loop's together one more, by which their hang-ups are noticed."""

    def count() -> int:
        return len(list(pathlib.Path("/proc/self/fd").iterdir()))

    async with contextlib.AsyncExitStack() as stack:
        if backend != "descriptor":  # what their libraries keep for the loop
            await stack.enter_async_context(port(backend))
        ends = [stack.enter_context(serial_line()) for _ in range(5)]
        before = count()
        for end in ends:
            await stack.enter_async_context(opened(end.path, backend))
        assert count() - before <= 5 + (backend == "descriptor")


class Uart:
    """The modem lines and the low latency of a driver, in place of those that a pty has not."""

    def __init__(self, patch: Patch, path: str) -> None:
        self.acts: list[tuple[str, int]] = []
        self.serial = bytearray(range(72))
        self._path = path
        self._real = fcntl.ioctl, termios.tcsetattr
        patch.setattr(fcntl, "ioctl", self._ioctl)
        patch.setattr(termios, "tcsetattr", self._tcsetattr)

    def _ioctl(self, fd: int, request: int, given: Any = 0, *rest: Any) -> Any:
        if not is_port(fd, self._path):
            return self._real[0](fd, request, given, *rest)
        if request in (termios.TIOCMBIS, termios.TIOCMBIC):
            self.acts.append(("raise" if request == termios.TIOCMBIS else "lower", int.from_bytes(given, "little")))
        elif request == termios.TIOCGSERIAL:
            given[: len(self.serial)] = self.serial
        elif request == termios.TIOCSSERIAL:
            self.serial[:] = given[: len(self.serial)]
        else:
            return self._real[0](fd, request, given, *rest)
        return given

    def _tcsetattr(self, *args: Any) -> None:
        self.acts.append(("settings", 0))
        self._real[1](*args)


@on(["descriptor", "pyserial-asyncio"], "asyncio", "trio")
@pytest.mark.parametrize(
    ("wishes", "acts"),
    [
        ({}, []),
        ({"dtr": False, "rts": False}, [("lower", termios.TIOCM_DTR | termios.TIOCM_RTS)]),
        ({"dtr": True, "rts": False}, [("raise", termios.TIOCM_DTR), ("lower", termios.TIOCM_RTS)]),
        ({"rts": True}, [("raise", termios.TIOCM_RTS)]),
    ],
)
async def test_the_lines_are_set_before_the_settings(
    backend: str, wishes: dict[str, bool], acts: list[tuple[str, int]], monkeypatch: Patch
) -> None:
    """Those that are asked for, both in one step if they become the same; else nobody touches them."""
    with serial_line() as end, monkeypatch.context() as patch:
        uart = Uart(patch, end.path)
        async with awake(), opened(end.path, backend, **wishes):
            assert uart.acts == [*acts, ("settings", 0)]


@on_each
async def test_a_locked_ports_lines_are_left_alone(backend: str, monkeypatch: Patch) -> None:
    """The board of another program is not reset."""
    with serial_line() as end, pathlib.Path(end.path).open("rb", buffering=0) as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        with monkeypatch.context() as patch, pytest.raises(serial.SerialException, match="fuser"):
            uart = Uart(patch, end.path)
            await opened(end.path, backend, dtr=False, rts=False)
        assert uart.acts == []


@on_each
async def test_a_line_that_is_not_there_is_low(backend: str) -> None:
    """A pty has none: False is true there."""
    async with port(backend, dtr=False, rts=False) as (device, end):
        await device.open().send(b"x")
        assert end.received(5) == b"x"


@on_each
@pytest.mark.parametrize(
    ("wish", "words"),
    [
        ({"dtr": True}, "has no modem lines: do not give dtr and rts"),
        ({"rts": True, "dtr": False}, "has no modem lines: do not give dtr and rts"),
        ({"low_latency": True}, "has no low latency: do not give low_latency"),
    ],
)
async def test_what_the_driver_has_not_is_an_error_that_says_what_to_leave_out(
    backend: str, wish: dict[str, bool], words: str
) -> None:
    """It names the port, too, and nothing is left open."""
    with serial_line() as end:
        with pytest.raises(serial.SerialException, match=f"{words}: '{end.path}'$") as info:
            await opened(end.path, backend, **wish)
        assert held(end.path) == 1
    assert info.value.errno == errno.EOPNOTSUPP


@on_each
async def test_what_the_driver_says_of_an_unplug_is_no_lack(backend: str, monkeypatch: Patch) -> None:
    """It has gone while its lines were set."""

    def gone(fd: int, request: int, *rest: Any) -> Any:
        if request == termios.TIOCMBIS and is_port(fd, end.path):
            raise OSError(errno.EIO, "Input/output error")
        return ioctl(fd, request, *rest)

    ioctl = fcntl.ioctl
    with serial_line() as end, monkeypatch.context() as patch:
        patch.setattr(fcntl, "ioctl", gone)
        with pytest.raises(serial.SerialException, match="plug it in again") as info:
            await opened(end.path, backend, dtr=True)
    assert info.value.errno == errno.EIO


@on(["descriptor", "pyserial-asyncio"], "asyncio", "trio")
async def test_low_latency_is_one_flag_of_the_drivers(backend: str, monkeypatch: Patch) -> None:
    """The others stay as they are."""
    with serial_line() as end, monkeypatch.context() as patch:
        uart = Uart(patch, end.path)
        before = bytes(uart.serial)
        async with awake(), opened(end.path, backend):
            assert uart.serial == before
        async with awake(), opened(end.path, backend, low_latency=True):
            flags = int.from_bytes(before[16:20], "little") | 1 << 13
            assert uart.serial == before[:16] + flags.to_bytes(4, "little") + before[20:]


@on_each
@pytest.mark.parametrize("wish", [False, True])
async def test_the_last_close_lowers_the_lines_if_that_is_asked_for(backend: str, wish: bool) -> None:
    """HUPCL is set or cleared, and a later change of the rate leaves it so."""
    async with port(backend, hangup_on_close=wish) as (device, _):
        for rate in 19200, 250000:
            assert bool(termios.tcgetattr(device.fileno())[2] & termios.HUPCL) == wish
            await device.open().set_baudrate(rate)


@on(["descriptor", "pyserial-asyncio"], "asyncio")
@pytest.mark.parametrize("was", [0, termios.HUPCL])
async def test_whether_a_close_lowers_the_lines_is_left_as_it_is(backend: str, was: int) -> None:
    """Unless it is asked for."""
    with serial_line() as end:
        with settings_of(end) as settings:
            settings[2] = settings[2] & ~termios.HUPCL | was
        async with awake(), opened(end.path, backend) as device:
            assert termios.tcgetattr(device.fileno())[2] & termios.HUPCL == was


@pytest.mark.skipif("ASYNCREVOKE_UART" not in os.environ, reason="ASYNCREVOKE_UART names no port that may be tried")
@on_asyncio
@pytest.mark.parametrize("wish", [False, True])
async def test_a_real_port_has_the_lines_that_were_asked_for(backend: str, wish: bool) -> None:
    """Both lines, and HUPCL, as its own driver tells them."""
    async with opened(
        os.environ["ASYNCREVOKE_UART"], backend, dtr=wish, rts=not wish, hangup_on_close=wish, exclusive=False
    ) as device:
        lines = await device.open().modem_lines()
        assert (lines.dtr, lines.rts) == (wish, not wish)
        assert bool(termios.tcgetattr(device.fileno())[2] & termios.HUPCL) == wish


@everywhere
async def test_a_port_from_which_nothing_comes_is_taken_away_if_a_limit_was_set(backend: str) -> None:
    """The reason says for how long it was silent."""
    async with port(backend, idle_limit=0.01) as (device, _):
        await until(lambda: device.node.released)
        assert device.node.reason == "nothing has come for 0.01 s"


@everywhere
@pytest.mark.parametrize("reading", [False, True])
async def test_what_comes_puts_the_limit_off(backend: str, reading: bool, monkeypatch: Patch) -> None:
    """Whether anybody reads it or not; what is sent does not."""
    put_off: list[Deadline] = []
    monkeypatch.setattr(Deadline, "put_off", lambda deadline: put_off.append(deadline))  # noqa: PLW0108  # a method
    monkeypatch.setattr(Deadline, "_put_off_at", math.inf)
    async with port(backend, idle_limit=3600) as (device, end), anyio.create_task_group() as group:
        stream = device.open()
        for _ in range(3):
            call = start(group, stream.receive) if reading else None
            await settle()
            put_off.clear()
            end.send(b"x")
            await (call.done.wait() if call else until(lambda: put_off))
            await settle()
            assert put_off
            put_off.clear()
            await stream.send(b"y")
            await settle()
            assert not put_off


# -- bad input --


@pytest.mark.parametrize("fan_out", [False, True])
@on_each
async def test_what_has_come_is_thrown_away_wherever_it_is(backend: str, fan_out: bool) -> None:
    """`reset_input_buffer` reaches the driver, a transport, and this stream's copies."""
    async with port(backend, fan_out=fan_out) as (device, end):
        stream = device.open()
        end.send(b"old")
        assert await stream.receive(1) == b"o"
        await stream.reset_input_buffer()
        end.send(b"new")
        assert await stream.receive() == b"new"


@on_asyncio
async def test_what_is_thrown_away_before_it_is_read_is_no_unplug(backend: str) -> None:
    """The loop is told of data that another call has flushed meanwhile: nothing has ended."""
    async with port(backend) as (device, end), anyio.create_task_group() as group:
        stream = device.open()
        call = start(group, stream.receive)
        await parked(stream.handle)
        read, write = os.pipe()
        loop = asyncio.get_running_loop()

        def flush() -> None:  # in the step in which data is found
            loop.remove_reader(read)
            termios.tcflush(device.fileno(), termios.TCIFLUSH)

        loop.add_reader(read, flush)
        os.write(write, b"x")
        end.send(b"old")
        assert select.select([device.fileno()], [], [], 5)[0]  # without a turn of the loop
        await settle()
        end.send(b"new")
        await call.done.wait()
        assert call.outcome == b"new"
        os.close(read)
        os.close(write)


URLS = {
    "/nonexistent/ttyUSB0": errno.ENOENT,
    "": errno.ENOENT,
    "/dev/null": errno.ENOTTY,
    "{tmp}/file": errno.ENOTTY,
    "{tmp}/fifo": errno.ENOTTY,
    "{tmp}": errno.EISDIR,
    "socket://127.0.0.1:1": errno.ECONNREFUSED,
    "loop://": None,
    "bogus://x": None,
}


@on_each
@pytest.mark.parametrize("url", URLS)
async def test_what_is_no_port_is_one_clear_error(backend: str, url: str, tmp_path: pathlib.Path) -> None:
    """It names what was asked for; and nothing is left open."""
    (tmp_path / "file").touch()
    os.mkfifo(tmp_path / "fifo")
    number = URLS[url]
    url = url.format(tmp=tmp_path)
    with pytest.raises(ValueError if number is None else serial.SerialException, match=repr(url)) as info:
        await opened(url, backend)
    assert getattr(info.value, "errno", None) == number


BAD: list[dict[str, Any]] = [
    *({"baudrate": rate} for rate in (-1, 0, "x", 10**12, 1.5, True, None)),
    *({"parity": parity} for parity in ("Q", 1)),
    *({"bytesize": size} for size in (9, 0)),
    *({"stopbits": bits} for bits in (7, "x")),
]


@on_each
@pytest.mark.parametrize("options", BAD, ids=str)
async def test_settings_that_make_no_sense_are_refused_with_the_name_of_the_port(
    backend: str, options: dict[str, Any]
) -> None:
    """One ValueError, before or while it is opened."""
    with serial_line() as end, pytest.raises(ValueError, match=repr(end.path)):
        await opened(end.path, backend, **options)


async def test_the_path_may_be_a_path_object() -> None:
    """As everywhere."""
    with serial_line() as end:
        async with open_serial(pathlib.Path(end.path)) as device:
            assert device.url == device.node.path == end.path


@pytest.mark.parametrize(
    "options", [{"backend": "ours"}, {"close_timeout": 0}, {"idle_limit": 0}, {"fan_out": True, "backlog": 0}]
)
def test_options_that_make_no_sense_are_refused_at_once(options: dict[str, Any]) -> None:
    """A ValueError that says what was given."""
    with pytest.raises(ValueError, match=str(list(options.values())[-1])):
        open_serial("/dev/ttyS0", **options)


@on_each
async def test_a_rate_that_is_none_changes_nothing(backend: str) -> None:
    """A ValueError that names the port, and the rate stays; a good one is set."""
    async with port(backend, baudrate=19200) as (device, end):
        stream = device.open()
        with pytest.raises(ValueError, match=end.path):
            await stream.set_baudrate(0)
        assert termios.tcgetattr(device.fileno())[5] == termios.B19200
        await stream.set_baudrate(57600)
        assert termios.tcgetattr(device.fileno())[5] == termios.B57600


@on_each
async def test_settings_are_changed_for_all_streams(backend: str) -> None:
    """Those that are given; the others stay."""
    async with port(backend, baudrate=19200, stopbits=2) as (device, _):
        await device.open().configure(baudrate=57600, rtscts=True)
        settings = termios.tcgetattr(device.fileno())
        assert settings[5] == termios.B57600
        assert settings[2] & termios.CRTSCTS
        assert settings[2] & termios.CSTOPB
        await device.open().configure(stopbits=1, rtscts=False, xonxoff=True)
        settings = termios.tcgetattr(device.fileno())
        assert not settings[2] & (termios.CRTSCTS | termios.CSTOPB)
        assert settings[0] & termios.IXON
        assert settings[5] == termios.B57600


@on_each
async def test_settings_that_are_refused_leave_all_as_it_was(backend: str) -> None:
    """By the driver, as a pty has no parity, or by us, before it is asked; and the next change is not refused for them."""
    async with port(backend, baudrate=19200) as (device, end):
        stream = device.open()
        before = termios.tcgetattr(device.fileno())
        with pytest.raises(serial.SerialException, match=f"it does not take these settings: '{end.path}'"):
            await stream.configure(baudrate=9600, parity="E")
        with pytest.raises(serial.SerialException, match="it does not take these settings"):
            await stream.configure(stopbits=2, bytesize=5)
        for nonsense in {"parity": "X"}, {"speed": 9600}, {"stopbits": 3, "baudrate": 9600}:
            with pytest.raises(ValueError, match=f"'{end.path}': .* give one of "):
                await stream.configure(**nonsense)
        assert termios.tcgetattr(device.fileno()) == before
        await stream.configure(stopbits=2)
        assert termios.tcgetattr(device.fileno())[2] & termios.CSTOPB


@on_each
async def test_a_port_of_somebody_elses_is_an_error(backend: str, monkeypatch: Patch) -> None:
    """Locked by another, or not ours to use: each says what to do."""
    with serial_line() as end:
        with pathlib.Path(end.path).open("rb", buffering=0) as file:
            fcntl.flock(file, fcntl.LOCK_EX)
            with pytest.raises(serial.SerialException, match=f"fuser.*{end.path}"):
                await opened(end.path, backend)
        call = os.open

        def forbidden(path: str, *rest: Any, **options: Any) -> int:
            if path == end.path:
                raise PermissionError(errno.EACCES, "Permission denied", path)
            return call(path, *rest, **options)

        monkeypatch.setattr(os, "open", forbidden)
        with pytest.raises(serial.SerialException, match=f"dialout.*{end.path}") as info:
            await opened(end.path, backend)
        assert info.value.errno == errno.EACCES
        monkeypatch.undo()


# -- the loop is never blocked --

#: What may wait for a driver or a line. Not here, and so allowed in the loop: isatty, tcgetattr, fstat, F_SETFL, TIOCEXCL
#: and TIOCNXCL, which look into memory, and reads and writes, which are non-blocking.
BLOCKING: dict[Any, list[str]] = {
    os: ["open", "close"],
    termios: ["tcsetattr", "tcdrain", "tcflush", "tcsendbreak", "tcflow"],
    fcntl: ["ioctl", "flock"],
    time: ["sleep"],
}


class Trap:
    """Notes each call on the port that may block: in the loop's thread, and in others."""

    def __init__(self, patch: Patch, end: FarEnd) -> None:
        self.in_loop: list[str] = []
        self.in_threads: set[str] = set()
        places = [*BLOCKING.items(), (serialx.platforms.serial_posix, ["tcsetattr", "tcdrain", "tcflush"])]
        for module, names in places:
            for name in names:
                patch.setattr(module, name, functools.partial(self._note, getattr(module, name), name, end.path))

    def _note(self, call: Callable[..., Any], name: str, path: str, *args: Any, **options: Any) -> Any:
        if name == "ioctl" and args[1] in (termios.TIOCEXCL, termios.TIOCNXCL):
            pass
        elif name == "sleep" or args[0] == path or (isinstance(args[0], int) and is_port(args[0], path)):
            if threading.current_thread() is threading.main_thread():
                self.in_loop.append(name)
            else:
                self.in_threads.add(name)
        return call(*args, **options)


@everywhere
@pytest.mark.parametrize("baudrate", [9600, 250000])
async def test_no_call_that_may_block_is_made_in_the_loop(backend: str, baudrate: int, monkeypatch: Patch) -> None:
    """From the opening to the last close, whoever closes it."""
    with serial_line() as end, monkeypatch.context() as patch:
        trap = Trap(patch, end)
        async with awake(), opened(end.path, backend, baudrate=baudrate) as device:
            stream = device.open()
            end.send(b"x")
            await stream.receive()
            await stream.send(b"y")
            with pytest.raises(serial.SerialException, match=end.path):
                await stream.modem_lines()  # which a pty has not
            await stream.set_baudrate(19200)
            await stream.send_break(0)
            await stream.drain()
            await stream.reset_input_buffer()
            await stream.reset_output_buffer()
            await device.revoke("enough")
    assert trap.in_loop == []
    assert trap.in_threads >= {"open", "close", "flock", "tcsetattr", "tcdrain", "tcflush", "ioctl"}


@pytest.mark.parametrize("backend", KINDS)
def test_a_revocation_in_a_callback_does_not_close_it_in_the_loop(backend: str, monkeypatch: Patch) -> None:
    """As a signal handler's or another thread's comes, in a loop that AnyIO has not started."""

    async def main() -> None:
        device = await opened(end.path, backend)
        asyncio.get_running_loop().call_soon(device.revoke, "by a callback")
        while not device.node.released:
            await asyncio.sleep(0)

    with serial_line() as end:
        trap = Trap(monkeypatch, end)
        asyncio.run(main())
        monkeypatch.undo()
    assert trap.in_loop == []
    assert "close" in trap.in_threads


@everywhere
async def test_a_stalled_line_keeps_nobody_but_its_own_revocation(backend: str, stall: Stall) -> None:
    """The loop goes on, the release is named, and all completes when the kernel has closed it."""
    async with port(backend) as (device, end), anyio.create_task_group() as group:
        close = stall_close(stall, end.path)
        stream = device.open()
        call = start(group, stream.receive)
        await parked(stream.handle)
        act = device.revoke("enough")
        await until(close.begun.is_set)
        await call.done.wait()
        assert call.error.reason == "enough"
        await settle(50)
        assert not act.done()
        assert [straggler.kind for straggler in act.stragglers()] == ["release"]
        end.close()  # an unplug in between is no second revocation
        closers = [start(group, device.aclose) for _ in range(2)]
        await settle()
        assert not any(closer.done.is_set() for closer in closers)
        close.go_on.set()
        report = await act
        assert (report.reason, report.errors) == ("enough", ())


@on_each
async def test_who_awaits_a_stalled_close_is_told_after_the_timeout(backend: str, stall: Stall) -> None:
    """The error names the port and says that the kernel goes on."""
    with serial_line() as end:
        close = stall_close(stall, end.path)
        device = await opened(end.path, backend, close_timeout=0.01)
        with pytest.raises(ExceptionGroup) as info:
            await device.aclose()
        assert info.group_contains(TimeoutError, match=f"{end.path}.*stalled")
        assert close.begun.is_set()
        close.go_on.set()
        threads_end()
        assert held(end.path) == 1


@pytest.mark.parametrize("backend", KINDS)
@pytest.mark.parametrize("when", ["last", "after"])
def test_a_loop_that_ends_does_not_wait_for_a_stalled_close(
    backend: str, when: str, stall: Stall, caplog: pytest.LogCaptureFixture
) -> None:
    """It ends, and the port is closed when the kernel has done so; also if the revocation comes after its end.

    One line tells of it, without a traceback.
    """

    async def main() -> SerialDevice:
        device = await opened(end.path, backend)
        if when == "last":
            device.revoke("the end")
        return device

    with serial_line() as end:
        close = stall_close(stall, end.path)
        device = asyncio.run(main())
        if when == "after":
            report = device.revoke("after the end").report
            assert (report.remaining, report.errors) == (0, ())
        else:
            assert held(end.path) == 2
            (record,) = caplog.records
            assert "stalled" in record.message
            assert not record.exc_info
        close.go_on.set()
        threads_end()
        assert held(end.path) == 1


@on_transports
async def test_a_transport_that_is_lost_by_itself_is_not_aborted_again(backend: str) -> None:
    """Twice, pyserial-asyncio's fails in the loop, which nobody could handle."""
    failures: list[dict[str, Any]] = []
    asyncio.get_running_loop().set_exception_handler(lambda _, context: failures.append(context))
    async with port(backend) as (device, _):
        device.line._transport.abort()  # type: ignore[attr-defined]
        await device.revoke("in the same step")
        await settle()
    assert failures == []


# -- opening and closing --


@on_each
@pytest.mark.parametrize("how", ["cancelled", "revoked"])
async def test_what_is_opened_too_late_is_closed(backend: str, how: str, stall: Stall) -> None:
    """Nobody waits for a stalled open who was cancelled, or whose owner was revoked meanwhile."""
    with serial_line() as end:
        opening = stall(os, "open", lambda path, *_: path == end.path)
        owner = Revokable("owner")
        async with awake(), anyio.create_task_group() as group:
            device = opened(end.path, backend, owner=owner)
            call = start(group, device._open)
            await until(opening.begun.is_set)
            act = None
            if how == "cancelled":
                call.scope.cancel()
            else:
                act = owner.revoke("enough")
            if backend == "serialx":  # it waits for its thread
                opening.go_on.set()
            await call.done.wait()
            opening.go_on.set()
            if act:
                assert isinstance(call.error, SerialRevokedError)
                await act
            await until(opening.ended.is_set)
            await until(lambda: held(end.path) == 1)


@on_each
async def test_a_cancelled_open_leaves_the_port_free(
    backend: str, stall: Stall, monkeypatch: pytest.MonkeyPatch
) -> None:
    """When the cancellation is over, nobody has it open: the next one can open it at once."""
    if backend == "serialx":
        pytest.skip("serialx closes what it has opened too late by itself")
    monkeypatch.setattr("asyncrevoke.adapters.serial.port.PATIENCE", 3600)
    with serial_line() as end:
        opening = stall(os, "open", lambda path, *_: path == end.path)
        async with awake(), anyio.create_task_group() as group:
            call = start(group, opened(end.path, backend)._open)
            await until(opening.begun.is_set)
            call.scope.cancel()
            await settle()
            opening.go_on.set()
            await call.done.wait()
            assert opening.ended.is_set()
            assert held(end.path) == 1


@on_each
async def test_it_is_opened_once_and_used_then(backend: str) -> None:
    """What comes too early, or a second time, is told what to do."""
    with serial_line() as end:
        device = opened(end.path, backend)
        for early in (device.open, device.fileno, device.revoke, lambda: device.serial):
            with pytest.raises(RuntimeError, match="is not open: use `async with`"):
                early()
        assert "not open" in repr(device)
        outcomes: list[Call] = []
        async with awake(), anyio.create_task_group() as group:
            outcomes += [start(group, device._open), start(group, device._open)]
        second, first = sorted((call.outcome for call in outcomes), key=lambda outcome: outcome is device)
        assert first is device
        assert isinstance(second, RuntimeError)
        assert "opened already" in str(second)
        async with device as same:  # what was awaited may be entered
            assert same is device
        assert device.node.closed
        assert held(end.path) == 1


@on_each
@pytest.mark.parametrize("native", [False, True])
async def test_it_is_not_closed_while_a_request_is_inside_the_driver(
    backend: str, native: bool, anyio_backend_name: str, stall: Stall
) -> None:
    """Not even if the task that made it was cancelled, in whichever way: its number might be another file's."""
    if native and anyio_backend_name == "trio":
        pytest.skip("trio has one kind of cancellation")
    driver = stall(fcntl, "ioctl", lambda _, request, *__: request == termios.TIOCMGET)
    async with port(backend) as (device, end), anyio.create_task_group() as group:
        stream = device.open()
        if native:
            task = asyncio.ensure_future(stream.modem_lines())
            await until(driver.begun.is_set)
            task.cancel()
            await settle()
            task.cancel()
        else:
            call = start(group, stream.modem_lines)
            await until(driver.begun.is_set)
            call.scope.cancel()
        await settle()
        acts = [device.revoke("enough"), device.node.close()]
        await settle()
        assert not any(act.done() for act in acts)
        assert is_port(driver.calls[0][0], end.path)
        driver.go_on.set()
        for act in acts:
            await act
        if native:
            with pytest.raises(asyncio.CancelledError):
                await task


@on_asyncio
async def test_it_can_be_opened_again_at_once(backend: str) -> None:
    """Two hundred times: the lock and the descriptor of the last one are gone when its revocation is complete."""
    with serial_line() as end, anyio.fail_after(60):
        name = Name("ttyUSB0")
        for number in range(200):
            device = await opened(end.path, backend, owner=name)
            stream = device.open()
            async with anyio.create_task_group() as group:
                call = start(group, stream.receive)
                await settle(number % 5)
                await device.revoke(str(number))
            assert call.error.reason == str(number)
            assert held(end.path) == 1


@on_each
async def test_an_error_tells_the_generation_of_the_device(backend: str) -> None:
    """Which is that of the name it was opened on."""
    name = Name("ttyUSB0")
    with serial_line() as end:
        for number in 1, 2:
            device = await opened(end.path, backend, owner=name)
            stream = device.open()
            await name.hangup("replug")
            with pytest.raises(SerialRevokedError) as info:
                await stream.receive()
            assert info.value.generation == number


@on_each
async def test_a_stream_goes_with_its_token_and_the_device_stays(backend: str) -> None:
    """Whichever of the parents is revoked first takes it."""
    token = Revokable("token")
    async with port(backend) as (device, _), anyio.create_task_group() as group:
        guest, host = device.open("guest", also=[token]), device.open("host")
        call = start(group, guest.receive)
        await parked(guest.handle)
        await token.revoke("expired")
        await call.done.wait()
        assert call.error.reason == "expired"
        await host.send(b"x")


@on_each
async def test_it_answers_as_a_terminal_does_if_it_is_asked_to(backend: str) -> None:
    """The end of data on reads, and EIO on all else."""
    async with port(backend, answers=answers.TTY) as (device, _), anyio.create_task_group() as group:
        stream = device.open()
        call = start(group, stream.receive)
        await parked(stream.handle)
        await device.revoke("hung up")
        await call.done.wait()
        assert isinstance(call.outcome, anyio.EndOfStream)
        with pytest.raises(anyio.EndOfStream):
            await stream.receive()
        for operation in (stream.modem_lines, stream.drain, lambda: stream.send(b"x")):
            with pytest.raises(SerialRevokedError) as info:
                await operation()
            assert info.value.errno == errno.EIO


# -- the error --


@on_each
async def test_the_error_is_fresh_and_survives_a_pickle(backend: str) -> None:
    """Each operation has its own; what it tells is kept without the node."""
    async with port(backend) as (device, _):
        stream = device.open("alice")
        await device.revoke("enough")
        errors = []
        for operation in (stream.receive, stream.receive, stream.drain):
            with pytest.raises(SerialRevokedError) as info:
                await operation()
            errors.append(info.value)
    assert len(set(map(id, errors))) == 3
    copy = pickle.loads(pickle.dumps(errors[0]))
    assert type(copy) is SerialRevokedError
    assert (str(copy), copy.reason, copy.errno) == (str(errors[0]), "enough", errno.EIO)


WITHOUT = """
import asyncio, os, sys
sys.modules["serial"] = None
from asyncrevoke import RevokedError, open_serial
master, slave = os.openpty()
async def main():
    try:
        await open_serial(os.ttyname(slave))
    except ImportError as exc:
        print(exc)
    async with open_serial(os.ttyname(slave), backend="serialx") as device:
        stream = device.open()
        await stream.send(b"x")
        await device.revoke("enough")
        try:
            await stream.receive()
        except RevokedError as exc:
            print(type(exc).__name__, exc.reason)
asyncio.run(main())
"""


def test_serialx_needs_no_pyserial() -> None:
    """And who needs it is told how to install it."""
    child = subprocess.run([sys.executable, "-c", WITHOUT], capture_output=True, text=True)
    assert child.stdout.splitlines() == [
        "serial is not installed: pip install 'asyncrevoke[serial]'",
        "SerialRevokedError enough",
    ], child.stderr


# -- what the machine has no more of --


def no_thread(_: object) -> None:
    raise RuntimeError("can't start new thread")


@on_each
async def test_where_no_thread_can_be_started_it_is_closed_all_the_same(backend: str, monkeypatch: Patch) -> None:
    """The loop's thread does it; requests are refused, each by the one error, which names the port."""
    async with port(backend) as (device, end):
        stream = device.open()
        with monkeypatch.context() as patch:
            patch.setattr(threading.Thread, "start", no_thread)
            for operation in stream.modem_lines, stream.drain, stream.reset_input_buffer:
                with pytest.raises(serial.SerialException, match=f"can't start new thread: '{end.path}'") as info:
                    await operation()
                assert info.value.errno == errno.ENOMEM
            assert not device.node.revoked
            act = device.revoke("enough")
            await act
        assert held(end.path) == 1


@on_each
async def test_where_no_thread_can_be_started_it_is_not_opened(backend: str, monkeypatch: Patch) -> None:
    """By the same error, and nothing is left on the owner."""
    owner = Revokable("owner")
    with serial_line() as end:
        with (
            monkeypatch.context() as patch,
            pytest.raises(serial.SerialException, match=f"can't start new thread: '{end.path}'") as info,
        ):
            patch.setattr(threading.Thread, "start", no_thread)
            await opened(end.path, backend, owner=owner)
        assert info.value.errno == errno.ENOMEM
        assert (held(end.path), owner.in_use) == (1, 0)
    await owner.close()


# -- other programs have it open, too --


@contextlib.contextmanager
def settings_of(end: FarEnd) -> Iterator[list[Any]]:
    """The settings of the port, to be changed as another program does it."""
    settings = termios.tcgetattr(master(end))
    yield settings
    termios.tcsetattr(master(end), termios.TCSANOW, settings)


@everywhere
@pytest.mark.parametrize("canonical", [False, True])
async def test_reading_nothing_is_no_unplug(backend: str, canonical: bool) -> None:
    """Another program sets VMIN to 0, as pyserial's default does, or an end of data is typed: only a hang-up ends the port."""
    async with port(backend) as (device, end), anyio.create_task_group() as group:
        stream = device.open("reader")
        with settings_of(end) as settings:
            settings[3] |= termios.ICANON if canonical else 0
            settings[6][termios.VMIN] = 0
        for data in b"one\n", b"two\n":
            receiving = start(group, stream.receive)
            await parked(stream.handle)
            if canonical:
                end.send(b"\4")
                await settle()
            end.send(data)
            await receiving.done.wait()
            assert receiving.outcome == data
        receiving = start(group, stream.receive)
        await parked(stream.handle)
        end.close()
        await receiving.done.wait()
        assert receiving.error.reason.startswith("unplugged")


@everywhere
async def test_another_program_cannot_make_it_block_the_loop(backend: str) -> None:
    """Whoever shares the open file, as a child that got it as stdin, may clear O_NONBLOCK: it is set again."""
    async with port(backend) as (device, _), anyio.create_task_group() as group:
        stream = device.open()
        theirs = os.dup(device.fileno())
        os.set_blocking(theirs, True)
        receiving = start(group, stream.receive)
        await parked(stream.handle)
        os.set_blocking(theirs, True)
        sending = start(group, stream.send, bytes(1 << 20))
        await parked(stream.handle, 2)
        assert not os.get_blocking(theirs)
        os.close(theirs)
        await device.revoke("enough")
        await receiving.done.wait()
        await sending.done.wait()
        assert receiving.error.reason == sending.error.reason == "enough"


@as_root
@on_each
@pytest.mark.parametrize("exclusive", [False, True])
async def test_whoever_is_not_privileged_is_kept_out_where_that_was_asked_for(backend: str, exclusive: bool) -> None:
    """As long as it is open, and no longer, though others keep it open."""
    tool = "import os, sys; os.setuid(65534); os.close(os.open(sys.argv[1], os.O_RDWR | os.O_NOCTTY))"

    def kept_out(path: str) -> bool:
        pathlib.Path(path).chmod(0o666)
        child = subprocess.run([sys.executable, "-c", tool, path], capture_output=True, text=True)
        assert not child.stderr or "Device or resource busy" in child.stderr
        return child.returncode != 0

    async with port(backend, exclusive=exclusive) as (device, end):
        assert kept_out(end.path) == exclusive
        await device.revoke("enough")
        assert not kept_out(end.path)


@on_each
async def test_settings_that_another_program_makes_stay_until_the_rate_is_set(backend: str) -> None:
    """Nobody tells of them. `set_baudrate` puts back all that the port was opened with."""
    async with port(backend, baudrate=19200) as (device, end):
        stream = device.open()
        ours = termios.tcgetattr(device.fileno())
        with settings_of(end) as settings:
            settings[3] |= termios.ICANON | termios.ECHO
            settings[2] |= termios.CSTOPB
            settings[4:6] = [termios.B300] * 2
            settings[6][termios.VMIN] = 9
        with settings_of(end) as theirs:
            assert theirs != ours
        await stream.send(b"x")
        assert termios.tcgetattr(device.fileno()) == theirs
        await stream.set_baudrate(19200)
        assert termios.tcgetattr(device.fileno()) == ours


# -- what the loop reads --


@asyncio_only
async def test_what_was_read_for_a_stream_that_left_just_then_is_the_next_ones() -> None:
    """Where no stream gets a copy, who reads gets what comes."""
    with serial_line() as end:
        async with open_serial(end.path) as device:
            first, second = device.open("first"), device.open("second")
            task = asyncio.create_task(first.receive())
            await parked(first.handle)
            end.send(b"first")
            while not task.done():
                task.cancel()
                await asyncio.sleep(0)
            await first.aclose()
            end.send(b"second")
            with anyio.fail_after(10):
                got = b""
                while len(got) < 11:
                    got += await second.receive()
            assert got == b"firstsecond"


@pytest.mark.parametrize("fan_out", [False, True])
async def test_what_came_with_a_record_is_thrown_away_too(fan_out: bool) -> None:
    """`reset_input_buffer` means all that has come and this stream has not received."""
    with serial_line() as end, anyio.fail_after(10):
        async with open_serial(end.path, fan_out=fan_out) as device:
            stream = device.open("a")
            end.send(b"line\nstale\n")
            assert await stream.receive_line() == b"line\n"
            await stream.reset_input_buffer()
            end.send(b"fresh\n")
            assert await stream.receive_line() == b"fresh\n"


@asyncio_only
async def test_a_prompt_reader_beside_a_greedy_one_keeps_up() -> None:
    """However much comes at once: before more is read, each who waits has had a turn for what there is."""
    total = 2_000_000
    with socket.create_server(("127.0.0.1", 0)) as server:
        url = f"socket://127.0.0.1:{server.getsockname()[1]}"
        async with open_serial(url, fan_out=True) as device:
            far, _ = server.accept()
            greedy, prompt = device.open("greedy"), device.open("prompt")
            sending = threading.Thread(target=far.sendall, args=[bytes(total)])
            sending.start()

            async def read(stream: SerialStream, turns: int) -> None:
                left = total
                while left:
                    left -= len(await stream.receive())
                    for _ in range(turns):
                        await anyio.lowlevel.checkpoint()

            with anyio.fail_after(20):
                async with anyio.create_task_group() as tasks:
                    tasks.start_soon(read, greedy, 0)
                    tasks.start_soon(read, prompt, 1)
            sending.join()
            far.close()
