"""Bytes to and from a device."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Mapping
from typing import Any, ClassVar, Literal, TypeVar, Unpack

import anyio.lowlevel
from anyio.streams.file import FileStreamAttribute

from asyncrevoke.lowlevel import Fd, RevokedError, SharedOptions, SharedStream

from .device import Device

T = TypeVar("T")


class DeviceStream(SharedStream):
    """One stream on a `Device`.

    Besides those of every stream, its operations are requests to the driver, which answer by the profile's `ioctl`.
    Threads make them: cancelled or kicked, they end when the driver has answered.

    :ivar fd: how the descriptor is read
    :ivar subsystems: the kernel's subsystems that have such devices

    :raises RevokedError: from each, if the device was revoked or unplugged, before or meanwhile
    :raises ~anyio.ClosedResourceError: from each, if this stream was closed, before or meanwhile
    :raises OSError: from each, if the driver refuses it, or no thread can be started
    """

    fd: ClassVar[type[Fd]] = Fd
    subsystems: ClassVar[tuple[str, ...]] = ("usbmisc", "tty")

    def __init__(
        self, device: Device[Any], name: str = "", *, tty: bool = False, **options: Unpack[SharedOptions]
    ) -> None:
        super().__init__(device.shared, device.node, name, tty=tty, **options)
        self.device = device

    @property
    def extra_attributes(self) -> Mapping[Any, Callable[[], Any]]:
        return {**super().extra_attributes, FileStreamAttribute.fileno: self.device.fileno}

    async def request(self, call: Callable[[int], T]) -> T:
        """Ask the driver, in a thread: ``await stream.request(lambda fd: fcntl.ioctl(fd, HIDIOCGRDESCSIZE, bytes(4)))``

        :param call: called with the descriptor, which stays open until it returns
        """
        return await self.guarded(lambda: self.device.request(call))

    async def guarded(self, operation: Callable[[], Awaitable[T]], kind: Literal["write", "ioctl"] = "ioctl") -> T:
        """Await it as an operation of this stream.

        :param kind: the kind of answer once the stream is revoked
        """
        await anyio.lowlevel.checkpoint()
        try:
            with self.handle.using():
                return await operation()
        except RevokedError as error:
            self._answer(error, kind)
            raise

    async def _send_eof(self) -> None:
        raise NotImplementedError(f"{self.handle.path!r} is a device: it has no end of data but aclose()")

    def _answer(self, error: RevokedError, kind: Literal["read", "write", "ioctl"]) -> None:
        super()._answer(error, kind)
        raise self.device.revoked_error(error) from error.__cause__
