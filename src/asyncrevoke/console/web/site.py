"""Terminals and shares in the browser, whose terminals, logins and users can be taken away while in use.

All that is open here is below one tree of keys, user > login > terminal, and each takes along what is below it. Shares are
those of console servers, which are asked over their sockets.
"""

import asyncio
import contextlib
import hashlib
import json
import os
import pathlib
import re
import secrets
import time
from collections.abc import AsyncIterator, Collection, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import anyio
from starlette.applications import Starlette
from starlette.exceptions import HTTPException, WebSocketException
from starlette.requests import HTTPConnection, Request
from starlette.responses import FileResponse, JSONResponse, PlainTextResponse, Response
from starlette.routing import Mount, Route, WebSocketRoute
from starlette.staticfiles import StaticFiles
from starlette.types import Receive, Scope, Send
from starlette.websockets import WebSocket, WebSocketDisconnect

from asyncrevoke.adapters.asgi import RevokableApp, Session
from asyncrevoke.adapters.pty import PtySession, PtyStream, start_pty
from asyncrevoke.control.client import Record
from asyncrevoke.control.lines import ControlError
from asyncrevoke.lowlevel import Registry, Revokable, RevokedError, printable, revoke_all

from .shares import MODES, Shares

_HERE = pathlib.Path(__file__).parent
ENDED = 4401  # the close code of RevokableApp
REASON = 123  # bytes of the reason in the close frame of a websocket (RFC 6455, 5.5)
PIECE, WINDOW = 4096, 16  # bytes in a message to the browser, and messages that it has not drawn yet
AHEAD, TERMINALS = 64, 10  # messages that the program has not read yet; terminals of a user
NAME, ANY = r"\w[\w .+-]{0,39}", r"(?s:.*)"  # patterns of what pages send
# xterm.js makes its styles as it runs. A page that frames ours could have its buttons clicked.
POLICY = {"content-security-policy": "default-src 'self'; style-src 'self' 'unsafe-inline'; frame-ancestors 'none'"}

Keys = asyncio.Queue[bytes]


@dataclass
class Login:
    path: tuple[str, ...]
    node: Revokable  # open while the login is good
    facts: dict[str, Any]


@dataclass
class Terminal:
    path: tuple[str, ...]
    node: Revokable  # its key
    session: PtySession
    alone: anyio.CancelScope  # of what runs while no browser is attached
    browsers: int = 0
    size: tuple[int, int] = 24, 80

    @property
    def facts(self) -> dict[str, Any]:
        command = ""
        with contextlib.suppress(OSError):  # of the process group that has the terminal; it may have ended
            group = pathlib.Path(f"/proc/{self.session.pid}/stat").read_text().rpartition(")")[2].split()[5]
            command = pathlib.Path(f"/proc/{group}/cmdline").read_text(errors="replace")
        runs = printable(command.replace("\0", " ").strip())
        people = [each.name for each in self.session.clients if each.name != "scrollback"]
        return {"path": self.path, "runs": runs, "people": people, "size": self.size}


