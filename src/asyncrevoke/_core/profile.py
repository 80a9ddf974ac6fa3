"""The shape of a profile: one row of the table of dead files' answers. The rows are in `asyncrevoke.answers`."""

import enum
from dataclasses import dataclass


class Answer(enum.Enum):
    """The answers that are not an errno."""

    EOF = "end of data"
    EOF_IF_TTY = "end of data on a terminal, else EIO"
    FINISHES = "runs to its end, without a kick"
    NEXT = "opens the next generation"
    ABSENT = "has no such operation"


@dataclass(frozen=True, slots=True)
class Pair:
    """The answers of one kind of operation: one that runs at the moment of revocation, and one that starts later."""

    in_flight: int | Answer
    later: int | Answer


@dataclass(frozen=True, slots=True)
class Answers:
    """One profile. Numbers are errno values; `poll` is the mask a dead file polls as.

    :ivar mmap: of a new mapping. The adapter decides what becomes of pages that are mapped already
    :ivar open: by path, while the old file drains, and once the thing is gone
    """

    read: Pair
    write: Pair
    poll: int
    ioctl: int
    mmap: int | Answer
    open: Pair
