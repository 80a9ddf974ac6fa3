"""Membranes: what is lent works, dies with its handle by every way in, and nothing of it escapes."""

from __future__ import annotations

import array
import asyncio
import collections
import collections.abc
import contextlib
import contextvars
import copy
import dataclasses
import decimal
import enum
import functools
import gc
import inspect
import io
import operator
import os
import pathlib
import pickle
import re
import threading
import types
import unittest.mock
import weakref
from collections.abc import AsyncGenerator, AsyncIterator, Awaitable, Callable, Generator, Iterator
from typing import Any, NamedTuple, Self, SupportsIndex

import anyio
import anyio.lowlevel
import numpy as np
import pytest
import wrapt

from asyncrevoke import Revokable, RevokedError
from asyncrevoke.adapters.membrane import PLAIN, revokable_proxy
from asyncrevoke.testing import Subject, check_revokable
from calls import Call, parked, start, turns_beside
from conftest import BACKENDS, settle
from operations import asyncio_only

pytestmark = pytest.mark.anyio


class Mode(enum.Enum):
    FAST = "fast"


class Pair(NamedTuple):
    number: int
    channel: object


@dataclasses.dataclass
class Channel:
    """A sub-object, that leads back to its device."""

    device: Device
    number: int

    def __add__(self, other: Channel) -> Channel:
        return Channel(self.device, self.number + other.number) if isinstance(other, Channel) else NotImplemented

    def __matmul__(self, other: object) -> object:
        return self.device

    __hash__ = None  # type: ignore[assignment]


class Session:
    """A context, sync and async, that tells how it ended."""

    def __init__(self, device: Device) -> None:
        self.device = device

    def __enter__(self) -> Self:
        self.device.log.append("entered")
        return self

    def __exit__(self, kind: type[BaseException] | None, *_: object) -> None:
        self.device.log.append(f"left by {kind.__name__ if kind else None}")

    async def __aenter__(self) -> Self:
        await anyio.lowlevel.checkpoint()
        return self.__enter__()

    async def __aexit__(self, kind: type[BaseException] | None, *_: object) -> None:
        self.__exit__(kind)
        await anyio.lowlevel.checkpoint()


class Promise:
    """Something to await that is no coroutine."""

    def __init__(self, device: Device) -> None:
        self.device = device

    def __await__(self) -> Generator[Any, Any, Device]:
        yield from self.device.wait().__await__()
        return self.device


class Device:
    """What is lent: something of every kind."""

    mode = Mode.FAST

    def __init__(self) -> None:
        self.data = anyio.Event()
        self.log: list[str] = []
        self.channels = [Channel(self, 0), Channel(self, 1)]
        self.by_name = {"first": self.channels[0]}
        self.pair = Pair(1, self.channels[1])
        self.frozen = frozenset([self])
        self.buffer = bytearray(b"abc")
        self.listeners: list[Callable[..., Any]] = []
        self.setting: Any = None
        self.running = 0

    @property
    def first(self) -> Channel:
        return self.channels[0]

    @property
    def broken(self) -> Channel:
        return self.no_such_thing  # type: ignore[attr-defined,no-any-return]

    def all_broken(self, *more: BaseException) -> None:
        inner = ExceptionGroup("inner", [AttributeError(obj=self)])
        raise BaseExceptionGroup("all", [inner, AttributeError(obj=self), *more])

    def fail(self, error: Exception) -> None:
        raise error

    @classmethod
    def make(cls) -> Device:
        return cls()

    @staticmethod
    def static() -> int:
        return 7

    def __iter__(self) -> Iterator[Channel]:
        yield from self.channels

    def __getitem__(self, index: int) -> Channel:
        return self.channels[index]

    def __call__(self, channel: object = None) -> object:
        return channel is self.channels[0] or self

    def each(self) -> Any:
        got = yield self
        while got is not None:
            got = yield got
        return self

    async def wait(self) -> Device:
        self.running += 1
        try:
            await self.data.wait()
        finally:
            self.running -= 1
        return self

    async def quick(self, *args: object) -> object:
        await anyio.lowlevel.checkpoint()
        return args or self

    async def events(self) -> AsyncIterator[Device]:
        while True:
            yield await self.wait()

    async def count(self) -> AsyncIterator[Channel]:
        for channel in self.channels:
            yield channel

    @types.coroutine
    def old(self) -> Any:
        yield from anyio.lowlevel.checkpoint().__await__()
        return self

    def promise(self) -> Promise:
        return Promise(self)

    def session(self) -> Session:
        return Session(self)

    @contextlib.contextmanager
    def locked(self) -> Iterator[Device]:
        yield self

    @contextlib.asynccontextmanager
    async def opened(self) -> AsyncIterator[Device]:
        try:
            yield self
        finally:
            self.log.append("closed")

    def subscribe(self, listener: Callable[..., Any]) -> None:
        self.listeners.append(listener)

    def unsubscribe(self, listener: Callable[..., Any]) -> None:
        self.listeners.remove(listener)

    async def ask(self, question: Callable[..., Awaitable[object]]) -> bool:
        return await question(self) is self

    def is_raw(self, *things: object, **named: object) -> bool:
        """Whether no proxy has come in, at any depth."""
        return not any(
            is_proxy(thing)
            or (
                isinstance(thing, list | tuple | set | frozenset | dict)
                and not self.is_raw(*thing, *(thing.values() if isinstance(thing, dict) else ()))
            )
            for thing in (*things, *named.values())
        )


async def outcome(call: Call) -> str:
    """How it ended."""
    await call.done.wait()
    in_flight = isinstance(call.outcome, RevokedError) and call.outcome.in_flight
    return f"{type(call.outcome).__name__}{' in flight' if in_flight else ''}"


def is_proxy(thing: object) -> bool:
    return issubclass(type(thing), wrapt.BaseObjectProxy)


@pytest.fixture
def handle() -> Revokable:
    return Revokable("device")


@pytest.fixture
def real() -> Device:
    return Device()


