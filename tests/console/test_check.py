"""`asyncrevoke share --check`: what is wrong with a file is told, and nothing is opened."""

import pathlib
import socket
import tempfile

import pytest

from asyncrevoke.console.cli import main
from asyncrevoke.console.log_file import check_file
from ports import as_root
from test_hosting import user

#: A file with many faults, and below where each is and what is said of it, in order.
FAULTY = """
groups = "lab"
group = "no-such-group"
sockets = [{group = "daemon"}]
[share.form]
device = "x"
parity = "x"
stopbits = 3
devce = "x"
rts = "on"
[share.network]
listen = ["4001", "lab:1"]
log_times = true
restart = "sometimes"
[share.users]
look = ["no-such-user", "@no-such-group"]
revoke = ["no-such-user"]
[share.files]
command = ["/no/such/program"]
log = "/no/such/folder/log"
listen = ["tcp+tls://127.0.0.1:4001", "tcp://127.0.0.1:4002"]
tls_certificate = "/no/such/certificate"
[share.device]
device = "socket://"
log = "/"
listen = "telnet://localhost:4002"
"""
FAULTS = [
    ("there is no key 'groups'", "did you mean group?"),
    ("[share.form]", "parity = 'x'"),
    ("[share.form]", "stopbits = 3"),
    ("[share.form]", "there is no key 'devce': did you mean device?"),
    ("[share.form]", "rts must be true or false"),
    ("[share.network]", "'network' has no log"),
    ("[share.network]", "restart = 'sometimes'"),
    ("[share.network]: listen", "'4001' is no address"),
    ("[share.network]: listen", "'lab' does not appear to be"),
    ("sockets", "give each a path"),
    ("group", "there is no group 'no-such-group'"),
    ("[share.users]: look", "there is no user 'no-such-user'"),
    ("[share.users]: look", "there is no group 'no-such-group'"),
    ("[share.users]: revoke", "there is no user 'no-such-user'"),
    ("[share.files]: command", "/no/such/program: No such file"),
    ("[share.files]: tls_certificate", "no certificate and key of TLS in /no/such/certificate"),
    ("[share.files]: log", "/no/such/folder: No such file"),
    ("[share.device]: device", "'socket://': expected both host and port"),
    ("[share.device]: log", "/: Is a directory"),
    ("[share.device]: listen", "'files' listens on 127.0.0.1:4002 already"),
]


def test_check_tells_all_faults_with_their_keys(
    tmp_path: pathlib.Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """A line for each, with the file; the status is 1."""
    monkeypatch.setenv("RUNTIME_DIRECTORY", str(tmp_path / "run"))
    file = tmp_path / "lab.toml"
    file.write_text(FAULTY)
    assert main(["share", "--check", "--config", str(file)]) == 1
    out, err = capsys.readouterr()
    lines = err.splitlines()
    assert out == ""
    for line, (where, what) in zip(lines, FAULTS, strict=True):
        assert line.startswith(f"asyncrevoke: {file}: {where}: ")
        assert what in line
    # Without --check, only this machine is not looked at.
    assert main(["share", "--config", str(file)]) == 1
    assert capsys.readouterr().err.splitlines() == lines[:10]


def test_check_opens_nothing(
    tmp_path: pathlib.Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """No program is run, no port or log is opened, no address is listened on, and no folder for sockets is made."""
    monkeypatch.setenv("RUNTIME_DIRECTORY", str(tmp_path / "run"))
    file = tmp_path / "lab.toml"
    with socket.create_server(("127.0.0.1", 0)) as taken:
        file.write_text(
            f'[share.lab]\ncommand = ["touch", "{tmp_path}/started"]\nlog = "{tmp_path}/log"\n'
            f'listen = "127.0.0.1:{taken.getsockname()[1]}"\n[share.port]\ndevice = "/dev/no-such-port"\n'
        )
        assert main(["share", "--check", "--group", "daemon", "--config", str(file)]) == 0
    assert capsys.readouterr().out == f"{file}: no fault. It shares lab, port\n"
    assert [path.name for path in tmp_path.iterdir()] == ["lab.toml"]
    assert main(["share", "--check", "--group", "no-such-group", "--config", str(file)]) == 1
    assert "group: there is no group 'no-such-group'" in capsys.readouterr().err


def test_check_needs_a_file(capsys: pytest.CaptureFixture[str]) -> None:
    """Without one it is wrong usage; one that cannot be read is a fault."""
    with pytest.raises(SystemExit) as ended:
        main(["share", "--check", "--", "true"])
    assert ended.value.code == 2
    assert "share: --check needs --config" in capsys.readouterr().err
    assert main(["share", "--check", "--config", "/no/such/file"]) == 1
    assert "/no/such/file: No such file" in capsys.readouterr().err


@as_root
def test_log_that_may_not_be_written_is_a_fault() -> None:
    """Whether it is there, or its folder alone. A folder that one may not write to may hold a log that one may."""
    with tempfile.TemporaryDirectory() as name:
        folder = pathlib.Path(name)
        folder.chmod(0o755)
        mine, theirs, new = (folder / name for name in ("mine", "theirs", "new"))
        mine.touch()
        theirs.touch(0o644)
        mine.chmod(0o666)
        for each in mine, theirs, new:
            check_file(str(each))
        with user("daemon"):
            check_file(str(mine))
            for each in theirs, new:
                with pytest.raises(PermissionError) as caught:
                    check_file(str(each))
                assert caught.value.filename == str(each)
