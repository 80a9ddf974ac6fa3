"""Rights of a share, each asked by itself: whoever asks may not have asked for the others before."""

import os

import pytest

from asyncrevoke.console.access import People, Right, Rights
from asyncrevoke.console.share import Share
from asyncrevoke.control.peer import Peer, group_number, user_number

STRANGER = os.geteuid() + 4_000_000  # who is neither root nor the owner of the server


def allowed(share: Share, groups: People, *, uid: int = STRANGER, group: int = STRANGER) -> list[Right]:
    rights = Rights(share, groups)
    peer = Peer(os.getpid(), uid, frozenset({group}))
    asked: tuple[Right, ...] = ("look", "type", "revoke")
    return [right for right in asked if rights.allows(peer, right)]


@pytest.mark.parametrize(
    ("share", "rights"),
    [
        (Share("s"), ["look", "type"]),
        (Share("s", look=("games",)), []),
        (Share("s", look=("@daemon",)), ["look", "type"]),
        (Share("s", type=()), ["look"]),
        (Share("s", type=("games",)), ["look"]),
        (Share("s", look=(), revoke=("@daemon",)), ["look", "type", "revoke"]),
    ],
    ids=str,
)
def test_the_groups_of_the_server_type_only_where_they_may_look(share: Share, rights: list[Right]) -> None:
    """A share that lets others look is hidden from them. It needs no `type` to be safe from what they type."""
    daemon = group_number("daemon")
    assert allowed(share, People(groups=frozenset({daemon})), group=daemon) == rights


def test_who_may_type_or_revoke_may_look() -> None:
    share = Share("s", look=(), type=("games",), revoke=("man",))
    assert allowed(share, People(), uid=user_number("games")) == ["look", "type"]
    assert allowed(share, People(), uid=user_number("man")) == ["look", "revoke"]
    assert allowed(share, People()) == []
