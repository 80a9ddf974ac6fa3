"""Names that outlive what is open under them: generations, keys, and devices found by path.

A `Name` stays; what is opened under it belongs to its current `Generation`, which is revoked once. Hanging up ends the
generation, and the next open begins another; revoking the name itself means that the thing is gone. A `Key` is a name
that exists only as long as somebody uses it. A `Registry` finds both. It keeps nothing alive, and is no global.
"""

from __future__ import annotations

import contextlib
import errno
import functools
import itertools
import os
import pathlib
import stat
import weakref
from collections.abc import AsyncIterator, Awaitable, Callable, Iterable, Iterator
from typing import Any, Literal, Unpack

import anyio

from ._revocation import Revocation
from ._revokable import RELEASED, Options, Revokable, revoke_all, tell
from ._stream import Face

Hangup = Callable[[int], Awaitable[object] | None]
Path = str | os.PathLike[str]
#: What is the same by whatever path: ("c", number) or ("b", number) of a device, ("i", device, number) of any other inode.
Place = tuple[str, *tuple[int, ...]]

_MOST = 1000  # files that are looked at below a directory; their places fit into a line of the control protocol


class Generation(Revokable):
    """All that was opened under a name until it is hung up; over when it is released."""

    __slots__ = ("__weakref__", "_number")

    def __init__(self, number: int, name: str = "", **options: Any) -> None:
        super().__init__(name, **options)
        self._number = number


class Name(Revokable):
    """A name with generations, as a terminal has: `open` opens in the current one.

    :param while_draining: what an open does while the old generation is not released yet (RFC, spot 5). "next" begins
        the next one beside it; "refuse" raises `RevokedError`; "queue" lets `opening` wait for the release, and `open`
        raise.
    :param queue: how many may wait so
    :param hangup: runs as each generation's release and is told the number of pinned handles; may return an awaitable
    :param options: as for `Revokable`; `release` runs when the name itself is gone
    """

    __slots__ = ("__weakref__", "_current", "_file", "_hangup", "_inode", "_queue", "_waiting", "_while_draining")

    def __init__(
        self,
        name: str = "",
        *,
        while_draining: Literal["next", "refuse", "queue"] = "next",
        queue: int = 16,
        hangup: Hangup | None = None,
        **options: Any,
    ) -> None:
        if while_draining not in ("next", "refuse", "queue"):
            raise ValueError(f"while_draining is {while_draining!r}: give 'next', 'refuse' or 'queue'")
        super().__init__(name, **options)
        self._while_draining = while_draining
        self._queue = queue
        self._waiting = 0
        self._hangup = hangup
        self._file: tuple[Any, ...] | None = None  # by which a registry knows it: its path, and what was there
        self._inode: Callable[[], object] | None = None  # lets go of that file
        self._current = Generation(0, name)  # before the first
        self._current.revoke()

    @property
    def current(self) -> Generation:
        """The latest generation; it may be over. Number 0 is none at all."""
        return self._current

    @property
    def pinned(self) -> int:
        """The number of open handles that no hang-up takes away."""
        return sum(type(child) is not Generation for child in self._children or ())

    def pin(self, name: str = "", *, also: Iterable[Revokable] = (), **options: Unpack[Options]) -> Revokable:
        """Open a handle that stays through hang-ups, as a console's does (RFC, spot 8). Options as for `open`."""
        return super().open(name, also=also, **options)

    def open(self, name: str = "", *, also: Iterable[Revokable] = (), **options: Unpack[Options]) -> Revokable:
        """Open a handle in the current generation, or begin the next one. Options as for `Revokable.open`.

        :raises RevokedError: if the name is gone, or the old generation drains and is not to be passed
        """
        return self._generation().open(name, also=also, **options)

    @contextlib.asynccontextmanager
    async def opening(
        self, name: str = "", *, also: Iterable[Revokable] = (), **options: Unpack[Options]
    ) -> AsyncIterator[Revokable]:
        """As `Revokable.opening`, in the current generation; the waiting of the "queue" policy is done here.

        :raises RevokedError: if the name is gone, also while waiting
        :raises ~anyio.BusyResourceError: if too many wait
        Cancellation: leaves the queue.
        """
        await self.drained()
        async with self._generation().opening(name, also=also, **options) as handle:
            yield handle

    def hangup(self, reason: str = "hung up", *, grace: float = 0.0) -> Revocation:
        """End the current generation; the name stays, and pinned handles too. As `revoke` otherwise."""
        return self.ending().revoke(reason, grace=grace)

    def ending(self) -> Revokable:
        """The generation that a hang-up ends. A kind of names may begin one, to have something to end."""
        return self._current

    def _generation(self) -> Generation:
        self._admit_child()
        old = self._current
        if not old.revoked:
            return old
        if not old.released and self._while_draining != "next":
            raise old._refusal()
        hangup = self._hangup
        new = Generation(
            (old._number or 0) + 1,
            release=None if hangup is None else lambda: hangup(self.pinned),
            kick=self._kick,
            answers=self._answers,
        )
        new._join((self,))
        self._current = new
        return new

    async def drained(self) -> None:
        """Wait in the queue until an open would not be refused; only where the policy is "queue".

        :raises RevokedError: if the name is gone, also while waiting
        :raises ~anyio.BusyResourceError: if too many wait
        Cancellation: leaves the queue.
        """
        with self.using():
            while self._while_draining == "queue" and (old := self._current).revoked and not old.released:
                if self._waiting >= self._queue:
                    raise anyio.BusyResourceError("opening")
                self._waiting += 1
                try:
                    await old._acts[0]._until(lambda old=old: old.released)  # type: ignore[misc]  # of this one, whatever comes next
                finally:
                    self._waiting -= 1

    def _owner(self) -> int:
        """Of that file, now: root, if another is there, or its owner has no number here, as many have not in a container."""
        if self._file is not None:
            path, *known = self._file
            with contextlib.suppress(OSError):
                status = _look(path)
                if _file(status) == known and status.st_uid != _nobody():
                    return status.st_uid
        return 0

    def _gone(self) -> None:
        if self._inode is not None:
            self._inode()


