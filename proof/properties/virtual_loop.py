"""An asyncio loop without a clock and without descriptors: it runs what is ready, and time passes when it is told to."""

import asyncio
from collections.abc import Callable
from typing import Any, TypeVar

T = TypeVar("T")


class _Nothing:
    """Stands for a selector: no descriptor is ever ready."""

    def select(self, _timeout: float | None) -> list[object]:
        return []


class VirtualLoop(asyncio.BaseEventLoop):
    """Each run ends when nothing is ready any more.

    :ivar errors: what nobody handled
    """

    _ready: Any
    _scheduled: Any

    def __init__(self, most_turns: int = 1000) -> None:
        super().__init__()
        self._selector = _Nothing()
        self._now = 1000.0
        self._most_turns = most_turns
        self.errors: list[str] = []
        self.set_exception_handler(lambda _, context: self.errors.append(repr(context)))

    def time(self) -> float:
        return self._now

    monotonic = time  # of the module that the core asks

    def _process_events(self, _events: list[object]) -> None:
        pass

    def _write_to_self(self) -> None:
        pass

    def _turn(self) -> None:
        self.call_soon(self.stop)
        self.run_forever()

    def at_once(self, call: Callable[[], T]) -> T:
        """Make a call in the loop, as a callback of its own, before anything that is ready."""
        ready, made = list(self._ready), self.create_future()

        def make() -> None:
            try:
                made.set_result(call())
            except Exception as exc:  # noqa: BLE001  # raised by result()
                made.set_exception(exc)

        self._ready.clear()
        self.call_soon(make)
        self._turn()
        self._ready.extendleft(reversed(ready))
        result: T = made.result()
        return result

    def settle(self) -> None:
        """Run all that is ready, and what it makes ready."""
        turns = 0
        while self._ready:
            turns += 1
            assert turns < self._most_turns, "the loop does not come to rest"
            self._turn()

    def pass_time(self, seconds: float) -> None:
        """Let time pass, from timer to timer: each time the loop comes to rest."""
        self.settle()
        end = self._now + seconds
        while timers := [timer.when() for timer in self._scheduled if not timer.cancelled() and timer.when() <= end]:
            self._now = max(self._now, min(timers))
            self._turn()
            self.settle()
        self._now = end
