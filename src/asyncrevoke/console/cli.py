"""The command line: it parses."""

import argparse
import contextlib
import math
import os
import sys
from collections.abc import Sequence
from typing import Any

from .escape import KEYS, explained

_SOCKET = "server socket. Default: $ASYNCREVOKE_SOCKET, or all sockets in your own folder and in /run/asyncrevoke"
_CLUSTER = (
    "log that all hosts follow, such as redis://db:6379 or sqlite:///var/lib/shop/log.db. Default: $ASYNCREVOKE_CLUSTER"
)
_PARTS = "each word is one part of the key, and may contain slashes: alice token/7. For scripts"


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command line; it returns the exit status."""
    parser = _parser()
    if "_ARGCOMPLETE" in os.environ:  # a shell asks, by the way of argcomplete
        from .completion import complete  # noqa: PLC0415  # needs more than a parser

        complete(parser)
    words = list(sys.argv[1:] if argv is None else argv)
    program: list[str] = []
    if words[:1] in (["share"], ["web"]) and "--" in words:
        end = words.index("--")
        words, program = words[:end], words[end + 1 :]
        if not program:
            parser.error(f"{words[0]}: give a command after --")
    args, more = parser.parse_known_args(words)
    if args.command == "send" and not any(word.startswith("-") and word != "-" for word in more):
        args.text += more  # a TEXT after an --until
    elif more:
        parser.error(f"unrecognized arguments: {' '.join(more)}")
    args.program = program
    args.usage = parser.error
    from .commands import run  # noqa: PLC0415  # help and wrong usage need not wait for all that it imports

    return run(args)


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="asyncrevoke",
        description="Take a port, a terminal or a connection away from code that is still awaiting it.",
    )
    parser.add_argument("--version", action=_Version, nargs=0, help="show the version and exit")
    commands = parser.add_subparsers(dest="command", required=True, metavar="COMMAND")

    def command(name: str, text: str, more: str = "", among: Any = commands) -> Any:
        return among.add_parser(
            name,
            help=text,
            description=f"{text}. {more}",
            formatter_class=argparse.RawDescriptionHelpFormatter,
            allow_abbrev=False,
        )

    command("demo", "show how a live shell session is taken away from its clients")

    add = command("share", "share a program, a serial device or a loopback until it ends", _SHARE).add_argument
    add("device", nargs="?", metavar="DEVICE", help="by-id name, USB serial number or path")
    add("--name", help="name that clients attach to. Default: the device or program name")
    add("--group", help="group that may attach, type and list. Only you and root may revoke")
    add("--log", metavar="FILE", default="", help="append all output to this file")
    add("--log-times", action="store_true", help="start each log line with the time")
    add("--log-marks", action="store_true", help="log each client that comes, goes, gets the keyboard or is taken off")
    add("--log-size", metavar="10M", default="", help="start a new log at this size. The old one becomes FILE.1")
    add("--log-keep", type=int, default=5, metavar="N", help="number of old logs to keep. Default: %(default)s")
    _line(add, "9600n8", "when the device opens. Default: on, as Linux sets it")
    _network(add)
    add(
        "--socket",
        metavar="PATH",
        action="append",
        help="socket that clients connect to. May be repeated. Default: NAME.sock in your own folder",
    )
    add("--config", metavar="FILE", help="share what this TOML file lists. SIGHUP reloads it")
    add("--check", action="store_true", help="print all faults of that file, and share nothing")

    add = command("ls", "list what is shared").add_argument
    add("--who", action="store_true", help="list the attached clients, what each does, and where it comes from")
    add("--all", action="store_true", help="list everything that is open, and the operations inside")
    add("--json", action="store_true", help="one JSON record per line")
    add("--watch", action="store_true", help="show each event from now on, until all servers have ended")
    add("--socket", metavar="PATH", default=os.environ.get("ASYNCREVOKE_SOCKET", ""), help=_SOCKET)

    add = command(
        "revoke", "take away a share, one of its clients, what programs hold, or sessions on all hosts", _REVOKE
    )
    one_of = add.add_mutually_exclusive_group().add_argument
    add = add.add_argument
    add(
        "what",
        nargs="+",
        metavar="NAME[/CLIENT]|PATH|KEY",
        help="name as `ls --who` shows it, or NAME/* for everything open below it. A path that starts with / or ./ is that of a device,"
        " or of a folder of devices. With --cluster: a key such as alice/token7. Everything below it is revoked too."
        " Several names are revoked at once, or none of them if one is not there",
    )
    add("--reason", default="", help="reason shown to everyone affected")
    add("--grace", type=_seconds, default=0.0, metavar="S", help="seconds that operations get to finish. Default: 0")
    add(
        "--timeout",
        type=_seconds,
        metavar="S",
        help="seconds to wait until it is gone. Default: 30. With --cluster: the longest lease",
    )
    add("--json", action="store_true", help="print the report as JSON")
    one_of("--cluster", metavar="URL", help=f"{_CLUSTER}, unless you give a socket")
    add("--parts", action="store_true", help=f"with --cluster: {_PARTS}")
    add(
        "--expires",
        type=_duration,
        metavar="30d",
        help="with --cluster: how long tokens live. The revocation is dropped then. Default: never",
    )
    one_of(
        "--kernel",
        action="store_true",
        help="let the kernel take a terminal, an input device or a socket from all programs. Needs root",
    )
    add("--yes", action="store_true", help="with --kernel: do not ask")
    one_of("--socket", metavar="PATH", default=os.environ.get("ASYNCREVOKE_SOCKET", ""), help=_SOCKET)

    for each in _attach, _send, _hosting, _web, _import, _port, _ports, _cluster:
        each(command)
    return parser


def _attach(command: Any) -> None:
    add = command("attach", "attach this terminal to a share", _ATTACH).add_argument
    add("name", nargs="?", metavar="NAME", help="share to attach to. Default: the only one")
    add("--read-only", dest="mode", action="store_const", const="watch", default="write", help="never type")
    add("--force", dest="mode", action="store_const", const="force", help="take the keyboard from its holder")
    add("--wait", action="store_true", help="stay attached while the device is unplugged")
    add("--socket", metavar="PATH", default=os.environ.get("ASYNCREVOKE_SOCKET", ""), help=_SOCKET)


def _send(command: Any) -> None:
    add = command("send", "type text into a share, and print what it answers", _SEND).add_argument
    add("name", metavar="NAME", help="share to type into")
    add(
        "text",
        nargs="+",
        metavar="TEXT",
        help="text to type. Several are typed in turn. -: each line of standard input",
    )
    add(
        "--until",
        action="append",
        default=[],
        metavar="REGEX",
        help="pattern that ends an answer. Give one for each TEXT, or one for all. Default: do not wait",
    )
    add(
        "--timeout",
        type=_seconds,
        default=30.0,
        metavar="S",
        help="seconds to wait for each answer. Default: %(default)g",
    )
    add(
        "--end",
        choices=["cr", "lf", "crlf", "none"],
        default="cr",
        help="line end typed after each TEXT. Default: %(default)s",
    )
    add("--no-echo", dest="echo", action="store_false", help="do not wait for an echo of TEXT: the device sends none")
    add("--no-prompt", dest="prompt", action="store_false", help="do not print the line that REGEX matches")
    add("--force", action="store_true", help="take the keyboard from its holder")
    add("--wait", action="store_true", help="wait for the keyboard, and for a device that is away, until the timeout")
    add("--socket", metavar="PATH", default=os.environ.get("ASYNCREVOKE_SOCKET", ""), help=_SOCKET)


def _cluster(command: Any) -> None:
    actions = command("cluster", "show and set up the log that revokes sessions on all hosts").add_subparsers(
        dest="action", required=True, metavar="ACTION"
    )
    for name, text, more in _ACTIONS:
        add = command(name, text, more, actions).add_argument
        add("--cluster", metavar="URL", help=_CLUSTER)
        if name == "readmit":
            add("what", nargs="+", metavar="KEY", help="key, exactly as it was revoked")
            add("--parts", action="store_true", help=_PARTS)
            add("--reason", default="", help="reason shown to readers of the log")
        if name in ("ls", "watch"):
            add("--json", action="store_true", help="one JSON record per line")


def _web(command: Any) -> None:
    add = command("web", "serve shares and terminals to browsers, until you stop it", _WEB).add_argument
    add("--port", type=int, default=8023, help="TCP port on 127.0.0.1. Default: %(default)s")
    add("--origin", default="", metavar="URL", help="address that browsers use, if a proxy is in front of this server")
    add("--unix-socket", default="", metavar="PATH", help="listen on this Unix socket, not on the port")
    add("--group", help="group that may connect to the Unix socket, for a proxy")
    add("--user-header", default="", metavar="NAME", help="header in which the proxy sends the user name")
    add(
        "--grace",
        type=_seconds,
        default=60.0,
        metavar="S",
        help="seconds that a terminal lives without a browser. Default: 60",
    )
    add("--socket", metavar="PATH", default=os.environ.get("ASYNCREVOKE_SOCKET", ""), help=_SOCKET)


def _hosting(command: Any) -> None:
    add = command("reload", "make a server read its configuration file again", _RELOAD).add_argument
    add(
        "name",
        nargs="?",
        default="",
        metavar="NAME",
        help="a share of the server. Default: all servers that have a file",
    )
    add("--socket", metavar="PATH", default=os.environ.get("ASYNCREVOKE_SOCKET", ""), help=_SOCKET)

    add = command("start", "start a share again after it has ended").add_argument
    add("name", metavar="NAME", help="share that was taken away or has ended")
    add("--socket", metavar="PATH", default=os.environ.get("ASYNCREVOKE_SOCKET", ""), help=_SOCKET)

    add = command("give", "hand the keyboard of a share to one of its clients", _GIVE).add_argument
    add("client", metavar="NAME/CLIENT", help="client that gets it, as `ls --who` shows it")
    add("--socket", metavar="PATH", default=os.environ.get("ASYNCREVOKE_SOCKET", ""), help=_SOCKET)

    add = command("top", "watch shares and their clients", _TOP).add_argument
    add("--socket", metavar="PATH", default=os.environ.get("ASYNCREVOKE_SOCKET", ""), help=_SOCKET)


def _import(command: Any) -> None:
    add = command("import", "convert the configuration of ser2net or conserver", _IMPORT).add_argument
    add("file", metavar="FILE", help="file such as /etc/ser2net.yaml or /etc/conserver/conserver.cf")
    add(
        "--from",
        dest="kind",
        choices=["ser2net", "conserver"],
        help="program that FILE belongs to. Default: guessed from FILE",
    )


def _network(add: Any) -> None:
    add(
        "--listen",
        action="append",
        default=[],
        metavar="URL",
        help="also share it over the network. May be repeated",
    )
    add("--listen-anywhere", action="store_true", help="allow a URL that other machines can reach")
    add(
        "--tls-certificate",
        metavar="FILE",
        default="",
        help="certificate of the server. The file may contain its key",
    )
    add("--tls-key", metavar="FILE", default="", help="key of that certificate. Default: the certificate file")
    add(
        "--tls-clients",
        metavar="FILE",
        default="",
        help="certificate authorities. Every client needs a certificate from one of them",
    )


_SHARE = """Give a command after --:
`asyncrevoke share -- bash`. Without a device or command, input is echoed back.

