"""The file of a log. It is appended to, opened again after another program has rotated it, or rotated by size."""

import contextlib
import errno
import io
import logging
import os
import stat

logger = logging.getLogger("asyncrevoke")

_LINE = 4096  # bytes that a full file may still take, to complete its last line


def open_file(path: str, size: int = 0, keep: int = 0) -> io.FileIO:
    """Open a file to append to. Pipes, and files behind a symbolic link such as /dev/stdout, are never rotated.

    :param size, keep: as for `RotatedFile`. 0: it is not rotated
    :raises OSError: if it cannot be opened. A pipe that nobody reads is such an error: it is not waited for
    """
    if size and (not os.path.lexists(path) or stat.S_ISREG(os.lstat(path).st_mode)):
        return RotatedFile(path, size, keep)
    return open(path, "ab", buffering=0, opener=_open)  # the caller closes it


def check_file(path: str) -> None:
    """Find out why a log cannot be opened, as far as that is seen while nothing is opened or made.

    :raises OSError: if it cannot
    """
    folder = os.path.dirname(path) or "."  # noqa: PTH120
    if os.path.isdir(path):  # noqa: PTH112
        raise IsADirectoryError(errno.EISDIR, os.strerror(errno.EISDIR), path)
    if not os.access(folder, os.F_OK):
        raise FileNotFoundError(errno.ENOENT, os.strerror(errno.ENOENT), folder)
    if not os.access(path if os.path.exists(path) else folder, os.W_OK, effective_ids=True):  # noqa: PTH110
        raise PermissionError(errno.EACCES, os.strerror(errno.EACCES), path)


def is_regular(file: io.FileIO) -> bool:
    """Whether a file is a regular one, which never has to be waited for."""
    return stat.S_ISREG(os.fstat(file.fileno()).st_mode)


def reopen(file: io.FileIO) -> None:
    """Go on with the file that is at the path now. A pipe stays.

    :raises OSError: if that file cannot be opened. Then the old one stays
    """
    if is_regular(file):
        fd = _open(os.fsdecode(file.name), os.O_WRONLY | os.O_APPEND | os.O_CREAT)
        os.dup2(fd, file.fileno(), inheritable=False)
        os.close(fd)


def ends_within_a_line(file: io.FileIO) -> bool:
    """Whether the last line of a file is not complete. True if that cannot be read."""
    if not is_regular(file) or not os.fstat(file.fileno()).st_size:
        return False
    with contextlib.suppress(OSError), open(file.name, "rb") as reading:  # noqa: PTH123
        reading.seek(-1, os.SEEK_END)
        return reading.read() != b"\n"
    return True  # we may not read it: perhaps


class RotatedFile(io.FileIO):
    """A file that is rotated when it is full: PATH becomes PATH.1, PATH.1 becomes PATH.2, and so on.

    Each file ends with the line in which it gets full, or 4096 bytes later. If a file cannot be renamed or made, output still
    goes to the old one. It is tried again when that has grown by another `size`. The files stay in order.

    :param size: bytes at which a file is full
    :param keep: number of old files, 1 or more. The oldest one is replaced
    :raises OSError: as `open_file`
    """

    def __init__(self, path: str, size: int, keep: int) -> None:
        super().__init__(path, "ab", opener=_open)
        self._names = [path, *(f"{path}.{number}" for number in range(1, keep + 1))]
        self._size = self._full = size
        self._whole = True  # the last line is complete

    def write(self, data: bytes) -> int:  # type: ignore[override]  # bytes are all that we write
        """Append as much as belongs into the same file. Return the number of bytes."""
        room = self._room()
        if room <= 0 and (self._whole or room <= -_LINE):
            self._rotate()
            room = self._room()
        if len(data) >= room:
            most = room + _LINE
            data = data[: data.find(b"\n", max(0, room - 1), most) + 1 or most]
        written = super().write(data)
        self._whole = data[written - 1 : written] == b"\n"
        return written

    def _room(self) -> int:
        return self._full - self.seek(0, os.SEEK_END)

    def _rotate(self) -> None:
        free = next((n for n, name in enumerate(self._names) if not os.path.lexists(name)), len(self._names) - 1)
        try:
            for number in range(free, 0, -1):
                os.rename(self._names[number - 1], self._names[number])  # noqa: PTH104
            reopen(self)
        except OSError as exc:
            logger.error(  # noqa: TRY400
                "the log %r cannot be rotated: %s. Output still goes to the old file", self.name, exc.strerror
            )
            self._full = self.seek(0, os.SEEK_END) + self._size
        else:
            self._full = self._size


def _open(path: str, flags: int) -> int:
    """Open a file. If it is made, not everybody may read it: output may be private."""
    return os.open(path, flags | os.O_NONBLOCK | os.O_CLOEXEC, 0o640)
