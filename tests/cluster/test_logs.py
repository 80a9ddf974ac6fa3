"""What every engine must do, whatever it is made of. What is special to one is in a file of its own."""

import contextlib
import pathlib
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from typing import Any, NamedTuple

import anyio
import anyio.lowlevel
import asyncpg
import pytest
from engines import PostgresServer, RedisServer
from redis.asyncio import Redis

from asyncrevoke import Registry, RevokedError
from asyncrevoke.cluster import Batch, Cluster, Log, Member, MemoryLog
from asyncrevoke.cluster.postgres import PostgresLog
from asyncrevoke.cluster.redis import RedisLog
from asyncrevoke.cluster.sqlite import SqliteLog
from conftest import BACKENDS

pytestmark = pytest.mark.anyio

ME = Member("web7", "m1", "strict", 3.0, "e1", 5, 2, 17.0)


class Engine(NamedTuple):
    """One kind of log.

    :ivar open: makes one more log over the same entries, as another process does
    :ivar wipe: loses them all
    """

    open: Callable[[], Log]
    wipe: Callable[[], Awaitable[None]]


@pytest.fixture
def memory() -> Engine:
    log = MemoryLog()

    async def wipe() -> None:
        log.wipe()

    return Engine(lambda: log, wipe)


@pytest.fixture
def sqlite(tmp_path: pathlib.Path) -> Engine:
    path = tmp_path / "revoked.db"

    async def wipe() -> None:
        for file in tmp_path.iterdir():
            file.unlink()

    return Engine(lambda: SqliteLog(path), wipe)


@pytest.fixture(scope="session")
def postgres_server() -> Iterator[PostgresServer]:
    if PostgresServer.missing:
        pytest.skip(PostgresServer.missing)
    with PostgresServer() as server:
        yield server


@pytest.fixture
def postgres(postgres_server: PostgresServer, request: pytest.FixtureRequest) -> Engine:
    table = f"log{abs(hash(request.node.nodeid))}"

    async def wipe() -> None:
        connection = await asyncpg.connect(postgres_server.url)
        await connection.execute(f"TRUNCATE {table}")
        await connection.close()

    return Engine(lambda: PostgresLog(postgres_server.url, table=table), wipe)


@pytest.fixture(scope="session", autouse=True)
def redis_server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[RedisServer]:
    """Before any test, each of which looks for the children that it leaves."""
    server = RedisServer(tmp_path_factory.mktemp("redis"))
    with contextlib.nullcontext() if RedisServer.missing else server:
        yield server


@pytest.fixture
def redis(redis_server: RedisServer, request: pytest.FixtureRequest) -> Engine:
    if RedisServer.missing:
        pytest.skip(RedisServer.missing)
    prefix = request.node.nodeid

    async def wipe() -> None:
        async with Redis.from_url(redis_server.url) as redis:
            await redis.delete(f"{prefix}:log")

    return Engine(lambda: RedisLog(redis_server.url, prefix=prefix), wipe)


#: The fixtures that make one, and the loops that they are for.
ENGINES = {
    "memory": {"asyncio", "uvloop", "eager", "trio"},
    "sqlite": {"asyncio", "uvloop", "eager", "trio"},
    "postgres": {"asyncio", "uvloop", "eager"},
    "redis": {"asyncio", "uvloop", "eager"},
}


@pytest.fixture(
    params=[
        pytest.param((*backend.values, name), id=f"{name}-{backend.id}")
        for name, loops in ENGINES.items()
        for backend in BACKENDS
        if backend.id in loops
    ]
)
def both(request: pytest.FixtureRequest) -> Any:
    """A loop, and the name of an engine for it."""
    return request.param


@pytest.fixture
def anyio_backend(both: Any) -> Any:
    return both[0]


@pytest.fixture
def engine(both: Any, request: pytest.FixtureRequest) -> Engine:
    return request.getfixturevalue(both[1])  # type: ignore[no-any-return]


@contextlib.asynccontextmanager
async def opened(engine: Engine) -> AsyncIterator[Log]:
    log = engine.open()
    try:
        await log.check()
        yield log
    finally:
        await log.aclose()


@pytest.fixture
async def log(engine: Engine) -> AsyncIterator[Log]:
    async with opened(engine) as log:
        yield log


