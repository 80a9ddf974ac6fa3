"""The view of one revocation: awaiting it, the report, who is still inside, and the deadlocks it refuses."""

import contextlib
import functools
import gc
import inspect
import math
import re
import sys
from collections.abc import Awaitable, Callable
from types import FrameType

import anyio
import anyio.lowlevel
import pytest

from asyncrevoke import Report, Revocation, Revokable, RevokeDeadlock, RevokedError, User, revoke_all
from asyncrevoke.lowlevel import Wait, users_of
from conftest import settle
from operations import Log, operate, says, slowly, stubborn

pytestmark = pytest.mark.anyio


async def wait(act: Callable[[], Awaitable[object]], log: Log, line: str) -> None:
    await act()
    log.append(line)


async def complete(act: Revocation) -> Report:
    return await act


# -- completion --


@pytest.mark.invariant("I4")
async def test_it_completes_when_all_is_released_for_each_who_waits() -> None:
    """Any number of tasks may await one act, before and after it is complete."""
    log: Log = []
    ready = anyio.Event()
    node = Revokable("node", release=slowly(log, "release", ready))
    act = node.revoke()
    async with anyio.create_task_group() as tasks:
        for number in range(3):
            tasks.start_soon(wait, lambda: complete(act), log, f"{number} woken")
        await settle()
        assert log == ["release begins"]
        assert (act.done(), act.remaining) == (False, 1)
        ready.set()
    assert log[:2] == ["release begins", "release ends"]
    assert sorted(log[2:]) == ["0 woken", "1 woken", "2 woken"]
    assert (await act).released == (await act).released == 1


@pytest.mark.invariant("I4")
async def test_it_completes_however_many_revoked_it() -> None:
    """Each act is complete when everything below it is gone, by whichever act."""
    log: Log = []
    ready = anyio.Event()
    root = Revokable("root")
    child = root.open("child", release=slowly(log, "release", ready))
    other = root.open("other")
    assert other.start_using()
    acts = {
        "child": child.revoke(),
        "root": root.revoke(grace=3600),
        "again": root.revoke(),
        "close": child.close(),
        "all": revoke_all([child, other]),
    }
    async with anyio.create_task_group() as tasks:
        for name, act in acts.items():
            tasks.start_soon(wait, lambda act=act: complete(act), log, name)
        await settle()
        ready.set()
        await settle()
        assert sorted(log[2:]) == ["child", "close"]
        other.stop_using()
    assert sorted(log[4:]) == ["again", "all", "root"]


async def give_up(node: Revokable) -> None:
    with anyio.move_on_after(0):
        await node.aclose()


async def leave_unclosed(node: Revokable) -> None:
    """Ask for what is released, but of which a file is not closed by its owner."""
    if not node.released:
        node.stop_using()
        await node.revoke()
    node.revoke()


ASKS: dict[str, Callable[[Revokable, Revokable], object]] = {
    "revoke": lambda node, _: node.revoke("again"),
    "with a grace": lambda node, _: node.revoke(grace=3600),
    "close": lambda node, _: node.close(),
    "from above": lambda node, other: (node.revoke(), other.revoke()),
    "all": lambda node, other: revoke_all([node, other]),
    "what is released first": lambda node, other: revoke_all([other, node]),
    "give up": lambda node, _: give_up(node),
    "unclosed": lambda node, _: leave_unclosed(node),
}


@pytest.mark.invariant("I4")
@pytest.mark.parametrize("ask", ASKS.values(), ids=ASKS)
async def test_asking_again_keeps_nothing(ask: Callable[[Revokable, Revokable], object]) -> None:
    """While one who is inside does not leave, a further act is kept by whoever holds it, and by nobody else."""

    def kept() -> tuple[int, int]:
        gc.collect()
        return sum(type(each) is Revocation for each in gc.get_objects()), len(anyio.get_running_tasks())

    node = Revokable("node")
    handle = node.open("handle", at_close=lambda: None)
    other = node.open("other")
    assert node.start_using()
    found = []
    for _ in range(10):
        asked = ask(node, other)
        if inspect.isawaitable(asked) and not isinstance(asked, Revocation):
            await asked
        del asked
        await settle()
        found.append(kept())
    assert found == [found[0]] * 10
    if not node.released:
        node.stop_using()
    await node.revoke()
    await handle.close()


