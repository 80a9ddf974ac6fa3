"""What is measured of a tree."""

from typing import Any

import anyio
import pytest
from opentelemetry.sdk.metrics import MeterProvider
from opentelemetry.sdk.metrics.export import InMemoryMetricReader

from asyncrevoke import Registry, Revokable, observe
from asyncrevoke.cluster import Cluster, MemoryLog
from asyncrevoke.telemetry import OpenTelemetry, observe_cluster
from conftest import settle

pytestmark = pytest.mark.anyio


def measured(reader: InMemoryMetricReader) -> dict[str, Any]:
    """The figures of now, by name and event; of all that is timed the sum, as "seconds"."""
    found: dict[str, Any] = {"seconds": 0.0}
    data = reader.get_metrics_data()
    assert data is not None
    for metric in data.resource_metrics[0].scope_metrics[0].metrics:
        for point in metric.data.data_points:
            event = (point.attributes or {}).get("event", "")
            found[f"{metric.name} {event}".strip()] = getattr(point, "count", None) or getattr(point, "value", None)
            found["seconds"] += getattr(point, "sum", 0.0)
    return found


async def test_what_is_open_and_what_it_took_to_take_it_away() -> None:
    """Every event is counted by its name; what is open goes up and down; an act is timed once, whatever it took.

    A file with two parents is one file, and one that was there before is none that was opened.
    """
    reader = InMemoryMetricReader()
    provider = MeterProvider([reader])
    root = Revokable()
    there_before = root.open("there before")
    async with anyio.create_task_group() as tasks:
        await tasks.start(observe, root, OpenTelemetry(provider.get_meter("test")))
        device, other = root.open("device"), root.open("other")
        acts = [device.open("alice").close(), there_before.close()]
        other.join(root.open("shared"))
        device.open("bob")
        acts.append(device.revoke("unplugged"))
        await acts[-1]
        assert not other.revoked
        acts.append(root.revoke("good night"))
        await acts[-1]
        await settle()
        tasks.cancel_scope.cancel()
    found = measured(reader)
    provider.shutdown()
    assert found.pop("seconds") == pytest.approx(sum(act.report.seconds for act in acts))
    assert found == {
        "asyncrevoke.events opened": 5,
        "asyncrevoke.events closed": 2,
        "asyncrevoke.events revoked": 2,
        "asyncrevoke.events released": 7,
        "asyncrevoke.open": 0,
        "asyncrevoke.revocation.duration": 4,
    }


async def test_a_member_tells_whether_it_may_vouch_for_its_sessions() -> None:
    """Its events are counted by name. The lease, what is refused and the keys in use are as they are when they are read."""
    reader = InMemoryMetricReader()
    provider = MeterProvider([reader])
    cluster = Cluster(Registry(), MemoryLog(), host="web7", mode="strict")
    observe_cluster(cluster, provider.get_meter("test"))
    await cluster.init()

    def now() -> dict[str, Any]:
        found = measured(reader)
        return {name.removeprefix("asyncrevoke.cluster."): found[name] for name in found if name != "seconds"}

    assert now() == {"admits": 0, "lease.left": 0.0, "denied": 0, "keys": 0}
    async with anyio.create_task_group() as tasks:
        await tasks.start(cluster.run)
        with cluster.admit("bob"):
            await cluster.revoke("alice", "token7")
            found = now()
            assert 0 < found.pop("lease.left") <= 10
            assert found == {"admits": 1, "denied": 1, "keys": 1, "events caught up": 1, "events taken": 1}
        tasks.cancel_scope.cancel()
    ended = {"admits": 0, "lease.left": 0.0, "denied": 0, "keys": 0}
    assert now() == ended | {"events caught up": 1, "events taken": 1}
    provider.shutdown()
