"""One share of a console server.

A share is a `Name`. Its generations are the turns of a device, or the runs of a program. A client is pinned to the name, so
it stays when the device is unplugged. It opens a stream on each generation, below both: whichever is revoked first ends the
stream. The keyboard is a node too. When a client loses it, that node is revoked, together with what the client is just
sending.
"""

from __future__ import annotations

import contextlib
import errno
import logging
import os
import shutil
from dataclasses import fields
from typing import TYPE_CHECKING, Any

import anyio

from asyncrevoke.adapters.pty import PtyOptions, PtySession, open_pty, start_pty
from asyncrevoke.adapters.serial import SerialDevice, open_serial
from asyncrevoke.control.lines import short
from asyncrevoke.control.peer import Peer
from asyncrevoke.lowlevel import Name, Registry, Revokable, RevokedError, SharedStream, printable, revoke_all

from .access import People, Right, Rights
from .fault import told
from .listener import Listener
from .log import Log, log_of
from .share import Share
from .shared_port import SharedPort

if TYPE_CHECKING:
    from .client import Client

logger = logging.getLogger("asyncrevoke")

_LOOPBACK = ("sh", "-c", "stty raw -echo; exec cat")
_PAUSE = 1.0  # seconds until a program is started again. Meanwhile its clients take the last output
_LONGEST_PAUSE = 30.0  # seconds, for a program that ends soon each time
_SOON = 10.0  # seconds: a program that has run for no longer than this has ended soon
_ENDS_WITHIN = 1.0  # seconds that a program has to end, after it has closed its terminal, for its status to be told
_LAST_WORDS = 5.0  # seconds for the clients to take the last output, and to be told why it ended
_OURS = {"NOTIFY_SOCKET", "WATCHDOG_PID", "WATCHDOG_USEC"}  # variables by which systemd talks to the server alone
_LISTED, _SHORT = 200, 5_000  # clients, and bytes of a text: the record of a share must fit into a line

Session = PtySession | SerialDevice
LIVE = {
    "settings",
    "restart",
    "log",
    "log_times",
    "log_marks",
    "log_size",
    "log_keep",
    "history",
    "look",
    "type",
    "revoke",
}  # fields of a share that can change while clients are attached


