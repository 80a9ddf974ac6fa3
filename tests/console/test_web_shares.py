"""Shares of a console server in the browser: over real sockets, and in a browser."""

import asyncio
import contextlib
import grp
import json
import os
import pathlib
import subprocess
import sys
from collections.abc import AsyncIterator
from typing import Any

import anyio
import pytest
from websockets.asyncio.client import ClientConnection

from asyncrevoke.console.server import host
from asyncrevoke.console.share import Share
from asyncrevoke.console.web import shares as web_shares
from asyncrevoke.console.web.shares import Shares
from asyncrevoke.control import ControlError, connect
from asyncrevoke.control.peer import user_name
from browser import chromium, needs_browser
from conftest import BACKENDS
from test_console import ECHO, Lab, lab
from test_web import PASSWORDS, Site, end, serving

pytestmark = [pytest.mark.anyio, pytest.mark.parametrize("anyio_backend", BACKENDS[:1], indirect=True)]

ME = user_name(os.geteuid())
as_root = pytest.mark.skipif(os.geteuid() != 0, reason="only root may give the socket to another group")


@contextlib.asynccontextmanager
async def site_of(server: Lab, **options: Any) -> AsyncIterator[tuple[Site, str]]:
    """A site on a console server, and a token of the user who runs both."""
    PASSWORDS[ME] = "m"
    try:
        async with serving(shares=Shares(server.socket, ME), admins=(ME,), **options) as site:
            yield site, await site.login(ME)
    finally:
        del PASSWORDS[ME]


async def told(websocket: ClientConnection, name: str) -> Any:
    """What a share tells beside its output, from a record that has this field on."""
    while isinstance(message := await websocket.recv(), bytes) or name not in json.loads(message):
        if isinstance(message, bytes):
            await websocket.send('"read"')
    return json.loads(message)[name]


async def shows(websocket: ClientConnection, output: bytes) -> None:
    """Wait until that was shown."""
    got = b""
    while output not in got:
        if isinstance(message := await websocket.recv(), bytes):
            got += message
            await websocket.send('"read"')


async def shares_told(site: Site, token: str) -> list[dict[str, Any]]:
    async with site.websocket("/live", token) as live:
        return list(json.loads(await live.recv())["shares"])


async def test_share_is_listed_shown_and_typed_into(tmp_path: pathlib.Path) -> None:
    """A browser is a client like any other: it is named in the list, has the keyboard, and sees what is typed."""
    async with lab(tmp_path, Share("lab", ECHO)) as server, site_of(server) as (site, token):
        assert [(each["name"], each["state"], each["people"]) for each in await shares_told(site, token)] == [
            ("lab", "live", [])
        ]
        async with site.websocket("/shares/lab", token) as page:
            assert await told(page, "attached") == f"lab/{ME}"
            assert await told(page, "yours") is True
            await page.send(b"hello")
            await shows(page, b"hello")
            (share,) = await shares_told(site, token)
            assert (share["people"], share["keyboard"]) == ([ME], ME)


async def test_one_page_is_taken_off_with_the_reason(tmp_path: pathlib.Path) -> None:
    """It is closed with the reason; the other page and the share go on."""
    async with lab(tmp_path, Share("lab", ECHO)) as server, site_of(server) as (site, token):
        one, two = await site.websocket("/shares/lab", token), await site.websocket("/shares/lab?mode=watch", token)
        assert [await told(each, "attached") for each in (one, two)] == [f"lab/{ME}", f"lab/{ME}-2"]
        status, report, _ = await site.call(
            "/revoke", {"path": f"/lab/{ME}", "reason": "her slot is over"}, token=token
        )
        assert (status, "released" in report) == (200, True)
        code, reason = await end(one)
        assert code == 4401
        assert "her slot is over" in reason
        await (await server.attach("force")).types(b"still here")
        await shows(two, b"still here")
        await two.close()


