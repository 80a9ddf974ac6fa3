"""A terminal by path, hung up as `__tty_hangup` does it (the steps are numbered in adapters/tty.py): real ptys."""

import contextlib
import ctypes
import errno
import fcntl
import functools
import os
import pathlib
import random
import resource
import select
import signal
import subprocess
import sys
import termios
import threading
import tty as raw
from collections.abc import AsyncIterator, Callable
from typing import Any

import anyio
import anyio.lowlevel
import pytest

from asyncrevoke import FdStream, Registry, Revokable, RevokedError
from asyncrevoke.adapters import tty as adapter
from asyncrevoke.adapters.pty import open_pty
from asyncrevoke.adapters.tty import TIOCVHANGUP, KernelDriver, Tty
from calls import awake, parked, start
from conftest import settle
from ports import privileged, reader, terminal
from sockets import BIG

pytestmark = pytest.mark.anyio


class Ledger:
    """A driver that keeps the books, and what happened in order; what is in `fails` is raised once, by the method named."""

    def __init__(self) -> None:
        self.in_use = 0
        self.log: list[str] = []
        self.fails: dict[str, Exception] = {}
        self.hanging: Callable[[], object] = lambda: None

    def open(self, _fd: int) -> None:
        self._note("open", self.in_use + 1)

    def close(self) -> None:
        self._note("close", self.in_use - 1, told=True)

    def hangup(self) -> None:
        self.hanging()
        self._note("hangup", 0, told=True)

    def reset(self) -> None:
        """What was queued is no entry in the books."""

    def _note(self, what: str, in_use: int, *, told: bool = False) -> None:
        self.log.append(what)
        if told or what not in self.fails:
            self.in_use = in_use
        if what in self.fails:
            raise self.fails.pop(what)


@contextlib.asynccontextmanager
async def device(driver: adapter.Driver | None = None, **options: Any) -> AsyncIterator[tuple[Tty, int]]:
    """A terminal on a pty, without echo, and the master."""
    with terminal() as (master, slave), anyio.fail_after(20):
        path = os.ttyname(slave)
        mode = termios.tcgetattr(slave)
        mode[3] |= termios.ICANON
        termios.tcsetattr(slave, termios.TCSANOW, mode)
        os.close(slave)
        async with awake(), Tty(path, driver=driver, **options) as tty:
            yield tty, master


def cooked(stream: FdStream) -> bool:
    return bool(termios.tcgetattr(stream.fileno())[3] & termios.ICANON)


def readable(fd: int) -> bool:
    """Whether there is something to read, now or soon: the kernel passes it on in its own time."""
    return bool(select.select([fd], [], [], 2)[0])


def heard(child: subprocess.Popen[str], lines: int) -> list[str]:
    """The next lines it prints. What does not come fails by the test's time limit."""
    assert child.stdout
    return [child.stdout.readline().strip() for _ in range(lines)]


def field(child: subprocess.Popen[str], number: int) -> bytes:
    """A field of /proc/PID/stat, counted from behind the name: 0 is the state, 4 the controlling terminal."""
    return pathlib.Path(f"/proc/{child.pid}/stat").read_bytes().rpartition(b")")[2].split()[number]


def stop(child: subprocess.Popen[str]) -> None:
    os.kill(child.pid, signal.SIGSTOP)
    while field(child, 0) != b"T":
        os.sched_yield()


# -- the twelve steps --


async def test_steps_1_and_12_what_forwards_into_the_terminal_goes_first() -> None:
    """A redirection that is open on the node's generation is off before the driver hangs up."""
    driver = Ledger()
    async with device(driver) as (tty, _):
        await tty.open()
        tty.node.open("redirection", release=lambda: driver.log.append("off"))
        await tty.hangup()
    assert driver.log == ["open", "off", "hangup"]


