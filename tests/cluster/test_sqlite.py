"""What is SQLite's own. What each log must do is in test_logs."""

import os
import pathlib
import sqlite3
import subprocess
import sys
import threading
from collections.abc import AsyncIterator
from typing import Any

import anyio
import anyio.lowlevel
import pytest

from asyncrevoke.cluster import Entry, LogError, LogRefusedError, open_log, sqlite as engine
from asyncrevoke.cluster.sqlite import SqliteLog
from ports import as_root

pytestmark = pytest.mark.anyio

#: Appends until it is killed, and says what is acknowledged.
WRITER = """
import sys, anyio
from asyncrevoke.cluster import LogError
from asyncrevoke.cluster.sqlite import SqliteLog

async def main(path, name):
    log = SqliteLog(path)
    await log.check()
    number = 0
    while True:
        await log.append(f"{name}{number}", f"{name}{number + 1}")
        number += 2
        print(number, flush=True)

anyio.run(main, *sys.argv[1:])
"""

#: Uses one log before a fork, and two after it.
FORKED = """
import os, sys, anyio
from asyncrevoke.cluster.sqlite import SqliteLog

used, unused = SqliteLog(sys.argv[1]), SqliteLog(sys.argv[1])
anyio.run(used.append, "a")
if child := os.fork():
    assert os.waitpid(child, 0)[1] == 0
    anyio.run(used.append, "c")
    anyio.run(used.aclose)
else:
    anyio.run(unused.append, "b")
    anyio.run(unused.aclose)
    for asked in used.time, lambda: used.read(0, 5.0):
        try:
            anyio.run(asked)
        except RuntimeError as exc:
            print(exc, flush=True)
    os._exit(0)
"""


@pytest.fixture
def path(tmp_path: pathlib.Path) -> pathlib.Path:
    return tmp_path / "revoked.db"


@pytest.fixture
async def log(path: pathlib.Path) -> AsyncIterator[SqliteLog]:
    log = SqliteLog(path)
    await log.check()
    yield log
    await log.aclose()


async def test_what_is_acknowledged_is_on_the_disk(log: SqliteLog) -> None:
    """Each transaction waits for the disk: without that, a power cut takes the last ones with it."""
    full = 2
    assert log._connections[0].execute("PRAGMA synchronous").fetchone() == (full,)


async def refusal(path: pathlib.Path | str) -> str:
    """Why a file is refused; "" if it is not."""
    log = SqliteLog(path)
    try:
        await log.check()
    except LogRefusedError as exc:
        return str(exc)
    finally:
        await log.aclose()
    return ""


async def texts(log: SqliteLog) -> list[str]:
    return [text for _, text in (await log.read(0, 0.0)).texts]


#: Looks without a pause for what another may have written, while the file is replaced again and again.
REPLACED = """
import pathlib, sys, anyio
from asyncrevoke.cluster import sqlite as engine

async def main(path):
    log = engine.SqliteLog(path)
    await log.check()
    async with anyio.create_task_group() as tasks:
        tasks.start_soon(log.read, 0, 3600.0)
        for _ in range(25):
            for each in pathlib.Path(path).parent.glob("*"):
                each.unlink()
            await log.time()
        tasks.cancel_scope.cancel()
    await log.aclose()

engine._LOOK = 0
anyio.run(main, *sys.argv[1:])
"""


class TestProcesses:
    """Several processes have one file."""

    async def test_three_processes_that_are_killed_lose_nothing_that_was_acknowledged(self, path: pathlib.Path) -> None:
        """All begin at once, on a file that is not there yet, and end in the midst of it. A reader has got all, in order."""
        log = SqliteLog(path)
        read: list[str] = []
        position = 0
        writers = [
            subprocess.Popen([sys.executable, "-c", WRITER, str(path), name], stdout=subprocess.PIPE, text=True)
            for name in "abc"
        ]
        with anyio.fail_after(60):
            for name in "abc":
                while f"{name}19" not in read:
                    batch = await log.read(position, 5.0)
                    read += [text for _, text in batch.texts]
                    position = batch.texts[-1][0] if batch.texts else position
        said = {}
        for name, writer in zip("abc", writers, strict=True):
            writer.kill()
            said[name] = [int(line) for line in writer.communicate()[0].splitlines() if line][-1]
        await log.append("more")
        while "more" not in read:  # a read has 1,000 at the most
            batch = await log.read(position, 0.0)
            read += [text for _, text in batch.texts]
            position = batch.texts[-1][0]
        assert read[-1] == "more"
        for name in "abc":
            own = [text for text in read[:-1] if text[0] == name]
            assert own == [f"{name}{number}" for number in range(len(own))]
            assert said[name] <= len(own) <= said[name] + 2
            assert len(own) % 2 == 0  # what is appended at once is there at once
        await log.aclose()

    async def test_a_log_that_is_used_cannot_be_used_after_a_fork(self, path: pathlib.Path) -> None:
        """SQLite would lose its locks by it. One that was not used yet can be."""
        done = subprocess.run([sys.executable, "-c", FORKED, str(path)], capture_output=True, text=True)
        assert done.stderr == ""
        assert "make a SqliteLog in each process" in done.stdout

    def test_a_file_that_is_replaced_is_not_closed_under_a_look(self, path: pathlib.Path) -> None:
        """Another thread opens the new one; sqlite3 ends the process if it closes the old one in the midst of a look."""
        done = subprocess.run([sys.executable, "-c", REPLACED, str(path)], capture_output=True, text=True)
        assert (done.returncode, done.stderr) == (0, "")

    async def test_a_file_that_was_replaced_is_another_log(self, log: SqliteLog, path: pathlib.Path) -> None:
        """Whoever goes on with the old one, which has no name any more, would hear of nothing."""
        await log.append("a")
        [(first, _)] = (await log.read(0, 0.0)).texts
        for file in path.parent.iterdir():
            file.unlink()
        other = SqliteLog(path)
        await other.append("b", "c")
        assert (await log.read(first, 0.0)).here != "a"
        assert await texts(log) == ["b", "c"]
        await other.aclose()