async def test_login_that_ends_leaves_its_shares(tmp_path: pathlib.Path) -> None:
    """Whoever is logged out is attached nowhere any more."""
    async with lab(tmp_path, Share("lab", ECHO)) as server, site_of(server) as (site, token):
        page = await site.websocket("/shares/lab", token)
        await told(page, "yours")
        await site.app.live.revoke(ME, reason="logged out")
        assert await end(page) == (4401, "logged out")
        admin = await server.connect()
        while any(each["path"] == f"lab/{ME}" for each in await admin.list()):
            pass


@pytest.mark.parametrize(
    ("path", "body", "status", "text"),
    [
        ("/revoke", {"path": "/nothing", "reason": ""}, 404, "no share is named 'nothing'"),
        ("/revoke", {"path": "//", "reason": ""}, 404, "no share is named '/'"),
        ("/revoke", {"path": "//dev/null", "reason": ""}, 404, "no share is named '/dev/null'"),
        ("/revoke", {"path": "/lab/nobody", "reason": ""}, 404, "nothing is open at 'lab/nobody'"),
    ],
)
async def test_what_is_not_there_is_named(
    tmp_path: pathlib.Path, path: str, body: object, status: int, text: str
) -> None:
    """An unknown share, and an unknown client of one."""
    async with lab(tmp_path, Share("lab", ECHO)) as server, site_of(server) as (site, token):
        answer = await site.call(path, body, token=token)
        assert answer[0] == status
        assert text in answer[1]


@pytest.mark.parametrize("sent", ["{", '"force"', "[0, 0]", "null"])
async def test_garbage_from_a_page_ends_its_look_at_the_share_alone(tmp_path: pathlib.Path, sent: str) -> None:
    """The page is told that it is not understood; the share goes on."""
    async with lab(tmp_path, Share("lab", ECHO)) as server, site_of(server) as (site, token):
        page = await site.websocket("/shares/lab", token)
        await told(page, "yours")
        await page.send(sent)
        assert await end(page) == (4401, "the browser has sent what is not understood")
        (share,) = await shares_told(site, token)
        assert share["state"] == "live"


@pytest.mark.parametrize("path", ["/shares/nothing", "/shares/lab?mode=x"])
async def test_page_of_no_share_is_closed_with_the_reason(tmp_path: pathlib.Path, path: str) -> None:
    """An unknown name, and an unknown mode."""
    async with lab(tmp_path, Share("lab", ECHO)) as server, site_of(server) as (site, token):
        code, reason = await end(await site.websocket(path, token))
        assert code == 4401
        assert reason.startswith(("no share is named 'nothing'", "there is no such share"))


async def test_server_that_is_gone_shows_nothing(tmp_path: pathlib.Path) -> None:
    """The list is empty, and a page is closed with the reason."""
    async with serving(shares=Shares(str(tmp_path / "none"), "alice")) as site:
        token = await site.login("alice")
        assert await shares_told(site, token) == []
        assert "does not answer" in (await end(await site.websocket("/shares/lab", token)))[1]


# -- the rights of the browser's user --


@contextlib.asynccontextmanager
async def lab_of(folder: pathlib.Path, group: str) -> AsyncIterator[Lab]:
    async with anyio.create_task_group() as tasks:
        server = Lab(str(folder / "socket"), tasks)

        async def run(*, task_status: anyio.abc.TaskStatus[None]) -> None:
            with server.hosting:
                await host([Share("lab", ECHO)], server.socket, group=group, task_status=task_status)

        await tasks.start(run)
        try:
            yield server
        finally:
            await server.close()


@as_root
async def test_connection_has_the_rights_of_another_user(tmp_path: pathlib.Path) -> None:
    """Root acts as a member of the group, who may look and not take away, and there is no way back."""
    user = "daemon"
    async with lab_of(tmp_path, user) as server:
        control = await connect(server.socket)
        await control.act_as(user)
        assert (await control.list())[0]["path"] == "lab"
        for forbidden in control.revoke("lab"), control.act_as(ME), control.act_as(user):
            with pytest.raises(ControlError, match=r"lacks the right 'revoke' on 'lab'|may not act as another user"):
                await forbidden
        await control.aclose()


