"""Observers: what they are told, and in which order."""

import asyncio
import contextlib
import gc
import logging
import threading
import types
import weakref
from collections import Counter
from collections.abc import AsyncIterator, Callable
from typing import Any

import anyio
import pytest

import asyncrevoke._core.observe as _observe
import asyncrevoke._core.revocation as _revocation
from asyncrevoke import (
    Event,
    Registry,
    Revocation,
    Revokable,
    RevokedError,
    log_events,
    observe,
    revoke_all,
    revoke_threadsafe,
)
from calls import parked
from conftest import settle
from operations import Log, operate, slowly, stubborn

pytestmark = pytest.mark.anyio


class Told(list[str]):
    """An observer that keeps lines; `until` waits for one that begins so."""

    def __init__(self) -> None:
        super().__init__()
        self._more = anyio.Event()

    def __call__(self, event: Event) -> None:
        self.append(f"{event.node.path} {event.what}")
        if event.what == "straggler":
            self[-1] += f": {event.who.split(' for ')[0]}"
        self._more.set()

    async def until(self, line: str) -> None:
        with anyio.fail_after(30):
            while not any(each.startswith(line) for each in self):
                self._more = anyio.Event()
                await self._more.wait()


@contextlib.asynccontextmanager
async def observed(
    node: Revokable, *others: Callable[[Event], object], patience: float = 60
) -> AsyncIterator[tuple[Told, anyio.abc.TaskGroup]]:
    told = Told()
    async with anyio.create_task_group() as tasks:
        observation = anyio.CancelScope()

        async def run(*, task_status: anyio.abc.TaskStatus[None]) -> None:
            with observation:
                await observe(node, *others, told, patience=patience, task_status=task_status)

        await tasks.start(run)
        yield told, tasks
        observation.cancel()


async def test_all_of_a_life_is_told_in_order() -> None:
    """Opened, revoked, kicked, released: each once, children released first, and of the node it is about."""
    root = Revokable("root")
    log: Log = []
    async with observed(root) as (told, tasks):
        port = root.open("port")
        alice = port.open("alice")
        tasks.start_soon(operate, alice, log)
        await parked(alice)
        await port.revoke("away")
    await root.aclose()
    assert told == [
        "root/port opened",
        "root/port/alice opened",
        "root/port revoked",
        "root/port/alice kicked",
        "root/port/alice released",
        "root/port released",
    ]


@pytest.fixture
def made_before() -> tuple[Registry, Revokable]:
    """A registry and a name in it, made before there was a loop."""
    registry = Registry("root")
    return registry, registry.name("port")


async def test_what_was_made_before_the_loop_is_told_too(made_before: tuple[Registry, Revokable]) -> None:
    """And what is revoked and closed again once it is released is not told again."""
    registry, port = made_before
    async with observed(registry.root) as (told, _):
        await port.revoke("away")
        await port.revoke("again")
        await port.aclose()
    assert told == ["root/port revoked", "root/port released"]


async def test_keys_are_told_while_somebody_uses_them() -> None:
    """Opened from the top down by the first use, released when nobody uses them any more, or when they are revoked.
    What nobody has used is not released.
    """
    live = Registry("live")
    async with observed(live.root) as (told, _):
        live["alice", "t1"].open("shell").close()
        assert told[:3] == ["live/alice opened", "live/alice/t1 opened", "live/alice/t1/shell opened"]
        assert told[-2:] == ["live/alice/t1 released", "live/alice released"]
        told.clear()
        live["bob"].open("shell")
        await live["bob"].revoke("out")
        await live["nobody", "t2"].revoke("out")
    assert told == [
        "live/bob opened",
        "live/bob/shell opened",
        "live/bob revoked",
        "live/bob/shell released",
        "live/bob released",
        "live/nobody/t2 revoked",
    ]


async def test_events_carry_who_why_and_the_act() -> None:
    """The fields have the path, the generation, the reason and the kicked task; `revocation` is the act."""
    events: list[Event] = []
    lab = Registry().name("lab")
    async with observed(lab, events.append) as (_, tasks):
        alice = lab.open("alice")
        tasks.start_soon(operate, alice, [], name="alice's reader")
        await parked(alice)
        act = lab.hangup("unplugged")
        await act
    await lab.aclose()
    kicked = next(event for event in events if event.what == "kicked")
    assert kicked.revocation is act
    assert kicked.who == "alice's reader"
    assert kicked.fields == {
        "event": "kicked",
        "path": "lab/alice",
        "generation": 1,
        "reason": "unplugged",
        "by": "",
        "who": kicked.who,
    }
    assert str(kicked) == f"'lab/alice' kicked: {kicked.who} (unplugged)"


