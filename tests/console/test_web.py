"""The web terminal: its server over real sockets, and the whole of it in a browser."""

import asyncio
import contextlib
import itertools
import json
import pathlib
import re
import signal
import socket
import sys
import time
import urllib.parse
from collections.abc import AsyncIterator, Callable
from typing import Any

import anyio
import anyio.lowlevel
import httpx
import pytest
from anyio.streams.text import TextReceiveStream
from joserfc import jwk, jwt
from oidc_back_channel_logout import CLIENT, EVENT, ISSUER, BackChannelLogout
from starlette.applications import Starlette
from starlette.types import ASGIApp, Receive, Scope, Send
from starlette.websockets import WebSocket
from uvicorn.protocols.websockets.websockets_sansio_impl import WebSocketsSansIOProtocol
from websockets.asyncio.client import ClientConnection, connect
from websockets.exceptions import ConnectionClosed, InvalidStatus

from asyncrevoke.console.web import site as web
from asyncrevoke.console.web.serving import server as server_of
from browser import Page, chromium, needs_browser
from conftest import BACKENDS

pytestmark = [pytest.mark.anyio, pytest.mark.parametrize("anyio_backend", BACKENDS[:1], indirect=True)]

PASSWORDS = {"alice": "a", "bob": "b", "admin": "c"}
SHELL = ["sh", "-c", "stty -echo; PS1= exec sh"]
NOT_UNDERSTOOD = "the browser has sent what is not understood, or more than the program reads"


class Site:
    """A running server, and what a browser does with it. Cookies are given by hand."""

    def __init__(self, app: web.Site, origin: str) -> None:
        self.app = app
        self.origin = origin
        self._names = itertools.count(1)

    async def answer(self, path: str, body: object = None, *, token: str = "", origin: str = "") -> str:
        """All of it, as it comes."""
        data = body if isinstance(body, bytes) else json.dumps(body).encode()
        host, port = self.origin.removeprefix("http://").split(":")
        reader, writer = await asyncio.open_connection(host, int(port))
        head = f"{'GET' if body is None else 'POST'} {path} HTTP/1.1\r\nHost: {host}:{port}\r\nConnection: close\r\n"
        head += f"Cookie: token={token}\r\nOrigin: {origin or self.origin}\r\nContent-Length: {len(data)}\r\n\r\n"
        writer.write(head.encode() + data)
        answer = (await reader.read()).decode()
        writer.close()
        await writer.wait_closed()
        return answer

    async def call(self, path: str, body: object = None, *, token: str = "", origin: str = "") -> tuple[int, str, str]:
        """The status, the body, and the token of the cookie that was set."""
        answer = await self.answer(path, body, token=token, origin=origin)
        cookie = re.search(r"set-cookie: token=([^;]+); HttpOnly; Path=/; SameSite=strict\r\n", answer)
        return int(answer.split()[1]), answer.partition("\r\n\r\n")[2], cookie[1] if cookie else ""

    async def login(self, user: str, device: str = "laptop") -> str:
        fields = {"name": user, "password": PASSWORDS[user], "device": device}
        status, _, token = await self.call("/login", fields)
        assert status == 200
        return token

    async def start(self, token: str, name: str = "") -> str:
        name = name or f"terminal {next(self._names)}"
        status, text, _ = await self.call("/terminals", {"name": name}, token=token)
        assert status == 200, text
        return str(json.loads(text))

    def websocket(self, path: str, token: str, origin: str = "") -> connect:
        return connect(
            f"{self.origin.replace('http', 'ws')}{path}",
            origin=origin or self.origin,  # type: ignore[arg-type]
            additional_headers={"Cookie": f"token={token}"},
            proxy=None,
        )

    def attach(self, name: str, token: str, user: str = "alice", origin: str = "") -> connect:
        return self.websocket(f"/terminals/{user}/{urllib.parse.quote(name)}", token, origin)

    async def seen(self, token: str) -> dict[str, Any]:
        """What a page is told, by the last parts of the paths."""
        async with self.websocket("/live", token) as live:
            told = json.loads(await live.recv())
        return {"me": told["me"], **{each["path"][-1]: each for each in told["live"]}}

    def pid(self, user: str, name: str) -> int:
        return self.app.terminals[user, name].session.pid


@contextlib.asynccontextmanager
async def serving(
    argv: list[str] = SHELL, around: Callable[[web.Site], ASGIApp] = lambda app: app, **options: Any
) -> AsyncIterator[Site]:
    listener = socket.create_server(("127.0.0.1", 0))
    origin = "http://127.0.0.1:{1}".format(*listener.getsockname())
    app = web.Site(PASSWORDS, origin, argv, **options)
    server = server_of(around(app), 0)
    with anyio.fail_after(100), listener:
        async with anyio.create_task_group() as tasks:
            tasks.start_soon(server.serve, [listener])
            yield Site(app, origin)
            server.should_exit = True


