"""One operation: the bracket around an await, and how it ends.

The node itself knows its users (`_uses`), whether it admits more, and what to do when the last one has left. This file
says what one user is, how it is kicked, and what it reports.
"""

from __future__ import annotations

import time
from collections.abc import AsyncIterable, AsyncIterator, Callable, Iterator
from functools import partial
from types import TracebackType
from typing import TYPE_CHECKING, Self, TypeVar

import anyio

from . import loop
from .errors import RevokedError
from .scope import cancel, surround

if TYPE_CHECKING:
    from .revocation import Revocation
    from .revokable import Revokable


T = TypeVar("T")
#: The reason of a handle that never was opened.
OPENING_FAILED = "its opening failed"


class Inside:
    """Something that a task is inside of. Those of one task are linked by `outer`, innermost first."""

    __slots__ = ("node", "outer", "since", "task")
    scope: anyio.CancelScope | None = None

    def __init__(self, node: Revokable) -> None:
        self.node = node
        self.outer: Inside | None = None
        self.task: loop.Task | None = None

    def _go_in(self, home: loop.Home) -> None:
        self.outer = home.inside.get(self.task)
        home.inside[self.task] = self

    def _come_out(self, home: loop.Home) -> None:
        innermost = home.inside.get(self.task)
        if innermost is not self:  # brackets that were not nested: left in the wrong order, or in another task
            for inner in chain(innermost):
                if inner.outer is self:
                    inner.outer = self.outer
        elif self.outer is None:
            del home.inside[self.task]
        else:
            home.inside[self.task] = self.outer


def chain(inside: Inside | None) -> Iterator[Inside]:
    """Yield everything that a task is inside of, from the innermost outwards."""
    while inside is not None:
        yield inside
        inside = inside.outer


def is_inside(node: Revokable, home: loop.Home, task: loop.Task) -> bool:
    """Whether the task is in an operation on this very node."""
    inside = home.inside.get(task)
    return inside is not None and any(each.node is node and isinstance(each, Use) for each in chain(inside))


class Releasing(Inside):
    """A release that runs in a task of its own. It must not wait for a task that waits for it."""

    __slots__ = ()

    def __enter__(self) -> None:
        home = self.node._settle()
        if home is not None:
            self.task = home.task()
            self.since = time.monotonic()
            self._go_in(home)

    def __exit__(self, *_: object) -> None:
        home = self.node._settle()
        if home is not None:
            self._come_out(home)


class Operation(Inside):
    """A user of a node: the one way in and out. Each subclass waits in its own way, and has a `kick`.

    Subclasses set the attributes themselves: calling `super` would be a tenth of what an operation costs.
    """

    __slots__ = ("act", "idle")
    idle: bool
    act: Revocation | None  # the one that kicked it

    def enter(self) -> loop.Home | None:
        """Enter, or raise the refusal. After this and until `leave`, the node's release does not run.

        :returns: the home of the tree, which is the caller's, or None if no loop runs
        """
        node = self.node
        home = node._home
        task = None if home is None else home.task()
        if task is None:
            home, task = node._here()
        if node._acts or self.idle:
            nested = home is not None and is_inside(node, home, task)
            if node._acts and (not nested or node.kicked):
                raise node._refusal()  # I1
            self.idle = self.idle and not nested
        uses = node._uses
        if uses is None:
            uses = node._first_use()
        self.task = task
        self.since = time.monotonic()
        uses[self] = None
        return home

    def leave(self) -> None:
        """Leave, once."""
        node = self.node
        uses = node._uses
        assert uses is not None
        del uses[self]
        if not uses and not node._bare and (node._acts or not node._lasting):
            node._operations_left()


class Wait(Operation):
    """An operation that waits in its own way between `enter` and `leave`: for a callback of the loop, or on a future.

    :param end: called by the kick with the error to report, whatever the node's `kick` is. It must not leave: whoever
        it wakes does that. What it raises goes to those who await the revocation
    :param idle: as for `Revokable.using`
    """

    __slots__ = ("_end",)

    def __init__(self, node: Revokable, end: Callable[[Exception], object], *, idle: bool = False) -> None:
        self.node = node
        self.idle = idle
        self.act = None
        self._end = end

    def kick(self, act: Revocation) -> bool:
        self.act = act
        self.node._call(self._end, self.node._error(act))
        return True


