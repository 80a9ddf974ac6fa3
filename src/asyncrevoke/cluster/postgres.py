"""A log in PostgreSQL 14 or later. It has tables, and members hear of changes by LISTEN.

If your user may not create tables, let somebody who may execute `PostgresLog.tables`, and then:
``GRANT SELECT, INSERT, UPDATE, DELETE ON asyncrevoke, asyncrevoke_last, asyncrevoke_told, asyncrevoke_members TO web``
"""

import asyncio
from collections.abc import Awaitable, Callable, Iterator, Sequence
from typing import TypeVar
from urllib.parse import parse_qsl, urlencode

import asyncpg

from .entry import Entry, LogError, LogRefusedError
from .log import place
from .tables import APPEND, Rows, TableLog

T = TypeVar("T")

_PATIENCE = 2.0  # seconds that the server may take to answer
_OLDEST = 14  # version of PostgreSQL
_RIGHTS = "SELECT", "INSERT", "UPDATE", "DELETE"
_TABLES = """
SELECT pg_advisory_xact_lock(hashtext('asyncrevoke'));
CREATE TABLE IF NOT EXISTS asyncrevoke (number bigint PRIMARY KEY, text text NOT NULL);
CREATE TABLE IF NOT EXISTS asyncrevoke_told
    (number bigint NOT NULL, about text NOT NULL, text text NOT NULL, until float8 NOT NULL, PRIMARY KEY (about, number));
CREATE TABLE IF NOT EXISTS asyncrevoke_members (id text PRIMARY KEY, text text NOT NULL, said float8 NOT NULL);
CREATE TABLE IF NOT EXISTS asyncrevoke_last (kind text PRIMARY KEY, number bigint NOT NULL);
INSERT INTO asyncrevoke_last VALUES ('asyncrevoke', 0), ('asyncrevoke_told', 0) ON CONFLICT DO NOTHING;
CREATE OR REPLACE FUNCTION asyncrevoke_number() RETURNS trigger LANGUAGE plpgsql AS $$
BEGIN
    -- The next transaction waits for this row until we commit. So numbers grow in the order of commits.
    EXECUTE format('UPDATE %I.asyncrevoke_last SET number = number + 1 WHERE kind = %L RETURNING number',
        TG_TABLE_SCHEMA, TG_TABLE_NAME) INTO NEW.number;
    IF current_setting('synchronous_commit') = 'off' THEN
        PERFORM set_config('synchronous_commit', 'on', true);
    END IF;
    PERFORM pg_notify(TG_TABLE_NAME, '');
    RETURN NEW;
END $$;
CREATE OR REPLACE TRIGGER asyncrevoke_number BEFORE INSERT ON asyncrevoke
    FOR EACH ROW EXECUTE FUNCTION asyncrevoke_number();
CREATE OR REPLACE TRIGGER asyncrevoke_number BEFORE INSERT ON asyncrevoke_told
    FOR EACH ROW EXECUTE FUNCTION asyncrevoke_number();
"""
_FACTS = "SELECT current_setting('server_version_num')::int, pg_is_in_recovery(), current_setting('fsync')"
_MISSING = "SELECT count(*) FROM unnest($1::text[]) AS name WHERE to_regclass(name) IS NULL"
_DENIED = """SELECT DISTINCT name FROM unnest($1::text[]) AS name, unnest($2::text[]) AS what
    WHERE NOT has_table_privilege(name, what)"""


