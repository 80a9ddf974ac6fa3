"""Web sessions of several hosts: real servers, each a member of a cluster, and what their clients are told."""

import contextlib
from collections.abc import AsyncIterator, Callable
from typing import Any

import anyio
import anyio.abc
import httpx
import pytest
from websockets.asyncio.client import ClientConnection
from websockets.exceptions import ConnectionClosed, InvalidStatus

from asgi_servers import SERVERS, Client, applications, served
from asyncrevoke import Registry, RevokedError
from asyncrevoke.adapters.asgi import RevokableApp
from asyncrevoke.cluster import Batch, Cluster, ClusterEvent, LogError, Member, MemoryLog, Position
from conftest import BACKENDS

pytestmark = [
    pytest.mark.anyio,
    pytest.mark.filterwarnings("ignore:remove second argument of ws_handler:DeprecationWarning"),  # an older server's
]


@pytest.fixture(params=BACKENDS[:2])
def anyio_backend(request: pytest.FixtureRequest) -> Any:
    return request.param


class Cut(MemoryLog):
    """A log that a member cannot read while it is cut off."""

    def __init__(self) -> None:
        super().__init__()
        self.cut_off: set[str] = set()

    async def read(self, after: int, wait: float, member: Member | None = None) -> Batch:
        if member is not None and member.host in self.cut_off:
            raise LogError("the cable is pulled")
        batch = await super().read(after, wait, member)
        if member is not None and member.host in self.cut_off:
            raise LogError("the cable was pulled")
        return batch


async def echo(_scope: Any, receive: Any, send: Any) -> None:
    await receive()
    await send({"type": "websocket.accept"})
    while (message := await receive())["type"] == "websocket.receive":
        await send({"type": "websocket.send", "text": message["text"]})


async def later(scope: Any, receive: Any, send: Any) -> None:
    """A websocket that says in its first message where its token was issued."""
    await receive()
    await send({"type": "websocket.accept"})
    scope["asyncrevoke"].belongs_to("alice", "t1", issued=(await receive())["text"])
    await send({"type": "websocket.send", "text": "admitted"})
    await receive()


async def news(_scope: Any, _receive: Any, send: Any) -> None:
    await send({"type": "http.response.start", "status": 200, "headers": [(b"content-type", b"text/event-stream")]})
    await send({"type": "http.response.body", "body": b"data: 1\n\n", "more_body": True})
    await anyio.sleep_forever()


async def answers(_scope: Any, _receive: Any, send: Any) -> None:
    await send({"type": "http.response.start", "status": 200, "headers": []})
    await send({"type": "http.response.body", "body": b"hello"})


class Issued(dict[str, Position | str | None]):
    """Where tokens were issued: what a key function looks up. A token that is not there is nobody's."""

    def key(self, scope: Any) -> Any:
        user = dict(scope["headers"]).get(b"token", b"").decode()
        return ((user, "t1"), None, self[user]) if user in self else None


@contextlib.asynccontextmanager
async def host(log: MemoryLog, name: str, issued: Issued, kind: str = SERVERS[0], **options: Any) -> AsyncIterator[Any]:
    """A server that is a member, as clients see it, and its cluster."""
    cluster = Cluster(Registry(), log, host=name, **options)
    app = RevokableApp(applications(echo=echo, later=later, news=news, answers=answers), cluster, issued.key)
    async with anyio.create_task_group() as tasks:
        await tasks.start(cluster.run)
        async with served(app, kind) as client:
            yield client, cluster
        tasks.cancel_scope.cancel()


@pytest.fixture
async def log() -> Cut:
    log = Cut()
    await Cluster(Registry(), log).init()
    return log


async def closed(socket: ClientConnection) -> tuple[int, str]:
    """How a websocket was closed."""
    with pytest.raises(ConnectionClosed) as end, anyio.fail_after(20):
        while True:
            await socket.recv()
    assert end.value.rcvd
    return end.value.rcvd.code, end.value.rcvd.reason


