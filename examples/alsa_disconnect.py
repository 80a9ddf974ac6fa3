"""Disconnect a sound card while it plays, as the kernel does: at once, and freed when the last owner has closed."""

import errno
import socket

import anyio

from asyncrevoke import Face, RevokedError
from asyncrevoke.adapters.alsa import Cards


async def play(substream: Face) -> None:
    for when in "in flight", "later":
        try:
            while True:
                await substream.send(bytes(65536))  # until the card's buffer is full, which nobody empties
        except RevokedError as error:
            print(f"{substream.handle.path}, {when}: {errno.errorcode[error.errno or 0]}")
    await anyio.sleep(0.1)  # its owner takes his time
    await substream.aclose()
    print("closed by its owner")


async def main() -> None:
    cards = Cards()
    card = cards.add("USB audio", private_free=lambda: print("the card is freed"))
    buffer, hardware = socket.socketpair()
    with hardware:
        substream = await card.device("pcm0").open(buffer.detach(), "playback")  # or a serial port, or any byte stream
        async with anyio.create_task_group() as tasks:
            tasks.start_soon(play, substream)
            await anyio.wait_all_tasks_blocked()
            card.free_when_closed("unplugged")  # waits for nobody
            print("another card has its number:", cards.add("the next").number == card.number)
            print(await card.free())  # waits for the last close


anyio.run(main)
