"""Guarding a wait: the 28 hazards. Each must hold for any guard, here for `using()`.

The body of `async with guarded(...)` is the operation. The acts named there happen once it waits, all in one step, from
a task of their own. What it reported is `outcome`; what holds after every hazard is asserted at the end of `watched`.
"""

import asyncio
import contextlib
import contextvars
import sys
from collections.abc import AsyncIterator, Awaitable, Callable

import anyio
import anyio.lowlevel
import pytest
import trio

from asyncrevoke import Revokable, RevokedError
from conftest import BACKENDS, settle

pytestmark = pytest.mark.anyio

#: For hazards that are made of asyncio's own objects.
on_asyncio = pytest.mark.parametrize("anyio_backend", [each for each in BACKENDS if each.id != "trio"], indirect=True)
#: For what may happen in one step in either order.
either_order = pytest.mark.parametrize("kick_first", [True, False])


class Guarded:
    """Guarded work of the current task, and what became of it."""

    def __init__(self) -> None:
        self.node = Revokable("node")
        self.inner = Revokable("inner")  # for a second guard
        self.scope = anyio.CancelScope()  # for a body to enter, and an act to cancel
        self.go = anyio.Event()
        self.log: list[object] = []
        self.children = 0
        self.outcome: BaseException | None = None
        self.failed: list[BaseException] = []  # the test itself
        self.ended = anyio.Event()
        asyncs = anyio.get_cancelled_exc_class() is asyncio.CancelledError
        self.task = asyncio.current_task() if asyncs else None
        self.cancelling = self.task.cancelling() if self.task else 0
        self.outside = anyio.CancelScope()  # trio's cancel from outside; on asyncio no scope is to be in the way

    async def park(self) -> None:
        await anyio.Event().wait()

    async def child(self) -> None:
        self.children += 1
        try:
            await self.park()
        finally:
            self.children -= 1

    def assert_revoked(self, node: Revokable | None = None) -> None:
        assert isinstance(self.outcome, RevokedError), repr(self.outcome)
        assert self.outcome.node is (node or self.node)
        assert self.outcome.in_flight

    def assert_cancelled(self) -> None:
        assert isinstance(self.outcome, anyio.get_cancelled_exc_class()), repr(self.outcome)


Act = Callable[[Guarded], Awaitable[None] | None]


def kick(g: Guarded) -> None:
    assert g.node.in_use
    g.node.revoke()


def kick_inner(g: Guarded) -> None:
    assert g.inner.in_use
    g.inner.revoke()


def cancel(g: Guarded) -> None:
    """Cancel it from outside: the task itself or, as trio has no such thing, a scope around all it does."""
    if g.task:
        g.task.cancel()
        g.cancelling += 1
    else:
        g.outside.cancel()


def cancel_scope(g: Guarded) -> None:
    g.scope.cancel()


def go(g: Guarded) -> None:
    g.go.set()


async def pause(_: Guarded) -> None:
    await settle()


async def perform(g: Guarded, acts: tuple[Act, ...]) -> None:
    """Run the acts when the work waits, and see that it ends."""
    try:
        await settle()
        for act in acts:
            assert not g.ended.is_set(), repr(g.outcome)
            pausing = act(g)
            if pausing is not None:
                await pausing
        with anyio.fail_after(5):
            await g.ended.wait()
    except Exception as exc:  # noqa: BLE001  # raised by `watched`
        g.failed.append(exc)
        while not g.ended.is_set():  # it may swallow some
            cancel(g)
            g.go.set()
            await settle()


