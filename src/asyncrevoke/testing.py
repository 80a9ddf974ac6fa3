"""The contract of everything revokable, as a check to run on your own resource: `check_revokable`."""

import asyncio
import contextlib
import functools
import inspect
import logging
import threading
from collections.abc import Awaitable, Callable, Sequence
from contextlib import AbstractAsyncContextManager
from dataclasses import dataclass
from typing import Any

import anyio
import anyio.abc
import anyio.lowlevel

from asyncrevoke import answers
from asyncrevoke.lowlevel import Revocation, Revokable, RevokeDeadlock, RevokedError, revoke_threadsafe

Operation = Callable[[], Awaitable[object]]


@dataclass(frozen=True, slots=True)
class Subject:
    """The subject of a check, as the maker yields it: a fresh resource, and how to use it.

    :ivar handle: the node that is revoked. All operations given here are on it, not on what is open below it
    :ivar wait: an operation that waits until something happens, as a read does when there is no data
    :ivar quick: an operation that finishes by itself, as a write that fits
    :ivar feed: makes a pending `wait` finish with a result. It may return an awaitable
    :ivar close: the owner's own `aclose`. Default: the handle's
    :ivar gone: whether the thing is really released: 0 or False until then. A count shows a double release, too
    :ivar owner: the parent of `handle`. One clause revokes it, so nothing else may be open on it
    :ivar beside: further operations that wait, and may do so while `wait` does
    :ivar idle: whether `wait` waits for others to begin something, ``using(idle=True)``. Then it is kicked without a
        grace
    """

    handle: Revokable
    wait: Operation
    quick: Operation | None = None
    feed: Callable[[], object] | None = None
    close: Operation | None = None
    gone: Callable[[], int] | None = None
    owner: Revokable | None = None
    beside: Sequence[Operation] = ()
    idle: bool = True


async def check_revokable(maker: Callable[[], AbstractAsyncContextManager[Subject]], *, patience: float = 5.0) -> None:
    """Check that a resource keeps the contract, clause by clause, each on a fresh one. On any loop of AnyIO::

        @contextlib.asynccontextmanager
        async def maker():
            near, far = socket.socketpair()
            with far:
                stream = FdStream(near.detach())
                yield Subject(stream.handle, stream.receive, close=stream.aclose)

        await check_revokable(maker)

    The more fields you give to `Subject`, the more is checked. Operations must answer by `RevokedError`, or by the end
    of data where `handle.answers` says so. A resource opened with ``kick=None`` has no kick to check: open it with one.

    :param maker: makes an async context manager that yields a fresh `Subject`. On exit, release the other side: this
        ends operations that ignore even a cancellation, which the check must wait for
    :param patience: seconds to wait for what must happen. In a sound resource nothing takes long
    :raises AssertionError: names the clause and its invariant, what happened, and what to do in an adapter
    """
    for name, clause in vars(_Contract).items():
        if inspect.iscoroutinefunction(clause):
            for variant in getattr(clause, "variants", [()]):
                await _run(maker, patience, f"{name}{variant or ''}: {clause.__doc__}", clause, variant)


async def _run(maker: Callable[[], Any], patience: float, title: str, clause: Callable[..., Any], variant: Any) -> None:
    failure: Exception | None = None
    async with anyio.create_task_group() as tasks:
        try:
            async with maker() as subject:
                check = _Contract(subject, tasks, patience)
                try:
                    await clause(check, *variant)
                    await check.closes()
                except AssertionError as exc:
                    exc.args = (f"{title}\n{exc}",)
                    logging.getLogger(__package__).warning("%s", exc)  # it cannot be raised before all tasks end
                    raise
                finally:
                    await check.let_go()
        except Exception as exc:  # noqa: BLE001  # raised below, where no group wraps it
            failure = exc
        tasks.cancel_scope.cancel()
    if failure is not None:
        raise failure


