"""The place that a path leads to: a device by its number, anything else by its inode."""

import contextlib
import functools
import os
import pathlib
import stat
from collections.abc import Iterator

Path = str | os.PathLike[str]
#: Identifies a file by any path: ("c", number) or ("b", number) of a device, ("i", device, number) of any other inode.
Place = tuple[str, *tuple[int, ...]]
_MOST = 1000  # files that are looked at below a directory; their places fit into a line of the control protocol


def places(path: Path) -> list[Place]:
    """Return the place a path leads to and, for a directory, the places of all files in it and below: for
    `Registry.hangup`.

    Each file is looked at once, so that nothing is replaced between two looks. This takes as long as the file systems
    take, and one of them may have died. So run it in the process that asks, or in a thread.

    :raises LookupError: if there are more than 1000 files to look at
    :raises OSError, ValueError: if nothing is at that path at all, or it cannot be a path
    """
    found = [place_of(look(path))]
    for number, entry in enumerate(_below(path)):
        if number == _MOST:
            raise LookupError(
                f"more than {_MOST} files are below {os.fspath(path)!r}: give a path nearer to the device"
            )
        with contextlib.suppress(OSError):  # it leads nowhere, or has just gone
            found.append(place_of(look(entry)))
    return list(dict.fromkeys(found))


def look(path: Path) -> os.stat_result:
    return os.stat(path)  # noqa: PTH116  # a Path is where one is if it is empty, and loses a slash at the end


def file_of(status: os.stat_result) -> list[object]:
    """Identify a file, even after another file has got its inode number."""
    return [status.st_dev, status.st_ino, place_of(status)]


def place_of(status: os.stat_result) -> Place:
    for letter, is_device in ("c", stat.S_ISCHR), ("b", stat.S_ISBLK):
        if is_device(status.st_mode):
            return letter, status.st_rdev
    return "i", status.st_dev, status.st_ino


@functools.cache
def nobody() -> int:
    """The uid that the system reports for owners without a number in this user namespace."""
    return int(pathlib.Path("/proc/sys/kernel/overflowuid").read_text())


def _below(path: Path) -> Iterator[str]:
    """Yield the files in a directory and below. For anything else, and for what may not be read, yield nothing."""
    unvisited = [os.fspath(path)]
    while unvisited:
        with contextlib.suppress(OSError), os.scandir(unvisited.pop()) as entries:
            for entry in entries:
                yield entry.path
                if entry.is_dir(follow_symlinks=False):
                    unvisited.append(entry.path)
