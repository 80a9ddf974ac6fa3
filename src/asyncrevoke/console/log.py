"""The log of a share: all its output. On request, also the time of each line, and marks that say what happened."""

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

_PATIENCE = 5.0  # seconds to wait for the reader of a pipe: half of what a session waits for the recorder
_UNREAD = 65536  # bytes of marks that may wait for the reader of a pipe


class Log:
    """A log of output, byte for byte.

    Output that the file does not take is lost. Lost bytes are counted and reported, and the next output is tried again.

    :param file: the file, which is closed with the log
    :param name: name of the share, for messages
    """

    def __init__(self, file: io.FileIO, name: str) -> None:
        self._file = file
        self._name = name
        self._lost = 0  # bytes, since the file last took some

    async def write(self, data: bytes) -> None:
        """Append all data. Wait 5 seconds at most for the reader of a full pipe, or not at all if the output before was lost."""
        try:
            with anyio.fail_after(0 if self._lost else _PATIENCE):
                while rest := Log.write_now(self, data):
                    if rest == data:
                        await anyio.wait_writable(self._file)
                    data = rest
        except OSError as exc:
            self._lose(data, exc)

    def write_now(self, data: bytes) -> bytes:
        """Append what the file takes without waiting, and return the rest.

        :raises OSError: if the file cannot be written, such as on a full disk
        """
        rest = data[self._file.write(data) or 0 :]
        if not rest:
            self._tell_lost()
        return rest

    def mark(self, text: str) -> None:
        """Write a mark that says what happened, if this log has marks."""

    def miss(self, number: int) -> None:
        """Count bytes of output that never came here as lost."""
        self._lost += number

    def reopen(self) -> None:
        """Go on in the file that is at the path now, since another program has rotated the log. A pipe stays."""
        try:
            reopen(self._file)
        except OSError as exc:
            logger.error(  # noqa: TRY400
                "the log %r cannot be opened again: %s. Output still goes to the old file",
                self._file.name,
                exc.strerror,
            )

    def close(self) -> None:
        """Close it."""
        self._tell_lost()
        self._file.close()

    def _lose(self, data: bytes, exc: OSError) -> None:
        if not self._lost:
            why = exc.strerror or f"nothing was read from it for {_PATIENCE:g} s"
            logger.error("output of %r is missing from the log %r: %s", self._name, self._file.name, why)
        self._lost += len(data)

    def _tell_lost(self) -> None:
        lost, self._lost = self._lost, 0
        if lost:
            logger.error("%d bytes of output of %r are missing from the log %r", lost, self._name, self._file.name)


class MarkedLog(Log):
    """A log with the time before each line of output, or with marks on lines of their own, or both.

    :param times: whether each line begins with the time at which its first part came
    :param marks: whether marks are written. A mark ends a line of output that is not complete
    """

    def __init__(self, file: io.FileIO, name: str, *, times: bool, marks: bool) -> None:
        super().__init__(file, name)
        self._times = times
        self._marks = marks
        self._begun = False  # the last line is not complete, and may go on
        self._cut = ends_within_a_line(file)  # the last line is not complete, and will not go on
        self._queue = b""  # bytes to write
        self._waits = not is_regular(file)
        self._writing = False

    async def write(self, data: bytes) -> None:
        self._queue += self._lines(data)
        self._writing = True  # marks wait in the queue
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
        """Write what can be written without waiting. Of a pipe, some may be left."""
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
        """Return output as the log has it: with the times, if there are any."""
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
