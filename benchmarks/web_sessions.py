"""How live web sessions are taken away under load: ``python benchmarks/web_sessions.py [--quick] [ROUNDS]``

A server has 1,000 websockets and 200 event streams of 100 tokens. Each websocket is sent a message a second, which it
echoes; each stream sends two events a second. In each round a token is revoked, which closes its twelve connections; they
connect again. The clients are another process. They compare all that they get, and note when they see the end.

The same is done by hand: by the usual set of sockets for each token, each of which is closed. What is printed:

- closed: connections that the clients saw closed for that, of those that had to be
- lost: messages that another connection lost, and connections that nobody has revoked
- passed: messages that came to an endpoint, or left it, when its token's revocation had been reported
- the time from the revocation to its report, and to the end that the last of its clients sees, in ms
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import logging
import random
import resource
import socket
import statistics
import sys
import time
from collections import Counter, defaultdict
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from typing import Any

import anyio
import hypercorn.asyncio
import hypercorn.config
import uvicorn
from websockets.asyncio.client import ClientConnection, connect
from websockets.exceptions import ConnectionClosed, InvalidStatus

from asyncrevoke import Registry
from asyncrevoke.adapters.asgi import RevokableApp

QUICK = "--quick" in sys.argv
WEBSOCKETS, STREAMS, TOKENS = (20, 4, 2) if QUICK else (1000, 200, 100)
MESSAGE, EVENT = (0.02, 0.01) if QUICK else (1.0, 0.5)  # seconds from one to the next, of each connection
BETWEEN = 0.02 if QUICK else 0.1  # seconds from one round to the next
EACH = (WEBSOCKETS + STREAMS) // TOKENS
SERVERS = {
    "uvicorn, websockets": {"ws": "websockets-sansio", "http": "httptools"},
    "uvicorn, wsproto": {"ws": "wsproto", "http": "h11"},
    "hypercorn": {},
}


# -- the clients, in a process of their own --


class Clients:
    """All of them. Each connects again when it was closed, and learns from its first message in which round it is."""

    def __init__(self, port: int) -> None:
        self.port = port
        self.ended: list[tuple[str, int, float]] = []  # token, round, and when
        self.lost = self.passed = 0
        self.there = 0
        self.going = True  # whether messages are sent
        self._unanswered: dict[ClientConnection, list[str]] = {}

    async def websocket(self, token: str) -> None:
        while True:
            with contextlib.suppress(InvalidStatus):  # the last ones of its token are still being closed
                async with connect(
                    f"ws://127.0.0.1:{self.port}/echo?{token}", proxy=None, compression=None, ping_interval=None
                ) as websocket:
                    await self._talk(websocket, token)
            await asyncio.sleep(random.uniform(0.1, 0.5) * MESSAGE)

    async def _talk(self, websocket: ClientConnection, token: str) -> None:
        begun, unanswered = -1, self._unanswered.setdefault(websocket, [])
        writing = asyncio.create_task(self._write(websocket, unanswered))
        try:
            begun = int(await websocket.recv())
            self.there += 1
            while True:
                reported, _, text = str(await websocket.recv()).partition(" ")
                self.passed += int(reported) > begun
                self.lost += text != unanswered.pop(0)
        except ConnectionClosed:
            now = time.monotonic()
            if begun >= 0:
                self.there -= 1
                self.ended.append((token, begun, now))
        finally:
            writing.cancel()
            del self._unanswered[websocket]

    async def _write(self, websocket: ClientConnection, unanswered: list[str]) -> None:
        await asyncio.sleep(random.uniform(0, MESSAGE))
        with contextlib.suppress(ConnectionClosed):
            while self.going:
                unanswered.append(random.randbytes(50).hex())
                await websocket.send(unanswered[-1])
                await asyncio.sleep(MESSAGE)

    async def stream(self, token: str) -> None:
        while True:
            reader, writer = await asyncio.open_connection("127.0.0.1", self.port)
            writer.write(b"GET /events?%s HTTP/1.1\r\nHost: x\r\n\r\n" % token.encode())
            await self._listen(reader, token)
            writer.close()
            await asyncio.sleep(random.uniform(0.1, 0.5) * MESSAGE)

    async def _listen(self, reader: asyncio.StreamReader, token: str) -> None:
        begun, number = -1, 0
        while (line := await reader.readline()) not in (b"", b"0\r\n"):
            if line.startswith(b"data: ") and b"{" not in line:  # else it is our last event
                reported, got = map(int, line[6:].split())
                if begun < 0:
                    begun = reported
                    self.there += 1
                self.passed += reported > begun
                self.lost += got != number
                number += 1
        if begun >= 0:
            self.there -= 1
            self.ended.append((token, begun, time.monotonic()))

    async def run(self) -> None:
        tasks = [self.websocket(str(each % TOKENS)) for each in range(WEBSOCKETS)]
        tasks += [self.stream(str(each % TOKENS)) for each in range(STREAMS)]
        connecting = []
        for each in tasks:
            connecting.append(asyncio.create_task(each))
            await asyncio.sleep(0.002)
        await until(lambda: self.there == WEBSOCKETS + STREAMS)
        print("ready", flush=True)
        ends = int(await asyncio.to_thread(sys.stdin.readline))
        await until(lambda: len(self.ended) >= ends and self.there == WEBSOCKETS + STREAMS)
        self.going = False
        await until(lambda: not any(self._unanswered.values()))
        self.lost += sum(map(len, self._unanswered.values()))
        print(json.dumps([self.ended, self.lost, self.passed]), flush=True)
        await asyncio.to_thread(sys.stdin.readline)
        for task in connecting:
            task.cancel()
        await asyncio.wait(connecting)


async def until(true: Callable[[], bool]) -> None:
    """Wait, but not for what does not come."""
    with anyio.move_on_after(60):
        while not true():  # noqa: ASYNC110
            await asyncio.sleep(0.01)


# -- the service --


class Service:
    """An application of two endpoints, and what they count. How they are taken away is another's matter."""

    def __init__(self) -> None:
        self.begun: Counter[str] = Counter()  # revocations of each token
        self.reported: Counter[str] = Counter()  # of those
        self.present: Counter[str] = Counter()
        self.passed = 0
        self.over = False

    async def __call__(self, scope: Any, receive: Any, send: Any) -> None:
        if scope["type"] == "lifespan":
            for what in "startup", "shutdown":
                await receive()
                await send({"type": f"lifespan.{what}.complete"})
            return
        await (self._echo if scope["type"] == "websocket" else self._events)(token_of(scope), receive, send)

    @contextlib.contextmanager
    def _there(self, token: str) -> Iterator[None]:
        self.present[token] += 1
        try:
            yield
        finally:
            self.present[token] -= 1

    async def _echo(self, token: str, receive: Any, send: Any) -> None:
        begun = self.begun[token]
        await receive()
        await send({"type": "websocket.accept"})
        await send({"type": "websocket.send", "text": str(begun)})
        with self._there(token):
            while (message := await receive())["type"] == "websocket.receive":
                self.passed += self.reported[token] > begun
                await send({"type": "websocket.send", "text": f"{self.reported[token]} {message['text']}"})

    async def _events(self, token: str, _receive: Any, send: Any) -> None:
        begun, number, head = self.begun[token], 0, [(b"content-type", b"text/event-stream")]
        await send({"type": "http.response.start", "status": 200, "headers": head})
        await send({"type": "http.response.body", "body": b"data: %d 0\n\n" % begun, "more_body": True})
        with self._there(token):
            while not self.over:
                await asyncio.sleep(EVENT)
                number += 1
                event = b"data: %d %d\n\n" % (max(begun, self.reported[token]), number)
                await send({"type": "http.response.body", "body": event, "more_body": True})
        await send({"type": "http.response.body", "body": b""})


