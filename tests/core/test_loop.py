"""The loop a tree lives in: its end, its successor, tasks of nobody's, other threads, and the line a task waits at."""

import asyncio
import functools
import gc
import signal
import sys
import threading
import time
from collections.abc import Awaitable, Callable, Coroutine, Generator
from typing import Any

import anyio
import anyio.lowlevel
import pytest
import trio

from asyncrevoke import (
    Report,
    Revocation,
    Revokable,
    RevokeDeadlock,
    RevokedError,
    revoke_threadsafe,
    stop_using_threadsafe,
)
from asyncrevoke._core import loop as _loop
from asyncrevoke._core.revocation import SLICE
from asyncrevoke.adapters.entries import Directory
from asyncrevoke.lowlevel import checkpoint, due
from conftest import settle
from operations import Log, asyncio_only, operate, says, slowly

pytestmark = pytest.mark.anyio

Run = Callable[[Callable[[], Awaitable[object]]], object]


@pytest.fixture
def run(anyio_backend: tuple[str, dict[str, Any]]) -> Run:
    """Run an async function in a loop of its own."""
    return functools.partial(anyio.run, backend=anyio_backend[0], backend_options=anyio_backend[1])


def closed_in_the_midst_of(main: Callable[[], Coroutine[Any, Any, object]]) -> None:
    """Run it in a loop that is closed while tasks are left, which are neither cancelled nor ended."""
    loop = asyncio.new_event_loop()
    loop.run_until_complete(main())
    for task in asyncio.all_tasks(loop):
        task._log_destroy_pending = False  # type: ignore[attr-defined]
    loop.close()


# -- a loop that ends --


@pytest.mark.invariant("I7", "I2")
def test_a_release_cancelled_by_a_closing_loop_has_failed(run: Run, caplog: pytest.LogCaptureFixture) -> None:
    """A release that the end of its loop cancels counts as failed; its node is released, and plain parents go on."""
    log: Log = []
    root = Revokable("root", release=says(log, "root"))
    child = root.open("child", release=slowly(log, "child", anyio.Event()))
    acts: list[Revocation] = []

    async def main() -> None:
        acts.append(root.revoke())
        await settle()
        assert log == ["child begins"]

    run(main)
    assert log == ["child begins", "root"]
    assert (child.released, root.released, acts[0].done()) == (True, True, True)
    assert len(acts[0].report.errors) == 1
    assert [record.name for record in caplog.records] == ["asyncrevoke"]


@pytest.mark.invariant("I7", "I2")
def test_parents_go_on_in_a_closing_loop_though_their_releases_take_time(run: Run) -> None:
    """A release that begins while the loop is closing is run or has failed as well: nothing stays half released."""
    log: Log = []
    root = Revokable("root", release=slowly(log, "root", anyio.Event()))
    root.open("child", release=slowly(log, "child", anyio.Event()))
    acts: list[Revocation] = []

    async def main() -> None:
        acts.append(root.revoke())
        await settle()

    run(main)
    gc.collect()
    assert (root.released, acts[0].done(), len(acts[0].report.errors)) == (True, True, 2)


@pytest.mark.invariant("I7", "I2")
def test_a_release_that_begins_in_a_closing_loop_is_not_lost(run: Run) -> None:
    """The last user may be one whom the end of the loop cancels: what he leaves is released, or its release failed."""
    log: Log = []
    node = Revokable("node", kick=None, release=slowly(log, "release", anyio.Event()))

    async def main() -> None:
        background(operate, node, log)
        await settle()
        node.revoke()

    run(main)
    gc.collect()
    assert log[0] == "node in"
    assert "node cancelled" in log
    assert node.released


def background(function: Callable[..., Awaitable[object]], *args: object) -> None:
    """Start a task that only the end of the loop will end."""
    home = _loop.current()
    assert home is not None
    home.spawn(functools.partial(function, *args), lambda _: None, "background")


