"""The web terminal: its server over real sockets, and the whole of it in a browser."""

import asyncio
import base64
import contextlib
import json
import os
import pathlib
import re
import shutil
import signal
import socket
import subprocess
import tempfile
from collections.abc import AsyncIterator
from typing import Any

import anyio
import anyio.lowlevel
import pytest
import web_terminal
from starlette.websockets import WebSocket
from websockets.asyncio.client import ClientConnection, connect
from websockets.exceptions import ConnectionClosed, InvalidStatus

from conftest import BACKENDS

pytestmark = [pytest.mark.anyio, pytest.mark.parametrize("anyio_backend", BACKENDS[:1], indirect=True)]

PASSWORDS = {"alice": "a", "bob": "b", "admin": "c"}
SHELL = ["sh", "-c", "stty -echo; PS1= exec sh"]
NOT_UNDERSTOOD = "the browser has sent what is not understood, or more than the program reads"


class Site:
    """A running server, and what a browser does with it. Cookies are given by hand."""

    def __init__(self, app: web_terminal.WebTerminal, origin: str) -> None:
        self.app = app
        self.origin = origin

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

    async def login(self, user: str) -> str:
        status, _, token = await self.call("/login", {"name": user, "password": PASSWORDS[user]})
        assert status == 200
        return token

    async def start(self, token: str) -> str:
        status, text, _ = await self.call("/terminals", {}, token=token)
        assert status == 200, text
        return str(json.loads(text))

    def attach(self, name: str, token: str, origin: str = "") -> connect:
        return connect(
            f"{self.origin.replace('http', 'ws')}/terminals/{name}",
            origin=origin or self.origin,  # type: ignore[arg-type]
            additional_headers={"Cookie": f"token={token}"},
            proxy=None,
        )

    def pid(self, user: str, name: str) -> int:
        return self.app.terminals[user, name].session.pid


@contextlib.asynccontextmanager
async def serving(argv: list[str] = SHELL, **options: Any) -> AsyncIterator[Site]:
    listener = socket.create_server(("127.0.0.1", 0))
    origin = "http://127.0.0.1:{1}".format(*listener.getsockname())
    app = web_terminal.WebTerminal(PASSWORDS, origin, argv, **options)
    server = web_terminal.server(app, 0)
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


def gone(pid: int) -> bool:
    return not pathlib.Path(f"/proc/{pid}").exists()


@pytest.mark.parametrize("depth", [3, 2, 1, 0])
async def test_what_is_taken_away_is_gone_when_the_answer_comes(depth: int) -> None:
    """A terminal, a login, a user or everything: its program is gone, its browser is told, others keep theirs."""
    async with serving() as site:
        alice, bob, admin = [await site.login(user) for user in PASSWORDS]
        names = await site.start(alice), await site.start(bob)
        one, two = await site.attach(names[0], alice), await site.attach(names[1], bob)
        for each in one, two:
            await each.send(b"sleep 1000 & echo ready\n")
            await until(each, b"ready\r\n")
        pids = site.pid("alice", names[0]), site.pid("bob", names[1])
        live = json.loads((await site.call("/live", token=admin))[1])["live"]
        (path,) = [each["path"] for each in live if names[0] in each["path"]]
        status, report, _ = await site.call("/revoke", {"path": path[:depth], "reason": "é" * 99}, token=admin)
        assert status == 200, report
        assert gone(pids[0])
        assert await end(one) == (4000, "admin: " + "é" * 58)
        assert (await site.call("/live", token=alice))[0] == (200 if depth == 3 else 401)
        if depth:
            await two.send(b"echo still $((1 + 1))\n")
            assert b"still 2" in await until(two, b"still 2")
        else:
            assert gone(pids[1])
            assert (await end(two))[0] == 4000
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
        assert await end(ending) == (4000, "the program has ended")
        assert await end(expiring) == (4000, "the login has expired")
        assert await session.wait() == -signal.SIGHUP
        assert site.app._logins == {}
        assert await site.call("/live", token=token) == (401, "log in first", "")


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
            assert reader.name.startswith("browser from 127.0.0.1 since ")
            site.app._grace = 0.0
            await site.app._keep(terminal, anyio.CancelScope())  # as if the grace had ended in this very moment
            assert not terminal.key.revoked


