"""Mappings: bytes in and out, views that outlive their mapping, and files that get shorter."""

import contextlib
import ctypes
import errno
import gc
import mmap
import os
import pathlib
import pickle
import signal
import subprocess
import sys
import threading
import types
from collections.abc import AsyncIterator, Callable, Iterator
from typing import Any, Literal

import anyio
import anyio.lowlevel
import numpy as np
import pytest

from asyncrevoke import Registry, Revokable, RevokedError, answers
from asyncrevoke.adapters.entries import Directory
from asyncrevoke.adapters.mapping import Mapping, mapping as adapter
from asyncrevoke.answers import Answers
from asyncrevoke.testing import Subject, check_revokable
from calls import Stalled, parked, start
from conftest import settle

pytestmark = pytest.mark.anyio

Policy = Literal["replace", "release", "wait"]
TEXT = b"0123456789" * 1000
each_policy = pytest.mark.parametrize("policy", ["replace", "release", "wait"])


@pytest.fixture
def path(tmp_path: pathlib.Path) -> pathlib.Path:
    path = tmp_path / "file"
    path.write_bytes(TEXT)
    return path


@contextlib.contextmanager
def mapped(path: pathlib.Path, length: int = 0, **options: Any) -> Iterator[Mapping]:
    with path.open("r+b") as file:
        mapping = Mapping(file, length, name="file", **options)
    yield mapping
    mapping.handle.close()


def in_memory(path: pathlib.Path) -> bool:
    """Whether any of it is still mapped."""
    gc.collect()
    return str(path) in pathlib.Path("/proc/self/maps").read_text()


# -- bytes --


async def test_bytes_go_in_and_out(path: pathlib.Path) -> None:
    """As of a bytearray, by index and slice, and from there to the file; the file may be closed meanwhile."""
    with mapped(path, write=True) as data:
        assert (len(data), data[0], data[-1], data[3:6], data[-2:], data[5:2]) == (10_000, 48, 57, b"345", b"89", b"")
        data[0] = 65
        data[-3:] = b"end"
        data[7:7] = b""
        await data.flush()
        assert path.read_bytes() == b"A" + TEXT[1:-3] + b"end"
        assert repr(data) == "<Mapping of 10000 bytes, <Revokable 'file' live in_use=0 open=0>>"
    assert not in_memory(path)


async def test_a_part_of_a_file_is_mapped(path: pathlib.Path) -> None:
    """From an offset, for a length; each reads what the other has written."""
    page = mmap.ALLOCATIONGRANULARITY
    with mapped(path, 100, offset=page) as part, mapped(path, write=True) as whole:
        assert (len(part), part[:3]) == (100, TEXT[page : page + 3])
        whole[page] = 65
        assert part[0] == 65


@pytest.mark.parametrize(
    ("use", "error", "match"),
    [
        (lambda data: data[10_000], IndexError, "10000 is outside of 10000 bytes"),
        (lambda data: data[-10_001], IndexError, "outside"),
        (lambda data: data[::2], ValueError, "every 2. byte"),
        (lambda data: data.__setitem__(slice(0, 3), b"four"), ValueError, "4 bytes do not fit into a slice of 3"),
        (lambda data: data.__setitem__(0, 256), ValueError, "range"),
        (lambda data: data.__setitem__(slice(0, 3), 3), TypeError, "bytes-like"),
    ],
)
async def test_what_makes_no_sense_is_an_error(
    path: pathlib.Path, use: Callable[[Mapping], object], error: type[Exception], match: str
) -> None:
    """And changes nothing."""
    with mapped(path, write=True) as data:
        with pytest.raises(error, match=match):
            use(data)
        assert data[:] == TEXT


