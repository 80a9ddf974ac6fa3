"""Revocations survive what happens to engines and hosts: a few rounds of proof/cluster_disasters, on real servers."""

import asyncio

import pytest
from cluster_disasters import DISASTERS, ENGINES, run


@pytest.mark.parametrize("disaster", DISASTERS)
@pytest.mark.parametrize("engine", ENGINES)
def test_no_revocation_is_lost(engine: str, disaster: str) -> None:
    """What is revoked is gone by the time of the report, and stays so; a later login is not taken for it."""
    if ENGINES[engine].missing:
        pytest.skip(ENGINES[engine].missing)
    count = asyncio.run(run(engine, disaster, rounds=2, sessions=30, lease=1.0, seed=1))
    assert count.revoked
    assert count.faults == []