def token_of(scope: Any) -> str:
    return str(scope["query_string"].decode())


Revoke = Callable[[str], Awaitable[object]]


def with_asyncrevoke(service: Service) -> tuple[Any, Revoke]:
    live = Registry()
    return RevokableApp(service, live, token_of), lambda token: live[token].revoke("logged out").finish()


def by_hand(service: Service) -> tuple[Any, Revoke]:
    connected: dict[str, set[Callable[[], Awaitable[None]]]] = defaultdict(set)

    async def app(scope: Any, receive: Any, send: Any) -> None:
        if scope["type"] == "lifespan":
            await service(scope, receive, send)
            return
        task = asyncio.current_task()
        assert task is not None

        async def close() -> None:
            if scope["type"] == "websocket":
                await send({"type": "websocket.close", "code": 4401, "reason": "logged out"})
            else:
                task.cancel()

        connected[token_of(scope)].add(close)
        try:
            await service(scope, receive, send)
        except asyncio.CancelledError:
            await send({"type": "http.response.body", "body": b""})
        except Exception:
            if close in connected[token_of(scope)]:
                raise
        finally:
            connected[token_of(scope)].discard(close)

    async def revoke(token: str) -> None:
        for close in connected.pop(token, ()):
            await close()

    return app, revoke


@contextlib.asynccontextmanager
async def served(app: Any, kind: str) -> AsyncIterator[int]:
    """A server of that kind in this loop, and its port."""
    with socket.socket(socket.AF_INET, socket.SOCK_STREAM, socket.IPPROTO_TCP) as sock:  # so that asyncio sets no delay
        sock.bind(("127.0.0.1", 0))
        sock.listen(2048)
        port = sock.getsockname()[1]
        end = asyncio.Event()
        serving: Awaitable[None]
        if kind == "hypercorn":
            config = hypercorn.config.Config()
            config.bind, config.errorlog, config.graceful_timeout = [f"fd://{sock.detach()}"], None, 1
            serving = hypercorn.asyncio.serve(app, config, shutdown_trigger=end.wait)
        else:
            options: Any = SERVERS[kind]
            server = uvicorn.Server(uvicorn.Config(app, log_config=None, timeout_graceful_shutdown=1, **options))
            serving = server.serve([sock])
        task = asyncio.ensure_future(serving)
        try:
            yield port
        finally:
            end.set()
            if kind != "hypercorn":
                server.should_exit = True
            await task


