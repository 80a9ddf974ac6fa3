"""A Unix socket to listen on, where perhaps a dead server has left one."""

from __future__ import annotations

import contextlib
import errno
import fcntl
import os
import socket
import stat
from collections.abc import AsyncIterator

import anyio


@contextlib.asynccontextmanager
async def listening(path: str, gid: int | None) -> AsyncIterator[socket.socket]:
    """A listening socket at `path`, which goes with it. One that nobody listens on is replaced.

    :param gid: of a group that may connect, too: the mode is 0660 then, else 0600
    :raises OSError: if there is a live server at `path`, or something that is no socket, or it cannot be made there
    """
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as listener:
        listener.setblocking(False)
        try:
            async with _alone_in(os.path.dirname(path) or "."):  # noqa: PTH120  # as it is, not as it would be written
                _clear(path)
                listener.bind(path)
                own = os.lstat(path)
                try:
                    if gid is not None:
                        os.chown(path, -1, gid)
                    os.chmod(path, 0o600 if gid is None else 0o660)  # noqa: PTH101
                    listener.listen(1024)  # nobody could connect before
                except BaseException:
                    os.unlink(path)  # noqa: PTH108
                    raise
        except OSError as exc:  # one without a number is about the length
            why = exc.strerror or str(exc)
            raise OSError(exc.errno or errno.ENAMETOOLONG, f"no control socket can be made: {why}", path) from exc
        try:
            yield listener
        finally:
            with contextlib.suppress(OSError):  # as long as we listen, its inode's number is not another's
                if os.path.samestat(os.lstat(path), own):
                    os.unlink(path)  # noqa: PTH108


@contextlib.asynccontextmanager
async def _alone_in(folder: str) -> AsyncIterator[None]:
    """One server at a time begins in a folder: of two that find the same stale socket, one must not remove the other's."""
    fd = os.open(folder, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        for _ in range(100):
            with contextlib.suppress(BlockingIOError):
                fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
                break
            await anyio.sleep(0.05)
        else:
            raise OSError(errno.EWOULDBLOCK, f"another process has kept a lock on {folder!r} for 5 s")
        yield
    finally:
        os.close(fd)


def _clear(path: str) -> None:
    """Make way for a socket.

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
            os.unlink(path)  # noqa: PTH108  # its server is dead
            return
        except BlockingIOError:
            pass  # its queue is full: it lives
    raise OSError(errno.EADDRINUSE, "a server listens there already: end that, or choose another path")
