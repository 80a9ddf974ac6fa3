"""Blocking calls in threads of their own: what comes of them, and what is left of one that nobody waits for."""

import asyncio
import errno
import math
import subprocess
import sys
import threading
import weakref
from collections.abc import Iterator
from typing import Any

import anyio
import anyio.lowlevel
import pytest

from asyncrevoke import off_loop
from asyncrevoke.lowlevel import close_off_loop
from calls import Stalled
from conftest import settle
from operations import asyncio_only

pytestmark = pytest.mark.anyio


@pytest.fixture(autouse=True)
def _threads_end() -> Iterator[None]:
    """Each thread has ended when the test is over: a stalled one by the test's own doing."""
    before = set(threading.enumerate())
    yield
    for thread in set(threading.enumerate()) - before:
        if not thread.name.startswith("Trio"):
            thread.join(20)


async def test_the_result_comes_back_from_another_thread() -> None:
    """What it returns is awaited, and the loop's own thread has not made the call."""
    assert await off_loop(threading.get_ident) != threading.get_ident()


@pytest.mark.parametrize("error", [OSError(5, "no"), KeyboardInterrupt("mine"), SystemExit(3)], ids=repr)
async def test_what_it_raises_is_raised_where_it_is_awaited(error: BaseException) -> None:
    """An error of any kind is the very same one, and the thread prints nothing."""
    call = Stalled(error)
    call.go.set()
    with pytest.raises(type(error)) as caught:
        await off_loop(call)
    assert caught.value is error


async def test_the_call_begins_before_it_is_awaited() -> None:
    """It runs whether or not anybody awaits it already."""
    call = Stalled()
    waiting = off_loop(call)
    assert call.running.wait(20)
    call.go.set()
    assert await waiting == "result"


async def test_what_was_called_is_let_go_before_the_result_is_there() -> None:
    """A memory that the call has used is unmapped as soon as its user closes it."""
    call = Stalled()
    go = call.go
    waiting = off_loop(call)
    log: list[bool] = []
    weakref.finalize(call, lambda: log.append(waiting.done()))
    del call
    go.set()
    await waiting
    assert log == [False]


async def test_many_stalled_calls_keep_no_other_from_running() -> None:
    """There is no pool that could be used up."""
    calls = [Stalled(number) for number in range(100)]
    results: list[object] = []

    async def wait(call: Stalled) -> None:
        results.append(await off_loop(call))

    with anyio.fail_after(20):
        async with anyio.create_task_group() as tasks:
            for call in calls:
                tasks.start_soon(wait, call)
            await settle()
            assert await off_loop(lambda: "quick") == "quick"
            assert results == []
            for call in calls:
                call.go.set()
    assert sorted(results, key=str) == sorted(range(100), key=str)


@pytest.mark.parametrize("ends", ["later", "before", "in the same turn"])
async def test_a_result_is_delivered_or_goes_to_late(ends: str) -> None:
    """One of both, once, whenever the call ends; and `late` gets it in a thread."""
    call = Stalled()
    thread = set(threading.enumerate())
    waiting = off_loop(call, late=call.hand_over)
    thread = set(threading.enumerate()) - thread
    delivered = []
    if ends == "before":
        call.go.set()
        await settle()
    with anyio.CancelScope() as scope:
        if ends != "later":
            call.go.set()
            thread.pop().join(20)  # the loop is told, but has not looked
        scope.cancel()
        delivered.append(await waiting)
    call.go.set()
    assert delivered or call.late.wait(20)
    assert (delivered, call.came_late) in [(["result"], []), ([], [("result", False)])]
    assert scope.cancelled_caught is not bool(delivered)


