"""A descriptor watched in the background: called as often as it is readable, closed once, whatever happens."""

import asyncio
import errno
import functools
import gc
import pathlib
import select
import socket
from collections.abc import Awaitable, Callable
from typing import Any

import anyio
import anyio.lowlevel
import pytest

from asyncrevoke import Watch, linux
from asyncrevoke.lowlevel import Deadline
from conftest import settle

pytestmark = pytest.mark.anyio

Run = Callable[[Callable[[], Awaitable[object]]], object]


@pytest.fixture
def run(anyio_backend: tuple[str, dict[str, Any]]) -> Run:
    """Run an async function in a loop of its own."""
    return functools.partial(anyio.run, backend=anyio_backend[0], backend_options=anyio_backend[1])


class End:
    """One end of a socketpair, which counts how often it is closed."""

    def __init__(self, *, rung: bool = False) -> None:
        self.socket, self.far = socket.socketpair()
        self.socket.setblocking(False)
        self.closed = anyio.Event()
        self.closes = 0
        if rung:
            self.far.send(b"x")

    def fileno(self) -> int:
        return self.socket.fileno()

    def close(self) -> None:
        self.closes += 1
        self.closed.set()
        self.socket.close()
        self.far.close()


async def test_it_is_called_as_often_as_there_is_something_to_read() -> None:
    """Each time the file is readable the function runs, until the watch is closed."""
    end, read, came = End(), [], anyio.Event()

    def call() -> None:
        read.append(end.socket.recv(1))
        came.set()

    watch = Watch(end, call)
    with anyio.fail_after(20):
        for byte in b"a", b"b":
            came = anyio.Event()
            end.far.send(byte)
            await came.wait()
        watch.close()
        watch.close()
        await end.closed.wait()
    assert (read, end.closes) == ([b"a", b"b"], 1)


@pytest.mark.parametrize("rung", [False, True])
@pytest.mark.parametrize("turns", [0, 1, 2, 12])
async def test_after_close_it_is_called_no_more(rung: bool, turns: int) -> None:
    """Also before its first step, and when it has become readable already; and the file is closed once."""
    end, calls = End(), []
    watch = Watch(end, lambda: calls.append(end.socket.recv(1)))
    await settle(turns)
    if rung:
        end.far.send(b"x")
    watch.close()
    with anyio.fail_after(20):
        await end.closed.wait()
    await settle()
    assert (calls, end.closes) == ([], 1)


async def test_one_that_is_closed_by_another_ones_call_is_not_called() -> None:
    """Of two that become readable in the same turn, only the first is called if that closes the other."""
    ends, calls = [End(), End()], []
    watches: list[Watch] = []

    def call(own: int) -> None:
        calls.append(own)
        for watch in watches:
            watch.close()

    for own, end in enumerate(ends):
        watches.append(Watch(end, functools.partial(call, own)))
    await settle()
    for end in ends:
        end.far.send(b"x")
    with anyio.fail_after(20):
        for end in ends:
            await end.closed.wait()
    assert len(calls) == 1
    assert [end.closes for end in ends] == [1, 1]


async def test_one_that_is_opened_in_place_of_a_closed_one_is_not_called_for_it() -> None:
    """Both are ready in the same turn; the first call closes the other, whose number is a new file's at once."""
    ends = [End(rung=True), End(rung=True)]
    watches: list[Watch] = []
    calls: list[End] = []

    def call(own: int) -> None:
        ends[own].socket.recv(1)
        if len(ends) == 2:
            number = ends[1 - own].fileno()
            watches[1 - own].close()
            ends.append(End())
            while ends[-1].fileno() != number:
                ends.append(End())
            watches.append(Watch(ends[-1], functools.partial(calls.append, ends[-1])))
            assert ends[-1].fileno() == number

    watches += [Watch(end, functools.partial(call, own)) for own, end in enumerate(ends)]
    await settle()
    assert len(watches) == 3
    assert calls == []
    for watch in watches:
        watch.close()
    for end in ends:
        end.close()


def held() -> tuple[int, int]:
    """The descriptors of this process, and the tasks of this loop where it is asyncio."""
    tasks = asyncio.all_tasks() if asyncio._get_running_loop() else ()
    return len(list(pathlib.Path("/proc/self/fd").iterdir())), len(tasks)


async def test_all_watches_of_a_loop_share_one_descriptor_and_one_task() -> None:
    """The second takes neither, and the last to close gives both back."""
    ends = [End() for _ in range(10)]
    before = held()
    watches = [Watch(ends[0], lambda: None)]
    one = held()
    watches += [Watch(end, lambda: None) for end in ends[1:]]
    assert held() == one
    assert one[0] - before[0] == 1
    for watch in watches:
        watch.close()
    await settle()
    assert held() == (before[0] - 20, before[1])


