"""One revocation: its steps (refuse, kick, wait and release), and the object that you await.

That object has the report, names the users still inside, and refuses deadlocks. The protocol is told on top of
`revokable`.
"""

from __future__ import annotations

import functools
import inspect
import itertools
import logging
import time
from collections import deque
from collections.abc import Awaitable, Callable, Generator, Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, NamedTuple

import anyio
import anyio.lowlevel

from . import loop
from .errors import RevokeDeadlock, printable
from .use import Releasing, chain

if TYPE_CHECKING:
    from .revokable import Revokable

logger = logging.getLogger("asyncrevoke")


@dataclass(frozen=True, slots=True)
class User:
    """A user inside a node, as `Revokable.users` and `Revocation.stragglers` list it.

    :ivar kind: "operation", "release" or "open file"
    :ivar name: of the task, or of the open file. "" if it has no name
    :ivar path: of the node that it uses
    :ivar task: the task itself, or None
    :ivar since: seconds it has been inside so far, or None if the time was not noted
    :ivar where: the line it waits at
    """

    kind: str
    name: str
    path: str
    task: Any = None
    since: float | None = None
    where: str = ""

    def __str__(self) -> str:
        who = f"{self.kind} of {self.name!r}" if self.kind != "open file" else f"open file {self.name!r}"
        since = "" if self.since is None else f" for {self.since:.1f} s"
        where = f" at {self.where}" if self.where else ""
        return printable(f"{who} in {self.path!r}{since}{where}")


@dataclass(frozen=True, slots=True)
class Report:
    """The result of a revocation. `str()` of it is one line to print. It counts nodes and the operations on them,
    including those that an adapter has made for its own work.

    :ivar kicked: operations that were waiting and were ended
    :ivar released: files released
    :ivar seconds: from the call to the last release, or until now
    :ivar unclosed: files opened with `at_close` whose owner has not closed them. A file below several roots counts for
        each
    :ivar errors: what hooks and releases raised. Awaiting the revocation raises them instead of returning this
    """

    name: str
    reason: str
    kicked: int
    released: int
    remaining: int
    seconds: float
    unclosed: int
    errors: tuple[BaseException, ...]

    def __str__(self) -> str:
        why = f" ({self.reason})" if self.reason else ""
        parts = [f"{self.kicked} kicked", f"{self.released} released"]
        parts += [f"{self.remaining} remaining"] if self.remaining else []
        parts += [f"{self.unclosed} unclosed"] if self.unclosed else []
        parts += [f"{len(self.errors)} failed: " + "; ".join(map(repr, self.errors))] if self.errors else []
        return printable(f"{self.name!r} revoked{why}: {', '.join(parts)}, in {self.seconds:.3f} s")


class _Waiter(NamedTuple):
    ready: Callable[[], bool]
    wake: Callable[[], None]
    task: loop.Task | None
    of_release: bool  # waits for releases, too


