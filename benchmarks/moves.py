"""How natural the ways through the house are: how often the calls of one thing that happens go to another file.

Counted are the calls of our functions, in their order, resumed coroutines as well. A move is a call in another file than
the one before. Both ways are walked in asyncio's own order, so the numbers are the same each time.
"""

from __future__ import annotations

import itertools
import json
import os
import pathlib
import socket
import sys
import tempfile
from types import FrameType
from typing import Any, Self

import anyio
import anyio.lowlevel

import asyncrevoke
from asyncrevoke import PtyStream, open_pty
from asyncrevoke.console.server import host
from asyncrevoke.console.share import Share

HERE = str(pathlib.Path(asyncrevoke.__file__).parent)


class Walk:
    """Notes the calls that are made in it: ``with Walk() as walk: ...``

    :ivar files: in which they are, in order
    """

    def __init__(self) -> None:
        self.files: list[str] = []

    def __enter__(self) -> Self:
        sys.setprofile(self._note)
        return self

    def __exit__(self, *_: object) -> None:
        sys.setprofile(None)

    def _note(self, frame: FrameType, event: str, _: Any) -> None:
        if event == "call" and frame.f_code.co_filename.startswith(HERE):
            self.files.append(frame.f_code.co_filename)

    def __str__(self) -> str:
        moves = sum(one != other for one, other in itertools.pairwise(self.files))
        return f"{len(self.files):5} {moves:5} {len(set(self.files)):5}"


async def settle() -> None:
    """Let what was started run until it waits."""
    for _ in range(50):
        await anyio.lowlevel.checkpoint()


async def byte() -> Walk:
    """A byte on its way from a terminal to two who wait for it."""
    received = []

    async def read(stream: PtyStream) -> None:
        received.append(await stream.receive())

    async with open_pty(["sleep", "60"]) as session, anyio.create_task_group() as tasks:
        for name in "alice", "bob":
            tasks.start_soon(read, session.open(name))
        await settle()
        os.write(terminal := os.open(f"/proc/{session.pid}/fd/1", os.O_WRONLY | os.O_NOCTTY), b"x")
        os.close(terminal)
        with Walk() as walk:
            while len(received) < 2:
                await anyio.lowlevel.checkpoint()
        await session.aclose()
    return walk


def ask(client: socket.socket, **request: Any) -> None:
    client.sendall(json.dumps({"v": 1, **request}).encode() + b"\n")


async def told(client: socket.socket) -> dict[str, Any]:
    """The last line of what it is sent next."""
    while True:
        try:
            answer: dict[str, Any] = json.loads(client.recv(65536).splitlines()[-1])
        except BlockingIOError:
            await anyio.lowlevel.checkpoint()
        else:
            return answer


async def revocation() -> Walk:
    """One client of a share is taken off by request, until whoever asked has the answer, and the client knows."""
    with (
        tempfile.TemporaryDirectory() as folder,
        socket.socket(socket.AF_UNIX) as bob,
        socket.socket(socket.AF_UNIX) as us,
    ):
        async with anyio.create_task_group() as tasks:
            await tasks.start(host, [Share("x")], f"{folder}/socket")
            for each in bob, us:
                each.connect(f"{folder}/socket")
                each.setblocking(False)
            ask(bob, do="attach", name="x")
            path = (await told(bob))["attached"]
            await settle()
            bob.recv(65536)
            with Walk() as walk:
                ask(us, do="revoke", path=path)
                answer, why = await told(us), await told(bob)
            if not answer["done"] or why["error"] != "revoked":
                raise RuntimeError(f"{answer}, {why}")
            tasks.cancel_scope.cancel()
    return walk


async def main() -> None:
    print(f"{'what':40} calls moves files")
    print(f"{'a byte from a terminal to two readers':40} {await byte()}")
    print(f"{'a client of a share is revoked':40} {await revocation()}")


if __name__ == "__main__":
    anyio.run(main)