async def test_steps_2_and_6_all_handles_refuse_at_once_and_consoles_stay() -> None:
    """When `hangup` has returned no handle of the generation can be used, and when it runs none can be opened."""
    async with device(driver := Ledger()) as (tty, master):
        console = await tty.open("console", console=True)
        streams = [await tty.open(str(number)) for number in range(3)]
        refused: list[Exception] = []

        def intrude(_: Revokable) -> None:
            assert all(stream.handle.revoked for stream in streams)
            try:
                tty.node.open("late")
            except RevokedError as exc:
                refused.append(exc)

        tty.node.open("hooked", kick=intrude)
        hangup = tty.hangup("why")
        assert [stream.handle.revoked for stream in (*streams, console)] == [True, True, True, False]
        await hangup
        assert refused
        for stream in streams:
            with pytest.raises(RevokedError, match="why") as caught:
                await stream.send(b"x")
            assert caught.value.generation == 1
        await console.send(b"alive")
        assert os.read(master, 100) == b"alive"
        assert (driver.in_use, driver.log[-3:]) == (1, ["close"] * 3)


async def test_step_3_a_second_hangup_does_nothing() -> None:
    """While the first one drains it is the same hang-up, as it is with `Name.hangup`; each is complete at the end."""
    async with device(driver := Ledger()) as (tty, _):
        stream = await tty.open()
        with stream.handle.using():
            acts = [tty.hangup("first"), tty.node.hangup("second"), tty.hangup("third")]
            assert driver.log == ["open"]
        for act in acts:
            await act
        assert stream.handle.reason == "first"
        assert driver.log == ["open", "hangup"]


@pytest.mark.parametrize("seed", range(12))
async def test_steps_5_and_10_the_driver_is_told_of_every_open_once(seed: int) -> None:
    """Opens are closes and those hung up; with a console open each hung-up one is closed, else all are hung up."""
    rng = random.Random(seed)
    async with device(driver := Ledger()) as (tty, _), anyio.create_task_group() as group:
        consoles: list[FdStream] = []
        streams: list[FdStream] = []
        told: list[int] = []
        driver.hanging = lambda: told.append(len(consoles))
        for _ in range(40):
            act = rng.choice(["open", "open", "open", "console", "close", "close", "hangup", "overlap"])
            if act in ("open", "console"):
                stream = await tty.open(console=act == "console")
                (consoles if act == "console" else streams).append(stream)
                if rng.random() < 0.5:
                    start(group, stream.receive)
                    await parked(stream.handle)
            elif act == "close" and consoles + streams:
                gone = rng.choice(consoles + streams)
                (consoles if gone in consoles else streams).remove(gone)
                await gone.aclose()
            elif act == "hangup":
                await tty.hangup()
                streams.clear()
            elif act == "overlap" and streams:  # hung up while its owner closes it
                hangup = tty.hangup()
                await streams[0].aclose()
                await hangup
                streams.clear()
            assert driver.in_use == len(consoles) + len(streams), act
        assert not any(told), "hung up while a console was open"
        await tty.aclose()
    assert driver.in_use == 0


@privileged
@pytest.mark.parametrize("here", [True, False])
async def test_steps_7_and_9_the_leader_is_told_and_loses_its_terminal(here: bool) -> None:
    """HUP, then CONT, so that a stopped leader sees it; then its read is EOF. Also where nobody has it open here."""
    async with device() as (tty, _):
        if here:
            await tty.open()
        with reader(tty.path, leader=True) as leader:
            assert int(field(leader, 4)) == pathlib.Path(tty.path).stat().st_rdev
            stop(leader)
            await tty.hangup()
            assert heard(leader, 3) == ["SIGHUP", "SIGCONT", "b''"]
            leader.wait()
        assert isinstance(tty.driver, KernelDriver)
        assert tty.driver.vhangup is True
        with reader(tty.path, leader=True) as leader, reader(tty.path) as other:
            await tty.hangup()  # a second one, for those who came meanwhile
            assert {*heard(leader, 2)} == {"SIGHUP", "SIGCONT"}  # what is not stopped may handle the second first
            assert (heard(leader, 1), heard(other, 1)) == (["b''"], ["b''"])


