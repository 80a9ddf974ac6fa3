"""What one writes without a library, and without its guarantees: the floor."""

from __future__ import annotations

import asyncio
import os
from typing import Self


class ByHand:
    """A reader: try first, and keep the descriptor registered from one wait to the next."""

    def __init__(self, fd: int) -> None:
        os.set_blocking(fd, False)
        self._fd = fd
        self._loop = asyncio.get_running_loop()
        self._waiter: asyncio.Future[None] | None = None
        self._registered = False

    async def receive(self, max_bytes: int = 65536) -> bytes:
        while True:
            try:
                return os.read(self._fd, max_bytes)
            except BlockingIOError:
                pass
            if not self._registered:
                self._loop.add_reader(self._fd, self._ready)
                self._registered = True
            self._waiter = self._loop.create_future()
            try:
                await self._waiter
            finally:
                self._waiter = None

    def _ready(self) -> None:
        if self._waiter is None:
            self._loop.remove_reader(self._fd)
            self._registered = False
        elif not self._waiter.done():
            self._waiter.set_result(None)

    def close(self) -> None:
        self._loop.remove_reader(self._fd)
        os.close(self._fd)

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(self, *_: object) -> None:
        self.close()


class Copy:
    """What one of several readers has not received yet."""

    def __init__(self) -> None:
        self._data = bytearray()
        self._waiter: asyncio.Future[None] | None = None

    def feed(self, data: bytes) -> None:
        self._data += data
        if self._waiter is not None and not self._waiter.done():
            self._waiter.set_result(None)

    async def receive(self, _max_bytes: int) -> bytes:
        if not self._data:
            self._waiter = asyncio.get_running_loop().create_future()
            await self._waiter
        data = bytes(self._data)
        self._data.clear()
        return data
