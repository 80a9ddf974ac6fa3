"""One operation: nesting, idle waits, what comes out of it, items, and opening."""

import asyncio
import contextlib
import gc
from collections.abc import AsyncGenerator, AsyncIterator, Callable

import anyio
import anyio.lowlevel
import pytest

from asyncrevoke import Revocation, Revokable, RevokeDeadlock, RevokedError
from conftest import settle
from operations import Log, asyncio_only, operate, says, slowly

pytestmark = pytest.mark.anyio


async def park(node: Revokable, *, idle: bool = False) -> None:
    with node.using(idle=idle):
        await anyio.sleep_forever()


# -- nesting --


@pytest.mark.invariant("I1")
async def test_a_nested_use_is_granted_in_the_grace() -> None:
    """A handler that is inside may send its reply during the grace, also by start_using and more than one level deep."""
    log: Log = []
    node = Revokable("node", release=says(log, "release"))
    with node.using():
        act = node.revoke(grace=3600)
        with node.using():
            await anyio.lowlevel.checkpoint()
            with node.using():
                log.append("reply")
        assert node.start_using()
        node.stop_using()
    assert log == ["reply", "release"]
    assert (await act).kicked == 0


@pytest.mark.invariant("I1")
async def test_a_nested_use_is_not_granted_after_the_kick() -> None:
    """Once kicked, a task that goes on regardless starts nothing more."""
    log: Log = []
    node = Revokable("node")
    with node.using():
        node.revoke()
        for start in (node.using().__enter__, node.using(idle=True).__enter__):
            try:
                start()
            except RevokedError as exc:
                log.append(f"refused, in flight: {exc.in_flight}")
        assert not node.start_using()
    assert log == ["refused, in flight: False"] * 2


@pytest.mark.invariant("I1")
async def test_a_nested_use_is_not_granted_when_the_grace_is_over() -> None:
    """The grant ends with the kick that the grace has put off."""
    node = Revokable("node")
    with node.using():
        node.revoke(grace=0.01)
        with anyio.CancelScope(shield=True):
            while not node.kicked:
                await anyio.sleep(0.001)
        assert not node.start_using()
        with pytest.raises(RevokedError):
            node.using().__enter__()


@pytest.mark.invariant("I1")
async def test_a_nested_use_is_not_granted_to_another_task() -> None:
    """In the grace only who is inside already may go on; a child task of it is not."""
    log: Log = []
    node = Revokable("node")
    with node.using():
        act = node.revoke(grace=3600)
        async with anyio.create_task_group() as tasks:
            tasks.start_soon(operate, node, log)
    assert log == ["node refused"]
    await act


@pytest.mark.invariant("I1")
async def test_a_use_of_another_node_is_not_a_nested_one() -> None:
    """Being inside the parent, or the child, is not being inside the node."""
    for upwards in (True, False):
        root = Revokable("root")
        child = root.open("child")
        inside, wanted = (child, root) if upwards else (root, child)
        with inside.using():
            root.revoke(grace=3600)
            assert not wanted.start_using()
            with pytest.raises(RevokedError), wanted.using():
                pass


@pytest.mark.invariant("I1")
async def test_a_bare_use_grants_no_nested_one() -> None:
    """start_using only counts: nobody knows whose it is."""
    node = Revokable("node")
    assert node.start_using()
    act = node.revoke(grace=3600)
    assert not node.start_using()
    node.stop_using()
    await act


@pytest.mark.invariant("I1")
async def test_a_use_that_is_left_grants_nothing() -> None:
    """After the outer use has been left, the task is inside no more."""
    node, other = Revokable("node"), Revokable("other")
    assert other.start_using()
    first, second = node.using(), other.using()
    first.__enter__()
    second.__enter__()
    inner = node.using()
    inner.__enter__()
    inner.__exit__(None, None, None)
    second.__exit__(None, None, None)
    first.__exit__(None, None, None)
    act = other.revoke(grace=3600)
    assert not other.start_using()
    other.stop_using()
    await act


@pytest.mark.invariant("I1")
async def test_a_use_that_is_left_out_of_order_grants_nothing() -> None:
    """An operation is left before an inner one, also where the scope refuses that, as trio's does."""
    node, other = Revokable("node"), Revokable("other")
    granted: list[bool] = []

    async def disorderly() -> None:
        first, second = node.using(), other.using()
        first.__enter__()
        second.__enter__()
        with contextlib.suppress(RuntimeError):
            first.__exit__(None, None, None)
        node.revoke(grace=3600)
        granted.append(node.start_using())
        second.__exit__(None, None, None)

    assert node.start_using()
    with contextlib.suppress(ExceptionGroup):  # AnyIO's own scope is of no more use
        async with anyio.create_task_group() as tasks:
            tasks.start_soon(disorderly)
    node.stop_using()
    assert granted == [False]
    assert not other.in_use


