"""Faults of the core, planted one at a time, which the state machine has to find."""

import __future__

import contextlib
import inspect
import textwrap
import types
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

from asyncrevoke._core import revocation
from asyncrevoke._core.revokable import Revokable
from asyncrevoke._core.use import Operation, Use
from asyncrevoke._registry.name import Name


@dataclass(frozen=True)
class Fault:
    """One line of a function is put wrongly."""

    what: str
    function: Callable[..., Any]
    right: str
    wrong: str

    @contextlib.contextmanager
    def planted(self) -> Iterator[None]:
        """The function has it, whoever calls it and under whatever name.

        :raises ValueError: if the line is not there once
        """
        function: Any = self.function
        source = textwrap.dedent(inspect.getsource(function))
        if source.count(self.right) != 1:
            raise ValueError(f"{function.__qualname__} has not one {self.right!r}")
        module = compile(
            source.replace(self.right, self.wrong), "planted", "exec", __future__.annotations.compiler_flag
        )
        right = function.__code__
        function.__code__ = next(each for each in module.co_consts if isinstance(each, types.CodeType))
        try:
            yield
        finally:
            function.__code__ = right


FAULTS = (
    Fault("children are not swept", revocation._refuse, "unvisited += node._children", "pass"),
    Fault(
        "a node is released below which something is open",
        revocation.last_out,
        "node._uses or node._bare or node._children",
        "node._uses or node._bare",
    ),
    Fault("whoever leaves last does not release", Revokable._operations_left, "last_out(self)", "pass"),
    Fault("a released child does not go on to its parents", revocation.last_out, "due += node._parents()", "pass"),
    Fault(
        "the first parent alone is asked when a child is released",
        revocation.last_out,
        "due += node._parents()",
        "due += node._parents()[:1]",
    ),
    Fault("a grace spares the idle, too", revocation._kick, "(use.idle or not idle_only)", "not idle_only"),
    Fault("the end of a grace kicks nobody", revocation._work, "_kick(act, idle_only=False)", "()"),
    Fault("a grace is none", revocation._work, "idle_only=grace > 0", "idle_only=False"),
    Fault("a nested operation is admitted after the kick", Operation.enter, "not nested or node.kicked", "not nested"),
    Fault("a nested operation is refused", Operation.enter, "not nested or node.kicked", "True"),
    Fault("an operation starts after the refusal", Operation.enter, "raise node._refusal()", "pass"),
    Fault("a nested operation is idle", Operation.enter, "self.idle and not nested", "self.idle"),
    Fault("a kick leaks as a cancellation", Use.__exit__, "if swallowed:", "if False:"),
    Fault("what flies through a kicked operation stays as it was", Use.__exit__, "self._reports(error)", "False"),
    Fault("an owner's own operations are kicked", revocation._kick, "use.task is not act._spare or", "True or"),
    Fault("a refusal does not tell who closed", Revokable._refusal, "if self._closed:", "if False:"),
    Fault("an error does not tell who closed", Revokable._error, "act._closer is self", "False"),
    Fault("a failure is told to the first act alone", Revokable._failed, "in self._acts", "in self._acts[:1]"),
    Fault("a failure is lost", Revokable._failed, "act._errors.append(exc)", "pass"),
    Fault("a kick counts for one act alone", revocation._kick, "in node._acts:", "in node._acts[:1]:"),
    Fault("at_close is run by a revocation", revocation._released, "if node._closed:", "if True:"),
    Fault(
        "a hook is called twice",
        revocation._enter_kicked,
        "node._call(node._kick, node)",
        "node._call(node._kick, node), node._call(node._kick, node)",
    ),
    Fault("kick=None is not heeded", Use.kick, "cancels = self.node._kick is not None and", "cancels ="),
    Fault(
        "a later act of the same roots counts from the beginning",
        revocation._is_again,
        "whole._kicked, whole._released,",
        "0, 0,",
    ),
    Fault(
        "a later act of the same roots hastens nothing",
        revocation._work,
        "whole._deadline is None or deadline < whole._deadline",
        "whole._deadline is None",
    ),
    Fault(
        "a deadlock is not refused", revocation.Revocation._refuse_deadlock, "if self in inside.node._acts", "if False"
    ),
    Fault(
        "a deadlock over others is not refused",
        revocation.Revocation._refuse_deadlock,
        "unvisited.append(waiter.task)",
        "pass",
    ),
    Fault(
        "who waits is woken too early",
        revocation.Revocation.done,
        "not self._whole._unreleased",
        "not self._whole._undrained",
    ),
    Fault("a name goes on in a generation that is over", Name._generation, "if not old.revoked:", "if old._number:"),
    Fault(
        "a generation begins while the old one drains",
        Name._generation,
        "if not old.released and self",
        "if False and self",
    ),
    Fault(
        "a node joins the second parent alone",
        Revokable._join,
        "for parent in parents for",
        "for parent in parents[-1:] for",
    ),
)
