"""The rows TTY and PTY_MASTER_CLOSED of `answers`, cell by cell: the bare kernel's answer, and ours, are the table's."""

import contextlib
import errno
import fcntl
import mmap
import os
import select
import struct
import termios
import threading
import time
from collections.abc import Awaitable, Callable, Iterator
from typing import Any

import anyio
import pytest

from asyncrevoke import FdStream, RevokedError, answers
from asyncrevoke.adapters.tty import TIOCVHANGUP, Tty
from asyncrevoke.answers import Answer
from calls import parked, start
from conftest import settle
from ports import privileged, terminal, waits_on

pytestmark = pytest.mark.anyio


@contextlib.contextmanager
def opened(path: str) -> Iterator[int]:
    fd = os.open(path, os.O_RDWR | os.O_NOCTTY)
    try:
        yield fd
    finally:
        os.close(fd)


# -- the two columns: what kills, what is done, and what it answers --

PROFILES = {"TTY": answers.TTY, "PTY_MASTER_CLOSED": answers.PTY_MASTER_CLOSED}
IN, OUT, ERR, HUP = select.POLLIN, select.POLLOUT, select.POLLERR, select.POLLHUP
BIG = bytes(1_000_000)
SHORT = "a short count"


def kill(row: str, master: int, other: int) -> None:
    if row == "TTY":
        fcntl.ioctl(other, TIOCVHANGUP)
    else:
        os.close(master)


def poll(fd: int, asked: int) -> int:
    """By epoll, whose wait names a descriptor in /proc; its bits are those of poll."""
    with select.epoll() as poller:
        poller.register(fd, asked)
        return dict(poller.poll(5))[fd]


def spgrp(fd: int) -> object:
    return fcntl.ioctl(fd, termios.TIOCSPGRP, struct.pack("i", os.getpgrp()))


def reopened(fd: int, path: str) -> Answer:
    """A fresh open works, has its own settings, and leaves the dead file dead."""
    with opened(path) as new:
        assert termios.tcgetattr(new)[3] & termios.ICANON
        assert os.read(fd, 1) == b""
        return Answer.NEXT


#: What is done to the bare descriptor.
BARE: dict[str, Callable[[int], object]] = {
    "read": lambda fd: os.read(fd, 100),
    "write": lambda fd: os.write(fd, b"x"),
    "write_nothing": lambda fd: os.write(fd, b""),
    "write_stopped": lambda fd: os.write(fd, b"x"),
    "write_partly": lambda fd: SHORT if 0 < os.write(fd, BIG) < len(BIG) else "not short",
    "poll": lambda fd: poll(fd, IN | OUT | select.POLLPRI),
    "ioctl": lambda fd: fcntl.ioctl(fd, termios.TCGETS, bytes(64)),
    "ioctl_TIOCSPGRP": spgrp,
    "mmap": lambda fd: mmap.mmap(fd, mmap.PAGESIZE),
}

#: The same, done to our stream.
OURS: dict[str, Callable[[FdStream], Awaitable[object]]] = {
    "read": lambda stream: stream.receive(),
    "write": lambda stream: stream.send(b"x"),
    "write_nothing": lambda stream: stream.send(b""),
    "write_stopped": lambda stream: stream.send(b"x"),
    "write_partly": lambda stream: stream.send(BIG),
}

#: What a stream has no operation for is data of the profile.
DATA: dict[str, Callable[[answers.Answers], object]] = {
    "poll": lambda profile: profile.poll,
    "ioctl": lambda profile: profile.ioctl,
    "ioctl_TIOCSPGRP": lambda _: errno.ENOTTY,
    "mmap": lambda profile: profile.mmap,
}

#: The table of the design: rows and cells.
TABLE: dict[str, list[tuple[str, str, object]]] = {
    "TTY": [("read", "in_flight", Answer.EOF), ("open", "in_flight", Answer.NEXT)],
    "PTY_MASTER_CLOSED": [("read", "in_flight", errno.EIO), ("open", "in_flight", errno.ENOENT)],
}
ALIKE: list[tuple[str, str, object]] = [
    ("write_stopped", "in_flight", errno.EIO),
    ("write_partly", "in_flight", SHORT),
    ("read", "later", Answer.EOF),
    ("write", "later", errno.EIO),
    ("write_nothing", "later", errno.EIO),
    ("poll", "later", IN | OUT | ERR | HUP),
    ("ioctl", "later", errno.EIO),
    ("ioctl_TIOCSPGRP", "later", errno.ENOTTY),
    ("mmap", "later", errno.ENODEV),
    ("open", "later", errno.ENOENT),
]


def cells(*operations: str) -> pytest.MarkDecorator:
    """One test for each cell of these operations, with its row."""
    return pytest.mark.parametrize(
        ("row", "operation", "when", "answer"),
        [
            pytest.param(row, *cell, id=f"{row}-{cell[0]}-{cell[1]}", marks=[privileged] if row == "TTY" else [])
            for row in TABLE
            for cell in TABLE[row] + ALIKE
            if cell[0] in operations
        ],
    )


