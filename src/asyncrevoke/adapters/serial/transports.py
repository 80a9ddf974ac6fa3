"""Serial ports behind the transports of pyserial-asyncio and of serialx. The faults of these are worked around here."""

from __future__ import annotations

import asyncio
import errno
import functools
import math
import os
from collections.abc import Callable, Mapping
from typing import Any

import anyio

from asyncrevoke.lowlevel import Deadline, Fd, OffLoop, Revokable, close_off_loop, off_loop

from .lines import AtOpen
from .port import Driven, Port, configure, configure_pyserial, imported, open_pyserial, serialx_words, why_over

_BACKLOG = 65536  # bytes of a transport's that nobody has read, before it is stopped


async def open_pyserial_asyncio(url: str, node: Revokable, settings: dict[str, Any], at_open: AtOpen) -> Port:
    """A transport of pyserial-asyncio."""
    serial_asyncio = imported("serial_asyncio", "serial")
    loop = _asyncio_loop("pyserial-asyncio")
    serial = await open_pyserial(url, node, settings, at_open)
    close = serial.close
    # Its transport does both in the loop, even when it aborts: as long as a stalled line is stalled.
    serial.flush = serial.close = lambda: None
    serial.is_open = False  # else it asks for the timeouts that it has, and all settings are made anew, in the loop
    port = _TransportPort(loop)
    transport, _ = await serial_asyncio.connection_for_serial(loop, lambda: port, serial)
    serial.is_open = True
    port.connection_made(transport)
    return port.opened(serial.fileno(), functools.partial(configure_pyserial, serial), close)


async def open_serialx(url: str, node: Revokable, settings: dict[str, Any], at_open: AtOpen) -> Port:
    """A transport of serialx, which opens in a thread itself."""
    serialx = imported("serialx", "serialx")
    loop = _asyncio_loop("serialx")
    settings = serialx_words(settings)
    if at_open.hangup_on_close is False:  # or each change of the rate would undo it
        settings |= dict.fromkeys(("dtr_on_close", "rts_on_close"), serialx.PinState.UNDEFINED)
    port = _TransportPort(loop)
    try:
        transport, _ = await serialx.create_serial_connection(loop, lambda: port, url, **settings)
    except RuntimeError as exc:  # its pool can start no thread
        raise OSError(errno.ENOMEM, str(exc)) from exc
    except serialx.SerialException as exc:
        raise ValueError(str(exc)) from exc
    try:
        serial = transport.serial
        close = _keep_open(transport, port, serial.fileno())
        node.release = functools.partial(close_off_loop, close)
        await off_loop(functools.partial(at_open.apply, serial.fileno()), patience=math.inf)
    except BaseException:
        transport.abort()  # first: a descriptor that is closed while uvloop waits for it ends the process
        raise

    def change(settings: Mapping[str, Any]) -> None:
        configure(serial, settings, serialx_words(settings), lambda words: serial.reconfigure_port(**words))

    return port.opened(serial.fileno(), change, close)


def _keep_open(transport: Any, port: _TransportPort, fd: int) -> Callable[[], None]:
    """Make a transport of serialx leave its descriptor to us, whenever it is lost. Return the function that closes
    it.
    """
    for name in "_fileno", "_call_connection_lost", "_fatal_error", "_read_ready":
        if not hasattr(transport, name):
            raise ImportError(
                f"this version of serialx is not supported, because it has no {name}: use another backend"
            )

    async def lost(exc: BaseException | None) -> None:
        port.connection_lost(exc)

    def close() -> None:
        transport._fileno = None
        os.close(fd)

    transport._call_connection_lost = lost  # its own closes in a pool, whose threads a loop that ends would wait for
    return close


def _asyncio_loop(backend: str) -> asyncio.AbstractEventLoop:
    try:
        return asyncio.get_running_loop()
    except RuntimeError as exc:
        raise RuntimeError(f"the transports of {backend} need asyncio: use the backend 'descriptor'") from exc