async def until(websocket: ClientConnection, marker: bytes) -> bytes:
    """What comes until the marker is in it, told to be read."""
    got = b""
    while marker not in got:
        message = await websocket.recv()
        assert isinstance(message, bytes)
        got += message
        await websocket.send('"read"')
    return got


async def read(websocket: ClientConnection) -> None:
    """Go on reading until it is closed."""
    with contextlib.suppress(ConnectionClosed):
        while True:
            await until(websocket, b"y")


async def end(websocket: ClientConnection) -> tuple[int, str]:
    """How the server closes it."""
    with pytest.raises(ConnectionClosed) as closed:
        while True:
            await websocket.recv()
    assert closed.value.rcvd
    return closed.value.rcvd.code, closed.value.rcvd.reason


def noted_transports(monkeypatch: pytest.MonkeyPatch) -> list[asyncio.Transport]:
    """Those of the websockets from now on, at the server."""
    transports: list[asyncio.Transport] = []
    made = WebSocketsSansIOProtocol.connection_made

    def connection_made(self: WebSocketsSansIOProtocol, transport: asyncio.Transport) -> None:
        transports.append(transport)
        made(self, transport)

    monkeypatch.setattr(WebSocketsSansIOProtocol, "connection_made", connection_made)
    return transports


def gone(pid: int) -> bool:
    return not pathlib.Path(f"/proc/{pid}").exists()


@pytest.mark.parametrize("depth", [3, 2, 1, 0])
async def test_what_is_taken_away_is_gone_when_the_answer_comes(depth: int) -> None:
    """A terminal, a login, a user or everything: its program is gone, its browser is told, others keep theirs."""
    async with serving() as site:
        alice, bob, admin = [await site.login(user) for user in PASSWORDS]
        names = await site.start(alice), await site.start(bob)
        one, two = await site.attach(names[0], alice), await site.attach(names[1], bob, "bob")
        for each in one, two:
            await each.send(b"sleep 1000 & echo ready\n")
            await until(each, b"ready\r\n")
        pids = site.pid("alice", names[0]), site.pid("bob", names[1])
        path = (await site.seen(admin))[names[0]]["path"]
        status, report, _ = await site.call(
            "/revoke", {"path": "/".join(path[:depth]), "reason": "é" * 99}, token=admin
        )
        assert status == 200, report
        assert gone(pids[0])
        assert await end(one) == (4401, "é" * 57 + " (admin)"), "by whom is told, however long the reason is"
        assert (await site.call("/terminals", {"name": "a"}, token=alice))[0] == (200 if depth == 3 else 401)
        if depth:
            await two.send(b"echo still $((1 + 1))\n")
            assert b"still 2" in await until(two, b"still 2")
        else:
            assert gone(pids[1])
            assert (await end(two))[0] == 4401
        await two.close()
        again = await site.start(await site.login("alice"))
        assert not gone(site.pid("alice", again))


async def test_what_ends_a_terminal_is_told_to_its_browser() -> None:
    """The program's own end, and the end of the login's time, are the reason that the socket is closed with."""
    async with serving(expiry=2.0) as site:
        token = await site.login("alice")
        names = await site.start(token), await site.start(token)
        ending, expiring = [await site.attach(name, token) for name in names]
        session = site.app.terminals["alice", names[1]].session
        await ending.send(b"exit\n")
        assert await end(ending) == (4401, "the program has ended")
        assert await end(expiring) == (4401, "its time is over")
        assert await session.wait() == -signal.SIGHUP
        assert await end(await site.websocket("/live", token)) == (4401, "its time is over")
        assert (await site.call("/terminals", {"name": "a"}, token=token))[0] == 401


async def test_page_is_told_what_its_user_may_see() -> None:
    """By names that people chose: what runs, who looks, and from where; the admin sees all, the others what is theirs."""
    async with serving() as site:
        alice, bob, admin = await site.login("alice", "old phone"), await site.login("bob"), await site.login("admin")
        await site.start(alice, "build")
        async with site.attach("build", alice) as types, site.attach("build", admin):
            await types.send("[50, 132]")
            await types.send(b"sleep 1000\n")
            while (told := await site.seen(alice))["build"]["runs"] != "sleep 1000":
                pass
            _, token = told.pop("me")
            build, login = told.pop("build"), told.pop(token)
            assert told == {}
            assert build == {
                "path": ["alice", token, "build"],
                "runs": "sleep 1000",
                "people": ["alice (old phone)", "admin (watching)"],
                "size": [50, 132],
            }
            assert (login["device"], login["client"]) == ("old phone", "127.0.0.1")
            assert login["until"] - login["since"] == 28800
            assert (await site.seen(admin))["build"]["path"] == build["path"]
            assert "build" not in await site.seen(bob)