def _expect(true: object, happened: object, hint: str, cause: BaseException | None = None) -> None:
    if not true:
        raise AssertionError(f"  happened: {happened}\n  in an adapter: {hint}") from cause


class _Call:
    """One operation, in a task of its own, and how it ended."""

    def __init__(self, operation: Operation) -> None:
        self.operation = operation
        self.scope = anyio.CancelScope()
        self.ended = anyio.Event()
        self.result: object = None
        self.error: BaseException | None = None
        self.cancelled = False  # by then, or at the next checkpoint
        self.task: asyncio.Task[Any] | None = None

    async def run(self) -> None:
        with contextlib.suppress(RuntimeError):  # no asyncio
            self.task = asyncio.current_task()
        try:
            with self.scope:
                try:
                    self.result = await self.operation()
                except BaseException as exc:
                    self.error = exc
                    if not isinstance(exc, Exception):
                        raise
                await anyio.lowlevel.checkpoint()
        except anyio.get_cancelled_exc_class():  # a native one; nothing comes after this
            self.cancelled = True
        finally:
            self.cancelled |= self.scope.cancelled_caught
            self.ended.set()

    def cancel(self, how: str) -> None:
        """Cancel it once, by scope or by asyncio's own `Task.cancel`."""
        if how == "native" and self.task is not None:
            self.task.cancel()
        else:
            self.scope.cancel()

    def __str__(self) -> str:
        name = getattr(self.operation, "__qualname__", repr(self.operation))
        if not self.ended.is_set():
            return f"{name} has not ended"
        if self.error is None:
            return f"{name} returned {self.result!r}"
        return f"{name} raised {type(self.error).__name__}: {self.error}"


class _Check:
    """The tools of a clause, at work on one subject."""

    def __init__(self, subject: Subject, tasks: anyio.abc.TaskGroup, patience: float) -> None:
        self.subject = subject
        self.handle = subject.handle
        self.close: Operation = subject.close or subject.handle.aclose
        self.operations = [subject.wait, *([subject.quick] if subject.quick else []), *subject.beside]
        self.patience = patience
        self._tasks = tasks
        self._calls: list[_Call] = []

    def start(self, operation: Operation) -> _Call:
        call = _Call(operation)
        self._calls.append(call)
        self._tasks.start_soon(call.run)
        return call

    async def parked(self) -> _Call:
        call = self.start(self.subject.wait)
        await _turns(10)
        _expect(not call.ended.is_set(), call, "`wait` must wait as long as nobody feeds it", call.error)
        return call

    async def feed(self) -> None:
        fed = self.subject.feed() if self.subject.feed else None
        if inspect.isawaitable(fed):
            await fed

    async def ended(self, call: _Call, hint: str, act: Revocation | None = None) -> None:
        with anyio.move_on_after(self.patience):
            await call.ended.wait()
        inside = f"; still inside: {'; '.join(map(str, act.stragglers())) or 'nobody'}" if act else ""
        _expect(call.ended.is_set(), f"{call} after {self.patience} s{inside}", hint)

    async def succeeds(self, call: _Call, hint: str, act: Revocation | None = None) -> None:
        await self.ended(call, hint, act)
        _expect(call.error is None, call, hint, call.error)

    async def completes(self, act: Revocation, *calls: _Call) -> None:
        """Check that the kick ends the calls with the answer, and that the revocation then completes."""
        for call in calls:
            await self.ended(
                call, "await inside `with handle.using()`; for waits that no cancel reaches: use.on_kick(wake)", act
            )
            self.answered(call, in_flight=True)
        await self.succeeds(self.start(act.finish), "a release waits for no peer and raises nothing", act)

    async def refused(self, *, closed: bool = False) -> list[_Call]:
        """Check that each operation, started now, ends with the answer."""
        calls = []
        for operation in self.operations:
            calls.append(self.start(operation))
            await self.ended(calls[-1], "enter `with handle.using()` before anything waits: it refuses")
            self.answered(calls[-1], in_flight=False, closed=closed)
        return calls

    def answered(self, call: _Call, *, in_flight: bool, closed: bool = False) -> None:
        error = call.error
        if closed and self.handle.closed:
            hint = "let the ClosedResourceError of using() through: the owner closed it"
            _expect(isinstance(error, anyio.ClosedResourceError), call, hint, error)
        elif isinstance(error, RevokedError):
            hint = "let the error of using() through unchanged: it is fresh, and tells a kick from a refusal"
            _expect(error.in_flight is in_flight, f"{call}, with in_flight={error.in_flight}", hint, error)
        else:
            hint = "let the RevokedError of using() through; end of data is an answer only where handle.answers says so"
            ended = isinstance(error, anyio.EndOfStream) or (error is None and not call.result)
            _expect(ended and self._answers_by_end(in_flight=in_flight), call, hint, error)

    def _answers_by_end(self, *, in_flight: bool) -> bool:
        profile = self.handle.answers
        pairs = () if profile is None else (profile.read, profile.write)
        found = {pair.in_flight if in_flight else pair.later for pair in pairs}
        return not found.isdisjoint((answers.Answer.EOF, answers.Answer.EOF_IF_TTY))

    def gone(self, times: int = 1) -> None:
        counted = times if self.subject.gone is None else int(self.subject.gone())
        hint = "release the thing in the handle's `release` and nowhere else: it runs once, when the last user has left"
        _expect(counted == times, f"`gone` says {counted} instead of {times}", hint)
        _expect(self.handle.released is bool(times), f"released is {self.handle.released}", hint)

    async def closes(self) -> None:
        await self.succeeds(self.start(self.close), "close() must work at any time, and again: `await handle.aclose()`")
        for call in self._calls:
            await self.ended(call, "no operation outlives its handle")

    async def let_go(self) -> None:
        """Leave nothing behind, even if the clause has failed."""
        for call in self._calls:
            call.scope.cancel()
        with contextlib.suppress(Exception), anyio.move_on_after(self.patience):
            await self.close()