@pytest.fixture
def device(real: Device, handle: Revokable) -> Device:
    return revokable_proxy(real, handle)


# -- as long as it lives --


async def test_a_proxy_is_as_the_object_is(device: Device, real: Device) -> None:
    """To isinstance, to inspect, and to whoever asks for a special method."""
    assert is_proxy(device)
    assert isinstance(device, Device)
    for name in ("channels", "by_name", "log", "buffer", "first", "pair", "wait", "each", "static", "mode", "data"):
        ours, theirs = getattr(device, name), getattr(real, name)
        assert isinstance(ours, type(theirs))
        for question in (callable, inspect.iscoroutinefunction, inspect.isasyncgenfunction, inspect.ismethod):
            assert question(ours) == question(theirs), (name, question)
        for kind in (
            collections.abc.Sized,
            collections.abc.Iterable,
            collections.abc.Iterator,
            collections.abc.Container,
            collections.abc.Hashable,
            collections.abc.Awaitable,
            contextlib.AbstractContextManager,
            SupportsIndex,
        ):
            assert isinstance(ours, kind) == isinstance(theirs, kind), (name, kind)
    assert (repr(device), str(device)) == (f"<proxy of {real!r}>", str(real))
    assert sorted(dir(device)) == dir(real)
    assert (hash(device), device.first == real.first, device.first != real.first) == (hash(real), True, False)
    assert (bool(device.log), bool(device)) == (False, True)
    assert inspect.signature(device.ask) == inspect.signature(real.ask)


async def test_operators_work_on_what_is_behind(device: Device, real: Device) -> None:
    """With proxies on either side, in place, and by index, slice and conversion."""
    assert (device.first + device.channels[1]).number == 1
    assert operator.add(device.channels, [device.first])[2] is device.first
    channels = device.channels
    channels += [device.first]
    assert channels is device.channels
    assert (len(channels), len(real.channels), device.first in channels, Channel(device, 7) in channels) == (
        3,
        3,
        True,
        False,
    )
    assert [each.number for each in reversed(channels[:2])] == [1, 0]
    del channels[2]
    number = revokable_proxy(array.array("i", [5, 6]), Revokable())
    assert (number[0], bytes(device.buffer), bytes(number)) == (5, b"abc", array.array("i", [5, 6]).tobytes())
    weight: Any = revokable_proxy(np.array(3), Revokable())
    assert (int(weight), float(weight), complex(weight), 1 + weight, round(weight / 2, 1)) == (3, 3.0, 3 + 0j, 4, 1.5)
    assert f"{revokable_proxy(np.array(3), Revokable()):>3}" == "  3"
    assert os.fspath(revokable_proxy(pathlib.Path("x"), Revokable())) == "x"


@pytest.mark.parametrize(
    "use",
    [
        lambda channel: channel + 1,
        lambda channel: 1 + channel,
        len,
        iter,
        int,
        float,
        bytes,
        hash,
        operator.index,
        lambda channel: 1 in channel,
        lambda channel: channel[0],
        reversed,
        round,
        lambda channel: channel(),
        memoryview,
        lambda channel: channel.__enter__,
        lambda channel: channel.no_such_thing,
    ],
)
async def test_what_the_object_cannot_do_its_proxy_cannot(device: Device, use: Callable[[Any], object]) -> None:
    """With the error that the object raises."""
    kinds = []
    for channel in (Channel(Device(), 0), device.first):
        with pytest.raises((TypeError, AttributeError)) as caught:
            use(channel)
        kinds.append(caught.type)
    assert kinds[0] is kinds[1]


async def test_the_same_object_has_the_same_proxy(device: Device, real: Device, handle: Revokable) -> None:
    """Under one handle, as long as somebody has it; going in it is the object again."""
    assert device.first is device.channels[0] is next(iter(device)) is device.by_name["first"]
    assert device.first.device is device is revokable_proxy(real, handle) is revokable_proxy(device, handle)
    assert device.wait.__self__ is device  # type: ignore[attr-defined]
    assert device(device.first) is True
    device.setting = device
    assert real.setting is real
    assert device.setting is device
    other = revokable_proxy(real, Revokable("other"))
    assert other is not device
    device.setting = other
    assert is_proxy(real.setting)
    assert device.wait == device.wait
    assert device.wait != other.wait


async def test_what_goes_in_goes_in_raw(device: Device, real: Device) -> None:
    """Alone, and in what is handed in: which are copies, so that nothing can be left in them."""
    keep: list[object] = [device]
    assert device.is_raw(
        device, (device, keep), {"a": {device.wait}, device: Pair(0, device)}, also=frozenset([device])
    )
    device.setting = keep
    real.setting.append(real)
    assert keep == [device]
    plain = bytearray(b"x")
    device.setting = plain
    assert real.setting is plain


async def test_plain_values_come_out_as_they_are(device: Device, real: Device) -> None:
    """Exactly these types; what derives from one may carry more."""

    class Register(int):
        device = real

    assert device.mode is Mode.FAST
    assert device.make.__self__ is Device  # type: ignore[attr-defined]
    for value in (None, 1, 1.5, "a", b"a", ..., decimal.Decimal(1), ValueError("x"), Device, range(3)):
        real.setting = value
        assert device.setting is value
    real.setting = Register(3)
    assert is_proxy(device.setting)
    assert device.setting + 1 == 4
    assert type(device.pair) is Pair
    assert is_proxy(device.pair.channel)
    assert type(device.frozen) is frozenset
    assert [each is device for each in device.frozen] == [True]


async def test_everything_can_be_awaited_iterated_and_entered(device: Device, real: Device) -> None:
    """Coroutines of both kinds, awaitables, generators of both kinds, contexts of both kinds."""
    real.data.set()
    assert await device.wait() is await device.old() is await device.promise() is await device.quick() is device
    assert await device.quick(device.first, 1) == (device.first, 1)
    assert [each.number for each in device] == [0, 1]
    assert [each async for each in device.count()] == device.channels
    count: Any = device.count()
    assert (await count.asend(None)).device is device
    await count.aclose()
    each = device.each()
    assert (next(each), each.send(device.first)) == (device, device.first)
    with pytest.raises(StopIteration) as stopped:
        next(each)
    assert stopped.value.value is stopped.value.args[0] is device
    with device.session() as session, device.locked() as locked:
        assert (session.device, locked) == (device, device)
    async with device.session() as session, device.opened() as opened:
        assert (session.device, opened) == (device, device)
    assert real.log == ["entered", "left by None", "entered", "closed", "left by None"]


