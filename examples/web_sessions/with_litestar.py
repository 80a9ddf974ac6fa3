"""Litestar: ``uvicorn --app-dir examples/web_sessions with_litestar:app``. The token is a cookie, such as "alice.t1"."""

from collections.abc import AsyncIterator
from typing import Any

import anyio
from litestar import Litestar, Request, get, post
from litestar.connection import ASGIConnection
from litestar.exceptions import PermissionDeniedException
from litestar.response import ServerSentEvent

from asyncrevoke import Registry
from asyncrevoke.adapters.asgi import RevokableApp

live, logins = Registry(), {("alice", "t1"), ("bob", "t2")}


async def ticks() -> AsyncIterator[str]:
    try:
        while True:
            yield "tick"
            await anyio.sleep(0.1)
    finally:
        print("has left")


@get("/clock")
async def clock() -> ServerSentEvent:
    return ServerSentEvent(ticks())


@post("/revoke/{user:str}/{token:str}")
async def revoke(request: Request[Any, Any, Any]) -> str:
    if request.headers.get("authorization") != "Bearer secret":
        raise PermissionDeniedException
    login = request.path_params["user"], request.path_params["token"]
    logins.discard(login)  # first, so that who comes now is refused
    return str(await live[login].revoke("logged out"))


def key(scope: Any) -> tuple[str, ...] | None:
    token = ASGIConnection(scope).cookies.get("token", "")
    return None if scope["path"].startswith("/revoke/") else tuple(token.split("."))


app = RevokableApp(Litestar([clock, revoke]), live, key, valid=lambda *login: login in logins)
