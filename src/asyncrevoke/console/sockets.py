"""Finds the sockets of `asyncrevoke share`, and the server that shares a name."""

from __future__ import annotations

import contextlib
import errno
import os
import pathlib
from collections.abc import Awaitable, Callable
from typing import Any

import anyio
import anyio.abc

from asyncrevoke.control.client import Control, Record, as_record, connect
from asyncrevoke.control.lines import ControlError
from asyncrevoke.control.peer import group_number, user_name

SYSTEM = pathlib.Path("/run/asyncrevoke")
_SHARE = dict.fromkeys(("name", "device", "settings", "state", "reason"), str) | {
    "since": float | int,
    "keyboard": str | None,
    "read": int,
    "typed": int,
    "who": list,
}
_PERSON = {"name": str, "keyboard": bool, "types": bool, "since": float | int, "from": str}
_SILENT = "it does not answer"
_PATIENCE = 5.0  # seconds for a server to answer. A stopped one must not hide the others


def own_folder() -> pathlib.Path:
    """The folder for this user's sockets. To a service, systemd gives one of its own."""
    if given := os.environ.get("RUNTIME_DIRECTORY"):
        return pathlib.Path(given.split(":")[0])
    if os.geteuid() == 0:
        return SYSTEM
    if runtime := os.environ.get("XDG_RUNTIME_DIR"):
        return pathlib.Path(runtime, "asyncrevoke")
    return pathlib.Path(f"/tmp/asyncrevoke-{os.geteuid()}")  # noqa: S108  # see _check


def new_socket(name: str, group: str | None = None, *, everybody: bool = False) -> str:
    """Return the path of a socket to make in this user's folder.

    The folder is made if it is missing. It is opened to the group, or to everybody.

    :raises OSError: if other users could replace the socket, or the group cannot be given access
    :raises ValueError: if there is no such group
    """
    folder = own_folder()
    with contextlib.suppress(FileExistsError):
        folder.mkdir(0o700)
    _check(folder)
    if everybody:
        folder.chmod(0o755)
    elif group is not None:
        _let_in(folder, group)
    return str(folder / f"{name}.sock")


def _check(folder: pathlib.Path) -> None:
    there = folder.stat()
    for owner in (folder.lstat().st_uid, there.st_uid):
        if owner not in (0, os.geteuid()):
            raise _unsafe(folder, f"it belongs to {user_name(owner)}")
    if there.st_mode & 0o022:
        raise _unsafe(folder, "other users may write there")


def _unsafe(folder: pathlib.Path, why: str) -> PermissionError:
    return PermissionError(errno.EPERM, f"sockets are not safe here, because {why}: give --socket PATH", str(folder))


def _let_in(folder: pathlib.Path, group: str) -> None:
    gid = group_number(group)
    there = folder.stat()
    if there.st_mode & 0o005 == 0o005 or (there.st_gid == gid and there.st_mode & 0o050 == 0o050):
        return
    if there.st_mode & 0o070:
        raise PermissionError(
            errno.EPERM, f"it belongs to another group than {group!r}: give --socket PATH", str(folder)
        )
    os.chown(folder, -1, gid)
    folder.chmod(0o750)


def is_looked_at(path: str) -> bool:
    """Whether clients find a socket there by themselves."""
    file = pathlib.Path(path)
    return file.suffix == ".sock" and file.parent in (own_folder(), SYSTEM)


async def look(socket: str = "", user: str = "") -> Servers:
    """Connect to the server at `socket`, or to all servers in the user's folder and the system's. Dead ones are skipped.

    :param user: user whose rights the connections have. Default: yours. Only root and the owner of a server may give one
    :raises OSError: if no server can be reached at `socket`, or it does not answer
    """
    servers = await _look(socket)
    for path, control in list(servers.controls.items() if user else ()):
        try:
            with anyio.fail_after(_PATIENCE):
                await control.act_as(user)
        except (ControlError, TimeoutError) as error:
            servers.looked.append(f"{path} ({error or _SILENT})")
            del servers.controls[path]
            await control.aclose()
    return servers