@pytest.mark.invariant("I4")
async def test_a_later_act_tells_what_came_after_it() -> None:
    """It has a reason of its own, and it counts what was kicked, released and raised since it was called."""
    log: Log = []
    done = anyio.Event()

    def fail(_: Revokable) -> None:
        raise ZeroDivisionError

    node = Revokable("node", kick=fail)
    node.open("handle")
    async with anyio.create_task_group() as tasks:
        tasks.start_soon(stubborn, node, log, done)
        await settle()
        first = node.revoke("first")
        later = node.revoke("later")
        assert (later.reason, later.remaining, len(later.stragglers())) == ("later", 1, 1)
        done.set()
        report = await later
    assert [(act.report.kicked, act.report.released, len(act.report.errors)) for act in (first, later)] == [
        (1, 2, 2),
        (0, 1, 0),
    ]
    assert (report.name, report.reason) == ("node", "later")
    late = await node.revoke("too late")
    assert (late.kicked, late.released, late.remaining) == (0, 0, 0)
    assert late.seconds >= 0
    with pytest.raises(ExceptionGroup):
        await first


@pytest.mark.parametrize(
    "graces", [(3600, 7200, 0), (3600, math.inf, 0), (math.inf, 3600, 0), (3600, 0, 3600)], ids=str
)
async def test_a_later_act_can_only_bring_the_kick_forward(graces: tuple[float, ...]) -> None:
    """Whichever grace is over first: a longer one that is given later changes nothing, a shorter one counts."""
    log: Log = []
    node = Revokable("node")
    async with anyio.create_task_group() as tasks:
        tasks.start_soon(operate, node, log)
        await settle()
        kicked = []
        for grace in graces:
            node.revoke(grace=grace)
            kicked.append(node.kicked)
        assert kicked == [0 in graces[: end + 1] for end in range(3)]
    await node.revoke()


async def test_a_grace_after_a_close_is_for_the_closers_own_operation() -> None:
    """A close kicks all but the operations of the task that calls it; a revocation kicks those, too, when its grace is over."""
    node = Revokable("node")
    with anyio.fail_after(20), pytest.raises(RevokedError), node.using():
        node.close()
        node.revoke(grace=0.001)
        await anyio.sleep_forever()


async def test_a_shorter_grace_is_kept_beside_a_longer_one() -> None:
    """It ends in its own time, also where a longer one follows it."""
    log: Log = []
    node = Revokable("node")
    async with anyio.create_task_group() as tasks:
        tasks.start_soon(operate, node, log)
        await settle()
        for grace in 3600, 0.001, 3600:
            act = node.revoke(grace=grace)
        with anyio.fail_after(20):
            assert (await act).released == 1


@pytest.mark.invariant("I4")
async def test_it_completes_if_nobody_awaits() -> None:
    """Awaiting is optional."""
    log: Log = []
    node = Revokable("node", release=says(log, "release"))
    async with anyio.create_task_group() as tasks:
        tasks.start_soon(operate, node, log)
        await settle()
        act = node.revoke()
    assert log == ["node in", "release", "node kicked"]
    assert act.done()


@pytest.mark.invariant("I4")
async def test_awaiting_may_be_timed_out_and_begun_again() -> None:
    """A timeout ends the waiting, not the revocation."""
    log: Log = []
    node = Revokable("node")
    leave = anyio.Event()
    async with anyio.create_task_group() as tasks:
        tasks.start_soon(stubborn, node, log, leave)
        await settle()
        act = node.revoke()
        with anyio.move_on_after(0) as scope:
            await act
        assert scope.cancelled_caught
        assert not act.done()
        leave.set()
        assert (await act).released == 1


@pytest.mark.invariant("I4")
async def test_awaiting_what_is_complete_is_a_checkpoint() -> None:
    """A loop around a finished act lets others run, and can be cancelled."""
    act = Revokable("node").revoke()
    for call in (lambda: complete(act), act.wait_drained, act.wait_closed):
        with anyio.CancelScope() as scope:
            scope.cancel()
            await call()
        assert scope.cancelled_caught


