"""What a member does with entries of keys that nobody uses there, which are most of them."""

import contextlib
from datetime import timedelta

import anyio
import pytest

from asyncrevoke import Registry, RevokedError
from asyncrevoke.cluster import Cluster, ClusterEvent, MemoryLog
from conftest import settle

pytestmark = pytest.mark.anyio


async def test_catching_up_tells_of_the_entries_that_found_somebody() -> None:
    """Of the many entries of a log, a host that begins tells of those whose sessions it has, and makes no keys for others."""
    log, live = MemoryLog(), Registry()
    events: list[ClusterEvent] = []
    cluster = Cluster(live, log, host="web7", observers=(events.append,))
    await cluster.init()
    await cluster.append(*(cluster.entry("alice", f"token{number}") for number in range(100)))

    async def session() -> None:
        with pytest.raises(RevokedError), live["alice", "token7"].using():
            await anyio.sleep_forever()

    async with anyio.create_task_group() as tasks:
        tasks.start_soon(session)
        await settle()
        await tasks.start(cluster.run)
        assert [str(event).partition(" at ")[0] for event in events] == [
            "web7 taken: 'alice/token7' revoked",
            "web7 caught up:",
        ]
        assert live.get("alice", "token8") is None
        for number in range(100):
            with pytest.raises(RevokedError), cluster.admit("alice", f"token{number}"):
                pass
        tasks.cancel_scope.cancel()


async def test_a_second_revocation_waits_for_whom_the_first_has_left_inside() -> None:
    """Somebody who is still inside since an earlier entry is reported as a straggler of the later one, too."""
    log, live = MemoryLog(), Registry()
    cluster = Cluster(live, log, host="web7")
    await cluster.init()
    leave = anyio.Event()

    async def linger() -> None:
        with contextlib.suppress(RevokedError), cluster.admit("alice", "token7"), anyio.CancelScope(shield=True):
            await leave.wait()

    async with anyio.create_task_group() as tasks:
        await tasks.start(cluster.run)
        tasks.start_soon(linger)
        await settle()
        for path in ("alice", "token7"), ("alice",), ("alice", "token7"):
            report = await cluster.revoke(*path, expires=timedelta(days=1), limit=0.3)
            assert [host.state for host in report.hosts] == ["draining"]
        leave.set()
        assert (await cluster.revoke("alice", "token7")).complete
        tasks.cancel_scope.cancel()
