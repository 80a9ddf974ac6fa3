"""A member of a cluster. It follows the log, admits by it, and takes away what the log names."""

import contextlib
import errno
import logging
import os
import random
import secrets
import socket
import time
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Literal, Self, get_args

import anyio
import anyio.abc

from asyncrevoke.lowlevel import (
    Registry,
    Revocation,
    Revokable,
    RevokedError,
    Use,
    checkpoint,
    due,
    printable,
    revoke_all,
)

from .entry import Entry, LogError, LogRefusedError, Position
from .log import Log, Member, Mode
from .report import HostReport
from .revoker import CLOCKS, PATIENCE, Revoker
from .view import LogLostError, View, clock

logger = logging.getLogger("asyncrevoke.cluster")

_SOON = 0.1  # seconds after which a host reports that operations are still inside
_KEPT = 60.0  # seconds that acknowledgements are kept for the revoker
_CHUNK = 200  # entries that are written back at once
_ROOM = 1024  # noted positions of keys, before those of unused keys are forgotten
_SWEEP = 60.0  # seconds between two looks for what has expired
_UNSENT = 10_000  # acknowledgements that wait to be sent. Older ones are dropped
_EMPTY = "if it is new, begin it by `asyncrevoke cluster init`. If it has lost what it held, first start a host that has followed it"


@dataclass(frozen=True, slots=True)
class ClusterEvent:
    """Something that has happened to a member.

    :ivar what: "caught up": it admits. "cut off": its lease is over, and a strict member has failed closed. "lost": the log
        was wiped, or is another one. "taken": it has taken an entry
    :ivar why: the reason, if there is one
    """

    what: Literal["caught up", "cut off", "lost", "taken"]
    host: str
    why: str = ""

    def __str__(self) -> str:
        return printable(f"{self.host} {self.what}: {self.why}" if self.why else f"{self.host} {self.what}")


class NotVouchedError(RevokedError):
    """The member cannot tell whether the session was revoked, because it cannot read the log. Try again, or at another host."""


class _Own(str):
    """A reason of the member itself, not of an entry."""

    __slots__ = ()


class Admission(Use):
    """What `Cluster.admit` returns: `Use` of the key, for a session that is not revoked anywhere."""

    __slots__ = ("_cluster", "_issued", "_path")
    _cluster: "Cluster"
    _path: tuple[str, ...]
    _issued: Position | None

    def __enter__(self) -> Self:
        self._cluster._check(self._path, self._issued)  # C4: nothing comes between the two
        return Use.__enter__(self)