async def test_an_error_that_nobody_waits_for_goes_nowhere(caplog: pytest.LogCaptureFixture) -> None:
    """`late` is for results; and nothing is logged."""
    call = Stalled(OSError("nobody hears it"))
    before = set(threading.enumerate())
    with anyio.CancelScope() as scope:
        waiting = off_loop(call, late=call.hand_over)
        scope.cancel()
        await waiting
    call.go.set()
    for thread in set(threading.enumerate()) - before:
        thread.join(20)
    assert not call.late.is_set()
    assert caplog.records == []


@pytest.mark.parametrize("patience", [0.0, 3600.0])
async def test_a_cancellation_waits_for_a_call_as_long_as_it_has_patience(
    patience: float, monkeypatch: pytest.MonkeyPatch
) -> None:
    """And sleeps meanwhile."""
    call, turns = Stalled(), 0
    now = anyio.current_time

    def counted() -> float:
        nonlocal turns
        turns += 1
        return now()

    monkeypatch.setattr(anyio, "current_time", counted)
    with anyio.CancelScope() as scope:
        waiting = off_loop(call, patience=patience)
        scope.cancel()
        threading.Timer(0.1, call.go.set).start()
        await waiting
    assert scope.cancelled_caught
    assert call.go.is_set() == (patience > 0)
    assert turns < 10
    call.go.set()


async def test_the_patience_is_for_what_late_does_too() -> None:
    """Whatever was opened is closed again when the cancelled open is over."""
    call = Stalled()

    def late(result: object) -> None:
        closing.wait()
        call.hand_over(result)

    closing = threading.Event()
    with anyio.CancelScope() as scope:
        waiting = off_loop(call, late=late, patience=3600)
        scope.cancel()
        call.go.set()
        threading.Timer(0.1, closing.set).start()
        await waiting
    assert scope.cancelled_caught
    assert call.came_late == [("result", False)]


@asyncio_only
async def test_a_second_cancellation_does_not_end_the_patience() -> None:
    """Asyncio's own, which no scope keeps out."""
    call = Stalled()

    async def wait() -> None:
        await off_loop(call, patience=math.inf)

    task = asyncio.ensure_future(wait())
    for _ in range(2):
        await settle()
        task.cancel()
    await settle()
    assert not task.done()
    call.go.set()
    with pytest.raises(asyncio.CancelledError):
        await task


@asyncio_only
@pytest.mark.parametrize("patience", [0.0, 3600.0])
async def test_a_coroutine_that_was_closed_waits_no_more(patience: float) -> None:
    """The result is late then, and there is no patience: it cannot wait."""
    call = Stalled()

    async def wait() -> None:
        await off_loop(call, late=call.hand_over, patience=patience)

    waiting = wait()
    waiting.send(None)
    waiting.close()
    call.go.set()
    assert call.late.wait(20)


async def test_a_result_that_is_awaited_is_not_late() -> None:
    """It belongs to the one who awaits it, and to nobody else."""
    call = Stalled()
    call.go.set()
    assert await off_loop(call, late=call.hand_over) == "result"
    assert call.came_late == []


@pytest.mark.parametrize("closed", [True, False])
def test_the_loop_may_end_while_it_runs(
    anyio_backend: tuple[str, dict[str, Any]], closed: bool, capfd: pytest.CaptureFixture[str]
) -> None:
    """The thread ends by itself, its result goes to `late`, and nothing is printed."""
    call = Stalled()
    threads: list[threading.Thread] = []

    async def main() -> None:
        before = set(threading.enumerate())
        with anyio.CancelScope() as scope:
            waiting = off_loop(call, late=call.hand_over)
            threads.extend(set(threading.enumerate()) - before)
            scope.cancel()
            await waiting
        if not closed:
            call.go.set()  # about now

    anyio.run(main, backend=anyio_backend[0], backend_options=anyio_backend[1])
    call.go.set()
    threads[0].join(20)
    assert not threads[0].is_alive()
    assert call.late.wait(20)
    assert capfd.readouterr() == ("", "")


