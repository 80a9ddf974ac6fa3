"""How long a revocation on every host takes, beside the engine's own append and read: ``python benchmarks/cluster.py``

Three hosts, each a process of its own with 1,000 sessions, and a fourth process that revokes: one token, which each host has
a session of; a user, of whom each has ten; and everything. The floor is the same for three processes that wait in the engine's
own blocking read: from the append until the last of them has it. All are measured in turns.

Figures are milliseconds, and beside them how many times the floor that is: first the medians, then those of the slowest
hundredth. "ended": the last session has its error. "report": `revoke` has returned, and all hosts are done.
"""

from __future__ import annotations

import abc
import argparse
import asyncio
import contextlib
import gc
import importlib
import itertools
import pathlib
import sqlite3
import statistics
import sys
import tempfile
import time
from collections.abc import AsyncIterator, Callable, Iterable
from contextlib import AbstractContextManager
from types import SimpleNamespace
from typing import Any, Self

from engines import PostgresServer, RedisServer

from asyncrevoke import Registry, RevokedError
from asyncrevoke.cluster import Cluster, Revoker, open_log

HOSTS = 3
USERS, TOKENS = 100, 10  # on each host
SESSIONS = USERS * TOKENS
TEXT = "x" * 100  # about as long as an entry
GOALS = {
    ("redis", "one token", "ended"): 2.0,
    ("redis", "one token", "report"): 3.5,
    ("redis", "everything", "ended"): 25.0,
}


class Floor(abc.ABC):
    """What an engine does by itself: one appends, and others wait for it."""

    def __init__(self, url: str) -> None:
        self.url = url

    @abc.abstractmethod
    async def begin(self) -> None:
        """Connect."""

    @abc.abstractmethod
    async def append(self) -> None:
        """Append."""

    @abc.abstractmethod
    async def read(self) -> None:
        """Wait for what comes next, and read it."""


class Redis(Floor):
    """`XADD` and `XREAD BLOCK`."""

    async def begin(self) -> None:
        from redis.asyncio import Redis  # noqa: PLC0415

        self._redis: Any = Redis.from_url(self.url, protocol=2)
        self._last = "0"

    async def append(self) -> None:
        await self._redis.xadd("floor", {"t": TEXT})

    async def read(self) -> None:
        [(_, entries)] = await self._redis.xread({"floor": self._last}, block=60_000)
        self._last = entries[-1][0]


class Postgres(Floor):
    """`INSERT` and `NOTIFY` in one transaction; `LISTEN`, and then `SELECT`."""

    async def begin(self) -> None:
        import asyncpg  # noqa: PLC0415

        self._connection = await asyncpg.connect(self.url)
        await self._connection.execute("SELECT pg_advisory_lock(1)")  # of two that create a table, one fails
        await self._connection.execute("CREATE TABLE IF NOT EXISTS floor (number bigserial PRIMARY KEY, t text)")
        await self._connection.execute("SELECT pg_advisory_unlock(1)")
        self._heard = asyncio.Event()
        await self._connection.add_listener("floor", lambda *_: self._heard.set())
        self._last = 0

    async def append(self) -> None:
        await self._connection.execute(f"BEGIN; INSERT INTO floor (t) VALUES ('{TEXT}'); NOTIFY floor; COMMIT")

    async def read(self) -> None:
        while not (new := await self._connection.fetch("SELECT * FROM floor WHERE number > $1", self._last)):
            await self._heard.wait()
            self._heard.clear()
        self._last = max(number for number, _ in new)


class Sqlite(Floor):
    """`INSERT`, and 50 looks a second, as its log does: it has nothing to wait in."""

    async def begin(self) -> None:
        self._file = sqlite3.connect(self.url.removeprefix("sqlite://"), isolation_level=None)
        self._file.execute("PRAGMA synchronous = FULL")
        self._file.execute("CREATE TABLE IF NOT EXISTS floor (number INTEGER PRIMARY KEY, t)")
        self._last = 0

    async def append(self) -> None:
        self._file.execute("INSERT INTO floor (t) VALUES (?)", [TEXT])

    async def read(self) -> None:
        while not (new := self._file.execute("SELECT * FROM floor WHERE number > ?", [self._last]).fetchall()):  # noqa: ASYNC110
            await asyncio.sleep(0.02)
        self._last = new[-1][0]


