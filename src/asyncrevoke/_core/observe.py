"""Observers of a tree: for logs, metrics and lists."""

import logging
import time
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Literal, cast

import anyio
import anyio.abc
import anyio.lowlevel

from .errors import printable
from .revocation import Revocation, users_of
from .revokable import Revokable, below, have_observed
from .use import OPENING_FAILED

logger = logging.getLogger("asyncrevoke")

_AT_ONCE = 64  # stragglers that are told before others have their turn

Happening = Literal["opened", "revoked", "closed", "kicked", "released", "straggler"]


@dataclass(frozen=True, slots=True)
class Event:
    """Something that has happened to `node`.

    :ivar what: "opened", "released"; "revoked", or "closed" by its owner, of the node it was called on; "kicked", of an
        operation on the node; "straggler", of a revocation of the node that takes its time
    :ivar who: the task that was kicked, or the straggler and the line it waits at
    :ivar revocation: the act; None for "opened"
    """

    what: Happening
    node: Revokable
    who: str = ""
    revocation: Revocation | None = None

    @property
    def fields(self) -> dict[str, Any]:
        """The event as plain values: `event`, `path`, `generation`, `reason`, `by`, `who`."""
        return {
            "event": self.what,
            "path": self.node.path,
            "generation": self.node.generation,
            "reason": self.node.reason,
            "by": self.node.revoked_by,
            "who": self.who,
        }

    def __str__(self) -> str:
        who = f": {self.who}" if self.who else ""
        by = f" by {self.node.revoked_by}" if self.what == "revoked" and self.node.revoked_by else ""
        reason = f" ({self.node.reason})" if self.node.reason else ""
        return printable(f"{self.node.path or 'everything'!r} {self.what}{by}{who}{reason}")


#: Called in the loop, in the midst of a revocation: it must note the event and not wait. What it raises is logged.
Observer = Callable[[Event], object]


async def observe(
    node: Revokable,
    *observers: Observer,
    patience: float = 1.0,
    task_status: anyio.abc.TaskStatus[None] = anyio.TASK_STATUS_IGNORED,
) -> None:
    """Tell an observer what happens to `node` and all below it, until cancelled: ``await tasks.start(observe, root,
    log_events)``

    A file is opened once, when it comes below `node`, be it new or joined later; what is there already is not told.
    Operations are not observed, so they cost no more than before. If a revocation is called above `node`, the act
    itself is not told.

    :param patience: seconds from the kick after which users still inside a revoked node are stragglers
    :raises RuntimeError: if the tree belongs to another loop
    Cancellation: ends it.
    """
    home = node._settle()
    assert home is not None
    observation = Observation(node, observers, patience)
    have_observed(node, (observation.happened,))
    home.observations[observation] = None
    try:
        task_status.started()
        await observation.tell_of_stragglers()
    finally:
        home.observations.pop(observation, None)
        observation.end()


class Observation:
    """The state of one call of `observe`, as long as its loop runs."""

    def __init__(self, node: Revokable, observers: tuple[Observer, ...], patience: float) -> None:
        self._node = node
        self._observers = observers
        self._patience = patience
        self._unfinished: deque[tuple[float, Revocation]] = deque()  # when to look for stragglers, and whose
        self._more = anyio.Event()

    def happened(self, what: str, node: Revokable, act: Revocation | None, who: str) -> None:
        """Note an event. This runs in the midst of a revocation, perhaps without a task: it raises nothing, and asks
        nothing of AnyIO.
        """
        self._tell(Event(cast(Happening, what), node, who, act))

    def begun(self, act: Revocation) -> None:
        """Look for the stragglers of an act, if it concerns what is observed, or a part of it."""
        if act in self._node._acts or any(self.happened in root._observers for root in act._roots):
            self._look_later(act, self._patience)
            self._more.set()

    def _look_later(self, act: Revocation, seconds: float) -> None:
        self._unfinished.append((time.monotonic() + seconds, act))

    def end(self) -> None:
        """Stop observing. Calling it again does no harm."""
        for each in below(self._node):
            each._observers = tuple(told for told in each._observers if told != self.happened)

    def _tell(self, event: Event) -> None:
        for observer in self._observers:
            try:
                observer(event)
            except Exception:
                logger.exception("the observer %r failed", observer)

    async def tell_of_stragglers(self) -> None:
        while True:
            await self._more.wait()
            while self._unfinished:
                await anyio.sleep(max(0.0, self._unfinished[0][0] - time.monotonic()))
                await self._look(self._unfinished.popleft()[1])
            self._more = anyio.Event()

    async def _look(self, act: Revocation) -> None:
        left = (act._deadline or 0.0) + self._patience - time.monotonic()  # None: of a close, whose kicks are at once
        if left > 0.0 or not all(node.kicked for node in act._nodes):  # it is in its grace, or was until now
            self._look_later(act, min(left, self._patience) if left > 0.0 else self._patience)
            return
        observed = (node for node in act._nodes if self.happened in node._observers)
        stragglers = ((node, user) for node in observed for user in users_of(node) if user.kind != "open file")
        for number, (node, user) in enumerate(stragglers, 1):
            self._tell(Event("straggler", node, str(user), act))
            if number % _AT_ONCE == 0:
                await anyio.lowlevel.checkpoint()


def log_events(event: Event) -> None:
    """Log events to "asyncrevoke", with the event's fields in `extra`. Revocations are INFO, stragglers WARNING, all
    else DEBUG, also that an opening failed.
    """
    level = {"revoked": logging.INFO, "straggler": logging.WARNING}.get(event.what, logging.DEBUG)
    if level == logging.INFO and logger.isEnabledFor(level) and event.node.reason == OPENING_FAILED:
        level = logging.DEBUG  # it is tried again and again, perhaps
    if logger.isEnabledFor(level):
        logger.log(level, "%s", event, extra=event.fields)
