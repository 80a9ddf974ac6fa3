"""A console server: clients share programs and devices over control sockets."""

from __future__ import annotations

import contextlib
import logging
import signal
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

import anyio
import anyio.abc

from asyncrevoke.control.access import Access
from asyncrevoke.control.lines import ControlError
from asyncrevoke.control.listener import permit
from asyncrevoke.control.peer import Peer
from asyncrevoke.control.request import Request
from asyncrevoke.control.server import serve
from asyncrevoke.lowlevel import Event, Registry, RevokedError, log_events, observe, printable

from .access import People, Right, Rights, people
from .client import Client
from .console import LIVE, Console
from .fault import told
from .front import SocketFront, size
from .network import run
from .share import Config, Share, Socket
from .shared_port import CHANGES, obey

logger = logging.getLogger("asyncrevoke")

_Servers = dict[str, tuple[Socket, anyio.CancelScope]]  # by the path of the socket


async def host(
    shares: Sequence[Share],
    sockets: str | Sequence[Socket],
    *,
    group: str | None = None,
    reread: Callable[[], Config] | None = None,
    task_status: anyio.abc.TaskStatus[None] = anyio.TASK_STATUS_IGNORED,
) -> None:
    """Share programs and devices over control sockets, until all shares have ended.

    :param group: group whose members may attach and list
    :param reread: returns the new configuration on a reload. With it, the server lives on when all shares have ended
    :raises OSError: if a program, a log file or a socket cannot be opened
    :raises ValueError: if two shares have one name, or there is no such group or user
    Cancellation: takes all shares away. Clients are told.
    """
    hosting = _Hosting(reread)
    config = Config(tuple(shares), group, (Socket(sockets),) if isinstance(sockets, str) else tuple(sockets))
    async with hosting.registry.root, anyio.create_task_group() as tasks:
        tasks.start_soon(hosting.run, config, task_status)
        try:
            await hosting.over.wait()
        finally:  # when cancelled, it goes on until every client has been told
            hosting.registry.root.revoke("the console server was stopped")
    if hosting.failure is not None:
        raise hosting.failure


