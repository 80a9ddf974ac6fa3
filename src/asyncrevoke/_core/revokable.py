"""THE protocol: what can be revoked, and how. The steps of a revocation are in `revocation`.

A `Revokable` is a node of a tree: card > device > open file, user > token > terminal. An open child is a user of its
parent, just as a running operation is a user of its file. So one rule serves both: *a node that refuses is released
when its last user has left*. A node has one parent, and may have further ones (`also`). Whichever of them is revoked
first takes the node along.

States, in this order and never back::

    LIVE        operations start and children open
    REVOKED     nothing new starts; users are inside
    KICKED      those who waited have been told to leave
    RELEASING   the last one is out; the release runs
    RELEASED    unlinked from its parents, who may now be released in turn

Independently of that, the owner may have closed it. A revocation is *refuse, kick, wait, release*:

- refuse: one sweep marks every node below. It is plain code, and nothing of yours runs in between.
- kick: parents before children, in order of opening, at once or when the grace is over.
- wait: no code blocks here. The last user to leave goes on to the release ("last one out turns off the light").
- release: children before parents, each once. Then go up to the parent, if this was its last user.

Invariants, by the numbers used in code and tests:

- I1 When `revoke()` has returned, no outermost use starts below it. Until the kick, a use is still granted if it is
  nested in an earlier use of the same node by the same task.
- I2 A node's release runs exactly once, after its last user has left, children first. `at_close` runs once, after the
  release. Only the owner's own close runs it.
- I3 No operation runs after its node's release.
- I4 A `Revocation` completes when everything below is drained and released. This holds for each task that waits,
  whoever revoked, and even if nobody waits. It does not wait for owners to close what is dead.
- I5 A cancellation from outside is never swallowed, nor turned into `RevokedError`. A kick never leaks as a
  cancellation.
- I6 If the inner call already has a result when the kick comes, the result is delivered.
- I7 Hooks and releases are the user's code. They run after all nodes refuse, and may call anything here. What they
  raise stops nothing and never leaves `revoke()`. It is raised to those who await the act, or logged.
- I8 Every wait that is started here ends, or is named by `stragglers()`.

Only one thread touches a tree: the thread of the loop in which the tree was first used. So there are no locks, and a
revocation cannot interrupt code that does not suspend. In any other thread or loop, each call that would touch the tree
is a RuntimeError, and changes nothing. Other threads, signal handlers and finalizers call `revoke_threadsafe` or
`stop_using_threadsafe`. Between two runs of the loop, its thread may call everything that is not awaited. When the loop
is over, the tree goes on in the next one.

Kernel models: fs/proc/inode.c (use_pde, unuse_pde, close_pdeo, proc_entry_rundown), drivers/tty/tty_io.c
(__tty_hangup), sound/core/init.c (snd_card_disconnect, snd_card_free).
"""

from __future__ import annotations

import concurrent.futures
import inspect
import threading
from collections.abc import AsyncIterable, Awaitable, Callable, Generator, Iterable, Sequence
from contextlib import AbstractAsyncContextManager
from types import EllipsisType, TracebackType
from typing import Any, Self, TypedDict, TypeVar, Unpack

import anyio
import anyio.lowlevel

from . import loop
from .errors import RevokedError
from .profile import Answers
from .revocation import KICKED, LIVE, RELEASED, RELEASING, Report, Revocation, User, begin, last_out, users_of
from .use import Iterate, Opening, Use, is_inside

T = TypeVar("T")
Release = Callable[[], Awaitable[object] | object]
Kick = Callable[["Revokable"], object] | EllipsisType | None
#: Called with what has happened, the node, the act, and the name of the task.
Told = Callable[[str, "Revokable", Revocation | None, str], None]
#: Nodes, each with those who observe it from now on.
Heard = Sequence[tuple["Revokable", tuple[Told, ...]]]


class Options(TypedDict, total=False):
    """The options of every way of opening. `Revokable` explains them."""

    release: Release | None
    at_close: Callable[[], object] | None
    kick: Kick
    answers: Answers | EllipsisType


