"""What is PostgreSQL's own, against a real server. What each log must do is in test_logs."""

import asyncio
import contextlib
import functools
import os
import pathlib
import signal
from collections.abc import AsyncIterator, Iterator
from typing import Any

import anyio
import anyio.abc
import anyio.lowlevel
import asyncpg
import pytest
from engines import PostgresServer

from asyncrevoke import Registry
from asyncrevoke.cluster import Cluster, Entry, LogError, LogRefusedError, Member, open_log, postgres as engine
from asyncrevoke.cluster.postgres import PostgresLog
from conftest import BACKENDS

pytestmark = [
    pytest.mark.anyio,
    pytest.mark.skipif(bool(PostgresServer.missing), reason=PostgresServer.missing),
]
ME = Member("web7", "m1", "strict", 1.0)


@pytest.fixture(params=[backend for backend in BACKENDS if backend.id != "trio"])
def anyio_backend(request: pytest.FixtureRequest) -> Any:
    return request.param


@pytest.fixture(scope="module")
def server() -> Iterator[PostgresServer]:
    with PostgresServer() as server:
        yield server


@contextlib.asynccontextmanager
async def connected(server: PostgresServer) -> AsyncIterator[Any]:
    connection = await asyncpg.connect(server.url)
    try:
        yield connection
    finally:
        await connection.close()


@pytest.fixture
async def sql(server: PostgresServer) -> AsyncIterator[Any]:
    """A connection for what no log does. It leaves an empty schema."""
    async with connected(server) as sql:
        yield sql
        await sql.execute("DROP SCHEMA public CASCADE; CREATE SCHEMA public; GRANT USAGE ON SCHEMA public TO PUBLIC")


@pytest.fixture
async def log(server: PostgresServer, sql: Any) -> AsyncIterator[PostgresLog]:
    del sql  # empties it
    log = PostgresLog(server.url)
    await log.check()
    yield log
    await log.aclose()


async def refusal(url: str) -> str:
    """Why a server is refused; "" if it is not."""
    log = PostgresLog(url)
    try:
        await log.check()
    except LogRefusedError as exc:
        return str(exc)
    finally:
        await log.aclose()
    return ""


async def texts(log: PostgresLog) -> list[str]:
    return [text for _, text in (await log.read(0, 0.0)).texts]


async def until_waiting(sql: Any, number: int = 1) -> None:
    """Until that many others wait for a lock."""
    while await sql.fetchval("SELECT count(*) FROM pg_locks WHERE NOT granted") < number:
        await anyio.lowlevel.checkpoint()