@contextlib.asynccontextmanager
async def watched(*acts: Act) -> AsyncIterator[Guarded]:
    """Run the body, and the acts when it waits; assert what holds after every hazard."""
    g = Guarded()
    if g.task:
        performing = asyncio.create_task(perform(g, acts))
    else:
        trio.lowlevel.spawn_system_task(perform, g, acts)
    with contextlib.nullcontext() if g.task else g.outside:
        try:
            yield g
        except BaseException as exc:  # noqa: BLE001  # whatever it is, the test compares it
            g.outcome = exc
    after = {"in_use": g.node.in_use + g.inner.in_use, "children": g.children, "disturbed": 2}
    with contextlib.suppress(anyio.get_cancelled_exc_class()):
        for _ in range(2):
            await anyio.lowlevel.checkpoint()
            after["disturbed"] -= 1
    g.ended.set()
    if g.task:
        await performing
        after["cancelling"] = g.task.cancelling() - g.cancelling
        while g.task.cancelling():  # it is the test's own, which goes on
            g.task.uncancel()
    if g.failed:
        raise g.failed[0]
    assert after == dict.fromkeys(after, 0)
    assert (g.node.released, g.inner.released) == (g.node.revoked, g.inner.revoked)


@contextlib.asynccontextmanager
async def guarded(*acts: Act) -> AsyncIterator[Guarded]:
    """As `watched`, with all of the body in one operation."""
    async with watched(*acts) as g:
        with g.node.using():
            yield g


@pytest.mark.invariant("I5", "hazard 1")
async def test_01_kick_ends_a_parked_operation() -> None:
    """A parked operation that is kicked reports that it was revoked."""
    async with guarded(kick) as g:
        await g.park()
    g.assert_revoked()


@pytest.mark.invariant("I5", "hazard 2")
async def test_02_cancel_after_the_kick_wins() -> None:
    """A task that is kicked, and cancelled before it ran, is cancelled."""
    async with guarded(kick, cancel) as g:
        await g.park()
    g.assert_cancelled()


@pytest.mark.invariant("I5", "hazard 3")
async def test_03_cancel_before_the_kick_wins() -> None:
    """A task that is cancelled, and kicked before it ran, is cancelled."""
    async with guarded(cancel, kick) as g:
        await g.park()
    g.assert_cancelled()


@pytest.mark.invariant("I5", "hazard 4")
async def test_04_scope_with_a_deadline_inside_does_not_swallow_the_kick() -> None:
    """A kick goes through a scope with a deadline inside of the operation."""
    async with guarded(kick) as g:
        with anyio.move_on_after(3600):
            await g.park()
    g.assert_revoked()


@either_order
@pytest.mark.invariant("I5", "I8", "hazard 5")
async def test_05_scope_cancelled_inside_in_the_same_step_does_not_swallow_the_kick(kick_first: bool) -> None:
    """An operation that waits on after its own scope was cancelled together with the kick is revoked."""
    async with guarded(*(kick, cancel_scope) if kick_first else (cancel_scope, kick)) as g:
        with g.scope:
            await g.park()
        await g.park()
    g.assert_revoked()


@on_asyncio
@pytest.mark.invariant("I5", "hazard 6")
async def test_06_kick_inside_asyncio_timeout() -> None:
    """A kick inside of an `asyncio.timeout` is no timeout."""
    async with guarded(kick) as g, asyncio.timeout(3600):
        await g.park()
    g.assert_revoked()


@on_asyncio
@pytest.mark.invariant("I5", "hazard 7")
async def test_07_kick_in_the_body_of_an_asyncio_task_group() -> None:
    """A kick in the body of an `asyncio.TaskGroup` ends the body and the children."""
    async with guarded(kick) as g, asyncio.TaskGroup() as group:
        group.create_task(g.child())
        await g.park()
    g.assert_revoked()


@on_asyncio
@pytest.mark.invariant("I5", "hazard 8")
async def test_08_kick_in_the_exit_of_an_asyncio_task_group() -> None:
    """A kick while an `asyncio.TaskGroup` waits for its children ends them."""
    async with guarded(kick) as g, asyncio.TaskGroup() as group:
        group.create_task(g.child())
        group.create_task(g.child())
    g.assert_revoked()


