"""Every order of the actors, up to a number of deviations from the loop's own: a bounded-exhaustive search.

A test run searches 2 deviations, `python proof/orders.py` searches 3, in some minutes. A scenario is a small tree and its actors; what must hold is told once, in `Ledger`.
"""

import asyncio
import contextlib
import functools
import logging
from collections import Counter, defaultdict
from collections.abc import Awaitable, Callable, Coroutine, Iterator
from typing import Any

import anyio
import detangle
import pytest

from asyncrevoke import Revocation, Revokable, RevokedError, Use, revoke_all
from asyncrevoke._core import revocation as _revokable
from explorer import DEVIATIONS, Task, explore, turns

pytestmark = pytest.mark.timeout(60 * 10 ** (DEVIATIONS - 1))


class FailedError(Exception):
    """What a release or a hook raises that fails on purpose."""


async def forever() -> None:
    await asyncio.get_running_loop().create_future()


class Ledger:
    """Keeps its own books of one run, and compares: when something happens, after every step, and at the end.

    What is found inside a release or a hook is noted by `require`, as the library collects what these raise.
    """

    def __init__(self, logged: list[BaseException], *, sliced: bool = False) -> None:
        self.logged = logged  # by the library, in this run
        self.sliced = sliced  # revoke() returns before everybody is kicked
        self.broken: list[str] = []
        self.below: dict[Revokable, list[Revokable]] = {}
        self.inside: dict[Revokable, list[tuple[Task | None, Use | None]]] = defaultdict(list)
        self.openings: Counter[Revokable] = Counter()
        self.unopened: dict[Revokable, tuple[Revokable, ...]] = {}
        self.refused: set[Revokable] = set()
        self.closed: set[Revokable] = set()
        self.holding: set[Revokable] = set()  # have something to release
        self.failing: set[Revokable] = set()
        self.owed: set[Revokable] = set()  # opened with an at_close
        self.let_go: Counter[Revokable] = Counter()  # releases that began
        self.gone: set[Revokable] = set()  # releases that ended
        self.settled: Counter[Revokable] = Counter()  # at_close that ran
        self.hooked: Counter[Revokable] = Counter()
        self.unkicked: set[Revokable] = set()  # kick=None: at most by the hooks of its operations
        self.acts: dict[Revocation, set[Revokable]] = {}
        self.told: set[Revocation] = set()
        self.tasks: dict[Task, int] = {}  # with the number of cancellations from outside
        logged.clear()
        detangle.invariant(self.check)

    def require(self, holds: object, message: str) -> None:
        if not holds:
            self.broken.append(message)

    def task(self, work: Coroutine[Any, Any, object]) -> Task:
        """An actor; that an operation is refused or kicked is no error."""

        async def run() -> object:
            try:
                return await work
            except (RevokedError, anyio.ClosedResourceError) as exc:
                return exc

        task = asyncio.create_task(run(), name=repr(work).split()[2])
        task.add_done_callback(lambda _: work.close())  # it may have been cancelled before its first step
        self.tasks[task] = 0
        return task

    def cancel(self, task: Task) -> None:
        self.tasks[task] += task.cancel()

    # -- opening and releasing --

    def open(
        self,
        parent: Revokable | None,
        name: str,
        *also: Revokable,
        slow: int | asyncio.Event = 0,
        fails: bool = False,
        **options: Any,
    ) -> Revokable:
        """Open, or make a root. `owed`: with an at_close; `kick`: a function is noted before it is called."""
        node: Revokable
        if options.pop("owed", False):
            options["at_close"] = lambda: self._settled(node)
        if callable(hook := options.get("kick")):
            options["kick"] = functools.partial(self._hook, hook)
        hooked = callable(hook) or ("kick" not in options and parent in self.hooked)
        parents = () if parent is None else (parent, *also)
        node = Revokable(name, **options) if parent is None else parent.open(name, also=also, **options)
        if "at_close" in options:
            self.owed.add(node)
        if hooked:
            self.hooked[node] = 0
        if options.get("kick", ...) is None:
            self.unkicked.add(node)
        self._join(node, parents)
        self.hold(node, slow=slow, fails=fails)
        return node

    def _join(self, node: Revokable, parents: tuple[Revokable, ...]) -> None:
        self.require(not self.refused.intersection(parents), f"I1 {node.name} was opened below what refuses")
        self.below[node] = []
        for parent in parents:
            self.below[parent].append(node)

    def hold(self, node: Revokable, *, slow: int | asyncio.Event = 0, fails: bool = False) -> None:
        self.holding.add(node)
        if fails:
            self.failing.add(node)
        node.release = functools.partial(self._release, node, slow)

    def tree(self, **options: dict[str, Any]) -> tuple[Revokable, Revokable, Revokable, Revokable]:
        """Root > device > a, b."""
        root = self.open(None, "root")
        device = self.open(root, "device", **options.get("device", {}))
        a = self.open(device, "a", **options.get("a", {}))
        return root, device, a, self.open(device, "b", **options.get("b", {}))

    async def opens(self, parent: Revokable, name: str, *also: Revokable, steps: int = 1, slow: int = 0) -> None:
        """Open a device that takes a step before there is something to release, and then `steps`."""
        parents = (parent, *also)
        entry = (asyncio.current_task(), None)
        handle = None
        self.openings.update(parents)
        try:
            async with parent.opening(name, also=also) as handle:
                self.require(parent not in self.refused, f"I1 {parent.name} granted an opening")
                self.unopened[handle] = parents
                self.inside[parent].append(entry)
                try:
                    await turns(1)
                    self.hold(handle, slow=slow)
                    await turns(steps)
                finally:
                    self.inside[parent].remove(entry)
            del self.unopened[handle]
            self._join(handle, parents)
        except RevokedError:
            self.require(handle is None or handle.released, f"I4 {name} is not released when opening it has failed")
            raise
        finally:
            self.openings.subtract(parents)
            if handle in self.unopened:
                self._unopened(handle)

    def _unopened(self, handle: Revokable) -> None:
        """Its opening has failed: its parents wait for its release."""
        self.below.setdefault(handle, [])
        self.refused.add(handle)
        for parent in self.unopened[handle]:
            if handle not in self.below[parent] and not parent.released:
                self.below[parent].append(handle)

    def _release(self, node: Revokable, slow: int | asyncio.Event) -> Awaitable[None] | None:
        if node in self.unopened:
            self._unopened(node)
        self.require(not self.let_go[node], f"I2 {node.name} is released twice")
        self.require(node in self.refused, f"I2 {node.name} is released, and nobody asked")
        self.require(not self.inside[node], f"I2 {node.name} is released with users inside")
        for child in self.below[node]:
            gone = child.released and (child in self.gone or child not in self.holding)
            self.require(gone, f"I2 {node.name} is released before {child.name}")
        self.require(not self.settled[node], f"I2 at_close of {node.name} before its release")
        self._all_refuse("a release")
        self.let_go[node] += 1
        if slow:
            return self._slowly(node, slow)
        self._let_go(node)
        return None

    async def _slowly(self, node: Revokable, slow: int | asyncio.Event) -> None:
        await (turns(slow) if isinstance(slow, int) else slow.wait())
        self._let_go(node)

    def _let_go(self, node: Revokable) -> None:
        self.gone.add(node)
        if node in self.failing:
            raise FailedError(node.name)

    def _settled(self, node: Revokable) -> None:
        self.settled[node] += 1
        self.require(node in self.closed, f"I2 at_close of {node.name}, and its owner has not closed it")
        self.require(node in self.gone, f"I2 at_close of {node.name} before its release")

    def _hook(self, hook: Callable[[Revokable], object], node: Revokable) -> None:
        self.hooked[node] += 1
        self.require(self.hooked[node] == 1, f"I7 {node.name} is told of the kick twice")
        self.require(not self.let_go[node], f"I7 {node.name} is told of the kick after its release")
        self._all_refuse("a hook")
        hook(node)

    def _all_refuse(self, what: str) -> None:
        self.require(all(node.revoked for node in self.refused), f"I7 {what} runs before all refuse")

    # -- using --

    @contextlib.contextmanager
    def using(self, node: Revokable, *, idle: bool = False) -> Iterator[Use]:
        task = asyncio.current_task()
        assert task is not None
        nested = any(user is task for user, _ in self.inside[node])
        refuses = node in self.refused and (node.kicked or not nested)
        granted: Use | None = None
        try:
            with node.using(idle=idle) as granted:
                self.require(not refuses, f"I1 {node.name} granted a use")
                self.require(not self.let_go[node], f"I3 {node.name} granted a use after its release")
                self.inside[node].append((task, granted))
                try:
                    yield granted
                finally:
                    self.inside[node].remove((task, granted))
        except (RevokedError, anyio.ClosedResourceError) as exc:
            by_owner = isinstance(exc, anyio.ClosedResourceError)
            self.require(not by_owner or node in self.closed, f"I5 {node.name} says that its owner closed it")
            if granted is None:
                self.require(refuses, f"I1 {node.name} refused a use too early")
                self.require(by_owner == (node in self.closed), f"I5 {node.name} refused with a wrong error")
            else:
                self.require(granted.kicked, f"I5 {node.name} reports a kick that never came")
                self.require(not self.tasks[task], f"I5 a cancellation became {exc!r}")
                outermost = not any(user is task for users in self.inside.values() for user, _ in users)
                self.require(not outermost or not task.cancelling(), f"I5 the kick of {node.name} leaks")
            raise

    async def operate(self, node: Revokable, *, idle: bool = False, steps: int = -1) -> None:
        """One operation: it waits for the kick, or ends by itself after `steps`."""
        with self.using(node, idle=idle) as use:
            use.on_kick(
                lambda: self.require(any(use is user for _, user in self.inside[node]), "I7 hook of who has left")
            )
            await (forever() if steps < 0 else turns(steps))
        if steps >= 0:
            await turns(1)  # where a kick or a cancellation that leaked would strike

    def start_using(self, node: Revokable) -> bool:
        granted = node.start_using()
        self.require(granted == (node not in self.refused), f"I1 start_using of {node.name} reported {granted}")
        if granted:
            self.inside[node].append((None, None))
        return granted

    def stop_using(self, node: Revokable) -> None:
        self.inside[node].remove((None, None))
        node.stop_using()

    # -- taking away --

    def revoke(self, *nodes: Revokable, grace: float = 0.0) -> Revocation:
        swept = self._sweep(nodes)
        act = revoke_all(nodes, grace=grace) if len(nodes) > 1 else nodes[0].revoke(grace=grace)
        return self._acted(act, swept, None, grace)

    def close(self, node: Revokable) -> Revocation:
        self.closed.add(node)
        swept = self._sweep((node,))
        return self._acted(node.close(), swept, asyncio.current_task(), 0.0)

    def _sweep(self, nodes: tuple[Revokable, ...]) -> set[Revokable]:
        swept: set[Revokable] = set()
        unvisited = list(nodes)
        while unvisited:
            node = unvisited.pop()
            if not node.released:
                swept.add(node)
                unvisited += self.below[node]
        self.refused |= swept
        return swept

    def _acted(self, act: Revocation, swept: set[Revokable], spared: Task | None, grace: float) -> Revocation:
        self.acts[act] = swept
        here = asyncio.current_task()
        for node in swept:
            self.require(node.revoked, f"I1 revoke() has returned, and {node.name} does not refuse")
            users = self.inside[node]
            if not any(task is here for task, _ in users):
                self.require(not node.start_using(), f"I1 revoke() has returned, and {node.name} grants a use")
            for task, use in users:
                due = use is not None and not self.sliced and task is not spared and (use.idle or not grace)
                due = due and node not in self.unkicked
                self.require(not due or (use and use.kicked), f"I8 revoke() has not kicked a user of {node.name}")
                alone = sum(node in nodes for nodes in self.acts.values()) == 1
                if task is spared and use is not None and alone:
                    self.require(not use.kicked, f"I5 close() has kicked its own caller in {node.name}")
        return act

    async def completes(self, act: Revocation) -> None:
        """Await an act, and compare what it reports."""
        raised: list[str] = []
        try:
            await act
        except BaseExceptionGroup as group:
            raised = [exc.args[0] if isinstance(exc, FailedError) else repr(exc) for exc in group.exceptions]
        self.told.add(act)
        swept = self.acts[act]
        self.require(all(node.released for node in swept), f"I4 {act!r} completes early")
        self.require(sorted(raised) == sorted(node.name for node in swept & self.failing), f"I7 {act!r}: {raised}")

    async def drains(self, act: Revocation) -> None:
        await act.wait_drained()
        self.require(not any(self.inside[node] for node in self.acts[act]), f"I4 {act!r} is not drained")

    # -- what holds between any two steps, and in the end --

    def check(self) -> None:
        assert not self.broken, "; ".join(self.broken)
        for node, children in self.below.items():
            users = len(self.inside[node])
            for child in children:
                users += not child.released
                assert child.revoked or not node.revoked, f"I1 {node!r}, but not {child!r}"
            assert node.in_use == users or self.openings[node] > 0, f"I2 {node!r} has {users} users"
            if node.revoked:
                assert node in self.refused, f"I1 {node!r}, and nobody asked"
                assert not node.released or node not in self.holding or node in self.gone, f"I2 {node!r} is not let go"
                assert self.sliced or users or node.releasing or node.released, f"I2 {node!r} was left"
                if node.kicked and not self.sliced and node not in self.closed | self.unkicked:
                    assert all(use is None or use.kicked for _, use in self.inside[node]), f"I8 {node!r} kicked not all"
        for act, swept in self.acts.items():
            assert act.done() == all(node.released for node in swept), f"I4 {act!r} after {swept}"

    async def finish(self) -> None:
        await asyncio.sleep(1000)  # virtual seconds: until nothing is left that can happen
        for task, cancels in self.tasks.items():
            assert task.done(), f"I8 {task.get_name()} never ends"
            assert task.cancelled() == bool(cancels), f"I5 {task.get_name()}, cancelled {cancels} times: {task}"
            assert task.cancelling() == cancels, f"I5 {task.get_name()}, cancelled {cancels} times: {task.cancelling()}"
            if not cancels:
                task.result()
        for node in self.below:
            assert node.in_use == 0, f"I2 {node!r} at the end"
            assert node.released, f"I4 {node!r} at the end"
            assert self.let_go[node] == (node in self.holding), f"I2 {node!r} was let go {self.let_go[node]} times"
            assert self.hooked.get(node, 1) == 1, f"I7 {node!r} was told of the kick {self.hooked[node]} times"
            assert self.settled[node] == (node in self.owed & self.closed), f"I2 at_close of {node!r}"
            unclosed = len((self._all_below(node) & self.owed) - self.closed)
            assert node.unclosed == unclosed, f"I4 {node!r}, unclosed {node.unclosed}, not {unclosed}"
        for act, swept in self.acts.items():
            assert act.done(), f"I4 {act!r} at the end"
            assert not act.stragglers(), f"I8 {act.stragglers()} at the end"
            failed = {node.name for node in swept & self.failing}
            logged = any(failed == {exc.args[0] for exc in group.exceptions} for group in self.logged)  # type: ignore[attr-defined]
            assert not failed or act in self.told or logged, f"I7 nobody is told of what failed in {act!r}"

    def _all_below(self, node: Revokable) -> set[Revokable]:
        return {node}.union(*(self._all_below(child) for child in self.below[node]))


