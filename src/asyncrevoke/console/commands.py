"""Do what the command line asks for, and print the result."""

import argparse
import asyncio
import contextlib
import importlib
import json
import logging
import os
import pathlib
import shutil
import signal
import socket
import sys
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import replace
from typing import Any

import anyio

from asyncrevoke.control.client import Control, Record
from asyncrevoke.control.lines import ControlError
from asyncrevoke.lowlevel import printable

from . import journal
from .attach import attach
from .fault import Faults, told
from .kernel import held
from .settings import NAMES, SWITCH, Settings
from .share import Config, Share, Socket, read_config
from .sockets import Servers, is_looked_at, look, new_socket

GONE, FAILED, STILL_IN_USE, RELEASE_FAILED = 0, 1, 3, 4
_EXPECTED = (OSError, ImportError, ControlError)


def run(args: argparse.Namespace) -> int:
    """Do what was asked for; it returns the exit status."""
    if signal.getsignal(signal.SIGINT) is signal.SIG_DFL:  # see `_program`
        signal.signal(signal.SIGINT, signal.default_int_handler)
    with contextlib.suppress(AttributeError):  # what replaces standard output may not have it
        sys.stdout.reconfigure(errors="backslashreplace")  # type: ignore[union-attr]
    try:
        status = _COMMANDS[args.command](args)
        sys.stdout.flush()
    except KeyboardInterrupt:
        return 128 + signal.SIGINT
    except ValueError as error:  # alone: in a group it is a bug
        for each in error.args if isinstance(error, Faults) else [error]:
            complain(each)
        return FAILED
    except (*_EXPECTED, BaseExceptionGroup) as error:
        return _failed(error)
    return status


def _failed(error: BaseException) -> int:
    for each in _leaves(error):
        if isinstance(each, BrokenPipeError):  # nobody reads what we print
            os.dup2(os.open(os.devnull, os.O_WRONLY), 1)
        elif isinstance(each, _EXPECTED):
            complain(each)
        else:
            raise error
    return FAILED


def _leaves(error: BaseException) -> Iterator[BaseException]:
    if isinstance(error, BaseExceptionGroup):
        for each in error.exceptions:
            yield from _leaves(each)
    else:
        yield error


def complain(error: BaseException | str) -> None:
    print(f"{journal.prefix(logging.ERROR)}{printable(told(error))}", file=sys.stderr)


# -- demo --


def _demo(_: argparse.Namespace) -> int:
    from .demo import demo  # noqa: PLC0415  # as for the server

    anyio.run(demo)
    return 0


# -- share --


def _share(args: argparse.Namespace) -> int:
    device = args.device or ""
    if device and args.program:
        args.usage("share: give a device, or a command after --, not both")
    line: dict[str, Any] = {name: getattr(args, name) for name in NAMES}
    dtr, rts = SWITCH.get(args.dtr), SWITCH.get(args.rts)
    network = {key: getattr(args, key) for key in ("listen_anywhere", "tls_certificate", "tls_key", "tls_clients")}
    if args.config:
        logs = args.log or args.log_times or args.log_marks or args.log_size
        alone = [device, args.program, args.name, logs, args.listen, *network.values()]
        if any(alone) or {*line.values(), dtr, rts} != {None}:
            args.usage("share: with --config, give only --group and --socket")
        path = str(pathlib.Path(args.config).absolute())
        if args.check:
            return _check(path, args.group)
        config = read_config(path)
    else:
        if args.check:
            args.usage("share: --check needs --config")
        default = pathlib.PurePath(device or (args.program or ["loopback"])[0]).name
        if "/" not in device and shutil.which(device):
            args.usage(f"share: {device!r} is a program. Run: asyncrevoke share -- {device}")
        name, settings = default if args.name is None else args.name, Settings().changed(line)
        log = {each: getattr(args, each) for each in ("log", "log_times", "log_marks", "log_size", "log_keep")}
        network["listen"] = tuple(args.listen)
        share = Share(name, tuple(args.program), device, settings, **log, **network, dtr=dtr, rts=rts)
        config = Config((share,))
    first = config.shares[0].name  # the socket keeps this name, whatever the file says later

    def here(config: Config) -> Config:
        """Add what the command line says, and a socket."""
        config = replace(config, group=args.group or config.group)
        paths = args.socket or (
            [] if config.sockets else [new_socket(first, config.group, everybody=config.names_people)]
        )
        return replace(config, sockets=tuple(map(Socket, paths)) or config.sockets)

    reread = (lambda: here(read_config(path))) if args.config else None
    with journal.logging_to_stderr():
        config = here(config)
        reached = config.sockets[0].path
        anyio.run(_host, config, reread, f"--socket {reached} " if args.socket or not is_looked_at(reached) else "")
    return 0


def _check(path: str, group: str | None) -> int:
    from .check import check  # noqa: PLC0415  # as for the server

    names = ", ".join(share.name for share in check(path, group).shares)
    print(printable(f"{path}: no fault. It shares {names}"))
    return 0


