"""The file of a log: appended to, opened anew for those who rotate it, or rotated by size."""

import contextlib
import io
import logging
import math
import os
import stat

logger = logging.getLogger("asyncrevoke")

_LINE = 4096  # bytes more, for the line in which a file gets full to come to its end


class LogFile(io.FileIO):
    """A file, or a pipe, that is appended to.

    :raises OSError: if it cannot be opened; a pipe that nobody reads is an error, and no reason to wait
    """

    def __init__(self, path: str) -> None:
        super().__init__(path, "ab", opener=_open)
        self.path = path
        #: whether it is a file: it never has to be waited for
        self.regular = stat.S_ISREG(os.fstat(self.fileno()).st_mode)

    def ends_within_a_line(self) -> bool:
        """Whether it is a file whose last line has no end."""
        if not self.regular or not os.fstat(self.fileno()).st_size:
            return False
        with contextlib.suppress(OSError), open(self.path, "rb") as file:  # noqa: PTH123
            file.seek(-1, os.SEEK_END)
            return file.read() != b"\n"
        return True  # it is not for us to read: perhaps

    def reopen(self) -> None:
        """Go on with the file that is at its path now; a pipe stays.

        :raises OSError: if that cannot be opened; then all goes on in the old one
        """
        if self.regular:
            fd = _open(self.path, os.O_WRONLY | os.O_APPEND | os.O_CREAT)
            os.dup2(fd, self.fileno(), inheritable=False)
            os.close(fd)


class RotatedFile(LogFile):
    """A file that is begun anew when it is full: PATH becomes PATH.1, which becomes PATH.2, and so on.

    Each ends with the line in which it gets full, or 4096 bytes later. If one cannot be renamed or made, all goes on in the
    old one, which has grown by another `size` when it is tried again; the files stay in order. A pipe, and what a symbolic
    link leads to, such as /dev/stdout, are never full.

    :param size: bytes; a file that has so many is full
    :param keep: how many old ones there are, 1 or more; the oldest makes room
    :raises OSError: as `LogFile`
    """

    def __init__(self, path: str, size: int, keep: int) -> None:
        super().__init__(path)
        self._names = [path, *(f"{path}.{number}" for number in range(1, keep + 1))]
        self._size = size if stat.S_ISREG(os.lstat(path).st_mode) else math.inf
        self._full = self._size
        self._whole = True  # what it has ends with a line

    def write(self, data: bytes) -> int:  # type: ignore[override]  # bytes are all that we write
        """Append what goes into the one file, and return how much that is."""
        room = self._room()
        if room <= 0 and (self._whole or room <= -_LINE):
            self._rotate()
            room = self._room()
        if len(data) >= room:
            most = int(room) + _LINE
            data = data[: data.find(b"\n", max(0, int(room) - 1), most) + 1 or most]
        written = super().write(data) or 0
        self._whole = data[written - 1 : written] == b"\n"
        return written

    def _room(self) -> float:
        return self._full - os.fstat(self.fileno()).st_size

    def _rotate(self) -> None:
        free = next((n for n, name in enumerate(self._names) if not os.path.lexists(name)), len(self._names) - 1)
        try:
            for number in range(free, 0, -1):
                os.rename(self._names[number - 1], self._names[number])  # noqa: PTH104
            self.reopen()
        except OSError as exc:
            logger.error("the log %r is not rotated: %s", self.path, exc.strerror)  # noqa: TRY400
            self._full = os.fstat(self.fileno()).st_size + self._size
        else:
            self._full = self._size


def _open(path: str, flags: int) -> int:
    """What is shown is not for everybody."""
    return os.open(path, flags | os.O_NONBLOCK | os.O_CLOEXEC, 0o640)
