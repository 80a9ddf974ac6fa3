"""The control server: what it answers, whom it lets in, and what hostile, slow and dead clients do to it: nothing."""

import contextlib
import errno
import fcntl
import functools
import gc
import grp
import json
import os
import pathlib
import resource
import select
import signal
import socket
import stat
import subprocess
import sys
import tempfile
from collections.abc import AsyncIterator, Callable, Iterator
from typing import Any

import anyio
import anyio.abc
import anyio.lowlevel
import pytest
from anyio.streams.file import FileStreamAttribute

from asyncrevoke import Registry, Revokable, RevokedError, revoke_all
from asyncrevoke.control import Control, ControlError, Peer, Request, connect, serve, server as control_server
from asyncrevoke.control.lines import LIMIT, Connection, Lines
from asyncrevoke.control.peer import user_name
from calls import awake, parked, start
from conftest import settle
from operations import operate, stubborn
from ports import as_root, terminal
from sockets import read_on, socket_stream

pytestmark = pytest.mark.anyio

#: Values that the fields of a request may not have.
WRONG: dict[str, tuple[Any, ...]] = {
    "path": (None, 1, [], {}, True),
    "places": (
        None,
        "c",
        {},
        ["c", 1],
        [["x", 1]],
        [["c"]],
        [["c", "1"]],
        [["b", 1.5]],
        [["c", True]],
        [["i", 1]],
        [["i", 1, [2]]],
        [[[]]],
    ),
    "who": (None, 0, "yes", []),
    "below": (None, 1, "true", {}),
    "grace": ("1", True, -1, 1e6, [], 10**30),
    "timeout": ("", False, -0.1, 86401),
    "reason": (None, 7, "a\nb", "\x1b[2J", "\u202e", "x" * 5000),
}
LIST = b'{"v": 1, "do": "list"}\n'


@pytest.fixture
def path() -> Iterator[str]:
    """Where a socket can be, reachable by everybody."""
    with tempfile.TemporaryDirectory() as folder:
        pathlib.Path(folder).chmod(0o755)
        yield f"{folder}/control"


@contextlib.asynccontextmanager
async def served(path: str, **options: Any) -> AsyncIterator[tuple[Registry, anyio.abc.TaskGroup]]:
    registry = Registry()
    async with registry.root, anyio.create_task_group() as tasks:
        await tasks.start(lambda *, task_status: serve(registry, path, task_status=task_status, **options))
        yield registry, tasks
        tasks.cancel_scope.cancel()


async def ask(path: str, data: bytes) -> list[dict[str, Any]]:
    """Send that, then nothing more; all that is answered until the end."""
    answer = b""
    async with await anyio.connect_unix(path) as stream:
        with contextlib.suppress(anyio.BrokenResourceError):  # it may be closed already, but has said why
            await stream.send(data)
            await stream.send_eof()
        with contextlib.suppress(anyio.EndOfStream, anyio.BrokenResourceError):
            while True:
                answer += await stream.receive()
    assert not answer or answer.endswith(b"\n")
    return [json.loads(line) for line in answer.splitlines() if line]


async def until(ready: Callable[[], object]) -> None:
    with anyio.fail_after(60):
        while not ready():
            await anyio.sleep(0.001)


def line(**fields: Any) -> bytes:
    return json.dumps({"v": 1, **fields}).encode() + b"\n"


LONGEST = line(do="list", more="x" * (LIMIT - len(line(do="list", more=""))))


@contextlib.contextmanager
def crowded(path: str) -> Iterator[None]:
    """A server that lives, but lets nobody in: as many wait there as can."""
    with socket.socket(socket.AF_UNIX) as server, contextlib.ExitStack() as waiting:
        server.bind(path)
        server.listen(0)
        with contextlib.suppress(BlockingIOError):
            while True:
                client = waiting.enter_context(socket.socket(socket.AF_UNIX))
                client.setblocking(False)
                client.connect(path)
        yield


# -- list --


async def test_list_says_what_is_open(path: str) -> None:
    """Each is listed once, parents first, with its kind, generation, state, users and reason."""
    async with served(path) as (registry, tasks):
        lab = registry.name("lab")
        alice = lab.open("alice", also=[registry["alice", "token"]])
        tasks.start_soon(operate, alice, [], name="reader")
        await parked(alice)
        async with await connect(path) as control:
            nodes = {(node["path"], node["kind"]): node for node in await control.list(who=True)}
            assert list(nodes) == [
                ("lab", "name"),
                ("lab", "generation"),
                ("lab/alice", "file"),
                ("alice", "key"),
                ("alice/token", "key"),
            ]
            file = nodes["lab/alice", "file"]
            assert (file["generation"], file["state"], file["in_use"], file["open"]) == (1, "live", 1, 0)
            assert file["since"] >= 0
            (user,) = file["users"]
            assert not any(node["users"] for node in nodes.values() if node is not file), "open files are no users"
            assert (user["kind"], user["name"], user["path"]) == ("operation", "reader", "lab/alice")
            assert user["where"].startswith("operations.py:")
            assert [node["path"] for node in await control.list("lab/alice")] == ["lab/alice"]
            await lab.hangup("unplugged")
            (away,) = await control.list()
            assert (away["state"], away["generation"], away["reason"]) == ("away", 1, "unplugged")


async def test_list_says_what_is_being_taken_away(path: str) -> None:
    """A name with somebody inside is not away, but going, and why."""
    leave = anyio.Event()
    async with served(path) as (registry, tasks), await connect(path) as control:
        lab = registry.name("lab")
        alice = lab.open("alice")
        tasks.start_soon(stubborn, alice, [], leave)
        await parked(alice)
        act = lab.revoke("off")
        nodes = [(node["path"], node["state"], node["reason"]) for node in await control.list()]
        leave.set()
        await act
    assert nodes == [(path, "kicked", "off") for path in ("lab", "lab", "lab/alice")]


