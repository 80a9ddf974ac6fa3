"""Hosts, a log and clients in one value: each step that can come next is tried, and the contract is asserted after it.

The `View` of each host is the real one. `Host` repeats what `Cluster._read` and `_check` do around it. Time is a number.
Whoever is not revoked is admitted as soon as a host would: so the sessions that a host holds are all it could hold.
"""

import contextlib
import functools
from collections.abc import Iterator
from dataclasses import dataclass, field, replace  # noqa: F401  # the last one for planted faults
from types import SimpleNamespace
from typing import Any, NamedTuple, Self

import pytest

from asyncrevoke.cluster import entry as entry_module, revoker as revoker_module
from asyncrevoke.cluster.entry import Entry, Position
from asyncrevoke.cluster.log import Batch, Member, Mode
from asyncrevoke.cluster.view import LogLostError, View

Ids = frozenset[str]
NEVER = float("-inf")
FREE = ("poll", "serve", "receive", "lose", "land", "wake")  # steps that may always come
TIME = SimpleNamespace()  # what `World.bind` sets
SECRETS = SimpleNamespace()


class Token(NamedTuple):
    """What a client was given. Its session stands under "a/" and its name."""

    name: str
    issued: Position | None
    after: Ids = frozenset()  # revocations that its host had taken when it was issued
    beside: Ids = frozenset()  # that were in the log already, and its host did not know: they may take it, or not

    @property
    def path(self) -> tuple[str, ...]:
        return "a", self.name


class Asked(NamedTuple):
    """A read that is under way."""

    at: int
    after: int
    served: Batch | None = None
    log: tuple[tuple[int, str], ...] = ()  # all there was when it was served


@dataclass(frozen=True)
class Scenario:
    """What may happen, and how often."""

    depth: int
    modes: tuple[Mode, ...] = ("strict", "strict")
    entries: tuple[Entry, ...] = (Entry("revoke", ("a",), id="r1"),)
    chunk: int = 99  # texts in an answer
    lease: int = 2
    epochs: int = 1  # that have begun in the log
    late: int = 0  # hosts that are not there at first
    budget: dict[str, int] = field(default_factory=dict)


@dataclass
class Host:
    """One member."""

    mode: Mode
    lease: int
    view: View
    asked: Asked | None = None
    pending: tuple[str, ...] = ()  # that it is writing back
    paused: bool = False
    cut_off: bool = True
    held: frozenset[Token] = frozenset()
    checked: frozenset[Token] = frozenset()
    # What only the assertions look at:
    told_at: int | None = None  # by the engine's clock
    fresh: float = NEVER  # when the last whole answer was asked
    began: Ids | None = None  # what was in the log when it first asked
    read: tuple[tuple[int, str], ...] = ()
    learned: Ids = frozenset()
    taken: Ids = frozenset()
    good: Ids = frozenset()  # what it had taken when its log was sound
    owes: Ids = frozenset()  # what it knew when its log was lost, and has not found again
    vouched: bool = False
    ends: dict[str, float] = field(default_factory=dict)  # by revocation: when its author counts it as over
    acked: Ids = frozenset()

    def clone(self) -> Self:
        other = object.__new__(type(self))
        other.__dict__.update(self.__dict__)
        view = other.view = object.__new__(type(self.view))
        view.__dict__.update(self.view.__dict__)
        view.denied = {path: list(ids) for path, ids in self.view.denied.items()}
        view._lifted = {path: list(ids) for path, ids in self.view._lifted.items()}
        view._entries = dict(self.view._entries)
        view._numbers = dict(self.view._numbers)
        other.ends = dict(self.ends)
        return other

    def key(self, now: int) -> tuple[Any, ...]:
        view = self.view
        return (
            self.mode,
            self.asked and (now - self.asked.at, *self.asked[1:]),
            self.pending,
            self.paused,
            self.cut_off,
            tuple(sorted(token.name for token in self.held)),
            tuple(sorted(token.name for token in self.checked)),
            None if self.told_at is None else min(now - self.told_at, self.lease + 1),
            min(now - self.fresh, self.lease + 1),
            *(self.began, self.read, self.learned, self.taken, self.good, self.owes, self.vouched, self.acked),
            tuple(sorted((key, max(end - now, -1)) for key, end in self.ends.items())),
            *(view.number, view.position, view.known, view._epoch, view._here, view._lost),
            *(max(view.fresh - now, -self.lease - 1), max(view.until - now, -1)),
            tuple(sorted((key, each.before, each.path) for key, each in view._entries.items())),
            tuple(sorted(view._numbers.items())),
        )

    # -- as `Cluster` does --

    def ask(self, now: int) -> None:
        self.asked = Asked(now, self.view.number)

    def vouches(self, now: int) -> bool:
        return now < self.view.until

    def admits(self, token: Token, now: int) -> bool:
        return self.vouches(now) and self.view.denial(token.path, token.issued) is None

    def knows(self, token: Token) -> bool:
        """Not while a lost log is made good, or of an epoch that this host has not read of yet."""
        return self.view.sound and (token.issued is None or token.issued.epoch in self.view._entries)

    def admit(self, tokens: tuple[Token, ...], now: int) -> None:
        self.held |= {token for token in tokens if self.admits(token, now)}

    def take(self, entry: Entry) -> None:
        self.held = frozenset(
            token
            for token in self.held
            if token.path[: len(entry.path)] != entry.path or not self.view.covers(entry, token.issued)
        )
        if self.view.known:
            self.acked |= {entry.id}

    def watch(self, now: int) -> None:
        """The timer of the lease."""
        if not self.cut_off and now - self.view.fresh >= self.lease:
            self.cut_off = True
            if self.mode == "strict":
                self.held = frozenset()

    def received(self, batch: Batch, asked: int, now: int) -> Iterator[Entry]:
        view = self.view
        try:
            for entry in view.answered(batch, asked):
                self.take(entry)
                yield entry
        except LogLostError:
            view.lose()
            self.cut_off = True
            if self.mode == "strict":
                self.held = frozenset()
            return
        if batch.whole and (missing := view.to_write_back()):
            self.pending = tuple(entry.dump() for entry in sorted(missing, key=lambda each: each.id))
        elif self.cut_off and view.fresh + self.lease > now and view.sound:
            self.cut_off = False


