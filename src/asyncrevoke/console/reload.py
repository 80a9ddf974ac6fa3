"""Makes servers read their configuration files again."""

import argparse

import anyio

from asyncrevoke.control.client import Control
from asyncrevoke.control.lines import ControlError
from asyncrevoke.lowlevel import printable

from .commands import FAILED, complain
from .sockets import look

_PATIENCE = 60.0  # seconds. Programs that are taken away have five to end
_NO_FILE = ("bad-request", "unknown-request")


def run(args: argparse.Namespace) -> int:
    """Ask the server that shares a name, or all servers that have a file. Print what was done."""
    return anyio.run(_run, args.name, args.socket)


async def _run(name: str, socket: str) -> int:
    async with await look(socket) as servers:
        sharing = await servers.sharing(name) if name else None
        asked = {path: each for path, each in servers.controls.items() if sharing in (None, each)}
        reloaded = faults = 0
        for path, control in asked.items():
            try:
                with anyio.fail_after(_PATIENCE):
                    await _reload(control)
                reloaded += 1
            except TimeoutError:
                complain(f"{path}: it does not answer, and may still reload later")
                faults += 1
            except ControlError as error:
                if error.code not in _NO_FILE or len(asked) == 1:
                    complain(f"{path}: {error}")
                    faults += 1
        if not reloaded and not faults:
            complain(f"no server has a configuration file. Looked in {servers}")
        return 0 if reloaded and not faults else FAILED


async def _reload(control: Control) -> None:
    async for record in control.request("reload"):
        done = record.get("done")
        for name, what in done.items() if isinstance(done, dict) else ():
            print(printable(f"{name}: {what}"))
        if not done:
            print("nothing has changed")
