"""A web terminal whose terminals, logins and users can be taken away while in use: docs/web-terminal.md explains it.

Everything is below one tree of keys, user > token > terminal, and each parent takes along what is below it::

    alice / 5f0c2a9e        a login, by the token's public name
            |- login          held while the token is valid; its release forgets the token
            `- 8d41b7c3     a terminal
                |- bash       held while the program runs; the pty session is below it
                `- browser    one for each websocket, which its release closes; also below the login of who looks
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import hashlib
import json
import os
import pathlib
import secrets
import sys
import time
from collections.abc import AsyncIterable, AsyncIterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import anyio
import uvicorn
from starlette.applications import Starlette
from starlette.exceptions import HTTPException
from starlette.requests import HTTPConnection, Request
from starlette.responses import FileResponse, JSONResponse, PlainTextResponse, Response
from starlette.routing import Mount, Route, WebSocketRoute
from starlette.staticfiles import StaticFiles
from starlette.types import ASGIApp, Receive, Scope, Send
from starlette.websockets import WebSocket, WebSocketDisconnect, WebSocketDisconnected
from uvicorn.protocols.websockets.websockets_sansio_impl import WebSocketsSansIOProtocol

from asyncrevoke import Registry, Revokable, RevokedError, revoke_all
from asyncrevoke.adapters.pty import PtySession, PtyStream, start_pty

HERE = pathlib.Path(__file__).parent
GONE, DETACHED = 4000, 4001  # close codes: the terminal or the login is gone; only this websocket is, attach again
PIECE, WINDOW = 4096, 16  # bytes in a message to the browser, and messages that it has not read yet
AHEAD, TERMINALS = 64, 10  # messages that the program has not read yet; terminals of a user
# xterm.js makes its styles as it runs. A page that frames ours could have its buttons clicked.
POLICY = {"content-security-policy": "default-src 'self'; style-src 'self' 'unsafe-inline'; frame-ancestors 'none'"}


@dataclass
class Terminal:
    key: Revokable
    session: PtySession
    alone: anyio.CancelScope  # of what runs while no browser is attached
    browsers: int = 0


class WebTerminal:
    """The application. All of its state lives in this process, and ends with it. "admin" sees and takes everything."""

    def __init__(
        self, passwords: Mapping[str, str], origin: str, argv: Sequence[str], grace: float = 60, expiry: float = 28800
    ) -> None:
        self.live = Registry("everybody")
        self.terminals: dict[tuple[str, str], Terminal] = {}  # by user and name
        self._logins: dict[bytes, tuple[str, str, Revokable]] = {}  # user, token, node: by the digest of the secret
        self._passwords = {name: _digest(password) for name, password in passwords.items()}
        self._argv, self._origin, self._grace, self._expiry = argv, origin, grace, expiry
        routes = [
            Route("/", lambda _: FileResponse(HERE / "static" / "index.html", headers=POLICY)),
            Route("/login", self.login, methods=["POST"]),
            Route("/live", self.who),
            Route("/terminals", self.start, methods=["POST"]),
            Route("/revoke", self.revoke, methods=["POST"]),
            WebSocketRoute("/terminals/{name}", self.attach),
            Mount("/static", StaticFiles(directory=HERE / "static")),
            Mount("/vendor", StaticFiles(directory=HERE / "node_modules" / "@xterm", check_dir=False)),
        ]
        self._app = Starlette(routes=routes, lifespan=self._lifespan, max_body_size=10_000)

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Refuse what other pages send. A cookie goes to every port of a host: only the origin tells our page from them."""
        app: ASGIApp = self._app
        harmless = scope["type"] == "lifespan" or scope.get("method") in ("GET", "HEAD")
        if not harmless and dict(scope["headers"]).get(b"origin") != self._origin.encode():
            app = PlainTextResponse(f"only the page of {self._origin} may do that: open it there", 403)
        await app(scope, receive, send)

    @contextlib.asynccontextmanager
    async def _lifespan(self, _app: Starlette) -> AsyncIterator[None]:
        async with anyio.create_task_group() as self._tasks:
            yield
            await self.live.root.revoke("the server is stopping")

    async def login(self, request: Request) -> Response:
        name, password = await _fields(request, name=str, password=str)
        if not secrets.compare_digest(_digest(password), self._passwords.get(name, b"")):
            raise HTTPException(403, "wrong name or password")
        secret, public = secrets.token_urlsafe(), secrets.token_hex(4)
        digest = _digest(secret)
        key = self.live[name, public]
        node = key.open(_named("login", request), release=lambda: self._logins.pop(digest))
        self._logins[digest] = name, public, node
        asyncio.get_running_loop().call_later(self._expiry, key.revoke, "the login has expired")
        answer = JSONResponse(name)
        answer.set_cookie("token", secret, httponly=True, samesite="strict", secure=self._origin.startswith("https:"))
        return answer

    def _login(self, connection: HTTPConnection) -> tuple[str, str, Revokable]:
        login = self._logins.get(_digest(connection.cookies.get("token", "")))
        if login is None or login[2].revoked:
            raise HTTPException(401, "log in first")
        return login

    async def who(self, request: Request) -> Response:
        """All that the user may take away, with who is inside."""
        user, token, _ = self._login(request)
        keys = {path for path in self.live if user in ("admin", path[0])}
        users = {key: [each.name for each in self.live[key].users()] for key in sorted(keys)}
        live = [{"path": key, "inside": [each for each in users[key] if (*key, each) not in keys]} for key in users]
        return JSONResponse({"user": user, "token": token, "live": live})

    async def revoke(self, request: Request) -> Response:
        """Take a terminal, a login, a user or, by an empty path, everything away, and answer when it is gone."""
        path, reason = await _fields(request, path=list, reason=str)
        user, _, _ = self._login(request)
        if user not in ("admin", *path[:1]):
            raise HTTPException(403, "this is not yours to take away")
        nodes = [self.live[key] for key in self.live if list(key) == path or (not path and len(key) == 1)]
        if not nodes:
            raise HTTPException(404, "nobody uses that")
        reason = "".join(each if each.isprintable() else "?" for each in reason) or "no reason given"
        return JSONResponse(str(await revoke_all(nodes, f"{user}: {reason}")))

    async def start(self, request: Request) -> Response:
        """Start a terminal, which is reaped if no browser comes to attach."""
        user, token, _ = self._login(request)
        if sum(key[0] == user and len(key) == 3 for key in self.live) >= TERMINALS:
            raise HTTPException(429, f"you have {TERMINALS} terminals: take one of them away first")
        name = secrets.token_hex(4)
        key = self.live[user, token, name]
        held = key.open(_named(self._argv[0], request), release=lambda: self.terminals.pop((user, name), None))
        try:
            env = {**os.environ, "TERM": "xterm-256color"}
            session = await start_pty(self._argv, owner=held, env=env, history=65536, patience=2)
        except BaseException as exc:
            held.close()
            if isinstance(exc, RevokedError):
                raise HTTPException(403, f"it was taken away: {held.reason}") from exc
            if isinstance(exc, OSError):
                raise HTTPException(503, f"the program cannot be started: {exc}") from exc
            raise
        self.terminals[user, name] = terminal = Terminal(key, session, anyio.CancelScope())
        self._tasks.start_soon(self._keep, terminal, terminal.alone)
        return JSONResponse(name)

    async def _keep(self, terminal: Terminal, alone: anyio.CancelScope) -> None:
        """While no browser is attached, read for the scrollback, so that the program goes on; until the grace is over."""
        with contextlib.suppress(RevokedError), alone:
            why = f"no browser was attached for {self._grace:g} s"
            with anyio.move_on_after(self._grace):
                async with terminal.session.open("scrollback") as stream:
                    async for _ in stream:
                        pass
                why = "the program has ended"
            if not terminal.browsers:
                terminal.key.revoke(why)

    async def attach(self, websocket: WebSocket) -> None:
        """One browser on a terminal. Whatever ends it, the browser is told by the close code and the reason."""

        def close() -> object:
            gone = terminal.key.revoked or login.revoked
            return _close(websocket, GONE if gone else DETACHED, browser.reason)

        await websocket.accept()
        name = _named("browser", websocket)
        try:
            user, _, login = self._login(websocket)
            terminal = self.terminals[user, websocket.path_params["name"]]
            browser = terminal.key.open(name, also=[login], release=close)
        except (HTTPException, KeyError, RevokedError) as error:
            await _close(websocket, GONE, getattr(error, "reason", "there is no such terminal: log in, start another"))
            return
        stream = terminal.session.open(name, also=[browser], replay=True)
        terminal.browsers += 1
        terminal.alone.cancel()  # from here on the browser reads, as fast as it can, and the program waits for it
        try:
            async with anyio.create_task_group() as tasks:
                unread = anyio.Semaphore(WINDOW, max_value=WINDOW)
                tasks.start_soon(_listen, websocket, stream, terminal.session, unread)
                await _show(websocket, stream, unread)
                terminal.key.revoke("the program has ended")
        except* RevokedError:  # perhaps of the stream alone, as too slow beside another browser
            browser.revoke(stream.handle.reason)
        except* (ValueError, RecursionError, anyio.WouldBlock):
            browser.revoke("the browser has sent what is not understood, or more than the program reads")
        except* WebSocketDisconnect:
            pass
        finally:
            terminal.browsers -= 1
            if not terminal.browsers and not terminal.key.revoked:
                terminal.alone = anyio.CancelScope()
                self._tasks.start_soon(self._keep, terminal, terminal.alone)
            await browser.aclose()


