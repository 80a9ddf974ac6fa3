"""The lines of the control protocol, one JSON object each. docs/control-protocol.md explains them."""

import json
import os
from collections.abc import Mapping
from typing import Any, NoReturn

import anyio
import anyio.abc
import anyio.lowlevel
from anyio.streams.buffered import BufferedByteReceiveStream

from asyncrevoke.lowlevel import FdStream, RevokedError

from .peer import Peer

VERSION = 1
LINE_ERRORS = ("garbage", "too-long", "cut-off")  # after which the lines are not to be trusted
LIMIT = 65536  # bytes of a line, its newline included
_TOO_LONG = f"a line is longer than {LIMIT} bytes"
_to_json = json.JSONEncoder(separators=(",", ":")).encode


class ControlError(Exception):
    """An error that the other side of a control socket reported, or a fault in what it sent.

    :ivar code: one of those in docs/control-protocol.md
    """

    def __init__(self, code: str, message: str) -> None:
        super().__init__(message)
        self.code = code


class Lines:
    """JSON lines over a byte stream, both ways."""

    def __init__(self, stream: anyio.abc.ByteStream) -> None:
        self._stream = stream
        self._received = BufferedByteReceiveStream(stream)

    async def receive(self) -> dict[str, Any]:
        """Receive a line.

        :raises ~anyio.EndOfStream: at the end
        :raises ControlError: "garbage", "too-long" or "cut-off"
        :raises: what the stream raises
        Cancellation: nothing was consumed.
        """
        while True:
            try:
                line = await self._received.receive_until(b"\n", LIMIT)
            except anyio.DelimiterNotFound as exc:
                raise ControlError("too-long", _TOO_LONG) from exc
            except anyio.IncompleteRead as exc:
                if not self._received.buffer:
                    raise anyio.EndOfStream from exc
                raise ControlError("cut-off", "the last line has no end") from exc
            if len(line) >= LIMIT:  # its end came with what made it too long
                raise ControlError("too-long", _TOO_LONG)
            if line.strip():
                return decode(line)
            await anyio.lowlevel.checkpoint()  # a peer that sends only newlines must not keep the loop busy

    async def send(self, *records: Mapping[str, Any] | bytes) -> None:
        """Send records, a line each. Bytes are lines already, as `encode` makes them.

        :raises ValueError, TypeError: if a record is too long for a line, or not JSON. Then nothing was sent
        :raises: what the stream raises
        Cancellation: any part may have been sent.
        """
        await self._stream.send(b"".join(each if isinstance(each, bytes) else encode(each) for each in records))


class Connection(Lines):
    """The lines to and from a client. It is revoked if it does not receive what it is sent.

    :param room: bytes that the socket keeps, its SO_SNDBUF
    :ivar whole: longest line, in bytes, that the socket takes as a whole or not at all
    """

    def __init__(self, stream: FdStream, peer: Peer, patience: float, room: int) -> None:
        super().__init__(stream)
        self.peer = peer
        self.handle = stream.handle
        self.revoke = stream.revoke
        self.life = anyio.CancelScope(shield=True)  # is over when the descriptor is closed
        self.request = anyio.CancelScope()  # that is answered now or next; is over when the client has gone
        self._fileno = stream.fileno
        self._patience = patience
        self.whole = min(room // 2 - 64, 32768)  # one buffer's, see unix_stream_sendmsg (net/unix/af_unix.c)
        self._turn = anyio.Lock()

    def send_now(self, line: bytes) -> bool:
        """Send a line at once, and report whether that was done. It is not if the line is long, or the socket full or in use.

        It never waits, so it needs no operation.
        """
        if len(line) > self.whole or self._turn.locked() or self.handle.revoked:
            return False
        try:
            return os.write(self._fileno(), line) == len(line)
        except OSError:  # the socket is full, or broken, as `send` finds out
            return False

    async def send(self, *records: Mapping[str, Any] | bytes, why: str = "") -> None:
        """Send them, as `Lines.send`.

        :param why: reason that the client gets in its last line, if it does not receive the records
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


def encode(record: Mapping[str, Any]) -> bytes:
    """Make a line of a record.

    :raises ValueError, TypeError: as `Lines.send`
    """
    line = _to_json(record).encode() + b"\n"
    if len(line) > LIMIT:
        raise ValueError(f"{_TOO_LONG}: {line[:60]!r}...")
    return line


def decode(line: bytes) -> dict[str, Any]:
    """Read a line.

    :raises ControlError: "garbage"
    """
    try:
        record = json.loads(line.decode(), parse_constant=_refuse)
    except (ValueError, RecursionError) as exc:
        raise ControlError("garbage", f"a line is no JSON: {exc}") from exc
    if not isinstance(record, dict):
        raise ControlError("garbage", f"a line is no JSON object, but begins with {line[:20]!r}")
    return record


def _refuse(constant: str) -> NoReturn:
    raise ValueError(f"{constant} is no number")


def short(text: str, most: int = 20_000) -> str:
    """Cut a name or a reason so that three of them fit in a line. Those of nodes may be of any length.

    :param most: bytes as JSON, where a character takes up to twelve
    """
    if len(text) <= most // 12 or (len(text) <= most and len(json.dumps(text)) <= most):
        return text
    return text[: most // 12] + "…"
