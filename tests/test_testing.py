"""The contract checker: what is sound passes, and what is broken fails in the clause that says so."""

import contextlib
import functools
import inspect
import os
import socket
import tty
from collections.abc import AsyncIterator, Callable
from typing import Any

import anyio
import anyio.abc
import anyio.lowlevel
import pytest

from asyncrevoke import FdStream, Revocation, Revokable, RevokableStream, RevokedError, answers, testing
from asyncrevoke.testing import Subject, check_revokable
from conftest import BACKENDS

pytestmark = pytest.mark.anyio


Profile = answers.Answers | None


# -- what is sound --


@contextlib.asynccontextmanager
async def five_lines() -> AsyncIterator[Subject]:
    near, far = socket.socketpair()
    with far:
        stream = FdStream(near.detach())
        yield Subject(stream.handle, stream.receive, close=stream.aclose)


@contextlib.asynccontextmanager
async def fd_over_a_socketpair(profile: Profile = None) -> AsyncIterator[Subject]:
    near, far = socket.socketpair()
    owner = Revokable("owner", answers=profile or ...)
    with far:
        stream = FdStream(near.detach(), owner)
        yield Subject(
            stream.handle,
            stream.receive,
            quick=lambda: stream.send(b"x"),
            feed=lambda: far.send(b"x"),
            close=stream.aclose,
            gone=lambda: stream.fileno() < 0,
            owner=owner,
        )


@contextlib.asynccontextmanager
async def fd_over_a_full_socketpair() -> AsyncIterator[Subject]:
    """Here what waits is the writer, who has the grace, and beside it the reader."""
    near, far = socket.socketpair()
    near.setblocking(False)
    with contextlib.suppress(BlockingIOError):
        while True:
            near.send(bytes(65536))
    with far:
        stream = FdStream(near.detach())
        yield Subject(
            stream.handle,
            lambda: stream.send(b"x"),
            feed=lambda: far.recv(1 << 20),
            close=stream.aclose,
            gone=lambda: stream.fileno() < 0,
            beside=[stream.receive],
            idle=False,
        )


@contextlib.asynccontextmanager
async def fd_over_a_pty(profile: Profile = None) -> AsyncIterator[Subject]:
    master, slave = os.openpty()
    tty.setraw(slave)
    stream = FdStream(slave, answers=profile or ...)
    try:
        yield Subject(
            stream.handle,
            stream.receive,
            quick=lambda: stream.send(b"x"),
            feed=lambda: os.write(master, b"x"),
            close=stream.aclose,
            gone=lambda: stream.fileno() < 0,
        )
    finally:
        os.close(master)


@contextlib.asynccontextmanager
async def stream_over_a_socket(profile: Profile = None) -> AsyncIterator[Subject]:
    with socket.create_server(("127.0.0.1", 0)) as server:  # AnyIO's Unix streams log errors if fed when cancelled
        near = socket.create_connection(server.getsockname())
        far, _ = server.accept()
    owner = Revokable("owner")
    with far:
        inner = await anyio.abc.SocketStream.from_socket(near)
        stream = RevokableStream(inner, owner, profile or ...)
        yield Subject(
            stream.handle,
            stream.receive,
            quick=lambda: stream.send(b"x"),
            feed=lambda: far.send(b"x"),
            close=stream.aclose,
            gone=lambda: near.fileno() < 0,
            owner=owner,
        )


class Bell:
    """A sound resource: one waits until it rings. Those below each break it in one way."""

    node: type[Revokable] = Revokable

    def __init__(self) -> None:
        self.handle = self.node("bell", release=self.release)
        self.rung = anyio.Event()
        self.gone = 0
        self.error: Exception | None = None

    async def wait(self) -> object:
        await anyio.lowlevel.checkpoint()
        with self.handle.using(idle=True):
            return await self.ring()

    async def ring(self) -> object:
        await self.rung.wait()
        return "ding"

    async def quick(self) -> object:
        await anyio.lowlevel.checkpoint()
        with self.handle.using():
            return "quick"

    def feed(self) -> None:
        self.rung.set()

    def release(self) -> object:
        self.gone += 1
        return None

    async def close(self) -> None:
        await self.handle.aclose()

    def owner(self) -> Revokable | None:
        return None

    @classmethod
    @contextlib.asynccontextmanager
    async def maker(cls) -> AsyncIterator[Subject]:
        bell = cls()
        try:
            yield Subject(
                bell.handle, bell.wait, bell.quick, bell.feed, bell.close, lambda: bell.gone, bell.owner(), [bell.wait]
            )
        finally:
            bell.rung.set()


