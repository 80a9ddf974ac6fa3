"""`FdStream`: waits that are ours, over sockets, pipes and terminals. What it shares with others is in test_stream.py."""

import asyncio
import contextlib
import errno
import fcntl
import functools
import gc
import os
import pty
import socket
import sys
import termios
import tty
from collections.abc import AsyncIterator, Callable
from typing import Any

import anyio
import anyio.lowlevel
import pytest
import trio.testing
from anyio.streams.file import FileStreamAttribute

from asyncrevoke import FdStream, Revokable, RevokedError, answers
from asyncrevoke._core.loop import READY
from asyncrevoke.answers import Answer, Answers
from asyncrevoke.lowlevel import Fd, os_errors
from calls import awake, parked, start
from conftest import BACKENDS, settle
from operations import asyncio_only
from ports import terminal
from sockets import BIG, read_on, socket_stream
from test_stream import Counted, TrioFace, answered, clog, on_trio, suspensions

pytestmark = pytest.mark.anyio

TIOCVHANGUP = 0x5437  # asm-generic/ioctls.h; `termios` has no name for it
IP_RECVERR = 11  # linux/in.h; `socket` has no name for it

on_asyncio = pytest.mark.parametrize("anyio_backend", [each for each in BACKENDS if each.id != "trio"])


@contextlib.asynccontextmanager
async def reading_pipe(owner: Revokable | None = None, **options: Any) -> AsyncIterator[tuple[FdStream, int]]:
    """A stream over the reading end, and the writing end."""
    r, w = os.pipe()
    async with FdStream(r, owner, **options) as stream:
        try:
            yield stream, w
        finally:
            os.close(w)


def is_open(fd: int) -> bool:
    try:
        os.fstat(fd)
    except OSError:
        return False
    return True


