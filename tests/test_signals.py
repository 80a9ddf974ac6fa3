"""Identity providers end live sessions: a good signal has done so when it is answered, a bad one changes nothing."""

import base64
import contextlib
import hashlib
import hmac
import json
import random
import time
from collections.abc import AsyncIterator
from typing import Any

import anyio
import anyio.abc
import caep_session_revoked as caep
import httpx
import oidc_back_channel_logout as oidc
import pytest
from joserfc import jwk, jws
from starlette.applications import Starlette

from asyncrevoke import Registry, RevokedError
from asyncrevoke.cluster import Cluster, LogRefusedError, MemoryLog
from conftest import settle

pytestmark = pytest.mark.anyio

KEY, OTHER = (jwk.RSAKey.generate_key(2048, {"kid": "1", "use": "sig"}) for _ in range(2))
SIGNAL = b"application/secevent+jwt"
PUBLIC = KEY.as_pem(private=False)
LAPTOP, PHONE = caep.Login("alice", "laptop", "alice@shop.org"), caep.Login("alice", "phone", "alice@shop.org")
DESK = caep.Login("bob", "desk", "bob@shop.org")


class Shop:
    """A service where alice and bob have live sessions, with both receivers, and the provider that tells it something."""

    def __init__(self, tasks: anyio.abc.TaskGroup) -> None:
        keys = jwk.KeySet.import_key_set({"keys": [KEY.as_dict(private=False)]})
        self.live = Registry()
        self.logout = oidc.BackChannelLogout(self.live, keys)
        self.signals = caep.Signals(self.live, keys, "Bearer secret")
        self.app = Starlette(routes=[*self.logout.routes, *self.signals.routes])
        transport = httpx.ASGITransport(self.app)
        self.provider = httpx.AsyncClient(transport=transport, base_url="https://shop.example.com")
        self.tasks = tasks
        self.ended: list[caep.Login] = []
        self.may_end = anyio.Event()
        self.may_end.set()

    def log_in(self, login: caep.Login) -> None:
        self.logout.logins.add(login[:2])
        self.signals.logins.add(login)
        self.tasks.start_soon(self.session, login)

    async def session(self, login: caep.Login) -> None:
        """It waits for ever. Its clean-up takes some turns of the loop, and as long as the test likes."""
        with contextlib.suppress(RevokedError), self.live[login[:2]].using():
            try:
                await anyio.sleep_forever()
            finally:
                with anyio.CancelScope(shield=True):
                    await settle()
                    await self.may_end.wait()
                self.ended.append(login)

    async def log_out(self, token: str) -> httpx.Response:
        return await self.provider.post("/logout", data={"logout_token": token})

    async def signal(self, token: str, *, by: bytes = b"Bearer secret", kind: bytes = SIGNAL) -> httpx.Response:
        headers = {b"authorization": by, b"content-type": kind}
        return await self.provider.post("/signals", content=token, headers=headers)


@contextlib.asynccontextmanager
async def opened() -> AsyncIterator[Shop]:
    async with anyio.create_task_group() as tasks:
        shop = Shop(tasks)
        for login in LAPTOP, PHONE, DESK:
            shop.log_in(login)
        await anyio.wait_all_tasks_blocked()
        try:
            async with shop.provider:
                yield shop
        finally:
            shop.may_end.set()
        tasks.cancel_scope.cancel()


def signed(header: dict[str, Any], claims: object, key: jwk.RSAKey = KEY) -> str:
    """A token as anybody may make one: without what is None, and without the library's own checks."""
    head = {name: value for name, value in header.items() if value is not None}
    payload = claims if isinstance(claims, bytes) else json.dumps(claims).encode()
    if head["alg"] == "RS256" and "crit" not in head:
        registry = jws.JWSRegistry(algorithms=["RS256"], strict_check_header=False)
        return jws.serialize_compact(head, payload, key, registry=registry)
    parts = b".".join(base64.urlsafe_b64encode(part).rstrip(b"=") for part in (json.dumps(head).encode(), payload))
    mac = hmac.digest(PUBLIC, parts, hashlib.sha256) if head["alg"] == "HS256" else b""
    return b".".join((parts, base64.urlsafe_b64encode(mac).rstrip(b"="))).decode()


