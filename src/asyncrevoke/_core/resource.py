"""A thing with a node, revoked as a whole."""

import anyio.abc

from .revocation import Revocation
from .revokable import Revokable


class Resource(anyio.abc.AsyncResource):
    """Something with a node. `aclose`, or the end of ``async with``, closes it as its owner.

    :ivar node: the node that is revoked
    """

    node: Revokable

    def revoke(self, reason: str = "", *, grace: float = 0.0) -> Revocation:
        """Revoke it for everybody: `Revokable.revoke` of its node."""
        return self.node.revoke(reason, grace=grace)

    async def aclose(self) -> None:
        """Close it as its owner, and wait until it is released: `Revokable.aclose` of its node."""
        await self.node.aclose()

    def __repr__(self) -> str:
        return f"<{type(self).__name__} of {self.node!r}>"


class Handled(Resource):
    """A resource that is an open file: its node is the `handle` of whoever opened it.

    :ivar handle: the node that is revoked
    """

    handle: Revokable

    @property
    def node(self) -> Revokable:  # type: ignore[override]  # the same by another name
        return self.handle
