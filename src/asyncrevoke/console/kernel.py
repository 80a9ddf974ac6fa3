"""A terminal that programs of any user hold: who they are, and the kernel's own revocation."""

import array
import contextlib
import errno
import fcntl
import os
import pathlib
import stat
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Self

from asyncrevoke.adapters.tty import PTYS, KernelDriver
from asyncrevoke.control.peer import user_name

_TIOCGDEV = 0x80045432  # include/uapi/asm-generic/ioctls.h: /dev/tty, too, tells which it is


@dataclass(frozen=True, slots=True)
class Holder:
    """A process that has a terminal open, or as its controlling terminal, or both."""

    pid: int
    user: str
    command: str
    how: str


class HeldTerminal(KernelDriver):
    """A terminal, kept open so that it is no other when it is hung up: ``with HeldTerminal("/dev/ttyS0") as terminal: ...``

    :ivar number: of the device
    :ivar ours: whether it is this process's controlling terminal
    :raises OSError: on entering, if there is no terminal at `path`, or it may not be opened
    """

    def __enter__(self) -> Self:
        if not stat.S_ISCHR(os.stat(self.path).st_mode):  # noqa: PTH116
            raise OSError(errno.ENOTTY, "not a terminal", self.path)
        fd = os.open(self.path, os.O_RDWR | os.O_NOCTTY | os.O_NONBLOCK | os.O_CLOEXEC)
        try:
            if not os.isatty(fd):
                raise OSError(errno.ENOTTY, "not a terminal", self.path)
            fcntl.ioctl(fd, _TIOCGDEV, number := array.array("I", [0]))
            self.open(fd)
            there = os.fstat(fd)
        finally:
            os.close(fd)
        self.number = number[0]
        # Each container has a devpts, and so ptys, of its own, with the same numbers; /dev/tty tells of none.
        is_pty = there.st_rdev == self.number and os.major(self.number) in PTYS
        self._devpts = there.st_dev if is_pty else None
        self.ours = _controlling(pathlib.Path("/proc/self")) == self.number
        return self

    def __exit__(self, *_: object) -> None:
        if self.vhangup is None:
            self.close()

    def reset(self) -> None:
        """Less than a hang-up is not what was asked for."""
        raise PermissionError(errno.EPERM, "only root may hang it up (CAP_SYS_ADMIN); nothing was done", self.path)

    def holders(self) -> Iterator[Holder]:
        """Who has it, but for this process; as far as we may see."""
        for process in sorted(
            filter(lambda path: path.name.isdigit(), pathlib.Path("/proc").iterdir()), key=lambda path: int(path.name)
        ):
            if int(process.name) != os.getpid():
                with contextlib.suppress(OSError, ValueError):  # ended meanwhile
                    how = ["controlling terminal"] * self._controls(process)
                    how += ["open"] * self._has_open(process)
                    if how:
                        command = (process / "cmdline").read_bytes().replace(b"\0", b" ").strip()
                        command = command or (process / "comm").read_bytes().strip()
                        owner = user_name(process.stat().st_uid)
                        yield Holder(int(process.name), owner, command.decode(errors="replace"), ", ".join(how))

    def _controls(self, process: pathlib.Path) -> bool:
        if _controlling(process) != self.number:
            return False
        try:
            return self._devpts in (None, (process / "root/dev/pts").stat().st_dev)
        except OSError:  # another user's, or it has none: the number is all that is known
            return True

    def _has_open(self, process: pathlib.Path) -> bool:
        with contextlib.suppress(OSError):  # another user's
            for fd in (process / "fd").iterdir():
                with contextlib.suppress(OSError):
                    if "/dev/" not in str(fd.readlink()):
                        continue  # to look at a file takes as long as its file system takes, which may have died
                    there = fd.stat()
                    same = stat.S_ISCHR(there.st_mode) and there.st_rdev == self.number
                    if same and self._devpts in (None, there.st_dev):
                        return True
        return False


def _controlling(process: pathlib.Path) -> int:
    """The number of a process's controlling terminal, or 0."""
    return int((process / "stat").read_bytes().rpartition(b")")[2].split()[4])
