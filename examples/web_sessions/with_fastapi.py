"""FastAPI, with a dependency: ``uvicorn --app-dir examples/web_sessions with_fastapi:app``. The token is a cookie."""

from typing import Annotated

from fastapi import Depends, FastAPI, Header, HTTPException, WebSocket
from fastapi.requests import HTTPConnection

from asyncrevoke import Registry
from asyncrevoke.adapters.asgi import RevokableApp, Session

api, live, logins = FastAPI(), Registry(), {("alice", "t1"), ("bob", "t2")}


async def belongs(connection: HTTPConnection) -> Session:  # without "async" it would run in a thread
    session: Session = connection.scope["asyncrevoke"]
    login = tuple(connection.cookies.get("token", "").split("."))  # such as "alice.t1"
    session.belongs_to(*login)
    if login not in logins:  # after it, so that no revocation in between is missed
        raise HTTPException(401)
    return session


@api.websocket("/chat")
async def chat(websocket: WebSocket, _: Annotated[Session, Depends(belongs)]) -> None:
    await websocket.accept()
    try:
        async for text in websocket.iter_text():
            await websocket.send_text(text)
    finally:
        print("has left")


@api.post("/revoke/{user}/{token}")
async def revoke(user: str, token: str, authorization: Annotated[str, Header()] = "") -> str:
    if authorization != "Bearer secret":
        raise HTTPException(403)
    logins.discard((user, token))  # first, so that who comes now is refused
    return str(await live[user, token].revoke("logged out"))


app = RevokableApp(api, live)
