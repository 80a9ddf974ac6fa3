"""Programs on a pty, shared by many streams, each of which can be taken away: real ptys, real programs."""

from __future__ import annotations

import asyncio
import contextlib
import errno
import fcntl
import gc
import hashlib
import os
import pathlib
import re
import resource
import select
import signal
import subprocess
import sys
import threading
import time
import uuid
import warnings
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from multiprocessing import spawn
from types import FrameType
from typing import Any, cast

import anyio
import anyio.abc
import anyio.lowlevel
import pytest

from asyncrevoke import Name, Revocation, Revokable, RevokedError, answers, revoke_all, revoke_threadsafe
from asyncrevoke.adapters.pty import PtySession, PtyStream, open_pty, program, session as pty, start_pty
from asyncrevoke.testing import Subject, check_revokable
from conftest import BACKENDS, settle

loops = pytest.mark.anyio
on_asyncio = pytest.mark.parametrize("anyio_backend", [each for each in BACKENDS if each.id != "trio"], indirect=True)

#: For what is the same on every loop.
on_one = pytest.mark.parametrize("anyio_backend", BACKENDS[:1], indirect=True)

#: A program that gives back what it gets, byte for byte.
ECHO = ["sh", "-c", "stty raw -echo; echo ready; exec cat"]
#: One that neither reads nor writes.
MUTE = ["sh", "-c", "stty raw -echo; echo ready; exec sleep 1000"]


async def held_up_pty(argv: list[Any], **options: Any) -> PtySession:
    """`open_pty`, called as `start_pty` is."""
    return open_pty(argv, **options)


both_doors = pytest.mark.parametrize("start", [held_up_pty, start_pty])
Start = Callable[..., Awaitable[PtySession]]


def python(program: str, *arguments: str) -> list[str]:
    return [sys.executable, "-ISc", program, *arguments]


async def until(stream: PtyStream, marker: bytes) -> bytes:
    """What comes, until the marker is in it."""
    got = b""
    with anyio.fail_after(20):
        while marker not in got:
            got += await stream.receive()
    return got


async def rest(stream: PtyStream) -> bytes:
    """All that comes to the end of data."""
    got = b""
    with anyio.fail_after(20), contextlib.suppress(anyio.EndOfStream):
        while True:
            got += await stream.receive()
    return got


async def pid_from(stream: PtyStream) -> int:
    """The process that the program tells of."""
    found = re.search(rb"pid (\d+)\.", await until(stream, b"."))
    assert found
    return int(found[1])


async def ended(pidfd: int) -> bool:
    """Whether that process, which need not be ours, ends within some seconds. Closes the descriptor."""
    try:
        with anyio.move_on_after(2):
            await anyio.wait_readable(pidfd)
            return True
        return False
    finally:
        with contextlib.suppress(ProcessLookupError):
            signal.pidfd_send_signal(pidfd, signal.SIGKILL)  # whatever the test finds, it leaves nothing behind
        os.close(pidfd)


async def parked(stream: PtyStream) -> None:
    """Until somebody waits in the session's master for `stream`."""
    shared = stream.shared
    with anyio.fail_after(10):
        while not (
            stream.handle.in_use and (shared._waiting or shared._turn_to_read.locked() or shared.turn_to_write.locked())
        ):
            await anyio.lowlevel.checkpoint()
    await settle()


def clients(session: PtySession) -> list[str]:
    """The names of those who have it open."""
    return [getattr(client, "handle", client).name for client in cast("list[Any]", session.clients)]


def descriptors() -> set[int]:
    with os.scandir("/proc/self/fd") as listed:
        numbers = {int(entry.name) for entry in listed}
    return {number for number in numbers if pathlib.Path(f"/proc/self/fd/{number}").exists()}


def children() -> list[str]:
    """The processes that this thread has started and nobody has reaped."""
    return pathlib.Path(f"/proc/self/task/{os.getpid()}/children").read_text().split()


class Outcome:
    """One operation in a task of its own, and what became of it."""

    def __init__(self, tasks: anyio.abc.TaskGroup, operation: Callable[[], Awaitable[object]]) -> None:
        self.operation = operation
        self.scope = anyio.CancelScope()
        self.result: object = None
        self.error: Exception | None = None
        self.task: asyncio.Task[Any] | None = None
        self.over = anyio.Event()
        tasks.start_soon(self._run)

    async def _run(self) -> None:
        with contextlib.suppress(RuntimeError):
            self.task = asyncio.current_task()
        try:
            with self.scope:
                self.result = await self.operation()
        except Exception as exc:  # noqa: BLE001  # looked at by the test
            self.error = exc
        except asyncio.CancelledError:  # a native one, by the test
            pass
        finally:
            self.over.set()

    async def wait(self) -> Outcome:
        with anyio.fail_after(10):
            await self.over.wait()
        return self

    async def revoked(self, node: Revokable, *, in_flight: bool = True) -> RevokedError:
        await self.wait()
        assert isinstance(self.error, RevokedError), repr(self.error)
        assert self.error.node is node, f"it is about {self.error.name!r}"
        assert self.error.in_flight is in_flight
        return self.error


async def completes(act: Revocation) -> None:
    with anyio.fail_after(10):
        await act


# -- the program --


@loops
async def test_program_leads_a_session_with_the_pty_as_its_controlling_terminal(tmp_path: pathlib.Path) -> None:
    """Session, group, foreground, /dev/tty, size, environment and directory are its own, and no descriptor is ours."""
    program = (
        "import os; me = os.getpid(); tty = os.open('/dev/tty', os.O_RDWR); os.close(tty); size = os.get_terminal_size(0);"
        "here = [os.ttyname(n) for n in (0, 1, 2)];"
        "fds = [n for n in os.listdir('/proc/self/fd') if os.path.exists('/proc/self/fd/' + n)];"
        "print(os.getsid(0) == me, os.getpgid(0) == me, os.tcgetpgrp(0) == me, me, len(set(here)), here[0][:9],"
        "size.lines, size.columns, os.getcwd(), sorted(os.environ), os.environ['A'], sorted(fds))"
    )
    with open(os.devnull) as inherited:  # noqa: PTH123  # one that could leak
        os.set_inheritable(inherited.fileno(), True)
        async with open_pty(python(program), size=(31, 132), env={"A": "b c"}, cwd=tmp_path) as session:
            seen = (await rest(session.open("alice"))).decode()
            assert await session.wait() == 0
    expected = (
        f"True True True {session.pid} 1 /dev/pts/ 31 132 {tmp_path} ['A', 'LC_CTYPE'] b c ['0', '1', '2']",
        f"True True True {session.pid} 1 /dev/pts/ 31 132 {tmp_path} ['A'] b c ['0', '1', '2']",
    )
    assert seen.strip() in expected


@on_one
@loops
async def test_environment_is_inherited_unless_it_is_given(monkeypatch: pytest.MonkeyPatch) -> None:
    """env=None is this process's; an empty one is empty."""
    monkeypatch.setenv("ASYNCREVOKE_TEST", "inherited")
    shell = "/bin/sh"
    async with open_pty([shell, "-c", "echo $ASYNCREVOKE_TEST"]) as session:
        assert await rest(session.open()) == b"inherited\r\n"
    async with open_pty([shell, "-c", "echo [$ASYNCREVOKE_TEST]"], env={}) as session:
        assert await rest(session.open()) == b"[]\r\n"


@loops
async def test_last_output_is_read_then_end_of_data_then_the_status() -> None:
    """What was written right before the exit is read by everybody, then EndOfStream, as often as asked."""
    for status, how in (
        (0, "exit 0"),
        (7, "exit 7"),
        (-signal.SIGTERM, "kill -TERM $$"),
        (-signal.SIGKILL, "kill -9 $$"),
    ):
        async with open_pty(
            ["sh", "-c", f"head -c 3000 /dev/zero | tr '\\0' x; printf 'last words'; {how}"]
        ) as session:
            first, second = session.open("first"), session.open("second")
            assert await session.wait() == status  # before anything is read: the pty keeps it
            assert await rest(first) == b"x" * 3000 + b"last words"
            assert await rest(second) == b"x" * 3000 + b"last words"
            for stream in (first, second, session.open("late")):
                with pytest.raises(anyio.EndOfStream):
                    await stream.receive()
            assert session.returncode == status
        assert session.returncode == status


@loops
async def test_end_of_data_waits_for_the_last_who_has_the_terminal_open() -> None:
    """The program's exit is not the end: what its children still write is read."""
    program = "trap '' HUP; (read go <$0; echo from the child) & exit 3"
    with_fifo = f"/tmp/{uuid.uuid4()}"
    os.mkfifo(with_fifo)
    try:
        async with open_pty(["sh", "-c", program, with_fifo]) as session:
            assert await session.wait() == 3
            assert session.returncode == 3
            stream = session.open()
            pathlib.Path(with_fifo).write_text("go\n")
            assert await rest(stream) == b"from the child\r\n"
    finally:
        pathlib.Path(with_fifo).unlink()


@loops
async def test_wait_reports_to_all_before_during_and_after() -> None:
    """Any number of tasks wait for the status; a cancelled one takes nothing from the others."""
    async with open_pty(["sh", "-c", "read go; exit 5"]) as session:
        assert session.returncode is None
        stream = session.open()
        async with anyio.create_task_group() as tasks:
            waits = [Outcome(tasks, session.wait) for _ in range(5)]
            await settle()
            waits[0].scope.cancel()
            await waits[0].wait()
            await stream.send(b"\n")
            for each in waits[1:]:
                assert (await each.wait()).result == 5
            assert waits[0].result is None
        assert await session.wait() == 5
    assert await session.wait() == 5
    assert session.returncode == 5
    assert not pathlib.Path(f"/proc/{session.pid}").exists()  # reaped


@loops
async def test_wait_goes_on_through_a_revocation() -> None:
    """Who waits for the status when the session is revoked gets it."""
    async with open_pty(["sleep", "1000"]) as session, anyio.create_task_group() as tasks:
        waits = [Outcome(tasks, session.wait) for _ in range(3)]
        await settle()
        act = session.revoke("enough")
        assert [(await each.wait()).result for each in waits] == [-signal.SIGHUP] * 3
        await completes(act)
        assert await session.wait() == -signal.SIGHUP