@privileged
async def test_step_7_the_leader_is_told_also_if_a_console_stays() -> None:
    """The kernel signals before it comes to consoles: the others lose the terminal."""
    async with device() as (tty, _):
        await tty.open(console=True)
        await tty.open()
        with reader(tty.path, leader=True) as leader:
            await tty.hangup()
            leader.send_signal(signal.SIGCONT)  # one comes in any case, and may be handled first
            assert "SIGHUP" in heard(leader, 2)


@pytest.mark.parametrize("console", [pytest.param(False, marks=privileged), True])
async def test_step_8_unread_input_never_reaches_the_next_generation(console: bool) -> None:
    """What was typed for the old generation is gone, what is typed after the hang-up is read; with a console, too."""
    async with device() as (tty, master):
        if console:
            await tty.open("console", console=True)
        old = await tty.open()
        os.write(master, b"secret\n")
        assert readable(old.fileno())
        await tty.hangup()
        new = await tty.open()
        os.write(master, b"fresh\n")
        assert await new.receive() == b"fresh\n"


@privileged
async def test_step_8_input_during_the_hangup_reaches_nobody() -> None:
    """Once it has begun, the master's bytes go to no stream of the old generation, and to none of the next."""
    async with device() as (tty, master), anyio.create_task_group() as group:
        old = await tty.open()
        raw.setraw(old.fileno())
        call = start(group, old.receive)
        await parked(old.handle)
        assert old.handle.start_using()
        hangup = tty.hangup()
        os.write(master, b"too late")
        assert readable(old.fileno())
        await call.done.wait()
        assert call.error.in_flight
        with pytest.raises(RevokedError):
            await old.receive()
        old.handle.stop_using()
        await hangup
        new = await tty.open()
        os.write(master, b"in time\n")
        assert await new.receive() == b"in time\n"


async def test_step_8_all_are_woken_and_waited_for() -> None:
    """Readers and writers of every stream are kicked, and the driver hangs up after the last of them has left."""
    async with device(driver := Ledger()) as (tty, _), anyio.create_task_group() as group:
        calls, handles = [], []
        for name in "ab":
            stream = await tty.open(name)
            handles.append(stream.handle)
            raw.setraw(stream.fileno())
            calls += [start(group, stream.receive), start(group, stream.send, BIG)]
            await parked(stream.handle, 2)
        left: list[int] = []
        driver.hanging = lambda: left.append(sum(each.in_use for each in handles))
        report = await tty.hangup()
        assert (report.kicked, left) == (4, [0])
        assert all(call.error.in_flight for call in calls)
        assert calls[1].error.sent


# -- opening again --


@privileged
async def test_steps_4_and_11_opening_at_once_waits_and_gets_the_next_generation() -> None:
    """While somebody is inside it is revoked and not released; then openers get number 2, with the kernel's settings."""
    async with device() as (tty, _), anyio.create_task_group() as group:
        old = await tty.open()
        raw.setraw(old.fileno())
        generation = tty.node.current
        assert old.handle.start_using()
        tty.hangup()
        opening = [start(group, tty.open) for _ in range(2)]
        await settle()
        assert (generation.revoked, generation.released, cooked(old)) == (True, False, False)
        assert not any(call.done.is_set() for call in opening)
        old.handle.stop_using()
        for call in opening:
            await call.done.wait()
            assert isinstance(call.outcome, FdStream)
            assert (call.outcome.handle.generation, cooked(call.outcome)) == (2, True)
        assert generation.released


async def test_the_queue_is_bounded_can_be_left_and_ends_with_the_name() -> None:
    """One too many is Busy; who is cancelled makes room; the name's revocation ends the wait. Nothing was opened."""
    async with device(driver := Ledger(), queue=1) as (tty, _), anyio.create_task_group() as group:
        old = await tty.open()
        assert old.handle.start_using()
        tty.hangup()
        first = start(group, tty.open)
        await settle()
        with pytest.raises(anyio.BusyResourceError):
            await tty.open()
        first.scope.cancel()
        await first.done.wait()
        second = start(group, tty.open)
        await settle()
        assert not second.done.is_set()
        act = tty.revoke("unplugged")
        await second.done.wait()
        assert (second.error.reason, second.error.in_flight) == ("unplugged", True)
        old.handle.stop_using()
        await act
        assert driver.log == ["open", "hangup"]


