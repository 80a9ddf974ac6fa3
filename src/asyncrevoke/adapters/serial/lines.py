"""The modem lines of a port, and other requests to its driver when it opens."""

import contextlib
import errno
import os
import struct
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, fields
from typing import Any

from asyncrevoke.linux import fcntl, termios

_LOW_LATENCY, _FLAGS = 1 << 13, 16  # ASYNC_LOW_LATENCY, and the place of `flags` in include/uapi/linux/serial.h
_TIOCSBRK, _TIOCCBRK = 0x5427, 0x5428  # include/uapi/asm-generic/ioctls.h
_PARITY, _ODD, _STICK = termios.PARENB, termios.PARODD, 0o10000000000  # CMSPAR in include/uapi/asm-generic/termbits.h
#: The settings in c_cflag: the bits of each, and their values.
_IN_CFLAG: dict[str, tuple[int, dict[Any, int]]] = {
    "bytesize": (termios.CSIZE, {5: termios.CS5, 6: termios.CS6, 7: termios.CS7, 8: termios.CS8}),
    "parity": (
        _PARITY | _ODD | _STICK,
        {"N": 0, "E": _PARITY, "O": _PARITY | _ODD, "M": _PARITY | _ODD | _STICK, "S": _PARITY | _STICK},
    ),
    "stopbits": (termios.CSTOPB, {1: 0, 1.5: termios.CSTOPB, 2: termios.CSTOPB}),
    "rtscts": (termios.CRTSCTS, {False: 0, True: termios.CRTSCTS}),
}
_LACKING = (errno.ENOTTY, errno.EINVAL, errno.EOPNOTSUPP)


@dataclass(frozen=True, slots=True)
class ModemLines:
    """The state of the modem lines: those that the far end sets, and those that we set (ioctl_tty(2), TIOCMGET)."""

    cts: bool
    dsr: bool
    ri: bool
    cd: bool
    rts: bool
    dtr: bool


def modem_lines(fd: int) -> ModemLines:
    bits = integer(fd, termios.TIOCMGET)
    return ModemLines(**{line.name: bool(bits & _bit(line.name)) for line in fields(ModemLines)})


def set_modem_lines(fd: int, **lines: bool | None) -> None:
    """Set the lines that are given. Lines that get the same state change in one step: some boards see a reset in the
    steps between.
    """
    for request, state in (termios.TIOCMBIS, True), (termios.TIOCMBIC, False):
        bits = sum(_bit(name) for name, wish in lines.items() if wish is state)
        if bits:
            fcntl.ioctl(fd, request, struct.pack("I", bits))


def check_taken(fd: int, settings: Mapping[str, Any]) -> None:
    """Check that a driver uses its settings. A driver refuses some without a word.

    :raises OSError: EINVAL, if it does not. The rate is not checked, because many drivers have a slightly different one
    """
    for name, (mask, bits) in _IN_CFLAG.items():
        if name in settings and termios.tcgetattr(fd)[2] & mask != bits[settings[name]]:
            raise OSError(errno.EINVAL, os.strerror(errno.EINVAL))


def set_break(fd: int, *, state: bool) -> None:
    try:
        fcntl.ioctl(fd, _TIOCSBRK if state else _TIOCCBRK)
    except OSError as exc:
        if exc.errno not in (*_LACKING, errno.EPIPE):  # which a USB device says
            raise
        raise OSError(errno.EOPNOTSUPP, "it cannot send a break") from exc


def _bit(line: str) -> int:
    return int(getattr(termios, f"TIOCM_{line.upper()}"))


def integer(fd: int, request: int) -> int:
    """Return the driver's answer to a request for a number."""
    number: int
    (number,) = struct.unpack("I", fcntl.ioctl(fd, request, bytes(4)))
    return number


def drain(fd: int) -> None:
    if os.isatty(fd):  # else there is no driver, or it is hung up
        termios.tcdrain(fd)


def discard_input(fd: int) -> None:
    """Throw away data that has come to the descriptor."""
    try:
        termios.tcflush(fd, termios.TCIFLUSH)
    except termios.error as exc:
        if exc.args[0] != errno.ENOTTY:
            raise
        with contextlib.suppress(BlockingIOError):  # it is a connection
            os.read(fd, integer(fd, termios.FIONREAD))  # and no more, as a far end may go on for ever


@dataclass(frozen=True, slots=True)
class AtOpen:
    """The state of a port from its opening on, besides its line settings. None leaves it as it is."""

    dtr: bool | None
    rts: bool | None
    hangup_on_close: bool | None
    low_latency: bool

    def apply(self, fd: int) -> None:
        """Ask the driver for it.

        :raises OSError: EOPNOTSUPP, with the option not to give, if the driver has no such thing
        """
        with contextlib.suppress(OSError) if not (self.dtr or self.rts) else _needs("dtr and rts", "modem lines"):
            set_modem_lines(fd, dtr=self.dtr, rts=self.rts)  # a line that is not there is low
        if self.hangup_on_close is not None:
            with _needs("hangup_on_close", "terminal settings"):
                settings = termios.tcgetattr(fd)
                settings[2] = settings[2] & ~termios.HUPCL | self.hangup_on_close * termios.HUPCL
                termios.tcsetattr(fd, termios.TCSANOW, settings)
        if self.low_latency:
            with _needs("low_latency", "low latency"):
                serial = bytearray(128)
                fcntl.ioctl(fd, termios.TIOCGSERIAL, serial)
                (flags,) = struct.unpack_from("i", serial, _FLAGS)
                struct.pack_into("i", serial, _FLAGS, flags | _LOW_LATENCY)
                fcntl.ioctl(fd, termios.TIOCSSERIAL, serial)


@contextlib.contextmanager
def _needs(options: str, what: str) -> Iterator[None]:
    try:
        yield
    except (OSError, termios.error) as exc:
        if exc.args[0] not in _LACKING:
            raise
        raise OSError(errno.EOPNOTSUPP, f"its driver has no {what}: do not give {options}") from exc
