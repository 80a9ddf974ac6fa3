"""A scope that is entered only when it is cancelled: whatever is around it and inside of it, nobody can tell.

Programs are made of layers, one inside of the other, and of what happens to them while the innermost waits. Each runs
with the scopes entered late, and entered at once; both must say the same at each step.
"""

import asyncio
import contextlib
import itertools
from collections.abc import AsyncIterator, Iterator

import anyio
import anyio.abc
import anyio.lowlevel
import pytest

from asyncrevoke import Revokable, RevokedError
from asyncrevoke._core.scope import OPAQUE
from asyncrevoke.lowlevel import checkpoint, due
from conftest import BACKENDS

pytestmark = [
    pytest.mark.anyio,
    pytest.mark.parametrize("anyio_backend", [each for each in BACKENDS if each.id != "trio"], indirect=True),
]

OURS = {"a", "b", "started"}  # in which there is an operation
LAYERS = (*sorted(OURS), "scope", "shield", "timeout", "group", "tasks", "swallow", "cleanup", "task", "start")
ACTS = ("kick a", "kick b", "cancel scope", "cancel task", "expire", "go", "turn")


class Run:
    """One program, which is run once, and all that it said."""

    def __init__(self, layers: tuple[str, ...]) -> None:
        self.layers = layers
        self.logs: dict[
            int, list[object]
        ] = {}  # of each task: who runs first of two is up to the order of AnyIO's sets
        self.nodes = {"a": Revokable("a"), "b": Revokable("b")}
        self.scopes: list[anyio.CancelScope] = []
        self.timeouts: list[asyncio.Timeout] = []
        self.go = asyncio.Event()

    def say(self, depth: int, *what: object) -> None:
        self.logs.setdefault(depth, []).append(what)

    async def perform(self, acts: tuple[str, ...]) -> dict[int, list[object]]:
        task = asyncio.create_task(self.main())
        await turns(9)
        for act in acts:
            await self.act(act, task)
        for ending in ("go", "cancel scope", "cancel task", "cancel task"):
            await turns(9)
            for depth in range(-1 - len(self.layers), len(self.layers) + 1):
                self.say(depth, ending)
            await self.act(ending, task)
        while not task.done():  # all swallow a few
            await turns(9)
            task.cancel()
        for node in self.nodes.values():
            await node.revoke()
        for scope in *self.scopes, self.outermost.cancel_scope:
            assert not scope._tasks  # type: ignore[attr-defined]  # AnyIO's own
            assert not scope._child_scopes  # type: ignore[attr-defined]
        return self.logs

    async def act(self, act: str, task: asyncio.Task[None]) -> None:
        what, _, which = act.partition(" ")
        if what == "kick":
            self.nodes[which].revoke()
        elif act == "cancel scope":
            for scope in self.scopes:
                scope.cancel()
        elif act == "cancel task":
            task.cancel()
        elif act == "expire":
            for timeout in self.timeouts:
                with contextlib.suppress(RuntimeError):  # it is over
                    timeout.reschedule(0)
        elif act == "go":
            self.go.set()
        else:
            await anyio.lowlevel.cancel_shielded_checkpoint()

    async def main(self) -> None:
        async with anyio.create_task_group() as self.outermost:
            await self.layer(0)
        self.say(0, "the end")

    async def layer(self, depth: int) -> None:
        """One more layer; by depth it is told which task says what."""
        task = asyncio.current_task()
        assert task is not None
        try:
            before = task.cancelling()
            if depth == len(self.layers):
                await self.go.wait()
                self.say(depth, "went")
            else:
                async with getattr(self, f"in_{self.layers[depth]}", self.using)(depth):
                    pass
            self.say(depth, "left", task.cancelling() - before)
            await anyio.lowlevel.checkpoint()
        except asyncio.CancelledError:
            self.say(depth, "cancelled")
            raise
        except BaseException as exc:
            self.say(depth, what(exc), task.cancelling() - before)
            raise

    @contextlib.asynccontextmanager
    async def using(self, depth: int) -> AsyncIterator[None]:
        with self.nodes[self.layers[depth]].using():
            await self.layer(depth + 1)
            yield

    @contextlib.asynccontextmanager
    async def in_scope(self, depth: int, *, shield: bool = False) -> AsyncIterator[None]:
        with anyio.CancelScope(shield=shield) as scope:
            self.scopes.append(scope)
            await self.layer(depth + 1)
        self.say(depth, "caught", scope.cancelled_caught)
        yield

    @contextlib.asynccontextmanager
    async def in_shield(self, depth: int) -> AsyncIterator[None]:
        async with self.in_scope(depth, shield=True):
            yield

    @contextlib.asynccontextmanager
    async def in_timeout(self, depth: int) -> AsyncIterator[None]:
        async with asyncio.timeout(None) as timeout:
            self.timeouts.append(timeout)
            await self.layer(depth + 1)
        yield

    @contextlib.asynccontextmanager
    async def in_group(self, depth: int) -> AsyncIterator[None]:
        async with anyio.create_task_group() as group:
            group.start_soon(self.child, depth)
            await self.layer(depth + 1)
            yield

    @contextlib.asynccontextmanager
    async def in_tasks(self, depth: int) -> AsyncIterator[None]:
        async with asyncio.TaskGroup() as group:
            group.create_task(self.child(depth))
            await self.layer(depth + 1)
            yield

    @contextlib.asynccontextmanager
    async def in_swallow(self, depth: int) -> AsyncIterator[None]:
        try:
            await self.layer(depth + 1)
        except asyncio.CancelledError:
            self.say(depth, "swallowed")
            await self.layer(len(self.layers))
        yield

    @contextlib.asynccontextmanager
    async def in_cleanup(self, depth: int) -> AsyncIterator[None]:
        try:
            await self.layer(depth + 1)
        except asyncio.CancelledError:
            with anyio.CancelScope(shield=True):
                await turns(3)
                self.say(depth, "cleaned up")
            raise
        yield

    @contextlib.asynccontextmanager
    async def in_task(self, depth: int) -> AsyncIterator[None]:
        await asyncio.create_task(self.layer(depth + 1))
        yield

    @contextlib.asynccontextmanager
    async def in_start(self, depth: int) -> AsyncIterator[None]:
        """All further in is done by a task of the outermost group, which then is started."""

        async def start(*, task_status: anyio.abc.TaskStatus[None]) -> None:
            await self.layer(depth + 1)
            task_status.started()

        await self.outermost.start(start)
        yield

    @contextlib.asynccontextmanager
    async def in_started(self, depth: int) -> AsyncIterator[None]:
        """The same by one that is started in the midst of an operation, and so changes from our scope to the group's."""
        ended = asyncio.Event()

        async def start(*, task_status: anyio.abc.TaskStatus[None]) -> None:
            try:
                with self.nodes["a"].using():
                    task_status.started()
                    await self.layer(depth + 1)
            except BaseException as exc:
                self.say(-1 - depth, "started", what(exc))
                raise
            finally:
                ended.set()

        await self.outermost.start(start)
        await ended.wait()
        yield

    async def child(self, depth: int) -> None:
        try:
            await self.go.wait()
        except BaseException as exc:
            self.say(depth, "child", what(exc))
            raise


