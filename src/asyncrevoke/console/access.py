"""Who may look at a share, type there, and take others off."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

from asyncrevoke.control.peer import Peer, group_number, user_number

from .share import Share

Right = Literal["look", "type", "revoke"]


@dataclass(frozen=True, slots=True)
class People:
    """Users and groups, by number."""

    users: frozenset[int] = frozenset()
    groups: frozenset[int] = frozenset()

    def __contains__(self, peer: Peer) -> bool:
        return peer.uid in self.users or not self.groups.isdisjoint(peer.groups)

    def __or__(self, other: People) -> People:
        return People(self.users | other.users, self.groups | other.groups)


def people(names: Sequence[str]) -> People:
    """Look names up: "bob" is a user, "@lab" a group.

    :raises ValueError: naming the user or group that does not exist
    """
    return People(
        frozenset(user_number(name) for name in names if not name.startswith("@")),
        frozenset(group_number(name[1:]) for name in names if name.startswith("@")),
    )


class Rights:
    """The rights of a share. The owner of the server and root have all of them.

    Users that may type or revoke may also look. By default the groups of the server look and type. If a share says who may
    look, members of the groups type only if they may look.

    :param groups: groups of the server
    :raises ValueError: if there is no such user or group
    """

    def __init__(self, share: Share, groups: People) -> None:
        look, types, revoke = (_named(share, right) for right in ("look", "type", "revoke"))
        self._look = types | revoke | (groups if share.look is None else look)
        self._may: dict[Right, People] = {
            "look": self._look,
            "type": groups if share.type is None else types,
            "revoke": revoke,
        }

    def allows(self, peer: Peer, right: Right) -> bool:
        """Whether a peer has the right."""
        return peer.owner or (peer in self._look and peer in self._may[right])


def _named(share: Share, right: Right) -> People:
    try:
        return people(getattr(share, right) or ())
    except ValueError as exc:
        raise ValueError(f"[share.{share.name}] {right}: {exc}") from None
