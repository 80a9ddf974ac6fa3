"""Configuration files: of a console server, and those of others that are imported."""

import contextlib
import datetime as dt
import math
import pathlib
import random
import tempfile
import tomllib
from collections.abc import AsyncIterator
from typing import Any

import tomli_w
from mutation import One, mutated

from asyncrevoke.console import conserver, ser2net
from asyncrevoke.console.share import read_config

OURS = b"""group = "dialout"
sockets = [{path = "/run/a", group = "lab", mode = 0o660}, {path = "/run/b"}]
[share.router]
device = "usb-FTDI"
settings = "115200n8 rtscts"
databits = 8
stopbits = 1.5
log = "router.log"
log_size = "10M"
log_times = true
look = ["alice", "@lab"]
dtr = false
[share.shell]
command = ["sh", "-i"]
listen = ["telnet+tls://127.0.0.1:4001?take&limit=5", "tcp://[::1]:4001"]
tls_certificate = "c.pem"
restart = "on-failure"
history = 16384
"""
SER2NET = b"""%YAML 1.1
---
define: &banner hello
default:
  name: speed
  value: 9600n81
connection: &con1
  accepter: telnet(rfc2217),tcp,localhost,2000
  connector: serialdev,/dev/ttyS0,115200n81,local
  options: {banner: *banner, kickolduser: true, max-connections: 3}
include: nothing
"""
CONSERVER = b"""config * { sslrequired no; }
default full { rw *; type device; }
default lab { include full; baud 9600; parity none; }
console router { include lab; device /dev/ttyS0; logfile "/var/log/&"; options !hupcl,ixon; }
console shell { type exec; exec "sh -i"; break 4; }
access * { trusted 127.0.0.1; allowed @lab; }
"""
WORDS = [
    each.encode("latin-1")
    for each in [
        "=",
        "[",
        "]",
        "{",
        "}",
        '"',
        "'",
        "\n",
        "#",
        ":",
        ";",
        ",",
        "&",
        "*",
        "!",
        "-",
        "\t",
        "\x00",
        "ÿ",
        "[[",
        "]]",
        "true",
        "1e400",
        "-1",
        "nan",
        "inf",
        "0x",
        "99999999999999999999",
        "1979-05-27",
        "[share.",
        "share",
        "=",
        "sockets",
        "=",
        "command",
        "=",
        "{}",
        "[]",
        "*con1",
        "<<:",
        "!!python/object",
        "!!binary",
        "?",
        "|",
        ">",
        "%YAML",
        "include",
        "#include",
    ]
]
ODD: list[Any] = [
    True,
    0,
    -1,
    1.5,
    10**30,
    math.inf,
    math.nan,
    "",
    "x",
    "/",
    "*",
    "\0",
    "é" * 300,
    [],
    [1],
    [[]],
    ["a", "a"],
]
ODD += [{}, {"a": 1}, [{}], [{"path": "/a"}, {"path": "/a"}], dt.date(1979, 5, 27), dt.time(7, 32)]
READERS = {"ours": (OURS, read_config), "ser2net": (SER2NET, ser2net.read), "conserver": (CONSERVER, conserver.read)}


def odd(rng: random.Random) -> bytes:
    """Ours, with values that do not belong there."""
    config = tomllib.loads(OURS.decode())
    places = [config, config["share"], *config["share"].values(), *config["sockets"]]
    for _ in range(rng.randint(1, 3)):
        place = rng.choice(places)
        place[rng.choice([*place, "share", "sockets", "type", "log_keep", "flow"])] = rng.choice(ODD)
    return tomli_w.dumps(config).encode()


def write(folder: str, data: bytes) -> str:
    """Write it, and return the path."""
    file = pathlib.Path(folder, "fed.conf")
    file.write_bytes(data)
    return str(file)


@contextlib.asynccontextmanager
async def answers() -> AsyncIterator[One]:
    """A file is read, or refused by a `ValueError` that names it, or an `OSError` of one that it includes."""
    with tempfile.TemporaryDirectory() as folder:

        async def one(rng: random.Random) -> list[str]:
            kind = rng.choice([*READERS])
            text, read = READERS[kind]
            path = write(folder, odd(rng) if kind == "ours" and rng.random() < 0.5 else mutated(rng, text, WORDS))
            try:
                read(path)
            except (ValueError, OSError) as exc:
                if isinstance(exc, ValueError) and folder not in str(exc):
                    raise AssertionError(f"the file is not named: {exc}") from exc
                return [f"{kind}: {str(exc).rpartition('.conf')[2]}"]
            return [f"{kind}: read"]

        yield one
