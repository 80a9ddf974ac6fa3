"""What is measured of a tree."""

from typing import Any

import anyio
import pytest
from opentelemetry.sdk.metrics import MeterProvider
from opentelemetry.sdk.metrics.export import InMemoryMetricReader

from asyncrevoke import Revokable, observe
from asyncrevoke.telemetry import OpenTelemetry
from conftest import settle

pytestmark = pytest.mark.anyio


async def test_what_is_open_and_what_it_took_to_take_it_away() -> None:
    """Every event is counted by its name; what is open goes up and down; an act is timed once, whatever it took."""
    reader = InMemoryMetricReader()
    provider = MeterProvider([reader])
    root = Revokable()
    async with anyio.create_task_group() as tasks:
        await tasks.start(observe, root, OpenTelemetry(provider.get_meter("test")))
        device, other = root.open("device"), root.open("other")
        acts = [device.open("alice").close()]
        device.open("bob")
        acts.append(device.revoke("unplugged"))
        await acts[-1]
        assert not other.revoked
        acts.append(root.revoke("good night"))
        await acts[-1]
        await settle()
        tasks.cancel_scope.cancel()
    found: dict[str, Any] = {}
    seconds = 0.0
    data = reader.get_metrics_data()
    assert data is not None
    for metric in data.resource_metrics[0].scope_metrics[0].metrics:
        for point in metric.data.data_points:
            event = (point.attributes or {}).get("event", "")
            found[f"{metric.name} {event}".strip()] = getattr(point, "count", None) or getattr(point, "value", None)
            seconds += getattr(point, "sum", 0.0)
    provider.shutdown()
    assert seconds == pytest.approx(sum(act.report.seconds for act in acts))
    assert found == {
        "asyncrevoke.events opened": 4,
        "asyncrevoke.events closed": 1,
        "asyncrevoke.events revoked": 2,
        "asyncrevoke.events released": 5,
        "asyncrevoke.open": 0,
        "asyncrevoke.revocation.duration": 3,
    }
