"""A thing with a node: what is taken away as a whole."""

import anyio.abc

from .revocation import Revocation
from .revokable import Revokable


class Resource(anyio.abc.AsyncResource):
    """What has a node, and is taken away by it. `aclose`, or the end of ``async with``, closes it as its owner.

    :ivar node: what is taken away
    """

    node: Revokable

    def revoke(self, reason: str = "", *, grace: float = 0.0) -> Revocation:
        """Take it away from all who use it: `Revokable.revoke` of its node."""
        return self.node.revoke(reason, grace=grace)

    async def aclose(self) -> None:
        """Take it away as its owner, and wait until it is released: `Revokable.aclose` of its node."""
        await self.node.aclose()

    def __repr__(self) -> str:
        return f"<{type(self).__name__} of {self.node!r}>"


class Handled(Resource):
    """A resource that is an open file: its node is the `handle` of whoever has opened it.

    :ivar handle: what is taken away
    """

    handle: Revokable

    @property
    def node(self) -> Revokable:  # type: ignore[override]  # the same by another name
        return self.handle
