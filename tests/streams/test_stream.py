"""What both kinds of stream promise, over socket pairs; and `RevokableStream` over the streams of others."""

import asyncio
import contextlib
import errno
import functools
import socket
import threading
from collections.abc import AsyncIterator, Awaitable, Callable, Generator
from typing import Any

import anyio
import anyio.abc
import anyio.lowlevel
import pytest
import trio.testing
from anyio.streams.buffered import BufferedByteReceiveStream, BufferedByteStream
from anyio.streams.stapled import StapledByteStream
from anyio.streams.text import TextStream

from asyncrevoke import (
    Face,
    FdStream,
    Revokable,
    RevokableAttribute,
    RevokableStream,
    RevokeDeadlock,
    RevokedError,
    answers,
    revoke_threadsafe,
)
from asyncrevoke._core import loop
from asyncrevoke._core.loop import READY
from asyncrevoke.answers import Answer, Answers
from calls import parked, start, turns_beside
from conftest import settle
from sockets import BIG, Wrap, pair, read_on

pytestmark = pytest.mark.anyio


on_trio = pytest.mark.parametrize("anyio_backend", [pytest.param(("trio", {}), id="trio")])


async def over_fd(sock: socket.socket, owner: Revokable | None = None, **options: Any) -> FdStream:
    stream = FdStream(sock.fileno(), owner, **options)
    sock.detach()
    return stream


async def over_anyio(sock: socket.socket, owner: Revokable | None = None, **options: Any) -> RevokableStream:
    return RevokableStream(await anyio.abc.UNIXSocketStream.from_socket(sock), owner, **options)


@pytest.fixture(params=[over_fd, over_anyio])
def wrap(request: pytest.FixtureRequest) -> Wrap:
    made: Wrap = request.param
    return made


class Counted:
    """Awaits something, and counts how often that suspends."""

    def __init__(self, what: Awaitable[object]) -> None:
        self._what = what
        self.suspended = 0

    def __await__(self) -> Generator[Any, Any, object]:
        waiting = self._what.__await__()
        step: Callable[[], Any] = functools.partial(next, waiting)
        while True:
            try:
                wanted = step()
            except StopIteration as stop:
                return stop.value
            self.suspended += 1
            try:
                step = functools.partial(waiting.send, (yield wanted))
            except BaseException as exc:  # noqa: BLE001  # handed on
                step = functools.partial(waiting.throw, exc)


async def suspensions(what: Awaitable[object]) -> int:
    """How often it suspends where others must have a turn again: after many that did not suspend."""
    home = loop.current()
    assert home is not None
    home.left = 0
    counted = Counted(what)
    with contextlib.suppress(Exception):
        await counted
    return counted.suspended


# -- the face: plain traffic --


async def test_bytes_go_both_ways(wrap: Wrap) -> None:
    """What one side sends the other receives, at most `max_bytes` at a time."""
    async with pair(wrap) as (stream, peer):
        await stream.send(b"to the peer")
        assert peer.recv(100) == b"to the peer"
        peer.sendall(b"and back")
        assert await stream.receive(3) == b"and"
        assert await stream.receive() == b" back"


async def test_parked_operations_go_on_when_the_peer_does(wrap: Wrap) -> None:
    """A reader wakes for data, a writer for room; a long write arrives whole and in order."""
    data = bytes(range(256)) * 8192
    async with pair(wrap) as (stream, peer), anyio.create_task_group() as group:
        receiving = start(group, stream.receive)
        sending = start(group, stream.send, data)
        await parked(stream.handle, 2)
        assert not receiving.done.is_set()
        assert not sending.done.is_set()
        peer.sendall(b"x")
        await receiving.done.wait()
        assert receiving.outcome == b"x"
        assert await read_on(peer, len(data)) == data
        await sending.done.wait()
        assert sending.outcome is None


async def test_the_end_of_data_stays_the_end(wrap: Wrap) -> None:
    """After the peer's last byte each receive raises EndOfStream, and iteration ends."""
    async with pair(wrap) as (stream, peer):
        peer.sendall(b"last")
        peer.shutdown(socket.SHUT_WR)
        assert [item async for item in stream] == [b"last"]
        for _ in range(2):
            with pytest.raises(anyio.EndOfStream):
                await stream.receive()
        await stream.send(b"the other way is open")
        assert peer.recv(100) == b"the other way is open"


@pytest.mark.parametrize("max_bytes", [0, -1])
async def test_asking_for_nothing_is_an_error(wrap: Wrap, max_bytes: int) -> None:
    """`receive` of less than one byte is ValueError, and consumes nothing."""
    async with pair(wrap) as (stream, peer):
        peer.sendall(b"x")
        with pytest.raises(ValueError, match=str(max_bytes)):
            await stream.receive(max_bytes)
        assert await stream.receive() == b"x"


async def test_sending_to_a_peer_that_is_gone_is_broken(wrap: Wrap) -> None:
    """EPIPE is BrokenResourceError with the OSError as its cause, and no revocation."""
    async with pair(wrap) as (stream, peer):
        peer.close()
        for _ in range(2):
            with pytest.raises(anyio.BrokenResourceError) as caught:
                await stream.send(b"x")
            assert not isinstance(caught.value, RevokedError)
            assert isinstance(caught.value.__cause__, OSError)
            assert caught.value.__cause__.errno == errno.EPIPE


async def test_there_is_one_reader_and_one_writer(wrap: Wrap) -> None:
    """A second user of a direction is told Busy, the first is not disturbed, and the direction is free afterwards."""
    async with pair(wrap) as (stream, peer), anyio.create_task_group() as group:
        receiving = start(group, stream.receive)
        sending = start(group, stream.send, BIG)
        await parked(stream.handle, 2)
        with pytest.raises(anyio.BusyResourceError, match="reading from"):
            await stream.receive()
        for call in (functools.partial(stream.send, b"x"), stream.send_eof):
            with pytest.raises(anyio.BusyResourceError, match="writing to"):
                await call()
        peer.sendall(b"for the first")
        await receiving.done.wait()
        assert receiving.outcome == b"for the first"
        sending.scope.cancel()
        await sending.done.wait()
        peer.sendall(b"for the next")
        assert await stream.receive() == b"for the next"
        await stream.send_eof()


