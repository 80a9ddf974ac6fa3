"""The shares of a console server, and the file that lists them."""

import difflib
import re
import tomllib
from collections.abc import Iterator
from dataclasses import dataclass, field, replace
from types import UnionType
from typing import Any, TypeVar, get_args, get_origin, get_type_hints

from .address import Address
from .fault import Faults, noted
from .settings import NAMES, Settings

T = TypeVar("T")
_WORDS = {str: "text", int: "a number", bool: "true or false", tuple: "a list", list: "a list", dict: "a table"}
RESTARTS = ("never", "on-failure", "always")


@dataclass(frozen=True, slots=True)
class Share:
    """A share.

    :ivar name: name that clients attach to
    :ivar command: program with its arguments, on a pty of its own
    :ivar device: serial device, as `serial_device` finds it. Without a device or command, input is echoed back
    :ivar restart: whether an ended program is started again: never, on-failure or always
    :ivar log: file that all output is appended to
    :ivar settings: settings of the device's line
    :ivar log_times: whether each line of the log begins with the time
    :ivar log_marks: whether the log says who comes, goes, gets the keyboard, is taken off, and the like
    :ivar log_size: size at which a new log is started, such as "10M". Default: never
    :ivar log_keep: number of old logs to keep
    :ivar history: bytes of earlier output that a new client gets first
    :ivar dtr, rts: state of these lines whenever the device opens. None: as Linux sets them
    :ivar look: users ("bob") and groups ("@lab") that may attach and list it. None: the groups of the server
    :ivar type: users and groups that may have the keyboard. None: the groups of the server, if they may look
    :ivar revoke: users and groups that may take away the share and its clients
    :ivar listen: addresses on the network, as `Address.of` reads them
    :ivar listen_anywhere: whether other machines may reach those addresses
    :ivar tls_certificate: file of the server's certificate, and perhaps its key
    :ivar tls_key: file of that key
    :ivar tls_clients: file of the authorities. Every client needs a certificate from one of them
    """

    name: str
    command: tuple[str, ...] = ()
    device: str = ""
    settings: Settings = field(default_factory=Settings)
    log: str = ""
    log_times: bool = False
    log_marks: bool = False
    log_size: str = ""
    log_keep: int = 5
    history: int = 65536
    dtr: bool | None = None
    rts: bool | None = None
    restart: str = "never"
    look: tuple[str, ...] | None = None
    type: tuple[str, ...] | None = None
    revoke: tuple[str, ...] = ()
    listen: tuple[str, ...] = ()
    listen_anywhere: bool = False
    tls_certificate: str = ""
    tls_key: str = ""
    tls_clients: str = ""

    def __post_init__(self) -> None:
        if faults := [*self._faults(), *self._network_faults()]:
            raise Faults(*faults)

    def _faults(self) -> Iterator[str]:
        if not is_name(self.name):
            yield f"{self.name!r} is not a name: give 1 to 64 printable characters, without / and *"
        if self.command and self.device:
            yield f"{self.name!r} has a command and a device: give one of them"
        if not self.device and (self.settings, self.dtr, self.rts) != (Settings(), None, None):
            yield f"{self.name!r} is not a serial device: remove its settings and lines"
        if not self.log and (self.log_times or self.log_marks or self.log_size):
            yield f"{self.name!r} has no log: give its file, or remove the other log options"
        if self.log_size and not self.log_bytes:
            yield f"{self.log_size!r} is not a log size: give bytes, or a size such as 500k, 10M or 1G"
        if self.log_keep < 1:
            yield f"{self.name!r} keeps {self.log_keep} old logs: keep 1 or more"
        if self.restart not in RESTARTS:
            yield f"{self.name!r}: restart = {self.restart!r}: give one of {', '.join(RESTARTS)}"
        elif self.device and self.restart != "never":
            yield f"{self.name!r} is a device, which comes back by itself: remove restart"

    def _network_faults(self) -> Iterator[str]:
        try:
            addresses = self.addresses
        except Faults as faults:
            yield from faults.args
            return
        for each in addresses:
            if not (each.loopback or self.listen_anywhere):
                yield f"{self.name!r}: {each} is open to other machines. Set listen_anywhere if you mean it"
            if each.tls and not self.tls_certificate:
                yield f"{self.name!r}: {each} needs a tls_certificate"
        if (self.tls_certificate or self.tls_key or self.tls_clients) and not any(each.tls for each in addresses):
            yield f"{self.name!r} has files for TLS, and no address: listen on telnet+tls:// or tcp+tls://"

    @property
    def log_bytes(self) -> int:
        """Size at which a new log is started. 0: never."""
        found = re.fullmatch(r"([0-9]{1,15})([kKmMgG]?)", self.log_size)
        return int(found[1]) << {"": 0, "k": 10, "m": 20, "g": 30}[found[2].lower()] if found else 0

    @property
    def addresses(self) -> list[Address]:
        """The addresses on the network.

        :raises Faults: naming what is not an address
        """
        faults: list[str] = []
        addresses = []
        for each in self.listen:
            with noted(faults, "listen"):
                addresses.append(Address.of(each))
        if faults:
            raise Faults(*faults)
        return addresses

    def __str__(self) -> str:
        return " ".join(self.command) or self.device or "loopback"


def is_name(text: str) -> bool:
    """Whether a share, or a client, can have this name."""
    return text.isprintable() and 0 < len(text) <= 64 and "/" not in text and "*" not in text