async def test_names_of_coroutines_stay(device: Device) -> None:
    """For the names of tasks, and warnings."""
    coroutine: Any = device.wait()
    assert (inspect.iscoroutine(coroutine), coroutine.__name__, coroutine.__qualname__) == (True, "wait", "Device.wait")
    coroutine.close()


async def test_a_block_belongs_to_its_task(device: Device, real: Device, handle: Revokable) -> None:
    """One context may be entered by several tasks at a time, and again by one, and they leave it in any order."""
    session = device.session()
    go, entered = [anyio.Event(), anyio.Event()], [anyio.Event(), anyio.Event()]

    async def hold(number: int) -> None:
        async with session, session:
            entered[number].set()
            await go[number].wait()

    async with anyio.create_task_group() as tasks:
        for number in range(2):
            start(tasks, hold, number)
            await entered[number].wait()
        assert handle.in_use == 4
        go[0].set()
        await settle()
        assert handle.in_use == 2
        go[1].set()
    assert (handle.in_use, real.log.count("left by None")) == (0, 4)
    with pytest.raises(RuntimeError, match="a block of 'device' is left that was not entered"):
        type(session).__exit__(session, None, None, None)


@asyncio_only  # trio ends no task that is in a block
@pytest.mark.parametrize("kind", ["with", "async with"])
@pytest.mark.parametrize("revoked", [False, True])
async def test_a_block_that_is_left_in_another_task_ends(
    device: Device, real: Device, handle: Revokable, kind: str, revoked: bool
) -> None:
    """As of a stack that a fixture or a generator keeps: the object's exit runs, and nobody is inside any more."""
    stack = contextlib.AsyncExitStack()

    async def enter() -> None:
        if kind == "with":
            stack.enter_context(device.session())
        else:
            await stack.enter_async_context(device.session())

    await asyncio.create_task(enter())
    act = handle.revoke() if revoked else None
    with contextlib.suppress(RuntimeError):  # anyio's, of its scope
        await stack.aclose()
    assert real.log == ["entered", "left by None"]
    assert handle.in_use == 0
    await (act or handle.revoke())


async def test_whose_block_a_stranger_leaves_must_be_clear(device: Device, real: Device, handle: Revokable) -> None:
    """Two tasks are in blocks of the same context: who has entered none leaves neither."""
    session: Any = device.session()

    async def hold() -> None:
        with session:
            await anyio.sleep_forever()

    async with anyio.create_task_group() as tasks:
        for _ in range(2):
            start(tasks, hold)
        await parked(handle, 2)
        with pytest.raises(RuntimeError, match="a block of 'device' is left that several other tasks have entered"):
            type(session).__exit__(session, None, None, None)
        assert real.log == ["entered"] * 2
        tasks.cancel_scope.cancel()
    assert handle.in_use == 0


async def test_a_block_passes_exceptions_to_the_object(device: Device, handle: Revokable) -> None:
    """Which may swallow them."""
    with revokable_proxy(contextlib.suppress(KeyError), handle):
        raise KeyError
    with pytest.raises(ValueError, match="x"), device.session():
        raise ValueError("x")
    assert device.log == ["entered", "left by ValueError"]
    mine = Channel(device, 2)
    with pytest.raises(AttributeError) as caught:
        async with device.session():
            mine.no_such_thing  # type: ignore[attr-defined]  # noqa: B018
    assert caught.value.obj is mine


async def test_errors_of_the_interpreter_show_proxies(device: Device) -> None:
    """What it puts into them is lent, too."""
    with pytest.raises(AttributeError, match="no attribute 'no_such_thing'") as missing:
        device.broken  # noqa: B018
    assert missing.value.obj is device
    with pytest.raises(KeyError) as unknown:
        device.by_name[device]  # type: ignore[index]
    assert unknown.value.args == (device,)
    assert unknown.value.args[0] is device
    with pytest.raises(ExceptionGroup) as several:
        device.all_broken()
    with pytest.raises(BaseExceptionGroup) as ended:
        device.all_broken(KeyboardInterrupt())
    _, missing_too, _ = ended.value.exceptions
    assert isinstance(missing_too, AttributeError)
    assert missing_too.obj is device
    inner, outer = several.value.exceptions
    assert isinstance(outer, AttributeError)
    assert isinstance(inner, ExceptionGroup)
    assert isinstance(inner.exceptions[0], AttributeError)
    assert outer.obj is inner.exceptions[0].obj is device


async def test_the_error_of_a_context_variable_shows_its_proxy(handle: Revokable) -> None:
    """A LookupError, whose argument it is."""
    variable = revokable_proxy(contextvars.ContextVar[int]("variable"), handle)
    with pytest.raises(LookupError) as caught:
        variable.get()
    assert caught.value.args[0] is variable


@asyncio_only
async def test_a_future_is_awaited_as_any_other(handle: Revokable) -> None:
    """By what asyncio has for that, too: these ask it for its loop, which is no secret."""

    async def seven() -> int:
        await settle()
        return 7

    def lent() -> asyncio.Future[int]:
        return revokable_proxy(asyncio.ensure_future(seven()), handle)

    with anyio.fail_after(10):
        assert list(await asyncio.gather(lent())) == [7]
        assert await asyncio.wait_for(lent(), 10) == 7
        assert await asyncio.shield(lent()) == 7
        assert [await each for each in asyncio.as_completed([lent()])] == [7]
        (done,), _ = await asyncio.wait([lent()])
        assert done.result() == 7


