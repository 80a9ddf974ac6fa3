"""`asyncrevoke web`: the site on an address of this machine."""

import argparse
import contextlib
import os
import secrets
import signal

import anyio
import uvicorn
from starlette.types import ASGIApp

from asyncrevoke.control.listener import listening
from asyncrevoke.control.peer import user_name

from .shares import Shares
from .site import Site


def run(args: argparse.Namespace) -> int:
    """Serve shares and terminals until SIGINT or SIGTERM; it returns the exit status."""
    if args.user_header and not (args.unix_socket and args.origin):
        args.usage("web: --user-header needs --origin and --unix-socket: only the proxy may tell who the user is")
    if args.group and not args.unix_socket:
        args.usage("web: --group goes with --unix-socket")
    me, token = user_name(os.geteuid()), secrets.token_urlsafe(16)
    origin = args.origin or f"http://127.0.0.1:{args.port}"
    site = Site(
        {} if args.user_header else {me: token},
        origin,
        args.program or ([] if args.user_header else [os.environ.get("SHELL", "sh")]),
        admins=(me,),
        user_header=args.user_header,
        shares=Shares(args.socket, me),
        grace=args.grace,
    )
    print(f"open {origin}" if args.user_header else f"open {origin}/#login={me}:{token}", flush=True)
    signal.signal(signal.SIGTERM, signal.default_int_handler)  # uvicorn raises it again when it has ended
    with contextlib.suppress(KeyboardInterrupt):
        anyio.run(_serve, site, args.port, args.unix_socket, args.group)
    return 0


async def _serve(site: Site, port: int, path: str, group: str | None) -> None:
    if not path:
        await server(site, port).serve()
        return
    async with listening(path, group, 0o660 if group else 0o600) as listener:  # uvicorn lets everybody in
        await server(site, port).serve([listener])


def server(app: ASGIApp, port: int) -> uvicorn.Server:
    """The server of a site, with the bounds that docs/web-terminal.md promises."""
    config = uvicorn.Config(app, port=port, ws="websockets-sansio", log_level="warning", limit_concurrency=200)
    config.ws_max_size, config.ws_per_message_deflate, config.proxy_headers = 1 << 16, False, False
    config.timeout_graceful_shutdown = 5
    return uvicorn.Server(config)
