"""Devices that are no terminals. A pty plays a driver of bytes; a pair of sockets that keep their messages apart plays hidraw
and evdev; a network tap of the kernel's is a real device of messages. Real hidraw, evdev and usbtmc: tests/vm.
"""

import contextlib
import errno
import fcntl
import os
import pathlib
import socket
import struct
from collections.abc import AsyncIterator, Callable, Iterator
from typing import Any

import anyio
import anyio.lowlevel
import pytest

from asyncrevoke import RevokedError, answers, follow_device, open_device
from asyncrevoke.adapters.device import (
    CharacterDevice,
    DeviceStream,
    EventStream,
    InputEvent,
    InstrumentStream,
    MessageStream,
    ReportStream,
    identity,
)
from asyncrevoke.answers import Answers
from asyncrevoke.testing import Subject, check_revokable
from calls import awake, parked, start
from conftest import settle
from ports import FarEnd, Plug, may_hang_up, serial_line

pytestmark = pytest.mark.anyio

EVENT = InputEvent(1, 2, 1, 30, 1)


def raw(event: InputEvent) -> bytes:
    return struct.pack("@LLHHi", *event)


class Driver:
    """The other side of a device of messages, and the object that a library has opened on it.

    :ivar closes: how often that was closed
    """

    def __init__(self) -> None:
        self._near, self.far = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        self.far.setblocking(False)
        self.closes = 0

    def fileno(self) -> int:
        return self._near.fileno()

    def close(self) -> None:
        self.closes += 1
        self._near.close()


class PathLikeDriver(Driver):
    """As an `InputDevice` of python-evdev's is."""

    def __fspath__(self) -> str:
        return "/dev/input/event0"


@pytest.fixture
def driver() -> Iterator[Driver]:
    driver = Driver()
    with driver.far:
        yield driver


@contextlib.asynccontextmanager
async def opened(driver: Driver, kind: type[Any], **options: Any) -> AsyncIterator[CharacterDevice[Any]]:
    with anyio.fail_after(30):
        async with awake(), open_device(driver, kind, **options) as device:
            yield device


# -- the contract --


@pytest.mark.parametrize("fan_out", [False, True])
@pytest.mark.parametrize(("kind", "item"), [(ReportStream, b"report"), (EventStream, EVENT)], ids=["reports", "events"])
async def test_a_stream_of_messages_keeps_the_contract(kind: type[Any], item: Any, fan_out: bool) -> None:
    """It can be taken away as everything else can."""

    @contextlib.asynccontextmanager
    async def maker() -> AsyncIterator[Subject]:
        driver = Driver()
        with driver.far:
            async with open_device(driver, kind, fan_out=fan_out) as device:
                stream = device.open("s")
                yield Subject(
                    stream.handle,
                    stream.receive,
                    quick=lambda: stream.send(item),
                    feed=lambda: driver.far.send(raw(item) if kind is EventStream else item),
                    close=stream.aclose,
                    owner=device.node,
                )

    await check_revokable(maker)


@pytest.mark.parametrize("what", ["stream", "device"])
async def test_a_stream_of_bytes_keeps_the_contract(what: str) -> None:
    """And so does the device below it."""

    @contextlib.asynccontextmanager
    async def maker() -> AsyncIterator[Subject]:
        with serial_line() as end:
            async with open_device(end.path, DeviceStream) as device:
                stream = device.open("s")
                of_device = what == "device"

                async def wait() -> bytes:
                    await anyio.lowlevel.checkpoint()
                    with device.node.using(idle=True):
                        return await stream.receive()

                yield Subject(
                    device.node if of_device else stream.handle,
                    wait if of_device else stream.receive,
                    feed=lambda: end.send(b"hello"),
                    close=device.aclose if of_device else stream.aclose,
                    owner=None if of_device else device.node,
                )

    await check_revokable(maker)


# -- messages --


@pytest.mark.parametrize("fan_out", [False, True])
async def test_a_report_is_whole_whatever_its_length(driver: Driver, fan_out: bool) -> None:
    """The shortest and the kernel's longest, one at a time, each as it was."""
    reports = [b"\0", bytes(64), os.urandom(16384), b"\0\0\0\1", bytes(4096)]
    async with opened(driver, ReportStream, fan_out=fan_out) as device:
        stream = device.open()
        for report in reports:
            driver.far.send(report)
        assert [await stream.receive() for _ in reports] == reports


