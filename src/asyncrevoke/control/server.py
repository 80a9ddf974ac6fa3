"""A control server: other processes list, watch and take away what is open in this one, over a Unix socket.

It runs in the loop of the service whose registry it serves. The mode of the socket says who may connect. For every connection
the server also asks the kernel for the peer (SO_PEERCRED, SO_PEERGROUPS). An `Access` says what each peer may do. By the rule
of revoke(2), a peer that may look at a device and owns its file may also take it away.
"""

import contextlib
import functools
import itertools
import logging
import os
import socket
import time
from collections import deque
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

import anyio
import anyio.abc

from asyncrevoke.linux import EPOLLET, epoll
from asyncrevoke.lowlevel import (
    Event,
    FdStream,
    Name,
    Registry,
    Revocation,
    Revokable,
    RevokedError,
    User,
    observe,
    revoke_all,
    users_of,
)

from .access import Access
from .lines import LINE_ERRORS, VERSION, Connection, ControlError, encode, refusal, short
from .listener import listening
from .peer import Peer, peer_of
from .request import Command, Request

logger = logging.getLogger("asyncrevoke.control")

_LAST_WORDS = 5.0  # seconds, when the server ends, for what clients wait for
_AT_ONCE = 64  # nodes and users that are listed in one turn
_EVENTS = 500  # that are sent at once
_BY = 1_000  # bytes of a user's name
_PAUSE = 0.05  # seconds between two sendings of events, so that many watchers do not take the loop
_ENDED = "the control server has ended"
_NOT_YET = "it has not come yet"
_OVER = (anyio.EndOfStream, anyio.BrokenResourceError, anyio.ClosedResourceError)  # the connection is


async def serve(
    registry: Registry,
    path: str | os.PathLike[str],
    *,
    group: str | None = None,
    mode: int | None = None,
    access: Access | None = None,
    commands: Mapping[str, Command] | None = None,
    clients: int = 1000,
    backlog: int = 4 << 20,
    patience: float = 30.0,
    task_status: anyio.abc.TaskStatus[None] = anyio.TASK_STATUS_IGNORED,
) -> None:
    """Serve a registry until cancelled: ``await tasks.start(serve, registry, "/run/gateway/control.sock")``

    :param path: path of the socket. A socket that a dead server left there is replaced
    :param group: group whose members may connect, besides the owner and root
    :param mode: mode of the socket. Default: 0660 with a group, else 0600
    :param access: says who may do what. Default: the owner and root may do everything, members of the group may look
    :param commands: further requests, by name. docs/control-protocol.md shows one
    :param clients: number of clients that may be connected at a time. The owner's clients have as many places of their own
    :param backlog: bytes of events that a watcher may be behind. Beyond that its connection is revoked as too slow
    :param patience: seconds that a client may take to receive an answer
    :raises OSError: if a live server or a file that is not a socket is at `path`, or no socket can be made there
    :raises ValueError: if there is no such group, or a command has the name of a built-in request
    Cancellation: ends the server. Connected clients are told.
    """
    access = access or Access(group)
    if mode is None:
        mode = 0o600 if group is None else 0o660
    async with listening(os.fspath(path), group, mode) as listener:
        with epoll() as hangups:
            server = _Server(registry, commands or {}, hangups, access, clients, backlog, patience)
            async with anyio.create_task_group() as tasks:
                try:
                    await tasks.start(observe, registry.root, server.note)
                    tasks.start_soon(server.notice_who_goes)
                    task_status.started()
                    while True:
                        try:
                            await anyio.wait_readable(listener)
                            server.let_in(listener, tasks)
                        except OSError as exc:  # too many files are open: clients wait until some are closed
                            logger.warning("the control socket %s: %s", path, exc)
                            await anyio.sleep(1)
                finally:
                    with anyio.move_on_after(_LAST_WORDS, shield=True):
                        await server.awaited.revoke(_ENDED)
                    server.connections.revoke(_ENDED)


@dataclass(eq=False, slots=True)
class _Watcher:
    """A client that is sent the events below a path."""

    path: str
    connection: Connection
    unsent: deque[bytes] = field(default_factory=deque)
    behind: int = 0  # bytes
    more: anyio.Event = field(default_factory=anyio.Event)


