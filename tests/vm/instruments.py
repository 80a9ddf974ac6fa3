"""An instrument on USB (USB-TMC) of a real kernel, whose gadgets play it: messages, and an unplug in flight."""

import functools
import pathlib
import subprocess
import sys
import time
from collections.abc import Iterator
from typing import Any

import anyio
import anyio.lowlevel
import pytest

import devices
from asyncrevoke.adapters.device import InstrumentStream
from devices import nothing_leaks, opened, plugged
from outside import modprobe
from unplugs import Row

_BYTES = bytes(range(251))
GADGET = pathlib.Path("/sys/kernel/config/usb_gadget/instrument")


@functools.cache
def player() -> subprocess.Popen[bytes]:
    """The program that plays it. There is one, as long as the machine runs."""
    modprobe("usbtmc", "dummy_hcd", "libcomposite", "usb_f_fs")
    for part in "strings/0x409", "configs/c.1", "functions/ffs.instrument":
        (GADGET / part).mkdir(parents=True)
    (GADGET / "idVendor").write_text("0x0525")
    (GADGET / "idProduct").write_text("0xa4a8")
    (GADGET / "configs/c.1/ffs.instrument").symlink_to(GADGET / "functions/ffs.instrument")
    folder = pathlib.Path("/run/instrument")
    folder.mkdir()
    subprocess.run(["mount", "-t", "functionfs", "instrument", folder], check=True)
    program = pathlib.Path(__file__).with_name("instrument.py")
    playing = subprocess.Popen([sys.executable, "-ISu", program, folder], stdin=subprocess.PIPE, stdout=subprocess.PIPE)
    assert playing.stdout
    assert playing.stdout.readline() == b"ready\n"
    return playing


class Instrument:
    """Its identity is its serial number."""

    kind = InstrumentStream

    def __init__(self, identity: str) -> None:
        self.identity = identity
        self._is_plugged = False

    def plug(self) -> None:
        (GADGET / "strings/0x409/serialnumber").write_text(self.identity)
        (GADGET / "UDC").write_text("dummy_udc.0")
        self._is_plugged = True
        self._wait(there=True)

    def unplug(self) -> None:
        if self._is_plugged:
            self._is_plugged = False
            (GADGET / "UDC").write_text("\n")
            self._wait(there=False)

    def _wait(self, *, there: bool) -> None:
        """The host has heard of it, too."""
        while any(pathlib.Path("/dev").glob("usbtmc*")) != there:
            time.sleep(0.005)

    def feed(self, number: int = 0) -> None:
        """It says something unasked."""
        line = player().stdin
        assert line
        line.write(b"%d\n" % number)
        line.flush()

    def said(self, item: Any, number: int = 0) -> bool:
        return bool(item == b"%d" % number)

    messages = 1  # of one feed
    item: Any = b"*RST"


async def each_message_is_whole(make: type[Any], cycles: int) -> str:
    """Whatever its length, and that of the transfers in which it goes; and each user's answer is his."""
    lengths = [1, 4084, 4085, 20000, *([150000] if cycles > 1 else [])]
    async with nothing_leaks(), plugged(make("vm-instrument")) as plug, await opened(plug) as device:
        alice, bob = device.open("alice"), device.open("bob")
        with anyio.fail_after(60):
            for _ in range(cycles):
                await alice.send(b"NAME?")
                assert await alice.receive() == b"ACME,1\n"
                for length in lengths:
                    await bob.send(b"BYTES? %d" % length)
                    assert await bob.receive() == (_BYTES * (length // len(_BYTES) + 1))[:length]
                    await bob.send(b"LENGTH? " + b"x" * length)
                    assert await bob.receive() == b"%d" % length
    return f"{len(lengths)} lengths, up to {max(lengths)} bytes, each way"


async def an_answer_may_take_its_time(make: type[Any], cycles: int) -> str:
    """The loop goes on meanwhile, and others ask the driver; and one that was cancelled is the next one's."""
    async with nothing_leaks(), plugged(make("vm-instrument")) as plug, await opened(plug) as device:
        stream = device.open()
        with anyio.fail_after(60):
            for cycle in range(cycles):
                got: list[bytes] = []

                async def receive(got: list[bytes] = got) -> None:
                    got.append(await stream.receive())

                async with anyio.create_task_group() as cancelled:
                    cancelled.start_soon(receive)
                    await anyio.wait_all_tasks_blocked()
                    cancelled.cancel_scope.cancel()
                async with anyio.create_task_group() as tasks:
                    tasks.start_soon(receive)
                    await anyio.wait_all_tasks_blocked()
                    await stream.send(b"*RST")
                    assert not got
                    plug.feed(cycle)
                assert plug.said(got[0], cycle)
    return f"{cycles} answers"


async def nobody_gets_anothers_answer(make: type[Any], _: int) -> str:
    """So it is not opened for that."""
    async with nothing_leaks(), plugged(make("vm-instrument")) as plug:
        with pytest.raises(OSError, match="do not give fan_out") as refused:
            await opened(plug, fan_out=True)
    return str(refused.value)


async def commands_go_while_an_answer_comes(make: type[Any], cycles: int) -> str:
    """The end of the one does not end the other."""
    async with nothing_leaks(), plugged(make("vm-instrument")) as plug, await opened(plug) as device:
        alice, bob = device.open("alice"), device.open("bob")

        async def ask() -> None:
            for cycle in range(cycles):
                await alice.send(b"LENGTH? " + b"x" * (cycle + 1))

        with anyio.fail_after(120):
            async with anyio.create_task_group() as tasks:
                tasks.start_soon(ask)
                for cycle in range(cycles):
                    assert await bob.receive() == b"%d" % (cycle + 1)
    return f"{cycles} commands"


#: There is one controller, so there is one of them at a time.
SCENARIOS: list[devices.Scenario] = [
    (each_message_is_whole, 5),
    (an_answer_may_take_its_time, 50),
    (commands_go_while_an_answer_comes, 200),
    (devices.replugged, 50),
]
AS_OTHERS: list[devices.Scenario] = [
    (nobody_gets_anothers_answer, 1),
    (devices.grabbed, 1),
    (devices.vanishes_while_it_opens, 30),
    (devices.the_contract, 1),
]


def rows(_: object, count: int) -> Iterator[Row]:
    player()
    yield from devices.rows_of(Instrument, SCENARIOS, count)


def as_others(_: object, count: int) -> Iterator[Row]:
    """What is true of other devices."""
    player()
    yield from devices.rows_of(Instrument, AS_OTHERS, count)
