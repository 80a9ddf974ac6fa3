"""The command line finds what is shared, and says what there is where it does not."""

import contextlib
import pathlib

import pytest

from asyncrevoke.console.cli import main
from test_cli import Client, folder, sharing  # noqa: F401  # folder: a fixture


def test_attach_needs_no_name_where_one_thing_is_shared() -> None:
    """It attaches to that, and says to what."""
    with sharing("--name", "lab"), Client("attach") as client:
        client.sees("attached as lab/root")
        client.types("\x1dq")
        assert client.ends("lab: detached") == 0


def test_attach_without_a_name_lists_several(capsys: pytest.CaptureFixture[str]) -> None:
    """Of all servers; and where there is nothing, it says so."""
    assert main(["attach"]) == 1
    assert "nothing is shared. Looked in " in capsys.readouterr().err
    with sharing("--name", "router"), sharing("--name", "lab"):
        assert main(["attach"]) == 1
        assert "several are shared: give one of lab, router. Looked in " in capsys.readouterr().err


@pytest.mark.parametrize("command", ["attach", "revoke"])
def test_unknown_name_is_answered_by_what_there_is(
    command: str, tmp_path: pathlib.Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """All that all servers share, and first what is nearly that."""
    config = tmp_path / "consoles.toml"
    config.write_text("[share.attic]\n[share.router]\n[share.rooter]\n")
    with contextlib.ExitStack() as servers:
        servers.enter_context(sharing("--config", str(config)))
        servers.enter_context(sharing("--name", "lab"))
        assert main([command, "ruter"]) == 1
        said = capsys.readouterr().err
        assert "no share is named 'ruter'. Shared: router, rooter, attic, lab. Looked in " in said


def test_version_is_told(capsys: pytest.CaptureFixture[str]) -> None:
    """Alone, for scripts and reports."""
    with pytest.raises(SystemExit) as exit_:
        main(["--version"])
    assert exit_.value.code == 0
    assert capsys.readouterr().out == "asyncrevoke 0.1.0\n"