class _Hosting(Access):
    """All consoles, and the servers that clients reach them through. Each console says who may do what.

    :ivar over: set when all consoles and servers have ended
    :ivar failure: the error, if something could not be opened
    """

    def __init__(self, reread: Callable[[], Config] | None) -> None:
        super().__init__()
        self.registry = Registry()
        self.over = anyio.Event()
        self.failure: Exception | None = None
        self._reread = reread
        self._groups = People()
        self._consoles: dict[str, Console] = {}
        self._servers: _Servers = {}
        self._changing = anyio.Lock()
        self._serving = anyio.create_task_group()
        self._running = anyio.create_task_group()

    async def run(self, config: Config, task_status: anyio.abc.TaskStatus[None]) -> None:
        try:
            with anyio.CancelScope(shield=True):
                async with self._serving:
                    async with self._running:
                        try:
                            await self._serving.start(observe, self.registry.root, _log)
                            await self._apply(config)
                        except (OSError, ValueError) as exc:
                            self.failure = exc
                            self.registry.root.revoke(str(exc))
                        else:
                            if self._reread is not None:
                                await self._running.start(self._live_on)
                            task_status.started()
                    self._serving.cancel_scope.cancel()
        finally:
            self.over.set()

    async def _live_on(self, *, task_status: anyio.abc.TaskStatus[None]) -> None:
        """Reload on SIGHUP until the server is stopped. If SIGHUP is ignored, as under nohup, it stays ignored."""
        signals = [signal.SIGHUP] if signal.getsignal(signal.SIGHUP) != signal.SIG_IGN else []
        with anyio.open_signal_receiver(*signals) as hangups, contextlib.suppress(RevokedError):
            task_status.started()
            with self.registry.root.using(idle=True):
                async for _ in hangups:
                    for console in self._consoles.values():  # logrotate may have moved log files
                        console.reopen_log()
                    try:
                        await self.reload()
                    except ControlError as error:
                        logger.error("%s", error)  # noqa: TRY400  # the message says everything

    # -- who may do what --

    def __str__(self) -> str:
        return "only root, the owner, and users that the configuration names may"

    def connects(self, peer: Peer) -> bool:
        return peer.owner or peer in self._groups or any(each.allows(peer, "look") for each in self._consoles.values())

    def looks(self, peer: Peer, path: str) -> bool:
        return self._allows(peer, "look", path)

    def revokes(self, peer: Peer, path: str) -> bool:
        return self._allows(peer, "revoke", path)

    def _allows(self, peer: Peer, right: Right, path: str) -> bool:
        console = self._consoles.get(path.partition("/")[0])
        return peer.owner if console is None else console.allows(peer, right)

    def _find(self, request: Request, right: Right = "look") -> Console:
        """Return the share that a request names.

        :raises ControlError: "unknown-path", also if the peer may not look at it. "forbidden", if another right is missing
        """
        name, peer = request.text("name"), request.peer
        seen = {name: console for name, console in self._consoles.items() if console.allows(peer, "look")}
        if name not in seen:
            others = f"Shared: {', '.join(seen)}" if seen else "Nothing is shared"
            raise ControlError("unknown-path", f"no share is named {name!r}. {others}")
        if not seen[name].allows(peer, right):
            raise ControlError("forbidden", f"user {peer.name!r} lacks the right {right!r} on {name!r}")
        return seen[name]

    # -- what is shared --

    async def reload(self) -> dict[str, str]:
        """Share what the configuration says now. Return what was done, by name.

        :raises ControlError: if the configuration has a fault. Then nothing was changed
        """
        if self._reread is None:
            raise ControlError("bad-request", "this server has no configuration file. Start it with --config")
        with anyio.CancelScope(shield=True):  # a reload is done as a whole
            try:
                done = await self._apply(self._reread())
            except (OSError, ValueError) as exc:
                raise ControlError("failed", f"nothing was changed: {told(exc)}") from None
        for name, what in done.items():
            logger.info("%s", printable(f"{name}: {what}"))
        return done

    async def _apply(self, config: Config) -> dict[str, str]:
        """Share this, and nothing else. A share that did not change is not touched.

        :raises OSError, ValueError: if the configuration has a fault. Then nothing was changed
        """
        async with self._changing:
            groups = people([f"@{each}" for each in (config.group, *(each.group for each in config.sockets)) if each])
            old, new = self._consoles, dict[str, Console]()
            rights = {share.name: Rights(share, groups) for share in config.shares}
            with contextlib.ExitStack() as undo:
                for share in config.shares:
                    if share.name not in old or old[share.name].changes(share):
                        new[share.name] = Console(share, self.registry, groups)
                        undo.callback(new[share.name].close)
                servers = await self._listen(config.complete_sockets(), undo)
                for name in [name for name in new if name not in old]:
                    new[name].begin()
                    undo.callback(new[name].node.revoke, "the configuration has a fault")
                undo.pop_all()
            for path in self._servers.keys() - servers:
                self._servers[path][1].cancel()
            self._groups, self._servers = groups, servers
            for name in rights.keys() & old:  # at once, whatever happens to the share
                old[name].permit(rights[name])
            unchanged = rights.keys() - new
            return await self._change({name: each for name, each in old.items() if name not in unchanged}, new)

    async def _change(self, old: Mapping[str, Console], new: Mapping[str, Console]) -> dict[str, str]:
        """Replace the old consoles by the new ones, prepared or begun. Return what was done, by name."""
        done, going = {}, []
        for name, before in old.items():
            changes = before.changes(new[name].share) if name in new else []
            what = f"{', '.join(changes)} changed"
            if changes and LIVE.issuperset(changes):
                try:
                    await before.become(new[name])
                    done[name] = what
                except ControlError as exc:
                    new[name].close()
                    done[name] = f"not changed: {exc}"
            else:
                why = f"{what} in the configuration" if changes else "the configuration no longer has it"
                before.node.revoke(why)
                going.append(before)
                done[name] = f"taken away: {why}"
        for name, console in new.items():
            if name not in old:
                self._run(console)
                done[name] = "started"
        for before in going:
            await before.over.wait()
            name = before.share.name
            if name not in new:
                del self._consoles[name]
                continue
            before.share = new[name].share
            try:
                self._begin_anew(new[name])
                done[name] += "; started again"
            except (OSError, ValueError) as exc:
                done[name] += f"; it cannot be started: {told(exc)}"
        return done

    def _begin_anew(self, console: Console) -> None:
        try:
            console.begin()
        except BaseException:
            console.close()
            raise
        self._run(console)

    def _run(self, console: Console) -> None:
        self._consoles[console.share.name] = console
        self._running.start_soon(run, console)

    async def _listen(self, sockets: Iterable[Socket], undo: contextlib.ExitStack) -> _Servers:
        """Serve at these sockets too."""
        servers: _Servers = {}
        for socket in sockets:
            known, scope = self._servers.get(socket.path, (None, anyio.CancelScope()))
            if known is None:
                await self._serving.start(self._serve, socket, scope)
                undo.callback(scope.cancel)
            elif known != socket:
                permit(socket.path, socket.group or None, socket.mode)
                undo.callback(permit, known.path, known.group or None, known.mode)
            servers[socket.path] = socket, scope
        return servers

    async def _serve(
        self, socket: Socket, scope: anyio.CancelScope, *, task_status: anyio.abc.TaskStatus[None]
    ) -> None:
        with scope:
            await serve(
                self.registry,
                socket.path,
                group=socket.group or None,
                mode=socket.mode,
                access=self,
                commands={
                    "attach": self._attach,
                    "give": self._give,
                    "port": self._port,
                    "reload": self._reload,
                    "shares": self._shares,
                    "start": self._start,
                },
                task_status=task_status,
            )

    # -- the requests --

    async def _reload(self, request: Request) -> Mapping[str, Any]:
        if not request.peer.owner:
            raise ControlError("forbidden", "to reload, you must be root or the owner of this server")
        return {"done": await self.reload()}

    async def _start(self, request: Request) -> Mapping[str, Any]:
        async with self._changing:
            before = self._find(request, "revoke")
            if not before.node.revoked:
                raise ControlError("bad-request", f"{before.share.name!r} has not ended: it is shared")
            await before.over.wait()
            try:
                self._begin_anew(Console(before.share, self.registry, self._groups))
            except (OSError, ValueError) as exc:
                raise ControlError("failed", f"{before.share.name!r} cannot be started: {told(exc)}") from None
        return {}

    async def _shares(self, request: Request) -> Mapping[str, Any]:
        seen = [each for each in self._consoles.values() if each.allows(request.peer, "look")]
        await request.connection.send(*({"share": each.told()} for each in seen))
        return {"shares": len(seen)}

    async def _attach(self, request: Request) -> Mapping[str, Any]:
        mode, wait, peer = request.text("mode", "write"), request.flag("wait"), request.peer
        if mode not in ("write", "watch", "force"):
            raise ControlError("bad-request", "'mode' must be one of write, watch, force")
        console = self._find(request, "type" if mode == "force" else "look")
        window = size(request.fields.get("size"))
        client = Client(
            console,
            SocketFront(request.connection),
            peer.name,
            writes=mode != "watch",
            wait=wait,
            history=request.flag("history", default=True),
            peer=peer,
            origin=request.text("from", "") or f"process {peer.pid}",
        )
        client.review()
        client.resize(window)
        return {"ended": await client.run(force=mode == "force")}

    async def _give(self, request: Request) -> Mapping[str, Any]:
        console, name = self._find(request, "type"), request.text("to")
        client = next((each for each in console.clients if each.name == name), None)
        if client is None:
            there = f"Attached: {', '.join(each.name for each in console.clients)}" if console.clients else "Nobody is"
            raise ControlError("unknown-path", f"{name!r} is not attached to {console.share.name!r}. {there}")
        if not client.writes:
            raise ControlError("refused", f"{name!r} may only watch {console.share.name!r}")
        if console.keyboard is not client:
            console.hand_to(client, by=request.peer.name)
        return {}

    async def _port(self, request: Request) -> Mapping[str, Any]:
        console = self._find(request, "type" if request.fields.keys() & CHANGES else "look")
        return {"port": await obey(console, request, request.peer.name)}


def _log(event: Event) -> None:
    """Log an event. The consoles log revocations."""
    if event.what != "revoked":
        log_events(event)
