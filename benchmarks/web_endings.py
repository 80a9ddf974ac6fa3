"""What becomes of live connections when their token is revoked: ``python benchmarks/web_endings.py [--ours] [--fastapi]``

An application of Starlette under uvicorn has endpoints of several kinds. Where uvicorn's two implementations of websockets
differ, both are shown: "websockets / wsproto". A token is revoked in four ways:

- a set: the token leaves a set, which is looked at when a request begins
- by hand: also, another task calls `WebSocket.close`, and an event stream looks at the set before each event
- cancel: also, another task cancels the task of the endpoint
- asyncrevoke: `RevokableApp` is around the same application

Printed is what the application raises or returns, what the client gets, and when the application has ended, the call that
revokes has returned, and the server has closed the connection. "Never" is not within a minute. A client that is stalled has
stopped reading. With `--ours`, only the last way is measured. With `--fastapi`, it is an application of FastAPI.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import pathlib
import socket
import sys
import time
from collections.abc import AsyncIterator, Callable
from typing import Any, NamedTuple

import anyio
from conformance import print_versions, table
from fastapi import FastAPI
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import Response, StreamingResponse
from starlette.routing import Route, WebSocketRoute
from starlette.websockets import WebSocket
from web_sessions import SERVERS, served, token_of
from websockets.asyncio.client import connect
from websockets.exceptions import ConnectionClosed

from asyncrevoke import Registry
from asyncrevoke.adapters.asgi import RevokableApp

PATIENCE = 60.0  # seconds, after which it is never
SETTLED = 1.0  # seconds in which an endpoint certainly begins to wait
EVENT = 0.1  # seconds from one event to the next
LARGE = bytes(1 << 16)


class Kind(NamedTuple):
    name: str
    path: str
    stalled: bool


KINDS = [
    Kind("websocket that receives", "/receives", stalled=False),
    Kind("websocket that receives, client stalled", "/receives", stalled=True),
    Kind("websocket that sends, client stalled", "/sends", stalled=True),
    Kind("event stream", "/events", stalled=False),
    Kind("download, client stalled", "/download", stalled=True),
    Kind("request that takes long", "/request", stalled=False),
]
WAYS = "a set", "by hand", "cancel", "asyncrevoke"
MEASURED = WAYS[-1:] if "--ours" in sys.argv else WAYS
FRAMEWORK = FastAPI if "--fastapi" in sys.argv else Starlette


# -- the service --


class Service:
    """The application, and what each way needs for revoking. A token ends in the number of its way."""

    def __init__(self) -> None:
        self.tokens: set[str] = set()
        self.ended: dict[str, str] = {}  # what has left the application
        self._websockets: dict[str, WebSocket] = {}
        self._tasks: dict[str, asyncio.Task[Any] | None] = {}
        self._live = Registry()
        self._application = FRAMEWORK(
            routes=[
                WebSocketRoute("/receives", self._receives),
                WebSocketRoute("/sends", self._sends),
                Route("/events", self._events),
                Route("/download", self._download),
                Route("/request", self._request),
            ]
        )
        self._revokable = RevokableApp(self._noted, self._live, token_of)

    async def __call__(self, scope: Any, receive: Any, send: Any) -> None:
        if scope["type"] == "lifespan":
            await self._application(scope, receive, send)
        else:
            await (self._revokable if way_of(token_of(scope)) == "asyncrevoke" else self._noted)(scope, receive, send)

    async def _noted(self, scope: Any, receive: Any, send: Any) -> None:
        token, told = token_of(scope), "returns"
        self._tasks[token] = asyncio.current_task()
        try:
            await self._application(scope, receive, send)
        except BaseException as exc:
            told = f"{type(exc).__name__} {getattr(exc, 'code', '')}".rstrip()
            raise
        finally:
            self.ended[token] = told

    async def _receives(self, websocket: WebSocket) -> None:
        self._websockets[token_of(websocket.scope)] = websocket
        await websocket.accept()
        while True:
            await websocket.receive_text()

    async def _sends(self, websocket: WebSocket) -> None:
        self._websockets[token_of(websocket.scope)] = websocket
        await websocket.accept()
        while True:
            await websocket.send_bytes(LARGE)

    async def _events(self, request: Request) -> Response:
        return StreamingResponse(self._items(request, b"data: x\n\n", EVENT), media_type="text/event-stream")

    async def _download(self, request: Request) -> Response:
        return StreamingResponse(self._items(request, LARGE, 0))

    async def _items(self, request: Request, item: bytes, pause: float) -> AsyncIterator[bytes]:
        token = token_of(request.scope)
        while token in self.tokens or way_of(token) != "by hand":
            yield item
            await asyncio.sleep(pause)

    async def _request(self, _: Request) -> Response:
        await anyio.sleep_forever()
        raise AssertionError

    async def revoke(self, token: str) -> None:
        self.tokens.discard(token)
        match way_of(token):
            case "by hand" if token in self._websockets:
                await self._websockets[token].close(4401, "logged out")
            case "cancel" if task := self._tasks[token]:
                task.cancel()
            case "asyncrevoke":
                await self._live[token].revoke("logged out")


def way_of(token: str) -> str:
    return WAYS[int(token[-1])]


# -- the clients --


class Client:
    """A connection of its own. It reads to its end, unless it is stalled."""

    def __init__(self, kind: Kind, token: str) -> None:
        self.got = ""
        self._kind, self._url = kind, f"{kind.path}?{token}"
        self._websocket = kind.path in ("/receives", "/sends")
        self._sock = socket.socket()
        self._sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
        self._ends = ("", "")  # of the connection, as the kernel writes them

    async def run(self, port: int) -> None:
        self._sock.setblocking(False)
        await asyncio.get_running_loop().sock_connect(self._sock, ("127.0.0.1", port))
        self._ends = f":{port:04X}", f":{self._sock.getsockname()[1]:04X}"
        if self._websocket and not self._kind.stalled:
            await self._receive(f"ws://127.0.0.1:{port}{self._url}")
            return
        reader, writer = await asyncio.open_connection(sock=self._sock)
        head = "Host: x\r\n"
        if self._websocket:
            head += "Upgrade: websocket\r\nConnection: Upgrade\r\nSec-WebSocket-Version: 13\r\n"
            head += "Sec-WebSocket-Key: MDEyMzQ1Njc4OWFiY2RlZg==\r\n"
        writer.write(f"GET {self._url} HTTP/1.1\r\n{head}\r\n".encode())
        if self._kind.stalled:
            writer.transport.pause_reading()  # type: ignore[attr-defined]  # asyncio's has it
            await anyio.sleep_forever()
        try:
            await self._read(reader)
        except ConnectionError:
            self.got = "cut off"

    async def _receive(self, url: str) -> None:
        async with connect(url, sock=self._sock, proxy=None) as websocket:
            with contextlib.suppress(ConnectionClosed):
                await websocket.recv()
        self.got = f"code {websocket.close_code} {websocket.close_reason}".rstrip()

    async def _read(self, reader: asyncio.StreamReader) -> None:
        status = int((await reader.readline()).split()[1])
        if status != 200:
            self.got = f"status {status}"
            return
        last = b""
        while (line := await reader.readline()) not in (b"", b"0\r\n"):
            last = line if line.startswith(b"event:") else last
        self.got = "its end" if line else "cut off"
        if last:
            self.got = f"`{last.decode().strip()}`, {self.got}"

    def is_open(self) -> bool:
        """Whether the server has a descriptor of this connection."""
        for line in pathlib.Path("/proc/self/net/tcp").read_text().splitlines()[1:]:
            _, local, remote, *_, inode = line.split()[:10]
            if (local[-5:], remote[-5:]) == self._ends and inode != "0":
                return True
        return False


# -- all of them --


async def find(service: Service, port: int, kind: Kind, way: str) -> list[str]:
    """Revoke one token of one connection, and see what comes of it."""
    token = f"{KINDS.index(kind)}{WAYS.index(way)}"
    service.tokens.add(token)
    client = Client(kind, token)
    connected = asyncio.create_task(client.run(port))
    await asyncio.sleep(SETTLED)
    begin = time.monotonic()
    revoking = asyncio.create_task(service.revoke(token))

    async def when(true: Callable[[], bool]) -> str:
        with anyio.move_on_after(PATIENCE):
            while not true():  # noqa: ASYNC110
                await asyncio.sleep(0.2)
            seconds = time.monotonic() - begin
            return f"after {seconds:.0f} s" if seconds > 1.5 else "at once"
        return "never"

    times = await asyncio.gather(
        when(lambda: token in service.ended), when(revoking.done), when(lambda: not client.is_open())
    )
    if times[-1] != "never" and not kind.stalled:
        await asyncio.wait([connected])
    told = service.ended.get(token, "")
    for task in connected, revoking:
        task.cancel()
    return [kind.name, way, told, client.got, *times]


async def main() -> None:
    logging.disable()
    print_versions("starlette", "fastapi", "uvicorn", "websockets", "wsproto", "httptools", "h11")
    found = []
    for server in list(SERVERS)[:2]:
        service = Service()
        async with served(service, server) as port:
            found.append(await asyncio.gather(*(find(service, port, kind, way) for kind in KINDS for way in MEASURED)))
    lines = [[" / ".join(dict.fromkeys(cell)) for cell in zip(*rows, strict=True)] for rows in zip(*found, strict=True)]
    table(["", "way", "leaves the application", "client gets", "ended", "returned", "closed"], lines)


if __name__ == "__main__":
    asyncio.run(main())