class Key(Revokable):
    """A node of a registry's tree of keys: a child of its parent only while somebody uses it."""

    __slots__ = ("__weakref__", "_number")

    def __init__(self, name: str, parent: Revokable, number: int) -> None:
        super().__init__(name)
        self.parent = parent
        self._kick = parent._kick
        self._answers = parent._answers
        self._number = number

    @property
    def revoked(self) -> bool:
        self._catch_up()
        return bool(self._acts)

    @property
    def reason(self) -> str:
        self._catch_up()
        return super().reason

    def _catch_up(self) -> None:
        """A revocation does not reach down to a key that nobody uses: such a key takes it over when it is asked."""
        late: list[Revokable] = []
        node: Revokable | None = self
        while node is not None and not node._acts:
            late.append(node)
            node = node.parent
        if node is not None:
            for each in late:
                each._acts, each._state = node._acts, RELEASED

    def _admit_child(self) -> None:
        self._catch_up()
        super()._admit_child()

    def _admits_use(self) -> bool:
        self._catch_up()
        return super()._admits_use()

    def _first_use(self) -> dict[Any, None]:
        self._admit_child()
        self._attach()
        return super()._first_use()

    def _link(self, child: Revokable) -> None:
        self._attach()
        super()._link(child)

    def _attach(self) -> None:
        node: Revokable = self
        attached: list[Revokable] = []
        while (parent := node.parent) is not None and node not in (parent._children or ()):
            Revokable._link(parent, node)
            parent._home = node._home
            attached.append(node)
            node = parent
        for node in reversed(attached):
            tell("opened", node)

    def _unused(self) -> None:
        node: Revokable = self
        while type(node) is Key and not node.in_use and not node._acts:
            parent = node.parent
            assert parent is not None
            node._uses = None  # so that the next use attaches it
            if (parent._children or {}).pop(node, node) is node:  # nobody has used it
                break
            tell("released", node)
            node = parent


