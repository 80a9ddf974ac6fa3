"""A mounted tree of entries, used by other programs, and taken away from them."""

import contextlib
import errno
import os
import pathlib
import select
import signal
import socket
import subprocess
import sys
import tempfile
from collections.abc import AsyncIterator, Callable, Iterator
from typing import Any

import anyio
import anyio.abc
import pytest

from asyncrevoke import RevokedError, answers
from asyncrevoke.adapters.entries import Directory, Entry
from asyncrevoke.answers import Answers
from conftest import BACKENDS, settle
from test_entries import FLAVOURS, TABLE, stream, tree, until

pytest.importorskip("pyfuse3", reason="asyncrevoke[fuse] is not installed")
if not os.access("/dev/fuse", os.R_OK | os.W_OK) or os.geteuid():
    pytest.skip("to mount needs /dev/fuse, and these tests root", allow_module_level=True)

from asyncrevoke.adapters.fuse import mount

pytestmark = pytest.mark.anyio

IN, ERR, HUP = select.POLLIN, select.POLLERR, select.POLLHUP


def is_mounted(place: pathlib.Path) -> bool:
    """Asks nobody who may have to be waited for, as is_mount() does."""
    return f" {place} " in pathlib.Path("/proc/self/mountinfo").read_text()


@pytest.fixture
def place() -> Iterator[pathlib.Path]:
    """Where a tree can be mounted, that others can reach; in the end nothing is."""
    with tempfile.TemporaryDirectory() as folder:
        pathlib.Path(folder).chmod(0o755)
        place = pathlib.Path(folder, "place")
        place.mkdir()
        yield place
        assert not is_mounted(place)
        assert list(place.iterdir()) == []


@contextlib.asynccontextmanager
async def mounted(root: Directory, place: pathlib.Path, **options: Any) -> AsyncIterator[anyio.abc.TaskGroup]:
    with anyio.fail_after(60):
        async with anyio.create_task_group() as tasks:
            await tasks.start(lambda *, task_status: mount(root, place, task_status=task_status, **options))
            yield tasks
            tasks.cancel_scope.cancel()


class Program:
    """Another program, which uses the tree."""

    def __init__(self, process: anyio.abc.Process) -> None:
        self.process = process
        self.output = b""

    async def says(self, text: bytes) -> None:
        assert self.process.stdout is not None
        while text not in self.output:
            self.output += await self.process.stdout.receive()

    async def ends(self) -> int:
        """Its exit status, when it has ended by itself."""
        assert self.process.stdout is not None
        async for data in self.process.stdout:
            self.output += data
        return await self.process.wait()

    async def asleep(self, call: str) -> None:
        """Wait until it sleeps in that kernel function, as its /proc says."""
        while not pathlib.Path(f"/proc/{self.process.pid}/wchan").read_text().startswith(call):
            await anyio.sleep(0.001)


async def inside(entry: Entry) -> None:
    """Wait until a program is inside one of its handlers, or waits for news."""
    while not any(file.in_use for file in entry.node.children):
        await anyio.sleep(0.001)


@contextlib.asynccontextmanager
async def running(*command: str | os.PathLike[str]) -> AsyncIterator[Program]:
    async with await anyio.open_process([os.fspath(word) for word in command], stderr=subprocess.STDOUT) as process:
        yield Program(process)


async def run(*command: str | os.PathLike[str]) -> str:
    """What it prints, errors too, with the path of the tree left out."""
    words = [os.fspath(word) for word in command]
    done = await anyio.run_process(words, check=False, stderr=subprocess.STDOUT)
    return done.stdout.decode()


POLLS = """
import os, select, sys
fd = os.open(sys.argv[1], os.O_RDONLY)
poller = {"poll": select.poll, "epoll": select.epoll}[sys.argv[2]]()
poller.register(fd, select.POLLIN)
print("ready", flush=True)
print(poller.poll(), flush=True)
input()
print(poller.poll(), flush=True)
try:
    os.pread(fd, 100, 0)
except OSError as error:
    print(error.errno, flush=True)
"""


# -- as files --


