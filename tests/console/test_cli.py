"""The command line and its demo."""

import contextlib
import ctypes
import errno
import fcntl
import functools
import grp
import json
import os
import pathlib
import pty
import re
import select
import signal
import socket
import struct
import subprocess
import sys
import termios
import threading
import time
from collections.abc import Iterator
from typing import Any, Self

import anyio
import pytest
import trio.testing

from asyncrevoke import Registry
from asyncrevoke.console import sockets
from asyncrevoke.console.attach import _Attachment
from asyncrevoke.console.cli import main
from asyncrevoke.console.share import read_config
from asyncrevoke.console.sockets import new_socket, own_folder
from asyncrevoke.console.terminal import Terminal
from asyncrevoke.control import Control, Request, serve
from ports import FarEnd, as_root, privileged, reader, serial_line

COMMAND = [sys.executable, "-W", "error", "-m", "asyncrevoke"]
ROOT = pathlib.Path(__file__).parents[2]


def test_demo_shows_who_saw_what_in_order() -> None:
    """One client is revoked and the others go on; then all; then the next generation works under the same name."""
    done = subprocess.run([*COMMAND, "demo"], capture_output=True, text=True, timeout=60)
    assert (done.returncode, done.stderr) == (0, "")
    steps = [
        r"alice +\| we are 3",
        r"us +bob is revoked",
        r"bob +RevokedError: 'shell/sh/bob' \(generation 1\) was revoked: the shift is over",
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


# -- a console server, and clients on terminals of their own --


@pytest.fixture(autouse=True)
def folder(monkeypatch: pytest.MonkeyPatch, tmp_path: pathlib.Path) -> pathlib.Path:
    """Where the sockets are; whoever else shares something on this machine is not seen."""
    monkeypatch.setattr("asyncrevoke.console.sockets.SYSTEM", tmp_path / "system")
    for name in "ASYNCREVOKE_SOCKET", "PYTHONUNBUFFERED":
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("RUNTIME_DIRECTORY", str(tmp_path / "run"))
    monkeypatch.setenv("ENV", "")
    monkeypatch.setenv("PS1", "")
    return tmp_path / "run"


class Client:
    """A command of ours on a terminal of its own, and what it shows there."""

    def __init__(self, *words: str, size: tuple[int, int] = (24, 80)) -> None:
        self.master, self.slave = pty.openpty()
        self.settings = termios.tcgetattr(self.slave)
        self.resize(*size)
        take = functools.partial(fcntl.ioctl, 0, termios.TIOCSCTTY, 0)
        self.process = subprocess.Popen(
            [*COMMAND, *words],
            stdin=self.slave,
            stdout=self.slave,
            stderr=self.slave,
            start_new_session=True,
            preexec_fn=take,  # noqa: PLW1509  # nothing else sets a controlling terminal
        )
        self.shown = ""

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.process.kill()
        self.process.wait()
        os.close(self.master)
        os.close(self.slave)
        assert "Traceback" not in self.shown

    def resize(self, rows: int, columns: int) -> None:
        fcntl.ioctl(self.master, termios.TIOCSWINSZ, struct.pack("HHHH", rows, columns, 0, 0))

    def types(self, text: str) -> None:
        os.write(self.master, text.encode())

    def sees(self, text: str) -> str:
        """Wait until that is shown; what was shown until then is not looked at again."""
        while text not in self.shown:
            ready = select.select([self.master], [], [], 30)[0]
            assert ready, f"{text!r} is not shown, but {self.shown!r}"
            self.shown += os.read(self.master, 65536).decode(errors="replace")
        before, _, self.shown = self.shown.partition(text)
        return before

    def ends(self, text: str) -> int:
        """Wait until it says that and has ended, and its terminal is as it was before."""
        self.sees(text)
        status = self.process.wait(30)
        assert termios.tcgetattr(self.slave) == self.settings
        return status


@contextlib.contextmanager
def sharing(*words: str, by: tuple[str, ...] = ()) -> Iterator[subprocess.Popen[str]]:
    """A console server, perhaps started by a command; its log must have no traceback."""
    command = [*by, *COMMAND, "share", *words]
    with subprocess.Popen(command, stdout=-1, stderr=-1, text=True) as server:
        assert server.stdout
        assert server.stderr
        try:
            line = server.stdout.readline()
            assert line.startswith("sharing"), line + server.stderr.read()
            yield server
        finally:
            server.terminate()
            assert "Traceback" not in server.stderr.read()


def attach(*words: str) -> Client:
    client = Client("attach", *words)
    client.sees("attached as ")
    return client


def hears(piped: subprocess.Popen[str], text: str) -> None:
    """Wait until a client that is on no terminal has been told that."""
    assert piped.stderr
    while text not in (line := piped.stderr.readline()):
        assert line, f"{text!r} is not said"


def take(piped: subprocess.Popen[str], text: str) -> None:
    """Give a client that is on no terminal something to send, and wait until it has read it."""
    assert piped.stdin
    piped.stdin.write(text)
    piped.stdin.flush()
    while any(fcntl.ioctl(piped.stdin, termios.FIONREAD, bytes(4))):
        time.sleep(0.001)


def runs(pid: str) -> bool:
    """Whether there is such a process; one that has ended and is not reaped yet is none."""
    try:
        return pathlib.Path("/proc", pid, "stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except FileNotFoundError:
        return False


def listed(capsys: pytest.CaptureFixture[str], *words: str) -> dict[str, Any]:
    capsys.readouterr()
    assert main(["ls", "--json", *words]) == 0
    return {record["path"]: record for record in map(json.loads, capsys.readouterr().out.splitlines())}


def test_one_is_taken_off_and_then_all(tmp_path: pathlib.Path, folder: pathlib.Path) -> None:
    """Who is revoked by name returns with the reason, the other notices nothing; the session's end is a SIGHUP, and leaves nothing."""
    heard = tmp_path / "heard"
    with sharing("--name", "lab", "--", "bash", "--norc") as server, attach("lab") as alice, attach("lab") as bob:
        assert "lab/root-2" in bob.sees("root has the keyboard")
        alice.types(f"trap 'echo HUP > {heard}; exit' HUP; echo pid=$$.\n")
        alice.sees("pid=")
        alice.sees("pid=")
        bash = alice.sees(".")
        bob.sees(f"pid={bash}.")
        assert main(["revoke", "lab/root-2", "--reason", "your shift is over"]) == 0
        assert bob.ends("your shift is over") == 1
        alice.types("echo still-$((6 * 7))\n")
        assert "over" not in alice.sees("still-42")
        alice.types("sleep 1000 & echo job=$!.; wait\n")  # where bash notices a signal
        alice.sees("; wait")
        alice.sees("job=")
        job = alice.sees(".")
        assert main(["revoke", "lab", "--reason", "maintenance"]) == 0
        assert alice.ends("maintenance") == 1
        assert server.wait(30) == 0
        assert heard.read_text() == "HUP\n"
        assert (runs(bash), runs(job)) == (False, False)
        assert list(folder.iterdir()) == []


@pytest.mark.parametrize("key", ["q", "."])
def test_escape_key_detaches(key: str) -> None:
    """It says so on attach, helps, is sent when typed twice, and detaches; a program's screen modes are undone."""
    with sharing("--name", "lab"), attach("lab") as client:
        client.sees("ctrl-] q detaches")
        client.sees("you have the keyboard")
        client.types("\x1d?")
        client.sees("q       detach. A dot does the same")
        client.types("one\x1d\x1dtwo")
        client.sees("one\x1dtwo")
        client.types("\x1b[?1049h\x1b[?25l\x1b[?2004h\x1b[?2004l.")
        client.sees("2004l.")
        client.types("\x1d")
        client.types(key)
        assert client.sees("asyncrevoke: ") == "\r\n\x1b[?25h\x1b[?1049l"
        assert client.ends("lab: detached") == 0


def test_escape_key_interrupts_a_program_that_does_not_read() -> None:
    """Behind a paste that is stuck, ctrl-C is not seen; ctrl-] c throws the paste away and is."""
    program = "sh", "-c", "read line; stty raw isig -echo; echo ready; exec sleep 1000"
    with sharing("--name", "lab", "--", *program), attach("lab") as client:
        client.sees("you have the keyboard")
        client.types("\r")
        client.sees("ready")
        for _ in range(50):
            client.types("x" * 2000)
        client.types("\x03\x1dc")
        assert client.ends("the program has ended with status -2") == 0


SIZES = """
import os, signal
signal.pthread_sigmask(signal.SIG_BLOCK, [signal.SIGWINCH])
while True:
    print(tuple(os.get_terminal_size()), flush=True)
    signal.sigwait([signal.SIGWINCH])
"""


def test_window_size_follows() -> None:
    """The terminal has the size of the window from the first, and after every change of it."""
    with sharing("--name", "lab", "--", sys.executable, "-ISc", SIZES), attach("lab") as client:
        for rows, columns in (33, 101), (44, 99):
            client.resize(rows, columns)
            client.sees(f"({columns}, {rows})")


@pytest.mark.parametrize(("window", "size"), [((0, 0), "24 80"), ((20, 2000), "20 999")])
def test_window_may_have_any_size(window: tuple[int, int], size: str) -> None:
    """One that tells none, as on a serial line, leaves the terminal's as it is; one that is huge is cut."""
    program = "sh", "-c", "while read line; do stty size; done"
    with sharing("--name", "lab", "--", *program), Client("attach", "lab", size=window) as client:
        client.sees("you have the keyboard")
        client.types("\r")
        client.sees(size)


def test_keyboard_changes_hands_and_both_are_told() -> None:
    """One types and the other does not, until it is taken by force; who leaves hands it on."""
    with sharing("--name", "lab"), attach("lab") as alice:
        alice.sees("you have the keyboard")
        with attach("lab") as bob:
            bob.sees("root has the keyboard")
            bob.types("unheard")
            with attach("--force", "lab") as carol:
                carol.sees("you have the keyboard")
                for each in alice, bob:
                    each.sees("root-3 has the keyboard")
                alice.sees(" (taken from you by root-3)")
                alice.types("unheard")
                carol.types("heard")
                assert "un" not in bob.sees("heard")
                carol.types("\x1dq")
                assert carol.ends("detached") == 0
            alice.sees("you have the keyboard")
            bob.sees("root has the keyboard")


def test_read_only_watches_from_the_last_output_on() -> None:
    """It gets what was there before, never the keyboard, and ctrl-C detaches."""
    with sharing("--name", "lab"), attach("lab") as alice:
        alice.sees("you have the keyboard")
        alice.types("before")
        alice.sees("before")
        with attach("--read-only", "lab") as bob:
            bob.sees("before")
            bob.types("unheard")
            alice.types("heard")
            assert "un" not in bob.sees("heard")
            alice.types("\x1dq")
            assert alice.ends("detached") == 0
            bob.sees("nobody has the keyboard")
            bob.types("\x03")
            assert bob.ends("detached") == 0


def test_input_from_a_pipe_is_sent_and_its_answer_shown() -> None:
    """It waits for the keyboard, and detaches when there is nothing more to come."""
    with sharing("--name", "lab", "--", "cat"), attach("lab") as alice:
        alice.sees("you have the keyboard")
        command = [*COMMAND, "attach", "lab"]
        with subprocess.Popen(command, stdin=-1, stdout=-1, stderr=-1, text=True) as piped:
            assert piped.stdin
            piped.stdin.write("hello\n")
            piped.stdin.flush()
            hears(piped, "waiting for it")
            alice.types("\x1dq")
            assert alice.ends("detached") == 0
            out, err = piped.communicate(timeout=30)
        assert (piped.returncode, out) == (0, "hello\nhello\n")
        assert err.endswith("lab: detached\n")


class Printing(Control):
    """A server that prints so often, every 0.7 s, and does not answer who detaches."""

    def __init__(self, times: int) -> None:
        self.left = times
        self.detached = 0.0

    async def send(self, record: dict[str, Any]) -> None:
        if "detach" in record:
            self.detached = anyio.current_time()

    async def receive(self) -> dict[str, Any]:
        if not self.left:
            await anyio.sleep_forever()
        self.left -= 1
        await anyio.sleep(0.7)
        return {"data": ""}


class Nothing(Terminal):
    """A pipe from which nothing comes."""

    def __init__(self) -> None:
        super().__init__()
        self.raw = False

    async def read(self) -> bytes:
        return b""


@pytest.mark.parametrize(("times", "detaches"), [(10, 7 + 1), (1000, 10)])
def test_end_of_a_pipe_detaches_when_nothing_comes_any_more(times: int, detaches: float) -> None:
    """That is a second after the last output, or ten after the end, however much comes; the answer is not waited for."""

    async def scenario() -> None:
        signals, never = anyio.create_memory_object_stream[Any]()
        begin, server = anyio.current_time(), Printing(times)
        attachment = _Attachment(server, Nothing(), watches=False)
        attachment._may_type_if(yours=True)
        with signals, never, never.clone() as either, anyio.fail_after(60):
            assert await attachment.run({}, never, either) == "detached"
        assert server.detached - begin == pytest.approx(detaches)

    clock = trio.testing.MockClock(autojump_threshold=0)
    anyio.run(scenario, backend="trio", backend_options={"clock": clock})


def test_input_from_a_pipe_waits_when_the_keyboard_is_taken() -> None:
    """What comes meanwhile is sent when it is back."""
    command = [*COMMAND, "attach", "lab"]
    with (
        sharing("--name", "lab", "--", "cat"),
        subprocess.Popen(command, stdin=-1, stdout=-1, stderr=-1, text=True) as piped,
    ):
        hears(piped, "you have the keyboard")
        with attach("--force", "lab") as alice:
            hears(piped, "waiting for it")
            take(piped, "hello\n")
            alice.types("\x1dq")
            assert alice.ends("detached") == 0
        out, _ = piped.communicate(timeout=30)
        assert (piped.returncode, out) == (0, "hello\nhello\n")


def test_input_from_a_pipe_waits_while_the_device_is_away(tmp_path: pathlib.Path) -> None:
    """What comes meanwhile is sent to the next device."""
    port = tmp_path / "port"
    command = [*COMMAND, "attach", "--wait", "port"]
    with serial_line() as first, serial_line() as second, sharing(str(port)):
        port.symlink_to(first.path)
        with subprocess.Popen(command, stdin=-1, stdout=-1, stderr=-1, text=True) as piped:
            hears(piped, "you have the keyboard")
            port.unlink()
            first.close()
            hears(piped, "away: ")
            take(piped, "typed")
            port.symlink_to(second.path)
            received = b""
            while received != b"typed":
                received += second.received(30)
            piped.terminate()
            piped.communicate()


def test_input_and_output_may_be_files(tmp_path: pathlib.Path) -> None:
    """They are always ready, which the system does not say."""
    (tmp_path / "in").write_text("from a file\n")
    with (
        sharing("--name", "lab", "--", "cat"),
        (tmp_path / "in").open() as stdin,
        (tmp_path / "out").open("w") as stdout,
    ):
        done = subprocess.run([*COMMAND, "attach", "lab"], stdin=stdin, stdout=stdout, stderr=-1, text=True, timeout=60)
    assert done.stderr.endswith("lab: detached\n")
    assert (tmp_path / "out").read_text() == "from a file\n" * 2


def test_what_is_typed_before_the_escape_key_is_sent() -> None:
    """Also if it is read together with it."""
    with sharing("--name", "lab"), attach("lab") as alice, attach("lab") as bob:
        alice.sees("you have the keyboard")
        alice.types("last words\x1dq")
        bob.sees("last words")
        assert alice.ends("detached") == 0


def fill(terminal: int) -> None:
    """Write to a terminal until it takes no more, as nobody reads it; the kernel makes room a little later."""
    own = os.open(os.ttyname(terminal), os.O_WRONLY | os.O_NONBLOCK | os.O_NOCTTY)  # others may still wait there
    refused = 0
    while refused < 50:
        try:
            os.write(own, b"." * 100)
            refused = 0
        except BlockingIOError:
            refused += 1
            time.sleep(0.001)
    os.close(own)


def test_slow_terminal_gets_all() -> None:
    """Of output that it takes in small parts nothing is lost."""
    program = "input(); print('x' * 60_000 + 'end'); input()"
    with sharing("--name", "lab", "--", sys.executable, "-ISc", program), attach("lab") as client:
        client.sees("you have the keyboard")
        fill(client.slave)
        client.types("\n")
        assert client.sees("end").count("x") == 60_000


def test_client_on_a_stalled_terminal_detaches() -> None:
    """The escape key works, and what we have to say ourselves waits for nobody; what was not read is thrown away."""
    with sharing("--name", "lab"), attach("lab") as client:
        client.sees("you have the keyboard")
        fill(client.slave)
        client.types("\x1d?\x1dq")
        assert client.process.wait(30) == 0
        assert client.ends("lab: detached") == 0


def test_screen_modes_are_undone_however_they_come() -> None:
    """A long sequence that comes in two parts is one."""
    with sharing("--name", "lab"), attach("lab") as client:
        client.types("\x1b[?1000;1002;1006;20")
        client.sees("1006;20")
        client.types("04h.")
        client.sees("04h.")
        client.types("\x1dq")
        assert client.sees("asyncrevoke: ") == "\r\n\x1b[?1000l\x1b[?1002l\x1b[?1006l\x1b[?2004l"


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGHUP])
def test_signal_ends_a_client_in_order(number: signal.Signals) -> None:
    """The terminal is as before, and it says by which."""
    with sharing("--name", "lab"), attach("lab") as client:
        client.process.send_signal(number)
        assert client.ends(f"ended by {number.name}") == 1


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT, signal.SIGHUP])
def test_signal_ends_a_server_in_order(number: signal.Signals, folder: pathlib.Path) -> None:
    """Clients are told, the socket is removed, and it is no failure."""
    with sharing("--name", "lab") as server, attach("lab") as client:
        server.send_signal(number)
        assert client.ends("the console server was stopped") == 1
        assert server.wait(30) == 0
        assert list(folder.iterdir()) == []


