"""A member, its revocations and its reports, over a log in memory."""

import contextlib
import itertools
import pathlib
import time
from collections.abc import AsyncIterator
from datetime import timedelta
from typing import Any

import anyio
import pytest

from asyncrevoke import Registry, RevokedError
from asyncrevoke.cluster import (
    Batch,
    Cluster,
    ClusterEvent,
    Entry,
    HostReport,
    LogError,
    LogRefusedError,
    Member,
    MemoryLog,
    NotVouchedError,
    Position,
    Revoker,
    cluster as cluster_module,
    memory as memory_module,
    revoker as revoker_module,
)
from asyncrevoke.cluster.sqlite import SqliteLog
from asyncrevoke.cluster.view import View
from conftest import settle

pytestmark = pytest.mark.anyio


class HeldLog(MemoryLog):
    """A log whose answers the test holds back, or loses."""

    def __init__(self) -> None:
        super().__init__()
        self.cut = False  # nobody is answered
        self.deaf = 0  # acknowledgements that are refused
        self.lost = 0  # appends whose answer is lost
        self.ahead = 0.0  # of its clock

    async def append(self, *texts: str) -> None:
        await super().append(*texts)
        if self.lost:
            self.lost -= 1
            raise LogError("no answer")

    async def read(self, after: int, wait: float, member: Member | None = None) -> Batch:
        self._refuse_if_cut()
        batch = await super().read(after, wait, member)
        self._refuse_if_cut()
        return batch

    async def tell(self, told: Any, keep: float) -> None:
        if self.deaf:
            self.deaf -= 1
            raise LogError("no answer")
        await super().tell(told, keep)

    async def time(self) -> float:
        return time.time() + self.ahead

    def part(self) -> None:
        """From now on nobody is answered, also whoever waits already."""
        self.cut = True
        self._change()

    def _refuse_if_cut(self) -> None:
        if self.cut:
            raise LogError("the line is cut")