@pytest.fixture
async def other(engine: Engine) -> AsyncIterator[Log]:
    """The same log, as another host has it."""
    async with opened(engine) as log:
        yield log


async def everything(log: Log) -> list[tuple[int, str]]:
    """The whole log, in as many parts as it comes in."""
    found: list[tuple[int, str]] = []
    whole = False
    while not whole:
        batch = await log.read(found[-1][0] if found else 0, 0.0)
        assert batch.here == (found[-1][1] if found else None)
        assert batch.texts or batch.whole
        found += batch.texts
        whole = batch.whole
    return found


async def texts(log: Log) -> list[str]:
    return [text for _, text in await everything(log)]


class Asked:
    """Something asked of a log, that is waited for in a task."""

    def __init__(self) -> None:
        self.answer: Any = None
        self.answered = anyio.Event()

    async def ask(self, asked: Awaitable[Any]) -> None:
        self.answer = await asked
        self.answered.set()


async def until_read_waits(other: Log, member: Member) -> None:
    """Until a member has said that it reads. It may not wait yet: what comes in between must wake it as well."""
    while member not in await other.members():
        await anyio.lowlevel.checkpoint()


class TestReading:
    """Whoever reads on from a position gets all that came after it, in the order of its numbers."""

    async def test_an_empty_log_has_nothing(self, log: Log) -> None:
        """Nothing is at position 0, nothing comes after it, and that is all there is."""
        assert await log.read(0, 0.0) == Batch(None, [], whole=True)

    async def test_texts_come_in_the_order_in_which_they_were_appended(self, log: Log, other: Log) -> None:
        """Also those of one call, and to a reader that has another connection."""
        await log.append("a", "b")
        await other.append("c")
        await log.append("d")
        found = await everything(other)
        assert [text for _, text in found] == ["a", "b", "c", "d"]
        assert [number for number, _ in found] == sorted({number for number, _ in found})
        assert found[0][0] > 0

    async def test_a_position_has_its_text(self, log: Log) -> None:
        """`here` is what stands where the read begins, so that the reader knows the log."""
        await log.append("a", "b", "c")
        (first, _), (second, _), (third, _) = await everything(log)
        assert await log.read(second, 0.0) == Batch("b", [(third, "c")], whole=True)
        assert await log.read(third, 0.0) == Batch("c", [], whole=True)
        assert (await log.read(first, 0.0)).here == "a"

    async def test_any_text_comes_back_as_it_was(self, log: Log) -> None:
        """Whatever letters, quotes and lines are in it, and however long it is."""
        strange = [
            "",
            "'; DROP TABLE x; --",
            '{"a":"\\u0000"}',
            "two\nlines",
            "\u00e4\u4e2d\U0001f600",
            "$1 ?1 %s",
            "x" * 100_000,
        ]
        await log.append(*strange)
        assert await texts(log) == strange

    async def test_a_long_log_comes_in_parts(self, log: Log) -> None:
        """Only the last part is whole, and nothing is between them."""
        many = [str(number) for number in range(2500)]
        await log.append(*many)
        assert await texts(log) == many

    async def test_a_wiped_log_has_nothing_here(self, engine: Engine, log: Log) -> None:
        """Nor when others have written to it since: what they have written is no news of the log that was read."""
        await log.append("a", "b", "c")
        *_, (last, _) = await everything(log)
        await engine.wipe()
        assert await log.read(last, 0.0) == Batch(None, [], whole=True)
        await log.append("d")
        assert (await log.read(last, 0.0)).here is None
        assert await texts(log) == ["d"]

    async def test_a_wiped_log_answers_at_once(self, engine: Engine, log: Log) -> None:
        """A reader does not wait for what may never come."""
        await log.append("a")
        [(first, _)] = await everything(log)
        await engine.wipe()
        with anyio.fail_after(20):
            assert (await log.read(first, 60.0)).here is None

    async def test_no_entry_comes_below_one_that_was_read(self, engine: Engine, log: Log) -> None:
        """Many append at once, each by a connection of its own, while a reader follows: it gets all, in order."""
        writers, each = 4, 15
        followed: list[tuple[int, str]] = []

        async def write(name: str) -> None:
            async with opened(engine) as own:
                for number in range(each):
                    await own.append(f"{name}{number}", f"{name}{number}b")

        async def follow() -> None:
            while len(followed) < 2 * writers * each:
                batch = await log.read(followed[-1][0] if followed else 0, 5.0)
                followed.extend(batch.texts)

        with anyio.fail_after(60):
            async with anyio.create_task_group() as tasks:
                tasks.start_soon(follow)
                for name in "abcd"[:writers]:
                    tasks.start_soon(write, name)
        assert followed == await everything(log)
        assert [number for number, _ in followed] == sorted(number for number, _ in followed)
        for name in "abcd"[:writers]:
            own = [text for _, text in followed if text[0] == name]
            assert own == [f"{name}{number}{end}" for number in range(each) for end in ("", "b")]