@pytest.mark.parametrize("ended", [True, False])
def test_the_next_loop_may_await_it(anyio_backend: tuple[str, dict[str, Any]], ended: bool) -> None:
    """Who waits is woken wherever that is, and whether or not the call had ended before."""
    call = Stalled()
    begun = []

    async def begin() -> None:
        begun.append(off_loop(call))

    async def wait() -> None:
        async with anyio.create_task_group() as tasks:
            tasks.start_soon(anyio.to_thread.run_sync, call.go.set)
            with anyio.fail_after(10):
                assert await begun[0] == "result"

    anyio.run(begin, backend=anyio_backend[0], backend_options=anyio_backend[1])
    if ended:
        call.go.set()
        assert begun[0].result() == "result"
    anyio.run(wait, backend=anyio_backend[0], backend_options=anyio_backend[1])


async def test_the_thread_does_not_wait_for_the_loop() -> None:
    """It tells the loop, and ends: one that stops without another turn leaves no thread behind."""
    call = Stalled()
    before = set(threading.enumerate())
    waiting = off_loop(call)
    (thread,) = set(threading.enumerate()) - before
    call.go.set()
    thread.join(20)
    assert not thread.is_alive()
    assert await waiting == "result"


def test_a_stalled_call_does_not_delay_the_end_of_the_interpreter(anyio_backend: tuple[str, dict[str, Any]]) -> None:
    """The process ends, quietly, with the call still running."""
    program = f"""
import anyio, asyncrevoke, threading
async def main():
    with anyio.CancelScope() as scope:
        waiting = asyncrevoke.off_loop(threading.Event().wait)
        scope.cancel()
        await waiting
anyio.run(main, backend={anyio_backend[0]!r})
print("over")
"""
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, timeout=60)
    assert (done.returncode, done.stdout, done.stderr) == (0, "over\n", "")


def test_without_a_loop_nothing_is_called() -> None:
    """It raises at once."""
    call = Stalled()
    with pytest.raises(anyio.NoEventLoopError):
        off_loop(call)
    assert not call.running.is_set()


def no_thread(_: object) -> None:
    raise RuntimeError("can't start new thread")


async def test_where_no_thread_can_be_started_nothing_is_called(monkeypatch: pytest.MonkeyPatch) -> None:
    """An OSError at once."""
    called: list[object] = []
    with monkeypatch.context() as patch, pytest.raises(OSError, match="can't start new thread") as info:
        patch.setattr(threading.Thread, "start", no_thread)
        off_loop(lambda: called.append(1))
    assert (info.value.errno, called) == (errno.ENOMEM, [])


@pytest.mark.parametrize("ends", ["later", "in the same turn"])
async def test_a_late_result_is_handed_over_without_a_thread(ends: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """It may be something to be closed: where no thread can be started, whoever finds it late does it."""
    call = Stalled()
    before = set(threading.enumerate())
    waiting = off_loop(call, late=call.hand_over)
    (thread,) = set(threading.enumerate()) - before
    assert thread.daemon, "the interpreter must not wait for it"
    monkeypatch.setattr(threading.Thread, "start", no_thread)
    with anyio.CancelScope() as scope:
        if ends != "later":
            call.go.set()
            thread.join(20)
        scope.cancel()
        await waiting
    call.go.set()
    thread.join(20)
    assert call.came_late in ([("result", False)], [("result", True)])


def test_without_a_loop_it_is_closed_before_this_returns() -> None:
    """There is nobody who could wait for a thread."""
    closed: list[bool] = []
    assert close_off_loop(lambda: closed.append(True)) is None
    assert closed == [True]


async def test_where_no_thread_can_be_started_it_is_closed_before_this_returns(monkeypatch: pytest.MonkeyPatch) -> None:
    """The loop waits, but nothing stays open."""
    closed: list[bool] = []
    monkeypatch.setattr(threading.Thread, "start", no_thread)
    assert close_off_loop(lambda: closed.append(True)) is None
    assert closed == [True]
