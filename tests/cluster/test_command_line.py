"""The command line of a cluster: real commands, members in this process, and a log in a file between them."""

import contextlib
import json
import pathlib
import re
import signal
import sqlite3
import sys
import time
from collections.abc import AsyncIterator
from typing import Any

import anyio
import anyio.abc
import pytest
from anyio.streams.buffered import BufferedByteReceiveStream

from asyncrevoke import Registry, RevokedError
from asyncrevoke.cluster import Cluster, Entry, LogError, Member, Revoker
from asyncrevoke.cluster.log import Mode
from asyncrevoke.cluster.urls import open_log
from asyncrevoke.console.cli import main
from conftest import BACKENDS

pytestmark = pytest.mark.anyio

COMMAND = [sys.executable, "-W", "error", "-m", "asyncrevoke"]


@pytest.fixture(params=BACKENDS[:1])
def anyio_backend(request: pytest.FixtureRequest) -> Any:
    return request.param


@pytest.fixture(autouse=True)
def url(tmp_path: pathlib.Path, monkeypatch: pytest.MonkeyPatch) -> str:
    """A log that nobody has written to, where the commands look without being told."""
    url = f"sqlite://{tmp_path}/log.db"
    monkeypatch.delenv("ASYNCREVOKE_SOCKET", raising=False)
    monkeypatch.setenv("ASYNCREVOKE_CLUSTER", url)
    return url


async def says(*words: str, status: int = 0) -> str:
    """What a command prints, and that it ends with that status."""
    with anyio.fail_after(60):
        done = await anyio.run_process([*COMMAND, *words], check=False)
    text = (done.stdout + done.stderr).decode()
    assert done.returncode == status, text
    assert "Traceback" not in text
    return text


async def records(*words: str) -> list[Any]:
    return [json.loads(line) for line in (await says(*words, "--json")).splitlines()]


class Host:
    """A member with sessions that wait for ever, and end when they may."""

    def __init__(self, cluster: Cluster, tasks: anyio.abc.TaskGroup) -> None:
        self.cluster = cluster
        self.ended: dict[tuple[str, ...], str] = {}
        self.may_end = anyio.Event()
        self.may_end.set()
        self._tasks = tasks

    async def log_in(self, *key: str) -> None:
        await self._tasks.start(self._session, key)

    async def _session(self, key: tuple[str, ...], *, task_status: anyio.abc.TaskStatus[None]) -> None:
        try:
            with self.cluster.admit(*key):
                task_status.started()
                try:
                    await anyio.sleep_forever()
                finally:
                    with anyio.CancelScope(shield=True):
                        await self.may_end.wait()
        except RevokedError as error:
            self.ended[key] = error.reason

    def admits(self, *key: str) -> bool:
        with contextlib.suppress(RevokedError), self.cluster.admit(*key):
            return True
        return False


@contextlib.asynccontextmanager
async def following(url: str, name: str, **options: Any) -> AsyncIterator[Host]:
    """A member that has caught up."""
    log = open_log(url)
    try:
        cluster = Cluster(Registry(), log, host=name, **options)
        async with anyio.create_task_group() as tasks:
            await tasks.start(cluster.run)
            yield Host(cluster, tasks)
            tasks.cancel_scope.cancel()
    finally:
        await log.aclose()


async def a_dead_host(url: str, mode: Mode, lease: float) -> None:
    """A member that has read once, and never again."""
    log = open_log(url)
    await log.read(0, 0.0, Member("web9", "9", mode, lease))
    await log.aclose()


async def appended(url: str) -> list[Entry]:
    log = open_log(url)
    batch = await log.read(0, 0.0)
    await log.aclose()
    return [Entry.parse(text, number) for number, text in batch.texts]


def wipe(url: str) -> None:
    """Empty all tables of the file."""
    with contextlib.closing(sqlite3.connect(url.removeprefix("sqlite://"), isolation_level=None)) as file:
        for (table,) in file.execute("select name from sqlite_master where type = 'table'").fetchall():
            file.execute(f"delete from {table}")


async def test_revoke_ends_the_sessions_of_all_hosts(url: str) -> None:
    """One command, and they are gone everywhere, with the reason; it prints what each host did."""
    await says("cluster", "init")
    async with following(url, "web1") as one, following(url, "web2") as two:
        for host in one, two:
            await host.log_in("alice", "token7")
            await host.log_in("bob", "token8")
        head, *rest = (await says("revoke", "alice/token7", "--reason", "stolen")).splitlines()
        assert head == "'alice/token7' revoked (stolen) on 2 of 2 hosts: 2 kicked, 2 released"
        assert rest == ["  web1: 1 kicked, 1 released", "  web2: 1 kicked, 1 released"]
        assert one.ended == two.ended == {("alice", "token7"): "stolen"}
        assert not one.admits("alice", "token7")
        assert two.admits("alice", "token8")
        (answer,) = await records("revoke", "alice", "--cluster", url)
        assert answer["done"]
        assert [host["host"] for host in answer["report"]["hosts"]] == ["web1", "web2"]
        assert not two.admits("alice", "token8")


