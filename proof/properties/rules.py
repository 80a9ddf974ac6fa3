"""The state machine: each rule does the same to asyncrevoke and to the reference, and whatever one can see is compared.

A rule may leave the loop at rest or not: with `more`, the next rule acts in the same turn, so that a cancellation, a kick
and a result meet in all ways.
"""

import asyncio
import functools
import logging
from collections import Counter
from collections.abc import Awaitable, Callable
from contextlib import ExitStack
from typing import Any, ClassVar
from unittest import mock

import anyio
from actor import Actor, outcome, said
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, precondition, rule
from reference import KICKS, RELEASES, Act, Name, Node, Person, Reference, RefusedError, Use, Watcher
from virtual_loop import VirtualLoop

from asyncrevoke import Revocation, Revokable, RevokedError, revoke_all
from asyncrevoke._core import revocation, use as operation
from asyncrevoke.lowlevel import Name as RealName

MANNERS = "plain", "plain", "shielded", "lingers"


def _one_of(choices: Callable[[Any], list[Any]]) -> st.SearchStrategy[Any]:
    return st.runner().flatmap(lambda machine: st.sampled_from(choices(machine)))


def _some(choices: Callable[[Any], list[Any]]) -> Callable[[Callable[..., None]], Callable[..., None]]:
    """Only while there is one of these."""
    return precondition(lambda machine: bool(choices(machine)))


def _nodes(machine: "Tree") -> list[Node]:
    """Most of those one meets are not released yet."""
    nodes = machine.told.nodes
    return [node for node in nodes if not node.released] + [node for node in nodes if node.released][-2:]


def _acts(machine: "Tree") -> list[Act]:
    return _waiting(machine) + machine.told.acts[-1:]


def _waiting(machine: "Tree") -> list[Act]:
    return [act for act in machine.told.acts if not act.done()]


def _names(machine: "Tree") -> list[Name]:
    return [node for node in machine.told.nodes if isinstance(node, Name)]


def _people(machine: "Tree") -> list[Person]:
    return [who for who in machine.told.people if not who.over]


def _inside(machine: "Tree") -> list[Person]:
    return [who for who in _people(machine) if who.inside and who.awaits is None]


def _free(machine: "Tree") -> list[Person]:
    return [who for who in _people(machine) if who.awaits is None and not who.lingers]


def _watchers(machine: "Tree") -> list[Watcher]:
    return [watcher for watcher in machine.told.watchers if not watcher.over]


def _releasing(machine: "Tree") -> list[Node]:
    return [node for node in machine.told.nodes if node.releasing]


nodes, acts, people = _one_of(_nodes), _one_of(_acts), _one_of(_people)
more = st.sampled_from([False, False, True])
graces = st.sampled_from([0.0, 0.0, 1.0, 2.0, 5.0])


class Logged(logging.Handler):
    """What failed, and was told to nobody else."""

    def __init__(self) -> None:
        super().__init__()
        self.errors: set[str] = set()

    def emit(self, record: logging.LogRecord) -> None:
        failures = record.exc_info[1] if record.exc_info else None
        assert isinstance(failures, BaseExceptionGroup)
        self.errors.update(map(str, failures.exceptions))