def token(standard: dict[str, Any], header: dict[str, Any], key: jwk.RSAKey, claims: dict[str, Any]) -> str:
    """A good token of that standard, but for what is given. What is None is not there."""
    common = {"iss": oidc.ISSUER, "iat": int(time.time()), "jti": str(random.random())}
    changed = common | standard | claims
    head = {"alg": "RS256", "kid": "1"} | header
    return signed(head, {name: value for name, value in changed.items() if value is not None}, key)


DAY = 86_400  # a test may run long after its token was made


def logout_token(header: dict[str, Any] | None = None, *, key: jwk.RSAKey = KEY, **claims: Any) -> str:
    standard = {"aud": oidc.CLIENT, "exp": int(time.time()) + DAY, "events": {oidc.EVENT: {}}}
    return token(standard, {"typ": "logout+jwt"} | (header or {}), key, claims)


def event(header: dict[str, Any] | None = None, *, key: jwk.RSAKey = KEY, **claims: Any) -> str:
    standard = {"aud": caep.AUDIENCE, "events": {caep.REVOKED: {"event_timestamp": 1615304991}}}
    return token(standard, {"typ": "secevent+jwt"} | (header or {}), key, claims)


def iss_sub(sub: object, iss: object = caep.ISSUER) -> dict[str, object]:
    return {"format": "iss_sub", "iss": iss, "sub": sub}


def opaque(name: object) -> dict[str, object]:
    return {"format": "opaque", "id": name}


def email(address: object) -> dict[str, object]:
    return {"format": "email", "email": address}


def unchanged(shop: Shop) -> bool:
    """Whether everybody is still there, and may come back."""
    logins = {LAPTOP, PHONE, DESK}
    return not shop.ended and shop.signals.logins == logins and shop.logout.logins == {each[:2] for each in logins}


# -- back-channel logout --


@pytest.mark.parametrize(
    ("named", "ended"),
    [
        ({"sid": "laptop"}, [LAPTOP]),
        ({"sid": "laptop", "sub": "alice"}, [LAPTOP]),
        ({"sub": "alice"}, [LAPTOP, PHONE]),
        ({"sid": "laptop", "sub": "bob"}, []),
        ({"sid": "long gone"}, []),
    ],
    ids=str,
)
async def test_sessions_have_ended_when_a_logout_is_answered(named: dict[str, Any], ended: list[caep.Login]) -> None:
    """All that the token names are over then, and out of the table of logins; nobody else's. None is success, too."""
    async with opened() as shop:
        answer = await shop.log_out(logout_token(**named))
        assert (answer.status_code, answer.content, answer.headers["cache-control"]) == (200, b"", "no-store")
        assert sorted(shop.ended) == ended
        assert shop.logout.logins == {each[:2] for each in {LAPTOP, PHONE, DESK} - {*ended}}


@pytest.mark.parametrize(
    "header",
    [{"typ": None}, {"typ": "JWT"}, {"typ": "application/logout+jwt"}, {"typ": "LOGOUT+JWT"}, {"kid": None}],
    ids=str,
)
async def test_logout_tokens_of_other_providers_are_good(header: dict[str, Any]) -> None:
    """An explicit type is recommended, not required; a kid is needed only among several keys."""
    async with opened() as shop:
        claims: dict[str, Any] = {"aud": [oidc.CLIENT], "events": {oidc.EVENT: {}, "more": True}, "other": 1}
        assert (await shop.log_out(logout_token(header, sid="laptop", **claims))).status_code == 200
        assert shop.ended == [LAPTOP]


