"""The protocol: refuse, kick, wait, release; each test holds one sentence of it."""

import errno
import functools
import gc
import itertools
import logging
import math
import threading
from collections.abc import Callable
from typing import Any

import anyio
import anyio.lowlevel
import pytest

from asyncrevoke import Revokable, RevokeDeadlock, RevokedError, answers, revoke_all, revoke_threadsafe
from asyncrevoke._core import revocation as _revokable
from asyncrevoke.lowlevel import Wait
from conftest import settle
from operations import Log, operate, says, slowly, stubborn

pytestmark = pytest.mark.anyio


def tree(log: Log) -> tuple[Revokable, Revokable, list[Revokable]]:
    """A root, a child, and two children of that; each logs its kick and its release."""
    root = Revokable("root", kick=lambda node: log.append(f"kick {node.name}"), release=says(log, "release root"))
    child = root.open("child", release=says(log, "release child"))
    return root, child, [child.open(name, release=says(log, f"release {name}")) for name in "ab"]


def refuses(node: Revokable) -> bool:
    """Whether nothing starts here: not by `start_using`, nor `using`, nor `open`."""
    if node.start_using():
        node.stop_using()
        return False
    with pytest.raises(RevokedError), node.using():
        pass
    with pytest.raises(RevokedError):
        node.open()
    return True


# -- refuse --


@pytest.mark.invariant("I1")
def test_everything_below_refuses_when_revoke_returns() -> None:
    """When revoke() has returned, nothing starts anywhere below."""
    root, child, leaves = tree([])
    root.revoke()
    assert [refuses(node) for node in (root, child, *leaves)] == [True] * 4


@pytest.mark.invariant("I1")
async def test_grace_refuses_as_much_as_no_grace() -> None:
    """A grace is for those who are inside: nothing new starts in it."""
    root, child, leaves = tree([])
    assert root.start_using()
    act = root.revoke(grace=60)
    assert [refuses(node) for node in (root, child, *leaves)] == [True] * 4
    assert not root.kicked
    root.stop_using()
    await act


@pytest.mark.invariant("I1")
def test_what_is_above_and_beside_goes_on() -> None:
    """A revocation takes what is below it, and nothing else."""
    root, _, (a, b) = tree([])
    a.revoke()
    assert refuses(a)
    assert b.start_using()
    assert root.start_using()
    assert not root.open("new").revoked


@pytest.mark.invariant("I1", "I7")
def test_no_user_code_runs_before_everything_refuses() -> None:
    """Hooks and releases find the whole tree refusing: the sweep calls nobody."""
    found = []

    def look(*_: object) -> None:
        found.append([node.revoked for node in everything])

    root = Revokable("root", kick=look, release=look)
    everything = [root, *(root.open(str(number), release=look) for number in range(3))]
    for node in everything:
        node.start_using()
    with everything[1].using() as use:
        use.on_kick(look)
        root.revoke()
    for node in everything:
        node.stop_using()
    assert found == [[True] * 4] * (4 + 1 + 4)  # the hooks, the operation's, and the releases


@pytest.mark.invariant("I1")
def test_refusals_are_fresh_exceptions() -> None:
    """Every operation raises an exception of its own."""
    node = Revokable("node")
    node.revoke("unplugged")
    raised = []
    for _ in range(2):
        with pytest.raises(RevokedError) as caught, node.using():
            pass
        raised.append(caught.value)
    assert raised[0] is not raised[1]
    assert [(exc.node, exc.in_flight, exc.reason, exc.errno) for exc in raised] == [
        (node, False, "unplugged", errno.EIO)
    ] * 2


@pytest.mark.invariant("I1")
def test_a_revocation_cannot_be_undone() -> None:
    """Neither time nor another act makes a node live again."""
    node = Revokable("node")
    node.revoke()
    node.revoke()
    node.close()
    assert not node.start_using()
    assert (node.revoked, node.kicked, node.released) == (True, True, True)


# -- kick --


@pytest.mark.invariant("kick")
async def test_every_wait_below_is_ended() -> None:
    """The kick ends all that waits below, and tells each by RevokedError."""
    log: Log = []
    root = Revokable("root")
    child = root.open("child")
    async with anyio.create_task_group() as tasks:
        for node in (root, child, child):
            tasks.start_soon(operate, node, log)
        await settle()
        await root.revoke()
    assert sorted(log) == sorted(["root in", "child in", "child in", "root kicked", "child kicked", "child kicked"])


@pytest.mark.invariant("kick")
def test_hooks_run_once_parents_first_in_order_of_opening() -> None:
    """A callable kick runs once per node, users or not, parent before child, in order of opening; it is inherited."""
    log: Log = []
    root, _, leaves = tree(log)
    root.open("last")
    assert leaves[0].start_using()
    root.revoke()
    root.revoke()
    assert log == [*(f"kick {name}" for name in ("root", "child", "a", "b", "last")), "release b"]
    leaves[0].stop_using()
    assert log[6:] == ["release a", "release child", "release root"]


@pytest.mark.invariant("kick")
def test_hook_of_a_further_parent_runs_before_the_childs() -> None:
    """Parent before child holds for each of several parents, in whatever order these were opened."""
    log: Log = []
    root = Revokable("root", kick=lambda node: log.append(node.name))
    first, second = root.open("first"), root.open("second")
    first.open("shared", also=[second])
    root.revoke()
    assert log == ["root", "first", "second", "shared"]


@pytest.mark.invariant("kick")
def test_hook_of_a_child_of_its_own_replaces_the_parents() -> None:
    """What is given to open() holds for it and what is below it."""
    log: Log = []
    root = Revokable("root", kick=says(log, "root's"))
    root.open("child", kick=says(log, "child's")).open("grandchild")
    root.revoke()
    assert log == ["root's", "child's", "child's"]


@pytest.mark.invariant("kick")
async def test_a_hook_comes_in_addition_to_cancelling() -> None:
    """A callable kick does not stand for the kick of the scopes."""
    log: Log = []
    node = Revokable("node", kick=says(log, "hook"))
    async with anyio.create_task_group() as tasks:
        tasks.start_soon(operate, node, log)
        await settle()
        await node.revoke()
        await settle()
    assert log == ["node in", "hook", "node kicked"]


@pytest.mark.invariant("kick")
async def test_nobody_is_kicked_where_kick_is_none() -> None:
    """With kick=None operations run to their end and keep their results; below, others may be kicked."""
    log: Log = []
    entry = Revokable("entry", kick=None)
    inherits, own = entry.open("inherits"), entry.open("own", kick=says(log, "hook of own"))
    finish = anyio.Event()
    async with anyio.create_task_group() as tasks:
        for node in (entry, inherits):
            tasks.start_soon(functools.partial(operate, node, log, until=finish))
            await settle()
        tasks.start_soon(operate, own, log)
        await settle()
        act = entry.revoke()
        await settle()
        assert log == ["entry in", "inherits in", "own in", "hook of own", "own kicked"]
        assert act.remaining == 2
        finish.set()
        assert (await act).kicked == 1
    assert sorted(log[5:]) == ["entry out", "inherits out"]


