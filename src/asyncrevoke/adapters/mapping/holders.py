"""A search for whatever still holds a buffer: views of it, slices, arrays, and what these are kept in. For reports: it
looks at all objects.
"""

import contextlib
import gc
import inspect
import itertools
import sys
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from types import AsyncGeneratorType, CoroutineType, FrameType, GeneratorType, ModuleType
from typing import Any

_DEPTH = 10  # arrays that are made of arrays
_FRAME: dict[type, str] = {CoroutineType: "cr", GeneratorType: "gi", AsyncGeneratorType: "ag"}


@dataclass(frozen=True, slots=True)
class Holder:
    """Something that keeps a view of a buffer alive.

    :ivar what: the view: "memoryview of 4096 bytes", "ndarray of ..."
    :ivar where: what keeps it: a variable of a function and its line, an attribute, a container
    """

    what: str
    where: str

    def __str__(self) -> str:
        return f"{self.what} in {self.where}"


def holders_of(exporters: Iterable[object]) -> list[Holder]:
    """Find what holds views of these objects' buffers, directly or by an array made of one.

    Of the objects that `gc.freeze` has set aside, only the variables of modules are searched.
    """
    gc.collect()  # what is only waiting to be collected holds nothing
    views = _views_of(list(exporters))
    if not views:
        return []
    found: dict[Holder, None] = {}
    ours = {id(views), *map(id, views)}
    for container in itertools.chain(gc.get_objects(), map(_dict_of, _modules())):  # a list would find itself
        # A module's variables are in a dict of their own; to ask _asyncio itself breaks its list of free objects (3.12).
        passed_over = type(container) in (FrameType, ModuleType) or _runs(container)
        if id(container) not in ours and not passed_over:
            for name, view in _held(gc.get_referents(container), views):
                found[Holder(name, _describe(container, view))] = None
    for frame in _frames():
        variables = frame.f_locals
        for variable, value in list(variables.items()):
            for name, _ in _held([value], views):
                found[Holder(name, f"variable {variable!r} of {_place(frame)}")] = None
        if frame.f_code.co_flags & inspect.CO_OPTIMIZED and sys.version_info < (3, 13):
            variables.clear()  # a copy, which the frame would keep
    return list(found)


def _views_of(exporters: list[object]) -> list[memoryview]:
    buffers = [each for each in gc.get_referrers(*exporters) if type(each).__name__ == "managedbuffer"]
    return [each for each in gc.get_referrers(*buffers) if type(each) is memoryview] if buffers else []


def _held(values: Iterable[Any], views: list[memoryview]) -> Iterator[tuple[str, Any]]:
    """Return the values that are views, or arrays made of one. The garbage collector does not know arrays, nor objects
    that contain no others.
    """
    known = set(map(id, views))
    for value in values:
        if id(value) in known:
            with contextlib.suppress(ValueError):  # it was released, as far as it can be while something is made of it
                yield f"memoryview of {value.nbytes} bytes", value
        elif type(value) in (dict, tuple) and not gc.is_tracked(value):
            yield from _held(gc.get_referents(value), views)
        elif hasattr(type(value), "__array_interface__"):
            base = value
            for _ in range(_DEPTH):
                base = getattr(base, "base", None)
                if id(base) in known:
                    yield f"{type(value).__name__} of {value.nbytes} bytes", value
                    break


def _frames() -> list[FrameType]:
    """Yield the frames of all functions that run, except ours."""
    found = []
    unvisited: list[FrameType | None] = [*sys._current_frames().values()]
    while unvisited:  # no variable is left that holds our own, which would hold itself
        frame = unvisited.pop()
        if frame is not None:
            unvisited.append(frame.f_back)
            if frame.f_globals is not globals():
                found.append(frame)
    return found


# Of what may be anything only the type is asked: an attribute may be made as it is looked for.


def _runs(container: object) -> bool:
    """Whether it is a coroutine or a generator whose frame is among those that run."""
    kind = _FRAME.get(type(container))
    return kind is not None and bool(getattr(container, f"{kind}_running"))


def _place(frame: FrameType) -> str:
    return f"{frame.f_code.co_qualname}, {frame.f_code.co_filename}:{frame.f_lineno}"


def _describe(container: object, view: object) -> str:
    if kind := _FRAME.get(type(container)):
        return f"{type(container).__name__} {_place(getattr(container, f'{kind}_frame'))}"
    if type(container) is dict:
        name = next((repr(key) for key, value in container.items() if value is view), "a value")
        owners = [*_modules(), *gc.get_referrers(container)]
        owner = next((each for each in owners if _dict_of(each) is container), None)
        return f"{name} of {'a dict' if owner is None else _name(owner)}"
    return _name(container)


def _modules() -> list[ModuleType]:
    return [each for each in list(sys.modules.values()) if type(each) is ModuleType]


def _dict_of(thing: object) -> object:
    with contextlib.suppress(AttributeError):
        return object.__getattribute__(thing, "__dict__")
    return None


def _name(thing: object) -> str:
    return f"module {thing.__name__}" if type(thing) is ModuleType else f"a {type(thing).__qualname__}"
