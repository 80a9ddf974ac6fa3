#!/bin/bash
# After one cancelled expect(..., async_=True) and a close(), pexpect hears nothing of the children that come next.
#
# Versions: pexpect 4.9.0 with ptyprocess 0.7.0, on CPython 3.11, asyncio.
# Expected: a timeout by asyncio ends the wait, close() ends the child, and the next child is a new beginning.
# Seen: a cancelled expect leaves its reader in the event loop. close() closes the descriptor below it. The next child gets the
# same number, which the loop takes for one that it watches already. So each later expect waits for ever, though its child has
# printed the text. Nothing is raised or logged. With the blocking expect() on the same child the text is found at once.
# Whom it hurts: whoever bounds an expect by asyncio.timeout(), wait_for() or a task group, and tries again with a new child.
#
# Fails if any of that is otherwise.
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/pip" install -q pexpect==4.9.0 ptyprocess==0.7.0
cat > "$folder/look.py" <<'PY'
import asyncio, sys
import pexpect


async def look(command, seconds):
    child = pexpect.spawn("sh", ["-c", command])
    number = child.child_fd
    try:
        async with asyncio.timeout(seconds):
            await child.expect("ready", timeout=None, async_=True)
            found = "found"
    except TimeoutError:
        found = "timed out"
        if command == QUICK:
            child.expect("ready", timeout=2)
            found += ", and found by the blocking expect()"
    child.close()
    print(f"descriptor {number}: {found}")
    return number, found


QUICK, SLOW = "echo ready; exec sleep 60", "exec sleep 60"


async def main():
    before = await look(QUICK, 5)
    cancelled = await look(SLOW, 0.2)
    later = [await look(QUICK, 2) for _ in range(2)]
    blocking = "timed out, and found by the blocking expect()"
    expected = [(before[0], each) for each in ("found", "timed out", blocking, blocking)]
    sys.exit([before, cancelled, *later] != expected)


asyncio.run(main())
PY
"$folder/venv/bin/python" "$folder/look.py"
