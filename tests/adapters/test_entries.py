"""Trees of entries: what handlers are given and give, and what becomes of files when entries are removed."""

import contextlib
import errno
import os
import select
import time
from collections.abc import AsyncIterator, Awaitable, Callable
from typing import Any

import anyio
import anyio.lowlevel
import pytest

from asyncrevoke import Revokable, RevokeDeadlock, RevokedError, answers
from asyncrevoke.adapters.entries import Directory, Entry, OpenFile, Operation
from asyncrevoke.answers import Answer, Answers
from asyncrevoke.testing import Subject, check_revokable
from calls import parked, start
from conftest import settle
from operations import Log

pytestmark = pytest.mark.anyio

IN, OUT, PRI, ERR, HUP = select.POLLIN, select.POLLOUT, select.POLLPRI, select.POLLERR, select.POLLHUP
FLAVOURS = {"PROCFS": answers.PROCFS, "DEBUGFS": answers.DEBUGFS, "SYSFS": answers.SYSFS}
each_flavour = pytest.mark.parametrize("flavour", FLAVOURS.values(), ids=FLAVOURS)


def tree(profile: Answers | None = answers.SYSFS, **options: Any) -> Directory:
    return Directory("fs", **options) if profile is None else Directory("fs", answers=profile, **options)


def stream(directory: Directory, name: str = "stream", **handlers: Any) -> tuple[Entry, list[bytes]]:
    """An entry whose reads wait until it is given something, and that list."""
    given: list[bytes] = []
    entry = directory.create(name, **{"read": lambda *_: given.pop(0) if given else None, **handlers})
    return entry, given


def until(event: anyio.Event) -> Callable[[], Awaitable[str]]:
    """A `show` that takes its time."""

    async def show() -> str:
        await event.wait()
        return ""

    return show


async def number(operation: Awaitable[object]) -> int | None:
    """The errno that it fails with."""
    try:
        await operation
    except OSError as exc:
        return exc.errno
    return None


# -- handlers --


@pytest.mark.parametrize("kind", [str, str.encode, lambda text: memoryview(text.encode())])
async def test_an_attribute_is_shown_as_it_was_at_the_beginning_of_a_file(kind: Callable[[str], Any]) -> None:
    """What is read in parts belongs together; from offset 0 it is shown anew; each file has its own."""
    value = "0123456789"
    entry = tree().create("value", show=lambda: kind(value))
    async with await entry.open() as file, await entry.open() as other:
        assert await file.read(4) == b"0123"
        value = "new"
        assert await other.read() == b"new"
        assert [await file.read(4), await file.read(), await file.read()] == [b"4567", b"89", b""]
        assert file.offset == 10
        assert await file.pread(2, 1) == b"12"
        assert await file.pread(0, 0) == b""
        assert await file.seek(-9, os.SEEK_CUR) == 1
        assert await file.read() == b"ew"
        assert await file.seek(0) == 0
        assert [data async for data in file] == [b"new"]


async def test_what_is_written_is_stored_with_the_count_that_the_handler_took() -> None:
    """None is all of it; the offset moves by what was taken; with `pwrite` it does not."""
    stored: list[bytes] = []

    async def store(data: bytes) -> int | None:
        await anyio.lowlevel.checkpoint()
        stored.append(data)
        return None if len(data) < 3 else 3

    async with await tree().create("value", store=store).open() as file:
        assert (await file.write(b"ab"), await file.write(b"cdef"), file.offset) == (2, 3, 5)
        assert (await file.pwrite(b"x", 100), file.offset) == (1, 5)
    assert stored == [b"ab", b"cdef", b"x"]


async def test_raw_handlers_are_given_the_operation_the_size_and_the_offset() -> None:
    """Plain and async ones alike; control passes anything; `private` is what `open` has left."""
    content = bytearray(b"hello world")

    def read(operation: Operation, size: int, offset: int) -> bytes:
        assert operation.file.private == "mine"
        return bytes(content[offset : offset + size])

    async def write(operation: Operation, data: bytes, offset: int) -> None:
        await anyio.lowlevel.checkpoint()
        assert not operation.kicked
        content[offset : offset + len(data)] = data

    async def control(_: Operation, request: int, argument: Any) -> tuple[int, Any]:
        await anyio.lowlevel.checkpoint()
        return request, argument

    def opened(file: OpenFile) -> None:
        file.private = "mine"

    entry = tree().create("raw", read=read, write=write, control=control, open=opened)
    async with await entry.open() as file:
        await file.seek(6)
        await file.write(b"there")
        assert await file.pread(100, 0) == b"hello there"
        assert await file.control(7, {"any": "thing"}) == (7, {"any": "thing"})


async def test_a_read_that_has_nothing_waits_for_news() -> None:
    """It is called again at each notification, until it has something; then a read that has it returns."""
    entry, given = stream(tree())
    async with await entry.open() as file, anyio.create_task_group() as tasks:
        reading = start(tasks, file.read)
        await parked(file.handle)
        entry.notify()
        await settle()
        assert not reading.done.is_set()
        given.append(b"news")
        entry.notify()
        await reading.done.wait()
        assert reading.outcome == b"news"


