"""The loop a tree lives in. This is the only file that tells asyncio from trio.

All other files ask a `Home` for the current task, for a background task, or for a call from another thread.
"""

import abc
import asyncio
import contextlib
import functools
import inspect
import logging
import sys
import threading
import weakref
from collections import deque
from collections.abc import AsyncGenerator, Awaitable, Callable, Iterator
from types import FrameType, ModuleType
from typing import TYPE_CHECKING, Any

import anyio
import anyio.lowlevel

from . import scope

if TYPE_CHECKING:
    from .observe import Observation
    from .use import Inside
    from .watch import Watched

Task = Any  # asyncio.Task or trio.lowlevel.Task: both are only compared, named and looked into
Done = Callable[[BaseException | None], object]

logger = logging.getLogger("asyncrevoke")

#: Operations in a row that need not wait, before one of them lets others run. As tokio's budget, which is 128.
READY = 32

#: Before 3.12 the public function is one of Python's, which takes longer than all else that an operation needs.
_current_task: Callable[[asyncio.AbstractEventLoop], Task | None] = (
    asyncio.current_task if sys.version_info >= (3, 12) else asyncio.tasks._current_tasks.get  # type: ignore[attr-defined]
)


class Home(abc.ABC):
    """One loop, in one thread.

    :ivar loop: the loop itself, or trio's token of it
    :ivar inside: the innermost thing each task is inside of: an operation, or a release that it runs. Linked outwards
        by `outer`
    :ivar observations: those of this loop. They are told of each act when it has begun
    :ivar watched: the descriptors that are watched in this loop, or None
    """

    left = 0  # ready operations before the next turn of the loop
    #: The loop that calls back when a descriptor is ready, or None where only a task can wait for that.
    reactor: asyncio.AbstractEventLoop | None = None

    def __init__(self, loop: Any) -> None:
        self.loop = loop
        self.thread = threading.get_ident()
        self.inside: dict[Task, Inside] = {}
        self.observations: dict[Observation, None] = {}
        self.watched: Watched | None = None
        self._handed: deque[Callable[[], object]] = deque()

    @property
    @abc.abstractmethod
    def over(self) -> bool:
        """Whether the loop can never run again."""

    @abc.abstractmethod
    def task(self) -> Task | None:
        """The current task, or None in a callback and in any other loop."""

    def due(self) -> bool:
        """Whether an operation that need not wait must suspend here all the same: ``await checkpoint()``.

        A checkpoint notices cancellation and lets other tasks run. So it is due where the task is cancelled, and
        otherwise after `READY` operations of all tasks together.
        """
        return True

    def place(self, task: Task) -> scope.Place | None:  # noqa: ARG002
        """The task's place among its cancel scopes, for `surround`. None: enter a scope now, to be able to cancel
        later.
        """
        return None

    @abc.abstractmethod
    def spawn(self, run: Callable[[], Awaitable[object]], done: Done, name: str) -> None:
        """Run `run` in a background task. `done` is called once, with what it raised, even if the task never
        started.
        """

    @abc.abstractmethod
    def call_threadsafe(self, call: Callable[[], object]) -> None:
        """Call it in the loop's thread, if the loop does not end before.

        :raises RuntimeError: if it is over
        """

    def hand_over(self, call: Callable[[], object]) -> None:
        """Call it once: in the loop's thread, or here if the loop is over, or by `wind_up`."""
        self._handed.append(call)
        try:
            self.call_threadsafe(self._make_call)
        except RuntimeError:
            self.wind_up()

    def _make_call(self) -> bool:
        """Make the first call that was handed over. Return whether there was one."""
        try:
            call = self._handed.popleft()
        except IndexError:
            return False
        try:
            call()
        except Exception:
            logger.exception("%r failed in the loop, called by a thread", call)
        return True

    def wind_up(self) -> None:
        """Do what a closed loop has left undone. It may have been closed at any point."""
        while self.observations:
            self.observations.popitem()[0].end()
        while self._make_call():
            pass

    def wake(self, event: anyio.Event) -> None:
        """Set the event of a task that waits in this loop, from any thread. If the loop is over, nobody waits."""
        self.call(event.set)

    def call(self, call: Callable[[], object]) -> None:
        """Call it in the loop: now if the loop runs here, otherwise when it runs, and not at all if it is over."""
        if current() is self:
            call()
        else:
            with contextlib.suppress(RuntimeError):
                self.call_threadsafe(call)


