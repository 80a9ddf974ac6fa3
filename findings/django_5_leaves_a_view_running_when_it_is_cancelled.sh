#!/bin/bash
# Django 5.2's ASGI handler, when it is cancelled, leaves its view running: in a task that nobody waits for.
#
# Versions: Django 5.2.19 on CPython 3.11. Django 6.1.3 (on 3.13) cancels the view.
# Expected: the view is cancelled with the handler that awaits it.
# Seen: the handler ends as cancelled; the view goes on to its end, and its answer is thrown away.
# Whom it hurts: whoever cancels a request to end its work, as a server does when its time to shut down is over, or a
# middleware with a timeout: the view still writes to the database when all is reported to be over.
#
# Fails if any of that is otherwise.
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/pip" install -q Django==5.2.19
cat > "$folder/look.py" <<'PY'
import asyncio, sys
import django.conf
from django.core.asgi import get_asgi_application
from django.http import HttpResponse
from django.urls import path

found = []


async def view(_):
    begun.set()
    try:
        await go.wait()
        found.append("went on to its end")
    except asyncio.CancelledError:
        found.append("was cancelled")
        raise
    return HttpResponse("x")


django.conf.settings.configure(ALLOWED_HOSTS=["*"], ROOT_URLCONF=(path("", view),), LOGGING_CONFIG=None)


async def main():
    global begun, go
    begun, go = asyncio.Event(), asyncio.Event()
    messages = [{"type": "http.request", "body": b"", "more_body": False}]

    async def receive():
        return messages.pop() if messages else await asyncio.sleep(60)

    async def send(message):
        pass

    scope = {"type": "http", "method": "GET", "path": "/", "headers": [], "query_string": b""}
    task = asyncio.create_task(get_asgi_application()(scope, receive, send))
    await begun.wait()
    task.cancel()
    await asyncio.wait([task])
    go.set()
    for _ in range(20):
        await asyncio.sleep(0)
    print(f"Django {django.__version__}: the handler was cancelled: {task.cancelled()}; its view {found}")
    sys.exit((task.cancelled(), found) != (True, ["went on to its end"]))


asyncio.run(main())
PY
"$folder/venv/bin/python" "$folder/look.py"