async def test_news_that_come_while_the_handler_looks_are_not_missed() -> None:
    """What is notified between the handler's look and the waiting ends the waiting."""
    looked = 0

    async def read(*_: object) -> bytes | None:
        nonlocal looked
        looked += 1
        if looked == 1:
            entry.notify()
            return None
        return b"seen"

    entry = tree().create("stream", read=read)
    with anyio.fail_after(5):
        async with await entry.open() as file:
            assert await file.read() == b"seen"


async def test_polling_waits_for_the_events_asked_for() -> None:
    """Without a handler a file is ready but where a read had nothing, and exceptional from news until it is read; a handler
    says its own.
    """
    entry, given = stream(tree())
    gate = tree().create("gate", poll=lambda _: IN if given else 0)
    async with await entry.open() as file, await gate.open() as other, anyio.create_task_group() as tasks:
        assert await file.poll() == IN | OUT
        waiting = start(tasks, file.poll, PRI)
        await parked(file.handle)
        entry.notify()
        await waiting.done.wait()
        assert waiting.outcome == await file.poll(PRI) == IN | OUT | PRI | ERR
        given.append(b"x")
        await file.read()
        assert await file.poll(PRI, wait=False) == IN | OUT
        file.blocking = False
        with pytest.raises(BlockingIOError, match="there is nothing yet"):
            await file.read()
        assert await file.poll(wait=False) == OUT  # as it has had nothing
        waiting = start(tasks, file.poll, IN)
        await parked(file.handle)
        given.append(b"y")
        entry.notify()
        await waiting.done.wait()
        assert waiting.outcome == IN | OUT | PRI | ERR
        assert await file.read() == b"y"
        given.clear()
        assert await other.poll(wait=False) == 0
        waiting = start(tasks, other.poll)
        await parked(other.handle)
        given.append(b"x")
        gate.notify()
        await waiting.done.wait()
        assert waiting.outcome == IN


@pytest.mark.parametrize(
    ("handlers", "use", "error", "match"),
    [
        ({"show": lambda: 7}, lambda file: file.read(), TypeError, "'fs/bad/x': 'show' returned 7"),
        ({"read": lambda *_: {}}, lambda file: file.read(), TypeError, "'read' returned {}"),
        ({"read": lambda *_: b"12345"}, lambda file: file.read(4), ValueError, "asked for 4 bytes, and returned 5"),
        ({"store": lambda _: 9}, lambda file: file.write(b"x"), ValueError, "of 1 bytes the handler took 9"),
        ({"store": lambda _: True}, lambda file: file.write(b"x"), ValueError, "of 1 bytes the handler took True"),
        ({"write": lambda *_: -1}, lambda file: file.write(b"x"), ValueError, "took -1"),
        ({"size": lambda: -5}, lambda file: file.entry.size(), ValueError, "'size' returned -5"),
        ({"size": lambda: True}, lambda file: file.entry.size(), ValueError, "'size' returned True"),
        ({"size": lambda: "5"}, lambda file: file.entry.size(), ValueError, "'size' returned '5'"),
        ({"store": lambda _: None}, lambda file: file.write(5), TypeError, "bytes-like"),
        ({"poll": lambda _: "r"}, lambda file: file.poll(), TypeError, "'poll' returned 'r'"),
        ({"show": lambda: 1 / 0}, lambda file: file.read(), ZeroDivisionError, "division"),
        ({}, lambda file: file.read(), OSError, "Errno 22.*no handler 'show'"),
        ({}, lambda file: file.write(b""), OSError, "Errno 22.*no handler 'store'"),
        ({}, lambda file: file.control(1), OSError, "Errno 25.*no handler 'control'"),
        ({}, lambda file: file.pread(-1, 0), OSError, "Errno 22"),
        ({}, lambda file: file.pread(1, -1), OSError, "Errno 22"),
        ({}, lambda file: file.pwrite(b"", -1), OSError, "Errno 22"),
        ({}, lambda file: file.seek(-1), OSError, "Errno 22"),
        ({}, lambda file: file.seek(0, os.SEEK_END), OSError, "Errno 22"),
    ],
)
async def test_what_makes_no_sense_is_named(
    handlers: Any, use: Callable[[OpenFile], Awaitable[object]], error: type[Exception], match: str
) -> None:
    """Of a handler that gives the wrong thing, too much, or raises, or is not there; the file can be used on."""
    async with await tree().create("bad", **handlers).open("x") as file:
        for _ in range(2):
            with pytest.raises(error, match=match):
                await use(file)
        assert (file.offset, file.handle.in_use) == (0, 0)


@pytest.mark.parametrize(
    ("handlers", "match"),
    [
        ({"shows": str}, "shows=.* is not a handler: give functions for show, store, read"),
        ({"show": "text"}, "show='text' is not a handler"),
        ({"show": str, "read": str}, "'x' has 'show' and 'read'"),
        ({"store": str, "write": str}, "'x' has 'store' and 'write'"),
    ],
)
def test_handlers_that_make_no_sense_are_refused(handlers: Any, match: str) -> None:
    """At creation; the name stays free."""
    root = tree()
    with pytest.raises(TypeError, match=match):
        root.create("x", **handlers)
    assert (list(root), root.node.in_use) == ([], 0)


