"""Whole messages to and from a device."""

from __future__ import annotations

import errno
import os
import struct
from abc import abstractmethod
from collections.abc import Callable, Iterable, Mapping
from types import EllipsisType
from typing import Any, ClassVar, NamedTuple, TypeVar

import anyio
import anyio.abc

from asyncrevoke.answers import Answers
from asyncrevoke.lowlevel import Fd, Handled, Revokable

from .device import Device
from .stream import DeviceStream

M = TypeVar("M")
T = TypeVar("T")
LENGTH = 4  # bytes, before each report on the way from the descriptor to the streams
_MOST = 65536  # bytes of a report; the kernel's longest have a quarter of that (HID_MAX_BUFFER_SIZE)


class MessageStream(Handled, anyio.abc.ObjectStream[M]):
    """One stream of whole messages on a `Device`.

    Each operation is a checkpoint, as on all our streams. There is one receiver at a time.

    :ivar handle: the node that is revoked
    :ivar fd: how the descriptor is read
    :ivar subsystems: the kernel's subsystems that have such devices
    """

    fd: ClassVar[type[Fd]] = Fd
    subsystems: ClassVar[tuple[str, ...]]

    def __init__(
        self,
        device: Device[Any],
        name: str = "",
        *,
        also: Iterable[Revokable] = (),
        answers: Answers | EllipsisType = ...,
    ) -> None:
        self.bytes = DeviceStream(device, name, also=also, answers=answers)
        self.handle = self.bytes.handle

    @abstractmethod
    async def receive(self) -> M:
        """Receive the next message.

        :raises RevokedError: if the device was revoked or unplugged, before or meanwhile
        :raises ~anyio.EndOfStream: as the answer of a profile
        :raises ~anyio.ClosedResourceError: if this stream was closed, before or meanwhile
        :raises ~anyio.BusyResourceError: if another task is receiving
        :raises OSError: if the driver refuses it; EMSGSIZE, if the message is too long to be received whole
        Cancellation: nothing was consumed.
        """

    @abstractmethod
    def packed(self, item: M) -> bytes:
        """The bytes to write for a message."""

    async def send(self, item: M) -> None:
        """Give the driver a message, in one write. A thread writes it, because drivers may wait for the device.

        :raises RevokedError, ~anyio.ClosedResourceError: as `receive`
        :raises OSError: if the driver refuses it; EMSGSIZE, if it has taken a part
        Cancellation: waits until the driver has answered. The message may have been sent.
        """
        data = self.packed(item)
        device = self.bytes.device

        def write(fd: int) -> int | None:
            try:
                return os.write(fd, data)
            except BlockingIOError:
                return None

        async def send() -> None:
            async with device.shared.turn_to_write:
                while (sent := await device.request(write)) is None:
                    await device.line.fd.writable.ready()
            if sent != len(data):
                raise OSError(errno.EMSGSIZE, f"its driver took {sent} bytes of a message of {len(data)}", device.name)

        await self.bytes.guarded(send, "write")

    async def send_eof(self) -> None:
        """Refuse: messages have no end but `aclose`.

        :raises NotImplementedError: always
        """
        await self.bytes.send_eof()

    async def request(self, call: Callable[[int], T]) -> T:
        """As `DeviceStream.request`."""
        return await self.bytes.request(call)

    def limit_idle(self, seconds: float) -> None:
        """As `Face.limit_idle`."""
        self.bytes.limit_idle(seconds)

    @property
    def extra_attributes(self) -> Mapping[Any, Callable[[], Any]]:
        return self.bytes.extra_attributes


class _Reports(Fd):
    """Each read is one report, after its length."""

    def read_now(self, max_bytes: int) -> bytes | None:  # noqa: ARG002  # a report is not cut
        data = super().read_now(_MOST)
        if data is None:
            return None
        if len(data) == _MOST:  # the kernel may have cut it
            long = OSError(errno.EMSGSIZE, f"a message has {_MOST} bytes or more, and was cut")
            raise anyio.BrokenResourceError(str(long)) from long
        return len(data).to_bytes(LENGTH) + data


def _end_of_report(ahead: bytearray) -> int:
    end = LENGTH + int.from_bytes(ahead[:LENGTH])
    return end if len(ahead) >= end else -1


class ReportStream(MessageStream[bytes]):
    """A stream of reports, as hidraw has them: each read of the descriptor gives one, and each write takes one.

    A received report begins with its number, if the device numbers its reports. A report to send always begins with its
    number, or 0 (Documentation/hid/hidraw.rst).
    """

    fd: ClassVar[type[Fd]] = _Reports
    subsystems = ("hidraw",)

    async def receive(self) -> bytes:
        try:
            return (await self.bytes.receive_record(_end_of_report))[LENGTH:]
        except anyio.IncompleteRead:
            raise anyio.EndOfStream from None

    def packed(self, item: bytes) -> bytes:
        return item


class InputEvent(NamedTuple):
    """An event of an input device: the kernel's `struct input_event` (include/uapi/linux/input.h)."""

    sec: int
    usec: int
    type: int
    code: int
    value: int


_EVENT = struct.Struct("@LLHHi")


class EventStream(MessageStream[InputEvent]):
    """A stream of input events, as evdev has them. An event of type EV_SYN and code SYN_DROPPED says that the kernel
    has thrown some away. Then ask for the state (Documentation/input/event-codes.rst).
    """

    subsystems = ("input",)

    async def receive(self) -> InputEvent:
        return InputEvent(*_EVENT.unpack(await self.bytes.receive(_EVENT.size)))  # the kernel gives whole ones

    def packed(self, item: InputEvent) -> bytes:
        return _EVENT.pack(*item)
