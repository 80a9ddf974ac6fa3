"""revoke(2) for asyncio: take a port, a terminal or a connection away from code that is still awaiting it."""

import importlib
from typing import TYPE_CHECKING, Any

from . import _program as _program, answers as answers
from ._core.errors import RevokeDeadlock as RevokeDeadlock, RevokedError as RevokedError
from ._core.observe import Event as Event, log_events as log_events, observe as observe
from ._core.offloop import OffLoop as OffLoop, in_loop as in_loop, off_loop as off_loop
from ._core.revocation import Report as Report, Revocation as Revocation, User as User
from ._core.revokable import (
    Revokable as Revokable,
    revoke_all as revoke_all,
    revoke_threadsafe as revoke_threadsafe,
    stop_using_threadsafe as stop_using_threadsafe,
)
from ._core.use import Use as Use
from ._core.watch import Watch as Watch
from ._registry.key import Key as Key
from ._registry.name import Name as Name
from ._registry.place import Place as Place, places as places
from ._registry.registry import Registry as Registry
from ._streams.face import (
    Face as Face,
    Owner as Owner,
    RevokableAttribute as RevokableAttribute,
    answer as answer,
    handle_of as handle_of,
)
from ._streams.fd import FdStream as FdStream
from ._streams.shared import Shared as Shared, SharedStream as SharedStream
from ._streams.wrapped import RevokableStream as RevokableStream

if TYPE_CHECKING:
    from .adapters.hotplug import serial_device as serial_device, watch_devices as watch_devices
    from .adapters.pty import (
        PtySession as PtySession,
        PtyStream as PtyStream,
        open_pty as open_pty,
        start_pty as start_pty,
    )
    from .adapters.serial import SerialDevice as SerialDevice, SerialStream as SerialStream, open_serial as open_serial
    from .adapters.tty import Tty as Tty
else:
    _ADAPTERS = {
        "hotplug": ("serial_device", "watch_devices"),
        "pty": ("PtySession", "PtyStream", "open_pty", "start_pty"),
        "serial": ("SerialDevice", "SerialStream", "open_serial"),
        "tty": ("Tty",),
    }

    def __getattr__(name: str) -> Any:
        """An adapter is imported when it is first used."""
        adapter = next((adapter for adapter, names in _ADAPTERS.items() if name in names), None)
        if adapter is None:
            raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
        return getattr(importlib.import_module(f"asyncrevoke.adapters.{adapter}"), name)

    def __dir__() -> list[str]:
        return sorted({*globals(), *(name for names in _ADAPTERS.values() for name in names)})