SOUND = {
    "five lines": five_lines,
    "fd/socketpair": fd_over_a_socketpair,
    "fd/socketpair/ALSA": functools.partial(fd_over_a_socketpair, answers.ALSA),
    "fd/full socketpair": fd_over_a_full_socketpair,
    "fd/pty": fd_over_a_pty,
    "fd/pty/TTY": functools.partial(fd_over_a_pty, answers.TTY),
    "fd/pty/PTY_MASTER_CLOSED": functools.partial(fd_over_a_pty, answers.PTY_MASTER_CLOSED),
    "fd/pty/DEADFS": functools.partial(fd_over_a_pty, answers.DEADFS),
    "stream/socket": stream_over_a_socket,
    "stream/socket/TTY": functools.partial(stream_over_a_socket, answers.TTY),
    "bell": Bell.maker,
}


@pytest.mark.parametrize("maker", SOUND.values(), ids=SOUND)
async def test_a_sound_resource_passes(maker: Callable[[], Any]) -> None:
    """Our streams, with each kind of answer, and a resource of three methods keep the contract."""
    await check_revokable(maker)


# -- what is broken --


class HangsWhenKicked(Bell):
    async def ring(self) -> object:
        with anyio.CancelScope(shield=True):
            await self.rung.wait()
        return "ding"


class ReturnsNothingForEver(Bell):
    async def wait(self) -> object:
        try:
            return await super().wait()
        except RevokedError:
            return b""


class WaitsOutsideOfTheBracket(Bell):
    async def wait(self) -> object:
        return await self.ring()


class TellsOfAKickAsOfARefusal(Bell):
    async def wait(self) -> object:
        try:
            return await super().wait()
        except RevokedError:
            raise RevokedError(self.handle) from None


class StoresItsException(Bell):
    async def wait(self) -> object:
        try:
            return await super().wait()
        except RevokedError as error:
            if not error.in_flight:
                self.error = self.error or error
                raise self.error from None
            raise


class WorksOn(Bell):
    async def quick(self) -> object:
        return "quick"


class StarvesTheLoop(Bell):
    async def wait(self) -> object:
        with self.handle.using(idle=True):
            return await self.ring()


class ReleasesUnderItsUsers(Bell):
    def __init__(self) -> None:
        super().__init__()
        self.handle = Revokable("bell", kick=lambda _: self.release())

    def release(self) -> None:
        self.gone = 1


class ReleasesNever(Bell):
    def release(self) -> None:
        pass


class ReleaseRaises(Bell):
    def release(self) -> None:
        raise OSError("no such bell")


class ReleaseWaitsForItsPeer(Bell):
    def release(self) -> object:
        return self.rung.wait()


class ReleasesWhatWasUsedOnly(Bell):
    used = False

    async def wait(self) -> object:
        self.used = True
        return await super().wait()

    def release(self) -> None:
        self.gone += self.used


class LastReason(Revokable):
    last = ""

    def revoke(self, reason: str = "", *, grace: float = 0.0) -> Revocation:
        self.last = reason
        return super().revoke(reason, grace=grace)

    @property
    def reason(self) -> str:
        return self.last or super().reason


class ForgetsTheFirstReason(Bell):
    node = LastReason


class CloseReleasesAgain(Bell):
    async def close(self) -> None:
        await super().close()
        self.gone += 1


class CancellationBecomesRevoked(Bell):
    async def wait(self) -> object:
        try:
            return await super().wait()
        except anyio.get_cancelled_exc_class():
            raise RevokedError(self.handle, in_flight=True) from None