@pytest.mark.invariant("I5", "hazard 9")
async def test_09_kick_in_the_body_of_an_anyio_task_group() -> None:
    """A kick in the body of an AnyIO task group ends the body and the children."""
    async with guarded(kick) as g, anyio.create_task_group() as group:
        group.start_soon(g.child)
        await g.park()
    g.assert_revoked()


@pytest.mark.invariant("I5", "hazard 10")
async def test_10_kick_in_the_exit_of_an_anyio_task_group() -> None:
    """A kick while an AnyIO task group waits for its children ends them."""
    async with guarded(kick) as g, anyio.create_task_group() as group:
        group.start_soon(g.child)
        group.start_soon(g.child)
    g.assert_revoked()


@on_asyncio
@pytest.mark.invariant("I5", "hazard 11")
async def test_11_kick_inside_wait_for() -> None:
    """A kick inside of `asyncio.wait_for` ends what that waits for."""
    async with guarded(kick) as g:
        await asyncio.wait_for(g.child(), 3600)
    g.assert_revoked()


@on_asyncio
@pytest.mark.invariant("I5", "hazard 12")
async def test_12_kick_while_awaiting_a_task() -> None:
    """A kick of an operation that awaits a task it made ends that task."""
    async with guarded(kick) as g:
        await asyncio.create_task(g.child())
    g.assert_revoked()


@on_asyncio
@pytest.mark.invariant("I5", "hazard 13")
async def test_13_kick_while_awaiting_gather() -> None:
    """A kick of an operation that awaits `asyncio.gather` ends all that was gathered."""
    async with guarded(kick) as g:
        await asyncio.gather(g.child(), g.child())
    g.assert_revoked()


@on_asyncio
@pytest.mark.invariant("I6", "hazard 14")
async def test_14_result_of_a_future_before_the_kick_is_returned() -> None:
    """A future's result that is there before the kick, in the same step, is what the operation gets."""
    future = asyncio.get_running_loop().create_future()
    async with guarded(lambda _: future.set_result("data"), kick) as g:
        g.log.append(await future)
    assert (g.log, g.outcome) == (["data"], None)


@pytest.mark.invariant("I6", "hazard 14")
async def test_14_item_received_before_the_kick_is_returned() -> None:
    """An item that was handed over before the kick, in the same step, is what the operation gets."""
    send, receive = anyio.create_memory_object_stream[str]()
    with send, receive:
        async with guarded(lambda _: send.send_nowait("data"), kick) as g:
            g.log.append(await receive.receive())
    assert (g.log, g.outcome) == (["data"], None)


@pytest.mark.invariant("I5", "I8", "hazard 15")
async def test_15_operation_that_swallows_the_kick_is_kicked_again() -> None:
    """An operation that swallows the kick's cancellation and waits again is revoked: the kick is level-triggered."""
    async with guarded(kick) as g:
        with contextlib.suppress(anyio.get_cancelled_exc_class()):
            await g.park()
        g.log.append("swallowed")
        await g.park()
    g.assert_revoked()
    assert g.log == ["swallowed"]


@pytest.mark.invariant("I5", "hazard 16")
async def test_16_operation_cleans_up_and_reraises() -> None:
    """The cleanup of a kicked operation runs, and what it raises again is reported as revoked."""
    async with guarded(kick) as g:
        try:
            await g.park()
        except anyio.get_cancelled_exc_class():
            g.log.append("except")
            raise
        finally:
            g.log.append("finally")
    g.assert_revoked()
    assert g.log == ["except", "finally"]


@pytest.mark.invariant("I5", "hazard 17")
async def test_17_shielded_part_runs_to_its_end() -> None:
    """What is shielded inside of the operation runs to its end, and the next wait is revoked."""

    def still_inside(g: Guarded) -> None:
        assert (g.node.in_use, g.node.released, g.log) == (1, False, [])

    async with guarded(kick, pause, still_inside, go) as g:
        with anyio.CancelScope(shield=True):
            await g.go.wait()
            await anyio.lowlevel.checkpoint()
            g.log.append("end of the shielded part")
        await g.park()
        g.log.append("never")
    g.assert_revoked()
    assert g.log == ["end of the shielded part"]


