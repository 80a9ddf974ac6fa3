"""Input devices of real kernels, by evdev and hidraw, that are unplugged in use: of the emulator's USB, and of the kernel's."""

import contextlib
import fcntl
import functools
import pathlib
from collections.abc import Iterator
from typing import Any

import anyio

import devices
from asyncrevoke import follow_device, open_device
from asyncrevoke.adapters.device import CharacterDevice, EventStream, MessageStream, ReportStream
from asyncrevoke.adapters.device.identity import find
from asyncrevoke.adapters.hotplug import Devices
from outside import Outside, Plug, Usb, modprobe, there, until
from unplugs import LOOPS, Followed, Operation, Row, cycle, figures, in_short_turns, on, replugged, seldom, swapped

_EVIOCGVERSION, _HIDIOCGRDESCSIZE = 0x80044501, 0x80044801
_EV_SYN, _EV_KEY, _EV_ABS, _EV_MSC, _KEY_A = 0, 1, 3, 4, 30
_USAGES = 4, 22, 7, 9, 10, 11, 13, 14, 15  # of the keys from A to the right
USB = "tablet", "keyboard"
NODES: dict[type[MessageStream[Any]], str] = {EventStream: "input/event*", ReportStream: "hidraw*"}


class Made:
    """One of the kernel's own."""

    def __init__(self, plug: devices.Plug) -> None:
        self._plug = plug
        self.path = plug.identity

    async def plug(self) -> None:
        self._plug.plug()
        await until(self._there)

    async def unplug(self) -> None:
        self._plug.unplug()

    def _there(self) -> bool:
        with contextlib.suppress(OSError):
            return there(find(self.path, self._plug.kind.subsystems))
        return False


async def _receive(stream: MessageStream[Any]) -> None:
    await stream.receive()


def evdev(outside: Outside, count: int) -> Iterator[Row]:
    modprobe("usbhid", "hid_generic", "evdev", "uinput")
    made = Made(devices.Keyboard("vm-unplugged"))
    plugs = [Usb(outside, name, NODES[EventStream]) for name in USB]
    yield _cycles("evdev", [*plugs, made], _EVIOCGVERSION, count)


def hidraw(outside: Outside, count: int) -> Iterator[Row]:
    modprobe("usbhid", "hid_generic", "uhid")
    made = Made(devices.Stick("vm-unplugged"))
    plugs = [Usb(outside, name, NODES[ReportStream]) for name in USB]
    yield _cycles("hidraw", [*plugs, made], _HIDIOCGRDESCSIZE, count)


def _cycles(kind: str, plugs: list[Plug], request: int, count: int) -> Row:
    """All kinds of use, loops and devices, in rotation."""

    async def ask(stream: MessageStream[Any]) -> None:
        await stream.request(lambda fd: fcntl.ioctl(fd, request, bytes(4)))

    kinds: list[list[Operation]] = [
        [_receive],
        [in_short_turns],
        [seldom],
        [_receive, _receive, in_short_turns, ask, seldom],
    ]
    loops = [*LOOPS]
    every = []
    for number in range(count):
        plug, operations = plugs[number % len(plugs)], kinds[-1 - number // 2 % len(kinds)]
        opening = functools.partial(_opened, plug, fan_out=len(operations) > 1)
        every.append(on(loops[number % len(loops)], cycle, plug, opening, operations))
    return figures(f"{kind}: unplugged in use", every)


def _opened(plug: Plug, *, fan_out: bool) -> CharacterDevice[Any]:
    return open_device(plug.path, fan_out=fan_out)


# -- devices that come back, by who they are --


class Input(Followed):
    """A keyboard, or a tablet, which says where its pen is."""

    def __init__(self, outside: Outside, name: str, kind: type[MessageStream[Any]], by: str = "serial number") -> None:
        super().__init__(outside, name, NODES[kind])
        port = 3 + USB.index(name)
        bus = pathlib.Path("/sys/bus/usb/devices/usb1").resolve().parent.name
        self.who = {
            "serial number": f"RIG-{name}",
            "place on the bus": f"1-{port}",
            "physical path": f"usb-{bus}-{port}/input0",
        }[by]
        self._kind = kind

    def follow(self) -> Devices[Any]:
        return follow_device(self.who, self._kind, debounce=0.01)

    async def is_heard(self, device: CharacterDevice[Any], number: int) -> bool:
        """Press a key, or move the pen, each to where no other number does."""
        number = number % len(_USAGES)
        async with device.open() as stream:
            await self.outside.ask("feed", self.name, number)
            while not self._is_said(item := await stream.receive(), number):
                assert self._is_own(item), item
        return True

    async def node_taken(self, others: contextlib.ExitStack) -> None:
        """The kernel gives a number of evdev's away as soon as the device is gone; one of hidraw's, when it is closed."""
        await until(lambda: not there(self.path))
        while self._kind is EventStream and not there(self.path):
            other = devices.Keyboard("vm-other")
            other.plug()
            others.callback(other.unplug)

    def _is_own(self, item: Any) -> bool:
        if self._kind is ReportStream:
            return len(item) == {"keyboard": 8, "tablet": 6}[self.name]
        kinds = {"keyboard": (_EV_SYN, _EV_MSC, _EV_KEY), "tablet": (_EV_SYN, _EV_ABS)}
        return item.type in kinds[self.name]

    def _is_said(self, item: Any, number: int) -> bool:
        place = 1000 * (number + 1)
        if self._kind is ReportStream:
            keys, where = bytes([0, 0, _USAGES[number], 0, 0, 0, 0, 0]), b"\0" + place.to_bytes(2, "little") + bytes(3)
            return bool(item == {"keyboard": keys, "tablet": where}[self.name])
        events = {"keyboard": (_EV_KEY, _KEY_A + number, 1), "tablet": (_EV_ABS, 0, place)}
        return bool(item[2:] == events[self.name])


def replugs(outside: Outside, count: int) -> Iterator[Row]:
    """By each of what they are found by, in each loop."""
    modprobe("usbhid", "hid_generic", "evdev", "uinput")
    loops = [*LOOPS]
    for kind in NODES:
        for number, by in enumerate(("serial number", "place on the bus", "physical path")):
            plug = Input(outside, USB[number % 2], kind, by)
            options = LOOPS[loops[number % len(loops)]]
            yield anyio.run(replugged, _name(kind), plug, by, -(-count // 3), **options)


def swaps(outside: Outside, count: int) -> Iterator[Row]:
    modprobe("usbhid", "hid_generic", "evdev")
    for kind in NODES:
        plugs = [Input(outside, name, kind) for name in USB]
        yield anyio.run(swapped, _name(kind), plugs, count)


def _name(kind: type[MessageStream[Any]]) -> str:
    return {EventStream: "evdev", ReportStream: "hidraw"}[kind]
