"""A console server: programs and devices, shared by those who attach to them over a control socket.

A share is a `Name`: its generations are the turns of a device, or the one run of a program. A client is pinned to the name,
so it stays when the device is unplugged, and has a stream on each generation, open on both: whichever goes first takes the
stream. The keyboard is a node, too: who loses it is revoked from it, together with what he was just sending.
"""

from __future__ import annotations

import base64
import contextlib
import functools
import logging
from collections.abc import Awaitable, Callable, Mapping, Sequence
from typing import Any

import anyio
import anyio.abc

from asyncrevoke.adapters.hotplug import serial_device
from asyncrevoke.adapters.pty import PtySession, open_pty
from asyncrevoke.adapters.serial import SerialDevice
from asyncrevoke.control.lines import ControlError
from asyncrevoke.control.request import Request
from asyncrevoke.control.server import serve
from asyncrevoke.lowlevel import Registry, Revokable, RevokedError, SharedStream, log_events, observe

from .log import Log
from .share import Share

logger = logging.getLogger("asyncrevoke")

_LOOPBACK = ("sh", "-c", "stty raw -echo; exec cat")
_PIECE = 8192  # bytes of output in a line; a Unix socket takes such a line as a whole or not at all
_AHEAD = 256  # lines that a client may type ahead, and an interrupt passes
_LAST_WORDS = 5.0  # seconds for the clients to take the last output, and to be told

Session = PtySession | SerialDevice


async def host(
    shares: Sequence[Share],
    socket: str,
    *,
    group: str | None = None,
    task_status: anyio.abc.TaskStatus[None] = anyio.TASK_STATUS_IGNORED,
) -> None:
    """Share them over a control socket, until all have ended.

    :param group: whose members may attach, and look
    :raises OSError: if a program, a log file or the socket cannot be opened
    :raises ValueError: if two have one name, or there is no such group
    Cancellation: takes all of them away; clients are told.
    """
    hosting = _Hosting(shares, socket, group)
    async with hosting.registry.root, anyio.create_task_group() as tasks:
        tasks.start_soon(hosting.run, task_status)
        try:
            await hosting.over.wait()
        finally:  # cancelled, it goes on until everybody has been told
            hosting.registry.root.revoke("the console server was stopped")
    if hosting.failure is not None:
        raise hosting.failure


class _Hosting:
    """All the consoles, and the server through which they are reached.

    :ivar over: set when all have ended, and the server too
    :ivar failure: what could not be opened
    """

    def __init__(self, shares: Sequence[Share], socket: str, group: str | None) -> None:
        self.registry = Registry()
        self.over = anyio.Event()
        self.failure: Exception | None = None
        self._shares = shares
        self._socket = socket
        self._group = group
        self._consoles: dict[str, _Console] = {}

    async def run(self, task_status: anyio.abc.TaskStatus[None]) -> None:
        try:
            with anyio.CancelScope(shield=True):
                async with anyio.create_task_group() as serving:
                    try:
                        await serving.start(observe, self.registry.root, log_events)
                        await serving.start(self._serve)
                        for share in self._shares:
                            self._consoles[share.name] = _Console(share, self.registry)
                    except (OSError, ValueError) as exc:
                        self.failure = exc
                        self.registry.root.revoke(str(exc))
                    else:
                        task_status.started()
                    async with anyio.create_task_group() as running:
                        for console in self._consoles.values():
                            running.start_soon(console.run)
                    serving.cancel_scope.cancel()
        finally:
            self.over.set()

    async def _serve(self, *, task_status: anyio.abc.TaskStatus[None]) -> None:
        commands = {"attach": self._attach}
        await serve(self.registry, self._socket, group=self._group, commands=commands, task_status=task_status)

    async def _attach(self, request: Request) -> Mapping[str, Any]:
        name, mode, wait = request.text("name"), request.text("mode", "write"), request.flag("wait")
        if mode not in ("write", "watch", "force"):
            raise ControlError("bad-request", "'mode' must be one of write, watch, force")
        console = self._consoles.get(name)
        if console is None:
            raise ControlError("unknown-path", f"nothing is shared as {name!r}: {', '.join(self._consoles)} is")
        client = _Client(console, request, writes=mode != "watch", wait=wait)
        return {"ended": await client.run(force=mode == "force")}


