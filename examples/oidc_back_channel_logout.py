"""OpenID Connect Back-Channel Logout 1.0: the provider says who has logged out, and their live sessions end."""

import contextlib
import logging
import time
import urllib.parse
from collections import deque
from collections.abc import Iterable
from typing import Any

import anyio
import httpx
from joserfc import jwk, jwt
from joserfc.errors import JoseError
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import JSONResponse, Response
from starlette.routing import Route

from asyncrevoke import Registry, RevokedError

ISSUER, CLIENT, EVENT = "https://id.example.com", "shop", "http://schemas.openid.net/event/backchannel-logout"
MUST: jwt.ClaimsOption = {"essential": True}
CLAIMS = jwt.JWTClaimsRegistry(
    leeway=60, iss={**MUST, "value": ISSUER}, aud=MUST, iat=MUST, exp=MUST, jti=MUST, events=MUST
)
logger = logging.getLogger(__name__)
Login = tuple[str, str]  # the sub and the sid of an ID token


class Refused(Exception):
    """An error code of OAuth, and why. The token's text is not in there, as OAuth allows few characters."""


class BackChannelLogout:
    """Takes logout tokens. A session is open on ``live[login]``, and then looks whether `logins` has that login.

    :param keys: what the provider's `jwks_uri` says. For an unknown kid read it again, at most once a minute
    """

    limit = 5.0  # seconds until a logout has failed, as a session does not end

    def __init__(self, live: Registry, keys: jwk.KeySet) -> None:
        self.live, self.keys = live, keys
        self.logins: set[Login] = set()
        self.ending: set[Login] = set()  # logged out, and not closed yet
        self.used: deque[str] = deque(maxlen=10_000)  # the latest tokens, by jti
        self.routes = [Route("/logout", self.receive, methods=["POST"], max_body_size=16_384)]

    async def receive(self, request: Request) -> Response:
        no_store = {"Cache-Control": "no-store"}
        try:
            form = urllib.parse.parse_qs((await request.body()).decode("latin-1"))
            claims = self.verified(form.get("logout_token", [""])[0])
            await self.log_out(claims.get("sub"), claims.get("sid"))
        except Refused as refusal:
            error, why = refusal.args  # 400 is also for a good request whose logout fails (section 2.8)
            return JSONResponse({"error": error, "error_description": why}, 400, no_store)
        self.used.append(claims["jti"])  # now, as a logout that failed may be sent again
        return Response(headers=no_store)

    def verified(self, text: str) -> dict[str, Any]:
        """The claims of a logout token, if it is good (section 2.6)."""
        try:
            token = jwt.decode(text, self.keys, algorithms=["RS256", "ES256"])  # neither "none" nor a shared secret
            CLAIMS.validate(token.claims)
        except (JoseError, TypeError) as error:  # a header of wrong types is a TypeError
            why = f"{getattr(error, 'error', 'malformed')} {getattr(error, 'claim', '')}".strip()
            raise Refused("invalid_request", why) from error
        typ = str(token.header.get("typ", "JWT")).lower().removeprefix("application/")
        events = token.claims["events"]
        names = [token.claims[claim] for claim in ("sub", "sid") if token.claims.get(claim) is not None]
        for wrong, why in (
            (typ not in ("logout+jwt", "jwt"), "typ is not logout+jwt"),  # older providers say JWT, or nothing
            (token.claims["aud"] not in (CLIENT, [CLIENT]), "aud is not this client alone"),
            (not isinstance(events, dict) or not isinstance(events.get(EVENT), dict), "events has no logout"),
            ("nonce" in token.claims, "nonce is there, as in an ID token"),
            (not names or not all(name and isinstance(name, str) for name in names), "sub and sid name nobody"),
            (token.claims["jti"] in self.used, "jti was used before"),
        ):
            if wrong:
                raise Refused("invalid_request", why)
        return token.claims

    async def log_out(self, sub: str | None, sid: str | None) -> None:
        """End that session, or without a sid all of the user's. If none is open, that is success (section 2.7)."""

        def meant(logins: Iterable[Login]) -> list[Login]:
            return [login for login in logins if sub in (None, login[0]) and sid in (None, login[1])]

        for login in meant(self.logins):
            self.logins.remove(login)  # first: a session that begins meanwhile is refused
            self.ending.add(login)
        async with anyio.create_task_group() as tasks:
            for login in meant(self.ending):
                tasks.start_soon(self.end, login)
        if meant(self.ending):
            raise Refused("server_error", "a session has not ended")

    async def end(self, login: Login) -> None:
        if await self.revoke(*login, reason="logged out at the provider"):
            self.ending.discard(login)

    async def revoke(self, *key: str, reason: str) -> bool:
        """In this process. For all hosts let it be ``(await cluster.revoke(*key, reason=reason)).complete``"""
        act = self.live[key].revoke(reason)
        with anyio.move_on_after(self.limit):
            await act.wait_closed()
        if not act.done():
            logger.warning("still open: %s", [str(user) for user in act.stragglers()])
        return act.done()


async def session(logout: BackChannelLogout, login: Login) -> None:
    """What the endpoint of a websocket does: register, then look, then await whatever it likes."""
    connection = logout.live[login].open("websocket", release=lambda: print(f"{login} closed: {connection.reason}"))
    with contextlib.suppress(RevokedError):
        async with connection:
            with connection.using():
                if login not in logout.logins:
                    raise PermissionError(f"{login} is not logged in")
                await anyio.sleep_forever()


async def main() -> None:
    key = jwk.RSAKey.generate_key(2048, {"kid": "1", "use": "sig"})
    logout = BackChannelLogout(Registry(), jwk.KeySet.import_key_set({"keys": [key.as_dict(private=False)]}))
    transport = httpx.ASGITransport(Starlette(routes=logout.routes))
    async with (
        httpx.AsyncClient(transport=transport, base_url="https://shop.example.com") as provider,
        anyio.create_task_group() as tasks,
    ):
        for login in ("alice", "laptop"), ("alice", "phone"), ("bob", "desk"):
            logout.logins.add(login)
            tasks.start_soon(session, logout, login)
        await anyio.wait_all_tasks_blocked()
        for jti, who in ("1", {"sid": "laptop"}), ("1", {"sid": "phone"}), ("2", {"sub": "alice"}):
            now = int(time.time())
            claims = {"iss": ISSUER, "aud": CLIENT, "iat": now, "exp": now + 120, "jti": jti, "events": {EVENT: {}}}
            token = jwt.encode({"alg": "RS256", "kid": "1", "typ": "logout+jwt"}, claims | who, key)
            answer = await provider.post("/logout", data={"logout_token": token})
            print(answer.status_code, answer.text)
        print("still open:", sorted(logout.live))
        tasks.cancel_scope.cancel()


if __name__ == "__main__":
    anyio.run(main)