async def test_send_eof_ends_one_direction(wrap: Wrap) -> None:
    """The peer sees the end and may go on sending; a second send_eof does no harm, a send is ClosedResourceError."""
    async with pair(wrap) as (stream, peer):
        await stream.send(b"x")
        await stream.send_eof()
        assert peer.recv(100) == b"x"
        assert peer.recv(100) == b""
        await stream.send_eof()
        for item in (b"y", b""):
            with pytest.raises(anyio.ClosedResourceError):
                await stream.send(item)
        peer.sendall(b"z")
        assert await stream.receive() == b"z"
        stream.revoke("enough")
        with pytest.raises(RevokedError, match="enough"):
            await stream.send(b"y")
        with pytest.raises(RevokedError, match="enough"):
            await stream.send_eof()


async def test_each_operation_is_a_checkpoint(wrap: Wrap) -> None:
    """Whatever it ends in: success at once, an empty item, the end of data, revoked, closed (no loop can be starved)."""
    async with pair(wrap) as (stream, peer):
        peer.sendall(b"x")
        peer.shutdown(socket.SHUT_WR)
        assert await suspensions(stream.receive()), "data is there"
        assert await suspensions(stream.receive()), "the end is there"
        assert await suspensions(stream.send(b"x")), "there is room"
        assert await suspensions(stream.send(b"")), "there is nothing to send"
        assert await suspensions(stream.send_eof())
        assert await suspensions(stream.send_eof()), "again"
        assert await suspensions(stream.send(b"x")), "after the end"
        stream.revoke()
        assert await suspensions(stream.receive()), "revoked"
        assert await suspensions(stream.send(b"")), "revoked"
        assert await suspensions(stream.send_eof()), "revoked"
        assert await suspensions(stream.aclose()), "revoked"
        assert await suspensions(stream.aclose()), "closed"
        assert await suspensions(stream.receive()), "closed"
        assert await suspensions(stream.send(b"x")), "closed"
        assert await suspensions(stream.send_eof()), "closed"
    async with pair(wrap) as (stream, _):
        assert await suspensions(stream.aclose()), "with nothing to wait for"


# -- the face: cancellation --


async def test_a_cancelled_receive_has_consumed_nothing(wrap: Wrap) -> None:
    """Cancelled before it starts, with data there, or while it is parked: the next one gets all."""
    async with pair(wrap) as (stream, peer), anyio.create_task_group() as group:
        peer.sendall(b"early")
        with anyio.CancelScope() as scope:
            scope.cancel()
            await stream.receive()
        assert await stream.receive() == b"early"
        receiving = start(group, stream.receive)
        await parked(stream.handle)
        receiving.scope.cancel()
        await receiving.done.wait()
        peer.sendall(b"late")
        assert receiving.outcome is None
        assert await stream.receive() == b"late"
        assert not stream.handle.revoked


async def test_a_cancelled_send_that_had_not_begun_sent_nothing(wrap: Wrap) -> None:
    """Cancelled on entry, the peer gets nothing of it."""
    async with pair(wrap) as (stream, peer):
        with anyio.CancelScope() as scope:
            scope.cancel()
            await stream.send(b"never")
        await stream.send(b"x")
        assert peer.recv(100) == b"x"


# -- the face: taken away --


async def test_a_revocation_ends_what_is_parked(wrap: Wrap) -> None:
    """Reader and writer get RevokedError in flight; the stream is released when they have left, and the peer sees it."""
    owner = Revokable("bus")
    async with pair(wrap, owner, name="port") as (stream, peer), anyio.create_task_group() as group:
        receiving = start(group, stream.receive)
        sending = start(group, stream.send, BIG)
        await parked(stream.handle, 2)
        act = stream.revoke("unplugged")
        assert not stream.handle.released
        with pytest.raises(RevokedError):  # who is still leaving refuses nobody
            await stream.receive()
        report = await act
        assert (report.kicked, report.released) == (2, 1)
        assert stream.handle.released
        await receiving.done.wait()
        await sending.done.wait()
        for call in (receiving, sending):
            assert call.error.in_flight
            assert call.error.node is stream.handle
            assert (call.error.name, call.error.reason, call.error.errno) == ("bus/port", "unplugged", errno.EIO)
        await read_on(peer)  # what was accepted, and then the end
        assert not owner.revoked
        assert not owner.in_use


async def test_later_operations_get_a_fresh_error_each(wrap: Wrap) -> None:
    """After a revocation every operation raises RevokedError that is not in flight, never the same one."""
    async with pair(wrap) as (stream, peer):
        peer.sendall(b"never received")
        await stream.revoke("gone")
        seen: list[RevokedError] = []
        for call in (stream.receive, functools.partial(stream.send, b"x"), stream.send_eof):
            for _ in range(2):
                with pytest.raises(RevokedError, match="gone") as caught:
                    await call()
                seen.append(caught.value)
        assert len({id(error) for error in seen}) == 6
        assert not any(error.in_flight for error in seen)
        with pytest.raises(RevokedError):
            async for _ in stream:
                pytest.fail("nothing comes from a dead stream")


@pytest.mark.parametrize("which", ["owner", "above", "also"])
async def test_it_goes_with_what_it_was_opened_on(wrap: Wrap, which: str) -> None:
    """A revocation of the owner, of what is above it, or of a further parent takes the stream away from its reader."""
    nodes = {"above": Revokable("card"), "also": Revokable("token")}
    nodes["owner"] = nodes["above"].open("device")
    async with pair(wrap, nodes["owner"], also=[nodes["also"]]) as (stream, peer), anyio.create_task_group() as group:
        receiving = start(group, stream.receive)
        await parked(stream.handle)
        await nodes[which].revoke("taken")
        assert stream.handle.released
        await receiving.done.wait()
        assert receiving.error.in_flight
        assert receiving.error.reason == "taken"
        assert peer.recv(1) == b""
        assert nodes["also"].revoked == (which == "also")


