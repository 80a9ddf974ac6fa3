"""A program that leads a session of its own on a terminal, from its start until the last process of the session is
gone.
"""

import contextlib
import errno
import itertools
import marshal
import os
import pathlib
import pkgutil
import signal
import socket
import sys
import threading
import time
from collections.abc import Iterable, Mapping, Sequence

import anyio

from asyncrevoke.linux import O_PATH, pidfd_open
from asyncrevoke.lowlevel import Fd, Revokable

_LEADER = (pkgutil.get_data(__package__, "leader.py") or b"").decode()
#: Seconds that the kernel gets to end a killed process. One that waits for a dead disk stays until the disk answers.
STUCK = 5.0


class Program:
    """A program, which runs once `begin` or `begun` has ended. It is killed if the thread that started it ends.

    :ivar pid: its process, which is also its process group and its session
    :raises OSError: if there is no interpreter to start it with. From `begin` and `begun`, naming the program or `cwd`:
        if it cannot be started
    :raises TypeError, ValueError: if its arguments cannot be passed on
    """

    def __init__(
        self,
        argv: Sequence[str | os.PathLike[str]],
        env: Mapping[str, str] | None,
        cwd: str | os.PathLike[str] | None,
        terminal: str,
    ) -> None:
        self.name = os.fspath(argv[0])
        self.status: int | None = None  # as `PtySession.returncode`
        self._ended = False
        self._spare = -1
        words = [os.fsencode(each) for each in argv]
        environ = _environ() if env is None else {os.fsencode(name): os.fsencode(env[name]) for name in env}
        signums = [int(each) for each in signal.valid_signals() - {signal.SIGKILL, signal.SIGSTOP}]
        place = None if cwd is None else os.fsencode(cwd)
        self._request = marshal.dumps((os.getpid(), signums, words, environ, place))
        self._channel, theirs = socket.socketpair()
        with contextlib.ExitStack() as failed, theirs:
            failed.enter_context(self._channel)
            self.pid = _lead(theirs.fileno(), terminal)
            failed.pop_all()

    def begin(self) -> None:
        """Block until it runs."""
        answer = b""
        # A broken pipe: it has ended before it read all.
        with self._channel, contextlib.suppress(BrokenPipeError, ConnectionResetError):
            self._channel.sendall(self._request)
            answer = b"".join(iter(lambda: self._channel.recv(4096), b""))
        self._check(answer)

    async def begun(self, node: Revokable) -> None:
        """Wait until it runs, in an operation of `node`, to which it belongs."""
        request, answer = memoryview(self._request), b""
        channel = Fd(self._channel.fileno(), node)
        self._channel.detach()
        try:
            while request:
                request = request[await channel.write_some(request) :]
            while True:
                answer += await channel.read(4096)
        except (anyio.EndOfStream, anyio.BrokenResourceError):  # it has ended before it read all, or has said all
            self._check(answer)
        finally:
            channel.close()

    def _check(self, answer: bytes) -> None:
        if not answer:
            raise OSError(errno.ENOEXEC, f"the interpreter that starts {self.name!r} failed", _interpreter())
        if answer[1:]:
            number, text, name = marshal.loads(answer[1:])  # noqa: S302  # from our own child
            raise ValueError(f"{self.name!r}: {text}") if number is None else OSError(number, text, os.fsdecode(name))

    def ended(self) -> bool:
        """Whether it has ended. It is not reaped: until the session is gone its number must not become another's."""
        if not self._ended:
            try:
                state = os.waitid(os.P_PID, self.pid, os.WEXITED | os.WNOWAIT | os.WNOHANG)
            except ChildProcessError:  # the kernel has reaped it, as SIGCHLD is ignored, or somebody else
                self._ended = True
            else:
                if state is not None:
                    self.status = state.si_status if state.si_code == os.CLD_EXITED else -state.si_status
                    self._ended = True
        return self._ended

    async def wait(self) -> None:
        """Wait until it has ended. Cancellation: it runs on."""
        while not self.ended():
            await _end_of(self.pid)

    def signal(self, *signums: int) -> None:
        """Send signals to its process group."""
        _kill([self.pid], *signums)

    def keep_descriptor(self) -> None:
        """Keep a descriptor that was just freed. A search for the rest of the session takes one, when there may be
        none.
        """
        with contextlib.suppress(OSError):  # a thread was quicker
            self._spare = os.open("/proc", O_PATH)

    def _let_go(self) -> None:
        spare, self._spare = self._spare, -1
        if spare >= 0:
            os.close(spare)

    async def end(self, patience: float) -> None:
        """Hang up the session: HUP and CONT, after `patience` seconds KILL. Then wait until all its processes are gone.

        :raises TimeoutError: if the kernel keeps one of them for `STUCK` seconds more
        Cancellation: all are killed at once.
        """
        try:
            with anyio.move_on_after(patience):
                self.signal(signal.SIGHUP, signal.SIGCONT)
                await self.wait()
                # The jobs of a shell have groups of their own, which the kernel does not tell.
                _kill(self._others().values(), signal.SIGHUP, signal.SIGCONT)
                while others := self._others():
                    await _end_of(min(others))
            with anyio.move_on_after(STUCK):
                while left := self._killed():
                    await _end_of(min(left))
        except BaseException:  # a closing loop does not wait
            self._end_now(1.0)
            raise
        self._end_now(0.0)

    def kill(self) -> None:
        """Kill the session, and block until all its processes are gone: for where no loop can wait.

        :raises TimeoutError: as `end`
        """
        self._end_now(STUCK)

    def _end_now(self, patience: float) -> None:
        deadline = time.monotonic() + patience
        while (left := self._killed()) and time.monotonic() < deadline:
            time.sleep(0.005)
        self._let_go()
        self._channel.close()
        # Only now: as long as the program is not reaped, its number and its group's cannot be another's.
        if self._ended:
            self._reap()
        else:
            with contextlib.suppress(RuntimeError):  # no thread is left: it is a zombie then, until this process ends
                threading.Thread(target=self._reap, daemon=True).start()
        if left:
            who = ", ".join(f"{pid} ({_called(pid)})" for pid in sorted(left))
            why = "it may be another user's, or wait in the kernel: see /proc/PID/stack"
            raise TimeoutError(errno.ETIMEDOUT, f"SIGKILL has not ended {who}: {why}", self.name)

    def _reap(self) -> None:
        with contextlib.suppress(ChildProcessError):
            os.waitpid(self.pid, 0)

    def _killed(self) -> set[int]:
        """Kill all of the session. Return the processes that are left of it."""
        self.signal(signal.SIGKILL)
        others = self._others()
        _kill(others.values(), signal.SIGKILL)
        return {*others, *([] if self.ended() else [self.pid])}

    def _others(self) -> dict[int, int]:
        """Return the processes that are left of the session, except its leader, each with its process group."""
        self._let_go()
        try:
            return _members(self.pid)
        except OSError as exc:
            if exc.errno not in (errno.EMFILE, errno.ENFILE, errno.ENOMEM):
                raise
            return {self.pid: self.pid}  # somebody may be left, so ask again
        finally:
            self.keep_descriptor()


