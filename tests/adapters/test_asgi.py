"""Web sessions that are taken away: real servers, and clients that see what is sent to them."""

import asyncio
import contextlib
import gc
import json
import logging
import pathlib
import signal
import socket
import struct
import subprocess
import sys
import threading
import time
import weakref
from collections.abc import Callable
from typing import Any

import anyio
import anyio.from_thread
import anyio.to_thread
import httpx
import pytest
from websockets.exceptions import ConnectionClosed, InvalidStatus

from asgi_servers import SERVERS, Client, applications, served
from asyncrevoke import Registry, RevokedError
from asyncrevoke.adapters.asgi import RevokableApp, Session, ended_by_disconnect
from conftest import BACKENDS, settle

pytestmark = [
    pytest.mark.anyio,
    pytest.mark.filterwarnings("ignore:remove second argument of ws_handler:DeprecationWarning"),  # an older server's
]
on_every_server = pytest.mark.parametrize("kind", SERVERS)
ONE = SERVERS[0]


def token(scope: Any) -> tuple[str, str] | None:
    """Whose request it is, as its header says."""
    user = dict(scope["headers"]).get(b"token", b"").decode()
    return (user, "t1") if user else None


class Here:
    """Where endpoints note what happens to them."""

    def __init__(self) -> None:
        self.log: list[object] = []
        self._changed = anyio.Event()

    def note(self, what: object) -> None:
        self.log.append(what)
        self._changed.set()

    async def noted(self, *what: object) -> None:
        with anyio.fail_after(10):
            while any(each not in self.log for each in what):
                self._changed = anyio.Event()
                await self._changed.wait()


@pytest.fixture(params=BACKENDS[:2])
def anyio_backend(request: pytest.FixtureRequest) -> Any:
    return request.param


@pytest.fixture
def here() -> Here:
    return Here()


@pytest.fixture
def live() -> Registry:
    return Registry()


async def echo(_scope: Any, receive: Any, send: Any) -> None:
    """A websocket that gives back what it gets."""
    await receive()
    await send({"type": "websocket.accept"})
    while (message := await receive())["type"] == "websocket.receive":
        await send({"type": "websocket.send", "text": message["text"]})


def begins(here: Here, *headers: tuple[bytes, bytes], more: bytes = b"") -> Any:
    """A response that begins and waits, or sends on and on."""

    async def endpoint(_scope: Any, _receive: Any, send: Any) -> None:
        await send({"type": "http.response.start", "status": 200, "headers": headers})
        await send({"type": "http.response.body", "body": b"data: 1\n\n", "more_body": True})
        here.note("begun")
        while more:
            await send({"type": "http.response.body", "body": more, "more_body": True})
        await anyio.sleep_forever()

    return endpoint


def waits(here: Here) -> Any:
    """An endpoint that does nothing yet, and cleans up."""

    async def endpoint(_scope: Any, _receive: Any, _send: Any) -> None:
        here.note("begun")
        try:
            await anyio.sleep_forever()
        finally:
            await asyncio.sleep(0)
            here.note("cleaned up")

    return endpoint


async def ignore(_message: Any) -> None:
    """A server that takes whatever is sent."""


async def answer(app: Any, method: str = "GET") -> tuple[int, bytes]:
    """What one request is answered, all of it, by the application itself."""
    sent: list[Any] = []

    async def send(message: Any) -> None:
        sent.append(message)

    await app({"type": "http", "method": method, "path": "/", "headers": []}, anyio.sleep_forever, send)
    return int(sent[0]["status"]), b"".join(each["body"] for each in sent[1:])


async def is_reset(sock: socket.socket) -> bool:
    """Read what is there to the end, and tell whether it was cut off there."""
    with anyio.fail_after(10):
        try:
            while await asyncio.get_running_loop().sock_recv(sock, 1 << 20):
                pass
        except ConnectionResetError:
            return True
    return False


@on_every_server
async def test_a_websocket_is_told_why_and_closed_when_the_revocation_is_complete(kind: str, live: Registry) -> None:
    """Its code and reason have come when `revoke` returns, its connection is closed, and another's goes on."""
    async with (
        served(RevokableApp(applications(echo=echo), live, token), kind) as client,
        client.websocket("/echo") as one,
        client.websocket("/echo", "bob") as other,
    ):
        for each in one, other:
            await each.send("hello")
            assert await each.recv() == "hello"
        report = await live["alice", "t1"].revoke("é" * 99)
        assert (report.kicked, report.remaining) == (1, 0)
        with pytest.raises(ConnectionClosed) as closed:
            await one.recv()
        assert closed.value.rcvd is not None
        assert (closed.value.rcvd.code, closed.value.rcvd.reason) == (4401, "é" * 61)
        await other.send("still here")
        assert await other.recv() == "still here"


@on_every_server
async def test_a_websocket_is_refused_in_its_handshake(kind: str, live: Registry, here: Here) -> None:
    """Taken away before it was accepted, it gets an answer of HTTP, and the endpoint's own clean-up runs."""
    async with served(RevokableApp(applications(wait=waits(here)), live, token), kind) as client:

        async def refused() -> None:
            with pytest.raises(InvalidStatus, match="403"):
                await client.websocket("/wait")
            here.note("refused")

        async with anyio.create_task_group() as tasks:
            tasks.start_soon(refused)
            await here.noted("begun")
            await live["alice", "t1"].revoke("logged out")
            await here.noted("refused")
    assert here.log == ["begun", "cleaned up", "refused"]


@on_every_server
async def test_a_request_that_was_not_answered_gets_401(kind: str, live: Registry, here: Here) -> None:
    """The answer says why, and the connection is closed."""
    async with (
        served(RevokableApp(applications(wait=waits(here)), live, token), kind) as client,
        client.request("/wait") as (reader, _),
    ):
        await here.noted("begun")
        await live["alice", "t1"].revoke("logged out")
        head, _, body = (await reader.read()).partition(b"\r\n\r\n")
    assert head.startswith(b"HTTP/1.1 401")
    assert b'www-authenticate: Bearer error="invalid_token"' in head
    assert body == b"logged out\n"
    assert here.log == ["begun", "cleaned up"]


@on_every_server
async def test_a_request_may_be_refused_in_the_words_of_the_application(kind: str, live: Registry, here: Here) -> None:
    """With its own status, headers and body, made of the reason; the connection is closed all the same."""

    def refusal(reason: str) -> Any:
        async def refused(_scope: Any, _receive: Any, send: Any) -> None:
            headers = [(b"access-control-allow-origin", b"*"), (b"content-length", b"%d" % len(reason))]
            await send({"type": "http.response.start", "status": 499, "headers": headers})
            await send({"type": "http.response.body", "body": reason.encode()})

        return refused

    app = RevokableApp(applications(wait=waits(here)), live, token, refusal=refusal)
    async with served(app, kind) as client, client.request("/wait") as (reader, _):
        await here.noted("begun")
        await live["alice"].revoke("logged out")
        head, _, body = (await reader.read()).lower().partition(b"\r\n\r\n")
        assert head.startswith(b"http/1.1 499")
        assert b"access-control-allow-origin: *" in head
        assert b"connection: close" in head
        assert body == b"logged out"


async def test_a_refusal_that_fails_is_logged(live: Registry, caplog: pytest.LogCaptureFixture) -> None:
    """Its client's connection is closed without an answer, and the log says why."""
    caplog.set_level(logging.INFO, "asyncrevoke")
    app = RevokableApp(applications(), live, token, valid=lambda *_: False, refusal=fails)
    async with served(app, ONE) as client, client.request("/wait") as (reader, _):
        with contextlib.suppress(ConnectionResetError):
            assert await reader.read() == b""
    assert "the client of /wait was not told: ZeroDivisionError('oh')" in caplog.messages


