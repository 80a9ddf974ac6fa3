"""ASGI: what servers may hand on, and what applications and clients do in any order."""

import contextlib
import itertools
import random
from collections.abc import AsyncIterator
from typing import Any

import anyio
import anyio.lowlevel
from mutation import One

from asyncrevoke import Registry, RevokedError
from asyncrevoke.adapters.asgi import RevokableApp

ODD: list[Any] = [
    None,
    b"",
    "",
    [],
    {},
    ("127.0.0.1", None),
    [(b"cookie", b"\xff\0")],
    [(b"", b"")] * 50,
    {"x": {}},
    "\ud800",
    0,
]
COMES: list[dict[str, Any]] = [
    {"type": "http.request", "body": b"x", "more_body": True},
    {"type": "http.request"},
    {"type": "http.disconnect"},
    {"type": "websocket.connect"},
    {"type": "websocket.receive", "text": "x", "bytes": None},
    {"type": "websocket.receive", "bytes": b"x"},
    {"type": "websocket.disconnect", "code": 1006},
    {"type": "websocket.disconnect"},
]
GOES: list[dict[str, Any]] = [
    {"type": "http.response.start", "status": 200, "headers": [(b"content-type", b"text/event-stream")]},
    {"type": "http.response.start", "status": 204},
    {"type": "http.response.body", "body": b"data: x\n\n", "more_body": True},
    {"type": "http.response.body"},
    {"type": "websocket.accept"},
    {"type": "websocket.send", "text": "x"},
    {"type": "websocket.close", "code": 1000},
]


class OwnError(Exception):
    """What an application raises."""


def scope_of(rng: random.Random) -> dict[str, Any]:
    kind = rng.choice(("http", "websocket"))
    scope: dict[str, Any] = {"type": kind, "asgi": {"version": "3.0"}, "path": "/", "headers": [], "query_string": b""}
    for name in rng.sample(
        ["path", "headers", "query_string", "client", "server", "state", "extensions", "subprotocols", "scheme"],
        rng.randint(0, 4),
    ):
        scope[name] = rng.choice(ODD)
    return scope


class Round:
    """One connection, with what its client, its server and its application do by chance."""

    def __init__(self, rng: random.Random, live: Registry, key: str) -> None:
        self._rng = rng
        self._node = live[key]
        self.scope = scope_of(rng)
        self.sent: list[str] = []
        self.revoked = False

    def _one_of(self, messages: list[dict[str, Any]]) -> dict[str, Any]:
        return self._rng.choice([each for each in messages if each["type"].startswith(self.scope["type"])])

    async def endpoint(self, _scope: Any, receive: Any, send: Any) -> None:
        for _ in range(self._rng.randint(0, 8)):
            match self._rng.randrange(20):
                case 0:
                    raise OwnError
                case each if each < 6:
                    await receive()
                case each if each < 9:
                    await anyio.lowlevel.checkpoint()
                case _:
                    await send(self._one_of(GOES))
        if self._rng.random() < 0.3:
            await anyio.sleep_forever()

    async def receive(self) -> Any:
        await anyio.lowlevel.checkpoint()
        return self._one_of(COMES)

    async def send(self, message: Any) -> None:
        await anyio.lowlevel.checkpoint()
        if self._rng.random() < 0.05:
            raise OSError("the client has gone")
        self.sent.append(message["type"])

    async def revoke(self) -> None:
        for _ in range(self._rng.randint(0, 30)):
            await anyio.lowlevel.checkpoint()
        self.revoked = True
        await self._node.revoke("fuzz")


@contextlib.asynccontextmanager
async def answers() -> AsyncIterator[One]:
    """The endpoint ends by itself, or by its own error; or it is taken away, and that only if it was revoked."""
    live = Registry()
    numbers = itertools.count()

    async def one(rng: random.Random) -> list[str]:
        this = Round(rng, live, key := f"token{next(numbers)}")
        app = RevokableApp(this.endpoint, live, lambda _: (key,), limit=0.05, shutdown=None)
        ended = "returned"
        async with anyio.create_task_group() as tasks:
            tasks.start_soon(this.revoke)
            try:
                await app(this.scope, this.receive, this.send)
            except RevokedError:
                assert this.revoked, "taken away, and nobody has revoked it"
                ended = "taken away"
            except (OwnError, OSError) as exc:
                ended = f"raised {type(exc).__name__}"
        assert not live[key].in_use, "it is still inside"
        return [f"{this.scope['type']} {ended} {' '.join(dict.fromkeys(this.sent))}"]

    yield one
    await live.root.aclose()
