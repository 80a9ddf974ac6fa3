"""Blocking calls outside the loop (`off_loop`), and whether a loop runs (`in_loop`)."""

from __future__ import annotations

import concurrent.futures
import contextlib
import errno
import threading
from collections.abc import Awaitable, Callable, Generator
from typing import Any, TypeVar

import anyio

from . import loop

T = TypeVar("T")


def in_loop() -> bool:
    """Whether an event loop runs in this thread. True in its callbacks too, where no task runs."""
    return loop.current() is not None


def off_loop(call: Callable[[], T], *, late: Callable[[T], object] | None = None, patience: float = 0.0) -> OffLoop[T]:
    """Make a blocking call in a thread of its own. The call begins before this returns. Await the result once, or not
    at all.

    A thread pool would not do. The loop and the interpreter wait for its threads when they end, and a stalled call
    keeps a thread from others. This thread is left behind.

    :param late: called with a result that nobody waits for any more, in a thread if one can be started
    :param patience: seconds for which a cancellation waits for the end of the call, and of `late`. Give `math.inf` if
        the call must not go on when this is over
    :raises ~anyio.NoEventLoopError: at once, without a running event loop; nothing was called then
    :raises OSError: at once, ENOMEM, if no thread can be started; nothing was called then
    :raises: what `call` raises, when awaited
    Cancellation: ends the waiting, after `patience`. The call goes on, and its result goes to `late`.
    """
    if not in_loop():
        raise anyio.NoEventLoopError("off_loop() needs a running event loop")
    return OffLoop(call, late, patience)


def close_off_loop(close: Callable[[], object]) -> OffLoop[object] | None:
    """Close in a thread, as a release, what may take long to close. Without a loop, or a thread, it is closed before
    this returns.
    """
    if in_loop():
        with contextlib.suppress(OSError):
            return off_loop(close, patience=1.0)  # most things close at once, also when the loop ends
    close()
    return None


class OffLoop(Awaitable[T]):
    """A call that a thread makes, as `off_loop` returns it."""

    def __init__(self, call: Callable[[], T], late: Callable[[T], object] | None, patience: float) -> None:
        self._call = call
        self._late = late
        self._patience = patience
        self._result: concurrent.futures.Future[T] = concurrent.futures.Future()
        _start_thread(self._run, f"off loop: {call!r}")

    def done(self) -> bool:
        """Whether the call has ended."""
        return self._result.done()

    def result(self) -> T:
        """Return what the call has returned, or raise what it raised. Outside a loop: block until the call has
        ended.
        """
        return self._result.result()

    def __await__(self) -> Generator[Any, Any, T]:
        return self._wait().__await__()

    async def _wait(self) -> T:
        home, ended = loop.current(), anyio.Event()
        assert home is not None
        self._result.add_done_callback(lambda _: home.wake(ended))
        try:
            await ended.wait()
        except BaseException as exc:
            over = anyio.Event()
            self._result.add_done_callback(lambda _: self._hand_over(lambda: home.wake(over)))
            if isinstance(exc, GeneratorExit):  # a coroutine that is closed cannot wait
                raise
            deadline = anyio.current_time() + self._patience
            while not over.is_set() and anyio.current_time() < deadline:
                with contextlib.suppress(anyio.get_cancelled_exc_class()):  # asyncio's own, which no scope keeps out
                    with anyio.CancelScope(deadline=deadline, shield=True):
                        await over.wait()
            raise
        return self.result()

    def _run(self) -> None:
        call = self._call
        del self._call  # when the result is there, what was called is kept by nobody here
        try:
            result = call()
        except BaseException as exc:  # noqa: BLE001  # raised where the result is awaited
            del call
            self._result.set_exception(exc)
        else:
            del call
            self._result.set_result(result)

    def _hand_over(self, over: Callable[[], object]) -> None:
        late = self._late
        if late is None or self._result.exception() is not None:
            over()
            return

        def hand_over() -> None:
            try:
                late(self.result())
            finally:
                over()

        try:
            _start_thread(hand_over, f"off loop: {late!r}")
        except OSError:  # what it releases must not stay open
            hand_over()


def _start_thread(run: Callable[[], object], name: str) -> None:
    try:
        threading.Thread(target=run, name=name, daemon=True).start()
    except RuntimeError as exc:
        raise OSError(errno.ENOMEM, str(exc)) from exc