# -- idle --


@pytest.mark.invariant("grace")
async def test_an_idle_use_that_is_nested_is_not_idle() -> None:
    """A receive inside a request is part of the work: the grace is for it, too."""
    log: Log = []
    node = Revokable("node")
    reply = anyio.Event()

    async def handler() -> None:
        with node.using():
            await operate(node, log, "nested", idle=True, until=reply)
            log.append("handled")

    async with anyio.create_task_group() as tasks:
        tasks.start_soon(handler)
        await settle()
        act = node.revoke(grace=3600)
        await settle()
        assert log == ["nested in"]
        reply.set()
        await act
    assert log == ["nested in", "nested out", "handled"]


@pytest.mark.invariant("grace")
async def test_an_idle_use_inside_a_use_of_the_parent_is_idle() -> None:
    """Nested means on the same node: a wait on the child is kicked at once."""
    log: Log = []
    root = Revokable("root")
    child = root.open("child")

    async def handler() -> None:
        with root.using():
            await operate(child, log, "idle", idle=True)
            log.append("handled")

    async with anyio.create_task_group() as tasks:
        tasks.start_soon(handler)
        await settle()
        await root.revoke(grace=3600)
    assert log == ["idle in", "idle kicked", "handled"]


# -- what comes out --


@pytest.mark.invariant("contract")
async def test_the_error_of_a_kicked_operation() -> None:
    """A kicked operation raises RevokedError with the node, and in_flight."""
    node = Revokable("node")
    with pytest.raises(RevokedError) as caught, node.using():
        node.revoke("unplugged")
        await anyio.sleep_forever()
    exc = caught.value
    assert (exc.node, exc.name, exc.reason, exc.in_flight, exc.sent) == (node, "node", "unplugged", True, None)
    assert "unplugged" in str(exc)


@pytest.mark.invariant("contract")
async def test_each_kicked_operation_raises_an_exception_of_its_own() -> None:
    """Exceptions are fresh: nobody else's traceback or notes are in them."""
    node = Revokable("node")
    raised: list[RevokedError] = []

    async def note() -> None:
        with pytest.raises(RevokedError) as caught:
            await park(node)
        raised.append(caught.value)

    async with anyio.create_task_group() as tasks:
        tasks.start_soon(note)
        tasks.start_soon(note)
        await settle()
        node.revoke()
    assert len(set(map(id, raised))) == 2


@pytest.mark.invariant("I5")
async def test_a_cancellation_from_outside_goes_through() -> None:
    """Who is cancelled is cancelled, and not revoked."""
    log: Log = []
    node = Revokable("node")
    async with anyio.create_task_group() as tasks:
        tasks.start_soon(operate, node, log)
        await settle()
        tasks.cancel_scope.cancel()
    assert log == ["node in", "node cancelled"]
    assert (node.in_use, node.revoked) == (0, False)


@pytest.mark.invariant("I5")
@pytest.mark.parametrize("kick_first", [True, False])
async def test_a_cancellation_together_with_the_kick_goes_through(kick_first: bool) -> None:
    """A cancellation beats the kick of the same loop step, whichever was first."""
    log: Log = []
    node = Revokable("node")
    async with anyio.create_task_group() as tasks:
        tasks.start_soon(operate, node, log)
        await settle()
        acts: list[Callable[[], object]] = [node.revoke, tasks.cancel_scope.cancel]
        for act in acts if kick_first else reversed(acts):
            act()
    assert log == ["node in", "node cancelled"]


@pytest.mark.invariant("I5")
@pytest.mark.parametrize("kick_first", [True, False])
@asyncio_only
async def test_a_native_cancel_together_with_the_kick_goes_through(kick_first: bool) -> None:
    """Task.cancel() is a cancellation from outside, too."""
    log: Log = []
    node = Revokable("node")
    task = asyncio.create_task(operate(node, log))
    await asyncio.sleep(0)
    acts: list[Callable[[], object]] = [node.revoke, task.cancel]
    for act in acts if kick_first else reversed(acts):
        act()
    with pytest.raises(asyncio.CancelledError):
        await task
    assert log == ["node in", "node cancelled"]
    assert task.cancelled()


@pytest.mark.invariant("I5")
async def test_the_kick_does_not_leak_into_what_follows() -> None:
    """After a kicked operation the task goes on as if nothing had cancelled it."""
    node = Revokable("node")
    with pytest.raises(RevokedError), node.using():
        node.revoke()
        await anyio.lowlevel.checkpoint()
    await anyio.lowlevel.checkpoint()
    await settle()
    with anyio.CancelScope() as scope:
        await anyio.lowlevel.checkpoint()
    assert not scope.cancelled_caught


