"""A tree of entries, mounted: other programs open its files, and a removal revokes them as it does anybody's.

Needs ``asyncrevoke[fuse]``: pyfuse3, and so Debian's libfuse3-dev and fuse3. A process can mount one tree at a time.
"""

from __future__ import annotations

import contextlib
import errno
import functools
import itertools
import logging
import os
import pathlib
import select
import stat
import threading
import time
from collections import Counter
from collections.abc import AsyncIterator, Awaitable, Callable, Coroutine, Sequence
from types import SimpleNamespace
from typing import Any, Concatenate, ParamSpec, TypeVar

import anyio
import anyio.abc
import pyfuse3

from asyncrevoke.adapters.entries import Directory, Entry, OpenFile
from asyncrevoke.lowlevel import Revokable, RevokedError, off_loop

logger = logging.getLogger("asyncrevoke")

_REQUESTS = 100_000  # that may wait for their answer, as reads do where there is nothing yet
_PATIENCE = 0.5  # seconds from one look to the next, whether a program that waits was sent a signal
_only = threading.Lock()  # pyfuse3's session is a global

P = ParamSpec("P")
T = TypeVar("T")
Method = Callable[Concatenate["_Files", P], Coroutine[Any, Any, T]]


async def mount(
    directory: Directory,
    path: str | os.PathLike[str],
    *,
    allow_other: bool = False,
    task_status: anyio.abc.TaskStatus[None] = anyio.TASK_STATUS_IGNORED,
) -> None:
    """Mount a tree until cancelled: ``await tasks.start(mount, tree, "/run/status")``.

    It returns if `directory` is removed, or the tree is unmounted by hand. Unmounting by force (``umount -f``) fails
    every operation that waits. After ``umount -l`` programs keep the files that they have open, and this returns when
    the last is closed.

    When a file is removed, blocked reads fail with its profile's answer, and polls wake with the profile's mask. That
    of procfs is IN and OUT: a poll for other events alone sleeps on, as in /proc. If a handler raises OSError, the
    program gets its number. Other exceptions are EIO to the program, and logged. O_NONBLOCK counts as it was when a
    file was opened.

    Code in the loop's own thread must not use the files: it would wait for itself. Starting a program with its working
    directory in the tree, by `anyio.run_process` or `subprocess`, is such a use.

    :param path: an empty directory. If a dead server has left a tree there, it is unmounted first
    :param allow_other: other users may use it as the modes say: entries with handlers to read are readable for all, and
        those with handlers to write are writable for the owner. Needs root, or user_allow_other in fuse.conf
    :raises OSError: if it cannot be mounted there, or this process has mounted a tree already
    :raises RevokedError: if `directory` was removed before
    Cancellation: revokes all open files, and unmounts the tree. Handlers that run are waited for as the profile says.
    """
    path = os.path.abspath(path)  # noqa: PTH100, ASYNC240  # looks at nothing
    over = anyio.Event()
    try:
        with directory.node.using(idle=True) as use:
            use.on_kick(over.set)
            if not _only.acquire(blocking=False):
                raise OSError(errno.EBUSY, "this process has mounted a tree already: pyfuse3 can mount one", path)
            try:
                await _make_way(path)
                await _serve(_Files(directory, path), over, path, allow_other, task_status)
            finally:
                _only.release()
    except RevokedError as error:
        if error.node is not directory.node or not error.in_flight:
            raise


async def _serve(
    files: _Files, over: anyio.Event, path: str, allow_other: bool, task_status: anyio.abc.TaskStatus[None]
) -> None:
    async def run() -> None:
        try:
            with anyio.CancelScope(shield=True):
                await pyfuse3.main(max_tasks=_REQUESTS)
        finally:
            ended.set()
            over.set()

    ended = anyio.Event()
    async with anyio.create_task_group() as tasks, _session(files, over, path, allow_other=allow_other):
        files.tasks = tasks
        tasks.start_soon(run)
        try:
            task_status.started()
            await over.wait()
        finally:
            files.end()
            with anyio.CancelScope(shield=True):
                pyfuse3.terminate()
                await ended.wait()


