"""A serial port to test with: the slave of a pty, whose master is the far end of the line."""

from __future__ import annotations

import contextlib
import fcntl
import os
import select
import tty
from collections.abc import Iterator

TIOCVHANGUP = 0x5437


class FarEnd:
    """The other end of the line, and the plug.

    :ivar path: of the port
    """

    def __init__(self) -> None:
        self._master, self._slave = os.openpty()
        tty.setraw(self._slave)
        os.set_blocking(self._master, False)
        self.path = os.ttyname(self._slave)

    def send(self, data: bytes) -> None:
        assert os.write(self._master, data) == len(data)

    def received(self, patience: float = 0.0) -> bytes:
        """What has been sent here so far, waiting for the first of it that many seconds."""
        data = b""
        ready = select.select([self._master], [], [], patience)[0]
        with contextlib.suppress(BlockingIOError):
            while ready:
                data += os.read(self._master, 65536)
        return data

    def hang_up(self) -> None:
        """What the kernel does on an unplug: TIOCVHANGUP, which only root may. The far end notices nothing."""
        fcntl.ioctl(self._slave, TIOCVHANGUP)

    def close(self) -> None:
        """The master goes, which anybody may: nearly an unplug, and the path is gone, too."""
        for fd in self._master, self._slave:
            with contextlib.suppress(OSError):
                os.close(fd)


@contextlib.contextmanager
def serial_line() -> Iterator[FarEnd]:
    end = FarEnd()
    try:
        yield end
    finally:
        end.close()


def may_hang_up() -> bool:
    """Whether this process may use TIOCVHANGUP."""
    with serial_line() as end:
        try:
            end.hang_up()
        except PermissionError:
            return False
    return True
