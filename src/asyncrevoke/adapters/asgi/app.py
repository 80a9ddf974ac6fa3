"""The application around yours."""

import asyncio
import inspect
from collections.abc import Awaitable, Callable
from typing import Any

from asyncrevoke.lowlevel import Registry, Revokable, RevokedError, Wait

from .goodbye import CANNOT_VOUCH, GOES, Member, Terms
from .interface import App, Message, Receive, Scope, Send
from .session import Session
from .shutdown import revoke_at_shutdown, revoke_when_terminated

#: A key; or a key and the unix time at which it ends, and the position at which it was issued; or None.
Found = str | tuple[str, ...] | tuple[tuple[str, ...], float | None] | tuple[tuple[str, ...], float | None, Any] | None

_ROOM = 1024  # for nodes of keys, before those are forgotten that nobody uses


class RevokableApp:
    """An ASGI application whose requests and websockets can be revoked: ``app = RevokableApp(app, live, key)``

    Each is a `Session`, which the endpoint finds as ``scope["asyncrevoke"]``. A revocation of its key cancels the
    endpoint, as ``Task.cancel`` does, whatever it awaits. Its clean-up runs, and may await, but it can neither send nor
    receive any more. Meanwhile the client is told:

    - an open websocket is closed, with `close_code` and the reason; in its handshake it is refused, with status 403
    - an event stream gets a last event ``revoked``, whose data is ``{"reason": "...", "code": 4401}``, and ends
    - a request that was not answered yet gets status 401 and the reason
    - any other response is cut off, so that the client does not take it for complete

    Then its connection is closed. If that takes longer than `limit`, it is aborted, whether the endpoint has ended or
    not. An endpoint that has not ended is cancelled again after each `limit`, and `Revocation.stragglers` names it. The
    revocation is complete when endpoint and connection are gone. With ``revoke(..., grace=30)`` running requests may
    finish.

    An endpoint that its framework runs in a thread ends when its function returns, and is a straggler until then. With
    Django and Channels, use `ended_by_disconnect`.

    A route that revokes its own key, as a logout does, would be ended by its own revocation: let `key` return None for
    it.

    A request whose key is being revoked, is not valid, or has expired is refused in the same way. After `live.root` was
    revoked, as at a shutdown, clients get code 1012 and status 503, because their tokens are good. While a member of a
    cluster cannot vouch for them, they get 1013, which is "try again later", and 503; event streams just end.

    Make it the outermost middleware. It finds the connection below the `send` of uvicorn and hypercorn, which run in
    asyncio. Under other servers it aborts nothing, and over HTTP/2 neither, because others use the connection. There it
    leaves it to the server to close and cut off.

    :param live: the registry with the keys, or a `Cluster`, in which they are revoked on every host
    :param key: called with the scope. It returns whose request it is: ``("alice", "token7")``. To add the unix time at
        which that expires: ``(("alice", "token7"), 1767225600)``. In a cluster, to add the position at which it was
        issued: ``(("alice", "token7"), None, position)``. None: nobody's, unless `Session.belongs_to` is called later.
        It may be async. If it raises, the server answers 500, and logs which function failed
    :param valid: called with the parts of the key, once the session is registered. It returns whether the token is
        still good. A look only before that would miss a revocation in between. It may be async, and raise, as `key`
    :param close_code: of websockets. Default: 4401, which clients of GraphQL and others know as "unauthorized"
    :param limit: seconds for telling the client and closing the connection. A clean-up has as long, even if it is
        shielded: then it is cancelled again
    :param refusal: called with the reason. It returns the ASGI application that answers in place of the 401, such as a
        response of Starlette: ``lambda reason: JSONResponse({"error": reason}, 401)``. It is not called if the token is
        good
    :param shutdown: the reason that clients get on SIGTERM and SIGINT: see `revoke_at_shutdown`. None: leave signals
        alone
    :param shutdown_grace: seconds that those who are served then have to finish; websockets and event streams stay so
        long, too
    :raises ValueError: if `limit` or `shutdown_grace` is negative or not a number
    """

    def __init__(
        self,
        app: App,
        live: Registry | Member,
        key: Callable[[Scope], Found | Awaitable[Found]] | None = None,
        *,
        valid: Callable[..., bool | Awaitable[bool]] | None = None,
        close_code: int = 4401,
        limit: float = 2.0,
        refusal: Callable[[str], App] | None = None,
        shutdown: str | None = "the server shuts down",
        shutdown_grace: float = 0.0,
    ) -> None:
        for name, value in ("limit", limit), ("shutdown_grace", shutdown_grace):
            if not 0.0 <= value < float("inf"):
                raise ValueError(f"{name} is {value!r}: give seconds, 0 or more")
        self._app = app
        self._member = None if isinstance(live, Registry) else live
        self._live = live if isinstance(live, Registry) else live.live
        self._key = key
        self._valid = valid
        self._close_code = close_code
        self._terms = Terms(self._enter, self._code, limit, refusal)
        self._shutdown = shutdown
        self._shutdown_grace = shutdown_grace
        self._served = False  # any request yet
        self._waiting: asyncio.Task[None] | None = None  # which the loop alone would not keep
        self._sessions: dict[Session, None] = {}
        self._nodes: dict[tuple[str, ...], Revokable] = {}
        self._room = _ROOM

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Run the application for one connection, as the server does.

        :raises RevokedError: if a response was revoked that only the server can cut off
        """
        if scope["type"] not in ("http", "websocket"):
            await (self._lifespan if scope["type"] == "lifespan" else self._app)(scope, receive, send)
            return
        if not self._served:
            self._served = True
            if self._shutdown is not None:
                self._waiting = revoke_when_terminated(self._live, self._shutdown, self._shutdown_grace, send)
        session = Session(self._terms, scope, receive, send)
        self._sessions[session] = None
        try:
            if self._key is None or await self._admits(session, self._key):
                session.admitted = True
                await self._app(dict(scope, asyncrevoke=session), session.receive, session.send)
        except BaseException as exc:
            if not (session.taken_away and _is_of_that(exc)):
                raise
        finally:
            del self._sessions[session]
            if not session.ended():
                await session.rest()
        if session.taken_away:
            session.raise_rest()

    def _enter(self, key: tuple[str, ...], issued: Any, end: Callable[[Exception], object]) -> Wait:
        """Enter the node of a key. It is the same node as long as it has a user, so a node that is being revoked admits
        nobody.
        """
        if self._member is not None:
            self._member.check(*key, issued=issued)  # nothing comes between this and to enter
        operation = Wait(self._nodes.get(key) or self._node(key), end)
        try:
            operation.enter()
        except RevokedError:
            if not operation.node.released:
                raise
            operation.node = self._node(key)
            operation.enter()
        return operation

    def _node(self, key: tuple[str, ...]) -> Revokable:
        """Make a node of a key. It is kept as long as there is room, or somebody uses it."""
        if len(self._nodes) >= self._room:
            self._nodes = {known: each for known, each in self._nodes.items() if each.in_use}
            self._room = max(_ROOM, 2 * len(self._nodes))
        node = self._nodes[key] = self._live[key]
        return node

    def _code(self, reason: str) -> int:
        """The code that closes websockets now, for that reason. A member may have caught up since it gave a reason of
        its own.
        """
        if self._live.root.revoked:
            return GOES
        member = self._member
        return self._close_code if member is None or (member.admits and not member.is_own(reason)) else CANNOT_VOUCH

    async def _lifespan(self, scope: Scope, receive: Receive, send: Send) -> None:
        if self._shutdown is None:
            await self._app(scope, receive, send)
            return
        give_back = revoke_at_shutdown(
            self._live, self._shutdown, grace=self._shutdown_grace, limit=self._terms.limit + 1
        )

        async def ends(message: Message) -> None:  # else it has none, and its clients are told all the same
            if message["type"] != "lifespan.startup.complete":
                give_back()
            await send(message)

        await self._app(scope, receive, ends)

    async def _admits(self, session: Session, function: Callable[..., Any]) -> bool:
        """Ask the key function, register the session, and only then check whether the token is good."""
        asked = "the key function"
        try:
            found = function(session.scope)
            if type(found) is not tuple and inspect.isawaitable(found):
                found = await found
            parts, expires, issued = _parsed(found)
            if parts:
                session.enter(parts, expires, issued)
                if self._valid is not None and not session.taken_away:
                    asked, function = "the function valid", self._valid
                    valid = function(*parts)
                    if not (await valid if inspect.isawaitable(valid) else valid):
                        session.revoke("the token is not valid")
        except RevokedError:
            raise
        except Exception as exc:
            raise RuntimeError(f"{asked} {function!r} failed on {session.name!r}: {exc!r}") from exc
        return not session.taken_away

    def sessions(self) -> list[dict[str, Any]]:
        """List the connected sessions as JSON, for an admin's page: their keys, what is open and of which type, the
        client's address, and since when. Show it only to users who may know this.
        """
        return [session.facts for session in self._sessions]


def _is_of_that(exc: BaseException) -> bool:
    """Whether the error says only that the session was revoked."""
    if isinstance(exc, BaseExceptionGroup):
        return all(map(_is_of_that, exc.exceptions))
    # Litestar, for one, wraps what `send` has raised; Starlette takes that for the client's, as it is an OSError.
    wrapped = exc.__context__ if type(exc).__name__ == "ClientDisconnect" else exc.__cause__
    return isinstance(exc, RevokedError | asyncio.CancelledError) or isinstance(wrapped, RevokedError)


def _parsed(found: object) -> tuple[tuple[str, ...], float | None, Any]:
    """Return the key, when it expires, and where it was issued."""
    if isinstance(found, tuple) and found and isinstance(found[0], str):  # most are
        return found, None, None
    match found:
        case None:
            return (), None, None
        case str():
            return (found,), None, None
        case (tuple() as key, int() | float() | None as expires, *issued) if key and len(issued) < 2:
            return key, expires, issued[0] if issued else None
    raise TypeError(f"{found!r} is not a key: return a tuple of strings, such a tuple and when it expires, or None")
