"""Whole messages of instruments on USB (USB-TMC).

Their driver's read(2) waits for an answer inside the kernel, whatever O_NONBLOCK says, and poll(2) waits for that to
end. So the transfers are made here, by the driver's other interface, where the kernel goes on meanwhile
(drivers/usb/class/usbtmc.c).
"""

from __future__ import annotations

import contextlib
import errno
import os
import struct
from array import array
from typing import Any

import anyio

from asyncrevoke.linux import fcntl
from asyncrevoke.lowlevel import Fd

from .messages import LENGTH, ReportStream

_HEADER = struct.Struct("<BBBxIB3x")  # of a transfer: its kind and its tag, the bytes of the message in it, attributes
_OUT, _IN = 1, 2  # kinds: a part of a message; a part that is asked for, or the answer
_END = 1  # the attribute of a message's last part
_PART = 4080  # bytes of a message that are sent in a transfer, of which the driver takes all or nothing
_MOST = 1 << 20  # bytes that are asked for at a time
_MESSAGE = struct.Struct("=IIIQ")  # struct usbtmc_message (include/uapi/linux/usb/tmc.h)
_ASYNC = 1
_WRITE, _READ = (3 << 30 | _MESSAGE.size << 16 | 91 << 8 | number for number in (13, 14))
_WRITE_RESULT, _CLEANUP_IO = 0xC0045B0F, 0x5B24
#: The errors of transfers after an unplug, until the driver knows of it (Documentation/driver-api/usb/error-codes.rst).
_LOST = (errno.ENOENT, errno.ECONNRESET, errno.EPROTO, errno.EILSEQ, errno.ETIME)


def _transfer(fd: int, request: int, data: array[int]) -> tuple[int, int]:
    """Begin or continue to read or write this. Return whether a transfer is over, and the bytes.

    :raises BlockingIOError: if nothing has come, or there is no room
    """
    address, size = data.buffer_info()
    message = bytearray(_MESSAGE.pack(size, 0, _ASYNC, address))
    return _ioctl(fd, request, message), _MESSAGE.unpack(message)[1]


def _ioctl(fd: int, request: int, argument: bytearray) -> int:
    try:
        over: int = fcntl.ioctl(fd, request, argument)
    except OSError as exc:
        if exc.errno not in _LOST:
            raise
        raise OSError(errno.ESHUTDOWN, f"a transfer has failed: {exc.strerror}") from exc
    return over


class _Transfers(Fd):
    """Each read is one message, after its length. The message is asked for first, and comes in one transfer or more.

    The end of a read ends all transfers of its open file, so what is sent has a file of its own.
    """

    def __init__(self, fd: int, *args: Any, **options: Any) -> None:
        self._out = os.open(f"/proc/self/fd/{fd}", os.O_RDWR)
        try:
            super().__init__(fd, *args, **options)
        except BaseException:
            os.close(self._out)
            raise
        self._tag = 0
        self._asked = 0  # the tag of what is asked for, and has not come
        self._buffer = array("B", bytes(65536))
        self._transfer = bytearray()
        self._message = bytearray()

    def read_now(self, max_bytes: int) -> bytes | None:  # noqa: ARG002  # a message is not cut
        try:
            while not self._came():
                pass
        except BlockingIOError:
            return None
        except OSError as exc:
            self._asked = 0
            self._transfer.clear()
            self._message.clear()
            raise anyio.BrokenResourceError(str(exc)) from exc
        message, self._message = self._message, bytearray()
        if self.heard is not None:
            self.heard()
        return len(message).to_bytes(LENGTH) + message

    def _came(self) -> bool:
        """Whether the last part of a message has come."""
        if not self._asked:
            _transfer(self.number, _WRITE, self._packed(_IN, _MOST, 0))
            self._asked = self._tag
        try:
            over, size = _transfer(self.number, _READ, self._buffer)
        except BlockingIOError:
            _ioctl(self.number, _WRITE_RESULT, bytearray(4))  # raises, if it was not asked after all
            raise
        self._transfer += self._buffer[:size].tobytes()
        if not over:
            return False
        part, self._transfer = self._transfer, bytearray()
        kind, tag, _, size, attributes = _HEADER.unpack_from(part.ljust(_HEADER.size, b"\0"))
        if (kind, tag) != (_IN, self._asked) or size > len(part) - _HEADER.size:
            raise OSError(errno.EBADMSG, "the answer that came is not the one asked for: ask again")
        self._asked = 0
        self._message += part[_HEADER.size : _HEADER.size + size]
        return bool(attributes & _END)

    async def send(self, message: bytes) -> None:
        for start in range(0, len(message) or 1, _PART):
            part = message[start : start + _PART]
            _transfer(self._out, _WRITE, self._packed(_OUT, len(part), _END * (start + _PART >= len(message)), part))
            await anyio.wait_writable(self._out)  # which it is again when the transfer is over
            _ioctl(self._out, _WRITE_RESULT, bytearray(4))

    def _packed(self, kind: int, size: int, attributes: int, part: bytes = b"") -> array[int]:
        self._tag = self._tag % 255 + 1
        return array("B", _HEADER.pack(kind, self._tag, self._tag ^ 255, size, attributes) + part)

    def close(self) -> Any:
        for fd in self.number, self._out:
            with contextlib.suppress(OSError):  # it is gone
                fcntl.ioctl(fd, _CLEANUP_IO)  # or the kernel waits a second for what is under way
        os.close(self._out)
        return super().close()


class InstrumentStream(ReportStream):
    """A stream of an instrument's messages, such as commands and answers of SCPI, as its driver usbtmc has them.

    Receiving asks for an answer, and waits for it as long as that takes. If you cancel it, the answer is still asked
    for, and the next receive gets it. An answer belongs to whoever asks, so there is no `fan_out`.
    """

    fd = _Transfers
    subsystems = ("usbmisc",)

    async def send(self, item: bytes) -> None:
        """Send a message, and wait until the instrument has taken it.

        :raises RevokedError, ~anyio.ClosedResourceError: as `receive`
        :raises OSError: if the instrument or its driver refuses it
        Cancellation: the message may have been sent, or its beginning.
        """
        device = self.bytes.device
        fd = device.line.fd
        assert isinstance(fd, _Transfers)

        async def send() -> None:
            async with device.shared.turn_to_write:
                await device.attempt(lambda: fd.send(item))

        await self.bytes.guarded(send, "write")
