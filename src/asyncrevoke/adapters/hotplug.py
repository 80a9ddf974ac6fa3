"""Devices that come and go: the kernel's events, and a serial device that is opened again whenever it is back."""

from __future__ import annotations

import contextlib
import errno
import importlib
import logging
import os
import pathlib
import socket
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Literal, Protocol, Self

import anyio
import anyio.abc
import anyio.lowlevel

from asyncrevoke import Name, Registry, Revokable, Watch, handle_of, off_loop, revoke_threadsafe
from asyncrevoke.adapters.serial import SerialDevice, open_serial
from asyncrevoke.adapters.serial_ports import explained

logger = logging.getLogger("asyncrevoke")

BY_ID = pathlib.Path("/dev/serial/by-id")
TTYS = pathlib.Path("/sys/class/tty")
Kind = Literal["kernel", "udev"] | None
_UDEV_RUNS = pathlib.Path("/run/udev/control")
_NETLINK_KOBJECT_UEVENT, _KERNEL = 15, 1  # include/uapi/linux/netlink.h; the multicast group of the kernel's own


@dataclass(frozen=True, slots=True)
class DeviceEvent:
    """Something happened to a device (lib/kobject_uevent.c).

    :ivar action: "add", "remove", "change", "move", "online", "offline", "bind", "unbind"; or "lost": so many came that
        the kernel threw some away, so look for yourself what is there
    :ivar path: in sysfs, without /sys
    :ivar properties: all that was told, such as SUBSYSTEM, DEVNAME, MAJOR, MINOR; by udev also ID_SERIAL, DEVLINKS
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


class _Source(Protocol):
    def fileno(self) -> int: ...

    def close(self) -> None: ...

    def read(self) -> DeviceEvent | None:
        """The next event that is there, or None.

        :raises OSError: ENOBUFS, if the kernel has thrown some away
        """


class _Netlink:
    """The kernel's own events, without any library."""

    def __init__(self) -> None:
        self._socket = socket.socket(socket.AF_NETLINK, socket.SOCK_RAW | socket.SOCK_NONBLOCK, _NETLINK_KOBJECT_UEVENT)
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
    """The event of a kernel's message, or None if it is none: ``action@path``, then ``KEY=value``, each ended by a 0."""
    header, *lines = message.decode("utf-8", "replace").split("\0")
    action, _, path = header.partition("@")
    if not (action and path):
        return None
    return DeviceEvent(action, path, dict(line.split("=", 1) for line in lines if "=" in line))


class _Udev:
    """udev's events, through pyudev: they come when its rules are done, and links and permissions are there."""

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


def _source(kind: Kind) -> _Source:
    if kind == "kernel" or (kind is None and not _UDEV_RUNS.exists()):
        return _Netlink()
    try:
        return _Udev(importlib.import_module("pyudev"))
    except ImportError as exc:
        if kind is None:
            return _Netlink()
        raise ImportError("pyudev is not installed: pip install 'asyncrevoke[udev]'") from exc


def _check_kind(kind: Kind) -> None:
    if kind not in ("kernel", "udev", None):
        raise ValueError(f"source is {kind!r}: give 'kernel' or 'udev', or leave it out")


def _next(source: _Source) -> DeviceEvent | None:
    """The next event that is there, or None."""
    try:
        return source.read()
    except OSError as exc:
        if exc.errno != errno.ENOBUFS:
            raise
        return DeviceEvent("lost", "")


def watch_devices(*, source: Kind = None, owner: Revokable | None = None, name: str = "devices") -> DeviceEvents:
    """Follow what is plugged in and out: ``async with watch_devices() as events: async for event in events: ...``

    :param source: "kernel" are its own events, as they happen; "udev" those of udevd, when it is done with them. Left out:
        udev's where that runs and pyudev is installed, else the kernel's
    :param owner: what it is opened on
    :raises OSError: if the kernel does not give its events here
    :raises ImportError: if `source` is "udev" and pyudev is not installed
    :raises ValueError: if `source` is something else
    """
    _check_kind(source)
    return DeviceEvents(_source(source), owner, name)


