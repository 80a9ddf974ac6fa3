"""Sessions that were revoked and are still inside: a further revocation waits for them, and takes their grace away."""

import contextlib
from collections.abc import AsyncIterator
from typing import Any

import anyio
import anyio.abc
import pytest

from asyncrevoke import Registry, RevokedError
from asyncrevoke.cluster import Cluster, Entry, MemoryLog, Position, Revoker
from conftest import BACKENDS, settle

pytestmark = pytest.mark.anyio

KEY = ("alice", "token7")
PATHS = [KEY, KEY[:1], ()]


@pytest.fixture(params=BACKENDS[:1])
def anyio_backend(request: pytest.FixtureRequest) -> Any:
    return request.param


class Host:
    """A member with sessions, which leave when they may."""

    def __init__(self, cluster: Cluster, tasks: anyio.abc.TaskGroup) -> None:
        self.cluster = cluster
        self.inside = 0
        self.may_leave = anyio.Event()
        self.has_left = anyio.Event()
        self._tasks = tasks

    async def log_in(self, issued: Position | None) -> None:
        await self._tasks.start(self._session, issued)

    async def _session(self, issued: Position | None, *, task_status: anyio.abc.TaskStatus[None]) -> None:
        with contextlib.suppress(RevokedError), self.cluster.admit(*KEY, issued=issued):
            self.inside += 1
            task_status.started()
            try:
                await anyio.sleep_forever()
            finally:
                with anyio.CancelScope(shield=True):
                    await self.may_leave.wait()
                self.inside -= 1
                self.has_left.set()


@contextlib.asynccontextmanager
async def member(lease: float) -> AsyncIterator[Host]:
    log = MemoryLog()
    await Revoker(log).init()
    cluster = Cluster(Registry(), log, host="web1", lease=lease, mode="strict")
    with anyio.fail_after(20):
        async with anyio.create_task_group() as tasks:
            host = Host(cluster, tasks)
            await tasks.start(cluster.run)
            yield host
            host.may_leave.set()
            tasks.cancel_scope.cancel()


@pytest.mark.parametrize("is_issued", [True, False])
@pytest.mark.parametrize("second", PATHS)
@pytest.mark.parametrize("first", PATHS)
async def test_who_is_still_inside_is_reported_again(first: Any, second: Any, is_issued: bool) -> None:
    """No host is done while somebody is inside whom an earlier revocation has found."""
    async with member(lease=4) as host:
        await host.log_in(host.cluster.position if is_issued else None)
        await host.cluster.revoke(*first, limit=0.0)
        report = await host.cluster.revoke(*second, limit=0.2)
        assert (report.complete, report.hosts[0].state, host.inside) == (False, "draining", 1)


@pytest.mark.parametrize("path", PATHS)
async def test_a_copy_beside_a_later_login_waits_for_who_is_still_inside(path: Any) -> None:
    """The later session is left alone (C7), and the earlier one is named."""
    async with member(lease=4) as host:
        await host.log_in(host.cluster.position)
        entry = host.cluster.entry(*path)
        await host.cluster.append(entry)
        assert not (await host.cluster.report(entry, limit=0.2)).complete
        await host.log_in(host.cluster.position)
        await host.cluster.append(entry)
        assert not (await host.cluster.report(entry, limit=0.2)).complete
        host.may_leave.set()
        await host.has_left.wait()
        await settle()
        assert host.inside == 1
        assert (await host.cluster.report(entry)).complete


@pytest.mark.parametrize("path", PATHS[1:])
async def test_a_login_above_who_is_still_inside_is_a_later_one(path: Any) -> None:
    """C7: whoever was revoked below a key is no session of the key itself."""
    async with member(lease=4) as host:
        await host.log_in(host.cluster.position)
        entry = host.cluster.entry(*KEY)
        await host.cluster.append(entry)
        assert not (await host.cluster.report(entry, limit=0.2)).complete
        with host.cluster.admit("alice", issued=host.cluster.position):
            await host.cluster.append(Entry("revoke", path, before=host.cluster.position, id="x"))
            await host.cluster.revoke("nobody")
            await settle()


@pytest.mark.parametrize("path", PATHS)
@pytest.mark.parametrize("how", ["lost", "again"])
async def test_grace_is_over_when_a_host_cannot_vouch(how: str, path: Any) -> None:
    """C1, C5: who may finish for an hour is out when the host fails closed, or when all are revoked at once."""
    async with member(lease=4) as host:
        host.may_leave.set()
        await host.log_in(host.cluster.position)
        await host.cluster.revoke(*path, grace=3600, limit=0.0)
        assert host.inside == 1
        if how == "lost":
            log = host.cluster.log
            assert isinstance(log, MemoryLog)
            log.wipe()
        else:
            assert (await host.cluster.revoke()).complete
        await host.has_left.wait()
