"""AnyIO's cancel scopes on asyncio: one that is entered only when it is cancelled.

A scope of AnyIO's costs more than all else that an operation needs, and hardly any is ever cancelled. So an operation
only notes where it begins; a kick puts the scope there, as if the task had entered it then. The one file that looks into
AnyIO. Where that is made otherwise, a scope is entered as usual.
"""

from __future__ import annotations

import sys
import weakref
from collections.abc import Callable, Container
from typing import Any

#: The scope that a task is in, and how often it had been cancelled.
Place = tuple[Any, int]

#: What is set in a scope that is entered. Another AnyIO may have others.
_FIELDS = {"_active", "_cancelling_at_enter", "_child_scopes", "_host_task", "_parent_scope", "_tasks"}


class _Opaque:
    """Stands for AnyIO's table of tasks, and for a scope in it, where they are made otherwise. It may be cancelled."""

    _effectively_cancelled = True

    def get(self, _: object) -> _Opaque:
        return self

    @property
    def cancel_scope(self) -> _Opaque:
        return self


OPAQUE = _Opaque()


class Scopes:
    """Tells which scope the tasks of a loop are in."""

    __slots__ = ("_ref", "_states")

    def __init__(self) -> None:
        self._states: Any = None  # AnyIO's table of tasks, once it is there
        self._ref: Callable[[], object] = lambda: None  # to the task that was asked about last

    def innermost(self, task: Any) -> Any:
        """The scope that a task is in, or None; OPAQUE where nobody knows."""
        states = self._states
        if states is None:
            backend = sys.modules.get("anyio._backends._asyncio")
            if backend is None:
                return None  # nobody has made a scope yet
            table = getattr(getattr(backend, "_task_states", None), "data", None)
            known = table is not None and _FIELDS.issubset(getattr(backend.CancelScope, "__slots__", ()))
            self._states = states = table if known else OPAQUE
        ref = self._ref
        if ref() is not task:
            self._ref = ref = weakref.ref(task)
        state = states.get(ref)
        return None if state is None else state.cancel_scope

    def place(self, task: Any) -> Place | None:
        """Where the task is, for `surround`, or None where nobody knows."""
        if self._states is None:
            from anyio._backends import _asyncio  # noqa: F401, PLC0415  # which takes long, and not every program needs
        scope = self.innermost(task)
        return None if scope is OPAQUE else (scope, task.cancelling())


def surround(task: Any, place: Place, outer: Container[object]) -> Any:
    """Enter a scope for a task, at a place where it was: inside of its scopes that are `outer`, around all later ones."""
    backend: Any = sys.modules["anyio._backends._asyncio"]
    scope, states = backend.CancelScope(), backend._task_states
    state = states.get(task)
    if state is None:
        states[task] = state = backend.TaskState(None, None)
    inner, parent = None, state.cancel_scope
    while parent is not None and parent not in outer:
        inner, parent = parent, parent._parent_scope
    if parent not in outer:  # it was left before its time
        inner, parent = None, state.cancel_scope
    scope._host_task, (_, scope._cancelling_at_enter) = task, place
    scope._parent_scope, scope._active = parent, True
    if inner is None:
        state.cancel_scope = scope
        scope._tasks.add(task)
    else:
        inner._parent_scope = scope
        scope._child_scopes.add(inner)
    if parent is not None:
        parent._tasks.discard(task)
        parent._child_scopes.discard(inner)
        parent._child_scopes.add(scope)
    return scope