async def test_page_is_told_of_a_change_by_itself() -> None:
    """A terminal that another page has started, and closed, is in the next message."""
    async with serving(["cat"]) as site:
        token = await site.login("alice")
        async with site.websocket("/live", token) as live:

            async def until_told(*names: str) -> None:
                while (
                    tuple(path[2] for each in json.loads(await live.recv())["live"] if len(path := each["path"]) == 3)
                    != names
                ):
                    pass

            await until_told()
            await site.start(token, "build")
            await until_told("build")
            await site.app.live.revoke("alice", site.app.terminals["alice", "build"].path[1], "build")
            await until_told()


async def test_admin_watches_and_cannot_type() -> None:
    """What the admin's page sends as keys, or as a size, ends its own look at the terminal, and nothing else."""
    async with serving() as site:
        alice, admin = await site.login("alice"), await site.login("admin")
        await site.start(alice, "build")
        async with site.attach("build", alice) as types:
            for sent in b"echo typed\n", "[1, 1]":
                async with site.attach("build", admin) as watches:
                    await types.send(b"echo seen $((1 + 1))\n")
                    await until(watches, b"seen 2")
                    await watches.send(sent)
                    assert await end(watches) == (4401, NOT_UNDERSTOOD)
            await types.send(b"stty size\n")
            assert b"typed" not in await until(types, b"24 80\r\n")


@pytest.mark.parametrize("name", ["", " ", "a/b", "..", "-a", "a" * 41, "\x1b[2J", "a\n"])
async def test_names_that_would_confuse_are_refused(name: str) -> None:
    """For terminals and devices alike, with what a name may be."""
    async with serving(["cat"]) as site:
        token = await site.login("alice")
        terminal, login = {"name": name}, {"name": "bob", "password": "b", "device": name}
        for path, fields, field in ("/terminals", terminal, "name"), ("/login", login, "device"):
            status, text, _ = await site.call(path, fields, token=token)
            assert status == 400
            assert f"{field!r}: {web.NAME!r}" in text


async def test_name_of_a_terminal_is_taken_as_long_as_it_lives() -> None:
    """Then the user, and meanwhile another one, may choose it again."""
    async with serving(["cat"]) as site:
        alice, bob = await site.login("alice"), await site.login("bob")
        await site.start(alice, "build")
        assert await site.call("/terminals", {"name": "build"}, token=alice) == (
            409,
            "you have a terminal build: choose another name",
            "",
        )
        await site.start(bob, "build")
        path = site.app.terminals["alice", "build"].path
        assert (await site.call("/revoke", {"path": "/".join(path), "reason": ""}, token=alice))[0] == 200
        await site.start(alice, "build")
        async with site.attach("build", alice) as websocket:
            await websocket.send(b"again\n")
            await until(websocket, b"again\r\n")


async def test_terminal_without_a_browser_goes_on_and_is_found_again(tmp_path: pathlib.Path) -> None:
    """More than any buffer holds is printed while nobody is attached; who attaches again gets the last of it."""
    async with serving() as site:
        token = await site.login("alice")
        name = await site.start(token)
        async with site.attach(name, token) as first:
            done = tmp_path / "done"
            await first.send(f"head -c 1000000 /dev/zero | tr '\\0' x; echo last $((1 + 1)); touch {done}\n".encode())
            await until(first, b"x")
        while not done.exists():
            await anyio.sleep(0.01)
        async with site.attach(name, token) as second:
            await second.send(b"echo new $((1 + 1))\n")
            got = await until(second, b"new 2\r\n")
            assert got.endswith(b"xlast 2\r\nnew 2\r\n")
            assert len(got) < 70_000
            terminal = site.app.terminals["alice", name]
            (reader,) = terminal.session.clients  # so that the program waits for the browser
            assert reader.name == "alice (laptop)"
            site.app._grace = 0.0
            await site.app._keep(terminal, anyio.CancelScope())  # as if the grace had ended in this very moment
            assert not terminal.node.revoked


async def test_terminal_that_nobody_comes_back_to_is_reaped() -> None:
    """When the grace is over, the program is ended, whether a browser was never attached or has gone."""
    async with serving(grace=0.2) as site:
        token = await site.login("alice")
        never, left = await site.start(token), await site.start(token)
        terminals = [site.app.terminals["alice", each] for each in (never, left)]
        await (await site.attach(left, token)).close()
        for each in terminals:
            await each.session.wait()
            assert each.node.reason == "nobody looked at it for 0.2 s"