def _lead(channel: int, terminal: str) -> int:
    """Start an interpreter that leads a session on that terminal, and does what `leader` says."""
    return os.posix_spawn(
        _interpreter(),
        ["python", "-I", "-S", "-c", _LEADER],
        _environ(),
        # The session's leader opens a terminal, which so becomes the controlling one (drivers/tty/tty_jobctrl.c).
        file_actions=[
            (os.POSIX_SPAWN_DUP2, channel, 3),
            (os.POSIX_SPAWN_OPEN, 0, terminal, os.O_RDWR, 0),
            (os.POSIX_SPAWN_DUP2, 0, 1),
            (os.POSIX_SPAWN_DUP2, 0, 2),
        ],
        setsid=True,
        setsigmask=[],
    )


def _environ() -> dict[bytes, bytes]:
    """Return the environment of this process without an empty name, which may be inherited and cannot be handed on."""
    return {name: value for name, value in os.environb.items() if name}


def _interpreter() -> str:
    """Return the Python that multiprocessing starts. A program that embeds Python sets it by
    `multiprocessing.set_executable`.
    """
    from multiprocessing import spawn  # noqa: PLC0415  # a large module

    found = os.fsdecode(spawn.get_executable() or b"")
    if not found or (getattr(sys, "frozen", False) and found == sys.executable):
        raise OSError(
            errno.ENOENT, "a pty needs a Python interpreter: set one by multiprocessing.set_executable", found
        )
    return found


async def _end_of(pid: int) -> None:
    """Wait until that process may have ended, without reaping it."""
    try:
        pidfd = pidfd_open(pid)
    except ProcessLookupError:
        return
    except OSError:  # no descriptor is left
        await anyio.sleep(0.02)
        return
    try:
        await anyio.wait_readable(pidfd)
    finally:
        os.close(pidfd)


def _members(sid: int) -> dict[int, int]:
    members = {}
    for pid in (int(name) for name in os.listdir("/proc") if name.isdigit()):  # noqa: PTH208  # there may be thousands
        with contextlib.suppress(ProcessLookupError, FileNotFoundError):  # ended meanwhile
            if os.getsid(pid) == sid != pid and not _is_over(pid):
                members[pid] = os.getpgid(pid)
    return members


def _is_over(pid: int) -> bool:
    """Whether a process has ended, and is not reaped."""
    try:
        state = pathlib.Path(f"/proc/{pid}/stat").read_bytes().rpartition(b")")[2].split()[0]
        # One whose first thread has ended, and others run, looks the same.
        return state in (b"Z", b"X") and len(os.listdir(f"/proc/{pid}/task")) == 1  # noqa: PTH208
    except PermissionError:  # of another user, where /proc hides those
        return False


def _called(pid: int) -> str:
    try:
        return pathlib.Path(f"/proc/{pid}/comm").read_text(errors="replace").rstrip()
    except OSError:
        return "it has just ended"


def _kill(groups: Iterable[int], *signums: int) -> None:
    for group, signum in itertools.product(set(groups), signums):
        with contextlib.suppress(ProcessLookupError, PermissionError):
            os.killpg(group, signum)
