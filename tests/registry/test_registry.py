"""Names, generations, keys and paths: the design's section 5, sentence by sentence, and attempts to break it."""

import contextlib
import errno
import gc
import itertools
import os
import pathlib
import random
import stat
import threading
import weakref
from collections.abc import Awaitable, Callable, Iterator
from typing import Any, Literal

import anyio
import anyio.abc
import anyio.lowlevel
import pytest

from asyncrevoke import (
    FdStream,
    Key,
    Name,
    Registry,
    Revocation,
    Revokable,
    RevokableStream,
    RevokeDeadlock,
    RevokedError,
    Tty,
    answers,
    observe,
    places,
    revoke_all,
    revoke_threadsafe,
)
from asyncrevoke._registry import name as _registry
from asyncrevoke.adapters.pty import open_pty
from conftest import BACKENDS, settle

pytestmark = pytest.mark.anyio

Policy = Literal["next", "refuse", "queue"]
policies = pytest.mark.parametrize("policy", ["next", "refuse", "queue"])


class Slow:
    """A release or a hang-up that ends when told to."""

    def __init__(self) -> None:
        self.began = 0
        self.go = anyio.Event()

    async def __call__(self, *_: object) -> None:
        self.began += 1
        await self.go.wait()


class Parked:
    """An operation in a task of its own, until it is kicked or told to leave."""

    def __init__(self, tasks: anyio.abc.TaskGroup, node: Revokable) -> None:
        self.outcome: Exception | None = None
        self.leave = anyio.Event()
        self.left = anyio.Event()
        self._node = node
        tasks.start_soon(self._work)

    async def _work(self) -> None:
        try:
            with self._node.using():
                await self.leave.wait()
        except Exception as exc:  # noqa: BLE001  # the test compares it
            self.outcome = exc
        self.left.set()


@contextlib.contextmanager
def other_thread() -> Iterator[Callable[[Callable[[], object]], object]]:
    """Call something in another thread, and have here what it returns or raises."""

    def call(function: Callable[[], object]) -> object:
        found: list[object] = []

        def run() -> None:
            try:
                found.append(function())
            except BaseException as exc:  # noqa: BLE001  # raised here
                found.append(exc)

        thread = threading.Thread(target=run)
        thread.start()
        thread.join()
        if isinstance(found[0], BaseException):
            raise found[0]
        return found[0]

    yield call


class Silent(anyio.abc.ByteStream):
    """A device that never says anything."""

    async def receive(self, max_bytes: int = 65536) -> bytes:
        raise await self._park(max_bytes)

    async def send(self, item: bytes) -> None:
        raise await self._park(len(item))

    async def _park(self, _: int) -> BaseException:
        await anyio.Event().wait()
        return AssertionError("it was told to go on")

    async def send_eof(self) -> None:
        pass

    async def aclose(self) -> None:
        await anyio.lowlevel.checkpoint()


# -- keys: all the ways to use one. Each is let in, and leaves; or raises RevokedError. --


async def use_open(key: Revokable) -> None:
    await key.open("file").aclose()


async def use_using(key: Revokable) -> None:
    with key.using():
        await anyio.lowlevel.checkpoint()


async def use_idle(key: Revokable) -> None:
    with key.using(idle=True):
        await anyio.lowlevel.checkpoint()


async def use_start_using(key: Revokable) -> None:
    if not key.start_using():
        raise RevokedError(key)
    await anyio.lowlevel.checkpoint()
    key.stop_using()


async def use_iterate(key: Revokable) -> None:
    async def one() -> Any:
        yield 1

    assert [item async for item in key.iterate(one())] == [1]


async def use_opening(key: Revokable) -> None:
    async with key.opening("file") as file:
        await anyio.lowlevel.checkpoint()
    await file.aclose()


async def use_also(key: Revokable) -> None:
    await Revokable("pty").open("file", also=[key]).aclose()


async def use_also_opening(key: Revokable) -> None:
    async with Revokable("pty").opening("file", also=[key]) as file:
        await anyio.lowlevel.checkpoint()
    await file.aclose()


async def use_stream(key: Revokable) -> None:
    await RevokableStream(Silent(), key).aclose()


async def use_also_stream(key: Revokable) -> None:
    ours, theirs = os.pipe()
    os.close(theirs)
    try:
        stream = FdStream(ours, Revokable("pty"), also=[key])
    except Exception:
        os.close(ours)
        raise
    await stream.aclose()


ways = pytest.mark.parametrize(
    "use",
    [
        use_open,
        use_using,
        use_idle,
        use_start_using,
        use_iterate,
        use_opening,
        use_also,
        use_also_opening,
        use_stream,
        use_also_stream,
    ],
    ids=lambda use: use.__name__[4:],
)
Use = Callable[[Revokable], Awaitable[None]]


def test_a_key_is_a_path_in_the_tree() -> None:
    """Each part of a key is a node, the child of the part before; one string is a path of one part."""
    live = Registry()
    token = live["alice", "token7"]
    assert token.parent is live["alice"]
    assert live["alice"].parent is live.root
    assert live[("alice",)] is live["alice"]
    assert token.name == "token7"
    assert token.path == "alice/token7"


def test_a_key_is_made_once_and_then_got() -> None:
    """As long as somebody holds or uses it, a key leads to the same node."""
    live = Registry()
    token = live["alice", "token7"]
    assert live["alice", "token7"] is token
    file = live["bob"].open()
    assert live["bob"] is file.parent
    assert live["bob", "token7"] is not token


@pytest.mark.parametrize("bad", [3, None, (), ["alice"], {"alice"}, ("alice", 3), b"alice", 1.5], ids=repr)
def test_a_bad_key_is_named_in_the_error(bad: Any) -> None:
    """What is not one string or several is a TypeError that shows it."""
    live = Registry()
    with pytest.raises(TypeError) as caught:
        live[bad]
    assert f"{bad!r} is not a key" in str(caught.value)


def test_nothing_is_no_key_to_revoke() -> None:
    """`revoke()` without anything is an error and does not take away all there is."""
    live = Registry()
    file = live["alice"].open()
    with pytest.raises(TypeError, match="is not a key"):
        live.revoke()
    assert not file.revoked


def test_a_key_that_was_only_looked_up_is_dropped() -> None:
    """To look does not add anything: the node goes with the last reference, at once and without the collector."""
    live = Registry()
    gc.disable()
    try:
        known = weakref.ref(live["alice", "token7"])
        assert known() is None
    finally:
        gc.enable()
    assert list(live) == []
    assert live.root.in_use == 0


@ways
async def test_a_key_is_dropped_after(use: Use) -> None:
    """When its last user has left, neither the key nor those above it are in the tree, nor kept alive."""
    live = Registry()
    await use(live["alice", "token7"])
    assert live.root.in_use == 0
    assert list(live) == []
    for path in ("alice", ("alice", "token7")):
        before = weakref.ref(live[path])
        gc.collect()
        assert before() is None, "it is still held by what is over"


@ways
async def test_a_key_that_is_held_can_be_used_again_after(use: Use) -> None:
    """A node that was dropped from the tree comes back to it with its next user, and is found and revoked as before."""
    live = Registry()
    token = live["alice", "token7"]
    for _ in range(2):
        await use(token)
        assert ("alice", "token7") not in live
    file = token.open()
    assert live["alice", "token7"] is token
    assert set(live) == {("alice",), ("alice", "token7")}
    await use(token)
    assert token.in_use == 1
    await live.revoke("alice")
    assert file.released


@ways
async def test_an_error_inside_leaves_no_key(use: Use) -> None:
    """An operation that is refused leaves nothing in the tree either."""
    live = Registry()
    token = live["alice", "token7"]
    live["alice"].open()
    await live.revoke("alice")
    with contextlib.suppress(RevokedError):
        await use(token)
    assert live.root.in_use == 0
    assert list(live) == []


async def test_an_opening_that_fails_leaves_no_key() -> None:
    """Neither the key it was opened on nor the further one remains, and the release has run."""
    live = Registry()
    released = []
    with pytest.raises(ZeroDivisionError):
        async with live["alice"].opening("file", also=[live["bob", "token7"]]) as file:
            file.release = lambda: released.append(file)
            raise ZeroDivisionError
    assert released == [file]
    assert live.root.in_use == 0
    assert list(live) == []


def test_a_hundred_thousand_failed_logins_leave_nothing() -> None:
    """No key, no weak reference and no child of the root remains of users who came to nothing, without the collector."""
    live = Registry()
    gc.collect()
    before = sum(type(each) is Key for each in gc.get_objects())
    gc.disable()
    try:
        for number in range(100_000):
            key = live[f"mallory{number}", "password"]
            match number % 4:
                case 0:
                    assert key.start_using()
                    key.stop_using()
                case 1:
                    with key.using():
                        pass
                case 2:
                    assert key not in live
        del key
        assert sum(type(each) is Key for each in gc.get_objects()) == before
    finally:
        gc.enable()
    for number in range(10_000):
        live[f"mallory{number}"].open().close()
    gc.collect()
    assert sum(type(each) is Key for each in gc.get_objects()) == before
    assert len(live._keys) == 0
    assert live.root.in_use == 0
    assert len(live) == 0


@pytest.mark.parametrize("order", list(itertools.permutations(range(4))))
def test_a_key_stays_until_its_last_user_has_left(order: tuple[int, ...]) -> None:
    """Operations, counted operations, files and keys below: the key is there as long as any of them is, in each order."""
    live = Registry()
    key = live["alice"]
    file = key.open()
    below = live["alice", "token7"].open()
    operation = key.using()
    operation.__enter__()
    assert key.start_using()
    leave: list[Callable[[], object]] = [
        file.close,
        below.close,
        key.stop_using,
        lambda: operation.__exit__(None, None, None),
    ]
    for number in order:
        assert "alice" in live
        assert live["alice"] is key
        leave[number]()
    assert "alice" not in live
    assert live.root.in_use == 0


async def test_revoking_a_prefix_takes_all_below_and_nothing_beside() -> None:
    """Files and operations of the key and of every key below it end; a key that only begins with the same letters stays."""
    live = Registry()
    log: list[str] = []

    def opened(*path: str) -> Revokable:
        return live[path].open("file", release=lambda: log.append("/".join(path)))

    taken = [opened("alice"), opened("alice", "t1"), opened("alice", "t1", "tab"), opened("alice", "t2")]
    left = [opened("alice2"), opened("bob"), opened("bob", "alice"), opened("alicia", "t1")]
    async with anyio.create_task_group() as tasks:
        inside = Parked(tasks, live["alice", "t3"])
        beside = Parked(tasks, live["bob", "t3"])
        await settle()
        report = await live.revoke("alice", reason="logged out")
        assert isinstance(inside.outcome, RevokedError)
        assert inside.outcome.in_flight
        assert inside.outcome.reason == "logged out"
        assert inside.outcome.name == "alice/t3"
        assert report.kicked == 1
        assert beside.outcome is None
        assert not beside.left.is_set()
        beside.leave.set()
    assert all(file.released and file.reason == "logged out" for file in taken)
    assert sorted(log) == ["alice", "alice/t1", "alice/t1/tab", "alice/t2"]
    assert not any(file.revoked for file in left)
    assert set(live) == {("alice2",), ("bob",), ("bob", "alice"), ("alicia",), ("alicia", "t1")}


