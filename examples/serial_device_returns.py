"""Drive a serial device that is unplugged and returns. Here a pty plays the device, and a link its by-id name."""

import os
import pathlib
import tempfile

import anyio

from asyncrevoke import RevokedError, serial_device

by_id = pathlib.Path(tempfile.mkdtemp()) / "usb-Meter_0001-if00"


def plug_in() -> int:
    cable, port = os.openpty()
    by_id.symlink_to(os.ttyname(port))
    return cable


async def main() -> None:
    cable = plug_in()
    async with serial_device(str(by_id), 115200) as devices:  # of a link in /dev/serial/by-id, the name will do
        async for device in devices:
            os.write(cable, b"17.3 kWh\n")
            try:
                async for data in device.open("meter reader"):
                    print(f"generation {device.node.generation}: {data!r}")
                    by_id.unlink()
                    os.close(cable)  # unplugged
            except RevokedError as error:
                print(error)
            if device.node.generation == 2:
                return
            cable = plug_in()


anyio.run(main)
