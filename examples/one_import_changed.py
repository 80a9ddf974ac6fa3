"""Existing asyncio code, with one import changed: it was ``from serial_asyncio import open_serial_connection``."""

import asyncio
import os
import tty

import serial

from asyncrevoke.compat.serial_asyncio import open_serial_connection


async def existing_code(path: str) -> None:
    reader, writer = await open_serial_connection(url=path, baudrate=115200)
    try:
        while True:
            writer.write(b"measure\n")
            await writer.drain()
            print("measured", await reader.readline())
    except serial.SerialException as error:
        print("lost:", error)
    finally:
        writer.close()
        await writer.wait_closed()


async def main() -> None:
    cable, port = os.openpty()  # plays the device
    tty.setraw(port)
    reading = asyncio.create_task(existing_code(os.ttyname(port)))
    await asyncio.to_thread(os.read, cable, 100)
    os.write(cable, b"17.3\n")
    await asyncio.to_thread(os.read, cable, 100)
    os.close(cable)  # unplugged, while it waits for the second answer
    await reading


asyncio.run(main())