@pytest.mark.invariant("I7")
@asyncio_only
async def test_a_release_cancelled_before_its_first_step_has_failed() -> None:
    """Asyncio may cancel a task before its first step: it has that step, and the release has failed."""
    log: Log = []
    root = Revokable("root", release=says(log, "root"))
    root.open("child", release=slowly(log, "never", asyncio.Event()))  # type: ignore[arg-type]
    before = asyncio.all_tasks()
    act = root.revoke()
    for task in asyncio.all_tasks() - before:
        task.cancel()
    with pytest.raises(BaseExceptionGroup) as caught:
        await act
    assert [type(exc) for exc in caught.value.exceptions] == [asyncio.CancelledError]
    assert log == ["never begins", "root"]
    del act, caught, task
    gc.collect()  # a coroutine that was never awaited would warn here


@pytest.mark.invariant("I2", "I8")
async def test_a_release_is_not_cancelled_by_the_garbage_collector() -> None:
    """Nobody needs to hold anything for a release to run to its end, nor has its tree to have been used before."""
    log: Log = []
    ready = anyio.Event()
    act = Revokable("node", release=slowly(log, "release", ready)).revoke()
    for _ in range(3):
        gc.collect()
        await settle()
    ready.set()
    assert (await act).errors == ()
    assert log == ["release begins", "release ends"]


@pytest.mark.invariant("size", "I4")
def test_a_closing_loop_has_no_next_turn(run: Run) -> None:
    """What a revocation has put off to later turns is done at once when the loop ends."""
    log: Log = []
    root = Revokable("root", release=says(log, "root"))
    for _ in range(2000):
        root.open()
    acts: list[Revocation] = []

    async def main() -> None:
        acts.append(root.revoke())
        assert not acts[0].done()

    run(main)
    assert log == ["root"]
    assert acts[0].report.released == 2001


@pytest.mark.invariant("grace", "I4")
def test_a_grace_ends_with_its_loop(run: Run) -> None:
    """Who has a grace when the loop ends is kicked with it."""
    log: Log = []
    node = Revokable("node", kick=lambda _: log.append("kick"), release=says(log, "release"))
    assert node.start_using()

    async def main() -> None:
        node.revoke(grace=3600)
        await settle()
        assert log == []

    run(main)
    assert log == ["kick"]
    node.stop_using()
    assert log == ["kick", "release"]


# -- a loop after another --


@pytest.mark.invariant("threads")
def test_a_tree_may_be_used_in_the_next_loop(run: Run) -> None:
    """When its loop is over, a tree goes on in the next one: used, opened, waited for and revoked there."""
    log: Log = []
    root = Revokable("root")
    child = root.open("child")

    async def use() -> None:
        with root.using(), child.using():
            assert child.start_using()
            child.stop_using()
            await anyio.lowlevel.checkpoint()
        root.open("new").close()

    async def revoke() -> None:
        async with anyio.create_task_group() as tasks:
            tasks.start_soon(operate, child, log)
            await settle()
            await root.revoke()

    run(use)
    run(use)
    run(revoke)
    assert log == ["child in", "child kicked"]


@pytest.mark.invariant("threads")
def test_a_tree_in_the_next_loop_keeps_other_threads_out(run: Run) -> None:
    """Of a child, too, that was not used in the new loop yet."""
    root = Revokable("root")
    child = root.open("child")

    async def enter() -> None:
        assert child.start_using()

    async def elsewhere() -> None:
        assert root.start_using()
        with pytest.raises(RuntimeError, match="another event loop"):
            await anyio.to_thread.run_sync(child.stop_using)
        child.stop_using()

    run(enter)
    run(elsewhere)


@pytest.mark.invariant("threads")
def test_a_tree_belongs_to_the_loop_it_is_used_in_now(run: Run) -> None:
    """In the second loop the rules are as in the first: other threads are refused, and revoke_threadsafe comes here."""
    log: Log = []
    root = Revokable("root", kick=lambda _: threads.append(threading.get_ident()))
    child = root.open("child")
    threads: list[int] = []

    async def first() -> None:
        with root.using(), child.using():
            pass

    def elsewhere() -> None:
        for node in (root, child):
            try:
                node.revoke()
            except RuntimeError:
                log.append("refused")
        revoke_threadsafe(child).result(10)

    async def second() -> None:
        with root.using():
            pass
        await anyio.to_thread.run_sync(elsewhere)

    run(first)
    run(second)
    assert log == ["refused", "refused"]
    assert threads == [threading.get_ident()]


