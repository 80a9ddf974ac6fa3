"""Devices that are no terminals, of a real kernel, which makes them (uinput, uhid), and removes them as it removes those of a bus.

Each scenario may be called by itself, and raises what it has found.
"""

from __future__ import annotations

import contextlib
import errno
import fcntl
import functools
import io
import os
import struct
import subprocess
import sys
import threading
import time
import traceback
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from typing import Any

import anyio
import anyio.lowlevel

from asyncrevoke import RevokedError, follow_device, open_device
from asyncrevoke.adapters.device import CharacterDevice, EventStream, InputEvent, MessageStream, ReportStream
from asyncrevoke.console.cli import main
from asyncrevoke.testing import Subject, check_revokable
from outside import modprobe
from unplugs import LOOPS, Row, held, left

EV_SYN, EV_KEY, KEY_A = 0, 1, 30
_UI_SET_EVBIT, _UI_SET_KEYBIT, _UI_SET_PHYS = 0x40045564, 0x40045565, 0x4008556C
_UI_DEV_SETUP, _UI_DEV_CREATE, _UI_DEV_DESTROY = 0x405C5503, 0x5501, 0x5502
_UHID_DESTROY, _UHID_OUTPUT, _UHID_CREATE2, _UHID_INPUT2 = 1, 6, 11, 12
#: A vendor's device, with input and output reports of so many bytes, without numbers.
_REPORT = 600
_DESCRIPTION = bytes.fromhex("06 00ff 09 01 a1 01 15 00 26 ff00 75 08") + (
    b"\x96" + struct.pack("<H", _REPORT) + b"\x09\x01\x81\x02" + b"\x96\x40\x00\x09\x01\x91\x02\xc0"
)


class Keyboard:
    """An evdev device of uinput's; its identity is its physical path."""

    kind: type[MessageStream[Any]] = EventStream

    def __init__(self, identity: str) -> None:
        self.identity = identity
        self._fd = -1

    def plug(self) -> None:
        self._fd = os.open("/dev/uinput", os.O_RDWR)
        fcntl.ioctl(self._fd, _UI_SET_EVBIT, EV_KEY)
        for key in range(1, 100):
            fcntl.ioctl(self._fd, _UI_SET_KEYBIT, key)
        fcntl.ioctl(self._fd, _UI_SET_PHYS, self.identity.encode() + b"\0")
        fcntl.ioctl(self._fd, _UI_DEV_SETUP, struct.pack("HHHH80sI", 3, 1, 1, 1, b"a scanner", 0))
        fcntl.ioctl(self._fd, _UI_DEV_CREATE)

    def unplug(self) -> None:
        fd, self._fd = self._fd, -1
        if fd >= 0:
            fcntl.ioctl(fd, _UI_DEV_DESTROY)
            os.close(fd)

    def feed(self, number: int = 0) -> None:
        """Press and release a key."""
        for kind, code, value in (
            (EV_KEY, KEY_A + number, 1),
            (EV_SYN, 0, 0),
            (EV_KEY, KEY_A + number, 0),
            (EV_SYN, 0, 0),
        ):
            os.write(self._fd, struct.pack("@LLHHi", 0, 0, kind, code, value))

    def said(self, item: Any, number: int = 0) -> bool:
        return (item.type, item.code) in ((EV_KEY, KEY_A + number), (EV_SYN, 0))

    messages = 4  # of one feed
    item: Any = InputEvent(0, 0, EV_SYN, 0, 0)


