"""Devices that come and go: the kernel's events, and a serial device that is opened again whenever it is back."""

from __future__ import annotations

import errno
import importlib
import logging
import os
import pathlib
import socket
from collections.abc import AsyncIterator, Mapping
from dataclasses import dataclass, field
from types import TracebackType
from typing import Any, Literal, Protocol, Self

import anyio
import anyio.lowlevel

from asyncrevoke import Name, Registry, Revokable, RevokedError, Watch, handle_of, off_loop
from asyncrevoke.adapters.serial import SerialDevice, open_serial

logger = logging.getLogger("asyncrevoke")

BY_ID = pathlib.Path("/dev/serial/by-id")
TTYS = pathlib.Path("/sys/class/tty")
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
        """The next event that is there, or None."""


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
            except OSError as exc:
                if exc.errno != errno.ENOBUFS:
                    raise
                return DeviceEvent("lost", "")
            event = None if sender else parsed(message)  # any other sender is a process
            if event is not None:
                return event


def parsed(message: bytes) -> DeviceEvent | None:
    """The event of a kernel's message, or None if it is none: ``action@path``, then ``KEY=value``, each ended by a 0."""
    header, *lines = message.decode("utf-8", "replace").rstrip("\0").split("\0")
    action, at, path = header.partition("@")
    if not at:
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


def _source(kind: Literal["kernel", "udev"] | None) -> _Source:
    if kind == "kernel" or (kind is None and not _UDEV_RUNS.exists()):
        return _Netlink()
    try:
        return _Udev(importlib.import_module("pyudev"))
    except ImportError as exc:
        if kind is None:
            return _Netlink()
        raise ImportError("pyudev is not installed: pip install 'asyncrevoke[udev]'") from exc


def watch_devices(
    *, source: Literal["kernel", "udev"] | None = None, owner: Revokable | None = None, name: str = "devices"
) -> DeviceEvents:
    """Follow what is plugged in and out: ``async with watch_devices() as events: async for event in events: ...``

    :param source: "kernel" are its own events, as they happen; "udev" those of udevd, when it is done with them. Left out:
        udev's where that runs and pyudev is installed, else the kernel's
    :param owner: what it is opened on
    :raises OSError: if the kernel does not give its events here
    :raises ImportError: if `source` is "udev" and pyudev is not installed
    """
    return DeviceEvents(_source(source), owner, name)


class DeviceEvents:
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
            while (event := self._source.read()) is None:
                await anyio.wait_readable(self._source.fileno())
            return event

    async def aclose(self) -> None:
        """Follow no more."""
        await self.node.aclose()

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, exc: BaseException | None, tb: TracebackType | None
    ) -> None:
        await self.aclose()


def serial_device(
    by_id: str,
    baudrate: int = 9600,
    *,
    reconnect: bool = True,
    debounce: float = 0.1,
    max_delay: float = 5.0,
    source: Literal["kernel", "udev"] | None = None,
    registry: Registry | None = None,
    name: str = "",
    **options: Any,
) -> SerialDevices:
    """Use a serial device that comes and goes: ``async for device in serial_device("usb-FTDI_FT232R-if00"): ...``

    Each turn of the loop has the device open anew, as the next generation of one name. When the loop goes on, or is
    left, it is closed. While the device is away, the loop waits: for events, and by looking at growing intervals.

    :param by_id: which device: its name in /dev/serial/by-id, its USB serial number, or a path, such as a link of yours.
        Under which node it comes back does not matter
    :param baudrate, options: as for `open_serial`, less `owner`
    :param reconnect: False: one turn, if the device is there
    :param debounce: seconds without further events until it is opened
    :param max_delay: seconds between two looks, at the most
    :param source: of events, as for `watch_devices`
    :param registry: where it can be found by its name
    :param name: left out: the last part of `by_id`
    :raises ValueError, TypeError: if an option makes no sense
    From the loop:
    :raises RevokedError, ~anyio.ClosedResourceError: if the name was revoked for good, or closed
    :raises SerialException: without `reconnect`, if it cannot be opened
    """
    if not by_id:
        raise ValueError("by_id is empty: give the device's name in /dev/serial/by-id, its serial number, or a path")
    if not 0 < debounce <= max_delay:
        raise ValueError(f"debounce is {debounce!r} and max_delay {max_delay!r}: give seconds, debounce the smaller")
    open_serial(by_id, baudrate, **options)  # which says what is wrong with them, and opens nothing
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
    )


