"""Shared Signals: an identity provider pushes "session revoked" (CAEP 1.0, over RFC 8935), and live sessions end."""

import contextlib
import hmac
import logging
import time
from collections import deque
from typing import Any, NamedTuple

import anyio
import httpx
from joserfc import jwk, jwt
from joserfc.errors import JoseError
from starlette.applications import Starlette
from starlette.datastructures import Headers
from starlette.requests import Request
from starlette.responses import JSONResponse, Response
from starlette.routing import Route

from asyncrevoke import Registry, RevokedError

ISSUER, AUDIENCE = "https://id.example.com", "https://shop.example.com"
REVOKED = "https://schemas.openid.net/secevent/caep/event-type/session-revoked"
VERIFICATION = "https://schemas.openid.net/secevent/ssf/event-type/verification"
MUST: jwt.ClaimsOption = {"essential": True}
CLAIMS = jwt.JWTClaimsRegistry(
    leeway=60, iss={**MUST, "value": ISSUER}, aud={**MUST, "value": AUDIENCE}, iat=MUST, jti=MUST, events=MUST
)
CODES: dict[str, str] = dict.fromkeys(("bad_signature", "invalid_key_id", "unsupported_algorithm"), "invalid_key")
CODES |= {"iss": "invalid_issuer", "aud": "invalid_audience"}  # of RFC 8935, by what joserfc complains of
logger = logging.getLogger(__name__)


class Login(NamedTuple):
    """What the ID token of a login has said. The email is in small letters."""

    sub: str
    sid: str
    email: str
    iss: str = ISSUER


class Refused(Exception):
    """An error code of RFC 8935, and a description."""


class Signals:
    """Takes signals. A session is open on ``live[sub, sid]``, and then looks whether `logins` has its login.

    :param keys: what the transmitter's `jwks_uri` says. For an unknown kid read it again, at most once a minute
    :param authorization: the header that the transmitter sends, as the stream's `authorization_header` told it
    """

    limit = 2.0  # seconds. The answer says that we have the signal, and should not wait long for its effect (section 2)
    state: str | None = None  # of the verification that was asked for

    def __init__(self, live: Registry, keys: jwk.KeySet, authorization: str) -> None:
        self.live, self.keys, self.authorization = live, keys, authorization
        self.logins, self.ending = set[Login](), set[Login]()
        self.seen: deque[str] = deque(maxlen=10_000)  # the latest signals, by jti
        self.routes = [Route("/signals", self.receive, methods=["POST"], max_body_size=16_384)]

    async def receive(self, request: Request) -> Response:
        try:
            await self.take(request.headers, await request.body())
        except Refused as refusal:
            err, description = refusal.args
            return JSONResponse({"err": err, "description": description}, 400, {"Content-Language": "en"})
        return Response(status_code=202)

    async def take(self, headers: Headers, text: bytes) -> None:
        if not hmac.compare_digest(headers.get("authorization", "").encode(), self.authorization.encode()):
            raise Refused("authentication_failed", "the Authorization header is not that of the stream")
        if headers.get("content-type") != "application/secevent+jwt":
            raise Refused("invalid_request", "the content type is not application/secevent+jwt")
        claims = self.verified(text)
        if claims["events"].get(VERIFICATION, {}).get("state", self.state) != self.state:
            raise Refused("invalid_state", "the state is not the one that was asked for")
        if REVOKED in claims["events"]:
            meant = meant_by(claims.get("sub_id"))
            if claims["jti"] not in self.seen:  # once more is answered as the first time, and done once (section 2)
                await self.end(meant)
                self.seen.append(claims["jti"])  # now, as one that was answered with 500 comes again

    def verified(self, text: bytes) -> dict[str, Any]:
        """The claims of a Security Event Token, if it is as Shared Signals has them (section 4.1 there)."""
        try:
            token = jwt.decode(text, self.keys, algorithms=["RS256", "ES256"])  # neither "none" nor a shared secret
            CLAIMS.validate(token.claims)
        except (JoseError, TypeError) as error:  # a header of wrong types is a TypeError
            code = CODES.get(getattr(error, "claim", getattr(error, "error", "")), "invalid_request")
            raise Refused(code, str(error)) from error
        events = token.claims["events"]
        for wrong, why in (
            (token.header.get("typ") not in ("secevent+jwt", "application/secevent+jwt"), "typ is not secevent+jwt"),
            ("exp" in token.claims or "sub" in token.claims, "exp or sub is there, as in other tokens"),
            (not isinstance(events, dict) or {*map(type, events.values())} - {dict}, "no events"),
        ):
            if wrong:
                raise Refused("invalid_request", why)
        return token.claims

    async def end(self, meant: dict[str, str]) -> None:
        """End the sessions of those whose logins have these claims."""
        ending = self.ending | {login for login in self.logins if meant.items() <= login._asdict().items()}
        self.ending, self.logins = ending, self.logins - ending  # first: a session that begins meanwhile is refused
        async with anyio.create_task_group() as tasks:
            for login in ending:
                tasks.start_soon(self.revoke, login.sub, login.sid)
        self.ending -= ending

    async def revoke(self, *key: str) -> None:
        """In this process. For all hosts let it be ``await cluster.revoke(*key, limit=self.limit)``"""
        act = self.live[key].revoke("revoked by the identity provider")
        with anyio.move_on_after(self.limit):
            await act.wait_closed()
        if stragglers := [str(user) for user in act.stragglers()]:
            logger.warning("still open: %s", stragglers)


