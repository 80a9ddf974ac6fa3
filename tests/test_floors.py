"""The house is built as ARCHITECTURE.md says: rooms on floors, and imports that go down."""

import ast
import pathlib
import subprocess
import sys

import asyncrevoke

PACKAGE = pathlib.Path(asyncrevoke.__file__).parent
ADAPTER = {"lowlevel", "answers"}
#: The rooms, from the ground up, and from which others each imports. A folder is a room; of the adapters, each is one.
ROOMS: dict[str, set[str]] = {
    "_program": set(),
    "linux": set(),
    "_core": {"linux"},
    "answers": {"_core", "linux"},
    "_streams": {"_core", "linux"},
    "_registry": {"_core", "_streams", "linux"},
    "lowlevel": {"_core", "_streams", "_registry"},
    "adapters/alsa": ADAPTER,
    "adapters/asgi": {"lowlevel"},
    "adapters/entries": {*ADAPTER, "linux"},
    "adapters/mapping": ADAPTER,
    "adapters/membrane": {"lowlevel"},
    "adapters/pty": {*ADAPTER, "linux"},
    "adapters/device": {*ADAPTER, "linux"},
    "adapters/lend": {"lowlevel", "linux", "adapters/device"},
    "adapters/serial": {*ADAPTER, "linux", "adapters/device"},
    "adapters/tty": {*ADAPTER, "linux"},
    "adapters/asyncio_streams": {*ADAPTER, "adapters/serial"},
    "adapters/descriptor": {*ADAPTER, "linux", "adapters/tty"},
    "adapters/fuse": {"lowlevel", "adapters/entries"},
    "adapters/hotplug": {"lowlevel", "linux", "adapters/device", "adapters/serial"},
    "control": {"lowlevel", "linux"},
    "cluster": {"lowlevel"},
    "console": {
        "lowlevel",
        "linux",
        "control",
        "cluster",
        "adapters/asgi",
        "adapters/device",
        "adapters/hotplug",
        "adapters/lend",
        "adapters/pty",
        "adapters/serial",
        "adapters/tty",
    },
    "telemetry": {"lowlevel"},
    "testing": ADAPTER,
    "compat": {"lowlevel", "adapters/asyncio_streams", "adapters/serial"},
}


def room_of(path: str) -> str:
    """The room of what is at a path below the package, a file or a folder."""
    parts = path.removesuffix(".py").split("/")
    return "/".join(parts[:2] if parts[0] == "adapters" else parts[:1])


def sources() -> list[pathlib.Path]:
    """All files but the package's face, which hands names on, and what only starts the command line."""
    faces = [PACKAGE / name for name in ("__init__.py", "__main__.py", "adapters/__init__.py")]
    return [file for file in sorted(PACKAGE.rglob("*.py")) if file not in faces]


def imported(file: pathlib.Path) -> list[tuple[str, list[str]]]:
    """The modules of ours that a file needs when it runs, whole, and the names it takes from them."""
    tree = ast.parse(file.read_text())
    for node in ast.walk(tree):
        if isinstance(node, ast.If) and ast.unparse(node.test) == "TYPE_CHECKING":
            node.body = [ast.Pass()]
    found = []
    for node in ast.walk(tree):
        if isinstance(node, ast.ImportFrom):
            names = [alias.name for alias in node.names]
            above = file.relative_to(PACKAGE.parent).parts[: -node.level] if node.level else ()
            whole = ".".join([*above, *([node.module] if node.module else [])])
            if whole == "asyncrevoke":  # a module of it, or what its face hands on
                found += [(f"{whole}.{name}", [name]) for name in names]
            elif whole.startswith("asyncrevoke."):
                found.append((whole, names))
    return found


def test_each_room_imports_what_its_row_says() -> None:
    """No import that is not in the table, and none in the table that is not made; each from a room further down."""
    made: dict[str, set[str]] = {}
    for file in sources():
        room = room_of(file.relative_to(PACKAGE).as_posix())
        there = {room_of(module.removeprefix("asyncrevoke.").replace(".", "/")) for module, _ in imported(file)}
        made.setdefault(room, set()).update(there - {room})
    assert made == ROOMS
    below: set[str] = set()
    for room, others in ROOMS.items():
        assert others <= below, f"{room} imports what is not below it"
        below.add(room)