async def test_names_may_be_anything(path: str) -> None:
    """Names with slashes, control characters, stars and of 10 kB are listed and can be revoked; longer ones are cut off."""
    names = ["a/b", "x\n\x1b[2J\0", "\ud800", "\U0001f4a3" * 800, "n" * 10_000, "*", "é" * 10_000]
    async with served(path) as (registry, _):
        for name in names:
            registry.root.open(name)
        async with await connect(path) as control:
            listed = [node["path"] for node in await control.list()]
            assert listed[:-1] == names[:-1]
            assert listed[-1] == "é" * (20_000 // 12) + "…"
            for name in names[:6]:
                assert (await control.revoke(name))["report"]["released"] == 1
            assert (await control.revoke("", below=True))["done"]
            assert await control.list() == []


async def test_who_has_left_before_its_turn_is_not_listed(path: str) -> None:
    """Of a long list a part is made at a time, and others have their turn between: each is there when it is told."""
    leave = anyio.Event()
    async with served(path) as (registry, tasks):
        node = registry["port"]
        for number in range(2000):
            tasks.start_soon(functools.partial(operate, node, [], until=leave), name=str(number))
        await parked(node, 2000)
        with socket.socket(socket.AF_UNIX) as client:
            client.connect(path)
            client.sendall(line(do="list", who=True))
            await anyio.wait_readable(client)
            leave.set()
            answer = (await read_on(client, until=b'"ok":true,"nodes":1}\n')).splitlines()
    assert json.loads(answer[0])["node"]["in_use"] == 2000
    users = [json.loads(user)["user"]["name"] for user in answer[1:-1]]
    assert 64 <= len(users) == len(set(users)) < 1900


# -- revoke --


@pytest.mark.parametrize(
    ("what", "below", "left"),
    [
        ("lab/alice", False, "lab lab lab/bob key key/shell"),
        ("lab", True, "lab lab key key/shell"),
        ("lab", False, "key key/shell"),
        ("key", False, "lab lab lab/alice lab/bob"),
        ("", True, ""),
    ],
)
async def test_revoke_by_path(path: str, what: str, below: bool, left: str) -> None:
    """A path takes what is there and below; `below` what is below alone, and leaves a generation; of "", everything."""
    async with served(path) as (registry, _):
        lab = registry.name("lab")
        opened = [lab.open("alice"), lab.open("bob"), registry["key"].open("shell")]
        async with await connect(path) as control:
            answer = await control.revoke(what, "maintenance", below=below)
            assert (answer["done"], answer["report"]["reason"], answer["stragglers"]) == (True, "maintenance", [])
            assert [node["path"] for node in await control.list()] == left.split()
        assert {node.reason for node in opened if node.revoked} == {"maintenance"}


async def test_several_paths_are_revoked_at_once_or_none_of_them(path: str) -> None:
    """All refuse before one is released, and one report tells of all. If one is not there, nothing is done."""
    async with served(path) as (registry, _):
        lab = registry.name("lab")
        found: dict[str, bool] = {}
        alice = lab.open("alice", release=lambda: found.update(alice=bob.revoked))
        bob = lab.open("bob", release=lambda: found.update(bob=alice.revoked))
        async with await connect(path) as control:
            with pytest.raises(ControlError, match="nothing is open at 'lab/carol'") as refused:
                await control.revoke(["lab/alice", "lab/carol", "lab/bob"])
            assert (refused.value.code, alice.revoked, bob.revoked) == ("unknown-path", False, False)
            report = (await control.revoke(["lab/alice", "lab/bob", "lab/alice"], "off"))["report"]
            assert (report["name"], report["released"]) == ("lab/alice, lab/bob", 2)
        assert found == {"alice": True, "bob": True}


async def test_revoke_by_path_of_a_device(path: str) -> None:
    """A path in the file system hangs the device up that it leads to: the name stays."""
    with terminal() as (_, slave):
        async with served(path) as (registry, _):
            lab = registry.name("lab", os.ttyname(slave))
            alice = lab.open("alice")
            async with await connect(path) as control:
                assert (await control.revoke(os.ttyname(slave), "off"))["report"]["released"] == 2
            assert (alice.reason, lab.revoked) == ("off", False)


async def test_revoke_waits_and_names_who_stays(path: str) -> None:
    """Until the grace is over nobody is kicked, at the timeout stragglers are named, and what fails is in the report."""
    leave = anyio.Event()

    def fail() -> None:
        raise ValueError("no")

    async with served(path) as (registry, tasks):
        alice = registry.root.open("alice", release=fail)
        tasks.start_soon(stubborn, alice, [], leave)
        await parked(alice)
        async with await connect(path) as control:
            answer = await control.revoke("alice", grace=60, timeout=0)
            assert (answer["done"], answer["report"]["remaining"], alice.kicked) == (False, 1, False)
            assert [each["path"] for each in answer["stragglers"]] == ["alice"]
            assert not (await control.revoke("alice", timeout=0))["done"]
            assert alice.kicked
            bob = registry.root.open("bob", release=fail)
            leave.set()
            assert (await control.revoke("bob"))["report"]["errors"] == ["ValueError('no')"]
            assert bob.released


async def test_a_report_fits_in_a_line(path: str) -> None:
    """However many stay inside, under whatever names, and whatever went wrong: it tells the first five, and not at length."""

    def fail() -> None:
        raise ValueError("x" * 100_000)

    async with served(path) as (registry, _), await connect(path) as control:
        held = [registry.root.open("held").open(f"{number} " + "n" * 15_000, release=fail) for number in range(8)]
        for each in held:
            assert each.start_using()
        try:
            answer = await control.revoke("", below=True, timeout=0)
        finally:
            for each in held:
                each.stop_using()
        assert (answer["done"], len(answer["stragglers"])) == (False, 5)
        for number in range(8):
            registry.root.open(str(number), release=fail)
        answer = await control.revoke("", below=True)
        assert (answer["done"], len(answer["report"]["errors"])) == (True, 5)


async def test_who_takes_what_away_is_logged(path: str, caplog: pytest.LogCaptureFixture) -> None:
    """By the user's name, whatever comes of it; what is not there is not."""
    caplog.set_level("INFO", "asyncrevoke")
    async with served(path) as (registry, _):
        alice = registry.root.open("alice")
        assert alice.start_using()
        await ask(path, b"".join(line(do="revoke", path=each, timeout=0) for each in ("bob", "alice")))
        alice.stop_using()
    assert caplog.messages == [f"user {user_name(os.geteuid())!r} revokes 'alice'"]


async def test_what_has_two_parents_is_listed_once(path: str) -> None:
    """Also where one of them is the registry's root."""
    async with served(path) as (registry, _):
        token = registry.root.open("token")
        registry.root.open("device", also=[token])
        assert [each["node"]["path"] for each in (await ask(path, LIST))[:-1]] == ["token", "device"]


async def test_watch_tells_what_happens_there(path: str) -> None:
    """From its first record on, a watch has every event at its path and below, and no other."""
    async with served(path) as (registry, _), await connect(path) as control:
        events = control.watch("lab")
        assert await anext(events) == {"watching": "lab"}
        registry.root.open("labyrinth")
        registry.root.open("lab").open("alice").revoke("off")
        told = [await anext(events) for _ in range(4)]
        assert [(each["event"], each["path"], each["reason"]) for each in told] == [
            ("opened", "lab", ""),
            ("opened", "lab/alice", ""),
            ("revoked", "lab/alice", "off"),
            ("released", "lab/alice", "off"),
        ]


async def test_who_had_it_taken_away_is_a_field_of_its_own(path: str) -> None:
    """In events and lists, of a request or of the service's own; the reason stays as it was given, for the service too."""
    me = user_name(os.geteuid())
    async with served(path) as (registry, _), await connect(path) as control, await connect(path) as watching:
        alice, bob = registry.root.open("alice"), registry.root.open("bob")
        for each in alice, bob:
            assert each.start_using()
        events = watching.watch()
        await anext(events)
        answer = await control.revoke("alice", "off by carol", timeout=0)
        assert (answer["report"]["reason"], answer["report"]["by"]) == ("off by carol", me)
        revoke_all([bob], "the token is over", by="x" * 100_000)
        assert (alice.reason, alice.revoked_by, bob.reason) == ("off by carol", me, "the token is over")
        cut = "x" * (1_000 // 12) + "…"
        expected = [("alice", "off by carol", me), ("bob", "the token is over", cut)]
        told = [await anext(events) for _ in range(2)]
        for records in told, await control.list():
            assert [(each["path"], each["reason"], each["by"]) for each in records] == expected
        for each in alice, bob:
            each.stop_using()


async def test_a_watch_sleeps_while_nothing_happens(path: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """It collects what happens within its pause, then waits for more without waking."""
    slept = 0
    sleep = anyio.sleep

    async def noted(delay: float) -> None:
        nonlocal slept
        slept += delay == control_server._PAUSE
        await sleep(0)

    async with served(path) as (registry, _), await connect(path) as control:
        events = control.watch()
        await anext(events)
        with monkeypatch.context() as patch:
            patch.setattr(anyio, "sleep", noted)
            registry.root.open("alice")
            await anext(events)
            await settle(100)
        assert slept == 1


# -- bad input --


@pytest.mark.parametrize(
    ("data", "codes"),
    [
        (b"\n \r\n" + LIST, ["ok"]),
        (b"GET / HTTP/1.1\r\n" + LIST, ["garbage"]),
        (b"\xff\xfe\n", ["garbage"]),
        (b"[]\n", ["garbage"]),
        (b'{"v": 1, "do": "revoke", "path": "x", "grace": NaN}\n', ["garbage"]),
        (b'{"a": ' + b"[" * 60000 + b"\n", ["garbage"]),
        (b'{"a": ' + b"1" * 60000 + b"}\n", ["garbage"]),
        (b'{"v": 1, "do": "li', ["cut-off"]),
        (b"x" * 1_000_000 + b"\n" + LIST, ["too-long"]),
        (LONGEST, ["ok"]),
        (LIST + LONGEST.replace(b"xx", b"xxx", 1), ["ok", "too-long"]),
        (line(do="list", more="x" * 65600), ["too-long"]),
        (LIST + line(do="list", more="x" * 65600) + LIST, ["ok", "too-long"]),
        (line(do="list", more="x" * 65000) * 2, ["ok"] * 2),
        (b'{"do": "list"}\n' + LIST, ["version"]),
        (line(do="list", v=2), ["version"]),
        (line(do="list", v=True), ["version"]),
        (line(do="shutdown") + line() + line(do=["list"]) + LIST, [*["unknown-request"] * 3, "ok"]),
        (b'{"v": 2, "v": 1, "do": "nothing", "do": "list", "path": 1, "path": "", "new": {}}\n', ["ok"]),
        (line(do="list", path="nothing") + line(do="revoke", path="nothing"), ["ok", "unknown-path"]),
        (line(do="revoke", path="") + line(do="revoke", path="/nothing\0"), ["unknown-path"] * 2),
        (line(do="revoke", path="", places=[["c", 1], ["b", 10**30], ["i", -1, 2]]), ["unknown-path"]),
        (line(do="revoke") + line(do="watch", path=None), ["bad-request"] * 2),
        (line(do="revoke", path=["alice", 1]) + line(do="list", path=["alice"]), ["bad-request"] * 2),
        *(
            (
                line(**{"do": "list" if name in ("path", "who") else "revoke", "path": "alice", name: value}),
                ["bad-request"],
            )
            for name, values in WRONG.items()
            for value in values
        ),
    ],
)
async def test_bad_input_is_refused(path: str, data: bytes, codes: list[str]) -> None:
    """Each request is answered once, or the connection ends with the reason; the server goes on, and nothing is revoked."""
    async with served(path) as (registry, _):
        alice = registry.root.open("alice")
        answers = [answer for answer in await ask(path, data) if "node" not in answer]
        assert [answer.get("error", "ok") for answer in answers] == codes
        assert not alice.revoked
        assert (await ask(path, LIST))[-1] == {"ok": True, "nodes": 1}


async def test_a_fault_of_a_command_is_answered(path: str, caplog: pytest.LogCaptureFixture) -> None:
    """What a command raises, or returns in vain, is told and logged; what was revoked, too; the next request is read."""

    async def fail(request: Request) -> dict[str, Any]:
        match request.text("how"):
            case "error":
                raise ValueError("no")
            case "revoked":
                node = Registry("node").root
                node.revoke("off")
                raise RevokedError(node)
            case "long":
                return {"too": "long" * 20_000}
        return {"no JSON": object()}

    async with served(path, commands={"fail": fail}):
        requests = b"".join(line(do="fail", how=how) for how in ("error", "value", "revoked", "long"))
        answers = await ask(path, requests + LIST)
        assert [answer.get("error") for answer in answers] == ["failed", "failed", "revoked", "failed", None]
        assert answers[0]["message"] == "the server failed. Its log says why"
        assert "ValueError: no" in caplog.text
        assert answers[2]["message"] == "'node' was revoked: off"
    assert len(caplog.records) == 3


async def test_a_command_that_listens_ends_with_what_is_sent(path: str, caplog: pytest.LogCaptureFixture) -> None:
    """Who sends no more is not answered, as nothing has failed."""

    async def listen(request: Request) -> dict[str, Any]:
        while True:
            await request.connection.receive()

    async with served(path, commands={"listen": listen}):
        assert await ask(path, line(do="listen") + line(text="one")) == []
    assert caplog.messages == []


async def test_a_number_may_be_left_out_or_the_most(path: str) -> None:
    """Left out, a field is its default; null, the most that it may be."""

    async def wait(request: Request) -> dict[str, Any]:
        return {"grace": request.number("grace", 10, 600)}

    async with served(path, commands={"wait": wait}):
        lines = [line(do="wait"), *(line(do="wait", grace=grace) for grace in (None, 7, 0, 600, 600.5, -0.5))]
        answers = await ask(path, b"".join(lines))
        assert [answer.get("grace", answer.get("error")) for answer in answers] == [
            *(10, 600, 7, 0, 600),
            *("bad-request", "bad-request"),
        ]


async def test_of_records_one_of_which_is_too_long_none_is_sent() -> None:
    """Who has sent them can still say something else."""
    async with socket_stream() as (stream, peer):
        lines = Lines(stream)
        with pytest.raises(ValueError, match="longer than 65536 bytes"):
            await lines.send({"a": 1}, {"b": "x" * LIMIT})
        await lines.send({"c": 3})
        assert peer.recv(100) == b'{"c":3}\n'


async def test_error_of_the_other_side_is_told_printable() -> None:
    """What a server says is text of others."""
    async with socket_stream() as (stream, peer):
        peer.sendall(json.dumps({"error": "failed", "message": "x\n\x1b[2J"}).encode() + b"\n")
        with pytest.raises(ControlError) as told:
            await Control(stream).receive()
        assert str(told.value) == r"x\n\x1b[2J"


async def test_the_reason_is_read_behind_a_line_that_was_cut_off() -> None:
    """Of a connection that was taken away in the midst of a line, the client is told why."""
    async with socket_stream() as (stream, peer):
        peer.sendall(b'{"node": {"pa\n{"error": "revoked", "message": "why"}\n')
        with pytest.raises(ControlError, match="why") as told:
            await Control(stream).receive()
        assert told.value.code == "revoked"


async def test_what_has_gone_is_forgotten(path: str) -> None:
    """Neither what was released nor who has watched is kept, however long the server runs."""
    async with served(path) as (registry, _):
        async with await connect(path) as control:
            watching = control.watch()
            assert await anext(watching) == {"watching": ""}
            node = registry.root.open("short-lived")
            assert (await anext(watching))["path"] == "short-lived"
            await node.aclose()
            del node

        def kept() -> list[object]:
            gc.collect()
            nodes = [each for each in gc.get_objects() if type(each) is Revokable and each.name == "short-lived"]
            return nodes + [each for each in gc.get_objects() if type(each).__name__ == "_Watcher"]

        with anyio.fail_after(30):
            while kept():  # for the second after which there would be stragglers
                await settle()


async def test_a_command_has_a_name_of_its_own(path: str) -> None:
    """One that would stand in for the server's is refused, and nobody is served."""

    async def command(_: Request) -> dict[str, Any]:
        return {}

    with pytest.raises(ValueError, match="'revoke' is built in"):
        await serve(Registry(), path, commands={"revoke": command})


# -- slow and dead clients --


async def test_a_connection_that_is_closed_may_be_open_elsewhere(path: str) -> None:
    """As in a process that was forked: when the client goes then, nobody's request is ended."""
    taken: list[Any] = []

    async def copy(request: Request) -> dict[str, Any]:
        taken[:] = request.connection, os.dup(request.connection._stream.extra(FileStreamAttribute.fileno))
        return {}

    async with served(path, commands={"copy": copy}), await anyio.connect_unix(path) as client:
        await client.send(line(do="copy") + b"nonsense\n")
        await until(lambda: taken and taken[0].handle.released)
        await client.aclose()
        assert (await ask(path, LIST))[-1]["ok"]
    os.close(taken[1])


async def test_a_slow_watcher_is_taken_off_and_told(path: str) -> None:
    """Who does not receive is revoked when he is too far behind, can still read why, and others get all that happens."""
    told = 0

    async def follow(control: Control, *, task_status: anyio.abc.TaskStatus[None]) -> None:
        nonlocal told
        with contextlib.suppress(anyio.ClosedResourceError):
            async for event in control.watch():
                if "watching" in event:
                    task_status.started()
                told += event.get("event") == "released"

    async with served(path, backlog=400_000) as (registry, tasks), await connect(path) as control:
        await tasks.start(follow, control)
        async with await anyio.connect_unix(path) as slow:
            await slow.send(line(do="watch"))
            assert b"watching" in await slow.receive()
            for number in range(500):
                await registry.root.open(f"{number} " + "x" * 1000).revoke()
                if number % 100 == 99:
                    await until(lambda number=number: told == number + 1)  # type: ignore[misc]
            received = b""
            with contextlib.suppress(anyio.EndOfStream):
                while True:
                    received += await slow.receive()
            last = json.loads(received.splitlines()[-1])
            assert last["error"] == "revoked"
            assert last["message"].endswith("bytes behind, and may be 400000")
            assert len(received) < 1_000_000
        tasks.cancel_scope.cancel()


@pytest.mark.parametrize(("do", "why"), [("list", "it has not received for 0.5 s"), ("fill", "the reason of all this")])
async def test_who_does_not_receive_an_answer_is_revoked(path: str, do: str, why: str) -> None:
    """After the patience the connection is taken away, and the last line says so, or what was to be said; others are
    answered meanwhile.
    """

    async def fill(request: Request) -> dict[str, Any]:
        with anyio.move_on_after(0.01):
            while True:
                await request.connection.send({"data": "x" * 5000})
        raise ControlError("revoked", "the reason of all this")

    async with served(path, patience=0.5, commands={"fill": fill}) as (registry, _):
        for number in range(300):
            registry.root.open(f"{number} " + "x" * 5000)
        with socket.socket(socket.AF_UNIX) as stuck:
            stuck.connect(path)
            stuck.sendall(line(do=do) * 10)
            poller = select.poll()
            poller.register(stuck, select.POLLRDHUP)
            assert len(await ask(path, LIST)) == 301
            await until(lambda: poller.poll(0))
            stuck.setblocking(True)
            received = b"".join(iter(lambda: stuck.recv(1 << 20), b""))
        assert json.loads(received.splitlines()[-1]) == {"error": "revoked", "message": why}


@pytest.mark.parametrize("request_", [line(do="watch"), line(do="revoke", path="alice", timeout=None), b'{"v": 1', b""])
async def test_a_client_that_has_gone_leaves_nothing(path: str, request_: bytes) -> None:
    """A connection ends when its client does, whatever was asked, though nothing happens that could be sent."""
    leave = anyio.Event()
    async with served(path, clients=1) as (registry, tasks):
        alice = registry.root.open("alice")
        tasks.start_soon(stubborn, alice, [], leave)
        await parked(alice)
        async with await anyio.connect_unix(path) as gone:
            await gone.send(request_)
            await settle(50)
            assert (await ask(path, LIST))[0]["error"] == "too-many"
        with anyio.fail_after(60):
            while "error" in (await ask(path, LIST))[0]:
                await anyio.lowlevel.checkpoint()
        assert alice.revoked == (b"revoke" in request_)
        leave.set()


async def test_what_was_sent_before_the_connection_was_closed_is_begun(path: str) -> None:
    """All revocations are, also behind a request that would never end; nothing is waited for."""
    leave = anyio.Event()
    async with served(path) as (registry, tasks):
        alice, bob = registry.root.open("alice"), registry.root.open("bob")
        tasks.start_soon(stubborn, alice, [], leave)
        await parked(alice)
        with socket.socket(socket.AF_UNIX) as hasty:
            hasty.connect(path)
            hasty.sendall(line(do="revoke", path="alice", reason="bye") + line(do="watch") + LIST)
            hasty.sendall(line(do="revoke", path="bob", reason="bye"))
        await until(lambda: bob.released)
        assert (alice.reason, bob.reason) == ("bye", "bye")
        leave.set()


async def test_a_revocation_can_be_hurried_and_awaited_again(path: str) -> None:
    """Asked for once more, what is going is kicked by then at the latest, and waited for; its reason stays."""
    async with served(path) as (registry, tasks), await connect(path) as control:
        lab = registry.root.open("lab")
        log: list[str] = []
        tasks.start_soon(operate, lab.open("alice"), log)
        await until(lambda: log)
        assert not (await control.revoke("lab", "slowly", grace=3600, timeout=0))["done"]
        assert not (await control.revoke("lab", "later", below=True, grace=1800, timeout=0))["done"]
        answer = await control.revoke("lab", "now")
        assert (answer["done"], lab.reason, log) == (True, "slowly", ["alice in", "alice kicked"])


async def test_the_end_of_the_server_is_told(path: str) -> None:
    """Whoever is connected learns that the server has ended, or what became of the revocation it waits for."""
    leave = anyio.Event()
    async with anyio.create_task_group() as clients:
        async with served(path) as (registry, tasks):
            alice = registry.root.open("alice")
            clients.start_soon(stubborn, alice, [], leave)
            await parked(alice)
            controls = [await connect(path) for _ in range(3)]
            answer: list[dict[str, Any]] = []

            async def revoke() -> None:
                answer.append(await controls[0].revoke("alice"))

            clients.start_soon(revoke)
            events = controls[1].watch()
            await anext(events)
            await until(lambda: alice.revoked)
            tasks.cancel_scope.cancel()
            leave.set()
        await until(lambda: answer)
        assert answer[0]["done"]
        with pytest.raises(ControlError, match="the control server has ended"):
            while True:
                await anext(events)
        with pytest.raises(ControlError, match="the control server has ended") as told:
            await controls[2].list()
        assert told.value.code == "revoked"
        for control in controls:
            await control.aclose()
    assert not pathlib.Path(path).exists()


# -- who may --


AS_NOBODY = """
import contextlib, os, socket, sys
os.setgroups(list(map(int, sys.argv[2:])))
os.setgid(65534)
os.setuid(65534)
s = socket.socket(socket.AF_UNIX)
s.connect(sys.argv[1])
with contextlib.suppress(BrokenPipeError):  # who is refused may be so before he has asked
    s.sendall(b'{"v": 1, "do": "list"}\\n{"v": 1, "do": "revoke", "path": "", "below": true}\\n')
    s.shutdown(socket.SHUT_WR)
for line in s.makefile():
    print(line, end="")
"""


@as_root
@pytest.mark.parametrize(
    ("group", "groups", "codes"),
    [
        (None, [], ["forbidden"]),
        ("daemon", [], ["forbidden"]),
        ("daemon", ["daemon"], ["ok", "forbidden"]),
        ("daemon", ["bin", "sys", "daemon"], ["ok", "forbidden"]),
        ("nogroup", [], ["ok", "forbidden"]),
    ],
)
async def test_another_user_is_told_what_he_may(
    path: str, group: str | None, groups: list[str], codes: list[str]
) -> None:
    """By the kernel's word for the peer, not by the socket's mode: strangers nothing, members of the group may look."""
    async with awake(), served(path, group=group) as (registry, _):
        registry.root.open("alice")
        pathlib.Path(path).chmod(0o666)
        gids = [str(grp.getgrnam(name).gr_gid) for name in groups]
        run = await anyio.run_process([sys.executable, "-c", AS_NOBODY, path, *gids], stderr=None, check=False)
        answers = [json.loads(each) for each in run.stdout.splitlines()]
        assert [each.get("error", "ok") for each in answers if "node" not in each] == codes
        assert [node.name for node in registry.root.children] == ["alice"]
        assert answers[-1]["message"].startswith(
            ("user 'nobody' may not connect", "user 'nobody' lacks the right 'revoke' on everything")
        )


AS_DAEMON = """
import anyio, os, sys
from asyncrevoke.control.client import connect
from asyncrevoke.control.lines import ControlError

async def main():
    await anyio.lowlevel.checkpoint()
    os.setgroups([])
    os.setgid(int(sys.argv[2]))
    os.setuid(1)
    async with await connect(sys.argv[1]) as control:
        for path in sys.argv[3:]:
            try:
                print("done", (await control.revoke(path, "mine"))["report"]["released"])
            except ControlError as error:
                print(error.code, error)

anyio.run(main)
"""


async def revoked_as_daemon(path: str, *asked: pathlib.Path | str) -> list[str]:
    """What a member of the group is answered who is not the owner, and looks paths up with rights of his own."""
    gid = str(grp.getgrnam("daemon").gr_gid)
    words = [sys.executable, "-c", AS_DAEMON, path, gid, *map(str, asked)]
    return (await anyio.run_process(words, stderr=None)).stdout.decode().splitlines()


@as_root
@pytest.mark.parametrize("what", ["node", "link", "folder", "hard link", "second node"])
async def test_another_user_may_revoke_by_path_what_is_his(path: str, what: str) -> None:
    """As by revoke(2): a member of the group who owns a device hangs it up for all; its name stays, and what is not his."""
    with tempfile.TemporaryDirectory() as folder:
        place = pathlib.Path(folder)
        place.chmod(0o711)
        os.mknod(place / "node", stat.S_IFIFO | 0o600)
        if what == "second node":
            (place / "node").unlink()
            for each in "node", "second node":
                os.mknod(place / each, stat.S_IFCHR | 0o600, os.makedev(7, 0))
        else:
            os.link(place / "node", place / "hard link")
        os.chown(place / "node", 1, -1)
        (place / "link").symlink_to("node")
        (place / "folder").mkdir()
        (place / "folder" / "link").symlink_to("../node")
        async with awake(), served(path, group="daemon") as (registry, _):
            lab = registry.name("lab", place / "node")
            alice, other = lab.open("alice"), registry.name("other").open()
            assert await revoked_as_daemon(path, place / what) == ["done 2"]
            assert (alice.reason, lab.revoked, other.revoked) == ("mine", False, False)


@as_root
async def test_another_user_may_not_revoke_what_is_not_his(path: str) -> None:
    """Whatever he owns that leads there, or where his own was; what is no device, and what is told by its name alone."""
    with tempfile.TemporaryDirectory() as folder:
        place = pathlib.Path(folder)
        place.chmod(0o711)
        (place / "both").mkdir()
        os.mknod(place / "theirs", stat.S_IFCHR | 0o600, os.makedev(7, 0))
        os.mknod(place / "his node of that number", stat.S_IFCHR | 0o600, os.makedev(7, 0))
        for name in "his", "no device", "exchanged", "gone":
            (place / name).touch()
        (place / "his link").symlink_to("theirs")
        for name in "his", "theirs":
            (place / "both" / name).symlink_to(place / name)
        for each in place.iterdir():
            if each.name != "theirs":
                os.chown(each, 1, -1, follow_symlinks=False)
        async with awake(), served(path, group="daemon") as (registry, _):
            files = [registry.name(name, place / name).open("file") for name in ("his", "theirs", "exchanged", "gone")]
            (place / "exchanged").rename(place / "moved")
            (place / "exchanged").touch()
            (place / "gone").unlink()
            os.mknod(place / "gone", stat.S_IFCHR | 0o600, os.makedev(7, 0))
            asked = [
                "theirs",
                "his link",
                "his node of that number",
                "no device",
                "exchanged",
                "moved",
                "gone",
                "both",
                "",
            ]
            asked = [*(str(place / each) for each in asked), f"{place}/nothing", "lab", "his", "his/file", ""]
            answers = await revoked_as_daemon(path, *asked)
            who = "Root and the owner of this server have it, and users to whom the server gives it."
            by_path = "The owner of a device's file may revoke the device by its path"
            assert [answer.partition(": [Errno 2]")[0] for answer in answers] == [
                f"forbidden user 'daemon' lacks the right 'revoke' on {repr(each) if each else 'everything'}. {who} {by_path}"
                for each in asked
            ]
            assert not any(file.revoked for file in files)


async def test_the_owner_is_told_what_a_path_leads_to(path: str, tmp_path: pathlib.Path) -> None:
    """A folder of devices is taken with one request; in one without any, or with too much in it, there is nothing to take."""
    for name in "devices", "empty", "many":
        (tmp_path / name).mkdir()
    (tmp_path / "devices" / "node").touch()
    for number in range(1001):
        (tmp_path / "many" / str(number)).touch()
    async with served(path) as (registry, _), await connect(path) as control:
        file = registry.name("lab", tmp_path / "devices" / "node").open()
        with pytest.raises(ControlError, match="nothing is open at"):
            await control.revoke(str(tmp_path / "empty"))
        with pytest.raises(
            ControlError,
            match=r"nothing is open at .* the request 'list': more than 1000 files are below .*many': give a path",
        ):
            await control.revoke(str(tmp_path / "many"))
        with pytest.raises(ControlError, match=r"nothing is open at .* the request 'list': .*No such file"):
            await control.revoke(str(tmp_path / "nothing"))
        with pytest.raises(ControlError, match="longer than 65536 bytes"):
            await control.revoke("x" * 70_000)
        named = registry.name(str(tmp_path / "many")).open()
        assert (await control.revoke(named.parent.path if named.parent else ""))["done"], "a name needs no look"
        assert (await control.revoke(str(tmp_path / "devices"), below=True))["report"]["released"] == 2
        assert (file.revoked, named.revoked) == (True, True)


def test_root_and_the_effective_user_are_owners(monkeypatch: pytest.MonkeyPatch) -> None:
    """Of a program that runs as another user than who has started it, that one is the owner."""
    monkeypatch.setattr(os, "geteuid", lambda: 1000)
    monkeypatch.setattr(os, "getuid", lambda: 1001)
    assert [Peer(1, uid, frozenset()).owner for uid in (0, 1000, 1001)] == [True, True, False]


@as_root
@pytest.mark.parametrize(("group", "mode"), [(None, 0o600), ("daemon", 0o660)])
async def test_the_socket_is_for_its_owner_and_group(path: str, group: str | None, mode: int) -> None:
    """The mode is 0600, or 0660 for the group, whatever the umask."""
    before = os.umask(0)
    try:
        async with served(path, group=group):
            status = pathlib.Path(path).stat()
            assert stat.S_IMODE(status.st_mode) == mode
            assert status.st_gid == (0 if group is None else grp.getgrnam(group).gr_gid)
    finally:
        os.umask(before)


@as_root
async def test_a_group_and_the_owner_leave_room_for_each_other(path: str) -> None:
    """The places that the one has taken are not the other's: when the group has all of its own, the owner takes away."""
    async with awake(), served(path, group="daemon", clients=2) as (registry, _):
        registry.root.open("alice")
        crowd = "import os, socket, sys\nos.setgroups([])\nos.setgid(int(sys.argv[2]))\nos.setuid(65534)\n"
        crowd += "all = [socket.socket(socket.AF_UNIX) for _ in range(3)]\nfor s in all: s.connect(sys.argv[1])\n"
        crowd += f"for s in all[:2]: s.sendall({LIST!r})\n"
        crowd += "print([s.recv(100)[:7] for s in all], flush=True)\ninput()"
        group = str(grp.getgrnam("daemon").gr_gid)
        async with (
            await connect(path),
            await anyio.open_process([sys.executable, "-c", crowd, path, group], stderr=None) as process,
        ):
            assert process.stdout is not None
            assert process.stdin is not None
            assert b"""[b'{"node"', b'{"node"', b'{"error']""" in await process.stdout.receive()
            async with await connect(path) as control:
                assert (await control.revoke("alice"))["done"]
            await process.stdin.send(b"\n")


async def test_no_more_than_so_many(path: str) -> None:
    """Who comes when all places are taken is told; when one is free again the next is let in."""
    async with served(path, clients=2):
        first, second = await connect(path), await connect(path)
        assert await first.list() == await second.list() == []
        third = await connect(path)
        with pytest.raises(ControlError, match="2 clients are connected already") as refused:
            await third.list()
        assert refused.value.code == "too-many"
        await first.aclose()
        await third.aclose()
        await settle(50)
        assert (await ask(path, LIST))[-1]["ok"]
        await second.aclose()


async def test_who_comes_when_too_many_files_are_open_is_let_in_later(
    path: str, caplog: pytest.LogCaptureFixture
) -> None:
    """The server says so, and goes on."""
    before = resource.getrlimit(resource.RLIMIT_NOFILE)
    async with served(path):
        with socket.socket(socket.AF_UNIX) as client:
            free = os.dup(client.fileno())
            os.close(free)
            resource.setrlimit(resource.RLIMIT_NOFILE, (free, before[1]))
            try:
                client.connect(path)
                await until(lambda: caplog.messages)
            finally:
                resource.setrlimit(resource.RLIMIT_NOFILE, before)
        assert caplog.messages == [f"the control socket {path}: [Errno 24] Too many open files"]
        assert (await ask(path, LIST))[-1]["ok"]


# -- the socket --

SERVER = """
import sys, anyio
from asyncrevoke import Registry
from asyncrevoke.control import serve
async def main():
    async with anyio.create_task_group() as tasks:
        await tasks.start(serve, Registry(), sys.argv[1])
        print("ready", flush=True)
anyio.run(main)
"""


@pytest.fixture
def stale(path: str) -> str:
    """A socket whose server was killed."""
    with subprocess.Popen([sys.executable, "-c", SERVER, path], stdout=subprocess.PIPE) as server:
        assert server.stdout is not None
        assert server.stdout.readline() == b"ready\n"
        server.send_signal(signal.SIGKILL)
    assert stat.S_ISSOCK(pathlib.Path(path).stat().st_mode)
    return path


async def test_of_those_who_take_over_one_wins(stale: str) -> None:
    """A dead server's socket is taken over, by one of several that begin at once; the others say that it is taken."""
    won: list[int] = []
    lost: list[int] = []

    async def begin(number: int) -> None:
        try:
            async with served(stale) as (registry, _):
                registry.root.open(str(number))
                won.append(number)
                await until(lambda: len(lost) == 4)
                assert (await ask(stale, LIST))[0]["node"]["path"] == str(number)
        except* OSError as group:
            (error,) = group.exceptions
            assert isinstance(error, OSError)
            assert (error.errno, error.filename) == (errno.EADDRINUSE, stale)
            lost.append(number)

    async with anyio.create_task_group() as tasks:
        for number in range(5):
            tasks.start_soon(begin, number)
    assert sorted(won + lost) == list(range(5))
    assert not pathlib.Path(stale).exists()


async def test_servers_begin_one_after_another(stale: str) -> None:
    """As long as another server begins there, which it says by a lock, a server waits. No other user can lock it, and
    what a killed server has left of its beginning is in nobody's way.
    """

    def listens() -> bool:
        with socket.socket(socket.AF_UNIX) as client:
            return client.connect_ex(stale) == 0

    lock = pathlib.Path(stale + ".lock")
    with lock.open("w") as begins, socket.socket(socket.AF_UNIX) as killed:
        killed.bind(stale + "~")
        fcntl.flock(begins, fcntl.LOCK_EX)
        async with anyio.create_task_group() as tasks:
            tasks.start_soon(serve, Registry(), stale)
            await settle(50)
            assert not listens()
            lock.unlink()  # as whoever has begun does
            begins.close()
            await until(listens)
            tasks.cancel_scope.cancel()
    assert list(lock.parent.iterdir()) == []


async def test_who_waits_for_a_lock_takes_the_one_that_is_there(path: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """A lock on a file that was removed meanwhile, for which another may have a new one, is none."""
    taken = 0

    def flock(fd: int, how: int) -> None:
        nonlocal taken
        locked(fd, how)
        taken += 1
        if taken == 1:  # as who had it removes it
            lock.unlink()
            lock.touch()

    lock, locked = pathlib.Path(path + ".lock"), fcntl.flock
    monkeypatch.setattr(fcntl, "flock", flock)
    async with served(path):
        assert taken == 2


async def test_a_lock_that_is_kept_is_no_reason_to_go_on(path: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Who has waited for long gives up, and says what for."""
    monkeypatch.setattr(anyio, "sleep", lambda _: anyio.lowlevel.checkpoint())
    with pathlib.Path(path + ".lock").open("w") as kept:
        fcntl.flock(kept, fcntl.LOCK_EX)
        with pytest.raises(OSError, match=r"has kept a lock on '.*control\.lock' for 5 s"), anyio.fail_after(10):
            await serve(Registry(), path)


async def test_a_socket_that_can_be_seen_listens(path: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Nobody takes a server that begins for a dead one, or may connect before the mode is set, or lock it out."""
    seen: list[object] = []

    def listens(there: str) -> bool:
        with socket.socket(socket.AF_UNIX) as client:
            return client.connect_ex(there) == 0

    def chmod(beside: str, mode: int) -> None:
        seen.append(listens(beside))
        changed(beside, mode)

    def rename(beside: str, there: str) -> None:
        modes = [oct(stat.S_IMODE(pathlib.Path(each).stat().st_mode)) for each in (beside, there + ".lock")]
        seen.extend([listens(beside), *modes, pathlib.Path(there).exists()])
        renamed(beside, there)

    changed, renamed = os.chmod, os.rename
    monkeypatch.setattr(os, "chmod", chmod)
    monkeypatch.setattr(os, "rename", rename)
    before = os.umask(0)
    try:
        async with served(path):
            assert seen == [False, True, "0o600", "0o600", False]
    finally:
        os.umask(before)


async def test_a_socket_whose_group_cannot_be_set_is_removed(path: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Nothing of a server that could not begin is left."""

    def refuse(*_: object) -> None:
        raise PermissionError(errno.EPERM, "not yours")

    monkeypatch.setattr(os, "chown", refuse)
    with pytest.raises(OSError, match="no control socket can be made: not yours"):
        await serve(Registry(), path, group="daemon")
    assert list(pathlib.Path(path).parent.iterdir()) == []


async def test_a_server_that_is_busy_lives(path: str) -> None:
    """Where nobody can connect now, as many wait already, another does not take over."""
    with crowded(path):
        with pytest.raises(OSError, match="a server listens there already") as refused, anyio.fail_after(10):
            await serve(Registry(), path)
        assert refused.value.errno == errno.EADDRINUSE
        assert stat.S_ISSOCK(pathlib.Path(path).stat().st_mode)


@pytest.mark.parametrize(
    ("make", "place", "number"),
    [
        (lambda path: pathlib.Path(path).write_text("precious"), "", errno.EEXIST),
        (lambda path: pathlib.Path(path).symlink_to("nowhere"), "", errno.EEXIST),
        (lambda path: pathlib.Path(path + ".lock").symlink_to("/nowhere/lock"), "", errno.ELOOP),
        (lambda _: None, "/missing/control", errno.ENOENT),
        (lambda _: None, "x" * 150, errno.ENAMETOOLONG),
    ],
    ids=["file", "link", "lock", "folder", "length"],
)
async def test_where_no_socket_can_be(path: str, make: Callable[[str], object], place: str, number: int) -> None:
    """The error names the path, and what is there is left as it is."""
    make(path)
    with pytest.raises(OSError, match="no control socket can be made") as refused:
        await serve(Registry(), path + place)
    assert (refused.value.errno, refused.value.filename) == (number, path + place)
    assert os.path.lexists(path) == (number == errno.EEXIST)
    with pytest.raises(OSError, match="no control server can be reached"):
        await connect(path + place)


async def test_unknown_group(path: str) -> None:
    """A group that does not exist is named, and no socket is made."""
    with pytest.raises(ValueError, match="there is no group 'nosuch'"):
        await serve(Registry(), path, group="nosuch")
    assert not pathlib.Path(path).exists()


async def test_another_socket_in_its_place_stays(path: str) -> None:
    """A server removes its own socket in the end, and not what has come in its place."""
    async with served(path):
        pathlib.Path(path).unlink()
        pathlib.Path(path).write_text("another's")
    assert pathlib.Path(path).read_text() == "another's"


# -- a line that is sent at once --


@contextlib.asynccontextmanager
async def connected(room: int) -> AsyncIterator[tuple[Connection, socket.socket]]:
    """A connection that takes about so many bytes, and its client."""
    async with socket_stream() as (stream, client):
        with socket.socket(fileno=os.dup(stream.fileno())) as ours:
            ours.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, room)
            given = ours.getsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF)
        yield Connection(stream, Peer(os.getpid(), os.getuid(), frozenset()), 30, given), client


@pytest.mark.parametrize("room", [1, 4096, 100_000, 10_000_000])
async def test_a_line_is_sent_at_once_as_a_whole_or_not_at_all(room: int) -> None:
    """However little the socket takes. The longest that are, are as long as its room allows."""
    async with connected(room) as (connection, client):
        for size in 60_000, connection.whole, connection.whole - 1000:
            line = bytes(size - 1) + b"\n"
            sent = 0
            while connection.send_now(line):
                sent += 1
            assert (sent > 0) == (size <= connection.whole)
            assert await read_on(client, until=line * sent) == line * sent


async def test_nothing_is_sent_at_once_in_the_midst_of_another_line() -> None:
    """It comes after the one that is being sent, even if there is room for it just now."""
    line, after = bytes(60_000) + b"\n", b"after\n"
    async with connected(4096) as (connection, client), anyio.create_task_group() as tasks:
        assert connection.send_now(b"first\n")
        tasks.start_soon(connection.send, line)
        await settle()
        begin = client.recv(len(line))
        assert not connection.send_now(after)
        tasks.start_soon(connection.send, after)
        assert begin + await read_on(client, until=after) == b"first\n" + line + after


async def test_nothing_is_sent_at_once_where_it_was_taken_away() -> None:
    """Also while somebody is inside, so that the descriptor is still open."""
    async with connected(4096) as (connection, _), anyio.create_task_group() as tasks:
        start(tasks, connection.receive)
        await parked(connection.handle)
        connection.revoke("taken")
        assert not connection.handle.released
        assert not connection.send_now(b"x\n")


async def test_what_cannot_be_sent_at_once_is_left() -> None:
    """To a connection that was taken away, or whose client has gone, nothing is sent; `send` says why."""
    async with connected(4096) as (connection, client):
        client.close()
        assert not connection.send_now(b"x\n")
        with pytest.raises(anyio.BrokenResourceError):
            await connection.send(b"x\n")
        await connection.revoke("taken")
        assert not connection.send_now(b"x\n")
        with pytest.raises(RevokedError, match="taken"):
            await connection.send(b"x\n")