def test_server_under_nohup_outlives_its_terminal(capsys: pytest.CaptureFixture[str]) -> None:
    """A SIGHUP that is ignored from the first stays so."""
    with sharing("--name", "lab", by=("nohup",)) as server:
        server.send_signal(signal.SIGHUP)
        assert listed(capsys)["lab"]["state"] == "live"


def test_killed_server_is_told_and_its_socket_passed_over(
    capsys: pytest.CaptureFixture[str], folder: pathlib.Path
) -> None:
    """Clients end with their terminal restored; the dead socket is in nobody's way."""
    with sharing("--name", "lab") as server, attach("lab") as client:
        server.kill()
        assert client.ends("the server has gone without a word") == 1
        server.wait(30)
    assert [each.name for each in folder.iterdir()] == ["lab.sock"]
    assert main(["ls"]) == 0
    assert "nothing is shared. Looked in " + str(folder) in capsys.readouterr().err
    with sharing("--name", "lab"):
        assert list(listed(capsys)) == ["lab"]


def test_killed_client_leaves_nothing(capsys: pytest.CaptureFixture[str]) -> None:
    """It is gone from the list, and the keyboard is the next one's."""
    with sharing("--name", "lab"), attach("lab") as alice, attach("lab") as bob:
        alice.process.kill()
        bob.sees("you have the keyboard")
        assert [path for path in listed(capsys, "--who") if re.fullmatch("lab/root.*", path)] == [
            "lab/root-2",
            "lab/root-2/keyboard",
        ]