async def test_a_new_one_is_called_while_the_last_but_one_still_ends() -> None:
    """The loop's first watch is closed, and another opened in the same step."""
    for end in End(), End():
        came = anyio.Event()
        watch = Watch(end, came.set)
        end.far.send(b"x")
        with anyio.fail_after(20):
            await came.wait()
        watch.close()


async def test_one_that_asks_for_nothing_is_called_for_a_hangup_alone() -> None:
    """Data is left to others, and so is the file, if it is said to be theirs."""
    end, came = End(rung=True), anyio.Event()

    def call() -> None:
        watch.close()
        came.set()

    watch = Watch(end, call, events=0, closes=False)
    await settle()
    assert not came.is_set()
    end.far.close()
    with anyio.fail_after(20):
        await came.wait()
    assert end.closes == 0
    assert end.socket.recv(9) == b"x"
    end.close()


async def test_one_that_is_closed_leaves_its_file_alone() -> None:
    """The file is still open, and readable: neither this watch is called for that, nor is another disturbed."""
    ends, calls, came = [End(), End()], [], anyio.Event()
    first, second = Watch(ends[0], lambda: calls.append(0), closes=False), Watch(ends[1], came.set)
    await settle()
    first.close()
    ends[0].far.send(b"x")
    await settle()
    ends[1].far.send(b"x")
    with anyio.fail_after(20):
        await came.wait()
    second.close()
    assert calls == []
    ends[0].close()


async def test_only_the_loop_waits(monkeypatch: pytest.MonkeyPatch) -> None:
    """Somebody else may have read what there was: the kernel is asked what is readable, and nobody waits there."""
    timeouts: list[float] = []

    class Epoll:
        def __init__(self) -> None:
            self._epoll = select.epoll()

        def poll(self, timeout: float) -> list[tuple[int, int]]:
            timeouts.append(timeout)
            return self._epoll.poll(timeout)

        def __getattr__(self, name: str) -> Any:
            return getattr(self._epoll, name)

    monkeypatch.setattr(linux, "epoll", Epoll)
    end, came = End(rung=True), anyio.Event()
    watch = Watch(end, came.set)
    with anyio.fail_after(20):
        await came.wait()
    watch.close()
    assert set(timeouts) == {0}


@pytest.mark.parametrize("others", [0, 1])
async def test_what_cannot_be_watched_stays_the_callers(others: int, tmp_path: pathlib.Path) -> None:
    """A regular file is always ready: the constructor says so, and closes nothing; the watches of others go on."""
    ends = [End(rung=True) for _ in range(others)]
    came = anyio.Event()
    watches = [Watch(end, came.set) for end in ends]
    with (tmp_path / "file").open("wb") as file:
        before = held()
        with pytest.raises(PermissionError) as kept:
            Watch(file, lambda: None)
        assert held() == before, kept
        assert not file.closed
    for watch in watches:
        with anyio.fail_after(20):
            await came.wait()
        watch.close()


async def test_what_the_call_raises_ends_it_and_is_logged(caplog: pytest.LogCaptureFixture) -> None:
    """Nobody awaits a watch: its failure is in the log, and its file closed."""
    end = End(rung=True)
    watch = Watch(end, lambda: 1 / 0)
    with anyio.fail_after(20):
        await end.closed.wait()
    await settle()
    watch.close()
    assert end.closes == 1
    assert ["ZeroDivisionError" in record.message for record in caplog.records] == [True]


async def test_a_number_that_is_used_again_at_once_is_the_new_ones() -> None:
    """Each of many, opened as soon as the last is closed, is told of its own file only."""
    numbers, called = set(), 0

    def call() -> None:
        nonlocal called
        called += 1
        watch.close()

    with anyio.fail_after(20):
        for turn in range(50):
            end = End(rung=turn % 2 == 0)
            numbers.add(end.fileno())
            watch = Watch(end, call)
            if turn % 2:
                await settle(turn % 4)
                watch.close()
            await end.closed.wait()
    assert called == 25
    assert len(numbers) < 25, "no number was used again"


