"""Metrics for OpenTelemetry: open files and revocations. Needs ``asyncrevoke[otel]``."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import TYPE_CHECKING

from opentelemetry.metrics import CallbackOptions, Meter, Observation, get_meter

from asyncrevoke.lowlevel import Event

if TYPE_CHECKING:
    from asyncrevoke import Revokable
    from asyncrevoke.cluster import Cluster, ClusterEvent


class OpenTelemetry:
    """An observer that measures: ``tasks.start_soon(observe, registry.root, OpenTelemetry())``

    - ``asyncrevoke.events``: how often each event happened, by ``event``
    - ``asyncrevoke.open``: the number of open files, of those that were opened since it observes
    - ``asyncrevoke.revocation.duration``: seconds from `revoke` or `close` to the last release

    No attribute holds a path or a user: there may be any number of those.

    :param meter: receives the metrics. Default: the global provider's meter
    """

    def __init__(self, meter: Meter | None = None) -> None:
        meter = meter or get_meter("asyncrevoke")
        self._events = meter.create_counter("asyncrevoke.events", "{event}", "What happened to files")
        self._open = meter.create_up_down_counter("asyncrevoke.open", "{file}", "Files that are open")
        self._files: set[Revokable] = set()  # those that are open
        self._duration = meter.create_histogram(
            "asyncrevoke.revocation.duration", "s", "From the call to the last release"
        )

    def __call__(self, event: Event) -> None:
        self._events.add(1, {"event": event.what})
        if event.what == "opened":
            self._files.add(event.node)
            self._open.add(1)
        elif event.what == "released":
            if event.node in self._files:  # otherwise it is a root, or was there before
                self._files.remove(event.node)
                self._open.add(-1)
            if event.revocation is not None and event.revocation.done():
                self._duration.record(event.revocation.report.seconds)


def observe_cluster(cluster: Cluster, meter: Meter | None = None) -> None:
    """Measure a member of a cluster from now on: ``observe_cluster(cluster)``, once, before it runs.

    - ``asyncrevoke.cluster.events``: how often each event happened, by ``event``: "taken", "cut off", "lost", "caught
      up"
    - ``asyncrevoke.cluster.admits``: 1 if the member admits sessions, otherwise 0. Alert on this
    - ``asyncrevoke.cluster.lease.left``: seconds for which the member may vouch for its sessions. 0 if it may not
    - ``asyncrevoke.cluster.denied``: paths that are refused. Memory grows with it: make sure that entries expire
    - ``asyncrevoke.cluster.keys``: keys with open sessions, and the keys above them

    :param meter: receives the metrics. Default: the global provider's meter
    """
    meter = meter or get_meter("asyncrevoke")
    events = meter.create_counter("asyncrevoke.cluster.events", "{event}", "What happened to the member")

    def count(event: ClusterEvent) -> None:
        events.add(1, {"event": event.what})

    cluster.observers.append(count)
    gauges: list[tuple[str, str, str, Callable[[], float]]] = [
        ("admits", "1", "Whether it admits sessions", lambda: int(cluster.admits)),
        ("lease.left", "s", "Seconds for which it may vouch for its sessions", lambda: max(0.0, cluster.lease_left)),
        ("denied", "{path}", "Paths that are refused", lambda: cluster.denied),
        ("keys", "{key}", "Keys that are in use", lambda: cluster.live.size),
    ]
    for name, unit, what, look in gauges:

        def observe(_: CallbackOptions, look: Callable[[], float] = look) -> Iterable[Observation]:
            return [Observation(look())]

        meter.create_observable_gauge(f"asyncrevoke.cluster.{name}", [observe], unit, what)