class DeviceEvents(anyio.abc.AsyncResource):
    """Events of devices, one after another, as `watch_devices` gives them. One task at a time waits for the next.

    :ivar node: what can be taken away
    """

    def __init__(self, source: _Source, owner: Revokable | None, name: str) -> None:
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

        :raises RevokedError, ~anyio.ClosedResourceError: if it was or is taken away, or closed
        Cancellation: no event is lost.
        """
        await anyio.lowlevel.checkpoint()
        with self.node.using(idle=True):
            while (event := _next(self._source)) is None:
                await anyio.wait_readable(self._source.fileno())
            return event

    async def aclose(self) -> None:
        """Follow no more."""
        await self.node.aclose()


def serial_device(
    by_id: str | os.PathLike[str],
    baudrate: int = 9600,
    *,
    reconnect: bool = True,
    debounce: float = 0.1,
    max_delay: float = 5.0,
    source: Kind = None,
    registry: Registry | None = None,
    name: str = "",
    **options: Any,
) -> SerialDevices:
    """Use a serial device that comes and goes: ``async with serial_device("usb-FTDI_FT232R-if00") as devices: ...``

    Each turn of ``async for device in devices`` has the device open anew, as the next generation of one name, and ends
    the turn before. While the device is away, the loop waits: for events, and by looking at growing intervals; the
    logger "asyncrevoke" tells what for. Leaving
    the ``async with`` closes it, and so does dropping what this returns, as a mere ``async for`` over it does.

    :param by_id: which device: its name in /dev/serial/by-id, its USB serial number (of several ports, the first is
        taken), or a path, such as a link of yours. Under which node it comes back does not matter
    :param baudrate, options: as for `open_serial`, less `owner`
    :param reconnect: False: one turn, if the device is there
    :param debounce: seconds without further events until it is opened
    :param max_delay: seconds between two looks, at the most; each waits twice as long as the one before, until an event
        comes, or a turn has lasted as long as this
    :param source: of events, as for `watch_devices`
    :param registry: where it can be found by its name, and by path and device number while it is open
    :param name: left out: the last part of `by_id`
    :raises ValueError, TypeError: if an option makes no sense
    From the loop:
    :raises RevokedError, ~anyio.ClosedResourceError: if the name was revoked for good, or closed
    :raises SerialException: without `reconnect`, if it cannot be opened
    """
    by_id = os.fspath(by_id)
    if not by_id:
        raise ValueError("by_id is empty: give the device's name in /dev/serial/by-id, its serial number, or a path")
    if not 0 < debounce <= max_delay:
        raise ValueError(f"debounce is {debounce!r} and max_delay {max_delay!r}: give seconds, debounce the smaller")
    _check_kind(source)
    open_serial(by_id, baudrate, owner=None, name="", **options)  # says what is wrong with them, and opens nothing
    name = name or pathlib.PurePath(by_id).name
    node = Name(name, while_draining="queue") if registry is None else registry.name(name, while_draining="queue")
    return SerialDevices(
        node,
        by_id,
        {"baudrate": baudrate, **options},
        reconnect=reconnect,
        debounce=debounce,
        max_delay=max_delay,
        source=source,
        registry=registry,
    )


class SerialDevices(anyio.abc.AsyncResource):
    """The generations of one serial device, one after another, as `serial_device` gives them. One task at a time waits
    for the next, and takes the device from those who have it.

    To lend the port to another program, revoke the turn's device, and begin the next turn when it is to be opened again.

    :ivar node: the name, which stays. Revoke it to take the device away for good, also while it is waited for
    """

    def __init__(
        self,
        node: Name,
        by_id: str,
        options: dict[str, Any],
        *,
        reconnect: bool,
        debounce: float,
        max_delay: float,
        source: Kind,
        registry: Registry | None,
    ) -> None:
        self.node = node
        self._registry = registry
        self._by_id = by_id
        self._options = options
        self._reconnect = reconnect
        self._debounce = debounce
        self._max_delay = max_delay
        self._kind = source
        self._events: _Events | None = None
        self._guard = anyio.ResourceGuard("waiting for")
        self._delay = debounce
        self._latest: SerialDevice | None = None  # of this turn
        self._lasts_at = 0.0  # when this turn has lasted so long that the device is no flapping one
        self._told = ""

    def __aiter__(self) -> Self:
        return self

    async def __anext__(self) -> SerialDevice:
        """End this turn, and wait until the device is open again.

        :raises ~anyio.BusyResourceError: if another task is waiting
        Cancellation: it is not open; the next call goes on.
        """
        await anyio.lowlevel.checkpoint()
        with self._guard, self.node.using(idle=True):
            if self._events is None:
                self._events = _Events(self.node, self._kind)
            else:
                await self._end_turn()
                if not self._reconnect:
                    raise StopAsyncIteration
                await self._wait(self._events)
            while True:
                try:
                    return await self._open(self._events)
                except OSError as exc:
                    if not self._reconnect:
                        raise
                    if str(exc) != self._told:
                        self._told = str(exc)
                        missing = exc.errno in (errno.ENOENT, errno.ENXIO, errno.ENODEV)
                        logger.log(
                            logging.INFO if missing else logging.WARNING, "%s is waited for: %s", self.node.name, exc
                        )
                await self._wait(self._events)

    async def aclose(self) -> None:
        """Close it for good."""
        await self.node.aclose()

    def __del__(self) -> None:
        if not self.node.revoked:
            revoke_threadsafe(self.node, "nobody loops over it any more")

    async def _open(self, events: _Events) -> SerialDevice:
        path = await off_loop(lambda: _find(self._by_id))
        device = await open_serial(str(path), owner=self.node, name=path.name, **self._options)
        if self._registry is not None:
            self._registry.locate(self.node, device.fileno())
        self._told = ""
        self._latest = device
        self._lasts_at = anyio.current_time() + self._max_delay
        events.begin(device)
        return device

    async def _end_turn(self) -> None:
        if self._latest is None:
            return
        try:
            await self.node.hangup(self._latest.node.reason or "its turn is over")
        except* Exception as group:  # noqa: BLE001  # a port that does not close is no reason not to open the next
            logger.warning("%s was not closed well: %s", self.node.name, group)
        if anyio.current_time() > self._lasts_at:
            self._delay = self._debounce
        self._latest = None

    async def _wait(self, events: _Events) -> None:
        """Wait for a while, each time longer; or until an event is followed by none for a moment."""
        with anyio.move_on_after(self._delay) as waiting:
            await events.changed.wait()
        with anyio.move_on_after(self._max_delay):  # others' events may never end
            while events.changed.is_set():
                events.changed = anyio.Event()
                await anyio.sleep(self._debounce)
        self._delay = min(2 * self._delay, self._max_delay) if waiting.cancelled_caught else self._debounce


class _Events:
    """What the kernel tells while a device is waited for, and while it is in use.

    :ivar changed: set by what may have brought it
    """

    def __init__(self, node: Name, kind: Kind) -> None:
        self.changed = anyio.Event()
        self._device: SerialDevice | None = None
        self._number: int | None = None
        self._source: _Source | None = None
        try:
            self._source = _source(kind)
        except OSError as exc:
            logger.info("%s: no events, so it is looked for at intervals: %s", node.name, exc)
        else:
            node.release = Watch(self._source, self._happened).close

    def begin(self, device: SerialDevice) -> None:
        """It is open. What was told up to here is about what was there before: the removal of its last generation."""
        with contextlib.suppress(OSError):  # the watch comes upon it, too
            while self._source is not None and _next(self._source) is not None:
                pass
        self._device = device
        self._number = os.fstat(device.fileno()).st_rdev

    def _happened(self) -> None:
        source, self._source = self._source, None  # so it stays if the source is broken, which ends the watch
        assert source is not None
        while (event := _next(source)) is not None:
            if event.action == "remove" and self._device is not None and event.number == self._number:
                self._device.revoke(f"unplugged: the kernel has removed {event.node}")
            elif event.subsystem in ("tty", ""):
                self.changed.set()
        self._source = source


def _find(by_id: str) -> pathlib.Path:
    """The node of the device now.

    :raises SerialException: if there is none; then no generation need begin
    """
    link = pathlib.Path(by_id) if "/" in by_id else BY_ID / by_id
    if "/" not in by_id and not link.exists() and TTYS.is_dir():
        for device, tty in sorted(((tty / "device").resolve(), tty) for tty in TTYS.iterdir()):
            for above in device.parents:
                serial = above / "serial"  # of a USB device, as it tells it itself
                if serial.is_file() and serial.read_bytes().strip() == os.fsencode(by_id):
                    return pathlib.Path("/dev") / tty.name
    try:
        return link.resolve(strict=True)
    except OSError as exc:
        raise explained(str(link), exc) from exc