class Fault(AssertionError):
    """A line of the contract does not hold."""


def holds(tag: str, it: bool, what: str) -> None:
    if not it:
        raise Fault(f"{tag}: {what}")


class World:
    """All of it."""

    def __init__(self, scenario: Scenario) -> None:
        self.scenario = scenario
        self.now = 0
        self.texts: tuple[tuple[int, str], ...] = ()
        self.last = 0  # number
        self.wipes = 0
        self.inits = 0
        self.known_to: dict[str, Ids] = {}  # by epoch: what its author knew
        self.order: tuple[str, ...] = ()  # of revocations and readmissions, as they came into being
        self.copied: Ids = frozenset()  # by their authors, after a loss
        self.tokens: tuple[Token, ...] = (Token("none", None),)
        self.budget: dict[str, int] = {}
        self.chunk = scenario.chunk
        self.hosts: list[Host | None] = []
        self.bind()
        for _ in range(scenario.epochs):
            self.do("init")
        for mode in scenario.modes:
            self.hosts.append(self.fresh_host(mode))
            self.poll(-1)
            self.poll(-1)
        self.hosts += [None] * scenario.late
        first = self.hosts[0]
        assert first is not None
        self.tokens += (Token("old", first.view.position),)
        self.budget = dict(scenario.budget)
        self.settle()

    def fresh_host(self, mode: Mode) -> Host:
        lease = self.scenario.lease
        return Host(mode, lease, View(lease, strict=mode == "strict"))

    def clone(self) -> "World":
        other = object.__new__(World)
        other.__dict__.update(self.__dict__)
        other.hosts = [host and host.clone() for host in self.hosts]
        other.budget = dict(self.budget)
        other.known_to = dict(self.known_to)
        return other

    def key(self) -> Any:
        hosts = sorted((host.key(self.now) if host else () for host in self.hosts), key=repr)
        ends = tuple(
            None if each.expires is None else max(each.expires - self.now, -1) for each in self.scenario.entries
        )
        log = (self.texts, self.last, self.inits, self.wipes, sorted(self.known_to.items()))
        return hash(repr((hosts, ends, log, self.order, self.copied, self.tokens, sorted(self.budget.items()))))

    def bind(self) -> None:
        """Names, salts and the time are those of this world."""
        TIME.time = lambda: float(self.now)
        SECRETS.token_hex = lambda size: f"s{self.wipes}" if size == 4 else f"e{self.inits}"

    # -- steps --

    def steps(self) -> Iterator[tuple[str, int]]:
        """All that may come next."""
        left = {what for what, number in self.budget.items() if number}
        for number, host in enumerate(self.hosts):
            for what in self.steps_of(host):
                if what in left or what in FREE:
                    yield what, number
        for number, entry in enumerate(self.scenario.entries):
            if entry.id not in self.order:
                yield "append", number
            elif "again" in left:
                yield "again", number
        for what in ("tick", "wipe", "init", "echo", "cut"):
            if what in left and self.may(what):
                yield what, -1

    def steps_of(self, host: Host | None) -> Iterator[str]:
        if host is None:
            yield "join"
            return
        if host.paused:
            yield "wake"
            return
        yield from ("pause", "crash")
        if host.vouches(self.now):
            yield "login"
        if host.pending:
            yield "land"
        elif host.asked is None:
            yield from ("poll", "ask")
        else:
            yield from ("serve" if host.asked.served is None else "receive", "lose")

    def may(self, what: str) -> bool:
        if what == "cut":  # not promised: that the beginning of an epoch is lost, and what was before it is not
            return Entry.parse(self.texts[-1][1], 0).do != "init" if self.texts else False
        return what in ("tick", "wipe") or bool(self.texts) == (what != "init")

    def do(self, what: str, number: int = -1) -> None:
        """One step, and what comes of it at once."""
        self.bind()
        if what in self.budget:
            self.budget[what] -= 1
        getattr(self, what)(number) if number >= 0 else getattr(self, what)()
        self.settle()

    def host(self, number: int) -> Host:
        host = self.hosts[number]
        assert host is not None
        return host

    def poll(self, number: int) -> None:
        """Ask, be answered, and write back what is missing, undisturbed."""
        for what in (self.ask, self.serve, self.receive):
            what(number)
        if self.host(number).pending:
            self.land(number)

    def ask(self, number: int) -> None:
        host = self.host(number)
        host.ask(self.now)
        if host.began is None:
            host.began = self.ids()

    def serve(self, number: int) -> None:
        host = self.host(number)
        asked = host.asked
        assert asked is not None
        if host.view.known:
            host.told_at = self.now
        after = [each for each in self.texts if each[0] > asked.after]
        some = after[: self.chunk]
        here = dict(self.texts).get(asked.after)
        host.asked = asked._replace(served=Batch(here, some, len(some) == len(after)), log=self.texts)

    def lose(self, number: int) -> None:
        """No answer comes."""
        self.host(number).asked = None

    def receive(self, number: int) -> None:
        host = self.host(number)
        asked, host.asked = host.asked, None
        assert asked is not None
        batch = asked.served
        assert batch is not None
        entries = [Entry.parse(text, number) for number, text in batch.texts]
        is_same = all(each in asked.log for each in host.read)
        known = host.learned
        was_known = host.view.known
        before = host.held
        for entry in host.received(batch, asked.at, self.now):
            ahead = {Entry.parse(text, 0).id for number, text in batch.texts if number > host.view.number}
            holds("C3", entry.id in ahead, f"the number moved past {entry.id} before that was taken")
            host.taken |= {entry.id}
            later = [token.name for token in before - host.held if entry.id in token.after and host.knows(token)]
            holds("C7", not later or entry.id in self.copied, f"{entry.id} takes {later}")
            before = host.held
        if not is_same:
            holds("C6", host.view.number == 0, "a log that is another one, or is shorter, was not noticed")
            holds("C6", host.mode != "strict" or not host.vouches(self.now), "a lost log did not fail closed")
            host.read = ()
            host.owes |= known if was_known else set()
            return
        if host.view.number == 0:
            return  # it was noticed before
        host.read += tuple(batch.texts)
        host.learned |= {entry.id for entry in entries if entry.do != "init"}
        host.owes -= {entry.id for entry in entries}
        if batch.whole and was_known:
            host.fresh = asked.at

    def land(self, number: int) -> None:
        """What it writes back is written."""
        host = self.host(number)
        for text in host.pending:
            entry = Entry.parse(text, 0)
            if entry.do == "init" and entry.before is None:
                holds("C6", host.vouched or host.view.begun, "a host began an epoch that has never admitted")
                self.known_to[entry.id] = host.learned
                self.inits += 1
            self.write(text)
        host.pending = ()

    def pause(self, number: int) -> None:
        self.host(number).paused = True

    def wake(self, number: int) -> None:
        self.host(number).paused = False
        self.host(number).watch(self.now)

    def crash(self, number: int) -> None:
        """It dies, and is started again."""
        self.hosts[number] = self.fresh_host(self.host(number).mode)

    def join(self, number: int) -> None:
        self.hosts[number] = self.fresh_host(self.scenario.modes[0])

    def login(self, number: int) -> None:
        host = self.host(number)
        self.tokens += (
            Token(f"new{len(self.tokens)}", host.view.position, host.good, frozenset(self.order) - host.good),
        )

    def append(self, number: int) -> None:
        entry = self.scenario.entries[number]
        self.write(entry.dump())
        self.order += (entry.id,)
        for host in self.hosts:
            if host is not None and host.told_at is not None and entry.do == "revoke":
                host.ends[entry.id] = revoker_module.lease_end(self.member(host), self.now)

    def again(self, number: int) -> None:
        """Its author appends it once more, as he was not answered."""
        entry = self.scenario.entries[number]
        if entry.id not in self.ids():
            self.copied |= {entry.id}
        self.write(entry.dump())

    def tick(self) -> None:
        self.now += 1
        self.bind()
        for host in self.hosts:
            if host is not None and not host.paused:
                host.watch(self.now)

    def wipe(self) -> None:
        """All that was written is gone, with the connections: answers may still come."""
        self.last = 0
        self.lost_but(0)

    def cut(self) -> None:
        """The last text is gone: another engine took over, which did not have it. Its numbers go on."""
        self.lost_but(len(self.texts) - 1)

    def lost_but(self, kept: int) -> None:
        self.texts = self.texts[:kept]
        self.wipes += 1
        for host in self.hosts:
            if host is not None:
                host.told_at = None
                host.pending = ()
                if host.asked is not None and host.asked.served is None:
                    host.asked = None

    def init(self) -> None:
        """An operator says that nothing was lost."""
        self.known_to[f"e{self.inits}"] = frozenset()
        text = Entry.new("init").dump()
        self.inits += 1
        self.write(text)

    def echo(self) -> None:
        """The engine, or the client's library, writes the first text again, long afterwards."""
        self.write(self.texts[0][1])

    def write(self, text: str) -> None:
        self.last += 1
        self.texts += ((self.last, text),)

    def ids(self) -> Ids:
        return ids_of(self.texts)

    def member(self, host: Host) -> Member:
        age = 0.0 if host.told_at is None else float(self.now - host.told_at)
        return Member("h", "h", host.mode, host.lease, age=age)

    # -- the contract --

    def settle(self) -> None:
        for host in self.hosts:
            if host is not None and not host.paused:
                host.admit(self.tokens, self.now)
                self.assert_contract(host)
                host.vouched |= host.vouches(self.now)

    def in_force(self, host: Host) -> Iterator[str]:
        """What a host has to refuse by: what it has read, unless that has expired or was lifted."""
        for entry in self.scenario.entries:
            if entry.do == "revoke" and entry.id in host.learned and not entry.expired and not self.lifted(entry, host):
                yield entry.id

    def lifted(self, entry: Entry, host: Host | None = None) -> bool:
        return any(
            each.do == "readmit"
            and each.path == entry.path
            and (host is None or each.id in host.learned)
            and each.id in self.order[self.order.index(entry.id) :]
            for each in self.scenario.entries
        )

    def assert_contract(self, host: Host) -> None:
        now = self.now
        view = host.view
        strict = host.mode == "strict"
        if view.sound:
            host.good = host.learned
        if host.vouches(now):
            told = host.vouched or host.told_at is not None or self.wipes > 0
            holds("C5", told, "it admits before the engine knows of it")
            holds("C1", not strict or now - host.fresh < host.lease, "it admits though its lease is over")  # and C2
            holds("C1", host.vouched or host.began is not None, "it admits before it has asked")
            if not host.vouched and host.began is not None:
                holds("C1", self.wipes > 0 or host.began <= host.learned, "it admits before it has caught up")
                epoch = view._epoch
                holds(
                    "C6",
                    epoch != "" and self.known_to[epoch] <= host.learned,
                    "it admits on a log that holds too little",
                )
            holds("C6", not strict or not host.owes, "it admits though it has not put back what it knows")
        denied = set(self.in_force(host))
        for token in self.tokens:
            entry = view.denial(token.path, token.issued)
            if entry is not None:
                is_older = not host.knows(token) or entry.id not in token.after or entry.id in self.copied
                holds("C7", is_older, f"{entry.id} takes a later login")
                original = next(each for each in self.scenario.entries if each.id == entry.id)
                holds("C8", not original.expired, f"{entry.id} has expired, and still refuses")
                holds(
                    "C8",
                    not (view.sound and self.lifted(original, host)) or entry.id in self.copied,
                    f"{entry.id} was lifted, and still refuses",
                )
            elif host.vouches(now):
                holds(
                    "C8",
                    denied <= token.after | token.beside,
                    f"{denied - token.after} do not refuse {token.name}, which is older",
                )
        for token in host.held:
            holds("C4", view.denial(token.path, token.issued) is None, f"{token.name} is inside and revoked")
            for entry in self.scenario.entries:
                claimed = entry.id in host.acked or (
                    entry.id in host.ends
                    and revoker_module._unheard(self.member(host), host.ends[entry.id] - now).state == "over"
                )
                if claimed and entry.id in self.ids() and not entry.expired and not self.lifted(entry):
                    holds(
                        "C5",
                        entry.id in token.after | token.beside,
                        f"{token.name} is inside, and {entry.id} is reported as done or over",
                    )

    def quiet(self) -> None:
        """Everybody wakes and reads to the end: then all agree, and refuse what any of them knew."""
        hosts = [host for host in self.hosts if host is not None]
        known = frozenset[str]().union(*(host.learned for host in hosts if host.vouched), self.ids())
        knows = any(host.vouched for host in hosts)
        self.chunk = 99
        before: Any = None
        for _ in range(9):
            if before == (before := (self.texts, [(host.view.number, host.view.until) for host in hosts])):
                break
            for number, host in enumerate(self.hosts):
                if host is not None:
                    self.bind()
                    host.paused = False
                    host.asked = None
                    host.watch(self.now)
                    if host.pending:
                        self.land(number)
                    self.poll(number)
        self.settle()
        if not knows:
            return
        for host in hosts:
            holds("C6", host.vouches(self.now), "all is quiet, and a host does not admit")
            holds("C6", known <= host.learned, f"{known - host.learned} were known, and are forgotten")
            for token in self.tokens:
                verdicts = [each.admits(token, self.now) for each in hosts]
                holds("C7", len(set(verdicts)) == 1, f"hosts do not agree about {token.name}")