def test_program_ends_and_so_does_all() -> None:
    """Clients get its last words and its status, and the server ends."""
    with sharing("--name", "lab", "--", "sh", "-c", "read x; echo bye; exit 7") as server, attach("lab") as client:
        client.sees("you have the keyboard")
        client.types("\n")
        client.sees("bye")
        assert client.ends("lab: the program has ended with status 7") == 0
        assert server.wait(30) == 0


def test_device_goes_and_comes_back(tmp_path: pathlib.Path) -> None:
    """Who waits is told, and goes on with the next generation; the others end."""
    port = tmp_path / "port"
    with serial_line() as first, serial_line() as second, sharing(str(port)):
        port.symlink_to(first.path)
        with attach("--wait", "port") as alice:
            alice.sees("you have the keyboard")

            def talks(end: FarEnd) -> None:
                end.send(b"ready")
                alice.sees("ready")
                alice.types("typed")
                received = b""
                while received != b"typed":
                    received += end.received(30)

            talks(first)
            with attach("--read-only", "port") as bob:
                bob.sees("ready")
                port.unlink()  # first: the number of a pty is soon another's
                first.close()
                alice.sees("[away: ")
                assert bob.ends("port") == 1
            port.symlink_to(second.path)
            alice.sees("[back again]")
            talks(second)


def test_several_from_a_file(tmp_path: pathlib.Path, capsys: pytest.CaptureFixture[str]) -> None:
    """They share one socket; who revokes one leaves the other; all output is in the log."""
    config, log = tmp_path / "c.toml", tmp_path / "log"
    config.write_text(f'[share.one]\ncommand = ["cat"]\nlog = "{log}"\n[share.two]\n')
    with sharing("--config", str(config)) as server, attach("one") as client:
        assert server.stdout
        assert server.stdout.readline() == "sharing 'two' (loopback): asyncrevoke attach two\n"
        client.sees("you have the keyboard")
        client.types("hi\r")
        client.sees("hi\r\nhi\r\n")
        assert sorted(listed(capsys)) == ["one", "two"]
        assert main(["revoke", "one"]) == 0
        assert client.ends("root was taken off by root") == 1
        assert {name: record["state"] for name, record in listed(capsys).items()} == {"one": "over", "two": "live"}
        assert log.read_bytes() == b"hi\r\nhi\r\n"


def test_socket_of_the_file_is_told_where_nobody_looks(tmp_path: pathlib.Path) -> None:
    """The command that is printed works as it is."""
    config, socket = tmp_path / "c.toml", tmp_path / "elsewhere.sock"
    config.write_text(f'[share.one]\n[share.two]\n[[sockets]]\npath = "{socket}"\n')
    with sharing("--config", str(config)) as server:
        assert server.stdout
        printed = server.stdout.readline()
        assert printed == f"sharing 'two' (loopback): asyncrevoke attach --socket {socket} two\n"
        with attach(*printed.split()[5:]) as client:
            client.sees("you have the keyboard")


def test_ls_shows_who_is_there(capsys: pytest.CaptureFixture[str]) -> None:
    """A table for people, a record per line for programs, the clients and the keyboard with `--who`."""
    with sharing("--name", "lab"), attach("lab") as client:
        client.sees("you have the keyboard")
        record = listed(capsys)["lab"]
        assert (record["state"], record["generation"], record["clients"], record["reason"]) == ("live", 1, 1, "")
        assert {"lab", "lab/root", "lab/root/keyboard"} <= set(listed(capsys, "--who"))
        assert main(["ls"]) == 0
        head, line = capsys.readouterr().out.splitlines()
        assert head.split() == ["NAME", "DEVICE", "SETTINGS", "STATE", "KEYBOARD", "USERS", "SINCE"]
        assert line.split()[:5] == ["lab", "loopback", "live", "root", "1"]
        assert main(["ls", "--who"]) == 0
        assert re.search(r"^lab/root +has the keyboard", capsys.readouterr().out, re.MULTILINE)
        assert main(["ls", "--all"]) == 0
        assert re.search(r"^  lab/root +live", capsys.readouterr().out, re.MULTILINE)


def test_ls_watch_shows_what_happens(folder: pathlib.Path) -> None:
    """Events as they come, until the server has ended, which it says."""
    watch = "ls", "--watch", "--json", "--socket", str(folder / "lab.sock")
    with sharing("--name", "lab") as server, Client(*watch) as watcher, attach("lab") as client:
        watcher.sees('"watching"')
        watcher.sees("\r\n")
        client.types("\x1dq")
        client.sees("detached")
        while json.loads(watcher.sees("\r\n"))["event"] != "released":
            pass
        server.terminate()
        assert watcher.ends("lab.sock: the control server has ended") == 1


# -- errors --


