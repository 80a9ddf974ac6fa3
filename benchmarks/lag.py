"""How long the event loop stands still while a stalled serial port is revoked and released: ``python benchmarks/lag.py``

On a stalled line the kernel takes half a minute to close a port, and as long as the line is stalled to drain it. A pty
cannot be stalled so: here closing and draining are made to take half a second. The probe is a task that wakes every
millisecond; its lag is what it came late at the most.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import time
import tty
from collections.abc import AsyncIterator, Callable, Coroutine
from functools import partial
from unittest import mock

import serial
import serial_asyncio

from asyncrevoke import open_serial

STALLED = 0.5  # seconds


@contextlib.asynccontextmanager
async def probe(who: str) -> AsyncIterator[None]:
    worst = 0.0

    async def wake() -> None:
        nonlocal worst
        while True:
            due = time.perf_counter() + 0.001
            await asyncio.sleep(0.001)
            worst = max(worst, time.perf_counter() - due)

    task = asyncio.create_task(wake())
    await asyncio.sleep(0.1)
    began = time.perf_counter()
    yield
    seconds = time.perf_counter() - began
    await asyncio.sleep(0.01)
    task.cancel()
    print(f"{who:30} {seconds:8.2f} s {1000 * worst:10.1f} ms")


async def ours(path: str, backend: str) -> None:
    device = await open_serial(path, backend=backend)  # type: ignore[arg-type]
    stream = device.open()
    sending = asyncio.create_task(stream.send(bytes(1_000_000)))
    await asyncio.sleep(0.05)
    async with probe(f"asyncrevoke, {backend}"):
        await device.revoke("stalled")
    await asyncio.gather(sending, return_exceptions=True)


async def theirs(path: str) -> None:
    _, writer = await serial_asyncio.open_serial_connection(url=path)
    writer.write(bytes(1_000_000))
    await asyncio.sleep(0.05)
    async with probe("pyserial-asyncio, abort()"):
        writer.transport.abort()
        await writer.wait_closed()


def stalled(call: Callable[..., object]) -> Callable[..., object]:
    def wait(*args: object) -> object:
        time.sleep(STALLED)
        return call(*args)

    return wait


def run(main: Callable[[str], Coroutine[None, None, None]]) -> None:
    cable, port = os.openpty()
    tty.setraw(port)
    with (
        mock.patch.object(serial.Serial, "close", stalled(serial.Serial.close)),
        mock.patch.object(serial.Serial, "flush", stalled(serial.Serial.flush)),
    ):
        asyncio.run(main(os.ttyname(port)))
    os.close(cable)
    os.close(port)


print(f"{'':30} {'revoked in':>10} {'lag':>13}")
for backend in "descriptor", "pyserial-asyncio":
    run(partial(ours, backend=backend))
run(theirs)
