"""The pages under docs/start: what they tell to type in a shell works, as it stands there."""

import contextlib
import os
import pathlib
import re
import shlex
import sys
import tomllib

import anyio
import pytest

from asyncrevoke.adapters.pty import PtySession, PtyStream, start_pty

ROOT = pathlib.Path(__file__).parent.parent
PAGES = sorted((ROOT / "docs" / "start").glob("*.md"))
EXTRAS = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["optional-dependencies"]


def commands(page: pathlib.Path) -> list[str]:
    """What a page tells to type, but for the installation, which is its first block."""
    first, *others = re.findall(r"```sh\n(.*?)```", page.read_text(), re.DOTALL)
    assert "pip install" in first
    return [each.removeprefix(".venv/bin/").strip() for each in others]


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.stem)
def test_what_is_installed_is_this_checkout(page: pathlib.Path) -> None:
    """There is no release yet: the page installs the folder that it is in, with extras that there are."""
    (options,) = re.findall(r"^python3 -m venv \.venv && \.venv/bin/pip install (.*)$", page.read_text(), re.MULTILINE)
    (checkout,) = (word for word in shlex.split(options) if word[0] == ".")
    assert {*re.findall(r"\w+", checkout)} <= EXTRAS.keys()


def test_only_the_console_has_more_to_type() -> None:
    """The other pages are programs, which are run elsewhere."""
    assert {page.stem: len(commands(page)) for page in PAGES} == {"console": 5, "login": 0, "port": 0}


@pytest.mark.anyio
@pytest.mark.parametrize("anyio_backend", ["asyncio"])
async def test_the_console_is_shared_and_taken_away(tmp_path: pathlib.Path) -> None:
    """Two attach and see the same, one types, keys help and detach, and a revocation tells everyone why."""
    share, attach, ls, revoke, device = commands(ROOT / "docs" / "start" / "console.md")
    environment = {**os.environ, "RUNTIME_DIRECTORY": str(tmp_path), "TERM": "xterm"}

    def program(command: str) -> list[str]:
        name, *words = shlex.split(command)
        return [sys.executable, "-W", "error", "-m", name, *words]

    async with contextlib.AsyncExitStack() as stack:

        async def terminal(command: str) -> tuple[PtySession, PtyStream]:
            session = await stack.enter_async_context(await start_pty(program(command), env=environment))
            return session, session.open()

        async def printed(command: str) -> str:
            return (await anyio.run_process(program(command), env=environment)).stdout.decode()

        _, server = await terminal(share)
        await server.receive_until(b"sharing 'lab'")
        (first, alice), (second, bob) = await terminal(attach), await terminal(attach)
        for screen in alice, bob:
            await screen.receive_until(b"attached as")
        await alice.send(b"echo he''llo\r")
        for screen in alice, bob:
            await screen.receive_until(b"hello\r\n")
        await bob.send(b"x")
        await bob.receive_until(b"has the keyboard")
        await bob.send(b"\x1d?")
        await bob.receive_until(b"show this help")
        assert len(re.findall(r"^lab/", await printed(ls), re.MULTILINE)) == 2
        await bob.send(b"\x1dq")
        assert await second.wait() == 0
        assert "maintenance" in await printed(revoke)
        for screen in alice, server:
            await screen.receive_until(b"maintenance")
        assert await first.wait() == 1
        _, server = await terminal(device)
        await server.receive_until(b"router is waited for")