async def _show(websocket: WebSocket, stream: PtyStream, unread: anyio.Semaphore) -> None:
    """To the browser, until the program ends."""
    with contextlib.suppress(anyio.EndOfStream):
        while True:
            data = await stream.receive(PIECE)
            with stream.handle.using():  # nothing is sent once a revocation was reported
                await unread.acquire()
                await websocket.send_bytes(data)


async def _listen(websocket: WebSocket, stream: PtyStream, session: PtySession, unread: anyio.Semaphore) -> None:
    """To what the browser sends, until it is gone: keys as bytes, all else as JSON: "read", or the new size."""
    keys, typed = anyio.create_memory_object_stream[bytes](AHEAD)
    async with typed, keys, anyio.create_task_group() as tasks:
        # Apart, as a program that cannot print before a "read" does not read keys.
        tasks.start_soon(_type, typed, stream)
        while (message := await websocket.receive())["type"] == "websocket.receive":
            match json.loads(message["text"]) if message.get("text") is not None else message["bytes"]:
                case bytes(data):
                    keys.send_nowait(data)
                case "read":
                    unread.release()
                case [int(rows), int(columns)] if 0 < rows <= 1000 and 0 < columns <= 1000:
                    session.resize(rows, columns)
                case other:
                    raise ValueError(other)
        raise WebSocketDisconnect


