"""A name that exists only as long as somebody uses it."""

from __future__ import annotations

from collections.abc import Iterable

from asyncrevoke._core.revocation import Revocation, tell
from asyncrevoke._core.revokable import Revokable, Told, revoke_all


class Key(Revokable):
    """A node of a registry's tree of keys. It is a child of its parent only while somebody uses it.

    :param earlier: nodes of the same name that were revoked, and may not be released yet
    """

    __slots__ = ("__weakref__", "_earlier", "_number")

    _lasting = False

    def __init__(self, name: str, parent: Revokable, number: int, earlier: Iterable[Key]) -> None:
        super().__init__(name)
        self.parent = parent
        self._kick = parent._kick
        self._answers = parent._answers
        self._number = number
        self._earlier = earlier

    def revoke(self, reason: str = "", *, grace: float = 0.0) -> Revocation:
        """Revoke it, as `Revokable.revoke`. This completes when the earlier nodes of this name are released, too."""
        return revoke_all([*(each for each in self._earlier if not each.released), self], reason, grace=grace)

    def _missed(self) -> bool:
        """Whether it was revoked. A revocation does not reach down to a key that nobody uses: such a key asks its
        parents.
        """
        dead: Revokable | None = self
        while dead is not None and not dead._acts:
            dead = dead.parent
        if dead is None:
            return False
        node: Revokable | None = self
        while node is not None and node is not dead:
            node._end_unused(dead._acts)
            node = node.parent
        return True

    def _attach(self) -> bool:
        node: Revokable = self
        unattached: list[Revokable] = []
        while not node._acts and (parent := node.parent) is not None and node not in (parent._children or ()):
            unattached.append(node)
            node = parent
        if node._acts:
            return not self._missed()
        for each in reversed(unattached):
            node._home = self._home
            node._adopt(each)
            if each._observers:
                tell("opened", each)
            node = each
        return True

    def _heard_by(self) -> tuple[Told, ...]:
        node: Revokable = self
        heard = dict.fromkeys(node._observers)
        while (parent := node.parent) is not None and node not in (parent._children or ()):
            node = parent
            heard |= dict.fromkeys(node._observers)
        return tuple(heard)

    def _unused(self) -> None:
        node: Revokable = self
        while type(node) is Key and not (node._uses or node._bare or node._children or node._acts):
            parent = node.parent
            assert parent is not None
            node._uses = None  # so that the next use attaches it
            if (parent._children or {}).pop(node, node) is node:  # nobody has used it
                break
            if node._observers:
                tell("released", node)
                node._observers = tuple(told for told in node._observers if told not in parent._observers)
            node = parent
