"""A file in memory that can be revoked: new access is refused, and existing views of it stay safe (RFC, spot 4).

The kernel zaps pages (kernfs_drain_open_files, unmap_mapping_range), and code that touches one dies of SIGBUS. Here
pages are replaced in place, by mmap(2) with MAP_FIXED. After that, a kept view, a slice or an array of it, and a
pointer that a C extension has kept read zeros. What is written there does not reach the file. This holds as long as the
view is alive.
"""

import ctypes
import errno
import math
import mmap
import operator
import os
import stat
import weakref
from collections.abc import Iterable, Iterator
from contextlib import contextmanager, suppress
from types import EllipsisType
from typing import Any, Literal, SupportsIndex, overload

import anyio.abc
import anyio.lowlevel

from asyncrevoke.answers import Answers
from asyncrevoke.lowlevel import (
    Handled,
    HasDescriptor,
    Owner,
    Revokable,
    RevokedError,
    handle_of,
    off_loop,
    stop_using_threadsafe,
)

from .holders import Holder, holders_of

_MAP_FIXED = 0x10  # include/uapi/asm-generic/mman-common.h
_libc = ctypes.CDLL(None, use_errno=True)
_libc.mmap.argtypes = (ctypes.c_void_p, ctypes.c_size_t, *[ctypes.c_int] * 3, ctypes.c_long)
_libc.mmap.restype = ctypes.c_void_p
for _copy in _libc.process_vm_readv, _libc.process_vm_writev:
    _copy.argtypes = (ctypes.c_int, ctypes.c_void_p, ctypes.c_ulong, ctypes.c_void_p, ctypes.c_ulong, ctypes.c_ulong)
    _copy.restype = ctypes.c_ssize_t


