"""The log of a share: all of its output and, if asked for, when it came and what happened meanwhile."""

import errno
import functools
import io
import logging
import time
from datetime import UTC, datetime

import anyio

from .log_file import ends_within_a_line, is_regular, open_file, reopen
from .share import Share

logger = logging.getLogger("asyncrevoke")

_PATIENCE = 5.0  # seconds for a pipe's reader; half of what a session waits for the recorder
_UNREAD = 65536  # bytes of marks that wait for a pipe's reader


class Log:
    """A log of output, byte for byte. What it does not take is lost, counted and told; the next output is tried again.

    :param file: is closed with it
    :param name: whose output it is, for messages
    """

    def __init__(self, file: io.FileIO, name: str) -> None:
        self._file = file
        self._name = name
        self._lost = 0  # bytes, since it last took something

    async def write(self, data: bytes) -> None:
        """Append all of it. A pipe that is full is waited for, unless something is lost already."""
        try:
            with anyio.fail_after(0 if self._lost else _PATIENCE):
                while rest := Log.write_now(self, data):
                    if rest == data:
                        await anyio.wait_writable(self._file)
                    data = rest
        except OSError as exc:
            self._lose(data, exc)

    def write_now(self, data: bytes) -> bytes:
        """Append what is taken at once, and return the rest.

        :raises OSError: if it takes nothing more
        """
        rest = data[self._file.write(data) or 0 :]
        if not rest:
            self._tell_lost()
        return rest

    def mark(self, text: str) -> None:
        """Say what happens, if marks are asked for."""

    def miss(self, number: int) -> None:
        """So many bytes never came here."""
        self._lost += number

    def reopen(self) -> None:
        """Go on in the file that is at the path now, as another program has rotated the log. A pipe stays."""
        try:
            reopen(self._file)
        except OSError as exc:
            logger.error("the log %r is not opened anew: %s", self._file.name, exc.strerror)  # noqa: TRY400

    def close(self) -> None:
        """Close it."""
        self._tell_lost()
        self._file.close()

    def _lose(self, data: bytes, exc: OSError) -> None:
        if not self._lost:
            why = exc.strerror or f"nothing was taken for {_PATIENCE:g} s"
            logger.error("output of %r is lost to the log %r: %s", self._name, self._file.name, why)
        self._lost += len(data)

    def _tell_lost(self) -> None:
        lost, self._lost = self._lost, 0
        if lost:
            logger.error("%d bytes of output of %r were lost to the log %r", lost, self._name, self._file.name)


class MarkedLog(Log):
    """A log with the time before each line of output, or with marks on lines of their own, or both.

    :param times: whether a line begins with its time. A line that comes in parts has that of its first one
    :param marks: whether marks are written; they end a line that has no end yet
    """

    def __init__(self, file: io.FileIO, name: str, *, times: bool, marks: bool) -> None:
        super().__init__(file, name)
        self._times = times
        self._marks = marks
        self._begun = False  # a line has begun, and may go on
        self._cut = ends_within_a_line(file)  # a line has begun, and will not go on
        self._queue = b""  # what is to be written
        self._waits = not is_regular(file)
        self._writing = False

    async def write(self, data: bytes) -> None:
        self._queue += self._lines(data)
        self._writing = True  # marks wait
        try:
            while self._queue:
                queue, self._queue = self._queue, b""
                await super().write(queue)
        finally:
            self._writing = False

    def write_now(self, data: bytes) -> bytes:
        if self._writing or self._waits:
            return data
        self._queue += self._lines(data)
        self._flush()
        return b""

    def mark(self, text: str) -> None:
        if self._marks:
            self._queue += b"%b[%b -- %b]\n" % (b"\n" * (self._begun or self._cut), _now(), text.encode())
            self._begun = self._cut = False
            if not self._writing:
                self._flush()

    def close(self) -> None:
        self._flush()
        self.miss(len(self._queue))
        super().close()

    def _flush(self) -> None:
        """Write what can be written without waiting; a pipe may leave some."""
        try:
            while (queue := self._queue) and (rest := Log.write_now(self, queue)) != queue:
                self._queue = rest
            if len(self._queue) > _UNREAD:
                raise BlockingIOError(errno.EAGAIN, "nobody reads it")
        except OSError as exc:
            queue, self._queue = self._queue, b""
            self._lose(queue, exc)

    def _lose(self, data: bytes, exc: OSError) -> None:
        super()._lose(data, exc)
        self._cut = True  # perhaps in the middle of a line

    def _lines(self, data: bytes) -> bytes:
        """Output as it is to be written."""
        if not data:
            return data
        begun, cut = self._begun, self._cut
        self._begun, self._cut = not data.endswith(b"\n"), False
        if not self._times:
            return data
        time = _now() + b" "
        lines = data.replace(b"\n", b"\n" + time)
        if cut or not begun:
            lines = b"\n" * cut + time + lines
        return lines if self._begun else lines[: -len(time)]


def log_of(share: Share) -> Log | None:
    """Open the log of a share, if it has one.

    :raises OSError: if its file cannot be opened
    """
    if not share.log:
        return None
    file = open_file(share.log, share.log_bytes, share.log_keep)
    if share.log_times or share.log_marks:
        return MarkedLog(file, share.name, times=share.log_times, marks=share.log_marks)
    return Log(file, share.name)


def _now() -> bytes:
    return _iso(int(time.time()))


@functools.lru_cache(maxsize=1)  # many lines come in a second
def _iso(seconds: int) -> bytes:
    return datetime.fromtimestamp(seconds, UTC).astimezone().isoformat().encode()
