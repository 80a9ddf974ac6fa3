"""Why a host admits nobody, in words."""

import time

import anyio
import pytest

from asyncrevoke import Registry
from asyncrevoke.cluster import Cluster, MemoryLog, NotVouchedError


@pytest.mark.anyio
async def test_a_host_that_was_paused_says_so_and_not_what_was_before() -> None:
    """It has caught up, and was not there for the next answer: nothing else that has ever happened is the reason."""
    cluster = Cluster(Registry(), MemoryLog(), host="web7", lease=0.2, mode="strict")
    await cluster.init()
    async with anyio.create_task_group() as tasks:
        await tasks.start(cluster.run)
        time.sleep(0.3)  # it is stopped, and wakes
        with pytest.raises(NotVouchedError, match="web7 admits nobody: no answer has come in time"), cluster.admit("a"):
            pass
        tasks.cancel_scope.cancel()