@as_root
@pytest.mark.parametrize(
    ("user", "why"),
    [
        ("bin", "user 'bin' may not connect here"),
        ("no-such-user", "there is no user 'no-such-user'"),
        ("a\0b", "'user' must"),
    ],
)
async def test_nobody_acts_as_a_user_who_may_not_connect(tmp_path: pathlib.Path, user: str, why: str) -> None:
    """A user outside of the group, and one that this machine does not know; the connection stays what it was."""
    async with lab_of(tmp_path, "daemon") as server:
        control = await connect(server.socket)
        with pytest.raises(ControlError, match=why):
            await control.act_as(user)
        await control.revoke("lab")
        await control.aclose()


@as_root
async def test_user_of_a_page_has_his_rights_at_the_console_server(tmp_path: pathlib.Path) -> None:
    """A member of the group sees the share and types, under his name; he may take away nothing; others see nothing."""
    PASSWORDS.update(daemon="d", bin="b")
    try:
        async with lab_of(tmp_path, "daemon") as server, site_of(server) as (site, _):
            daemon, outsider = await site.login("daemon"), await site.login("bin")
            assert [each["name"] for each in await shares_told(site, daemon)] == ["lab"]
            assert await shares_told(site, outsider) == []
            page = await site.websocket("/shares/lab", daemon)
            assert await told(page, "attached") == "lab/daemon"
            status, why, _ = await site.call("/revoke", {"path": "/lab", "reason": ""}, token=daemon)
            assert (status, why.startswith("user 'daemon' lacks the right 'revoke' on 'lab'")) == (403, True)
            assert (await site.call("/revoke", {"path": "/lab", "reason": ""}, token=outsider))[0] == 404
            await page.close()
    finally:
        del PASSWORDS["daemon"], PASSWORDS["bin"]


# -- a proxy that knows the users --


async def test_proxy_names_the_user() -> None:
    """A login belongs to the user whom the proxy names, and only as long as it names that one."""
    async with serving(user_header="X-Remote-User") as site:
        fields = {"name": "admin", "password": "c", "device": "laptop"}
        assert (await site.call("/login", fields))[0] == 403
        assert await site.call("/login") == (200, '{"asks":false}', "")

        async def call(path: str, body: object, *users: str, token: str = "") -> tuple[int, str]:
            host, port = site.origin.removeprefix("http://").split(":")
            data = json.dumps(body).encode()
            head = f"POST {path} HTTP/1.1\r\nHost: {host}\r\nConnection: close\r\nContent-Length: {len(data)}\r\n"
            head += f"Origin: {site.origin}\r\nCookie: token={token}\r\n"
            head += "".join(f"X-Remote-User: {user}\r\n" for user in users)
            reader, writer = await asyncio.open_connection(host, int(port))
            writer.write(head.encode() + b"\r\n" + data)
            answer = (await reader.read()).decode()
            writer.close()
            await writer.wait_closed()
            _, _, after = answer.partition("set-cookie: token=")
            return int(answer.split()[1]), after.partition(";")[0]

        status, token = await call("/login", fields, "alice")
        assert status == 200
        assert [key[0] for key in site.app.live] == ["alice", "alice"]
        assert (await call("/terminals", {"name": "a"}, "alice", token=token))[0] == 200
        for users in [("bob",), (), ("alice", "bob")]:
            assert (await call("/terminals", {"name": "b"}, *users, token=token))[0] == 401
        assert (await call("/login", fields, "alice", "bob"))[0] == 403


@pytest.mark.parametrize(
    ("options", "why"),
    [
        (["--user-header", "X-Remote-User"], "--user-header needs --origin and --unix-socket"),
        (["--group", "daemon"], "--group goes with --unix-socket"),
        (["--"], "web: give a command after --"),
        (["--grace", "x"], "is not a number of seconds"),
    ],
)
def test_wrong_usage_is_named(options: list[str], why: str, anyio_backend: object) -> None:
    """Before anything listens."""
    del anyio_backend
    ended = subprocess.run([sys.executable, "-m", "asyncrevoke", "web", *options], capture_output=True, text=True)
    assert ended.returncode == 2
    assert why in ended.stderr


