"""Share a hidraw stick, until it is unplugged. Here two sockets play it; give a path such as "/dev/hidraw0" instead."""

import socket

import anyio

from asyncrevoke import RevokedError, open_device
from asyncrevoke.adapters.device import CharacterDevice, ReportStream


async def show(device: CharacterDevice[ReportStream], name: str) -> None:
    try:
        async for report in device.open(name):  # whole, whatever its length
            print(f"{name} got {report.hex(' ')}")
    except RevokedError as error:
        print(error)


async def main() -> None:
    stick, opened = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    async with (
        open_device(opened, ReportStream, fan_out=True, name="stick") as device,  # each gets each report
        anyio.create_task_group() as tasks,
    ):
        tasks.start_soon(show, device, "alice")
        tasks.start_soon(show, device, "bob")
        await anyio.wait_all_tasks_blocked()
        await device.open("asks").send(b"\0\x01")  # 0: its reports have no numbers
        print(f"the stick got {stick.recv(100).hex(' ')}")
        stick.send(b"\x17\x03")
        stick.send(b"\x17\x04\x05")
        await anyio.wait_all_tasks_blocked()
        stick.close()  # unplugged


anyio.run(main)
