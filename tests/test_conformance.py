"""The scripts that compare libraries, on our rows: what the tables in docs/conformance.md say of us holds."""

import functools
import json
import pathlib
import subprocess
import sys
from typing import Any

import pytest

from ports import may_hang_up

BENCHMARKS = pathlib.Path(__file__).parents[1] / "benchmarks"
SERIAL = ["open_serial", "open_serial, pyserial-asyncio", "open_serial, serialx", "open_serial_connection"]
ROWS = [*SERIAL, "FdStream"]
Row = dict[str, str]


def run(script: str, *options: str) -> str:
    done = subprocess.run(
        [sys.executable, BENCHMARKS / script, *options], capture_output=True, text=True, timeout=100, check=False
    )
    assert (done.returncode, done.stderr) == (0, "")
    return done.stdout


@functools.cache
def found() -> dict[str, tuple[Row, list[str]]]:
    """By row: what was told in each cell, and the verdicts. All of it is measured once."""
    rows: dict[str, Any] = json.loads(run("conformance.py", "--ours", "--json"))
    assert list(rows) == ROWS
    return rows


@pytest.mark.parametrize("row", ROWS)
def test_nothing_hangs_spins_or_lies(row: str) -> None:
    """No operation hangs or spins, none reports success for lost data, and the three endings are told apart."""
    assert found()[row][1] == ["no", "no", "no", "yes"]


@pytest.mark.parametrize("event", "VMCR")
@pytest.mark.parametrize("row", ROWS)
def test_each_ending_has_its_error(row: str, event: str) -> None:
    """Pending and later alike: a ClosedResourceError if it was closed here, else RevokedError with the reason."""
    if event == "V" and not may_hang_up():
        pytest.skip("TIOCVHANGUP needs CAP_SYS_ADMIN")
    revoked = "RevokedError" if row == "FdStream" else "SerialRevokedError"
    closed = "ConnectionClosedError" if row == "open_serial_connection" else "ClosedResourceError"
    error = {"C": f"{closed}: ", "R": f"{revoked}: needed elsewhere"}.get(event, f"{revoked}: unplugged: ")
    errors = [error, error]
    if row == "FdStream" and event in "VM":  # a bare descriptor's errors are those of AnyIO
        errors = ["EndOfStream", "BrokenResourceError: "]
    cells = found()[row][0]
    told = [cells[f"read {event}"], cells[f"write {event}"], *cells[f"later {event}"].split(" / ")]
    for each, expected in zip(told, [*errors, errors[0], errors[-1]], strict=False):
        assert each.startswith(expected)


@pytest.mark.parametrize("row", ROWS)
def test_a_second_reader_is_refused_and_a_port_opens_again(row: str) -> None:
    """One reads at a time; closing twice does no harm; a port closed under a reader serves the next; all is sent."""
    cells = found()[row][0]
    busy = "RuntimeError: read() called while" if row == "open_serial_connection" else "BusyResourceError: "
    assert cells["second -"].startswith(busy)
    assert (cells["twice M"], cells["reopen -"], cells["parts -"]) == ("None", "b'new'", "None")


def test_it_prints_a_table() -> None:
    """For people, it prints a line of verdicts and one in each table for every row that was asked for."""
    printed = run("conformance.py", "--ours", "--only", "FdStream")
    assert "| FdStream | no | no | no | yes |" in printed
    assert printed.count("| FdStream |") == 9


@functools.cache
def of_programs() -> Row:
    """What is told when the terminal of a program ends."""
    rows: dict[str, Row] = json.loads(run("programs.py", "--ours", "--json"))
    return rows["start_pty"]


@pytest.mark.parametrize(
    ("events", "read", "write"),
    [
        ("DL", "EndOfStream", "BrokenResourceError: "),
        ("V", "EndOfStream", "BrokenResourceError: "),
        ("C", "ClosedResourceError: ", "ClosedResourceError: "),
        ("R", "RevokedError: needed elsewhere", "RevokedError: needed elsewhere"),
    ],
)
def test_each_ending_of_a_programs_terminal_has_its_error(events: str, read: str, write: str) -> None:
    """Pending and later alike; a program that lives on without its terminal makes no difference."""
    if events == "V" and not may_hang_up():
        pytest.skip("TIOCVHANGUP needs CAP_SYS_ADMIN")
    for event in events:
        cells = of_programs()
        later = cells[f"later {event}"].split(" / ")
        assert [each.startswith(read) for each in (cells[f"read {event}"], later[0])] == [True, True]
        assert [each.startswith(write) for each in (cells[f"write {event}"], later[-1])] == [True, True]


def test_nothing_is_left_of_a_program_when_its_session_was_closed() -> None:
    """However the terminal ended, and even if the program ignores SIGHUP: a close ends it, and another one starts."""
    cells = of_programs()
    left = {cell: told.rpartition(": ")[2] for cell, told in cells.items() if cell.startswith("left")}
    assert set(left.values()) == {"nothing"}
    assert len(left) == (6 if may_hang_up() else 4)
    assert cells["reopen -"] == "None"


@pytest.mark.skipif(not may_hang_up(), reason="TIOCVHANGUP needs CAP_SYS_ADMIN")
def test_what_is_told_of_programs_is_on_the_page() -> None:
    """For people, it prints one line in each table for every row that was asked for. The page has those."""
    lines = [line for line in run("programs.py", "--ours").splitlines() if line.startswith("| start_pty |")]
    assert len(lines) == 5
    page = (BENCHMARKS.parent / "docs" / "conformance.md").read_text().splitlines()
    assert [line for line in lines[:3] if line not in page] == []


def test_every_kind_of_connection_ends_with_its_token() -> None:
    """The endpoint is cancelled, the call that revokes returns, the connection is closed, and who reads is told."""
    _versions, _, _head, _, *lines = run("web_endings.py", "--ours").strip().splitlines()
    told = {}
    for line in lines:
        kind, way, left, got, *times = (cell.strip() for cell in line.strip("|").split("|"))
        assert (way, "never" in times) == ("asyncrevoke", False)
        assert {*left.split(" / ")} <= {"CancelledError", "RevokedError"}  # the latter if it was about to send
        told[kind] = got
    assert told == {
        "websocket that receives": "code 4401 logged out",
        "websocket that receives, client stalled": "",
        "websocket that sends, client stalled": "",
        "event stream": "`event: revoked`, its end",
        "download, client stalled": "",
        "request that takes long": "status 401",
    }