@loops
async def test_program_runs_on_until_the_session_is_closed() -> None:
    """A session without any stream is none the worse; closing all streams ends nothing."""
    async with open_pty(ECHO) as session:
        for name in ("alice", "bob"):
            async with session.open(name) as stream:
                await stream.send(b"hello")
                await until(stream, b"hello")
            assert clients(session) == []
        assert session.returncode is None


@loops
async def test_resize_tells_the_program() -> None:
    """The foreground group gets SIGWINCH, and the new size."""
    program = (
        "import os, signal; signal.pthread_sigmask(signal.SIG_BLOCK, [signal.SIGWINCH]); print('ready', flush=True);"
        "signal.sigwait([signal.SIGWINCH]); print('now', *os.get_terminal_size(0), flush=True)"
    )
    async with open_pty(python(program)) as session:
        stream = session.open()
        await until(stream, b"ready")
        session.resize(50, 200)
        assert await rest(stream) == b"now 200 50\r\n"


@on_one
@loops
async def test_signals_reach_the_whole_group() -> None:
    """`kill` is for the program and those it started."""
    child = "trap 'echo child told; exit' USR1; echo ready; while :; do sleep 0.01; done"
    async with open_pty(["sh", "-c", "trap 'echo told $$' USR1; sh -c \"$0\"; echo end", child]) as session:
        stream = session.open()
        await until(stream, b"ready")
        session.kill(signal.SIGUSR1)
        seen = await until(stream, b"end")
        assert b"child told" in seen
        assert b"told %d" % session.pid in seen


@on_one
@loops
async def test_end_of_data_is_sent_as_the_terminal_spells_it() -> None:
    """`send_eof` types the terminal's own end of file, once, and ends this stream's sending and no other's."""
    async with open_pty(["sh", "-c", "stty -echo eof X; echo ready; cat; echo over; exec sleep 1000"]) as session:
        alice, bob = session.open("alice"), session.open("bob")
        await until(alice, b"ready")
        await alice.send(b"line\n")
        await until(alice, b"line\r\n")
        await alice.send_eof()
        await alice.send_eof()
        await until(alice, b"over")
        with pytest.raises(anyio.ClosedResourceError):
            await alice.send(b"more")
        await bob.send(b"more")


@on_one
@loops
@pytest.mark.parametrize(
    ("ignored", "blocked"),
    [
        pytest.param(signal.SIGHUP, None, id="nohup"),
        pytest.param(None, signal.SIGHUP, id="blocked"),
        pytest.param(signal.SIGINT, None, id="started-by-a-script-with-&"),
    ],
)
async def test_program_takes_signals_whatever_we_ignore_or_block(
    ignored: signal.Signals | None, blocked: signal.Signals | None
) -> None:
    """Hang-up and ^C work on a terminal that is hosted under nohup, in a shell's background, in a thread with a mask."""
    before = signal.getsignal(ignored) if ignored else None
    mask = signal.pthread_sigmask(signal.SIG_BLOCK, [blocked] if blocked else [])
    try:
        if ignored:
            signal.signal(ignored, signal.SIG_IGN)
        session = open_pty(["sh", "-c", "echo ready; exec sleep 1000"], kill_after=1)
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, mask)
        if ignored:
            signal.signal(ignored, before)
    async with session:
        stream = session.open()
        await until(stream, b"ready")
        if ignored is signal.SIGINT:
            await stream.send(b"\x03")
            with anyio.move_on_after(2):
                await session.wait()
            assert session.returncode == -signal.SIGINT
    assert session.returncode == -(ignored or blocked or 0)


@loops
@pytest.mark.parametrize("told", [True, False])
async def test_somebody_else_may_have_reaped_the_program(told: bool) -> None:
    """Where a foreign hand, or an ignored SIGCHLD, has reaped the program, closing is no failure and kills nobody."""
    async with open_pty(["sh", "-c", "read go"]) as session:
        await session.open().send(b"\n")
        os.waitpid(session.pid, 0)
        if told:
            with anyio.fail_after(5), pytest.raises(ChildProcessError, match=f"status is lost.*{session.pid}"):
                await session.wait()
    assert session.node.released
    assert session.returncode is None


@on_asyncio
@loops
async def test_status_is_not_lost_to_subprocesses_of_the_loop() -> None:
    """The loop's own child watching and ours do not take each other's children."""
    for _ in range(3):
        async with open_pty(["sh", "-c", "read go; exit 9"]) as session:
            other = await asyncio.create_subprocess_exec("sh", "-c", "exit 4")
            await session.open().send(b"\n")
            assert await other.wait() == 4
            assert await session.wait() == 9
        assert session.returncode == 9


def test_program_is_hosted_by_a_loop_in_another_thread() -> None:
    """A loop that runs in a thread of its own may host a terminal, and end with it."""
    seen: list[object] = []

    async def main() -> None:
        async with open_pty(ECHO) as session:
            seen.append(await until(session.open(), b"ready"))
        seen.append(session.returncode)

    thread = threading.Thread(target=anyio.run, args=[main])
    thread.start()
    thread.join(20)
    assert seen == [b"ready\n", -signal.SIGHUP]


# -- the output, for all --

MEGABYTE = b"".join(b"%07x " % number for number in range(1 << 17))


@loops
async def test_every_client_gets_every_byte_in_order() -> None:
    """Three readers of a megabyte, at three speeds and with three sizes of bite, get the same."""
    program = "import os; os.write(1, b''.join(b'%07x ' % n for n in range(1 << 17))) == 1 << 20 or os.abort()"
    expected = hashlib.sha256(MEGABYTE).hexdigest()
    sums: dict[str, str] = {}

    async def read(stream: PtyStream, bite: int, pause: int) -> None:
        seen = hashlib.sha256()
        with contextlib.suppress(anyio.EndOfStream):
            while True:
                seen.update(await stream.receive(bite))
                await settle(pause)
        sums[stream.handle.name] = seen.hexdigest()

    async with open_pty(python(program), backlog=1 << 21) as session, anyio.create_task_group() as tasks:
        for name, bite, pause in (("hasty", 65536, 0), ("nibbling", 1000, 1), ("slow", 4096, 9)):
            tasks.start_soon(read, session.open(name), bite, pause)
        assert await session.wait() == 0
    assert sums == dict.fromkeys(("hasty", "nibbling", "slow"), expected)


@loops
async def test_slow_reader_is_told_and_the_others_are_not_stalled() -> None:
    """Who stays behind by more than the backlog is revoked, with the reason; all others get everything."""
    program = "import os; os.write(1, b''.join(b'%07x ' % n for n in range(1 << 15)))"
    async with open_pty(python(program), backlog=20_000, patience=0.1) as session:
        fast, slow, asleep = (session.open(name) for name in ("fast", "slow", "asleep"))
        got = await slow.receive(100)
        assert await rest(fast) == MEGABYTE[: 1 << 18]
        assert clients(session) == ["fast", "asleep"]  # which may be there to type
        for stream in (slow, asleep):
            with pytest.raises(RevokedError, match="behind") as caught:
                await stream.receive()
            assert caught.value.node is stream.handle
            assert not caught.value.in_flight
            assert "20000" in caught.value.reason
        assert MEGABYTE.startswith(got)
        assert await session.wait() == 0
        assert not session.node.revoked


@on_one
@loops
async def test_reader_within_its_backlog_loses_nothing() -> None:
    """Up to the stated bound, to the byte, nobody is told anything."""
    async with open_pty(ECHO, backlog=1000, patience=0) as session:
        fast = session.open("fast")
        await until(fast, b"ready\n")
        late = session.open("late")
        for number in range(10):
            await fast.send(b"%03d" % number * 33 + b"\n")
            await until(fast, b"\n")
        assert await late.receive() == b"".join(b"%03d" % number * 33 + b"\n" for number in range(10))
        assert not late.handle.revoked


@loops
async def test_reader_who_waits_is_never_too_slow() -> None:
    """A burst larger than the backlog takes nothing away from one who is reading and has read all."""
    async with open_pty(python("import os; os.write(1, b'x' * 3000)"), backlog=1000) as session:
        assert await rest(session.open()) == b"x" * 3000


@on_one
@loops
@pytest.mark.parametrize("program", ["exit 0", "exec sleep 1000 <&- >&- 2>&-"])
async def test_nothing_is_sent_to_nobody(program: str) -> None:
    """When the program has ended, or closed its terminal, sending says so: the kernel would take it, and nobody reads it."""
    async with open_pty(["sh", "-c", program]) as session:
        stream = session.open()
        assert await rest(stream) == b""
        for item in b"x", bytes(500_000):
            with pytest.raises(anyio.BrokenResourceError, match="nobody has the terminal open"):
                await stream.send(item)
        with pytest.raises(anyio.BrokenResourceError, match="nobody has the terminal open"):
            await stream.send_eof()
        assert not session.node.revoked


async def _kill_when_parked(session: PtySession, stream: PtyStream) -> None:
    await parked(stream)
    session.kill(signal.SIGKILL)


@on_one
@loops
async def test_who_waits_to_send_is_told_that_the_program_has_ended() -> None:
    """More than the terminal takes waits for the program; at its end the rest has nowhere to go."""
    async with open_pty(["sh", "-c", "stty raw -echo; echo ready; exec sleep 1000"]) as session:
        stream = session.open()
        await until(stream, b"ready\n")
        async with anyio.create_task_group() as tasks:
            tasks.start_soon(_kill_when_parked, session, stream)
            with pytest.raises(anyio.BrokenResourceError, match="nobody has the terminal open"):
                await stream.send(bytes(500_000))


@loops
@pytest.mark.parametrize("mode", ["raw -echo", "-echo"])
async def test_what_the_program_has_not_read_is_discarded(tmp_path: pathlib.Path, mode: str) -> None:
    """What is sent next comes first, however much there was, and whether the terminal is raw or gives lines."""
    os.mkfifo(go := tmp_path / "go")
    program = f"stty {mode}; echo ready; read line < {go}; exec head -n 1"
    async with open_pty(["sh", "-c", program]) as session:
        stream = session.open()
        await until(stream, b"ready")
        with anyio.move_on_after(0.1):  # more than it takes
            await stream.send(b"stale\n" * 5000)
        session.discard()
        await stream.send(b"fresh\n")
        go.write_text("\n")
        assert (await rest(stream)).split() == [b"fresh"]
    with pytest.raises(anyio.ClosedResourceError):
        session.discard()


