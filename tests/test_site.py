"""The site, as a reader's browser has it: it is built without a warning, and no link in it is dead."""

import ast
import html.parser
import importlib
import pathlib
import subprocess
import sys
import urllib.parse
from collections.abc import Iterator

import pytest

pytest.importorskip("furo", reason="needs the extra docs")
pytest.importorskip("myst_parser", reason="needs the extra docs")

from sphinx.util.inventory import InventoryFile

import asyncrevoke

ROOT = pathlib.Path(__file__).parent.parent
PACKAGE = ROOT / "src" / "asyncrevoke"


pytestmark = pytest.mark.timeout(300)  # the site is built before the first test


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> pathlib.Path:
    """The site, built as CONTRIBUTING.md says, into a folder of the tests."""
    folder = tmp_path_factory.mktemp("site")
    build = [sys.executable, "-m", "sphinx", "-q", "-W", "--keep-going", "-b", "html", "docs", str(folder / "site")]
    done = subprocess.run(build, cwd=ROOT, capture_output=True, text=True, timeout=280)
    assert done.returncode == 0, done.stderr
    return folder / "site"


class _Page(html.parser.HTMLParser):
    """The targets and the links of a page."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.targets: set[str] = set()
        self.links: list[str] = []
        self.feed(text)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:  # noqa: ARG002  # its signature
        for name, value in attrs:
            if name == "id" and value:
                self.targets.add(value)
            elif name in {"href", "src"} and value:
                self.links.append(value)


def test_no_link_is_dead(site: pathlib.Path) -> None:
    """Each link that stays in the site leads to a file that is there, and to a target that it has."""
    pages = {path: _Page(path.read_text()) for path in site.rglob("*.html")}
    dead, followed = [], 0
    for path, page in pages.items():
        for link in page.links:
            parts = urllib.parse.urlsplit(link)
            if parts.scheme or link == "#":
                continue
            followed += 1
            file = (path.parent / urllib.parse.unquote(parts.path)).resolve() if parts.path else path
            anchor = urllib.parse.unquote(parts.fragment)
            if not file.is_file() or (anchor and file in pages and anchor not in pages[file].targets):
                dead.append(f"{path.relative_to(site)}: {link}")
    assert followed > 500
    assert dead == []


def _public_modules() -> Iterator[str]:
    """The modules that users import from. The console is a program."""
    for folder in PACKAGE, PACKAGE / "adapters", PACKAGE / "compat":
        for path in folder.iterdir():
            package = path / "__init__.py"
            if path.stem[0] != "_" and path.name != "console" and (path.suffix == ".py" or package.exists()):
                yield ".".join(path.relative_to(PACKAGE.parent).with_suffix("").parts)


def _public_names(module: str) -> Iterator[str]:
    """What a module defines or hands on: classes, functions, and constants in capitals."""
    path = ROOT.joinpath("src", *module.split("."))
    path = path / "__init__.py" if path.is_dir() else path.with_suffix(".py")
    for node in ast.parse(path.read_text()).body:
        match node:
            case ast.ClassDef() | ast.FunctionDef() | ast.AsyncFunctionDef():
                names = [node.name]
            case ast.ImportFrom():
                names = [each.asname for each in node.names if each.asname]
            case ast.Assign() | ast.AnnAssign():
                assigned = node.targets if isinstance(node, ast.Assign) else [node.target]
                names = [each.id for each in assigned if isinstance(each, ast.Name) and each.id[1:].isupper()]
            case _:
                names = []
        yield from (name for name in names if name[0] != "_")


def _found(name: str) -> object:
    module, _, last = name.rpartition(".")
    return getattr(importlib.import_module(module), last)


def test_every_public_name_is_in_the_reference(site: pathlib.Path) -> None:
    """Whatever the package and its public modules give to users is on a page, by the name that a user imports it by."""
    pytest.importorskip("pyfuse3", reason="needs the extra fuse: each public module is imported")
    with (site / "objects.inv").open("rb") as file:
        inventory = InventoryFile.load(file, "", lambda *parts: "/".join(parts))
    told = {name for kind in ("class", "exception", "function", "data") for name in inventory[f"py:{kind}"]}
    shown = {id(_found(name)) for name in told}
    public = {f"{module}.{name}" for module in _public_modules() for name in _public_names(module)}
    public |= {f"asyncrevoke.{name}" for name in vars(asyncrevoke)["__all__"] if name != "answers"}
    assert len(public) > 150
    assert sorted(name for name in public if name not in told and id(_found(name)) not in shown) == []
