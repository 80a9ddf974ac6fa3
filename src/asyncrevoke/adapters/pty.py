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
import os
import pathlib
import signal
import struct
import subprocess
import termios
from collections.abc import Iterable, Mapping, Sequence
from types import EllipsisType, TracebackType
from typing import Self

import anyio

from asyncrevoke import Face, FdStream, Revocation, Revokable, RevokedError
from asyncrevoke.answers import Answers

_PR_SET_PDEATHSIG = 1  # include/uapi/linux/prctl.h
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
    kill_after: float = 5.0,
    answers: Answers | EllipsisType = ...,
) -> PtySession:
    """Start a program on a new pty: ``async with open_pty(["bash"]) as session: stream = session.open("alice")``

    It leads a session of its own with the pty as its controlling terminal. It is killed if this thread ends, however
    that happens, so call this in the thread that runs the loop.

    :param owner: what the session is opened on; a `Name` gives it a generation
    :param name: for errors and reports; left out: the program's
    :param env: its whole environment; None: this process's
    :param size: rows and columns
    :param backlog: bytes that a client may be behind before it is revoked as too slow
    :param kill_after: seconds from the hang-up to SIGKILL for those who stay
    :raises FileNotFoundError, PermissionError: if the program or `cwd` is not there, or may not be run
    :raises OSError: if no pty is free
    :raises RevokedError: if the owner was revoked; nothing was started
    """
    if isinstance(argv, str | bytes) or not argv:
        raise TypeError(f"argv is {argv!r}: give the program and its arguments as a list")
    return PtySession(
        [os.fspath(argument) for argument in argv],
        owner=owner,
        name=name,
        env=env,
        cwd=cwd,
        size=size,
        backlog=backlog,
        kill_after=kill_after,
        answers=answers,
    )


class PtySession:
    """A program on a pty, as `open_pty` starts it. Closing it hangs it up.

    :ivar node: the node that is taken away
    :ivar pid: of the program, which is also its process group and its session
    """

    def __init__(
        self,
        argv: list[str],
        *,
        owner: Revokable | None,
        name: str,
        env: Mapping[str, str] | None,
        cwd: str | os.PathLike[str] | None,
        size: tuple[int, int],
        backlog: int,
        kill_after: float,
        answers: Answers | EllipsisType,
    ) -> None:
        name = name or pathlib.PurePath(argv[0]).name
        self.node = Revokable(name, answers=answers) if owner is None else owner.open(name, answers=answers)
        try:
            master, self._process = _spawn(argv, env, cwd, size)
        except BaseException:
            self.node.close()
            raise
        self.pid = self._process.pid
        self.node.release = self._hang_up  # nothing can have come in between: we have not suspended
        self._master = FdStream(master, self.node, name="master")
        self._backlog = backlog
        self._kill_after = kill_after
        self._clients: dict[PtyStream, None] = {}
        self._ended = False  # the last byte was read
        self._turn_to_read = anyio.Lock()
        self._turn_to_write = anyio.Lock()

    def open(
        self, name: str = "", *, also: Iterable[Revokable] = (), answers: Answers | EllipsisType = ...
    ) -> PtyStream:
        """Open one more stream on the terminal. It gets all output from now on, as every other does.

        :param also: further parents, such as a token; whichever goes first takes the stream
        :raises RevokedError, ~anyio.ClosedResourceError: if the session is gone
        """
        return PtyStream(self, name, also, answers)

    @property
    def clients(self) -> list[PtyStream]:
        """The open streams, for `revoke_all`."""
        return list(self._clients)

    def revoke(self, reason: str = "", *, grace: float = 0.0) -> Revocation:
        """Take the terminal away from all, and end the program: HUP, CONT, and KILL for what stays."""
        return self.node.revoke(reason, grace=grace)

    async def aclose(self) -> None:
        """The same as its owner, and wait until the program is reaped."""
        await self.node.aclose()

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, exc: BaseException | None, tb: TracebackType | None
    ) -> None:
        await self.aclose()

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
            _set_size(self._master.fileno(), (rows, columns))

    def kill(self, signum: int) -> None:
        """Send a signal to the program's process group.

        :raises RevokedError, ~anyio.ClosedResourceError: if the session is gone
        """
        with self.node.using():
            self._signal(signum)

    def __repr__(self) -> str:
        return f"<PtySession pid={self.pid} returncode={self.returncode} of {self.node!r}>"

    async def _read_for_all(self, reader: PtyStream) -> None:
        """Read once and give it to every client. Whoever waits for data does it for all."""
        async with self._turn_to_read:
            if reader._unread or self._ended:
                return
            try:
                data = await self._master.receive()
            except anyio.BrokenResourceError as exc:
                # A master answers EIO when the last slave is closed and all has been read.
                if isinstance(exc, RevokedError) or getattr(exc.__cause__, "errno", None) != errno.EIO:
                    raise
                self._ended = True
            else:
                for client in self.clients:
                    client._take(data, self._backlog)

    async def _write(self, item: memoryview) -> int:
        async with self._turn_to_write:
            return await self._master.send_some(item)

    async def _hang_up(self) -> None:
        """The release: clients and master are closed, so the kernel has hung up; see that all are gone, and reap."""
        try:
            self._signal(signal.SIGHUP)
            self._signal(signal.SIGCONT)
            with anyio.move_on_after(self._kill_after):
                await _ended(self.pid)
                self._process.wait()
                while members := _group(self.pid):
                    await _ended(members[0])
            self._signal(signal.SIGKILL)
            await _ended(self.pid)
        finally:
            self._signal(signal.SIGKILL)  # a closing loop cancels the waits
            self._process.wait(timeout=1)

    def _signal(self, signum: int) -> None:
        if self._process.returncode is None:  # not reaped: its number, and its group's, cannot be another's
            os.killpg(self.pid, signum)
            return
        for member in _group(self.pid):
            with contextlib.suppress(ProcessLookupError):
                os.kill(member, signum)


