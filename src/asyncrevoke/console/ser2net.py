"""Reads a configuration of ser2net 4: YAML with additions of its own."""

from __future__ import annotations

import glob
import pathlib
import re
import shlex
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from ipaddress import ip_address
from typing import Any

import yaml

from .importer import Draft, Imported, source

_NONE = "there is no equivalent"
_ASKED = "clients on the network are not asked for a user: use tls_clients"
_DARK = "LEDs are not switched"
_TYPED = "no text is sent automatically: use asyncrevoke send"
#: Says more about some lines without an equivalent.
_WHY = {
    "rotator": "there are no pools of ports: connect to the shares themselves",
    "admin": "asyncrevoke ls, revoke and reload do this, over the control socket",
    "led": _DARK,
    "led-rx": _DARK,
    "led-tx": _DARK,
    "timeout": "silent clients are not disconnected",
    "banner": "no greeting is shown to clients",
    "openstr": _TYPED,
    "closestr": _TYPED,
    "connector-retry-time": "the server waits for a device all the time",
    "allowed-users": _ASKED,
    "authdir": _ASKED,
    "pamauth": _ASKED,
    "trace-write": "typed text is not logged, but its echo is",
    "hangup-when-done": "stty hupcl decides whether the lines drop when the device is closed",
    "nobreak": "a break that is on is left on",
}
_TRUE, _FALSE = ("true", "on", "yes", "1"), ("false", "off", "no", "0")
#: Options that ask for what is done anyway if they have these values. They need no note.
_NOTHING = {
    **dict.fromkeys(("mdns", "telnet-brk-on-sync", "no-con-to-acc", "wronly", "nobreak", "hangup-when-done"), _FALSE),
    **dict.fromkeys(("kickolduser", "no-acc-to-con"), _FALSE + _TRUE),
    "chardelay": _TRUE,
    "nouucplock": _TRUE,
    "rs485": ("off",),
    "timeout": ("0",),
}
_SERIAL = ("speed", "local", "xonxoff", "rtscts", "dtr", "rts", "nobreak", "hangup-when-done", "rs485", "wronly")
_USED = ("kickolduser", "remaddr", "max-connections", "no-acc-to-con", "key", "cert", "CA", "clientauth", "rfc2217")
_SPEED = re.compile(r"([1-9]\d{0,8})([neoms])?([5-8])?([12])?", re.IGNORECASE)
_LAYER = re.compile(r"\s*([\w-]+)\s*(?:\((.*)\))?\s*", re.DOTALL)
_QUOTED = r"""\\.|"(?:\\.|[^"\\])*"|'(?:\\.|[^'\\])*'"""
_PARTS = re.compile(rf"(?:{_QUOTED}|\((?:{_QUOTED}|[^()\\])*\)|[^,\\])+", re.DOTALL)


def read(path: str) -> Imported:
    """Read a file, and the files that it includes.

    :raises OSError: if a file cannot be read
    :raises ValueError: if a file has a fault. The message names the file and the line
    """
    return _Reader().read(path)


@dataclass(frozen=True, slots=True)
class _Node:
    """A part of a YAML file: a text, a list, or the pairs of a mapping. In these a name may come twice.

    :ivar where: the file and the line
    """

    where: str
    anchor: str
    value: str | list[_Node] | list[tuple[_Node, _Node]]

    @property
    def text(self) -> str:
        if not isinstance(self.value, str):
            raise ValueError(f"{self.where}: a text is expected here")  # noqa: TRY004  # it is the file that is wrong
        return self.value

    @property
    def pairs(self) -> list[tuple[str, _Node]]:
        if isinstance(self.value, str) or any(isinstance(each, _Node) for each in self.value):
            raise ValueError(f"{self.where}: names with values are expected here")
        return [(each[0].text, replace(each[1], where=each[0].where)) for each in self.value if isinstance(each, tuple)]


