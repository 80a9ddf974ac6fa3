"""A tree of named entries with handlers, as in procfs, debugfs and sysfs: live values that can be revoked at any time.

An entry is a child of its directory, an open file is a child of its entry, and each call of a handler is an operation
on that file. So removing an entry, or a subtree, revokes one node. These are the steps of `kernfs_remove`
(fs/kernfs/dir.c), and what does each of them here:

= ================================================== ================================================================
1 deactivate all that is below: nothing new begins   refusing is one step that nothing interrupts
2 wait for the handlers that run, children first     they are operations; awaiting the removal waits for them
3 release what is open, each once (close_pdeo)       the release of each file, which runs the handler `release`
4 take the name away                                 it is free at once, as in procfs
5 wake those who poll: kernfs does not, they sleep   who waits for news is kicked, in every profile
6 kernfs_remove_self: one winner, others wait        `Operation.remove_self`
= ================================================== ================================================================

Dead files answer by the tree's profile: `answers.PROCFS`, `answers.DEBUGFS`, `answers.SYSFS`, or another. If the
profile says that operations in flight finish, handlers are waited for. Otherwise they are cancelled.
"""

from __future__ import annotations

import errno
import functools
from collections.abc import Iterable, Iterator
from types import EllipsisType
from typing import Any, TypeVar, Unpack

import anyio.lowlevel

from asyncrevoke.answers import Answer, Answers
from asyncrevoke.lowlevel import Revocation, Revokable, RevokedError

from .file import Handlers, OpenFile, Running, call

N = TypeVar("N", "Entry", "Directory")


class _Named:
    """Something with a name in a directory, as long as it is not removed.

    :ivar parent: the directory it is in; None for a root
    :ivar node: the node that is revoked
    :ivar permanent: whether it cannot be removed
    """

    def __init__(self, name: str, owner: Revokable | None, **options: Any) -> None:
        self.name = name
        self.parent: Directory | None = None
        self.permanent = False
        make = Revokable if owner is None else owner.open
        self.node = make(name, release=self._forget, **options)

    def remove(self, reason: str = "removed") -> Revocation:
        """Remove it, with all that is below. When this returns nothing new begins there, and the name is free.

        Awaiting the result waits for the handlers that run. Models remove_proc_subtree, debugfs_remove, kernfs_remove.

        :raises OSError: EPERM, if it is permanent, or something in it is. Nothing was removed then
        """
        if self.permanent:
            raise OSError(errno.EPERM, "it is permanent, or something in it is", self.node.path)
        return self.node.revoke(reason)

    def _forget(self) -> None:
        names = {} if self.parent is None else self.parent._names
        if names.get(self.name) is self:
            del names[self.name]

    def __repr__(self) -> str:
        return f"<{type(self).__name__} of {self.node!r}>"


