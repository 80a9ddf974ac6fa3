"""Kill all terminals of a token, and nothing else: `also=` gives a stream a second parent."""

import anyio

from asyncrevoke import Registry, RevokedError
from asyncrevoke.adapters.pty import PtyStream, open_pty


async def serve(stream: PtyStream) -> None:
    """What a web terminal does for each connection."""
    try:
        async for data in stream:
            print(f"to {stream.handle.name}: {data!r}")
    except RevokedError as error:
        print(f"{stream.handle.name} is closed: {error.reason}")


async def main() -> None:
    live = Registry("everybody")
    async with (
        open_pty(["cat"], name="pty0") as pty0,
        open_pty(["cat"], name="pty1") as pty1,
        anyio.create_task_group() as connections,
    ):
        for session, user, token in (pty0, "alice", "t1"), (pty1, "alice", "t2"), (pty0, "bob", "t3"):
            connections.start_soon(serve, session.open(f"{user} by {token}", also=[live[user, token]]))
        await anyio.wait_all_tasks_blocked()
        print("in use:", sorted(live))
        print(await live.revoke("alice", "t1", reason="the token was revoked"))
        print(await live.revoke("alice", reason="the account was closed"))
        print("in use:", sorted(live))
        connections.start_soon(serve, pty1.open("alice again", also=[live["alice", "t4"]]))
        await anyio.wait_all_tasks_blocked()
        print(await live.root.revoke("good night"))


anyio.run(main)
