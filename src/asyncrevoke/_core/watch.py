"""Events of a thing that nobody uses: descriptors watched in the background, and deadlines."""

import contextlib
import logging
from collections.abc import Callable
from typing import Protocol

import anyio

from asyncrevoke import linux

from . import loop

logger = logging.getLogger("asyncrevoke")


class HasDescriptor(Protocol):
    """A file, a socket, an epoll object."""

    def fileno(self) -> int: ...


class Closable(HasDescriptor, Protocol):
    """A file, a socket or an epoll object that can be closed."""

    def close(self) -> object: ...


class Watch:
    """Runs `call()` in the loop whenever `file` is readable, until the watch is closed. It is no operation of any node.

    All watches of a loop share one epoll object, and one task.

    :param file: the watch owns it from now on, and closes it when it no longer waits for it
    :param call: must make the file unreadable, or close the watch. What it raises ends the watch, and is logged
    :param events: what to wait for, as epoll(7) names it. Errors and hang-ups are always reported
    :param closes: False: you still own `file`. Close the watch before you close the file
    :raises RuntimeError: without a running event loop. You still own `file` then
    :raises ImportError: without epoll, which only Linux has
    :raises OSError: if `file` cannot be watched, or no descriptor is left. You still own it then
    """

    __slots__ = ("_call", "_closes", "_file", "_home", "_number")

    def __init__(
        self,
        file: Closable,
        call: Callable[[], object],
        *,
        events: int = linux.POLLIN,
        closes: bool = True,
    ) -> None:
        home = loop.current()
        if home is None:
            raise RuntimeError("a watch needs a running event loop")
        self._home = home
        self._file = file
        self._call = call
        self._closes = closes
        self._number: int | None = file.fileno()  # None: closed
        (home.watched or Watched(home)).add(self, self._number, events)

    def close(self) -> None:
        """Stop calling, from now on. Calling it again does no harm."""
        self._home.call(self._end)

    def _end(self) -> None:
        number, self._number = self._number, None
        if number is not None:
            assert self._home.watched is not None
            self._home.watched.remove(number)
            if self._closes:
                self._file.close()

    def _ready(self) -> None:
        if self._number is not None:
            try:
                self._call()
            except Exception as exc:
                logger.error("%r failed: %r", self, exc, exc_info=exc)  # noqa: TRY400
                self._end()

    def __repr__(self) -> str:
        return f"<watch of {self._file!r}>"


class Watched:
    """The open watches of a loop, until the last of them is closed, or the loop ends."""

    def __init__(self, home: loop.Home) -> None:
        self._home = home
        self._epoll = linux.epoll()
        self._watches: dict[int, Watch] = {}
        self._scope = anyio.CancelScope()

    def add(self, watch: Watch, number: int, events: int) -> None:
        try:
            self._epoll.register(number, events)
        except BaseException:
            if not self._watches:
                self._epoll.close()  # else whoever keeps the error would keep it, too
            raise
        self._watches[number] = watch
        if self._home.watched is None:
            self._home.watched = self
            self._home.spawn(self._run, self._ended, "watches")

    def remove(self, number: int) -> None:
        del self._watches[number]
        with contextlib.suppress(OSError):  # its owner has closed it, where the loop is over
            self._epoll.unregister(number)
        if not self._watches:
            self._home.watched = None
            self._scope.cancel()

    async def _run(self) -> None:
        try:
            with self._scope:
                while True:
                    await anyio.wait_readable(self._epoll.fileno())
                    # A call may close a watch, and open another of the same number.
                    for watch in [self._watches[number] for number, _ in self._epoll.poll(0)]:
                        watch._ready()
        finally:  # here, as a loop that is closed at once tells nobody that a task has ended
            self._ended()

    def _ended(self, _: BaseException | None = None) -> None:
        for watch in list(self._watches.values()):
            watch._end()
        self._epoll.close()


class Deadline:
    """Runs `call()` in the loop after so many seconds without a `put_off`. It is no operation of any node.

    :param call: what it raises is logged
    :raises RuntimeError: without a running event loop
    """

    __slots__ = ("_home", "_put_off_at", "_scope")

    def __init__(self, seconds: float, call: Callable[[], object]) -> None:
        home = loop.current()
        if home is None:
            raise RuntimeError("a deadline needs a running event loop")
        self._home = home
        self._scope = anyio.CancelScope()
        self.put_off()

        async def run() -> None:
            with self._scope:
                while (left := self._put_off_at + seconds - anyio.current_time()) > 0:  # noqa: ASYNC110  # an event for each put-off would wake it each time
                    await anyio.sleep(left)
                if not self._scope.cancel_called:  # as it may be though the time was over before
                    call()

        def ended(exc: BaseException | None) -> None:
            if isinstance(exc, Exception):
                logger.error("a deadline failed: %r", exc, exc_info=exc)

        home.spawn(run, ended, f"deadline of {call!r}")

    def put_off(self) -> None:
        """Start the time again."""
        self._put_off_at = anyio.current_time()

    def close(self) -> None:
        """Stop: it will not call any more. Calling it again does no harm."""
        self._home.call(self._scope.cancel)