class Use(Operation):
    """One operation on a node, as `Revokable.using` returns it: ``with handle.using() as use: await ...``

    After entering and until leaving, the node's release does not run. A kick cancels the await through a cancel scope
    of its own, and you get `RevokedError`. A cancellation from outside goes through unchanged (I5). A result that is
    there already is kept (I6). Without a current task (in a callback) the use only counts.
    """

    __slots__ = ("_hooks", "_place", "scope")

    def __init__(self, node: Revokable, idle: bool) -> None:
        self.node = node
        self.idle = idle
        self.act = None
        self.scope: anyio.CancelScope | None = None
        self._hooks: list[Callable[[], object]] | None = None

    @property
    def kicked(self) -> bool:
        """Whether the kick has come. After a hook woke you, test this before you believe an empty result."""
        return self.act is not None or (self.node._kick is None and self.node.kicked)

    def on_kick(self, hook: Callable[[], object]) -> None:
        """Register `hook`, which the kick calls. If the kick has been, it is called at once (fs/debugfs:
        debugfs_enter_cancellation).

        Use it for waits that no cancel scope reaches, such as a worker thread's. The hook is called whatever the node's
        `kick` is. What it raises goes to those who await the revocation.
        """
        if self.kicked:
            self.node._call(hook)
        elif self._hooks is None:
            self._hooks = [hook]
        else:
            self._hooks.append(hook)

    def kick(self, act: Revocation) -> bool:
        """End the wait. Return whether there was anything to end it by."""
        if self.node._kick is None and self._hooks is None:
            return False
        self.act = act
        cancels = self.node._kick is not None and self.task is not None
        if cancels:
            self._cancel(act._in_loop)
        for hook in self._hooks or ():
            self.node._call(hook)
        return cancels or self._hooks is not None

    def _cancel(self, in_loop: bool) -> None:
        if self._place is not None:
            outer = [self._place[0], *(each.scope for each in chain(self.outer) if each.scope)]
            self.scope = surround(self.task, self._place, outer)
            end: Callable[[], object] = partial(cancel, self.scope)
        else:
            assert self.scope is not None
            end = self.scope.cancel
        home = self.node._home
        assert home is not None  # it has a task
        self.node._call(end if in_loop else lambda: home.call(end))

    def __enter__(self) -> Self:
        home = self.enter()
        if home is not None and self.task is not None:
            self._place = home.place(self.task)
            if self._place is None:
                self.scope = anyio.CancelScope()
                self.scope.__enter__()
            self._go_in(home)
        return self

    def __exit__(self, kind: type[BaseException] | None, exc: BaseException | None, tb: TracebackType | None) -> None:
        error, swallowed = exc, False
        if self.scope is not None:
            try:
                swallowed = bool(self.scope.__exit__(kind, exc, tb))
            except BaseException as rest:  # noqa: BLE001  # raised below
                error = rest
        home = self.node._home
        if home is not None:
            self._come_out(home)
        self.leave()
        if error is None:  # passed
            return
        if swallowed:  # kicked: the cancellation was the kick's alone (I5)
            raise self._kicked_out() from None
        if self.node._acts and self._reports(error):  # kicked further in, perhaps with a group
            raise self._kicked_out(getattr(error, "sent", None)) from error
        if error is not exc:  # foreign, less our cancellation that was in a group with it
            raise error

    def _kicked_out(self, sent: int | None = None) -> Exception:
        return self.node._error(self.act or self.node._acts[0], sent)

    def _reports(self, error: BaseException) -> bool:
        """Whether this operation reports `error` as its own: a group of its own revocation, or a kick of something
        inside it.
        """
        if isinstance(error, BaseExceptionGroup):
            return all(
                self._reports(leaf) or (isinstance(leaf, RevokedError) and leaf.node is self.node)
                for leaf in error.exceptions
            )
        if isinstance(error, RevokedError):
            return self.act is not None and error.in_flight and error.node is not self.node
        return isinstance(error, anyio.ClosedResourceError) and self.act is not None and self.act._closer is self.node


class Iterate(AsyncIterator[T]):
    """The iterator of `Revokable.iterate`: it fetches each item in a use of its own, and holds none while the consumer
    works.
    """

    def __init__(self, node: Revokable, source: AsyncIterable[T]) -> None:
        self._node = node
        self._source = aiter(source)

    async def __anext__(self) -> T:
        with Use(self._node, idle=True):
            return await anext(self._source)


class Opening:
    """The block of `Revokable.opening`: it has the handle while the device is still being opened. It is an operation of
    the parent.
    """

    def __init__(self, parent: Revokable, handle: Revokable, also: tuple[Revokable, ...]) -> None:
        self._handle = handle
        self._parents = tuple(dict.fromkeys((parent, *also)))
        self._use = Use(parent, idle=False)

    async def __aenter__(self) -> Revokable:
        for parent in self._parents:
            parent._admit_child()
        self._use.__enter__()
        return self._handle

    async def __aexit__(
        self, kind: type[BaseException] | None, exc: BaseException | None, tb: TracebackType | None
    ) -> None:
        dead = next(iter([parent for parent in self._parents if parent.revoked]), None)
        failed: Revocation | None = None
        if exc is None and dead is None:
            if not self._handle.released:
                self._handle._join(self._parents)
        else:
            failed = self._handle._discard(self._parents, OPENING_FAILED if dead is None else dead.reason)
        try:
            # From here on the parent waits for its new child, so it is not released while the child holds something.
            self._use.__exit__(kind, exc, tb)
        finally:
            if failed is not None:
                await failed._until(failed.done)
        if exc is None and dead is not None:
            raise dead._error(dead._acts[0])