def what(exc: BaseException) -> object:
    if isinstance(exc, BaseExceptionGroup):
        return [what(each) for each in exc.exceptions]
    if isinstance(exc, RevokedError):
        return (exc.name, exc.in_flight)
    return type(exc).__name__


async def turns(count: int) -> None:
    for _ in range(count):
        await asyncio.sleep(0)


def programs(depth: int, acts: int) -> Iterator[tuple[tuple[str, ...], tuple[str, ...]]]:
    """All of so many layers and acts, but for a task that is started inside of an operation: it is cancelled by `start`,
    a turn later than by a scope that was there before.
    """
    for layers in itertools.product(LAYERS, repeat=depth):
        ours = [number for number, layer in enumerate(layers) if layer in OURS]
        if ours and "start" not in layers[ours[0] :]:
            for happens in itertools.product(ACTS, repeat=acts):
                if any(act.startswith("kick") for act in happens):
                    yield layers, happens


async def compare(layers: tuple[str, ...], acts: tuple[str, ...]) -> None:
    late = await Run(layers).perform(acts)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("asyncrevoke._core.loop._AsyncioHome.innermost", lambda *_: OPAQUE)
        at_once = await Run(layers).perform(acts)
    assert late == at_once, (layers, acts)


@pytest.mark.invariant("I5", "I6", "I8")
@pytest.mark.parametrize(("depth", "acts"), [(1, 3), (2, 2), (3, 1)])
async def test_nobody_can_tell_that_a_scope_was_entered_late(depth: int, acts: int) -> None:
    """Every program of so many layers and acts says the same with a scope that was entered at once."""
    for layers, happens in programs(depth, acts):
        await compare(layers, happens)


