"""From inside the machine: what is outside of it, and its devices, plugged in and out."""

import functools
import json
import os
import pathlib
import subprocess
import tty
from collections.abc import Callable
from typing import Any, Protocol

import anyio
import anyio.lowlevel


class Outside:
    """The other end of the channel, which `Machine` serves. One task at a time asks it."""

    def __init__(self) -> None:
        self._fd = os.open("/dev/ttyS1", os.O_RDWR | os.O_NOCTTY | os.O_NONBLOCK)
        self._heard = b""

    async def ask(self, *request: object) -> Any:
        """Have it done, and wait until it is."""
        rest = json.dumps(request).encode() + b"\n"
        while rest:
            await anyio.wait_writable(self._fd)
            rest = rest[os.write(self._fd, rest) :]
        while b"\n" not in self._heard:
            await anyio.wait_readable(self._fd)
            self._heard += os.read(self._fd, 4096)
        answer, _, self._heard = self._heard.partition(b"\n")
        return json.loads(answer)


class Plug(Protocol):
    """A device that can be plugged in and out.

    :ivar path: of its node, as soon as it is plugged in; or who it is
    """

    path: str

    async def plug(self) -> None:
        """Returns when the node is there."""

    async def unplug(self) -> None:
        """Returns when it is out; the kernel may still be busy with it."""


class Usb:
    """A USB device of the emulator's. Of those, a serial port (ftdi_sio) never stalls.

    :param nodes: those of its kind in /dev
    """

    path = ""

    def __init__(self, outside: Outside, name: str, nodes: str) -> None:
        self.outside = outside
        self.name = name
        self._nodes = nodes

    async def plug(self) -> None:
        known = self._there()
        await self.outside.ask("plug", self.name)
        await until(lambda: self._there() - known)
        (self.path,) = self._there() - known
        await until(lambda: _opens(self.path))

    async def unplug(self) -> None:
        await self.outside.ask("unplug", self.name)

    def _there(self) -> set[str]:
        return {str(path) for path in pathlib.Path("/dev").glob(self._nodes)}


class Gadget:
    """A USB serial device that the guest's kernel plays itself (cdc_acm). Nobody reads at its far end, so it stalls."""

    path = "/dev/ttyACM0"

    def __init__(self) -> None:
        modprobe("cdc_acm", "dummy_hcd", "libcomposite", "usb_f_acm")
        self._folder = pathlib.Path("/sys/kernel/config/usb_gadget/port")
        for part in "strings/0x409", "configs/c.1", "functions/acm.1":
            (self._folder / part).mkdir(parents=True)
        (self._folder / "idVendor").write_text("0x0525")
        (self._folder / "idProduct").write_text("0xa4a7")
        (self._folder / "strings/0x409/serialnumber").write_text("RIG3")
        (self._folder / "configs/c.1/acm.1").symlink_to(self._folder / "functions/acm.1")
        self._far: int | None = None

    async def plug(self) -> None:
        (self._folder / "UDC").write_text("dummy_udc.0")
        await until(lambda: _opens(self.path))
        self._far = os.open("/dev/ttyGS0", os.O_RDWR | os.O_NOCTTY | os.O_NONBLOCK)
        tty.setraw(self._far)

    async def unplug(self) -> None:
        assert self._far is not None
        (self._folder / "UDC").write_text("\n")
        os.close(self._far)


#: There is one; the kernel keeps what it is made of.
gadget = functools.cache(Gadget)


def modprobe(*modules: str) -> None:
    for module in modules:
        subprocess.run(["/sbin/modprobe", *module.split()], check=True)


def there(path: str) -> bool:
    return pathlib.Path(path).exists()


def _opens(path: str) -> bool:
    """The node is there a moment before the port behind it."""
    try:
        os.close(os.open(path, os.O_RDWR | os.O_NOCTTY | os.O_NONBLOCK))
    except OSError:
        return False
    return True


async def until(true: Callable[[], object]) -> None:
    """What the kernel does in its own time."""
    with anyio.fail_after(20):
        while not true():
            await anyio.sleep(0.005)