@pytest.mark.invariant("kick")
async def test_nobody_is_kicked_where_kick_is_none_even_idle_in_a_grace() -> None:
    """kick=None is for a node's own idle operations, too."""
    log: Log = []
    entry = Revokable("entry", kick=None)
    finish = anyio.Event()
    async with anyio.create_task_group() as tasks:
        tasks.start_soon(lambda: operate(entry, log, idle=True, until=finish))
        await settle()
        act = entry.revoke(grace=60)
        await settle()
        assert log == ["entry in"]
        finish.set()
        await act
    assert log == ["entry in", "entry out"]


# -- grace --


@pytest.mark.invariant("grace")
async def test_idle_waits_are_kicked_at_once_and_work_when_the_grace_is_over() -> None:
    """Who waits for others to begin something has no use for a grace."""
    log: Log = []
    node = Revokable("node", release=says(log, "release"))
    async with anyio.create_task_group() as tasks:
        tasks.start_soon(lambda: operate(node, log, "reader", idle=True))
        await settle()
        tasks.start_soon(lambda: operate(node, log, "worker"))
        await settle()
        act = node.revoke(grace=0.05)
        await settle()
        assert log == ["reader in", "worker in", "reader kicked"]
        assert not node.kicked
        report = await act
    assert log[3:] in (["worker kicked", "release"], ["release", "worker kicked"])
    assert (report.kicked, report.released) == (2, 1)


@pytest.mark.invariant("grace")
async def test_who_leaves_in_the_grace_is_not_kicked() -> None:
    """A revocation with a grace is done as soon as the last user has left."""
    log: Log = []
    node = Revokable("node")
    finish = anyio.Event()
    async with anyio.create_task_group() as tasks:
        tasks.start_soon(lambda: operate(node, log, until=finish))
        await settle()
        act = node.revoke(grace=3600)
        finish.set()
        report = await act
    assert log == ["node in", "node out"]
    assert (report.kicked, report.released) == (0, 1)
    assert report.seconds < 60


@pytest.mark.invariant("grace", "kick")
def test_hook_of_an_unused_node_runs_before_its_release() -> None:
    """Without grace all are kicked before any is released."""
    log: Log = []
    tree(log)[0].revoke()
    assert log == [
        *(f"kick {name}" for name in ("root", "child", "a", "b")),
        *(f"release {name}" for name in ("b", "a", "child", "root")),
    ]


@pytest.mark.invariant("grace", "kick")
async def test_node_that_drains_in_the_grace_runs_its_hook_before_its_release() -> None:
    """A node that drains within the grace has its hook run just before its release."""
    log: Log = []
    root, child, (a, _) = tree(log)
    assert a.start_using()
    act = root.revoke(grace=3600)
    assert log == ["kick b", "release b"]
    a.stop_using()
    assert log[2:] == ["kick a", "release a", "kick child", "release child", "kick root", "release root"]
    assert act.done()
    assert child.released


@pytest.mark.invariant("grace")
async def test_a_later_revocation_brings_the_kick_forward() -> None:
    """An escalation does not wait for the first one's grace."""
    log: Log = []
    node = Revokable("node")
    async with anyio.create_task_group() as tasks:
        tasks.start_soon(operate, node, log)
        await settle()
        first = node.revoke("drain", grace=3600)
        await settle()
        assert log == ["node in"]
        second = node.revoke("now")
        assert node.kicked
        assert (await second).kicked == 1
        assert (await first).kicked == 1
    assert log == ["node in", "node kicked"]


@pytest.mark.invariant("grace")
async def test_a_later_revocation_never_puts_the_kick_off() -> None:
    """The kick time is the earliest that was asked for."""
    log: Log = []
    node = Revokable("node")
    with anyio.fail_after(30):
        async with anyio.create_task_group() as tasks:
            tasks.start_soon(operate, node, log)
            await settle()
            node.revoke(grace=0.02)
            assert (await node.revoke(grace=3600)).kicked == 1
    assert log == ["node in", "node kicked"]


@pytest.mark.invariant("grace")
async def test_the_earliest_kick_may_be_asked_for_above() -> None:
    """The kick of a parent is the kick of what is below, whatever grace that had."""
    log: Log = []
    root = Revokable("root")
    child = root.open("child")
    async with anyio.create_task_group() as tasks:
        tasks.start_soon(operate, child, log)
        await settle()
        act = child.revoke("child's", grace=3600)
        await root.revoke("root's")
        await act
    assert log == ["child in", "child kicked"]
    assert (child.reason, root.reason) == ("child's", "root's")


@pytest.mark.invariant("grace")
async def test_a_revocation_below_leaves_the_grace_above() -> None:
    """An escalation is for the node it was asked of: what is above it keeps its grace."""
    log: Log = []
    root = Revokable("root")
    child = root.open("child")
    finish = anyio.Event()
    async with anyio.create_task_group() as tasks:
        tasks.start_soon(lambda: operate(root, log, until=finish))
        await settle()
        tasks.start_soon(operate, child, log)
        await settle()
        act = root.revoke(grace=3600)
        await child.revoke()
        await settle()
        assert log == ["root in", "child in", "child kicked"]
        assert not root.kicked
        finish.set()
        await act


@pytest.mark.invariant("grace")
async def test_the_reason_is_the_first_and_never_changes() -> None:
    """The reason is the first act's; each act keeps its own for its report."""
    node = Revokable("node")
    assert node.reason == ""
    assert node.start_using()
    acts = [node.revoke("first", grace=3600), node.revoke("second"), node.close()]
    assert node.reason == "first"
    node.stop_using()
    assert [(await act).reason for act in acts[:2]] == ["first", "second"]
    assert node.reason == "first"


@pytest.mark.invariant("grace")
@pytest.mark.parametrize("grace", [-1.0, -0.001, math.nan, -math.inf])
async def test_a_wrong_grace_changes_nothing(grace: float) -> None:
    """ValueError for a grace that is no time, and the node is as it was."""
    node = Revokable("node")
    with pytest.raises(ValueError, match="grace"):
        node.revoke(grace=grace)
    with pytest.raises(ValueError, match="grace"):
        revoke_all([node], grace=grace)
    assert not node.revoked


@pytest.mark.invariant("grace")
async def test_a_grace_without_end_waits_for_an_escalation() -> None:
    """An infinite grace is a revocation that never kicks."""
    node = Revokable("node")
    log: Log = []
    async with anyio.create_task_group() as tasks:
        tasks.start_soon(operate, node, log)
        await settle()
        act = node.revoke(grace=math.inf)
        await settle()
        node.revoke()
        await act
    assert log == ["node in", "node kicked"]


@pytest.mark.invariant("grace")
async def test_a_grace_with_nothing_to_take_is_done_at_once() -> None:
    """Nothing is waited for where nothing is left, not even the grace."""
    node = Revokable("node")
    node.revoke()
    with anyio.fail_after(10):
        assert (await node.revoke(grace=3600)).released == 0
        assert (await revoke_all([], grace=3600)).released == 0


# -- release --


@pytest.mark.invariant("I2")
def test_release_runs_once_children_first() -> None:
    """Each node is released exactly once, after all that is below it."""
    log: Log = []
    root, _, _ = tree(log)
    for _ in range(3):
        root.revoke()
    assert [line for line in log if line.startswith("release")] == [
        "release b",
        "release a",
        "release child",
        "release root",
    ]


