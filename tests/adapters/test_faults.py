"""Each system call of an opening fails once, as when the machine has no more of something: nothing stays behind."""

import asyncio
import contextlib
import errno
import fcntl
import functools
import os
import pathlib
import select
import socket
import termios
import threading
from collections.abc import Awaitable, Callable
from typing import Any

import pytest
import serialx.platforms.serial_posix
from anyio.abc import AsyncResource
from serial import SerialException

from asyncrevoke import Registry, Revokable, open_device, open_serial
from asyncrevoke.adapters.alsa import Cards
from asyncrevoke.adapters.hotplug import serial_device, watch_devices
from asyncrevoke.adapters.serial.device import BACKENDS
from asyncrevoke.adapters.tty import Tty
from calls import awake
from conftest import settle
from ports import serial_line

pytestmark = pytest.mark.anyio

CALLS: dict[Any, list[str]] = {
    os: ["open", "pipe", "dup", "fstat", "isatty", "set_blocking"],
    fcntl: ["fcntl", "flock", "ioctl"],
    termios: ["tcgetattr", "tcsetattr", "tcflush"],
    select: ["epoll"],
    socket: ["socket"],
    threading.Thread: ["start"],
    asyncio.SelectorEventLoop: ["add_reader"],
    serialx.platforms.serial_posix: ["tcgetattr", "tcsetattr"],
}


class Faults:
    """The `turn`-th of the calls fails, once: as each does where it can fail at all.

    :ivar failed: its name
    """

    def __init__(self, patch: pytest.MonkeyPatch, turn: int, number: int) -> None:
        self._turn = turn
        self._number = number
        self.failed = ""
        for module, names in CALLS.items():
            for name in names:
                patch.setattr(module, name, self._counted(name, getattr(module, name)))

    def _counted(self, name: str, call: Callable[..., Any]) -> Callable[..., Any]:
        @functools.wraps(call)
        def counted(*args: Any, **options: Any) -> Any:
            self._turn -= 1
            if self._turn:
                return call(*args, **options)
            self.failed = name
            if name == "start":
                raise RuntimeError("can't start new thread")
            if name == "isatty":
                return False
            error = termios.error if name.startswith("tc") else OSError
            raise error(self._number, os.strerror(self._number))

        return counted


def held() -> set[str]:
    files = set()
    for entry in pathlib.Path("/proc/self/fd").iterdir():
        with contextlib.suppress(OSError):  # the one that lists
            files.add(f"{entry.name} {entry.readlink()}")
    return files


async def port(backend: str, path: str, owner: Revokable) -> AsyncResource:
    return await open_serial(path, backend=backend, owner=owner)  # type: ignore[arg-type]


async def character(path: str, owner: Revokable) -> AsyncResource:
    return await open_device(path, owner=owner)


async def terminal(path: str, owner: Revokable) -> AsyncResource:
    tty = Tty(path)
    try:
        return await tty.open(also=[owner])
    except BaseException:
        assert tty.node.current.children == ()
        raise


async def events(_: str, owner: Revokable) -> AsyncResource:
    return watch_devices(source="kernel", owner=owner)


async def replugged(path: str, _: Revokable) -> AsyncResource:
    """Its name is on no owner: a generation that is open after a failure would be in the way of the next."""
    devices = serial_device(path, source="kernel", reconnect=False, registry=Registry())
    try:
        await anext(devices)
    except BaseException:
        left = devices.node.current.children
        await devices.aclose()
        assert left == ()
        raise
    return devices


async def sound(path: str, owner: Revokable) -> AsyncResource:
    card = Cards().add(owner=owner)
    try:
        async with await card.device("pcm").open(lambda: os.open(path, os.O_RDWR | os.O_NOCTTY)):
            return card
    finally:
        await card.free()  # which waits until all of its files are closed


OPENINGS: dict[str, Callable[[str, Revokable], Awaitable[AsyncResource]]] = {
    **{backend: functools.partial(port, backend) for backend in BACKENDS},
    **{opening.__name__: opening for opening in (character, terminal, events, replugged, sound)},
}


@pytest.mark.parametrize("number", [errno.EMFILE, errno.ENOMEM, errno.EIO], ids=errno.errorcode.get)
@pytest.mark.parametrize("name", OPENINGS)
async def test_what_is_half_open_is_let_go(
    name: str, number: int, anyio_backend_name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Whichever call fails, it is open all the same, or the one documented error tells why; then nothing is held."""
    if anyio_backend_name == "trio" and name in ("pyserial-asyncio", "serialx"):
        pytest.skip("their transports need asyncio")
    documented = SerialException if name in BACKENDS else OSError
    failed = "the first"
    turn = 0
    async with awake():
        while failed:
            turn += 1
            before = held()
            owner = Revokable("owner")
            error = None  # kept, with all that its frames keep
            with serial_line() as end, monkeypatch.context() as patch:
                faults = Faults(patch, turn, number)
                try:
                    opened = await OPENINGS[name](end.path, owner)
                except documented as exc:
                    error = exc
                else:
                    await opened.aclose()
                failed = faults.failed
            await settle()  # a watch closes its file in the loop's next turns
            assert held() - before == set(), f"{name}: when {failed} failed: {error!r}"
            assert (owner.in_use, owner.children) == (0, ()), f"{name}: when {failed} failed: {error!r}"
            await owner.aclose()
    assert turn > 1
