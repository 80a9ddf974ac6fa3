"""Blocking calls, off the loop: `off_loop`."""

from __future__ import annotations

import concurrent.futures
import contextlib
import threading
from collections.abc import Callable, Coroutine
from typing import Any, TypeVar

import anyio
import anyio.from_thread
import anyio.lowlevel

T = TypeVar("T")


def off_loop(call: Callable[[], T], *, late: Callable[[T], object] | None = None) -> Coroutine[Any, Any, T]:
    """Have a thread of its own make a blocking call, which begins before this returns. Await the result.

    A pool's threads are waited for when the loop and the interpreter end, and a stalled call keeps others from a pool's
    threads. This one is left behind.

    :param late: is given, in a thread, a result that nobody waits for any more
    :raises: what `call` raises, when awaited
    Cancellation: ends the waiting; the call goes on, and its result goes to `late`.
    """
    token = anyio.lowlevel.current_token()
    future: concurrent.futures.Future[T] = concurrent.futures.Future()
    done = anyio.Event()

    def run() -> None:
        try:
            result = call()
        except BaseException as exc:  # noqa: BLE001  # raised where the result is awaited
            future.set_exception(exc)
        else:
            future.set_result(result)
        with contextlib.suppress(anyio.RunFinishedError):  # the loop is over: nobody waits
            anyio.from_thread.run_sync(done.set, token=token)

    threading.Thread(target=run, name=f"off loop: {call!r}", daemon=True).start()
    return _result(future, done, late)


async def _result(future: concurrent.futures.Future[T], done: anyio.Event, late: Callable[[T], object] | None) -> T:
    try:
        await done.wait()
    except BaseException:
        if late is not None:
            future.add_done_callback(lambda _: _hand_over(future, late))
        raise
    return future.result()


def _hand_over(future: concurrent.futures.Future[T], late: Callable[[T], object]) -> None:
    if future.exception() is None:
        threading.Thread(target=late, args=(future.result(),), daemon=True).start()