async def test_a_shutdown_is_no_refusal(live: Registry, here: Here) -> None:
    """What says that a login has ended is not asked: clients get 503, and their tokens are good."""
    app = RevokableApp(waits(here), live, lambda _: "alice", refusal=fails)
    answered = asyncio.ensure_future(answer(app))
    await here.noted("begun")
    await live.root.revoke("maintenance")
    assert await answered == (503, b"maintenance\n")


@on_every_server
async def test_an_upload_that_is_being_read_gets_401(kind: str, live: Registry, here: Here) -> None:
    """The endpoint gets no more of it, and the client is told while it has more to send."""

    async def upload(_scope: Any, receive: Any, _send: Any) -> None:
        while True:
            here.note((await receive())["body"])

    app, head = RevokableApp(applications(upload=upload), live, token), "Content-Length: 1000\r\n"
    async with served(app, kind) as client, client.request("/upload", head=head) as (reader, writer):
        writer.write(b"part")
        await here.noted(b"part")
        await live["alice", "t1"].revoke("logged out")
        writer.write(b"more")
        assert (await reader.read()).endswith(b"\r\n\r\nlogged out\n")
    assert b"more" not in here.log


@on_every_server
async def test_an_event_stream_gets_a_last_event_and_ends(kind: str, live: Registry, here: Here) -> None:
    """A browser hears why by an event of its own, and that this is the end."""
    stream = begins(here, (b"Content-Type", b"Text/Event-Stream; charset=utf-8"))
    async with (
        served(RevokableApp(applications(events=stream), live, token), kind) as client,
        client.request("/events") as (reader, _),
    ):
        await here.noted("begun")
        await live["alice", "t1"].revoke("logged\nout")
        got = await reader.read()
    assert b'\n\nevent: revoked\ndata: {"reason": "logged\\nout", "code": 4401}\n\n' in got
    assert got.endswith(b"\r\n0\r\n\r\n")


@on_every_server
@pytest.mark.parametrize(
    "headers",
    [[], [(b"content-length", b"1000")], [(b"content-type", b"text/event-stream"), (b"content-encoding", b"gzip")]],
)
async def test_any_other_response_is_cut_off(kind: str, headers: Any, live: Registry, here: Here) -> None:
    """The client cannot take for whole what is not."""
    async with (
        served(RevokableApp(applications(file=begins(here, *headers)), live, token), kind) as client,
        client.request("/file") as (reader, _),
    ):
        await here.noted("begun")
        await live["alice", "t1"].revoke("logged out")
        with pytest.raises(ConnectionResetError):
            await reader.read()


@on_every_server
async def test_a_complete_response_is_left_alone(kind: str, live: Registry, here: Here) -> None:
    """An endpoint that works on after its response is ended; the connection serves the next request, of somebody else."""

    async def works_on(scope: Any, receive: Any, send: Any) -> None:
        await send({"type": "http.response.start", "status": 200, "headers": [(b"content-length", b"2")]})
        await send({"type": "http.response.body", "body": b"ok"})
        await waits(here)(scope, receive, send)

    async with (
        served(RevokableApp(applications(work=works_on), live, token), kind) as client,
        client.request("/work") as (reader, writer),
    ):
        await reader.readuntil(b"ok")
        await here.noted("begun")
        await live["alice", "t1"].revoke("logged out")
        writer.write(b"GET /work HTTP/1.1\r\nHost: x\r\nToken: bob\r\n\r\n")
        await reader.readuntil(b"ok")
        assert here.log[:2] == ["begun", "cleaned up"]
        await live["bob"].revoke()


@on_every_server
@pytest.mark.parametrize("what", ["websocket", "events", "file"])
async def test_a_client_that_does_not_read_is_aborted(kind: str, what: str, live: Registry, here: Here) -> None:
    """When the limit is over, its connection is gone, and all that it has not read is thrown away."""

    async def floods(_scope: Any, receive: Any, send: Any) -> None:
        await receive()
        await send({"type": "websocket.accept"})
        here.note("begun")
        while True:
            await send({"type": "websocket.send", "bytes": bytes(60000)})

    endpoints = {
        "websocket": floods,
        "events": begins(here, (b"content-type", b"text/event-stream"), more=bytes(60000)),
        "file": begins(here, more=bytes(60000)),
    }
    app = RevokableApp(applications(**endpoints), live, token, limit=0.1)
    async with served(app, kind) as client:
        with await client.stalled(f"/{what}", upgrade=what == "websocket") as sock:
            await here.noted("begun")
            await anyio.wait_readable(sock)
            await asyncio.sleep(0.2)  # in which all buffers get full
            with anyio.fail_after(5):
                await live["alice", "t1"].revoke("logged out")
            assert await is_reset(sock)


@on_every_server
async def test_the_end_of_a_response_that_is_not_read_is_thrown_away(kind: str, live: Registry, here: Here) -> None:
    """Its last message still waits to be sent, as of most downloads that are slow: it was not sent yet."""

    async def download(_scope: Any, _receive: Any, send: Any) -> None:
        await send({"type": "http.response.start", "status": 200, "headers": []})
        for more in [] if kind == "hypercorn" else [True]:  # others wait before they write, and not behind that
            await send({"type": "http.response.body", "body": bytes(6_000_000), "more_body": more})
        here.note("last")
        await send({"type": "http.response.body", "body": bytes(6_000_000)})

    app = RevokableApp(applications(download=download), live, token, limit=0.1)
    async with served(app, kind) as client:
        with await client.stalled("/download") as sock:
            await here.noted("last")
            await live["alice", "t1"].revoke("logged out")
            assert await is_reset(sock)


@on_every_server
async def test_a_client_that_has_gone_is_not_waited_for(kind: str, live: Registry, here: Here) -> None:
    """The endpoint knows already, and works on: nobody is left who could be told."""

    async def works_on(scope: Any, receive: Any, send: Any) -> None:
        await receive()
        await send({"type": "websocket.accept"})
        here.note((await receive())["type"])
        await waits(here)(scope, receive, send)

    app = RevokableApp(applications(work=works_on), live, token, limit=60)
    async with served(app, kind) as client:
        async with client.websocket("/work"):
            pass
        await here.noted("websocket.disconnect", "begun")
        with anyio.fail_after(10):
            await live["alice", "t1"].revoke("logged out")


@on_every_server
async def test_a_further_request_of_the_connection_does_not_begin(kind: str, live: Registry, here: Here) -> None:
    """It was sent before the first one was answered: it would be cut off in the midst of what it does."""

    async def endpoint(scope: Any, receive: Any, send: Any) -> None:
        here.note(token(scope))
        await waits(here)(scope, receive, send)

    async with (
        served(RevokableApp(applications(wait=endpoint), live, token), kind) as client,
        client.request("/wait", head="\r\nGET /wait HTTP/1.1\r\nHost: x\r\nToken: bob\r\n") as (reader, _),
    ):
        await here.noted("begun")
        await live["alice", "t1"].revoke("logged out")
        assert b"\r\nconnection: close\r\n" in (await reader.read()).lower()
        assert ("bob", "t1") not in here.log


BODY = {"type": "http.response.body", "body": b"ok"}


@pytest.mark.parametrize(
    ("messages", "complete"),
    [
        ([BODY], True),
        ([{**BODY, "more_body": True}, {"type": "http.response.pathsend", "path": "/"}], True),
        ([{"type": "http.response.zerocopysend", "file": 0}], True),
        ([{"type": "http.response.zerocopysend", "file": 0, "more_body": True}], False),
        ([{**BODY, "trailers": True}], False),
        ([{**BODY, "trailers": True}, {"type": "http.response.trailers", "headers": []}], True),
    ],
)
async def test_a_response_of_an_extension_is_complete_with_its_last_message(
    messages: list[Any], complete: bool, live: Registry, here: Here
) -> None:
    """Then it is left alone; else the server has to cut it off."""

    async def endpoint(scope: Any, receive: Any, send: Any) -> None:
        begin = {"status": 200, "headers": [], "trailers": "trailers" in messages[0]}
        await send({"type": "http.response.start", **begin})
        for message in messages:
            await send({name: message[name] for name in message if name != "trailers"})
        await waits(here)(scope, receive, send)

    app: Any = RevokableApp(endpoint, live, lambda _: "alice")
    scope = {"type": "http", "method": "GET", "path": "/", "headers": []}
    answered = asyncio.ensure_future(app(scope, anyio.sleep_forever, ignore))
    await here.noted("begun")
    await live["alice"].revoke("logged out")
    with contextlib.nullcontext() if complete else pytest.raises(RevokedError):
        await answered