@pytest.mark.invariant("I4", "threads")
@pytest.mark.parametrize("revoked", ["before", "again", "here", "by a further parent"])
def test_who_outlives_a_loop_leaves_in_the_next(run: Run, revoked: str) -> None:
    """What a thread uses is released in the loop that awaits it, and whoever awaits it there is woken."""
    released: list[int] = []
    further = Revokable("further")
    node = Revokable().open("node", also=[further], release=lambda: released.append(threading.get_ident()))
    acts: list[Revocation] = []
    thread = threading.Thread(target=stop_using_threadsafe, args=(node,))

    async def first() -> None:
        assert node.start_using()
        if revoked in ("before", "again"):
            acts.append(node.revoke())

    async def second() -> None:
        if revoked != "before":
            acts.append((further if revoked == "by a further parent" else node).revoke())
        with anyio.fail_after(10):
            async with anyio.create_task_group() as tasks:
                for act in acts:
                    tasks.start_soon(wait, act)
                await settle()
                thread.start()

    async def wait(act: Revocation) -> None:
        reports.append(await act)

    reports: list[Report] = []
    run(first)
    run(second)
    thread.join()
    assert released == [threading.get_ident()]
    assert all(report.released for report in reports)
    assert len(reports) == len(acts)


@pytest.mark.invariant("I4", "threads")
@pytest.mark.parametrize("next_loop", [True, False])
def test_what_a_thread_hands_over_is_done_though_the_loop_ends_before_it_comes_to_that(
    run: Run, next_loop: bool
) -> None:
    """A loop that is closed forgets its callbacks: all who left there have left all the same."""
    node = Revokable("node")
    loop = asyncio.new_event_loop()
    acts: list[Revocation] = []

    async def use() -> None:
        for _ in range(3):
            assert node.start_using()

    async def revoke() -> None:
        acts.append(node.revoke())

    def leave() -> None:
        for _ in range(3):
            stop_using_threadsafe(node)

    loop.run_until_complete(use())
    thread = threading.Thread(target=leave)
    thread.start()
    thread.join()
    loop.close()
    assert node.in_use == 3
    if next_loop:
        run(revoke)
    else:
        acts.append(node.revoke())
    assert acts[0].done()


@pytest.mark.invariant("threads")
def test_who_leaves_when_the_last_loop_is_over_is_the_last_one_out(run: Run) -> None:
    """There is no loop to be called in: the release runs in that thread."""
    log: Log = []
    node = Revokable("node", release=says(log, "release"))

    async def main() -> None:
        assert node.start_using()
        node.revoke()

    run(main)
    thread = threading.Thread(target=stop_using_threadsafe, args=(node,))
    thread.start()
    thread.join()
    assert log == ["release"]


@pytest.mark.invariant("I4", "threads")
def test_who_awaits_what_a_thread_releases_is_woken(run: Run) -> None:
    """No loop ran when it left; another does before its release is over."""
    begun, go_on = threading.Event(), threading.Event()

    def release() -> None:
        begun.set()
        go_on.wait(10)

    node = Revokable("node", release=release)
    acts: list[Revocation] = []

    async def first() -> None:
        assert node.start_using()
        acts.append(node.revoke())

    async def second() -> None:
        with anyio.fail_after(10):
            async with anyio.create_task_group() as tasks:
                tasks.start_soon(anyio.to_thread.run_sync, go_on.set)
                await acts[0]

    run(first)
    thread = threading.Thread(target=stop_using_threadsafe, args=(node,))
    thread.start()
    begun.wait()
    run(second)
    thread.join()


@pytest.mark.invariant("I4", "I7")
def test_who_waits_in_a_loop_that_was_closed_holds_nobody_up(run: Run) -> None:
    """Its tasks were never ended: they cannot be woken, but all others are."""
    node = Revokable("node")
    acts: list[Revocation] = []

    async def first() -> None:
        assert node.start_using()
        acts.append(node.revoke())
        tasks.append(asyncio.ensure_future(wait()))
        await settle()

    async def wait() -> None:
        await acts[0]
        log.append("woken")

    async def second() -> None:
        async with anyio.create_task_group() as tasks:
            tasks.start_soon(wait)
            await settle()
            node.stop_using()

    log: Log = []
    tasks: list[asyncio.Task[None]] = []
    closed_in_the_midst_of(first)
    run(second)
    assert log == ["woken"]