class _AsyncioHome(Home):
    """An asyncio loop.

    A closing loop cancels and awaits the tasks that it finds, then closes the generators that were begun in it
    (asyncio/runners.py, Runner.close). This has two effects. It may cancel a task before its first step, so `spawn`
    gives it one more. And tasks may appear after it has looked: `_end`, a generator, ends those.
    """

    def __init__(self, loop: asyncio.AbstractEventLoop) -> None:
        super().__init__(loop)
        self.reactor: asyncio.AbstractEventLoop = loop
        self._tasks: dict[asyncio.Task[BaseException | None], Done] = {}
        self._ending: AsyncGenerator[None, None] | None = None
        self._states: Any = None  # AnyIO's table of the scopes of tasks
        self._ref: Callable[[], Task | None] = lambda: None  # to the task that was asked about last

    @property
    def over(self) -> bool:
        return bool(self.loop.is_closed())

    def task(self) -> Task | None:
        return _current_task(self.reactor) if asyncio._get_running_loop() is self.loop else None

    def due(self) -> bool:
        left = self.left
        if not left or threading.get_ident() != self.thread:  # the running loop costs a system call before 3.12
            return True
        self.left = left - 1
        task = _current_task(self.reactor)
        if task is None or task.cancelling():
            return True
        innermost = self.innermost(task)
        return innermost is not None and bool(innermost._effectively_cancelled)

    def innermost(self, task: Task) -> Any:
        """The cancel scope that the task is in, or None. OPAQUE if it cannot be known."""
        states = self._states
        if states is None:
            self._states = states = scope.states()
            if states is None:
                return None
        ref = self._ref
        if ref() is not task:
            self._ref = ref = weakref.ref(task)
        state = states.get(ref)
        return None if state is None else state.cancel_scope

    def place(self, task: Task) -> scope.Place | None:
        if self._states is None:
            from anyio._backends import _asyncio  # noqa: F401, PLC0415  # which takes long, and not every program needs
        innermost = self.innermost(task)
        return None if innermost is scope.OPAQUE else (innermost, task.cancelling())

    def spawn(self, run: Callable[[], Awaitable[object]], done: Done, name: str) -> None:
        begun = False

        async def main() -> BaseException | None:
            nonlocal begun
            begun = True
            try:
                await run()
            except BaseException as exc:  # noqa: BLE001  # handed to done(), which reports it
                return exc
            return None

        def ended(task: asyncio.Task[BaseException | None]) -> None:
            del self._tasks[task]
            if begun:
                done(asyncio.CancelledError() if task.cancelled() else task.result())
            else:
                self.loop.call_soon(begin().cancel)  # which comes after its first step

        def begin() -> asyncio.Task[BaseException | None]:
            task: asyncio.Task[BaseException | None] = self.loop.create_task(main(), name=name)
            task.add_done_callback(ended)
            self._tasks[task] = done
            return task

        begin()
        if self._ending is None:
            self._ending = self._end()
            with contextlib.suppress(StopIteration):
                self._ending.asend(None).send(None)

    async def _end(self) -> AsyncGenerator[None, None]:
        try:
            yield
        finally:
            while self._tasks:
                for task in self._tasks:
                    if not task.cancelling():
                        task.cancel()
                await asyncio.wait(self._tasks)

    def wind_up(self) -> None:
        super().wind_up()
        while self._tasks:
            task, done = self._tasks.popitem()
            coro = task.get_coro()
            assert inspect.iscoroutine(coro)
            coro.close()
            done(asyncio.CancelledError())

    def call_threadsafe(self, call: Callable[[], object]) -> None:
        self.loop.call_soon_threadsafe(call)


