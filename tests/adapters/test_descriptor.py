"""Descriptors: threads in every kind of call, sets of epoll, loops, and numbers that come again."""

import asyncio
import contextlib
import ctypes
import errno
import fcntl
import functools
import os
import pathlib
import platform
import re
import resource
import select
import signal
import socket
import struct
import subprocess
import sys
import threading
import tty
from collections.abc import AsyncIterator, Callable, Iterator
from typing import Any

import anyio
import anyio.lowlevel
import pytest

from asyncrevoke import Revocation, Revokable, RevokedError
from asyncrevoke.adapters.descriptor import Descriptor, descriptor as adapter, sleepers
from asyncrevoke.testing import Subject, check_revokable
from calls import parked, start
from conftest import ROUNDS
from operations import asyncio_only

pytestmark = pytest.mark.anyio

BUFFER = ctypes.create_string_buffer(1 << 20)
libc = ctypes.CDLL(None, use_errno=True)
NUMBERS = sleepers.NUMBERS[platform.machine()]


class Foreign:
    """A thread that knows nothing of us: what its call returned, or the exception it raised."""

    def __init__(self, call: Callable[[], object]) -> None:
        self._call = call
        self.outcome: object = None
        self.thread = threading.Thread(target=self._run, daemon=True)
        self.thread.start()

    def _run(self) -> None:
        try:
            self.outcome = self._call()
        except OSError as exc:
            self.outcome = exc.errno

    async def asleep(self, *calls: str) -> None:
        """Until it sleeps in one of these system calls."""
        task = pathlib.Path(f"/proc/self/task/{self.thread.native_id}")
        numbers = [str(number) for call, number in {**NUMBERS, **EPOLL}.items() if call in calls]
        while (task / "syscall").read_text().split()[0] not in numbers:
            await anyio.lowlevel.checkpoint()

    async def ended(self) -> object:
        while self.thread.is_alive():
            await anyio.lowlevel.checkpoint()
        return self.outcome


EPOLL = {"x86_64": {"epoll_wait": 232, "epoll_pwait": 281}, "aarch64": {"epoll_pwait": 22}}[platform.machine()]


def flood(fd: int) -> None:
    """Write until it fails. A pty that takes no more may make some room a little later, by itself."""
    while True:
        os.write(fd, bytes(4096))


def struct_epoll_event(events: int, data: int) -> bytes:
    return struct.pack("=IQ" if platform.machine() == "x86_64" else "=I4xQ", events, data)


def full(fd: int) -> int:
    """Written to until it takes no more; then it blocks again."""
    os.set_blocking(fd, False)
    with contextlib.suppress(BlockingIOError):
        while True:
            os.write(fd, bytes(4096))
    os.set_blocking(fd, True)
    return fd


@contextlib.contextmanager
def pipe_to_read() -> Iterator[tuple[int, int]]:
    near, far = os.pipe()
    yield near, far
    os.close(far)


@contextlib.contextmanager
def pipe_to_write() -> Iterator[tuple[int, int]]:
    far, near = os.pipe()
    yield near, far
    os.close(far)


@contextlib.contextmanager
def terminal() -> Iterator[tuple[int, int]]:
    far, near = os.openpty()
    tty.setraw(near)
    yield near, far
    os.close(far)


@contextlib.contextmanager
def connection() -> Iterator[tuple[int, int]]:
    near, far = socket.socketpair()
    with far:
        yield near.detach(), far.fileno()


@contextlib.contextmanager
def listener() -> Iterator[tuple[int, int]]:
    server = socket.create_server(("127.0.0.1", 0))
    yield server.detach(), -1


@contextlib.contextmanager
def queue() -> Iterator[tuple[int, int]]:
    name = f"/asyncrevoke-{os.getpid()}".encode()
    near = libc.mq_open(name, os.O_RDWR | os.O_CREAT | os.O_EXCL, 0o600, None)
    libc.mq_unlink(name)
    yield near, -1


@contextlib.contextmanager
def process() -> Iterator[tuple[int, int]]:
    with subprocess.Popen(["sleep", "infinity"]) as child:
        yield os.pidfd_open(child.pid), -1
        child.kill()


Made = Callable[[], contextlib.AbstractContextManager[tuple[int, int]]]


@contextlib.contextmanager
def held(make: Made) -> Iterator[tuple[int, int]]:
    """A descriptor of a holder who closes it at last, and the other side of it."""
    with make() as (fd, far):
        try:
            yield fd, far
        finally:
            os.close(fd)


def in_c(name: str, *arguments: object) -> Callable[[int], int]:
    """The call as a C library makes it: what it returned, or its errno, as a negative number."""

    def call(fd: int) -> int:
        result: int = getattr(libc, name)(fd, *arguments)
        return -ctypes.get_errno() if result < 0 else result

    return call


def sent_in_part(fd: int) -> bool:
    return 0 < in_c("send", BUFFER, len(BUFFER), 0)(fd) < len(BUFFER)


def spliced(fd: int) -> int:
    out, into = os.pipe()
    try:
        return in_c("splice", None, into, None, 10, 0)(fd)
    finally:
        os.close(out)
        os.close(into)


def spliced_into(fd: int) -> int:
    out, into = os.pipe()
    try:
        os.write(into, b"x")
        return in_c("splice", None, full(fd), None, 10, 0)(out)
    finally:
        os.close(out)
        os.close(into)


def vmspliced(fd: int) -> int:
    vector = (ctypes.c_size_t * 2)(ctypes.addressof(BUFFER), 10)
    return in_c("vmsplice", vector, 1, 0)(full(fd))


def queued(fd: int) -> int:
    while not (failed := in_c("mq_timedsend", BUFFER, 10, 0, None)(fd)):
        pass
    return failed


def polled(fd: int) -> int:
    poll = select.poll()
    poll.register(fd, select.POLLPRI)
    ((_, events),) = poll.poll()
    return events