@pytest.mark.invariant("I4", "I8")
@pytest.mark.parametrize("what", ["kicks and releases", "some releases"])
def test_what_a_loop_was_closed_in_the_midst_of_is_ended_in_the_next(run: Run, what: str) -> None:
    """Its own tasks were never ended: what they were to do is done, and a release that was under way ends, and has failed."""
    log: Log = []

    async def release() -> None:
        log.append("begins")
        try:
            await anyio.sleep_forever()
        finally:
            log.append("ends")

    class Release:
        """An awaitable that is no coroutine."""

        def __await__(self) -> Generator[Any, Any, None]:
            return release().__await__()

    root = Revokable("root", release=says(log, "root"))
    for _ in range(2 * SLICE if what == "kicks and releases" else 3):
        root.open(release=says(log, "release") if what == "kicks and releases" else Release)
    acts: list[Revocation] = []

    async def first() -> None:
        acts.append(root.revoke())
        await anyio.lowlevel.checkpoint()

    async def second() -> None:
        with anyio.fail_after(10):
            await acts[0]

    closed_in_the_midst_of(first)
    assert not acts[0].done()
    if what == "some releases":
        with pytest.raises(BaseExceptionGroup) as caught:
            run(second)
        assert [type(each) for each in caught.value.exceptions] == [asyncio.CancelledError] * 3
        assert log == ["begins"] * 3 + ["ends"] * 3 + ["root"]
    else:
        run(second)
        assert log == ["release"] * 2 * SLICE + ["root"]


@asyncio_only
async def test_what_a_thread_hands_over_keeps_its_order() -> None:
    """Data, then the hang-up: what it had the loop do before is done before."""
    seen: list[bool] = []
    nodes = Revokable("first"), Revokable("second")
    loop = asyncio.get_running_loop()

    def hand_over() -> None:
        for node in nodes:
            loop.call_soon_threadsafe(lambda: seen.append(nodes[1].revoked))
            revoke_threadsafe(node)

    for node in nodes:
        with node.using():
            pass
    thread = threading.Thread(target=hand_over)
    thread.start()
    thread.join()
    await settle()
    assert seen == [False, False]
    assert nodes[1].revoked


@pytest.mark.invariant("I1", "threads")
def test_what_the_last_loop_has_left_undone_is_done_before_anything_opens(run: Run) -> None:
    """Also where that revokes a parent that was asked before."""
    first, second = Revokable("first"), Revokable("second")
    child = second.open("child", release=first.revoke)
    loop = asyncio.new_event_loop()

    async def use() -> None:
        with child.using():
            pass

    async def open_below() -> None:
        with pytest.raises(RevokedError):
            first.open("new", also=[second])
        assert first.released

    loop.run_until_complete(use())
    thread = threading.Thread(target=revoke_threadsafe, args=(child,))
    thread.start()
    thread.join()
    loop.close()
    run(open_below)


@pytest.mark.invariant("I7", "threads")
def test_a_call_that_fails_holds_up_no_other(run: Run, caplog: pytest.LogCaptureFixture) -> None:
    """One too many, from a thread: it is logged, and the loop and the calls of others go on."""
    nodes = Revokable("wrong"), Revokable("right")

    async def main() -> None:
        for node in nodes:
            assert node.start_using()
        nodes[0].stop_using()
        act = nodes[1].revoke()
        await anyio.to_thread.run_sync(leave)
        with anyio.fail_after(10):
            await act

    def leave() -> None:
        for node in nodes:
            stop_using_threadsafe(node)

    run(main)
    assert [record.exc_info[0] for record in caplog.records if record.exc_info] == [RuntimeError]


