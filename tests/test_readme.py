"""The README: what it shows runs, where it points to is there, and its picture is the demo's."""

import contextlib
import getpass
import json
import os
import pathlib
import re
import select
import shlex
import subprocess
import sys
import types
import xml.etree.ElementTree as ET
from typing import Any

import anyio
import picture
import pytest
from fastapi import FastAPI, WebSocket
from websockets.exceptions import ConnectionClosed, InvalidStatus

from asgi_servers import SERVERS, served

ROOT = pathlib.Path(__file__).parent.parent
README = (ROOT / "README.md").read_text()
COMMAND = [sys.executable, "-W", "error", "-m", "asyncrevoke"]


def block(title: str) -> str:
    """The program below that title."""
    section = README.partition(f"\n## {title}\n")[2].partition("\n## ")[0]
    (program,) = re.findall(r"```\w+\n(.*?)```", section, re.DOTALL)
    return str(program)


def test_a_port_that_is_unplugged() -> None:
    """The program prints what comes from the port, and then why it is gone."""
    cable, port = os.openpty()  # plays the device
    program = block("A port that is unplugged").replace("/dev/ttyUSB0", os.ttyname(port))
    command = [sys.executable, "-W", "error", "-c", program]
    with contextlib.ExitStack() as stack:
        process = stack.enter_context(subprocess.Popen(command, stdout=-1, stderr=-1, text=True))
        stack.callback(process.kill)
        assert process.stdout
        os.write(cable, b"17.3 kWh\n")
        while not select.select([process.stdout], [], [], 0.01)[0]:
            os.write(cable, b"17.3 kWh\n")  # what came before it was opened is thrown away
        assert process.stdout.readline() == "b'17.3 kWh\\n'\n"
        name = os.ttyname(port)
        os.close(port)
        os.close(cable)
        said, failed = process.communicate(timeout=60)
    assert (process.returncode, failed) == (0, "")
    assert said.endswith(f"'{name}/meter' was revoked: unplugged: the kernel has hung it up\n")


@pytest.mark.anyio
@pytest.mark.parametrize("anyio_backend", ["asyncio"])
async def test_a_login_that_is_revoked(monkeypatch: pytest.MonkeyPatch) -> None:
    """The program ends the websocket of that token, and no other; a new one is refused."""
    users = {"token7": "alice", "token8": "bob"}
    api = FastAPI()

    @api.websocket("/chat")
    async def chat(websocket: WebSocket) -> None:
        await websocket.accept()
        async for text in websocket.iter_text():
            await websocket.send_text(text)

    service: Any = types.ModuleType("service")
    service.api, service.user_of = api, lambda token: users.get(token, "nobody")
    service.is_valid = lambda user, token: users.get(token) == user
    monkeypatch.setitem(sys.modules, "service", service)
    program: dict[str, Any] = {}
    exec(block("A login that is revoked"), program)  # as users would type it
    async with served(program["app"], SERVERS[0]) as client:
        hers, his = (client.websocket("/chat") for _ in users)
        hers.additional_headers, his.additional_headers = ({"Cookie": f"token={token}"} for token in users)
        async with hers as alice, his as bob:
            for each in alice, bob:
                await each.send("hello")
                assert await each.recv() == "hello"
            del users["token7"]
            await program["log_out"]("alice", "token7")
            with pytest.raises(ConnectionClosed) as closed:
                await alice.recv()
            assert closed.value.rcvd is not None
            assert (closed.value.rcvd.code, closed.value.rcvd.reason) == (4401, "logged out")
            await bob.send("hello")
            assert await bob.recv() == "hello"
        with pytest.raises(InvalidStatus, match="403"), anyio.fail_after(30):
            await hers


def test_a_console_for_a_lab(tmp_path: pathlib.Path) -> None:
    """Each command does what its comment says."""
    cable, port = os.openpty()  # plays the device
    environment = {**os.environ, "RUNTIME_DIRECTORY": str(tmp_path)}
    written = block("A console for a lab").replace("/dev/ttyUSB0", os.ttyname(port))
    share, *others = (
        [*COMMAND, *shlex.split(line.removesuffix("&"), comments=True)[1:]]
        for line in written.replace("router/alice", f"router/{getpass.getuser()}").splitlines()
    )
    attach, ls, take_off, take_away = others

    def done(command: list[str]) -> str:
        ended = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=60)
        assert (ended.returncode, ended.stderr) == (0, "")
        return ended.stdout

    with contextlib.ExitStack() as stack:
        stack.callback(os.close, cable)
        stack.callback(os.close, port)

        def running(command: list[str]) -> subprocess.Popen[str]:
            program = stack.enter_context(
                subprocess.Popen(command, env=environment, stdin=-1, stdout=-1, stderr=-1, text=True)
            )
            stack.callback(program.kill)
            return program

        server = running(share)
        assert server.stdout
        assert server.stdout.readline().startswith("sharing")
        client = running(attach)
        assert client.stderr
        assert "attached as" in client.stderr.readline()
        assert f"router/{getpass.getuser()}" in done(ls)
        assert "released" in done(take_off)
        assert "her slot is over" in client.stderr.read()
        assert client.wait(60) == 1
        assert "the lab closes" in done(take_away)
        assert "the lab closes" in server.communicate(timeout=60)[1]


def test_links_lead_somewhere() -> None:
    """Every file that the README points to is there."""
    for link in re.findall(r"\]\(([^)#]+)\)", README):
        assert (ROOT / link).exists(), link


def test_ci_runs_the_command_of_the_readme() -> None:
    """What the README tells to run is what CI runs, in an environment of its own."""
    (command,) = re.findall(r"\.venv/bin/python (-m pytest.*)", README)
    assert command in (ROOT / ".ci" / "run").read_text()


def test_the_picture_is_drawn_from_the_recording() -> None:
    """docs/demo.svg is what docs/picture.py makes of docs/demo.cast, and has each line of it, in its order."""
    drawn = picture.SVG.read_text()
    assert drawn == picture.picture(picture.CAST.read_text())
    texts = [each.text for each in ET.fromstring(drawn).iter("{http://www.w3.org/2000/svg}text")]
    assert texts == [text for _, text in picture.lines(picture.CAST.read_text())]


def test_the_recording_shows_what_the_demo_shows() -> None:
    """Numbers and the order of what happens at a time may differ: record it anew when this fails."""
    recorded, now = (
        sorted((colour, re.sub(r"\d+", "0", text)) for colour, text in picture.lines(cast))
        for cast in (picture.CAST.read_text(), picture.record())
    )
    assert recorded == now
    assert len(recorded) > 20
    assert json.loads(picture.CAST.read_text().splitlines()[0])["command"] == "asyncrevoke demo"
