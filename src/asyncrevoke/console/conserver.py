"""Reads a configuration of conserver, conserver.cf."""

from __future__ import annotations

import pathlib
import re
import socket
from collections.abc import Iterable, Iterator
from dataclasses import dataclass

from .importer import Draft, Imported, source

_DEPTH = 10  # how deep files may include each other
_PIECE = re.compile(
    r"""(?<![^\n])\#include[ \t](?P<include>[^\n]*) | \#[^\n]* | (?P<token>[{};])
    | \\(?P<one>.) | "(?P<many>(?:\\"|[^"])*)" | (?P<plain>[^\\"{};#]+) | (?P<open>.)""",
    re.DOTALL | re.VERBOSE,
)
_NONE = "there is no equivalent"
_TYPED = "no text is sent automatically: use asyncrevoke send"
_NETWORK = "users of this machine come by the control socket. To let in others, give listen"
_BREAK = "a break is always a real one: use asyncrevoke send for a text"
#: Says more about some lines without an equivalent.
_WHY = {
    "motd": "no greeting is shown to clients",
    "idlestring": _TYPED,
    "idletimeout": _TYPED,
    "initcmd": "no program is run when a device comes",
    "break": _BREAK,
    "breaklist": _BREAK,
    "string": _BREAK,
    "allowed": _NETWORK,
    "trusted": _NETWORK,
    "rejected": _NETWORK,
    "passwdfile": "there are no passwords: the kernel tells which user connects",
    "defaultaccess": _NETWORK,
    "primaryport": "the control socket is a file, without a TCP port",
    "secondaryport": "the control socket is a file, without a TCP port",
    "logfile": "the server logs to standard error, from where the journal takes it",
}
_LISTS = ("rw", "ro", "options")
_USED = (
    *_LISTS,
    *("type", "device", "devicesubst", "baud", "parity", "exec", "execsubst", "execrunas", "host", "port", "portbase"),
    *(
        "portinc",
        "protocol",
        "uds",
        "udssubst",
        "replstring",
        "initsubst",
        "logfile",
        "logfilemax",
        "timestamp",
        "master",
    ),
)
#: Options of a serial line, which have an equivalent; and those that are on by default. Changes of any others are noted.
_LINE, _ON = {"ixon", "ixoff", "crtscts", "cstopb"}, {"ixon", "ixoff", "login", "autoreinit", "reinitoncc"}
_PARITY = {"none": "n8", "even": "e7", "odd": "o7", "mark": "m7", "space": "s7"}  # as in the source of conserver
_BASES = {"d": 10, "x": 16, "X": 16, "a": 36, "A": 36}
_DIGITS = "0123456789abcdefghijklmnopqrstuvwxyz"


def read(path: str) -> Imported:
    """Read a file, and the files that it includes.

    :raises OSError: if a file cannot be read
    :raises ValueError: if a file has a fault. The message names the file and the line
    """
    return _Reader().read(path)


@dataclass(frozen=True, slots=True)
class _Item:
    """A keyword and its value, or the kind and the name of a block.

    :ivar where: the file and the line
    """

    where: str
    key: str
    text: str

    @property
    def words(self) -> list[str]:
        return [word for word in re.split(r"[,\s]+", self.text) if word.strip("!")]


def _items(path: str, depth: int = 1) -> Iterator[tuple[_Item, str]]:
    """Yield each item, with the brace or semicolon behind it. Included files are read in their place."""
    if depth > _DEPTH:
        raise ValueError(f"{path}: files include each other more than {_DEPTH} deep")
    text, whole, mask, begin = source(path), "", "", 0  # the mask is the whole, with an x for each quoted character
    for found in _PIECE.finditer(text):
        kind = found.lastgroup
        if not mask.strip():
            begin = found.start() + len(found[0]) - len(found[0].lstrip())
        where = f"{path}:{text.count(chr(10), 0, begin) + 1}"
        if kind == "include":
            yield from _items(str(pathlib.Path(path).parent / found["include"].strip()), depth + 1)
        elif kind == "token":
            split = re.fullmatch(r"\s*(\S*)\s*(.*?)\s*", mask, re.DOTALL)
            assert split
            yield _Item(where, whole[slice(*split.span(1))], whole[slice(*split.span(2))]), found["token"]
            whole = mask = ""
        elif kind == "open":
            raise ValueError(f"{path}:{text.count(chr(10), 0, found.start()) + 1}: this quote has no end")
        elif kind is not None:
            new = found[kind].replace('\\"', '"') if kind == "many" else found[kind]
            whole += new
            mask += new if kind == "plain" else "x" * len(new)
    if mask.strip():
        raise ValueError(f"{where}: {whole.strip().partition(' ')[0]}: the file ends before this does")


