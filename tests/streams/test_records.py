"""Records and lines, cut from whatever stream of ours: what came with one stays for the next, however that is received."""

import asyncio
import functools
import math
import os
import socket
import struct
import threading
from collections.abc import Awaitable, Callable

import anyio
import anyio.lowlevel
import pytest

from asyncrevoke import Face, FdStream, Revokable, RevokedError, answers
from calls import parked, start
from conftest import BACKENDS, settle
from sockets import Wrap, pair, socket_stream
from test_fdstream import Ready
from test_stream import over_anyio, over_fd

pytestmark = pytest.mark.anyio

on_asyncio = pytest.mark.parametrize("anyio_backend", [each for each in BACKENDS if each.id != "trio"])


@pytest.fixture(params=[over_fd, over_anyio])
def wrap(request: pytest.FixtureRequest) -> Wrap:
    made: Wrap = request.param
    return made


async def test_each_gets_what_it_asks_for_in_the_order_of_coming(wrap: Wrap) -> None:
    """By count, by delimiter, by line and by chunk, in any order; nothing is lost and nothing comes twice."""
    async with pair(wrap) as (stream, peer):
        peer.sendall(b"12345key: value\r\nline\nmore of it\nchunk")
        assert await stream.receive_exactly(5) == b"12345"
        assert await stream.receive_until(b": ") == b"key"
        assert await stream.receive_until(b"\r\n") == b"value"
        assert await stream.receive_line() == b"line\n"
        assert await stream.receive(4) == b"more"
        assert await stream.receive_exactly(0) == b""
        assert await stream.receive_line() == b" of it\n"
        assert await stream.receive() == b"chunk"


def _end(ahead: bytearray) -> int:
    """Of a record that begins with its length."""
    end = 1 + ahead[0] if ahead else 1
    return end if len(ahead) >= end else -1


async def test_a_record_may_be_of_a_kind_of_your_own(wrap: Wrap) -> None:
    """It ends where you say, however it comes, also with nothing in it; one that the data ends in can still be received."""
    async with pair(wrap) as (stream, peer), anyio.create_task_group() as group:

        async def read() -> list[bytes]:
            return [await stream.receive_record(_end) for _ in range(3)]

        reading = start(group, read)
        for byte in b"\x02ab\x00\x01c\x09rest":
            await settle()
            peer.sendall(bytes([byte]))
        await reading.done.wait()
        assert reading.outcome == [b"\x02ab", b"\x00", b"\x01c"]
        peer.close()
        with pytest.raises(anyio.IncompleteRead):
            await stream.receive_record(_end)
        assert await stream.receive_exactly(5) == b"\x09rest"
        assert await stream.receive_record(len) == b""


@pytest.mark.parametrize("size", [1, 2, 3, 7])
async def test_a_record_may_come_in_pieces(wrap: Wrap, size: int) -> None:
    """Also where a delimiter is cut in two."""
    data = b"ab<=>cd<=>=>\nexact\n"
    async with pair(wrap) as (stream, peer), anyio.create_task_group() as group:

        async def read() -> list[bytes]:
            return [
                await stream.receive_until(b"<=>"),
                await stream.receive_until(b"<=>"),
                await stream.receive_line(),
                await stream.receive_exactly(5),
                await stream.receive_line(),
            ]

        reading = start(group, read)
        for at in range(0, len(data), size):
            await settle()
            peer.sendall(data[at : at + size])
        await reading.done.wait()
        assert reading.outcome == [b"ab", b"cd", b"=>\n", b"exact", b"\n"]


async def test_a_record_may_be_larger_than_what_is_asked_for_at_a_time(wrap: Wrap) -> None:
    """Any number of bytes, and a line up to its bound."""
    async with pair(wrap) as (stream, peer), anyio.create_task_group() as group:

        async def read() -> tuple[bytes, bytes]:
            return await stream.receive_exactly(1 << 20), await stream.receive_line(100_000)

        reading = start(group, read)
        await anyio.to_thread.run_sync(peer.sendall, b"x" * (1 << 20) + b"y" * 100_000 + b"\n")
        await reading.done.wait()
        assert reading.outcome == (b"x" * (1 << 20), b"y" * 100_000 + b"\n")


@pytest.mark.parametrize("bound", [1, 3, 4, 5])
async def test_the_bound_is_what_may_come_before_the_delimiter(wrap: Wrap, bound: int) -> None:
    """One byte more is DelimiterNotFound, with the delimiter there or not, and all of it can still be received."""
    async with pair(wrap) as (stream, peer), anyio.create_task_group() as group:
        for data in b"1234\n", b"12345", b"1234567\n":
            peer.sendall(data)
            if data == b"1234\n" and bound >= 4:
                assert await stream.receive_until(b"\n", bound) == b"1234"
            elif data == b"12345" and bound == 5:
                reading = start(group, stream.receive_until, b"\n", bound)
                await parked(stream.handle)
                peer.sendall(b"\n")  # which might still come
                await reading.done.wait()
                assert reading.outcome == data
            else:
                with pytest.raises(anyio.DelimiterNotFound):
                    await stream.receive_until(b"\n", bound)
                with pytest.raises(anyio.DelimiterNotFound):
                    await stream.receive_line(bound)
                assert await stream.receive_exactly(len(data)) == data