NOW = int(time.time())
BAD_LOGOUTS: dict[str, tuple[str, str]] = {
    "signed by another key": (logout_token(sub="alice", key=OTHER), "bad_signature"),
    "signed by nobody": (logout_token({"alg": "none"}, sub="alice"), "unsupported_algorithm"),
    "signed with the public key as a secret": (logout_token({"alg": "HS256"}, sub="alice"), "unsupported_algorithm"),
    "an unknown key": (logout_token({"kid": "2"}, sub="alice"), "invalid_key_id"),
    "a critical extension": (logout_token({"crit": ["x"], "x": 1}, sub="alice"), "unsupported_header"),
    "a critical nothing": (logout_token({"crit": 5}, sub="alice"), "malformed"),
    "another type": (logout_token({"typ": "at+jwt"}, sub="alice"), "typ is not logout+jwt"),
    "expired": (logout_token(sub="alice", exp=NOW - 61), "expired_token exp"),
    "no expiry": (logout_token(sub="alice", exp=None), "missing_claim exp"),
    "never expires": (logout_token(sub="alice", exp=float("inf")), "invalid_claim exp"),
    "from the future": (logout_token(sub="alice", iat=NOW + DAY), "invalid_claim iat"),
    "no time": (logout_token(sub="alice", iat=None), "missing_claim iat"),
    "another client": (logout_token(sub="alice", aud="bank"), "aud is not this client alone"),
    "others, too": (logout_token(sub="alice", aud=[oidc.CLIENT, "bank"]), "aud is not this client alone"),
    "no audience": (logout_token(sub="alice", aud=None), "missing_claim aud"),
    "another issuer": (logout_token(sub="alice", iss="https://evil.example.com"), "invalid_claim iss"),
    "no issuer": (logout_token(sub="alice", iss=None), "missing_claim iss"),
    "a nonce": (logout_token(sub="alice", nonce="n"), "nonce is there, as in an ID token"),
    "no events": (logout_token(sub="alice", events=None), "missing_claim events"),
    "a list of events": (logout_token(sub="alice", events=[oidc.EVENT]), "events has no logout"),
    "another event": (logout_token(sub="alice", events={caep.REVOKED: {}}), "events has no logout"),
    "an event that is no object": (logout_token(sub="alice", events={oidc.EVENT: True}), "events has no logout"),
    "no subject": (logout_token(), "sub and sid name nobody"),
    "an empty subject": (logout_token(sub=""), "sub and sid name nobody"),
    "an empty session": (logout_token(sub="alice", sid=""), "sub and sid name nobody"),
    "a subject that is a number": (logout_token(sub=7), "invalid_claim sub"),
    "a session that is a number": (logout_token(sub="alice", sid=7), "sub and sid name nobody"),
    "no jti": (logout_token(sub="alice", jti=None), "missing_claim jti"),
    "a jti that is a list": (logout_token(sub="alice", jti=["1"]), "invalid_claim jti"),
    "no JSON": (signed({"alg": "RS256", "kid": "1"}, b"{"), "invalid_payload"),
    "no object": (signed({"alg": "RS256", "kid": "1"}, []), "invalid_payload"),
    "garbage": ("garbage", "decode_error"),
    "nothing": ("", "decode_error"),
}


@pytest.mark.parametrize("case", BAD_LOGOUTS)
async def test_bad_logout_token_is_refused_and_changes_nothing(case: str) -> None:
    """The answer is the standard's error; every session goes on."""
    bad, why = BAD_LOGOUTS[case]
    async with opened() as shop:
        answer = await shop.log_out(bad)
        assert (answer.status_code, answer.headers["cache-control"]) == (400, "no-store")
        assert answer.json() == {"error": "invalid_request", "error_description": why}
        assert unchanged(shop)


async def test_a_logout_without_a_form_is_refused() -> None:
    """JSON is no form, and a form without the token none of a logout."""
    async with opened() as shop:
        good = logout_token(sub="alice")
        for body in {"json": {"logout_token": good}}, {"data": {"id_token": good}}, {"content": b"\xff\x00%"}:
            answer = await shop.provider.post("/logout", **body)
            assert answer.status_code == 400
            assert answer.json()["error"] == "invalid_request"
        assert unchanged(shop)