async def measure(kind: str, way: Callable[[Service], tuple[Any, Revoke]], rounds: int) -> str:
    """Take away and count, and say what came of it."""
    service = Service()
    app, revoke = way(service)
    began: dict[tuple[str, int], float] = {}
    report = []
    async with served(app, kind) as port:
        child = await asyncio.create_subprocess_exec(
            *(sys.executable, __file__, *sys.argv[1:], "--clients", str(port)),
            stdin=asyncio.subprocess.PIPE,
            stdout=asyncio.subprocess.PIPE,
            limit=1 << 26,
        )
        assert child.stdin is not None
        assert child.stdout is not None
        await child.stdout.readline()
        for number in range(rounds):
            token = str(number % TOKENS)
            await until(lambda: service.present[token] == EACH)  # noqa: B023
            await asyncio.sleep(random.uniform(0.5, 1.5) * BETWEEN)
            now = began[token, service.begun[token]] = time.monotonic()
            service.begun[token] += 1
            await revoke(token)
            report.append(time.monotonic() - now)
            service.reported[token] = service.begun[token]
        child.stdin.write(b"%d\n" % (rounds * EACH))
        ended, lost, passed = json.loads(await child.stdout.readline())
        service.over = True
        child.stdin.write(b"close\n")
        await child.wait()
    last: dict[tuple[str, int], list[float]] = defaultdict(list)
    for token, begun, when in ended:
        last[token, begun].append(when)
    lost += sum(len(ends) for key, ends in last.items() if key not in began)
    closed = sum(len(last[key]) for key in began)
    times = [max(last[key]) - began[key] for key in began if last[key]]
    return f"{closed:7} {rounds * EACH:7} {lost:6} {passed + service.passed:6} {in_ms(report)} {in_ms(times)}"


def in_ms(times: list[float]) -> str:
    """The median, and the 99th percentile."""
    return f"{1000 * statistics.median(times):9.2f} {1000 * sorted(times)[len(times) * 99 // 100]:9.2f}"


async def main(rounds: int) -> None:
    logging.disable(logging.WARNING)  # asyncio's, of those that write to who has gone
    print(f"{WEBSOCKETS} websockets and {STREAMS} event streams of {TOKENS} tokens, {rounds} rounds")
    print(
        f"{'':36} {'closed':>7} {'of':>7} {'lost':>6} {'passed':>6} {'report':>9} {'99 %':>9} {'last end':>9} {'99 %':>9}"
    )
    for kind in SERVERS:
        for name, way in ("asyncrevoke", with_asyncrevoke), ("by hand", by_hand):
            print(f"{f'{kind}, {name}':36} {await measure(kind, way, rounds)}", flush=True)


if __name__ == "__main__":
    _, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))
    if "--clients" in sys.argv:
        asyncio.run(Clients(int(sys.argv[-1])).run())
    else:
        asyncio.run(main(int(sys.argv[-1]) if sys.argv[-1].isdigit() else 6 if QUICK else 1000))
