"""The contract, C1 to C8, in every order of steps: exhausted up to a number of steps, which is printed.

`pytest tests/cluster/test_search.py` searches as many steps as the planted faults below need, `ASYNCREVOKE_STEPS=2 pytest ...` two
more in each scenario.
"""

import dataclasses
import inspect
import os
import textwrap
from collections.abc import Callable
from typing import Any

import pytest

from asyncrevoke.cluster import revoker
from asyncrevoke.cluster.entry import Entry
from asyncrevoke.cluster.log import Mode
from asyncrevoke.cluster.view import View
from world import Host, Scenario, search

MORE = int(os.environ.get("ASYNCREVOKE_STEPS", "0"))

ALICE = Entry("revoke", ("a",), id="r1")
ALICE_AGAIN = Entry("revoke", ("a",), id="r3")
ALICE_FOR_A_WHILE = Entry("revoke", ("a",), id="x1", expires=2.0)
READMITTED = Entry("readmit", ("a",), id="m1")
EVERYTHING = Entry("revoke", (), id="r2")
ONE_STRICT: tuple[Mode, ...] = ("strict",)

SCENARIOS = {
    "lease": Scenario(
        5, ("strict", "best_effort"), (ALICE,), budget={"ask": 2, "tick": 4, "pause": 1, "again": 1, "login": 1}
    ),
    "late answers": Scenario(7, ONE_STRICT, (ALICE, EVERYTHING), budget={"ask": 4, "tick": 5, "pause": 1, "login": 1}),
    "two wipes": Scenario(9, ("strict", "strict"), (ALICE,), budget={"wipe": 2, "login": 1}),
    "three wipes": Scenario(
        6, ONE_STRICT, (ALICE, EVERYTHING), late=1, budget={"wipe": 3, "login": 1, "init": 1, "join": 1}
    ),
    "cut": Scenario(7, ("strict", "strict"), (ALICE, EVERYTHING), epochs=2, budget={"echo": 1, "cut": 1, "login": 2}),
    "fresh hosts": Scenario(
        8, ONE_STRICT, (ALICE,), late=1, budget={"wipe": 2, "init": 1, "login": 1, "crash": 1, "join": 1}
    ),
    "copies": Scenario(
        7, ONE_STRICT, (ALICE,), late=1, budget={"wipe": 1, "again": 1, "login": 1, "join": 1, "crash": 1}
    ),
    "locks": Scenario(
        6, ONE_STRICT, (ALICE, READMITTED, ALICE_AGAIN), late=1, budget={"wipe": 1, "login": 1, "join": 1}
    ),
    "expiry": Scenario(
        5, ONE_STRICT, (ALICE_FOR_A_WHILE, ALICE), late=1, budget={"wipe": 1, "tick": 3, "login": 1, "join": 1}
    ),
    "parts": Scenario(
        5,
        ONE_STRICT,
        (ALICE, EVERYTHING),
        late=1,
        chunk=1,
        budget={"ask": 1, "wipe": 1, "login": 1, "join": 1, "crash": 1},
    ),
    "best effort": Scenario(
        5, ("best_effort", "best_effort"), (ALICE, EVERYTHING), budget={"wipe": 2, "login": 2, "tick": 3}
    ),
}


@pytest.mark.parametrize("name", SCENARIOS)
def test_the_contract_holds_in_every_order(name: str, record_property: Callable[[str, object], None]) -> None:
    """No order of steps within the bound breaks a line of the contract."""
    scenario = SCENARIOS[name]
    scenario = dataclasses.replace(scenario, depth=scenario.depth + MORE)
    found = search(scenario)
    print(
        f"{name}: {found.states} states, {found.steps} steps, exhausted: {found.exhausted}, to {scenario.depth} steps"
    )
    record_property("states", found.states)
    assert not found.fault, f"{found.fault}, after: {'; '.join(found.trace)}"
    assert found.exhausted
    assert found.states > 500, "there was next to nothing to check"


