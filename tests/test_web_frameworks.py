"""Each framework's example, under each server as a program of its own, and real clients of it; and endpoints of its kinds."""

import asyncio
import contextlib
import gc
import os
import pathlib
import signal
import subprocess
import sys
import threading
from collections.abc import AsyncIterator, Iterator
from typing import Any, Protocol, Self

import aiohttp
import anyio
import django.conf
import fastapi
import httpx
import litestar
import litestar.response
import pytest
import socketio
from asgiref.sync import sync_to_async
from django.core.asgi import get_asgi_application
from django.http import HttpResponse, StreamingHttpResponse
from django.urls import path
from starlette.applications import Starlette
from starlette.middleware.base import BaseHTTPMiddleware
from starlette.requests import Request
from starlette.responses import Response, StreamingResponse
from starlette.routing import Route
from websockets.asyncio.client import connect
from websockets.exceptions import ConnectionClosed, InvalidStatus

import asgi_servers
from asgi_servers import applications, listener, served
from asyncrevoke import Registry, RevokedError
from asyncrevoke.adapters.asgi import RevokableApp, ended_by_disconnect
from conftest import BACKENDS

pytestmark = [
    pytest.mark.anyio,
    pytest.mark.parametrize("anyio_backend", BACKENDS[:1], indirect=True),
    # The client of python-socketio leaves the body of an answer unread that refuses it.
    pytest.mark.filterwarnings(
        "ignore:Exception ignored in. .function Connection.__del__:pytest.PytestUnraisableExceptionWarning"
    ),
]

EXAMPLES = pathlib.Path(__file__).parent.parent / "examples" / "web_sessions"
SERVERS = {
    "websockets": "uvicorn --ws websockets-sansio --http httptools --fd {}",
    "wsproto": "uvicorn --ws wsproto --http h11 --fd {}",
    "hypercorn": "hypercorn --bind fd://{}",
}


class Client(Protocol):
    """Somebody who is connected."""

    async def lives(self) -> None:
        """Hear from the server once more."""

    async def told(self) -> str:
        """How it is told that this is the end."""


class Websocket:
    def __init__(self, websocket: Any) -> None:
        self.websocket = websocket

    @classmethod
    @contextlib.asynccontextmanager
    async def connected(cls, port: int, token: str) -> AsyncIterator[Client]:
        async with connect(
            f"ws://127.0.0.1:{port}/chat", additional_headers={"Cookie": f"token={token}"}, proxy=None
        ) as websocket:
            yield cls(websocket)

    async def lives(self) -> None:
        await self.websocket.send("hello")
        assert await self.websocket.recv() == "hello"

    async def told(self) -> str:
        with pytest.raises(ConnectionClosed) as closed:
            await self.websocket.recv()
        assert closed.value.rcvd is not None
        return f"{closed.value.rcvd.code} {closed.value.rcvd.reason}"


class Events:
    def __init__(self, response: httpx.Response) -> None:
        response.raise_for_status()
        self.chunks = response.aiter_text()

    @classmethod
    @contextlib.asynccontextmanager
    async def connected(cls, port: int, token: str) -> AsyncIterator[Client]:
        async with (
            httpx.AsyncClient(cookies={"token": token}, trust_env=False) as client,
            client.stream("GET", f"http://127.0.0.1:{port}/clock") as response,
        ):
            yield cls(response)

    async def lives(self) -> None:
        assert "tick" in await anext(self.chunks)

    async def told(self) -> str:
        text = "".join([chunk async for chunk in self.chunks]).strip()
        return text[text.find("event:") :]  # it may have ticked once more


