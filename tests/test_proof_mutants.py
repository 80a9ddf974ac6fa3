"""The mutants of floors 0 and 1 are changes of today's source, and each reason is about one that there is."""

import pathlib

import mutants
import pytest

SOURCE = '''
def held(one: int = 1, *others: int) -> bool:
    """Whether it is so."""
    assert one is not None
    if one < 2 and not (others or one in others):
        print(f"{one + 1} words")
        raise ValueError
    one += 3
    return True


def __repr__() -> str:
    return "" + ""
'''
FOUND = [
    "if one <= 2 and not (others or one in others):",
    "if one < 2 and (others or one in others):",
    "if one < 2 and not (others and one in others):",
    "if one < 2 and not (others or one not in others):",
    "if one < 2 or not (others or one in others):",
    "if one < 3 and not (others or one in others):",
    "one += 4",
    "one -= 3",
    "pass",
    "pass",
    "return False",
]


@pytest.fixture
def package(tmp_path: pathlib.Path) -> pathlib.Path:
    (tmp_path / "_core").mkdir()
    (tmp_path / "_core/held.py").write_text(SOURCE)
    return tmp_path


def test_each_small_thing_is_changed(package: pathlib.Path) -> None:
    """Operators, numbers, truth values and statements are; words, types and what is for the type checker are not."""
    found = list(mutants.mutants(package, ["_core"]))
    assert sorted(each.name.rpartition(" -> ")[2] for each in found) == sorted(FOUND)
    for each in found:
        compile(each.source, each.file, "exec")
        assert each.source != SOURCE


def test_no_two_mutants_have_one_name() -> None:
    """A reason is about one of them alone, and there are none without a mutant."""
    names = [each.name for each in mutants.mutants()]
    assert len(set(names)) == len(names)
    reasons = mutants.equivalents()
    assert reasons.keys() <= set(names)
    assert all(reasons.values())


@pytest.mark.parametrize(
    ("outcome", "reasons", "status"),
    [
        ("failed", {}, 0),
        ("passed", {}, 1),
        ("passed", {"it": "why"}, 0),
        ("failed", {"it": "why"}, 1),
        ("failed", {"another": "why"}, 1),
    ],
)
def test_the_command_fails_where_a_survivor_is_unexplained(
    outcome: str, reasons: dict[str, str], status: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Nor may a reason be about what a test notices, or what is not there."""
    monkeypatch.setattr(mutants, "run_all", lambda given, _, **__: ((each, outcome == "passed") for each in given))
    monkeypatch.setattr(mutants, "mutants", lambda: [mutants.Mutant("it", "_core/held.py", range(1), SOURCE)])
    monkeypatch.setattr(mutants, "equivalents", lambda: reasons)
    assert mutants.main([]) == status
