"""Take a descriptor away from a C library that blocks in it, and knows nothing of that."""

import ctypes
import os
import threading

import anyio

from asyncrevoke.adapters.descriptor import Descriptor

libc = ctypes.CDLL(None)


def read_in_c(fd: int) -> None:
    """Stands for a driver that waits for its device, in a thread of its own."""
    buffer = ctypes.create_string_buffer(100)
    while (read := libc.read(fd, buffer, 100)) > 0:
        print("the library read", buffer.raw[:read])
    print(f"the library's read() returned {read}: it gives up")
    os.close(fd)  # until then no other file gets its number


async def main() -> None:
    device, port = os.openpty()
    library = threading.Thread(target=read_in_c, args=[port])
    descriptor = Descriptor(port, name="ttyUSB0")
    library.start()
    os.write(device, b"17.3 kW\n")
    await anyio.sleep(0.1)
    print(await descriptor.revoke("unplugged"))
    await anyio.to_thread.run_sync(library.join)
    os.close(device)


anyio.run(main)