def meant_by(subject: object, opaque: str = "sid") -> dict[str, str]:
    """The claims of the logins that a subject means (RFC 9493). Alone, an opaque name is that of a session.

    Of devices and tenants nothing is known here, so that all of them match, as Shared Signals has it (section 8.1.3.1).
    """
    match subject:
        case {"format": "opaque", "id": str(name)}:
            return {opaque: name}
        case {"format": "iss_sub", "iss": str(iss), "sub": str(sub)}:
            return {"iss": iss, "sub": sub}
        case {"format": "email", "email": str(email)}:
            return {"email": email.lower()}
        case {"format": "complex", "user": user, "session": {"format": "opaque", "id": str(sid)}}:
            return meant_by(user, "sub") | {"sid": sid}
        case {"format": "complex", "session": {"format": "opaque", "id": str(sid)}}:
            return {"sid": sid}
        case {"format": "complex", "user": user, **others} if "session" not in others:
            return meant_by(user, "sub")
    raise Refused("invalid_request", "sub_id names neither a user nor a session in a format that is known here")


async def session(signals: Signals, login: Login) -> None:
    """What the endpoint of a websocket does: register, then look, then await whatever it likes."""
    key = signals.live[login.sub, login.sid]
    connection = key.open("websocket", release=lambda: print(f"{connection.path} closed: {connection.reason}"))
    with contextlib.suppress(RevokedError):
        async with connection:
            with connection.using():
                if login not in signals.logins:
                    raise PermissionError(f"{login} is not logged in")
                await anyio.sleep_forever()


async def main() -> None:
    key = jwk.RSAKey.generate_key(2048, {"kid": "1", "use": "sig"})
    keys = jwk.KeySet.import_key_set({"keys": [key.as_dict(private=False)]})
    signals = Signals(Registry(), keys, "Bearer secret")
    async with (
        httpx.AsyncClient(transport=httpx.ASGITransport(Starlette(routes=signals.routes))) as transmitter,
        anyio.create_task_group() as tasks,
    ):
        for login in Login("17", "laptop", "al@x.org"), Login("17", "phone", "al@x.org"), Login("4", "pc", "bo@x.org"):
            signals.logins.add(login)
            tasks.start_soon(session, signals, login)
        await anyio.wait_all_tasks_blocked()
        alice = {"format": "email", "email": "Al@x.org"}
        laptop = {"format": "complex", "user": alice, "session": {"format": "opaque", "id": "laptop"}}
        headers = {"Authorization": "Bearer secret", "Content-Type": "application/secevent+jwt"}
        for jti, subject in ("1", laptop), ("1", laptop), ("2", alice), ("3", {"format": "complex", "tenant": alice}):
            claims = {"iss": ISSUER, "aud": AUDIENCE, "iat": int(time.time()), "jti": jti, "events": {REVOKED: {}}}
            signal = jwt.encode({"alg": "RS256", "kid": "1", "typ": "secevent+jwt"}, claims | {"sub_id": subject}, key)
            answer = await transmitter.post("https://shop.example.com/signals", content=signal, headers=headers)
            print(answer.status_code, answer.text)
        print("still open:", sorted(signals.live))
        tasks.cancel_scope.cancel()


if __name__ == "__main__":
    anyio.run(main)
