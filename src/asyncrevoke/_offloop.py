"""Blocking calls, off the loop: `off_loop`."""

from __future__ import annotations

import concurrent.futures
import contextlib
import threading
from collections.abc import Callable, Coroutine
from typing import Any, TypeVar

import anyio

from . import _loop

T = TypeVar("T")


def off_loop(
    call: Callable[[], T], *, late: Callable[[T], object] | None = None, patience: float = 0.0
) -> Coroutine[Any, Any, T]:
    """Have a thread of its own make a blocking call, which begins before this returns. Await the result.

    A pool's threads are waited for when the loop and the interpreter end, and a stalled call keeps others from a pool's
    threads. This one is left behind.

    :param late: is given, in a thread, a result that nobody waits for any more
    :param patience: seconds for which a cancellation waits for the end of the call, `math.inf` for as long as it takes: for
        what must not go on when this is over
    :raises ~anyio.NoEventLoopError: at once, without a running event loop; nothing was called then
    :raises: what `call` raises, when awaited
    Cancellation: ends the waiting, after `patience`; the call goes on, and its result goes to `late`.
    """
    home = _loop.current()
    if home is None:
        raise anyio.NoEventLoopError("off_loop() needs a running event loop")
    future: concurrent.futures.Future[T] = concurrent.futures.Future()
    done = anyio.Event()

    def run() -> None:
        try:
            result = call()
        except BaseException as exc:  # noqa: BLE001  # raised where the result is awaited
            future.set_exception(exc)
        else:
            future.set_result(result)
        with contextlib.suppress(RuntimeError):  # the loop is over: nobody waits
            home.call_threadsafe(done.set)

    threading.Thread(target=run, name=f"off loop: {call!r}", daemon=True).start()
    return _result(future, done, late, patience)


async def _result(
    future: concurrent.futures.Future[T], done: anyio.Event, late: Callable[[T], object] | None, patience: float
) -> T:
    try:
        await done.wait()
    except BaseException:
        deadline = anyio.current_time() + patience
        while not done.is_set() and anyio.current_time() < deadline:
            with contextlib.suppress(anyio.get_cancelled_exc_class()):  # asyncio's own, which no scope keeps out
                with anyio.CancelScope(deadline=deadline, shield=True):
                    await done.wait()
        if late is not None:
            future.add_done_callback(lambda _: _hand_over(future, late))
        raise
    return future.result()


def _hand_over(future: concurrent.futures.Future[T], late: Callable[[T], object]) -> None:
    if future.exception() is None:
        threading.Thread(target=late, args=(future.result(),), daemon=True).start()
