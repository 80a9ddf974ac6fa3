"""The connection through which a client sees a share and types. A control socket is one."""

from __future__ import annotations

import base64
import functools
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any, Protocol

import anyio

from asyncrevoke.control.lines import Connection, ControlError, short
from asyncrevoke.control.request import Request

from .shared_port import CHANGES

if TYPE_CHECKING:
    from .client import Client

_PORT = CHANGES | {"port"}
_LONGEST = 1000  # characters of a line to the others


class Front(Protocol):
    """One person's end: what a `Client` needs of it."""

    def show_now(self, data: bytes) -> bytes:
        """Show as much output as is taken at once, and return the rest. It never waits."""

    async def show(self, data: bytes) -> None:
        """Show output. If the person does not take it for too long, revoke this end."""

    async def tell(self, news: Mapping[str, Any]) -> None:
        """Tell a record of the control protocol, as far as this connection can."""

    async def hear(self, client: Client) -> str:
        """Have the client do what the person does, until this end has gone. Return how it went."""


class Refused(Exception):
    """A request of a person is refused. The person stays attached.

    :ivar what: field of the line that made the request
    """

    def __init__(self, what: str, why: str) -> None:
        super().__init__(why)
        self.what = what


class SocketFront:
    """A connection of the control protocol. Its lines tell everything."""

    def __init__(self, connection: Connection) -> None:
        self._connection = connection

    def show_now(self, data: bytes) -> bytes:
        return b"" if self._connection.send_now(_line(data)) else data

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
            try:
                await self._obey(line, client)
            except Refused as exc:
                await self._connection.send({"refused": exc.what, "message": short(str(exc))})

    async def _obey(self, line: Mapping[str, Any], client: Client) -> None:
        match line:
            case {"data": data}:
                await client.type(_bytes(data))
            case {"interrupt": True}:
                await client.interrupt()
            case {"size": window}:
                client.resize(size(window))
            case {"detach": True}:
                await client.detach()
            case {"take": True}:
                client.take()
            case {"give": True}:
                client.give()
            case {"say": text}:
                client.say(_text(text))
            case {"who": True}:
                await self._connection.send({"who": client.who()})
            case _ if _PORT & line.keys():
                await self._ask_port(line, client)
            case _:
                raise ControlError("bad-request", f"attached, none of these can be sent: {', '.join(map(repr, line))}")

    async def _ask_port(self, line: Mapping[str, Any], client: Client) -> None:
        try:
            answer = await client.ask_port(Request(self._connection.peer, self._connection, line))
        except ControlError as error:
            raise Refused(min(_PORT & line.keys()), str(error)) from error
        await self._connection.send({"port": answer})


@functools.lru_cache(maxsize=1)  # it is the same for all clients
def _line(data: bytes) -> bytes:
    return b'{"data":"%b"}\n' % base64.b64encode(data)


def _bytes(value: object) -> bytes:
    try:
        return base64.b64decode(value, validate=True)  # type: ignore[arg-type]  # what it is not, it says
    except (TypeError, ValueError) as exc:
        raise ControlError("bad-request", f"'data' must be Base64: {exc}") from exc


def _text(value: object) -> str:
    if isinstance(value, str) and value.isprintable() and 0 < len(value) <= _LONGEST:
        return value
    raise ControlError("bad-request", f"'say' must be text of 1 to {_LONGEST} printable characters")


def size(value: object) -> tuple[int, int] | None:
    """Return the rows and columns of a window, as in the control protocol.

    :raises ControlError: "bad-request"
    """
    if value is None:
        return None
    if isinstance(value, list) and len(value) == 2 and all(type(each) is int and 0 < each < 1000 for each in value):
        return value[0], value[1]
    raise ControlError("bad-request", "'size' must be [rows, columns], each from 1 to 999")
