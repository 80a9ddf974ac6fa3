"""Scripts: what `asyncrevoke send` types and prints, and input from a pipe."""

import itertools
import pathlib
import re
import signal
import subprocess
import sys
from typing import Any

import pytest

from asyncrevoke.console.cli import main
from asyncrevoke.console.send import Answer
from asyncrevoke.console.share import Share
from ports import Plug, serial_line
from test_cli import COMMAND, attach, folder, listed, sharing
from test_console import ECHO, Attached, lab

__all__ = ["folder"]  # a fixture that all here use

#: A device: a prompt, the terminal's echo, and an answer.
ROUTER = """
print("booted\\nrouter# ", end="", flush=True)
for line in iter(input, "exit"):
    print(f"you said {line}\\nrouter# ", end="", flush=True)
"""
DEVICE = "--name", "lab", "--", sys.executable, "-ISc", ROUTER


def send(*words: str, **options: Any) -> subprocess.CompletedProcess[str]:
    done = subprocess.run([*COMMAND, "send", *words], capture_output=True, text=True, timeout=60, **options)
    assert "Traceback" not in done.stderr
    return done


def booted() -> None:
    """Wait until the device has shown its prompt."""
    with attach("--read-only", "lab") as watcher:
        watcher.sees("router# ")


def is_attached(capsys: pytest.CaptureFixture[str], path: str) -> None:
    while path not in listed(capsys, "--who"):
        pass


def test_answer_is_printed_alone() -> None:
    """It comes without what was there before, without the echo, and by choice without the prompt."""
    with sharing(*DEVICE):
        booted()
        done = send("lab", "show version", "--until", "router# ", "--timeout", "20")
        assert (done.returncode, done.stdout, done.stderr) == (0, "you said show version\nrouter# ", "")
        done = send("lab", "show it", "--until", "router#", "--no-prompt")
        assert (done.returncode, done.stdout, done.stderr) == (0, "you said show it\n", "")


def test_texts_are_typed_in_turn() -> None:
    """Each when the one before has been answered; a dash stands for the lines of standard input."""
    with sharing(*DEVICE):
        booted()
        done = send("lab", "one", "--until", "one", "two", "-", "--until", "two\n", "--until", "# $", input="3\n4\n")
        assert (done.returncode, done.stderr) == (0, "")
        assert done.stdout == "you said oneyou said two\nyou said 3\nrouter# you said 4\nrouter# "
        assert send("lab", "a", "b", "--until", "# $", "--no-prompt").stdout == "you said a\nyou said b\n"


@pytest.mark.parametrize(("end", "typed"), [("cr", b"\r"), ("lf", b"\n"), ("crlf", b"\r\n"), ("none", b"")])
def test_text_ends_as_the_device_wants_it(end: str, typed: bytes) -> None:
    """With a return, as from a keyboard, or otherwise by choice; all was sent when it ends, however much it is."""
    with serial_line() as line, sharing("--name", "lab", line.path):
        with subprocess.Popen([*COMMAND, "send", "lab", "x" * 100_000, "--end", end]) as sending:
            received = b""
            while len(received) < 100_000 + len(typed):
                received += line.received(30)
        assert (sending.returncode, received) == (0, b"x" * 100_000 + typed)


def test_late_answer_is_a_timeout() -> None:
    """The status is 3, and what came is printed."""
    with sharing(*DEVICE):
        booted()
        done = send("lab", "hello", "--until", "never", "--timeout", "3")
        assert (done.returncode, done.stdout) == (3, "you said hello\nrouter# ")
        assert done.stderr == "asyncrevoke: lab: 'never' did not come within 3 s\n"


def test_search_that_would_not_end_is_a_timeout() -> None:
    """An expression that goes back and forth for years does not outlive the timeout."""
    with sharing(*DEVICE):
        booted()
        assert send("lab", "a" * 50, "--until", "(a|a)+b", "--timeout", "1").returncode == 3


