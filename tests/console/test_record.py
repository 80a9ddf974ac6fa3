"""What is recorded of a share: in the log of its output, in the server's own, and in what a victim is told."""

import contextlib
import gzip
import itertools
import logging
import os
import pathlib
import random
import re
import resource
import shutil
import stat
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from typing import Any

import anyio
import pytest

from asyncrevoke import Registry
from asyncrevoke.console import log as console_log
from asyncrevoke.console.access import People
from asyncrevoke.console.console import Console
from asyncrevoke.console.share import Share
from asyncrevoke.control import connect
from ports import Plug
from test_console import ECHO, Attached, lab

pytestmark = pytest.mark.anyio

ROOT = pathlib.Path(__file__).parents[2]


@pytest.fixture
def said(caplog: pytest.LogCaptureFixture) -> Callable[[], list[str]]:
    """What the server has said, but for what its control server does."""
    caplog.set_level(logging.WARNING, "asyncrevoke.control")
    caplog.set_level(logging.INFO, "asyncrevoke")
    return lambda: caplog.messages


async def test_who_is_taken_off_is_told_by_whom_and_why(tmp_path: pathlib.Path) -> None:
    """It alone, or with the whole share; the reason stays as it was given."""
    async with lab(tmp_path, Share("lab", ECHO)) as server:
        alice, bob, admin = await server.attach(), await server.attach(), await server.connect()
        answer = await admin.revoke("lab/root", "her slot is over")
        assert answer["report"]["reason"] == "her slot is over"
        assert await alice.ends() == "root was taken off by root: her slot is over"
        await admin.revoke("lab")
        assert await bob.ends() == "root-2 was taken off by root"


async def test_several_are_taken_off_at_once(tmp_path: pathlib.Path, said: Callable[[], list[str]]) -> None:
    """The keyboard passes over those of them who wait for it."""
    async with lab(tmp_path, Share("lab", ECHO)) as server:
        alice, again, bob, admin = *[await server.attach() for _ in range(3)], await server.connect()
        await admin.revoke(["lab/root", "lab/root-2"], "her slot is over")
        for each, name in (alice, "root"), (again, "root-2"):
            assert await each.ends() == f"{name} was taken off by root: her slot is over"
        await bob.is_told(keyboard="root-3", yours=True)
    assert "lab: root-3 has the keyboard" in said()
    assert "lab: root-2 has the keyboard" not in said()


async def test_reason_cannot_tell_another_name(tmp_path: pathlib.Path) -> None:
    """The name that the kernel tells comes first, whatever the reason says."""
    async with lab(tmp_path, Share("lab", ECHO)) as server:
        alice, admin = await server.attach(), await server.connect()
        await admin.revoke("lab/root", "off by carol: enough")
        assert await alice.ends() == "root was taken off by root: off by carol: enough"


async def test_who_loses_the_keyboard_is_told_to_whom_or_by_whom(tmp_path: pathlib.Path) -> None:
    """By force, or by a revocation of the keyboard alone; nobody else is told, and only as long as it is so."""
    async with lab(tmp_path, Share("lab", ECHO)) as server:
        alice, watcher = await server.attach(), await server.attach("watch")
        bob = await server.attach("force")
        await alice.is_told(keyboard="root-3", yours=False, reason="", by="root-3")
        admin = await server.connect()
        await admin.revoke("lab/root-3/keyboard", "hands off")
        await bob.is_told(keyboard="root", yours=False, reason="hands off", by="root")
        for each in (alice, watcher):
            await each.is_told(keyboard="root", yours=each is alice, reason="", by="")
        await admin.revoke("lab/root/keyboard", "hands off, too")
        await bob.is_told(keyboard=None, yours=False, reason="", by="")  # it was not taken from this one