async def test_an_early_hint_is_no_answer(live: Registry, here: Here) -> None:
    """The request gets the status that any other gets."""

    async def hints(scope: Any, receive: Any, send: Any) -> None:
        await send({"type": "http.response.early_hint", "links": []})
        await waits(here)(scope, receive, send)

    sent: list[Any] = []

    async def send(message: Any) -> None:
        sent.append(message)

    app: Any = RevokableApp(hints, live, lambda _: "alice")
    scope = {"type": "http", "method": "GET", "path": "/", "headers": []}
    answered = asyncio.ensure_future(app(scope, anyio.sleep_forever, send))
    await here.noted("begun")
    await live["alice"].revoke("logged out")
    await answered
    assert sent[1]["status"] == 401


@on_every_server
async def test_a_client_that_sends_for_ever_is_told(kind: str, live: Registry, here: Here) -> None:
    """What it sends is thrown away, so that it is not reset before it has read the reason."""
    async with (
        served(RevokableApp(applications(echo=echo), live, token), kind) as client,
        client.websocket("/echo") as websocket,
    ):

        async def send() -> None:
            with contextlib.suppress(ConnectionClosed):
                while True:
                    await websocket.send("x" * 1000)
                    await asyncio.sleep(0)

        async def read() -> None:
            with contextlib.suppress(ConnectionClosed):
                while True:
                    here.note(await websocket.recv())

        async with anyio.create_task_group() as tasks:
            tasks.start_soon(send)
            tasks.start_soon(read)
            await here.noted("x" * 1000)
            await live["alice", "t1"].revoke("logged out")
        assert (websocket.close_code, websocket.close_reason) == (4401, "logged out")


@on_every_server
async def test_a_client_whose_messages_nobody_reads_is_heard(kind: str, live: Registry, here: Here) -> None:
    """They fill a server's queue, behind which its answer to the close would wait for the limit."""

    async def deaf(_scope: Any, receive: Any, send: Any) -> None:
        await receive()
        await send({"type": "websocket.accept"})
        await waits(here)(_scope, receive, send)

    app = RevokableApp(applications(deaf=deaf), live, token, limit=60)
    async with served(app, kind) as client, client.websocket("/deaf") as websocket:
        for _ in range(100):
            await websocket.send("x" * 1000)
        await here.noted("begun")
        with anyio.fail_after(10):
            await live["alice", "t1"].revoke("logged out")
            await websocket.wait_closed()
        assert websocket.close_code == 4401


@on_every_server
async def test_a_client_that_goes_in_the_same_moment_hangs_nothing(kind: str, live: Registry) -> None:
    """Reset, half-closed or just closing: the revocation is complete all the same."""

    async def reset(sock: socket.socket) -> None:
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        sock.close()

    async def half_close(sock: socket.socket) -> None:
        sock.shutdown(socket.SHUT_WR)

    async def close_frame(sock: socket.socket) -> None:
        sock.send(b"\x88\x80\0\0\0\0")

    async with served(RevokableApp(applications(echo=echo), live, token, limit=0.2), kind) as client:
        for go in reset, half_close, close_frame:
            with await client.stalled("/echo", upgrade=True) as sock:
                await anyio.wait_readable(sock)
                await go(sock)
                with anyio.fail_after(5):
                    await live["alice", "t1"].revoke("logged out")
                assert len(live) == 0


@on_every_server
async def test_a_half_closed_request_is_answered(kind: str, live: Registry, here: Here) -> None:
    """A client that has sent all it has to send still reads why, or is already given up by the server."""
    async with (
        served(RevokableApp(applications(wait=waits(here)), live, token), kind) as client,
        client.request("/wait") as (reader, writer),
    ):
        await here.noted("begun")
        writer.write_eof()
        await live["alice", "t1"].revoke("logged out")
        assert b"logged out" in (got := await reader.read()) or not got


@on_every_server
async def test_a_websocket_in_its_closing_handshake_is_aborted(kind: str, live: Registry, here: Here) -> None:
    """The endpoint has closed it, and the client does not answer: that lasts no longer than the limit."""

    async def closes(_scope: Any, receive: Any, send: Any) -> None:
        await receive()
        await send({"type": "websocket.accept"})
        here.note("accepted")
        with contextlib.suppress(BaseException):
            await send({"type": "websocket.close", "code": 1000})
            here.note("closed")
            await anyio.sleep_forever()

    async with served(RevokableApp(applications(close=closes), live, token, limit=0.1), kind) as client:
        with await client.stalled("/close", upgrade=True) as sock:
            await here.noted("accepted")
            await anyio.wait_readable(sock)
            with anyio.fail_after(5):
                await live["alice", "t1"].revoke("logged out")
            await is_reset(sock)


@on_every_server
async def test_an_endpoint_that_does_not_end_is_named_and_cannot_send(kind: str, live: Registry, here: Here) -> None:
    """It swallows its cancellation: its client is told and gone, it is a straggler, and all it tries is refused."""
    go = anyio.Event()

    async def stubborn(_scope: Any, receive: Any, send: Any) -> None:
        await receive()
        await send({"type": "websocket.accept"})
        here.note("accepted")
        while not go.is_set():
            with contextlib.suppress(asyncio.CancelledError):
                await go.wait()
        for attempt in (lambda: send({"type": "websocket.send", "text": "late"})), receive:
            with pytest.raises(RevokedError, match="logged out"):
                await attempt()
        here.note("refused")

    async with (
        served(RevokableApp(applications(stubborn=stubborn), live, token), kind) as client,
        client.websocket("/stubborn") as websocket,
    ):
        await here.noted("accepted")
        act = live["alice", "t1"].revoke("logged out")
        with pytest.raises(ConnectionClosed) as closed:
            await websocket.recv()
        assert closed.value.rcvd is not None
        assert closed.value.rcvd.code == 4401
        (straggler,) = act.stragglers()
        assert str(straggler).startswith("operation of 'websocket /stubborn' in 'alice/t1' for")
        assert str(straggler).endswith(" in stubborn")
        assert not act.done()
        go.set()
        assert (await act).remaining == 0
    assert here.log[-1] == "refused"


@on_every_server
async def test_a_session_may_learn_later_whose_it_is(kind: str, live: Registry) -> None:
    """It runs on as nobody's, is found by the first key and by a further one, and goes with whichever goes first."""

    async def login(scope: Any, receive: Any, send: Any) -> None:
        session: Session = scope["asyncrevoke"]
        await receive()
        await send({"type": "websocket.accept"})
        session.belongs_to((await receive())["text"], "t1")
        session.belongs_to("room")
        await send({"type": "websocket.send", "text": "welcome"})
        await receive()

    app = RevokableApp(applications(login=login), live)
    async with served(app, kind) as client:
        for key in ("alice",), ("room",):
            async with client.websocket("/login") as websocket:
                assert len(live) == 0
                await websocket.send("alice")
                assert await websocket.recv() == "welcome"
                assert [each["keys"] for each in app.sessions()] == [[("alice", "t1"), ("room",)]]
                await live[key].revoke("closed")
                with pytest.raises(ConnectionClosed, match=r"4401.*closed"):
                    await websocket.recv()
            assert app.sessions() == []


