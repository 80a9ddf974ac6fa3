"""The programs of docs/revoke-web-sessions.md, as they stand there, under a real server and with real clients."""

import contextlib
import json
import pathlib
import re
import signal
import subprocess
import sys
from collections.abc import AsyncIterator
from dataclasses import dataclass, field
from typing import Any

import anyio
import httpx
import pytest
from websockets.asyncio.client import ClientConnection, connect
from websockets.exceptions import ConnectionClosed, InvalidStatus

from asgi_servers import listener
from conftest import BACKENDS

pytestmark = pytest.mark.anyio

PAGE = pathlib.Path(__file__).parents[1] / "docs" / "revoke-web-sessions.md"
SECTIONS = [section.partition("\n") for section in PAGE.read_text().split("\n## ")[1:]]
PROGRAMS = {
    title: program for title, _, text in SECTIONS for program in re.findall(r"```python\n(.*?)```", text, re.DOTALL)
}


@pytest.fixture(params=BACKENDS[:1])
def anyio_backend(request: pytest.FixtureRequest) -> Any:
    return request.param


@dataclass
class Service:
    """A server with one of the programs, and what a client does."""

    port: int
    http: httpx.AsyncClient = field(init=False)

    def __post_init__(self) -> None:
        self.http = httpx.AsyncClient(base_url=f"http://127.0.0.1:{self.port}", trust_env=False, timeout=30)

    def websocket(self, token: str = "") -> connect:
        cookie = {"Cookie": f"token={token}"} if token else None
        return connect(f"ws://127.0.0.1:{self.port}/chat", additional_headers=cookie, proxy=None)


@contextlib.asynccontextmanager
async def running(
    title: str, folder: pathlib.Path, *options: str, programs: dict[str, str] = PROGRAMS
) -> AsyncIterator[Service]:
    """The program below that title, in a server that is told to end by SIGTERM, and ends well."""
    (folder / "service.py").write_text(programs[title])
    with listener() as sock:
        service = Service(sock.getsockname()[1])
    command = [
        sys.executable,
        "-m",
        "uvicorn",
        "service:app",
        f"--port={service.port}",
        "--log-level=warning",
        *options,
    ]
    with subprocess.Popen(command, cwd=folder, stderr=subprocess.PIPE) as process:
        try:
            with anyio.fail_after(60):
                async with service.http:
                    while True:
                        with contextlib.suppress(OSError):
                            await (await anyio.connect_tcp("127.0.0.1", service.port)).aclose()
                            break
                        assert process.poll() is None
                        await anyio.sleep(0.02)
                    yield service
        finally:
            process.terminate()
            while process.poll() is None:  # meanwhile clients answer what closes them
                await anyio.sleep(0.02)
            _, said = process.communicate()
    assert said == b""
    assert process.returncode in (0, -signal.SIGTERM)  # of several workers, or one


async def echoes(websocket: ClientConnection, says: str = "hello") -> None:
    await websocket.send("hello")
    assert await websocket.recv() == says


async def is_closed(websocket: ClientConnection, code: int, reason: str) -> None:
    with pytest.raises(ConnectionClosed) as closed:
        await websocket.recv()
    assert closed.value.rcvd is not None
    assert (closed.value.rcvd.code, closed.value.rcvd.reason) == (code, reason)


def test_every_program_is_run() -> None:
    """None is added to the page that no test runs, and none has a part left out."""
    here = pathlib.Path(__file__).read_text()
    assert len(PROGRAMS) == PAGE.read_text().count("```python")
    for title, program in PROGRAMS.items():
        assert f'running("{title}"' in here
        assert "..." not in program