async def test_get_finds_a_key_until_its_last_user_is_gone() -> None:
    """`get` gives no node of a key that nobody uses, and makes none; one that was revoked is found until all have left."""
    live = Registry()
    assert live.get("alice", "token7") is None
    assert not live._keys
    node = live["alice", "token7"]
    node.start_using()
    assert live.get("alice", "token7") is node
    assert live.get("alice") is node.parent
    live.revoke("alice")
    for path in ("alice",), ("alice", "token7"), ("alice",), ("alice", "token7"):
        assert not live["alice", "token7"].in_use  # another node, which nobody uses
        found = live.get(*path)
        assert found is not None
        act = found.revoke()
        assert not act.done()
        del found, act
        gc.collect()
    node.stop_using()
    del node
    gc.collect()
    assert live.get("alice", "token7") is None


async def test_revoking_a_whole_key_leaves_its_siblings() -> None:
    """`revoke("alice", "t1")` is that token and what is below it, not alice."""
    live = Registry()
    files = {path: live[path].open() for path in [("alice",), ("alice", "t1"), ("alice", "t1", "tab"), ("alice", "t2")]}
    await live.revoke("alice", "t1")
    assert {path for path, file in files.items() if file.released} == {("alice", "t1"), ("alice", "t1", "tab")}
    assert set(live) == {("alice",), ("alice", "t2")}


@pytest.mark.parametrize("draining", ["release", "user"])
async def test_alice_may_log_in_again_while_the_old_one_drains(draining: str) -> None:
    """A key revoked is a generation ended: the next is there at once, beside the old one, and outlives its end."""
    live = Registry()
    slow = Slow()
    old = live["alice", "t1"]
    file = old.open("file", release=slow if draining == "release" else None)
    assert draining == "release" or file.start_using()
    act = live.revoke("alice", reason="logged out")
    assert live.draining("alice", "t1") == [old]
    new = live["alice", "t1"]
    again = new.open("file")
    await settle()
    assert not act.done()
    assert new is not old
    assert new.parent is live["alice"] is not old.parent
    assert not again.revoked
    assert set(live) == {("alice",), ("alice", "t1")}
    with pytest.raises(RevokedError):
        old.open()
    if draining == "release":
        slow.go.set()
    else:
        file.stop_using()
    await act
    assert live.draining("alice", "t1") == []
    assert not again.revoked
    assert live["alice", "t1"] is new
    await live.revoke("alice")
    assert again.released
    assert live.root.in_use == 0


@pytest.mark.parametrize("key", [("alice", "t1"), ("alice",)])
async def test_a_key_revoked_again_is_done_when_the_first_is_gone(key: tuple[str, ...]) -> None:
    """Who asks twice, or a third time, is told of success when nothing of that name is left, however often it began anew."""
    live = Registry()
    slow = Slow()
    live["alice", "t1"].open("file", release=slow)
    first = live[key].revoke("logged out")
    live["alice", "t1"].open("file", release=slow)
    live[key].revoke("and again")
    asked = [live[key].revoke("once more"), live.revoke(*key)]
    await settle()
    assert not any(act.done() for act in asked)
    slow.go.set()
    for act in asked:
        await act
    assert first.done()
    assert slow.began == 2
    gc.collect()
    assert not live._draining


def test_errors_tell_which_generation_of_a_key_it_was() -> None:
    """Each revocation of a key begins another number, from 1 on; an error has its own in `generation` and in its text."""
    live = Registry()
    numbers = []
    for _ in range(3):
        file = live["alice"].open("file")
        live.revoke("alice", reason="logged out")
        with pytest.raises(RevokedError, match=r"'alice/file'.*logged out") as caught, file.using():
            pass
        assert caught.value.generation == file.generation
        assert f"(generation {file.generation})" in str(caught.value)
        numbers.append(caught.value.generation)
    assert numbers == [1, 2, 3]


def revoke_unknown(live: Registry) -> Revocation:
    return live.revoke("alice")


def revoke_unknown_below_used(live: Registry) -> Revocation:
    live["alice"].open()
    return live.revoke("alice", "t1")


def revoke_beside_used(live: Registry) -> Revocation:
    live["bob"].open()
    return live.revoke("alice", "t1")


def revoke_dropped(live: Registry) -> Revocation:
    live["alice"].open().close()
    return live.revoke("alice")


def revoke_twice(live: Registry) -> Revocation:
    live.revoke("alice")
    return live.revoke("alice")


def revoke_node(live: Registry) -> Revocation:
    return live["alice", "t1"].revoke()


def close_node(live: Registry) -> Revocation:
    return live["alice", "t1"].close()


@pytest.mark.parametrize(
    "revoke",
    [
        revoke_unknown,
        revoke_unknown_below_used,
        revoke_beside_used,
        revoke_dropped,
        revoke_twice,
        revoke_node,
        close_node,
    ],
)
async def test_revoking_an_unused_key_is_complete_at_once(revoke: Callable[[Registry], Revocation]) -> None:
    """There is nobody to wait for, and nothing remains of it; whoever comes next may log in."""
    live = Registry()
    act = revoke(live)
    assert act.done()
    assert (await act).remaining == 0
    assert not [path for path in live if path == ("alice", "t1")]
    file = live["alice", "t1"].open()
    assert not file.revoked


def revoke_parent(live: Registry) -> None:
    live.revoke("alice", reason="logged out")


def revoke_key_node(live: Registry) -> None:
    live["alice"].revoke("logged out")


def revoke_root(live: Registry) -> None:
    live.root.revoke("logged out")


def close_parent(live: Registry) -> None:
    live["alice"].close()


def close_root(live: Registry) -> None:
    live.root.close()


above = pytest.mark.parametrize("end", [revoke_parent, revoke_key_node, revoke_root, close_parent, close_root])


@ways
@above
@pytest.mark.parametrize("parent_used", [False, True])
async def test_a_key_looked_up_before_its_parent_was_revoked_refuses(
    use: Use, end: Callable[[Registry], None], *, parent_used: bool
) -> None:
    """I1: no hole by laziness. A node that nobody used yet is dead with those above it, whichever way it is used."""
    live = Registry()
    token = live["alice", "token7", "tab"]
    if parent_used:
        live["alice"].open()
    end(live)
    for _ in range(2):
        with pytest.raises(RevokedError) as caught:
            await use(token)
        assert not caught.value.in_flight
        assert caught.value.generation is not None or live.root.revoked
        if not isinstance(caught.value.node, Key) or use is not use_start_using:
            assert caught.value.reason in ("logged out", "closed by its owner")
    if not live.root.revoked:
        await use(live["alice", "token7", "tab"])


@above
async def test_a_key_below_a_revoked_one_says_so(end: Callable[[Registry], None]) -> None:
    """`revoked` tells whether it refuses, and `reason` why, also where nobody used it."""
    live = Registry()
    token = live["alice", "token7"]
    end(live)
    assert not token.start_using()
    assert token.revoked
    assert token.reason in ("logged out", "closed by its owner")


@above
@pytest.mark.parametrize("by", ["session", "key"])
@pytest.mark.parametrize("draining", [False, True])
async def test_a_further_key_revoked_from_above_during_an_opening_fails_it(
    end: Callable[[Registry], None], by: str, *, draining: bool
) -> None:
    """I1: what was being opened on a token that is dead by now is released, once, and never handed out; nobody hangs."""
    live = Registry()
    owner = Revokable("pty") if by == "session" else Registry()["pty"]
    token, other = live["alice", "token7"], live["alice", "token8"]
    released = []
    file = live["alice"].open()
    if draining:
        file.start_using()
    else:
        file.close()
    with pytest.raises(RevokedError):
        async with owner.opening("file", also=[token, other]) as opened:
            opened.release = lambda: released.append(1)
            end(live)
    assert released == [1]
    assert opened.revoked
    assert opened.released
    assert owner.in_use == 0
    if draining:
        file.stop_using()
    with anyio.fail_after(5):
        await live.root.revoke()
    assert live.root.in_use == 0


async def test_a_further_key_is_tested_when_the_opening_begins() -> None:
    """No device is opened at all for a token that was dead before."""
    live = Registry()
    token = live["alice", "token7"]
    live.revoke("alice")
    with pytest.raises(RevokedError):
        async with Revokable("pty").opening("file", also=[token]) as opened:
            assert opened.revoked, "it was to be opened for a token that is dead"
            raise RevokedError(opened)


@pytest.mark.parametrize("first", ["session", "token", "user", "itself"])
async def test_a_stream_belongs_to_its_terminal_and_to_its_token(first: str) -> None:
    """Whichever goes first takes it; then nothing of it remains at the other."""
    live = Registry()
    async with open_pty(["cat"]) as session:
        alice = session.open("alice", also=[live["alice", "token7"]])
        bob = session.open("bob", also=[live["bob", "token1"]])
        assert set(live) == {("alice",), ("alice", "token7"), ("bob",), ("bob", "token1")}
        act = {
            "session": lambda: session.revoke("bye"),
            "token": lambda: live.revoke("alice", "token7", reason="bye"),
            "user": lambda: live.revoke("alice", reason="bye"),
            "itself": lambda: alice.revoke("bye"),
        }[first]()
        with pytest.raises(RevokedError, match="bye"):
            await alice.receive()
        await act
        assert ("alice", "token7") not in live
        assert ("alice",) not in live
        assert (("bob", "token1") in live) == (first != "session")
        assert session.clients == ([] if first == "session" else [bob.handle])
        if first != "session":
            await bob.send(b"still here\n")
            received = b""
            while b"still here" not in received:
                received += await bob.receive()
        session.open("alice", also=[live["alice", "token7"]]) if first != "session" else None
    assert list(live) == []


@pytest.mark.parametrize("twice", ["parent", "also"])
async def test_the_same_key_twice_is_once(twice: str) -> None:
    """A file opened on a key that is named again as a further parent is released as any other."""
    live = Registry()
    owner = live["alice"] if twice == "parent" else Revokable("pty")
    file = owner.open("file", also=[live["alice"], live["alice"]])
    act = live.revoke("alice")
    with anyio.fail_after(5):
        await act
    assert file.released
    assert owner.in_use == 0
    assert live.root.in_use == 0


def test_a_file_may_be_on_a_key_and_on_one_below_it() -> None:
    """Both are dropped with it, whichever way it goes."""
    live = Registry()
    for end in (Revokable.close, Revokable.revoke):
        for paths in ((("a",), ("a", "b")), (("a", "b"), ("a",)), (("a", "b", "c"), ("a",))):
            end(live[paths[0]].open(also=[live[paths[1]]]))
            assert live.root.in_use == 0
            assert list(live) == []


def test_the_registry_lists_the_keys_in_use() -> None:
    """`in`, `len` and iteration agree, and know neither what was only looked up nor what was revoked."""
    live = Registry()
    assert len(live) == 0
    held = live["held", "by", "nobody"]
    file = live["alice", "token7"].open()
    live.name("ttyUSB0").open()
    assert sorted(live) == [("alice",), ("alice", "token7")]
    assert len(live) == 2
    assert live.size == 5
    assert "alice" in live
    assert ("alice",) in live
    assert ("alice", "token7") in live
    assert "token7" not in live
    assert ("held", "by", "nobody") not in live
    assert "ttyUSB0" not in live
    for odd in (3, None, ["alice"], (), ("alice", 3), held):
        assert odd not in live
    assert file.start_using()
    live.revoke("alice")
    assert not file.released
    assert list(live) == []
    assert "alice" not in live
    file.stop_using()