# -- the scenarios: `moment` is when the revocation comes, in steps of its task --


async def grace_then_now(ledger: Ledger, moment: int) -> None:
    """A grace, in which a reply is sent by a nested use, an idle wait is kicked at once, and a later call forces."""
    root, device, a, b = ledger.tree(b={"slow": 1})

    async def handler() -> None:
        with ledger.using(a):
            await turns(2)
            with ledger.using(a):
                await forever()

    async def revoker() -> None:
        await turns(moment)
        act = ledger.revoke(root, grace=1.0)
        ledger.cancel(ledger.task(ledger.completes(act)))
        await ledger.completes(act)

    async def escalator() -> None:
        await turns(moment + 1)
        await ledger.completes(ledger.revoke(device))
        await ledger.operate(a)

    for work in (handler(), ledger.operate(b, idle=True), ledger.operate(b, steps=2), revoker(), escalator()):
        ledger.task(work)


async def grace_runs_out(ledger: Ledger, moment: int) -> None:
    """No kick but by the hooks of the operations, some of which start between refusing and kicking."""
    drained = asyncio.Event()
    root, _, a, b = ledger.tree(a={"kick": None, "slow": drained})

    async def handler() -> None:
        with ledger.using(a):
            await turns(moment)
            with ledger.using(a) as use:
                woken = anyio.Event()
                use.on_kick(woken.set)
                await woken.wait()
                ledger.require(use.kicked, "I8 woken, but not kicked")

    async def revoker() -> None:
        await turns(1)
        act = ledger.revoke(root, grace=1.0)
        awaiter = ledger.task(ledger.completes(act))
        await ledger.drains(act)
        drained.set()
        ledger.cancel(awaiter)

    for work in (handler(), ledger.operate(b), revoker(), ledger.operate(a, steps=1), ledger.operate(b, steps=3)):
        ledger.task(work)


