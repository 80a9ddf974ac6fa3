"""What is shared by a console server, and how a file tells it."""

import tomllib
from dataclasses import dataclass, field, fields
from typing import Any

from .settings import NAMES, Settings


@dataclass(frozen=True, slots=True)
class Share:
    """What is shared.

    :ivar name: under which it is attached to
    :ivar command: a program with its arguments, on a pty of its own
    :ivar device: or a serial device, as `serial_device` finds it; neither: a loopback, which gives back what is typed
    :ivar log: the file to which all output is appended
    :ivar settings: of the device's line
    :ivar history: bytes of the last output that a client gets first
    :ivar dtr, rts: how these lines are whenever the device opens; None: as Linux makes them
    """

    name: str
    command: tuple[str, ...] = ()
    device: str = ""
    settings: Settings = field(default_factory=Settings)
    log: str = ""
    history: int = 65536
    dtr: bool | None = None
    rts: bool | None = None

    def __post_init__(self) -> None:
        if not self.name.isprintable() or not 0 < len(self.name) <= 64 or "/" in self.name or "*" in self.name:
            raise ValueError(f"{self.name!r} is no name: give up to 64 printable characters, none of them / or *")
        if self.command and self.device:
            raise ValueError(f"{self.name!r} has a command and a device: give one of them")
        if not self.device and (self.settings, self.dtr, self.rts) != (Settings(), None, None):
            raise ValueError(f"{self.name!r} is no serial device: leave its settings and lines out")


def read_config(path: str) -> tuple[list[Share], str | None]:
    """Read shares and the name of their group from a TOML file: ``[share.lab]`` with the fields of `Share`.

    :raises OSError: if it cannot be read
    :raises ValueError: naming the file and what is wrong there
    """
    kinds = {each.name: bool if each.default is None else type(each.default) for each in fields(Share)[1:]}
    with open(path, "rb") as file:  # noqa: PTH123
        try:
            config = tomllib.load(file)
            group, tables = config.pop("group", None), config.pop("share", {})
            if config or not isinstance(group, str | None) or not isinstance(tables, dict) or not tables:
                raise ValueError('give [share.NAME] for each, and group = "NAME" at the most')  # noqa: TRY301
            shares = []
            for name, given in tables.items():
                table: dict[str, Any] = {
                    key: tuple(map(str, value)) if type(value) is list else value for key, value in dict(given).items()
                }
                try:
                    line = Settings().changed({key: table.pop(key) for key in NAMES if key in table})
                except ValueError as exc:
                    raise ValueError(f"[share.{name}]: {exc}") from exc
                for key, value in table.items():
                    if type(value) is not kinds.get(key):
                        known = ", ".join(dict.fromkeys([*kinds, *NAMES]))
                        raise ValueError(f"[share.{name}]: {key} = {value!r} is none of {known} of its kind")  # noqa: TRY301
                shares.append(Share(name, settings=line, **table))
        except (ValueError, TypeError) as exc:
            raise ValueError(f"{path}: {exc}") from exc
    return shares, group
