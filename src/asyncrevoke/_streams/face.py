"""The face that all our streams share: what each of them promises."""

import errno
import functools
import time
from abc import abstractmethod
from collections.abc import AsyncIterator, Callable, Iterable, Mapping
from types import EllipsisType
from typing import Any, Literal

import anyio
import anyio.abc

from asyncrevoke._core import loop
from asyncrevoke._core.errors import RevokedError
from asyncrevoke._core.profile import Answer, Answers
from asyncrevoke._core.resource import Handled
from asyncrevoke._core.revokable import Kick, Release, Revokable, due
from asyncrevoke._core.watch import Deadline

_AHEAD = 16384  # bytes that are asked for where a record needs less

#: A stream is opened on it: a node, or a function that opens like one, such as `Name.pin`. None: it is a root.
Owner = Revokable | Callable[..., Revokable] | None


class RevokableAttribute(anyio.TypedAttributeSet):
    """The typed attributes of our streams, for `extra()`."""

    #: the node the stream is open on
    handle: Revokable = anyio.typed_attribute()


class Face(Handled, anyio.abc.ByteStream):
    """The promises of every stream of ours.

    Every operation is a checkpoint, whatever it ends in. A pending cancellation is delivered there, and consumes
    nothing. Other tasks run if the operation has to wait. Otherwise they run at each 33rd operation in a row on
    asyncio, and at each operation elsewhere. There is one reader and one writer at a time. Once the stream is revoked,
    operations answer by the profile of the handle, by default with `RevokedError`. After the stream's own `aclose`,
    they raise ClosedResourceError.

    A subclass has `_receive`, `_send` and `_send_eof`, which do the work as operations of `handle`. It may have
    `_receive_now`, for what need not wait. This class adds the checkpoints, the one reader and writer, and the
    profile's answer.
    """

    def __init__(self, handle: Revokable, *, tty: bool = False) -> None:
        self.handle = handle
        self._tty = tty
        self._eof_sent = False
        self._ahead = b""  # received for a record that needed less
        self._at = 0  # where in it the next begins
        self._behind: Exception | None = None  # what comes after that: found for a task that was cancelled just then
        self._reading = _Turn(handle, "reading from")
        self._writing = _Turn(handle, "writing to")

    async def receive(self, max_bytes: int = 65536) -> bytes:
        """Receive 1 to `max_bytes` bytes.

        :raises ~anyio.EndOfStream: at the end of data, or as the answer of a profile
        :raises RevokedError: if it was revoked, before or meanwhile
        :raises ~anyio.ClosedResourceError: if this stream was closed, before or meanwhile
        :raises ~anyio.BrokenResourceError: if the other side is broken
        :raises ~anyio.BusyResourceError: if another task is receiving
        :raises ValueError: if `max_bytes` is not positive
        Cancellation: nothing was consumed.
        """
        if max_bytes < 1:
            raise ValueError(f"max_bytes is {max_bytes}: ask for at least one")
        if not self._free():
            await self._turn()
        try:
            data = self._there(max_bytes) if self._ahead or self._behind else self._receive_now(max_bytes)
            if data is None:
                with self._reading:
                    data = await self._receive(max_bytes)
        except RevokedError as error:
            self._answer(error, "read")
            raise
        return data

    async def receive_exactly(self, nbytes: int) -> bytes:
        """Receive exactly so many bytes. Bytes that came with them stay for the next receive of any kind.

        :raises ~anyio.IncompleteRead: if the data ends before. You can still receive what has come
        :raises ValueError: if `nbytes` is negative
        :raises: otherwise as `receive`
        Cancellation: nothing was consumed.
        """
        if nbytes < 0:
            raise ValueError(f"nbytes is {nbytes}: give 0 or more")
        try:
            if not self._free():
                await self._turn()
            at = self._at
            end = at + nbytes
            if end > len(self._ahead):
                return await self._cut_when(functools.partial(_enough, nbytes))
        except anyio.EndOfStream:
            raise anyio.IncompleteRead from None
        self._at = end
        return self._ahead[at:end]

    async def receive_until(self, delimiter: bytes, max_bytes: int = 65536) -> bytes:
        """Receive the bytes before a delimiter. The delimiter is consumed too, and not returned.

        :param max_bytes: the most bytes that may come before it
        :raises ~anyio.DelimiterNotFound: if more come. You can still receive all of them
        :raises: as `receive_exactly`
        Cancellation: nothing was consumed.
        """
        try:
            if not self._free():
                await self._turn()
            record = self._through(delimiter, max_bytes) or await self._until(delimiter, max_bytes)
        except anyio.EndOfStream:
            raise anyio.IncompleteRead from None
        return record[: -len(delimiter)]

    async def receive_record(self, end: Callable[[bytearray], int]) -> bytes:
        """Receive a record of your own kind, such as one that begins with its length.

        :param end: a function of the bytes that have come. It returns where the first record in them ends, or -1 if
            more has to come
        :raises: as `receive_exactly`, and what `end` raises
        Cancellation: nothing was consumed.
        """
        try:
            if not self._free():
                await self._turn()
            return await self._cut_when(end)
        except anyio.EndOfStream:
            raise anyio.IncompleteRead from None

    async def receive_line(self, max_bytes: int = 65536) -> bytes:
        r"""Receive a line with its ``b"\n"``. At the end of data, receive the bytes that are left.

        :raises: as `receive_until`; ~anyio.EndOfStream if nothing is left
        Cancellation: nothing was consumed.
        """
        try:
            if not self._free():
                await self._turn()
            return self._through(b"\n", max_bytes) or await self._until(b"\n", max_bytes)
        except anyio.EndOfStream:
            if self._at == len(self._ahead) or self.handle._acts:
                raise
            return self._cut(len(self._ahead))

    async def lines(self, max_bytes: int = 65536) -> AsyncIterator[bytes]:
        """Iterate over lines, to the end of data: ``async for line in stream.lines()``. Each is as `receive_line`
        returns it.
        """
        while True:
            try:
                line = await self.receive_line(max_bytes)
            except anyio.EndOfStream:
                return
            yield line

    async def send(self, item: bytes) -> None:
        """Send all of `item`.

        :raises RevokedError: if it was revoked, before or meanwhile. `sent` is the number of bytes accepted, where that
            is known
        :raises ~anyio.ClosedResourceError: if this stream was closed, before or meanwhile, or after `send_eof`
        :raises ~anyio.BrokenResourceError: if the other side is broken
        :raises ~anyio.BusyResourceError: if another task is sending
        Cancellation: any part of `item` may have been sent.
        """
        with self._writing:
            if due(self.handle):
                await loop.checkpoint()
            try:
                self._check_end()
                await self._send(item)
            except RevokedError as error:
                self._answer(error, "write")
                raise

    async def send_eof(self) -> None:
        """Tell the other side that nothing more will be sent. It may go on sending. Calling this again does no harm.

        :raises RevokedError, ~anyio.ClosedResourceError, ~anyio.BusyResourceError: as `send`
        """
        with self._writing:
            if due(self.handle):
                await loop.checkpoint()
            try:
                with self.handle.using():
                    if not self._eof_sent:
                        await self._send_eof()
                        self._eof_sent = True
            except RevokedError as error:
                self._answer(error, "write")
                raise

    def limit_idle(self, seconds: float) -> None:
        """Revoke the stream when somebody has waited so many seconds to receive, and nothing came.

        :raises RevokedError, ~anyio.ClosedResourceError: if it was revoked or closed
        :raises ValueError: if `seconds` is not positive
        :raises RuntimeError: without a running event loop. Nothing has changed then
        """
        if not seconds > 0:
            raise ValueError(f"seconds is {seconds!r}: give a number more than 0")
        _IdleLimit(self.handle, seconds)

    @property
    def extra_attributes(self) -> Mapping[Any, Callable[[], Any]]:
        return {RevokableAttribute.handle: lambda: self.handle}

    @abstractmethod
    async def _receive(self, max_bytes: int) -> bytes: ...

    @abstractmethod
    async def _send(self, item: bytes) -> None: ...

    @abstractmethod
    async def _send_eof(self) -> None: ...

    def _receive_now(self, max_bytes: int) -> bytes | None:  # noqa: ARG002  # for kinds that can tell
        """Receive what is there, or return None if it would have to wait. Nothing has suspended since the handle
        admitted it.
        """
        return None

    def _free(self) -> bool:
        """Whether it may read without waiting: it is not revoked, nobody reads, and no checkpoint is due."""
        handle = self.handle
        home = handle._home
        return not (handle._acts or self._reading.busy or home is None or home.due())

    async def _turn(self) -> None:
        """Let other tasks run, and return whether it may still read."""
        with self._reading:
            if due(self.handle):
                await loop.checkpoint()
        if self.handle._acts:
            try:
                self.handle._admit()
            except RevokedError as error:
                self._answer(error, "read")
                raise

    def _there(self, max_bytes: int) -> bytes | None:
        """What is there, or None if it would have to wait."""
        if self._at < len(self._ahead):
            return self._cut(self._at + max_bytes)
        if self._behind is not None:
            behind, self._behind = self._behind, None
            raise behind
        return self._receive_now(max_bytes)

    def _cut(self, end: int) -> bytes:
        at, self._at = self._at, min(end, len(self._ahead))
        return self._ahead[at : self._at]

    def _put_back(self, data: bytes | Exception) -> None:
        if isinstance(data, Exception):
            self._behind = data
        else:
            self._ahead, self._at = data + self._ahead[self._at :], 0

    def _through(self, delimiter: bytes, max_bytes: int) -> bytes:
        """The bytes ahead up to and with the delimiter, or nothing."""
        if max_bytes < 1 or not delimiter:
            raise ValueError(f"delimiter is {delimiter!r} and max_bytes is {max_bytes}: give one byte or more")
        found = self._ahead.find(delimiter, self._at, self._at + max_bytes + len(delimiter))
        return b"" if found < 0 else self._cut(found + len(delimiter))

    async def _until(self, delimiter: bytes, max_bytes: int) -> bytes:
        """Receive the bytes up to and with the delimiter."""
        searched = 0

        def end(ahead: bytearray) -> int:
            nonlocal searched
            found = ahead.find(delimiter, searched, max_bytes + len(delimiter))
            if found >= 0:
                return found + len(delimiter)
            if len(ahead) >= max_bytes + len(delimiter):
                raise anyio.DelimiterNotFound(max_bytes)
            searched = max(0, len(ahead) - len(delimiter) + 1)
            return -1

        return await self._cut_when(end)

    async def _cut_when(self, end: Callable[[bytearray], int]) -> bytes:
        """Receive until `end` of all bytes ahead is not negative."""
        with self._reading:
            ahead = bytearray(self._ahead[self._at :])
            self._ahead, self._at = b"", 0
            try:
                while (found := end(ahead)) < 0:
                    if self.handle._acts:
                        self.handle._admit()
                    data = self._there(_AHEAD)
                    ahead += await self._receive(_AHEAD) if data is None else data
                    if due(self.handle):
                        await loop.checkpoint()
            except RevokedError as error:
                self._answer(error, "read")
                raise
            finally:
                self._put_back(bytes(ahead))
        return self._cut(found)

    def _check_end(self) -> None:
        if self._eof_sent and not self.handle.revoked:
            raise anyio.ClosedResourceError(f"{self.handle.path!r}: the end of data was sent already")

    def _answer(self, error: RevokedError, kind: Literal["read", "write", "ioctl"]) -> None:
        answer(error, self.handle, kind, tty=self._tty)