class TestOwnTransactions:
    """An entry can be a part of a transaction of the application."""

    async def test_a_rolled_back_entry_was_never_there(self, log: PostgresLog, sql: Any) -> None:
        """Nobody sees it, before or after, and its number is given again."""
        await log.append("a")
        transaction = sql.transaction()
        await transaction.start()
        await log.append_in(sql, Entry.new("revoke", ("alice",)))
        assert await texts(log) == ["a"]
        await transaction.rollback()
        await log.append("b")
        (first, _), (second, _) = (await log.read(0, 0.0)).texts
        assert await texts(log) == ["a", "b"]
        assert second == first + 1

    async def test_what_is_committed_late_is_not_passed_over(
        self, server: PostgresServer, log: PostgresLog, sql: Any
    ) -> None:
        """Whoever appends after it is behind it, so that a reader that has seen the later one has seen the earlier one."""
        entry = Entry.new("revoke", ("alice",))
        with anyio.fail_after(30):
            async with anyio.create_task_group() as tasks, connected(server) as looks, sql.transaction():
                await log.append_in(sql, entry)
                tasks.start_soon(log.append, "b")
                await until_waiting(looks)
                assert (await log.read(0, 0.0, ME)).texts == []
        found = (await log.read(0, 0.0)).texts
        assert [Entry.parse(found[0][1], 0), found[1][1]] == [entry, "b"]
        assert found[0][0] < found[1][0]

    async def test_while_somebody_commits_late_members_read_and_tell(self, log: PostgresLog, sql: Any) -> None:
        """An open transaction holds back those who append, and no lease."""
        await log.append("a")
        with anyio.fail_after(30):
            async with sql.transaction():
                await log.append_in(sql, Entry.new("revoke", ("alice",)))
                assert await texts(log) == ["a"]
                await log.read(0, 0.0, ME)
                await log.tell([("e1", "done")], 60.0)
                assert (await log.told("e1", 0, 0.0))[1] == ["done"]

    async def test_whoever_waits_too_long_for_it_is_told(
        self, server: PostgresServer, log: PostgresLog, sql: Any, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        """And nothing was appended then: it can be tried again."""
        monkeypatch.setattr(engine, "_PATIENCE", 0.3)
        with anyio.fail_after(30):
            async with sql.transaction():
                await log.append_in(sql, Entry.new("init"))
                slow = PostgresLog(server.url)
                with pytest.raises(LogError, match="a transaction that has appended must end first"):
                    await slow.append("b")
                await slow.aclose()
        await log.append("c")
        assert (await texts(log))[1:] == ["c"]

    async def test_a_repeatable_read_fails_rather_than_be_out_of_order(self, log: PostgresLog, sql: Any) -> None:
        """As any such transaction that somebody else was quicker than: the application tries it again."""
        transaction = sql.transaction(isolation="repeatable_read")
        await transaction.start()
        await sql.fetchval("SELECT count(*) FROM asyncrevoke")
        await log.append("a")
        with pytest.raises(asyncpg.SerializationError):
            await log.append_in(sql, Entry.new("init"))
        await transaction.rollback()
        assert await texts(log) == ["a"]

    async def test_any_driver_can_append(self, log: PostgresLog, sql: Any) -> None:
        """By a plain statement, which wakes those who read."""
        heard: list[str] = []

        async def read() -> None:
            heard.extend(text for _, text in (await log.read(0, 60.0, ME)).texts)

        with anyio.fail_after(30):
            async with anyio.create_task_group() as tasks:
                tasks.start_soon(read)
                while await log.members() != [ME]:
                    await anyio.lowlevel.checkpoint()
                await sql.execute("INSERT INTO asyncrevoke (text) VALUES ('a'), ('b')")
        assert heard == ["a", "b"]

    async def test_an_entry_is_on_the_disk_whatever_the_application_has_set(self, log: PostgresLog, sql: Any) -> None:
        """With synchronous_commit off, a transaction that appends is one that waits for the disk; stricter ones stay."""
        for was, becomes in ("off", "on"), ("remote_apply", "remote_apply"):
            await sql.execute(f"SET synchronous_commit = {was}")
            async with sql.transaction():
                await log.append_in(sql, Entry.new("init"))
                assert await sql.fetchval("SHOW synchronous_commit") == becomes
            assert await sql.fetchval("SHOW synchronous_commit") == was

    async def test_another_search_path_finds_the_tables(self, log: PostgresLog, sql: Any) -> None:
        """An application that names its schema appends to the tables that are there."""
        await sql.execute("SET search_path = pg_catalog")
        await sql.execute("INSERT INTO public.asyncrevoke (text) VALUES ('a')")
        assert await texts(log) == ["a"]


class TestLosing:
    """A server that is gone is an error, at once, and when it is back all goes on."""

    @pytest.fixture
    async def own(self, anyio_backend: Any) -> AsyncIterator[PostgresServer]:
        del anyio_backend
        with PostgresServer() as own:
            yield own

    async def test_what_is_acknowledged_outlives_a_kill(self, own: PostgresServer) -> None:
        """Killed in the midst of many appends and of a read that waits: all entries that were acknowledged are there after."""
        log = PostgresLog(own.url)
        await log.check()
        acknowledged: list[str] = []
        failed: list[LogError] = []

        async def append(name: str) -> None:
            one = PostgresLog(own.url)
            try:
                while True:
                    text = f"{name}{len(acknowledged)}"
                    await one.append(text)
                    acknowledged.append(text)
            except LogError as exc:
                failed.append(exc)
            await one.aclose()

        async def follow() -> None:
            position = 0
            try:
                while True:
                    batch = await log.read(position, 60.0, ME)
                    assert batch.texts
                    position = batch.texts[-1][0]
            except LogError as exc:
                failed.append(exc)

        with anyio.fail_after(60):
            async with anyio.create_task_group() as tasks:
                for name in "ab":
                    tasks.start_soon(append, name)
                tasks.start_soon(follow)
                while len(acknowledged) < 20:
                    await anyio.lowlevel.checkpoint()
                own.kill()
        assert len(failed) == 3
        assert all(str(each).startswith(log.name) for each in failed)
        with pytest.raises(LogError, match=log.name):
            await log.time()
        own.start()
        assert set(acknowledged) <= set(await texts(log))
        await log.append("more")
        assert (await texts(log))[-1] == "more"
        await log.aclose()

    async def test_a_read_that_waits_hears_that_its_connection_is_lost(self, log: PostgresLog, sql: Any) -> None:
        """It asks again over a new one, and waits on; it hears of what comes then."""
        answers: list[str] = []

        async def read() -> None:
            answers.extend(text for _, text in (await log.read(0, 60.0, ME)).texts)

        waiting = (
            "SELECT pid FROM pg_stat_activity WHERE state = 'idle' AND query LIKE '%FROM asyncrevoke WHERE number >=%'"
        )
        with anyio.fail_after(30):
            async with anyio.create_task_group() as tasks:
                tasks.start_soon(read)
                while not (was := await sql.fetchval(waiting)):
                    await anyio.lowlevel.checkpoint()
                await sql.execute("SELECT pg_terminate_backend($1)", was)
                while await sql.fetchval(waiting) in (None, was):
                    await anyio.lowlevel.checkpoint()
                await sql.execute("INSERT INTO asyncrevoke (text) VALUES ('a')")
        assert answers == ["a"]

    async def test_silence_is_an_error(self, own: PostgresServer, monkeypatch: pytest.MonkeyPatch) -> None:
        """A server that is stopped has not answered, after a while, whatever is asked; when it goes on, all goes on."""
        monkeypatch.setattr(engine, "_PATIENCE", 0.5)
        log, fresh = PostgresLog(own.url), PostgresLog(own.url)
        await log.check()
        await log.append("a")
        pids = own.pids
        for pid in pids:
            os.kill(pid, signal.SIGSTOP)
        try:
            with anyio.fail_after(30):
                for asked in log.read(0, 0.0, ME), log.append("b"), log.tell([("e1", "x")], 1.0), fresh.time():
                    with pytest.raises(LogError, match=r"has not answered for 0\.5 s"):
                        await asked
        finally:
            for pid in pids:
                os.kill(pid, signal.SIGCONT)
        monkeypatch.setattr(engine, "_PATIENCE", 5.0)
        assert "a" in await texts(log)
        await log.aclose()
        await fresh.aclose()


class TestKeeping:
    """What is written for a time only."""

    async def test_acknowledgements_do_not_stay(self, log: PostgresLog, sql: Any) -> None:
        """Whoever writes one removes those whose time is over."""
        await log.tell([("e1", "x"), ("e2", "y")], -1.0)
        await log.tell([("e1", "z")], 60.0)
        assert await sql.fetchval("SELECT count(*) FROM asyncrevoke_told") == 1

    async def test_a_member_that_says_nothing_for_a_day_is_forgotten(self, log: PostgresLog, sql: Any) -> None:
        """By the server's clock, whatever the clocks of hosts say."""
        for key, age in ("old", 86500), ("young", 80000):
            await log.read(0, 0.0, Member(key, key, "strict", 1.0))
            await sql.execute("UPDATE asyncrevoke_members SET said = said - $2 WHERE id = $1", key, age)
        [young] = await log.members()
        assert young.host == "young"
        assert 80000 <= young.age < 80100
        await log.leave(ME)
        assert await sql.fetch("SELECT id FROM asyncrevoke_members") == [("young",)]


class TestSaying:
    """A revoker that does not find a member among those who read need not wait for it."""

    async def test_a_member_is_known_before_anything_is_read(
        self, server: PostgresServer, log: PostgresLog, sql: Any
    ) -> None:
        """What is appended until the member could say that it reads is in what it reads."""
        answers: list[str] = []

        async def read() -> None:
            answers.extend(text for _, text in (await log.read(0, 0.0, ME)).texts)

        with anyio.fail_after(30):
            async with anyio.create_task_group() as tasks, connected(server) as other, sql.transaction():
                await sql.execute("LOCK TABLE asyncrevoke_members IN EXCLUSIVE MODE")
                tasks.start_soon(read)
                await until_waiting(other)
                await other.execute("INSERT INTO asyncrevoke (text) VALUES ('a')")
        assert answers == ["a"]


class TestRefusing:
    """A server that would lose entries, or cannot be used, is refused, with a word on what to change."""

    async def test_the_tables_are_made_by_whoever_comes_first(self, server: PostgresServer, sql: Any) -> None:
        """All may come at once."""
        async with anyio.create_task_group() as tasks:
            for _ in range(5):
                tasks.start_soon(refusal, server.url)
        assert await refusal(server.url) == ""
        assert await sql.fetchval("SELECT count(*) FROM asyncrevoke") == 0

    async def test_one_that_does_not_write_to_the_disk_is_refused(self, server: PostgresServer, sql: Any) -> None:
        """You may say that you take the risk."""
        await sql.execute("ALTER SYSTEM SET fsync = off")
        await sql.execute("SELECT pg_reload_conf()")
        async with connected(server) as one:
            while await one.fetchval("SHOW fsync") != "off":
                await anyio.lowlevel.checkpoint()
        try:
            assert "set `fsync = on`" in await refusal(server.url)
            assert await refusal(f"{server.url}&accept_loss=yes") == ""
        finally:
            await sql.execute("ALTER SYSTEM RESET fsync")
            await sql.execute("SELECT pg_reload_conf()")
            async with connected(server) as one:
                while await one.fetchval("SHOW fsync") != "on":
                    await anyio.lowlevel.checkpoint()

    async def test_a_standby_is_refused(self) -> None:
        """Nobody can write to it."""
        standby = PostgresServer()
        (standby.folder / "data" / "standby.signal").touch()
        with standby:
            assert "is a standby" in await refusal(standby.url)

    async def test_an_old_server_is_refused(self, server: PostgresServer, monkeypatch: pytest.MonkeyPatch) -> None:
        """With the version that would do."""
        monkeypatch.setattr(engine, "_OLDEST", 99)
        assert "upgrade it to 99 or later" in await refusal(server.url)

    async def test_who_may_not_make_the_tables_gets_the_sql(self, server: PostgresServer, sql: Any) -> None:
        """The owner executes it, and gives the rights that the documentation says. They are enough for a member."""
        await sql.execute("DROP ROLE IF EXISTS web; CREATE ROLE web LOGIN")
        url = server.url.replace("postgres@", "web@")
        said = await refusal(url)
        assert "permission denied for schema public" in said
        await sql.execute(said.partition("execute this:")[2])
        assert engine.__doc__ is not None
        grant = engine.__doc__.split("``")[1]
        for table in grant.partition(" ON ")[2].partition(" TO ")[0].split(", "):
            assert table in await refusal(url)
        await sql.execute(grant)
        log = PostgresLog(url)
        cluster = Cluster(Registry(), log, host="web7", lease=5.0, mode="strict")
        await cluster.init()
        async with anyio.create_task_group() as tasks:
            await tasks.start(cluster.run)
            assert (await cluster.revoke("alice", reason="stolen")).complete
            tasks.cancel_scope.cancel()
        await log.append(*map(str, range(1001)))
        await log.drop([number for number, _ in (await log.read(0, 0.0)).texts][:1])
        await log.aclose()
        await sql.execute("DROP OWNED BY web; DROP ROLE web")

    async def test_a_right_that_is_missing_is_named(self, server: PostgresServer, log: PostgresLog, sql: Any) -> None:
        """The message is the statement that gives it."""
        assert await texts(log) == []
        await sql.execute(f"DROP ROLE IF EXISTS web; CREATE ROLE web LOGIN; {engine.__doc__.split('``')[1]}")
        await sql.execute("REVOKE DELETE ON asyncrevoke_told FROM web")
        said = await refusal(server.url.replace("postgres@", "web@"))
        assert "GRANT SELECT, INSERT, UPDATE, DELETE ON asyncrevoke_told TO" in said
        await sql.execute("DROP OWNED BY web; DROP ROLE web")

    async def test_a_pool_that_passes_no_notifications_is_refused(
        self, server: PostgresServer, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        """As one of transactions, such as PgBouncer's: a revocation would be heard only when the next read is due."""
        monkeypatch.setattr(engine, "_PATIENCE", 0.5)
        listener = await anyio.create_tcp_listener(local_host="127.0.0.1")
        port = listener.extra(anyio.abc.SocketAttribute.local_port)
        async with listener, anyio.create_task_group() as tasks:
            tasks.start_soon(listener.serve, functools.partial(relay, server.folder / ".s.PGSQL.5432"))
            assert "does not pass on notifications" in await refusal(
                f"postgresql://postgres@127.0.0.1:{port}/postgres?sslmode=disable"
            )
            tasks.cancel_scope.cancel()

    async def test_no_server_is_an_error_that_names_it_without_its_password(self) -> None:
        """It is no refusal: one may come."""
        log = PostgresLog("postgresql://web:s3cret@127.0.0.1:1/shop?password=s3cret")
        with pytest.raises(LogError, match=r"^postgresql://127\.0\.0\.1:1/shop: .*onnect") as caught:
            await log.check()
        assert not isinstance(caught.value, LogRefusedError)
        assert "s3cret" not in f"{caught.value} {log.name}"

    async def test_a_database_that_is_not_there_is_named(self, server: PostgresServer) -> None:
        """By the server's own words."""
        log = PostgresLog(server.url.replace("/postgres?", "/shop?"))
        with pytest.raises(LogError, match='database "shop" does not exist'):
            await log.check()

    async def test_a_table_name_that_would_have_to_be_quoted_is_refused(self) -> None:
        """Nothing of it comes into a statement."""
        for table in "Revoked", "a b", "x; DROP TABLE y", "", "é", "x" * 41:
            with pytest.raises(ValueError, match="cannot name a table"):
                PostgresLog("postgresql://h/db", table=table)

    async def test_options_of_ours_may_stand_in_the_url(self, server: PostgresServer, sql: Any) -> None:
        """For the command line, which has nothing but a url."""
        log = open_log(f"{server.url}&table=revoked")
        await log.check()
        await log.append("a")
        assert await sql.fetchval("SELECT text FROM revoked") == "a"
        await log.aclose()


async def relay(path: pathlib.Path, client: anyio.abc.ByteStream) -> None:
    """Between a client and the server at a path: pass everything on but notifications."""
    said, to_server = await asyncio.open_unix_connection(path)

    async def ask() -> None:
        try:
            with contextlib.suppress(anyio.BrokenResourceError):
                async for data in client:
                    to_server.write(data)
        finally:
            to_server.close()

    async with client, anyio.create_task_group() as tasks:
        tasks.start_soon(ask)
        with (
            anyio.CancelScope(shield=True),
            contextlib.suppress(asyncio.IncompleteReadError, anyio.BrokenResourceError),
        ):
            while True:  # until the client has closed
                head = await said.readexactly(5)
                body = await said.readexactly(int.from_bytes(head[1:]) - 4)
                if head[:1] != b"A":
                    await client.send(head + body)
        to_server.close()
        await to_server.wait_closed()
