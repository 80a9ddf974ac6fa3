"""Real kernels: the short form of `tests/vm/run.py`, where a virtual machine can be had."""

import pathlib
import subprocess
import sys

import pytest

import answers_page
from asyncrevoke import answers
from asyncrevoke.answers import Answers

RUN = pathlib.Path(__file__).with_name("vm") / "run.py"


@pytest.mark.timeout(700)  # the first time it downloads a kernel
def test_a_real_unplug_is_told_to_all_who_use_the_port() -> None:
    """On a real kernel all users of a port are told, each once, nothing is left, and the device comes back."""
    done = subprocess.run([sys.executable, str(RUN), "--short"], capture_output=True, text=True)
    if "no virtual machine" in done.stderr:
        pytest.skip(done.stderr.strip())
    assert (done.returncode, done.stderr) == (0, ""), done.stdout
    # With those of devices.py for two kinds, of instruments.py, names.py, objects.py, loans.py and consoles.py.
    assert len(done.stdout.splitlines()) == 1 + 5 + 2 * 8 + 4 + 3 + 2 + 9 + 2


def test_the_page_has_our_tables_and_the_kernels() -> None:
    """docs/kernel-answers.md says what the profiles say, of each cell, and so did each kernel, unless it says why not."""
    rows = answers_page.rows()
    assert len(rows) == 15 * len(answers_page.CELLS)
    profiles = {name for name, each in vars(answers).items() if isinstance(each, Answers)}
    assert {row[0] for row in rows} == profiles - {"RFC", "DEADFS"}  # which are no Linux's
    for profile, cause, cell, ours, *kernels, why_not in rows:
        assert answers_page.ours(getattr(answers, profile))[cell] == ours
        assert len(kernels) == 2
        assert why_not or "-" not in kernels, (cause, cell)
        assert (cause, cell) in answers_page.REMARKS or set(kernels) <= {ours, "-"}, (cause, cell)