async def test_it_is_called_after_an_error_as_before() -> None:
    """A loop may end a registration over an error: each wait makes its own. A UDP socket reports who does not listen."""
    with socket.socket(type=socket.SOCK_DGRAM) as server, anyio.fail_after(20):
        server.bind(("127.0.0.1", 0))
        client = socket.socket(type=socket.SOCK_DGRAM)
        client.connect(server.getsockname())
        client.setblocking(False)
        read: list[bytes | int | None] = []
        came = anyio.Event()

        def call() -> None:
            try:
                read.append(client.recv(1))
            except OSError as exc:
                read.append(exc.errno)
            came.set()

        watch = Watch(client, call)
        await settle()
        address = server.getsockname()
        server.close()
        for _ in range(2):
            came = anyio.Event()
            client.send(b"x")
            await came.wait()
        with socket.socket(type=socket.SOCK_DGRAM) as again:
            again.bind(address)
            came = anyio.Event()
            again.sendto(b"y", client.getsockname())
            await came.wait()
        watch.close()
        while client.fileno() >= 0:
            await anyio.lowlevel.checkpoint()
    assert read == [errno.ECONNREFUSED, errno.ECONNREFUSED, b"y"]


@pytest.mark.parametrize("turns", [0, 12])
def test_the_end_of_the_loop_closes_it(run: Run, turns: int, caplog: pytest.LogCaptureFixture) -> None:
    """A watch that is open when its loop ends is closed there, once, and nobody complains; nor later."""
    ends: list[End] = []
    watches: list[Watch] = []

    async def main() -> None:
        ends.append(End())
        watches.append(Watch(ends[0], lambda: None))
        await settle(turns)

    run(main)
    gc.collect()
    watches[0].close()
    assert ends[0].closes == 1
    assert caplog.records == []


@pytest.mark.parametrize("library", ["asyncio", "uvloop"])
def test_a_loop_that_is_closed_at_once_keeps_no_descriptor(library: str) -> None:
    """When the last watch is closed in its last turn, and nobody winds it up."""

    async def main() -> None:
        watch = Watch(End(), lambda: None)
        await settle()
        watch.close()

    loop = pytest.importorskip(library).new_event_loop()
    before = held()
    loop.run_until_complete(main())
    assert held() == before
    loop.close()


def test_without_a_loop_the_file_stays_the_callers() -> None:
    """The constructor raises, and closes nothing."""
    end = End()
    with pytest.raises(RuntimeError, match="needs a running event loop"):
        Watch(end, lambda: None)
    assert end.closes == 0
    end.close()


# -- deadlines --


class Clock:
    """Time that passes only when a test says so, and who sleeps until when."""

    def __init__(self, patch: pytest.MonkeyPatch) -> None:
        self.now = 0.0
        self.asked: list[float] = []
        self._wake = anyio.Event()
        patch.setattr(anyio, "current_time", lambda: self.now)
        patch.setattr(anyio, "sleep", self._sleep)

    async def _sleep(self, seconds: float) -> None:
        self.asked.append(seconds)
        await self._wake.wait()

    async def ring(self, now: float) -> None:
        self.now = now
        wake, self._wake = self._wake, anyio.Event()
        wake.set()
        await settle()


async def test_a_deadline_that_is_put_off_is_waited_for_anew(monkeypatch: pytest.MonkeyPatch) -> None:
    """Its seconds are counted from the last time, to the last of them, and it calls once."""
    clock, calls = Clock(monkeypatch), []
    deadline = Deadline(10, lambda: calls.append(clock.now))
    await settle()
    clock.now = 6
    deadline.put_off()
    await clock.ring(10)
    assert (clock.asked, calls) == ([10, 6], [])
    await clock.ring(15.5)
    assert (clock.asked, calls) == ([10, 6, 0.5], [])
    await clock.ring(16)
    await clock.ring(99)
    assert (clock.asked, calls) == ([10, 6, 0.5], [16])


@pytest.mark.parametrize("turns", [0, 12])
async def test_a_deadline_that_is_closed_does_not_call(turns: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """Also before its first step; and no task is left."""
    before = held()
    clock, calls = Clock(monkeypatch), []
    deadline = Deadline(10, lambda: calls.append(clock.now))
    await settle(turns)
    deadline.close()
    deadline.close()
    await clock.ring(99)
    assert calls == []
    assert held() == before


async def test_what_a_deadline_calls_may_fail(caplog: pytest.LogCaptureFixture) -> None:
    """Nobody awaits it: that is in the log."""
    Deadline(0, lambda: 1 / 0)
    await settle()
    assert ["ZeroDivisionError" in record.message for record in caplog.records] == [True]


def test_a_deadline_needs_a_loop() -> None:
    """Else nobody would look at the time."""
    with pytest.raises(RuntimeError, match="needs a running event loop"):
        Deadline(1, lambda: None)