def test_device_that_takes_nothing_is_a_timeout() -> None:
    """What was typed and is not taken in time was not sent."""
    program = "sh", "-c", "stty raw -echo; echo ready; exec sleep 1000"
    with sharing("--name", "lab", "--", *program), attach("--read-only", "lab") as watcher:
        watcher.sees("ready")
        done = send("lab", "x" * 100_000, "--timeout", "3")
    assert (done.returncode, done.stderr) == (
        3,
        "asyncrevoke: lab: not all text was taken within 3 s\n",
    )


@pytest.mark.parametrize("what", ["lab/root", "lab"])
def test_sender_is_taken_off(what: str, capsys: pytest.CaptureFixture[str]) -> None:
    """The status is 4, with the reason."""
    with (
        sharing(*DEVICE),
        subprocess.Popen(
            [*COMMAND, "send", "lab", "hello", "--until", "never"], stdout=-1, stderr=-1, text=True
        ) as sending,
    ):
        is_attached(capsys, "lab/root")
        assert main(["revoke", what, "--reason", "maintenance"]) == 0
        _, err = sending.communicate()
        assert sending.returncode == 4
        assert "maintenance" in err


def test_device_need_not_echo() -> None:
    """Of a password, say: a second of silence after what looks like the end will do. Or it is told that none comes."""
    program = "sh", "-c", "stty -echo; echo ready; while read line; do echo heard $line.; done"
    with sharing("--name", "lab", "--", *program), attach("--read-only", "lab") as watcher:
        watcher.sees("ready")
        assert send("lab", "one", "--until", "heard", "two", "--until", "two.").stdout == "heardheard two."
    program = "sh", "-c", "stty -echo; echo ready; while read line; do echo heard $line; done"
    with sharing("--name", "lab", "--", *program), attach("--read-only", "lab") as watcher:
        watcher.sees("ready")
        assert send("lab", "one", "--no-echo", "--until", "one$").stdout == "heard one"


def test_program_that_ends_does_not_answer() -> None:
    """The status is 4 if the answer was still to come, and 0 if it has come."""
    for until, status in ("never", 4), ("bye", 0):
        with sharing("--name", "lab", "--", "sh", "-c", "read line; echo bye"):
            done = send("lab", "now", "--until", until)
            assert (done.returncode, done.stdout) == (status, "bye\n" if status else "bye")


def test_answer_that_has_come_is_no_failure_when_the_server_ends_with_its_share() -> None:
    """Even if the server is gone before it could be told that nothing more is typed."""
    program = "read pid; kill -STOP $pid; echo bye"  # which holds up `send` until the server has ended
    with sharing("--name", "lab", "--", "sh", "-c", program) as server:
        command = ["sh", "-c", 'exec "$@" $$ --until bye', "sh", *COMMAND, "send", "lab"]
        with subprocess.Popen(command, stdout=-1, text=True) as sending:
            assert server.wait(60) == 0
            sending.send_signal(signal.SIGCONT)
            assert sending.communicate(timeout=60)[0] == "bye"
    assert sending.returncode == 0


def test_device_that_is_away_is_waited_for_on_request(tmp_path: pathlib.Path) -> None:
    """Else the status is 5, and nothing is typed; also if it goes before it has answered."""
    port = tmp_path / "port"
    with serial_line() as line, sharing("--name", "lab", str(port)):
        for words in (), ("--wait", "--timeout", "3"):
            done = send("lab", "hello", *words)
            assert done.returncode == 5
            assert "away: it has not come yet" in done.stderr
        command = [*COMMAND, "send", "lab", "hello", "--until", "ok", "world", "--until", "never", "--wait"]
        with subprocess.Popen(command, stdout=-1, stderr=-1, text=True) as sending:
            port.symlink_to(line.path)
            received = b""
            while not received.endswith(b"\r"):
                received += line.received(30)
            assert received == b"hello\r"
            line.send(b"ok")
            while not received.endswith(b"world\r"):
                received += line.received(30)
            port.unlink()
            line.close()
            out, err = sending.communicate()
        assert (sending.returncode, out) == (5, "ok")
        assert "away: unplugged" in err