class Ready:
    """Counts the readiness callbacks that an asyncio loop makes; `first` is called right before one, `then` right behind it."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.count = 0
        self.registered = 0
        self.first: Callable[[], object] = lambda: None
        self.then: Callable[[], object] = lambda: None
        loop = asyncio.get_running_loop()
        for name in ("add_reader", "add_writer"):
            monkeypatch.setattr(loop, name, functools.partial(self._add, getattr(loop, name)))

    def _add(self, add: Callable[..., None], fd: int, callback: Callable[..., object], *args: object) -> None:
        def counted() -> None:
            self.count += 1
            first, self.first = self.first, lambda: None
            first()
            callback(*args)
            then, self.then = self.then, lambda: None
            then()

        self.registered += 1
        add(fd, counted)


# -- taking over a descriptor --


async def test_further_parents_take_a_stream_without_an_owner() -> None:
    """Whichever goes first."""
    token = Revokable("token")
    near, far = socket.socketpair()
    with far:
        stream = FdStream(near.detach(), also=[token])
        await token.revoke("the token is gone")
        with pytest.raises(RevokedError, match="the token is gone"):
            await stream.receive()


@pytest.mark.parametrize("fd", [-1, 1 << 20, 1 << 40, -(1 << 40)])
async def test_a_descriptor_that_is_not_open_is_named(fd: int) -> None:
    """EBADF with the number in the message, and nothing is opened below the owner."""
    owner = Revokable("device")
    with pytest.raises(OSError, match=f"descriptor {fd} ") as caught:
        FdStream(fd, owner)
    assert caught.value.errno == errno.EBADF
    assert not owner.in_use
    assert not isinstance(caught.value, RevokedError)


async def test_a_closed_descriptor_is_named() -> None:
    """Also one that was open a moment ago."""
    r, w = os.pipe()
    os.close(r)
    os.close(w)
    with pytest.raises(OSError, match=f"descriptor {r} is not open"):
        FdStream(r)


async def test_a_failed_constructor_leaves_the_descriptor_alone() -> None:
    """If the owner refuses, the descriptor is open, blocking as it was, and dropping the remains closes nothing."""
    r, w = os.pipe()
    dead = Revokable("device")
    dead.revoke()
    try:
        with pytest.raises(RevokedError):
            FdStream(r, dead)
        gc.collect()
        assert is_open(r)
        assert os.get_blocking(r)
    finally:
        os.close(r)
        os.close(w)


async def test_it_tells_its_descriptor() -> None:
    """By fileno() and typed attribute as long as it has one, then -1; the default name has the number."""
    async with reading_pipe() as (stream, _):
        number = stream.fileno()
        assert is_open(number)
        assert not os.get_blocking(number)
        assert stream.extra(FileStreamAttribute.fileno) == number
        assert stream.handle.name == f"fd {number}"
        await stream.revoke()
        assert stream.fileno() == stream.extra(FileStreamAttribute.fileno) == -1
        assert not is_open(number)


async def test_what_closes_it_can_be_chosen() -> None:
    """`close` is the release: called once, with the descriptor, when the last has left."""
    r, w = os.pipe()
    closed: list[int] = []
    stream = FdStream(r, close=closed.append)
    async with anyio.create_task_group() as group:
        receiving = start(group, stream.receive)
        await parked(stream.handle)
        act = stream.revoke()
        assert closed == []
        await act
        await receiving.done.wait()
        await stream.aclose()
    assert closed == [r]
    assert is_open(r)
    os.close(r)
    os.close(w)


@pytest.mark.parametrize("used", [True, False])
async def test_dropped_unclosed_it_warns_and_closes(used: bool) -> None:
    """ResourceWarning names it, and the descriptor is closed all the same, even if it is registered with the loop."""
    r, w = os.pipe()

    async def use(stream: FdStream) -> None:
        async with anyio.create_task_group() as group:
            receiving = start(group, stream.receive)
            await parked(stream.handle)
            os.write(w, b"x")
            await receiving.done.wait()
            assert receiving.outcome == b"x"

    stream = FdStream(r)
    if used:
        await use(stream)
    del stream
    with pytest.warns(ResourceWarning, match=f"'fd {r}' live.*was never closed") as caught:
        gc.collect()
    assert caught[0].filename == sys.modules[Fd.__module__].__file__
    await settle()
    closed = not is_open(r)
    os.close(w)
    if not closed:
        os.close(r)
    assert closed


@pytest.mark.filterwarnings("error::ResourceWarning", "ignore::pytest.PytestUnraisableExceptionWarning")
async def test_dropped_unclosed_it_closes_where_warnings_are_errors() -> None:
    """An interpreter run with ``-W error`` leaks no descriptor."""
    r, w = os.pipe()
    FdStream(r)
    gc.collect()
    await settle()
    closed = not is_open(r)
    os.close(w)
    if not closed:
        os.close(r)
    assert closed


# -- the system call comes first --


async def test_what_can_be_had_at_once_suspends_where_others_must_have_a_turn(anyio_backend_name: str) -> None:
    """With data or room there, an operation is its system call: it never enters the handle. One of 33 is a turn of the loop."""
    each = 1 if anyio_backend_name == "trio" else READY + 1
    async with socket_stream() as (stream, peer):
        for call in (stream.receive, functools.partial(stream.send, b"x"), functools.partial(stream.send_some, b"x")):
            suspended = 0
            for _ in range(10 * each):
                if call == stream.receive:
                    peer.sendall(b"x")
                counted = Counted(call())
                await counted
                suspended += counted.suspended
                if call != stream.receive:
                    assert peer.recv(10)
            assert suspended in (10, 11)


@on_asyncio
async def test_a_stream_that_nobody_waits_for_costs_the_loop_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    """The callback that stays registered from one wait to the next removes itself when it finds nobody waiting."""
    ready = Ready(monkeypatch)
    async with socket_stream() as (stream, peer), anyio.create_task_group() as group:
        receiving = start(group, stream.receive)
        await parked(stream.handle)
        peer.sendall(b"x")
        await receiving.done.wait()
        sending = start(group, stream.send, BIG)
        await parked(stream.handle)
        await read_on(peer, len(BIG))
        await sending.done.wait()
        await settle(50)
        count = ready.count
        peer.sendall(b"data that nobody waits for")
        for _ in range(50):  # with room to write, too
            os.sched_yield()
            await settle(2)
        assert ready.count - count <= 4, "once or twice for each direction, and then no more"
        assert await stream.receive() == b"data that nobody waits for"
        receiving = start(group, stream.receive)  # and it is registered again
        await parked(stream.handle)
        peer.sendall(b"x")
        await receiving.done.wait()
        assert receiving.outcome == b"x"


@on_asyncio
async def test_the_registration_is_kept_from_one_wait_to_the_next(monkeypatch: pytest.MonkeyPatch) -> None:
    """A reader that comes back each time costs the loop one registration."""
    ready = Ready(monkeypatch)
    async with socket_stream() as (stream, peer), anyio.create_task_group() as group:
        got: list[bytes] = []

        async def read() -> None:
            while len(got) < 5:
                got.append(await stream.receive())

        reading = start(group, read)
        for count in range(5):
            await parked(stream.handle)
            peer.sendall(b"x")
            while len(got) == count:
                await anyio.lowlevel.checkpoint()
        await reading.done.wait()
        assert got == [b"x"] * 5
        assert ready.registered == 1


@on_asyncio
async def test_a_dead_peer_that_nobody_waits_for_costs_the_loop_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    """A hang-up is reported by the kernel for ever: only to those who wait."""
    ready = Ready(monkeypatch)
    async with socket_stream() as (stream, peer), anyio.create_task_group() as group:
        receiving = start(group, stream.receive)
        await parked(stream.handle)
        peer.close()
        await receiving.done.wait()
        assert isinstance(receiving.outcome, anyio.EndOfStream)
        await settle(50)
        assert ready.count <= 3


@on_asyncio
@pytest.mark.parametrize("kicked", [False, True])
async def test_a_wake_up_without_data_is_no_result(monkeypatch: pytest.MonkeyPatch, kicked: bool) -> None:
    """Somebody else was faster at the same pipe, again and again: the reader waits on, or ends if the kick came then, too."""
    ready = Ready(monkeypatch)
    async with reading_pipe() as (stream, w), anyio.create_task_group() as group:

        def be_faster() -> None:
            stolen.append(os.read(stream.fileno(), 100))
            if kicked:
                stream.revoke()

        stolen: list[bytes] = []
        receiving = start(group, stream.receive)
        await parked(stream.handle)
        for _ in range(1 if kicked else 4):
            ready.first = be_faster
            os.write(w, b"stolen")
            await settle()
            assert stolen.pop() == b"stolen"
        assert receiving.done.is_set() == kicked
        os.write(w, b"mine") if not kicked else None
        await receiving.done.wait()
        assert receiving.outcome == b"mine" if not kicked else receiving.error.in_flight


@pytest.mark.parametrize("data_first", [True, False])
async def test_a_receive_cancelled_in_the_step_of_its_data_loses_none(data_first: bool) -> None:
    """Whatever woke it first, the data is in the kernel until a receive returns it."""
    async with socket_stream() as (stream, peer), anyio.create_task_group() as group:
        receiving = start(group, stream.receive)
        await parked(stream.handle)
        if data_first:
            peer.sendall(b"data")
        receiving.scope.cancel()
        if not data_first:
            peer.sendall(b"data")
        await receiving.done.wait()
        assert receiving.outcome is None
        assert await stream.receive() == b"data"


@on_asyncio
async def test_a_task_cancelled_right_behind_the_read_of_its_data_loses_none(monkeypatch: pytest.MonkeyPatch) -> None:
    """The loop has read it already, and the task never gets it: the next receive does."""
    ready = Ready(monkeypatch)
    async with socket_stream() as (stream, peer):
        receiving = asyncio.ensure_future(stream.receive())
        await parked(stream.handle)
        ready.then = receiving.cancel
        peer.sendall(b"data")
        with pytest.raises(asyncio.CancelledError):
            await receiving
        assert await stream.receive() == b"data"


async def test_data_in_the_step_of_the_kick_disturbs_nothing() -> None:
    """The reader was woken by the kick; that the descriptor is ready as well is nobody's business any more."""
    async with socket_stream() as (stream, peer), anyio.create_task_group() as group:
        receiving = start(group, stream.receive)
        await parked(stream.handle)
        act = stream.revoke()
        peer.sendall(b"too late")
        await receiving.done.wait()
        assert receiving.error.in_flight
        await act


