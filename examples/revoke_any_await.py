"""Take anything away from the tasks that await it: a root, a handle for each task, and `using()` around each operation."""

import anyio

from asyncrevoke import Revokable, RevokedError

port = Revokable("ttyUSB0", release=lambda: print("port closed"))  # runs once, after the last user has left


async def read(handle: Revokable) -> None:
    try:
        with handle.using():  # one operation
            await anyio.sleep_forever()  # whatever you await
    except RevokedError as error:
        print(error)  # 'ttyUSB0/alice' was revoked: unplugged


async def main() -> None:
    alice, bob = port.open("alice"), port.open("bob")  # handles: nodes below the port, and users of it
    async with anyio.create_task_group() as tasks:
        tasks.start_soon(read, alice)
        tasks.start_soon(read, bob)
        await anyio.wait_all_tasks_blocked()
        report = await port.revoke("unplugged")  # refuse, kick, wait, release
        print(report)  # 'ttyUSB0' revoked (unplugged): 2 kicked, 3 released, in 0.001 s


anyio.run(main)
