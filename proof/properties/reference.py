"""What the protocol promises, as plainly as one can say it: a tree of nodes, people inside of it, and a clock.

Nothing here waits, and nothing is shared with asyncrevoke: this is read beside the invariants on top of
src/asyncrevoke/_core/revokable.py. Each line of the log is an event that the real tree must show, too.
"""

from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from typing import Any

RELEASES = "none", "plain", "fails", "slow", "slow and fails"
KICKS = "inherited", "cancel", "nothing", "hook", "hook that fails"


class RefusedError(Exception):
    """What the real call must raise, too, word for word."""


@dataclass(frozen=True)
class Line:
    """An event.

    :ivar after: events that must not come later, where the same step has them
    """

    text: str
    after: tuple[str, ...] = ()


class Named:
    """Shown by its name in what Hypothesis prints."""

    name: str

    def _repr_pretty_(self, printer: Any, _cycle: bool) -> None:
        printer.text(self.name)


@dataclass(eq=False, repr=False)
class Node(Named):
    name: str
    parents: tuple["Node", ...] = ()
    release: str = "none"
    kick: str = "cancel"
    unclosed: bool = False  # it has an at_close, which has not run
    number: int | None = None  # of a generation
    acts: list["Act"] = field(default_factory=list)
    uses: list["Use"] = field(default_factory=list)
    bare: int = 0
    children: list["Node"] = field(default_factory=list)
    kicked: bool = False
    releasing: bool = False
    released: bool = False
    closed: bool = False
    events: list[str] = field(default_factory=list)  # that come before its release, since the last look
    was: str = ""  # its path when its release began

    @property
    def path(self) -> str:
        above = self.parents[0].path if self.parents else ""
        return "/".join(name for name in (above, self.name) if name)

    @property
    def generation(self) -> int | None:
        return self.parents[0].generation if self.number is None and self.parents else self.number

    @property
    def label(self) -> str:
        """Its path is not unique where there are generations."""
        return f"{self.path}#{self.generation}"

    def above(self) -> Iterator["Node"]:
        yield self
        for parent in self.parents:
            yield from parent.above()

    @property
    def busy(self) -> bool:
        return bool(self.uses or self.bare)

    def refusal(self) -> str:
        if self.closed:
            return f"ClosedResourceError: {self.path!r} was closed by its owner"
        return self.revoked_error(in_flight=False)

    def error(self, act: "Act") -> str:
        """Of an operation that the act kicked."""
        if act.closer is self:
            return f"ClosedResourceError: {self.path!r} was closed by its owner during this operation"
        return self.revoked_error(in_flight=True)

    def revoked_error(self, *, in_flight: bool) -> str:
        number = "" if self.generation is None else f" (generation {self.generation})"
        why = f": {self.acts[0].reason}" if self.acts[0].reason else ""
        return f"{'kicked' if in_flight else 'refused'}: {self.path!r}{number} was revoked{why}"


@dataclass(eq=False, repr=False)
class Name(Node):
    """A node with generations.

    :ivar passing: whether the next generation begins while the old one drains
    """

    passing: bool = True
    current: Node = field(init=False)

    def __post_init__(self) -> None:
        self.current = Node(self.name, number=0, released=True, kicked=True)
        self.current.acts.append(Act("", (self.current,), ""))


@dataclass(eq=False, repr=False)
class Act(Named):
    """One call of revoke, close or hangup."""

    name: str
    roots: tuple[Node, ...]
    reason: str
    closer: Node | None = None
    began: float = 0.0
    ended: float | None = None
    nodes: list[Node] = field(default_factory=list)  # that it waits for or has waited for, parents first
    kicked: int = 0
    released: int = 0
    errors: list[str] = field(default_factory=list)
    paths: str = ""  # of the roots, as they were when it was called

    def remaining(self) -> list[Node]:
        return [node for node in self.nodes if not node.released]

    def done(self) -> bool:
        return not self.remaining()

    def drained(self) -> bool:
        return not any(node.busy for node in self.nodes)

    def stragglers(self) -> list[str]:
        found = []
        for node in self.remaining():
            found += [f"operation {use.who.name} in {node.path}" for use in node.uses]
            found += [f"operation  in {node.path}"] * node.bare
            found += [f"release release of {node.was!r} in {node.path}"] * node.releasing
        return sorted(found)


@dataclass(eq=False, repr=False)
class Use(Named):
    """One operation.

    :ivar manner: "plain"; "shielded" from kicks; or "lingers": once it is ended, it stays until it is told to go
    :ivar catches: its own error; else that flies on, to the operation around it
    """

    name: str
    node: Node
    who: "Person"
    idle: bool = False
    manner: str = "plain"
    hooked: bool = False
    catches: bool = True
    act: Act | None = None  # that kicked it
    cancelled: bool = False
    lingered: bool = False