@pytest.mark.invariant("I5", "hazard 18")
async def test_18_outer_scope_cancelled_before_the_kick_wins() -> None:
    """An outer scope that is cancelled before the kick catches the cancellation."""
    async with watched(cancel_scope, kick) as g:
        with g.scope, g.node.using():
            await g.park()
    assert (g.scope.cancelled_caught, g.outcome) == (True, None)


@pytest.mark.invariant("I5", "hazard 19")
async def test_19_outer_scope_cancelled_after_the_kick_wins() -> None:
    """An outer scope that is cancelled after the kick, in the same step, catches the cancellation."""
    async with watched(kick, cancel_scope) as g:
        with g.scope, g.node.using():
            await g.park()
    assert (g.scope.cancelled_caught, g.outcome) == (True, None)


@on_asyncio
@either_order
@pytest.mark.invariant("I5", "hazard 20")
async def test_20_outer_timeout_in_the_same_step_wins(kick_first: bool) -> None:
    """An outer `asyncio.timeout` that expires in the step of the kick raises TimeoutError."""
    timeout = asyncio.timeout(None)

    def expire_soon(_: Guarded) -> None:
        timeout.reschedule(0)  # long past: it expires by a callback in the next step

    def kick_soon(g: Guarded) -> None:
        asyncio.get_running_loop().call_soon(g.node.revoke)

    async with watched(*(kick_soon, expire_soon) if kick_first else (expire_soon, kick_soon)) as g, timeout:
        with g.node.using():
            await g.park()
    assert isinstance(g.outcome, TimeoutError)
    assert g.node.revoked


@on_asyncio
@pytest.mark.parametrize(
    ("when", "errors"),
    [
        ("before it fails", [ValueError, RevokedError]),
        ("before the group cancels", [ValueError]),
        ("after the group cancelled", [ValueError]),
    ],
)
@pytest.mark.invariant("I5", "hazard 21")
async def test_21_error_of_a_sibling_that_kicks_comes_out_of_the_group(when: str, errors: list[type]) -> None:
    """The error of a sibling that kicks comes out of the outer `asyncio.TaskGroup`, whichever ends the wait first."""
    bang = ValueError("sibling")

    async def sibling(g: Guarded) -> None:
        await g.go.wait()
        if when == "before it fails":
            g.node.revoke()
        elif when == "before the group cancels":
            asyncio.get_running_loop().call_soon(g.node.revoke)
        raise bang

    async with watched(go) as g, asyncio.TaskGroup() as group:
        task = group.create_task(sibling(g))
        if when == "after the group cancelled":
            task.add_done_callback(lambda _: g.node.revoke())
        with g.node.using():
            await g.park()
    assert isinstance(g.outcome, ExceptionGroup)
    assert [type(error) for error in g.outcome.exceptions] == errors
    assert g.outcome.exceptions[0] is bang
    assert g.node.revoked


@pytest.mark.parametrize(
    ("acts", "reporting"),
    [((kick,), "node"), ((kick_inner,), "inner"), ((kick, kick_inner), "node"), ((kick_inner, kick), "node")],
    ids=["outer", "inner", "outer-inner", "inner-outer"],
)
@pytest.mark.invariant("I5", "hazard 22")
async def test_22_guard_inside_a_guard_of_another_node(acts: tuple[Act, ...], reporting: str) -> None:
    """Of nested guards the one that was kicked reports, and the outer one if both were."""
    async with guarded(*acts) as g:
        with g.inner.using():
            await g.park()
    g.assert_revoked(g.node if reporting == "node" else g.inner)


@pytest.mark.invariant("I5", "hazard 22")
async def test_22_kick_of_the_outer_guard_while_the_error_of_the_inner_one_is_on_its_way() -> None:
    """The outer guard reports also if it is kicked after the inner one, when nothing waits any more."""
    async with guarded(kick_inner) as g:
        try:
            with g.inner.using():
                await g.park()
        finally:
            kick(g)
    g.assert_revoked(g.node)