class Clock:
    """Time that passes when the test says so."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.now = 1000.0
        for module in cluster_module, revoker_module:
            monkeypatch.setattr(module, "clock", lambda: self.now)


async def begun() -> HeldLog:
    log = HeldLog()
    await Revoker(log).init()
    return log


@contextlib.asynccontextmanager
async def running(*clusters: Cluster) -> AsyncIterator[None]:
    async with anyio.create_task_group() as tasks:
        for cluster in clusters:
            await tasks.start(cluster.run)
        yield
        tasks.cancel_scope.cancel()


class Seen:
    """What a member tells, to be waited for."""

    def __init__(self) -> None:
        self.all: list[str] = []
        self._waits: list[tuple[str, anyio.Event]] = []

    def __call__(self, event: ClusterEvent) -> None:
        self.all.append(event.what)
        for what, told in self._waits:
            if what == event.what:
                told.set()

    async def next(self, what: str) -> None:
        told = anyio.Event()
        self._waits.append((what, told))
        with anyio.fail_after(10):
            await told.wait()


# -- what is refused --


@pytest.mark.parametrize(
    ("options", "why"),
    [
        ({"mode": "lenient"}, "'strict' or 'best_effort'"),
        ({"lease": 0.0}, "from 0.1 to 86400"),
        ({"lease": float("nan")}, "from 0.1 to 86400"),
    ],
)
async def test_a_bad_option_is_refused(options: dict[str, Any], why: str) -> None:
    """A cluster names what it was given, and what to give."""
    with pytest.raises(ValueError, match=why):
        Cluster(Registry(), MemoryLog(), **options)


@pytest.mark.parametrize(
    ("path", "options", "why"),
    [
        (("alice", ""), {}, "is not a path"),
        (("alice", 7), {}, "is not a path"),
        (("alice",), {"grace": -1.0}, "give seconds"),
        (("alice",), {"grace": float("inf")}, "give seconds"),
        (("alice",), {"expires": timedelta(seconds=-1)}, "which has passed"),
        (("alice",), {"expires": float("nan")}, "which has passed"),
    ],
)
async def test_a_revocation_that_can_be_none_is_refused(path: Any, options: dict[str, Any], why: str) -> None:
    """Nothing is appended then."""
    log = await begun()
    with pytest.raises(ValueError, match=why):
        await Revoker(log).revoke(*path, **options)
    assert len((await log.read(0, 0.0)).texts) == 1


@pytest.mark.parametrize("text", ["", "epoch", "epoch.", "epoch.x", "epoch.-1", "epoch.²"])
async def test_what_is_no_position_is_refused(text: str) -> None:
    """A position that was not stored well admits nobody."""
    with pytest.raises(ValueError, match="is not a position"):
        Cluster(Registry(), MemoryLog()).admit("alice", issued=text)


async def test_a_position_is_the_same_after_it_was_stored() -> None:
    """`parse` reads what `str` made."""
    assert Position.parse(str(Position("e0", 7))) == Position("e0", 7)


GARBAGE = [
    "",
    "7",
    "[]",
    "[" * 100_000,
    '{"v":1}',
    '{"v":1,"do":"revoke","path":["a"]}',
    '{"v":1,"do":"dance","id":"x"}',
    '{"v":1,"do":"revoke","path":"alice","id":"x"}',
    '{"v":1,"do":"revoke","path":[7],"id":"x"}',
    '{"v":1,"do":"revoke","path":["a"],"id":7}',
    '{"v":1,"do":"revoke","path":["a"],"id":"x","grace":-1}',
    '{"v":1,"do":"revoke","path":["a"],"id":"x","grace":"long"}',
    '{"v":1,"do":"revoke","path":["a"],"id":"x","expires":"soon"}',
    '{"v":1,"do":"revoke","path":["a"],"id":"x","reason":7}',
    '{"v":1,"do":"readmit","path":["a"],"id":"x","expires":7}',
    '{"v":1,"do":"revoke","path":["a"],"id":"x","before":7}',
    '{"v":1,"do":"revoke","path":["a"],"id":"x","more":7}',
]


@pytest.mark.parametrize("text", GARBAGE, ids=lambda text: text[:60])
async def test_what_is_no_entry_stops_a_member(text: str) -> None:
    """A member that finds garbage in the log cannot vouch, and says where it stands."""
    log = await begun()
    await log.append(text)
    with pytest.raises(LogRefusedError, match="at 2 is not an entry: only members may write to the log"):
        await Cluster(Registry(), log, host="web1").run()


async def test_an_entry_of_another_version_stops_a_member() -> None:
    """It says which host to upgrade."""
    log = await begun()
    await log.append('{"v":2,"do":{"new":1}}')
    with pytest.raises(LogRefusedError, match="has version 2, but this host knows 1: upgrade this host"):
        await Cluster(Registry(), log, host="web1").run()


async def test_a_clock_that_differs_is_refused() -> None:
    """Entries expire by the clock."""
    log = await begun()
    log.ahead = 3600
    with pytest.raises(LogRefusedError, match=r"\+3600 s from that of web1. Entries expire by it: set both clocks"):
        await Cluster(Registry(), log, host="web1").run()


async def test_a_name_is_refused_that_a_member_has() -> None:
    """The other one goes on."""
    log = await begun()
    first = Cluster(Registry(), log, host="web1", lease=0.8)
    async with running(first):
        with pytest.raises(LogRefusedError, match="'web1' is a member already"):
            await Cluster(Registry(), log, host="web1", lease=0.8).run()
        with first.admit("alice"):
            pass


async def test_a_member_runs_once() -> None:
    """To run it twice is an error of the program."""
    cluster = Cluster(Registry(), await begun(), host="web1")
    async with running(cluster):
        with pytest.raises(RuntimeError, match="web1 runs already"):
            await cluster.run()


def test_a_member_runs_again_in_another_loop(tmp_path: pathlib.Path) -> None:
    """As one of a module does whose application is begun for each test."""
    cluster = Cluster(Registry(), SqliteLog(tmp_path / "log.db"), host="web1")

    async def served() -> None:
        async with running(cluster):
            assert (await cluster.revoke("alice")).complete
        await cluster.log.aclose()

    anyio.run(cluster.init)
    for _ in range(2):
        anyio.run(served)


@pytest.mark.parametrize("issued", [5, ("e", 5), ["e", 5], b"e.5", "e"])
async def test_what_is_no_position_is_refused_at_once(issued: Any) -> None:
    """It would end the member later, when an entry is compared with it."""
    cluster = Cluster(Registry(), await begun(), host="web1")
    async with running(cluster):
        for admit in cluster.admit, cluster.check:
            with pytest.raises(ValueError, match="is not a position"):
                admit("alice", issued=issued)


async def test_a_log_that_has_begun_is_not_begun_again() -> None:
    """`init` is for an empty log alone."""
    with pytest.raises(LogRefusedError, match="is not empty"):
        await Revoker(await begun()).init()


# -- C1, C2 --


def test_an_entry_is_taken_before_the_number_moves_past_it() -> None:
    """C3: who is interrupted while it takes an entry reads it again."""
    view = View(10.0, strict=True)
    texts = [(number, entry.dump()) for number, entry in enumerate([Entry.new("init"), Entry.new("revoke")], 1)]
    taking = view.answered(Batch(None, texts, whole=True), 100.0)
    assert next(taking).do == "revoke"
    assert view.number == 1
    assert list(taking) == []
    assert view.number == 2


def test_a_log_with_another_text_at_the_last_number_is_another_log() -> None:
    """C6: it may be as long as the one that was read."""
    view = View(10.0, strict=True)
    list(view.answered(Batch(None, [(1, Entry.new("init").dump())], whole=True), 100.0))
    with pytest.raises(LogError, match="another one"):
        list(view.answered(Batch(Entry.new("init").dump(), [], whole=True), 200.0))


def test_no_two_copies_of_an_entry_are_the_same_text() -> None:
    """C6: a log is known by the text at the last number, which what was written back must not resemble."""
    entry = Entry.new("revoke", ("alice",))
    assert entry.dump() != entry.dump()
    assert Entry.parse(entry.dump(), 1) == Entry.parse(entry.dump(), 1) == entry


def test_a_member_admits_once_it_is_known_and_has_read_to_the_head() -> None:
    """C5, then C1: the first read to the end tells the engine of it only with the next, and a part of the log is no head."""
    view = View(10.0, strict=True)
    init, entry = Entry.new("init").dump(), Entry.new("revoke", ("alice",)).dump()
    list(view.answered(Batch(None, [(1, init)], whole=True), 100.0))
    assert (view.known, view.until) == (True, float("-inf"))
    list(view.answered(Batch(init, [(2, entry)], whole=False), 200.0))
    assert (view.fresh, view.until) == (float("-inf"), float("-inf"))
    list(view.answered(Batch(entry, [], whole=True), 300.0))
    assert (view.fresh, view.until) == (300.0, 310.0)


def test_the_lease_runs_from_the_question() -> None:
    """C2: however late the answer comes, the lease began when it was asked for; nor does a member admit any longer."""
    view = View(10.0, strict=True)
    init = Entry.new("init").dump()
    list(view.answered(Batch(None, [(1, init)], whole=True), 100.0))
    list(view.answered(Batch(init, [], whole=True), 200.0))
    assert (view.fresh, view.until) == (200.0, 210.0)


async def test_nobody_is_admitted_before_it_has_caught_up() -> None:
    """C1: also best effort needs to have read the log once."""
    cluster = Cluster(Registry(), await begun(), host="web1")
    with pytest.raises(NotVouchedError, match="web1 admits nobody: it has not caught up yet"), cluster.admit("alice"):
        pass


async def test_an_empty_log_admits_nobody(caplog: pytest.LogCaptureFixture) -> None:
    """C1, C6: it may have lost everything, and the message says what to do: once in the log, at once, and at the end."""
    cluster = Cluster(Registry(), MemoryLog(), host="web1", lease=0.1)
    with pytest.raises(LogError, match="is empty: if it is new, begin it by `asyncrevoke cluster init`"):
        await cluster.run()
    (record,) = caplog.records
    assert "web1 does not admit anybody yet: the log at" in record.getMessage()
    with pytest.raises(NotVouchedError), cluster.admit("alice"):
        pass


async def test_an_engine_that_cannot_be_reached_is_named_at_the_start() -> None:
    """It tries for its lease."""
    log = await begun()
    log.part()
    with pytest.raises(LogError, match="the line is cut"):
        await Cluster(Registry(), log, host="web1", lease=0.1).run()


@pytest.mark.parametrize("mode", ["strict", "best_effort"])
async def test_what_happens_when_the_lease_is_over(mode: Any) -> None:
    """C1, C2: a strict member takes all away and refuses; a best-effort one says that it is cut off, and goes on."""
    log, seen, live = await begun(), Seen(), Registry()
    cluster = Cluster(live, log, host="web1", lease=0.5, mode=mode, observers=(seen,))
    async with running(cluster):
        ended = anyio.Event()

        async def session() -> None:
            with contextlib.suppress(RevokedError), cluster.admit("alice", "old"):
                await anyio.sleep_forever()
            ended.set()

        async with anyio.create_task_group() as tasks:
            tasks.start_soon(session)
            await settle()
            log.part()
            await seen.next("cut off")
            if mode == "strict":
                await ended.wait()
                with (
                    pytest.raises(NotVouchedError, match=r"admits nobody: .*the line is cut"),
                    cluster.admit("bob"),
                ):
                    pass
            else:
                assert live["alice", "old"].in_use
                with cluster.admit("bob"):
                    pass
            log.cut = False
            await seen.next("caught up")
            with cluster.admit("bob"):
                pass
            tasks.cancel_scope.cancel()


async def test_a_lease_that_is_over_refuses_before_any_timer_runs(monkeypatch: pytest.MonkeyPatch) -> None:
    """C1: admission compares the clock itself, as in a process that was stopped, or whose loop was held."""
    clock = Clock(monkeypatch)
    cluster = Cluster(Registry(), await begun(), host="web1", lease=10, mode="strict")
    async with running(cluster):
        with cluster.admit("alice"):
            pass
        clock.now += 10.0
        with pytest.raises(NotVouchedError), cluster.admit("alice"):
            pass


async def test_a_lease_that_ends_between_two_looks_at_it_is_over(monkeypatch: pytest.MonkeyPatch) -> None:
    """A look that says "a little is left", and a next one that says "none": nobody waits for less than nothing."""
    seen, looks = Seen(), itertools.cycle((0.001, 0.001, -0.001))  # the first is that of the read that caught up
    monkeypatch.setattr(Cluster, "lease_left", property(lambda _: next(looks)))
    async with running(Cluster(Registry(), await begun(), host="web1", lease=10, observers=(seen,))):
        await seen.next("cut off")


# -- C4, C7: what an entry takes --


@contextlib.asynccontextmanager
async def sessions(cluster: Cluster, *which: tuple[tuple[str, ...], Position | str | None]) -> AsyncIterator[set[Any]]:
    """Sessions with the positions at which they were issued, and those of them that were taken away."""
    taken: set[Any] = set()

    async def session(path: tuple[str, ...], issued: Position | str | None) -> None:
        try:
            with cluster.admit(*path, issued=issued):
                await anyio.sleep_forever()
        except RevokedError:
            taken.add(path)

    async with anyio.create_task_group() as tasks:
        for path, issued in which:
            tasks.start_soon(session, path, issued)
            await settle()
        yield taken
        tasks.cancel_scope.cancel()


@pytest.mark.parametrize("path", [("alice", "token7"), ("alice",), ()])
async def test_a_later_login_is_never_taken(path: tuple[str, ...]) -> None:
    """C7: of the key itself, of all below it, and of everything, also when the entry is read again."""
    log = await begun()
    cluster = Cluster(Registry(), log, host="web1", lease=4, mode="strict")
    async with running(cluster):
        early = str(cluster.position)
        async with sessions(cluster, (("alice", "token7"), early)) as taken:
            entry = cluster.entry(*path, reason="stolen")
            await cluster.append(entry)
            report = await cluster.report(entry)
            assert report.complete
            assert report.kicked == 1
            await settle()
            assert taken == {("alice", "token7")}
        with pytest.raises(RevokedError, match="stolen"), cluster.admit("alice", "token7", issued=early):
            pass
        async with sessions(cluster, (("alice", "token7"), cluster.position)) as taken:
            await cluster.append(entry)
            assert (await cluster.revoke("nobody")).complete
            assert taken == set()


async def test_a_later_login_is_not_taken_from_above_another_session() -> None:
    """C7: a key that is in use below it, and not itself, has no session that could be older."""
    log = await begun()
    cluster = Cluster(Registry(), log, host="web1", lease=4)
    async with running(cluster):
        early = cluster.position
        async with sessions(cluster, (("alice", "token7"), early)):
            assert (await cluster.revoke("bob")).complete
            late = cluster.position
            async with sessions(cluster, (("alice",), late)) as taken:
                cluster._take(Entry("revoke", ("alice",), before=late, id="x"))
                await settle()
                assert taken == set()


@pytest.mark.parametrize("order", [("early", "late"), ("late", "early")])
async def test_of_several_logins_with_one_key_the_earliest_counts(order: tuple[str, ...]) -> None:
    """C7 is about a key as a whole: what was issued before the entry is taken, and whoever shares the key with it."""
    cluster = Cluster(Registry(), await begun(), host="web1", lease=4)
    async with running(cluster):
        issued = {"early": cluster.position}
        assert (await cluster.revoke("bob")).complete
        issued["late"] = cluster.position
        async with sessions(cluster, *((("alice",), issued[each]) for each in order)) as taken:
            cluster._take(Entry("revoke", ("alice",), before=issued["late"], id="x"))
            await settle()
            assert taken == {("alice",)}


async def test_a_login_is_remembered_as_long_as_its_session_lives(monkeypatch: pytest.MonkeyPatch) -> None:
    """C7, also when the noted positions of unused keys are forgotten."""
    monkeypatch.setattr("asyncrevoke.cluster.cluster._ROOM", 2)
    cluster = Cluster(Registry(), await begun(), host="web1", lease=4)
    async with running(cluster):
        assert (await cluster.revoke("bob")).complete
        late = cluster.position
        async with sessions(cluster, (("alice",), late)) as taken:
            for number in range(3):
                with cluster.admit(f"user{number}", issued=late):
                    pass
            cluster._take(Entry("revoke", ("alice",), before=late, id="x"))
            await settle()
            assert taken == set()


async def test_a_session_without_a_position_counts_as_older() -> None:
    """Such a revocation is a lock, until `readmit`, of exactly this path."""
    cluster = Cluster(Registry(), await begun(), host="web1", lease=4)
    async with running(cluster):
        await cluster.revoke("alice")
        with pytest.raises(RevokedError), cluster.admit("alice", "token8"):
            pass
        await cluster.readmit("alice", "token8")
        await cluster.revoke("nobody")
        with pytest.raises(RevokedError), cluster.admit("alice", "token8"):
            pass
        await cluster.readmit("alice")
        await cluster.revoke("nobody")
        with cluster.admit("alice", "token8"):
            pass


# -- C8 --


async def test_what_has_expired_admits_again_and_is_dropped(monkeypatch: pytest.MonkeyPatch) -> None:
    """C8: it leaves the member and the log a day after it has expired, and the newest one stays in the log."""
    monkeypatch.setattr(cluster_module, "_SWEEP", 0.0)
    monkeypatch.setattr(memory_module, "KEPT", 1)
    log = await begun()
    cluster = Cluster(Registry(), log, host="web1", lease=4)

    async def paths() -> list[tuple[str, ...]]:
        """Of the log, after the member has read, and so has looked for what expired."""
        for name in "bob", "carol":
            await cluster.revoke(name)
        return [Entry.parse(text, 0).path for _, text in (await log.read(0, 0.0)).texts]

    async with running(cluster):
        await cluster.revoke("alice", expires=timedelta(hours=1))
        now = time.time()
        monkeypatch.setattr(time, "time", lambda: now + 3601)
        with cluster.admit("alice"):
            pass
        assert await paths() == [(), ("alice",), ("bob",), ("carol",)]
        monkeypatch.setattr(time, "time", lambda: now + 3601 + 86400)
        assert await paths() == [(), *[("bob",), ("carol",)] * 2]


# -- C6 --


async def test_a_log_that_was_wiped_is_seeded_again() -> None:
    """C6: what was revoked stays revoked, a login since is admitted, also at a host that comes later."""
    log, seen = await begun(), Seen()
    first = Cluster(Registry(), log, host="web1", lease=2, mode="strict", observers=(seen,))
    second = Cluster(Registry(), log, host="web2", lease=2, mode="strict")
    async with running(first, second):
        early = first.position
        assert (await first.revoke("alice", reason="stolen")).complete
        late = first.position
        async with sessions(first, (("bob",), late)) as taken:
            log.wipe()
            await seen.next("caught up")
            assert taken == {("bob",)}  # it could not vouch for it
        assert "lost" in seen.all
        third = Cluster(Registry(), log, host="web3", lease=2)
        async with running(third):
            for each in first, third:
                with pytest.raises(RevokedError, match="stolen"), each.admit("alice", issued=early):
                    pass
                with each.admit("alice", issued=late):
                    pass


# -- reports --


async def test_stragglers_and_failed_releases_stand_in_the_report() -> None:
    """A host that is draining names who is inside; what a release has raised is said, too."""
    cluster = Cluster(live := Registry(), await begun(), host="web1", lease=0.4)
    async with running(cluster):

        def fail() -> None:
            raise OSError("no such line")

        entered, leave = anyio.Event(), anyio.Event()

        async def stays() -> None:
            with anyio.CancelScope(shield=True), contextlib.suppress(RevokedError), live["alice", "token7"].using():
                entered.set()
                with anyio.CancelScope(shield=True):
                    await leave.wait()

        live["bob"].open(release=fail)
        failed = str(await cluster.revoke("bob"))
        assert "OSError('no such line')" in failed
        async with anyio.create_task_group() as tasks:
            tasks.start_soon(stays)
            await entered.wait()
            report = await cluster.revoke("alice")
            assert not report.complete
            assert report.hosts[0].state == "draining"
            assert "1 straggler (" in str(report)
            leave.set()


async def test_an_acknowledgement_that_was_not_sent_is_sent_again() -> None:
    """The report comes then."""
    log = await begun()
    cluster = Cluster(Registry(), log, host="web1", lease=4)
    async with running(cluster):
        log.deaf = 2
        assert (await cluster.revoke("alice")).complete


async def test_an_append_whose_answer_is_lost_is_appended_again() -> None:
    """C3: a second copy does no harm, and does not change what the report says of the first."""
    log = await begun()
    cluster = Cluster(Registry(), log, host="web1", lease=4)
    async with running(cluster), sessions(cluster, (("alice",), cluster.position)):
        log.lost = 1
        assert (await cluster.revoke("alice")).kicked == 1


@pytest.mark.parametrize(("mode", "state"), [("strict", "over"), ("best_effort", "silent")])
async def test_a_host_that_does_not_answer_has_failed_closed_or_is_silent(mode: Any, state: str) -> None:
    """C5: a strict one counts as over when its lease is; a best-effort one goes on, and the report is not complete."""
    log = await begun()
    await log.read(0, 0.0, Member("dead", "x", mode, 0.1))
    report = await Revoker(log).revoke("alice")
    assert [host.state for host in report.hosts] == [state]
    assert report.complete == (state == "over")


async def test_a_report_can_be_had_before_the_lease_is_over() -> None:
    """It says how long the host may go on."""
    log = await begun()
    await log.read(0, 0.0, Member("dead", "x", "strict", 60.0))
    report = await Revoker(log).revoke("alice", limit=0.0)
    assert not report.complete
    assert "dead: it did not answer, its lease ends in 6" in str(report)


async def test_a_clock_of_the_engine_that_was_set_ends_no_lease() -> None:
    """C5: the wait is measured on the author's own clock."""
    assert revoker_module.lease_end(Member("a", "x", "strict", 10.0, age=25.0), 0.0) > 10.0
    assert revoker_module.lease_end(Member("a", "x", "strict", 10.0, age=3600.0), 0.0) < 0.0


