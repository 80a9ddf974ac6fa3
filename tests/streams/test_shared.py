"""One line for several streams, over a line in memory, and over a pipe that the loop reads."""

from __future__ import annotations

import array
import asyncio
import contextlib
import functools
import itertools
import math
import os
import socket
from collections.abc import AsyncIterator, Callable
from typing import Literal, Unpack

import anyio
import anyio.lowlevel
import pytest

from asyncrevoke import Revokable, RevokedError, Shared, SharedStream
from asyncrevoke.lowlevel import Fd, SharedOptions
from calls import parked, start
from conftest import settle
from operations import asyncio_only
from test_fdstream import Ready
from test_stream import Counted

pytestmark = pytest.mark.anyio


class Stream(SharedStream):
    async def _send_eof(self) -> None:
        raise NotImplementedError


class Line:
    """A line in memory: what comes is put there by the test, what is sent is taken in bits, as long as there is room."""

    def __init__(
        self,
        *,
        backlog: int | None = None,
        exact: bool = True,
        room: int = 1 << 20,
        history: int = 0,
        patience: float = 0.0,
    ) -> None:
        self.shared = Shared(
            self.receive, self.send_some, backlog=backlog, exact=exact, history=history, patience=patience
        )
        self.port = Revokable("port")
        self.sent = bytearray()
        self._room = room
        self._arrived = bytearray()
        self._over: Exception | None = None
        self._changed = anyio.Event()

    def open(self, name: str, *, replay: bool = False) -> Stream:
        return Stream(self.shared, self.port, name=name, replay=replay)

    def arrive(self, data: bytes = b"", over: Exception | None = None) -> None:
        self._arrived += data
        self._over = over
        self._changed.set()

    async def receive(self, max_bytes: int) -> bytes:
        while not self._arrived:
            if self._over is not None:
                raise self._over
            self._changed = anyio.Event()
            await self._changed.wait()
        data = bytes(self._arrived[:max_bytes])
        del self._arrived[:max_bytes]
        return data

    async def send_some(self, item: memoryview) -> int:
        await anyio.lowlevel.checkpoint()
        if len(self.sent) >= self._room:
            await anyio.sleep_forever()
        self.sent += item[:1000]
        return len(item[:1000])


async def test_each_gets_a_copy_in_pieces_of_his_own() -> None:
    """With a backlog, all that comes is given to every open stream, and to none that came later."""
    line = Line(backlog=100)
    one, two = line.open("one"), line.open("two")
    line.arrive(b"hello")
    assert await one.receive() == b"hello"
    late = line.open("late")
    assert [await two.receive(3), await two.receive()] == [b"hel", b"lo"]
    line.arrive(b"again")
    assert [await each.receive() for each in (late, two, one)] == [b"again"] * 3


async def test_all_who_wait_are_served_by_one_read() -> None:
    """Of those who wait for data one reads, and all of them go on."""
    line = Line(backlog=100)
    async with anyio.create_task_group() as tasks:
        calls = [start(tasks, line.open(name).receive) for name in ("one", "two", "three")]
        await settle()
        line.arrive(b"hello")
    assert [call.outcome for call in calls] == [b"hello"] * 3


async def test_who_is_too_far_behind_is_revoked() -> None:
    """The stream that exceeds the backlog is taken away, and says so; up to it nothing is lost, and others go on."""
    line = Line(backlog=10)
    fast, slow = line.open("fast"), line.open("slow")
    for data in b"01234", b"56789", b"x":
        assert slow.handle.revoked is False
        line.arrive(data)
        assert await fast.receive() == data
    with pytest.raises(RevokedError, match="11 bytes behind, and may be 10"):
        await slow.receive()
    assert list(line.shared.streams) == [fast]
    line.arrive(b"more")
    assert await fast.receive() == b"more"