async def three_revocations(ledger: Ledger, moment: int) -> None:
    """Revoked from three levels, while one release is slow and others raise; each who awaits is told what failed."""
    root, device, a, b = ledger.tree(a={"slow": 2, "fails": True}, b={"fails": True}, device={"slow": 1})

    async def revoker(node: Revokable, after: int) -> None:
        await turns(after)
        act = ledger.revoke(node)
        waiters = [ledger.task(wait(act)) for wait in (ledger.completes, ledger.drains)]
        await turns(1)
        ledger.cancel(waiters[node is root])
        if node is not a:
            await ledger.completes(act)

    for work in (ledger.operate(a), ledger.operate(b, steps=2)):
        ledger.task(work)
    for node, after in ((device, moment), (root, 1), (a, 2)):
        ledger.task(revoker(node, after))


async def nobody_awaits(ledger: Ledger, moment: int) -> None:
    """All awaiters are cancelled, or there are none: the release comes all the same, and what failed is logged."""
    root, device, a, b = ledger.tree(a={"slow": 1}, b={"slow": 1, "fails": True})

    async def revoker(node: Revokable, after: int) -> None:
        await turns(after)
        await ledger.completes(ledger.revoke(node))

    revokers = [ledger.task(revoker(device, 1)), ledger.task(revoker(root, moment))]
    for work in (ledger.operate(a), ledger.operate(b, steps=1), ledger.operate(b)):
        ledger.task(work)
    await turns(2)
    for task in revokers:
        ledger.cancel(task)
    ledger.revoke(root)