class Tree(RuleBasedStateMachine):
    """The real tree, and what is told of it.

    :ivar counted: how often each rule ran, and each thing was compared, in all machines
    """

    counted: ClassVar[Counter[str]] = Counter()

    def __init__(self) -> None:
        super().__init__()
        self.loop = VirtualLoop()
        self.told = Reference(self.loop.time())
        self.log: list[str] = []
        self.logged = Logged()
        self.real: dict[Any, Any] = {}
        self.waits: dict[Node, Any] = {}  # of releases
        self.numbers: Counter[str] = Counter()
        self.sound = True
        self._stack = ExitStack()
        self._stack.enter_context(mock.patch.object(revocation, "time", self.loop))
        self._stack.enter_context(mock.patch.object(operation, "time", self.loop))
        logger = logging.getLogger("asyncrevoke")
        logger.addHandler(self.logged)
        self._stack.callback(logger.removeHandler, self.logged)
        self._stack.enter_context(mock.patch.object(logger, "propagate", new=False))
        self.counted["examples"] += 1

    # -- how it is done to both --

    def fresh(self, kind: str) -> str:
        self.numbers[kind] += 1
        return f"{kind}{self.numbers[kind]}"

    def both(self, told: Callable[[], Any], real: Callable[[], Any], more: bool = True) -> tuple[Any, Any]:
        """Do it to both, in one turn of the loop; both are refused, or neither."""
        self.sound = False
        try:
            expected, refused = told(), ""
        except RefusedError as exc:
            expected, refused = None, str(exc)
        try:
            result, error = self.loop.at_once(real), ""
        except (RevokedError, anyio.ClosedResourceError, ValueError) as exc:
            result, error = None, said(exc)
        self.compare("refusals", error, refused)
        if not refused and isinstance(expected, (Node, Act)):
            self.real[expected] = result
        self.sound = True
        self.counted["acts"] += 1
        self.look(more)
        return expected, result

    def look(self, more: bool) -> None:
        """Compare all that one can see now; and also all that has happened, when the loop is at rest."""
        self.sound = False
        for name in _names(self):
            if name.current not in self.real:
                self.real[name.current] = self.real[name].current
        if not more:
            self.loop.settle()
            self.told.settle()
            self.compare_log()
        for node in self.told.nodes:
            self.compare_node(node, self.real[node])
        for act in self.told.acts:
            self.compare_act(act, self.real[act])
        self.compare("errors of the loop", self.loop.errors, [])
        self.sound = True

    def compare(self, what: str, real: object, told: object) -> None:
        self.counted[f"compared: {what}"] += 1
        assert real == told, f"{what}: {real!r}, and it should be {told!r}"

    def compare_log(self) -> None:
        real, told = self.log[:], self.told.log[:]
        self.log.clear()
        self.told.log.clear()
        for node in self.told.nodes:
            node.events.clear()  # whatever comes is later than these
        self.compare("events", sorted(real), sorted(line.text for line in told))
        for line in told:
            for before in line.after:
                if real.count(before) == 1 and real.count(line.text) == 1:  # those of two generations look alike
                    self.compare("order of events", real.index(before) < real.index(line.text), True)
        for act in self.told.acts:
            if act.done() and act.errors:
                self.compare("failures nobody is told of", set(act.errors) - self.told.told - self.logged.errors, set())

    def compare_node(self, node: Node, real: Revokable) -> None:
        self.compare(
            "nodes",
            {
                "path": real.path,
                "generation": real.generation,
                "revoked": real.revoked,
                "kicked": real.kicked,
                "releasing": real.releasing,
                "released": real.released,
                "closed": real.closed,
                "reason": real.reason,
                "unclosed": real.unclosed,
                "in use": real.in_use,
                "children": set(real.children),
            },
            {
                "path": node.path,
                "generation": node.generation,
                "revoked": bool(node.acts),
                "kicked": node.kicked,
                "releasing": node.releasing,
                "released": node.released,
                "closed": node.closed,
                "reason": node.acts[0].reason if node.acts else "",
                "unclosed": self.told.unclosed(node),
                "in use": len(node.uses) + node.bare + len(node.children),
                "children": {self.real[child] for child in node.children},
            },
        )

    def compare_act(self, act: Act, real: Revocation) -> None:
        report = str(real.report)
        if real.report.errors:
            head, _, tail = report.partition(" failed: ")
            report = f"{head} failed, in {tail.rpartition(', in ')[2]}"
            self.compare("errors of acts", sorted(map(str, real.report.errors)), sorted(act.errors))
        self.compare("reports", report, self.told.report(act))
        self.compare("ends of acts", (real.done(), real.remaining), (act.done(), len(act.remaining())))
        stragglers = sorted(f"{user.kind} {user.name} in {user.path}" for user in real.stragglers())
        self.compare("stragglers", stragglers, act.stragglers())

    def count(self, name: str) -> None:
        self.counted[f"rule: {name}"] += 1

    # -- rules: the tree --

    @initialize()
    def begin(self) -> None:
        for _ in range(3):
            self.comes()
        self.makes_root(release="plain", kick="cancel", owed=False)
        self.makes_root(release="slow", kick="hook", owed=False)
        self.makes_name(passing=True)

    def options(self, node: Node) -> dict[str, Any]:
        """How the real node is opened."""
        options: dict[str, Any] = {}
        if node.release != "none":
            options["release"] = functools.partial(self.release, node)
        if node.unclosed:
            options["at_close"] = lambda: self.log.append(f"at_close of {self.label(node)}")
        if node.kick != "inherited":
            hook = functools.partial(self.hook, node.kick)
            options["kick"] = {"cancel": ..., "nothing": None}.get(node.kick, hook)
        if node.kick == "cancel":
            del options["kick"]  # roots only
        return options

    def label(self, node: Node) -> str:
        real = self.real[node]
        return f"{real.path}#{real.generation}"

    def release(self, node: Node) -> Awaitable[None] | None:
        self.log.append(f"release of {self.label(node)}")
        if "slow" in node.release:
            self.waits[node] = self.loop.create_future()
            return self.slowly(node)
        if "fails" in node.release:
            raise OSError(f"release of {self.label(node)}")
        return None

    async def slowly(self, node: Node) -> None:
        await self.waits[node]
        self.log.append(f"end of the release of {self.label(node)}")
        if "fails" in node.release:
            raise OSError(f"release of {self.label(node)}")

    def hook(self, kick: str, real: Revokable) -> None:
        text = f"kick of {real.path}#{real.generation}"
        self.log.append(text)
        if "fails" in kick:
            raise OSError(text)

    @precondition(lambda machine: sum(not (node.acts or node.parents) for node in machine.told.nodes) < 4)
    @rule(
        release=st.sampled_from(RELEASES),
        kick=st.sampled_from([kick for kick in KICKS if kick != "inherited"]),
        owed=more,
    )
    def makes_root(self, release: str, kick: str, owed: bool) -> None:
        self.count("root")
        node = Node(self.fresh("root"), release=release, kick=kick, unclosed=owed)
        self.both(lambda: self.told.root(node), lambda: Revokable(node.name, **self.options(node)))

    @precondition(lambda machine: sum(not name.acts for name in _names(machine)) < 2)
    @rule(passing=st.booleans())
    def makes_name(self, passing: bool) -> None:
        self.count("name")
        node = Name(self.fresh("name"), release="plain", passing=passing)

        policy: Any = "next" if passing else "refuse"
        self.both(
            lambda: self.told.root(node),
            lambda: RealName(
                node.name,
                while_draining=policy,
                hangup=lambda _: self.log.append(f"hangup of {node.name}"),
                **self.options(node),
            ),
        )

    @rule(
        parent=nodes,
        also=st.lists(nodes, max_size=1),
        release=st.sampled_from(RELEASES),
        kick=st.sampled_from(("inherited", "inherited", "inherited", "hook", "nothing", "hook that fails")),
        owed=more,
        more=more,
    )
    def opens(self, *, parent: Node, also: list[Node], release: str, kick: str, owed: bool, more: bool) -> None:
        self.count("open, also" if also else "open")
        node = Node(self.fresh("n"), release=release, kick=kick, unclosed=owed)
        options = self.options(node)  # before it has inherited anything
        self.both(
            lambda: self.told.open((parent, *also), node),
            lambda: self.real[parent].open(node.name, also=[self.real[each] for each in also], **options),
            more,
        )

    @_some(_names)
    @rule(name=_one_of(_names), more=more)
    def reopens(self, name: Name, more: bool) -> None:
        """Opens in the current generation, or in a new one."""
        self.count("open of a generation")
        node = Node(self.fresh("n"), kick="inherited")
        self.both(lambda: self.told.open([name], node), lambda: self.real[name].open(node.name), more)

    @rule(node=nodes, parent=nodes, more=more)
    def joins(self, node: Node, parent: Node, more: bool) -> None:
        self.count("join")
        self.both(lambda: self.told.join(node, parent), lambda: self.real[node].join(self.real[parent]), more)

    # -- rules: taking away --

    @rule(node=nodes, grace=graces, more=more)
    def revokes(self, node: Node, grace: float, more: bool) -> None:
        self.count("revoke with grace" if grace else "revoke")
        reason = self.fresh("reason")
        self.both(
            lambda: self.told.revoke((node,), reason, grace), lambda: self.real[node].revoke(reason, grace=grace), more
        )

    @rule(node=nodes, other=nodes, grace=graces, more=more)
    def revokes_two(self, node: Node, other: Node, grace: float, more: bool) -> None:
        if node is other:
            return
        self.count("revoke of two")
        self.both(
            lambda: self.told.revoke((node, other), "", grace),
            lambda: revoke_all([self.real[node], self.real[other]], grace=grace),
            more,
        )

    @_some(_waiting)
    @rule(act=_one_of(_waiting), grace=graces, more=more)
    def revokes_again(self, act: Act, grace: float, more: bool) -> None:
        """The same roots, while the first act waits: what is hastened is the end of its grace."""
        self.count("revoke again")
        self.both(
            lambda: self.told.revoke(act.roots, "", grace),
            lambda: revoke_all([self.real[root] for root in act.roots], grace=grace),
            more,
        )

    @_some(_names)
    @rule(name=_one_of(_names), grace=graces, more=more)
    def hangs_up(self, name: Name, grace: float, more: bool) -> None:
        self.count("hangup")
        self.both(
            lambda: self.told.revoke((name.current,), "hung up", grace),
            lambda: self.real[name].hangup(grace=grace),
            more,
        )

    @rule(node=nodes, more=more)
    def closes(self, node: Node, more: bool) -> None:
        self.count("close")
        self.both(lambda: self.told.close(node), self.real[node].close, more)

    @_some(_releasing)
    @rule(node=_one_of(_releasing))
    def release_ends(self, node: Node) -> None:
        self.look(more=False)  # its task has begun
        if node.releasing:
            self.count("end of a release")
            self.ends_release(node)

    def ends_release(self, node: Node) -> None:
        self.both(lambda: self.told.release_ends(node), lambda: self.waits[node].set_result(None), more=False)

    @rule(seconds=st.sampled_from([0.5, 1.0, 3.0]))
    def time_passes(self, seconds: float) -> None:
        self.count("time")
        self.look(more=False)
        self.sound = False
        self.loop.pass_time(seconds)
        self.told.pass_time(seconds)
        self.look(more=False)

    # -- rules: using --

    def comes(self) -> None:
        """A person, in place of one that was cancelled."""
        who = Person(self.fresh("person"))
        self.told.people.append(who)
        self.real[who] = self.loop.at_once(lambda: Actor(who.name, self.log.append))
        self.look(more=False)

    def command(self, who: Person, *command: object, do: Any, more: bool) -> None:
        self.both(lambda: self.told.command(who, *command), lambda: self.real[who].tell(do), more=True)
        self.look(more)

    @_some(_free)
    @rule(
        who=_one_of(_free),
        node=nodes,
        idle=st.booleans(),
        manner=st.sampled_from(MANNERS),
        hooked=more,
        catches=st.booleans(),
        more=more,
    )
    def uses(
        self, *, who: Person, node: Node, idle: bool, manner: str, hooked: bool, catches: bool, more: bool
    ) -> None:
        self.count("nested use" if who.inside else "idle use" if idle else "use")
        told = Use(self.fresh("use"), node, who, idle, manner, hooked, catches)
        self.command(who, "use", told, do=lambda actor: actor.use(self.real[node], told), more=more)

    @_some(_inside)
    @rule(who=_one_of(_inside), idle=st.booleans(), more=more)
    def uses_again(self, who: Person, idle: bool, more: bool) -> None:
        """Nested in an operation on the same node."""
        if who.lingers:
            return
        self.count("use again")
        told = Use(self.fresh("use"), who.inside[0].node, who, idle)
        self.command(who, "use", told, do=lambda actor: actor.use(self.real[told.node], told), more=more)

    @_some(_inside)
    @rule(who=_one_of(_inside), more=more)
    def leaves(self, who: Person, more: bool) -> None:
        self.count("leave")
        self.command(who, "leave", do=None, more=more)

    @_some(_free)
    @rule(who=_one_of(_free), node=nodes)
    def closes_from_inside(self, who: Person, node: Node) -> None:
        self.look(more=False)
        if who not in _free(self):
            return
        self.count("close by a person")
        acts: list[Revocation] = []

        async def close(_: Actor) -> None:
            acts.append(self.real[node].close())

        self.sound = False
        known = len(self.told.acts)
        self.told.command(who, "close", node)
        self.loop.at_once(lambda: self.real[who].tell(close))
        self.loop.settle()
        self.told.settle()
        self.compare("acts", len(acts), len(self.told.acts) - known)
        self.real.update(zip(self.told.acts[known:], acts, strict=True))
        self.look(more=False)

    @_some(_free)
    @_some(_acts)
    @rule(who=_one_of(_free), act=acts)
    def awaits(self, who: Person, act: Act) -> None:
        self.look(more=False)
        if who in _free(self):
            self.count("await by a person")
            self.command(who, "await", act, do=lambda actor: actor.awaits(self.real[act]), more=False)

    @precondition(lambda machine: len(_free(machine)) > 1)
    @rule(first=nodes, second=nodes)
    def wait_for_each_other(self, first: Node, second: Node) -> None:
        """Each is inside of a node, and awaits that the other's is released. So the later one is refused."""
        one, other = _free(self)[:2]
        self.count("wait for each other")
        for who, node in ((one, first), (other, second)):
            self.uses(who=who, node=node, idle=False, manner="shielded", hooked=False, catches=True, more=False)
        known = len(self.told.acts)
        for node in first, second:
            self.revokes(node, grace=0.0, more=False)
        for who, act in zip((other, one), self.told.acts[known:], strict=True):
            self.awaits(who, act)

    @_some(_acts)
    @rule(act=acts, until=st.sampled_from(["done", "drained", "closed"]), more=more)
    def watches(self, act: Act, until: str, more: bool) -> None:
        self.count("await")
        watcher = Watcher(self.fresh("watcher"), act, until)
        real: Revocation = self.real[act]

        async def watch() -> None:
            if until == "done":
                told = await outcome(real)
            else:
                await (real.wait_drained() if until == "drained" else real.wait_closed())
                told = until
            self.log.append(f"{watcher.name}: {told}")

        def begin() -> None:
            task = self.real[watcher] = self.loop.create_task(watch())
            task.add_done_callback(
                lambda task: self.log.append(f"{watcher.name} cancelled") if task.cancelled() else task.result()
            )

        self.both(lambda: self.told.watchers.append(watcher), begin, more)

    @_some(_watchers)
    @rule(watcher=_one_of(_watchers), more=more)
    def watcher_is_cancelled(self, watcher: Watcher, more: bool) -> None:
        self.count("cancelled await")

        def cancel() -> None:
            watcher.cancelled = True

        self.both(cancel, lambda: self.real[watcher].cancel() and None, more)

    @_some(_people)
    @rule(who=people, scope=st.booleans(), more=more)
    def is_cancelled(self, who: Person, scope: bool, more: bool) -> None:
        how = "by a scope" if scope else "natively"
        if who.cancelled and (scope or who.cancelled == "by a scope"):
            return  # they are of one kind
        self.count(f"cancelled {how}")
        cancel = self.real[who].scope.cancel if scope else self.real[who].task.cancel
        self.both(lambda: self.told.cancel(who, how), lambda: cancel() and None, more)
        if not more:
            self.replace()

    def replace(self) -> None:
        while len(_people(self)) < 3:
            self.comes()

    @rule(node=nodes, more=more)
    def starts_using(self, node: Node, more: bool) -> None:
        self.count("start_using")
        expected, granted = self.both(lambda: self.told.start_using(node), self.real[node].start_using, more=True)
        self.compare("grants", granted, expected)
        self.look(more)

    @_some(lambda machine: [node for node in machine.told.nodes if node.bare])
    @rule(node=_one_of(lambda machine: [node for node in machine.told.nodes if node.bare]), more=more)
    def stops_using(self, node: Node, more: bool) -> None:
        self.count("stop_using")
        self.both(lambda: self.told.stop_using(node), self.real[node].stop_using, more)

    # -- the end --

    def teardown(self) -> None:
        with self._stack:
            try:
                if self.sound:
                    self.finish()
            finally:
                for task in asyncio.all_tasks(self.loop):
                    task.cancel()
                self.loop.run_until_complete(self.loop.shutdown_asyncgens())
                self.loop.close()
        super().teardown()

    def finish(self) -> None:
        """Whoever is inside leaves, and all is revoked: then everything ends (I4, I8)."""
        self.look(more=False)
        for node in self.told.nodes:
            if not node.acts:
                self.revokes(node, grace=0.0, more=False)
        for node in self.told.nodes:
            while node.bare:
                self.stops_using(node, more=False)
        while self.somebody_goes():
            pass
        for act in self.told.acts:
            self.compare("I4", self.real[act].done(), True)
        for node in self.told.nodes:
            self.compare("I2", self.real[node].released, True)

    def somebody_goes(self) -> bool:
        """Whether there was anybody, or a release that had not ended."""
        if people := _inside(self):
            self.command(people[0], "leave", do=None, more=False)
        elif nodes := _releasing(self):
            self.ends_release(nodes[0])
        else:
            return False
        return True
