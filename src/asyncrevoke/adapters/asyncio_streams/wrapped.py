"""Any pair of asyncio's reader and writer that there is already, made revocable in place."""

from __future__ import annotations

import asyncio
import contextlib
import errno
import functools
from collections.abc import Awaitable, Callable, Iterable, Iterator
from types import EllipsisType
from typing import Any, Literal, TypeVar

import anyio
import anyio.lowlevel

from asyncrevoke.answers import Answers
from asyncrevoke.lowlevel import Revokable, RevokedError, answer, handle_of

R = TypeVar("R", bound=asyncio.StreamReader)
W = TypeVar("W", bound=asyncio.StreamWriter)
T = TypeVar("T")
Convert = Callable[[RevokedError], RevokedError]

_PATIENCE = 5.0  # seconds; an abort takes one turn of the loop


def wrap_streams(
    reader: R,
    writer: W,
    owner: Revokable | None = None,
    *,
    name: str = "",
    also: Iterable[Revokable] = (),
    answers: Answers | EllipsisType = ...,
) -> tuple[R, W]:
    """Make a connection of asyncio's revocable, as a handle of `owner`: its reader and writer, in place.

    From now on they answer as our streams do: what they await is kicked, and what comes later is refused, with a fresh
    `RevokedError` each time; every operation is a checkpoint, at the end of data, too. `writer.handle` is the node. A
    revocation of it aborts the transport, so the peer cannot be told why.

    :param owner: what it is opened on. None: it is a root of its own
    :param answers: a profile of `asyncrevoke.answers`: where it says end of data, `read` gives ``b""``
    :param also: further parents; whichever goes first takes it
    :raises RevokedError: if the owner was revoked; the connection is still yours then
    """
    if not (isinstance(reader, asyncio.StreamReader) and isinstance(writer, asyncio.StreamWriter)):
        raise TypeError(f"{reader!r} and {writer!r}: give asyncio's StreamReader and StreamWriter")
    if isinstance(reader, _Reader) or isinstance(writer, _Writer):
        raise TypeError(f"{reader!r} and {writer!r} are revocable already")
    name = name or str(writer.get_extra_info("peername") or writer.get_extra_info("pipe") or "connection")

    def release() -> Awaitable[None]:
        assert isinstance(writer, _Writer)
        return writer.aborted()

    handle = handle_of(owner, name, also, release, answers)
    return revocable(reader, writer, handle, lambda error: error)


def revocable(reader: R, writer: W, handle: Revokable, convert: Convert) -> tuple[R, W]:
    each: Any
    uses = handle.open("streams")
    for each, face in (reader, _Reader), (writer, _Writer):
        each.handle, each.uses, each.convert = handle, uses, convert
        each.__class__ = type(type(each).__name__, (face, type(each)), {})
    return reader, writer


async def _guarded(face: _Reader | _Writer, kind: Literal["read", "write"], operation: Callable[[], Awaitable[T]]) -> T:
    await anyio.lowlevel.checkpoint()
    try:
        with face.handle.using(idle=kind == "read"), face.uses.using(idle=kind == "read"):
            try:
                return await operation()
            except Exception as exc:
                exc.__traceback__ = None  # the reader keeps it, and raises it each time: it would grow
                raise
    except RevokedError as error:
        answer(error, face.handle, kind)
        raise face.convert(error) from error.__cause__