# -- writing --


async def test_a_kicked_write_tells_what_was_accepted() -> None:
    """`sent` is the number of bytes that the peer can read, also in the message; None of them is lost."""
    async with socket_stream(name="port") as (stream, peer), anyio.create_task_group() as group:
        sending = start(group, stream.send, BIG)
        await parked(stream.handle)
        await stream.revoke("unplugged")
        await sending.done.wait()
        sent = sending.error.sent
        assert sent
        assert str(sending.error) == f"'port' was revoked: unplugged; {sent} bytes were accepted before"
        assert len(await read_on(peer)) == sent
        with pytest.raises(RevokedError) as caught:
            await stream.send(b"x")
        assert caught.value.sent == 0


async def test_a_kicked_write_counts_all_its_parts() -> None:
    """`sent` is the sum over as many waits as there were."""
    async with socket_stream() as (stream, peer), anyio.create_task_group() as group:
        sending = start(group, stream.send, BIG)
        await parked(stream.handle)
        read = len(await read_on(peer, 1 << 20))
        await settle()
        await stream.revoke()
        await sending.done.wait()
        assert read >= 1 << 20
        assert sending.error.sent == read + len(await read_on(peer))


async def test_send_some_sends_what_is_accepted() -> None:
    """It returns the number of bytes, waits for room for at least one, and says 0 for nothing."""
    async with socket_stream() as (stream, peer), anyio.create_task_group() as group:
        sent = await stream.send_some(BIG)
        assert 0 < sent < len(BIG)
        waiting = start(group, stream.send_some, memoryview(b"more"))
        await parked(stream.handle)
        with pytest.raises(anyio.BusyResourceError, match="writing to"):
            await stream.send(b"x")
        assert len(await read_on(peer, sent)) == sent
        await waiting.done.wait()
        assert waiting.outcome == 4
        assert await read_on(peer, 4) == b"more"
        assert await stream.send_some(b"") == 0


async def test_send_some_fails_as_send_does() -> None:
    """Kicked, refused, by a profile, after its own close."""
    async with socket_stream(answers=answers.ALSA) as (stream, peer), anyio.create_task_group() as group:
        clog(stream.fileno())
        waiting = start(group, stream.send_some, b"x")
        await parked(stream.handle)
        await stream.revoke()
        await waiting.done.wait()
        assert (waiting.error.in_flight, waiting.error.errno) == (True, errno.EBADFD)
        with pytest.raises(RevokedError) as caught:
            await stream.send_some(b"x")
        assert (caught.value.in_flight, caught.value.errno) == (False, errno.ENODEV)
        await stream.aclose()
        with pytest.raises(anyio.ClosedResourceError):
            await stream.send_some(b"x")
        await read_on(peer)


async def test_send_some_after_the_end_is_closed() -> None:
    """After send_eof, as `send`: this side closed it, nothing is broken."""
    async with socket_stream() as (stream, _):
        await stream.send_eof()
        with pytest.raises(anyio.ClosedResourceError):
            await stream.send_some(b"x")


async def test_what_has_no_end_of_data_says_so() -> None:
    """send_eof on a pipe is NotImplementedError that names it, and it is as open as before."""
    r, w = os.pipe()
    async with FdStream(w, name="pipe") as stream:
        with pytest.raises(NotImplementedError, match="'pipe'"):
            await stream.send_eof()
        await stream.send(b"x")
        assert os.read(r, 10) == b"x"
        await stream.revoke()
        with pytest.raises(RevokedError):
            await stream.send_eof()
    with pytest.raises(anyio.ClosedResourceError):
        await stream.send_eof()
    os.close(r)


async def test_the_end_of_data_of_a_broken_socket_is_broken() -> None:
    """send_eof without a connection: the OSError is the cause, no descriptor is left."""
    sock = socket.socket()
    async with FdStream(sock.detach()) as stream:
        with pytest.raises(anyio.BrokenResourceError) as caught:
            await stream.send_eof()
        assert isinstance(caught.value.__cause__, OSError)
        assert caught.value.__cause__.errno == errno.ENOTCONN


async def test_any_bytes_like_item_is_sent_by_its_bytes() -> None:
    """A memoryview of wider items counts in bytes, as the kernel does, also where it is sent in parts."""
    data = bytes(range(256)) * 8192
    async with socket_stream() as (stream, peer), anyio.create_task_group() as group:
        for item in (bytearray(data), memoryview(data).cast("I")):
            sending = start(group, stream.send, item)
            assert await read_on(peer, len(data)) == data
            await sending.done.wait()
            assert sending.outcome is None


# -- what the world answers --


async def test_a_pipe_without_writers_is_at_its_end() -> None:
    """EndOfStream, parked or not, and again."""
    async with reading_pipe() as (stream, w), anyio.create_task_group() as group:
        receiving = start(group, stream.receive)
        await parked(stream.handle)
        null = os.open(os.devnull, os.O_RDONLY)
        os.dup2(null, w)  # closes the writing end; the number stays taken
        os.close(null)
        await receiving.done.wait()
        assert isinstance(receiving.outcome, anyio.EndOfStream)
        with pytest.raises(anyio.EndOfStream):
            await stream.receive()