# -- without the privilege --


async def as_far_as_it_goes() -> None:
    """HUP and CONT to the leader; queues flushed, settings restored; what others have open stays usable."""
    async with device() as (tty, master):
        assert isinstance(tty.driver, KernelDriver)
        assert tty.driver.vhangup is None
        old = await tty.open()
        raw.setraw(old.fileno())
        os.write(master, b"secret")
        assert readable(old.fileno())
        await tty.hangup()
        assert tty.driver.vhangup is False
        new = await tty.open()
        assert cooked(new)
        os.write(master, b"fresh\n")
        assert await new.receive() == b"fresh\n"
        with reader(tty.path, leader=True) as leader:
            stop(leader)
            await tty.hangup()
            assert heard(leader, 2) == ["SIGHUP", "SIGCONT"]
            os.write(master, b"on\n")
            assert heard(leader, 1) == [r"b'on\n'"]


async def test_without_the_privilege_it_goes_as_far_as_it_goes(monkeypatch: pytest.MonkeyPatch) -> None:
    """Where the kernel refuses TIOCVHANGUP."""
    sent: list[int] = []
    kill, ioctl = os.kill, fcntl.ioctl

    def refused(fd: int, request: int, *args: Any) -> Any:
        if request == TIOCVHANGUP:
            raise PermissionError(errno.EPERM, "patched")
        return ioctl(fd, request, *args)

    def noted(pid: int, number: int) -> None:
        sent.append(number)
        kill(pid, number)

    monkeypatch.setattr(fcntl, "ioctl", refused)
    monkeypatch.setattr(os, "kill", noted)
    await as_far_as_it_goes()
    assert sent[:3] == [signal.SIGSTOP, signal.SIGHUP, signal.SIGCONT]


async def test_a_session_has_one_leader() -> None:
    """Whatever else runs in it: SIGHUP and SIGCONT come once, and not to whom a pty of that number is in a container."""
    async with open_pty(["sh", "-c", "sleep 1000 & echo ready; wait"]) as session:
        assert await session.open().receive() == b"ready\r\n"
        there = pathlib.Path(f"/proc/{session.pid}/fd/0").stat()
        assert adapter._session_leaders(there.st_rdev, there.st_dev) == [session.pid]
        assert session.pid not in adapter._session_leaders(there.st_rdev, there.st_dev + 1)


async def test_the_settings_are_those_of_before_the_first_open() -> None:
    """What an earlier opener has left behind, when all had closed it, is not restored."""
    async with device() as (tty, _):
        async with await tty.open() as first:
            raw.setraw(first.fileno())
        async with await tty.open(console=True) as console:
            assert not cooked(console)
            await tty.hangup()
            assert cooked(console)


async def test_a_console_is_reset_after_a_hangup_that_left_nobody() -> None:
    """The books begin anew with the next open, be it a console's."""
    async with device() as (tty, _):
        await tty.open()
        await tty.hangup()
        async with await tty.open(console=True) as console:
            raw.setraw(console.fileno())
            await tty.hangup()
            assert cooked(console)


def test_without_a_free_descriptor_it_is_reset_all_the_same() -> None:
    """Only its leader cannot be looked for, which is told."""
    with terminal() as (master, slave):
        before = termios.tcgetattr(slave)
        driver = KernelDriver(os.ttyname(slave))
        driver.open(slave)
        settings = termios.tcgetattr(slave)
        settings[3] ^= termios.ECHO
        termios.tcsetattr(slave, termios.TCSANOW, settings)
        os.write(master, b"secret")
        assert readable(slave)
        most = resource.getrlimit(resource.RLIMIT_NOFILE)
        resource.setrlimit(resource.RLIMIT_NOFILE, (0, most[1]))
        try:
            with pytest.raises(OSError, match="Too many open files"):
                driver.reset()
        finally:
            resource.setrlimit(resource.RLIMIT_NOFILE, most)
        assert termios.tcgetattr(slave) == before
        assert not select.select([slave], [], [], 0)[0]
        driver.close()


