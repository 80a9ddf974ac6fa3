"""Where udev runs: what it tells of a device, the names that it gives, and devices that are followed by these."""

import contextlib
import os
import pathlib
import shutil
import subprocess
from collections.abc import Iterator

import anyio

from asyncrevoke import watch_devices
from asyncrevoke.adapters.device import EventStream
from inputs import Input
from outside import Outside, modprobe, there, until
from unplugs import Port, Row, replugged

UDEVD = pathlib.Path("/lib/systemd/systemd-udevd")
KEYBOARD = "usb-QEMU_QEMU_USB_Keyboard_RIG-keyboard-event-kbd"
PORT = "usb-QEMU_QEMU_USB_SERIAL_RIG1-if00-port0"


def names(outside: Outside, count: int) -> Iterator[Row]:
    if not UDEVD.exists():
        yield from ({"scenario": "udev", "right": "not asked: apt-get install udev", "ok": True} for _ in range(3))
        return
    modprobe("usbhid", "hid_generic", "evdev", "uinput")
    keyboard, port = Input(outside, "keyboard", EventStream), Port(outside, 1)
    keyboard.who, port.who = KEYBOARD, PORT
    with _udevd():
        yield anyio.run(_told, keyboard)
        yield anyio.run(replugged, "udev, evdev", keyboard, "its name in by-id", count)
        yield anyio.run(replugged, "udev, ttyUSB", port, "its name in by-id", count)


@contextlib.contextmanager
def _udevd() -> Iterator[None]:
    with subprocess.Popen([UDEVD, "--children-max=2"], stderr=subprocess.DEVNULL) as udevd:
        try:
            anyio.run(until, lambda: there("/run/udev/control"))
            yield
        finally:
            udevd.kill()
    shutil.rmtree("/run/udev")


async def _told(keyboard: Input) -> Row:
    """By the kernel's word alone, a device has no names and no serial number."""
    async with watch_devices() as events:
        await keyboard.plug()
        with anyio.fail_after(20):
            async for event in events:
                if (event.action, event.node) == ("add", keyboard.path):
                    break
        told = event.properties
        link = f"/dev/input/by-id/{KEYBOARD}"
        right = {
            "its serial number": told["ID_SERIAL_SHORT"] == "RIG-keyboard",
            "what it is": told["ID_INPUT_KEYBOARD"] == "1",
            "its links": link in told["DEVLINKS"].split(),
            "which are there": os.path.realpath(link) == keyboard.path,
        }
        await keyboard.unplug()
        await until(lambda: not os.path.lexists(link))
    return {
        "scenario": "udev: a device of evdev's is plugged in",
        "times": 1,
        "right": ", ".join(part for part, is_right in right.items() if is_right),
        "ok": all(right.values()),
    }