@pytest.mark.parametrize(
    ("words", "status", "says"),
    [
        ("attach nothing", 1, "no share is named 'nothing'. Looked in "),
        ("revoke nothing/bob", 1, "no share is named 'nothing'. Looked in "),
        ("ls --socket /nowhere", 1, "/nowhere: no control server can be reached: No such file"),
        ("ls --socket /\x1b[2J", 1, r"/\x1b[2J: no control server can be reached: No such file"),
        ("share -- no-such-program", 1, "no-such-program: No such file"),
        ("share --name a/b", 1, "'a/b' is not a name"),
        ("share --group no-such-group", 1, "there is no group 'no-such-group'"),
        ("share --config /nowhere.toml", 1, "/nowhere.toml: No such file"),
        ("share --", 2, "a command after --"),
        ("share sh", 2, "'sh' is a program. Run: asyncrevoke share -- sh"),
        ("share --nam x", 2, "--nam"),
        ("share /dev/ttyS0 -- bash", 2, "a command after --"),
        ("share --config x --name y", 2, "with --config, give only"),
        ("revoke x --timeout -1", 2, "'-1' is not a number of seconds"),
        ("revoke x --timeout soon", 2, "'soon' is not a number of seconds"),
        ("revoke /dev/ttyS0", 1, "/dev/ttyS0: no server took it away. Looked in "),
        ("revoke ./pyproject.toml", 1, "/pyproject.toml: no server took it away. Looked in "),
        ("revoke /dev/ttyS0", 1, ". --kernel takes it from all programs"),
        ("revoke /dev/ttyS0 --yes", 2, "--yes needs --kernel"),
        ("revoke x --timeout 86401", 2, "'86401' is not a number of seconds from 0 to 86400"),
        ("revoke x --yes", 2, "--yes needs --kernel"),
        ("give lab", 2, "give: name a client, as `ls --who` shows it, such as lab/bob"),
        ("give lab/bob", 1, "no share is named 'lab'"),
        ("revoke x y/*", 2, "several must be names, such as router/alice router/alice-2"),
        ("revoke x /dev/ttyS0", 2, "several must be names"),
        ("revoke --kernel /dev/ttyS0 /dev/ttyS1", 2, "several must be names"),
        ("revoke --kernel /nowhere", 1, "/nowhere: No such file"),
        ("revoke --kernel /dev/null", 1, "/dev/null: the kernel cannot take a device of 'mem' away"),
        ("revoke --kernel pyproject.toml", 1, "pyproject.toml: the kernel takes away terminals, "),
    ],
)
def test_error_is_one_line(words: str, status: int, says: str, capsys: pytest.CaptureFixture[str]) -> None:
    """It names the thing, and what to do."""
    try:
        assert main(words.split()) == status
    except SystemExit as exit_:
        assert exit_.code == status  # noqa: PT017  # usage errors exit
    out, err = capsys.readouterr()
    assert says in err.splitlines()[-1]
    assert out == ""


def test_group_of_the_file_counts(capsys: pytest.CaptureFixture[str], tmp_path: pathlib.Path) -> None:
    """Unless another is given."""
    config = tmp_path / "c.toml"
    config.write_text('group = "no-such-group"\n[share.lab]\nlog = "/nowhere/log"\n')
    for more, says in ([], "no group 'no-such-group'"), (["--group", "daemon"], "/nowhere/log: No such file"):
        assert main(["share", "--config", str(config), *more]) == 1
        assert says in capsys.readouterr().err


def test_interrupted_it_says_nothing() -> None:
    """The status is that of a program that died of ctrl-C."""
    with subprocess.Popen([*COMMAND, "demo"], stdout=-1, stderr=-1, text=True) as demo:
        assert demo.stdout
        demo.stdout.readline()
        demo.send_signal(signal.SIGINT)
        _, err = demo.communicate(timeout=60)
    assert (demo.returncode, err) == (130, "")


def test_what_nobody_expects_is_a_traceback(monkeypatch: pytest.MonkeyPatch) -> None:
    """A fault of ours is not told in a line as if it were the user's, also if it comes in a group."""

    async def look(_: str) -> None:
        raise BaseExceptionGroup("", [OSError("expected"), ValueError("not expected")])

    monkeypatch.setattr("asyncrevoke.console.commands.look", look)
    with pytest.raises(BaseExceptionGroup):
        main(["ls"])


def test_name_that_is_shared_twice_is_ambiguous(capsys: pytest.CaptureFixture[str], tmp_path: pathlib.Path) -> None:
    """The error tells the sockets, one of which can be chosen."""
    other = tmp_path / "run" / "other.sock"
    with sharing("--name", "lab"), sharing("--name", "lab", "--socket", str(other)):
        assert main(["revoke", "lab"]) == 1
        assert f"lab.sock or {other}" in capsys.readouterr().err
        assert main(["revoke", "lab", "--json", "--socket", str(other)]) == 0
        report = json.loads(capsys.readouterr().out)
        assert (report["done"], report["report"]["name"], report["stragglers"]) == (True, "lab", [])
        assert list(listed(capsys)) == ["lab"]