class _File:
    """The top level of a file, pair by pair. So an included file can be read in its place."""

    def __init__(self, path: str, anchors: dict[str, _Node]) -> None:
        self._path = path
        self._anchors = anchors
        self._text = source(path)
        self._events = yaml.parse(self._text, Loader=yaml.SafeLoader)

    def __iter__(self) -> Iterator[tuple[str, _Node]]:
        try:
            for event in self._events:
                if isinstance(event, yaml.MappingStartEvent):
                    while not isinstance(event := next(self._events), yaml.MappingEndEvent):
                        key = self._node(event)
                        yield key.text, replace(self._node(next(self._events)), where=key.where)
                elif isinstance(event, yaml.NodeEvent):
                    raise ValueError(f"{self._where(event.start_mark)}: names with values are expected here")  # noqa: TRY004
        except yaml.reader.ReaderError as error:
            line = self._text.count("\n", 0, error.position) + 1
            raise ValueError(f"{self._path}:{line}: {error.reason}") from error
        except yaml.MarkedYAMLError as error:
            raise ValueError(f"{self._where(error.problem_mark)}: {error.problem}") from error

    def _where(self, mark: Any) -> str:
        return f"{self._path}:{mark.line + 1}"

    def _node(self, event: Any) -> _Node:
        where = self._where(event.start_mark)
        if isinstance(event, yaml.AliasEvent):
            return replace(self._known(event.anchor or "", where), where=where)
        value: Any
        if isinstance(event, yaml.ScalarEvent):
            value = re.sub(r"\*\((\*|([^)]*)\))", lambda found: self._filled(found, where), event.value)
        elif isinstance(event, yaml.SequenceStartEvent):
            value = []
            while not isinstance(inner := next(self._events), yaml.SequenceEndEvent):
                value.append(self._node(inner))
        else:
            value = []
            while not isinstance(inner := next(self._events), yaml.MappingEndEvent):
                value.append((self._node(inner), self._node(next(self._events))))
        node = _Node(where, event.anchor or "", value)
        if event.anchor:
            self._anchors[event.anchor] = node
        return node

    def _filled(self, found: re.Match[str], where: str) -> str:
        return "*(" if found[1] == "*" else self._known(found[2], where).text

    def _known(self, name: str, where: str) -> _Node:
        if name not in self._anchors:
            raise ValueError(f"{where}: nothing above defines {name!r}")
        return self._anchors[name]


class _Reader:
    def __init__(self) -> None:
        self._imported = Imported()
        self._anchors: dict[str, _Node] = {}
        self._defaults: dict[tuple[str, str], str] = {}  # by class and name. The class "" stands for all
        self._devices: dict[str, str] = {}
        self._open: list[str] = []

    def read(self, path: str) -> Imported:
        self._open.append(path)
        for name, node in _File(path, self._anchors):
            if name == "include":
                pattern = str(pathlib.Path(path).parent / node.text)
                for each in sorted(glob.glob(pattern)) if glob.has_magic(pattern) else [pattern]:  # noqa: PTH207
                    if each in self._open:
                        raise ValueError(f"{node.where}: {each} includes itself")
                    self.read(each)
            elif name == "connection":
                self._connect(node)
            elif name in ("default", "delete_default"):
                self._set(node, gone=name != "default")
            elif name != "define":
                self._imported.note(node.where, f"{name} {node.anchor}".strip() + f": {_WHY.get(name, _NONE)}")
        self._open.remove(path)
        return self._imported

    def _set(self, node: _Node, *, gone: bool) -> None:
        fields = {name: each.text for name, each in node.pairs}
        if "name" not in fields:
            raise ValueError(f"{node.where}: this default has no name")
        key = fields.get("class", ""), fields["name"]
        if gone:
            self._defaults.pop(key, None)
        else:
            self._defaults[key] = fields.get("value", "")
        if key[1] not in _SERIAL + _USED:
            self._imported.note(node.where, f"default {key[1]}: {_WHY.get(key[1], _NONE)}")

    def _default(self, kind: str, name: str) -> str | None:
        return self._defaults.get((kind, name), self._defaults.get(("", name)))

    def _connect(self, node: _Node) -> None:
        share = Draft(node.anchor)
        connection = _Connection(self._imported, share, self._default, node)
        self._imported.add(node.where, share)
        connection.make()
        device = share.fields.get("device", "")
        if device and not share.off and (first := self._devices.setdefault(device, share.name)) != share.name:
            why = f"{first} shares {device} already, and clients can change its settings"
            self._imported.leave_out(node.where, why, share)