class Revokable:
    """Something that can be revoked: a device, a session, an open file.

    The constructor makes a root. Everything else is made by `open` or `opening` of its parent. An open node stays open
    until it is revoked or closed: neither the garbage collector nor the end of a loop releases it.

    :param name: for errors and reports. It need not be unique
    :param release: releases the thing; called once, without arguments. It may return an awaitable, which runs in a task
        of its own. A loop that ends cancels that task: do what must happen before the first await
    :param at_close: a plain function that only the owner's own `close` runs, after the release
    :param kick: what ends this node's operations. Default: as at the parent; at a root, they are cancelled. None:
        nothing is cancelled, and the revocation waits. A function: called once with the node, in addition to cancelling
    :param answers: the profile that streams answer by, from `asyncrevoke.answers`. Default: as at the parent; at a
        root, streams always raise `RevokedError`
    """

    __slots__ = (
        "_acts",
        "_also",
        "_answers",
        "_at_close",
        "_bare",
        "_children",
        "_closed",
        "_home",
        "_kick",
        "_observers",
        "_owed",
        "_release",
        "_state",
        "_unclosed",
        "_uses",
        "name",
        "parent",
    )

    _number: int | None = None  # of a generation
    _lasting = True  # False: it is a child of its parent only while it is used

    def __init__(
        self,
        name: str = "",
        *,
        release: Release | None = None,
        at_close: Callable[[], object] | None = None,
        kick: Kick = ...,
        answers: Answers | EllipsisType = ...,
    ) -> None:
        if not (release is None or callable(release)):
            raise TypeError(f"release is {release!r}: give a function without arguments")
        self.name = name
        self.parent: Revokable | None = None
        self._also: tuple[Revokable, ...] = ()
        self._release = release
        self._at_close = at_close
        self._kick = kick
        self._answers = answers
        self._state = LIVE
        self._closed = False
        self._acts: tuple[Revocation, ...] = ()  # the acts that swept this node; empty as long as it is live
        self._uses: dict[Any, None] | None = None  # running operations; dicts are made for the first user
        self._bare = 0  # operations of start_using, which are only counted
        self._children: dict[Revokable, None] | None = None  # open, in order of opening
        self._owed: object = None if at_close is None else object()  # stands for it, until it has run
        self._unclosed: set[object] | None = None if at_close is None else {self._owed}  # not run, here and below
        self._home: loop.Home | None = None
        self._observers: tuple[Told, ...] = ()  # who observe this node, or a node above it

    @property
    def in_use(self) -> int:
        """The number of users: running operations and open children."""
        return len(self._uses or ()) + self._bare + len(self._children or ())

    @property
    def children(self) -> tuple[Revokable, ...]:
        """The nodes that are open below it, in order of opening."""
        return tuple(self._children or ())

    @property
    def unclosed(self) -> int:
        """The number of files opened with `at_close` whose owner has not closed them, here and below."""
        return len(self._unclosed or ())

    @property
    def revoked(self) -> bool:
        """Whether it refuses new operations, because of a revocation or because its owner closed it."""
        return True if self._acts else not self._lasting and self._missed()

    @property
    def kicked(self) -> bool:
        """Whether the kick has come."""
        return self._state >= KICKED

    @property
    def releasing(self) -> bool:
        """Whether the release is running."""
        return self._state == RELEASING

    @property
    def released(self) -> bool:
        """Whether it is gone: its last user has left, and its release has run."""
        return self._state == RELEASED

    @property
    def closed(self) -> bool:
        """Whether its owner has closed it."""
        return self._closed

    @property
    def reason(self) -> str:
        """The reason that the first revocation gave. It never changes."""
        return self._acts[0].reason if self.revoked else ""

    @property
    def revoked_by(self) -> str:
        """The user for whom the first revocation was done, as in `Revocation.by`. It never changes."""
        return self._acts[0].by if self.revoked else ""

    @property
    def path(self) -> str:
        """The names from the root to here, as in ``ttyUSB0/alice``."""
        names = []
        node: Revokable | None = self
        while node is not None:
            names.append(node.name)
            node = node.parent
        return "/".join(name for name in reversed(names) if name)

    @property
    def generation(self) -> int | None:
        """The number of the generation it belongs to, or None if nothing above it has generations."""
        node: Revokable | None = self
        while node is not None and node._number is None:
            node = node.parent
        return None if node is None else node._number

    @property
    def answers(self) -> Answers | None:
        """The profile that streams answer by, or None if they raise `RevokedError`."""
        return self._answers if isinstance(self._answers, Answers) else None

    @property
    def release(self) -> Release | None:
        """The function that releases the thing. You may set it until it runs; while `opening`, set it as soon as there
        is something to release.
        """
        return self._release

    @release.setter
    def release(self, release: Release | None) -> None:
        if self._state >= RELEASING:
            raise RuntimeError(f"{self.path!r} was released already: a release that you set now would never run")
        self._release = release

    def users(self) -> list[User]:
        """The users it has now: operations, open children, and a running release. `str()` of each is one line to
        print.
        """
        return list(users_of(self))

    def __repr__(self) -> str:
        state = ("live", "revoked", "kicked", "releasing", "released")[self._state]
        operations = len(self._uses or ()) + self._bare
        closed = " closed" if self._closed else ""
        return f"<{type(self).__name__} {self.path!r} {state}{closed} in_use={operations} open={len(self._children or ())}>"

    # -- opening --

    def open(self, name: str = "", *, also: Iterable[Revokable] = (), **options: Unpack[Options]) -> Revokable:
        """Open a file below this one. This is the last step of opening: when it returns, the tree owns the release. If
        it raises, you still own it.

        Models make_revokable of the RFC, proc_reg_open (fs/proc/inode.c).

        :param also: further parents. Whichever is revoked first takes the new node along
        :param options: as for `Revokable`
        :raises RevokedError: if this or a further parent was revoked (I1)
        :raises ClosedResourceError: if its owner closed it
        """
        child = self._new(name, options)
        child._join(self._admitting((self, *also)))
        return child

    def join(self, *parents: Revokable) -> None:
        """Add these parents, from now on. Whichever is revoked first takes this node along, with its operations and all
        that is below.

        A root can get its first parent this way: for example, a session whose user is known only later.

        :raises RevokedError: if this node or one of the parents was revoked. Nothing has changed then
        :raises ClosedResourceError: if its owner closed it
        :raises ValueError: if one of the parents is this node, or below it
        """
        self._admit_child()
        own = set(below(self))
        for parent in parents:
            if parent in own:
                raise ValueError(f"{parent.path!r} is below {self.path!r}: it cannot be its parent, too")
        new = tuple(parent for parent in self._admitting(parents) if parent not in self._parents())
        if new:
            self._join(new)

    def _admitting(self, nodes: Iterable[Revokable]) -> tuple[Revokable, ...]:
        """Return these nodes, each once, if all of them take a child in the loop of this node."""
        parents = tuple(dict.fromkeys(nodes))
        for parent in parents:
            parent._admit_child()
        for parent in parents:
            if parent._acts:  # revoked by what its last loop had left undone
                raise parent._refusal()
            if parent._home is not self._home:
                raise RuntimeError(f"{parent.path!r} belongs to another event loop than {self.path!r}")
        return parents

    def opening(
        self, name: str = "", *, also: Iterable[Revokable] = (), **options: Unpack[Options]
    ) -> AbstractAsyncContextManager[Revokable]:
        """Open a file whose device takes its time: ``async with node.opening() as h: fd = ...; h.release = ...``

        The block is an operation of this node. Set `h.release` as soon as there is something to release. A normal exit
        commits `h` if the parents are still live. Any other exit runs `h.release` once, and raises.

        :param also, options: as for `open`
        :raises RevokedError: on entry, or at the exit if a parent was revoked meanwhile
        Cancellation: `h.release` runs in any case; only waiting for it can be cancelled.
        """
        return Opening(self, self._new(name, options), tuple(also))

    def _new(self, name: str, options: Options) -> Revokable:
        child = Revokable(name, **options)
        if child._kick is ...:
            child._kick = self._kick
        if child._answers is ...:
            child._answers = self._answers
        return child

    def _admit_child(self) -> None:
        self._here()
        if self.revoked:
            raise self._refusal()

    def _join(self, parents: tuple[Revokable, ...]) -> None:
        self.parent, *also = (*self._parents(), *parents)
        self._also = tuple(also)
        self._home = self.parent._home
        unheard = [each for parent in parents for each in parent._link(self)]
        if self._unclosed:
            for node in self._above():
                if node._unclosed is None:
                    node._unclosed = set()
                node._unclosed |= self._unclosed
        for node, observers in unheard:
            for observer in observers:
                observer("opened", node, None, "")

    def _link(self, child: Revokable) -> Heard:
        if not self._lasting:
            self._attach()
        return self._adopt(child)

    def _adopt(self, child: Revokable) -> Heard:
        if self._children is None:
            self._children = {}
        self._children[child] = None
        return have_observed(child, self._observers) if self._observers else ()

    def _discard(self, parents: tuple[Revokable, ...], reason: str) -> Revocation:
        """Release what was never opened: join it to its parents, some of which may be dead, and revoke it."""
        if self._at_close is not None:
            self._at_close = None
            self._owner_left()
        if not self.released:
            self._join(tuple(parent for parent in parents if not parent.released))
            for act in dict.fromkeys(act for parent in self._parents() for act in parent._acts):
                self._acts += (act,)
                act._nodes.append(self)
                act._unreleased += 1
                act._undrained += bool(self._uses or self._bare)
        return revoke_all([self], reason)

    def _parents(self) -> tuple[Revokable, ...]:
        return () if self.parent is None else (self.parent, *self._also)

    def _above(self) -> dict[Revokable, None]:
        """Itself and all above, each once."""
        nodes: dict[Revokable, None] = {self: None}
        unvisited: list[Revokable] = [self]
        while unvisited:
            for parent in unvisited.pop()._parents():
                if parent not in nodes:
                    nodes[parent] = None
                    unvisited.append(parent)
        return nodes

    # -- using --

    def start_using(self) -> bool:
        """Enter an operation that is only counted, and return whether it may go on. It returns False once the node is
        revoked (I1).

        After it has returned True, and until `stop_using`, the release does not run. Only hooks kick such a user, and
        it is a straggler without a name. Most code calls `using` instead. Models use_pde (fs/proc/inode.c).
        """
        self._here()
        if not self._admits_use():
            return False
        if self._uses is None:
            self._first_use()
        self._bare += 1
        return True

    def stop_using(self) -> None:
        """Leave what `start_using` entered. Models unuse_pde (fs/proc/inode.c).

        :raises RuntimeError: if nothing was entered, or in another thread or loop: call `stop_using_threadsafe` there
        """
        home = self._home
        if home is not None and (self._acts or home.thread != threading.get_ident()):
            _refuse_elsewhere(self, _root(self)._home, loop.current())
        if not self._bare:
            raise RuntimeError(f"stop_using() of {self.path!r} without a start_using() that reported True")
        self._bare -= 1
        if not self._bare and not self._uses:
            self._operations_left()

    def using(self, *, idle: bool = False) -> Use:
        """Bracket one operation: ``with handle.using(): await ...``. The kick ends the await.

        A refusal is raised at once, without a turn of the loop. If your function may be called in a loop, begin it with
        ``await anyio.lowlevel.checkpoint()``: then a loop around a dead handle starves nobody. Do not put the bracket
        around the `yield` of a generator: the kick would hit its consumer. Use `iterate`.

        :param idle: the operation waits for others to begin something, as a read does. It is kicked at once, without
            grace, unless it is nested in the same task's operation on the same node
        :raises RevokedError: once this node was revoked; `in_flight` tells a kick from a refusal
        :raises ClosedResourceError: if this node's own owner closed it
        Cancellation: goes through unchanged, also together with the kick.
        """
        return Use(self, idle)

    def iterate(self, source: AsyncIterable[T]) -> Iterate[T]:
        """Iterate over a source: ``async for item in handle.iterate(source)``. Each item is fetched in an idle use of
        its own, which has ended when your loop body runs.

        :raises RevokedError, ClosedResourceError: from the loop, as `using`
        """
        return Iterate(self, source)

    def _admits_use(self) -> bool:
        """Whether an operation may start: on a live node, or until the kick inside another one of the same task
        (I1).
        """
        home = self._home
        return not self.revoked or (not self.kicked and home is not None and is_inside(self, home, home.task()))

    def _admit(self) -> None:
        """Raise if it refuses (I1). Ask `_acts` first, which is not empty once it does."""
        if not self._admits_use():
            raise self._refusal()

    def _first_use(self) -> dict[Any, None]:
        if not (self._lasting or self._attach()):
            raise self._refusal()
        self._uses = {}
        return self._uses

    def _refusal(self) -> Exception:
        """The error of an operation that comes too late."""
        if self._closed:
            return anyio.ClosedResourceError(f"{self.path!r} was closed by its owner")
        return RevokedError(self)

    def _error(self, act: Revocation, sent: int | None = None) -> Exception:
        """The error of an operation that `act` kicked."""
        if act._closer is self:
            return anyio.ClosedResourceError(f"{self.path!r} was closed by its owner during this operation")
        return RevokedError(self, in_flight=True, sent=sent)

    def _here(self) -> tuple[loop.Home | None, loop.Task | None]:
        """The home of this tree and the current task in it."""
        home = self._home
        task = None if home is None else home.task()
        if task is None:  # the first use of the tree, a callback, or another loop than the tree's
            home = self._settle()
            task = None if home is None else home.task()
        return home, task

    def _settle(self) -> loop.Home | None:
        """The home of this tree, found or chosen now.

        :raises RuntimeError: in another thread or loop than that of the tree
        """
        root = _root(self)
        here = loop.current()
        home = before = root._home
        if home is not None and home is not here:
            _refuse_elsewhere(self, home, here)
        if here is not None:
            root._home = home = here
        self._home = home
        if before is not None and before.over:
            before.wind_up()
        return home

    # -- taking away --

    def revoke(self, reason: str = "", *, grace: float = 0.0) -> Revocation:
        """Revoke it for everybody, with all that is open below. You need not await the result.

        When this returns, nothing new starts below (I1). Idle operations are kicked at once. All others are kicked too,
        or after `grace` seconds if they are still inside. A revocation cannot be undone; a later call can only bring
        the kick forward.

        :raises RuntimeError: from another thread or loop than the tree's, or without a running loop where one is
            needed. Nothing has changed then
        :raises ValueError: if `grace` is negative or not a number Awaiting the result raises what `Revocation` says.
        """
        return revoke_all([self], reason, grace=grace)

    def close(self) -> Revocation:
        """Close it, as its owner. This works like `revoke`, but the calling task's own operations are not kicked.

        Operations on it fail with ClosedResourceError, those on its children with RevokedError. `at_close` runs after
        the release. Calling it again does no harm.

        :raises RuntimeError: as `revoke`
        """
        home = _check([self], 0.0)
        self._closed = True
        spare = None if home is None or self._state == RELEASED else home.task()
        act = Revocation((self,), "closed by its owner", closer=self, spare=spare)
        if self._state == RELEASED and self._at_close is not None:
            self._acts += (act,)  # which is told what it raises
            self._run_at_close()
        begin(act, home, 0.0)
        return act

    async def aclose(self) -> None:
        """Close it, and wait until it is released.

        :raises RevokeDeadlock: from inside an operation of the caller's own. The node is closed all the same
        :raises BaseExceptionGroup: what hooks and releases raised
        Cancellation: ends the waiting. The node is closed all the same.
        """
        await self.close().finish()

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, exc: BaseException | None, tb: TracebackType | None
    ) -> None:
        await self.aclose()

    def _call(self, function: Callable[..., object], *args: object) -> object:
        """Run the user's code. What it raises goes to those who await (I7)."""
        try:
            return function(*args)
        except BaseException as exc:  # noqa: BLE001  # I7
            self._failed(exc)
            return None

    def _failed(self, exc: BaseException) -> None:
        exc.add_note(f"raised by a hook or the release of {self.path!r}")
        for act in self._acts:
            if act._ended is None:
                act._errors.append(exc)

    def _operations_left(self) -> None:
        """The last operation is out; children may be open."""
        if self._acts:
            for act in self._acts:
                act._undrained -= 1
                if not act._undrained:
                    act._progress()
            last_out(self)
        elif not self._children:
            self._unused()

    def _end_unused(self, acts: tuple[Revocation, ...]) -> None:
        """Note that what was above it is over, and that it had no user."""
        self._acts, self._state = acts, RELEASED

    # Hooks for nodes that are not lasting.

    def _missed(self) -> bool:
        """Whether it was revoked where no revocation could reach it. If so, it is revoked from now on."""
        return False

    def _attach(self) -> bool:
        """Note that it is about to be used, and return whether it may be. `_missed` would say that it was revoked."""
        return True

    def _heard_by(self) -> tuple[Told, ...]:
        """The observers of what happens to it, also while it has no parent."""
        return self._observers

    def _unused(self) -> None:
        """The last user of a live node has left."""

    def _gone(self) -> None:
        """Note that it is released. Only nodes that hold something of their own have work to do here."""

    def _run_at_close(self) -> None:
        at_close, self._at_close = self._at_close, None
        if at_close is not None:
            self._call(at_close)
            self._owner_left()

    def _owner_left(self) -> None:
        """Count it no more as unclosed, here and above."""
        above = self._above()
        for node in above:
            if node._unclosed:
                node._unclosed.discard(self._owed)
        for act in dict.fromkeys(act for node in above for act in node._acts):
            act._progress()