class Stick:
    """A hidraw device of uhid's; its identity is its serial number."""

    kind: type[MessageStream[Any]] = ReportStream

    def __init__(self, identity: str) -> None:
        self.identity = identity
        self._fd = -1

    def plug(self) -> None:
        self._fd = os.open("/dev/uhid", os.O_RDWR)
        names = struct.pack("128s64s64s", b"a stick", b"vm/stick", self.identity.encode())
        rest = struct.pack("<HHIIII", len(_DESCRIPTION), 3, 0x1234, 0x5678, 1, 0) + _DESCRIPTION.ljust(4096, b"\0")
        os.write(self._fd, struct.pack("<I", _UHID_CREATE2) + names + rest)

    def unplug(self) -> None:
        fd, self._fd = self._fd, -1
        if fd >= 0:
            os.write(fd, struct.pack("<I", _UHID_DESTROY))
            os.close(fd)

    def feed(self, number: int = 0) -> None:
        report = bytes([number]) * _REPORT
        os.write(self._fd, struct.pack("<IH", _UHID_INPUT2, len(report)) + report)

    def said(self, item: Any, number: int = 0) -> bool:
        return bool(item == bytes([number]) * _REPORT)

    messages = 1
    item: Any = bytes(65)

    def sent(self) -> bytes:
        """The next report that the kernel hands over."""
        while True:
            event = os.read(self._fd, 4380)
            if struct.unpack_from("<I", event)[0] == _UHID_OUTPUT:
                return event[4 : 4 + struct.unpack_from("<H", event, 4 + 4096)[0]]


Plug = Keyboard | Stick
PLUGS: list[type[Any]] = [Keyboard, Stick]


@contextlib.asynccontextmanager
async def nothing_leaks() -> AsyncIterator[None]:
    before = held()
    yield
    assert not (more := await left(before)), more


@contextlib.asynccontextmanager
async def plugged(plug: Plug) -> AsyncIterator[Plug]:
    plug.plug()
    try:
        yield plug
    finally:
        plug.unplug()


async def opened(plug: Plug, **options: Any) -> CharacterDevice[Any]:
    """Open it by who it is, as soon as its node is there."""
    with anyio.fail_after(20):
        while True:
            try:
                return await open_device(plug.identity, plug.kind, **options)
            except OSError as exc:
                if exc.errno not in (errno.ENOENT, errno.ENODEV, errno.ENXIO):
                    raise
                await anyio.sleep(0.01)


async def waiting(call: Callable[[], Awaitable[object]], told: list[object]) -> None:
    """Do it until it is taken away; note what it is told then."""
    try:
        while True:
            await call()
    except (RevokedError, OSError, anyio.EndOfStream) as exc:
        told.append(exc)


async def replugged(make: type[Any], cycles: int) -> str:
    """By who it is, it is the next generation, under whatever node: another program keeps the old one open."""
    plug = make(f"vm-{make.__name__}-again")
    nodes = []
    async with nothing_leaks(), contextlib.AsyncExitStack() as others:
        plug.plug()
        async with follow_device(plug.identity, plug.kind, debounce=0.01) as devices:
            with anyio.fail_after(60 + 5 * cycles):
                async for device in devices:
                    nodes.append(device.path)
                    others.callback(os.close, os.open(device.path, os.O_RDONLY | os.O_NONBLOCK))
                    number = len(nodes)
                    stream = device.open()
                    plug.feed(number % 9)
                    for _ in range(plug.messages):
                        assert plug.said(await stream.receive(), number % 9)
                    assert device.node.generation == number
                    plug.unplug()
                    told: list[Any] = []
                    await waiting(stream.receive, told)
                    assert [error.generation for error in told] == [number], told
                    if number == cycles:
                        break
                    plug.plug()
    return f"{cycles} generations under {len(set(nodes))} nodes"


async def swapped(make: type[Any], cycles: int) -> str:
    """Two that are swapped go to whom they belong: nobody gets a message of the other's."""
    plugs = [make(f"vm-{make.__name__}-{name}") for name in ("left", "right")]
    async with nothing_leaks():
        for plug in plugs:
            plug.plug()
        async with (
            follow_device(plugs[0].identity, make.kind, debounce=0.01) as left,
            follow_device(plugs[1].identity, make.kind, debounce=0.01) as right,
        ):
            with anyio.fail_after(60 + 5 * cycles):
                for cycle in range(cycles):
                    for number, devices in enumerate((left, right)):
                        stream = (await anext(devices)).open()
                        plugs[number].feed(number + 1)
                        for _ in range(plugs[number].messages):
                            assert plugs[number].said(await stream.receive(), number + 1)
                    for plug in plugs:
                        plug.unplug()
                    for plug in plugs if cycle % 2 else plugs[::-1]:
                        plug.plug()
        for plug in plugs:
            plug.unplug()
    return f"{cycles} swaps"