async def test_what_delegates_its_await_is_awaited(device: Device, handle: Revokable) -> None:
    """``__await__`` may be called by name, as by an object that is awaited by another: the kick ends it."""

    class Delegate:
        def __init__(self) -> None:
            self.promise = device.promise()

        def __await__(self) -> Generator[Any, Any, Device]:
            return self.promise.__await__()

    async def wait() -> Device:
        return await Delegate()

    async with anyio.create_task_group() as tasks:
        calls = [start(tasks, wait) for _ in range(2)]
        await parked(handle)
        device.data.set()
        await calls[0].done.wait()
        assert calls[0].outcome is device
    with pytest.raises(AttributeError):
        device.data.__await__  # type: ignore[attr-defined]  # noqa: B018
    handle.revoke()
    with pytest.raises(RevokedError):
        await wait()


def test_special_methods_need_not_be_functions() -> None:
    """Whatever the interpreter binds and calls: a partial method, or what a mock has."""

    class Fixed:
        def times(self, number: int) -> int:
            return number * self.unit

        __len__ = functools.partialmethod(times, 5)
        unit = 2

    handle = Revokable("handle")
    mock: Any = unittest.mock.MagicMock()
    mock.__len__.return_value = 3
    assert len(revokable_proxy(Fixed(), handle)) == 10
    lent = revokable_proxy(mock, handle)
    assert (len(lent), list(lent)) == (3, [])
    with lent:
        pass
    handle.revoke()
    with pytest.raises(RevokedError):
        len(lent)


def test_functions_of_numpy_refuse_and_operators_work() -> None:
    """A function of numpy would have to be lent what it is to work on."""
    handle = Revokable("handle")
    numbers: Any = revokable_proxy(np.arange(3), handle)
    for total in numbers + 1, 1 + numbers, np.ones(3) + numbers:
        assert total is not numbers
        assert list(total) == [1, 2, 3]
    with pytest.raises(TypeError, match="does not support ufuncs"):
        np.add(numbers, 1)
    with pytest.raises(TypeError, match="does not support ufuncs"):
        np.add(1, 1, out=numbers)
    with pytest.raises(ValueError, match="__array_struct__"):
        np.asarray(numbers)
    handle.revoke()
    with pytest.raises(RevokedError):
        np.ones(3) + numbers


async def test_an_error_that_cannot_be_changed_comes_out_as_it_is(device: Device) -> None:
    """One of the object's own, of the interpreter's kinds."""

    @dataclasses.dataclass(frozen=True)
    class Frozen(KeyError):
        code: int

    class ReadOnly(AttributeError):
        obj = property(lambda _: None)

    class Odd(LookupError):
        args = property(lambda _: 1 / 0)

    for error in Frozen(7), ReadOnly("x"), Odd():
        with pytest.raises(type(error)) as caught:
            device.fail(error)
        assert caught.value is error


def test_special_methods_are_the_types() -> None:
    """As in the interpreter, not the object's own."""

    class Odd:
        def __len__(self) -> int:
            return 1

    odd: Any = Odd()
    odd.__len__ = lambda: 2
    proxy = revokable_proxy(odd, Revokable())
    assert (len(odd), len(proxy), proxy.__len__()) == (1, 1, 2)


def test_a_buffer_is_not_handed_on() -> None:
    """Not even a view of it; what was read of it is a copy."""
    proxy: Any = revokable_proxy(bytearray(b"abc"), Revokable())
    view = revokable_proxy(memoryview(b"abc"), Revokable())
    for each in (proxy, view, view[1:]):
        with pytest.raises(TypeError, match="a bytes-like object is required"):
            memoryview(each)
    assert (bytes(proxy), bytes(view[1:]), proxy[1:] == b"bc") == (b"abc", b"bc", True)


async def test_a_copy_is_lent_too_and_a_pickle_refused(device: Device, real: Device) -> None:
    """A copy has the same sub-objects."""
    twin = copy.copy(device)
    assert is_proxy(twin)
    assert twin is not device
    assert twin.channels is device.channels
    deep = copy.deepcopy(device.buffer)
    assert (is_proxy(deep), deep == device.buffer, deep is device.buffer) == (True, True, False)
    assert is_proxy(copy.deepcopy([real.pair, device.buffer])[1])
    for protocol in range(pickle.HIGHEST_PROTOCOL + 1):
        with pytest.raises(TypeError, match="cannot pickle a proxy"):
            pickle.dumps(device, protocol)


class Raising:
    """A context whose entry or exit raises what the interpreter has put the context into."""

    def __init__(self, *, entering: bool) -> None:
        self._entering = entering

    def __enter__(self) -> None:
        if self._entering:
            raise KeyError(self)

    def __exit__(self, *_: object) -> None:
        raise KeyError(self)

    async def __aenter__(self) -> None:
        self.__enter__()

    async def __aexit__(self, *_: object) -> None:
        self.__exit__()


@pytest.mark.parametrize("entering", [True, False])
async def test_errors_of_a_block_show_proxies(handle: Revokable, entering: bool) -> None:
    """Those of its entry and of its exit."""
    lent = revokable_proxy(Raising(entering=entering), handle)
    for block in entered, entered_async:
        with pytest.raises(KeyError) as caught:
            await block(lent)
        assert caught.value.args[0] is lent


def test_what_has_an_index_alone_is_a_number_by_that() -> None:
    """As the interpreter has it."""

    class Index:
        def __index__(self) -> int:
            return 3

    lent = revokable_proxy(Index(), Revokable("handle"))
    assert (int(lent), float(lent), complex(lent)) == (3, 3.0, 3 + 0j)


# -- callbacks --


