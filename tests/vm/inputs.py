"""Input devices of real kernels, by evdev and hidraw, that are unplugged while they are read."""

import os
import pathlib
import time
from collections.abc import Awaitable, Callable, Iterator
from typing import Any

import anyio
import anyio.abc
import pytest

from asyncrevoke import FdStream
from outside import Outside, modprobe, there, until
from unplugs import LOOPS, Row, Told, figures, held, on

Operation = Callable[[FdStream], Awaitable[object]]


async def _in_short_turns(stream: FdStream) -> None:
    with anyio.move_on_after(0.01):
        await stream.receive()


#: What the users of a device do, each on a descriptor of its own.
KINDS: list[list[Operation]] = [
    [FdStream.receive],
    [_in_short_turns],
    [FdStream.receive, FdStream.receive, _in_short_turns],
]


def evdev(outside: Outside, count: int) -> Iterator[Row]:
    modprobe("usbhid", "hid_generic", "evdev")
    yield _cycles(outside, "evdev", "input/event*", count)


def hidraw(outside: Outside, count: int) -> Iterator[Row]:
    modprobe("usbhid", "hid_generic")
    yield _cycles(outside, "hidraw", "hidraw*", count)


def _cycles(outside: Outside, kind: str, nodes: str, count: int) -> Row:
    loops, devices = [*LOOPS], ["tablet", "keyboard"]
    every = [
        on(loops[number % len(loops)], _cycle, outside, devices[number % 2], nodes, KINDS[number // 2 % len(KINDS)])
        for number in range(count)
    ]
    return figures(f"{kind}: unplugged in use", every)


async def _cycle(outside: Outside, device: str, nodes: str, operations: list[Operation]) -> Told:
    before, known = held(), _nodes(nodes)
    await outside.ask("plug", device)
    await until(lambda: _nodes(nodes) - known)
    (path,) = _nodes(nodes) - known
    told: list[float] = []
    async with anyio.create_task_group() as users:
        for operation in operations:
            await users.start(_use, path, operation, told)
        begun = time.monotonic()
        await outside.ask("unplug", device)
        await until(lambda: len(told) == len(operations))
        used = time.process_time()
        await anyio.sleep(0.1)
        busy = (time.process_time() - used) / 0.1
        users.cancel_scope.cancel()
    await until(lambda: not there(path))
    return Told(len(operations), len(told), max(told) - begun, busy, held() - before)


async def _use(path: str, operation: Operation, told: list[float], *, task_status: anyio.abc.TaskStatus[Any]) -> None:
    """Do it until told, which must be by one error, and by the same at once from then on. Then have it open, and wait."""
    async with FdStream(os.open(path, os.O_RDWR | os.O_NONBLOCK)) as stream:
        task_status.started()
        with pytest.raises(anyio.BrokenResourceError):
            while True:
                await operation(stream)
        told.append(time.monotonic())
        with anyio.fail_after(5), pytest.raises(anyio.BrokenResourceError):
            await stream.receive()
        await anyio.sleep_forever()


def _nodes(pattern: str) -> set[str]:
    return {str(path) for path in pathlib.Path("/dev").glob(pattern)}