@pytest.mark.invariant("I5", "hazard 23")
async def test_23_guard_inside_a_guard_of_the_same_node() -> None:
    """Nested guards of one node are two users of it, and a kick ends both."""
    async with guarded(kick) as g:
        with g.node.using():
            g.log.append(g.node.in_use)
            await g.park()
    g.assert_revoked()
    assert g.log == [2]


class Bang(BaseException):
    """Neither an Exception nor a cancellation."""


@pytest.mark.parametrize(
    ("act", "error"), [(go, ValueError("bang")), (go, Bang()), (cancel, None)], ids=["exception", "base", "cancel"]
)
@pytest.mark.invariant("I5", "hazard 24")
async def test_24_what_the_operation_raises_comes_out_unchanged(act: Act, error: BaseException | None) -> None:
    """An Exception, a BaseException and a cancellation from outside come out as the object that was raised inside."""

    async def fail(g: Guarded) -> None:
        await g.go.wait()
        if error is not None:
            raise error

    async with guarded(act) as g:
        try:
            await fail(g)
        except BaseException as exc:
            g.log.append(exc)
            raise
    assert len(g.log) == 1
    assert g.outcome is g.log[0]
    if error is None:
        g.assert_cancelled()
    else:
        assert g.outcome is error


variable = contextvars.ContextVar("variable", default="")


@pytest.mark.parametrize("act", [go, kick])
@pytest.mark.invariant("hazard 25")
async def test_25_context_variable_set_inside_is_seen_outside(act: Act) -> None:
    """A context variable that is set inside of the operation is seen after it, kicked or not."""
    variable.set("before")
    async with guarded(act) as g:
        await anyio.lowlevel.checkpoint()
        variable.set("inside")
        await g.go.wait()
    assert variable.get() == "inside"
    if act is kick:
        g.assert_revoked()


@pytest.mark.invariant("I5", "I8", "hazard 26")
async def test_26_kick_ends_an_operation_that_only_yields() -> None:
    """An operation that never parks, but only yields to others, is ended by the kick."""
    async with guarded(kick) as g:
        for _ in range(200):
            await anyio.sleep(0)
            g.log.append("yielded")
    g.assert_revoked()
    assert 0 < len(g.log) < 100


@pytest.mark.invariant("I5", "hazard 27")
async def test_27_kick_of_guarded_cleanup_in_a_cancelled_task() -> None:
    """Guarded cleanup of a task that was cancelled is revoked by a kick, and the cancellation goes on."""
    async with watched(cancel, pause, kick) as g:
        try:
            await g.park()
        finally:
            with contextlib.nullcontext() if g.task else anyio.move_on_after(5, shield=True):
                try:
                    with g.node.using():
                        await g.park()
                except RevokedError as error:
                    g.log.append((error.node, error.in_flight))
    g.assert_cancelled()
    assert g.log == [(g.node, True)]


if sys.version_info >= (3, 12):

    @pytest.mark.parametrize("anyio_backend", [each for each in BACKENDS if each.id == "eager"], indirect=True)
    @pytest.mark.parametrize("acts", [(kick,), (kick, cancel)], ids=["kick", "kick-cancel"])
    @pytest.mark.invariant("I5", "hazard 28")
    async def test_28_kick_of_an_eager_task_in_the_step_that_started_it(acts: tuple[Act, ...]) -> None:
        """Hazards 1 and 2 hold for an operation that began inside of `create_task()` and was never scheduled since."""
        begun = []

        async def main() -> None:
            async with guarded() as g:
                begun.append(g)
                await g.park()

        task = asyncio.create_task(main())
        (g,) = begun
        for act in acts:
            act(g)
        await task
        if cancel in acts:
            g.assert_cancelled()
        else:
            g.assert_revoked()
