"""The serial port of a share. It is open whenever it is there and not lent to another program. It can be changed meanwhile."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Iterable, Mapping
from dataclasses import asdict
from typing import TYPE_CHECKING, Any, Self, TypeVar

import anyio

from asyncrevoke.adapters.hotplug import serial_device
from asyncrevoke.adapters.serial import SerialDevice, SerialStream
from asyncrevoke.adapters.serial.lines import check_taken
from asyncrevoke.control.lines import ControlError
from asyncrevoke.control.request import Request
from asyncrevoke.linux import termios
from asyncrevoke.lowlevel import Registry, Revokable, RevokedError

from .settings import Settings
from .share import Share

if TYPE_CHECKING:
    from .console import Console

T = TypeVar("T")
CHANGES = frozenset(("settings", "lines", "break", "down", "up"))  # fields of a request that change something
_SOON = 2.0  # seconds to wait until it is open again, if it is there
_DIFFERS = "the driver has other settings than these"
_LENT = "lent to another program"


class SharedPort:
    """A serial port, generation after generation: ``async for device in port: ...``

    :param changed: called when the port is lent
    :ivar node: the name, which has the generations
    :ivar device: the latest generation
    :ivar settings: settings that it has now, and gets at each opening
    :ivar lent: why it is away, from the time it is lent to another program until it is open again. Empty at other times
    """

    def __init__(self, share: Share, registry: Registry, changed: Callable[[], None]) -> None:
        self.settings = share.settings
        self.lent = ""
        self._changed = changed
        self._devices = serial_device(
            share.device,
            registry=registry,
            name=share.name,
            fan_out=True,
            history=share.history,
            dtr=share.dtr,
            rts=share.rts,
            **share.settings.options(),
        )
        self.node = self._devices.node
        self.device: SerialDevice | None = None

    def __aiter__(self) -> Self:
        return self

    async def __anext__(self) -> SerialDevice:
        """Wait until it is open, and return the device."""
        self.device = await anext(self._devices)
        self.lent = ""
        return self.device

    async def lend(self, reason: str) -> None:
        """Close the port, and keep it closed, so that another program may open it. When this returns, it is closed.

        :raises ControlError: "refused", if it does not close because its line is stalled. It is not opened again either
        """
        self.lent = reason
        closing = self._devices.down(reason)
        self._changed()
        try:
            await closing
        except BaseExceptionGroup as group:
            raise ControlError("refused", str(group.exceptions[0])) from None

    def bring_back(self) -> None:
        """End the loan: open the port again as soon as it is there."""
        if self.is_down:
            self.lent = "it is not back yet"
            self._devices.up()

    async def configure(self, settings: Settings, also: Iterable[Revokable] = ()) -> None:
        """Change the settings, now and for later openings.

        :param also: if one of these is revoked meanwhile, so is the change
        :raises ControlError: "refused", if the driver refuses them. Then none is changed
        """
        if self.is_open:
            await self.ask(lambda stream: stream.configure(**settings.options()), also)
        self.settings = settings
        self._devices.options.update(settings.options())

    @property
    def is_down(self) -> bool:
        """Whether it is lent to another program."""
        return self._devices.is_down

    @property
    def problem(self) -> str:
        """Why it is not open although it is there. Empty: it is open, or not there."""
        return self._devices.problem

    @property
    def is_open(self) -> bool:
        return self.device is not None and not self.device.node.revoked

    @property
    def differs(self) -> bool:
        """Whether the driver has other settings. It has not taken all of them, or another program has changed them."""
        try:
            if self.device is not None:
                check_taken(self.device.fileno(), self.settings.options())
        except termios.error:  # it is a connection, which has no driver
            return False
        except OSError:
            return True
        return False

    async def ask(self, act: Callable[[SerialStream], Awaitable[T]], also: Iterable[Revokable] = ()) -> T:
        """Have the driver do something, as one operation.

        :param also: if one of these is revoked, so is the operation
        :raises ControlError: "refused", if the driver cannot do it, or the port is away
        """
        if self.device is None:
            raise ControlError("refused", f"{self.node.name!r} has not come yet")
        try:
            async with self.device.open("port", also=also) as stream:
                self.device.shared.leave(stream)  # it gets no copy of the output, since it receives nothing
                return await act(stream)
        except (RevokedError, anyio.ClosedResourceError) as exc:
            raise ControlError("refused", str(exc)) from None  # the server logs an error with a cause as its own fault
        except OSError as exc:
            raise ControlError("refused", f"{self.node.name!r}: {exc.strerror}") from None


async def obey(console: Console, request: Request, who: str, also: Iterable[Revokable] = ()) -> Mapping[str, Any]:
    """Do what a request wants of the port of a share. Return the state of the port after that.

    :param who: the user or client that asks, for the log
    :param also: if one of these is revoked, so is what is being done
    :raises ControlError: "refused", if it cannot be done. "bad-request", if the request has a fault
    """
    port = console.port
    if port is None:
        raise ControlError(
            "refused", f"{console.share.name!r} is not a serial device: it has no settings, lines or breaks"
        )
    wishes = request.fields
    if "settings" in wishes:
        await port.configure(_settings(port.settings, wishes["settings"]), also)
        console.note(f"{who} has set it to {port.settings}")
    if "lines" in wishes:
        lines = _lines(wishes["lines"])
        await port.ask(lambda stream: stream.set_modem_lines(**lines), also)
        console.note(f"{who} has set " + ", ".join(f"{line} {'on' if on else 'off'}" for line, on in lines.items()))
    if "break" in wishes:
        seconds = request.number("break", 0.0, 10.0)
        console.note(f"{who} sends a break of {seconds:g} s")
        await port.ask(lambda stream: stream.send_break(seconds), also)
    if "down" in wishes:
        reason = request.text("down") or _LENT
        console.note(f"{who} takes it down: {reason}")
        await port.lend(reason)
    if request.flag("up"):
        console.note(f"{who} brings it up")
        port.bring_back()
        with anyio.move_on_after(_SOON):
            while port.lent and not console.ended:
                await console.changed.wait()
    return await _state(console, port)


async def _state(console: Console, port: SharedPort) -> Mapping[str, Any]:
    lines = None
    if port.is_open:
        try:
            found = await port.ask(lambda stream: stream.modem_lines())
            theirs = {"cts": found.cts, "dsr": found.dsr, "dcd": found.cd, "ri": found.ri}
            lines = {**theirs, "dtr": found.dtr, "rts": found.rts}
        except ControlError:  # the port has no lines, as over a socket
            pass
    away = console.away
    return {
        "name": console.share.name,
        "device": console.share.device,
        "path": port.device.url if away is None and port.device is not None else None,
        "settings": asdict(port.settings),
        "lines": lines,
        "state": "live" if away is None else "away",
        "reason": away or _DIFFERS * port.differs,
        "down": port.is_down,
    }


def _settings(now: Settings, given: object) -> Settings:
    try:
        return now.changed(given if isinstance(given, Mapping) else {"settings": given})
    except ValueError as exc:
        raise ControlError("bad-request", str(exc)) from None


def _lines(given: object) -> dict[str, bool]:
    if (
        isinstance(given, dict)
        and given
        and given.keys() <= {"dtr", "rts"}
        and all(type(each) is bool for each in given.values())
    ):
        return given
    raise ControlError("bad-request", "'lines' must have 'dtr' or 'rts' or both, each true or false")
