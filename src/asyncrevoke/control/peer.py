"""Who is at the other end of a Unix socket, as the kernel says."""

import contextlib
import os
import socket
import struct
from dataclasses import dataclass

from asyncrevoke.linux import SO_PEERCRED, grp, pwd

_SO_PEERGROUPS = 59  # include/uapi/asm-generic/socket.h


@dataclass(frozen=True, slots=True)
class Peer:
    """A process that has connected, with its rights at that time."""

    pid: int
    uid: int
    groups: frozenset[int]

    @property
    def owner(self) -> bool:
        """Whether it is root, or the owner of this process."""
        return self.uid in (0, os.geteuid())

    @property
    def name(self) -> str:
        """Login name of the user, or the number of a user without one."""
        return user_name(self.uid)

    def acting_as(self, user: str) -> "Peer":
        """Return the same process with the rights of another user of this machine.

        :raises ValueError: if there is no such user
        """
        try:
            entry = pwd.getpwnam(user)
        except (KeyError, ValueError):  # it cannot be a name
            raise ValueError(f"there is no user {user!r} on this machine") from None
        return Peer(self.pid, entry.pw_uid, frozenset(os.getgrouplist(user, entry.pw_gid)))


def peer_of(connection: socket.socket) -> Peer:
    """Ask the kernel who has connected."""
    pid, uid, gid = struct.unpack("iII", connection.getsockopt(socket.SOL_SOCKET, SO_PEERCRED, 12))
    more = b""
    with contextlib.suppress(OSError):  # more groups than fit: then the first counts
        more = connection.getsockopt(socket.SOL_SOCKET, _SO_PEERGROUPS, 1024)
    return Peer(pid, uid, frozenset({gid, *struct.unpack(f"{len(more) // 4}I", more)}))


def user_name(uid: int) -> str:
    """Return the login name of a user, or the number of a user without one."""
    try:
        return pwd.getpwuid(uid).pw_name
    except KeyError:
        return str(uid)


def group_number(group: str) -> int:
    """Return the number of a group.

    :raises ValueError: if there is no group of that name
    """
    try:
        return grp.getgrnam(group).gr_gid
    except KeyError:
        raise ValueError(f"there is no group {group!r}: create it, or leave it out") from None


def user_number(user: str) -> int:
    """Return the number of a user.

    :raises ValueError: if there is no user of that name
    """
    try:
        return pwd.getpwnam(user).pw_uid
    except KeyError:
        raise ValueError(f"there is no user {user!r}: create it, or leave it out") from None
