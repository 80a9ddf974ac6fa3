"""Devices that come and go: the kernel's own events, and ptys that play a serial device under ever other nodes."""

import collections
import contextlib
import errno
import fcntl
import functools
import logging
import os
import pathlib
import random
import select
import socket
import subprocess
import sys
import termios
import threading
from collections.abc import AsyncIterator, Callable, Iterator
from typing import Any

import anyio
import anyio.lowlevel
import pytest

from asyncrevoke import Registry, Revocation, Revokable, RevokedError
from asyncrevoke.adapters.hotplug import (
    DeviceEvent,
    SerialDevices,
    parsed,
    replugged,
    serial_device,
    uevents,
    watch_devices,
)
from asyncrevoke.adapters.serial import SerialDevice, open_serial
from asyncrevoke.testing import Subject, check_revokable
from calls import awake, parked
from conftest import settle
from operations import Log, stubborn
from ports import FarEnd, Plug, serial_line

pytestmark = pytest.mark.anyio

ADD = DeviceEvent("add", "/devices/x/tty/ttyX0", {"SUBSYSTEM": "tty"})
OVERFLOW = OSError(errno.ENOBUFS, "No buffer space available")


@pytest.fixture(autouse=True)
def _threads_end() -> Iterator[None]:
    """What was revoked while it was opened goes on in a thread, for a moment."""
    before = set(threading.enumerate())
    yield
    while new := [each for each in threading.enumerate() if each not in before and not each.name.startswith("Trio")]:
        new[0].join()


class Source:
    """Events as a test tells them."""

    def __init__(self) -> None:
        self._near, self._far = socket.socketpair()
        self._near.setblocking(False)
        self._events: collections.deque[DeviceEvent | OSError] = collections.deque()
        self.closes = 0

    def fileno(self) -> int:
        return self._near.fileno()

    def close(self) -> None:
        self.closes += 1
        self._near.close()
        self._far.close()

    def read(self) -> DeviceEvent | None:
        try:
            self._near.recv(1)
        except BlockingIOError:
            return None
        event = self._events.popleft()
        if isinstance(event, OSError):
            raise event
        return event

    def tell(self, *events: DeviceEvent | OSError) -> None:
        self._events += events
        self._far.send(bytes(len(events)))


@pytest.fixture
def source(monkeypatch: pytest.MonkeyPatch) -> Iterator[Source]:
    """What everybody who wants events is given."""
    source = Source()
    monkeypatch.setattr(uevents, "source_of", lambda _: source)
    yield source
    source.close()


@pytest.fixture
def plug(tmp_path: pathlib.Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Plug]:
    monkeypatch.setattr(replugged, "BY_ID", tmp_path)
    monkeypatch.setattr(replugged, "TTYS", tmp_path / "none")
    with contextlib.closing(Plug(tmp_path / "usb-meter")) as plug:
        yield plug


#: Between two looks, so that only an event can explain one. Where one comes, `anyio.sleep` is patched: it is debounced.
HOUR: dict[str, Any] = {"debounce": 3600, "max_delay": 3600}


def number(end: FarEnd) -> int:
    return pathlib.Path(end.path).stat().st_rdev


def removed(rdev: int, subsystem: str = "tty") -> DeviceEvent:
    numbers = {"MAJOR": str(os.major(rdev)), "MINOR": str(os.minor(rdev))}
    return DeviceEvent("remove", "/devices/x", {"SUBSYSTEM": subsystem, "DEVNAME": "ttyX0", **numbers})


# -- the kernel's events --


class Tty:
    """A terminal whose uevent file we may write to."""

    def __init__(self, name: str) -> None:
        self.path = f"/dev/{name}"
        self._uevent = pathlib.Path(f"/sys/class/tty/{name}/uevent")

    @property
    def number(self) -> int:
        return pathlib.Path(self.path).stat().st_rdev

    def happen(self, action: str) -> None:
        self._uevent.write_text(action)


@pytest.fixture(scope="module")
def tty() -> Tty:
    """A virtual console that nobody uses, else the first serial port. Without an event of it the test is skipped."""
    for name in "tty63", "ttyS0":
        tty = Tty(name)
        with contextlib.suppress(OSError), contextlib.closing(uevents._Netlink()) as source:
            os.close(os.open(tty.path, os.O_RDWR | os.O_NOCTTY | os.O_NONBLOCK))
            tty.happen("change")
            if select.select([source], [], [], 2)[0]:
                return tty
    pytest.skip("no terminal here may be opened, and have the kernel send events: that needs root, and a writable /sys")


