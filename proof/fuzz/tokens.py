"""Logout tokens, as the endpoint of examples/oidc_back_channel_logout.py gets them."""

import contextlib
import itertools
import json
import pathlib
import random
import sys
import time
from collections.abc import AsyncIterator
from typing import Any

import httpx
from joserfc import jwk, jwt
from mutation import One, mutated
from starlette.applications import Starlette

from asyncrevoke import Registry

sys.path.append(str(pathlib.Path(__file__).parents[2] / "examples"))
from oidc_back_channel_logout import CLIENT, EVENT, ISSUER, BackChannelLogout

ODD: list[Any] = [
    None,
    True,
    0,
    -1,
    1e308,
    10**40,
    "",
    "x",
    "\0",
    "é",
    [],
    [1],
    [CLIENT, "other"],
    {},
    {EVENT: None},
    {EVENT: []},
    [[]],
]
WORDS = [
    b".",
    b"..",
    b"=",
    b"%",
    b"%00",
    b"&",
    b"+",
    b"eyJ",
    b"\xff",
    b"logout_token=",
    b"e30",
    b"bnVsbA",
    b"W10",
    b"A" * 20_000,
]


@contextlib.asynccontextmanager
async def answers() -> AsyncIterator[One]:
    """Each is answered: 200, or 400 with a reason, or 413 if it is too long. A token that was changed logs nobody out."""
    key = jwk.ECKey.generate_key("P-256", {"kid": "1", "use": "sig"})
    logout = BackChannelLogout(Registry(), jwk.KeySet.import_key_set({"keys": [key.as_dict(private=False)]}))
    transport = httpx.ASGITransport(Starlette(routes=logout.routes))
    numbers = itertools.count()
    async with httpx.AsyncClient(transport=transport, base_url="https://shop.example.com") as provider:

        async def one(rng: random.Random) -> list[str]:
            now = int(time.time())
            claims: dict[str, Any] = {"iss": ISSUER, "aud": CLIENT, "iat": now, "exp": now + 120, "sub": "alice"}
            claims |= {"jti": str(next(numbers)), "events": {EVENT: {}}}
            header: dict[str, Any] = {"alg": "ES256", "kid": "1", "typ": "logout+jwt"}
            for _ in range(rng.randint(0, 2)):
                claims[rng.choice([*claims, "sid", "nonce", "nbf"])] = rng.choice(ODD)
            if rng.random() < 0.3:
                claims.pop(rng.choice([*claims]))
            good = json.dumps(claims, sort_keys=True)
            body = b"logout_token=" + jwt.encode(header, claims, key).encode()
            if wrong := rng.random() < 0.5:
                before, body = body, mutated(rng, body, WORDS)
                wrong = before != body and not body.startswith(before + b"&")
            logout.logins.add(("alice", "laptop"))
            content = {"Content-Type": "application/x-www-form-urlencoded"}
            answer = await provider.post("/logout", content=body, headers=content)
            assert answer.status_code in (200, 400, 413), answer
            if wrong and b"logout_token=" in body:
                text = body.partition(b"logout_token=")[2]
                assert answer.status_code != 200 or before[13:] in text, (good, body)
            return [f"{answer.status_code} {answer.json()['error_description'] if answer.status_code == 400 else ''}"]

        yield one
