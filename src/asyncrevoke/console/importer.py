"""Turns the configuration of another console server into one of ours. Each line without an equivalent is reported."""

import argparse
import importlib
import pathlib
import re
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any

from asyncrevoke.lowlevel import printable

from .commands import FAILED, complain

_LOOKS = {  # a line of each kind
    "ser2net": re.compile(r"^(%YAML\b|(define|include|connection|default|rotator|admin|led)\s*:)", re.MULTILINE),
    "conserver": re.compile(r"^\s*(console|default|access|config|group|break|task)\b[^\n:#{]*\{", re.MULTILINE),
}


@dataclass
class Draft:
    """A share that is being made.

    :ivar fields: the fields of its table
    :ivar notes: reports of lines without an equivalent, each with its place
    :ivar off: whether it is not imported
    """

    name: str
    fields: dict[str, Any] = field(default_factory=dict)
    notes: list[str] = field(default_factory=list)
    off: bool = False


@dataclass
class Imported:
    """The result of an import.

    :ivar notes: notes that belong to no share, or to several
    :ivar said: all notes, those of the shares too
    """

    shares: list[Draft] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)
    said: dict[str, None] = field(default_factory=dict)

    def note(self, where: str, what: str, share: Draft | None = None) -> None:
        """Add a note, unless it was added before."""
        note = printable(f"{where}: {what}")
        if note not in self.said:
            self.said[note] = None
            (share or self).notes.append(note)

    def add(self, where: str, share: Draft) -> None:
        """Add a share. It is not imported if there is one of its name."""
        if any(each.name == share.name for each in self.shares):
            self.leave_out(where, "there is a share of this name already", share)
        self.shares.append(share)

    def leave_out(self, where: str, why: str, share: Draft) -> None:
        """Mark a share as not imported, and note why."""
        share.off = True
        self.note(where, f"{share.name} is not imported: {why}", share)


def run(args: argparse.Namespace) -> int:
    """Print the new configuration, and all notes on standard error. Return the exit status.

    :raises OSError: if a file cannot be read
    :raises ValueError: if a file has a fault. The message names the file and the line
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
    """Return the text of a file.

    :raises OSError: if it cannot be read
    :raises ValueError: if it is not UTF-8. The message names the file and the line
    """
    data = pathlib.Path(path).read_bytes()
    try:
        return data.decode()
    except UnicodeDecodeError as error:
        line = data.count(b"\n", 0, error.start) + 1
        raise ValueError(f"{path}:{line}: this is not UTF-8") from None


def _kind(path: str) -> str:
    text = source(path)
    found = [kind for kind, looks in _LOOKS.items() if looks.search(text)]
    if len(found) != 1:
        raise ValueError(f"{path} cannot be told to be of {' or of '.join(_LOOKS)}: give --from")
    return found[0]


def _lines(imported: Imported, whence: str) -> Iterator[str]:
    import tomli_w  # noqa: PLC0415  # it comes with an extra

    yield f"# Imported from {printable(whence)}. Comments name each line without an equivalent."
    yield from (f"# {note}" for note in imported.notes)
    for share in imported.shares:
        yield ""
        yield from (f"# {note}" for note in share.notes)
        table = tomli_w.dumps({"share": {share.name: share.fields}}).splitlines()
        yield from (f"# {line}" for line in table) if share.off else table