async def test_callbacks_get_proxies_and_give_what_is_behind(device: Device, real: Device) -> None:
    """Sync and async, functions and generators, by argument and by attribute; and they can be found again."""
    seen: list[object] = []

    def hear(thing: object) -> object:
        seen.append(thing)
        return thing

    async def answer(thing: object) -> object:
        await anyio.lowlevel.checkpoint()
        return hear(thing)

    async def answers(thing: object) -> AsyncIterator[object]:
        yield hear(thing)

    device.subscribe(hear)
    device.subscribe(seen.append)
    assert real.listeners[0](real) is real
    assert device.listeners[0] is hear
    assert await device.ask(answer)
    device.setting = answers
    assert [each is real async for each in real.setting(real)] == [True]
    assert all(each is device for each in seen)
    device.unsubscribe(seen.append)
    device.unsubscribe(hear)
    assert real.listeners == []


async def test_callbacks_die_with_the_handle(device: Device, real: Device, handle: Revokable) -> None:
    """The lender who calls one gets the error, also if he awaits it."""

    async def wait(_: object) -> None:
        await anyio.sleep_forever()

    seen: list[object] = []
    device.subscribe(seen.append)
    device.subscribe(wait)
    async with anyio.create_task_group() as tasks:
        call = start(tasks, real.listeners[1], real)
        await parked(handle)
        handle.revoke("unplugged")
        assert await outcome(call) == "RevokedError in flight"
    with pytest.raises(RevokedError, match="'device' was revoked: unplugged"):
        real.listeners[0](real)
    with pytest.raises(RevokedError):
        await real.listeners[1](real)
    assert seen == []


# -- taken away --


@pytest.mark.parametrize("way", ["coroutine", "item", "promise", "block"])
async def test_a_proxy_keeps_the_contract(way: str) -> None:
    """By whatever way one waits; methods that were fetched before are as good as the object."""

    @contextlib.asynccontextmanager
    async def maker() -> AsyncIterator[Subject]:
        owner = Revokable("owner")
        real = Device()
        gone = [0]

        def release() -> None:
            assert not real.running
            gone[0] += 1

        handle = owner.open("device", release=release)
        device = revokable_proxy(real, handle)
        events = real.events()
        wait, quick, promise, session = device.wait, device.quick, device.promise(), device.session()
        items = revokable_proxy(events, handle)

        async def item() -> object:
            return await anext(items)

        async def promised() -> object:
            return await promise

        async def block() -> object:
            async with session:
                await real.data.wait()
            return True

        ways: dict[str, Callable[[], Awaitable[object]]] = {
            "coroutine": wait,
            "item": item,
            "promise": promised,
            "block": block,
        }

        async def one() -> object:
            return await ways[way]()

        async def one_that_is_quick() -> object:
            return await quick()

        yield Subject(
            handle,
            one,
            quick=one_that_is_quick,
            feed=real.data.set,
            gone=lambda: gone[0],
            owner=owner,
            idle=way == "item",
        )
        await events.aclose()  # type: ignore[attr-defined]

    await check_revokable(maker)


async def test_every_way_in_is_closed(device: Device, real: Device, handle: Revokable) -> None:
    """Whatever was fetched before, and half-way."""
    wait, each, channels, first, items, count, pair = (
        device.wait,
        device.each(),
        device.channels,
        device.first,
        iter(device.channels),
        device.count(),
        device.pair,
    )
    next(each)
    next(items)
    await anext(count)
    coroutine, promise, session, static = device.wait(), device.promise(), device.session(), device.static
    assert hash(session)
    handle.revoke("unplugged")
    ways: list[Callable[[], object]] = [
        lambda: device.first,
        lambda: device.log,
        lambda: device.no_such_thing,  # type: ignore[attr-defined]
        lambda: setattr(device, "setting", 1),
        lambda: delattr(device, "setting"),
        lambda: vars(device),
        lambda: dir(device),
        lambda: str(device),
        lambda: bool(device),
        lambda: f"{device}",
        device,
        lambda: iter(device),
        lambda: copy.copy(device),
        lambda: copy.deepcopy(device),
        lambda: pickle.dumps(device),
        lambda: next(each),
        lambda: each.close(),  # noqa: PLW0108  # it is looked up by who comes later
        lambda: each.send(1),
        lambda: next(items),
        lambda: len(channels),
        lambda: channels[0],
        lambda: operator.add(channels, [1]),
        lambda: first + first,
        lambda: pair.channel.number,  # type: ignore[attr-defined]
        lambda: first.number,
        lambda: operator.lt(channels, channels),
        static,
        lambda: session.__enter__,
        lambda: type(session).__enter__(session),
        lambda: revokable_proxy(real, handle),
        lambda: hasattr(device, "nothing"),
    ]
    for way in ways:
        with pytest.raises(RevokedError, match="'device' was revoked: unplugged"):
            way()

    async def enter() -> None:
        async with session:
            pass

    waits: list[Callable[[], Any]] = [lambda: coroutine, device.wait, wait, lambda: promise, enter]
    waits += [lambda: anext(count), lambda: anext(device.count()), lambda: device.quick(1)]
    for each_wait in waits:
        with pytest.raises(RevokedError, match="'device' was revoked: unplugged"):
            await each_wait()
    assert real.log == []
    assert real.running == 0


async def test_what_its_owner_closed_says_so(device: Device, handle: Revokable) -> None:
    """In flight and later."""
    async with anyio.create_task_group() as tasks:
        call = start(tasks, device.wait)
        await parked(handle)
        await handle.aclose()
        assert await outcome(call) == "ClosedResourceError"
    with pytest.raises(anyio.ClosedResourceError, match="closed by its owner"):
        device.first  # noqa: B018
    with pytest.raises(anyio.ClosedResourceError):
        await device.wait()


async def test_a_dead_proxy_can_be_put_away(device: Device, real: Device, handle: Revokable) -> None:
    """It still has a class, a repr, and its place in sets, dicts and lists."""
    first, wait = device.log, device.wait
    places: Any = ({device, wait}, {device: 1}, [first, wait, device])
    handle.revoke("unplugged")
    assert isinstance(device, Device)
    assert repr(device) == "<proxy of a Device, <Revokable 'device' released in_use=0 open=0>>"
    for place in places:
        assert device in place
    places[0].remove(device)
    del places[1][device]
    places[2].remove(device)
    assert (device == real, device != real, device == device, device != device) == (False, True, True, False)  # noqa: PLR0124
    assert hash(device) == hash(real)
    later = revokable_proxy(real, Revokable())
    assert later not in places[0]


