"""One line for several streams: what comes is given to each of them, or to whoever reads; what they send is not mixed."""

from __future__ import annotations

import functools
from collections.abc import Awaitable, Callable, Iterable
from types import EllipsisType
from typing import TypedDict, Unpack

import anyio

from asyncrevoke._core.errors import RevokedError
from asyncrevoke._core.profile import Answers
from asyncrevoke._core.revokable import Revokable

from .face import Face

_ATOMIC = 4096  # bytes that are not mixed with another writer's, as pipe(7) has it


class Shared:
    """A line that any number of streams are open on. It is pulled: whoever waits for data reads, for all.

    :param receive: receives 1 to so many bytes, or raises EndOfStream; cancelled, it has consumed nothing
    :param send_some: sends at least one byte of what it is given, and returns how many
    :param backlog: bytes that a stream may be behind before it is revoked as too slow. None: nobody gets a copy; who
        reads gets what he reads
    :param exact: whether `send_some`, cancelled, has sent nothing
    :param history: bytes of what came last that are kept for streams opened with `replay`; with a backlog only
    """

    def __init__(
        self,
        receive: Callable[[int], Awaitable[bytes]],
        send_some: Callable[[memoryview], Awaitable[int]],
        *,
        backlog: int | None,
        exact: bool = True,
        history: int = 0,
    ) -> None:
        if backlog is not None and not backlog > 0:
            raise ValueError(f"backlog is {backlog!r}: give bytes, 1 or more")
        if history < 0 or (history and backlog is None):
            raise ValueError(
                f"history is {history!r}: give bytes, 0 or more, and more only where each stream gets a copy"
            )
        self.streams: dict[SharedStream, None] = {}
        self.history = bytearray()
        self.turn_to_write = anyio.Lock()
        self._receive = receive
        self._send_some = send_some
        self._backlog = backlog
        self._exact = exact
        self._kept = history
        self._ended = False  # the last byte was read
        self._turn_to_read = anyio.Lock()

    async def receive(self, reader: SharedStream, max_bytes: int) -> bytes:
        """Receive for `reader`, inside an operation of its own."""
        if self._backlog is None:
            return await self._receive(max_bytes)
        unread = reader.unread
        while not unread:
            async with self._turn_to_read:
                if unread:
                    break
                if self._ended:
                    raise anyio.EndOfStream
                await self._read_for_all(self._backlog)
        data = bytes(unread[:max_bytes])
        del unread[:max_bytes]
        return data

    async def _read_for_all(self, backlog: int) -> None:
        try:
            data = await self._receive(backlog)
        except anyio.EndOfStream:
            self._ended = True
            return
        self.history += data
        del self.history[: -self._kept or None]
        for stream in list(self.streams):
            stream.unread += data
            if len(stream.unread) > (most := backlog + self._kept):  # what was replayed is no delay of the reader's
                stream.revoke(f"it was {len(stream.unread)} bytes behind, and may be {most}")

    async def send(self, item: bytes, handle: Revokable) -> None:
        """Send all of `item` as an operation of `handle`, in pieces that are not mixed with those of others."""
        view = memoryview(item).cast("B")
        sent = 0
        try:
            with handle.using():
                while sent < len(view):
                    async with self.turn_to_write:
                        end = sent + _ATOMIC
                        while view[sent:end]:
                            sent += await self._send_some(view[sent:end])
        except RevokedError as error:
            error.sent = sent if self._exact else None
            raise


class SharedOptions(TypedDict, total=False):
    """What every way of opening a stream on a shared line takes.

    :ivar also: further parents, such as a token; whichever goes first takes the stream
    :ivar answers: a profile of `asyncrevoke.answers`. Left out: as the owner's
    :ivar replay: it gets the history first: what somebody has read of what came last
    """

    also: Iterable[Revokable]
    answers: Answers | EllipsisType
    replay: bool


class SharedStream(Face):
    """A stream of its own handle on a shared line."""

    def __init__(
        self, shared: Shared, owner: Revokable, name: str = "", *, tty: bool = False, **options: Unpack[SharedOptions]
    ) -> None:
        release = functools.partial(shared.streams.pop, self, None)
        handle = owner.open(name, also=options.get("also", ()), release=release, answers=options.get("answers", ...))
        super().__init__(handle, tty=tty)
        self.shared = shared
        self.unread = bytearray(shared.history if options.get("replay") else b"")
        shared.streams[self] = None

    async def _receive(self, max_bytes: int) -> bytes:
        with self.handle.using(idle=True):
            return await self.shared.receive(self, max_bytes)

    async def _send(self, item: bytes) -> None:
        await self.shared.send(item, self.handle)