async def refused(client: Client, path: str = "/echo") -> int:
    """The status with which a handshake is refused; 101 if it is not."""
    try:
        async with client.websocket(path) as socket:
            await socket.send("hello")
            assert await socket.recv() == "hello"
            return 101
    except InvalidStatus as error:
        return error.response.status_code


async def got(client: Client) -> httpx.Response:
    async with httpx.AsyncClient(trust_env=False) as http:
        return await http.get(f"http://127.0.0.1:{client.port}/answers", headers={"Token": "alice"})


async def test_revocation_on_one_host_ends_the_sessions_of_another(log: Cut) -> None:
    """With the code and reason of any revocation; whoever comes later is refused on both; others see nothing."""
    issued = Issued(alice=None, bob=None)
    async with (
        host(log, "web1", issued) as (one, cluster),
        host(log, "web2", issued) as (two, _),
        two.websocket("/echo", "alice") as alice,
        two.websocket("/echo", "bob") as bob,
        two.request("/news") as (news, _writer),
    ):
        assert b"data: 1" in await news.readuntil(b"data: 1")
        report = await cluster.revoke("alice", reason="stolen")
        assert (report.complete, [each.kicked for each in report.hosts]) == (True, [0, 2])
        assert await closed(alice) == (4401, "stolen")
        assert b'event: revoked\ndata: {"reason": "stolen", "code": 4401}' in await news.read()
        for client in one, two:
            assert await refused(client) == 403
            answer = await got(client)
            assert (answer.status_code, answer.text) == (401, "stolen\n")
        await bob.send("still here")
        assert await bob.recv() == "still here"


@pytest.mark.parametrize("stored", [str, lambda position: position])
async def test_token_that_was_issued_later_is_admitted(log: Cut, stored: Callable[[Position], Any]) -> None:
    """A revocation speaks of tokens issued before it, wherever the position comes from."""
    issued = Issued()
    async with host(log, "web1", issued) as (client, cluster):
        before = stored(cluster.position)
        await cluster.revoke("alice", reason="all logged out")
        after = stored(cluster.position)
        for issued["alice"], status in (before, 403), (after, 101), (None, 403):
            assert await refused(client) == status
        async with client.websocket("/later", "") as socket:
            await socket.send(str(after))
            assert await socket.recv() == "admitted"
        async with client.websocket("/later", "") as socket:
            await socket.send(str(before))
            assert await closed(socket) == (4401, "all logged out")


async def test_entry_that_is_read_again_leaves_later_logins_alone(log: Cut) -> None:
    """A log that was wiped is written back. Sessions of tokens that were issued since then go on."""
    issued = Issued()
    async with host(log, "web1", issued) as (client, cluster):
        await cluster.revoke("alice", reason="all logged out")
        issued["alice"] = cluster.position
        async with client.websocket("/echo") as socket:
            log.wipe()
            await cluster.revoke("bob")  # is taken when all before it is
            await socket.send("still here")
            assert await socket.recv() == "still here"


@pytest.mark.parametrize("kind", SERVERS)
async def test_host_that_cannot_vouch_says_try_again_later(
    log: Cut, kind: str, caplog: pytest.LogCaptureFixture
) -> None:
    """That is no logout: 1013 for a websocket, 503 for all that begins; and it admits again when it reads the log again.

    Clients are not told which engine cannot be reached. Our log is.
    """
    caplog.set_level("DEBUG", "asyncrevoke")
    events: list[str] = []
    healed = anyio.Event()

    def note(event: Any) -> None:
        events.append(event.what)
        if event.what == "caught up" and "cut off" in events:
            healed.set()

    issued = Issued(alice=None)
    options: Any = {"mode": "strict", "lease": 0.5, "observers": (note,)}
    async with host(log, "web1", issued, kind, **options) as (client, cluster):
        assert cluster.admits
        async with client.websocket("/echo") as socket, client.request("/news") as (news, _):
            await news.readuntil(b"data: 1")
            log.cut_off.add("web1")
            assert await closed(socket) == (1013, "try again later")
            assert b"revoked" not in await news.read()
        assert not cluster.admits
        assert await refused(client) == 503
        answer = await got(client)
        assert (answer.status_code, answer.headers["retry-after"]) == (503, "5")
        assert "www-authenticate" not in answer.headers
        assert answer.text == "try again later\n"
        assert "web1 admits nobody: the cable" in caplog.text
        log.cut_off.clear()
        with anyio.fail_after(20):
            await healed.wait()
            while await refused(client) != 101:  # a busy machine may be late for this lease, too
                pass
            while (await got(client)).text != "hello":
                pass