def _blocks(path: str) -> Iterator[tuple[_Item, list[_Item]]]:
    """Yield the head of each block, and the items in it."""
    head: _Item | None = None
    inside: list[_Item] = []
    for item, end in _items(path):
        if (head is None) != (end == "{"):
            raise ValueError(f"{item.where}: {end} is out of place: look for a missing {{ or }} before it")
        if head is None:
            head, inside = item, []
        elif end == ";":
            inside.append(item)
        elif item.key:
            raise ValueError(f"{item.where}: {item.key}: there is no ; after it")
        else:
            yield head, inside
            head = None
    if head is not None:
        raise ValueError(f"{head.where}: {head.key} {head.text}: the file ends before this does")


class _Reader:
    def __init__(self) -> None:
        self._imported = Imported()
        self._defaults: dict[str, dict[str, list[_Item]]] = {"*": {}}
        self._groups: dict[str, list[str]] = {}
        self._admins: list[str] = []

    def read(self, path: str) -> Imported:
        for head, items in _blocks(path):
            if head.key == "default":
                self._defaults[head.text] = self._told(items, {})
            elif head.key == "console":
                told = self._told(items, self._defaults["*"])
                self._imported.add(head.where, _Console(self._imported, head, told, self._groups).make())
            elif head.key == "group":
                self._groups[head.text] = [word for item in items for word in _expanded(item.words, self._groups)]
            else:
                for item in items:
                    if item.key == "admin":
                        self._admins += _expanded(item.words, self._groups)
                        self._imported.note(item.where, "admin: who may revoke may also look")
                    else:
                        why = _WHY.get(item.key, _NONE)
                        self._imported.note(item.where, f"{head.key} {head.text}: {item.key}: {why}")
        if admins := _people(self._admins)[0]:
            for share in self._imported.shares:
                share.fields["revoke"] = admins
        return self._imported

    def _told(self, items: Iterable[_Item], before: dict[str, list[_Item]]) -> dict[str, list[_Item]]:
        """Return the items of a console. Of each keyword the last item counts, but all items of a list."""
        told = dict(before)
        for item in items:
            if item.key != "include":
                told[item.key] = [*(told.get(item.key, []) if item.key in _LISTS and item.text else []), item]
            elif item.text not in self._defaults:
                raise ValueError(f"{item.where}: nothing above defines the default {item.text!r}")
            else:
                for key, given in self._defaults[item.text].items():
                    told[key] = [*(told.get(key, []) if key in _LISTS else []), *given]
        return told


def _expanded(words: list[str], groups: dict[str, list[str]]) -> list[str]:
    """Return users, with a group replaced by its users. An exclamation mark before a group turns each of them around."""
    found = []
    for word in words:
        name = word.removeprefix("!")
        for each in groups.get(name, [name]):
            found.append(each if name == word else each.removeprefix("!") if each.startswith("!") else f"!{each}")  # noqa: PERF401
    return found


def _people(words: list[str]) -> tuple[list[str], list[str], bool]:
    """Return who may, who may not, and whether all others may.

    The last word about a user counts. A word about all voids everything before it.
    """
    may: dict[str, bool] = {}
    for word in reversed(words):
        name = word.removeprefix("!")
        may.setdefault(name, name == word)
        if name == "*":
            break
    everybody = may.pop("*", False)
    named = list(reversed(may))
    return [each for each in named if may[each]], [each for each in named if not may[each]], everybody


