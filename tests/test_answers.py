"""The tables of what dead files answer, compared cell by cell."""

import errno
import select

import pytest

from asyncrevoke import answers
from asyncrevoke.answers import Answer, Answers, Pair

#: As real kernels answer, in flight and later, as errno names or words; `mmap` is a new one, `open` is by path.
TABLE = """
profile           | in-flight read | in-flight write | later read | later write | poll           | ioctl  | mmap   | open
RFC               | EOF            | EIO             | EOF        | EIO         | ERR            | EIO    | EIO    | ENOENT
TTY               | EOF            | EIO             | EOF        | EIO         | IN OUT ERR HUP | EIO    | ENODEV | NEXT ENOENT
PTY_MASTER_CLOSED | EIO            | EIO             | EOF        | EIO         | IN OUT ERR HUP | EIO    | ENODEV | ENOENT
ALSA              | EBADFD         | EBADFD          | ENODEV     | ENODEV      | ERR NVAL       | ENODEV | ENODEV | ENODEV ENOENT
EVDEV             | ENODEV         | FINISHES        | ENODEV     | ENODEV      | ERR HUP        | ENODEV | ENODEV | NEXT ENOENT
HIDRAW            | EIO            | FINISHES        | EIO        | ENODEV      | OUT ERR HUP    | ENODEV | ENODEV | ENOENT
HIDRAW_REVOKED    | ENODEV         | FINISHES        | ENODEV     | ENODEV      | OUT ERR HUP    | ENODEV | ENODEV | NEXT ENOENT
PROCFS            | FINISHES       | FINISHES        | EIO        | EIO         | IN OUT         | ENOTTY | EIO    | ENOENT
DEBUGFS           | FINISHES       | FINISHES        | EIO        | EIO         | HUP            | EIO    | ENODEV | ENOENT
SYSFS             | FINISHES       | FINISHES        | ENODEV     | ENODEV      | IN PRI OUT ERR | ENOTTY | ENODEV | ENOENT
DEADFS            | EOF_IF_TTY     | EIO             | EOF_IF_TTY | EIO         | HUP IN         | EBADF  | ABSENT | NEXT
"""
ROWS = [[cell.strip() for cell in row.split("|")] for row in TABLE.strip().splitlines()]


def said(word: str) -> int | Answer:
    return Answer[word] if word in Answer.__members__ else int(getattr(errno, word))


def mask(words: str) -> int:
    return sum(int(getattr(select, f"POLL{word}")) for word in words.split())


@pytest.mark.invariant("answers")
@pytest.mark.parametrize("row", ROWS[1:], ids=[row[0] for row in ROWS[1:]])
@pytest.mark.parametrize("column", ROWS[0][1:])
def test_every_cell_is_the_kernels(row: list[str], column: str) -> None:
    """Each profile answers what its part of a real kernel does."""
    profile = getattr(answers, row[0])
    cell = row[ROWS[0].index(column)]
    words = cell.split()
    if column == "poll":
        assert profile.poll == mask(cell)
    elif column == "open":
        assert profile.open == Pair(said(words[0]), said(words[-1]))
    elif column in ("ioctl", "mmap"):
        assert getattr(profile, column) == said(cell)
    else:
        when, _, operation = column.partition(" ")
        assert getattr(getattr(profile, operation), when.replace("-", "_")) == said(cell)


@pytest.mark.invariant("answers")
def test_the_table_has_exactly_these_profiles() -> None:
    """No profile beyond these."""
    assert {name for name, value in vars(answers).items() if isinstance(value, Answers)} == {row[0] for row in ROWS[1:]}


@pytest.mark.invariant("answers")
def test_profiles_are_data() -> None:
    """A profile cannot be changed under those who share it."""
    with pytest.raises(AttributeError):
        answers.TTY.ioctl = 0  # type: ignore[misc]
