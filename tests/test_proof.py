"""The models of the protocol: they are searched where spin is, and what they say is held to their page."""

import re

import model
import pytest

#: What `python proof/model/model.py` searches besides: it takes a minute more, and says nothing of a change of our code.
LONG = {"-DSLICES", *(f"-DFAULT={number}" for number in model.FAULTS if number > 2)}


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