async def test_an_owner_that_refuses_takes_nothing_over(wrap: Wrap) -> None:
    """RevokedError from the constructor; what was to be wrapped is still the caller's, open and as it was."""
    owner = Revokable("device")
    owner.revoke("gone")
    ours, peer = socket.socketpair()
    with ours, peer:
        if wrap is over_fd:
            with pytest.raises(RevokedError, match="gone"):
                await wrap(ours, owner)
            assert ours.getblocking()
            peer.send(b"x")
            assert ours.recv(1) == b"x"
        else:
            inner = await anyio.abc.UNIXSocketStream.from_socket(ours)
            with pytest.raises(RevokedError, match="gone"):
                RevokableStream(inner, owner)
            peer.send(b"x")
            assert await inner.receive() == b"x"
            await inner.aclose()


async def test_closing_is_told_apart_from_revoking(wrap: Wrap) -> None:
    """aclose() ends parked operations of others and all later ones with ClosedResourceError, and is fine twice."""
    async with pair(wrap) as (stream, peer), anyio.create_task_group() as group:
        receiving = start(group, stream.receive)
        sending = start(group, stream.send, BIG)
        await parked(stream.handle, 2)
        await stream.aclose()
        assert stream.handle.released
        assert stream.handle.closed
        await receiving.done.wait()
        await sending.done.wait()
        await read_on(peer)  # to its end
        assert isinstance(receiving.outcome, anyio.ClosedResourceError)
        assert isinstance(sending.outcome, anyio.ClosedResourceError)
        for call in (stream.receive, functools.partial(stream.send, b""), stream.send_eof):
            with pytest.raises(anyio.ClosedResourceError):
                await call()
        await stream.aclose()


async def test_an_owner_that_closes_is_the_world_to_its_streams(wrap: Wrap) -> None:
    """Closing the node it is open on is RevokedError for the stream: its own user did not close it."""
    owner = Revokable("device")
    async with pair(wrap, owner) as (stream, _), anyio.create_task_group() as group:
        receiving = start(group, stream.receive)
        await parked(stream.handle)
        await owner.aclose()
        await receiving.done.wait()
        assert receiving.error.in_flight
        with pytest.raises(RevokedError):
            await stream.receive()
        await stream.aclose()  # and now the user did, too
        with pytest.raises(anyio.ClosedResourceError):
            await stream.receive()


async def test_a_cancelled_aclose_closes(wrap: Wrap) -> None:
    """Also forcefully, at once, and with others parked."""
    async with pair(wrap) as (stream, peer), anyio.create_task_group() as group:
        receiving = start(group, stream.receive)
        await parked(stream.handle)
        await anyio.aclose_forcefully(stream)
        await receiving.done.wait()
        assert isinstance(receiving.outcome, anyio.ClosedResourceError)
        await settle()
        assert stream.handle.released
        assert peer.recv(1) == b""


async def test_closing_from_inside_an_operation_of_ones_own_is_a_deadlock(wrap: Wrap) -> None:
    """RevokeDeadlock at once; it is closed all the same, when the operation has ended."""
    async with pair(wrap) as (stream, peer):
        with pytest.raises(RevokeDeadlock), stream.handle.using():
            await stream.aclose()
        await settle()
        assert stream.handle.released
        assert peer.recv(1) == b""


async def test_leaving_the_block_closes(wrap: Wrap) -> None:
    """``async with`` closes and waits for the release."""
    async with pair(wrap) as (stream, peer):
        async with stream as same:
            assert same is stream
        assert stream.handle.released
        assert peer.recv(1) == b""


# -- the face: grace and kick --


async def test_an_idle_reader_is_kicked_in_spite_of_a_grace(wrap: Wrap) -> None:
    """It waits for others to begin something, and would use up any grace; the parked writer keeps its time."""
    async with pair(wrap) as (stream, peer), anyio.create_task_group() as group:
        receiving = start(group, stream.receive)
        sending = start(group, stream.send, BIG)
        await parked(stream.handle, 2)
        act = stream.revoke("shutdown", grace=1000)
        await receiving.done.wait()
        assert receiving.error.in_flight
        await settle()
        assert not sending.done.is_set()
        assert not act.done()
        with pytest.raises(RevokedError):  # nothing new starts
            await stream.receive()
        assert await read_on(peer) == BIG  # and then the end: it is closed only behind the last byte
        await sending.done.wait()
        assert sending.outcome is None
        assert (await act).kicked == 1


async def test_a_handler_may_still_reply_during_the_grace(wrap: Wrap) -> None:
    """Inside the task's own use of the handle a parked receive is not idle, and a send is granted, until the kick."""
    async with pair(wrap) as (stream, peer), anyio.create_task_group() as group:

        async def handle() -> object:
            with stream.handle.using():
                request = await stream.receive()
                await stream.send(b"reply to " + request)
                return await stream.receive()

        handling = start(group, handle)
        await parked(stream.handle, 2)
        act = stream.revoke("shutdown", grace=1000)
        await settle()
        assert not handling.done.is_set()
        peer.sendall(b"request")
        await settle()
        assert peer.recv(100) == b"reply to request"
        assert not handling.done.is_set()
        stream.revoke("now")
        await handling.done.wait()
        assert handling.error.in_flight
        assert handling.error.reason == "shutdown"
        await act


async def test_nobody_is_kicked_where_the_owner_says_so(wrap: Wrap) -> None:
    """Under ``kick=None`` the revocation waits; who is inside ends with what it came for, and nobody follows."""
    owner = Revokable("entry", kick=None)
    async with pair(wrap, owner) as (stream, peer), anyio.create_task_group() as group:
        receiving = start(group, stream.receive)
        sending = start(group, stream.send, BIG)
        await parked(stream.handle, 2)
        act = owner.revoke("removed")
        await settle()
        assert not receiving.done.is_set()
        assert not sending.done.is_set()
        assert len(act.stragglers()) == 2
        peer.sendall(b"x")
        await receiving.done.wait()
        assert receiving.outcome == b"x"
        with pytest.raises(RevokedError):
            await stream.receive()
        assert await read_on(peer) == BIG
        await sending.done.wait()
        assert sending.outcome is None
        assert (await act).kicked == 0


