"""What every test runs on, and what every test must leave as it found it."""

import asyncio
import contextlib
import gc
import os
import pathlib
import signal
import sys
import threading
from collections.abc import Iterator
from typing import Any

import anyio
import anyio.lowlevel
import pytest


def _be_an_init(tests: int) -> None:
    """Reap all that come, as process 1 must, until the tests end."""
    while True:
        pid, status = os.wait()
        if pid == tests:
            os._exit(os.waitstatus_to_exitcode(status))


# The first process of a container gets the orphans of all others: the tests run in a child of it, where they get none.
if os.getpid() == 1 and (tests := os.fork()):
    _be_an_init(tests)

# Under nohup, or in a script's background, the tests ignore these. So would the programs that they start, and no handler is
# inherited.
for _number in signal.SIGHUP, signal.SIGINT, signal.SIGQUIT:
    if signal.getsignal(_number) is signal.SIG_IGN:
        signal.signal(_number, lambda *_: None)

ROUNDS = int(os.environ.get("ASYNCREVOKE_ROUNDS", "100"))
"""How often a test under load repeats itself on asyncio. Elsewhere it is half a hundred at most."""

BACKENDS = [
    pytest.param(("asyncio", {}), id="asyncio"),
    pytest.param(("asyncio", {"use_uvloop": True}), id="uvloop"),
    pytest.param(("trio", {}), id="trio"),
]


def _eager_loop() -> asyncio.AbstractEventLoop:
    loop = asyncio.new_event_loop()
    loop.set_task_factory(asyncio.eager_task_factory)  # type: ignore[attr-defined,unused-ignore]  # 3.12 and later
    return loop


if sys.version_info >= (3, 12):
    BACKENDS.insert(2, pytest.param(("asyncio", {"loop_factory": _eager_loop}), id="eager"))


@pytest.fixture(params=BACKENDS)
def anyio_backend(request: pytest.FixtureRequest) -> Any:
    return request.param


@pytest.fixture(scope="session", autouse=True)
def _uvloop_has_its_pipe() -> None:
    """The first loop of uvloop makes a pipe for signals, which the process keeps."""
    anyio.run(anyio.lowlevel.checkpoint, backend_options={"use_uvloop": True})


@pytest.fixture(scope="module", autouse=True)
def _what_stays_is_not_collected() -> None:
    """The collector, which many tests run, need not go through all modules, tests and reports each time."""
    gc.collect()
    gc.freeze()


@pytest.fixture(scope="session", autouse=True)
def _plugins_find_all_at_the_end() -> Iterator[None]:
    """They look for referrers then."""
    yield
    gc.unfreeze()


@pytest.hookimpl(wrapper=True)
def pytest_collection() -> Iterator[None]:
    """Switch the garbage collector off meanwhile: all that is made here stays until the tests have ended."""
    gc.disable()
    try:
        return (yield)
    finally:
        gc.enable()


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Begin with what takes longest, so that one process is not at it when all others have ended."""
    items.sort(key=lambda item: item.path.name != "test_vm.py")


def _held() -> tuple[set[str], set[threading.Thread], set[str]]:
    """Open descriptors with what they are, the threads (trio keeps some for later), and the children."""
    files = set()
    for entry in pathlib.Path("/proc/self/fd").iterdir():
        with contextlib.suppress(OSError):  # the one that lists
            files.add(f"{entry.name} {entry.readlink()}")
    children = set(pathlib.Path(f"/proc/self/task/{os.getpid()}/children").read_text().split())
    threads = {thread for thread in threading.enumerate() if not thread.name.startswith("Trio thread")}
    return files, threads, children


@pytest.fixture(autouse=True)
def _nothing_leaks() -> Iterator[None]:
    """No test leaves a descriptor, a thread or a child behind."""
    before = _held()
    yield
    after = _held()
    if after != before:
        for thread in after[1] - before[1]:
            thread.join(1)  # it has been told to end, or its call has ended, or should have
        gc.collect()
        after = _held()
    assert after[0] - before[0] == set(), "descriptors were left open"
    assert after[1] - before[1] == set(), "threads were left running"
    assert after[2] - before[2] == set(), "children were not reaped"


async def settle(turns: int = 12) -> None:
    """Let every task run until it waits: for tests that know how many steps their tasks take at the most."""
    for _ in range(turns):
        await anyio.lowlevel.checkpoint()