def selected(fd: int, place: int = 0) -> tuple[int, ...]:
    read, write = ([fd] if each == place else [] for each in range(2))
    return tuple(len(found) for found in select.select(read, write, []))


def with_epoll(fd: int) -> int:
    with select.epoll() as epoll:
        epoll.register(fd, select.EPOLLPRI | select.EPOLLET)
        ((_, events),) = epoll.poll()
        return events


SLEEPS: list[Any] = [
    pytest.param(pipe_to_read, lambda fd: os.read(fd, 10), "read", b"", id="read a pipe"),
    pytest.param(terminal, lambda fd: os.read(fd, 10), "read", b"", id="read a terminal"),
    pytest.param(connection, lambda fd: os.read(fd, 10), "read", b"", id="read a socket"),
    pytest.param(pipe_to_read, in_c("read", BUFFER, 10), "read", 0, id="read in C"),
    pytest.param(connection, in_c("recv", BUFFER, 10, 0), "recvfrom", 0, id="recv in C"),
    pytest.param(listener, in_c("accept", None, None), "accept", -errno.EINVAL, id="accept in C"),
    pytest.param(pipe_to_write, flood, "write", errno.EIO, id="write a pipe"),
    pytest.param(terminal, flood, "write", errno.EIO, id="write a terminal"),
    pytest.param(connection, flood, "write", errno.EPIPE, id="write a socket"),
    pytest.param(connection, sent_in_part, "sendto", True, id="send in C, in part"),
    pytest.param(pipe_to_read, spliced, "splice", -errno.EINVAL, id="splice"),
    pytest.param(pipe_to_write, spliced_into, "splice", -errno.EINVAL, id="splice into"),
    pytest.param(pipe_to_write, vmspliced, "vmsplice", -errno.EBADF, id="vmsplice"),
    pytest.param(queue, in_c("mq_timedreceive", BUFFER, 8192, None, None), "mq_timedreceive", -errno.EBADF, id="queue"),
    pytest.param(queue, queued, "mq_timedsend", -errno.EBADF, id="full queue"),
    pytest.param(
        process, lambda fd: os.waitid(os.P_PIDFD, fd, os.WEXITED), "waitid", errno.EBADF, id="wait for a process"
    ),
    pytest.param(connection, polled, "poll ppoll", select.POLLHUP, id="poll a socket"),
    pytest.param(terminal, polled, "poll ppoll", select.POLLERR | select.POLLHUP, id="poll a terminal"),
    pytest.param(terminal, selected, "select pselect6", (1, 0, 0), id="select to read"),
    pytest.param(pipe_to_write, lambda fd: selected(full(fd), 1), "select pselect6", (0, 1, 0), id="select to write"),
    pytest.param(connection, with_epoll, "epoll_wait epoll_pwait", select.EPOLLHUP, id="epoll of a socket"),
    pytest.param(
        terminal, with_epoll, "epoll_wait epoll_pwait", select.EPOLLERR | select.EPOLLHUP, id="epoll of a terminal"
    ),
]


EACH = [
    pytest.param(pipe_to_read, id="pipe"),
    pytest.param(terminal, id="terminal"),
    pytest.param(connection, id="socket"),
]
each = pytest.mark.parametrize("make", EACH)


# -- those who sleep --


@pytest.mark.parametrize(("make", "call", "names", "met"), SLEEPS)
async def test_a_sleeping_thread_wakes_and_meets_the_tombstone(
    make: Made, call: Callable[[int], object], names: str, met: object
) -> None:
    """Whatever call it sleeps in, in Python or in C; and nobody sleeps when the revocation is complete."""
    with held(make) as (fd, _):
        descriptor = Descriptor(fd)
        foreign = Foreign(lambda: call(fd))
        await foreign.asleep(*names.split())
        await descriptor.revoke("unplugged")
        assert sleepers.on(fd) == []
        assert await foreign.ended() == met


async def test_all_who_sleep_on_it_wake() -> None:
    """Twenty at once, who wait for each other inside the kernel; those on other descriptors sleep on."""
    with held(terminal) as (fd, _), held(pipe_to_read) as (other, far):
        descriptor = Descriptor(fd)
        foreign = [Foreign(lambda: os.read(fd, 10)) for _ in range(20)]
        stranger = Foreign(lambda: os.read(other, 10))
        for each in (*foreign, stranger):
            await each.asleep("read")
        await descriptor.revoke()
        assert [await each.ended() for each in foreign] == [b""] * 20
        await stranger.asleep("read")
        os.write(far, b"news")
        assert await stranger.ended() == b"news"


def test_none_is_overlooked_while_others_end(monkeypatch: pytest.MonkeyPatch) -> None:
    """The kernel breaks a listing of threads off where one dies, before it or behind it: until none does."""
    listings = iter([[1, 3], [1, 2, 3], [1, 3, 5], [1, 3, 5], [1, 3, 5, 6]])
    monkeypatch.setattr(pathlib.Path, "iterdir", lambda task: (task / str(each) for each in next(listings)))
    monkeypatch.setattr(pathlib.Path, "read_text", lambda _: "Name:\tThreads:\nThreads:\t3\n")
    assert sleepers._threads() == {1, 3, 5}


async def test_whatever_a_thread_is_called() -> None:
    """Its name stands among the numbers that are read."""

    def called(name: str) -> bytes:
        pathlib.Path("/proc/thread-self/comm").write_text(name)
        return os.read(fd, 10)

    with held(pipe_to_read) as (fd, _):
        foreign = [Foreign(functools.partial(called, name)) for name in ("SigPnd:", "SigBlk:\tx", "\nSigPnd:\tx")]
        for each in foreign:
            await each.asleep("read")
        assert sleepers.unheard(on := sleepers.on(fd), on) == []
        await Descriptor(fd).revoke()
        assert [await each.ended() for each in foreign] == [b""] * 3