class Registry:
    """Finds what can be taken away: by key, by name, by path.

    ``live["alice", "token7"]`` gives the node of a key, a path in a tree of them; open files on it, directly or with
    ``also=[...]``. ``live.revoke("alice")`` takes all below away, and alice may begin again at once. ``name()`` adds a
    device, which is then found by its name, by every path that leads to it, and by what is open on it.

    A path is looked at once, and leads to what is there then. A device is known by its number, which a later device may
    get: what was opened before belongs to another generation. Anything else is known by its inode, whose number no
    other file can get as long as the name lives, as a descriptor is kept on it (O_PATH, which opens nothing).

    :ivar root: the node above all keys and names
    """

    def __init__(self, name: str = "") -> None:
        self.root = Revokable(name)
        self._keys: weakref.WeakValueDictionary[tuple[str, ...], Key] = weakref.WeakValueDictionary()
        self._names: weakref.WeakValueDictionary[str, Name] = weakref.WeakValueDictionary()
        self._places: weakref.WeakValueDictionary[Place, Name | Generation] = weakref.WeakValueDictionary()
        self._numbers = itertools.count(1)

    def __getitem__(self, key: str | tuple[str, ...]) -> Revokable:
        """The node of a key, made if there is none. It is dropped when nobody uses it."""
        path = (key,) if isinstance(key, str) else key
        if not isinstance(path, tuple) or not path or not all(isinstance(part, str) for part in path):
            raise TypeError(f"{key!r} is no key: give one string, or several")
        node = self.root
        for end in range(1, len(path) + 1):
            known = self._keys.get(path[:end])
            if known is None or known.parent is not node or known.revoked:
                known = self._keys[path[:end]] = Key(path[end - 1], node, next(self._numbers))
            node = known
        return node

    def __iter__(self) -> Iterator[tuple[str, ...]]:
        """The keys in use."""
        return iter([path for path, key in list(self._keys.items()) if key.in_use and not key.revoked])

    def __len__(self) -> int:
        return sum(1 for _ in self)

    def __contains__(self, key: object) -> bool:
        path = (key,) if isinstance(key, str) else key
        return isinstance(path, tuple) and any(path == known for known in self)

    def name(self, name: str, path: Path | None = None, *, kind: type[Name] = Name, **options: Any) -> Name:
        """Add a device. It is the caller's to close; its name is free again once it is revoked.

        :param path: where it is found in the file system, if it is
        :param kind: a class of names that knows more about hanging up
        :param options: as for `Name`
        :raises ValueError: if the name, or the device at `path`, is taken
        :raises OSError: if there is nothing at `path`
        """
        self.root._admit_child()
        with contextlib.ExitStack() as looking:
            place: Place | None = None
            if path is not None:
                fd = os.open(path, os.O_PATH)
                looking.callback(os.close, fd)
                status = os.fstat(fd)
                place = _place(status)
            for what, taken in (name, self._names.get(name)), (path, place and self._places.get(place)):
                if taken is not None and not taken.revoked:
                    raise ValueError(f"{what!r} is taken, by {taken!r}: revoke that first, or choose another")
            node = kind(name, **options)
            if path is not None and place is not None:
                node._file = pathlib.Path(os.fsdecode(path)).absolute(), *_file(status)
                self._places[place] = node
                if place[0] == "i":
                    node._inode = weakref.finalize(node, looking.pop_all().close)
        node._join((self.root,))
        self._names[name] = node
        return node

    def locate(self, name: Name, fd: int) -> None:
        """Let a device of this registry be found by path and number, too, until it is hung up: it may come back elsewhere.

        :param fd: open on the device. If it was added by a path, under another name, that one stays the one to be found
        """
        status = os.fstat(fd)
        known = self._places.get(place := _place(status))
        taken = isinstance(known, Name) and not known.revoked
        if not taken:
            self._places[place] = name.current
        if not taken or known is name:
            name._file = None
            with contextlib.suppress(OSError):  # without /proc it counts as root's
                name._file = pathlib.Path(f"/proc/self/fd/{fd}").readlink(), *_file(status)

    def find(self, what: Path | int | Revokable | Face) -> Name:
        """The device of that name; that a path leads to; of that device number (`st_rdev`); that a handle is open on.

        :raises LookupError: if there is none here
        :raises OSError: if nothing is at that path at all
        """
        found: Name | None
        if isinstance(what, Face | Revokable):
            found = self._device(what.handle if isinstance(what, Face) else what)
        elif isinstance(what, int):
            found = self._placed(("c", what)) or self._placed(("b", what))
        else:
            found = self._named(what) or self._placed(_place(_look(what)))
        if found is None:
            raise LookupError(f"{what!r} leads to no device of this registry")
        return found

    def _placed(self, place: Place) -> Name | None:
        known = self._places.get(place)
        return None if known is None or known.revoked else self._device(known)

    def _device(self, node: Revokable | None) -> Name | None:
        """The live device of this registry that a node belongs to."""
        while node is not None and not isinstance(node, Name):
            node = node.parent
        return None if node is None or node.revoked or self._names.get(node.name) is not node else node

    def _named(self, what: object) -> Name | None:
        name = self._names.get(what) if isinstance(what, str) else None
        return None if name is None or name.revoked else name

    def revoke(self, *what: Path, reason: str = "", grace: float = 0.0) -> Revocation:
        """Take away a key with all below it, or hang up the device of that name, or what `hangup` does of that path.

        A single string is taken as a name first, then as a path if it begins with a slash, else as a key: where others
        choose the keys, revoke ``live[key]`` itself. To revoke a key that nobody uses is complete at once, and no error, also
        if it is a name mistyped: ``find(name).hangup()`` is strict. Several strings are the parts of one key.

        :raises LookupError, OSError: as `hangup`, for paths
        :raises TypeError: of several, if one is a path: that is no part of a key
        """
        if len(what) > 1 and not all(isinstance(part, str) and not part.startswith("/") for part in what):
            raise TypeError(f"{what!r} is no key, as there are paths in it: revoke each by itself, or their directory")
        if len(what) == 1 and (named := self._named(what[0])):
            return named.hangup(reason, grace=grace)
        if len(what) == 1 and (not isinstance(what[0], str) or what[0].startswith("/")):
            return self.hangup(what[0], reason, grace=grace)
        return self[tuple(os.fspath(part) for part in what)].revoke(reason, grace=grace)

    def hangup(
        self, path: Path | Iterable[Place], reason: str = "", *, grace: float = 0.0, uid: int | None = None
    ) -> Revocation:
        """Hang up the device that a path leads to, as revoke(2); of a directory, all that its files lead to.

        So ``"/dev/serial/by-id"`` is whatever its links lead to now, and ``"/run/lab"`` all devices whose nodes are in it
        or in directories below. Links to directories are not entered, but `path` may be one.

        :param path: a path, or what `places` has found at it: in another thread, or in the process that asks
        :param uid: the user who asks, where it is not this process: he must be root, or own the file by which each of the
            devices was added here, whosever the files are that he has found it by
        :raises LookupError: if no device of this registry is there, or there are too many files to look at
        :raises PermissionError: if one of them is not the user's; then nothing has changed
        :raises OSError, ValueError: if nothing is at that path at all, or it can be none
        """
        what = "what was found there"
        if isinstance(path, str | bytes | os.PathLike):
            what, path = repr(os.fspath(path)), places(path)
        found: dict[Name, Revokable] = {}
        for place in path:
            known = self._places.get(place)
            name = self._device(known)
            if known is not None and name is not None and not known.released:
                found[name] = name.ending() if known in (name, name.current) else known  # what drains is hurried
        if not found:
            raise LookupError(f"neither {what} nor anything below it leads to a device of this registry")
        for name in found:
            if uid not in (None, 0, name._owner()):
                raise PermissionError(errno.EPERM, f"only the owner of its file and root may revoke {name.name!r}")
        in_order = [found[name] for name in self._names.values() if name in found]
        return revoke_all(in_order, reason, grace=grace)

    def frevoke(self, handle: Revokable | Face, reason: str = "", *, grace: float = 0.0) -> Revocation:
        """Hang up the device that `handle` is open on, for all who have it open, as frevoke(2).

        :raises LookupError: as `find`
        :raises RevokedError: if what `handle` was opened in is over already, as it is no device of the next generation
        """
        node = handle.handle if isinstance(handle, Face) else handle
        device = self.find(handle)
        if node.revoked:
            raise node._refusal()
        return device.hangup(reason, grace=grace)


