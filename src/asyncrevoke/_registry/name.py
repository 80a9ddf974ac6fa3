"""Names with generations: what is opened under a name belongs to its current generation, which is revoked once."""

import contextlib
from collections.abc import AsyncIterator, Awaitable, Callable, Iterable
from typing import Any, Literal, Unpack

import anyio

from asyncrevoke._core.revocation import Revocation
from asyncrevoke._core.revokable import Options, Revokable

from .place import file_of, look, nobody

Hangup = Callable[[int], Awaitable[object] | None]


class Generation(Revokable):
    """All that was opened under a name until a hang-up. The generation is over when it is released."""

    __slots__ = ("__weakref__", "_number")

    def __init__(self, number: int, name: str = "", **options: Any) -> None:
        super().__init__(name, **options)
        self._number = number


class Name(Revokable):
    """A name with generations, as a terminal has. `open` opens in the current one.

    :param while_draining: what an open does while the old generation is not released yet (RFC, spot 5). "next" begins
        the next generation beside it. "refuse" raises `RevokedError`. "queue" lets `opening` wait for the release, and
        `open` raise
    :param queue: how many may wait in the queue
    :param hangup: runs as each generation's release, with the number of pinned handles. It may return an awaitable
    :param options: as for `Revokable`; `release` runs when the name itself is gone
    """

    __slots__ = ("__weakref__", "_current", "_file", "_hangup", "_inode", "_queue", "_waiting", "_while_draining")

    def __init__(
        self,
        name: str = "",
        *,
        while_draining: Literal["next", "refuse", "queue"] = "next",
        queue: int = 16,
        hangup: Hangup | None = None,
        **options: Any,
    ) -> None:
        if while_draining not in ("next", "refuse", "queue"):
            raise ValueError(f"while_draining is {while_draining!r}: give 'next', 'refuse' or 'queue'")
        super().__init__(name, **options)
        self._while_draining = while_draining
        self._queue = queue
        self._waiting = 0
        self._hangup = hangup
        self._file: tuple[Any, ...] | None = None  # by which a registry knows it: its path, and what was there
        self._inode: Callable[[], object] | None = None  # lets go of that file
        self._current = Generation(0, name)  # before the first
        self._current.revoke()
        self._current._home = None  # as of any node that was not used yet

    @property
    def current(self) -> Generation:
        """The latest generation, which may be over. Number 0 means that nothing was opened yet."""
        return self._current

    @property
    def pinned(self) -> int:
        """The number of open handles that stay through a hang-up."""
        return sum(type(child) is not Generation for child in self._children or ())

    def pin(self, name: str = "", *, also: Iterable[Revokable] = (), **options: Unpack[Options]) -> Revokable:
        """Open a handle that stays through hang-ups, as a console's does (RFC, spot 8). Options as for `open`."""
        return super().open(name, also=also, **options)

    def open(self, name: str = "", *, also: Iterable[Revokable] = (), **options: Unpack[Options]) -> Revokable:
        """Open a handle in the current generation, or begin the next one. Options as for `Revokable.open`.

        :raises RevokedError: if the name is gone, or the old generation drains and `while_draining` does not allow
            another
        """
        return self._generation().open(name, also=also, **options)

    @contextlib.asynccontextmanager
    async def opening(
        self, name: str = "", *, also: Iterable[Revokable] = (), **options: Unpack[Options]
    ) -> AsyncIterator[Revokable]:
        """Open like `Revokable.opening`, in the current generation. With the "queue" policy, this waits for the old
        one.

        :raises RevokedError: if the name is gone, also while waiting
        :raises ~anyio.BusyResourceError: if too many wait
        Cancellation: leaves the queue.
        """
        await self.drained()
        async with self._generation().opening(name, also=also, **options) as handle:
            yield handle

    def hangup(self, reason: str = "hung up", *, grace: float = 0.0) -> Revocation:
        """End the current generation. The name and its pinned handles stay. Otherwise this works like `revoke`."""
        return self.ending().revoke(reason, grace=grace)

    def ending(self) -> Revokable:
        """The generation that a hang-up ends. A subclass may begin one here, to have something to end."""
        return self._current

    def _generation(self) -> Generation:
        self._admit_child()
        old = self._current
        if not old.revoked:
            return old
        if not old.released and self._while_draining != "next":
            raise old._refusal()
        hangup = self._hangup
        new = Generation(
            (old._number or 0) + 1,
            release=None if hangup is None else lambda: hangup(self.pinned),
            kick=self._kick,
            answers=self._answers,
        )
        new._join((self,))
        self._current = new
        return new

    async def drained(self) -> None:
        """Wait in the queue until an open would not be refused. Only for the "queue" policy.

        :raises RevokedError: if the name is gone, also while waiting
        :raises ~anyio.BusyResourceError: if too many wait
        Cancellation: leaves the queue.
        """
        with self.using():
            while self._while_draining == "queue" and (old := self._current).revoked and not old.released:
                if self._waiting >= self._queue:
                    raise anyio.BusyResourceError("opening")
                self._waiting += 1
                try:
                    await old._acts[0]._until(lambda old=old: old.released)  # type: ignore[misc]  # of this one, whatever comes next
                finally:
                    self._waiting -= 1

    def _owner(self) -> int:
        """The present owner of that file. Root, if another file is there, or if the owner has no number here, as many
        have not in a container.
        """
        if self._file is not None:
            path, *known = self._file
            with contextlib.suppress(OSError):
                status = look(path)
                if file_of(status) == known and status.st_uid != nobody():
                    return status.st_uid
        return 0

    def _gone(self) -> None:
        if self._inode is not None:
            self._inode()
