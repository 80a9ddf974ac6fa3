"""How a client learns that its session was revoked."""

import asyncio
import json
import logging
from collections.abc import Callable, Iterable
from typing import Any, NamedTuple, Protocol

import anyio

from asyncrevoke.lowlevel import Registry, Wait, checkpoint, printable

from .connection import below
from .interface import App, Message, Receive, Scope, Send

logger = logging.getLogger("asyncrevoke")

GOES, CANNOT_VOUCH = 1012, 1013  # close codes, "service restart" and "try again later"
#: How requests are refused, by the code that closes websockets: for tokens that are not good, and for those that are.
_REFUSED = 401, (b"www-authenticate", b'Bearer error="invalid_token"')
_LATER = dict.fromkeys((GOES, CANNOT_VOUCH), (503, (b"retry-after", b"5")))
_ROOM = 123  # bytes for the reason in the close frame of a websocket (RFC 6455, 5.5)
#: Messages that may be the last of a response, and the field in each that says that it is not.
_LAST = {
    "http.response.body": "more_body",
    "http.response.zerocopysend": "more_body",
    "http.response.pathsend": "",
    "http.response.trailers": "more_trailers",
    "websocket.http.response.body": "more_body",
}


class Member(Protocol):
    """The parts of a `Cluster` that are used here."""

    live: Registry

    @property
    def admits(self) -> bool:
        """Whether it can tell who was revoked."""

    def is_own(self, reason: str) -> bool:
        """Whether it has revoked a session by itself, so that the token may be good."""

    def check(self, *path: str, issued: Any) -> None:
        """Raise a `RevokedError` for a session that was revoked, or if that cannot be known."""


class Terms(NamedTuple):
    """The settings that all sessions of an application share.

    :ivar enter: begins an operation on a key that was issued at a position. It gets the function that ends the
        operation
    :ivar code: returns the code that closes a websocket for a reason
    :ivar limit: seconds for telling a client
    :ivar refusal: turns a reason into the application that answers a request in place of its endpoint
    """

    enter: Callable[[tuple[str, ...], Any, Callable[[Exception], object]], Wait]
    code: Callable[[str], int]
    limit: float
    refusal: Callable[[str], App] | None


class Goodbye:
    """How a client learns that its session was revoked, and how its connection ends.

    :param first: the message, of those that were sent, that has begun the answer
    :param last: the last message that was sent
    :param sent: whether that has arrived at the server
    :ivar unended: whether it was in the midst of a response, which only the server can cut off
    """

    def __init__(
        self,
        terms: Terms,
        scope: Scope,
        receive: Receive,
        send: Send,
        *,
        first: Message | None,
        last: Message,
        sent: bool,
    ) -> None:
        self._terms = terms
        self._scope = scope
        self._receive = receive
        self._send = send
        self._first = first
        self._last = last
        self.unended = False
        kind = last["type"]
        trailers = kind == "http.response.body" and first is not None and first.get("trailers", False)
        self._complete = sent and kind in _LAST and not (last.get(_LAST[kind], False) or trailers)

    async def say(self, reason: str) -> None:
        """Tell the client, as far as that is still possible. Then close the connection, or abort it when the limit is
        over.
        """
        if self._complete:
            return  # the connection may be in the midst of the next request
        connection = None if self._shared else below(self._send)
        if connection is not None and connection.lost.is_set():
            return  # some servers tell that only once
        code = self._terms.code(reason)
        if code == CANNOT_VOUCH:
            reason = "try again later"  # and not what the host cannot reach, which is in our log
        told = False
        try:
            with anyio.move_on_after(self._terms.limit):
                told = await (self._end_websocket if self._closes(code) else self._end_http)(reason, code)
                if told and connection is not None:
                    if not self._accepted:  # else the server closes it, when the client has answered
                        await checkpoint()  # for a server that writes in a task of its own
                        connection.transport.close()
                    await connection.lost.wait()
        except (Exception, asyncio.CancelledError) as exc:  # noqa: BLE001  # of client, server or refusal; or the loop ends
            logger.info("%s", printable(f"the client of {self._scope['path']} was not told: {exc!r}"))
        if connection is not None:
            await connection.abort()
        self.unended = connection is None and not told

    @property
    def _is_websocket(self) -> bool:
        return bool(self._scope["type"] == "websocket")

    @property
    def _shared(self) -> bool:
        return bool(self._scope.get("http_version", "1.1") >= "2")

    @property
    def _accepted(self) -> bool:
        return self._first is not None and self._first["type"] == "websocket.accept"

    def _closes(self, code: int) -> bool:
        """Whether a websocket is closed. In its handshake this is status 403, as for a token that is not good."""
        can_answer = "websocket.http.response" in (self._scope.get("extensions") or ())
        return self._is_websocket and not (self._first is None and code in _LATER and can_answer)

    async def _end_websocket(self, reason: str, code: int) -> bool:
        """Close or refuse it. Return whether the client was told."""
        if self._first is not None and not self._accepted:  # in the midst of a refusal
            return False
        async with anyio.create_task_group() as tasks:
            if self._accepted:
                tasks.start_soon(self._throw_away)
            if self._last["type"] != "websocket.close":
                text = reason.encode(errors="replace")[:_ROOM].decode(errors="ignore")
                await self._send({"type": "websocket.close", "code": code, "reason": text})
        return True

    async def _throw_away(self) -> None:
        """Throw away what the client still sends, up to its answer."""
        while (await self._receive())["type"] != "websocket.disconnect":
            pass

    async def _end_http(self, reason: str, code: int) -> bool:
        """Answer a request, or a handshake, or end a stream of events. Return whether that could be done."""
        if self._first is None:
            own = None if code in _LATER else self._terms.refusal
            refusal = _plain(reason, code) if own is None else own(reason)
            await refusal(self._scope, self._receive, self._send_last)
            return True
        if not _is_event_stream(self._first.get("headers") or ()):
            return False
        body = f"\n\nevent: revoked\ndata: {json.dumps({'reason': reason, 'code': code})}\n\n".encode()
        if code == CANNOT_VOUCH:
            body = b""  # it was not revoked: clients come back by themselves
        await self._send({"type": "http.response.body", "body": body})
        return True

    async def _send_last(self, message: Message) -> None:
        if message["type"] == "http.response.start" and not self._shared:
            # So that a further request, which waits in it, does not begin to be cut off.
            message = {**message, "headers": [*message.get("headers", ()), (b"connection", b"close")]}
        await self._send({**message, "type": f"websocket.{message['type']}"} if self._is_websocket else message)


def _plain(reason: str, code: int) -> App:
    """The refusal of an application that has none of its own."""

    async def refusal(_scope: Scope, _receive: Receive, send: Send) -> None:
        body = f"{reason or 'it was revoked'}\n".encode(errors="replace")
        headers = [(b"content-type", b"text/plain; charset=utf-8"), (b"content-length", b"%d" % len(body))]
        status, more = _LATER.get(code, _REFUSED)
        await send({"type": "http.response.start", "status": status, "headers": [*headers, more]})
        await send({"type": "http.response.body", "body": body})

    return refusal


def _is_event_stream(headers: Iterable[tuple[bytes, bytes]]) -> bool:
    """Whether an event can be added. It cannot be added to a stream that was compressed further in."""
    known = {bytes(name).lower(): bytes(value) for name, value in headers}
    return known.get(b"content-type", b"").lower().startswith(b"text/event-stream") and b"content-encoding" not in known
