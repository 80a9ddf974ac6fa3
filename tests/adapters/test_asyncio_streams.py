"""The faces of asyncio: transports, protocols, readers and writers, over real ptys and sockets."""

import asyncio
import contextlib
import dataclasses
import errno
import fcntl
import functools
import gc
import itertools
import os
import pathlib
import re
import socket
import ssl
import struct
import sys
import termios
import threading
import traceback
import tty
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from typing import Any

import anyio
import anyio.lowlevel
import pytest

from asyncrevoke import Revokable, RevokedError, answers
from asyncrevoke.adapters.asyncio_streams import (
    SerialTransport,
    create_serial_connection,
    open_serial_connection,
    wrap_streams,
    wrapped as asyncio_streams,
)
from asyncrevoke.adapters.serial import SerialRevokedError
from asyncrevoke.testing import Subject, check_revokable
from conftest import settle
from operations import asyncio_only
from ports import FarEnd, may_hang_up, serial_line

pytestmark = [pytest.mark.anyio, asyncio_only]

BIG = bytes(range(256)) * 4096  # 1 MiB: no line holds that much
Hook = Callable[[SerialTransport], object]
Pair = tuple[asyncio.StreamReader, asyncio.StreamWriter]


def links(fd: int | str = "*") -> list[str]:
    """What descriptors of this process are open on."""
    found = []
    for entry in pathlib.Path("/proc/self/fd").glob(str(fd)):
        with contextlib.suppress(OSError):
            found.append(str(entry.readlink()).split(" ", maxsplit=1)[0])
    return found


def is_open(far: FarEnd) -> bool:
    """Whether anybody but the far end itself has the port open."""
    return links().count(far.path) > 1


def node_of(face: object) -> Revokable:
    node = face.handle  # type: ignore[attr-defined]  # what it is now, its type does not tell
    assert isinstance(node, Revokable)
    return node


CLOSE, ABORT, REVOKE = "close", "abort", "revoke"


def finish(face: SerialTransport | asyncio.StreamWriter, how: str) -> None:
    if how == REVOKE:
        node_of(face).revoke("taken")
    elif how == ABORT and isinstance(face, asyncio.StreamWriter):
        face.transport.abort()
    else:
        getattr(face, how)()


class Told(asyncio.Protocol):
    """What a protocol is told, in order; and what it does then."""

    transport: SerialTransport

    def __init__(self, far: FarEnd, hooks: dict[str, Hook], *, closed: bool = True) -> None:
        self.far = far
        self.hooks = hooks
        self.closed = closed  # the port is, when it is lost
        self.log: list[str] = []
        self.data = bytearray()
        self.lost = asyncio.Event()
        self.why: Exception | None = None

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        assert isinstance(transport, SerialTransport)
        self.transport = transport
        self._note("made")

    def data_received(self, data: bytes) -> None:
        self.data += data
        self._note("data")

    def pause_writing(self) -> None:
        self._note("pause")

    def resume_writing(self) -> None:
        self._note("resume")

    def connection_lost(self, exc: Exception | None) -> None:
        self.why = exc
        self.lost.set()
        assert not (self.closed and is_open(self.far))
        self._note("lost")

    def _note(self, what: str) -> None:
        self.log.append(what)
        if what in self.hooks:
            self.hooks[what](self.transport)

    def flow(self) -> list[str]:
        return [what for what in self.log if what in ("pause", "resume")]