async def test_who_comes_with_a_token_that_is_being_revoked_is_refused(live: Registry, here: Here) -> None:
    """Until nobody is left that has it; others, also of the same user, are let in. So is who tells of it only later."""
    go = anyio.Event()

    async def ok(scope: Any, _receive: Any, send: Any) -> None:
        if scope["path"] == "/later":
            with pytest.raises(RevokedError, match="logged out"):
                scope["asyncrevoke"].belongs_to("alice", "t1")
        if scope["path"] == "/slow":
            here.note("begun")
            await go.wait()
        await send({"type": "http.response.start", "status": 200, "headers": [(b"connection", b"close")]})
        await send({"type": "http.response.body", "body": b"ok"})

    async def answer(path: str, token: str) -> bytes:
        async with client.request(path, token) as (reader, _):
            return (await reader.read()).partition(b"\r\n\r\n")[2]

    def key(scope: Any) -> tuple[str, str] | None:
        found = dict(scope["headers"])[b"token"].decode()
        return ("alice", found) if found else None

    app = RevokableApp(applications(ok=ok, later=ok, slow=ok), live, key)
    async with served(app, ONE) as client, client.request("/slow", "t1") as (reader, _):
        await here.noted("begun")
        act = live["alice"].revoke("logged out", grace=60)
        for path, name in ("/ok", "t1"), ("/later", ""):
            assert await answer(path, name) == b"logged out\n"
        assert b"ok" in await answer("/ok", "t2")
        go.set()
        assert b"ok" in await reader.read()
        await act
        assert b"ok" in await answer("/ok", "t1")


@on_every_server
async def test_a_grace_lets_requests_finish(kind: str, live: Registry, here: Here) -> None:
    """What has begun may send to its end, and the client hears nothing of the revocation."""
    go = anyio.Event()

    async def slow(_scope: Any, _receive: Any, send: Any) -> None:
        here.note("begun")
        await go.wait()
        await send({"type": "http.response.start", "status": 200, "headers": [(b"content-length", b"2")]})
        await send({"type": "http.response.body", "body": b"ok"})

    async with (
        served(RevokableApp(applications(slow=slow), live, token), kind) as client,
        client.request("/slow") as (reader, _),
    ):
        await here.noted("begun")
        act = live["alice", "t1"].revoke("logged out", grace=60)
        go.set()
        assert (await reader.readuntil(b"\r\n\r\nok")).startswith(b"HTTP/1.1 200")
        assert (await act).kicked == 0


@pytest.mark.parametrize("good", [True, False])
@pytest.mark.parametrize("is_async", [True, False])
async def test_a_token_is_checked_once_its_session_is_registered(live: Registry, good: bool, is_async: bool) -> None:
    """So a revocation that comes before the check finds it, and one that comes after it does, too. With a bad token no line of the endpoint runs."""
    begun: list[bool] = []

    def valid(*key: str) -> Any:
        assert key == ("alice", "t1")
        assert list(live) == [("alice",), ("alice", "t1")]

        async def later() -> bool:
            return good

        return later() if is_async else good

    async def ok(_scope: Any, _receive: Any, send: Any) -> None:
        begun.append(good)
        await send({"type": "http.response.start", "status": 200, "headers": []})
        await send({"type": "http.response.body", "body": b"ok"})

    app = RevokableApp(ok, live, lambda _: ("alice", "t1"), valid=valid)
    assert await answer(app) == ((200, b"ok") if good else (401, b"the token is not valid\n"))
    assert len(live) == 0
    assert begun == [True] * good


def fails(_: object) -> Any:
    raise ZeroDivisionError("oh")


NO_KEYS: list[Callable[[Any], Any]] = [
    fails,
    lambda _: 7,
    lambda _: (),
    lambda _: ("alice", None),
    lambda _: (("alice", 3), 1e12),
    lambda _: ["a"],
    lambda _: (("alice",), 3600),
    lambda _: (("alice",), float("nan")),
]


@on_every_server
@pytest.mark.parametrize("key", NO_KEYS)
async def test_a_key_function_that_fails_is_named_and_answered_by_500(
    kind: str, key: Any, live: Registry, caplog: pytest.LogCaptureFixture
) -> None:
    """It raises, or returns what is no key: nobody is let in, and the log says which function it was."""
    caplog.set_level(logging.ERROR)
    async with served(RevokableApp(applications(echo=echo), live, key), kind) as client:
        async with client.request("/echo") as (reader, _):
            assert (await reader.readuntil(b"\r\n\r\n")).startswith(b"HTTP/1.1 500")
        with pytest.raises(InvalidStatus, match="500"):
            await client.websocket("/echo")
    if kind != "hypercorn":  # whose log is its own
        assert f"the key function {key!r} failed on 'GET /echo': " in caplog.text


async def test_a_session_is_taken_away_when_its_time_is_over(live: Registry, here: Here) -> None:
    """The earliest time counts, no task waits for it, and a time in the past lets nobody in."""

    async def later(scope: Any, receive: Any, send: Any) -> None:
        before = len(asyncio.all_tasks())
        scope["asyncrevoke"].belongs_to("room", expires=time.time() + 0.05)
        scope["asyncrevoke"].belongs_to("house", expires=time.time() + 500)
        assert len(asyncio.all_tasks()) == before
        await waits(here)(scope, receive, send)

    late = (401, b"the token has expired\n")
    assert await answer(RevokableApp(later, live, lambda _: (("alice",), time.time() + 1000))) == late
    assert await answer(RevokableApp(later, live, lambda _: (("alice",), None))) == late
    assert here.log == ["begun", "cleaned up"] * 2
    assert await answer(RevokableApp(later, live, lambda _: (("alice",), time.time() - 1))) == late
    assert len(here.log) == 4


async def test_a_session_that_has_ended_leaves_no_timer(live: Registry) -> None:
    """Its token may live for days, and nobody keeps the session for so long."""
    timers: list[asyncio.TimerHandle] = []

    async def endpoint(scope: Any, _receive: Any, send: Any) -> None:
        scope["asyncrevoke"].belongs_to("alice", expires=time.time() + 3600)
        timers.append(scope["asyncrevoke"]._timer)
        await send({"type": "http.response.start", "status": 200, "headers": []})
        await send({"type": "http.response.body", "body": b"ok"})

    assert await answer(RevokableApp(endpoint, live)) == (200, b"ok")
    assert [timer.cancelled() for timer in timers] == [True]


async def test_a_clock_that_was_set_is_noticed_within_a_minute(live: Registry, here: Here) -> None:
    """A machine that has slept for an hour does not let the token live for one more."""
    delays: list[float] = []

    async def endpoint(scope: Any, receive: Any, send: Any) -> None:
        loop = asyncio.get_running_loop()
        scope["asyncrevoke"].belongs_to("alice", expires=time.time() + 3600)
        delays.append(scope["asyncrevoke"]._timer.when() - loop.time())
        await waits(here)(scope, receive, send)

    answered = asyncio.ensure_future(answer(RevokableApp(endpoint, live)))
    await here.noted("begun")
    await live["alice"].revoke("logged out")
    await answered
    assert delays[0] < 61


async def test_an_admin_sees_who_is_connected(live: Registry, here: Here) -> None:
    """By key, with what is open, from where, and since when; as JSON."""
    app = RevokableApp(applications(echo=echo, wait=waits(here)), live, token)
    before = time.time()
    async with served(app, ONE) as client, client.websocket("/echo"), client.request("/wait", "bob"):
        await here.noted("begun")
        first, second = json.loads(json.dumps(app.sessions()))
        assert before <= first.pop("since") <= second.pop("since") <= time.time()
        assert first == {
            "keys": [["alice", "t1"]],
            "what": "websocket /echo",
            "type": "websocket",
            "client": "127.0.0.1",
        }
        assert second == {"keys": [["bob", "t1"]], "what": "GET /wait", "type": "http", "client": "127.0.0.1"}
        await live.root.revoke()
        assert app.sessions() == []