async def close_races_revoke(ledger: Ledger, moment: int) -> None:
    """Owners close, one from inside an operation of its own, while all is revoked from above; the other comes late."""
    root, _, a, b = ledger.tree(a={"owed": True}, b={"owed": True, "slow": 1})

    async def owner() -> None:
        with ledger.using(a):
            try:
                await turns(moment)
            finally:
                ledger.close(a)
            await turns(1)

    async def revoker() -> None:
        await turns(1)
        act = ledger.revoke(root)
        await act.wait_closed()
        ledger.require(ledger.closed == {a, b}, "I4 wait_closed has not waited for an owner")

    async def closes_b() -> None:
        await turns(3)
        await ledger.completes(ledger.close(b))
        await ledger.completes(ledger.close(b))

    for work in (owner(), ledger.operate(a), ledger.operate(a, steps=2), ledger.operate(b), revoker(), closes_b()):
        ledger.task(work)


async def opening_races_revoke(ledger: Ledger, moment: int) -> None:
    """What is opened while a parent is revoked, or while the opener is cancelled, is committed or let go once."""
    root, device, a, _ = ledger.tree()
    other = ledger.open(None, "other")

    async def revoker(node: Revokable, after: int, grace: float) -> None:
        await turns(after)
        await ledger.completes(ledger.revoke(node, grace=grace))

    ledger.task(ledger.opens(device, "c", other, steps=2, slow=1))
    cancelled = ledger.task(ledger.opens(a, "d", steps=2, slow=1))
    ledger.task(ledger.opens(other, "e", device, steps=2))
    revokers = [ledger.task(revoker(device, moment, 1.0)), ledger.task(revoker(other, 1, 0.0))]
    await turns(2)
    ledger.cancel(cancelled)
    await asyncio.wait(revokers)
    await ledger.completes(ledger.revoke(root))


