"""The command line and its demo."""

from __future__ import annotations

import os
import pty
import re
import subprocess
import sys

import pytest

from asyncrevoke.cli import main

COMMAND = [sys.executable, "-W", "error", "-m", "asyncrevoke"]


def test_demo_shows_who_saw_what_in_order() -> None:
    """One client is revoked and the others go on; then all; then the next generation works under the same name."""
    done = subprocess.run([*COMMAND, "demo"], capture_output=True, text=True, timeout=60)
    assert (done.returncode, done.stderr) == (0, "")
    steps = [
        r"alice +\| we are 3",
        r"us +bob is revoked",
        r"bob +RevokedError: 'shell/sh/bob' \(generation 1\) was revoked: his shift is over",
        r"us +report: .* 1 kicked, 1 released",
        r"alice +\| we are 2",
        r"us +operation of .* in 'shell/sh/alice' for .* s at demo.py:\d+",
        r"carol +RevokedError: 'shell/sh/carol' \(generation 1\) was revoked: maintenance",
        r"us +report: 'shell' revoked \(maintenance\): 2 kicked, 4 released",
        r"ended by signal 1 and is reaped",
        r"us +the shell of generation 2 has ended with status 7",
    ]
    where = 0
    for step in steps:
        found = re.compile(step).search(done.stdout, where)
        assert found, f"{step} is not shown after {done.stdout[:where][-200:]!r}, but {done.stdout[where:]!r}"
        where = found.end()
    assert "\x1b" not in done.stdout, "colour in a pipe"


def test_demo_is_in_colour_on_a_terminal() -> None:
    """On a terminal each voice has its colour, unless NO_COLOR asks for none."""
    for extra, coloured in ({}, True), ({"NO_COLOR": "1"}, False):
        master, slave = pty.openpty()
        env = {key: value for key, value in os.environ.items() if key != "NO_COLOR"} | extra
        process = subprocess.Popen([*COMMAND, "demo"], stdout=slave, env=env)
        os.close(slave)
        shown = b""
        try:
            while data := os.read(master, 65536):
                shown += data
        except OSError:  # EIO: all was read
            pass
        os.close(master)
        assert process.wait() == 0
        assert (b"\x1b[" in shown) == coloured


def test_unknown_command_is_named(capsys: pytest.CaptureFixture[str]) -> None:
    """A wrong command is an error that says which there are."""
    with pytest.raises(SystemExit) as exit_:
        main(["frobnicate"])
    assert exit_.value.code == 2
    assert "invalid choice: 'frobnicate'" in capsys.readouterr().err
