"""What a dead file answers: the errors, and the kernel's own answers as data.

By default every operation on a revoked file raises `RevokedError`, in flight and later. A profile of this file, given
as ``answers=answers.TTY``, makes a stream's face answer as that part of a kernel does. Profiles are inherited by the
handles opened below; only a stream reads them, the protocol itself always raises.

Each profile is one row of a table that was measured on a real kernel or read in its source.
"""

from __future__ import annotations

import enum
import errno
import select
import termios
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import anyio

if TYPE_CHECKING:
    from ._revokable import Revokable


class RevokedError(anyio.BrokenResourceError, OSError):
    """The file was taken away: by a revocation of it, or of something it belongs to. Raised anew for every operation.

    :ivar node: the node that was used (None in an error that was pickled)
    :ivar name: its path of names, as in ``ttyUSB0/alice``
    :ivar reason: what the first revocation gave as its reason
    :ivar generation: the number of the generation it belonged to, or None where there are none
    :ivar in_flight: True if the operation was running when it was kicked, False if it came later
    :ivar sent: the bytes accepted before the kick, or None where nobody can know
    :ivar errno: EIO, or what the profile in use says
    """

    def __init__(
        self,
        node: Revokable | None,
        *,
        in_flight: bool = False,
        sent: int | None = None,
        told: tuple[int, str, str, int | None] | None = None,
    ) -> None:
        super().__init__()
        self.node = node
        self.in_flight = in_flight
        self.sent = sent
        self._told = told
        self.errno = told[0] if told else errno.EIO

    # What costs is worked out when it is asked for: an error is made for every kicked operation.
    @property
    def name(self) -> str:
        return self.node.path if self.node is not None else self._told[1] if self._told else ""

    @property
    def reason(self) -> str:
        return self.node.reason if self.node is not None else self._told[2] if self._told else ""

    @property
    def generation(self) -> int | None:
        return self.node.generation if self.node is not None else self._told[3] if self._told else None

    def __str__(self) -> str:
        number = "" if self.generation is None else f" (generation {self.generation})"
        why = f": {self.reason}" if self.reason else ""
        sent = f"; {self.sent} bytes were accepted before" if self.in_flight and self.sent is not None else ""
        return f"{self.name or 'the file'!r}{number} was revoked{why}{sent}"

    def __repr__(self) -> str:
        return f"{type(self).__name__}({str(self)!r})"

    @property
    def strerror(self) -> str:  # type: ignore[override]  # OSError's is a plain attribute; ours is worked out
        return str(self)

    def __reduce__(self) -> tuple[Any, ...]:
        told = (self.errno, self.name, self.reason, self.generation)
        return _unpickled, (type(self), self.in_flight, self.sent, told)


def _unpickled(
    kind: type[RevokedError], in_flight: bool, sent: int | None, told: tuple[int, str, str, int | None]
) -> RevokedError:
    return kind(None, in_flight=in_flight, sent=sent, told=told)


class RevokeDeadlock(RuntimeError):
    """The caller awaits what can only complete after the caller itself has gone on. Raised at once, nothing is lost."""


class Answer(enum.Enum):
    """The answers that are not an errno."""

    EOF = "end of data"
    EOF_IF_TTY = "end of data on a terminal, else EIO"
    FINISHES = "runs to its end: nobody is kicked"
    NEXT = "opens the next generation"
    ZAPPED = "pages are unmapped"
    ABSENT = "has no such operation"


@dataclass(frozen=True, slots=True)
class Pair:
    """What one kind of operation answers: running at the moment of revocation, and started later."""

    in_flight: int | Answer
    later: int | Answer


@dataclass(frozen=True, slots=True)
class Answers:
    """One profile. Numbers are errno values; `poll` is the mask a dead file polls as.

    :ivar short: a write in flight that had bytes accepted reports their number instead of failing. On a stream both
        are a `RevokedError` with `sent`, because AnyIO's `send` sends all or fails.
    :ivar open: while the old file drains, and once the thing is gone
    :ivar ioctl_other: requests that answer otherwise than `ioctl`
    """

    read: Pair
    write: Pair
    short: bool
    poll: int
    ioctl: int
    mmap: int | Answer
    open: Pair
    ioctl_other: Mapping[int, int] = field(default_factory=dict)