async def _turns(number: int) -> None:
    for _ in range(number):
        await anyio.lowlevel.checkpoint()


async def _repeat(operation: Operation, times: int) -> None:
    for _ in range(times):
        with contextlib.suppress(Exception):
            await operation()


def _each(*variants: tuple[object, ...]) -> Callable[[Any], Any]:
    """Run the clause once for each of these arguments."""

    def mark(clause: Any) -> Any:
        clause.variants = variants
        return clause

    return mark


class _Contract(_Check):
    """The clauses, in the order in which they run."""

    async def works_while_live(self) -> None:
        """As long as nobody revokes it, `quick` finishes, and `wait` waits until it is fed."""
        if self.subject.feed:
            call = await self.parked()
            await self.feed()
            await self.succeeds(call, "`feed` must make a pending `wait` finish with a result")
        if self.subject.quick:
            await self.succeeds(self.start(self.subject.quick), "`quick` must finish by itself on a fresh resource")

    async def revoke_ends_the_wait(self) -> None:
        """I1, I3, I8: an operation that waits is a user of the handle, and revoke() ends it, with the answer."""
        call = await self.parked()
        _expect(self.handle.in_use, "`wait` waits, and handle.in_use is 0", "await inside `with handle.using()`")
        await self.completes(self.handle.revoke("checked"), call)

    async def later_operations_are_refused(self) -> None:
        """I1: each operation after revoke() gets the answer, as a fresh exception."""
        call = await self.parked()
        act = self.handle.revoke("checked")
        _expect(not self.handle.start_using(), "start_using() reports True after revoke()", "do not override it")
        await self.completes(act, call)
        late = [*await self.refused(), *await self.refused()]
        errors = [each.error for each in (call, *late) if each.error]
        hint = "do not keep an exception and raise it again: using() makes a fresh one"
        _expect(len(set(map(id, errors))) == len(errors), f"the same exception came again: {errors}", hint)

    async def an_answer_is_a_checkpoint(self) -> None:
        """A loop of operations on a dead resource starves no other task: of 128 in a row, one lets others run."""
        await self.completes(self.handle.revoke("checked"))
        ticks = 0

        async def tick() -> None:
            nonlocal ticks
            while True:
                ticks += 1
                await anyio.lowlevel.checkpoint()

        ticking = self.start(tick)
        for operation in self.operations:
            before = ticks
            await self.ended(self.start(functools.partial(_repeat, operation, 1000)), "a dead operation ends at once")
            hint = "begin with `await anyio.lowlevel.checkpoint()`: using() refuses without one"
            _expect(ticks - before >= 7, f"1000 calls of {operation} let another task run {ticks - before} times", hint)
        ticking.cancel("scope")

    async def release_waits_for_the_last_user(self) -> None:
        """I2, I3: nothing is released as long as one user is inside. Then it is, once, and each waiter is told (I4)."""
        call = await self.parked()
        _expect(self.handle.start_using(), "start_using() reports False while live", "do not override it")
        try:
            act = self.handle.revoke("checked")
            impatient, *others = [self.start(act.finish) for _ in range(3)]
            await self.ended(call, "the kick ends each wait, whoever else is inside", act)
            await self.refused()
            await _turns(10)
            self.gone(0)
            _expect(not act.done(), "the Revocation is complete with a user inside", "let the handle's revoke() do it")
            impatient.cancel("native")
            await self.ended(impatient, "awaiting a revocation can be cancelled", act)
        finally:
            self.handle.stop_using()
        for each in others:
            await self.succeeds(each, "all who await a revocation are told, also if one of them was cancelled", act)
        self.gone()

    async def revoke_before_any_use(self) -> None:
        """I1, I2: a resource that nobody has used yet refuses and is released in the same way."""
        await self.completes(self.handle.revoke("checked"))
        self.gone()
        await self.refused()

    async def revoke_twice(self) -> None:
        """I4: a second revoke() completes as well, and the reason of the first stays."""
        call = await self.parked()
        acts = [self.handle.revoke(reason) for reason in ("checked", "again")]
        await self.completes(acts[0], call)
        await self.completes(acts[1])
        told = {self.handle.reason, getattr(call.error, "reason", "checked")}
        _expect(told == {"checked"}, f"the reasons told are {told}", "let the error of using() through: it knows")

    async def all_is_gone_when_it_completes(self) -> None:
        """I2, I4: when the revocation is complete, nobody is inside and the thing is released for good."""
        calls = [await self.parked(), *map(self.start, self.subject.beside)]
        await _turns(10)
        act = self.handle.revoke("checked")
        await self.completes(act, *calls)
        self.gone()
        left = [*map(str, self.handle.users()), *map(str, act.stragglers())]
        _expect(not left and not self.handle.in_use, f"still inside: {left}", "leave every operation in a `finally`")
        await self.closes()
        self.gone()

    @_each(("scope",), ("native",))
    async def a_cancellation_stays_one(self, how: str) -> None:
        """I5: a cancellation from outside ends the wait unchanged. It revokes nothing and hinders no revocation."""
        call = await self.parked()
        call.cancel(how)
        await self.ended(call, "a wait in a thread needs abandon_on_cancel=True, or to be woken")
        hint = "let the cancellation through unchanged: catch `Exception`, and re-raise whatever else you catch"
        _expect(isinstance(call.error, anyio.get_cancelled_exc_class()), call, hint, call.error)
        _expect(not self.handle.revoked, "the handle was revoked by it", "a cancelled operation is no reason to revoke")
        await self.completes(self.handle.revoke("checked"))
        self.gone()

    @_each(*((how, first) for how in ("scope", "native") for first in ("kick", "cancellation")))
    async def a_cancellation_beside_the_kick_is_not_lost(self, how: str, first: str) -> None:
        """I5: a cancellation in the same step as the kick comes out at once, or at the next checkpoint."""
        call = await self.parked()
        if first == "cancellation":
            call.cancel(how)
        act = self.handle.revoke("checked")
        if first == "kick":
            call.cancel(how)
        await self.completes(act)
        _expect(call.cancelled, call, "let the cancellation through: only using() knows which is which", call.error)

    @_each(*((turns,) for turns in range(4)))
    async def a_result_is_delivered_or_refused(self, turns: int) -> None:
        """I6: if `wait` is fed shortly before the kick, it ends with its result or the answer."""
        call = await self.parked()
        if self.subject.feed:
            await self.feed()
            await _turns(turns)
            act = self.handle.revoke("checked")
            await self.completes(act)
            await self.ended(call, "the kick ends each wait, fed or not", act)
            if call.error:
                self.answered(call, in_flight=True)

    async def close_ends_the_waits_of_others(self) -> None:
        """When its owner closes it, waits of other tasks and later operations end with ClosedResourceError."""
        call = await self.parked()
        await self.closes()
        self.answered(call, in_flight=True, closed=True)
        await self.refused(closed=True)
        self.gone()

    async def close_and_revoke_in_any_order(self) -> None:
        """Closing again, closing in two tasks, or revoking after a close does no harm: it is released once."""
        await self.parked()
        closings = [self.start(self.close) for _ in range(2)]
        await self.completes(self.handle.revoke("checked"))
        for closing in closings:
            await self.succeeds(closing, "close() of what is closed or revoked already returns")
        await self.closes()
        await self.completes(self.handle.revoke("again"))
        self.gone()

    async def the_owner_takes_it_along(self) -> None:
        """I1, I4: revoking `owner` ends the waits, and completes when this resource is gone, too."""
        if self.subject.owner:
            call = await self.parked()
            await self.completes(self.subject.owner.revoke("checked"), call)
            self.gone()
            await self.refused()

    async def grace_is_for_the_busy(self) -> None:
        """An idle wait is kicked without the grace. A busy one has the grace, until a revocation without one."""
        call = await self.parked()
        act = self.handle.revoke("checked", grace=self.patience * 100)
        if not self.subject.idle:
            await _turns(10)
            _expect(
                not call.ended.is_set(),
                call,
                "an operation that is not idle is not kicked during the grace",
                call.error,
            )
            self.handle.revoke("now")
        await self.ended(call, "a wait for others to begin something is `with handle.using(idle=True)`", act)
        await self.completes(act, call)

    async def awaiting_from_inside_is_refused(self) -> None:
        """I8: revoking from inside an operation works; awaiting it there raises RevokeDeadlock and hangs nobody."""

        async def revoke_from_inside() -> None:
            with self.handle.using():
                await self.handle.revoke("checked")

        call = self.start(revoke_from_inside)
        await self.ended(call, "return the handle's own Revocation")
        _expect(isinstance(call.error, RevokeDeadlock), call, "let RevokeDeadlock through", call.error)
        await self.completes(self.handle.revoke("again"))
        self.gone()

    async def a_thread_may_revoke(self) -> None:
        """revoke_threadsafe() from another thread ends the wait, and its future completes."""
        call = await self.parked()
        futures = []
        thread = threading.Thread(target=lambda: futures.append(revoke_threadsafe(self.handle, "checked")))
        thread.start()
        thread.join()
        reported = anyio.Event()
        futures[0].add_done_callback(lambda _: reported.set())
        hint = "hooks and releases must not need a current task"
        await self.succeeds(self.start(reported.wait), hint)
        error = futures[0].exception()
        _expect(error is None, f"the future raised {error!r}", hint, error)
        await self.completes(self.handle.revoke("again"), call)
        self.gone()