async def test_programs_read_and_write_entries(place: pathlib.Path) -> None:
    """As in any file system: whole, in parts, by a shell's redirection; with modes by what has handlers."""
    value = b"0123456789\n"

    def store(data: bytes) -> None:
        nonlocal value
        value = data

    root = tree()
    net = root.mkdir("net")
    net.create("both", show=lambda: value, store=store)
    net.create("odd name \n", store=store)
    async with mounted(root, place):
        assert await run("cat", place / "net/both") == "0123456789\n"
        assert await run("dd", f"if={place}/net/both", "bs=3", "skip=1", "count=2", "status=none") == "345678"
        await run("sh", "-c", f"echo changed > {place}/net/both")
        assert value == b"changed\n"
        assert await run("tail", "-n", "1", place / "net/both") == "changed\n"
        listed = await run("stat", "-c", "%A %F", *(place / name for name in ("net", "net/both", "net/odd name \n")))
        assert listed.splitlines() == [
            "dr-xr-xr-x directory",
            "-rw-r--r-- regular empty file",
            "--w------- regular empty file",
        ]
        assert await run("ls", f"{place}/net/..") == "net\n"
        assert await run("ls", f"{place}/net/.") == "both\nodd name \n\n"


async def test_what_only_the_owner_of_a_file_system_may_is_refused(place: pathlib.Path) -> None:
    """Nothing can be made, removed, renamed or linked from outside; what is not there is not."""
    root = tree()
    root.create("file", show=lambda: "x")
    root.mkdir("folder")
    async with mounted(root, place):
        for command in (
            ["touch", "new"],
            ["mkdir", "new"],
            ["mkfifo", "new"],
            ["rm", "-f", "file"],
            ["rmdir", "folder"],
            ["mv", "file", "new"],
            ["ln", "file", "new"],
            ["ln", "-s", "file", "new"],
            ["chmod", "0", "file"],
        ):
            # Not by cwd=, for which the loop would wait as the program is started.
            assert "Operation not permitted" in await run("env", "-C", place, *command), command
        assert "No such file" in await run("cat", place / "new")
        assert "Not a directory" in await run("cat", place / "file/x")
        assert "Is a directory" in await run("cat", place / "folder")
        assert "Invalid argument" in await run("bash", "-c", f"echo x > {place}/file")


async def test_a_handler_that_fails_is_a_number_to_the_program(
    place: pathlib.Path, caplog: pytest.LogCaptureFixture
) -> None:
    """An OSError is its own, all else EIO, and logged; the tree stays mounted."""

    def busy() -> str:
        raise OSError(errno.EBUSY, "in use")

    root = tree()
    root.create("busy", show=busy)
    root.create("wrong", show=lambda: 7)  # type: ignore[arg-type, return-value]
    root.create("much", read=lambda *_: b"x" * 1_000_000)
    root.create("closed", open=lambda _: busy())
    root.create("good", show=lambda: "good")
    async with mounted(root, place):
        assert "Device or resource busy" in await run("cat", place / "busy")
        assert "Input/output error" in await run("cat", place / "wrong")
        assert "Input/output error" in await run("cat", place / "much")
        assert "Device or resource busy" in await run("cat", place / "closed")
        assert await run("cat", place / "good") == "good"
    assert [type(each.exc_info[1]) for each in caplog.records if each.exc_info] == [TypeError, ValueError]


DRAINS = """
import os, select, sys
fd = os.open(sys.argv[1], os.O_RDONLY | os.O_NONBLOCK)
poll = select.poll()
poll.register(fd, select.POLLIN)
while True:
    try:
        data = os.read(fd, 100)
    except BlockingIOError:
        print("nothing yet", flush=True)
        poll.poll()
    else:
        print(data, flush=True)
        if data == b"end":
            break
"""


async def test_a_program_that_does_not_block_drains_and_polls(place: pathlib.Path) -> None:
    """As with O_NONBLOCK on any file: EAGAIN where there is nothing yet, and then poll waits for news."""
    entry, given = stream(tree())
    assert entry.parent is not None
    given.append(b"first")
    async with mounted(entry.parent, place), running(sys.executable, "-c", DRAINS, place / "stream") as program:
        await program.says(b"b'first'\nnothing yet\n")
        await program.asleep("poll")
        given.append(b"end")
        entry.notify()
        await program.says(b"b'end'\n")
        assert await program.ends() == 0


