"""What is Redis's own, against a real server. What each log must do is in test_logs."""

import contextlib
import pathlib
import socket
from collections.abc import AsyncIterator, Iterator
from typing import Any

import anyio
import pytest
from engines import RedisServer
from redis.asyncio import Redis

from asyncrevoke import Registry
from asyncrevoke.cluster import Cluster, Entry, LogError, LogRefusedError, Member, open_log, redis as engine
from asyncrevoke.cluster.redis import RedisLog
from conftest import BACKENDS

pytestmark = [
    pytest.mark.anyio,
    pytest.mark.skipif(bool(RedisServer.missing), reason=RedisServer.missing),
]
ME = Member("web7", "m1", "strict", 1.0)


@pytest.fixture(params=[backend for backend in BACKENDS if backend.id != "trio"])
def anyio_backend(request: pytest.FixtureRequest) -> Any:
    return request.param


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[RedisServer]:
    with RedisServer(tmp_path_factory.mktemp("redis"), "--appendfsync", "always") as server:
        yield server


@pytest.fixture
async def redis(server: RedisServer) -> AsyncIterator[Any]:
    """A client for what no log does. It leaves an empty server."""
    async with Redis.from_url(server.url, decode_responses=True) as redis:
        yield redis
        await redis.flushall()


@pytest.fixture
async def log(server: RedisServer, redis: Any) -> AsyncIterator[RedisLog]:
    del redis  # empties it
    log = RedisLog(server.url)
    yield log
    await log.aclose()


@contextlib.asynccontextmanager
async def started(folder: pathlib.Path, *options: str) -> AsyncIterator[RedisServer]:
    server = RedisServer(folder, *options)
    await anyio.to_thread.run_sync(server.start)
    try:
        yield server
    finally:
        server.kill()


async def refusal(server: RedisServer, query: str = "") -> str:
    """Why a server is refused; "" if it is not."""
    log = RedisLog(server.url + query)
    try:
        await log.check()
    except LogRefusedError as exc:
        return str(exc)
    finally:
        await log.aclose()
    return ""


