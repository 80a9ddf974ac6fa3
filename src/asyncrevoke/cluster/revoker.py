"""Revokes on every host, and says what is gone there. For members, and for others such as the command line."""

import math
import time
from collections.abc import Awaitable
from datetime import timedelta
from typing import TypeVar

import anyio

from .entry import Entry, LogError, LogRefusedError
from .log import Log, Member
from .report import ClusterReport, HostReport
from .view import clock

T = TypeVar("T")

DRIFT = 0.01  # fraction by which the rates of two clocks may differ
LAG = 0.5  # seconds by which the loop of a member may be late
CLOCKS = 30.0  # seconds by which the clock of the engine may be wrong, or be set
PATIENCE = 2.0  # seconds that an engine may take to answer
AGAIN = 0.1  # seconds between two tries


class Revoker:
    """Appends to a log that members follow, and waits for their reports.

    :param log: the engine
    :param patience: seconds that it may take to answer
    """

    def __init__(self, log: Log, *, patience: float = PATIENCE) -> None:
        self.log = log
        self._patience = patience

    async def revoke(
        self,
        *path: str,
        reason: str = "",
        expires: timedelta | float | None = None,
        grace: float = 0.0,
        limit: float | None = None,
    ) -> ClusterReport:
        """Revoke a path on all hosts: ``report = await cluster.revoke("alice", "token7", reason="stolen")``

        Its sessions are taken away. New ones are refused if they were issued before, and admitted if they were issued
        later. A session without `issued` counts as older, so it is refused until `readmit`. Without a path, everybody is
        revoked.

        It returns when each host is done, or has not answered for its lease, with drift and lag. Hosts whose sessions take
        longer to leave are reported as draining after `limit`.

        :param expires: how long tokens live, or the unix time at which they end. The entry is dropped then. Default: never
        :param grace: seconds to finish, as in `Revokable.revoke`
        :param limit: seconds to wait for the report. Default: the longest lease of the members, with drift and lag
        :raises LogError: if the log could not be written, or its members not be read. The message tells what is known
        :raises ValueError: for a bad part of the path, or a bad number of seconds
        Cancellation: the revocation may have been appended. Then it goes on.
        """
        entry = self.entry(*path, reason=reason, expires=expires, grace=grace)
        await self.append(entry)
        return await self.report(entry, limit=limit)

    def entry(
        self, *path: str, reason: str = "", expires: timedelta | float | None = None, grace: float = 0.0
    ) -> Entry:
        """Make the entry that `revoke` appends. Append it in a transaction of your own with `PostgresLog.append_in`.

        :raises ValueError: as `revoke`
        """
        _refuse_nonsense(path, grace)
        if isinstance(expires, timedelta):
            expires = time.time() + expires.total_seconds()
        if expires is not None and not expires > time.time():
            raise ValueError(f"expires is {expires!r}, which has passed: give a timedelta, or a unix time to come")
        return Entry.new("revoke", path, reason=reason, expires=expires, grace=grace)

    async def readmit(self, *path: str, reason: str = "") -> None:
        """Lift the revocations of exactly this path. Sessions that were taken away do not come back.

        :raises LogError, ValueError: as `revoke`
        """
        _refuse_nonsense(path, 0.0)
        await self.append(Entry.new("readmit", path, reason=reason))

    async def init(self) -> None:
        """Begin an empty log. Until then members admit nobody, because an empty log may have lost everything.

        :raises LogError: if the log is not empty, or cannot be written
        """
        await self.answered(self.log.check())
        if (await self.answered(self.log.read(0, 0.0))).texts:
            raise LogRefusedError(f"the log at {self.log.name} is not empty: it has begun already")
        await self.answered(self.log.append(Entry.new("init").dump()))  # a second try could begin yet another log

    async def members(self) -> list[Member]:
        """Return all members, sorted by host.

        :raises LogError: if the log cannot be read
        """
        return sorted(await self.answered(self.log.members()), key=lambda member: (member.host, member.since))

    async def append(self, *entries: Entry) -> None:
        """Append entries. Without an answer they are appended again: a second copy does no harm (C3).

        :raises LogError: if there was no answer within some seconds. Then it is unknown whether they were appended
        """
        texts = [entry.dump() for entry in entries]
        end = clock() + 3 * self._patience
        while True:
            try:
                return await self.answered(self.log.append(*texts))
            except LogRefusedError:
                raise
            except LogError as exc:
                if clock() >= end:
                    raise LogError(f"{entries[0].name!r} may be revoked or not: {exc}. Do it again") from exc
            await anyio.sleep(AGAIN)

    async def report(self, entry: Entry, *, limit: float | None = None) -> ClusterReport:
        """Wait for the reports on an entry that was appended, as `revoke` does.

        :raises LogError: if the members are not known, because the log cannot be read
        """
        try:
            members = {member.id: member for member in await self.members()}
        except LogError as exc:
            raise LogError(f"{entry.name!r} is revoked, but it is not known where: {exc}") from exc
        began = now = clock()
        ends = {key: lease_end(each, began) for key, each in members.items()}
        bound = max(ends.values(), default=began) if limit is None else began + limit
        again = (began + bound) / 2
        reports: dict[str, HostReport] = {}
        seen = 0
        while now < bound:
            unheard = [key for key in members if key not in reports and now < ends[key]]
            if not unheard and all(report.state == "done" for report in reports.values()):
                break
            if unheard and now >= again:
                again = math.inf
                await self.append(entry)  # the entry may have been lost together with the log
            until = min([bound, *(ends[key] for key in unheard), *([again] if unheard else ())])
            try:
                seen, texts = await self.answered(self.log.told(entry.id, seen, until - now), until - now)
                for each in map(HostReport.parse, texts):
                    # What is done stays so. A member that takes a copy of the entry later reports that it found nothing.
                    if each.member not in reports or reports[each.member].state != "done":
                        reports[each.member] = each
            except LogError:
                await anyio.sleep(AGAIN)
            now = clock()
        hosts = [reports.get(key) or _unheard(member, ends[key] - now) for key, member in members.items()]
        return ClusterReport(entry.name, entry.reason, tuple(hosts))

    async def answered(self, asked: Awaitable[T], wait: float = 0.0) -> T:
        """Return the answer of the engine. No answer within the wait and some seconds is a failure."""
        try:
            with anyio.fail_after(max(0.0, wait) + self._patience):
                return await asked
        except TimeoutError:
            raise LogError(f"{self.log.name} has not answered for {wait + self._patience:.1f} s") from None


def lease_end(member: Member, now: float) -> float:
    """Return when a strict member has failed closed, if it has not acknowledged an entry that was in the log at `now` (C5).

    It cannot have read the log again without getting the entry. The clock that tells its age may be wrong by `CLOCKS`
    seconds, so only the age above that counts. That is enough not to wait for a host that has been dead for a while.
    """
    return now - max(0.0, member.age - CLOCKS) + member.lease * (1 + DRIFT) + LAG


def _unheard(member: Member, left: float) -> HostReport:
    if member.mode != "strict":
        return HostReport(member.host, "silent")
    return HostReport(member.host, "silent", left=left) if left > 0 else HostReport(member.host, "over")


def _refuse_nonsense(path: tuple[str, ...], grace: float) -> None:
    if not all(isinstance(part, str) and part for part in path):
        raise ValueError(f"{path!r} is not a path: give the parts of the key, as strings that are not empty")
    if not 0 <= grace < math.inf:
        raise ValueError(f"grace is {grace!r}: give seconds, 0 or more")