async def test_watch_and_list_tell_by_whom_in_a_field_of_its_own(tmp_path: pathlib.Path) -> None:
    """Of what an operator has taken away; of what went by itself there is no name."""
    async with lab(tmp_path, Share("lab", ECHO)) as server:
        await server.attach()
        bob, admin, watching = await server.attach(), await server.connect(), await server.connect()
        events = watching.watch("lab")
        assert await anext(events) == {"watching": "lab"}
        await bob.control.send({"detach": True})
        await bob.ends()
        await admin.revoke("lab/root", "enough")
        found = {}
        async for event in events:
            found[event["event"], event["path"]] = event["reason"], event["by"]
            if event["path"] == "lab/root" and event["event"] == "released":
                break
        assert found["revoked", "lab/root"] == ("enough", "root")
        assert found["closed", "lab/root-2"] == ("closed by its owner", "")


async def test_server_says_what_happens_once_and_in_one_form(
    tmp_path: pathlib.Path, said: Callable[[], list[str]]
) -> None:
    """Who has come, has the keyboard, was taken off by whom and why, and has gone."""
    async with lab(tmp_path, Share("lab", ECHO)) as server:
        alice, bob, admin = await server.attach(), await server.attach("force"), await server.connect()
        await admin.revoke("lab/root-2/keyboard", "hands off")
        await admin.revoke("lab/root", "her slot is over")
        await alice.ends()
        await bob.control.send({"detach": True})
        await bob.ends()
        await admin.revoke("lab", "maintenance")
    assert said() == [
        "lab: it is here",
        "lab: root has come",
        "lab: root has the keyboard",
        "lab: root-2 has come",
        "lab: root-2 has the keyboard, taken from root by root-2",
        "lab: the keyboard was taken from root-2 by root: hands off",
        "lab: root has the keyboard",
        "lab: root was taken off by root: her slot is over",
        "lab: nobody has the keyboard",
        "lab: root-2 has gone",
        "lab: it was taken away by root: maintenance",
    ]


async def test_server_says_who_goes_before_who_has_the_keyboard_then(
    tmp_path: pathlib.Path, said: Callable[[], list[str]]
) -> None:
    """Whether one goes alone or is taken off. When the share itself goes, nobody is said to have the keyboard."""
    async with lab(tmp_path, Share("lab", ECHO)) as server:
        alice, bob, carol, admin = *[await server.attach() for _ in range(3)], await server.connect()
        await alice.control.send({"detach": True})
        await alice.ends()
        await admin.revoke("lab/root-2", "her slot is over")
        await bob.ends()
        await admin.revoke("lab", "maintenance")
        await carol.ends()
    assert said()[5:9] == [
        "lab: root has gone",
        "lab: root-2 has the keyboard",
        "lab: root-2 was taken off by root: her slot is over",
        "lab: root-3 has the keyboard",
    ]
    assert set(said()[9:]) == {
        "lab: it was taken away by root: maintenance",
        "lab: root-3 was taken off by root: maintenance",
    }


async def test_server_says_that_a_program_has_ended(tmp_path: pathlib.Path, said: Callable[[], list[str]]) -> None:
    """With its status."""
    async with lab(tmp_path, Share("lab", ("sh", "-c", "read line; exit 3"))) as server:
        alice = await server.attach()
        await alice.is_told(yours=True)
        await alice.types(b"\n")
        await alice.ends()
    assert "lab: it has ended: the program has ended with status 3" in said()


async def test_what_happens_after_the_log_was_closed_is_said(
    tmp_path: pathlib.Path, said: Callable[[], list[str]]
) -> None:
    """As when one goes who has not received for too long."""
    console = Console(Share("lab", ("true",), log=str(tmp_path / "log"), log_marks=True), Registry(), People())
    console.begin()
    await console.run()
    console.note("alice has gone")
    assert said()[-1] == "lab: alice has gone"
    assert b"alice" not in (tmp_path / "log").read_bytes()


