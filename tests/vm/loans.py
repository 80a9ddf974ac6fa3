"""Lent to another process on a real kernel, and taken back, in full under load: each row of the table in docs/lending.md."""

import contextlib
import ctypes
import errno
import functools
import os
import pathlib
import platform
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections import Counter
from collections.abc import AsyncIterator, Callable, Iterator
from typing import Any, NamedTuple

import anyio

from asyncrevoke.adapters.lend import lend, means_for
from devices import Keyboard, Stick, nothing_leaks, opened, plugged
from outside import modprobe
from unplugs import LOOPS, Row

PAGE = pathlib.Path(__file__).parents[2] / "docs" / "lending.md"
#: Of x86_64: what they wait in, for poll(2) or read(2); and for the next message, if their time was short.
_POLL, _READ, _NEXT = "7", "0", ("45", "47")
#: For each descriptor that it is lent: hands it on to a friend, who waits in a read, and polls a copy, for so many milliseconds.
#: It tells whether it was woken, and what each operation answers from then on; the friend, what its read has answered.
_BORROWER = """
import errno, os, select, signal, socket, sys, time
line = socket.socket(fileno=int(sys.argv[1]))
near, far = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
BITS = {"IN": 1, "PRI": 2, "OUT": 4, "ERR": 8, "HUP": 16, "NVAL": 32}
class WaitsOn(Exception):
    pass
def enough(*_):
    raise WaitsOn
def attempt(call, *args):
    try:
        return "EOF" if call(*args) == b"" else "done"
    except OSError as exc:
        return errno.errorcode[exc.errno]
    except WaitsOn:
        return "waits on"
if not os.fork():
    near.close()
    signal.signal(signal.SIGALRM, enough)
    while (got := socket.recv_fds(far, 100, 1))[0]:
        fd = got[1][0]
        signal.setitimer(signal.ITIMER_REAL, int(got[0]) / 1000)
        said = attempt(os.read, fd, 4096)
        signal.setitimer(signal.ITIMER_REAL, 0)
        line.send(f"friend:{said}".encode())
        os.close(fd)
    os._exit(0)
far.close()
line.send(open("/proc/self/task/%d/children" % os.getpid()).read().encode())
while (lent := socket.recv_fds(line, 100, 1))[0]:
    fd = lent[1][0]
    os.set_blocking(fd, True)
    copy = os.dup(fd)
    socket.send_fds(near, [lent[0]], [fd])
    poll = select.poll()
    poll.register(copy, 0)
    line.send(b"has it:")
    patience, since = int(lent[0]), time.monotonic()
    poll.poll(patience)
    woken = time.monotonic() - since < patience / 1000
    line.recv(100)
    poll.register(copy, sum(BITS.values()))
    said = attempt(os.read, fd, 4096), attempt(os.write, fd, bytes(24))
    bits = dict(poll.poll(0))[copy]
    polled = " ".join(name for name, bit in BITS.items() if bits & bit)
    line.send(f"borrower:{'woken' if woken else 'waits on'}, {', '.join(said)}, {polled}".encode())
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


def _pipe_to_read() -> tuple[int, int]:
    reads, writes = os.pipe()
    return writes, reads


#: What there is to lend, and whether it is relayed.
KINDS: dict[str, tuple[Callable[[], contextlib.AbstractAsyncContextManager[Next]], bool]] = {
    "evdev": (functools.partial(_device, Keyboard), False),
    "hidraw": (functools.partial(_device, Stick), False),
    "terminal": (functools.partial(_line, os.openpty), False),
    "socket": (functools.partial(_line, _sockets), False),
    "pipe, to read": (functools.partial(_line, _pipe_to_read), True),
    "pipe, to write": (functools.partial(_line, os.pipe), True),
    "terminal, relayed": (functools.partial(_line, os.openpty), True),
    "socket, relayed": (functools.partial(_line, _sockets), True),
}


def on_the_page() -> dict[str, list[str]]:
    """By what is lent: by which means it is taken back, since when, and what is answered then."""
    rows = [
        [word.strip() for word in line.split("|")[1:-2]] for line in PAGE.read_text().splitlines() if line[:2] == "| "
    ]
    return {kind: words for kind, *words in rows[2:]}


def rows(_: object, count: int) -> Iterator[Row]:
    modprobe("evdev", "uinput", "uhid", "hid_generic")
    page = on_the_page()
    assert page.keys() == {*KINDS, "mounted entry"}
    for kind in KINDS:
        means, since, *answers = page[kind]
        begun = time.monotonic()
        told = Counter[str]()
        used = 0
        with _load() if count > 1 else contextlib.nullcontext():  # in the short form the machine has enough to do
            for number, loop in enumerate(LOOPS.values()):
                if rounds := len(range(number, count, len(LOOPS))):
                    anyio.run(_lent, kind, rounds, told, **loop)
                    used += 1
        right = {
            f"{means}: {', '.join(answers)}": count,
            f"{means}, while it is stopped: {', '.join(answers[2:])}": used,
            f"{means}, when it was killed: {answers[0]}": used,
        }
        if [*map(int, since.split("."))] > [*map(int, platform.release().split(".")[:2])]:
            right = {f"this kernel has no {means}": used}
        yield {
            "scenario": f"lent and taken back: {kind}",
            "times": sum(told.values()),
            "right": "; ".join(f"{answer}: {times}" for answer, times in told.items()),
            "took": f"{time.monotonic() - begun:.1f} s",
            "ok": told == right,
        }
    yield _kept()


@contextlib.contextmanager
def _load() -> Iterator[None]:
    """Two programs that want all of both processors."""
    with contextlib.ExitStack() as busy:
        for _ in range(2):
            program = busy.enter_context(subprocess.Popen([sys.executable, "-ISc", "while True: pass"]))
            busy.callback(program.kill)
        yield


async def _lent(kind: str, count: int, told: Counter[str]) -> None:
    """What the borrower has is dead when the revocation has been awaited; or it is refused."""
    near, far = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    async with nothing_leaks(), KINDS[kind][0]() as another:
        with near, far:
            command = [sys.executable, "-ISc", _BORROWER, str(far.fileno())]
            with subprocess.Popen(command, pass_fds=[far.fileno()]) as borrower:
                far.close()
                theirs = _Theirs(near, borrower.pid, int(near.recv(100)))
                try:
                    for _ in range(count):
                        said = await _lend_and_take_back(kind, another(), theirs)
                        told[f"{said['means']}: {said['friend']}, {said['borrower']}"] += 1
                    said = await _lend_and_take_back(kind, another(), theirs, signal.SIGSTOP)
                    told[f"{said['means']}, while it is stopped: {said['borrower'].partition(', ')[2]}"] += 1
                    said = await _lend_and_take_back(kind, another(), theirs, signal.SIGKILL)
                    told[f"{said['means']}, when it was killed: {said['friend']}"] += 1
                except OSError as exc:
                    if exc.errno != errno.EOPNOTSUPP:
                        raise
                    told[(exc.strerror or "").partition(":")[0]] += 1
                finally:
                    near.close()


class _Theirs(NamedTuple):
    """The borrower, to which the line leads, and its friend, who talks on it, too."""

    line: socket.socket
    borrower: int
    friend: int


async def _lend_and_take_back(kind: str, fd: int, theirs: _Theirs, number: int = 0) -> dict[str, str]:
    """The means, and what they have met. The borrower gets a signal before."""
    line, borrower, friend = theirs
    relay = KINDS[kind][1]
    loan = await lend(fd, to=line, message=b"20000" if relay or means_for(fd).wakes else b"300", relay=relay)
    said = {"means": loan.means.name}
    _hear(line, said, "has it")
    _until_in(borrower, _POLL, *_NEXT)
    _until_in(friend, _READ, *_NEXT)
    os.kill(borrower, number)
    await loan.revoke("needed elsewhere")
    if number != signal.SIGKILL:
        os.kill(borrower, signal.SIGCONT)
        line.send(b"it is taken")
        _hear(line, said, "borrower")
    _hear(line, said, "friend")
    return said


def _until_in(process: int, *calls: str) -> None:
    while pathlib.Path(f"/proc/{process}/syscall").read_text().split()[0] not in calls:
        os.sched_yield()


def _hear(line: socket.socket, said: dict[str, str], who: str) -> None:
    """What they have said, until that one has."""
    while who not in said:
        name, words = line.recv(1000).decode().split(":", 1)
        said[name] = words


# -- taken by the command --

_SERVER = """
import socket, sys
with socket.socket(socket.AF_UNIX) as listener:
    listener.bind(sys.argv[1])
    listener.listen()
    print(flush=True)
    sys.stdin.read()