async def test_who_only_sends_is_not_too_slow() -> None:
    """It keeps its keyboard, and keeps no copies. Once it receives, it is told what it has missed; or it begins anew."""
    line = Line(backlog=10)
    reads, sends, anew = line.open("reads"), line.open("sends"), line.open("anew")
    for _ in range(5):
        line.arrive(b"12345")
        assert await reads.receive() == b"12345"
        await sends.send(b".")
    assert line.sent == b"....."
    assert not sends.unread
    assert not anew.unread
    anew.forget()
    line.arrive(b"more")
    assert await reads.receive() == await anew.receive() == b"more"
    with pytest.raises(RevokedError, match="15 bytes behind, and may be 10"):
        await sends.receive()
    assert [*line.shared.streams] == [reads, anew]


async def test_what_is_forgotten_is_not_received() -> None:
    """Neither what has come for it, nor what it has fetched and not used yet."""
    line = Line(backlog=100)
    stream, other = line.open("one"), line.open("other")
    line.arrive(b"line, fetched")
    assert await stream.receive_until(b",") == b"line"
    line.arrive(b"unread")
    await read(other, 19)
    stream.forget()
    line.arrive(b"new")
    assert await stream.receive() == b"new"


async def read(stream: Stream, size: int) -> bytes:
    """So many bytes, as they come."""
    data = b""
    while len(data) < size:
        data += await stream.receive(size - len(data))
    return data


async def test_who_goes_on_receiving_is_waited_for() -> None:
    """The line is as fast as the slowest who reads: nobody loses a byte, and nobody is taken away."""
    line = Line(backlog=10, patience=math.inf)
    fast, slow = line.open("fast"), line.open("slow")
    text = bytes(range(200))
    line.arrive(text)
    async with anyio.create_task_group() as tasks:
        ahead = start(tasks, read, fast, len(text))
        await parked(fast.handle)
        got = b""
        while len(got) < len(text):
            got += await slow.receive(3)
            assert len(slow.unread) <= 10
            await settle()
    assert ahead.outcome == got == text


async def test_who_receives_nothing_holds_up_nobody(monkeypatch: pytest.MonkeyPatch) -> None:
    """After the patience the others read on, without waiting again, and who is too far behind is revoked."""
    waited: list[float] = []
    move_on_after = anyio.move_on_after

    def noted(delay: float) -> anyio.CancelScope:
        waited.append(delay)
        return move_on_after(delay)

    monkeypatch.setattr(anyio, "move_on_after", noted)
    line = Line(backlog=10, patience=0.05)
    fast, slow = line.open("fast"), line.open("slow")
    line.arrive(bytes(1000))
    with anyio.fail_after(30):
        assert len(await read(fast, 1000)) == 1000
    assert 0 < max(waited) <= 0.05
    with pytest.raises(RevokedError, match="bytes behind, and may be 10"):
        await slow.receive()


@pytest.mark.parametrize("how", ["revoke", "aclose"])
async def test_who_goes_holds_up_nobody(how: str) -> None:
    """The line is read on at once when the one it waits for is taken away, or leaves."""
    line = Line(backlog=10, patience=math.inf)
    fast, slow = line.open("fast"), line.open("slow")
    line.arrive(bytes(100))
    async with anyio.create_task_group() as tasks:
        ahead = start(tasks, read, fast, 100)
        await parked(fast.handle)
        await settle()
        assert not ahead.done.is_set()
        await getattr(slow, how)()
        await settle(1000)
        assert ahead.outcome == bytes(100)


async def test_who_is_revoked_and_still_inside_holds_up_nobody() -> None:
    """In its grace it gets nothing more: the line is read on."""
    line = Line(backlog=10, patience=math.inf)
    fast, slow = line.open("fast"), line.open("slow")
    line.arrive(bytes(1000))
    async with anyio.create_task_group() as tasks:
        ahead = start(tasks, read, fast, 1000)
        await parked(fast.handle)
        with contextlib.suppress(RevokedError), slow.handle.using():
            slow.revoke("enough", grace=3600)
            with anyio.fail_after(30):
                await ahead.done.wait()
    assert ahead.outcome == bytes(1000)


async def test_a_stream_tells_how_much_of_the_line_it_has_seen() -> None:
    """So that one which comes after another knows what both have missed."""
    line = Line(backlog=10)
    first, other = line.open("first"), line.open("other")
    assert first.left_at == 0
    line.arrive(bytes(4))
    await other.receive()
    await first.revoke()
    line.arrive(bytes(3))
    await other.receive()
    assert (first.left_at, line.shared.read) == (4, 7)


