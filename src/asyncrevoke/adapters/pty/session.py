"""A program on a pseudo terminal, shared by any number of streams. You can revoke each of them.

The session is a node. Its clients and the master are its children. Revoking the session first ends the clients and
closes the master. That hangs the terminal up (drivers/tty/pty.c, pty_close: SIGHUP and SIGCONT to the session leader).
Then it makes sure that the program and its process group are gone, and reaps the program.
"""

from __future__ import annotations

import errno
import functools
import os
import pathlib
import struct
from collections.abc import Awaitable, Callable, Mapping, Sequence
from dataclasses import dataclass
from types import EllipsisType
from typing import TypedDict, Unpack

from asyncrevoke.answers import Answers
from asyncrevoke.linux import fcntl, termios
from asyncrevoke.lowlevel import Fd, Resource, Revokable, Shared, SharedOptions, SharedStream, in_loop, os_errors

from .program import Program

_TIOCGPTPEER = 0x5441  # include/uapi/asm-generic/ioctls.h


class PtyOptions(TypedDict, total=False):
    """The options of both ways of starting a program on a pty.

    :ivar owner: what the session is opened on; a `Name` gives it a generation
    :ivar name: for errors and reports. Default: the program's
    :ivar env: its whole environment. None: this process's
    :ivar cwd: its working directory. None: this process's
    :ivar size: rows and columns. Default: (24, 80)
    :ivar backlog: bytes that a client may be behind before it is revoked as too slow. Default: 65536. One that never
        receives may be there to type, and is not. The program is held up first, for a client that is more than half of
        it behind and goes on receiving
    :ivar patience: seconds without receiving after which a client no longer holds the program up. Default: 10
    :ivar history: bytes of the latest output that are kept for streams opened with `replay`. Default: 0
    :ivar kill_after: seconds from the hang-up to SIGKILL for processes that stay. Default: 5. A revocation waits until
        they are gone. If the kernel keeps one for 5 s more, because it waits for a dead disk, a `TimeoutError` names it
    :ivar answers: a profile of `asyncrevoke.answers` for its streams. Default: as at the owner
    """

    owner: Revokable | None
    name: str
    env: Mapping[str, str] | None
    cwd: str | os.PathLike[str] | None
    size: tuple[int, int]
    backlog: int
    patience: float
    history: int
    kill_after: float
    answers: Answers | EllipsisType


def open_pty(argv: Sequence[str | os.PathLike[str]], **options: Unpack[PtyOptions]) -> PtySession:
    """Start a program on a new pty: ``async with open_pty(["bash"]) as session: stream = session.open("alice")``

    It leads a session of its own with the pty as its controlling terminal. It is killed if this thread ends, however
    that happens. So call this in the thread that runs the loop, to which the session belongs. If this process is killed
    by SIGKILL, only children of the program that ignore SIGHUP outlive it.

    Until the program runs the loop stands still: for some 20 ms, or as long as a file system takes. `start_pty` waits
    instead.

    :param options: see `PtyOptions`
    :raises TypeError, ValueError: if an option makes no sense
    :raises FileNotFoundError, PermissionError: if the program or `cwd` is not there, or may not be run
    :raises OSError: if no pty is free, or no Python interpreter to start it with
    :raises RevokedError: if the owner was revoked. Nothing was started then
    """
    return _session(argv, Program.begin, **options)


async def start_pty(argv: Sequence[str | os.PathLike[str]], **options: Unpack[PtyOptions]) -> PtySession:
    """Start a program like `open_pty`, while the loop goes on: ``async with await start_pty(["bash"]) as session: ...``

    :raises: as `open_pty`. RevokedError also if the owner is revoked meanwhile; nothing is left of the program then
    Cancellation: what was started is killed.
    """
    session = _session(argv, lambda _: None, **options)
    try:
        await session._begun()
    except BaseException:
        await session._undone()
        raise
    return session


