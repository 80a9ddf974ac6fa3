"""Consoles: programs and devices that are shared over a control socket, and taken away from those who are attached."""

import base64
import contextlib
import fcntl
import functools
import json
import math
import os
import pathlib
import socket
import stat
import sys
import termios
from collections.abc import AsyncIterator, Callable, Iterator
from typing import Any

import anyio
import anyio.abc
import anyio.lowlevel
import pytest
from anyio.abc import SocketAttribute

from asyncrevoke.adapters.pty import PtySession, open_pty
from asyncrevoke.console import console, log as console_log
from asyncrevoke.console.log_file import open_file
from asyncrevoke.console.server import host
from asyncrevoke.console.settings import Settings
from asyncrevoke.console.share import Config, Share, read_config
from asyncrevoke.control import Control, ControlError, connect, server as control_server
from conftest import BACKENDS, ROUNDS, settle
from ports import Plug

pytestmark = pytest.mark.anyio

#: A program that gives back what it gets, byte for byte.
ECHO = ("sh", "-c", "stty raw -echo; exec cat")
#: Floods: numbers without end; to whoever writes M7 it answers OUT7. What it was written goes to a file.
DEVICE = """
import os, sys, threading
os.system("stty raw -echo")
def flood():
    n = 0
    while True:
        os.write(1, b"".join(b"%d\\n" % each for each in range(n, n + 50)))
        n += 50
threading.Thread(target=flood, daemon=True).start()
with open(sys.argv[1], "wb", buffering=0) as record:
    for line in sys.stdin.buffer:
        record.write(line)
        if line.startswith(b"M"):
            os.write(1, b"OUT" + line[1:])
"""


class Attached:
    """A client that is attached: what it has been told."""

    def __init__(self, control: Control) -> None:
        self.control = control
        self.output = b""
        self.told: list[dict[str, Any]] = []
        self.end: dict[str, Any] | ControlError | None = None
        self._news = anyio.Event()

    async def listen(self, name: str, **fields: Any) -> None:
        try:
            async for record in self.control.request("attach", name=name, **fields):
                if "data" in record:
                    self.output += base64.b64decode(record["data"])
                elif "ok" in record:
                    self.end = record
                else:
                    self.told.append(record)
                self._tell()
        except ControlError as error:
            self.end = error
        except anyio.ClosedResourceError:
            pass  # by the test
        self._tell()

    def _tell(self) -> None:
        self._news.set()
        self._news = anyio.Event()

    async def until(self, ready: Callable[[], object]) -> None:
        with anyio.fail_after(30):
            while not ready():
                await self._news.wait()

    async def hears(self, text: bytes) -> None:
        await self.until(lambda: text in self.output)

    async def is_told(self, **what: object) -> None:
        await self.until(lambda: self.told and what.items() <= self.told[-1].items())

    async def ends(self) -> str:
        await self.until(lambda: self.end is not None)
        return str(self.end) if isinstance(self.end, ControlError) else str((self.end or {})["ended"])

    async def types(self, data: bytes) -> None:
        await self.control.send({"data": base64.b64encode(data).decode()})


def _echoing() -> int:
    """How many children have got so far as to run cat."""
    found = 0
    for children in pathlib.Path("/proc/self/task").glob("*/children"):
        for pid in children.read_text().split():
            with contextlib.suppress(OSError):
                found += pathlib.Path(f"/proc/{pid}/comm").read_text() == "cat\n"
    return found


class Lab:
    """A console server, and its clients."""

    def __init__(self, socket: str, tasks: anyio.abc.TaskGroup) -> None:
        self.socket = socket
        self.hosting = anyio.CancelScope()
        self._tasks = tasks
        self._open = contextlib.AsyncExitStack()

    async def start(self, *shares: Share) -> None:
        async def run(*, task_status: anyio.abc.TaskStatus[None]) -> None:
            with self.hosting:
                await host(shares, self.socket, task_status=task_status)

        echoing = _echoing() + sum(share.command == ECHO for share in shares)
        await self._tasks.start(run)
        while _echoing() < echoing:  # what is typed before would come twice
            await anyio.sleep(0.001)

    async def connect(self) -> Control:
        return await self._open.enter_async_context(await connect(self.socket))

    async def attach(self, mode: str = "write", name: str = "lab", **fields: Any) -> Attached:
        attached = Attached(await self.connect())
        self._tasks.start_soon(lambda: attached.listen(name, mode=mode, **fields))
        await attached.until(lambda: attached.told or attached.end)
        return attached

    async def close(self) -> None:
        await self._open.aclose()
        self.hosting.cancel()


@contextlib.asynccontextmanager
async def lab(folder: pathlib.Path, *shares: Share) -> AsyncIterator[Lab]:
    async with anyio.create_task_group() as tasks:
        opened = Lab(str(folder / "socket"), tasks)
        try:
            await opened.start(*shares)
            yield opened
        finally:
            await opened.close()


async def test_each_sees_all_and_one_types(tmp_path: pathlib.Path) -> None:
    """The first who may has the keyboard; what others type is thrown away; output, also the last, goes to all."""
    async with lab(tmp_path, Share("lab", ECHO)) as server:
        watcher, first, second = [await server.attach(mode) for mode in ("watch", "write", "write")]
        await first.is_told(keyboard="root-2", yours=True)
        for other in (watcher, second):
            await other.is_told(keyboard="root-2", yours=False)
            await other.types(b"mine")
        await first.types(b"hello")
        for each in (watcher, first, second):
            await each.hears(b"hello")
        late = await server.attach("watch")
        await late.hears(b"hello")
        assert {each.output for each in (watcher, first, second, late)} == {b"hello"}


