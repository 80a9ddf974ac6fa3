"""A client: a person or program that is attached to a share."""

from __future__ import annotations

import contextlib
from collections import deque
from collections.abc import Awaitable, Callable, Mapping
from typing import Any

import anyio

from asyncrevoke.adapters.pty import PtySession
from asyncrevoke.control.lines import ControlError, short
from asyncrevoke.control.peer import Peer
from asyncrevoke.control.request import Request
from asyncrevoke.lowlevel import Revokable, RevokedError, SharedStream

from .console import Console, Session, why
from .front import Front, Refused
from .shared_port import CHANGES, obey

_PIECE = 8192  # bytes of output in a line; a Unix socket takes such a line as a whole or not at all
_UNSAID = 100  # lines of others that wait for a client; the oldest go first
_ORIGIN = 100  # bytes of a text that everybody is shown
_AHEAD = 256  # lines that a client may type ahead, and an interrupt passes


class Client:
    """A person or program that is attached.

    :ivar peer: process at the other end, whose rights it has, if the kernel tells it
    :ivar origin: where it comes from, as it says itself
    :ivar since: when it came, by the loop's clock
    :ivar handle: handle that is pinned to the name. Revoking it takes away everything that the client has
    :ivar writes: whether the client may have the keyboard
    :ivar keyboard: handle on the keyboard, while the client has it
    :ivar leaves: whether it goes by itself. Then its typed bytes are kept
    :ivar end: says that it was taken off, by whom and why
    :ivar parted: whether it was noted that it goes
    :ivar why: why only the keyboard was taken from it
    :ivar by: user that took the keyboard
    :ivar news: set when the keyboard may have changed hands, or another client has said something
    """

    def __init__(
        self,
        console: Console,
        front: Front,
        name: str,
        *,
        writes: bool,
        wait: bool,
        history: bool = True,
        peer: Peer | None = None,
        origin: str = "",
    ) -> None:
        taken = {node.name for node in (console.node, *console.node.children, *console.node.current.children)}
        self.peer = peer
        self.origin = short(origin, _ORIGIN)
        self.name = next(
            each for each in (name, *(f"{name}-{n}" for n in range(2, 2 + len(taken)))) if each not in taken
        )
        self.writes = writes
        self.keyboard: Revokable | None = None
        self.leaves = False
        self.end = ""
        self.parted = False
        self.why = self.by = ""
        self.since = anyio.current_time()
        self.news = anyio.Event()
        self._said: deque[Mapping[str, Any]] = deque(maxlen=_UNSAID)
        self._console = console
        self._front = front
        self._size: tuple[int, int] | None = None
        self._wait = wait
        self._known = None if history else console.session  # what it has shown before is not wanted
        self._stream: SharedStream | None = None  # the latest
        self._outcome: str | Exception | None = None
        self.handle = console.node.pin(self.name)
        self._typed, self._to_type = anyio.create_memory_object_stream[tuple[Revokable, bytes] | anyio.Event | None](
            _AHEAD
        )

    async def run(self, *, force: bool) -> str:
        """Show all output and take what is typed, until the client ends. Return why it ended.

        :raises ControlError: if it was taken away
        """
        self._console.enter(self, force=force)
        try:
            await self._front.tell({"attached": self.handle.path})
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
        end = ""
        try:
            outcome = await part()
        except RevokedError as error:
            node = self.handle if self.handle.revoked else error.node
            assert node is not None
            end = f"{self.name} was taken off{why(node)}"
            outcome = ControlError("revoked", end)
        except Exception as error:  # noqa: BLE001  # raised when the others have ended, too
            outcome = error
        if self._outcome is None:
            self._outcome, self.end = outcome, end
        all_parts.cancel()

    # -- from the device --

    async def _show(self) -> str:
        console = self._console
        while not console.ended:
            if console.away is None:
                assert console.session is not None
                await self._follow(console.session)
            elif self._wait or console.returns:
                await self._await_next()
            else:
                raise ControlError("revoked", f"{console.share.name!r} is away: {console.away}; with 'wait' you stay")
        return console.ended

    async def _follow(self, session: Session) -> None:
        """Send all output of a generation, until it is over."""
        replay = session is not self._known
        self._stream = stream = session.open(self.name, also=[self.handle], replay=replay, take=self._front.show_now)
        try:
            while True:
                if data := self._front.show_now(await stream.receive(_PIECE)):
                    with stream.handle.using():  # so that nothing of it is sent when the revocation was reported
                        await self._front.show(data)
        except anyio.EndOfStream:
            await self._until(lambda: self._console.ended or session.node.revoked)
        except RevokedError:
            stays = self._wait or self._console.returns or not isinstance(session, PtySession)
            if self.handle.revoked or not session.node.revoked or not stays:
                raise

    async def _await_next(self) -> None:
        console, why = self._console, self._console.away
        await self._front.tell({"away": why})
        await self._until(lambda: console.ended or console.away != why)
        if not console.ended and console.away is None:
            await self._front.tell({"back": console.node.current.generation})

    async def _until(self, ready: Callable[[], object]) -> None:
        with self.handle.using(idle=True):
            while not ready():
                await self._console.changed.wait()

    # -- from the client --

    async def _hear(self) -> str:
        return await self._front.hear(self)

    async def type(self, data: bytes) -> None:
        """Type data, after all before it. Without the keyboard it is thrown away."""
        if self.keyboard is not None:
            await self._typed.send((self.keyboard, data))

    async def _type(self) -> str:
        """Type what was typed ahead with a keyboard that this one still has, until it detaches."""
        async for typed in self._to_type:
            if typed is None:
                break
            if isinstance(typed, anyio.Event):
                typed.set()
                continue
            keyboard, data = typed
            if (stream := self._stream) is not None:
                async with self._console.typing:
                    # What was taken away, or is at its end, is told elsewhere.
                    with contextlib.suppress(anyio.BrokenResourceError, anyio.ClosedResourceError), keyboard.using():
                        self._console.typist = self
                        self._console.typed += len(data)
                        await stream.send(data)
        return "detached"

    async def typed_out(self) -> None:
        """Wait until all that was typed before is on its way to the device."""
        typed = anyio.Event()
        await self._typed.send(typed)
        await typed.wait()

    async def detach(self) -> None:
        """End, once all that was typed before is on its way to the device."""
        await self._typed.send(None)

    async def interrupt(self) -> None:
        """Type ctrl-C before all that is on its way to the device, which is thrown away, whoever typed it."""
        self.discard()
        await self.type(b"\x03")

    def discard(self) -> None:
        """Throw away what is on its way to the device, whoever typed it, if this one has the keyboard."""
        if self._console.keyboard is self:
            self._console.hand_to(self)  # anew: what waits to be typed goes with the old one
            self._console.discard()

    def forget(self) -> None:
        """Throw away output for this client that was not shown yet."""
        if self._stream is not None:
            self._stream.forget()

    async def ask_port(self, request: Request) -> Mapping[str, Any]:
        """Have the port of the share obey a request, as `obey` does. A change needs the keyboard.

        :raises ControlError: "refused", "bad-request"
        """
        if request.fields.keys() & CHANGES and self.keyboard is None:
            raise ControlError("refused", "that needs the keyboard. You do not have it: take it first")
        return await obey(self._console, request, self.name, [self.keyboard or self.handle])

    def resize(self, size: tuple[int, int] | None) -> None:
        """The window has this size, rows and columns."""
        self._size = size
        self.shape()

    def shape(self) -> None:
        """Give the terminal the size of this one's window, if it has the keyboard."""
        session = self._console.session
        if self.keyboard is not None and self._size is not None and isinstance(session, PtySession):
            with contextlib.suppress(RevokedError, anyio.ClosedResourceError):
                session.resize(*self._size)

    def told(self) -> dict[str, Any]:
        """Return who it is and what it does, as a record of the control protocol."""
        return {
            "name": self.name,
            "keyboard": self._console.keyboard is self,
            "types": self.writes,
            "since": round(anyio.current_time() - self.since, 3),
            "from": self.origin,
        }

    def review(self) -> None:
        """Take away what its rights do not allow, or no longer allow."""
        if self.peer is None:
            return
        if not self._console.allows(self.peer, "look"):
            self.handle.revoke("you may not look here")
        elif self.writes and not self._console.allows(self.peer, "type"):
            self.writes, self.why = False, "you may look here, and not type"
            self.learn({"refused": "type", "message": self.why})
            if self.keyboard is not None:
                self.keyboard.revoke(self.why)

    # -- the keyboard, and the others --

    def take(self) -> None:
        """Take the keyboard from its holder. It goes back there when this client gives it back, or leaves.

        :raises Refused: if this client may not type, or has the keyboard
        """
        if not self.writes:
            raise Refused("take", self.why or "you only watch here")
        if self._console.keyboard is self:
            raise Refused("take", "you have the keyboard")
        self._console.hand_to(self, by=self.name)

    def give(self) -> None:
        """Give the keyboard back to the client it was taken from. If that has gone, it goes to the one attached longest.

        :raises Refused: if this client does not have it
        """
        if self._console.keyboard is not self:
            raise Refused("give", "you do not have the keyboard")
        self._console.hand_on()

    def say(self, text: str) -> None:
        """Tell a line to all other clients.

        :raises Refused: if there are no others
        """
        others = [each for each in self._console.clients if each is not self]
        if not others:
            raise Refused("say", "nobody else is here")
        for each in others:
            each.learn({"said": text, "by": self.name})

    def learn(self, news: Mapping[str, Any]) -> None:
        """Take a message about what another client has said or done."""
        self._said.append(news)
        self.news.set()

    def who(self) -> list[dict[str, Any]]:
        """Return the attached clients, as records of the control protocol."""
        return self._console.who()

    async def _tell(self) -> str:
        told: tuple[str | None, bool] = ("", True)
        while True:
            while self._said:
                await self._front.tell(self._said.popleft())
            holder = self._console.keyboard
            now = (None if holder is None else holder.name, holder is self)
            if now != told:
                lost = told[1]  # or it is a later change, for which it has heard no reason
                told = now
                why, by = (self.why, self.by) if lost else ("", "")
                await self._front.tell({"keyboard": now[0], "yours": now[1], "reason": why, "by": by})
            else:
                await self.news.wait()
            self.news = anyio.Event()
