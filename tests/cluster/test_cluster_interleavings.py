"""Two members in every order of asyncio's steps: admission, taking, acknowledging, a wipe, leaving.

test_search.py searches the protocol; here are the real `Cluster`s, whose steps are those of the loop.
"""

import asyncio
import random
from collections.abc import Callable, Coroutine
from typing import Any

import pytest

from asyncrevoke import Registry, RevokedError
from asyncrevoke.cluster import (
    Cluster,
    MemoryLog,
    Position,
    Revoker,
    cluster as cluster_module,
    revoker as revoker_module,
)
from explorer import DEVIATIONS, Task, explore, turns

BOUND = DEVIATIONS - 1  # a member has many steps
pytestmark = pytest.mark.timeout(60 * 10**BOUND)


class Hosts:
    """Two members, whose clock is that of the loop, and what is known of their sessions."""

    def __init__(self) -> None:
        self.log = MemoryLog()
        self.hosts = [Cluster(Registry(), self.log, host=host, lease=400, mode="strict") for host in ("web1", "web2")]
        self.inside: set[tuple[str, str]] = set()
        self.tasks: list[Task] = []
        self.followers: list[Task] = []
        self.early: Position | None = None

    async def start(self) -> None:
        await Revoker(self.log).init()
        for host in self.hosts:
            self.followers.append(asyncio.create_task(host.run(), name=host.host))
        while any(host._cut_off for host in self.hosts):
            await turns(1)
        self.early = self.hosts[0].position

    def do(self, *works: Coroutine[Any, Any, object]) -> None:
        self.tasks += [asyncio.create_task(work) for work in works]

    async def session(self, number: int, after: int, token: str = "token7") -> None:
        await turns(after)
        host = self.hosts[number]
        try:
            with host.admit("alice", token, issued=self.early):
                await self.stays(host, token)
        except RevokedError:
            return

    async def stays(self, host: Cluster, token: str) -> None:
        self.inside.add((host.host, token))
        try:
            await asyncio.get_running_loop().create_future()
        finally:
            self.inside.remove((host.host, token))

    async def looks_first(self, number: int, after: int) -> None:
        """A fault: something comes between the look and the registration."""
        await turns(after)
        host = self.hosts[number]
        try:
            host.check("alice", "token7", issued=self.early)
            await turns(1)
            with host.live["alice", "token7"].using():
                await self.stays(host, "token7")
        except RevokedError:
            return

    async def revokes(self, number: int, after: int) -> None:
        await turns(after)
        report = await self.hosts[number].revoke("alice", reason="stolen")
        assert report.complete, f"C5 {report}"
        assert not self.inside, f"C4, C5 it is reported as done, and {self.inside} are inside"

    async def wipes(self, after: int) -> None:
        await turns(after)
        self.log.wipe()

    async def leaves(self, number: int, after: int) -> None:
        await turns(after)
        self.followers[number].cancel()
        await asyncio.wait([self.followers[number]])
        name = self.hosts[number].host
        assert not [each for each in self.inside if each[0] == name], f"{name} has left, and has sessions"

    async def finish(self) -> None:
        await asyncio.sleep(500)  # virtual seconds
        for task in self.tasks:
            assert task.done(), "a session that was revoked is still inside, or a report never comes"
            task.result()
        for host in self.hosts:
            try:
                with host.admit("alice", "token7", issued=self.early):
                    raise AssertionError(f"C6 {host.host} admits what was revoked")
            except RevokedError:
                pass
        for task in self.followers:
            task.cancel()
        await asyncio.wait(self.followers)


async def beside_a_revocation(hosts: Hosts) -> None:
    """Sessions begin on both hosts while one of them revokes."""
    hosts.do(hosts.session(0, 0), hosts.session(0, 4), hosts.session(1, 2), hosts.session(1, 6), hosts.revokes(0, 1))


async def beside_a_wipe(hosts: Hosts) -> None:
    """The log is wiped while a host revokes."""
    hosts.do(hosts.session(0, 0), hosts.session(1, 3), hosts.revokes(0, 1), hosts.wipes(4))


async def beside_a_leaving(hosts: Hosts) -> None:
    """A host leaves while the other one revokes."""
    hosts.do(hosts.session(0, 0), hosts.session(1, 0), hosts.revokes(0, 1), hosts.leaves(1, 3))


async def with_a_look_before(hosts: Hosts) -> None:
    """A session looks first, and registers a step later."""
    hosts.do(hosts.revokes(0, 0), *(hosts.looks_first(1, after) for after in range(10)))


async def run(scenario: Callable[[Hosts], Coroutine[Any, Any, None]]) -> None:
    hosts = Hosts()
    await hosts.start()
    await scenario(hosts)
    await hosts.finish()


@pytest.fixture(autouse=True)
def _virtual(monkeypatch: pytest.MonkeyPatch) -> None:
    for module in cluster_module, revoker_module:
        monkeypatch.setattr(module, "clock", lambda: asyncio.get_running_loop().time())
    monkeypatch.setattr(random, "sample", lambda some, number: some[:number])


@pytest.mark.parametrize("scenario", [beside_a_revocation, beside_a_wipe, beside_a_leaving])
def test_every_order_keeps_the_contract(
    scenario: Callable[[Hosts], Coroutine[Any, Any, None]], record_property: Callable[[str, object], None]
) -> None:
    """C4: whoever is inside when a host acknowledges is taken, and whoever comes later is refused."""
    explore(lambda: run(scenario), record_property, bound=BOUND)


def test_the_search_finds_a_look_before_the_registration(record_property: Callable[[str, object], None]) -> None:
    """C4: this is why nothing may come between the two."""
    with pytest.raises(Exception, match=r"C4|inside"):
        explore(lambda: run(with_a_look_before), record_property, bound=BOUND)