def test_keyboard_of_another_is_taken_or_waited_for_on_request(capsys: pytest.CaptureFixture[str]) -> None:
    """Else the status is 6, and nothing is typed."""
    until = "--until", "router# "
    with sharing(*DEVICE), attach("lab") as alice:
        alice.sees("router# ")
        for words in (), ("--wait", "--timeout", "3"):
            done = send("lab", "unheard", *until, *words)
            assert (done.returncode, done.stdout) == (6, "")
            assert "root has the keyboard" in done.stderr
        assert send("lab", "forced", *until, "--force").stdout == "you said forced\nrouter# "
        alice.sees("root-2 has the keyboard")
        alice.sees("you have the keyboard")
        command = [*COMMAND, "send", "lab", "waited", *until, "--wait"]
        with subprocess.Popen(command, stdout=-1, text=True) as sending:
            is_attached(capsys, "lab/root-2")
            alice.types("\x1dq")
            assert alice.ends("detached") == 0
            assert sending.communicate()[0] == "you said waited\nrouter# "
        assert sending.returncode == 0


def test_keyboard_that_is_lost_before_the_answer_is_told() -> None:
    """Another types there now: the status is 6."""
    command = [*COMMAND, "send", "lab", "hello", "--until", "never"]
    with sharing(*DEVICE), attach("--read-only", "lab") as watcher:
        watcher.sees("router# ")
        with subprocess.Popen(command, stdout=-1, stderr=-1, text=True) as sending:
            watcher.sees("you said hello")
            with attach("--force", "lab"):
                _, err = sending.communicate()
    assert (sending.returncode, "has the keyboard" in err) == (6, True)


def test_keyboard_that_is_taken_away_for_good_is_not_waited_for(capsys: pytest.CaptureFixture[str]) -> None:
    """The status is 6, with the reason."""
    command = [*COMMAND, "send", "lab", "hello", "--until", "never", "--wait"]
    with sharing(*DEVICE), subprocess.Popen(command, stdout=-1, stderr=-1, text=True) as sending:
        is_attached(capsys, "lab/root/keyboard")
        assert main(["revoke", "lab/root/keyboard", "--reason", "hands off"]) == 0
        _, err = sending.communicate()
    assert sending.returncode == 6
    assert "lab: you may not type there: hands off" in err


@pytest.mark.parametrize(
    ("words", "why"),
    [
        (["a", "--until", "("], "--until is not a regular expression: missing )"),
        (["a", "b", "--until", "1", "c", "--until", "2"], "give one --until for each TEXT, or one for all"),
        (["a", "--frob"], "unrecognized arguments: --frob"),
        ([], "the following arguments are required: TEXT"),
    ],
)
def test_wrong_use_is_named(words: list[str], why: str, capsys: pytest.CaptureFixture[str]) -> None:
    """The status is 2, and nobody is asked."""
    with pytest.raises(SystemExit) as exit_:
        main(["send", "lab", *words])
    assert exit_.value.code == 2
    assert why in capsys.readouterr().err


def test_nobody_to_type_to_is_a_failure(capsys: pytest.CaptureFixture[str]) -> None:
    """The status is 1."""
    assert main(["send", "lab", "hello"]) == 1
    assert "no share is named 'lab'" in capsys.readouterr().err


# -- how an answer is found --

ANSWER = b"router# show\r\nall\rwell\r\nno router# show\r\nrouter#"


def fed(pieces: list[bytes], until: bytes, echo: bytes = b"show\n", *, prompt: bool = True) -> tuple[bytes, bool]:
    answer = Answer(echo, re.compile(until, re.MULTILINE), prompt=prompt)
    shown = b""
    for piece in pieces:
        shown += answer.feed(piece)
        if answer.found:
            return shown, True
    return shown + answer.feed(b"", last=True), answer.found


@pytest.mark.parametrize(
    ("until", "answer"),
    [
        (rb"^router#$", b"all\rwell\nno router# show\nrouter#"),
        (rb"router# show", b"all\rwell\nno router# show"),
        (rb"well\n", b"all\rwell\n"),
        (rb"never", b"all\rwell\nno router# show\nrouter#"),
    ],
)
def test_answer_is_the_same_in_whatever_pieces_it_comes(until: bytes, answer: bytes) -> None:
    """Neither the echo, nor the end of a line, nor what ends the answer is lost between two pieces."""
    found = until != b"never"
    assert fed([bytes([each]) for each in ANSWER], until) == (answer, found)
    for one, two in itertools.combinations(range(len(ANSWER) + 1), 2):
        assert fed([ANSWER[:one], ANSWER[one:two], ANSWER[two:]], until) == (answer, found)


