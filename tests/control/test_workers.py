"""The workers of a service, in processes of their own, which are all asked to revoke at once."""

import contextlib
import fcntl
import math
import os
import pathlib
import signal
import socket
import subprocess
import sys
from collections.abc import AsyncIterator, Iterator
from typing import Any

import anyio
import pytest
from websockets.asyncio.client import ClientConnection, connect as connect_websocket
from websockets.exceptions import ConnectionClosed

from asgi_servers import listener
from asyncrevoke import Registry
from asyncrevoke.control import revoke_in_all, serving
from asyncrevoke.control.listener import remove_dead
from calls import parked
from conftest import BACKENDS, settle
from operations import operate, stubborn

pytestmark = pytest.mark.anyio

WORKER = """
import contextlib, sys, anyio
from asyncrevoke import Registry, RevokedError
from asyncrevoke.control import serving
async def main(folder, *keys):
    live = Registry()
    async with serving(live, folder), anyio.create_task_group() as tasks:
        for key in keys:
            tasks.start_soon(hold, live[tuple(key.split("/"))])
        await anyio.wait_all_tasks_blocked()
        print("ready", flush=True)
async def hold(key):
    with contextlib.suppress(RevokedError), key.using():
        await anyio.sleep_forever()
    print(key.path, "is gone", flush=True)
anyio.run(main, *sys.argv[1:])
"""


@contextlib.contextmanager
def worker(folder: pathlib.Path, *keys: str) -> Iterator[subprocess.Popen[bytes]]:
    """A worker with an open connection for each of the keys."""
    command = [sys.executable, "-c", WORKER, os.fspath(folder), *keys]
    with subprocess.Popen(command, stdout=subprocess.PIPE) as process:
        try:
            assert process.stdout is not None
            assert process.stdout.readline() == b"ready\n"
            yield process
        finally:
            process.kill()


@pytest.fixture
def folder(tmp_path: pathlib.Path) -> pathlib.Path:
    return tmp_path / "run"  # which is not there yet


async def test_all_workers_revoke_and_tell_what_it_did(folder: pathlib.Path) -> None:
    """One report for each, by its number; where nothing of the key is open, that is done; others' sessions go on."""
    one_has, two_has = ("alice/t1", "bob/t1"), ("alice/t1", "alice/t2")
    with worker(folder, *one_has) as one, worker(folder, *two_has) as two, worker(folder, "bob/t1") as three:
        answers = await revoke_in_all(folder, "alice/t1", "logged out")
        assert answers.keys() == {str(each.pid) for each in (one, two, three)}
        for answer in answers.values():
            assert {**answer, "report": {}} == {"done": True, "report": {}, "stragglers": [], "error": ""}
        for each in one, two:
            report = answers[str(each.pid)]["report"]
            assert (report["kicked"], report["reason"]) == (1, "logged out")
            assert each.stdout is not None
            assert each.stdout.readline() == b"alice/t1 is gone\n"
        assert answers[str(three.pid)]["report"] == {}
        everything = await revoke_in_all(folder, "", "maintenance", below=True)
        assert [everything[str(each.pid)]["report"]["kicked"] for each in (one, two, three)] == [1, 1, 1]


async def test_folder_is_the_owners_alone_and_sockets_go_with_their_workers(folder: pathlib.Path) -> None:
    """Others cannot put a socket there, and a worker that has ended leaves none."""
    async with serving(Registry(), folder):
        assert [each.name for each in folder.iterdir()] == [f"{os.getpid()}.sock"]
        assert folder.stat().st_mode & 0o777 == 0o700
    assert await revoke_in_all(folder, "alice") == {}


async def test_one_process_serves_one_registry_in_a_folder(folder: pathlib.Path) -> None:
    """The error names the socket and says what to do."""
    async with serving(Registry(), folder):
        with pytest.raises(BaseExceptionGroup) as raised:
            async with serving(Registry(), folder):
                pass
    assert raised.group_contains(OSError, match=f"a server listens there already.*{os.getpid()}.sock")