async def two_share_an_identity(make: type[Any], _: int) -> str:
    """The error names both."""
    async with nothing_leaks(), plugged(make("vm-twin")) as first, plugged(make("vm-twin")):
        seen = ""
        with anyio.fail_after(20):
            while "several devices" not in seen:
                try:
                    await (await open_device(first.identity, first.kind)).aclose()
                except OSError as exc:
                    seen = str(exc)
                await anyio.sleep(0.01)
        assert seen.count("/dev/") == 2, seen
        return seen


async def each_gets_each_message(make: type[Any], cycles: int) -> str:
    """Of a fan-out; and what one sends is one write."""
    async with nothing_leaks(), plugged(make(f"vm-{make.__name__}-fan")) as plug:
        device = await opened(plug, fan_out=True)
        streams = [device.open(), device.open()]
        got = [0, 0]

        async def read(reader: int) -> None:
            for number in range(cycles):
                for _ in range(plug.messages):
                    assert plug.said(await streams[reader].receive(), number % 9), number
                got[reader] += 1

        with anyio.fail_after(60):
            async with anyio.create_task_group() as tasks:
                for reader in range(2):
                    tasks.start_soon(read, reader)
                for number in range(cycles):
                    plug.feed(number % 9)
                    while min(got) < number - 10:  # the kernel keeps 64 for who is behind, and throws others away
                        await anyio.sleep(0.001)
            await streams[0].send(plug.item)
        if isinstance(plug, Stick):
            assert plug.sent() == plug.item[:65]
        await device.aclose()
    return f"{2 * cycles * plug.messages} messages"


async def grabbed(make: type[Any], _: int) -> str:
    """No other gets the events, until it is closed; whoever grabs it, too, is told that it is taken."""
    if make is not Keyboard:
        async with plugged(make("vm-nograb")) as plug:
            try:
                await opened(plug, grab=True)
            except OSError as exc:
                return str(exc)
        raise AssertionError("it was grabbed")
    async with nothing_leaks(), plugged(make("vm-grab")) as plug:
        other = (await opened(plug)).open()
        device = await opened(plug, grab=True)
        told: list[Any] = []
        await waiting(functools.partial(opened, plug, grab=True), told)
        assert [error.errno for error in told] == [errno.EBUSY], told
        stream = device.open()
        plug.feed(1)
        for _ in range(plug.messages):
            assert plug.said(await stream.receive(), 1)
        with os.fdopen(os.dup(device.fileno()), closefd=True):  # as a child would have it
            await device.aclose()
            plug.feed(2)
            for _ in range(plug.messages):
                assert plug.said(await other.receive(), 2)
        await other.bytes.device.aclose()
        return str(told[0])


async def the_contract(make: type[Any], _: int) -> str:
    """`check_revokable` passes on a stream."""

    @contextlib.asynccontextmanager
    async def maker() -> AsyncIterator[Subject]:
        async with plugged(make(f"vm-{make.__name__}-contract")) as plug, await opened(plug) as device:
            stream = device.open("s")
            yield Subject(
                stream.handle,
                stream.receive,
                quick=lambda: stream.send(plug.item),
                feed=plug.feed,
                close=stream.aclose,
                owner=device.node,
            )

    await check_revokable(maker, patience=20)
    return "kept"


