"""The house is built as the map in `__init__` says."""

from __future__ import annotations

import ast
import pathlib
import re

import asyncrevoke

PACKAGE = pathlib.Path(asyncrevoke.__file__).parent
MAP: list[tuple[str, str]] = re.findall(r"^#   (\d)  (\S+)", (PACKAGE / "__init__.py").read_text(), re.MULTILINE)
#: A file's place on the map: lower is further down; files of a folder stand together.
PLACE = {name: len(MAP) - number for number, (_, name) in enumerate(MAP)}
FLOOR = {name: int(floor) for floor, name in MAP}


def place_of(file: pathlib.Path) -> str:
    name = file.relative_to(PACKAGE).as_posix()
    return next(known for known in PLACE if name == known or (known.endswith("/") and name.startswith(known)))


def sources() -> list[pathlib.Path]:
    return [file for file in sorted(PACKAGE.rglob("*.py")) if file.name not in ("__init__.py", "__main__.py")]


def imported(file: pathlib.Path) -> list[tuple[str, list[str]]]:
    """The modules of ours that a file needs when it runs, and the names it takes from them."""
    tree = ast.parse(file.read_text())
    for node in ast.walk(tree):
        if isinstance(node, ast.If) and ast.unparse(node.test) == "TYPE_CHECKING":
            node.body = [ast.Pass()]
    return [
        (("." * node.level) + (node.module or ""), [alias.name for alias in node.names])
        for node in ast.walk(tree)
        if isinstance(node, ast.ImportFrom) and (node.level or (node.module or "").startswith("asyncrevoke"))
    ]


def test_every_file_is_on_the_map() -> None:
    """A newcomer finds each file in the map, and each line of the map in the tree."""
    assert {place_of(file) for file in sources()} == set(PLACE)


def test_imports_go_down_only() -> None:
    """No file needs one that stands above it, or beside it on the map but later."""
    for file in sources():
        for module, names in imported(file):
            if not module.startswith("."):
                continue
            for name in [module.lstrip(".")] if module.strip(".") else names:
                assert PLACE[f"{name}.py"] < PLACE[place_of(file)], f"{file.name} imports {name}"


def test_above_floor_1_public_names_are_enough() -> None:
    """Adapters and all above stand on what anybody can use."""
    for file in sources():
        if FLOOR[place_of(file)] < 2:
            continue
        for module, names in imported(file):
            assert module.startswith("asyncrevoke"), f"{file.name} reaches into {module}"
            assert not any(part.startswith("_") for part in [*module.split("."), *names]), f"{file.name}: {module}"
        own = {
            node.attr
            for node in ast.walk(ast.parse(file.read_text()))
            if isinstance(node, ast.Attribute) and isinstance(node.ctx, ast.Store)
        }
        own |= {
            node.name
            for node in ast.walk(ast.parse(file.read_text()))
            if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef)
        }
        for node in ast.walk(ast.parse(file.read_text())):
            if isinstance(node, ast.Attribute) and node.attr.startswith("_") and not node.attr.startswith("__"):
                assert node.attr in own | {"_exit", "_current_frames"}, (
                    f"{file.name} uses {node.attr}, which it does not define"
                )


#: Adapters that are made of others, and of which.
MADE_OF = {
    "serial": ["serial_ports"],
    "hotplug": ["serial", "serial_ports"],
    "asyncio_streams": ["serial"],
    "entries": ["entry_files"],
    "fuse": ["entries", "entry_files"],
    "mapping": ["exports"],
    "descriptor": ["sleepers", "tty"],
}


def test_adapters_do_not_import_each_other() -> None:
    """Each adapter can be read, and removed, alone; but for those that are made of another."""
    for file in (PACKAGE / "adapters").glob("*.py"):
        for module, _ in imported(file):
            if module.startswith("asyncrevoke.adapters."):
                assert module.split(".")[-1] in MADE_OF.get(file.stem, []), f"{file.name} imports {module}"


def test_only_one_file_tells_asyncio_from_trio() -> None:
    """`_loop` alone knows that there is more than one kind of loop; but the checker cancels as asyncio does."""
    for file in sources():
        if file.name not in ("_loop.py", "testing.py"):
            assert "import trio" not in file.read_text()
            assert "asyncio.current_task" not in file.read_text()


def test_public_names_can_be_imported_from_the_top() -> None:
    """The API contract's names are all there."""
    for name in [
        "Revokable",
        "Revocation",
        "RevokedError",
        "RevokeDeadlock",
        "revoke_all",
        "revoke_threadsafe",
        "RevokableStream",
        "FdStream",
        "Registry",
        "open_pty",
        "answers",
    ]:
        assert hasattr(asyncrevoke, name), name
