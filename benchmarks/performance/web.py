"""A request, or a message of a websocket, goes through uvicorn to an application and back."""

from __future__ import annotations

import asyncio
import contextlib
import socket
from collections.abc import AsyncIterator, Awaitable, Callable
from typing import Any

from asyncrevoke import Registry
from asyncrevoke.adapters.asgi import RevokableApp

BODY = b"Hello, world!"
REQUEST = b"GET /hello HTTP/1.1\r\nHost: example\r\nAuthorization: Bearer token7\r\n"
UPGRADE = b"""Connection: Upgrade\r
Upgrade: websocket\r
Sec-WebSocket-Version: 13\r
Sec-WebSocket-Key: MDEyMzQ1Njc4OWFiY2RlZg==\r
"""
MESSAGE = b"\x82" + bytes([0x80 | len(BODY)]) + bytes(4) + BODY  # masked by zeros


async def endpoint(scope: Any, receive: Any, send: Any) -> None:
    """Greet, or give back each message."""
    if scope["type"] == "http":
        headers = [(b"content-length", b"%d" % len(BODY)), (b"content-type", b"text/plain")]
        await send({"type": "http.response.start", "status": 200, "headers": headers})
        await send({"type": "http.response.body", "body": BODY})
        return
    await receive()
    await send({"type": "websocket.accept"})
    while (message := await receive())["type"] == "websocket.receive":
        await send({"type": "websocket.send", "bytes": message["bytes"]})


def key(scope: Any) -> tuple[str, str] | None:
    for name, value in scope["headers"]:
        if name == b"authorization":
            return "alice", value.decode()
    return None


def revokable(*, in_use: bool) -> Any:
    """The endpoint, with all that a request of alice needs. Her key is in use by somebody else, too, or by nobody."""
    live = Registry()
    if in_use:
        live["alice", "Bearer token7"].open()
    return RevokableApp(endpoint, live, key, shutdown=None)


@contextlib.asynccontextmanager
async def served(app: Any, *, websocket: bool = False) -> AsyncIterator[tuple[Callable[[], Awaitable[object]], None]]:
    """Give what asks once and waits for the answer, over a connection that stays."""
    import uvicorn  # noqa: PLC0415  # which not everybody has
    from uvicorn.server import ServerState  # noqa: PLC0415

    config = uvicorn.Config(app, http="httptools", ws="websockets-sansio", lifespan="off", log_config=None)
    config.access_log = False
    config.load()
    loop = asyncio.get_running_loop()
    ours, theirs = socket.socketpair()
    ours.setblocking(False)
    make: Any = config.http_protocol_class
    state = ServerState()
    await loop.connect_accepted_socket(lambda: make(config=config, server_state=state, app_state={}), theirs)

    async def ask(question: bytes, ends: bytes) -> None:
        await loop.sock_sendall(ours, question)
        answer = b""
        while not answer.endswith(ends):
            answer += await loop.sock_recv(ours, 4096)

    if websocket:
        await ask(REQUEST + UPGRADE + b"\r\n", b"\r\n\r\n")
    question = MESSAGE if websocket else REQUEST + b"\r\n"
    with ours:
        yield (lambda: ask(question, BODY)), None
    while state.connections or state.tasks:  # noqa: ASYNC110  # which nobody tells of
        await asyncio.sleep(0)
