"""Shows and changes the serial port of a share, from outside of its server."""

import argparse
import json
from collections.abc import Iterator
from typing import Any

import anyio

from asyncrevoke.control.client import Control, Record
from asyncrevoke.control.lines import ControlError

from .commands import print_table
from .settings import NAMES, SWITCH, Settings
from .sockets import look


def run(args: argparse.Namespace) -> int:
    """Have a server change the port, and print its state afterwards. Return the exit status.

    :raises ControlError: if the server refuses it
    """

    async def ask_server() -> Record:
        async with await look(args.socket) as servers:
            return await ask(await servers.sharing(args.name), args.name, **_wishes(args))

    port = anyio.run(ask_server)
    try:
        rows = list(_rows(port))
    except (AttributeError, KeyError, TypeError, ValueError) as exc:
        raise ControlError("garbage", f"the server sent what makes no sense: {exc!r}") from exc
    if args.json:
        print(json.dumps(port))
    else:
        print_table(rows)
    return 0


def _wishes(args: argparse.Namespace) -> dict[str, Any]:
    lines = {line: SWITCH[state] for line in ("dtr", "rts") if (state := getattr(args, line)) is not None}
    settings = {name: each for name in NAMES if (each := getattr(args, name)) is not None}
    wishes = {"settings": settings or None, "lines": lines or None, "break": args.break_, "down": args.down}
    return {name: each for name, each in wishes.items() if each is not None} | ({"up": True} if args.up else {})


async def ask(control: Control, name: str, **wishes: Any) -> Record:
    """Ask for changes of a port, and return its state afterwards.

    :raises ControlError: if the server refuses, or its answer makes no sense
    """
    (*_, last) = [record async for record in control.request("port", name=name, **wishes)]
    if not isinstance(port := last.get("port"), dict):
        raise ControlError("garbage", f"the server sent what makes no sense: {str(last)[:100]}")
    return port


def _rows(port: Record) -> Iterator[list[str]]:
    yield ["NAME", "STATE", "DEVICE", "SETTINGS", "LINES", "REASON"]
    lines = "unknown" if port["lines"] is None else " ".join(line for line, on in port["lines"].items() if on) or "none"
    state, device = "down" if port["down"] else port["state"], port["path"] or port["device"]
    yield [port["name"], state, device, str(Settings(**port["settings"])), lines, port["reason"]]