@pytest.mark.parametrize("fan_out", [False, True])
async def test_a_report_that_was_cut_is_an_error(driver: Driver, fan_out: bool) -> None:
    """A word is said, and the next report is whole."""
    async with opened(driver, ReportStream, fan_out=fan_out) as device:
        stream = device.open()
        driver.far.send(bytes(65537))
        driver.far.send(b"next")
        with pytest.raises(OSError, match=r"was cut.*fd \d+") as caught:
            await stream.receive()
        assert caught.value.errno == errno.EMSGSIZE
        assert not isinstance(caught.value, RevokedError)
        assert await stream.receive() == b"next"


@pytest.mark.parametrize(("kind", "item"), [(ReportStream, b"report"), (EventStream, EVENT)], ids=["reports", "events"])
async def test_each_stream_gets_each_message(driver: Driver, kind: type[Any], item: Any) -> None:
    """With `fan_out`; and by `async for`, too."""
    async with opened(driver, kind, fan_out=True) as device, anyio.create_task_group() as tasks:
        streams: list[MessageStream[Any]] = [device.open(), device.open()]

        async def read(stream: MessageStream[Any]) -> list[Any]:
            got = []
            async for each in stream:
                got.append(each)
                if len(got) == 3:
                    break
            return got

        calls = [start(tasks, read, stream) for stream in streams]
        for _ in range(3):
            driver.far.send(raw(item) if kind is EventStream else item)
        for call in calls:
            await call.done.wait()
            assert call.outcome == [item] * 3


@pytest.mark.parametrize(("kind", "item"), [(ReportStream, b"report"), (EventStream, EVENT)], ids=["reports", "events"])
async def test_who_leaves_takes_no_message_along(driver: Driver, kind: type[Any], item: Any) -> None:
    """Where one task receives at a time, what it has not received is the next stream's."""
    async with opened(driver, kind) as device:
        for _ in range(2):
            driver.far.send(raw(item) if kind is EventStream else item)
        for _ in range(2):
            async with device.open() as stream:
                assert await stream.receive() == item


@pytest.mark.parametrize("turns", range(6))
@pytest.mark.parametrize("fan_out", [False, True])
async def test_a_cancelled_receive_loses_no_message(driver: Driver, turns: int, fan_out: bool) -> None:
    """Whether the cancellation comes before it, after it or with it."""
    async with opened(driver, ReportStream, fan_out=fan_out) as device, anyio.create_task_group() as tasks:
        stream = device.open()
        call = start(tasks, stream.receive)
        await parked(stream.handle)
        driver.far.send(b"first")
        await settle(turns)
        call.scope.cancel()
        await call.done.wait()
        driver.far.send(b"second")
        got = [call.outcome] if call.outcome else []
        while len(got) < 2:
            got.append(await stream.receive())
        assert got == [b"first", b"second"]


async def test_what_is_sent_is_one_write(driver: Driver) -> None:
    """Of however many at a time, also when the driver has no room at first."""
    async with opened(driver, ReportStream) as device, anyio.create_task_group() as tasks:
        report = bytes(5000)
        calls = [start(tasks, device.open().send, report) for _ in range(200)]
        got = 0
        while got < len(calls):
            with contextlib.suppress(BlockingIOError):
                assert driver.far.recv(65536) == report
                got += 1
            await anyio.lowlevel.checkpoint()
        for call in calls:
            await call.done.wait()
            assert call.outcome is None


async def test_a_send_that_waits_for_room_is_taken_away(driver: Driver) -> None:
    """It ends when the device is revoked."""
    async with opened(driver, ReportStream) as device, anyio.create_task_group() as tasks:
        calls = [start(tasks, device.open().send, bytes(60000)) for _ in range(20)]
        while sum(call.done.is_set() for call in calls) < 2:
            await anyio.lowlevel.checkpoint()
        waiting = [call for call in calls if not call.done.is_set()]
        await device.revoke("needed elsewhere")
        for call in waiting:
            await call.done.wait()
        assert {call.error.reason for call in waiting} == {"needed elsewhere"}


