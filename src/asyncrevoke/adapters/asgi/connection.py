"""The connection below a server's `send`."""

import contextlib
import socket
import struct
from typing import Any

import anyio


class Connection:
    """A connection that can be closed even if the other end does not read.

    :ivar transport: asyncio's
    :ivar lost: whether it is gone. Asyncio tells only its protocol, which then tells us
    """

    def __init__(self, transport: Any) -> None:
        self.transport = transport
        self.lost = anyio.Event()
        protocol = transport.get_protocol()
        if protocol is None:
            self.lost.set()
            return
        tell_protocol = protocol.connection_lost

        def connection_lost(exc: Exception | None) -> None:
            tell_protocol(exc)
            self.lost.set()

        protocol.connection_lost = connection_lost

    async def abort(self) -> None:
        """Close it now, if it is not gone. Data that was not read yet is thrown away, also by the kernel."""
        if not self.lost.is_set():
            with contextlib.suppress(OSError):
                no_lingering = struct.pack("ii", 1, 0)
                self.transport.get_extra_info("socket").setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, no_lingering)
            self.transport.abort()
            await self.lost.wait()


def below(send: Any) -> Connection | None:
    """Return the connection that a server's `send` uses, or None if it cannot be found.

    Uvicorn's `send` is a method of an object that has the transport. Hypercorn's is a method of a stream; the stream's
    `send` belongs to a protocol, whose `send` belongs to an object with a writer.
    """
    for _ in range(4):
        owner = getattr(send, "__self__", None)
        transport = getattr(getattr(owner, "writer", owner), "transport", None)
        if hasattr(transport, "get_protocol"):
            return Connection(transport)
        send = getattr(owner, "send", None)
    return None