async def test_no_member_is_no_proof() -> None:
    """A log without members may have lost them: the report is not complete."""
    assert not (await Revoker(await begun()).revoke("alice")).complete


async def test_a_report_of_a_later_version_can_be_read() -> None:
    """What it says more is left out."""
    text = HostReport("web1", "done", kicked=1, member="x").dump().replace("{", '{"more": 1, ', 1)
    assert HostReport.parse(text) == HostReport("web1", "done", kicked=1, member="x")


async def test_an_entry_taken_while_catching_up_is_acknowledged_if_the_engine_knew_of_the_host(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """C5: who stands in the list of members answers for what was appended since."""
    log = await begun()
    cluster = Cluster(Registry(), log, host="web1", lease=2)
    told: list[int] = []
    read = log.read

    async def appends_beside(after: int, wait: float, member: Member | None = None) -> Batch:
        if member is not None and not told:
            told.append(after)
            await read(after, 0.0, member)
            await log.append(entry.dump())
        return await read(after, wait, member)

    entry = cluster.entry("alice")
    monkeypatch.setattr(log, "read", appends_beside)
    async with running(cluster):
        assert (await cluster.report(entry)).complete


async def test_who_leaves_is_no_member_any_more() -> None:
    """Its sessions are taken away, and nobody waits for it."""
    log = await begun()
    cluster, other = (Cluster(live, log, host=host) for live, host in ((Registry(), "web1"), (Registry(), "web2")))

    async def session() -> None:
        with pytest.raises(RevokedError, match="web1 has left") as caught, cluster.admit("alice"):
            await anyio.sleep_forever()
        assert cluster.is_own(caught.value.reason)

    async with running(other):
        with anyio.fail_after(30):
            async with anyio.create_task_group() as tasks, running(cluster):
                tasks.start_soon(session)
                assert [each.host for each in await other.members()] == ["web1", "web2"]
        assert [each.host for each in await other.members()] == ["web2"]
        with pytest.raises(NotVouchedError, match="it does not follow the log"), cluster.admit("alice"):
            pass