async def test_terminal_that_nobody_comes_back_to_is_reaped() -> None:
    """When the grace is over, the program is ended, whether a browser was never attached or has gone."""
    async with serving(grace=0.2) as site:
        token = await site.login("alice")
        never, left = await site.start(token), await site.start(token)
        terminals = [site.app.terminals["alice", each] for each in (never, left)]
        await (await site.attach(left, token)).close()
        for each in terminals:
            await each.session.wait()
            assert each.key.reason == "no browser was attached for 0.2 s"


async def test_browser_that_does_not_read_holds_up_nobody_else() -> None:
    """Beside one that reads it is cut off, by a close code that invites it again; alone it is waited for, and revocable."""
    async with serving(["yes"]) as site:
        token = await site.login("alice")
        name = await site.start(token)
        pid = site.pid("alice", name)
        slow, fast = await site.attach(name, token), await site.attach(name, token)
        async with anyio.create_task_group() as tasks:
            tasks.start_soon(read, fast)
            code, reason = await end(slow)
            tasks.cancel_scope.cancel()
        assert code == 4001
        assert re.fullmatch(r"it was \d+ bytes behind, and may be 131072", reason)
        assert (await site.call("/revoke", {"path": ["alice", "x"], "reason": ""}, token=token))[0] == 404
        assert (await site.call("/revoke", {"path": ["alice"], "reason": "\x1b[2J\n"}, token=token))[0] == 200
        assert gone(pid)
        assert await end(fast) == (4000, "alice: ?[2J?")


async def test_browser_that_takes_nothing_is_cut_off(monkeypatch: pytest.MonkeyPatch) -> None:
    """Of what it claims to have read, and has not, one message waits here, which is thrown away before the report."""
    transports: list[asyncio.Transport] = []
    made = web_terminal.Socket.connection_made

    def connection_made(self: web_terminal.Socket, transport: asyncio.Transport) -> None:
        transports.append(transport)
        made(self, transport)

    monkeypatch.setattr(web_terminal, "WINDOW", 1_000_000)  # as if it said "read" at once
    monkeypatch.setattr(web_terminal.Socket, "connection_made", connection_made)
    async with serving(["yes"]) as site:
        token = await site.login("alice")
        websocket = await site.attach(await site.start(token), token)
        full = 0
        while full < 50:  # in a row: the kernel takes no more
            await anyio.sleep(0.001)
            full = full + 1 if transports and transports[0].get_write_buffer_size() else 0
        assert transports[0].get_write_buffer_size() < web_terminal.PIECE + 14
        assert (await site.call("/revoke", {"path": ["alice"], "reason": "x"}, token=token))[0] == 200
        assert transports[0].is_closing()
        assert transports[0].get_write_buffer_size() == 0
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
        assert await end(websocket) == (4001, NOT_UNDERSTOOD)


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
            for _ in range(web_terminal.AHEAD):
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
                assert await end(websocket) == (4000, "flooding")
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
            with pytest.raises(ConnectionClosed, match="4000"):
                await websocket.recv()


async def test_token_that_is_being_revoked_starts_nothing() -> None:
    """From the moment of the revocation on it is unknown, also while there is much else to take away."""
    async with serving() as site:
        token = await site.login("alice")
        for _ in range(30_000):
            site.app.live["alice"].open()
        act = site.app.live.revoke("alice")
        assert await site.call("/terminals", {}, token=token) == (401, "log in first", "")
        assert not act.done()
        await act


@pytest.mark.parametrize("origin", ["http://elsewhere.example", "http://127.0.0.1:1", "null"])
async def test_other_pages_are_refused(origin: str) -> None:
    """With the user's own cookie, a page of another origin can neither attach nor change anything."""
    async with serving() as site:
        token = await site.login("alice")
        name = await site.start(token)
        for path in "/login", "/terminals", "/revoke":
            status, text, _ = await site.call(path, {"path": ["alice"], "reason": ""}, token=token, origin=origin)
            assert (status, text) == (403, f"only the page of {site.origin} may do that: open it there")
        with pytest.raises(InvalidStatus, match="403"):
            await site.attach(name, token, origin)
        assert list(site.app.terminals) == [("alice", name)]