def sqlite_server(folder: pathlib.Path) -> AbstractContextManager[Any]:
    return contextlib.nullcontext(SimpleNamespace(url=f"sqlite://{folder / 'log.db'}"))


#: By name: its floor, a server of it in a folder, and why there is none on this machine.
ENGINES: dict[str, tuple[type[Floor], Callable[[pathlib.Path], AbstractContextManager[Any]], str]] = {
    "redis": (Redis, RedisServer, RedisServer.missing),
    "postgresql": (Postgres, lambda _: PostgresServer(), PostgresServer.missing),
    "sqlite": (Sqlite, sqlite_server, ""),
}


# -- what runs in the other processes: they are told what to do by lines, and answer by lines --


async def lines() -> AsyncIterator[list[str]]:
    reader = asyncio.StreamReader()
    await asyncio.get_running_loop().connect_read_pipe(lambda: asyncio.StreamReaderProtocol(reader), sys.stdin)
    while line := await reader.readline():
        yield line.decode().split()


def say(*words: object) -> None:
    print(*words, flush=True)


async def be_a_reader(engine: str, url: str) -> None:
    floor = ENGINES[engine][0](url)
    await floor.begin()
    say("ready")
    while True:
        await floor.read()
        say(time.monotonic())


class Host:
    """A member with sessions. `open`: begin those that are missing. `expect NUMBER`: tell the time when so many have ended."""

    def __init__(self, url: str, host: str) -> None:
        self.cluster = Cluster(Registry(), open_log(url), host=host, mode="strict")
        self._missing = {(f"user{user}", f"token{token}") for user in range(USERS) for token in range(TOKENS)}
        self._expected = 0
        self._tasks: set[asyncio.Task[None]] = set()

    async def run(self) -> None:
        caught_up = asyncio.Event()
        running = asyncio.create_task(self.cluster.run(task_status=Status(caught_up)))
        await caught_up.wait()
        say("ready")
        async for word, *rest in lines():
            if word == "open":
                await self._open()
            else:
                self._expected = int(rest[0])
            say(word)
        running.cancel()

    async def _open(self) -> None:
        new = [asyncio.create_task(self._session(path)) for path in sorted(self._missing)]
        self._tasks.update(new)
        while self._missing:  # noqa: ASYNC110  # each tries until it is readmitted
            await asyncio.sleep(0.001)
        gc.collect()
        gc.freeze()

    async def _session(self, path: tuple[str, str]) -> None:
        while path in self._missing:
            try:
                with self.cluster.admit(*path):
                    self._missing.discard(path)
                    await asyncio.get_running_loop().create_future()
            except RevokedError as error:
                if error.in_flight:
                    break
                await asyncio.sleep(0.001)  # it is not readmitted yet
        self._expected -= 1
        if not self._expected:
            say(time.monotonic())
        self._missing.add(path)


class Status:
    """A `TaskStatus`, for a task of asyncio's own."""

    def __init__(self, event: asyncio.Event) -> None:
        self._event = event

    def started(self, _: object = None) -> None:
        self._event.set()


# -- the one that measures --


class Others:
    """Processes that all do the same."""

    def __init__(self) -> None:
        self._processes: list[asyncio.subprocess.Process] = []

    @classmethod
    async def start(cls, *args: str, names: Iterable[str]) -> Self:
        self = cls()
        pipe = asyncio.subprocess.PIPE
        for name in names:
            command = [sys.executable, __file__, *args, name]
            self._processes.append(await asyncio.create_subprocess_exec(*command, stdin=pipe, stdout=pipe))
        await self.hear()
        return self

    async def hear(self) -> list[str]:
        """A line of each."""
        said = []
        for process in self._processes:
            assert process.stdout is not None
            said.append((await process.stdout.readline()).decode().strip())
        if not all(said):
            raise RuntimeError("one of the processes has ended")
        return said

    async def last(self) -> float:
        return max(float(line) for line in await self.hear())

    async def ask(self, *words: object) -> list[str]:
        for process in self._processes:
            assert process.stdin is not None
            process.stdin.write(" ".join(map(str, words)).encode() + b"\n")
        return await self.hear()

    async def end(self) -> None:
        for process in self._processes:
            with contextlib.suppress(ProcessLookupError):
                process.kill()
            await process.wait()