async def test_one_moves_the_offset_at_a_time() -> None:
    """Who reads, writes or seeks beside another is told that it is busy; what moves nothing, and polling, is free."""
    entry, given = stream(tree(), write=lambda *_: None)
    async with await entry.open() as file, anyio.create_task_group() as tasks:
        reading = start(tasks, file.read)
        await parked(file.handle)
        for use in (file.read, lambda: file.write(b"x"), lambda: file.seek(0)):
            with pytest.raises(anyio.BusyResourceError):
                await use()
        assert await file.pwrite(b"x", 0) == 1
        assert await file.poll()
        given += [b"1", b"2"]
        assert await file.pread(1, 0) == b"1"
        entry.notify()
        await reading.done.wait()
        assert reading.outcome == b"2"


async def test_news_that_come_while_the_poll_handler_runs_wake_who_polls() -> None:
    """They may be what it would have told of, had it been asked later."""
    asked: list[int] = []

    async def poll(_: Operation) -> int:
        asked.append(entry.running.events)
        if len(asked) == 1:
            entry.notify()
            await anyio.lowlevel.checkpoint()
            return 0
        return IN

    entry = tree().create("entry", poll=poll)
    async with await entry.open() as file:
        with anyio.fail_after(10):
            assert await file.poll(IN) == IN
    assert asked == [0, 1]


@pytest.mark.parametrize("event", [ERR, HUP, select.POLLNVAL])
async def test_what_poll_tells_unasked_ends_it(event: int) -> None:
    """As poll(2) does, whatever it was asked for."""
    async with await tree().create("entry", poll=lambda _: event).open() as file:
        with anyio.fail_after(10):
            assert await file.poll(IN) == event


async def test_what_a_poll_handler_finds_revoked_elsewhere_is_no_answer() -> None:
    """The mask of the dead is for this file alone."""
    other = Revokable("other")
    other.revoke()

    def poll(_: Operation) -> int:
        with other.using():
            return 0

    async with await tree().create("entry", poll=poll).open() as file:
        with pytest.raises(RevokedError) as caught:
            await file.poll()
        assert caught.value.node is other


async def test_news_that_come_while_it_is_shown_are_news_since_it_was_read() -> None:
    """What was shown may be older than they are."""

    async def show() -> str:
        entry.notify()
        await anyio.lowlevel.checkpoint()
        return ""

    entry = tree().create("entry", show=show)
    async with await entry.open() as file:
        await file.read()
        assert await file.poll(PRI, wait=False) & PRI


async def test_a_stream_that_had_nothing_is_readable_when_it_has() -> None:
    """What counts is the last read."""
    entry, given = stream(tree())
    async with await entry.open() as file:
        file.blocking = False
        with pytest.raises(BlockingIOError):
            await file.read()
        assert await file.poll(wait=False) == OUT
        given.append(b"x")
        assert await file.read() == b"x"
        assert await file.poll(wait=False) == IN | OUT


async def test_news_have_a_time() -> None:
    """By which a mount tells when a file was changed."""
    entry = tree().create("entry")
    entry.running.changed = 0
    entry.notify()
    assert time.time_ns() - entry.running.changed < 60e9


# -- names --


@pytest.mark.parametrize("name", ["", ".", "..", "a/b", "/", "a\0b", "x" * 256, "é" * 128, "\udcff" * 256])
def test_what_is_no_name_is_refused(name: str) -> None:
    """It is said what is one; nothing was made."""
    root = tree()
    for make in root.create, root.mkdir:
        with pytest.raises(ValueError, match="is not a name: give 1 to 255 bytes"):
            make(name)
    assert root.node.in_use == 0


async def test_names_are_found_by_path() -> None:
    """Empty parts and dots change nothing; what is not there, no directory, or one, is told as by a file system."""
    root = tree()
    net = root.mkdir("net")
    odd = net.create("...", show=lambda: "odd")
    assert root.find("net/...") is root.find("//./net/.//...") is odd
    assert root.find("") is root
    assert [each.name for each in root] == ["net"]
    for path, error in (
        ("eth0", FileNotFoundError),
        ("net/../net", FileNotFoundError),
        ("net/.../x", NotADirectoryError),
        ("net", IsADirectoryError),
    ):
        with pytest.raises(error) as caught:
            await root.open(path)
        assert caught.value.filename == path
    assert repr(odd) == "<Entry of <Revokable 'fs/net/...' live in_use=0 open=0>>"
    async with await root.open("net/...", "x") as file:
        assert repr(file) == "<OpenFile of <Revokable 'fs/net/.../x' live in_use=0 open=0>>"


