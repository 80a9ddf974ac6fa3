"""Web sessions that can be revoked: every request and websocket of an ASGI application lives on a key of a registry.

    app = RevokableApp(app, live, key=lambda scope: user_and_token(scope["headers"]))

    await live["alice", "token7"].revoke("logged out")

When that returns, the endpoints of that token have ended and their connections are closed. Each client was told why, as
well as it could still be told: by the code and reason that close its websocket, by a last event, or by status 401.
"""

from .app import RevokableApp as RevokableApp
from .endpoint import ended_by_disconnect as ended_by_disconnect
from .session import Session as Session
from .shutdown import revoke_at_shutdown as revoke_at_shutdown