async def test_a_delimiter_that_is_there_is_not_looked_for_beyond_the_bound(wrap: Wrap) -> None:
    """Of what was received before, too."""
    async with pair(wrap) as (stream, peer):
        peer.sendall(b"0123456789\nand more")
        assert await stream.receive_exactly(1) == b"0"
        with pytest.raises(anyio.DelimiterNotFound):
            await stream.receive_line(8)
        with pytest.raises(anyio.DelimiterNotFound):
            await stream.receive_until(b"and", 1)
        assert await stream.receive_line(9) == b"123456789\n"


async def test_the_end_of_data_in_a_record_loses_nothing(wrap: Wrap) -> None:
    """IncompleteRead, and what there is can be received; a last line needs no newline; then it is the end."""
    async with pair(wrap) as (stream, peer):
        peer.sendall(b"half")
        peer.shutdown(socket.SHUT_WR)
        with pytest.raises(anyio.IncompleteRead):
            await stream.receive_exactly(5)
        with pytest.raises(anyio.IncompleteRead):
            await stream.receive_until(b"\n")
        assert await stream.receive(1) == b"h"
        assert await stream.receive_line() == b"alf"
        with pytest.raises(anyio.EndOfStream):
            await stream.receive_line()
        with pytest.raises(anyio.EndOfStream):
            await stream.receive()
        with pytest.raises(anyio.IncompleteRead):
            await stream.receive_exactly(1)


async def test_lines_are_iterated_to_the_end_of_data(wrap: Wrap) -> None:
    """Each with its newline, but perhaps the last."""
    async with pair(wrap) as (stream, peer):
        peer.sendall(b"one\ntwo\n\nlast")
        peer.shutdown(socket.SHUT_WR)
        assert [line async for line in stream.lines()] == [b"one\n", b"two\n", b"\n", b"last"]


@pytest.mark.parametrize(
    "call",
    [
        lambda stream: stream.receive_exactly(-1),
        lambda stream: stream.receive_until(b""),
        lambda stream: stream.receive_until(b"\n", 0),
        lambda stream: stream.receive_line(-1),
    ],
)
async def test_what_makes_no_sense_is_named(wrap: Wrap, call: Callable[[Face], Awaitable[bytes]]) -> None:
    """Rather than a wait that never ends."""
    async with pair(wrap) as (stream, peer):
        peer.sendall(b"data\n")
        with pytest.raises(ValueError, match="give"):
            await call(stream)
        assert await stream.receive_line() == b"data\n"


async def test_one_at_a_time_cuts_records(wrap: Wrap) -> None:
    """A second reader is told Busy, also if what it asks for is there: it is the beginning of the first one's."""
    async with pair(wrap) as (stream, peer), anyio.create_task_group() as group:
        peer.sendall(b"123")
        reading = start(group, stream.receive_exactly, 5)
        await parked(stream.handle)
        for call in stream.receive, functools.partial(stream.receive_exactly, 1), stream.receive_line:
            with pytest.raises(anyio.BusyResourceError):
                await call()
        peer.sendall(b"45")
        await reading.done.wait()
        assert reading.outcome == b"12345"


async def test_a_revocation_ends_a_record_and_what_came_before_is_not_handed_out(wrap: Wrap) -> None:
    """In flight and later: RevokedError, by the stream's own handle."""
    async with pair(wrap, Revokable("bus"), name="port") as (stream, peer), anyio.create_task_group() as group:
        peer.sendall(b"line\nhalf")
        assert await stream.receive_line() == b"line\n"
        reading = start(group, stream.receive_line)
        await parked(stream.handle)
        stream.revoke("unplugged")
        await reading.done.wait()
        assert reading.error.node is stream.handle
        assert reading.error.in_flight
        for call in functools.partial(stream.receive_exactly, 1), stream.receive_line, stream.receive:
            with pytest.raises(RevokedError, match="unplugged"):
                await call()


async def test_an_answered_end_is_no_last_line(wrap: Wrap) -> None:
    """A profile that answers by the end of data ends the iteration; half a line is none."""
    async with pair(wrap, answers=answers.TTY) as (stream, peer), anyio.create_task_group() as group:

        async def read() -> list[bytes]:
            return [line async for line in stream.lines()]

        peer.sendall(b"line\nhalf")
        reading = start(group, read)
        await parked(stream.handle)
        stream.revoke("hung up")
        await reading.done.wait()
        with pytest.raises(anyio.IncompleteRead):
            await stream.receive_exactly(1)
    assert reading.outcome == [b"line\n"]


