"""The programs of docs/cluster.md, as they stand there."""

import contextlib
import pathlib
import re
import sys
from collections.abc import AsyncIterator
from typing import Any

import anyio
import asyncpg
import pytest
from engines import PostgresServer
from websockets.exceptions import InvalidStatus

from asyncrevoke.cluster import Revoker, open_log
from conftest import BACKENDS
from test_web_sessions import Service, echoes, is_closed, running

pytestmark = pytest.mark.anyio

PAGE = (pathlib.Path(__file__).parents[2] / "docs" / "cluster.md").read_text()
SECTIONS = [section.partition("\n") for section in PAGE.split("\n## ")[1:]]
PROGRAMS = {
    title: program for title, _, text in SECTIONS for program in re.findall(r"```python\n(.*?)```", text, re.DOTALL)
}


@pytest.fixture(params=BACKENDS[:1])
def anyio_backend(request: pytest.FixtureRequest) -> Any:
    return request.param


@contextlib.asynccontextmanager
async def begun(url: str, monkeypatch: pytest.MonkeyPatch) -> AsyncIterator[None]:
    """A log that was begun, and is that of the programs."""
    monkeypatch.setenv("ASYNCREVOKE_CLUSTER", url)
    log = open_log(url)
    await Revoker(log).init()
    yield
    await log.aclose()


async def printed(title: str) -> str:
    done = await anyio.run_process([sys.executable, "-W", "error", "-c", PROGRAMS[title]], stderr=None)
    return done.stdout.decode()


async def connected(service: Service, token: str, stack: contextlib.AsyncExitStack) -> Any:
    return await stack.enter_async_context(service.websocket(token))


async def test_whole_program_logs_out_everywhere(tmp_path: pathlib.Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """On another host, too; a later login is admitted, and so is everybody else."""
    title = "A whole program"
    async with (
        begun(f"sqlite://{tmp_path}/log.db", monkeypatch),
        contextlib.AsyncExitStack() as stack,
        running(title, tmp_path, programs=PROGRAMS) as one,
        running(title, tmp_path, programs=PROGRAMS) as two,
    ):
        tokens = [(await one.http.post(f"/login/{user}")).cookies["token"] for user in ("alice", "alice", "bob")]
        one.http.cookies.clear()
        hers = [await connected(host, token, stack) for host in (one, two) for token in tokens[:2]]
        his = await connected(two, tokens[2], stack)
        assert (await two.http.get("/healthy")).status_code == 200
        said = await one.http.post("/logout-everywhere", headers={"Cookie": f"token={tokens[0]}"})
        assert "'alice' revoked (logged out everywhere) on 2 of 2 hosts: 4 kicked" in said.json()
        for websocket in hers:
            await is_closed(websocket, 4401, "logged out everywhere")
        for token in *tokens[:2], "guess":
            with pytest.raises(InvalidStatus, match="403"):
                await two.websocket(token)
        again = (await one.http.post("/login/alice")).cookies["token"]
        await echoes(await connected(two, again, stack))
        await echoes(his)
        await stack.aclose()


async def test_token_is_revoked_in_the_transaction_that_removes_it(monkeypatch: pytest.MonkeyPatch) -> None:
    """The program prints the report, and the token is gone from both."""
    if PostgresServer.missing:
        pytest.skip(PostgresServer.missing)
    with PostgresServer() as server:
        async with begun(server.url, monkeypatch):
            database = await asyncpg.connect(server.url)
            await database.execute("create table tokens (token text)")
            await database.execute("insert into tokens values ('token7')")
            assert "'alice/token7' revoked (stolen) on 0 of 0 hosts" in await printed(
                "In one transaction with your tokens"
            )
            assert await database.fetch("select * from tokens") == []
            (text,) = await database.fetchrow("select text from asyncrevoke order by number desc limit 1")
            assert '"path":["alice","token7"]' in text
            await database.close()


async def test_report_is_read(tmp_path: pathlib.Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """By a program that is no member. Without hosts nobody knows."""
    async with begun(f"sqlite://{tmp_path}/log.db", monkeypatch):
        assert await printed("Read the report") == "False 0 0\n"


def test_every_program_is_run() -> None:
    """None is added to the page that no test runs, and none has a part left out."""
    here = pathlib.Path(__file__).read_text()
    assert len(PROGRAMS) == PAGE.count("```python")
    for title, program in PROGRAMS.items():
        assert f'"{title}"' in here
        assert "..." not in program


def test_links_lead_somewhere() -> None:
    """Every file that the page points to is there."""
    for link in re.findall(r"\]\(([^)#]+)\)", PAGE):
        assert (pathlib.Path(__file__).parents[2] / "docs" / link).exists(), link
