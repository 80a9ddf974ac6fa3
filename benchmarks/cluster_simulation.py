"""What a large cluster costs, and where it breaks first: ``python benchmarks/cluster_simulation.py [--quick]``

Three things are measured with the real code, and the last lines make the sum for 1,000 hosts with 100,000 sessions each:

- one host with all its sessions, which one entry takes away: how late its loop is, and how old its lease becomes
- many hosts in one process on one Redis server: what they cost the server, by its own account of its processor time
- a host that begins: how long it reads a log of many entries, and what memory they take
"""

from __future__ import annotations

import argparse
import asyncio
import gc
import pathlib
import resource
import tempfile
import time
from datetime import timedelta
from typing import Any

from engines import RedisServer

from asyncrevoke import Registry, RevokedError
from asyncrevoke.cluster import Cluster, Log, MemoryLog, Revoker, open_log

HOSTS = 1000
LEASE = 10.0
IDLE = 10.0  # seconds to look at what happens when nothing does


def row(what: str, figure: float, unit: str) -> None:
    print(f"{what:60} {figure:12,.2f} {unit}", flush=True)


class Status:
    """A `TaskStatus`, for a task of asyncio's own."""

    def __init__(self, event: asyncio.Event) -> None:
        self._event = event

    def started(self, _: object = None) -> None:
        self._event.set()


async def start(group: asyncio.TaskGroup, log: Log, host: str) -> tuple[Cluster, asyncio.Task[None]]:
    cluster = Cluster(Registry(), log, host=host, lease=LEASE, mode="strict")
    caught_up = asyncio.Event()
    running = group.create_task(cluster.run(task_status=Status(caught_up)))
    await caught_up.wait()
    return cluster, running


# -- one host --


async def one_host(url: str, sessions: int, idle: float) -> None:
    log = open_log(url)
    await Revoker(log).init()
    late = oldest = ended = 0.0
    admitted = 0
    async with asyncio.TaskGroup() as group:
        cluster, running = await start(group, log, "web7")

        async def session(number: int) -> None:
            nonlocal admitted, ended
            try:
                with cluster.admit(f"user{number // 10}", f"token{number % 10}"):
                    admitted += 1
                    await asyncio.get_running_loop().create_future()
            except RevokedError:
                ended = time.monotonic()

        async def look() -> None:
            """How late a timer is, and how long ago the last answered read was asked."""
            nonlocal late, oldest
            while True:
                due = time.monotonic() + 0.001
                await asyncio.sleep(0.001)
                late = max(late, time.monotonic() - due)
                oldest = max(oldest, LEASE - cluster.lease_left)

        parked = [asyncio.create_task(session(number)) for number in range(sessions)]
        while admitted < sessions:  # noqa: ASYNC110
            await asyncio.sleep(0.01)
        gc.collect()
        looking = group.create_task(look())
        await asyncio.sleep(idle)
        row(f"{sessions:,} sessions, idle: longest stall", 1000 * late, "ms")
        row("  oldest lease", oldest, "s")
        late = oldest = 0.0
        begun, used = time.monotonic(), time.process_time()
        report = await cluster.revoke(reason="stop")
        taken = time.process_time() - used
        assert report.complete, str(report)
        assert report.kicked == sessions, str(report)
        row(f"{sessions:,} sessions taken: until the last has its error", ended - begun, "s")
        row("  processor time of each", 1e6 * taken / sessions, "us")
        row("  longest stall", 1000 * late, "ms")
        row("  oldest lease", oldest, "s")
        await asyncio.wait(parked)
        looking.cancel()
        running.cancel()
    await log.aclose()


# -- many hosts --


class Server:
    """What Redis tells of itself."""

    def __init__(self, url: str) -> None:
        from redis.asyncio import Redis  # noqa: PLC0415

        self._redis: Any = Redis.from_url(url)

    async def used(self) -> tuple[float, float]:
        """Seconds of processor time, and commands, so far."""
        facts = await self._redis.info()
        return facts["used_cpu_sys"] + facts["used_cpu_user"], facts["total_commands_processed"]

    async def aclose(self) -> None:
        await self._redis.aclose()


async def many_hosts(url: str, hosts: int, revocations: int, idle: float) -> None:
    logs = [open_log(url) for _ in range(hosts + 1)]
    revoker, server = Revoker(logs[-1]), Server(url)
    await revoker.init()
    async with asyncio.TaskGroup() as group:
        members = [await start(group, log, f"web{number}") for number, log in enumerate(logs[:-1])]
        (begun, _), start_of_idle = await server.used(), time.monotonic()
        await asyncio.sleep(idle)
        quiet = ((await server.used())[0] - begun) / (time.monotonic() - start_of_idle) / hosts
        row(f"{hosts} idle hosts: the server's time in a second, for each", 1e6 * quiet, "us")
        begun, commands = await server.used()
        for number in range(revocations):
            report = await revoker.revoke("alice", f"token{number}", expires=timedelta(days=1))
            assert report.complete, str(report)
        ended, after = await server.used()
        one = (ended - begun) / revocations / hosts
        row("  a revocation, one after the other: the server's time, for each host", 1e6 * one, "us")
        row("    commands of it", (after - commands) / revocations / hosts, "")
        begun = ended
        entries = [revoker.entry("bob", f"token{number}") for number in range(revocations)]
        await revoker.append(*entries)
        for entry in entries:
            assert (await revoker.report(entry)).complete
        many = ((await server.used())[0] - begun) / revocations / hosts
        row("  a revocation, of many at once: the server's time, for each host", 1e6 * many, "us")
        for _, running in members:
            running.cancel()
    for log in logs:
        await log.aclose()
    await server.aclose()
    row(f"{HOSTS:,} hosts: reads a second", HOSTS / (LEASE / 4), "")
    row("  of one core of the server, when idle", 100 * HOSTS * quiet, "%")
    row("  one revocation: the server is busy for", 1000 * HOSTS * one, "ms")
    row("  revocations a second at which the server is busy all the time", 1 / (HOSTS * many), "")


# -- a host that begins --


async def catch_up(entries: int) -> None:
    log = MemoryLog()
    revoker = Revoker(log)
    await revoker.init()
    for first in range(0, entries, 10_000):
        await revoker.append(
            *(
                revoker.entry(f"user{number // 10}", f"token{number}", reason="logged out", expires=timedelta(days=30))
                for number in range(first, min(entries, first + 10_000))
            )
        )
    gc.collect()
    gc.freeze()
    size = resident()
    begun = time.process_time()
    async with asyncio.TaskGroup() as group:
        _, running = await start(group, log, "web7")
        row(f"a log of {entries:,} entries: processor time to catch up", time.process_time() - begun, "s")
        row("  memory of each", (resident() - size) / entries, "bytes")
        running.cancel()


def resident() -> int:
    return int(pathlib.Path("/proc/self/statm").read_text().split()[1]) * resource.getpagesize()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="a hundredth of it: see that it runs")
    parser.add_argument("--sessions", type=int, default=100_000)
    parser.add_argument("--entries", type=int, default=1_000_000)
    options = parser.parse_args()
    part = 100 if options.quick else 1
    if RedisServer.missing:
        print(f"hosts are not measured: {RedisServer.missing}")
    else:
        with tempfile.TemporaryDirectory() as folder, RedisServer(pathlib.Path(folder)) as server:
            asyncio.run(one_host(f"{server.url}?prefix=one", options.sessions // part, IDLE / part))
            asyncio.run(many_hosts(server.url, 10 if options.quick else 100, 200 // part, IDLE / part))
    asyncio.run(catch_up(options.entries // part))


if __name__ == "__main__":
    main()
