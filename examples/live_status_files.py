"""Show the state of a service in live files, as sysfs does, and take those of a part away when that is unplugged."""

import errno

import anyio

from asyncrevoke import RevokedError, answers
from asyncrevoke.adapters.entries import Directory, Entry, Operation

lines = [b"17.3 kW\n"]


def read_log(_: Operation, size: int, offset: int) -> bytes | None:
    return b"".join(lines)[offset : offset + size] or None  # none yet: who reads waits for news


async def follow(log: Entry) -> None:
    async with await log.open("follower") as file:
        try:
            async for data in file:
                print("log:", data)
        except RevokedError as error:
            print(f"{errno.errorcode[error.errno or 0]}: {error}")


async def main() -> None:
    status = Directory("status", answers=answers.SYSFS)
    status.create("version", permanent=True, show=lambda: "1.0\n")  # costs nothing, and stays
    meter = status.mkdir("meter0")
    meter.create("power", show=lambda: lines[-1])
    log = meter.create("log", read=read_log, size=lambda: len(b"".join(lines)))  # tail asks for it
    async with anyio.create_task_group() as tasks:
        # For cat, tail -f and other programs: await tasks.start(asyncrevoke.adapters.fuse.mount, status, "/run/status")
        tasks.start_soon(follow, log)
        await anyio.wait_all_tasks_blocked()
        lines.append(b"17.4 kW\n")
        log.notify()
        await anyio.wait_all_tasks_blocked()
        print(await meter.remove("unplugged"))
        print("left:", [each.name for each in status])


anyio.run(main)