class _Connection:
    """Makes a share of a connection."""

    def __init__(
        self, imported: Imported, share: Draft, default: Callable[[str, str], str | None], node: _Node
    ) -> None:
        self._imported = imported
        self._share = share
        self._default = default
        self._where = node.where
        self._fields = dict(node.pairs)
        if not node.anchor or not {"accepter", "connector"} <= set(self._fields):
            name = f"connection {node.anchor}".strip()
            raise ValueError(f"{node.where}: {name} needs &NAME, an accepter and a connector")
        options = self._fields.get("options")
        self._options = [] if options is None or not options.value else options.pairs
        self._port = ""

    def make(self) -> None:
        self._connector(self._fields["connector"])
        self._accepter(self._fields["accepter"])
        self._traces()
        others = [
            pair for pair in self._fields.items() if pair[0] not in ("accepter", "connector", "options", "enable")
        ]
        for name, node in others + self._options:
            used = name in ("max-connections", "remaddr") or (name.startswith("trace-") and name != "trace-write")
            if not used and node.value and node.value not in _NOTHING.get(name, ()):
                self._note(node.where, name)
        if (enable := self._fields.get("enable")) is not None and enable.text in _FALSE:
            self._imported.leave_out(enable.where, "it is disabled", self._share)

    def _note(self, where: str, name: str, why: str = _NONE) -> None:
        self._imported.note(where, f"{name}: {_WHY.get(name, why)}", self._share)

    def _option(self, name: str) -> str:
        return dict(self._options)[name].text if name in dict(self._options) else self._default("ser2net", name) or ""

    def _said(self, name: str, else_: str) -> str:
        return next((node.where for each, node in self._options if each == name), else_)

    # -- where it is reached --

    def _accepter(self, node: _Node) -> None:
        parts = _PARTS.findall(node.text)
        layers = {}
        while parts and (layer := _LAYER.fullmatch(parts[0])) and layer[1] in ("telnet", "ssl", "tcp"):
            layers[layer[1]] = layer[2] or ""
            parts.pop(0)
        hosts = {"": ["0.0.0.0", "[::]"], "localhost": ["localhost"]}  # noqa: S104  # as in ser2net
        *host, self._port = [part.strip() for part in parts] or [""]
        try:
            name = "".join(host)
            found = hosts.get(name) or [f"[{name}]" if ip_address(name).version == 6 else name]
        except ValueError:
            found = []
        if "tcp" not in layers or not re.fullmatch(r"[1-9]\d{0,4}", self._port) or not found:
            self._note(node.where, node.text, f"{_NONE}: attach to the share")
            return
        if self._option("remaddr"):
            why = "clients cannot be chosen by address, so this share does not listen"
            self._note(self._said("remaddr", node.where), "remaddr", why)
            return
        kind = ("telnet" if "telnet" in layers else "tcp") + "+tls" * ("ssl" in layers)
        if "telnet" in layers and "rfc2217" not in layers["telnet"] and self._default("telnet", "rfc2217") not in _TRUE:
            self._note(node.where, "telnet", "clients can now change the settings of the port, by RFC 2217")
        if "ssl" in layers:
            self._tls(node.where, layers["ssl"])
        self._share.fields["listen"] = [f"{kind}://{each}:{self._port}{self._mode(node.where)}" for each in found]
        if name != "localhost" and not (name and ip_address(name).is_loopback):
            self._share.fields["listen_anywhere"] = True
            self._imported.note(node.where, f"{self._share.name} can be reached from other machines", self._share)

    def _mode(self, where: str) -> str:
        most = self._option("max-connections") or "1"
        if not re.fullmatch(r"[1-9]\d{0,3}", most):
            raise ValueError(f"{self._said('max-connections', where)}: {most!r} is not a number from 1 to 9999")
        if self._option("no-acc-to-con") in _TRUE:
            return f"?read-only&limit={most}"
        if takes := self._option("kickolduser") in _TRUE:
            self._note(
                self._said("kickolduser", where),
                "kickolduser",
                "a new client takes the keyboard, and the others go on watching",
            )
        if most != "1":
            why = "with kickolduser it does not apply" if takes else "one of them at a time has the keyboard"
            self._note(self._said("max-connections", where), "max-connections", why)
        return "?take" if takes else f"?limit={most}"

    def _tls(self, where: str, text: str) -> None:
        told = dict((each.strip().partition("=")[::2]) for each in _PARTS.findall(text))
        told = {name: value.strip("\"'") for name, value in told.items()}
        given = {name: told.get(name, self._default("ssl", name)) for name in ("cert", "key", "CA", "clientauth")}
        self._share.fields["tls_certificate"] = given["cert"] or "/etc/ser2net/ser2net.crt"
        self._share.fields["tls_key"] = given["key"] or "/etc/ser2net/ser2net.key"
        if given["clientauth"] is not None and given["clientauth"] not in _FALSE:
            if given["CA"]:
                self._share.fields["tls_clients"] = given["CA"]
            else:
                why = "clientauth cannot use a folder of certificates: put them into one file, and give it as CA"
                self._imported.leave_out(where, why, self._share)
        for name in set(told) - set(given):
            self._note(where, f"ssl {name}")

    # -- what is shared --

    def _connector(self, node: _Node) -> None:
        kind, *rest = _PARTS.findall(node.text) or [""]
        layer = _LAYER.fullmatch(kind)
        name, options = (layer[1], layer[2] or "") if layer else (kind.strip(), "")
        rest = [part.strip() for part in rest]
        if name == "telnet" and "rfc2217" in options and rest[:1] == ["tcp"]:
            name, options, rest = "rfc2217", "", rest[1:]
        if name == "serialdev" and any(rest[:1]):
            self._share.fields["device"] = rest[0]
            self._line(node.where, rest[1:], options)
        elif name in ("rfc2217", "tcp") and len(rest) > 1:
            self._share.fields["device"] = f"{'socket' if name == 'tcp' else name}://{rest[0]}:{rest[1]}"
            if name == "rfc2217":
                self._note(node.where, "settings", "9600n81 is set at the other end, unless you give other settings")
        elif name in ("pty", "exec") and rest:
            self._share.fields |= {"command": self._words(node.where, ",".join(rest)), "restart": "always"}
            self._note(node.where, name, "the program runs all the time, not only while a client is connected")
        elif name != "echo":  # a share without a device or program is a loopback, too
            self._imported.leave_out(node.where, f"{name} is neither a device nor a program", self._share)

    def _words(self, where: str, command: str) -> list[str]:
        try:
            return shlex.split(command)
        except ValueError as error:
            raise ValueError(f"{where}: {command}: {error}") from error

    def _line(self, where: str, given: list[str], options: str) -> None:
        fields, told = self._share.fields, self._told([*given, options])
        if "speed" in told:
            fields["settings"] = told.pop("speed")
        for name in "xonxoff", "rtscts":
            if told.pop(name, "false") in _TRUE:
                if "flow" in fields:
                    self._note(where, "xonxoff", "there is one way of flow control at a time, and rtscts is used")
                fields["flow"] = name
        for name in "dtr", "rts":
            if name in told:
                fields[name] = told.pop(name) in _TRUE
        if told.pop("local", "false") in _FALSE:
            self._note(where, "modem lines", "they are ignored, as with local")
        for name, value in told.items():
            if value not in _NOTHING.get(name, ()):
                self._note(where, name)

    def _told(self, given: list[str]) -> dict[str, str]:
        """Return the options of a serial line. Those that are given count more than the defaults."""
        defaults = {name: self._default("serialdev", name) for name in _SERIAL}
        words = [f"{name}={value}" for name, value in defaults.items() if value is not None]
        told = {}
        for word in filter(None, words + re.split(r"[,\s]+", ",".join(given))):
            name, _, value = word.partition("=")
            if speed := _SPEED.fullmatch(value if name == "speed" else word):
                rate, parity, bits, stop = speed.groups()
                told["speed"] = f"{rate}{(parity or 'n').lower()}{bits or 8}{stop or 1}"
            else:
                told[name] = value or "true"
        return told

    # -- its log --

    def _traces(self) -> None:
        given = {name: node for name, node in self._options if name.startswith("trace-") and node.text}
        on = {name for name, node in given.items() if node.text in _TRUE}
        for name in "trace-read", "trace-both":
            if node := given.get(name):
                if name == "trace-both":
                    self._note(node.where, name, _WHY["trace-write"])
                if (path := self._path(node)) is not None and self._share.fields.setdefault("log", path) != path:
                    self._note(node.where, name, "a share has one log")
        if "log" in self._share.fields:
            dumps = sorted(name for name in on if name.endswith("hexdump"))
            if on & {"trace-timestamp", "trace-read-timestamp", "trace-both-timestamp"}:
                self._share.fields |= {"log_marks": True, **({"log_times": True} if dumps else {})}
            if dumps:
                self._note(given[dumps[0]].where, dumps[0], "a log has the bytes as they come")

    def _path(self, node: _Node) -> str | None:
        device = self._share.fields.get("device", "").rpartition("/")[2]
        known = {"d": device, "o": self._share.name, "N": self._share.name, "p": self._port, "\\": "\\"}
        if set(re.findall(r"\\(.)", node.text)) <= set(known):
            return re.sub(r"\\(.)", lambda found: known[found[1]], node.text)
        self._note(node.where, node.text, "a log keeps its name: give log_size to start new ones")
        return None