@pytest.mark.invariant("I6")
async def test_a_result_that_is_there_is_delivered() -> None:
    """Data, then revoke: the data comes out."""
    log: Log = []
    node = Revokable("node")
    data = anyio.Event()
    async with anyio.create_task_group() as tasks:
        tasks.start_soon(lambda: operate(node, log, until=data))
        await settle()
        data.set()
        act = node.revoke()
        await act
    assert log == ["node in", "node out"]


@pytest.mark.invariant("I6")
async def test_an_operation_that_ignores_the_kick_keeps_its_result() -> None:
    """Who returns, returns; what it does next is refused."""
    node = Revokable("node")

    async def answer() -> int:
        with node.using():
            node.revoke()
            with anyio.CancelScope(shield=True):
                await anyio.lowlevel.checkpoint()
            return 42

    assert await answer() == 42


@pytest.mark.invariant("I6")
async def test_an_error_of_the_operations_own_comes_out_unchanged() -> None:
    """A kicked operation that fails for a reason of its own says so."""
    node = Revokable("node")
    error = ValueError("mine")
    with pytest.raises(ValueError, match="mine") as caught, node.using():
        node.revoke()
        raise error
    assert caught.value is error


@pytest.mark.invariant("I6", "contract")
async def test_nobody_reports_a_kick_that_did_not_reach_him() -> None:
    """Under kick=None an outer guard was not kicked: the error inside is the inner one's."""
    entry, device = Revokable("entry", kick=None), Revokable("device")
    with pytest.raises(RevokedError) as caught, entry.using():
        entry.revoke()
        with device.using():
            device.revoke()
            await anyio.sleep_forever()
    assert caught.value.node is device


@pytest.mark.invariant("contract")
@pytest.mark.parametrize("outer_first", [True, False])
async def test_the_outer_guard_reports_when_both_are_kicked(outer_first: bool) -> None:
    """Of two kicked guards of one task the outer one speaks."""
    outer, inner = Revokable("outer"), Revokable("inner")
    with pytest.raises(RevokedError) as caught, outer.using(), inner.using():
        for node in (outer, inner) if outer_first else (inner, outer):
            node.revoke()
        await anyio.sleep_forever()
    assert (caught.value.node, caught.value.in_flight) == (outer, True)


@pytest.mark.invariant("contract")
async def test_the_inner_guard_reports_when_it_alone_is_kicked() -> None:
    """A kick of the inner node is an error that the outer operation may handle."""
    outer, inner = Revokable("outer"), Revokable("inner")
    with outer.using():
        with pytest.raises(RevokedError) as caught, inner.using():
            inner.revoke()
            await anyio.sleep_forever()
        await anyio.lowlevel.checkpoint()
    assert caught.value.node is inner


@pytest.mark.invariant("contract")
async def test_an_outer_use_of_the_same_node_passes_the_error_on() -> None:
    """Parent and child kicked in one act: one RevokedError comes out, and no group."""
    root = Revokable("root")
    child = root.open("child")
    with pytest.raises(RevokedError) as caught, root.using(), child.using(), root.using():
        root.revoke()
        await anyio.sleep_forever()
    assert caught.value.node is root


@pytest.mark.invariant("contract")
async def test_a_group_of_ones_own_revocation_is_folded() -> None:
    """Waits in a TaskGroup inside the use come out as one RevokedError, however deep the group."""
    node = Revokable("node")
    with pytest.raises(RevokedError) as caught, node.using():
        async with anyio.create_task_group() as outer, anyio.create_task_group() as inner:
            outer.start_soon(park, node)
            inner.start_soon(park, node)
            inner.start_soon(park, node)
            await settle()
            node.revoke()
    assert (caught.value.node, caught.value.in_flight) == (node, True)


@pytest.mark.invariant("contract")
async def test_a_group_with_anything_else_is_not_folded() -> None:
    """What is not the revocation's must not be lost in it."""
    node = Revokable("node")

    async def fails() -> None:
        try:
            await park(node)
        finally:
            raise ValueError("mine")

    with pytest.raises(BaseExceptionGroup) as caught, node.using():
        async with anyio.create_task_group() as tasks:
            tasks.start_soon(park, node)
            tasks.start_soon(fails)
            await settle()
            node.revoke()
    assert caught.group_contains(ValueError, match="mine")


@pytest.mark.invariant("contract", "I5")
async def test_what_was_raised_beside_the_kick_comes_out_without_it() -> None:
    """The kick is a cancellation of ours, so it is taken out of a group that it is in."""
    node = Revokable("node")
    error = ValueError("mine")
    with pytest.raises(BaseExceptionGroup) as caught, node.using():
        node.revoke()
        try:
            await anyio.sleep_forever()
        except anyio.get_cancelled_exc_class() as kick:
            raise BaseExceptionGroup("both", [error, kick]) from None
    assert caught.value.exceptions == (error,)


