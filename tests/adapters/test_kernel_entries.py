"""The rows SYSFS, PROCFS and DEBUGFS of `answers`: a removed file of the real kernel answers so, and so does ours.

A network interface has files in sysfs and procfs, a loop device one in debugfs, and root can remove both. What no removable
file has, such as an ioctl, is not compared; nor what is in flight, as no such file waits.
"""

import contextlib
import ctypes
import errno
import fcntl
import os
import pathlib
import select
import shutil
import subprocess
import tempfile
from collections.abc import Awaitable, Callable, Iterator

import pytest

from asyncrevoke.adapters.entries import Directory, Entry, OpenFile
from test_entries import FLAVOURS, number

pytestmark = pytest.mark.anyio

LOOP_CTL_ADD, LOOP_CTL_REMOVE = 0x4C80, 0x4C81  # include/uapi/linux/loop.h
Removable = tuple[str, int, Callable[[], object]]


@contextlib.contextmanager
def interface() -> Iterator[tuple[str, Callable[[], object]]]:
    name = f"rvk{os.getpid()}"
    add = ["ip", "link", "add", name, "up", "type", "veth", "peer", "name", f"{name}p"]
    if not shutil.which("ip") or subprocess.run(add, capture_output=True).returncode:
        pytest.skip("a network interface that can be removed needs ip and CAP_NET_ADMIN")
    remove = ["ip", "link", "del", name]
    try:
        yield name, lambda: subprocess.run(remove, check=True)
    finally:
        subprocess.run(remove, capture_output=True)


@contextlib.contextmanager
def sysfs() -> Iterator[Removable]:
    with interface() as (name, remove):
        if not os.access(path := f"/sys/class/net/{name}/mtu", os.W_OK):
            pytest.skip("/sys shows no new interfaces here")
        yield path, os.O_RDWR, remove


@contextlib.contextmanager
def procfs() -> Iterator[Removable]:
    with interface() as (name, remove):
        if not pathlib.Path(path := f"/proc/net/dev_snmp6/{name}").exists():
            pytest.skip("procfs has no file for an interface without IPv6")
        yield path, os.O_RDONLY, remove


@contextlib.contextmanager
def debugfs() -> Iterator[Removable]:
    number = 1000 + os.getpid() % 1000
    with tempfile.TemporaryDirectory() as folder:
        if subprocess.run(["mount", "-t", "debugfs", "none", folder], capture_output=True).returncode:
            pytest.skip("debugfs cannot be mounted here")
        try:
            with pathlib.Path("/dev/loop-control").open("rb") as control:
                fcntl.ioctl(control, LOOP_CTL_ADD, number)
                path = f"{folder}/bdi/7:{number}/stats"
                try:
                    if not pathlib.Path(path).exists():
                        pytest.skip("a loop device has no file in debugfs here")
                    yield path, os.O_RDONLY, lambda: fcntl.ioctl(control, LOOP_CTL_REMOVE, number)
                finally:
                    with contextlib.suppress(OSError):
                        fcntl.ioctl(control, LOOP_CTL_REMOVE, number)
        except OSError:
            pytest.skip("no loop device can be made here")
        finally:
            subprocess.run(["umount", "-l", folder], check=True)


def told(call: Callable[[], object]) -> object:
    try:
        return call()
    except OSError as exc:
        return exc.errno


def poll(fd: int) -> int:
    poller = select.poll()
    poller.register(fd, select.POLLIN | select.POLLPRI | select.POLLOUT)
    return dict(poller.poll(0))[fd]


def mmap(fd: int) -> None:
    """By the C library: Python's own asks for the size first."""
    libc = ctypes.CDLL(None, use_errno=True)
    libc.mmap.restype = ctypes.c_void_p
    if libc.mmap(None, ctypes.c_size_t(4096), 1, 1, fd, ctypes.c_long(0)) == ctypes.c_void_p(-1).value:
        raise OSError(ctypes.get_errno(), "mmap")


MAKE = {"SYSFS": sysfs, "PROCFS": procfs, "DEBUGFS": debugfs}

#: What is done to a descriptor of the removed file, or to its path.
BARE: dict[str, Callable[[int, str], object]] = {
    "read": lambda fd, _: os.pread(fd, 100, 0),
    "write": lambda fd, _: os.write(fd, b"1400"),
    "poll": lambda fd, _: poll(fd),
    "ioctl": lambda fd, _: fcntl.ioctl(fd, 0x5401, bytes(64)),
    "mmap": lambda fd, _: mmap(fd),
    "open by the dead file": lambda fd, _: os.open(f"/proc/self/fd/{fd}", os.O_RDONLY),
    "open": lambda _, path: os.open(path, os.O_RDONLY),
}

#: The same, done to ours.
OURS: dict[str, Callable[[OpenFile, Entry], Awaitable[object]]] = {
    "read": lambda file, _: number(file.pread(100, 0)),
    "write": lambda file, _: number(file.write(b"1400")),
    "poll": lambda file, _: file.poll(wait=False),
    "ioctl": lambda file, _: number(file.control(0x5401)),
    "open": lambda _, entry: number(entry.open()),
}

IN, OUT, PRI, ERR = select.POLLIN, select.POLLOUT, select.POLLPRI, select.POLLERR
TABLE: dict[str, dict[str, int]] = {
    "SYSFS": {
        "read": errno.ENODEV,
        "write": errno.ENODEV,
        "poll": IN | PRI | OUT | ERR,
        "ioctl": errno.ENOTTY,
        "mmap": errno.ENODEV,
        "open by the dead file": errno.ENODEV,
        "open": errno.ENOENT,
    },
    "PROCFS": {"read": errno.EIO, "poll": IN | OUT, "ioctl": errno.ENOTTY, "mmap": errno.EIO, "open": errno.ENOENT},
    "DEBUGFS": {
        "read": errno.EIO,
        "mmap": errno.ENODEV,
        "open by the dead file": errno.ENOENT,
        "open": errno.ENOENT,
    },
}


@pytest.mark.parametrize("row", TABLE)
async def test_removed_files_answer_as_the_kernels(row: str) -> None:
    """Cell by cell: the kernel's file, the profile, and an entry of ours."""
    with MAKE[row]() as (path, flags, remove):
        fd = os.open(path, flags)
        try:
            remove()
            for what, answer in TABLE[row].items():
                assert told(lambda what=what: BARE[what](fd, path)) == answer, what  # type: ignore[misc]
        finally:
            os.close(fd)
    profile = FLAVOURS[row]
    entry = Directory("fs", answers=profile).create("entry", show=lambda: "", store=lambda _: None)
    async with await entry.open() as file:
        await entry.remove()
        for what in OURS.keys() & TABLE[row].keys():
            assert await OURS[what](file, entry) == TABLE[row][what], what
    assert profile.mmap == TABLE[row]["mmap"]
    assert profile.open.in_flight == profile.open.later == TABLE[row]["open"]
