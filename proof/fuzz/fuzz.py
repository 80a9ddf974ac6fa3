"""Feeds what nobody should send: ``python proof/fuzz/fuzz.py [WHAT ...] [--rounds 20000] [--seed 4]``

WHAT is some of control, configuration, urls, scopes, tokens and telnet. A round is made by the seed and its number alone. Prints
for each how many rounds and distinct answers there were. Ends with 1 if there was an escape, which is any error that is not
documented; if a round hangs; if a descriptor, task or thread is left, or memory grows; or if there was no round.
"""

from __future__ import annotations

import argparse
import asyncio
import faulthandler
import gc
import importlib
import itertools
import logging
import os
import pathlib
import random
import re
import sys
import threading
import time
from collections.abc import Iterator
from dataclasses import dataclass, field

from mutation import One

WHAT = ("control", "configuration", "urls", "scopes", "tokens", "telnet")
WORKERS = 8  # rounds at a time
LIMIT = 60.0  # seconds that a round may take
GROWTH = 16_384  # kB that the process may grow after its first tenth


@dataclass
class Found:
    """What a fuzz has come to.

    :ivar answers: in which numbers and quoted words count for nothing
    :ivar wrong: all escapes, and what was left
    """

    rounds: int = 0
    answers: set[str] = field(default_factory=set)
    wrong: list[str] = field(default_factory=list)
    growth: int = 0


class Escapes(logging.Handler):
    """What the library logs as an error is one, too."""

    def __init__(self, found: Found) -> None:
        super().__init__(logging.ERROR)
        self._found = found

    def emit(self, record: logging.LogRecord) -> None:
        """Note it, with the exception."""
        self._found.wrong.append(f"logged: {record.getMessage()} {record.exc_info and record.exc_info[1]!r}")


def memory() -> int:
    """Of this process, in kB."""
    gc.collect()
    return 4 * int(pathlib.Path("/proc/self/statm").read_text().split()[1])


async def held() -> tuple[int, int, int]:
    """Descriptors, tasks and threads, when nothing goes on any more. AnyIO keeps some threads for later."""
    for _ in range(100):
        await asyncio.sleep(0)
    gc.collect()
    threads = [each for each in threading.enumerate() if not each.name.startswith("AnyIO worker")]
    return len(os.listdir("/proc/self/fd")), len(asyncio.all_tasks()), len(threads)  # noqa: PTH208


async def feed(what: str, rounds: int, seed: int) -> Found:
    """Run all rounds, some at a time."""
    found = Found()
    asyncio.get_running_loop().set_exception_handler(lambda _, told: found.wrong.append(f"the loop complains: {told}"))
    sys.unraisablehook = lambda told: found.wrong.append(f"unraisable: {told.exc_value!r}")
    handler = Escapes(found)
    logging.getLogger().addHandler(handler)
    async with importlib.import_module(what).answers() as one:
        await work(what, one, found, iter(range(-20, 0)), seed)  # what is made once is made now
        before, warm = await held(), memory()
        found.rounds = 0
        numbers = iter(range(rounds))
        for part in itertools.islice(numbers, rounds // 10), numbers:
            async with asyncio.TaskGroup() as tasks:
                for _ in range(WORKERS):
                    tasks.create_task(work(what, one, found, part, seed))
            if found.rounds < rounds:
                warm = memory()
        found.growth = memory() - warm
        if (after := await held()) != before:
            found.wrong.append(f"descriptors, tasks, threads: {before} before, {after} afterwards")
    if found.growth > GROWTH:
        found.wrong.append(f"memory grows by {found.growth:,} kB")
    if not found.rounds or not found.answers:
        found.wrong.append("nothing was fed")
    logging.getLogger().removeHandler(handler)
    return found


async def work(what: str, one: One, found: Found, numbers: Iterator[int], seed: int) -> None:
    """Run rounds as long as there are numbers."""
    for number in numbers:
        faulthandler.dump_traceback_later(2 * LIMIT, exit=True)  # if not even the loop runs any more
        try:
            async with asyncio.timeout(LIMIT):
                told = await one(random.Random(f"{seed} {what} {number}"))
        except Exception as exc:  # noqa: BLE001  # looked at
            kind = "hangs" if isinstance(exc, TimeoutError) and exc.errno is None else "escaped"
            found.wrong.append(f"round {number}: {kind}: {exc!r}")
        else:
            found.answers.update(re.sub(r"'[^']*'|\"[^\"]*\"|\d+", "_", each)[:120] for each in told)
        found.rounds += 1
    faulthandler.cancel_dump_traceback_later()


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("what", nargs="*", default=WHAT, help=f"of {', '.join(WHAT)}. Default: all of them")
    parser.add_argument("--rounds", type=int, default=20_000)
    parser.add_argument("--seed", type=int, default=4)
    options = parser.parse_args()
    wrong = 0
    print(f"{'what':14} {'rounds':>9} {'answers':>8} {'seconds':>8} {'growth, kB':>10} {'wrong':>5}", flush=True)
    for what in options.what:
        began = time.perf_counter()
        found = asyncio.run(feed(what, options.rounds, options.seed))
        seconds = time.perf_counter() - began
        counts = f"{found.rounds:9,} {len(found.answers):8,} {seconds:8.1f} {found.growth:10,} {len(found.wrong):5}"
        print(f"{what:14} {counts}", flush=True)
        for each in found.wrong[:5]:
            print(f"    {each}", flush=True)
        wrong += len(found.wrong)
    return int(wrong > 0)


if __name__ == "__main__":
    sys.exit(main())