async def test_what_is_open_on_a_session_goes_with_it(live: Registry, here: Here) -> None:
    """Whether it is taken away or its endpoint ends, and it does not take others along."""

    async def opens(scope: Any, receive: Any, send: Any) -> None:
        file = scope["asyncrevoke"].handle.open("file", release=lambda: here.note("released"))
        with contextlib.suppress(RevokedError):
            await file.aclose()
            here.note("closed")
            with scope["asyncrevoke"].handle.open("file", release=lambda: here.note("released")).using():
                here.note("using")
                await receive()
        await send({"type": "http.response.start", "status": 200, "headers": []})
        await send({"type": "http.response.body", "body": b"ok"})

    gone = anyio.Event()
    app: Any = RevokableApp(opens, live, lambda _: "alice")
    scope = {"type": "http", "method": "GET", "path": "/", "headers": []}
    sent: list[Any] = []

    async def send(message: Any) -> None:
        sent.append(message)

    async with anyio.create_task_group() as tasks:
        tasks.start_soon(app, scope, gone.wait, send)
        await here.noted("using")
        gone.set()
    assert here.log == ["released", "closed", "using", "released"]
    assert sent[0]["status"] == 200
    sent.clear()
    async with anyio.create_task_group() as tasks:
        here.log.clear()
        tasks.start_soon(app, scope, anyio.sleep_forever, send)
        await here.noted("using")
        await live["alice"].revoke("logged out")
    assert here.log == ["released", "closed", "using", "released"]
    assert sent[0]["status"] == 401


async def test_what_is_open_on_a_session_goes_with_a_later_key(live: Registry, here: Here) -> None:
    """At once, although the endpoint has a grace."""
    files = []

    async def opens(scope: Any, receive: Any, send: Any) -> None:
        files.append(scope["asyncrevoke"].handle.open("file"))
        scope["asyncrevoke"].belongs_to("bob")
        await waits(here)(scope, receive, send)

    app: Any = RevokableApp(opens, live, lambda _: "alice")
    answered = asyncio.ensure_future(answer(app))
    await here.noted("begun")
    live["bob"].revoke("logged out", grace=3600)
    assert [(file.revoked, file.reason) for file in files] == [(True, "logged out")]
    assert not answered.done()
    await live["bob"].revoke()
    await answered


async def test_an_endpoint_whose_cancellation_was_swallowed_is_cancelled_again(live: Registry, here: Here) -> None:
    """Libraries do that. It is not cancelled in its clean-up for as long as the limit, but ends all the same."""

    async def swallows(_scope: Any, _receive: Any, _send: Any) -> None:
        here.note("begun")
        with contextlib.suppress(asyncio.CancelledError):
            await anyio.sleep_forever()
        await waits(here)(_scope, _receive, _send)

    app = RevokableApp(swallows, live, lambda _: "alice", limit=0.05)
    answered = asyncio.ensure_future(answer(app))
    await here.noted("begun")
    await live["alice"].revoke("logged out")
    assert await answered == (401, b"logged out\n")
    assert here.log == ["begun", "begun", "cleaned up"]


@pytest.mark.parametrize("revoked", [True, False])
async def test_a_cancellation_by_the_server_goes_through(live: Registry, here: Here, revoked: bool) -> None:
    """Alone, or together with a revocation, of which the client is told all the same; and the key is left."""
    app = RevokableApp(waits(here), live, lambda _: "alice")
    answered = asyncio.ensure_future(answer(app))
    await here.noted("begun")
    if revoked:
        live["alice"].revoke("logged out")
    answered.cancel()
    with pytest.raises(asyncio.CancelledError):
        await answered
    assert here.log == ["begun", "cleaned up"]
    assert (len(live), app.sessions()) == (0, [])


async def test_a_key_is_left_when_the_client_was_told_though_the_server_cancels(live: Registry, here: Here) -> None:
    """Else a revocation would be reported while the connection is open. The server hears of its cancellation afterwards."""
    told = anyio.Event()

    async def send(message: Any) -> None:
        here.note(message["type"])
        await told.wait()

    app: Any = RevokableApp(waits(here), live, lambda _: "alice", limit=60)
    scope = {"type": "http", "method": "GET", "path": "/", "headers": []}
    serving = asyncio.ensure_future(app(scope, anyio.sleep_forever, send))
    await here.noted("begun")
    act = live["alice"].revoke("logged out")
    await here.noted("cleaned up", "http.response.start")
    for _ in range(2):
        serving.cancel()
        for _ in range(20):
            await asyncio.sleep(0)
    assert not act.done()
    told.set()
    with pytest.raises(asyncio.CancelledError):
        await serving
    assert act.done()
    assert here.log[-1] == "http.response.body"


def test_a_loop_that_ends_cuts_a_goodbye_short(live: Registry, caplog: pytest.LogCaptureFixture) -> None:
    """It waits for no client that does not take its goodbye; the endpoint was cancelled, and nothing has failed."""

    async def main() -> asyncio.Task[None]:
        here = Here()

        async def send(_message: Any) -> None:
            here.note("telling")
            await anyio.sleep_forever()

        app: Any = RevokableApp(waits(here), live, lambda _: "alice", limit=60)
        scope = {"type": "http", "method": "GET", "path": "/", "headers": []}
        serving: asyncio.Task[None] = asyncio.ensure_future(app(scope, anyio.sleep_forever, send))
        await here.noted("begun")
        live["alice"].revoke("logged out")
        await here.noted("telling", "cleaned up")
        return serving

    serving = asyncio.run(main())
    assert serving.cancelled()
    assert [record for record in caplog.records if record.levelname == "ERROR"] == []


async def test_a_time_that_cannot_be_meant_is_refused(live: Registry) -> None:
    """Such as seconds from now: the error says what to give, and nothing has changed."""

    async def endpoint(scope: Any, _receive: Any, send: Any) -> None:
        for expires in 3600, 0, -1.0, float("nan"):
            with pytest.raises(ValueError, match=r"expires is .*: give a unix time, such as time.time\(\) \+ 3600"):
                scope["asyncrevoke"].belongs_to("alice", expires=expires)
        assert (scope["asyncrevoke"].keys, len(live)) == ([], 0)
        scope["asyncrevoke"].belongs_to("alice", expires=float("inf"))
        await send({"type": "http.response.start", "status": 200, "headers": []})
        await send({"type": "http.response.body", "body": b"ok"})

    assert await answer(RevokableApp(endpoint, live)) == (200, b"ok")
    for limit in -1.0, float("nan"), float("inf"):
        with pytest.raises(ValueError, match=r"limit is .*: give seconds"):
            RevokableApp(endpoint, live, limit=limit)


async def test_what_nobody_logs_is_not_put_into_words(
    live: Registry, here: Here, caplog: pytest.LogCaptureFixture
) -> None:
    """A thousand sessions that are taken away cost no line each, where the level is above INFO."""

    class Client(list[str]):
        def __getitem__(self, _: Any) -> Any:
            here.note("looked at")
            return "10.0.0.7"

    app: Any = RevokableApp(waits(here), live, lambda _: "alice")
    scope = {"type": "http", "method": "GET", "path": "/", "headers": [], "client": Client(["10.0.0.7"])}
    for level in logging.WARNING, logging.INFO:
        caplog.set_level(level, "asyncrevoke")
        here.log.clear()
        serving = asyncio.ensure_future(app(scope, anyio.sleep_forever, ignore))
        await here.noted("begun")
        await live["alice"].revoke("logged out")
        await serving
        assert ("looked at" in here.log) == (level == logging.INFO)
    assert caplog.messages == ["GET / of alice at 10.0.0.7 was taken away: logged out"]