class TestReading:
    """One answer tells what is new, and whether the log is still the one that was read."""

    async def test_a_cancelled_read_leaves_no_answer_for_the_next_one(self, log: RedisLog) -> None:
        """Whoever asks after a read was cancelled gets an answer to the own question, over and over."""
        await log.append("a")
        [(first, _)] = (await log.read(0, 0.0)).texts
        for turn in range(50):
            async with anyio.create_task_group() as tasks:
                tasks.start_soon(log.read, first, 10.0, ME)
                for _ in range(turn):  # each step of it is cut once: connecting, asking, waiting
                    await anyio.lowlevel.checkpoint()
                tasks.cancel_scope.cancel()
            assert await log.told("e0", 7, 0.0) == (7, [])
            assert (await log.read(0, 0.0)).texts == [(first, "a")]
            assert await log.time() > 1e9

    async def test_an_answer_cut_off_while_it_arrives_is_given_to_nobody(self, log: RedisLog, redis: Any) -> None:
        """A read that is cancelled after the server has answered leaves its answer to nobody."""
        for turn in range(20):
            async with anyio.create_task_group() as tasks:
                tasks.start_soon(log.read, 0, 10.0)
                while not (await redis.info("clients"))["blocked_clients"]:
                    await anyio.lowlevel.checkpoint()
                await redis.xadd("asyncrevoke:log", {"t": f"{turn}"})
                tasks.cancel_scope.cancel()
            assert await log.told("e0", 7, 0.0) == (7, [])
            await redis.flushall()

    async def test_what_follows_a_refused_command_is_given_to_nobody(self, log: RedisLog, redis: Any) -> None:
        await redis.set("asyncrevoke:log", "another program's")
        with pytest.raises(LogError, match="WRONGTYPE"):
            await log.append("first", "second")
        await redis.delete("asyncrevoke:log")
        await log.append("third")
        assert [text for _, text in (await log.read(0, 0.0)).texts] == ["third"]

    async def test_a_wipe_while_a_read_waits_is_seen_in_its_answer(self, log: RedisLog, redis: Any) -> None:
        """What is written to a log that was wiped meanwhile is no news of the one that was read."""
        await log.append("a")
        [(first, _)] = (await log.read(0, 0.0)).texts
        answers = []

        async def read() -> None:
            answers.append(await log.read(first, 10.0))

        async with anyio.create_task_group() as tasks:
            tasks.start_soon(read)
            while not (await redis.info("clients"))["blocked_clients"]:
                await anyio.lowlevel.checkpoint()
            await redis.flushall()
            await log.append("b")
        assert answers[0].here is None

    async def test_what_others_have_written_is_handed_on(self, log: RedisLog, redis: Any) -> None:
        """An entry of several fields is no reason to fall over: the member refuses it, and names it."""
        key = await redis.xadd("asyncrevoke:log", {"a": "x", "b": "y"})
        [(number, text)] = (await log.read(0, 0.0)).texts
        assert text == "x"
        assert (await log.read(number, 0.0)).here == "x"
        assert number >> 20 == int(key.split("-")[0])

    async def test_a_long_log_comes_in_parts(self, log: RedisLog) -> None:
        """No answer has more than 1,000 entries, and only the last one is whole."""
        texts = [str(number) for number in range(2300)]
        await log.append(*texts)
        read: list[str] = []
        after, whole = 0, False
        while not whole:
            _, new, whole = await log.read(after, 0.0)
            assert len(new) <= 1000
            after = new[-1][0]
            read += [text for _, text in new]
        assert read == texts

    async def test_what_is_not_dropped_is_the_newest_thousand(self, log: RedisLog) -> None:
        """Entries are dropped by their numbers, but for the newest 1,000."""
        await log.append(*map(str, range(1003)))
        numbers = [number for number, _ in (await log.read(0, 0.0)).texts]
        await log.drop(numbers)
        batch = await log.read(0, 0.0)
        assert [text for _, text in batch.texts] == [str(number) for number in range(3, 1003)]
        assert (await log.read(numbers[1], 0.0)).here is None
        assert (await log.read(numbers[3], 0.0)).here == "3"

    async def test_a_member_that_says_nothing_for_a_day_is_forgotten(self, log: RedisLog, redis: Any) -> None:
        """By the server's clock, whatever the clocks of hosts say."""
        now = int(await log.time())
        for key, age in ("old", 86500), ("young", 80000):
            await redis.hset("asyncrevoke:members", key, f"{now - age} 5 {Member(key, key, 'strict', 1.0).dump()}")
        [young] = await log.members()
        assert young.host == "young"
        assert 80000 <= young.age < 80100
        assert await redis.hkeys("asyncrevoke:members") == ["young"]

    async def test_acknowledgements_do_not_stay(self, log: RedisLog, redis: Any) -> None:
        """They have the time to live that was said."""
        await log.tell([("e1", "x"), ("e2", "y"), ("e1", "z")], 60.0)
        assert (await log.told("e1", 0, 0.0))[1] == ["x", "z"]
        assert 50_000 < await redis.pttl("asyncrevoke:acks:e1") <= 60_000
        assert 50_000 < await redis.pttl("asyncrevoke:acks:e2") <= 60_000


