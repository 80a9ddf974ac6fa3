"""The page docs/kernel-answers.md: what our tables say, and what each kernel answered."""

import errno
import pathlib
from typing import NamedTuple

from asyncrevoke import answers
from asyncrevoke.answers import Answer, Answers

PAGE = pathlib.Path(__file__).parents[2] / "docs" / "kernel-answers.md"
BEGIN, END = "<!-- by tests/vm/run.py --docs -->\n", "<!-- until here -->\n"
CELLS = (
    *("read, in flight", "write, in flight", "read, later", "write, later"),
    *("poll", "ioctl", "mmap", "open, draining", "open, gone"),
)
#: The mask of poll, bit by bit.
BITS = {"IN": 1, "PRI": 2, "OUT": 4, "ERR": 8, "HUP": 16, "NVAL": 32}

_NODE_GOES = "an unplug takes the node at once; ours is for a hang-up or a revocation, which leaves it"
_PLAYS = "this card can only be played to; that of snd_dummy is asked"
_NONE = "the kernel's own files that go have none: this is what it answers for those"
#: Why a cell is not asked of a kernel, or means something else there: by how it died, and the cell.
REMARKS = {
    ("USB unplug, ftdi_sio", "open, draining"): _NODE_GOES,
    ("USB unplug, cdc_acm", "open, draining"): _NODE_GOES,
    ("USB unplug, snd_usb_audio", "read, in flight"): _PLAYS,
    ("USB unplug, snd_usb_audio", "read, later"): _PLAYS,
    ("USB unplug, evdev", "open, draining"): _NODE_GOES,
    ("removed, uinput", "open, draining"): _NODE_GOES,
    ("USB unplug, hidraw", "write, in flight"): "it is waited for, and meets a device that is gone",
    ("HIDIOCREVOKE", "read, in flight"): "it wakes nobody: a read waits on, gets nothing, and ends with the device",
    ("HIDIOCREVOKE", "write, in flight"): "it does not wait for a write that is inside, and that the device still gets",
    ("loop device removed", "poll"): _NONE,
    ("loop device removed", "ioctl"): _NONE,
}
#: What not all kernels have.
SINCE = {"HIDIOCREVOKE": "Linux has it from 6.12 on"}


class Asked(NamedTuple):
    """Of what which table is, how it died, and what was answered."""

    profile: str
    cause: str
    cells: dict[str, str]


def ours(profile: Answers) -> dict[str, str]:
    """What our table says in each cell."""
    read, write, opened = profile.read, profile.write, profile.open
    values = (
        *(read.in_flight, write.in_flight, read.later, write.later),
        *(profile.poll, profile.ioctl, profile.mmap, opened.in_flight, opened.later),
    )
    return {
        cell: " ".join(name for name, bit in BITS.items() if profile.poll & bit) if cell == "poll" else _word(value)
        for cell, value in zip(CELLS, values, strict=True)
    }


def _word(answer: int | Answer) -> str:
    return answer.name if isinstance(answer, Answer) else errno.errorcode[answer]


def wrong(asked: Asked) -> list[str]:
    """The cells in which the kernel does not answer as our table says, and nobody knows why."""
    if asked.cause in SINCE and not asked.cells:
        return []
    table = ours(getattr(answers, asked.profile))
    return [cell for cell in CELLS if asked.cells.get(cell) != table[cell] and (asked.cause, cell) not in REMARKS]


def write(kernels: dict[str, list[Asked]]) -> None:
    """Put into the page what these kernels have answered."""
    lines = [
        f"| profile | how it died | cell | ours | {' | '.join(kernels)} | why not |",
        "|" + " --- |" * (5 + len(kernels)),
    ]
    for each in zip(*kernels.values(), strict=True):
        table = ours(getattr(answers, each[0].profile))
        for cell in CELLS:
            why_not = REMARKS.get((each[0].cause, cell), SINCE.get(each[0].cause, ""))
            said = [asked.cells.get(cell, "-") for asked in each]
            words = [each[0].profile, each[0].cause, cell, table[cell], *said, why_not]
            lines.append(f"| {' | '.join(words)} |".replace("|  |", "| |"))
    before, _, rest = PAGE.read_text().partition(BEGIN)
    PAGE.write_text(before + BEGIN + "\n" + "\n".join(lines) + "\n\n" + END + rest.partition(END)[2])


def rows() -> list[list[str]]:
    """The words of the page's table, without its head."""
    table = PAGE.read_text().partition(BEGIN)[2].partition(END)[0]
    return [[word.strip() for word in line.split("|")[1:-1]] for line in table.strip().splitlines()[2:]]
