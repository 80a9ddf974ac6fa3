"""When a host is cut off: it takes away who is inside, and says why it admits nobody."""

import time

import anyio
import pytest

from asyncrevoke import Registry, RevokedError
from asyncrevoke.cluster import Batch, Cluster, LogError, Member, MemoryLog, NotVouchedError


@pytest.mark.anyio
async def test_a_host_that_was_paused_says_so_and_not_what_was_before() -> None:
    """It has caught up, and was not there for the next answer: nothing else that has ever happened is the reason."""
    cluster = Cluster(Registry(), MemoryLog(), host="web7", lease=0.8, mode="strict")
    await cluster.init()
    async with anyio.create_task_group() as tasks:
        await tasks.start(cluster.run)
        time.sleep(1)  # it is stopped, and wakes
        with pytest.raises(NotVouchedError, match="web7 admits nobody: no answer has come in time"), cluster.admit("a"):
            pass
        tasks.cancel_scope.cancel()


class Deaf(MemoryLog):
    """A log that can be cut off."""

    deaf = False

    async def read(self, after: int, wait: float, member: Member | None = None) -> Batch:
        if self.deaf:
            raise LogError("nobody hears")
        return await super().read(after, wait, member)


@pytest.mark.anyio
async def test_a_lease_is_watched_again_after_a_log_was_cut_off_and_then_found_to_be_lost() -> None:
    """Who is inside is taken away each time that the lease is over, whatever has happened before."""
    log = Deaf()
    live = Registry()
    cluster = Cluster(live, log, host="web7", lease=0.8, mode="strict")
    await cluster.init()
    with anyio.fail_after(20):
        async with anyio.create_task_group() as tasks:
            await tasks.start(cluster.run)
            for _ in range(2):
                while True:
                    try:
                        with cluster.admit("alice"):
                            log.deaf = True
                            await anyio.sleep_forever()
                    except NotVouchedError:
                        await anyio.sleep(0)
                    except RevokedError:
                        break
                log.wipe()
                log.deaf = False
            tasks.cancel_scope.cancel()