class _Console:
    """One share, while it is hosted.

    :ivar session: the latest generation; it may be over
    :ivar changed: set when the session is another, or the share has ended
    :ivar ended: why it has ended by itself
    :ivar clients: who are attached, in order
    :ivar keyboard: who has it
    :ivar typing: is held by who types, until he has lost the keyboard
    :ivar typist: whose typing is what may still be on its way to the device
    """

    def __init__(self, share: Share, registry: Registry) -> None:
        self.share = share
        self.session: Session | None = None
        self.changed = anyio.Event()
        self.ended = ""
        self.clients: dict[_Client, None] = {}
        self.keyboard: _Client | None = None
        self.typing = anyio.Lock()
        self.typist: _Client | None = None
        self._left = anyio.Event()
        self._log = Log(share.log, share.name) if share.log else None
        try:
            if share.device:
                self._devices = serial_device(
                    share.device,
                    share.baudrate,
                    registry=registry,
                    name=share.name,
                    fan_out=True,
                    history=share.history,
                )
                self.node = self._devices.node
            else:
                self.node = registry.name(share.name)
                self.session = open_pty(
                    share.command or _LOOPBACK,
                    owner=self.node,
                    name="loopback" * (not share.command),
                    history=share.history,
                )
        except BaseException:
            self._close_log()
            raise

    async def run(self) -> None:
        """Share it until it is taken away, or its program has ended."""
        try:
            with contextlib.suppress(RevokedError):
                if isinstance(self.session, PtySession):
                    await self._serve(self.session)
                    self.ended = await self._status(self.session)
                else:
                    async for device in self._devices:
                        await self._serve(device)
        except Exception as exc:
            logger.exception("%s is shared no longer", self.share.name)
            self.node.revoke(f"a fault of the server: {exc!r}")
        self._change()
        with anyio.move_on_after(_LAST_WORDS):
            while self.clients:
                self._left = anyio.Event()
                await self._left.wait()
        try:
            await self.node.revoke(self.ended)
        except* Exception:
            logger.exception("%s was not closed well", self.share.name)
        self._close_log()

    async def _serve(self, session: Session) -> None:
        """Read all output, for the log and the history, until the end of data or the session's own."""
        self.session = session
        self._change()
        recorder = session.open("recorder", take=self._take)
        while True:
            with contextlib.suppress(RevokedError):  # perhaps of the recorder alone: it is opened anew
                async for data in recorder:
                    await self._record(data)
                break
            await self._record(bytes(recorder.unread))  # others have read it, and may have shown it
            if session.node.revoked:
                break
            before, recorder = recorder, session.open("recorder", take=self._take)
            if self._log is not None:
                self._log.miss(recorder.shared.read - before.left_at)

    async def _status(self, session: PtySession) -> str:
        with anyio.move_on_after(1):
            return f"the program has ended with status {await session.wait()}"
        return "the program has closed its terminal"

    def _take(self, data: bytes) -> bytes:
        """Log what the log takes at once, and return the rest."""
        if self._log is None:
            return b""
        with contextlib.suppress(OSError):  # `_record` meets it, too
            data = self._log.write_now(data)
        return data

    async def _record(self, data: bytes) -> None:
        if self._log is not None:
            await self._log.write(data)

    def _close_log(self) -> None:
        if self._log is not None:
            self._log.close()

    def _change(self) -> None:
        self.changed.set()
        self.changed = anyio.Event()

    @property
    def away(self) -> str | None:
        """Why it cannot be used now, if it cannot."""
        if self.session is None:
            return "it has not come yet"
        return self.session.node.reason or "closed" if self.session.node.revoked else None

    def discard(self) -> None:
        """Throw away what was typed and the device has not taken."""
        if self.session is not None:
            try:
                self.session.discard()
            except (RevokedError, anyio.ClosedResourceError):
                pass
            except OSError as exc:  # it is no terminal, or there is no descriptor left
                logger.warning("%r keeps what was typed: %s", self.share.name, exc)

    # -- the keyboard --

    def enter(self, client: _Client, *, force: bool) -> None:
        """Somebody has come."""
        self.clients[client] = None
        if force or (client.writes and self.keyboard is None):
            self.hand_to(client)

    def leave(self, client: _Client) -> None:
        """Somebody has gone."""
        del self.clients[client]
        self._left.set()

    def _hand_on(self) -> None:
        """Nobody has it any more: it is for whoever has been here longest."""
        self.hand_to(next((each for each in self.clients if each.writes and not each.handle.revoked), None))

    def hand_to(self, client: _Client | None) -> None:
        """Give the keyboard to this one, or to nobody. What is being typed with the old one is thrown away."""
        before, self.keyboard = self.keyboard, client
        if before is not None and before.keyboard is not None:
            keyboard, before.keyboard = before.keyboard, None
            keyboard.revoke("another has the keyboard")  # and what was just typed there
        if client is not None:

            def lost() -> None:
                if self.typist is client and not client.leaves:
                    self.discard()
                if client.keyboard is new:  # it was closed or taken away, alone or with all that the client has
                    client.keyboard, client.writes, client.why = None, False, new.reason
                    self._hand_on()

            client.keyboard = new = client.handle.open("keyboard", release=lost)
            client.resize()
        for each in self.clients:
            each.news.set()