@dataclass(eq=False, repr=False)
class Person(Named):
    """A task. It is inside of operations, outermost first, and waits in the innermost.

    :ivar first: what came first to its wait: "" for nothing yet, "result" or "end"
    :ivar cancelled: from outside: "" for not, "natively" or "by a scope"
    """

    name: str
    inside: list[Use] = field(default_factory=list)
    command: tuple[object, ...] | None = None
    awaits: Act | None = None
    lingers: bool = False
    first: str = ""
    cancelled: str = ""
    over: bool = False

    def ending(self) -> int | None:
        """The outermost operation that ends now, -1 for all of them, None for none."""
        if self.cancelled == "natively":
            return -1
        shields = [at for at, use in enumerate(self.inside) if use.manner == "shielded"]
        open_from = shields[-1] + 1 if shields else -1  # what is further out reaches nobody inside
        if self.cancelled and open_from == -1:
            return -1
        return next((at for at, use in enumerate(self.inside) if use.cancelled and at >= open_from), None)


@dataclass(eq=False, repr=False)
class Watcher(Named):
    """A task that waits for an act, outside of all operations."""

    name: str
    act: Act
    until: str  # "done", "drained" or "closed"
    over: bool = False
    cancelled: bool = False


def below(roots: Iterable[Node]) -> list[Node]:
    """These and all that is open below, each once: parents before children, and in order of opening."""
    found: dict[Node, None] = {}

    def visit(node: Node) -> None:
        if node not in found:
            for child in reversed(node.children):
                visit(child)
            found[node] = None

    for root in reversed(tuple(roots)):
        visit(root)
    return list(reversed(found))


