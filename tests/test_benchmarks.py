"""The benchmarks run; what they find is not tested, as it is the machine's as much as ours."""

import importlib.util
import os
import pathlib
import re
import shutil
import subprocess
import sys
from xml.etree import ElementTree as ET

import pytest

CONTESTS = {
    "instructions",
    "protocol, RX of 4 KiB",
    "echo of 16 B",
    "echo of 1 KiB",
    "TX of 4 KiB",
    "RX of 4 KiB",
    "records of 16 B",
    "delivery of 4 KiB, readers",
    "bytes of an open port",
    "descriptors of an open port",
    "10,000 receives taken away",
    "3,900 ptys taken away",
    "10,000 uses taken away",
    "open and revoke, per handle",
    "an open handle",
    "console server, 64-byte lines, clients",
    "longest turn, 10,000 operations",
    "start",
}
HERE = pathlib.Path(__file__).parents[1]


def printed(script: str, *args: str, **env: str) -> list[str]:
    """The lines that a benchmark prints: it ends well, without a word on stderr."""
    command = [sys.executable, str(HERE / "benchmarks" / script), *args]
    run = subprocess.run(command, capture_output=True, text=True, timeout=100, check=False, env=os.environ | env)
    assert (run.returncode, run.stderr) == (0, "")
    return run.stdout.splitlines()


@pytest.fixture(scope="module")
def rows(tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    """All rows of `performance --smoke`, where valgrind is not: it would take most of the time."""
    folder = tmp_path_factory.mktemp("bin")
    for program in "head", "ser2net":
        if path := shutil.which(program):
            (folder / program).symlink_to(path)
    _machine, _head, *lines = printed("performance", "--smoke", PATH=str(folder))
    return {re.split("  +| [0-9.-]+ not measured", line)[0]: line for line in lines}


def test_performance_measures_all_there_is(rows: dict[str, str]) -> None:
    """A row of `performance` is measured; or it says what to install, and does not stop the others."""
    assert {name.split(": ")[0] for name in rows} == CONTESTS
    missing = {line.partition("not measured: ")[2] for line in rows.values() if ".." not in line}
    assert "valgrind is not installed: apt-get install valgrind" in missing
    assert {reason.split()[0] for reason in missing} <= {"valgrind", "ser2net", "pyserial-asyncio-fast"}


def test_performance_counts_what_it_says(rows: dict[str, str]) -> None:
    """The program that valgrind counts does the operations of each contender, and says nothing."""
    names = [each for name in rows if name.startswith("instructions: ") for each in name[14:].split(" / ")]
    assert len(names) == 36
    assert printed("performance/counted.py", "20", *names) == []


def test_performance_of_the_docs_has_each_row(rows: dict[str, str]) -> None:
    """docs/performance.md has a figure for each row that there is, and the plot is an image."""
    page = (HERE / "docs" / "performance.md").read_text()
    assert {line.split(" | ")[0][2:] for line in page.splitlines() if line.startswith("| ")} - {"what"} == rows.keys()
    assert ET.parse(HERE / "docs" / "performance.svg").getroot().tag.endswith("svg")


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


def test_control_load_prints_a_row_for_each_request() -> None:
    """`control_load.py --quick` runs without a word on stderr, and says how long requests and events took."""
    shown = printed("control_load.py", "--quick")
    _head, _columns, *lines, _lag, memory = shown
    assert [line.split()[0] for line in lines] == ["list", "revoke", "event", "lag"]
    assert memory.startswith("memory ")


def test_web_sessions_are_counted_under_each_server() -> None:
    """`web_sessions.py --quick` closes what is revoked under each server, and nothing is lost or passes, unlike by hand."""
    _head, _columns, *lines = printed("web_sessions.py", "--quick")
    assert [line[:36].rstrip() for line in lines] == [
        f"{server}, {way}"
        for server in ("uvicorn, websockets", "uvicorn, wsproto", "hypercorn")
        for way in ("asyncrevoke", "by hand")
    ]
    for line in lines[::2]:
        assert line[36:].split()[:4] == ["72", "72", "0", "0"]


def test_cluster_prints_a_row_for_each_revocation() -> None:
    """`cluster.py` revokes on three hosts, all of which tell that it is done, and says how long that took."""
    pytest.importorskip("redis")
    for engine in "redis", "sqlite":
        _head, floor, *rows = printed("cluster.py", engine, "--loop", "asyncio", "--rounds", "2")
        if "not measured" in floor:
            continue
        assert floor.split()[:3] == [engine, "asyncio", "floor"]
        assert [row[20:42].rstrip() for row in rows] == [
            f"{what}: {until}" for what in ("one token", "a user", "everything") for until in ("ended", "report")
        ]


def test_cluster_simulation_tells_where_it_breaks() -> None:
    """`cluster_simulation.py --quick` measures one host, many hosts and a long log, and makes the sum."""
    pytest.importorskip("redis")
    shown = printed("cluster_simulation.py", "--quick")
    firsts = [line.partition(":")[0] for line in shown if not line.startswith(" ")]
    hosts = ["1,000 sessions, idle", "1,000 sessions taken", "10 idle hosts", "1,000 hosts"]
    assert firsts == (["hosts are not measured"] if "not measured" in shown[0] else hosts) + ["a log of 10,000 entries"]


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
    """`moves.py` counts the calls of a byte and of a revocation, and how often they go to another file: 10 times, and 187."""
    shown = printed("moves.py")
    byte, revocation = (line.split() for line in shown[1:])
    assert int(byte[-2]) <= 10
    assert int(revocation[-2]) <= 188  # AnyIO keeps the tasks of a group in a set, in no order


@pytest.mark.skipif(not importlib.util.find_spec("test.test_asyncio"), reason="this Python came without its tests")
def test_asyncios_own_tests_pass_where_each_pair_is_wrapped() -> None:
    """`peers_own_tests.py --offline` runs CPython's tests of its streams; what does not pass has a reason."""
    count, *failed = printed("peers_own_tests.py", "--offline")
    passed, of = (int(word) for word in count.split() if word.isdigit())
    assert passed + len(failed) == of >= 67