async def test_a_name_is_free_again_at_once() -> None:
    """While the old entry drains, a new one of its name is found and opened; the old one's end does it no harm."""
    root = tree()
    leave = anyio.Event()
    old = root.create("value", show=until(leave))
    with pytest.raises(FileExistsError, match="'fs/value'"):
        root.mkdir("value")
    async with anyio.create_task_group() as tasks:
        file = await old.open()
        reading = start(tasks, file.read)
        await parked(file.handle)
        removal = old.remove()
        assert (list(root), root.find("value")) == ([], old)
        new = root.create("value", show=lambda: "new")
        assert (list(root), root.find("value")) == ([new], new)
        leave.set()
        await removal
        await reading.done.wait()
    async with await root.open("value") as file:
        assert await file.read() == b"new"


async def test_many_names_and_levels() -> None:
    """10,000 siblings and 1,000 levels are made, found, and gone after one removal."""
    root = tree()
    for number_ in range(10_000):
        root.create(str(number_))
    deep = root
    for _ in range(1_000):
        deep = deep.mkdir("d")
    leaf = deep.create("leaf", show=lambda: "deep")
    path = "d/" * 1_000 + "leaf"
    async with await root.open(path) as file:
        assert await file.read() == b"deep"
        report = await root.remove()
        assert report.released == 10_000 + 1_000 + 3
        assert await number(file.read()) == errno.ENODEV
    assert list(root) == []
    assert (deep.node.released, leaf.node.released) == (True, True)
    with pytest.raises(FileNotFoundError):
        root.find(path)


# -- removal --


@pytest.mark.parametrize(
    ("profile", "wait"),
    [(None, "poll"), *((profile, "read") for profile in (None, answers.RFC, answers.TTY, *FLAVOURS.values()))],
)
async def test_a_file_keeps_the_contract(profile: Answers | None, wait: str) -> None:
    """Who waits for news, to read or in a poll, is kicked in every profile: where handlers finish, too, as none runs then."""

    @contextlib.asynccontextmanager
    async def maker() -> AsyncIterator[Subject]:
        gone = 0

        def release(_: OpenFile) -> None:
            nonlocal gone
            gone += 1

        def poll(_: Operation) -> int:
            return IN if given else 0

        entry, given = stream(tree(profile), store=lambda _: None, release=release, poll=poll)
        file = await entry.open()

        def feed() -> None:
            given.append(b"x")
            entry.notify()

        yield Subject(
            file.handle,
            getattr(file, wait),
            quick=lambda: file.write(b"x"),
            feed=feed,
            close=file.aclose,
            owner=entry.node,
            gone=lambda: gone,
        )

    await check_revokable(maker)


#: The table of the design: what is in flight is waited for; what comes later answers so.
TABLE: dict[str, dict[str, object]] = {
    "PROCFS": {"read": errno.EIO, "write": errno.EIO, "poll": IN | OUT, "ioctl": errno.ENOTTY, "open": errno.ENOENT},
    "DEBUGFS": {"read": errno.EIO, "write": errno.EIO, "poll": HUP, "ioctl": errno.EIO, "open": errno.ENOENT},
    "SYSFS": {
        "read": errno.ENODEV,
        "write": errno.ENODEV,
        "poll": IN | PRI | OUT | ERR,
        "ioctl": errno.ENOTTY,
        "open": errno.ENOENT,
    },
}


@pytest.mark.parametrize("name", FLAVOURS)
async def test_each_flavour_answers_as_its_row_of_the_table(name: str) -> None:
    """Handlers in flight finish, and their result is delivered; waits for news end; all that comes later has its answer."""
    row = TABLE[name]
    root = tree(FLAVOURS[name])
    leave = anyio.Event()

    async def slow(*_: object) -> None:
        await leave.wait()

    async def show() -> str:
        await leave.wait()
        return "finished"

    entry = root.create("entry", show=show, store=slow, control=slow)
    waits, _ = stream(root)
    async with await entry.open() as file, await waits.open() as waiting, anyio.create_task_group() as tasks:
        finishing = [
            start(tasks, file.pread, 100, 0),
            start(tasks, file.pwrite, b"12", 0),
            start(tasks, file.control, 1),
        ]
        ended = [start(tasks, waiting.read), start(tasks, waiting.poll, PRI)]
        await parked(file.handle, 3)
        await parked(waiting.handle, 2)
        removal = root.remove("unbound")
        assert await number(entry.open()) == row["open"]  # while it drains
        for each in ended:
            await each.done.wait()
        assert (ended[0].error.errno, ended[0].error.in_flight, ended[0].error.reason) == (row["read"], True, "unbound")
        assert ended[1].outcome == row["poll"]
        assert [each.done.is_set() for each in finishing] == [False] * 3
        assert not removal.done()
        leave.set()
        await removal
        assert [each.outcome for each in finishing] == [b"finished", 2, None]
        later = [file.read(), file.write(b"x"), file.control(1), file.seek(0), entry.open(), root.open("entry")]
        assert [await number(each) for each in later] == [
            *(row[what] for what in ("read", "write", "ioctl", "read")),
            errno.ENOENT,
            errno.ENOENT,
        ]
        assert await file.poll() == await file.poll(wait=False) == row["poll"]