async def of(tty: Tty, events: uevents.DeviceEvents) -> DeviceEvent:
    """The next event of that terminal."""
    with anyio.fail_after(20):
        while (event := await anext(events)).node != tty.path:
            pass
    return event


async def test_the_kernel_tells_of_devices(tty: Tty) -> None:
    """Events come as the kernel makes them, with the node, the number and what else was said."""
    async with watch_devices(source="kernel") as events:
        tty.happen("remove")
        tty.happen("add fe4d7c9d-b8c6-4a70-9ef1-3d8a58d18eed KEY=val")
        first, second = await of(tty, events), await of(tty, events)
    assert (first.action, second.action) == ("remove", "add")
    assert (first.subsystem, first.number) == ("tty", tty.number)
    assert second.properties["SYNTH_ARG_KEY"] == "val"


async def test_pyudev_tells_of_them_where_it_is_installed(tty: Tty, monkeypatch: pytest.MonkeyPatch) -> None:
    """Its monitor says the same, here of the kernel's events, as udevd may not run."""
    pyudev = pytest.importorskip("pyudev")
    from_netlink = pyudev.Monitor.from_netlink
    monkeypatch.setattr(pyudev.Monitor, "from_netlink", lambda context: from_netlink(context, "kernel"))
    async with watch_devices(source="udev") as events:
        tty.happen("change")
        event = await of(tty, events)
    assert (event.action, event.number) == ("change", tty.number)
    assert event.path == f"/{event.properties['DEVPATH'].lstrip('/')}"


def test_what_other_processes_send_is_no_event(tty: Tty) -> None:
    """Anybody may send to a socket: only the kernel is believed."""
    with (
        contextlib.closing(uevents._Netlink()) as source,
        socket.socket(socket.AF_NETLINK, socket.SOCK_RAW, 15) as liar,
    ):
        liar.sendto(b"add@/a/lie\0SUBSYSTEM=tty\0", source._socket.getsockname())
        tty.happen("change")
        told: list[DeviceEvent] = []
        while not told or told[-1].node != tty.path:
            assert select.select([source], [], [], 20)[0]
            event = source.read()
            told += [event] if event else []
    assert "/a/lie" not in [event.path for event in told]


async def test_an_overflow_is_an_event_itself(tty: Tty) -> None:
    """When the kernel has thrown events away, "lost" says so."""
    async with watch_devices(source="kernel") as events:
        with socket.socket(fileno=os.dup(events._source.fileno())) as same:
            same.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 1)
            for _ in range(100):
                tty.happen("change")
        with anyio.fail_after(20):
            while (await anext(events)).action != "lost":
                pass


@pytest.mark.parametrize(
    ("message", "event"),
    [
        (b"add@/devices/x\0A=1=2\0B=\0C\0", DeviceEvent("add", "/devices/x", {"A": "1=2", "B": ""})),
        (b"add@/devices/x\0A=\xff", DeviceEvent("add", "/devices/x", {"A": "\N{REPLACEMENT CHARACTER}"})),
        *(
            (garbage, None)
            for garbage in (b"", b"\0", b"@", b"add@", b"@/x", b"add", b"\0add@/x", b"libudev\0\xfe\xed")
        ),
    ],
)
def test_garbage_is_no_event(message: bytes, event: DeviceEvent | None) -> None:
    """A message without an action and a path is none; one that was cut off has what was left."""
    assert parsed(message) == event


async def test_watching_devices_keeps_the_contract(monkeypatch: pytest.MonkeyPatch) -> None:
    """Revoked, closed, cancelled or taken along by its owner, it answers as every resource does."""

    @contextlib.asynccontextmanager
    async def maker() -> AsyncIterator[Subject]:
        source = Source()
        monkeypatch.setattr(uevents, "source_of", lambda _: source)
        owner = Revokable("owner")
        events = watch_devices(owner=owner)
        yield Subject(
            events.node,
            events.__anext__,
            feed=lambda: source.tell(ADD),
            close=events.aclose,
            gone=lambda: source.closes,
            owner=owner,
        )
        source.close()

    await check_revokable(maker)


@pytest.mark.parametrize("turns", range(5))
async def test_a_cancelled_wait_loses_no_event(source: Source, turns: int) -> None:
    """Each event is got once and in order, whether the cancellation came before it, after it or with it."""
    got: list[DeviceEvent] = []
    told = [ADD, removed(7)]
    async with watch_devices() as events:

        async def wait() -> None:
            got.append(await anext(events))

        async with anyio.create_task_group() as tasks:
            tasks.start_soon(wait)
            await settle()
            source.tell(*told)
            await settle(turns)
            tasks.cancel_scope.cancel()
        while len(got) < 2:
            await wait()
    assert got == told


