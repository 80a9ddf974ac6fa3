"""The site, as a reader's browser has it: it is built without a warning, and no link in it is dead."""

import html.parser
import pathlib
import subprocess
import sys
import urllib.parse

import pytest

pytest.importorskip("furo", reason="needs the extra docs")
pytest.importorskip("myst_parser", reason="needs the extra docs")

ROOT = pathlib.Path(__file__).parent.parent


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> pathlib.Path:
    """The site, built as CONTRIBUTING.md says, into a folder of the tests."""
    folder = tmp_path_factory.mktemp("site")
    build = [sys.executable, "-m", "sphinx", "-q", "-W", "--keep-going", "-b", "html", "docs", str(folder / "site")]
    done = subprocess.run(build, cwd=ROOT, capture_output=True, text=True, timeout=110)
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