class Site:
    """The application. Its logins and terminals live in this process, and end with it.

    :param passwords: by the user's name
    :param origin: where browsers find it, such as https://consoles.example. What other pages send is refused
    :param argv: the program of a new terminal, which runs as who runs this; none: there are no terminals
    :param admins: users who see and take away everything
    :param user_header: in which a proxy tells who the user is; then there are no passwords
    :param shares: of console servers
    :param grace: seconds that a terminal stays without a browser
    :param expiry: seconds that a login is good for
    """

    def __init__(
        self,
        passwords: Mapping[str, str],
        origin: str,
        argv: Sequence[str],
        *,
        admins: Collection[str] = ("admin",),
        user_header: str = "",
        shares: Shares | None = None,
        grace: float = 60,
        expiry: float = 28800,
    ) -> None:
        self.live = Registry("everybody")
        self.logins: dict[bytes, Login] = {}  # by the digest of the secret
        self.terminals: dict[tuple[str, str], Terminal] = {}  # by user and name
        self._passwords = {name: _digest(password) for name, password in passwords.items()}
        self._argv, self._origin, self._grace, self._expiry = argv, origin, grace, expiry
        self._admins, self._user_header, self._shares = admins, user_header.lower().encode(), shares
        routes = [
            Route("/", lambda _: FileResponse(_HERE / "static" / "index.html", headers=POLICY)),
            Route("/login", lambda _: JSONResponse({"asks": not user_header})),
            Route("/login", self.login, methods=["POST"]),
            Route("/terminals", self.start, methods=["POST"]),
            Route("/revoke", self.revoke, methods=["POST"]),
            WebSocketRoute("/live", self.tell),
            WebSocketRoute("/terminals/{user}/{name}", self.attach),
            WebSocketRoute("/shares/{name}", self.share),
            Mount("/static", StaticFiles(directory=_HERE / "static")),
            Mount("/xterm", StaticFiles(directory=_HERE / "xterm")),
        ]
        app = Starlette(routes=routes, lifespan=self._lifespan, max_body_size=10_000)
        self._app = RevokableApp(app, self.live, self._key, close_code=ENDED, shutdown="the server is stopping")

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Refuse what other pages send. A cookie goes to every port of a host: only the origin tells our page from them."""
        safe = scope["type"] == "lifespan" or scope.get("method") in ("GET", "HEAD")
        ours = safe or dict(scope["headers"]).get(b"origin") == self._origin.encode()
        refusal = PlainTextResponse(f"only the page of {self._origin} may do that: open it there", 403)
        await (self._app if ours else refusal)(scope, receive, send)

    @contextlib.asynccontextmanager
    async def _lifespan(self, _app: Starlette) -> AsyncIterator[None]:
        async with anyio.create_task_group() as self._tasks:
            yield
            await self.live.root.revoke("the server is stopping")

    def _key(self, scope: Scope) -> tuple[str, ...] | None:
        """Whose a request is. One that revokes is nobody's, as it may revoke the login that it comes from."""
        login = self.logins.get(_digest(HTTPConnection(scope).cookies.get("token", "")))
        if login is not None and self._user_header and login.path[0] != self._named(scope):
            login = None  # the proxy says that it is another user by now
        scope["login"] = login
        return None if login is None or login.node.revoked or scope["path"] == "/revoke" else login.path

    def _named(self, scope: Scope) -> str:
        """Who the proxy says that it is; nobody, if it says nothing, or two things."""
        names = {value for name, value in scope["headers"] if name == self._user_header}
        return names.pop().decode("latin-1") if len(names) == 1 else ""

    def _login(self, connection: HTTPConnection) -> Login:
        login: Login | None = connection.scope["login"]
        if login is None or login.node.revoked:
            if isinstance(connection, WebSocket):
                raise WebSocketException(ENDED, login.node.reason if login else None)
            raise HTTPException(401, "log in first")
        return login

    async def login(self, request: Request) -> Response:
        name, password, device = await _fields(request, name=ANY, password=ANY, device=NAME)
        if self._user_header:
            if not (name := self._named(request.scope)):
                raise HTTPException(403, "the proxy does not say who you are: log in there")
        elif not secrets.compare_digest(_digest(password), self._passwords.get(name, b"")):
            raise HTTPException(403, "this name and password do not match")
        path, secret, now = (name, secrets.token_hex(4)), secrets.token_urlsafe(), time.time()
        facts = {"path": path, "device": device, "since": now, "until": now + self._expiry}
        facts["client"] = request.client and request.client.host
        # One that has ended is kept as long again: its page may ask why only when the laptop is opened.
        self.logins = {each: old for each, old in self.logins.items() if now < old.facts["until"] + self._expiry}
        self.logins[_digest(secret)] = Login(path, self.live[path].open("login"), facts)
        asyncio.get_running_loop().call_later(self._expiry, self.live[path].revoke, "its time is over")
        answer = JSONResponse(name)
        answer.set_cookie("token", secret, httponly=True, samesite="strict", secure=self._origin.startswith("https:"))
        return answer

    async def tell(self, websocket: WebSocket) -> None:
        """Tell a page what its user may take away: whenever that changes, and when it asks. It is closed with the login."""
        await websocket.accept()
        me, told = self._login(websocket).path, None
        with contextlib.suppress(WebSocketDisconnect, KeyError):
            while True:
                every: list[Login | Terminal] = [*self.logins.values(), *self.terminals.values()]
                live = [it.facts for it in every if self._may(me[0], it.path[0]) and not it.node.revoked]
                shares = await self._shares.seen_by(me[0]) if self._shares else None
                news: Record = {"me": me, "admin": me[0] in self._admins, "live": live, "shares": shares}
                news["starts"] = bool(self._argv)
                if news != told:
                    await websocket.send_json(told := news)
                with anyio.move_on_after(0.5):  # of what runs in a terminal nobody tells us
                    await websocket.receive_text()
                    told = None

    async def revoke(self, request: Request) -> Response:
        """Take away a terminal, a login or a user, or everything if the path is empty. Answer when it is gone."""
        path, reason = await _fields(request, path=ANY, reason=ANY)
        user, owner = self._login(request).path[0], path.partition("/")[0]
        reason = printable(reason.strip()) or "no reason was given"
        if path.startswith("/") and self._shares is not None:
            try:
                return JSONResponse(await self._shares.revoke(user, path[1:], reason))
            except ControlError as error:
                raise HTTPException(403 if error.code == "forbidden" else 404, str(error)) from error
        if not self._may(user, owner):
            raise HTTPException(403, "this is not yours to end")
        nodes = [self.live[key] for key in self.live if "/".join(key) == path or (not path and len(key) == 1)]
        if not nodes:
            raise HTTPException(404, "it has ended already")
        if user != owner:  # the browser is told by whom, however long the reason is
            by = f" ({user})"
            reason = reason.encode()[: max(0, REASON - len(by.encode()))].decode(errors="ignore") + by
        return JSONResponse(str(await revoke_all(nodes, reason)))

    async def start(self, request: Request) -> Response:
        """Start a terminal, which is reaped if no browser comes to attach."""
        name = (await _fields(request, name=NAME))[0]
        path = user, _, _ = *self._login(request).path, name
        if not self._argv:
            raise HTTPException(403, "no program for terminals was given here")
        self.terminals = {each: old for each, old in self.terminals.items() if not old.node.released}
        mine = [key[2] for key in self.live if key[0] == user and len(key) == 3]
        if name in mine:
            raise HTTPException(409, f"you have a terminal {name}: choose another name")
        if len(mine) >= TERMINALS:
            raise HTTPException(429, f"you have {TERMINALS} terminals: close one of them first")
        env = {**os.environ, "TERM": "xterm-256color"}
        try:
            session = await start_pty(self._argv, owner=self.live[path], env=env, history=65536, patience=2)
        except OSError as exc:
            raise HTTPException(503, f"the program cannot be started: {exc}") from exc
        self.terminals[user, name] = terminal = Terminal(path, self.live[path], session, anyio.CancelScope())
        self._tasks.start_soon(self._keep, terminal, terminal.alone)
        return JSONResponse(name)

    async def _keep(self, terminal: Terminal, alone: anyio.CancelScope) -> None:
        """While no browser is attached, read for the scrollback, so that the program goes on; until the grace is over."""
        with contextlib.suppress(RevokedError), alone:
            with anyio.move_on_after(self._grace) as grace:
                async with terminal.session.open("scrollback") as stream:
                    async for _ in stream:
                        pass
            if not terminal.browsers:
                over = f"nobody looked at it for {self._grace:g} s"
                terminal.node.revoke(over if grace.cancelled_caught else "the program has ended")

    async def attach(self, websocket: WebSocket) -> None:
        """One browser on a terminal. Its user may type, the admin may watch."""
        await websocket.accept()
        user, device = (login := self._login(websocket)).path[0], login.facts["device"]
        terminal = self.terminals.get((websocket.path_params["user"], websocket.path_params["name"]))
        if terminal is None or terminal.node.revoked or not self._may(user, terminal.path[0]):
            raise WebSocketException(ENDED, "there is no such terminal")
        session: Session = websocket.scope["asyncrevoke"]
        session.belongs_to(*terminal.path)
        keys = Keys(AHEAD) if user == terminal.path[0] else None
        name = f"{user} (watching)" if keys is None else f"{user} ({device})"
        stream = terminal.session.open(name, also=[session.handle], replay=True)
        terminal.browsers += 1
        terminal.alone.cancel()  # from here on the browser reads, as fast as it can, and the program waits for it
        try:
            async with anyio.create_task_group() as tasks:
                unread = anyio.Semaphore(WINDOW, max_value=WINDOW)
                tasks.start_soon(_listen, websocket, terminal, keys, unread)
                if keys is not None:
                    tasks.start_soon(_type, keys, stream)
                with contextlib.suppress(anyio.EndOfStream):
                    while data := await stream.receive(PIECE):
                        with stream.handle.using():  # so that it ends here, too, if it is too slow
                            await unread.acquire()
                            await websocket.send_bytes(data)
                terminal.node.revoke("the program has ended")
        except* RevokedError:  # perhaps of the stream alone, as too slow beside another browser
            session.revoke(stream.handle.reason)
        except* (ValueError, RecursionError, asyncio.QueueFull):
            session.revoke("the browser has sent what is not understood, or more than the program reads")
        except* WebSocketDisconnect:
            pass
        finally:
            terminal.browsers -= 1
            if not terminal.browsers and not terminal.node.revoked:
                terminal.alone = anyio.CancelScope()
                self._tasks.start_soon(self._keep, terminal, terminal.alone)

    def _may(self, user: str, owner: str) -> bool:
        return user == owner or user in self._admins

    async def share(self, websocket: WebSocket) -> None:
        """One browser on a share."""
        await websocket.accept()
        user, name = self._login(websocket).path[0], websocket.path_params["name"]
        mode = websocket.query_params.get("mode", "write")
        if self._shares is None or mode not in MODES:
            raise WebSocketException(ENDED, "there is no such share")
        session: Session = websocket.scope["asyncrevoke"]
        try:
            session.revoke(await self._shares.attach(websocket, user, name, mode))
        except* (ControlError, OSError) as errors:
            session.revoke(str(errors.exceptions[0]))
        except* (ValueError, RecursionError):
            session.revoke("the browser has sent what is not understood")
        except* WebSocketDisconnect:
            pass