async def test_each_has_what_is_his_alone() -> None:
    """Forged tokens and other users get nothing; a second login of the same user may look, as long as it lasts."""
    async with serving() as site:
        alice, again, bob = [await site.login(user) for user in ("alice", "alice", "bob")]
        name = await site.start(alice)
        for forged in "", "x", alice[:-1]:
            assert (await site.call("/live", token=forged))[0] == 401
            assert (await site.call("/terminals", {}, token=forged))[0] == 401
        for token in "x", bob:
            assert await end(await site.attach(name, token)) == (
                4000,
                "there is no such terminal: log in, start another",
            )
        for path in [], ["alice"], ["alice", 1]:
            assert (await site.call("/revoke", {"path": path, "reason": ""}, token=bob))[0] == 403
        assert name not in (await site.call("/live", token=bob))[1]
        first, second = await site.attach(name, alice), await site.attach(name, again)
        login = json.loads((await site.call("/live", token=again))[1])
        await site.call("/revoke", {"path": ["alice", login["token"]], "reason": "logged out"}, token=again)
        assert await end(second) == (4000, "alice: logged out")
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
        assert await end(websocket) == (4001, NOT_UNDERSTOOD)
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
        ("/login", {"name": 1, "password": "a"}, 400),
        ("/login", {"name": "alice", "password": "\ud800"}, 403),
        ("/login", {"name": "nobody", "password": ""}, 403),
        ("/login", {"name": "\0\x1b[2J" * 500, "password": "a"}, 403),
        ("/login", {"name": "alice" * 10_000, "password": "a"}, 413),
        ("/revoke", {"path": "alice", "reason": ""}, 400),
        ("/revoke", {"path": ["alice"], "reason": None}, 400),
        ("/revoke", {"path": [["alice"], {}], "reason": ""}, 404),
        ("/revoke", {"path": ["/dev/tty"], "reason": ""}, 404),
        ("/terminals", {}, 503),
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
        alice = {"name": "alice", "password": PASSWORDS["alice"]}
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
        answer = await site.call("/terminals", {}, token=await site.login("alice"))
        assert answer[:2] == (429, "you have 10 terminals: take one of them away first")


# -- in a browser --

XTERM = pathlib.Path(web_terminal.__file__).parent / "node_modules"
TEXT = "[...Array(term.buffer.active.length).keys()].map(n => term.buffer.active.getLine(n).translateToString()).join('\\n')"
TICKS = (
    'while sleep 0.1; do i=$((i+1)); printf "\\033[H\\033[2Jtick %s of $$\\n" $i; ps -eo pid,comm | tail -n 15; done\r'
)


class Refused(Exception):
    """By the browser, as it just goes to another page."""


class Page:
    """A page, driven through the DevTools protocol."""

    def __init__(self, devtools: ClientConnection) -> None:
        self._devtools = devtools

    async def tell(self, method: str, **params: Any) -> Any:
        await self._devtools.send(json.dumps({"id": 1, "method": method, "params": params}))
        answer = json.loads(await self._devtools.recv())
        if "error" in answer:
            raise Refused(answer)
        assert "exceptionDetails" not in answer["result"], answer
        return answer["result"]

    async def run(self, script: str) -> Any:
        result = await self.tell("Runtime.evaluate", expression=script, awaitPromise=True, returnByValue=True)
        return result["result"].get("value")

    async def until(self, condition: str) -> None:
        """Wait until that is true in the page."""
        poll = f"const t = setInterval(() => {{ if ({condition}) {{ clearInterval(t); ok() }} }}, 20)"
        with anyio.fail_after(20):
            while True:
                with contextlib.suppress(Refused):
                    await self.run(f"new Promise(ok => {{ {poll} }})")
                    return

    async def shows(self, text: str, selector: str = "body") -> None:
        await self.until(f"document.querySelector('{selector}').innerText.includes({json.dumps(text)})")

    async def prints(self, pattern: str) -> str:
        """Wait until the terminal shows that."""
        await self.until(f"globalThis.term && /{pattern}/.test({TEXT})")
        return str(await self.run(f"{TEXT}.match(/{pattern}/)[1]"))

    async def type(self, text: str) -> None:
        for each in text:
            await self.tell("Input.dispatchKeyEvent", type="char", text=each)

    async def click(self, label: str) -> None:
        """The last button of that label that can be seen."""
        find = "[...document.querySelectorAll('button')].filter(b => b.offsetParent && b.innerText == %s).at(-1)"
        await self.until(f"({find % json.dumps(label)})")
        await self.run(f"({find % json.dumps(label)}).click()")

    async def login(self, user: str) -> None:
        for field, text in ("name", user), ("password", PASSWORDS[user]):
            await self.until(f"document.querySelector('[name={field}]')?.offsetParent")
            await self.run(f"document.querySelector('[name={field}]').focus()")
            await self.type(text)
        await self.picture("login")
        await self.click("Log in")
        await self.shows(f"as {user}")

    async def picture(self, name: str) -> None:
        """To look at, if a folder is given for it."""
        if folder := os.environ.get("ASYNCREVOKE_PICTURES"):
            data = (await self.tell("Page.captureScreenshot"))["data"]
            pathlib.Path(folder, f"{name}.png").write_bytes(base64.b64decode(data))


