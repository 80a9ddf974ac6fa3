"""Cancel scopes of AnyIO on asyncio, entered only when they are cancelled.

A scope of AnyIO's costs more than the rest of an operation, and few are ever cancelled. So an operation only notes
where it begins. A kick puts the scope there, as if the task had entered it then. If AnyIO's internals are not those we
know, a scope is entered as usual.
"""

from __future__ import annotations

import sys
from collections.abc import Container
from typing import Any

#: The scope that a task is in, and how often the task had been cancelled.
Place = tuple[Any, int]

#: The fields that entering a scope sets. Another AnyIO may have others.
_FIELDS = {
    "_active",
    "_cancel_called",
    "_cancel_reason",
    "_cancelling_at_enter",
    "_child_scopes",
    "_host_task",
    "_parent_scope",
    "_tasks",
}


class _Opaque:
    """Stands for AnyIO's table of tasks, and for a scope in it, if its internals are unknown. It may be cancelled."""

    _effectively_cancelled = True

    def get(self, _: object) -> _Opaque:
        return self

    @property
    def cancel_scope(self) -> _Opaque:
        return self


OPAQUE = _Opaque()


def states() -> Any:
    """Return AnyIO's table of the scope that each task is in, by weak reference. None: nobody has made a scope yet."""
    backend = sys.modules.get("anyio._backends._asyncio")
    if backend is None:
        return None
    table = getattr(getattr(backend, "_task_states", None), "data", None)
    kind = backend.CancelScope
    known = _FIELDS.issubset(getattr(kind, "__slots__", ())) and hasattr(kind, "_deliver_cancellation")
    return table if known and table is not None else OPAQUE


def surround(task: Any, place: Place, outer: Container[object]) -> Any:
    """Enter a scope for a task, at an earlier place: inside its scopes that are `outer`, around all later ones."""
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


def cancel(scope: Any) -> None:
    """Cancel a scope that `surround` has made.

    AnyIO's own method notes in each cancellation which task asked for it. When one revocation ends thousands, that is a
    quarter of all work.
    """
    if not scope._cancel_called:
        scope._cancel_called = True
        # AnyIO knows its own cancellations by how this begins.
        scope._cancel_reason = f"Cancelled via cancel scope {id(scope):x}, by a revocation"
        scope._deliver_cancellation(scope)
