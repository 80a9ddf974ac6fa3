"""Objects that other libraries have opened: their descriptors are read through us, and what they lend dies with the device."""

import contextlib
import functools
import importlib
import pathlib
import time
from collections.abc import Awaitable, Callable, Iterator
from typing import Any

import anyio
import pytest

from asyncrevoke import RevokedError, open_device
from asyncrevoke.adapters.device import EventStream, ReportStream
from asyncrevoke.adapters.device.identity import find
from asyncrevoke.adapters.membrane import revokable_proxy
from devices import Keyboard, Stick, nothing_leaks, opened, plugged, waiting
from outside import modprobe
from unplugs import LOOPS, Row


class Hidapi:
    """A device of hidapi's, which tells nobody its descriptor."""

    def __init__(self, hidraw: Any, path: str) -> None:
        self.device = hidraw.device()
        before = _open_as(path)
        self.device.open_path(path.encode())
        (self._fd,) = _open_as(path) - before

    def fileno(self) -> int:
        return self._fd

    def close(self) -> None:
        self.device.close()


def _open_as(path: str) -> set[int]:
    found = set()
    for entry in pathlib.Path("/proc/self/fd").iterdir():
        with contextlib.suppress(OSError):
            if str(entry.readlink()) == path:
                found.add(int(entry.name))
    return found


async def _python_evdev(evdev: Any) -> str:
    async with nothing_leaks(), plugged(Keyboard("vm-evdev")) as plug:
        await (await opened(plug)).aclose()
        theirs = evdev.InputDevice(find(plug.identity, EventStream.subsystems))
        async with open_device(theirs) as device:
            stream, lent = device.open(), revokable_proxy(theirs, device.node)
            assert lent.phys == plug.identity
            plug.feed(1)
            events = [evdev.categorize(evdev.InputEvent(*await stream.receive())) for _ in range(plug.messages)]
            keys = [event.keycode for event in events if isinstance(event, evdev.KeyEvent)]
            assert keys == ["KEY_S", "KEY_S"], keys
            assert lent.active_keys() == []
            await _unplugged(plug, stream.receive)
            with pytest.raises(RevokedError):
                lent.active_keys()
        assert theirs.fd == -1
        return f"events of {type(theirs).__module__}"


async def _hidapi(hidraw: Any) -> str:
    async with nothing_leaks(), plugged(stick := Stick("vm-hidapi")) as plug:
        await (await opened(plug)).aclose()
        theirs = Hidapi(hidraw, find(plug.identity, ReportStream.subsystems))
        async with open_device(theirs) as device:
            stream, lent = device.open(), revokable_proxy(theirs.device, device.node)
            assert lent.get_serial_number_string() == plug.identity
            plug.feed(1)
            assert plug.said(await stream.receive(), 1)
            assert lent.write(plug.item) == len(plug.item)
            assert stick.sent() == plug.item[:65]
            await _unplugged(plug, stream.receive)
            with pytest.raises(RevokedError):
                lent.read(64)
        with pytest.raises(ValueError, match="not open"):
            theirs.device.read(64)
        return f"reports of {type(theirs.device).__module__}"


async def _unplugged(plug: Any, call: Callable[[], Awaitable[object]]) -> None:
    told: list[Any] = []
    async with anyio.create_task_group() as tasks:
        tasks.start_soon(functools.partial(waiting, call, told))
        await anyio.wait_all_tasks_blocked()
        plug.unplug()
    assert [(type(error), error.in_flight) for error in told] == [(RevokedError, True)], told


def objects(_: object, count: int) -> Iterator[Row]:
    modprobe("evdev", "uinput", "uhid", "hid_generic")
    for scenario, package, module in (_python_evdev, "evdev-binary", "evdev"), (_hidapi, "hidapi", "hidraw"):
        begun = time.monotonic()
        try:
            library = importlib.import_module(module)
        except ImportError:
            said = {f"not asked: pip install {package}"}
        else:
            said = {anyio.run(scenario, library, **loop) for _ in range(count) for loop in LOOPS.values()}
        yield {
            "scenario": f"opened by {package}, and read through us",
            "times": count * len(LOOPS),
            "right": "; ".join(said),
            "took": f"{time.monotonic() - begun:.1f} s",
            "ok": True,
        }