A URL is telnet://ADDRESS:PORT, which includes RFC 2217, or tcp://ADDRESS:PORT. Over TLS: telnet+tls, tcp+tls.
Options may follow: ?read-only, ?take (the keyboard from its holder), ?limit=NUMBER.

exit status:
  0  all shares have ended. With --check: the file has no fault
  1  something cannot be shared. With --check: each fault is printed, with its share and key
  2  wrong usage"""
_ATTACH = (
    """

If standard input is not a terminal, it is sent as soon as you get the keyboard. After its end, attach
waits for a second without output, ten seconds at most, and detaches. With --read-only, standard input
is not read, and ctrl-C detaches.

after ctrl-]:
"""
    + "".join(f"  {line}\n" for line in explained(KEYS))
    + """
exit status:
  0  you detached, or what was shared has ended
  1  it was taken away from you, or something else went wrong"""
)
_SEND = """

Example: asyncrevoke send router enable --until Password: - --until 'router#' < secret

REGEX is a Python regular expression. ^ and $ match at the ends of each line, and a match has up to
1,024 bytes. It is searched for after TEXT and its echo. The echo, and everything before it, is not
printed. If no echo comes, a match counts after a second of silence.

exit status:
  0  all was typed, and all answers came
  1  unknown name, permission denied, or no server
  2  wrong usage
  3  an answer did not come in time. What did come is printed
  4  the share was taken away, or has ended
  5  the device is away
  6  another client has the keyboard"""
_RELOAD = """