@privileged
def test_a_process_without_cap_sys_admin_goes_as_far_as_it_goes() -> None:
    """The same where the kernel does refuse: the capability is dropped from the bounding set before the exec."""
    drop = functools.partial(ctypes.CDLL(None).prctl, 24, 21, 0, 0, 0)  # PR_CAPBSET_DROP, CAP_SYS_ADMIN
    command = [
        sys.executable,
        "-Bc",
        "import sys; sys.path.append('..'); import anyio, test_tty; anyio.run(test_tty.as_far_as_it_goes)",
    ]
    here = pathlib.Path(__file__).parent
    done = subprocess.run(command, cwd=here, preexec_fn=drop, capture_output=True, text=True, timeout=30)
    assert (done.returncode, done.stderr) == (0, "")


# -- finding it, and what can go wrong --


async def test_registry_finds_it_by_all_that_leads_to_it(tmp_path: pathlib.Path) -> None:
    """By name, path, link, device number and handle; revoking by path is a hang-up, also for other processes."""
    registry = Registry()
    async with device(driver := Ledger(), registry=registry, name="modem") as (tty, _):
        link = tmp_path / "by-id"
        link.symlink_to(tty.path)
        stream = await tty.open()
        for what in ("modem", tty.path, link, pathlib.Path(tty.path).stat().st_rdev, stream, stream.handle):
            assert registry.find(what) is tty.node
        await registry.revoke(link)
        again = await tty.open()
        await registry.frevoke(again)
        assert (stream.handle.revoked, again.handle.revoked, tty.node.revoked) == (True, True, False)
        assert again.handle.generation == 2
        with pytest.raises(ValueError, match="modem"):
            Tty(tty.path, registry=registry, name="modem")
        with pytest.raises(ValueError, match="taken"):
            Tty(tty.path, registry=registry, name="the same device")
        await tty.revoke()
        assert driver.in_use == 0
        async with Tty(tty.path, registry=registry, name="modem", driver=Ledger()) as new:
            assert registry.find(link) is new.node


@privileged
async def test_revoke_by_path_reaches_others_where_nobody_has_it_open_here() -> None:
    """As revoke(2), and as `Tty.hangup`."""
    registry = Registry()
    async with device(registry=registry) as (tty, _):
        with reader(tty.path) as other:
            await registry.revoke(tty.path)
            assert isinstance(tty.driver, KernelDriver)
            assert tty.driver.vhangup is True
            assert heard(other, 1) == ["b''"]


async def test_a_device_that_is_gone_is_no_error() -> None:
    """The master was closed first: the kernel has hung it up. Opening is ENOENT, and leaves nothing."""
    async with device() as (tty, master):
        stream = await tty.open()
        number_kept = os.dup(stream.fileno())  # or another pty gets it
        os.close(master)
        report = await tty.hangup()
        assert (stream.fileno(), report.errors) == (-1, ())
        with pytest.raises(FileNotFoundError):
            await tty.open()
        await tty.hangup()
        assert not tty.node.in_use
        os.close(number_kept)


@pytest.mark.parametrize(("path", "number"), [("/dev/null", errno.ENOTTY), ("/dev/none", errno.ENOENT)])
def test_what_is_no_terminal_is_named(path: str, number: int) -> None:
    """The error tells the path, and the registry has no such name."""
    registry = Registry()
    with pytest.raises(OSError, match=path) as caught:
        Tty(path, registry=registry, name="x")
    assert caught.value.errno == number
    assert not registry.root.in_use


async def test_revoked_for_good_it_takes_consoles_and_refuses() -> None:
    """Unplugged: nothing stays, opens and hang-ups find it gone, and the driver's books are even."""
    async with device(driver := Ledger()) as (tty, _):
        console, stream = await tty.open(console=True), await tty.open()
        report = await tty.revoke("unplugged")
        assert (console.fileno(), stream.fileno(), driver.in_use, report.remaining) == (-1, -1, 0, 0)
        with pytest.raises(RevokedError, match="unplugged"):
            await tty.open()
        await tty.hangup()