class SwallowsTheCancellation(Bell):
    async def wait(self) -> object:
        try:
            return await super().wait()
        except anyio.get_cancelled_exc_class():
            return None


class RevokesWhenCancelled(Bell):
    async def wait(self) -> object:
        try:
            return await super().wait()
        except anyio.get_cancelled_exc_class():
            self.handle.revoke("cancelled")
            raise


class SwallowsTheCancellationBesideTheKick(Bell):
    async def wait(self) -> object:
        try:
            return await super().wait()
        except anyio.get_cancelled_exc_class():
            if self.handle.revoked:
                raise RevokedError(self.handle, in_flight=True) from None
            raise


class LosesWhatWasThere(Bell):
    async def wait(self) -> object:
        try:
            return await super().wait()
        except RevokedError as error:
            if self.rung.is_set() and error.in_flight:
                raise OSError("interrupted") from None
            raise

    async def ring(self) -> object:
        result = await super().ring()
        for _ in range(5):
            await anyio.lowlevel.checkpoint()
        return result


class CloseLeavesOthersWaiting(Bell):
    async def close(self) -> None:
        await anyio.lowlevel.checkpoint()


class CloseIsARevocation(Bell):
    async def close(self) -> None:
        if not self.handle.closed:
            self.handle.revoke("closed")
        await super().close()


class ClosesOnceOnly(Bell):
    closing = False

    async def close(self) -> None:
        if self.closing:
            raise anyio.BusyResourceError("closing")
        self.closing = True
        try:
            await anyio.lowlevel.checkpoint()
            await super().close()
        finally:
            self.closing = False


class CloseFailsOnTheDead(Bell):
    async def close(self) -> None:
        if self.handle.revoked:
            raise RevokedError(self.handle)
        await super().close()


class HasAnotherOwner(Bell):
    def owner(self) -> Revokable:
        return Revokable("somebody else's")


class WaitsAsIfBusy(Bell):
    async def wait(self) -> object:
        await anyio.lowlevel.checkpoint()
        with self.handle.using():
            return await self.ring()


class HidesTheDeadlock(Revokable):
    def revoke(self, reason: str = "", *, grace: float = 0.0) -> Any:
        return Hidden(super().revoke(reason, grace=grace))


class Hidden:
    def __init__(self, act: Revocation) -> None:
        self._act = act

    def __getattr__(self, name: str) -> Any:
        return getattr(self._act, name)

    def __await__(self) -> Any:
        return self._poll().__await__()

    async def _poll(self) -> None:
        while not self._act.done():
            await anyio.lowlevel.checkpoint()


class PollsTheRevocation(Bell):
    node = HidesTheDeadlock


class NeedsATask(Revokable):
    def revoke(self, reason: str = "", *, grace: float = 0.0) -> Revocation:
        anyio.get_current_task()
        return super().revoke(reason, grace=grace)


class IsRevokedByTasksOnly(Bell):
    node = NeedsATask


class IsDeadAtFirst(Bell):
    def __init__(self) -> None:
        super().__init__()
        self.handle.revoke("too early")