@dataclass(eq=False)
class _Server:
    """What `serve` was given, and the clients that are connected."""

    registry: Registry
    commands: Mapping[str, Command]
    hangups: epoll
    access: Access
    most: int
    backlog: int
    patience: float

    def __post_init__(self) -> None:
        self.connections = Revokable("control connections")
        self.awaited = Revokable("control server", kick=None)  # in use while clients wait for revocations and answers
        self._clients: dict[int, Connection] = {}  # by descriptor
        self._watchers: dict[_Watcher, None] = {}
        self._opened: dict[Revokable, float] = {}
        self._listing = anyio.Semaphore(8)  # parts of lists that are made in one turn of the loop
        own: dict[str, Command] = {
            "as": self._act_as,
            "list": self._list,
            "revoke": self._revoke,
            "watch": self._watch,
        }
        if taken := own.keys() & self.commands:
            raise ValueError(f"the request {min(taken)!r} is built in: choose another name for your command")
        self.commands = own | dict(self.commands)

    def note(self, event: Event) -> None:
        """Note since when a node is open, and queue the event for watchers."""
        if event.what == "opened":
            self._opened[event.node] = time.monotonic()
        elif event.what == "released":
            self._opened.pop(event.node, None)
        if not self._watchers:
            return
        fields = event.fields
        cut = {name: short(each) if isinstance(each, str) else each for name, each in fields.items()}
        line = encode({"event": cut | {"by": short(event.node.revoked_by, _BY)}})
        for watcher in tuple(self._watchers):
            if _is_under(fields["path"], watcher.path) and self.access.looks(watcher.connection.peer, fields["path"]):
                watcher.unsent.append(line)
                watcher.behind += len(line)
                watcher.more.set()
                if watcher.behind > self.backlog:
                    del self._watchers[watcher]
                    watcher.connection.revoke(f"it was {watcher.behind} bytes behind, and may be {self.backlog}")

    # -- one connection --

    def let_in(self, listener: socket.socket, tasks: anyio.abc.TaskGroup) -> None:
        """Accept the next connection, if the peer is authorized."""
        try:
            connection, _ = listener.accept()
        except BlockingIOError:
            return
        with connection:
            peer = peer_of(connection)
            if forbidden := self._forbids(peer):
                _turn_away(connection, "forbidden", forbidden)
            elif sum(client.peer.owner == peer.owner for client in self._clients.values()) >= self.most:
                _turn_away(connection, "too-many", f"{self.most} clients are connected already: try again later")
            else:
                tasks.start_soon(self.talk, self._admit(connection, peer))

    def _forbids(self, peer: Peer) -> str:
        """Say why the peer may not connect, or nothing if it may."""
        return "" if self.access.connects(peer) else f"user {peer.name!r} may not connect here: {self.access}"

    def _admit(self, connection: socket.socket, peer: Peer) -> Connection:
        """Take a connection over. A client that is taken away is told why, even if it has read nothing else."""

        def close(fd: int) -> None:
            del self._clients[fd]
            self.hangups.unregister(fd)
            with socket.socket(fileno=fd) as last, contextlib.suppress(OSError):
                if not client.handle.closed:
                    last.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, 1 << 20)
                    last.send(b"\n" + refusal("revoked", client.handle.reason))
            client.life.cancel()

        self.hangups.register(connection, EPOLLET)  # only for hang-ups, each reported once
        stream = FdStream(connection.fileno(), self.connections, name=f"{peer.name} ({peer.pid})", close=close)
        room = connection.getsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF)
        client = Connection(stream, peer, self.patience, room)
        self._clients[connection.detach()] = client
        return client

    async def notice_who_goes(self) -> None:
        """End the requests of clients that closed the connection. A client may close its sending half and still receive."""
        while True:
            try:
                await anyio.wait_readable(self.hangups.fileno())
            except OSError as exc:  # the loop can watch no more files for now
                logger.warning("control clients that disconnect are not noticed: %s", exc)
                await anyio.sleep(1)
            for fd, _ in self.hangups.poll(0):
                self._clients[fd].request.cancel()

    async def talk(self, client: Connection) -> None:
        """Answer the requests of a client, one after another, until it goes or is taken away."""
        with client.life:
            try:
                with contextlib.suppress(*_OVER):
                    while await self._answer(client):
                        gone, client.request = client.request.cancel_called, anyio.CancelScope()
                        if gone:  # what it had sent before is still carried out
                            client.request.cancel()
            except OSError as exc:
                logger.warning("the control connection of %s: %s", client.handle.name, exc)
            finally:
                client.handle.close()

    async def _answer(self, client: Connection) -> bool:
        """Answer one request, and report whether another may follow."""
        try:
            fields = await client.receive()
            _check_version(fields)
            with client.request:
                await self._do(Request(client.peer, client, fields))
        except ControlError as error:
            await client.refuse(error)
            return False  # what follows may be anything
        return True

    async def _do(self, request: Request) -> None:
        # The end of the server waits for answers and for the revocations behind them: one of them may be why it ends.
        client, do = request.connection, request.fields.get("do")
        awaited = do == "revoke" and self.awaited.start_using()
        try:
            done = await self._result(request)
            awaited = awaited or self.awaited.start_using()
            if isinstance(done, ControlError):
                await client.refuse(done)
                if done.__cause__ is not None:  # else the connection failed, and has said so again
                    logger.error("the control request %r of %s failed", do, request.peer.name, exc_info=done.__cause__)
            else:
                await client.send(done)
        finally:
            if awaited:
                self.awaited.stop_using()

    async def _result(self, request: Request) -> bytes | ControlError:
        """Do what is asked for. Return the last line of the answer, or the error."""
        try:
            return encode({"ok": True, **await self._command(request.fields)(request)})
        except ControlError as error:
            if error.code in LINE_ERRORS:
                raise
            return error
        except anyio.EndOfStream:
            raise
        except RevokedError as error:
            return ControlError("revoked", str(error))
        except Exception as error:  # noqa: BLE001  # logged when it was answered
            failed = ControlError("failed", "the server failed. Its log says why")
            failed.__cause__ = error
            return failed

    def _command(self, fields: Mapping[str, Any]) -> Command:
        do = fields.get("do")
        if not isinstance(do, str) or do not in self.commands:
            raise ControlError("unknown-request", f"'do' must be one of {', '.join(sorted(self.commands))}")
        return self.commands[do]

    # -- the requests --

    async def _act_as(self, request: Request) -> Mapping[str, Any]:
        """Give this connection the rights of another user. There is no way back."""
        user = request.text("user")
        if not request.peer.owner:
            raise ControlError(
                "forbidden", f"user {request.peer.name!r} may not act as another user. Only root and the owner may"
            )
        try:
            peer = request.peer.acting_as(user)
        except ValueError as exc:
            raise ControlError("forbidden", str(exc)) from None
        if forbidden := self._forbids(peer):
            raise ControlError("forbidden", forbidden)
        request.connection.peer = peer
        return {"user": peer.name}

    async def _list(self, request: Request) -> Mapping[str, Any]:
        found = 0
        records = self._records(request.peer, request.path(""), request.flag("who"))
        while True:
            async with self._listing:
                some = list(itertools.islice(records, _AT_ONCE))
                lines = [encode(each) for each in some if each is not None]
            if not some:
                return {"nodes": found}
            await request.connection.send(*lines)
            found += sum(each is not None and "node" in each for each in some)

    def _records(self, peer: Peer, path: str, who: bool) -> Iterator[dict[str, Any] | None]:
        """Yield the nodes at a path and below, each followed by its users. None stands for a node elsewhere or hidden."""
        for node in self._nodes():
            if node.released or not _is_under(node.path, path) or not self.access.looks(peer, node.path):
                yield None
                continue
            yield {"node": self._node(node)}
            for user in users_of(node) if who else ():
                yield None if user.kind == "open file" else {"user": _user(user)}

    def _node(self, node: Revokable) -> dict[str, Any]:
        latest = node.current if isinstance(node, Name) else node
        away = latest.revoked and not node.revoked
        opened = self._opened.get(node)
        return {
            "path": short(node.path),
            "kind": "file" if type(node) is Revokable else type(node).__name__.lower(),
            "generation": latest.generation or None,
            "state": "away" if away else _state(node),
            "in_use": node.in_use,
            "open": len(node.children),
            "since": None if opened is None else round(time.monotonic() - opened, 3),
            "reason": short(node.reason or latest.reason or (_NOT_YET if latest.generation == 0 else "")),
            "by": short(node.revoked_by or latest.revoked_by, _BY),
        }

    async def _revoke(self, request: Request) -> Mapping[str, Any]:
        reason = request.text("reason", "")
        grace, timeout = request.number("grace", 0.0, 86400.0), request.number("timeout", 30.0, 86400.0)
        act = self._begin(request, reason, grace)
        logger.info("user %r revokes %.1000r", request.peer.name, act.name)
        with anyio.move_on_after(timeout), contextlib.suppress(BaseExceptionGroup):  # the report tells of them
            await act.finish()
        report, stragglers = act.report, act.stragglers(5)
        return {
            "done": act.done(),
            "report": {
                "name": short(report.name, 10_000),
                "reason": short(report.reason),
                "by": short(act.by, _BY),
                "kicked": report.kicked,
                "released": report.released,
                "remaining": report.remaining,
                "unclosed": report.unclosed,
                "seconds": round(report.seconds, 6),
                "errors": [short(repr(error), 2_000) for error in report.errors[:5]],
            },
            "stragglers": [_user(user, 1_000) for user in stragglers],
        }

    def _begin(self, request: Request, reason: str, grace: float) -> Revocation:
        paths, below, places, peer = request.paths(), request.flag("below"), request.places(), request.peer
        open_at = {path: self._revocable(peer, path, below) for path in paths}
        missing = [path for path, there in open_at.items() if not there]
        if not missing:
            found = dict.fromkeys(node for there in open_at.values() for node in there)
            return revoke_all(found, reason, grace=grace, by=peer.name)
        if len(paths) == 1:
            for may, uid in (self.access.revokes, None), (self.access.looks, peer.uid):
                with contextlib.suppress(LookupError, PermissionError):
                    among = functools.partial(may, peer)
                    return self.registry.hangup(places, reason, grace=grace, uid=uid, among=among, by=peer.name)
        raise self._refusal(peer, missing[0])

    def _revocable(self, peer: Peer, path: str, below: bool) -> list[Revokable]:
        """Return the nodes at a path, or below it, that a peer may revoke."""
        found = [node for node in self._find(path, below) if self.access.revokes(peer, node.path)]
        # What is already revoked can be hurried and waited for.
        return [node for node in found if not node.revoked] or [node for node in found if not node.released]

    def _refusal(self, peer: Peer, path: str) -> ControlError:
        """Return why a peer cannot revoke what is at a path."""
        if not self.access.revokes(peer, path):
            what = repr(short(path)) if path else "everything"
            return ControlError(
                "forbidden",
                f"user {peer.name!r} lacks the right 'revoke' on {what}. Root and the owner of this server have it, and users"
                " to whom the server gives it. The owner of a device's file may revoke the device by its path",
            )
        return ControlError(
            "unknown-path",
            f"nothing is open at {short(path)!r}. To list what is open: `asyncrevoke ls --who`, or the request 'list'",
        )

    def _find(self, path: str, below: bool) -> list[Revokable]:
        """Return the nodes of that path, or all nodes below them."""
        if not path:
            return list(self.registry.root.children) if below else []
        nodes = self.registry.at(path)
        if below:  # a child with the same path stays, as a generation of a name
            return [child for node in nodes for child in node.children if child.path != path]
        return [node for node in nodes if node.parent not in nodes]

    async def _watch(self, request: Request) -> Mapping[str, Any]:
        watcher = _Watcher(request.path(""), request.connection)
        self._watchers[watcher] = None
        try:
            await request.connection.send({"watching": short(watcher.path)})
            while True:
                await watcher.more.wait()
                watcher.more = anyio.Event()
                while watcher.unsent:
                    lines = [watcher.unsent.popleft() for _ in range(min(len(watcher.unsent), _EVENTS))]
                    watcher.behind -= sum(map(len, lines))
                    await request.connection.send(*lines)
                await anyio.sleep(_PAUSE)
        finally:
            self._watchers.pop(watcher, None)

    def _nodes(self) -> Iterator[Revokable]:
        """Yield all nodes below the registry's root once, parents first. The tree may change meanwhile."""
        seen = {self.registry.root}
        unvisited = list(reversed(self.registry.root.children))
        seen.update(unvisited)
        while unvisited:
            node = unvisited.pop()
            yield node
            new = [child for child in node.children if child not in seen]
            seen.update(new)
            unvisited += reversed(new)


def _check_version(fields: Mapping[str, Any]) -> None:
    version = fields.get("v")
    if version != VERSION or isinstance(version, bool):
        raise ControlError("version", f'this server speaks version {VERSION}. Send {{"v": {VERSION}, ...}}')


def _user(user: User, most: int = 20_000) -> dict[str, Any]:
    since = None if user.since is None else round(user.since, 3)
    return {
        "kind": user.kind,
        "name": short(user.name, most),
        "path": short(user.path, most),
        "since": since,
        "where": short(user.where, most),
    }


def _state(node: Revokable) -> str:
    for state in ("released", "releasing", "kicked", "revoked"):
        if getattr(node, state):
            return state
    return "live"


def _is_under(path: str, prefix: str) -> bool:
    return not prefix or path == prefix or path.startswith(prefix + "/")


def _turn_away(connection: socket.socket, code: str, message: str) -> None:
    with contextlib.suppress(OSError):
        connection.setblocking(False)
        connection.send(refusal(code, message))
