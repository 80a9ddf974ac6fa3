"""The client of a control server: list, watch and take away what is open in another process."""

from __future__ import annotations

import contextlib
import errno
import os
import socket
from collections.abc import AsyncIterator, Mapping, Sequence
from typing import Any

import anyio
import anyio.abc

from asyncrevoke.lowlevel import FdStream, off_loop, places, printable

from .lines import VERSION, ControlError, Lines

Record = dict[str, Any]
_NAMED = {"path": str, "kind": str, "since": float | int | None}
_USER = _NAMED | {"name": str, "where": str}
_NODE = _NAMED | {"generation": int | None, "state": str, "in_use": int, "open": int, "reason": str}
_EVENT = {"event": str, "path": str, "generation": int | None, "reason": str, "who": str}
_HUGE = 1e15  # no server counts so far; beyond it, numbers do not always become floats
_REVOKED = {"done": bool, "report": dict, "stragglers": list}
_REPORT = dict.fromkeys(("kicked", "released", "remaining", "unclosed"), int) | {
    "name": str,
    "reason": str,
    "seconds": float | int,
    "errors": list,
}


async def connect(path: str | os.PathLike[str]) -> Control:
    """Connect to a control server: ``async with await connect(path) as control: ...``

    :raises OSError: if no server listens at `path`, or you may not connect
    """
    path = os.fspath(path)
    connection = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    try:
        connection.setblocking(False)
        while True:
            with contextlib.suppress(BlockingIOError):  # its queue is full
                connection.connect(path)
                break
            await anyio.sleep(0.05)
        stream = FdStream(connection.fileno(), name=path)
        connection.detach()
        return Control(stream)
    except OSError as exc:  # an error without a number is about the length
        why = exc.strerror or str(exc)
        raise OSError(exc.errno or errno.ENAMETOOLONG, f"no control server can be reached: {why}", path) from exc
    finally:
        connection.close()