class PtyStream(Face):
    """One stream on a `PtySession`, as `PtySession.open` gives it."""

    def __init__(
        self, session: PtySession, name: str, also: Iterable[Revokable], answers: Answers | EllipsisType
    ) -> None:
        super().__init__(
            session.node.open(name, also=also, release=lambda: session._clients.pop(self), answers=answers), tty=True
        )
        self._session = session
        self._unread = bytearray()
        session._clients[self] = None

    async def _receive(self, max_bytes: int) -> bytes:
        with self.handle.using(idle=True):
            while not self._unread:
                if self._session._ended:
                    raise anyio.EndOfStream
                await self._session._read_for_all(self)
            data = bytes(self._unread[:max_bytes])
            del self._unread[:max_bytes]
            return data

    async def _send(self, item: bytes) -> None:
        view = memoryview(item).cast("B")
        sent = 0
        try:
            with self.handle.using():
                while sent < len(view):
                    sent += await self._session._write(view[sent:])
        except RevokedError as error:
            error.sent = sent
            raise

    async def _send_eof(self) -> None:
        eof: bytes = termios.tcgetattr(self._session._master.fileno())[6][termios.VEOF]
        await self._session._write(memoryview(eof))

    def _take(self, data: bytes, backlog: int) -> None:
        self._unread += data
        if len(self._unread) > backlog:
            self.revoke(f"it was {len(self._unread)} bytes behind, and may be {backlog}")


def _spawn(
    argv: list[str], env: Mapping[str, str] | None, cwd: str | os.PathLike[str] | None, size: tuple[int, int]
) -> tuple[int, subprocess.Popen[bytes]]:
    try:
        master, slave = os.openpty()
    except OSError as exc:
        raise OSError(exc.errno, f"no pty for {argv[0]!r}: {exc.strerror}; see /proc/sys/kernel/pty/max") from exc
    parent = os.getpid()

    def take_terminal() -> None:
        signal.signal(signal.SIGHUP, signal.SIG_DFL)  # ours may be ignored, under nohup
        fcntl.ioctl(0, termios.TIOCSCTTY, 0)
        _libc.prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)
        if os.getppid() != parent:
            os._exit(1)

    try:
        _set_size(slave, size)
        process = subprocess.Popen(  # noqa: S603  # to run the caller's program is what we are for
            argv,
            stdin=slave,
            stdout=slave,
            stderr=slave,
            env=env,
            cwd=cwd,
            start_new_session=True,
            preexec_fn=take_terminal,  # noqa: PLW1509  # nothing else sets a controlling terminal; it takes no locks
        )
    except BaseException:
        os.close(master)
        raise
    finally:
        os.close(slave)
    return master, process


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


def _group(pgid: int) -> list[int]:
    """Those who are left of a process group whose leader is reaped."""
    try:
        os.killpg(pgid, 0)
    except ProcessLookupError:  # as a rule; the list of all processes is long
        return []
    members = []
    for stat in pathlib.Path("/proc").glob("[0-9]*/stat"):
        try:
            state, _, group, _ = stat.read_bytes().rpartition(b")")[2].split(maxsplit=3)
        except (OSError, ValueError):  # ended meanwhile
            continue
        if int(group) == pgid and state not in (b"Z", b"X"):
            members.append(int(stat.parent.name))
    return [] if pgid in members else members  # a new leader: the old group is gone, and its number another's