def revoke_all(nodes: Iterable[Revokable], reason: str = "", *, grace: float = 0.0, by: str = "") -> Revocation:
    """Revoke many nodes at once: all refuse, then all are kicked, then all are released.

    :param by: the user for whom it is done. Nobody checks this name: give only one that you have verified
    :raises: as `Revokable.revoke`
    """
    roots = tuple(nodes)
    home = _check(roots, grace)
    act = Revocation(roots, reason, by=by)
    begin(act, home, grace)
    return act


def revoke_threadsafe(node: Revokable, reason: str = "", *, grace: float = 0.0) -> concurrent.futures.Future[Report]:
    """Revoke from another thread, a signal handler or a finalizer. The future's result is the report, or the exception
    that awaiting raises.

    The future cannot be cancelled, because a revocation cannot be undone. In the loop's own thread do not wait for its
    `result()`, which would wait for itself: call `revoke`, or await `asyncio.wrap_future` of it. If the loop is closed
    before it comes to the call, the next loop that uses anything of that loop makes the call.
    """
    future: concurrent.futures.Future[Report] = concurrent.futures.Future()
    future.set_running_or_notify_cancel()

    def revoke() -> None:
        try:
            act = node.revoke(reason, grace=grace)
        except BaseException as exc:  # noqa: BLE001  # handed to the caller's thread
            future.set_exception(exc)
        else:
            act._reporters += 1
            act._when_done(
                lambda: future.set_exception(act._failures()) if act._raised() else future.set_result(act.report)
            )

    _hand_over(node, revoke)
    return future