async def test_a_token_takes_its_streams_only() -> None:
    """`also=[token]`: the token's revocation closes; the others go on; a dead token opens nothing."""
    token = Revokable("token")
    async with device(driver := Ledger()) as (tty, master):
        mine, other = await tty.open(also=[token]), await tty.open()
        await token.revoke("expired")
        assert (mine.fileno(), driver.in_use, tty.node.current.revoked) == (-1, 1, False)
        await other.send(b"alive")
        assert os.read(master, 100) == b"alive"
        with pytest.raises(RevokedError, match="expired"):
            await tty.open(also=[token])
        assert driver.in_use == 1


@pytest.mark.parametrize("consoles", [0, 1])
async def test_a_driver_that_fails_in_a_hangup_stops_nothing(consoles: int) -> None:
    """It is raised to those who await; the node is released, every open is told of, and the next generation works."""
    async with device(driver := Ledger()) as (tty, master):
        for _ in range(consoles):
            await tty.open(console=True)
        for _ in range(3):
            await tty.open()
        driver.fails["close" if consoles else "hangup"] = ZeroDivisionError("driver")
        with pytest.raises(ExceptionGroup) as caught:
            await tty.hangup()
        assert [type(each) for each in caught.value.exceptions] == [ZeroDivisionError]
        assert (tty.node.current.released, driver.in_use) == (True, consoles)
        await (await tty.open()).send(b"next")
        assert os.read(master, 100) == b"next"


async def test_a_driver_that_refuses_an_open_is_not_owed_a_close() -> None:
    """Its error goes to the opener, and nothing stays open."""
    async with device(driver := Ledger()) as (tty, _):
        driver.fails["open"] = OSError(errno.EBUSY, "in use")
        with pytest.raises(OSError, match="in use"):
            await tty.open()
        assert (driver.in_use, tty.node.current.in_use) == (0, 0)


def test_leaders_are_looked_for_while_others_end(monkeypatch: pytest.MonkeyPatch) -> None:
    """To look at the files of a process that ends meanwhile is an error that pathlib does not expect (ESRCH)."""
    look = pathlib.Path.stat

    def stat(path: pathlib.Path, **options: Any) -> os.stat_result:
        if path.name == "stat":
            raise ProcessLookupError(errno.ESRCH, "No such process", str(path))
        return look(path, **options)

    monkeypatch.setattr(pathlib.Path, "stat", stat)
    assert adapter._session_leaders(-1, -1) == []


class Held:
    """`_open`, which waits as while another process closes a stalled line; who calls it is in `threads`."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.threads: list[threading.Thread] = []
        self.go = threading.Semaphore(0)
        self._open = adapter._open
        monkeypatch.setattr(adapter, "_open", self)

    def __call__(self, path: str) -> int:
        fd = self._open(path)
        self.threads.append(threading.current_thread())
        assert threading.current_thread() is not threading.main_thread()
        self.go.acquire()
        return fd

    async def called(self, times: int) -> None:
        while len(self.threads) < times:
            await anyio.lowlevel.checkpoint()


@privileged
async def test_what_was_hung_up_while_it_was_opened_is_opened_again(monkeypatch: pytest.MonkeyPatch) -> None:
    """Opened in a thread, as it may wait; what the kernel has hung up there meanwhile is nobody's stream."""
    async with device() as (tty, master), anyio.create_task_group() as group:
        held = Held(monkeypatch)
        opening = start(group, tty.open)
        await held.called(1)
        monkeypatch.setattr(adapter, "_open", held._open)  # as a hang-up opens it
        await tty.hangup()
        monkeypatch.setattr(adapter, "_open", held)
        held.go.release()
        await held.called(2)
        assert not opening.done.is_set()
        held.go.release()
        await opening.done.wait()
        assert isinstance(opening.outcome, FdStream)
        os.write(master, b"heard\n")
        assert await opening.outcome.receive() == b"heard\n"