def _trio(over: anyio.Event) -> SimpleNamespace:
    """The part of trio that pyfuse3 uses. Its own stand-in for asyncio fails on uvloop, where a reader may be called
    once more.
    """

    async def wait_readable(fd: int) -> None:
        await anyio.wait_readable(fd)
        # pyfuse3 learns of the kernel's end by its next read, tells nobody, and waits for those inside a handler.
        poller = select.poll()
        poller.register(fd, 0)
        if poller.poll(0):
            over.set()

    return SimpleNamespace(
        ClosedResourceError=anyio.ClosedResourceError,
        Lock=anyio.Lock,
        open_nursery=anyio.create_task_group,
        lowlevel=SimpleNamespace(
            current_task=anyio.get_current_task,
            current_trio_token=lambda: None,
            notify_closing=anyio.notify_closing,
            wait_readable=wait_readable,
        ),
    )


@contextlib.asynccontextmanager
async def _session(files: _Files, over: anyio.Event, path: str, *, allow_other: bool) -> AsyncIterator[None]:
    options = {"default_permissions", "fsname=asyncrevoke", *(["allow_other"] if allow_other else [])}
    pyfuse3.trio = _trio(over)  # type: ignore[attr-defined,unused-ignore]  # as pyfuse3.asyncio puts itself there
    try:
        pyfuse3.init(files, path, options)
    except RuntimeError as exc:  # what libfuse knows of it has gone to standard error
        hint = "is /dev/fuse there, and fuse3 installed?" + " Does fuse.conf allow it?" * allow_other
        raise OSError(errno.EIO, f"it cannot be mounted ({exc}): {hint}", path) from exc
    try:
        yield
    finally:
        pyfuse3.close()
        with anyio.CancelScope(shield=True), contextlib.suppress(OSError):
            await _clear(path)  # an aborted connection stays mounted


async def _make_way(path: str) -> None:
    """Make sure that there is an empty directory.

    :raises OSError: if there is not
    """
    there = pathlib.Path(path)
    await _clear(path)
    if await off_loop(there.is_mount):
        raise OSError(errno.EBUSY, "something is mounted there: unmount it, or choose another directory", path)
    if await off_loop(lambda: any(there.iterdir())):
        raise OSError(errno.ENOTEMPTY, "the mount would hide its files: choose an empty directory", path)


async def _clear(path: str) -> None:
    """Unmount a tree that has no server any more.

    :raises OSError: if there is no such path
    """
    try:
        await off_loop(pathlib.Path(path).stat)
    except OSError as exc:
        if exc.errno != errno.ENOTCONN:
            raise
        unmount = ["umount", "-l", path] if os.geteuid() == 0 else ["fusermount3", "-u", "-z", path]
        await anyio.run_process(unmount, check=False)


class _Call:
    """A request, done in a task of its own: its program may get an answer while a handler hangs."""

    def __init__(self, work: Callable[[], Awaitable[Any]]) -> None:
        self._work = work
        self.scope = anyio.CancelScope(shield=True)
        self.done = anyio.Event()
        self.outcome: Any = pyfuse3.FUSEError(errno.ENOTCONN)  # if all is over before
        self.failed = True

    async def run(self) -> None:
        try:
            with self.scope:
                self.outcome = await self._work()
                self.failed = False
        except Exception as exc:  # noqa: BLE001  # raised where it is answered
            self.outcome = exc
        finally:
            self.done.set()


def _answered(method: Method[P, T]) -> Method[P, T]:
    """Answer a request, whatever it raises. An answer other than a number would end the mount."""

    @functools.wraps(method)
    async def answer(files: _Files, /, *args: P.args, **kwargs: P.kwargs) -> T:
        try:
            return await method(files, *args, **kwargs)
        except pyfuse3.FUSEError:
            raise
        except OSError as exc:
            raise pyfuse3.FUSEError(exc.errno or errno.EIO) from exc
        except anyio.ClosedResourceError as exc:
            raise pyfuse3.FUSEError(errno.EBADF) from exc
        except Exception as exc:
            logger.exception("a handler of the tree mounted at %s failed", files.path)
            raise pyfuse3.FUSEError(errno.EIO) from exc

    return answer


async def _refused(*_: object) -> Any:
    raise pyfuse3.FUSEError(errno.EPERM)


