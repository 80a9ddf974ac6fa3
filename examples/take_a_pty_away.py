"""Take a pty session away from everybody who is using it."""

import anyio

from asyncrevoke import RevokedError
from asyncrevoke.adapters.pty import PtyStream, open_pty


async def watch(stream: PtyStream) -> None:
    try:
        async for data in stream:
            print(f"{stream.handle.name} sees {data!r}")
    except RevokedError as error:
        print(f"{stream.handle.name}: {error}")


async def main() -> None:
    async with open_pty(["sh", "-c", "echo ready; exec cat"], name="console") as session:
        async with anyio.create_task_group() as watchers:
            first = session.open("first")
            print(await first.receive())
            for name in ("alice", "bob"):
                watchers.start_soon(watch, session.open(name))
            await first.send(b"hello\n")
            print(await first.receive())
            print(await session.revoke("the console is needed elsewhere"))
        print("exit status", await session.wait())


anyio.run(main)