def _enough(nbytes: int, ahead: bytearray) -> int:
    return nbytes if len(ahead) >= nbytes else -1


class _IdleLimit:
    """Watches who waits to receive. It looks again when the longest wait would be over, until the stream is revoked."""

    def __init__(self, handle: Revokable, seconds: float) -> None:
        self._handle = handle
        self._seconds = seconds
        own = handle.open("idle limit")
        try:
            self._deadline = Deadline(seconds, self._look)
        except RuntimeError:  # no loop runs
            own.revoke()
            raise
        own.release = self._close

    def _look(self) -> None:
        now = time.monotonic()
        left = min((wait.since for wait in self._handle._uses or () if wait.idle), default=now) + self._seconds - now
        if left <= 0:
            self._handle.revoke(f"nothing has come for {self._seconds:g} s")
        elif not self._handle.revoked:
            self._deadline = Deadline(left, self._look)

    def _close(self) -> None:
        self._deadline.close()


class _Turn:
    """One task at a time, in one direction. On a dead stream every task has a turn: tasks that are leaving refuse
    nobody.
    """

    __slots__ = ("_action", "_handle", "busy")

    def __init__(self, handle: Revokable, action: str) -> None:
        self._handle = handle
        self._action = action
        self.busy = 0

    def __enter__(self) -> None:
        if self.busy and self._handle._admits_use():
            raise anyio.BusyResourceError(self._action)
        self.busy += 1

    def __exit__(self, *_: object) -> None:
        self.busy -= 1