@on_one
@loops
async def test_late_stream_gets_what_comes_from_now_on() -> None:
    """What others have read before the open is not repeated."""
    async with open_pty(ECHO) as session:
        first = session.open("first")
        await until(first, b"ready\n")
        second = session.open("second")
        await first.send(b"both")
        assert await until(first, b"both") == b"both"
        assert await until(second, b"both") == b"both"


Act = Callable[[Outcome, PtyStream], object]


def native_cancel(outcome: Outcome, _: object = None) -> None:
    if outcome.task is None:
        outcome.scope.cancel()
    else:
        outcome.task.cancel()


ACTS: list[Any] = [
    pytest.param(lambda _, stream: stream.revoke("kicked"), id="revoked"),
    pytest.param(lambda _, stream: stream.handle.close(), id="closed"),
    pytest.param(lambda outcome, _: outcome.scope.cancel(), id="cancelled"),
    pytest.param(native_cancel, id="native"),
]


@loops
@pytest.mark.parametrize("act", ACTS)
async def test_reader_taken_away_while_it_reads_for_all_loses_no_byte_of_the_others(act: Act) -> None:
    """Output that comes in the very step in which the one who reads for all has to go reaches everybody else."""
    async with open_pty(ECHO) as session:
        steady = session.open("steady")
        await until(steady, b"ready\n")
        got = b""
        for number in range(40):
            async with anyio.create_task_group() as tasks:
                victim = session.open(f"victim {number}")
                reading = Outcome(tasks, victim.receive)
                await parked(victim)  # it reads for all
                behind = Outcome(tasks, steady.receive)
                await settle(number % 7)
                await steady.send(b"%04d" % number)
                await settle(number // 7)
                act(reading, victim)
                await reading.wait()
                assert isinstance((await behind.wait()).result, bytes), behind.error
                got += behind.result  # type: ignore[operator]
                await completes(victim.handle.close())
        while len(got) < 160:
            got += await steady.receive()
        assert got == b"".join(b"%04d" % number for number in range(40))
        assert clients(session) == ["steady"]


@loops
async def test_reading_goes_from_hand_to_hand() -> None:
    """Each of many parked readers in turn is revoked while it reads for all; the last one still gets all."""
    async with open_pty(ECHO) as session:
        writer = session.open("writer")
        await until(writer, b"ready\n")
        async with anyio.create_task_group() as tasks:
            streams = [session.open(str(number)) for number in range(20)]
            reads = [Outcome(tasks, stream.receive) for stream in streams]
            await parked(streams[0])
            for stream, read in zip(streams[:-1], reads[:-1], strict=True):
                stream.revoke("next")
                await read.revoked(stream.handle)
            await writer.send(b"still here")
            assert (await reads[-1].wait()).result == b"still here"


@loops
async def test_one_reader_at_a_time_on_each_stream() -> None:
    """A second reader of one stream is told that it is busy; a reader of another stream is not."""
    async with open_pty(ECHO) as session, anyio.create_task_group() as tasks:
        alice, bob = session.open("alice"), session.open("bob")
        await until(alice, b"ready\n")
        await until(bob, b"ready\n")
        first = Outcome(tasks, alice.receive)
        await parked(alice)
        with pytest.raises(anyio.BusyResourceError):
            await alice.receive()
        other = Outcome(tasks, bob.receive)
        await bob.send(b"x")
        assert (await first.wait()).result == b"x"
        assert (await other.wait()).result == b"x"


# -- the input --


@loops
async def test_interrupted_paste_reports_exactly_what_was_accepted() -> None:
    """`sent` of a big paste is to the byte what the program gets, when it reads at last."""
    program = (
        "import os, signal, tty; tty.setraw(0); signal.pthread_sigmask(signal.SIG_BLOCK, [signal.SIGUSR1]);"
        "os.write(1, b'ready'); signal.sigwait([signal.SIGUSR1]); got = b''\n"
        "while not got.endswith(b'!'): got += os.read(0, 65536)\n"
        "os.write(1, b'pid %d.' % (len(got) - 1))"
    )
    paste = b"0123456789abcdef" * 65536
    async with open_pty(python(program)) as session:
        alice, bob = session.open("alice"), session.open("bob")
        await until(bob, b"ready")
        async with anyio.create_task_group() as tasks:
            pasting = Outcome(tasks, lambda: alice.send(paste))
            await parked(alice)
            alice.revoke("too much")
            error = await pasting.revoked(alice.handle)
            assert error.sent is not None
            assert 0 < error.sent < len(paste)
            Outcome(tasks, lambda: bob.send(b"!"))
            await settle()
            session.kill(signal.SIGUSR1)
            assert await pid_from(bob) == error.sent


@loops
@pytest.mark.parametrize("how", ["session", "closed", "owner"])
async def test_paste_is_ended_with_the_session(how: str) -> None:
    """A program that does not read holds up no revocation, and the writer knows how much was accepted."""
    owner = Revokable("owner")
    async with open_pty(MUTE, owner=owner) as session, anyio.create_task_group() as tasks:
        alice, bob = session.open("alice"), session.open("bob")
        await until(alice, b"ready\n")
        pasting = Outcome(tasks, lambda: alice.send(bytes(1 << 20)))
        await parked(alice)
        behind = Outcome(tasks, lambda: bob.send(b"behind"))
        await settle()
        act = {"session": session.revoke, "closed": session.node.close, "owner": owner.revoke}[how]()
        error = await pasting.revoked(alice.handle)
        assert error.sent
        assert error.sent < 1 << 20
        assert (await behind.revoked(bob.handle)).sent == 0
        await completes(act)
    await owner.aclose()


@loops
async def test_paste_that_is_cancelled_frees_the_turn_for_others() -> None:
    """A writer that is cancelled while it waits leaves the terminal to the next."""
    async with open_pty(MUTE) as session, anyio.create_task_group() as tasks:
        alice, bob = session.open("alice"), session.open("bob")
        await until(alice, b"ready\n")
        pasting = Outcome(tasks, lambda: alice.send(bytes(1 << 20)))
        await parked(alice)
        behind = Outcome(tasks, lambda: bob.send(b"behind"))
        await settle()
        pasting.scope.cancel()
        await pasting.wait()
        assert pasting.error is None
        bob.revoke()
        assert (await behind.revoked(bob.handle)).sent == 0


@loops
async def test_writers_interleave_whole_chunks() -> None:
    """What two type at the same time is mixed by whole sends, also when the program is slow to read."""
    program = (
        "import os, signal, tty; tty.setraw(0); signal.pthread_sigmask(signal.SIG_BLOCK, [signal.SIGUSR1]);"
        "os.write(1, b'ready'); signal.sigwait([signal.SIGUSR1]); got = b''\n"
        "while len(got) < 200_000: got += os.read(0, 65536)\n"
        "os.write(1, got)"
    )

    async def write(stream: PtyStream, letter: bytes) -> None:
        for _ in range(1000):
            await stream.send(letter * 99 + b"|")

    async with open_pty(python(program), backlog=1 << 20) as session:
        alice, bob = session.open("alice"), session.open("bob")
        await until(alice, b"ready")
        async with anyio.create_task_group() as tasks:
            tasks.start_soon(write, alice, b"a")
            tasks.start_soon(write, bob, b"b")
            await parked(alice)
            await parked(bob)
            session.kill(signal.SIGUSR1)
        seen = await rest(alice)
    chunks = seen.split(b"|")[:-1]
    assert [each for each in chunks if len(set(each)) > 1][:3] == []  # torn and mixed
    assert sorted(chunks) == [b"a" * 99] * 1000 + [b"b" * 99] * 1000
    assert chunks != sorted(chunks)


# -- taken away --


@loops
async def test_one_client_is_taken_and_the_others_stay() -> None:
    """Kicked at once, gone from `clients`, and nobody else notices."""
    async with open_pty(ECHO) as session, anyio.create_task_group() as tasks:
        alice, bob = session.open("alice"), session.open("bob")
        await until(alice, b"ready\n")
        await until(bob, b"ready\n")
        reading = Outcome(tasks, alice.receive)
        await parked(alice)
        act = alice.revoke("you are out")
        error = await reading.revoked(alice.handle)
        assert str(error) == "'sh/alice' was revoked: you are out"
        await completes(act)
        assert clients(session) == ["bob"]
        for operation in (alice.receive, lambda: alice.send(b"x"), alice.send_eof):
            with pytest.raises(RevokedError) as caught:
                await operation()
            assert not caught.value.in_flight
        await bob.send(b"fine")
        await until(bob, b"fine")
        await alice.aclose()
        with pytest.raises(anyio.ClosedResourceError):
            await alice.receive()


@loops
async def test_all_clients_are_taken_and_the_program_runs_on() -> None:
    """`revoke_all(session.clients)`: the next to come finds the same program."""
    async with open_pty(ECHO) as session, anyio.create_task_group() as tasks:
        streams = [session.open(str(number)) for number in range(10)]
        reads = [Outcome(tasks, stream.receive) for stream in streams]
        for read in reads:
            await read.wait()
        reads = [Outcome(tasks, stream.receive) for stream in streams]
        await parked(streams[0])
        await completes(revoke_all(cast(Any, session.clients), "shift ends"))
        for read, stream in zip(reads, streams, strict=True):
            await read.revoked(stream.handle)
        assert clients(session) == []
        again = session.open("0")
        await again.send(b"hello")
        await until(again, b"hello")
        assert session.returncode is None


@loops
async def test_further_parents_take_a_stream_along() -> None:
    """A token takes its streams on all sessions, and no others; with a dead one, nothing is opened."""
    token = Revokable("token")
    async with open_pty(ECHO) as one, open_pty(ECHO) as two, anyio.create_task_group() as tasks:
        streams = [one.open("alice", also=[token]), two.open("alice", also=[token])]
        bob = one.open("bob")
        for stream in (*streams, bob):
            await until(stream, b"ready\n")
        reads = [Outcome(tasks, stream.receive) for stream in streams]
        for stream in streams:
            await parked(stream)
        await completes(token.revoke("logged out"))
        for read, stream in zip(reads, streams, strict=True):
            assert (await read.revoked(stream.handle)).reason == "logged out"
        assert clients(one) == ["bob"]
        assert clients(two) == []
        with pytest.raises(RevokedError, match="logged out"):
            one.open("carol", also=[token])
        assert clients(one) == ["bob"]
        assert two.returncode is None


@loops
async def test_session_is_taken_from_all_who_are_inside() -> None:
    """The one who reads for all, those who wait for it and those who do nothing: each hears of its own stream."""
    async with open_pty(ECHO) as session, anyio.create_task_group() as tasks:
        streams = [session.open(str(number)) for number in range(5)]
        for stream in streams:
            await until(stream, b"ready\n")
        reads = [Outcome(tasks, stream.receive) for stream in streams[:-1]]
        await parked(streams[0])
        act = session.revoke("over")
        await completes(act)
        for read, stream in zip(reads, streams[:-1], strict=True):
            assert (await read.revoked(stream.handle)).reason == "over"
        with pytest.raises(RevokedError, match="over"):
            await streams[-1].receive()
        for late in (lambda: session.open("late"), lambda: session.resize(1, 1), lambda: session.kill(signal.SIGTERM)):
            with pytest.raises(RevokedError, match="over"):
                late()
        assert clients(session) == []
        assert session.returncode == -signal.SIGHUP
        assert act.report.errors == ()


@loops
@pytest.mark.parametrize("reading", [True, False])
async def test_more_clients_than_a_turn_kicks_each_hear_of_their_own_stream(reading: bool) -> None:
    """Also where the kicks take several turns of the loop, nobody hears of an inner file that he never opened."""
    async with open_pty(MUTE) as session, anyio.create_task_group() as tasks:
        first = session.open("first")
        await until(first, b"ready\n")
        # The file in the session that kicks last is the one inside: it must be kicked before the clients for this test.
        streams = [session.open(str(number)) for number in range(300)]
        last = streams[-1]
        mine = Outcome(tasks, last.receive if reading else lambda: last.send(bytes(1 << 20)))
        await parked(last)
        others = (
            [Outcome(tasks, stream.receive if reading else lambda: None) for stream in streams[:-1]] if reading else []
        )
        await settle()
        await completes(session.revoke("over"))
        await mine.revoked(last.handle)
        for other, stream in zip(others, streams, strict=False):
            await other.revoked(stream.handle)


@loops
async def test_each_stream_answers_by_its_own_profile() -> None:
    """A stream's own profile counts, whatever the session's is: the inner file has none."""
    async with open_pty(MUTE, answers=answers.TTY) as session, anyio.create_task_group() as tasks:
        as_session = session.open("tty")
        own = session.open("own", answers=answers.PTY_MASTER_CLOSED)
        for reader in (own, as_session):
            await until(reader, b"ready\n")
        reads = [Outcome(tasks, own.receive), Outcome(tasks, as_session.receive)]
        await parked(own)
        await completes(session.revoke())
        error = await reads[0].revoked(own.handle)
        assert error.errno == errno.EIO
        assert isinstance((await reads[1].wait()).error, anyio.EndOfStream)
        with pytest.raises(anyio.EndOfStream):
            await own.receive()
        with pytest.raises(RevokedError) as caught:
            await as_session.send(b"x")
        assert caught.value.errno == errno.EIO


@loops
async def test_operations_after_the_owner_closed_the_session() -> None:
    """The owner's own calls are answered by "closed", those of its streams by "revoked"."""
    async with open_pty(ECHO) as session:
        stream = session.open()
        mine = session.open()
        await mine.aclose()
    for call in (session.open, lambda: session.resize(1, 1), lambda: session.kill(signal.SIGTERM)):
        with pytest.raises(anyio.ClosedResourceError):
            call()
    for operation in (stream.receive, lambda: stream.send(b"x"), stream.send_eof):
        with pytest.raises(RevokedError):
            await operation()
    with pytest.raises(anyio.ClosedResourceError):
        await mine.receive()
    await session.aclose()
    await stream.aclose()
    assert "returncode=-1" in repr(session)


@loops
async def test_closing_twice_and_by_many_at_once() -> None:
    """Closing is idempotent, and all who do it wait until the program is reaped."""
    async with open_pty(["sh", "-c", "echo ready; exec sleep 1000"]) as session:
        stream = session.open()
        await until(stream, b"ready")
        async with anyio.create_task_group() as tasks:
            closings = [Outcome(tasks, session.aclose) for _ in range(5)] + [
                Outcome(tasks, stream.aclose) for _ in range(5)
            ]
            for closing in closings:
                assert (await closing.wait()).error is None
                assert closing.operation != session.aclose or session.node.released
        await session.aclose()


@loops
async def test_grace_lets_a_writer_finish() -> None:
    """Readers are kicked at once; who is writing may finish until the grace is over."""
    program = (
        "import os, signal, tty; tty.setraw(0); signal.pthread_sigmask(signal.SIG_BLOCK, [signal.SIGUSR1]);"
        "os.write(1, b'pid %d.' % os.getpid()); signal.sigwait([signal.SIGUSR1]); got = 0\n"
        "while got < 300_000: got += len(os.read(0, 65536))\n"
    )
    async with open_pty(python(program)) as session, anyio.create_task_group() as tasks:
        alice, bob = session.open("alice"), session.open("bob")
        pid = await pid_from(alice)
        await pid_from(bob)
        writing = Outcome(tasks, lambda: alice.send(bytes(300_000)))
        reading = Outcome(tasks, bob.receive)
        await parked(alice)
        act = session.revoke("soon", grace=20)
        await reading.revoked(bob.handle)
        assert not writing.over.is_set()
        os.kill(pid, signal.SIGUSR1)
        assert (await writing.wait()).error is None
        await completes(act)


@loops
async def test_revocation_at_the_moment_of_the_end() -> None:
    """The program ends, its output ends and the session is taken, in every order within some turns: no hang, no loss."""
    for turns in range(8):
        async with open_pty(["sh", "-c", "read go; echo bye"]) as session, anyio.create_task_group() as tasks:
            one, two = session.open("one"), session.open("two")
            reads = [Outcome(tasks, lambda stream=stream: rest(stream)) for stream in (one, two)]  # type: ignore[misc]
            await parked(one)
            await two.send(b"\n")
            if turns % 2:
                await session.wait()
            await settle(turns)
            act = session.revoke("now")
            for read, stream in zip(reads, (one, two), strict=True):
                if (await read.wait()).error is None:
                    assert isinstance(read.result, bytes)
                    assert read.result.endswith(b"bye\r\n")
                else:
                    await read.revoked(stream.handle, in_flight=getattr(read.error, "in_flight", True))
            await completes(act)
            assert session.returncode in (0, -signal.SIGHUP)


@loops
async def test_generations_under_a_name() -> None:
    """Hanging the name up ends the program, and the next session is the next generation."""
    name = Name("console")
    async with open_pty(ECHO, owner=name, name="first") as first:
        assert first.node.path == "console/first"
        stream = first.open("alice")
        await until(stream, b"ready\n")
        async with anyio.create_task_group() as tasks:
            reading = Outcome(tasks, stream.receive)
            await parked(stream)
            act = name.hangup("unplugged")
            error = await reading.revoked(stream.handle)
            assert error.generation == 1
            assert error.reason == "unplugged"
            await completes(act)
        assert first.returncode == -signal.SIGHUP
    async with open_pty(ECHO, owner=name) as second:
        assert second.node.generation == 2
        await until(second.open(), b"ready")
        await completes(name.revoke("gone"))
    with pytest.raises(RevokedError, match="gone"):
        open_pty(ECHO, owner=name)


@loops
async def test_fifty_sessions_are_taken_by_one_act() -> None:
    """Each with its reader and its writer: all told of their own stream, all programs reaped, in one act."""
    async with anyio.create_task_group() as tasks:
        sessions = [open_pty(MUTE, name=f"session {number}") for number in range(50)]
        streams = [session.open("alice") for session in sessions]
        for stream in streams:
            await until(stream, b"ready\n")
        reads = [Outcome(tasks, stream.receive) for stream in streams]
        writes = [Outcome(tasks, lambda stream=stream: stream.send(bytes(100_000))) for stream in streams[::5]]  # type: ignore[misc]
        for stream in streams:
            await parked(stream)
        act = revoke_all([session.node for session in sessions], "deploy")
        await completes(act)
        for read, stream in zip(reads, streams, strict=True):
            await read.revoked(stream.handle)
        for write, stream in zip(writes, streams[::5], strict=True):
            assert (await write.revoked(stream.handle)).sent
        assert {session.returncode for session in sessions} == {-signal.SIGHUP}  # and none by KILL


@loops
async def test_flood_of_clients() -> None:
    """Thousands come and are taken, singly and all at once, while one reads: nothing is kept, nothing takes long."""
    async with open_pty(ECHO) as session, anyio.create_task_group() as tasks:
        steady = session.open("steady")
        await until(steady, b"ready\n")
        began = time.monotonic()
        reading = Outcome(tasks, lambda: until(steady, b"end"))
        for number in range(2000):
            session.open(str(number)).revoke("again")
        assert clients(session) == ["steady"]
        crowd = [session.open(str(number)) for number in range(2000)]
        parked_ones = [Outcome(tasks, stream.receive) for stream in crowd[:200]]
        await settle()
        await completes(revoke_all([stream.handle for stream in crowd], "all"))
        for read, stream in zip(parked_ones, crowd, strict=False):
            await read.revoked(stream.handle)
        assert clients(session) == ["steady"]
        await steady.send(b"the end")
        assert (await reading.wait()).result == b"the end"
        assert time.monotonic() - began < 10


@loops
async def test_stream_keeps_the_contract() -> None:
    """The shipped checker, on a stream of a session of its own."""

    @contextlib.asynccontextmanager
    async def maker() -> AsyncIterator[Subject]:
        async with open_pty(ECHO) as session:
            feeder = session.open("feeder")
            stream = session.open("checked")
            await until(feeder, b"ready\n")
            await until(stream, b"ready\n")
            yield Subject(
                stream.handle,
                stream.receive,
                quick=lambda: stream.send(b"x"),
                feed=lambda: feeder.send(b"y"),
                close=stream.aclose,
                gone=lambda: int("checked" not in clients(session)),
                owner=session.node,
            )

    await check_revokable(maker)


# -- HUP, CONT, KILL --


@loops
async def test_hang_up_is_seen_before_the_end(tmp_path: pathlib.Path) -> None:
    """The program is told by HUP, may clean up, and its own exit status is what is reported."""
    log = tmp_path / "log"
    program = 'trap \'echo HUP >>"$0"; sleep 0.2; echo cleaned >>"$0"; exit 3\' HUP; echo ready; sleep 1000 & wait'
    async with open_pty(["sh", "-c", program, str(log)], kill_after=20) as session:
        await until(session.open(), b"ready")
    assert log.read_text().split()[-1] == "cleaned"
    assert log.read_text().count("cleaned") == 1
    assert session.returncode == 3


@loops
@on_asyncio
@pytest.mark.parametrize("used", [True, False])
@pytest.mark.parametrize("how", ["callback", "thread"])
async def test_hang_up_from_elsewhere_is_the_same(how: str, used: bool, tmp_path: pathlib.Path) -> None:
    """In a callback of the loop there is no task, but a loop that can wait: the program is not killed."""
    ready = tmp_path / "ready"
    program = f"trap 'sleep 0.2; exit 3' HUP; echo ready > {ready}; sleep 1000 & wait"
    async with open_pty(["sh", "-c", program], kill_after=20) as session:
        if used:
            session.open()
        while not ready.exists():
            await anyio.lowlevel.checkpoint()
        if how == "callback":
            asyncio.get_running_loop().call_soon(session.node.revoke)
        else:
            await anyio.to_thread.run_sync(revoke_threadsafe, session.node)
        assert await session.wait() == 3


def test_hang_up_in_the_last_turn_of_a_loop_leaves_nobody() -> None:
    """From a callback, when the loop is about to cancel all tasks: who does not listen to HUP is killed all the same."""

    async def main() -> PtySession:
        session = open_pty(["sh", "-c", "trap '' HUP; echo ready; while :; do sleep 0.05; done"], kill_after=0.1)
        await until(session.open(), b"ready")
        asyncio.get_running_loop().call_soon(session.node.revoke)
        return session

    session = asyncio.run(main())
    assert session.node.released
    assert session.returncode == -signal.SIGKILL


@loops
async def test_stopped_program_is_woken_to_hear_of_the_hang_up(tmp_path: pathlib.Path) -> None:
    """A program that had stopped itself gets CONT, runs its HUP trap, and is gone before any KILL."""
    log = tmp_path / "log"
    program = "trap 'echo HUP >>\"$0\"; exit 4' HUP; echo ready; kill -STOP $$; while :; do sleep 0.01; done"
    async with open_pty(["sh", "-c", program, str(log)], kill_after=20) as session:
        await until(session.open(), b"ready")
        os.waitid(os.P_PID, session.pid, os.WSTOPPED | os.WNOWAIT)
    assert log.read_text().startswith("HUP\n")  # the kernel's may come before ours
    assert session.returncode == 4


@loops
async def test_jobs_of_a_shell_hear_of_the_hang_up(tmp_path: pathlib.Path) -> None:
    """The kernel tells the shell, and not its jobs, which have groups of their own."""
    log = tmp_path / "log"
    job = "trap 'echo HUP >>\"$0\"; exit' HUP; echo ready; while :; do sleep 0.01; done"
    program = ["sh", "-c", 'set -m; sh -c "$1" "$0" & wait', str(log), job]
    async with open_pty(program, kill_after=20) as session:
        await until(session.open(), b"ready")
    assert log.read_text() == "HUP\n"


@loops
async def test_stopped_program_is_woken_though_the_terminal_stays_open() -> None:
    """The kernel hangs up when the last copy of the master is closed, and another process may have one."""
    program = "trap 'exit 4' HUP; echo ready; kill -STOP $$; while :; do sleep 0.01; done"
    session = open_pty(["sh", "-c", program], kill_after=20)
    kept = os.dup(session._master.number)
    try:
        await until(session.open(), b"ready")
        os.waitid(os.P_PID, session.pid, os.WSTOPPED | os.WNOWAIT)
        await session.aclose()
    finally:
        os.close(kept)
    assert session.returncode == 4


@loops
@pytest.mark.parametrize("stopped", [False, True])
async def test_program_that_ignores_the_hang_up_is_killed(stopped: bool) -> None:
    """After `kill_after`, and not before."""
    stop = "kill -STOP $$;" if stopped else ""
    async with open_pty(
        ["sh", "-c", f"trap '' HUP; echo ready; {stop} while :; do sleep 1; done"], kill_after=0.4
    ) as session:
        await until(session.open(), b"ready")
        if stopped:
            os.waitid(os.P_PID, session.pid, os.WSTOPPED | os.WNOWAIT)
        began = time.monotonic()
        act = session.revoke()
        while not act.stragglers():
            await anyio.lowlevel.checkpoint()
        named = str(act.stragglers()[0])  # I8
        assert "release" in named
        assert "'sh'" in named
        await completes(act)
        assert 0.4 <= time.monotonic() - began < 4
    assert session.returncode in (-signal.SIGHUP, -signal.SIGKILL)  # whichever it dies of first


#: The program dies of HUP; a member of its group, whose number it tells, does not.
STUBBORN = "trap '' HUP; {member} & trap - HUP; echo pid $!.; wait"


@loops
@pytest.mark.parametrize(
    "member",
    ["sleep 1000", "sh -c 'kill -STOP $$; sleep 1000'", "(while :; do sleep 0.01; done)"],
    ids=["asleep", "stopped", "busy"],
)
async def test_member_of_the_group_that_ignores_the_hang_up_is_killed(member: str) -> None:
    """Those whom the program leaves behind in its group get the same grace, and then KILL."""
    async with open_pty(["sh", "-c", STUBBORN.format(member=member)], kill_after=0.4) as session:
        pidfd = os.pidfd_open(await pid_from(session.open()))
        try:
            began = time.monotonic()
            await session.aclose()
            assert 0.4 <= time.monotonic() - began < 4
            assert session.returncode == -signal.SIGHUP
        finally:
            killed = await ended(pidfd)
        assert killed


@loops
async def test_member_of_the_group_that_cleans_up_in_time_is_not_killed(tmp_path: pathlib.Path) -> None:
    """The release waits for it, and no longer."""
    log = tmp_path / "log"
    member = "sh -c \"trap '' TERM; trap 'sleep 0.3; echo cleaned >$0; exit' HUP; echo up; while :; do sleep 0.01; done\" \"$0\""
    program = f"{member} & echo pid $!.; wait"
    async with open_pty(["sh", "-c", program, str(log)], kill_after=20) as session:
        stream = session.open()
        seen = await until(stream, b"up")
        if b"." not in seen:
            seen += await until(stream, b".")
        pidfd = os.pidfd_open(int(re.findall(rb"pid (\d+)\.", seen)[0]))
        try:
            with anyio.fail_after(10):
                await session.aclose()
            assert log.read_text() == "cleaned\n"  # it was waited for
        finally:
            gone = await ended(pidfd)
        assert gone


@on_one
@loops
async def test_program_that_ended_leaves_a_group_behind() -> None:
    """The program had exited by itself long ago; its group is hung up all the same."""
    async with open_pty(["sh", "-c", "sleep 1000 & echo pid $!."], kill_after=20) as session:
        left = pathlib.Path(f"/proc/{await pid_from(session.open())}/stat")
        assert await session.wait() == 0
        with anyio.fail_after(10):
            await session.aclose()
        assert not left.exists() or b") Z " in left.read_bytes()


@on_one
@loops
async def test_group_that_breeds_is_killed_as_a_whole(tmp_path: pathlib.Path) -> None:
    """Members that fork faster than anybody reads /proc do not get away."""
    program = (
        "import os, signal, sys, time; end = time.monotonic() + 10; signal.signal(signal.SIGHUP, signal.SIG_IGN)\n"
        "log = os.open(sys.argv[1], os.O_WRONLY | os.O_CREAT | os.O_APPEND)\n"
        "if os.fork():\n"
        "    signal.signal(signal.SIGHUP, signal.SIG_DFL); os.write(1, b'ready'); signal.pause()\n"
        "while time.monotonic() < end:\n"
        "    if os.fork(): os._exit(0)\n"
        "    os.write(log, b'.')\n"
    )
    log = tmp_path / "births"
    async with open_pty(python(program, str(log)), kill_after=0.2) as session:
        await until(session.open(), b"ready")
        await session.aclose()
        born = log.stat().st_size
        assert born
        with anyio.move_on_after(0.3):  # in which some hundred would be born
            while log.stat().st_size == born:
                await anyio.lowlevel.checkpoint()
        more = log.stat().st_size - born
        with contextlib.suppress(ProcessLookupError):
            os.killpg(session.pid, signal.SIGKILL)
        assert more == 0


@on_one
@loops
@pytest.mark.parametrize(
    "job", ["sleep 1000 & echo pid $!.", "sh -c 'echo pid $$.; trap \"\" HUP; kill -STOP $$; exec sleep 1000'"]
)
async def test_jobs_of_an_interactive_shell_do_not_outlive_the_session(job: str) -> None:
    """A shell with job control gives each job a group of its own: that hides nobody."""
    async with open_pty(["sh", "-i"], kill_after=0.4, env={"PS1": "$ ", "PATH": os.environ["PATH"]}) as session:
        stream = session.open()
        await until(stream, b"$ ")
        await stream.send(b"stty -echo\n")
        await until(stream, b"$ ")
        await stream.send(job.encode() + b"\n")
        pidfd = os.pidfd_open(await pid_from(stream))
        try:
            await session.aclose()
        finally:
            gone = await ended(pidfd)
    assert gone


#: A job in a group of its own that ignores the hang-up, locks a file, and has so much memory that its end takes a while.
HOLDER = """
import fcntl, os, signal, sys
signal.signal(signal.SIGHUP, signal.SIG_IGN)
if not os.fork():
    os.setpgid(0, 0)
    memory = bytearray(1 << 28)
    memory[::4096] = b"1" * len(memory[::4096])
    lock = open(sys.argv[1], "w")
    fcntl.flock(lock, fcntl.LOCK_EX)
    os.write(1, b"pid %d." % os.getpid())
signal.pause()
"""


def is_free(lock: pathlib.Path) -> bool:
    with lock.open("w") as file, contextlib.suppress(BlockingIOError):
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        return True
    return False


async def held(lock: pathlib.Path) -> PtySession:
    """A session with a job that holds the lock."""
    session = open_pty(python(HOLDER, str(lock)), kill_after=0.1)
    await pid_from(session.open())
    assert not is_free(lock)
    return session


@loops
async def test_complete_means_that_what_was_killed_is_gone(tmp_path: pathlib.Path) -> None:
    """What a killed job had locked is free when the revocation is complete."""
    session = await held(tmp_path / "lock")
    await session.aclose()
    assert is_free(tmp_path / "lock")


def test_complete_means_gone_without_a_loop(tmp_path: pathlib.Path) -> None:
    """Where nobody can wait in a loop, the call itself waits."""
    session = anyio.run(held, tmp_path / "lock")
    assert session.revoke().done()
    assert is_free(tmp_path / "lock")


@on_one
@loops
async def test_what_a_kill_does_not_end_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    """As a process that waits for a dead disk. The release is over after some seconds, and says who is left."""
    real = os.killpg

    def killpg(group: int, signum: int) -> None:
        if signum != signal.SIGKILL:
            real(group, signum)

    session = open_pty(["sh", "-c", "trap '' HUP; echo ready; while :; do sleep 1; done"], kill_after=0.1, name="stuck")
    await until(session.open(), b"ready")
    with monkeypatch.context() as patch:
        patch.setattr(os, "killpg", killpg)
        patch.setattr(program, "STUCK", 0.1)
        with pytest.raises(ExceptionGroup) as caught, anyio.fail_after(10):
            await session.aclose()
    assert session.node.released
    real(session.pid, signal.SIGKILL)
    with anyio.fail_after(10):
        while pathlib.Path(f"/proc/{session.pid}").exists():  # it is reaped whenever it ends
            await anyio.sleep(0.01)
    (error,) = caught.value.exceptions
    assert isinstance(error, TimeoutError)
    assert f"{session.pid} (sh)" in str(error)


@loops
async def test_without_descriptors_the_session_is_killed_all_the_same() -> None:
    """Others may take each descriptor as soon as it is free: the program and its jobs are hung up, killed and awaited."""
    async with open_pty(
        ["sh", "-c", f"set -m; trap '' HUP; {STUBBORN.format(member='sleep 1000')}"], kill_after=0.2
    ) as session:
        pidfd = os.pidfd_open(await pid_from(session.open()))
        await anyio.lowlevel.checkpoint()
        soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
        resource.setrlimit(resource.RLIMIT_NOFILE, (max(descriptors()) + 1, hard))
        hoard: list[int] = []
        try:
            take_all(hoard)
            act = session.revoke()
            take_all(hoard)
            await settle()
            take_all(hoard)
            with anyio.fail_after(10):
                await act
            gone = bool(select.select([pidfd], [], [], 0)[0])
        finally:
            resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))
            for fd in hoard:
                os.close(fd)
            os.close(pidfd)
    assert gone