@pytest.mark.parametrize("when", ["parked", "later"])
async def test_a_pipe_without_readers_is_broken(when: str) -> None:
    """EPIPE is BrokenResourceError with the OSError as cause, and its message names the file."""
    r, w = os.pipe()
    async with FdStream(w, name="pipe") as stream, anyio.create_task_group() as group:
        if when == "later":
            os.close(r)
        sending = start(group, stream.send, BIG)
        if when == "parked":
            await parked(stream.handle)
            os.close(r)
        await sending.done.wait()
        assert isinstance(sending.outcome, anyio.BrokenResourceError)
        assert not isinstance(sending.outcome, RevokedError)
        assert isinstance(sending.outcome.__cause__, OSError)
        assert sending.outcome.__cause__.errno == errno.EPIPE
        assert "'pipe'" in str(sending.outcome)
        assert not stream.handle.revoked


@pytest.mark.parametrize("when", ["parked", "later"])
async def test_a_reset_connection_is_broken(when: str) -> None:
    """ECONNRESET on reading is BrokenResourceError with the OSError as cause."""
    async with socket_stream() as (stream, peer), anyio.create_task_group() as group:
        await stream.send(b"never read")  # a Unix socket that is closed with data unread resets its peer
        if when == "later":
            peer.close()
        receiving = start(group, stream.receive)
        if when == "parked":
            await parked(stream.handle)
            peer.close()
        await receiving.done.wait()
        assert isinstance(receiving.outcome, anyio.BrokenResourceError)
        assert isinstance(receiving.outcome.__cause__, OSError)
        assert receiving.outcome.__cause__.errno == errno.ECONNRESET


async def test_a_master_without_slaves_is_broken() -> None:
    """Data that was written is received, then EIO is BrokenResourceError with the OSError as cause: no revocation."""
    with terminal() as (master, slave):
        async with awake(), FdStream(master) as stream, anyio.create_task_group() as group:
            receiving = start(group, stream.receive)
            await parked(stream.handle)
            os.write(slave, b"last")
            os.close(slave)
            await receiving.done.wait()
            assert receiving.outcome == b"last"
            with pytest.raises(anyio.BrokenResourceError) as caught:
                await stream.receive()
            assert not isinstance(caught.value, RevokedError)
            assert isinstance(caught.value.__cause__, OSError)
            assert caught.value.__cause__.errno == errno.EIO


@pytest.mark.skipif(os.geteuid() != 0, reason="TIOCVHANGUP is root's")
async def test_a_terminal_that_the_kernel_hung_up_is_at_its_end() -> None:
    """As a USB serial port after its unplug: the parked read ends, and so does the next; a write is broken by EIO."""
    with terminal() as (_, slave):
        async with awake(), FdStream(os.dup(slave)) as stream, anyio.create_task_group() as group:
            receiving = start(group, stream.receive)
            await parked(stream.handle)
            fcntl.ioctl(slave, TIOCVHANGUP)
            await receiving.done.wait()
            assert isinstance(receiving.outcome, anyio.EndOfStream)
            with pytest.raises(anyio.EndOfStream):
                await stream.receive()
            with pytest.raises(anyio.BrokenResourceError) as caught:
                await stream.send(b"x")
            assert isinstance(caught.value.__cause__, OSError)
            assert caught.value.__cause__.errno == errno.EIO
            assert not stream.handle.revoked


@pytest.mark.parametrize(
    ("profile", "in_flight", "later"),
    [
        pytest.param(answers.TTY, Answer.EOF, Answer.EOF, id="TTY"),
        pytest.param(answers.PTY_MASTER_CLOSED, errno.EIO, Answer.EOF, id="PTY"),
        pytest.param(answers.DEADFS, Answer.EOF, Answer.EOF, id="DEADFS"),
        pytest.param(answers.ALSA, errno.EBADFD, errno.ENODEV, id="ALSA"),
    ],
)
async def test_a_dead_terminal_answers_by_its_profile(
    profile: Answers, in_flight: int | Answer, later: int | Answer
) -> None:
    """Where a profile tells terminals from others, the descriptor is asked what it is."""
    with terminal() as (_, slave):
        async with FdStream(slave, answers=profile) as stream, anyio.create_task_group() as group:
            receiving = start(group, stream.receive)
            await parked(stream.handle)
            await stream.revoke()
            await receiving.done.wait()
            assert answered(receiving.outcome) == in_flight
            after = start(group, stream.receive)
            await after.done.wait()
            assert answered(after.outcome) == later


async def test_a_dead_pipe_of_bsd_is_an_error() -> None:
    """DEADFS answers the end of data on a terminal only: on a pipe EIO, in flight and later."""
    async with reading_pipe(answers=answers.DEADFS) as (stream, _), anyio.create_task_group() as group:
        receiving = start(group, stream.receive)
        await parked(stream.handle)
        await stream.revoke()
        await receiving.done.wait()
        assert answered(receiving.outcome) == errno.EIO
        with pytest.raises(RevokedError) as caught:
            await stream.receive()
        assert caught.value.errno == errno.EIO


# -- release: the descriptor and its number --


@pytest.mark.invariant("I3")
async def test_the_descriptor_is_closed_when_the_last_waiter_has_left() -> None:
    """Not by revoke(): a waiter that was kicked still has its turn to come."""
    async with socket_stream() as (stream, _), anyio.create_task_group() as group:
        number = stream.fileno()
        receiving = start(group, stream.receive)
        await parked(stream.handle)
        act = stream.revoke()
        assert is_open(number)
        assert stream.fileno() == number
        await receiving.done.wait()
        assert not is_open(number)
        assert act.done()