@pytest.mark.invariant("contract", "grace")
async def test_a_group_of_idle_waits_kicked_in_the_grace_is_folded() -> None:
    """The group is made only of this node's revocation, also when the use around it has its grace still."""
    node = Revokable("node")
    with pytest.raises(RevokedError) as caught, node.using():
        async with anyio.create_task_group() as tasks:
            for _ in range(2):
                tasks.start_soon(lambda: park(node, idle=True))
            await settle()
            node.revoke(grace=3600)
    assert caught.value.node is node


@pytest.mark.invariant("contract")
async def test_a_group_with_a_refusal_of_this_revocation_is_folded() -> None:
    """One task was kicked, another came too late: both say the same."""
    node = Revokable("node")

    async def late() -> None:
        with anyio.CancelScope(shield=True):
            while not node.kicked:
                await anyio.lowlevel.checkpoint()
        with node.using():
            pass

    with pytest.raises(RevokedError) as caught, node.using():
        async with anyio.create_task_group() as tasks:
            tasks.start_soon(park, node)
            tasks.start_soon(late)
            await settle()
            node.revoke()
    assert caught.value.node is node


@pytest.mark.invariant("contract")
async def test_close_by_another_task_is_a_closed_resource() -> None:
    """The operations on a handle that its owner closes fail as closed; on what is below, as revoked."""
    log: Log = []
    root = Revokable("root")
    child = root.open("child")
    async with anyio.create_task_group() as tasks:
        for node in (root, child):
            tasks.start_soon(operate, node, log)
            await settle()
        await root.close()
        await settle()
    assert log[:2] == ["root in", "child in"]
    assert sorted(log[2:]) == ["child kicked", "root closed"]


@pytest.mark.invariant("contract")
@pytest.mark.parametrize(
    ("end", "error", "own"),
    [
        (Revokable.close, anyio.ClosedResourceError("the socket is closed"), True),
        (Revokable.close, ValueError("mine"), False),
        (Revokable.revoke, anyio.ClosedResourceError("the socket is closed"), False),
    ],
)
async def test_what_a_close_by_its_owner_has_closed_below_is_told_as_the_close(
    end: Callable[[Revokable], object], error: Exception, own: bool
) -> None:
    """A hook closes what an operation waits on: its ClosedResourceError is then the node's own. All else is foreign."""
    node = Revokable("node", kick=None)
    closed = anyio.Event()

    async def takes() -> None:
        end(node)

    async with anyio.create_task_group() as tasks:
        with pytest.raises(type(error)) as caught, node.using() as use:
            use.on_kick(closed.set)
            tasks.start_soon(takes)
            await closed.wait()
            raise error
    told = caught.value
    assert (told is not error, told.__cause__ is error) == (own, own)
    assert ("closed by its owner" in str(told)) == own


@pytest.mark.invariant("contract")
async def test_an_operation_that_no_kick_has_reached_keeps_its_own_error() -> None:
    """Under kick=None, a close by the owner says nothing about what an operation runs into."""
    node = Revokable("node", kick=None)
    error = anyio.ClosedResourceError("the socket is closed")
    with pytest.raises(anyio.ClosedResourceError) as caught, node.using():
        node.close()
        raise error
    assert caught.value is error


@pytest.mark.invariant("I3", "I7")
@asyncio_only
async def test_a_coroutine_that_is_dropped_leaves() -> None:
    """GeneratorExit in an operation counts as leaving: the release is not lost."""
    log: Log = []
    node = Revokable("node", release=says(log, "release"))
    future: asyncio.Future[None] = asyncio.get_running_loop().create_future()

    async def operation() -> None:
        with node.using():
            await future

    coroutine = operation()
    coroutine.send(None)
    act = node.revoke(grace=3600)
    with contextlib.suppress(RuntimeError):  # AnyIO's scope says that it was left in another context
        coroutine.close()
    await act
    assert log == ["release"]


# -- on_kick --


@pytest.mark.invariant("kick")
async def test_on_kick_runs_once_at_the_kick() -> None:
    """Hooks of one operation run with its kick, in the order they were added, and not again."""
    log: Log = []
    node = Revokable("node", kick=says(log, "node's"))
    with node.using() as use:
        use.on_kick(says(log, "first"))
        use.on_kick(says(log, "second"))
        node.revoke(grace=3600)
        assert (use.kicked, log) == (False, [])
        node.revoke()
        node.revoke()
        assert use.kicked
    assert log == ["node's", "first", "second"]