_EOF = Pair(Answer.EOF, Answer.EOF)
_EIO = Pair(errno.EIO, errno.EIO)
_IN, _OUT, _PRI = select.POLLIN, select.POLLOUT, select.POLLPRI
_ERR, _HUP, _NVAL = select.POLLERR, select.POLLHUP, select.POLLNVAL

#: What the RFC suggests (Al Viro, 2013).
RFC = Answers(_EOF, _EIO, False, _ERR, errno.EIO, errno.EIO, Pair(errno.ENOENT, errno.ENOENT))

#: A terminal after vhangup, and a USB serial port after its unplug (drivers/tty/tty_io.c, hung_up_tty_fops).
TTY = Answers(
    read=_EOF,
    write=_EIO,
    short=True,
    poll=_IN | _OUT | _ERR | _HUP,
    ioctl=errno.EIO,
    mmap=errno.ENODEV,
    open=Pair(Answer.NEXT, errno.ENOENT),
    ioctl_other={termios.TIOCSPGRP: errno.ENOTTY},
)

#: A terminal whose pty master was closed (drivers/tty/pty.c, pty_close): the blocked read alone differs from `TTY`.
PTY_MASTER_CLOSED = Answers(
    read=Pair(errno.EIO, Answer.EOF),
    write=_EIO,
    short=True,
    poll=_IN | _OUT | _ERR | _HUP,
    ioctl=errno.EIO,
    mmap=errno.ENODEV,
    open=Pair(errno.ENOENT, errno.ENOENT),
    ioctl_other={termios.TIOCSPGRP: errno.ENOTTY},
)

#: A PCM after snd_card_disconnect (sound/core/init.c, snd_shutdown_f_ops).
ALSA = Answers(
    read=Pair(errno.EBADFD, errno.ENODEV),
    write=Pair(errno.EBADFD, errno.ENODEV),
    short=True,
    poll=_ERR | _NVAL,
    ioctl=errno.ENODEV,
    mmap=errno.ENODEV,
    open=Pair(errno.ENODEV, errno.ENODEV),
)

#: A removed procfs entry (fs/proc/inode.c). Open its handles with ``kick=None``: removal waits.
PROCFS = Answers(
    read=Pair(Answer.FINISHES, errno.EIO),
    write=Pair(Answer.FINISHES, errno.EIO),
    short=False,
    poll=_IN | _OUT,
    ioctl=errno.ENOTTY,
    mmap=errno.EIO,
    open=Pair(errno.ENOENT, errno.ENOENT),
)

#: A removed debugfs file (fs/debugfs/file.c). Open with ``kick=None``; operations may register `Use.on_kick`.
DEBUGFS = Answers(
    read=Pair(Answer.FINISHES, errno.EIO),
    write=Pair(Answer.FINISHES, errno.EIO),
    short=False,
    poll=_HUP,
    ioctl=errno.EIO,
    mmap=Answer.ABSENT,
    open=Pair(errno.ENOENT, errno.ENOENT),
)

#: A removed sysfs or other kernfs file (fs/kernfs/file.c). Open with ``kick=None``.
SYSFS = Answers(
    read=Pair(Answer.FINISHES, errno.ENODEV),
    write=Pair(Answer.FINISHES, errno.ENODEV),
    short=False,
    poll=_IN | _PRI | _OUT | _ERR,
    ioctl=errno.ENODEV,
    mmap=Answer.ZAPPED,
    open=Pair(errno.ENODEV, errno.ENOENT),
)

#: A file after BSD's revoke(2) (sys/fs/deadfs/dead_vnops.c).
DEADFS = Answers(
    read=Pair(Answer.EOF_IF_TTY, Answer.EOF_IF_TTY),
    write=_EIO,
    short=False,
    poll=_HUP | _IN,
    ioctl=errno.EBADF,
    mmap=Answer.ABSENT,
    open=Pair(Answer.NEXT, Answer.NEXT),
)