@contextlib.asynccontextmanager
async def chromium(url: str, pages: int) -> AsyncIterator[list[Page]]:
    """Pages on that address, each with cookies of its own, in Debian's browser without a window."""
    with tempfile.TemporaryDirectory(ignore_cleanup_errors=True) as profile:
        command = ["chromium", "--headless=new", "--no-sandbox", "--window-size=1000,700", "--remote-debugging-port=0"]
        command.append(f"--user-data-dir={profile}")
        async with (
            contextlib.AsyncExitStack() as connections,
            await anyio.open_process(command, start_new_session=True, stdout=None, stderr=None) as process,
        ):

            async def open_page(path: str) -> Page:
                address = f"ws://127.0.0.1:{port}{path}"
                return Page(await connections.enter_async_context(connect(address, proxy=None, max_size=None)))

            try:
                said = pathlib.Path(profile, "DevToolsActivePort")  # the port, and the path of the browser itself
                while not (said.exists() and "/" in said.read_text()):
                    assert process.returncode is None
                    await anyio.sleep(0.02)
                port, path = said.read_text().split()
                browser = await open_page(path)
                opened = []
                for _ in range(pages):
                    context = await browser.tell("Target.createBrowserContext")
                    target = await browser.tell("Target.createTarget", url=url, **context)
                    opened.append(await open_page(f"/devtools/page/{target['targetId']}"))
                yield opened
            finally:
                os.killpg(process.pid, signal.SIGKILL)


@pytest.fixture(scope="session")
def _browser() -> None:
    if not shutil.which("chromium") or not (XTERM.exists() or shutil.which("npm")):
        pytest.skip("no browser, or no xterm.js: apt-get install chromium npm")
    if not XTERM.exists():
        subprocess.run(["npm", "ci", "--no-audit", "--no-fund"], cwd=XTERM.parent, check=True)


@pytest.mark.usefixtures("_browser")
async def test_in_a_browser_one_of_two_users_is_thrown_out_and_comes_back(monkeypatch: pytest.MonkeyPatch) -> None:
    """A token is revoked: its terminal dies with the reason, another's goes on and is found again; a new login works."""
    monkeypatch.delenv("PS1", raising=False)  # which an activated environment exports
    async with serving(["bash", "--norc"]) as site, chromium(site.origin, 3) as (alice, bob, admin):
        for page, user in (alice, "alice"), (bob, "bob"):
            await page.login(user)
            await page.click("New terminal")
            await page.prints("bash-(.*)")
            await page.type(TICKS)
        pid = int(await alice.prints(r"tick .* of (\d+)"))
        await bob.prints("tick (.*) of")
        await alice.picture("terminal")
        await admin.login("admin")
        await admin.shows("alice")
        await admin.run("document.querySelector('#reason').value = 'lost laptop'")
        await admin.picture("admin")
        (token,) = [key for key in site.app.live if key[0] == "alice" and len(key) == 2]
        await admin.run(
            f"[...document.querySelectorAll('tr')].find(r => r.innerText.includes('{token[1]}')).querySelector('button').click()"
        )
        await admin.shows("revoked (admin: lost laptop)", "#notice")
        assert gone(pid)
        await alice.shows("This terminal is closed. admin: lost laptop")
        await alice.picture("revoked")
        await admin.picture("admin-after")
        now = int(await bob.prints(r"tick (\d+)"))
        await bob.until(f"+{TEXT}.match(/tick (\\d+)/)[1] > {now + 2}")
        await bob.run("document.querySelector('header a').click()")
        await bob.shows("as bob")
        await bob.run("term = undefined; document.querySelector('td a').click()")
        await bob.prints("tick (.*) of")
        await alice.click("Continue")
        await alice.login("alice")
        await alice.click("New terminal")
        await alice.prints("bash-(.*)")
