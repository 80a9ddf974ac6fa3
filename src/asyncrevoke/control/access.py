"""Who may do what over a control socket."""

from .peer import Peer, group_number


class Access:
    """The owner of this process and root may do everything. Members of one group may connect and look.

    A server asks each time. So a service may give `serve` an access of its own, with answers that change.

    :param group: name of the group. Default: no group
    :raises ValueError: if there is no such group
    """

    def __init__(self, group: str | None = None) -> None:
        self._gid = None if group is None else group_number(group)
        self._group = group

    def __str__(self) -> str:
        return "the owner and root may" + (f", and the group {self._group}" if self._group else "")

    def connects(self, peer: Peer) -> bool:
        """Whether a peer may connect."""
        return peer.owner or self._gid in peer.groups

    def looks(self, _peer: Peer, _path: str) -> bool:
        """Whether a peer may know what is at a path. If not, the path does not exist for that peer."""
        return True

    def revokes(self, peer: Peer, _path: str) -> bool:
        """Whether a peer may take away what is at a path."""
        return peer.owner