async def test_events_tell_by_whom_it_was_revoked(caplog: pytest.LogCaptureFixture) -> None:
    """The log says it once, of the act; all events of it have it as a field."""
    caplog.set_level("INFO", "asyncrevoke")
    root = Revokable("root")
    by: list[tuple[str, str]] = []
    async with observed(root, lambda event: by.append((event.what, event.fields["by"])), log_events):
        revoke_all([root.open("alice")], "enough", by="bob")
    await root.aclose()
    assert by == [("opened", ""), ("revoked", "bob"), ("released", "bob")]
    assert caplog.messages == ["'root/alice' revoked by bob (enough)"]


async def test_what_refuses_already_is_not_told_to_be_revoked_again() -> None:
    """The first act is told, also while somebody is still inside."""
    root = Revokable("root")
    async with observed(root) as (told, _):
        port = root.open("port")
        assert port.start_using()
        act = root.revoke()
        port.revoke()
        port.stop_using()
        await act
    assert told == ["root/port opened", "root revoked", "root/port released", "root released"]


async def test_a_close_is_told_as_such() -> None:
    """What its owner closes is closed, not revoked."""
    root = Revokable("root")
    async with observed(root) as (told, _):
        await root.open("file").aclose()
    await root.aclose()
    assert told == ["root/file opened", "root/file closed", "root/file released"]


async def test_only_what_is_below_is_told_by_whichever_parent() -> None:
    """A file is below all of its parents; what is beside or above the observed node is not told."""
    root = Revokable("root")
    port, token = root.open("port"), root.open("token")
    async with observed(token) as (told, _):
        port.open("other")
        shared = port.open("alice", also=[token])
        await shared.revoke()
        await port.revoke()
    await root.aclose()
    assert told == [f"root/port/alice {what}" for what in ("opened", "revoked", "released")]


async def test_a_file_that_gets_a_further_parent_is_opened_once_for_each_who_observes() -> None:
    """Who observes it already hears nothing new. Who observes the further parent hears of it, and of all that is below."""
    port, token, alice = Revokable("port"), Revokable("token"), Revokable("alice")
    alice.open("shell")
    async with observed(port) as (by_port, _), observed(token) as (by_token, _):
        port.open("beside")
        alice.join(port)
        alice.join(token)
        alice.join(port.open("last"))
        await alice.revoke()
    mine = ["alice opened", "alice/shell opened", "alice revoked", "alice/shell released", "alice released"]
    mine = [f"port/{each}" for each in mine]
    assert by_token == mine
    assert by_port == ["port/beside opened", *mine[:2], "port/last opened", *mine[2:]]


@pytest.mark.parametrize("above", [False, True])
async def test_who_stays_inside_is_a_straggler_once(above: bool) -> None:
    """Whoever is inside after the patience is told once, at his own node, whether the node itself is taken or one above."""
    root = Revokable("root")
    port = root.open("port")
    leave = anyio.Event()
    async with observed(port, patience=0) as (told, tasks):
        alice, bob = port.open("alice"), port.open("bob", release=slowly([], "bob", leave))
        tasks.start_soon(stubborn, alice, [], leave)
        await parked(alice)
        act = root.revoke() if above else revoke_all([bob, alice, port])
        await told.until("root/port/bob straggler")
        leave.set()
        await act
        await settle()
    await root.aclose()
    assert sorted(line.partition(" of ")[0] for line in told if "straggler" in line) == [
        "root/port/alice straggler: operation",
        "root/port/bob straggler: release",
    ]


async def test_others_have_their_turn_among_many_stragglers(anyio_backend_name: str) -> None:
    """64 are told in one turn of the loop, and no more."""
    node = Revokable("node")
    leave = anyio.Event()
    turns = 0
    told_in: list[int] = []

    async def count() -> None:
        nonlocal turns
        while not leave.is_set():
            await anyio.lowlevel.checkpoint()
            turns += 1

    def note(event: Event) -> None:
        if event.what == "straggler":
            told_in.append(turns)

    async with observed(node, note, patience=0) as (_, tasks):
        for _ in range(200):
            tasks.start_soon(stubborn, node, [], leave)
        tasks.start_soon(count)
        await parked(node, 200)
        act = node.revoke()
        while len(told_in) < 200:
            await anyio.lowlevel.checkpoint()
        leave.set()
        await act
    counts = list(Counter(told_in).values())
    if anyio_backend_name == "trio":  # a turn may have two of one task
        assert max(counts) <= 128
    else:
        assert counts == [64, 64, 64, 8]


