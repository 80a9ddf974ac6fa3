"""What it costs to remove a directory whose entries are open: ``python benchmarks/remove_entries.py [--quick]``

First by the number of its entries, each with one open file: seconds, and how late a task came meanwhile that wakes every
millisecond. Ten times as many should cost ten times as much. All begin outside of the processor's caches, as what was made
long ago: else the few would be in them still, and the many not. Then what an operation costs that removal has to wait for,
and one on a permanent entry, as ratios against a call of the handler alone.
"""

from __future__ import annotations

import argparse
import gc
import statistics
from time import perf_counter

import anyio
import anyio.lowlevel

from asyncrevoke.adapters.entries import Directory, Entry


async def removed(entries: int) -> tuple[float, float, float]:
    """Seconds until `remove` has returned and until all is released, and how late the task came at the most."""
    root = Directory("status")
    directory = root.mkdir("devices")
    for number in range(entries):
        await directory.create(f"device{number}", show=lambda: b"17.3\n").open()
    worst = 0.0
    over = anyio.Event()

    async def wake() -> None:
        nonlocal worst
        while not over.is_set():
            due = perf_counter() + 0.001
            await anyio.sleep(0.001)
            worst = max(worst, perf_counter() - due)

    gc.collect()
    bytearray(96 << 20)  # more than the caches hold
    gc.disable()  # a collection takes as long as all that is alive is large
    async with anyio.create_task_group() as tasks:
        tasks.start_soon(wake)
        await anyio.sleep(0.01)
        begin = perf_counter()
        act = directory.remove("unplugged")
        refused = perf_counter() - begin
        await act
        seconds = perf_counter() - begin
        over.set()
    gc.enable()
    assert act.remaining == 0
    return refused, seconds, worst


async def reading(entry: Entry, reads: int) -> float:
    async with await entry.open() as file:
        begin = perf_counter()
        for _ in range(reads):
            await file.pread(10, 0)
        return perf_counter() - begin


async def calling(reads: int) -> float:
    begin = perf_counter()
    for _ in range(reads):
        await anyio.lowlevel.checkpoint()
        _read(None, 10, 0)
    return perf_counter() - begin


def _read(_operation: object, size: int, offset: int) -> bytes:
    return b"17.3\n"[offset : offset + size]


async def main(*, quick: bool) -> None:
    most = 10_000 if quick else 100_000
    rounds = 3 if quick else 9
    print(f"{'remove':38} {'refused':>10} {'released':>10} {'loop late':>10} {'for 10 times as many':>21}")
    sizes = most // 100, most // 10, most
    rows = [[await removed(entries) for entries in sizes] for _ in range(rounds)]  # so that all are slowed down alike
    for column, entries in enumerate(sizes):
        refused, seconds, _ = (
            1e3 * statistics.median(each) for each in zip(*(row[column] for row in rows), strict=True)
        )
        worst = 1e3 * max(row[column][2] for row in rows)
        what = f"{entries:6} entries, each open once"
        times = statistics.median(row[column][1] / row[column - 1][1] for row in rows) if column else 0
        print(f"{what:38} {refused:7.1f} ms {seconds:7.1f} ms {worst:7.1f} ms" + f"{times:16.1f} times" * bool(column))

    root = Directory("status")
    removable = root.create("removable", read=_read)
    permanent = Directory("fixed").create("permanent", permanent=True, read=_read)
    reads = most // 100
    for name, entry in ("removable", removable), ("permanent", permanent):
        ratios = [await reading(entry, reads) / await calling(reads) for _ in range(rounds)]
        print(f"{f'read of a {name} entry / its handler':38} {statistics.median(ratios):10.1f} times")


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="a tenth of it, to see that it runs")
    anyio.run(lambda: main(quick=parser.parse_args().quick))