@pytest.mark.invariant("I4")
async def test_it_does_not_wait_for_owners_to_close() -> None:
    """Dead handles that nobody closes hold neither the act nor the parent."""
    root = Revokable("root")
    child = root.open("child", at_close=lambda: None)
    report = await root.revoke()
    assert (report.released, report.unclosed, child.closed) == (2, 1, False)


@pytest.mark.invariant("I4")
async def test_wait_closed_waits_for_every_owner() -> None:
    """wait_closed() returns when all is released and the last owner has closed; others are not waited for."""
    log: Log = []
    ready = anyio.Event()
    root = Revokable("root")
    owned = [root.open(name, at_close=says(log, f"at_close {name}")) for name in "ab"]
    root.open("c", release=slowly(log, "release", ready))
    act = root.revoke()
    async with anyio.create_task_group() as tasks:
        tasks.start_soon(wait, act.wait_closed, log, "closed")
        owned[0].close()
        owned[1].close()
        await settle()
        assert sorted(log) == ["at_close a", "at_close b", "release begins"]
        ready.set()
    assert log[3:] == ["release ends", "closed"]
    late = Revokable("late")
    last = late.open("last", at_close=says(log, "at_close last"))
    act = late.revoke()
    async with anyio.create_task_group() as tasks:
        tasks.start_soon(wait, act.wait_closed, log, "closed late")
        await settle()
        assert act.done()
        last.close()
    assert log[5:] == ["at_close last", "closed late"]


@pytest.mark.invariant("I4")
async def test_wait_closed_of_a_later_act_is_told_of_the_last_close() -> None:
    """Who revokes what was released before, and waits until it is closed, is told when its last owner has closed."""
    root = Revokable("root")
    file = root.open("file", at_close=lambda: None)
    await root.revoke("first")
    late = root.revoke("second")
    log: list[str] = []
    async with anyio.create_task_group() as tasks:
        tasks.start_soon(wait, late.wait_closed, log, "closed")
        await settle()
        assert log == []
        file.close()
    assert log == ["closed"]


@pytest.mark.invariant("I4")
async def test_an_owner_counts_once_where_two_ways_lead_up() -> None:
    """A node that joins what its child belongs to already does not count that child's owner again."""
    log: Log = []
    root, device = Revokable("root"), Revokable("device")
    file = device.open("file", also=[root], at_close=says(log, "at_close"))
    device.join(root)
    assert root.unclosed == 1
    act = root.revoke()
    async with anyio.create_task_group() as tasks:
        tasks.start_soon(wait, act.wait_closed, log, "closed")
        await settle()
        file.close()
    assert (log, root.unclosed) == (["at_close", "closed"], 0)


@pytest.mark.invariant("I4")
async def test_wait_drained_waits_for_operations_only() -> None:
    """wait_drained() returns when the operations are out; releases may still run."""
    log: Log = []
    ready, leave = anyio.Event(), anyio.Event()
    root = Revokable("root", release=slowly(log, "release", ready))
    child = root.open("child")
    async with anyio.create_task_group() as tasks:
        tasks.start_soon(stubborn, child, log, leave)
        await settle()
        assert root.start_using()
        act = root.revoke()
        tasks.start_soon(wait, act.wait_drained, log, "drained")
        await settle()
        root.stop_using()
        await settle()
        assert log == ["child in"]
        leave.set()
        await settle()
        assert sorted(log) == ["child in", "child out", "drained", "release begins"]
        ready.set()
        await act


@pytest.mark.invariant("I2")
async def test_a_kick_that_revokes_again_releases_once() -> None:
    """The hook of a node that nobody is inside of may come to the release by itself."""
    log: Log = []
    node = Revokable("node", release=lambda: log.append("release"), kick=lambda node: node.revoke("again"))
    report = await node.revoke(grace=10)
    assert log == ["release"]
    assert (report.released, report.remaining) == (1, 0)


@pytest.mark.invariant("I4")
async def test_wait_drained_waits_for_the_last_counted_operation() -> None:
    """Of several that start_using() has let in, each counts."""
    log: Log = []
    node = Revokable("node")
    for _ in range(3):
        assert node.start_using()
    act = node.revoke()
    async with anyio.create_task_group() as tasks:
        tasks.start_soon(wait, act.wait_drained, log, "drained")
        for _ in range(2):
            node.stop_using()
            await settle()
            assert not log
        node.stop_using()
    assert log == ["drained"]


