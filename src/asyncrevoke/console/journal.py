"""Logs to standard error. The journal may be its reader."""

import contextlib
import logging
import os
from collections.abc import Iterator

from asyncrevoke.lowlevel import printable

_PRIORITIES = {logging.CRITICAL: 2, logging.ERROR: 3, logging.WARNING: 4, logging.INFO: 6, logging.DEBUG: 7}


@contextlib.contextmanager
def logging_to_stderr() -> Iterator[None]:
    """Log to standard error until the exit."""
    logger, handler = logging.getLogger("asyncrevoke"), logging.StreamHandler()
    handler.setFormatter(_Lines())
    # The share logs who takes a client off. The control server need not log it again.
    handler.addFilter(lambda record: record.name != "asyncrevoke.control" or record.levelno > logging.INFO)
    level = logger.level
    logger.addHandler(handler)
    logger.setLevel(logging.INFO)
    try:
        yield
    finally:
        logger.removeHandler(handler)
        logger.setLevel(level)


class _Lines(logging.Formatter):
    """Formats a message and its traceback. Each line has the prefix. A line break in a name does not begin a line."""

    def formatMessage(self, record: logging.LogRecord) -> str:  # noqa: N802  # as logging has it
        return printable(super().formatMessage(record))

    def format(self, record: logging.LogRecord) -> str:
        begin = prefix(record.levelno)
        return "\n".join(begin + printable(line) for line in super().format(record).split("\n"))


def prefix(level: int) -> str:
    """Return the prefix of a line: the name of this program. For the journal, it is the priority (sd-daemon(3))."""
    with contextlib.suppress(OSError):
        stderr = os.fstat(2)
        if os.environ.get("JOURNAL_STREAM") == f"{stderr.st_dev}:{stderr.st_ino}":
            return f"<{_PRIORITIES.get(level, 5)}>"
    return "asyncrevoke: "
