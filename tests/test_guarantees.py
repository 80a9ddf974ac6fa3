"""The page of guarantees: what it names is there, and nothing is missing."""

import ast
import pathlib
import re

import pytest

HERE = pathlib.Path(__file__).parents[1]
PAGE = (HERE / "docs" / "guarantees.md").read_text()
ROWS = [[cell.strip() for cell in line.strip("|").split("|")] for line in PAGE.splitlines() if line.startswith("| ")]
#: By tag, the tests that its row names.
PROOFS = {row[0]: re.findall(r"(tests/[\w/]+\.py)::(\w+)", row[-1]) for row in ROWS if re.fullmatch(r"[IC]\d+", row[0])}
#: The figures: by part, the row.
FIGURES = {row[0]: row[1:] for row in ROWS if len(row) == 5}


def functions(path: str) -> dict[str, str]:
    """The functions of a file, each with its decorators and its text."""
    tree = ast.parse((HERE / path).read_text())
    return {
        node.name: ast.unparse(node)
        for node in ast.walk(tree)
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef)
    }


def stated(path: str) -> set[str]:
    """The tags of the promises that a file states on its top."""
    return set(re.findall(r"^- ([IC]\d+) ", (HERE / path).read_text(), re.MULTILINE))


def test_each_promise_has_a_row() -> None:
    """The page has those of the protocol and of the cluster, and no other."""
    promises = stated("src/asyncrevoke/_core/revokable.py") | stated("src/asyncrevoke/cluster/view.py")
    assert len(promises) == 16
    assert PROOFS.keys() == promises


@pytest.mark.parametrize("tag", PROOFS)
def test_each_proof_of_a_promise_is_one(tag: str) -> None:
    """A test that a row names is there, and says itself which promise it holds."""
    assert PROOFS[tag]
    for path, name in PROOFS[tag]:
        assert re.search(rf"\b{tag}\b", functions(path)[name]), f"{path}::{name} does not say {tag}"


def test_all_that_is_named_is_there() -> None:
    """Each file, test and command of the page can be found."""
    named = re.findall(r"`(?:python )?((?:tests|proof|benchmarks|src|docs)/[\w/.]+?\.\w+)(?:::(\w+))?[ `]", PAGE)
    assert len(named) > 30
    for path, name in named:
        assert (HERE / path).is_file(), path
        assert not name or name in functions(path), f"{path}::{name}"
    for link in re.findall(r"\]\(([^):#]+)\)", PAGE):
        assert (HERE / "docs" / link).exists(), link


def test_each_part_has_its_figures() -> None:
    """All that is in proof/ has a row with a command, and a figure that is not zero."""
    commands = " ".join(row[0] for row in FIGURES.values())
    for each in (HERE / "proof").iterdir():
        if each.suffix == ".py" or list(each.glob("*.py")):
            assert f"proof/{each.name}" in commands, f"{each.name} has no row among the figures"
    for part, (_command, figure, made, _needs) in FIGURES.items():
        if part not in ("part", "---"):
            assert re.search(r"[1-9]", figure), f"{part} has no figure"
            assert re.fullmatch(r"\d{4}-\d\d-\d\d", made), f"{part} has no date"
