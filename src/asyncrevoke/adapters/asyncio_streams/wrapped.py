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

R = TypeVar("R", bound=asyncio.StreamReader | None)
W = TypeVar("W", bound=asyncio.StreamWriter | None)
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
    `RevokedError` each time; every operation is a checkpoint, at the end of data, too. `writer.handle` is the node, and
    `reader.handle` the same one. A revocation of it aborts the transport, so the peer cannot be told why. A child's stdout
    and stdin, or a pty as two pipes, have a transport each: both are closed when the revocation is complete, and by
    `writer.close()`. To end only what you send, call `writer.write_eof()`.

    :param reader, writer: the two of one connection. None: there is no such half, and None is returned for it. A reader
        alone is closed by ``await reader.handle.aclose()``
    :param owner: what it is opened on. None: it is a root of its own
    :param answers: a profile of `asyncrevoke.answers`: where it says end of data, `read` gives ``b""``
    :param also: further parents; whichever goes first takes it
    :raises RevokedError: if the owner was revoked; the connection is still yours then
    :raises TypeError: if they are not asyncio's, or are revocable already, or both are None
    """
    given: list[Any] = [each for each in (writer, reader) if each is not None]
    typed = isinstance(reader, asyncio.StreamReader | None) and isinstance(writer, asyncio.StreamWriter | None)
    if not typed or not given:
        raise TypeError(f"{reader!r} and {writer!r}: give asyncio's StreamReader and StreamWriter, or None for one")
    if any(isinstance(getattr(each, "handle", None), Revokable) for each in given):
        raise TypeError(f"{reader!r} and {writer!r} are revocable already")
    transports = [transport for each in given if (transport := each._transport) is not None]
    extra = (transport.get_extra_info(key) for transport in transports for key in ("peername", "pipe"))
    name = name or next((str(each) for each in extra if each), "connection")

    def release() -> Awaitable[None]:
        for each in given:
            each.abort()
        return _closed(handle, {each.lost for each in given})

    handle = handle_of(owner, name, also, release, answers)
    return revocable(reader, writer, handle, lambda error: error)


def revocable(reader: R, writer: W, handle: Revokable, convert: Convert) -> tuple[R, W]:
    each: Any
    uses = handle.open("streams")
    lost: dict[object, asyncio.Future[None]] = {}
    protocol: Any = getattr(writer, "_protocol", None)
    if writer is not None and getattr(protocol, "stdin", None) is writer:
        protocol.stdin = None  # when a child reads no more, asyncio closes its stdin, and here that closes its stdout
    for each, face in (writer, _Writer), (reader, _Reader):
        if each is not None:
            each.handle, each.uses, each.convert = handle, uses, convert
            each.lost = lost.get(each._transport) or lost.setdefault(each._transport, _lost(each))
            each.__class__ = type(type(each).__name__, (face, type(each)), {})
    return reader, writer


def _lost(stream: Any) -> asyncio.Future[None]:
    """Told when the transport of a reader or a writer is closed, of which asyncio tells nobody but the protocol."""
    lost: asyncio.Future[None] = stream._loop.create_future()
    protocol: Any = None
    if stream._transport is not None:
        try:
            protocol = stream._transport.get_protocol()
        except NotImplementedError:  # pyserial-asyncio's
            protocol = stream._protocol
    if protocol is None or getattr(protocol, "_connection_lost", False):
        lost.set_result(None)
        return lost
    tell = protocol.connection_lost

    def connection_lost(exc: Exception | None) -> None:
        try:
            tell(exc)
        finally:
            if not lost.done():
                lost.set_result(None)

    try:
        protocol.connection_lost = connection_lost
    except AttributeError:  # one with slots; uvloop's of TLS, below the transport of the writer, which tells
        lost.set_result(None)
    return lost


async def _closed(handle: Revokable, lost: set[asyncio.Future[None]]) -> None:
    await asyncio.sleep(0)  # in which those are closed that cannot tell
    _, pending = await asyncio.wait(lost, timeout=_PATIENCE)
    if pending:
        raise TimeoutError(f"{handle.path!r}: its transport was aborted {_PATIENCE} s ago and is not closed yet")


def _abort(transport: Any) -> None:
    try:
        transport.abort()
    except (AttributeError, NotImplementedError):  # a pipe that is read; pyserial-asyncio's, if it is lost
        transport.close()


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
    lost: asyncio.Future[None]
    _transport: asyncio.ReadTransport | None

    def abort(self) -> None:
        if self._transport is not None:
            _abort(self._transport)

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
    lost: asyncio.Future[None]
    _loop: asyncio.AbstractEventLoop
    _protocol: asyncio.BaseProtocol
    _closing: asyncio.Task[None] | None = None

    def abort(self) -> None:
        _abort(self.transport)

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
                self.lost.cancel()
            raise

    def close(self) -> None:
        if self._closing is None:
            self.uses.close()  # first: in another thread or loop it raises, and nothing has changed
            super().close()
            self._closing = self._loop.create_task(self._close(), name=f"close of {self.handle.path!r}")

    async def wait_closed(self) -> None:
        """Wait until the connection is closed, by whomever. It raises nothing, and may be cancelled."""
        await asyncio.wait((self._closing or self.lost,))

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
            await asyncio.wait((self.lost,))
        await self.handle.close()
        await asyncio.wait((self.lost,))
