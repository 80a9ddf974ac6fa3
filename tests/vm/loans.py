"""Lent to another process on a real kernel, and taken back under load: each row of the table of `asyncrevoke.adapters.lend`."""

import contextlib
import errno
import functools
import os
import pathlib
import socket
import subprocess
import sys
import time
from collections import Counter
from collections.abc import AsyncIterator, Callable, Iterator
from typing import Any

import anyio

from asyncrevoke.adapters.lend import lend, means_for
from devices import Keyboard, Stick, nothing_leaks, opened, plugged
from outside import modprobe
from unplugs import LOOPS, Row

#: Of x86_64: what the borrower waits in, for poll(2), and for recvfrom(2) if its time was short.
_WAITS = "7", "45"
#: For each descriptor that it is lent: waits in a copy, for so many milliseconds; whether it is woken, and what each
#: operation answers from then on.
_BORROWER = """
import os, select, socket, sys, time
line = socket.socket(fileno=int(sys.argv[1]))
def attempt(call, *args):
    try:
        return call(*args)
    except OSError as exc:
        return exc.strerror
while (lent := socket.recv_fds(line, 100, 1))[0]:
    fd = lent[1][0]
    copy = os.dup(fd)
    poll = select.poll()
    poll.register(copy, select.POLLIN)
    line.send(b"has it")
    patience, since = int(lent[0]), time.monotonic()
    poll.poll(patience)
    woken = time.monotonic() - since < patience / 1000
    line.recv(100)
    said = attempt(os.read, fd, 4096), attempt(os.write, fd, bytes(24)), f"poll {poll.poll(0)[0][1]:#x}"
    line.send(repr(("woken" if woken else "not woken", *said)).encode())
    os.close(fd)
    os.close(copy)
"""
#: What is to be lent next.
Next = Callable[[], int]


@contextlib.asynccontextmanager
async def _device(make: type[Any]) -> AsyncIterator[Next]:
    """The lender goes on with it."""
    async with plugged(make(f"vm-{make.__name__}-lent")) as plug, await opened(plug) as device:
        yield device.fileno
        plug.feed()
        stream = device.open()
        for _ in range(plug.messages):
            assert plug.said(await stream.receive())


@contextlib.asynccontextmanager
async def _line(pair: Callable[[], tuple[int, int]]) -> AsyncIterator[Next]:
    """The lender loses it, too, so each time there is another."""
    with contextlib.ExitStack() as ends:

        def another() -> int:
            ends.close()
            near, far = pair()
            for each in near, far:
                ends.callback(os.close, each)
            return far

        yield another


def _sockets() -> tuple[int, int]:
    near, far = socket.socketpair()
    return near.detach(), far.detach()


KINDS: dict[str, Callable[[], contextlib.AbstractAsyncContextManager[Next]]] = {
    "evdev": functools.partial(_device, Keyboard),
    "hidraw": functools.partial(_device, Stick),
    "terminal": functools.partial(_line, os.openpty),
    "socket": functools.partial(_line, _sockets),
}


def rows(_: object, count: int) -> Iterator[Row]:
    modprobe("evdev", "uinput", "uhid", "hid_generic")
    for kind in KINDS:
        begun = time.monotonic()
        answers = Counter[str]()
        with _load():
            for loop in LOOPS.values():
                anyio.run(_lent, kind, count, answers, **loop)
        yield {
            "scenario": f"lent and taken back: {kind}",
            "times": count * len(LOOPS),
            "right": "; ".join(f"{answer}: {times}" for answer, times in answers.items()),
            "took": f"{time.monotonic() - begun:.1f} s",
            "ok": len(answers) == 1,
        }


@contextlib.contextmanager
def _load() -> Iterator[None]:
    """Two programs that want all of both processors."""
    with contextlib.ExitStack() as busy:
        for _ in range(2):
            program = busy.enter_context(subprocess.Popen([sys.executable, "-ISc", "while True: pass"]))
            busy.callback(program.kill)
        yield


async def _lent(kind: str, count: int, answers: Counter[str]) -> None:
    """What the borrower has is dead when the revocation has been awaited; or it is refused."""
    near, far = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    async with nothing_leaks(), KINDS[kind]() as another:
        with near, far:
            command = [sys.executable, "-ISc", _BORROWER, str(far.fileno())]
            with subprocess.Popen(command, pass_fds=[far.fileno()]) as borrower:
                far.close()
                try:
                    for _ in range(count):
                        answers[await _lend_and_take_back(another(), near, borrower.pid)] += 1
                except OSError as exc:
                    if exc.errno != errno.EOPNOTSUPP:
                        raise
                    answers[str(exc)] += count
                finally:
                    near.close()


async def _lend_and_take_back(fd: int, line: socket.socket, borrower: int) -> str:
    """The means, and what the borrower has met."""
    loan = await lend(fd, to=line, message=b"20000" if means_for(fd).wakes else b"300")
    assert line.recv(100) == b"has it"
    asleep = pathlib.Path(f"/proc/{borrower}/syscall")
    while asleep.read_text().split()[0] not in _WAITS:
        os.sched_yield()
    await loan.revoke("needed elsewhere")
    line.send(b"it is taken")
    said = line.recv(1000).decode()
    assert said.startswith("('woken'" if loan.means.wakes else "('not woken'"), said
    return f"{loan.means.name}: {said}"