@pytest.mark.invariant("I4")
@pytest.mark.parametrize("kinds", [("waits", "waits"), ("waits", "is counted"), ("is counted", "waits")])
async def test_wait_drained_waits_for_the_last_of_several_operations(kinds: tuple[str, ...]) -> None:
    """Of whichever kind the one is that leaves first, the other is still inside."""
    log: Log = []
    node = Revokable("node")
    waits = Wait(node, lambda _: None), Wait(node, lambda _: None)
    for kind, operation in zip(kinds, waits, strict=True):
        assert operation.enter() if kind == "waits" else node.start_using()
    act = node.revoke()
    async with anyio.create_task_group() as tasks:
        tasks.start_soon(wait, act.wait_drained, log, "drained")
        for kind, operation in zip(kinds, waits, strict=True):
            await settle()
            assert (log, node.released) == ([], False)
            if kind == "waits":
                operation.leave()
            else:
                node.stop_using()
    assert log == ["drained"]
    assert (await act).remaining == 0


@pytest.mark.invariant("I4", "I1")
async def test_wait_drained_waits_for_nested_uses_of_the_grace() -> None:
    """A use that was granted in the grace is an operation as any other."""
    log: Log = []
    node = Revokable("node")
    finish = anyio.Event()

    async def handler() -> None:
        outer = node.using()
        with outer:
            await anyio.lowlevel.checkpoint()
            while not node.revoked:
                await anyio.lowlevel.checkpoint()
            with node.using():
                await finish.wait()
        log.append("handled")

    async with anyio.create_task_group() as tasks:
        tasks.start_soon(handler)
        await settle()
        act = node.revoke(grace=3600)
        tasks.start_soon(wait, act.wait_drained, log, "drained")
        await settle()
        assert log == []
        finish.set()
    assert sorted(log) == ["drained", "handled"]


# -- errors --


@pytest.mark.invariant("I7")
async def test_what_is_awaited_is_not_logged(caplog: pytest.LogCaptureFixture) -> None:
    """Errors are raised to those who await, also where all was over when revoke() returned, and then not logged."""
    for grace in (0.0, 3600.0) * 10:  # ten times, as trio shuffles
        with pytest.raises(BaseExceptionGroup):
            await Revokable("node", release=lambda: 1 / 0).revoke(grace=grace)
        await settle()
    assert caplog.record_tuples == []


@pytest.mark.invariant("I7")
async def test_what_is_awaited_in_time_is_not_logged(caplog: pytest.LogCaptureFixture) -> None:
    """One who waits when the act completes is enough."""
    node = Revokable("node", release=lambda: 1 / 0)
    assert node.start_using()
    act = node.revoke()
    async with anyio.create_task_group() as tasks:

        async def expect() -> None:
            with pytest.raises(BaseExceptionGroup):
                await act

        tasks.start_soon(expect)
        await settle()
        node.stop_using()
    await settle()
    assert caplog.record_tuples == []


@pytest.mark.invariant("I7")
async def test_what_nobody_awaits_when_it_completes_is_logged_once(caplog: pytest.LogCaptureFixture) -> None:
    """It is logged on "asyncrevoke" once, and at once; who only waits for the operations, or comes later, does not count."""
    node = Revokable("node", release=lambda: 1 / 0)
    assert node.start_using()
    act = node.revoke()
    async with anyio.create_task_group() as tasks:
        tasks.start_soon(act.wait_drained)
        await settle()
        node.stop_using()
        assert len(caplog.records) == 1
    await settle()
    with anyio.CancelScope() as scope:
        scope.cancel()
        await act
    with pytest.raises(BaseExceptionGroup):
        await act
    assert [record.name for record in caplog.records] == ["asyncrevoke"]


@pytest.mark.invariant("I7")
@pytest.mark.parametrize("turns", [0, 12])
async def test_what_the_one_who_awaited_it_was_not_told_is_logged(turns: int, caplog: pytest.LogCaptureFixture) -> None:
    """The await was cancelled before it completed, or in that moment: nobody else would say what failed."""
    node = Revokable("node", release=lambda: 1 / 0)
    assert node.start_using()
    act = node.revoke()
    async with anyio.create_task_group() as tasks:
        tasks.start_soon(complete, act)
        await settle()
        tasks.cancel_scope.cancel()
        with anyio.CancelScope(shield=True):
            await settle(turns)
        node.stop_using()
    await settle()
    assert [record.name for record in caplog.records] == ["asyncrevoke"]