async def bare_users(ledger: Ledger, moment: int) -> None:
    """Users that are only counted, woken by the node's own hook, beside one that is kicked by its scope."""
    woken: dict[Revokable, asyncio.Event] = defaultdict(asyncio.Event)
    root, _, a, b = ledger.tree(device={"kick": lambda node: woken[node].set()}, b={"slow": 1})

    async def bare(node: Revokable, after: int) -> None:
        await turns(after)
        if ledger.start_using(node):
            await woken[node].wait()
            ledger.stop_using(node)

    async def revoker() -> None:
        await turns(moment)
        act = ledger.revoke(root, grace=moment % 2)
        ledger.task(ledger.drains(act))
        await ledger.completes(act)

    for work in (bare(a, 0), ledger.operate(a), bare(a, 1), bare(b, 2), ledger.operate(b, steps=2), revoker()):
        ledger.task(work)


async def shared_child(ledger: Ledger, moment: int) -> None:
    """A child of two trees, which are revoked together, and one of them before or after."""
    root, device, a, _ = ledger.tree()
    other = ledger.open(None, "other")
    token = ledger.open(other, "token")
    shared = ledger.open(device, "shared", token, slow=moment % 2)

    async def revoker(*nodes: Revokable, after: int, grace: float = 0.0) -> None:
        await turns(after)
        await ledger.completes(ledger.revoke(*nodes, grace=grace))

    async def opener() -> None:
        await turns(2)
        await ledger.operate(ledger.open(device, "late", token))

    for work in (ledger.operate(shared), ledger.operate(token, steps=2), ledger.operate(a), opener()):
        ledger.task(work)
    ledger.task(revoker(root, other, after=moment))
    ledger.task(revoker(token, after=1, grace=1.0))


