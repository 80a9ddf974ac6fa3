"""Runs one scenario in every order of its steps, up to so many deviations from asyncio's own."""

import asyncio
import os
from collections.abc import Callable, Coroutine
from typing import Any

import detangle

DEVIATIONS = int(os.environ.get("ASYNCREVOKE_DEVIATIONS", "2"))
Task = asyncio.Task[Any]


async def turns(number: int) -> None:
    for _ in range(number):
        await asyncio.sleep(0)


def explore(
    run: Callable[[], Coroutine[Any, Any, None]],
    record_property: Callable[[str, object], None],
    *,
    bound: int = DEVIATIONS,
    **options: Any,
) -> None:
    """Run it in each order within the bound."""
    found = detangle.explore(
        run,
        strategy=detangle.DFS(max_delays=bound),
        runs=10**9,
        database=False,  # or it writes into the repository
        seed_random=False,
        check_leaks=True,
        max_steps=2000,
        **options,
    )
    print(f"{found.runs} schedules, exhausted: {found.exhausted}, in {found.elapsed:.1f} s")
    record_property("schedules", found.runs)
    record_property("exhausted", found.exhausted)
    assert found.exhausted, f"not exhausted after {found.runs} schedules, with {bound} deviations"