@pytest.mark.parametrize("full", [False, True])
def test_silent_server_is_named_and_hides_nobody(
    full: bool, capsys: pytest.CaptureFixture[str], folder: pathlib.Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """One that is stopped, or hangs, is told of, however many wait for it already; the others are listed."""
    patience = anyio.fail_after
    monkeypatch.setattr(anyio, "fail_after", lambda delay: patience(min(delay, 1.0)))
    with sharing("--name", "lab"), socket.socket(socket.AF_UNIX) as silent, contextlib.ExitStack() as waiting:
        silent.bind(str(folder / "a.sock"))
        silent.listen(0 if full else 10)
        with contextlib.suppress(BlockingIOError):
            while full:
                client = waiting.enter_context(socket.socket(socket.AF_UNIX))
                client.setblocking(False)
                client.connect(str(folder / "a.sock"))
        assert main(["ls", "--json"]) == 1  # the list may lack something
        out, err = capsys.readouterr()
        assert json.loads(out)["path"] == "lab"
        assert err == f"asyncrevoke: {folder / 'a.sock'} (it does not answer)\n"
        assert main(["revoke", "a"]) == 1
        assert "a.sock (it does not answer)" in capsys.readouterr().err
        assert main(["revoke", "a", "--socket", str(folder / "a.sock")]) == 1
        says = (
            f"{folder / 'a.sock'}: it does not answer"
            if full
            else "a: the server does not answer, and may still take it away later"
        )
        assert capsys.readouterr().err == f"asyncrevoke: {says}\n"


@pytest.mark.parametrize("what", ["alice/t1", "alice/*", "/dev/zero"])
def test_service_is_asked_by_its_socket(what: str, tmp_path: pathlib.Path) -> None:
    """Where it is, all that its registry has can be revoked: keys, what is below them, devices by their path."""
    path = str(tmp_path / "s")

    async def scenario() -> None:
        registry = Registry()
        handle = registry["alice", "t1"].open() if "alice" in what else registry.name("zero", "/dev/zero").open()
        async with anyio.create_task_group() as tasks:
            await tasks.start(serve, registry, path)
            assert await anyio.to_thread.run_sync(main, ["revoke", what, "--socket", path]) == 0
            assert handle.released
            tasks.cancel_scope.cancel()

    anyio.run(scenario)


def test_keyboard_is_given_to_a_client_by_a_command(capsys: pytest.CaptureFixture[str]) -> None:
    """Both are told, and whoever had it by whom."""
    with sharing("--name", "lab"), attach("lab") as alice, attach("lab") as bob:
        alice.sees("you have the keyboard")
        assert main(["give", "lab/root-2"]) == 0
        assert capsys.readouterr().out == "lab/root-2 has the keyboard\n"
        bob.sees("you have the keyboard")
        alice.sees("root-2 has the keyboard (taken from you by root)")
        assert main(["give", "lab/root-3"]) == 1
        assert "'root-3' is not attached to 'lab'. Attached: root" in capsys.readouterr().err


def test_several_names_are_revoked_in_one_command(capsys: pytest.CaptureFixture[str]) -> None:
    """Of several servers, too, each of which says how it went. Of one with a name that is not there, nothing is."""
    with (
        sharing("--name", "one"),
        sharing("--name", "two"),
        attach("one") as alice,
        attach("one") as again,
        attach("two") as bob,
    ):
        assert main(["revoke", "one/root", "one/root-3"]) == 1
        assert capsys.readouterr().err.startswith("asyncrevoke: nothing is open at 'one/root-3'")
        assert main(["revoke", "one/root", "two/root", "one/root-2", "--reason", "off"]) == 0
        for client in alice, again, bob:
            assert client.ends("off") == 1
    out = capsys.readouterr().out
    assert [line.partition(" revoked")[0] for line in out.splitlines()] == ["'one/root, one/root-2'", "'two/root'"]


@pytest.mark.parametrize("what", ["node", "./node", "../place/node", "folder", "folder/*"])
def test_device_is_revoked_by_its_path_in_all_servers(
    what: str, folder: pathlib.Path, tmp_path: pathlib.Path, monkeypatch: pytest.MonkeyPatch, capsys: Any
) -> None:
    """Whoever has it open: each that is found is asked, and reports; the path begins where the command is run."""
    place = tmp_path / "place"
    for each in folder, place, place / "folder":
        each.mkdir()
    (place / "node").touch()
    (place / "folder" / "link").symlink_to("../node")
    monkeypatch.chdir(place)
    words = ["revoke", what if what.startswith(".") else str(place / what), "--reason", "off", "--timeout", "0.1"]

    async def scenario() -> None:
        registries = {name: Registry() for name in ("one", "two", "three")}
        async with anyio.create_task_group() as tasks:
            for name, registry in registries.items():
                await tasks.start(serve, registry, folder / f"{name}.sock")
            assert await anyio.to_thread.run_sync(main, words) == 1
            held = [registries[name].name(name, place / "node").open() for name in ("one", "two")]
            other = registries["three"].name("three").open()
            assert held[1].start_using()
            assert await anyio.to_thread.run_sync(main, words) == 3
            assert [file.reason for file in held] == ["off", "off"]
            assert not other.revoked
            held[1].stop_using()
            held = [registries[name].find(name).open() for name in ("one", "two")]
            assert await anyio.to_thread.run_sync(main, [*words, "--json"]) == 0
            assert all(file.released for file in held)
            tasks.cancel_scope.cancel()

    anyio.run(scenario)
    out, err = capsys.readouterr()
    assert err.count("asyncrevoke: ") == 1, "the first time no server has it"
    assert {each.partition(" revoked (off): ")[0] for each in out.splitlines()[:-2]} >= {"'one'", "'two'"}
    assert [json.loads(each)["done"] for each in out.splitlines()[-2:]] == [True, True]


def test_a_path_never_means_everything(folder: pathlib.Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Where no shell has put anything in the place of a star, it is the folder: here the root, where there is too much."""
    folder.mkdir()

    async def scenario() -> None:
        registry = Registry()
        async with anyio.create_task_group() as tasks:
            await tasks.start(serve, registry, folder / "one.sock")
            file = registry.name("lab").open()
            assert await anyio.to_thread.run_sync(main, ["revoke", "/*"]) == 1
            assert not file.revoked
            tasks.cancel_scope.cancel()

    anyio.run(scenario)
    assert "/*: no server took it away" in capsys.readouterr().err


def test_shared_device_is_hung_up_by_its_path(tmp_path: pathlib.Path) -> None:
    """By that of its node, under which it was not shared; who waits goes on with the next generation."""
    port = tmp_path / "port"
    with serial_line() as line, sharing("--name", "lab", str(port)):
        port.symlink_to(line.path)
        with attach("--wait", "lab") as client:
            client.sees("you have the keyboard")
            assert main(["revoke", line.path, "--reason", "off"]) == 0
            client.sees("[away: hung up by root: off")
            client.sees("[back again]")
            assert main(["revoke", str(tmp_path)]) == 0
            client.sees("[back again]")


@pytest.mark.parametrize(("what", "status"), [("inside", 3), ("fails", 4), ("well", 0)])
def test_revoke_tells_how_it_went(
    what: str, status: int, tmp_path: pathlib.Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Its exit status, and what it prints: who is still inside, and what failed."""
    path = str(tmp_path / "s")

    async def scenario() -> None:
        registry = Registry()
        name = registry.name("lab")
        held = name.open("inside")
        assert held.start_using()
        fails = name.open("fails", release=lambda: 1 / 0)
        name.open("well")
        async with anyio.create_task_group() as tasks:
            await tasks.start(serve, registry, path)
            words = ["revoke", f"lab/{what}", "--socket", path, "--timeout", "0.1", "--reason", "why\u00e9"]
            assert await anyio.to_thread.run_sync(main, words) == status
            held.stop_using()
            held.close()
            fails.close()
            tasks.cancel_scope.cancel()

    anyio.run(scenario)
    out, _ = capsys.readouterr()
    assert f"'lab/{what}' revoked (why\u00e9): " in out
    assert ("inside: " in out, "failed: ZeroDivisionError" in out) == (status == 3, status == 4)


def test_grace_is_given(tmp_path: pathlib.Path) -> None:
    """Nobody is kicked before; who does not wait for it is told that it goes on."""
    path = str(tmp_path / "s")

    async def scenario() -> None:
        registry = Registry()
        held = registry.root.open("lab")
        assert held.start_using()
        async with anyio.create_task_group() as tasks:
            await tasks.start(serve, registry, path)
            words = ["revoke", "lab", "--socket", path, "--grace", "3600", "--timeout", "0"]
            status = await anyio.to_thread.run_sync(main, words)
            kicked = held.kicked
            held.stop_using()
            held.close()
            tasks.cancel_scope.cancel()
        assert (status, kicked) == (3, False)

    anyio.run(scenario)


def test_server_that_refuses_hides_nobody(folder: pathlib.Path, capsys: pytest.CaptureFixture[str]) -> None:
    """What it answers is told, and the others are listed."""

    async def scenario() -> None:
        async with anyio.create_task_group() as tasks:
            await tasks.start(lambda *, task_status: serve(Registry(), refuses, clients=0, task_status=task_status))
            assert await anyio.to_thread.run_sync(main, ["ls", "--json"]) == 1
            tasks.cancel_scope.cancel()

    refuses = str(folder / "a.sock")
    with sharing("--name", "lab"):
        anyio.run(scenario)
    out, err = capsys.readouterr()
    assert json.loads(out)["path"] == "lab"
    assert err == f"asyncrevoke: {refuses} (0 clients are connected already: try again later)\n"


def test_names_of_a_service_do_nothing_to_a_terminal(
    tmp_path: pathlib.Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Nor do the reasons it has: control characters are shown, in the table and as it happens."""
    path = str(tmp_path / "s")
    shown = ""

    async def scenario() -> None:
        nonlocal shown
        registry = Registry()
        held = registry.root.open("\x1b[1J")
        assert held.start_using()
        held.revoke("\x1b[2J")
        async with anyio.create_task_group() as watching, anyio.create_task_group() as tasks:
            await tasks.start(serve, registry, path)
            assert await anyio.to_thread.run_sync(main, ["ls", "--socket", path]) == 0
            watching.start_soon(anyio.to_thread.run_sync, main, ["ls", "--watch", "--socket", path])
            while "released" not in shown:
                await registry.root.open("\x1b[3J").revoke("\x1b[4J")
                await anyio.sleep(0.001)
                shown += capsys.readouterr().out
            held.stop_using()
            held.close()
            tasks.cancel_scope.cancel()

    anyio.run(scenario)
    assert re.search(r"^\\x1b\[1J +kicked: \\x1b\[2J  ", shown, re.MULTILINE)
    assert r"\x1b[3J revoked (\x1b[4J)" in shown
    assert "\x1b" not in shown


@pytest.mark.parametrize(
    ("sends", "says", "status"),
    [
        ({"data": 1}, "asyncrevoke: the server sent what makes no sense", 1),
        ({"attached": "\x1b[8J"}, r"[attached as \x1b[8J", 0),
        ({}, r"lab: ended by \x1b[7J", 0),
    ],
)
def test_nonsense_of_a_server_does_nothing_to_a_terminal(
    sends: dict[str, Any], says: str, status: int, tmp_path: pathlib.Path
) -> None:
    """Of what no server sends, and of control characters where they should be none, one is told."""
    path = str(tmp_path / "s")

    async def nonsense(request: Request) -> dict[str, Any]:
        await request.connection.send(sends)
        return {"ended": "ended by \x1b[7J"}

    def look() -> None:
        with Client("attach", "lab", "--socket", path) as client:
            client.sees(says)
            assert client.process.wait(30) == status

    async def scenario() -> None:
        registry = Registry()
        async with registry.name("lab"), anyio.create_task_group() as tasks:
            await tasks.start(
                lambda *, task_status: serve(registry, path, commands={"attach": nonsense}, task_status=task_status)
            )
            await anyio.to_thread.run_sync(look)
            tasks.cancel_scope.cancel()

    anyio.run(scenario)


USER = {"kind": "operation", "name": "x", "path": "x", "since": None, "where": ""}
REPORT = {
    "name": "x",
    "reason": "",
    "kicked": 0,
    "released": 1,
    "remaining": 0,
    "unclosed": 0,
    "seconds": 0.1,
    "errors": [],
}
HUGE = 10**400  # no float is so large
NODE = {
    "path": "x",
    "kind": "name",
    "since": 1.0,
    "generation": 1,
    "state": "live",
    "in_use": 0,
    "open": 0,
    "reason": "",
}
SHARE: dict[str, Any] = {
    **dict.fromkeys(("name", "device", "settings", "state", "reason"), "x"),
    "since": 1.0,
    "keyboard": None,
    "read": 0,
    "typed": 0,
    "who": [],
}
PERSON = {"name": "bob", "keyboard": False, "types": True, "since": 1.0, "from": ""}


@contextlib.contextmanager
def answering(path: pathlib.Path, answer: bytes) -> Iterator[None]:
    """A server that says the same to everybody, whatever is asked."""

    def serve_one() -> None:
        while True:
            try:
                connection, _ = server.accept()
            except OSError:
                return
            with connection, contextlib.suppress(OSError):
                connection.recv(65536)
                connection.sendall(answer)
                connection.recv(65536)

    with socket.socket(socket.AF_UNIX) as server:
        server.bind(str(path))
        server.listen()
        thread = threading.Thread(target=serve_one)
        thread.start()
        try:
            yield
        finally:
            server.shutdown(socket.SHUT_RDWR)
            thread.join()


@pytest.mark.parametrize(
    ("words", "answer"),
    [
        (["ls"], {"node": 1}),
        (["ls"], {"node": {"path": "x"}}),
        (["ls"], {"node": {**NODE, "since": HUGE}}),
        (["ls", "--watch"], {"event": 1}),
        (["ls", "--watch"], {"event": {"event": "opened", "path": 1}}),
        (["revoke", "x"], {"ok": True}),
        (["revoke", "x"], {"ok": True, "done": True, "report": {}, "stragglers": []}),
        (["revoke", "x"], {"ok": True, "done": True, "report": {**REPORT, "seconds": HUGE}, "stragglers": []}),
        (["revoke", "x"], {"ok": True, "done": "yes", "report": REPORT, "stragglers": []}),
        (["revoke", "x"], {"ok": True, "done": True, "report": REPORT, "stragglers": [1]}),
        (["revoke", "x"], {"ok": True, "done": True, "report": REPORT, "stragglers": [{**USER, "name": 1}]}),
        (["attach", "x"], {"node": None}),
    ],
)
def test_answer_that_makes_no_sense_is_told_so(
    words: list[str], answer: dict[str, Any], tmp_path: pathlib.Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Whatever a server says, the command ends with a word about it."""
    with answering(path := tmp_path / "socket", json.dumps(answer).encode() + b"\n"):
        main([*words, "--socket", str(path)])
    assert "the server sent what makes no sense" in capsys.readouterr().err


@pytest.mark.parametrize(
    "wrong",
    [{"since": HUGE}, {"typed": -HUGE}, {"open": 1}, {"who": [{**PERSON, "since": HUGE}]}],
    ids=["since", "typed", "open", "who"],
)
def test_share_that_makes_no_sense_is_told_so(
    wrong: dict[str, Any], tmp_path: pathlib.Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """By `ls`, which ends with 1 because the list may lack something, and by `top`."""
    lines = {"ok": True}, {"share": {**SHARE, **wrong}}, {"ok": True}
    path = str(tmp_path / "socket")
    with answering(tmp_path / "socket", b"".join(json.dumps(each).encode() + b"\n" for each in lines)):
        assert main(["ls", "--socket", path]) == 1
        assert "the server sent what makes no sense" in capsys.readouterr().err
    (tmp_path / "socket").unlink()
    with (
        answering(tmp_path / "socket", b"".join(json.dumps(each).encode() + b"\n" for each in lines[1:])),
        Client("top", "--socket", path) as top,
    ):
        assert top.ends("all servers have gone: ") == 1


def test_folder_that_cannot_be_read_is_told(
    folder: pathlib.Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """What is found elsewhere is listed. The status is 1, because the list may lack something."""
    monkeypatch.setattr(sockets, "SYSTEM", folder)
    with sharing("--name", "lab"):
        monkeypatch.setenv("RUNTIME_DIRECTORY", str(folder / "lab.sock"))  # is no folder
        assert main(["ls"]) == 1
        shown = capsys.readouterr()
        assert ("lab  " in shown.out, shown.err) == (
            True,
            f"asyncrevoke: {folder / 'lab.sock'} (Not a directory)\n",
        )


@pytest.mark.parametrize("command", [COMMAND, [str(pathlib.Path(sys.executable).with_name("asyncrevoke"))]])
@pytest.mark.parametrize("at", ["anyio", "asyncrevoke.console.cli", "asyncrevoke.console.commands"])
def test_interrupted_while_it_starts_it_says_nothing(command: list[str], at: str, tmp_path: pathlib.Path) -> None:
    """Ctrl-C is no traceback, whatever is just being imported."""
    finder = f"""
import os, signal, sys
class Interrupt:
    def find_spec(self, name, *_):
        if name == {at!r}:
            os.kill(os.getpid(), signal.SIGINT)
sys.meta_path.insert(0, Interrupt())
"""
    (tmp_path / "sitecustomize.py").write_text(finder)
    env = {**os.environ, "PYTHONPATH": str(tmp_path)}
    done = subprocess.run([*command, "ls"], capture_output=True, text=True, timeout=60, env=env)
    assert (done.returncode, done.stdout, done.stderr) == (-signal.SIGINT, "", "")


def test_reader_of_the_output_may_leave() -> None:
    """A closed pipe is no traceback."""
    with sharing("--name", "lab"), subprocess.Popen([*COMMAND, "ls"], stdout=-1, stderr=-1, text=True) as ls:
        assert ls.stdout
        assert ls.stderr
        ls.stdout.close()
        assert ls.stderr.read() == ""
        assert ls.wait(30) == 1


# -- the folder of the sockets --


def test_folder_is_made_for_its_user_or_a_group(folder: pathlib.Path) -> None:
    """0700, and 0750 for a group; one that is for another group is left as it is."""
    assert new_socket("lab") == str(folder / "lab.sock")
    assert folder.stat().st_mode & 0o777 == 0o700
    own, other = (grp.getgrgid(gid).gr_name for gid in (os.getegid(), 1 if os.getegid() != 1 else 2))
    for _ in range(2):
        new_socket("lab", own)
        assert (folder.stat().st_mode & 0o777, folder.stat().st_gid) == (0o750, os.getegid())
    with pytest.raises(PermissionError, match="another group"):
        new_socket("lab", other)
    folder.chmod(0o755)
    new_socket("lab", other)


@pytest.mark.parametrize(
    "unsafe",
    [0o770, 0o702, "another's", "another's link", "link to another's"],
    ids=lambda unsafe: f"{unsafe:o}" if isinstance(unsafe, int) else unsafe,
)
def test_folder_of_others_is_refused(unsafe: int | str, folder: pathlib.Path, tmp_path: pathlib.Path) -> None:
    """Who can write there could put a socket of his own in the place of ours."""
    if isinstance(unsafe, str) and os.geteuid():
        pytest.skip("only root can make a folder of another user's")
    if isinstance(unsafe, str) and "link" in unsafe:
        (tmp_path / "real").mkdir(0o700)
        folder.symlink_to(tmp_path / "real")
    else:
        folder.mkdir(0o700)
    if isinstance(unsafe, int):
        folder.chmod(unsafe)
    else:
        os.chown(folder, 65534, -1, follow_symlinks=unsafe != "another's link")
    with pytest.raises(PermissionError, match="--socket"):
        new_socket("lab")


def test_folder_that_is_not_safe_any_more_is_not_looked_into(
    folder: pathlib.Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """What is attached to might be another's, who gets all that is typed; why it is not found is said."""
    with sharing("--name", "lab"):
        folder.chmod(0o777)
        for words in ["ls"], ["attach", "lab"]:
            assert main(words) == 1
            why = "because other users may write there"
            assert f"{folder} (sockets are not safe here, {why}: " in capsys.readouterr().err


@as_root
def test_group_is_let_in(folder: pathlib.Path) -> None:
    """Into the folder that is made for the socket."""
    other = 1 if os.getegid() != 1 else 2
    with sharing("--name", "lab", "--group", grp.getgrgid(other).gr_name):
        for there, mode in (folder, 0o750), (folder / "lab.sock", 0o660):
            assert (there.stat().st_gid, there.stat().st_mode & 0o777) == (other, mode)


def test_each_user_has_a_folder_of_his_own(monkeypatch: pytest.MonkeyPatch) -> None:
    """That of the unit, of which there may be several, that of the system for root, or that of the session, if there is one."""
    monkeypatch.setenv("RUNTIME_DIRECTORY", "/run/a:/run/b")
    assert own_folder() == pathlib.Path("/run/a")
    monkeypatch.delenv("RUNTIME_DIRECTORY")
    monkeypatch.setenv("XDG_RUNTIME_DIR", "/run/user/1000")
    monkeypatch.setattr(os, "geteuid", lambda: 0)
    assert own_folder() == sockets.SYSTEM
    monkeypatch.setattr(os, "geteuid", lambda: 1000)
    assert own_folder() == pathlib.Path("/run/user/1000/asyncrevoke")
    monkeypatch.delenv("XDG_RUNTIME_DIR")
    assert own_folder() == pathlib.Path("/tmp/asyncrevoke-1000")


def test_folder_that_is_the_system_s_is_looked_into_once(
    folder: pathlib.Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """As it is for root."""
    monkeypatch.setattr(sockets, "SYSTEM", folder)
    with sharing("--name", "lab"):
        assert main(["revoke", "nothing"]) == 1
    assert capsys.readouterr().err.endswith(f"Looked in {folder}\n")


# -- by the kernel --


@privileged
def test_kernel_revocation_names_the_holders_and_hangs_up(capsys: pytest.CaptureFixture[str]) -> None:
    """Device and processes are told before; a reader gets the end."""
    with serial_line() as end, reader(end.path) as child:
        assert child.stdout
        assert main(["revoke", "--kernel", end.path]) == 1
        said = capsys.readouterr()
        assert "give --yes" in said.err
        assert ") is held by 1 process:\n" in said.out, "not by us, who have it open to tell"
        assert re.search(rf"^{child.pid} +root +open +\S*python", said.out, re.MULTILINE)
        assert child.poll() is None
        assert main(["revoke", "--kernel", "--yes", end.path]) == 0
        assert f"{end.path} is hung up" in capsys.readouterr().out
        assert child.stdout.readline() == "b''\n"


IN_A_CONTAINER = """
import fcntl, os, sys, termios
while True:
    master, slave = os.openpty()
    if os.ttyname(slave) == sys.argv[1]:
        break
os.setsid()
fcntl.ioctl(slave, termios.TIOCSCTTY, 0)
print("ready", flush=True)
sys.stdin.read()
"""


@privileged
def test_kernel_revocation_tells_terminals_of_containers_from_ours(capsys: pytest.CaptureFixture[str]) -> None:
    """These have the same numbers, but are others."""
    inside = [sys.executable, "-c", IN_A_CONTAINER]
    mount = 'mount -t devpts -o newinstance,ptmxmode=0666 devpts /dev/pts && exec "$@"'
    with serial_line() as end:
        command = ["unshare", "--mount", "sh", "-c", mount, "sh", *inside, end.path]
        with subprocess.Popen(command, stdin=-1, stdout=-1, stderr=-1, text=True) as child:
            assert child.stdout
            if child.stdout.readline() != "ready\n":
                pytest.skip("no devpts can be mounted here")
            assert main(["revoke", "--kernel", end.path]) == 1
            assert "is held by no process that you can see." in capsys.readouterr().out
            child.kill()


@privileged
def test_kernel_revocation_looks_at_devices_alone(tmp_path: pathlib.Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """What else others have open is passed by, as to look at a file of a dead network file system lasts for ever."""
    looked: list[str] = []
    look = pathlib.Path.stat

    def stat(path: pathlib.Path, **options: Any) -> os.stat_result:  # of which is_dir() gives some from Python 3.13 on
        looked.append(str(path))
        return look(path, **options)

    with (
        serial_line() as end,
        pathlib.Path(end.path).open("rb") as device,
        (tmp_path / "file").open("wb") as file,
        subprocess.Popen(["sleep", "infinity"], stdin=file, stdout=device) as child,
    ):
        monkeypatch.setattr(pathlib.Path, "stat", stat)
        assert main(["revoke", "--kernel", end.path]) == 1
        child.kill()
    assert f"/proc/{child.pid}/fd/1" in looked
    assert f"/proc/{child.pid}/fd/0" not in looked


@privileged
def test_kernel_revocation_tells_whose_controlling_terminal_it_is(
    tmp_path: pathlib.Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Whatever the name of the process; who has another terminal is not told."""
    program = tmp_path / "a) b"
    program.symlink_to(sys.executable)
    takes = "import sys; held = open(sys.argv[1]); print(flush=True); input()"  # as the leader of a session
    with contextlib.ExitStack() as stack:
        ends = [stack.enter_context(serial_line()) for _ in range(2)]
        leaders = []
        for end in ends:
            command = [str(program), "-ISc", takes, end.path]
            leaders.append(stack.enter_context(subprocess.Popen(command, stdin=-1, stdout=-1, start_new_session=True)))
            assert leaders[-1].stdout
            assert leaders[-1].stdout.readline() == b"\n"
        assert main(["revoke", "--kernel", ends[0].path]) == 1
        for leader in leaders:
            leader.kill()
    out, _ = capsys.readouterr()
    assert " is held by 1 process:\n" in out
    assert re.search(rf"^{leaders[0].pid} +root +controlling terminal, open +", out, re.MULTILINE)


@privileged
def test_kernel_revocation_is_survived_by_who_asks_for_it() -> None:
    """A leader of a session that has no terminal does not get the one that it opens to hang it up."""
    with serial_line() as end:
        command = [*COMMAND, "revoke", "--kernel", "--yes", end.path]
        done = subprocess.run(command, start_new_session=True, capture_output=True, text=True, timeout=60)
    assert (done.returncode, done.stderr) == (0, "")
    assert done.stdout.endswith("is hung up\n")


@privileged
def test_kernel_revocation_without_the_privilege_does_nothing() -> None:
    """It is refused as a whole: nothing is flushed, and nobody gets a signal."""
    drop = functools.partial(ctypes.CDLL(None).prctl, 24, 21, 0, 0, 0)  # PR_CAPBSET_DROP, CAP_SYS_ADMIN
    with serial_line() as end, reader(end.path) as child:
        assert child.stdout
        command = [*COMMAND, "revoke", "--kernel", "--yes", end.path]
        done = subprocess.run(command, preexec_fn=drop, capture_output=True, text=True, timeout=60)
        assert done.returncode == 1
        assert done.stderr == f"asyncrevoke: {end.path}: only root may hang it up (CAP_SYS_ADMIN); nothing was done\n"
        end.send(b"alive")
        assert child.stdout.readline() == "b'alive'\n"


@privileged
def test_kernel_revocation_asks_on_a_terminal() -> None:
    """What is not yes is no; one's own terminal is not asked about, but refused."""
    with serial_line() as end, reader(end.path) as child:
        assert child.stdout
        for answer, says, status in ("n", "nothing was done", 1), ("y", "is hung up", 0):
            with Client("revoke", "--kernel", end.path) as client:
                client.sees("[y/N] ")
                client.types(f"{answer}\n")
                assert client.ends(says) == status
        assert child.stdout.readline() == "b''\n"
    with Client("revoke", "--kernel", "/dev/tty") as client:
        assert client.ends("is your own terminal") == 1


LISTENS = """
import socket, sys
listener = socket.socket(socket.AF_UNIX)
listener.bind(sys.argv[1])
listener.listen()
print(flush=True)
accepted, _ = listener.accept()
other = open("/dev/null")
print(accepted.recv(1), flush=True)
for call in lambda: accepted.send(b"x"), listener.accept:
    try:
        call()
    except OSError as exc:
        print(exc.strerror, flush=True)
"""


def test_kernel_revocation_shuts_a_socket_down_in_its_server(
    tmp_path: pathlib.Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Its server meets the end of what it has accepted, and no longer listens; its clients are told, other sockets stay."""
    path, other = tmp_path / "server", tmp_path / "other"
    command = [sys.executable, "-ISc", LISTENS]
    with (
        subprocess.Popen([*command, path], stdout=-1, text=True) as child,
        subprocess.Popen([*command, other], stdout=-1, text=True) as bystander,
        socket.socket(socket.AF_UNIX) as client,
        contextlib.ExitStack() as ended,
    ):
        assert child.stdout
        assert bystander.stdout
        for each in child, bystander:
            ended.callback(each.kill)
            assert each.stdout
            assert each.stdout.readline() == "\n"
        client.connect(str(path))
        assert main(["revoke", "--kernel", str(path)]) == 1
        said = capsys.readouterr()
        assert "(socket) is held by 1 process:\n" in said.out
        assert f"\n{child.pid} " in said.out
        assert "give --yes" in said.err
        client.setblocking(False)
        with pytest.raises(BlockingIOError):
            client.recv(1)
        client.setblocking(True)
        assert main(["revoke", "--kernel", "--yes", str(path)]) == 0
        assert "is taken away from all of them by shutdown" in capsys.readouterr().out
        assert client.recv(1) == b""
        assert child.stdout.read() == "b''\nBroken pipe\nInvalid argument\n"
        with socket.socket(socket.AF_UNIX) as alive:
            alive.connect(str(other))
            alive.send(b"x")
            assert bystander.stdout.readline() == "b'x'\n"


def test_kernel_revocation_finds_a_socket_that_was_bound_by_way_of_a_link(tmp_path: pathlib.Path) -> None:
    """As those in /run are, whose servers bind them in /var/run."""
    (tmp_path / "run").mkdir()
    (tmp_path / "link").symlink_to("run")
    command = [sys.executable, "-ISc", LISTENS, str(tmp_path / "link/server")]
    with subprocess.Popen(command, stdout=-1, text=True) as child, socket.socket(socket.AF_UNIX) as client:
        assert child.stdout
        assert child.stdout.readline() == "\n"
        client.connect(str(tmp_path / "run/server"))
        status = main(["revoke", "--kernel", "--yes", str(tmp_path / "run/server")])
        child.kill()
    assert status == 0


HAS_IT_TWICE = """
import os, socket, sys
listener = socket.socket(socket.AF_UNIX)
listener.bind(sys.argv[1])
listener.listen()
os.dup(listener.fileno())
print(flush=True)
sys.stdin.read()
"""


def test_kernel_revocation_counts_what_it_took_from_a_process_that_then_ends(
    tmp_path: pathlib.Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It has happened, and is not reported as nothing."""
    path = tmp_path / "server"
    with subprocess.Popen([sys.executable, "-ISc", HAS_IT_TWICE, path], stdin=-1, stdout=-1) as child:
        assert child.stdout
        assert child.stdout.readline() == b"\n"
        opened: list[int] = []

        def pidfd_open(pid: int) -> int:
            if opened:  # one of the two is taken
                child.kill()
                child.wait()
            opened.append(pid)
            return os.pidfd_open(pid)

        monkeypatch.setattr("asyncrevoke.console.kernel.pidfd_open", pidfd_open)
        assert main(["revoke", "--kernel", "--yes", str(path)]) == 0
        assert opened == [child.pid, child.pid]


@privileged
def test_kernel_revocation_promises_nothing_of_what_it_may_not_see(tmp_path: pathlib.Path) -> None:
    """Whoever may not look into another process takes nothing from it."""
    path = tmp_path / "server"
    drop = functools.partial(ctypes.CDLL(None).prctl, 24, 19, 0, 0, 0)  # PR_CAPBSET_DROP, CAP_SYS_PTRACE
    with (
        subprocess.Popen([sys.executable, "-ISc", LISTENS, path], stdout=-1, text=True) as child,
        socket.socket(socket.AF_UNIX) as client,
    ):
        assert child.stdout
        assert child.stdout.readline() == "\n"
        command = [*COMMAND, "revoke", "--kernel", "--yes", str(path)]
        done = subprocess.run(command, preexec_fn=drop, capture_output=True, text=True, timeout=60)
        client.connect(str(path))
        client.send(b"x")
        assert child.stdout.readline() == "b'x'\n"
        child.kill()
    assert done.returncode == 1
    assert done.stderr == f"asyncrevoke: {path}: no process that you can see has it, so nothing was done\n"


#: For prctl(2): a filter that lets all system calls pass but pidfd_getfd, which fails as containers have it fail.
REFUSES = """
import ctypes, os, struct, sys
code = [(0x20, 0, 0, 0), (0x15, 0, 1, 438), (6, 0, 0, 0x50000 | int(sys.argv[1])), (6, 0, 0, 0x7FFF0000)]
steps = ctypes.create_string_buffer(b"".join(struct.pack("HBBI", *step) for step in code))
filter = ctypes.create_string_buffer(struct.pack("HxxxxxxQ", len(code), ctypes.addressof(steps)))
libc = ctypes.CDLL(None, use_errno=True)
assert libc.prctl(38, 1, 0, 0, 0) == 0 and libc.prctl(22, 2, filter) == 0
os.execv(sys.argv[2], sys.argv[2:])
"""


@pytest.mark.parametrize(
    ("number", "words"),
    [
        (errno.EPERM, "Run this as root or with CAP_SYS_PTRACE, outside of any container"),
        (errno.ENOSYS, "pidfd_getfd(2) is missing"),
    ],
)
def test_kernel_revocation_names_who_keeps_it_and_what_to_do(tmp_path: pathlib.Path, number: int, words: str) -> None:
    """Where pidfd_getfd(2) is refused, as by a container; and it is said that nobody has lost it."""
    path = tmp_path / "server"
    with (
        subprocess.Popen([sys.executable, "-ISc", LISTENS, path], stdout=-1, text=True) as child,
        socket.socket(socket.AF_UNIX) as client,
    ):
        assert child.stdout
        assert child.stdout.readline() == "\n"
        command = [sys.executable, "-ISc", REFUSES, str(number), *COMMAND, "revoke", "--kernel", "--yes", str(path)]
        done = subprocess.run(command, capture_output=True, text=True, timeout=60)
        client.connect(str(path))
        client.send(b"x")
        assert child.stdout.readline() == "b'x'\n"
        child.kill()
    assert done.returncode == 1
    assert done.stderr.startswith(f"asyncrevoke: {path}: process {child.pid} keeps it: "), done.stderr
    assert words in done.stderr
    assert done.stderr.endswith("; nothing was done\n")


def test_kernel_revocation_of_what_nobody_has_does_nothing(
    tmp_path: pathlib.Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Such as a socket that a server has left behind: it is not said to be taken from all of them."""
    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind(str(tmp_path / "stale"))
    assert main(["revoke", "--kernel", "--yes", str(tmp_path / "stale")]) == 1
    assert "nothing was done" in capsys.readouterr().err


# -- what the documentation refers to --


def test_examples_of_the_console_server_are_valid(tmp_path: pathlib.Path) -> None:
    """The file is one that `share --config` reads, and the unit runs it."""
    config = read_config(str(ROOT / "examples/consoles.toml"))
    assert [share.name for share in config.shares] == ["router", "kernel-log", "loopback"]
    assert config.group == "dialout"
    unit = (ROOT / "examples/asyncrevoke.service").read_text()
    (command,) = re.findall(r"^ExecStart=\S+/asyncrevoke (.*)$", unit, re.MULTILINE)
    assert command == "share --config /etc/asyncrevoke/consoles.toml"
    assert re.findall(r"^ExecReload=\S+/asyncrevoke (.*)$", unit, re.MULTILINE) == ["reload"]
    with contextlib.suppress(FileNotFoundError):  # where there is no systemd
        copy = tmp_path / "asyncrevoke.service"
        copy.write_text(re.sub(r"(Exec\w+=)\S+", rf"\g<1>{sys.executable}", unit))
        done = subprocess.run(["systemd-analyze", "verify", copy], capture_output=True, text=True)
        assert (done.returncode, done.stderr) == (0, "")