async def test_without_a_profile_handlers_are_cancelled() -> None:
    """All operations raise RevokedError, in flight and later, polls too."""
    root = tree(None)
    entry = root.create("entry", show=until(anyio.Event()))
    async with await entry.open() as file, anyio.create_task_group() as tasks:
        calls = [start(tasks, file.read), start(tasks, file.poll, PRI)]
        await parked(file.handle, 2)
        await entry.remove("gone")
        for call in calls:
            await call.done.wait()
            assert (call.error.in_flight, call.error.reason) == (True, "gone")
        with pytest.raises(RevokedError):
            await file.poll()


@each_flavour
async def test_all_refuse_before_any_is_released_children_first(flavour: Answers) -> None:
    """A subtree is drained in post-order, and each file released once, when every one of them refuses already."""
    log: Log = []
    root = tree(flavour)
    top = root.mkdir("top")

    def release(file: OpenFile) -> None:
        log.append(f"{file.entry.name} {file.handle.name}")
        assert file.handle.closed or all(each.revoked for each in nodes)

    entries = [top.create(name, release=release) for name in ("a", "b")]
    below = top.mkdir("below").create("c", release=release)
    files = [await entry.open(name) for entry in (*entries, below) for name in ("1", "2")]
    nodes = [file.handle for file in files] + [each.node for each in (top, *entries, below)]
    await (await entries[0].open("closed")).aclose()
    assert log == ["a closed"]
    log.clear()
    removal = top.remove()
    assert sorted(log) == ["a 1", "a 2", "b 1", "b 2", "c 1", "c 2"]
    assert (await removal).released == 11
    for file in files:
        await file.aclose()
    assert len(log) == 6
    assert (root.node.in_use, list(root)) == (0, [])


async def test_a_removal_waits_for_the_handlers_that_run_and_names_them() -> None:
    """A handler that hangs is a straggler, with its line; what was removed stays removed."""

    async def hang() -> str:
        await leave.wait()  # here
        return ""

    leave = anyio.Event()
    entry = tree(answers.PROCFS).create("entry", show=hang)
    async with await entry.open("x") as file, anyio.create_task_group() as tasks:
        start(tasks, file.read)
        await parked(file.handle)
        removal = entry.remove()
        await settle()
        (straggler,) = removal.stragglers()
        assert (straggler.path, straggler.where.endswith(" in hang")) == ("fs/entry/x", True)
        leave.set()
        await removal


async def test_a_hook_of_the_operation_ends_what_its_handler_waits_for() -> None:
    """As debugfs has it: called by the removal, or at once if it comes too late; then the handler's result counts."""

    async def read(operation: Operation, *_: object) -> bytes:
        cancelled = anyio.Event()
        operation.on_kick(cancelled.set)
        await cancelled.wait()
        again: Log = []
        operation.on_kick(lambda: again.append("at once"))
        assert (operation.kicked, again) == (True, ["at once"])
        return b"partial"

    entry = tree(answers.DEBUGFS).create("entry", read=read)
    async with await entry.open() as file, anyio.create_task_group() as tasks:
        reading = start(tasks, file.read)
        await parked(file.handle)
        await entry.remove()
        await reading.done.wait()
        assert reading.outcome == b"partial"


async def test_who_waits_for_news_has_no_grace() -> None:
    """As all that is idle; a handler that runs has it, in a tree where handlers are cancelled."""
    for profile in None, answers.SYSFS:
        root = tree(profile)
        entry, _ = stream(root, store=lambda _: anyio.sleep_forever())
        async with await entry.open() as file, anyio.create_task_group() as tasks:
            idle = [start(tasks, file.read), start(tasks, file.poll, PRI)]
            busy = start(tasks, file.pwrite, b"x", 0)
            await parked(file.handle, 3)
            root.node.revoke("drained", grace=1000)
            for each in idle:
                await each.done.wait()
            assert not busy.done.is_set()
            tasks.cancel_scope.cancel()


async def test_one_file_can_be_taken_from_its_holder() -> None:
    """A token, or the handle itself, takes one; other files of the entry, and the entry, stay."""
    entry, given = stream(tree())
    token = Revokable("token")
    async with await entry.open(also=[token]) as taken, await entry.open() as kept:
        async with anyio.create_task_group() as tasks:
            calls = [start(tasks, file.read) for file in (taken, kept)]
            await parked(taken.handle)
            await parked(kept.handle)
            await token.revoke("logged out")
            await calls[0].done.wait()
            assert (calls[0].error.errno, calls[0].error.reason) == (errno.ENODEV, "logged out")
            given.append(b"x")
            entry.notify()
        assert calls[1].outcome == b"x"
        token = Revokable()
        token.revoke()
        with pytest.raises(RevokedError) as refused:
            await entry.open(also=[token])
        assert refused.value.errno == errno.EIO  # a token's, not the entry's