async def test_news_that_comes_while_a_poll_is_answered_wakes_it(place: pathlib.Path) -> None:
    """Its answer is of before, and nothing else would tell."""
    root, ready = tree(), 0

    def late(_: object) -> int:
        nonlocal ready
        before, ready = ready, IN
        if not before:
            entry.notify()
        return before

    entry = root.create("entry", poll=late)
    async with mounted(root, place), running(sys.executable, "-c", POLLS, place / "entry", "poll") as program:
        await program.says(f"{IN})]\n".encode())


async def test_ten_thousand_siblings_are_listed(place: pathlib.Path) -> None:
    """In parts, as a listing asks; each once."""
    root = tree()
    for number in range(10_000):
        root.create(f"{number:05}")
    async with mounted(root, place):
        assert (await run("ls", place)).split() == [f"{number:05}" for number in range(10_000)]


async def test_modes_hold_for_other_users(place: pathlib.Path) -> None:
    """With `allow_other` others may read what can be read, and write nothing; without, only the owner may look."""
    root = tree()
    root.create("both", show=lambda: "text", store=lambda _: None)
    nobody = ["setpriv", "--reuid=65534", "--regid=65534", "--clear-groups", "sh", "-c"]
    for allow, says in (True, "textsh: 1: cannot create both: Permission denied\n"), (False, "can't cd to"):
        async with mounted(root, place, allow_other=allow):
            assert says in await run(*nobody, f"cd {place} && cat both && echo x > both")


# -- taken away --


@pytest.mark.parametrize("name", FLAVOURS)
async def test_programs_are_taken_away_by_removal(place: pathlib.Path, name: str) -> None:
    """A `cat` that waits for news, a `tail -f`, and those who poll get the flavour's answers, and end; later ones ENOENT."""
    root = tree(FLAVOURS[name])
    top = root.mkdir("top")
    waits, given = stream(top)
    text = ["one\n"]
    log = top.create(
        "log",
        read=lambda _, size, offset: "".join(text).encode()[offset : offset + size],
        size=lambda: len("".join(text)),
    )

    ready = 0
    watched = top.create("watched", poll=lambda _: ready)
    async with (
        mounted(root, place),
        running("cat", place / "top/stream") as cat,
        running("tail", "-s", "0.05", "-f", place / "top/log") as tail,
        running(sys.executable, "-c", POLLS, place / "top/watched", "poll") as poll,
        running(sys.executable, "-c", POLLS, place / "top/watched", "epoll") as epoll,
    ):
        given.append(b"hello\n")
        waits.notify()
        await cat.says(b"hello\n")
        await tail.says(b"one\n")
        text.append("two\n")
        log.notify()
        await tail.says(b"two\n")
        for each in poll, epoll:
            await each.says(b"ready\n")
        ready = IN
        watched.notify()
        for each in poll, epoll:
            await each.says(f"{IN})]\n".encode())
        ready = 0
        for each in poll, epoll:
            assert each.process.stdin is not None
            await each.process.stdin.send(b"\n")
        await poll.asleep("poll_schedule_timeout")
        await epoll.asleep("do_epoll_wait")
        await inside(waits)
        report = await top.remove("the subsystem is gone")
        assert report.kicked >= 1
        number = int(str(TABLE[name]["read"]))
        assert await cat.ends() == 1
        assert cat.output.decode().endswith(f"stream: {os.strerror(number)}\n")
        await tail.ends()
        assert f"log: {os.strerror(number)}\n" in tail.output.decode()
        mask = int(str(TABLE[name]["poll"])) & (IN | ERR | HUP)  # as poll(2) has it: what was asked for, and errors
        for each in poll, epoll:
            assert await each.ends() == 0
            assert each.output.decode().endswith(f"{mask})]\n{number}\n")
        assert "No such file" in await run("cat", place / "top/log")