@pytest.mark.invariant("I7")
async def test_errors_are_in_the_report() -> None:
    """The report names what failed."""
    act = Revokable("node", release=lambda: 1 / 0).revoke()
    (error,) = act.report.errors
    assert isinstance(error, ZeroDivisionError)
    assert "1 failed: ZeroDivisionError('division by zero')" in str(act.report)
    with pytest.raises(BaseExceptionGroup, match="node"):
        await act


# -- the report --


@pytest.mark.invariant("contract")
async def test_the_report_prints_well() -> None:
    """One line says what was revoked, why, whom it kicked, what it released and how long that took."""
    log: Log = []
    root = Revokable("ttyUSB0")
    child = root.open("alice", at_close=lambda: None)
    async with anyio.create_task_group() as tasks:
        tasks.start_soon(operate, child, log)
        await settle()
        act = root.revoke("unplugged")
        report = await act
    assert re.fullmatch(
        r"'ttyUSB0' revoked \(unplugged\): 1 kicked, 2 released, 1 unclosed, in \d\.\d{3} s", str(report)
    )
    assert (report.name, report.reason, report.kicked, report.released) == ("ttyUSB0", "unplugged", 1, 2)
    assert (report.remaining, report.unclosed, report.errors) == (0, 1, ())
    assert 0 <= report.seconds < 60
    assert (await act).seconds == report.seconds, "the time stands still when it is done"


@pytest.mark.invariant("contract")
def test_the_report_of_an_act_that_goes_on() -> None:
    """`report` and `remaining` tell how far it is, without waiting."""
    root = Revokable("root")
    child = root.open("child")
    root.open("gone")
    assert child.start_using()
    act = root.revoke()
    assert (act.remaining, act.done(), act.reason) == (2, False, "")
    assert str(act.report).startswith("'root' revoked: 0 kicked, 1 released, 2 remaining, in ")
    child.stop_using()
    assert (act.remaining, act.report.released) == (0, 3)


@pytest.mark.invariant("contract")
def test_the_report_of_many_names_the_first() -> None:
    """An act on many is named by three of them, and says if there are more."""
    for names, said in ("abc", "a, b, c"), ("abcd", "a, b, c, ..."):
        assert revoke_all([Revokable(name) for name in names]).report.name == said


@pytest.mark.invariant("contract")
def test_repr_of_a_revocation() -> None:
    """repr() tells what is revoked and how many nodes remain."""
    node = Revokable("node")
    assert node.start_using()
    act = node.revoke()
    assert repr(act) == "<Revocation of 'node' remaining=1>"
    node.stop_using()
    assert repr(act) == "<Revocation of 'node' done>"


@pytest.mark.invariant("contract")
async def test_a_use_that_is_kicked_counts_for_every_act_once() -> None:
    """Operations are counted, not kicks."""
    log: Log = []
    node = Revokable("node")
    leave = anyio.Event()
    async with anyio.create_task_group() as tasks:
        for number in range(3):
            tasks.start_soon(stubborn, node, log, leave, f"{number}")
        await settle()
        acts = [node.revoke(), node.revoke()]
        leave.set()
        assert [(await act).kicked for act in acts] == [3, 0]


# -- stragglers --


@pytest.mark.invariant("I8")
async def test_stragglers_say_who_is_inside_what_since_when_and_where() -> None:
    """str() of a straggler names the task, the file, the seconds and the line."""
    root = Revokable("ttyUSB0", kick=None)
    child = root.open("alice")
    leave = anyio.Event()

    async def waits_here() -> None:
        with child.using():
            await leave.wait()

    async with anyio.create_task_group() as tasks:
        tasks.start_soon(waits_here, name="the reader")
        await settle()
        act = root.revoke()
        (straggler,) = act.stragglers()
        leave.set()
        await act
    line = waits_here.__code__.co_firstlineno + 2
    assert re.fullmatch(
        rf"operation of 'the reader' in 'ttyUSB0/alice' for \d\.\d s at test_revocation\.py:{line} in waits_here",
        str(straggler),
    )
    assert (straggler.kind, straggler.name, straggler.path) == ("operation", "the reader", "ttyUSB0/alice")
    assert straggler.since is not None
    assert straggler.task is not None
    assert act.stragglers() == []


