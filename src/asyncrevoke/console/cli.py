"""The command line: it parses and prints."""

import argparse
import asyncio
import contextlib
import json
import logging
import os
import pathlib
import shutil
import signal
import sys
import time
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Any

import anyio

from asyncrevoke.console import Share, host, read_config
from asyncrevoke.control.client import Control, Record
from asyncrevoke.control.lines import ControlError
from asyncrevoke.lowlevel import printable

from .attach import HELP, attach
from .demo import demo
from .kernel import HeldTerminal
from .sockets import Servers, look, new_socket

GONE, FAILED, STILL_IN_USE, RELEASE_FAILED = 0, 1, 3, 4
_EXPECTED = (OSError, ImportError, ControlError)
_SOCKET = "of the control server; left out: $ASYNCREVOKE_SOCKET, or all in your own folder and in /run/asyncrevoke"


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command line; it returns the exit status."""
    if signal.getsignal(signal.SIGINT) is signal.SIG_DFL:  # see `_program`
        signal.signal(signal.SIGINT, signal.default_int_handler)
    parser = _parser()
    words = list(sys.argv[1:] if argv is None else argv)
    program: list[str] = []
    if words[:1] == ["share"] and "--" in words:
        end = words.index("--")
        words, program = words[:end], words[end + 1 :]
        if not program:
            parser.error("share: give a command after --")
    args = parser.parse_args(words)
    args.program = program
    args.usage = parser.error
    with contextlib.suppress(AttributeError):  # whoever took standard output's place may not have it
        sys.stdout.reconfigure(errors="backslashreplace")  # type: ignore[union-attr]
    try:
        status: int = args.run(args)
        sys.stdout.flush()
    except KeyboardInterrupt:
        return 128 + signal.SIGINT
    except ValueError as error:  # alone: in a group it is a bug
        _complain(error)
        return FAILED
    except (*_EXPECTED, BaseExceptionGroup) as error:
        return _failed(error)
    return status


def _failed(error: BaseException) -> int:
    for each in _leaves(error):
        if isinstance(each, BrokenPipeError):  # nobody reads what we print
            os.dup2(os.open(os.devnull, os.O_WRONLY), 1)
        elif isinstance(each, _EXPECTED):
            _complain(each)
        else:
            raise error
    return FAILED


def _leaves(error: BaseException) -> Iterator[BaseException]:
    if isinstance(error, BaseExceptionGroup):
        for each in error.exceptions:
            yield from _leaves(each)
    else:
        yield error


def _complain(error: BaseException | str) -> None:
    text = str(error)
    if isinstance(error, OSError) and error.strerror:
        text = f"{error.filename}: {error.strerror}" if error.filename else error.strerror
    print(f"asyncrevoke: {printable(text)}", file=sys.stderr)


# -- what can be asked --


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="asyncrevoke",
        description="Take a port, a terminal or a connection away from code that is still awaiting it.",
    )
    commands = parser.add_subparsers(dest="command", required=True, metavar="COMMAND")

    def command(name: str, run: Callable[[argparse.Namespace], int], text: str, more: str = "") -> Any:
        added = commands.add_parser(
            name,
            help=text,
            description=f"{text}. {more}",
            formatter_class=argparse.RawDescriptionHelpFormatter,
            allow_abbrev=False,
        )
        added.set_defaults(run=run)
        return added.add_argument

    command("demo", _demo, "show a live shell session being taken away from those who share it")

    add = command("share", _share, "share a program, a serial device or a loopback, until it ends", _SHARE)
    add("device", nargs="?", metavar="DEVICE", help="by-id name, USB serial number or path; or, after --, a command")
    add("--name", help="under which it is attached to; left out: that of the device or the program")
    add("--group", help="whose members may attach and look; to take away is for you and root")
    add("--log", metavar="FILE", default="", help="append all output to this file")
    add("--baudrate", type=int, default=9600, help="of a serial device (%(default)s)")
    add("--socket", metavar="PATH", help="where to be found; left out: NAME.sock in your own folder")
    add("--config", metavar="FILE", help="share what this TOML file lists")

    add = command("attach", _attach, "attach this terminal to a share", _ATTACH)
    add("name", metavar="NAME")
    add("--read-only", dest="mode", action="store_const", const="watch", default="write", help="never type")
    add("--force", dest="mode", action="store_const", const="force", help="take the keyboard from whoever has it")
    add("--wait", action="store_true", help="stay while the device is unplugged, until it is back")
    add("--socket", metavar="PATH", default=os.environ.get("ASYNCREVOKE_SOCKET", ""), help=_SOCKET)

    add = command("ls", _ls, "list what is shared")
    add("--who", action="store_true", help="and who is attached, and what is inside")
    add("--json", action="store_true", help="one JSON record per line")
    add("--watch", action="store_true", help="show what happens there, from now on, until they have all ended")
    add("--socket", metavar="PATH", default=os.environ.get("ASYNCREVOKE_SOCKET", ""), help=_SOCKET)

    add = command("revoke", _revoke, "take a share away, or a client from it, or any terminal by the kernel", _REVOKE)
    add(
        "what",
        metavar="NAME[/CLIENT]|PATH",
        help="as `ls --who` shows it, or NAME/*; or the path of a device, or of a folder of them, beginning with / or ./",
    )
    add("--reason", default="", help="what everybody is told")
    add("--grace", type=_seconds, default=0.0, metavar="S", help="seconds to finish what is being done")
    add("--timeout", type=_seconds, default=30.0, metavar="S", help="seconds to wait until it is gone (%(default)g)")
    add("--json", action="store_true", help="print the report as JSON")
    add("--kernel", action="store_true", help="hang up the terminal at that path in all programs: vhangup, as root")
    add("--yes", action="store_true", help="with --kernel: do not ask")
    add("--socket", metavar="PATH", default=os.environ.get("ASYNCREVOKE_SOCKET", ""), help=_SOCKET)
    return parser


_SHARE = "A command comes after --, as in\n`asyncrevoke share -- bash`; neither device nor command: a loopback gives back what is typed."
_ATTACH = f"""

