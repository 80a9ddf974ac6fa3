"""A program on a pseudo terminal, shared by any number of streams, each of which can be taken away.

The session is a node; its clients and the master are children of it. Revoking the session ends the clients, closes the
master, which hangs the terminal up (drivers/tty/pty.c, pty_close: SIGHUP and SIGCONT to the session leader), then sees
that the program and its process group are gone, and reaps it.
"""

from __future__ import annotations

import contextlib
import ctypes
import errno
import fcntl
import functools
import itertools
import os
import pathlib
import signal
import struct
import subprocess
import termios
from collections.abc import Awaitable, Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from types import EllipsisType
from typing import Unpack

import anyio
import anyio.abc
import anyio.lowlevel

from asyncrevoke.answers import Answers
from asyncrevoke.lowlevel import Fd, Resource, Revokable, Shared, SharedOptions, SharedStream, in_loop, os_errors

_PR_SET_PDEATHSIG = 1  # include/uapi/linux/prctl.h
_TIOCGPTPEER = 0x5441  # include/uapi/asm-generic/ioctls.h
_TERMINALS = (
    *(signal.SIGHUP, signal.SIGINT, signal.SIGQUIT, signal.SIGTERM, signal.SIGCHLD),
    *(signal.SIGTSTP, signal.SIGTTIN, signal.SIGTTOU),
)
_libc = ctypes.CDLL(None, use_errno=True)


def open_pty(
    argv: Sequence[str | os.PathLike[str]],
    *,
    owner: Revokable | None = None,
    name: str = "",
    env: Mapping[str, str] | None = None,
    cwd: str | os.PathLike[str] | None = None,
    size: tuple[int, int] = (24, 80),
    backlog: int = 65536,
    patience: float = 10.0,
    history: int = 0,
    kill_after: float = 5.0,
    answers: Answers | EllipsisType = ...,
) -> PtySession:
    """Start a program on a new pty: ``async with open_pty(["bash"]) as session: stream = session.open("alice")``

    It leads a session of its own with the pty as its controlling terminal. It is killed if this thread ends, however
    that happens, so call this in the thread that runs the loop, to which the session belongs. Of its own children, one
    that ignores SIGHUP outlives a SIGKILL of this process, and nothing else.

    :param owner: what the session is opened on; a `Name` gives it a generation
    :param name: for errors and reports; left out: the program's
    :param env: its whole environment; None: this process's
    :param size: rows and columns
    :param backlog: bytes that a client may be behind before it is revoked as too slow. The program is held up first, for a
        client that is more than half of it behind and goes on receiving
    :param patience: seconds without receiving after which a client holds the program up no longer
    :param history: bytes of the last output that are kept for streams opened with `replay`
    :param kill_after: seconds from the hang-up to SIGKILL for those who stay
    :raises TypeError, ValueError: if an option makes no sense
    :raises FileNotFoundError, PermissionError: if the program or `cwd` is not there, or may not be run
    :raises OSError: if no pty is free
    :raises RevokedError: if the owner was revoked; nothing was started
    """
    program = _Program(argv, env, cwd, size)
    if not kill_after >= 0:
        raise ValueError(f"kill_after is {kill_after!r}: give seconds, 0 or more")
    make = functools.partial((owner or Revokable()).open, name or pathlib.PurePath(argv[0]).name, answers=answers)
    line = functools.partial(Shared, backlog=backlog, patience=patience, history=history)
    return PtySession(program, make, line, kill_after)


@dataclass(frozen=True, slots=True)
class _Program:
    """What runs on a pty, and how, as for `open_pty`."""

    argv: Sequence[str | os.PathLike[str]]
    env: Mapping[str, str] | None
    cwd: str | os.PathLike[str] | None
    size: tuple[int, int]

    def __post_init__(self) -> None:
        if isinstance(self.argv, str | bytes) or not self.argv:
            raise TypeError(f"argv is {self.argv!r}: give the program and its arguments as a list")
        if len(self.size) != 2 or not all(0 <= each <= 0xFFFF for each in self.size):
            raise ValueError(f"size is {self.size!r}: give rows and columns")