class Revocation:
    """One act of revoking or closing, as `revoke()` and `close()` return it. Await it to know that everything is
    released.

    It is complete when every node it swept is drained and released. This holds even if another act revoked the node
    first, and whether or not anybody waits (I4). Any number of tasks may await it, any number of times; each gets a
    `Report`. Cancelling or timing out an await does not change the revocation.

    :ivar reason: why, as the caller says
    :ivar by: the user it was done for, if somebody has verified the name, as a control server does; otherwise ""
    :raises BaseExceptionGroup: from each await, a fresh one, if hooks or releases raised
    :raises RevokeDeadlock: at once, if it can only complete after the caller itself has gone on
    :raises RuntimeError: at once, in another event loop than that of the revoked nodes: nobody would be woken there
    """

    def __init__(
        self,
        roots: tuple[Revokable, ...],
        reason: str,
        closer: Revokable | None = None,
        spare: loop.Task | None = None,
        by: str = "",
    ) -> None:
        self._roots = roots
        self._whole = self  # the act that counts: the first of the same roots, because a later one adds no node
        self._before = (0, 0, 0)  # its counts when this act was called: kicked, released, errors
        self._deadline: float | None = None  # when all are kicked, by whichever act asked for it
        self.reason = reason
        self.by = by
        self._closer = closer  # the node whose owner closed it, in an act of close()
        self._spare = spare  # the task whose own operations are not kicked
        self._nodes: list[Revokable] = []  # what was swept, parents before children; empty again when done
        self._unreleased = 0
        self._undrained = 0
        self._kicked = 0
        self._released = 0
        self._releases: dict[Revokable, Releasing] = {}  # those that run in a task, or will
        self._errors: list[BaseException] = []
        self._told = False  # whether anybody was told of the errors
        self._reporters = 0  # the number of tasks that wait or have waited to the end, and raise the errors
        self._began = time.monotonic()
        self._beginning = True  # until revoke() returns
        self._in_loop = True  # False: the loop wakes waiting tasks when it runs again
        self._ended: float | None = None
        self._waiters: dict[object, _Waiter] = {}

    def done(self) -> bool:
        """Whether everything is drained and released."""
        return not self._whole._unreleased

    @functools.cached_property
    def name(self) -> str:
        """The paths of the nodes it was called on. If there are more than three, only the first three."""
        return ", ".join(node.path for node in self._roots[:3]) + (", ..." if len(self._roots) > 3 else "")

    @property
    def remaining(self) -> int:
        """The number of nodes that are not released yet."""
        return self._whole._unreleased

    @property
    def report(self) -> Report:
        """The report of what has been done so far, without waiting."""
        whole, (kicked, released, _) = self._whole, self._before
        return Report(
            name=self.name,
            reason=self.reason,
            kicked=whole._kicked - kicked,
            released=whole._released - released,
            remaining=self.remaining,
            seconds=max(0.0, (whole._ended or time.monotonic()) - self._began),
            unclosed=sum(len(node._unclosed or ()) for node in self._roots),
            errors=self._raised(),
        )

    def _raised(self) -> tuple[BaseException, ...]:
        return tuple(self._whole._errors[self._before[2] :])

    def __await__(self) -> Generator[Any, Any, Report]:
        return self._complete().__await__()

    async def _complete(self) -> Report:
        await self.finish()
        return self.report

    async def finish(self) -> None:
        """Wait like an await of it, but return no report."""
        self._reporters += 1
        try:
            await self._until(self.done)
        except BaseException:  # cancelled, perhaps in the moment of completion
            self._reporters -= 1
            self._log_untold()
            raise
        if self._raised():
            raise self._failures()

    async def wait_drained(self) -> None:
        """Wait until the last operation is out. Releases may still run, or not have begun.

        :raises RevokeDeadlock: if an operation of the caller's own is one of them
        """
        await self._until(lambda: not self._whole._undrained, of_release=False)

    async def wait_closed(self) -> None:
        """Wait until everything is released, and every owner of a file with an `at_close` has closed it.

        Models snd_card_free (sound/core/init.c), which waits for the last close.

        :raises RevokeDeadlock: as awaiting the revocation itself
        """
        await self._until(lambda: self.done() and not any(node.unclosed for node in self._roots))

    def stragglers(self, most: int | None = None) -> list[User]:
        """List the users that are still inside: operations that have not left, and releases that run (I8). `str()` of
        each is one line to print.

        :param most: the largest number to list. Default: all
        """
        found = (user for node in self._whole._nodes for user in users_of(node) if user.kind != "open file")
        return list(itertools.islice(found, most))

    def __repr__(self) -> str:
        state = "done" if self.done() else f"remaining={self.remaining}"
        return f"<Revocation of {', '.join(repr(node.path) for node in self._roots[:3])} {state}>"

    # -- the counts come down --

    def _progress(self) -> None:
        """Wake those who waited for a count that has now reached 0."""
        if not self._unreleased and self._ended is None:
            self._ended = time.monotonic()
            self._nodes = []
            self._spare = None
            home = loop.current() if self._beginning and self._errors else None
            if home is not None:
                home.call_threadsafe(self._log_untold)  # the caller of revoke() may await it yet
            else:
                self._log_untold()
        for key, waiter in tuple(self._waiters.items()):
            if waiter.ready():
                del self._waiters[key]
                waiter.wake()

    def _when_done(self, call: Callable[[], None]) -> None:
        if self.done():
            call()
        else:
            self._whole._waiters[call] = _Waiter(self.done, call, None, of_release=True)

    def _log_untold(self) -> None:
        if self.done() and self._raised() and not self._told and not self._reporters:
            failures = self._failures()
            logger.error("%s", failures, exc_info=failures)

    def _failures(self) -> BaseExceptionGroup[BaseException]:
        self._told = True
        return BaseExceptionGroup(f"revoking {', '.join(node.path for node in self._roots)!r} failed", self._raised())

    async def _until(self, ready: Callable[[], bool], *, of_release: bool = True) -> None:
        home = None if ready() else loop.current()
        task = None if home is None else home.task()
        if home is not None and any(root._home is not home for root in self._roots):
            for root in self._roots:
                root._settle()
        if ready():
            await anyio.lowlevel.checkpoint()
            return
        assert home is not None
        # Before any checkpoint, or the caller's own kick comes first.
        self._whole._refuse_deadlock(home, task, of_release)
        event = anyio.Event()
        waiters = self._whole._waiters
        waiters[event] = _Waiter(ready, functools.partial(home.wake, event), task, of_release)
        try:
            await event.wait()
        finally:
            waiters.pop(event, None)

    def _refuse_deadlock(self, home: loop.Home, task: loop.Task | None, of_release: bool) -> None:
        """Go from the caller to the tasks that wait for it, and so on. Raise if this revocation waits for one of
        them.
        """
        awaits: dict[loop.Task, _Link | None] = {task: None}  # how it comes to wait for the caller
        for visited in (unvisited := [task]):
            for inside in chain(home.inside[visited]) if visited in home.inside else ():
                operation = not isinstance(inside, Releasing)
                if self in inside.node._acts and (operation or of_release):
                    raise RevokeDeadlock(_cycle(_Link(self, visited, inside.node), awaits))
                for act in inside.node._acts:
                    for waiter in act._waiters.values():
                        if waiter.task not in awaits and waiter.task is not None and (operation or waiter.of_release):
                            awaits[waiter.task] = _Link(act, visited, inside.node)
                            unvisited.append(waiter.task)


