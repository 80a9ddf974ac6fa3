#!/bin/bash
# A table with a bigserial column, read on from the largest number seen so far, loses rows that are committed late.
#
# Versions: PostgreSQL 15, asyncpg 0.32.0, on CPython 3.11.
# Expected: "SELECT ... WHERE id > $1 ORDER BY id", with the largest id seen so far, gets each row once: ids grow.
# Seen: ids grow in the order of inserts, rows become visible in the order of commits. A takes id 1 and B takes id 2; B commits,
# a reader sees 2 and goes on from there; then A commits. Its row is there, and is never read.
# Whom it hurts: whoever makes an outbox, a queue or a log of such a table. Give the numbers under a lock that is held until the
# commit, as an UPDATE of one row that counts.
#
# Fails if any of that is otherwise.
set -euo pipefail
folder=$(mktemp -d)
bin=$(ls -d /usr/lib/postgresql/*/bin | tail -1)
as() { if [ "$(id -u)" = 0 ]; then runuser -u postgres -- "$@"; else "$@"; fi; }
trap 'as "$bin/pg_ctl" stop -m immediate -s -D "$folder/data" || true; rm -rf "$folder"' EXIT
[ "$(id -u)" = 0 ] && chown postgres "$folder"
python3 -m venv "$folder/venv"
"$folder/venv/bin/pip" install -q asyncpg==0.32.0
cd "$folder"
as "$bin/initdb" -U postgres -A trust -N -D "$folder/data" > /dev/null
as "$bin/pg_ctl" start -w -s -D "$folder/data" -o "-c listen_addresses='' -k $folder" -l "$folder/log"
cat > "$folder/look.py" <<'PY'
import asyncio, sys
import asyncpg

NUMBERED = """
CREATE TABLE last (number bigint); INSERT INTO last VALUES (0);
CREATE TABLE counted (id bigint PRIMARY KEY, text text);
CREATE FUNCTION number() RETURNS trigger LANGUAGE plpgsql AS $$
BEGIN UPDATE last SET number = number + 1 RETURNING number INTO NEW.id; RETURN NEW; END $$;
CREATE TRIGGER number BEFORE INSERT ON counted FOR EACH ROW EXECUTE FUNCTION number();
"""


async def look(a, b, reader, table):
    seen = []

    async def read():
        seen.extend(await reader.fetch(f"SELECT id, text FROM {table} WHERE id > $1 ORDER BY id", seen[-1]["id"] if seen else 0))

    insert = f"INSERT INTO {table} (text) VALUES ($1)"
    transaction = a.transaction()
    await transaction.start()
    await a.execute(insert, "a")
    other = asyncio.create_task(b.execute(insert, "b"))
    await asyncio.wait([other], timeout=1)
    await read()
    await transaction.commit()
    await other
    await read()
    there = await reader.fetchval(f"SELECT count(*) FROM {table}")
    print(f"{table}: {there} rows are there, read were {[tuple(row) for row in seen]}")
    return there, len(seen)


async def main():
    a, b, reader = [await asyncpg.connect(f"postgresql://postgres@/postgres?host={sys.argv[1]}") for _ in range(3)]
    await reader.execute(f"CREATE TABLE serial (id bigserial PRIMARY KEY, text text); {NUMBERED}")
    lost = await look(a, b, reader, "serial")
    kept = await look(a, b, reader, "counted")
    for each in a, b, reader:
        await each.close()
    sys.exit(not (lost == (2, 1) and kept == (2, 2)))


asyncio.run(main())
PY
"$folder/venv/bin/python" "$folder/look.py" "$folder"
