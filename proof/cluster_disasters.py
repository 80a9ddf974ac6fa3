"""Does a revocation reach every host, whatever happens? ``python proof/cluster_disasters.py --rounds 200``

Three members with their sessions, each in a process of its own, follow a real log on this machine. This process revokes, and
lets the engine or a member fail. It counts in each round:

- lost: sessions that stayed or came back, though their revocation was appended
- late: sessions that ended after the report had said that they were gone
- wrong: sessions that were refused by a revocation which does not speak of them
- waiting: sessions that a host had neither admitted nor refused for good after 20 s
- closed: seconds from the failure until nobody is inside of a host that is cut off: the lease, and half a second
- healed: seconds from the end of the failure until sessions are admitted again: a read, and what it takes to fail
- lag: seconds that the loop of a member was late, at the worst: it has a thousand sessions to end, and a part of the machine.
  Each bound is later by so much. A member that is stopped is late by as much

Ends with 1 if a session was lost, late, wrong or waiting, or if nothing was revoked.
"""

import argparse
import asyncio
import contextlib
import itertools
import json
import math
import pathlib
import random
import signal
import statistics
import sys
import tempfile
from collections.abc import AsyncIterator, Callable, Iterable
from dataclasses import dataclass, field
from typing import Any, Self

import anyio
import anyio.abc
import asyncpg
from redis.asyncio import Redis

from asyncrevoke import Registry, RevokedError
from asyncrevoke.cluster import (
    Cluster,
    ClusterEvent,
    ClusterReport,
    LogError,
    NotVouchedError,
    Position,
    Revoker,
    open_log,
)
from asyncrevoke.cluster.view import clock

sys.path.append(str(pathlib.Path(__file__).parents[1] / "benchmarks"))
from engines import PostgresServer, RedisServer  # which tests and benchmarks use, too

LIMIT = 20.0  # seconds after which what has not happened will not
LAP = 0.02  # seconds between two looks for how late a loop is


class RedisHere(RedisServer):
    """Redis, and what is done to it."""

    def at(self, port: int) -> str:
        """Its url over a proxy."""
        return f"redis://127.0.0.1:{port}"

    async def wipe(self) -> None:
        """Lose everything."""
        async with Redis.from_url(self.url) as redis:
            await redis.flushall()


class PostgresHere(PostgresServer):
    """PostgreSQL, and what is done to it."""

    def __init__(self, _folder: pathlib.Path) -> None:
        super().__init__()
        self.path = self.folder / ".s.PGSQL.5432"

    def at(self, port: int) -> str:
        """Its url over a proxy."""
        return f"postgresql://postgres@127.0.0.1:{port}/postgres"

    async def wipe(self) -> None:
        """Lose everything."""
        connection = await asyncpg.connect(self.url)
        await connection.execute("TRUNCATE asyncrevoke, asyncrevoke_told, asyncrevoke_members")
        await connection.close()


Engine = RedisHere | PostgresHere
ENGINES: dict[str, type[Engine]] = {"redis": RedisHere, "postgres": PostgresHere}

# -- a member, in a process of its own --