async def test_browser_that_does_not_read_holds_up_nobody_else() -> None:
    """Beside one that reads it is cut off; alone it is waited for, and revocable."""
    async with serving(["yes"]) as site:
        token = await site.login("alice")
        name = await site.start(token)
        pid = site.pid("alice", name)
        slow, fast = await site.attach(name, token), await site.attach(name, token)
        async with anyio.create_task_group() as tasks:
            tasks.start_soon(read, fast)
            code, reason = await end(slow)
            tasks.cancel_scope.cancel()
        assert code == 4401
        assert re.fullmatch(r"it was \d+ bytes behind, and may be 131072", reason)
        assert (await site.call("/revoke", {"path": "alice/x", "reason": ""}, token=token))[0] == 404
        assert (await site.call("/revoke", {"path": "alice", "reason": "\x1b[2J\n"}, token=token))[0] == 200
        assert gone(pid)
        assert await end(fast) == (4401, "\\x1b[2J")


async def test_browser_that_takes_nothing_is_cut_off(monkeypatch: pytest.MonkeyPatch) -> None:
    """Of what it claims to have read, and has not, one buffer waits here, which is thrown away before the report."""
    transports = noted_transports(monkeypatch)
    monkeypatch.setattr(web, "WINDOW", 1_000_000)  # as if it said "read" at once
    async with serving(["yes"]) as site:
        token = await site.login("alice")
        name = await site.start(token)
        websocket = await site.attach(name, token)
        full = 0
        while full < 50:  # in a row: the kernel takes no more
            await anyio.sleep(0.001)
            full = full + 1 if transports and transports[0].get_write_buffer_size() else 0
        (transport,) = transports
        assert transport.get_write_buffer_size() < 70_000
        path = "/".join(site.app.terminals["alice", name].path)
        assert (await site.call("/revoke", {"path": path, "reason": "x"}, token=token))[0] == 200
        assert transport.is_closing()
        assert transport.get_write_buffer_size() == 0
        websocket.transport.abort()


async def test_more_is_typed_than_fits_anywhere() -> None:
    """What a program reads and prints again goes round however much it is; what no program reads has a bound."""
    raw = "stty raw -echo; echo ready; exec"
    async with serving(["sh", "-c", f"{raw} cat"]) as site:
        token = await site.login("alice")
        async with site.attach(await site.start(token), token) as websocket:
            await until(websocket, b"ready\n")
            for _ in range(60):
                await websocket.send(b"x" * 9_999 + b"\n")
            got = b""
            while got.count(b"\n") < 60:
                got += await until(websocket, b"x")
            assert got == (b"x" * 9_999 + b"\n") * 60
    async with serving(["sh", "-c", f"{raw} sleep 1000"]) as site:
        token = await site.login("alice")
        websocket = await site.attach(await site.start(token), token)
        with contextlib.suppress(ConnectionClosed):
            while True:
                await websocket.send(b"x" * 9_999)
        assert await end(websocket) == (4401, NOT_UNDERSTOOD)


async def test_nothing_is_sent_after_the_report(monkeypatch: pytest.MonkeyPatch) -> None:
    """While both sides flood, and wherever the revocation comes, the last byte is sent before it is reported."""
    sent: list[int] = []
    send = WebSocket.send_bytes

    async def noted(self: WebSocket, data: bytes) -> None:
        sent.append(len(data))
        await send(self, data)

    monkeypatch.setattr(WebSocket, "send_bytes", noted)

    async def write(websocket: ClientConnection) -> None:
        with contextlib.suppress(ConnectionClosed):
            for _ in range(web.AHEAD):
                await websocket.send(b"input\n" * 500)

    async with serving(["sh", "-c", "yes & exec cat"]) as site:
        for round_ in range(50):
            token = await site.login("alice")
            name = await site.start(token)
            pid = site.pid("alice", name)
            async with site.attach(name, token) as websocket:
                async with anyio.create_task_group() as tasks:
                    tasks.start_soon(read, websocket)
                    tasks.start_soon(write, websocket)
                    sent.clear()
                    while len(sent) < round_ * 3:
                        await anyio.lowlevel.checkpoint()
                    await site.app.live.revoke("alice", reason="flooding")
                    before = len(sent)
                    assert gone(pid)
                assert await end(websocket) == (4401, "flooding")
            assert len(sent) == before


