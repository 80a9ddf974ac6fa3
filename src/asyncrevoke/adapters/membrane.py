"""A membrane: any object, lent behind a handle, and with it all objects that you reach through it (RFC, spot 7).

The kernel puts a wrapper around each method of a file (debugfs: FULL_PROXY_FUNC, procfs: proc_reg_file_ops). An object
of Python has too many ways in to write them down. Here they are made from its type, and every result is lent as well.

This is not a sandbox. Python's introspection leads through: `gc`, `ctypes`, `object.__getattribute__`, and frames,
which are those of coroutines and of tracebacks. So does everything that you can import: classes, with all that is kept
in them.
"""

from __future__ import annotations

import asyncio
import contextlib
import copy
import datetime as dt
import decimal
import enum
import fractions
import functools
import inspect
import operator
import types
import uuid
import weakref
from collections.abc import AsyncIterator, Callable, Iterator
from typing import Any, NoReturn, TypeVar

import anyio
import anyio.lowlevel
import wrapt

from asyncrevoke.lowlevel import Revokable, RevokedError

T = TypeVar("T")

#: Values that lead nowhere: they pass as they are, if they are exactly of these types, not of one derived from them.
PLAIN: set[type] = {type(None), type(...), type(NotImplemented), bool, int, float, complex, str, bytes, range}
PLAIN |= {dt.date, dt.time, dt.datetime, dt.timedelta, dt.timezone, decimal.Decimal, fractions.Fraction, uuid.UUID}
#: All of these pass, too: to compare, to catch and to raise. So does the loop: code that awaits a future asks it for that.
PLAIN_KINDS = (type, BaseException, enum.Enum, asyncio.AbstractEventLoop)


def revokable_proxy(obj: T, handle: Revokable) -> T:
    """Lend `obj` behind `handle`: a proxy of it, which works until the handle is revoked or closed. You still own
    `obj`.

    After that everything raises `RevokedError`, or ClosedResourceError if the handle's owner closed it: attributes,
    methods that were fetched before, operators, iterators and contexts half-way. Waits are kicked.

    - Results: plain values (`PLAIN`, `PLAIN_KINDS`) come out as they are. So do tuples and frozensets, with each
      item by these rules. Everything else comes out as a proxy: the same one for the same object, as long as somebody has it. A
      buffer is not handed on: `bytes(proxy)` copies.
    - Arguments: a proxy of the same handle goes in as the object behind it. Lists, dicts and sets go in as copies; one
      that contains itself is a RecursionError. Functions, other callables that are not classes, and generators go in as
      proxies that die with the handle, too. All other objects of the caller go in as they are, and what the lent object
      does to them is not guarded. A callback that the lent object has kept raises to you from then on, and to the next
      borrower. Take it out in `release`, or lend a new object each time.
    - Operations: a call, an attribute, and an item of an iterator are operations. An await is one that is kicked, as
      with `Revokable.using`. An item of an async iterator is an idle one. A `with` or `async with` block is one from
      its entry to its exit. On a revocation its awaits are kicked, all else in it refuses, and the object's own exit
      runs. If the block still ends normally, so does the exit: a database commits. If you call `__enter__` by name, it
      is only a call. If a block is left in another task than it was entered in, as by a kept stack, it is left then,
      and anyio raises its RuntimeError. It is not left if several tasks are in blocks of the object.
    - Like any cancellation, the kick cancels a task or future of the lender's that is being awaited. Shield it if it
      must go on.
    - A revoked async generator that is half-way is closed when you ask for its next item, which fails. A plain one is
      closed with its last reference. What the borrower calls in a `finally`, such as `close`, raises as everything else
      does.
    - An exception passes as it is, with the objects it carries.
    - A dead proxy still has its `__class__`, a `repr` (but no `str`), a hash and `==` by identity. So you can take it
      out of the place where it is kept. A coroutine function or async generator function of it raises when it is
      awaited, which is a checkpoint. The object behind it stays in memory as long as somebody keeps the proxy.

    Use it in the thread of the handle's loop; this is not checked. A proxy cannot be pickled. A copy of it is a proxy
    of a copy. Code that insists on the real type does not accept a proxy, as the interpreter in ``[1] + proxy``, and
    ``json.dumps``. ``list(proxy)`` is a list, of proxies if something is nested. Code that goes by identity does not
    recognise one, as `dataclasses.fields`. The ufuncs of numpy refuse one.

    :raises TypeError: if `obj` is a plain value, or `handle` is not a `Revokable`
    :raises RevokedError, ~anyio.ClosedResourceError: if the handle was revoked or closed
    """
    if not isinstance(handle, Revokable):
        raise TypeError(f"handle is {handle!r}: give a Revokable, as open() returns it")
    if _is_plain(type(obj)):
        raise TypeError(f"{obj!r} is a plain value, which cannot be revoked: give the object that you got it from")
    side = _sides.get(id(handle))
    if side is None:
        side = _sides[id(handle)] = _Side(handle)
    lent: T = side.call(_itself, obj)
    return lent


