"""Metrics of what is open and what is taken away, for OpenTelemetry. Needs ``asyncrevoke[otel]``."""

from opentelemetry.metrics import Meter, get_meter

from asyncrevoke.lowlevel import Event


class OpenTelemetry:
    """An observer that measures: ``tasks.start_soon(observe, registry.root, OpenTelemetry())``

    - ``asyncrevoke.events``: how often each thing happened, by ``event``
    - ``asyncrevoke.open``: the number of open files
    - ``asyncrevoke.revocation.duration``: seconds from `revoke` or `close` to the last release

    No attribute tells a path, or a user: of those there may be any number.

    :param meter: where to; left out: that of the global provider
    """

    def __init__(self, meter: Meter | None = None) -> None:
        meter = meter or get_meter("asyncrevoke")
        self._events = meter.create_counter("asyncrevoke.events", "{event}", "What happened to files")
        self._open = meter.create_up_down_counter("asyncrevoke.open", "{file}", "Files that are open")
        self._duration = meter.create_histogram(
            "asyncrevoke.revocation.duration", "s", "From the call to the last release"
        )

    def __call__(self, event: Event) -> None:
        self._events.add(1, {"event": event.what})
        if event.what == "opened":
            self._open.add(1)
        elif event.what == "released":
            if event.node.parent is not None:  # a root is not opened
                self._open.add(-1)
            if event.revocation is not None and event.revocation.done():
                self._duration.record(event.revocation.report.seconds)