@pytest.mark.invariant("I2", "I4")
@pytest.mark.parametrize("anyio_backend", [pytest.param(("trio", {}), id="trio")])
def test_a_release_that_a_run_takes_no_task_for_has_failed(run: Run) -> None:
    """In the last ticks of trio's run: the node is released, and who awaits it is told."""

    async def release() -> None:
        raise AssertionError("it was begun")

    async def main() -> None:
        assert node.start_using()
        acts.append(node.revoke())
        trio.lowlevel.spawn_system_task(last)
        await settle()

    async def last() -> None:
        try:
            await trio.sleep_forever()
        finally:
            stop_using_threadsafe(node)

    async def wait() -> None:
        await acts[0]

    node = Revokable("node", release=release)
    acts: list[Revocation] = []
    run(main)
    assert node.released
    with pytest.raises(ExceptionGroup) as caught:
        run(wait)
    assert caught.group_contains(RuntimeError, match="closed")


@pytest.mark.invariant("threads")
async def test_what_is_awaited_in_another_loop_is_refused() -> None:
    """Nobody could wake who awaits it there: it is an error at once, and no hang. What is complete wakes nobody."""
    node = Revokable("node")
    assert node.start_using()
    act = node.revoke()

    async def elsewhere() -> None:
        with pytest.raises(RuntimeError, match="another event loop"):
            await act

    await anyio.to_thread.run_sync(anyio.run, elsewhere)
    node.stop_using()
    report = await act
    assert await anyio.to_thread.run_sync(anyio.run, act._complete) == report


@pytest.mark.invariant("deadlock")
def test_deadlocks_are_found_in_the_next_loop(run: Run) -> None:
    """Who is inside is known in the second loop, too."""
    node = Revokable("node")
    log: Log = []

    async def use() -> None:
        with node.using():
            pass

    async def deadlock() -> None:
        with node.using(), anyio.move_on_after(2, shield=True):
            try:
                await node.revoke()
            except RevokeDeadlock:
                log.append("told")

    run(use)
    try:
        run(deadlock)
    except RevokedError:
        log.append("kicked")
    assert log == ["told"]


@pytest.mark.invariant("threads")
def test_loops_do_not_share_a_home(run: Run) -> None:
    """Each loop has one home, for as long as something needs it; the next loop has another."""
    homes: list[_loop.Home | None] = []

    async def main() -> None:
        homes.append(_loop.current())
        assert _loop.current() is homes[-1]

    run(main)
    run(main)
    assert homes[0] is not homes[1]
    assert [home is not None and home.over for home in homes] == [True, True]
    assert _loop.current() is None


@pytest.mark.invariant("I4")
def test_a_home_goes_with_its_loop(run: Run) -> None:
    """No global state between loops: what no tree needs any more is garbage."""

    async def main() -> None:
        node = Revokable("node")
        with node.using():
            pass
        await node.revoke()

    run(main)
    gc.collect()
    before = len(_loop._homes)
    for _ in range(3):
        run(main)
    gc.collect()
    assert len(_loop._homes) <= before


# -- other threads --


@pytest.mark.invariant("threads")
@pytest.mark.parametrize("busy", [False, True])
def test_a_tree_of_a_running_loop_is_refused_in_another_loop(run: Run, busy: bool) -> None:
    """Two loops in two threads: a use of the other's tree raises, also in the moment in which that runs a task."""
    theirs = Revokable("theirs")
    log: Log = []
    ready, stop = threading.Event(), threading.Event()

    async def hold() -> None:
        with theirs.using():
            await settle()
            ready.set()
            if busy:
                stop.wait(10)
            else:
                await anyio.to_thread.run_sync(stop.wait)

    async def intrude() -> None:
        for call in (theirs.using().__enter__, theirs.start_using, theirs.revoke, theirs.close):
            try:
                call()
            except RuntimeError:
                log.append("refused")
            else:
                log.append(f"{call.__name__} went through")

    thread = threading.Thread(target=run, args=(hold,))
    thread.start()
    try:
        assert ready.wait(10)
        run(intrude)
    finally:
        stop.set()
        thread.join()
    assert log == ["refused"] * 4
    assert (theirs.in_use, theirs.revoked, theirs.closed) == (0, False, False)


@pytest.mark.invariant("threads")
def test_trees_of_two_loops_are_not_joined_outside_of_both(run: Run) -> None:
    """There is no loop then in which both could be used from now on. Nothing has changed."""
    used, fresh = Revokable("used"), Revokable("fresh")

    async def use() -> None:
        with used.using():
            await settle()

    run(use)
    with pytest.raises(RuntimeError, match="'used' belongs to another event loop than 'fresh'"):
        fresh.join(used)
    assert (used.children, fresh.parent) == ((), None)


