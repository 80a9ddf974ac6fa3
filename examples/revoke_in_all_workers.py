"""Revoke a user in all worker processes of a service: each has a registry of its own, and a control socket."""

import os
import pathlib
import tempfile

import anyio

from asyncrevoke import Registry, RevokedError
from asyncrevoke.control import ControlError, connect, serve


async def worker(folder: pathlib.Path, tell: int) -> None:
    live = Registry()
    async with anyio.create_task_group() as tasks:
        await tasks.start(serve, live, folder / f"{os.getpid()}.sock")
        os.write(tell, b".")
        try:
            with live["alice", "t1"].using():  # a connection
                await anyio.sleep_forever()
        except RevokedError as error:
            print("a worker's connection:", error, flush=True)
        tasks.cancel_scope.cancel()


async def revoke_everywhere(sockets: list[pathlib.Path], path: str, reason: str) -> None:
    for socket in sockets:
        try:
            async with await connect(socket) as control:
                print((await control.revoke(path, reason))["report"])
        except ConnectionRefusedError:
            pass  # this worker was killed, and its connections with it
        except ControlError as error:
            if error.code != "unknown-path":  # that says: nothing of hers is there
                raise


with tempfile.TemporaryDirectory() as name:
    listening, tell = os.pipe()
    for _ in range(2):
        if os.fork() == 0:
            os._exit(anyio.run(worker, pathlib.Path(name), tell) or 0)
        os.read(listening, 1)
    anyio.run(revoke_everywhere, list(pathlib.Path(name).glob("*.sock")), "alice", "the token was revoked")
