"""A control server: what is open in this process, listed, watched and taken away by others, over a Unix socket.

It runs in the loop of the service whose registry it serves. Who may connect is told by the socket's mode, and asked of the
kernel for every connection (SO_PEERCRED, SO_PEERGROUPS). What each of them may do, an `Access` says; by revoke(2)'s rule, too,
who may look at a device may take it away if its file is his.
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

_LAST_WORDS = 5.0  # seconds for what clients wait for when the server ends
_AT_ONCE = 64  # nodes and users that are listed before others have their turn
_EVENTS = 500  # that are sent at once
_BY = 1_000  # bytes of a user's name
_PAUSE = 0.05  # seconds from one sending of events to the next, so that many who watch do not take the loop
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

    :param path: of the socket. One that a dead server left is taken over
    :param group: the name of a group whose members may connect, too
    :param mode: of the socket; left out: 0660 with a group, else 0600
    :param access: who may do what; left out: the owner and root everything, and the members of the group look
    :param commands: further requests, by name; docs/control-protocol.md shows one
    :param clients: how many may be connected, and as many again of the owner's
    :param backlog: bytes of events that one who watches may be behind before the connection is revoked as too slow
    :param patience: seconds that a client may take to receive an answer
    :raises OSError: if there is a live server at `path`, or something that is no socket, or it cannot be made there
    :raises ValueError: if there is no such group, or a command has the name of one of ours
    Cancellation: ends it; those who are connected are told.
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
                        except OSError as exc:  # too many files are open; who waits is let in when some are closed
                            logger.warning("the control socket %s: %s", path, exc)
                            await anyio.sleep(1)
                finally:
                    with anyio.move_on_after(_LAST_WORDS, shield=True):
                        await server.awaited.revoke(_ENDED)
                    server.connections.revoke(_ENDED)


@dataclass(eq=False, slots=True)
class _Watcher:
    """One who is sent the events below a path."""

    path: str
    connection: Connection
    unsent: deque[bytes] = field(default_factory=deque)
    behind: int = 0  # bytes
    more: anyio.Event = field(default_factory=anyio.Event)


@dataclass(eq=False)
class _Server:
    """What `serve` is given, and who is connected."""

    registry: Registry
    commands: Mapping[str, Command]
    hangups: epoll
    access: Access
    most: int
    backlog: int
    patience: float

    def __post_init__(self) -> None:
        self.connections = Revokable("control connections")
        self.awaited = Revokable("control server", kick=None)  # in use by what clients wait for: revocations, answers
        self._clients: dict[int, Connection] = {}  # by descriptor
        self._watchers: dict[_Watcher, None] = {}
        self._opened: dict[Revokable, float] = {}
        self._listing = anyio.Semaphore(8)  # parts of lists that are made in one turn of the loop, however many ask
        own: dict[str, Command] = {
            "as": self._act_as,
            "list": self._list,
            "revoke": self._revoke,
            "watch": self._watch,
        }
        if taken := own.keys() & self.commands:
            raise ValueError(f"the request {min(taken)!r} is the server's own: choose another name for your command")
        self.commands = own | dict(self.commands)

    def note(self, event: Event) -> None:
        """Keep since when it is open, and queue it for those who watch."""
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
        """Let in who comes next, if he may come."""
        try:
            connection, _ = listener.accept()
        except BlockingIOError:
            return
        with connection:
            peer = peer_of(connection)
            if forbidden := self._forbids(peer):
                _turn_away(connection, "forbidden", forbidden)
            elif sum(client.peer.owner == peer.owner for client in self._clients.values()) >= self.most:
                _turn_away(connection, "too-many", f"{self.most} are connected already: try again later")
            else:
                tasks.start_soon(self.talk, self._admit(connection, peer))

    def _forbids(self, peer: Peer) -> str:
        """Why somebody may not connect, if so."""
        return "" if self.access.connects(peer) else f"user {peer.name!r} may not connect here: {self.access}"

    def _admit(self, connection: socket.socket, peer: Peer) -> Connection:
        """Take a connection over. Who is taken away is told why, even if he has let all the rest lie."""

        def close(fd: int) -> None:
            del self._clients[fd]
            self.hangups.unregister(fd)
            with socket.socket(fileno=fd) as last, contextlib.suppress(OSError):
                if not client.handle.closed:
                    last.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, 1 << 20)
                    last.send(b"\n" + refusal("revoked", client.handle.reason))
            client.life.cancel()

        self.hangups.register(connection, EPOLLET)  # for hang-ups alone, and each once
        stream = FdStream(connection.fileno(), self.connections, name=f"{peer.name} ({peer.pid})", close=close)
        room = connection.getsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF)
        client = Connection(stream, peer, self.patience, room)
        self._clients[connection.detach()] = client
        return client

    async def notice_who_goes(self) -> None:
        """End the requests of clients that have closed the connection: a half of it they may close and still receive."""
        while True:
            try:
                await anyio.wait_readable(self.hangups.fileno())
            except OSError as exc:  # the loop can watch no more, for now
                logger.warning("control clients that go are not noticed: %s", exc)
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
                        if gone:  # what it had sent before is still begun
                            client.request.cancel()
            except OSError as exc:
                logger.warning("the control connection of %s: %s", client.handle.name, exc)
            finally:
                client.handle.close()

    async def _answer(self, client: Connection) -> bool:
        """Answer one request. It reports whether there may be a next."""
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
        # Who ends the server waits for answers, and for revocations that are to be answered: they may be why it ends.
        client, do = request.connection, request.fields.get("do")
        awaited = do == "revoke" and self.awaited.start_using()
        try:
            done = await self._result(request)
            awaited = awaited or self.awaited.start_using()
            if isinstance(done, ControlError):
                await client.refuse(done)
                if done.__cause__ is not None:  # else it was the connection's, and has said so again
                    logger.error("the control request %r of %s failed", do, request.peer.name, exc_info=done.__cause__)
            else:
                await client.send(done)
        finally:
            if awaited:
                self.awaited.stop_using()

    async def _result(self, request: Request) -> bytes | ControlError:
        """Do what is asked for. It returns the last line of the answer, or why there is none."""
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
            failed = ControlError("failed", "the server failed: its log says why")
            failed.__cause__ = error
            return failed

    def _command(self, fields: Mapping[str, Any]) -> Command:
        do = fields.get("do")
        if not isinstance(do, str) or do not in self.commands:
            raise ControlError("unknown-request", f"'do' must be one of {', '.join(sorted(self.commands))}")
        return self.commands[do]

    # -- the requests --

    async def _act_as(self, request: Request) -> Mapping[str, Any]:
        """From now on this connection has the rights of another user, and no way back."""
        user = request.text("user")
        if not request.peer.owner:
            raise ControlError(
                "forbidden", f"user {request.peer.name!r} may not act as another: root and the owner may"
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
        """The nodes at a path and below, each followed by who is inside; None for each that is elsewhere, or not to be seen."""
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
        with anyio.move_on_after(timeout), contextlib.suppress(BaseExceptionGroup):  # which the report tells
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
        path, below, places, peer = request.path(), request.flag("below"), request.places(), request.peer
        found = [node for node in self._find(path, below) if self.access.revokes(peer, node.path)]
        # What is revoked already can be hurried, and waited for.
        found = [node for node in found if not node.revoked] or [node for node in found if not node.released]
        if found:
            return revoke_all(found, reason, grace=grace, by=peer.name)
        for may, uid in (self.access.revokes, None), (self.access.looks, peer.uid):
            with contextlib.suppress(LookupError, PermissionError):
                among = functools.partial(may, peer)
                return self.registry.hangup(places, reason, grace=grace, uid=uid, among=among, by=peer.name)
        if not self.access.revokes(peer, path):
            raise ControlError(
                "forbidden",
                f"user {peer.name!r} may not take that away: the owner of this server and root may, whoever was given the"
                " right to, and a device, by its path, the owner of its file",
            )
        raise ControlError(
            "unknown-path",
            f"nothing is open at {short(path)!r}: `asyncrevoke ls --who`, or the request 'list', tells what is",
        )

    def _find(self, path: str, below: bool) -> list[Revokable]:
        """The nodes of that path, or all that is below them."""
        if not path:
            return list(self.registry.root.children) if below else []
        nodes = self.registry.at(path)
        if below:  # what has the very path of what it is in, as a generation has its name's, stays
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
        """All that is open below the registry's root, each once, parents first; it may change meanwhile."""
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
        raise ControlError("version", f'this server speaks version {VERSION}: send {{"v": {VERSION}, ...}}')


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
