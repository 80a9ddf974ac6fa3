"""Names that outlive what is open under them: generations, keys, and devices found by path.

A `Name` stays. What is opened under it belongs to its current `Generation`, which is revoked once. Hanging up ends the
generation, and the next open begins another. Revoking the name itself means that the thing is gone. A `Key` is a name
that exists only while somebody uses it. A `Registry` finds both. It keeps nothing alive, and is not global.
"""

import contextlib
import errno
import itertools
import os
import pathlib
import weakref
from collections.abc import Callable, Iterable, Iterator
from typing import Any

from asyncrevoke import linux
from asyncrevoke._core.revocation import Revocation
from asyncrevoke._core.revokable import Revokable, revoke_all
from asyncrevoke._streams.face import Face

from .key import Key
from .name import Generation, Name
from .place import Path, Place, file_of, look, place_of, places


class Registry:
    """Finds what can be revoked: by key, by name, by path.

    ``live["alice", "token7"]`` is the node of a key. Keys are paths in a tree. Open files on the node, directly or with
    ``also=[...]``. ``live.revoke("alice")`` revokes all below, and alice may begin again at once. ``name()`` adds a
    device. You then find it by its name, by every path that leads to it, and by a handle that is open on it.

    A path is looked up once, and leads to what is there then. A device is known by its number. A later device may get
    the same number, but what was opened before belongs to another generation. Anything else is known by its inode. No
    other file can get the inode's number as long as the name lives, because a descriptor is kept on it (O_PATH, which
    opens nothing).

    :ivar root: the node above all keys and names
    """

    def __init__(self, name: str = "") -> None:
        self.root = Revokable(name)
        self._keys: weakref.WeakValueDictionary[tuple[str, ...], Key] = weakref.WeakValueDictionary()
        self._draining: dict[tuple[str, ...], dict[Key, None]] = {}  # earlier ones of a path, which are not gone yet
        self._names: weakref.WeakValueDictionary[str, Name] = weakref.WeakValueDictionary()
        self._places: weakref.WeakValueDictionary[Place, Name | Generation] = weakref.WeakValueDictionary()
        self._numbers = itertools.count(1)

    def __getitem__(self, key: str | tuple[str, ...]) -> Revokable:
        """The node of a key. It is made if there is none, and dropped when nobody uses it."""
        path = (key,) if isinstance(key, str) else key
        if not isinstance(path, tuple) or not path or not all(isinstance(part, str) for part in path):
            raise TypeError(f"{key!r} is not a key: give one string, or several")
        node = self.root
        for end in range(1, len(path) + 1):
            here = path[:end]
            known = self._keys.get(here)
            if known is None or known.parent is not node or known.revoked:
                if known is not None and known.revoked and not known.released:
                    self._let_drain(here, known)
                earlier = self._draining.get(here, ())
                known = self._keys[here] = Key(path[end - 1], node, next(self._numbers), earlier)
            node = known
        return node

    def get(self, *key: str) -> Revokable | None:
        """The node of a key, if somebody uses it, or if it is revoked and not released yet. Otherwise None: nothing is
        made.
        """
        return self[key] if key in self._keys or key in self._draining else None

    def draining(self, *key: str) -> list[Revokable]:
        """The earlier nodes of a key that were revoked and are not released yet."""
        self.get(*key)  # which finds out whether the last one is of them
        return list(self._draining.get(key, ()))

    def _let_drain(self, path: tuple[str, ...], key: Key) -> None:
        draining = self._draining.setdefault(path, {})
        draining[key] = None

        def gone() -> None:
            del draining[key]
            if not draining:
                del self._draining[path]

        key._acts[0]._when_done(gone)

    def __iter__(self) -> Iterator[tuple[str, ...]]:
        """The keys in use."""
        return iter([path for path, key in list(self._keys.items()) if key.in_use and not key.revoked])

    def __len__(self) -> int:
        return sum(1 for _ in self)

    @property
    def size(self) -> int:
        """The number of keys: those in use, and any that are just being looked up. Unlike `len`, this counts
        nothing.
        """
        return len(self._keys)

    def __contains__(self, key: object) -> bool:
        path = (key,) if isinstance(key, str) else key
        return isinstance(path, tuple) and any(path == known for known in self)

    def name(self, name: str, path: Path | None = None, *, kind: type[Name] = Name, **options: Any) -> Name:
        """Add a device. You close it; its name is free again once it is revoked.

        :param path: its path in the file system, if it has one
        :param kind: a subclass of `Name` that knows more about hanging up
        :param options: as for `Name`
        :raises ValueError: if the name, or the device at `path`, is taken
        :raises OSError: if there is nothing at `path`
        :raises ImportError: for a `path`, on other systems than Linux
        """
        self.root._admit_child()
        with contextlib.ExitStack() as looking:
            place: Place | None = None
            file: tuple[object, ...] | None = None
            if path is not None:
                fd = os.open(path, linux.O_PATH)
                looking.callback(os.close, fd)
                status = os.fstat(fd)
                place = place_of(status)
                file = pathlib.Path(os.fsdecode(path)).absolute(), *file_of(status)
            for what, taken in (name, self._names.get(name)), (path, place and self._places.get(place)):
                if taken is not None and not taken.revoked:
                    raise ValueError(f"{what!r} is taken, by {taken!r}: revoke that first, or choose another")
            node = kind(name, **options)
            node._file = file
            if place is not None:
                self._places[place] = node
                if place[0] == "i":
                    node._inode = weakref.finalize(node, looking.pop_all().close)
        node._join((self.root,))
        self._names[name] = node
        return node

    def locate(self, name: Name, fd: int) -> None:
        """Let a device of this registry be found by another path and number, until it is hung up. It may come back
        elsewhere.

        :param fd: open on the device. If this file was added under another name, that name is found, as before
        """
        status = os.fstat(fd)
        known = self._places.get(place := place_of(status))
        taken = isinstance(known, Name) and not known.revoked
        if not taken:
            self._places[place] = name.current
        if not taken or known is name:
            name._file = None
            with contextlib.suppress(OSError):  # without /proc it counts as root's
                name._file = pathlib.Path(f"/proc/self/fd/{fd}").readlink(), *file_of(status)

    def find(self, what: Path | int | Revokable | Face) -> Name:
        """Find the device with that name, at that path, of that device number (`st_rdev`), or that a handle is open on.

        :raises LookupError: if this registry has no such device
        :raises OSError: if nothing is at that path at all
        """
        found: Name | None
        if isinstance(what, Face | Revokable):
            found = self._device(what.handle if isinstance(what, Face) else what)
        elif isinstance(what, int):
            found = self._placed(("c", what)) or self._placed(("b", what))
        else:
            found = self._named(what) or self._placed(place_of(look(what)))
        if found is None:
            raise LookupError(f"{what!r} leads to no device of this registry")
        return found

    def at(self, path: str) -> list[Revokable]:
        """The open nodes with that `Revokable.path`, parents first. There may be several: a generation has the path of
        its name.
        """
        found: list[Revokable] = []
        unvisited = [(self.root, self.root.name)]
        for node, there in unvisited:  # only what is on the way there
            if there == path and node is not self.root:
                found.append(node)
            if not there or path == there or path.startswith(f"{there}/"):
                own = [child for child in node._children or () if child.parent is node]
                unvisited += [(child, "/".join(filter(None, (there, child.name)))) for child in own]
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
        """Revoke a key with all below it, hang up the device of that name, or do what `hangup` does for that path.

        A single string is taken as a name first, then as a path if it begins with a slash, otherwise as a key. If
        others choose the keys, revoke ``live[key]`` itself. Revoking a key that nobody uses completes at once, without
        an error, even if you meant a name and mistyped it: ``find(name).hangup()`` is strict. Several strings are the
        parts of one key.

        :raises LookupError, OSError: as `hangup`, for paths
        :raises TypeError: if one of several strings is a path, which cannot be part of a key
        """
        if len(what) > 1 and not all(isinstance(part, str) and not part.startswith("/") for part in what):
            raise TypeError(
                f"{what!r} is not a key, because there are paths in it: revoke each path by itself, or their directory"
            )
        if len(what) == 1 and (named := self._named(what[0])):
            return named.hangup(reason, grace=grace)
        if len(what) == 1 and (not isinstance(what[0], str) or what[0].startswith("/")):
            return self.hangup(what[0], reason, grace=grace)
        return self[tuple(os.fspath(part) for part in what)].revoke(reason, grace=grace)

    def hangup(
        self,
        path: Path | Iterable[Place],
        reason: str = "",
        *,
        grace: float = 0.0,
        uid: int | None = None,
        among: Callable[[str], bool] = lambda _: True,
        by: str = "",
    ) -> Revocation:
        """Hang up the device that a path leads to, as revoke(2). For a directory, hang up every device that its files
        lead to.

        ``"/dev/serial/by-id"`` means whatever its links lead to now. ``"/run/lab"`` means all devices whose nodes are
        in it or in directories below. Links to directories are not entered, but `path` may be one.

        :param path: a path, or what `places` has found at it, in another thread or in the process that asks
        :param uid: the user who asks, if it is another process. Only root may, and the owner of the file by which each
            device was added here. Who owns the files that led to the device does not matter
        :param among: tells from a device's `path` whether the user may know of it. Other devices are treated as not
            there
        :param by: as for `revoke_all`
        :raises LookupError: if no device of this registry is there, or there are too many files to look at
        :raises PermissionError: if the user does not own one of them. Nothing has changed then
        :raises OSError, ValueError: if nothing is at that path at all, or it cannot be a path
        """
        what = "what was found there"
        if isinstance(path, str | bytes | os.PathLike):
            what, path = repr(os.fspath(path)), places(path)
        found: dict[Name, Revokable] = {}
        for place in path:
            known = self._places.get(place)
            name = self._device(known)
            if known is not None and name is not None and not known.released and among(name.path):
                found[name] = name.ending() if known in (name, name.current) else known  # what drains is hurried
        if not found:
            raise LookupError(f"neither {what} nor anything below it leads to a device of this registry")
        for name in found:
            if uid not in (None, 0, name._owner()):
                raise PermissionError(errno.EPERM, f"only the owner of its file and root may revoke {name.name!r}")
        in_order = [found[name] for name in self._names.values() if name in found]
        return revoke_all(in_order, reason, grace=grace, by=by)

    def frevoke(self, handle: Revokable | Face, reason: str = "", *, grace: float = 0.0) -> Revocation:
        """Hang up the device that `handle` is open on, for all who have it open, as frevoke(2).

        :raises LookupError: as `find`
        :raises RevokedError: if the generation in which `handle` was opened is over. The handle is not of the next one
        """
        node = handle.handle if isinstance(handle, Face) else handle
        device = self.find(handle)
        if node.revoked:
            raise node._refusal()
        return device.hangup(reason, grace=grace)