async def test_who_is_refused_is_not_logged_as_taken_away(live: Registry, caplog: pytest.LogCaptureFixture) -> None:
    """It never had anything; who tries many tokens does not fill the log."""
    app: Any = RevokableApp(applications(), live, lambda _: "alice", valid=lambda _: False)
    scope = {"type": "http", "method": "GET", "path": "/", "headers": [], "client": ["10.0.0.7"]}
    for level in logging.INFO, logging.DEBUG:
        caplog.set_level(level, "asyncrevoke")
        await app(scope, anyio.sleep_forever, ignore)
    assert [each for each in caplog.messages if "10.0.0.7" in each] == [
        "GET / of alice at 10.0.0.7 was refused: the token is not valid"
    ]


async def test_a_clean_up_that_fails_leaves_no_cancellation_behind(live: Registry, here: Here) -> None:
    """The error goes to the server, whose task may serve the next request: nothing in that is taken for cancelled."""

    async def fails(scope: Any, receive: Any, send: Any) -> None:
        try:
            await waits(here)(scope, receive, send)
        finally:
            raise ValueError("oh")

    async def serve() -> None:
        with pytest.raises(ValueError, match="oh"):
            await answer(RevokableApp(fails, live, lambda _: "alice"))
        task = asyncio.current_task()
        assert task is not None
        here.note(task.cancelling())

    served = asyncio.ensure_future(serve())
    await here.noted("begun")
    await live["alice"].revoke("logged out")
    await served
    assert here.log == ["begun", "cleaned up", 0]


async def test_an_endpoint_whose_helper_has_told_whose_it_is_is_the_straggler(live: Registry, here: Here) -> None:
    """As with python-socketio, whose handlers run in tasks of their own: it is named, and the line at which it waits."""
    go = anyio.Event()

    async def stubborn(scope: Any, _receive: Any, _send: Any) -> None:
        async def tell() -> None:
            scope["asyncrevoke"].belongs_to("alice")

        await asyncio.create_task(tell())
        here.note("begun")
        while not go.is_set():
            with contextlib.suppress(asyncio.CancelledError):
                await go.wait()

    answered = asyncio.ensure_future(answer(RevokableApp(stubborn, live)))
    await here.noted("begun")
    act = live["alice"].revoke("logged out")
    (straggler,) = act.stragglers()
    go.set()
    await act
    await answered
    assert (straggler.name, straggler.where.endswith(" in stubborn")) == ("GET /", True)


async def test_an_endpoint_that_revokes_its_own_key_is_ended_by_that(live: Registry) -> None:
    """With or without waiting for it, it does not wait for itself."""

    async def logout(scope: Any, _receive: Any, _send: Any) -> None:
        act = live["alice"].revoke("logged out")
        if scope["method"] == "POST":
            await act

    app = RevokableApp(logout, live, lambda _: "alice")
    assert await answer(app) == await answer(app, "POST") == (401, b"logged out\n")


async def test_a_group_of_errors_that_all_say_so_is_no_error(live: Registry, here: Here) -> None:
    """What fails in a task group because the session was taken away is not the server's to log; anything else is."""

    def raises(error: Exception) -> Any:
        async def endpoint(_scope: Any, receive: Any, _send: Any) -> None:
            async def fail() -> None:
                here.note("begun")
                try:
                    await anyio.sleep_forever()
                finally:
                    await receive()

            async with asyncio.TaskGroup() as tasks:
                tasks.create_task(fail())
                try:
                    await anyio.sleep_forever()
                finally:
                    raise error

        return endpoint

    for error, wanted in (RevokedError(live["other"]), None), (ValueError("oh"), "oh"):
        here.log.clear()
        answered = asyncio.ensure_future(answer(RevokableApp(raises(error), live, lambda _: "alice")))
        await here.noted("begun")
        await live["alice"].revoke("logged out")
        if wanted is None:
            assert await answered == (401, b"logged out\n")
        else:
            with pytest.raises(BaseExceptionGroup) as raised:
                await answered
            assert raised.group_contains(ValueError, match=wanted)


async def test_a_session_that_has_ended_belongs_to_nobody_more(live: Registry) -> None:
    """A task that it has left behind cannot make it hold up a revocation."""
    sessions: list[Session] = []

    async def ok(scope: Any, _receive: Any, send: Any) -> None:
        scope["asyncrevoke"].belongs_to("alice")
        scope["asyncrevoke"].belongs_to("alice")
        sessions.append(scope["asyncrevoke"])
        assert sessions[0].keys == [("alice",)]
        await send({"type": "http.response.start", "status": 200, "headers": []})
        await send({"type": "http.response.body", "body": b"ok"})

    assert await answer(RevokableApp(ok, live)) == (200, b"ok")
    with pytest.raises(RuntimeError, match="'GET /' has ended"):
        sessions[0].belongs_to("alice")
    with pytest.raises(RuntimeError, match="'GET /' has ended"):
        sessions[0].handle.open()
    sessions[0].revoke("too late")
    assert len(live) == 0


async def test_keys_that_nobody_uses_any_more_are_forgotten(live: Registry, here: Here) -> None:
    """However many tokens come and go, while somebody stays."""
    names = iter(["stays", *map(str, range(3000))])

    async def ok(_scope: Any, _receive: Any, send: Any) -> None:
        if "stays" not in here.log:
            here.note("stays")
            await anyio.sleep_forever()
        await send({"type": "http.response.start", "status": 200, "headers": []})
        await send({"type": "http.response.body", "body": b"ok"})

    app = RevokableApp(ok, live, lambda _: next(names))
    stays = asyncio.ensure_future(answer(app))
    await here.noted("stays")
    await answer(app)
    first = weakref.ref(live["0"])
    for _ in range(1, 3000):
        await answer(app)
    gc.collect()
    assert first() is None
    await live["stays"].revoke("at last")
    assert await stays == (401, b"at last\n")


async def test_a_key_that_is_being_revoked_is_not_forgotten(live: Registry, here: Here) -> None:
    """However many others come and go meanwhile, it takes in nobody until it is gone."""
    names = iter(["slow", *map(str, range(1100)), "slow"])
    go = anyio.Event()

    async def ok(_scope: Any, _receive: Any, send: Any) -> None:
        if "begun" not in here.log:
            here.note("begun")
            await go.wait()
        await send({"type": "http.response.start", "status": 200, "headers": []})
        await send({"type": "http.response.body", "body": b"ok"})

    app = RevokableApp(ok, live, lambda _: next(names))
    slow = asyncio.ensure_future(answer(app))
    await here.noted("begun")
    act = live["slow"].revoke("logged out", grace=60)
    for _ in range(1100):
        await answer(app)
    assert await answer(app) == (401, b"logged out\n")
    go.set()
    assert await slow == (200, b"ok")
    await act


async def test_a_request_leaves_nothing_to_the_garbage_collector(live: Registry) -> None:
    """Nothing that is made for it refers to itself, so all goes when the request does."""

    async def ok(scope: Any, _receive: Any, send: Any) -> None:
        scope["asyncrevoke"].belongs_to("room")
        await send({"type": "http.response.start", "status": 200, "headers": []})
        await send({"type": "http.response.body", "body": b"ok"})

    gc.collect()
    gc.disable()
    try:
        assert await answer(RevokableApp(ok, live, lambda _: "alice")) == (200, b"ok")
        assert not any(type(each) is Session for each in gc.get_objects())
    finally:
        gc.enable()