async def test_the_block_of_a_revoked_device_is_left_properly(device: Device, real: Device, handle: Revokable) -> None:
    """What it awaits is kicked, its exit runs before the release, and it raises; both kinds of block."""
    handle.release = lambda: real.log.append("released")

    async def block() -> None:
        with device.session():
            await anyio.sleep_forever()

    async def async_block() -> None:
        async with device.session():
            await anyio.sleep_forever()

    async with anyio.create_task_group() as tasks:
        calls = [start(tasks, each) for each in (block, async_block)]
        await parked(handle, 2)
        await handle.revoke()
        assert [await outcome(call) for call in calls] == ["RevokedError in flight"] * 2
    cancelled = anyio.get_cancelled_exc_class().__name__
    assert real.log == ["entered"] * 2 + [f"left by {cancelled}"] * 2 + ["released"]


async def test_a_block_that_awaits_nothing_is_waited_for(device: Device, real: Device, handle: Revokable) -> None:
    """Revoked from inside: the block goes on to its end, and only then the device is released."""
    handle.release = lambda: real.log.append("released")
    session = device.session()
    with session:
        handle.revoke()
        assert not handle.released
        with pytest.raises(RevokedError):
            session.device  # noqa: B018
    assert real.log == ["entered", "left by None", "released"]


async def test_a_call_that_revokes_ends_first(device: Device, real: Device, handle: Revokable) -> None:
    """The release runs when it has returned, and its result is delivered."""
    log = real.log

    def revoke() -> int:
        handle.revoke()
        log.append("returns")
        return 3

    handle.release = lambda: log.append("released")
    real.setting = revoke
    setting = device.setting
    assert setting() == 3
    assert log == ["returns", "released"]


async def test_nested_calls_have_the_grace(device: Device, real: Device, handle: Revokable) -> None:
    """Who is inside a block may go on to call until the kick; nobody else."""
    real.data.set()

    async def outside() -> object:
        return device.log

    async with anyio.create_task_group() as tasks:
        async with device.session():
            act = handle.revoke(grace=100)
            assert len(device.log) == 1
            assert await device.wait() is device
            assert await outcome(start(tasks, outside)) == "RevokedError"
        await act


async def test_coroutines_that_nobody_awaits_leave_nothing(device: Device, handle: Revokable) -> None:
    """Cancelled before their first step, or refused: no warning, which would be an error here."""
    async with anyio.create_task_group() as tasks:
        start(tasks, device.wait)
        tasks.cancel_scope.cancel()
    coroutine: Any = device.wait()
    coroutine.close()
    kept: Any = device.wait()
    handle.revoke()
    with pytest.raises(RevokedError):
        await kept
    del coroutine, kept
    gc.collect()


async def test_generators_that_are_half_way_are_ended(device: Device, real: Device, handle: Revokable) -> None:
    """By who comes for the next item: in his task, and without waiting there; kicked while they wait they end anyway."""

    @contextlib.asynccontextmanager
    async def noted(what: str) -> AsyncIterator[None]:
        try:
            yield
        finally:
            real.log.append(what)
            await anyio.sleep_forever()

    async def items(first: object) -> AsyncIterator[object]:
        async with noted(f"after {first}"):
            yield first
            await anyio.sleep_forever()

    real.setting = items
    async with anyio.create_task_group() as tasks:
        suspended, waiting = device.setting("one"), device.setting("two")
        assert [await anext(suspended), await anext(waiting)] == ["one", "two"]
        call = start(tasks, waiting.__anext__)
        await parked(handle)
        handle.revoke()
        assert await outcome(call) == "RevokedError in flight"
        assert real.log == ["after two"]
        for _ in range(2):
            with pytest.raises(RevokedError):
                await anext(suspended)
        assert real.log == ["after two", "after one"]


async def test_a_generator_that_is_half_way_is_ended_by_its_owners_close(handle: Revokable) -> None:
    """As by a revocation."""
    over: list[bool] = []

    async def numbers() -> AsyncIterator[int]:
        try:
            yield 1
            yield 2
        finally:
            over.append(True)

    generator = numbers()
    lent = revokable_proxy(generator, handle)
    assert await anext(lent) == 1
    handle.close()
    with pytest.raises(anyio.ClosedResourceError):
        await anext(lent)
    assert over == [True]


async def test_a_dead_generator_that_runs_is_left_to_who_runs_it(handle: Revokable) -> None:
    """It cannot be closed meanwhile: who asks it for more is told that it was revoked, and nothing else."""
    go_on = anyio.Event()

    async def numbers() -> AsyncGenerator[int]:
        with anyio.CancelScope(shield=True):
            await go_on.wait()
        yield 1

    generator = numbers()
    lent = revokable_proxy(generator, handle)
    async with anyio.create_task_group() as tasks:
        running = start(tasks, anext, lent)
        await parked(handle)
        handle.revoke()
        try:
            with pytest.raises(RevokedError):
                await anext(lent)
        finally:
            go_on.set()
        await running.done.wait()
    await generator.aclose()


async def test_a_loop_around_a_dead_device_starves_nobody(device: Device, handle: Revokable) -> None:
    """Calling its coroutines and async iterators is a checkpoint, though nothing runs."""
    handle.revoke()

    async def use() -> None:
        with pytest.raises(RevokedError):
            await device.wait()
        with pytest.raises(RevokedError):
            await anext(device.count())

    assert await turns_beside(use, 20) > 30


async def test_a_membrane_around_a_membrane(real: Device) -> None:
    """Either handle takes it away; what comes out is behind both."""
    for number in range(2):
        handles = [Revokable("outer"), Revokable("inner")]
        device = revokable_proxy(revokable_proxy(real, handles[1]), handles[0])
        first = device.first
        assert isinstance(first, Channel)
        assert device(first) is True
        assert await device.quick() is device
        handles[number].revoke()
        for proxy, name in ((device, "log"), (first, "number")):
            with pytest.raises(RevokedError, match=f"'{handles[number].name}' was revoked"):
                getattr(proxy, name)


