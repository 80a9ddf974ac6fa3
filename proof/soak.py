"""Takes things away for some minutes, and looks whether anything grows: ``python proof/soak.py [--minutes 10]``

A lap opens ptys that are shared, taken from one, reopened and taken from all; streams; sessions in a registry; and clients of a
control server. All of them go. Between the laps it counts descriptors, tasks, threads, children, objects and resident memory.
Prints their medians in the first half and in the second, and writes a plot. Ends with 1 if one has grown, or nothing was done.
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import gc
import os
import pathlib
import socket
import statistics
import sys
import tempfile
import threading
import time
from collections import Counter
from collections.abc import Awaitable, Callable, Sequence

import anyio

from asyncrevoke import FdStream, Registry, Revokable, RevokedError, open_pty
from asyncrevoke.control import connect, serve

PLOT = pathlib.Path(__file__).parents[1] / "docs" / "soak.svg"
WARM = 10  # laps before the first sample
FEWEST = 10  # samples
KINDS = ("ptys", "clients of ptys", "streams", "sessions", "requests", "laps")
#: What is counted, and by how much its median may be larger in the second half. Resident memory has no exact size, and a
#: registry forgets its unused names by the hundred. In ten minutes two objects more in each lap are found.
GROWTH = {
    "descriptors": 0.0,
    "tasks": 0.0,
    "threads": 0.0,
    "children": 0.0,
    "objects": 0.03,
    "resident memory, kB": 0.03,
}
Sample = dict[str, int]


def sample() -> Sample:
    """What this process has now."""
    gc.collect()
    children = pathlib.Path("/proc/self/task").glob("*/children")
    figures = (
        len(os.listdir("/proc/self/fd")),  # noqa: PTH208
        len(asyncio.all_tasks()),
        threading.active_count(),
        sum(len(each.read_text().split()) for each in children),
        len(gc.get_objects()),
        4 * int(pathlib.Path("/proc/self/statm").read_text().split()[1]),
    )
    return dict(zip(GROWTH, figures, strict=True))


# -- what is done in a lap --


class Soak:
    """The things that are taken away, and how many of each were."""

    def __init__(self, registry: Registry, path: str) -> None:
        self.registry = registry
        self.path = path
        self.done: Counter[str] = Counter()

    async def lap(self) -> None:
        """Do all of it at once, until all has gone."""
        async with anyio.create_task_group() as tasks:
            for work in self.share_a_pty, self.share_a_pty, self.stream, self.sessions, self.control:
                tasks.start_soon(work)

    async def is_taken(self, kind: str, work: Callable[[], Awaitable[object]], node: Revokable) -> None:
        """Revoke a node while somebody waits there, who must be told."""

        async def wait() -> None:
            try:
                while True:
                    await work()
            except RevokedError:
                self.done[kind] += 1

        async with anyio.create_task_group() as tasks:
            tasks.start_soon(wait)
            await anyio.lowlevel.checkpoint()
            await node.revoke("soak")

    async def share_a_pty(self) -> None:
        session = open_pty(["cat"], kill_after=5, history=4096)
        try:
            stays = session.open("stays")
            for _ in range(2):  # taken from one, who comes again
                goes = session.open("goes", replay=True)
                await goes.send(b"hello\n")
                await stays.receive()
                await self.is_taken("clients of ptys", goes.receive, goes.handle)
            await self.is_taken("ptys", stays.receive, session.node)
        finally:
            await session.aclose()

    async def stream(self) -> None:
        near, far = socket.socketpair()
        with near, far:
            device = Revokable("device")
            stream = FdStream(os.dup(near.fileno()), device)
            await stream.send(b"x" * 1000)
            await self.is_taken("streams", stream.receive, device)
            with contextlib.suppress(anyio.ClosedResourceError):
                await stream.aclose()

    async def sessions(self) -> None:
        for number in range(20):
            node = self.registry["user", f"token{number}"].open("session")

            async def wait(node: Revokable = node) -> None:
                with node.using():
                    await anyio.sleep_forever()

            await self.is_taken("sessions", wait, self.registry["user", f"token{number}"])
            await node.aclose()

    async def control(self) -> None:
        name = self.registry.name("port")
        handle = name.open("client")
        async with await connect(self.path) as client:
            await client.list()
            await client.revoke("port", reason="soak")
            self.done["requests"] += 2
        await handle.aclose()


async def soak(seconds: float) -> tuple[list[Sample], Counter[str]]:
    """Run laps for so long, and count between them, at the most once a second."""
    registry = Registry()
    samples: list[Sample] = []
    with tempfile.TemporaryDirectory() as folder:
        async with anyio.create_task_group() as tasks:
            await tasks.start(serve, registry, path := f"{folder}/control")
            laps = Soak(registry, path)
            for _ in range(WARM):
                await laps.lap()
            end = time.monotonic() + seconds
            pause = min(1.0, seconds / 20)
            while (now := time.monotonic()) < end or len(samples) < FEWEST:
                while time.monotonic() < now + pause:
                    await laps.lap()
                    laps.done["laps"] += 1
                for _ in range(20):  # in which the server lets go of who has gone
                    await asyncio.sleep(0)
                samples.append(sample())
            tasks.cancel_scope.cancel()
        await registry.root.aclose()
    return samples, laps.done


# -- what has become of it --


def halves(samples: Sequence[Sample], what: str) -> tuple[float, float]:
    """The medians of the first half and of the second."""
    figures, middle = [each[what] for each in samples], len(samples) // 2
    return statistics.median(figures[:middle]), statistics.median(figures[middle:])


def grown(samples: Sequence[Sample]) -> list[str]:
    """What has more in the second half than in the first."""
    return [
        what
        for what, allowed in GROWTH.items()
        for first, second in [halves(samples, what)]
        if second > first * (1 + allowed)
    ]


def plot(samples: Sequence[Sample], title: str) -> str:
    """A line for each thing that was counted, from zero."""
    left, width, step = 190, 500, 70
    parts = [f'<svg xmlns="http://www.w3.org/2000/svg" width="{left + width + 90}" height="{step * len(GROWTH) + 40}">']
    parts.append("<style>text{font:12px sans-serif;fill:#444}polyline{fill:none;stroke:#2a6}line{stroke:#ccc}</style>")
    parts.append(f'<text x="{left}" y="16">{title}</text>')
    shown = samples[:: max(1, len(samples) // 250)]
    for number, what in enumerate(GROWTH):
        bottom = step * (number + 1) + 20
        most = max(each[what] for each in samples) or 1
        points = [
            f"{left + width * at / max(1, len(shown) - 1):.0f},{bottom - (step - 20) * each[what] / most:.1f}"
            for at, each in enumerate(shown)
        ]
        parts.append(f'<text x="{left - 8}" y="{bottom - 20}" text-anchor="end">{what}</text>')
        parts.append(f'<line x1="{left}" y1="{bottom}" x2="{left + width}" y2="{bottom}"/>')
        parts.append(f'<polyline points="{" ".join(points)}"/>')
        parts.append(f'<text x="{left + width + 8}" y="{bottom - 20}">{samples[-1][what]:,}</text>')
    return "\n".join([*parts, "</svg>"]) + "\n"


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--minutes", type=float, default=10.0)
    parser.add_argument("--plot", type=pathlib.Path, default=PLOT, help="default: docs/soak.svg")
    options = parser.parse_args()
    samples, done = asyncio.run(soak(60 * options.minutes))
    counted = ", ".join(f"{number:,} {what}" for what, number in done.items() if what != "laps")
    print(f"{options.minutes:g} min, {done['laps']:,} laps: {counted}")
    if not samples or len(done) < len(KINDS):
        print("WRONG: nothing was taken away of some kind")
        return 1
    for what in GROWTH:
        first, second = halves(samples, what)
        print(f"{what:22} {first:10,.0f} {second:10,.0f}  {'GROWS' if what in grown(samples) else 'stays'}")
    options.plot.write_text(plot(samples, f"{options.minutes:g} min, {done['laps']:,} laps"))
    return int(bool(grown(samples)))


if __name__ == "__main__":
    sys.exit(main())
