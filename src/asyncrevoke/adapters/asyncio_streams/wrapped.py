"""An existing pair of asyncio's reader and writer, made revokable in place."""

from __future__ import annotations

import asyncio
import contextlib
import errno
import functools
from collections.abc import Awaitable, Callable, Iterable, Iterator
from types import EllipsisType
from typing import Any, Literal, TypeVar

import anyio

from asyncrevoke.answers import Answers
from asyncrevoke.lowlevel import Revokable, RevokedError, answer, checkpoint, due, handle_of

R = TypeVar("R", bound=asyncio.StreamReader | None)
W = TypeVar("W", bound=asyncio.StreamWriter | None)
Convert = Callable[[RevokedError], RevokedError]

#: Asked as a function it costs a third of what the property does in Python 3.11, and each read asks.
revoked: Callable[[Revokable], bool] = Revokable.revoked.fget  # type: ignore[attr-defined]

_ENDS = RevokedError, anyio.ClosedResourceError
_PATIENCE = 5.0  # seconds; an abort takes one turn of the loop


class ConnectionClosedError(anyio.ClosedResourceError, ConnectionResetError):
    """It was closed here. Asyncio's own `drain` then raises a ConnectionResetError, for which its users have
    handlers.
    """


def wrap_streams(
    reader: R,
    writer: W,
    owner: Revokable | None = None,
    *,
    name: str = "",
    also: Iterable[Revokable] = (),
    answers: Answers | EllipsisType = ...,
) -> tuple[R, W]:
    """Make a connection of asyncio's revokable, as a handle of `owner`: its reader and writer, in place.

    From now on they answer as our streams do. Operations that wait are kicked, and later ones are refused, with a fresh
    `RevokedError` each time. Every operation is a checkpoint, even at the end of data. `writer.handle` is the node, and
    `reader.handle` is the same one. A revocation of it aborts the transport, so the peer cannot be told why. A child's
    stdout and stdin, or a pty as two pipes, have a transport each. Both are closed when the revocation is complete, and
    by `writer.close()`. To end only what you send, call `writer.write_eof()`.

    :param reader, writer: the two of one connection. None: there is no such half, and None is returned for it. Close a
        reader alone by ``await reader.handle.aclose()``
    :param owner: what it is opened on. None: it is a root of its own
    :param answers: a profile of `asyncrevoke.answers`. If it says end of data, `read` returns ``b""``
    :param also: further parents. Whichever is revoked first takes the connection along
    :raises RevokedError: if the owner was revoked. You still own the connection then
    :raises TypeError: if they are not asyncio's, or are revokable already, or both are None
    """
    given: list[Any] = [each for each in (writer, reader) if each is not None]
    typed = isinstance(reader, asyncio.StreamReader | None) and isinstance(writer, asyncio.StreamWriter | None)
    if not typed or not given:
        raise TypeError(f"{reader!r} and {writer!r}: give asyncio's StreamReader and StreamWriter, or None for one")
    if any(isinstance(getattr(each, "handle", None), Revokable) for each in given):
        raise TypeError(f"{reader!r} and {writer!r} are revokable already")
    transports = [transport for each in given if (transport := each._transport) is not None]
    alive = [each for each in transports if not each.is_closing()]  # uvloop knows nothing of others
    extra = (transport.get_extra_info(key) for transport in alive for key in ("peername", "pipe"))
    name = name or next((str(each) for each in extra if each), "connection")

    def release() -> Awaitable[None]:
        for each in given:
            each.abort()
        return _closed(handle, {each.lost for each in given})

    handle = handle_of(owner, name, also, release, answers)
    return revokable(reader, writer, handle, lambda error: error)


def revokable(reader: R, writer: W, handle: Revokable, convert: Convert) -> tuple[R, W]:
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
            each.inner = type(each)
            each.__class__ = type(each.inner.__name__, (face, each.inner), {})
    return reader, writer


def _lost(stream: Any) -> asyncio.Future[None]:
    """Told when the transport of a reader or a writer is closed. Asyncio tells only the protocol of that."""
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


def _answered(face: _Reader | _Writer, kind: Literal["read", "write"], error: Exception) -> Exception:
    """Return the error of an operation that was kicked or refused.

    :raises ~anyio.EndOfStream: if the profile says so
    """
    if not isinstance(error, RevokedError):
        return ConnectionClosedError(*error.args)
    answer(error, face.handle, kind)
    return face.convert(error)