async def test_device_that_goes_and_comes_is_told(tmp_path: pathlib.Path, said: Callable[[], list[str]]) -> None:
    """That it is here, away and why, also by whom it was hung up, and back."""
    plug = Plug(tmp_path / "port")
    end = plug.plug_in()
    try:
        async with lab(tmp_path, Share("lab", device=str(plug.link))) as server:
            stays, admin = await server.attach(wait=True), await server.connect()
            while not any(node["path"].endswith("/recorder") for node in await admin.list()):
                pass
            await admin.revoke(end.path, "to flash it")
            await stays.until(lambda: {"away": "hung up by root: to flash it"} in stays.told)
            await stays.until(lambda: "back" in stays.told[-1])
            plug.unplug()
            await stays.until(lambda: "away" in stays.told[-1])
            plug.plug_in()
            await stays.until(lambda: "back" in stays.told[-1])
            await admin.revoke("lab", "maintenance")
    finally:
        plug.close()
    told = [each for each in said() if each.startswith("lab: it")]
    assert told[3].startswith("lab: it is away: unplugged: ")
    assert [*told[:3], *told[4:]] == [
        "lab: it is here",
        "lab: it is away: hung up by root: to flash it",
        "lab: it is back",
        "lab: it is back",
        "lab: it was taken away by root: maintenance",
    ]


# -- the log of a share --


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Callable[[int], None]:
    """Set what time it is, in a zone of its own."""
    monkeypatch.setenv("TZ", "XXX-05:30")
    time.tzset()
    now = [0]
    monkeypatch.setattr(time, "time", lambda: now[0] + 0.9)
    return lambda seconds: now.__setitem__(0, seconds)


@pytest.fixture(autouse=True)
def zone() -> Iterator[None]:
    """Whatever zone a test sets, it is as before for others."""
    yield
    time.tzset()


def opened(path: pathlib.Path, **options: Any) -> console_log.Log:
    log = console_log.log_of(Share("lab", log=str(path), **options))
    assert log is not None
    return log


def test_lines_begin_with_the_time_when_they_begin(tmp_path: pathlib.Path, clock: Callable[[int], None]) -> None:
    """Also one that comes in parts, an empty one, and one whose end is cut in two; what ends no line is left alone."""
    log = opened(tmp_path / "log", log_times=True)
    for second, data in enumerate((b"log", b"in: ro", b"ot\r", b"\nok\r\n\r\n", b"10%\r20%\r", b"\n$ ")):
        clock(second)
        assert log.write_now(data) == b""
    log.close()
    assert (tmp_path / "log").read_bytes().split(b"\n") == [
        b"1970-01-01T05:30:00+05:30 login: root\r",
        b"1970-01-01T05:30:03+05:30 ok\r",
        b"1970-01-01T05:30:03+05:30 \r",
        b"1970-01-01T05:30:04+05:30 10%\r20%\r",
        b"1970-01-01T05:30:05+05:30 $ ",
    ]


@pytest.mark.parametrize("times", [False, True])
def test_marks_are_lines_of_their_own(tmp_path: pathlib.Path, clock: Callable[[int], None], times: bool) -> None:
    """A line that has no end yet is ended before one; what follows is a line, too. All names can be written."""
    clock(0)
    time, log = "1970-01-01T05:30:00+05:30", opened(tmp_path / "log", log_marks=True, log_times=times)
    log.mark("älice has come")
    log.write_now(b"login: ")
    log.mark("bob has come")
    log.mark("bob has the keyboard")
    log.write_now(b"bob\r\n")
    log.mark("bob has gone")
    log.close()
    each = f"{time} " * times
    assert (tmp_path / "log").read_bytes().decode().split("\n") == [
        f"[{time} -- älice has come]",
        f"{each}login: ",
        f"[{time} -- bob has come]",
        f"[{time} -- bob has the keyboard]",
        f"{each}bob\r",
        f"[{time} -- bob has gone]",
        "",
    ]


@pytest.mark.parametrize("options", [{"log_times": True}, {"log_marks": True}], ids=str)
def test_log_that_ends_within_a_line_goes_on_with_a_new_one(
    tmp_path: pathlib.Path, clock: Callable[[int], None], options: dict[str, bool]
) -> None:
    """As a server leaves it that was killed; one that does not is gone on with as it is."""
    clock(0)
    for before, end in (b"", b""), (b"killed", b"\n"), (b"ended\n", b""):
        (tmp_path / "log").write_bytes(before)
        log = opened(tmp_path / "log", **options)
        if "log_times" in options:
            log.write_now(b"1")
            expected = b"1970-01-01T05:30:00+05:30 1"
        else:
            log.mark("it is here")
            expected = b"[1970-01-01T05:30:00+05:30 -- it is here]\n"
        log.close()
        assert (tmp_path / "log").read_bytes() == before + end + expected