#: Each with the clause that it breaks, and some words of what happened.
BROKEN: dict[type[Bell], tuple[str, str]] = {
    IsDeadAtFirst: ("works_while_live", "too early"),
    HangsWhenKicked: ("revoke_ends_the_wait", "still inside: operation of .* in 'bell' for .* at test_testing.py"),
    ReturnsNothingForEver: ("revoke_ends_the_wait", "returned b''"),
    WaitsOutsideOfTheBracket: ("revoke_ends_the_wait", "in_use is 0"),
    TellsOfAKickAsOfARefusal: ("revoke_ends_the_wait", "with in_flight=False"),
    ReleaseRaises: ("works_while_live", "raised ExceptionGroup"),
    ReleaseWaitsForItsPeer: ("revoke_ends_the_wait", "still inside: release of"),
    CloseFailsOnTheDead: ("revoke_ends_the_wait", r"close\(\) must work at any time"),
    StoresItsException: ("later_operations_are_refused", "the same exception came again"),
    WorksOn: ("later_operations_are_refused", "returned 'quick'"),
    StarvesTheLoop: ("an_answer_is_a_checkpoint", "1000 calls of .* let another task run [0-3] times"),
    ReleasesUnderItsUsers: ("release_waits_for_the_last_user", "`gone` says 1 instead of 0"),
    ReleasesNever: ("release_waits_for_the_last_user", "`gone` says 0 instead of 1"),
    ReleasesWhatWasUsedOnly: ("revoke_before_any_use", "`gone` says 0 instead of 1"),
    ForgetsTheFirstReason: ("revoke_twice", "again"),
    CloseReleasesAgain: ("all_is_gone_when_it_completes", "`gone` says 2 instead of 1"),
    CancellationBecomesRevoked: ("a_cancellation_stays_one", "raised RevokedError"),
    SwallowsTheCancellation: ("a_cancellation_stays_one", "returned None"),
    RevokesWhenCancelled: ("a_cancellation_stays_one", "was revoked by it"),
    LosesWhatWasThere: ("a_result_is_delivered_or_refused", "raised OSError: interrupted"),
    CloseLeavesOthersWaiting: ("close_ends_the_waits_of_others", "has not ended"),
    CloseIsARevocation: ("close_ends_the_waits_of_others", "raised RevokedError"),
    ClosesOnceOnly: ("close_and_revoke_in_any_order", "raised BusyResourceError"),
    HasAnotherOwner: ("the_owner_takes_it_along", "has not ended"),
    WaitsAsIfBusy: ("grace_is_for_the_busy", "has not ended"),
    PollsTheRevocation: ("awaiting_from_inside_is_refused", "raised RevokedError"),
}
#: On trio the cancellation comes again by itself, and a callback is run by a task.
BROKEN_ON_ASYNCIO: dict[type[Bell], tuple[str, str]] = {
    SwallowsTheCancellationBesideTheKick: ("a_cancellation_beside_the_kick_is_not_lost", "raised RevokedError"),
    IsRevokedByTasksOnly: ("a_thread_may_revoke", "the future raised"),
}


async def fails(broken: type[Bell], clause: str, happened: str) -> None:
    with pytest.raises(AssertionError, match=rf"(?s)^{clause}\b.*happened: .*{happened}") as caught:
        await check_revokable(broken.maker, patience=1.5)
    assert "\n  in an adapter: " in str(caught.value)


@pytest.mark.parametrize("broken", BROKEN, ids=lambda broken: broken.__name__)
async def test_a_broken_resource_fails_in_the_clause_that_says_so(broken: type[Bell]) -> None:
    """The message names the clause, what happened and what to do, and nothing is left behind."""
    await fails(broken, *BROKEN[broken])


@pytest.mark.parametrize("anyio_backend", [each for each in BACKENDS if each.id != "trio"], indirect=True)
@pytest.mark.parametrize("broken", BROKEN_ON_ASYNCIO, ids=lambda broken: broken.__name__)
async def test_what_only_asyncio_breaks_fails_there(broken: type[Bell]) -> None:
    """A native cancellation comes only once; and a callback has no current task."""
    await fails(broken, *BROKEN_ON_ASYNCIO[broken])


def test_every_clause_can_fail() -> None:
    """For each clause there is a resource that it fails."""
    clauses = {name for name, clause in vars(testing._Contract).items() if inspect.iscoroutinefunction(clause)}
    assert clauses == {clause for clause, _ in (BROKEN | BROKEN_ON_ASYNCIO).values()}


async def test_what_the_maker_raises_comes_out_as_it_is() -> None:
    """An error of the maker's own is no broken clause, and is in no group."""

    @contextlib.asynccontextmanager
    async def maker() -> AsyncIterator[Subject]:
        raise FileNotFoundError("no such device")
        yield

    with pytest.raises(FileNotFoundError, match=r"^no such device$"):
        await check_revokable(maker)