class TestWaiting:
    """A read waits for what comes after its position, and is woken by it."""

    async def test_a_read_is_woken(self, log: Log, other: Log) -> None:
        """By an entry that another host appends: it does not wait out its time."""
        await log.append("a")
        [(first, _)] = await everything(log)
        asked = Asked()
        with anyio.fail_after(20):
            async with anyio.create_task_group() as tasks:
                tasks.start_soon(asked.ask, log.read(first, 60.0, ME))
                await until_read_waits(other, ME)
                await other.append("b")
        assert [text for _, text in asked.answer.texts] == ["b"]
        assert asked.answer.here == "a"

    async def test_a_read_of_an_empty_log_is_woken(self, log: Log) -> None:
        """By the first entry, which the same log appends."""
        asked = Asked()
        with anyio.fail_after(20):
            async with anyio.create_task_group() as tasks:
                tasks.start_soon(asked.ask, log.read(0, 60.0, ME))
                await until_read_waits(log, ME)
                await log.append("a")
        assert [text for _, text in asked.answer.texts] == ["a"]

    async def test_a_read_is_answered_when_its_time_is_over(self, log: Log) -> None:
        """With nothing new, and what is here: that is an answer."""
        await log.append("a")
        [(first, _)] = await everything(log)
        with anyio.fail_after(20):
            assert await log.read(first, 0.05) == Batch("a", [], whole=True)

    async def test_others_that_read_and_acknowledge_are_no_news(self, log: Log, other: Log) -> None:
        """A read that waits goes on waiting while members say that they are there."""
        await log.append("a")
        [(first, _)] = await everything(log)
        asked = Asked()
        with anyio.fail_after(20):
            async with anyio.create_task_group() as tasks:
                tasks.start_soon(asked.ask, log.read(first, 60.0, ME))
                await until_read_waits(other, ME)
                for number in range(5):
                    await other.read(first, 0.0, Member("web8", str(number), "strict", 3.0))
                    await other.tell([("e1", "done")], 60.0)
                assert not asked.answered.is_set()
                await other.append("b")
        assert [text for _, text in asked.answer.texts] == ["b"]

    async def test_while_one_read_waits_all_else_goes_on(self, log: Log) -> None:
        """A log that waits for entries can be appended to, told and asked meanwhile."""
        with anyio.fail_after(20):
            async with anyio.create_task_group() as tasks:
                tasks.start_soon(log.read, 0, 60.0, ME)
                await until_read_waits(log, ME)
                await log.tell([("e1", "done")], 60.0)
                assert (await log.told("e1", 0, 0.0))[1] == ["done"]
                assert await log.read(0, 0.0) == Batch(None, [], whole=True)
                assert await log.time() > 0
                await log.append("a")

    async def test_a_cancelled_read_leaves_the_log_usable(self, log: Log) -> None:
        """Wherever it was cancelled: each later answer is one to what was asked then."""
        await log.append("a")
        [(first, _)] = await everything(log)
        for turn in range(30):
            async with anyio.create_task_group() as tasks:
                tasks.start_soon(log.read, first, 60.0, ME)
                for _ in range(turn):
                    await anyio.lowlevel.checkpoint()
                tasks.cancel_scope.cancel()
            assert (await log.told("e0", 0, 0.0))[1] == []
            assert await log.read(0, 0.0) == Batch(None, [(first, "a")], whole=True)
        await log.append("b")
        assert await texts(log) == ["a", "b"]

    async def test_cancelled_waits_leave_the_log_usable(self, log: Log, other: Log) -> None:
        """A read and a wait for acknowledgements that are cancelled while they wait take nothing away from the next ones."""
        with anyio.fail_after(20):
            async with anyio.create_task_group() as tasks:
                tasks.start_soon(log.read, 0, 60.0, ME)
                tasks.start_soon(log.told, "e1", 0, 60.0)
                await until_read_waits(other, ME)
                tasks.cancel_scope.cancel()
            async with anyio.create_task_group() as tasks:
                tasks.start_soon(log.read, 0, 60.0)
                tasks.start_soon(log.told, "e1", 0, 60.0)
                await other.tell([("e1", "done")], 60.0)
                await other.append("a")


