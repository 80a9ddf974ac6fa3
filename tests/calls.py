"""Calls in tasks and threads of their own, for tests to look at: what came of them, and whether they wait."""

import contextlib
import functools
import threading
from collections.abc import AsyncIterator, Awaitable, Callable

import anyio
import anyio.abc
import anyio.lowlevel

from asyncrevoke import Revokable, RevokedError
from conftest import settle


class Call:
    """One call, made in a task of its own: what it returned, or the exception it raised."""

    def __init__(self, call: Callable[[], Awaitable[object]]) -> None:
        self._call = call
        self.outcome: object = None
        self.done = anyio.Event()
        self.scope = anyio.CancelScope()

    async def __call__(self) -> None:
        try:
            with self.scope:
                self.outcome = await self._call()
        except Exception as exc:  # noqa: BLE001  # it is what the tests look at
            self.outcome = exc
        finally:
            self.done.set()

    @property
    def error(self) -> RevokedError:
        assert isinstance(self.outcome, RevokedError)
        return self.outcome


def start(group: anyio.abc.TaskGroup, function: Callable[..., Awaitable[object]], *args: object) -> Call:
    call = Call(functools.partial(function, *args))
    group.start_soon(call)
    return call


async def parked(node: Revokable, users: int = 1) -> None:
    """Until so many operations are inside `node`, and wait."""
    while node.in_use < users:
        await anyio.lowlevel.checkpoint()
    await settle()


class Stalled:
    """A call that does not return before it is let go."""

    def __init__(self, result: object = "result") -> None:
        self.running = threading.Event()
        self.go = threading.Event()
        self.late = threading.Event()
        self.came_late: list[object] = []
        self._result = result

    def __call__(self) -> object:
        self.running.set()
        self.go.wait()
        if isinstance(self._result, BaseException):
            raise self._result
        return self._result

    def hand_over(self, result: object) -> None:
        self.came_late.append((result, threading.current_thread() is threading.main_thread()))
        self.late.set()


@contextlib.asynccontextmanager
async def awake() -> AsyncIterator[None]:
    """For waits that the kernel ends in its own time: under AnyIO's runner a trio with nothing to do starts a thread."""

    async def turn() -> None:
        while True:
            await anyio.lowlevel.checkpoint()

    async with anyio.create_task_group() as group:
        group.start_soon(turn)
        yield
        group.cancel_scope.cancel()


async def turns_beside(operation: Callable[[], Awaitable[object]], times: int) -> int:
    """The turns that another task has while this one does that again and again."""
    turns = 0

    async def tick() -> None:
        nonlocal turns
        while True:
            turns += 1
            await anyio.lowlevel.checkpoint()

    async with anyio.create_task_group() as group:
        group.start_soon(tick)
        for _ in range(times):
            await operation()
        group.cancel_scope.cancel()
    return turns
