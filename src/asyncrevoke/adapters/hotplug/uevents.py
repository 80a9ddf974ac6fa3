"""Events of the kernel, or of udev, about devices that come and go."""

from __future__ import annotations

import errno
import importlib
import os
import pathlib
import socket
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Literal, Protocol, Self

import anyio
import anyio.abc
import anyio.lowlevel

from asyncrevoke.linux import AF_NETLINK
from asyncrevoke.lowlevel import Resource, Revokable, handle_of

Kind = Literal["kernel", "udev"] | None
UDEV_RUNS = pathlib.Path("/run/udev/control")
_NETLINK_KOBJECT_UEVENT, _KERNEL = 15, 1  # include/uapi/linux/netlink.h; the multicast group of the kernel's own


@dataclass(frozen=True, slots=True)
class DeviceEvent:
    """Something happened to a device (lib/kobject_uevent.c).

    :ivar action: "add", "remove", "change", "move", "online", "offline", "bind", "unbind". Or "lost": the kernel has
        thrown some events away, because too many came, so look for yourself what is there
    :ivar path: in sysfs, without /sys
    :ivar properties: all properties of the event, such as SUBSYSTEM, DEVNAME, MAJOR, MINOR; by udev also ID_SERIAL,
        DEVLINKS
    """

    action: str
    path: str
    properties: Mapping[str, str] = field(default_factory=dict)

    @property
    def subsystem(self) -> str:
        return self.properties.get("SUBSYSTEM", "")

    @property
    def node(self) -> str:
        """The path of the device's node, or "" if it has none."""
        name = self.properties.get("DEVNAME", "")
        return name if name.startswith("/") or not name else f"/dev/{name}"

    @property
    def number(self) -> int | None:
        """The device's number, as `st_rdev`, or None if it has none."""
        try:
            return os.makedev(int(self.properties["MAJOR"]), int(self.properties["MINOR"]))
        except (KeyError, ValueError):
            return None


class Source(Protocol):
    def fileno(self) -> int: ...

    def close(self) -> None: ...

    def read(self) -> DeviceEvent | None:
        """The next event that is there, or None.

        :raises OSError: ENOBUFS, if the kernel has thrown some away
        """


class _Netlink:
    """The kernel's own events, without any library."""

    def __init__(self) -> None:
        self._socket = socket.socket(AF_NETLINK, socket.SOCK_RAW | socket.SOCK_NONBLOCK, _NETLINK_KOBJECT_UEVENT)
        try:
            self._socket.bind((0, _KERNEL))
        except BaseException:
            self._socket.close()
            raise

    def fileno(self) -> int:
        return self._socket.fileno()

    def close(self) -> None:
        self._socket.close()

    def read(self) -> DeviceEvent | None:
        while True:
            try:
                message, (sender, _) = self._socket.recvfrom(65536)
            except BlockingIOError:
                return None
            event = None if sender else parsed(message)  # any other sender is a process
            if event is not None:
                return event


def parsed(message: bytes) -> DeviceEvent | None:
    """Return the event of a kernel's message, or None if it is no event: ``action@path``, then ``KEY=value``, each
    ended by a 0.
    """
    header, *lines = message.decode("utf-8", "replace").split("\0")
    action, _, path = header.partition("@")
    if not (action and path):
        return None
    return DeviceEvent(action, path, dict(line.split("=", 1) for line in lines if "=" in line))


class _Udev:
    """udev's events, through pyudev. They come when its rules are done, and links and permissions are there."""

    def __init__(self, pyudev: Any) -> None:
        self._monitor = pyudev.Monitor.from_netlink(pyudev.Context())
        self._monitor.start()

    def fileno(self) -> int:
        return int(self._monitor.fileno())

    def close(self) -> None:
        del self._monitor  # which closes it, as nobody else has it

    def read(self) -> DeviceEvent | None:
        device = self._monitor.poll(timeout=0)
        return None if device is None else DeviceEvent(device.action, device.device_path, dict(device.properties))


def source_of(kind: Kind) -> Source:
    if kind == "kernel" or (kind is None and not UDEV_RUNS.exists()):
        return _Netlink()
    try:
        return _Udev(importlib.import_module("pyudev"))
    except ImportError as exc:
        if kind is None:
            return _Netlink()
        raise ImportError("pyudev is not installed: pip install 'asyncrevoke[udev]'") from exc


def check_kind(kind: Kind) -> None:
    if kind not in ("kernel", "udev", None):
        raise ValueError(f"source is {kind!r}: give 'kernel' or 'udev', or nothing")


def next_event(source: Source) -> DeviceEvent | None:
    """The next event that is there, or None."""
    try:
        return source.read()
    except OSError as exc:
        if exc.errno != errno.ENOBUFS:
            raise
        return DeviceEvent("lost", "")


def watch_devices(*, source: Kind = None, owner: Revokable | None = None, name: str = "devices") -> DeviceEvents:
    """Follow what is plugged in and out: ``async with watch_devices() as events: async for event in events: ...``

    :param source: "kernel" gives the kernel's own events, as they happen. "udev" gives those of udevd, when it is done
        with them. Default: udev's if it runs and pyudev is installed, otherwise the kernel's
    :param owner: what it is opened on
    :raises OSError: if the kernel does not give its events here
    :raises ImportError: if `source` is "udev" and pyudev is not installed
    :raises ValueError: if `source` is something else
    """
    check_kind(source)
    return DeviceEvents(source_of(source), owner, name)


class DeviceEvents(Resource):
    """Events of devices, one after another, as `watch_devices` returns them. One task at a time waits for the next.

    :ivar node: the node that is revoked
    """

    def __init__(self, source: Source, owner: Revokable | None, name: str) -> None:
        self._source = source
        try:
            self.node = handle_of(owner, name, release=source.close)
        except BaseException:
            source.close()
            raise

    def __aiter__(self) -> Self:
        return self

    async def __anext__(self) -> DeviceEvent:
        """Wait for the next event.

        :raises RevokedError, ~anyio.ClosedResourceError: if it was revoked or closed, before or meanwhile
        Cancellation: no event is lost.
        """
        await anyio.lowlevel.checkpoint()
        with self.node.using(idle=True):
            while (event := next_event(self._source)) is None:
                await anyio.wait_readable(self._source.fileno())
            return event