async def test_observers_hear_of_a_key_that_nobody_uses() -> None:
    """It was released, may be used again, and may be revoked. Who observes it goes on, and who no longer does hears nothing."""
    live = Registry("live")
    alice, bob = live["alice", "t1"], live["bob", "t2"]
    told: list[tuple[Revokable, str]] = []
    heard: list[str] = []
    async with anyio.create_task_group() as own:
        await own.start(observe, alice, lambda event: heard.append(event.what))
        async with anyio.create_task_group() as above:
            await above.start(observe, live.root, lambda event: told.append((event.node, event.what)))
            with alice.using():
                pass
            await bob.revoke()
            above.cancel_scope.cancel()
        assert told == [
            (alice.parent, "opened"),
            (alice, "opened"),
            (alice, "released"),
            (alice.parent, "released"),
            (bob, "revoked"),
        ]
        with alice.using():
            pass
        await alice.revoke()
        own.cancel_scope.cancel()
    assert len(told) == 5
    assert heard == ["opened", "released", "opened", "released", "revoked"]


def test_the_registry_may_be_changed_while_it_is_listed() -> None:
    """Iteration is over a snapshot."""
    live = Registry()
    for number in range(100):
        live[f"user{number}"].open()
    for (user,) in live:
        live.revoke(user)
        live[f"new{user}"].open()
    assert len(live) == 100
    assert all(user.startswith("newuser") for (user,) in live)


def test_registries_share_nothing() -> None:
    """The same key and the same name in another registry are others."""
    one, two = Registry("one"), Registry("two")
    files = one["alice"].open(), two["alice"].open()
    names = one.name("ttyUSB0", "/dev/null"), two.name("ttyUSB0", "/dev/null")
    handles = names[0].open(), names[1].open()
    one.revoke("alice")
    one.revoke("/dev/null")
    assert [each.revoked for each in (*files, *handles)] == [True, False, True, False]
    with pytest.raises(LookupError):
        Registry().find("/dev/null")


def test_a_registry_may_go_from_one_loop_to_the_next() -> None:
    """What is left of one run does not disturb another: keys, held nodes and names work in the next loop."""
    live = Registry()
    held = live["alice", "token7"]
    name = live.name("tty")

    async def run() -> None:
        async with anyio.create_task_group() as tasks:
            parked = [Parked(tasks, held), Parked(tasks, live["bob"].open()), Parked(tasks, name.open())]
            await settle()
            await live.revoke("bob")
            await live.revoke("tty")
            parked[0].leave.set()
        assert [type(each.outcome) for each in parked] == [type(None), RevokedError, RevokedError]
        assert list(live) == []

    for each in BACKENDS:
        backend, options = each.values[0]  # type: ignore[misc]
        anyio.run(run, backend=backend, backend_options=options)
    assert name.current.generation == len(BACKENDS)