@on_one
@loops
async def test_a_look_that_finds_no_descriptor_is_repeated(monkeypatch: pytest.MonkeyPatch) -> None:
    """A thread may have taken the one that was kept: nobody is taken for gone who was not looked for."""
    program = f"set -m; trap '' HUP; {STUBBORN.format(member='sleep 1000')}"
    async with open_pty(["sh", "-c", program], kill_after=0.1) as session:
        pidfd = os.pidfd_open(await pid_from(session.open()))
        listdir = os.listdir
        failures = [OSError(errno.EMFILE, os.strerror(errno.EMFILE)) for _ in range(3)]

        def look(path: str) -> list[str]:
            if path == "/proc" and failures:
                raise failures.pop()
            return listdir(path)

        with monkeypatch.context() as patch:
            patch.setattr(os, "listdir", look)
            await session.aclose()
        gone = bool(select.select([pidfd], [], [], 0)[0])
        await ended(pidfd)
    assert gone
    assert failures == []


def take_all(hoard: list[int]) -> None:
    with contextlib.suppress(OSError):
        while True:
            hoard.append(os.open(os.devnull, os.O_RDONLY))


@on_one
@loops
async def test_member_that_nobody_reaps_is_no_reason_to_wait() -> None:
    """A dead member whose parent left the session and does not reap it keeps nobody waiting."""
    program = (
        "import os, signal\n"
        "if os.fork(): signal.pause()\n"  # the program
        "if os.fork():\n"
        "    os.setsid(); signal.signal(signal.SIGHUP, signal.SIG_IGN)\n"  # its parent, who leaves
        "    os.waitid(os.P_ALL, 0, os.WEXITED | os.WNOWAIT); os.write(1, b'pid %d.' % os.getpid()); signal.pause()\n"
    )
    async with open_pty(python(program), kill_after=20) as session:
        pidfd = os.pidfd_open(await pid_from(session.open()))
        try:
            with anyio.fail_after(5):
                await session.aclose()
        finally:
            signal.pidfd_send_signal(pidfd, signal.SIGKILL)
            await ended(pidfd)


