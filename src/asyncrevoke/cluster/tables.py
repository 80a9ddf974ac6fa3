"""A log in the tables of a database, for all engines that speak SQL.

One table has the entries, TABLE_told the acknowledgements, and TABLE_members what each member has said last. The database
numbers rows in the order in which they become visible. A log has two connections at most. One is for writes, which may have
to wait for the transactions of others. The other is for all that must not wait for them.
"""

import re
from abc import abstractmethod
from collections.abc import Callable, Iterable, Sequence
from typing import Any

import anyio

from .log import KEPT, Batch, Log, Member

Rows = list[tuple[Any, ...]]

_MANY = 1000  # entries in one answer
APPEND = "INSERT INTO asyncrevoke (text) VALUES ($1)"
# It is one statement, so that the entry at the number, and what comes after it, are of the same moment.
_READ = "SELECT number, text FROM asyncrevoke WHERE number >= $1 ORDER BY number LIMIT $2"
_DROP = "DELETE FROM asyncrevoke WHERE number = $1 AND number <= (SELECT max(number) - $2 FROM asyncrevoke)"
_TELL = "INSERT INTO asyncrevoke_told (about, text, until) VALUES ($1, $2, unix_now() + $3)"
_FORGET = "DELETE FROM asyncrevoke_told WHERE until < unix_now()"
_TOLD = "SELECT number, text FROM asyncrevoke_told WHERE about = $1 AND number > $2 ORDER BY number"
_SAY = """INSERT INTO asyncrevoke_members (id, text, said) VALUES ($1, $2, unix_now())
    ON CONFLICT (id) DO UPDATE SET text = excluded.text, said = excluded.said"""
_MEMBERS = "SELECT text, unix_now() - said FROM asyncrevoke_members WHERE said > unix_now() - 86400"
_LEAVE = "DELETE FROM asyncrevoke_members WHERE id = $1 OR said < unix_now() - 86400"


class TableLog(Log):
    """What these engines have in common.

    Each engine replaces "asyncrevoke" by the names of its tables, and "unix_now()" by its clock.

    :param name: for messages
    :param table: table of the entries. The names of the other tables begin with it
    :raises ValueError: if the name of the table needs quotes
    """

    def __init__(self, name: str, table: str) -> None:
        if not re.fullmatch("[a-z_][a-z0-9_]{0,39}", table):
            raise ValueError(
                f"{table!r} cannot name a table: give 1 to 40 small letters, digits and _, and no digit first"
            )
        self.name = name if table == "asyncrevoke" else f"{name}?table={table}"

    @abstractmethod
    async def _ask(self, sql: str, *values: object) -> Rows:
        """Execute a statement that never waits for others."""

    @abstractmethod
    async def _write(self, sql: str, rows: Sequence[tuple[object, ...]]) -> None:
        """Execute a statement for each row, all in one transaction."""

    @abstractmethod
    async def _mark(self, table: str) -> Any:
        """Return a mark for `_changed` to compare with."""

    @abstractmethod
    async def _changed(self, mark: Any, wait: float) -> None:
        """Wait until the table may have changed since the mark. It is only a hint."""

    async def append(self, *texts: str) -> None:
        await self._write(APPEND, [(text,) for text in texts])

    async def read(self, after: int, wait: float, member: Member | None = None) -> Batch:
        if member is not None:
            await self._ask(_SAY, member.id, member.dump())
        rows = await self._until(
            lambda rows: after != (rows[-1][0] if rows else 0), wait, "asyncrevoke", _READ, after, _MANY + 2
        )
        texts = [(number, text) for number, text in rows]
        here = texts.pop(0)[1] if texts and texts[0][0] == after else None
        return Batch(here, texts[:_MANY], whole=len(texts) <= _MANY)

    async def tell(self, told: Iterable[tuple[str, str]], keep: float) -> None:
        await self._write(_TELL, [(about, text, float(keep)) for about, text in told])
        await self._write(_FORGET, [()])

    async def told(self, about: str, after: int, wait: float) -> tuple[int, Sequence[str]]:
        rows = await self._until(bool, wait, "asyncrevoke_told", _TOLD, about, after)
        return (rows[-1][0] if rows else after), [text for _, text in rows]

    async def members(self) -> list[Member]:
        return [Member.parse(text, age) for text, age in await self._ask(_MEMBERS)]

    async def leave(self, member: Member) -> None:
        await self._write(_LEAVE, [(member.id,)])

    async def drop(self, numbers: Sequence[int]) -> None:
        await self._write(_DROP, [(number, KEPT) for number in numbers])

    async def time(self) -> float:
        [(now,)] = await self._ask("SELECT unix_now()")
        return float(now)

    async def _until(self, enough: Callable[[Rows], bool], wait: float, table: str, sql: str, *values: object) -> Rows:
        """Ask, and ask again when the table has changed, until the answer is enough or the wait is over."""
        end = anyio.current_time() + wait
        while True:
            mark = await self._mark(table)
            rows = await self._ask(sql, *values)
            left = end - anyio.current_time()
            if left <= 0 or enough(rows):
                return rows
            await self._changed(mark, left)
