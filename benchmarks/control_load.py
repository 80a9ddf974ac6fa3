"""How a service answers its control clients, and how its own loop fares: ``python benchmarks/control_load.py [--quick]``

The service has 2,000 open connections with some traffic, and 200 control clients in another process: some list all there is,
some watch, some take connections away, which come back, and one asks and never reads. The same with one lister, one watcher
and one who takes away is what it is compared with. The lag is what a task that wakes every millisecond comes late.
"""

from __future__ import annotations

import asyncio
import json
import os
import pathlib
import random
import resource
import socket
import statistics
import sys
import tempfile
import time

import anyio

from asyncrevoke import FdStream, Registry, Revokable, RevokedError
from asyncrevoke.control import serve

QUICK = "--quick" in sys.argv
CONNECTIONS, SECONDS = (200, 1.0) if QUICK else (2000, 15.0)
CLIENTS = {"list": 60, "watch": 100, "revoke": 39, "stuck": 1}
FEW = {"list": 1, "watch": 1, "revoke": 1, "stuck": 0}
EVERY = {"list": 5.0, "revoke": 4.0}  # seconds from one request of a client to its next
WHERE = {"list": "", "revoke": "user{}/token/{}"}
WHAT = ("list", "revoke", "event")


# -- the control clients, in a process of their own --


# They do not read what they need not: all of them together must not be slower than the server.


async def ask(path: str, do: str, times: dict[str, list[float]], every: float) -> None:
    rng = random.Random()
    reader, writer = await asyncio.open_unix_connection(path, limit=1 << 20)
    while True:
        await asyncio.sleep(rng.uniform(0, 2 * every))
        number = rng.randrange(CONNECTIONS)
        began = time.monotonic()
        writer.write(json.dumps({"v": 1, "do": do, "path": WHERE[do].format(number % 100, number)}).encode() + b"\n")
        last = b""
        while not (last.endswith(b"\n") and last[last.rfind(b"\n", 0, -1) + 1 :].startswith((b'{"ok"', b'{"error"'))):
            last = last[-10_000:] + await reader.read(1 << 18)
            assert reader.at_eof() is False, last
        if b'{"ok"' in last:  # else it is just coming back
            times[do].append(time.monotonic() - began)


async def watch(path: str, times: dict[str, list[float]]) -> None:
    reader, writer = await asyncio.open_unix_connection(path, limit=1 << 20)
    writer.write(b'{"v":1,"do":"watch"}\n')
    while True:
        line = await reader.readuntil(b"\n")
        if line.startswith(b'{"event":{"event":"opened","path":"beacon/'):
            times["event"].append(time.monotonic() - float(json.loads(line)["event"]["path"].removeprefix("beacon/")))


async def clients(path: str, counts: dict[str, int], few: bool) -> None:
    times: dict[str, list[float]] = {what: [] for what in WHAT}
    stuck = [socket.socket(socket.AF_UNIX) for _ in range(counts["stuck"])]
    for each in stuck:
        each.connect(path)
        each.sendall(b'{"v":1,"do":"list","who":true}\n' * 20)
    async with anyio.create_task_group() as tasks:
        for do, every in EVERY.items():
            for _ in range(counts[do]):
                tasks.start_soon(ask, path, do, times, SECONDS / 60 if few else every * SECONDS / 15)
        for _ in range(counts["watch"]):
            tasks.start_soon(watch, path, times)
        await asyncio.sleep(SECONDS)
        print(json.dumps(times), flush=True)
        os._exit(0)  # all at once, as if killed


# -- the service --


async def echo(registry: Registry, number: int, peers: dict[int, socket.socket]) -> None:
    while True:
        ours, peers[number] = socket.socketpair()
        with peers[number]:
            peers[number].setblocking(False)
            async with FdStream(
                ours.detach(), registry[f"user{number % 100}", "token"], name=str(number)
            ) as connection:
                try:
                    while True:
                        await connection.send(await connection.receive())
                except RevokedError:
                    pass


async def traffic(peers: dict[int, socket.socket]) -> None:
    rng = random.Random()
    while True:
        await asyncio.sleep(0.05)
        for peer in rng.sample(list(peers.values()), CONNECTIONS // 80):
            try:
                peer.send(b"x" * 100)
                peer.recv(65536)
            except OSError:  # nothing there yet, or just closed
                pass


async def beacon(root: Revokable) -> None:
    while True:
        await root.open(str(time.monotonic())).aclose()
        await asyncio.sleep(0.1)


async def probe(late: list[float]) -> None:
    while True:
        due = time.perf_counter() + 0.001
        await asyncio.sleep(0.001)
        late.append(time.perf_counter() - due)


def memory() -> float:
    """Of this process, in MB."""
    return 4 * int(pathlib.Path("/proc/self/statm").read_text().split()[1]) / 1024


async def measure(path: str, counts: dict[str, int]) -> tuple[dict[str, list[float]], float]:
    """The latencies with so many clients, and the most memory meanwhile."""
    late: list[float] = []
    most = 0.0
    probing = asyncio.create_task(probe(late))
    child = await asyncio.create_subprocess_exec(
        sys.executable, __file__, *sys.argv[1:], "--clients", path, json.dumps(counts), stdout=asyncio.subprocess.PIPE
    )
    running = asyncio.create_task(child.communicate())
    while not running.done():
        await asyncio.wait([running], timeout=0.1)
        most = max(most, memory())
    probing.cancel()
    output, _ = running.result()
    return json.loads(output) | {"lag": late}, most


def at(times: list[float], percent: int) -> float:
    """That percentile, in ms."""
    return (
        1000 * statistics.quantiles(times, n=100, method="inclusive")[percent - 1] if len(times) > 1 else float("nan")
    )


async def main() -> None:
    registry = Registry()
    peers: dict[int, socket.socket] = {}
    with tempfile.TemporaryDirectory() as folder:
        path = f"{folder}/control"
        async with anyio.create_task_group() as tasks:
            await tasks.start(serve, registry, path)
            for number in range(CONNECTIONS):
                tasks.start_soon(echo, registry, number, peers)
            await asyncio.sleep(0.5)
            tasks.start_soon(traffic, peers)
            tasks.start_soon(beacon, registry.root.open("beacon"))
            before = memory()
            few, _ = await measure(path, FEW)
            many, most = await measure(path, CLIENTS)
            await asyncio.sleep(0.2)
            after = memory()
            tasks.cancel_scope.cancel()
        await registry.root.aclose()
    print(f"{CONNECTIONS} connections, control clients: {sum(FEW.values())} and {sum(CLIENTS.values())}, in ms")
    print(f"{'':8} {'median':>8} {'':>8} {'ratio':>6} {'99 %':>9} {'':>8} {'ratio':>6} {'number':>8} {'':>8}")
    for what in (*WHAT, "lag"):
        cells = ""
        for percent in (50, 99):
            one, all_of_them = at(few[what], percent), at(many[what], percent)
            cells += f" {one:8.2f} {all_of_them:8.2f} {all_of_them / one:6.1f}"
        print(f"{what:8}{cells} {len(few[what]):8} {len(many[what]):8}")
    print(f"lag at the most {1000 * max(few['lag']):.1f} and {1000 * max(many['lag']):.1f} ms")
    print(f"memory {before:.1f} MB without clients, {most:.1f} MB at the most, {after:.1f} MB when they have gone")


if __name__ == "__main__":
    _, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))
    if "--clients" in sys.argv:
        asyncio.run(clients(sys.argv[-2], json.loads(sys.argv[-1]), json.loads(sys.argv[-1]) == FEW))
    else:
        asyncio.run(main())