class _Reader(asyncio.StreamReader):
    """What a reader does otherwise when it is revocable. It may be of any subclass."""

    handle: Revokable
    uses: Revokable  # closed by a close that goes on sending: what its operations are on, too
    convert: Convert

    async def read(self, n: int = -1) -> bytes:
        return await self._read_or_end(functools.partial(super().read, n))

    def at_eof(self) -> bool:
        if self.handle.revoked:
            try:
                answer(RevokedError(self.handle), self.handle, "read")
            except anyio.EndOfStream:
                return True
        return super().at_eof()

    async def readline(self) -> bytes:
        return await self._read_or_end(super().readline)

    async def _read_or_end(self, read: Callable[[], Awaitable[bytes]]) -> bytes:
        try:
            return await _guarded(self, "read", read)
        except anyio.EndOfStream:
            return b""

    async def readexactly(self, n: int) -> bytes:
        try:
            return await _guarded(self, "read", functools.partial(super().readexactly, n))
        except anyio.EndOfStream as exc:
            raise asyncio.IncompleteReadError(b"", n) from exc

    async def readuntil(self, separator: Any = b"\n") -> bytes:
        try:
            return await _guarded(self, "read", functools.partial(super().readuntil, separator))
        except anyio.EndOfStream as exc:
            raise asyncio.IncompleteReadError(b"", None) from exc


class _Writer(asyncio.StreamWriter):
    """What a writer does otherwise when it is revocable. It may be of any subclass."""

    handle: Revokable
    uses: Revokable  # closed by a close that goes on sending: what its operations are on, too
    convert: Convert
    _lost: asyncio.Future[None] | None = None
    _closing: asyncio.Task[None] | None = None

    def write(self, data: Any) -> None:
        with self._admitted():
            super().write(data)

    def writelines(self, data: Any) -> None:
        with self._admitted():
            super().writelines(data)

    def write_eof(self) -> None:
        with self._admitted():
            super().write_eof()

    async def drain(self) -> None:
        await _guarded(self, "write", self._drained)

    async def start_tls(self, *args: Any, **options: Any) -> None:
        try:
            await _guarded(self, "write", functools.partial(super().start_tls, *args, **options))
        except BaseException:
            if self.transport.is_closing():  # by a handshake that failed, of which asyncio does not tell the protocol
                self._connection_lost().cancel()
            raise

    def close(self) -> None:
        if self._closing is None:
            super().close()
            self.uses.close()
            self._closing = asyncio.get_running_loop().create_task(self._close(), name=f"close of {self.handle.path!r}")

    async def wait_closed(self) -> None:
        """Wait until the connection is closed, by whomever. It raises nothing, and may be cancelled."""
        await asyncio.wait((self._closing or self._connection_lost(),))

    def aborted(self) -> Awaitable[None]:
        """Abort it now. Await that it is closed."""
        with contextlib.suppress(AttributeError):  # what pyserial-asyncio answers if it is lost already
            self.transport.abort()
        return self._aborted()

    async def _aborted(self) -> None:
        await asyncio.wait((self._connection_lost(),), timeout=_PATIENCE)
        if not self._connection_lost().done():
            raise TimeoutError(
                f"{self.handle.path!r}: its transport was aborted {_PATIENCE} s ago and is not closed yet"
            )

    @contextlib.contextmanager
    def _admitted(self) -> Iterator[None]:
        try:
            with self.handle.using(), self.uses.using():
                yield
        except RevokedError as error:
            with contextlib.suppress(anyio.EndOfStream):
                answer(error, self.handle, "write")
            raise self.convert(error) from error.__cause__

    async def _drained(self) -> None:
        await super().drain()
        if self.transport.is_closing() and not self.handle.revoked:  # else there is a grace, or we are kicked
            raise ConnectionResetError(errno.ECONNRESET, "the connection is closing: what was not sent yet may be lost")

    async def _close(self) -> None:
        with contextlib.suppress(RevokedError, anyio.ClosedResourceError), self.handle.using():
            await asyncio.wait((self._connection_lost(),))
        await self.handle.close()
        await asyncio.wait((self._connection_lost(),))

    def _connection_lost(self) -> asyncio.Future[None]:
        """Told when the connection is lost. asyncio's own may be awaited once only: cancelled, it is no use to others."""
        if self._lost is None:
            self._lost = asyncio.ensure_future(super().wait_closed())
            self._lost.add_done_callback(lambda lost: lost.cancelled() or lost.exception())
        return self._lost
