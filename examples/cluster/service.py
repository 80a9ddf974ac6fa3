"""A worker of a host: ``HOST=web1 uvicorn --workers 2 service:app``. It serves a websocket for each token."""

import os
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import anyio
from fastapi import FastAPI, WebSocket

from asyncrevoke import Registry
from asyncrevoke.adapters.asgi import RevokableApp
from asyncrevoke.cluster import Cluster, open_log

log = open_log(os.environ["ASYNCREVOKE_CLUSTER"])
cluster = Cluster(Registry(), log, host=f"{os.environ['HOST']}/{os.getpid()}", mode="strict")


@asynccontextmanager
async def lifespan(_: FastAPI) -> AsyncIterator[None]:
    async with anyio.create_task_group() as tasks:
        await tasks.start(cluster.run)  # connections are accepted from here on
        yield
        tasks.cancel_scope.cancel()
    await log.aclose()


api = FastAPI(lifespan=lifespan)


@api.websocket("/{user}/{token}")
async def echo(websocket: WebSocket) -> None:
    await websocket.accept()
    await websocket.send_text(cluster.host)
    async for text in websocket.iter_text():
        await websocket.send_text(text)


app = RevokableApp(api, cluster, key=lambda scope: tuple(scope["path"].strip("/").split("/")))