async def test_removing_in_every_way_at_once_does_no_harm() -> None:
    """Twice, a parent and its child, in both orders, while it is opened: each is complete, and released once."""
    log: Log = []
    opening, go_on = anyio.Event(), anyio.Event()

    async def slow(_: OpenFile) -> None:
        opening.set()
        await go_on.wait()

    root = tree(answers.PROCFS)
    top = root.mkdir("top")
    entry = top.create("entry", open=slow, release=lambda file: log.append(file.handle.name))
    async with anyio.create_task_group() as tasks:
        late = start(tasks, entry.open, "late")
        await opening.wait()
        removals = [entry.remove("first"), top.remove("second"), entry.remove("third"), root.remove()]
        assert not any(each.done() for each in removals)
        go_on.set()
        for each in removals:
            await each
        await late.done.wait()
        assert (late.error.errno, late.error.reason) == (errno.ENOENT, "first")
    assert log == ["late"]
    with pytest.raises(RevokedError):
        top.create("another")
    with pytest.raises(RevokedError):
        top.mkdir("another")


async def test_an_opening_that_fails_leaves_nothing() -> None:
    """What `open` raises comes through; `release` is not called for it; the entry goes on."""
    log: Log = []

    def opened(file: OpenFile) -> None:
        if file.handle.name == "bad":
            raise OSError(errno.EBUSY, "in use")

    entry = tree().create("entry", open=opened, release=lambda file: log.append(file.handle.name))
    assert await number(entry.open("bad")) == errno.EBUSY
    await (await entry.open("good")).aclose()
    assert (log, entry.node.in_use, entry.node.revoked) == (["good"], 0, False)


async def test_a_closed_file_is_closed() -> None:
    """Its owner gets ClosedResourceError, in flight too, from every operation."""
    entry, _ = stream(tree())
    file = await entry.open()
    async with anyio.create_task_group() as tasks:
        calls = [start(tasks, file.read), start(tasks, file.poll, PRI)]
        await parked(file.handle, 2)
        await file.aclose()
        for call in calls:
            await call.done.wait()
            assert isinstance(call.outcome, anyio.ClosedResourceError)
    for use in (file.read, file.poll, lambda: file.write(b""), lambda: file.control(1), lambda: file.seek(0)):
        with pytest.raises(anyio.ClosedResourceError):
            await use()


async def test_a_tree_goes_with_its_owner() -> None:
    """And has its profile, unless it is given one."""
    device = Revokable("device", answers=answers.ALSA)
    entry = Directory("status", owner=device).create("entry")
    assert (entry.node.path, entry.node.answers) == ("device/status/entry", answers.ALSA)
    entry = Directory("debug", owner=device, answers=answers.DEBUGFS).create("entry")
    async with await entry.open() as file:
        await device.revoke("unplugged")
        assert await number(file.read()) == errno.EIO
    with pytest.raises(RevokedError):
        Directory("status", owner=device)


async def test_to_open_what_a_profile_has_no_number_for_is_an_error_all_the_same() -> None:
    """As where the next generation is to be opened, which an entry has none of."""
    assert not isinstance(answers.DEADFS.open.later, int)
    entry = tree(answers.DEADFS).create("entry")
    await entry.remove()
    with pytest.raises(RevokedError) as caught:
        await entry.open()
    assert caught.value.errno == errno.EIO


async def test_of_what_is_removed_nobody_learns_the_size() -> None:
    """Who asks later is refused, and who has asked is ended."""
    asked = 0

    async def size() -> int:
        nonlocal asked
        asked += 1
        await anyio.sleep_forever()
        return 0

    entry = tree(None).create("entry", size=size)
    async with anyio.create_task_group() as tasks:
        call = start(tasks, entry.size)
        await parked(entry.node)
        with anyio.fail_after(10):
            await entry.remove()
            await call.done.wait()
    assert call.error.in_flight
    with pytest.raises(RevokedError):
        await entry.size()
    assert asked == 1


# -- removal from inside --


async def test_awaiting_the_removal_from_a_handler_is_explained() -> None:
    """It cannot end before the handler does: RevokeDeadlock says so, and the entry is removed all the same."""

    async def store(_: bytes) -> None:
        await entry.remove()

    entry = tree().create("delete", store=store)
    async with await entry.open("x") as file:
        with pytest.raises(RevokeDeadlock, match="inside 'fs/delete/x'"):
            await file.write(b"1")
    await entry.remove()


async def test_a_plain_handler_removes_its_own_entry() -> None:
    """What need not be awaited needs nothing more; the operation's result is delivered."""

    def store(_: bytes) -> None:
        entry.remove("by itself")

    root = tree()
    entry = root.create("delete", store=store)
    async with await entry.open() as file:
        assert await file.write(b"1") == 1
        assert await number(file.write(b"1")) == errno.ENODEV
        assert (entry.node.reason, list(root)) == ("by itself", [])


