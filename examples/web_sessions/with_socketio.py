"""python-socketio: ``uvicorn --app-dir examples/web_sessions with_socketio:app``. The token is a cookie: "alice.t1"."""

from typing import Any

from socketio import ASGIApp, AsyncServer
from starlette.requests import HTTPConnection, Request
from starlette.responses import Response
from starlette.routing import Route, Router

from asyncrevoke import Registry, Revokable
from asyncrevoke.adapters.asgi import RevokableApp

live, logins, seats = Registry(), {("alice", "t1"), ("bob", "t2")}, dict[str, Revokable]()
sio = AsyncServer(async_mode="asgi", async_handlers=False)  # else handlers run in tasks that nobody ends


def key(scope: Any) -> tuple[str, ...] | None:
    admin = scope["path"].startswith("/revoke/")
    return None if admin else tuple(HTTPConnection(scope).cookies.get("token", "").split("."))


@sio.event
async def connect(sid: str, environ: dict[str, Any], _: object) -> None:
    (login,) = environ["asgi.scope"]["asyncrevoke"].keys
    seats[sid] = live[login].open(
        "socket.io", release=lambda: sio.disconnect(sid)
    )  # all that is open between two polls


@sio.event
async def disconnect(sid: str, _: str) -> None:
    print("has left")
    seats.pop(sid).close()


@sio.event
async def message(sid: str, text: str) -> None:
    await sio.send(text, to=sid)


async def revoke(request: Request) -> Response:
    if request.headers.get("authorization") != "Bearer secret":
        return Response(status_code=403)
    login = request.path_params["user"], request.path_params["token"]
    logins.discard(login)  # first, so that who comes now is refused
    return Response(str(await live[login].revoke("logged out")))


http = Router([Route("/revoke/{user}/{token}", revoke, methods=["POST"])])
app = RevokableApp(ASGIApp(sio, http), live, key, valid=lambda *login: login in logins)