def test_it_works_without_a_loop() -> None:
    """What is plain."""
    handle = Revokable("list")
    proxy = revokable_proxy([1, 2], handle)
    proxy.append(3)
    with revokable_proxy(contextlib.nullcontext(proxy), handle) as inside:
        assert inside is proxy
    handle.revoke()
    with pytest.raises(RevokedError):
        proxy.append(4)


@pytest.mark.parametrize(
    ("make", "match"),
    [
        (lambda: revokable_proxy([], "device"), "handle is 'device': give a Revokable"),  # type: ignore[arg-type]
        (lambda: revokable_proxy(3, Revokable()), "3 is a plain value, .*: give the object that you got it from"),
        (lambda: revokable_proxy(Device, Revokable()), "is a plain value"),
        (lambda: revokable_proxy(None, Revokable()), "None is a plain value"),
    ],
)
def test_what_cannot_be_lent_says_so(make: Callable[[], object], match: str) -> None:
    """And what to do."""
    with pytest.raises(TypeError, match=match):
        make()


async def test_nothing_is_kept(handle: Revokable) -> None:
    """The membrane lives as long as somebody has a proxy, and its objects no longer; neither does the handle's tree grow."""

    class Kept:
        pass

    real = Kept()
    proxy = revokable_proxy([real], handle)
    assert proxy[0]
    assert (handle.in_use, handle.children) == (0, ())
    del real, proxy
    gc.collect()
    assert not [each for each in gc.get_objects() if type(each) is Kept]


# -- nothing escapes --


def fine(value: object) -> bool:
    """Whether `value` may be outside: plain, a proxy, or made of these."""
    if type(value) in (tuple, frozenset, Pair):
        return all(map(fine, value))  # type: ignore[call-overload]
    if type(value) is types.MethodType:  # of the proxy itself, as what awaits it
        return is_proxy(value.__self__)
    return is_proxy(value) or type(value) in PLAIN or isinstance(value, (type, BaseException, enum.Enum))


class Come:
    """An event that has been."""

    async def wait(self) -> None:
        await anyio.lowlevel.checkpoint()


class Spy:
    """An operand, and whatever else is asked for, that keeps what it is given."""

    def __init__(self) -> None:
        self.seen: list[object] = []

    def see(self, *things: object) -> Any:
        self.seen += things
        return NotImplemented

    __eq__ = __lt__ = __gt__ = __radd__ = __rmatmul__ = __rsub__ = __ror__ = __rmul__ = see
    __hash__ = object.__hash__


#: What would leave nothing to be looked at, or end the test; blocks are entered as a whole.
NOT_CALLED = {"__init__", "__new__", "__class__", "__class_getitem__", "__deepcopy__", "__self_setattr__", "__anext__"}
NOT_CALLED |= {"clear", "pop", "popitem", "remove", "make", "asend", "athrow", "aclose"}
BLOCKS = {"__enter__", "__exit__", "__aenter__", "__aexit__"}
#: What is gone into: the device's own. All else is the interpreter's or the loop's, which others need.
OURS: tuple[type, ...] = (Device, Channel, Session, Promise, list, dict, bytearray, memoryview, property)
OURS += (type(iter([])), type({}.items()), types.GeneratorType, types.AsyncGeneratorType)
OURS += (contextlib.AbstractContextManager,)


async def entered(proxy: Any) -> object:
    with proxy as value:
        return value


async def entered_async(proxy: Any) -> object:
    async with proxy as value:
        return value


USES = (entered, entered_async, vars, dir, iter, next, list, tuple, set, dict, copy.copy, aiter, anext, operator.index)
OPERATIONS = (operator.add, operator.matmul, operator.eq, operator.lt, operator.or_, operator.mul, operator.sub)
ARGS: tuple[tuple[Any, ...], ...] = ((), (0,), (None, None, None))


class Walk:
    """Tries every attribute and special method of a proxy, and then of what comes out."""

    def __init__(self) -> None:
        self.seen: dict[int, object] = {}
        self.escaped: list[str] = []

    async def look_at(self, proxy: Any, path: str, depth: int = 0) -> None:
        self.seen[id(proxy)] = proxy
        for name, use in self.ways(proxy, depth):
            value = await self.outcome(use)
            if not fine(value):
                self.escaped.append(f"{path}.{name}: {type(value)}")
            for each in value if isinstance(value, tuple) else [value]:
                if is_proxy(each) and id(each) not in self.seen and depth < 2:
                    owner = each.__self__ if isinstance(each, types.MethodType) else each
                    if isinstance(owner, OURS):
                        await self.look_at(each, f"{path}.{name}", depth + 1)

    def ways(self, proxy: Any, depth: int) -> Iterator[tuple[str, Callable[[], Any]]]:
        kind: Any = type(proxy)
        names = {*kind.__dir__(proxy), *dir(object), "__wrapped__", "__self_dict__", "_self_state", "no_such_thing"}
        for name in sorted(name for name in names if isinstance(name, str)):  # as it may have been scribbled on
            yield name, functools.partial(getattr, proxy, name)
            if name not in NOT_CALLED and depth < 2:
                for args in (*ARGS, (proxy,)):
                    yield f"{name}()", functools.partial(self.call, proxy, name, *args)
        for name in dir(kind):
            if name.startswith("__") and name not in NOT_CALLED | BLOCKS:
                for args in (*ARGS, (proxy,)):
                    yield f"{name}()", functools.partial(self.call, kind, name, proxy, *args)
        for use in USES:
            yield use.__name__, functools.partial(use, proxy)
        for operate in OPERATIONS:
            yield operate.__name__, functools.partial(self.spied, operate, proxy)
            yield operate.__name__, functools.partial(operate, proxy, wrapt.ObjectProxy([1]))
            yield operate.__name__, functools.partial(operate, wrapt.ObjectProxy([1]), proxy)

    def call(self, owner: object, name: str, *args: object) -> object:
        return getattr(owner, name)(*args)

    def spied(self, operate: Callable[..., Any], proxy: object) -> object:
        spy, result = Spy(), None
        with contextlib.suppress(TypeError):
            result = operate(proxy, spy)
        return (result, *spy.seen)

    async def outcome(self, use: Callable[[], Any]) -> object:
        """What it returns, or what is in its exception."""
        try:
            value = use()
        except Exception as exc:  # noqa: BLE001
            value = exc
        if type(value).__name__ == "coroutine_wrapper":
            value = value.close()
        elif inspect.iscoroutine(value):
            async with anyio.create_task_group() as tasks:
                call = start(tasks, lambda: value)
                await settle()
                tasks.cancel_scope.cancel()  # as some wait for ever
            value = call.outcome
        if isinstance(value, Exception):
            carried = value.args if isinstance(value, KeyError) else ()
            return (getattr(value, "obj", None), getattr(value, "value", None), carried)
        if type(value) in (list, set, dict):  # which the caller has made himself
            return tuple(value.items() if type(value) is dict else value)
        return value


