"""Urls of a cluster's log, and addresses that a share listens on."""

import contextlib
import random
from collections.abc import AsyncIterator

from mutation import One, mutated

from asyncrevoke.cluster import open_log
from asyncrevoke.console.address import Address

LOGS = [
    b"redis://user:secret@host:6379/0?prefix=shop",
    b"rediss://host/1",
    b"unix:///run/redis.sock?db=1",
    b"valkey://[::1]:6379",
    b"postgresql://user@host:5432/shop?table=revoked&sslmode=require",
    b"postgres:///shop",
    b"sqlite:///proc/no/such/log.db?table=a",
]
ADDRESSES = [
    b"telnet+tls://127.0.0.1:4001?take&limit=5",
    b"tcp://[::1]:4001?read-only",
    b"localhost:1",
    b"[fe80::1%2]:80",
]
WORDS = [
    b":",
    b"/",
    b"//",
    b"?",
    b"&",
    b"=",
    b"@",
    b"[",
    b"]",
    b"%",
    b"%00",
    b"#",
    b"99999",
    b"-1",
    b"\xc3\xa9",
    b"\xd9\xa1",
]
WORDS += [b"prefix=", b"table=", b"limit=0", b"take", b"sqlite", b" ", b"\n", b"1" * 5000, b"::", b"a" * 300]


@contextlib.asynccontextmanager
async def answers() -> AsyncIterator[One]:
    """A url gives a log, or an address; or it is refused by a `ValueError`."""

    async def one(rng: random.Random) -> list[str]:
        logs = rng.random() < 0.5
        text = mutated(rng, rng.choice(LOGS if logs else ADDRESSES), WORDS).decode(errors="replace")
        try:
            if not logs:
                address = Address.of(text)
                return [f"an address, {address.mode}, {'loopback' if address.loopback else 'open'}"]
            log = open_log(text)
        except ValueError as exc:
            return [f"{'log' if logs else 'address'}: {exc}"]
        await log.aclose()
        return [type(log).__name__]

    yield one
