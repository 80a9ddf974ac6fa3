"""A console server is operated from the command line: reloaded, started, listed, and looked at live."""

import json
import os
import pathlib
import re
import signal
import socket
import subprocess
import sys
import tempfile
import termios

import pytest

import test_cli
from asyncrevoke.console.cli import main
from ports import as_root, serial_line
from test_cli import COMMAND, Client, attach, folder, sharing  # noqa: F401  # folder: a fixture, for each test


@pytest.fixture
def config(tmp_path: pathlib.Path) -> pathlib.Path:
    file = tmp_path / "lab.toml"
    file.write_text('[share.lab]\ncommand = ["cat"]\n[share.other]\n')
    return file


def shown(capsys: pytest.CaptureFixture[str], *words: str) -> list[str]:
    """What a command prints, line by line."""
    capsys.readouterr()
    assert main([*words]) == 0
    return capsys.readouterr().out.splitlines()


# -- the configuration --


def test_reload_prints_what_was_done(config: pathlib.Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Share by share; with a fault in the file nothing, and the status says so. Who is attached elsewhere notices nothing."""
    with sharing("--config", str(config)), attach("other") as client:
        client.sees("you have the keyboard")
        assert shown(capsys, "reload") == ["nothing has changed"]
        config.write_text(config.read_text().replace('"cat"', '"cat", "-"'))
        assert shown(capsys, "reload", "other") == [
            "lab: taken away: command changed in the configuration; started again"
        ]
        config.write_text("[share.lab]\nbaud = 1")
        assert main(["reload"]) == 1
        assert "nothing was changed: " in (fault := capsys.readouterr().err)
        assert "lab.toml: [share.lab]: there is no key 'baud': did you mean baudrate?" in fault
        config.write_text('[share.lab]\nlook = ["no-such-user"]')
        assert main(["reload"]) == 1
        assert "[share.lab] look: there is no user 'no-such-user'" in capsys.readouterr().err
        client.types("still")
        client.sees("still")


def test_hangup_reloads_a_server_with_a_file(config: pathlib.Path) -> None:
    """It says what was done, or what is wrong, and goes on."""
    with sharing("--config", str(config)) as server:
        assert server.stderr
        for text, says in ("[share", "nothing was changed: "), ("[share.new]", "other: taken away: the configuration"):
            config.write_text(text)
            server.send_signal(signal.SIGHUP)
            while says not in (line := server.stderr.readline()):
                assert line


@pytest.mark.parametrize("fault", ["", "[share"])
def test_hangup_opens_the_logs_anew(tmp_path: pathlib.Path, config: pathlib.Path, fault: str) -> None:
    """What comes after it is in the file that is at the path then, also if the configuration has a fault."""
    log = tmp_path / "log"
    config.write_text(f'[share.lab]\ncommand = ["cat"]\nlog = "{log}"\n')
    with sharing("--config", str(config)) as server, attach("lab") as client:
        assert server.stderr
        client.types("before\r")
        client.sees("before")
        log.rename(tmp_path / "old")
        config.write_text(config.read_text() + fault)
        server.send_signal(signal.SIGHUP)
        while not log.exists():
            assert server.poll() is None
        client.types("after\r")
        client.sees("after")
        while b"after" not in log.read_bytes():
            assert server.poll() is None
        assert b"before" in (tmp_path / "old").read_bytes()
        assert b"before" not in log.read_bytes()


def test_server_without_a_file_is_told_from_one_that_has_one(
    config: pathlib.Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Alone it is an error that says what to do; beside another, it is passed over."""
    with sharing("--name", "plain"):
        assert main(["reload"]) == 1
        assert "has no configuration file. Start it with --config" in capsys.readouterr().err
        with sharing("--config", str(config)):
            assert shown(capsys, "reload") == ["nothing has changed"]
            assert main(["reload", "plain"]) == 1


def test_share_is_started_again(config: pathlib.Path, capsys: pytest.CaptureFixture[str]) -> None:
    """A server with a file lives on while all its shares are over; each is found by its name, and listed with why."""
    with sharing("--config", str(config)):
        for name in "lab", "other":
            assert main(["revoke", name, "--reason", "maintenance"]) == 0
        assert [re.split(r"  +", line)[:3] for line in shown(capsys, "ls")[1:]] == [
            ["lab", "cat", "over: taken away by root: maintenance"],
            ["other", "loopback", "over: taken away by root: maintenance"],
        ]
        assert main(["attach", "lab"]) == 1
        assert "'lab' was revoked: maintenance" in capsys.readouterr().err
        assert main(["start", "lab"]) == 0
        with attach("lab") as client:
            client.sees("you have the keyboard")
        assert main(["start", "lab"]) == 1
        assert "'lab' has not ended: it is shared" in capsys.readouterr().err
        assert main(["start", "nothing"]) == 1
        assert "no share is named 'nothing'" in capsys.readouterr().err


@as_root
def test_somebody_who_may_not_type_is_told_so(config: pathlib.Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A pipe and `send` end at once with status 1, as the keyboard would never come; on a terminal one may watch."""
    script = (  # imports all beforehand, because the environment may be in a folder that only root may read
        "import anyio, importlib, os, pkgutil, sys, asyncrevoke.console as console; from asyncrevoke.console.cli import main;"
        "[importlib.import_module(each.name) for package in (anyio, console)"
        " for each in pkgutil.walk_packages(package.__path__, package.__name__ + '.')];"
        "os.setgroups([]); os.setgid(1); os.setuid(1); sys.exit(main(sys.argv[1:]))"
    )
    with tempfile.TemporaryDirectory() as place:
        pathlib.Path(place).chmod(0o755)
        command = [sys.executable, "-c", script]
        pipe = [*command, "attach", "lab", "--socket", f"{place}/s"]
        config.write_text('[share.lab]\ncommand = ["cat"]\nlook = ["daemon"]\n')
        with sharing("--config", str(config), "--socket", f"{place}/s"):
            done = subprocess.run(pipe, input="x", capture_output=True, text=True)
            assert (done.returncode, done.stderr.splitlines()[-1]) == (
                1,
                "asyncrevoke: you may look here, and not type",
            )
            done = subprocess.run(
                [*command, "send", "lab", "x", "--socket", f"{place}/s"], capture_output=True, text=True
            )
            assert (done.returncode, done.stderr) == (1, "asyncrevoke: lab: you may look here, and not type\n")
            monkeypatch.setattr(test_cli, "COMMAND", command)
            with attach("lab", "--socket", f"{place}/s") as person:
                shown = person.sees("nobody has the keyboard (you may look here, and not type)")
                person.types("x")
                shown += person.sees("not typed: you may look here, and not type")
                assert "not done" not in shown


def test_several_sockets_lead_to_one_server(tmp_path: pathlib.Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Each given by --socket; those of the file count without."""
    first, second, third = (str(tmp_path / name) for name in ("first", "second", "third"))
    config = tmp_path / "lab.toml"
    config.write_text(f'sockets = [{{path = "{third}"}}]\n[share.lab]\n')
    with sharing("--config", str(config), "--socket", first, "--socket", second):
        for each in first, second:
            assert len(shown(capsys, "ls", "--socket", each)) == 2
        assert not pathlib.Path(third).exists()
    with sharing("--config", str(config)):
        assert len(shown(capsys, "ls", "--socket", third)) == 2


def test_systemd_is_told_when_the_shares_are_up(tmp_path: pathlib.Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """By a datagram, to a path or to a name that is in no file system; not before clients can attach."""
    for address, name in (str(tmp_path / "notify"),) * 2, ("\0" + str(tmp_path), "@" + str(tmp_path)):
        monkeypatch.setenv("NOTIFY_SOCKET", name)
        with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as notified:
            notified.bind(address)
            with sharing("--name", "lab"):
                assert notified.recv(100) == b"READY=1"


# -- what is shown --


def test_ls_has_the_columns_that_people_want(tmp_path: pathlib.Path, capsys: pytest.CaptureFixture[str]) -> None:
    """What it is, how it is, who types and how many are there; a device that is not there is away, with the reason."""
    config = tmp_path / "lab.toml"
    with serial_line() as line:
        config.write_text(
            f'[share.here]\ndevice = "{line.path}"\nbaudrate = 19200\n'
            '[share.lab]\ncommand = ["cat", "-u"]\n[share.nowhere]\ndevice = "/dev/nowhere"\n'
            '[share.odd]\ndevice = "/dev/zero"\n'
        )
        with sharing("--config", str(config)), attach("lab") as client, attach("--read-only", "lab"):
            client.sees("you have the keyboard")
            while "it has not come yet" in "".join(shown(capsys, "ls")[at] for at in (1, 4)):
                pass
            rows = [re.split(r"  +", each) for each in shown(capsys, "ls")]
            assert rows[0] == ["NAME", "DEVICE", "SETTINGS", "STATE", "KEYBOARD", "USERS", "SINCE"]
            assert rows[1][:4] == ["here", line.path, "19200n8", "live"]
            assert rows[2][:5] == ["lab", "cat -u", "live", "root", "2"]
            assert rows[3][:5] == ["nowhere", "/dev/nowhere", "9600n8", "away: it has not come yet", "0"]
            assert rows[4][:3] == ["odd", "/dev/zero", "9600n8"]
            assert "it is not a serial port" in rows[4][3]
            records = {each["path"]: each for each in map(json.loads, shown(capsys, "ls", "--json"))}
            assert records["lab"]["share"]["who"][0]["keyboard"]


def test_ls_who_shows_people_alone(capsys: pytest.CaptureFixture[str]) -> None:
    """By the name that takes them off, with what they do, since when and from where; all that is inside is --all's."""
    with sharing("--name", "lab"), attach("lab") as alice, attach("lab") as bob, attach("--read-only", "lab"):
        bob.sees("root has the keyboard")
        head, *rows = [re.split(r"  +", each) for each in shown(capsys, "ls", "--who")]
        assert head == ["NAME", "DOES", "SINCE", "FROM"]
        terminal = termios.tcgetattr(alice.slave) and pathlib.Path(f"/proc/self/fd/{alice.slave}").readlink()
        assert [row[:2] for row in rows] == [
            ["lab/root", "has the keyboard"],
            ["lab/root-2", "waits for the keyboard"],
            ["lab/root-3", "watches"],
        ]
        assert f"/dev/{rows[0][3]}" == str(terminal)
        inside = "\n".join(shown(capsys, "ls", "--all"))
        assert "lab/root/keyboard" in inside
        assert "operation" in inside


def test_top_follows_takes_somebody_off_and_leaves_the_terminal_as_it_was() -> None:
    """Who comes and types is seen; the one who is chosen is taken off with the reason that is asked for."""
    with sharing("--name", "lab") as server, Client("top", size=(10, 100)) as top:
        top.sees("\x1b[?1049h")
        top.sees("up and down choose")
        with attach("lab") as alice, attach("lab") as bob:
            top.sees("has the keyboard")
            top.sees("waits for the keyboard")
            alice.types("12345")
            while not re.search(r"lab +live +root +[1-9]\d* +[1-9]", top.sees("\x1b[J")):
                pass
            top.types("\x1b[B\x1b[B")
            top.sees("\x1b[7m  root-2")
            top.types("kwrong\x7f")
            top.sees("reason for taking lab/root-2 away: wron")
            top.types("\x1b")
            top.sees("up and down choose")
            top.types("kshift over\r")
            assert bob.ends("shift over") == 1
            top.sees("lab/root-2 was taken away")
            alice.types("\x1dq")
            assert alice.ends("detached") == 0
        top.types("q")
        assert top.process.wait(30) == 0
        assert termios.tcgetattr(top.slave) == top.settings
        last = top.shown + os.read(top.master, 65536).decode()
        assert {"\x1b[?1049l", "\x1b[?25h", "\x1b[?7h"} <= set(re.findall(r"\x1b\[\?\d+[hl]", last))
        assert server.poll() is None


def test_top_ends_with_its_servers_and_by_a_signal() -> None:
    """It says which it was, and the terminal is as before."""
    with sharing("--name", "lab") as server:
        with Client("top") as top:
            top.sees("up and down choose")
            top.process.send_signal(signal.SIGTERM)
            assert top.ends("\x1b[?1049l") == 0
        with Client("top") as top:
            top.sees("up and down choose")
            server.terminate()
            assert top.ends("all servers have gone") == 1


def test_top_needs_a_terminal_and_a_server() -> None:
    """It says so, and what to do."""
    done = subprocess.run([*COMMAND, "top"], stdin=subprocess.DEVNULL, capture_output=True, text=True)
    assert (done.returncode, done.stderr) == (
        1,
        "asyncrevoke: top needs a terminal. For a file or a pipe, use `asyncrevoke ls`\n",
    )
    with Client("top") as top:
        assert top.ends("nothing is shared. Looked in ") == 1