@contextlib.asynccontextmanager
async def connection(hooks: dict[str, Hook] | None = None, **options: Any) -> AsyncIterator[Told]:
    """A protocol on a port. In the end it is told that it is lost: once, last, and when the port is closed."""
    with serial_line() as far, anyio.fail_after(20):
        loop = asyncio.get_running_loop()
        transport, told = await create_serial_connection(loop, lambda: Told(far, hooks or {}), far.path, **options)
        yield told
        transport.abort()
        await told.lost.wait()
        transport.close()
        transport.abort()
        transport.write(b"too late")
        await settle()
        assert not transport.is_reading()
        assert told.log.count("lost") == 1
        assert told.log[-1] == "lost"
        assert told.flow() == ["pause", "resume"] * (len(told.flow()) // 2) + ["pause"] * (len(told.flow()) % 2)


@contextlib.contextmanager
def reports() -> Iterator[list[str]]:
    """What the loop's exception handler is told."""
    told: list[str] = []
    loop = asyncio.get_running_loop()
    before = loop.get_exception_handler()
    loop.set_exception_handler(lambda _, context: told.append(context["message"]))
    try:
        yield told
    finally:
        loop.set_exception_handler(before)


async def until(true: Callable[[], object]) -> None:
    while not true():
        await anyio.lowlevel.checkpoint()


# -- the contract --


@contextlib.asynccontextmanager
async def a_protocol(profile: answers.Answers | None) -> AsyncIterator[Subject]:
    """An operation built on the transport alone."""
    owner = Revokable("owner", answers=profile or ...)
    async with connection({"data": lambda _: received.set()}, owner=owner) as told:
        received = asyncio.Event()
        handle = told.transport.handle

        async def wait() -> object:
            await anyio.lowlevel.checkpoint()
            with handle.using(idle=True):
                return await received.wait()

        yield Subject(handle, wait, feed=lambda: told.far.send(b"x"), gone=lambda: not is_open(told.far), owner=owner)


@contextlib.asynccontextmanager
async def revocable(kind: str, **options: Any) -> AsyncIterator[tuple[Pair, Any]]:
    """A pair of each kind and its far end. It is aborted in the end."""
    with anyio.fail_after(20), contextlib.ExitStack() as ends:
        far: Any
        pair: Pair
        if kind == "serial":
            far = ends.enter_context(serial_line())
            pair = await open_serial_connection(url=far.path, **options)
        else:
            if kind == "unix":
                near, far = socket.socketpair()
                plain = await asyncio.open_unix_connection(sock=near)
            elif kind == "tcp":
                with socket.create_server(("127.0.0.1", 0)) as listener:
                    plain = await asyncio.open_connection(*listener.getsockname())
                    far, _ = listener.accept()
            else:
                made: asyncio.Future[Pair] = asyncio.get_running_loop().create_future()
                server = await asyncio.start_server(lambda *pair: made.set_result(pair), "127.0.0.1", 0)
                far = socket.create_connection(server.sockets[0].getsockname())
                plain = await made
                server.close()
            ends.enter_context(far)
            pair = wrap_streams(*plain, **options)
        yield pair, far
        finish(pair[1], ABORT)
        await pair[1].wait_closed()


@contextlib.asynccontextmanager
async def streams(kind: str, profile: answers.Answers | None) -> AsyncIterator[Subject]:
    owner = Revokable("owner", answers=profile or ...)
    async with revocable(kind, owner=owner) as ((reader, writer), far):

        async def send() -> None:
            await writer.drain()
            writer.write(b"x")

        near = writer.get_extra_info("socket")
        link = far.path if near is None else links(near.fileno())[0]
        yield Subject(
            node_of(writer),
            lambda: reader.read(100),
            quick=send,
            feed=lambda: far.send(b"x"),
            gone=lambda: links().count(link) == (near is None),
            owner=owner,
        )


@pytest.mark.parametrize("profile", [None, answers.TTY], ids=["raise", "tty"])
@pytest.mark.parametrize("kind", ["transport", "serial", "tcp", "served", "unix"])
async def test_the_contract_holds(kind: str, profile: answers.Answers | None) -> None:
    """Whatever asyncio's face: it is taken away as all that is ours, and what was open is closed when that completes."""
    await check_revokable(lambda: a_protocol(profile) if kind == "transport" else streams(kind, profile))


# -- transports and protocols --


@pytest.mark.parametrize("where", ["made", "data", "pause", "held", "outside"])
@pytest.mark.parametrize("acts", [*itertools.product((CLOSE, ABORT, REVOKE), repeat=2)], ids="-".join)
async def test_the_first_to_end_it_is_told(acts: tuple[str, str], where: str) -> None:
    """Closed here: None. Revoked: the RevokedError, also by one who comes upon a close that has still to send."""

    def end(transport: SerialTransport) -> None:
        if not transport.handle.revoked and not transport.is_closing():
            for what in acts:
                finish(transport, what)
            assert transport.is_closing()

    async with connection({where: end}) as told:
        if where == "held":
            told.transport.pause_reading()
        told.far.send(b"x")
        if where == "pause":
            told.transport.write(BIG)
        if where in ("outside", "held"):
            await settle()
            end(told.transport)
        while not told.lost.is_set():
            if REVOKE not in acts:
                told.far.received()
            await anyio.lowlevel.checkpoint()
        revoked = acts[0] == REVOKE or (acts == (CLOSE, REVOKE) and where == "pause")
        assert isinstance(told.why, SerialRevokedError) is revoked
        assert (told.why is None) is not revoked
        assert told.transport.handle.revoked


@pytest.mark.parametrize("beside", [None, CLOSE, ABORT, REVOKE])
@pytest.mark.parametrize("paused", [False, True], ids=["reading", "paused"])
@pytest.mark.skipif(not may_hang_up(), reason="TIOCVHANGUP is for root")
async def test_an_unplug_is_noticed_and_told_once(beside: str | None, *, paused: bool) -> None:
    """Whether anything is read or not, and whatever is done beside it."""
    async with connection() as told:
        if paused:
            told.transport.pause_reading()
            told.far.send(b"held")
            await settle()
        assert told.transport.is_reading() is not paused
        told.far.hang_up()
        if beside:
            finish(told.transport, beside)
        await told.lost.wait()
        if beside in (None, REVOKE):
            assert isinstance(told.why, RevokedError)
            assert told.why.reason.startswith("taken" if beside else "unplugged")


@pytest.mark.parametrize("size", [10, len(BIG)], ids=["small", "big"])
async def test_a_close_sends_what_was_written(size: int) -> None:
    """Whatever the reader's pace; nothing is received meanwhile, and what is written afterwards is ignored."""
    async with connection() as told:
        told.transport.write(BIG[:size])
        told.transport.close()
        told.transport.write(b"too late")
        told.far.send(b"too late")
        got = bytearray()
        while len(got) < size or not told.lost.is_set():
            got += told.far.received()
            await anyio.lowlevel.checkpoint()
        assert bytes(got) == BIG[:size]
        assert not told.data
        assert told.why is None


async def test_what_fits_is_sent_before_a_write_returns() -> None:
    """Nothing is kept that the port takes; of what it does not take, the size is told."""
    async with connection() as told:
        told.transport.write(b"now")
        assert told.far.received() == b"now"
        assert told.transport.get_write_buffer_size() == 0
        told.transport.write(BIG)
        assert len(BIG) - len(told.far.received()) == told.transport.get_write_buffer_size() > 0


async def test_what_comes_while_reading_is_paused_stays_in_the_port() -> None:
    """It is received in full when reading goes on, also where the first pause comes before the first data."""
    async with connection({"made": lambda transport: transport.pause_reading()}) as told:
        for piece in b"one", b"two":
            told.far.send(piece)
            await settle()
            assert bytes(told.data) in (b"", b"one")
            assert not told.transport.is_reading()
            told.transport.resume_reading()
            await until(lambda piece=piece: told.data.endswith(piece))  # type: ignore[misc]
            told.transport.pause_reading()
        assert told.data == b"onetwo"


class Filled(asyncio.BufferedProtocol):
    """A protocol that gives room for three bytes at a time, or for none."""

    def __init__(self, room: int) -> None:
        self.room = bytearray(room)
        self.data = bytearray()

    def get_buffer(self, sizehint: int) -> bytearray:
        assert sizehint > 0
        return self.room

    def buffer_updated(self, nbytes: int) -> None:
        self.data += self.room[:nbytes]


@pytest.mark.parametrize("room", [3, 0])
async def test_a_buffered_protocol_is_given_what_its_buffer_takes(room: int) -> None:
    """As by asyncio's transports; one that gives no room is reported, and goes on."""
    with serial_line() as far, reports() as reported, anyio.fail_after(20):
        transport, filled = await create_serial_connection(asyncio.get_running_loop(), lambda: Filled(room), far.path)
        far.send(b"8 bytes!")
        await until(lambda: reported or len(filled.data) == 8)
        assert bytes(filled.data) == (b"8 bytes!" if room else b"")
        assert reported == ([] if room else ["protocol.data_received() failed"])
        await transport.handle.close()


@pytest.mark.invariant("I1")
async def test_nothing_is_received_when_a_revocation_has_returned() -> None:
    """Nor read that was received before, however many there are to be told; whoever waits is told in their turn."""
    owner = Revokable("owner")
    others = [owner.open() for _ in range(1000)]  # kicked first, in slices
    async with connection(owner=owner) as told, revocable("serial", owner=owner) as ((reader, _), far):
        far.send(b"xyz")
        assert await reader.readexactly(1) == b"x"
        told.far.send(b"late")
        act = owner.revoke("taken")
        assert not told.lost.is_set()
        for read in lambda: reader.read(1), lambda: reader.readexactly(1), reader.readline:
            assert isinstance(await outcome(read), SerialRevokedError)
        await act
        assert told.data == b""
        assert all(each.released for each in others)


async def test_a_second_reader_is_refused_and_disturbs_no_other() -> None:
    """As with asyncio's reader."""
    async with revocable("serial") as ((reader, _), far):
        reading = asyncio.create_task(reader.read(10))
        await settle()
        for read in lambda: reader.read(1), reader.readline:
            assert isinstance(await outcome(read), RuntimeError)
        far.send(b"x")
        assert await reading == b"x"


@pytest.mark.parametrize("part", ["none", "some"])
async def test_a_read_that_is_kicked_says_that_it_was_running(part: str) -> None:
    """Whether it has got a part of what it wants, or nothing yet."""
    async with revocable("serial") as ((reader, writer), far):
        reading = asyncio.create_task(reader.readexactly(10))
        await settle()
        if part == "some":
            far.send(b"x")
        act = node_of(writer).revoke("taken") if part == "none" else None
        while part == "some" and not reader._buffer:  # type: ignore[attr-defined]
            await anyio.lowlevel.checkpoint()
        act = act or node_of(writer).revoke("taken")
        error = await outcome(lambda: reading)
        assert isinstance(error, SerialRevokedError)
        assert error.in_flight
        await act


async def test_a_loop_of_writes_and_drains_lets_others_run() -> None:
    """Also where the port takes all, and no drain has to wait."""
    async with revocable("serial") as ((_, writer), _):
        ran = asyncio.Event()
        asyncio.get_running_loop().call_soon(ran.set)
        for _ in range(1000):
            if ran.is_set():
                break
            writer.write(b"")
            await writer.drain()
        assert ran.is_set()


async def test_a_stream_beside_the_transport_sends_as_well() -> None:
    """Both wait for one port to take more: each is told when it does."""
    async with connection() as told:
        stream = told.transport.device.open("beside")
        told.transport.write(b"a" * len(BIG))
        sending = asyncio.create_task(stream.send(b"b" * 100_000))
        got = bytearray()
        while len(got) < len(BIG) + 100_000:
            got += told.far.received()
            await anyio.lowlevel.checkpoint()
        await sending
        assert (got.count(b"a"), got.count(b"b")) == (len(BIG), 100_000)


async def test_an_abort_in_a_grace_ends_it() -> None:
    """What was written is thrown away, so nobody is waited for. It was taken away first, and so it is told."""
    async with connection() as told:
        told.transport.write(BIG)
        act = told.transport.handle.revoke("taken", grace=3600)
        told.far.send(b"late")
        await settle()
        assert not told.lost.is_set()
        told.transport.abort()
        assert told.transport.get_write_buffer_size() == 0
        await act
        await told.lost.wait()
        assert isinstance(told.why, SerialRevokedError)
        assert told.data == b""


@pytest.mark.parametrize("wrap", [asyncio.ensure_future, lambda flush: asyncio.wait_for(flush, 20)])
async def test_what_is_written_after_a_flush_is_sent_after_it(wrap: Callable[[Any], Any]) -> None:
    """Also where a task is yet to await it, and the line has room already."""
    async with connection() as told:
        told.transport.write(b"a" * len(BIG))
        flush = asyncio.ensure_future(wrap(told.transport.flush()))
        got = bytearray(told.far.received())
        told.transport.write(b"b")
        while not got.endswith(b"b"):
            got += told.far.received()
            await anyio.lowlevel.checkpoint()
        assert got == b"a" * len(BIG) + b"b"
        await flush


async def test_a_port_of_another_librarys_transport_is_refused() -> None:
    """The transport waits itself; and the port is closed again."""
    with serial_line() as far:
        with pytest.raises(ValueError, match="descriptor"):
            await open_serial_connection(url=far.path, backend="serialx")
        assert not is_open(far)


async def test_pausing_and_resuming_alternate() -> None:
    """However often one writes, also from inside the callbacks."""
    rounds = iter(range(5))
    hooks: dict[str, Hook] = {
        "pause": lambda transport: transport.write(b"more"),
        "resume": lambda transport: transport.write(BIG[:100_000]) if next(rounds, None) is not None else None,
    }
    async with connection(hooks) as told:
        told.transport.set_write_buffer_limits(10, 5)
        for _ in range(3):
            told.transport.write(BIG[:100_000])
        while told.flow() != ["pause", "resume"] * 6:
            told.far.received()
            await anyio.lowlevel.checkpoint()
        await until(lambda: not told.transport.get_write_buffer_size())


async def test_a_protocol_is_paused_above_the_high_limit_and_resumed_at_the_low_one() -> None:
    """At the high one it is not paused yet; one limit given, the other is in proportion, as asyncio's."""
    async with connection() as told:
        for given, limits in ({"low": 3}, (3, 12)), ({"high": 8}, (2, 8)), ({"high": 10, "low": 0}, (0, 10)):
            told.transport.set_write_buffer_limits(**given)
            assert told.transport.get_write_buffer_limits() == limits
        told.transport.set_write_buffer_limits(len(BIG))
        told.transport.write(BIG)  # of which the line takes some
        unsent = told.transport.get_write_buffer_size()
        told.transport.set_write_buffer_limits(unsent + 10, 0)
        told.transport.write(bytes(10))
        assert told.flow() == []
        told.transport.write(b"x")
        assert told.flow() == ["pause"]
        while told.flow() != ["pause", "resume"]:
            assert told.transport.get_write_buffer_size()
            told.far.received()
            await anyio.lowlevel.checkpoint()


async def test_a_reader_at_rest_does_not_use_up_a_grace() -> None:
    """Nobody writes: a revocation with a grace is over at once, also when it is paused and holds what has come."""
    async with connection() as told:
        told.transport.pause_reading()
        told.far.send(b"held")
        await settle()
        await told.transport.handle.revoke("taken", grace=1000)


async def test_a_port_that_is_not_closed_well_is_reported() -> None:
    """The protocol is told that the connection is lost, all the same, and that it was closed here."""
    with reports() as reported:
        async with connection() as told:
            serial = told.transport.serial

            def close() -> None:
                del serial.close  # its finalizer calls it, too
                serial.close()
                fail()

            serial.close = close
            told.transport.close()
            await told.lost.wait()
            assert told.why is None
    assert reported == ["closing the port failed"]


async def test_a_flush_throws_away_what_was_written_before_it_only() -> None:
    """Also while a part of that is being sent: what comes later is sent in full."""
    async with connection() as told:
        told.transport.write(b"a" * len(BIG))
        await settle()
        told.transport.flush()
        assert told.flow() == ["pause", "resume"]  # at once: on a stalled line nothing else would do it
        told.transport.write(b"b" * 10_000)
        got = bytearray()
        while got.count(b"b") < 10_000:
            got += told.far.received()
            await anyio.lowlevel.checkpoint()
        assert got.count(b"a") < len(BIG)
        assert told.flow() == ["pause", "resume"]


FLUSHES: dict[str, Callable[[SerialTransport], Any]] = {
    "await": lambda transport: transport.flush(),
    "task": lambda transport: asyncio.ensure_future(transport.flush()),
    "wait_for": lambda transport: asyncio.wait_for(transport.flush(), 20),
}


@pytest.mark.parametrize("flush", FLUSHES.values(), ids=FLUSHES)
@pytest.mark.parametrize("closing", [False, True], ids=["open", "closing"])
async def test_an_awaited_flush_sends_all_in_order(flush: Callable[[SerialTransport], Any], *, closing: bool) -> None:
    """As serialx's: it waits until all is sent, and throws nothing away, however it comes to be awaited."""

    async def flushing() -> None:
        await flush(told.transport)

    async with connection() as told:
        told.transport.write(BIG)
        await settle()
        if closing:
            told.transport.close()
        task = asyncio.create_task(flushing())
        await settle()
        assert not task.done()
        told.transport.write(b"" if closing else b"after")
        expected = len(BIG) + (0 if closing else 5)
        got = bytearray()
        while len(got) < expected or not task.done():
            got += told.far.received()
            await anyio.lowlevel.checkpoint()
        assert bytes(got) == (BIG if closing else BIG + b"after")
        assert closing or await outcome(lambda: task) is None
        await outcome(lambda: task)


async def test_an_awaited_flush_in_a_grace_throws_nothing_away() -> None:
    """It is refused then; what was written is sent all the same."""
    async with connection() as told:
        told.transport.write(BIG)
        await settle()
        act = told.transport.handle.revoke(grace=3600)
        with pytest.raises(SerialRevokedError):
            await told.transport.flush()
        got = bytearray()
        while len(got) < len(BIG):
            got += told.far.received()
            await anyio.lowlevel.checkpoint()
        assert bytes(got) == BIG
        await act


async def test_a_flush_with_nothing_to_send_is_over_at_once() -> None:
    """Before anything was written, after all was thrown away, and after all was sent; awaited twice, too."""
    async with connection() as told:
        await told.transport.flush()
        told.transport.write(BIG)
        told.transport.flush()
        flush = told.transport.flush()
        await flush
        await flush
        told.far.received()
        told.transport.write(b"x")
        await told.transport.flush()
        assert told.far.received() == b"x"
        await told.transport.flush()


@pytest.mark.parametrize("end", [ABORT, REVOKE])
async def test_an_awaited_flush_is_ended_with_its_port(end: str) -> None:
    """On a stalled line, too: by the error of whoever ends it, and by the same when it comes later."""
    async with connection() as told:
        told.transport.write(BIG)
        await settle()
        flush = asyncio.ensure_future(told.transport.flush())
        await settle()
        finish(told.transport, end)
        for each in flush, asyncio.ensure_future(told.transport.flush()):
            error = await outcome(lambda each=each: each)  # type: ignore[misc]
            assert isinstance(error, SerialRevokedError if end == REVOKE else anyio.ClosedResourceError)


@pytest.mark.parametrize("end", [ABORT, REVOKE])
async def test_nothing_is_buffered_after_the_end(end: str) -> None:
    """After an abort at once, as with asyncio's transports; after a revocation when it is lost."""
    async with connection() as told:
        told.transport.write(BIG)
        await settle()
        assert told.transport.get_write_buffer_size() > len(BIG) // 2
        finish(told.transport, end)
        if end == REVOKE:
            await told.lost.wait()
        assert told.transport.get_write_buffer_size() == 0


@pytest.mark.parametrize("error", [ValueError, asyncio.CancelledError])
@pytest.mark.parametrize("failing", ["data", "pause", "resume", "lost"])
async def test_what_a_callback_raises_is_reported_and_loses_nothing(failing: str, error: type[BaseException]) -> None:
    """It goes on receiving and sending, as with pyserial-asyncio and serialx."""

    def fail(_: SerialTransport) -> None:
        raise error

    with reports() as reported:
        async with connection({failing: fail}) as told:
            told.far.send(b"one")
            await until(lambda: told.data == b"one")
            told.transport.write(BIG)
            got = bytearray()
            while len(got) < len(BIG):
                got += told.far.received()
                await anyio.lowlevel.checkpoint()
            told.far.send(b"two")
            await until(lambda: told.data == b"onetwo")
            assert bytes(got) == BIG
            assert told.flow() == ["pause", "resume"]
    name = {"data": "data_received", "pause": "pause_writing", "resume": "resume_writing", "lost": "connection_lost"}
    assert set(reported) == {f"protocol.{name[failing]}() failed"}


def fail(*_: object) -> Any:
    raise ZeroDivisionError


class Unfit(asyncio.Protocol):
    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        fail(transport)


BAD: list[dict[str, Any]] = [
    {"unknown": 1},
    {"baudrate": -1},
    {"bytesize": 17},
    {"url": "/dev/there is none"},
    {"loop": None},
    {"protocol_factory": fail},
    {"protocol_factory": Unfit},
]


@pytest.mark.parametrize("bad", BAD, ids=lambda bad: re.sub(" at 0x[0-9a-f]*", "", str(bad)))
async def test_what_cannot_be_opened_leaves_nothing_open(bad: dict[str, Any]) -> None:
    """When the error is raised the port can be opened again; options of both libraries that mean nothing are taken."""
    with serial_line() as far, anyio.fail_after(20):
        good: Any = {"loop": asyncio.get_running_loop(), "protocol_factory": asyncio.Protocol, "url": far.path}
        with pytest.raises((TypeError, ValueError, OSError, RuntimeError, ZeroDivisionError)):
            await create_serial_connection(**good | bad)
        assert not is_open(far)
        void = {"timeout": 1, "write_timeout": 0, "byte_size": 8, "low_latency": False}
        transport, _ = await create_serial_connection(**good | void)
        await transport.handle.close()


@pytest.mark.parametrize("end", ["at once", "all cancelled", "reading", "closing", "stalled", REVOKE])
def test_a_loop_that_ends_closes_the_port(end: str, anyio_backend: tuple[str, dict[str, Any]]) -> None:
    """Whatever is going on: connection_lost is called, nothing hangs, and nothing is reported."""
    told: list[Told] = []
    kept: list[object] = []  # a writer that nobody has warns, as any of asyncio's

    async def main() -> None:
        asyncio.get_running_loop().set_exception_handler(lambda _, context: reported.append(context))
        transport, protocol = await create_serial_connection(
            asyncio.get_running_loop(), lambda: Told(far, {}), far.path
        )
        told.append(protocol)
        reader, writer = await open_serial_connection(url=second.path)
        kept.append(writer)
        if end == "all cancelled":
            for task in asyncio.all_tasks() - {asyncio.current_task()}:
                task.cancel()
            await protocol.lost.wait()
            await writer.wait_closed()
        if end == "reading":
            asyncio.get_running_loop().create_task(reader.read())
        if end == REVOKE:
            finish(writer, REVOKE)
        if end == "stalled":
            transport.write(BIG)
            writer.write(BIG)
        if end in ("closing", "stalled"):
            transport.close()
            writer.close()

    reported: list[object] = []
    with serial_line() as far, serial_line() as second:
        anyio.run(main, backend_options=anyio_backend[1])
        assert told[0].log[-1] == "lost"
        while is_open(second):  # a thread closes it, for which a loop that ends does not wait
            os.sched_yield()
    gc.collect()
    assert reported == []


def test_a_loop_that_ends_leaves_a_stalled_close_behind(
    anyio_backend: tuple[str, dict[str, Any]], monkeypatch: pytest.MonkeyPatch
) -> None:
    """It ends while the port is being closed, the protocol is told, and the thread closes the port in its own time."""
    go, close = threading.Event(), os.close

    def stalled(fd: int) -> None:
        if links(fd) == [far.path] and threading.current_thread() is not threading.main_thread():
            go.wait()
        close(fd)

    monkeypatch.setattr(os, "close", stalled)
    told: list[Told] = []

    async def main() -> None:
        loop = asyncio.get_running_loop()
        transport, protocol = await create_serial_connection(loop, lambda: Told(far, {}, closed=False), far.path)
        told.append(protocol)
        transport.close()
        await settle()

    with serial_line() as far:
        anyio.run(main, backend_options=anyio_backend[1])
        assert told[0].log == ["made", "lost"]
        assert is_open(far)
        go.set()
        while is_open(far):
            os.sched_yield()


async def test_nothing_is_done_in_the_loop_that_may_block(monkeypatch: pytest.MonkeyPatch) -> None:
    """Opening, closing and settings go to the driver, who takes his time: they are made in threads."""
    blocking: list[str] = []
    loops = threading.get_ident()

    def watched(name: str, real: Callable[..., Any]) -> Callable[..., Any]:
        def call(*args: Any, **options: Any) -> Any:
            bit = name == "ioctl" and args[1] in (termios.TIOCEXCL, termios.TIOCNXCL)  # the kernel asks no driver
            if threading.get_ident() == loops and not bit and (name != "close" or links(args[0]) == [path]):
                blocking.append(name)
            return real(*args, **options)

        return call

    with serial_line() as far:
        path = far.path
        with monkeypatch.context() as patch:
            for module, name in [
                (os, "open"),
                (os, "close"),
                (fcntl, "ioctl"),
                *((termios, f"tc{what}") for what in ("setattr", "getattr", "drain", "flush")),
            ]:
                patch.setattr(module, name, watched(name, getattr(module, name)))
            for end in (CLOSE, ABORT, REVOKE):
                reader, writer = await open_serial_connection(url=path)
                writer.write(b"x")
                await writer.drain()
                far.send(b"x")
                assert await reader.read(1) == b"x"
                finish(writer, end)
                await writer.wait_closed()
        assert blocking == []


# -- readers and writers --


kinds = pytest.mark.parametrize("kind", ["serial", "tcp", "unix"])


async def outcome(operation: Callable[[], Awaitable[object]]) -> object:
    try:
        return await operation()
    except (Exception, asyncio.CancelledError) as exc:  # noqa: BLE001  # it is what is asked
        return exc


@kinds
@pytest.mark.parametrize("end", ["remote", "reset", CLOSE, ABORT, REVOKE, "tty"])
async def test_a_reader_at_its_end_starves_nobody(kind: str, end: str) -> None:
    """Reading on and on lets others run, and gets an exception of its own each time that does not grow."""
    async with revocable(kind, answers=answers.TTY if end == "tty" else ...) as ((reader, writer), far):
        far.send(b"left over")
        assert await reader.readexactly(1) == b"l"
        if end == "reset" and kind == "tcp":
            far.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        if end in ("remote", "reset"):
            far.close()
        else:
            finish(writer, REVOKE if end == "tty" else end)
        await outcome(reader.read)
        ticks = 0

        async def tick() -> None:
            nonlocal ticks
            while True:
                ticks += 1
                await anyio.lowlevel.checkpoint()

        ticker = asyncio.create_task(tick())
        reads = [reader.read, reader.readline, reader.readuntil, lambda: reader.readexactly(1), reader.__anext__]
        for read in reads:
            before = ticks
            results = [await outcome(read) for _ in range(200)]
            assert ticks - before >= 5
            errors = [each for each in results if isinstance(each, BaseException)]
            assert len(errors) == 200 or results == [b""] * 200
            if errors:
                assert len(traceback.extract_tb(errors[-1].__traceback__)) < 12
            if end == REVOKE:
                assert len(set(map(id, errors))) == 200
                kind_of = SerialRevokedError if kind == "serial" else RevokedError
                assert all(isinstance(each, kind_of) for each in errors)
            if end == "tty":
                ends = (asyncio.IncompleteReadError, StopAsyncIteration)
                assert not errors or all(isinstance(each, ends) for each in errors)
                assert reader.at_eof()
        ticker.cancel()


async def test_what_was_written_is_sent_within_a_grace() -> None:
    """A revocation with a grace lets a write and a drain in progress go on; who only reads leaves at once."""
    with serial_line() as far:
        reader, writer = await open_serial_connection(url=far.path)
        reading = asyncio.create_task(reader.read(1))
        writer.write(BIG)
        draining = asyncio.create_task(writer.drain())
        await settle()
        act = node_of(writer).revoke("SIGTERM", grace=3600)
        assert isinstance(await outcome(lambda: reading), RevokedError)
        received = 0
        while received < len(BIG):
            received += len(far.received())
            await asyncio.sleep(0)
        assert await outcome(lambda: draining) is None
        await act


async def test_several_wait_for_room_and_each_is_told() -> None:
    """One that is cancelled takes no room from the others, and a revocation tells all who still wait."""
    with serial_line() as far:
        _, writer = await open_serial_connection(url=far.path)
        for end in (None, RevokedError):
            writer.write(BIG)
            draining = [asyncio.create_task(writer.drain()) for _ in range(3)]
            await settle()
            draining[0].cancel()
            if end is not None:
                node_of(writer).revoke()
            while end is None and not all(each.done() for each in draining):
                far.received()
                await asyncio.sleep(0)
            cancelled, *others = await asyncio.gather(*draining, return_exceptions=True)
            assert isinstance(cancelled, asyncio.CancelledError)
            for error in others:
                assert error is None if end is None else isinstance(error, end) and error.in_flight
        await writer.wait_closed()


@kinds
@pytest.mark.parametrize("end", [ABORT, REVOKE])
@pytest.mark.parametrize("closing", [False, True], ids=["open", "closing"])
async def test_a_stalled_close_is_ended_and_drain_reports_no_success(kind: str, end: str, *, closing: bool) -> None:
    """An abort or a revocation ends it at once; who waits that all is sent has an error, never a success. The close itself
    goes on sending, but keeps nobody waiting: it was closed by its owner.
    """
    async with revocable(kind) as ((_, writer), _):
        writer.write(BIG * 16)
        draining = asyncio.create_task(writer.drain())
        await settle()
        assert not draining.done()
        if closing:
            writer.close()
            assert isinstance(await outcome(lambda: draining), anyio.ClosedResourceError)
            assert not node_of(writer).released
        finish(writer, end)
        error = await outcome(lambda: draining)
        assert isinstance(error, RevokedError if end == REVOKE and not closing else Exception)
        await writer.wait_closed()
        assert isinstance(await outcome(writer.drain), Exception)


@kinds
@pytest.mark.parametrize("end", [CLOSE, ABORT, REVOKE])
async def test_wait_closed_is_for_many_and_may_be_given_up(kind: str, end: str) -> None:
    """Before and after the end, closed or not, twice at a time; one that timed out is no harm to the next."""
    async with revocable(kind) as ((_, writer), far):
        first, second = asyncio.create_task(writer.wait_closed()), asyncio.create_task(writer.wait_closed())
        await settle()
        first.cancel()
        assert isinstance(await outcome(lambda: first), asyncio.CancelledError)
        assert not second.done()
        for _ in range(2):
            finish(writer, end)
        await writer.wait_closed()
        assert kind != "serial" or not is_open(far)  # it can be opened again at once
        await second
        writer.close()
        await writer.wait_closed()
        assert node_of(writer).released


@kinds
@pytest.mark.parametrize("end", [CLOSE, REVOKE])
async def test_nothing_is_written_after_the_end(kind: str, end: str) -> None:
    """Each call is refused at once, also where a profile has reads and writes end as at the end of data."""
    profile = dataclasses.replace(answers.TTY, write=answers.TTY.read)
    async with revocable(kind, answers=profile) as ((_, writer), _):
        finish(writer, end)
        calls: list[Callable[[], object]] = [
            lambda: writer.write(b"x"),
            lambda: writer.writelines([b"x"]),
            writer.write_eof,
        ]
        for call in calls:
            with pytest.raises(RevokedError if end == REVOKE else anyio.ClosedResourceError):
                call()


@kinds
async def test_who_closed_it_is_told_as_asyncio_tells_it(kind: str) -> None:
    """In flight and later, reading and writing: a ClosedResourceError that is a ConnectionResetError, too."""
    async with revocable(kind) as ((reader, writer), _):
        writer.write(BIG * 16)
        operations = asyncio.create_task(reader.read(1)), asyncio.create_task(writer.drain())
        await settle()
        writer.close()
        for operation in (
            *(lambda: operations[0], lambda: operations[1], lambda: reader.read(1)),
            *(lambda: reader.readexactly(1), reader.readline, writer.drain),
        ):
            error = await outcome(operation)
            assert isinstance(error, anyio.ClosedResourceError)
            assert isinstance(error, ConnectionResetError)
        with pytest.raises(ConnectionResetError, match="closed by its owner"):
            writer.write(b"x")


async def test_the_limit_is_the_readers() -> None:
    """A line that is longer is refused, as asyncio does."""
    async with revocable("serial", limit=10) as ((reader, _), far):
        far.send(bytes(100))
        with pytest.raises(ValueError, match="limit"):
            await reader.readline()


# -- wrapping --


class Stubborn(asyncio.Transport):
    """A transport that is not impressed by an abort."""

    def abort(self) -> None: ...

    def is_closing(self) -> bool:
        return True


async def test_a_transport_that_does_not_end_is_reported(monkeypatch: pytest.MonkeyPatch) -> None:
    """Whoever awaits the revocation is told, when there has been patience enough."""
    monkeypatch.setattr(asyncio_streams, "_PATIENCE", 0.0)
    loop = asyncio.get_running_loop()
    reader = asyncio.StreamReader()
    protocol = asyncio.StreamReaderProtocol(reader)
    _, writer = wrap_streams(reader, asyncio.StreamWriter(Stubborn(), protocol, reader, loop))
    with pytest.raises(ExceptionGroup) as caught:
        await node_of(writer).revoke("taken")
    assert [type(each) for each in caught.value.exceptions] == [TimeoutError]
    protocol.connection_lost(None)
    await writer.wait_closed()


async def test_a_transport_of_pyserial_asyncio_that_is_lost_is_taken_away() -> None:
    """Its abort fails when it is lost already, which is no reason to complain."""
    serial_asyncio = pytest.importorskip("serial_asyncio")
    with serial_line() as far:
        reader, writer = wrap_streams(*await serial_asyncio.open_serial_connection(url=far.path))
        writer.transport.abort()
        await writer.wait_closed()
        await node_of(writer).revoke("taken")
        assert isinstance(await outcome(reader.read), RevokedError)


async def test_an_owner_that_was_revoked_leaves_the_connection_yours() -> None:
    """Nothing has changed, and it can be wrapped for another; a second time is refused, and so is what is not asyncio's."""
    dead = Revokable("dead")
    dead.revoke()
    near, far = socket.socketpair()
    with far:
        reader, writer = await asyncio.open_unix_connection(sock=near)
        with pytest.raises(RevokedError):
            wrap_streams(reader, writer, dead)
        far.send(b"x")
        assert await reader.read(1) == b"x"
        wrap_streams(reader, writer)
        owner = Revokable("owner")
        async with revocable("serial") as ((ours, _), _):
            with pytest.raises(TypeError, match="already"):
                wrap_streams(ours, None, owner)
        for odd in reader, object():
            with pytest.raises(TypeError):
                wrap_streams(odd, writer, owner)  # type: ignore[type-var]
        assert not owner.in_use
        await node_of(writer).close()


@pytest.mark.parametrize("owned", [False, True], ids=["root", "owned"])
async def test_further_parents_take_it_along(*, owned: bool) -> None:
    """Such as a token; with and without an owner."""
    token = Revokable("token")
    async with revocable("unix", owner=Revokable("owner") if owned else None, also=[token]) as ((reader, _), far):
        reading = asyncio.create_task(reader.read())
        await settle()
        await token.revoke("logged out")
        with pytest.raises(RevokedError, match="logged out"):
            await reading
        assert far.recv(1) == b""


async def test_classes_stay_what_they_were() -> None:
    """A reader of one's own does what it did; serialx's writer has its `transport`."""

    class MyReader(asyncio.StreamReader):
        __slots__ = ("mine",)

        async def read(self, n: int = -1) -> bytes:
            return (await super().read(n)).upper()

    serialx = pytest.importorskip("serialx")
    loop = asyncio.get_running_loop()
    with serial_line() as far:
        reader = MyReader()
        make = functools.partial(asyncio.StreamReaderProtocol, reader)
        transport, protocol = await serialx.create_serial_connection(loop, make, far.path, 9600)
        writer = serialx.async_serial.SerialStreamWriter(transport, protocol, reader, loop)
        wrap_streams(reader, writer)
        far.send(b"x")
        assert await reader.read(1) == b"X"
        assert isinstance(reader, MyReader)
        assert writer.transport is transport
        await node_of(writer).revoke("taken")
        assert not is_open(far)


async def test_tls_is_taken_away_while_it_begins() -> None:
    """A handshake that the other side does not answer ends with the RevokedError, and so does the revocation in time."""
    async with revocable("tcp") as ((_, writer), _):
        starting = asyncio.create_task(writer.start_tls(ssl.create_default_context(), server_hostname="far"))
        await settle()
        await node_of(writer).revoke("taken")
        assert isinstance(await outcome(lambda: starting), RevokedError)


# -- two transports, and one half --


@contextlib.asynccontextmanager
async def halves(kind: str) -> AsyncIterator[tuple[asyncio.StreamReader, asyncio.StreamWriter, Any]]:
    """A reader and a writer of a transport each, not wrapped yet; b"hello" comes. The last tells what the far side meets."""
    loop = asyncio.get_running_loop()
    with anyio.fail_after(20), contextlib.ExitStack() as far:
        if kind == "child":
            say = "echo hello; cat >/dev/null; exec yes"  # ends when it can neither read nor write
            child = await asyncio.create_subprocess_exec("sh", "-c", say, stdin=-1, stdout=-1)
            assert child.stdout
            assert child.stdin
            yield child.stdout, child.stdin, lambda: None
            await child.wait()
            return
        if kind == "terminal":
            write, far_write = os.openpty()
            tty.setraw(far_write)
            read, far_read = os.dup(write), os.dup(far_write)
        else:
            (read, far_write), (far_read, write) = os.pipe(), os.pipe()
        far.callback(os.close, far_write)
        far.callback(os.close, far_read)
        os.write(far_write, b"hello")
        reader = asyncio.StreamReader()
        await loop.connect_read_pipe(lambda: asyncio.StreamReaderProtocol(reader), os.fdopen(read, "rb", 0))
        transport, protocol = await loop.connect_write_pipe(asyncio.streams.FlowControlMixin, os.fdopen(write, "wb", 0))

        def met() -> tuple[object, ...]:
            ends: list[object] = []
            for call in (lambda: os.write(far_write, b"late"), lambda: os.read(far_read, 1 << 20)):
                try:
                    ends.append(call())
                except OSError as exc:
                    ends.append(errno.errorcode[exc.errno or 0])
            return tuple(ends)

        os.set_blocking(far_read, False)
        yield reader, asyncio.StreamWriter(transport, protocol, reader, loop), met


CLOSED = {"pipes": ("EPIPE", b""), "terminal": ("EIO", b""), "child": None}


@pytest.mark.parametrize("end", [CLOSE, REVOKE, "owner"])
@pytest.mark.parametrize("kind", CLOSED)
async def test_both_transports_of_a_pair_are_closed_when_it_is_taken_away(kind: str, end: str) -> None:
    """Whoever ends it: when that is complete, the far side can neither send nor receive, and nothing is taken in."""
    owner = Revokable("owner")
    async with halves(kind) as (reader, writer, met):
        wrap_streams(reader, writer, owner)
        assert await reader.readexactly(5) == b"hello"
        if end == "owner":
            await owner.revoke("taken")
        else:
            finish(writer, end)
            await writer.wait_closed()
            await node_of(writer).revoke()
        assert met() == CLOSED[kind]


@pytest.mark.parametrize(
    ("program", "size", "eof"),
    [("cat", 300_000, True), ("head -c 60000 /dev/zero", 60_000, False), ("exec <&-; read x; echo world", 6, False)],
    ids=["end of data", "it ends", "it closes its input"],
)
async def test_a_child_that_reads_no_more_is_read_to_its_end(program: str, size: int, *, eof: bool) -> None:
    """Its input ends by itself, or by `write_eof`: that takes nothing of its output away."""
    child = await asyncio.create_subprocess_exec("sh", "-c", program, stdin=-1, stdout=-1)
    assert child.stdin
    assert child.stdout
    reader, writer = wrap_streams(child.stdout, child.stdin)
    if eof:
        writer.write(bytes(size))
        writer.write_eof()
    await child.wait() if not eof else await settle()
    with anyio.fail_after(30):
        assert len(await reader.read()) == size
    await node_of(reader).aclose()
    await child.wait()


async def test_a_reader_alone_can_be_wrapped() -> None:
    """None comes back for the writer. What waits is kicked, its pipe alone is closed, and the writer goes on."""
    async with halves("pipes") as (reader, writer, met):
        assert wrap_streams(reader, None, name="ours") == (reader, None)
        assert await reader.readexactly(5) == b"hello"
        reading = asyncio.create_task(reader.read())
        await settle()
        await node_of(reader).revoke("taken")
        assert isinstance(await outcome(lambda: reading), RevokedError)
        writer.write(b"still")
        assert met() == ("EPIPE", b"still")
        writer.close()


async def test_a_writer_alone_can_be_wrapped() -> None:
    """None comes back for the reader. What waits is kicked, its pipe alone is closed, and the reader goes on."""
    async with halves("pipes") as (reader, writer, met):
        assert wrap_streams(None, writer) == (None, writer)
        writer.write(BIG)
        draining = asyncio.create_task(writer.drain())
        await settle()
        await node_of(writer).revoke("taken")
        assert isinstance(await outcome(lambda: draining), RevokedError)
        assert met()[1] in BIG
        assert met()[1] == b""
        assert await reader.readexactly(9) == b"hellolate"
        reader._transport.close()  # type: ignore[attr-defined]  # nothing else closes it


class Slotted(asyncio.Protocol):
    """A protocol that takes no other `connection_lost`, as uvloop's own for TLS takes none."""

    __slots__ = ("reader",)

    def __init__(self, reader: asyncio.StreamReader) -> None:
        self.reader = reader

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self.reader.set_transport(transport)

    def data_received(self, data: bytes) -> None:
        self.reader.feed_data(data)


async def test_a_reader_of_any_protocol_is_closed() -> None:
    """Also where it cannot be told to anybody that the connection is lost."""
    near, far = socket.socketpair()
    with far, anyio.fail_after(20):
        reader = asyncio.StreamReader()
        await asyncio.get_running_loop().create_unix_connection(lambda: Slotted(reader), sock=near)
        wrap_streams(reader, None)
        far.send(b"x")
        assert await reader.read(1) == b"x"
        await node_of(reader).revoke("taken")
        assert near.fileno() == -1


@pytest.mark.parametrize("stalled", [False, True])
async def test_a_socket_of_a_reader_alone_is_closed_at_once(*, stalled: bool) -> None:
    """Whatever there is still to send by a writer that was not wrapped."""
    near, far = socket.socketpair()
    with far, anyio.fail_after(20):
        reader, writer = await asyncio.open_unix_connection(sock=near)
        wrap_streams(reader, None)
        if stalled:
            writer.write(BIG * 16)
        await node_of(reader).aclose()
        assert near.fileno() == -1


async def test_a_close_sends_what_was_written_whatever_the_protocol() -> None:
    """Also where the protocol cannot tell when it is closed, as that of a pipe cannot that asyncio's recipes use."""
    async with halves("pipes") as (reader, writer, met):
        wrap_streams(reader, writer)
        writer.write(BIG)
        writer.close()
        closing = asyncio.create_task(writer.wait_closed())
        got = bytearray()
        while len(got) < len(BIG):
            piece = met()[1]
            got += piece if isinstance(piece, bytes) else b""
            await anyio.lowlevel.checkpoint()
        assert bytes(got) == BIG
        await closing


@pytest.mark.parametrize("kind", ["lost", "bare"])
async def test_what_has_no_transport_any_more_can_be_wrapped(kind: str) -> None:
    """It is closed already: nobody waits, and its revocation has nothing to do."""
    reader, writer = asyncio.StreamReader(), None
    if kind == "lost":
        near, far = socket.socketpair()
        far.close()
        reader, writer = await asyncio.open_unix_connection(sock=near)
        writer.close()
        await writer.wait_closed()
    wrap_streams(reader, writer, name="gone")
    with anyio.fail_after(20):
        await node_of(reader).revoke("taken")
        if writer:
            await writer.wait_closed()


def test_a_writer_can_be_closed_between_two_runs_of_its_loop(anyio_backend: tuple[str, dict[str, Any]]) -> None:
    """As asyncio's can, once and again; in the next run it sends what was written, and is closed."""
    near, far = socket.socketpair()

    async def wrap() -> Pair:
        return wrap_streams(*await asyncio.open_unix_connection(sock=near))

    uvloop = anyio_backend[1].get("use_uvloop")
    factory = pytest.importorskip("uvloop").new_event_loop if uvloop else anyio_backend[1].get("loop_factory")
    with far, asyncio.Runner(loop_factory=factory) as runner:
        _, writer = runner.run(wrap())
        writer.write(BIG)
        writer.close()
        writer.close()
        with pytest.raises(anyio.ClosedResourceError):
            writer.write(b"too late")
        thread = threading.Thread(target=lambda: got.append(far.makefile("rb").read()))
        got: list[bytes] = []
        thread.start()
        runner.run(asyncio.wait_for(writer.wait_closed(), 20))
        thread.join()
    assert got == [BIG]
    assert node_of(writer).released


@pytest.mark.parametrize("kind", ["unix", "serial", CLOSE, ABORT])
async def test_a_writer_that_another_thread_closes_goes_on(kind: str) -> None:
    """It is a RuntimeError, and nothing has changed: its loop would never be told."""
    async with revocable("unix" if kind == "unix" else "serial") as ((reader, writer), far):
        if kind == ABORT:
            writer.write(BIG)
        end = getattr(writer.transport, kind) if kind in (CLOSE, ABORT) else writer.close
        with pytest.raises(RuntimeError, match="revoke_threadsafe"):
            await anyio.to_thread.run_sync(end)
        received = 0
        while kind == ABORT and received < len(BIG):
            received += len(far.received())
            await anyio.lowlevel.checkpoint()
        writer.write(b"x")
        assert (far.recv(1) if kind == "unix" else far.received()) == b"x"
        far.send(b"y")
        assert await reader.read(1) == b"y"


@pytest.mark.parametrize("size", [0, len(BIG)], ids=["idle", "sending"])
def test_a_serial_pair_can_be_closed_between_two_runs_of_its_loop(
    size: int, anyio_backend: tuple[str, dict[str, Any]]
) -> None:
    """In the next run it sends what was written, and the protocol is told."""
    uvloop = anyio_backend[1].get("use_uvloop")
    factory = pytest.importorskip("uvloop").new_event_loop if uvloop else anyio_backend[1].get("loop_factory")
    with serial_line() as far, asyncio.Runner(loop_factory=factory) as runner:
        _, writer = runner.run(open_serial_connection(url=far.path))
        writer.write(BIG[:size])
        writer.close()
        writer.close()
        with pytest.raises(anyio.ClosedResourceError):
            writer.write(b"too late")
        assert is_open(far) is bool(size)

        async def receive() -> int:
            closing = asyncio.ensure_future(writer.wait_closed())
            received = 0
            while not closing.done() or received < size:
                received += len(far.received())
                await asyncio.sleep(0)
            return received

        assert runner.run(asyncio.wait_for(receive(), 20)) == size
        assert not is_open(far)
    assert node_of(writer).released


# -- reads that need not wait --


async def test_a_read_whose_data_is_there_is_no_operation() -> None:
    """It enters nothing, as it ends at once; after a revocation it is refused all the same."""
    async with revocable("unix") as ((reader, writer), _):
        reads = [lambda: reader.read(1), lambda: reader.readexactly(1), reader.readuntil, reader.readline]
        called = []
        for read in reads:
            reader.feed_data(b"\n")
            sys.setprofile(lambda frame, *_: called.append(frame.f_code.co_filename))
            try:
                assert await read() == b"\n"
            finally:
                sys.setprofile(None)
        assert asyncio_streams.__file__ in called
        assert not any(file.endswith("_core/use.py") for file in called)
        reader.feed_data(b"\n" * 4)
        await node_of(writer).revoke("taken")
        for read in reads:
            error = await outcome(read)
            assert isinstance(error, RevokedError)
            assert not error.in_flight


async def test_a_read_that_waits_again_was_in_flight() -> None:
    """A part of the data comes together with the revocation: the read had begun before, and the part stays."""
    async with revocable("unix") as ((reader, writer), _):
        reading = asyncio.create_task(reader.readexactly(2))
        await settle()
        reader.feed_data(b"x")
        node_of(writer).revoke("taken")
        error = await outcome(lambda: reading)
        assert isinstance(error, RevokedError)
        assert error.in_flight
        assert "1 bytes" in repr(asyncio.StreamReader.__repr__(reader))


async def test_what_is_closed_already_can_be_wrapped() -> None:
    """A connection may end just before; uvloop cannot say whose it was then."""
    near, far = socket.socketpair()
    with far:
        reader, writer = await asyncio.open_unix_connection(sock=near)
        writer.transport.abort()
        await settle()
        wrap_streams(reader, writer)
        assert await reader.read() == b""
        await node_of(writer).aclose()
