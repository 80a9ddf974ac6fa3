"""A terminal device that is opened by path, and hung up as the kernel does it.

These are the steps of `__tty_hangup` (drivers/tty/tty_io.c), and what does each of them here:

== ====================================================== =============================================================
 1 take a console redirection off                         what forwards into the terminal is opened on its node, too
 2 lock out openers, closers, other hang-ups              refusing is one step that nothing interrupts
 3 already hung up: done                                  a generation is revoked once
 4 TTY_HUPPING                                            the generation is `revoked`, and not `released`
 5 check the counts                                       `Driver`: opens are closes and hang-ups
 6 swap the file operations; consoles stay                handles of the generation refuse; pinned ones do not
 7 HUP, then CONT to the session leader                   `KernelDriver`, in `hangup` or `reset`
 8 flush the queues; wake all; wait for them; reset       kick and drain; `KernelDriver` flushes and resets
 9 forget the session                                     with the TIOCVHANGUP of step 10
10 consoles: the driver's close, n times; else its hangup the generation's release, which is told the number pinned
11 TTY_HUPPED; the next open begins anew                  the generation is `released`; `open` begins the next
12 drop the redirection                                   see 1
== ====================================================== =============================================================
"""

import contextlib
import errno
import functools
import itertools
import os
import pathlib
import signal
from collections.abc import Awaitable, Iterable
from types import EllipsisType
from typing import Any, Protocol

from asyncrevoke.answers import Answers
from asyncrevoke.linux import fcntl, termios
from asyncrevoke.lowlevel import (
    FdStream,
    Name,
    OffLoop,
    Registry,
    Resource,
    Revocation,
    Revokable,
    close_off_loop,
    off_loop,
    os_errors,
)

TIOCVHANGUP = 0x5437  # include/uapi/asm-generic/ioctls.h
PTYS = range(136, 144)  # include/uapi/linux/major.h, UNIX98_PTY_SLAVE_MAJOR and those after it


class Driver(Protocol):
    """The hardware behind a terminal (struct tty_operations). Opens equal closes plus opens that were hung up."""

    def open(self, fd: int) -> None:
        """The terminal was opened once more. If this raises, the open is undone."""

    def close(self) -> None:
        """One of its opens was closed, or was hung up while a console stays open."""

    def hangup(self) -> Awaitable[object] | None:
        """All of its opens were hung up, and it has none any more. Nobody opens it until this has ended."""

    def reset(self) -> None:
        """All opens but those of consoles were hung up: tell the session's leader, and drop what is queued."""


class KernelDriver:
    """A terminal of the kernel's: a hang-up reaches all other programs that have it open.

    With CAP_SYS_ADMIN, TIOCVHANGUP does it. Without it, or if a console stays, the hang-up does less. Queued data is
    flushed, and the settings are those of before the first open. The session leader gets SIGHUP and SIGCONT if we may
    send them. Other programs' open files still work.

    :ivar path: of the terminal
    :ivar vhangup: whether the last hang-up was the kernel's own; None if there was none
    """

    def __init__(self, path: str) -> None:
        self.path = path
        self._fd = -1  # as long as it is open here: by the path, a hang-up could hit what has come in its place
        self._opens = 0
        self._settings: list[Any] | None = None
        self.vhangup: bool | None = None

    def open(self, fd: int) -> None:
        if not self._opens:
            with os_errors(self.path):
                self._settings = self._settings or termios.tcgetattr(fd)
            self._fd = os.dup(fd)
        self._opens += 1

    def close(self) -> None:
        self._opens -= 1
        if not self._opens:
            self._forget()

    def hangup(self) -> Awaitable[object] | None:
        self._opens = 0
        return close_off_loop(self._hang_up)

    def _hang_up(self) -> None:
        try:
            if self._fd < 0:
                self._fd = _open(self.path)
            try:
                fcntl.ioctl(self._fd, TIOCVHANGUP)
                self.vhangup = True
            except PermissionError:
                self.reset()
        except OSError as exc:
            if exc.errno not in (errno.ENOENT, errno.ENXIO, errno.ENODEV, errno.EIO):
                raise  # else the device is gone, and the kernel has hung it up
        finally:
            self._forget()

    def reset(self) -> None:
        self.vhangup = False
        with os_errors(self.path):
            termios.tcflush(self._fd, termios.TCIOFLUSH)
            if self._settings is not None:
                termios.tcsetattr(self._fd, termios.TCSANOW, self._settings)
        there = os.fstat(self._fd)
        leaders = _session_leaders(there.st_rdev, there.st_dev)  # last: it needs descriptors, which may have run out
        for leader, signum in itertools.product(leaders, (signal.SIGHUP, signal.SIGCONT)):
            with contextlib.suppress(PermissionError, ProcessLookupError):
                os.kill(leader, signum)

    def _forget(self) -> None:
        fd, self._fd = self._fd, -1
        if fd >= 0:
            os.close(fd)


class Terminal(Name):
    """The name of a terminal. A hang-up works even if nobody here has it open, because others may."""

    __slots__ = ()

    def ending(self) -> Revokable:
        if self.current.released and not self.revoked:
            self.open("hang-up")
        return super().ending()


