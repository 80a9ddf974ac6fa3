"""Descriptors lent to another process, and taken back while it waits in them. Evdev and hidraw: tests/vm/loans.py."""

import contextlib
import errno
import fcntl
import os
import pathlib
import resource
import select
import signal
import socket
import subprocess
import sys
import termios
import tty
from collections.abc import Iterator
from typing import Any

import anyio
import pytest

from asyncrevoke import Revokable, RevokedError
from asyncrevoke.adapters.lend import lend, means_for
from conftest import settle
from ports import as_root, privileged, serial_line, terminal, waits_on

pytestmark = pytest.mark.anyio

#: Reads until that ends, in a duplicate, as a child of it does; then it tries each once more.
BORROWER = """
import os, select, socket, sys
line = socket.socket(fileno=int(sys.argv[1]))
message, (fd,), *_ = socket.recv_fds(line, 100, 1)
copy = os.dup(fd)
os.set_blocking(fd, True)
print(message, fd, flush=True)
def attempt(call, *args):
    try:
        return call(*args)
    except OSError as exc:
        return type(exc).__name__ if exc.errno is None else os.strerror(exc.errno)
while (got := attempt(os.read, fd, 4)) == b"more":
    print("more", flush=True)
for number in fd, copy:
    poll = select.poll()
    poll.register(number, 0)
    print(got, attempt(os.read, number, 100), attempt(os.write, number, b"x"), bool(poll.poll(0)), flush=True)
"""


class Borrower:
    def __init__(self) -> None:
        self.line, theirs = socket.socketpair()
        with theirs:
            self.process = subprocess.Popen(
                [sys.executable, "-ISc", BORROWER, str(theirs.fileno())],
                pass_fds=[theirs.fileno()],
                stdout=subprocess.PIPE,
                text=True,
            )

    def says(self) -> str:
        assert self.process.stdout
        return self.process.stdout.readline()

    def sleeps(self) -> None:
        """Until it waits in a read of what it was lent."""
        message, number = self.says().split()
        assert message == r"b'\x00'"
        self.number = int(number)
        self.waits()

    def waits(self) -> None:
        while not waits_on(str(self.process.pid), self.number):
            os.sched_yield()

    def gets_more(self, far: int) -> None:
        os.write(far, b"more")
        assert self.says() == "more\n"
        self.waits()

    def close(self) -> None:
        self.line.close()
        self.process.kill()
        with self.process:
            pass


@pytest.fixture
def borrower() -> Iterator[Borrower]:
    with contextlib.closing(Borrower()) as borrower:
        yield borrower


@pytest.fixture
def pair() -> Iterator[tuple[socket.socket, socket.socket]]:
    near, far = socket.socketpair()
    with near, far:
        yield near, far


@pytest.mark.parametrize("how", ["loan", "owner", "close"])
async def test_a_socket_is_taken_back_while_its_borrower_reads(
    borrower: Borrower, pair: tuple[socket.socket, socket.socket], how: str
) -> None:
    """Whoever ends the loan: the read ends, and so do all copies; the far end is told."""
    near, far = pair
    alice = Revokable("alice")
    loan = await lend(near.fileno(), to=borrower.line, owner=alice)
    assert (loan.means.name, loan.means.from_all) == ("shutdown", True)
    borrower.sleeps()
    await (loan.revoke() if how == "loan" else alice.revoke() if how == "owner" else loan.aclose())
    assert [borrower.says(), borrower.says()] == ["b'' b'' Broken pipe True\n"] * 2
    assert far.recv(1) == b""
    await alice.aclose()


@privileged
async def test_a_terminal_is_taken_back_while_its_borrower_reads(borrower: Borrower) -> None:
    """By a hang-up, which the lender meets, too."""
    with serial_line() as end:
        fd = os.open(end.path, os.O_RDWR | os.O_NOCTTY)
        async with lend(fd, to=borrower.line) as loan:
            assert (loan.means.name, loan.means.from_all) == ("TIOCVHANGUP", True)
            borrower.sleeps()
        assert [borrower.says(), borrower.says()] == ["b'' b'' Input/output error True\n"] * 2
        assert os.read(fd, 1) == b""
        os.close(fd)


async def test_a_borrower_that_is_stopped_loses_it_all_the_same(
    borrower: Borrower, pair: tuple[socket.socket, socket.socket]
) -> None:
    """It need not run for that."""
    loan = await lend(pair[0].fileno(), to=borrower.line)
    borrower.sleeps()
    borrower.process.send_signal(signal.SIGSTOP)
    await loan.revoke()
    assert pair[1].recv(1) == b""
    borrower.process.send_signal(signal.SIGCONT)
    assert borrower.says() == "b'' b'' Broken pipe True\n"