@dataclass(frozen=True, slots=True)
class Socket:
    """A control socket that clients reach shares through.

    :ivar group: group of its file. Default: the group of the server
    :ivar mode: mode of its file. Default: as the group and the shares need it
    """

    path: str = ""
    group: str = ""
    mode: int = 0

    def __post_init__(self) -> None:
        if not self.path:
            raise ValueError("give each a path")
        if not 0 <= self.mode <= 0o777:
            raise ValueError(f"{self.path!r}: a socket has no mode {self.mode:#o}: give such as 0o660")


@dataclass(frozen=True, slots=True)
class Config:
    """The configuration of a console server.

    :ivar group: group whose members may connect, look and type, unless a share says otherwise
    :ivar sockets: sockets to serve at. Default: one in the user's own folder
    """

    shares: tuple[Share, ...]
    group: str | None = None
    sockets: tuple[Socket, ...] = ()

    def __post_init__(self) -> None:
        for what in [share.name for share in self.shares], [socket.path for socket in self.sockets]:
            if twice := [each for each in what if what.count(each) > 1]:
                raise ValueError(f"{twice[0]!r} is there twice: choose another name")
        devices: dict[str, str] = {}
        for share in self.shares:  # a far end, with a url, may take several connections
            if (
                share.device
                and "://" not in share.device
                and devices.setdefault(share.device, share.name) != share.name
            ):
                raise ValueError(
                    f"{share.device!r} is the device of {devices[share.device]!r} and {share.name!r}: share it once"
                )

    @property
    def names_people(self) -> bool:
        """Whether a share names people. They may connect, even if they are not in the group of a socket."""
        return any(share.look or share.type or share.revoke for share in self.shares)

    def complete_sockets(self) -> list[Socket]:
        """Return the sockets with their defaults. If a share names people, everybody may connect, and the server checks who."""
        complete = []
        for each in self.sockets:
            group = each.group or self.group or ""
            mode = each.mode or (0o666 if self.names_people else 0o660 if group else 0o600)
            complete.append(replace(each, group=group, mode=mode))
        return complete


def read_config(path: str) -> Config:
    """Read a TOML file: ``[share.lab]`` with the fields of `Share`, perhaps ``group`` and ``sockets``.

    :raises OSError: if it cannot be read
    :raises Faults: naming the file, and all that is wrong there
    """
    config, faults = parse_config(path)
    if faults:
        raise Faults(*faults)
    return config


@dataclass(frozen=True, slots=True)
class _File:
    """The keys of a file."""

    group: str | None = None
    share: dict[str, Any] = field(default_factory=dict)
    sockets: list[Any] = field(default_factory=list)


def parse_config(path: str) -> tuple[Config, list[str]]:
    """Return what of a file makes sense, and a line for each of its faults.

    :raises OSError: if it cannot be read
    """
    faults: list[str] = []
    config, shares, sockets = Config(()), list[Share](), list[Socket]()
    with open(path, "rb") as opened, noted(faults):  # noqa: PTH123
        file = _File(**_table(_File, tomllib.load(opened), faults))
        if not file.share:
            faults.append("nothing is shared: give [share.NAME] for each share")
        for name, given in file.share.items():
            with noted(faults, f"[share.{name}]"):
                shares.append(_share(name, given))
        for given in file.sockets:
            with noted(faults, "sockets"):
                sockets.append(_made(Socket, given, []))
        config = Config(tuple(shares), file.group, tuple(sockets))
    return config, [f"{path}: {each}" for each in faults]


def _share(name: str, given: Any) -> Share:
    faults: list[str] = []
    line, table = Settings(), _dict(given)
    for key in NAMES:
        if key in table:
            with noted(faults):
                line = line.changed({key: table.pop(key)})
    if isinstance(table.get("listen"), str):
        table["listen"] = [table["listen"]]
    return _made(Share, table, faults, name=name, settings=line)


def _made(kind: type[T], given: Any, faults: list[str], **more: Any) -> T:
    """Make one of a table.

    :param faults: of the table, so far
    :raises Faults: if the table has any
    """
    fields = _table(kind, given, faults)
    if faults:
        raise Faults(*faults)
    return kind(**more, **fields)


def _table(kind: type[Any], given: Any, faults: list[str]) -> dict[str, Any]:
    """Return the fields of a table, each of its type. The others are noted as faults."""
    kinds = {}
    for name, hint in get_type_hints(kind).items():
        each = get_args(hint)[0] if isinstance(hint, UnionType) else hint  # or None, which a file cannot say
        kinds[name] = get_origin(each) or each
    table = {}
    for key, value in _dict(given).items():
        if key not in kinds:
            known = list(dict.fromkeys([*kinds, *(NAMES if kind is Share else ())]))
            meant = difflib.get_close_matches(key, known, 1) or known
            faults.append(f"there is no key {key!r}: did you mean {' or '.join(meant)}?")
        elif type(value) is list and kinds[key] is tuple:
            table[key] = tuple(map(str, value))
        elif type(value) is kinds[key]:
            table[key] = value
        else:
            faults.append(f"{key} must be {_WORDS[kinds[key]]}, and not {value!r}")
    return table


def _dict(given: object) -> dict[str, Any]:
    if isinstance(given, dict):
        return dict(given)
    raise ValueError(f"give a table, and not {given!r}")
