"""Descriptors lent to another process, and taken back while it waits in them. Evdev and hidraw: tests/vm/loans.py."""

import contextlib
import errno
import fcntl
import os
import pathlib
import socket
import subprocess
import sys
from collections.abc import Iterator
from typing import Any

import anyio
import pytest

from asyncrevoke import Revokable, RevokedError
from asyncrevoke.adapters.lend import lend, means_for
from conftest import settle
from ports import as_root, privileged, serial_line, waits_on

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
while (got := attempt(os.read, fd, 100)) == b"more":
    pass
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
        while not waits_on(str(self.process.pid), int(number)):
            os.sched_yield()

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
    borrower.process.send_signal(19)
    await loan.revoke()
    assert pair[1].recv(1) == b""
    borrower.process.send_signal(18)
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
        ("file", errno.EOPNOTSUPP, "lend a socket, and copy"),
        ("pipe", errno.EOPNOTSUPP, "lend a socket, and copy"),
        ("/dev/null", errno.EOPNOTSUPP, "'mem' back"),
        ("/dev/ptmx", errno.EOPNOTSUPP, "lend its slave"),
    ],
)
async def test_what_cannot_be_taken_back_is_not_lent(
    what: str, number: int, words: str, tmp_path: pathlib.Path, borrower: Borrower
) -> None:
    """The error gives the reason."""
    (tmp_path / "file").touch()
    fds: list[int] = [*os.pipe()] if what == "pipe" else [os.open(tmp_path / what, os.O_RDWR | os.O_NOCTTY)]
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
        with pytest.raises(PermissionError, match="by root alone"):
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
