"""What a shell offers when Tab is pressed."""

import os
import pathlib
import shutil
import signal
import subprocess
import sys
import sysconfig
from collections.abc import Sequence

import pytest

from asyncrevoke.console.cli import main
from test_cli import attach, folder, sharing  # noqa: F401  # folder: a fixture
from test_in_tmux import pytestmark as needs_tmux, tmux

SCRIPTS = sysconfig.get_path("scripts")
COMPLETION = [sys.executable, "-m", "asyncrevoke"]


def offered(line: str, out: pathlib.Path, command: Sequence[str] = COMPLETION) -> list[str]:
    """What is offered at the end of a line, as a shell asks for it; nothing else is said."""
    env = {
        "_ARGCOMPLETE": "1",
        "_ARGCOMPLETE_IFS": "\n",
        "_ARGCOMPLETE_STDOUT_FILENAME": str(out),
        "COMP_LINE": line,
        "COMP_POINT": str(len(line)),
    }
    out.write_bytes(b"")
    done = subprocess.run(command, env=os.environ | env, capture_output=True, text=True, timeout=30)
    assert (done.returncode, done.stdout, done.stderr) == (0, "", "")
    return [word.strip() for word in out.read_text().split("\n") if word]


def test_names_are_offered_where_they_mean_something(tmp_path: pathlib.Path) -> None:
    """Shares of all servers; of a share to revoke, clients and their keyboards, also of a second one; else files, and options when begun."""
    (tmp_path / "some.toml").touch()
    out = tmp_path / "out"
    with sharing("--name", "router"), sharing("--name", "lab"), attach("lab"):
        assert set(offered("asyncrevoke attach ", out)) == {"router", "lab"}
        assert offered("asyncrevoke attach r", out) == ["router"]
        assert offered("asyncrevoke send r", out) == ["router"]
        assert offered("asyncrevoke revoke l", out) == ["lab"]
        assert offered("asyncrevoke revoke lab/", out) == ["lab/root"]
        assert offered("asyncrevoke revoke lab/root/", out) == ["lab/root/keyboard"]
        assert offered("asyncrevoke revoke router lab/", out) == ["lab/root"]
        assert offered("asyncrevoke give lab/", out) == ["lab/root"]
        assert offered(f"asyncrevoke share --config {tmp_path}/so", out) == [f"{tmp_path}/some.toml"]
        assert offered("asyncrevoke attach --fo", out) == ["--force"]
        assert offered("asyncrevoke att", out) == ["attach"]
        assert offered("asyncrevoke share --name ", out) == []


def test_share_that_is_over_is_offered(tmp_path: pathlib.Path) -> None:
    """So that it can be started again."""
    config = tmp_path / "lab.toml"
    config.write_text("[share.lab]\n")
    with sharing("--config", str(config)):
        assert main(["revoke", "lab"]) == 0
        assert offered("asyncrevoke start ", tmp_path / "out") == ["lab"]


def test_server_that_does_not_answer_is_left_out(tmp_path: pathlib.Path) -> None:
    """After a second, and without a word; no server at all is no error either."""
    out = tmp_path / "out"
    assert offered("asyncrevoke attach ", out) == []
    assert offered("asyncrevoke attach --socket /nowhere ", out) == []
    with sharing("--name", "router"), sharing("--name", "lab") as stopped:
        stopped.send_signal(signal.SIGSTOP)
        try:
            assert offered("asyncrevoke attach ", out) == ["router"]
        finally:
            stopped.send_signal(signal.SIGCONT)


SHELLS = {
    "bash": (["bash", "--norc", "--noprofile"], 'eval "$(register-python-argcomplete asyncrevoke)"'),
    "zsh": (["zsh", "-f"], 'autoload -U compinit; compinit -u -D; eval "$(register-python-argcomplete asyncrevoke)"'),
    "fish": (["fish", "--no-config", "--private"], "register-python-argcomplete --shell fish asyncrevoke | source"),
}


@needs_tmux
@pytest.mark.parametrize("shell", SHELLS)
def test_shell_completes_a_name(shell: str, tmp_path: pathlib.Path) -> None:
    """As docs/console-server.md has it set up."""
    words, setup = SHELLS[shell]
    if shutil.which(shell) is None:
        pytest.skip(f"needs {shell}: apt-get install {shell}")
    path = f"PATH={SCRIPTS}:{os.environ['PATH']}"
    with sharing("--name", "router"), tmux(tmp_path, ["env", path, f"HOME={tmp_path}", *words]) as (pane,):
        pane.types(f"{setup}; printf 'is %s\\n' ready\r")
        pane.sees("is ready")
        pane.types("asyncrevoke attach rou\t")
        pane.sees("asyncrevoke attach router")