@pytest.mark.invariant("I2", "I3")
async def test_the_last_one_out_releases() -> None:
    """The release runs when the last user has left, not before, in the step in which that leaves."""
    log: Log = []
    node = Revokable("node", release=says(log, "release"))
    leave = [anyio.Event(), anyio.Event()]
    async with anyio.create_task_group() as tasks:
        for number in range(2):
            tasks.start_soon(stubborn, node, log, leave[number], f"{number}")
            await settle()
        act = node.revoke()
        for number in (1, 0):
            await settle()
            leave[number].set()
        await act
        await settle()
    assert log == ["0 in", "1 in", "1 out", "release", "0 out"]


@pytest.mark.invariant("I2")
async def test_release_is_not_lost_when_all_who_waited_were_cancelled() -> None:
    """A revocation does not need its caller."""
    log: Log = []
    node = Revokable("node", release=says(log, "release"))
    leave = anyio.Event()
    async with anyio.create_task_group() as tasks:
        tasks.start_soon(stubborn, node, log, leave)
        await settle()
        act = node.revoke()
        async with anyio.create_task_group() as waiting:

            async def wait() -> None:
                await act

            waiting.start_soon(wait)
            waiting.start_soon(wait)
            await settle()
            waiting.cancel_scope.cancel()
        assert not node.released
        leave.set()
    assert log == ["node in", "release", "node out"]
    assert (act.done(), node.released) == (True, True)


@pytest.mark.invariant("I2")
async def test_an_open_child_holds_its_parent() -> None:
    """An open child is a user of its parent, just as an operation is."""
    log: Log = []
    root, child, (a, _) = tree(log)
    assert (root.in_use, child.in_use, a.in_use) == (1, 2, 0)
    assert a.start_using()
    act = root.revoke()
    assert (root.in_use, child.in_use, a.in_use) == (1, 1, 1)
    assert [root.released, child.released] == [False, False]
    a.stop_using()
    assert (root.in_use, child.in_use, a.in_use) == (0, 0, 0)
    await act


@pytest.mark.invariant("I2")
async def test_parents_wait_for_a_release_that_takes_its_time() -> None:
    """Children are released before their parents, also where that is an await."""
    log: Log = []
    ready = anyio.Event()
    root = Revokable("root", release=slowly(log, "root", ready))
    root.open("child", release=slowly(log, "child", ready))
    act = root.revoke()
    await settle()
    assert log == ["child begins"]
    assert not act.done()
    ready.set()
    report = await act
    assert log == ["child begins", "child ends", "root begins", "root ends"]
    assert report.released == 2


@pytest.mark.invariant("I2")
async def test_siblings_are_released_side_by_side() -> None:
    """A slow release holds its parents, and nobody else."""
    log: Log = []
    ready = anyio.Event()
    root = Revokable("root", release=says(log, "root"))
    root.open("slow", release=slowly(log, "slow", ready))
    root.open("quick", release=says(log, "quick"))
    act = root.revoke()
    await settle()
    assert sorted(log) == ["quick", "slow begins"]
    ready.set()
    await act
    assert log[2:] == ["slow ends", "root"]


@pytest.mark.invariant("I2")
def test_closing_and_revoking_release_once() -> None:
    """Owner and world together release a thing once."""
    log: Log = []
    root = Revokable("root", release=says(log, "root"))
    child = root.open("child", release=says(log, "child"))
    child.close()
    child.revoke()
    root.revoke()
    child.close()
    assert log == ["child", "root"]


@pytest.mark.invariant("I3")
async def test_no_operation_runs_after_the_release() -> None:
    """Whoever is let in, at any time, is out when the release runs."""
    inside, found = [0], []
    node = Revokable("node", release=lambda: found.append(inside[0]))

    async def work() -> None:
        while True:
            with node.using():
                inside[0] += 1
                try:
                    await anyio.lowlevel.checkpoint()
                finally:
                    inside[0] -= 1

    async def worker() -> None:
        with pytest.raises(RevokedError):
            await work()

    async with anyio.create_task_group() as tasks:
        for _ in range(5):
            tasks.start_soon(worker)
        await settle(4)
        await node.revoke()
    assert found == [0]


@pytest.mark.invariant("I2")
def test_release_may_be_set_until_it_runs() -> None:
    """What is set too late would never run, and says so."""
    log: Log = []
    node = Revokable("node")
    node.release = says(log, "set later")
    node.revoke()
    assert log == ["set later"]
    with pytest.raises(RuntimeError, match="released"):
        node.release = says(log, "too late")


async def test_a_release_that_runs_cannot_be_replaced() -> None:
    """From the beginning of the release, and not only from its end, another would never run."""
    log: Log = []

    async def release() -> None:
        with pytest.raises(RuntimeError, match="released already"):
            node.release = says(log, "too late")
        log.append("release")

    node = Revokable("node", release=release)
    await node.revoke()
    assert log == ["release"]


# -- several parents --


@pytest.mark.invariant("I2")
@pytest.mark.parametrize("first", ["pty", "token"])
def test_whichever_parent_goes_first_takes_it(first: str) -> None:
    """A node with further parents goes with the first of them that goes, and the other one lives on."""
    log: Log = []
    parents = {name: Revokable(name, release=says(log, name)) for name in ("pty", "token")}
    pty, token = parents.values()
    terminal = pty.open("terminal", also=[token], release=says(log, "terminal"))
    assert (pty.in_use, token.in_use) == (1, 1)
    parents.pop(first).revoke(f"{first} went")
    (other,) = parents.values()
    assert log == ["terminal", first]
    assert terminal.reason == f"{first} went"
    assert (other.in_use, other.revoked) == (0, False)
    other.revoke()
    assert log == ["terminal", first, other.name]
    assert terminal.reason == f"{first} went"


@pytest.mark.invariant("I2")
def test_parents_that_share_an_ancestor_are_released_after_the_shared_child() -> None:
    """Children first holds in a tree that is none: each node once, below before above."""
    log: Log = []

    def make(parent: Revokable, name: str, *also: Revokable) -> Revokable:
        return parent.open(name, also=also, release=says(log, name))

    root = Revokable("root", release=says(log, "root"))
    left, right = make(root, "left"), make(root, "right")
    deeper = make(right, "deeper")
    shared = make(left, "shared", deeper, root)
    make(shared, "leaf")
    act = root.revoke()
    assert log == ["leaf", "shared", "deeper", "right", "left", "root"]
    assert act.report.released == 6


@pytest.mark.invariant("I1")
def test_open_is_refused_if_any_parent_is_gone() -> None:
    """open() raises for a further parent as for the first, and leaves nothing behind."""
    live, dead = Revokable("live"), Revokable("dead")
    dead.revoke()
    for parent, also in ((live, dead), (dead, live)):
        with pytest.raises(RevokedError) as caught:
            parent.open(also=[also])
        assert caught.value.node is dead
    assert live.in_use == 0


@pytest.mark.invariant("I2")
def test_the_same_parent_given_twice_is_one_parent() -> None:
    """`also` may name a parent that it has anyway."""
    log: Log = []
    pty, token = Revokable("pty"), Revokable("token")
    pty.open("terminal", also=[token, pty, token], release=says(log, "released"))
    pty.revoke()
    token.revoke()
    assert log == ["released"]
    assert (pty.released, token.released) == (True, True)