async def test_marks_wait_for_a_slow_reader_and_cut_nothing(tmp_path: pathlib.Path) -> None:
    """Of a pipe: what is being written is written to its end first, the marks follow in order, and all of it comes."""
    os.mkfifo(tmp_path / "log")
    with os.fdopen(os.open(tmp_path / "log", os.O_RDONLY | os.O_NONBLOCK), "rb", buffering=0) as reader:
        log = opened(tmp_path / "log", log_marks=True)
        async with anyio.create_task_group() as tasks:
            assert log.write_now(b"not at once") == b"not at once"
            tasks.start_soon(log.write, b"x" * 400_000)
            await anyio.wait_readable(reader)
            text = reader.read(4096)  # so that there is room
            log.mark("one")
            log.mark("two")
            while not text.endswith(b"two]\n"):
                await anyio.wait_readable(reader)
                text += reader.read(4096)
        assert re.fullmatch(rb"x{400000}\n\[\S+ -- one\]\n\[\S+ -- two\]\n", text)
        log.close()


async def test_marks_that_nobody_reads_are_lost_in_the_end(
    tmp_path: pathlib.Path, caplog: pytest.LogCaptureFixture
) -> None:
    """What waits for the reader of a pipe is bounded; what is lost is said, and counted when the log is closed."""
    os.mkfifo(tmp_path / "log")
    with os.fdopen(os.open(tmp_path / "log", os.O_RDONLY | os.O_NONBLOCK), "rb", buffering=0) as reader:
        log = opened(tmp_path / "log", log_marks=True)
        for _ in range(1000):
            log.mark("x" * 200)
        log.close()
        read = len(reader.read(1 << 20))
    said, counted = caplog.messages
    assert said == f"output of 'lab' is missing from the log '{tmp_path / 'log'}': nobody reads it"
    line = len("[1970-01-01T05:30:00+05:30 -- ]\n") + 200
    assert 0 <= read + int(counted.split()[0]) - 1000 * line < 10, "but for the ends of lines"


async def test_what_is_lost_leaves_whole_lines_behind(
    tmp_path: pathlib.Path, clock: Callable[[int], None], caplog: pytest.LogCaptureFixture
) -> None:
    """Where a file takes no more in the middle of a line, the next that it takes is a line of its own."""
    clock(0)
    full, log = 1 << 30, tmp_path / "log"
    log.touch()
    os.truncate(log, full - 32)  # sparse
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (full, hard))
    try:
        timed = opened(log, log_times=True, log_marks=True)
        assert timed.write_now(b"cut off") == b""
        timed.mark("lost")
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    timed.write_now(b"on\n")
    timed.close()
    time = b"1970-01-01T05:30:00+05:30"
    with log.open("rb") as file:
        file.seek(full - 32)
        assert file.read() == (b"\n" + time + b" cut off")[:32] + b"\n" + time + b" on\n"
    assert [each.split(":")[0] for each in caplog.messages] == [
        f"output of 'lab' is missing from the log '{log}'",
        f"{len(time) * 2 + 1 - 32 + len(' cut off') + len('[ -- lost]') + 2} bytes of output of 'lab' are missing from the log '{log}'",
    ]