def places(path: Path) -> list[Place]:
    """What a path leads to and, if it is a directory, all that the files in it and below lead to: for `Registry.hangup`.

    Each is found by one look, lest it be replaced between two. It takes as long as the file systems take, of which one may
    have died: so have it run in the process that asks, or in a thread.

    :raises LookupError: if there are more than 1000 files to look at
    :raises OSError, ValueError: if nothing is at that path at all, or it can be none
    """
    found = [_place(_look(path))]
    for number, entry in enumerate(_below(path)):
        if number == _MOST:
            raise LookupError(
                f"more than {_MOST} files are below {os.fspath(path)!r}: give a path nearer to the device"
            )
        with contextlib.suppress(OSError):  # it leads nowhere, or has just gone
            found.append(_place(_look(entry)))
    return list(dict.fromkeys(found))


def _look(path: Path) -> os.stat_result:
    return os.stat(path)  # noqa: PTH116  # a Path is where one is if it is empty, and loses a slash at the end


def _file(status: os.stat_result) -> list[object]:
    """By what a file is known again, whose inode number another one may have got."""
    return [status.st_dev, status.st_ino, _place(status)]


def _place(status: os.stat_result) -> Place:
    for letter, is_device in ("c", stat.S_ISCHR), ("b", stat.S_ISBLK):
        if is_device(status.st_mode):
            return letter, status.st_rdev
    return "i", status.st_dev, status.st_ino


@functools.cache
def _nobody() -> int:
    """Who is said to own what belongs to users that have no number in this user namespace."""
    return int(pathlib.Path("/proc/sys/kernel/overflowuid").read_text())


def _below(path: Path) -> Iterator[str]:
    """The files in a directory and below; of anything else, and of what may not be read, none."""
    unvisited = [os.fspath(path)]
    while unvisited:
        with contextlib.suppress(OSError), os.scandir(unvisited.pop()) as entries:
            for entry in entries:
                yield entry.path
                if entry.is_dir(follow_symlinks=False):
                    unvisited.append(entry.path)