@pytest.mark.parametrize("error", [OVERFLOW, OSError(errno.EIO, "broken")], ids=["overflow", "broken"])
async def test_what_a_source_raises(source: Source, error: OSError) -> None:
    """Of any source an overflow is the event "lost", and everything else is raised."""
    source.tell(error)
    async with watch_devices() as events:
        with pytest.raises(OSError, match="broken") if error is not OVERFLOW else contextlib.nullcontext():
            assert (await anext(events)).action == "lost"


async def test_udev_is_asked_only_where_it_is(monkeypatch: pytest.MonkeyPatch, tmp_path: pathlib.Path) -> None:
    """Without pyudev the kernel is asked, unless udev was demanded; and so where no udevd runs."""
    monkeypatch.setitem(sys.modules, "pyudev", None)
    with pytest.raises(ImportError, match=r"pip install 'asyncrevoke\[udev\]'"):
        watch_devices(source="udev")
    for control in tmp_path, tmp_path / "missing":
        monkeypatch.setattr(uevents, "UDEV_RUNS", control)
        async with watch_devices() as events:
            assert type(events._source) is uevents._Netlink
    with pytest.raises(ValueError, match="'kernel' or 'udev'"):
        watch_devices(source="devd")  # type: ignore[arg-type]


# -- one device, many generations --


async def unplugged(device: SerialDevice) -> int | None:
    """Read until it is taken away: the generation that the error tells."""
    with pytest.raises(RevokedError) as caught:
        async with device.open("reader") as stream:
            await stream.receive()
    return caught.value.generation


@pytest.mark.parametrize("events", [True, False])
async def test_it_is_the_next_generation_when_it_is_back(
    plug: Plug, monkeypatch: pytest.MonkeyPatch, events: bool
) -> None:
    """Under whatever node; and where the kernel gives no events, too."""
    if not events:
        monkeypatch.setattr(uevents, "source_of", lambda _: os.close(-1))
    generations, paths = [], []
    with anyio.fail_after(20):
        async with plug.device() as devices, anyio.create_task_group() as tasks:
            await settle()  # it is missing at first
            plug.plug_in()
            async for device in devices:
                paths.append(device.url)
                tasks.start_soon(settle_and, plug.unplug)
                generations.append(await unplugged(device))
                if len(paths) == 3:
                    break
                plug.plug_in()
    assert generations == [1, 2, 3]
    assert len(paths) == 3


async def settle_and(call: Callable[[], object]) -> None:
    await settle()
    call()


