"""The identity of a device, under whatever node: the names that udev gives it, and its properties in sysfs."""

import contextlib
import errno
import os
import pathlib
from collections.abc import Iterable, Iterator

UDEV_RUNS = pathlib.Path("/run/udev/control")
DEV = pathlib.Path("/dev")
SYS = pathlib.Path("/sys")


def find(identity: str, subsystems: Iterable[str]) -> str:
    """Return the node of the one device of these subsystems that has the identity.

    :raises OSError: ENOENT, if there is none; ENOTUNIQ, with the names of two, if several share it
    """
    nodes = {*_named(identity), *_telling(identity, subsystems)}
    if not nodes:
        why = "" if UDEV_RUNS.exists() else "; udev, which gives names, is not running"
        raise OSError(errno.ENOENT, f"no device of {', '.join(subsystems)} has this identity{why}", identity)
    return only(identity, nodes)


def only(identity: str, nodes: Iterable[str]) -> str:
    """Return the only one of these devices.

    :raises OSError: ENOTUNIQ, with the names of two, if several share the identity
    """
    first, *others = sorted(nodes)
    if others:
        words = f"several devices share this identity, such as {first} and {others[0]}: give the path, or its place"
        raise OSError(errno.ENOTUNIQ, words, identity)
    return first


def driver_of(fd: int) -> str:
    """Return what an open device is to its users: "evdev", "usbtmc", or the name of its subsystem. "" if sysfs does not
    know it.
    """
    number = os.fstat(fd).st_rdev
    place = (SYS / f"dev/char/{os.major(number)}:{os.minor(number)}").resolve()
    subsystem = (place / "subsystem").resolve().name if (place / "subsystem").exists() else ""
    if subsystem == "usbmisc" and place.name.startswith("usbtmc"):
        return "usbtmc"
    return "evdev" if _is_evdev(place, subsystem) else subsystem


def _is_evdev(place: pathlib.Path, subsystem: str) -> bool:
    return subsystem == "input" and place.name.startswith("event")


def _named(identity: str) -> Iterator[str]:
    """Yield udev's links, such as in /dev/input/by-id. Links in /dev/disk lead to no character device."""
    for kind in "by-id", "by-path":
        for link in DEV.glob(f"*/{kind}"):
            node = link / identity
            if node.is_char_device():
                yield str(node.resolve())


def _telling(identity: str, subsystems: Iterable[str]) -> Iterator[str]:
    known: dict[pathlib.Path, bool] = {}
    for subsystem in subsystems:
        for entry in (SYS / "class" / subsystem).glob("*/dev"):
            with contextlib.suppress(OSError):  # it has just gone
                place = entry.parent.resolve()
                if subsystem == "input" and not _is_evdev(place, subsystem):  # the same device's older faces
                    continue
                for above in place, *place.parents:
                    if above not in known:
                        known[above] = os.fsencode(identity) in set(_told(above))
                    if known[above]:
                        if name := _properties(place).get(b"DEVNAME"):
                            yield str(DEV / name.decode())
                        break


def _told(place: pathlib.Path) -> Iterator[bytes]:
    """Yield what identifies a device in sysfs: its place on its bus, its serial number, and its physical path."""
    yield os.fsencode(place.name)
    for attribute in "serial", "uniq", "phys":
        with contextlib.suppress(OSError):  # it has none
            yield (place / attribute).read_bytes().strip()
    told = _properties(place)
    for key in b"HID_UNIQ", b"HID_PHYS":
        if key in told:
            yield told[key]


def _properties(place: pathlib.Path) -> dict[bytes, bytes]:
    """Return the kernel's properties of it, as in its events."""
    with contextlib.suppress(OSError):
        lines = (place / "uevent").read_bytes().splitlines()
        return dict(line.split(b"=", 1) for line in lines if b"=" in line)
    return {}
