"""A share over the network, as plain bytes."""

from __future__ import annotations

import os
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import anyio
import anyio.abc
from anyio.streams.tls import TLSStream

from asyncrevoke.lowlevel import FdStream

if TYPE_CHECKING:
    from .client import Client

_TYPED = 4096  # bytes that are heard at a time; a client keeps 256 of these
_LAST_KEYS = 10.0  # seconds for what was typed, once the connection is closed


class RawFront:
    """A connection over the network with plain bytes, and no way to tell anything else.

    :param stream: the connection
    :param wire: stream to talk over: `stream`, or TLS on it
    """

    def __init__(self, stream: FdStream, wire: anyio.abc.ByteStream) -> None:
        self._stream = stream
        self._wire = wire
        self._fd = stream.fileno() if wire is stream else -1
        self._turn = anyio.Lock()
        self._broken = False  # a part of what was sent last is lost

    def show_now(self, data: bytes) -> bytes:
        if self._fd < 0 or self._broken or self._turn.locked():
            return data
        try:
            return data[os.write(self._fd, data) :]
        except OSError:  # it is full, or broken, as `show` finds out
            return data

    async def show(self, data: bytes) -> None:
        await self.send(data)

    async def tell(self, news: Mapping[str, Any]) -> None:
        """Tell nothing: plain bytes have no way to."""

    async def hear(self, client: Client) -> str:
        """Type all that comes. At its end, all that was typed still goes to the device."""
        try:
            while True:
                await self._heard(client, await self._wire.receive(_TYPED))
        except anyio.EndOfStream:
            with anyio.move_on_after(_LAST_KEYS):
                await client.detach()
                await anyio.sleep_forever()
        return "the connection is closed"

    async def end(self, why: str) -> None:  # noqa: ARG002  # others can tell it
        """End the connection in order. The far end gets all that was sent, whatever it sends meanwhile."""
        if isinstance(self._wire, TLSStream):
            await self._wire.unwrap()
        await self._stream.send_eof()
        while True:
            await self._stream.receive()

    async def _heard(self, client: Client, data: bytes) -> None:
        await client.type(data)

    async def send(self, data: bytes) -> None:
        """Send data as a whole. Once a sending was cut off, the connection is at its end.

        :raises ~anyio.BrokenResourceError: if it was cut off, or the far end has gone
        """
        async with self._turn:
            if self._broken:
                raise anyio.BrokenResourceError("a part of what it was sent is lost")
            self._broken = True
            await self._wire.send(data)
            self._broken = False