class SocketIo:
    def __init__(self, client: Any) -> None:
        self.client = client
        self.heard: asyncio.Queue[str] = asyncio.Queue()
        client.on("message", self.heard.put)
        client.on("disconnect", self.heard.put)

    @classmethod
    @contextlib.asynccontextmanager
    async def over(cls, port: int, token: str, *transports: str) -> AsyncIterator[Self]:
        async with aiohttp.ClientSession(headers={"Cookie": f"token={token}"}) as session:
            client = socketio.AsyncClient(http_session=session, reconnection=False)
            connected = cls(client)
            await client.connect(f"http://127.0.0.1:{port}", transports=[*transports])
            assert client.transport() == transports[-1]
            try:
                yield connected
            finally:
                reading = client.eio.read_loop_task
                await client.eio.disconnect(abort=True)  # without it, it waits for the answer to its poll
                await session.close()
                await reading

    @classmethod
    def by_websocket(cls, port: int, token: str) -> contextlib.AbstractAsyncContextManager[Client]:
        return cls.over(port, token, "websocket")

    @classmethod
    def by_polling(cls, port: int, token: str) -> contextlib.AbstractAsyncContextManager[Client]:
        return cls.over(port, token, "polling")

    @classmethod
    def upgraded(cls, port: int, token: str) -> contextlib.AbstractAsyncContextManager[Client]:
        return cls.over(port, token, "polling", "websocket")

    async def lives(self) -> None:
        await self.client.send("hello")
        assert await self.heard.get() == "hello"

    async def told(self) -> str:
        return await self.heard.get()


REFUSED = (InvalidStatus, httpx.HTTPStatusError, socketio.exceptions.ConnectionError)
CLIENTS = [
    pytest.param("starlette", Websocket.connected, "4401 logged out", id="starlette websocket"),
    pytest.param("fastapi", Websocket.connected, "4401 logged out", id="fastapi websocket"),
    pytest.param(
        "litestar",
        Events.connected,
        'event: revoked\ndata: {"reason": "logged out", "code": 4401}',
        id="litestar events",
    ),
    pytest.param("django_channels", Websocket.connected, "4401 logged out", id="django_channels websocket"),
    pytest.param("socketio", SocketIo.by_websocket, "transport error", id="socketio by_websocket"),
    pytest.param("socketio", SocketIo.by_polling, "transport error", id="socketio by_polling"),
    pytest.param("socketio", SocketIo.upgraded, "transport error", id="socketio upgraded"),
]


@contextlib.contextmanager
def running(example: str, server: str) -> Any:
    """The port of an example under a server, and what gives what the program has printed since."""
    with listener() as sock:
        port, fd = sock.getsockname()[1], sock.fileno()
        command = f"-W error -m {SERVERS[server].format(fd)} with_{example}:app".split()
        env = {**os.environ, "PYTHONUNBUFFERED": "1"}  # hypercorn's worker is a process of its own, without our options
        program = subprocess.Popen(
            [sys.executable, *command], cwd=EXAMPLES, stdout=subprocess.PIPE, pass_fds=[fd], env=env
        )
    assert program.stdout is not None
    os.set_blocking(program.stdout.fileno(), False)
    with program.stdout as stdout:
        try:
            yield port, lambda: stdout.read() or b""
        finally:
            program.terminate()
            try:
                assert program.wait(20) in (0, -signal.SIGTERM)
            finally:
                program.kill()


@pytest.mark.parametrize("server", SERVERS)
@pytest.mark.parametrize(("example", "connected", "end"), CLIENTS)
async def test_the_sessions_of_an_example_end_with_their_token(
    example: str, connected: Any, end: str, server: str
) -> None:
    """When the admin has the answer, the endpoint has cleaned up, and its client is told; another's goes on."""
    with running(example, server) as (port, printed), anyio.fail_after(30):
        where = f"http://127.0.0.1:{port}/revoke/alice/t1"
        async with (
            connected(port, "alice.t1") as alice,
            connected(port, "bob.t2") as bob,
            httpx.AsyncClient(trust_env=False) as admin,
        ):
            await alice.lives()
            await bob.lives()
            assert (await admin.post(where)).status_code == 403
            assert b"has left" not in printed()
            answer = await admin.post(where, headers={"Authorization": "Bearer secret"})
            assert "revoked (logged out): 1 kicked" in answer.text
            said = printed()
            while example == "litestar" and b"has left" not in said:  # if it was sending, its generator ends later
                await anyio.sleep(0.001)
                said += printed()
            assert said.count(b"has left") == 1
            assert await alice.told() == end
            await bob.lives()
            with pytest.raises(REFUSED):
                await connected(port, "alice.t1").__aenter__()
            await bob.lives()


