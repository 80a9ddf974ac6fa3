"""One line for several streams: what comes is given to each of them, or to whoever reads; what they send is not mixed."""

from __future__ import annotations

import functools
import time
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

    With a backlog, a stream that is more than half of it behind holds the line up as long as it goes on receiving: the
    fastest is no faster than the slowest. One that has received nothing for `patience` seconds holds up nobody.

    :param receive: receives 1 to so many bytes, or raises EndOfStream; cancelled, it has consumed nothing
    :param send_some: sends at least one byte of what it is given, and returns how many
    :param backlog: bytes that a stream may be behind before it is revoked as too slow. None: nobody gets a copy; who
        reads gets what he reads
    :param patience: seconds since it last received, or had nothing to receive, for which a stream holds the line up
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
        patience: float = 0.0,
    ) -> None:
        if backlog is not None and not backlog > 0:
            raise ValueError(f"backlog is {backlog!r}: give bytes, 1 or more")
        if history < 0 or (history and backlog is None):
            raise ValueError(
                f"history is {history!r}: give bytes, 0 or more, and more only where each stream gets a copy"
            )
        self.streams: dict[SharedStream, None] = {}
        self.read = 0  # bytes, in all
        self.history = bytearray()
        self.turn_to_write = anyio.Lock()
        self._receive = receive
        self._send_some = send_some
        self._backlog = backlog
        self._exact = exact
        self._kept = history
        self._patience = patience
        self._taken = anyio.Event()  # set when a stream has received, or has gone
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
                await self._wait_for_slow(self._backlog)
                await self._read_for_all(self._backlog)
        data = bytes(unread[:max_bytes])
        del unread[:max_bytes]
        reader.received = time.monotonic()
        self._taken.set()
        return data

    async def _wait_for_slow(self, backlog: int) -> None:
        """Wait until all who go on receiving have room for half of the backlog."""
        while until := [
            stream.received + self._patience
            for stream in self.streams
            if len(stream.unread) > self._kept + backlog // 2 and not stream.handle.revoked
            if stream.received + self._patience > time.monotonic()
        ]:
            self._taken = anyio.Event()
            with anyio.move_on_after(min(0.5, max(until) - time.monotonic())):  # which may have been revoked meanwhile
                await self._taken.wait()

    async def _read_for_all(self, backlog: int) -> None:
        try:
            data = await self._receive(backlog - backlog // 2)
        except anyio.EndOfStream:
            self._ended = True
            return
        self.read += len(data)
        self.history += data
        del self.history[: -self._kept or None]
        now = time.monotonic()
        for stream in list(self.streams):
            if not stream.unread:
                stream.received = now
            stream.unread += data
            stream.place = self.read
            if len(stream.unread) > (most := backlog + self._kept):  # what was replayed is no delay of the reader's
                stream.revoke(f"it was {len(stream.unread)} bytes behind, and may be {most}")

    def leave(self, stream: SharedStream) -> None:
        """The stream is gone."""
        self.streams.pop(stream, None)
        self._taken.set()

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
    """A stream of its own handle on a shared line.

    :ivar unread: what has come for it, and was not received
    :ivar received: when it last received, or had nothing to receive
    :ivar place: where on the line `unread` ends, in bytes from the beginning
    """

    def __init__(
        self, shared: Shared, owner: Revokable, name: str = "", *, tty: bool = False, **options: Unpack[SharedOptions]
    ) -> None:
        release = functools.partial(shared.leave, self)
        handle = owner.open(name, also=options.get("also", ()), release=release, answers=options.get("answers", ...))
        super().__init__(handle, tty=tty)
        self.shared = shared
        self.unread = bytearray(shared.history if options.get("replay") else b"")
        self.received = time.monotonic()
        self.place = shared.read
        shared.streams[self] = None

    async def _receive(self, max_bytes: int) -> bytes:
        with self.handle.using(idle=True):
            return await self.shared.receive(self, max_bytes)

    async def _send(self, item: bytes) -> None:
        await self.shared.send(item, self.handle)