async def test_whoever_remains_is_named(url: str) -> None:
    """Then the status is 3; and 4 if something failed when it was released."""
    await says("cluster", "init")
    async with following(url, "web1") as host:
        await host.log_in("alice")
        host.may_end = anyio.Event()
        text = await says("revoke", "alice", "--timeout", "0.5", status=3)
        assert "on 0 of 1 hosts" in text
        assert re.search(r"  web1: 1 straggler \(.*test_command_line.py:\d+", text)
        host.may_end.set()

        def failing() -> None:
            raise OSError("the port is stuck")

        host.cluster.live["bob"].open("port", release=failing)
        assert "failed: OSError('the port is stuck')" in await says("revoke", "bob", status=4)


async def test_silent_host_is_named(url: str) -> None:
    """A strict one has failed closed when its lease is over; of another nobody knows."""
    await says("cluster", "init")
    await a_dead_host(url, "strict", 0.5)
    assert "web9: it did not answer, and its lease is over" in await says("revoke", "alice")
    await a_dead_host(url, "best_effort", 0.5)
    assert "web9: it did not answer, and goes on" in await says("revoke", "alice", status=3)


async def test_key_is_what_it_says(url: str) -> None:
    """It is split at slashes, unless its parts are given one by one; a star is everybody."""
    await says("cluster", "init")
    await says("revoke", "--parts", "alice", "a/b", "--expires", "30d", status=3)
    await says("revoke", "--reason", "maintenance", "*", status=3)
    await says("revoke", "--parts", "*", status=3)
    await says("cluster", "readmit", "a/b", "--reason", "a mistake")
    _, one, two, three, four = await appended(url)
    assert (one.path, two.path, three.path, four.path) == (("alice", "a/b"), (), ("*",), ("a", "b"))
    assert one.expires == pytest.approx(time.time() + 30 * 86400, abs=60)
    assert (two.reason, two.expires, four.do, four.reason) == ("maintenance", None, "readmit", "a mistake")


async def test_readmit_lifts_a_revocation(url: str) -> None:
    """Who was thrown out may log in again."""
    await says("cluster", "init")
    async with following(url, "web1") as host:
        await says("revoke", "alice")
        assert not host.admits("alice")
        assert await says("cluster", "readmit", "alice") == "'alice' may log in again\n"
        while not host.admits("alice"):
            await anyio.sleep(0.01)


async def test_empty_log_is_refused_until_it_has_begun(url: str) -> None:
    """A log that nobody follows may be the wrong one: nothing is written to it but a beginning, once."""
    assert "nothing is revoked: " in await says("revoke", "alice", status=1)
    assert "`asyncrevoke cluster init` begins it" in await says("cluster", "ls")
    assert "has begun" in await says("cluster", "init")
    assert "has begun already" in await says("cluster", "init", status=1)
    assert "no host follows " in await says("cluster", "ls")
    text = await says("revoke", "alice", status=3)
    assert "on 0 of 0 hosts" in text
    assert "no host follows " in text
    assert [entry.do for entry in await appended(url)] == ["init", "revoke"]


async def test_what_is_known_is_told_when_the_log_goes_away(url: str) -> None:
    """Whether it was written, and only the hosts are not known."""
    await says("cluster", "init")
    log = open_log(url)
    entry = Revoker(log).entry("alice", reason="stolen")
    await Revoker(log).append(entry)
    await log.aclose()
    with contextlib.closing(sqlite3.connect(url.removeprefix("sqlite://"))) as file:
        file.execute("drop table asyncrevoke_members")
        file.execute("create table asyncrevoke_members (nonsense)")
    log = open_log(url)
    with pytest.raises(LogError, match="'alice' is revoked, but it is not known where: sqlite"):
        await Revoker(log).report(entry)
    await log.aclose()
    assert "nothing is revoked: " in await says("revoke", "bob", status=1)


async def test_ls_shows_the_hosts(url: str) -> None:
    """How far each is behind, for how long it may vouch, and how many keys are in use."""
    await says("cluster", "init")
    async with following(url, "web1", mode="strict") as host:
        await host.log_in("alice")
        await a_dead_host(url, "best_effort", 0.1)
        assert "  web1: 0 kicked" in await says("revoke", "bob", status=3)
        while (await records("cluster", "ls"))[0]["behind"]:  # it says so when it reads on
            pass
        head, one, nine = (await says("cluster", "ls")).splitlines()
        assert head.split() == ["HOST", "MODE", "LEASE", "BEHIND", "KEYS", "IN", "USE", "SINCE", "POSITION"]
        assert re.fullmatch(r"web1  strict +\d+\.\d s left +\d +1 +\d s +[0-9a-f]{16}\.\d+", one)
        assert re.match(r"web9  best_effort  over for \d s +2 ", nine)
        one, nine = await records("cluster", "ls", "--cluster", url)
        assert (one["host"], one["behind"], one["sessions"], nine["behind"]) == ("web1", 0, 1, 2)
        assert one["lease_left"] > 0 > nine["lease_left"]