class TestOwnTransactions:
    """The file may be the database of the application."""

    async def test_an_entry_is_part_of_the_transaction(self, log: SqliteLog, path: pathlib.Path) -> None:
        """It is there, and wakes those who read, when that commits; it never was if that is rolled back."""
        entry = Entry.new("revoke", ("alice",)).dump()
        own = sqlite3.connect(path, isolation_level=None)
        own.execute("CREATE TABLE token (name, revoked)")
        for end in "ROLLBACK", "COMMIT":
            own.execute("BEGIN")
            own.execute("INSERT INTO token VALUES ('alice', 1)")
            own.execute("INSERT INTO asyncrevoke (text) VALUES (?)", (entry,))
            assert await texts(log) == []
            own.execute(end)
        own.close()
        assert await texts(log) == [entry]

    async def test_whoever_waits_too_long_for_it_is_told(
        self, path: pathlib.Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        """It is no refusal, nothing was appended, and reading goes on meanwhile."""
        monkeypatch.setattr(engine, "_PATIENCE", 0.2)
        log = SqliteLog(path)
        await log.append("a")
        own = sqlite3.connect(path, isolation_level=None)
        own.execute("BEGIN IMMEDIATE")
        for asked in log.append("b"), log.check():
            with pytest.raises(LogError, match="database is locked") as caught:
                await asked
            assert not isinstance(caught.value, LogRefusedError)
        assert await texts(log) == ["a"]
        own.close()
        await log.append("c")
        assert await texts(log) == ["a", "c"]
        await log.aclose()


class TestRefusing:
    """A file that cannot be used is refused, with its name and the reason."""

    async def test_a_folder_that_is_missing_is_named(self, tmp_path: pathlib.Path) -> None:
        """SQLite only says that it cannot open the file."""
        assert f"there is no folder {tmp_path}/none" in await refusal(tmp_path / "none" / "x.db")

    async def test_what_is_no_database_is_refused(self, path: pathlib.Path) -> None:
        """And left as it is."""
        path.write_text("not a database, but a letter, which is long enough to be looked at. " * 20)
        said = await refusal(path)
        assert str(path) in said
        assert "not a database" in said
        assert path.read_text().startswith("not a database")

    async def test_a_folder_is_no_file(self, tmp_path: pathlib.Path) -> None:
        """Nor is a database in memory one that others could open."""
        assert "unable to open" in await refusal(tmp_path)
        assert "cannot be shared by processes" in await refusal(":memory:")

    @as_root
    async def test_a_file_that_may_only_be_read_is_refused(self, path: pathlib.Path) -> None:
        """Whoever cannot say that it reads is no member."""
        first = SqliteLog(path)
        await first.append("a")
        await first.aclose()
        path.chmod(0o444)
        path.parent.chmod(0o777)
        for above in path.parents[1:-2]:
            above.chmod(above.stat().st_mode | 0o011)
        os.seteuid(65534)
        try:
            said = await refusal(path)
        finally:
            os.seteuid(0)
        assert "readonly" in said

    async def test_a_table_of_something_else_is_refused(self, path: pathlib.Path) -> None:
        """What the application calls by our name is not overwritten."""
        own = sqlite3.connect(path)
        own.execute("CREATE TABLE asyncrevoke_members (name)")
        own.close()
        assert "no such column" in await refusal(path)

    async def test_a_url_names_a_file(self, path: pathlib.Path) -> None:
        """As it is given to the command line."""
        for url in f"sqlite://{path}", f"sqlite:{path}":
            log: Any = open_log(url)
            assert isinstance(log, SqliteLog)
            assert log.name == f"sqlite://{path}"
            await log.append("a")
            await log.aclose()
        assert path.exists()


class Lock:
    """One that counts those who want it, and those who have had it."""

    def __init__(self) -> None:
        self.begun = self.ended = 0
        self._lock = threading.Lock()

    def __enter__(self) -> None:
        self.begun += 1
        self._lock.acquire()

    def __exit__(self, *exc: object) -> None:
        self._lock.release()
        self.ended += 1


async def test_a_statement_that_was_cancelled_before_it_began_opens_nothing(tmp_path: pathlib.Path) -> None:
    """Its thread may come to it after the log was closed, and nobody would close what it opened then."""
    log = SqliteLog(tmp_path / "log.db")
    log._lock = lock = Lock()  # type: ignore[assignment]
    with anyio.fail_after(30):
        with lock:
            async with anyio.create_task_group() as tasks:
                tasks.start_soon(log.append, "x")
                while lock.begun < 2:
                    await anyio.lowlevel.checkpoint()
                tasks.cancel_scope.cancel()
        while lock.ended < 2:
            await anyio.lowlevel.checkpoint()
    assert (log._connections, list(tmp_path.iterdir())) == ([], [])