#: What goes wrong; the scenario that finds it; where the line is, and what stands there instead; the line of the contract.
FAULTS: list[tuple[str, str, Any, str, str, str]] = [
    ("the lease is renewed at the answer", "late answers", Host.received, "answered(batch, asked)", "answered(batch, now)", "C1"),
    ("a part of an answer renews the lease", "parts", View.answered, "if batch.whole and self.sound", "if self.sound", "C1"),
    ("a fresh host admits on an empty log", "fresh hosts", View.sound, "self.begun and ", "", "C1"),
    ("the number moves before the entry is taken", "lease", View.answered, "if self._learn(entry, number)", "self.number = number\n        if self._learn(entry, number)", "C3"),
    ("something comes between the look and the registration", "lease", Host.admit, "self.held |= {", "self.held |= self.checked\n    self.checked = frozenset() | {", "C4"),
    ("an author does not wait for the whole lease", "lease", revoker.lease_end, "member.lease", "0.5 * member.lease", "C5"),
    ("a best-effort host counts as over", "lease", revoker._unheard, 'member.mode != "strict"', "not member.mode", "C5"),
    ("a host admits before the engine knows of it", "fresh hosts", View.answered, "if self.known", "if self.begun", "C5"),
    ("a shorter log is not noticed", "two wipes", View.answered, "if batch.here != self._here", "if self._here is batch", "C6"),
    ("a host that lost its log keeps its lease", "two wipes", View.lose, "self.until = _NEVER", "pass", "C6"),
    ("an epoch begins before all is written back", "fresh hosts", View.to_write_back, "if missing or not (self.begun or self._admitted)", "if not (self.begun or self._admitted)", "C6"),
    ("a fresh host begins an epoch", "fresh hosts", View.to_write_back, "if missing or not (self.begun or self._admitted)", "if missing", "C6"),
    ("a beginning that is written back begins its epoch again", "three wipes", View.answered, " and entry.before is None", "", "C8"),
    ("a lost log is good as soon as all is written back", "fresh hosts", View.sound, " and self._lost.issubset(self._before(self._epoch))", "", "C7"),
    ("a copy of an entry is another entry", "copies", View._learn, "known is None or known.before is None or (entry.before and self.is_before(entry.before, known.before))", "True", "C7"),
    ("entries are written back without their positions", "fresh hosts", Host.received, "entry.dump()", "replace(entry, before=entry.before if entry.do == 'init' else None).dump()", "C6"),
    ("epochs are compared by number alone", "two wipes", View.is_before, "if one.epoch == other.epoch", "if one.number", "C8"),
    ("what is in front of an epoch stays without a position", "two wipes", View._begin, "if not self._epoch", "if not init", "C7"),
    ("a copy of its beginning enters an epoch again", "cut", View._begin, "if init.id in (self._epoch, *earlier)", "if init.id in (self._epoch)", "C8"),
    ("an entry that has expired still refuses", "expiry", View._in_force, " or entry.expired", "", "C8"),
    ("an entry that will expire does not refuse", "expiry", View._in_force, "entry.expired", "entry.expires", "C8"),
    ("a readmission lifts what comes after it", "locks", View._lifts, "return not self.is_before(readmit.before, entry.before)", "return True", "C8"),
]  # fmt: skip


@pytest.mark.parametrize("planted", FAULTS, ids=[fault for fault, *_ in FAULTS])
def test_the_search_finds(planted: tuple[str, str, Any, str, str, str], monkeypatch: pytest.MonkeyPatch) -> None:
    """A fault that is planted breaks the line of the contract which it concerns."""
    fault, scenario, where, old, new, tag = planted
    plant(where, old, new, monkeypatch)
    found = search(SCENARIOS[scenario])
    assert found.fault.startswith(tag), f"{fault}: {found}"
    print(f"{fault}: {found.fault}, after: {'; '.join(found.trace)}")


def plant(where: Any, old: str, new: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Replace a line of a function."""
    function: Any = where.fget if isinstance(where, property) else where
    source = textwrap.dedent(inspect.getsource(function))
    assert source.count(old) == 1, f"{old!r} is not in {function.__qualname__}: plant the fault elsewhere"
    module: Any = inspect.getmodule(function)
    names: dict[str, Any] = {}
    exec(
        compile("from __future__ import annotations\n" + source.replace(old, new), "planted", "exec"),
        vars(module),
        names,
    )
    owner = getattr(module, function.__qualname__.split(".")[0]) if "." in function.__qualname__ else module
    monkeypatch.setattr(owner, function.__name__, names[function.__name__])
