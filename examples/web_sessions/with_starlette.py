"""Starlette: ``uvicorn --app-dir examples/web_sessions with_starlette:app``. The token is a cookie, such as "alice.t1"."""

from typing import Any

from starlette.applications import Starlette
from starlette.requests import HTTPConnection, Request
from starlette.responses import Response
from starlette.routing import Route, WebSocketRoute
from starlette.websockets import WebSocket

from asyncrevoke import Registry
from asyncrevoke.adapters.asgi import RevokableApp

live, logins = Registry(), {("alice", "t1"), ("bob", "t2")}


async def chat(websocket: WebSocket) -> None:
    await websocket.accept()
    try:
        async for text in websocket.iter_text():
            await websocket.send_text(text)
    finally:
        print("has left")


async def revoke(request: Request) -> Response:
    if request.headers.get("authorization") != "Bearer secret":
        return Response(status_code=403)
    login = request.path_params["user"], request.path_params["token"]
    logins.discard(login)  # first, so that who comes now is refused
    return Response(str(await live[login].revoke("logged out")))


def key(scope: Any) -> tuple[str, ...] | None:
    token = HTTPConnection(scope).cookies.get("token", "")
    return None if scope["path"].startswith("/revoke/") else tuple(token.split("."))


routes = [WebSocketRoute("/chat", chat), Route("/revoke/{user}/{token}", revoke, methods=["POST"])]
app = RevokableApp(Starlette(routes=routes), live, key, valid=lambda *login: login in logins)