async def test_one_of_those_who_remove_their_own_entry_wins() -> None:
    """The winner waits for all others that run, but not for the losers; they wait until its whole operation is over, and
    the removal for all of them.
    """
    log: Log = []
    begin = [anyio.Event() for _ in range(3)]
    leave, others = anyio.Event(), anyio.Event()

    async def write(operation: Operation, data: bytes, _: int) -> None:
        await begin[int(data)].wait()
        won = await operation.remove_self("deleted")
        log.append(f"{data.decode()} {won}")
        if won:
            await leave.wait()
            log.append("the winner ends")

    async def show() -> str:
        await others.wait()
        log.append("other ends")
        return ""

    entry = tree().create("delete", write=write, show=show)
    async with anyio.create_task_group() as tasks:
        files = [await entry.open(str(each)) for each in range(4)]
        start(tasks, files[3].read)
        calls = [start(tasks, files[each].write, b"%d" % each) for each in range(3)]
        for each in begin:
            await settle()
            each.set()
        await settle()
        assert (log, entry.node.reason) == ([], "deleted")
        removal = entry.remove()
        others.set()
        await settle()
        assert log == ["other ends", "0 True"]
        assert not removal.done()
        leave.set()
        await removal
        assert (log[2], sorted(log[3:])) == ("the winner ends", ["1 False", "2 False"])
        for call in calls:
            await call.done.wait()
            assert call.outcome == 1


async def test_who_removes_from_inside_what_another_has_removed_loses() -> None:
    """It waits for the others that run, and is told that it was not the one."""
    leave = anyio.Event()
    outcome: list[bool] = []

    async def store(operation: Operation, *_: object) -> None:
        await leave.wait()
        outcome.append(await operation.remove_self())

    entry = tree().create("delete", write=store)
    async with await entry.open() as file, anyio.create_task_group() as tasks:
        call = start(tasks, file.write, b"1")
        await parked(file.handle)
        removal = entry.remove("by another")
        leave.set()
        await removal
        await call.done.wait()
        assert (outcome, entry.node.reason) == ([False], "by another")


async def test_a_handler_inside_a_handler_removes_itself() -> None:
    """Of the task's own operations, none is waited for."""

    async def read(operation: Operation, size: int, offset: int) -> bytes:
        if offset:
            return b"won" if await operation.remove_self() else b"lost"
        async with await entry.open() as inner:
            return await inner.pread(size, 1)

    entry = tree().create("delete", read=read)
    with anyio.fail_after(5):
        async with await entry.open() as file:
            assert await file.read() == b"won"
    assert entry.node.released


async def test_removing_itself_can_be_cancelled() -> None:
    """The entry is removed all the same, and the other who waits goes on when that one has left."""
    begin = [anyio.Event() for _ in range(2)]
    stuck = anyio.Event()
    log: list[bool] = []

    async def write(operation: Operation, data: bytes, _: int) -> None:
        await begin[int(data)].wait()
        log.append(await operation.remove_self())

    entry = tree().create("delete", write=write, show=until(stuck))
    async with anyio.create_task_group() as tasks:
        files = [await entry.open() for _ in range(3)]
        start(tasks, files[2].read)
        calls = [start(tasks, files[each].write, b"%d" % each) for each in range(2)]
        for each in begin:
            await settle()
            each.set()
        await settle()
        calls[0].scope.cancel()
        with anyio.fail_after(5):
            await calls[1].done.wait()
        assert log == [False]
        assert not entry.node.released
        stuck.set()
        await entry.remove()


async def test_where_handlers_are_cancelled_so_is_one_that_removes_itself() -> None:
    """It is an operation as any other; the entry is removed."""

    async def write(operation: Operation, *_: object) -> None:
        await operation.remove_self("off")
        await anyio.lowlevel.checkpoint()

    entry = tree(None).create("delete", write=write)
    async with await entry.open() as file:
        with pytest.raises(RevokedError, match="off"):
            await file.write(b"x")
    assert entry.node.released


async def test_who_was_kicked_is_not_waited_for_from_inside() -> None:
    """He is over by the time that anybody counts."""

    async def control(operation: Operation, *_: object) -> None:
        with anyio.fail_after(10, shield=True):
            await operation.remove_self()

    entry = tree(None).create("entry", show=until(anyio.Event()), control=control)
    kicked, file = await entry.open(), await entry.open()
    async with anyio.create_task_group() as tasks:
        reading = start(tasks, kicked.read)
        await parked(kicked.handle)
        await kicked.handle.revoke()
        assert reading.error.in_flight
    with contextlib.suppress(RevokedError):
        await file.control(0)
    assert entry.node.revoked
    assert not entry.running.others()


# -- permanent entries --


async def test_a_permanent_entry_cannot_be_removed_nor_what_it_is_in() -> None:
    """EPERM, before anything was removed, also from inside; what is beside it can be."""

    async def write(operation: Operation, *_: object) -> None:
        await operation.remove_self()

    root = tree()
    sub = root.mkdir("sub")
    beside = root.mkdir("beside")
    entry = sub.create("version", permanent=True, show=lambda: "1", write=write)
    for each in entry, sub, root:
        with pytest.raises(PermissionError, match="permanent"):
            each.remove()
    async with await entry.open() as file:
        assert await number(file.write(b"x")) == errno.EPERM
        assert not any(each.node.revoked for each in (entry, sub, root))
        await beside.remove()
        assert await file.read() == b"1"