def test_a_worker_of_io_uring_is_no_sleeper(monkeypatch: pytest.MonkeyPatch) -> None:
    """It has no stack, and the registers of the thread that it was made by, which may have been in a call on the file."""
    monkeypatch.setattr(sleepers, "_threads", lambda: {1})
    read = f"{NUMBERS['read']} 0x5 0x1000 0xa 0x0 0x0 0x0"
    for stack, found in ("0x7ffc7b7964a8 0x7fc9023162ad", [1]), ("0x0 0x0", []):
        monkeypatch.setattr(pathlib.Path, "read_text", lambda _, stack=stack: f"{read} {stack}")
        assert sleepers.on(5) == found


async def test_who_sleeps_on_the_tombstone_is_not_waited_for() -> None:
    """It has no exceptional conditions, and a pipe that is to be spliced may be empty: they have left the file, though."""
    out, into = os.pipe()
    with held(connection) as (first, _), held(pipe_to_write) as (second, _):
        foreign = [
            Foreign(lambda: select.select([out], [], [first])),
            Foreign(lambda: in_c("splice", None, second, None, 10, 0)(out)),
        ]
        for each, names in zip(foreign, ["select pselect6", "splice"], strict=True):
            await each.asleep(*names.split())
        for fd in first, second:
            await Descriptor(fd).revoke()
        os.close(into)
        assert [await each.ended() for each in foreign] == [([out], [], []), -errno.EINVAL]
    os.close(out)


async def test_an_epoll_set_keeps_what_it_was_told() -> None:
    """Of each set in the process: what its holder wanted to be told, and how; a set that is a copy, or has it no more, too."""
    with held(connection) as (fd, _), select.epoll() as first, select.epoll() as second, select.epoll() as third:
        copy = os.dup(first.fileno())
        descriptor = Descriptor(fd)
        for epoll in (first, second, third):
            epoll.register(fd, 0)
        data = ctypes.create_string_buffer(struct_epoll_event(select.EPOLLIN | select.EPOLLET, 0x123456789ABCDEF))
        assert libc.epoll_ctl(first.fileno(), 3, fd, data) == 0  # EPOLL_CTL_MOD
        third.unregister(fd)
        await descriptor.revoke()
        told = ctypes.create_string_buffer(12 * 10)
        assert libc.epoll_wait(first.fileno(), told, 10, -1) == 1
        assert told.raw.startswith(struct_epoll_event(select.EPOLLIN | select.EPOLLHUP, 0x123456789ABCDEF))
        assert first.poll(0) == []  # by EPOLLET it is told once
        assert second.poll(0) == second.poll(0) == [(fd, select.EPOLLHUP)]
        assert third.poll(0) == []
        second.modify(fd, select.EPOLLOUT)
        second.unregister(fd)
        os.close(copy)


async def test_a_set_forgets_the_number_when_its_holder_closes_it() -> None:
    """As it does with every file; so who comes under the number next begins anew."""
    with select.epoll() as epoll, pipe_to_read() as (idle, _):
        with held(connection) as (fd, _):
            epoll.register(fd, select.EPOLLIN)
            await Descriptor(fd).revoke()
            assert epoll.poll(0) == [(fd, select.EPOLLIN | select.EPOLLHUP)]
        assert epoll.poll(0) == []
        os.dup2(idle, fd)
        epoll.register(fd, select.EPOLLIN)
        assert epoll.poll(0) == []
        os.close(fd)
        os.close(idle)


FORKED = """
import os, select, socket
from asyncrevoke.adapters.descriptor import Descriptor
near, far = socket.socketpair()
with select.epoll() as epoll:
    epoll.register(near, select.EPOLLIN)
    descriptor = Descriptor(near)
    if not (child := os.fork()):
        descriptor.revoke()
        os._exit(near.recv(10) != b"")
    print(os.waitpid(child, 0)[1], epoll.poll(0))
    far.send(b"x")
    print(epoll.poll(0) == [(near.fileno(), select.EPOLLIN)], near.recv(10))
"""


async def test_a_child_takes_away_its_own_number_alone() -> None:
    """It shares the sets of epoll of the process that it was forked from, and the file in them is its parent's."""
    ran = subprocess.run([sys.executable, "-c", FORKED], capture_output=True, text=True, timeout=60)
    assert (ran.stdout, ran.stderr, ran.returncode) == ("0 []\nTrue b'x'\n", "", 0)


async def test_a_number_in_a_set_may_mean_another_file() -> None:
    """A set still has a file that was closed under this number, by a copy: it is left alone."""
    with held(pipe_to_read) as (copy, far), select.epoll() as epoll:
        fd = os.dup(copy)
        epoll.register(fd, select.EPOLLIN)
        os.close(fd)
        near, other = socket.socketpair()
        with other:
            os.dup2(near.detach(), fd)
            await Descriptor(fd).revoke()
            assert epoll.poll(0) == []
            os.write(far, b"x")
            assert epoll.poll(0) == [(fd, select.EPOLLIN)]
            os.close(fd)


async def test_readers_of_the_loop_are_called(anyio_backend: Any) -> None:
    """What the loop watches is woken as well, and reads the end of data."""
    if anyio_backend[0] == "trio":
        with held(terminal) as (fd, _):
            async with anyio.create_task_group() as group:
                waiting = start(group, anyio.wait_readable, fd)
                await anyio.wait_all_tasks_blocked()
                await Descriptor(fd).revoke()
                await waiting.done.wait()
                assert os.read(fd, 10) == b""
        return
    loop = asyncio.get_running_loop()
    with held(terminal) as (fd, _):
        called = anyio.Event()
        loop.add_reader(fd, called.set)
        await Descriptor(fd).revoke()
        await called.wait()
        loop.remove_reader(fd)
        assert os.read(fd, 10) == b""


@pytest.mark.parametrize("make", [pytest.param(connection, id="socket"), pytest.param(terminal, id="terminal")])
async def test_who_blocks_the_signal_meets_the_end_of_the_device(make: Made) -> None:
    """A thread that no signal wakes: the connection is shut down, the terminal hung up."""

    def deaf() -> object:
        signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGURG})
        return os.read(fd, 10)

    with held(make) as (fd, _):
        foreign = Foreign(deaf)
        await foreign.asleep("read")
        await Descriptor(fd).revoke()
        assert await foreign.ended() == b""