async def test_a_message_that_the_driver_has_cut_is_an_error(driver: Driver, monkeypatch: pytest.MonkeyPatch) -> None:
    """It says how much was taken."""
    write = os.write
    async with opened(driver, ReportStream) as device:
        stream = device.open()
        monkeypatch.setattr(os, "write", lambda fd, data: write(fd, data[:2] if data == b"abc" else data))
        with pytest.raises(OSError, match="took 2 bytes of a message of 3") as caught:
            await stream.send(b"abc")
        assert caught.value.errno == errno.EMSGSIZE


async def test_an_event_is_sent_as_the_kernel_has_it(driver: Driver) -> None:
    """As `struct input_event`, which turns a light on."""
    async with opened(driver, EventStream) as device:
        await device.open().send(EVENT)
        assert driver.far.recv(100) == raw(EVENT)


async def test_messages_have_no_end(driver: Driver) -> None:
    """But `aclose`; and a profile's end of data is the end of `async for`."""
    async with opened(driver, ReportStream, answers=answers.TTY) as device, anyio.create_task_group() as tasks:
        stream = device.open()
        with pytest.raises(NotImplementedError, match="is a device"):
            await stream.send_eof()

        async def read() -> list[bytes]:
            return [report async for report in stream]

        call = start(tasks, read)
        await parked(stream.handle)
        await device.revoke()
        await call.done.wait()
        assert call.outcome == []


@pytest.mark.parametrize(
    ("kind", "profile", "item", "number"),
    [
        (EventStream, answers.EVDEV, EVENT, errno.ENODEV),
        (ReportStream, answers.HIDRAW, b"report", errno.EIO),
        (ReportStream, answers.HIDRAW_REVOKED, b"report", errno.ENODEV),
    ],
    ids=["evdev", "hidraw", "hidraw, revoked"],
)
async def test_a_dead_input_device_answers_as_the_kernels(
    driver: Driver, kind: type[Any], profile: Answers, item: Any, number: int
) -> None:
    """Where the profile is given: a read that waits and a later one, a write, and a request."""
    async with opened(driver, kind, answers=profile) as device, anyio.create_task_group() as tasks:
        stream = device.open()
        reading = start(tasks, stream.receive)
        await parked(stream.handle)
        await device.revoke()
        await reading.done.wait()
        met = [reading.error]
        for operation in stream.receive, lambda: stream.send(item), lambda: stream.request(lambda fd: fd):
            with pytest.raises(RevokedError) as later:
                await operation()
            met.append(later.value)
        assert [error.errno for error in met] == [number, number, errno.ENODEV, errno.ENODEV]


async def test_who_receives_nothing_for_too_long_is_revoked(driver: Driver) -> None:
    """By a limit of its own, or of the device's."""
    async with opened(driver, ReportStream) as device:
        stream = device.open()
        stream.limit_idle(0.001)
        with pytest.raises(RevokedError, match=r"nothing has come for 0\.001 s"):
            await stream.receive()
        assert not device.node.revoked


# -- unplugged --