async def test_a_hook_of_the_owner_is_told_of_the_stream(wrap: Wrap) -> None:
    """A callable `kick` is inherited: called with the stream's handle, in addition to ending its waits."""
    kicked: list[Revokable] = []
    owner = Revokable("device", kick=kicked.append)
    async with pair(wrap, owner) as (stream, _), anyio.create_task_group() as group:
        receiving = start(group, stream.receive)
        await parked(stream.handle)
        await owner.revoke()
        await receiving.done.wait()
        assert receiving.error.in_flight
        assert kicked == [owner, stream.handle]


# -- the face: answers --


def answered(outcome: object) -> int | Answer | None:
    """What came out, as a row of a profile has it."""
    if isinstance(outcome, anyio.EndOfStream):
        assert isinstance(outcome.__cause__, RevokedError)
        return Answer.EOF
    assert isinstance(outcome, RevokedError)
    return outcome.errno


@pytest.mark.parametrize("inherited", [True, False])
@pytest.mark.parametrize(
    ("profile", "read", "write"),
    [
        pytest.param(answers.RFC, (Answer.EOF, Answer.EOF), (errno.EIO, errno.EIO), id="RFC"),
        pytest.param(answers.TTY, (Answer.EOF, Answer.EOF), (errno.EIO, errno.EIO), id="TTY"),
        pytest.param(answers.PTY_MASTER_CLOSED, (errno.EIO, Answer.EOF), (errno.EIO, errno.EIO), id="PTY"),
        pytest.param(answers.ALSA, (errno.EBADFD, errno.ENODEV), (errno.EBADFD, errno.ENODEV), id="ALSA"),
        pytest.param(answers.DEADFS, (errno.EIO, errno.EIO), (errno.EIO, errno.EIO), id="DEADFS"),
        # Nobody is kicked there; who is all the same, as its owner left out `kick=None`, gets what comes later.
        pytest.param(answers.SYSFS, (errno.ENODEV, errno.ENODEV), (errno.ENODEV, errno.ENODEV), id="SYSFS"),
    ],
)
async def test_a_dead_stream_answers_by_its_profile(
    wrap: Wrap,
    profile: Answers,
    read: tuple[int | Answer, int | Answer],
    write: tuple[int | Answer, int | Answer],
    inherited: bool,
) -> None:
    """In flight and later, reading and writing; the profile is its own, or its owner's."""
    owner = Revokable("device", answers=profile if inherited else answers.RFC)
    options = {} if inherited else {"answers": profile}
    async with pair(wrap, owner, **options) as (stream, _), anyio.create_task_group() as group:
        receiving = start(group, stream.receive)
        sending = start(group, stream.send, BIG)
        await parked(stream.handle, 2)
        await owner.revoke()
        await receiving.done.wait()
        await sending.done.wait()
        later = []
        for function in (stream.receive, functools.partial(stream.send, b"x"), stream.send_eof):
            later.append(start(group, function))
            await later[-1].done.wait()
        assert (answered(receiving.outcome), answered(later[0].outcome)) == read
        assert (answered(sending.outcome), answered(later[1].outcome)) == write
        assert answered(later[2].outcome) == write[1]
        await stream.aclose()
        with pytest.raises(anyio.ClosedResourceError):  # no profile speaks for what its own user closed
            await stream.receive()


@pytest.mark.parametrize("profile", [answers.TTY, answers.ALSA])
async def test_a_loop_around_a_dead_stream_starves_nobody(wrap: Wrap, profile: Answers) -> None:
    """An end of data that is an answer is a checkpoint, as every error is: others have their turns."""
    async with pair(wrap, answers=profile) as (stream, _):
        stream.revoke()

        async def receive() -> None:
            with contextlib.suppress(anyio.EndOfStream, RevokedError):
                await stream.receive()

        assert await turns_beside(receive, 10 * READY) >= 9


async def test_a_loop_around_a_flooding_stream_starves_nobody(wrap: Wrap) -> None:
    """Whichever way it receives: what is there, or what was received for a record before."""
    async with pair(wrap) as (stream, peer):

        async def receive() -> None:
            peer.sendall(b"x")
            assert await stream.receive(1) == b"x"

        async def send() -> None:
            await stream.send(b"x")
            assert peer.recv(1) == b"x"

        assert await turns_beside(receive, 10 * READY) >= 9
        assert await turns_beside(send, 10 * READY) >= 9
        peer.sendall(b"x\n" * 40 * READY)
        for record in functools.partial(stream.receive_exactly, 2), stream.receive_line:
            assert await turns_beside(record, 10 * READY) >= 9
        assert await turns_beside(functools.partial(stream.receive_until, b"\n"), 10 * READY) >= 9
        assert await turns_beside(functools.partial(stream.receive_record, lambda _: 2), 10 * READY) >= 9


# -- the face: facts --


async def test_it_tells_its_handle(wrap: Wrap) -> None:
    """By attribute, by typed attribute, and in its repr, which shows live facts."""
    owner = Revokable("bus")
    async with pair(wrap, owner, name="port") as (stream, _):
        assert stream.handle.parent is owner
        assert stream.extra(RevokableAttribute.handle) is stream.handle
        assert repr(stream) == f"<{type(stream).__name__} of <Revokable 'bus/port' live in_use=0 open=0>>"
        await stream.revoke()
        assert "'bus/port' released" in repr(stream)


async def test_a_parked_reader_is_named_with_its_line(wrap: Wrap) -> None:
    """Who is inside can be asked at any time: task, file, and the user's line, not the plumbing's."""
    async with pair(wrap, name="port") as (stream, _), anyio.create_task_group() as group:

        async def read_on_and_on() -> None:
            await stream.receive()

        receiving = start(group, read_on_and_on)
        await parked(stream.handle)
        (user,) = stream.handle.users()
        assert (user.kind, user.path) == ("operation", "port")
        assert user.where.startswith("test_stream.py:")
        assert user.where.endswith("in read_on_and_on")
        stream.revoke()
        await receiving.done.wait()


# -- the face: the suites of trio --