async def test_who_cannot_be_woken_is_waited_for() -> None:
    """A pipe has no such end: the revocation is not complete, and says so, until the thread has left."""

    def deaf() -> object:
        signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGURG})
        return os.read(fd, 10)

    with held(pipe_to_read) as (fd, far):
        descriptor = Descriptor(fd, name="pipe")
        foreign = Foreign(deaf)
        await foreign.asleep("read")
        act = descriptor.revoke()
        with anyio.move_on_after(0.2):
            await act
        assert not act.done()
        assert [user.where for user in act.stragglers()] != []
        assert "pipe" in str(act.stragglers()[0])
        os.write(far, b"late")
        await act
        assert await foreign.ended() == b"late"


async def test_a_handler_that_is_taken_away_at_its_first_signal_is_replaced() -> None:
    """Else the signals of the others would mean nothing (SA_RESETHAND); so many that some are later than the check."""
    before, once = ctypes.create_string_buffer(152), ctypes.create_string_buffer(152)
    libc.sigaction(signal.SIGURG, None, before)
    ctypes.c_void_p.from_buffer(once).value = ctypes.cast(libc.getpid, ctypes.c_void_p).value
    ctypes.c_uint.from_buffer(once, 136).value = 0x80000000  # SA_RESETHAND
    try:
        with held(pipe_to_read) as (fd, _):
            foreign = [Foreign(lambda: os.read(fd, 10)) for _ in range(100)]
            for each in foreign:
                await each.asleep("read")
            libc.sigaction(signal.SIGURG, once, None)
            await Descriptor(fd).revoke()
            assert [await each.ended() for each in foreign] == [b""] * 100
    finally:
        libc.sigaction(signal.SIGURG, before, None)


SIGNALS = """
import ctypes, os, signal, sys, threading
from asyncrevoke.adapters.descriptor import sleepers
came = []
libc = ctypes.CDLL(None)
if sys.argv[1] == "python":
    signal.signal(signal.SIGURG, lambda *_: came.append(1))
elif sys.argv[1] == "ignored":
    signal.signal(signal.SIGURG, signal.SIG_IGN)
elif sys.argv[1] == "c":
    handler = ctypes.CFUNCTYPE(None, ctypes.c_int)(came.append)
    libc.signal(signal.SIGURG, handler)
near, far = os.pipe()
polled = (ctypes.c_int * 2)(near, 1)
interrupted = []

def poll():
    while libc.poll(polled, 1, -1) < 0:
        interrupted.append(1)

thread = threading.Thread(target=poll)
thread.start()
while len(interrupted) < 3:
    if threads := sleepers.on(near):
        sleepers.wake(threads)
os.kill(os.getpid(), signal.SIGURG)
os.write(far, b"x")
thread.join()
print(len(came) > 0)
"""


@pytest.mark.parametrize("handler", ["default", "ignored", "python", "c"])
async def test_a_handler_of_the_program_stays(handler: str) -> None:
    """Where SIGURG means something to the program, its own handler is what interrupts; else it means nothing as before."""
    ran = subprocess.run([sys.executable, "-c", SIGNALS, handler], capture_output=True, text=True, timeout=60)
    assert (ran.stdout, ran.stderr, ran.returncode) == (f"{handler in ('python', 'c')}\n", "", 0)


STOPPED = """
import anyio, ctypes, os, select, signal, struct, threading
from asyncrevoke.adapters.descriptor import Descriptor
near, far = os.pipe()
libc = ctypes.CDLL(None)

def poll():  # in C, as a newer Python calls ppoll(2)
    polled = ctypes.create_string_buffer(struct.pack("ihh", near, select.POLLIN, 0), 8)
    while libc.poll(polled, 1, 100_000) < 0:
        pass
    print(struct.unpack("ihh", polled.raw)[2])

async def main():
    descriptor = Descriptor(near)
    thread = threading.Thread(target=poll)
    thread.start()
    print("ready", flush=True)
    input()
    await descriptor.revoke()
    thread.join()

anyio.run(main)
"""


@pytest.mark.skipif("poll" not in NUMBERS, reason="ppoll(2), which is all that there is here, is begun again as itself")
async def test_a_poll_that_sigstop_has_interrupted_is_found() -> None:
    """After SIGCONT the kernel goes on with it by a system call that does not tell on what."""
    with subprocess.Popen(
        [sys.executable, "-c", STOPPED], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    ) as program:
        assert program.stdout is not None
        assert program.stdout.readline() == "ready\n"

        def calls() -> list[str]:
            tasks = pathlib.Path(f"/proc/{program.pid}/task").iterdir()
            return [(task / "syscall").read_text().split()[0] for task in tasks]

        while str(NUMBERS["poll"]) not in calls():
            await anyio.lowlevel.checkpoint()
        program.send_signal(signal.SIGSTOP)
        os.waitid(os.P_PID, program.pid, os.WSTOPPED | os.WNOWAIT)
        program.send_signal(signal.SIGCONT)
        while str(NUMBERS["restart_syscall"]) not in calls():
            await anyio.lowlevel.checkpoint()
        out, _ = program.communicate("go\n", timeout=60)
        assert out == "25\n"  # POLLIN, POLLERR and POLLHUP: the tombstone
        assert program.returncode == 0


@pytest.mark.parametrize("machine", sleepers.NUMBERS)
def test_the_numbers_of_system_calls_are_those_of_the_kernel(machine: str) -> None:
    """As its headers have them, where they are installed."""
    header = {"x86_64": "x86_64-linux-gnu/asm/unistd_64.h", "aarch64": "asm-generic/unistd.h"}[machine]
    file = pathlib.Path("/usr/include") / header
    if not file.exists():
        pytest.skip(f"{file} is not installed")
    known = dict(re.findall(r"#define __NR(?:3264)?_(\w+) (\d+)", file.read_text()))
    assert sleepers.NUMBERS[machine] == {name: int(known[name]) for name in sleepers.NUMBERS[machine]}


