"""Unplugs real devices of real kernels, in virtual machines: ``python tests/vm/run.py [--short] [--docs] [scenario ...]``

Each scenario runs inside the machine, on the Python and the packages that run this, and prints its row. The program fails
if a row does. It needs apt, qemu and patience, and no privilege: what is downloaded is kept in
~/.cache/asyncrevoke-vm, or in the folder that the variable ASYNCREVOKE_VM names.
"""

import argparse
import pathlib
import sys
from collections.abc import Callable, Iterator
from typing import Any

from answers_page import Asked, write, wrong
from image import RELEASES, Image, UnavailableError, image
from machine import booted

#: How often each is done, in full and in short.
SCENARIOS = {
    "ttyUSB": (100, 2),
    "ttyACM": (100, 2),
    "evdev": (50, 1),
    "hidraw": (50, 1),
    "replugs": (50, 1),
    "swaps": (20, 0),
    "input-replugs": (50, 0),
    "input-swaps": (20, 0),
    "stalls": (1, 0),
    "consoles": (1, 1),
    "devices": (50, 1),
    "instruments": (50, 1),
    "instruments-as-others": (50, 0),
    "names": (10, 1),
    "objects": (10, 1),
    "loans": (200, 1),
    "answers": (1, 0),
}
COLUMNS = {"kernel": 20, "scenario": 48, "times": 5, "right": 62, "took": 27, "left behind": 11, "busy": 4}


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument(
        "scenarios",
        nargs="*",
        choices=[*SCENARIOS, []],
        metavar="scenario",
        help=f"some of {', '.join(SCENARIOS)}; left out: all",
    )
    parser.add_argument("--short", action="store_true", help="a few times each, on one kernel")
    parser.add_argument("--kernel", action="append", choices=RELEASES, help="Debian's; left out: each of them")
    parser.add_argument(
        "--docs", action="store_true", help="ask for the answers of docs/kernel-answers.md, and write it"
    )
    options = parser.parse_args()
    if options.docs and (options.short or options.kernel):
        parser.error("--docs asks each kernel")
    chosen = ["answers"] if options.docs else options.scenarios or [*SCENARIOS]
    counts = {name: count for name in chosen if (count := SCENARIOS[name][options.short])}
    failed = 0
    answers: dict[str, list[Asked]] = {}
    print(_line({column: column for column in COLUMNS}))
    for release in options.kernel or RELEASES[options.short :]:
        for row in rows(image(release), counts, limit=600 if options.short else 5400):
            if "cells" in row:
                answers.setdefault(row["kernel"], []).append(asked := Asked(row["profile"], row["cause"], row["cells"]))
                row.update(as_table(asked))
            print(_line(row), flush=True)
            failed += not row["ok"]
    if options.docs and not failed:
        write(answers)
    return int(failed > 0)


def as_table(asked: Asked) -> dict[str, Any]:
    """The row of the figures for what was answered."""
    others = wrong(asked)
    return {
        "scenario": f"answers.{asked.profile}: {asked.cause}",
        "times": len(asked.cells),
        "right": f"not as in our table: {others}: {asked.cells}"
        if others
        else "as in our table, or told there why not",
        "ok": not others,
    }


def rows(system: Image, counts: dict[str, int], limit: float) -> Iterator[dict[str, Any]]:
    """What the scenarios show on a kernel. What a machine that died has said last is the last row."""
    program = pathlib.Path(__file__).with_name("guest.py")
    command = [sys.executable, str(program), *(f"{name}={times}" for name, times in counts.items())]
    ended = False
    with booted(system, command, limit) as machine:
        do: dict[str, Callable[..., None]] = {
            "plug": machine.plug,
            "unplug": machine.unplug,
            "send": machine.send,
            "feed": machine.feed,
        }
        for request, *arguments in machine.requests():
            if request == "row":
                yield {"kernel": system.version, **arguments[0]}
            elif request == "ended":
                ended = True
            else:
                do[request](*arguments)
            machine.answer("done")
        if not ended:
            yield {"kernel": system.version, "scenario": "", "right": machine.console(), "ok": False}


def _line(row: dict[str, Any]) -> str:
    return "  ".join(f"{row.get(column, '')!s:{width}}" for column, width in COLUMNS.items()).rstrip()


if __name__ == "__main__":
    try:
        sys.exit(main())
    except UnavailableError as exc:
        sys.exit(f"no virtual machine: {exc}")