async def test_each_example_is_short_and_tested() -> None:
    """It fits on a screen: less than 40 lines, not counting empty ones."""
    examples = {file.stem.removeprefix("with_"): file for file in EXAMPLES.glob("*.py")}
    assert examples.keys() == {client.values[0] for client in CLIENTS}
    for file in examples.values():
        assert len([line for line in file.read_text().splitlines() if line]) < 40, file


class Endpoints:
    """Where endpoints note what happens to them."""

    def __init__(self) -> None:
        self.log: list[str] = []
        self.begun = anyio.Event()
        self.go = threading.Event()
        self.loop = asyncio.get_running_loop()

    async def wait(self) -> str:
        self.log.append("begun")
        self.begun.set()
        try:
            await anyio.sleep_forever()
        finally:
            self.log.append("cleaned up")
        return ""

    async def stream(self) -> AsyncIterator[str]:
        yield await self.wait()

    def block(self) -> str:
        self.log.append("begun")
        self.loop.call_soon_threadsafe(self.begun.set)
        self.go.wait(20)
        self.log.append("cleaned up")
        return ""


def with_starlette(here: Endpoints) -> Any:
    async def wait(_: Request) -> Response:
        return Response(await here.wait())

    async def stream(_: Request) -> Response:
        return StreamingResponse(here.stream())

    def block(_: Request) -> Response:
        return Response(here.block())

    return Starlette(routes=[Route("/wait", wait), Route("/stream", stream), Route("/block", block)])


def behind_base_http_middleware(here: Endpoints) -> Any:
    async def dispatch(request: Request, call_next: Any) -> Any:
        return await call_next(request)

    return BaseHTTPMiddleware(with_starlette(here), dispatch)


def with_fastapi(here: Endpoints) -> Any:
    app = fastapi.FastAPI()

    @app.get("/stream")
    async def stream() -> StreamingResponse:
        return StreamingResponse(here.stream())

    app.get("/wait")(here.wait)
    app.get("/block")(here.block)
    return app


def with_litestar(here: Endpoints) -> Any:
    @litestar.get("/stream")
    async def stream() -> litestar.response.Stream:
        return litestar.response.Stream(here.stream())

    wait, block = litestar.get("/wait")(here.wait), litestar.get("/block", sync_to_thread=True)(here.block)
    return litestar.Litestar([wait, stream, block], logging_config=None)  # which would begin a thread


def with_django(here: Endpoints) -> Any:
    async def wait(_: object) -> HttpResponse:
        return HttpResponse(await here.wait())

    async def stream(_: object) -> StreamingHttpResponse:
        return StreamingHttpResponse(here.stream())

    def block(_: object) -> HttpResponse:
        return HttpResponse(here.block())

    if not django.conf.settings.configured:
        django.conf.settings.configure(ALLOWED_HOSTS=["*"], LOGGING_CONFIG=None)
    django.conf.settings.ROOT_URLCONF = (path("wait", wait), path("stream", stream), path("block", block))
    return ended_by_disconnect(get_asgi_application())


def with_asgiref(here: Endpoints) -> Any:
    async def block(_scope: Any, _receive: Any, send: Any) -> None:
        await sync_to_async(here.block, thread_sensitive=False)()
        await send({"type": "http.response.start", "status": 200, "headers": []})

    return applications(block=block)


FRAMEWORKS = [with_starlette, behind_base_http_middleware, with_fastapi, with_litestar, with_django]