async def test_killed_worker_is_no_worker_any_more(folder: pathlib.Path) -> None:
    """It holds nothing: its socket is removed, and nothing is reported of it."""
    with worker(folder, "alice/t1") as dead:
        dead.kill()
    assert (folder / f"{dead.pid}.sock").is_socket()
    with worker(folder, "bob/t1") as lives:
        assert (await revoke_in_all(folder, "alice/t1")).keys() == {str(lives.pid)}
        assert [each.name for each in folder.iterdir()] == [f"{lives.pid}.sock"]


async def test_socket_that_has_come_to_life_again_stays(folder: pathlib.Path) -> None:
    """Between the refused connection and its removal another worker of that number may have begun to listen there."""
    folder.mkdir()
    path = folder / "1.sock"
    with socket.socket(socket.AF_UNIX) as server, (folder / "1.sock.lock").open("w") as lock:
        server.bind(os.fspath(path))
        fcntl.flock(lock, fcntl.LOCK_EX)  # it begins
        async with anyio.create_task_group() as tasks:
            tasks.start_soon(remove_dead, os.fspath(path))
            await settle()
            server.listen()
            (folder / "1.sock.lock").unlink()
        assert path.is_socket()


async def test_file_that_is_no_socket_stays(folder: pathlib.Path) -> None:
    """Whatever its name says, it is no worker."""
    folder.mkdir()
    (folder / "1.sock").write_text("precious")
    assert await revoke_in_all(folder, "alice") == {}
    assert (folder / "1.sock").read_text() == "precious"


async def test_worker_that_does_not_answer_is_named(folder: pathlib.Path) -> None:
    """It may still serve the key, and the error says why; it revokes when it goes on."""
    with worker(folder, "alice/t1") as stuck:
        stuck.send_signal(signal.SIGSTOP)
        answer = (await revoke_in_all(folder, "alice/t1", limit=0.2))[str(stuck.pid)]
        assert (answer["done"], answer["error"]) == (False, "it has not answered for 1.2 s")
        stuck.send_signal(signal.SIGCONT)
        assert stuck.stdout is not None
        assert stuck.stdout.readline() == b"alice/t1 is gone\n"


@pytest.mark.parametrize("first", [True, False])
async def test_workers_are_asked_at_once(folder: pathlib.Path, first: bool) -> None:
    """Whichever of two is stuck, the other has revoked before that one is given up."""
    with worker(folder, "alice/t1") as one, worker(folder, "alice/t1") as two:
        stuck, other = (one, two) if first else (two, one)
        stuck.send_signal(signal.SIGSTOP)
        async with anyio.create_task_group() as tasks:
            tasks.start_soon(lambda: revoke_in_all(folder, "alice/t1", limit=60))
            assert other.stdout is not None
            with anyio.fail_after(30):
                await anyio.wait_readable(other.stdout)
            stuck.send_signal(signal.SIGCONT)


async def test_who_does_not_leave_is_named_by_its_worker(folder: pathlib.Path) -> None:
    """Not done when the limit is over: the answer has the stragglers."""
    leave, live = anyio.Event(), Registry()
    async with serving(live, folder), anyio.create_task_group() as tasks:
        tasks.start_soon(stubborn, live["alice"], [], leave)
        await parked(live["alice"])
        (answer,) = (await revoke_in_all(folder, "alice", limit=0.05)).values()
        leave.set()
    assert (answer["done"], answer["error"]) == (False, "")
    assert answer["stragglers"][0]["path"] == "alice"


async def test_grace_is_given_by_all(folder: pathlib.Path) -> None:
    """What runs may finish meanwhile."""
    leave, live = anyio.Event(), Registry()
    answers: dict[str, Any] = {}
    async with serving(live, folder), anyio.create_task_group() as tasks:
        tasks.start_soon(lambda: operate(live["alice"], [], until=leave))
        await parked(live["alice"])

        async def revoke() -> None:
            answers.update(await revoke_in_all(folder, "alice", grace=60, limit=60))

        tasks.start_soon(revoke)
        while not (there := live.at("alice")) or not there[0].revoked:
            await anyio.sleep(0)
        leave.set()
    (answer,) = answers.values()
    assert (answer["done"], answer["report"]["kicked"]) == (True, 0)