async def test_handlers_of_a_permanent_entry_are_not_counted() -> None:
    """They run without a bracket; a file of it can be closed, or be revoked, and is dead then."""
    event = anyio.Event()
    entry = tree().create("entry", permanent=True, show=until(event))
    file, other = await entry.open(), await entry.open()
    async with anyio.create_task_group() as tasks:
        reading = start(tasks, file.read)
        await settle()
        assert file.handle.in_use == 0
        event.set()
        await reading.done.wait()
    await file.aclose()
    with pytest.raises(anyio.ClosedResourceError):
        await file.read()
    await other.handle.revoke()
    assert await number(other.read()) == errno.ENODEV


@pytest.mark.parametrize("how", ["news", "token", "close", "owner"])
@pytest.mark.parametrize("profile", [None, answers.PROCFS])
async def test_who_waits_for_news_of_a_permanent_entry_is_ended_with_its_file(
    profile: Answers | None, how: str
) -> None:
    """The entry stays for ever, but a file of it is taken away from those who wait as any other is."""
    owner, token = Revokable("owner"), Revokable("token")
    given: list[bytes] = []
    entry = tree(profile, owner=owner).create(
        "entry", permanent=True, read=lambda *_: given.pop(0) if given else None, poll=lambda _: IN if given else 0
    )
    file = await entry.open(also=[token])
    async with anyio.create_task_group() as tasks:
        waiting = [start(tasks, file.read), start(tasks, file.poll)]
        await parked(file.handle, 2)
        entry.notify()  # which was none for them
        await settle()
        if how == "news":
            given += [b"x", b"y"]
            entry.notify()
        elif how == "close":
            await file.aclose()
        else:
            await {"token": token, "owner": owner}[how].revoke()
        with anyio.fail_after(10):
            for each in waiting:
                await each.done.wait()
    read, poll = waiting
    if how == "news":
        assert (read.outcome, poll.outcome) == (b"x", IN)
    elif how == "close":
        assert isinstance(read.outcome, anyio.ClosedResourceError)
    elif profile is None:
        assert read.error.in_flight
        assert poll.error.in_flight
    else:
        assert (read.error.errno, poll.outcome) == (errno.EIO, answers.PROCFS.poll)
    await file.aclose()


@pytest.mark.parametrize("permanent", [True, False])
@pytest.mark.parametrize("how", ["news", "revoked"])
async def test_a_part_of_a_handler_that_waits_no_more_leaves_the_others_waiting(permanent: bool, how: str) -> None:
    """Whoever has begun first, each is woken by news and by the kick."""
    woken: list[str] = []

    async def control(operation: Operation, *_: object) -> None:
        async def wait(name: str, scope: anyio.CancelScope) -> None:
            with scope:
                try:
                    await operation.wait_for_news(entry.running.events)
                    woken.append(name)
                except RevokedError:
                    woken.append(f"{name} kicked")

        async with anyio.create_task_group() as tasks:
            for name, scope in ("first", first), ("second", anyio.CancelScope()):
                tasks.start_soon(wait, name, scope)
            await settle()
            first.cancel()

    first = anyio.CancelScope()
    entry = tree(None).create("entry", permanent=permanent, control=control)
    file = await entry.open()
    async with anyio.create_task_group() as tasks:
        call = start(tasks, file.control, 0)
        await settle(40)
        assert first.cancelled_caught
        if how == "news":
            entry.notify()
        else:
            file.handle.revoke()
        with anyio.fail_after(10):
            await call.done.wait()
    assert woken == {"news": ["second"], "revoked": ["second kicked"] if permanent else []}[how]
    await file.handle.revoke()


async def test_a_handler_may_wait_in_several_tasks() -> None:
    """One notification wakes all of them; and who need not wait leaves nothing behind."""

    async def control(operation: Operation, *__: object) -> None:
        for _ in range(100):
            await operation.wait_for_news(-1)
        assert kicked_by(operation) == 0
        async with anyio.create_task_group() as tasks:
            for _ in range(2):
                tasks.start_soon(operation.wait_for_news, entry.running.events)
        assert kicked_by(operation) == 1

    def kicked_by(operation: Operation) -> int:
        assert operation._use is not None
        return len(operation._use._hooks or ())

    entry = tree().create("entry", control=control)
    async with await entry.open() as file, anyio.create_task_group() as tasks:
        call = start(tasks, file.control, 0)
        await parked(file.handle)
        entry.notify()
        with anyio.fail_after(10):
            await call.done.wait()
        assert call.outcome is None


@pytest.mark.parametrize("profile", [answers.TTY, answers.DEADFS])
def test_other_profiles_have_no_say_in_who_finishes(profile: Answers) -> None:
    """Handlers are waited for where the table says that what is in flight finishes, and cancelled elsewhere."""
    assert profile.read.in_flight is not Answer.FINISHES
    assert tree(profile).node.answers is profile