class TestAcknowledging:
    """Acknowledgements are told to whoever asks about their entry."""

    async def test_they_are_told_by_entry(self, log: Log, other: Log) -> None:
        """In the order in which they were written, and none about another entry."""
        await log.tell([("e1", "a"), ("e2", "b"), ("e1", "c")], 60.0)
        assert (await other.told("e1", 0, 0.0))[1] == ["a", "c"]
        assert (await other.told("e2", 0, 0.0))[1] == ["b"]
        assert (await other.told("e3", 0, 0.0))[1] == []

    async def test_what_was_there_before_one_waits_is_told_at_once(self, log: Log, other: Log) -> None:
        """The wait is for more than was told before."""
        await other.tell([("e1", "a")], 60.0)
        with anyio.fail_after(20):
            seen, told = await log.told("e1", 0, 60.0)
        assert told == ["a"]
        assert await log.told("e1", seen, 0.0) == (seen, [])

    async def test_whoever_waits_is_woken(self, log: Log, other: Log) -> None:
        """Each time that there is more, with what is new; what is told about other entries is no news."""
        seen = 0
        with anyio.fail_after(20):
            for text in "abc":
                asked = Asked()
                async with anyio.create_task_group() as tasks:
                    tasks.start_soon(asked.ask, log.told("e1", seen, 60.0))
                    await other.tell([("e2", "x")], 60.0)
                    assert not asked.answered.is_set()
                    await other.tell([("e1", text)], 60.0)
                seen, told = asked.answer
                assert told == [text]

    async def test_many_that_tell_at_once_are_all_heard(self, engine: Engine, log: Log) -> None:
        """Whatever the order in which they are done, none is passed over by one who reads on from the last."""
        heard: list[str] = []

        async def tell(name: str) -> None:
            async with opened(engine) as own:
                for number in range(10):
                    await own.tell([("e1", f"{name}{number}")], 60.0)

        async def hear() -> None:
            seen = 0
            while len(heard) < 40:
                seen, told = await log.told("e1", seen, 5.0)
                heard.extend(told)

        with anyio.fail_after(60):
            async with anyio.create_task_group() as tasks:
                tasks.start_soon(hear)
                for name in "abcd":
                    tasks.start_soon(tell, name)
        assert sorted(heard) == [f"{name}{number}" for name in "abcd" for number in range(10)]
        for name in "abcd":
            own = [text for text in heard if text[0] == name]
            assert own == sorted(own)

    async def test_nothing_told_is_nothing(self, log: Log) -> None:
        """An empty list of acknowledgements is written as what it is."""
        await log.tell([], 60.0)
        assert (await log.told("e1", 0, 0.0))[1] == []


class TestMembers:
    """Whoever reads says who it is, before anything is read."""

    async def test_a_reader_is_known(self, log: Log, other: Log) -> None:
        """With all that it says of itself, and for how long it has said nothing since."""
        await log.read(0, 0.0, ME)
        [found] = await other.members()
        assert found == ME
        assert 0 <= found.age < 60

    async def test_the_last_word_counts(self, log: Log) -> None:
        """A member that reads again is one member, at its new position."""
        await log.read(0, 0.0, ME)
        later = Member("web7", "m1", "strict", 3.0, "e1", 6, 3, 17.0)
        await log.read(0, 0.0, later)
        assert await log.members() == [later]

    async def test_a_reader_that_says_nothing_is_no_member(self, log: Log) -> None:
        """As the command line, which reads and is none."""
        await log.read(0, 0.0)
        assert await log.members() == []

    async def test_who_leaves_is_forgotten(self, log: Log, other: Log) -> None:
        """The others stay, and to leave twice does no harm."""
        away = Member("web8", "m2", "best_effort", 1.0)
        await log.read(0, 0.0, ME)
        await other.read(0, 0.0, away)
        await other.leave(away)
        await other.leave(away)
        assert await log.members() == [ME]

    async def test_a_member_is_known_while_it_waits(self, log: Log, other: Log) -> None:
        """Its read was begun, and a revoker that looks then must count on it."""
        with anyio.fail_after(20):
            async with anyio.create_task_group() as tasks:
                tasks.start_soon(log.read, 0, 60.0, ME)
                await until_read_waits(other, ME)
                tasks.cancel_scope.cancel()


