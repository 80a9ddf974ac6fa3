"""The example of two hosts, as its README runs it: real servers with two workers each, and Redis between them."""

import contextlib
import os
import pathlib
import re
import shutil
import socket
import subprocess
import sys
from collections.abc import Iterator
from typing import Any

import anyio
import pytest
from websockets.asyncio.client import ClientConnection, connect
from websockets.exceptions import ConnectionClosed

from conftest import BACKENDS

pytestmark = [
    pytest.mark.anyio,
    pytest.mark.skipif(not shutil.which("redis-server"), reason="needs redis-server: apt-get install redis-server"),
]

FOLDER = pathlib.Path(__file__).parents[2] / "examples" / "cluster"
README = (FOLDER / "README.md").read_text()


@pytest.fixture(params=BACKENDS[:1])
def anyio_backend(request: pytest.FixtureRequest) -> Any:
    return request.param


def free_port() -> str:
    with socket.create_server(("127.0.0.1", 0)) as sock:
        return str(sock.getsockname()[1])


@contextlib.contextmanager
def running(program: str, environment: dict[str, str]) -> Iterator[None]:
    """A shell and all that it starts, until it is told to end."""
    program = f"trap 'kill $(jobs -p); wait; exit' TERM\n{program}\nwait"
    with subprocess.Popen(["bash", "-c", program], cwd=FOLDER, env=environment) as shell:
        try:
            yield
        finally:
            shell.terminate()


async def opened(port: str, path: str) -> tuple[str, ClientConnection]:
    """A websocket, and which worker serves it."""
    with anyio.fail_after(60):
        while True:
            with contextlib.suppress(OSError):
                client = await connect(f"ws://127.0.0.1:{port}{path}", proxy=None)
                return str(await client.recv()), client
            await anyio.sleep(0.05)


async def test_command_line_revokes_on_two_hosts_of_two_workers() -> None:
    """What the README says: all sessions of the token are closed, by all four workers, and nobody else's."""
    ports = {port: free_port() for port in ("6399", "8001", "8002")}
    lines = re.sub("6399|8001|8002", lambda each: ports[each[0]], README).splitlines()
    assert len(lines) == 8  # five of them to type
    *start, _browser, revoke = lines[2:-1]
    url = {"ASYNCREVOKE_CLUSTER": f"redis://127.0.0.1:{ports['6399']}"}
    environment = os.environ | url | {"PATH": f"{pathlib.Path(sys.executable).parent}:{os.environ['PATH']}"}
    with running("\n".join(start), environment):
        sessions: list[tuple[str, ClientConnection]] = []
        while len({worker for worker, _ in sessions}) < 4:
            sessions += [await opened(ports[port], "/alice/token7") for port in ("8001", "8002")]
        _, other = await opened(ports["8001"], "/bob/token8")
        done = await anyio.run_process(["bash", "-c", revoke], env=environment)
        said, *rest = done.stdout.decode().splitlines()
        assert said.startswith(f"'alice/token7' revoked (stolen) on 4 of 4 hosts: {len(sessions)} kicked, ")
        assert {line.split(":")[0].strip() for line in rest[:4]} == {worker for worker, _ in sessions}
        assert [line.split()[0] for line in rest[4:]] == ["HOST", *sorted({worker for worker, _ in sessions})]
        for _, client in sessions:
            with pytest.raises(ConnectionClosed) as closed:
                await client.recv()
            assert closed.value.rcvd
            assert (closed.value.rcvd.code, closed.value.rcvd.reason) == (4401, "stolen")
        await other.send("still here")
        assert await other.recv() == "still here"
        await other.close()
