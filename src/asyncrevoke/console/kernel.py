"""What programs of any user hold: who they are, and the kernel's own revocation.

A terminal is hung up. Of other files the kernel takes each by itself, and only from who has it: so by pidfd_getfd(2) this
process has it, too. What nobody seen here has, such as a descriptor that is under way in a socket, is not taken.
"""

from __future__ import annotations

import array
import contextlib
import ctypes
import errno
import os
import pathlib
import stat
from collections.abc import Callable, Iterator, Set as AbstractSet
from dataclasses import dataclass
from typing import Protocol, Self

from asyncrevoke.adapters.device.device import why_hung_up
from asyncrevoke.adapters.device.identity import driver_of
from asyncrevoke.adapters.lend import DRIVERS, SOCKET, Means, means_for
from asyncrevoke.adapters.tty import PTYS, KernelDriver
from asyncrevoke.control.peer import user_name
from asyncrevoke.linux import O_PATH, fcntl, pidfd_open

_TIOCGDEV = 0x80045432  # include/uapi/asm-generic/ioctls.h: /dev/tty, too, tells which it is
_PIDFD_GETFD = 438  # include/uapi/asm-generic/unistd.h
_libc = ctypes.CDLL(None, use_errno=True)
#: Why a process keeps what it has, and what to do, where the kernel's own words do not say it.
_KEPT = {
    errno.EPERM: "you may not take files from it: be root, or have CAP_SYS_PTRACE, outside of any container, "
    "and kernel.yama.ptrace_scope below 3",
    errno.ENOSYS: "pidfd_getfd(2) is missing: do it outside of any container, on Linux 5.6 or later",
}


@dataclass(frozen=True, slots=True)
class Holder:
    """A process that has something open, or as its controlling terminal, or both."""

    pid: int
    user: str
    command: str
    how: str


class Held(Protocol):
    """Something that programs hold, and that the kernel takes away.

    :ivar what: it is
    :ivar effect: what is to be known before
    :ivar done: what it is then
    :ivar ours: whether it is this process's controlling terminal
    """

    what: str
    effect: str
    done: str
    ours: bool

    def __enter__(self) -> Self: ...

    def __exit__(self, *_: object) -> None: ...

    def holders(self) -> Iterator[Holder]:
        """Who has it, but for this process; as far as we may see."""

    def take(self) -> None:
        """Take it away from all of them.

        :raises OSError: if somebody keeps it
        """


def held(path: str) -> Held:
    """What is at a path. No device is opened that is none of those that can be taken away: some do things when they are.

    :raises OSError: EOPNOTSUPP, with the reason, if the kernel has no means; or there is nothing
    """
    with _opened(path, O_PATH) as fd:
        mode, driver = os.fstat(fd).st_mode, driver_of(fd)
        if stat.S_ISSOCK(mode):
            return HeldFiles(path, "socket", SOCKET, _SOCKET_GOES, _bound(path))
        if not stat.S_ISCHR(mode):
            raise OSError(
                errno.EOPNOTSUPP,
                "the kernel takes away terminals, input devices (evdev, hidraw) and sockets; of other files, not one",
                path,
            )
        if driver in DRIVERS:
            return _held_device(path, DRIVERS[driver], os.fstat(fd).st_rdev)
        if driver not in ("", "tty"):  # a pty's slave is not in sysfs
            raise OSError(errno.EOPNOTSUPP, f"the kernel cannot take a device of {driver!r} away", path)
    return HeldTerminal(path)


def _held_device(path: str, means: Means, number: int) -> HeldFiles:
    with _opened(path, os.O_RDONLY | os.O_NONBLOCK) as fd:
        try:
            means_for(fd)
        except OSError as exc:
            raise OSError(exc.errno, f"this kernel has no {means.name}, so nobody can take it away", path) from exc
    effect = (
        f"They get ENODEV. {'Their waits end.' if means.wakes else 'Who waits in a read waits on, and gets nothing.'}"
    )
    what = f"device {os.major(number)}:{os.minor(number)}"
    return HeldFiles(path, what, means, effect, lambda there: stat.S_ISCHR(there.st_mode) and there.st_rdev == number)