async def test_token_that_goes_during_the_handshake_shows_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    """What is revoked between the handshake and the first byte sends none: the socket is closed."""
    accept = WebSocket.accept
    async with serving() as site:
        token = await site.login("alice")
        name = await site.start(token)

        async def revoked(self: WebSocket) -> None:
            await accept(self)
            site.app.live.revoke("alice")

        monkeypatch.setattr(WebSocket, "accept", revoked)
        async with site.attach(name, token) as websocket:
            with pytest.raises(ConnectionClosed, match="4401"):
                await websocket.recv()


async def test_token_that_is_being_revoked_starts_nothing() -> None:
    """From the moment of the revocation on it is unknown, also while there is much else to take away."""
    async with serving() as site:
        token = await site.login("alice")
        for _ in range(30_000):
            site.app.live["alice"].open()
        act = site.app.live.revoke("alice")
        assert (await site.call("/terminals", {"name": "a"}, token=token))[0] == 401
        assert not act.done()
        await act


@pytest.mark.parametrize("origin", ["http://elsewhere.example", "http://127.0.0.1:1", "null"])
async def test_other_pages_are_refused(origin: str) -> None:
    """With the user's own cookie, a page of another origin can neither attach nor change anything."""
    async with serving() as site:
        token = await site.login("alice")
        name = await site.start(token)
        for path in "/login", "/terminals", "/revoke":
            status, text, _ = await site.call(path, {"path": "alice", "reason": ""}, token=token, origin=origin)
            assert (status, text) == (403, f"only the page of {site.origin} may do that: open it there")
        with pytest.raises(InvalidStatus, match="403"):
            await site.attach(name, token, origin=origin)
        assert list(site.app.terminals) == [("alice", name)]


async def test_each_has_what_is_his_alone() -> None:
    """Forged tokens and other users get nothing; a second login of the same user may look, as long as it lasts."""
    async with serving() as site:
        alice, again, bob = [await site.login(user) for user in ("alice", "alice", "bob")]
        name = await site.start(alice)
        for forged in "", "x", alice[:-1]:
            assert await end(await site.websocket("/live", forged)) == (4401, "")
            assert await site.call("/terminals", {"name": "a"}, token=forged) == (401, "log in first", "")
            assert await site.call("/revoke", {"path": "alice", "reason": ""}, token=forged) == (
                401,
                "log in first",
                "",
            )
            assert await end(await site.attach(name, forged)) == (4401, "")
        assert await end(await site.attach(name, bob)) == (4401, "there is no such terminal")
        for path in "", "alice", "alice/x":
            assert (await site.call("/revoke", {"path": path, "reason": ""}, token=bob))[0] == 403
        first, second = await site.attach(name, alice), await site.attach(name, again)
        me = (await site.seen(again))["me"]
        assert (await site.call("/revoke", {"path": "/".join(me), "reason": "logged out"}, token=again))[0] == 200
        assert await end(second) == (4401, "logged out")
        assert await end(await site.websocket("/live", again)) == (4401, "logged out")
        await first.send(b"echo still $((1 + 1))\n")
        await until(first, b"still 2")
        await first.close()


@pytest.mark.parametrize(
    "garbage", ["", "{", "[]", "[0, 80]", "[24, 1e9]", '"read"', "[" * 60_000, "9" * 9000, '"\\ud800"']
)
async def test_garbage_on_the_socket_ends_the_socket_alone(garbage: str) -> None:
    """The browser is told that it is not understood, and may attach again."""
    async with serving() as site:
        token = await site.login("alice")
        name = await site.start(token)
        websocket = await site.attach(name, token)
        await websocket.send(b"")
        await websocket.send("[50, 132]")
        await websocket.send(garbage)
        assert await end(websocket) == (4401, NOT_UNDERSTOOD)
        async with site.attach(name, token) as again:
            await again.send(b"stty size\n")
            await until(again, b"50 132\r\n")


@pytest.mark.parametrize(
    ("path", "body", "status"),
    [
        ("/login", b"\xff", 400),
        ("/login", b"[" * 9000, 400),
        ("/login", [], 400),
        ("/login", {"name": "alice"}, 400),
        ("/login", {"name": 1, "password": "a", "device": "x"}, 400),
        ("/login", {"name": "alice", "password": "\ud800", "device": "x"}, 403),
        ("/login", {"name": "nobody", "password": "", "device": "x"}, 403),
        ("/login", {"name": "\0\x1b[2J" * 500, "password": "a", "device": "x"}, 403),
        ("/login", {"name": "alice" * 10_000, "password": "a"}, 413),
        ("/revoke", {"path": ["alice"], "reason": ""}, 400),
        ("/revoke", {"path": "alice", "reason": None}, 400),
        ("/revoke", {"path": "alice//", "reason": ""}, 404),
        ("/revoke", {"path": "/dev/tty", "reason": ""}, 404),
        ("/terminals", {}, 400),
        ("/terminals", {"name": "a"}, 503),
    ],
)
async def test_requests_that_make_no_sense_are_answered_so(path: str, body: object, status: int) -> None:
    """A refusal says what is wrong, and nothing of it is held."""
    async with serving(["/does/not/exist"]) as site:
        token = await site.login("admin")
        assert (await site.call(path, body, token=token))[0] == status
        assert site.app.terminals == {}
        assert [len(key) for key in site.app.live] == [1, 2], "the login alone"


