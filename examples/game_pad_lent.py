"""Lend a game pad to a program, and take it back. Here a socket plays the pad, and shutdown(2) takes it from both.

Of a real one the game gets a file of its own, which EVIOCREVOKE takes back: it meets ENODEV, and you go on.
"""

import socket
import struct
import subprocess
import sys

import anyio

from asyncrevoke import Revokable
from asyncrevoke.adapters.lend import lend

PRESS = struct.pack("@LLHHi", 0, 0, 1, 304, 1)  # EV_KEY, BTN_SOUTH
GAME = """
import os, socket, struct
_, (pad,), *_ = socket.recv_fds(socket.socket(fileno=0), 1, 1)
try:
    while event := os.read(pad, 24):
        print("the game got", *struct.unpack("@LLHHi", event)[2:], flush=True)
except OSError: pass
print("the game has lost the pad")
"""
(pad, opened), (line, games) = socket.socketpair(), socket.socketpair()
command = [sys.executable, "-c", GAME]


async def main() -> None:
    async with Revokable("alice") as alice, lend(opened.fileno(), to=line, owner=alice, name="pad") as loan:
        pad.send(PRESS)
        assert game.stdout
        print(game.stdout.readline(), end="")
        print(await alice.revoke("bob's turn"), "by", loan.means.name)
        print(game.stdout.read(), end="")


with pad, opened, line, games, subprocess.Popen(command, stdin=games.fileno(), stdout=-1, text=True) as game:
    anyio.run(main)
