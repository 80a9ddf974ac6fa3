#!/bin/bash
# uvicorn with --workers ends with status 0 when its application refuses to start, which is status 3 without.
#
# Versions: uvicorn 0.54.0 on CPython 3.11.
# Expected: a status that is not 0, as without workers; or that the workers are started again.
# Seen: both workers answer the lifespan with "lifespan.startup.failed", the parent stops, and its status is 0.
# Whom it hurts: whoever has a supervisor start what has failed, such as systemd with Restart=on-failure. A service whose
# database was away for a moment at its start has ended well, and stays down.
#
# Fails if any of that is otherwise.
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
cd "$folder"
python3 -m venv venv
venv/bin/pip install -q uvicorn==0.54.0

cat >program.py <<'PROGRAM'
async def app(scope, receive, send):
    assert scope["type"] == "lifespan"
    await receive()
    await send({"type": "lifespan.startup.failed", "message": "the database is away"})
PROGRAM
port=$(python3 -c 'import socket; s = socket.socket(); s.bind(("127.0.0.1", 0)); print(s.getsockname()[1])')

# The status of the server with these options.
status() {
  local status=0
  timeout 60 venv/bin/uvicorn program:app --port "$port" "$@" >said 2>&1 || status=$?
  echo "$status"
}

alone=$(status)
echo "alone: status $alone"
workers=$(status --workers 2)
echo "with two workers: status $workers, of which $(grep -c 'the database is away' said) said why"
[ "$alone" -eq 3 ] && [ "$workers" -eq 0 ] && [ "$(grep -c 'the database is away' said)" -eq 2 ]