Figures = dict[str, list[float]]


async def measure(engine: str, url: str, loop: str, rounds: int) -> Figures:
    log = open_log(url)
    revoker = Revoker(log)
    await revoker.init()
    floor = ENGINES[engine][0](url)
    await floor.begin()
    hosts = await Others.start("host", loop, url, names=[f"web{number}" for number in range(HOSTS)])
    readers = await Others.start("reader", loop, url, engine, names=[f"reader{number}" for number in range(HOSTS)])
    found: Figures = {}

    async def append_and_read() -> None:
        began = time.monotonic()
        await floor.append()
        found.setdefault("floor", []).append(1000 * (await readers.last() - began))

    async def revoke(what: str, number: int, *path: str) -> None:
        await hosts.ask("expect", number)
        began = time.monotonic()
        report = await revoker.revoke(*path, reason="stolen")
        ended = time.monotonic()
        assert report.complete and report.kicked == HOSTS * number, report  # noqa: PT018
        found.setdefault(f"{what}: ended", []).append(1000 * (await hosts.last() - began))
        found.setdefault(f"{what}: report", []).append(1000 * (ended - began))
        await revoker.readmit(*path)

    try:
        await hosts.ask("open")
        for turn in range(rounds):
            user = f"user{turn % USERS}"
            await append_and_read()
            await revoke("one token", 1, user, f"token{turn % TOKENS}")
            await hosts.ask("open")
            if turn % 4 == 0:
                await append_and_read()
                await revoke("a user", TOKENS, user)
                await hosts.ask("open")
            if turn % 10 == 0:
                await append_and_read()
                await revoke("everything", SESSIONS)
                await hosts.ask("open")
    finally:
        await hosts.end()
        await readers.end()
        await log.aclose()
    return found


def at(figures: list[float], part: float) -> float:
    return sorted(figures)[min(len(figures) - 1, int(part * len(figures)))]


def show(engine: str, loop: str, found: Figures) -> None:
    median, slow = statistics.median(found["floor"]), at(found["floor"], 0.99)
    for what, figures in found.items():
        one, other = statistics.median(figures), at(figures, 0.99)
        goal = GOALS.get((engine, *what.split(": "))) if ":" in what else None  # type: ignore[arg-type]
        verdict = "" if goal is None else f"goal {goal:g}" + (", missed" if one > goal * median else "")
        numbers = f"{one:9.2f} {one / median:7.2f} {other:9.2f} {other / slow:7.2f}"
        print(f"{engine:10} {loop:8} {what:22} {numbers}  {verdict}".rstrip(), flush=True)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("engines", nargs="*", help=f"of {', '.join(ENGINES)}. Default: all of them")
    parser.add_argument("--loop", choices=["asyncio", "uvloop"], action="append", help="default: both")
    parser.add_argument("--rounds", type=int, default=200)
    options = parser.parse_args()
    print(f"{'engine':10} {'loop':8} {'':22} {'median ms':>9} {'/ floor':>7} {'99 % ms':>9} {'/ floor':>7}", flush=True)
    for engine, loop in itertools.product(options.engines or ENGINES, options.loop or ["asyncio", "uvloop"]):
        _floor, server_in, missing = ENGINES[engine]
        if missing:
            print(f"{engine:10} not measured: {missing}")
            continue
        with tempfile.TemporaryDirectory() as folder, server_in(pathlib.Path(folder)) as server:
            show(engine, loop, run(loop, measure(engine, server.url, loop, options.rounds)))


def run(loop: str, main: Any) -> Any:
    factory = importlib.import_module("uvloop").new_event_loop if loop == "uvloop" else asyncio.new_event_loop
    with asyncio.Runner(loop_factory=factory) as runner:
        return runner.run(main)


if __name__ == "__main__":
    match sys.argv[1:]:
        case ["host", loop, url, host]:
            run(loop, Host(url, host).run())
        case ["reader", loop, url, engine, _]:
            run(loop, be_a_reader(engine, url))
        case _:
            main()
