"""The server's side of one connection."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import anyio

from asyncrevoke.lowlevel import FdStream, RevokedError

from .lines import ControlError, Lines, encode, short
from .peer import Peer


class Connection(Lines):
    """The lines to and from a client, which is revoked if it does not take what it is sent."""

    def __init__(self, stream: FdStream, peer: Peer, patience: float) -> None:
        super().__init__(stream)
        self.peer = peer
        self.handle = stream.handle
        self.revoke = stream.revoke
        self.life = anyio.CancelScope(shield=True)  # is over when the descriptor is closed
        self.request = anyio.CancelScope()  # that is answered now or next; is over when the client has gone
        self._patience = patience
        self._turn = anyio.Lock()

    async def send(self, *records: Mapping[str, Any] | bytes, why: str = "") -> None:
        """Send them, as `Lines.send`.

        :param why: what the client is told if he does not receive them, in the last line that he gets
        """
        with anyio.move_on_after(self._patience) as waiting:
            async with self._turn:
                await super().send(*records)
        if waiting.cancelled_caught:
            self.revoke(why or f"it has not received for {self._patience:g} s")
            raise RevokedError(self.handle)

    async def refuse(self, error: ControlError) -> None:
        """Send the error that ends an answer."""
        await self.send(refusal(error.code, str(error)), why=str(error))


def refusal(code: str, message: str) -> bytes:
    return encode({"error": code, "message": short(message)})