async def test_used_logout_token_is_refused() -> None:
    """Who has logged in anew stays, when the token of the last logout comes again."""
    async with opened() as shop:
        used = logout_token(sub="alice")
        assert (await shop.log_out(used)).status_code == 200
        again = caep.Login("alice", "tablet", "alice@shop.org")
        shop.log_in(again)
        answer = await shop.log_out(used)
        assert answer.status_code == 400
        assert answer.json() == {"error": "invalid_request", "error_description": "jti was used before"}
        assert again[:2] in shop.logout.logins
        assert again not in shop.ended


async def test_logout_fails_until_the_session_has_ended() -> None:
    """It is no success while somebody is inside, whichever token asks; the failed token is good for another try."""
    async with opened() as shop:
        shop.may_end = anyio.Event()
        shop.logout.limit = 0.01
        first = logout_token(sid="laptop")
        for each in first, first, logout_token(sub="alice", sid="laptop"):
            answer = await shop.log_out(each)
            assert answer.status_code == 400
            assert answer.json() == {"error": "server_error", "error_description": "a session has not ended"}
            assert LAPTOP[:2] not in shop.logout.logins  # nothing new begins
        assert (await shop.log_out(logout_token(sub="carol"))).status_code == 200  # who waits for nobody
        shop.may_end.set()
        shop.logout.limit = 5
        assert (await shop.log_out(first)).status_code == 200
        assert shop.ended == [LAPTOP]
        assert not shop.logout.ending


async def test_one_logout_sent_twice_at_a_time_ends_a_session_once() -> None:
    """Both are answered when it has ended."""
    async with opened() as shop:
        sent = logout_token(sid="laptop")

        async def log_out() -> None:
            assert (await shop.log_out(sent)).status_code == 200
            assert shop.ended == [LAPTOP]

        async with anyio.create_task_group() as tasks:
            tasks.start_soon(log_out)
            tasks.start_soon(log_out)


async def test_session_whose_login_went_meanwhile_is_refused() -> None:
    """A session looks at the logins after it is registered, so that no logout can pass between."""
    async with opened() as shop:
        assert (await shop.log_out(logout_token(sub="alice"))).status_code == 200
        with pytest.raises(PermissionError):
            await oidc.session(shop.logout, LAPTOP[:2])
        with pytest.raises(PermissionError):
            await caep.session(shop.signals, caep.Login("carol", "desk", ""))


# -- on every host --


class LogoutEverywhere(oidc.BackChannelLogout):
    """As the example's docstring says. The cable of its log can be pulled."""

    def __init__(self, cluster: Cluster, keys: jwk.KeySet) -> None:
        super().__init__(cluster.live, keys)
        self.cluster = cluster

    async def revoke(self, *key: str, reason: str) -> bool:
        return (await self.cluster.revoke(*key, reason=reason)).complete


class SignalsEverywhere(caep.Signals):
    """As the example's docstring says."""

    def __init__(self, cluster: Cluster, keys: jwk.KeySet) -> None:
        super().__init__(cluster.live, keys, "Bearer secret")
        self.cluster = cluster

    async def revoke(self, *key: str) -> None:
        await self.cluster.revoke(*key, reason="revoked by the identity provider", limit=self.limit)


class Unwritable(MemoryLog):
    """A log to which nothing can be appended while it is full."""

    full = False

    async def append(self, *texts: str) -> None:
        if self.full:
            raise LogRefusedError("the disk is full")
        await super().append(*texts)


