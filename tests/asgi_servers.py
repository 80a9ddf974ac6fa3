"""Real ASGI servers over real sockets, and clients of them."""

import asyncio
import contextlib
import socket
import warnings
from collections.abc import AsyncIterator, Awaitable, Callable
from typing import Any

import anyio
import hypercorn.asyncio
import hypercorn.config
import uvicorn
from websockets.asyncio.client import connect

from asyncrevoke.adapters.asgi.interface import App

#: Uvicorn's two implementations of websockets, each with one of its two of HTTP; the one that both replace; hypercorn.
SERVERS = ["websockets-sansio httptools", "wsproto h11", "websockets h11", "hypercorn"]
Endpoint = Callable[[Any, Any, Any], Awaitable[None]]


def applications(**endpoints: Endpoint) -> App:
    """One application of several endpoints, by their paths, which begins and ends its lifespan."""

    async def app(scope: Any, receive: Any, send: Any) -> None:
        if scope["type"] == "lifespan":
            for what in "startup", "shutdown":
                await receive()
                await send({"type": f"lifespan.{what}.complete"})
        else:
            await endpoints[scope["path"].strip("/")](scope, receive, send)

    return app


class Client:
    """A client of the server at a port."""

    def __init__(self, port: int) -> None:
        self.port = port

    def websocket(self, path: str, token: str = "alice") -> connect:
        return connect(f"ws://127.0.0.1:{self.port}{path}", additional_headers={"Token": token}, proxy=None)

    @contextlib.asynccontextmanager
    async def request(
        self, path: str, token: str = "alice", *, head: str = "", limit: int = 1 << 16
    ) -> AsyncIterator[tuple[asyncio.StreamReader, asyncio.StreamWriter]]:
        """A request that was sent, and what is answered."""
        reader, writer = await asyncio.open_connection("127.0.0.1", self.port, limit=limit)
        writer.write(f"GET {path} HTTP/1.1\r\nHost: x\r\nToken: {token}\r\n{head}\r\n".encode())
        try:
            yield reader, writer
        finally:
            writer.close()
            with contextlib.suppress(ConnectionError):
                await writer.wait_closed()

    async def stalled(self, path: str, *, upgrade: bool = False) -> socket.socket:
        """A socket whose request was sent, and from which nothing was read."""
        sock = socket.socket()
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
        sock.setblocking(False)
        await asyncio.get_running_loop().sock_connect(sock, ("127.0.0.1", self.port))
        head = "Host: x\r\nToken: alice\r\n"
        if upgrade:
            head += "Upgrade: websocket\r\nConnection: Upgrade\r\nSec-WebSocket-Version: 13\r\n"
            head += "Sec-WebSocket-Key: MDEyMzQ1Njc4OWFiY2RlZg==\r\n"
        sock.send(f"GET {path} HTTP/1.1\r\n{head}\r\n".encode())
        return sock


def listener() -> socket.socket:
    """What a server accepts from has no Nagle's algorithm, as those sockets have that it makes itself."""
    sock = socket.socket(socket.AF_INET, socket.SOCK_STREAM, socket.IPPROTO_TCP)
    sock.bind(("127.0.0.1", 0))
    sock.listen(100)
    return sock


@contextlib.asynccontextmanager
async def served(app: Any, kind: str) -> AsyncIterator[Client]:
    """A server of that kind in this loop, until it has ended by itself."""
    serving: Awaitable[None]
    with listener() as sock:
        client = Client(sock.getsockname()[1])
        if kind == "hypercorn":
            config, end = hypercorn.config.Config(), asyncio.Event()
            config.bind, config.graceful_timeout, config.errorlog = [f"fd://{sock.detach()}"], 5, None
            serving = hypercorn.asyncio.serve(app, config, shutdown_trigger=end.wait)
            stop = end.set
        else:
            ws, http = kind.split()
            with warnings.catch_warnings(action="ignore"):  # that one of them is deprecated
                server = uvicorn.Server(
                    uvicorn.Config(app, ws=ws, http=http, log_config=None, timeout_graceful_shutdown=5)
                )
                server.config.load()
            serving = server.serve([sock])

            def stop() -> None:
                server.should_exit = True

        with anyio.fail_after(30):
            task = asyncio.ensure_future(serving)
            try:
                yield client
            finally:
                stop()
                await task