async def test_stragglers_beside_it_are_not_told() -> None:
    """Of a revocation above the observed node, those who are elsewhere are somebody else's."""
    root = Revokable("root")
    port, other = root.open("port"), root.open("other")
    leave = anyio.Event()
    async with observed(port, patience=0) as (told, tasks):
        for each in other, port:
            tasks.start_soon(stubborn, each, [], leave)
            await parked(each)
        act = root.revoke()
        await told.until("root/port straggler")
        leave.set()
        await act
    assert [line.split(":")[0] for line in told if "straggler" in line] == ["root/port straggler"]


async def test_in_its_grace_nobody_is_a_straggler() -> None:
    """Stragglers are told of only when the kick has come, though others of the same act are released at once."""
    root = Revokable("root")
    leave = anyio.Event()
    async with observed(root, patience=0.001) as (told, tasks):
        alice, idle = root.open("alice"), root.open("idle")
        tasks.start_soon(stubborn, alice, [], leave)
        await parked(alice)
        act = revoke_all([idle, alice], grace=0.05)
        await told.until("root/alice straggler")
        leave.set()
        await act
    await root.aclose()
    assert told[2:6] == ["root/idle revoked", "root/alice revoked", "root/idle released", "root/alice kicked"]


async def test_the_patience_begins_with_the_kick(monkeypatch: pytest.MonkeyPatch) -> None:
    """Who has a grace and leaves when he is kicked is no straggler, however long the grace was."""
    now = 0.0
    slept: list[float] = []
    wake = anyio.Event()

    async def sleep(seconds: float) -> None:
        slept.append(seconds)
        await wake.wait()

    async def comes(time: float) -> None:
        nonlocal now, wake
        now = time
        wake.set()
        wake = anyio.Event()
        await settle()

    for module in _observe, _revocation:
        monkeypatch.setattr(module, "time", types.SimpleNamespace(monotonic=lambda: now))
    monkeypatch.setattr(
        _observe, "anyio", types.SimpleNamespace(sleep=sleep, Event=anyio.Event, lowlevel=anyio.lowlevel)
    )
    node = Revokable("node")
    async with observed(node, patience=10) as (told, _):
        assert node.start_using()
        node.revoke(grace=30)
        await settle()
        await comes(10)
        now = 19
        node.revoke()
        await comes(20)
        assert slept == [10, 10, 9]
        assert told == ["node revoked"]
        await comes(29)
        assert [line.split()[1] for line in told] == ["revoked", "straggler:"]
        node.stop_using()
    await node.aclose()


async def test_what_an_observer_raises_is_logged(caplog: pytest.LogCaptureFixture) -> None:
    """The revocation goes on, and other observers are told."""

    def fail(_: Event) -> None:
        raise LookupError("no")

    root = Revokable("root")
    async with observed(root, fail) as (told, _):
        assert (await root.open("file").revoke()).released == 1
    await root.aclose()
    assert [line.split()[1] for line in told] == ["opened", "revoked", "released"]
    assert [record.levelname for record in caplog.records] == ["ERROR"] * 3


async def test_a_revocation_from_a_thread_is_told() -> None:
    """It runs in a callback of the loop, without a task or a context of AnyIO's."""
    root = Revokable("root")
    async with observed(root) as (told, _):
        thread = threading.Thread(target=revoke_threadsafe, args=(root,))
        thread.start()
        await told.until("root released")
        thread.join()
    assert told == ["root revoked", "root released"]


async def test_what_fails_in_a_revocation_from_a_thread_is_told_to_all_who_wait(
    caplog: pytest.LogCaptureFixture,
) -> None:
    """To the thread, and to an observer that awaits the act. So nobody logs it."""
    fail = anyio.Event()

    async def release() -> None:
        await fail.wait()
        raise LookupError("no")

    root = Revokable("root", release=release)
    acts: list[Revocation] = []

    def note(event: Event) -> None:
        if event.what == "revoked" and event.revocation is not None:
            acts.append(event.revocation)

    async def waits() -> None:
        with pytest.raises(BaseExceptionGroup):
            await acts[0]

    async with observed(root, note) as (told, tasks):
        future = revoke_threadsafe(root)
        await told.until("root revoked")
        tasks.start_soon(waits)
        await settle()
        fail.set()
        await told.until("root released")
    assert isinstance(future.exception(0), BaseExceptionGroup)
    assert caplog.records == []


