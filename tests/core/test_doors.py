"""Who may call what from where: a tree belongs to one loop, and every door of it keeps that rule, or is for all threads."""

import asyncio
import contextlib
import functools
import inspect
import os
import socket
import threading
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from typing import Any

import anyio
import anyio.lowlevel
import pytest

from asyncrevoke import (
    FdStream,
    Name,
    Registry,
    Revocation,
    Revokable,
    RevokableStream,
    RevokedError,
    Watch,
    observe,
    revoke_all,
    revoke_threadsafe,
    stop_using_threadsafe,
)
from operations import asyncio_only

pytestmark = [pytest.mark.anyio, pytest.mark.invariant("threads")]

Run = Callable[[Callable[[], Awaitable[object]]], object]


@pytest.fixture
def run(anyio_backend: tuple[str, dict[str, Any]]) -> Run:
    """Run an async function in a loop of its own."""
    return functools.partial(anyio.run, backend=anyio_backend[0], backend_options=anyio_backend[1])


class Tree:
    """One of each that there is, of which the running loop is the home."""

    def __init__(self) -> None:
        self.registry = Registry("tree")
        self.name = self.registry.name("name", "/dev/null")
        self.handle = self.name.open("handle")
        self.key = self.registry["key"]
        self.node = self.registry.root.open("node")
        for used in self.node, self.key:
            assert used.start_using()
        draining = self.registry.root.open("draining")
        assert draining.start_using()
        self.act = draining.revoke()
        self.draining = draining

    def state(self) -> tuple[object, ...]:
        nodes = [self.registry.root, self.name, self.handle, self.key, self.node, self.draining]
        return tuple((node.in_use, node.revoked, node.closed, node.released) for node in nodes)

    def end(self) -> Revocation:
        """Leave all of it."""
        for used in self.node, self.key, self.draining:
            for _ in range(used.in_use - len(used.children)):
                used.stop_using()
        return self.registry.root.revoke()


async def enter(context: Any) -> None:
    async with context:
        pass


async def items() -> AsyncIterator[int]:
    yield 1


def use(node: Revokable) -> None:
    with node.using():
        pass


def wrap(node: Revokable) -> None:
    """A stream over another on it; what it did not take over is closed."""
    near, far = socket.socketpair()
    with far, near:
        FdStream(near.fileno(), node, close=lambda _: None)


class Inner:
    async def aclose(self) -> None: ...


def over(node: Revokable) -> None:
    RevokableStream(Inner(), node)  # type: ignore[arg-type]  # of which no more is used


#: What is for the loop of the tree alone: elsewhere it is a RuntimeError, and nothing has changed.
OURS: dict[str, Callable[[Tree], object]] = {
    "open": lambda tree: tree.node.open("mine"),
    "open(also)": lambda tree: Revokable("mine").open(also=[tree.node]),
    "opening": lambda tree: enter(tree.node.opening("mine")),
    "start_using": lambda tree: tree.node.start_using(),
    "stop_using": lambda tree: tree.node.stop_using(),
    "using": lambda tree: use(tree.node),
    "iterate": lambda tree: anext(tree.node.iterate(items())),
    "revoke": lambda tree: tree.node.revoke(),
    "close": lambda tree: tree.node.close(),
    "aclose": lambda tree: tree.node.aclose(),
    "async with": lambda tree: enter(tree.node),
    "revoke_all": lambda tree: revoke_all([Revokable("mine"), tree.node]),
    "observe": lambda tree: observe(tree.node),
    "await": lambda tree: tree.act.finish(),
    "wait_drained": lambda tree: tree.act.wait_drained(),
    "wait_closed": lambda tree: tree.act.wait_closed(),
    "FdStream": lambda tree: wrap(tree.node),
    "RevokableStream": lambda tree: over(tree.node),
    "Name.open": lambda tree: tree.name.open("mine"),
    "Name.opening": lambda tree: enter(tree.name.opening("mine")),
    "Name.pin": lambda tree: tree.name.pin("mine"),
    "Name.hangup": lambda tree: tree.name.hangup(),
    "Name.drained": lambda tree: tree.name.drained(),
    "Registry.name": lambda tree: tree.registry.name("mine"),
    "Registry.revoke": lambda tree: tree.registry.revoke("key"),
    "Registry.hangup": lambda tree: tree.registry.hangup("/dev/null"),
    "Registry.frevoke": lambda tree: tree.registry.frevoke(tree.handle),
    "a key": lambda tree: tree.registry["another"].open("mine"),
}
#: What is for every thread, and for finalizers.
EVERYBODYS: dict[str, Callable[[Tree], object]] = {
    "revoke_threadsafe": lambda tree: revoke_threadsafe(tree.node),
    "stop_using_threadsafe": lambda tree: stop_using_threadsafe(tree.node),
    "Registry[...]": lambda tree: tree.registry["another"],
    "Registry.find": lambda tree: tree.registry.find("name"),
    "Registry.at": lambda tree: tree.registry.at("tree/node"),
    "users": lambda tree: tree.node.users(),
    "stragglers": lambda tree: tree.act.stragglers(),
    "report": lambda tree: tree.act.report,
    "release": lambda tree: setattr(tree.handle, "release", lambda: None),
}
#: What cannot be called without a loop at all.
ASYNC = {"opening", "iterate", "aclose", "async with", "observe", "await", "wait_drained", "wait_closed"}
ASYNC |= {"Name.opening", "Name.drained"}


@contextlib.contextmanager
def a_tree(run: Run) -> Iterator[Tree]:
    """One whose loop runs in another thread."""
    trees: list[Tree] = []
    ready, stop = threading.Event(), threading.Event()

    async def home() -> None:
        trees.append(Tree())
        ready.set()
        await anyio.to_thread.run_sync(stop.wait)
        await trees[0].end()

    thread = threading.Thread(target=run, args=(home,))
    thread.start()
    try:
        assert ready.wait(10)
        yield trees[0]
    finally:
        stop.set()
        thread.join()


