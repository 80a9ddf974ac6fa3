"""The map of the RFC: each row of it names a test, and each test that it names is there."""

import ast
import pathlib
import re

TESTS = pathlib.Path(__file__).parent
TEXT = (TESTS.parent / "docs" / "rfc-map.md").read_text()


def rows(section: str) -> list[str]:
    """The rows of a section's table, without its head."""
    part = TEXT.partition(f"## {section}\n")[2].partition("\n## ")[0]
    return [line for line in part.splitlines() if line.startswith("|")][2:]


def test_every_row_names_a_test() -> None:
    """Of structures, functions and spots; and there are eight spots."""
    assert len(rows("The eight ugly spots")) == 8
    for number, row in enumerate(rows("The eight ugly spots"), 1):
        assert row.startswith(f"| {number} |")
    for row in [*rows("Structures"), *rows("Functions"), *rows("The eight ugly spots")]:
        assert re.search(r"`test_\w+\.py::test_\w+` \|$|`test_\w+\.py::test_\w+`,", row), row


def test_all_that_it_names_is_there() -> None:
    """Tests by their names, and files by their links."""
    for file, name in re.findall(r"`(test_\w+\.py)::(\w+)`", TEXT):
        tree = ast.parse(next(TESTS.rglob(file)).read_text())
        defined = {node.name for node in tree.body if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef)}
        assert name in defined, f"{file} has no {name}"
    for link in re.findall(r"\]\(([^)#]+)\)", TEXT):
        assert (TESTS.parent / "docs" / link).exists(), link