async def test_a_session_belongs_to_its_loop(live: Registry, here: Here) -> None:
    """A dependency that a framework runs in a thread is told so, before it has changed anything."""

    async def endpoint(scope: Any, receive: Any, send: Any) -> None:
        session: Session = scope["asyncrevoke"]
        for use in (lambda: session.belongs_to("bob")), (lambda: session.handle), (lambda: session.revoke("late")):
            with pytest.raises(RuntimeError, match="'GET /' was used in another thread"):
                await anyio.to_thread.run_sync(use)
        assert (session.keys, session.taken_away) == ([("alice",)], False)
        await waits(here)(scope, receive, send)

    answered = asyncio.ensure_future(answer(RevokableApp(endpoint, live, lambda _: "alice")))
    await here.noted("begun")
    await live["alice"].revoke("logged out")
    assert await answered == (401, b"logged out\n")


async def test_a_thread_that_may_be_abandoned_is_not_waited_for(live: Registry, here: Here) -> None:
    """The endpoint has said that nobody needs to."""
    go = threading.Event()

    def block() -> None:
        anyio.from_thread.run_sync(here.note, "begun")
        go.wait(20)

    async def endpoint(_scope: Any, _receive: Any, _send: Any) -> None:
        await anyio.to_thread.run_sync(block, abandon_on_cancel=True)

    answered = asyncio.ensure_future(answer(RevokableApp(endpoint, live, lambda _: "alice", limit=60)))
    await here.noted("begun")
    with anyio.fail_after(10):
        await live["alice"].revoke("logged out")
    go.set()
    assert await answered == (401, b"logged out\n")


@on_every_server
async def test_a_revocation_may_look_as_if_the_client_had_gone(kind: str, live: Registry, here: Here) -> None:
    """What waits for the client hears so, and cleans up as it does then. The client is told as ever."""

    async def consumer(_scope: Any, receive: Any, send: Any) -> None:
        await receive()
        await send({"type": "websocket.accept"})
        while (message := await asyncio.ensure_future(receive()))["type"] == "websocket.receive":
            await send({"type": "websocket.send", "text": message["text"]})
        await send({"type": "websocket.send", "text": "late"})
        here.note(message)
        here.note(await receive())

    app = RevokableApp(applications(chat=ended_by_disconnect(consumer)), live, token)
    async with served(app, kind) as client, client.websocket("/chat") as websocket:
        await websocket.send("hello")
        assert await websocket.recv() == "hello"
        await live["alice", "t1"].revoke("logged out")
        assert here.log == [{"type": "websocket.disconnect", "code": 1006}] * 2
        with pytest.raises(ConnectionClosed, match=r"4401.*logged out"):
            await websocket.recv()


@pytest.mark.parametrize("asks", [True, False])
async def test_what_does_not_end_by_a_disconnection_is_cancelled(live: Registry, here: Here, asks: bool) -> None:
    """When a further limit is over: what does not ask for messages, and what asks on and on."""

    async def endpoint(scope: Any, receive: Any, send: Any) -> None:
        here.note("asks")
        while asks:
            here.note(await receive())
        await waits(here)(scope, receive, send)

    app = RevokableApp(ended_by_disconnect(endpoint), live, lambda _: "alice", limit=0.05)
    answered = asyncio.ensure_future(answer(app))
    await here.noted("asks")
    await live["alice"].revoke("logged out")
    assert await answered == (401, b"logged out\n")
    assert here.log[-1] == ({"type": "http.disconnect", "code": 1006} if asks else "cleaned up")


async def test_a_cancellation_by_the_server_looks_so_too(here: Here) -> None:
    """And the server hears that its cancellation has arrived."""

    async def endpoint(_scope: Any, receive: Any, _send: Any) -> None:
        here.note("begun")
        here.note((await receive())["type"])

    answered = asyncio.ensure_future(answer(ended_by_disconnect(endpoint)))
    await here.noted("begun")
    answered.cancel()
    with pytest.raises(asyncio.CancelledError):
        await answered
    assert here.log == ["begun", "http.disconnect"]


async def test_a_lifespan_has_no_client_that_goes(here: Here) -> None:
    """It is cancelled as ever."""

    async def asks(_scope: Any, receive: Any, _send: Any) -> None:
        here.note("begun")
        here.note(await receive())

    lifespan = ended_by_disconnect(asks)({"type": "lifespan"}, anyio.sleep_forever, print)
    running = asyncio.ensure_future(lifespan)
    await here.noted("begun")
    running.cancel()
    with pytest.raises(asyncio.CancelledError):
        await running
    assert here.log == ["begun"]


async def test_one_session_may_be_taken_away_alone(live: Registry, here: Here) -> None:
    """The others of its key go on, and what it opened is gone with it."""

    async def opens(scope: Any, receive: Any, send: Any) -> None:
        here.note(scope["asyncrevoke"])
        scope["asyncrevoke"].handle.open("file", release=lambda: here.note("released"))
        await waits(here)(scope, receive, send)

    app = RevokableApp(opens, live, lambda _: "alice")
    first, second = asyncio.ensure_future(answer(app)), asyncio.ensure_future(answer(app))
    await here.noted("begun")
    await asyncio.sleep(0)
    one: Any = here.log[0]
    one.revoke("only this")
    assert await first == (401, b"only this\n")
    with pytest.raises(RevokedError, match="only this"):
        one.belongs_to("bob")
    assert [each["keys"] for each in app.sessions()] == [[("alice",)]]
    await live["alice"].revoke("all")
    assert await second == (401, b"all\n")
    assert here.log.count("released") == 2


async def test_errors_of_other_things_are_the_endpoints_matter(live: Registry) -> None:
    """A `RevokedError` of what is no session goes to the server, as any error."""
    other = Registry()["device"]

    async def fails(_scope: Any, _receive: Any, _send: Any) -> None:
        raise RevokedError(other)

    with pytest.raises(RevokedError, match="device"):
        await answer(RevokableApp(fails, live, lambda _: "alice"))
    assert len(live) == 0


async def test_a_look_at_the_token_that_fails_is_named(live: Registry) -> None:
    """As the function for the key: the error names the function and the request, and nobody is let in or left."""

    async def valid(_token: str) -> bool:
        raise LookupError("the database is away")

    with pytest.raises(RuntimeError, match=r"valid <function .*valid.*> failed on 'GET /.*database is away"):
        await answer(RevokableApp(applications(echo=echo), live, lambda _: "alice", valid=valid))
    assert len(live) == 0


async def test_over_http_2_others_keep_the_connection(live: Registry, here: Here) -> None:
    """A stream and a request of one token are ended, and another's stream goes on over the same connection."""
    stream = begins(here, (b"content-type", b"text/event-stream"))
    app = RevokableApp(applications(events=stream, wait=waits(here)), live, token)
    got: dict[str, str] = {}

    async def get(client: httpx.AsyncClient, path: str, token: str) -> None:
        async with client.stream("GET", path, headers={"token": token}) as response:
            assert response.http_version == "HTTP/2"
            got[f"{token}{path}"] = f"{response.status_code} {(await response.aread()).decode()}"
            here.note(f"{token}{path}")

    async with served(app, "hypercorn") as server:
        where = f"http://127.0.0.1:{server.port}"
        client = httpx.AsyncClient(http1=False, http2=True, base_url=where)
        async with client, anyio.create_task_group() as tasks:
            for path, name in ("/events", "alice"), ("/wait", "alice"), ("/events", "bob"):
                tasks.start_soon(get, client, path, name)
                await here.noted("begun")
                here.log.clear()
            await live["alice"].revoke("logged out")
            await here.noted("alice/events", "alice/wait")
            assert "bob/events" not in got
            await live["bob"].revoke("good bye")
    end = 'event: revoked\ndata: {"reason": "%s", "code": 4401}\n\n'
    assert got == {
        "alice/events": f"200 data: 1\n\n\n\n{end % 'logged out'}",
        "alice/wait": "401 logged out\n",
        "bob/events": f"200 data: 1\n\n\n\n{end % 'good bye'}",
    }