async def test_record_of_a_share_says_all_that_happens(tmp_path: pathlib.Path) -> None:
    """Output with its time, and between its lines who came and went, had the keyboard, was taken off by whom and why."""
    log = tmp_path / "log"
    async with lab(tmp_path, Share("lab", ECHO, log=str(log), log_times=True, log_marks=True)) as server:
        alice = await server.attach()
        await alice.is_told(yours=True)
        await alice.types(b"$ ")
        await alice.hears(b"$ ")
        bob, admin = await server.attach("force"), await server.connect()
        await bob.types(b"ls\r\n")
        await bob.hears(b"ls")
        await admin.revoke("lab/root-2", "enough]\\n[")
        await bob.ends()
        await alice.control.send({"detach": True})
        await alice.ends()
        await admin.revoke("lab", "maintenance")
    time = re.compile(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d[+-]\d\d:\d\d")
    assert time.sub("TIME", log.read_bytes().decode()).split("\n") == [
        "[TIME -- it is here]",
        "[TIME -- root has come]",
        "[TIME -- root has the keyboard]",
        "TIME $ ",
        "[TIME -- root-2 has come]",
        "[TIME -- root-2 has the keyboard, taken from root by root-2]",
        "TIME ls\r",
        "[TIME -- root-2 was taken off by root: enough]\\n[]",
        "[TIME -- root has the keyboard]",
        "[TIME -- root has gone]",
        "[TIME -- nobody has the keyboard]",
        "[TIME -- it was taken away by root: maintenance]",
        "",
    ]


# -- its files --


def whole(log: pathlib.Path) -> bytes:
    """All that a log has, the oldest file first."""
    old = sorted(log.parent.glob(f"{log.name}.*"), key=lambda path: -int(path.suffix[1:]))
    return b"".join(path.read_bytes() for path in [*old, log] if path.is_file())


def numbered(count: int) -> bytes:
    """So many lines, each another."""
    return b"".join(b"line %d of what came\r\n" % number for number in range(count))


def write(log: console_log.Log, data: bytes, chunks: Iterator[int]) -> None:
    while data:
        size = next(chunks)
        piece, data = data[:size], data[size:]
        while piece:
            piece = log.write_now(piece)


@pytest.mark.parametrize("seed", range(20))
def test_rotated_files_are_whole_and_in_order(tmp_path: pathlib.Path, seed: int) -> None:
    """However the output comes, they have all of it, no line is in two, and none is larger than was asked for by a line."""
    rng, log, text = random.Random(seed), tmp_path / "log", numbered(2000)
    rotated = opened(log, log_size="1K", log_keep=100)
    write(rotated, text, iter(lambda: rng.choice((1, 7, 100, 1024, 5000)), None))
    rotated.close()
    assert whole(log) == text
    for old in tmp_path.glob("log.*"):
        *before, last = old.read_bytes().splitlines(keepends=True)
        assert len(b"".join(before)) < 1024 <= old.stat().st_size
        assert last.endswith(b"\n")


@pytest.mark.parametrize("options", [{}, {"log_times": True}], ids=["raw", "timed"])
async def test_log_of_a_share_is_rotated_while_output_comes(tmp_path: pathlib.Path, options: dict[str, Any]) -> None:
    """All that a program has said is in the files, whether it is taken at once or waits to be recorded."""
    log, text = tmp_path / "log", numbered(3000)
    (tmp_path / "text").write_bytes(text)
    program = "sh", "-c", f"stty raw -echo; cat {tmp_path}/text; read line; cat {tmp_path}/text"
    async with lab(tmp_path, Share("lab", program, log=str(log), log_size="2k", log_keep=200, **options)) as server:
        alice = await server.attach()
        await alice.hears(b"line 2999 of")
        await alice.types(b"\n")
        await alice.ends()
    assert re.sub(rb"(?m)^\S+ (?=line)", b"", whole(log)) == text * 2


@pytest.mark.parametrize("options", [{}, {"log_times": True}], ids=["raw", "marked"])
async def test_rotated_file_is_never_waited_for(tmp_path: pathlib.Path, options: dict[str, bool]) -> None:
    """What does not go into one file goes into the next at once."""
    text = numbered(1000)
    log = opened(tmp_path / "log", log_size="1k", log_keep=100, **options)
    await log.write(text)
    log.close()
    assert re.sub(rb"(?m)^\S+ (?=line)", b"", whole(tmp_path / "log")) == text


def test_oldest_files_make_room(tmp_path: pathlib.Path) -> None:
    """As many are kept as was asked for, and they are the last ones. What a server before has left counts."""
    log, text = tmp_path / "log", numbered(1000)
    for half in text[: len(text) // 2], text[len(text) // 2 :]:
        rotated = opened(log, log_size="1k", log_keep=3)
        write(rotated, half, itertools.repeat(100))
        rotated.close()
    assert sorted(path.name for path in tmp_path.iterdir()) == ["log", "log.1", "log.2", "log.3"]
    assert text.endswith(whole(log))
    assert len(whole(log)) > 3 * 1024


def test_line_without_end_is_cut(tmp_path: pathlib.Path) -> None:
    """Else it would fill the disk: a file is larger than was asked for by 4096 bytes at the most."""
    log, text = tmp_path / "log", bytes(i % 255 or 1 for i in range(100_000)).replace(b"\n", b" ")
    rotated = opened(log, log_size="1k", log_keep=100)
    write(rotated, text, itertools.repeat(777))
    rotated.close()
    assert whole(log) == text
    assert max(path.stat().st_size for path in tmp_path.iterdir()) == 1024 + 4096


@pytest.mark.parametrize("options", [{}, {"log_times": True, "log_marks": True}], ids=["raw", "marked"])
def test_rotation_that_fails_loses_nothing(
    tmp_path: pathlib.Path, caplog: pytest.LogCaptureFixture, options: dict[str, bool]
) -> None:
    """All goes on in the file there is, and it is said; when it can be done again, it is, and the order is as it was."""
    log = tmp_path / "log"
    rotated = opened(log, log_size="1k", log_keep=9, **options)
    text = numbered(400)
    some = itertools.repeat(100)
    write(rotated, text[:2000], some)
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (0, hard))  # renamed it can be, opened not
    try:
        write(rotated, text[2000:4500], some)
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))
    assert set(caplog.messages) == {
        f"the log '{log}' cannot be rotated: Too many open files. Output still goes to the old file"
    }
    assert not log.exists()
    write(rotated, text[4500:6000], some)
    assert log.exists()
    (log.parent / "log.9").mkdir()  # it cannot be the place of a file
    for number in range(1, 9):
        (log.parent / f"log.{number}").touch()
    caplog.clear()
    write(rotated, text[6000:], some)
    assert set(caplog.messages) == {
        f"the log '{log}' cannot be rotated: Is a directory. Output still goes to the old file"
    }
    rotated.close()
    found = whole(log)
    if options:
        found = re.sub(rb"(?m)^\S+ (?=line|\Z)", b"", found)
    assert found == text


