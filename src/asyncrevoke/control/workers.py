"""The workers of a service on one machine. Each serves its own registry, and all are asked at once."""

import contextlib
import functools
import os
import pathlib
from collections.abc import AsyncIterator
from typing import Any

import anyio

from asyncrevoke.lowlevel import Registry

from .client import Record, connect
from .lines import ControlError
from .listener import remove_dead
from .server import serve

_MOST = 86400.0  # seconds that a server of the protocol takes for a grace or a limit
_ON_ITS_WAY = 1.0  # seconds that an answer may take, beyond what it is about


@contextlib.asynccontextmanager
async def serving(registry: Registry, folder: str | os.PathLike[str], **options: Any) -> AsyncIterator[None]:
    """Let `revoke_in_all` reach this process: ``FastAPI(lifespan=lambda app: serving(live, "/run/shop"))``

    It runs `serve` at ``folder/PID.sock``. A missing folder is made, and only you may use it then.

    :param options: of `serve`
    :raises OSError: if the folder cannot be made
    :raises ExceptionGroup: of what `serve` raises, and of what is raised within
    """
    path = pathlib.Path(folder)
    path.mkdir(mode=0o700, exist_ok=True)  # noqa: ASYNC240
    async with anyio.create_task_group() as tasks:
        await tasks.start(functools.partial(serve, registry, path / f"{os.getpid()}.sock", **options))
        yield
        tasks.cancel_scope.cancel()


async def revoke_in_all(
    folder: str | os.PathLike[str],
    path: str,
    reason: str = "",
    *,
    below: bool = False,
    grace: float = 0.0,
    limit: float = 5.0,
) -> dict[str, Record]:
    """Revoke in all workers that are `serving` in a folder, at once: ``await revoke_in_all("/run/shop", "alice/t1", "...")``

    A worker that was killed holds nothing any more, so its socket is removed. A silent worker does not delay the others.

    :param path: path, as for `Control.revoke`. The key ``live["alice", "t1"]`` has the path ``alice/t1``
    :param grace: seconds until users that are not idle are kicked. They are part of the limit
    :param limit: seconds for each worker, and one more for its answer
    :returns: by worker, as in ``{"4711": {"done": True, ...}}``: `done`, `report` and `stragglers` as of `Control.revoke`, and
        an `error`. If nothing is open there, that is done, with an empty report. Not done: it may still serve that key, because
        of the stragglers or the error. A revocation that was begun goes on
    :raises OSError: if the folder cannot be read
    :raises ValueError: if `grace` or `limit` is not from 0 to 86400. Then no worker was asked
    Cancellation: some workers may have been asked.
    """
    for name, seconds in ("grace", grace), ("limit", limit):
        if not 0.0 <= seconds <= _MOST:
            raise ValueError(f"{name} is {seconds!r}: give seconds, from 0 to {_MOST:g}")
    answers: dict[str, Record] = {}

    async def ask(worker: pathlib.Path) -> None:
        answer = answers[worker.stem] = {"done": False, "report": {}, "stragglers": [], "error": ""}
        try:
            with anyio.fail_after(limit + _ON_ITS_WAY):
                async with await connect(worker) as control:
                    told = await control.revoke(path, reason, below=below, grace=grace, timeout=limit)
                    answer |= {name: told[name] for name in ("done", "report", "stragglers")}
        except (ConnectionRefusedError, FileNotFoundError):
            del answers[worker.stem]
            await remove_dead(os.fspath(worker))
        except TimeoutError:
            answer["error"] = f"it has not answered for {limit + _ON_ITS_WAY:g} s"
        except ControlError as error:
            answer |= {"done": True} if error.code == "unknown-path" else {"error": str(error)}
        except OSError as error:
            answer["error"] = str(error)

    workers = [each for each in pathlib.Path(folder).iterdir() if each.suffix == ".sock"]  # noqa: ASYNC240
    async with anyio.create_task_group() as tasks:
        for worker in workers:
            tasks.start_soon(ask, worker)
    return answers
