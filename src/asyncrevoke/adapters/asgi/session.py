"""One request or websocket, and the keys it belongs to."""

import asyncio
import contextlib
import logging
import time
from collections.abc import Awaitable
from typing import Any, NoReturn

import anyio

from asyncrevoke.lowlevel import Revocation, Revokable, RevokedError, Wait, printable

from .endpoint import cancel
from .goodbye import Goodbye, Terms
from .interface import Message, Receive, Scope, Send

logger = logging.getLogger("asyncrevoke")

#: Seconds after which a timer looks at the clock again: it may be set, and a machine that sleeps stops timers.
_LOOK = 60.0
#: The earliest time at which something may expire. A smaller one, from 2001 or before, may be meant as seconds from now.
_EARLIEST = 1e9
_NOTHING: Message = {"type": ""}  # was sent yet
_BEGIN = {"http.response.start", "websocket.accept", "websocket.close", "websocket.http.response.start"}  # an answer


class Session:
    """A request or websocket: ``session = scope["asyncrevoke"]``

    :ivar scope: the server's scope
    :ivar keys: the keys it belongs to
    :ivar admitted: whether its endpoint has begun
    :ivar taken_away: whether it was revoked, alone or with one of its keys
    :ivar since: the unix time at which it began
    """

    __slots__ = (
        "_cancelled",
        "_expires",
        "_first",
        "_goodbye",
        "_handle",
        "_last",
        "_operations",
        "_over",
        "_receive",
        "_saying",
        "_send",
        "_sending",
        "_task",
        "_terms",
        "_timer",
        "admitted",
        "keys",
        "scope",
        "since",
        "taken_away",
    )

    def __init__(self, terms: Terms, scope: Scope, receive: Receive, send: Send) -> None:
        task = asyncio.tasks.current_task()
        assert task is not None
        self.scope = scope
        self.keys: list[tuple[str, ...]] = []
        self.since = time.time()
        self.admitted = False
        self.taken_away = False
        self._terms = terms
        self._receive = receive
        self._send = send
        self._task = task
        self._operations: list[Wait] = []
        self._first: Message | None = None  # that was sent
        self._last: Message = _NOTHING
        self._sending: Awaitable[None] | None = None  # what hands on the last one
        self._handle: Revokable | None = None
        self._expires = float("inf")
        self._timer: asyncio.TimerHandle | None = None
        self._goodbye: Goodbye | None = None
        self._saying: Revocation | None = None
        self._cancelled = 0  # how often
        self._over = False  # whether the endpoint has ended

    @property
    def name(self) -> str:
        """Its method and path, as in "GET /files"."""
        return f"{self.scope.get('method', 'websocket')} {self.scope['path']}"

    @property
    def handle(self) -> Revokable:
        """The node to open things on that must end with the session: ``owner=session.handle``,
        ``also=[session.handle]``

        All that is open on it is closed when the endpoint has ended.

        :raises RevokedError: when it is used first, if one of the keys was revoked already
        :raises RuntimeError: if the endpoint has ended, or in another thread
        """
        if self._handle is None:
            self._refuse_unless_live()
            handle = Revokable(self.name)
            handle.join(*(operation.node for operation in self._operations))
            self._handle = handle
        return self._handle

    def belongs_to(self, *key: str, expires: float | None = None, issued: Any = None) -> None:
        """Be part of a key from now on: ``session.belongs_to("alice", "token7")``. You may call it for further keys.

        Check after this whether the token is good, not only before: it may be revoked in between.

        :param expires: the unix time at which the session is revoked by itself. Of several, the earliest counts
        :param issued: in a cluster, the position that was stored with the token: ``str(cluster.position)``
        :raises RevokedError: if this key is being revoked, or was revoked in a cluster. The session is revoked, too: do
            not catch the error
        :raises TypeError: if a part of the key is not a string, or there is none
        :raises ValueError: if `expires` is before 2001: it may have been meant as seconds from now
        :raises RuntimeError: if the endpoint has ended, or in another thread, as in a dependency of FastAPI that is not
            async
        """
        self._refuse_unless_live()
        self.enter(key, expires, issued)

    def revoke(self, reason: str = "") -> None:
        """Revoke this session alone, and none of its keys: cancel the endpoint, and tell the client. Calling it again
        does no harm.

        :raises RuntimeError: in another thread
        """
        self._refuse_elsewhere()
        if self.taken_away or self._over:
            return
        self.taken_away = True
        handle = self._handle = self._handle or Revokable(self.name)
        handle.revoke(reason)
        sent = getattr(self._sending, "cr_frame", None) is None
        goodbye = self._goodbye = Goodbye(
            self._terms, self.scope, self._receive, self._send, first=self._first, last=self._last, sent=sent
        )
        # Before the endpoint is cancelled, which may be sending its last message.
        self._receive = self._send = self._refuse
        level, what = (logging.INFO, "taken away") if self.admitted else (logging.DEBUG, "refused")
        if logger.isEnabledFor(level):
            logger.log(level, "%s", printable(f"{self} was {what}: {reason or 'no reason given'}"))
        # The client is told while the endpoint ends, and even if it does not.
        self._saying = Revokable(f"goodbye to {self.name}", release=lambda: goodbye.say(reason)).revoke(reason)
        self._task.set_name(self.name)  # for the list of stragglers
        self._cancel()

    @property
    def facts(self) -> dict[str, Any]:
        """Its facts, as JSON has them."""
        client = self.scope.get("client")
        return {
            "keys": self.keys,
            "what": self.name,
            "type": self.scope["type"],
            "client": client and client[0],
            "since": self.since,
        }

    def __str__(self) -> str:
        whose = ", ".join("/".join(key) for key in self.keys) or "nobody"
        return f"{self.name} of {whose} at {(self.scope.get('client') or '?')[0]}"

    def _cancel(self) -> None:
        """Cancel the endpoint. Once is enough for most. If it swallows that, it is cancelled again when its clean-up
        had time.
        """
        if self._timer is not None:
            self._timer.cancel()
        self._timer = asyncio.get_running_loop().call_later(self._terms.limit, self._cancel)
        self._cancelled += cancel(self._task)

    def _refuse(self, *_: object) -> NoReturn:
        raise RevokedError(self._handle)

    def _refuse_elsewhere(self) -> None:
        with contextlib.suppress(RuntimeError):  # that none runs
            if asyncio.get_running_loop() is self._task.get_loop():
                return
        raise RuntimeError(f"{self.name!r} was used in another thread: make the function that does it async")

    def _refuse_unless_live(self) -> None:
        self._refuse_elsewhere()
        if self.taken_away:
            self._refuse()
        if self._over:
            raise RuntimeError(f"{self.name!r} has ended: nothing more can belong to it, nor it to anybody")

    def _kicked(self, error: Exception) -> None:
        self.revoke(getattr(error, "reason", ""))

    def _look_at_clock(self) -> None:
        """Revoke the session when its time is over."""
        if self._timer is not None:
            self._timer.cancel()
        left = self._expires - time.time()
        if left > 0:
            self._timer = asyncio.get_running_loop().call_later(min(left, _LOOK), self._look_at_clock)
        else:
            self.revoke("the token has expired")

    # -- for the application around the endpoint --

    def receive(self) -> Awaitable[Message]:
        """The endpoint's `receive`. It returns what the server's returns, because a coroutine of its own would cost
        more.
        """
        return self._receive()

    def send(self, message: Message) -> Awaitable[None]:
        """The endpoint's `send`. It remembers what the goodbye depends on."""
        sending = self._sending = self._send(message)
        self._last = message
        if self._first is None and message["type"] in _BEGIN:
            self._first = message
        return sending

    def enter(self, key: tuple[str, ...], expires: float | None, issued: Any) -> None:
        """Do the work of `belongs_to`, after the checks."""
        if expires is not None and not expires >= _EARLIEST:
            raise ValueError(f"expires is {expires!r}: give a unix time, such as time.time() + 3600")
        if key not in self.keys:
            try:
                operation = self._terms.enter(key, issued, self._kicked)
            except RevokedError as error:
                self.revoke(error.reason)
                raise
            operation.task = self._task  # and not the one that told of it
            self._operations.append(operation)
            self.keys.append(key)
            if self._handle is not None:
                self._handle.join(operation.node)
        if expires is not None and not expires >= self._expires:
            self._expires = expires
            self._look_at_clock()

    def ended(self) -> bool:
        """Note that the endpoint has ended. Return whether that is all, or whether to wait by `rest`."""
        self._over = True
        if self._timer is not None:
            self._timer.cancel()
        if self._handle is not None:
            return False
        self._leave()
        return True

    async def rest(self) -> None:
        """Wait until everything it has opened is released, and the client was told."""
        try:
            while self._saying is not None:
                # It is cancelled by us only now, perhaps, or by the server, which learns later that it was heard.
                with contextlib.suppress(asyncio.CancelledError), anyio.CancelScope(shield=True):
                    await self._saying.finish()
                    break
            if self._handle is not None:
                await self._handle.aclose()
        finally:
            self._leave()
            for _ in range(self._cancelled):
                self._task.uncancel()

    def _leave(self) -> None:
        """Leave the keys, so that their revocations can go on."""
        while self._operations:
            self._operations.pop().leave()

    def raise_rest(self) -> None:
        """Raise what the server has to know when the session was revoked.

        :raises CancelledError: if somebody else has cancelled the endpoint, too
        :raises RevokedError: if only the server can cut off the response
        """
        if self._task.cancelling():
            raise asyncio.CancelledError
        if self._goodbye is not None and self._goodbye.unended:
            self._refuse()