def test_it_is_found_by_its_serial_number(tmp_path: pathlib.Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """That of the USB device, of its first port, if only one has it; others may have none, or one that is no text."""
    monkeypatch.setattr(replugged, "BY_ID", tmp_path)
    monkeypatch.setattr(replugged, "TTYS", tmp_path / "tty")
    for name, usb, port in ("ttyUSB0", "1-2", 1), ("ttyUSB1", "1-2", 0), ("ttyUSB2", "1-1", 0), ("ttyUSB3", "1-3", 0):
        place = tmp_path / "devices" / usb / f"{usb}:1.{port}" / name
        place.mkdir(parents=True)
        (tmp_path / "tty" / name).mkdir(parents=True)
        (tmp_path / "tty" / name / "device").symlink_to(place)
    (tmp_path / "tty" / "console").mkdir()
    (tmp_path / "tty" / "serial").write_text("A10")  # above what is no device
    (tmp_path / "devices/1-2/serial").write_text("A10K\n")
    (tmp_path / "devices/1-1/serial").write_bytes(b"\xff\xfe\n")
    assert replugged._find("A10K") == "/dev/ttyUSB1"
    with pytest.raises(OSError, match=r"no serial device has this name or serial number.*: 'A10'"):
        replugged._find("A10")
    (tmp_path / "devices/1-1/serial").write_text("A10K\n")  # as makers give one number to all that they make
    with pytest.raises(OSError, match=r"such as /dev/ttyUSB1 and /dev/ttyUSB2: give the path.*'A10K'") as caught:
        replugged._find("A10K")
    assert caught.value.errno == errno.ENOTUNIQ
    (tmp_path / "A10K").symlink_to("/dev/null")
    assert replugged._find("A10K") == "/dev/null"


@pytest.mark.parametrize("runs", [True, False])
def test_a_name_that_is_not_found_is_told_as_it_was_given(
    runs: bool, tmp_path: pathlib.Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """No path that nobody gave; and where udev does not run, that this is why there are no names."""
    monkeypatch.setattr(replugged, "BY_ID", tmp_path / "by-id")
    monkeypatch.setattr(replugged, "TTYS", tmp_path / "none")
    monkeypatch.setattr(uevents, "UDEV_RUNS", tmp_path / ("" if runs else "none"))
    with pytest.raises(OSError, match="has this name or serial number") as caught:
        replugged._find("usb-meter")
    assert caught.value.filename == "usb-meter"
    assert ("by-id: udev is not running" in str(caught.value)) is not runs


async def test_what_is_changed_of_the_options_counts_from_the_next_turn_on(plug: Plug) -> None:
    """Whatever the device is then, it has them from the opening on."""
    rates = []
    with anyio.fail_after(20):
        async with plug.device(baudrate=19200) as devices:
            plug.plug_in()
            async for device in devices:
                rates.append(termios.tcgetattr(device.fileno())[5])
                if len(rates) == 2:
                    break
                devices.options["baudrate"] = 57600
                plug.unplug()
                plug.plug_in()
    assert rates == [termios.B19200, termios.B57600]


async def test_a_url_is_opened_again_as_a_device_is() -> None:
    """It is looked for at intervals, and is no path."""
    with socket.create_server(("127.0.0.1", 0)) as server, anyio.fail_after(20):
        place = "{}:{}".format(*server.getsockname())
        often: dict[str, Any] = {"debounce": 0.001, "max_delay": 0.01}
        async with awake(), serial_device(f"socket://{place}", registry=Registry(), **often) as devices:
            for generation in 1, 2:
                device = await anext(devices)
                server.accept()[0].close()
                assert await unplugged(device) == generation
            assert devices.node.name == place


async def test_the_kernels_events_end_and_begin_generations(tty: Tty, monkeypatch: pytest.MonkeyPatch) -> None:
    """`remove` takes it from its users though the descriptor is fine; `add` opens it again long before the next look."""
    monkeypatch.setattr(anyio, "sleep", lambda _: anyio.lowlevel.checkpoint())
    generations = []
    with anyio.fail_after(20):
        async with serial_device(tty.path, source="kernel", **HOUR) as devices, anyio.create_task_group() as tasks:
            async for device in devices:
                tasks.start_soon(settle_and, functools.partial(tty.happen, "remove"))
                generations.append(await unplugged(device))
                if len(generations) == 2:
                    break
                tasks.start_soon(settle_and, functools.partial(tty.happen, "add"))
    assert generations == [1, 2]
    assert device.node.reason == f"unplugged: the kernel has removed {tty.path}"


async def test_a_removal_that_was_told_before_it_was_open_is_not_its_own(
    plug: Plug, source: Source, monkeypatch: pytest.MonkeyPatch
) -> None:
    """That of its last generation, under the same number, may come late: only a later one takes it away. Block devices have
    numbers of their own.
    """
    end = plug.plug_in()

    def opening(*args: Any, **options: Any) -> Any:
        device = open_serial(*args, **options)

        async def opened() -> SerialDevice:
            await device
            source.tell(removed(number(end)))
            return device

        return opened() if options["owner"] else device

    monkeypatch.setattr(replugged, "open_serial", opening)
    async with plug.device() as devices:
        device = await anext(devices)
        await settle()
        assert not device.node.revoked
        source.tell(removed(number(end) + 1), removed(number(end), "block"))
        await settle()
        assert not device.node.revoked
        source.tell(removed(number(end)))
        await settle()
        assert device.node.revoked


@pytest.fixture
def looks(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """A line for each time that the device was looked for."""
    find, looks = replugged._find, []

    def look(by_id: str) -> str:
        looks.append("look")
        return find(by_id)

    monkeypatch.setattr(replugged, "_find", look)
    return looks


async def test_a_burst_of_events_is_looked_at_once(
    plug: Plug, source: Source, looks: list[str], monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """It is opened when no more have come for `debounce` seconds."""
    caplog.set_level(logging.INFO, "asyncrevoke")
    more: list[DeviceEvent | OSError] = [ADD, OVERFLOW, removed(7)]

    async def sleep(_: float) -> None:
        looks.append("debounce")
        if more:
            source.tell(more.pop())
        await settle()

    def plug_in() -> None:
        plug.plug_in()
        source.tell(ADD)

    monkeypatch.setattr(anyio, "sleep", sleep)
    with anyio.fail_after(20):
        async with plug.device(**HOUR) as devices, anyio.create_task_group() as tasks:
            tasks.start_soon(settle_until, lambda: caplog.records, plug_in)
            await anext(devices)
    assert looks == ["look", *["debounce"] * 4, "look"]


async def settle_until(ready: Callable[[], object], call: Callable[[], object]) -> None:
    while not ready():
        await anyio.lowlevel.checkpoint()
    await settle()
    call()


async def test_events_without_end_do_not_keep_it_from_being_opened(
    plug: Plug, source: Source, looks: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Another device may come and go all the time: `max_delay` bounds the debounce, too."""

    async def sleep(_: float) -> None:
        source.tell(ADD)
        await settle()

    monkeypatch.setattr(anyio, "sleep", sleep)
    source.tell(ADD)
    with anyio.fail_after(20):
        async with plug.device() as devices, anyio.create_task_group() as tasks:
            tasks.start_soon(settle_until, lambda: len(looks) > 1, plug.plug_in)
            await anext(devices)


class Delays:
    """What is waited for between two looks, while no time passes."""

    def __init__(self) -> None:
        self.asked: list[float] = []
        self.at: dict[int, Callable[[], object]] = {}  # what happens during which wait
        self.now = 0.0
        self.chance = 1.0

    def move_on_after(self, delay: float, *, real: Callable[[float], anyio.CancelScope] = anyio.move_on_after) -> Any:
        self.asked.append(delay)
        happens = self.at.get((len(self.asked) + 1) // 2)  # every other one bounds the debounce
        if len(self.asked) % 2 and happens:
            return happens() or real(3600)
        return real(0)


@pytest.fixture
def delays(monkeypatch: pytest.MonkeyPatch) -> Delays:
    delays = Delays()
    monkeypatch.setattr(anyio, "move_on_after", delays.move_on_after)
    monkeypatch.setattr(anyio, "current_time", lambda: delays.now)
    monkeypatch.setattr(random, "uniform", lambda least, most: delays.chance * (most - least) + least)
    return delays


async def test_the_looks_become_rarer_up_to_a_bound(plug: Plug, source: Source, delays: Delays) -> None:
    """Each delay is twice the last, up to `max_delay`; and an event begins anew."""

    def back() -> None:
        plug.plug_in()
        source.tell(ADD)

    delays.at = {8: lambda: source.tell(ADD), 10: back}
    async with plug.device(debounce=1, max_delay=30) as devices:
        await anext(devices)
    assert delays.asked[::2] == [1, 2, 4, 8, 16, 30, 30, 30, 1, 2]


async def test_the_clients_of_a_server_do_not_all_come_at_once(plug: Plug, source: Source, delays: Delays) -> None:
    """Each delay is up to a quarter shorter, by chance."""
    delays.chance = 0.0

    def back() -> None:
        plug.plug_in()
        source.tell(ADD)

    delays.at = {6: back}
    async with plug.device(debounce=1, max_delay=8) as devices:
        await anext(devices)
    assert delays.asked[::2] == [0.75, 1.5, 3, 6, 6, 6]


@pytest.mark.usefixtures("source")
async def test_a_device_that_comes_and_goes_is_opened_ever_more_rarely(plug: Plug, delays: Delays) -> None:
    """Unless it has stayed for longer than `max_delay`: then it begins anew."""
    plug.plug_in()
    async with plug.device(debounce=1, max_delay=30) as devices:
        for stayed in 0, 30, 0, 31, 0:
            await anext(devices)
            delays.now += stayed
        await anext(devices)
    assert delays.asked[::2] == [1, 2, 4, 1, 2]


def vanished(plug: Plug) -> None:
    plug.link.symlink_to("/dev/pts/gone")


def busy(plug: Plug) -> None:
    fd = os.open(plug.plug_in().path, os.O_RDWR | os.O_NOCTTY)
    fcntl.flock(fd, fcntl.LOCK_EX)
    plug.lines.callback(os.close, fd)


def no_terminal(plug: Plug) -> None:
    plug.link.write_text("no terminal")


@pytest.mark.parametrize("obstacle", [vanished, busy, no_terminal])
async def test_what_cannot_be_opened_is_tried_again(
    plug: Plug, looks: list[str], caplog: pytest.LogCaptureFixture, obstacle: Any
) -> None:
    """It is told once why it is waited for, however often it is looked for. What is there, and not open, is a problem."""
    caplog.set_level(logging.INFO, "asyncrevoke")
    problems: set[str] = set()
    with anyio.fail_after(20):
        async with plug.device() as devices, anyio.create_task_group() as tasks:
            obstacle(plug)

            def looked() -> bool:
                problems.add(devices.problem)
                return len(looks) > 4

            tasks.start_soon(settle_until, looked, plug.plug_in)
            assert (await anext(devices)).node.generation == 1
            assert devices.problem == ""
    (told,) = problems - {""} or {""}
    assert told.startswith("[Errno") is (obstacle is not vanished)
    assert len([record for record in caplog.records if "is waited for" in record.message]) == 1


async def test_who_does_not_leave_is_the_problem(plug: Plug, monkeypatch: pytest.MonkeyPatch) -> None:
    """The next turn waits for the end of the last; operations that are not idle have the grace."""
    monkeypatch.setattr(replugged, "_PATIENCE", 0.0)  # who leaves at once is none
    plug.plug_in()
    leave = anyio.Event()
    log: Log = []
    with anyio.fail_after(20):
        async with plug.device() as devices, anyio.create_task_group() as tasks:
            device = await anext(devices)
            stream = device.open("stays")
            tasks.start_soon(stubborn, stream.handle, log, leave)
            await parked(stream.handle)
            act = devices.down("firmware", grace=3600)
            await settle()
            assert not stream.handle.kicked
            devices.node.hangup("now")
            assert devices.problem == ""
            devices.up()
            tasks.start_soon(anext, devices)
            while not devices.problem:
                await anyio.sleep(0.001)
            assert devices.problem.startswith("it is waited for: operation of ")
            leave.set()
            await act
            while devices.node.current.generation != 2:
                await anyio.sleep(0.001)
            assert devices.problem == ""
            tasks.cancel_scope.cancel()


async def test_without_reconnect_there_is_one_turn(plug: Plug) -> None:
    """And none if it is missing: the error is a port's, and names it."""
    serial = pytest.importorskip("serial")
    async with plug.device(reconnect=False) as devices:
        with pytest.raises(serial.SerialException, match="usb-meter") as caught:
            await anext(devices)
    assert caught.value.errno == errno.ENOENT
    plug.plug_in()
    async with plug.device(reconnect=False) as devices:
        assert [device.node.generation async for device in devices] == [1]
        assert devices.node.current.released


@pytest.mark.parametrize(
    ("error", "options"),
    [
        (ValueError, {"by_id": ""}),
        (ValueError, {"baudrate": 0}),
        (ValueError, {"debounce": 0}),
        (ValueError, {"debounce": float("nan")}),
        (ValueError, {"debounce": 6}),
        (ValueError, {"source": "devd"}),
        (ValueError, {"backend": "modem"}),
        (TypeError, {"bautrate": 9600}),
        (TypeError, {"owner": None}),
    ],
    ids=repr,
)
def test_bad_options_are_told_at_the_call(error: type[Exception], options: dict[str, Any]) -> None:
    """And nothing is named in the registry."""
    registry = Registry()
    with pytest.raises(error):
        serial_device(**{"by_id": "usb-x", "registry": registry, **options})
    assert registry.root.in_use == 0


# -- the ends of the loop --


@pytest.mark.parametrize("waits", [True, False])
def test_a_program_that_ends_in_the_loop_says_nothing(waits: bool, tmp_path: pathlib.Path) -> None:
    """A mere `async for`, in its turn or while it waits, that is dropped only when the event loop ends or is over."""
    program = """
import asyncio, sys
from asyncrevoke import serial_device
async def main():
    async for device in serial_device(sys.argv[1]):
        return device
async def given_up():
    waiting = asyncio.create_task(main())
    await asyncio.wait((waiting,), timeout=0.1)
    return waiting
kept = asyncio.run(given_up())
"""
    with serial_line() as end:
        path = str(tmp_path / "missing") if waits else end.path
        done = subprocess.run([sys.executable, "-c", program, path], capture_output=True, text=True, timeout=60)
    assert (done.returncode, done.stderr) == (0, "")


@pytest.mark.parametrize("bare", [True, False])
@pytest.mark.parametrize("leave", ["break", "raise", "cancel"])
async def test_whoever_leaves_the_loop_leaves_nothing_open(plug: Plug, source: Source, bare: bool, leave: str) -> None:
    """Also without `async with`: the port is closed, the name gone, and nobody follows events any more."""
    plug.plug_in()
    nodes = []

    async def loop(devices: SerialDevices, scope: anyio.CancelScope) -> None:
        async for device in devices:
            nodes.extend([device.node, devices.node])
            del device
            if leave == "break":
                break
            if leave == "raise":
                raise LookupError
            scope.cancel()
            await anyio.sleep_forever()

    with anyio.fail_after(20):
        with contextlib.suppress(LookupError), anyio.CancelScope() as scope:
            if bare:
                await loop(plug.device(), scope)
            else:
                async with plug.device() as devices:
                    await loop(devices, scope)
        while not all(node.released for node in nodes) or not source.closes:
            await anyio.lowlevel.checkpoint()
    assert len(nodes) == 2
    assert source.closes == 1


async def test_going_on_opens_it_anew(plug: Plug) -> None:
    """The turn before is over, and its port closed, before the same live device is the next generation."""
    plug.plug_in()
    turns: list[SerialDevice] = []
    with anyio.fail_after(20):
        async with plug.device() as devices:
            async for device in devices:
                assert all(before.node.released for before in turns)
                turns.append(device)
                if len(turns) == 3:
                    break
    assert [device.node.generation for device in turns] == [1, 2, 3]
    assert [device.node.closed for device in turns] == [False] * 3


ENDS: dict[str, tuple[Callable[[SerialDevices], object], type[Exception]]] = {
    "revoke": (lambda devices: devices.node.revoke("gone"), RevokedError),
    "registry": (lambda devices: devices.node.parent.revoke("gone"), RevokedError),  # type: ignore[union-attr]
    "close": (lambda devices: devices.node.close(), anyio.ClosedResourceError),
}


@pytest.mark.parametrize("end", ENDS)
@pytest.mark.parametrize("during", ["before", "wait", "look", "turn"])
async def test_taken_away_for_good_it_ends(
    plug: Plug, source: Source, monkeypatch: pytest.MonkeyPatch, end: str, during: str
) -> None:
    """Whatever the loop does just then, and nobody opens it again."""
    act, error = ENDS[end]
    devices = plug.device(registry=Registry(), **HOUR)
    token = anyio.lowlevel.current_token()

    def look(_: str) -> pathlib.Path:
        anyio.from_thread.run_sync(act, devices, token=token)
        return plug.link

    if during != "wait":
        plug.plug_in()
    if during == "look":
        monkeypatch.setattr(replugged, "_find", look)
    with anyio.fail_after(20):
        async with anyio.create_task_group() as tasks:
            if during == "turn":
                await anext(devices)
            if during in ("turn", "before"):
                act(devices)
            if during == "wait":
                tasks.start_soon(settle_and, lambda: act(devices))
            for _ in range(2):
                with pytest.raises(error):
                    await anext(devices)
        await devices.aclose()
        assert devices.node.released
        while source.closes != (during != "before"):
            await anyio.lowlevel.checkpoint()


async def test_a_hang_up_while_it_is_opened_is_no_end(plug: Plug, monkeypatch: pytest.MonkeyPatch) -> None:
    """As by `Registry.revoke`: the name stays, and the loop goes on to the next generation."""
    registry = Registry()
    plug.plug_in()
    hung_up: list[Revocation] = []

    def once(*args: Any, **options: Any) -> Any:
        device = open_serial(*args, **options)

        async def opened() -> SerialDevice:
            if not hung_up:
                async with registry.find("usb-meter").opening():
                    hung_up.append(registry.revoke("usb-meter", reason="again"))
            return await device

        return opened() if options["owner"] else device

    monkeypatch.setattr(replugged, "open_serial", once)
    with anyio.fail_after(20):
        async with plug.device(registry=registry) as devices:
            device = await anext(devices)
            assert device.node.generation == 2


@pytest.mark.parametrize("during", ["before", "wait", "look", "turn"])
async def test_a_device_that_is_down_is_not_opened_until_it_is_up(
    plug: Plug, looks: list[str], monkeypatch: pytest.MonkeyPatch, during: str
) -> None:
    """Whatever the loop does just then, and although the device is plugged in meanwhile. It is closed when that was awaited."""
    find, token = replugged._find, anyio.lowlevel.current_token()

    def look(by_id: str) -> str:
        path = find(by_id)
        if len(looks) == 1:
            anyio.from_thread.run_sync(devices.down, "firmware", token=token)
        return path

    monkeypatch.setattr(random, "uniform", lambda *_: 0.0)  # it is looked for without a pause
    devices, opened = plug.device(), list[SerialDevice]()

    async def follow() -> None:
        async for device in devices:
            opened.append(device)
            assert await unplugged(device) is not None

    ready: dict[str, Callable[[], object]] = {
        "before": lambda: True,
        "wait": lambda: looks,
        "look": lambda: devices.is_down,
        "turn": lambda: opened and opened[0].node.in_use,
    }
    if during in ("look", "turn"):
        plug.plug_in()
    if during == "look":
        monkeypatch.setattr(replugged, "_find", look)
    with anyio.fail_after(20):
        async with devices, anyio.create_task_group() as tasks:
            if during == "before":
                await devices.down("firmware")
            tasks.start_soon(follow)
            await until(ready[during])
            await devices.down("firmware")
            assert [(device.node.released, device.node.reason) for device in opened] == [(True, "firmware")] * len(
                opened
            )
            if during in ("before", "wait"):
                plug.plug_in()
            seen, before = len(looks), len(opened)
            await several_looks()
            assert (devices.is_down, len(looks), len(opened)) == (True, seen, before)
            devices.up()
            assert not devices.is_down
            await until(lambda: len(opened) > before and opened[-1].node.in_use)
            devices.up()  # it is, already
            assert opened[-1].url == os.path.realpath(plug.link)
            tasks.cancel_scope.cancel()


async def test_what_comes_up_is_opened_at_once(plug: Plug, delays: Delays) -> None:
    """However often it has come and gone before."""
    plug.plug_in()
    async with plug.device(debounce=1, max_delay=30) as devices:
        for _ in range(5):
            await anext(devices)
        await devices.down()
        devices.up()
        await anext(devices)
    assert delays.asked[::2] == [1, 2, 4, 8, 1]


async def several_looks() -> None:
    """Wait as long as some of them take."""
    for _ in range(20):
        await anyio.to_thread.run_sync(lambda: None)


async def until(ready: Callable[[], object]) -> None:
    while not ready():
        await anyio.lowlevel.checkpoint()


async def test_where_events_cannot_be_watched_it_is_looked_for_at_intervals(
    plug: Plug, source: Source, looks: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """No descriptor is left for it: the source is closed."""

    def no_watch(*_: object) -> None:
        raise OSError(errno.EMFILE, "Too many open files")

    monkeypatch.setattr(replugged, "Watch", no_watch)
    with anyio.fail_after(20):
        async with plug.device() as devices, anyio.create_task_group() as tasks:
            tasks.start_soon(settle_until, lambda: len(looks) > 2, plug.plug_in)
            await anext(devices)
    assert source.closes == 1


async def test_two_devices_are_followed_at_once(plug: Plug, tmp_path: pathlib.Path) -> None:
    """One that is unplugged takes nothing from the other."""
    with contextlib.closing(Plug(tmp_path / "usb-other")) as other_plug, anyio.fail_after(20):
        plug.plug_in()
        other_plug.plug_in()
        async with plug.device() as devices, other_plug.device() as others:
            device, other = await anext(devices), await anext(others)
            plug.unplug()
            assert await unplugged(device) == 1
            plug.plug_in()
            assert (await anext(devices)).node.generation == 2
            assert not other.node.revoked


async def test_one_task_at_a_time_waits_for_the_next(plug: Plug, looks: list[str]) -> None:
    """A second one is told so; and who was cancelled while he waited may go on, in the generation that it would be."""
    async with plug.device() as devices:
        async with anyio.create_task_group() as tasks:
            tasks.start_soon(devices.__anext__)
            while len(looks) < 2:
                await anyio.lowlevel.checkpoint()
            with pytest.raises(anyio.BusyResourceError):
                await anext(devices)
            tasks.cancel_scope.cancel()
        plug.plug_in()
        with anyio.fail_after(20):
            assert (await anext(devices)).node.generation == 1


async def test_a_port_that_does_not_close_well_does_not_end_it(plug: Plug, caplog: pytest.LogCaptureFixture) -> None:
    """It is logged, and the next generation begins."""
    plug.plug_in()
    with anyio.fail_after(20):
        async with plug.device() as devices:
            (await anext(devices)).node.open("broken", release=lambda: os.close(-1))
            assert (await anext(devices)).node.generation == 2
    assert ["closing " in record.message and " failed" in record.message for record in caplog.records] == [True]


async def test_a_source_that_breaks_does_not_end_it(
    plug: Plug, source: Source, looks: list[str], caplog: pytest.LogCaptureFixture
) -> None:
    """That is logged, and the device is looked for at intervals."""

    def plug_in() -> None:
        assert source.closes == 1
        plug.plug_in()

    source.tell(OSError(errno.EIO, "broken"))
    with anyio.fail_after(20):
        async with plug.device() as devices, anyio.create_task_group() as tasks:
            tasks.start_soon(settle_until, lambda: source.closes and len(looks) > 2, plug_in)
            assert (await anext(devices)).node.generation == 1
    assert ["broken" in record.message for record in caplog.records] == [True]