async def test_what_is_opened_too_late_is_closed(monkeypatch: pytest.MonkeyPatch) -> None:
    """Cancelled, or the terminal was taken away for good meanwhile: no descriptor stays, and the driver was told nothing."""
    for end in ("cancelled", "revoked"):
        async with device(driver := Ledger()) as (tty, _), anyio.create_task_group() as group:
            before = len(list(pathlib.Path("/proc/self/fd").iterdir()))
            with monkeypatch.context() as patch:
                held = Held(patch)
                opening = start(group, tty.open)
                await held.called(1)
                opening.scope.cancel() if end == "cancelled" else tty.revoke("unplugged")
                held.go.release()
                await opening.done.wait()
            while len(list(pathlib.Path("/proc/self/fd").iterdir())) != before:
                await anyio.lowlevel.checkpoint()
            assert isinstance(opening.outcome, RevokedError) == (end == "revoked")
            assert driver.log.count("open") == driver.log.count("close")
            assert driver.in_use == 0


@privileged
async def test_a_hangup_is_not_made_in_the_loop(monkeypatch: pytest.MonkeyPatch) -> None:
    """The kernel hangs up when nobody is closing it."""
    in_loop: list[bool] = []
    ioctl = fcntl.ioctl

    def told(fd: int, request: int, *rest: Any) -> Any:
        if request == TIOCVHANGUP:
            in_loop.append(threading.current_thread() is threading.main_thread())
        return ioctl(fd, request, *rest)

    monkeypatch.setattr(fcntl, "ioctl", told)
    async with device() as (tty, _):
        await tty.open()
        await tty.hangup()
    assert in_loop == [False]


async def test_the_last_close_is_not_made_in_the_loop(monkeypatch: pytest.MonkeyPatch) -> None:
    """On a stalled line the kernel waits half a minute there, for what was not sent."""
    close = os.close
    closed: list[tuple[bool, bool]] = []

    def closing(fd: int) -> None:
        links = [each.readlink() for each in pathlib.Path("/proc/self/fd").iterdir() if each.is_symlink()]
        if pathlib.Path(f"/proc/self/fd/{fd}").readlink() == path:
            closed.append((links.count(path) == 1, threading.current_thread() is threading.main_thread()))
        close(fd)

    master, slave = os.openpty()
    path = pathlib.Path(os.ttyname(slave))
    async with awake(), Tty(path) as tty:
        stream = await tty.open()
        os.close(slave)
        with monkeypatch.context() as patch:
            patch.setattr(os, "close", closing)
            await stream.aclose()
    os.close(master)
    assert [in_loop for last, in_loop in closed if last] == [False]


async def test_a_terminal_that_is_hung_up_while_it_is_opened_is_an_oserror(monkeypatch: pytest.MonkeyPatch) -> None:
    """Between open(2) and tcgetattr(3), whose own error is none; nothing stays open, and it is named."""
    with terminal() as (master, slave):
        tty = Tty(os.ttyname(slave))
        settings = termios.tcgetattr

        def late(fd: int) -> Any:
            os.close(master)
            return settings(fd)

        monkeypatch.setattr(termios, "tcgetattr", late)
        with pytest.raises(OSError, match=tty.path) as caught:
            await tty.open()
        assert caught.value.errno == errno.EIO
        assert tty.node.children == ()
        await tty.aclose()


@pytest.mark.parametrize("canonical", [False, True])
async def test_reading_nothing_is_the_end_of_data_only_where_that_is_typed(canonical: bool) -> None:
    """Another program makes it raw with VMIN at 0, where reading nothing means that there is no data yet."""
    async with device() as (tty, master), anyio.create_task_group() as group:
        stream = await tty.open()
        if not canonical:
            settings = termios.tcgetattr(master)
            settings[3] &= ~termios.ICANON
            settings[6][termios.VMIN] = 0
            termios.tcsetattr(master, termios.TCSANOW, settings)
        receiving = start(group, stream.receive)
        await parked(stream.handle)
        os.write(master, b"\4")
        await receiving.done.wait()
        assert isinstance(receiving.outcome, anyio.EndOfStream) if canonical else receiving.outcome == b"\4"
        receiving = start(group, stream.receive)
        await parked(stream.handle)
        os.write(master, b"more\n")
        await receiving.done.wait()
        assert receiving.outcome == b"more\n"