async def _host(config: Config, reread: Callable[[], Config] | None, where: str) -> None:
    from .server import host  # noqa: PLC0415  # clients need not wait for the adapters

    with anyio.CancelScope() as until_told:
        for signum in (signal.SIGTERM, signal.SIGINT, *([] if reread else [signal.SIGHUP])):
            if signal.getsignal(signum) != signal.SIG_IGN:  # under nohup, a closed terminal ends nothing
                asyncio.get_running_loop().add_signal_handler(signum, until_told.cancel)
        up = _Up(config.shares, where)
        await host(config.shares, config.sockets, group=config.group, reread=reread, task_status=up)


class _Up:
    """Prints the shares, and tells systemd, when they are up."""

    def __init__(self, shares: Sequence[Share], where: str) -> None:
        self._shares = shares
        self._where = where

    def started(self, _: None = None) -> None:
        _notify(b"READY=1")
        for share in self._shares:
            what = printable(str(share))
            print(f"sharing {share.name!r} ({what}): asyncrevoke attach {self._where}{share.name}", flush=True)


def _notify(state: bytes) -> None:
    """Tell systemd, if it has started us and waits for that (sd_notify(3))."""
    if address := os.environ.get("NOTIFY_SOCKET"):
        with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as notified:
            notified.sendto(state, address.replace("@", "\0", 1))


# -- attach --


def _attach(args: argparse.Namespace) -> int:
    async def run() -> str:
        async with await look(args.socket) as servers:
            name = args.name or await servers.only_name()
            return f"{name}: {await attach(await servers.sharing(name), name, mode=args.mode, wait=args.wait)}"

    print(f"asyncrevoke: {anyio.run(run)}", file=sys.stderr)
    return 0


# -- ls --


def _ls(args: argparse.Namespace) -> int:
    from . import overview  # noqa: PLC0415  # other commands need not wait for it

    async def run() -> int:
        async with await look(args.socket) as servers:
            if args.watch:
                return await _watch(servers, as_json=args.json)
            found = await overview.ask(servers, who=args.who or args.all)
            for each in servers.unanswered if any(found) else [f"nothing is shared. Looked in {servers}"]:
                complain(each)
            if args.json:
                for record in overview.records(found, internals=args.who or args.all):
                    print(json.dumps(record))
            elif args.all:
                print_table(overview.internals(found))
            elif args.who:
                print_table(overview.people(found))
            elif any(found):
                print_table(overview.summary(found))
            for warning in overview.warnings(found):
                complain(warning)
            return FAILED if servers.unanswered else 0

    return anyio.run(run)


def ago(seconds: float | None) -> str:
    if seconds is None:
        return ""
    minutes, hours = seconds // 60, seconds // 3600
    return f"{seconds:.0f} s" if not minutes else f"{minutes:.0f} min" if not hours else f"{hours:.0f} h"


