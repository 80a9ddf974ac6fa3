"""What is shared by a console server, and how a file tells it."""

import difflib
import re
import tomllib
from dataclasses import dataclass, field, replace
from types import UnionType
from typing import Any, get_args, get_origin, get_type_hints

from .address import Address
from .settings import NAMES, Settings

_WORDS = {str: "text", int: "a number", bool: "true or false", tuple: "a list"}
RESTARTS = ("never", "on-failure", "always")


@dataclass(frozen=True, slots=True)
class Share:
    """What is shared.

    :ivar name: under which it is attached to
    :ivar command: a program with its arguments, on a pty of its own
    :ivar device: or a serial device, as `serial_device` finds it; neither: a loopback, which gives back what is typed
    :ivar restart: whether a program is started again when it has ended: never, on-failure or always
    :ivar log: the file to which all output is appended
    :ivar settings: of the device's line
    :ivar log_times: whether each line there begins with the time
    :ivar log_marks: whether it is said there who comes and goes, has the keyboard, is taken off, and the like
    :ivar log_size: at what size the file is begun anew, such as "10M"; left out: never
    :ivar log_keep: how many old files there are
    :ivar history: bytes of the last output that a client gets first
    :ivar dtr, rts: how these lines are whenever the device opens; None: as Linux makes them
    :ivar look: users ("bob") and groups ("@lab") that may attach and list it; None: the server's groups
    :ivar type: those that may have the keyboard; None: the server's groups, where they may look
    :ivar revoke: those that may take it, and who is attached, away
    :ivar listen: where it is reached over the network, as `Address.of` reads it
    :ivar listen_anywhere: also from other machines
    :ivar tls_certificate: the file of the server's certificate, and perhaps of its key
    :ivar tls_key: the file of that key
    :ivar tls_clients: the file of the authorities whose certificates clients must have
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
        if not is_name(self.name):
            raise ValueError(f"{self.name!r} is no name: give up to 64 printable characters, none of them / or *")
        if self.command and self.device:
            raise ValueError(f"{self.name!r} has a command and a device: give one of them")
        if not self.device and (self.settings, self.dtr, self.rts) != (Settings(), None, None):
            raise ValueError(f"{self.name!r} is no serial device: leave its settings and lines out")
        if not self.log and (self.log_times or self.log_marks or self.log_size):
            raise ValueError(f"{self.name!r} has no log: give its file, or leave the rest about it out")
        if self.log_size and not self.log_bytes:
            raise ValueError(f"{self.log_size!r} is no size of a log: give bytes, or such as 500k, 10M or 1G")
        if self.log_keep < 1:
            raise ValueError(f"{self.name!r} keeps {self.log_keep} old logs: keep 1 or more")
        self._check_network()
        if self.restart not in RESTARTS:
            raise ValueError(f"{self.name!r}: restart = {self.restart!r}: give one of {', '.join(RESTARTS)}")
        if self.device and self.restart != "never":
            raise ValueError(f"{self.name!r} is a device, which comes back anyway: leave restart out")

    def _check_network(self) -> None:
        for each in self.addresses:
            if not (each.loopback or self.listen_anywhere):
                raise ValueError(
                    f"{self.name!r}: {each} is open to other machines: say so by listen_anywhere, if you mean it"
                )
            if each.tls and not self.tls_certificate:
                raise ValueError(f"{self.name!r}: {each} needs a tls_certificate")
        if (self.tls_certificate or self.tls_key or self.tls_clients) and not any(each.tls for each in self.addresses):
            raise ValueError(f"{self.name!r} has files for TLS, and no address: listen on telnet+tls:// or tcp+tls://")

    @property
    def log_bytes(self) -> int:
        """The size at which its file is begun anew; 0 if it never is."""
        found = re.fullmatch(r"([0-9]{1,15})([kKmMgG]?)", self.log_size)
        return int(found[1]) << {"": 0, "k": 10, "m": 20, "g": 30}[found[2].lower()] if found else 0

    @property
    def addresses(self) -> list[Address]:
        """Where it is reached over the network.

        :raises ValueError: if one makes no sense
        """
        return [Address.of(each) for each in self.listen]

    def __str__(self) -> str:
        return " ".join(self.command) or self.device or "loopback"


def is_name(text: str) -> bool:
    """Whether a share, or a client, can have this name."""
    return text.isprintable() and 0 < len(text) <= 64 and "/" not in text and "*" not in text


@dataclass(frozen=True, slots=True)
class Socket:
    """A control socket through which shares are reached.

    :ivar group: that it is given to; left out: the server's
    :ivar mode: of its file; left out: as the group and the shares need it
    """

    path: str
    group: str = ""
    mode: int = 0

    def __post_init__(self) -> None:
        if not 0 <= self.mode <= 0o777:
            raise ValueError(f"{self.path!r}: a socket has no mode {self.mode:#o}: give such as 0o660")


@dataclass(frozen=True, slots=True)
class Config:
    """What a console server is to do.

    :ivar group: whose members may connect, look and type, where a share does not say otherwise
    :ivar sockets: none: one in the user's own folder
    """

    shares: tuple[Share, ...]
    group: str | None = None
    sockets: tuple[Socket, ...] = ()

    def __post_init__(self) -> None:
        for what in [share.name for share in self.shares], [socket.path for socket in self.sockets]:
            if twice := [each for each in what if what.count(each) > 1]:
                raise ValueError(f"{twice[0]!r} is there twice: choose another name")

    @property
    def names_people(self) -> bool:
        """Whether a share says who may do something, so that those may come whom no group of a socket has."""
        return any(share.look or share.type or share.revoke for share in self.shares)

    def complete_sockets(self) -> list[Socket]:
        """The sockets with all that they leave out. Where a share names people, everybody may connect: the server asks who."""
        complete = []
        for each in self.sockets:
            group = each.group or self.group or ""
            mode = each.mode or (0o666 if self.names_people else 0o660 if group else 0o600)
            complete.append(replace(each, group=group, mode=mode))
        return complete


def read_config(path: str) -> Config:
    """Read a TOML file: ``[share.lab]`` with the fields of `Share`, perhaps ``group`` and ``sockets``.

    :raises OSError: if it cannot be read
    :raises ValueError: naming the file and what is wrong there
    """
    with open(path, "rb") as file:  # noqa: PTH123
        try:
            config = tomllib.load(file)
            group, tables, sockets = config.pop("group", None), config.pop("share", {}), config.pop("sockets", [])
            if config or not isinstance(group, str | None) or not isinstance(tables, dict) or not tables:
                raise ValueError('give [share.NAME] for each, and at the most group = "NAME" and sockets = [...]')  # noqa: TRY301
            return Config(
                tuple(_share(name, given) for name, given in tables.items()),
                group,
                tuple(Socket(**_table(Socket, "sockets", given)) for given in sockets),
            )
        except (ValueError, TypeError, RecursionError) as exc:
            raise ValueError(f"{path}: {exc}") from exc


def _share(name: str, given: Any) -> Share:
    where, table = f"[share.{name}]", dict(given)
    try:
        line = Settings().changed({key: table.pop(key) for key in NAMES if key in table})
    except ValueError as exc:
        raise ValueError(f"{where}: {exc}") from exc
    if isinstance(table.get("listen"), str):
        table["listen"] = [table["listen"]]
    return Share(name, settings=line, **_table(Share, where, table))


def _table(kind: type[Share | Socket], where: str, given: Any) -> dict[str, Any]:
    """The fields of a table, each of its type.

    :raises ValueError, TypeError: if it is no such table
    """
    kinds = {}
    for name, hint in get_type_hints(kind).items():
        each = get_args(hint)[0] if isinstance(hint, UnionType) else hint  # or None, which a file cannot say
        kinds[name] = get_origin(each) or each
    table = {key: tuple(map(str, value)) if type(value) is list else value for key, value in dict(given).items()}
    for key, value in table.items():
        if key not in kinds:
            known = list(dict.fromkeys([*kinds, *(NAMES if kind is Share else ())]))
            meant = difflib.get_close_matches(key, known, 1) or known
            raise ValueError(f"{where}: there is no key {key!r}: did you mean {' or '.join(meant)}?")
        if type(value) is not kinds[key]:
            raise ValueError(f"{where}: {key} must be {_WORDS[kinds[key]]}, and not {value!r}")
    return table