@contextlib.contextmanager
def in_words_of_trio() -> Generator[None]:
    try:
        yield
    except anyio.BrokenResourceError as exc:
        raise trio.BrokenResourceError from exc
    except anyio.ClosedResourceError as exc:
        raise trio.ClosedResourceError from exc
    except anyio.BusyResourceError as exc:
        raise trio.BusyResourceError(*exc.args) from exc


class TrioFace(trio.abc.HalfCloseableStream):
    """One of our streams as trio's interface. What is one at a time is the stream's affair, but for the wait added here."""

    def __init__(self, stream: Face, fd: int) -> None:
        self.stream = stream
        self._fd = fd
        self._sending = 0
        self._sent_eof = False
        self._waiting = anyio.ResourceGuard("waiting to write to")

    async def receive_some(self, max_bytes: int | None = None) -> bytes:
        with in_words_of_trio():
            try:
                return await (self.stream.receive() if max_bytes is None else self.stream.receive(max_bytes))
            except anyio.EndOfStream:
                return b""

    async def _write(self, function: Callable[..., Awaitable[None]], *args: object) -> None:
        with in_words_of_trio():
            with self._waiting:  # nobody waits
                self._sending += 1
            try:
                await function(*args)
            finally:
                self._sending -= 1

    async def send_all(self, data: bytes | bytearray | memoryview) -> None:
        await self._write(self.stream.send, data)

    async def send_eof(self) -> None:
        await self._write(self.stream.send_eof)
        self._sent_eof = True

    async def wait_send_all_might_not_block(self) -> None:
        with in_words_of_trio():
            if self._sending:
                raise anyio.BusyResourceError("writing to")
            with self._waiting:
                await anyio.lowlevel.checkpoint()
                with self.stream.handle.using():
                    if self._sent_eof:
                        raise anyio.ClosedResourceError
                    await anyio.wait_writable(self._fd)

    async def aclose(self) -> None:
        with in_words_of_trio():
            await self.stream.aclose()


def clog(fd: int) -> None:
    """Write until nothing more is taken."""
    sock = socket.socket(fileno=fd)
    try:
        sock.setblocking(False)
        with contextlib.suppress(BlockingIOError):
            while True:
                sock.send(bytes(65536))
    finally:
        sock.detach()


@on_trio
@pytest.mark.parametrize("check", [trio.testing.check_two_way_stream, trio.testing.check_half_closeable_stream])
async def test_it_passes_the_suites_of_trio(
    wrap: Wrap, check: Callable[[Callable[[], Awaitable[Any]], Callable[[], Awaitable[Any]]], Awaitable[None]]
) -> None:
    """On socket pairs, with and without clogged ones."""

    async def make(*, clogged: bool = False) -> tuple[TrioFace, ...]:
        socks = socket.socketpair()
        numbers = [sock.fileno() for sock in socks]
        for number in numbers if clogged else ():
            clog(number)
        return tuple([TrioFace(await wrap(sock), number) for sock, number in zip(socks, numbers, strict=True)])

    await check(make, functools.partial(make, clogged=True))


# -- both kinds, wrapped by AnyIO --


async def test_a_buffered_stream_wraps_ours(wrap: Wrap) -> None:
    """BufferedByteStream reads by delimiter and count, keeps what it has, and then passes our error on."""
    async with pair(wrap) as (stream, peer), anyio.create_task_group() as group:
        buffered = BufferedByteStream(stream)
        assert buffered.extra(RevokableAttribute.handle) is stream.handle
        peer.sendall(b"line\nexactrest")
        assert await buffered.receive_until(b"\n", 100) == b"line"
        assert await buffered.receive_exactly(5) == b"exact"
        await buffered.send(b"x")
        assert peer.recv(1) == b"x"
        assert await buffered.receive(2) == b"re"
        waiting = start(group, buffered.receive_until, b"\n", 100)
        await parked(stream.handle)
        stream.revoke("gone")
        await waiting.done.wait()
        assert waiting.error.in_flight
        assert buffered.buffer == b"st"
        with pytest.raises(RevokedError, match="gone"):
            await buffered.receive_exactly(5)
        await buffered.aclose()
        assert stream.handle.closed


async def test_an_answer_inside_a_buffered_stream_is_an_incomplete_read(wrap: Wrap) -> None:
    """An end of data that a profile answers is an end of data to those who wrap us."""
    async with pair(wrap, answers=answers.TTY) as (stream, peer), anyio.create_task_group() as group:
        buffered = BufferedByteStream(stream)
        peer.sendall(b"half a li")
        waiting = start(group, buffered.receive_until, b"\n", 100)
        await parked(stream.handle)
        stream.revoke()
        await waiting.done.wait()
        assert isinstance(waiting.outcome, anyio.IncompleteRead)


async def test_a_text_stream_wraps_ours(wrap: Wrap) -> None:
    """TextStream decodes across our boundaries, iterates to our end, and closes us."""
    async with pair(wrap) as (stream, peer):
        text = TextStream(stream)
        await text.send("grün")
        assert peer.recv(100) == "grün".encode()
        peer.sendall("rö".encode()[:2])
        assert await text.receive() == "r"
        peer.sendall("rö".encode()[2:])
        peer.shutdown(socket.SHUT_WR)
        assert [piece async for piece in text] == ["ö"]
        await text.aclose()
        assert stream.handle.released
        with pytest.raises(anyio.ClosedResourceError):
            await text.send("x")


async def test_two_of_ours_can_be_stapled(wrap: Wrap) -> None:
    """StapledByteStream of two streams: each direction dies alone, send_eof closes the one that sends."""
    async with pair(wrap) as (sending, there), pair(wrap) as (receiving, here):
        both = StapledByteStream(sending, receiving)
        assert both.extra(RevokableAttribute.handle) is receiving.handle
        here.sendall(b"in")
        assert await both.receive() == b"in"
        await both.send(b"out")
        assert there.recv(100) == b"out"
        await both.send_eof()
        assert sending.handle.closed
        assert there.recv(100) == b""
        receiving.revoke()
        with pytest.raises(RevokedError):
            await both.receive()
        with pytest.raises(anyio.ClosedResourceError):
            await both.send(b"x")
        await both.aclose()
        assert receiving.handle.closed


# -- RevokableStream --