async def test_what_a_worker_refuses_is_its_error(folder: pathlib.Path) -> None:
    """A reason of two lines, which would garble other people's terminals, revokes nothing, and nothing is done."""
    live = Registry()
    async with serving(live, folder):
        with live["alice"].using():
            (answer,) = (await revoke_in_all(folder, "alice", "a\nb")).values()
    assert not answer["done"]
    assert "reason" in answer["error"]


@pytest.mark.parametrize("name", ["grace", "limit"])
@pytest.mark.parametrize("seconds", [-1.0, math.nan, math.inf])
async def test_seconds_that_cannot_be_are_refused(folder: pathlib.Path, name: str, seconds: float) -> None:
    """Before anybody was asked: the error says what to give, as that of the control server does."""
    live = Registry()
    async with serving(live, folder):
        with live["alice"].using():
            with pytest.raises(ValueError, match=rf"{name} is {seconds!r}: give seconds, from 0 to 86400"):
                await (
                    revoke_in_all(folder, "alice", grace=seconds)
                    if name == "grace"
                    else revoke_in_all(folder, "alice", limit=seconds)
                )
            assert not live["alice"].revoked


async def test_folder_that_is_not_there_is_no_success(folder: pathlib.Path) -> None:
    """A wrong name must not look as if nobody was connected."""
    with pytest.raises(FileNotFoundError):
        await revoke_in_all(folder, "alice")


# -- a server's own workers --

SERVICE = """
import os
from asyncrevoke import Registry
from asyncrevoke.adapters.asgi import RevokableApp
from asyncrevoke.control import serving
from starlette.applications import Starlette
from starlette.routing import WebSocketRoute
live = Registry()
async def echo(websocket):
    await websocket.accept()
    await websocket.send_text(str(os.getpid()))
    while True:
        await websocket.send_text(await websocket.receive_text())
app = Starlette(routes=[WebSocketRoute("/", echo)], lifespan=lambda app: serving(live, "run"))
app = RevokableApp(app, live, key=lambda scope: (scope["query_string"].decode(), "t1"))
"""


@contextlib.asynccontextmanager
async def two_workers(folder: pathlib.Path) -> AsyncIterator[str]:
    """Uvicorn with two workers; where to connect."""
    (folder / "service.py").write_text(SERVICE)
    with listener() as sock:
        port = sock.getsockname()[1]
    command = [sys.executable, "-m", "uvicorn", "service:app", "--workers=2", f"--port={port}", "--log-level=warning"]
    with subprocess.Popen(command, cwd=folder) as process:
        try:
            yield f"ws://127.0.0.1:{port}/"
        finally:
            process.terminate()
            process.wait()


@pytest.mark.parametrize("anyio_backend", BACKENDS[:1], indirect=True)
async def test_sessions_end_in_all_workers_of_a_server(tmp_path: pathlib.Path) -> None:
    """Whichever of uvicorn's workers has a websocket of the token, it is closed with the reason; another's goes on."""
    async with two_workers(tmp_path) as url, contextlib.AsyncExitStack() as stack:

        async def connected(user: str) -> tuple[str, ClientConnection]:
            websocket = await stack.enter_async_context(connect_websocket(f"{url}?{user}", proxy=None))
            return str(await websocket.recv()), websocket

        with anyio.fail_after(60):
            while len([*tmp_path.glob("run/*.sock")]) < 2:
                await anyio.sleep(0.02)
            hers: list[tuple[str, ClientConnection]] = []
            while len({worker for worker, _ in hers}) < 2:
                hers.append(await connected("alice"))
            _, his = await connected("bob")
        answers = await revoke_in_all(tmp_path / "run", "alice/t1", "logged out")
        for pid, answer in answers.items():
            assert answer["done"]
            assert answer["report"]["kicked"] == [worker for worker, _ in hers].count(pid) > 0
        for _, websocket in hers:
            with pytest.raises(ConnectionClosed, match=r"4401.*logged out"):
                await websocket.recv()
        await his.send("still here")
        assert await his.recv() == "still here"