async def sliced_sweep(ledger: Ledger, moment: int) -> None:
    """A revocation of which each step is in a turn of its own, so that all others come in between."""
    root, device, a, b = ledger.tree(a={"slow": 1})

    async def nested() -> None:
        with ledger.using(a):
            await turns(2)
            with ledger.using(a):
                await forever()

    async def revoker(node: Revokable, after: int) -> None:
        await turns(after)
        await ledger.completes(ledger.revoke(node))

    async def owner() -> None:
        await turns(2)
        await ledger.completes(ledger.close(b))

    for work in (nested(), ledger.operate(b), ledger.operate(b, steps=3), revoker(root, 1), revoker(device, moment)):
        ledger.task(work)
    ledger.task(owner())


async def stubborn_users(ledger: Ledger, moment: int) -> None:
    """Some ignore the kick, and others are cancelled at the same time: neither is taken for the other."""
    root, device, a, b = ledger.tree()

    async def ignores(node: Revokable, *, again: bool, nested: bool = False) -> None:
        try:
            with ledger.using(node), ledger.using(device):
                with contextlib.suppress(asyncio.CancelledError):
                    await forever()
                if nested:
                    await ledger.operate(node)
                if again:
                    await forever()
        except RevokedError:
            ledger.require(again, "I6 what an operation returned in spite of the kick is lost")
        else:
            ledger.require(not again, "I8 a second wait was not ended")
        await turns(1)

    async def canceller() -> None:
        await turns(moment)
        for task in cancelled:
            ledger.cancel(task)

    async def revoker() -> None:
        await turns(2)
        await ledger.completes(ledger.revoke(root))

    cancelled = [ledger.task(work) for work in (ledger.operate(a), ledger.operate(b, steps=3))]
    for work in (
        ignores(a, again=True),
        ignores(b, again=False),
        ignores(b, again=True, nested=True),
        canceller(),
        revoker(),
    ):
        ledger.task(work)


async def hooks_call_in(ledger: Ledger, moment: int) -> None:
    """Hooks and releases revoke, close and open themselves, inside of the revocation that calls them."""
    root, device, a, b = ledger.tree(device={"kick": ledger.revoke, "slow": 1}, b={"fails": True, "owed": True})

    def release() -> Awaitable[None] | None:
        ledger.close(b)
        ledger.revoke(device)
        ledger.require(not device.start_using(), "I1 a release was let in")
        return ledger._release(a, moment % 2)

    a.release = release

    async def hooked() -> None:
        with ledger.using(b) as use:
            use.on_kick(lambda: ledger.task(ledger.completes(ledger.revoke(root))))
            await forever()

    async def revoker(node: Revokable, after: int, grace: float) -> None:
        await turns(after)
        await ledger.completes(ledger.revoke(node, grace=grace))

    for work in (hooked(), ledger.operate(device, steps=2), revoker(a, 2, 0.0), revoker(root, moment, 1.0)):
        ledger.task(work)


Scenario = Callable[[Ledger, int], Coroutine[Any, Any, None]]
SCENARIOS: dict[Scenario, tuple[int, ...]] = {
    grace_then_now: (1, 3),
    grace_runs_out: (1, 3),
    three_revocations: (0, 2),
    nobody_awaits: (1, 2),
    close_races_revoke: (0, 1, 2),
    opening_races_revoke: (0, 2),
    bare_users: (0, 1, 3),
    shared_child: (0, 1),
    sliced_sweep: (2,),
    stubborn_users: (1, 2, 3),
    hooks_call_in: (0, 1),
}


