"""The errors, and the tables of what dead files answer, compared cell by cell."""

import asyncio
import copy
import errno
import pickle
import select

import anyio
import pytest

from asyncrevoke import Revokable, RevokeDeadlock, RevokedError, answers
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


@pytest.mark.invariant("contract")
def test_revoked_error_is_what_callers_catch_already() -> None:
    """It is AnyIO's BrokenResourceError and an OSError, and no EndOfStream, TimeoutError or ConnectionError."""
    exc = RevokedError(Revokable("node"))
    assert isinstance(exc, anyio.BrokenResourceError)
    assert isinstance(exc, OSError)
    assert not isinstance(exc, (anyio.EndOfStream, TimeoutError, ConnectionError, asyncio.CancelledError))
    assert issubclass(RevokeDeadlock, RuntimeError)


@pytest.mark.invariant("contract")
def test_revoked_error_tells_what_was_revoked_and_why() -> None:
    """Node, name, reason, generation, errno, in_flight and sent are there, and str() is a sentence."""
    node = Revokable("tty").open("alice")
    node.revoke("unplugged")
    exc = RevokedError(node, in_flight=True, sent=3)
    assert (exc.node, exc.name, exc.reason, exc.generation) == (node, "tty/alice", "unplugged", None)
    assert (exc.errno, exc.in_flight, exc.sent) == (errno.EIO, True, 3)
    assert str(exc) == exc.strerror == "'tty/alice' was revoked: unplugged; 3 bytes were accepted before"
    assert str(RevokedError(Revokable("tty"))) == "'tty' was revoked"
    assert repr(RevokedError(Revokable("tty"))) == """RevokedError("'tty' was revoked")"""


@pytest.mark.invariant("contract")
@pytest.mark.parametrize("copied", [lambda exc: pickle.loads(pickle.dumps(exc)), copy.copy], ids=["pickle", "copy"])
def test_revoked_error_pickles(copied: object) -> None:
    """An error that crosses a process keeps all but the node."""
    node = Revokable("tty").open("alice", release=lambda: None)
    node.revoke("unplugged")
    exc = RevokedError(node, in_flight=True, sent=3)
    exc.errno = errno.ENODEV
    assert callable(copied)
    found = copied(exc)
    assert type(found) is RevokedError
    assert found.node is None
    assert (found.name, found.reason, found.generation) == ("tty/alice", "unplugged", None)
    assert (found.errno, found.in_flight, found.sent) == (errno.ENODEV, True, 3)
    assert str(found) == str(exc)
    again = copied(found)
    assert (again.errno, str(again)) == (found.errno, str(found))


@pytest.mark.invariant("contract")
def test_a_group_of_revoked_errors_pickles() -> None:
    """What a task group raises crosses a process, too."""
    group = ExceptionGroup("two", [RevokedError(Revokable("a")), RevokedError(Revokable("b"))])
    found = pickle.loads(pickle.dumps(group))
    assert [str(exc) for exc in found.exceptions] == ["'a' was revoked", "'b' was revoked"]