@pytest.mark.parametrize("server", [asgi_servers.SERVERS[0], "hypercorn"])
@pytest.mark.parametrize("framework", FRAMEWORKS)
@pytest.mark.parametrize("kind", ["/wait", "/stream"])
async def test_what_an_endpoint_awaits_is_ended(framework: Any, kind: str, server: str, caplog: Any) -> None:
    """In whichever task a framework has it awaited. It has cleaned up when that is reported, and nobody logs an error."""
    here, live = Endpoints(), Registry()
    app = RevokableApp(framework(here), live, lambda _: "alice")
    async with served(app, server) as client, client.request(kind):
        await here.begun.wait()
        await live["alice"].revoke("logged out")
        assert here.log == ["begun", "cleaned up"]
        assert [each for each in asyncio.all_tasks() if "Endpoints" in str(each.get_stack())] == []
    assert [record for record in caplog.records if record.levelname == "ERROR"] == []


@pytest.mark.filterwarnings(  # Django leaves the body of a request that is cancelled again to the garbage collector
    "ignore:Exception ignored in. .function SpooledTemporaryFile.__del__:pytest.PytestUnraisableExceptionWarning"
)
@pytest.mark.parametrize("server", [asgi_servers.SERVERS[0], "hypercorn"])
@pytest.mark.parametrize("framework", [*FRAMEWORKS, with_asgiref])
async def test_an_endpoint_in_a_thread_ends_when_its_function_returns(framework: Any, server: str, caplog: Any) -> None:
    """Its client is told at once, and it is named until then; what it returns goes nowhere, and nobody logs an error."""
    here, live = Endpoints(), Registry()
    app = RevokableApp(framework(here), live, lambda _: "alice", limit=0.05)
    async with served(app, server) as client, client.request("/block") as (reader, _):
        await here.begun.wait()
        act = live["alice"].revoke("logged out")
        assert (await reader.read()).endswith(b"logged out\n")
        await anyio.sleep(0.2)  # in which it would be cancelled again
        (straggler,) = act.stragglers()
        assert "'GET /block' in 'alice'" in str(straggler)
        here.go.set()
        await act
        assert here.log == ["begun", "cleaned up"]
    assert [record for record in caplog.records if record.levelname == "ERROR"] == []
    gc.collect()  # here, where what Django has left is known


@pytest.mark.parametrize("version", ["2.3", "2.4"])
async def test_a_generator_in_a_thread_ends_when_it_has_its_next_item(version: str) -> None:
    """Also where the server is of a version of ASGI by which Starlette streams in the task of the endpoint itself."""
    here, live = Endpoints(), Registry()

    def items() -> Iterator[str]:
        yield here.block()
        here.log.append("asked again")

    app: Any = RevokableApp(StreamingResponse(items()), live, lambda _: "alice", limit=0.05)
    scope = {"type": "http", "asgi": {"spec_version": version}, "method": "GET", "path": "/", "headers": []}
    sent: list[Any] = []

    async def send(message: Any) -> None:
        sent.append(message)

    serving = asyncio.ensure_future(app(scope, anyio.sleep_forever, send))
    await here.begun.wait()
    act = live["alice"].revoke("logged out")
    with anyio.move_on_after(0.2):  # in which it is cancelled again and again
        await act.finish()
    assert [each.name for each in act.stragglers()] == ["GET /"]
    here.go.set()
    await act
    with pytest.raises(RevokedError):  # as this is no server's connection, and a response had begun
        await serving
    assert here.log == ["begun", "cleaned up"]
    assert [message["type"] for message in sent] == ["http.response.start"]


@pytest.mark.parametrize("transport", ["websocket", "polling"])
async def test_what_a_handler_of_socket_io_awaits_is_ended(transport: str) -> None:
    """If the server runs handlers where they were asked for, and not in tasks of their own."""
    here, live = Endpoints(), Registry()

    async def message(*_: object) -> None:
        await here.wait()

    sio = socketio.AsyncServer(async_mode="asgi", async_handlers=False)
    sio.on("connect", lambda *_: None)
    sio.on("message", message)
    app = RevokableApp(socketio.ASGIApp(sio), live, lambda _: "alice")
    async with served(app, "hypercorn") as server, SocketIo.over(server.port, "", transport) as client:
        await client.client.send("hello")
        await here.begun.wait()
        await live["alice"].revoke("logged out")
        assert here.log == ["begun", "cleaned up"]
        assert await client.told() == "transport error"
