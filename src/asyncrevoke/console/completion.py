"""What a shell offers when Tab is pressed. Names of shares are asked of the servers, quickly and silently."""

import argparse
import contextlib
import pathlib
from collections.abc import Iterable

import anyio
import argcomplete
from argcomplete.completers import BaseCompleter, FilesCompleter

from asyncrevoke.control.client import Control
from asyncrevoke.control.lines import ControlError

from .sockets import look, shares

_BY_ID = pathlib.Path("/dev/serial/by-id")
_PATIENCE = 1.0  # seconds; whoever has pressed Tab waits


def complete(parser: argparse.ArgumentParser) -> None:
    """Write to the shell what may come next, and exit."""
    argcomplete.autocomplete(parser, always_complete_options=False, default_completer=_Offer())


class _Offer(BaseCompleter):
    """What may be given for an argument, by its name in the usage."""

    def __call__(
        self, *, prefix: str, action: argparse.Action, parsed_args: argparse.Namespace, **_: object
    ) -> Iterable[str]:
        by_path = prefix.startswith(("/", "."))
        match action.metavar:
            case "NAME":
                return _shared(parsed_args, depth=0)
            case "NAME[/CLIENT]|PATH|KEY" if not by_path:
                return _shared(parsed_args, depth=prefix.count("/"))
            case "DEVICE" if not by_path:
                return [link.name for link in _BY_ID.glob("*")]
            case "NAME[/CLIENT]|PATH|KEY" | "DEVICE" | "FILE" | "PATH":
                return FilesCompleter()(prefix)
            case _:
                return ()


def _shared(args: argparse.Namespace, depth: int) -> Iterable[str]:
    return anyio.run(_ask, getattr(args, "socket", "") or "", depth)


async def _ask(socket: str, depth: int) -> set[str]:
    """Shares, or what is so deep below them. A server that does not answer is left out."""
    found: set[str] = set()

    async def ask(control: Control) -> None:
        with contextlib.suppress(ControlError):
            nodes = [node for node in await control.list() if node["path"].count("/") == depth]
            # below a share, clients alone: what else is open there belongs to a generation
            found.update(n["path"] for n in nodes if (n["generation"] is None if depth else n["kind"] == "name"))
            if not depth:  # what is over, too
                found.update(share["name"] for share in await shares(control))

    with anyio.move_on_after(_PATIENCE), contextlib.suppress(OSError):
        async with await look(socket) as servers, anyio.create_task_group() as tasks:
            for control in servers.controls.values():
                tasks.start_soon(ask, control)
    return found
