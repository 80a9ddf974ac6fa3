"""The session that `asyncrevoke demo` shows: several clients share it, and it is taken away from them."""

import os
import sys
import time
from typing import TextIO

import anyio

from asyncrevoke.adapters.pty import PtyStream, open_pty
from asyncrevoke.lowlevel import Registry, RevokedError

_COLOURS = {"alice": "32", "bob": "33", "carol": "36", "dave": "35", "us": "1"}


class _Timeline:
    """Prints who saw what, and when. It uses colour on a terminal, and none in a pipe."""

    def __init__(self, out: TextIO) -> None:
        self._out = out
        self._coloured = out.isatty() and "NO_COLOR" not in os.environ
        self._began = time.monotonic()

    def __call__(self, who: str, what: str) -> None:
        line = f"{time.monotonic() - self._began:6.3f} s  {who:<6} {what}"
        print(f"\x1b[{_COLOURS[who]}m{line}\x1b[0m" if self._coloured else line, file=self._out, flush=True)


class _Client:
    """Reads a stream, line by line, until it is taken away."""

    def __init__(self, stream: PtyStream, say: _Timeline) -> None:
        self.stream = stream
        self.name = stream.handle.name
        self._say = say
        self._heard = ""  # all of it
        self._line = ""  # the line that has no end yet
        self._news = anyio.Event()

    async def read(self) -> None:
        try:
            async for data in self.stream:
                self._heard += data.decode(errors="replace")
                *lines, self._line = (self._line + data.decode(errors="replace")).split("\n")
                for line in lines:
                    self._say(self.name, f"| {line.rstrip()}")
                self._news.set()
            self._say(self.name, "end of data: the program has ended")
        except RevokedError as error:
            self._say(self.name, f"RevokedError: {error}")

    async def hears(self, text: str) -> None:
        """Wait until `text` has come."""
        while text not in self._heard:
            self._news = anyio.Event()
            await self._news.wait()


async def demo(out: TextIO = sys.stdout) -> None:
    """Run the demonstration. It takes about a second, and needs no hardware and no privilege."""
    say = _Timeline(out)
    registry = Registry()
    env = {"PATH": os.defpath, "PS1": "$ ", "TERM": "dumb"}
    async with registry.name("shell") as name, anyio.create_task_group() as readers:
        say("us", "three clients share a shell on a pseudo terminal. Each waits for its output")
        session = open_pty(["sh"], owner=name, env=env)
        clients = alice, bob, carol = [_Client(session.open(who), say) for who in ("alice", "bob", "carol")]
        for client in clients:
            readers.start_soon(client.read)
        for client in clients:
            await client.hears("$ ")

        await alice.stream.send(b"echo we are $((1 + 2))\n")
        for client in clients:
            await client.hears("we are 3\r\n$ ")

        await anyio.wait_all_tasks_blocked()
        say("us", "bob is revoked. The others notice nothing")
        report = await bob.stream.revoke("the shift is over")
        say("us", f"report: {report}")
        await alice.stream.send(b"echo we are $((3 - 1))\n")
        for client in (alice, carol):
            await client.hears("we are 2\r\n$ ")

        await anyio.wait_all_tasks_blocked()
        say("us", "the session is revoked by name, while it is in use:")
        for user in (user for client in session.clients for user in client.users()):
            say("us", f"  {user}")
        report = await registry.revoke("shell", reason="maintenance")
        say("us", f"report: {report}")
        say("us", f"it has really gone: shell {session.pid} ended by signal {-(await session.wait())} and is reaped")
        try:
            await alice.stream.send(b"echo still there?\n")
        except RevokedError as error:
            say("alice", f"RevokedError: {error}")

        say("us", "the same name has a new generation")
        async with open_pty(["sh"], owner=name, env=env) as session:
            dave = _Client(session.open("dave"), say)
            async with anyio.create_task_group() as reader:
                reader.start_soon(dave.read)
                await dave.hears("$ ")
                await dave.stream.send(b"exit 7\n")
            say("us", f"the shell of generation {session.node.generation} has ended with status {await session.wait()}")
