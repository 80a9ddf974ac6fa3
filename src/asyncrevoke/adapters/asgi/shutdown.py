"""A shutdown with a reason: everything is revoked when the server is told to end, while it still serves."""

import asyncio
import signal
import threading
from collections.abc import Callable
from types import FrameType
from typing import Any

import anyio

from asyncrevoke.lowlevel import Registry


def revoke_at_shutdown(
    live: Registry, reason: str = "the server shuts down", *, grace: float = 0.0, limit: float = 3.0
) -> Callable[[], None]:
    """On SIGTERM and SIGINT, revoke all of `live` first, and then call the server's own handler.

    Use it for servers that close connections before they end the lifespan, as uvicorn does. `RevokableApp` calls it
    when the lifespan begins. It also takes care of hypercorn, whose workers get no signal. If a server begins no
    lifespan, or is stopped in another way, call ``await live.root.revoke(reason)`` before you tell it to stop.

    Call it in the running loop, after the server has set its handlers. In other threads than the main one it does
    nothing, because those get no signals. A second signal goes to the server at once.

    :param grace: seconds in which those who are served may finish. Others are refused meanwhile
    :param limit: seconds after the grace until the server's handler is called in any case
    :returns: a function that puts the server's handlers back
    :raises RuntimeError: without a running asyncio loop
    """
    is_main = threading.current_thread() is threading.main_thread()
    handlers = [_Handler(each, live, reason, grace, limit) for each in (signal.SIGTERM, signal.SIGINT) if is_main]

    def give_back() -> None:
        for handler in handlers:
            handler.give_back()

    return give_back


class _Handler:
    """Replaces the server's own handler of a signal."""

    def __init__(self, number: signal.Signals, live: Registry, reason: str, grace: float, limit: float) -> None:
        self._loop = asyncio.get_running_loop()
        self._number = number
        self._live = live
        self._reason = reason
        self._grace = grace
        self._limit = limit
        self._task: asyncio.Task[None] | None = None  # which the loop alone would not keep
        self._own: Any = signal.signal(number, self)

    def __call__(self, _: int, frame: FrameType | None) -> None:
        if self._live.root.revoked or self._loop.is_closed():
            self._hand_on(frame)
        else:
            self._loop.call_soon_threadsafe(self._begin, frame)

    def _begin(self, frame: FrameType | None) -> None:
        self._task = self._loop.create_task(self._revoke(frame))

    async def _revoke(self, frame: FrameType | None) -> None:
        try:
            with anyio.move_on_after(self._grace + self._limit):
                await self._live.root.revoke(self._reason, grace=self._grace)
        finally:
            self._hand_on(frame)

    def _hand_on(self, frame: FrameType | None) -> None:
        if callable(self._own):
            self._own(self._number, frame)
        else:
            signal.signal(self._number, self._own or signal.SIG_DFL)
            signal.raise_signal(self._number)

    def give_back(self) -> None:
        there: object = signal.getsignal(self._number)
        if there is self:
            signal.signal(self._number, self._own)


def revoke_when_terminated(live: Registry, reason: str, grace: float, send: Any) -> asyncio.Task[None] | None:
    """Revoke all of `live` when hypercorn tells a worker to end. It waits some seconds for its connections, which know.

    :param send: that of one of its connections. With that of another server this does nothing
    """
    terminated = getattr(getattr(getattr(send, "__self__", None), "context", None), "terminated", None)
    if terminated is None:
        return None

    async def revoke() -> None:
        await terminated.wait()
        live.root.revoke(reason, grace=grace)

    return asyncio.get_running_loop().create_task(revoke(), name=f"waits to tell that {reason}")