async def call(door: Callable[[Tree], object], tree: Tree) -> None:
    called = door(tree)
    if inspect.isawaitable(called):
        await called


@pytest.mark.parametrize("door", OURS)
def test_in_another_loop_it_is_refused_and_nothing_changes(run: Run, door: str) -> None:
    """Whatever it is, it is a RuntimeError that names what may be called there."""
    with a_tree(run) as tree:
        before = tree.state()
        with pytest.raises(RuntimeError, match=r"another event loop.*revoke_threadsafe"):
            run(functools.partial(call, OURS[door], tree))
        assert tree.state() == before


@pytest.mark.parametrize("door", sorted(OURS.keys() - ASYNC))
def test_in_another_thread_it_is_refused_and_nothing_changes(run: Run, door: str) -> None:
    """Also where no loop runs in that thread, so that nothing could tell it from a callback of the tree's."""
    with a_tree(run) as tree:
        before = tree.state()
        with pytest.raises(RuntimeError, match=r"another event loop.*revoke_threadsafe"):
            OURS[door](tree)
        assert tree.state() == before


@pytest.mark.parametrize("door", EVERYBODYS)
@pytest.mark.parametrize("looped", [False, True], ids=["thread", "loop"])
def test_what_is_for_everybody_is_refused_nowhere(run: Run, door: str, *, looped: bool) -> None:
    """In another thread, and in another loop there."""

    async def called() -> None:
        EVERYBODYS[door](tree)

    with a_tree(run) as tree:
        if looped:
            run(called)
        else:
            EVERYBODYS[door](tree)


@pytest.mark.parametrize("door", sorted((OURS.keys() | EVERYBODYS.keys()) - ASYNC - {"open(also)"}))
@asyncio_only
def test_between_two_runs_of_the_loop_every_door_is_open(door: str, runner: asyncio.Runner) -> None:
    """Its loop does not run, but may again: whatever is not awaited can be called in its thread."""

    async def make() -> Tree:
        return Tree()

    async def end() -> None:
        await tree.end()

    tree = runner.run(make())
    (OURS | EVERYBODYS)[door](tree)
    runner.run(end())
    assert tree.registry.root.released


@asyncio_only
def test_in_another_loop_of_the_same_thread_nobody_leaves_what_drains(runner: asyncio.Runner) -> None:
    """It would be the last one, and the release would run in the wrong loop."""

    async def make() -> Revokable:
        node = Revokable("node")
        assert node.start_using()
        return node

    async def leave() -> None:
        with pytest.raises(RuntimeError, match="another event loop"):
            node.stop_using()

    node = runner.run(make())
    node.revoke()
    asyncio.run(leave())
    assert not node.released
    node.stop_using()
    assert node.released


@pytest.fixture
def runner(anyio_backend: tuple[str, dict[str, Any]]) -> Iterator[asyncio.Runner]:
    """A loop that is run several times."""
    options = anyio_backend[1]
    factory = pytest.importorskip("uvloop").new_event_loop if options.get("use_uvloop") else options.get("loop_factory")
    with asyncio.Runner(loop_factory=factory) as made:
        yield made


@pytest.mark.invariant("I8")
@asyncio_only
@pytest.mark.parametrize("waits", ["use", "stream"])
def test_a_kick_between_two_runs_of_the_loop_ends_what_waits(runner: asyncio.Runner, waits: str) -> None:
    """The wait ends when the loop runs again, and the act has nothing to complain of."""
    node = Revokable("node")

    async def begin() -> asyncio.Task[object]:
        async def wait() -> None:
            if waits == "use":
                with node.using():
                    await anyio.sleep_forever()
            async with FdStream(near.detach(), node) as stream:
                await stream.receive()

        task: asyncio.Task[object] = asyncio.create_task(wait())
        await anyio.lowlevel.checkpoint()
        await anyio.lowlevel.checkpoint()
        return task

    async def end() -> None:
        with anyio.fail_after(20):
            with pytest.raises(RevokedError, match="taken"):
                await task
            assert (await act).kicked == 1

    near, far = socket.socketpair()
    with near, far:
        task = runner.run(begin())
        act = node.revoke("taken")
        runner.run(end())


@asyncio_only
def test_a_watch_can_be_closed_between_two_runs_of_its_loop(runner: asyncio.Runner) -> None:
    """Its file is closed when the loop runs again, whether anything comes or not."""

    async def begin() -> Watch:
        watch = Watch(file, lambda: None)
        await anyio.lowlevel.checkpoint()
        return watch

    async def end() -> None:
        with anyio.fail_after(20):
            while not file.closed:
                await anyio.lowlevel.checkpoint()

    read, write = os.pipe()
    file = os.fdopen(read, "rb", 0)
    runner.run(begin()).close()
    runner.run(end())
    os.close(write)


def test_a_name_that_nobody_has_used_yet_is_of_the_loop_that_uses_it_first(run: Run) -> None:
    """It may be made in one loop and hung up in another, as any node."""

    async def make() -> None:
        made.append(Name("name"))
        ready.set()
        await anyio.to_thread.run_sync(stop.wait)

    async def hang_up() -> None:
        await made[0].hangup()
        await made[0].open("handle").close()

    made: list[Name] = []
    ready, stop = threading.Event(), threading.Event()
    thread = threading.Thread(target=run, args=(make,))
    thread.start()
    try:
        assert ready.wait(10)
        run(hang_up)
    finally:
        stop.set()
        thread.join()