class _Reader(asyncio.StreamReader):
    """The methods that a revokable reader replaces. The reader may be of any subclass.

    A read whose data is there already is no operation, because it ends at once. `readline` is made of `readuntil`.
    """

    handle: Revokable
    uses: Revokable  # closed by a close that goes on sending: what its operations are on, too
    convert: Convert
    lost: asyncio.Future[None]
    inner: type[asyncio.StreamReader]  # what it was: super() would take a fifth of a read whose data is there
    _exception: Exception | None
    _transport: asyncio.ReadTransport | None

    def abort(self) -> None:
        if self._transport is not None:
            _abort(self._transport)

    def at_eof(self) -> bool:
        if self.handle.revoked:
            try:
                answer(RevokedError(self.handle), self.handle, "read")
            except anyio.EndOfStream:
                return True
        return super().at_eof()

    async def read(self, n: int = -1) -> bytes:
        if due(self.handle):
            await checkpoint()
        try:
            if self._exception is not None or revoked(self.uses):
                self._admit()
            return await self.inner.read(self, n)
        except anyio.EndOfStream:
            return b""

    async def readexactly(self, n: int) -> bytes:
        if due(self.handle):
            await checkpoint()
        try:
            if self._exception is not None or revoked(self.uses):
                self._admit()
            return await self.inner.readexactly(self, n)
        except anyio.EndOfStream as exc:
            raise asyncio.IncompleteReadError(b"", n) from exc

    async def readuntil(self, separator: Any = b"\n") -> bytes:
        if due(self.handle):
            await checkpoint()
        try:
            if self._exception is not None or revoked(self.uses):
                self._admit()
            return await self.inner.readuntil(self, separator)
        except anyio.EndOfStream as exc:
            raise asyncio.IncompleteReadError(b"", None) from exc

    def _admit(self) -> None:
        if self._exception is not None:
            self._exception.__traceback__ = None  # it is raised each time: it would grow
        if self.uses.revoked:
            try:
                with self.handle.using(), self.uses.using():
                    pass
            except _ENDS as error:
                raise _answered(self, "read", error) from error.__cause__

    async def _wait_for_data(self, func_name: str) -> None:
        """Wait as an operation. It replaces asyncio's own method, in which all reads wait."""
        try:
            with self.handle.using(idle=True), self.uses.using(idle=True):
                await super()._wait_for_data(func_name)  # type: ignore[misc]  # typeshed does not know it
        except _ENDS as error:
            if isinstance(error, RevokedError):
                error.in_flight = True  # it may be a later wait of a read that had begun
            raise _answered(self, "read", error) from error.__cause__


class _Writer(asyncio.StreamWriter):
    """The methods that a revokable writer replaces. The writer may be of any subclass."""

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
        await self._guarded(self._drained)

    async def start_tls(self, *args: Any, **options: Any) -> None:
        try:
            await self._guarded(functools.partial(super().start_tls, *args, **options))
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
        """Wait until the connection is closed, by anybody. It raises nothing, and you may cancel it."""
        await asyncio.wait((self._closing or self.lost,))

    async def _guarded(self, operation: Callable[[], Awaitable[None]]) -> None:
        if due(self.handle):
            await checkpoint()
        try:
            with self.handle.using(), self.uses.using():
                try:
                    await operation()
                except Exception as exc:
                    exc.__traceback__ = None  # the reader keeps it, and raises it each time: it would grow
                    raise
        except _ENDS as error:
            raise _answered(self, "write", error) from error.__cause__

    @contextlib.contextmanager
    def _admitted(self) -> Iterator[None]:
        try:
            with self.handle.using(), self.uses.using():
                yield
        except anyio.ClosedResourceError as error:
            raise ConnectionClosedError(*error.args) from None
        except RevokedError as error:
            with contextlib.suppress(anyio.EndOfStream):
                answer(error, self.handle, "write")
            raise self.convert(error) from error.__cause__

    async def _drained(self) -> None:
        await super().drain()
        if self.transport.is_closing() and not self.handle.revoked:  # else there is a grace, or we are kicked
            raise ConnectionResetError(errno.ECONNRESET, "the connection is closing: unsent data may be lost")

    async def _close(self) -> None:
        with contextlib.suppress(RevokedError, anyio.ClosedResourceError), self.handle.using():
            await asyncio.wait((self.lost,))
        await self.handle.close()
        await asyncio.wait((self.lost,))