class PtySession(Resource):
    """A program on a pty, as `open_pty` starts it. Closing it hangs it up, and waits until the program is reaped.

    To revoke it takes the terminal away from all, and ends the program: HUP, CONT, and KILL for what stays.

    :ivar pid: of the program, which is also its process group and its session
    """

    def __init__(
        self, program: _Program, make: Callable[[], Revokable], line: Callable[..., Shared], kill_after: float
    ) -> None:
        self._kill_after = kill_after
        self._shared = line(self._read, self._write_some)
        self.node = make()
        started = None
        try:
            started = self._process, master = _spawn(program)
            self.pid = self._process.pid
            # A master answers EIO when the last slave is closed and all has been read.
            self._master = Fd(master, self.node, end=errno.EIO)
            self.node.release = self._hang_up
        except BaseException:
            if started is not None:
                started[0].kill()
                started[0].wait()
                os.close(started[1])
            self.node.close()
            raise

    def open(self, name: str = "", **options: Unpack[SharedOptions]) -> PtyStream:
        """Open one more stream on the terminal. It gets all output from now on, as every other does.

        :param options: as `SharedOptions` says
        :raises RevokedError, ~anyio.ClosedResourceError: if the session is gone
        """
        return PtyStream(self, name, **options)

    @property
    def clients(self) -> list[Revokable]:
        """The handles of the open streams, for `revoke_all`."""
        return [client.handle for client in self._shared.streams]

    @property
    def returncode(self) -> int | None:
        """The program's exit status, negative for a signal, or None as long as it runs."""
        if self._process.returncode is not None:
            return self._process.returncode
        # Not reaped here: until the release its number, and its group's, must not become another's.
        try:
            state = os.waitid(os.P_PID, self.pid, os.WEXITED | os.WNOWAIT | os.WNOHANG)
        except ChildProcessError:  # somebody else reaps what is not his
            return self._process.poll()
        if state is None:
            return None
        return state.si_status if state.si_code == os.CLD_EXITED else -state.si_status

    async def wait(self) -> int:
        """Wait until the program has ended, and return its exit status. It works after a revocation, too."""
        while (status := self.returncode) is None:
            await _ended(self.pid)
        return status

    def resize(self, rows: int, columns: int) -> None:
        """Set the window size; the program's foreground group gets SIGWINCH.

        :raises RevokedError, ~anyio.ClosedResourceError: if the session is gone
        """
        with self.node.using():
            _set_size(self._master.number, (rows, columns))

    def discard(self) -> None:
        """Throw away what was sent and the program has not read: what is sent next comes first.

        :raises RevokedError, ~anyio.ClosedResourceError: if the session is gone
        :raises OSError: if there is no descriptor left, or the program keeps others from opening its terminal
        """
        with self.node.using():
            # A master's output cannot be flushed: it is the input of the other side.
            slave = fcntl.ioctl(self._master.number, _TIOCGPTPEER, os.O_RDWR | os.O_NOCTTY | os.O_CLOEXEC)
            try:
                with os_errors(self.node.path):
                    termios.tcflush(slave, termios.TCIFLUSH)
            finally:
                os.close(slave)

    def kill(self, signum: int) -> None:
        """Send a signal to the program's process group.

        :raises RevokedError, ~anyio.ClosedResourceError: if the session is gone
        """
        with self.node.using():
            _kill([self.pid], signum)

    def __repr__(self) -> str:
        return f"<PtySession pid={self.pid} returncode={self.returncode} of {self.node!r}>"

    def _read(self, max_bytes: int) -> Awaitable[bytes]:
        return self._master.read(max_bytes)

    def _write_some(self, item: memoryview) -> Awaitable[int]:
        return self._master.write_some(item)

    async def _send_eof(self) -> None:
        with os_errors(self.node.path):
            eof: bytes = termios.tcgetattr(self._master.number)[6][termios.VEOF]
        async with self._shared.turn_to_write:
            await self._master.write_some(memoryview(eof))

    def _hang_up(self) -> Awaitable[None] | None:
        """The release. Closing the master is the hang-up; what follows sees that all are gone, and reaps."""
        self._master.close()
        if in_loop():
            return self._reap()
        _kill([self.pid, *_session(self.pid).values()], signal.SIGKILL)  # as nobody could wait
        self._process.wait()
        return None

    async def _reap(self) -> None:
        try:
            _kill([self.pid], signal.SIGHUP, signal.SIGCONT)
            with anyio.move_on_after(self._kill_after) as patience:
                await self.wait()
                # The jobs of a shell have groups of their own, which the kernel does not tell.
                _kill(_session(self.pid).values(), signal.SIGHUP, signal.SIGCONT)
                while left := _session(self.pid):
                    await _ended(min(left))
            if patience.cancelled_caught:
                _kill(_session(self.pid).values(), signal.SIGKILL)
            _kill([self.pid], signal.SIGKILL)  # who was born while we looked, too
            await self.wait()
        except BaseException:  # a closing loop does not wait
            _kill([self.pid, *_session(self.pid).values()], signal.SIGKILL)
            raise
        finally:
            # Only now: as long as the program is not reaped, its number and its group's cannot be another's.
            self._process.wait(timeout=1)