@pytest.mark.invariant("size")
@pytest.mark.timeout(10)
def test_many_ways_to_one_node_cost_no_more_than_one() -> None:
    """A sweep passes each node once, however many paths lead to it."""
    root = Revokable("root")
    row = [root.open(), root.open()]
    for _ in range(40):
        row = [row[0].open(also=row[1:]), row[0].open(also=row[1:])]
    assert root.revoke().report.released == 1 + 2 + 80


# -- close --


@pytest.mark.invariant("I2")
def test_at_close_is_only_run_by_the_owner() -> None:
    """Revocation never forces at_close: the owner's close() runs it, once, after the release."""
    log: Log = []
    root = Revokable("root")
    child = root.open("child", release=says(log, "release"), at_close=says(log, "at_close"))
    act = root.revoke()
    assert log == ["release"]
    assert (act.report.unclosed, root.unclosed, child.unclosed) == (1, 1, 1)
    child.close()
    child.close()
    assert log == ["release", "at_close"]
    assert (act.report.unclosed, root.unclosed, child.unclosed) == (0, 0, 0)


@pytest.mark.invariant("I2")
async def test_at_close_waits_for_the_release() -> None:
    """A file that its owner closes is released first, also where that takes time."""
    log: Log = []
    ready = anyio.Event()
    node = Revokable("node", release=slowly(log, "release", ready), at_close=says(log, "at_close"))
    act = node.close()
    await settle()
    assert log == ["release begins"]
    assert node.unclosed == 1
    ready.set()
    await act
    assert log == ["release begins", "release ends", "at_close"]


@pytest.mark.invariant("I2")
def test_the_parents_close_does_not_close_the_child() -> None:
    """Whoever closes the parent is not the owner of what is below."""
    log: Log = []
    root = Revokable("root", at_close=says(log, "root"))
    child = root.open("child", at_close=says(log, "child"))
    assert root.unclosed == 2
    root.close()
    assert log == ["root"]
    assert (root.closed, child.closed, root.unclosed) == (True, False, 1)


@pytest.mark.parametrize("taken", ["first", "second"])
async def test_who_joins_later_is_taken_along_by_whichever_parent_goes_first(taken: str) -> None:
    """A root with an operation and an open file joins two parents: the first that is revoked takes all of it along."""
    log: Log = []
    parents = {name: Revokable(name) for name in ("first", "second")}
    session = Revokable("session", release=says(log, "session"))
    session.open("file", release=says(log, "file"))
    async with anyio.create_task_group() as tasks:
        tasks.start_soon(operate, session, log)
        await settle()
        session.join(parents["first"])
        session.join(parents["second"], parents["first"])
        assert session.path == "first/session"
        assert [parent.children for parent in parents.values()] == [(session,)] * 2
        report = await parents[taken].revoke("gone")
    assert (report.kicked, report.released) == (1, 3)
    assert log.index("file") < log.index("session")
    assert session.reason == "gone"
    assert [parent.in_use for parent in parents.values()] == [0, 0]


def test_a_join_that_is_refused_changes_nothing() -> None:
    """Who is revoked joins nobody, nobody joins who is revoked, and none is below itself."""
    live, dead, session = Revokable("live"), Revokable("dead"), Revokable("session")
    file = session.open("file")
    dead.revoke("gone")
    with pytest.raises(RevokedError, match="'dead' was revoked: gone"):
        session.join(live, dead)
    for own in session, file:
        with pytest.raises(ValueError, match="cannot be its parent"):
            session.join(live, own)
    session.join()
    assert (session.parent, live.in_use) == (None, 0)
    with pytest.raises(RevokedError):
        dead.join(live)
    session.close()
    with pytest.raises(anyio.ClosedResourceError):
        session.join(live)
    assert live.in_use == 0


def test_unclosed_is_told_to_parents_that_are_joined_later() -> None:
    """What has an unclosed file below it counts it once in each new parent, and in what they share."""
    root = Revokable("root")
    left, right = root.open("left"), root.open("right")
    session = Revokable("session")
    file = session.open("file", at_close=lambda: None)
    session.join(left)
    session.join(right)
    assert [each.unclosed for each in (root, left, right, session)] == [1] * 4
    file.close()
    assert [each.unclosed for each in (root, left, right, session)] == [0] * 4


@pytest.mark.invariant("I2")
def test_unclosed_is_told_to_every_parent_once() -> None:
    """A file with several parents is one unclosed file in each, and in what they share; a report sums up its roots."""
    root = Revokable("root")
    left, right = root.open("left"), root.open("right")
    shared = left.open("shared", also=[right], at_close=lambda: None)
    assert (root.unclosed, left.unclosed, right.unclosed) == (1, 1, 1)
    assert revoke_all([left, right]).report.unclosed == 2
    assert root.revoke().report.unclosed == 1
    shared.close()
    assert (root.unclosed, left.unclosed, right.unclosed) == (0, 0, 0)


@pytest.mark.invariant("I2")
async def test_close_spares_the_calling_tasks_own_operations() -> None:
    """close() kicks all but the calling task's own operations, on the node and below."""
    log: Log = []
    root = Revokable("root", release=says(log, "release"))
    child = root.open("child")
    finish = anyio.Event()

    async def owner() -> None:
        with root.using(), child.using():
            root.close()
            await finish.wait()
            log.append("owner finished")

    async with anyio.create_task_group() as tasks:
        tasks.start_soon(lambda: operate(root, log, "other"))
        await settle()
        tasks.start_soon(lambda: operate(child, log, "child's"))
        await settle()
        tasks.start_soon(owner)
        await settle()
        assert log == ["other in", "child's in", *log[2:]]
        assert sorted(log[2:]) == ["child's kicked", "other closed"]
        finish.set()
    assert log[4:] == ["owner finished", "release"]


@pytest.mark.invariant("I2")
async def test_a_later_revocation_kicks_what_close_has_spared() -> None:
    """The spared operations of a closed file end with what it belongs to."""
    log: Log = []
    root = Revokable("root")
    child = root.open("child")

    async def owner() -> None:
        with child.using():
            child.close()
            await anyio.sleep_forever()

    async def reports() -> None:
        try:
            await owner()
        except RevokedError as exc:
            log.append(f"{exc.name} {exc.in_flight}")

    async with anyio.create_task_group() as tasks:
        tasks.start_soon(reports)
        await settle()
        assert log == []
        await root.revoke()
    assert log == ["root/child True"]


@pytest.mark.invariant("I2", "I7")
@pytest.mark.parametrize("kick", [None, ...], ids=["no kick", "kick"])
async def test_a_wait_of_ones_own_is_ended_by_its_function(kick: Any) -> None:
    """With the error to report, whatever the node's kick is. It is a user until it leaves; what `end` raises is told."""
    ends: list[Exception] = []

    def end(error: Exception) -> None:
        ends.append(error)
        if len(ends) == 2:
            raise ZeroDivisionError

    root = Revokable("root", kick=kick)
    waits = [Wait(root, end, idle=True), Wait(root, end)]
    for wait in waits:
        wait.enter()
        wait.task = None  # it is nobody's: whoever closes is not spared
    act = root.revoke("taken", grace=3600)
    assert len(ends) == 1
    root.close()
    assert [type(error) for error in ends] == [RevokedError, anyio.ClosedResourceError]
    assert act.report.kicked == 2
    with pytest.raises(anyio.ClosedResourceError):
        waits[0].enter()
    for wait in waits:
        assert not root.releasing
        wait.leave()
    with pytest.raises(ExceptionGroup) as caught:
        await act
    assert [type(error) for error in caught.value.exceptions] == [ZeroDivisionError]