class TestKeeping:
    """What is dropped, and what stays."""

    async def test_old_entries_can_be_dropped(self, log: Log) -> None:
        """All others keep their numbers and texts."""
        await log.append(*map(str, range(1010)))
        found = await everything(log)
        await log.drop([found[2][0], found[7][0]])
        assert await everything(log) == [each for each in found if each[1] not in ("2", "7")]
        assert (await log.read(found[2][0], 0.0)).here is None

    async def test_the_newest_thousand_stay(self, log: Log) -> None:
        """To a member that has read up to a dropped entry, the log looks wiped; all are asked to be dropped here."""
        await log.append(*map(str, range(1003)))
        found = await everything(log)
        await log.drop([number for number, _ in found])
        assert await everything(log) == found[3:]
        assert (await log.read(found[-1][0], 0.0)).here == "1002"

    async def test_numbers_grow_on_after_a_drop(self, log: Log) -> None:
        """No number is given twice."""
        await log.append("a")
        found = await everything(log)
        await log.drop([found[0][0]])
        await log.append("b")
        assert (await everything(log))[-1][0] > found[-1][0]

    async def test_nothing_to_drop(self, log: Log) -> None:
        """An empty list, or numbers that are not there, drop nothing."""
        await log.append("a")
        await log.drop([])
        await log.drop([4711])
        assert await texts(log) == ["a"]


class TestClosing:
    """Nothing is left open, and nothing secret is shown."""

    async def test_the_clock_is_a_unix_time(self, log: Log) -> None:
        """That of the engine, which expiries are compared with."""
        assert await log.time() > 1_700_000_000

    async def test_a_log_that_will_do_is_taken_again_and_again(self, log: Log) -> None:
        """To check it changes nothing that is in it."""
        await log.append("a")
        await log.check()
        assert await texts(log) == ["a"]
        assert await log.members() == []

    async def test_closing_twice_does_no_harm(self, engine: Engine) -> None:
        """Nor closing what was never used."""
        unused = engine.open()
        await unused.aclose()
        async with opened(engine) as log:
            await log.aclose()


class TestFollowing:
    """A cluster over the engine, as far as one can be wrong that each of its methods is right."""

    async def test_members_take_what_one_revokes_and_put_it_back_when_it_is_lost(
        self, engine: Engine, log: Log, other: Log
    ) -> None:
        """The report of all hosts is complete. After a wipe the log has the revocation again, and a new epoch."""
        events: list[str] = []
        clusters = [
            Cluster(
                Registry(),
                each,
                host=host,
                lease=2.0,
                mode="strict",
                observers=(lambda event: events.append(event.what),),
            )
            for host, each in (("web7", log), ("web8", other))
        ]
        await clusters[0].init()
        with anyio.fail_after(40):
            async with anyio.create_task_group() as tasks:
                for each in clusters:
                    await tasks.start(each.run)
                report = await clusters[0].revoke("alice", reason="stolen")
                assert [host.state for host in report.hosts] == ["done", "done"]
                was = clusters[0].position.epoch
                await engine.wipe()
                while any(each.position.epoch in ("", was) for each in clusters) or events.count("caught up") < 4:
                    await anyio.sleep(0.01)
                for each in clusters:
                    with pytest.raises(RevokedError, match="stolen"):
                        each.check("alice")
                assert any('"alice"' in text for text in await texts(log))
                tasks.cancel_scope.cancel()
        assert await log.members() == []