class PostgresLog(TableLog):
    """A log in PostgreSQL: ``PostgresLog("postgresql://web:password@host/shop")``. For asyncio, by asyncpg.

    An acknowledged entry is on the server's disk. Each log takes two of the server's connections.

    An entry can be part of your own transaction, so that "mark the token" and "revoke" are one: see `append_in`. With any
    other driver, execute ``INSERT INTO asyncrevoke (text) VALUES (...)`` with the entry's `dump()`.

    :param url: as asyncpg takes it. `table` and `accept_loss` may stand there, too: ``postgresql://host/shop?table=revoked``
    :param table: table of the entries. The names of the other tables begin with it. `check` makes them if they are missing
    :param accept_loss: accept a server that forgets in a crash what it has acknowledged
    :raises ValueError: if the name of the table needs quotes, or the url has a fault
    :ivar tables: the SQL that makes the tables. A user who may create tables can execute it
    """

    def __init__(self, url: str, *, table: str = "asyncrevoke", accept_loss: bool = False) -> None:
        url, _, options = url.partition("?")
        query = dict(parse_qsl(options))
        table = query.pop("table", table)
        super().__init__(f"postgresql://{query.get('host', '')}{place(url)}", table)
        self._table = table
        self.tables = self._sql(_TABLES)
        self._accept_loss = query.pop("accept_loss", "no") == "yes" or accept_loss
        self._url = f"{url}?{urlencode(query)}"
        self._names = [table, f"{table}_last", f"{table}_told", f"{table}_members"]
        self._reading = _Line(self._connect)
        self._writing = _Line(self._connect)
        self._heard: dict[str, asyncio.Event] = {}

    async def append_in(self, connection: asyncpg.Connection, *entries: Entry) -> None:
        """Append entries in your transaction. They are there when it commits, and not if it is rolled back.

        Make the entry with `Cluster.entry`: ``entry = cluster.entry("alice", reason="stolen")``. Append it last, because
        others that append wait from here on until your transaction ends. After that, you may wait for the hosts with
        `Cluster.report`.

        :raises asyncpg.PostgresError: as your own statements do. If your transaction is REPEATABLE READ or stricter, and
            somebody else has appended, it is a serialization failure
        """
        await connection.executemany(self._sql(APPEND), [(entry.dump(),) for entry in entries])

    async def check(self) -> None:
        """Make the tables if they are missing. Refuse a server that would lose entries, or that this user may not use.

        :raises LogRefusedError: if it is refused. The message says what to change
        :raises LogError: if it does not answer
        """
        [facts] = await self._ask(_FACTS)
        if wrong := next(self._wrong(*facts), None):
            raise LogRefusedError(f"{self.name} {wrong}")
        if (await self._ask(_MISSING, self._names))[0][0]:
            try:
                await self._on(self._writing, lambda connection: connection.execute(self.tables))
            except LogError as exc:
                raise LogRefusedError(
                    f"{exc}: let a user who may create tables execute this:\n{self.tables}"
                ) from exc.__cause__
        if denied := ", ".join(sorted(name for (name,) in await self._ask(_DENIED, self._names, _RIGHTS))):
            raise LogRefusedError(
                f"{self.name} does not permit what is needed: GRANT {', '.join(_RIGHTS)} ON {denied} TO this user"
            )
        heard = await self._mark("asyncrevoke")
        await self._write("SELECT pg_notify($1, '')", [(self._table,)])
        await self._changed(heard, _PATIENCE)
        if not heard.is_set():
            raise LogRefusedError(
                f"{self.name} does not pass on notifications: give the server itself, or a pooler in session mode"
            )

    def _wrong(self, version: int, standby: bool, fsync: str) -> Iterator[str]:
        if version < _OLDEST * 10000:
            yield f"is version {version // 10000}: upgrade it to {_OLDEST} or later"
        if standby:
            yield "is a standby, to which nobody can write: give its primary, or all hosts and ?target_session_attrs=primary"
        if fsync == "off" and not self._accept_loss:
            yield "forgets in a crash what it has acknowledged: set `fsync = on`"

    def _sql(self, sql: str) -> str:
        return sql.replace("asyncrevoke", self._table).replace("unix_now()", "date_part('epoch', clock_timestamp())")

    async def aclose(self) -> None:
        for line in self._reading, self._writing:
            line.give_up()

    async def _ask(self, sql: str, *values: object) -> Rows:
        return [
            *map(tuple, await self._on(self._reading, lambda connection: connection.fetch(self._sql(sql), *values)))
        ]

    async def _write(self, sql: str, rows: Sequence[tuple[object, ...]]) -> None:
        await self._on(self._writing, lambda connection: connection.executemany(self._sql(sql), rows))

    async def _mark(self, table: str) -> asyncio.Event:
        channel = self._sql(table)
        heard = self._heard.setdefault(channel, asyncio.Event())
        await self._on(self._reading, lambda connection: connection.add_listener(channel, self._hear))
        return heard

    async def _changed(self, mark: asyncio.Event, wait: float) -> None:
        try:
            async with asyncio.timeout(wait):
                await mark.wait()
        except TimeoutError:
            pass

    def _hear(self, _connection: object, _pid: int = 0, channel: str = "", _payload: str = "") -> None:
        """Wake those who wait for a table. If the connection is lost, wake all."""
        for each in [channel] if channel else [*self._heard]:
            self._heard.pop(each, asyncio.Event()).set()

    async def _connect(self) -> asyncpg.Connection:
        connection = await asyncpg.connect(self._url, timeout=_PATIENCE, command_timeout=_PATIENCE)
        connection.add_termination_listener(self._hear)
        # It is half of our own limit, so that nothing is written after we have given up.
        await connection.execute(f"SET lock_timeout = {_PATIENCE * 500:.0f}")
        return connection

    async def _on(self, line: "_Line", work: Callable[[asyncpg.Connection], Awaitable[T]]) -> T:
        try:
            return await line.do(work)
        except asyncpg.LockNotAvailableError as exc:
            raise LogError(f"{self.name}: a transaction that has appended must end first: {exc}") from exc
        except TimeoutError as exc:
            raise LogError(f"{self.name} has not answered for {_PATIENCE:g} s") from exc
        except (asyncpg.PostgresError, asyncpg.InterfaceError, asyncpg.InternalClientError, OSError) as exc:
            raise LogError(f"{self.name}: {exc}") from exc


class _Line:
    """A connection for one thing at a time. It is made when it is needed, and given up when anything fails on it."""

    def __init__(self, connect: Callable[[], Awaitable[asyncpg.Connection]]) -> None:
        self._connect = connect
        self._connection: asyncpg.Connection | None = None
        self._lock = asyncio.Lock()

    async def do(self, work: Callable[[asyncpg.Connection], Awaitable[T]]) -> T:
        async with self._lock:
            if self._connection is None or self._connection.is_closed():
                self._connection = await self._connect()
            try:
                return await work(self._connection)
            except BaseException:
                self.give_up()
                raise

    def give_up(self) -> None:
        if self._connection is not None:
            self._connection.terminate()