class _TransportPort(Driven, asyncio.Protocol):
    """The port behind an asyncio transport. It stores no exception and shares no future, either of which could be
    poisoned.
    """

    fd: Fd | None = None
    deadline: Deadline | None = None

    def __init__(self, loop: asyncio.AbstractEventLoop) -> None:
        self._loop = loop
        self._transport: Any = None
        self._reader = anyio.ResourceGuard("reading from")
        self._unread = bytearray()
        self._reading = True
        self._writing = True  # the transport's buffer is empty
        self._lost = False
        self._why: BaseException | None = None
        self._changed = anyio.Event()

    def opened(
        self, fd: int, change: Callable[[Mapping[str, Any]], object], close: Callable[[], object]
    ) -> _TransportPort:
        """Note what is known when the transport is open. `fd` stays open until `close` is called."""
        self._fd = fd
        self._change_settings = change
        self._close = close
        self._transport._read_ready = self._read_ready
        try:
            self._transport.pause_reading()
            self._transport.resume_reading()  # which has the loop call ours
        except BaseException:
            self._transport.abort()
            raise
        return self

    # -- the transport tells --

    def connection_made(self, transport: Any) -> None:
        transport.set_write_buffer_limits(0)
        transport._fatal_error = self._failed
        self._transport = transport
        self.serial = transport.serial
        self._change()

    def data_received(self, data: bytes) -> None:
        self._unread += data
        if self.deadline is not None:
            self.deadline.put_off()
        if self._reading and len(self._unread) > _BACKLOG:
            self._reading = False
            self._transport.pause_reading()
        self._change()

    def pause_writing(self) -> None:
        self._writing = False

    def resume_writing(self) -> None:
        self._writing = True
        self._change()

    def connection_lost(self, exc: BaseException | None) -> None:
        self._lost = True
        self._why = self._why or exc
        self._change()

    def _read_ready(self) -> None:
        """Replaces a transport's own method, which takes it for an unplug if there is nothing to read."""
        try:
            os.set_blocking(self._fd, False)
            data = os.read(self._fd, _BACKLOG)
        except BlockingIOError:
            return
        except OSError as exc:
            self._failed(exc)
            return
        if data:
            self.data_received(data)
        elif not os.isatty(self._fd):  # a terminal that is hung up is none
            self._failed(None)

    def _failed(self, exc: BaseException | None, _: str = "") -> None:
        """Replaces a transport's own method, which also calls the loop's error handler: an unplug is no case for
        that.
        """
        self._why = exc
        if not self._transport.is_closing():
            self._transport.abort()

    def _change(self) -> None:
        changed, self._changed = self._changed, anyio.Event()
        changed.set()

    # -- the port is asked --

    def fileno(self) -> int:
        return self._fd

    async def receive(self, max_bytes: int) -> bytes:
        with self._reader:
            while not self._unread:
                self._check()
                if not self._reading:
                    self._reading = True
                    self._transport.resume_reading()
                changed = self._changed
                self._read_ready()  # uvloop gives up a descriptor that has an error, and tells nobody
                await changed.wait()
        data = bytes(self._unread[:max_bytes])
        del self._unread[:max_bytes]
        return data

    async def send_some(self, item: memoryview) -> int:
        await self._sent()  # what somebody sent who was cancelled: else its buffer has no bound
        try:
            os.set_blocking(self._fd, False)
            self._transport.write(bytes(item))
        except OSError as exc:
            raise anyio.BrokenResourceError(str(exc)) from exc
        await self._sent()
        return len(item)

    async def _sent(self) -> None:
        self._check()
        while not self._writing or self._transport.is_closing():  # then it is lost, which we have not been told yet
            await self._changed.wait()
            self._check()

    def _check(self) -> None:
        if self._lost:
            raise anyio.BrokenResourceError(f"{self._why or 'closed'}") from self._why

    def why_over(self) -> object:
        unread = bool(self._unread)
        return (not unread and self._why) or why_over(self._fd, unread=unread)

    async def discard(self) -> None:
        await super().discard()
        self._unread.clear()

    async def configure(self, settings: Mapping[str, Any]) -> None:
        await off_loop(lambda: self._change_settings(settings), patience=math.inf)

    def close(self) -> OffLoop[object] | None:
        self._fd = -1
        lost = self._transport.is_closing() and not self._transport.get_write_buffer_size()  # or about to be told so
        if not (lost or self._loop.is_closed()):  # twice is once too often for pyserial-asyncio
            self._transport.abort()
        return close_off_loop(self._close)  # which the loop has no callbacks for any more