async def test_late_client_gets_the_last_output(tmp_path: pathlib.Path) -> None:
    """In lines that are not too long, however much it is."""
    program = (sys.executable, "-ISc", "print('x' * 60000 + 'end'); input()")
    async with lab(tmp_path, Share("lab", program)) as server:
        for _ in range(2):
            client = await server.attach()
            await client.hears(b"end")
            assert client.output.count(b"x") == 60000


async def test_keyboard_goes_from_hand_to_hand(tmp_path: pathlib.Path) -> None:
    """It is taken by force, comes back when that one leaves, is taken away alone; all are told each time."""
    async with lab(tmp_path, Share("lab", ECHO)) as server:
        one, two, watcher = [await server.attach(mode) for mode in ("force", "write", "watch")]
        boss = await server.attach("force")
        for each in (one, two, watcher, boss):
            await each.is_told(keyboard="root-4", yours=each is boss)
        await one.types(b"lost")
        await boss.types(b"boss")
        await one.hears(b"boss")
        await boss.control.send({"detach": True})
        assert await boss.ends() == "detached"
        await one.is_told(keyboard="root", yours=True)
        admin = await server.connect()
        await admin.revoke("lab/root/keyboard", "hands off")
        await one.is_told(yours=False, reason="hands off")
        await two.is_told(keyboard="root-2", yours=True)
        await two.control.aclose()
        await watcher.is_told(keyboard=None, yours=False)
        assert watcher.output == b"boss"


async def test_window_is_that_of_whoever_types(tmp_path: pathlib.Path) -> None:
    """The terminal has the size of the window of the one who has the keyboard, and follows it."""
    program = ("sh", "-c", "trap 'stty size' WINCH; echo ready; while :; do read line; stty size; done")
    async with lab(tmp_path, Share("lab", program)) as server:
        one = await server.attach(size=[30, 100])
        await one.hears(b"ready")
        two = await server.attach(size=[40, 120])
        await one.types(b"\n")
        await one.hears(b"30 100")
        await two.control.send({"size": [41, 121]})
        await settle(50)
        await one.types(b"\n")
        await one.until(lambda: one.output.count(b"30 100") > 1)
        await one.control.send({"size": [31, 101]})
        await one.hears(b"31 101")
        assert b"41 121" not in one.output
        await one.control.send({"detach": True})
        await two.hears(b"41 121")


async def test_one_is_taken_off_and_the_others_notice_nothing(tmp_path: pathlib.Path) -> None:
    """Who is revoked is told why, and may come again; then the session goes from all, and so does the server."""
    async with lab(tmp_path, Share("lab", ECHO)) as server:
        alice, bob = await server.attach(), await server.attach()
        admin = await server.connect()
        assert (await admin.revoke("lab/root-2", "shift over"))["done"]
        assert await bob.ends() == "root-2 was taken off by root: shift over"
        bob = await server.attach()
        await alice.types(b"still here")
        await bob.hears(b"still here")
        assert alice.told[1:] == [{"keyboard": "root", "yours": True, "reason": "", "by": ""}]
        reply = await admin.revoke("lab", "maintenance")
        assert reply["done"], "it is answered, though the server has nothing to share any more"
        assert reply["report"]["errors"] == [], "the keyboard is handed to nobody who goes, too"
        assert [await each.ends() for each in (alice, bob)] == [
            f"{name} was taken off by root: maintenance" for name in ("root", "root-2")
        ]
    assert not pathlib.Path(server.socket).exists()