@pytest.mark.parametrize("anyio_backend", BACKENDS[:1], indirect=True)
async def test_nothing_escapes(device: Device, real: Device) -> None:
    """By whatever attribute, method, operator or special method, from the device and all that comes out of it."""
    real.data = Come()  # type: ignore[assignment]
    walk = Walk()
    await walk.look_at(device, "device")
    assert walk.escaped == []
    assert len(walk.seen) > 100


class Register(int):
    """A value that may carry more."""


class Text(str):
    __slots__ = ()


SAMPLES: list[Callable[[], object]] = [
    *(
        object,
        Device,
        lambda: Session(Device()),
        lambda: Promise(Device()),
        lambda: Channel(Device(), 1),
        Spy,
        Register,
    ),
    *(
        list,
        dict,
        set,
        bytearray,
        Text,
        collections.deque,
        collections.Counter,
        io.BytesIO,
        io.StringIO,
        threading.Lock,
    ),
    *(
        lambda: memoryview(b"abc"),
        lambda: array.array("i"),
        lambda: np.array(1.5),
        lambda: np.arange(3),
        lambda: slice(1),
    ),
    *(lambda: iter([]), {}.keys, lambda: zip([]), lambda: Device().each(), lambda: Device().count()),
    *(
        lambda: len,
        lambda: fine,
        lambda: Device().wait,
        lambda: functools.partial(int),
        lambda: Device.first,
        lambda: io,
    ),
    *(lambda: pathlib.Path("x"), lambda: weakref.ref(Device), contextlib.nullcontext, types.SimpleNamespace),
    *(lambda: Device().opened(), lambda: [].__len__, lambda: list.append, lambda: re.compile("x"), lambda: int | str),
]


async def await_it(proxy: Any) -> object:
    return await proxy


#: What makes no way in, and what is said to survive.
NO_WAY_IN = "class new init del init_subclass subclasshook class_getitem buffer release_buffer getattribute".split()  # noqa: SIM905
NO_WAY_IN += ["array_ufunc", "array_function"]
SURVIVES = ["repr", "eq", "ne", "hash"]


@pytest.mark.parametrize("make", SAMPLES, ids=lambda make: type(make()).__name__)
@pytest.mark.parametrize("anyio_backend", BACKENDS[:1], indirect=True)
async def test_every_special_method_is_guarded(make: Callable[[], Any]) -> None:
    """Those of the type, and those of wrapt's proxies: each is refused, or says that there is no such thing."""
    handle = Revokable("device")
    real = make()
    proxy: Any = revokable_proxy(real, handle)
    handle.revoke("unplugged")
    exempt = {f"__{name}__" for name in (*NO_WAY_IN, *SURVIVES)}
    own = {name for name in dir(type(real)) if name.startswith("__") and callable(getattr(type(real), name, None))}
    inherited = {name for name in dir(wrapt.BaseObjectProxy) if callable(getattr(wrapt.BaseObjectProxy, name))}
    for name in (own | inherited) - exempt:
        method = getattr(type(proxy), name)
        if method is None:
            assert name not in own or getattr(type(real), name) is None
            continue
        for args in ((), (1,), ("a", 1), (None, None, None)):
            try:
                value = (await_it if name == "__await__" else method)(proxy, *args)
                value = await value if inspect.iscoroutine(value) else value
                refused = value is NotImplemented and name not in own
            except RevokedError:
                refused = True
            except TypeError as exc:
                refused = "argument" in str(exc)  # of wrong number
            except RuntimeError:
                refused = name in ("__exit__", "__aexit__")  # of what was not entered
            assert refused, (name, args)
    for name in SURVIVES:
        assert callable(getattr(type(proxy), f"__{name}__")) == callable(getattr(type(real), f"__{name}__"))


@pytest.mark.parametrize("make", SAMPLES, ids=lambda make: type(make()).__name__)
def test_wrapt_finds_nothing(make: Callable[[], Any]) -> None:
    """Not by its own methods, which others may use on whatever is a proxy of it, nor by its operators."""
    proxy: Any = revokable_proxy(make(), Revokable("device"))
    for name in sorted({*dir(wrapt.BaseObjectProxy)} - {*dir(object)} | {"__getattribute__", "__str__", "__repr__"}):
        found: Any = inspect.getattr_static(wrapt.BaseObjectProxy, name)
        if name in ("__class_getitem__", "__dict__", "__self_dict__", "__object_proxy__", "__self_setattr__"):
            continue
        with contextlib.suppress(AttributeError, TypeError, ValueError, NotImplementedError):
            value = found.__get__(proxy) if hasattr(found, "__set__") else found(proxy, "__wrapped__")
            assert not value, name
    for operate in (operator.add, operator.mul, operator.or_, operator.sub, operator.iadd):
        with pytest.raises(AttributeError):
            operate(wrapt.ObjectProxy(1), proxy)
