"""Write an adapter of your own, here for a mailbox, and check that it keeps the contract."""

import contextlib
from collections.abc import AsyncIterator

import anyio
import anyio.lowlevel

from asyncrevoke import Revokable
from asyncrevoke.testing import Subject, check_revokable


class Mailbox:
    """Messages, until it is taken away. An operation is a checkpoint, the bracket, and the work."""

    def __init__(self) -> None:
        self._sender, self._receiver = anyio.create_memory_object_stream[str](10)
        self.handle = Revokable("mailbox", release=self._release)

    async def get(self) -> str:
        await anyio.lowlevel.checkpoint()
        with self.handle.using(idle=True):
            return await self._receiver.receive()

    def _release(self) -> None:
        self._sender.close()
        self._receiver.close()


@contextlib.asynccontextmanager
async def make() -> AsyncIterator[Subject]:
    mailbox = Mailbox()
    yield Subject(mailbox.handle, wait=mailbox.get, gone=lambda: mailbox.handle.released)


anyio.run(check_revokable, make)
print("a mailbox keeps the contract")
