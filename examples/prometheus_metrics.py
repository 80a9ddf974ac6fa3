"""Metrics for Prometheus: an observer is any function, and is told what is opened, revoked, kicked and released."""

import anyio
from prometheus_client import Counter, Gauge, Histogram, generate_latest

from asyncrevoke import Event, Registry, observe, open_pty

EVENTS = Counter("asyncrevoke_events", "What happened to files", ["event"])
OPEN = Gauge("asyncrevoke_open", "Files that are open")
SECONDS = Histogram("asyncrevoke_revocation_seconds", "From the call to the last release")


def measure(event: Event) -> None:
    """Paths and users are no labels: of those there may be any number."""
    EVENTS.labels(event.what).inc()
    if event.node.parent:  # else it is the root, which is not opened
        OPEN.inc({"opened": 1, "released": -1}.get(event.what, 0))
    if event.what == "released" and event.revocation and event.revocation.done():
        SECONDS.observe(event.revocation.report.seconds)


async def main() -> None:
    live = Registry()
    async with anyio.create_task_group() as tasks:
        await tasks.start(observe, live.root, measure)
        session = open_pty(["cat"], owner=live["alice", "t1"])
        for name in "browser", "phone":
            session.open(name)
        await live.revoke("alice", reason="the account was closed")
        tasks.cancel_scope.cancel()
    print(generate_latest().decode())


anyio.run(main)