@on_one
@loops
async def test_number_of_a_reaped_program_is_not_asked_about_again(monkeypatch: pytest.MonkeyPatch) -> None:
    """Once it is reaped, its number may be anybody's: nobody waits for that one, nor sends it anything."""
    asked: list[str] = []
    reaped = False
    real_open, real_kill, real_killpg = os.pidfd_open, os.kill, os.killpg

    def watch(name: str, real: Callable[..., Any]) -> Callable[..., Any]:
        def call(pid: int, *arguments: Any) -> Any:
            if reaped_now() and pid == session.pid and arguments != (0,):
                asked.append(name)
            return real(pid, *arguments)

        return call

    def reaped_now() -> bool:
        return not pathlib.Path(f"/proc/{session.pid}").exists()

    async with open_pty(["sh", "-c", STUBBORN.format(member="sleep 1000")], kill_after=0.3) as session:
        pidfd = os.pidfd_open(await pid_from(session.open()))
        with monkeypatch.context() as patch:
            patch.setattr(os, "pidfd_open", watch("pidfd_open", real_open))
            patch.setattr(os, "kill", watch("kill", real_kill))
            patch.setattr(os, "killpg", watch("killpg", real_killpg))
            await session.aclose()
        assert await ended(pidfd)
    assert not reaped
    assert asked == []