async def test_more_than_a_call_copies_is_copied_by_several(
    path: pathlib.Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Linux copies no more than 2 GiB less a page in one call, and says so: that is no truncated file."""

    def least(call: Any) -> Any:
        def copied(pid: int, local: Any, _: int, there: Any, *rest: int) -> int:
            for span in local._obj, there._obj:
                span.length = min(span.length, 3000)
            done: int = call(pid, local, 1, there, *rest)
            return done

        return copied

    for name in "process_vm_readv", "process_vm_writev":
        monkeypatch.setattr(adapter._libc, name, least(getattr(adapter._libc, name)))
    with mapped(path, write=True) as data:
        data[5:9000] = TEXT[:8995]
        assert data[:] == TEXT[:5] + TEXT[:8995] + TEXT[9000:]


async def test_what_cannot_be_copied_is_no_truncated_file(path: pathlib.Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """As where a filter of system calls forbids it: the error is the kernel's."""

    def forbidden(*_: object) -> int:
        ctypes.set_errno(errno.EPERM)
        return -1

    monkeypatch.setattr(adapter._libc, "process_vm_readv", forbidden)
    with mapped(path) as data, pytest.raises(PermissionError, match="not permitted"):
        data[0:3]


async def test_what_is_read_only_cannot_be_written(path: pathlib.Path) -> None:
    """Neither by index nor by a view; a file that is read-only itself cannot be mapped otherwise."""
    with mapped(path) as data:
        with pytest.raises(TypeError, match="'file' is read-only: open it with write=True"):
            data[0] = 1
        view = data.view()
        with pytest.raises(TypeError, match="read-only"):
            view[0] = 1
    with path.open("rb") as file, pytest.raises(PermissionError):
        Mapping(file, write=True)


@pytest.mark.parametrize(
    ("make", "error", "match"),
    [
        (lambda file: Mapping(file, 20_000), ValueError, "greater than file size"),
        (lambda file: Mapping(file, offset=1), ValueError, "ALLOCATIONGRANULARITY|Invalid argument|offset"),
        (lambda file: Mapping(file, -1), Exception, ""),
        (lambda file: Mapping(file, views="keep"), ValueError, "views is 'keep'"),  # type: ignore[arg-type]
        (lambda file: (file.close(), Mapping(file)), ValueError, "closed"),
        (lambda file: (file.truncate(0), Mapping(file)), ValueError, "empty"),
        (lambda _: Mapping(1 << 20), OSError, "descriptor 1048576 is not open"),
        (lambda _: Mapping(-1), OSError, "descriptor -1 is not open"),
        (lambda _: Mapping(1 << 40), OSError, "descriptor 1099511627776 is not open"),
    ],
)
async def test_what_cannot_be_mapped_says_so(
    path: pathlib.Path, make: Callable[[Any], object], error: type[Exception], match: str
) -> None:
    """And leaves no descriptor, which the check around every test looks for."""
    with path.open("r+b") as file, pytest.raises((error, OSError) if match.startswith("ALLOC") else error) as caught:
        make(file)
    assert not match or any(part in str(caught.value) for part in match.split("|"))


async def test_what_is_no_file_is_mapped_too() -> None:
    """A device, of which nobody knows an end."""
    fd = os.open("/dev/zero", os.O_RDWR)
    try:
        async with Mapping(fd, 4096, write=True) as data:
            data[1:3] = b"ab"
            assert data[:4] == b"\0ab\0"
    finally:
        os.close(fd)


async def test_a_flush_lasts_until_the_system_call_has_ended(
    path: pathlib.Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Also for who is cancelled meanwhile: the file may not be released under it."""
    call = Stalled()
    with mapped(path, write=True) as data:
        monkeypatch.setattr(data, "_map", types.SimpleNamespace(flush=call))
        async with anyio.create_task_group() as tasks:
            flushing = start(tasks, data.flush)
            while not call.running.is_set():
                await anyio.lowlevel.checkpoint()
            tasks.cancel_scope.cancel()
            with anyio.CancelScope(shield=True):
                await settle()
                assert not flushing.done.is_set()
                assert data.handle.in_use
                call.go.set()
        monkeypatch.undo()


# -- taken away --


async def test_a_mapping_keeps_the_contract(path: pathlib.Path) -> None:
    """Operations with a view, that wait for something to be written there."""

    @contextlib.asynccontextmanager
    async def maker() -> AsyncIterator[Subject]:
        owner = Revokable("owner")
        with path.open("r+b") as file:
            data = Mapping(file, write=True, owner=owner)
        written = anyio.Event()

        async def wait() -> bytes:
            await anyio.lowlevel.checkpoint()
            with data.using(idle=True) as view:
                await written.wait()
                return bytes(view[:4])

        yield Subject(
            data.handle,
            wait,
            quick=data.flush,
            feed=written.set,
            close=data.aclose,
            gone=lambda: not in_memory(path),
            owner=owner,
        )

    await check_revokable(maker)


@each_policy
async def test_new_access_is_refused(path: pathlib.Path, policy: Policy) -> None:
    """By index, view, operation and flush, with the reason; and after its owner's close as such."""
    with mapped(path, write=True, views=policy) as data:
        await data.revoke("unplugged")
        uses: list[Callable[[], object]] = [
            lambda: data[0],
            lambda: data[:2],
            data.view,
            lambda: data.using().__enter__(),
        ]
        uses.append(lambda: data.__setitem__(0, 1))
        for use in uses:
            with pytest.raises(RevokedError, match="'file' was revoked: unplugged"):
                use()
        with pytest.raises(RevokedError):
            await data.flush()
    with mapped(path, views=policy) as data:
        await data.aclose()
        for use in (lambda: data[0], data.view):
            with pytest.raises(anyio.ClosedResourceError):
                use()


@pytest.mark.parametrize(
    ("profile", "number"),
    [
        (answers.TTY, errno.ENODEV),
        (answers.PROCFS, errno.EIO),
        (answers.SYSFS, errno.ENODEV),
        (answers.DEBUGFS, errno.ENODEV),
        (answers.RFC, errno.EIO),
    ],
)
async def test_it_answers_by_the_profile(path: pathlib.Path, profile: Answers, number: int) -> None:
    """What was mapped, and what is to be: a mapping is opened on an entry's file as on any node."""
    entry = Directory("fs", answers=profile).create("entry")
    async with await entry.open() as file:
        with mapped(path, owner=file.handle) as data:
            await entry.remove()
            with pytest.raises(RevokedError) as dead:
                data[0]
            with pytest.raises(RevokedError) as new, path.open("rb") as again:
                Mapping(again, owner=file.handle)
        assert (dead.value.errno, new.value.errno) == (number, number)


@each_policy
async def test_views_become_what_the_policy_says(path: pathlib.Path, policy: Policy) -> None:
    """Memoryviews, slices and arrays: zeros, or released, or what they were for as long as somebody has one; what is
    written there afterwards does not reach the file.
    """
    with mapped(path, write=True, views=policy) as data:
        view = data.view()
        part, array = view[10:20], np.frombuffer(view, np.uint8)[100:200]
        act = data.revoke("gone")
        assert act.done() == (policy != "wait")
        if policy == "release":
            with pytest.raises(ValueError, match="released memoryview"):
                view[0]
        else:
            assert bytes(view[:3]) == (b"012" if policy == "wait" else bytes(3))
        assert bytes(part) == (TEXT[10:20] if policy == "wait" else bytes(10))
        assert array.tobytes() == (TEXT[100:200] if policy == "wait" else bytes(100))
        if policy != "wait":
            part[0], array[:] = 1, 7
            assert (part[0], array.sum()) == (1, 700)
        del view, part, array
        with anyio.fail_after(10):
            await act
        assert path.read_bytes() == TEXT
    assert not in_memory(path)


async def test_a_revocation_waits_for_the_last_view_wherever_it_is_dropped(path: pathlib.Path) -> None:
    """In another thread, too; who keeps one is told, and a second revocation waits as well."""
    with mapped(path, views="wait") as data:
        kept = [data.view()[5:], np.frombuffer(data.view(), np.uint8)]
        act = data.revoke()
        await settle()
        assert (act.done(), data.handle.in_use, len(act.stragglers())) == (False, 2, 2)
        assert len([each for each in data.holders() if "a list" in each.where]) == 2
        drop = threading.Thread(target=kept.clear)
        drop.start()
        drop.join()
        with anyio.fail_after(10):
            await act
            await data.revoke("again")


def test_a_view_that_outlives_the_loop_is_waited_for_in_the_next(
    anyio_backend: tuple[str, dict[str, Any]], path: pathlib.Path
) -> None:
    """It may be dropped there, in another thread: the loop is told."""
    kept: list[memoryview] = []
    released: list[int] = []
    owner = Revokable("owner", release=lambda: released.append(threading.get_ident()))

    async def first() -> None:
        kept.append(data.view())

    async def second() -> None:
        act = owner.revoke()
        await settle()
        assert not act.done()
        drop = threading.Thread(target=kept.clear)
        drop.start()
        with anyio.fail_after(10):
            await act
        drop.join()

    with mapped(path, views="wait", owner=owner) as data:
        for main in first, second:
            anyio.run(main, backend=anyio_backend[0], backend_options=anyio_backend[1])
    assert released == [threading.get_ident()]


async def test_a_view_for_one_operation_ends_with_it(path: pathlib.Path) -> None:
    """It is what it was until the operation has left, is released then, and the kick ends the waiting inside."""
    with mapped(path, views="replace") as data:
        async with anyio.create_task_group() as tasks:

            async def operate() -> None:
                with data.using() as view:
                    views.append(view)
                    try:
                        await anyio.sleep_forever()
                    finally:
                        seen.append(bytes(view[:3]))

            views: list[memoryview] = []
            seen: list[bytes] = []
            call = start(tasks, operate)
            await parked(data.handle)
            await data.revoke("gone")
            await call.done.wait()
            assert call.error.in_flight
        assert seen == [b"012"]
        with pytest.raises(ValueError, match="released"):
            bytes(views[0])


async def test_what_is_made_of_an_operations_view_is_safe_after_it(path: pathlib.Path) -> None:
    """A slice that is kept stays as it was, and reads zeros when the mapping goes."""
    with mapped(path) as data:
        with data.using() as view:
            part = view[10:13]
        assert bytes(part) == b"012"
        await data.revoke()
        assert bytes(part) == bytes(3)


async def test_in_its_grace_an_operation_may_still_look(path: pathlib.Path) -> None:
    """Nested in an operation of the same task; others are refused."""
    with mapped(path, write=True) as data:
        with contextlib.suppress(RevokedError), data.handle.using():
            act = data.revoke("drained", grace=1000)
            data[0] = 65
            assert data[:2] == b"A1"
            with data.using() as view:
                assert view[0] == 65
            async with anyio.create_task_group() as tasks:
                refused = start(tasks, data.flush)
                await refused.done.wait()
                assert refused.error.reason == "drained"
        await act


async def test_a_registered_name_takes_its_mappings_along(path: pathlib.Path) -> None:
    """A mapping is opened on a generation as any file, and goes with a hang-up."""
    registry = Registry()
    name = registry.name("frame buffer")
    with mapped(path, owner=name) as data:
        view = data.view()
        await registry.revoke("frame buffer", reason="switched")
        assert bytes(view[:4]) == bytes(4)
        with pytest.raises(RevokedError, match="switched"):
            data[0]


@pytest.mark.parametrize("operation", [True, False])
async def test_what_cannot_be_released_reads_zeros(path: pathlib.Path, operation: bool) -> None:
    """A structure of C was made of a view: it is left alone, and made harmless."""
    with mapped(path, write=True, views="release") as data:
        with data.using() if operation else contextlib.nullcontext(data.view()) as view:
            made = pickle.PickleBuffer(view)
        assert bytes(made.raw()[:3]) == TEXT[:3]
        await data.revoke()
        assert bytes(made.raw()[:3]) == bytes(3)
        made.release()
        del made, view


async def test_during_the_grace_it_is_there_for_operations(path: pathlib.Path) -> None:
    """For what is nested in one that has begun before."""
    with mapped(path, write=True) as data:
        with data.using():
            act = data.revoke(grace=1000)
            data[0] = 65
            assert data[0] == 65
        await act


async def test_a_flush_of_what_was_taken_away_answers_as_all_else(path: pathlib.Path) -> None:
    """By what the profile says of mmap."""
    with mapped(path, answers=answers.TTY) as data:
        await data.revoke()
        with pytest.raises(RevokedError) as caught:
            await data.flush()
        assert caught.value.errno == answers.TTY.mmap


async def test_what_is_revoked_elsewhere_keeps_its_answer(path: pathlib.Path) -> None:
    """In an operation of a mapping, but not its own."""
    other = Revokable("other", answers=answers.SYSFS)
    other.revoke()
    with mapped(path) as data, pytest.raises(RevokedError) as caught, data.using(), other.using():
        pass
    assert caught.value.node is other
    assert caught.value.errno == errno.EIO


async def test_where_pages_cannot_be_replaced_the_file_is_closed_all_the_same(
    path: pathlib.Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It is told, and nothing is left open."""
    monkeypatch.setattr(adapter._libc, "mmap", lambda *_: None)
    with mapped(path) as data:
        view = data.view()
        fd = data._fd
        with pytest.raises(ExceptionGroup) as caught:
            await data.revoke()
        assert caught.group_contains(OSError, match="do not use views")
        with pytest.raises(OSError, match="Bad file"):
            os.fstat(fd)
        del view


# -- files that get shorter --


async def test_a_truncated_file_is_an_error_of_our_own_access(path: pathlib.Path) -> None:
    """What is left can be used; what is not is named, to read and to write; when it has grown again it is there again."""
    with mapped(path, write=True) as data:
        os.truncate(path, 5000)
        assert data[4990:5000] == TEXT[:10]
        for use in (lambda: data[4999:5001], lambda: data[9999], lambda: data.__setitem__(9000, 1), lambda: data[:]):
            with pytest.raises(OSError, match="the file was truncated: 5000 of 10000 bytes are left") as caught:
                use()
            assert (caught.value.errno, caught.value.filename) == (errno.EFAULT, "file")
        os.truncate(path, 10_000)
        assert data[9999] == 0
        os.truncate(path, 0)
        with pytest.raises(OSError, match="0 of 10000"):
            data[0]
        await data.flush()


CHILD = """
import mmap, os, sys, threading
import numpy
from asyncrevoke.adapters.mapping import Mapping
path, what = sys.argv[1:]
file = open(path, "r+b")
"""

PROGRAMS = {
    # The control: what all of this is to prevent.
    "plain": """
plain = mmap.mmap(file.fileno(), 0)
os.truncate(path, 0)
plain[5000]
""",
    "truncated": """
data = Mapping(file, write=True)
def resize():
    for _ in range(5000):
        os.truncate(path, 0)
        os.truncate(path, 10_000)
    over.set()
over = threading.Event()
threading.Thread(target=resize).start()
refused = 0
while not over.is_set():
    try:
        data[9000:9100] = data[5000:5100]
    except OSError as error:
        assert error.errno == 14, error
        refused += 1
assert refused
""",
    "views": """
import ctypes
for write in (False, True):
    for policy in ("replace", "release"):
        data = Mapping(file, write=write, views=policy)
        view = data.view()
        parts = [view[n : n + 5000] for n in range(0, 5000, 500)]
        arrays = [numpy.frombuffer(part, numpy.uint8) for part in parts]
        arrays += [each[1:100] for each in arrays] + [numpy.frombuffer(view, numpy.uint16).reshape(50, 100).T]
        address = arrays[0].ctypes.data
        data.revoke("gone")
        assert all(bytes(part) == bytes(5000) for part in parts)
        assert all(not each.any() for each in arrays)
        assert ctypes.string_at(address, 100) == bytes(100)
        if write:
            for each in parts + arrays:
                each[:] = each[:]
            parts[0][0] = 1
            assert arrays[0][0] == 1
        del view, parts
        assert arrays[-1].sum() in (0, 1)
        del arrays
""",
    "threads": """
def hammer():
    while not over.is_set():
        for array in list(arrays):
            array[:] = array[::-1]
over, arrays = threading.Event(), []
threads = [threading.Thread(target=hammer) for _ in range(3)]
for each in threads:
    each.start()
for _ in range(500):
    data = Mapping(file, write=True)
    arrays.append(numpy.frombuffer(data.view(), numpy.uint8))
    data[:100] = data[100:200]
    data.revoke("gone")
    del arrays[:-5]
over.set()
""",
}


@pytest.mark.parametrize("what", PROGRAMS)
def test_nobody_dies(path: pathlib.Path, what: str) -> None:
    """Whatever was kept is used after the mapping was taken away, in all threads, while the file shrinks: no signal; but for
    the plain mmap, which shows that there is one to be had.
    """
    command = [sys.executable, "-c", CHILD + PROGRAMS[what], str(path), what]
    done = subprocess.run(command, capture_output=True, text=True, timeout=60)
    assert (done.returncode, done.stderr) == (-signal.SIGBUS if what == "plain" else 0, "")


async def test_nothing_is_written_behind_a_new_end_within_the_page(path: pathlib.Path) -> None:
    """There is memory, but no file."""
    with mapped(path, write=True) as data:
        os.truncate(path, 5)
        with pytest.raises(OSError, match="truncated: 5 of 10000 bytes are left") as caught:
            data[4:8] = b"text"
        assert caught.value.errno == errno.EFAULT
        assert data[:5] == TEXT[:5]


# -- who holds it --

kept: object = None


class Keeper:
    """Something with an attribute."""

    def __init__(self, thing: object) -> None:
        self.thing = thing


async def test_holders_are_named_with_what_they_keep(path: pathlib.Path) -> None:
    """A variable, a global, an attribute, a container, a coroutine that waits; views, slices and arrays; and nobody."""
    global kept  # noqa: PLW0603
    with mapped(path) as data:
        assert data.holders() == []

        async def waits(view: memoryview) -> None:
            await anyio.sleep_forever()
            del view

        async with anyio.create_task_group() as tasks:
            tasks.start_soon(waits, data.view()[:7])
            await settle()
            kept = data.view()[:8]
            keeper = Keeper(data.view()[:9])
            box = [np.frombuffer(data.view(), np.uint8)[:10]]
            table = {"array": np.frombuffer(data.view(), np.uint8)[:12]}
            local = data.view()[:11]
            found = [str(each) for each in data.holders()]
            for what in (
                "memoryview of 7 bytes in coroutine test_holders_are_named_with_what_they_keep.<locals>.waits, ",
                "memoryview of 8 bytes in 'kept' of module test_mapping",
                "memoryview of 9 bytes in a Keeper",
                "ndarray of 10 bytes in a list",
                ("ndarray of 12 bytes in variable 'table' of ", "ndarray of 12 bytes in 'array' of a dict"),
                "memoryview of 11 bytes in variable 'local' of test_holders_are_named_with_what_they_keep, ",
            ):
                assert any(each.startswith(what) for each in found), (what, found)
            del keeper, box, table, local
            kept = None
            tasks.cancel_scope.cancel()
        assert data.holders() == []


async def test_holders_of_what_was_released_are_named(path: pathlib.Path) -> None:
    """A view that was released, as far as that goes, has no size any more; the array that was made of it is there."""
    with mapped(path, views="release") as data:
        view = data.view()
        array = np.frombuffer(view, np.uint8)
        await data.revoke()
        assert any(str(each).startswith("ndarray of 10000 bytes in variable 'array'") for each in data.holders())
        del view, array


async def test_what_only_a_cycle_keeps_holds_nothing(path: pathlib.Path) -> None:
    """It is garbage that nobody has collected yet."""
    gc.disable()
    try:
        with mapped(path) as data:
            cycle: list[object] = [data.view()]
            cycle.append(cycle)
            del cycle
            assert data.holders() == []
    finally:
        gc.enable()


async def test_a_coroutine_that_runs_is_named_by_its_variable(path: pathlib.Path) -> None:
    """And by that alone."""

    async def keeps() -> list[str]:
        view = data.view()
        found = [str(each) for each in data.holders()]
        del view
        return found

    with mapped(path) as data:
        (found,) = await keeps()
        assert "in variable 'view' of" in found