class _Console:
    """Makes a share of a console."""

    def __init__(
        self, imported: Imported, head: _Item, told: dict[str, list[_Item]], groups: dict[str, list[str]]
    ) -> None:
        self._imported = imported
        self._told = told
        self._groups = groups
        self._head = head
        self._share = Draft(head.text)
        self._fields = self._share.fields
        self._on = dict.fromkeys(_ON, True)

    def _item(self, key: str, default: str = "") -> _Item:
        return self._told[key][-1] if key in self._told else _Item(self._head.where, key, default)

    def _note(self, item: _Item, why: str) -> None:
        self._imported.note(item.where, f"{item.key}: {why}", self._share)

    def _leave_out(self, item: _Item, why: str) -> None:
        self._imported.leave_out(item.where, why, self._share)

    def make(self) -> Draft:
        name, kind = self._share.name, self._item("type")
        if not name.isprintable() or not 0 < len(name) <= 64 or "/" in name or "*" in name:
            self._leave_out(self._head, "this is not a name: give 1 to 64 printable characters, without / and *")
        if kind.text not in ("device", "exec", "host", "uds"):
            self._leave_out(kind, f"{kind.text} is neither a device nor a program" if kind.text else "it has no type")
        else:
            self._options(of_line=kind.text == "device")
            getattr(self, f"make_{kind.text}")()
            if "command" in self._fields and self._on["autoreinit"]:
                self._fields["restart"] = "always"
        master = self._item("master", "localhost")
        if master.text not in ("localhost", "127.0.0.1", "::1", socket.gethostname()):
            self._leave_out(master, f"its master is another machine, {master.text}")
        self._log()
        self._rights()
        for key, items in self._told.items():
            for item in items if key not in _USED else ():
                if item.text:
                    self._note(item, _WHY.get(key, _NONE))
        return self._share

    # -- what is shared --

    def _options(self, *, of_line: bool) -> None:
        for item in self._told.get("options", ()):
            for word in item.words:
                name = word.removeprefix("!")
                self._on[name] = name == word
                if not (of_line and name in _LINE) and self._on[name] != (name in _ON):
                    self._note(item, f"{word}: {_NONE}")

    def make_device(self) -> None:
        self._fields["device"] = self._needed("device")
        on = self._on
        parity = self._item("parity", "none")
        if parity.text not in _PARITY:
            raise ValueError(f"{parity.where}: parity {parity.text!r}: give one of {', '.join(_PARITY)}")
        stop = 2 if on.get("cstopb") else 1
        self._fields["settings"] = f"{self._number('baud', 9600)}{_PARITY[parity.text]}{stop}"
        if on.get("crtscts"):
            self._fields["flow"] = "rtscts"
        elif on["ixon"] and on["ixoff"]:
            self._fields["flow"] = "xonxoff"
        if on["ixon"] + on["ixoff"] > 2 * (self._fields.get("flow") == "xonxoff"):
            self._note(
                self._item("options"),
                f"flow control is {self._fields.get('flow', 'none')} here, without ixon and ixoff",
            )

    def make_exec(self) -> None:
        given = self._substituted("exec")
        self._fields["command"] = ["/bin/sh", "-ce", given] if given else ["/bin/sh", "-i"]
        user, _, group = self._item("execrunas").text.partition(":")
        if user:
            runs = ["runuser", "-u", user, *(["-g", group] if group else []), "--"]
            self._fields["command"] = [*runs, *self._fields["command"]]
        elif group:
            self._leave_out(self._item("execrunas"), "no program is run as another group alone: give a user, too")

    def make_host(self) -> None:
        host, _ = self._needed("host"), self._needed("port")
        if self._item("protocol", "telnet").text == "raw":
            self._fields["device"] = f"socket://{host}:{self._port()}"
        else:
            self._fields["command"] = ["telnet", host, str(self._port())]
            self._note(self._item("host"), "the program telnet connects to it, and must be installed")

    def make_uds(self) -> None:
        self._fields["command"] = ["socat", "STDIO,raw,echo=0", f"UNIX-CONNECT:{self._needed('uds')}"]
        self._note(self._item("uds"), "the program socat connects to it, and must be installed")

    def _needed(self, key: str) -> str:
        if not self._item(key).text:
            raise ValueError(f"{self._head.where}: console {self._head.text} has no {key}")
        return self._substituted(key)

    def _number(self, key: str, default: int) -> int:
        item = self._item(key, str(default))
        if re.fullmatch({"portbase": r"-?\d+", "baud": r"[1-9]\d{0,8}"}.get(key, r"\d+"), item.text):
            return int(item.text)
        try:
            return socket.getservbyname(item.text if key == "port" else "")
        except OSError:
            raise ValueError(f"{item.where}: {key} {item.text!r} is not a number") from None

    def _port(self) -> int:
        port = self._number("portbase", 0) + self._number("portinc", 1) * self._number("port", 0)
        if not 0 <= port < 65536:
            raise ValueError(
                f"{self._item('port').where}: with portbase and portinc this is port {port}: give one from 0 to 65535"
            )
        return port

    def _substituted(self, key: str) -> str:
        """Return the value of a keyword, after the substitutions that its "subst" asks for."""
        item, rule = self._item(key), self._item(f"{key}subst")
        given = dict(each.partition("=")[::2] for each in rule.words)
        if bad := [each for each in given.values() if not re.fullmatch(r"[chr]\d*s|[bpP]\d*[dxXaA]", each)]:
            raise ValueError(f"{rule.where}: {rule.key}: {bad[0]!r} is not a substitution")
        return "".join(self._replaced(given[char]) if char in given else char for char in item.text)

    def _replaced(self, rule: str) -> str:
        what, width, form = rule[0], rule[1:-1], rule[-1]
        if form == "s":
            texts = {"c": self._head.text, "h": self._item("host").text, "r": self._item("replstring").text}
            return texts[what].rjust(int(width or 0))
        number = self._port() if what == "P" else self._number("baud" if what == "b" else "port", 0)
        digits = ""
        while number or not digits:
            number, digit = divmod(number, _BASES[form])
            digits = _DIGITS[digit] + digits
        return (digits.upper() if form in "XA" else digits).rjust(int(width or 0), "0" if width[:1] == "0" else " ")

    # -- its log and its rights --

    def _log(self) -> None:
        path, times, most = self._item("logfile"), self._item("timestamp"), self._item("logfilemax")
        if path.text in ("", "/dev/null"):
            return
        self._fields["log"] = path.text.replace("&", self._share.name)
        if not re.fullmatch(r"\d*[km]?", most.text):
            raise ValueError(
                f"{most.where}: logfilemax {most.text!r} is not a size: give bytes, or such as 500k or 10m"
            )
        if most.text.strip("0"):
            self._fields["log_size"] = most.text.replace("m", "M")
        told = re.fullmatch(r"(?:(\d+)([mhdl]?))?([ab]*)", times.text)
        if told is None:
            raise ValueError(f"{times.where}: timestamp {times.text!r}: give such as 5m, 1h, 1d or 1lab")
        if told[3]:
            self._fields["log_marks"] = True
        if int(told[1] or 0):
            self._fields["log_times"] = True
            if (told[1], told[2]) != ("1", "l"):
                self._note(times, "each line has its time, and there are no marks at intervals")

    def _rights(self) -> None:
        rw, ro = (
            [word for item in self._told.get(key, ()) for word in _expanded(item.words, self._groups)]
            for key in ("rw", "ro")
        )
        may_type, not_type, all_type = _people(rw)
        may_look, not_look, all_look = _people(ro)
        if not all_type or not_type:
            self._fields["type"] = may_type
        if not (all_type or all_look) or not_type or not_look:
            self._fields["look"] = list(dict.fromkeys(may_type + may_look))
        for key, everybody, refused in ("rw", all_type, not_type), ("ro", all_look, not_look):
            if everybody and refused:
                self._note(self._item(key), f"all but {', '.join(refused)}: give the names of those who may")
            elif everybody:
                why = 'these are the members of the server\'s group: give group = "NAME"'
                self._imported.note(self._item(key).where, f"{key} *: {why}")