@pytest.mark.invariant("contract")
async def test_closed_is_you_revoked_is_the_world() -> None:
    """ClosedResourceError on what its owner closed, RevokedError on what is below it and on what the world took."""
    root = Revokable("root")
    child = root.open("child")
    taken = Revokable("taken")
    root.close()
    taken.revoke()
    for node, error in ((root, anyio.ClosedResourceError), (child, RevokedError), (taken, RevokedError)):
        with pytest.raises(error) as caught, node.using():
            pass
        assert type(caught.value) is error
        with pytest.raises(error):
            node.open()
    taken.close()
    with pytest.raises(anyio.ClosedResourceError), taken.using():
        pass


@pytest.mark.invariant("contract")
async def test_closing_twice_does_no_harm() -> None:
    """close() may be called again, before and after the release."""
    log: Log = []
    node = Revokable("node", release=says(log, "release"), at_close=says(log, "at_close"))
    assert node.start_using()
    acts = [node.close(), node.close()]
    node.stop_using()
    acts.append(node.close())
    for act in acts:
        await act
    assert log == ["release", "at_close"]


@pytest.mark.invariant("contract")
async def test_aclose_waits_until_it_is_released() -> None:
    """aclose() returns when the thing is gone."""
    log: Log = []
    ready = anyio.Event()
    node = Revokable("node", release=slowly(log, "release", ready))
    async with anyio.create_task_group() as tasks:

        async def close() -> None:
            await node.aclose()
            log.append("closed")

        tasks.start_soon(close)
        await settle()
        assert log == ["release begins"]
        ready.set()
    assert log == ["release begins", "release ends", "closed"]


@pytest.mark.invariant("contract", "I5")
async def test_aclose_that_is_cancelled_closes_all_the_same() -> None:
    """A cancelled scope ends the waiting of aclose(), not the closing."""
    log: Log = []
    node = Revokable("node", release=says(log, "release"))
    with anyio.CancelScope() as scope:
        scope.cancel()
        await node.aclose()
        log.append("not reached")
    assert log == ["release"]
    assert node.closed
    assert scope.cancelled_caught


@pytest.mark.invariant("contract")
async def test_async_with_closes_at_its_end() -> None:
    """Every Revokable is an async context manager that closes itself, also when the body fails."""
    node = Revokable("node")
    with pytest.raises(KeyError):
        async with node as same:
            assert same is node
            raise KeyError
    assert (node.closed, node.released) == (True, True)


@pytest.mark.invariant("deadlock")
async def test_aclose_from_inside_ones_own_operation_says_so_and_closes() -> None:
    """aclose() in one's own operation would wait for itself: RevokeDeadlock, and it is closed all the same."""
    node = Revokable("node")
    with node.using():
        with pytest.raises(RevokeDeadlock):
            await node.aclose()
        assert node.closed
    assert node.released


# -- hooks and releases are the user's code --


@pytest.mark.invariant("I7")
@pytest.mark.parametrize("error", [ValueError("bad"), KeyboardInterrupt("bad"), SystemExit(3), GeneratorExit("bad")])
async def test_what_hooks_and_releases_raise_stops_nothing(error: BaseException) -> None:
    """Hooks, releases and at_close may raise anything: all others run, and each awaiter gets all of it, afresh."""
    log: Log = []

    def fails(line: str) -> Callable[..., None]:
        def fail(*_: object) -> None:
            log.append(line)
            raise error

        return fail

    root = Revokable("root", kick=fails("kick"), release=fails("root"), at_close=fails("at_close"))
    child = root.open("child", release=fails("child"))
    use = child.using()
    with use:
        use.on_kick(fails("on_kick"))
        use.on_kick(fails("on_kick again"))
        act = root.revoke()
        root.close()
        assert log == ["kick", "kick", "on_kick", "on_kick again"]
    assert log[4:] == ["child", "root", "at_close"]
    raised = []
    for _ in range(2):
        with pytest.raises(BaseExceptionGroup) as caught:
            await act
        raised.append(caught.value)
    assert raised[0] is not raised[1]
    assert [group.exceptions for group in raised] == [(error,) * 7] * 2
    assert error.__notes__[-3:] == [
        f"raised by a hook or the release of {path!r}" for path in ("root/child", "root", "root")
    ]


@pytest.mark.invariant("I7")
@pytest.mark.parametrize("error", [ValueError, KeyboardInterrupt, SystemExit])
async def test_what_a_slow_release_raises_is_raised_to_those_who_await(error: type[BaseException]) -> None:
    """A release that fails after a while is a failed release: its node is released and its parents go on."""
    log: Log = []

    async def release() -> None:
        await anyio.lowlevel.checkpoint()
        raise error("bad")

    root = Revokable("root", release=says(log, "root"))
    child = root.open("child", release=release)
    act = root.revoke()
    with pytest.raises(BaseExceptionGroup) as caught:
        await act
    assert [type(exc) for exc in caught.value.exceptions] == [error]
    assert log == ["root"]
    assert (child.released, root.released) == (True, True)


@pytest.mark.invariant("I7")
async def test_an_error_belongs_to_every_act_that_swept_the_node() -> None:
    """Each who revoked it is told, and who revoked something else is not."""
    root = Revokable("root")
    child, other = root.open("child", release=lambda: 1 / 0), root.open("other")
    assert child.start_using()
    of_child, of_other, of_root = child.revoke(), other.revoke(), root.revoke()
    child.stop_using()
    for act in (of_child, of_root):
        with pytest.raises(BaseExceptionGroup):
            await act
    assert (await of_other).errors == ()


@pytest.mark.invariant("I7", "I2")
async def test_what_at_close_raises_is_raised_to_the_closer() -> None:
    """at_close that fails after the release tells the one who closes."""
    node = Revokable("node", at_close=lambda: 1 / 0)
    act = node.revoke()
    await act
    with pytest.raises(BaseExceptionGroup) as caught:
        await node.close()
    assert [type(exc) for exc in caught.value.exceptions] == [ZeroDivisionError]
    assert (await act).errors == (), "the revocation was complete, and had not failed"


@pytest.mark.invariant("I2", "I4")
async def test_a_release_that_the_hook_of_its_node_has_begun_is_waited_for() -> None:
    """The hook ends the grace: what has come there before it finds that the release runs, and leaves it alone."""
    log: Log = []
    ready = anyio.Event()
    node = Revokable("node", kick=lambda node: node.revoke(), release=slowly(log, "release", ready))
    act = node.revoke(grace=3600)
    await settle()
    assert (log, act.done()) == (["release begins"], False)
    ready.set()
    await act
    assert log == ["release begins", "release ends"]


@pytest.mark.invariant("I2")
async def test_a_release_may_return_anything() -> None:
    """What is no awaitable is not awaited."""
    assert (await Revokable("node", release=lambda: 3).revoke()).errors == ()


