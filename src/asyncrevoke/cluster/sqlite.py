"""A log in an SQLite file on this machine. The workers of one host share it without a server."""

import os
import pathlib
import sqlite3
import threading
from collections.abc import Callable, Sequence
from typing import TypeVar

import anyio
import anyio.to_thread

from .entry import LogError, LogRefusedError
from .log import Member
from .tables import Rows, TableLog

T = TypeVar("T")

_PATIENCE = 2.0  # seconds to wait for others that write
_LOOK = 0.02  # seconds between two looks whether somebody has written. Each takes some microseconds
_TABLES = """
    CREATE TABLE IF NOT EXISTS asyncrevoke (number INTEGER PRIMARY KEY AUTOINCREMENT, text TEXT NOT NULL);
    CREATE TABLE IF NOT EXISTS asyncrevoke_told
        (number INTEGER PRIMARY KEY AUTOINCREMENT, about TEXT NOT NULL, text TEXT NOT NULL, until REAL NOT NULL);
    CREATE TABLE IF NOT EXISTS asyncrevoke_members (id TEXT PRIMARY KEY, text TEXT NOT NULL, said REAL NOT NULL);
"""


class SqliteLog(TableLog):
    """A log in a file: ``SqliteLog("/var/lib/shop/revoked.db")``, or the url ``sqlite:///var/lib/shop/revoked.db``.

    The file must be on a disk of this machine, and all its users must be able to write to it. It may be the database of your
    application: then ``INSERT INTO asyncrevoke (text) VALUES (?)`` with the `dump()` of an entry revokes in your transaction.
    An acknowledged entry is on the disk. A waiting member looks 50 times a second for more.

    Make one in each process. A log that was opened before a fork is refused after it.

    :param table: table of the entries. The names of two other tables begin with it
    :raises ValueError: if the name of the table needs quotes
    """

    def __init__(self, path: str | os.PathLike[str], *, table: str = "asyncrevoke") -> None:
        self._path = pathlib.Path(os.fspath(path).removeprefix("sqlite:").removeprefix("//"))
        super().__init__(f"sqlite://{self._path}", table)
        self._table = table
        self._lock = threading.Lock()  # a cancelled statement runs on in its thread
        self._threads = anyio.CapacityLimiter(1)  # not those of the application, which may all be busy
        self._connections: list[sqlite3.Connection] = []  # the second is for looks, from the loop's thread
        self._looking = (
            threading.Lock()
        )  # held to look and to close: a connection closed under its user crashes the process
        self._opened: tuple[int, ...] | None = None

    async def check(self) -> None:
        """Refuse a file that cannot be written or shared.

        :raises LogRefusedError: if it is refused. The message says why
        :raises LogError: if another process writes to it all the time
        """
        try:
            await self.leave(Member("", "", "strict", 0.0))  # a write of which nobody notices anything
        except LogError as exc:
            if getattr(exc.__cause__, "sqlite_errorcode", sqlite3.SQLITE_BUSY) != sqlite3.SQLITE_BUSY:
                raise LogRefusedError(str(exc)) from exc.__cause__
            raise

    async def aclose(self) -> None:
        await anyio.to_thread.run_sync(self._close)

    def _close(self) -> None:
        with self._lock:
            self._disconnect()

    def _disconnect(self) -> None:
        with self._looking:
            while self._connections:
                self._connections.pop().close()

    async def _ask(self, sql: str, *values: object) -> Rows:
        return await self._in_thread(lambda connection: connection.execute(self._sql(sql), values).fetchall())

    async def _write(self, sql: str, rows: Sequence[tuple[object, ...]]) -> None:
        def write(connection: sqlite3.Connection) -> None:
            with connection:
                connection.execute("BEGIN IMMEDIATE")
                connection.executemany(self._sql(sql), rows)

        await self._in_thread(write)

    async def _in_thread(self, work: Callable[[sqlite3.Connection], T]) -> T:
        wanted = True

        def run() -> T:
            with self._lock:
                if not wanted:
                    raise LogError(f"{self.name}: nobody waits for the answer any more")
                try:
                    return work(self._connection())
                except sqlite3.Error as exc:
                    hint = "" if self._path.parent.is_dir() else f", because there is no folder {self._path.parent}"
                    raise LogError(f"{self.name}: {exc}{hint}") from exc

        try:
            return await anyio.to_thread.run_sync(run, abandon_on_cancel=True, limiter=self._threads)
        finally:
            wanted = False  # or it could open the file anew after `aclose`

    def _connection(self) -> sqlite3.Connection:
        """Return the connection to work on. If the file was replaced, it is another log, and is opened instead."""
        if self._connections and self._opened != self._file():
            pid, *_ = self._opened or ()
            if pid != os.getpid():
                raise RuntimeError(f"{self.name} was opened before a fork: make a SqliteLog in each process")
            self._disconnect()
        if not self._connections:
            self._connections = [self._connect(), self._connect()]
            self._connections[1].execute("PRAGMA busy_timeout = 0")
            self._opened = self._file()
        return self._connections[0]

    def _file(self) -> tuple[int, ...]:
        try:
            facts = self._path.stat()
        except OSError:
            return (os.getpid(),)
        return os.getpid(), facts.st_dev, facts.st_ino

    def _connect(self) -> sqlite3.Connection:
        connection = sqlite3.connect(self._path, timeout=_PATIENCE, isolation_level=None, check_same_thread=False)
        try:
            [[mode]] = connection.execute("PRAGMA journal_mode = WAL")
            if mode != "wal":
                raise LogRefusedError(  # noqa: TRY301  # the connection is closed below
                    f"{self.name} cannot be shared by processes: give a file on a disk of this machine"
                )
            connection.execute("PRAGMA synchronous = FULL")
            connection.executescript(self._sql(_TABLES))
        except BaseException:
            connection.close()
            raise
        return connection

    def _sql(self, sql: str) -> str:
        now = "((julianday('now') - 2440587.5) * 86400.0)"
        return sql.replace("asyncrevoke", self._table).replace("unix_now()", now).replace("$", "?")

    async def _mark(self, table: str) -> int | None:
        del table  # all are in the same file
        return self._version()

    async def _changed(self, mark: int | None, wait: float) -> None:
        with anyio.move_on_after(wait):
            while self._version() == mark:  # noqa: ASYNC110  # it is another process that writes
                await anyio.sleep(_LOOK)

    def _version(self) -> int | None:
        """Return a mark that changes with each transaction of others. It never waits. None: not known now."""
        if self._opened is None or self._opened[0] != os.getpid() or not self._looking.acquire(blocking=False):
            return None
        try:
            [[version]] = self._connections[1].execute("PRAGMA data_version")
        except (sqlite3.Error, IndexError):  # the file is just being opened again
            return None
        finally:
            self._looking.release()
        return int(version)