class _Client:
    """Somebody who is attached.

    :ivar handle: pinned to the name: who takes it away takes all that the client has
    :ivar writes: whether the keyboard may come to this one
    :ivar keyboard: a handle on it, for as long as this one has it
    :ivar leaves: it goes by itself, and what it has typed stays
    :ivar why: it alone was taken away from this one
    :ivar news: set when it may have changed hands
    """

    def __init__(self, console: _Console, request: Request, *, writes: bool, wait: bool) -> None:
        taken = {node.name for node in (console.node, *console.node.children, *console.node.current.children)}
        name = request.peer.name
        self.name = next(
            each for each in (name, *(f"{name}-{n}" for n in range(2, 2 + len(taken)))) if each not in taken
        )
        self.writes = writes
        self.keyboard: Revokable | None = None
        self.leaves = False
        self.why = ""
        self.news = anyio.Event()
        self._console = console
        self._connection = request.connection
        self._size = _size(request.fields.get("size"))
        self._wait = wait
        self._stream: SharedStream | None = None  # the latest
        self._outcome: str | Exception | None = None
        self.handle = console.node.pin(self.name)
        self._typed, self._to_type = anyio.create_memory_object_stream[tuple[Revokable, bytes] | None](_AHEAD)

    async def run(self, *, force: bool) -> str:
        """Show it all that comes, take what it types, until it ends; it returns why.

        :raises ControlError: if it was taken away
        """
        self._console.enter(self, force=force)
        try:
            await self._connection.send({"attached": self.handle.path})
            async with anyio.create_task_group() as tasks:
                for part in (self._show, self._hear, self._tell, self._type):
                    tasks.start_soon(self._run, part, tasks.cancel_scope)
        finally:
            self.leaves = not isinstance(self._outcome, ControlError)
            self._typed.close()
            self._to_type.close()
            try:
                await self.handle.aclose()
            finally:
                self._console.leave(self)  # from here to the answer nothing waits, or the server could end before it
        assert self._outcome is not None
        if isinstance(self._outcome, Exception):
            raise self._outcome
        return self._outcome

    async def _run(self, part: Callable[[], Awaitable[str]], all_parts: anyio.CancelScope) -> None:
        outcome: str | Exception
        try:
            outcome = await part()
        except RevokedError as error:
            outcome = ControlError("revoked", str(RevokedError(self.handle) if self.handle.revoked else error))
        except Exception as error:  # noqa: BLE001  # raised when the others have ended, too
            outcome = error
        self._outcome = self._outcome or outcome
        all_parts.cancel()

    # -- from the device --

    async def _show(self) -> str:
        console = self._console
        while not console.ended:
            if console.away is None:
                assert console.session is not None
                await self._follow(console.session)
            elif self._wait:
                await self._await_next()
            else:
                raise ControlError("revoked", f"{console.share.name!r} is away: {console.away}; with 'wait' you stay")
        return console.ended

    async def _follow(self, session: Session) -> None:
        """Send all output of a generation, until it is over."""
        self._stream = stream = session.open(self.name, also=[self.handle], replay=True, take=self._take)
        try:
            while True:
                if data := self._take(await stream.receive(_PIECE)):
                    with stream.handle.using():  # so that nothing of it is sent when the revocation was reported
                        await self._connection.send(_line(data))
        except anyio.EndOfStream:
            await self._until(lambda: self._console.ended)
        except RevokedError:
            if self.handle.revoked or not session.node.revoked or (isinstance(session, PtySession) and not self._wait):
                raise

    def _take(self, data: bytes) -> bytes:
        """Send it, if the client takes it at once, or return it."""
        return b"" if self._connection.send_now(_line(data)) else data

    async def _await_next(self) -> None:
        console = self._console
        await self._connection.send({"away": console.away})
        await self._until(lambda: console.ended or console.away is None)
        if not console.ended:
            await self._connection.send({"back": console.node.current.generation})

    async def _until(self, ready: Callable[[], object]) -> None:
        with self.handle.using(idle=True):
            while not ready():
                await self._console.changed.wait()

    # -- from the client --

    async def _hear(self) -> str:
        while True:
            try:
                line = await self._connection.receive()
            except anyio.EndOfStream:  # nothing more is typed; if it has gone, the request is cancelled
                await anyio.sleep_forever()
            if "data" in line:
                await self._pass_on(_bytes(line["data"]))
            elif line.get("interrupt") is True:
                await self._interrupt()
            elif "size" in line:
                self._size = _size(line["size"])
                self.resize()
            elif line.get("detach") is True:
                await self._typed.send(None)
            else:
                raise ControlError("bad-request", "attached, send 'data', 'size', 'interrupt' or 'detach'")

    async def _pass_on(self, data: bytes) -> None:
        if self.keyboard is not None:
            await self._typed.send((self.keyboard, data))

    async def _type(self) -> str:
        """Type what was typed ahead with a keyboard that this one still has, until it detaches."""
        async for typed in self._to_type:
            if typed is None:
                break
            keyboard, data = typed
            if (stream := self._stream) is not None:
                async with self._console.typing:
                    # What was taken away, or is at its end, is told elsewhere.
                    with contextlib.suppress(anyio.BrokenResourceError, anyio.ClosedResourceError), keyboard.using():
                        self._console.typist = self
                        await stream.send(data)
        return "detached"

    async def _interrupt(self) -> None:
        """Type ctrl-C before all that is on its way to the device, which is thrown away, whoever typed it."""
        if self._console.keyboard is self:
            self._console.hand_to(self)  # anew: what waits to be typed goes with the old one
            self._console.discard()
            await self._pass_on(b"\x03")

    def resize(self) -> None:
        """Give the terminal the size of this one's window, if it has the keyboard."""
        session = self._console.session
        if self.keyboard is not None and self._size is not None and isinstance(session, PtySession):
            with contextlib.suppress(RevokedError, anyio.ClosedResourceError):
                session.resize(*self._size)

    # -- the keyboard --

    async def _tell(self) -> str:
        told = None
        while True:
            holder = self._console.keyboard
            news = {"keyboard": None if holder is None else holder.name, "yours": holder is self, "reason": self.why}
            if news != told:
                await self._connection.send(news)
                told = news
            else:
                await self.news.wait()
            self.news = anyio.Event()


@functools.lru_cache(maxsize=1)  # it is the same for all clients
def _line(data: bytes) -> bytes:
    return b'{"data":"%b"}\n' % base64.b64encode(data)


def _bytes(value: object) -> bytes:
    try:
        return base64.b64decode(value, validate=True)  # type: ignore[arg-type]  # what it is not, it says
    except (TypeError, ValueError) as exc:
        raise ControlError("bad-request", f"'data' must be Base64: {exc}") from exc


def _size(value: object) -> tuple[int, int] | None:
    if value is None:
        return None
    if isinstance(value, list) and len(value) == 2 and all(type(each) is int and 0 < each < 1000 for each in value):
        return value[0], value[1]
    raise ControlError("bad-request", "'size' must be [rows, columns], each from 1 to 999")