@pytest.mark.invariant("I8")
async def test_a_release_that_runs_is_a_straggler() -> None:
    """A running release is named as operations are."""
    node = Revokable("node")
    ready = anyio.Event()

    async def lets_go() -> None:
        await ready.wait()

    node.release = lets_go
    act = node.revoke()
    await settle()
    (straggler,) = act.stragglers()
    line = lets_go.__code__.co_firstlineno + 1
    assert re.fullmatch(
        rf"release of \"release of 'node'\" in 'node' for \d\.\d s at test_revocation\.py:{line} in lets_go",
        str(straggler),
    )
    assert [user.kind for user in node.users()] == ["release"]
    ready.set()
    await act
    assert act.stragglers() == node.users() == []


@pytest.mark.invariant("I8")
async def test_a_release_is_a_straggler_from_the_beginning() -> None:
    """Whoever asks right after revoke() is told why it is not done."""
    ready = anyio.Event()
    act = Revokable("node", release=slowly([], "release", ready)).revoke()
    assert [user.kind for user in act.stragglers()] == ["release"]
    ready.set()
    await act


@pytest.mark.invariant("I8", "pair")
def test_bare_users_are_unnamed_stragglers() -> None:
    """Users of start_using are counted one by one, without a name."""
    node = Revokable("node")
    for _ in range(2):
        assert node.start_using()
    act = node.revoke()
    assert act.stragglers() == [User("operation", "", "node")] * 2
    assert str(act.stragglers()[0]) == "operation of '' in 'node'"
    node.stop_using()
    assert len(act.stragglers()) == 1
    node.stop_using()


@pytest.mark.invariant("I8")
def test_users_tells_operations_and_open_children() -> None:
    """users() of a live node tells what would be in the way of its release."""
    root = Revokable("root")
    root.open("child")
    assert root.start_using()
    with root.using():
        found = root.users()
        assert [(user.kind, user.name, user.path) for user in found] == [
            ("operation", "", "root"),
            ("operation", "", "root"),
            ("open file", "child", "root"),
        ]
        assert str(found[2]) == "open file 'child' in 'root'"
        assert [user.since is None for user in found] == [False, True, True]
    root.stop_using()
    assert len(root.users()) == root.in_use == 1


@pytest.mark.invariant("I8")
async def test_stragglers_outlive_the_kick_only_where_they_are_stubborn() -> None:
    """Who was kicked and has left is no straggler; who ignores it is one until he leaves."""
    log: Log = []
    node = Revokable("node")
    leave = anyio.Event()
    async with anyio.create_task_group() as tasks:
        tasks.start_soon(stubborn, node, log, leave, name="stubborn")
        tasks.start_soon(operate, node, log, name="obedient")
        await settle()
        act = node.revoke()
        assert sorted(user.name for user in act.stragglers()) == ["obedient", "stubborn"]
        await settle()
        assert [user.name for user in act.stragglers()] == ["stubborn"]
        leave.set()
        await act


@pytest.mark.invariant("I8")
async def test_so_many_stragglers_are_enough() -> None:
    """Whoever asks for the first few is told of those."""
    log: Log = []
    node = Revokable("node")
    leave = anyio.Event()
    async with anyio.create_task_group() as tasks:
        for name in ("one", "two", "three"):
            tasks.start_soon(stubborn, node, log, leave, name, name=name)
        await settle()
        act = node.revoke()
        found = [len(act.stragglers(most)) for most in (0, 2, 4)]
        leave.set()
        await act
    assert found == [0, 2, 3]


