"""Write an adapter of your own, here for a queue, and check that it keeps the contract."""

import anyio

from asyncrevoke import Revokable, RevokedError
from asyncrevoke.testing import check_revokable


class Mailbox:
    """Messages for one, until it is taken away. Two lines an operation: the bracket, and the work."""

    def __init__(self) -> None:
        self._send, self._receive = anyio.create_memory_object_stream[str](10)
        self.handle = Revokable("mailbox", release=self._release)

    async def get(self) -> str:
        with self.handle.using(idle=True):
            return await self._receive.receive()

    async def put(self, message: str) -> None:
        with self.handle.using():
            await self._send.send(message)

    def _release(self) -> None:
        self._send.close()
        self._receive.close()
