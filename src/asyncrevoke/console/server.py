"""A console server: programs and devices, shared by those who attach to them over a control socket."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import anyio
import anyio.abc

from asyncrevoke.control.lines import ControlError
from asyncrevoke.control.request import Request
from asyncrevoke.control.server import serve
from asyncrevoke.lowlevel import Registry, log_events, observe

from .client import Client
from .console import Console, Right
from .front import SocketFront, size
from .share import Share
from .shared_port import CHANGES, obey


async def host(
    shares: Sequence[Share],
    socket: str,
    *,
    group: str | None = None,
    task_status: anyio.abc.TaskStatus[None] = anyio.TASK_STATUS_IGNORED,
) -> None:
    """Share them over a control socket, until all have ended.

    :param group: whose members may attach, and look
    :raises OSError: if a program, a log file or the socket cannot be opened
    :raises ValueError: if two have one name, or there is no such group
    Cancellation: takes all of them away; clients are told.
    """
    hosting = _Hosting(shares, socket, group)
    async with hosting.registry.root, anyio.create_task_group() as tasks:
        tasks.start_soon(hosting.run, task_status)
        try:
            await hosting.over.wait()
        finally:  # cancelled, it goes on until everybody has been told
            hosting.registry.root.revoke("the console server was stopped")
    if hosting.failure is not None:
        raise hosting.failure


class _Hosting:
    """All the consoles, and the server through which they are reached.

    :ivar over: set when all have ended, and the server too
    :ivar failure: what could not be opened
    """

    def __init__(self, shares: Sequence[Share], socket: str, group: str | None) -> None:
        self.registry = Registry()
        self.over = anyio.Event()
        self.failure: Exception | None = None
        self._shares = shares
        self._socket = socket
        self._group = group
        self._consoles: dict[str, Console] = {}

    async def run(self, task_status: anyio.abc.TaskStatus[None]) -> None:
        try:
            with anyio.CancelScope(shield=True):
                async with anyio.create_task_group() as serving:
                    try:
                        await serving.start(observe, self.registry.root, log_events)
                        await serving.start(self._serve)
                        for share in self._shares:
                            self._consoles[share.name] = Console(share, self.registry)
                    except (OSError, ValueError) as exc:
                        self.failure = exc
                        self.registry.root.revoke(str(exc))
                    else:
                        task_status.started()
                    async with anyio.create_task_group() as running:
                        for console in self._consoles.values():
                            running.start_soon(console.run)
                    serving.cancel_scope.cancel()
        finally:
            self.over.set()

    async def _serve(self, *, task_status: anyio.abc.TaskStatus[None]) -> None:
        commands = {"attach": self._attach, "port": self._port}
        await serve(self.registry, self._socket, group=self._group, commands=commands, task_status=task_status)

    async def _attach(self, request: Request) -> Mapping[str, Any]:
        name, mode, wait = request.text("name"), request.text("mode", "write"), request.flag("wait")
        if mode not in ("write", "watch", "force"):
            raise ControlError("bad-request", "'mode' must be one of write, watch, force")
        console = self._console(name)
        window = size(request.fields.get("size"))
        client = Client(
            console,
            SocketFront(request.connection),
            request.peer.name,
            writes=mode != "watch",
            wait=wait,
            history=request.flag("history", default=True),
        )
        client.resize(window)
        return {"ended": await client.run(force=mode == "force")}

    async def _port(self, request: Request) -> Mapping[str, Any]:
        console = self._console(request.text("name"))
        right: Right = "type" if request.fields.keys() & CHANGES else "look"
        if not console.allows(request.peer, right):
            raise ControlError("forbidden", f"user {request.peer.name!r} may not {right} at {console.share.name!r}")
        return {"port": await obey(console, request, request.peer.name)}

    def _console(self, name: str) -> Console:
        if (console := self._consoles.get(name)) is None:
            raise ControlError("unknown-path", f"nothing is shared as {name!r}: {', '.join(self._consoles)} is")
        return console
