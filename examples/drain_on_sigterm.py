"""A service that drains on SIGTERM: requests in progress may finish, whoever is idle leaves at once; then by force."""

import asyncio
import os
import signal

from asyncrevoke import Revokable, RevokedError


async def main() -> None:
    service = Revokable("service")  # the root; every connection is a child of it

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        connection = service.open("connection", release=writer.transport.abort)
        try:
            async for line in connection.iterate(reader):  # waiting for a request is idle
                with connection.using():  # answering one is not
                    await asyncio.sleep(0.1)
                    writer.write(b"done: " + line)
        except RevokedError as error:
            print(error)
        await connection.aclose()

    server = await asyncio.start_server(serve, "127.0.0.1", 0)
    stop = asyncio.Event()
    asyncio.get_running_loop().add_signal_handler(signal.SIGTERM, stop.set)
    busy, writer = await asyncio.open_connection(*server.sockets[0].getsockname())
    idle, other = await asyncio.open_connection(*server.sockets[0].getsockname())
    writer.write(b"request\n")
    asyncio.get_running_loop().call_later(0.05, os.kill, os.getpid(), signal.SIGTERM)
    await stop.wait()
    server.close()
    print(await service.revoke("the service stops", grace=5.0))
    print(await busy.read(), await idle.read())
    for client in (writer, other):
        client.close()


asyncio.run(main())