async def test_on_another_machine_it_is_not_offered(monkeypatch: pytest.MonkeyPatch) -> None:
    """Where system calls have numbers that are not known, there is an error, and not a descriptor that hangs."""
    monkeypatch.setattr(sleepers, "_NAMES", {})
    with held(pipe_to_read) as (fd, _), pytest.raises(NotImplementedError, match="not known"):
        Descriptor(fd)


async def test_who_blocks_the_signal_is_waited_for_until_it_has_left_the_file() -> None:
    """And not until it takes the signal, which it may never do."""
    go_on = threading.Event()

    def deaf() -> bytes:
        signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGURG})
        data = os.read(near.fileno(), 1)
        go_on.wait()
        return data

    near, far = socket.socketpair()
    with near, far:
        foreign = Foreign(deaf)
        await foreign.asleep("read")
        with anyio.fail_after(10):
            await Descriptor(near).revoke()
        go_on.set()
        assert await foreign.ended() == b""


async def test_who_blocks_the_signal_is_waited_for_until_the_number_is_closed() -> None:
    """It may sleep there for ever, and the number is nobody's then."""

    def deaf() -> bytes:
        signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGURG})
        return os.read(near, 1)

    near, far = os.pipe()
    foreign = Foreign(deaf)
    await foreign.asleep("read")
    act = Descriptor(near).revoke()
    for _ in range(100):
        await anyio.lowlevel.checkpoint()
    assert not act.done()
    os.close(near)
    with anyio.fail_after(10):
        await act
    os.write(far, b"x")
    assert await foreign.ended() == b"x"
    os.close(far)


async def test_who_selects_exceptional_conditions_alone_lets_the_file_go() -> None:
    """The tombstone has none to tell of, so it sleeps on; but not on the file, whose other side sees the end."""
    over, ends = os.pipe()
    near, far = socket.socketpair()
    with near, far:
        foreign = Foreign(lambda: select.select([over], [], [near]))
        await foreign.asleep("select", "pselect6")
        await Descriptor(near).revoke()
        far.settimeout(10)
        assert far.recv(1) == b""
        os.write(ends, b"x")
        assert await foreign.ended() == ([over], [], [])
    os.close(over)
    os.close(ends)


# -- the number --


@each
async def test_the_number_stays_taken_until_its_holder_closes_it(make: Made) -> None:
    """New files come under other numbers; the tombstone answers at once to whatever is done, also if it is to block."""
    with held(make) as (fd, _):
        await Descriptor(fd).revoke()
        others = [os.dup(0) for _ in range(50)]
        assert fd not in others
        for blocking in (True, False):
            os.set_blocking(fd, blocking)
            assert os.read(fd, 10) == b""
            with pytest.raises(OSError, match=r"\[Errno (5|32)\]"):
                os.write(fd, b"x")
        for other in others:
            os.close(other)


@pytest.mark.parametrize("inheritable", [True, False])
async def test_children_inherit_the_number_as_before(inheritable: bool) -> None:
    """Whether it is closed by exec is the holder's decision."""
    with held(pipe_to_read) as (fd, _):
        os.set_inheritable(fd, inheritable)
        await Descriptor(fd).revoke()
        assert os.get_inheritable(fd) is inheritable


async def test_the_file_is_let_go() -> None:
    """When it is complete the file is closed here: its other side sees that."""
    with held(connection) as (fd, far):
        await Descriptor(fd).revoke()
        assert os.read(far, 10) == b""


async def test_what_its_holder_has_closed_is_left_alone() -> None:
    """The number may be free by then, or another's: of the same kind, even of the same terminal."""
    first, near = os.openpty()
    descriptor = Descriptor(first)
    os.close(first)
    await descriptor.revoke()  # it is free
    again, other = os.openpty()
    assert again == first
    descriptor = Descriptor(first)
    os.close(first)
    other_pair = os.openpty()
    assert other_pair[0] == first
    await descriptor.aclose()
    os.write(other_pair[1], b"alive\n")
    assert os.read(first, 10) == b"alive\r\n"
    for fd in (near, other, *other_pair):
        os.close(fd)


