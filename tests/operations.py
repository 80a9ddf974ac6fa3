"""Operations that the tests of the protocol look at: they wait until something ends them, and log what that was."""

from collections.abc import Awaitable, Callable

import anyio
import pytest

from asyncrevoke import Revokable, RevokedError
from conftest import BACKENDS

Log = list[str]

#: For tests of what only asyncio has: native cancellation, signal handlers of the loop, callbacks without a task.
asyncio_only = pytest.mark.parametrize(
    "anyio_backend", [backend for backend in BACKENDS if backend.id != "trio"], indirect=True
)


async def operate(
    node: Revokable, log: Log, name: str = "", *, idle: bool = False, until: anyio.Event | None = None
) -> None:
    """One operation on `node`: waits for `until`, or for ever."""
    name = name or node.name
    try:
        with node.using(idle=idle):
            log.append(f"{name} in")
            await (anyio.sleep_forever() if until is None else until.wait())
            log.append(f"{name} out")
    except RevokedError as exc:
        log.append(f"{name} {'kicked' if exc.in_flight else 'refused'}")
    except anyio.ClosedResourceError:
        log.append(f"{name} closed")
    except anyio.get_cancelled_exc_class():
        log.append(f"{name} cancelled")
        raise


async def stubborn(node: Revokable, log: Log, leave: anyio.Event, name: str = "") -> None:
    """One operation that no kick ends: it leaves when told to."""
    name = name or node.name
    with node.using():
        log.append(f"{name} in")
        with anyio.CancelScope(shield=True):
            await leave.wait()
    log.append(f"{name} out")


def says(log: Log, line: str) -> Callable[..., None]:
    """A hook or release that logs a line, whatever it is called with."""
    return lambda *_: log.append(line)


def slowly(log: Log, line: str, until: anyio.Event) -> Callable[[], Awaitable[None]]:
    """A release that takes its time."""

    async def release() -> None:
        log.append(f"{line} begins")
        await until.wait()
        log.append(f"{line} ends")

    return release
