"""Serial ports of real kernels that are unplugged while they are used in all ways, that come back, and that stall."""

import contextlib
import functools
import gc
import os
import pathlib
import statistics
import sys
import threading
import time
from collections.abc import Awaitable, Callable, Iterable, Iterator
from typing import Any, NamedTuple

import anyio
import anyio.abc
import anyio.lowlevel
import pytest

from asyncrevoke import RevokedError, SerialDevice, SerialStream, open_serial, serial_device
from asyncrevoke.adapters.device import Device
from asyncrevoke.adapters.hotplug import Devices
from outside import Outside, Plug, Usb, gadget, there, until

#: A scenario's figures, by the heads of their columns.
Row = dict[str, object]
#: What a user of a stream does again and again.
Operation = Callable[[Any], Awaitable[object]]


async def in_short_turns(stream: Any) -> None:
    with anyio.move_on_after(0.01):
        await stream.receive()


async def seldom(stream: Any) -> None:
    """Nobody is in an operation when it happens."""
    while not stream.handle.revoked:
        await anyio.sleep(0.005)
    await stream.receive()


#: What the users of a port do when it is unplugged. On Linux 6.12, not on 6.1, a drain on a ttyUSB was seen to last 5 s: a
#: USB request of ftdi_get_modem_status was lost, and the kernel waited for it as long, and held back the hang-up.
KINDS: list[list[Operation]] = [
    [SerialStream.receive],
    [SerialStream.receive_line],
    [lambda stream: stream.send(bytes(4096))],
    [SerialStream.receive, lambda stream: stream.send(bytes(100))],
    [SerialStream.modem_lines, lambda stream: stream.set_baudrate(115200)],
    [in_short_turns],
    [seldom],
    [
        SerialStream.receive,
        SerialStream.receive_line,
        lambda stream: stream.send(bytes(4096)),
        SerialStream.drain,
        seldom,
    ],
]

LOOPS: dict[str, dict[str, Any]] = {
    "asyncio": {"backend": "asyncio"},
    "uvloop": {"backend": "asyncio", "backend_options": {"use_uvloop": True}},
    "trio": {"backend": "trio"},
}
if sys.version_info >= (3, 12):
    import asyncio

    def _eager() -> asyncio.AbstractEventLoop:
        loop = asyncio.new_event_loop()
        loop.set_task_factory(asyncio.eager_task_factory)
        return loop

    LOOPS["eager"] = {"backend": "asyncio", "backend_options": {"loop_factory": _eager}}

BACKENDS = [
    (backend, loop)
    for backend in ("descriptor", "pyserial-asyncio", "serialx")
    for loop in LOOPS
    if backend == "descriptor" or loop != "trio"
]


class Told(NamedTuple):
    """What a cycle has shown.

    :ivar after: seconds from the request until the last user had been told
    :ivar busy: part of a processor that was used when all was over, and nothing was left to do
    :ivar left: descriptors, tasks and threads more than before
    """

    users: int
    told: int
    after: float
    busy: float
    left: int


async def cycle(plug: Plug, opening: Callable[[], Device[Any]], operations: list[Operation]) -> Told:
    """Plug it in, use it, and unplug it in the midst of that."""
    before = held()
    await plug.plug()
    async with opening() as device:
        told: list[float] = []
        async with anyio.create_task_group() as users:
            for operation in operations:
                await users.start(_use, device, operation, told)
            await anyio.lowlevel.checkpoint()
            begun = time.monotonic()
            await plug.unplug()
            with anyio.fail_after(20):
                await until(lambda: len(told) == len(operations))
        assert device.node.reason.startswith("unplugged: "), device.node.reason
        busy = await _busy()
    await until(lambda: not there(plug.path))
    return Told(len(operations), len(told), max(told) - begun, busy, len(await left(before)))


async def _busy() -> float:
    """How much of a processor is used, in the quietest of some moments: whoever spins has none."""
    least = 1.0
    for _ in range(10):
        used, began = time.process_time(), time.monotonic()
        await anyio.sleep(0.1)
        least = min(least, (time.process_time() - used) / (time.monotonic() - began))
        if least < 0.2:
            break
    return least


async def _use(device: Any, operation: Operation, told: list[float], *, task_status: Any) -> None:
    """Do it until told, which must be by one error, and by the same at once from then on."""
    stream = device.open()
    task_status.started()
    await _until_told(stream, operation)
    told.append(time.monotonic())
    with anyio.fail_after(5), pytest.raises(RevokedError) as again:
        while True:  # one with a time limit of its own may be late before it is refused
            await operation(stream)
    assert not again.value.in_flight