{HELP}.

Where standard input is no terminal, it is sent as soon as you have the keyboard; its end, and
a second without output, or ten seconds, detach. With --read-only it is not read, and ctrl-C detaches.

exit status:
  0  you detached, or what was shared has ended
  1  it was taken away from you, or anything else went wrong"""
_REVOKE = """

exit status:
  0  it is gone
  1  it is not, as far as is known: unknown, forbidden, no server, or one that does not answer
  2  wrong usage
  3  it is refused to everybody, but still in use after the timeout: those inside are listed
  4  it is gone, but something failed when it was released"""


def _seconds(text: str) -> float:
    with contextlib.suppress(ValueError):
        if 0 <= (seconds := float(text)) <= 86400:
            return seconds
    raise argparse.ArgumentTypeError(f"{text!r} is no number of seconds from 0 to 86400")


def _demo(_: argparse.Namespace) -> int:
    anyio.run(demo)
    return 0


# -- share --


def _share(args: argparse.Namespace) -> int:
    device = args.device or ""
    if device and args.program:
        args.usage("share: give a device, or a command after --")
    if args.config:
        if device or args.program or args.name or args.log:
            args.usage("share: --config goes with --group and --socket alone")
        shares, group = read_config(args.config)
    else:
        default = pathlib.PurePath(device or (args.program or ["loopback"])[0]).name
        if "/" not in device and shutil.which(device):
            args.usage(f"share: {device!r} is a program, which comes after two dashes: share -- {device}")
        shares, group = (
            [Share(default if args.name is None else args.name, tuple(args.program), device, args.baudrate, args.log)],
            None,
        )
    group = args.group or group
    socket = args.socket or new_socket(shares[0].name, group)
    with _log_to_stderr():
        anyio.run(_host, shares, socket, group, bool(args.socket))
    return 0


@contextlib.contextmanager
def _log_to_stderr() -> Iterator[None]:
    logger, handler = logging.getLogger("asyncrevoke"), logging.StreamHandler()
    handler.setFormatter(logging.Formatter("asyncrevoke: %(message)s"))
    level = logger.level
    logger.addHandler(handler)
    logger.setLevel(logging.INFO)
    try:
        yield
    finally:
        logger.removeHandler(handler)
        logger.setLevel(level)


async def _host(shares: list[Share], socket: str, group: str | None, elsewhere: bool) -> None:
    with anyio.CancelScope() as until_told:
        for signum in (signal.SIGTERM, signal.SIGINT, signal.SIGHUP):
            if signal.getsignal(signum) != signal.SIG_IGN:  # under nohup, a closed terminal ends nothing
                asyncio.get_running_loop().add_signal_handler(signum, until_told.cancel)
        await host(shares, socket, group=group, task_status=_Up(shares, f"--socket {socket} " if elsewhere else ""))


class _Up:
    """Is told when the shares are up."""

    def __init__(self, shares: list[Share], where: str) -> None:
        self._shares = shares
        self._where = where

    def started(self, _: None = None) -> None:
        for share in self._shares:
            what = " ".join(share.command) or share.device or "loopback"
            print(
                f"sharing {share.name!r} ({printable(what)}): asyncrevoke attach {self._where}{share.name}", flush=True
            )


# -- attach --


def _attach(args: argparse.Namespace) -> int:
    async def run() -> str:
        async with await look(args.socket) as servers:
            return await attach(await servers.sharing(args.name), args.name, mode=args.mode, wait=args.wait)

    print(f"asyncrevoke: {args.name}: {anyio.run(run)}", file=sys.stderr)
    return 0


# -- ls --


def _ls(args: argparse.Namespace) -> int:
    async def run() -> int:
        async with await look(args.socket) as servers:
            if args.watch:
                return await _watch(servers, as_json=args.json)
            found = await servers.nodes(who=args.who)
            records = [record for socket, nodes in found.items() for record in _records(socket, nodes, args.who)]
            for each in servers.unanswered if records else [f"nothing is shared: looked in {servers}"]:
                _complain(each)
            if args.json:
                for record in records:
                    print(json.dumps(record))
            elif records:
                _print_table(_rows(records))
            return 0

    return anyio.run(run)


def _records(socket: str, nodes: Sequence[Record], who: bool) -> Iterator[Record]:
    below = Counter(node["path"].rpartition("/")[0] for node in nodes if node["generation"] is None)  # that is pinned
    for node in sorted(nodes, key=lambda node: node["path"].split("/")):
        share = "/" not in node["path"]
        if node["kind"] != "generation" and (who or share):
            yield {**node, "clients": below[node["path"]] if share else None, "socket": socket}


def _rows(records: Sequence[Record]) -> Iterator[list[str]]:
    yield ["NAME", "STATE", "GENERATION", "CLIENTS", "IN USE", "SINCE", "REASON"]
    for record in records:
        name = "  " * record["path"].count("/") + record["path"]
        numbers = ["" if record[key] is None else str(record[key]) for key in ("generation", "clients", "in_use")]
        yield [name, record["state"], *numbers, _ago(record["since"]), record["reason"]]
        for user in record.get("users", ()):
            yield [f"{name}: {user['kind']}", "", "", "", "", _ago(user["since"]), user["where"]]


def _ago(seconds: float | None) -> str:
    if seconds is None:
        return ""
    minutes, hours = seconds // 60, seconds // 3600
    return f"{seconds:.0f} s" if not minutes else f"{minutes:.0f} min" if not hours else f"{hours:.0f} h"


def _print_table(rows: Iterable[list[str]]) -> None:
    shown = [[printable(cell) for cell in row] for row in rows]
    widths = [max(map(len, column)) for column in zip(*shown, strict=True)]
    for row in shown:
        print("  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip())


async def _watch(servers: Servers, *, as_json: bool) -> int:
    async def watch(socket: str, control: Control) -> None:
        try:
            async for event in control.watch():
                if as_json:
                    print(json.dumps({**event, "socket": socket}), flush=True)
                elif "event" in event:
                    more = "".join(f" ({event[key]})" for key in ("who", "reason") if event[key])
                    print(time.strftime("%H:%M:%S"), printable(f"{event['path']} {event['event']}{more}"), flush=True)
        except ControlError as error:
            _complain(f"{socket}: {error}")

    if not servers.controls:
        _complain(f"nothing is shared: looked in {servers}")
    async with anyio.create_task_group() as tasks:
        for socket, control in servers.controls.items():
            tasks.start_soon(watch, socket, control)
    return FAILED


# -- revoke --


def _revoke(args: argparse.Namespace) -> int:
    if args.kernel:
        return _revoke_by_kernel(args.what, asks=not args.yes)
    if args.yes:
        args.usage("revoke: --yes goes with --kernel")
    by_path = args.what.startswith(("/", "./", "../"))
    what = str(pathlib.Path(args.what).absolute()) if by_path else args.what

    async def run() -> list[Record]:
        async with await look(args.socket) as servers:
            if by_path:
                return await _revoke_by_path(servers, what, args)
            sharing = servers.controls.get(args.socket) or await servers.sharing(args.what.partition("/")[0])
            return [await _revoke_at(sharing, what, args)]

    answers = anyio.run(run)
    for answer in answers:
        if args.json:
            print(json.dumps({key: answer[key] for key in ("done", "report", "stragglers")}))
        else:
            _print_report(answer)
    if not all(answer["done"] for answer in answers):
        return STILL_IN_USE
    return RELEASE_FAILED if any(answer["report"]["errors"] for answer in answers) else GONE


async def _revoke_at(server: Control, what: str, args: argparse.Namespace) -> Record:
    below = what == "*" or what.endswith("/*")
    path = what[:-2] if below else what
    if what.startswith("/"):
        path = path or "/"  # and not "", which is everything
    try:
        with anyio.fail_after(args.timeout + 10):
            return await server.revoke(path, args.reason, below=below, grace=args.grace, timeout=args.timeout)
    except TimeoutError:
        who = "the server, or the file system," if what.startswith("/") else "the server"
        raise TimeoutError(f"{what}: {who} does not answer, and may still take it away later") from None


async def _revoke_by_path(servers: Servers, path: str, args: argparse.Namespace) -> list[Record]:
    """All servers are asked: any number of them may have a device open."""
    await servers.nodes(path)  # finds out who does not answer
    answers: list[Record] = []
    for each in servers.unanswered:
        _complain(each)

    async def ask(socket: str, server: Control) -> None:
        try:
            answers.append(await _revoke_at(server, path, args))
        except TimeoutError as error:
            _complain(error)
        except ControlError as error:
            if error.code != "unknown-path":
                _complain(f"{socket}: {error}")

    async with anyio.create_task_group() as tasks:
        for socket, server in servers.controls.items():
            tasks.start_soon(ask, socket, server)
    if not answers:
        raise ControlError(
            "unknown-path",
            f"{path}: no server has taken it away: looked in {servers}. --kernel takes a terminal from all programs",
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
    with HeldTerminal(path) as terminal:
        holders = list(terminal.holders())
        print(f"{printable(path)} (device {os.major(terminal.number)}:{os.minor(terminal.number)}) is held by", end=" ")
        many = "es" * (len(holders) > 1)
        print(f"{len(holders)} process{many}:" if holders else "no process that can be seen here.")
        if holders:
            rows = [[str(each.pid), each.user, each.how, each.command] for each in holders]
            _print_table([["PID", "USER", "HOW", "COMMAND"], *rows])
        print("The kernel will take it away from all of them: they read the end, their writes fail with EIO,")
        print("and those whose controlling terminal it is get SIGHUP, of which most die.", flush=True)
        if asks:
            if terminal.ours:
                raise PermissionError(f"{path} is your own terminal: give --yes if you mean it")
            if not os.isatty(0):
                raise PermissionError("there is nobody to ask: give --yes")
            if input("Hang it up? [y/N] ").strip().lower() not in ("y", "yes"):
                raise PermissionError("nothing was done")
        terminal.hangup()
    print(f"{printable(path)} is hung up")
    return GONE