@on_one
@loops
async def test_group_that_may_not_be_signalled_is_reaped_all_the_same(monkeypatch: pytest.MonkeyPatch) -> None:
    """A program that became another user's answers EPERM; the kernel hangs it up, and we wait for it and reap it."""
    real = os.killpg

    def killpg(pid: int, _: int) -> None:
        real(pid, 0)
        raise PermissionError(errno.EPERM, os.strerror(errno.EPERM))

    async with open_pty(
        ["sh", "-c", "trap 'sleep 0.2; exit 3' HUP; echo ready; sleep 1000 & wait"], kill_after=5
    ) as session:
        await until(session.open(), b"ready")
        with monkeypatch.context() as patch:
            patch.setattr(os, "killpg", killpg)
            with contextlib.suppress(BaseExceptionGroup):  # that it failed may be told
                await session.aclose()
        reaped = not pathlib.Path(f"/proc/{session.pid}").exists()
        if not reaped:  # do not leave it to the next test
            real(session.pid, signal.SIGKILL)
            os.waitpid(session.pid, 0)
    assert reaped
    assert session.returncode == 3


# -- what is asked wrongly --


@on_one
@loops
@both_doors
async def test_what_cannot_start_says_so(tmp_path: pathlib.Path, start: Start) -> None:
    """A clear error that names the thing; nothing is open, and the owner has no user."""
    plain = tmp_path / "plain"
    plain.write_text("no program")
    owner = Revokable("owner")
    for argv, cwd, error, names in (
        ([tmp_path / "missing"], None, FileNotFoundError, "missing"),
        (["no-such-program-anywhere"], None, FileNotFoundError, "no-such-program-anywhere"),
        ([plain], None, PermissionError, "plain"),
        (["cat"], tmp_path / "nowhere", FileNotFoundError, "nowhere"),
        (["cat"], plain, NotADirectoryError, "plain"),
        ([], None, TypeError, "argv"),
        ("cat", None, TypeError, "argv"),
        (b"cat", None, TypeError, "argv"),
        (["cat", 3], None, TypeError, "int"),
        (["a\0b"], None, ValueError, "null"),
    ):
        with pytest.raises(error, match=names):
            await start(argv, cwd=cwd, owner=owner)
        assert owner.in_use == 0
    with pytest.raises(TypeError):
        await start(["cat"], env={"A": 1}, owner=owner)
    assert owner.in_use == 0


@on_one
@loops
@pytest.mark.parametrize(
    ("option", "value"),
    [
        ("size", (24,)),
        ("size", (-1, 80)),
        ("size", (24, 65536)),
        ("kill_after", -1.0),
        ("kill_after", float("nan")),
        ("backlog", 0),
        ("backlog", -1),
    ],
)
async def test_option_that_makes_no_sense_is_named(option: str, value: Any) -> None:
    """Rather than a session that is never killed, or where everybody is too slow."""
    owner = Revokable("owner")
    with pytest.raises((TypeError, ValueError), match=option):
        async with open_pty(["sleep", "1000"], owner=owner, **{option: value}):
            pass
    assert owner.in_use == 0


@on_one
@loops
@both_doors
async def test_nothing_is_started_for_an_owner_who_is_gone(monkeypatch: pytest.MonkeyPatch, start: Start) -> None:
    """Revoked or closed before: refused before a pty is taken."""

    def openpty() -> tuple[int, int]:
        raise AssertionError("a pty was opened")

    monkeypatch.setattr(os, "openpty", openpty)
    owner = Revokable("owner")
    owner.revoke("no more")
    with pytest.raises(RevokedError, match="no more"):
        await start(["cat"], owner=owner)
    owner.close()
    with pytest.raises(anyio.ClosedResourceError):
        await start(["cat"], owner=owner)


@on_one
@loops
async def test_this_process_is_not_forked() -> None:
    """A large process takes long to fork, and a threaded one may deadlock after it: a small one becomes the program."""
    forked: list[bool] = []
    os.register_at_fork(before=lambda: forked.append(True))
    async with open_pty(["true"]) as session:
        assert await session.wait() == 0
    assert forked == []