class Host:
    """A member and its sessions. Each comes again when it was ended, until it is refused for good."""

    def __init__(self, url: str, name: str, lease: float) -> None:
        self._log = open_log(url)
        self._cluster = Cluster(Registry(), self._log, host=name, lease=lease, mode="strict", observers=(self._note,))
        self._inside: set[str] = set()
        self._refused: set[str] = set()
        self._ended: dict[str, float] = {}
        self._vouched = anyio.Event()
        self._changed = anyio.Event()
        self._came = self._went = self._lag = 0.0

    async def run(self, *, task_status: anyio.abc.TaskStatus[Self]) -> None:
        """Be a member, until stopped."""
        async with anyio.create_task_group() as self._tasks:
            self._tasks.start_soon(self._measure_lag)
            while True:
                try:
                    await self._tasks.start(self._cluster.run)
                    break
                except LogError:  # a wiped log is not made good yet: it begins again, as any supervisor has it
                    await anyio.sleep(0.01)
            task_status.started(self)
            await anyio.sleep_forever()
        await self._log.aclose()

    async def stop(self) -> None:
        """Leave in good order."""
        self._tasks.cancel_scope.cancel()

    async def position(self) -> str:
        """Up to where it has read."""
        return str(self._cluster.position)

    async def login(self, sessions: dict[str, str]) -> dict[str, str]:
        """Sessions by key, with the position at which each was issued. It tells where those are that are not inside."""
        self._refused.difference_update(sessions)
        for key, issued in sessions.items():
            self._tasks.start_soon(self._session, key, Position.parse(issued))
        await self._until(lambda: self._inside | self._refused >= sessions.keys())
        return self._not("inside", sessions)

    async def gone(self, keys: list[str]) -> dict[str, str]:
        """Wait until sessions are refused. It tells where those are that are not."""
        await self._until(lambda: self._refused.issuperset(keys) and self._inside.isdisjoint(keys))
        return self._not("refused", keys)

    async def back(self, keys: list[str]) -> dict[str, str]:
        """Wait until sessions are inside. It tells where those are that are not."""
        await self._until(lambda: self._inside.issuperset(keys))
        return self._not("inside", keys)

    async def ended(self, key: str) -> float | None:
        """When a session ended; None: it is there."""
        return None if key in self._inside else self._ended.get(key, 0.0)

    async def times(self) -> tuple[float, float]:
        """When the first session came and the last one went, since this was asked."""
        times, self._came, self._went = (self._came, self._went), 0.0, 0.0
        return times

    async def lag(self) -> float:
        """How late its loop was at the worst, since this was asked."""
        lag, self._lag = self._lag, 0.0
        return lag

    def _not(self, expected: str, keys: Iterable[str]) -> dict[str, str]:
        def place(key: str) -> str:
            return "inside" if key in self._inside else "refused" if key in self._refused else "waiting"

        return {key: place(key) for key in keys if place(key) != expected}

    async def _measure_lag(self) -> None:
        while True:
            began = clock()
            await anyio.sleep(LAP)
            self._lag = max(self._lag, clock() - began - LAP)

    async def _until(self, condition: Callable[[], bool]) -> None:
        with anyio.move_on_after(LIMIT):
            while not condition():
                await self._changed.wait()

    def _note(self, event: ClusterEvent) -> None:
        if event.what == "caught up":
            self._vouched.set()
        elif event.what != "taken" and self._vouched.is_set():
            self._vouched = anyio.Event()

    def _change(self) -> None:
        self._changed.set()
        self._changed = anyio.Event()

    async def _session(self, key: str, issued: Position) -> None:
        came = True
        while came:
            came = False
            try:
                with self._cluster.admit(*key.split("/"), issued=issued):
                    came = True
                    self._inside.add(key)
                    self._came = self._came or clock()
                    self._change()
                    try:
                        await anyio.sleep_forever()
                    finally:
                        self._inside.remove(key)
                        self._ended[key] = self._went = clock()
            except NotVouchedError:
                await self._vouched.wait()
                await anyio.sleep(0.01)  # its lease may be over before it says so
                came = True
            except RevokedError:
                pass  # it was ended and tries again, or it was refused
        self._refused.add(key)
        self._change()


async def be_a_member() -> None:
    """Do what is read, a line each: [host's method, arguments]."""
    async with anyio.create_task_group() as tasks:
        host: Host | None = None
        async for line in anyio.wrap_file(sys.stdin):
            do, args = json.loads(line)
            if do == "start":
                host = await tasks.start(Host(*args).run)
                answer = None
            else:
                answer = await getattr(host, do)(*args)
            print(json.dumps(answer), flush=True)
        tasks.cancel_scope.cancel()


class Process:
    """A member, as seen from here: ``await process.ask("position")``"""

    def __init__(self, process: asyncio.subprocess.Process) -> None:
        self._process = process
        self._lock = asyncio.Lock()

    @classmethod
    @contextlib.asynccontextmanager
    async def started(cls) -> AsyncIterator[Self]:
        """It has no member yet."""
        pipe = asyncio.subprocess.PIPE
        process = await asyncio.create_subprocess_exec(
            sys.executable, __file__, "member", limit=1 << 24, stdin=pipe, stdout=pipe
        )
        try:
            yield cls(process)
        finally:
            process.kill()
            with anyio.CancelScope(shield=True):
                await process.communicate()

    async def ask(self, do: str, *args: Any) -> Any:
        """Let it do what `Host` can."""
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        async with self._lock:
            self._process.stdin.write(json.dumps([do, args]).encode() + b"\n")
            if not (line := await self._process.stdout.readline()):
                raise RuntimeError(f"a member has ended while it did {do!r}")
            return json.loads(line)

    def send_signal(self, number: int) -> None:
        """As SIGSTOP."""
        self._process.send_signal(number)