async def test_what_comes_under_the_number_while_sets_are_looked_through_is_left_alone(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Its holder closes it in another thread, and opens something else."""
    with pipe_to_write() as (fd, far), pipe_to_read() as (other, _):
        descriptor = Descriptor(far)

        def meanwhile(*_: int) -> Iterator[tuple[int, bytes]]:
            monkeypatch.undo()
            os.dup2(other, far)
            return iter(())

        monkeypatch.setattr(adapter, "_registrations", meanwhile)
        await descriptor.revoke()
        assert os.path.samestat(os.fstat(far), os.fstat(other))
        os.close(fd)
        os.close(other)


async def test_a_set_that_had_another_file_of_the_inode_keeps_it() -> None:
    """All of eventfd have one: what a copy has kept in a set, under this number, is not this one."""
    with select.epoll() as epoll:
        kept, new = os.eventfd(0), os.eventfd(0)
        number = os.dup(kept)
        epoll.register(number, select.EPOLLIN)
        os.dup2(new, number)
        await Descriptor(number).revoke()
        assert epoll.poll(0) == []
        os.eventfd_write(kept, 1)
        assert epoll.poll(0) == [(number, select.EPOLLIN)]
        for fd in number, kept, new:
            os.close(fd)


async def test_a_stranger_of_the_same_inode_keeps_its_sets() -> None:
    """One that came under the number when its holder had closed it, as each eventfd has the inode of all."""
    number = os.eventfd(0)
    descriptor = Descriptor(number)
    os.close(number)
    assert os.eventfd(1) == number
    with select.epoll() as epoll:
        epoll.register(number, select.EPOLLIN)
        await descriptor.revoke()
        assert epoll.poll(0) == [(number, select.EPOLLIN)]
    os.close(number)


@pytest.mark.parametrize("missing", ["F_DUPFD_QUERY", "kcmp"])
async def test_a_file_is_known_again_on_older_kernels(monkeypatch: pytest.MonkeyPatch, missing: str) -> None:
    """By kcmp(2), where a container does not forbid it; and where nothing tells, a descriptor is refused."""
    monkeypatch.setattr(adapter, "_F_DUPFD_QUERY", 1099)
    with held(pipe_to_read) as (fd, far), held(pipe_to_read) as (other, _):
        if missing == "kcmp":
            monkeypatch.setattr(adapter, "_KCMP", -1)
            with pytest.raises(NotImplementedError, match="told apart"):
                Descriptor(fd)
            return
        if not adapter._same(fd, fd):
            pytest.skip("kcmp(2) is forbidden here")
        copy = os.dup(far)
        descriptors = Descriptor(fd), Descriptor(copy)
        os.dup2(other, copy)
        for each in descriptors:
            await each.revoke()
        assert os.read(fd, 10) == b""
        assert os.path.samestat(os.fstat(copy), os.fstat(other))
        os.close(copy)


async def test_what_may_last_is_done_by_a_thread(tmp_path: pathlib.Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The last close of a line or a connection waits for its output, and each close of a file for its server."""
    done: list[tuple[str, bool]] = []

    def noting(name: str) -> Callable[..., Any]:
        call, loop = getattr(os, name), threading.get_ident()

        def noted(*args: Any) -> Any:
            done.append((name, threading.get_ident() == loop))
            return call(*args)

        return noted

    (tmp_path / "file").write_bytes(b"data")
    with held(connection) as (first, _), (tmp_path / "file").open("rb", buffering=0) as file:
        for name in "close", "dup2":
            monkeypatch.setattr(os, name, noting(name))
        descriptors = Descriptor(first), Descriptor(file)
        os.dup2(0, first)
        done.clear()
        await descriptors[0].revoke()
        assert {where for what, where in done if what == "close"} == {False}
        await descriptors[1].revoke()
        assert {where for what, where in done if what == "dup2"} == {False}
        assert file.read() == b""
        monkeypatch.undo()


@asyncio_only
async def test_from_a_callback_of_the_loop_nobody_waits() -> None:
    """As by `revoke_threadsafe`: there is no task, and the loop goes on while a thread that no signal wakes sleeps on."""

    def deaf() -> object:
        signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGURG})
        return os.read(fd, 10)

    with held(pipe_to_read) as (fd, far):
        descriptor = Descriptor(fd)
        foreign = Foreign(deaf)
        await foreign.asleep("read")
        acts: list[Revocation] = []
        asyncio.get_running_loop().call_soon(lambda: acts.append(descriptor.revoke()))
        while not acts:
            await anyio.lowlevel.checkpoint()
        assert not acts[0].done()
        os.write(far, b"late")
        await acts[0]
        assert await foreign.ended() == b"late"


@each
async def test_during_the_grace_it_works_on(make: Made) -> None:
    """Foreign code goes on until the kick, and is not woken before."""
    with held(make) as (fd, far):
        descriptor = Descriptor(fd)
        async with anyio.create_task_group() as group:
            waiting = start(group, descriptor.lend, lambda fd: os.read(fd, 10))
            await parked(descriptor.handle)
            act = descriptor.revoke("soon", grace=1000)
            os.write(far, b"in time\n")
            await waiting.done.wait()
            assert waiting.outcome == b"in time\n"
            await act
            assert os.read(fd, 10) == b""


async def test_what_is_open_below_is_taken_away_alone() -> None:
    """A handle of a part of the work: the number is buried with the descriptor, and not before."""
    with held(pipe_to_read) as (fd, far):
        descriptor = Descriptor(fd)
        await descriptor.handle.open("part").revoke()
        os.write(far, b"alive")
        assert os.read(fd, 10) == b"alive"
        await descriptor.revoke()
        assert os.read(fd, 10) == b""


def test_without_a_loop_it_is_complete_at_once() -> None:
    """A plain call: who sleeps is waited for in it."""
    with held(pipe_to_read) as (fd, _):
        descriptor = Descriptor(fd)
        foreign = Foreign(lambda: os.read(fd, 10))
        while not sleepers.on(fd):
            pass
        assert descriptor.revoke().done()
        foreign.thread.join()
        assert foreign.outcome == b""


async def round_under_load(number: int) -> set[object]:
    """Three threads, of which one reads what comes; it reports what they met."""
    make, wait = ((terminal, selected), (connection, polled), (pipe_to_read, with_epoll))[number % 3]
    with held(make) as (fd, far):
        descriptor = Descriptor(fd)
        mine = ctypes.create_string_buffer(100)

        def read() -> bytes:
            while (data := os.read(fd, 100)).startswith(b"x"):
                pass
            return data

        foreign = [Foreign(read), Foreign(lambda: wait(fd)), Foreign(lambda: in_c("read", mine, 100)(fd))]
        if number % 2:
            await foreign[0].asleep("read")
        os.write(far, b"x" * (number % 20))
        await descriptor.revoke()
        assert sleepers.on(fd) == []
        outcome, *_ = [await each.ended() for each in foreign]
        assert set(mine.raw) <= set(b"x\0")
        return {outcome}


async def test_rounds_under_load(anyio_backend: Any, tmp_path: pathlib.Path) -> None:
    """Nobody sleeps on, and nobody ever meets a stranger's file, while others open and close without a pause."""
    stranger = tmp_path / "stranger"
    stranger.write_bytes(b"STRANGER" * 1000)
    over = threading.Event()

    def churn() -> None:
        while not over.is_set():
            os.close(os.open(stranger, os.O_RDONLY))

    churning = [Foreign(churn) for _ in range(2)]
    met: set[object] = set()
    try:
        for number in range(ROUNDS if anyio_backend == ("asyncio", {}) else min(ROUNDS, 50)):
            met |= await round_under_load(number)
    finally:
        over.set()
        for each in churning:
            each.thread.join()
    assert met == {b""}