@contextlib.contextmanager
def slow_interpreter(tmp_path: pathlib.Path) -> Iterator[Callable[[], None]]:
    """An interpreter that is not there until what this gives was called, as on a file system that does not answer."""
    gate, before = tmp_path / "gate", spawn.get_executable()
    os.mkfifo(gate)
    slow = tmp_path / "python"
    slow.write_text(f'#!/bin/sh\nread go < {gate}\nexec {sys.executable} "$@"\n')
    slow.chmod(0o755)
    spawn.set_executable(str(slow))
    try:
        with open(os.open(gate, os.O_RDWR), "w") as opened:  # noqa: PTH123  # a FIFO that is open both ways blocks nobody
            yield lambda: print("go", file=opened, flush=True)
    finally:
        spawn.set_executable(before)


@loops
async def test_the_loop_goes_on_while_a_program_starts(tmp_path: pathlib.Path) -> None:
    """Whatever has to be read from a slow file system; also with a request that no socket's buffer holds."""
    word = "x" * 100_000
    with slow_interpreter(tmp_path) as answer:
        async with anyio.create_task_group() as tasks:
            starting = Outcome(
                tasks, lambda: start_pty(["sh", "-c", "echo ${#A}; cat"], env=dict.fromkeys("ABCDEFGH", word))
            )
            await settle(100)
            assert not starting.over.is_set()
            answer()
            await starting.wait()
    session = cast("PtySession", starting.result)
    assert await until(session.open(), b"\n") == b"100000\r\n"
    await session.aclose()


@loops
@pytest.mark.parametrize("end", ["revoked", "closed", "cancelled", "native"])
@pytest.mark.parametrize("large", [False, True])
async def test_what_ends_while_it_starts_leaves_nothing(tmp_path: pathlib.Path, end: str, large: bool) -> None:
    """Whoever ends it: the interpreter is killed and reaped, and the owner has no user."""
    owner = Revokable("owner")
    env = {"A": "x" * 100_000, "B": "x" * 100_000, "C": "x" * 100_000} if large else {}
    before, others = descriptors(), children()
    with slow_interpreter(tmp_path):
        async with anyio.create_task_group() as tasks:
            starting = Outcome(tasks, lambda: start_pty(["cat"], env=env, owner=owner, kill_after=1000))
            await settle(20)
            (session,) = owner.children
            if end == "revoked":
                await owner.revoke("logged out")
            elif end == "closed":
                await session.aclose()
            elif end == "cancelled":
                starting.scope.cancel()
            else:
                native_cancel(starting)
            await starting.wait()
    if end == "revoked":
        assert isinstance(starting.error, RevokedError)
        assert starting.error.reason == "logged out"
    elif end == "closed":
        assert isinstance(starting.error, anyio.ClosedResourceError)
    else:
        assert starting.error is None
    with anyio.fail_after(10):
        await session.aclose()
    assert session.released
    assert owner.in_use == 0
    assert descriptors() == before
    assert children() == others


def test_a_program_that_never_began_leaves_nothing() -> None:
    """Its opening was cancelled while a thread started it: there is nobody to tell it what to run."""
    master, slave = os.openpty()
    started = program.Program(["cat"], None, None, os.ttyname(slave))
    started.kill()
    assert started._channel.fileno() == -1
    os.close(master)
    os.close(slave)


@on_one
@loops
async def test_program_is_not_started_for_a_host_that_has_ended(
    monkeypatch: pytest.MonkeyPatch, tmp_path: pathlib.Path
) -> None:
    """The kernel tells of a parent's end only from when it was asked to: an end before that is found out."""
    with monkeypatch.context() as patch:
        patch.setattr(os, "getpid", lambda: 1)  # some process that is no parent
        with pytest.raises(OSError, match="failed"):
            open_pty(["touch", str(tmp_path / "started")])
    assert not (tmp_path / "started").exists()


@on_one
@loops
@both_doors
async def test_large_environments_and_arguments_come_through(start: Start) -> None:
    """Up to what the kernel takes, and beyond it the kernel's error."""
    word = "x" * 100_000
    async with await start(["sh", "-c", "echo ${#0} ${#A} ${#B}", word], env={"A": word, "B": word}) as session:
        assert await rest(session.open()) == b"100000 100000 100000\r\n"
    with pytest.raises(OSError, match="sh") as caught:
        await start(["sh", "-c", ":", word * 2])
    assert caught.value.errno == errno.E2BIG


@on_one
@loops
@both_doors
async def test_an_interpreter_that_fails_is_named(
    monkeypatch: pytest.MonkeyPatch, tmp_path: pathlib.Path, start: Start
) -> None:
    """An embedded Python, or a frozen program, may have none at hand: the error says so, and nothing stays behind."""
    owner = Revokable("owner")
    before = spawn.get_executable()
    try:
        for executable, error in (
            ("/bin/false", "interpreter"),
            (str(tmp_path / "python9"), "python9"),
            ("", "set_executable"),
        ):
            spawn.set_executable(executable)
            with pytest.raises(OSError, match=error):
                await start(["cat"], owner=owner)
            assert owner.in_use == 0
        spawn.set_executable(sys.executable)
        monkeypatch.setattr(sys, "frozen", True, raising=False)
        with pytest.raises(OSError, match="set_executable"):
            await start(["cat"], owner=owner)
    finally:
        spawn.set_executable(before)
    assert owner.in_use == 0


@on_one
@loops
async def test_environment_may_have_an_empty_name(monkeypatch: pytest.MonkeyPatch) -> None:
    """One may be inherited that no call takes; it is left out."""
    monkeypatch.setattr(os, "environb", {**os.environb, b"": b"x=y"})
    async with open_pty(["sh", "-c", "exit 3"]) as session:
        assert await session.wait() == 3


@on_one
@loops
async def test_job_whose_first_thread_has_ended_is_killed() -> None:
    """It looks like a zombie, and its other threads run on."""
    program = (
        "import ctypes, os, signal, threading\n"
        "if os.fork(): signal.pause()\n"
        "os.setpgid(0, 0); signal.signal(signal.SIGHUP, signal.SIG_IGN)\n"
        "def on():\n"
        "    while open(f'/proc/{os.getpid()}/stat').read().rpartition(')')[2].split()[0] != 'Z': pass\n"
        "    os.write(1, b'pid %d.' % os.getpid()); threading.Event().wait()\n"
        "threading.Thread(target=on).start(); ctypes.CDLL(None).syscall(60, 0)\n"
    )
    async with open_pty(python(program), kill_after=0.2) as session:
        pidfd = os.pidfd_open(await pid_from(session.open()))
        await session.aclose()
        assert await ended(pidfd)
        gone = not pathlib.Path(f"/proc/{session.pid}").exists()
    assert gone


@on_one
@loops
async def test_status_that_nobody_knows_is_no_status() -> None:
    """With SIGCHLD ignored the kernel reaps the program: `wait` says so, rather than 0. What cannot start says why."""
    before = signal.signal(signal.SIGCHLD, signal.SIG_IGN)
    try:
        with pytest.raises(FileNotFoundError, match="no-such-program"):
            open_pty(["no-such-program"])
        async with open_pty(["sh", "-c", "exit 7"]) as session:
            with anyio.fail_after(10), pytest.raises(ChildProcessError, match="SIGCHLD is ignored"):
                await session.wait()
            assert session.returncode is None
    finally:
        signal.signal(signal.SIGCHLD, before)
    assert session.node.released


@on_one
@loops
async def test_no_pty_is_free(monkeypatch: pytest.MonkeyPatch) -> None:
    """The limit is named, with the program that got none, and where to look."""

    def openpty() -> tuple[int, int]:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    owner = Revokable("owner")
    monkeypatch.setattr(os, "openpty", openpty)
    with pytest.raises(OSError, match=r"no pty for 'cat'.*/proc/sys/kernel/pty/max") as caught:
        open_pty(["cat"], owner=owner)
    assert caught.value.errno == errno.ENOSPC
    assert owner.in_use == 0


@loops
@both_doors
async def test_no_descriptor_is_free(start: Start) -> None:
    """However many are free, from none to enough: a clear error and no leak, or a session that works."""
    owner = Revokable("owner")
    await anyio.lowlevel.checkpoint()
    outcomes: list[int | None] = []
    for free in range(12):
        soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
        held = sorted(descriptors())
        gaps = sorted(set(range(held[-1] + free + 2)) - set(held))
        resource.setrlimit(resource.RLIMIT_NOFILE, (gaps[free], hard))
        try:
            session = await start(["sh", "-c", "echo ready; exec sleep 1000"], owner=owner)
        except OSError as exc:
            outcomes.append(exc.errno)
        else:
            outcomes.append(0)
            await until(session.open(), b"ready")
            await session.aclose()
            assert session.returncode == -signal.SIGHUP
        finally:
            resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))
        assert owner.in_use == 0
    assert set(outcomes) == {0, errno.EMFILE}
    assert outcomes[0] == errno.EMFILE
    assert outcomes[-1] == 0


@loops
@pytest.mark.parametrize("native", [False, True])
async def test_cancelled_at_every_point_nothing_leaks(native: bool) -> None:
    """A task that opens, reads, writes and closes is cancelled after any number of steps: all is released."""
    sessions: list[PtySession] = []

    async def work() -> None:
        async with open_pty(["sh", "-c", "echo hi; read x; echo $x"]) as session:
            sessions.append(session)
            async with session.open() as stream:
                await stream.receive()
                await stream.send(b"x\n")
                await stream.receive()
            await session.wait()

    for turns in [*range(15), 30, 100]:
        async with anyio.create_task_group() as tasks:
            working = Outcome(tasks, work)
            await settle(turns)
            if native:
                native_cancel(working)
            else:
                working.scope.cancel()
            await working.wait()
            assert working.error is None
    for session in sessions:
        assert session.node.revoked
        with anyio.fail_after(10):
            await session.aclose()
        assert not pathlib.Path(f"/proc/{session.pid}").exists()