@pytest.mark.parametrize("standard", ["oidc", "caep"])
async def test_provider_tells_one_host_and_the_session_ends_on_another(standard: str) -> None:
    """What fails, as nothing can be written to the log, may be sent again."""
    log = Unwritable()
    here, there = [Cluster(Registry(), log, host=name) for name in ("here", "there")]
    async with opened() as shop, anyio.create_task_group() as tasks:
        await here.init()
        for each in here, there:
            await tasks.start(each.run)
        keys = shop.logout.keys
        logout, signals = LogoutEverywhere(here, keys), SignalsEverywhere(here, keys)
        logout.logins.update((LAPTOP[:2], DESK[:2]))
        signals.logins.update((LAPTOP, DESK))
        shop.app.router.routes[:] = [*logout.routes, *signals.routes]
        closed = [anyio.Event(), anyio.Event()]
        there.live[LAPTOP[:2]].open("websocket", release=closed[0].set)
        there.live[DESK[:2]].open("websocket", release=closed[1].set)
        told = logout_token(sid="laptop") if standard == "oidc" else event(sub_id=opaque("laptop"))
        tell = shop.log_out if standard == "oidc" else shop.signal
        log.full = True
        with pytest.RaisesGroup(LogRefusedError):  # which a server answers with 500
            await tell(told)
        log.full = False
        assert (await tell(told)).status_code == (200 if standard == "oidc" else 202)
        assert [each.is_set() for each in closed] == [True, False]
        assert not logout.ending | signals.ending
        with pytest.raises(RevokedError), there.admit(*LAPTOP[:2]):
            pass
        tasks.cancel_scope.cancel()


# -- session revoked --


@pytest.mark.parametrize(
    ("subject", "ended"),
    [
        (opaque("laptop"), [LAPTOP]),
        (iss_sub("alice"), [LAPTOP, PHONE]),
        (email("Alice@Shop.org"), [LAPTOP, PHONE]),
        ({"format": "complex", "session": opaque("laptop")}, [LAPTOP]),
        ({"format": "complex", "user": email("alice@shop.org"), "session": opaque("laptop")}, [LAPTOP]),
        ({"format": "complex", "user": opaque("alice"), "session": opaque("phone"), "tenant": opaque("t")}, [PHONE]),
        (
            {"format": "complex", "user": iss_sub("alice"), "device": opaque("d"), "tenant": opaque("t")},
            [LAPTOP, PHONE],
        ),
        ({"format": "complex", "user": opaque("alice")}, [LAPTOP, PHONE]),
        ({"format": "complex", "user": iss_sub("bob"), "session": opaque("laptop")}, []),
        ({"format": "complex", "user": opaque("bob"), "session": opaque("laptop")}, []),
        (iss_sub("alice", "https://other.example.com"), []),
        (opaque("alice"), []),
    ],
    ids=str,
)
async def test_sessions_have_ended_when_a_signal_is_accepted(subject: object, ended: list[caep.Login]) -> None:
    """All that the subject means are over then, and out of the table of logins; nobody else's."""
    async with opened() as shop:
        answer = await shop.signal(event(sub_id=subject, aud=["https://shop.example.com/app", caep.AUDIENCE]))
        assert (answer.status_code, answer.content) == (202, b"")
        assert sorted(shop.ended) == ended
        assert shop.signals.logins == {LAPTOP, PHONE, DESK} - {*ended}