@functools.lru_cache(100_000)
def ids_of(texts: tuple[tuple[int, str], ...]) -> Ids:
    return frozenset(each.id for each in (Entry.parse(text, 0) for _, text in texts) if each.do != "init")


@contextlib.contextmanager
def virtual() -> Iterator[None]:
    """Time and names are those of a world, in which clocks are exact. What was parsed once is not parsed again."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Entry, "parse", functools.lru_cache(100_000)(Entry.parse))
        patch.setattr(entry_module, "time", TIME)
        patch.setattr(entry_module, "secrets", SECRETS)
        for name in "CLOCKS", "DRIFT", "LAG":
            patch.setattr(revoker_module, name, 0.0)
        yield


@dataclass
class Found:
    """What a search has found."""

    states: int
    steps: int
    exhausted: bool
    fault: str = ""
    trace: tuple[str, ...] = ()


def search(scenario: Scenario) -> Found:
    """Try all orders of steps, up to the depth, breadth first: a fault is found on a shortest way."""
    with virtual():
        return _search(scenario)


def _search(scenario: Scenario) -> Found:
    first = World(scenario)
    seen = {first.key()}
    steps = 0
    level: list[tuple[World, tuple[str, ...]]] = [(first, ())]
    for _ in range(scenario.depth):
        following: list[tuple[World, tuple[str, ...]]] = []
        for world, way in level:
            for what, number in world.steps():
                steps += 1
                there = (*way, f"{what} {number}" if number >= 0 else what)
                other = world.clone()
                try:
                    other.do(what, number)
                    key = other.key()
                    if key in seen:
                        continue
                    if other.wipes and what not in ("tick", "ask", "serve"):
                        other.clone().quiet()
                except Fault as fault:
                    return Found(len(seen), steps, exhausted=False, fault=str(fault), trace=there)
                seen.add(key)
                following.append((other, there))
        level = following
    return Found(len(seen), steps, exhausted=True)