@pytest.mark.invariant("I8")
async def test_to_tell_a_release_takes_no_look_at_others() -> None:
    """It takes as many calls where a hundred others run."""
    until = anyio.Event()

    async def calls_among(others: int) -> int:
        root = Revokable("root")
        files = [root.open("file", release=slowly([], "file", until)) for _ in range(others + 1)]
        root.revoke()
        await settle()
        files[0].users()  # what is worked out once
        calls = 0

        def note(_: FrameType, event: str, __: object) -> None:
            nonlocal calls
            calls += event == "call"

        sys.setprofile(note)
        try:
            (user,) = files[0].users()
        finally:
            sys.setprofile(None)
        assert user.kind == "release"
        return calls

    few, many = await calls_among(0), await calls_among(100)
    until.set()
    await settle()
    assert few == many


@pytest.mark.invariant("I8")
async def test_users_may_be_told_one_by_one() -> None:
    """In `lowlevel.users_of` who has left meanwhile is passed over, and the others are told."""
    node = Revokable("node")
    files = [node.open(name) for name in ("a", "b", "c")]
    leave, stay = anyio.Event(), anyio.Event()
    async with anyio.create_task_group() as tasks:
        for name, until in (("one", stay), ("two", leave), ("three", stay)):
            tasks.start_soon(functools.partial(operate, node, [], name, until=until), name=name)
            await settle()
        users = users_of(node)
        assert next(users).name == "one"
        leave.set()
        files[1].close()
        await settle()
        assert [user.name for user in users] == ["three", "a", "c"]
        stay.set()


# -- deadlocks --


@pytest.mark.invariant("deadlock")
@pytest.mark.parametrize("kick", [..., None], ids=["kick", "no kick"])
async def test_awaiting_from_ones_own_operation_is_refused_at_once(kick: None) -> None:
    """Before any checkpoint, kick or not; also from an operation further below, and by each way of waiting."""
    for below in (True, False):
        root = Revokable("root", kick=kick)
        node = root.open("child") if below else root
        with contextlib.suppress(RevokedError), node.using():
            act = root.revoke()
            for call in (lambda act=act: complete(act), act.wait_drained, act.wait_closed):
                with pytest.raises(RevokeDeadlock, match=re.escape(repr(node.path))):
                    call().__await__().send(None)
            await anyio.lowlevel.checkpoint()
        assert act.done()


@pytest.mark.invariant("deadlock")
async def test_a_deadlock_leaves_the_revocation_as_it_is() -> None:
    """RevokeDeadlock loses nothing: when the caller has left, the revocation completes."""
    log: Log = []
    node = Revokable("node", kick=None, release=says(log, "release"))
    with node.using():
        act = node.revoke()
        with pytest.raises(RevokeDeadlock):
            await act
    assert log == ["release"]
    assert (await act).released == 1


@pytest.mark.invariant("deadlock")
async def test_awaiting_from_a_release_it_waits_for_is_refused() -> None:
    """A release may not wait for its own revocation, nor for that of a parent."""
    log: Log = []

    async def release() -> None:
        await anyio.lowlevel.checkpoint()
        for each in (act, root.revoke(), child.revoke()):
            try:
                await each
            except RevokeDeadlock:
                log.append("refused")
        await act.wait_drained()
        log.append("drained")

    root = Revokable("root")
    child = root.open("child", release=release)
    act = root.revoke()
    with anyio.fail_after(5):
        await act
    assert log == ["refused"] * 3 + ["drained"]


@pytest.mark.invariant("deadlock")
@pytest.mark.parametrize("kick", [..., None], ids=["kick", "no kick"])
@pytest.mark.parametrize("wait", [Revocation.finish, Revocation.wait_drained, Revocation.wait_closed])
async def test_a_cycle_of_two_tasks_is_refused(kick: None, wait: Callable[[Revocation], Awaitable[None]]) -> None:
    """Two operations that each await the revocation of the other's node: the second to wait is told."""
    log: Log = []
    one, other = Revokable("one", kick=kick), Revokable("other", kick=kick)
    acts: list[Revocation] = []

    async def first() -> None:
        with one.using(), anyio.CancelScope(shield=True):
            acts.append(other.revoke())
            await wait(acts[0])
            log.append("first goes on")

    async def second() -> None:
        with other.using(), anyio.CancelScope(shield=True):
            await settle()
            act = one.revoke()
            with pytest.raises(RevokeDeadlock, match="'one'"):
                await act
            log.append("second is told")

    with anyio.fail_after(5):
        async with anyio.create_task_group() as tasks:
            tasks.start_soon(second)
            await anyio.lowlevel.checkpoint()
            tasks.start_soon(first)
    assert log == ["second is told", "first goes on"]


