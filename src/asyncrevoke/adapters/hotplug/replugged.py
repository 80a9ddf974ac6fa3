"""A device that comes and goes, and is opened again whenever it is back."""

from __future__ import annotations

import contextlib
import errno
import logging
import os
import pathlib
import random
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Generic, Self, TypeVar, overload

import anyio
import anyio.abc
import anyio.lowlevel

from asyncrevoke.adapters.device import CharacterDevice, Device, open_device
from asyncrevoke.adapters.device.character import S
from asyncrevoke.adapters.device.identity import only
from asyncrevoke.adapters.serial import SerialDevice, open_serial
from asyncrevoke.adapters.serial.port import SerialException, explained
from asyncrevoke.lowlevel import Name, Registry, Resource, Revocation, Watch, off_loop, revoke_threadsafe

from . import uevents
from .uevents import Kind, Source, check_kind, next_event

logger = logging.getLogger("asyncrevoke")

BY_ID = pathlib.Path("/dev/serial/by-id")
TTYS = pathlib.Path("/sys/class/tty")

D = TypeVar("D", bound=Device[Any])
_PATIENCE = 1.0  # seconds that users of a device have to leave, before they are a problem


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

    Each turn of ``async for device in devices`` opens the device anew, as the next generation of one name, and ends the
    turn before. While the device is away, the loop waits for events, and looks for it at growing intervals. The logger
    "asyncrevoke" says what it waits for. Leaving the ``async with`` closes everything. So does dropping the result, as
    a plain ``async for`` over it does.

    :param by_id: its name in /dev/serial/by-id, its USB serial number, or a path, such as a link of yours. It may come
        back under another node. Of several ports with one serial number, the first is taken; while two devices have the
        number, neither is. You may also give what else `open_serial` takes, such as ``socket://host:port``: there are
        no events for that, so it is looked for at intervals
    :param baudrate, options: as for `open_serial`, without `owner`
    :param reconnect: False: one turn, if the device is there
    :param debounce: seconds without further events until it is opened
    :param max_delay: the longest time between two looks, in seconds. Each wait is twice as long as the one before,
        minus up to a quarter by chance. It begins at `debounce` again after an event, after `up`, and after a turn that
        has lasted longer than `max_delay`
    :param source: of events, as for `watch_devices`
    :param registry: makes it findable by its name, and while it is open by path and device number
    :param name: Default: the last part of `by_id`
    :raises ValueError, TypeError: if an option makes no sense From the loop:
    :raises RevokedError, ~anyio.ClosedResourceError: if the name was revoked for good, or closed
    :raises SerialException: without `reconnect`, if it cannot be opened
    """
    by_id = os.fspath(by_id)
    if not by_id:
        raise ValueError("by_id is empty: give the device's name in /dev/serial/by-id, its serial number, or a path")

    def make(owner: Name | None) -> SerialDevice:
        path = by_id if owner is None else _find(by_id)
        return open_serial(path, owner=owner, name=pathlib.PurePath(path).name, **options)

    options["baudrate"] = baudrate
    make(None)  # says what is wrong with the options, and opens nothing
    turns = Turns(reconnect, debounce, max_delay, source, registry)
    return SerialDevices(turns.named(name or pathlib.PurePath(by_id).name), make, ("tty",), turns, options)


@overload
def follow_device(
    identity: str | os.PathLike[str],
    kind: type[S],
    *,
    reconnect: bool = ...,
    debounce: float = ...,
    max_delay: float = ...,
    source: Kind = ...,
    registry: Registry | None = ...,
    name: str = ...,
    **options: Any,
) -> Devices[CharacterDevice[S]]: ...
@overload
def follow_device(
    identity: str | os.PathLike[str],
    kind: None = None,
    *,
    reconnect: bool = ...,
    debounce: float = ...,
    max_delay: float = ...,
    source: Kind = ...,
    registry: Registry | None = ...,
    name: str = ...,
    **options: Any,
) -> Devices[CharacterDevice[Any]]: ...
def follow_device(
    identity: str | os.PathLike[str],
    kind: type[Any] | None = None,
    *,
    reconnect: bool = True,
    debounce: float = 0.1,
    max_delay: float = 5.0,
    source: Kind = None,
    registry: Registry | None = None,
    name: str = "",
    **options: Any,
) -> Devices[CharacterDevice[Any]]:
    """Use any character device that comes and goes: ``async with follow_device("0001", EventStream) as devices: ...``

    It works like `serial_device`, which explains the options that are not explained here.

    :param identity: as for `open_device`. If two devices share it, it is waited for until one of them has gone
    :param kind, options: as for `open_device`, without `owner`
    :raises ValueError, TypeError: if an option makes no sense From the loop:
    :raises RevokedError, ~anyio.ClosedResourceError: if the name was revoked for good, or closed
    :raises OSError: without `reconnect`, if it cannot be opened
    """
    identity = os.fspath(identity)

    def make(owner: Name | None) -> CharacterDevice[Any]:
        device = open_device(identity, kind, owner=owner, **options)
        if owner is not None:
            device.find()
            device.name = pathlib.PurePath(device.path).name
        return device

    make(None)  # says what is wrong with the options, and opens nothing
    turns = Turns(reconnect, debounce, max_delay, source, registry)
    return Devices(turns.named(name or pathlib.PurePath(identity).name), make, (), turns, options)


@dataclass(frozen=True, slots=True)
class Turns:
    """How a device is waited for, as `serial_device` explains."""

    reconnect: bool
    debounce: float
    max_delay: float
    source: Kind
    registry: Registry | None

    def __post_init__(self) -> None:
        if not 0 < self.debounce <= self.max_delay:
            raise ValueError(
                f"debounce is {self.debounce!r} and max_delay {self.max_delay!r}: give seconds, debounce the smaller"
            )
        check_kind(self.source)

    def named(self, name: str) -> Name:
        make = Name if self.registry is None else self.registry.name
        return make(name, while_draining="queue")


@dataclass(eq=False, repr=False)
class Devices(Resource, Generic[D]):
    """The generations of one device, one after another, as `serial_device` and `follow_device` return them. One task at
    a time waits for the next, and so revokes the present one.

    If you revoke the device or hang up the name, the next turn opens the device again at once. To keep it closed, as while
    another program writes its firmware, call `down`, then `up`.

    :ivar node: the name, which stays. Revoke it to revoke the device for good, also while it is waited for. Each turn
        opens a file below it, named after the device node, such as ``meter/ttyUSB0``
    :ivar options: of each opening. Changes count from the next turn on
    """

    node: Name
    _make: Callable[[Name], D]  # looks for it, in a thread
    _subsystems: tuple[str, ...]  # whose events may have brought it; none: any's
    _turns: Turns
    options: dict[str, Any]

    def __post_init__(self) -> None:
        self._events: _Events | None = None
        self._guard = anyio.ResourceGuard("waiting for")
        self._delay = self._turns.debounce
        self._latest: D | None = None  # of this turn
        self._lasts_at = 0.0  # when this turn has lasted so long that the device is no flapping one
        self._told = self._problem = ""
        self._ending: Revocation | None = None  # of the last turn
        self._opening: anyio.CancelScope | None = None
        self._back: anyio.Event | None = None  # while it is down

    def __aiter__(self) -> Self:
        return self

    async def __anext__(self) -> D:
        """End this turn, and wait until the device is open again.

        :raises ~anyio.BusyResourceError: if another task is waiting
        Cancellation: it is not open; the next call goes on.
        """
        await anyio.lowlevel.checkpoint()
        with self._guard, self.node.using(idle=True):
            while True:
                if self._back is not None:
                    await self._back.wait()
                with anyio.CancelScope() as self._opening:
                    return await self._next()

    @property
    def is_down(self) -> bool:
        """Whether it is kept closed."""
        return self._back is not None

    @property
    def problem(self) -> str:
        """Why it is not open although it is there: another program has it, or somebody has not left it. "": there is
        none.
        """
        ending = self._ending
        stays = ending.stragglers(1) if ending is not None and ending.report.seconds >= _PATIENCE else []
        return f"it is waited for: {stays[0]}" if stays else self._problem

    def down(self, reason: str = "down", *, grace: float = 0.0) -> Revocation:
        """Close the device and keep it closed until `up`: ``await devices.down("firmware")``. It need not be there.

        Its streams raise `RevokedError`. The loop waits for `up` then, and opens nothing, even if the device is plugged
        in anew. A second call is another hang-up, and it stays down.

        :param grace: seconds in which operations that are not idle may finish
        :return: the hang-up of the name. When you have awaited it, the device is closed. If the kernel takes longer than
            half a second to open it just then, a thread closes it as soon as it is open
        """
        hangup = self.node.hangup(reason, grace=grace)
        self._back = self._back or anyio.Event()
        if self._opening is not None:
            self._opening.cancel()
        return hangup

    def up(self) -> None:
        """Let the loop open the device again, as soon as it is there. If it is not down, nothing happens."""
        if self._back is not None:
            self._delay = self._turns.debounce
            self._back.set()
            self._back = None

    async def _next(self) -> D:
        if self._events is None:
            self._events = _Events(self.node, self._subsystems, self._turns.source)
        else:
            await self._end_turn()
            if not self._turns.reconnect:
                raise StopAsyncIteration
            await self._wait(self._events)
        while True:
            try:
                return await self._open(self._events)
            except OSError as exc:
                if not self._turns.reconnect:
                    raise
                if str(exc) != self._told:
                    self._told = str(exc)
                    missing = exc.errno in (errno.ENOENT, errno.ENXIO, errno.ENODEV)
                    self._problem = "" if missing else self._told
                    logger.log(
                        logging.INFO if missing else logging.WARNING, "%s is waited for: %s", self.node.name, exc
                    )
            await self._wait(self._events)

    def __del__(self) -> None:
        if not self.node.revoked:
            revoke_threadsafe(self.node, "no task loops over it any more")

    async def _open(self, events: _Events) -> D:
        device = await (await off_loop(lambda: self._make(self.node)))
        try:
            if self._turns.registry is not None:
                self._turns.registry.locate(self.node, device.fileno())
            events.begin(device)
        except BaseException:
            await device.aclose()
            raise
        self._told = self._problem = ""
        self._latest = device
        self._lasts_at = anyio.current_time() + self._turns.max_delay
        return device

    async def _end_turn(self) -> None:
        if self._latest is None:
            return
        self._ending = self.node.hangup(self._latest.node.reason or "its turn is over")
        try:
            await self._ending
        except* Exception as group:  # noqa: BLE001  # a port that does not close is no reason not to open the next
            logger.warning("closing %s failed: %s", self.node.name, group)
        if anyio.current_time() > self._lasts_at:
            self._delay = self._turns.debounce
        self._latest = None

    async def _wait(self, events: _Events) -> None:
        """Wait for a while, each time longer, or until an event is followed by none for a moment."""
        delay = self._delay * random.uniform(0.75, 1)  # noqa: S311  # not all clients of a server at once
        with anyio.move_on_after(delay) as waiting:
            await events.changed.wait()
        with anyio.move_on_after(self._turns.max_delay):  # others' events may never end
            while events.changed.is_set():
                events.changed = anyio.Event()
                await anyio.sleep(self._turns.debounce)
        self._delay = min(2 * self._delay, self._turns.max_delay) if waiting.cancelled_caught else self._turns.debounce


SerialDevices = Devices[SerialDevice]


class _Events:
    """The kernel's events while a device is waited for, and while it is in use.

    :ivar changed: set by an event that may have brought it
    """

    def __init__(self, node: Name, subsystems: tuple[str, ...], kind: Kind) -> None:
        self.changed = anyio.Event()
        self._subsystems = subsystems
        self._device: Device[Any] | None = None
        self._number: int | None = None
        self._source: Source | None = None
        try:
            self._source = uevents.source_of(kind)
            node.release = Watch(self._source, self._happened).close
        except OSError as exc:
            logger.info("%s: no events, so it is looked for at intervals: %s", node.name, exc)
            source, self._source = self._source, None
            if source is not None:
                source.close()

    def begin(self, device: Device[Any]) -> None:
        """Note that it is open. Earlier events were about what was there before: the removal of its last generation."""
        with contextlib.suppress(OSError):  # the watch comes upon it, too
            while self._source is not None and next_event(self._source) is not None:
                pass
        self._device = device
        self._number = os.fstat(device.fileno()).st_rdev

    def _happened(self) -> None:
        source, self._source = self._source, None  # so it stays if the source is broken, which ends the watch
        assert source is not None
        while (event := next_event(source)) is not None:
            ours = event.number == self._number and event.subsystem != "block"  # which has numbers of its own
            if event.action == "remove" and self._device is not None and ours:
                self._device.revoke(f"unplugged: the kernel has removed {event.node}")
            elif not self._subsystems or event.subsystem in ("", *self._subsystems):
                self.changed.set()
        self._source = source


def _find(by_id: str) -> str:
    """Return what to open now: the node of the device, or a URL.

    :raises SerialException: if there is none. Then no generation need begin
    """
    if "://" in by_id:
        return by_id
    link = pathlib.Path(by_id) if "/" in by_id else BY_ID / by_id
    try:
        if "/" in by_id or link.exists():
            return str(link.resolve(strict=True))
        found: dict[pathlib.Path, str] = {}  # the first port of each USB device
        # Virtual terminals have no device.
        for device, tty in sorted((device.resolve(), device.parent.name) for device in TTYS.glob("*/device")):
            for above in device.parents:
                serial = above / "serial"  # of a USB device, as it tells it itself
                if serial.is_file() and serial.read_bytes().strip() == os.fsencode(by_id):
                    found.setdefault(above, f"/dev/{tty}")
        if found:
            return only(by_id, found.values())
    except OSError as exc:
        raise explained(by_id, exc) from exc
    why = "" if uevents.UDEV_RUNS.exists() else f" (no {BY_ID}: udev is not running)"
    raise SerialException(errno.ENOENT, f"no serial device has this name or serial number{why}", by_id)
