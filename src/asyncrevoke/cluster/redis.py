"""A log in Redis 5 or later, or in Valkey. It is a stream.

Keys: `PREFIX:log` is the stream, `PREFIX:members` a hash, `PREFIX:acks:ID` a stream for each entry that is acknowledged.
To be a member and to revoke, a user of Redis needs these rights: ``~PREFIX:* +info +time +eval +xadd +xread +xrange
+xrevrange +xdel +pexpire +hset +hgetall +hdel``. In a database other than 0, it needs `+select`, too.
A user that may write to `PREFIX:log` may revoke and readmit.
"""

import asyncio
from collections.abc import Iterable, Iterator, Sequence
from typing import Any

from redis.asyncio import ConnectionPool
from redis.asyncio.connection import parse_url
from redis.asyncio.retry import Retry
from redis.backoff import NoBackoff
from redis.exceptions import AuthenticationError, RedisError, ResponseError

from .entry import LogError, LogRefusedError
from .log import KEPT, Batch, Log, Member, place

_MANY = 1000  # entries in one answer
_PATIENCE = 2.0  # seconds that the server may take to answer
_DAY = 86400
# The time of the server stands in front of what a member says. So the clocks of members do not matter.
_NOTE = "local now = redis.call('TIME') redis.call('HSET', KEYS[1], ARGV[1], now[1] .. ' ' .. now[2] .. ' ' .. ARGV[2])"

Command = tuple[str | int, ...]