async def vanishes_while_it_opens(make: type[Any], cycles: int) -> str:
    """It is open and then told, or the open fails with one clear error; nothing is left, and nobody hangs."""
    outcomes: dict[str, int] = {}
    async with nothing_leaks():
        for cycle in range(cycles):
            plug = make("vm-flash")
            plug.plug()
            thread = threading.Timer(cycle % 10 / 100, plug.unplug)
            thread.start()
            try:
                with anyio.fail_after(30):  # the kernel's own requests to a USB device that has gone last 5 s each
                    device = await open_device(plug.identity, plug.kind)
                    with contextlib.suppress(RevokedError):
                        await device.open().receive()
                    await device.aclose()
                outcome = "told"
            except RevokedError:
                outcome = "told"
            except OSError as exc:
                outcome = errno.errorcode[exc.errno or 0]
            thread.join()
            outcomes[outcome] = outcomes.get(outcome, 0) + 1
    assert set(outcomes) <= {"told", "ENOENT", "ENODEV", "ENXIO"}, outcomes
    return str(outcomes)


#: Opens a node; then a line comes, and it reads.
_HOLDER = """
import os, sys
fd = os.open(sys.argv[1], os.O_RDWR)
print(flush=True)
input()
try:
    os.read(fd, 4096)
except OSError as exc:
    print(exc.strerror)
"""


async def taken_from_others_by_the_command(make: type[Any], _: int) -> str:
    """`revoke --kernel` takes it from who has opened it in any program, and whom nobody has lent it."""
    async with nothing_leaks(), plugged(make(f"vm-{make.__name__}-taken")) as plug, await opened(plug) as device:
        holder = subprocess.Popen([sys.executable, "-ISc", _HOLDER, device.path], stdin=-1, stdout=-1, text=True)
        with holder, io.StringIO() as said:
            assert holder.stdout
            assert holder.stdout.readline() == "\n"
            with contextlib.redirect_stdout(said), contextlib.redirect_stderr(said):
                status = main(["revoke", "--kernel", "--yes", device.path])
            words = said.getvalue()
            met = holder.communicate("\n" if status == 0 else None)[0]
        if "this kernel has no HIDIOCREVOKE" in words:
            return words.strip()
        assert (status, met) == (0, "No such device\n"), words
        assert "is held by 1 process:\n" in words, words
        stream = device.open()
        plug.feed()
        for _ in range(plug.messages):
            assert plug.said(await stream.receive())
        return words.splitlines()[-1]


#: With how often it is done on each loop, in full.
Scenario = tuple[Callable[[type[Any], int], Awaitable[str]], int]
SCENARIOS: list[Scenario] = [
    (replugged, 50),
    (swapped, 20),
    (two_share_an_identity, 1),
    (each_gets_each_message, 50),
    (grabbed, 1),
    (vanishes_while_it_opens, 30),
    (taken_from_others_by_the_command, 1),
    (the_contract, 1),
]


def rows(_: object, count: int) -> Iterator[Row]:
    modprobe("evdev", "uinput", "uhid", "hid_generic")
    for make in PLUGS:
        yield from rows_of(make, SCENARIOS, count)


def rows_of(make: type[Any], scenarios: list[Scenario], count: int) -> Iterator[Row]:
    """All scenarios, those of many cycles with `count` of 50. Each is on all loops; in the short form, on one of them in turn."""
    for number, (scenario, most) in enumerate(scenarios):
        cycles = max(1, most * count // 50)
        loops = [*LOOPS.values()]
        if count == 1:
            loops = [loops[number % len(loops)]]
        begun = time.monotonic()
        ok, said = True, dict[str, None]()
        for loop in loops:
            try:
                said[anyio.run(scenario, make, cycles, **loop)] = None
            except Exception:  # noqa: BLE001  # told, and the others run
                said[traceback.format_exc()], ok = None, False
        yield {
            "scenario": f"{make.__name__}: {scenario.__name__.replace('_', ' ')}",
            "times": cycles * len(loops),
            "right": "; ".join(said),
            "took": f"{time.monotonic() - begun:.1f} s",
            "ok": ok,
        }
