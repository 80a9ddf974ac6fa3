"""Run the own tests of other libraries on what stands in for them: ``python benchmarks/peers_own_tests.py [--offline]``

Only the constructors of serialx, pyserial-asyncio and pyserial-asyncio-fast are replaced by ours, and each reader and writer
of asyncio's own tests is wrapped. The sources are downloaded by pip into a temporary folder; then our own test of a library
for Zigbee radios is run, which is too large to be installed for it. It needs pytest-asyncio, pytest-timeout, psutil and socat.

Printed is what does not pass, beside the reason that is known here. Anything else makes it exit with 1; without a network it
exits with 77. With `--offline` it runs asyncio's tests alone.
"""

import asyncio
import dataclasses
import importlib
import pathlib
import subprocess
import sys
import tempfile
import types
from collections.abc import Callable
from typing import Any

import pytest

from asyncrevoke.adapters.asyncio_streams import wrap_streams

#: Part of a test's name, and why it does not pass.
KNOWN = {
    "test_eof_feed_when_closing_writer": "a pair that was closed here is closed for its reader, too: no end of data",
    "test_unclosed_resource_warnings": "a reader can close the connection: it keeps a writer that nobody else has",
    "test_unclosed_server_resource_warnings": "a reader can close the connection: it keeps a writer that nobody else has",
}


@dataclasses.dataclass
class Peer:
    """Tests of others.

    :ivar source: the folder that they are run in
    :ivar stand_in: puts ours in the place of theirs
    :ivar tests: as pytest is told
    """

    name: str
    source: str
    stand_in: Callable[[], object]
    tests: tuple[str, ...]


def serialx() -> None:
    theirs, ours = importlib.import_module("serialx"), importlib.import_module("asyncrevoke.compat.serialx")
    for name in (
        *("AsyncSerial", "BaseSerialTransport", "SerialTransport", "SerialStreamWriter", "async_serial_for_url"),
        *("create_serial_connection", "get_serial_classes", "open_serial_connection"),
    ):
        setattr(theirs, name, getattr(ours, name))


def pyserial_asyncio() -> None:
    ours = importlib.import_module("asyncrevoke.compat.serial_asyncio")
    sys.modules |= {"serial_asyncio": ours, "serial_asyncio_fast": ours}


class Wrapping(types.ModuleType):
    """asyncio, whose readers and writers are revocable."""

    def __getattr__(self, name: str) -> Any:
        return getattr(asyncio, name)

    @staticmethod
    def StreamReader(*args: Any, **options: Any) -> asyncio.StreamReader:  # noqa: N802
        return wrap_streams(asyncio.StreamReader(*args, **options), None)[0]

    @staticmethod
    async def open_connection(*args: Any, **options: Any) -> object:
        return wrap_streams(*await asyncio.open_connection(*args, **options))

    @staticmethod
    async def open_unix_connection(*args: Any, **options: Any) -> object:
        return wrap_streams(*await asyncio.open_unix_connection(*args, **options))

    @staticmethod
    async def start_server(connected: Callable[..., Any], *args: Any, **options: Any) -> object:
        return await asyncio.start_server(lambda *pair: connected(*wrap_streams(*pair)), *args, **options)

    @staticmethod
    async def start_unix_server(connected: Callable[..., Any], *args: Any, **options: Any) -> object:
        return await asyncio.start_unix_server(lambda *pair: connected(*wrap_streams(*pair)), *args, **options)


def streams() -> None:
    vars(importlib.import_module(STREAMS))["asyncio"] = Wrapping("asyncio")


def zigbee() -> None:
    sys.path.insert(0, str(pathlib.Path("zigbee").resolve()))