@pytest.mark.parametrize("backlog", [10, 11])
async def test_who_had_nothing_to_receive_is_waited_for_as_well(backlog: int) -> None:
    """The patience begins with the first byte that waits: a line that was silent for long takes nothing from it."""
    line = Line(backlog=backlog, patience=60)
    fast, slow = line.open("fast"), line.open("slow")
    for stream in fast, slow:
        stream.received -= 3600
    line.arrive(bytes(20))
    async with anyio.create_task_group() as tasks:
        ahead = start(tasks, read, fast, 20)
        await parked(fast.handle)
        await settle()
        assert not ahead.done.is_set()
        assert await read(slow, 20) == bytes(20)


@pytest.mark.parametrize(("history", "kept"), [(0, b""), (4, b"3456"), (6, b"123456"), (9, b"123456")])
async def test_late_stream_gets_what_came_last(history: int, kept: bytes) -> None:
    """Opened with `replay`, a stream gets as much of what was read as is kept, then what comes, and nothing twice."""
    line = Line(backlog=12, history=history)
    early = line.open("early")
    for piece in (b"123", b"456"):
        line.arrive(piece)
        await early.receive()
    late = line.open("late", replay=True)
    line.arrive(b"789abc")
    assert await early.receive() == b"789abc"
    assert await late.receive() == kept + b"789abc"
    assert line.shared.history == b"123456789abc"[-history:] if history else not line.shared.history


async def test_without_a_backlog_who_reads_gets_it() -> None:
    """No copies are made; one task may receive from a stream at a time."""
    line = Line()
    one, two = line.open("one"), line.open("two")
    async with anyio.create_task_group() as tasks:
        waiting = start(tasks, one.receive)
        await parked(one.handle)
        with pytest.raises(anyio.BusyResourceError):
            await one.receive()
        line.arrive(b"for one")
    line.arrive(b"for two")
    assert (waiting.outcome, await two.receive()) == (b"for one", b"for two")


@pytest.mark.parametrize("how", ["cancelled", "revoked", "closed"])
async def test_another_reads_on_when_the_reader_goes(how: str) -> None:
    """If the one who reads for all is cancelled or taken away, the next one reads, and nothing is lost."""
    line = Line(backlog=100)
    streams = [line.open("one"), line.open("two")]
    async with anyio.create_task_group() as tasks:
        first = start(tasks, streams[0].receive)
        await parked(streams[0].handle)
        second = start(tasks, streams[1].receive)
        await parked(streams[1].handle)
        if how == "cancelled":
            first.scope.cancel()
        else:
            await (streams[0].revoke() if how == "revoked" else streams[0].handle.close())
        await first.done.wait()
        line.arrive(b"hello")
    assert second.outcome == b"hello"
    if how == "cancelled":
        assert await streams[0].receive() == b"hello"


@pytest.mark.parametrize("over", [anyio.EndOfStream, anyio.BrokenResourceError])
async def test_the_end_is_told_to_all(over: type[Exception]) -> None:
    """Each gets what came before it, then the end, as often as he asks; who waits, who is behind, and who comes later."""
    line = Line(backlog=100)
    waiting, behind = line.open("waiting"), line.open("behind")
    line.arrive(b"last words")
    await waiting.receive()
    async with anyio.create_task_group() as tasks:
        call = start(tasks, waiting.receive)
        await parked(waiting.handle)
        line.arrive(over=over())
    assert isinstance(call.outcome, over)
    assert await behind.receive() == b"last words"
    for stream in waiting, behind, line.open("late"):
        with pytest.raises(over):
            await stream.receive()


async def test_pieces_of_two_writers_are_not_mixed() -> None:
    """Up to 4096 bytes go in one piece, however few the line takes at a time; of more, each writer sends some in turn."""
    line = Line()
    async with anyio.create_task_group() as tasks:
        for name in "ab":
            start(tasks, line.open(name).send, name.encode() * 3 * 4096)
    pieces = [bytes(line.sent[at : at + 4096]) for at in range(0, len(line.sent), 4096)]
    assert pieces in ([b"a" * 4096, b"b" * 4096] * 3, [b"b" * 4096, b"a" * 4096] * 3)