BORROWS = """
import os, socket, sys
_, (fd,), *_ = socket.recv_fds(socket.socket(fileno=0), 1, 1)
copy = os.dup(fd)
for number in fd, copy, fd:
    try:
        print(os.read(number, 100), flush=True)
    except OSError as error:
        print(error.errno, flush=True)
"""


@pytest.mark.parametrize("name", FLAVOURS)
async def test_a_file_that_was_lent_is_taken_back_by_removal(place: pathlib.Path, name: str) -> None:
    """Its borrower, who waits in a read of it, gets the flavour's answer, and so does each copy from then on."""
    root = tree(FLAVOURS[name])
    waits, given = stream(root)
    given.append(b"hello\n")
    line, theirs = socket.socketpair()
    command = [sys.executable, "-ISc", BORROWS]
    with line, theirs:
        async with (
            mounted(root, place),
            await anyio.open_process(command, stdin=theirs.fileno(), stderr=None) as process,
        ):
            fd = await anyio.to_thread.run_sync(os.open, place / "stream", os.O_RDONLY)  # the loop serves it
            socket.send_fds(line, [b"x"], [fd])
            borrower = Program(process)
            await borrower.says(b"hello")
            await inside(waits)
            await waits.remove("the subsystem is gone")
            assert await borrower.ends() == 0
            assert borrower.output.decode() == "b'hello\\n'\n" + f"{TABLE[name]['read']}\n" * 2
            await anyio.to_thread.run_sync(os.close, fd)


async def test_what_drains_is_there_no_more(place: pathlib.Path) -> None:
    """A program is inside yet; the next one finds nothing."""
    go_on = anyio.Event()

    async def show() -> str:
        with anyio.CancelScope(shield=True):
            await go_on.wait()
        return "text"

    root = tree()
    entry = root.create("slow", show=show)
    async with mounted(root, place), running("cat", place / "slow") as cat:
        await inside(entry)
        removal = entry.remove()
        said, drained = await run("cat", place / "slow"), removal.done()
        go_on.set()
        await cat.ends()
    assert "No such file" in said
    assert not drained


async def test_what_is_removed_while_it_is_listed_is_left_out(place: pathlib.Path) -> None:
    """The listing goes on with what follows."""
    root = tree()

    async def size() -> int:
        await second.remove()
        return 0

    root.create("first", size=size)
    second = root.create("second")
    root.create("third")
    async with mounted(root, place):
        assert await run("ls", place) == "first\nthird\n"


async def test_a_signal_ends_a_program_that_waits(place: pathlib.Path) -> None:
    """The kernel lets nobody go whose request is not answered: it is, also where handlers are not cancelled."""
    root = tree(answers.PROCFS)
    entries = [stream(root)[0], root.create("slow", show=until(anyio.Event()))]
    async with mounted(root, place):
        for entry in entries:
            async with running("cat", place / entry.name) as cat:
                await inside(entry)
                cat.process.send_signal(signal.SIGTERM)  # not SIGINT, which what runs in the background ignores
                assert await cat.ends() == -signal.SIGTERM
        assert [entry.node.in_use for entry in entries] == [0, 0]


@pytest.mark.parametrize("end", ["signal", "unmount"])
async def test_who_waits_for_a_size_can_be_ended(place: pathlib.Path, end: str) -> None:
    """To look at a file is a request as any other, in a listing too: a signal ends it, and the end of the mount."""

    async def size() -> int:
        await anyio.sleep_forever()
        return 0

    root = tree()
    entry = root.create("slow", size=size)
    for command in ["stat", f"{place}/slow"], ["ls", "-l", f"{place}"]:
        async with mounted(root, place) as tasks, running(*command) as program:
            while not entry.node.in_use:
                await anyio.sleep(0.001)
            if end == "signal":
                program.process.send_signal(signal.SIGTERM)
                assert await program.ends() == -signal.SIGTERM
            else:
                tasks.cancel_scope.cancel()
                with anyio.CancelScope(shield=True):
                    assert await program.ends() in (1, 2)


