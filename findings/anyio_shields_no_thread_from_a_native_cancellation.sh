#!/bin/bash
# Task.cancel() goes through the shield of anyio.to_thread.run_sync(): nobody waits for the thread, and its place is free.
#
# Versions: anyio 4.16.0 on CPython 3.11, asyncio.
# Expected: run_sync() is documented to wait for its thread, unless it is called with abandon_on_cancel=True. A scope's
# cancel() is held back so.
# Seen: cancelled by Task.cancel(), as asyncio.timeout(), asyncio.TaskGroup and servers do it, it raises at once. The thread
# runs on, and its token is back in the limiter already: more threads can run than the limiter allows.
# Whom it hurts: whoever releases, after an endpoint has ended, what its thread still uses; and whoever counts on the limiter.
#
# Fails if any of that is otherwise.
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/pip" install -q anyio==4.16.0
cat > "$folder/look.py" <<'PY'
import asyncio, sys, threading
import anyio, anyio.to_thread


async def look(native):
    begun, go = threading.Event(), threading.Event()

    def work():
        begun.set()
        go.wait()

    scope = anyio.CancelScope()

    async def run():
        with scope:
            await anyio.to_thread.run_sync(work)

    task = asyncio.create_task(run())
    while not begun.is_set():
        await asyncio.sleep(0)
    task.cancel() if native else scope.cancel()
    done, _ = await asyncio.wait([task], timeout=1)
    found = bool(done), anyio.to_thread.current_default_thread_limiter().borrowed_tokens
    go.set()
    await asyncio.wait([task])
    return found


async def main():
    for native in False, True:
        ended, tokens = await look(native)
        how = "Task.cancel()" if native else "scope.cancel()"
        print(f"{how}: run_sync() ended while its thread ran: {ended}; tokens that count for the thread: {tokens}")
        if (ended, tokens) != (native, not native):
            sys.exit(1)


asyncio.run(main())
PY
"$folder/venv/bin/python" "$folder/look.py"
