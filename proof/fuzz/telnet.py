"""Telnet and RFC 2217, to a serial port that a console server shares over the network."""

import asyncio
import contextlib
import os
import pathlib
import random
import re
import socket
import tempfile
import tty
from collections.abc import AsyncIterator

import anyio
from mutation import One, mutated

from asyncrevoke.console.server import host
from asyncrevoke.console.share import Share

IAC, DONT, DO, WONT, WILL, SB, SE = (bytes([each]) for each in (255, 254, 253, 252, 251, 250, 240))
PORT = b"\x2c"
#: What is good: a negotiation, a window, each command of RFC 2217, and what is typed.
GOOD = [
    IAC + verb + option for verb in (DO, DONT, WILL, WONT) for option in (b"\0", b"\1", b"\3", b"\x1f", PORT, b"\x18")
]
GOOD += [
    IAC + SB + b"\x1f" + size + IAC + SE for size in (b"\0\x50\0\x18", b"\0\0\0\0", b"\0", b"\xff\xff\xff\xff" * 2)
]
GOOD += [
    IAC + SB + PORT + bytes([command]) + value + IAC + SE
    for command in (*range(14), 99, 107)
    for value in (b"", b"\0", b"\1", b"\0\1\xc2\0")
]
GOOD += [IAC + bytes([each]) for each in (241, 243, 246, 255)] + [b"hello\r\n", b"\r\0", b"x" * 300]
WORDS = [IAC, SB, SE, IAC + SB, IAC + SE, IAC + SB + PORT, PORT, b"\0", b"\xff" * 9, b"\r", IAC + SB + b"y" * 1100]


@contextlib.asynccontextmanager
async def answers() -> AsyncIterator[One]:
    """The connection is served until its client ends it, or closed with a reason; and the next one is served."""
    loop = asyncio.get_running_loop()
    master, slave = os.openpty()
    tty.setraw(slave)
    os.set_blocking(master, False)
    loop.add_reader(master, os.read, master, 65536)
    with socket.create_server(("127.0.0.1", 0)) as free:
        number = free.getsockname()[1]
    with tempfile.TemporaryDirectory() as folder:
        share = Share("lab", device=os.ttyname(slave), listen=(f"telnet://127.0.0.1:{number}",))
        async with anyio.create_task_group() as tasks:
            await tasks.start(host, [share], str(pathlib.Path(folder, "control")))

            async def one(rng: random.Random) -> list[str]:
                data = mutated(rng, b"".join(rng.choices(GOOD, k=rng.randint(1, 6))), WORDS)
                came = b""
                async with await anyio.connect_tcp("127.0.0.1", number) as client:
                    with contextlib.suppress(anyio.EndOfStream, anyio.BrokenResourceError):
                        await client.send(data)
                        if rng.random() < 0.9:
                            await client.send_eof()
                            while True:
                                came += await client.receive()
                said = re.findall(rb"\[asyncrevoke: ([^\]]*)", came)
                commands = sorted({each[0] for each in re.findall(rb"\xff\xfa\x2c(.)", came, re.DOTALL)})
                return [each.decode() for each in said] or [
                    f"commands {commands} were answered" if came else "it was left"
                ]

            yield one
            tasks.cancel_scope.cancel()
    loop.remove_reader(master)
    os.close(master)
    os.close(slave)