def test_every_room_is_told() -> None:
    """A newcomer finds each room in ARCHITECTURE.md."""
    text = (PACKAGE.parents[1] / "ARCHITECTURE.md").read_text()
    for room in ROOMS:
        assert f"`{room.removeprefix('adapters/')}" in text, room


def test_from_the_adapters_up_public_names_are_enough() -> None:
    """Adapters and all above stand on what anybody can use."""
    for file in sources():
        if file.relative_to(PACKAGE).parts[0].removesuffix(".py") in ("_core", "_streams", "_registry", "lowlevel"):
            continue
        for module, names in imported(file):
            known = file.name == "answers.py" and module.startswith(
                "asyncrevoke._core."
            )  # which hands on what is there
            assert known or not any(part.startswith("_") for part in [*module.split("."), *names]), f"{file}: {module}"
        nodes = list(ast.walk(ast.parse(file.read_text())))
        own = {each.attr for each in nodes if isinstance(each, ast.Attribute) and isinstance(each.ctx, ast.Store)}
        own |= {each.name for each in nodes if isinstance(each, ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef)}
        own |= {ast.unparse(each.target) for each in nodes if isinstance(each, ast.AnnAssign)}
        for node in nodes:
            if isinstance(node, ast.Attribute) and node.attr.startswith("_") and not node.attr.startswith("__"):
                assert node.attr in own | {"_exit", "_current_frames", "_getframe"}, (
                    f"{file}: {node.attr} is not its own"
                )


def test_only_one_file_tells_asyncio_from_trio() -> None:
    """`_core/loop` alone knows that there is more than one kind of loop; but the checker cancels as asyncio does."""
    for file in sources():
        if file.name not in ("loop.py", "testing.py"):
            assert "import trio" not in file.read_text()
            assert "asyncio.current_task" not in file.read_text()


#: What `asyncrevoke` hands on. Nothing is taken from this list without a word in the changelog.
PUBLIC = """
    Event Face FdStream Key Name OffLoop Owner Place PtySession PtyStream Registry Report Revocation Revokable
    RevokableAttribute RevokableStream RevokeDeadlock RevokedError SerialDevice SerialStream Shared SharedStream Tty Use
    User Watch answer answers follow_device handle_of in_loop log_events observe off_loop open_device open_pty open_serial places
    revoke_all revoke_threadsafe serial_device start_pty stop_using_threadsafe watch_devices
"""


def imported_by(program: str) -> set[str]:
    """The modules that are there when a program has ended."""
    program = f"import atexit, sys; atexit.register(lambda: print(*sys.modules, file=sys.stderr)); {program}"
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    return set(done.stderr.split())


def test_public_names_can_be_imported_from_the_top() -> None:
    """All of them are there, listed, taken by a star, and the same to a type checker."""
    assert {name for name in dir(asyncrevoke) if name[0] != "_"} >= set(PUBLIC.split())
    taken: dict[str, object] = {}
    exec("from asyncrevoke import *", taken)
    assert set(taken) - {"__builtins__"} == set(PUBLIC.split())
    tree = ast.parse((PACKAGE / "__init__.py").read_text())
    (typed,) = [node.body for node in tree.body if isinstance(node, ast.If)]
    told = {alias.name: each.module for each in typed if isinstance(each, ast.ImportFrom) for alias in each.names}
    assert told == {**vars(asyncrevoke)["_HOMES"], "answers": None}
    assert set(told) == set(PUBLIC.split())


def test_what_is_not_used_is_not_imported() -> None:
    """The package costs a program next to nothing until it uses a name; the command line's help needs no loop."""
    ours = {name for name in imported_by("import asyncrevoke") if name.startswith(("asyncrevoke", "anyio", "asyncio"))}
    assert ours == {"asyncrevoke", "asyncrevoke._program"}
    one = imported_by("from asyncrevoke import Revokable")
    assert "asyncrevoke._core.revokable" in one
    own = one - imported_by("import asyncio, anyio")  # which import more from one Python to the next
    assert not own & {"asyncrevoke._registry", "asyncrevoke._streams", "asyncrevoke.adapters", "pathlib"}
    assert not imported_by("from asyncrevoke.console import cli; cli.main(['--help'])") & {"anyio", "asyncio"}
    asks = imported_by("from asyncrevoke.console import commands")
    assert not asks & {"asyncrevoke.adapters.pty", "asyncrevoke.adapters.serial", "asyncrevoke.console.server"}