def test_a_release_is_a_function() -> None:
    """Else nobody would know before it is too late."""
    with pytest.raises(TypeError, match="give a function without arguments"):
        Revokable("node", release=3)  # type: ignore[arg-type]


@pytest.mark.invariant("I7")
async def test_what_at_close_raises_is_logged_where_nobody_awaits_the_close(caplog: pytest.LogCaptureFixture) -> None:
    """Also where there was nothing left to release."""
    node = Revokable("node", at_close=lambda: 1 / 0)
    await node.revoke()
    node.close()
    await settle()
    assert [record.name for record in caplog.records] == ["asyncrevoke"]


@pytest.mark.invariant("I7")
async def test_hooks_and_releases_may_call_anything() -> None:
    """From inside a hook or a release every method of the tree works."""
    log: Log = []

    def everything(node: Revokable, line: str) -> None:
        log.append(line)
        node.revoke("again")
        root.revoke("again")
        sibling.close()
        for each in (root, node, sibling):
            assert not each.start_using()
            with pytest.raises((RevokedError, anyio.ClosedResourceError)):
                each.open()
            each.users()
        act.append(root.revoke())
        act[-1].stragglers()

    act = [Revokable().revoke()]
    root = Revokable("root", kick=lambda node: everything(node, f"kick {node.name}"))
    root.release = lambda: everything(root, "release root")
    child = root.open("child", release=lambda: everything(child, "release child"), at_close=says(log, "never"))
    sibling = root.open("sibling", release=lambda: everything(sibling, "release sibling"))
    with child.using() as use:
        use.on_kick(lambda: everything(child, "on_kick"))
        first = root.revoke("first")
    report = await first
    assert report.errors == ()
    for each in act:
        await each
    assert sorted(log) == sorted(
        [*(f"kick {name}" for name in ("root", "child", "sibling")), "on_kick"]
        + [f"release {name}" for name in ("child", "sibling", "root")]
    )
    assert log[-2:] == ["release child", "release root"]
    assert (root.reason, root.released, child.released, sibling.released) == ("first", True, True, True)


@pytest.mark.invariant("I7")
async def test_a_release_that_opens_elsewhere_is_none_of_ours() -> None:
    """A release may open and use what is live."""
    log: Log = []
    live = Revokable("live")

    def release() -> None:
        with live.using():
            log.append(live.open("new").path)

    await Revokable("node", release=release).revoke()
    assert log == ["live/new"]


@pytest.mark.invariant("I7")
def test_a_hook_that_closes_a_sibling_does_not_disturb_the_sweep() -> None:
    """Hooks run over snapshots: who is gone by the time is passed over, and nobody twice."""
    log: Log = []

    def kick(node: Revokable) -> None:
        log.append(f"kick {node.name}")
        if node is children[0]:
            for child in children[1:]:
                child.revoke()

    root = Revokable("root", kick=kick, release=says(log, "release root"))
    children = [root.open(name, release=says(log, f"release {name}")) for name in "abc"]
    root.revoke()
    assert log == [
        "kick root",
        "kick a",
        *("kick b", "release b", "kick c", "release c"),
        *("release a", "release root"),
    ]


@pytest.mark.invariant("I7")
async def test_a_hook_that_lets_users_leave_does_not_disturb_the_sweep() -> None:
    """A node whose hook empties it is released once, as if its users had left by themselves."""
    log: Log = []

    def kick(node: Revokable) -> None:
        log.append(f"kick {node.name}")
        node.stop_using()

    root = Revokable("root", kick=kick, release=says(log, "release root"))
    children = [root.open(name, release=says(log, f"release {name}")) for name in "ab"]
    for node in (root, *children):
        assert node.start_using()
    await root.revoke()
    assert log == ["kick root", "kick a", "release a", "kick b", "release b", "release root"]


@pytest.mark.invariant("I7")
async def test_revocations_may_come_while_slices_are_pending(monkeypatch: pytest.MonkeyPatch) -> None:
    """A second act on what the first has not reached yet kicks and releases it, once."""
    monkeypatch.setattr(_revokable, "SLICE", 2)
    log: Log = []
    root = Revokable("root", kick=lambda node: log.append(f"kick {node.name}"), release=says(log, "release root"))
    children = [root.open(name, release=says(log, f"release {name}")) for name in "abcdef"]
    first = root.revoke()
    assert log == ["kick root", "kick a"]
    second = children[5].revoke()
    assert log == ["kick root", "kick a", "kick f", "release f"]
    await second
    await first
    assert sorted(log) == sorted(
        ["kick root", "release root"] + [f"{act} {name}" for act in ("kick", "release") for name in "abcdef"]
    )
    assert log[-1] == "release root"


# -- size --


@pytest.mark.invariant("size")
async def test_a_large_revocation_is_done_in_slices() -> None:
    """256 steps inside revoke(), then 256 in a turn, kicks first; the loop goes on in between."""
    log: list[int] = []
    handles = 20_000
    kicked, released, ticks = [0], [0], [0]

    def kick(_: Revokable) -> None:
        kicked[0] += 1

    def release() -> None:
        assert kicked[0] == handles + 1, "kicks first"
        released[0] += 1

    root = Revokable("root", kick=kick)
    children = [root.open(release=release) for _ in range(handles)]

    async def tick() -> None:
        while not act.done():
            log.append(kicked[0] + released[0])
            ticks[0] += 1
            await anyio.lowlevel.checkpoint()

    async with anyio.create_task_group() as tasks:
        act = root.revoke()
        assert kicked[0] == 256
        assert all(child.revoked for child in children)
        tasks.start_soon(tick)
        report = await act
    assert (kicked[0], released[0], report.released) == (handles + 1, handles, handles + 1)
    assert ticks[0] >= 2 * handles // 256 - 2
    assert max(after - before for before, after in itertools.pairwise(log)) <= 2 * 256


@pytest.mark.invariant("size")
def test_without_a_loop_all_is_done_when_revoke_returns() -> None:
    """Where no loop turns, nothing is put off."""
    root = Revokable("root")
    children = [root.open() for _ in range(1000)]
    assert root.revoke().done()
    assert all(child.released for child in children)


@pytest.mark.invariant("size")
async def test_depth_is_not_limited_by_recursion() -> None:
    """A chain of 50,000 is opened, used, revoked, reported and let go."""
    root = node = Revokable("root")
    released = [0]

    def release() -> None:
        released[0] += 1

    for _ in range(50_000):
        node = node.open(release=release)
    with pytest.raises(RevokedError) as caught, node.using():
        act = root.revoke("deep")
        await anyio.sleep_forever()
    await act
    assert released[0] == 50_000
    assert (caught.value.name, caught.value.generation) == ("root", None)
    assert "deep" in str(caught.value)
    del node, caught
    gc.collect()


@pytest.mark.invariant("size")
async def test_revoke_all_refuses_all_then_kicks_all_then_releases() -> None:
    """revoke_all() is one act on many: no release before the last kick, no kick before the last refusal."""
    log: Log = []

    def kick(node: Revokable) -> None:
        assert all(each.revoked for each in nodes)
        log.append(f"kick {node.name}")

    nodes = [Revokable(name, kick=kick, release=says(log, f"release {name}")) for name in "abc"]
    nodes[0].open("child", release=says(log, "release child"))
    act = revoke_all(nodes, "shutdown")
    assert log == [
        *("kick a", "kick child", "kick b", "kick c"),
        *("release c", "release b", "release child", "release a"),
    ]
    assert (await act).released == 4
    assert {node.reason for node in nodes} == {"shutdown"}