_NOTHING: dict[str, Any] = {}


class _Side:
    """One side of a membrane, with its proxies of the other. Borrowers are outside. `other` is the lender's side: its
    proxies are of the functions that were passed in.
    """

    def __init__(self, handle: Revokable, other: _Side | None = None) -> None:
        self.handle = handle
        self.inward = other is not None
        self.other: _Side = other or _Side(handle, self)
        self._copied = (frozenset, list, dict, set) if self.inward else (frozenset,)
        self._proxies: weakref.WeakValueDictionary[int, _Proxy] = weakref.WeakValueDictionary()

    def wrap(self, value: Any) -> Any:
        """Return what this side gets when the other gives `value`."""
        kind = type(value)  # not its __class__, which may be what it likes
        if _is_plain(kind):
            return value
        if issubclass(kind, _Proxy) and (state := _state(value)).side in (self, self.other):
            return value if state.side is self else state.object
        if kind in self._copied:
            return kind(map(self.wrap, value.items() if kind is dict else value))
        if kind is tuple or (issubclass(kind, tuple) and hasattr(kind, "_fields")):
            return tuple.__new__(kind, map(self.wrap, value))
        if issubclass(kind, types.CoroutineType | types.GeneratorType) and inspect.isawaitable(value):
            return self._coroutine(value)
        generates = issubclass(kind, types.GeneratorType | types.AsyncGeneratorType)
        return value if self.inward and not generates and not callable(value) else self.proxy(value)

    def proxy(self, obj: object) -> _Proxy:
        found = self._proxies.get(id(obj))
        if found is None:
            found = self._proxies[id(obj)] = _class_for(type(obj))(_State(self, obj))
        return found

    def call(self, function: Callable[..., Any], obj: object, args: Any = (), kwargs: Any = _NOTHING) -> Any:
        """``function(obj, ...)``, at once, as an operation."""
        entered = self.handle.start_using()
        if not entered and not (function is _special("__call__") and _starts_nothing(obj)):
            with self.handle.using():  # which raises why
                pass
        try:
            wrap = self.other.wrap
            return self.wrap(function(obj, *map(wrap, args), **{name: wrap(arg) for name, arg in kwargs.items()}))
        except BaseException as exc:
            self.tell(exc)
            raise
        finally:
            if entered:
                self.handle.stop_using()

    async def awaited(self, function: Callable[[Any], Any], obj: object, *, idle: bool = False) -> Any:
        """``await function(obj)``, as an operation."""
        if self.handle.revoked:
            await anyio.lowlevel.checkpoint()  # a loop around what is dead starves nobody
        with self.telling(), self.handle.using(idle=idle):
            return self.wrap(await function(obj))

    def tell(self, error: BaseException) -> None:
        """Lend the objects that the interpreter itself puts into its errors."""
        with contextlib.suppress(Exception):  # of one of the object's own, which cannot be changed
            match error:
                case BaseExceptionGroup():
                    for each in error.exceptions:
                        self.tell(each)
                case AttributeError():
                    error.obj = self.wrap(error.obj)
                case StopIteration():
                    error.value, error.args = self.wrap(error.value), self.wrap(error.args)
                case LookupError():
                    error.args = self.wrap(error.args)

    @contextlib.contextmanager
    def telling(self) -> Iterator[None]:
        try:
            yield
        except BaseException as exc:
            self.tell(exc)
            raise

    def _coroutine(self, inner: Any) -> Any:
        outer: Any = self.awaited(_itself, inner)
        outer.__name__, outer.__qualname__ = inner.__name__, inner.__qualname__
        weakref.finalize(outer, inner.close).atexit = False  # it may be refused, or never awaited
        return outer


def _itself(obj: T) -> T:
    return obj


#: Sides by the id of their handle. A side keeps its handle alive, and its proxies keep the side alive.
_sides: weakref.WeakValueDictionary[int, _Side] = weakref.WeakValueDictionary()


class _State:
    """The object and the side behind a proxy."""

    def __init__(self, side: _Side, obj: object) -> None:
        self.side = side
        self.object = obj
        self.hash: int | None = None
        self.blocks: dict[int, list[Any]] = {}  # entered and not left, by task


def _guarded(function: Callable[..., Any]) -> Callable[..., Any]:
    """Make a special method that does ``function(obj, ...)``."""

    def method(self: _Proxy, /, *args: object, **kwargs: object) -> Any:
        state = _state(self)
        return state.side.call(function, state.object, args, kwargs)

    return method