def test_what_is_no_file_is_not_rotated(tmp_path: pathlib.Path, caplog: pytest.LogCaptureFixture) -> None:
    """A pipe, also when nobody reads it, and what a link leads to, such as /dev/stdout: they stay as they are."""
    target, link, pipe = tmp_path / "target", tmp_path / "link", tmp_path / "pipe"
    link.symlink_to(target)
    os.mkfifo(pipe)
    with os.fdopen(os.open(pipe, os.O_RDONLY | os.O_NONBLOCK), "rb", buffering=0) as reader:
        for path in link, pipe:
            log = opened(path, log_size="1k")
            for _ in range(5):
                assert log.write_now(b"x" * 1000) == b""
            log.reopen()
            log.write_now(b"y")
            log.close()
        assert reader.read(10_000) == b"x" * 5000 + b"y"
        log = opened(pipe)
    log.reopen()
    log.close()
    assert not caplog.messages
    assert target.read_bytes() == b"x" * 5000 + b"y"
    assert sorted(path.name for path in tmp_path.iterdir()) == ["link", "pipe", "target"]


@pytest.mark.parametrize("options", [{}, {"log_size": "1M"}, {"log_times": True}], ids=str)
def test_log_is_opened_anew(tmp_path: pathlib.Path, caplog: pytest.LogCaptureFixture, options: dict[str, Any]) -> None:
    """What was renamed keeps what it has; the new file has the mode of a log. If there can be none, the old one goes on."""
    folder = tmp_path / "logs"
    folder.mkdir()
    log = opened(folder / "log", **options)
    log.write_now(b"one\n")
    (folder / "log").rename(folder / "old")
    log.write_now(b"two\n")
    log.reopen()
    log.write_now(b"three\n")
    assert stat.S_IMODE((folder / "log").stat().st_mode) == 0o640
    folder.rename(tmp_path / "elsewhere")
    log.reopen()
    log.write_now(b"four\n")
    log.close()
    found = [(tmp_path / "elsewhere" / name).read_bytes() for name in ("old", "log")]
    assert [[line.split()[-1] for line in text.splitlines()] for text in found] == [
        [b"one", b"two"],
        [b"three", b"four"],
    ]
    assert caplog.messages == [
        f"the log '{folder / 'log'}' cannot be opened again: No such file or directory. Output still goes to the old file"
    ]