def told(call: Callable[[], object]) -> object:
    try:
        got = call()
    except OSError as exc:
        return exc.errno
    return Answer.EOF if got == b"" else got


async def told_by_us(operation: Awaitable[object]) -> object:
    try:
        return await operation
    except anyio.EndOfStream:
        return Answer.EOF
    except RevokedError as exc:
        return SHORT if exc.sent and exc.sent < len(BIG) else exc.errno
    except OSError as exc:
        return exc.errno


def bare(row: str, call: Callable[[int], object], when: str, *, stopped: bool = False, waits: int = 0) -> object:
    """Do it on a slave of a pty, and kill that before or meanwhile, by another descriptor.

    :param waits: the descriptor that the call sleeps on, if it is not the slave
    """
    with terminal() as (master, slave), opened(os.ttyname(slave)) as other:
        if stopped:
            termios.tcflow(other, termios.TCOOFF)
        if when == "later":
            kill(row, master, other)
            return told(lambda: call(slave))
        result: list[object] = []
        thread = threading.Thread(target=lambda: result.append(told(lambda: call(slave))), daemon=True)
        thread.start()
        give_up = time.monotonic() + 5
        while not waits_on(f"self/task/{thread.native_id}", waits or slave) and time.monotonic() < give_up:
            time.sleep(0)
        assert not result, "it did not wait"
        kill(row, master, other)
        thread.join(5)
        assert not thread.is_alive(), "the kernel left it waiting"
        return result[0]


@cells(*OURS)
async def test_stream_answers_as_the_kernel(row: str, operation: str, when: str, answer: object) -> None:
    """Reads and writes, running or later, on a descriptor that the kernel kills and a stream that we revoke."""
    stopped = operation == "write_stopped"
    assert bare(row, BARE[operation], when, stopped=stopped) == answer
    with terminal() as (_master, slave), opened(os.ttyname(slave)) as other, anyio.fail_after(10):
        if stopped:
            termios.tcflow(other, termios.TCOOFF)
        stream = FdStream(slave, answers=PROFILES[row])
        if when == "in_flight":
            async with anyio.create_task_group() as group:
                call = start(group, told_by_us, OURS[operation](stream))
                await parked(stream.handle)
                assert not call.done.is_set()
                await stream.revoke()
            assert call.outcome == answer
        else:
            await stream.revoke()
            assert [await told_by_us(OURS[operation](stream)) for _ in range(2)] == [answer, answer]


@cells(*DATA)
def test_profile_has_the_kernels_answer(row: str, operation: str, when: str, answer: object) -> None:
    """What is asked of descriptors only: the data of the profile is what a dead descriptor answers."""
    assert bare(row, BARE[operation], when) == answer
    assert DATA[operation](PROFILES[row]) == answer


@pytest.mark.parametrize("row", [pytest.param("TTY", marks=privileged), "PTY_MASTER_CLOSED"])
def test_who_polls_is_woken_with_the_mask(row: str) -> None:
    """A poller that waits for input gets of the mask what it asked for, and the errors."""
    with select.epoll() as poller:

        def wait(fd: int) -> int:
            poller.register(fd, IN)
            return dict(poller.poll(5))[fd]

        assert bare(row, wait, "in_flight", waits=poller.fileno()) == PROFILES[row].poll & (IN | ERR | HUP)


@cells("open")
async def test_opening_answers_as_the_kernel(row: str, operation: str, when: str, answer: object) -> None:
    """A hung-up terminal opens as the next generation, also while the old file is open; one that is gone is ENOENT."""
    profile = getattr(PROFILES[row], operation)
    assert getattr(profile, when) == answer
    with terminal() as (master, slave):
        path = os.ttyname(slave)
        with opened(path) as other:
            kill(row, master, other)
            if when == "later" and row == "TTY":
                os.close(master)
            assert told(lambda: reopened(slave, path)) == answer

    with terminal() as (master, slave), anyio.fail_after(10):
        async with Tty(os.ttyname(slave), answers=PROFILES[row]) as tty, anyio.create_task_group() as group:
            old = await tty.open()
            assert old.handle.start_using()
            if row == "TTY":
                tty.hangup()
            if answer == errno.ENOENT:
                os.close(master)
                old.handle.stop_using()
            opening = start(group, told_by_us, tty.open("next"))
            await settle()
            if answer is Answer.NEXT:
                assert not opening.done.is_set()  # as the kernel's waits for the lock
                old.handle.stop_using()
            await opening.done.wait()
            if answer is Answer.NEXT:
                new: Any = opening.outcome
                assert (old.handle.generation, new.handle.generation) == (1, 2)
                assert await told_by_us(old.receive()) is Answer.EOF
                await new.send(b"live")
                assert os.read(master, 100) == b"live"
            else:
                assert opening.outcome == answer