# -- lent --


@each
async def test_it_keeps_the_contract(make: Made) -> None:
    """Which `check_revokable` holds it to."""

    @contextlib.asynccontextmanager
    async def maker() -> AsyncIterator[Subject]:
        owner = Revokable("device")
        with held(make) as (fd, far):
            descriptor = Descriptor(fd, owner=owner)
            yield Subject(
                descriptor.handle,
                lambda: descriptor.lend(lambda fd: os.read(fd, 10)),
                quick=lambda: descriptor.lend(os.fstat),
                feed=lambda: os.write(far, b"news\n"),
                close=descriptor.aclose,
                owner=owner,
                idle=False,
            )

    await check_revokable(maker)


async def test_errors_of_what_it_is_lent_to_come_out() -> None:
    """As they are."""
    with held(pipe_to_read) as (fd, _):
        descriptor = Descriptor(fd)
        with pytest.raises(ZeroDivisionError):
            await descriptor.lend(lambda fd: fd // 0)
        await descriptor.aclose()
        with pytest.raises(anyio.ClosedResourceError):
            await descriptor.lend(os.fstat)


@contextlib.contextmanager
def no_threads(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """No thread can be started."""

    def refused(_: threading.Thread) -> None:
        raise RuntimeError("can't start new thread")

    with monkeypatch.context() as patch:
        patch.setattr(threading.Thread, "start", refused)
        yield


@each
async def test_where_no_thread_can_be_started(monkeypatch: pytest.MonkeyPatch, make: Made) -> None:
    """As at the end of the interpreter: to lend fails, nobody is inside, and those who sleep are woken without one."""
    with held(make) as (fd, _):
        descriptor = Descriptor(fd)
        foreign = Foreign(lambda: os.read(fd, 10))
        await foreign.asleep("read")
        with no_threads(monkeypatch):
            with pytest.raises(OSError, match="can't start new thread"):
                await descriptor.lend(os.fstat)
            await descriptor.revoke()
        assert await foreign.ended() == b""


# -- when the loop is over --


def descriptors_of(fd: int) -> int:
    """How many descriptors of this process mean this file."""
    status, count = os.fstat(fd), 0
    for each in pathlib.Path("/proc/self/fd").iterdir():
        with contextlib.suppress(OSError):
            count += os.path.samestat(each.stat(), status)
    return count


def ended_off_loop() -> None:
    for thread in threading.enumerate():
        if thread.name.startswith("off loop"):
            thread.join()


def test_after_the_loop_the_file_is_kept_until_all_have_left() -> None:
    """Its number is used to end those who block signals, so it is not another file's until then."""

    def deaf() -> object:
        signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGURG})
        return os.read(fd, 10)

    async def main() -> None:
        await foreign.asleep("read")
        Descriptor(fd).revoke()

    with held(pipe_to_read) as (fd, far):
        foreign = Foreign(deaf)
        anyio.run(main)
        assert descriptors_of(far) == 2
        os.write(far, b"late")
        ended_off_loop()
        assert descriptors_of(far) == 1
        foreign.thread.join()


@pytest.mark.parametrize("revoked", ["in the loop", "afterwards"])
def test_who_outlives_the_loop_lets_the_file_go(revoked: str, caplog: pytest.LogCaptureFixture) -> None:
    """A function that goes on when the loop is over is the last one out."""
    over = threading.Event()

    async def main() -> None:
        async with anyio.create_task_group() as group:
            start(group, descriptor.lend, lambda _: over.wait())
            await parked(descriptor.handle)
            if revoked == "in the loop":
                descriptor.revoke()
            group.cancel_scope.cancel()

    with held(pipe_to_read) as (fd, far):
        descriptor = Descriptor(fd)
        anyio.run(main)
        over.set()
        ended_off_loop()
        descriptor.revoke()
        assert descriptor.handle.released
        assert descriptors_of(far) == 1
        assert not caplog.records


@pytest.mark.parametrize("revoked", ["in the loop", "in the next"])
def test_who_outlives_the_loop_is_waited_for_in_the_next(
    anyio_backend: tuple[str, dict[str, Any]], revoked: str
) -> None:
    """The function may go on after its read has ended: the last one out lets go, and the loop that awaits it is told."""
    released: list[int] = []
    owner = Revokable("owner", release=lambda: released.append(threading.get_ident()))
    go_on = threading.Event()

    async def first() -> None:
        async with anyio.create_task_group() as group:
            start(group, descriptor.lend, lambda fd: (os.read(fd, 1), go_on.wait()))
            await parked(descriptor.handle)
            if revoked == "in the loop":
                descriptor.revoke()
            group.cancel_scope.cancel()

    async def second() -> None:
        act = owner.revoke()
        for _ in range(10):
            await anyio.lowlevel.checkpoint()
        assert not act.done()
        go_on.set()
        with anyio.fail_after(10):
            await act

    with held(pipe_to_read) as (fd, far):
        descriptor = Descriptor(fd, owner=owner)
        for main in first, second:
            anyio.run(main, backend=anyio_backend[0], backend_options=anyio_backend[1])
        assert released == [threading.get_ident()]
        assert descriptors_of(far) == 1


# -- bad input --


async def test_what_is_not_open_is_refused() -> None:
    """With its number, and nothing is left behind."""
    near, far = os.pipe()
    os.close(near)
    os.close(far)
    for fd in (near, -1, 1 << 40):
        with pytest.raises(OSError, match=f"descriptor {fd} is not open") as caught:
            Descriptor(fd)
        assert caught.value.errno == errno.EBADF
    with pytest.raises(AttributeError, match="fileno"):
        Descriptor("ttyUSB0")  # type: ignore[arg-type]


def test_numbers_of_another_namespace_are_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    """A /proc that was mounted in another pid namespace numbers threads otherwise."""
    monkeypatch.setattr(os, "getpid", lambda: 1)
    with held(pipe_to_read) as (fd, _), pytest.raises(OSError, match="another pid namespace"):
        Descriptor(fd)


