"""The shares of console servers, for a page: each request is made at their control sockets, in the name of its user."""

from __future__ import annotations

import base64
import contextlib
import json
from collections.abc import AsyncIterator
from typing import Any

import anyio
from starlette.websockets import WebSocket, WebSocketDisconnect

from asyncrevoke.console.sockets import Servers, look
from asyncrevoke.control.client import Control, Record
from asyncrevoke.control.lines import VERSION, ControlError

MODES = "write", "watch", "force"
_SHOWN = "name", "device", "state", "reason", "keyboard"
_WINDOW = 16  # records of output that the browser has not drawn yet


class Shares:
    """What console servers share.

    :param socket: of the one server; left empty: all that `asyncrevoke ls` finds
    :param me: the user who runs this, whose rights need no mention
    """

    def __init__(self, socket: str, me: str) -> None:
        self._socket = socket
        self._me = me

    async def _look(self, user: str) -> Servers:
        return await look(self._socket, "" if user == self._me else user)

    async def seen_by(self, user: str) -> list[Record]:
        """What a user may see, and who is attached there. A server that cannot be asked shows nothing."""
        try:
            async with await self._look(user) as servers:
                found = await servers.shares()
        except OSError:
            return []
        return [
            {key: share[key] for key in _SHOWN} | {"people": [each["name"] for each in share["who"]]}
            for shares in found.values()
            for share in shares
        ]

    async def revoke(self, user: str, path: str, reason: str) -> str:
        """Take away a share, one of its clients, or that one's keyboard.

        :raises ControlError: if it is unknown, or this user may not
        """
        if not (name := path.partition("/")[0]):  # it would be a path in the file system, looked up with our rights
            raise ControlError("unknown-path", f"no share is named {path!r}")
        async with self._sharing(name, user) as control:
            answer = await control.revoke(path, reason)
        report = answer["report"]
        left = "" if answer["done"] else f", {report['remaining']} still in use"
        return f"{report['released']} released{left}"

    async def attach(self, websocket: WebSocket, user: str, name: str, mode: str) -> str:
        """Show a share, and type what the browser sends, until it ends; it returns why.

        Text for the browser is a record of the control protocol, bytes are output. It sends "read" for each of these, keys as
        bytes, and its size, or that it wants the keyboard or gives it back.

        :raises ControlError: if it was taken away
        :raises ValueError: if the browser sends what is not understood
        :raises WebSocketDisconnect: if the browser has gone
        """
        async with self._sharing(name, user) as control:
            await control.send({"v": VERSION, "do": "attach", "name": name, "mode": mode, "wait": True})
            undrawn = anyio.Semaphore(_WINDOW, max_value=_WINDOW)
            async with anyio.create_task_group() as tasks:
                tasks.start_soon(_hear, websocket, control, undrawn)
                while "ok" not in (record := await control.receive()):
                    if "data" in record:
                        await undrawn.acquire()
                        await websocket.send_bytes(base64.b64decode(record["data"]))
                    else:
                        await websocket.send_json(record)
                tasks.cancel_scope.cancel()
        return str(record["ended"])

    @contextlib.asynccontextmanager
    async def _sharing(self, name: str, user: str) -> AsyncIterator[Control]:
        try:
            servers = await self._look(user)
        except OSError as exc:
            raise ControlError("unknown-path", f"the console server does not answer: {exc.strerror}") from exc
        async with servers:
            yield await servers.sharing(name)


async def _hear(websocket: WebSocket, control: Control, undrawn: anyio.Semaphore) -> None:
    while (message := await websocket.receive())["type"] == "websocket.receive":
        sent: Any = json.loads(message["text"]) if message.get("text") is not None else message["bytes"]
        match sent:
            case "read":
                undrawn.release()
            case bytes():
                await control.send({"data": base64.b64encode(sent).decode()})
            case [int(rows), int(columns)] if 0 < rows < 1000 and 0 < columns < 1000:
                await control.send({"size": [rows, columns]})
            case "take" | "give":
                await control.send({sent: True})
            case _:
                raise ValueError(sent)
    raise WebSocketDisconnect