@pytest.mark.parametrize(
    ("end", "told"),
    [
        ("exit 0", "the program has ended with status 0"),
        ("exit 3", "the program has ended with status 3"),
        ("exec sleep 1000 <&- >&- 2>&-", "the program has closed its terminal"),
    ],
)
async def test_end_of_the_program_is_told_after_its_last_output(
    tmp_path: pathlib.Path, end: str, told: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """All clients get the last byte, once, then how it ended; the server ends when they have it."""
    monkeypatch.setattr(console, "_LAST_WORDS", math.inf)
    program = ("sh", "-c", f"read line; echo last words; {end}")
    async with lab(tmp_path, Share("lab", program)) as server:
        clients = [await server.attach(), await server.attach("watch")]
        await clients[0].types(b"\n")
        for each in clients:
            assert await each.ends() == told
            assert each.output == b"\r\nlast words\r\n"


async def test_program_has_a_terminal_of_a_kind_and_nothing_that_is_the_servers(
    tmp_path: pathlib.Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A service has no TERM, and a socket of systemd's, to which the program would talk in its place."""
    monkeypatch.delenv("TERM", raising=False)
    monkeypatch.setenv("NOTIFY_SOCKET", "/no/such/socket")
    monkeypatch.setenv("MINE", "kept")
    program = ("sh", "-c", 'echo "$TERM, $NOTIFY_SOCKET, $MINE."; exec cat')
    async with lab(tmp_path, Share("lab", program)) as server:
        client = await server.attach()
        await client.hears(b".")
        assert client.output == b"xterm, , kept.\r\n"


async def test_stopped_server_tells_all_and_leaves_nothing(tmp_path: pathlib.Path) -> None:
    """Its cancellation takes the programs away, which are reaped, and each client learns why."""
    async with lab(tmp_path, Share("lab", ("sh", "-c", "echo pid $$.; exec cat")), Share("other")) as server:
        clients = [await server.attach(), await server.attach(name="other")]
        await clients[0].hears(b".")
        pid = int(clients[0].output.split()[1].strip(b"."))
        server.hosting.cancel()
        for each in clients:
            assert (await each.ends()).endswith("was taken off: the console server was stopped")
    with pytest.raises(ProcessLookupError):
        os.kill(pid, 0)


async def test_program_is_no_faster_than_the_slowest_who_reads(tmp_path: pathlib.Path) -> None:
    """Of a flood, a client that reads a line now and then gets all, as do the others; nobody is taken off."""
    total = 3_000_000
    program = (sys.executable, "-ISc", f"input(); print('x' * {total} + 'end'); input()")
    async with lab(tmp_path, Share("lab", program, history=0)) as server:
        slow, reader = await server.connect(), await server.attach()
        await slow.send({"v": 1, "do": "attach", "name": "lab", "mode": "watch"})
        while "attached" not in await slow.receive():
            pass
        await reader.types(b"\n")
        got = b""
        while b"end" not in got:
            await settle()
            got += base64.b64decode((await slow.receive()).get("data", ""))
        await reader.hears(b"end")
        assert got.count(b"x") == reader.output.count(b"x") == total


async def test_who_does_not_read_is_taken_off_and_told(tmp_path: pathlib.Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Of a flood, a client that does not read is a bounded number of bytes behind, then off; the others get all of it."""
    monkeypatch.setattr(console, "open_pty", functools.partial(open_pty, patience=0.1))
    total = 3_000_000
    program = (
        sys.executable,
        "-ISc",
        f"import os, sys; input(); sys.stdout.write('x' * {total}); print('end'); input()",
    )
    async with lab(tmp_path, Share("lab", program, history=0)) as server:
        slow = await server.connect()
        await slow.send({"v": 1, "do": "attach", "name": "lab", "mode": "watch"})
        reader = await server.attach()
        await reader.types(b"\n")
        await reader.hears(b"end\r\n")
        assert reader.output.count(b"x") == total
        got = 0
        with pytest.raises(ControlError, match=r"was taken off: it was \d+ bytes behind, and may be 65536"):
            while True:
                got += len((await slow.receive()).get("data", ""))
        assert got < total
        assert reader.end is None


@pytest.mark.parametrize(
    ("what", "wait", "why"),
    [
        ("lab/root", b"false", b"root was taken off by root: enough"),
        ("lab/sh", b"false", b"was taken off by root: enough"),
        ("lab/sh/root", b"true", b"root was taken off by root: enough"),
        ("", b"true", b"the control server has ended"),
    ],
)
async def test_what_waits_for_a_client_is_not_sent_after_the_report(
    tmp_path: pathlib.Path, what: str, wait: bytes, why: bytes, monkeypatch: pytest.MonkeyPatch
) -> None:
    """To one who does not read, output waits to be sent: once the revocation is reported, only the reason still comes.
    Nor does the end of a program wait for him for ever.
    """
    for module in console, control_server:
        monkeypatch.setattr(module, "_LAST_WORDS", 60 if what else 0.01)
    program = ("sh", "-c", "stty -echo; echo ready; while read line; do printf %01000d 7; done")
    async with (
        lab(tmp_path, Share("lab", program, history=0)) as server,
        await anyio.connect_unix(server.socket) as slow,
    ):
        await slow.send(b'{"v": 1, "do": "attach", "name": "lab", "mode": "watch", "wait": %b}\n' % wait)
        writer, admin = await server.attach(), await server.connect()
        socket = slow.extra(SocketAttribute.raw_socket)

        def queued() -> int:
            return int.from_bytes(fcntl.ioctl(socket, termios.FIONREAD, bytes(4)), sys.byteorder)

        before, stuck = -1, 0
        while stuck < 8:  # far less than it may be behind
            writer.output = b""
            await writer.types(b"\n")
            await writer.hears(b"7")
            await settle()
            stuck = stuck + 1 if queued() == before else 0
            before = queued()
        if what:
            assert (await admin.revoke(what, "enough"))["done"]
        else:
            await writer.types(b"\x04")  # the program ends
            with anyio.fail_after(30):
                while pathlib.Path(server.socket).exists():
                    await settle()
        sent = queued()
        received = b""
        with anyio.fail_after(30):
            while b'"error"' not in received:
                received += await slow.receive()
        assert b'"data"' not in received[sent:]
        assert why in received


@pytest.mark.parametrize("how", ["dies", "force", "lab/root/keyboard", "lab/root"])
async def test_keyboard_of_a_stalled_device_changes_hands(tmp_path: pathlib.Path, how: str) -> None:
    """What was typed waits for the device, for ever; whoever loses the keyboard, it is thrown away, and the next has it."""
    async with lab(tmp_path, Share("lab", ("sh", "-c", "stty raw -echo; echo ready; exec sleep 1000"))) as server:
        stuck = await server.attach()
        await stuck.hears(b"ready")
        waits, admin = await server.attach(), await server.connect()

        async def keyboards() -> list[tuple[str, int]]:
            return [(node["path"], node["in_use"]) for node in await admin.list() if "keyboard" in node["path"]]

        for _ in range(24):  # more than a terminal keeps, less than a socket does
            await stuck.types(b"x" * 4096)
        for _ in range(100):  # time for all of it to be typed, if it could
            await keyboards()
        assert await keyboards() == [("lab/root/keyboard", 1)]
        if how == "dies":
            await stuck.control.aclose()
        elif how == "force":
            await server.attach("force")
        else:
            assert (await admin.revoke(how))["done"]
        heir = "root-3" if how == "force" else "root-2"
        await waits.is_told(keyboard=heir)
        with anyio.fail_after(30):
            while await keyboards() != [(f"lab/{heir}/keyboard", 0)]:
                pass
        if how in ("force", "lab/root/keyboard"):  # he may watch
            await stuck.control.send({"detach": True})
            assert await stuck.ends() == "detached"


#: Reads nothing; ctrl-C ends it, if it comes through.
DEAF = ("sh", "-c", "stty raw isig -echo; echo ready; exec sleep 1000")
KILLED = "the program has ended with status -2"


async def pasted(server: Lab) -> Attached:
    """Who has pasted more than the terminal of a deaf program takes, all of which has come as far as it can."""
    client, admin = await server.attach(), await server.connect()
    await client.hears(b"ready")
    for _ in range(24):
        await client.types(b"x" * 4096)
    while ("lab/root/keyboard", 1) not in [(node["path"], node["in_use"]) for node in await admin.list()]:
        pass
    for _ in range(100):
        await admin.list()
    return client


@pytest.mark.parametrize("how", ["force", "lab/root/keyboard", "lab/root", "lab/sh/root"])
async def test_what_was_typed_goes_with_who_is_taken_off(tmp_path: pathlib.Path, how: str) -> None:
    """Also what the terminal has: the next one's ctrl-C is the first that the program gets."""
    async with lab(tmp_path, Share("lab", DEAF)) as server:
        await pasted(server)
        heir = await server.attach("force" if how == "force" else "write")
        if how != "force":
            assert (await (await server.connect()).revoke(how))["report"]["errors"] == []
        await heir.is_told(yours=True)
        await heir.types(b"\x03")
        assert await heir.ends() == KILLED


@pytest.mark.parametrize("whose", ["mine", "another's"])
async def test_interrupt_passes_what_is_stuck(tmp_path: pathlib.Path, whose: str) -> None:
    """It is typed before all that waits for the program, whether I have typed that, or one who has left."""
    async with lab(tmp_path, Share("lab", DEAF)) as server:
        client = await pasted(server)
        if whose == "another's":
            before, client = client, await server.attach()
            await before.control.aclose()
            await client.is_told(yours=True)
            await client.types(b"stuck, too")
        await client.control.send({"interrupt": True})
        assert await client.ends() == KILLED


async def test_where_nothing_can_be_thrown_away_the_keyboard_is_handed_on(tmp_path: pathlib.Path) -> None:
    """A port behind a socket cannot flush what was typed: an interrupt is typed all the same, and the next one types."""
    with socket.create_server(("127.0.0.1", 0)) as port:
        device = f"socket://127.0.0.1:{port.getsockname()[1]}"
        async with lab(tmp_path, Share("lab", device=device)) as server:
            far, _ = await anyio.to_thread.run_sync(port.accept)
            with far:
                far.settimeout(20)
                first, second = await server.attach(wait=True), await server.attach(wait=True)
                admin = await server.connect()
                while not [node for node in await admin.list("lab") if node["path"].endswith("/recorder")]:
                    await anyio.lowlevel.checkpoint()  # it is not open yet
                await first.types(b"a")
                assert await anyio.to_thread.run_sync(far.recv, 1) == b"a"
                await first.control.send({"interrupt": True})
                assert await anyio.to_thread.run_sync(far.recv, 1) == b"\x03"
                done = await admin.revoke("lab/root/keyboard")
                assert done["report"]["errors"] == []
                await second.is_told(yours=True)


async def test_log_counts_what_never_came_to_it(tmp_path: pathlib.Path, caplog: pytest.LogCaptureFixture) -> None:
    """As what came while the recorder had been taken away."""
    log = console_log.Log(open_file(str(tmp_path / "log")), "lab")
    log.miss(5)
    await log.write(b"on")
    log.close()
    assert [each.message for each in caplog.records] == [
        f"5 bytes of output of 'lab' are missing from the log '{tmp_path / 'log'}'"
    ]


async def test_interrupt_needs_the_keyboard(tmp_path: pathlib.Path) -> None:
    """Of one who has not got it, it does nothing."""
    async with lab(tmp_path, Share("lab", ECHO)) as server:
        writer, watcher = await server.attach(), await server.attach()
        await watcher.control.send({"interrupt": True})
        await watcher.control.send({"detach": True})
        assert await watcher.ends() == "detached"
        await writer.types(b"on")
        await writer.hears(b"on")
        assert writer.output == b"on"


async def test_what_was_typed_stays_when_one_leaves(tmp_path: pathlib.Path) -> None:
    """Who detaches has typed all that he sent, also what the program reads later."""
    go = tmp_path / "go"
    os.mkfifo(go)
    program = ("sh", "-c", f"stty raw -echo; echo ready; read line < {go}; exec head -c 4")
    async with lab(tmp_path, Share("lab", program)) as server:
        typist, watcher = await server.attach(), await server.attach("watch")
        await watcher.hears(b"ready")
        await typist.types(b"text")
        await typist.control.send({"detach": True})
        assert await typist.ends() == "detached"
        go.write_text("\n")
        await watcher.hears(b"text")


async def test_who_has_left_has_left_nothing(tmp_path: pathlib.Path) -> None:
    """All is as before, and the next has the name and the keyboard."""
    async with lab(tmp_path, Share("lab")) as server:
        admin = await server.connect()

        async def paths() -> list[str]:
            return [node["path"] for node in await admin.list()]

        while "lab/loopback/recorder" not in (before := await paths()):
            pass
        for _ in range(2):
            client = await server.attach()
            assert client.told[0] == {"attached": "lab/root"}
            await client.is_told(keyboard="root", yours=True)
            await client.control.send({"detach": True})
            assert await client.ends() == "detached"
            assert await paths() == before


async def test_client_is_named_as_nothing_else_there(tmp_path: pathlib.Path) -> None:
    """Of a user who is called as the program, or as the share, the client alone can be taken off."""
    program = tmp_path / "root"
    program.symlink_to("/bin/cat")
    async with lab(tmp_path, Share("lab", (str(program),)), Share("root", ECHO)) as server:
        for name in ("lab", "root"):
            assert (await server.attach(name=name)).told[0] == {"attached": f"{name}/root-2"}


@pytest.mark.parametrize("closes", [True, False])
@pytest.mark.parametrize("why", ["the program has ended with status 3", "enough"])
async def test_share_that_is_over_leaves_the_others_alone(
    tmp_path: pathlib.Path, why: str, closes: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It is listed no longer, even if it was not closed well; who comes too late is told how it ended."""
    reap = PtySession._reap

    async def fail(session: PtySession) -> None:
        await reap(session)
        raise OSError("it does not close")

    if not closes:
        monkeypatch.setattr(PtySession, "_reap", fail)
    async with lab(tmp_path, Share("lab", ("sh", "-c", "read line; exit 3")), Share("other", ECHO)) as server:
        admin, client = await server.connect(), await server.attach()
        if why == "enough":
            await admin.revoke("lab", why)
        else:
            await client.types(b"\n")
        await client.ends()
        while await admin.list("lab"):
            pass
        assert await (await server.attach()).ends() == f"'lab' was revoked: {why}"
        other = await server.attach(name="other")
        await other.types(b"here")
        await other.hears(b"here")


async def test_fault_of_the_server_is_told_and_logged(
    tmp_path: pathlib.Path, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A share that fails ends with the reason."""

    def fail(*_: object) -> None:
        raise ValueError("no")

    for way in "_take", "_record":  # of the loop, and of a task
        monkeypatch.setattr(console.Console, way, fail)
    async with lab(tmp_path, Share("lab", ECHO)) as server:
        client = await server.attach()
        await client.types(b"x")
        assert await client.ends() == "root was taken off: a fault of the server: ValueError('no')"
    assert "lab is no longer shared, because of this fault of the server" in caplog.text


async def test_unplugged_device_comes_back_to_those_who_wait(
    tmp_path: pathlib.Path, caplog: pytest.LogCaptureFixture
) -> None:
    """Who asked for it stays, is told, and goes on with the next generation; others end with the reason."""
    caplog.set_level("INFO", "asyncrevoke")
    plug = Plug(tmp_path / "port")
    plug.plug_in()
    try:
        async with lab(tmp_path, Share("lab", device=str(plug.link), settings=Settings(115200))) as server:
            admin = await server.connect()
            while not any(node["path"].endswith("/recorder") for node in await admin.list()):
                pass
            stays = await server.attach(wait=True)
            assert plug.end is not None
            assert termios.tcgetattr(plug.end._slave)[5] == termios.B115200
            plug.end.send(b"one")
            await stays.hears(b"one")
            goes = await server.attach("watch", wait=False)
            await goes.hears(b"one")
            plug.unplug()
            assert ": unplugged: " in await goes.ends()
            await stays.until(lambda: "away" in stays.told[-1])
            assert stays.told[-1]["away"].startswith("unplugged: ")
            late = await server.attach()
            assert "'lab' is away: unplugged: " in await late.ends()
            with anyio.fail_after(30):
                while "lab is waited for" not in caplog.text:  # it was tried to open it, in vain
                    await anyio.lowlevel.checkpoint()
            node = (await admin.list("lab"))[0]
            assert node["state"] == "away"
            assert node["reason"].startswith("unplugged: ")
            plug.plug_in()
            await stays.until(lambda: "back" in stays.told[-1])
            assert stays.told[-1] == {"back": node["generation"] + 1}
            plug.end.send(b"two")
            await stays.hears(b"two")
            await stays.types(b"typed")
            got = b""
            with anyio.fail_after(30):
                while got != b"typed":
                    await anyio.lowlevel.checkpoint()
                    got += plug.end.received()
            await admin.revoke("lab", "no more")
            assert await stays.ends() == "root was taken off by root: no more"
            assert "back" in stays.told[-1], "nobody has told him to wait"
    finally:
        plug.close()


async def test_device_that_was_never_there_is_away(tmp_path: pathlib.Path) -> None:
    """It is listed as what it is, and why; a share of a program is live."""
    shares = Share("ghost", device=str(tmp_path / "port")), Share("lab", ECHO)
    async with lab(tmp_path, *shares) as server:
        nodes = {node["path"]: node for node in await (await server.connect()).list() if node["kind"] != "generation"}
        ghost = nodes["ghost"]
        assert (ghost["state"], ghost["generation"], ghost["reason"]) == ("away", None, "it has not come yet")
        assert (nodes["lab"]["state"], nodes["lab"]["generation"], nodes["lab"]["reason"]) == ("live", 1, "")


@pytest.mark.parametrize("what", ["lab", "lab/root"])
async def test_who_waits_for_a_device_can_be_taken_off(
    tmp_path: pathlib.Path, what: str, caplog: pytest.LogCaptureFixture
) -> None:
    """He is told why, though nothing comes, and at once, as he is idle."""
    async with lab(tmp_path, Share("lab", device=str(tmp_path / "port"))) as server:
        client = await server.attach(wait=True)
        await client.until(lambda: {"away": "it has not come yet"} in client.told)
        assert (await (await server.connect()).revoke(what, "it will not come", grace=3600, timeout=30))["done"]
        assert await client.ends() == "root was taken off by root: it will not come"
    assert not caplog.records


async def test_program_does_not_come_back(tmp_path: pathlib.Path) -> None:
    """Who waits although its terminal was taken away is told how it has ended."""
    async with lab(tmp_path, Share("lab", ECHO)) as server:
        client = await server.attach(wait=True)
        await client.is_told(keyboard="root")
        await (await server.connect()).revoke("lab/sh", "enough")
        assert await client.ends() == "the program has ended with status -1"
        assert client.told[2:] in ([], [{"away": "hung up by root: enough"}])


async def test_size_may_be_told_when_there_is_no_terminal_any_more(
    tmp_path: pathlib.Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Who waits although it was taken away may resize his window, until the program has ended."""
    monkeypatch.setattr(console, "_ENDS_WITHIN", math.inf)
    leave = tmp_path / "leave"
    os.mkfifo(leave)
    program = (
        "sh",
        "-c",
        f"trap 'until read line < {leave}; do :; done; exit 3' HUP; echo ready; while :; do sleep 0.01; done",
    )
    async with lab(tmp_path, Share("lab", program)) as server:
        client, admin = await server.attach(wait=True, size=[24, 80]), await server.connect()
        await client.hears(b"ready")
        await admin.revoke("lab/sh", "enough", timeout=0)
        await client.control.send({"size": [30, 90]})
        await admin.list()  # it has been heard by then
        leave.write_text("\n")
        assert await client.ends() == "the program has ended with status 3"


@pytest.mark.parametrize(
    "fields",
    [
        {"mode": "shout"},
        {"mode": None},
        {"name": "nothing"},
        {"name": ["lab"]},
        {"wait": 1},
        {"size": [0, 80]},
        {"size": [24, 80, 0]},
        {"size": [24, 1000]},
        {"size": "24x80"},
        {"size": [24.0, True]},
    ],
)
async def test_request_that_makes_no_sense_is_refused(tmp_path: pathlib.Path, fields: dict[str, Any]) -> None:
    """What is wrong is named, nobody is attached, and the connection can be used on."""
    async with lab(tmp_path, Share("lab", ECHO)) as server:
        control = await server.connect()
        with pytest.raises(ControlError, match=next(iter(fields)) if "name" not in fields else "name|nothing"):
            async for _ in control.request("attach", **{"name": "lab", **fields}):
                pass
        assert not [node for node in await control.list("lab") if node["path"] == "lab/root"]


@pytest.mark.parametrize("line", [{"data": "%%%"}, {"data": 1}, {"detach": 1}, {"size": [1]}])
async def test_line_that_makes_no_sense_ends_one_client_alone(tmp_path: pathlib.Path, line: dict[str, Any]) -> None:
    """It is told, and off; nothing of it reaches the device."""
    async with lab(tmp_path, Share("lab", ECHO)) as server:
        bad, good = await server.attach(), await server.attach()
        await bad.control.send(line)
        await bad.ends()
        assert isinstance(bad.end, ControlError)
        assert bad.end.code == "bad-request"
        await good.is_told(keyboard="root-2", yours=True)
        await good.types(b"fine")
        await good.hears(b"fine")
        assert good.output == b"fine"


async def test_garbage_ends_the_connection(tmp_path: pathlib.Path) -> None:
    """What follows a line that is none may be anything: it is told, and not read."""
    async with lab(tmp_path, Share("lab", ECHO)) as server, await anyio.connect_unix(server.socket) as client:
        await client.send(b'{"v": 1, "do": "attach", "name": "lab"}\ngarbage\n{"data": "bm8="}\n')
        received = b""
        with anyio.fail_after(30), contextlib.suppress(anyio.EndOfStream):
            while True:
                received += await client.receive()
        assert json.loads(received.splitlines()[-1])["error"] == "garbage"


async def test_who_sends_no_more_still_receives(tmp_path: pathlib.Path) -> None:
    """A client may close his half; he is shown all that comes, and how it ends."""
    async with lab(tmp_path, Share("lab", ECHO)) as server, await anyio.connect_unix(server.socket) as half:
        await half.send(b'{"v": 1, "do": "attach", "name": "lab", "mode": "watch"}\n')
        await half.send_eof()
        writer = await server.attach()
        await writer.types(b"text")
        received = b""
        with anyio.fail_after(30):
            while base64.b64encode(b"text") not in received:
                received += await half.receive()
            assert (await (await server.connect()).revoke("lab/root", "enough"))["done"]
            with contextlib.suppress(anyio.EndOfStream):
                while True:
                    received += await half.receive()
        assert json.loads(received.splitlines()[-1])["message"].endswith("root was taken off by root: enough")


async def test_log_is_not_for_everybody(tmp_path: pathlib.Path) -> None:
    """What is shown may be secret: its mode is 0640. A pipe that nobody reads is refused, and not waited for."""
    log = tmp_path / "log"
    async with lab(tmp_path, Share("lab", ECHO, log=str(log))):
        assert stat.S_IMODE(log.stat().st_mode) == 0o640
    os.mkfifo(tmp_path / "pipe")
    with pytest.raises(OSError, match="No such device"):
        await host([Share("lab", ECHO, log=str(tmp_path / "pipe"))], str(tmp_path / "socket"))


async def test_output_is_logged_and_a_full_disk_is_no_end(
    tmp_path: pathlib.Path, caplog: pytest.LogCaptureFixture
) -> None:
    """All output is appended to the log; where that fails, it is told, once, with what was lost, and the console goes on."""
    log = tmp_path / "log"
    log.write_bytes(b"before\n")
    async with lab(tmp_path, Share("lab", ECHO, log=str(log)), Share("full", ECHO, log="/dev/full")) as server:
        for name in ("lab", "full"):
            client = await server.attach(name=name)
            for text in (b"one ", b"two ", b"three"):
                await client.types(text)
                await client.hears(text)
    assert log.read_bytes() == b"before\none two three"
    assert [each.message for each in caplog.records] == [
        "output of 'full' is missing from the log '/dev/full': No space left on device",
        "13 bytes of output of 'full' are missing from the log '/dev/full'",
    ]


@contextlib.contextmanager
def read_pipe(path: pathlib.Path) -> Iterator[int]:
    """A pipe at that path, and a reader of it, which does not wait."""
    os.mkfifo(path)
    reader = os.open(path, os.O_RDONLY | os.O_NONBLOCK)
    try:
        yield reader
    finally:
        os.close(reader)


async def test_slow_reader_of_a_log_loses_nothing(
    tmp_path: pathlib.Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """A full pipe is waited for, and the program with it."""
    monkeypatch.setattr(console_log, "_PATIENCE", math.inf)
    program = (sys.executable, "-ISc", "input(); print('x' * 400_000 + 'end'); input()")
    with read_pipe(tmp_path / "log") as reader:
        async with lab(tmp_path, Share("lab", program, log=str(tmp_path / "log"))) as server:
            client = await server.attach()
            await client.types(b"\n")
            logged = b""
            with anyio.fail_after(30):
                while b"end" not in logged:
                    await anyio.wait_readable(reader)
                    await settle()
                    logged += os.read(reader, 4096)
    assert logged.count(b"x") == 400_000
    assert not caplog.records


async def test_log_that_takes_nothing_holds_up_nobody_and_is_tried_again(
    tmp_path: pathlib.Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """Behind a full pipe output is lost, and told. When it is read again, the log goes on, and the loss is counted."""
    monkeypatch.setattr(console_log, "_PATIENCE", 0.1)
    program = (
        sys.executable,
        "-ISc",
        "import os; os.system('stty -echo'); input(); print('x' * 400_000); os.execlp('cat', 'cat')",
    )
    with read_pipe(tmp_path / "log") as reader:
        async with lab(tmp_path, Share("lab", program, log=str(tmp_path / "log"), history=0)) as server:
            client = await server.attach()
            await client.types(b"\n")
            await client.until(lambda: client.output.count(b"x") == 400_000)
            with anyio.fail_after(30):
                while not caplog.records:
                    await settle()
            logged = os.read(reader, 1 << 20).count(b"x")
            await client.types(b"again\n")
            with anyio.fail_after(30):
                await anyio.wait_readable(reader)
                while len(caplog.records) < 2:
                    await settle()
        logged += os.read(reader, 1 << 20).count(b"x")
    said, counted = (each.message for each in caplog.records)
    assert said == f"output of 'lab' is missing from the log '{tmp_path / 'log'}': nothing was read from it for 0.1 s"
    assert abs(400_000 - logged - int(counted.split()[0])) < 10, "but for the ends of lines"


async def test_log_waits_for_its_reader_once(
    tmp_path: pathlib.Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """When something is lost already, more is lost at once; the end tells how much."""
    monkeypatch.setattr(console_log, "_PATIENCE", 0.01)
    with read_pipe(tmp_path / "log") as reader:
        log = console_log.Log(open_file(str(tmp_path / "log")), "lab")
        await log.write(b"x" * 400_000)
        monkeypatch.setattr(console_log, "_PATIENCE", math.inf)
        with anyio.fail_after(10):
            await log.write(b"more")
        log.close()
        lost = 400_004 - len(os.read(reader, 1 << 20))
    assert caplog.messages[1:] == [f"{lost} bytes of output of 'lab' are missing from the log '{tmp_path / 'log'}'"]


async def test_recorder_that_is_taken_away_comes_again(tmp_path: pathlib.Path) -> None:
    """All is logged on, and nobody who is attached notices."""
    log = tmp_path / "log"
    async with lab(tmp_path, Share("lab", ECHO, log=str(log))) as server:
        client, admin = await server.attach(), await server.connect()
        assert (await admin.revoke("lab/sh/recorder"))["report"]["released"] == 1
        await client.types(b"text")
        await client.hears(b"text")
        with anyio.fail_after(30):
            while log.read_bytes() != b"text":
                await anyio.lowlevel.checkpoint()
        assert client.end is None


@pytest.mark.parametrize(
    ("share", "error", "match"),
    [
        ({"command": ("/no/such/program",)}, FileNotFoundError, "/no/such/program"),
        ({"name": "good"}, ValueError, "'good' is there twice"),
        ({"log": "/no/such/folder/log"}, FileNotFoundError, "/no/such/folder/log"),
    ],
)
async def test_what_cannot_be_shared_says_so(
    tmp_path: pathlib.Path, share: dict[str, Any], error: type[Exception], match: str
) -> None:
    """The error names it; what was opened before it is closed, and the socket is gone."""
    with pytest.raises(error, match=match):
        await host(
            [Share("good", ECHO, log="/dev/null"), Share(**{"name": "bad", "log": "/dev/null", **share})],
            str(tmp_path / "socket"),
        )
    assert not (tmp_path / "socket").exists()


async def test_group_that_is_not_there(tmp_path: pathlib.Path) -> None:
    """It is named."""
    with pytest.raises(ValueError, match="no group 'nosuch'"):
        await host([Share("good", ECHO)], str(tmp_path / "socket"), group="nosuch")


def test_share_that_makes_no_sense_is_refused() -> None:
    """A name is short and printable, and has no place in a path."""
    for name in ("", "a/b", "*", "a\nb", "x" * 65):
        with pytest.raises(ValueError, match="is not a name"):
            Share(name)
    Share("x" * 64)
    with pytest.raises(ValueError, match="a command and a device"):
        Share("lab", ("sh",), "/dev/ttyS0")


def test_shares_are_read_from_a_file(tmp_path: pathlib.Path) -> None:
    """A table for each share; what is wrong is named with the file."""
    file = tmp_path / "lab.toml"
    file.write_text(
        'group = "lab"\n[share.a]\ndevice = "/dev/ttyUSB0"\nbaudrate = 115200\n[share.b]\ncommand = ["sh", "-l"]\n'
    )
    assert read_config(str(file)) == Config(
        (Share("a", device="/dev/ttyUSB0", settings=Settings(115200)), Share("b", command=("sh", "-l"))),
        "lab",
    )
    for text, match in [
        ("", "nothing is shared: give .share.NAME."),
        ("[shares.a]", "there is no key 'shares': did you mean share?"),
        ("group = 1\n[share.a]", "group must be text, and not 1"),
        ('groups = "lab"\n[share.a]', "there is no key 'groups': did you mean group?"),
        ("[share.a]\nbaud = 1", "there is no key 'baud': did you mean baudrate"),
        ('[share.a]\ncommand = "sh"', "command must be a list, and not 'sh'"),
        ("[share.a]\nbaudrate = true", "baudrate = True"),
        ("share.a = 1", ".share.a.: give a table, and not 1"),
        ('[share."a/b"]', "'a/b' is not a name"),
        ("[share", "lab.toml"),
    ]:
        file.write_text(text)
        with pytest.raises(ValueError, match=match) as info:
            read_config(str(file))
        assert "lab.toml" in str(info.value)


@pytest.mark.timeout(300)
@pytest.mark.parametrize(
    ("anyio_backend", "times"),
    [
        pytest.param(each.values[0], ROUNDS if each.id == "asyncio" else min(ROUNDS, 50), id=each.id)
        for each in BACKENDS
    ],
)
async def test_nothing_passes_once_the_revocation_is_reported(tmp_path: pathlib.Path, times: int) -> None:
    """Both ways are flooded. After each report no byte of the revoked client reaches the device, and none that the device
    sends from then on reaches the client.
    """
    record = tmp_path / "record"
    program = (sys.executable, "-ISc", DEVICE, str(record))
    async with lab(tmp_path, Share("lab", program, history=0)) as server, anyio.create_task_group() as tasks:
        bob = await server.attach()
        admin = await server.connect()
        floods = []
        for number in range(times):
            alice = await server.attach("force")

            async def flood(alice: Attached = alice, line: bytes = b"a%d;\n" % number * 100) -> None:
                with contextlib.suppress(ControlError, anyio.BrokenResourceError, anyio.ClosedResourceError):
                    while alice.end is None:
                        await alice.types(line)

            tasks.start_soon(flood)
            await alice.until(lambda alice=alice: alice.output)  # type: ignore[misc]
            assert (await admin.revoke("lab/root-2", "enough"))["done"]
            await bob.is_told(yours=True)
            await bob.types(b"\nM%d\n" % number)
            await bob.hears(b"OUT%d\n" % number)
            bob.output = bob.output[-20:]
            assert await alice.ends() == "root-2 was taken off by root: enough"
            assert b"OUT%d\n" % number not in alice.output
            floods.append(alice.output)
            await alice.control.aclose()
        tasks.cancel_scope.cancel()
    marks = 0
    for line in record.read_bytes().splitlines():
        if line.startswith(b"M"):
            assert line == b"M%d" % marks
            marks += 1
        else:
            assert (b"a%d;" % marks).startswith(line), "typed after its revocation was reported"
    assert marks == times