def test_two_registries_work_in_two_threads_at_once() -> None:
    """There is no global state: each lives in the loop of its own thread."""
    both = threading.Barrier(2)
    failed: list[BaseException] = []

    async def run() -> None:
        live = Registry()
        async with anyio.create_task_group() as tasks:
            parked = Parked(tasks, live["alice"])
            await settle()
            both.wait(5)
            await live.revoke("alice")
            assert isinstance(parked.outcome, RevokedError)
        assert list(live) == []

    def main() -> None:
        try:
            anyio.run(run)
        except BaseException as exc:  # noqa: BLE001  # raised below
            failed.append(exc)

    threads = [threading.Thread(target=main) for _ in range(2)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert failed == []


@pytest.mark.parametrize("path", [("alice",), ("alice", "token7")])
async def test_a_key_is_revoked_from_its_own_thread_only(path: tuple[str, ...]) -> None:
    """From another thread it is a RuntimeError before anything has changed; `revoke_threadsafe` is for that."""
    live = Registry()
    file = live["alice", "token7"].open()
    with other_thread() as call:
        with pytest.raises(RuntimeError, match="revoke_threadsafe"):
            call(lambda: live.revoke(*path))
        assert not file.revoked
        future = call(lambda: revoke_threadsafe(live[path]))
        assert future is not None
    with anyio.fail_after(5):
        while not file.released:
            await anyio.sleep(0.001)


async def test_a_key_that_nobody_uses_does_not_make_another_thread_its_own() -> None:
    """To revoke an unused key of a tree that lives in this loop is refused elsewhere, too."""
    live = Registry()
    live["bob"].open()
    with other_thread() as call, pytest.raises(RuntimeError, match="revoke_threadsafe"):
        call(lambda: live.revoke("alice"))


async def test_keys_of_three_thousand_parts() -> None:
    """Depth is not limited by recursion: opened, listed, refused by laziness, revoked from the top, dropped."""
    live = Registry()
    path = tuple(f"p{number}" for number in range(3_000))
    released = []
    file = live[path].open("file", release=lambda: released.append(1))
    assert path in live
    assert len(live) == 3_000
    assert file.path.endswith("p2998/p2999/file")
    assert file.generation is not None
    held = live[(*path, "below")]
    act = live.revoke("p0")
    assert file.revoked
    assert not held.start_using()
    with pytest.raises(RevokedError):
        held.open()
    await act
    assert released == [1]
    await use_using(live[path])
    del act, held, file
    gc.collect()
    assert list(live) == []
    assert live.root.in_use == 0
    assert len(live._keys) == 0


@pytest.mark.parametrize("place", ["release", "at_close", "async release", "stop_using"])
def test_a_user_who_comes_as_the_last_one_leaves_is_not_lost(place: str) -> None:
    """A hook that opens on the key while it is being dropped: the key is found, listed, and revoked with its file."""
    live = Registry()
    opened: list[Revokable] = []

    def reopen() -> None:
        opened.append(live["alice", "token7"].open("second", release=lambda: log.append("second")))

    async def slow_reopen() -> None:
        await anyio.lowlevel.checkpoint()
        reopen()

    log: list[str] = []

    async def run() -> None:
        key = live["alice", "token7"]
        if place == "stop_using":
            key.start_using()
            reopen()
            key.stop_using()
        else:
            hook: Any = slow_reopen if place == "async release" else reopen
            file = key.open("first", **{place.removeprefix("async "): hook})
            del key
            await file.close()
        assert len(opened) == 1
        assert set(live) == {("alice",), ("alice", "token7")}
        assert live["alice", "token7"] is opened[0].parent
        assert live.root.in_use == 1
        await live.revoke("alice")
        assert log == ["second"]
        assert live.root.in_use == 0

    anyio.run(run)


async def test_a_login_from_the_kick_of_the_old_one_is_the_next_generation() -> None:
    """Hooks run when all below refuses: what they open on the key is new, and the revocation does not wait for it."""
    live = Registry()
    opened: list[Revokable] = []
    kicked: list[Revokable] = []

    def kick(node: Revokable) -> None:
        kicked.append(node)
        with pytest.raises(RevokedError):
            old.open()
        opened.append(live["alice", "token7"].open())

    old = live["alice", "token7"]
    files = [old.open("one", kick=kick), old.open("two", kick=kick)]
    with anyio.fail_after(5):
        await live.revoke("alice")
    assert kicked == files
    assert not any(file.revoked for file in opened)
    assert {id(file.parent) for file in opened} == {id(live["alice", "token7"])}
    assert live["alice", "token7"] is not old


async def test_a_key_is_not_made_anew_under_an_operation() -> None:
    """While a use is inside, lookups and users who come and go do not replace the node: the kick reaches it."""
    live = Registry()
    async with anyio.create_task_group() as tasks:
        parked = Parked(tasks, live["alice", "token7"])
        await settle()
        for _ in range(3):
            gc.collect()
            for path in (("alice",), ("alice", "token7"), ("alice", "other")):
                await use_open(live[path])
                await use_using(live[path])
                await use_start_using(live[path])
        assert ("alice", "token7") in live
        await live.revoke("alice")
        assert isinstance(parked.outcome, RevokedError)
    assert list(live) == []


async def test_the_deadlock_of_revoking_ones_own_key_is_refused() -> None:
    """To await the revocation of a key from inside an operation on a key below it raises at once."""
    live = Registry()
    with pytest.raises(RevokedError), live["alice", "token7"].using():
        act = live.revoke("alice")
        with pytest.raises(RevokeDeadlock):
            await act
        await anyio.lowlevel.checkpoint()
    await act


async def test_what_owes_a_close_does_not_keep_its_key() -> None:
    """I4: the key goes at the release; the owner's close is counted, waited for by `wait_closed`, and run once."""
    live = Registry()
    closed: list[int] = []
    file = live["alice", "token7"].open("file", at_close=lambda: closed.append(1))
    assert (live.root.unclosed, live["alice"].unclosed) == (1, 1)
    act = live.revoke("alice")
    assert (await act).unclosed == 1
    assert list(live) == []
    assert closed == []
    assert live["alice"].unclosed == 0, "that is another alice"
    again = live["alice", "token7"].open("file")
    async with anyio.create_task_group() as tasks:
        tasks.start_soon(act.wait_closed)
        await settle()
        file.close()
    assert closed == [1]
    assert live.root.unclosed == 0
    assert not again.revoked
    again.close()
    gone = weakref.ref(file.parent or again)
    del file, act, again
    gc.collect()
    assert gone() is None


class Model:
    """Keys and files as they should be, beside a registry that is driven at random."""

    paths = tuple(path for length in (1, 2, 3) for path in itertools.product("ab", repeat=length))

    def __init__(self, seed: int) -> None:
        self.random = random.Random(seed)
        self.live = Registry()
        self.held: list[tuple[tuple[str, ...], Revokable, bool]] = []  # nodes, and whether they are alive
        self.files: list[tuple[set[tuple[str, ...]], Revokable, bool]] = []
        # Operations, and how many parts of their path are live: those above what is revoked wait for it to drain.
        self.uses: list[tuple[tuple[str, ...], Revokable, int]] = []

    def step(self) -> None:
        self.random.choice(
            [self.look, self.open, self.open, self.use, self.leave, self.close, self.drop, self.revoke]
        )()
        self.check()

    def node(self) -> tuple[tuple[str, ...], Revokable, bool]:
        if self.held and self.random.random() < 0.5:
            return self.random.choice(self.held)
        path = self.random.choice(self.paths)
        return path, self.live[path], True

    def look(self) -> None:
        self.held.append(self.node())

    def drop(self) -> None:
        if self.held:
            self.held.pop(self.random.randrange(len(self.held)))

    def open(self) -> None:
        path, node, alive = self.node()
        further, also, also_alive = self.node()
        if alive and also_alive:
            parents = [also] if also is not node else []
            self.files.append(({path, further}, node.open(also=parents), True))
        else:
            with pytest.raises(RevokedError):
                node.open(also=[also])

    def close(self) -> None:
        if self.files:
            self.files.pop(self.random.randrange(len(self.files)))[1].close()

    def use(self) -> None:
        path, node, alive = self.node()
        assert node.start_using() == alive
        if alive:
            self.uses.append((path, node, len(path)))

    def leave(self) -> None:
        if self.uses:
            self.uses.pop(self.random.randrange(len(self.uses)))[1].stop_using()

    def revoke(self) -> None:
        path = self.random.choice(self.paths)
        self.live.revoke(*path)

        def below(*paths: tuple[str, ...]) -> bool:
            return any(each[: len(path)] == path for each in paths)

        self.held = [(each, node, alive and not below(each)) for each, node, alive in self.held]
        self.uses = [(each, node, min(live, len(path) - 1) if below(each) else live) for each, node, live in self.uses]
        self.files = [(each, file, alive and not below(*each)) for each, file, alive in self.files]

    def check(self) -> None:
        used = [path for paths, _, alive in self.files if alive for path in paths]
        used += [path[:live] for path, _, live in self.uses]
        expected = {path[:end] for path in used for end in range(1, len(path) + 1)}
        assert set(self.live) == expected
        for _, file, alive in self.files:
            assert file.revoked != alive
            assert file.released != alive
        for path, node, alive in self.held:
            if alive:
                assert self.live[path] is node


@pytest.mark.parametrize("seed", range(200))
def test_any_order_of_looking_opening_and_revoking(seed: int) -> None:
    """A model of keys and files says the same as the registry, after every one of 60 random steps; and nothing remains."""
    model = Model(seed)
    for _ in range(60):
        model.step()
    while model.files:
        model.close()
    while model.uses:
        model.leave()
    model.held.clear()
    gc.collect()
    assert model.live.root.in_use == 0
    assert len(model.live._keys) == 0


# -- names --


async def test_a_hangup_ends_the_generation_and_the_name_stays() -> None:
    """All open under the name go; the next open begins the next generation."""
    name = Name("tty")
    assert name.current.generation == 0
    old = [name.open("alice"), name.open("bob")]
    assert {file.parent for file in old} == {name.current}
    assert [file.generation for file in old] == [1, 1]
    async with anyio.create_task_group() as tasks:
        parked = Parked(tasks, old[0])
        await settle()
        await name.hangup("carrier lost")
    assert isinstance(parked.outcome, RevokedError)
    assert (parked.outcome.generation, parked.outcome.reason) == (1, "carrier lost")
    assert all(file.released for file in old)
    assert not name.revoked
    new = name.open("alice")
    assert new.generation == name.current.generation == 2
    assert not new.revoked
    with pytest.raises(RevokedError, match=r"'tty/bob' \(generation 1\) was revoked: carrier lost"), old[1].using():
        pass


async def test_a_hangup_of_nothing_is_complete_at_once() -> None:
    """Before the first open and after the last hang-up there is no generation, and no release to run."""
    told: list[int] = []
    name = Name("tty", hangup=told.append)
    assert name.hangup().done()
    assert told == []
    name.open()
    name.hangup()
    await name.hangup()
    assert told == [0]
    assert name.open().generation == 2


async def test_revoking_the_name_means_that_it_is_gone() -> None:
    """Every generation, every pinned handle: then the name's own release, once; nothing is opened any more."""
    log: list[str] = []
    slow = Slow()
    name = Name("card", release=lambda: log.append("card"), hangup=lambda _: log.append("generation"))
    draining = name.open("draining", release=slow)
    name.hangup()
    files = [name.open("file"), name.pin("console"), draining]
    act = name.revoke("unplugged")
    for again in (name.open, name.pin):
        with pytest.raises(RevokedError, match="'card' was revoked: unplugged"):
            again()
    with pytest.raises(RevokedError, match="unplugged"):
        async with name.opening():
            pass
    await settle()
    assert not act.done()
    assert log == ["generation"]
    slow.go.set()
    await act
    assert all(file.released for file in files)
    assert log == ["generation", "generation", "card"]
    assert name.hangup().done()
    assert name.in_use == 0


@policies
@pytest.mark.parametrize("draining", ["release", "hangup", "user"])
async def test_an_open_while_the_old_generation_drains(policy: Policy, draining: str) -> None:
    """RFC, spot 5: "next" begins beside it, the others refuse until it is released; then all begin the next one."""
    slow = Slow()
    name = Name("tty", while_draining=policy, hangup=slow if draining == "hangup" else None)
    old = name.open("old", release=slow if draining == "release" else None)
    assert draining != "user" or old.start_using()
    act = name.hangup("gone")
    await settle()
    assert not act.done()
    assert old.released == (draining == "hangup"), "it is over only when the generation is released"
    if policy == "next":
        assert name.open().generation == 2
        async with name.opening() as file:
            pass
        assert file.generation == 2
    else:
        for _ in range(2):
            with pytest.raises(RevokedError, match="gone") as caught:
                name.open()
            assert caught.value.generation == 1
            assert not caught.value.in_flight
    if policy == "refuse":
        with pytest.raises(RevokedError, match="gone"):
            async with name.opening():
                pass
    assert not act.done()
    if draining == "user":
        old.stop_using()
    else:
        slow.go.set()
    await act
    assert name.open().generation == 2
    async with name.opening() as file:
        assert name.current.in_use
    assert file.generation == 2
    slow.go.set()


def test_policies_are_checked() -> None:
    """A policy that is none is named."""
    with pytest.raises(ValueError, match=r"'later'.*'next', 'refuse' or 'queue'"):
        Name("tty", while_draining="later")  # type: ignore[arg-type]


class Queue:
    """Openers of a name, each in a task of its own, and what became of each."""

    def __init__(self, tasks: anyio.abc.TaskGroup, name: Name) -> None:
        self.name = name
        self.opened: list[tuple[str, int | None]] = []
        self.failed: dict[str, BaseException] = {}
        self.scopes: dict[str, anyio.CancelScope] = {}
        self._tasks = tasks

    async def add(self, who: str) -> None:
        self.scopes[who] = anyio.CancelScope()
        self._tasks.start_soon(self._open, who)
        await settle()

    async def _open(self, who: str) -> None:
        with self.scopes[who]:
            try:
                async with self.name.opening(who) as file:
                    self.opened.append((who, file.generation or self.name.current.generation))
            except BaseException as exc:
                self.failed[who] = exc
                if not isinstance(exc, Exception):
                    raise


@pytest.fixture
def slow() -> Slow:
    return Slow()


async def test_the_queue_waits_for_the_release_and_then_opens(anyio_backend_name: str, slow: Slow) -> None:
    """Who comes while it drains waits, as an operation of the name, and opens in the next generation, in order."""
    name = Name("tty", while_draining="queue")
    name.open(release=slow)
    act = name.hangup()
    async with anyio.create_task_group() as tasks:
        queue = Queue(tasks, name)
        for who in "abcde":
            await queue.add(who)
        assert name.in_use == 5 + 1
        assert [user.kind for user in name.users()].count("operation") == 5
        assert queue.opened == []
        slow.go.set()
    assert act.done()
    assert sorted(queue.opened) == [(who, 2) for who in "abcde"]
    if anyio_backend_name == "asyncio":  # trio takes the tasks of one turn in either direction
        assert queue.opened == sorted(queue.opened)
    assert queue.failed == {}
    assert name.in_use == 1


async def test_the_queue_is_bounded(slow: Slow) -> None:
    """One too many is told so at once; a place that was left is free, and those who wait keep theirs."""
    name = Name("tty", while_draining="queue", queue=2)
    name.open(release=slow)
    name.hangup()
    async with anyio.create_task_group() as tasks:
        queue = Queue(tasks, name)
        for who in "abc":
            await queue.add(who)
        assert isinstance(queue.failed.pop("c"), anyio.BusyResourceError)
        queue.scopes["a"].cancel()
        await settle()
        assert isinstance(queue.failed.pop("a"), anyio.get_cancelled_exc_class())
        assert name.in_use == 1 + 1
        await queue.add("d")
        await queue.add("e")
        assert isinstance(queue.failed.pop("e"), anyio.BusyResourceError)
        slow.go.set()
    assert sorted(queue.opened) == [("b", 2), ("d", 2)]
    assert queue.failed == {}


async def test_a_queue_of_none_refuses_everybody(slow: Slow) -> None:
    """With `queue=0` nobody waits; when nothing drains there is no queue to be full."""
    name = Name("tty", while_draining="queue", queue=0)
    async with name.opening(release=slow):
        pass
    name.hangup()
    with pytest.raises(anyio.BusyResourceError):
        async with name.opening():
            pass
    slow.go.set()
    await name.hangup()
    async with name.opening() as file:
        pass
    assert file.generation == 2


async def test_revoking_the_name_kicks_its_queue(slow: Slow) -> None:
    """Who waits is an operation of the name: one clear error, and the revocation does not wait for them."""
    name = Name("tty", while_draining="queue")
    name.open(release=slow)
    name.hangup()
    async with anyio.create_task_group() as tasks:
        queue = Queue(tasks, name)
        for who in "abc":
            await queue.add(who)
        act = name.revoke("unplugged")
        await act.wait_drained()
        await settle()
        assert sorted(queue.failed) == ["a", "b", "c"]
        assert not act.done()
        slow.go.set()
    await act
    assert queue.opened == []
    for error in queue.failed.values():
        assert isinstance(error, RevokedError)
        assert error.node is name
        assert error.in_flight
        assert error.reason == "unplugged"


async def test_revoking_the_name_as_the_release_ends_lets_nobody_through(slow: Slow) -> None:
    """I1: those whom the release has woken, but who have not run yet, do not open on a name that is gone by now."""
    name = Name("tty", while_draining="queue")
    name.open(release=slow)
    act = name.hangup()
    async with anyio.create_task_group() as tasks:
        queue = Queue(tasks, name)
        for who in "ab":
            await queue.add(who)

        async def revoke_first() -> None:
            await act
            name.revoke("unplugged")

        tasks.start_soon(revoke_first)
        await settle()
        slow.go.set()
    assert name.revoked
    assert sorted([*queue.failed, *(who for who, _ in queue.opened)]) == ["a", "b"]
    assert all(isinstance(error, RevokedError) for error in queue.failed.values())
    with anyio.fail_after(5):
        await name.revoke()
    assert name.in_use == 0


async def test_who_waits_in_the_queue_waits_for_every_generation_that_drains_then(slow: Slow) -> None:
    """Hung up again before those who were woken have run: they wait on, and never open in what is dead."""
    name = Name("tty", while_draining="queue", queue=2)
    name.open(release=slow)
    act = name.hangup()
    second = Slow()

    async def overtake() -> None:
        await act
        name.open(release=second)
        name.hangup()

    async with anyio.create_task_group() as tasks:
        tasks.start_soon(overtake)
        await settle()
        queue = Queue(tasks, name)
        await queue.add("a")
        await queue.add("b")
        slow.go.set()
        await settle()
        second.go.set()
    assert queue.failed == {} or all(isinstance(error, RevokedError) for error in queue.failed.values())
    assert {generation for _, generation in queue.opened} <= {2, 3}
    assert len(queue.opened) + len(queue.failed) == 2


async def test_the_queue_waits_for_its_own_generation_only(slow: Slow) -> None:
    """A generation is over when it is released, also where it was hung up together with another that still drains."""
    one, two = Name("one", while_draining="queue"), Name("two")
    first = Slow()
    one.open(release=first)
    two.open(release=slow)
    act = revoke_all([one.current, two.current])
    with anyio.fail_after(5):
        await _queue_for_one_of_two(one, act, first, slow)


async def _queue_for_one_of_two(one: Name, act: Revocation, first: Slow, slow: Slow) -> None:
    async with anyio.create_task_group() as tasks:
        queue = Queue(tasks, one)
        await queue.add("a")
        assert queue.opened == []
        first.go.set()
        await settle()
        opened = list(queue.opened)
        assert one.open().generation == 2, "so it is over"
        assert not act.done()
        slow.go.set()
    assert opened == [("a", 2)]


@pytest.mark.parametrize("place", ["operation", "hangup"])
async def test_who_holds_the_old_generation_cannot_queue_for_the_next(place: str) -> None:
    """It would wait for itself: a deadlock is refused at once, and the generation goes on to its end."""
    caught: list[BaseException] = []

    async def queue_up(_: int = 0) -> None:
        try:
            async with name.opening():
                pass
        except RevokeDeadlock as exc:
            caught.append(exc)

    name = Name("tty", while_draining="queue", hangup=queue_up if place == "hangup" else None, kick=None)
    file = name.open()
    if place == "operation":
        with file.using():
            act = name.hangup()
            await queue_up()
    else:
        act = name.hangup()
    with anyio.fail_after(5):
        await act
    assert len(caught) == 1
    assert name.open().generation == 2


async def test_a_hangup_during_an_opening_fails_it_and_releases_once() -> None:
    """RFC, spot 1: the device that arrives too late belongs to the old generation, and never to the next."""
    name = Name("tty")
    released: list[int] = []
    with pytest.raises(RevokedError) as caught:
        async with name.opening("slow") as file:
            file.release = lambda: released.append(1)
            name.hangup("carrier lost")
            next_one = name.open("next")
    assert caught.value.reason == "carrier lost"
    assert released == [1]
    assert file.released
    assert file.generation == 1
    assert next_one.generation == 2
    assert not next_one.revoked


@pytest.mark.parametrize("pins", [0, 1, 3])
async def test_pinned_handles_survive_and_are_counted(pins: int) -> None:
    """RFC, spot 8: a hang-up does not touch them nor kick their users, and its release is told their number."""
    told: list[int] = []
    name = Name("tty", hangup=told.append)
    consoles = [name.pin(f"console{number}") for number in range(pins)]
    for generation in (1, 2):
        file = name.open()
        async with anyio.create_task_group() as tasks:
            parked = [Parked(tasks, console) for console in consoles]
            await settle()
            await name.hangup()
            assert file.released
            assert told == [pins] * generation
            assert name.pinned == pins
            for each in parked:
                assert not each.left.is_set()
                each.leave.set()
        assert [each.outcome for each in parked] == [None] * pins
        assert not any(console.revoked for console in consoles)
    for console in consoles:
        await console.aclose()
    assert name.pinned == 0
    name.open()
    await name.hangup()
    assert told[-1] == 0


class Driver:
    """A driver's own books, as the kernel's port count: what was opened, and by what it was told that it is over."""

    def __init__(self) -> None:
        self.name = Name("tty", hangup=self.hangup)
        self.files: list[Revokable] = []
        self.consoles: list[Revokable] = []
        self.opens = self.closes = self.hung_up = 0
        self._dropped = 0

    def open(self, files: list[Revokable], opener: Callable[[], Revokable]) -> None:
        file = opener()
        file.release = lambda: self.release(file)
        files.append(file)
        self.opens += 1

    def release(self, file: Revokable) -> None:
        if file.closed:
            self.closes += 1
        else:
            self._dropped += 1  # its hang-up tells the driver

    def hangup(self, pinned: int) -> None:
        assert pinned == len(self.consoles)
        if pinned:
            self.closes += self._dropped
        else:
            self.hung_up += self._dropped
        self._dropped = 0
        self.files.clear()


@pytest.mark.parametrize("seed", range(20))
async def test_every_open_of_the_driver_is_closed_or_hung_up(seed: int) -> None:
    """The ledger: opens = closes + hang-ups. With pinned handles a hang-up closes one by one (__tty_hangup, step 10)."""
    chance = random.Random(seed)
    driver = Driver()
    for _ in range(80):
        match chance.randrange(6):
            case 0 | 1 | 2:
                driver.open(driver.files, driver.name.open)
            case 3 if len(driver.consoles) < 2:
                driver.open(driver.consoles, driver.name.pin)
            case 4 if some := [each for each in (driver.files, driver.consoles) if each]:
                chosen = chance.choice(some)
                chosen.pop(chance.randrange(len(chosen))).close()
            case 5:
                await driver.name.hangup()
        assert driver.opens == driver.closes + driver.hung_up + len(driver.files) + len(driver.consoles)
    await driver.name.hangup()
    for console in driver.consoles:
        await console.aclose()
    assert driver.files == []
    assert driver.opens == driver.closes + driver.hung_up
    assert driver.name.pinned == 0


async def test_a_hangup_that_fails_is_reported_and_over() -> None:
    """I7: it is raised to those who await; the generation is over, and the next begins, under every policy."""

    def fail(_: int) -> None:
        raise ZeroDivisionError

    name = Name("tty", while_draining="refuse", hangup=fail)
    name.open()
    with pytest.raises(ExceptionGroup) as caught:
        await name.hangup()
    assert [type(each) for each in caught.value.exceptions] == [ZeroDivisionError]
    assert name.open().generation == 2


@policies
async def test_reopening_from_the_hangup_itself(policy: Policy) -> None:
    """The release of a generation may open the next one where the policy lets it; the old one still counts as draining."""
    opened: list[Revokable] = []
    refused: list[RevokedError] = []

    def hangup(_: int) -> None:
        try:
            opened.append(name.open("again"))
        except RevokedError as exc:
            refused.append(exc)

    name = Name("tty", while_draining=policy, hangup=hangup)
    name.open()
    with anyio.fail_after(5):
        await name.hangup()
    if policy == "next":
        assert [file.generation for file in opened] == [2]
        assert name.open().parent is opened[0].parent
    else:
        assert [error.generation for error in refused] == [1]
        assert name.open().generation == 2


async def test_nothing_of_the_old_handles_works_in_the_next_generation() -> None:
    """Operations, opens, late leaving, closing and revoking of what is dead: the next generation never hears of it."""
    name = Name("tty", kick=None)
    old, straggler = name.open("old"), name.open("straggler")
    assert straggler.start_using()
    before = name.current
    act = name.hangup()
    new = name.open("new")
    for _ in range(2):
        assert not old.start_using()
        assert not straggler.start_using()
        with pytest.raises(RevokedError) as caught:
            before.open()
        assert caught.value.generation == 1
        with pytest.raises((RevokedError, anyio.ClosedResourceError)):
            old.open()
        with pytest.raises((RevokedError, anyio.ClosedResourceError)), old.using():
            pass
        before.revoke("again")
        old.close()
        straggler.revoke()
        assert name.current is new.parent
        assert not new.revoked
        if not act.done():
            straggler.stop_using()
    with pytest.raises(RuntimeError):
        straggler.stop_using()
    await act
    assert new.start_using()
    new.stop_using()
    assert name.current.in_use == 1


async def test_data_for_the_old_generation_never_reaches_the_next() -> None:
    """Bytes sent to a reader of the old generation are not read in the next one, which has a line of its own."""
    name = Name("tty")
    ours, theirs = os.pipe()
    old = FdStream(ours, name)
    async with anyio.create_task_group() as tasks:
        got: list[object] = []

        async def read() -> None:
            try:
                got.append(await old.receive())
            except RevokedError as exc:
                got.append(exc.generation)

        tasks.start_soon(read)
        await settle()
        os.write(theirs, b"secret of the old session")
        name.hangup()
    assert got in ([1], [b"secret of the old session"])
    with pytest.raises(BrokenPipeError):
        os.write(theirs, b"for the old one")
    os.close(theirs)
    ours, theirs = os.pipe()
    new = FdStream(ours, name)
    os.write(theirs, b"new")
    assert await new.receive() == b"new"
    with pytest.raises(RevokedError):
        await old.receive()
    await new.aclose()
    os.close(theirs)


async def test_a_generation_inherits_what_its_name_was_given() -> None:
    """`kick` and `answers` left out mean as the name's, in every generation and for pinned handles."""
    kicked: list[Revokable] = []
    name = Name("tty", kick=kicked.append, answers=answers.TTY)
    console = name.pin("console")
    for generation in (1, 2):
        kicked.clear()
        file = name.open("file")
        quiet = name.open("quiet", kick=None, answers=answers.ALSA)
        async with name.opening("opened") as opened:
            pass
        assert [each.answers for each in (file, quiet, opened, console)] == [
            answers.TTY,
            answers.ALSA,
            answers.TTY,
            answers.TTY,
        ]
        current = name.current
        await name.hangup()
        assert kicked == [current, file, opened]
        assert file.generation == generation
    kicked.clear()
    await name.revoke()
    assert kicked == [name, console]


async def test_a_stream_on_a_name_answers_by_its_profile() -> None:
    """Opened on the name, or pinned by `Name.pin`, a stream is in the current generation, or stays through it."""
    name = Name("tty", answers=answers.TTY)
    stream = RevokableStream(Silent(), name)
    console = RevokableStream(Silent(), name.pin)
    ended: list[object] = []

    async def read(of: RevokableStream) -> None:
        try:
            await of.receive()
        except (anyio.EndOfStream, RevokedError) as exc:
            ended.append((of, type(exc)))

    async with anyio.create_task_group() as tasks:
        tasks.start_soon(read, stream)
        tasks.start_soon(read, console)
        await settle()
        await name.hangup()
        await settle()
        assert ended == [(stream, anyio.EndOfStream)]
        with pytest.raises(RevokedError) as caught:
            await stream.send(b"x")
        assert caught.value.errno == errno.EIO
        await name.revoke()
    assert ended[1:] == [(console, anyio.EndOfStream)]


async def test_a_hangup_with_grace_lets_finish() -> None:
    """The grace is handed on: refused at once, kicked when it is over, or done when all have left."""
    live = Registry()
    name = live.name("tty")
    async with anyio.create_task_group() as tasks:
        parked = Parked(tasks, name.open())
        await settle()
        act = live.revoke("tty", reason="bye", grace=60)
        await settle()
        assert name.current.revoked
        assert not parked.left.is_set()
        parked.leave.set()
        await act
    assert parked.outcome is None
    assert act.reason == "bye"


# -- devices: found by name and path --


def test_a_name_or_device_that_is_taken_is_refused(tmp_path: pathlib.Path) -> None:
    """The error names the new one and who has it; nothing has changed; it is free once that is revoked."""
    live = Registry()
    node = tmp_path / "node"
    node.touch()
    (tmp_path / "link").symlink_to(node)
    other = tmp_path / "other"
    other.touch()
    first = live.name("tty", node)
    with pytest.raises(ValueError, match=r"'tty' is taken.*'tty'"):
        live.name("tty")
    with pytest.raises(ValueError, match="'tty' is taken"):
        live.name("tty", other)
    with pytest.raises(ValueError, match=r"link'\) is taken, by .*'tty'"):
        live.name("tty2", tmp_path / "link")
    assert live.root.in_use == 1
    assert live.find(node) is first
    with pytest.raises(LookupError):
        live.find(other)
    with pytest.raises(OSError, match="tty2"):
        live.find("tty2")
    first.hangup()
    with pytest.raises(ValueError, match="taken"):
        live.name("tty2", node)
    first.revoke()
    second = live.name("tty", tmp_path / "link")
    assert live.find("tty") is live.find(node) is second is not first


async def test_a_name_is_free_while_its_old_device_drains(slow: Slow) -> None:
    """ALSA, step 7: gone means gone, before the last release has run; and the end of the old one leaves the new alone."""
    live = Registry()
    old = live.name("card0", "/dev/null", release=slow)
    act = old.revoke()
    new = live.name("card0", "/dev/null")
    await settle()
    assert not act.done()
    assert live.find("card0") is live.find("/dev/null") is new
    slow.go.set()
    await act
    gone = weakref.ref(old)
    del old, act
    gc.collect()
    assert gone() is None, "the registry keeps nothing alive"
    assert live.find("card0") is live.find("/dev/null") is new


def test_a_name_that_could_not_be_made_leaves_nothing(tmp_path: pathlib.Path) -> None:
    """A path that is not there is an OSError that names it; a wrong option is named, too; the name is still free."""
    live = Registry()
    with pytest.raises(FileNotFoundError, match="missing"):
        live.name("tty", tmp_path / "missing")
    with pytest.raises(ValueError, match="'never'"):
        live.name("tty", "/dev/null", while_draining="never")
    with pytest.raises(TypeError, match="unknown"):
        live.name("tty", "/dev/null", unknown=1)
    assert live.root.in_use == 0
    live.name("tty", "/dev/null")


def test_no_device_is_added_below_what_was_revoked() -> None:
    """I1: a registry that was revoked as a whole has no live name below it."""
    live = Registry()
    old = live.name("tty0")
    live.root.revoke("shutdown")
    assert old.revoked
    with pytest.raises(RevokedError, match="shutdown"):
        live.name("tty1").open()


async def test_a_device_is_found_by_everything_that_leads_to_it(
    tmp_path: pathlib.Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """By name, path, symlink, chain of symlinks, device number, open handle, file below it, pinned handle, stream."""
    live = Registry()
    master, slave = os.openpty()
    path = os.ttyname(slave)
    number = os.fstat(slave).st_rdev
    os.close(slave)
    by_id = tmp_path / "by-id"
    by_id.symlink_to(path)
    (tmp_path / "again").symlink_to(by_id)
    monkeypatch.chdir(tmp_path)
    tty = live.name("line1", by_id)
    live.name("null", "/dev/null").open()
    file = tty.open()
    stream = RevokableStream(Silent(), tty)
    found = {
        "name": live.find("line1"),
        "path": live.find(path),
        "os path": live.find(pathlib.Path(path)),
        "symlink": live.find(str(by_id)),
        "symlink of a symlink": live.find(tmp_path / "again"),
        "relative": live.find("again"),
        "dotted": live.find(f"{tmp_path}/../{tmp_path.name}/by-id"),
        "st_rdev": live.find(number),
        "handle": live.find(file),
        "file below": live.find(file.open()),
        "pinned": live.find(tty.pin()),
        "generation": live.find(tty.current),
        "itself": live.find(tty),
        "stream": live.find(stream),
    }
    assert {how: each for how, each in found.items() if each is not tty} == {}
    assert live.find("/dev/null") is live.find("null") is not tty
    os.close(master)
    await stream.aclose()


def test_a_plain_file_is_found_by_its_inode(tmp_path: pathlib.Path) -> None:
    """Hard links lead to one thing; a copy of the name elsewhere does not, nor does what took its place."""
    live = Registry()
    node = tmp_path / "node"
    node.write_text("x")
    os.link(node, tmp_path / "hard")
    (tmp_path / "copy").write_text("x")
    name = live.name("node", node)
    assert live.find(tmp_path / "hard") is name
    with pytest.raises(LookupError, match="copy"):
        live.find(tmp_path / "copy")
    node.unlink()
    assert live.find(tmp_path / "hard") is name
    node.write_text("another")
    with pytest.raises(LookupError):
        live.find(str(node))


def test_a_block_and_a_character_device_of_one_number_are_two(tmp_path: pathlib.Path) -> None:
    """/dev/loop0 and /dev/vcs are both 7:0, and different devices."""
    live = Registry()
    try:
        os.mknod(tmp_path / "loop0", stat.S_IFBLK | 0o600, os.makedev(7, 0))
        os.mknod(tmp_path / "vcs", stat.S_IFCHR | 0o600, os.makedev(7, 0))
    except PermissionError:
        pytest.skip("only root makes device nodes")
    vcs = live.name("vcs", tmp_path / "vcs")
    with pytest.raises(LookupError):
        live.find(tmp_path / "loop0")
    loop = live.name("loop0", tmp_path / "loop0")
    assert live.find(tmp_path / "loop0") is loop
    assert live.find(tmp_path / "vcs") is vcs


def nothing(live: Registry, tmp_path: pathlib.Path) -> dict[str, Any]:
    """What leads to no device of this registry."""
    other = Registry()
    gone = live.name("gone", tmp_path)
    gone_file = gone.open("file")
    gone.revoke()
    return {
        "gone name": (live, "gone", gone),
        "gone path": (live, tmp_path, gone),
        "handle on what is gone": (live, gone_file, None),
        "gone itself": (live, gone, None),
        "other file": (live, tmp_path.parent, None),
        "unknown number": (live, os.makedev(4095, 255), None),
        "handle of no name": (live, Revokable("loose").open("file"), None),
        "key": (live, live["alice"], None),
        "root": (live, live.root, None),
        "handle elsewhere": (live, other.name("tty").open("file"), None),
        "name of nowhere": (live, Name("loner"), None),
        "handle of a name of nowhere": (live, Name("loner").open("file"), None),
        "stream on a key": (live, RevokableStream(Silent(), live["bob"]), None),
    }


@pytest.mark.parametrize("what", list(nothing(Registry(), pathlib.Path("/tmp"))))
async def test_what_leads_to_no_device_is_a_lookup_error(what: str, tmp_path: pathlib.Path) -> None:
    """It names what was asked for, and takes nothing away; another registry's devices are none of this one's business."""
    live, asked, _keep = nothing(Registry(), tmp_path)[what]
    name = getattr(asked, "name", str(asked))
    with pytest.raises((LookupError, FileNotFoundError)) as caught:
        live.find(asked)
    assert name in str(caught.value)
    node = asked.handle if isinstance(asked, RevokableStream) else asked
    if isinstance(node, Revokable):
        before = node.revoked
        with pytest.raises(LookupError):
            live.frevoke(asked)
        assert node.revoked == before
    if isinstance(asked, RevokableStream):
        await asked.aclose()


@pytest.mark.parametrize("missing", ["nobody", "/dev/nobody", pathlib.Path("nobody")], ids=repr)
def test_a_missing_path_is_an_error_that_names_it(missing: str | pathlib.Path) -> None:
    """Neither a name nor a path: an OSError as from the system call, or a LookupError; both show what was asked for."""
    live = Registry()
    with pytest.raises((FileNotFoundError, LookupError), match="nobody"):
        live.find(missing)
    if missing != "nobody":
        with pytest.raises((FileNotFoundError, LookupError), match="nobody"):
            live.revoke(missing)


def revoke_name(live: Registry, _: Revokable, __: pathlib.Path) -> Revocation:
    return live.revoke("tty", reason="bye")


def revoke_path(live: Registry, _: Revokable, path: pathlib.Path) -> Revocation:
    return live.revoke(path, reason="bye")


def revoke_path_string(live: Registry, _: Revokable, path: pathlib.Path) -> Revocation:
    return live.revoke(str(path), reason="bye")


def frevoke_handle(live: Registry, file: Revokable, _: pathlib.Path) -> Revocation:
    return live.frevoke(file, "bye")


def frevoke_below(live: Registry, file: Revokable, _: pathlib.Path) -> Revocation:
    return live.frevoke(file.open("below"), "bye")


@pytest.mark.parametrize("how", [revoke_name, revoke_path, revoke_path_string, frevoke_handle, frevoke_below])
async def test_revoke_hangs_up_for_all_who_have_it_open(
    how: Callable[[Registry, Revokable, pathlib.Path], Revocation], tmp_path: pathlib.Path
) -> None:
    """RFC, spot 6: by name, by any path, by an open handle; pinned handles and other devices stay; it opens again."""
    live = Registry()
    node = tmp_path / "node"
    node.touch()
    (tmp_path / "link").symlink_to(node)
    tty = live.name("tty", node)
    other = live.name("other").open()
    alice, bob, console = tty.open("alice"), tty.open("bob"), tty.pin("console")
    async with anyio.create_task_group() as tasks:
        parked = Parked(tasks, bob)
        await settle()
        await how(live, alice, tmp_path / "link")
    assert isinstance(parked.outcome, RevokedError)
    assert (alice.reason, bob.reason) == ("bye", "bye")
    assert alice.released
    assert not console.revoked
    assert not other.revoked
    assert not tty.revoked
    assert tty.open().generation == 2


#: Places in a folder: which device, in order of registration, is there, if it is none of another name.
TREE = {"run/lab/a": "a", "run/lab/deep/b": "b", "run/labyrinth/c": "c", "dev/ttyUSB0": "d"}
LINKS = {
    "serial/by-id/usb-a": "../../run/lab/a",
    "serial/by-id/again": "usb-a",
    "serial/by-id/broken": "../nothing",
    "serial/by-path/pci-d": "../../dev/ttyUSB0",
    "serial/loop": ".",
    "serial/up": "../serial",
    "folders/labyrinth": "../run/labyrinth",
    "link": "run/lab",
}


@pytest.fixture
def tree(tmp_path: pathlib.Path) -> Iterator[tuple[Registry, dict[str, Revokable]]]:
    """A registry with a device at each of the places, and an open handle on each; links to them."""
    live = Registry()
    handles = {}
    for place in [*TREE, *LINKS]:
        (tmp_path / place).parent.mkdir(parents=True, exist_ok=True)
    for place, name in TREE.items():
        (tmp_path / place).touch()
        handles[name] = live.name(name, tmp_path / place).open("file")
    for place, target in LINKS.items():
        (tmp_path / place).symlink_to(target)
    (tmp_path / "hard").mkdir()
    os.link(tmp_path / "run/lab/a", tmp_path / "hard/a")
    (tmp_path / "empty").mkdir()
    (tmp_path / "other").mkdir()
    (tmp_path / "other/file").touch()
    yield live, handles
    live.root.revoke()


@pytest.mark.parametrize(
    ("path", "taken"),
    [
        ("run/lab", "a b"),
        ("run/lab/", "a b"),
        ("run/lab/deep/..", "a b"),
        ("link", "a b"),
        ("run", "a b c"),
        ("serial", "a d"),
        ("serial/by-id", "a"),
        ("serial/by-path", "d"),
        ("serial/loop/loop/by-id", "a"),
        ("hard", "a"),
        ("", "a b c d"),
    ],
)
async def test_a_directory_takes_what_its_files_lead_to(
    path: str, taken: str, tree: tuple[Registry, dict[str, Revokable]], tmp_path: pathlib.Path
) -> None:
    """Nodes and links in it and below, with one revocation, in the order of registration; the names stay, and others."""
    live, handles = tree
    act = live.revoke(f"{tmp_path}/{path}", reason="all of it")
    assert [name for name, handle in handles.items() if handle.revoked] == taken.split()
    report = await act
    assert report.released == 2 * len(taken.split())
    assert report.name == (taken if len(taken) < 6 else "a b c, ...").replace(" ", ", ").replace(",,", ",")
    assert {handle.reason for handle in handles.values() if handle.revoked} == {"all of it"}
    assert {live.find(name).open().generation for name in taken.split()} == {2}


@pytest.mark.parametrize("path", ["empty", "other", "other/file", "folders"])
def test_a_directory_without_a_device_is_a_lookup_error(
    path: str, tree: tuple[Registry, dict[str, Revokable]], tmp_path: pathlib.Path
) -> None:
    """It says so; a link to a directory of devices below is not entered."""
    live, handles = tree
    with pytest.raises(LookupError, match=f"{path}' nor anything below it leads to a device"):
        live.revoke(tmp_path / path)
    assert not any(handle.revoked for handle in handles.values())


def test_a_directory_of_too_many_files_is_not_searched(tmp_path: pathlib.Path) -> None:
    """The error says what to do, and nothing was taken away, wherever the device is."""
    live = Registry()
    for number in range(1001):
        (tmp_path / str(number)).touch()
    file = live.name("tty", tmp_path / "1000").open()
    with pytest.raises(LookupError, match=r"more than 1000 files are below .*: give a path nearer to the device"):
        live.revoke(tmp_path)
    assert not file.revoked
    (tmp_path / "0").unlink()
    live.revoke(tmp_path)
    assert file.revoked


@policies
async def test_each_device_of_a_directory_lets_open_as_it_would_alone(
    policy: Policy, tmp_path: pathlib.Path, slow: Slow
) -> None:
    """RFC, spot 5, for a revocation by path: what drains refuses or queues, or is passed; what is released opens."""
    live = Registry()
    for name in "fast", "slow":
        (tmp_path / name).touch()
    fast = live.name("fast", tmp_path / "fast", while_draining=policy)
    slowly = live.name("slow", tmp_path / "slow", while_draining=policy, hangup=slow)
    fast.open()
    slowly.open()
    act = live.revoke(tmp_path, reason="gone")
    await settle()
    assert not act.done()
    assert fast.open().generation == 2
    async with anyio.create_task_group() as tasks:
        queue = Queue(tasks, slowly)
        await queue.add("bob")
        assert bool(queue.opened) == (policy == "next")
        assert isinstance(queue.failed.get("bob"), RevokedError) == (policy == "refuse")
        slow.go.set()
        await act
    assert queue.opened == ([] if policy == "refuse" else [("bob", 2)])
    await slowly.revoke()


async def test_a_terminal_in_a_directory_is_hung_up_in_all_programs(tmp_path: pathlib.Path) -> None:
    """Though nobody has it open here, its driver is told, as by its own hang-up."""
    told: list[str] = []

    class Driver:
        def open(self, fd: int) -> None:
            pass

        def close(self) -> None:
            pass

        def hangup(self) -> None:
            told.append("hangup")

        def reset(self) -> None:
            pass

    live = Registry()
    master, slave = os.openpty()
    try:
        (tmp_path / "link").symlink_to(os.ttyname(slave))
        async with Tty(os.ttyname(slave), registry=live, driver=Driver()):
            await live.revoke(tmp_path)
            assert told == ["hangup"]
    finally:
        os.close(master)
        os.close(slave)


@pytest.mark.parametrize("as_int", [False, True])
async def test_a_device_that_comes_back_elsewhere_is_found_where_it_is(as_int: bool) -> None:
    """`locate` makes it known by path and number until it is hung up; what was added by a path stays known by that."""
    live = Registry()
    tty = live.name("tty")
    known = live.name("null", "/dev/null")
    for _ in range(2):
        master, slave = os.openpty()
        what = os.fstat(slave).st_rdev if as_int else os.ttyname(slave)
        with pytest.raises(LookupError):
            live.find(what)
        file = tty.open()
        live.locate(tty, slave)
        assert live.find(what) is tty
        with pytest.raises(ValueError, match="taken"):
            live.name("other", os.ttyname(slave))
        other = live.name("other")
        other.open()
        live.locate(other, slave)  # the last one has it
        assert live.find(what) is other
        live.locate(tty, slave)
        other.revoke()
        await live.find(what).hangup()
        assert file.released
        with pytest.raises(LookupError):
            live.find(what)
        os.close(master)
        os.close(slave)
    with pathlib.Path("/dev/null").open() as null:
        live.locate(tty, null.fileno())
    assert live.find("/dev/null") is known


async def test_a_block_device_is_found_by_its_number(tmp_path: pathlib.Path) -> None:
    """As a character device is."""
    path, number = tmp_path / "disk", os.makedev(7, 200)
    try:
        os.mknod(path, stat.S_IFBLK | 0o600, number)
    except PermissionError:
        pytest.skip("mknod needs privilege")
    live = Registry()
    name = live.name("disk", path)
    assert live.find(number) is name
    assert live.find(path) is name


@pytest.mark.parametrize("root", ["", "lab"])
def test_what_is_open_is_found_by_its_path(root: str) -> None:
    """Parents first: a generation has the path of its name. No path leads there by a further parent, nor to the root."""
    live = Registry(root)
    port = live.name("port")
    alice = port.open("alice", also=[live["token"]])
    for node in alice, alice.open("window"), live.root.open("port2"), live["token"]:
        assert live.at(node.path) == [node]
    assert live.at(port.path) == [port, port.current]
    assert live.at(live["token"].path + "/alice") == []
    assert live.at(root) == []


async def test_a_device_that_is_gone_holds_no_place() -> None:
    """Though somebody has it still: another that comes there is found."""
    live = Registry()
    gone = live.name("gone", "/dev/null")
    gone.revoke()
    name = live.name("name")
    name.open()
    with pathlib.Path("/dev/null").open("rb") as file:
        live.locate(name, file.fileno())
    assert live.find("/dev/null") is name


# -- paths that change, and whose they are --


def test_an_inode_number_is_not_used_again_for_another_file(tmp_path: pathlib.Path) -> None:
    """As long as the name lives: what takes the place of its file, however often, is not taken for it."""
    node = tmp_path / "node"
    seen = set()
    for _ in range(20):
        node.touch()
        seen.add(node.stat().st_ino)
        node.unlink()
    if len(seen) == 20:
        pytest.skip("this file system gives no number twice")
    live = Registry()
    node.touch()
    file = live.name("node", node).open()
    for _ in range(40):
        node.unlink()
        node.touch()
        with pytest.raises(LookupError):
            live.revoke(node)
    assert not file.revoked


def held() -> set[str]:
    """What this process has descriptors of."""
    files = set()
    for entry in pathlib.Path("/proc/self/fd").iterdir():
        with contextlib.suppress(OSError):  # the one that lists
            files.add(str(entry.readlink()))
    return files


async def test_the_inode_is_let_go_with_the_release(tmp_path: pathlib.Path, slow: Slow) -> None:
    """Not before, as then the name is over; though it is still held, and whatever its release was."""
    live = Registry()
    node = tmp_path / "node"
    node.touch()
    name = live.name("node", node, release=slow)
    act = name.revoke()
    await settle()
    assert str(node) in held()
    slow.go.set()
    await act
    assert str(node) not in held()


@pytest.mark.parametrize("how", ["dropped", "taken", "option"])
def test_the_inode_is_let_go_of_what_was_never_revoked(how: str, tmp_path: pathlib.Path) -> None:
    """A registry that is dropped with its names, and a name that could not be made, leave no descriptor."""
    live = Registry()
    node = tmp_path / "node"
    node.touch()
    if how == "dropped":
        live.name("node", node)
        assert str(node) in held()
    else:
        live.name("taken")
        options: dict[str, Any] = {"unknown": 1} if how == "option" else {}
        with pytest.raises((ValueError, TypeError)):
            live.name("taken" if how == "taken" else "node", node, **options)
    del live
    gc.collect()
    assert str(node) not in held()


def test_of_a_device_no_descriptor_is_kept() -> None:
    """It is known by its number alone, and its node may go."""
    live = Registry()
    numbers = pathlib.Path("/proc/self/fd")
    before = len(list(numbers.iterdir()))
    live.name("null", "/dev/null")
    assert len(list(numbers.iterdir())) == before


def test_what_takes_the_place_of_a_path_is_revoked_instead(tmp_path: pathlib.Path) -> None:
    """The path leads to what is there when it is revoked, not to what was there when it was looked up or added."""
    live = Registry()
    link = tmp_path / "link"
    for name in "old", "new":
        (tmp_path / name).touch()
    link.symlink_to("old")
    old, new = live.name("old", link).open(), live.name("new", tmp_path / "new").open()
    assert live.find(link).name == "old"
    link.unlink()
    link.symlink_to("new")
    live.revoke(link)
    assert (old.revoked, new.revoked) == (False, True)


@pytest.mark.parametrize("alias", ["hard link", "symlink", "second node"])
def test_a_device_cannot_be_added_by_two_paths(alias: str, tmp_path: pathlib.Path) -> None:
    """The error names who has it."""
    live = Registry()
    first, second = tmp_path / "first", tmp_path / "second"
    if alias == "second node":
        try:
            for each in first, second:
                os.mknod(each, stat.S_IFCHR | 0o600, os.makedev(7, 0))
        except PermissionError:
            pytest.skip("only root makes device nodes")
    else:
        first.touch()
        os.link(first, second) if alias == "hard link" else second.symlink_to(first)
    live.name("alice", first)
    with pytest.raises(ValueError, match=r"second.* is taken, by <Name 'alice' live"):
        live.name("bob", second)


@pytest.mark.parametrize(
    ("path", "error"),
    [
        ("/tmp/\0", ValueError),
        ("/" + "x" * 10_000, OSError),
        ("/" + "x/" * 10_000, OSError),
        ("/nowhere", FileNotFoundError),
        (pathlib.Path("relative/nowhere"), FileNotFoundError),
        ("/dev/null/x", NotADirectoryError),
        ("/\ud800", ValueError),
    ],
    ids=["NUL", "10 kB", "deep", "missing", "relative", "below a file", "surrogate"],
)
def test_a_path_that_cannot_be_takes_nothing(path: Any, error: type[Exception]) -> None:
    """It is the error of the system call; nothing has changed."""
    live = Registry()
    file = live.name("null", "/dev/null").open()
    with pytest.raises(error):
        live.revoke(path)
    with pytest.raises(error):
        live.hangup(path, uid=1000)
    assert not file.revoked


def test_a_broken_link_is_an_error_and_a_relative_path_is_not(
    tmp_path: pathlib.Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Where no other is said, a path begins in the working directory, and a string without a slash before it is a key."""
    live = Registry()
    (tmp_path / "node").touch()
    (tmp_path / "broken").symlink_to("nothing")
    monkeypatch.chdir(tmp_path)
    file, key = live.name("tty", "node").open(), live["node"].open()
    with pytest.raises(FileNotFoundError, match="broken"):
        live.revoke(tmp_path / "broken")
    live.revoke("node")
    assert (file.revoked, key.revoked) == (False, True)
    live.revoke(pathlib.Path("node"))
    assert file.revoked


@pytest.mark.parametrize(
    ("uid", "path", "may"),
    [
        (1000, "mine", True),
        (1000, "link to mine", True),
        (1000, "theirs", False),
        (1000, "my link to theirs", False),
        (1000, "my folder", False),
        (1000, "folder of mine", True),
        (0, "my folder", True),
        (0, "theirs", True),
    ],
)
def test_by_path_the_owner_or_root_may(uid: int, path: str, may: bool, tmp_path: pathlib.Path) -> None:
    """As by revoke(2): whose the file is counts, not the link or the folder; of several it must be all, or none is taken."""
    if os.geteuid():
        pytest.skip("only root can give files away")
    live = Registry()
    for folder in "my folder", "folder of mine":
        (tmp_path / folder).mkdir()
    handles = []
    for name, owner in ("mine", 1000), ("theirs", 1001):
        (tmp_path / name).touch()
        os.chown(tmp_path / name, owner, -1)
        handles.append(live.name(name, tmp_path / name).open())
        (tmp_path / f"my folder/{name}").symlink_to(tmp_path / name)
    (tmp_path / "folder of mine/it").symlink_to(tmp_path / "mine")
    (tmp_path / "link to mine").symlink_to("mine")
    (tmp_path / "my link to theirs").symlink_to("theirs")
    for each in "my folder", "my link to theirs":
        os.chown(tmp_path / each, 1000, -1, follow_symlinks=False)
    if may:
        live.hangup(tmp_path / path, uid=uid)
        assert any(handle.revoked for handle in handles)
    else:
        with pytest.raises(PermissionError, match="only the owner of its file and root may revoke 'theirs'"):
            live.hangup(tmp_path / path, uid=uid)
        assert not any(handle.revoked for handle in handles)


def made(file: pathlib.Path) -> os.stat_result:
    file.touch()
    return file.stat()


@pytest.mark.parametrize("how", ["another node", "replaced", "inode used again", "gone", "unknown here"])
def test_whose_file_it_is_counts_by_that_which_it_was_added_by(
    how: str, tmp_path: pathlib.Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Anybody can have a file that leads there: a node on a stick, a terminal of that number in a container of his own."""
    if os.geteuid():
        pytest.skip("only root makes device nodes and gives files away")
    live = Registry()
    node, other = tmp_path / "node", tmp_path / "other"
    for each in node, other:
        os.mknod(each, stat.S_IFCHR | 0o600, os.makedev(7, 0))
        os.chown(each, 1000, -1)
    file = live.name("console", node).open()
    if how == "another node":
        os.chown(node, 0, -1)
    elif how == "replaced":
        other.rename(node)
        other = node
    elif how == "inode used again":
        inode = node.stat().st_ino
        node.unlink()
        files = (tmp_path / str(number) for number in range(1000))
        mine = next((file for file in files if made(file).st_ino == inode), None)
        if mine is None:
            pytest.skip("this file system does not use them again")
        os.chown(mine, 1000, -1)
        mine.rename(node)
    elif how == "gone":
        node.unlink()
    else:
        monkeypatch.setattr(_registry, "nobody", lambda: 1000)
    for uid in 1, 1000:
        with pytest.raises(PermissionError):
            live.hangup(other, uid=uid)
    assert not file.revoked
    live.hangup(other, uid=0)
    assert file.revoked


def test_a_device_that_comes_back_is_its_new_owners(tmp_path: pathlib.Path) -> None:
    """Each time it is located anew, by what is open on it."""
    if os.geteuid():
        pytest.skip("only root gives files away")
    live = Registry()
    name = live.name("adapter")
    for uid, node in (1000, tmp_path / "first"), (1001, tmp_path / "second"):
        os.mknod(node, stat.S_IFCHR | 0o600, os.makedev(1, 3))
        os.chown(node, uid, -1)
        file = name.open()
        with node.open("rb") as device:
            live.locate(name, device.fileno())
        with pytest.raises(PermissionError):
            live.hangup(node, uid=2001 - uid)
        live.hangup(node, uid=uid)
        assert file.revoked


def test_a_path_is_looked_up_in_one_place_and_revoked_in_another(tmp_path: pathlib.Path) -> None:
    """Whoever has the time, or the rights, finds what it leads to: each thing once, whatever leads there."""
    live = Registry()
    file = live.name("null", "/dev/null").open()
    for name in "first", "second":
        (tmp_path / name).symlink_to("/dev/null")
    with pytest.raises(LookupError, match="neither what was found there nor"):
        live.hangup([("b", 259), ("i", 1, 2)])
    found = places(tmp_path)
    assert found == [("i", (status := tmp_path.stat()).st_dev, status.st_ino), ("c", os.makedev(1, 3))]
    live.hangup(found)
    assert file.revoked


@pytest.mark.parametrize("path", ["", "file/", b"file", "file"])
def test_a_path_is_what_the_kernel_takes_it_for(
    path: Any, tmp_path: pathlib.Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Not what it may be read as: none is not the directory that one is in, and a file has none below it."""
    (tmp_path / "file").touch()
    monkeypatch.chdir(tmp_path)
    live = Registry()
    files = [live.name("directory", ".").open(), live.name("file", b"file").open()]  # type: ignore[arg-type]
    if path in ("file", b"file"):
        live.hangup(path)
        assert [file.revoked for file in files] == [False, True]
        return
    for look in live.find, live.hangup, places:
        with pytest.raises(OSError, match=r"No such file|Not a directory"):
            look(path)
    assert not any(file.revoked for file in files)


def test_a_device_that_was_added_by_path_and_came_back_is_its_owners(tmp_path: pathlib.Path) -> None:
    """Its node is another one then."""
    if os.geteuid():
        pytest.skip("only root makes device nodes and gives files away")
    live = Registry()
    node = tmp_path / "node"
    name = None
    for again in range(2):
        os.mknod(node, stat.S_IFCHR | 0o600, os.makedev(1, 3))
        os.chown(node, 1000, -1)
        name = name or live.name("adapter", node)
        file = name.open()
        with node.open("rb") as device:
            live.locate(name, device.fileno())
        live.hangup(node, uid=1000)
        assert file.revoked
        node.rename(tmp_path / str(again))  # so that its inode is not used again


async def test_a_device_that_was_located_and_drains_is_hurried() -> None:
    """Asked for again by its number, while somebody is inside: not the next generation, which may be elsewhere."""
    live = Registry()
    name = live.name("adapter")
    old = name.open()
    assert old.start_using()
    with pathlib.Path("/dev/null").open("rb") as device:
        live.locate(name, device.fileno())
    first = live.hangup("/dev/null", grace=1000)
    new = name.open()
    assert not old.kicked
    second = live.hangup("/dev/null")
    assert (old.kicked, new.revoked, first.done(), second.done()) == (True, False, False, False)
    old.stop_using()
    await second
    await first
    with pytest.raises(LookupError):
        live.hangup("/dev/null")


async def test_frevoke_by_a_stream_and_by_a_pinned_handle() -> None:
    """Both are open on the device: the current generation ends, and what is pinned stays."""
    live = Registry()
    tty = live.name("tty")
    console = tty.pin("console")
    stream = RevokableStream(Silent(), tty)
    await live.frevoke(stream)
    assert stream.handle.released
    again = tty.open()
    await live.frevoke(console)
    assert again.released
    assert not console.revoked


@pytest.mark.parametrize("how", ["hung up", "closed", "revoked", "draining"])
async def test_a_dead_handle_hangs_nobody_up(how: str) -> None:
    """What comes by a handle of the old generation never reaches the next: the kernel answers EIO, and EBADF if closed."""
    live = Registry()
    tty = live.name("tty")
    alice = tty.open("alice")
    assert how != "draining" or alice.start_using()
    if how == "closed":
        await alice.aclose()
    elif how == "revoked":
        await alice.revoke()
    else:
        tty.hangup()
    bob = tty.open("bob")
    with contextlib.suppress(LookupError, RevokedError, anyio.ClosedResourceError):
        live.frevoke(alice)
    assert not bob.revoked
    if how == "draining":
        alice.stop_using()


def test_a_string_is_a_name_before_a_path_before_a_key() -> None:
    """`revoke` of one string: the device of that name, else a path if it begins with a slash, else a key."""
    live = Registry()
    user = live["tty"].open()
    tty = live.name("tty", "/dev/null").open()
    live.revoke("tty")
    assert (tty.revoked, user.revoked) == (True, False)
    pair = live["dev", "null"].open()
    live.revoke("dev", "null")
    assert pair.revoked
    slash = live["/dev/null"].open()
    tty = live.find("tty").open()
    live.revoke("/dev/null")
    assert (tty.revoked, slash.revoked) == (True, False)
    slash = live["a/b"].open()
    live.revoke("a/b")
    assert slash.revoked


@pytest.mark.parametrize("what", [("/dev/null", "/dev/zero"), (pathlib.Path("a"), "b"), ("alice", "/dev/null")])
def test_several_paths_are_no_key(what: tuple[str | pathlib.Path, ...]) -> None:
    """They are refused, and not taken for a key that nobody uses."""
    with pytest.raises(TypeError, match="is not a key, because there are paths in it: revoke each path by itself"):
        Registry().revoke(*what)


def test_a_name_that_is_gone_is_not_in_the_way(tmp_path: pathlib.Path) -> None:
    """A free name is free: whether somebody still holds the dead node decides nothing."""
    live = Registry()
    path = str(tmp_path)
    held = live.name("alice"), live.name(path, path)
    for each in held:
        each.revoke()
    user = live["alice"].open()
    live.revoke("alice")
    assert user.revoked
    device = live.name("device", path)
    assert live.find(path) is device


def test_a_registry_keeps_no_device_that_is_gone() -> None:
    """Weak to the end: name, generations and handles go with their last reference."""
    live = Registry()
    told: list[int] = []
    for _ in range(3):
        name = live.name("tty", "/dev/null", hangup=told.append)
        name.open()
        name.hangup()
        name.open()
        name.pin()
        name.revoke()
    gone = weakref.ref(name)
    del name
    gc.collect()
    assert gone() is None
    assert live.root.in_use == 0
    assert not live._names
    assert not live._places
    assert len(told) == 6


async def test_without_proc_what_came_back_elsewhere_is_roots(
    tmp_path: pathlib.Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Nothing tells by which file it came, and the old one may be anybody's."""
    path = tmp_path / "file"
    path.touch()
    if os.getuid() == 0:
        os.chown(path, 12345, -1)
    live = Registry()
    name = live.name("name", path)
    name.open()
    owner = path.stat().st_uid
    with monkeypatch.context() as without, path.open() as file:
        without.setattr(pathlib.Path, "readlink", _missing)
        live.locate(name, file.fileno())
    with pytest.raises(PermissionError):
        live.hangup(path, uid=owner)
    name.close()


def _missing(_: pathlib.Path) -> pathlib.Path:
    raise FileNotFoundError