async def test_no_page_may_frame_ours() -> None:
    """Its buttons could be clicked unseen."""
    async with serving() as site:
        head, _, _ = (await site.answer("/")).partition("\r\n\r\n")
        assert re.search(r"^content-security-policy: .*frame-ancestors 'none'", head, re.MULTILINE)


async def test_cookie_is_for_https_alone_where_there_is_https() -> None:
    """Else it could be read on its way."""
    async with serving() as site:
        site.app._origin = "https://terminal.example"
        alice = {"name": "alice", "password": PASSWORDS["alice"], "device": "x"}
        answer = await site.answer("/login", alice, origin="https://terminal.example")
        assert re.search(r"^set-cookie: token=.*; Secure\r$", answer, re.MULTILINE)


async def test_message_that_is_too_long_is_not_taken() -> None:
    """What the server keeps of what a browser sends has a bound."""
    async with serving() as site:
        token = await site.login("alice")
        websocket = await site.attach(await site.start(token), token)
        await websocket.send(b"x" * ((1 << 16) + 1))
        assert (await end(websocket))[0] == 1009


async def test_a_user_has_only_so_many_terminals() -> None:
    """One terminal more is refused, by another login too, with what to do about it; another user has his own."""
    async with serving(["cat"]) as site:
        token = await site.login("alice")
        for _ in range(10):
            await site.start(token)
        await site.start(await site.login("bob"))
        answer = await site.call("/terminals", {"name": "one more"}, token=await site.login("alice"))
        assert answer[:2] == (429, "you have 10 terminals: close one of them first")


# -- in a browser --

TICKS = (
    'while sleep 0.1; do i=$((i+1)); printf "\\033[H\\033[2Jtick %s of $$\\n" $i; ps -eo pid,comm | tail -n 15; done\r'
)


@needs_browser
async def test_stopping_server_tells_its_pages_why() -> None:
    """On SIGTERM the program that the documentation starts closes each websocket with the reason, and ends."""
    with socket.create_server(("127.0.0.1", 0)) as listener:
        port = listener.getsockname()[1]
    command = [sys.executable, "-m", "asyncrevoke", "web", "--port", str(port), "--", *SHELL]
    with anyio.fail_after(30):
        async with await anyio.open_process(command, stderr=None) as process:
            try:
                assert process.stdout
                output = TextReceiveStream(process.stdout)
                printed = ""
                while not (found := re.search("#login=(.*):(.*)\n", printed)):
                    printed += await output.receive()
                site = Site(web.Site({}, "", SHELL), f"http://127.0.0.1:{port}")
                fields = {"name": found[1], "password": found[2], "device": "laptop"}
                token = ""
                while not token:  # it prints before it listens
                    with contextlib.suppress(ConnectionError):
                        _, _, token = await site.call("/login", fields)
                pages = (
                    await site.websocket("/live", token),
                    await site.attach(await site.start(token), token, found[1]),
                )
                process.send_signal(signal.SIGTERM)
                for page in pages:
                    assert await end(page) == (1012, "the server is stopping")
                await process.wait()
            finally:
                with contextlib.suppress(ProcessLookupError):
                    process.kill()


def said(notice: str) -> str:
    return f"Your login has ended: {notice}. You may log in again."


class Provider:
    """Of identities, which logs out over the back channel, and the receiver in front of the web terminal."""

    def __init__(self) -> None:
        self._key = jwk.RSAKey.generate_key(2048, {"kid": "1", "use": "sig"})

    def in_front_of(self, app: web.Site) -> ASGIApp:
        keys = jwk.KeySet.import_key_set({"keys": [self._key.as_dict(private=False)]})
        self.receiver = BackChannelLogout(app.live, keys)
        routes = Starlette(routes=self.receiver.routes)

        async def either(scope: Scope, receive: Receive, send: Send) -> None:
            await (routes if scope.get("path") == "/logout" else app)(scope, receive, send)

        return either

    async def log_out(self, origin: str, sid: str) -> None:
        now = int(time.time())
        claims = {
            "iss": ISSUER,
            "aud": CLIENT,
            "iat": now,
            "exp": now + 120,
            "jti": sid,
            "events": {EVENT: {}},
            "sid": sid,
        }
        token = jwt.encode({"alg": "RS256", "kid": "1", "typ": "logout+jwt"}, claims, self._key)
        async with httpx.AsyncClient(trust_env=False) as client:
            answer = await client.post(f"{origin}/logout", data={"logout_token": token})
        assert answer.status_code == 200


