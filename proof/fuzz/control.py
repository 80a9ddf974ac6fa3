"""Lines of the control protocol, or what is none.

They are pipelined over many connections to a real server on its Unix socket. What must come back is worked out from what was
sent: as many answers, each a well-formed line. The part of the tree that no valid request takes away stays.
"""

from __future__ import annotations

import asyncio
import contextlib
import itertools
import json
import random
import socket
import tempfile
from collections.abc import AsyncIterator, Callable
from typing import Any

import anyio
from mutation import One

from asyncrevoke import Registry
from asyncrevoke.control import serve

PER_BATCH = 40
LIMIT = 65536
LIST = b'{"v":1,"do":"list"}\n'
ODD: list[Any] = [
    None,
    True,
    False,
    0,
    1,
    -1,
    2,
    0.5,
    1e400,
    -1e9,
    10**40,
    "",
    "*",
    "prey",
    "keep",
    "/dev/null",
]
ODD += [
    "\0",
    "\n",
    "\ud800",
    "é" * 5000,
    "x" * 4097,
    [],
    [1],
    {},
    {"v": 1},
    [[[]]],
    "list",
    "revoke",
    "watch",
    "\x1b[2J",
]


# -- what is sent --


def request(rng: random.Random) -> dict[str, Any]:
    fields: dict[str, Any] = {"v": 1, "do": rng.choices(("list", "revoke", "watch", "attach"), (40, 40, 5, 15))[0]}
    for name, values in {
        "path": ("prey", "prey/1", "prey/2", "keep", "", "/dev/null", "nothing"),
        "places": ([], [["c", 259]], [["b", 1], ["i", 2, 3]]),
        "reason": ("", "maintenance", "ü"),
        "grace": (0, 0.5, 86400),
        "timeout": (0, 30, None),
        "who": (False, True),
        "below": (False, True),
    }.items():
        if rng.random() < 0.6:
            fields[name] = rng.choice(values)
    return fields


def wrong_types(rng: random.Random) -> bytes:
    fields = request(rng)
    for name in rng.sample(
        ["v", "do", "path", "places", "reason", "grace", "timeout", "who", "below", "extra"], rng.randint(1, 3)
    ):
        if rng.random() < 0.2:
            fields.pop(name, None)
        else:
            fields[name] = rng.choice(ODD)
    return json.dumps(fields, ensure_ascii=rng.random() < 0.5).encode(errors="surrogatepass") + b"\n"


def mutated(rng: random.Random) -> bytes:
    data = bytearray(json.dumps(request(rng)).encode() + b"\n")
    for _ in range(rng.randint(1, 4)):
        start = rng.randrange(len(data))
        end = min(len(data), start + rng.randint(0, 8))
        data[start:end] = rng.choice((b"", rng.randbytes(end - start), data[start:end] * 2, b'"', b"{", b"\n", b"\xff"))
        data = data or bytearray(b" ")
    return bytes(data)


def huge(rng: random.Random) -> bytes:
    size = rng.choice((LIMIT - 40, LIMIT, LIMIT + 1, 3 * LIMIT))
    return b'{"v":1,"do":"list","x":"' + b"x" * size + rng.choice((b'"}\n', b'"}', b"[" * 99))


MAKE: dict[str, tuple[float, Callable[[random.Random], bytes]]] = {
    "valid": (50, lambda rng: json.dumps(request(rng)).encode() + b"\n"),
    "wrong types": (30, wrong_types),
    "mutated": (12, mutated),
    "random": (4, lambda rng: rng.randbytes(rng.randint(1, 200)) + b"\n" * (rng.random() < 0.7)),
    "nested": (0.9, lambda rng: b"[" * rng.randint(1, 30000) + b"\n"),
    "blank": (3, lambda rng: b" \r\n" * rng.randint(1, 50)),
    "huge": (0.1, huge),
}
KINDS, WEIGHTS = list(MAKE), [weight for weight, _ in MAKE.values()]


def one(rng: random.Random) -> bytes:
    (kind,) = rng.choices(KINDS, WEIGHTS)
    return MAKE[kind][1](rng)


# -- what must come back --


def takes(fields: dict[str, Any]) -> bool:
    """Whether a request is a valid one to take something away."""

    def number(name: str) -> bool:
        value = fields.get(name, 0)
        return value is None or (type(value) in (int, float) and 0 <= value <= 86400)

    reason = fields.get("reason", "")
    return (
        (type(fields.get("v")) in (int, float) and fields.get("v") == 1 and fields.get("do") == "revoke")
        and (isinstance(fields.get("path"), str) and isinstance(reason, str))
        and (reason.isprintable() and len(reason) <= 4096 and number("grace") and number("timeout"))
    )


def read(line: bytes) -> dict[str, Any] | None:
    def refuse(_: str) -> None:
        raise ValueError

    with contextlib.suppress(ValueError, RecursionError):
        fields = json.loads(line.decode(), parse_constant=refuse)
        if isinstance(fields, dict):
            return fields
    return None