def held() -> set[str]:
    """Descriptors, with what they are, and tasks."""
    files = {f"task {task.id}" for task in anyio.get_running_tasks()}
    for entry in pathlib.Path("/proc/self/fd").iterdir():
        with contextlib.suppress(OSError):
            files.add(f"{entry.name} {entry.readlink()}")
    return files


async def left(before: set[str]) -> set[str]:
    """What is held besides. A watch closes its file in the loop's next turns."""
    with anyio.move_on_after(5):
        while held() - before:
            gc.collect()
            await anyio.sleep(0.01)
    return held() - before


def cables(outside: Outside, count: int) -> Iterator[Row]:
    yield _cycles(Usb(outside, "usb1", "ttyUSB*"), "ttyUSB", count)


def gadgets(_: Outside, count: int) -> Iterator[Row]:
    yield _cycles(gadget(), "ttyACM", count)


def _cycles(plug: Plug, kind: str, count: int) -> Row:
    """All kinds of use and all backends, in rotation."""
    every = []
    for number in range(count):
        backend, loop = BACKENDS[number % len(BACKENDS)]
        operations = KINDS[number % len(KINDS)]
        opening = functools.partial(_opened, plug, backend=backend, fan_out=len(operations) > 2)
        every.append(on(loop, cycle, plug, opening, operations))
    return figures(f"{kind}: unplugged in use", every)


def _opened(plug: Plug, **options: Any) -> SerialDevice:
    return open_serial(plug.path, 115200, **options)


def on(loop: str, one: Callable[..., Awaitable[Told]], *args: object) -> Told:
    """A cycle in a loop of its own, with the threads that this has left."""
    threads = _threads()
    told = anyio.run(one, *args, **LOOPS[loop])
    return told._replace(left=told.left + _threads() - threads)


def figures(scenario: str, every: list[Told]) -> Row:
    told, users = sum(each.told for each in every), sum(each.users for each in every)
    left, busy = sum(each.left for each in every), max(each.busy for each in every)
    return {
        "scenario": scenario,
        "times": len(every),
        "right": f"{told} of {users} users told, each once",
        "took": _times([each.after for each in every]),
        "left behind": left,
        "busy": f"{busy:.0%}",
        "ok": told == users and not left and busy < 0.5,
    }


def _threads() -> int:
    return len([thread for thread in threading.enumerate() if not thread.name.startswith("Trio thread")])


def _times(seconds: list[float]) -> str:
    return f"{statistics.median(seconds):.3f} s, at most {max(seconds):.3f}"


# -- devices that come back, by who they are --


class Followed(Usb):
    """One that is followed.

    :ivar who: what it is found by
    """

    who: str

    def follow(self) -> Devices[Any]:
        raise NotImplementedError

    async def is_heard(self, device: Any, number: int) -> bool:
        """Whether what it sends now comes from the device, and nothing of another's."""
        raise NotImplementedError

    async def node_taken(self, others: contextlib.ExitStack) -> None:
        """Have others take the node that it had, if it may have that again while some program still holds it."""


class Port(Followed):
    def __init__(self, outside: Outside, number: int) -> None:
        super().__init__(outside, f"usb{number}", "ttyUSB*")
        self.who = f"RIG{number}"

    def follow(self) -> Devices[Any]:
        return serial_device(self.who, 115200)

    async def is_heard(self, device: SerialDevice, number: int) -> bool:
        await self.outside.ask("send", self.name, f"{self.name} {number}\n")
        return await device.open().receive_line() == f"{self.name} {number}\n".encode()


def replugs(outside: Outside, count: int) -> Iterator[Row]:
    yield anyio.run(replugged, "ttyUSB", Port(outside, 1), "serial number", count)


async def replugged(kind: str, plug: Followed, by: str, count: int) -> Row:
    """One device, each time as the next generation under another node, and what it says."""
    right, times, plugged, nodes = 0, [], 0.0, set[str]()
    await plug.plug()
    async with plug.follow() as devices:
        with contextlib.ExitStack() as others:
            async for device in devices:
                if plugged:
                    times.append(time.monotonic() - plugged)
                nodes.add(plug.path)
                others.callback(os.close, os.open(plug.path, os.O_RDONLY | os.O_NONBLOCK | os.O_NOCTTY))
                right += device.path == plug.path and await plug.is_heard(device, len(times))
                async with anyio.create_task_group() as group:
                    group.start_soon(_until_told, device.open(), lambda stream: stream.receive())
                    await plug.unplug()
                await plug.node_taken(others)
                if len(times) == count:
                    break
                plugged = time.monotonic()
                await plug.plug()
    return {
        "scenario": f"{kind}: replugged, followed by {by}",
        "times": count,
        "right": f"{right - 1} of {count} are back, with what they say, under {len(nodes)} nodes",
        "took": _times(times),
        "ok": right == count + 1 == len(nodes),
    }