@pytest.mark.invariant("kick")
def test_who_leaves_by_the_hook_of_another_is_not_kicked() -> None:
    """A kick may end several operations at once, as the hook of a connection does: the rest are over, and are not told."""
    log: Log = []
    node = Revokable("node")
    with contextlib.ExitStack() as first, contextlib.ExitStack() as second:
        first.enter_context(node.using()).on_kick(second.close)
        second.enter_context(node.using()).on_kick(says(log, "kicked"))
        act = node.revoke()
    assert log == []
    assert act.report.kicked == 1


@pytest.mark.invariant("kick")
async def test_on_kick_that_comes_after_the_kick_runs_at_once() -> None:
    """debugfs_enter_cancellation: who registers too late must not wait for ever."""
    log: Log = []
    node = Revokable("node")
    with node.using() as use:
        node.revoke()
        use.on_kick(says(log, "at once"))
        assert log == ["at once"]


@pytest.mark.invariant("kick")
async def test_on_kick_is_called_where_nobody_is_cancelled() -> None:
    """With kick=None an operation may still ask to be told, before and after."""
    log: Log = []
    node = Revokable("node", kick=None)
    with node.using() as use:
        use.on_kick(says(log, "told"))
        act = node.revoke()
        use.on_kick(says(log, "told late"))
        await anyio.lowlevel.checkpoint()
    assert log == ["told", "told late"]
    assert (await act).kicked == 1


@pytest.mark.invariant("kick")
async def test_an_operation_knows_of_a_kick_that_does_not_end_it() -> None:
    """With kick=None nobody is told; whoever asks learns that the kick has come."""
    node = Revokable("node", kick=None)
    with node.using() as use:
        assert not use.kicked
        node.revoke()
        assert use.kicked


@pytest.mark.invariant("kick")
async def test_on_kick_of_one_who_has_left_is_not_called() -> None:
    """A hook ends with its operation."""
    log: Log = []
    node = Revokable("node")
    with node.using() as use:
        use.on_kick(says(log, "not called"))
    await node.revoke()
    assert log == []


@pytest.mark.invariant("kick", "I7")
def test_on_kick_without_a_task_is_called() -> None:
    """An operation of a callback has no scope; its hooks are how it is kicked, and it knows."""
    log: Log = []
    node = Revokable("node")
    with node.using() as use:
        use.on_kick(says(log, "hook"))
        act = node.revoke()
        assert use.kicked
    assert log == ["hook"]
    assert act.report.kicked == 1


@pytest.mark.invariant("kick")
def test_on_kick_without_a_task_that_comes_after_the_kick_runs_at_once() -> None:
    """Who registers too late is told at once, with a task or without, and knows that he was kicked."""
    log: Log = []
    node = Revokable("node")
    with node.using() as use:
        node.revoke()
        assert use.kicked
        use.on_kick(says(log, "at once"))
        assert log == ["at once"]
    assert log == ["at once"]


@pytest.mark.invariant("kick", "I2")
def test_close_without_a_task_kicks_what_has_no_task() -> None:
    """close() spares the calling task's operations: in a callback there is no such task."""
    log: Log = []
    node = Revokable("node")
    with node.using() as use:
        use.on_kick(says(log, "hook"))
        node.close()
    assert log == ["hook"]


@pytest.mark.invariant("kick")
async def test_a_hook_ends_the_wait_of_a_worker_thread() -> None:
    """A wait in a thread is ended by its hook, and never killed."""
    import threading  # noqa: PLC0415

    node = Revokable("node")
    started, wake = anyio.Event(), threading.Event()
    log: Log = []

    async def work() -> None:
        with node.using() as use:
            use.on_kick(wake.set)
            started.set()
            with anyio.CancelScope(shield=True):
                assert await anyio.to_thread.run_sync(wake.wait, 10)
            log.append(f"woken, kicked: {use.kicked}")

    async with anyio.create_task_group() as tasks:
        tasks.start_soon(work)
        await started.wait()
        await node.revoke()
    assert log == ["woken, kicked: True"]


# -- the bare pair --


@pytest.mark.invariant("pair")
async def test_the_bare_pair_counts() -> None:
    """After start_using and until stop_using the release does not run; nobody cancels such users."""
    log: Log = []
    node = Revokable("node", kick=says(log, "hook"), release=says(log, "release"))
    assert node.start_using()
    assert node.start_using()
    assert node.in_use == 2
    act = node.revoke()
    await settle()
    node.stop_using()
    assert log == ["hook"]
    node.stop_using()
    assert log == ["hook", "release"]
    assert (await act).kicked == 0


