"""What happens to a thing while nobody uses it: a descriptor watched in the background."""

import logging
from collections.abc import Callable
from typing import Protocol

import anyio

from . import loop

logger = logging.getLogger("asyncrevoke")


class HasDescriptor(Protocol):
    """A file, a socket, an epoll object."""

    def fileno(self) -> int: ...


class Closable(HasDescriptor, Protocol):
    """One of these that can be closed."""

    def close(self) -> None: ...


class Watch:
    """Has `call()` run in the loop as often as `file` is readable, until it is closed. It is nobody's operation.

    :param file: belongs to the watch from now on, which closes it when it no longer waits for it
    :param call: must make it unreadable, or close the watch; what it raises ends the watch, and is logged
    :raises RuntimeError: without a running event loop; `file` is still yours then
    """

    def __init__(self, file: Closable, call: Callable[[], object]) -> None:
        home = loop.current()
        if home is None:
            raise RuntimeError("a watch needs a running event loop")
        self._home = home
        self._scope = anyio.CancelScope()

        async def run() -> None:
            with self._scope:
                await anyio.wait_readable(file.fileno())
                while not self._scope.cancel_called:  # as it may be though the wait was over before
                    call()
                    await anyio.wait_readable(file.fileno())

        def ended(exc: BaseException | None) -> None:
            file.close()
            if isinstance(exc, Exception):
                logger.error("the watch of %r failed: %r", file, exc, exc_info=exc)

        home.spawn(run, ended, f"watch of {file!r}")

    def close(self) -> None:
        """Call no more, from now on. Twice does no harm."""
        self._home.call(self._scope.cancel)