class _TrioHome(Home):
    def __init__(self, token: Any) -> None:
        super().__init__(token)
        self._over = False
        self._lowlevel = sys.modules["trio"].lowlevel
        self._lowlevel.add_instrument(self)

    @property
    def over(self) -> bool:
        return self._over

    def after_run(self) -> None:
        """The hook of a `trio.abc.Instrument`: the only way to know that a run has ended."""
        self._over = True

    def task(self) -> Task | None:
        try:
            return self._lowlevel.current_task() if self._lowlevel.current_trio_token() is self.loop else None
        except RuntimeError:
            return None

    def spawn(self, run: Callable[[], Awaitable[object]], done: Done, name: str) -> None:
        async def main() -> None:
            try:
                await run()
            except BaseException as exc:  # noqa: BLE001  # handed to done(), also the cancellation of a run that ends
                done(exc)
            else:
                done(None)

        try:
            self._lowlevel.spawn_system_task(main, name=name)
        except RuntimeError as exc:  # the run is at its very end, and takes no more tasks
            done(exc)

    def call_threadsafe(self, call: Callable[[], object]) -> None:
        self.loop.run_sync_soon(call)


# A home keeps its loop alive, so the number cannot be another loop's while the entry is there.
_homes: weakref.WeakValueDictionary[int, Home] = weakref.WeakValueDictionary()


def current() -> Home | None:
    """The home of the loop running in this thread, or None."""
    loop = asyncio._get_running_loop()
    if loop is not None:
        return _homes.get(id(loop)) or _homes.setdefault(id(loop), _AsyncioHome(loop))
    trio = sys.modules.get("trio")
    if trio is None:
        return None
    try:
        token = trio.lowlevel.current_trio_token()
    except RuntimeError:
        return None
    return _homes.get(id(token)) or _homes.setdefault(id(token), _TrioHome(token))


async def checkpoint() -> None:
    """One turn of the loop; a cancellation is raised here."""
    home = current()
    if home is not None:
        home.left = READY
        if home.reactor is not None:
            await asyncio.sleep(0)  # as AnyIO does, which first finds out whose loop it is
            return
    await anyio.lowlevel.checkpoint()


def task_name(task: Task) -> str:
    """The name of the task in a report."""
    return str(task.get_name() if isinstance(task, asyncio.Task) else task.name)


def where(task: Task) -> str:
    """The line a suspended task waits at: the innermost one that is not plumbing of a loop or of ours."""
    frames = list(_frames(task.get_coro() if isinstance(task, asyncio.Task) else task.coro))
    plumbing = _plumbing(*map(sys.modules.get, ("asyncio", "anyio", "trio")))
    own = [frame for frame in frames if not frame.f_code.co_filename.startswith(plumbing)]
    for frame in (own or frames)[-1:]:
        code = frame.f_code
        return f"{code.co_filename.rpartition('/')[2]}:{frame.f_lineno} in {code.co_name}"
    return "not started"


@functools.cache  # it is asked for each of ten thousand users; trio may come later
def _plumbing(*loops: ModuleType | None) -> tuple[str, ...]:
    """The beginnings of the paths of a loop's code, and of ours."""
    files = [each.__file__ for each in loops if each is not None and each.__file__]
    here = __file__.rpartition("/_core/")[0]
    return (*(f"{file.rpartition('/')[0]}/" for file in files), f"{here}/_", f"{here}/adapters/")


def _frames(waiting: Any) -> Iterator[FrameType]:
    """The frames of a chain of awaits, outermost first: coroutines, generators and async generators."""
    while waiting is not None:
        for kind in ("cr", "gi", "ag"):
            if hasattr(waiting, f"{kind}_frame"):
                frame = getattr(waiting, f"{kind}_frame")
                if frame is not None:
                    yield frame
                waiting = getattr(waiting, "gi_yieldfrom" if kind == "gi" else f"{kind}_await")
                break
        else:
            return