@pytest.mark.invariant("pair")
def test_stop_using_without_start_is_an_error() -> None:
    """An unmatched stop_using raises and changes nothing, also while others are inside."""
    log: Log = []
    node = Revokable("node", release=says(log, "release"))
    with node.using():
        with pytest.raises(RuntimeError, match="stop_using"):
            node.stop_using()
        node.revoke()
        assert not node.start_using()
        with pytest.raises(RuntimeError, match="stop_using"):
            node.stop_using()
        assert log == []
    assert log == ["release"]


@pytest.mark.invariant("pair")
async def test_bare_and_other_users_are_one_count() -> None:
    """Whichever of both kinds is the last one out, it releases."""
    for bare_last in (True, False):
        log: Log = []
        node = Revokable("node", release=says(log, "release"))
        assert node.start_using()
        with node.using():
            act = node.revoke(grace=3600)
            if not bare_last:
                node.stop_using()
            assert log == []
        if bare_last:
            assert log == []
            node.stop_using()
        assert log == ["release"]
        await act


# -- iterate --


@pytest.mark.invariant("iterate")
async def test_iterate_is_one_operation_per_item() -> None:
    """The item is waited for inside the node, and the body runs outside of it."""
    node = Revokable("node")
    log: Log = []

    async def source() -> AsyncIterator[int]:
        for number in range(2):
            log.append(f"fetch {number}, in_use {node.in_use}")
            yield number

    async for number in node.iterate(source()):
        log.append(f"item {number}, in_use {node.in_use}")
    assert log == ["fetch 0, in_use 1", "item 0, in_use 0", "fetch 1, in_use 1", "item 1, in_use 0"]
    assert node.in_use == 0


@pytest.mark.invariant("iterate")
async def test_iterate_is_kicked_while_it_waits() -> None:
    """A parked iteration is idle: it is ended at once, by RevokedError and not by StopAsyncIteration."""
    node = Revokable("node")
    sender, receiver = anyio.create_memory_object_stream[int](1)
    log: Log = []

    async def consume() -> None:
        async for number in node.iterate(receiver):
            log.append(f"item {number}")

    async def consumer() -> None:
        try:
            await consume()
        except RevokedError as exc:
            log.append(f"in flight: {exc.in_flight}")

    with sender, receiver:
        async with anyio.create_task_group() as tasks:
            tasks.start_soon(consumer)
            sender.send_nowait(1)
            await settle()
            await node.revoke(grace=3600)
    assert log == ["item 1", "in flight: True"]


@pytest.mark.invariant("iterate")
async def test_iterate_does_not_kick_the_body() -> None:
    """A revocation while the body runs lets the body finish; the next item is refused."""
    node = Revokable("node")
    sender, receiver = anyio.create_memory_object_stream[int](2)
    log: Log = []
    with sender, receiver:
        sender.send_nowait(1)
        sender.send_nowait(2)
        with pytest.raises(RevokedError) as caught:
            async for number in node.iterate(receiver):
                await node.revoke()
                await settle()
                log.append(f"body of {number}")
    assert log == ["body of 1"]
    assert not caught.value.in_flight


@pytest.mark.invariant("iterate", "I6")
async def test_iterate_delivers_the_item_that_is_there() -> None:
    """An item that has arrived when the kick comes is delivered, and then the end."""
    node = Revokable("node")
    log: Log = []
    arrived = anyio.Event()

    async def source() -> AsyncGenerator[str, None]:
        await arrived.wait()
        yield "item"

    async def consume() -> None:
        async with contextlib.aclosing(source()) as items:
            with pytest.raises(RevokedError):
                async for item in node.iterate(items):
                    log.append(item)

    async with anyio.create_task_group() as tasks:
        tasks.start_soon(consume)
        await settle()
        arrived.set()
        node.revoke()
    assert log == ["item"]


# -- opening --


@pytest.mark.invariant("opening")
async def test_opening_commits_at_a_normal_exit() -> None:
    """The block is an operation of the parent; after it the handle is an open child."""
    log: Log = []
    root = Revokable("root")
    async with root.opening("handle", at_close=says(log, "at_close")) as handle:
        assert (root.in_use, handle.parent) == (1, None)
        handle.release = says(log, "release")
    assert (root.in_use, root.unclosed, handle.parent, handle.path) == (1, 1, root, "root/handle")
    assert log == []
    with handle.using():
        pass
    root.revoke()
    assert log == ["release"]
    handle.close()
    assert log == ["release", "at_close"]
    assert root.unclosed == 0