class Inner(anyio.abc.ByteStream):
    """An inner stream that never suspends unless it is told to, and keeps a log."""

    def __init__(self, *, raises: BaseException | None = None) -> None:
        self.raises = raises
        self.log: list[str] = []
        self.inside: list[str] = []
        self.peer_answers = anyio.Event()  # what a graceful close waits for
        self.peer_answers.set()
        self.parks = False
        self.attributes: dict[Any, Callable[[], Any]] = {}

    @property
    def extra_attributes(self) -> dict[Any, Callable[[], Any]]:
        return self.attributes

    async def _do(self, name: str) -> None:
        self.log.append(name)
        if self.parks:
            self.inside.append(name)
            try:
                await anyio.Event().wait()
            finally:
                self.inside.remove(name)
        if self.raises is not None:
            raise self.raises

    async def receive(self, max_bytes: int = 65536) -> bytes:
        await self._do(f"receive {max_bytes}")
        return b"x"

    async def send(self, item: bytes) -> None:
        await self._do(f"send {item!r}")

    async def send_eof(self) -> None:
        await self._do("send_eof")

    async def aclose(self) -> None:
        """Waits for its peer where it has to, and lets go of what it has in any case: what AnyIO asks of an aclose."""
        self.log.append("aclose" if not self.inside else f"aclose while in {self.inside}")
        try:
            await self.peer_answers.wait() if not self.peer_answers.is_set() else None
        finally:
            self.log.append("let go")
        if self.raises is not None:
            raise self.raises


async def test_an_inner_stream_that_never_suspends_starves_nobody() -> None:
    """Every operation is a checkpoint of ours, whatever the inner stream does."""
    inner = Inner()
    stream = RevokableStream(inner)
    assert await suspensions(stream.receive(7))
    assert await suspensions(stream.send(b"x"))
    assert await suspensions(stream.send(b""))
    assert await suspensions(stream.send_eof())
    assert await suspensions(stream.send_eof())
    assert await suspensions(stream.aclose())
    assert await suspensions(stream.receive())
    assert await suspensions(stream.aclose())
    assert inner.log == ["receive 7", "send b'x'", "send b''", "send_eof", "aclose", "let go"]


@pytest.mark.parametrize(
    "error",
    [anyio.BrokenResourceError("line"), anyio.EndOfStream(), anyio.IncompleteRead(), OSError(5, "x"), KeyError(1)],
)
async def test_errors_of_the_inner_stream_pass_unchanged(error: Exception) -> None:
    """The very exception comes out, of each operation, under any profile; and the stream is still there."""
    stream = RevokableStream(Inner(raises=error), answers=answers.ALSA)
    for call in (stream.receive, functools.partial(stream.send, b"x"), stream.send_eof):
        with pytest.raises(type(error)) as caught:
            await call()
        assert caught.value is error
        assert not stream.handle.in_use
    assert not stream.handle.revoked


async def test_a_send_eof_that_failed_may_be_tried_again() -> None:
    """Only a send_eof that succeeded closes the direction."""
    inner = Inner(raises=anyio.BrokenResourceError())
    stream = RevokableStream(inner)
    with pytest.raises(anyio.BrokenResourceError):
        await stream.send_eof()
    inner.raises = None
    await stream.send(b"x")
    await stream.send_eof()
    assert inner.log == ["send_eof", "send b'x'", "send_eof"]
    await stream.aclose()


async def test_an_error_made_of_the_kick_by_the_inner_stream_passes_unchanged() -> None:
    """An operation that answers the kick with an error of its own is believed."""
    mine = KeyError("mine")

    class Stubborn(Inner):
        async def receive(self, max_bytes: int = 65536) -> bytes:
            try:
                return await super().receive(max_bytes)
            finally:
                raise mine

    inner = Stubborn()
    inner.parks = True
    stream = RevokableStream(inner)
    async with anyio.create_task_group() as group:
        receiving = start(group, stream.receive)
        await parked(stream.handle)
        await stream.revoke()
        await receiving.done.wait()
        assert receiving.outcome is mine


async def test_a_result_that_is_there_when_the_kick_comes_is_delivered() -> None:
    """I6: an item handed over to the reader before the revocation, in the same step, is received."""
    feed, items = anyio.create_memory_object_stream[bytes](0)
    inner = StapledByteStream(feed, BufferedByteReceiveStream(items))  # type: ignore[arg-type]  # an object stream of bytes
    stream = RevokableStream(inner)
    async with anyio.create_task_group() as group:
        receiving = start(group, stream.receive)
        await parked(stream.handle)
        feed.send_nowait(b"just in time")
        stream.revoke()
        await receiving.done.wait()
        assert receiving.outcome == b"just in time"
    await stream.aclose()


async def test_attributes_of_the_inner_stream_are_told() -> None:
    """Merged with ours; of nested ones the outermost speaks."""
    inner = Inner()
    inner.attributes = {anyio.abc.SocketAttribute.remote_port: lambda: 7}
    nested = RevokableStream(inner)
    stream = RevokableStream(nested)
    assert stream.extra(anyio.abc.SocketAttribute.remote_port) == 7
    assert stream.extra(RevokableAttribute.handle) is stream.handle
    assert nested.extra(RevokableAttribute.handle) is nested.handle
    assert len(stream.extra_attributes) == 2
    await stream.aclose()


# -- RevokableStream: over streams of AnyIO --


@contextlib.asynccontextmanager
async def over_memory() -> AsyncIterator[tuple[anyio.abc.ByteStream, anyio.abc.ByteStream]]:
    there, here = anyio.create_memory_object_stream[bytes](0), anyio.create_memory_object_stream[bytes](0)
    yield (
        StapledByteStream(there[0], BufferedByteReceiveStream(here[1])),  # type: ignore[arg-type]  # object streams of bytes
        StapledByteStream(here[0], BufferedByteReceiveStream(there[1])),  # type: ignore[arg-type]
    )


@contextlib.asynccontextmanager
async def over_tcp() -> AsyncIterator[tuple[anyio.abc.ByteStream, anyio.abc.ByteStream]]:
    with socket.create_server(("127.0.0.1", 0)) as listener:
        connected = await anyio.connect_tcp("127.0.0.1", listener.getsockname()[1])
        accepted, _ = listener.accept()
        yield connected, await anyio.abc.SocketStream.from_socket(accepted)