class Mapping(Handled):
    """A file in memory: ``async with Mapping(file, write=True) as data: data[:4] = b"text"; data[-1]``

    Indices and slices copy, at once. If the file was truncated meanwhile, you get an error, where a plain mmap dies of
    SIGBUS. `using` gives a view for as long as an operation runs, and `view` one to keep:
    ``numpy.frombuffer(data.view(), numpy.uint8)``.

    :param file: a file, or its descriptor. You still own it
    :param length: in bytes; 0: to the end of the file
    :param offset: in bytes, a multiple of `mmap.ALLOCATIONGRANULARITY`
    :param write: it can be written, and what is written goes to the file
    :param views: what becomes of existing views when it is revoked. "replace": they read zeros. "release": using them
        raises ValueError, as after `memoryview.release`, and slices and arrays made of them read zeros. "wait": they do
        not change, and the revocation waits until the last one is gone, yours too; `holders` lists what keeps them
    :param owner, name, also, answers: as for `RevokableStream`
    :raises OSError: if the file is not open, or cannot be mapped in this way
    :raises ValueError: if it is empty, or has nothing there
    :raises RevokedError: if the owner was revoked; its `errno` is what the profile says of mmap
    """

    def __init__(
        self,
        file: int | HasDescriptor,
        length: int = 0,
        *,
        offset: int = 0,
        write: bool = False,
        views: Literal["replace", "release", "wait"] = "replace",
        owner: Owner = None,
        name: str = "",
        also: Iterable[Revokable] = (),
        answers: Answers | EllipsisType = ...,
    ) -> None:
        if views not in ("replace", "release", "wait"):
            raise ValueError(f"views is {views!r}: give 'replace', 'release' or 'wait'")
        given = file if isinstance(file, int) else file.fileno()
        try:
            self._fd = os.dup(given)
        except (OSError, OverflowError) as exc:
            raise OSError(errno.EBADF, f"descriptor {given} is not open") from exc
        try:
            self._prot = mmap.PROT_READ | (mmap.PROT_WRITE if write else 0)
            self._map = mmap.mmap(self._fd, length, mmap.MAP_SHARED, self._prot, offset=offset)
            self._offset = offset if stat.S_ISREG(os.fstat(self._fd).st_mode) else None  # what is no file has no end
            with _answering():
                self.handle = handle_of(owner, name or f"mapping of {given}", also, self._release, answers)
        except BaseException:
            os.close(self._fd)
            raise
        self._length = len(self._map)
        self._address = _address(self._map)
        self._policy = views
        self._views: list[weakref.ref[memoryview]] = []
        self._exports: weakref.WeakValueDictionary[int, Any] = weakref.WeakValueDictionary()

    def __len__(self) -> int:
        return self._length

    @overload
    def __getitem__(self, index: SupportsIndex) -> int: ...
    @overload
    def __getitem__(self, index: slice) -> bytes: ...
    def __getitem__(self, index: SupportsIndex | slice) -> int | bytes:
        """Copy a byte, or a slice, out.

        :raises RevokedError, ~anyio.ClosedResourceError: if it was revoked or closed
        :raises OSError: EFAULT, if the file was truncated
        """
        start, length = self._range(index)
        self._refuse(start + length)
        if self._offset is None:
            data = self._map[start : start + length]
        else:
            copy = ctypes.create_string_buffer(length)
            self._copy(_libc.process_vm_readv, copy, start, length)
            data = copy.raw
        return data if isinstance(index, slice) else data[0]

    @overload
    def __setitem__(self, index: SupportsIndex, value: int) -> None: ...
    @overload
    def __setitem__(self, index: slice, value: bytes) -> None: ...
    def __setitem__(self, index: SupportsIndex | slice, value: Any) -> None:
        """Copy a byte, or a slice of the same length, in.

        :raises: as reading it
        :raises TypeError: if it was not opened to `write`
        """
        start, length = self._range(index)
        data = bytes(memoryview(value)) if isinstance(index, slice) else bytes([value])
        if len(data) != length:
            raise ValueError(f"{len(data)} bytes do not fit into a slice of {length}")
        if not self._prot & mmap.PROT_WRITE:
            raise TypeError(f"{self.handle.path!r} is read-only: open it with write=True")
        self._refuse(start + length)
        if self._offset is None:
            self._map[start : start + length] = data
        else:
            self._copy(_libc.process_vm_writev, ctypes.create_string_buffer(data, length), start, length)

    @contextmanager
    def using(self, *, idle: bool = False) -> Iterator[memoryview]:
        """Begin an operation with a view of all: ``with data.using() as view: await ...``. The view is released at the
        end.

        Until then the pages do not change. Otherwise this works like `Revokable.using`. If the file is truncated
        meanwhile, the kernel sends SIGBUS to code that uses a view.
        """
        with _answering(self.handle), self.handle.using(idle=idle):
            view = self.view()
            try:
                yield view
            finally:
                with suppress(BufferError):  # something was made of it, which has to be safe as any other view
                    view.release()

    def view(self) -> memoryview:
        """Return a view of all, to keep. `views` says what becomes of it when this is revoked.

        Until then, if the file is truncated, the kernel sends SIGBUS to code that touches a missing page. Do not use
        the view's `obj`, which knows no limits.

        :raises RevokedError, ~anyio.ClosedResourceError: if it was revoked or closed
        """
        self._refuse(0)
        export = (ctypes.c_char * self._length).from_address(self._address)
        export.mapping = self._map  # type: ignore[attr-defined]  # which is unmapped when nobody has it any more
        if self._policy == "wait":
            self.handle.start_using()
            weakref.finalize(export, stop_using_threadsafe, self.handle).atexit = False
        view = memoryview(export).cast("B")
        if not self._prot & mmap.PROT_WRITE:
            view = view.toreadonly()
        self._exports[id(export)] = export
        self._views.append(weakref.ref(view, self._views.remove))
        return view

    def holders(self) -> list[Holder]:
        """List what keeps views of it, slices, or arrays. `str()` of each is one line to print. It looks at every
        object of the process.
        """
        return holders_of(self._exports.values())

    async def flush(self) -> None:
        """Write to the file what was written here.

        :raises RevokedError, ~anyio.ClosedResourceError: if it was revoked or closed, before or meanwhile
        Cancellation: waits for the end of the system call, as a revocation does.
        """
        await anyio.lowlevel.checkpoint()
        with _answering(self.handle), self.handle.using():
            await off_loop(self._map.flush, patience=math.inf)

    def __repr__(self) -> str:
        return f"<Mapping of {self._length} bytes, {self.handle!r}>"

    def _range(self, index: SupportsIndex | slice) -> tuple[int, int]:
        """Where it begins, and how long it is."""
        if isinstance(index, slice):
            start, stop, step = index.indices(self._length)
            if step != 1:
                raise ValueError(f"cannot take every {step}. byte: take a view")
            return start, max(0, stop - start)
        start = operator.index(index)
        start += self._length if start < 0 else 0
        if not 0 <= start < self._length:
            raise IndexError(f"{index} is outside of {self._length} bytes")
        return start, 1

    def _refuse(self, end: int) -> None:
        """Raise the error that is due before bytes up to `end` are used."""
        if self.handle.revoked:
            with _answering(self.handle), self.handle.using():
                pass  # in its grace, nested in another operation
        if self._offset is not None and end > (left := os.fstat(self._fd).st_size - self._offset):
            raise self._truncated(f"{max(0, left)} of {self._length} bytes are left")

    def _copy(self, copy: Any, ours: ctypes.Array[ctypes.c_char], start: int, length: int) -> None:
        """Let the kernel copy. It reports missing pages: the file may be truncated in this very moment."""
        done = 0
        while done < length:  # a call copies less than 2 GiB
            local, there = (_Span(at + done, length - done) for at in (ctypes.addressof(ours), self._address + start))
            copied = copy(os.getpid(), ctypes.byref(local), 1, ctypes.byref(there), 1, 0)
            if copied < 0 and (number := ctypes.get_errno()) != errno.EFAULT:
                raise OSError(number, f"bytes cannot be copied: {os.strerror(number)}", self.handle.path)
            if copied <= 0:
                raise self._truncated("the end of the file is before this")
            done += copied

    def _truncated(self, left: str) -> OSError:
        return OSError(errno.EFAULT, f"the file was truncated: {left}", self.handle.path)

    def _release(self) -> None:
        if self._policy == "release":
            for view in [each() for each in self._views]:
                with suppress(BufferError):
                    if view is not None:
                        view.release()
        view = None
        try:
            if self._exports:
                self._replace()
        finally:
            del self._map  # it is unmapped when nobody has a view any more
            os.close(self._fd)

    def _replace(self) -> None:
        flags = _MAP_FIXED | mmap.MAP_ANONYMOUS | mmap.MAP_PRIVATE
        if _libc.mmap(self._address, self._length, self._prot, flags, -1, 0) != self._address:
            raise OSError(ctypes.get_errno(), "the pages could not be replaced: do not use views", self.handle.path)


@contextmanager
def _answering(handle: Revokable | None = None) -> Iterator[None]:
    """Answer as the profile says of mmap, if the error is about that handle, or about its owner."""
    try:
        yield
    except RevokedError as error:
        profile = None if error.node is None else error.node.answers
        if profile is not None and (handle is None or error.node is handle):
            error.errno = profile.mmap if isinstance(profile.mmap, int) else errno.ENODEV
        raise


class _Span(ctypes.Structure):
    """struct iovec."""

    _fields_ = (("base", ctypes.c_void_p), ("length", ctypes.c_size_t))


class _Buffer(ctypes.Structure):
    """Py_buffer, of which the first field is the address."""

    _fields_ = (("address", ctypes.c_void_p), ("rest", ctypes.c_byte * 256))


def _address(exporter: object) -> int:
    """Where it is in memory, also if it is read-only."""
    buffer = _Buffer()
    ctypes.pythonapi.PyObject_GetBuffer(ctypes.py_object(exporter), ctypes.byref(buffer), 0)
    try:
        return int(buffer.address)
    finally:
        ctypes.pythonapi.PyBuffer_Release(ctypes.byref(buffer))