def due(node: Revokable) -> bool:
    """Whether an operation that need not wait must suspend all the same: ``if due(node): await checkpoint()``

    A checkpoint notices cancellation and lets other tasks run. On asyncio it is due where the task is cancelled, and
    otherwise at each 33rd operation in a row. On other loops it is always due.

    :raises RuntimeError: in another thread or loop than that of the tree
    """
    home = node._home
    if home is not None and not home.due():
        return False
    node._settle()  # it may be another loop than before
    return True


def stop_using_threadsafe(node: Revokable) -> None:
    """Call `stop_using` in the thread of the tree's loop, or at once if that loop is over.

    Other threads and finalizers leave with it what `start_using` entered.
    """
    _hand_over(node, node.stop_using)


def _hand_over(node: Revokable, call: Callable[[], object]) -> None:
    """Make the call in the thread of the node's loop, or here if that loop is over."""
    home = node._home
    if home is None or home.over:  # it has not been used in a loop yet, or not in this one
        home = _root(node)._home
    if home is None:
        call()
    else:
        home.hand_over(call)


def _check(roots: Iterable[Revokable], grace: float) -> loop.Home | None:
    """Raise what a revocation of these raises, before it changes anything. Return the home of the caller."""
    if not grace >= 0.0:
        raise ValueError(f"grace is {grace!r}: give seconds, 0 or more")
    here = loop.current()
    if here is None and grace:
        raise RuntimeError("a grace needs a running event loop")
    for root in roots:
        _refuse_elsewhere(root, _root(root)._home, here)
        if here is None:
            for node in below(root):
                if inspect.iscoroutinefunction(node._release):
                    raise RuntimeError(f"the release of {node.path!r} needs a running event loop")
    return here


def _refuse_elsewhere(node: Revokable, home: loop.Home | None, here: loop.Home | None) -> None:
    """Raise if another loop than the tree's runs here, or if none runs and this is another thread. A loop that is over
    refuses nobody.
    """
    if home is None or home is here or home.over or (here is not None and home.loop is here.loop):
        return
    if here is not None or home.thread != threading.get_ident():
        raise RuntimeError(
            f"{node.path!r} belongs to another event loop: here, call revoke_threadsafe() or stop_using_threadsafe()"
        )


def have_observed(node: Revokable, observers: tuple[Told, ...]) -> Heard:
    """Let these, too, observe a node and all below it. Return who had not heard of which node before."""
    heard = []
    for each in below(node):
        new = tuple(observer for observer in observers if observer not in each._observers)
        each._observers += new
        heard.append((each, new))
    return heard


def _root(node: Revokable) -> Revokable:
    while node.parent is not None:
        node = node.parent
    return node


def below(root: Revokable) -> Generator[Revokable, None, None]:
    """A node and all below it, each once."""
    seen = {root}
    unvisited = [root]
    while unvisited:
        node = unvisited.pop()
        yield node
        new = [child for child in node._children or () if child not in seen]
        seen.update(new)
        unvisited += new
