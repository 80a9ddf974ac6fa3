"""A revokable stream over any AnyIO byte stream, kicked by cancel scope."""

from collections.abc import Awaitable, Callable, Iterable, Mapping
from types import EllipsisType
from typing import Any

import anyio
import anyio.abc

from asyncrevoke._core.errors import RevokedError
from asyncrevoke._core.profile import Answers
from asyncrevoke._core.revocation import Revocation
from asyncrevoke._core.revokable import Revokable

from .face import Face, Owner, handle_of


class RevokableStream(Face):
    """A revokable stream over any AnyIO byte stream. Every await on it is an operation of `handle`, kicked by cancel
    scope.

    :param inner: the stream; this one owns it from now on
    :param owner: what it is opened on; the stream opens a handle there. None: the stream is a root of its own, in this
        loop
    :param answers: a profile of `asyncrevoke.answers`. Default: as at the owner
    :param also: further parents of the handle, such as a token. Whichever is revoked first takes the stream along
    :raises RevokedError: if the owner was revoked. You still own `inner` then

    A release does not wait for the other side: it aborts. `sent` is not known.
    """

    def __init__(
        self,
        inner: anyio.abc.ByteStream,
        owner: Owner = None,
        answers: Answers | EllipsisType = ...,
        *,
        name: str = "",
        also: Iterable[Revokable] = (),
    ) -> None:
        super().__init__(handle_of(owner, name, also, self._abort, answers))
        if self.handle.parent is None:
            self.handle._settle()  # the stream is of this loop, and so is its release
        self._inner = inner
        self._receiving = anyio.Lock(
            fast_acquire=True
        )  # for whoever closes, which waits until nobody is inside `inner`
        self._sending = anyio.Lock(fast_acquire=True)
        self._inner_closed = False
        self._closing: Revocation | None = None

    @property
    def extra_attributes(self) -> Mapping[Any, Callable[[], Any]]:
        """The typed attributes of the inner stream, and ours."""
        return {**self._inner.extra_attributes, **super().extra_attributes}

    async def _receive(self, max_bytes: int) -> bytes:
        with self.handle.using(idle=True):
            async with self._receiving:
                return await self._inner.receive(max_bytes)

    async def _send(self, item: bytes) -> None:
        with self.handle.using():
            async with self._sending:
                await self._inner.send(item)

    async def _send_eof(self) -> None:
        async with self._sending:
            await self._inner.send_eof()

    async def aclose(self) -> None:
        """Close the stream. Other operations are refused and kicked. Then the inner stream is closed, which may wait
        for its peer.

        Cancellation, or a revocation: end that waiting and abort the inner stream.
        """
        try:
            with self.handle.using():
                self._closing = self.handle.close()  # refuses and kicks all others; this operation is the last
                async with self._receiving, self._sending:
                    await self._inner.aclose()
                self._inner_closed = True
        except (RevokedError, anyio.ClosedResourceError):
            pass  # it is being closed by another, or by force
        try:
            await (self._closing or self.handle.close())
        except anyio.get_cancelled_exc_class():
            self.handle.close()  # by force, whoever else closes it gracefully
            raise

    def _abort(self) -> Awaitable[None] | None:
        return None if self._inner_closed else anyio.aclose_forcefully(self._inner)