@functools.cache
def _special(name: str) -> Callable[..., Any]:
    """Do what the interpreter does for a special method: ask the type, not the object, and leave the other operand
    alone.
    """

    def operate(obj: object, /, *args: object, **kwargs: object) -> Any:
        kind = type(obj)
        method = next(vars(base)[name] for base in kind.__mro__ if name in vars(base))
        return (method.__get__(obj, kind) if hasattr(type(method), "__get__") else method)(*args, **kwargs)

    return operate


def _compared(name: str) -> Callable[..., Any]:
    def method(self: _Proxy, other: object) -> Any:
        state = _state(self)
        return NotImplemented if state.side.handle.revoked else state.side.call(_special(name), state.object, [other])

    return method


def _reduce(obj: object, *_: object) -> NoReturn:
    raise TypeError(f"cannot pickle a proxy of {obj!r}: it is only lent")


_COPYING: dict[str, Callable[..., Any]] = {
    "__copy__": copy.copy,
    "__deepcopy__": copy.deepcopy,
    "__reduce__": _reduce,
    "__reduce_ex__": _reduce,
}


class _Proxy(wrapt.BaseObjectProxy[Any]):
    """A proxy that wrapt takes for one, but finds empty. So a method that is not guarded here leads nowhere.

    wrapt's own operators go straight to the wrapped object, and hand it out raw.
    """

    def __init__(self, state: _State) -> None:
        super().__setattr__("_self_state", state)

    def __getattribute__(self, name: str) -> Any:
        if name == "__class__":
            return _state(self).object.__class__
        raise AttributeError(name)  # which has __getattr__ asked

    def __getattr__(self, name: str) -> Any:
        state = _state(self)
        if name == "__await__" and getattr(type(self), name, None) is not None:  # an object that delegates asks by name
            return types.MethodType(_await, self)
        if name in _COPYING:  # which `copy` and `pickle` ask the object for
            return state.side.call(lambda obj: functools.partial(_COPYING[name], obj), state.object)
        if state.side.handle.revoked:
            found = inspect.getattr_static(type(state.object), name, None)
            if _starts_nothing(found):
                return state.side.proxy(types.MethodType(found, state.object))
        return state.side.call(getattr, state.object, [name])

    __setattr__ = _guarded(setattr)
    __delattr__ = _guarded(delattr)
    __copy__, __deepcopy__, __reduce__, __reduce_ex__ = map(_guarded, _COPYING.values())

    def __repr__(self) -> str:
        state = _state(self)
        if state.side.handle.revoked:
            return f"<proxy of a {type(state.object).__name__}, {state.side.handle!r}>"
        return f"<proxy of {state.side.call(repr, state.object)}>"

    __eq__, __ne__ = map(_compared, ["__eq__", "__ne__"])

    def __hash__(self) -> int:
        state = _state(self)
        if state.hash is None:  # and from then on it stays what it is
            dead = state.side.handle.revoked
            state.hash = object.__hash__(self) if dead else state.side.call(hash, state.object)
        return state.hash


def _state(proxy: _Proxy) -> _State:
    state: _State = object.__getattribute__(proxy, "_self_state")
    return state


def _is_plain(kind: type) -> bool:
    return kind in PLAIN or issubclass(kind, PLAIN_KINDS)


def _starts_nothing(function: object) -> bool:
    """Whether calling it makes something to await, and runs nothing yet."""
    while type(function) is types.MethodType:
        function = function.__func__
    kinds = inspect.CO_COROUTINE | inspect.CO_ASYNC_GENERATOR
    return type(function) is types.FunctionType and bool(function.__code__.co_flags & kinds)


# -- special methods, which the interpreter looks up in the type --


def _await(self: _Proxy, /) -> Iterator[Any]:
    state = _state(self)
    return state.side.awaited(_itself, state.object).__await__()


async def _anext(self: _Proxy, /) -> Any:
    state = _state(self)
    try:
        return await state.side.awaited(_special("__anext__"), state.object, idle=True)
    except (RevokedError, anyio.ClosedResourceError):
        generator: Any = state.object
        half_way = isinstance(generator, types.AsyncGeneratorType) and not generator.ag_running
        if half_way and state.side.handle.revoked:  # nobody else can close it, nor in the task that has run it
            await anyio.aclose_forcefully(state.object)  # type: ignore[arg-type]
        raise


@contextlib.contextmanager
def _block(side: _Side, obj: Any) -> Iterator[Any]:
    with side.handle.using(), obj as value:
        yield side.wrap(value)


@contextlib.asynccontextmanager
async def _async_block(side: _Side, obj: Any) -> AsyncIterator[Any]:
    if side.handle.revoked:
        await anyio.lowlevel.checkpoint()
    with side.handle.using():
        async with obj as value:
            yield side.wrap(value)