@pytest.mark.invariant("I5")
async def test_shielded_cleanup_of_a_kicked_operation_is_not_reached_by_an_outer_scope() -> None:
    """What is shielded after the kick stays so when the scope around the operation is cancelled, too."""
    node = Revokable("node")
    log = []
    with anyio.CancelScope() as outer:
        with node.using():
            node.revoke()
            with anyio.CancelScope(shield=True):
                outer.cancel()
                await turns(3)
                log.append("cleaned up")
            await anyio.lowlevel.checkpoint()
            log.append("never")
    assert log == ["cleaned up"]
    assert outer.cancelled_caught


@pytest.mark.invariant("I5")
async def test_an_operation_that_outlives_the_scope_it_began_in_is_kicked_alone() -> None:
    """Left in the wrong order, it is ended by the kick, and the task group around it goes on."""
    node = Revokable("node")
    log = []

    async def disorderly() -> None:
        scope, use = anyio.CancelScope(), node.using()
        scope.__enter__()
        use.__enter__()
        scope.__exit__(None, None, None)
        try:
            with contextlib.ExitStack() as stack:
                stack.push(use)
                node.revoke()
                await anyio.sleep_forever()
        except RevokedError:
            await anyio.lowlevel.checkpoint()
            log.append("kicked")

    async with anyio.create_task_group() as group:
        group.start_soon(disorderly)
        await turns(9)
        log.append("the group goes on")
    assert log == ["kicked", "the group goes on"]


@pytest.mark.invariant("I5", "I8")
async def test_a_task_that_is_being_started_inside_of_an_operation_ends_with_it() -> None:
    """`TaskGroup.start` cancels whom it starts when the operation it is called in is kicked, however often that is swallowed."""
    node = Revokable("node")
    log = []

    async def start(*, task_status: anyio.abc.TaskStatus[None]) -> None:
        for _ in range(2):
            with contextlib.suppress(asyncio.CancelledError):
                await anyio.sleep_forever()
            log.append("swallowed")
        await anyio.sleep_forever()
        task_status.started()

    async def operate() -> None:
        with pytest.raises(RevokedError), node.using():
            await group.start(start)
        log.append("kicked")

    async with anyio.create_task_group() as group:
        group.start_soon(operate)
        await turns(9)
        await node.revoke()
    assert log == ["swallowed", "swallowed", "kicked"]


@pytest.mark.invariant("I5")
async def test_where_anyio_is_made_otherwise_a_scope_is_entered_at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    """Nothing is put into scopes that have not the fields we know. Operations are kicked, and each that is ready suspends."""
    node, other = Revokable("node"), Revokable("other")
    task = asyncio.current_task()
    monkeypatch.setattr("asyncrevoke._core.scope._FIELDS", {"_no_such_field"})
    with pytest.raises(RevokedError), node.using() as use:
        assert use.scope is not None
        node.revoke()
        await anyio.lowlevel.checkpoint()
    assert task is not None
    assert not task.cancelling()
    with other.using():
        await checkpoint()
        assert due(other)
