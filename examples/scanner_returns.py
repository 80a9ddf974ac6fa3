"""Read a barcode scanner that is unplugged and returns. Here a pty plays it, and a link its name in /dev/input/by-id."""

import os
import pathlib
import struct
import tempfile
import tty

import anyio

from asyncrevoke import RevokedError, follow_device
from asyncrevoke.adapters.device import EventStream

EV_KEY, PRESSED, ENTER = 1, 1, 28
DIGITS = dict(zip(range(2, 12), "1234567890", strict=True))
by_id = pathlib.Path(tempfile.mkdtemp()) / "usb-Acme_Scanner-event-kbd"


def plug_in_and_scan() -> int:
    cable, scanner = os.openpty()
    tty.setraw(scanner)
    by_id.symlink_to(os.ttyname(scanner))
    os.write(cable, b"".join(struct.pack("@LLHHi", 0, 0, EV_KEY, key, PRESSED) for key in (5, 3, ENTER)))
    return cable


async def main() -> None:
    # Of a link in /dev/input/by-id, the name will do. With grab=True, which a pty cannot, nobody else gets its keys.
    async with follow_device(by_id, EventStream) as devices:
        for _ in range(2):
            cable, code = plug_in_and_scan(), ""
            device = await anext(devices)
            try:
                async for event in device.open("codes"):
                    code += DIGITS.get(event.code, "") if (event.type, event.value) == (EV_KEY, PRESSED) else ""
                    if event.code == ENTER:
                        print(f"generation {device.node.generation} scanned {code}")
                        by_id.unlink()
                        os.close(cable)  # unplugged
            except RevokedError as error:
                print(error)


anyio.run(main)
