"""Revoke a user in all worker processes of a service: each has a registry of its own, and a control socket."""

import contextlib
import os
import tempfile

import anyio

from asyncrevoke import Registry, RevokedError
from asyncrevoke.control import revoke_in_all, serving


async def worker(folder: str, tell: int) -> None:
    live = Registry()
    async with serving(live, folder):  # in the lifespan of a web service
        os.write(tell, b".")
        with contextlib.suppress(RevokedError), live["alice", "t1"].using():  # a connection
            await anyio.sleep_forever()


async def main(folder: str) -> None:
    answers = await revoke_in_all(folder, "alice", "the token was revoked", limit=5)
    for pid, answer in answers.items():
        if not answer["done"]:
            print(f"worker {pid} may still serve her: {answer['error'] or answer['stragglers']}")
        print(answer["report"])


with tempfile.TemporaryDirectory() as folder:
    listening, tell = os.pipe()
    for _ in range(2):
        if os.fork() == 0:
            os._exit(anyio.run(worker, folder, tell) or 0)
        os.read(listening, 1)
    anyio.run(main, folder)
