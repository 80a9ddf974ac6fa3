"""Starts a share again that is over."""

import argparse

import anyio

from asyncrevoke.lowlevel import printable

from .sockets import look


def run(args: argparse.Namespace) -> int:
    """Start it, and return the exit status."""

    async def start() -> None:
        async with await look(args.socket) as servers:
            async for _ in (await servers.sharing(args.name)).request("start", name=args.name):
                pass

    anyio.run(start)
    print(f"{printable(args.name)}: started")
    return 0
