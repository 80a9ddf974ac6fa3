"""The settings of a serial line. It reads the forms of ser2net, tio, minicom and the kernel, and prints 115200n8."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass, fields, replace
from typing import Any

#: The values of each setting, in all spellings.
_WORDS: dict[str, dict[str, object]] = {
    "databits": {"5": 5, "6": 6, "7": 7, "8": 8},
    "parity": {way: word for word in ("none", "even", "odd", "mark", "space") for way in (word, word[0])},
    "stopbits": {"1": 1, "1.5": 1.5, "2": 2},
    "flow": {"none": "none", "rtscts": "rtscts", "hard": "rtscts", "xonxoff": "xonxoff", "soft": "xonxoff"},
}
_STOPBITS, _FLOW = r"(?P<stopbits>1\.5|1|2)?", r"(?:[ ,]+(?P<flow>[a-z]+))?"
_TEXTS = [
    re.compile(rf"(?P<baudrate>\d+){_FLOW}"),
    re.compile(rf"(?P<baudrate>\d+)[ ,/]?(?P<parity>[neoms])(?P<databits>[5-8]){_STOPBITS}{_FLOW}"),
    re.compile(rf"(?P<baudrate>\d+)[ ,/](?P<databits>[5-8])(?P<parity>[neoms]){_STOPBITS}{_FLOW}"),
]


@dataclass(frozen=True, slots=True)
class Settings:
    """The settings of a serial line.

    :ivar parity: none, even, odd, mark or space
    :ivar flow: flow control: none, rtscts or xonxoff
    """

    baudrate: int = 9600
    databits: int = 8
    parity: str = "none"
    stopbits: float = 1
    flow: str = "none"

    def __str__(self) -> str:
        stopbits = "" if self.stopbits == 1 else f"{self.stopbits:g}"
        flow = "" if self.flow == "none" else f" {self.flow}"
        return f"{self.baudrate}{self.parity[0]}{self.databits}{stopbits}{flow}"

    def changed(self, given: Mapping[str, object]) -> Settings:
        """Return these settings with changes, by name or by a text such as 9600e7 as "settings". None changes nothing.

        :raises ValueError: if a value is wrong. The message gives right ones
        """
        told = {name: each for name, each in given.items() if each is not None}
        if (text := told.pop("settings", None)) is not None:
            told = {**_read(str(text)), **told}
        return replace(self, **{name: _value(name, each) for name, each in told.items()})

    def options(self) -> dict[str, Any]:
        """Return them as options of `open_serial`."""
        return {
            "baudrate": self.baudrate,
            "bytesize": self.databits,
            "parity": self.parity[0].upper(),
            "stopbits": self.stopbits,
            "rtscts": self.flow == "rtscts",
            "xonxoff": self.flow == "xonxoff",
        }


#: The names that `Settings.changed` knows.
NAMES = ("settings", *(each.name for each in fields(Settings)))
SWITCH = {"on": True, "off": False}


def _read(text: str) -> dict[str, str]:
    for pattern in _TEXTS:
        if found := pattern.fullmatch(text.strip().lower()):
            told = {name: each for name, each in found.groupdict().items() if each}
            return {"stopbits": "1", **told} if "parity" in told else told
    raise ValueError(
        f"settings = {text!r}: give bits per second, parity and bits, such as 115200n8, or '9600e7 rtscts'"
    )


def _value(name: str, given: object) -> Any:
    text = str(given).lower()
    if name == "baudrate":
        if text.isascii() and text.isdecimal() and 0 < int(text) < 2**31:
            return int(text)
        raise ValueError(f"baudrate = {given!r}: give bits per second, such as 115200")
    if name not in _WORDS:
        raise ValueError(f"{name!r} is not a setting: give one of {', '.join(NAMES)}")
    if (word := text.removesuffix(".0")) in _WORDS[name]:
        return _WORDS[name][word]
    raise ValueError(f"{name} = {given!r}: give one of {', '.join(map(str, dict.fromkeys(_WORDS[name].values())))}")
