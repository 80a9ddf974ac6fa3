"""The answers of dead files, as data: those of the Linux kernel's subsystems, and of others.

By default every operation on a revoked file raises `RevokedError`, in flight and later. Give a profile of this module,
as in ``answers=answers.TTY``, and a stream answers like that part of a kernel. The handles opened below inherit the
profile. Only streams read it: the protocol itself always raises.

Each profile is one row of a table that was measured on a real kernel or read in its source.
"""

import errno
from dataclasses import replace

from ._core.errors import RevokeDeadlock as RevokeDeadlock, RevokedError as RevokedError
from ._core.profile import Answer as Answer, Answers as Answers, Pair as Pair
from .linux import POLLERR as _ERR, POLLHUP as _HUP, POLLIN as _IN, POLLNVAL as _NVAL, POLLOUT as _OUT, POLLPRI as _PRI


def _same(answer: int | Answer) -> Pair:
    return Pair(answer, answer)


_EOF, _EIO = _same(Answer.EOF), _same(errno.EIO)
_DEAD_PCM = Pair(getattr(errno, "EBADFD", errno.EBADF), errno.ENODEV)  # which only Linux has
_LATER_EIO, _LATER_ENODEV = Pair(Answer.FINISHES, errno.EIO), Pair(Answer.FINISHES, errno.ENODEV)

# In order: read and write, each in flight and later; the mask of poll; ioctl; mmap; open, while draining and once gone.
# `open` is by path. In Linux, opening /proc/self/fd/N of the dead file may answer otherwise: kernfs says ENODEV there.

#: The answers that the RFC suggests (Al Viro, 2013).
RFC = Answers(_EOF, _EIO, _ERR, errno.EIO, errno.EIO, _same(errno.ENOENT))

#: A terminal after vhangup, and a USB serial port after its unplug (drivers/tty/tty_io.c, hung_up_tty_fops).
TTY = Answers(_EOF, _EIO, _IN | _OUT | _ERR | _HUP, errno.EIO, errno.ENODEV, Pair(Answer.NEXT, errno.ENOENT))

#: A terminal whose pty master was closed (drivers/tty/pty.c, pty_close): the blocked read differs from `TTY`, and the open.
PTY_MASTER_CLOSED = replace(TTY, read=Pair(errno.EIO, Answer.EOF), open=_same(errno.ENOENT))

#: A PCM after snd_card_disconnect (sound/core/init.c, snd_shutdown_f_ops). A node that was kept opens as ENODEV.
ALSA = Answers(_DEAD_PCM, _DEAD_PCM, _ERR | _NVAL, errno.ENODEV, errno.ENODEV, Pair(errno.ENODEV, errno.ENOENT))

#: An evdev file after EVIOCREVOKE, or after its device has gone (drivers/input/evdev.c). A running write is waited for.
EVDEV = Answers(
    _same(errno.ENODEV), _LATER_ENODEV, _ERR | _HUP, errno.ENODEV, errno.ENODEV, Pair(Answer.NEXT, errno.ENOENT)
)

#: A hidraw file whose device has gone (drivers/hid/hidraw.c). Data that had come before can still be read.
HIDRAW = Answers(_EIO, _LATER_ENODEV, _OUT | _ERR | _HUP, errno.ENODEV, errno.ENODEV, _same(errno.ENOENT))

#: A hidraw file after HIDIOCREVOKE, which Linux has from 6.12 on. A read that waits already gets nothing. It ends
#: with the device. A write is not waited for.
HIDRAW_REVOKED = replace(HIDRAW, read=_same(errno.ENODEV), open=Pair(Answer.NEXT, errno.ENOENT))

#: A removed procfs entry (fs/proc/inode.c). Open its handles with ``kick=None``: removal waits.
PROCFS = Answers(_LATER_EIO, _LATER_EIO, _IN | _OUT, errno.ENOTTY, errno.EIO, _same(errno.ENOENT))

#: A removed debugfs file (fs/debugfs/file.c). Open its handles with ``kick=None``; operations may register
#: `Use.on_kick`. While the file drains, the kernel lets an open wait for the end of the removal.
DEBUGFS = Answers(_LATER_EIO, _LATER_EIO, _HUP, errno.EIO, errno.ENODEV, _same(errno.ENOENT))

#: A removed sysfs or other kernfs file (fs/kernfs/file.c), which never has an ioctl. Open its handles with ``kick=None``.
#: Pages that are mapped already are unmapped: touching them raises SIGBUS.
SYSFS = Answers(_LATER_ENODEV, _LATER_ENODEV, _IN | _PRI | _OUT | _ERR, errno.ENOTTY, errno.ENODEV, _same(errno.ENOENT))

#: A file after BSD's revoke(2) (sys/fs/deadfs/dead_vnops.c).
DEADFS = Answers(_same(Answer.EOF_IF_TTY), _EIO, _HUP | _IN, errno.EBADF, Answer.ABSENT, _same(Answer.NEXT))
