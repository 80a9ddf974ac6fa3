"""A request of the control protocol, with checks of its fields."""

from collections.abc import Awaitable, Callable, Mapping
from dataclasses import dataclass
from typing import Any

from asyncrevoke.lowlevel import Place

from .lines import Connection, ControlError
from .peer import Peer


@dataclass(frozen=True, slots=True)
class Request:
    """A request, as a command of the service gets it.

    :ivar peer: the peer that asks
    :ivar connection: the connection to the client, both ways
    """

    peer: Peer
    connection: Connection
    fields: Mapping[str, Any]

    def text(self, name: str, default: str | None = None) -> str:
        """Return a field that is text without control characters.

        :raises ControlError: "bad-request"
        """
        value = self.fields.get(name, default)
        if not isinstance(value, str) or not value.isprintable() or len(value) > 4096:
            raise ControlError(
                "bad-request", f"{name!r} must be text of up to 4096 characters, none of them a control character"
            )
        return value

    def path(self, default: str | None = None) -> str:
        """Return the field `path`. It is any text, because names may contain anything.

        :raises ControlError: "bad-request"
        """
        value = self.fields.get("path", default)
        if not isinstance(value, str):
            raise ControlError("bad-request", "'path' must be text, as 'list' tells it")
        return value

    def paths(self) -> list[str]:
        """Return the field `path`, which may also be a list of paths.

        :raises ControlError: "bad-request"
        """
        value = self.fields.get("path")
        if isinstance(value, list) and value and all(isinstance(each, str) for each in value):
            return value
        return [self.path()]

    def places(self) -> list[Place]:
        """Return the field `places`: where a path in the file system leads, as from `asyncrevoke.places`. Default: no places.

        :raises ControlError: "bad-request"
        """
        found: list[Place] = []
        value = self.fields.get("places", [])
        for each in value if isinstance(value, list) else [value]:
            match each:
                case ["c" | "b" as letter, number] if type(number) is int:
                    found.append((letter, number))
                case ["i", device, number] if type(device) is type(number) is int:
                    found.append(("i", device, number))
                case _:
                    raise ControlError(
                        "bad-request",
                        '\'places\' must be a list of ["c", number], ["b", number], ["i", device, number]',
                    )
        return found

    def number(self, name: str, default: float, most: float) -> float:
        """Return a field that is a number from 0 to `most`. null stands for `most`.

        :raises ControlError: "bad-request"
        """
        value = self.fields.get(name, default)
        if value is None:
            return most
        if isinstance(value, bool) or not isinstance(value, int | float) or not 0 <= value <= most:
            raise ControlError("bad-request", f"{name!r} must be a number from 0 to {most:g}")
        return float(value)

    def flag(self, name: str, default: bool = False) -> bool:
        """Return a field that is true or false.

        :raises ControlError: "bad-request"
        """
        value = self.fields.get(name, default)
        if not isinstance(value, bool):
            raise ControlError("bad-request", f"{name!r} must be true or false")
        return value


#: Answers a request. It may send records, and returns the fields of the last line.
Command = Callable[[Request], Awaitable[Mapping[str, Any]]]
