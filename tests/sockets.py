"""One of our streams over a socket, and its peer."""

import contextlib
import functools
import socket
from collections.abc import AsyncIterator
from typing import Any, Protocol

import anyio
import anyio.lowlevel

from asyncrevoke import Face, FdStream, Revokable

#: More than any socket or pipe takes: sending it parks.
BIG = bytes(4 << 20)


class Wrap(Protocol):
    """Makes one of our streams of a socket, which belongs to the stream from then on."""

    async def __call__(self, sock: socket.socket, owner: Revokable | None = None, **options: Any) -> Face: ...


@contextlib.asynccontextmanager
async def pair(wrap: Wrap, owner: Revokable | None = None, **options: Any) -> AsyncIterator[tuple[Face, socket.socket]]:
    """One of our streams and its peer, a plain socket whose every call ends within seconds."""
    ours, peer = socket.socketpair()
    with peer:
        peer.settimeout(5)
        stream = await wrap(ours, owner, **options)
        try:
            with anyio.fail_after(20):
                yield stream, peer
        finally:
            await anyio.aclose_forcefully(stream)


async def read_on(peer: socket.socket, enough: int | None = None, until: bytes | None = None) -> bytes:
    """All that comes until the end, until it is enough, or until it ends so, while others have their turns."""
    arrived = bytearray()
    peer.setblocking(False)
    while (enough is None or len(arrived) < enough) and (until is None or not arrived.endswith(until)):
        try:
            chunk = peer.recv(1 << 20)
        except BlockingIOError:
            await anyio.lowlevel.checkpoint()
        else:
            if not chunk:
                break
            arrived += chunk
    peer.settimeout(5)
    return bytes(arrived)


over_socket = functools.partial(pair, lambda sock, owner=None, **options: _make(sock, owner, **options))


async def _make(sock: socket.socket, owner: Revokable | None, **options: Any) -> FdStream:
    return FdStream(sock.detach(), owner, **options)


@contextlib.asynccontextmanager
async def socket_stream(
    owner: Revokable | None = None, **options: Any
) -> AsyncIterator[tuple[FdStream, socket.socket]]:
    async with over_socket(owner, **options) as (stream, peer):
        assert isinstance(stream, FdStream)
        yield stream, peer