def answer(
    error: RevokedError, handle: Revokable, kind: Literal["read", "write", "ioctl"], *, tty: bool = False
) -> None:
    """Replace the error by the answer of the profile of `handle`, if the error is about that handle and not one further
    inside.

    :param tty: whether `handle` is a terminal's
    :raises ~anyio.EndOfStream: if the answer is the end of data
    """
    if error.node is not handle or (profile := handle.answers) is None:
        return
    if kind == "ioctl":
        error.errno = profile.ioctl
        return
    pair = profile.read if kind == "read" else profile.write
    found = pair.in_flight if error.in_flight and pair.in_flight is not Answer.FINISHES else pair.later
    if found is Answer.EOF_IF_TTY:
        found = Answer.EOF if tty else errno.EIO
    if found is Answer.EOF:
        raise anyio.EndOfStream from error
    if isinstance(found, int):
        error.errno = found


def handle_of(
    owner: Owner,
    name: str,
    also: Iterable[Revokable] = (),
    release: Release | None = None,
    answers: Answers | EllipsisType = ...,
    *,
    kick: Kick = ...,
) -> Revokable:
    """Open a handle of `owner`, or make a root if there is no owner.

    :param owner: a node, or a function that opens like one, such as `Name.pin`
    :param name, also, release, answers, kick: as for `Revokable.open`
    """
    also = tuple(also)
    if owner is None:
        if not also:
            return Revokable(name, release=release, answers=answers, kick=kick)
        owner = Revokable()
    make = owner.open if isinstance(owner, Revokable) else owner
    return make(name, also=also, release=release, answers=answers, kick=kick)