@pytest.mark.skipif(not shutil.which("logrotate"), reason="there is no logrotate: apt install logrotate")
@pytest.mark.parametrize("times", ["false", "true"])
def test_server_goes_on_in_a_new_log_as_logrotate_has_it(tmp_path: pathlib.Path, times: str) -> None:
    """As the example says, by SIGHUP, also while the configuration has a fault: no byte is lost, and none comes twice."""
    log, shared, config = tmp_path / "lab.log", tmp_path / "consoles.toml", tmp_path / "logrotate"
    program = "i=0; while echo line $i; do i=$((i + 1)); sleep 0.01; done"
    shared.write_text(f'[share.lab]\ncommand = ["sh", "-c", "{program}"]\nlog = "{log}"\nlog_times = {times}\n')
    example = (ROOT / "examples/asyncrevoke.logrotate").read_text()
    with saying(tmp_path, "--config", str(shared)) as server:
        example, systemctl = re.subn("systemctl kill .*", f"kill -HUP {server.pid}", example)
        config.write_text(example.replace("/var/log/asyncrevoke/", f"{tmp_path}/"))
        config.chmod(0o644)
        for number in range(4):
            while not log.exists() or not log.stat().st_size:
                time.sleep(0.001)
            if number == 2:
                shared.write_text("nonsense")
            if number < 3:
                command = ["logrotate", "-f", "-s", str(tmp_path / "state"), str(config)]
                done = subprocess.run(command, capture_output=True, text=True, check=False)
                assert (done.returncode, done.stderr, systemctl) == (0, "", 1)
        server.terminate()
        assert server.wait(30) == 0
    assert f"{shared}: " in (tmp_path / "said").read_text()
    texts = [gzip.decompress((tmp_path / f"lab.log.{number}.gz").read_bytes()) for number in (3, 2)]
    lines = b"".join([*texts, (tmp_path / "lab.log.1").read_bytes(), log.read_bytes()]).splitlines()
    assert [int(line.split()[-1]) for line in lines] == list(range(len(lines)))


@pytest.mark.parametrize(
    ("options", "says"),
    [
        ({"log_size": "10 M"}, "'10 M' is not a log size: give bytes, or a size such as 500k, 10M or 1G"),
        ({"log_size": "0"}, "'0' is not a log size"),
        ({"log_size": "-1"}, "'-1' is not a log size"),
        ({"log_size": "1T"}, "'1T' is not a log size"),
        ({"log_keep": 0}, "'lab' keeps 0 old logs: keep 1 or more"),
        ({"log": "", "log_times": True}, "'lab' has no log: give its file"),
        ({"log": "", "log_size": "1k"}, "'lab' has no log: give its file"),
    ],
    ids=str,
)
def test_options_that_make_no_sense_are_refused(options: dict[str, Any], says: str) -> None:
    """They say what to give."""
    with pytest.raises(ValueError, match=re.escape(says)):
        Share("lab", **{"log": "log", **options})


@pytest.mark.parametrize(("size", "number"), [("1", 1), ("500k", 500 << 10), ("10M", 10 << 20), ("2G", 2 << 30)])
def test_size_of_a_log_is_told_as_to_logrotate(size: str, number: int) -> None:
    """Bytes, or thousands of them by 1024."""
    assert Share("lab", log="log", log_size=size).log_bytes == number