async def test_a_view_of_numbers_is_sent_by_its_bytes() -> None:
    """All of them, whatever its items are."""
    line = Line()
    await line.open("one").send(memoryview(array.array("I", range(2000))))  # type: ignore[arg-type]  # as bytes are
    assert line.sent == array.array("I", range(2000)).tobytes()


@pytest.mark.parametrize(("exact", "sent"), [(True, [3000, 0]), (False, [None, None])])
@pytest.mark.parametrize("taken", ["port", "stream"])
async def test_sent_tells_what_the_line_took(
    exact: bool, sent: list[int | None], taken: Literal["port", "stream"]
) -> None:
    """A kicked writer is told how many bytes were taken; one who waits for his turn, none; nobody, where it is not known."""
    line = Line(exact=exact, room=3000)
    streams = [line.open("one"), line.open("two")]
    async with anyio.create_task_group() as tasks:
        calls = []
        for stream in streams:
            calls.append(start(tasks, stream.send, bytes(9000)))
            await parked(stream.handle)
        for node in [line.port] if taken == "port" else [stream.handle for stream in reversed(streams)]:
            await node.revoke()
    assert [call.error.sent for call in calls] == sent


@pytest.mark.parametrize("backlog", [0, -1, float("nan")])
async def test_a_backlog_that_is_none_is_refused(backlog: int) -> None:
    """A stream must be allowed to be behind by something."""
    with pytest.raises(ValueError, match="backlog is"):
        Line(backlog=backlog)
    line = Line(backlog=1)
    line.arrive(b"12")
    assert await line.open("one").receive() == b"1"


async def test_how_much_is_kept_may_be_changed() -> None:
    """What there is of the latest bytes stays as far as it fits."""
    line = Line(backlog=12, history=4)
    stream = line.open("one")
    line.arrive(b"12345")
    await stream.receive()
    for history, kept in (6, b"2345"), (2, b"45"), (0, b""):
        line.shared.keep(history)
        assert line.shared.history == kept


async def test_what_was_replayed_holds_up_nobody() -> None:
    """It is not behind with what had come before it was opened."""
    line = Line(backlog=6, history=6, patience=math.inf)
    early = line.open("early")
    line.arrive(b"123456789")
    with anyio.fail_after(10):
        for data in b"123", b"456":
            assert await early.receive() == data
        late = line.open("late", replay=True)
        assert await early.receive() == b"789"
    assert await late.receive() == b"123456789"


@pytest.mark.parametrize(("history", "backlog"), [(-1, 6), (6, None)])
async def test_a_history_of_nothing_is_refused(history: int, backlog: int | None) -> None:
    """What is kept is kept of copies, which there are with a backlog only."""
    with pytest.raises(ValueError, match="history is"):
        Line(history=history, backlog=backlog)


def gone(line: Pipe, _: Exception) -> Exception:
    """What the end of data of a device is."""
    line.port.revoke("gone")
    return RevokedError(line.port, in_flight=True)


class Pipe:
    """A line over a descriptor, which the loop reads for all who wait, where it can.

    :param failed: what is raised instead of the end of data
    """

    def __init__(self, backlog: int | None, patience: float, failed: Callable[[Pipe, Exception], Exception]) -> None:
        ours, far = socket.socketpair()
        ours.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, 1)  # for a few thousand bytes
        self.end = far.detach()
        os.set_blocking(self.end, False)
        self.port = Revokable("port")
        self.fd = Fd(ours.detach(), self.port)
        self.port.release = self.fd.close
        self._failed = functools.partial(failed, self)
        self.shared = Shared(self._receive, self.fd.write_some, backlog=backlog, patience=patience, failed=self._failed)
        self.shared.fd = self.fd

    async def _receive(self, max_bytes: int) -> bytes:
        try:
            return await self.fd.read(max_bytes)
        except anyio.EndOfStream as exc:
            raise self._failed(exc) from None

    def open(self, name: str, *, kicks: bool = True, **options: Unpack[SharedOptions]) -> Stream:
        return Stream(self.shared, self.port.open("owner", kick=... if kicks else None), name=name, **options)

    def arrive(self, data: bytes) -> None:
        os.write(self.end, data)

    def taken(self) -> bytes:
        """What was sent, and was not taken yet."""
        data = bytearray()
        with contextlib.suppress(BlockingIOError):
            while some := os.read(self.end, 65536):
                data += some
        return bytes(data)

    def close(self) -> None:
        """Nothing more comes."""
        end, self.end = self.end, -1
        if end >= 0:
            os.close(end)