def expected(data: bytes) -> tuple[int | None, bool, bool]:
    """How many answers must come, or None if what is to be kept would go; whether nothing is read behind; for a watch."""
    answers, rest = 0, data
    while rest:
        line, newline, rest = rest.partition(b"\n")
        if not newline or len(line) >= LIMIT:
            return answers + 1, True, False
        if not line.strip():
            continue
        answers += 1
        fields = read(line)
        if fields is None or isinstance(fields.get("v"), bool) or fields.get("v") != 1:
            return answers, True, False
        if takes(fields) and not fields["path"].startswith("prey"):
            return None, False, False
        if fields.get("do") == "watch" and isinstance(fields.get("path", ""), str):
            return answers, True, True
    return answers, False, False


# -- the feeding --


class Fuzz:
    def __init__(self, path: str, registry: Registry) -> None:
        self._path = path
        self._registry = registry
        self.kept = [registry.root.open("keep")]
        self.kept += [self.kept[0].open(str(number)) for number in range(5)]
        self.prey = self.kept[0]
        self.plant()

    def plant(self) -> None:
        """Put back what may be taken away."""
        if self.prey is self.kept[0] or self.prey.revoked:
            self.prey = self._registry.root.open("prey")
        for name in {"1", "2"} - {node.name for node in self.prey.children}:
            self.prey.open(name)

    async def batch(self, rng: random.Random) -> list[str]:
        """Feed one connection with some lines; it returns what was answered."""
        data, answers, over, watches = b"", 0, False, False
        for _ in range(rng.randint(1, PER_BATCH)):
            more = one(rng)
            come, over, watches = expected(more)
            if come is not None:
                data += more
                answers += come
            if over:
                break  # what came behind would not be read
        self.plant()
        loop = asyncio.get_running_loop()
        with socket.socket(socket.AF_UNIX) as client:
            client.setblocking(False)
            await loop.sock_connect(client, self._path)
            if rng.random() < 0.1:  # disconnects somewhere
                with contextlib.suppress(ConnectionError, BlockingIOError):
                    await loop.sock_sendall(client, data[: rng.randrange(len(data) + 1)])
                    for _ in range(rng.randint(0, 5)):
                        await asyncio.sleep(0)
                        client.recv(rng.randint(1, 300))
                return ["it went away"]
            with contextlib.suppress(ConnectionError):  # refused, before it has read all
                await loop.sock_sendall(client, data)
                if not watches:
                    client.shutdown(socket.SHUT_WR)
            return await self.receive(loop, client, answers, watches)

    async def receive(
        self, loop: asyncio.AbstractEventLoop, client: socket.socket, answers: int, watches: bool
    ) -> list[str]:
        rest, got, told = b"", 0, []
        while not (watches and got == answers):
            try:
                chunk = await loop.sock_recv(client, 1 << 18)
            except ConnectionResetError:  # it has closed, and had not read all
                chunk = b""
            if not chunk:
                break
            *lines, rest = (rest + chunk).split(b"\n")
            for line in lines:
                assert 0 < len(line) < LIMIT, line[:100]
                record = json.loads(line)
                assert isinstance(record, dict), line
                got += bool({"ok", "error", "watching"} & record.keys())
                assert record.get("error") not in ("failed", "revoked"), record
                told.append(f"{record.get('error', 'ok')} {record.get('message', '')}")
        assert (got, rest if not watches else b"") == (answers, b""), f"{got} answers of {answers}, then {rest!r}"
        return told

    async def check(self) -> None:
        """The server answers, and says that what is to be kept is there."""
        loop = asyncio.get_running_loop()
        with socket.socket(socket.AF_UNIX) as client:
            client.setblocking(False)
            await loop.sock_connect(client, self._path)
            await loop.sock_sendall(client, LIST)
            client.shutdown(socket.SHUT_WR)
            answer = b""
            while chunk := await loop.sock_recv(client, 1 << 18):
                answer += chunk
        listed = [json.loads(line) for line in answer.splitlines()]
        paths = [record["node"]["path"] for record in listed[:-1]]
        assert [path for path in paths if path.startswith("keep")] == [node.path for node in self.kept], paths
        assert listed[-1] == {"ok": True, "nodes": len(paths)}
        assert not any(node.revoked for node in self.kept)


@contextlib.asynccontextmanager
async def answers() -> AsyncIterator[One]:
    """Each line has its answer, and what is to be kept is kept."""
    registry = Registry()
    numbers = itertools.count()
    with tempfile.TemporaryDirectory() as folder:
        async with anyio.create_task_group() as tasks:
            await tasks.start(serve, registry, path := f"{folder}/control")
            fuzz = Fuzz(path, registry)

            async def one(rng: random.Random) -> list[str]:
                told = await fuzz.batch(rng)
                if next(numbers) % 50 == 0:
                    await fuzz.check()
                return told

            yield one
            await fuzz.check()
            tasks.cancel_scope.cancel()
        await registry.root.aclose()