class _Link(NamedTuple):
    """Somebody awaits `act`, which waits for `task` inside `node`."""

    act: Revocation
    task: loop.Task
    node: Revokable


def _cycle(link: _Link | None, awaits: dict[loop.Task, _Link | None]) -> str:
    who = []
    while link is not None:
        who.append(f"awaits {link.act!r}, which waits for task {loop.task_name(link.task)!r} inside {link.node.path!r}")
        caller = link.task
        link = awaits[link.task]
    return f"task {loop.task_name(caller)!r} {', which '.join(who)}: leave that first, or do not await"


# -- the steps --

LIVE, REVOKED, KICKED, RELEASING, RELEASED = range(5)
#: How much of a revocation is done inside `revoke()` and then in each turn of the loop. A count and not a time, so that
#: a search over schedules is repeatable.
SLICE = 256


def begin(act: Revocation, home: loop.Home | None, grace: float) -> None:
    """Refuse, kick, wait, release: one slice of it now, the rest in a task of its own."""
    for root in act._roots:
        if root._home is not home:
            root._settle()
    if not _is_again(act):
        _refuse(act, home)
    if not act._whole._nodes:  # it was over before
        return
    _announce(act, home)
    work = _work(act, grace)
    if home is None:
        act._in_loop = False
        deque(work, 0)
        return
    step = _slice(work)
    act._beginning = False
    if step is _END:
        return

    async def drive() -> None:
        nonlocal step
        while step is not _END:
            if step is _PAUSE:
                with anyio.move_on_after(grace):
                    await act._until(act.done)
            else:
                await anyio.lowlevel.checkpoint()
            step = _slice(work)

    # A closing loop has no next turn: when the task is cancelled, the rest runs at once.
    home.spawn(drive, lambda _: deque(work, 0), repr(act))


def _announce(act: Revocation, home: loop.Home | None) -> None:
    """Tell observers, if it is the first act on any of its roots."""
    if first := [root for root in act._roots if root._acts[0] is act]:
        for root in first:
            tell("closed" if act._closer else "revoked", root, act)
        for observation in tuple(home.observations if home is not None else ()):
            observation.begun(act)


def _is_again(act: Revocation) -> bool:
    """Whether the same roots were revoked before. Then all refuse already. The act is one more view of the earlier one,
    and no node keeps it.
    """
    acts = [earlier for root in act._roots for earlier in root._acts if earlier._roots == act._roots]
    if not acts or act in acts:
        return False
    act._whole = whole = acts[-1]
    act._before = whole._kicked, whole._released, len(whole._errors)
    return True


def _refuse(act: Revocation, home: loop.Home | None) -> None:
    """Mark all that is below, and bind it to this loop. No user code runs in between."""
    mine = (act,)
    order: list[Revokable] = []  # children before parents, also where a child has several
    unvisited: list[Revokable | tuple[Revokable]] = list(act._roots)
    while unvisited:
        node = unvisited.pop()
        if isinstance(node, tuple):  # its children are all in order
            order.append(node[0])
        elif node._state == RELEASED:
            if node._unclosed:
                node._acts += mine  # is told when the last owner closes
        elif not (node._acts and node._acts[-1] is act):
            node._acts += mine
            node._home = home or node._home
            if node._state == LIVE:
                node._state = REVOKED  # I1 from here
            if node._uses or node._bare:
                act._undrained += 1
            if node._children:
                unvisited.append((node,))
                unvisited += node._children
            else:
                order.append(node)
    order.reverse()  # parents before children, and in order of opening
    act._nodes = order
    act._unreleased = len(order)
    if not order:
        act._progress()


_PAUSE, _END = object(), object()


