"""One request or websocket, and whose it is."""

import asyncio
import logging
import time
from collections.abc import MutableMapping
from typing import Any

from asyncrevoke.lowlevel import Registry, Revocation, Revokable, RevokedError, printable

from .exchange import Exchange

logger = logging.getLogger("asyncrevoke")

_DAY = 86400.0  # the longest that a timer runs before it looks at the clock again


class Session:
    """A request or websocket: ``session = scope["asyncrevoke"]``

    :ivar handle: what is taken away. Open on it whatever shall go with the session: ``open_pty(..., owner=session.handle)``,
        ``session.handle.open()``, ``also=[session.handle]``. It is closed, with all that is open on it, when the endpoint ends
    :ivar scope: that of the server
    :ivar keys: those it belongs to
    :ivar since: the unix time at which it began
    """

    __slots__ = ("_exchange", "_expires", "_live", "_nodes", "_timer", "handle", "keys", "scope", "since")

    def __init__(self, live: Registry, nodes: MutableMapping[tuple[str, ...], Revokable], exchange: Exchange) -> None:
        self.scope = exchange.scope
        self.handle = Revokable(f"{self.scope.get('method', 'websocket')} {self.scope['path']}")
        self.keys: list[tuple[str, ...]] = []
        self.since = time.time()
        self._exchange = exchange
        self._live = live
        self._nodes = nodes
        self._expires = float("inf")
        self._timer: asyncio.TimerHandle | None = None

    def belongs_to(self, *key: str, expires: float | None = None) -> None:
        """Be part of a key from now on: ``session.belongs_to("alice", "token7")``. May be called for further keys.

        Look whether the token is good after this, not only before: it may be revoked in between.

        :param expires: the unix time at which it is taken away by itself. Of several, the earliest counts
        :raises RevokedError: if this key is just being revoked. The session is taken away, too: let the error pass
        :raises TypeError: if a part of the key is no string, or there is none
        """
        node = self._nodes.get(key)
        if node is None or (node.revoked and node.released):  # else the token is refused until it is gone
            node = self._nodes[key] = self._live[key]
        try:
            self.handle.join(node)
        except RevokedError as error:
            self.handle.revoke(error.reason)
            raise
        self.keys.append(key)
        if expires is not None and not expires >= self._expires:
            self._expires = expires
            self._look_at_clock()

    @property
    def facts(self) -> dict[str, Any]:
        """What there is to tell about it, as JSON has it."""
        client = self.scope.get("client")
        return {
            "keys": self.keys,
            "what": self.handle.name,
            "type": self.scope["type"],
            "client": client and client[0],
            "since": self.since,
        }

    def _look_at_clock(self) -> None:
        """Take it away when its time is over. The clock may be set meanwhile, so the timer asks it again."""
        if self._timer is not None:
            self._timer.cancel()
        left = self._expires - time.time()
        if left > 0:
            self._timer = asyncio.get_running_loop().call_later(min(left, _DAY), self._look_at_clock)
        else:
            self.handle.revoke("the token has expired")

    def taken_away(self) -> None:
        """The kick has come. The client is told while the endpoint ends, and even if it does not; the release waits for that."""
        path, reason = self.handle.path, self.handle.reason
        why = printable(reason) or "no reason given"
        logger.info("%s of %s was taken away: %s", printable(path), (self.scope.get("client") or "?")[0], why)
        self._exchange.refusal = lambda: RevokedError(self.handle)
        told = Revokable(f"goodbye to {path}", release=lambda: self._exchange.end(reason, gone=self._live.root.revoked))
        act = told.revoke(reason)
        self.handle.release = lambda: act

    def close(self) -> Revocation:
        """The endpoint has ended: so does what it has opened."""
        if self._timer is not None:
            self._timer.cancel()
        return self.handle.close()
