"""Real kernels: the short form of `tests/vm/run.py`, where a virtual machine can be had."""

import pathlib
import subprocess
import sys

import pytest

RUN = pathlib.Path(__file__).with_name("vm") / "run.py"


@pytest.mark.timeout(400)  # the first time it downloads a kernel
def test_a_real_unplug_is_told_to_all_who_use_the_port() -> None:
    """On a real kernel all users of a port are told, each once, nothing is left, and the device comes back."""
    done = subprocess.run([sys.executable, str(RUN), "--short"], capture_output=True, text=True)
    if "no virtual machine" in done.stderr:
        pytest.skip(done.stderr.strip())
    assert (done.returncode, done.stderr) == (0, ""), done.stdout
    assert len(done.stdout.splitlines()) == 4