async def test_a_name_of_a_file_is_refused() -> None:
    """Nobody can read what was opened with O_PATH, so there is nothing to take away."""
    fd = os.open("/dev/null", os.O_PATH)
    with pytest.raises(ValueError, match=f"descriptor {fd} was opened with O_PATH"):
        Descriptor(fd)
    os.close(fd)


async def test_without_a_pty_it_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    """With what is missing; a socket needs none."""

    def none_left() -> tuple[int, int]:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(os, "openpty", none_left)
    with held(pipe_to_read) as (fd, _), pytest.raises(OSError, match="no pty for the tombstone"):
        Descriptor(fd)
    with held(connection) as (fd, _):
        await Descriptor(fd).revoke()
        assert os.read(fd, 10) == b""


@contextlib.contextmanager
def none_free(limit: int) -> Iterator[None]:
    """No descriptor can be opened: all below the limit are taken."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    taken: list[int] = []
    try:
        resource.setrlimit(resource.RLIMIT_NOFILE, (limit, hard))
        with contextlib.suppress(OSError):
            while True:
                taken.append(os.dup(0))
        yield
    finally:
        for fd in taken:
            os.close(fd)
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))


@each
async def test_without_a_free_descriptor_it_is_taken_away(make: Made) -> None:
    """One is in reserve, to look for those who sleep; a new one cannot be made then, and says so."""
    with held(make) as (fd, _), select.epoll() as epoll:
        descriptor = Descriptor(fd)
        epoll.register(fd, 0)
        foreign = Foreign(lambda: os.read(fd, 10))
        await foreign.asleep("read")
        with none_free(256):
            with pytest.raises(OSError, match="Too many open files"):
                Descriptor(fd)
            await descriptor.revoke()
        assert await foreign.ended() == b""
        assert epoll.poll(0) != []


@each
async def test_what_cannot_be_looked_for_is_told(make: Made) -> None:
    """Somebody else has taken the one in reserve: the number is buried all the same, and the error raised."""
    low = os.dup(0)
    with held(make) as (fd, _):
        os.dup2(fd, low)
        descriptor = Descriptor(low)
        with none_free(low + 1), pytest.raises(ExceptionGroup) as caught:
            await descriptor.revoke()
        assert caught.group_contains(OSError, match="Too many open files")
        assert os.read(low, 10) == b""
    os.close(low)


async def test_a_number_that_cannot_be_replaced_stays_and_is_told() -> None:
    """The limit of descriptors was lowered below it: what its holder has is as it was, in sets of epoll, too."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    with held(pipe_to_read) as (near, far), select.epoll() as epoll:
        fd = fcntl.fcntl(near, fcntl.F_DUPFD, 200)
        epoll.register(fd, select.EPOLLIN)
        descriptor = Descriptor(fd)
        resource.setrlimit(resource.RLIMIT_NOFILE, (200, hard))
        try:
            with pytest.raises(ExceptionGroup) as caught:
                await descriptor.revoke()
        finally:
            resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))
        assert caught.group_contains(OSError, match="limit of descriptors")
        os.write(far, b"data")
        assert epoll.poll(0) == [(fd, select.EPOLLIN)]
        assert os.read(fd, 10) == b"data"
        os.close(fd)


UNPRIVILEGED = """
import anyio, ctypes, os, threading
from asyncrevoke.adapters.descriptor import Descriptor
prctl, PR_SET_DUMPABLE = ctypes.CDLL(None).prctl, 4
near, far = os.pipe()

async def main():
    await anyio.lowlevel.checkpoint()
    before = Descriptor(near)
    if os.geteuid() == 0:
        os.setgroups([])
        os.setgid(65534)
        os.setuid(65534)
    else:
        prctl(PR_SET_DUMPABLE, 0)
    try:
        Descriptor(near)
    except PermissionError as exc:
        print(exc)
    try:
        await before.revoke()
    except* PermissionError as exc:
        print(*exc.exceptions)
    print(os.read(near, 10))
    prctl(PR_SET_DUMPABLE, 1)
    await Descriptor(far).revoke()

anyio.run(main)
"""


async def test_without_the_right_to_look_into_threads_it_is_refused() -> None:
    """As after setuid(2); one that was made before takes the number away, and says that it could not look."""
    ran = subprocess.run([sys.executable, "-c", UNPRIVILEGED], capture_output=True, text=True, timeout=60)
    assert (ran.stderr, ran.returncode) == ("", 0)
    assert re.fullmatch(
        r"\[Errno 13\] Permission denied: '/proc/thread-self/syscall'\n"
        r"\[Errno 13\] Permission denied: '/proc/self/task/\d+/syscall'\nb''\n",
        ran.stdout,
    )


async def test_what_belongs_to_the_loop_is_refused(anyio_backend: Any) -> None:
    """Its set of epoll, and by what it is woken."""
    owned = [int(file.name) for file in pathlib.Path("/proc/self/fd").iterdir() if is_epoll(file)]
    assert owned
    if anyio_backend[0] == "asyncio" and "use_uvloop" not in anyio_backend[1]:
        loop: Any = asyncio.get_running_loop()
        owned += [loop._ssock.fileno(), loop._csock.fileno()]
    for fd in owned:
        with pytest.raises(ValueError, match=f"descriptor {fd} belongs to an event loop"):
            Descriptor(fd)


def is_epoll(file: pathlib.Path) -> bool:
    try:
        return "eventpoll" in str(file.readlink())
    except OSError:
        return False


async def test_an_owner_that_was_revoked_is_refused() -> None:
    """The number is untouched then."""
    owner = Revokable("device")
    await owner.revoke("unplugged")
    with held(pipe_to_read) as (fd, far):
        with pytest.raises(RevokedError, match="unplugged"):
            Descriptor(fd, owner=owner)
        os.write(far, b"alive")
        assert os.read(fd, 10) == b"alive"