@pytest.mark.invariant("opening")
@pytest.mark.parametrize("slow", [False, True])
async def test_opening_that_fails_releases_once(slow: bool) -> None:
    """An exception in the block runs the release once, also one that takes its time, and goes on."""
    log: Log = []
    root = Revokable("root", release=says(log, "root"))
    now = anyio.Event()
    now.set()
    with pytest.raises(KeyError):
        async with root.opening("handle", at_close=says(log, "never")) as handle:
            handle.release = slowly(log, "release", now) if slow else says(log, "release")
            raise KeyError
    assert log == (["release begins", "release ends"] if slow else ["release"])
    assert (handle.released, handle.unclosed, root.in_use, root.unclosed, root.revoked) == (True, 0, 0, 0, False)
    await root.revoke()
    assert log[-1] == "root"


@pytest.mark.invariant("opening", "grace")
async def test_opening_is_not_kicked_before_the_grace_is_over() -> None:
    """It works, and does not wait for others to begin something."""
    log: Log = []
    root = Revokable("root")
    with pytest.raises(RevokedError):  # what it has opened has no parent any more
        async with root.opening():
            root.revoke(grace=3600)
            await anyio.lowlevel.checkpoint()
            log.append("went on")
    assert log == ["went on"]
    assert root.released


@pytest.mark.invariant("opening")
async def test_opening_that_fails_before_there_is_something_releases_nothing() -> None:
    """As long as no release is set there is nothing to release."""
    root = Revokable("root")
    with pytest.raises(KeyError):
        async with root.opening():
            raise KeyError
    assert root.in_use == 0


@pytest.mark.invariant("opening", "I5")
@pytest.mark.parametrize("slow", [False, True])
async def test_opening_that_is_cancelled_releases_once(slow: bool) -> None:
    """A cancellation goes through, and the release runs in any case."""
    log: Log = []
    root = Revokable("root")
    ready = anyio.Event()
    async with anyio.create_task_group() as tasks:

        async def open_it() -> None:
            async with root.opening() as handle:
                handle.release = slowly(log, "release", ready) if slow else says(log, "release")
                await anyio.sleep_forever()

        tasks.start_soon(open_it)
        await settle()
        tasks.cancel_scope.cancel()
    ready.set()
    await settle()
    assert log == (["release begins", "release ends"] if slow else ["release"])
    assert root.in_use == 0


@pytest.mark.invariant("opening", "I2")
@pytest.mark.parametrize("slow", [False, True])
async def test_opening_is_kicked_by_a_revocation_of_the_parent(slow: bool) -> None:
    """A revocation ends the opening and waits until what it held is released, before the parent."""
    log: Log = []
    root = Revokable("root", release=says(log, "root"))
    ready = anyio.Event()

    async def open_it() -> None:
        try:
            async with root.opening("handle") as handle:
                handle.release = slowly(log, "release", ready) if slow else says(log, "release")
                await anyio.sleep_forever()
        except RevokedError as exc:
            log.append(f"{exc.name} {exc.reason}")

    async with anyio.create_task_group() as tasks:
        tasks.start_soon(open_it)
        await settle()
        act = root.revoke("unplugged")
        await settle()
        if slow:
            assert log == ["release begins"]
            assert [user.kind for user in act.stragglers()] == ["release"]
        ready.set()
        await act
    begun = ["release begins", "release ends"] if slow else ["release"]
    assert log == [*begun, "root", "root unplugged"]


@pytest.mark.invariant("opening")
async def test_opening_does_not_commit_to_a_parent_that_was_revoked() -> None:
    """A normal exit after a revocation raises, and what was opened is released."""
    log: Log = []
    root = Revokable("root", release=says(log, "root"))
    with pytest.raises(RevokedError) as caught:
        async with root.opening("handle") as handle:
            handle.release = says(log, "release")
            root.revoke("unplugged", grace=3600)
    assert log == ["release", "root"]
    assert (caught.value.node, handle.reason) == (root, "unplugged")


@pytest.mark.invariant("opening")
async def test_opening_does_not_commit_to_a_further_parent_that_was_revoked() -> None:
    """Every parent must be live still."""
    log: Log = []
    root, token = Revokable("root"), Revokable("token")
    with pytest.raises(RevokedError) as caught:
        async with root.opening("handle", also=[token]) as handle:
            handle.release = says(log, "release")
            await token.revoke("logged out")
    assert log == ["release"]
    assert (caught.value.node, root.in_use, root.revoked) == (token, 0, False)


@pytest.mark.invariant("opening", "I1")
async def test_opening_of_what_was_revoked_is_refused() -> None:
    """On a dead parent, whichever, the block is not entered and nothing has changed."""
    live, dead = Revokable("live"), Revokable("dead")
    dead.revoke()
    for parent, also in ((dead, live), (live, dead)):
        with pytest.raises(RevokedError):
            async with parent.opening(also=[also]):
                pytest.fail("entered")
    assert live.in_use == 0