async def _until_told(stream: Any, operation: Operation) -> None:
    with contextlib.suppress(RevokedError):
        while True:
            await operation(stream)


def swaps(outside: Outside, count: int) -> Iterator[Row]:
    yield anyio.run(swapped, "ttyUSB", [Port(outside, 1), Port(outside, 2)], count)


async def swapped(kind: str, these: Iterable[Followed], count: int) -> Row:
    """Two devices that change places: each has the other's node then."""
    opened, is_open = anyio.create_memory_object_stream[tuple[Followed, Any]](2)
    plugs = [*these]
    right, moved, nodes = 0, 0, set[tuple[Followed, str]]()
    async with anyio.create_task_group() as group, opened, is_open:
        for plug in plugs:
            group.start_soon(_follow, plug, opened)
        for number in range(count + 1):
            for plug in plugs:
                await plug.plug()
            devices = [await is_open.receive(), await is_open.receive()]
            for plug, device in devices:
                right += device.path == plug.path and await plug.is_heard(device, number)
            before, nodes = nodes, {(plug, plug.path) for plug in plugs}
            moved += bool(before) and not before & nodes
            plugs.reverse()
            for plug in plugs:
                await plug.unplug()
            await until(lambda: not any(there(plug.path) for plug in plugs))
        group.cancel_scope.cancel()
    return {
        "scenario": f"{kind}: two swapped, followed by who they are",
        "times": count,
        "right": f"{moved} had the other's node, {right} of {2 * count + 2} reads their own",
        "ok": right == 2 * count + 2 and moved == count,
    }


async def _follow(plug: Followed, opened: anyio.abc.ObjectSendStream[tuple[Followed, Any]]) -> None:
    async with plug.follow() as devices:
        async for device in devices:
            await opened.send((plug, device))
            await _until_told(device.open(), seldom)


# -- a line that is stalled: the kernel waits half a minute for what was sent, before it closes a port --


def stalls(_: Outside, __: int) -> Iterator[Row]:
    plug = gadget()
    for scenario, name, low, high in (
        (_revoked, "revoked", 25, 40),
        (_given_up, "revoked, close_timeout=2", 2, 6),
        (_unplugged, "revoked, and unplugged then", 0, 10),
        (_reopened, "revoked, and opened again", 20, 40),
    ):
        told, took = anyio.run(_stalled, plug, scenario)
        yield {
            "scenario": f"ttyACM, stalled: {name}",
            "times": 1,
            "right": f"its user was told after {told:.3f} s",
            "took": f"{took:.1f} s",
            "ok": told < 5 and low <= took <= high,
        }


async def _stalled(plug: Plug, scenario: Callable[[Plug, SerialDevice], Awaitable[None]]) -> tuple[float, float]:
    """The seconds from a revocation until the user is told, and until the scenario ends."""
    await plug.plug()
    device = await open_serial(plug.path, close_timeout=2 if scenario is _given_up else 40)
    async with anyio.create_task_group() as group:
        group.start_soon(_until_told, device.open(), lambda stream: stream.send(bytes(65536)))
        await anyio.wait_all_tasks_blocked()
        begun = time.monotonic()
        device.node.revoke("a test")
    told = time.monotonic()
    await scenario(plug, device)
    ended = time.monotonic()
    if scenario is not _unplugged:
        await plug.unplug()
    await until(lambda: not there(plug.path))
    return told - begun, ended - begun


async def _revoked(_: Plug, device: SerialDevice) -> None:
    await device.node.revoke()


async def _given_up(_: Plug, device: SerialDevice) -> None:
    report = anyio.Event()
    try:
        await device.node.revoke()
    except* TimeoutError:
        report.set()
    assert report.is_set(), "a port that is not closed was said to be"


async def _unplugged(plug: Plug, device: SerialDevice) -> None:
    await plug.unplug()
    await device.node.revoke()


async def _reopened(plug: Plug, _: SerialDevice) -> None:
    async with open_serial(plug.path):
        pass
