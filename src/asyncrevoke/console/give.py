"""Hands the keyboard of a share to one of its clients."""

import argparse

import anyio

from asyncrevoke.lowlevel import printable

from .sockets import look


def run(args: argparse.Namespace) -> int:
    """Hand it over, and return the exit status.

    :raises ControlError: if the server refuses it
    """
    name, _, client = args.client.partition("/")
    if not client:
        args.usage(f"give: name a client, as `ls --who` shows it, such as {name}/bob")

    async def give() -> None:
        async with await look(args.socket) as servers:
            async for _ in (await servers.sharing(name)).request("give", name=name, to=client):
                pass

    anyio.run(give)
    print(printable(f"{args.client} has the keyboard"))
    return 0
