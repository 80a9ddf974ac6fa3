"""The parts of proof/, each in a form so short that every test run has time for it. The others have tests of their own."""

import asyncio
import contextlib
import importlib
import logging
import pathlib
import random
import re
import subprocess
import sys
import types
from collections.abc import AsyncIterator, Awaitable, Callable
from xml.etree import ElementTree as ET

import model
import pytest
import soak
import versions

HERE = pathlib.Path(__file__).parents[1]
#: What `python proof/model/model.py` searches besides: it takes a minute more, and says nothing of a change of our code.
LONG = {"-DSLICES", *(f"-DFAULT={number}" for number in model.FAULTS if number > 1)}


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
    """`fuzz.py` feeds each part some hundred times, gets several answers from each, and finds nothing wrong."""
    _head, *lines = printed("fuzz/fuzz.py", "--rounds", "200")
    rows = {row[0]: [int(each.replace(",", "")) for each in (row[1], row[2], row[5])] for row in map(str.split, lines)}
    assert rows.keys() == {"control", "configuration", "urls", "scopes", "tokens", "telnet"}
    for rounds, answers, wrong in rows.values():
        assert rounds == 200
        assert answers >= 5
        assert wrong == 0


@pytest.mark.parametrize(
    ("planted", "told"),
    [
        ("escapes", "escaped: KeyError"),
        ("hangs", "hangs"),
        ("leaks", "descriptors, tasks, threads"),
        ("logs", "logged: planted"),
    ],
)
def test_fuzz_finds_what_is_planted(planted: str, told: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """An error that is not documented, a round without end, a task that stays, and an error in the log are found."""
    monkeypatch.syspath_prepend(HERE / "proof" / "fuzz")
    fuzz = importlib.import_module("fuzz")
    left: list[asyncio.Task[bool]] = []

    @contextlib.asynccontextmanager
    async def answers() -> AsyncIterator[Callable[[random.Random], Awaitable[list[str]]]]:
        async def one(rng: random.Random) -> list[str]:
            if rng.random() < 0.5:
                match planted:
                    case "escapes":
                        raise KeyError(planted)
                    case "hangs":
                        await asyncio.Event().wait()
                    case "leaks":
                        left.append(asyncio.create_task(asyncio.Event().wait()))
                    case "logs":
                        logging.getLogger("asyncrevoke").error("planted")
            return ["fine"]

        yield one
        for task in left:
            task.cancel()

    monkeypatch.setitem(sys.modules, "planted", types.SimpleNamespace(answers=answers))
    monkeypatch.setattr(fuzz, "LIMIT", 0.05)
    monkeypatch.setattr(sys, "unraisablehook", sys.unraisablehook)
    found = asyncio.run(fuzz.feed("planted", 20, 1))
    assert any(told in each for each in found.wrong), found


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


def test_every_order_is_counted() -> None:
    """`orders.py` tells how many schedules each scenario has in each room, and that all of them together are more than none."""
    *rows, total = printed("orders.py", "shared_child or parent_and_child or beside_a_leaving", "--deviations", "1")
    assert {row.split("::")[0].split("/")[-1] for row in rows} == {
        "test_interleavings.py",
        "test_entry_interleavings.py",
        "test_cluster_interleavings.py",
    }
    counts = [int(row.split()[0]) for row in rows]
    assert min(counts) > 0
    assert total.split() == [f"{sum(counts):,}", "schedules", "of", str(len(rows)), "scenarios,", "1", "deviations"]


@pytest.mark.parametrize(
    "words",
    [
        "orders.py no_such_scenario",
        "fuzz/fuzz.py urls --rounds 0",
        "faults.py no_such_adapter",
        "versions.py --pythons 9.9",
        "cluster_disasters.py --engines",
    ],
)
def test_nothing_to_check_is_a_failure(words: str) -> None:
    """A part that finds nothing to check ends with 1, and says so."""
    script, *args = words.split()
    run = subprocess.run([sys.executable, str(HERE / "proof" / script), *args], capture_output=True, text=True)
    assert run.returncode == 1
    assert "nothing was" in run.stdout


def test_soak_counts_what_there_is(tmp_path: pathlib.Path) -> None:
    """`soak.py` takes something of each kind away, and finds as much in the second half as in the first."""
    done, *rows = printed("soak.py", "--minutes", "0.1", "--plot", str(tmp_path / "soak.svg"))
    assert {row[:22].rstrip() for row in rows} == soak.GROWTH.keys()
    assert {row.split()[-1] for row in rows} == {"stays"}
    assert all(kind in done for kind in soak.KINDS)
    assert ET.parse(tmp_path / "soak.svg").getroot().tag.endswith("svg")


@pytest.mark.parametrize("what", soak.GROWTH)
def test_soak_finds_what_grows(what: str) -> None:
    """Of what is a little more each time, and of nothing else, it is said that it grows."""
    samples = [dict.fromkeys(soak.GROWTH, 1000) | {what: 1000 + number} for number in range(100)]
    assert soak.grown(samples) == [what]


def test_versions_are_run_and_counted(monkeypatch: pytest.MonkeyPatch) -> None:
    """A Python is found by its path; a test that passes is told from none and from a failure; floors are those of pyproject."""
    home = pathlib.Path(sys.prefix)
    assert versions.found(sys.executable) == sys.executable
    assert versions.found("9.9") == ""
    good, said = versions.tested(home, "dev", ["tests/test_floors.py", "-k", "every_room"])
    assert good, said
    assert said.startswith("1 passed")
    assert not versions.tested(home, "newest", ["tests/test_floors.py", "-k", "no_such_test"])[0]
    assert "anyio==4.16" in versions.floors()
    monkeypatch.setitem(versions.WAYS, "newest", (["-c", "raise SystemExit"], {}))
    assert not versions.tested(home, "newest", ["tests/test_floors.py"])[0]