class Directory(_Named):
    """A directory of entries: ``tree = Directory("status", answers=answers.SYSFS)`` is a root. Make all else in it.

    :param owner: what the tree belongs to. None: it is a root of its own
    :param answers: the profile that dead files answer by. In the kernel's profiles handlers finish. Default: as at the
        owner; at a root, `RevokedError`, and handlers are cancelled
    :raises RevokedError: if the owner was revoked
    """

    def __init__(
        self, name: str = "", *, owner: Revokable | None = None, answers: Answers | EllipsisType = ...
    ) -> None:
        finishes = isinstance(answers, Answers) and answers.read.in_flight is Answer.FINISHES
        super().__init__(name, owner, answers=answers, kick=None if finishes else ...)
        self._names: dict[str, Entry | Directory] = {}

    def mkdir(self, name: str) -> Directory:
        """Make a directory in this one.

        :raises ValueError: if the name is not allowed: empty, only dots, longer than 255 bytes, or with a slash or NUL
            in it
        :raises FileExistsError: if the name is taken
        :raises RevokedError: if this directory was removed
        """
        self._check(name)
        return self._put(Directory(name, owner=self.node))

    def create(self, name: str, *, permanent: bool = False, **handlers: Unpack[Handlers]) -> Entry:
        """Make an entry in this directory.

        :param permanent: neither it nor its directories can be removed, and its operations cost no more than their
            handlers. Nobody waits for them; only an operation that waits for news ends with the file
            (PROC_ENTRY_PERMANENT)
        :raises: as `mkdir`
        :raises TypeError: if there is no such handler, or two for one purpose
        """
        self._check(name)
        entry = self._put(Entry(name, self.node, handlers))
        above: Entry | Directory | None = entry if permanent else None
        while above is not None:
            above.permanent, above = True, above.parent
        return entry

    def find(self, path: str) -> Entry | Directory:
        """Find the entry or directory at a path below this directory. A removed one is found until it is drained, or
        its name is taken again.

        :raises FileNotFoundError, NotADirectoryError: if there is no such thing
        """
        found: Entry | Directory = self
        for name in path.split("/"):
            if name in ("", "."):
                continue
            if not isinstance(found, Directory):
                raise NotADirectoryError(errno.ENOTDIR, f"{found.name!r} is not a directory", path)
            if name not in found._names:
                raise FileNotFoundError(errno.ENOENT, f"there is no {name!r}", path)
            found = found._names[name]
        return found

    async def open(self, path: str, name: str = "", *, also: Iterable[Revokable] = ()) -> OpenFile:
        """Open the entry at a path, as `Entry.open`.

        :raises FileNotFoundError, NotADirectoryError, IsADirectoryError: if there is no such entry
        """
        found = self.find(path)
        if isinstance(found, Directory):
            raise IsADirectoryError(errno.EISDIR, "it is a directory", path)
        return await found.open(name, also=also)

    def __iter__(self) -> Iterator[Entry | Directory]:
        """Iterate over this directory, in order of creation."""
        return iter([each for each in self._names.values() if not each.node.revoked])

    def _check(self, name: str) -> None:
        long = len(name.encode(errors="surrogateescape")) > 255
        if name in ("", ".", "..") or long or "/" in name or "\0" in name:
            raise ValueError(f"{name[:300]!r} is not a name: give 1 to 255 bytes without / and NUL, and not only dots")
        taken = self._names.get(name)
        if taken is not None and not taken.node.revoked:
            raise FileExistsError(errno.EEXIST, f"{taken!r} has that name: remove it first", name)

    def _put(self, named: N) -> N:
        named.parent = self
        self._names[named.name] = named
        return named


class Entry(_Named):
    """An entry, as `Directory.create` makes it.

    :ivar handlers: its handlers
    :ivar running: the operations on its files
    """

    def __init__(self, name: str, owner: Revokable, handlers: Handlers) -> None:
        for handler, function in handlers.items():
            if handler not in Handlers.__annotations__ or not callable(function):
                known = ", ".join(Handlers.__annotations__)
                raise TypeError(f"{name!r}: {handler}={function!r} is not a handler: give functions for {known}")
        for one, other in ("show", "read"), ("store", "write"):
            if one in handlers and other in handlers:
                raise TypeError(f"{name!r} has {one!r} and {other!r}: give one of them")
        super().__init__(name, owner)
        self.handlers = handlers
        self.running = Running()

    def notify(self) -> None:
        """Announce news. Pollers look again, and a `read` that had nothing is called again. Models kernfs_notify."""
        self.running.notify()

    async def size(self) -> int:
        """Its length, as it reports it. 0 if it has no handler for that, as in procfs.

        :raises RevokedError: if it was removed, before or meanwhile
        """
        if "size" not in self.handlers:
            return 0
        with self.node.using():
            size = await call(self.handlers["size"])
        if type(size) is not int or size < 0:
            raise ValueError(f"{self.node.path!r}: 'size' returned {size!r}: give a number of bytes")
        return size

    async def open(self, name: str = "", *, also: Iterable[Revokable] = ()) -> OpenFile:
        """Open it: ``async with await entry.open() as file: await file.read()``

        :param also: further parents, such as a token. Whichever is revoked first takes the file along
        :raises RevokedError: if it was removed, before or meanwhile; its `errno` is the profile's
        :raises: what the handler `open` raises
        Cancellation: nothing was opened.
        """
        await anyio.lowlevel.checkpoint()
        file = OpenFile(self)
        try:
            async with self.node.opening(name, also=also) as file.handle:
                if "open" in self.handlers:
                    await call(self.handlers["open"], file)
                if "release" in self.handlers:
                    file.handle.release = functools.partial(self.handlers["release"], file)
        except RevokedError as error:
            if error.node is self.node and (profile := self.node.answers) is not None:
                found = profile.open.later if self.node.released else profile.open.in_flight
                error.errno = found if isinstance(found, int) else error.errno
            raise
        return file