"""


def _kept() -> Row:
    """Yama keeps what a process has from others without CAP_SYS_PTRACE, unless they are its parents."""
    drop = functools.partial(ctypes.CDLL(None).prctl, 24, 19, 0, 0, 0)  # PR_CAPBSET_DROP
    scope = pathlib.Path("/proc/sys/kernel/yama/ptrace_scope")
    with tempfile.TemporaryDirectory() as folder:
        path = f"{folder}/server"
        command = [sys.executable, "-ISc", _SERVER, path]
        with subprocess.Popen(command, stdin=-1, stdout=-1, preexec_fn=drop) as server:  # noqa: PLW1509  # there are none
            assert server.stdout
            assert server.stdout.readline() == b"\n"
            said = []
            for strict in "1", "0":
                scope.write_text(strict)
                command = [sys.executable, "-m", "asyncrevoke", "revoke", "--kernel", "--yes", path]
                done = subprocess.run(command, capture_output=True, text=True, preexec_fn=drop)
                said.append((done.stderr or done.stdout).splitlines()[-1].replace(f"{path}", "PATH"))
            server.communicate()
    return {
        "scenario": "revoke --kernel, where Yama forbids it, or not",
        "times": 2,
        "right": "; ".join(said),
        "ok": said[0].startswith(
            f"asyncrevoke: PATH: process {server.pid} keeps it: you may not take files from it. Run this as root"
        )
        and said[1] == "PATH is taken away from all of them by shutdown",
    }
