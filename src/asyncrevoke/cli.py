"""The command line: it parses and prints."""

from __future__ import annotations

import argparse
from collections.abc import Sequence

import anyio

from asyncrevoke.demo import demo


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command line; it returns the exit status."""
    parser = argparse.ArgumentParser(
        prog="asyncrevoke",
        description="Take a port, a terminal or a connection away from code that is still awaiting it.",
    )
    commands = parser.add_subparsers(dest="command", required=True, metavar="COMMAND")
    commands.add_parser("demo", help="show a live shell session being taken away from those who share it")
    parser.parse_args(argv)
    anyio.run(demo)
    return 0