@contextlib.asynccontextmanager
async def pipe(
    backlog: int | None = 1000,
    *,
    patience: float = math.inf,
    failed: Callable[[Pipe, Exception], Exception] = lambda _, exc: exc,
) -> AsyncIterator[Pipe]:
    line = Pipe(backlog, patience, failed)
    try:
        with anyio.fail_after(30):
            yield line
    finally:
        line.close()
        await line.port.aclose()


async def test_what_fits_is_sent_at_once_and_nothing_by_who_is_refused() -> None:
    """The descriptor takes it without a turn of the loop, beyond a checkpoint."""
    async with pipe() as line:
        one, two = line.open("one"), line.open("two")
        await one.send(b"fits")
        one.revoke("enough")
        with pytest.raises(RevokedError) as caught:
            await one.send(b"refused")
        assert (caught.value.in_flight, caught.value.sent) == (False, 0)
        await two.send(b".")
        assert line.taken() == b"fits."


async def test_a_piece_that_is_begun_is_ended_before_another_writer_has_its_turn() -> None:
    """However little the descriptor takes at a time: up to 4096 bytes are not mixed, counted from each one's beginning."""
    async with pipe() as line, anyio.create_task_group() as tasks:
        streams = [line.open("a"), line.open("b")]
        calls = []
        for stream in streams:
            calls.append(start(tasks, stream.send, stream.handle.name.encode() * 40_000))
            await parked(stream.handle)
        sent = bytearray()
        while not all(call.done.is_set() for call in calls):
            sent += line.taken()
            await settle()
        sent += line.taken()
        counted = {"a": 0, "b": 0}
        for name, run in itertools.groupby(sent.decode()):
            counted[name] += len([*run])
            assert counted[name] % 4096 == 0 or counted[name] == 40_000, counted
        assert counted == {"a": 40_000, "b": 40_000}


async def test_who_is_taken_away_in_the_midst_of_a_piece_passes_its_turn_on() -> None:
    """Whether it had its turn from the beginning, or has waited for it."""
    async with pipe() as line, anyio.create_task_group() as tasks:
        streams = [line.open(str(number)) for number in range(3)]
        calls = []
        for stream in streams:
            calls.append(start(tasks, stream.send, stream.handle.name.encode() * 40_000))
            await parked(stream.handle)
        for stream, call in zip(streams[:2], calls, strict=False):
            await stream.revoke("enough")
            assert call.error.in_flight
        while not calls[2].done.is_set():
            assert set(line.taken()) <= set(b"02")
            await settle()
        assert calls[2].outcome is None