def table(rows: Iterable[list[str]]) -> list[str]:
    shown = [[printable(cell) for cell in row] for row in rows]
    widths = [max(map(len, column)) for column in zip(*shown, strict=True)]
    return ["  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip() for row in shown]


def print_table(rows: Iterable[list[str]]) -> None:
    for line in table(rows):
        print(line)


async def _watch(servers: Servers, *, as_json: bool) -> int:
    async def watch(socket: str, control: Control) -> None:
        try:
            async for event in control.watch():
                if as_json:
                    print(json.dumps({**event, "socket": socket}), flush=True)
                elif "event" in event:
                    by = f" by {event['by']}" if event["by"] and event["event"] == "revoked" else ""
                    more = by + "".join(f" ({event[key]})" for key in ("who", "reason") if event[key])
                    print(time.strftime("%H:%M:%S"), printable(f"{event['path']} {event['event']}{more}"), flush=True)
        except ControlError as error:
            complain(f"{socket}: {error}")

    if not servers.controls:
        complain(f"nothing is shared. Looked in {servers}")
    async with anyio.create_task_group() as tasks:
        for socket, control in servers.controls.items():
            tasks.start_soon(watch, socket, control)
    return FAILED


# -- revoke --


def _revoke(args: argparse.Namespace) -> int:
    if args.yes and not args.kernel:
        args.usage("revoke: --yes needs --kernel")
    if not (args.kernel or args.socket):
        args.cluster = args.cluster or os.environ.get("ASYNCREVOKE_CLUSTER")
    if args.cluster:
        return _cluster(args)
    if args.parts or args.expires:
        args.usage("revoke: --parts and --expires need --cluster")
    if len(args.what) > 1 and (args.kernel or any(_is_path(each) or "*" in each for each in args.what)):
        args.usage("revoke: several must be names, such as router/alice router/alice-2")
    if args.kernel:
        return _revoke_by_kernel(args.what[0], asks=not args.yes)
    return _revoke_here(args)


def _is_path(what: str) -> bool:
    return what.startswith(("/", "./", "../"))


def _revoke_here(args: argparse.Namespace) -> int:
    args.timeout = 30.0 if args.timeout is None else args.timeout
    by_path = str(pathlib.Path(args.what[0]).absolute()) if _is_path(args.what[0]) else ""

    async def run() -> list[Record]:
        async with await look(args.socket) as servers:
            if by_path:
                return await _revoke_by_path(servers, by_path, args)
            names: dict[Control, list[str]] = {}  # each server takes all of its names away at once
            for each in args.what:
                sharing = servers.controls.get(args.socket) or await servers.sharing(each.partition("/")[0])
                names.setdefault(sharing, []).append(each)
            return [await _revoke_at(server, each, args) for server, each in names.items()]

    answers = anyio.run(run)
    for answer in answers:
        if args.json:
            print(json.dumps({key: answer[key] for key in ("done", "report", "stragglers")}))
        else:
            _print_report(answer)
    if not all(answer["done"] for answer in answers):
        return STILL_IN_USE
    return RELEASE_FAILED if any(answer["report"]["errors"] for answer in answers) else GONE


async def _revoke_at(server: Control, names: list[str], args: argparse.Namespace) -> Record:
    what = " ".join(names)
    below = what == "*" or what.endswith("/*")  # of one name: several have none of this
    at: str | list[str] = names
    if len(names) == 1:
        at = what[:-2] if below else what
        if what.startswith("/"):
            at = at or "/"  # and not "", which is everything
    try:
        with anyio.fail_after(args.timeout + 10):
            return await server.revoke(at, args.reason, below=below, grace=args.grace, timeout=args.timeout)
    except TimeoutError:
        who = "the server, or the file system," if what.startswith("/") else "the server"
        raise TimeoutError(f"{what}: {who} does not answer, and may still take it away later") from None


async def _revoke_by_path(servers: Servers, path: str, args: argparse.Namespace) -> list[Record]:
    """Ask all servers, because several of them may have the device open."""
    await servers.nodes(path)  # finds out which servers do not answer
    answers: list[Record] = []
    for each in servers.unanswered:
        complain(each)

    async def ask(socket: str, server: Control) -> None:
        try:
            answers.append(await _revoke_at(server, [path], args))
        except TimeoutError as error:
            complain(error)
        except ControlError as error:
            if error.code != "unknown-path":
                complain(f"{socket}: {error}")

    async with anyio.create_task_group() as tasks:
        for socket, server in servers.controls.items():
            tasks.start_soon(ask, socket, server)
    if not answers:
        raise ControlError(
            "unknown-path",
            f"{path}: no server took it away. Looked in {servers}. --kernel takes it from all programs",
        )
    return answers


def _print_report(answer: Record) -> None:
    report = answer["report"]
    reason = f" ({report['reason']})" if report["reason"] else ""
    left = "" if answer["done"] else f", {report['remaining']} still in use"
    counts = f"{report['kicked']} kicked, {report['released']} released{left}, in {report['seconds']:.3f} s"
    print(printable(f"{report['name']!r} revoked{reason}: {counts}"))
    for user in answer["stragglers"]:
        print(
            printable(f"  inside: {user['kind']} {user['name']!r} of {user['path']!r} at {user['where'] or 'unknown'}")
        )
    for error in report["errors"]:
        print(printable(f"  failed: {error}"))


def _revoke_by_kernel(path: str, *, asks: bool) -> int:
    with held(path) as it:
        holders = list(it.holders())
        print(f"{printable(path)} ({it.what}) is held by", end=" ")
        many = "es" * (len(holders) > 1)
        print(f"{len(holders)} process{many}:" if holders else "no process that you can see.")
        if holders:
            rows = [[str(each.pid), each.user, each.how, each.command] for each in holders]
            print_table([["PID", "USER", "HOW", "COMMAND"], *rows])
        print(it.effect, flush=True)
        if asks:
            if it.ours:
                raise PermissionError(f"{path} is your own terminal: give --yes if you mean it")
            if not os.isatty(0):
                raise PermissionError("there is no terminal to ask on: give --yes")
            if input("Take it away? [y/N] ").strip().lower() not in ("y", "yes"):
                raise PermissionError("nothing was done")
        it.take()
    print(f"{printable(path)} is {it.done}")
    return GONE


# -- on all hosts --


def _cluster(args: argparse.Namespace) -> int:
    from asyncrevoke.cluster import LogError  # noqa: PLC0415  # as for the server

    from .cluster import run  # noqa: PLC0415

    try:
        return run(args)
    except LogError as error:
        complain(error)
        return FAILED


# -- in files of their own --


def _in(file: str, extra: str = "") -> Callable[[argparse.Namespace], int]:
    """The command of a file. The file is imported only for this command."""

    def run(args: argparse.Namespace) -> int:
        try:
            module = importlib.import_module(f".{file}", __package__)
        except ModuleNotFoundError as error:
            raise ImportError(f"{error.name} is missing: pip install 'asyncrevoke[{extra}]'") from error
        status: int = module.run(args)
        return status

    return run


_COMMANDS = {
    "demo": _demo,
    "share": _share,
    "reload": _in("reload"),
    "start": _in("start"),
    "give": _in("give"),
    "attach": _attach,
    "send": _in("send"),
    "ls": _ls,
    "top": _in("top"),
    "port": _in("port"),
    "ports": _in("ports"),
    "web": _in("web.serving", extra="web"),
    "import": _in("importer"),
    "revoke": _revoke,
    "cluster": _cluster,
}
