"""Revocation on all hosts, by hand: the commands that speak to a log."""

import argparse
import json
import os
import time
from collections.abc import Awaitable, Callable
from dataclasses import asdict

import anyio

from asyncrevoke.cluster import Entry, Log, LogError, LogRefusedError, Member, Revoker
from asyncrevoke.cluster.revoker import AGAIN
from asyncrevoke.cluster.urls import open_log
from asyncrevoke.lowlevel import printable

from .commands import GONE, RELEASE_FAILED, STILL_IN_USE, ago, complain, print_table

_WAIT = 5.0  # seconds of one read


def run(args: argparse.Namespace) -> int:
    """Do what was asked for; it returns the exit status.

    :raises LogError: if the log cannot be used
    """
    url = args.cluster or os.environ.get("ASYNCREVOKE_CLUSTER", "")
    if not url:
        args.usage("cluster: give --cluster URL, or set $ASYNCREVOKE_CLUSTER")
    try:
        log = open_log(url)
    except ValueError as error:
        args.usage(f"--cluster: {error}")

    async def act() -> int:
        try:
            return await _ACTIONS[args.action if args.command == "cluster" else "revoke"](log, args)
        finally:
            await log.aclose()

    return anyio.run(act)


def _path(args: argparse.Namespace) -> tuple[str, ...]:
    """The parts of a key. What could be meant in another way is refused, since a key that nobody has is no error."""
    parts = tuple(args.what)
    if not args.parts:
        if len(parts) > 1:
            args.usage(f"give one key, such as {'/'.join(parts)}; or its parts one by one: --parts {' '.join(parts)}")
        if parts == ("*",):
            return ()
        parts = tuple(parts[0].split("/"))
        if parts[-1] == "*":
            args.usage(f"{'/'.join(parts)!r}: give {'/'.join(parts[:-1])}, and all below it goes, too")
    if not all(parts):
        args.usage(f"{args.what[0]!r} is no key: give one such as alice/token7")
    return parts


async def _revoke(log: Log, args: argparse.Namespace) -> int:
    revoker = Revoker(log)
    path = _path(args)
    try:
        if not await revoker.members() and not (await revoker.answered(log.read(0, 0.0))).texts:
            raise LogRefusedError(_empty(log))
    except LogError as error:
        raise LogError(f"nothing is revoked: {error}") from error
    expires = args.expires and time.time() + args.expires
    report = await revoker.revoke(*path, reason=args.reason, expires=expires, grace=args.grace, limit=args.timeout)
    if args.json:
        print(json.dumps({"done": report.complete, "report": asdict(report)}))
    else:
        print(report.head)
        for host in report.hosts:
            print(f"  {host}")
    if not report.hosts:
        complain(f"no host follows {log.name}: those that start will refuse it")
    if not report.complete:
        return STILL_IN_USE
    return RELEASE_FAILED if any(host.failed for host in report.hosts) else GONE


async def _readmit(log: Log, args: argparse.Namespace) -> int:
    path = _path(args)
    await Revoker(log).readmit(*path, reason=args.reason)
    print(printable(f"{'/'.join(path) or 'everything'!r} may log in again"))
    return GONE


async def _init(log: Log, _: argparse.Namespace) -> int:
    await Revoker(log).init()
    print(printable(f"the log at {log.name} has begun: hosts may follow it"))
    return GONE


async def _ls(log: Log, args: argparse.Namespace) -> int:
    revoker = Revoker(log)
    members = await revoker.members()
    after, whole, numbers = min((each.number for each in members), default=0), False, list[int]()
    while not whole:
        _, texts, whole = await revoker.answered(log.read(after, 0.0))
        numbers += [after := number for number, _ in texts]
    if not members:
        complain(f"no host follows {log.name}" if numbers else _empty(log))
    if not args.json and members:
        head = ["HOST", "MODE", "LEASE", "BEHIND", "KEYS IN USE", "SINCE", "POSITION"]
        print_table([head, *(_row(each, _behind(each, numbers)) for each in members)])
    elif args.json:
        for each in members:
            print(json.dumps({**asdict(each), "behind": _behind(each, numbers), "lease_left": each.lease - each.age}))
    return GONE


def _behind(member: Member, numbers: list[int]) -> int:
    """How many entries it has not taken."""
    return sum(number > member.number for number in numbers)


def _row(member: Member, behind: int) -> list[str]:
    left = member.lease - member.age
    lease = f"{left:.1f} s left" if left > 0 else f"over for {ago(-left)}"
    counts = str(behind), str(member.sessions)
    return [member.host, member.mode, lease, *counts, ago(time.time() - member.since), member.position]


async def _watch(log: Log, args: argparse.Namespace) -> int:
    """It goes on when the log cannot be read for a while, and when it was wiped."""
    revoker = Revoker(log)
    here: str | None = None
    number, old, said = 0, True, ""  # old: what was there before us
    while True:
        try:
            batch = await revoker.answered(log.read(number, 0.0 if old else _WAIT), _WAIT)
        except LogError as error:
            if old or isinstance(error, LogRefusedError):
                raise
            if str(error) != said:
                complain(said := str(error))
            await anyio.sleep(AGAIN)
            continue
        if batch.here != here:
            complain(f"{log.name} was wiped, or is another log: this is what it holds")
            number, here = 0, None
            continue
        for number, here in batch.texts:
            if not old:
                _print_entry(number, here, as_json=args.json)
        said = ""
        if old and batch.whole:
            old = False
            print(
                json.dumps({"watching": log.name}) if args.json else f"{_now()} watching {printable(log.name)}",
                flush=True,
            )


def _print_entry(number: int, text: str, *, as_json: bool) -> None:
    entry = Entry.parse(text, number)
    if as_json:
        print(json.dumps({"number": number, **json.loads(text)}), flush=True)
        return
    what = {"revoke": "was revoked", "readmit": "may log in again", "init": "may log in: the log has begun"}[entry.do]
    reason = f" ({entry.reason})" if entry.reason else ""
    print(_now(), printable(f"{entry.name} {what}{reason}"), flush=True)


def _now() -> str:
    return time.strftime("%H:%M:%S")


def _empty(log: Log) -> str:
    return f"{log.name} is empty: is it the right log? `asyncrevoke cluster init` begins it"


_ACTIONS: dict[str, Callable[[Log, argparse.Namespace], Awaitable[int]]] = {
    "revoke": _revoke,
    "readmit": _readmit,
    "init": _init,
    "ls": _ls,
    "watch": _watch,
}
