"""The file to which all output of a share is appended."""

import logging
import os

import anyio

logger = logging.getLogger("asyncrevoke")

_PATIENCE = 5.0  # seconds for a pipe's reader; half of what a session waits for the recorder


class Log:
    """A log file. What it does not take is lost, counted and told; the next output is tried again.

    :param name: whose output it is, for messages
    :raises OSError: if it cannot be opened; a pipe that nobody reads is an error, and no reason to wait
    """

    def __init__(self, path: str, name: str) -> None:
        self._file = open(path, "ab", buffering=0, opener=_open)  # noqa: SIM115  # until `close`
        self._name = name
        self._lost = 0  # bytes, since it last took something

    async def write(self, data: bytes) -> None:
        """Append all of it. A pipe that is full is waited for, unless something is lost already."""
        try:
            with anyio.fail_after(0 if self._lost else _PATIENCE):
                while data := self.write_now(data):
                    await anyio.wait_writable(self._file)
        except OSError as exc:
            if not self._lost:
                why = exc.strerror or f"nothing was taken for {_PATIENCE:g} s"
                logger.error("output of %r is lost to the log %r: %s", self._name, self._file.name, why)  # noqa: TRY400
            self._lost += len(data)

    def write_now(self, data: bytes) -> bytes:
        """Append what is taken at once, and return the rest.

        :raises OSError: if it takes nothing more
        """
        rest = data[self._file.write(data) or 0 :]
        if not rest:
            self._tell_lost()
        return rest

    def miss(self, number: int) -> None:
        """So many bytes never came here."""
        self._lost += number

    def close(self) -> None:
        """Close it."""
        self._tell_lost()
        self._file.close()

    def _tell_lost(self) -> None:
        lost, self._lost = self._lost, 0
        if lost:
            logger.error("%d bytes of output of %r were lost to the log %r", lost, self._name, self._file.name)


def _open(path: str, flags: int) -> int:
    """What is shown is not for everybody."""
    return os.open(path, flags | os.O_NONBLOCK | os.O_CLOEXEC, 0o640)
