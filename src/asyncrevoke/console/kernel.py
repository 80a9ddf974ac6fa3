"""Finds the programs that hold something, of all users, and takes it from them by the kernel's own revocation.

A terminal is hung up for all of them at once. Other files are taken one by one, and only a process that has a file may take
it. So this process first gets each file by pidfd_getfd(2). A file that no visible process has is not taken, such as one that
is under way in a socket.
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

_TIOCGDEV = 0x80045432  # include/uapi/asm-generic/ioctls.h: of /dev/tty, it tells the terminal behind it
_PIDFD_GETFD = 438  # include/uapi/asm-generic/unistd.h
_libc = ctypes.CDLL(None, use_errno=True)
#: Why a process keeps a file, and what to do, for errors of which the kernel's own words do not say it.
_KEPT = {
    errno.EPERM: "you may not take files from it. Run this as root or with CAP_SYS_PTRACE, outside of any container, "
    "and with kernel.yama.ptrace_scope below 3",
    errno.ENOSYS: "pidfd_getfd(2) is missing. Run this outside of any container, on Linux 5.6 or later",
}


@dataclass(frozen=True, slots=True)
class Holder:
    """A process that has a file open, or has it as its controlling terminal, or both."""

    pid: int
    user: str
    command: str
    how: str


class Held(Protocol):
    """Something that programs hold, and that the kernel can take away.

    :ivar what: what it is, such as a device and its number
    :ivar effect: says beforehand what its holders will see
    :ivar done: says what happened, after the words "PATH is"
    :ivar ours: whether it is the controlling terminal of this process
    """

    what: str
    effect: str
    done: str
    ours: bool

    def __enter__(self) -> Self: ...

    def __exit__(self, *_: object) -> None: ...

    def holders(self) -> Iterator[Holder]:
        """Yield the processes that have it, as far as we may see them. This process is left out."""

    def take(self) -> None:
        """Take it away from all of them.

        :raises OSError: if a process keeps it. For files that are taken one by one, also if no process has it
        """


def held(path: str) -> Held:
    """Find what is at a path. A device that cannot be taken away is not opened, since opening some devices has effects.

    :raises OSError: if nothing is there. EOPNOTSUPP: the kernel cannot take it away. The message says why
    """
    with _opened(path, O_PATH) as fd:
        mode, driver = os.fstat(fd).st_mode, driver_of(fd)
        if stat.S_ISSOCK(mode):
            return HeldFiles(path, "socket", SOCKET, _SOCKET_GOES, _bound(path))
        if not stat.S_ISCHR(mode):
            raise OSError(
                errno.EOPNOTSUPP,
                "the kernel takes away terminals, input devices (evdev, hidraw) and sockets, and nothing else",
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
    waits = "Their waits end." if means.wakes else "A read that waits goes on waiting, and gets nothing."
    effect = f"They get ENODEV. {waits}"
    what = f"device {os.major(number)}:{os.minor(number)}"
    return HeldFiles(path, what, means, effect, lambda there: stat.S_ISCHR(there.st_mode) and there.st_rdev == number)


@contextlib.contextmanager
def _opened(path: str, flags: int) -> Iterator[int]:
    fd = os.open(path, flags | os.O_NOCTTY | os.O_CLOEXEC)
    try:
        yield fd
    finally:
        os.close(fd)


_SOCKET_GOES = (
    "Their reads get the end of data, their writes fail with EPIPE, and nobody can connect. The other ends are told."
)


def _bound(path: str) -> Callable[[os.stat_result], bool]:
    """Return a test for sockets that were bound at this path: the one that listens, and those that it has accepted."""
    name = pathlib.Path(os.path.realpath(path))
    lines = [line.split(None, 7) for line in pathlib.Path("/proc/net/unix").read_bytes().splitlines()]
    bound = [(int(line[6]), pathlib.Path(os.fsdecode(line[7]))) for line in lines[1:] if len(line) == 8]
    # Only a name that may be the same is resolved: the file systems of others may have died.
    same = [each for each in bound if each[1].is_absolute() and each[1].name == name.name]
    inodes = {number for number, each in same if os.path.realpath(each) == str(name)}
    return lambda there: stat.S_ISSOCK(there.st_mode) and there.st_ino in inodes


class HeldFiles:
    """Files that are taken from each process by itself: open files of a device, or sockets."""

    ours = False

    def __init__(
        self, path: str, what: str, means: Means, effect: str, is_it: Callable[[os.stat_result], bool]
    ) -> None:
        self.path = path
        self.what = what
        self.effect = f"The kernel will take it away from all of them, by {means.name}.\n{effect}"
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
            except ProcessLookupError:  # the process has ended
                pass
            except OSError as exc:
                kept[process.name] = exc
        if kept:
            whys = [f"process {pid} keeps it: {_KEPT.get(exc.errno or 0, exc.strerror)}" for pid, exc in kept.items()]
            others = "the others have lost it" if taken else "nothing was done"
            raise OSError(next(iter(kept.values())).errno, "; ".join([*whys, others]), self.path)
        if not taken:
            raise ProcessLookupError(errno.ESRCH, "no process that you can see has it, so nothing was done", self.path)

    def _take(self, pid: int, number: int) -> bool:
        """Take one file of a process, by its number there. Return False if that number is no longer the file."""
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
                return False  # the number is that of another file by now
            with contextlib.suppress(OSError):  # it may be taken already, by another number of it. poll(2) tells below
                self._means.take(fd)
            if why_hung_up(fd) is None:
                raise OSError(errno.EBUSY, f"{self._means.name} has not taken it")
            return True
        finally:
            os.close(fd)


class HeldTerminal(KernelDriver):
    """A terminal: ``with HeldTerminal("/dev/ttyS0") as terminal: ...``

    It is kept open. So no other terminal can be hung up that has come to the path meanwhile.

    :ivar number: number of the device
    :raises OSError: on entering, if there is no terminal at `path`, or it may not be opened
    """

    effect = (
        "The kernel will take it away from all of them. Their reads get the end of data, and their writes fail with EIO.\n"
        "Those whose controlling terminal it is get SIGHUP, which ends most programs."
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
        # Each container has a devpts of its own, where ptys have the same numbers as elsewhere. /dev/tty is in none.
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
        """Refuse: this would do less than the hang-up that was asked for."""
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
        except OSError:  # a process of another user, or without a devpts: the number is all that is known
            return True

    def _is_it(self, there: os.stat_result) -> bool:
        same = stat.S_ISCHR(there.st_mode) and there.st_rdev == self.number
        return same and self._devpts in (None, there.st_dev)


def holders_of(terminals: AbstractSet[int]) -> Iterator[tuple[int, Holder]]:
    """Yield the processes that have terminals of these numbers, each with the number.

    No terminal is opened, since opening a serial port has effects at its far end.
    """
    for process in _others():
        with contextlib.suppress(OSError, ValueError):  # the process has ended meanwhile
            number = _controlling(process)
            opened = {there.st_rdev for _, there in _looked_at(process) if stat.S_ISCHR(there.st_mode)}
            for each in terminals & {number, *opened}:
                yield each, _holder(process, ["controlling terminal"] * (each == number) + ["open"] * (each in opened))


def _holders(how: Callable[[pathlib.Path], list[str]]) -> Iterator[Holder]:
    for process in _others():
        with contextlib.suppress(OSError, ValueError):  # the process has ended meanwhile
            if words := how(process):
                yield _holder(process, words)


def _holder(process: pathlib.Path, words: list[str]) -> Holder:
    command = (process / "cmdline").read_bytes().replace(b"\0", b" ").strip()
    command = command or (process / "comm").read_bytes().strip()
    owner = user_name(process.stat().st_uid)
    return Holder(int(process.name), owner, command.decode(errors="replace"), ", ".join(words))


def _others() -> list[pathlib.Path]:
    """Return all processes but this one, in /proc."""
    found = [path for path in pathlib.Path("/proc").iterdir() if path.name.isdigit() and int(path.name) != os.getpid()]
    return sorted(found, key=lambda path: int(path.name))


def _open_files(process: pathlib.Path, is_it: Callable[[os.stat_result], bool]) -> Iterator[int]:
    """Return the numbers under which a process has a file open."""
    return (number for number, there in _looked_at(process) if is_it(there))


def _looked_at(process: pathlib.Path) -> Iterator[tuple[int, os.stat_result]]:
    """Yield the devices and sockets that a process has open, each with its number there."""
    with contextlib.suppress(OSError):  # a process of another user, or one that has ended
        for fd in (process / "fd").iterdir():
            with contextlib.suppress(OSError):
                link = str(fd.readlink())
                if "/dev/" not in link and not link.startswith("socket:"):
                    continue  # stat(2) could wait for ever, on a file system that has died
                yield int(fd.name), fd.stat()


def _controlling(process: pathlib.Path) -> int:
    """Return the number of the controlling terminal of a process, or 0 if it has none."""
    return int((process / "stat").read_bytes().rpartition(b")")[2].split()[4])