Inners = Callable[[], contextlib.AbstractAsyncContextManager[tuple[anyio.abc.ByteStream, anyio.abc.ByteStream]]]


@pytest.mark.parametrize("inners", [over_memory, over_tcp])
async def test_any_stream_of_anyio_can_be_wrapped(inners: Inners) -> None:
    """Traffic, a kick of reader and writer, and a release that the peer sees."""
    async with inners() as (inner, peer), peer, anyio.create_task_group() as group:
        stream = RevokableStream(inner, Revokable("service"), name="connection")
        sending = start(group, stream.send, b"ping")
        assert await peer.receive() == b"ping"
        await sending.done.wait()
        receiving = start(group, stream.receive)
        await peer.send(b"pong")
        await receiving.done.wait()
        assert receiving.outcome == b"pong"

        receiving = start(group, stream.receive)
        sending = start(group, stream.send, BIG + BIG)
        await parked(stream.handle, 2)
        report = await stream.revoke("drained")
        assert report.kicked == 2
        for call in (receiving, sending):
            await call.done.wait()
            assert (call.error.in_flight, call.error.sent) == (True, None)
        with contextlib.suppress(anyio.EndOfStream, anyio.BrokenResourceError):
            while True:
                await peer.receive()
        await stream.aclose()


# -- RevokableStream: closing --


async def test_a_graceful_close_is_the_last_operation() -> None:
    """aclose() refuses others at once and waits for the inner aclose; the release finds nothing left to abort."""
    inner = Inner()
    inner.peer_answers = anyio.Event()
    stream = RevokableStream(inner)
    async with anyio.create_task_group() as group:
        closing = start(group, stream.aclose)
        await parked(stream.handle)
        assert stream.handle.closed
        for call in (stream.receive, functools.partial(stream.send, b"x"), stream.send_eof):
            with pytest.raises(anyio.ClosedResourceError):
                await call()
        assert not stream.handle.released
        inner.peer_answers.set()
        await closing.done.wait()
        assert closing.outcome is None
    assert stream.handle.released
    assert inner.log == ["aclose", "let go"]


@pytest.mark.parametrize("name", ["receive", "send", "send_eof"])
async def test_the_inner_stream_is_closed_when_all_others_have_left_it(name: str) -> None:
    """The close is the last operation: nobody is inside the inner stream when its aclose() begins."""
    inner = Inner()
    inner.parks = True
    stream = RevokableStream(inner)
    async with anyio.create_task_group() as group:
        call = start(group, getattr(stream, name), *[b"x"] * (name == "send"))
        await parked(stream.handle)
        await stream.aclose()
        await call.done.wait()
        assert isinstance(call.outcome, anyio.ClosedResourceError)
    assert inner.log[1:] == ["aclose", "let go"]


@pytest.mark.parametrize("by", ["revocation", "cancellation", "force", "cancellation of another"])
async def test_a_close_that_hangs_can_be_ended(by: str) -> None:
    """A revocation, a cancellation of whoever closes, or a forceful close: the inner stream is aborted."""
    inner = Inner()
    inner.peer_answers = anyio.Event()  # a peer that never answers
    owner = Revokable("service")
    stream = RevokableStream(inner, owner)
    async with anyio.create_task_group() as group:
        closing = start(group, stream.aclose)
        await parked(stream.handle)
        if by == "revocation":
            await owner.revoke("deploy")
        elif by == "cancellation":
            closing.scope.cancel()
        elif by == "force":
            await anyio.aclose_forcefully(stream)
        else:
            another = start(group, stream.aclose)
            await settle()
            another.scope.cancel()
            await another.done.wait()
            assert another.scope.cancelled_caught
        await closing.done.wait()
        assert closing.outcome is None
        await settle()
    assert stream.handle.released
    assert stream.handle.closed
    assert inner.log == ["aclose", "let go", "aclose", "let go"]
    assert closing.scope.cancelled_caught == (by == "cancellation")


async def test_a_hanging_close_keeps_the_grace() -> None:
    """A revocation with grace lets the close in flight end well."""
    inner = Inner()
    inner.peer_answers = anyio.Event()
    stream = RevokableStream(inner)
    async with anyio.create_task_group() as group:
        closing = start(group, stream.aclose)
        await parked(stream.handle)
        act = stream.revoke("deploy", grace=1000)
        await settle()
        assert not closing.done.is_set()
        inner.peer_answers.set()
        await act
        await closing.done.wait()
        assert closing.outcome is None
    assert inner.log == ["aclose", "let go"]


async def test_a_second_close_does_not_cut_the_first_one_short() -> None:
    """Two tasks close gracefully: both wait for the peer."""
    inner = Inner()
    inner.peer_answers = anyio.Event()
    stream = RevokableStream(inner)
    async with anyio.create_task_group() as group:
        closing = start(group, stream.aclose)
        await parked(stream.handle)
        again = start(group, stream.aclose)
        await settle()
        inner.peer_answers.set()
        await closing.done.wait()
        await again.done.wait()
        assert (closing.outcome, again.outcome) == (None, None)
    assert inner.log == ["aclose", "let go"]


async def test_a_thread_that_revokes_what_nobody_has_used_has_the_loop_do_it() -> None:
    """A stream is of the loop that it was made in: what its release does there must not be done by others."""
    done_by: list[int] = []
    async with pair(over_anyio) as (stream, peer):
        release = stream.handle.release
        assert release is not None

        def noted() -> Awaitable[object] | object:
            done_by.append(threading.get_ident())
            return release()

        stream.handle.release = noted
        await anyio.to_thread.run_sync(revoke_threadsafe, stream.handle)
        await stream.handle.revoke()
        assert done_by == [threading.get_ident()]
        assert peer.recv(1) == b""


async def test_a_release_does_not_wait_for_the_peer() -> None:
    """A revocation aborts: the inner aclose is cancelled at its first wait."""
    inner = Inner()
    inner.peer_answers = anyio.Event()  # a peer that never answers
    stream = RevokableStream(inner)
    with anyio.fail_after(20):
        await stream.revoke()
    assert inner.log == ["aclose", "let go"]
    await stream.aclose()
    assert inner.log == ["aclose", "let go"]