class Control(anyio.abc.AsyncResource):
    """A connection to a control server, as `connect` makes it. It has one request at a time.

    :raises ControlError: from each request, if the server refuses it, or has taken this connection away. Its `code` says
        which
    Cancellation: after a cancelled request the connection is of no use. Close it.
    """

    def __init__(self, stream: anyio.abc.ByteStream) -> None:
        self._stream = stream
        self._lines = Lines(stream)

    async def aclose(self) -> None:
        """Close the connection."""
        await self._stream.aclose()

    async def act_as(self, user: str) -> None:
        """Take on the rights of another user of the server's machine. Only root and the server's owner may do this.

        :raises ControlError: "forbidden", if you may not, or that user may not connect, or does not exist
        """
        async for _ in self.request("as", user=user):
            pass

    async def list(self, path: str = "", *, who: bool = False) -> list[Record]:
        """Return a record for each node at `path` and below: the object that the protocol has under ``node``. With `who`,
        each has its `users`.
        """
        nodes: list[Record] = []
        async for record in self.request("list", path=path, who=who):
            if "node" in record:
                nodes.append({"by": ""} | as_record(_NODE, record["node"]) | ({"users": []} if who else {}))
            elif who and "user" in record and nodes:
                nodes[-1]["users"].append(as_record(_USER, record["user"]))
        return nodes

    async def revoke(
        self,
        path: str | Sequence[str],
        reason: str = "",
        *,
        below: bool = False,
        grace: float = 0.0,
        timeout: float | None = 30.0,  # noqa: ASYNC109
    ) -> Record:
        """Take away what is at `path`, and wait until it is gone, or until the timeout.

        :param path: path of a node, as listed. If there is no such node and it begins with a slash, it is the path of a
            device, or of a directory of devices, which are hung up. A thread of this process looks it up, with its rights.
            Of several paths all are taken away at once, or, if one is not there, none
        :param below: take away all below the node, and not the node itself. With an empty path: everything
        :param timeout: seconds, or None for a day. After that `done` is false, `stragglers` names the users inside, and
            the revocation goes on
        :returns: `done`, `report` and `stragglers`
        """
        path = path if isinstance(path, str) else list(path)
        fields = {"path": path, "below": below, "reason": reason, "grace": grace, "timeout": timeout}
        try:
            return await self._revoke(**fields)
        except ControlError as error:
            if not isinstance(path, str) or not path.startswith("/") or error.code not in ("unknown-path", "forbidden"):
                raise
            try:
                found = await off_loop(lambda: places(path))
            except (OSError, ValueError, LookupError) as exc:
                raise ControlError(error.code, f"{error}: {exc}") from exc
        return await self._revoke(places=found, **fields)

    async def _revoke(self, **fields: Any) -> Record:
        last: Record = {}
        async for record in self.request("revoke", **fields):
            last = as_record(_REVOKED, record)
        as_record(_REPORT, last.get("report"))
        for user in last["stragglers"]:
            as_record(_USER, user)
        return last

    def watch(self, path: str = "") -> AsyncIterator[Record]:
        """Yield each event at `path` and below, from now on. The first record says that the watch has begun."""
        return _Answer(self, {"v": VERSION, "do": "watch", "path": path}, unwrap="event")

    def request(self, do: str, **fields: Any) -> AsyncIterator[Record]:
        """Send a request, and yield the lines of its answer. The last one has "ok" in it."""
        return _Answer(self, {"v": VERSION, "do": do, **fields})

    async def send(self, record: Record) -> None:
        """Send a line.

        :raises ControlError: if the server has gone, with its reason. "too-long", if the record does not fit into a line
        """
        try:
            await self._lines.send(record)
        except ValueError as exc:
            raise ControlError("too-long", str(exc)) from exc
        except anyio.BrokenResourceError:
            with contextlib.suppress(anyio.BusyResourceError), anyio.move_on_after(1):  # a busy reader is told instead
                while True:
                    await self.receive()  # what it had said before
            raise ControlError("gone", "the server has gone") from None

    async def receive(self) -> Record:
        """Receive a line.

        :raises ControlError: if the line tells of an error, or the server has gone
        """
        try:
            record = await self._lines.receive()
        except ControlError as error:
            if error.code != "garbage":
                raise
            with contextlib.suppress(anyio.EndOfStream, anyio.BrokenResourceError):  # cut off, when the connection was
                record = await self._lines.receive()
                self._raise(record)
            raise
        except (anyio.EndOfStream, anyio.BrokenResourceError):
            raise ControlError("gone", "the server has gone without a word") from None
        self._raise(record)
        return record

    def _raise(self, record: Record) -> None:
        if "error" in record:
            raise ControlError(str(record["error"]), printable(str(record.get("message", ""))))


class _Answer(AsyncIterator[Record]):
    """The lines that answer a request. It is no generator, because one that is left early has to be closed."""

    def __init__(self, control: Control, request: Record, unwrap: str = "") -> None:
        self._control = control
        self._request: Record | None = request
        self._unwrap = unwrap
        self._over = False

    async def __anext__(self) -> Record:
        if self._over:
            raise StopAsyncIteration
        request, self._request = self._request, None
        if request is not None:
            await self._control.send(request)
        record = await self._control.receive()
        self._over = "ok" in record
        return {"by": ""} | as_record(_EVENT, record[self._unwrap]) if self._unwrap in record else record


def as_record(fields: Mapping[str, Any], record: object) -> Record:
    """Return the record, if it has these fields, and numbers that can be shown.

    :raises ControlError: "garbage"
    """
    if isinstance(record, dict) and all(name in record and _fits(record[name], kind) for name, kind in fields.items()):
        return record
    raise ControlError("garbage", f"the server sent what makes no sense: {str(record)[:100]}")


def _fits(value: object, kind: Any) -> bool:
    return isinstance(value, kind) and (not isinstance(value, int | float) or abs(value) < _HUGE)
