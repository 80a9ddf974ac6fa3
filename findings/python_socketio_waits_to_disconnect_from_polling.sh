#!/bin/bash
# A client of python-socketio that polls takes as long to disconnect as the server lets a poll wait: up to 45 s by default.
#
# Versions: python-socketio 5.18.1 with python-engineio 4.15.1, aiohttp and uvicorn 0.54.0, on CPython 3.11.
# Expected: disconnect() returns at once, as it does over a websocket.
# Seen: the server takes the client's close at once, and says so, but never answers the poll that is pending. The client waits
# for that answer: for more than the 4 s of its ping interval here, by default for up to 25 + 20 s.
# Whom it hurts: whoever stops a program or a test with such a client, or logs a user out and then waits for it.
#
# Fails if any of that is otherwise.
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/pip" install -q python-socketio==5.18.1 python-engineio==4.15.1 'aiohttp<4' uvicorn==0.54.0
cat > "$folder/look.py" <<'PY'
import asyncio, socket, sys, time
import socketio, uvicorn

sio = socketio.AsyncServer(async_mode="asgi", ping_interval=4, ping_timeout=3)
heard = []


@sio.event
async def connect(*_):
    pass


@sio.event
async def disconnect(sid, reason):
    heard.append(time.monotonic())


async def main():
    sock = socket.create_server(("127.0.0.1", 0))
    server = uvicorn.Server(uvicorn.Config(socketio.ASGIApp(sio), log_level="warning"))
    serving = asyncio.create_task(server.serve([sock]))
    took = {}
    for transport in "websocket", "polling":
        heard.clear()
        client = socketio.AsyncClient()
        await client.connect(f"http://127.0.0.1:{sock.getsockname()[1]}", transports=[transport])
        await asyncio.sleep(0.3)
        began = time.monotonic()
        await client.disconnect()
        took[transport] = time.monotonic() - began
        while not heard:
            await asyncio.sleep(0.01)
        print(f"{transport}: the server heard after {heard[0] - began:.1f} s, disconnect() returned after {took[transport]:.1f} s")
        if heard[0] - began > 1:
            sys.exit(1)
    server.should_exit = True
    await serving
    sys.exit(not (took["websocket"] < 1 and took["polling"] > 3))


asyncio.run(main())
PY
"$folder/venv/bin/python" "$folder/look.py"
