"""An integration that polls a device: available as long as it is there, else unavailable, then available again."""

import os
import pathlib
import tempfile

import anyio

from asyncrevoke import RevokedError, serial_device
from asyncrevoke.adapters.hotplug import SerialDevices

by_id = pathlib.Path(tempfile.mkdtemp()) / "usb-Thermometer_42"


async def thermometer(devices: SerialDevices) -> None:
    async for device in devices:
        try:
            async with device.open("poll") as stream:
                while True:
                    await stream.send(b"?")
                    print("available:", (await stream.receive()).decode())
        except RevokedError as error:
            print("unavailable:", error.reason)


async def main() -> None:
    async with serial_device(str(by_id)) as devices, anyio.create_task_group() as tasks:
        tasks.start_soon(thermometer, devices)
        for degrees in b"20", b"21":
            cable, port = os.openpty()  # plays the device
            by_id.symlink_to(os.ttyname(port))
            await anyio.wait_readable(cable)
            os.read(cable, 1)
            os.write(cable, degrees)
            by_id.unlink()
            await anyio.wait_readable(cable)  # the next question
            os.close(cable)  # unplugged
        tasks.cancel_scope.cancel()


anyio.run(main)