def _enter(self: _Proxy, /) -> Any:
    state = _state(self)
    block = _block(state.side, state.object)
    with state.side.telling():
        value = block.__enter__()
    state.blocks.setdefault(_task(), []).append(block)
    return value


def _exit(self: _Proxy, kind: Any, exc: Any, tb: Any, /) -> Any:
    state = _state(self)
    with state.side.telling():
        return _innermost(state).__exit__(kind, exc, tb)


async def _aenter(self: _Proxy, /) -> Any:
    state = _state(self)
    block = _async_block(state.side, state.object)
    with state.side.telling():
        value = await block.__aenter__()
    state.blocks.setdefault(_task(), []).append(block)
    return value


async def _aexit(self: _Proxy, kind: Any, exc: Any, tb: Any, /) -> Any:
    state = _state(self)
    with state.side.telling():
        return await _innermost(state).__aexit__(kind, exc, tb)


def _innermost(state: _State) -> Any:
    """Return the block that is left: the last that this task has entered. If it has none, the only task that has
    any.
    """
    task = _task()
    if task not in state.blocks and len(state.blocks) == 1:
        (task,) = state.blocks
    blocks = state.blocks.get(task)
    if blocks is None:
        whose = "several other tasks have" if state.blocks else "was not"
        raise RuntimeError(f"a block of {state.side.handle.path!r} is left that {whose} entered")
    block = blocks.pop()
    if not blocks:
        del state.blocks[task]
    return block


def _task() -> int:
    try:
        return anyio.get_current_task().id
    except (RuntimeError, AttributeError):  # no loop, or a callback of one
        return 0


_BLOCKS_AND_AWAITS = {
    "__await__": _await,
    "__anext__": _anext,
    "__enter__": _enter,
    "__exit__": _exit,
    "__aenter__": _aenter,
    "__aexit__": _aexit,
}

#: Special methods that the interpreter replaces by others if they are missing, and by which.
_BY_OTHERS: dict[str, tuple[Callable[..., Any], set[str]]] = {
    "__int__": (int, {"__index__", "__trunc__"}),
    "__float__": (float, {"__index__"}),
    "__complex__": (complex, {"__float__", "__index__"}),
    "__bytes__": (bytes, {"__iter__", "__getitem__"}),
    "__contains__": (operator.contains, {"__iter__", "__getitem__"}),
    "__reversed__": (reversed, {"__getitem__"}),
    "__bool__": (bool, {"__class__"}),
}

_NUMERIC = ("add", "sub", "mul", "matmul", "truediv", "floordiv", "mod", "divmod", "pow")
_BITWISE = ("lshift", "rshift", "and", "xor", "or")
_BINARY = {f"__{how}{name}__" for how in ("", "r", "i") for name in _NUMERIC + _BITWISE}

#: Special methods that are no way into a lent object, or that `_Proxy` has of its own.
_OWN = {*vars(_Proxy), "__new__", "__del__", "__init_subclass__", "__subclasshook__", "__class_getitem__"}
_OWN |= {"__buffer__", "__release_buffer__", "__array_function__"}
#: Those that wrapt forwards whether the object has them or not.
_INHERITED = dict(inspect.getmembers_static(wrapt.BaseObjectProxy, callable)).keys() - _OWN - {*dir(object)}

_classes: weakref.WeakKeyDictionary[type, type[_Proxy]] = weakref.WeakKeyDictionary()


def _class_for(kind: type) -> type[_Proxy]:
    """Return the class of a type's proxies. It has the special methods of the type, so that code that asks for those
    gets the same answer.
    """
    found = _classes.get(kind)
    if found is None:
        has = {name: value for base in reversed(kind.__mro__) for name, value in vars(base).items()}
        methods: dict[str, Any] = {"__slots__": (), "__iter__": None}
        for name in _INHERITED:
            function, others = _BY_OTHERS.get(name, (None, set()))
            methods[name] = _guarded(function) if function and not others.isdisjoint(has) else None
        methods.update(dict.fromkeys(_BINARY, _not_implemented))
        for name, value in has.items():
            called = callable(value) or (hasattr(value, "__get__") and not inspect.isdatadescriptor(value))
            if name.startswith("__") and name.endswith("__") and name not in _OWN and called:
                methods[name] = _BLOCKS_AND_AWAITS.get(name) or _guarded(_special(name))
        if "__getitem__" in has and "__iter__" not in has:
            del methods["__iter__"]
        if "__array_ufunc__" in has:  # so numpy's functions refuse a proxy, and its operators ask the proxy's
            methods["__array_ufunc__"] = None
        if has["__hash__"] is None:
            methods["__hash__"] = None
        found = _classes[kind] = type(f"Proxy[{kind.__name__}]", (_Proxy,), methods)
    return found


def _not_implemented(*_: object) -> Any:
    return NotImplemented
