"""A revocable stream over any AnyIO byte stream, kicked by cancel scope; and the face that all our streams share."""

import contextlib
import errno
from abc import abstractmethod
from collections.abc import Callable, Iterable, Mapping
from types import EllipsisType
from typing import Any, Literal

import anyio
import anyio.abc
import anyio.lowlevel

from asyncrevoke._core.errors import RevokedError
from asyncrevoke._core.profile import Answer, Answers
from asyncrevoke._core.resource import Handled
from asyncrevoke._core.revokable import Kick, Release, Revokable

_NOBODY = contextlib.nullcontext()  # has its turn on what is dead: those who are still leaving are no reason to refuse

#: What a stream is opened on: a node, or a function that opens as one does, such as `Name.pin`; None for a root.
Owner = Revokable | Callable[..., Revokable] | None


class RevokableAttribute(anyio.TypedAttributeSet):
    """What our streams tell about themselves by `extra()`."""

    #: the node the stream is open on
    handle: Revokable = anyio.typed_attribute()


class Face(Handled, anyio.abc.ByteStream):
    """What every stream of ours promises. A kind of stream is made by `_receive`, `_send` and `_send_eof`, which do the
    work as operations of `handle`; being a checkpoint, one at a time and the profile's answer is done here.

    Every operation is a checkpoint, whatever it ends in, and consumes nothing if it is cancelled there. There is one
    reader and one writer at a time. Once taken away, operations answer by the profile of the handle, by default with
    `RevokedError`; after the stream's own `aclose`, with ClosedResourceError.
    """

    def __init__(self, handle: Revokable, *, tty: bool = False) -> None:
        self.handle = handle
        self._tty = tty
        self._eof_sent = False
        self._reading = anyio.ResourceGuard("reading from")
        self._writing = anyio.ResourceGuard("writing to")

    async def receive(self, max_bytes: int = 65536) -> bytes:
        """Receive 1 to `max_bytes` bytes.

        :raises ~anyio.EndOfStream: at the end of data, or as the answer of a profile
        :raises RevokedError: if it was or is taken away
        :raises ~anyio.ClosedResourceError: if this stream was or is closed
        :raises ~anyio.BrokenResourceError: if the other side is broken
        :raises ~anyio.BusyResourceError: if another task is receiving
        :raises ValueError: if `max_bytes` is not positive
        Cancellation: nothing was consumed.
        """
        if max_bytes < 1:
            raise ValueError(f"max_bytes is {max_bytes}: ask for at least one")
        with self._reading if not self.handle._acts or self.handle._admits_use() else _NOBODY:
            await anyio.lowlevel.checkpoint()
            try:
                return await self._receive(max_bytes)
            except RevokedError as error:
                self._answer(error, "read")
                raise

    async def send(self, item: bytes) -> None:
        """Send all of `item`.

        :raises RevokedError: if it was or is taken away; `sent` tells how many bytes were accepted, where that is known
        :raises ~anyio.ClosedResourceError: if this stream was or is closed, or after `send_eof`
        :raises ~anyio.BrokenResourceError: if the other side is broken
        :raises ~anyio.BusyResourceError: if another task is sending
        Cancellation: any part of `item` may have been sent.
        """
        with self._writing if not self.handle._acts or self.handle._admits_use() else _NOBODY:
            await anyio.lowlevel.checkpoint()
            try:
                self._check_end()
                await self._send(item)
            except RevokedError as error:
                self._answer(error, "write")
                raise

    async def send_eof(self) -> None:
        """Tell the other side that nothing more will be sent; it may go on sending. Twice does no harm.

        :raises RevokedError, ~anyio.ClosedResourceError, ~anyio.BusyResourceError: as `send`
        """
        with self._writing:
            await anyio.lowlevel.checkpoint()
            try:
                with self.handle.using():
                    if not self._eof_sent:
                        await self._send_eof()
                        self._eof_sent = True
            except RevokedError as error:
                self._answer(error, "write")
                raise

    @property
    def extra_attributes(self) -> Mapping[Any, Callable[[], Any]]:
        return {RevokableAttribute.handle: lambda: self.handle}

    @abstractmethod
    async def _receive(self, max_bytes: int) -> bytes: ...

    @abstractmethod
    async def _send(self, item: bytes) -> None: ...

    @abstractmethod
    async def _send_eof(self) -> None: ...

    def _check_end(self) -> None:
        if self._eof_sent and not self.handle.revoked:
            raise anyio.ClosedResourceError(f"{self.handle.path!r}: the end of data was sent already")

    def _answer(self, error: RevokedError, kind: Literal["read", "write", "ioctl"]) -> None:
        answer(error, self.handle, kind, tty=self._tty)


def answer(
    error: RevokedError, handle: Revokable, kind: Literal["read", "write", "ioctl"], *, tty: bool = False
) -> None:
    """Make the error what the profile of `handle` answers, if it is about that and not about one further inside.

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
    """A handle of `owner`, or a root where there is none.

    :param owner: a node, or a function that opens as one does, such as `Name.pin`
    :param name, also, release, answers, kick: as for `Revokable.open`
    """
    also = tuple(also)
    if owner is None:
        if not also:
            return Revokable(name, release=release, answers=answers, kick=kick)
        owner = Revokable()
    make = owner.open if isinstance(owner, Revokable) else owner
    return make(name, also=also, release=release, answers=answers, kick=kick)