def _session(
    argv: Sequence[str | os.PathLike[str]],
    begin: Callable[[Program], object],
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
    wanted = _Wanted(argv, env, cwd, size)
    if not kill_after >= 0:
        raise ValueError(f"kill_after is {kill_after!r}: give seconds, 0 or more")
    make = functools.partial((owner or Revokable()).open, name or pathlib.PurePath(argv[0]).name, answers=answers)
    line = functools.partial(Shared, backlog=backlog, patience=patience, history=history)
    return PtySession(wanted, make, line, kill_after, begin)


@dataclass(frozen=True, slots=True)
class _Wanted:
    """The program to run on a pty, and how, as for `open_pty`."""

    argv: Sequence[str | os.PathLike[str]]
    env: Mapping[str, str] | None
    cwd: str | os.PathLike[str] | None
    size: tuple[int, int]

    def __post_init__(self) -> None:
        if isinstance(self.argv, str | bytes) or not self.argv:
            raise TypeError(f"argv is {self.argv!r}: give the program and its arguments as a list")
        if len(self.size) != 2 or not all(0 <= each <= 0xFFFF for each in self.size):
            raise ValueError(f"size is {self.size!r}: give rows and columns")

    def start(self) -> tuple[Program, int]:
        """Start it. Return the running program, and the master of its terminal."""
        try:
            master, slave = os.openpty()
        except OSError as exc:
            raise OSError(
                exc.errno, f"no pty for {self.argv[0]!r}: {exc.strerror}; see /proc/sys/kernel/pty/max"
            ) from exc
        try:
            _set_size(slave, self.size)
            return Program(self.argv, self.env, self.cwd, os.ttyname(slave)), master
        except BaseException:
            os.close(master)
            raise
        finally:
            os.close(slave)


class PtySession(Resource):
    """A program on a pty, as `open_pty` returns it. Closing it hangs it up, and waits until all processes of the
    session are gone.

    Revoking it revokes the terminal for everybody, and ends the program: HUP, CONT, and KILL for what stays.

    :ivar pid: of the program, which is also its process group and its session
    """

    def __init__(
        self,
        wanted: _Wanted,
        make: Callable[[], Revokable],
        line: Callable[..., Shared],
        kill_after: float,
        begin: Callable[[Program], object],
    ) -> None:
        self._master: Fd
        self._kill_after = kill_after
        self._shared = line(self._read, self._write_some)
        self.node = make()
        started = None
        try:
            started = self._program, master = wanted.start()
            begin(self._program)
            self.pid = self._program.pid
            # A master answers EIO when the last slave is closed and all has been read.
            self._shared.fd = self._master = Fd(master, self.node, end=errno.EIO)
            self.node.release = self._hang_up
        except BaseException:
            if started is not None:
                os.close(started[1])
                started[0].kill()
            self.node.close()
            raise

    def open(self, name: str = "", **options: Unpack[SharedOptions]) -> PtyStream:
        """Open one more stream on the terminal. It gets all output from now on, as every other does.

        :param options: see `SharedOptions`
        :raises RevokedError, ~anyio.ClosedResourceError: if the session is gone
        """
        return PtyStream(self, name, **options)

    @property
    def clients(self) -> list[Revokable]:
        """The handles of the open streams, for `revoke_all`."""
        return [client.handle for client in self._shared.streams]

    @property
    def returncode(self) -> int | None:
        """The program's exit status, negative for a signal. None as long as it runs, or if it is lost, as `wait`
        says.
        """
        self._program.ended()
        return self._program.status

    async def wait(self) -> int:
        """Wait until the program has ended, and return its exit status. It works after a revocation, too.

        :raises ChildProcessError: if its status is lost: SIGCHLD is ignored in this process, or somebody else has reaped it
        Cancellation: the program runs on.
        """
        await self._program.wait()
        if (status := self._program.status) is None:
            lost = f"{self.node.path!r}: the status is lost: SIGCHLD is ignored, or other code has reaped process {self.pid}"
            raise ChildProcessError(errno.ECHILD, lost)
        return status

    def resize(self, rows: int, columns: int) -> None:
        """Set the window size. The program's foreground group gets SIGWINCH.

        :raises RevokedError, ~anyio.ClosedResourceError: if the session is gone
        """
        with self.node.using():
            _set_size(self._master.number, (rows, columns))

    def discard(self) -> None:
        """Throw away input that the program has not read. What you send next comes first.

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
            self._program.signal(signum)

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
        """The release. Closing the master is the hang-up. Then wait until all processes are gone, and reap the
        program.
        """
        self._master.close()
        self._program.keep_descriptor()
        if in_loop():
            return self._reap()
        self._program.kill()  # nobody could wait
        return None

    async def _reap(self) -> None:
        await self._program.end(self._kill_after)

    async def _begun(self) -> None:
        with self.node.using():
            await self._program.begun(self.node)

    async def _undone(self) -> None:
        self._kill_after = 0.0
        await self.aclose()


class PtyStream(SharedStream):
    """One stream on a `PtySession`, as `PtySession.open` returns it.

    :raises ~anyio.BrokenResourceError: from `send` and `send_eof`, if nobody has the terminal open any more: the
        program and all its children have ended, or closed it. Sent data is what the terminal has accepted; a program
        may end before it reads it
    """

    def __init__(self, session: PtySession, name: str, **options: Unpack[SharedOptions]) -> None:
        super().__init__(session._shared, session.node, name, tty=True, **options)
        self._session = session

    async def _send_eof(self) -> None:
        await self._session._send_eof()


def _set_size(fd: int, size: tuple[int, int]) -> None:
    rows, columns = size
    fcntl.ioctl(fd, termios.TIOCSWINSZ, struct.pack("HHHH", rows, columns, 0, 0))
