"""A name that exists only as long as somebody uses it."""

from __future__ import annotations

from typing import Any

from asyncrevoke._core.revokable import RELEASED, Revokable, tell


class Key(Revokable):
    """A node of a registry's tree of keys: a child of its parent only while somebody uses it."""

    __slots__ = ("__weakref__", "_number")

    def __init__(self, name: str, parent: Revokable, number: int) -> None:
        super().__init__(name)
        self.parent = parent
        self._kick = parent._kick
        self._answers = parent._answers
        self._number = number

    @property
    def revoked(self) -> bool:
        self._catch_up()
        return bool(self._acts)

    @property
    def reason(self) -> str:
        self._catch_up()
        return super().reason

    def _catch_up(self) -> None:
        """A revocation does not reach down to a key that nobody uses: such a key takes it over when it is asked."""
        late: list[Revokable] = []
        node: Revokable | None = self
        while node is not None and not node._acts:
            late.append(node)
            node = node.parent
        if node is not None:
            for each in late:
                each._acts, each._state = node._acts, RELEASED

    def _admit_child(self) -> None:
        self._catch_up()
        super()._admit_child()

    def _admits_use(self) -> bool:
        self._catch_up()
        return super()._admits_use()

    def _first_use(self) -> dict[Any, None]:
        self._admit_child()
        self._attach()
        return super()._first_use()

    def _link(self, child: Revokable) -> None:
        self._attach()
        super()._link(child)

    def _attach(self) -> None:
        node: Revokable = self
        attached: list[Revokable] = []
        while (parent := node.parent) is not None and node not in (parent._children or ()):
            Revokable._link(parent, node)
            parent._home = node._home
            attached.append(node)
            node = parent
        for node in reversed(attached):
            tell("opened", node)

    def _unused(self) -> None:
        node: Revokable = self
        while type(node) is Key and not node.in_use and not node._acts:
            parent = node.parent
            assert parent is not None
            node._uses = None  # so that the next use attaches it
            if (parent._children or {}).pop(node, node) is node:  # nobody has used it
                break
            tell("released", node)
            node = parent
