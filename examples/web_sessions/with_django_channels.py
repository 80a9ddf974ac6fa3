"""Django, Channels: ``uvicorn --app-dir examples/web_sessions with_django_channels:app``. The token is a cookie."""

from typing import Any

from channels.generic.websocket import AsyncWebsocketConsumer
from channels.routing import ProtocolTypeRouter
from django.conf import settings
from django.core.asgi import get_asgi_application
from django.http import HttpRequest, HttpResponse, parse_cookie
from django.urls import path

from asyncrevoke import Registry
from asyncrevoke.adapters.asgi import RevokableApp, ended_by_disconnect

live, logins = Registry(), {("alice", "t1"), ("bob", "t2")}


class Chat(AsyncWebsocketConsumer):
    async def receive(self, text_data: str = "", **_: bytes) -> None:
        await self.send(text_data)

    async def disconnect(self, _: int) -> None:
        print("has left")


async def revoke(request: HttpRequest, user: str, token: str) -> HttpResponse:
    if request.headers.get("authorization") != "Bearer secret":
        return HttpResponse(status=403)
    logins.discard((user, token))  # first, so that who comes now is refused
    return HttpResponse(str(await live[user, token].revoke("logged out")))


def key(scope: Any) -> tuple[str, ...] | None:
    token = parse_cookie(dict(scope["headers"]).get(b"cookie", b"").decode()).get("token", "")
    return None if scope["path"].startswith("/revoke/") else tuple(token.split("."))


settings.configure(ROOT_URLCONF=__name__, ALLOWED_HOSTS=["*"])
urlpatterns = [path("revoke/<user>/<token>", revoke)]
django = ProtocolTypeRouter({"http": get_asgi_application(), "websocket": Chat.as_asgi()})
app = RevokableApp(ended_by_disconnect(django), live, key, valid=lambda *login: login in logins)
