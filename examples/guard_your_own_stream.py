"""Make a connection revocable: RevokableStream around any AnyIO byte stream."""

import anyio
import anyio.abc

from asyncrevoke import RevokableStream, RevokedError


async def main() -> None:
    async def silent(peer: anyio.abc.SocketStream) -> None:
        async with peer:
            await peer.receive()

    listener = await anyio.create_tcp_listener(local_host="127.0.0.1")
    port = listener.extra(anyio.abc.SocketAttribute.local_port)
    async with listener, anyio.create_task_group() as tasks:
        tasks.start_soon(listener.serve, silent)
        stream = RevokableStream(await anyio.connect_tcp("127.0.0.1", port), name="connection")

        async def read() -> None:
            try:
                await stream.receive()
            except RevokedError as error:
                print(f"the reader got: {error}")

        tasks.start_soon(read)
        await anyio.wait_all_tasks_blocked()
        print(await stream.revoke("moved to another host"))
        tasks.cancel_scope.cancel()


anyio.run(main)
