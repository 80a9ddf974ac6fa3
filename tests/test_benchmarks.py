"""The benchmarks run; what they find is not tested, as it is the machine's as much as ours."""

import importlib.util
import pathlib
import subprocess
import sys

import pytest

ROWS = [
    "FdStream.receive, data ready, asyncio / by hand",
    "FdStream.receive, parked, asyncio / by hand",
    "FdStream.receive, data ready, uvloop / by hand",
    "FdStream.receive, parked, uvloop / by hand",
    "using(), parks once / CancelScope",
    "using(), does not suspend / CancelScope",
    "revoke 100 receives / cancel and close",
    "revoke 100 uses on 1 nodes / CancelScope.cancel",
    "revoke 100 uses on 100 nodes / CancelScope.cancel",
    "revoke 20 ptys / cancel and close",
    "open and revoke, per handle, 1000 / 10",
    "bytes per open handle",
]


def printed(script: str, *args: str) -> list[str]:
    """The lines that a benchmark prints: it ends well, without a word on stderr."""
    path = pathlib.Path(__file__).parents[1] / "benchmarks" / script
    run = subprocess.run([sys.executable, path, *args], capture_output=True, text=True, timeout=100, check=False)
    assert (run.returncode, run.stderr) == (0, "")
    return run.stdout.splitlines()


def test_ratios_prints_a_row_for_each_aim() -> None:
    """`ratios.py --quick` runs without a word on stderr, and each row has its aim, its median and its spread."""
    shown = printed("ratios.py", "--quick")
    _versions, _head, *lines = shown
    assert [line[:60].rstrip() for line in lines] == ROWS
    assert all(".." in line[60:] for line in lines)


def test_lag_prints_a_row_for_each_way_of_closing() -> None:
    """`lag.py` runs without a word on stderr, and says how long each took and how late the loop was."""
    shown = printed("lag.py")
    _head, *lines = shown
    assert [line[:30].rstrip() for line in lines] == [
        "asyncrevoke, descriptor",
        "asyncrevoke, pyserial-asyncio",
        "pyserial-asyncio, abort()",
    ]
    assert all(line.endswith(" ms") for line in lines)


def test_fuzz_finds_nothing() -> None:
    """`fuzz_control.py` feeds a control server with some thousand inputs, checks all answers, and prints what it did."""
    shown = printed("fuzz_control.py", "3000")
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


def test_control_load_prints_a_row_for_each_request() -> None:
    """`control_load.py --quick` runs without a word on stderr, and says how long requests and events took."""
    shown = printed("control_load.py", "--quick")
    _head, _columns, *lines, _lag, memory = shown
    assert [line.split()[0] for line in lines] == ["list", "revoke", "event", "lag"]
    assert memory.startswith("memory ")


def test_remove_entries_prints_a_row_for_each_size() -> None:
    """`remove_entries.py --quick` runs without a word on stderr, and says what removal and operations cost."""
    shown = printed("remove_entries.py", "--quick")
    _head, *lines = shown
    assert [line[:38].strip() for line in lines] == [
        "100 entries, each open once",
        "1000 entries, each open once",
        "10000 entries, each open once",
        "read of a removable entry / its handle",
        "read of a permanent entry / its handle",
    ]


def test_moves_counts_both_ways() -> None:
    """`moves.py` counts the calls of a byte and of a revocation, and how often they go to another file: 10 times, and 155."""
    shown = printed("moves.py")
    byte, revocation = (line.split() for line in shown[1:])
    assert int(byte[-2]) <= 10
    assert int(revocation[-2]) <= 156  # AnyIO keeps the tasks of a group in a set, in no order


@pytest.mark.skipif(not importlib.util.find_spec("test.test_asyncio"), reason="this Python came without its tests")
def test_asyncios_own_tests_pass_where_each_pair_is_wrapped() -> None:
    """`peers_own_tests.py --offline` runs CPython's tests of its streams; what does not pass has a reason."""
    count, *failed = printed("peers_own_tests.py", "--offline")
    passed, of = (int(word) for word in count.split() if word.isdigit())
    assert passed + len(failed) == of >= 67


@pytest.mark.parametrize(
    "case", ["fd", "fd parked", "fd record", "serial parked", "drop-in", "drop-in parked", "wrapped", "using"]
)
def test_instructions_runs_what_it_counts(case: str) -> None:
    """`instructions.py --run CASE COUNT` does the operations, and says nothing."""
    assert printed("instructions.py", "--run", case, "300") == []