class Console:
    """One share, while it is hosted. Nothing starts before `begin`. All that can be checked earlier is checked here.

    :param groups: groups of the server, for rights that the share does not set
    :raises OSError, ValueError: if the share cannot be hosted. The message says why
    :ivar port: the serial port. None: the share is a program or a loopback
    :ivar over: set when the share has ended, and all of it is closed
    :ivar since: when the share entered its present state, by the loop's clock
    :ivar listeners: the listeners at its network addresses
    :ivar session: the latest generation. It may be over
    :ivar changed: set when the share comes, goes away or ends. Then a new event takes its place
    :ivar ended: why the share ended by itself
    :ivar clients: the attached clients, in the order in which they get the keyboard
    :ivar keyboard: the client that has the keyboard
    :ivar typing: lock around each sending of typed bytes. The next client types once the sending of the one before has ended
    :ivar typed: number of all typed bytes
    :ivar typist: client whose typed bytes may still be on their way to the device
    """

    node: Name

    def __init__(self, share: Share, registry: Registry, groups: People) -> None:
        self.share = share
        self.port: SharedPort | None = None
        self._rights = Rights(share, groups)
        self.over = anyio.Event()
        self.since = anyio.current_time()
        self.session: Session | None = None
        self.changed = anyio.Event()
        self.ended = ""
        self.clients: dict[Client, None] = {}
        self.keyboard: Client | None = None
        self.typing = anyio.Lock()
        self.typist: Client | None = None
        self.typed = 0
        self._read = 0  # bytes of output, in generations that are over
        self._left = anyio.Event()
        self._restarts = False
        self._recorder: SharedStream | None = None
        self._writing: Log | None = None
        self._registry = registry
        check_source(share)
        self.listeners = [Listener(share, each) for each in share.addresses]
        self._log = log_of(share)

    def begin(self) -> None:
        """Listen at the addresses. Start the program, or begin to wait for the device.

        :raises OSError, ValueError: if one of these fails
        """
        share = self.share
        for listener in self.listeners:
            listener.listen()
        if share.device:
            self.port = SharedPort(share, self._registry, self._change)
            self.node = self.port.node
            return
        self.node = self._registry.name(share.name)
        try:
            self.session = open_pty(share.command or _LOOPBACK, **self._options())
        except BaseException:
            self.node.close()
            raise

    def _options(self) -> PtyOptions:
        return {
            "owner": self.node,
            "name": "loopback" * (not self.share.command),
            "history": self.share.history,
            "env": {"TERM": "xterm"} | {name: each for name, each in os.environ.items() if name not in _OURS},
        }

    async def run(self) -> None:
        """Share the device or program until it is taken away, or the program has ended."""
        try:
            with contextlib.suppress(RevokedError):
                if isinstance(self.session, PtySession):
                    self.ended = await self._run_program(self.session)
                elif self.port is not None:
                    async for device in self.port:
                        await self._serve(device)
                        self._change()
        except Exception as exc:
            logger.exception("%s is no longer shared, because of this fault of the server", self.share.name)
            self.node.revoke(f"a fault of the server: {exc!r}")
        self.note(f"it was taken away{why(self.node)}" if self.node.revoked else f"it has ended: {self.ended}")
        self._change()
        with anyio.move_on_after(_LAST_WORDS):
            while self.clients:
                self._left = anyio.Event()
                await self._left.wait()
        try:
            await self.node.revoke(self.ended)
        except* Exception:
            logger.exception("%s: closing it has failed", self.share.name)
        self.close()
        self.over.set()

    async def _run_program(self, session: PtySession) -> str:
        """Serve the program, and start it again when the share says so. Return how it has ended.

        If it ends soon, the pause is twice as long as the one before: nobody reads what fails each second.
        """
        more = 0.0  # seconds of the pause, in which its clients know that it is away
        while True:
            began = anyio.current_time()
            await self._serve(session)
            ended = await self._status(session)
            again = self.share.restart == "always" or (self.share.restart == "on-failure" and session.returncode != 0)
            if self.node.revoked or not again:
                return ended
            if anyio.current_time() - began > _SOON:
                more = 0.0
            self.note(f"{ended}, and is started again in {_PAUSE + more:g} s")
            with self.node.using(idle=True):
                await anyio.sleep(_PAUSE)
            self._restarts = True
            await self.node.hangup(ended + (f", and is started again in {more:g} s" if more else ""))
            self._change()
            with self.node.using(idle=True):
                await anyio.sleep(more)
            more = min(2 * more + _PAUSE, _LONGEST_PAUSE - _PAUSE)
            try:
                session = await start_pty(self.share.command or _LOOPBACK, **self._options())
            except RevokedError:
                raise
            except OSError as exc:
                return f"{ended}, and cannot be started again: {told(exc)}"
            self._restarts = False

    async def _serve(self, session: Session) -> None:
        """Read all output, for the log and the history. Return at the end of the output, or when the session is revoked."""
        self.note("it is here" if self.session in (None, session) else "it is back")
        self.session = session
        self._change()
        self._recorder = recorder = session.open("recorder", take=self._take)
        self._keep_history()
        while True:
            with contextlib.suppress(RevokedError):  # if only the recorder was revoked, another one is opened below
                async for data in recorder:
                    await self._record(data)
                break
            await self._record(bytes(recorder.unread))  # clients have read it, and may have shown it
            if session.node.revoked:
                if not self.node.revoked:
                    self.note(f"it is away: {self.away}")
                break
            before = recorder
            self._recorder = recorder = session.open("recorder", take=self._take)
            if self._log is not None:
                self._log.miss(recorder.shared.read - before.left_at)
        self._read, self._recorder = self._read + recorder.shared.read, None

    def _keep_history(self) -> None:
        if self._recorder is not None:
            self._recorder.shared.keep(self.share.history)

    async def _status(self, session: PtySession) -> str:
        with anyio.move_on_after(_ENDS_WITHIN):
            return f"the program has ended with status {await session.wait()}"
        return "the program has closed its terminal"

    def _take(self, data: bytes) -> bytes:
        """Write what the log takes without waiting, and return the rest."""
        if self._log is None:
            return b""
        with contextlib.suppress(OSError):  # `_record` gets the same error, and handles it
            data = self._log.write_now(data)
        return data

    async def _record(self, data: bytes) -> None:
        if (log := self._log) is not None:
            self._writing = log
            await log.write(data)
            self._writing = None
            if log is not self._log:  # it was replaced meanwhile
                log.close()

    def close(self) -> None:
        """Close the log and the addresses."""
        for listener in self.listeners:
            listener.close()
        log, self._log = self._log, None  # `note` may still be called, when a client leaves later
        if log is not None:
            log.close()

    def _change(self) -> None:
        self.since = anyio.current_time()
        self.changed.set()
        self.changed = anyio.Event()

    def allows(self, peer: Peer, right: Right) -> bool:
        """Whether a peer has a right on this share."""
        return self._rights.allows(peer, right)

    def permit(self, rights: Rights) -> None:
        """Use these rights from now on. Take away from each client what they do not allow."""
        self._rights = rights
        for client in list(self.clients):
            client.review()

    def changes(self, share: Share) -> list[str]:
        """Return the names of the fields in which that share differs from this one."""
        return [each.name for each in fields(share) if getattr(share, each.name) != getattr(self.share, each.name)]

    async def become(self, new: Console) -> None:
        """Take over the share and the log of a console that never begins. `permit` changes the rights.

        :raises ControlError: if the driver refuses the settings. Then nothing was changed
        """
        if self.port is not None and self.share.settings != new.share.settings:
            await self.port.configure(new.share.settings)
        self._log, new._log = new._log, self._log
        self.share = new.share
        if new._log is not self._writing:
            new.close()
        if self.over.is_set():
            self.close()
        self._keep_history()

    @property
    def state(self) -> tuple[str, str]:
        """The state of the share and its reason, as in the control protocol."""
        if self.node.revoked:
            return "over", f"taken away{why(self.node)}" if self.node.revoked_by else self.node.reason
        if self.port is not None and self.port.is_down:
            return "down", self.port.lent
        return ("away", self.away) if self.away else ("live", "")

    def who(self) -> list[dict[str, Any]]:
        """Return the attached clients in the order in which they came, as records of the control protocol."""
        return [each.told() for each in sorted(self.clients, key=lambda each: each.since)[:_LISTED]]

    def told(self) -> dict[str, Any]:
        """Return all facts about the share, as a record of the control protocol."""
        now = anyio.current_time()
        state, reason = self.state
        return {
            "name": self.share.name,
            "device": short(str(self.share), _SHORT),
            "settings": str(self.port.settings) if self.port else "",
            "state": state,
            "reason": short(reason, _SHORT),
            "since": round(now - self.since, 3),
            "keyboard": None if self.keyboard is None else self.keyboard.name,
            "who": self.who(),
            "open": [listener.warning for listener in self.listeners if listener.warning],
            "read": self._read + (0 if self._recorder is None else self._recorder.shared.read),
            "typed": self.typed,
        }

    @property
    def away(self) -> str | None:
        """Why the share cannot be used now. None: it can."""
        if self.port is not None and (reason := self.port.lent or self.port.problem):
            return reason
        if self.session is None:
            return "it has not come yet"
        node = self.session.node
        if not node.revoked:
            return None
        return f"hung up{why(node)}" if node.revoked_by else node.reason or "closed"

    @property
    def _ends(self) -> bool:
        """Whether everybody goes, so that nobody cares who has the keyboard."""
        return bool(self.ended) or self.node.revoked

    @property
    def returns(self) -> bool:
        """Whether it is away on purpose: a program is started again, or the port is lent. All clients stay then."""
        return self._restarts or (self.port is not None and bool(self.port.lent))

    def discard(self) -> None:
        """Throw away typed bytes that the device has not taken."""
        if self.session is not None:
            try:
                self.session.discard()
            except (RevokedError, anyio.ClosedResourceError):
                pass
            except OSError as exc:  # it is not a terminal, or no descriptor is left
                logger.warning("%r: typed bytes could not be thrown away: %s", self.share.name, exc)

    def note(self, text: str) -> None:
        """Log what has happened here: in the log of the server and, as a mark, in that of the share."""
        text = printable(text)
        logger.info("%s: %s", printable(self.share.name), text)
        if self._log is not None:
            self._log.mark(text)

    def reopen_log(self) -> None:
        """Go on in the file that is at the log's path now, since another program has rotated the log."""
        if self._log is not None:
            self._log.reopen()

    # -- the keyboard --

    def enter(self, client: Client, *, force: bool) -> None:
        """Add a client."""
        self.clients[client] = None
        self.note(f"{client.name} has come")
        if force or (client.writes and self.keyboard is None):
            self.hand_to(client, by=client.name)

    def leave(self, client: Client) -> None:
        """Remove a client."""
        self._say_goodbye(client)
        del self.clients[client]
        self._left.set()

    def _say_goodbye(self, client: Client) -> None:
        """Note that somebody goes, and why: once, and before who has the keyboard then."""
        if not client.parted:
            client.parted = True
            goes = "has gone" if client.handle.closed else f"was taken off{why(client.handle)}"
            self.note(client.end or f"{client.name} {goes}")

    def hand_on(self) -> None:
        """Hand the keyboard to the next of the other clients, or to nobody."""
        others = (each for each in self.clients if each is not self.keyboard)
        self.hand_to(next((each for each in others if each.writes and not each.handle.revoked), None))

    def hand_to(self, client: Client | None, *, by: str = "") -> None:
        """Give the keyboard to a client, or to nobody. What is being typed with the old keyboard is thrown away.

        :param by: user that takes the keyboard from the client that has it
        :raises RevokedError: if the client was taken off. Then nothing has changed
        """
        if client is not None and client.handle.revoked:
            raise RevokedError(client.handle)
        before, self.keyboard = self.keyboard, client
        if client is not before:
            if before in self.clients:
                self.clients = {before: None, **self.clients}  # this one gets it back next
            taken = f", taken from {before.name} by {by}" if by and before is not None else ""
            if not self._ends:
                self.note(f"{'nobody' if client is None else client.name} has the keyboard{taken}")
        if before is not None and before.keyboard is not None:
            keyboard, before.keyboard = before.keyboard, None
            before.why, before.by = "", by
            revoke_all([keyboard], "another has the keyboard", by=by)  # it ends the sending of what was typed there
        if client is not None:
            client.why = client.by = ""
            client.keyboard = new = client.handle.open("keyboard", release=lambda: self._lost(client, new))
            client.shape()
        for each in self.clients:
            each.news.set()

    def _lost(self, client: Client, keyboard: Revokable) -> None:
        """Release a keyboard: nobody types with it any more."""
        if self.typist is client and not client.leaves:
            self.discard()
        if client.keyboard is keyboard:  # it was not handed on: it, or all of the client, was closed or taken away
            client.keyboard, client.writes = None, False
            client.why, client.by = keyboard.reason, keyboard.revoked_by
            if not client.handle.revoked:
                self.note(f"the keyboard was taken from {client.name}{why(keyboard)}")
            elif not self._ends:
                self._say_goodbye(client)
            self.hand_on()


def check_source(share: Share) -> None:
    """Find out what is wrong with the device or the command of a share. Nothing is opened or started.

    :raises OSError, ValueError: if something is
    """
    if share.device:
        open_serial(share.device, dtr=share.dtr, rts=share.rts, **share.settings.options())  # opens nothing yet
    elif share.command and shutil.which(share.command[0]) is None:
        raise FileNotFoundError(errno.ENOENT, os.strerror(errno.ENOENT), share.command[0])


def why(node: Revokable) -> str:
    """Return who revoked a node, and why, as text to follow "was taken off"."""
    by = f" by {node.revoked_by}" if node.revoked_by else ""
    return by + (f": {node.reason}" if node.reason else "")