async def test_a_cancelled_record_has_consumed_nothing(wrap: Wrap) -> None:
    """Parked in the midst of it, or before it begins."""
    async with pair(wrap) as (stream, peer), anyio.create_task_group() as group:
        for call in functools.partial(stream.receive_exactly, 20), stream.receive_line:
            peer.sendall(b"some ")
            reading = start(group, call)
            await parked(stream.handle)
            reading.scope.cancel()
            await reading.done.wait()
            assert reading.outcome is None
        peer.sendall(b"more\n")
        with anyio.CancelScope() as scope:
            scope.cancel()
            await stream.receive_exactly(1)
        assert await stream.receive_line() == b"some some more\n"


@on_asyncio
async def test_what_the_loop_has_read_for_a_task_that_is_cancelled_just_then_comes_next(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """The result is there already, and a task's cancellation goes before it."""
    ready = Ready(monkeypatch)
    async with socket_stream() as (stream, peer):
        for data in b"first", b"second":
            task = asyncio.create_task(stream.receive())
            await parked(stream.handle)
            ready.then = task.cancel
            peer.sendall(data)
            with pytest.raises(asyncio.CancelledError):
                await task
            assert await stream.receive() == data


@on_asyncio
async def test_an_error_that_the_loop_has_met_for_a_task_that_is_cancelled_just_then_comes_next(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """The kernel tells of a reset connection once: it is no end of data afterwards."""
    ready = Ready(monkeypatch)
    with socket.create_server(("127.0.0.1", 0)) as server, socket.create_connection(server.getsockname()) as near:
        far, _ = server.accept()
        async with FdStream(near.detach()) as stream:
            task = asyncio.create_task(stream.receive())
            await parked(stream.handle)
            ready.then = task.cancel
            far.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
            far.close()
            with pytest.raises(asyncio.CancelledError):
                await task
            with pytest.raises(anyio.BrokenResourceError):
                await stream.receive()


async def test_a_record_without_an_end_starves_nobody() -> None:
    """What is there is received for ever, and a deadline ends it, or a revocation."""
    async with FdStream(os.open("/dev/zero", os.O_RDONLY)) as stream, anyio.create_task_group() as group:
        with anyio.move_on_after(0.01) as scope:
            await stream.receive_exactly(1 << 40)
        assert scope.cancelled_caught
        reading = start(group, stream.receive_exactly, 1 << 40)
        await settle()
        await stream.revoke("enough")
        await reading.done.wait()
        assert reading.error.reason == "enough"


@on_asyncio
async def test_another_threads_loop_is_refused_also_while_this_one_is_in_a_task() -> None:
    """It would read beside the stream's own loop."""
    errors: list[Exception] = []

    async def use(stream: FdStream) -> None:
        for call in stream.receive, functools.partial(stream.send, b"x"):
            try:
                await call()
            except RuntimeError as exc:
                errors.append(exc)

    async with socket_stream() as (stream, peer):
        peer.sendall(b"12")
        assert await stream.receive(1) == b"1"
        thread = threading.Thread(target=lambda: asyncio.run(use(stream)))
        thread.start()
        thread.join()
        assert await stream.receive(1) == b"2"
    assert len(errors) == 2


def shielded(call: Callable[[], Awaitable[object]]) -> Callable[[], Awaitable[object]]:
    async def within() -> None:
        with anyio.CancelScope(shield=True):
            await call()

    return within


@pytest.mark.parametrize("which", ["own", "outer", "deadline", "native"])
async def test_a_pending_cancellation_is_delivered_by_what_need_not_wait(
    wrap: Wrap, which: str, anyio_backend_name: str
) -> None:
    """Wherever it was asked for, each operation ends by it at once, and has consumed nothing; within a shield it goes on."""
    if which == "native" and anyio_backend_name == "trio":
        pytest.skip("tasks of trio are cancelled by scopes alone")
    async with pair(wrap) as (stream, peer):
        peer.sendall(b"ahead\nline\n" * 20)
        await stream.receive_line()
        calls: list[Callable[[], Awaitable[object]]] = [
            functools.partial(stream.receive, 1),
            functools.partial(stream.receive_exactly, 1),
            functools.partial(stream.receive_until, b"\n"),
            functools.partial(stream.receive_record, lambda _: 1),
            stream.receive_line,
            functools.partial(stream.send, b"x"),
            stream.send_eof,
        ]
        for call in calls:
            assert not await _returns(call, which), call
            assert await _returns(shielded(call), which) is (which != "native"), call


async def _returns(call: Callable[[], Awaitable[object]], which: str) -> bool:
    """Whether a call returns in a task that is cancelled."""
    returned = False

    async def work() -> None:
        nonlocal returned
        with anyio.CancelScope() as outer, anyio.CancelScope() as own:
            if which == "own":
                own.cancel()
            elif which == "deadline":
                outer.deadline = -math.inf
            elif which == "outer":
                outer.cancel()
            elif (task := asyncio.current_task()) is not None:
                task.cancel()
            await call()
            returned = True

    if which == "native":
        with pytest.raises(asyncio.CancelledError):
            await asyncio.create_task(work())
    else:
        await work()
    return returned