@pytest.mark.parametrize(("program", "status"), [([], 403), (["--", "cat"], 200)])
async def test_users_of_a_proxy_have_the_terminals_that_are_given_and_no_shell(
    tmp_path: pathlib.Path, program: list[str], status: int
) -> None:
    """A terminal runs as who runs the server: others get one only if its program was chosen for them."""
    path, site = tmp_path / "web.sock", "https://consoles.example"
    command = [sys.executable, "-m", "asyncrevoke", "web", "--unix-socket", str(path), "--origin", site]

    async def post(where: str, body: object, token: str = "") -> str:
        data = json.dumps(body)
        head = f"POST {where} HTTP/1.1\r\nHost: x\r\nOrigin: {site}\r\nX-User: nobody\r\nCookie: token={token}\r\n"
        reader, writer = await asyncio.open_unix_connection(path)
        writer.write(f"{head}Connection: close\r\nContent-Length: {len(data)}\r\n\r\n{data}".encode())
        answer = (await reader.read()).decode()
        writer.close()
        await writer.wait_closed()
        return answer

    async with await anyio.open_process([*command, "--user-header", "X-User", *program], stderr=None) as process:
        try:
            answer = ""
            while "token=" not in answer:  # it is up
                with contextlib.suppress(OSError):
                    answer = await post("/login", {"name": "", "password": "", "device": "laptop"})
            token = answer.partition("token=")[2].partition(";")[0]
            assert int((await post("/terminals", {"name": "a"}, token)).split()[1]) == status
        finally:
            process.terminate()
            await process.wait()


async def test_unix_socket_is_for_its_group_alone(tmp_path: pathlib.Path) -> None:
    """Its mode lets in whom it is for, and it goes with the server."""
    path, group = tmp_path / "web.sock", grp.getgrgid(os.getegid()).gr_name
    command = [sys.executable, "-m", "asyncrevoke", "web", "--unix-socket", str(path), "--group", group]
    async with await anyio.open_process(command, stderr=None) as process:
        try:
            answer = b""
            while b"asks" not in answer:  # it is up
                with contextlib.suppress(OSError):
                    reader, writer = await asyncio.open_unix_connection(path)
                    writer.write(b"GET /login HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n")
                    answer = await reader.read()
                    writer.close()
                    await writer.wait_closed()
            assert path.stat().st_mode & 0o777 == 0o660
            process.terminate()
            await process.wait()
            assert not path.exists()
        finally:
            with contextlib.suppress(ProcessLookupError):
                process.kill()


# -- in a browser --


@needs_browser
async def test_in_a_browser_the_keyboard_of_a_share_is_taken_and_a_user_taken_off(
    tmp_path: pathlib.Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Two pages see one share; the keyboard goes over; one is taken off with a reason, which its page shows."""
    monkeypatch.setattr(web_shares, "_WINDOW", 4)
    async with (
        lab(tmp_path, Share("lab", ECHO)) as server,
        site_of(server) as (site, _),
        chromium(f"{site.origin}/#login={ME}:m", 2) as (one, two),
    ):
        for page in one, two:
            await page.shows("lab", "#rows")
            await page.click("Open lab")
        await one.prints("()")
        await one.until("!term.options.disableStdin || !document.querySelector('#keyboard').hidden")
        await one.picture("share")
        await two.shows("has the keyboard", "#notice")
        await two.click("Take the keyboard")
        await one.shows(f"{ME}-2 has the keyboard", "#notice")
        await two.type("typed by two")
        for page in one, two:
            await page.prints("(typed by two)")
        await two.click("Back to the list")
        await two.shows("keyboard", "#rows")
        await two.picture("shares")
        await two.click(f"Take off: {ME}")
        await two.fill("#ask [name=reason]", "her slot is over")
        await two.click("Take off")
        await two.shows(f"{ME} is off “lab”.")
        await one.shows("her slot is over", "#notice")
        await one.picture("taken off")
