"""The manual pages, made from what --help shows: ``python docs/manual.py FOLDER``. A wheel has them in it."""

import contextlib
import io
import os
import pathlib
import re
import sys
from collections.abc import Iterator
from unittest import mock

_ITEM = re.compile(r" {2,4}(\S+(?: \S+)*)(?: {2,}(.+))?")
_COMMAND = re.compile(r"    (\S+)  .*")
_TITLES = {"positional arguments": "arguments"}
_SPECIAL = str.maketrans({"\\": r"\e", "-": r"\-", "^": r"\(ha", "~": r"\(ti", "`": r"\(ga", "'": r"\(aq"})


def pages(version: str) -> dict[str, str]:
    """The pages of section 1 in roff, by name: of the program, of its commands, and of theirs."""
    helps = dict(_helps(()))
    names = {words: "-".join(("asyncrevoke", *words)) for words in helps}
    written = {}
    for words, text in helps.items():
        others = sorted(name for other, name in names.items() if other != words)
        written[names[words]] = "\n".join(_page(names[words], text, others, version))
    return written


def _helps(words: tuple[str, ...]) -> Iterator[tuple[tuple[str, ...], str]]:
    """What --help shows, line by line as it was written, for these words and for each command below."""
    from asyncrevoke.console.cli import main  # noqa: PLC0415  # a build puts it in the way first

    shown = io.StringIO()
    with (
        contextlib.redirect_stdout(shown),
        contextlib.suppress(SystemExit),
        mock.patch.dict(os.environ, COLUMNS="9999"),
    ):
        main([*words, "--help"])
    yield words, shown.getvalue()
    for command in _COMMAND.findall(shown.getvalue()):
        yield from _helps((*words, command))


def _page(name: str, text: str, others: list[str], version: str) -> Iterator[str]:
    usage, *blocks = re.split(r"\n\s*\n", text.strip())
    yield f'.TH {name.upper()} 1 "" "asyncrevoke {version}" "User Commands"'
    yield ".nh"
    yield from (".SH NAME", f"{_roff(name)} \\- {_roff(blocks[0].partition('.')[0])}")
    yield from (".SH SYNOPSIS", _roff(usage.removeprefix("usage: ")), ".SH DESCRIPTION")
    for block in blocks:
        first, *rest = block.splitlines()
        if first.endswith(":") and all(line.startswith("  ") for line in rest):
            yield f".SH {_roff(_TITLES.get(first[:-1], first[:-1]).upper())}"
            yield from _items(rest)
        else:
            yield from (".PP", *map(_roff, (first, *rest)))
    yield from (".SH SEE ALSO", ", ".join(f"\\fB{_roff(each)}\\fR(1)" for each in others), "")


def _items(lines: list[str]) -> Iterator[str]:
    for line in lines:
        if item := _ITEM.fullmatch(line):
            yield from (".TP", f"\\fB{_roff(item[1])}\\fR")
        if text := item[2] if item else line.strip():
            yield _roff(text)


def _roff(text: str) -> str:
    return r"\&" * text.startswith(".") + text.translate(_SPECIAL)


def write(folder: pathlib.Path, version: str) -> list[pathlib.Path]:
    """Write them to a folder, and return their paths."""
    folder.mkdir(parents=True, exist_ok=True)
    paths = []
    for name, text in pages(version).items():
        paths.append(folder / f"{name}.1")
        paths[-1].write_text(text)
    return paths


if __name__ == "__main__":
    from importlib.metadata import version

    write(pathlib.Path(sys.argv[1]), version("asyncrevoke"))