class SerialDevices:
    """The generations of one serial device, as `serial_device` gives them.

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
        source: Literal["kernel", "udev"] | None,
    ) -> None:
        self.node = node
        self._by_id = by_id
        self._options = options
        self._reconnect = reconnect
        self._debounce = debounce
        self._max_delay = max_delay
        self._kind = source
        self._source: _Source | None = None
        self._device: SerialDevice | None = None
        self._changed = anyio.Event()

    async def __aiter__(self) -> AsyncIterator[SerialDevice]:
        try:
            self._source = _source(self._kind)
        except OSError as exc:
            logger.info("%s: no events, so it is looked for at intervals: %s", self.node.name, exc)
        watch = None if self._source is None else Watch(self._source, self._happened)
        delay = self._debounce
        try:
            while True:
                self._device, delay = await self._opened(delay)
                began = anyio.current_time()
                try:
                    yield self._device
                finally:
                    self._device = None
                    await self._hang_up()
                if not self._reconnect:
                    return
                if anyio.current_time() - began > self._max_delay:
                    delay = self._debounce
                delay = await self._wait(delay)
        finally:
            if watch is not None:
                watch.close()

    async def aclose(self) -> None:
        """Close it for good."""
        await self.node.aclose()

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, exc: BaseException | None, tb: TracebackType | None
    ) -> None:
        await self.aclose()

    async def _opened(self, delay: float) -> tuple[SerialDevice, float]:
        """Open it, as soon as that is possible."""
        told = ""
        while True:
            try:
                node = await off_loop(lambda: _find(self._by_id))
                device = await open_serial(str(node), owner=self.node, name=node.name, **self._options)
            except RevokedError:
                raise
            except OSError as exc:
                if not self._reconnect:
                    raise
                if str(exc) != told:
                    told = str(exc)
                    logger.info("%s is waited for: %s", self.node.name, told)
                delay = await self._wait(delay)
            else:
                # Events up to here are about what was there before: the removal of the last generation's node.
                while self._source is not None and self._source.read() is not None:
                    pass
                return device, delay

    async def _wait(self, delay: float) -> float:
        """Wait for that long, or until an event is followed by none for a while. It returns how long to wait next."""
        with self.node.using(idle=True):
            with anyio.move_on_after(delay) as waiting:
                await self._changed.wait()
            while self._changed.is_set():
                self._changed = anyio.Event()
                await anyio.sleep(self._debounce)
        return min(2 * delay, self._max_delay) if waiting.cancelled_caught else self._debounce

    async def _hang_up(self) -> None:
        try:
            await self.node.hangup("its generation is over")
        except* Exception as group:  # noqa: BLE001  # a port that does not close is no reason not to open the next
            logger.warning("%s was not closed well: %s", self.node.name, group)

    def _happened(self) -> None:
        assert self._source is not None
        while (event := self._source.read()) is not None:
            device = self._device
            if event.action == "remove" and device is not None and not device.node.revoked:
                if event.number == os.fstat(device.fileno()).st_rdev:
                    device.revoke(f"unplugged: the kernel has removed {event.node}")
            elif event.subsystem in ("tty", ""):
                self._changed.set()


def _find(by_id: str) -> pathlib.Path:
    """The node of the device now."""
    link = pathlib.Path(by_id) if "/" in by_id else BY_ID / by_id
    if link.exists():
        return link.resolve()
    if "/" not in by_id and TTYS.is_dir():
        for tty in TTYS.iterdir():
            for above in (tty / "device").resolve().parents:
                serial = above / "serial"  # of a USB device, as it tells it itself
                if serial.is_file() and serial.read_text().strip() == by_id:
                    return pathlib.Path("/dev") / tty.name
    raise FileNotFoundError(errno.ENOENT, "no device of this name or serial number is plugged in", by_id)