class RedisLog(Log):
    """A log in Redis or Valkey: ``RedisLog("redis://:password@host:6379/0")``, also rediss:// and unix://. For asyncio.

    The server must write down what it has acknowledged: `appendonly yes`. Then its crash loses nothing. A power failure may
    lose the last second, unless you set `appendfsync always`.

    :param url: as redis-py takes it, with its options. `prefix` and `accept_loss` may stand there, too:
        ``redis://host?prefix=shop&accept_loss=yes``
    :param prefix: prefix of all keys
    :param accept_loss: accept a server that forgets on a restart, or when its memory is full. Members write back what they
        have read. A revocation that no member has read by then is lost, although it was acknowledged
    :raises ValueError: if the url has a fault
    """

    def __init__(self, url: str, *, prefix: str = "asyncrevoke", accept_loss: bool = False) -> None:
        url = url.replace("valkey", "redis", 1) if url.startswith("valkey") else url
        self.name = f"{url.partition(':')[0]}://{place(url)}"
        options: dict[str, Any] = {**parse_url(url)}
        self._prefix = options.pop("prefix", prefix)
        self.name += "" if self._prefix == "asyncrevoke" else f"?prefix={self._prefix}"
        self._accept_loss = options.pop("accept_loss", "no") == "yes" or accept_loss
        # No retries: the answer to a second try says nothing of the first. `_ask` bounds the time of an answer.
        options |= {"retry": Retry(NoBackoff(), 0), "retry_on_timeout": False, "health_check_interval": 0}
        options |= {"socket_timeout": None, "socket_connect_timeout": _PATIENCE}
        options |= {"protocol": 2, "decode_responses": True}
        self._pool: Any = ConnectionPool(**options)
        try:
            self._pool.make_connection()  # type: ignore[no-untyped-call]  # it connects to nothing yet
        except TypeError as exc:
            raise ValueError(f"{self.name} has an option that redis-py does not know: {exc}") from None
        self._log = f"{self._prefix}:log"
        self._members = f"{self._prefix}:members"

    async def check(self) -> None:
        """Refuse a server that would lose entries, or that this user may not use.

        :raises LogRefusedError: if it is refused. The message says what to change
        :raises LogError: if it does not answer
        """
        try:
            [text] = await self._ask(("INFO",))
            facts = dict(line.split(":", 1) for line in text.splitlines() if ":" in line)
            if wrong := next(self._wrong(facts), None):
                raise LogRefusedError(f"{self.name} {wrong}")
            # All that a member does. Nobody can see anything of it.
            nobody = Member("", "nobody", "strict", 0.0)
            await self.read(0, 0.0, nobody)
            await self.leave(nobody)
            await self.members()
            await self.tell([("nothing", "")], 0.001)
            await self.told("nothing", 0, 0.0)
        except LogError as exc:
            # redis-py wraps an error of the server once more if it comes while it connects over a Unix socket.
            reasons = exc.__cause__, exc.__cause__ and exc.__cause__.__cause__
            if any(isinstance(each, ResponseError | AuthenticationError) for each in reasons):
                raise LogRefusedError(str(exc)) from exc.__cause__
            raise

    def _wrong(self, facts: dict[str, str]) -> Iterator[str]:
        version = facts["redis_version"]
        if int(version.partition(".")[0]) < 5:
            yield f"is version {version}, without streams: upgrade it to 5 or later"
        if facts.get("cluster_enabled") == "1":
            yield "is part of a Redis Cluster, which has the keys of a log on several servers: give the url of a single one"
        if facts.get("role", "master") != "master":
            yield "is a replica, to which nobody can write: give the url of its master"
        if facts.get("aof_enabled") != "1" and not self._accept_loss:
            yield "forgets on a restart what it has acknowledged: set `appendonly yes`, by CONFIG SET and in its configuration"
        if (policy := facts.get("maxmemory_policy", "")).startswith("allkeys") and not self._accept_loss:
            yield f"drops entries when its memory is full: set `maxmemory-policy noeviction`. It is {policy}"

    async def append(self, *texts: str) -> None:
        await self._ask(*(_xadd(self._log, text) for text in texts))

    async def read(self, after: int, wait: float, member: Member | None = None) -> Batch:
        said = () if member is None else (("EVAL", _NOTE, 1, self._members, member.id, member.dump()),)
        # It is asked for before the wait and after it: what comes in a log that was wiped meanwhile is no news of this one.
        here = "XRANGE", self._log, _id(after), _id(after)
        news = _xread(self._log, after, wait)
        answers = await self._ask(*said, here, news, here, wait=wait, needed=here if after else None)
        if after and not answers[-1]:
            return Batch(None, [], whole=True)
        texts = _texts(answers[-2])
        return Batch(answers[-1][0][1][1] if after else None, texts, whole=len(texts) < _MANY)

    async def tell(self, told: Iterable[tuple[str, str]], keep: float) -> None:
        told = [(self._acks(about), text) for about, text in told]
        kept: dict[str, Command] = {key: ("PEXPIRE", key, max(1, int(keep * 1000))) for key, _ in told}
        await self._ask(*(_xadd(key, text) for key, text in told), *kept.values())

    async def told(self, about: str, after: int, wait: float) -> tuple[int, Sequence[str]]:
        [new] = await self._ask(_xread(self._acks(about), after, wait), wait=wait)
        texts = _texts(new)
        return (texts[-1][0] if texts else after), [text for _, text in texts]

    async def members(self) -> list[Member]:
        now, said = await self._ask(("TIME",), ("HGETALL", self._members))
        found, gone = [], []
        for key, text in zip(said[::2], said[1::2], strict=True):
            seconds, _, rest = text.partition(" ")
            micros, _, facts = rest.partition(" ")
            if not (seconds.isdecimal() and micros.isdecimal()):
                raise LogRefusedError(f"{self._members} at {self.name} is another program's: give another prefix")
            age = _seconds(now) - _seconds((seconds, micros))
            if age > _DAY:
                gone.append(key)
            else:
                found.append(Member.parse(facts, age))
        if gone:
            await self._ask(("HDEL", self._members, *gone))
        return found

    async def leave(self, member: Member) -> None:
        await self._ask(("HDEL", self._members, member.id))

    async def drop(self, numbers: Sequence[int]) -> None:
        [newest] = await self._ask(("XREVRANGE", self._log, "+", "-", "COUNT", KEPT))
        old = [_id(number) for number in numbers if len(newest) == KEPT and number < _number(newest[-1][0])]
        if old:
            await self._ask(("XDEL", self._log, *old))

    async def time(self) -> float:
        [now] = await self._ask(("TIME",))
        return _seconds(now)

    async def aclose(self) -> None:
        await self._pool.disconnect()

    def _acks(self, about: str) -> str:
        return f"{self._prefix}:acks:{about}"

    async def _ask(self, *commands: Command, wait: float = 0.0, needed: Command | None = None) -> list[Any]:
        """Send all commands at once, on a connection that is ours until all are answered. A failure closes it.

        A pipeline of redis-py does the same in twice the time.

        :param needed: one of the commands. If its answer is empty, the answers after it are not waited for
        """
        answers: list[Any] = []
        try:
            async with asyncio.timeout(wait + _PATIENCE):
                connection = await self._pool.get_connection()
                try:
                    await connection.send_packed_command(connection.pack_commands(commands))
                    for command in commands:
                        answers.append(await connection.read_response())
                        if command is needed and not answers[-1]:
                            await connection.disconnect(nowait=True)
                            break
                except BaseException:
                    await connection.disconnect(nowait=True)  # later commands would get the unread answers
                    raise
                finally:
                    await self._pool.release(connection)
        except TimeoutError as exc:
            raise LogError(f"{self.name} has not answered for {wait + _PATIENCE:.1f} s") from exc
        except (RedisError, OSError, UnicodeDecodeError) as exc:
            asked = (
                f" (to {' '.join(map(str, commands[len(answers)]))[:120]})" if isinstance(exc, ResponseError) else ""
            )
            raise LogError(f"{self.name}: {exc}{asked}") from exc
        return answers


def _xadd(key: str, text: str) -> Command:
    return "XADD", key, "*", "t", text


def _xread(key: str, after: int, wait: float) -> Command:
    block = ("BLOCK", milliseconds) if (milliseconds := int(wait * 1000)) else ()  # 0 would be for ever
    return "XREAD", "COUNT", _MANY, *block, "STREAMS", key, _id(after)


def _texts(new: list[Any] | None) -> list[tuple[int, str]]:
    return [(_number(key), fields[1]) for _, entries in new or () for key, fields in entries]


def _number(key: str) -> int:
    """Return an id of the stream as a number: the milliseconds, and 20 bits for a million entries in each of them."""
    milliseconds, _, sequence = key.partition("-")
    return int(milliseconds) << 20 | int(sequence)


def _id(number: int) -> str:
    return f"{number >> 20}-{number & 0xFFFFF}"


def _seconds(time: tuple[str | int, str | int]) -> float:
    return int(time[0]) + int(time[1]) / 1e6
