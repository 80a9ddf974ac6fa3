#!/bin/bash
# redis-py's xread(block=7000) on a quiet stream returns nothing after 7 s: it raises an error after a minute.
#
# Versions: redis 8.1.0 for Python on CPython 3.11, with redis-server 7.0.15 of Debian 12. By default in both.
# Expected: an empty answer after 7 s, as after 4 s with block=4000.
# Seen: the socket's timeout of 5 s, new in redis-py 8, ends the wait; ten retries connect again and ask again, each for 5 s.
# After 59 s comes TimeoutError. The same minute passes before a server that is silently cut off is an error.
# Whom it hurts: whoever reads a stream, or waits for a list, for more than 5 s at a time. Each wait costs a connection.
# Known in part: https://github.com/redis/redis-py/issues/2807 has the timeout, not what the retries make of it.
# To do meanwhile: Redis(..., socket_timeout=None), or a bit more than `block`, and retry=Retry(NoBackoff(), 0).
#
# Fails if any of that is otherwise. It needs redis-server.
set -euo pipefail
folder=$(mktemp -d)
trap 'kill "$server" 2>/dev/null || true; rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/pip" install -q redis==8.1.0
redis-server --port 0 --unixsocket "$folder/redis.sock" --dir "$folder" --save "" > "$folder/log" &
server=$!
while ! grep -q "eady to accept" "$folder/log"; do sleep 0.1; done
cat > "$folder/look.py" <<'PY'
import asyncio, sys, time
import redis
from redis.asyncio import Redis


async def look(block):
    client = Redis(unix_socket_path=sys.argv[1])
    before = (await client.info("stats"))["total_connections_received"]
    began = time.monotonic()
    try:
        answer = await client.xread({"stream": "$"}, block=block)
    except redis.TimeoutError as exc:
        answer = f"{type(exc).__name__}: {exc}"
    took = time.monotonic() - began
    connections = (await client.info("stats"))["total_connections_received"] - before
    print(f"xread(block={block}): {answer} after {took:.1f} s, over {connections + 1} connections")
    await client.aclose()
    return answer, took


async def main():
    quick, slow = await asyncio.gather(look(4000), look(7000))
    sys.exit(not (not quick[0] and 3 < quick[1] < 5 and "TimeoutError" in slow[0] and slow[1] > 30))


asyncio.run(main())
PY
"$folder/venv/bin/python" "$folder/look.py" "$folder/redis.sock"