class Watch:
    """`cluster watch`, and what it shows."""

    def __init__(self, process: anyio.abc.Process) -> None:
        assert process.stdout
        assert process.stderr
        self.process = process
        self._shown, self._errors = BufferedByteReceiveStream(process.stdout), BufferedByteReceiveStream(process.stderr)

    async def shows(self, line: str) -> None:
        text = (await self._shown.receive_until(b"\n", 4096)).decode()
        assert re.fullmatch(line.replace("TIME", r"\d\d:\d\d:\d\d"), text), text

    async def complains(self, line: str) -> None:
        assert line in (await self._errors.receive_until(b"\n", 4096)).decode()


@contextlib.asynccontextmanager
async def watching(*more: str) -> AsyncIterator[Watch]:
    """From now on."""
    async with await anyio.open_process([*COMMAND, "cluster", "watch", *more]) as process:
        try:
            with anyio.fail_after(60):
                yield Watch(process)
        finally:
            with contextlib.suppress(ProcessLookupError):
                process.kill()


async def test_watch_shows_what_is_appended() -> None:
    """From now on, a line each, until ctrl-C."""
    await says("cluster", "init")
    await says("revoke", "carol", status=3)
    async with watching() as people, watching("--json") as programs:
        await people.shows("TIME watching .*log.db")
        await programs.shows(r'\{"watching": "sqlite:.*"\}')
        await says("revoke", "alice/t1", "--reason", "it was \x1b stolen", status=3)
        await says("cluster", "readmit", "alice/t1")
        await people.shows(r"TIME alice/t1 was revoked \(it was \\x1b stolen\)")
        await people.shows("TIME alice/t1 may log in again")
        await programs.shows(r'\{"number": 3, .*"path": \["alice", "t1"\].*')
        await programs.shows(".*readmit.*")
        people.process.send_signal(signal.SIGINT)
        assert await people.process.wait() == 130


async def test_watch_lives_through_a_loss(url: str) -> None:
    """It says that the log is another one, and what that holds."""
    await says("cluster", "init")
    async with watching() as watch:
        await watch.shows("TIME watching .*")
        wipe(url)
        await says("cluster", "init")
        await watch.complains("was wiped, or is another log")
        await watch.shows("TIME .*the log has begun")


@pytest.mark.parametrize(
    ("words", "status", "message"),
    [
        ("revoke --cluster sqlite:///nowhere/log.db alice", 1, "nothing is revoked: sqlite:///nowhere/log.db: "),
        ("cluster ls --cluster sqlite:///nowhere/log.db", 1, "/nowhere/log.db: "),
        ("revoke --cluster gopher://x alice", 2, "--cluster: the url of a log cannot begin with 'gopher': give one of"),
        ("revoke alice token7", 2, "give one key, such as alice/token7; or its parts one by one: --parts alice token7"),
        ("revoke alice/*", 2, "'alice/*': give alice, and all below it goes, too"),
        ("revoke /alice", 2, "'/alice' is no key: give one such as alice/token7"),
        ("revoke alice/", 2, "'alice/' is no key"),
        ("revoke alice --expires soon", 2, "'soon' is not a duration. Give a number with s, m, h or d, such as 30d"),
        ("revoke alice --expires 30", 2, "'30' is not a duration"),
        ("revoke alice --expires -1d", 2, "expected one argument"),
        ("revoke alice --expires 0d", 2, "'0d' is not a duration"),
        ("revoke alice --cluster x --kernel", 2, "--kernel: not allowed with argument --cluster"),
        ("revoke alice --cluster x --socket y", 2, "--socket: not allowed with argument --cluster"),
        ("revoke alice --yes", 2, "--yes needs --kernel"),
        ("revoke alice --parts --socket y", 2, "--parts and --expires need --cluster"),
        ("revoke alice --socket /nowhere", 1, "/nowhere: no control server can be reached"),
        ("cluster", 2, "required: ACTION"),
        ("cluster readmit", 2, "required: KEY"),
    ],
)
def test_error_is_one_line(words: str, status: int, message: str, capsys: pytest.CaptureFixture[str]) -> None:
    """It names the thing, and what to do."""
    try:
        assert main(words.split()) == status
    except SystemExit as exit_:
        assert exit_.code == status  # noqa: PT017  # usage errors exit
    out, err = capsys.readouterr()
    assert message in err.splitlines()[-1]
    assert out == ""


def test_without_a_log_nothing_is_asked(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    """It says how to name one; and `revoke` is what it always was, then."""
    monkeypatch.delenv("ASYNCREVOKE_CLUSTER")
    with pytest.raises(SystemExit, match="2"):
        main(["cluster", "ls"])
    assert "give --cluster URL, or set $ASYNCREVOKE_CLUSTER" in capsys.readouterr().err
    assert main(["revoke", "alice"]) == 1
    assert "no share is named 'alice'" in capsys.readouterr().err