def _work(act: Revocation, grace: float) -> Generator[object, None, None]:
    """All that follows the refusal, in steps: one kick, or one release."""
    whole, deadline = act._whole, time.monotonic() + grace
    hastens = whole._deadline is None or deadline < whole._deadline
    if hastens and act._spare is None:
        whole._deadline = deadline
    yield from _kick(act, idle_only=grace > 0)
    for node in reversed(whole._nodes):
        last_out(node)
        yield None
    if hastens and grace:
        yield _PAUSE
        yield from _kick(act, idle_only=False)


def _slice(work: Generator[object, None, None]) -> object:
    """Take up to SLICE steps. Return _END, _PAUSE, or None if there is more to do."""
    for _ in range(SLICE):
        step = next(work, _END)
        if step is not None:
            return step
    return None


def _kick(act: Revocation, *, idle_only: bool) -> Generator[None, None, None]:
    """Tell those who wait to leave, parents before children."""
    for node in act._whole._nodes:
        if node._state < RELEASING:
            if node._state < KICKED and not idle_only:
                _enter_kicked(node)
            uses = node._uses or {}
            for use in tuple(uses):
                if (
                    use in uses
                    and use.act is None
                    and (use.idle or not idle_only)
                    and (use.task is not act._spare or use.task is None)
                ):
                    if use.kick(act):
                        for each in node._acts:
                            each._kicked += 1
                        tell("kicked", node, act, use.task)
                    yield
        yield


def _enter_kicked(node: Revokable) -> None:
    node._state = KICKED
    if callable(node._kick):
        node._call(node._kick, node)


def last_out(node: Revokable) -> None:
    """Somebody has left `node`. If it has no user any more, release it, and then perhaps its parents."""
    due = [node]
    while due:
        node = due.pop()
        if node._uses or node._bare or node._children:
            continue
        if not node._acts:
            node._unused()
            continue
        if node._state < KICKED:
            _enter_kicked(node)  # whose hook may have come here itself
        if node._state < RELEASING and _release(node):
            due += node._parents()


def _release(node: Revokable) -> bool:
    """Run the release, once (I2). Return whether the node is released already."""
    node._state = RELEASING  # I3 from here: nobody is inside, and nobody can come
    release, node._release = node._release, None
    running = None if release is None else node._call(release)
    if running is None or not isinstance(running, Awaitable):
        _released(node)
        return True

    async def run() -> None:
        with releasing:
            await running

    def done(exc: BaseException | None) -> None:
        del releases[node]
        if exc is not None:
            node._failed(exc)
            if inspect.iscoroutine(running):
                running.close()  # which may not have begun
        _released(node)
        for parent in node._parents():
            last_out(parent)

    home = loop.current()
    if home is not None:
        releases = node._acts[0]._releases
        releases[node] = releasing = Releasing(node)
        home.spawn(run, done, f"release of {node.path!r}")
        return False
    node._failed(RuntimeError(f"the release of {node.path!r} returned an awaitable, and no event loop runs"))
    if inspect.iscoroutine(running):
        running.close()
    _released(node)
    return True


def _released(node: Revokable) -> None:
    node._state = RELEASED
    open_there = node.parent is None
    for parent in node._parents():
        open_there |= (parent._children or {}).pop(node, node) is None  # else a key that nobody used
    if node._closed:
        node._run_at_close()
    node._gone()
    for act in node._acts:
        act._released += 1
        act._unreleased -= 1
        if not act._unreleased or node._number is not None:  # some wait for one generation alone
            act._progress()  # I4
    if open_there:
        tell("released", node, node._acts[0])


def tell(what: str, node: Revokable, act: Revocation | None = None, task: loop.Task | None = None) -> None:
    """Tell those who observe `node`, or a node above it, what has happened."""
    observers = node._observers if node._lasting else node._heard_by()
    who = "" if task is None or not observers else loop.task_name(task)
    for observer in observers:
        observer(what, node, act, who)


def users_of(node: Revokable) -> Iterator[User]:
    """Yield the operations on a node, its open children, and its running release.

    Each is still inside when it is yielded. The caller may go on in another turn of the loop: users that have left
    meanwhile are skipped.
    """
    path = node.path
    for use in tuple(node._uses or ()):
        if use in (node._uses or ()):
            name, where = ("", "") if use.task is None else (loop.task_name(use.task), loop.where(use.task))
            yield User("operation", name, path, use.task, time.monotonic() - use.since, where)
    for _ in range(node._bare):
        yield User("operation", "", path)
    for child in tuple(node._children or ()):
        if child in (node._children or ()):
            yield User("open file", child.name, path)
    if node.releasing:
        release = node._acts[0]._releases.get(node)
        if release is not None and release.task is not None:
            since, task = time.monotonic() - release.since, release.task
            yield User("release", loop.task_name(task), path, task, since, loop.where(task))
        else:
            yield User("release", f"release of {path!r}", path, None, 0.0, "its beginning")