@pytest.mark.invariant("opening", "I4")
@pytest.mark.parametrize("fails", [False, True])
async def test_opening_of_a_handle_that_was_closed_meanwhile_leaves_nothing(fails: bool) -> None:
    """A handle that the block itself closes is gone: its parent does not wait for it for ever."""
    log: Log = []
    root = Revokable("root", release=says(log, "root"))
    with contextlib.suppress(KeyError):
        async with root.opening("handle") as handle:
            handle.release = says(log, "release")
            own = handle.close()
            if fails:
                raise KeyError
    assert (log, root.in_use) == (["release"], 0)
    assert own.done()
    act = root.revoke()
    assert act.done()
    assert log == ["release", "root"]


@pytest.mark.invariant("opening", "I4")
@pytest.mark.parametrize("fails", [False, True])
async def test_acts_on_a_handle_from_inside_its_opening_complete(fails: bool) -> None:
    """A handle revoked in its own block, with somebody inside, completes that act, keeps its reason and is let go of."""
    root = Revokable("root")
    async with anyio.create_task_group() as tasks:
        with contextlib.suppress(KeyError):
            async with root.opening("handle") as handle:
                assert handle.start_using()
                own = handle.revoke("its own")
                tasks.start_soon(leave, handle)
                if fails:
                    raise KeyError
    await settle()
    assert (own.done(), handle.released, handle.reason, root.in_use) == (True, True, "its own", 0)


async def leave(node: Revokable) -> None:
    with anyio.CancelScope(shield=True):
        await settle(3)
    node.stop_using()


@pytest.mark.invariant("opening", "I4")
async def test_users_of_a_handle_that_is_not_opened_are_waited_for() -> None:
    """What the block has let into the handle is kicked, drained and released with it, and the parent's act knows."""
    log: Log = []
    root = Revokable("root", release=says(log, "root"))
    acts: list[Revocation] = []

    async def drained() -> None:
        await acts[0].wait_drained()
        log.append("drained")

    async with anyio.create_task_group() as tasks:

        async def open_it() -> None:
            with pytest.raises(RevokedError):
                async with root.opening("handle") as handle:
                    handle.release = says(log, "release")
                    tasks.start_soon(operate, handle, log)
                    await anyio.sleep_forever()

        tasks.start_soon(open_it)
        await settle()
        acts.append(root.revoke())
        tasks.start_soon(drained)
        with anyio.fail_after(2):
            await acts[0]
            await acts[0].wait_drained()
        await settle()
    assert log[0] == "handle in"
    assert sorted(log[1:]) == sorted(["handle kicked", "release", "root", "drained"])


@pytest.mark.invariant("opening", "I2")
async def test_what_was_opened_below_an_opening_handle_is_counted() -> None:
    """Files with at_close that were opened in the block count above it as soon as it commits."""
    root = Revokable("root")
    async with root.opening("handle", at_close=lambda: None) as handle:
        child = handle.open("child", at_close=lambda: None)
    assert (root.unclosed, handle.unclosed) == (2, 2)
    child.close()
    assert (root.unclosed, handle.unclosed) == (1, 1)
    handle.close()
    with anyio.fail_after(2):
        await root.revoke().wait_closed()
    assert root.unclosed == 0


@pytest.mark.invariant("opening")
async def test_opening_waits_out_no_deadlock_of_its_own() -> None:
    """From inside the block, awaiting the parent's revocation would wait for the block."""
    root = Revokable("root")
    with pytest.raises(RevokedError):
        async with root.opening():
            with pytest.raises(RevokeDeadlock):
                await root.revoke()


@pytest.mark.invariant("opening", "I7")
async def test_a_release_of_a_failed_opening_that_raises_does_not_hide_the_error(
    caplog: pytest.LogCaptureFixture,
) -> None:
    """The block's own error comes out; that of the release is logged, for nobody could await it."""
    root = Revokable("root")
    with pytest.raises(KeyError):
        async with root.opening("handle") as handle:
            handle.release = lambda: 1 / 0
            raise KeyError
    await settle()
    assert [record.name for record in caplog.records] == ["asyncrevoke"]
    assert (handle.released, root.in_use) == (True, 0)


# -- nothing is kept --


@pytest.mark.invariant("I4")
async def test_a_use_that_was_kicked_keeps_nothing() -> None:
    """After a revocation neither node nor act nor task holds what was inside."""

    class Payload:
        pass

    node = Revokable("node")

    async def operation() -> None:
        payload = Payload()
        try:
            await park(node)
        except RevokedError:
            del payload

    async with anyio.create_task_group() as tasks:
        tasks.start_soon(operation)
        await settle()
        act = node.revoke()
        await act
    gc.collect()
    assert [each for each in gc.get_objects() if type(each) is Payload] == []
    assert act.report.kicked == 1