def test_what_was_opened_in_the_last_loop_is_told(anyio_backend: tuple[str, dict[str, Any]]) -> None:
    """An observer in the next loop hears of it as of all else."""
    root = Revokable("root")

    async def first() -> None:
        root.open("file")

    async def second() -> None:
        async with observed(root) as (told, _):
            await root.revoke()
            await told.until("root released")
        assert told == ["root revoked", "root/file released", "root released"]

    for main in first, second:
        anyio.run(main, backend=anyio_backend[0], backend_options=anyio_backend[1])


async def test_afterwards_nothing_is_told() -> None:
    """An observation that was cancelled leaves no trace: the loop does not keep the observer."""
    root = Revokable("root")
    async with observed(root) as (told, _):
        pass
    await root.revoke()
    assert told == []
    kept = weakref.ref(told)
    del told
    gc.collect()
    assert kept() is None


async def test_log_events_has_levels_and_fields(caplog: pytest.LogCaptureFixture) -> None:
    """What is revoked is INFO, a straggler a WARNING, all else DEBUG; the fields are the record's."""
    caplog.set_level(logging.DEBUG, "asyncrevoke")
    root = Revokable("root")
    leave = anyio.Event()
    async with observed(root, log_events, patience=0) as (told, tasks):
        alice = root.open("alice")
        tasks.start_soon(stubborn, alice, [], leave)
        await parked(alice)
        act = alice.revoke("away")
        await told.until("root/alice straggler")
        leave.set()
        await act
    await root.aclose()
    assert [record.levelname for record in caplog.records] == ["DEBUG", "INFO", "DEBUG", "WARNING", "DEBUG"]
    revoked = caplog.records[1]
    assert revoked.message == "'root/alice' revoked (away)"
    assert {"event": "revoked", "path": "root/alice", "reason": "away"}.items() <= vars(revoked).items()


async def test_an_opening_that_fails_again_and_again_does_not_fill_the_log(caplog: pytest.LogCaptureFixture) -> None:
    """Nothing was taken away from anybody: it is told at level DEBUG."""
    caplog.set_level(logging.INFO, "asyncrevoke")
    root = Revokable("root")
    async with observed(root, log_events) as (told, _):
        for _ in range(3):
            with contextlib.suppress(LookupError):
                async with root.opening("port"):
                    raise LookupError
    await root.aclose()
    assert told.count("root/port revoked") == 3
    assert caplog.messages == []


@pytest.mark.parametrize("evil", ["x\n2026 INFO 'root' revoked (no)\x1b[2J", "\x9b\u202e\udc80"], ids=["ascii", "more"])
async def test_text_of_others_is_told_printable(evil: str) -> None:
    """Whatever a name or a reason has in it forges no line of a log, and tells a terminal nothing; the fields are as given."""
    root = Revokable(evil)
    leave = anyio.Event()
    events: list[Event] = []
    async with observed(root, events.append, patience=0) as (told, tasks):
        alice = root.open(evil)
        tasks.start_soon(stubborn, alice, [], leave)
        await parked(alice)
        act = alice.revoke(evil)
        await told.until(f"{alice.path} straggler")
        shown = [str(alice.users()[0]), str(act.stragglers()[0])]
        leave.set()
        report = await act
    with pytest.raises(RevokedError) as caught, alice.using():
        pass
    shown += [str(caught.value), caught.value.strerror, repr(caught.value), str(report), *map(str, events)]
    assert [text for text in shown if not text.isprintable()] == []
    assert (caught.value.reason, report.reason, events[1].fields["reason"]) == (evil, evil, evil)
    await root.aclose()


def test_an_observer_hears_nothing_once_its_loop_is_closed() -> None:
    """Also if the loop was closed in the midst, and the tree goes on in the next one."""
    told: list[str] = []
    root = Revokable("root")

    async def first(loop: asyncio.AbstractEventLoop) -> asyncio.Task[None]:
        observing = loop.create_task(observe(root, lambda event: told.append(str(event))))
        await settle()
        root.open("a")
        return observing

    loop = asyncio.new_event_loop()
    observing = loop.run_until_complete(first(loop))
    loop.close()

    async def revoke() -> None:
        await root.revoke()

    asyncio.run(revoke())
    assert told == ["'root/a' opened"]
    observing.get_coro().close()  # which nobody will run
    observing._log_destroy_pending = False  # type: ignore[attr-defined]