# -- what the server says --


@contextlib.contextmanager
def saying(folder: pathlib.Path, *words: str, journal: str = "") -> Iterator[subprocess.Popen[str]]:
    """A console server whose standard error goes to a file, perhaps as the journal's."""
    with (folder / "said").open("w") as said:
        is_there = os.fstat(said.fileno())
        stream = {"JOURNAL_STREAM": journal or f"{is_there.st_dev}:{is_there.st_ino}"}
        command = [sys.executable, "-m", "asyncrevoke", "share", "--socket", str(folder / "socket"), *words]
        with subprocess.Popen(command, stdout=-1, stderr=said, text=True, env=os.environ | stream) as server:
            try:
                assert server.stdout
                assert server.stdout.readline().startswith("sharing")
                yield server
            finally:
                server.terminate()


@pytest.mark.parametrize(("journal", "begins"), [("", "<6>"), ("1:2", "asyncrevoke: ")])
async def test_server_tells_the_journal_a_priority(tmp_path: pathlib.Path, journal: str, begins: str) -> None:
    """And not its own name, which the journal knows; to any other standard error, it tells that. Each thing once."""
    with saying(tmp_path, "--name", "a\u00e9", journal=journal) as server:
        async with await connect(tmp_path / "socket") as control:
            alice = Attached(control)
            async with anyio.create_task_group() as tasks:
                tasks.start_soon(alice.listen, "a\u00e9")
                await alice.is_told(yours=True)
                async with await connect(tmp_path / "socket") as admin:
                    await admin.revoke("a\u00e9/root", "her slot is over")
        server.terminate()
        assert server.wait(30) == 0
    assert (tmp_path / "said").read_text().splitlines() == [
        f"{begins}a\u00e9: {what}"
        for what in (
            "it is here",
            "root has come",
            "root has the keyboard",
            "root was taken off by root: her slot is over",
            "nobody has the keyboard",
            "it was taken away: the console server was stopped",
        )
    ]


def test_each_line_in_the_journal_has_its_priority(tmp_path: pathlib.Path) -> None:
    """A traceback's, too; a name begins no line, and none has the priority of another."""
    with (tmp_path / "said").open("w") as said:
        there = os.fstat(said.fileno())
        script = (
            "import logging\n"
            "from asyncrevoke.console.journal import logging_to_stderr\n"
            "logger = logging.getLogger('asyncrevoke')\n"
            "with logging_to_stderr():\n"
            "    logger.debug('no')\n"
            "    logger.warning('%s', 'a\\n<0>b\\x1b')\n"
            "    try:\n"
            "        1 / 0\n"
            "    except ZeroDivisionError:\n"
            "        logger.exception('failed')\n"
            "logger.info('no')\n"
        )
        env = os.environ | {"JOURNAL_STREAM": f"{there.st_dev}:{there.st_ino}"}
        subprocess.run([sys.executable, "-c", script], stderr=said, env=env, check=True)
    lines = (tmp_path / "said").read_text().splitlines()
    assert lines[:3] == ["<4>a\\n<0>b\\x1b", "<3>failed", "<3>Traceback (most recent call last):"]
    assert lines[-1] == "<3>ZeroDivisionError: division by zero"
    assert all(line.startswith("<3>") for line in lines[1:])


def test_why_a_server_does_not_start_is_an_error_in_the_journal(tmp_path: pathlib.Path) -> None:
    """So that `journalctl -p err` shows it."""
    with (tmp_path / "said").open("w") as said:
        there = os.fstat(said.fileno())
        env = os.environ | {"JOURNAL_STREAM": f"{there.st_dev}:{there.st_ino}"}
        command = [sys.executable, "-m", "asyncrevoke", "share", "--config", str(tmp_path / "none")]
        assert subprocess.run(command, stderr=said, env=env, check=False).returncode == 1
    assert (tmp_path / "said").read_text() == f"<3>{tmp_path / 'none'}: No such file or directory\n"
