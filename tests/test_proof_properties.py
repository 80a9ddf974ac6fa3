"""The protocol and its plain reference model do not differ, and planted faults make them differ."""

import dataclasses

import properties
import pytest
import rules
from sabotage import FAULTS, Fault


def test_asyncrevoke_does_what_the_reference_says() -> None:
    """Whatever people do, in whatever order, both show the same; each rule is used, and each thing compared."""
    rules.Tree.counted.clear()
    properties.run(100)
    assert properties.missing() == set()


@pytest.mark.parametrize("fault", FAULTS[:4], ids=lambda fault: fault.what)
def test_a_planted_fault_is_found(fault: Fault) -> None:
    assert properties.finds(fault, 300)


def test_what_is_no_fault_is_not_found() -> None:
    """It is the fault that is found, and not the planting."""
    none = dataclasses.replace(FAULTS[0], wrong=FAULTS[0].right)
    assert not properties.finds(none, 10)


def test_no_planted_fault_stays() -> None:
    """A fault is gone when it was looked for, and the line that it changes is there."""
    for fault in FAULTS:
        before = fault.function.__code__
        with fault.planted():
            assert fault.function.__code__ is not before
        assert fault.function.__code__ is before
