"""A share over the network. Each connection is a client like any other.

An address admits every client that reaches it, as with ser2net. If TLS asks for certificates, the client needs one. A client
that receives nothing is taken off as too slow. The kernel notices a client that has gone without a word.
"""

from __future__ import annotations

import logging
import socket
import ssl
from typing import Any

import anyio
import anyio.abc
from anyio.streams.tls import TLSAttribute, TLSStream

from asyncrevoke.adapters.serial.network import keep_alive
from asyncrevoke.control.lines import ControlError
from asyncrevoke.lowlevel import FdStream, Revokable

from .address import joined
from .client import Client
from .console import Console
from .listener import Listener
from .raw import RawFront
from .share import is_name
from .telnet import TelnetFront

logger = logging.getLogger("asyncrevoke")

_HANDSHAKE = 10.0  # seconds
_LAST_WORDS = 1.0  # seconds for a client to take what it was sent last
_ROOM = 65536  # bytes for the kernel to keep for a client; else it takes megabytes for one that stalls
_OVER = (anyio.EndOfStream, anyio.BrokenResourceError, anyio.ClosedResourceError)  # the connection is


async def run(console: Console) -> None:
    """Run a console, and accept clients at its addresses, until it has ended."""
    async with Revokable("connections") as connections, anyio.create_task_group() as tasks:
        for listener in console.listeners:
            tasks.start_soon(_Door(console, listener, connections, tasks).stand_open)
        await console.run()
        tasks.cancel_scope.cancel()


class _Door:
    """Accepts the clients of one address."""

    def __init__(
        self, console: Console, listener: Listener, connections: Revokable, tasks: anyio.abc.TaskGroup
    ) -> None:
        assert listener.socket is not None, "the console has begun"
        self._console = console
        self._socket = listener.socket
        self._context = listener.context
        self._address = listener.address
        self._connections = connections
        self._tasks = tasks
        self._coming: dict[FdStream, None] = {}
        self._inside: set[FdStream] = set()

    async def stand_open(self) -> None:
        while True:
            try:
                await anyio.wait_readable(self._socket)
                self._let_in()
            except anyio.ClosedResourceError:
                return
            except (BlockingIOError, ConnectionAbortedError):  # the client has gone already
                pass
            except OSError as exc:  # too many files are open: clients wait until some are closed
                logger.warning("%r, %s: %s", self._console.share.name, self._address, exc)
                await anyio.sleep(1)

    def _let_in(self) -> None:
        connection, address = self._socket.accept()
        with connection:
            keep_alive(connection)
            connection.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, _ROOM)
            stream = FdStream(connection.fileno(), self._connections)
            connection.detach()
        if len(self._coming) == self._address.limit:  # silent connections must not keep others out
            next(iter(self._coming)).revoke("others have come")
        self._coming[stream] = None
        self._tasks.start_soon(self._talk, stream, f"tcp:{joined(*address[:2])}")

    async def _talk(self, stream: FdStream, peer: str) -> None:
        try:
            async with stream:
                wire, name = await self._secured(stream, peer)
                front = TelnetFront(stream, wire, self._console) if self._address.telnet else RawFront(stream, wire)
                if len(self._inside) == self._address.limit:
                    why = f"{len(self._inside)} are connected already"
                    self._console.note(f"{peer} was turned away: {why}")
                else:
                    del self._coming[stream]
                    self._inside.add(stream)
                    why = await self._attend(front, name, peer)
                with anyio.move_on_after(_LAST_WORDS, shield=True):
                    await front.end(why)
        except (ssl.SSLError, TimeoutError) as exc:
            self._console.note(f"{peer} was turned away: {exc}")
        except _OVER:
            pass
        except Exception:
            logger.exception("%r: the connection of %s has failed", self._console.share.name, peer)
        finally:
            self._coming.pop(stream, None)
            self._inside.discard(stream)

    async def _attend(self, front: RawFront, name: str, peer: str) -> str:
        """Attach a client until it goes or is taken off. Return why it ended."""
        mode = self._address.mode
        client = Client(self._console, front, name, writes=mode != "watch", wait=True, history=False, origin=peer)
        try:
            return await client.run(force=mode == "force")
        except ControlError as error:
            return str(error)

    async def _secured(self, stream: FdStream, peer: str) -> tuple[anyio.abc.ByteStream, str]:
        """Return the stream to talk over, and the name of the client."""
        context = self._context
        if context is None:
            return stream, peer
        with anyio.move_on_after(_HANDSHAKE):
            wire = await TLSStream.wrap(stream, server_side=True, ssl_context=context, standard_compatible=False)
            return wire, _common_name(wire) or peer
        raise TimeoutError(f"no TLS handshake in {_HANDSHAKE:g} s")


def _common_name(wire: TLSStream) -> str:
    """Return the name in the certificate of the client, if a client may have that name."""
    certificate: Any = wire.extra_attributes[TLSAttribute.peer_certificate]() or {}
    names = [value for part in certificate.get("subject", ()) for key, value in part if key == "commonName"]
    return next((name for name in names if is_name(name)), "")