@pytest.mark.parametrize("number", [errno.ENODEV, errno.EIO, errno.ENXIO, errno.ESHUTDOWN, 0])
@pytest.mark.parametrize("kind", [ReportStream, EventStream])
async def test_each_drivers_way_of_an_unplug_is_one_revocation_for_all(
    driver: Driver, kind: type[Any], number: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Whatever its read answers, or the end of data: all are told so, and nobody else need come upon it."""
    read = os.read

    def gone(fd: int, size: int) -> bytes:
        if fd == driver.fileno():
            if number:
                raise OSError(number, os.strerror(number))
            return b""
        return read(fd, size)

    async with opened(driver, kind, fan_out=True) as device, anyio.create_task_group() as tasks:
        streams = [device.open(), device.open(), device.open()]
        calls = [start(tasks, stream.receive) for stream in streams[:2]]
        await parked(streams[0].handle)
        await parked(streams[1].handle)
        monkeypatch.setattr(os, "read", gone)
        driver.far.send(b"x")  # wakes them
        for call in calls:
            await call.done.wait()
            assert call.error.in_flight
            assert call.error.reason == f"unplugged: {os.strerror(number) if number else 'end of data'}" or (
                number and f"unplugged: [Errno {number}]" in str(call.error)
            )
        with pytest.raises(RevokedError, match="unplugged"):
            await streams[2].receive()


async def until_revoked(device: CharacterDevice[Any]) -> None:
    while not device.node.revoked:
        await anyio.lowlevel.checkpoint()


async def test_a_hang_up_is_noticed_while_nobody_uses_it(driver: Driver) -> None:
    """By poll(2) alone."""
    async with opened(driver, ReportStream) as device:
        driver.far.close()
        await until_revoked(device)
        assert device.node.reason == "unplugged: the kernel has hung it up"


@pytest.mark.parametrize(
    "unplug",
    [pytest.param(FarEnd.hang_up, marks=pytest.mark.skipif(not may_hang_up(), reason="needs root")), FarEnd.close],
)
async def test_a_device_of_bytes_is_taken_from_all(unplug: Callable[[FarEnd], None]) -> None:
    """Who reads, and who asks its driver."""
    with serial_line() as end:
        async with awake(), open_device(end.path) as device, anyio.create_task_group() as tasks:
            stream = device.open()
            assert type(stream) is DeviceStream
            end.send(b"x")
            assert await stream.receive() == b"x"
            await stream.send(b"y")
            call = start(tasks, stream.receive)
            await parked(stream.handle)
            unplug(end)
            await call.done.wait()
            assert "unplugged: " in str(call.error)
            with pytest.raises(RevokedError):
                await stream.request(lambda _: None)


@pytest.mark.parametrize("number", [errno.EINVAL, errno.EPIPE, errno.EIO])
async def test_what_the_driver_refuses_is_no_unplug(driver: Driver, number: int) -> None:
    """The error of a request names the device, and the device stays."""

    def refuse(_: int) -> None:
        raise OSError(number, os.strerror(number))

    async with opened(driver, ReportStream, name="stick") as device:
        stream = device.open()
        with pytest.raises(OSError, match="stick") as caught:
            await stream.request(refuse)
        assert caught.value.errno == number
        assert await stream.request(os.fstat)
        assert not device.node.revoked


async def test_what_the_driver_refuses_of_bytes_is_no_unplug(monkeypatch: pytest.MonkeyPatch) -> None:
    """A write that it does not understand raises in the one who wrote it, and nobody loses the device."""
    with serial_line() as end:
        async with open_device(end.path) as device:
            write = os.write

            def refuse(fd: int, data: bytes) -> int:
                if fd == device.fileno():
                    raise OSError(errno.EINVAL, os.strerror(errno.EINVAL))
                return write(fd, data)

            monkeypatch.setattr(os, "write", refuse)
            with pytest.raises(OSError, match=end.path) as caught:
                await device.open().send(b"nonsense")
            assert (caught.value.errno, device.node.revoked) == (errno.EINVAL, False)


async def test_a_request_that_says_it_is_gone_takes_it_from_all(driver: Driver) -> None:
    """ENODEV of any request will do."""

    def gone(_: int) -> None:
        raise OSError(errno.ENODEV, os.strerror(errno.ENODEV))

    async with opened(driver, ReportStream) as device:
        with pytest.raises(RevokedError, match="unplugged: "):
            await device.open().request(gone)
        assert device.node.revoked


# -- opened --


@pytest.mark.parametrize(
    ("what", "number", "words"),
    [
        ("/dev/none", errno.ENOENT, "is it plugged in"),
        ("/dev/null", errno.EOPNOTSUPP, "nobody can wait for it"),
        ("{tmp}/file", errno.EINVAL, "not a character device"),
        ("{tmp}/fifo", errno.EINVAL, "not a character device"),
        ("{tmp}", errno.EISDIR, "Is a directory"),
        ("no-such-device", errno.ENOENT, "no device of hidraw, input, usbmisc, tty has this identity"),
    ],
)
async def test_what_is_no_device_is_one_clear_error(what: str, number: int, words: str, tmp_path: pathlib.Path) -> None:
    """It names what was asked for, and nothing is left open, though the error is kept."""
    (tmp_path / "file").touch()
    os.mkfifo(tmp_path / "fifo")
    what = what.format(tmp=tmp_path)
    with pytest.raises(OSError, match=words) as caught:
        await open_device(what)
    assert (caught.value.errno, caught.value.filename) == (number, what)


async def test_who_may_not_use_it_is_told_what_to_do(monkeypatch: pytest.MonkeyPatch) -> None:
    """By the group or a rule of udev's."""

    def forbidden(path: str, *_: Any) -> int:
        raise PermissionError(errno.EACCES, os.strerror(errno.EACCES), path)

    monkeypatch.setattr(os, "open", forbidden)
    with pytest.raises(PermissionError, match=r"join the group.*/dev/hidraw0"):
        await open_device("/dev/hidraw0")


async def test_an_instrument_answers_who_asks_it(driver: Driver) -> None:
    """The error says what to leave out."""
    with pytest.raises(OSError, match=r"do not give fan_out.*fd \d+"):
        await open_device(driver, InstrumentStream, fan_out=True)
    assert driver.closes == 1


async def test_only_evdev_can_be_grabbed() -> None:
    """The error says what to leave out."""
    with serial_line() as end, pytest.raises(OSError, match=f"do not give grab.*{end.path}"):
        await open_device(end.path, grab=True)


async def test_a_grab_ends_with_the_device_and_not_with_the_descriptor(
    driver: Driver, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Who was given the descriptor keeps nobody else out."""
    asked = []

    def ioctl(_: int, request: int, argument: int) -> int:
        asked.append((request, argument))
        return 0

    monkeypatch.setattr(fcntl, "ioctl", ioctl)
    async with opened(driver, EventStream, grab=True):
        assert asked == [(0x40044590, 1)]
    assert asked == [(0x40044590, 1), (0x40044590, 0)]


@pytest.mark.parametrize(
    ("device", "options"),
    [("", {}), ("x", {"mode": "a"}), ("x", {"fan_out": True, "backlog": 47}), ("x", {"idle_limit": 0})],
)
def test_options_that_make_no_sense_are_refused_at_once(device: str, options: Any) -> None:
    """A ValueError that says what was given."""
    with pytest.raises(ValueError, match=r"is '?\w*'?: give|device is empty"):
        open_device(device, **options)


@pytest.mark.parametrize("make", [Driver, PathLikeDriver])
async def test_what_another_library_has_opened_is_closed_once(make: type[Driver]) -> None:
    """It is read through us, and closed by the object it came from, in whatever way it ends."""
    driver = make()
    with driver.far:
        async with opened(driver, ReportStream, name="theirs") as device:
            stream = device.open()
            driver.far.send(b"hello")
            assert await stream.receive() == b"hello"
            assert device.fileno() == driver.fileno()
        assert driver.closes == 1


@pytest.mark.parametrize("fails", ["grab", "watch"])
async def test_what_another_library_has_opened_is_closed_if_it_cannot_be_used(
    fails: str, tmp_path: pathlib.Path
) -> None:
    """It belongs to the device as soon as that opens."""
    with (tmp_path / "file").open("wb") as file, pytest.raises(OSError, match=r"fd \d+"):
        await open_device(file, grab=fails == "grab")
    assert file.closed


async def test_a_device_may_only_be_read() -> None:
    """Where that is all that is allowed; to write is an error then, and no unplug."""
    with serial_line() as end:
        async with open_device(end.path, mode="r") as device:
            stream = device.open()
            end.send(b"x")
            assert await stream.receive() == b"x"
            with pytest.raises(OSError, match="Bad file descriptor"):
                await stream.send(b"y")


# -- who it is --


@pytest.fixture
def tree(tmp_path: pathlib.Path, monkeypatch: pytest.MonkeyPatch) -> pathlib.Path:
    """A stick with two interfaces and a scanner in sysfs, and what udev calls the scanner."""
    monkeypatch.setattr(identity, "SYS", tmp_path)
    monkeypatch.setattr(identity, "DEV", tmp_path / "dev")
    stick, scanner = tmp_path / "devices/usb1/1-1", tmp_path / "devices/usb1/1-2"
    for subsystem, place, name in (
        ("hidraw", stick / "1-1:1.0/0003:1234:5678.0001/hidraw/hidraw0", "hidraw0"),
        ("hidraw", stick / "1-1:1.1/0003:1234:5678.0002/hidraw/hidraw1", "hidraw1"),
        ("usbmisc", stick / "1-1:1.2/usbmisc/usbtmc0", "usbtmc0"),
        ("usbmisc", stick / "1-1:1.3/usbmisc/lp0", "usb/lp0"),
        ("input", scanner / "1-2:1.0/input/input3/event3", "input/event3"),
        ("input", scanner / "1-2:1.0/input/input3/js0", "input/js0"),
    ):
        place.mkdir(parents=True)
        (place / "dev").write_text("1:3\n")
        (place / "uevent").write_text(f"MAJOR=1\nDEVNAME={name}\n")
        (tmp_path / "class" / subsystem).mkdir(parents=True, exist_ok=True)
        (tmp_path / "class" / subsystem / place.name).symlink_to(place)
    (stick / "serial").write_text("A10K\n")
    (stick / "1-1:1.1/0003:1234:5678.0002/uevent").write_text("HID_PHYS=usb-0/input1\nHID_UNIQ=\n")
    (scanner / "serial").write_bytes(b"\xff\xfe\n")
    (scanner / "1-2:1.0/input/input3/phys").write_text("usb-0000:00:14.0-2/input0\n")
    (scanner / "1-2:1.0/input/input3/uniq").write_text("00:11:22\n")
    names = tmp_path / "dev/input/by-id"
    names.mkdir(parents=True)
    (names / "usb-Scanner-event-kbd").symlink_to("/dev/null")
    return tmp_path


@pytest.mark.parametrize(
    ("who", "node"),
    [
        ("1-1:1.1", "hidraw1"),
        ("usb-0/input1", "hidraw1"),
        ("usb-0000:00:14.0-2/input0", "input/event3"),
        ("00:11:22", "input/event3"),
        ("1-2", "input/event3"),
        ("event3", "input/event3"),
        (os.fsdecode(b"\xff\xfe"), "input/event3"),
        ("usb-Scanner-event-kbd", "/dev/null"),
    ],
)
def test_a_device_is_found_by_who_it_is(tree: pathlib.Path, who: str, node: str) -> None:
    """By udev's name, or what it tells in sysfs of itself or of the interface or device that it is of."""
    assert identity.find(who, ["hidraw", "input"]) == str(tree / "dev" / node)


def test_a_physical_path_is_no_path(tree: pathlib.Path) -> None:
    """Though it has a slash: a path begins with one, or with a dot."""
    device = open_device("usb-0/input1", ReportStream)
    device.find()
    assert device.path == str(tree / "dev/hidraw1")


@pytest.mark.parametrize(
    ("name", "subsystem", "driver"),
    [
        ("event3", "input", "evdev"),
        ("js0", "input", "input"),
        ("hidraw0", "hidraw", "hidraw"),
        ("usbtmc0", "usbmisc", "usbtmc"),
        ("lp0", "usbmisc", "usbmisc"),
    ],
)
def test_the_driver_says_what_streams_are_made_of_it(
    tree: pathlib.Path, name: str, subsystem: str, driver: str
) -> None:
    """Evdev of the input devices, not their older faces; a device that sysfs does not know has none."""
    with open("/dev/null") as file:  # noqa: PTH123
        number = os.fstat(file.fileno()).st_rdev
        assert identity.driver_of(file.fileno()) == ""
        (place,) = tree.glob(f"devices/**/{name}")
        (place / "subsystem").symlink_to(tree / "class" / subsystem)
        (tree / "dev/char").mkdir()
        (tree / f"dev/char/{os.major(number)}:{os.minor(number)}").symlink_to(place)
        assert identity.driver_of(file.fileno()) == driver


@pytest.mark.usefixtures("tree")
def test_an_identity_that_two_share_names_both() -> None:
    """Which of them is meant is not guessed."""
    with pytest.raises(OSError, match=r"such as \S*hidraw0 and \S*hidraw1: give the path.*'A10K'") as caught:
        identity.find("A10K", ["hidraw", "input"])
    assert caught.value.errno == errno.ENOTUNIQ


def test_a_device_that_goes_while_it_is_looked_for_is_not_there(tree: pathlib.Path) -> None:
    """Sysfs still has its folder, but tells nothing of it any more."""
    (tree / "devices/usb1/1-2/1-2:1.0/input/input3/event3/uevent").write_text("")
    with pytest.raises(FileNotFoundError):
        identity.find("1-2", ["input"])


@pytest.mark.parametrize("runs", [True, False])
def test_where_udev_does_not_run_that_is_said(tree: pathlib.Path, runs: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    """As it gives the names."""
    monkeypatch.setattr(identity, "UDEV_RUNS", tree if runs else tree / "none")
    with pytest.raises(OSError, match="no device of input has this identity") as caught:
        identity.find("A10K", ["input"])
    assert ("udev" in str(caught.value)) is not runs


# -- followed --


async def test_a_device_that_returns_is_the_next_generation(tmp_path: pathlib.Path) -> None:
    """Under whatever node; here by a link."""
    generations = []
    with contextlib.closing(Plug(tmp_path / "stick")) as plug, anyio.fail_after(20):
        plug.plug_in()
        async with (
            awake(),
            follow_device(plug.link, DeviceStream, debounce=0.001, max_delay=0.01) as devices,
            anyio.create_task_group() as tasks,
        ):
            async for device in devices:
                call = start(tasks, device.open().receive)
                await parked(device.node.children[0])
                plug.unplug()
                await call.done.wait()
                generations.append(call.error.generation)
                if len(generations) == 3:
                    break
                plug.plug_in()
    assert generations == [1, 2, 3]


@pytest.mark.parametrize(
    "options", [{"debounce": 0}, {"mode": "a"}, {"source": "devd"}, {"owner": None}, {"identity": ""}], ids=str
)
def test_bad_options_are_told_at_the_call(options: dict[str, Any]) -> None:
    """Before anything is waited for."""
    with pytest.raises((ValueError, TypeError)):
        follow_device(**{"identity": "x", **options})


async def test_without_reconnect_a_missing_device_is_an_error() -> None:
    """Which names it."""
    async with follow_device("no-such-device", reconnect=False) as devices:
        with pytest.raises(OSError, match="no-such-device"):
            await anext(devices)


# -- a real one --

_TUNSETIFF, _IFF_TAP_NO_PI = 0x400454CA, 0x1002


class Tap:
    """A network tap: each read of it is a packet. Its network goes with it when another takes it down for good."""

    def __init__(self) -> None:
        self._fd = os.open("/dev/net/tun", os.O_RDWR | os.O_NONBLOCK)
        try:
            answer = fcntl.ioctl(self._fd, _TUNSETIFF, struct.pack("16sH22x", b"revoke%d", _IFF_TAP_NO_PI))
        except OSError:
            os.close(self._fd)
            raise
        self.name = answer[:16].rstrip(b"\0").decode()

    def fileno(self) -> int:
        return self._fd

    def close(self) -> None:
        os.close(self._fd)

    def unplug(self) -> None:
        """RTM_DELLINK, as `ip link delete` sends it."""
        index = socket.if_nametoindex(self.name)
        with socket.socket(socket.AF_NETLINK, socket.SOCK_RAW, 0) as route:
            route.send(struct.pack("=IHHIIBxHiII", 32, 17, 5, 1, 0, 0, 0, index, 0, 0))
            (error,) = struct.unpack_from("=i", route.recv(4096), 16)
            assert error == 0


@pytest.fixture
def tap() -> Tap:
    try:
        return Tap()
    except OSError as exc:
        pytest.skip(f"no network tap here: {exc}")


async def test_a_real_device_is_unplugged_by_its_kernel(tap: Tap) -> None:
    """Who waits is told by the poll's error; none of its answers is one of an unplug's."""
    async with awake(), open_device(tap, ReportStream) as device, anyio.create_task_group() as tasks:
        stream = device.open()
        call = start(tasks, stream.receive)
        await parked(stream.handle)
        tap.unplug()
        await call.done.wait()
        assert "unplugged: " in str(call.error)
        await until_revoked(device)