async def _listen(websocket: WebSocket, terminal: Terminal, keys: Keys | None, unread: anyio.Semaphore) -> None:
    """To what the browser sends, until it is gone: keys as bytes, all else as JSON: "read", or the new size."""
    while (message := await websocket.receive())["type"] == "websocket.receive":
        match json.loads(message["text"]) if message.get("text") is not None else message["bytes"]:
            case "read":
                unread.release()
            case bytes(data) if keys is not None:
                keys.put_nowait(data)
            case [int(rows), int(columns)] if keys is not None and 0 < rows <= 1000 and 0 < columns <= 1000:
                terminal.session.resize(rows, columns)
                terminal.size = rows, columns
            case other:
                raise ValueError(other)
    raise WebSocketDisconnect


async def _type(keys: Keys, stream: PtyStream) -> None:
    """Apart from those who listen, as a program that cannot print before a "read" does not read keys."""
    while True:
        await stream.send(await keys.get())


async def _fields(request: Request, **patterns: str) -> list[str]:
    with contextlib.suppress(ValueError, RecursionError, LookupError, TypeError):
        body = json.loads(await request.body())
        if all(re.fullmatch(pattern, body[name]) for name, pattern in patterns.items()):
            return [body[name] for name in patterns]
    raise HTTPException(400, f"give a JSON object of strings like {patterns}")


def _digest(secret: str) -> bytes:
    """Good for random secrets only: a password that a person chose needs scrypt."""
    return hashlib.sha256(secret.encode(errors="surrogatepass")).digest()