async def _type(typed: AsyncIterable[bytes], stream: PtyStream) -> None:
    async for data in typed:
        await stream.send(data)


async def _close(websocket: WebSocket, code: int, reason: str) -> None:
    with contextlib.suppress(WebSocketDisconnect, WebSocketDisconnected), anyio.move_on_after(2) as waiting:
        await websocket.close(code, reason.encode()[:123].decode(errors="ignore"))  # RFC 6455 has room for 123
    if waiting.cancelled_caught:
        websocket.state.transport.abort()  # and what it has not taken is thrown away


async def _fields(request: Request, **kinds: type) -> list[Any]:
    with contextlib.suppress(ValueError, RecursionError, LookupError, TypeError):
        body = json.loads(await request.body())
        if all(isinstance(body[name], kind) for name, kind in kinds.items()):
            return [body[name] for name in kinds]
    raise HTTPException(400, f"give a JSON object of {', '.join(f'{name}: {kinds[name].__name__}' for name in kinds)}")


def _digest(secret: str) -> bytes:
    """Good for random secrets only: a password that a person chose needs scrypt."""
    return hashlib.sha256(secret.encode(errors="surrogatepass")).digest()


def _named(what: str, connection: HTTPConnection) -> str:
    return f"{what} from {connection.client.host if connection.client else '?'} since {time.strftime('%H:%M:%S')}"


class Socket(WebSocketsSansIOProtocol):
    """Of what the browser does not take, no more than a message waits in our own memory, and can be thrown away."""

    def connection_made(self, transport: Any) -> None:
        transport.set_write_buffer_limits(0)
        self.app_state = {**self.app_state, "transport": transport}
        super().connection_made(transport)


def server(app: WebTerminal, port: int) -> uvicorn.Server:
    config = uvicorn.Config(app, port=port, ws=Socket, log_level="warning", limit_concurrency=200)
    config.ws_max_size, config.ws_per_message_deflate, config.proxy_headers = 1 << 16, False, False
    config.timeout_graceful_shutdown = 5
    return uvicorn.Server(config)


def main() -> None:
    parser = argparse.ArgumentParser(description="a web terminal on 127.0.0.1")
    parser.add_argument("--port", type=int, default=8023)
    parser.add_argument("--grace", type=float, default=60.0, help="seconds that a terminal stays without a browser")
    parser.add_argument("argv", nargs="*", default=["bash"], help="the program in each terminal")
    options = parser.parse_args()
    if not (HERE / "node_modules").exists():
        sys.exit(f"xterm.js is missing: run npm ci in {HERE}")
    passwords = {name: secrets.token_urlsafe(12) for name in ("alice", "bob", "admin")}
    origin = f"http://127.0.0.1:{options.port}"
    print(f"Open {origin} and log in as", *(f"  {name}, password {passwords[name]}" for name in passwords), sep="\n")
    with contextlib.suppress(KeyboardInterrupt):
        server(WebTerminal(passwords, origin, options.argv, grace=options.grace), options.port).run()


if __name__ == "__main__":
    main()