@pytest.mark.invariant("threads")
async def test_revoke_threadsafe_from_a_signal_handler() -> None:
    """A signal.signal handler may come at any line: the revocation is the loop's next step."""
    node = Revokable("node")
    log: Log = []
    before = signal.signal(signal.SIGUSR1, lambda *_: log.append(revoke_threadsafe(node, "signal").__class__.__name__))
    try:
        with pytest.raises(RevokedError) as caught, node.using():
            signal.raise_signal(signal.SIGUSR1)
            log.append(f"revoked {node.revoked}")
            await anyio.sleep(10)
    finally:
        signal.signal(signal.SIGUSR1, before)
    assert log == ["Future", "revoked False"]
    assert caught.value.reason == "signal"


@pytest.mark.invariant("threads")
@asyncio_only
async def test_a_signal_handler_of_the_loop_may_revoke() -> None:
    """The loop's own signal handlers run in its thread: revoke() is allowed there."""
    node = Revokable("node")
    loop = asyncio.get_running_loop()
    with node.using():
        pass
    loop.add_signal_handler(signal.SIGUSR1, node.revoke, "signal")
    try:
        signal.raise_signal(signal.SIGUSR1)
        while not node.revoked:
            await asyncio.sleep(0.001)
    finally:
        loop.remove_signal_handler(signal.SIGUSR1)
    assert (node.reason, node.released) == ("signal", True)


@pytest.mark.invariant("threads")
async def test_revoke_threadsafe_wakes_a_loop_that_sleeps() -> None:
    """The loop need not be busy to notice."""
    node = Revokable("node")
    began = time.monotonic()

    def revoke() -> None:
        revoke_threadsafe(node, grace=0.001)

    with pytest.raises(RevokedError), node.using():
        thread = threading.Timer(0.01, revoke)
        thread.start()
        await anyio.sleep(30)
    thread.join()
    assert time.monotonic() - began < 10


@pytest.mark.invariant("threads")
def test_revoke_threadsafe_after_the_loop_revokes_at_once(run: Run) -> None:
    """A tree whose loop is over is nobody's: there is nothing to be called in."""
    log: Log = []
    node = Revokable("node", release=says(log, "release"))

    async def main() -> None:
        with node.using():
            pass

    run(main)
    assert revoke_threadsafe(node).result(0).released == 1
    assert log == ["release"]


# -- an operation that need not wait --


async def test_each_33rd_operation_in_a_row_is_due(anyio_backend_name: str) -> None:
    """So are those before the first turn of the loop, and all on trio. Each turn begins a new row."""
    node = Revokable("node")
    assert [due(node), due(node)] == [True, True]
    for _ in range(2):
        await checkpoint()
        assert [due(node) for _ in range(34)] == [anyio_backend_name == "trio"] * 32 + [True, True]


@asyncio_only
async def test_an_operation_is_due_in_a_cancelled_task_and_in_a_callback() -> None:
    """The one is to be cancelled there, the other asks whose loop it is."""
    node = Revokable("node")
    loop, task = asyncio.get_running_loop(), asyncio.current_task()
    assert task is not None
    found: list[bool] = []
    with node.using():
        await checkpoint()
    loop.call_soon(lambda: found.append(due(node)))
    await settle()
    found.append(due(node))
    with anyio.CancelScope() as scope:
        scope.cancel()
        found.append(due(node))
    task.cancel()
    found.append(due(node))
    with pytest.raises(asyncio.CancelledError):
        await checkpoint()
    task.uncancel()
    found.append(due(node))
    assert found == [True, False, True, True, False]


async def test_whether_an_operation_is_due_is_not_for_another_thread() -> None:
    """It is refused in the midst of a row, too."""
    node = Revokable("node")
    with node.using():
        await checkpoint()
    with pytest.raises(RuntimeError, match="belongs to another event loop"):
        await anyio.to_thread.run_sync(due, node)


# -- the line a task waits at --