async def test_a_borrower_that_is_gone_is_an_error(pair: tuple[socket.socket, socket.socket]) -> None:
    """Nothing was lent, so nothing is taken: the lender goes on using it."""
    near, far = pair
    line, theirs = socket.socketpair()
    theirs.close()
    with line, pytest.raises(BrokenPipeError):
        await lend(near.fileno(), to=line)
    far.send(b"x")
    assert near.recv(1) == b"x"


@pytest.mark.parametrize("how", ["revoke", "cancel"])
async def test_who_has_no_room_for_it_is_waited_for(pair: tuple[socket.socket, socket.socket], how: str) -> None:
    """Until the owner is revoked, or the waiting cancelled; then it was not lent."""
    near, far = pair
    line, theirs = socket.socketpair()
    line.setblocking(False)
    with line, theirs:
        with contextlib.suppress(BlockingIOError):
            while True:
                line.send(bytes(65536))
        async with Revokable("owner") as owner, anyio.create_task_group() as tasks:
            told: list[BaseException] = []

            async def borrow() -> None:
                try:
                    await lend(near.fileno(), to=line, owner=owner)
                except RevokedError as exc:
                    told.append(exc)

            tasks.start_soon(borrow)
            await settle()
            if how == "revoke":
                await owner.revoke()
            else:
                tasks.cancel_scope.cancel()
        assert len(told) == (how == "revoke")
        far.send(b"x")
        assert near.recv(1) == b"x"


