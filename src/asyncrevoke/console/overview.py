"""Shares and their clients, as records for programs and as columns for people."""

from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from asyncrevoke.control.client import Record

from .commands import ago
from .person import does
from .sockets import Servers


@dataclass(frozen=True)
class Found:
    """The answers of one server.

    :ivar shares: its shares, if it is a console server
    :ivar nodes: all nodes that are open there
    """

    socket: str
    shares: list[Record]
    nodes: list[Record]

    def __bool__(self) -> bool:
        return bool(self.shares or self.nodes)


async def ask(servers: Servers, *, who: bool) -> list[Found]:
    """Ask all servers.

    :param who: whether to ask for the users of each node too
    """
    nodes = await servers.nodes(who=who)
    shares = await servers.shares()
    return [Found(socket, shares[socket], sorted(nodes[socket], key=_in_tree)) for socket in shares]


def summary(found: Sequence[Found]) -> Iterator[list[str]]:
    """Yield a line for each share. Other services have a line for each name."""
    yield ["NAME", "DEVICE", "SETTINGS", "STATE", "KEYBOARD", "USERS", "SINCE"]
    for server in found:
        for share in sorted(server.shares, key=lambda share: share["name"]):
            users = str(len(share["who"]))
            what = [share[key] for key in ("name", "device", "settings")]
            yield [*what, state(share), share["keyboard"] or "", users, ago(share["since"])]
        for record in records([server], internals=False) if not server.shares else ():
            yield [record["path"], "", "", state(record), "", str(record["clients"]), ago(record["since"])]


def warnings(found: Sequence[Found]) -> Iterator[str]:
    """Yield what is open to other machines, and to whom."""
    for server in found:
        for share in server.shares:
            yield from share.get("open", ())


def people(found: Sequence[Found]) -> Iterator[list[str]]:
    """Yield a line for each attached client. Other services have a line for each handle below a name."""
    yield ["NAME", "DOES", "SINCE", "FROM"]
    for server in found:
        for share in sorted(server.shares, key=lambda share: share["name"]):
            for each in share["who"]:
                yield [f"{share['name']}/{each['name']}", does(each), ago(each["since"]), each["from"]]
        for node in server.nodes if not server.shares else ():
            if "/" in node["path"] and node["kind"] != "generation":
                yield [node["path"], state(node), ago(node["since"]), ""]


def internals(found: Sequence[Found]) -> Iterator[list[str]]:
    """Yield a line for each node, and for each operation inside."""
    yield ["NAME", "STATE", "GENERATION", "CLIENTS", "IN USE", "SINCE", "REASON"]
    for record in records(found, internals=True):
        name = "  " * record["path"].count("/") + record["path"]
        numbers = ["" if record[key] is None else str(record[key]) for key in ("generation", "clients", "in_use")]
        yield [name, record["state"], *numbers, ago(record["since"]), record["reason"]]
        for user in record.get("users", ()):
            yield [f"{name}: {user['kind']}", "", "", "", "", ago(user["since"]), user["where"]]


def records(found: Sequence[Found], *, internals: bool) -> Iterator[Record]:
    """Yield a record for each name, or each node, with its share. A share that is over has no node of its own."""
    for server in found:
        shares = {share["name"]: share for share in server.shares}
        nodes = [node for node in server.nodes if node["kind"] != "generation"]
        pinned = Counter(node["path"].rpartition("/")[0] for node in nodes if node["generation"] is None)
        over = shares.keys() - {node["path"] for node in nodes}
        for node in sorted([*nodes, *(_node_of(shares[name]) for name in over)], key=_in_tree):
            top = "/" not in node["path"]
            if internals or top:
                share = {"share": shares[node["path"]]} if node["path"] in shares else {}
                yield {**node, **share, "clients": pinned[node["path"]] if top else None, "socket": server.socket}


def _node_of(share: Record) -> Record:
    told = {key: share[key] for key in ("state", "reason", "since")}
    return {"path": share["name"], "kind": "name", "generation": None, "in_use": 0, "open": 0, **told}


def state(record: Record) -> str:
    """Say the state of a share or a node, and the reason."""
    return str(record["state"]) + (f": {record['reason']}" if record["reason"] else "")


def _in_tree(node: Record) -> list[str]:
    path: str = node["path"]
    return path.split("/")
