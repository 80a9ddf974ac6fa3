"""Lend an object to a plugin, and take it away: with its parts, its waits, and what the plugin has kept of it."""

import anyio

from asyncrevoke import Revokable, RevokedError
from asyncrevoke.adapters.membrane import revokable_proxy


class Channel:
    def __init__(self, volts: float) -> None:
        self.volts = volts


class Meter:
    """A driver that knows nothing of revocation."""

    def __init__(self) -> None:
        self.channels = [Channel(1.5), Channel(3.3)]

    async def triggered(self) -> Channel:
        await anyio.sleep_forever()
        return self.channels[0]


async def plugin(meter: Meter, kept: list[Channel]) -> None:
    kept.extend(meter.channels)
    print("measured", [channel.volts for channel in kept])
    try:
        await meter.triggered()
    except RevokedError as error:
        print("the plugin got:", error)


async def main() -> None:
    kept: list[Channel] = []
    handle = Revokable("meter")
    async with anyio.create_task_group() as tasks:
        tasks.start_soon(plugin, revokable_proxy(Meter(), handle), kept)
        await anyio.wait_all_tasks_blocked()
        await handle.revoke("the plugin is unloaded")
    print("what it kept:", repr(kept[0]))


anyio.run(main)