A share that did not change is not disturbed. A changed share goes on if it can. Otherwise it is
taken away and started again. If the file has a fault, nothing changes.

exit status:
  0  done. Each share that changed is printed
  1  nothing changed: a fault in the file, permission denied, or no server that has a file"""
_GIVE = (
    "\n\nThe client that had it goes on watching, and gets it back when this one leaves. You need the right to type."
)
_TOP = "\n\nKeys: up and down choose, k asks for a reason and takes the choice away, q quits."
_IMPORT = """

The result is a file for `asyncrevoke share --config`. Its comments, and standard error, name each line
that has no equivalent here. Needs: pip install 'asyncrevoke[import]'

exit status:
  0  something in it can be shared
  1  nothing can be shared, or a line cannot be understood: it is named"""
_WEB = """It prints an address with a login token.

Give the program of new terminals after --. Default: $SHELL. With --user-header: no terminals.
Needs: pip install 'asyncrevoke[web]'"""
_REVOKE = """

The report counts waits that were ended (kicked), and things that were open and are closed (released). It
does not count people: a client with the keyboard has three open things.

exit status:
  0  revoked
  1  not revoked: unknown name, permission denied, no server, no log, or no answer
  2  wrong usage
  3  revoked, but still in use after the timeout. Users and silent hosts are listed
  4  revoked, but something failed when it was released"""
_SETTINGS = {
    "baudrate": "bits per second",
    "databits": "data bits: 5, 6, 7 or 8",
    "parity": "none, even, odd, mark or space",
    "stopbits": "stop bits: 1, 1.5 or 2",
    "flow": "flow control: none, rtscts (hard) or xonxoff (soft)",
}
_PORT_MORE = "\nChanged settings are kept when the device is unplugged and returns. DTR and RTS are not.\nWhile the port is down, clients stay attached and are told why."
_PORTS_MORE = (
    "\nIt opens no port, because some boards restart when opened.\nOnly root sees the processes of other users."
)
_ACTIONS = [
    ("ls", "list the hosts that follow the log", ""),
    (
        "init",
        "begin an empty log, so that hosts can follow it",
        "Do it once, when you set the log up, or after all of it was lost.",
    ),
    ("watch", "show each new entry, until ctrl-C", ""),
    ("readmit", "lift a revocation", "Sessions that were taken away do not come back. Their users may log in again."),
]


class _Version(argparse.Action):
    def __call__(self, parser: argparse.ArgumentParser, *_: object) -> None:
        from importlib.metadata import version  # noqa: PLC0415  # who asks for something else need not wait for it

        sys.stdout.write(f"asyncrevoke {version('asyncrevoke')}\n")
        parser.exit()


def _port(command: Any) -> None:
    parser = command("port", "show the serial port of a share, or change it during use", _PORT_MORE)
    add = parser.add_argument
    add("name", metavar="NAME", help="share to show or change")
    _line(add, "as they are", "now. Default: as it is")
    add(
        "--break",
        dest="break_",
        nargs="?",
        type=_seconds,
        const=0.25,
        metavar="S",
        help="send a break. Default: 0.25 seconds",
    )
    add = parser.add_mutually_exclusive_group().add_argument
    add("--down", nargs="?", const="", metavar="REASON", help="close the port, so that another program can open it")
    add("--up", action="store_true", help="open the port again")
    add = parser.add_argument
    add("--json", action="store_true", help="one JSON record")
    add("--socket", metavar="PATH", default=os.environ.get("ASYNCREVOKE_SOCKET", ""), help=_SOCKET)


def _ports(command: Any) -> None:
    add = command(
        "ports", "list the serial ports of this machine, and the programs that use them", _PORTS_MORE
    ).add_argument
    add("--json", action="store_true", help="one JSON record per port")
    add("--socket", metavar="PATH", default=os.environ.get("ASYNCREVOKE_SOCKET", ""), help=_SOCKET)


def _line(add: Any, default: str, when: str) -> None:
    """The options of a serial line."""
    add(
        "--settings",
        metavar="115200n8",
        help=f"bits per second, parity, data bits and stop bits in one word. Default: {default}",
    )
    for name, text in _SETTINGS.items():
        add(f"--{name}", metavar="N" if "bits" in text else "WORD", help=text)
    for line in "dtr", "rts":
        add(f"--{line}", choices=("on", "off"), help=f"{line.upper()} {when}")


def _duration(text: str) -> float:
    with contextlib.suppress(ValueError, KeyError):
        if 0 < (seconds := float(text[:-1]) * {"s": 1, "m": 60, "h": 3600, "d": 86400}[text[-1:]]) < math.inf:
            return seconds
    raise argparse.ArgumentTypeError(f"{text!r} is not a duration. Give a number with s, m, h or d, such as 30d")


def _seconds(text: str) -> float:
    with contextlib.suppress(ValueError):
        if 0 <= (seconds := float(text)) <= 86400:
            return seconds
    raise argparse.ArgumentTypeError(f"{text!r} is not a number of seconds from 0 to 86400")