def test_interrupted_while_it_starts_nothing_leaks() -> None:  # noqa: C901  # the trace is a function of its own
    """A KeyboardInterrupt at any line of the session's making leaves no program running and no descriptor open."""
    made = pty.PtySession.__init__.__code__
    leaked: list[str] = []

    def interrupted_at(target: int) -> bool:  # the trace is one of its own
        seen = line = 0

        def trace(frame: FrameType, event: str, _: object) -> Any:
            nonlocal seen, line
            if frame.f_code is not made:
                return None
            if event == "line":
                seen += 1
                if seen == target:
                    line = frame.f_lineno
                    raise KeyboardInterrupt
            return trace

        before, others = descriptors(), children()
        session = None
        sys.settrace(trace)
        try:
            session = open_pty(["sleep", "1000"])
        except KeyboardInterrupt:
            pass
        finally:
            sys.settrace(None)
        if session is not None:
            anyio.run(session.aclose)
            return False
        gc.collect()
        left, still = {*children()} - {*others}, descriptors() - before
        if left or still:
            leaked.append(f"line {line}: children {sorted(left)}, descriptors {sorted(still)}")
        for child in left:
            os.kill(int(child), signal.SIGKILL)
            os.waitpid(int(child), 0)
        for number in still:
            os.close(number)
        return True

    number = 1
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # what is dropped may say so: it is counted here
        while interrupted_at(number):
            number += 1
    assert number > 8
    assert leaked == []


def test_session_outlives_its_loop() -> None:
    """A loop that ended took nothing away: the next one closes what it left."""

    async def first() -> tuple[PtySession, PtyStream]:
        session = open_pty(ECHO)
        stream = session.open()
        await until(stream, b"ready\n")
        return session, stream

    async def second() -> None:
        with pytest.raises(TimeoutError), anyio.fail_after(0.05):
            await stream.receive()
        await stream.send(b"again")
        await until(stream, b"again")
        await session.aclose()

    session, stream = anyio.run(first)
    anyio.run(second)
    assert session.returncode == -signal.SIGHUP


def test_without_a_loop_it_is_taken_away_by_force() -> None:
    """Where nobody can wait for the program to clean up, it is killed and reaped at once."""

    async def start() -> PtySession:
        return open_pty(ECHO)

    session = anyio.run(start)
    assert session.revoke().done()
    assert session.returncode in (-signal.SIGHUP, -signal.SIGKILL)  # whichever it dies of first


@on_asyncio
@loops
async def test_who_is_woken_for_nothing_and_kicked_before_he_runs_was_in_flight() -> None:
    """The line is left to those in turn, and the session revoked in the same step: nothing is read any more."""
    async with open_pty(MUTE) as session, anyio.create_task_group() as tasks:
        stream = session.open("a")
        await until(stream, b"ready\n")
        reading = Outcome(tasks, stream.receive)
        await parked(stream)
        session._shared._wake()
        session.node.revoke("taken")
        await reading.revoked(stream.handle)


# -- the host ends --

DRIVER = """
import os, signal, sys
import anyio, anyio.lowlevel
from asyncrevoke import revoke_all
from asyncrevoke.adapters.pty import open_pty

STUBBORN = ["sh", "-c", "trap '' HUP INT TERM; echo ready; while :; do sleep 1; done"]
MEEK = ["sh", "-c", "echo ready; while :; do sleep 1; done"]
GROUP = ["sh", "-c", "sleep 1000 & echo ready; wait"]

def say(*words):
    print(*words, flush=True)

async def opened(argv, **options):
    session = open_pty(argv, **options)
    stream = session.open()
    got = b""
    while b"ready" not in got:
        got += await stream.receive()
    return session, stream

def children():
    with open(f"/proc/self/task/{os.getpid()}/children") as listed:
        return listed.read().split()

%s

options = {"asyncio": {}, "uvloop": {"use_uvloop": True}, "trio": {}}[sys.argv[1]]
try:
    anyio.run(main, backend="trio" if sys.argv[1] == "trio" else "asyncio", backend_options=options)
except KeyboardInterrupt:
    say("interrupted")
if children():
    say("left", *children())
say("end")
"""

hosts = pytest.mark.parametrize("backend", ["asyncio", "uvloop", "trio"])


def processes_with(token: str) -> list[int]:
    """All processes, but for this one, that have the token in their environment."""
    found = []
    for environ in pathlib.Path("/proc").glob("[0-9]*/environ"):
        with contextlib.suppress(OSError):
            if token.encode() in environ.read_bytes():
                found.append(int(environ.parent.name))
    return found


class Host:
    """A process that holds sessions; everything it starts can be told by a token in the environment."""

    def __init__(self, backend: str, main: str) -> None:
        self.token = uuid.uuid4().hex
        self.process = subprocess.Popen(
            [sys.executable, "-W", "error", "-c", DRIVER % main, backend],
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            env={**os.environ, "HOST_TOKEN": self.token},
            text=True,
        )

    def line(self) -> str:
        assert self.process.stdout
        assert select.select([self.process.stdout], [], [], 20)[0], "the host says nothing"
        return self.process.stdout.readline().strip()

    def over(self) -> tuple[str, str]:
        """Wait for its end: what else it said, and its complaints."""
        return self.process.communicate(timeout=20)

    def survivors(self, patience: float = 5.0) -> list[int]:
        """What it started and is still there, some seconds after its own end."""
        deadline = time.monotonic() + patience
        while found := processes_with(self.token):
            try:
                pidfd = os.pidfd_open(found[0])
            except ProcessLookupError:
                continue
            try:
                if not select.select([pidfd], [], [], max(0.0, deadline - time.monotonic()))[0]:
                    return found
            finally:
                os.close(pidfd)
        return []

    def close(self) -> None:
        self.process.kill()
        self.process.communicate()
        for pid in processes_with(self.token):
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)


@contextlib.contextmanager
def host(backend: str, main: str) -> Iterator[Host]:
    running = Host(backend, main)
    try:
        yield running
    finally:
        running.close()


@hosts
@pytest.mark.parametrize("signum", [signal.SIGINT, signal.SIGTERM, signal.SIGKILL], ids=["INT", "TERM", "KILL"])
def test_ended_host_leaves_no_child(backend: str, signum: signal.Signals) -> None:
    """Interrupted, terminated or killed, with meek and stubborn programs: none of them is left."""
    main = """
async def main():
    sessions = [await opened(argv, kill_after=0.3) for argv in (MEEK, STUBBORN, GROUP)]
    async with sessions[0][0], sessions[1][0], sessions[2][0]:
        say("up")
        await sessions[0][1].receive()
"""
    with host(backend, main) as running:
        assert running.line() == "up"
        assert len(processes_with(running.token)) >= 4
        running.process.send_signal(signum)
        said, complaints = running.over()
        assert running.survivors() == []
        assert running.process.returncode == (0 if signum == signal.SIGINT else -signum)
        assert complaints == ""
        assert said == ("interrupted\nend\n" if signum == signal.SIGINT else "")


@pytest.mark.xfail(reason="the kernel kills the program with its host, but tells its children no more than SIGHUP")
@pytest.mark.parametrize("backend", ["asyncio"])
def test_killed_host_leaves_nobody_in_the_group(backend: str) -> None:
    """A kill -9 of the host also ends a member of a program's group that ignores the hang-up."""
    main = """
async def main():
    async with open_pty(["sh", "-c", "(trap '' HUP; echo ready; exec sleep 1000) & wait"]) as session:
        await session.open().receive()
        say("up")
        await session.wait()
"""
    with host(backend, main) as running:
        assert running.line() == "up"
        running.process.kill()
        running.over()
        assert running.survivors(2.0) == []


@hosts
def test_host_killed_at_any_moment_leaves_no_child(backend: str) -> None:
    """In the middle of starting and ending programs, too."""
    main = """
async def main():
    while True:
        sessions = [open_pty(["sh", "-c", "trap '' HUP; exec sleep 1000"], kill_after=0.001) for _ in range(3)]
        say("more")
        revoke_all([session.node for session in sessions[:2]])
        await sessions[0].aclose()
        await anyio.lowlevel.checkpoint()
        for session in sessions[1:]:
            session.node.close()
"""
    with host(backend, main) as running:
        for _ in range(10):
            assert running.line() == "more"
        running.process.kill()
        running.over()
        assert running.survivors() == []


@hosts
@pytest.mark.parametrize("turns", [0, 3])
def test_loop_that_ends_during_a_release_leaves_no_child(backend: str, turns: int) -> None:
    """Revoked and not awaited, and the loop ends: at once, or after some turns. No child, no zombie, no warning."""
    main = f"""
async def main():
    sessions = [await opened(argv, kill_after=60) for argv in (MEEK, STUBBORN, GROUP)]
    revoke_all([session.node for session, _ in sessions], "over")
    for _ in range({turns}):
        await anyio.lowlevel.checkpoint()
"""
    with host(backend, main) as running:
        said, complaints = running.over()
        assert said == "end\n"
        assert "Warning" not in complaints
        assert running.survivors() == []


@hosts
@pytest.mark.parametrize("way", ["session.revoke()", "await session.aclose()"])
def test_task_that_ends_with_its_loop_leaves_no_child(backend: str, way: str) -> None:
    """Tasks of nobody's hold sessions, and are cancelled because the loop ends: there is no next turn, or few."""
    main = f"""
async def hold(argv, up):
    session, stream = await opened(argv, kill_after=0.5)
    up.set()
    try:
        await stream.receive()
    finally:
        {way}

async def main():
    import asyncio, trio
    global tasks
    tasks = []
    for argv in (MEEK, STUBBORN, GROUP):
        up = anyio.Event()
        if sys.argv[1] == "trio":
            trio.lowlevel.spawn_system_task(hold, argv, up)
        else:
            tasks.append(asyncio.create_task(hold(argv, up)))
        await up.wait()
"""
    with host(backend, main) as running:
        said, complaints = running.over()
        assert said == "end\n", complaints
        assert "Warning" not in complaints
        assert "Task was destroyed" not in complaints
        assert running.survivors() == []


@hosts
def test_cancelled_closing_is_finished_by_the_loop(backend: str) -> None:
    """The closing of a stubborn program is timed out and the loop ends: it is killed and reaped."""
    main = """
async def main():
    session, stream = await opened(STUBBORN, kill_after=60)
    with anyio.move_on_after(0.05):
        await session.aclose()
    assert session.node.releasing
    say(*map(str, session.node.users()))
"""
    with host(backend, main) as running:
        said, complaints = running.over()
        assert "release of" in said
        assert said.endswith("\nend\n")
        assert "Warning" not in complaints
        assert running.survivors() == []