@pytest.fixture
def logged() -> Iterator[list[BaseException]]:
    """The failures that the library logs, which are kept from pytest's own handlers."""
    found: list[BaseException] = []

    def note(record: logging.LogRecord) -> bool:
        assert isinstance(record.args, tuple)
        found.append(record.args[0])  # type: ignore[arg-type]
        return False

    logger = logging.getLogger("asyncrevoke")
    logger.addFilter(note)
    yield found
    logger.removeFilter(note)


Search = Callable[..., None]


@pytest.fixture
def search(logged: list[BaseException], record_property: Callable[[str, object], None]) -> Search:
    """Run a scenario in each order, with a ledger."""

    def search(scenario: Callable[[Ledger], Awaitable[None]], **options: Any) -> None:
        async def run() -> None:
            ledger = Ledger(logged, sliced=_revokable.SLICE == 1)
            await scenario(ledger)
            await ledger.finish()

        explore(run, record_property, **options)

    return search


@pytest.mark.parametrize(
    ("scenario", "moment"),
    [
        pytest.param(scenario, moment, id=f"{scenario.__name__}-{moment}")
        for scenario, moments in SCENARIOS.items()
        for moment in moments
    ],
)
def test_every_order(scenario: Scenario, moment: int, search: Search, monkeypatch: pytest.MonkeyPatch) -> None:
    """The ledger agrees in each order of the steps."""
    if scenario is sliced_sweep:
        monkeypatch.setattr(_revokable, "SLICE", 1)
    search(lambda ledger: scenario(ledger, moment))


class Source:
    """What a reader waits for: a future of its own, or an AnyIO stream."""

    def __init__(self, *, stream: bool) -> None:
        self.given: list[int] = []
        self._future: asyncio.Future[int] | None = None
        self._stream = anyio.create_memory_object_stream[int](0) if stream else None

    async def wait(self) -> int:
        if self._stream is not None:
            return await self._stream[1].receive()
        self._future = asyncio.get_running_loop().create_future()
        return await self._future

    def give(self, item: int) -> None:
        """Give it to the reader, if that waits."""
        if self._stream is not None:
            with contextlib.suppress(anyio.WouldBlock):
                self._stream[0].send_nowait(item)
                self.given.append(item)
        elif self._future is not None and not self._future.done():
            self._future.set_result(item)
            self.given.append(item)

    def close(self) -> None:
        for end in self._stream or ():
            end.close()


async def readers(ledger: Ledger) -> None:
    """Two readers are given data about the time of the kick, and also in its own step, before it or after."""
    root, _, a, b = ledger.tree(b={"slow": 1})
    sources = {a: Source(stream=False), b: Source(stream=True)}
    got: dict[Revokable, list[int]] = {a: [], b: []}

    async def reader(node: Revokable) -> None:
        while True:
            with ledger.using(node, idle=True):
                item = await sources[node].wait()
            got[node].append(item)

    async def feeder(node: Revokable) -> None:
        for item in range(2):
            await turns(1 + detangle.choice(range(3)))
            sources[node].give(item)

    async def revoker() -> None:
        await turns(1 + detangle.choice(range(4)))
        in_its_step = detangle.choice(("nothing", "before", "after"))
        if in_its_step == "before":
            sources[a].give(9)
            sources[b].give(9)
        act = ledger.revoke(root)
        if in_its_step == "after":
            sources[a].give(9)
        await ledger.completes(act)
        for node, source in sources.items():
            ledger.require(got[node] == source.given, f"I6 {node!r} was given {source.given} and got {got[node]}")
            source.close()

    for work in (reader(a), reader(b), feeder(a), feeder(b), revoker()):
        ledger.task(work)


@pytest.mark.invariant("I6")
@pytest.mark.parametrize(("reorder", "bound"), [(False, 99), (True, DEVIATIONS)], ids=["every-moment", "every-order"])
def test_what_came_before_the_kick_is_delivered(search: Search, *, reorder: bool, bound: int) -> None:
    """What a wait was given before the kick is delivered, in order, at whatever moment (judged also in FIFO order)."""
    search(readers, bound=bound, reorder=reorder)