@pytest.mark.invariant("I8")
async def test_where_a_task_waits_is_the_users_line() -> None:
    """Not a line of asyncio, trio, AnyIO or ours, but the innermost one of the user's, through any chain of awaits."""
    node = Revokable("node")
    sender, receiver = anyio.create_memory_object_stream[int]()

    async def deeper() -> None:
        async for _ in receiver:
            pass

    async def operation() -> None:
        with node.using():
            await deeper()

    with sender, receiver:
        async with anyio.create_task_group() as tasks:
            tasks.start_soon(operation)
            await settle()
            (user,) = node.users()
            tasks.cancel_scope.cancel()
    line = deeper.__code__.co_firstlineno + 1
    assert user.where == f"test_loop.py:{line} in deeper"


@pytest.mark.invariant("I8", "kick")
def test_a_program_of_asyncio_alone_is_kicked(monkeypatch: pytest.MonkeyPatch) -> None:
    """Where nobody has imported AnyIO's backend or trio yet, a task is kicked and found all the same."""
    monkeypatch.setitem(sys.modules, "trio", None)
    monkeypatch.delitem(sys.modules, "anyio._backends._asyncio")
    monkeypatch.delattr(anyio._backends, "_asyncio")
    node = Revokable("node")
    where: list[str] = []

    async def read() -> None:
        with node.using():
            await asyncio.sleep(1000)

    async def main() -> None:
        reader = asyncio.ensure_future(read())
        await asyncio.sleep(0)
        where.extend(user.where for user in node.users())
        act = node.revoke()
        with pytest.raises(RevokedError):
            await reader
        assert act.done()

    asyncio.run(main())
    assert where == [f"test_loop.py:{read.__code__.co_firstlineno + 2} in read"]


@pytest.mark.invariant("I8")
async def test_where_a_task_waits_in_a_library_of_a_like_name() -> None:
    """Code beside AnyIO whose folder begins with that name, as `anyio_serial`, is nobody's plumbing."""
    folder = anyio.__file__.rpartition("/")[0]
    source = "async def poll(node, anyio):\n    with node.using():\n        await anyio.sleep_forever()"
    library: dict[str, Any] = {}
    exec(compile(source, f"{folder}_serial/port.py", "exec"), library)
    async with Revokable("node") as node, anyio.create_task_group() as tasks:
        tasks.start_soon(library["poll"], node, anyio)
        await settle()
        (user,) = node.users()
        tasks.cancel_scope.cancel()
    assert user.where == "port.py:3 in poll"


@pytest.mark.invariant("I8")
@asyncio_only
async def test_where_a_task_waits_that_is_over() -> None:
    """A task without a frame waits nowhere."""
    task = asyncio.ensure_future(anyio.lowlevel.checkpoint())
    await task
    assert _loop.where(task) == "not started"


@pytest.mark.parametrize("where", ["task", "callback"])
def test_a_release_has_its_first_step_when_the_loop_ends(where: str) -> None:
    """Tasks that have not begun are cancelled then. What a release does before its first await is done all the same, once,
    and what it does when it is cancelled, to the end.
    """
    steps: list[str] = []

    async def release() -> None:
        steps.append("first")
        try:
            await asyncio.sleep(0)
            await asyncio.sleep(1000)
        finally:
            for _ in range(10):
                await asyncio.sleep(0)
            steps.append("last")

    node = Revokable("device", release=release)

    async def main() -> None:
        await asyncio.sleep(0)
        if where == "task":
            node.revoke()
        else:
            asyncio.get_running_loop().call_soon(node.revoke)

    asyncio.run(main())
    assert steps == ["first", "last"]
    assert node.released


@pytest.mark.invariant("I8")
async def test_where_a_task_waits_in_an_adapter_is_the_users_line() -> None:
    """Adapters are plumbing of ours, too."""
    entry = Directory("tree").create("entry", read=lambda *_: None)

    async def read() -> None:
        await file.read()

    async with await entry.open() as file, anyio.create_task_group() as tasks:
        tasks.start_soon(read)
        await settle()
        (reader,) = file.handle.users()
        assert reader.where.endswith("in read")
        assert reader.where.startswith("test_loop.py")
        tasks.cancel_scope.cancel()