class TestRefusing:
    """A server that would lose entries is refused, with a word on what to change."""

    async def test_a_server_that_will_do_is_taken(self, server: RedisServer, redis: Any) -> None:
        """And nothing stays of the look at it."""
        assert await refusal(server) == ""
        assert await redis.keys("asyncrevoke:members") == []

    async def test_one_that_forgets_on_a_restart_is_refused(self, tmp_path: pathlib.Path) -> None:
        """As Debian starts it. You may say that you take the risk."""
        async with started(tmp_path, "--appendonly", "no") as server:
            assert "set `appendonly yes`" in await refusal(server)
            assert await refusal(server, "?accept_loss=yes") == ""

    async def test_one_that_drops_keys_when_memory_is_full_is_refused(self, server: RedisServer, redis: Any) -> None:
        """A log is a key like others."""
        await redis.config_set("maxmemory-policy", "allkeys-lru")
        assert "allkeys-lru" in await refusal(server)
        assert await refusal(server, "?accept_loss=yes") == ""
        await redis.config_set("maxmemory-policy", "volatile-lru")  # may drop acknowledgements
        assert await refusal(server) == ""
        await redis.config_set("maxmemory-policy", "noeviction")

    async def test_a_replica_is_refused(self, server: RedisServer, redis: Any) -> None:
        """Nobody can write to it."""
        await redis.replicaof("127.0.0.1", "1")
        assert "a replica" in await refusal(server)
        await redis.replicaof("NO", "ONE")

    async def test_one_of_a_redis_cluster_is_refused(self, tmp_path: pathlib.Path) -> None:
        """Its keys are on several servers."""
        async with started(tmp_path, "--cluster-enabled", "yes") as server:
            assert "Redis Cluster" in await refusal(server)

    @pytest.mark.parametrize(
        "command", ["info", "eval", "time", "hset", "hdel", "hgetall", "xread", "xrange", "xadd", "pexpire"]
    )
    async def test_a_command_that_is_not_permitted_is_named(
        self, command: str, server: RedisServer, redis: Any
    ) -> None:
        """Before a member starts, not when it needs it."""
        await redis.execute_command("ACL", "SETUSER", "web", "reset", "on", ">pw", "~*", "+@all", f"-{command}")
        assert command in (await refusal(server, "?username=web&password=pw")).lower()

    async def test_what_the_documentation_says_is_enough(self, server: RedisServer, redis: Any) -> None:
        """A user of Redis with exactly those permissions is a member, revokes, and drops entries."""
        assert engine.__doc__ is not None
        words = engine.__doc__.replace("PREFIX", "asyncrevoke").split("``")[1].split()
        await redis.execute_command("ACL", "SETUSER", "web", "reset", "on", ">pw", *words)
        log = RedisLog(f"{server.url}?username=web&password=pw")
        live = Registry()
        cluster = Cluster(live, log, host="web7", lease=5.0, mode="strict")
        await cluster.init()
        async with anyio.create_task_group() as tasks:
            await tasks.start(cluster.run)
            report = await cluster.revoke("alice", reason="stolen")
            assert report.complete
            tasks.cancel_scope.cancel()
        await log.append(*map(str, range(1001)))
        await log.drop([number for number, _ in (await log.read(0, 0.0)).texts][:1])
        await log.aclose()

    async def test_a_wrong_password_is_refused_and_not_shown(self, server: RedisServer) -> None:
        """Neither that of the url nor that of its query stands in a message."""
        said = await refusal(server, "?username=web&password=s3cret")
        assert "invalid username-password pair" in said
        assert "s3cret" not in said

    async def test_no_server_is_an_error_that_names_the_url_without_its_password(self) -> None:
        """It is no refusal: one may come."""
        log = RedisLog("redis://web:s3cret@127.0.0.1:1/3?password=s3cret")
        with pytest.raises(LogError, match=r"^redis://127\.0\.0\.1:1/3: .*onnect") as caught:
            await log.check()
        assert not isinstance(caught.value, LogRefusedError)
        assert "s3cret" not in f"{caught.value} {log.name}"

    async def test_silence_is_an_error(self, tmp_path: pathlib.Path) -> None:
        """A server that takes connections and says nothing is one that has not answered, after a while."""
        path = tmp_path / "silent.sock"
        with socket.socket(socket.AF_UNIX) as silent:
            silent.bind(str(path))
            silent.listen()
            log = RedisLog(f"unix://{path}")
            with pytest.raises(LogError, match=r"has not answered for 2\.0 s"):
                await log.time()
            await log.aclose()


class TestUrls:
    """The scheme of a url says which engine it is."""

    @pytest.mark.parametrize("url", ["redis://h:1/2", "rediss://h", "unix:///run/r.sock", "valkey://h", "valkeys://h"])
    async def test_redis_and_valkey(self, url: str) -> None:
        """Nothing is connected by it."""
        assert isinstance(open_log(url), RedisLog)

    async def test_options_of_ours_may_stand_in_the_url(self, server: RedisServer, redis: Any) -> None:
        """For the command line, which has nothing but a url."""
        log = open_log(f"{server.url}?prefix=shop&db=1")
        await log.append(Entry.new("init").dump())
        assert await redis.keys("*") == []
        await redis.select(1)
        assert await redis.keys("*") == ["shop:log"]
        await log.aclose()

    async def test_an_unknown_scheme_is_refused_with_those_there_are(self) -> None:
        """So is a url without one."""
        for url in "mysql://h", "h:6379":
            with pytest.raises(ValueError, match="give one of redis, rediss"):
                open_log(url)


@pytest.mark.parametrize("said", ["nobody", "9999999999 0 nonsense", "x y {}", b"\xff"])
async def test_members_of_another_program_are_refused(log: RedisLog, redis: Any, said: Any) -> None:
    """Its hash has our name: to go on would be to count nobody, or to end by an error of ours."""
    await redis.hset("asyncrevoke:members", "foo", said)
    with pytest.raises(LogError, match=r"another program|not a member|decode"):
        await log.members()


async def test_bytes_that_are_no_text_are_an_error_of_the_log(log: RedisLog, redis: Any) -> None:
    """A member is cut off by them, and does not end by an error of ours."""
    await redis.xadd("asyncrevoke:log", {"t": b"\xff"})
    with pytest.raises(LogError, match="decode"):
        await log.read(0, 0.0)
