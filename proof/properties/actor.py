"""A person of the reference, as a task: it is told what to do, inside of the operations that it is in."""

import asyncio
import contextlib
from collections.abc import Awaitable, Callable

import anyio
from reference import Use

from asyncrevoke import Revocation, Revokable, RevokeDeadlock, RevokedError

Command = Callable[["Actor"], Awaitable[None]]


def said(exc: BaseException) -> str:
    """An error, in the words of the reference."""
    if isinstance(exc, RevokedError):
        return f"{'kicked' if exc.in_flight else 'refused'}: {exc}"
    return f"{type(exc).__name__}: {exc}"


async def outcome(act: Revocation) -> str:
    """What awaiting it gives."""
    try:
        report = await act
    except RevokeDeadlock:
        return "RevokeDeadlock"
    except BaseExceptionGroup as failed:
        return f"failed: {sorted(map(str, failed.exceptions))}"
    return str(report)


class Actor:
    """One task.

    :ivar task: ends when it is cancelled, and by nothing else
    """

    def __init__(self, name: str, log: Callable[[str], None]) -> None:
        self.name = name
        self.log = log
        self.scope: anyio.CancelScope | None = None
        self.wait: asyncio.Future[Command | None] | None = None
        self.task = asyncio.create_task(self._run(), name=name)
        self.task.add_done_callback(self._over)

    def tell(self, command: Command | None) -> bool:
        """Give it the result that it waits for; None: leave, or go on. It reports whether that came in time."""
        assert self.wait is not None
        if self.wait.done():
            return False
        self.wait.set_result(command)
        return True

    async def _run(self) -> None:
        with anyio.CancelScope() as self.scope:
            while True:
                with contextlib.suppress(RevokedError, anyio.ClosedResourceError):
                    await self._obey()

    def _over(self, task: asyncio.Task[None]) -> None:
        """I5: it ends as it was cancelled."""
        if not task.cancelled() and (exc := task.exception()) is not None:
            self.log(f"{self.name} ended by {exc!r}")
        else:
            self.log(f"{self.name} cancelled {'natively' if task.cancelled() else 'by a scope'}")

    async def _next(self) -> Command | None:
        self.wait = asyncio.get_running_loop().create_future()
        return await self.wait

    async def _obey(self) -> None:
        while command := await self._next():
            await command(self)

    async def use(self, node: Revokable, told: Use) -> None:
        """One operation."""
        try:
            with node.using(idle=told.idle) as use:
                self.log(f"{told.name} in")
                if told.hooked:
                    use.on_kick(lambda: self.log(f"{told.name} woken"))
                try:
                    with anyio.CancelScope(shield=told.manner == "shielded"):
                        await self._obey()
                except asyncio.CancelledError:
                    if told.manner == "lingers":
                        self.log(f"{told.name} lingers")
                        with anyio.CancelScope(shield=True):
                            await self._next()
                    raise
                finally:
                    self.log(f"{told.name} left")
            self.log(f"{told.name} out")
        except (RevokedError, anyio.ClosedResourceError) as exc:
            self.log(f"{told.name} {said(exc)}")
            if not told.catches:
                raise
        except asyncio.CancelledError:
            self.log(f"{told.name} cancelled")
            raise

    async def awaits(self, act: Revocation) -> None:
        self.log(f"{self.name}: {await outcome(act)}")