@pytest.mark.invariant("I3")
async def test_a_parked_write_may_end_during_the_grace() -> None:
    """It completes when there is room, and the descriptor is closed only then."""
    async with socket_stream() as (stream, peer), anyio.create_task_group() as group:
        number = stream.fileno()
        sending = start(group, stream.send, BIG)
        await parked(stream.handle)
        act = stream.revoke("shutdown", grace=1000)
        await settle()
        await read_on(peer, len(BIG) // 2)
        assert is_open(number)
        assert not sending.done.is_set()
        assert len(await read_on(peer)) >= len(BIG) // 4
        await sending.done.wait()
        assert sending.outcome is None
        assert not is_open(number)
        assert (await act).kicked == 0


async def test_a_parked_write_is_kicked_when_the_grace_is_over() -> None:
    """And tells what was accepted until then."""
    async with socket_stream() as (stream, peer), anyio.create_task_group() as group:
        sending = start(group, stream.send, BIG)
        await parked(stream.handle)
        act = stream.revoke("shutdown", grace=0.001)
        while not act.done():  # a trio that has nothing to do but wait starts a thread under pytest
            await anyio.lowlevel.checkpoint()
        await sending.done.wait()
        assert sending.error.in_flight
        assert sending.error.sent == len(await read_on(peer))


class Reopened:
    """A pipe that is opened anew by the release of the one before, with a reader of its own: generation by generation."""

    def __init__(self, group: anyio.abc.TaskGroup, generations: int) -> None:
        self.group = group
        self.generations = generations
        self.numbers: list[int] = []
        self.log: list[tuple[object, ...]] = []
        self.writing: int | None = None
        self.stream: FdStream
        self.reopen()

    def reopen(self) -> None:
        if self.writing is not None:
            os.close(self.writing)
        number = len(self.numbers)
        if number < self.generations:
            reading, self.writing = os.pipe()
            self.numbers.append(reading)
            self.stream = FdStream(reading, Revokable(f"generation {number}", release=self.reopen))
            self.group.start_soon(self._read, number, self.stream)

    async def _read(self, number: int, stream: FdStream) -> None:
        try:
            while True:
                self.log.append((number, await stream.receive()))
        except RevokedError as error:
            self.log.append((number, error.in_flight, error.reason))

    async def parked(self, length: int) -> None:
        """Until the log has this length, and the reader waits."""
        while len(self.log) < length or not self.stream.handle.in_use:
            await anyio.lowlevel.checkpoint()

    def revoke(self, reason: str) -> None:
        assert self.stream.handle.parent is not None
        self.stream.handle.parent.revoke(reason)


async def test_a_reopen_in_the_step_of_the_release_loses_no_wake_up(request: pytest.FixtureRequest) -> None:
    """Ten thousand times on one number: the device's release opens it anew, and starts a reader, while the old reader
    is still on its way out. The new one gets the new data, the old one RevokedError, and nobody hangs.
    """
    rounds = 3_000 if "trio" in request.node.callspec.id else 10_000  # a round of trio takes three times as long
    with anyio.fail_after(60):
        async with anyio.create_task_group() as group:
            pipe = Reopened(group, rounds)
            for number in range(rounds):
                await pipe.parked(2 * number)
                assert pipe.writing is not None
                os.write(pipe.writing, b"%d" % number)
                await pipe.parked(2 * number + 1)
                pipe.revoke(f"round {number}")
                while len(pipe.log) < 2 * number + 2:
                    await anyio.lowlevel.checkpoint()
    assert len(pipe.numbers) == rounds
    assert len(set(pipe.numbers)) == 1, "it was the same descriptor number each time"
    assert pipe.log[::2] == [(number, b"%d" % number) for number in range(rounds)]
    assert pipe.log[1::2] == [(number, True, f"round {number}") for number in range(rounds)]


@pytest.mark.parametrize("was", ["parked", "left armed"])
async def test_the_next_file_of_the_number_keeps_its_registration(was: str) -> None:
    """Whoever gets the number after us is woken, whatever becomes of what is left of us."""
    async with reading_pipe() as (stream, w), anyio.create_task_group() as group:
        number = stream.fileno()
        receiving = start(group, stream.receive)
        await parked(stream.handle)
        if was == "left armed":
            os.write(w, b"x")
            await receiving.done.wait()
        stream.revoke()
        while stream.fileno() >= 0:
            await anyio.lowlevel.checkpoint()
        r, w2 = os.pipe()
        assert r == number
        waiting = start(group, anyio.wait_readable, r)
        await settle()
        await receiving.done.wait()
        stream.revoke("again")
        await stream.aclose()
        await settle()
        assert not waiting.done.is_set()
        os.write(w2, b"x")
        await waiting.done.wait()
        assert waiting.outcome is None
        os.close(r)
        os.close(w2)


@pytest.mark.parametrize("side", ["reader", "writer"])
@asyncio_only
async def test_no_registration_outlives_the_descriptor(side: str) -> None:
    """The release takes it back before the number is another file's."""
    ours, theirs = socket.socketpair()
    with theirs:
        stream = FdStream(ours.detach())
        number = stream.fileno()
        call = functools.partial(stream.send, BIG) if side == "writer" else stream.receive
        async with anyio.create_task_group() as group:
            start(group, call)
            await parked(stream.handle)
            await stream.revoke()
        assert not getattr(asyncio.get_running_loop(), f"remove_{side}")(number)


async def test_a_number_inherited_from_others_is_registered_anew() -> None:
    """A foreign waiter on the number is ended, and its file closed, in the step in which ours begins: ours is woken."""
    r, w = os.pipe()
    async with anyio.create_task_group() as group:
        foreign = start(group, anyio.wait_readable, r)
        await settle()
        anyio.notify_closing(r)
        os.close(r)
        r2, w2 = os.pipe()
        assert r2 == r
        async with FdStream(r2) as stream:
            receiving = start(group, stream.receive)
            await foreign.done.wait()
            assert isinstance(foreign.outcome, anyio.ClosedResourceError)
            await parked(stream.handle)
            os.write(w2, b"x")
            with anyio.fail_after(20):
                await receiving.done.wait()
            assert receiving.outcome == b"x"
    os.close(w)
    os.close(w2)


@pytest.mark.parametrize("left", ["armed", "parked"])
@pytest.mark.parametrize("second", [each for each in BACKENDS if each.id != "eager"])
@pytest.mark.parametrize("first", [each for each in BACKENDS if each.id != "eager"])
def test_it_outlives_the_loop_it_was_used_in(
    first: tuple[str, dict[str, Any]], second: tuple[str, dict[str, Any]], left: str
) -> None:
    """After the first loop was closed it works in another, of whatever kind, and is taken away there."""
    ours, peer = socket.socketpair()
    stream = FdStream(ours.detach())
    with peer:

        async def use() -> None:
            async with anyio.create_task_group() as group:
                receiving = start(group, stream.receive)
                await parked(stream.handle)
                peer.sendall(b"x")
                await receiving.done.wait()
                assert receiving.outcome == b"x"
                if left == "parked":  # cancelled by the end of its loop
                    start(group, stream.receive)
                    await parked(stream.handle)
                    group.cancel_scope.cancel()

        async def use_and_revoke() -> None:
            await use()
            async with anyio.create_task_group() as group:
                receiving = start(group, stream.receive)
                await parked(stream.handle)
                await stream.revoke("over")
                await receiving.done.wait()
                assert receiving.error.in_flight

        anyio.run(use, backend=first[0], backend_options=first[1])
        assert not stream.handle.in_use
        anyio.run(use_and_revoke, backend=second[0], backend_options=second[1])
        assert stream.fileno() == -1


@pytest.mark.parametrize("backend", BACKENDS)
def test_it_can_be_taken_away_after_its_loop(backend: tuple[str, dict[str, Any]]) -> None:
    """It was left registered with a loop that is closed now: a revocation without a loop closes it."""
    r, w = os.pipe()
    stream = FdStream(r)

    async def use() -> None:
        async with anyio.create_task_group() as group:
            receiving = start(group, stream.receive)
            await parked(stream.handle)
            os.write(w, b"x")
            await receiving.done.wait()

    anyio.run(use, backend=backend[0], backend_options=backend[1])
    report = stream.revoke().report
    assert (report.released, report.errors) == (1, ())
    assert not is_open(r)
    os.close(w)


def test_a_reader_in_a_loop_that_was_closed_is_a_straggler() -> None:
    """Its task can be told of nothing: the revocation names it, and closes when its coroutine was closed."""
    near, far = os.pipe()
    stream = FdStream(near)
    loop = asyncio.new_event_loop()

    async def read() -> None:
        left.append(asyncio.ensure_future(stream.receive()))
        await settle()

    left: list[asyncio.Task[bytes]] = []
    loop.run_until_complete(read())
    loop.close()
    act = stream.handle.revoke()
    assert [user.task for user in act.stragglers()] == left
    left[0]._log_destroy_pending = False  # type: ignore[attr-defined]
    left[0].get_coro().close()
    assert act.done()
    assert not is_open(near)
    os.close(far)


def test_without_a_loop_a_revocation_closes() -> None:
    """The release is plain code: it needs no loop."""
    r, w = os.pipe()
    stream = FdStream(r)
    assert stream.revoke().done()
    assert not is_open(r)
    os.close(w)


# -- hazards of a guarded wait; numbers as in the facts --


@contextlib.asynccontextmanager
async def reader(stream: FdStream) -> AsyncIterator[asyncio.Task[object]]:
    """A task of asyncio that is parked in receive(); what holds after every hazard is asserted here."""
    undisturbed: list[int] = []

    async def receive() -> object:
        task = asyncio.current_task()
        assert task is not None
        before = task.cancelling()
        try:
            return await stream.receive()
        except RevokedError as error:
            assert task.cancelling() == before
            for turn in range(2):
                await asyncio.sleep(0)
                undisturbed.append(turn)
            return error

    task = asyncio.get_running_loop().create_task(receive())
    await parked(stream.handle)
    yield task
    await asyncio.wait([task], timeout=20)
    assert task.done(), "it hangs"
    assert not stream.handle.in_use
    if not task.cancelled() and isinstance(task.result(), RevokedError):
        assert undisturbed == [0, 1]


@on_asyncio
async def test_hazard_1_kick() -> None:
    """A kick of a parked receive: revoked."""
    async with socket_stream() as (stream, _), reader(stream) as task:
        stream.revoke()
    assert isinstance(task.result(), RevokedError)


@on_asyncio
@pytest.mark.parametrize("kick_first", [True, False])
async def test_hazards_2_and_3_kick_and_cancel(kick_first: bool) -> None:
    """Kick and task.cancel() in one step, in either order: cancelled."""
    async with socket_stream() as (stream, _), reader(stream) as task:
        if kick_first:
            stream.revoke()
        task.cancel()
        stream.revoke()
    assert task.cancelled()


@on_asyncio
async def test_a_coroutine_that_is_closed_in_its_wait_leaves_nothing() -> None:
    """As one whose loop is gone: it is closed when it is dropped."""
    async with socket_stream() as (stream, peer):
        reading = stream.receive()
        while reading.send(None) is None:
            pass  # a checkpoint
        reading.close()
        assert not stream.handle.in_use
        peer.sendall(b"x")
        assert await stream.receive() == b"x"


@on_asyncio
async def test_hazard_14_the_result_is_there_when_the_kick_comes(monkeypatch: pytest.MonkeyPatch) -> None:
    """The wait was over, the kick came behind it in the same step: the data is received."""
    ready = Ready(monkeypatch)
    async with socket_stream() as (stream, peer), reader(stream) as task:
        ready.then = functools.partial(stream.revoke, "too late")
        peer.sendall(b"just in time")
    assert task.result() == b"just in time"
    assert stream.fileno() == -1


@on_trio
async def test_hazard_14_on_trio() -> None:
    """Of two tasks that the same data wakes in one step one revokes: the other receives the data."""
    async with socket_stream() as (stream, peer), anyio.create_task_group() as group:
        twin = os.dup(stream.fileno())
        receiving = start(group, stream.receive)
        await parked(stream.handle)

        async def revoke() -> None:
            await anyio.wait_readable(twin)
            stream.revoke("too late")

        group.start_soon(revoke)
        await settle()
        peer.sendall(b"just in time")
        await receiving.done.wait()
        assert receiving.outcome == b"just in time"
        os.close(twin)


@on_asyncio
async def test_a_write_that_has_room_when_the_kick_comes_tells_how_far_it_came(monkeypatch: pytest.MonkeyPatch) -> None:
    """Hazard 14 for send: what fits is sent, and the rest is revoked; or all of it is sent."""
    ready = Ready(monkeypatch)
    async with socket_stream() as (stream, peer), anyio.create_task_group() as group:
        sending = start(group, stream.send, BIG)
        await parked(stream.handle)
        ready.then = stream.revoke
        arrived = await read_on(peer)
        await sending.done.wait()
        assert 0 < len(arrived) < len(BIG)
        assert sending.error.sent == len(arrived)


async def test_hazard_18_outer_scope_then_kick() -> None:
    """The outer scope was cancelled before the kick: the cancellation wins."""
    async with socket_stream() as (stream, _), anyio.create_task_group() as group:
        receiving = start(group, stream.receive)
        await parked(stream.handle)
        receiving.scope.cancel()
        stream.revoke()
        await receiving.done.wait()
        assert receiving.outcome is None
        assert receiving.scope.cancelled_caught
        assert not stream.handle.in_use


@on_asyncio
async def test_hazard_19_kick_then_outer_scope() -> None:
    """The kick is reported, and the cancellation of the outer scope comes at the next checkpoint."""
    log: list[object] = []

    async with socket_stream() as (stream, _), anyio.create_task_group() as group:

        async def receive() -> None:
            try:
                await stream.receive()
            except RevokedError as error:
                log.append(error.in_flight)
                await anyio.lowlevel.checkpoint()
                log.append("not reached")

        receiving = start(group, receive)
        await parked(stream.handle)
        stream.revoke()
        receiving.scope.cancel()
        await receiving.done.wait()
        assert log == [True]
        assert receiving.scope.cancelled_caught


@on_asyncio
@pytest.mark.parametrize("kick_first", [True, False])
async def test_hazard_20_outer_timeout(kick_first: bool) -> None:
    """An outer asyncio.timeout expires in the step of the kick, in either order: TimeoutError."""
    loop = asyncio.get_running_loop()
    async with socket_stream() as (stream, _), anyio.create_task_group() as group:
        timeout = asyncio.timeout(None)

        async def receive() -> None:
            async with timeout:
                await stream.receive()

        receiving = start(group, receive)
        await parked(stream.handle)
        if kick_first:
            loop.call_soon(stream.revoke)
            timeout.reschedule(loop.time())
        else:
            timeout.reschedule(loop.time())
            loop.call_soon(stream.revoke)
        await receiving.done.wait()
        assert isinstance(receiving.outcome, TimeoutError)
        assert not stream.handle.in_use


# -- the suites of trio --


class FromTerminal(TrioFace):
    """The reading side of a terminal: EIO is how a master says that nobody has the slave open."""

    async def receive_some(self, max_bytes: int | None = None) -> bytes:
        try:
            return await super().receive_some(max_bytes)
        except trio.BrokenResourceError as exc:
            eio = exc.__cause__ and exc.__cause__.__cause__
            if isinstance(eio, OSError) and eio.errno == errno.EIO:
                return b""
            raise


def test_a_terminal_passes_the_suite_of_trio() -> None:
    """One way, slave to master. The other way a terminal is no stream: what a closing master has written is
    lost. Nor can one be clogged for sure: a worker of the kernel goes on moving bytes.
    """

    async def make() -> tuple[TrioFace, TrioFace]:
        master, slave = pty.openpty()
        tty.setraw(slave)
        return TrioFace(FdStream(slave), slave), FromTerminal(FdStream(master), master)

    trio.run(trio.testing.check_one_way_stream, make, None)  # AnyIO's runner has trio wait in a thread that lingers


@pytest.mark.parametrize("kept", [False, True])
@pytest.mark.parametrize("seen_by", ["a wait", "an attempt", "nobody"])
async def test_an_error_ends_no_later_wait(seen_by: str, kept: bool) -> None:
    """A UDP socket reports once that nobody listens. Whoever has seen that, the next who receives gets what comes. That
    holds where the socket keeps a record of the error, too, for which poll(2) reports an error ever after.
    """
    with socket.socket(type=socket.SOCK_DGRAM) as server, socket.socket(type=socket.SOCK_DGRAM) as again:
        server.bind(("127.0.0.1", 0))
        address = server.getsockname()
        client = socket.socket(type=socket.SOCK_DGRAM)
        client.setsockopt(socket.IPPROTO_IP, IP_RECVERR, kept)
        client.connect(address)
        ours, other = client.getsockname(), client.dup()
        with other:
            async with FdStream(client.detach()) as stream, anyio.create_task_group() as group, awake():
                waiting = start(group, stream.receive)
                await parked(stream.handle)  # it is registered with the loop, and stays so
                if seen_by != "a wait":
                    waiting.scope.cancel()
                    await waiting.done.wait()
                server.close()
                await stream.send(b"x")
                if seen_by == "nobody":
                    await settle()
                    assert other.getsockopt(socket.SOL_SOCKET, socket.SO_ERROR) == errno.ECONNREFUSED
                else:
                    error = waiting if seen_by == "a wait" else start(group, stream.receive)
                    await error.done.wait()
                    assert isinstance(error.outcome, anyio.BrokenResourceError)
                again.bind(address)
                waiting = start(group, stream.receive)
                await parked(stream.handle)
                again.sendto(b"back", ours)
                with anyio.fail_after(5):
                    await waiting.done.wait()
                assert waiting.outcome == b"back"
                group.cancel_scope.cancel()


async def test_what_cannot_be_waited_for_leaves_nothing_on_the_owner() -> None:
    """A descriptor of O_PATH is refused, is still the caller's, and its owner is revoked as ever."""
    owner = Revokable("owner")
    fd = os.open("/dev/null", os.O_PATH)
    with pytest.raises(OSError, match="not open for reading or writing") as caught:
        FdStream(fd, owner)
    assert caught.value.errno == errno.EBADF
    assert is_open(fd)
    assert owner.children == ()
    await owner.revoke()
    os.close(fd)


async def test_nothing_is_sent_to_a_terminal_that_nobody_has_open() -> None:
    """A pty's master takes bytes also when its other side is closed: both ways of sending say that nobody reads them."""
    master, slave = pty.openpty()
    async with FdStream(master) as stream:
        await stream.send(b"somebody")
        os.close(slave)
        for send in stream.send, stream.send_some:
            with pytest.raises(anyio.BrokenResourceError, match="nobody has the terminal open"):
                await send(b"nobody")


async def test_unread_output_does_not_keep_a_terminal_from_input() -> None:
    """What a program has written and nobody has read yet says nothing about whether it still has the terminal open."""
    with terminal() as (master, slave):
        os.write(slave, b"output")
        async with FdStream(master) as stream:
            for send in stream.send, stream.send_some:
                await send(b"input")
                assert os.read(slave, 100) == b"input"


def test_an_error_of_a_terminals_settings_is_an_oserror_that_names_it() -> None:
    """`termios.error` is none, and knows no path."""
    with pytest.raises(OSError, match="/dev/ttyUSB0") as caught, os_errors("/dev/ttyUSB0"):
        raise termios.error(errno.EIO, "Input/output error")
    assert (caught.value.errno, caught.value.filename) == (errno.EIO, "/dev/ttyUSB0")


# -- an Fd by itself --


async def test_what_fits_is_written_and_room_is_waited_for() -> None:
    """Others have their turn in any case."""
    reading, writing = os.pipe()
    fd = Fd(writing, Revokable())
    assert await suspensions(fd.write_some(memoryview(BIG)))
    async with anyio.create_task_group() as group:
        waiting = start(group, fd.write_some, memoryview(BIG))
        await settle()
        assert not waiting.done.is_set()
        filled = len(os.read(reading, len(BIG)))
        await waiting.done.wait()
        assert waiting.outcome == filled
    fd.close()
    os.close(reading)


async def test_a_shared_descriptor_does_not_block_if_others_make_it() -> None:
    """Before each read and write it is told again; and what is read is heard."""
    near, far = socket.socketpair()
    fd = Fd(near.detach(), Revokable(), shared=True)
    heard: list[None] = []
    fd.heard = lambda: heard.append(None)
    with far:
        far.sendall(b"x")
        for call in functools.partial(fd.read_now, 1), functools.partial(fd.write_now, b"y"):
            os.set_blocking(fd.number, True)
            assert call()
            assert not os.get_blocking(fd.number)
            assert len(heard) == 1
    fd.close()


@pytest.mark.parametrize("shared", [False, True])
async def test_an_empty_read_of_a_terminal_is_its_end_only_where_one_was_typed(*, shared: bool) -> None:
    """With a VMIN of 0 nothing has come yet. Where others type, too, an end of theirs is not ours."""
    with terminal() as (master, slave):
        fd = Fd(os.dup(slave), Revokable(), shared=shared)
        settings = termios.tcgetattr(slave)
        settings[6][termios.VMIN] = 0
        termios.tcsetattr(slave, termios.TCSANOW, settings)
        assert fd.read_now(1) is None
        settings[3] |= termios.ICANON
        settings[6][termios.VEOF] = b"\x04"
        termios.tcsetattr(slave, termios.TCSANOW, settings)
        os.write(master, b"\x04line\n")
        if shared:
            assert await fd.read(100) == b"line\n"
        else:
            with pytest.raises(anyio.EndOfStream):
                await fd.read(100)
        fd.close()


# -- callbacks of an Fd --


@asyncio_only
@pytest.mark.parametrize("broken", [False, True], ids=["sound", "broken"])
async def test_a_callback_is_called_as_often_as_its_descriptor_is_ready(
    monkeypatch: pytest.MonkeyPatch, *, broken: bool
) -> None:
    """Beside whoever waits for it, until it is given None; uvloop ends a poll that meets an error, and tells nobody.
    Where nobody waits, the loop is not kept busy.
    """
    ready = Ready(monkeypatch)
    loop = asyncio.get_running_loop()
    reading, writing = os.pipe()
    if broken:
        os.close(reading)
    fd = Fd(writing, Revokable())
    calls: list[None] = []
    with anyio.fail_after(20):
        fd.writable.call(loop, lambda: calls.append(None))
        while len(calls) < 3:
            await anyio.lowlevel.checkpoint()
        await fd.writable.ready()
        assert len(calls) > 3
        fd.writable.call(loop, None)
        calls.clear()
        await fd.writable.ready()
        await settle()
        assert not calls
        ready.count = 0
        await settle()
        assert not ready.count
    fd.close()
    if not broken:
        os.close(reading)
