"""Input devices of real kernels, by evdev and hidraw, that are unplugged in use: of the emulator's USB, and of the kernel's."""

import contextlib
import fcntl
import functools
import pathlib
from collections.abc import Iterator
from typing import Any

import devices
from asyncrevoke import open_device
from asyncrevoke.adapters.device import CharacterDevice, MessageStream
from asyncrevoke.adapters.device.identity import find
from outside import Outside, Plug, modprobe, there, until
from unplugs import LOOPS, Operation, Row, cycle, figures, in_short_turns, on, seldom

_EVIOCGVERSION, _HIDIOCGRDESCSIZE = 0x80044501, 0x80044801
USB = "tablet", "keyboard"


class Usb:
    """A USB input device of the emulator's."""

    path = ""

    def __init__(self, outside: Outside, name: str, nodes: str) -> None:
        self._outside = outside
        self._name = name
        self._nodes = nodes

    async def plug(self) -> None:
        known = self._there()
        await self._outside.ask("plug", self._name)
        await until(lambda: self._there() - known)
        (self.path,) = self._there() - known

    async def unplug(self) -> None:
        await self._outside.ask("unplug", self._name)

    def _there(self) -> set[str]:
        return {str(path) for path in pathlib.Path("/dev").glob(self._nodes)}


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
    plugs = [Usb(outside, name, "input/event*") for name in USB]
    yield _cycles("evdev", [*plugs, made], _EVIOCGVERSION, count)


def hidraw(outside: Outside, count: int) -> Iterator[Row]:
    modprobe("usbhid", "hid_generic", "uhid")
    made = Made(devices.Stick("vm-unplugged"))
    plugs = [Usb(outside, name, "hidraw*") for name in USB]
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
