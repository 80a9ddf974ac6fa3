"""Descriptors: threads in every kind of call, sets of epoll, loops, and numbers that come again."""

from __future__ import annotations

import asyncio
import contextlib
import ctypes
import errno
import fcntl
import os
import pathlib
import platform
import re
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

from asyncrevoke import Revokable, RevokedError
from asyncrevoke.adapters import sleepers
from asyncrevoke.adapters.descriptor import Descriptor
from asyncrevoke.testing import Subject, check_revokable
from test_stream import parked, start

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
        numbers = [str(EPOLL[call] if call in EPOLL else NUMBERS[call]) for call in calls]
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
    pytest.param(connection, polled, "poll", select.POLLHUP, id="poll a socket"),
    pytest.param(terminal, polled, "poll", select.POLLERR | select.POLLHUP, id="poll a terminal"),
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


SIGNALS = """
import ctypes, os, signal, sys, threading
from asyncrevoke.adapters import sleepers
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
import anyio, os, select, signal, threading
from asyncrevoke.adapters.descriptor import Descriptor
near, far = os.pipe()

def poll():
    poll = select.poll()
    poll.register(near, select.POLLIN)
    print(poll.poll(100_000))

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

        while str(NUMBERS.get("poll", NUMBERS["ppoll"])) not in calls():
            await anyio.lowlevel.checkpoint()
        program.send_signal(signal.SIGSTOP)
        os.waitid(os.P_PID, program.pid, os.WSTOPPED | os.WNOWAIT)
        program.send_signal(signal.SIGCONT)
        while str(NUMBERS["restart_syscall"]) not in calls():
            await anyio.lowlevel.checkpoint()
        out, _ = program.communicate("go\n", timeout=60)
        assert re.fullmatch(r"\[\(\d+, 25\)\]\n", out)  # POLLIN, POLLERR and POLLHUP: the tombstone
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


async def test_who_is_told_of_signals_of_the_file_stays() -> None:
    """To know the file again leaves nothing behind in it."""
    with held(connection) as (fd, _):
        copy = os.dup(fd)
        fcntl.fcntl(fd, fcntl.F_SETOWN, os.getppid())
        await Descriptor(fd).revoke()
        assert fcntl.fcntl(copy, fcntl.F_GETOWN) == os.getppid()
        os.close(copy)


async def test_one_tombstone_serves_all() -> None:
    """A hundred terminals that are taken away need one further one, of those that a machine has."""
    with contextlib.ExitStack() as stack:
        fds = [stack.enter_context(held(terminal))[0] for _ in range(100)]
        for fd in fds:
            await Descriptor(fd).revoke()
        assert len({os.fstat(fd).st_ino for fd in fds}) == 1


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


async def test_thousand_rounds_under_load(anyio_backend: Any, tmp_path: pathlib.Path) -> None:
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
        for number in range(1000 if anyio_backend == ("asyncio", {}) else 50):
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
