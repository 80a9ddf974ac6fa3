"""What a shell offers when you press Tab. The servers are asked for names of shares, quickly and silently."""

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
_PATIENCE = 1.0  # seconds that the shell hangs at most


def complete(parser: argparse.ArgumentParser) -> None:
    """Write to the shell what may follow, and exit."""
    argcomplete.autocomplete(parser, always_complete_options=False, default_completer=_Offer())


class _Offer(BaseCompleter):
    """Return completers of arguments, by their names in the usage."""

    def __call__(
        self, *, prefix: str, action: argparse.Action, parsed_args: argparse.Namespace, **_: object
    ) -> Iterable[str]:
        by_path = prefix.startswith(("/", "."))
        match action.metavar:
            case "NAME":
                return _shared(parsed_args, depth=0)
            case "NAME[/CLIENT]|PATH|KEY" | "NAME/CLIENT" if not by_path:
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
    """Return the shares, or the names that many levels below them. A server that does not answer is skipped."""
    found: set[str] = set()

    async def ask(control: Control) -> None:
        with contextlib.suppress(ControlError):
            nodes = [node for node in await control.list() if node["path"].count("/") == depth]
            # below a share, only clients: all else belongs to a generation
            found.update(n["path"] for n in nodes if (n["generation"] is None if depth else n["kind"] == "name"))
            if not depth:  # shares that are over too
                found.update(share["name"] for share in await shares(control))

    with anyio.move_on_after(_PATIENCE), contextlib.suppress(OSError):
        async with await look(socket) as servers, anyio.create_task_group() as tasks:
            for control in servers.controls.values():
                tasks.start_soon(ask, control)
    return found