ALICE = iss_sub("alice")
BAD_SIGNALS: dict[str, tuple[str, str]] = {
    "signed by another key": (event(sub_id=ALICE, key=OTHER), "invalid_key"),
    "signed by nobody": (event({"alg": "none"}, sub_id=ALICE), "invalid_key"),
    "signed with the public key as a secret": (event({"alg": "HS256"}, sub_id=ALICE), "invalid_key"),
    "an unknown key": (event({"kid": "2"}, sub_id=ALICE), "invalid_key"),
    "a critical nothing": (event({"crit": 5}, sub_id=ALICE), "invalid_request"),
    "another type": (event({"typ": "logout+jwt"}, sub_id=ALICE), "invalid_request"),
    "no type": (event({"typ": None}, sub_id=ALICE), "invalid_request"),
    "another issuer": (event(sub_id=ALICE, iss="https://evil.example.com"), "invalid_issuer"),
    "no issuer": (event(sub_id=ALICE, iss=None), "invalid_issuer"),
    "another audience": (event(sub_id=ALICE, aud="https://bank.example.com"), "invalid_audience"),
    "no audience": (event(sub_id=ALICE, aud=None), "invalid_audience"),
    "from the future": (event(sub_id=ALICE, iat=NOW + DAY), "invalid_request"),
    "no time": (event(sub_id=ALICE, iat=None), "invalid_request"),
    "expired": (event(sub_id=ALICE, exp=NOW - 61), "invalid_request"),
    "an expiry, as of another token": (event(sub_id=ALICE, exp=NOW + DAY), "invalid_request"),
    "a sub, as of another token": (event(sub_id=ALICE, sub="alice"), "invalid_request"),
    "no jti": (event(sub_id=ALICE, jti=None), "invalid_request"),
    "no events": (event(sub_id=ALICE, events=None), "invalid_request"),
    "a list of events": (event(sub_id=ALICE, events=[caep.REVOKED]), "invalid_request"),
    "an event that is no object": (event(sub_id=ALICE, events={caep.REVOKED: True}), "invalid_request"),
    "no subject": (event(), "invalid_request"),
    "a subject that is a text": (event(sub_id="alice"), "invalid_request"),
    "a subject without its name": (event(sub_id={"format": "opaque"}), "invalid_request"),
    "a subject that is a number": (event(sub_id=opaque(7)), "invalid_request"),
    "an address that is a number": (event(sub_id=email(7)), "invalid_request"),
    "a subject of another format": (event(sub_id={"format": "phone_number", "phone_number": "+1"}), "invalid_request"),
    "nothing but a tenant": (event(sub_id={"format": "complex", "tenant": opaque("t")}), "invalid_request"),
    "a session in another format": (
        event(sub_id={"format": "complex", "user": ALICE, "session": {"format": "jwt_id", "iss": "i", "jti": "j"}}),
        "invalid_request",
    ),
    "a user in another format": (
        event(sub_id={"format": "complex", "user": {"format": "did"}, "session": opaque("laptop")}),
        "invalid_request",
    ),
    "garbage": ("garbage", "invalid_request"),
    "nothing": ("", "invalid_request"),
}


@pytest.mark.parametrize("case", BAD_SIGNALS)
async def test_bad_signal_is_refused_and_changes_nothing(case: str) -> None:
    """The answer is the standard's error; every session goes on."""
    bad, err = BAD_SIGNALS[case]
    async with opened() as shop:
        assert_error(await shop.signal(bad), err)
        assert unchanged(shop)


def assert_error(answer: httpx.Response, err: str) -> None:
    """What RFC 8935 says of the form of an error (section 2.3)."""
    assert (answer.status_code, answer.headers["content-type"]) == (400, "application/json")
    assert answer.headers["content-language"] == "en"
    assert answer.json().keys() == {"err", "description"}
    assert answer.json()["err"] == err
    assert answer.json()["description"]


async def test_signal_of_another_transmitter_or_type_is_refused() -> None:
    """The header that the stream was configured with must be there, and the content type of a signal."""
    async with opened() as shop:
        good = event(sub_id=ALICE)
        for wrong in b"Bearer guess", b"", b"Bearer \xff":
            assert_error(await shop.signal(good, by=wrong), "authentication_failed")
        assert_error(await shop.signal(good, kind=b"application/json"), "invalid_request")
        assert unchanged(shop)


async def test_signal_delivered_again_is_accepted_and_does_nothing() -> None:
    """RFC 8935 wants the same answer as before; who has logged in anew stays."""
    async with opened() as shop:
        sent = event(sub_id=ALICE)
        assert (await shop.signal(sent)).status_code == 202
        again = caep.Login("alice", "tablet", "alice@shop.org")
        shop.log_in(again)
        answer = await shop.signal(sent)
        assert (answer.status_code, answer.content) == (202, b"")
        assert again in shop.signals.logins
        assert again not in shop.ended


