"""Terminals and serial ports to test with: ptys, whose masters are the far ends of the lines; and who may do what."""

import contextlib
import fcntl
import os
import pathlib
import pty
import select
import subprocess
import sys
import tty
from collections.abc import Iterator
from typing import Any

import pytest

from asyncrevoke.adapters.hotplug import SerialDevices, serial_device

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


as_root = pytest.mark.skipif(os.geteuid() != 0, reason="only root can become somebody else")


privileged = pytest.mark.skipif(
    not may_hang_up(), reason="TIOCVHANGUP needs CAP_SYS_ADMIN: no terminal is hung up here"
)


def waits_on(task: str, fd: int) -> bool:
    """Whether that task of /proc is asleep in a system call on `fd`; one that waits for a lock has an address there."""
    try:
        return pathlib.Path(f"/proc/{task}/syscall").read_text().split()[1:2] == [hex(fd)]
    except OSError:  # ended
        return False


@contextlib.contextmanager
def terminal() -> Iterator[tuple[int, int]]:
    """Master and slave, raw; each is closed in the end if it is still what it was."""
    master, slave = pty.openpty()
    tty.setraw(slave)
    was = {number: os.fstat(number)[:3] for number in (master, slave)}
    try:
        yield master, slave
    finally:
        for number, identity in was.items():
            with contextlib.suppress(OSError):
                if os.fstat(number)[:3] == identity:
                    os.close(number)


READER = """
import os, signal, sys
for number in signal.SIGHUP, signal.SIGCONT:
    signal.signal(number, lambda number, _: os.write(1, f"{signal.Signals(number).name}\\n".encode()))
print(os.open(sys.argv[1], os.O_RDWR | int(sys.argv[2])), flush=True)
try:
    print(os.read(3, 100), flush=True)
except OSError as exc:
    print(exc.errno, flush=True)
"""


@contextlib.contextmanager
def reader(path: str, *, leader: bool = False) -> Iterator[subprocess.Popen[str]]:
    """Another process, asleep in a read of the terminal; a session leader has it as its controlling terminal."""
    command = [sys.executable, "-ISc", READER, path, str(0 if leader else os.O_NOCTTY)]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True, start_new_session=True) as child:
        assert child.stdout
        try:
            assert child.stdout.readline() == "3\n"
            while not waits_on(str(child.pid), 3):
                os.sched_yield()
            yield child
        finally:
            child.kill()


class Plug:
    """Where a device is plugged in: a link in a directory of by-id names, which leads to another pty each time."""

    def __init__(self, link: pathlib.Path) -> None:
        self.link = link
        self.end: FarEnd | None = None
        self.lines = contextlib.ExitStack()

    def plug_in(self) -> FarEnd:
        self.end = self.lines.enter_context(serial_line())
        new = self.link.with_name("new")
        new.symlink_to(self.end.path)
        new.rename(self.link)
        return self.end

    def unplug(self) -> None:
        assert self.end is not None
        self.link.unlink()
        self.end.close()

    def close(self) -> None:
        self.lines.close()

    def device(self, **options: Any) -> SerialDevices:
        """It is looked for all the time, unless the options say otherwise."""
        return serial_device(self.link.name, **{"debounce": 0.001, "max_delay": 0.01, **options})
