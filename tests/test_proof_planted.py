"""The faults that are planted fit today's source, and whoever plants them tells a fault that is found from one that is not."""

import pathlib
import re
from collections.abc import Iterable

import planted
import pytest


@pytest.fixture
def tiny(tmp_path: pathlib.Path) -> pathlib.Path:
    """A tree of one function and one test, which does not look at everything."""
    for name, text in {
        "src/asyncrevoke/tiny.py": "def larger(one: int, other: int) -> int:\n    return max(one, other) + 0\n",
        "tests/test_tiny.py": "from asyncrevoke.tiny import larger\n\ndef test_larger():\n    assert larger(1, 2) == 2\n",
    }.items():
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_text(text)
    (tmp_path / "src/asyncrevoke/__init__.py").touch()
    return tmp_path


def _fault(name: str, old: str, new: str, test: str = "tests/test_tiny.py", equivalent: str = "") -> planted.Fault:
    return planted.Fault(name, "tiny", "tiny.py", old, new, (test,), equivalent)


def test_each_fault_fits_the_source() -> None:
    """Its text is there once, what comes of it is Python, and the tests that it names exist."""
    found = planted.faults()
    assert len(found) >= planted.FEWEST
    for fault in found:
        fault.plant(planted.ROOT)
        assert fault.tests
        assert all((planted.ROOT / test).is_file() for test in fault.tests), fault


def test_each_part_of_the_package_has_faults() -> None:
    """No part is left out, and no two faults have one name."""
    found = planted.faults()
    assert {each.room for each in found} == {"core", "streams", "adapters", "control", "console", "asgi", "cluster"}
    assert len({(each.room, each.name) for each in found}) == len(found)


def test_a_fault_is_killed_or_survives(tiny: pathlib.Path) -> None:
    """The tests of the tree tell one from the other, and the tree itself is never changed."""
    before = (tiny / "src/asyncrevoke/tiny.py").read_text()
    found = [_fault("found", "max", "min"), _fault("not found", "max(one, other)", "other")]
    verdicts = {each.fault.name: each.what for each in planted.judge(found, tiny, processes=1)}
    assert verdicts == {"found": "killed", "not found": "survived"}
    assert (tiny / "src/asyncrevoke/tiny.py").read_text() == before


def test_each_verdict_is_told_from_the_others(tiny: pathlib.Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """What is no fault, or has no tests that pass without it, proves nothing; nor does an excuse that is not true."""

    def run(copy: planted.Copy, tests: Iterable[str]) -> planted.Run:
        fails = "tests/test_failing.py" in tests or "min" in (copy.place / "src/asyncrevoke/tiny.py").read_text()
        return planted.Run("failed" if fails else "passed", "", 0.0)

    monkeypatch.setattr(planted.Copy, "run", run)
    found = [
        _fault("excused", "+ 0", "- 0", equivalent="nothing is added"),
        _fault("excused wrongly", "max", "min", equivalent="no other number is smaller"),
        _fault("of another source", "sorted", "max"),
        _fault("twice there", "other", "one"),
        _fault("no Python", "max(", "max"),
        _fault("without tests that pass", "+ 0", "- 0", "tests/test_failing.py"),
    ]
    verdicts = {each.fault.name: each.what for each in planted.judge(found, tiny, processes=1)}
    assert verdicts == {"excused": "equivalent", **dict.fromkeys([each.name for each in found[1:]], "unsuitable")}


def test_a_fault_that_hangs_is_killed(tiny: pathlib.Path) -> None:
    """A run that does not end is ended, with all that it has started."""
    with planted.copies(tiny, 1) as trees:
        hangs = "import signal\n\nsignal.pause()\n"

        def run(copy: planted.Copy, source: str) -> planted.Run:
            with copy.changed("tiny.py", source):
                return copy.run(["tests/test_tiny.py"], seconds=2.0)

        assert [run.outcome for _, run in trees.map(run, [hangs])] == ["hung"]


@pytest.mark.parametrize(("verdict", "status"), [("killed", 0), ("equivalent", 0), ("survived", 1), ("unsuitable", 1)])
def test_the_command_fails_where_a_fault_survives(
    verdict: str, status: int, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """What is not killed has to be explained."""
    monkeypatch.setattr(planted, "judge", lambda found, **_: (planted.Verdict(each, verdict, "") for each in found))
    assert planted.main([]) == status
    assert re.search(rf"faults: .*[1-9]\d* {verdict}", capsys.readouterr().out)


def test_the_command_fails_where_there_is_nothing_to_check(monkeypatch: pytest.MonkeyPatch) -> None:
    """A pattern that means no fault, or too few faults, prove nothing."""
    assert planted.main(["--only", "there is no such fault"])
    few = planted.faults()[: planted.FEWEST - 1]
    monkeypatch.setattr(planted, "faults", lambda: few)
    monkeypatch.setattr(planted, "judge", lambda found, **_: (planted.Verdict(each, "killed", "") for each in found))
    assert planted.main([])