async def test_log_out_ends_the_live_session_and_no_other(tmp_path: pathlib.Path) -> None:
    """With the reason, before the logout is answered; the other goes on until the server ends, and is told that, too."""
    async with contextlib.AsyncExitStack() as stack:
        async with running("A whole program", tmp_path) as service:
            hers, his = [await stack.enter_async_context(service.websocket(each)) for each in ("token7", "token8")]
            await echoes(hers)
            await echoes(his)
            assert (await service.http.post("/logout", headers={"Cookie": "token=token7"})).status_code == 200
            await is_closed(hers, 4401, "logged out")
            await echoes(his)
            for bad in "token7", "guess", "":
                with pytest.raises(InvalidStatus, match="403"):
                    await service.websocket(bad)
        await is_closed(his, 1012, "the server shuts down")


async def test_a_key_that_comes_later_is_revoked_and_expires(tmp_path: pathlib.Path) -> None:
    """By its first message a websocket is somebody's; a bad token is refused there."""
    async with (
        running("When the key comes later, and expiry", tmp_path) as service,
        service.websocket() as hers,
        service.websocket() as his,
        service.websocket() as nobodys,
    ):
        await hers.send("token7")
        await his.send("token8")
        await nobodys.send("guess")
        await is_closed(nobodys, 4401, "the token is not valid")
        await echoes(hers, "alice: hello")
        await echoes(his, "bob: hello")
        assert "1 kicked" in (await service.http.delete("/tokens/token7")).json()
        await is_closed(hers, 4401, "an admin has revoked it")
        await is_closed(his, 4401, "the token has expired")


async def test_an_admin_lists_and_revokes_with_a_grace(tmp_path: pathlib.Path) -> None:
    """Nobody else may. The streams of that user end with a last event, and new ones are refused."""
    admin = {"Authorization": "Bearer secret"}  # and no login of a user
    async with running("The admin's list, and a grace", tmp_path) as service:
        async with service.http.stream("GET", "/news", headers={"Cookie": "token=token7"}) as news:
            lines = news.aiter_lines()
            assert await anext(lines) == "data: nothing new"
            assert (await service.http.get("/live", headers={"Cookie": "token=token8"})).status_code == 403
            listed = (await service.http.get("/live", headers=admin)).json()
            assert [(each["keys"], each["what"]) for each in listed] == [
                ([["alice", "token7"]], "GET /news"),
                ([], "GET /live"),
            ]
            answer = (await service.http.delete("/users/alice", params={"grace": 0.1}, headers=admin)).json()
            assert (answer["done"], answer["stragglers"]) == (True, [])
            assert [line async for line in lines if line][-2:] == [
                "event: revoked",
                'data: {"reason": "an admin has revoked it", "code": 4401}',
            ]
        assert (await service.http.get("/news", headers={"Cookie": "token=token7"})).status_code == 401


async def test_log_out_reaches_all_workers(tmp_path: pathlib.Path) -> None:
    """Whichever worker is asked, and whichever has the websocket."""
    async with contextlib.AsyncExitStack() as stack:
        async with running("Several worker processes", tmp_path, "--workers=2") as service:
            while len([*tmp_path.glob("run/*.sock")]) < 2:
                await anyio.sleep(0.02)

            async def connected(token: str) -> tuple[str, ClientConnection]:
                websocket = await stack.enter_async_context(service.websocket(token))
                return str(await websocket.recv()), websocket

            hers: list[tuple[str, ClientConnection]] = []
            while len({worker for worker, _ in hers}) < 2:
                hers.append(await connected("token7"))
            _, his = await connected("token8")
            answers = (await service.http.post("/logout", headers={"Cookie": "token=token7"})).json()
            assert {f"worker {pid}" for pid in answers} == {worker for worker, _ in hers}
            assert all(answer["done"] and answer["report"]["kicked"] for answer in answers.values())
            for _, websocket in hers:
                await is_closed(websocket, 4401, "logged out")
            await echoes(his)
        await is_closed(his, 1012, "the server shuts down")


def test_answer_of_the_workers_is_as_shown() -> None:
    """The page's sample has the fields that there are."""
    (shown,) = re.findall(r"```json\n(.*?)```", PAGE.read_text(), re.DOTALL)
    for answer in json.loads(shown).values():
        assert answer.keys() == {"done", "report", "stragglers", "error"}