class Reference:
    """All of it.

    :ivar log: what has happened since the last look
    """

    def __init__(self, now: float) -> None:
        self.now = now
        self.nodes: list[Node] = []
        self.acts: list[Act] = []
        self.people: list[Person] = []
        self.watchers: list[Watcher] = []
        self.deadlines: list[tuple[float, Act]] = []
        self.log: list[Line] = []
        self.told: set[str] = set()  # failures, to somebody who awaited an act

    def say(self, text: str, *after: str) -> None:
        self.log.append(Line(text, after))

    # -- opening --

    def root(self, node: Node) -> Node:
        self.nodes.append(node)
        return node

    def open(self, parents: Iterable[Node], child: Node) -> Node:
        """Open below all of these, or raise what the first that refuses says."""
        first, *further = parents
        if isinstance(first, Name):
            self.admit([first])
            first = self.generation(first)
        parents = tuple(dict.fromkeys((first, *further)))
        self.admit(parents)
        if child.kick == "inherited":
            child.kick = first.kick
        self.link(child, parents)
        self.nodes.append(child)
        return child

    def join(self, node: Node, parent: Node) -> None:
        self.admit([node])
        if parent in below([node]):
            raise RefusedError(f"ValueError: {parent.path!r} is below {node.path!r}: it cannot be its parent, too")
        self.admit([parent])
        if parent not in node.parents:
            self.link(node, (parent,))

    def admit(self, nodes: Iterable[Node]) -> None:
        for node in nodes:
            if node.acts:
                raise RefusedError(node.refusal())

    def link(self, child: Node, parents: tuple[Node, ...]) -> None:
        child.parents += parents
        for parent in parents:
            parent.children.append(child)

    def generation(self, name: Name) -> Node:
        """The one that is opened in."""
        if name.current.acts:
            if not (name.current.released or name.passing):
                raise RefusedError(name.current.refusal())
            name.current = Node("", release="hangup", kick=name.kick, number=(name.current.number or 0) + 1)
            self.link(name.current, (name,))
            self.nodes.append(name.current)
        return name.current

    def unclosed(self, node: Node) -> int:
        return sum(each.unclosed and node in set(each.above()) for each in self.nodes)

    # -- taking away --

    def close(self, node: Node, spare: Person | None = None) -> Act:
        node.closed = True
        if node.released:
            self.closed(node)
        return self.revoke((node,), "closed by its owner", closer=node, spare=spare)

    def revoke(
        self,
        roots: tuple[Node, ...],
        reason: str,
        grace: float = 0.0,
        closer: Node | None = None,
        spare: Person | None = None,
    ) -> Act:
        """Refuse, kick, and release what nobody is inside of."""
        act = Act(f"act{len(self.acts) + 1}", roots, reason, closer, self.now)
        act.paths = ", ".join(root.path for root in roots)
        act.nodes = [node for node in below(roots) if not node.released]
        for node in act.nodes:
            node.acts.append(act)
        self.acts.append(act)
        self.kick(act, idle_only=grace > 0, spare=spare)
        if grace:
            self.deadlines.append((self.now + grace, act))
        for node in reversed(act.nodes):
            self.left(node)
        self.ended(act)
        return act

    def kick(self, act: Act, *, idle_only: bool = False, spare: Person | None = None) -> None:
        """End the waits, parents before children."""
        hooks: dict[Node, str] = {}
        for node in act.remaining():
            if node.releasing:
                continue
            if not (node.kicked or idle_only):
                hooks[node] = self.kicked(node, *(hooks[parent] for parent in node.parents if parent in hooks))
            for use in node.uses:
                if use.act is None and (use.idle or not idle_only) and use.who is not spare:
                    self.end(use, act)

    def kicked(self, node: Node, *after: str) -> str:
        """The kick has come to a node: whatever is hooked to it runs, once."""
        node.kicked = True
        text = f"kick of {node.label}"
        if "hook" in node.kick:
            self.say(text, *after)
            node.events.append(text)
            if "fails" in node.kick:
                self.failed(node, text)
        return text

    def end(self, use: Use, act: Act) -> None:
        node = use.node
        if node.kick == "nothing" and not use.hooked:
            return
        use.act = act
        for each in node.acts:
            each.kicked += 1
        if use.hooked:
            self.say(f"{use.name} woken")
        if node.kick != "nothing":
            use.cancelled = True
            self.came(use.who)

    def came(self, who: Person) -> None:
        """Something that ends a wait: only what comes first counts, but for a cancellation of the task itself (I5, I6)."""
        if not who.first and not who.lingers and who.ending() is not None:
            who.first = "end"

    def failed(self, node: Node, text: str) -> None:
        for act in node.acts:
            if act.ended is None:
                act.errors.append(text)

    def left(self, node: Node) -> None:
        """Somebody has left. The last one turns off the light (I2, I3)."""
        if not node.acts or node.busy or node.children or node.releasing or node.released:
            return
        if not node.kicked:
            self.kicked(node)
        node.releasing, node.was = True, node.path
        text = f"release of {node.label}"
        if node.release == "hangup":
            text = f"hangup of {node.parents[0].name}"
        if node.release != "none":
            self.say(text, *node.events)
        if "slow" not in node.release:
            self.released(node, text)

    def release_ends(self, node: Node) -> None:
        """A slow one."""
        text = f"end of the release of {node.label}"
        self.say(text)
        self.released(node, text)

    def released(self, node: Node, text: str) -> None:
        if "fails" in node.release:
            self.failed(node, f"release of {node.label}")
        node.releasing, node.released = False, True
        if node.closed:
            self.closed(node)
        for act in node.acts:
            act.released += 1
            self.ended(act)
        for parent in node.parents:
            parent.children.remove(node)
            parent.events += [text, *node.events]
        for parent in node.parents:
            self.left(parent)

    def closed(self, node: Node) -> None:
        if node.unclosed:
            self.say(f"at_close of {node.label}", f"release of {node.label}")
            node.unclosed = False

    def ended(self, act: Act) -> None:
        if act.done() and act.ended is None:
            act.ended = self.now
            for who in self.people:
                if who.awaits is act and not who.first:
                    who.first = "result"

    def report(self, act: Act) -> str:
        why = f" ({act.reason})" if act.reason else ""
        unclosed = sum(self.unclosed(root) for root in act.roots)
        parts = [f"{act.kicked} kicked", f"{act.released} released"]
        parts += [f"{len(act.remaining())} remaining"] if not act.done() else []
        parts += [f"{unclosed} unclosed"] if unclosed else []
        parts += [f"{len(act.errors)} failed"] if act.errors else []
        seconds = (self.now if act.ended is None else act.ended) - act.began
        return f"{act.paths!r} revoked{why}: {', '.join(parts)}, in {seconds:.3f} s"

    def outcome(self, act: Act) -> str:
        """What awaiting it gives."""
        self.told.update(act.errors)
        return f"failed: {sorted(act.errors)}" if act.errors else self.report(act)

    # -- people --

    def start_using(self, node: Node) -> bool:
        node.bare += not node.acts
        return not node.acts

    def stop_using(self, node: Node) -> None:
        node.bare -= 1
        self.left(node)

    def command(self, who: Person, *command: object) -> bool:
        """Give the result that it waits for. It reports whether that comes first."""
        if who.first:
            return False
        who.first, who.command = "result", command
        return True

    def cancel(self, who: Person, how: str) -> None:
        who.cancelled = how
        if how == "natively":
            who.first = "end"
        self.came(who)

    def settle(self) -> None:
        """Everybody goes on until all wait again."""
        moved = True
        while moved:
            moved = sum(self.go_on(who) for who in self.people if not who.over) > 0
            moved |= sum(self.wakes(watcher) for watcher in self.watchers if not watcher.over) > 0

    def wakes(self, watcher: Watcher) -> bool:
        act = watcher.act
        ready = {
            "done": act.done(),
            "drained": act.drained(),
            "closed": act.done() and not any(self.unclosed(root) for root in act.roots),
        }[watcher.until]
        watcher.over = watcher.cancelled or ready
        if watcher.cancelled:
            self.say(f"{watcher.name} cancelled")
        elif ready:
            self.say(f"{watcher.name}: {self.outcome(act) if watcher.until == 'done' else watcher.until}")
        return watcher.over

    def go_on(self, who: Person) -> bool:
        """One step of a task, if there is any."""
        if who.first == "result":
            command, who.command, who.first = who.command, None, ""
            if who.awaits is not None:
                self.has_awaited(who, who.awaits)
            elif who.lingers:
                self.unwind(who)
            elif command:
                self.obey(who, command)
            return True
        if who.ending() is None or (who.lingers and not who.first):
            return False
        self.unwind(who)
        return True

    def has_awaited(self, who: Person, act: Act) -> None:
        who.awaits = None
        self.say(f"{who.name}: {self.outcome(act)}")

    def obey(self, who: Person, command: tuple[object, ...]) -> None:
        match command:
            case ("use", Use() as use):
                self.enter(who, use)
            case ("leave",):
                self.exit(who, who.inside[-1])
            case ("close", Node() as node):
                self.close(node, spare=who)
            case ("await", Act() as act):
                if not act.done() and self.deadlock(who, act):
                    self.say(f"{who.name}: RevokeDeadlock")
                elif not act.done():
                    who.awaits = act
                elif who.ending() is None:  # else the kick comes first, in the turn that each wait takes
                    self.has_awaited(who, act)

    def enter(self, who: Person, use: Use) -> None:
        node = use.node
        nested = any(outer.node is node for outer in who.inside)
        if node.acts and (node.kicked or not nested):  # I1
            self.say(f"{use.name} {node.refusal()}")
            if not use.catches:
                self.fly(who, node.refusal(), node)
            return
        use.idle = use.idle and not nested
        who.inside.append(use)
        node.uses.append(use)
        self.say(f"{use.name} in")

    def exit(self, who: Person, use: Use, how: str = "out") -> None:
        """Leave the innermost operation."""
        who.inside.pop()
        use.node.uses.remove(use)
        self.say(f"{use.name} left")
        use.node.events.append(f"{use.name} left")
        self.say(f"{use.name} {how}")
        self.left(use.node)

    def unwind(self, who: Person) -> None:
        """A cancellation goes outwards, up to the operation that was kicked, which makes an error of it."""
        who.first, who.awaits, who.command, who.lingers = "", None, None, False
        ending = who.ending()
        assert ending is not None
        while who.inside:
            use = who.inside[-1]
            if use.manner == "lingers" and not use.lingered:
                self.say(f"{use.name} lingers")
                use.lingered = who.lingers = True
                return
            if len(who.inside) - 1 == ending:
                assert use.act is not None
                error = use.node.error(use.act)
                self.exit(who, use, error)
                if not use.catches:
                    self.fly(who, error, use.node)
                return
            self.exit(who, use, "cancelled")
        who.over = True
        self.say(f"{who.name} cancelled {who.cancelled}")

    def fly(self, who: Person, error: str, node: Node) -> None:
        """An error goes outwards, until somebody catches it. An operation that was kicked, too, makes it its own."""
        while who.inside:
            use = who.inside[-1]
            if use.act is not None and (
                (error.startswith("kicked") and node is not use.node)
                or (error.startswith("Closed") and use.act.closer is use.node)
            ):
                error, node = use.node.error(use.act), use.node
            self.exit(who, use, error)
            if use.catches:
                return

    def deadlock(self, who: Person, act: Act) -> bool:
        """Whether the act waits for somebody who, over whatever chain, waits for this one."""
        seen, unvisited = {act}, [act]
        while unvisited:
            waits_for = {use.who for node in unvisited.pop().remaining() for use in node.uses}
            if who in waits_for:
                return True
            for other in waits_for:
                if other.awaits is not None and other.awaits not in seen and not other.awaits.done():
                    seen.add(other.awaits)
                    unvisited.append(other.awaits)
        return False

    def pass_time(self, seconds: float) -> None:
        self.settle()
        end = self.now + seconds
        while due := [each for each in self.deadlines if each[0] <= end]:
            at, act = min(due, key=lambda each: each[0])
            self.deadlines.remove((at, act))
            if not act.done():
                self.now = at
                self.kick(act)
                self.settle()
        self.now = end