@contextlib.contextmanager
def _opened(path: str, flags: int) -> Iterator[int]:
    fd = os.open(path, flags | os.O_NOCTTY | os.O_CLOEXEC)
    try:
        yield fd
    finally:
        os.close(fd)


_SOCKET_GOES = "They read the end, their writes fail with EPIPE, and nobody can connect. The other ends are told."


def _bound(path: str) -> Callable[[os.stat_result], bool]:
    """Which sockets have this name: that which listens, and those that it has accepted."""
    name = pathlib.Path(os.path.realpath(path))
    lines = [line.split(None, 7) for line in pathlib.Path("/proc/net/unix").read_bytes().splitlines()]
    bound = [(int(line[6]), pathlib.Path(os.fsdecode(line[7]))) for line in lines[1:] if len(line) == 8]
    # Only a name that may be the same is resolved: the file systems of others may have died.
    same = [each for each in bound if each[1].is_absolute() and each[1].name == name.name]
    inodes = {number for number, each in same if os.path.realpath(each) == str(name)}
    return lambda there: stat.S_ISSOCK(there.st_mode) and there.st_ino in inodes


class HeldFiles:
    """Files that each process has opened for itself, and that are taken from each."""

    ours = False

    def __init__(
        self, path: str, what: str, means: Means, effect: str, is_it: Callable[[os.stat_result], bool]
    ) -> None:
        self.path = path
        self.what = what
        self.effect = f"By {means.name} the kernel will take it away from all of them.\n{effect}"
        self.done = f"taken away from all of them by {means.name}"
        self._means = means
        self._is_it = is_it

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        pass

    def holders(self) -> Iterator[Holder]:
        return _holders(lambda process: ["open"] * bool([*_open_files(process, self._is_it)]))

    def take(self) -> None:
        taken = 0
        kept: dict[str, OSError] = {}
        for process in _others():
            try:
                for number in _open_files(process, self._is_it):
                    taken += self._take(int(process.name), number)
            except ProcessLookupError:  # it has ended
                pass
            except OSError as exc:
                kept[process.name] = exc
        if kept:
            whys = [f"process {pid} keeps it: {_KEPT.get(exc.errno or 0, exc.strerror)}" for pid, exc in kept.items()]
            others = "the others have lost it" if taken else "nothing was done"
            raise OSError(next(iter(kept.values())).errno, "; ".join([*whys, others]), self.path)
        if not taken:
            raise ProcessLookupError(errno.ESRCH, "nobody who can be seen here has it, so nothing was done", self.path)

    def _take(self, pid: int, number: int) -> bool:
        """Whether it was still there to be taken."""
        pidfd = pidfd_open(pid)
        try:
            fd = _libc.syscall(_PIDFD_GETFD, pidfd, number, 0)
        finally:
            os.close(pidfd)
        if fd < 0:
            if ctypes.get_errno() == errno.EBADF:
                return False
            raise OSError(ctypes.get_errno(), os.strerror(ctypes.get_errno()))
        try:
            if not self._is_it(os.fstat(fd)):
                return False  # another, by now
            with contextlib.suppress(OSError):  # it is taken already, as by another number of it; else poll(2) tells
                self._means.take(fd)
            if why_hung_up(fd) is None:
                raise OSError(errno.EBUSY, f"{self._means.name} has not taken it")
            return True
        finally:
            os.close(fd)