@pytest.mark.invariant("size", "kick")
@pytest.mark.parametrize("order", ["root child root other", "child other root", "other child child root"])
def test_revoke_all_takes_what_is_named_twice_once(order: str) -> None:
    """A node that is below another one, or given twice, is kicked and released once, in the order of the tree."""
    log: Log = []
    root = Revokable("root", kick=lambda node: log.append(f"kick {node.name}"), release=says(log, "release root"))
    nodes = {"root": root, "child": root.open("child", release=says(log, "release child")), "other": Revokable("other")}
    act = revoke_all([nodes[name] for name in order.split()])
    assert log == ["kick root", "kick child", "release child", "release root"]
    assert act.report.released == 3


@pytest.mark.invariant("size")
def test_revoke_all_of_nothing_is_done() -> None:
    """An empty act is complete."""
    act = revoke_all(iter(()))
    assert (act.done(), act.remaining, act.report.released) == (True, 0, 0)


# -- who may call --


@pytest.mark.invariant("threads")
async def test_revoke_from_another_thread_is_refused_and_changes_nothing() -> None:
    """revoke(), close() and revoke_all() of a tree in use raise in another thread, before they change anything."""
    root = Revokable("root")
    child = root.open("child")
    log: Log = []

    def elsewhere() -> None:
        for call in (root.revoke, child.revoke, root.close, lambda: revoke_all([Revokable(), root])):
            try:
                call()
            except RuntimeError as exc:
                log.append("revoke_threadsafe" if "revoke_threadsafe" in str(exc) else str(exc))

    await anyio.to_thread.run_sync(elsewhere)
    assert log == ["revoke_threadsafe"] * 4
    assert [root.revoked, child.revoked, root.closed] == [False] * 3


@pytest.mark.invariant("threads")
def test_a_tree_that_was_built_before_its_loop_belongs_to_it(anyio_backend: tuple[str, dict[str, object]]) -> None:
    """A tree belongs to the loop its root was first used in, with all that was opened earlier."""
    root = Revokable("root")
    child = root.open("child")
    log: Log = []

    def elsewhere() -> None:
        try:
            child.revoke()
        except RuntimeError:
            log.append("refused")

    async def main() -> None:
        with root.using():
            await anyio.to_thread.run_sync(elsewhere)

    anyio.run(main, backend=anyio_backend[0], backend_options=anyio_backend[1])
    assert log == ["refused"]
    assert not child.revoked


@pytest.mark.invariant("threads")
async def test_revoke_all_with_a_node_of_another_loop_changes_nothing() -> None:
    """A call that fails changes nothing, also of those that it could have revoked."""
    mine, theirs = Revokable("mine"), Revokable("theirs")
    mine.open()
    ready, stop = threading.Event(), threading.Event()

    async def hold() -> None:
        with theirs.using():
            ready.set()
            await anyio.to_thread.run_sync(stop.wait)

    thread = threading.Thread(target=anyio.run, args=(hold,))
    thread.start()
    try:
        assert ready.wait(10)
        with pytest.raises(RuntimeError, match="theirs"):
            revoke_all([mine, theirs])
        with pytest.raises(RuntimeError, match="theirs"):
            mine.open(also=[theirs])
        assert (mine.revoked, theirs.revoked, mine.in_use, theirs.in_use) == (False, False, 1, 1)
    finally:
        stop.set()
        thread.join()


@pytest.mark.invariant("threads")
async def test_revoke_threadsafe_revokes_from_a_thread() -> None:
    """The future of revoke_threadsafe() has the report, when all is gone."""
    log: Log = []
    root = Revokable("root", release=says(log, "release"))
    async with anyio.create_task_group() as tasks:
        tasks.start_soon(operate, root, log)
        await settle()
        report = await anyio.to_thread.run_sync(lambda: revoke_threadsafe(root, "from a thread").result(10))
    assert sorted(log) == ["release", "root in", "root kicked"]
    assert (report.kicked, report.released, report.reason) == (1, 1, "from a thread")


@pytest.mark.invariant("threads", "I7")
async def test_revoke_threadsafe_hands_over_what_failed(caplog: pytest.LogCaptureFixture) -> None:
    """Its future is one who awaits: it raises what releases raised, and nothing is logged."""
    node = Revokable("node", release=lambda: 1 / 0)
    with node.using():
        pass
    future = revoke_threadsafe(node)
    await settle()
    exc = future.exception(0)
    assert isinstance(exc, BaseExceptionGroup)
    assert [type(each) for each in exc.exceptions] == [ZeroDivisionError]
    assert caplog.record_tuples == []


@pytest.mark.invariant("threads")
async def test_revoke_threadsafe_hands_over_a_wrong_call() -> None:
    """What revoke() raises is the future's, and nothing has changed."""
    node = Revokable("node")
    node.open()
    future = revoke_threadsafe(node, grace=-1)
    await settle()
    assert isinstance(future.exception(0), ValueError)
    assert not node.revoked


@pytest.mark.invariant("threads")
def test_revoke_threadsafe_without_a_loop_revokes_at_once() -> None:
    """A tree that no loop has used is revoked where it is asked for."""
    node = Revokable("node")
    assert revoke_threadsafe(node).result(0).released == 1


@pytest.mark.invariant("threads")
async def test_the_future_of_revoke_threadsafe_cannot_be_cancelled() -> None:
    """A revocation cannot be undone: the future says so before it is done, and after."""
    node = Revokable("node")
    with node.using():
        pass
    future = revoke_threadsafe(node)
    assert not future.cancel()
    await settle()
    assert future.result(0).released == 1
    assert not future.cancel()


@pytest.mark.invariant("threads")
async def test_revoke_threadsafe_from_a_finalizer() -> None:
    """A finalizer may run at any line: the revocation waits for the loop's next turn."""

    class Owner:
        def __del__(self) -> None:
            futures.append(revoke_threadsafe(node, "the owner is gone"))

    futures: list[object] = []
    node = Revokable("node")
    with node.using():
        pass
    owner = Owner()
    del owner
    gc.collect()
    assert len(futures) == 1
    assert not node.revoked
    await settle()
    assert (node.reason, node.released) == ("the owner is gone", True)


@pytest.mark.invariant("threads")
async def test_code_without_a_current_task_may_revoke_close_and_use() -> None:
    """Callbacks of the loop may do all that tasks may; their operations have no scope, and are kicked by hooks."""
    log: Log = []
    root = Revokable("root", release=says(log, "release"))
    closed = root.open("closed")
    done = anyio.Event()

    def callback() -> None:
        use = root.using()
        with use:
            use.on_kick(says(log, "on_kick"))
            closed.close()
            root.revoke()
            log.append("still inside")
            assert use.kicked
            assert not root.start_using()
        done.set()

    call_soon(callback)
    await done.wait()
    assert log == ["on_kick", "still inside", "release"]
    assert closed.released