async def test_a_forceful_close_does_not_wait_for_the_peer() -> None:
    """`aclose_forcefully` returns at once, and what it let go of is gone in a step or two."""
    inner = Inner()
    inner.peer_answers = anyio.Event()  # a peer that never answers
    stream = RevokableStream(inner)
    with anyio.fail_after(20):
        await anyio.aclose_forcefully(stream)
    await settle()
    assert stream.handle.released
    assert inner.log[-1] == "let go"


async def test_an_error_of_the_inner_close_is_raised() -> None:
    """To the caller of aclose(), unchanged; the stream is released all the same."""
    inner = Inner(raises=anyio.BrokenResourceError("goodbye failed"))
    stream = RevokableStream(inner)
    with pytest.raises(anyio.BrokenResourceError) as caught:
        await stream.aclose()
    assert caught.value is inner.raises
    inner.raises = None
    await settle()
    assert stream.handle.released
    with pytest.raises(anyio.ClosedResourceError):
        await stream.receive()


async def test_an_abort_that_fails_is_told_to_those_who_await() -> None:
    """What the inner stream raises while it is aborted comes out of the revocation; the stream is released."""
    inner = Inner(raises=OSError(5, "stuck"))
    stream = RevokableStream(inner)
    with pytest.raises(BaseExceptionGroup) as caught:
        await stream.revoke()
    assert caught.value.exceptions == (inner.raises,)
    assert stream.handle.released


# -- RevokableStream: nested --


@pytest.mark.parametrize("which", ["inner", "outer", "both"])
async def test_nested_streams_answer_for_themselves_alone(which: str) -> None:
    """Each maps its own revocation by its own profile; of both at once, the outer reports."""
    bottom = Inner()
    bottom.parks = True
    inner = RevokableStream(bottom, Revokable("bus", answers=answers.ALSA), name="inner")
    outer = RevokableStream(inner, Revokable("user", answers=answers.DEADFS), name="outer")
    async with anyio.create_task_group() as group:
        receiving = start(group, outer.receive)
        await parked(inner.handle)
        acts = [each.revoke() for each in (inner, outer) if which in ("both", each.handle.name)]
        await receiving.done.wait()
        for act in acts:
            await act
    speaks = inner.handle if which == "inner" else outer.handle
    assert receiving.error.node is speaks
    assert receiving.error.in_flight
    assert receiving.error.errno == (errno.EBADFD if which == "inner" else errno.EIO)
    with pytest.raises(RevokedError) as caught:
        await outer.receive()
    assert caught.value.node is speaks
    assert caught.value.errno == (errno.ENODEV if which == "inner" else errno.EIO)
    assert inner.handle.released  # the outer owns it, and aborts it
    assert outer.handle.revoked == (which != "inner")
    await outer.aclose()


@pytest.mark.parametrize("anyio_backend", [pytest.param(("asyncio", {}), id="asyncio")])
async def test_a_close_cancelled_before_its_first_step_leaves_nothing_behind(wrap: Wrap) -> None:
    """As `asyncio.run` may do at its end: the stream is as it was, and can be closed."""
    async with pair(wrap) as (stream, peer):
        closing = asyncio.create_task(stream.aclose())
        closing.cancel()
        with contextlib.suppress(asyncio.CancelledError):
            await closing
        await anyio.aclose_forcefully(stream)
        await settle()
        assert stream.handle.released
        assert peer.recv(1) == b""


async def test_a_stream_that_stays_silent_is_taken_away(wrap: Wrap) -> None:
    """Who waits for longer than the limit gets the error with the reason; nothing of the limit is left when it is closed."""
    async with pair(wrap) as (stream, _):
        stream.limit_idle(0.01)
        with pytest.raises(RevokedError) as caught:
            await stream.receive()
        assert caught.value.reason == "nothing has come for 0.01 s"
        with pytest.raises(RevokedError):
            stream.limit_idle(1)
    for wrong in 0, -1, float("nan"):
        with pytest.raises(ValueError, match="seconds"):
            stream.limit_idle(wrong)


async def test_the_limit_counts_from_when_somebody_began_to_wait(wrap: Wrap, monkeypatch: pytest.MonkeyPatch) -> None:
    """Nothing is said of a stream that nobody reads; what comes begins a new wait; closed, it is not looked at any more."""
    looks: list[tuple[float, Callable[[], object]]] = []
    closed: list[int] = []

    class ByHand:
        def __init__(self, seconds: float, look: Callable[[], object]) -> None:
            self.number = len(looks)
            looks.append((seconds, look))

        def close(self) -> None:
            closed.append(self.number)

    monkeypatch.setattr("asyncrevoke._streams.face.Deadline", ByHand)
    async with pair(wrap) as (stream, peer), anyio.create_task_group() as group:
        stream.limit_idle(3600)
        looks[-1][1]()
        assert looks[-1][0] == pytest.approx(3600, abs=1)  # nobody waits
        call = start(group, stream.receive)
        await parked(stream.handle)
        looks[-1][1]()
        assert 0 < looks[-1][0] <= 3600
        peer.sendall(b"x")
        await call.done.wait()
        call = start(group, stream.receive)
        await parked(stream.handle)
        for user in stream.handle._uses or ():
            user.since -= 3599
        looks[-1][1]()
        assert 0 < looks[-1][0] <= 1
        assert not stream.handle.revoked
        for user in stream.handle._uses or ():
            user.since -= 1
        looks[-1][1]()
        await call.done.wait()
        assert isinstance(call.error, RevokedError)
    assert closed == [len(looks) - 1]


def test_a_limit_needs_a_loop_and_leaves_nothing_without() -> None:
    """It says so; the stream goes on as it was."""
    ours, peer = socket.socketpair()
    stream = FdStream(ours.detach())
    with peer, pytest.raises(RuntimeError, match="running event loop"):
        stream.limit_idle(1)
    assert not stream.handle.in_use
    stream.handle.revoke()
    assert stream.handle.released
