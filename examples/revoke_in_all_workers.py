"""Revoke a user in all worker processes of a service: each has a registry of its own, and a control socket."""

import contextlib
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
        with contextlib.suppress(RevokedError), live["alice", "t1"].using():  # a connection
            await anyio.sleep_forever()
        tasks.cancel_scope.cancel()


async def revoke_in(socket: pathlib.Path, path: str, reason: str) -> None:
    try:
        with anyio.fail_after(10):
            async with await connect(socket) as control:
                print((await control.revoke(path, reason, timeout=5))["report"])
    except (ConnectionRefusedError, FileNotFoundError):
        socket.unlink(missing_ok=True)  # noqa: ASYNC240  # it is dead, and its connections with it
    except (ControlError, TimeoutError) as error:
        if getattr(error, "code", "") != "unknown-path":  # that says: nothing of hers is there
            print(f"{socket} may still serve her: {error!r}")


with tempfile.TemporaryDirectory() as name:
    listening, tell = os.pipe()
    for _ in range(2):
        if os.fork() == 0:
            os._exit(anyio.run(worker, pathlib.Path(name), tell) or 0)
        os.read(listening, 1)
    for socket in pathlib.Path(name).glob("*.sock"):  # a service asks all at once, in a task group
        anyio.run(revoke_in, socket, "alice", "the token was revoked")