@pytest.mark.parametrize("kind", SERVERS[:2] + SERVERS[3:])
async def test_a_connection_that_cannot_be_found_is_cut_off_by_the_server(
    kind: str, live: Registry, here: Here
) -> None:
    """Behind a middleware that hides it, the application raises, and the client cannot take the response for whole."""
    inner = RevokableApp(applications(file=begins(here)), live, token)

    async def hidden(scope: Any, receive: Any, send: Any) -> None:
        async def wrapped(message: Any) -> None:
            await send(message)

        await inner(scope, receive, wrapped)

    async with served(hidden, kind) as client, client.request("/file") as (reader, _):
        await here.noted("begun")
        await live["alice", "t1"].revoke("logged out")
        assert not (await reader.read()).endswith(b"0\r\n\r\n")


@on_every_server
async def test_a_lifespan_that_fails_is_no_matter_of_ours(kind: str, live: Registry) -> None:
    """An application without one is served as it would be alone."""

    async def app(scope: Any, receive: Any, send: Any) -> None:
        assert scope["type"] == "websocket", "no lifespan here"
        await echo(scope, receive, send)

    async with served(RevokableApp(app, live, token), kind) as client, client.websocket("/echo") as websocket:
        await websocket.send("hello")
        assert await websocket.recv() == "hello"


@pytest.mark.parametrize("shutdown", [None, "going"])
async def test_the_servers_handlers_are_back_after_the_lifespan(live: Registry, shutdown: str | None) -> None:
    """In it they are ours, if that is asked for; an application without one keeps ours to the end."""
    before = signal.getsignal(signal.SIGTERM), signal.getsignal(signal.SIGINT)
    inside = []

    async def receive() -> Any:
        inside.append((signal.getsignal(signal.SIGTERM), signal.getsignal(signal.SIGINT)))

    async def send(_message: Any) -> None:
        pass

    await RevokableApp(applications(), live, shutdown=shutdown)({"type": "lifespan"}, receive, send)
    assert (signal.getsignal(signal.SIGTERM), signal.getsignal(signal.SIGINT)) == before
    assert (inside[0] == before) == (shutdown is None)


async def test_a_second_signal_is_the_servers_at_once(live: Registry) -> None:
    """Who sends it does not want to wait for those who are still there."""
    told: list[int] = []
    before = signal.signal(signal.SIGTERM, lambda *_: told.append(len(told)))

    async def receive() -> Any:
        with contextlib.suppress(RevokedError), live["alice"].using(), anyio.CancelScope(shield=True):
            signal.raise_signal(signal.SIGTERM)
            await settle()
            assert (live.root.revoked, told) == (True, [])
            signal.raise_signal(signal.SIGTERM)
            assert told == [0]
        await settle()

    try:
        await RevokableApp(applications(), live, shutdown="going")({"type": "lifespan"}, receive, ignore)
        assert told == [0, 1], "the first is handed on, too, when all have left"
    finally:
        signal.signal(signal.SIGTERM, before)


async def test_at_a_shutdown_who_is_served_may_finish(live: Registry) -> None:
    """For as long as the grace; others are refused at once. The server's own handler comes after that."""
    told: list[int] = []
    before = signal.signal(signal.SIGTERM, lambda *_: told.append(1))

    async def receive() -> Any:
        if live.root.revoked:
            return
        with live["alice"].using():
            signal.raise_signal(signal.SIGTERM)
            await settle()
            assert live.root.revoked
            with pytest.raises(RevokedError):
                live["bob"].open()
            assert told == []
        while not told:
            await anyio.sleep(0.001)

    try:
        app = RevokableApp(applications(), live, shutdown_grace=3600)
        await app({"type": "lifespan"}, receive, ignore)
    finally:
        signal.signal(signal.SIGTERM, before)


@pytest.mark.parametrize("what", ["returns", "raises", "fails"])
async def test_an_application_without_a_lifespan_keeps_ours(live: Registry, what: str) -> None:
    """Its server goes on, and its clients are told. One that fails to start is served by nobody."""
    before = signal.getsignal(signal.SIGTERM)

    async def app(_scope: Any, _receive: Any, send: Any) -> None:
        if what == "fails":
            await send({"type": "lifespan.startup.failed"})
        if what != "returns":
            raise ValueError("no lifespan")

    served: Any = RevokableApp(app, live)
    try:
        with contextlib.suppress(ValueError):
            await served({"type": "lifespan"}, anyio.sleep_forever, ignore)
        assert (signal.getsignal(signal.SIGTERM) is before) == (what == "fails")
    finally:
        signal.signal(signal.SIGTERM, before)
        signal.signal(signal.SIGINT, signal.default_int_handler)


@on_every_server
async def test_a_login_that_is_revoked_again_and_again_leaves_nothing(kind: str, live: Registry) -> None:
    """After each report nothing comes but the end, and there are no more tasks or descriptors than before."""

    def held() -> tuple[int, int]:
        return len(list(pathlib.Path("/proc/self/fd").iterdir())), len(asyncio.all_tasks())

    async with served(RevokableApp(applications(echo=echo), live, token), kind) as client:
        for round_ in range(30):
            async with client.websocket("/echo") as websocket:
                await websocket.send("hello")
                assert await websocket.recv() == "hello"
                for _ in range(round_ % 5):
                    await websocket.send("more")
                await live["alice", "t1"].revoke("logged out")
                with contextlib.suppress(ConnectionClosed):
                    while await websocket.recv() == "more":
                        pass
                assert websocket.close_code == 4401
            if round_ == 5:
                before = held()
        for _ in range(5):
            await asyncio.sleep(0)
        assert held() <= before


PROGRAM = """
import asyncio, sys
sys.path[:0] = [{tests!r}, {adapters!r}]
from asgi_servers import applications
from test_asgi import echo, token
from asyncrevoke import Registry
from asyncrevoke.adapters.asgi import RevokableApp
app = RevokableApp(applications(echo=echo), Registry(), token)
"""


@pytest.mark.parametrize("anyio_backend", BACKENDS[:1], indirect=True)
@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
@pytest.mark.parametrize(
    "command",
    [
        "uvicorn --ws websockets-sansio --http httptools",
        "uvicorn --ws wsproto --http h11 --loop asyncio",
        "hypercorn -k asyncio",
        "hypercorn -k uvloop --workers 0",
    ],
)
async def test_clients_are_told_why_before_the_server_ends(command: str, number: int, tmp_path: pathlib.Path) -> None:
    """A real signal to a real server: the reason comes first, not as of a bad token, and the server ends as ever."""
    here = pathlib.Path(__file__).parent
    (tmp_path / "program.py").write_text(PROGRAM.format(tests=str(here.parent), adapters=str(here)))
    name, *options = command.split()
    with socket.create_server(("127.0.0.1", 0)) as sock:
        port = sock.getsockname()[1]
    where = ["--port", str(port)] if name == "uvicorn" else ["--bind", f"127.0.0.1:{port}"]
    server = subprocess.Popen(
        [sys.executable, "-m", name, "program:app", *options, *where],
        cwd=tmp_path,
        stderr=subprocess.STDOUT,
        stdout=subprocess.PIPE,
        text=True,
    )
    try:
        with anyio.fail_after(30):
            while True:
                with contextlib.suppress(OSError):
                    async with Client(port).websocket("/echo") as websocket:
                        await websocket.send("hello")
                        assert await websocket.recv() == "hello"
                        server.send_signal(number)
                        with pytest.raises(ConnectionClosed) as closed:
                            await websocket.recv()
                        break
                assert server.poll() is None
                await asyncio.sleep(0.05)
            assert closed.value.rcvd is not None
            assert (closed.value.rcvd.code, closed.value.rcvd.reason) == (1012, "the server shuts down")
            output, _ = await anyio.to_thread.run_sync(server.communicate)
        assert server.returncode in (0, -number, 128 + number), output
        assert "Traceback" not in output or number == signal.SIGINT, output
    finally:
        if server.poll() is None:
            server.kill()
            server.communicate()