class HeldTerminal(KernelDriver):
    """A terminal, kept open so that it is no other when it is hung up: ``with HeldTerminal("/dev/ttyS0") as terminal: ...``

    :ivar number: of the device
    :raises OSError: on entering, if there is no terminal at `path`, or it may not be opened
    """

    effect = (
        "The kernel will take it away from all of them: they read the end, their writes fail with EIO,\n"
        "and those whose controlling terminal it is get SIGHUP, of which most die."
    )
    done = "hung up"

    def __enter__(self) -> Self:
        with _opened(self.path, os.O_RDWR | os.O_NONBLOCK) as fd:
            if not os.isatty(fd):
                raise OSError(errno.ENOTTY, "not a terminal", self.path)
            fcntl.ioctl(fd, _TIOCGDEV, number := array.array("I", [0]))
            self.open(fd)
            there = os.fstat(fd)
        self.number = number[0]
        self.what = f"device {os.major(self.number)}:{os.minor(self.number)}"
        # Each container has a devpts, and so ptys, of its own, with the same numbers; /dev/tty tells of none.
        is_pty = there.st_rdev == self.number and os.major(self.number) in PTYS
        self._devpts = there.st_dev if is_pty else None
        self.ours = _controlling(pathlib.Path("/proc/self")) == self.number
        return self

    def __exit__(self, *_: object) -> None:
        if self.vhangup is None:
            self.close()

    def take(self) -> None:
        self.hangup()

    def reset(self) -> None:
        """Less than a hang-up is not what was asked for."""
        raise PermissionError(errno.EPERM, "only root may hang it up (CAP_SYS_ADMIN); nothing was done", self.path)

    def holders(self) -> Iterator[Holder]:
        return _holders(
            lambda process: (
                ["controlling terminal"] * self._controls(process)
                + ["open"] * bool([*_open_files(process, self._is_it)])
            )
        )

    def _controls(self, process: pathlib.Path) -> bool:
        if _controlling(process) != self.number:
            return False
        try:
            return self._devpts in (None, (process / "root/dev/pts").stat().st_dev)
        except OSError:  # another user's, or it has none: the number is all that is known
            return True

    def _is_it(self, there: os.stat_result) -> bool:
        same = stat.S_ISCHR(there.st_mode) and there.st_rdev == self.number
        return same and self._devpts in (None, there.st_dev)


def holders_of(terminals: AbstractSet[int]) -> Iterator[tuple[int, Holder]]:
    """Who has terminals of these numbers, and which. None is opened: to open a serial port does something at its far end."""
    for process in _others():
        with contextlib.suppress(OSError, ValueError):  # ended meanwhile
            number = _controlling(process)
            opened = {there.st_rdev for _, there in _looked_at(process) if stat.S_ISCHR(there.st_mode)}
            for each in terminals & {number, *opened}:
                yield each, _holder(process, ["controlling terminal"] * (each == number) + ["open"] * (each in opened))


def _holders(how: Callable[[pathlib.Path], list[str]]) -> Iterator[Holder]:
    for process in _others():
        with contextlib.suppress(OSError, ValueError):  # ended meanwhile
            if words := how(process):
                yield _holder(process, words)


def _holder(process: pathlib.Path, words: list[str]) -> Holder:
    command = (process / "cmdline").read_bytes().replace(b"\0", b" ").strip()
    command = command or (process / "comm").read_bytes().strip()
    owner = user_name(process.stat().st_uid)
    return Holder(int(process.name), owner, command.decode(errors="replace"), ", ".join(words))


def _others() -> list[pathlib.Path]:
    """All processes but this one."""
    found = [path for path in pathlib.Path("/proc").iterdir() if path.name.isdigit() and int(path.name) != os.getpid()]
    return sorted(found, key=lambda path: int(path.name))


def _open_files(process: pathlib.Path, is_it: Callable[[os.stat_result], bool]) -> Iterator[int]:
    """The numbers under which a process has it open."""
    return (number for number, there in _looked_at(process) if is_it(there))


def _looked_at(process: pathlib.Path) -> Iterator[tuple[int, os.stat_result]]:
    """The devices and sockets that a process has open."""
    with contextlib.suppress(OSError):  # another user's, or ended
        for fd in (process / "fd").iterdir():
            with contextlib.suppress(OSError):
                link = str(fd.readlink())
                if "/dev/" not in link and not link.startswith("socket:"):
                    continue  # to look at a file takes as long as its file system takes, which may have died
                yield int(fd.name), fd.stat()


def _controlling(process: pathlib.Path) -> int:
    """The number of a process's controlling terminal, or 0."""
    return int((process / "stat").read_bytes().rpartition(b")")[2].split()[4])