class Tty(Resource):
    """A terminal device: ``tty = Tty("/dev/ttyS0"); stream = await tty.open("alice"); await tty.hangup()``

    Revoking or closing it hangs it up for good: the terminal is gone, consoles too, and its name is free.

    :param path: of the device. It is opened once, to check that it is a terminal. That waits as long as another process
        closes it
    :param name: for errors and reports. Default: the path's last part
    :param registry: makes it findable by its name, path and device number
    :param driver: the driver behind it. Default: the kernel
    :param options: as for `Name`, without `while_draining` and `hangup`
    :raises OSError: if there is no terminal at `path`
    :raises ValueError: if the registry has that name or device already
    :ivar node: the name, which stays through hang-ups
    """

    node: Name

    def __init__(
        self,
        path: str | os.PathLike[str],
        *,
        name: str = "",
        registry: Registry | None = None,
        driver: Driver | None = None,
        **options: Any,
    ) -> None:
        self.path = os.fspath(path)
        self.driver = driver or KernelDriver(self.path)
        os.close(_open(self.path))
        name = name or pathlib.PurePath(self.path).name
        options |= {"while_draining": "queue", "hangup": self._hung_up}  # the kernel's next open waits for the lock
        self.node = (
            Terminal(name, **options) if registry is None else registry.name(name, self.path, kind=Terminal, **options)
        )
        self._hung = 0  # opens that were hung up, of which the driver has not been told

    async def open(
        self,
        name: str = "",
        *,
        also: Iterable[Revokable] = (),
        answers: Answers | EllipsisType = ...,
        console: bool = False,
    ) -> FdStream:
        """Open a stream on it, in the current generation or as the first of the next. It is not a controlling terminal.

        While a hang-up is not finished, this waits for it in a queue, as the kernel's tty_open does for the lock.

        :param also: further parents, such as a token. Whichever is revoked first takes the stream along
        :param console: the stream stays through hang-ups (RFC, spot 8), and goes with the terminal itself
        :raises OSError: if the device cannot be opened
        :raises RevokedError: if the terminal is gone, also while waiting
        :raises ~anyio.BusyResourceError: if too many wait
        Cancellation: nothing was opened.
        """
        fd = await self._opened()
        generation: Revokable | None = None

        def close(fd: int) -> OffLoop[object] | None:
            if generation is not None and generation.revoked:
                self._hung += 1  # the generation's release tells the driver
            else:
                self.driver.close()
            return close_off_loop(lambda: os.close(fd))  # on a stalled line the kernel takes half a minute

        try:
            self.driver.open(fd)
        except BaseException:
            os.close(fd)
            raise
        try:
            stream = FdStream(
                fd, self.node.pin if console else self.node.open, answers, name=name, also=also, close=close
            )
        except BaseException:
            if (closing := close(fd)) is not None:
                await closing
            raise
        if not console:
            generation = stream.handle.parent
        return stream

    async def _opened(self) -> int:
        """Return a descriptor of it that no hang-up has reached. The kernel opens it when nobody is closing it, so a
        thread waits.
        """
        while True:
            await self.node.drained()
            before, over = self.node.current, self.node.current.revoked
            fd = await off_loop(lambda: _open(self.path), late=os.close)
            if self.node.current is before and before.revoked == over:
                return fd
            if (closing := close_off_loop(functools.partial(os.close, fd))) is not None:
                await closing

    def hangup(self, reason: str = "hung up", *, grace: float = 0.0) -> Revocation:
        """Hang it up for everybody who has it open, here and, by the kernel, in other programs. Consoles stay.

        The name can be opened again at once. Otherwise this works like `Revokable.revoke`.
        """
        return self.node.hangup(reason, grace=grace)

    def __repr__(self) -> str:
        return f"<Tty {self.path!r} of {self.node!r}>"

    def _hung_up(self, pinned: int) -> Awaitable[object] | None:
        """The release of a generation (step 10)."""
        hung, self._hung = self._hung, 0
        if not pinned:
            return self.driver.hangup()
        with contextlib.ExitStack() as told:  # all of it, whatever one step raises
            for _ in range(hung):
                told.callback(self.driver.close)
            self.driver.reset()
        return None


def _open(path: str) -> int:
    fd = os.open(path, os.O_RDWR | os.O_NOCTTY | os.O_NONBLOCK | os.O_CLOEXEC)
    if not os.isatty(fd):
        os.close(fd)
        raise OSError(errno.ENOTTY, "not a terminal", path)
    return fd


def _session_leaders(device: int, devpts: int) -> list[int]:
    """Return the leaders of sessions whose controlling terminal is that device. Of ptys, only those of this devpts.

    A container has a devpts of its own, with the same numbers, and /proc may list its processes.
    """
    leaders = []
    for process in pathlib.Path("/proc").iterdir():  # glob() hides an error, such as that there is no descriptor left
        try:
            _, _, _, session, tty, _ = (process / "stat").read_bytes().rpartition(b")")[2].split(maxsplit=5)
        except (OSError, ValueError):  # ended meanwhile, or no process
            continue
        if int(tty) == device and session == process.name.encode() and _has_ptys(process, device, devpts):
            leaders.append(int(session))
    return leaders


def _has_ptys(process: pathlib.Path, device: int, devpts: int) -> bool:
    try:
        return os.major(device) not in PTYS or (process / "root/dev/pts").stat().st_dev == devpts
    except OSError:  # another user's: the number is all that is known
        return True