@pytest.mark.invariant("deadlock")
async def test_a_cycle_of_three_tasks_is_refused() -> None:
    """A cycle is found over any number of tasks, and told as a whole: who awaits what, and for whom that waits."""
    log: Log = []
    nodes = [Revokable(name) for name in "abc"]

    async def wait_for_next(number: int) -> None:
        with nodes[number].using(), anyio.CancelScope(shield=True):
            await settle(3 + 3 * number)
            try:
                await nodes[(number + 1) % 3].revoke()
            except RevokeDeadlock as told:
                log.append(str(told))

    with anyio.fail_after(5):
        async with anyio.create_task_group() as tasks:
            for number in range(3):
                tasks.start_soon(wait_for_next, number, name=f"task of {number}")
    (told,) = log
    assert told.split(", which ") == [
        "task 'task of 2' awaits <Revocation of 'a' remaining=1>",
        "waits for task 'task of 0' inside 'a'",
        "awaits <Revocation of 'b' remaining=1>",
        "waits for task 'task of 1' inside 'b'",
        "awaits <Revocation of 'c' remaining=1>",
        "waits for task 'task of 2' inside 'c': leave that first, or do not await",
    ]


@pytest.mark.invariant("deadlock")
async def test_a_chain_that_is_no_cycle_is_not_refused() -> None:
    """An operation on one node may await the revocation of another, whoever is inside of that."""
    log: Log = []
    one, other = Revokable("one"), Revokable("other")

    async def waits() -> None:
        with one.using():
            await other.revoke()
        log.append("went on")

    async with anyio.create_task_group() as tasks:
        tasks.start_soon(operate, other, log)
        await settle()
        tasks.start_soon(waits)
    assert log[0] == "other in"
    assert sorted(log[1:]) == ["other kicked", "went on"]


@pytest.mark.invariant("deadlock")
async def test_an_operation_above_or_beside_is_no_deadlock() -> None:
    """Only what the revocation waits for counts: an operation on the parent, or a sibling, may await it."""
    root = Revokable("root")
    child, sibling = root.open("child"), root.open("sibling")
    with root.using(), sibling.using(), anyio.fail_after(5):
        assert (await child.revoke()).released == 1


@pytest.mark.invariant("deadlock")
async def test_an_operation_that_was_left_is_no_deadlock() -> None:
    """After its operation a task may wait."""
    node = Revokable("node")
    with node.using():
        act = node.revoke()
    with anyio.fail_after(5):
        await act


@pytest.mark.invariant("deadlock")
async def test_one_who_waits_for_operations_only_does_not_wait_for_a_release() -> None:
    """A release may await the revocation of a node whose user waits only until the operations are out: no cycle."""
    log: Log = []
    one, two, other = Revokable("one"), Revokable("two"), Revokable("other", kick=None)
    assert two.start_using()

    async def release() -> None:
        await settle()
        await other.revoke()
        log.append("released")

    async def waits() -> None:
        with other.using():
            await act.wait_drained()
            log.append("drained")

    one.release = release
    act = revoke_all([one, two])
    async with anyio.create_task_group() as tasks:
        tasks.start_soon(waits)
        await settle(40)
        two.stop_using()
        with anyio.fail_after(5):
            await act
    assert log == ["drained", "released"]


@pytest.mark.invariant("deadlock")
async def test_child_tasks_are_not_taken_for_their_parent() -> None:
    """Nothing is inferred by inheritance: a child task may wait; the kick ends it, or stragglers name who holds it."""
    log: Log = []
    node = Revokable("node", kick=None)
    entered, revoked, leave = anyio.Event(), anyio.Event(), anyio.Event()

    async def child() -> None:
        await act
        log.append("child goes on")

    async with anyio.create_task_group() as tasks:

        async def operation() -> None:
            with node.using():
                entered.set()
                await revoked.wait()
                tasks.start_soon(child)
                await leave.wait()

        tasks.start_soon(operation, name="parent")
        await entered.wait()
        act = node.revoke()
        revoked.set()
        await settle()
        assert log == []
        assert [user.name for user in act.stragglers()] == ["parent"]
        leave.set()
    assert log == ["child goes on"]