class Cluster(Revoker):
    """Joins the registry of one host to a log. Entries of the log take away keys: ``await tasks.start(cluster.run)``

    :param live: registry with the keys that entries name
    :param log: the engine, such as `RedisLog`. You must close it yourself
    :param host: name of this member in reports. Default: the name of the machine, and the number of the process
    :param lease: seconds for which an answered read of the log is good
    :param mode: what happens when the lease is over. "strict": all sessions are taken away, and none are admitted, until the
        log can be read again. "best_effort": sessions go on, and so does admission
    :param observers: callables that get each `ClusterEvent`. They are called in the middle of its work, and must not wait.
        You may add to the list `observers` later
    :raises ValueError: for a bad lease or mode
    """

    def __init__(
        self,
        live: Registry,
        log: Log,
        *,
        host: str = "",
        lease: float = 10.0,
        mode: Mode = "best_effort",
        observers: tuple[Callable[[ClusterEvent], object], ...] = (),
    ) -> None:
        if mode not in get_args(Mode):
            raise ValueError(f"mode is {mode!r}: give 'strict' or 'best_effort'")
        if not 0.1 <= lease <= 86400:
            raise ValueError(f"lease is {lease!r}: give seconds, from 0.1 to 86400")
        super().__init__(log, patience=min(PATIENCE, lease / 4))
        self.live = live
        self.host = host or f"{socket.gethostname()}/{os.getpid()}"
        self._mode = mode
        self._lease = lease
        self.observers = [*observers]
        self._view = View(lease, strict=mode == "strict")
        self._me = Member(self.host, secrets.token_hex(8), mode, lease, since=time.time())
        self._issued: dict[tuple[str, ...], Position] = {}
        self._room = _ROOM
        self._pause = min(lease / 20, 0.5)  # seconds after a failure
        self._tasks: anyio.abc.TaskGroup | None = None
        self._cut_off = True  # until it has caught up
        self._why = "it has not caught up yet"
        self._answers: list[tuple[str, str]] = []  # acknowledgements to be sent

    @property
    def position(self) -> Position:
        """Position up to which the log was taken. Store it with each token that you issue: ``str(cluster.position)``"""
        return self._view.position

    @property
    def lease_left(self) -> float:
        """Seconds for which this member may vouch for its sessions; negative or 0 if it may not."""
        return self._view.fresh + self._lease - clock()

    @property
    def admits(self) -> bool:
        """Whether it admits. It does not before it has caught up, or, if strict, after its lease. Tell your load balancer."""
        return clock() < self._view.until

    @property
    def denied(self) -> int:
        """Number of paths that are refused, to everyone or to tokens that were issued earlier."""
        return len(self._view.denied)

    def is_own(self, reason: str) -> bool:
        """Whether this member took a session away by itself, such as at the end of its lease. The token may still be good."""
        return isinstance(reason, _Own)

    def admit(self, *path: str, issued: Position | str | None = None) -> Admission:
        """Use a key: ``with cluster.admit("alice", "token7", issued=position): await ...``. Otherwise it is as `Revokable.using`.

        :param issued: the position that was stored when the token was issued. None: it counts as older than any revocation
        :raises RevokedError: from the `with`, if it was revoked, wherever that was
        :raises NotVouchedError: from the `with`, if this member has not caught up, or is strict and its lease is over. If
            its lease ends later, while you are inside, you get a `RevokedError`, and `is_own` of its reason is True
        :raises ValueError: if `issued` is not a position
        Cancellation: goes through unchanged.
        """
        admission = Admission(self.live[path], False)  # as `using` does, without an `__init__`, which takes time
        admission._cluster = self
        admission._path = path
        admission._issued = None if issued is None else Position.parse(issued)
        return admission

    def check(self, *path: str, issued: Position | str | None = None) -> None:
        """Refuse a session that was revoked. If it was not, open it on `live` without an await in between, as `admit` does.

        :raises RevokedError, NotVouchedError, ValueError: as `admit`
        """
        self._check(path, None if issued is None else Position.parse(issued))

    def _check(self, path: tuple[str, ...], issued: Position | None) -> None:
        view = self._view
        if clock() >= view.until:
            raise self._not_vouched(path)
        if view.denied and (entry := view.denial(path, issued)) is not None:
            raise RevokedError(None, told=(errno.EIO, "/".join(path), entry.reason, None))
        if issued is not None or self._issued:
            self._note(path, issued)

    def _not_vouched(self, path: tuple[str, ...]) -> NotVouchedError:
        return NotVouchedError(
            None, told=(errno.EIO, "/".join(path), _Own(f"{self.host} admits nobody: {self._why}"), None)
        )

    def _note(self, path: tuple[str, ...], issued: Position | None) -> None:
        """Remember when the sessions of a key were issued. Of several, the earliest counts (C7)."""
        known = self._issued.get(path)
        if known == issued:
            return
        if issued is None:
            del self._issued[path]
        elif not self._has_sessions(self.live[path], path) or (
            known is not None and self._view.is_before(issued, known)
        ):
            if len(self._issued) >= self._room:
                self._issued = {each: self._issued[each] for each in self.live if each in self._issued}
                self._room = max(_ROOM, 2 * len(self._issued))
            self._issued[path] = issued

    def _has_sessions(self, node: Revokable, path: tuple[str, ...]) -> bool:
        """Whether this key itself is in use, not only keys below it."""
        return node.in_use > len(self._keys(node, path))

    def _keys(self, node: Revokable, path: tuple[str, ...]) -> list[tuple[Revokable, tuple[str, ...]]]:
        """Return the keys in use below a node, with their paths. Revoked keys that are not gone yet are among them."""
        keys = [(child, (*path, child.name)) for child in node.children]
        return [(child, there) for child, there in keys if child.revoked or self.live[there] is child]

    # -- following the log --

    async def run(self, *, task_status: anyio.abc.TaskStatus[None] = anyio.TASK_STATUS_IGNORED) -> None:
        """Follow the log, until cancelled: ``await tasks.start(cluster.run)`` returns when it has caught up.

        At its end all keys are taken away, because nothing follows the log for them any more.

        :raises LogRefusedError: if the engine is not suitable, another member has this name, or the log has a text that is
            not an entry
        :raises LogError: if it has not caught up within the lease, or the log is empty. After that it keeps trying
        :raises RuntimeError: if it is running already
        Cancellation: ends it.
        """
        if self._tasks is not None:
            raise RuntimeError(f"{self.host} runs already")
        self._to_send = anyio.Event()  # of this loop, which need not be that of an earlier run
        self._renewed = anyio.Event()
        try:
            async with anyio.create_task_group() as self._tasks:
                await self._begin()
                self._tasks.start_soon(self._watch_lease)
                self._tasks.start_soon(self._send)
                task_status.started()
                await self._follow()
        except BaseExceptionGroup as group:
            raise group.exceptions[0] from None  # no task but this one raises anything
        finally:
            self._tasks = None
            self._cut_off = True
            self._why = "it does not follow the log"
            self._view = View(self._lease, strict=self._mode == "strict")
            self._revoke((), _Own(f"{self.host} has left"))
            with anyio.CancelScope(shield=True), contextlib.suppress(LogError):
                await self.answered(self.log.leave(self._me))

    async def _begin(self) -> None:
        """Catch up, within the lease."""
        end = clock() + self._lease
        said, suitable = "", False
        while self._cut_off:
            try:
                if not suitable:
                    await self._refuse_unless_suitable()
                    suitable = True
                await self._read(0.0)
                if self._view.begun:
                    continue
                failed = LogError(f"the log at {self.log.name} is empty: {_EMPTY}")
            except LogRefusedError:
                raise
            except LogLostError as exc:
                self._view.lose()
                failed = exc
            except LogError as exc:
                failed = exc
            if clock() >= end:
                raise failed
            if str(failed) != said:
                said = str(failed)
                logger.warning("%s does not admit anybody yet: %s", self.host, said)
            await anyio.sleep(self._pause)

    async def _refuse_unless_suitable(self) -> None:
        await self.answered(self.log.check())
        ahead = await self.answered(self.log.time()) - time.time()
        if abs(ahead) > CLOCKS:
            raise LogRefusedError(
                f"the clock of {self.log.name} is {ahead:+.0f} s from that of {self.host}. Entries expire by it: set both clocks"
            )
        for other in await self.members():
            if other.host == self.host and other.age < other.lease / 2:
                await anyio.sleep(other.lease / 2 - other.age)
                if any(each.id == other.id and each.age < other.lease / 2 for each in await self.members()):
                    raise LogRefusedError(f"{self.host!r} is a member already: give another name, or end that one")

    async def _follow(self) -> None:
        sweep = clock() + _SWEEP
        while True:
            try:
                if clock() >= sweep:
                    sweep = clock() + _SWEEP
                    if numbers := self._view.drop_expired():
                        await self.answered(self.log.drop(numbers))
                await self._read(self._lease / 4 if clock() < self._view.until and self._view.sound else 0.0)
            except LogRefusedError:
                raise
            except LogLostError as exc:
                self._view.lose()
                self._cut_off_by("lost", exc)
            except LogError as exc:
                self._why = str(exc)
                await anyio.sleep(self._pause)

    async def _read(self, wait: float) -> None:
        """Ask once for the next entries, and take them."""
        view = self._view
        me = replace(self._me, position=str(view.position), number=view.number, sessions=self.live.size)
        asked = clock()
        batch = await self.answered(self.log.read(view.number, wait, me if view.known else None), wait)
        for entry in view.answered(batch, asked):
            if self._take(entry) or due(self.live.root):
                await checkpoint()
        if batch.whole and (missing := view.to_write_back()):
            some = random.sample(missing, min(len(missing), _CHUNK))  # others write back the same
            # It is not tried again: a second copy of the beginning of an epoch could come to yet another log.
            await self.answered(self.log.append(*(entry.dump() for entry in some)))
        elif self._cut_off and self.lease_left > 0 and view.sound:
            self._cut_off = False
            self._why = "no answer has come in time"  # until an error says more
            self._renewed.set()
            self._tell("caught up", f"at {view.position}")

    async def _watch_lease(self) -> None:
        while True:
            if self._cut_off:
                await self._renewed.wait()
            elif (left := self.lease_left) > 0:  # asked once: it may be over at the next look
                await anyio.sleep(left)
            else:
                self._cut_off_by("cut off", f"the log was not read for {self._lease:g} s: {self._why}")

    def _cut_off_by(self, what: Literal["cut off", "lost"], why: object) -> None:
        if not self._cut_off:  # otherwise the next renewal is waited for already
            self._renewed = anyio.Event()
        self._cut_off = True
        self._why = str(why)
        self._tell(what, self._why)
        if self._mode == "strict":
            self._revoke((), _Own(f"{self.host} cannot vouch for it: {why}"))

    # -- taking away --

    def _take(self, entry: Entry) -> bool:
        """Take away what an entry names. Report whether anything was there."""
        act = self._revoke(entry.path, entry.reason, entry)
        if act is None and not self._view.known:
            return False  # while it catches up, it tells only of entries that found somebody: there may be very many others
        self._tell("taken", f"{entry.name!r} revoked" + (f" ({entry.reason})" if entry.reason else ""))
        if self._tasks is not None and self._view.known:
            self._tasks.start_soon(self._acknowledge, entry, act)
        return act is not None

    def _revoke(self, path: tuple[str, ...], reason: str, entry: Entry | None = None) -> Revocation | None:
        """Take away what is open on a key and below. With an entry, take only the sessions that it speaks of.

        What was revoked earlier and is not gone yet is waited for too. If it has more grace than this, its grace is cut short.
        """
        node = self.live.get(*path) if path else self.live.root
        found = [*self.live.draining(*path), *self._older(path, node, entry)] if node is not None else []
        grace = 0.0 if entry is None else entry.grace
        return revoke_all(found, reason, grace=grace) if found else None

    def _older(self, path: tuple[str, ...], node: Revokable, entry: Entry | None) -> list[Revokable]:
        """Return the topmost nodes that an entry names. A key with both old and new sessions is among them."""
        if path and (entry is None or node.revoked or not self._issued):
            return [node]
        keys = self._keys(node, path)
        found = [each for child, there in keys for each in self._older(there, child, entry)]
        issued = self._issued.get(path)
        is_newer = entry is not None and issued is not None and not self._view.covers(entry, issued)
        if path and not is_newer and (node.in_use > len(keys) or found == [child for child, _ in keys]):
            return [node]
        return found

    async def _acknowledge(self, entry: Entry, act: Revocation | None) -> None:
        if act is not None and not act.done():
            with anyio.move_on_after(_SOON), contextlib.suppress(BaseExceptionGroup):
                await act.finish()
            if not act.done():
                self._answer(entry, act)
                with contextlib.suppress(BaseExceptionGroup):
                    await act.finish()
        self._answer(entry, act)

    def _answer(self, entry: Entry, act: Revocation | None) -> None:
        self._answers.append((entry.id, HostReport.of(self._me, act).dump()))
        self._to_send.set()

    async def _send(self) -> None:
        """Send acknowledgements, many at once."""
        while True:
            await self._to_send.wait()
            self._to_send = anyio.Event()
            answers, self._answers = self._answers, []
            try:
                await self.answered(self.log.tell(answers, _KEPT))
            except LogError:
                self._answers = [*answers, *self._answers][-_UNSENT:]
                await anyio.sleep(self._pause)
                self._to_send.set()

    def _tell(self, what: Literal["caught up", "cut off", "lost", "taken"], why: str) -> None:
        event = ClusterEvent(what, self.host, why)
        logger.log(logging.WARNING if what in ("cut off", "lost") else logging.INFO, "%s", event)
        for observer in self.observers:
            try:
                observer(event)
            except Exception:
                logger.exception("the observer %r failed", observer)