class PtyStream(SharedStream):
    """One stream on a `PtySession`, as `PtySession.open` gives it.

    :raises ~anyio.BrokenResourceError: from `send` and `send_eof`, if nobody has the terminal open any more: the program and
        all its children have ended, or closed it. What was sent is what the terminal has taken; a program may end unread
    """

    def __init__(self, session: PtySession, name: str, **options: Unpack[SharedOptions]) -> None:
        super().__init__(session._shared, session.node, name, tty=True, **options)
        self._session = session

    async def _send_eof(self) -> None:
        await self._session._send_eof()


def _spawn(program: _Program) -> tuple[subprocess.Popen[bytes], int]:
    argv = [os.fspath(argument) for argument in program.argv]
    try:
        master, slave = os.openpty()
    except OSError as exc:
        raise OSError(exc.errno, f"no pty for {argv[0]!r}: {exc.strerror}; see /proc/sys/kernel/pty/max") from exc
    parent = os.getpid()

    def take_terminal() -> None:
        for signum in _TERMINALS:
            signal.signal(signum, signal.SIG_DFL)  # ours may be ignored, under nohup or in a script's background
        signal.pthread_sigmask(signal.SIG_SETMASK, [])
        fcntl.ioctl(0, termios.TIOCSCTTY, 0)
        _libc.prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)
        if os.getppid() != parent:
            os._exit(1)

    try:
        _set_size(slave, program.size)
        process = subprocess.Popen(  # noqa: S603  # to run the caller's program is what we are for
            argv,
            stdin=slave,
            stdout=slave,
            stderr=slave,
            env=program.env,
            cwd=program.cwd,
            start_new_session=True,
            preexec_fn=take_terminal,  # noqa: PLW1509  # nothing else sets a controlling terminal; it takes no locks
        )
    except BaseException:
        os.close(master)
        raise
    finally:
        os.close(slave)
    return process, master


def _set_size(fd: int, size: tuple[int, int]) -> None:
    rows, columns = size
    fcntl.ioctl(fd, termios.TIOCSWINSZ, struct.pack("HHHH", rows, columns, 0, 0))


async def _ended(pid: int) -> None:
    """Wait until that process has ended, without reaping it."""
    try:
        pidfd = os.pidfd_open(pid)
    except ProcessLookupError:
        return
    try:
        await anyio.wait_readable(pidfd)
    finally:
        os.close(pidfd)


def _session(sid: int) -> dict[int, int]:
    """Those who are left of a session, but for its leader, each with its process group."""
    members = {}
    for pid in (int(name) for name in os.listdir("/proc") if name.isdigit()):  # noqa: PTH208  # there may be thousands
        with contextlib.suppress(OSError):  # ended meanwhile
            if os.getsid(pid) == sid != pid:
                state = pathlib.Path(f"/proc/{pid}/stat").read_bytes().rpartition(b")")[2].split()[0]
                if state not in (b"Z", b"X"):
                    members[pid] = os.getpgid(pid)
    return members


def _kill(groups: Iterable[int], *signums: int) -> None:
    for group, signum in itertools.product(set(groups), signums):
        with contextlib.suppress(ProcessLookupError, PermissionError):
            os.killpg(group, signum)