async def _look(socket: str) -> Servers:
    servers = Servers()
    if socket:
        servers.looked.append(socket)
        servers.controls[socket] = await _connect(socket)
        return servers
    for folder in dict.fromkeys((own_folder(), SYSTEM)):
        try:
            if folder != SYSTEM:  # only root can have made that
                _check(folder)
            paths = sorted(str(path) for path in folder.iterdir() if path.suffix == ".sock")
        except FileNotFoundError as exc:
            servers.looked.append(f"{folder} ({exc.strerror})")
            continue
        except OSError as exc:
            servers.unanswered.append(f"{folder} ({exc.strerror})")
            continue
        servers.looked.append(str(folder))
        for path in paths:
            try:
                servers.controls[path] = await _connect(path)
            except PermissionError:
                servers.looked.append(f"{path} (permission denied)")
            except TimeoutError:
                servers.unanswered.append(f"{path} ({_SILENT})")
            except OSError:  # its server is dead, or has just gone
                pass
    return servers


async def _connect(path: str) -> Control:
    try:
        with anyio.fail_after(_PATIENCE):
            return await connect(path)
    except TimeoutError:
        raise TimeoutError(errno.ETIMEDOUT, _SILENT, path) from None


class Servers(anyio.abc.AsyncResource):
    """Connections to control servers, as `look` makes them.

    :ivar controls: by the path of the socket
    :ivar looked: the places that were searched, and what was in the way
    :ivar unanswered: the servers and folders that could not be asked, and why
    """

    def __init__(self) -> None:
        self.controls: dict[str, Control] = {}
        self.looked: list[str] = []
        self.unanswered: list[str] = []

    def __str__(self) -> str:
        return ", ".join(self.looked + self.unanswered)

    async def aclose(self) -> None:
        """Close the connections."""
        for control in self.controls.values():
            await control.aclose()

    async def nodes(self, path: str = "", **options: Any) -> dict[str, list[Record]]:
        """Return what is open at `path` and below, by the path of the socket. Options as for `Control.list`."""
        return await self._ask(lambda control: control.list(path, **options))

    async def shares(self) -> dict[str, list[Record]]:
        """Return the shares of console servers, by the path of the socket. Shares that are over are included."""
        return await self._ask(shares)

    async def _ask(self, ask: Callable[[Control], Awaitable[list[Record]]]) -> dict[str, list[Record]]:
        found = {}
        for socket, control in list(self.controls.items()):
            try:
                with anyio.fail_after(_PATIENCE):
                    found[socket] = await ask(control)
                continue
            except TimeoutError:
                self.unanswered.append(f"{socket} ({_SILENT})")
            except ControlError as error:
                self.unanswered.append(f"{socket} ({error})")
            del self.controls[socket]
            await control.aclose()
        return found

    async def sharing(self, name: str) -> Control:
        """Return the one server that shares `name`.

        :raises ControlError: "unknown-path", if no server does, or several do
        """
        sockets = [socket for socket, nodes in (await self.nodes(name)).items() if nodes]
        if not sockets:  # a share that is over has no node
            found = await self.shares()
            sockets = [socket for socket, shares in found.items() if any(each["name"] == name for each in shares)]
        if len(sockets) > 1:
            raise ControlError(
                "unknown-path", f"{name!r} is shared more than once: give --socket {' or '.join(sockets)}"
            )
        if not sockets:
            there = ", ".join(_close_first(name, await self.names()))
            raise ControlError(
                "unknown-path", f"no share is named {name!r}{f'. Shared: {there}' * bool(there)}. Looked in {self}"
            )
        return self.controls[sockets[0]]

    async def names(self) -> list[str]:
        """Return the names that all answering servers share."""
        nodes = [node for found in (await self.nodes()).values() for node in found]
        return sorted({node["path"] for node in nodes if node["kind"] == "name" and "/" not in node["path"]})

    async def only_name(self) -> str:
        """Return the only name that is shared.

        :raises ControlError: "unknown-path", if nothing is shared, or several things are
        """
        names = await self.names()
        if len(names) != 1:
            what = f"several are shared: give one of {', '.join(names)}" if names else "nothing is shared"
            raise ControlError("unknown-path", f"{what}. Looked in {self}")
        return names[0]


def _close_first(name: str, names: list[str]) -> list[str]:
    import difflib  # noqa: PLC0415  # only a mistyped name needs it

    return list(dict.fromkeys([*difflib.get_close_matches(name, names, n=len(names) or 1, cutoff=0.5), *names]))


async def shares(control: Control) -> list[Record]:
    """Return a record for each share of a server, as in docs/control-protocol.md. Other services have no shares."""
    try:
        found = [as_record(_SHARE, each["share"]) async for each in control.request("shares") if "share" in each]
    except ControlError as error:
        if error.code == "unknown-request":
            return []
        raise
    for share in found:
        as_record({"open": list}, {"open": [], **share})  # older servers do not send "open"
        for person in share["who"]:
            as_record(_PERSON, person)
    return found