STREAMS = "test.test_asyncio.test_streams"
DOWNLOADED = "serialx==1.15.1", "pyserial-asyncio==0.6", "pyserial-asyncio-fast==0.16"
THIRD_PARTY = pathlib.Path(__file__).parents[1] / "tests/adapters/test_third_party.py"
ZIGBEE = "zigpy-znp==1.1.1"
#: Their own configuration is for another set of plugins.
AUTO = *("-o", "addopts=", "-o", "asyncio_mode=auto", "-o", "filterwarnings=default"), "--timeout=40"
REWRITES = "-W", "ignore::pytest.PytestAssertRewriteWarning"  # AnyIO has been imported here
SERIALX = *AUTO, *(f"tests/test_async_{part}.py" for part in ("lifecycle", "serial", "transports"))
ASYNCIO = Peer("asyncio's streams", ".", streams, (*AUTO, "--pyargs", STREAMS))
PEERS = [
    Peer("serialx, ptys", "serialx-1.15.1", serialx, (*SERIALX, "-k", "SOCAT and not posix and not SER2NET")),
    Peer("serialx, sockets", "serialx-1.15.1", serialx, (*SERIALX, "-k", "SOCKET")),
    Peer("serialx, without a port", "serialx-1.15.1", serialx, (*SERIALX, "-k", "not SOCAT and not SOCKET")),
    Peer("pyserial-asyncio", "pyserial-asyncio-0.6", pyserial_asyncio, (*AUTO, "test/test_asyncio.py")),
    Peer("pyserial-asyncio-fast", "pyserial_asyncio_fast-0.16", pyserial_asyncio, (*AUTO, "test/test_asyncio.py")),
    Peer("zigpy-znp", ".", zigbee, (*REWRITES, str(THIRD_PARTY), "-k", "zigbee")),
]


def main() -> int:
    with tempfile.TemporaryDirectory() as folder:
        place = pathlib.Path(folder)
        failed = run(ASYNCIO, place)
        if "--offline" in sys.argv:
            return failed
        if not fetched(place):
            print("the others cannot be downloaded")
            return failed or 77
        return max([failed, *[run(peer, place) for peer in PEERS]])


def fetched(place: pathlib.Path) -> bool:
    """Download them, and report whether that could be done."""
    pip = [sys.executable, "-m", "pip", "-q"]
    sources = "download", "--no-binary", ":all:", "--no-deps", "-d", str(place), *DOWNLOADED
    for command in sources, ("install", "--target", str(place / "zigbee"), ZIGBEE):
        if subprocess.run([*pip, *command], check=False).returncode:
            return False
    for archive in place.glob("*.tar.gz"):
        subprocess.run(["tar", "-xf", archive, "-C", place], check=True)
    for library in place.glob("serialx-*/serialx"):
        library.rename(library.with_name("theirs"))  # that which is installed is tested
    return True


def run(peer: Peer, place: pathlib.Path) -> int:
    """Run them, print how many pass and what does not, and report whether there is any that is not known."""
    command = [sys.executable, __file__, "--run", peer.name]
    ran = subprocess.run(command, cwd=place / peer.source, capture_output=True, text=True, check=False)
    outcomes: dict[str, set[str]] = {"PASSED": set(), "FAILED": set(), "ERROR": set()}
    for line in ran.stdout.splitlines():
        outcome, _, test = line.partition(" ")
        if outcome in outcomes:
            outcomes[outcome].add(test.partition(" - ")[0])
    bad = outcomes["FAILED"] | outcomes["ERROR"]
    good = outcomes["PASSED"] - bad
    print(f"{peer.name}: {len(good)} of {len(good | bad)} pass", *([] if good | bad else [ran.stdout, ran.stderr]))
    reasons = {test: next((why for part, why in KNOWN.items() if part in test), "NOT KNOWN") for test in sorted(bad)}
    for test, why in reasons.items():
        print(f"  {test.rpartition('::')[2]}: {why}")
    return "NOT KNOWN" in reasons.values() or not good


def run_here(name: str) -> int:
    peer = next(peer for peer in (ASYNCIO, *PEERS) if peer.name == name)
    sys.path.insert(0, str(pathlib.Path.cwd()))
    peer.stand_in()
    return pytest.main(["-q", "--tb=no", "-rpfE", "-p", "no:cacheprovider", *peer.tests])


if __name__ == "__main__":
    sys.exit(run_here(sys.argv[2]) if sys.argv[1:2] == ["--run"] else main())