async def test_the_end_of_the_mount_ends_those_who_wait(place: pathlib.Path) -> None:
    """Their reads fail, also of a handler that hangs, which is waited for; the place is free before that."""
    root = tree(answers.PROCFS)
    leave = anyio.Event()
    entries = [root.create("slow", show=until(leave)), stream(root)[0]]
    ended = anyio.Event()
    async with anyio.create_task_group() as tasks:

        async def serve() -> None:
            async with mounted(root, place):
                await go_on.wait()
            ended.set()

        go_on = anyio.Event()
        tasks.start_soon(serve)
        while not is_mounted(place):
            await anyio.sleep(0.001)
        async with running("cat", place / "slow") as slow, running("cat", place / "stream") as waits:
            for entry in entries:
                await inside(entry)
            go_on.set()
            for each in slow, waits:
                assert await each.ends() == 1
            while is_mounted(place):
                await anyio.sleep(0.001)
            assert not ended.is_set()
            leave.set()
            await ended.wait()


async def test_removing_the_root_unmounts_it(place: pathlib.Path) -> None:
    """The mount returns, in trees whose handlers are cancelled, too; what is dead is not mounted."""
    profile: Answers | None
    for profile in answers.SYSFS, None:
        root = tree(profile)
        async with anyio.create_task_group() as tasks:
            await tasks.start(mount, root, place)
            await root.remove("the service ends")
        assert not is_mounted(place)
        with pytest.raises(RevokedError):
            await mount(root, place)


async def test_unmounting_by_hand_ends_it(place: pathlib.Path) -> None:
    """The mount returns, and can be done again."""
    root = tree()
    root.create("file", show=lambda: "text")
    for _ in range(2):
        async with anyio.create_task_group() as tasks:
            await tasks.start(mount, root, place)
            assert await run("cat", place / "file") == "text"
            assert await run("umount", place) == ""
        assert root.node.in_use == 1


def by_force(place: pathlib.Path) -> None:
    """The kernel aborts the connection; then it is busy where somebody waits, and unmounted where nobody does."""
    subprocess.run(["umount", "-f", place], capture_output=True)


def by_abort(place: pathlib.Path) -> None:
    """It stays mounted, and answers nothing but ENOTCONN."""
    mounts = [line.split() for line in pathlib.Path("/proc/self/mountinfo").read_text().splitlines()]
    (number,) = (words[2].removeprefix("0:") for words in mounts if words[4] == str(place))
    with tempfile.TemporaryDirectory() as control:
        subprocess.run(["mount", "-t", "fusectl", "none", control], check=True)
        pathlib.Path(control, number, "abort").write_text("1")
        subprocess.run(["umount", control], check=True)


@pytest.mark.parametrize("waits", [True, False], ids=["read", "idle"])
@pytest.mark.parametrize("drop", [by_force, by_abort])
async def test_when_the_kernel_drops_the_mount_it_ends(
    place: pathlib.Path, drop: Callable[[pathlib.Path], None], waits: bool
) -> None:
    """Who waits is kicked and fails, the mount returns, the place is free, and another tree can be mounted there."""
    root = tree()
    entry, _ = stream(root)
    with anyio.fail_after(60):
        async with anyio.create_task_group() as tasks:
            await tasks.start(mount, root, place)
            if waits:
                async with running("cat", place / "stream") as cat:
                    await inside(entry)
                    drop(place)
                    assert await cat.ends() == 1
            else:
                drop(place)
    assert (is_mounted(place), root.node.in_use) == (False, 1)
    root = tree()
    root.create("file", show=lambda: "text")
    async with mounted(root, place):
        assert await run("cat", place / "file") == "text"


async def test_unmounted_lazily_it_ends_with_the_last_open_file(place: pathlib.Path) -> None:
    """Whoever has a file open is served until it is closed; then the mount returns."""
    root = tree()
    entry, given = stream(root)
    with anyio.fail_after(60):
        async with anyio.create_task_group() as tasks:
            await tasks.start(mount, root, place)
            async with running("cat", place / "stream") as cat:
                await inside(entry)
                assert await run("umount", "-l", place) == ""
                assert not is_mounted(place)
                given.append(b"still served")
                entry.notify()
                await cat.says(b"still served")
                given.append(b"")
                entry.notify()
                assert await cat.ends() == 0
    async with mounted(root, place):
        assert await run("ls", place) == "stream\n"


