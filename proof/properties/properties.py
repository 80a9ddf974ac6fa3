"""Stateful properties of the protocol: ``python proof/properties/properties.py [--examples N] [--seed N]``

Hypothesis drives asyncrevoke and a plain reference model of it, `reference`, by the same rules, and whatever one can see is
compared after each. Then each planted fault of `sabotage` must be found so.
"""

import argparse
import sys
import time

from hypothesis import HealthCheck, Phase, Verbosity, seed, settings
from hypothesis.stateful import run_state_machine_as_test
from rules import Tree
from sabotage import FAULTS, Fault

#: Of which none may be missing from a run that is long enough.
RULES = {
    *("root", "name", "open", "open, also", "open of a generation", "join", "revoke", "revoke with grace"),
    *(
        "revoke again",
        "revoke of two",
        "hangup",
        "close",
        "close by a person",
        "end of a release",
        "time",
        "use",
        "idle use",
        "nested use",
    ),
    *(
        "use again",
        "leave",
        "await",
        "await by a person",
        "cancelled await",
        "cancelled natively",
        "cancelled by a scope",
        "wait for each other",
    ),
    *("start_using", "stop_using"),
}
COMPARED = {
    *(
        "refusals",
        "events",
        "order of events",
        "nodes",
        "reports",
        "ends of acts",
        "stragglers",
        "errors of acts",
        "acts",
    ),
    *("errors of the loop", "failures nobody is told of", "grants", "I2", "I4"),
}


def run(examples: int, number: int = 0, *, shrink: bool = True, steps: int = 40) -> None:
    """Run the state machine; what the seed `number` gives is always the same.

    :raises AssertionError: if the real tree and the reference differ
    """
    machine = seed(number)(type("Tree", (Tree,), {}))
    run_state_machine_as_test(
        machine,
        settings=settings(
            max_examples=examples,
            stateful_step_count=steps,
            deadline=None,
            database=None,
            phases=[Phase.generate, *([Phase.shrink] if shrink else [])],
            report_multiple_bugs=False,
            verbosity=Verbosity.normal if shrink else Verbosity.quiet,
            suppress_health_check=list(HealthCheck),
        ),
    )


def missing() -> set[str]:
    """Rules that were not used so far, and what was not compared."""
    counted = Tree.counted
    return {f"rule: {each}" for each in RULES if not counted[f"rule: {each}"]} | {
        f"compared: {each}" for each in COMPARED if not counted[f"compared: {each}"]
    }


def finds(fault: Fault, examples: int) -> int:
    """In which example a planted fault is found, or 0."""
    before = Tree.counted["examples"]
    with fault.planted():
        try:
            run(examples, shrink=False)
        except Exception:  # noqa: BLE001  # whatever the fault has made of it
            return Tree.counted["examples"] - before
    return 0


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--examples", type=int, default=10_000)
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args()
    began = time.process_time()
    run(options.examples, options.seed)
    for what, number in sorted(Tree.counted.items()):
        print(f"{number:11,}  {what}")
    print(f"no difference, in {time.process_time() - began:.0f} s of the processor")
    wrong = missing()
    for each in sorted(wrong):
        print(f"NEVER  {each}")
    for fault in FAULTS:
        found = finds(fault, 2000)
        print(f"{f'found in example {found:,}' if found else 'NOT FOUND'}  planted: {fault.what}", flush=True)
        wrong |= set() if found else {fault.what}
    return int(bool(wrong))


if __name__ == "__main__":
    sys.exit(main())