def call_soon(call: Callable[[], None]) -> None:
    """Have it called by the loop, outside of every task where the loop knows such a place."""
    import sniffio  # noqa: PLC0415

    if sniffio.current_async_library() == "trio":
        import trio  # noqa: PLC0415

        trio.lowlevel.current_trio_token().run_sync_soon(call)
    else:
        import asyncio  # noqa: PLC0415

        asyncio.get_running_loop().call_soon(call)


@pytest.mark.invariant("threads")
def test_without_a_loop_plain_releases_run() -> None:
    """revoke() needs no loop where nothing has to wait."""
    log: Log = []
    root, _, _ = tree(log)
    act = root.revoke("no loop")
    assert act.done()
    assert log[4:] == ["release b", "release a", "release child", "release root"]


@pytest.mark.invariant("threads")
def test_without_a_loop_a_grace_is_refused() -> None:
    """A grace without a loop raises before it changes anything."""
    node = Revokable("node")
    with pytest.raises(RuntimeError, match="loop"):
        node.revoke(grace=1)
    assert not node.revoked


@pytest.mark.invariant("threads")
def test_without_a_loop_a_coroutine_release_is_refused() -> None:
    """A release that is known to need a loop raises before anything changes, wherever it is below."""

    async def release() -> None: ...

    log: Log = []
    root = Revokable("root", release=says(log, "root"))
    child = root.open("child").open("grandchild", release=release)
    for call in (root.revoke, root.close, child.close):
        with pytest.raises(RuntimeError, match="loop"):
            call()
    assert log == []
    assert [node.revoked or node.closed for node in (root, child)] == [False, False]


@pytest.mark.invariant("threads", "I7")
@pytest.mark.parametrize("used", [False, True])
def test_without_a_loop_an_awaitable_nobody_knew_of_is_a_failed_release(
    used: bool, caplog: pytest.LogCaptureFixture
) -> None:
    """Where it cannot be known before, the release has failed; the node is released, and parents go on."""

    async def later() -> None: ...

    log: Log = []
    root = Revokable("root", release=says(log, "root"))
    child = root.open("child", release=lambda: later())  # noqa: PLW0108  # hides that it is a coroutine function
    assert not used or child.start_using()
    act = root.revoke()
    if used:
        child.stop_using()
    assert log == ["root"]
    assert child.released
    assert [type(exc) for exc in act.report.errors] == [RuntimeError]
    assert [record.name for record in caplog.records] == ["asyncrevoke"]


@pytest.mark.invariant("I7")
def test_what_nobody_awaits_is_logged(caplog: pytest.LogCaptureFixture) -> None:
    """Errors of an act that nobody awaits when it completes go to the logger "asyncrevoke"."""
    Revokable("node", release=lambda: 1 / 0).revoke()
    (record,) = caplog.records
    assert (record.name, record.levelno) == ("asyncrevoke", logging.ERROR)
    assert record.exc_info is not None
    assert isinstance(record.exc_info[1], BaseExceptionGroup)
    assert "'node'" in record.getMessage()


# -- facts --


@pytest.mark.invariant("contract")
def test_facts_of_a_live_node() -> None:
    """A node tells name, parent, path and state."""
    root = Revokable("ttyUSB0")
    child = root.open("alice")
    unnamed = child.open()
    assert (child.name, child.parent, child.path) == ("alice", root, "ttyUSB0/alice")
    assert unnamed.path == "ttyUSB0/alice"
    assert (root.parent, root.generation) == (None, None)
    assert [child.revoked, child.kicked, child.releasing, child.released, child.closed] == [False] * 5


@pytest.mark.invariant("contract")
async def test_repr_shows_live_facts() -> None:
    """repr() tells the path, the state, and who is inside."""
    ready = anyio.Event()
    log: Log = []
    root = Revokable("tty")
    child = root.open("a", release=slowly(log, "a", ready))
    assert repr(root) == "<Revokable 'tty' live in_use=0 open=1>"
    with pytest.raises(RevokedError), child.using():
        assert child.start_using()
        child.revoke(grace=60)
        assert repr(child) == "<Revokable 'tty/a' revoked in_use=2 open=0>"
        child.revoke()
        assert repr(child) == "<Revokable 'tty/a' kicked in_use=2 open=0>"
        await anyio.sleep_forever()
    child.close()
    child.stop_using()
    assert repr(child) == "<Revokable 'tty/a' releasing closed in_use=0 open=0>"
    ready.set()
    await child.aclose()
    await settle()
    assert repr(child) == "<Revokable 'tty/a' released closed in_use=0 open=0>"


@pytest.mark.invariant("kick", "answers")
def test_answers_are_inherited() -> None:
    """Left out in open(), `answers` means as the parent's."""
    root = Revokable("root", answers=answers.TTY)
    assert root.open().open().answers is answers.TTY
    assert root.open(answers=answers.RFC).open().answers is answers.RFC
    assert Revokable().answers is None


# -- nothing dead is kept --


@pytest.mark.invariant("I4")
async def test_what_is_released_is_unlinked() -> None:
    """Handles that come and go leave nothing behind in a parent that lives on."""
    root = Revokable("root")
    for _ in range(10):
        handle = root.open("handle of the test", at_close=lambda: None)
        with handle.using():
            pass
        await handle.aclose()
    del handle
    assert root.in_use == 0
    assert root.unclosed == 0
    gc.collect()
    left = [each for each in gc.get_objects() if type(each) is Revokable and each.name == "handle of the test"]
    assert left == []


@pytest.mark.invariant("I4")
async def test_a_finished_revocation_keeps_no_handles() -> None:
    """A Revocation that is kept does not keep what it has released."""
    root = Revokable("root")
    for _ in range(10):
        root.open("swept by the test")
    act = root.revoke()
    await act
    gc.collect()
    assert [each for each in gc.get_objects() if type(each) is Revokable and each.name == "swept by the test"] == []
    assert act.report.released == 11


@pytest.mark.invariant("I4")
async def test_a_closed_handle_does_not_keep_the_task_that_closed_it() -> None:
    """What is over is forgotten: a handle that its user still holds holds no task."""

    class Marked:
        pass

    def marked() -> int:
        gc.collect()
        return sum(type(each) is Marked for each in gc.get_objects())

    handle = Revokable("handle")

    async def close() -> Marked:
        with handle.using():
            pass
        await handle.aclose()
        return Marked()

    import sniffio  # noqa: PLC0415

    if sniffio.current_async_library() == "trio":
        pytest.skip("a trio task keeps no result that could be looked for")
    import asyncio  # noqa: PLC0415

    await asyncio.get_running_loop().create_task(close())
    await settle()
    assert marked() == 0
    assert handle.released


@pytest.mark.invariant("I4")
async def test_nothing_is_inside_when_all_have_left() -> None:
    """The loop's book of who is inside is empty when nobody is."""
    log: Log = []
    root = Revokable("root")
    child = root.open("child", release=slowly(log, "child", anyio.Event()))
    async with anyio.create_task_group() as tasks:
        tasks.start_soon(operate, root, log)
        tasks.start_soon(operate, child, log)
        await settle()
        home = root._home
        assert home is not None
        assert len(home.inside) == 2
        child.release = slowly(log, "child", done := anyio.Event())
        root.revoke()
        await settle()
        assert len(home.inside) == 1
        done.set()
        await settle()
        assert home.inside == {}