async def test_what_the_kernel_has_not_taken_back_is_said(
    pair: tuple[socket.socket, socket.socket], borrower: Borrower, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Whoever awaits the revocation is told: nothing is promised that is not so."""
    monkeypatch.setattr(socket.socket, "shutdown", lambda *_: None)
    loan = await lend(pair[0].fileno(), to=borrower.line)
    with pytest.RaisesGroup(pytest.RaisesExc(OSError, match="shutdown has not taken it back")):
        await loan.revoke()


@pytest.mark.parametrize(
    ("what", "number", "words"),
    [
        ("file", errno.EOPNOTSUPP, "SIGBUS in the borrower, which can prevent it"),
        ("folder", errno.EOPNOTSUPP, "lend a socket, and copy"),
        ("pipe", errno.EOPNOTSUPP, "cannot take a pipe back: relay it"),
        ("/dev/null", errno.EOPNOTSUPP, "'mem' back"),
        ("/dev/ptmx", errno.EOPNOTSUPP, "lend its slave"),
    ],
)
async def test_what_cannot_be_taken_back_is_not_lent(
    what: str, number: int, words: str, tmp_path: pathlib.Path, borrower: Borrower
) -> None:
    """The error gives the reason."""
    (tmp_path / "file").touch()
    (tmp_path / "folder").mkdir()
    access = os.O_RDONLY if what == "folder" else os.O_RDWR
    fds: list[int] = [*os.pipe()] if what == "pipe" else [os.open(tmp_path / what, access | os.O_NOCTTY)]
    try:
        with pytest.raises(OSError, match=words) as caught:
            await lend(fds[0], to=borrower.line)
        assert caught.value.errno == number
    finally:
        for fd in fds:
            os.close(fd)


@as_root
@pytest.mark.parametrize("number", [errno.EPERM])
def test_a_terminal_that_may_not_be_hung_up_is_not_lent(number: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """It says who may."""

    def ioctl(*_: Any) -> None:
        raise OSError(number, os.strerror(number))

    with serial_line() as end, open(end.path, "rb", buffering=0) as file:  # noqa: PTH123
        monkeypatch.setattr(fcntl, "ioctl", ioctl)
        with pytest.raises(PermissionError, match="only root may hang up"):
            means_for(file.fileno())


async def test_a_message_goes_with_it(pair: tuple[socket.socket, socket.socket]) -> None:
    """And there has to be one, or nothing is sent."""
    with pytest.raises(ValueError, match="message is empty"):
        lend(0, to=pair[0], message=b"")
    near, far = socket.socketpair()
    with near, far:
        async with lend(near.fileno(), to=pair[0], message=b"take this"):
            message, fds, *_ = socket.recv_fds(pair[1], 100, 1)
            assert (message, len(fds)) == (b"take this", 1)
            os.close(fds[0])


# -- relayed --


class Line:
    """What is lent, and its far end.

    :ivar dead: what the borrower's read answers that waited, then a read, a write and whether poll(2) tells of it
    """

    def __init__(self, near: int, far: int, dead: str) -> None:
        self.near = near
        self.far = far
        self.dead = f"{dead} True\n"


@pytest.fixture(params=["pipe", "socket", "terminal"])
def line(request: pytest.FixtureRequest) -> Iterator[Line]:
    if request.param == "pipe":
        line = Line(*os.pipe(), "b'' b'' Bad file descriptor")
    elif request.param == "socket":
        near, far = socket.socketpair()
        line = Line(near.detach(), far.detach(), "b'' b'' Broken pipe")
    else:
        far_end, near_end = os.openpty()
        tty.setraw(near_end)
        line = Line(near_end, far_end, "Input/output error b'' Input/output error")
    try:
        yield line
    finally:
        os.close(line.near)
        with contextlib.suppress(OSError):
            os.close(line.far)


async def test_what_is_relayed_is_taken_from_the_borrower_alone(borrower: Borrower, line: Line) -> None:
    """Its copies are dead; the lender, who needs no privilege, goes on. The loan says that it is a relay, and its cost."""
    loan = await lend(line.near, to=borrower.line, relay=True)
    assert (loan.means.name, loan.means.from_all) == ("relay", False)
    assert "each byte twice more" in loan.means.cost
    borrower.sleeps()
    for _ in range(3):
        borrower.gets_more(line.far)
    await loan.revoke()
    assert [borrower.says(), borrower.says()] == [line.dead] * 2
    os.write(line.far, b"mine")
    assert os.read(line.near, 100) == b"mine"


async def test_the_end_of_what_is_relayed_reaches_the_borrower(borrower: Borrower, line: Line) -> None:
    """And what is taken back then is dead already."""
    async with lend(line.near, to=borrower.line, relay=True):
        borrower.sleeps()
        borrower.gets_more(line.far)
        os.close(line.far)
        assert [borrower.says(), borrower.says()] == [line.dead] * 2


#: Writes to what it was lent, until that is an error.
WRITER = """
import os, socket, sys
message, (fd,), *_ = socket.recv_fds(socket.socket(fileno=0), 100, 1)
os.set_blocking(fd, True)
print(flush=True)
try:
    while True:
        os.write(fd, b"x" * 1000)
except OSError as exc:
    print(exc.strerror, flush=True)
"""


@pytest.mark.parametrize("reads", [True, False])
@pytest.mark.parametrize("what", ["pipe", "socket"])
async def test_nothing_of_the_borrowers_comes_after_the_report(what: str, reads: bool) -> None:
    """However much it writes, and whether anybody reads that or the relay waits for room."""
    if what == "pipe":
        far, near = os.pipe()
    else:
        far, near = (end.detach() for end in socket.socketpair())
    os.set_blocking(far, False)
    to, theirs = socket.socketpair()
    command = [sys.executable, "-ISc", WRITER]
    with to, theirs, subprocess.Popen(command, stdin=theirs.fileno(), stdout=-1, text=True) as writer:
        loan = await lend(near, to=to, relay=True)
        assert writer.stdout
        assert writer.stdout.readline() == "\n"
        room = select.poll()
        room.register(near, select.POLLOUT)
        while room.poll(0):  # until it is full
            if reads and select.select([far], [], [], 0)[0]:
                assert set(os.read(far, 100)) == set(b"x")
                break
            await anyio.sleep(0)
        await loan.revoke()
        assert writer.stdout.readline() == "Broken pipe\n"
        with contextlib.suppress(BlockingIOError):
            while os.read(far, 1 << 20):
                pass
        os.write(near, b"mine")
        assert os.read(far, 100) == b"mine"
    for fd in near, far:
        os.close(fd)


async def test_a_borrower_of_a_relay_that_reads_nothing_holds_nobody_up(borrower: Borrower, line: Line) -> None:
    """The relay waits for room, and is taken back all the same."""
    borrower.process.send_signal(signal.SIGSTOP)
    os.set_blocking(line.far, False)
    loan = await lend(line.near, to=borrower.line, relay=True)
    room = select.poll()
    room.register(line.far, select.POLLOUT)
    while room.poll(0):
        with contextlib.suppress(BlockingIOError):
            os.write(line.far, bytes(100))
        await anyio.sleep(0)
    await loan.revoke()
    borrower.process.send_signal(signal.SIGCONT)


async def test_a_terminal_that_reads_nothing_where_there_is_nothing_is_not_over() -> None:
    """As pyserial sets its ports, by a VMIN of 0."""
    to, theirs = socket.socketpair()
    with terminal() as (far, near), to, theirs:
        settings = termios.tcgetattr(near)
        settings[6][termios.VMIN] = 0
        termios.tcsetattr(near, termios.TCSANOW, settings)
        async with lend(near, to=to, relay=True):
            _, fds, *_ = socket.recv_fds(theirs, 100, 1)
            for _ in range(3):
                os.write(fds[0], b"ask")
                assert os.read(far, 100) == b"ask"
                os.write(far, b"answer")
                assert os.read(fds[0], 100) == b"answer"
            os.close(fds[0])


@contextlib.contextmanager
def room_for(descriptors: int) -> Iterator[None]:
    """No more than so many."""
    limits = resource.getrlimit(resource.RLIMIT_NOFILE)
    free = os.dup(0)
    os.close(free)
    resource.setrlimit(resource.RLIMIT_NOFILE, (free + descriptors, limits[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, limits)


@pytest.mark.parametrize("room", range(4))
async def test_a_relay_for_which_there_is_no_room_leaves_nothing(
    room: int, pair: tuple[socket.socket, socket.socket]
) -> None:
    """It takes four descriptors."""
    with room_for(room), pytest.raises(OSError, match="Too many open files"):
        await lend(pair[0].fileno(), to=pair[0], relay=True)


@pytest.mark.parametrize("relay", [False, True])
async def test_a_process_that_has_no_room_for_descriptors_takes_back_what_it_has_lent(
    borrower: Borrower, pair: tuple[socket.socket, socket.socket], relay: bool
) -> None:
    """It needs none for that."""
    loan = await lend(pair[0].fileno(), to=borrower.line, relay=relay)
    borrower.sleeps()
    with room_for(0):
        await loan.revoke()
    assert borrower.says() == "b'' b'' Broken pipe True\n"


async def test_a_socket_whose_borrower_ends_what_it_sends_still_receives() -> None:
    """To say so is no end of the loan."""
    near, far = socket.socketpair()
    to, theirs = socket.socketpair()
    with near, far, to, theirs:
        async with lend(near.fileno(), to=to, relay=True):
            _, fds, *_ = socket.recv_fds(theirs, 100, 1)
            with socket.socket(fileno=fds[0]) as lent:
                lent.send(b"ask")
                lent.shutdown(socket.SHUT_WR)
                assert far.recv(100) == b"ask"
                far.send(b"answer")
                assert lent.recv(100) == b"answer"


def test_a_loan_has_a_name_before_it_is_lent(pair: tuple[socket.socket, socket.socket]) -> None:
    """As where it is shown because it failed."""
    assert repr(lend(0, to=pair[0], name="pad")) == "<Loan 'pad'>"


async def test_a_relay_that_is_not_lent_takes_no_byte(pair: tuple[socket.socket, socket.socket]) -> None:
    """Its borrower is gone, so the lender reads it."""
    near, far = pair
    line, theirs = socket.socketpair()
    theirs.close()
    far.send(b"x")
    with line, pytest.raises(BrokenPipeError):
        await lend(near.fileno(), to=line, relay=True)
    assert near.recv(1) == b"x"


@pytest.mark.parametrize("what", ["file", "/dev/null", "/dev/ptmx", "datagrams"])
async def test_what_has_more_than_bytes_is_not_relayed(what: str, tmp_path: pathlib.Path, borrower: Borrower) -> None:
    """The error says what can be."""
    (tmp_path / "file").touch()
    if what == "datagrams":
        fd = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM).detach()
    else:
        fd = os.open(tmp_path / what, os.O_RDWR | os.O_NOCTTY)
    try:
        with pytest.raises(OSError, match="only pipes, terminals and stream sockets") as caught:
            await lend(fd, to=borrower.line, relay=True)
        assert caught.value.errno == errno.EOPNOTSUPP
    finally:
        os.close(fd)


def test_memory_that_its_borrower_has_sealed_cannot_be_cut_off() -> None:
    """So it is not lent: nothing could be promised."""
    memory = os.memfd_create("lent", os.MFD_ALLOW_SEALING)
    try:
        os.ftruncate(memory, 4096)
        with pytest.raises(OSError, match="which can prevent it by a seal"):
            means_for(memory)
        theirs = os.dup(memory)
        fcntl.fcntl(theirs, fcntl.F_ADD_SEALS, fcntl.F_SEAL_SHRINK)
        os.close(theirs)
        with pytest.raises(PermissionError):
            os.ftruncate(memory, 0)
    finally:
        os.close(memory)