@pytest.mark.parametrize("begun", [False, True])
async def test_a_line_that_breaks_is_told_in_its_own_words(begun: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    """By whoever meets it: at once if nothing was sent, else by what is sent next."""

    def words(_: Pipe, exc: Exception) -> Exception:
        return OSError(f"in our words: {exc}")

    async with pipe(failed=words) as line:
        stream = line.open("one")
        answers: list[int | Exception] = [4] * begun + [anyio.BrokenResourceError("it broke")]
        write_now = line.fd.write_now

        def breaks(item: bytes | bytearray | memoryview) -> int | None:
            if not answers:
                return write_now(item)
            answer = answers.pop(0)
            if isinstance(answer, Exception):
                raise answer
            return answer

        monkeypatch.setattr(line.fd, "write_now", breaks)
        if begun:
            await stream.send(b"sent and rest")
            assert line.taken() == b" and rest"
        else:
            with pytest.raises(OSError, match="in our words: it broke"):
                await stream.send(b"nothing")
            assert line.taken() == b""


@asyncio_only
async def test_without_copies_one_reads_and_others_are_told_so() -> None:
    """What is there comes without a turn of the loop. What comes for one who waits is not another's."""
    async with pipe(None) as line, anyio.create_task_group() as tasks:
        one, two = line.open("one"), line.open("two")
        line.arrive(b"there")
        assert await one.receive(1) == b"t"
        reading = Counted(two.receive())
        assert (await reading, reading.suspended) == (b"here", 0)
        call = start(tasks, one.receive)
        await parked(one.handle)
        line.arrive(b"for one")
        with pytest.raises(anyio.BusyResourceError):
            await two.receive()
        await call.done.wait()
        assert call.outcome == b"for one"


@asyncio_only
async def test_without_copies_what_the_loop_has_read_is_not_lost(monkeypatch: pytest.MonkeyPatch) -> None:
    """Whoever is cancelled in that very moment leaves it to the next; whoever is revoked in it gets it."""
    ready = Ready(monkeypatch)
    async with pipe(None) as line:
        one, two = line.open("one"), line.open("two")
        task = asyncio.create_task(one.receive())
        await parked(one.handle)
        ready.then = task.cancel
        line.arrive(b"data")
        with pytest.raises(asyncio.CancelledError):
            await task
        assert [await two.receive(1), await one.receive()] == [b"d", b"ata"]
        task = asyncio.create_task(one.receive())
        await parked(one.handle)
        ready.then = one.revoke
        line.arrive(b"last")
        assert await task == b"last"


@pytest.mark.parametrize("awaited", [False, True])
@pytest.mark.parametrize("backlog", [None, 1000])
async def test_a_device_that_is_gone_is_told_to_each_as_its_own_loss(backlog: int | None, *, awaited: bool) -> None:
    """The stream that meets the end first, and others afterwards."""
    async with pipe(backlog, failed=gone) as line, anyio.create_task_group() as tasks:
        first, later = line.open("first"), line.open("later")
        if not awaited:
            line.close()
        call = start(tasks, first.receive)
        if awaited:
            await parked(first.handle)
            line.close()
        await call.done.wait()
        assert (call.error.node, call.error.reason, call.error.in_flight) == (first.handle, "gone", True)
        with pytest.raises(RevokedError) as caught:
            await later.receive()
        assert (caught.value.node, caught.value.in_flight) == (later.handle, False)


@pytest.mark.parametrize("backlog", [None, 1000])
async def test_who_waits_for_a_line_is_kicked_in_spite_of_a_grace(backlog: int | None) -> None:
    """Whether the loop reads it, or a task."""
    async with pipe(backlog) as by_loop, anyio.create_task_group() as tasks:
        for line in by_loop, Line(backlog=backlog):
            stream = line.open("one")
            call = start(tasks, stream.receive)
            await parked(stream.handle)
            stream.revoke("shutdown", grace=3600)
            await call.done.wait()
            assert call.error.in_flight


async def test_who_comes_while_another_reads_in_turn_takes_turns_too() -> None:
    """A line that was held up is read by a task, also when the slow one has caught up: nobody reads beside it."""
    async with pipe(10) as line, anyio.create_task_group() as tasks:
        fast, slow = line.open("fast"), line.open("slow")
        line.arrive(b"123456")
        assert await read(fast, 6) == b"123456"
        ahead = start(tasks, fast.receive)
        await parked(fast.handle)
        assert await slow.receive() == b"123456"
        behind = start(tasks, slow.receive)
        await parked(slow.handle)
        line.arrive(b"more")
        for call in ahead, behind:
            await call.done.wait()
            assert call.outcome == b"more"


@asyncio_only
async def test_who_holds_up_nobody_leaves_the_reading_to_the_loop() -> None:
    """What comes is taken, although another receives nothing."""
    async with pipe(10, patience=0.0) as line, anyio.create_task_group() as tasks:
        taken: list[bytes] = []

        def take(data: bytes) -> bytes:
            taken.append(data)
            return b""

        reads, _idle = line.open("reads"), line.open("idle")
        line.arrive(b"123456")
        assert await read(reads, 6) == b"123456"
        passes_on = line.open("passes on", take=take)
        call = start(tasks, passes_on.receive)
        await parked(passes_on.handle)
        line.arrive(b"789")
        assert await reads.receive() == b"789"
        assert taken == [b"789"]
        call.scope.cancel()


@asyncio_only
async def test_who_has_not_taken_what_came_gets_a_turn_before_more_is_read() -> None:
    """Else a fast one would be too fast for all others, however fast they are."""
    async with pipe(10, patience=0.0) as line, anyio.create_task_group() as tasks:
        calls = [start(tasks, read, line.open(name), 1000) for name in ("one", "two")]
        line.arrive(bytes(1000))
        for call in calls:
            await call.done.wait()
            assert call.outcome == bytes(1000)


@asyncio_only
@pytest.mark.parametrize("how", ["revoked", "held up"])
async def test_who_is_woken_because_the_line_is_held_up(how: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """A revocation in that moment is told as one in flight. Else the stream waits for the slow one, and no loop is busy."""
    ready = Ready(monkeypatch)
    async with pipe(10) as line, anyio.create_task_group() as tasks:
        taken = bytearray()

        def take(data: bytes) -> bytes:
            taken.extend(data)
            return b""

        slow, passes_on = line.open("slow"), line.open("passes on", take=take)
        call = start(tasks, passes_on.receive)
        await parked(passes_on.handle)
        line.arrive(b"123456")
        while len(taken) < 6:
            await anyio.lowlevel.checkpoint()
        if how == "revoked":
            ready.then = passes_on.revoke
        line.arrive(b"more")
        await settle()
        if how == "revoked":
            assert call.error.in_flight
        else:
            ready.count = 0
            await settle()
            assert not ready.count
            assert await slow.receive() == b"123456"
            await call.done.wait()
            assert call.outcome == b"more"
            assert await slow.receive() == b"more"
            call = start(tasks, passes_on.receive)
            await parked(passes_on.handle)
            line.arrive(b"last")
            assert await slow.receive() == b"last"
            assert taken == b"123456last", "the loop reads again"
            call.scope.cancel()


@asyncio_only
async def test_who_waits_for_the_loop_meets_the_end_that_another_reads_in_turn() -> None:
    """What came was taken for it, and its task sleeps on; the other has come since, and waits for a slow one."""
    async with pipe(10) as line, anyio.create_task_group() as tasks:
        taken = bytearray()

        def take(data: bytes) -> bytes:
            taken.extend(data)
            return b""

        slow, passes_on, new = line.open("slow"), line.open("passes on", take=take), line.open("new")
        calls = [start(tasks, passes_on.receive)]
        await parked(passes_on.handle)
        line.arrive(b"123456")
        assert await read(new, 6) == b"123456" == taken
        calls.append(start(tasks, new.receive))
        await parked(new.handle)
        assert await slow.receive() == b"123456"
        await settle()
        line.close()
        for call in calls:
            await call.done.wait()
            assert isinstance(call.outcome, anyio.EndOfStream)


async def test_an_error_of_the_line_is_told_to_all_who_wait() -> None:
    """As of a driver that refuses something, and goes on."""

    def refused(_: Pipe, exc: Exception) -> Exception:
        return OSError(f"refused: {exc!r}")

    async with pipe(failed=refused) as line, anyio.create_task_group() as tasks:
        streams = [line.open("one"), line.open("two")]
        calls = [start(tasks, stream.receive) for stream in streams]
        for stream in streams:
            await parked(stream.handle)
        line.close()
        for call in calls:
            await call.done.wait()
            assert isinstance(call.outcome, OSError)
            assert not isinstance(call.outcome, RevokedError)


@asyncio_only
async def test_an_end_that_is_there_is_met_without_waiting() -> None:
    """As data is."""
    async with pipe() as line:
        stream = line.open("one")
        line.arrive(b"x")
        assert await stream.receive() == b"x"
        line.close()
        reading = Counted(stream.receive())
        with pytest.raises(anyio.EndOfStream):
            await reading
        assert not reading.suspended


@pytest.mark.parametrize("when", ["before", "meanwhile"])
async def test_the_end_of_a_line_that_the_loop_reads_is_told_to_all(when: str) -> None:
    """As of any other line."""
    async with pipe() as line, anyio.create_task_group() as tasks:
        streams = [line.open("one"), line.open("two")]
        if when == "before":
            line.close()
        calls = [start(tasks, stream.receive) for stream in streams]
        if when == "meanwhile":
            for stream in streams:
                await parked(stream.handle)
            line.close()
        for call in calls:
            await call.done.wait()
            assert isinstance(call.outcome, anyio.EndOfStream)


@asyncio_only
async def test_what_is_taken_wakes_nobody() -> None:
    """Who only passes things on needs no task for that: `receive` gives what was left, and waits while nothing is."""
    async with pipe() as line, anyio.create_task_group() as tasks:
        taken = []

        def take(data: bytes) -> bytes:
            taken.append(data)
            return data[data.find(b".") :] if b"." in data else b""

        passes_on, reads = line.open("passes on", take=take), line.open("reads")
        call = start(tasks, passes_on.receive)
        await parked(passes_on.handle)
        for data in b"one", b"two":
            line.arrive(data)
            assert await reads.receive() == data
            await settle()
            assert not call.done.is_set()
        line.arrive(b"three.")
        await call.done.wait()
        assert (taken, call.outcome) == ([b"one", b"two", b"three."], b".")
        line.arrive(b"four")
        assert await reads.receive() == b"three."
        assert await reads.receive() == await passes_on.receive() == b"four", "it is not offered to nobody"


@pytest.mark.parametrize("share", [0.0, 0.5, 1.0])
async def test_what_is_taken_and_what_is_received_is_all_in_order(share: float) -> None:
    """However the line is read, how much is taken, and how slow others are."""
    text = bytes(range(256)) * 400
    got = bytearray()
    async with pipe() as line, anyio.create_task_group() as tasks:

        def take(data: bytes) -> bytes:
            size = int(len(data) * share)
            got.extend(data[:size])
            return data[size:]

        async def pass_on() -> None:
            while True:
                got.extend(await passes_on.receive(700))

        async def send() -> None:
            view = memoryview(text)
            while view:
                with contextlib.suppress(BlockingIOError):
                    view = view[os.write(line.end, view[:900]) :]
                await anyio.lowlevel.checkpoint()

        passes_on, slow = line.open("passes on", take=take), line.open("slow")
        passing = start(tasks, pass_on)
        start(tasks, send)
        left = len(text)
        while left:
            left -= len(await slow.receive(800))
            await settle()
        passing.scope.cancel()
    assert got == text


@asyncio_only
@pytest.mark.parametrize("how", ["cancelled", "revoked", "revoked, with nobody kicked"])
async def test_nothing_is_taken_for_who_was_taken_away(how: str) -> None:
    """From the moment on in which it was, also where the one who waits has not left yet, or is not told to."""
    async with pipe() as line, anyio.create_task_group() as tasks:
        taken = bytearray()

        def take(data: bytes) -> bytes:
            taken.extend(data)
            return b""

        stream, reads = line.open("stream", kicks="nobody" not in how, take=take), line.open("reads")
        call = start(tasks, stream.receive)
        await parked(stream.handle)
        if how == "cancelled":
            call.scope.cancel()
        else:
            stream.revoke()
        line.arrive(b"late")
        assert await reads.receive() == b"late"
        await call.done.wait()
        assert not taken
        if "nobody" in how:
            assert call.outcome == b"late"


@asyncio_only
async def test_receive_raises_what_taking_raises() -> None:
    """It alone; what could not be taken is not lost."""
    async with pipe() as line, anyio.create_task_group() as tasks:

        def fail(_: bytes) -> bytes:
            raise ValueError("no")

        streams = [line.open("fails", take=fail), line.open("reads")]
        calls = [start(tasks, stream.receive) for stream in streams]
        for stream in streams:
            await parked(stream.handle)
        line.arrive(b"data")
        for call in calls:
            await call.done.wait()
        assert isinstance(calls[0].outcome, ValueError)
        assert calls[1].outcome == await streams[0].receive() == b"data"
