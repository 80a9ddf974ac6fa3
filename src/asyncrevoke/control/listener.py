"""A Unix socket to listen on, where perhaps a dead server has left one."""

import contextlib
import errno
import os
import socket
import stat
from collections.abc import AsyncIterator

import anyio

from asyncrevoke.linux import fcntl

from .peer import group_number


@contextlib.asynccontextmanager
async def listening(path: str, group: str | None, mode: int) -> AsyncIterator[socket.socket]:
    """A listening socket at `path`, which goes with it. One that nobody listens on is replaced.

    :param group: that it is given to, if any
    :raises OSError: if there is a live server at `path`, or something that is no socket, or it cannot be made there
    :raises ValueError: if there is no such group
    """
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as listener:
        listener.setblocking(False)
        try:
            async with _alone_at(path):
                _refuse_what_lives(path)
                own = _listen(listener, path, group, mode)
        except OSError as exc:  # one without a number is about the length
            why = exc.strerror or str(exc)
            raise OSError(exc.errno or errno.ENAMETOOLONG, f"no control socket can be made: {why}", path) from exc
        try:
            yield listener
        finally:
            with contextlib.suppress(OSError):  # as long as we listen, its inode's number is not another's
                if os.path.samestat(os.lstat(path), own):
                    os.unlink(path)  # noqa: PTH108


def permit(path: str, group: str | None, mode: int) -> None:
    """Let those connect who may by this group and mode, from now on.

    :raises OSError: if it cannot be given to that group
    :raises ValueError: if there is none
    """
    if group is not None:
        os.chown(path, -1, group_number(group))
    os.chmod(path, mode)  # noqa: PTH101


async def remove_dead(path: str) -> None:
    """Remove a socket whose server is dead. One at which another has just begun stays."""
    with contextlib.suppress(OSError):  # it lives, is no socket, or is not ours to remove
        async with _alone_at(path):
            _refuse_what_lives(path)
            os.unlink(path)  # noqa: PTH108


@contextlib.asynccontextmanager
async def _alone_at(path: str) -> AsyncIterator[None]:
    """One server at a time begins: of two that find the same stale socket, one must not replace the other's."""
    lock = path + ".lock"
    with contextlib.ExitStack() as undo:
        undo.callback(os.close, await _lock(lock))
        undo.callback(os.unlink, lock)  # before that; who waits for it makes another
        yield


async def _lock(lock: str) -> int:
    for _ in range(100):
        fd = os.open(lock, os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW | os.O_CLOEXEC, 0o600)  # others cannot lock it
        with contextlib.ExitStack() as undo:
            undo.callback(os.close, fd)
            with contextlib.suppress(BlockingIOError, FileNotFoundError):
                fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
                if os.path.samestat(os.fstat(fd), os.lstat(lock)):
                    undo.pop_all()
                    return fd
        await anyio.sleep(0.05)
    raise OSError(errno.EWOULDBLOCK, f"another process has kept a lock on {lock!r} for 5 s")


def _refuse_what_lives(path: str) -> None:
    """See that nothing is at `path`, or a socket whose server is dead.

    :raises OSError: EEXIST if there is something else, EADDRINUSE if a server listens there
    """
    try:
        mode = os.lstat(path).st_mode
    except FileNotFoundError:
        return
    if not stat.S_ISSOCK(mode):
        raise OSError(errno.EEXIST, "there is something that is no socket: remove it, or choose another path")
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as probe:
        probe.setblocking(False)
        try:
            probe.connect(path)
        except ConnectionRefusedError:
            return
        except BlockingIOError:
            pass  # its queue is full: it lives
    raise OSError(errno.EADDRINUSE, "a server listens there already: end that, or choose another path")


def _listen(listener: socket.socket, path: str, group: str | None, mode: int) -> os.stat_result:
    """Listen at `path`, where nobody is ever refused: what does not listen yet has another name."""
    beside = path + "~"
    with contextlib.suppress(FileNotFoundError):
        os.unlink(beside)  # noqa: PTH108  # its server died as it began
    listener.bind(beside)
    try:
        permit(beside, group, mode)
        listener.listen(1024)
        own = os.lstat(beside)
        os.rename(beside, path)  # noqa: PTH104
    except BaseException:
        os.unlink(beside)  # noqa: PTH108
        raise
    return own
