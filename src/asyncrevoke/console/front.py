"""Through what a client sees a share and types: a control socket, or whatever else there may be."""

from __future__ import annotations

import base64
import functools
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any, Protocol

import anyio

from asyncrevoke.control.lines import Connection, ControlError

if TYPE_CHECKING:
    from .client import Client


class Front(Protocol):
    """One person's end: what a `Client` needs of it."""

    def show_now(self, data: bytes) -> bool:
        """Show output, if all of it is taken at once, and report whether it was. It never waits."""

    async def show(self, data: bytes) -> None:
        """Show output. If the person does not take it for too long, revoke this end."""

    async def tell(self, news: Mapping[str, Any]) -> None:
        """Tell what the control protocol calls a record, as far as there is a way to tell it here."""

    async def hear(self, client: Client) -> str:
        """Have the client do what the person does, until this end has gone; it returns how."""


class SocketFront:
    """A connection of the control protocol, in whose lines everything is told."""

    def __init__(self, connection: Connection) -> None:
        self._connection = connection

    def show_now(self, data: bytes) -> bool:
        return self._connection.send_now(_line(data))

    async def show(self, data: bytes) -> None:
        await self._connection.send(_line(data))

    async def tell(self, news: Mapping[str, Any]) -> None:
        await self._connection.send(news)

    async def hear(self, client: Client) -> str:
        """Obey the lines of a client.

        :raises ControlError: "bad-request"
        """
        while True:
            try:
                line = await self._connection.receive()
            except anyio.EndOfStream:  # nothing more is typed; if it has gone, the request is cancelled
                await anyio.sleep_forever()
            if "data" in line:
                await client.type(_bytes(line["data"]))
            elif line.get("interrupt") is True:
                await client.interrupt()
            elif "size" in line:
                client.resize(size(line["size"]))
            elif line.get("detach") is True:
                await client.detach()
            else:
                raise ControlError("bad-request", "attached, send 'data', 'size', 'interrupt' or 'detach'")


@functools.lru_cache(maxsize=1)  # it is the same for all clients
def _line(data: bytes) -> bytes:
    return b'{"data":"%b"}\n' % base64.b64encode(data)


def _bytes(value: object) -> bytes:
    try:
        return base64.b64decode(value, validate=True)  # type: ignore[arg-type]  # what it is not, it says
    except (TypeError, ValueError) as exc:
        raise ControlError("bad-request", f"'data' must be Base64: {exc}") from exc


def size(value: object) -> tuple[int, int] | None:
    """Rows and columns of a window, as the control protocol has them.

    :raises ControlError: "bad-request"
    """
    if value is None:
        return None
    if isinstance(value, list) and len(value) == 2 and all(type(each) is int and 0 < each < 1000 for each in value):
        return value[0], value[1]
    raise ControlError("bad-request", "'size' must be [rows, columns], each from 1 to 999")