# -- the place --


@pytest.mark.parametrize(
    ("make", "number"),
    [
        (lambda place: place.rmdir(), errno.ENOENT),
        (lambda place: (place.rmdir(), place.write_text("precious")), errno.ENOTDIR),
        (lambda place: (place / "precious").write_text(""), errno.ENOTEMPTY),
        (lambda place: subprocess.run(["mount", "-t", "tmpfs", "none", place], check=True), errno.EBUSY),
    ],
    ids=["missing", "file", "full", "mounted"],
)
async def test_a_place_that_will_not_do_is_named(
    place: pathlib.Path, make: Callable[[pathlib.Path], object], number: int
) -> None:
    """And what is there is left as it is; the next place will do."""
    make(place)
    root = tree()
    with pytest.raises(OSError, match=str(place)) as refused:
        await mount(root, place)
    assert (refused.value.errno, root.node.in_use) == (number, 0)
    if is_mounted(place):
        subprocess.run(["umount", place], check=True)
    for each in [place, *place.iterdir()] if place.is_dir() else [place] * place.exists():
        if each.is_file():
            each.unlink()
    place.mkdir(exist_ok=True)
    async with mounted(root, place):
        pass


async def test_one_tree_at_a_time(place: pathlib.Path, tmp_path: pathlib.Path) -> None:
    """A second one is refused, and the first goes on."""
    other = tmp_path / "other"
    other.mkdir()
    root = tree()
    root.create("file", show=lambda: "text")
    async with mounted(root, place):
        with pytest.raises(OSError, match="has mounted a tree already"):
            await mount(tree(), other)
        assert await run("cat", place / "file") == "text"


SERVER = """
import sys, anyio
from asyncrevoke.adapters.entries import Directory
from asyncrevoke.adapters.fuse import mount
async def main():
    root = Directory("fs")
    root.create("stream", read=lambda *_: None)
    async with anyio.create_task_group() as tasks:
        await tasks.start(mount, root, sys.argv[1])
        print("ready", flush=True)
anyio.run(main)
"""


@pytest.mark.parametrize("anyio_backend", BACKENDS[:1], indirect=True)
async def test_the_place_of_a_killed_server_is_taken_over(place: pathlib.Path) -> None:
    """Those who waited in it have failed; the next server mounts there."""
    async with running(sys.executable, "-c", SERVER, place) as server:
        await server.says(b"ready")
        async with running("cat", place / "stream") as cat:
            await cat.asleep("request_wait_answer")
            server.process.kill()
            await server.process.wait()
            assert await cat.ends() == 1
    with pytest.raises(OSError, match="endpoint is not connected"):
        place.stat()
    root = tree()
    root.create("file", show=lambda: "text")
    async with mounted(root, place):
        assert await run("cat", place / "file") == "text"


async def test_a_file_that_is_open_when_it_is_removed_is_closed_by_its_program(place: pathlib.Path) -> None:
    """It is released at once, and the program's own close does no harm; whoever opens while it drains is refused."""
    released: list[str] = []
    root = tree(answers.SYSFS)
    entry = root.create("file", show=lambda: "text", release=lambda file: released.append(file.handle.name))
    reads = "import os, sys\nfile = open(sys.argv[1], 'rb', buffering=0)\nprint(file.read(), flush=True)\ninput()\n"
    reads += "try: file.read()\nexcept OSError as error: print(error.errno, flush=True)\nfile.close()"
    async with mounted(root, place), running(sys.executable, "-c", reads, place / "file") as program:
        await program.says(b"b'text'\n")
        await entry.remove()
        assert released == [f"process {program.process.pid}"]
        assert program.process.stdin is not None
        await program.process.stdin.send(b"\n")
        assert await program.ends() == 0
        assert program.output.endswith(b"19\n")
        await settle()
        assert len(released) == 1
