"""The configuration of another console server, as one of ours; what has no equal is said, line by line."""

import argparse
import importlib
import pathlib
import re
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any

from asyncrevoke.lowlevel import printable

from .commands import FAILED, complain

_LOOKS = {  # what a line of each looks like
    "ser2net": re.compile(r"^(%YAML\b|(define|include|connection|default|rotator|admin|led)\s*:)", re.MULTILINE),
    "conserver": re.compile(r"^\s*(console|default|access|config|group|break|task)\b[^\n:#{]*\{", re.MULTILINE),
}


@dataclass
class Draft:
    """A share that is being made.

    :ivar fields: of its table
    :ivar notes: what has no equal, and where it was read
    :ivar off: whether it is left out
    """

    name: str
    fields: dict[str, Any] = field(default_factory=dict)
    notes: list[str] = field(default_factory=list)
    off: bool = False


@dataclass
class Imported:
    """What a configuration has become.

    :ivar notes: as of a share, but about none, or about several
    :ivar said: all notes
    """

    shares: list[Draft] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)
    said: dict[str, None] = field(default_factory=dict)

    def note(self, where: str, what: str, share: Draft | None = None) -> None:
        """Say that something has no equal, but once."""
        note = printable(f"{where}: {what}")
        if note not in self.said:
            self.said[note] = None
            (share or self).notes.append(note)

    def add(self, where: str, share: Draft) -> None:
        """Add a share, unless there is one of its name."""
        if any(each.name == share.name for each in self.shares):
            self.leave_out(where, "there is one of this name already", share)
        self.shares.append(share)

    def leave_out(self, where: str, why: str, share: Draft) -> None:
        """Say why a share is none of ours."""
        share.off = True
        self.note(where, f"{share.name} is left out: {why}", share)


def run(args: argparse.Namespace) -> int:
    """Print the configuration, and complain of what has no equal; it returns the exit status.

    :raises OSError: if it cannot be read
    :raises ValueError: naming the file and the line that makes no sense
    """
    try:
        kind = args.kind or _kind(args.file)
        imported = importlib.import_module(f".{kind}", __package__).read(args.file)
        for line in _lines(imported, f"{args.file}, a configuration of {kind}"):
            print(line)
    except ModuleNotFoundError as error:
        raise ImportError(f"{error.name} is missing: pip install 'asyncrevoke[import]'") from error
    for note in imported.said:
        complain(note)
    if all(share.off for share in imported.shares):
        complain(f"{args.file}: nothing in it can be shared")
        return FAILED
    return 0


def source(path: str) -> str:
    """The text of a file.

    :raises OSError: if it cannot be read
    :raises ValueError: if it is no text
    """
    data = pathlib.Path(path).read_bytes()
    try:
        return data.decode()
    except UnicodeDecodeError as error:
        line = data.count(b"\n", 0, error.start) + 1
        raise ValueError(f"{path}:{line}: this is no UTF-8") from None


def _kind(path: str) -> str:
    text = source(path)
    found = [kind for kind, looks in _LOOKS.items() if looks.search(text)]
    if len(found) != 1:
        raise ValueError(f"{path} looks like no configuration of {' or '.join(_LOOKS)}: give --from")
    return found[0]


def _lines(imported: Imported, whence: str) -> Iterator[str]:
    import tomli_w  # noqa: PLC0415  # of an extra

    yield f"# Imported from {printable(whence)}. What has no equal here is told by its line."
    yield from (f"# {note}" for note in imported.notes)
    for share in imported.shares:
        yield ""
        yield from (f"# {note}" for note in share.notes)
        table = tomli_w.dumps({"share": {share.name: share.fields}}).splitlines()
        yield from (f"# {line}" for line in table) if share.off else table
