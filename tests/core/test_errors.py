"""The errors: what they are, what they tell, and how untrusted text is shown in them."""

import asyncio
import copy
import errno
import pickle

import anyio
import pytest

from asyncrevoke import Revokable, RevokeDeadlock, RevokedError
from asyncrevoke.lowlevel import printable


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


def test_control_characters_do_nothing_to_a_terminal() -> None:
    """They are shown; letters of any language stay."""
    assert printable("é\x1b[2J\n\x9b\u202e\udc80") == r"é\x1b[2J\n\x9b\u202e\udc80"
