"""A Unix socket to listen on. A socket that a dead server left is replaced."""

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
    """Open a listening socket at `path`, and remove it at the end. A dead socket there is replaced.

    :param group: group that the socket is given to, if any
    :raises OSError: if a live server or a file that is not a socket is at `path`, or no socket can be made there
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
    """Give the socket this group and mode, which say who may connect.

    :raises OSError: if it cannot be given to that group
    :raises ValueError: if there is no such group
    """
    if group is not None:
        os.chown(path, -1, group_number(group))
    os.chmod(path, mode)  # noqa: PTH101


async def remove_dead(path: str) -> None:
    """Remove a socket of a dead server. The socket of a server that has just begun stays."""
    with contextlib.suppress(OSError):  # it lives, is no socket, or is not ours to remove
        async with _alone_at(path):
            _refuse_what_lives(path)
            os.unlink(path)  # noqa: PTH108


@contextlib.asynccontextmanager
async def _alone_at(path: str) -> AsyncIterator[None]:
    """Hold a lock so that two servers cannot claim one stale socket."""
    lock = path + ".lock"
    with contextlib.ExitStack() as undo:
        undo.callback(os.close, await _lock(lock))
        undo.callback(os.unlink, lock)  # before the lock is released: a waiter makes another file
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
    """Check that `path` is free, or the socket of a dead server.

    :raises OSError: EEXIST if another file is there, EADDRINUSE if a server listens there
    """
    try:
        mode = os.lstat(path).st_mode
    except FileNotFoundError:
        return
    if not stat.S_ISSOCK(mode):
        raise OSError(errno.EEXIST, "the file there is not a socket: remove it, or choose another path")
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as probe:
        probe.setblocking(False)
        try:
            probe.connect(path)
        except ConnectionRefusedError:
            return
        except BlockingIOError:
            pass  # its queue is full: it lives
    raise OSError(errno.EADDRINUSE, "a server listens there already: end it, or choose another path")


def _listen(listener: socket.socket, path: str, group: str | None, mode: int) -> os.stat_result:
    """Listen at `path`. The socket has another name until it listens, so no client is ever refused."""
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