async def test_best_effort_goes_on_while_it_is_cut_off(log: Cut) -> None:
    """Its clients notice nothing, and lose what was revoked when it reads on."""
    cut_off = anyio.Event()

    def note(event: Any) -> None:
        if event.what == "cut off":
            cut_off.set()

    issued = Issued(alice=None)
    async with host(log, "web1", issued, lease=1, observers=(note,)) as (client, cluster):
        async with client.websocket("/echo") as socket:
            log.cut_off.add("web1")
            with anyio.fail_after(20):
                await cut_off.wait()
            assert await refused(client) == 101
            report = await Cluster(Registry(), log).revoke("alice", reason="stolen")
            assert [each.state for each in report.hosts] == ["silent"]
            await socket.send("still here")
            assert await socket.recv() == "still here"
            log.cut_off.clear()
            assert await closed(socket) == (4401, "stolen")
        assert cluster.admits


async def test_member_that_has_left_admits_nobody(log: Cut) -> None:
    """Before it follows the log, and when it does not any more, nobody is admitted, and nobody is logged out."""
    cluster = Cluster(Registry(), log, host="web1")
    app = RevokableApp(applications(echo=echo, answers=answers), cluster, Issued(alice=None).key)
    async with served(app, SERVERS[0]) as client:
        assert (await got(client)).status_code == 503
        async with anyio.create_task_group() as tasks:
            await tasks.start(cluster.run)
            assert (await got(client)).status_code == 200
            async with client.websocket("/echo") as socket:
                tasks.cancel_scope.cancel()
                with anyio.CancelScope(shield=True):
                    assert await closed(socket) == (1013, "try again later")
        assert await refused(client) == 503


async def test_position_that_is_none_is_a_fault(log: Cut, caplog: pytest.LogCaptureFixture) -> None:
    """The server answers 500, and the log tells of the key function and what it returned."""
    async with host(log, "web1", Issued(alice="yesterday")) as (client, _):
        assert (await got(client)).status_code == 500
        assert "'yesterday' is not a position" in caplog.text


async def test_host_that_has_caught_up_meanwhile_still_says_try_again_later(log: Cut) -> None:
    """It makes a lost log good sooner than it can tell thousands: none of them is told that its token is not good."""
    caught_up = anyio.Event()
    codes: list[int] = []

    def note(event: ClusterEvent) -> None:
        if event.what == "caught up" and cluster.position.number:
            caught_up.set()

    async def connected(_scope: Any, receive: Any, send: Any) -> None:
        await send({"type": "websocket.accept"})
        await receive()

    async def client() -> None:
        async def receive() -> Any:
            await anyio.sleep_forever()

        async def send(message: Any) -> None:
            if message["type"] == "websocket.close":
                codes.append(message["code"])

        with contextlib.suppress(RevokedError):  # which the server is told, as this client does not answer
            await app({"type": "websocket", "path": "/"}, receive, send)

    cluster = Cluster(Registry(), log, host="web1", mode="strict")
    app = RevokableApp(connected, cluster, lambda _: "alice", limit=0.1, shutdown=None)
    with anyio.fail_after(60):
        async with anyio.create_task_group() as tasks:
            await tasks.start(cluster.run)
            cluster.observers.append(note)
            async with anyio.create_task_group() as clients:
                for _ in range(1000):
                    clients.start_soon(client)
                while len(app.sessions()) < 1000:
                    await anyio.sleep(0)
                await cluster.revoke("nobody")
                log.wipe()
                await caught_up.wait()
            tasks.cancel_scope.cancel()
    assert codes == [1013] * 1000