@needs_browser
@pytest.mark.parametrize("how", ["by the admin", "by the identity provider", "by its time"])
async def test_in_a_browser_one_of_two_users_is_logged_out(how: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Her terminal ends, and her page says why and lets her log in again; the other types on."""
    monkeypatch.delenv("PS1", raising=False)  # which an activated environment exports
    provider = Provider()
    async with (
        serving(["bash", "--norc"], provider.in_front_of) as site,
        chromium(site.origin, 3) as (alice, bob, admin),
    ):
        await bob.login("bob", PASSWORDS["bob"])
        await bob.start("notes")
        await bob.type("read -p 'who? ' who; echo \"it is $who\"\r")
        await bob.prints("(who.) ")
        await admin.login("admin", PASSWORDS["admin"])
        if how == "by its time":
            site.app._expiry = 10.0
        await alice.login("alice", PASSWORDS["alice"], "old phone")
        await alice.start("build")
        await alice.type(TICKS)
        pid = int(await alice.prints(r"tick .* of (\d+)"))
        await bob.type("bo")
        (path,) = [key for key in site.app.live if key[0] == "alice" and len(key) == 2]
        if how == "by the admin":
            await admin.click("Log out: old phone")
            await admin.fill("#ask [name=reason]", "lost laptop")
            await admin.type("\r")
            await admin.shows("The login “old phone” of alice has ended.", "#notice.good[role=status]")
            await alice.shows(said("lost laptop (admin)"))
            assert gone(pid)
        elif how == "by the identity provider":
            provider.receiver.logins.add(path)
            await provider.log_out(site.origin, path[1])
            assert gone(pid)
            await alice.shows(said("logged out at the provider"))
        else:
            await alice.shows(said("its time is over"))
        await alice.picture("ended")
        await bob.type("b\r")
        await bob.prints("(it is bob)")
        assert path not in site.app.live
        await alice.login("alice", PASSWORDS["alice"])
        await alice.start("build")


@needs_browser
async def test_in_a_browser_taking_away_asks_back() -> None:
    """Whoever cancels keeps everything. For everybody it asks twice. Then all are told, the admin, too."""
    async with serving(["bash", "--norc"]) as site, chromium(site.origin, 2) as (alice, admin):
        await alice.login("alice", PASSWORDS["alice"])
        await alice.start("build")
        await admin.login("admin", PASSWORDS["admin"])
        await admin.click("Close: build")
        await admin.fill("#ask [name=reason]", "only a try")
        await admin.press("Escape", 27)
        await admin.until("!document.querySelector('#ask').open")
        await admin.click("Log everybody out: Everybody")
        await admin.until("document.querySelector('#ask [name=reason]').value == ''")  # that was of the other row
        await admin.fill("#ask [name=reason]", "good night")
        await admin.click("Log everybody out")
        await admin.shows("Really everybody?", "#ask")
        await admin.click("Cancel")
        assert ("alice", "build") in site.app.terminals
        await admin.click("Log everybody out: Everybody")
        await admin.fill("#ask [name=reason]", "good night")
        await admin.click("Log everybody out")
        await admin.click("Yes, everybody")
        for page in alice, admin:
            await page.shows(said("good night (admin)"))
        assert list(site.app.live) == []
        await alice.login("alice", PASSWORDS["alice"])
        await alice.click("Log out")
        await alice.shows(said("you logged out"))


@needs_browser
async def test_in_a_browser_a_terminal_is_watched_and_closed() -> None:
    """Both see who is there and what runs; who watches cannot type; the reason is told when it is closed."""
    async with serving(["bash", "--norc"]) as site, chromium(site.origin, 2) as (alice, admin):
        await alice.login("alice", PASSWORDS["alice"])
        await alice.start("build")
        await alice.type("sleep 1000\r")
        await admin.login("admin", PASSWORDS["admin"])
        await admin.shows("sleep 1000", "#rows")
        await admin.shows("alice (laptop)", "#rows")
        await admin.click("Watch build")
        await admin.prints("(sleep 1000)")
        await admin.shows("build of alice", "#bar h1")
        await admin.shows("You are watching", "#watching")
        await admin.type("x")
        await alice.shows("alice (laptop), admin (watching)", "#bar p")
        await admin.until(f"term.cols == {await alice.run('term.cols')} && term.rows == {await alice.run('term.rows')}")
        await alice.press("Escape", 27, modifiers=8)
        await alice.until("document.activeElement.id == 'back'")
        await admin.click("Close…")
        await admin.fill("#ask [name=reason]", "maintenance")
        await admin.click("Close")
        for page in alice, admin:
            await page.shows("This terminal is closed: maintenance (admin).", "#notice")
        await alice.click("Back to the list")
        await alice.shows("no terminals", "#rows")
        await alice.start("build")


@needs_browser
async def test_in_a_browser_a_lost_connection_comes_back(monkeypatch: pytest.MonkeyPatch) -> None:
    """The page says that it tries again, and goes on where it was, by itself."""
    transports = noted_transports(monkeypatch)
    async with serving(["bash", "--norc"]) as site, chromium(site.origin, 1) as (page,):
        await page.login("alice", PASSWORDS["alice"])
        await page.start("build")
        await page.type("echo still $((1 + 1))\r")
        await page.prints("(still 2)")
        await page.run("globalThis.before = term; 0")
        for each in transports:
            each.abort()
        await page.shows("The connection is lost. Trying again…", "#notice.bad[role=alert]")
        await page.until("globalThis.term && term != before")
        await page.prints("(still 2)")


@needs_browser
@pytest.mark.parametrize("address", ["#%", "#alice", "#bob/notes", "#alice/x/y"])
async def test_in_a_browser_an_address_of_nothing_is_told(address: str) -> None:
    """Of a terminal that is not there, or not the user's, the page says so, and leads back."""
    async with serving(["cat"]) as site, chromium(f"{site.origin}/{address}", 1) as (page,):
        await page.login("alice", PASSWORDS["alice"])
        await page.shows("This terminal is closed: there is no such terminal.", "#notice")
        await page.click("Back to the list")
        await page.shows("no terminals", "#rows")


NAMELESS = """[...document.querySelectorAll("button, a, input")].filter(
    each => each.checkVisibility() && !(each.ariaLabel || each.innerText || each.labels?.[0]?.innerText)).length"""
FAINT = """(() => {
    const light = color => { // WCAG 2.2, relative luminance
        const [r, g, b] = color.match(/[\\d.]+/g).map(v => (v /= 255) <= 0.04045 ? v / 12.92 : ((v + 0.055) / 1.055) ** 2.4);
        return 0.2126 * r + 0.7152 * g + 0.0722 * b + 0.05;
    };
    const behind = each => getComputedStyle(each).backgroundColor.replace("rgba(0, 0, 0, 0)", "") || behind(each.parentElement);
    return [...document.querySelectorAll("body *:not(#screen *)")].filter(each => {
        const text = [...each.childNodes].some(node => node.nodeType == 3 && node.data.trim());
        const [low, high] = [light(getComputedStyle(each).color), light(behind(each))].sort((a, b) => a - b);
        return text && each.checkVisibility() && high / low < 4.5;
    }).map(each => each.outerHTML);
})()"""


@needs_browser
async def test_in_a_browser_everything_has_a_name_and_fits_and_can_be_read() -> None:
    """What one can press or fill in has a name. Nothing is wider than a phone. Text has its contrast, in the dark, too."""
    async with serving(["bash", "--norc"]) as site, chromium(site.origin, 2) as (alice, admin):

        async def check(page: Page) -> None:
            assert await page.run(NAMELESS) == 0
            assert await page.run("document.documentElement.scrollWidth <= innerWidth")
            for scheme in "light", "dark":
                features = [
                    {"name": "prefers-color-scheme", "value": scheme},
                    {"name": "prefers-reduced-motion", "value": "reduce"},
                ]
                await page.tell("Emulation.setEmulatedMedia", features=features)
                assert await page.run(FAINT) == []

        for page in alice, admin:
            await page.tell(
                "Emulation.setDeviceMetricsOverride", width=390, height=844, deviceScaleFactor=1, mobile=True
            )
            await page.tell("Emulation.setTouchEmulationEnabled", enabled=True)
            await page.shows("Log in", "#login")
            await check(page)
        await alice.login("alice", PASSWORDS["alice"], "a phone of so long a name that it breaks")
        await alice.start("another name of some length for the list")
        await alice.click("Control C")
        await alice.prints("\\^(C)")
        await check(alice)
        await admin.login("admin", PASSWORDS["admin"])
        await admin.shows("another name")
        await check(admin)
        await admin.click("Close: another name of some length for the list")
        await check(admin)
        await admin.click("Close")
        await admin.shows("is closed", "#notice.good")
        await alice.shows("is closed", "#notice.told")
        for page in alice, admin:
            await check(page)
