#!/bin/bash
# A consumer of Django Channels that is cancelled gets no disconnect(), and stays in its groups.
#
# Versions: channels 4.3.2 with Django 5.2.19, on CPython 3.11.
# Expected: disconnect() is where a consumer cleans up, and where Channels takes it out of its groups. It runs however the
# connection ends.
# Seen: it runs when the client goes. When the server cancels the application, as at a shutdown, it does not, and the consumer's
# channel is still in its groups.
# Whom it hurts: whoever lists who is there by what disconnect() takes off; and a channel layer outside of the process, as on
# Redis, which sends to that channel until its time is over.
#
# Fails if any of that is otherwise.
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/pip" install -q channels==4.3.2 Django==5.2.19
cat > "$folder/look.py" <<'PY'
import asyncio, sys
import channels, django.conf

django.conf.settings.configure(CHANNEL_LAYERS={"default": {"BACKEND": "channels.layers.InMemoryChannelLayer"}})
import channels.layers
from channels.generic.websocket import AsyncWebsocketConsumer

called = []


class Chat(AsyncWebsocketConsumer):
    groups = ["room"]

    async def disconnect(self, code):
        called.append(code)


async def look(cancelled):
    called.clear()
    messages = asyncio.Queue()
    messages.put_nowait({"type": "websocket.connect"})
    accepted = asyncio.Event()

    async def send(message):
        accepted.set()

    task = asyncio.create_task(Chat.as_asgi()({"type": "websocket", "path": "/"}, messages.get, send))
    await accepted.wait()
    task.cancel() if cancelled else messages.put_nowait({"type": "websocket.disconnect", "code": 1001})
    await asyncio.wait([task])
    return list(called), sum(map(len, channels.layers.get_channel_layer().groups.values()))


async def main():
    gone, cancelled = await look(False), await look(True)
    print(f"the client goes: disconnect() called with {gone[0]}, left in groups: {gone[1]}")
    print(f"cancelled: disconnect() called with {cancelled[0]}, left in groups: {cancelled[1]}")
    sys.exit((gone, cancelled) != (([1001], 0), ([], 1)))


asyncio.run(main())
PY
"$folder/venv/bin/python" "$folder/look.py"