def test_old_prompt_is_no_answer() -> None:
    """What comes before the echo was not asked for: it is only likely to be the end, while an echo may come."""
    answer = Answer(b"show\n", re.compile(b"#"))
    assert (answer.feed(b"router#"), answer.found, answer.likely) == (b"", False, True)
    assert (answer.feed(b"show\r\nit"), answer.found, answer.likely) == (b"", False, False)
    assert (answer.feed(b"\r\nrouter#"), answer.found) == (b"it\nrouter#", True)


def test_echo_is_no_answer() -> None:
    """What is typed may be what ends the answer; nothing before the echo is part of it."""
    assert fed([b"# echo DO", b"NE\r", b"\nx\r\nDONE\r\n"], rb"DONE", b"echo DONE\n") == (b"x\nDONE", True)


def test_answer_may_have_no_echo() -> None:
    """All that comes is the answer then."""
    assert fed([b"secret accepted\r\n# "], rb"# $", b"hunter2\n") == (b"secret accepted\n# ", True)
    assert fed([b"do", b"ne"], rb"done", b"exit\n") == (b"done", True)
    assert fed([b"." * 2000, b"#"], rb"#", b"show\n") == (b"." * 2000 + b"#", True)


def test_prompt_is_left_out_with_its_line() -> None:
    """Also if nothing else came."""
    assert fed([b"show\r\none\r\nlab-router#"], rb"#", prompt=False) == (b"one\n", True)
    assert fed([b"show\r\nlab-router#"], rb"#", prompt=False) == (b"", True)


@pytest.mark.parametrize("size", [1, 7, 4096])
def test_long_answer_is_given_out_as_it_comes(size: int) -> None:
    """No more is kept of it than what could still be the echo, or part of what ends it."""
    answer, end = Answer(b"show\n", re.compile(rb"(end){300}")), b"end" * 300
    came = given = 0
    for _ in range(10_000 // size):
        given += len(answer.feed(b"." * size))
        came += size
        assert came - given <= 1024 + len(b"show\n")
    for start in range(0, len(end), size):
        given += len(answer.feed(end[start : start + size]))
    assert (answer.found, given) == (True, came + len(end))


# -- no history where input is a pipe --


def test_input_from_a_pipe_gets_no_old_output() -> None:
    """Only what comes after it; who watches gets it all."""
    with sharing(*DEVICE):
        booted()
        done = subprocess.run([*COMMAND, "attach", "lab"], input=b"hello\n", capture_output=True)
        assert (done.returncode, done.stdout) == (0, b"hello\r\nyou said hello\r\nrouter# ")


@pytest.mark.anyio
async def test_old_output_is_left_out_on_request(tmp_path: pathlib.Path) -> None:
    """Of the generation that is there; of the next nothing is missing."""
    plug = Plug(tmp_path / "port")
    plug.plug_in()
    try:
        async with lab(tmp_path, Share("lab", device=str(plug.link))) as server:
            admin = await server.connect()
            while not any(node["path"].endswith("/recorder") for node in await admin.list()):
                pass
            early = await server.attach()
            await says(plug, b"old", early)
            late = await server.attach(wait=True, history=False)
            await says(plug, b"new", late)
            plug.unplug()
            await late.until(lambda: "away" in late.told[-1])
            plug.plug_in()
            await late.until(lambda: "back" in late.told[-1])
            await says(plug, b"next", late)
            assert (early.output, late.output) == (b"oldnew", b"newnext")
    finally:
        plug.close()


async def says(plug: Plug, words: bytes, client: Attached) -> None:
    assert plug.end is not None
    plug.end.send(words)
    await client.hears(words)


@pytest.mark.anyio
async def test_history_is_true_or_false(tmp_path: pathlib.Path) -> None:
    """Anything else is a bad request."""
    async with lab(tmp_path, Share("lab", ECHO)) as server:
        assert "'history' must be true or false" in await (await server.attach(history="no")).ends()