class Wire:
    """A TCP proxy to the engine's Unix socket. When it is cut, it says nothing and closes nothing."""

    def __init__(self, path: pathlib.Path) -> None:
        self._path = str(path)
        self._connected: set[asyncio.StreamWriter] = set()
        self._whole = asyncio.Event()
        self._whole.set()

    @contextlib.asynccontextmanager
    async def serving(self) -> AsyncIterator[int]:
        """Its port."""
        server = await asyncio.start_server(self._connect, "127.0.0.1")
        try:
            yield server.sockets[0].getsockname()[1]
        finally:
            server.close()
            for connected in self._connected:  # from Python 3.12 on, asyncio would wait for their ends
                connected.transport.abort()

    def cut(self) -> None:
        """From now on it keeps what it gets."""
        self._whole.clear()

    def mend(self) -> None:
        """It hands on what it has kept, as TCP sends again."""
        self._whole.set()

    async def _connect(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self._connected.add(writer)
        await self._whole.wait()
        with contextlib.suppress(OSError):
            theirs = await asyncio.open_unix_connection(self._path)
            await asyncio.gather(self._carry(reader, theirs[1]), self._carry(theirs[0], writer))

    async def _carry(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        with contextlib.suppress(OSError):
            while data := await reader.read(1 << 16):
                await self._whole.wait()
                writer.write(data)
                await writer.drain()
        await self._whole.wait()
        writer.close()


# -- the disasters --


@dataclass
class Count:
    """What was found."""

    revoked: int = 0
    lost: list[str] = field(default_factory=list)
    late: list[str] = field(default_factory=list)
    wrong: list[str] = field(default_factory=list)
    waiting: list[str] = field(default_factory=list)
    closed: list[float] = field(default_factory=list)
    healed: list[float] = field(default_factory=list)
    lag: float = 0.0

    @property
    def faults(self) -> list[str]:
        """All that should not be, in words."""
        return [f"{what}: {each}" for what in ("lost", "late", "wrong", "waiting") for each in getattr(self, what)]

    def note(self, host: str, places: dict[str, str]) -> None:
        """Sessions of a host which are where they should not be."""
        for key, place in places.items():
            {"inside": self.lost, "refused": self.wrong, "waiting": self.waiting}[place].append(f"{host} {key}")


class Rig:
    """An engine, three members and a spare process, and what they should know.

    :param sessions: of each member
    """

    hosts = "web1", "web2", "web3"

    def __init__(self, engine: Engine, processes: list[Process], wires: list[Wire], lease: float, seed: int) -> None:
        self.engine = engine
        *self.members, self.spare = processes
        self.wires = wires
        self.lease = lease
        self.count = Count()
        self.revoker = Revoker(open_log(engine.url))
        self.issued: dict[str, str] = {}  # all that are to be inside
        self.dead: dict[str, str] = {}  # all that are not to come inside any more
        self.luck = random.Random(seed)

    @classmethod
    @contextlib.asynccontextmanager
    async def built(cls, engine: Engine, *, sessions: int, lease: float, seed: int, wired: bool) -> AsyncIterator[Self]:
        """All are members, and all sessions are inside."""
        async with contextlib.AsyncExitStack() as stack:
            await anyio.to_thread.run_sync(stack.enter_context, engine)
            processes = [await stack.enter_async_context(Process.started()) for _ in range(4)]
            wires = [Wire(engine.path) for _ in range(3)]
            urls = [engine.at(await stack.enter_async_context(wire.serving())) for wire in wires]
            rig = cls(engine, processes, wires, lease, seed)
            stack.push_async_callback(rig.revoker.log.aclose)
            await rig.revoker.init()
            for process, host, url in zip(rig.members, rig.hosts, urls, strict=True):
                await process.ask("start", url if wired else engine.url, host, lease)
            position = await rig.members[0].ask("position")
            await rig.login({f"user{number // 10}/token{number}": position for number in range(sessions)})
            yield rig

    async def all(self, do: str, *args: Any, members: Iterable[Process] | None = None) -> list[Any]:
        """Ask members, at once."""
        return await asyncio.gather(*(each.ask(do, *args) for each in members or self.members))

    async def login(self, sessions: dict[str, str]) -> None:
        """Sessions on every host."""
        self.issued |= sessions
        await self.see("login", sessions)

    async def see(self, do: str, sessions: Any) -> None:
        """Note whose sessions are not where they are to be."""
        for host, places in zip(self.hosts, await self.all(do, sessions), strict=True):
            self.count.note(host, places)

    def pick(self) -> str:
        """A key whose sessions are to be revoked."""
        key = self.luck.choice(list(self.issued))
        self.dead[key] = self.issued.pop(key)
        self.count.revoked += len(self.members)
        return key

    async def revoke(self, key: str, without: str = "") -> ClusterReport:
        """Revoke it. By the time of the report it is gone from each host but that one."""
        with anyio.fail_after(LIMIT):
            while True:
                try:
                    report = await self.revoker.revoke(*key.split("/"), reason="stolen")
                    break
                except LogError:  # an engine may take longer to start than a revoker waits: do it again, it says
                    await anyio.sleep(LAP)
        now = clock()
        said = {host.host: host.state in ("done", "over") for host in report.hosts}
        for host, member in zip(self.hosts, self.members, strict=True):
            if host != without and said.get(host):  # a wipe takes members, too
                ended = await member.ask("ended", key)
                if ended is None or ended > now:
                    self.count.late.append(f"{host} {key} {(ended or clock()) - now:.3f} s after {report}")
        return report

    async def settle(self, *keys: str) -> None:
        """See that what was revoked is gone, all others are inside, and that who logs in again is not taken for the same."""
        await self.see("gone", [*keys])
        await self.see("back", [*self.issued])
        again = keys[: len(keys) // 2]
        await self.login(dict.fromkeys(again, await self.members[0].ask("position")))
        for key in again:
            del self.dead[key]

    async def closed(self, began: float, members: Iterable[Process] = ()) -> float:
        """Note when those who were cut off had nobody inside, once they have. It returns the end of that."""
        await anyio.sleep(max(0.0, began + self.lease + 0.6 - clock()))
        for _, went in await self.all("times", members=members):
            self.count.closed.append(went - began if went else math.inf)
        return clock()

    async def healed(self, ended: float, members: Iterable[Process] = ()) -> None:
        """Note when they let somebody in again."""
        for came, _ in await self.all("times", members=members):
            # It may come before we hear that the engine has started.
            self.count.healed.append(max(0.0, came - ended) if came else math.inf)


async def kill(rig: Rig) -> None:
    """The engine is killed just after it has acknowledged, and comes back within the lease, or after it."""
    first, second, third = keys = [rig.pick() for _ in range(3)]
    entry = rig.revoker.entry(*first.split("/"), reason="stolen")
    await rig.all("times")
    await rig.revoker.append(entry)
    began = clock()
    await anyio.to_thread.run_sync(rig.engine.kill)
    async with anyio.create_task_group() as tasks:
        tasks.start_soon(rig.revoke, second)
        if closes := rig.luck.random() < 0.5:
            await rig.closed(began)
        await anyio.to_thread.run_sync(rig.engine.start)
        ended = clock()
    await rig.revoke(third)
    await rig.settle(*keys)
    if closes:
        await rig.healed(ended)


async def cut(rig: Rig) -> None:
    """Some members hear nothing any more, and are told nothing of it."""
    first, second = keys = [rig.pick() for _ in range(2)]
    number = rig.luck.choice((1, 1, 2, 3))
    await rig.all("times")
    began = clock()
    for wire in rig.wires[:number]:
        wire.cut()
    await rig.revoke(first)
    ended = await rig.closed(began, rig.members[:number])
    for wire in rig.wires[:number]:
        wire.mend()
    await rig.revoke(second)
    await rig.settle(*keys)
    await rig.healed(ended, rig.members[:number])


async def stop(rig: Rig) -> None:
    """A member does nothing for longer than its lease, and wakes."""
    first, second = keys = [rig.pick() for _ in range(2)]
    at = rig.luck.randrange(3)
    await rig.all("times")
    rig.members[at].send_signal(signal.SIGSTOP)
    began = clock()
    try:  # it has failed closed when it wakes, and not before
        await rig.revoke(first, without=rig.hosts[at])
        await anyio.sleep(max(0.0, began + rig.lease + 0.6 - clock()))
    finally:
        ended = clock()
        rig.members[at].send_signal(signal.SIGCONT)
    await rig.revoke(second, without=rig.hosts[at])
    await rig.settle(*keys)
    await rig.healed(ended, [rig.members[at]])


async def wipe(rig: Rig) -> None:
    """All that was written is gone, and what is written next comes before it is noticed. In some rounds a new host begins."""
    first = rig.pick()
    await rig.all("times")
    await rig.engine.wipe()
    ended = clock()
    async with anyio.create_task_group() as tasks:
        if rig.luck.random() < 0.25:
            tasks.start_soon(begin_late, rig)
        await rig.revoke(first)
    second = rig.pick()
    await rig.revoke(second)
    await rig.settle(first, second)
    await rig.healed(ended)


async def late(rig: Rig) -> None:
    """A member begins while others revoke."""
    keys = [rig.pick() for _ in range(4)]
    async with anyio.create_task_group() as tasks:
        for key in keys:
            tasks.start_soon(rig.revoke, key)
        await begin_late(rig)
    await rig.settle(*keys)


async def begin_late(rig: Rig) -> None:
    """See that a new host lets in exactly those who may come."""
    dead = dict(rig.dead)
    await rig.spare.ask("start", rig.engine.url, "late", rig.lease)
    keys = {**rig.issued, **dead}
    outside = await rig.spare.ask("login", keys)
    rig.count.note("late", await rig.spare.ask("gone", [*dead]))
    rig.count.note("late", {key: place for key, place in outside.items() if key not in rig.dead})
    await rig.spare.ask("stop")


DISASTERS = {each.__name__: each for each in (kill, cut, stop, wipe, late)}


async def run(engine: str, disaster: str, *, rounds: int, sessions: int, lease: float, seed: int) -> Count:
    """Some rounds of a disaster."""
    with tempfile.TemporaryDirectory() as folder:
        server = ENGINES[engine](pathlib.Path(folder))
        async with Rig.built(server, sessions=sessions, lease=lease, seed=seed, wired=disaster == "cut") as rig:
            await rig.all("lag")
            for _ in range(rounds):
                await DISASTERS[disaster](rig)
            rig.count.lag = max(await rig.all("lag"))
            if disaster != "late":
                await begin_late(rig)
            return rig.count


def row(engine: str, disaster: str, rounds: int, count: Count) -> str:
    """A line of the table."""

    def said(seconds: list[float]) -> str:
        return f"{statistics.median(seconds):.2f} / {max(seconds):.2f} s ({len(seconds)})" if seconds else "-"

    found = [len(each) for each in (count.lost, count.late, count.wrong, count.waiting)]
    times = [said(count.closed), said(count.healed), f"{count.lag:.2f} s"]
    cells = [engine, disaster, rounds, count.revoked, *found, *times]
    return "| " + " | ".join(map(str, cells)) + " |"


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--rounds", type=int, default=20, help="of each disaster")
    parser.add_argument("--sessions", type=int, default=1000, help="of each member; a round takes up to two")
    parser.add_argument("--lease", type=float, default=1.0)
    parser.add_argument("--seed", type=int, default=17, help="of what is left to chance")
    parser.add_argument("--engines", nargs="*", default=[name for name, each in ENGINES.items() if not each.missing])
    parser.add_argument("--disasters", nargs="*", default=[*DISASTERS])
    args = parser.parse_args()
    print(
        "| engine | disaster | rounds | revoked | lost | late | wrong | waiting | closed: median / worst | healed | lag |"
    )
    print("|---|---|---|---|---|---|---|---|---|---|---|", flush=True)
    revoked = faults = 0
    for engine, disaster in itertools.product(args.engines, args.disasters):
        count = asyncio.run(
            run(engine, disaster, rounds=args.rounds, sessions=args.sessions, lease=args.lease, seed=args.seed)
        )
        print(row(engine, disaster, args.rounds, count), flush=True)
        for each in count.faults:
            print(each, file=sys.stderr)
        revoked += count.revoked
        faults += len(count.faults)
    if not revoked:
        print("WRONG: nothing was revoked")
    return int(faults > 0 or not revoked)


if __name__ == "__main__":
    sys.exit(asyncio.run(be_a_member()) if sys.argv[1:] == ["member"] else main())