async def test_signals_of_other_kinds_are_accepted_and_change_nothing() -> None:
    """A verification of the stream, with the state that was asked for or none, and an event that nobody asked for."""
    async with opened() as shop:
        shop.signals.state = "s"
        for kind, state in (caep.VERIFICATION, {}), (caep.VERIFICATION, {"state": "s"}), ("https://x.org/event", {}):
            assert (await shop.signal(event(sub_id=opaque("laptop"), events={kind: state}))).status_code == 202
        wrong = event(sub_id=opaque("stream"), events={caep.VERIFICATION: {"state": "another"}})
        assert_error(await shop.signal(wrong), "invalid_state")
        assert unchanged(shop)


async def test_signal_is_accepted_though_a_session_does_not_end(caplog: pytest.LogCaptureFixture) -> None:
    """The answer says that it has arrived. Nothing new begins, and the log names who is still there."""
    async with opened() as shop:
        shop.may_end = anyio.Event()
        shop.signals.limit = 0.01
        assert (await shop.signal(event(sub_id=opaque("laptop")))).status_code == 202
        assert LAPTOP not in shop.signals.logins
        assert "alice/laptop" in caplog.text


# -- both --


async def test_clock_of_the_provider_may_be_wrong_a_little() -> None:
    """By less than a minute it does not matter."""
    async with opened() as shop:
        now = int(time.time())
        assert (await shop.log_out(logout_token(sid="laptop", iat=now - 70, exp=now - 30))).status_code == 200
        assert (await shop.log_out(logout_token(sid="phone", iat=now + 30))).status_code == 200
        assert (await shop.signal(event(sub_id=opaque("desk"), iat=now + 30))).status_code == 202
        assert shop.ended == [LAPTOP, PHONE, DESK]
        assert (await shop.log_out(logout_token(sid="laptop", iat=now + 90))).status_code == 400
        assert_error(await shop.signal(event(sub_id=opaque("desk"), iat=now + 90)), "invalid_request")


@pytest.mark.parametrize("path", ["/logout", "/signals"])
async def test_body_without_end_is_not_read_to_its_end(path: str) -> None:
    """It is refused when it is too large for a token."""
    taken = 0
    answer: list[Any] = []

    async def receive() -> dict[str, Any]:
        nonlocal taken
        taken += 1024
        return {"type": "http.request", "body": b"x" * 1024, "more_body": True}

    async def send(message: Any) -> None:
        answer.append(message)

    async with opened() as shop:
        headers = [(b"authorization", b"Bearer secret"), (b"content-type", SIGNAL)]
        scope = {"type": "http", "method": "POST", "path": path, "query_string": b"", "headers": headers}
        await shop.app(scope, receive, send)
        assert answer[0]["status"] == 413
        assert taken < 20_000
        assert unchanged(shop)


async def test_garbled_tokens_are_refused() -> None:
    """Whatever happens to a good one on its way, no session ends."""
    dice = random.Random(8935)
    async with opened() as shop:
        for good, send in (logout_token(sub="alice"), shop.log_out), (event(sub_id=ALICE), shop.signal):
            for _ in range(200):
                garbled = [*good]
                for at in dice.sample(range(len(good) - 10), dice.choice([1, 2, 20])):  # the last bits mean nothing
                    garbled[at] = dice.choice([each for each in ".=-_{[\x00\xffAz9" if each != good[at]])
                assert (await send("".join(garbled))).status_code == 400
        assert unchanged(shop)


async def test_memory_of_what_was_received_is_bounded() -> None:
    """The latest 10,000 are known again."""
    async with opened() as shop:
        for known in shop.logout.used, shop.signals.seen:
            known.extend(map(str, range(20_000)))
            assert [*known] == [*map(str, range(10_000, 20_000))]
