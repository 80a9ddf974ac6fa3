"""The parts of proof/, each in a form so short that every test run has time for it. The others have tests of their own."""

import pathlib
import re
import subprocess
import sys

import model
import pytest

HERE = pathlib.Path(__file__).parents[1]
#: What `python proof/model/model.py` searches besides: it takes a minute more, and says nothing of a change of our code.
LONG = {"-DSLICES", *(f"-DFAULT={number}" for number in model.FAULTS if number > 2)}


def printed(script: str, *args: str) -> list[str]:
    """The lines that a part prints: it ends well, without a word on stderr."""
    command = [sys.executable, str(HERE / "proof" / script), *args]
    run = subprocess.run(command, capture_output=True, text=True, timeout=100, check=False)
    assert (run.returncode, run.stderr) == (0, ""), run.stdout
    return run.stdout.splitlines()


@pytest.mark.parametrize(
    "search", [each for each in model.searches() if not LONG & {*each.defines}], ids=lambda each: each.what
)
def test_model_is_searched_whole(search: model.Search) -> None:
    """No state of the protocol breaks an invariant, and what must be found is found."""
    try:
        found = model.run(search)
    except model.UnavailableError as exc:
        pytest.skip(f"the models were not searched: {exc}")
    assert found.right, found


def test_each_planted_fault_is_in_the_model() -> None:
    """The numbers of the program are those of the model, and no other."""
    text = (model.HERE / "protocol.pml").read_text()
    assert {int(number) for number in re.findall(r"FAULT [!=]= (\d+)", text)} == set(model.FAULTS)


def test_fuzz_finds_nothing() -> None:
    """`fuzz/control.py` feeds a control server with some thousand inputs, checks all answers, and prints what it did."""
    shown = printed("fuzz/control.py", "3000")
    words = [line.split()[0] for line in shown]
    assert words == ["inputs", "connections", "seconds", "memory", "descriptors"]


def test_failing_calls_leave_nothing_behind() -> None:
    """`faults.py --quick` lets every fourth call fail of those that each adapter leads to, and finds nothing wrong."""
    _head, *lines = printed("faults.py", "--quick")
    assert {line[:26].rstrip() for line in lines} >= {
        "FdStream",
        "open_pty",
        "start_pty",
        "tty",
        "serial, descriptor",
        "alsa",
        "control",
    }
    assert sum(int(line[26:].split()[0]) for line in lines) > 30
    assert [line for line in lines if not line.endswith(" 0")] == []
