"""What a dead file answers, as data: the kernel's own answers, and others'.

By default every operation on a revoked file raises `RevokedError`, in flight and later. A profile of this file, given
as ``answers=answers.TTY``, makes a stream's face answer as that part of a kernel does. Profiles are inherited by the
handles opened below; only a stream reads them, the protocol itself always raises.

Each profile is one row of a table that was measured on a real kernel or read in its source.
"""

from __future__ import annotations

import errno
import select

from ._core.errors import RevokeDeadlock as RevokeDeadlock
from ._core.errors import RevokedError as RevokedError
from ._core.profile import Answer as Answer
from ._core.profile import Answers as Answers
from ._core.profile import Pair as Pair

_EOF = Pair(Answer.EOF, Answer.EOF)
_EIO = Pair(errno.EIO, errno.EIO)
_IN, _OUT, _PRI = select.POLLIN, select.POLLOUT, select.POLLPRI
_ERR, _HUP, _NVAL = select.POLLERR, select.POLLHUP, select.POLLNVAL

#: What the RFC suggests (Al Viro, 2013).
RFC = Answers(_EOF, _EIO, _ERR, errno.EIO, errno.EIO, Pair(errno.ENOENT, errno.ENOENT))

#: A terminal after vhangup, and a USB serial port after its unplug (drivers/tty/tty_io.c, hung_up_tty_fops).
TTY = Answers(
    read=_EOF,
    write=_EIO,
    poll=_IN | _OUT | _ERR | _HUP,
    ioctl=errno.EIO,
    mmap=errno.ENODEV,
    open=Pair(Answer.NEXT, errno.ENOENT),
)

#: A terminal whose pty master was closed (drivers/tty/pty.c, pty_close): the blocked read alone differs from `TTY`.
PTY_MASTER_CLOSED = Answers(
    read=Pair(errno.EIO, Answer.EOF),
    write=_EIO,
    poll=_IN | _OUT | _ERR | _HUP,
    ioctl=errno.EIO,
    mmap=errno.ENODEV,
    open=Pair(errno.ENOENT, errno.ENOENT),
)

#: A PCM after snd_card_disconnect (sound/core/init.c, snd_shutdown_f_ops).
ALSA = Answers(
    read=Pair(errno.EBADFD, errno.ENODEV),
    write=Pair(errno.EBADFD, errno.ENODEV),
    poll=_ERR | _NVAL,
    ioctl=errno.ENODEV,
    mmap=errno.ENODEV,
    open=Pair(errno.ENODEV, errno.ENODEV),
)

#: A removed procfs entry (fs/proc/inode.c). Open its handles with ``kick=None``: removal waits.
PROCFS = Answers(
    read=Pair(Answer.FINISHES, errno.EIO),
    write=Pair(Answer.FINISHES, errno.EIO),
    poll=_IN | _OUT,
    ioctl=errno.ENOTTY,
    mmap=errno.EIO,
    open=Pair(errno.ENOENT, errno.ENOENT),
)

#: A removed debugfs file (fs/debugfs/file.c). Open with ``kick=None``; operations may register `Use.on_kick`.
DEBUGFS = Answers(
    read=Pair(Answer.FINISHES, errno.EIO),
    write=Pair(Answer.FINISHES, errno.EIO),
    poll=_HUP,
    ioctl=errno.EIO,
    mmap=Answer.ABSENT,
    open=Pair(errno.ENOENT, errno.ENOENT),
)

#: A removed sysfs or other kernfs file (fs/kernfs/file.c). Open with ``kick=None``.
SYSFS = Answers(
    read=Pair(Answer.FINISHES, errno.ENODEV),
    write=Pair(Answer.FINISHES, errno.ENODEV),
    poll=_IN | _PRI | _OUT | _ERR,
    ioctl=errno.ENODEV,
    mmap=Answer.ZAPPED,
    open=Pair(errno.ENODEV, errno.ENOENT),
)

#: A file after BSD's revoke(2) (sys/fs/deadfs/dead_vnops.c).
DEADFS = Answers(
    read=Pair(Answer.EOF_IF_TTY, Answer.EOF_IF_TTY),
    write=_EIO,
    poll=_HUP | _IN,
    ioctl=errno.EBADF,
    mmap=Answer.ABSENT,
    open=Pair(Answer.NEXT, Answer.NEXT),
)
