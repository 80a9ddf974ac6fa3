"""revoke(2) for asyncio: take a port, a terminal or a connection away from code that is still awaiting it."""

import importlib
from typing import TYPE_CHECKING, Any

from . import _program as _program

if TYPE_CHECKING:
    from . import answers as answers
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
    from .adapters.device import open_device as open_device
    from .adapters.hotplug import (
        follow_device as follow_device,
        serial_device as serial_device,
        watch_devices as watch_devices,
    )
    from .adapters.pty import (
        PtySession as PtySession,
        PtyStream as PtyStream,
        open_pty as open_pty,
        start_pty as start_pty,
    )
    from .adapters.serial import SerialDevice as SerialDevice, SerialStream as SerialStream, open_serial as open_serial
    from .adapters.tty import Tty as Tty
else:
    _NAMES = {
        "_core.errors": ("RevokeDeadlock", "RevokedError"),
        "_core.observe": ("Event", "log_events", "observe"),
        "_core.offloop": ("OffLoop", "in_loop", "off_loop"),
        "_core.revocation": ("Report", "Revocation", "User"),
        "_core.revokable": ("Revokable", "revoke_all", "revoke_threadsafe", "stop_using_threadsafe"),
        "_core.use": ("Use",),
        "_core.watch": ("Watch",),
        "_registry.key": ("Key",),
        "_registry.name": ("Name",),
        "_registry.place": ("Place", "places"),
        "_registry.registry": ("Registry",),
        "_streams.face": ("Face", "Owner", "RevokableAttribute", "answer", "handle_of"),
        "_streams.fd": ("FdStream",),
        "_streams.shared": ("Shared", "SharedStream"),
        "_streams.wrapped": ("RevokableStream",),
        "adapters.device": ("open_device",),
        "adapters.hotplug": ("follow_device", "serial_device", "watch_devices"),
        "adapters.pty": ("PtySession", "PtyStream", "open_pty", "start_pty"),
        "adapters.serial": ("SerialDevice", "SerialStream", "open_serial"),
        "adapters.tty": ("Tty",),
    }
    _HOMES = {name: module for module, names in _NAMES.items() for name in names}
    __all__ = sorted({*_HOMES, "answers"})  # noqa: PLE0605  # what is not there yet, too

    def __getattr__(name: str) -> Any:
        """Import a name when it is first used. From then on it is a plain attribute."""
        if name == "answers":
            return importlib.import_module(".answers", __name__)
        if name not in _HOMES:
            raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
        return globals().setdefault(name, getattr(importlib.import_module(f".{_HOMES[name]}", __name__), name))

    def __dir__() -> list[str]:
        return sorted({*globals(), *__all__})
