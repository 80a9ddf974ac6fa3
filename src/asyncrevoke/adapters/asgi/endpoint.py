"""Two ways to end an endpoint: cancel it, or let it hear that its client has gone."""

import asyncio
import contextlib
import gc
import inspect
from types import FrameType
from typing import Any

from asyncrevoke.lowlevel import RevokedError, checkpoint

from .interface import App, Message, Receive, Scope, Send

#: The coroutines that await a function in a worker thread. When a library renames its own, it is cancelled as any other.
_IN_A_THREAD = {
    "AsyncIOBackend.run_sync_in_worker_thread",  # of AnyIO, which Starlette and FastAPI use
    "_run_sync_asyncio",  # of Litestar
    "SyncToAsync.__call__",  # of asgiref, which Django and Channels use
    "ThreadSensitiveContext.__aexit__",  # of asgiref, too
}


def cancel(task: "asyncio.Task[Any]") -> bool:
    """Cancel it, unless it awaits a function in a worker thread, which would run on with nobody to wait for it.

    Return whether it was cancelled.
    """
    frame: FrameType | None = None
    waiting: Any = task.get_coro()
    while waiting is not None:
        if inspect.iscoroutine(waiting):
            frame, waiting = waiting.cr_frame, waiting.cr_await
        elif inspect.isasyncgen(waiting):
            frame, waiting = waiting.ag_frame, waiting.ag_await
        else:  # a future; or what asks a generator for its next item, and tells nobody else which one
            waiting = next(filter(inspect.isasyncgen, gc.get_referents(waiting)), None)
    if frame and frame.f_code.co_qualname in _IN_A_THREAD and not frame.f_locals.get("abandon_on_cancel"):
        return False
    return task.cancel()


def ended_by_disconnect(app: App) -> App:
    """Make an application that ends as if its client had gone, when it is cancelled:
    ``RevokableApp(ended_by_disconnect(app), live)``

    Use it for Django and Channels. Cancelled, Django 5 leaves its view running, and Channels calls no consumer's
    `disconnect`. When a client goes, both end as they should. So they hear of a disconnection, with code 1006, and what
    they send is dropped. If they have not ended after a further `limit`, they are cancelled.
    """

    async def ended(scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] not in ("http", "websocket"):
            await app(scope, receive, send)
            return
        client = _Client(scope, receive, send)
        task = asyncio.ensure_future(app(scope, client.receive, client.send))
        while not task.done():
            try:
                await asyncio.wait([task])
            except asyncio.CancelledError:
                if client.gone:
                    cancel(task)
                client.go()
        await task
        if client.gone:
            raise asyncio.CancelledError

    return ended


class _Client:
    """The `receive` and `send` of an endpoint, and what has become of them."""

    def __init__(self, scope: Scope, receive: Receive, send: Send) -> None:
        self.gone = False
        self._disconnected = {"type": f"{scope['type']}.disconnect", "code": 1006}
        self._receive = receive
        self._send = send
        self._waiting: asyncio.Future[Message] | None = None

    def go(self) -> None:
        self.gone = True
        if self._waiting is not None:
            self._waiting.cancel()

    async def receive(self) -> Message:
        with contextlib.suppress(RevokedError):
            try:
                if not self.gone:
                    self._waiting = asyncio.ensure_future(self._receive())
                    return await self._waiting
            except asyncio.CancelledError:
                if not self.gone:
                    raise
        await checkpoint()  # so that an endpoint that asks again and again keeps nobody else from running
        return self._disconnected

    async def send(self, message: Message) -> None:
        with contextlib.suppress(RevokedError):
            await self._send(message)
