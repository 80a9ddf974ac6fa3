"""Lists the serial ports of this machine, with their devices and holders. It opens no port."""

import argparse
import contextlib
import json
import os
import pathlib
from collections.abc import Iterator
from dataclasses import asdict, dataclass, field

import anyio

from asyncrevoke.adapters.device import identity
from asyncrevoke.control.lines import ControlError

from .commands import complain, print_table
from .kernel import Holder, holders_of
from .port import ask
from .sockets import look

_PATIENCE = 5.0  # seconds for the servers to tell of their shares


@dataclass(slots=True)
class SerialPort:
    """A serial port, as sysfs tells it.

    :ivar by_id: its name in /dev/serial/by-id, if udev gave it one
    :ivar serial: serial number of its USB device
    :ivar number: device number of its node
    """

    path: str
    by_id: str
    serial: str
    driver: str
    description: str
    number: int
    shares: list[str] = field(default_factory=list)
    holders: list[Holder] = field(default_factory=list)


def run(args: argparse.Namespace) -> int:
    """Print the ports, and return the exit status.

    :raises OSError: if no server is at the given socket
    """
    ports = sorted(serial_ports(), key=lambda port: (len(port.path), port.path))
    shares = anyio.run(_shares, args.socket)
    held = list(holders_of({port.number for port in ports}))
    for port in ports:
        port.shares = shares.get(port.path, [])
        port.holders = [holder for number, holder in held if number == port.number]
    if args.json:
        for port in ports:
            print(json.dumps({name: each for name, each in asdict(port).items() if name != "number"}))
    elif not ports:
        complain("there are no serial ports")
    else:
        print_table([["PORT", "DRIVER", "SERIAL", "DESCRIPTION", "BY-ID", "HELD BY"], *map(_row, ports)])
    return 0


def _row(port: SerialPort) -> list[str]:
    held = [f"share {name}" for name in port.shares] + [f"{each.pid} {each.command:.40}" for each in port.holders]
    return [port.path, port.driver, port.serial, port.description, port.by_id, "; ".join(held)]


def serial_ports() -> Iterator[SerialPort]:
    """Return all ports that have a device behind them."""
    names = {}
    for link in (identity.DEV / "serial/by-id").glob("*"):
        names[link.resolve()] = link.name
    for tty in (identity.SYS / "class/tty").glob("*"):
        device = tty / "device"  # virtual terminals have none
        if not device.exists() or _read(tty / "type") == "0":  # or it is a port of the 8250 driver without a chip
            continue
        path, above = identity.DEV / tty.name, [device.resolve(), *device.resolve().parents]
        usb = next((each for each in above if (each / "idVendor").exists()), None)
        major, _, minor = _read(tty / "dev").partition(":")
        yield SerialPort(
            str(path),
            names.get(path, ""),
            _read(usb / "serial") if usb else "",
            _driver(above),
            _usb(usb) if usb else _chip(tty),
            os.makedev(int(major or 0), int(minor or 0)),
        )


def _usb(device: pathlib.Path) -> str:
    words = [_read(device / name) for name in ("manufacturer", "product")]
    return " ".join(filter(None, words)) or f"{_read(device / 'idVendor')}:{_read(device / 'idProduct')}"


def _chip(tty: pathlib.Path) -> str:
    told = {name: _read(tty / name) for name in ("port", "iomem_base", "irq")}
    return ", ".join(f"{name} {each}" for name, each in told.items() if each not in ("", "0", "0x0"))


def _driver(above: list[pathlib.Path]) -> str:
    """Return the driver of the device, not of the bus that new kernels put between it and its terminal."""
    links = (each / "driver" for each in above)
    drivers = (link.resolve() for link in links if link.exists())
    return next((driver.name for driver in drivers if driver.parent.parent.name != "serial-base"), "")


def _read(file: pathlib.Path) -> str:
    with contextlib.suppress(OSError):  # it is missing, or the device has just gone
        return file.read_text(errors="replace").strip()
    return ""


async def _shares(socket: str) -> dict[str, list[str]]:
    """Return the names of the shares of each path, as the servers tell them."""
    found: dict[str, list[str]] = {}
    async with await look(socket) as servers:
        for where, nodes in (await servers.nodes()).items():
            for name in {node["path"] for node in nodes if node["kind"] == "name" and "/" not in node["path"]}:
                with (
                    contextlib.suppress(ControlError),
                    anyio.move_on_after(_PATIENCE),
                ):  # such as the share of a program
                    path = str((await ask(servers.controls[where], name)).get("path"))
                    found.setdefault(path, []).append(name)
    return found