class _Files(pyfuse3.Operations):  # type: ignore[misc,unused-ignore]  # which may not be installed
    """The tree as the kernel asks for it. Nothing is cached: a removed file is gone at once.

    :ivar tasks: the task group of the requests
    """

    tasks: anyio.abc.TaskGroup

    def __init__(self, directory: Directory, path: str) -> None:
        super().__init__()
        self.path = path
        self._began = time.time_ns()
        self._open = Revokable(f"mounted at {path}")  # all files that are, by the kernel
        self._handles = itertools.count(1)
        self._files: dict[int, tuple[OpenFile, int]] = {}  # and who has opened them
        self._listings: dict[int, tuple[list[Entry | Directory], int]] = {}
        self._polls: dict[int, pyfuse3.PollHandle] = {}
        self._calls: dict[_Call, None] = {}
        self._inodes: dict[int, Entry | Directory] = {pyfuse3.ROOT_INODE: directory}
        self._numbers: dict[Entry | Directory, int] = {directory: pyfuse3.ROOT_INODE}
        self._unused = itertools.count(pyfuse3.ROOT_INODE + 1)
        self._lookups: Counter[int] = Counter()

    def end(self) -> None:
        """Revoke all files. Nobody waits for a handler any longer."""
        self._open.revoke("unmounted")
        for call in self._calls:
            call.done.set()
        self._polls.clear()

    async def _do(self, work: Callable[[], Awaitable[T]], pid: int) -> T:
        if self._open.revoked:
            raise pyfuse3.FUSEError(errno.ENOTCONN)
        call = _Call(work)
        self._calls[call] = None
        self.tasks.start_soon(call.run)
        try:
            while not call.done.is_set():
                with anyio.move_on_after(_PATIENCE):
                    await call.done.wait()
                if not call.done.is_set() and _signalled(pid):  # the kernel lets nobody go who is not answered
                    call.scope.cancel()
                    raise pyfuse3.FUSEError(errno.EINTR)
        finally:
            del self._calls[call]
        if call.failed:
            raise call.outcome
        found: T = call.outcome
        return found

    # -- names --

    async def _attributes(self, named: Entry | Directory, pid: int) -> pyfuse3.EntryAttributes:
        node = named.node
        if node.revoked:
            answers = node.answers
            number = errno.EIO if answers is None else answers.read.later
            raise pyfuse3.FUSEError(number if isinstance(number, int) else errno.ENOENT)
        if named not in self._numbers:
            self._numbers[named] = next(self._unused)
            self._inodes[self._numbers[named]] = named
        found = pyfuse3.EntryAttributes()
        found.st_ino = self._numbers[named]
        found.entry_timeout = found.attr_timeout = 0
        found.st_uid, found.st_gid = os.geteuid(), os.getegid()
        if isinstance(named, Directory):
            found.st_mode, found.st_nlink, changed = stat.S_IFDIR | 0o555, 2, self._began
        else:
            handlers = named.handlers.keys()
            mode = 0o444 * bool(handlers & {"show", "read"}) | 0o200 * bool(handlers & {"store", "write"})
            found.st_mode, found.st_nlink, changed = stat.S_IFREG | mode, 1, named.running.changed
            if "size" in handlers:
                found.st_size = await self._do(lambda: self._size(named), pid)
        found.st_mtime_ns = found.st_ctime_ns = found.st_atime_ns = changed
        return found

    async def _size(self, entry: Entry) -> int:
        with self._open.using():  # there is no open file that the end of the mount takes away
            return await entry.size()

    def _directory(self, inode: int) -> Directory:
        found = self._inodes[inode]
        if not isinstance(found, Directory):
            raise pyfuse3.FUSEError(errno.ENOTDIR)
        return found

    @_answered
    async def lookup(self, parent_inode: int, name: bytes, ctx: pyfuse3.RequestContext) -> pyfuse3.EntryAttributes:
        directory = self._directory(parent_inode)
        found = directory.parent or directory if name == b".." else directory.find(os.fsdecode(name))
        if found.node.revoked:
            raise pyfuse3.FUSEError(errno.ENOENT)
        attributes = await self._attributes(found, ctx.pid)
        self._lookups[attributes.st_ino] += 1
        return attributes

    async def forget(self, inode_list: Sequence[tuple[int, int]]) -> None:
        for inode, times in inode_list:
            self._lookups[inode] -= times
            if self._lookups[inode] <= 0:
                del self._lookups[inode]
                if inode != pyfuse3.ROOT_INODE and inode in self._inodes:
                    del self._numbers[self._inodes.pop(inode)]

    @_answered
    async def getattr(self, inode: int, ctx: pyfuse3.RequestContext) -> pyfuse3.EntryAttributes:
        return await self._attributes(self._inodes[inode], ctx.pid)

    @_answered
    async def setattr(
        self, inode: int, _attr: Any, fields: pyfuse3.SetattrFields, _fh: int | None, ctx: pyfuse3.RequestContext
    ) -> pyfuse3.EntryAttributes:
        if not fields.update_size:  # as a shell's > does
            raise pyfuse3.FUSEError(errno.EPERM)
        return await self._attributes(self._inodes[inode], ctx.pid)

    @_answered
    async def opendir(self, inode: int, ctx: pyfuse3.RequestContext) -> int:
        handle = next(self._handles)
        self._listings[handle] = list(self._directory(inode)), ctx.pid
        return handle

    @_answered
    async def readdir(self, fh: int, start_id: int, token: pyfuse3.ReaddirToken) -> None:
        listed, pid = self._listings[fh]
        for number, named in enumerate(listed[start_id:], start_id + 1):
            if not named.node.revoked:
                attributes = await self._attributes(named, pid)
                if not pyfuse3.readdir_reply(token, os.fsencode(named.name), attributes, number):
                    break
                self._lookups[attributes.st_ino] += 1

    async def releasedir(self, fh: int) -> None:
        del self._listings[fh]

    async def statfs(self, _ctx: pyfuse3.RequestContext) -> pyfuse3.StatvfsData:
        found = pyfuse3.StatvfsData()
        found.f_bsize = found.f_frsize = 4096
        found.f_namemax = 255
        return found

    create = mknod = mkdir = unlink = rmdir = rename = link = symlink = _refused  # type: ignore[assignment,unused-ignore]

    # -- files --

    @_answered
    async def open(self, inode: int, flags: int, ctx: pyfuse3.RequestContext) -> pyfuse3.FileInfo:
        entry = self._inodes[inode]
        if not isinstance(entry, Entry):
            raise pyfuse3.FUSEError(errno.EISDIR)
        file = await self._do(lambda: entry.open(f"process {ctx.pid}", also=[self._open]), ctx.pid)
        file.blocking = not flags & os.O_NONBLOCK
        handle = next(self._handles)
        self._files[handle] = file, ctx.pid
        return pyfuse3.FileInfo(fh=handle, direct_io=True)

    @_answered
    async def read(self, fh: int, off: int, size: int) -> bytes:
        file, pid = self._files[fh]
        return await self._do(lambda: file.pread(size, off), pid)

    @_answered
    async def write(self, fh: int, off: int, buf: bytes) -> int:
        file, pid = self._files[fh]
        return await self._do(lambda: file.pwrite(buf, off), pid)

    @_answered
    async def poll(
        self, _inode: int, fh: int, poll_handle: pyfuse3.PollHandle | None, _ctx: pyfuse3.RequestContext
    ) -> int:
        file, pid = self._files[fh]
        seen = file.entry.running.events
        ready = await self._do(lambda: file.poll(wait=False), pid)
        if poll_handle is not None:
            watched = fh in self._polls
            self._polls[fh] = poll_handle
            if not watched:
                self.tasks.start_soon(self._watch, fh, file, seen)
        return ready

    async def _watch(self, fh: int, file: OpenFile, seen: int) -> None:
        """Make the kernel ask again when there is news, or the file has gone."""
        with contextlib.suppress(RevokedError, anyio.ClosedResourceError):
            await file.news(seen)
        poll_handle = self._polls.pop(fh, None)
        if poll_handle is not None:
            with contextlib.suppress(OSError):  # nobody waits any more
                poll_handle.notify()

    async def release(self, fh: int) -> None:
        file, _ = self._files.pop(fh)
        file.handle.close()


def _signalled(pid: int) -> bool:
    """Whether a thread was sent a signal that it neither blocks nor ignores."""
    with contextlib.suppress(OSError, ValueError):
        status = pathlib.Path(f"/proc/{pid}/status").read_text()
        masks = dict(line.split(":\t") for line in status.splitlines() if line.startswith(("Sig", "Shd")))
        pending, shared, blocked, ignored = (int(masks[key], 16) for key in ("SigPnd", "ShdPnd", "SigBlk", "SigIgn"))
        return bool((pending | shared) & ~blocked & ~ignored)
    return False  # it has gone, and left the file to another
