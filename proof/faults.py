"""What stays behind when a system call fails: each adapter is opened, used and revoked, over and over, and each time the
next one of the calls that are made for it fails.

    python proof/faults.py [--quick] [NAME ...]

Prints for each adapter how many calls failed, and what was wrong: an error that is not documented, a descriptor, thread,
task, child process or open file left behind, a complaint of the loop, or a hang. Ends with 1 if there was anything, or if no
call failed.
"""

from __future__ import annotations

import argparse
import asyncio
import collections
import contextlib
import errno
import functools
import gc
import importlib.util
import logging
import os
import pathlib
import socket
import sys
import tempfile
import termios
import threading
import time
import tty
import warnings
from collections.abc import Awaitable, Callable, Iterator
from types import FrameType
from typing import Any

import anyio
import anyio.abc

import asyncrevoke
from asyncrevoke import (
    FdStream,
    PtySession,
    Registry,
    Revokable,
    RevokedError,
    Tty,
    open_pty,
    open_serial,
    serial_device,
    start_pty,
)
from asyncrevoke.adapters.alsa import Cards
from asyncrevoke.adapters.asyncio_streams import create_serial_connection, wrap_streams
from asyncrevoke.adapters.descriptor import Descriptor
from asyncrevoke.adapters.entries import Directory
from asyncrevoke.adapters.hotplug import watch_devices
from asyncrevoke.adapters.mapping import Mapping
from asyncrevoke.control import ControlError, connect, serve

HERE = str(pathlib.Path(asyncrevoke.__file__).parent)
DOCUMENTED = (OSError, RevokedError, anyio.BrokenResourceError, anyio.ClosedResourceError, anyio.EndOfStream)


def os_error(number: int) -> Callable[[], Exception]:
    return lambda: OSError(number, os.strerror(number))


def terminal_error() -> Exception:
    return termios.error(errno.EIO, os.strerror(errno.EIO))


def thread_error() -> Exception:
    return RuntimeError("can't start new thread")


def errors() -> Iterator[tuple[str, Callable[[], Exception]]]:
    """The calls that may fail, each with its error. Those that close or kill cannot, or leave nothing if they do."""
    for number, calls in {
        errno.EMFILE: "posix.open posix.openpty posix.dup posix.pipe2 posix.eventfd posix.memfd_create posix.pidfd_open"
        " posix.listdir posix.scandir _io.open socket.socket _socket.socketpair _socket.dup socket._accept fcntl.fcntl",
        errno.ENOMEM: "posix.posix_spawn _posixsubprocess.fork_exec posix.stat posix.lstat posix.fstat posix.readlink"
        " posix.ftruncate posix.chmod posix.chown posix.rename posix.link posix.mkdir posix.ttyname socket.bind socket.listen"
        " socket.setsockopt socket.getsockopt",
        errno.EIO: "posix.read posix.write fcntl.ioctl socket.recv socket.recv_into socket.send socket.connect"
        " socket.recvmsg socket.sendmsg",
        errno.ENOSPC: "epoll.register epoll.modify",
    }.items():
        for call in calls.split():
            yield call, os_error(number)
    for call in "tcgetattr", "tcsetattr", "tcflush", "tcdrain", "tcflow", "tcsendbreak":
        yield f"termios.{call}", terminal_error
    for call in "start_new_thread", "start_joinable_thread":
        yield f"_thread.{call}", thread_error


ERRORS = dict(errors())


class Fault:
    """Fails one of the calls that our code leads to, as a profile function may.

    :ivar hit: which it was, and where
    """

    def __init__(self, which: int) -> None:
        self._left = which
        self.hit = ""

    def __call__(self, frame: FrameType, event: str, called: Any) -> None:
        if self.hit or frame.f_code.co_name == "_write_to_self":  # a pipe of the loop's own
            return
        name = ""
        if event == "c_call":
            name = f"{called.__module__ or type(called.__self__).__name__}.{called.__name__}"
        elif event == "call" and frame.f_code is socket.socket.__init__.__code__ and frame.f_locals["fileno"] is None:
            name = "socket.socket"
        make = ERRORS.get(name)
        where = ours(frame) if make else ""
        if make and where:
            self._left -= 1
            if not self._left:
                self.hit = f"{name} at {where}"
                raise make()


def ours(frame: FrameType | None) -> str:
    """The innermost line of our code that led here, if one did."""
    while frame is not None:
        if frame.f_code.co_filename.startswith(HERE):
            return f"{frame.f_code.co_filename[len(HERE) + 1 :]}:{frame.f_lineno}"
        frame = frame.f_back
    return ""


# -- what is open in this process --


def open_things() -> collections.Counter[str]:
    """Descriptors by what they are of, threads and children."""
    found: collections.Counter[str] = collections.Counter()
    for number in pathlib.Path("/proc/self/fd").iterdir():
        with contextlib.suppress(FileNotFoundError):  # the listing's own
            found[f"descriptor of {str(number.readlink()).split(':')[0]}"] += 1
    found.update(f"thread {thread.name}" for thread in threading.enumerate())
    for children in pathlib.Path("/proc/self/task").glob("*/children"):
        found.update(f"child {pid}" for pid in children.read_text().split())
    return found


def left_behind(before: collections.Counter[str]) -> list[str]:
    """What is open and was not, when nothing goes on any more."""
    deadline = time.monotonic() + 5
    while (more := open_things() - before) and time.monotonic() < deadline:
        gc.collect()
        time.sleep(0.01)
    return [f"{number} {what} left" for what, number in more.items()]


# -- one run --

Scenario = Callable[[Revokable], Awaitable[object]]


def run(scenario: Scenario, fault: Fault) -> list[str]:
    """Run it with that fault, and report what is wrong."""
    wrong: list[str] = []
    before = open_things()
    unraisable = sys.unraisablehook
    sys.unraisablehook = lambda args: wrong.append(f"unraisable {args.exc_value!r}")
    hook = threading.excepthook
    threading.excepthook = lambda args: wrong.append(f"a thread ended by {args.exc_value!r}")

    async def main() -> None:
        asyncio.get_running_loop().set_exception_handler(lambda _, told: wrong.append(f"the loop complains: {told}"))
        root = Revokable("root")
        threading.setprofile(fault)
        sys.setprofile(fault)
        try:
            for step in functools.partial(scenario, root), root.aclose:
                try:
                    with anyio.fail_after(8):
                        await step()
                except Exception as error:  # noqa: BLE001  # looked at
                    unexpected = [leaf for leaf in leaves(error) if not (fault.hit and isinstance(leaf, DOCUMENTED))]
                    wrong.extend(f"raised {leaf!r}" for leaf in unexpected)
                    if isinstance(error, TimeoutError) and error.errno is None:
                        wrong.append("hangs")
        finally:
            sys.setprofile(None)
            threading.setprofile(None)
        if root.children or not root.released:
            wrong.append(f"not released: {root!r}, {root.children}")
        for _ in range(10):  # in which tasks whose work is done end
            await asyncio.sleep(0)
        tasks = asyncio.all_tasks() - {asyncio.current_task()}
        wrong.extend(f"task left: {task.get_name()}" for task in tasks)

    with warnings.catch_warnings():
        warnings.simplefilter("error", ResourceWarning)
        asyncio.run(main())
        gc.collect()
    wrong += left_behind(before)
    sys.unraisablehook, threading.excepthook = unraisable, hook
    return wrong


def leaves(error: BaseException) -> Iterator[BaseException]:
    if isinstance(error, BaseExceptionGroup):
        for each in error.exceptions:
            yield from leaves(each)
    else:
        yield error


# -- the adapters --


async def an_fd_stream(root: Revokable) -> None:
    near, far = socket.socketpair()
    with near, far:
        far.setblocking(False)
        fd = os.dup(near.fileno())
        try:
            stream = FdStream(fd, root)
        except BaseException:
            os.close(fd)
            raise
        await stream.send(b"x" * 100)
        async with anyio.create_task_group() as tasks:
            tasks.start_soon(stream.receive)
            await anyio.wait_all_tasks_blocked()
            far.send(b"y")
        await stream.send_eof()


async def an_opened_pty(root: Revokable) -> None:
    await _used(open_pty(["cat"], owner=root, kill_after=1, history=100))


async def a_started_pty(root: Revokable) -> None:
    await _used(await start_pty(["cat"], owner=root, kill_after=1, history=100))


async def _used(session: PtySession) -> None:
    stream = session.open("a")
    session.resize(30, 100)
    await stream.send(b"x\n")
    await stream.receive()
    await stream.send_eof()
    await session.wait()


async def a_tty(_: Revokable) -> None:
    master, slave = os.openpty()
    try:
        async with Tty(os.ttyname(slave)) as terminal:
            stream = await terminal.open("a")
            await stream.send(b"x")
            await terminal.hangup()
    finally:
        os.close(master)
        os.close(slave)


class Line:
    """A pty as a serial line: ``with Line() as path: ...``"""

    def __enter__(self) -> str:
        self.master, self.slave = os.openpty()
        tty.setraw(self.slave)
        return os.ttyname(self.slave)

    def __exit__(self, *_: object) -> None:
        os.close(self.master)
        os.close(self.slave)


def a_serial_port(backend: Any) -> Scenario:
    async def scenario(root: Revokable) -> None:
        with (line := Line()) as path:
            async with open_serial(path, 115200, owner=root, backend=backend, exclusive=True) as device:
                stream = device.open("a")
                await stream.send(b"x")
                os.write(line.master, b"y")
                await stream.receive()

    return scenario


async def a_serial_device_that_returns(_: Revokable) -> None:
    with Line() as path, tempfile.TemporaryDirectory() as folder:
        link = pathlib.Path(folder) / "usb-Meter"
        link.symlink_to(path)
        async with serial_device(str(link), 115200) as devices:
            async for device in devices:
                await device.open("a").send(b"x")
                return


async def a_serial_connection(_: Revokable) -> None:
    with Line() as path:
        loop = asyncio.get_running_loop()
        transport, _protocol = await create_serial_connection(loop, asyncio.Protocol, path, 115200)
        transport.write(b"x")
        await transport.handle.aclose()


async def wrapped_streams(root: Revokable) -> None:
    near, far = socket.socketpair()
    with far:
        reader, writer = wrap_streams(*await asyncio.open_connection(sock=near), owner=root)
        writer.write(b"x")
        far.send(b"y")
        await reader.read(1)
        writer.close()
        await writer.wait_closed()


async def device_events(root: Revokable) -> None:
    async with watch_devices(source="kernel", owner=root):
        pass


async def a_sound_card(root: Revokable) -> None:
    card = Cards().add("card", owner=root)
    near, far = socket.socketpair()
    with near, far:
        fd = os.dup(near.fileno())
        try:
            stream = await card.device("pcm0").open(fd)
        except BaseException:
            os.close(fd)
            raise
        await stream.send(b"x")
        card.free_when_closed("unplugged")
        await stream.aclose()


async def a_descriptor(root: Revokable) -> None:
    read, write = os.pipe()

    def receive() -> None:
        with contextlib.suppress(OSError):  # where the revocation fails, the number may be closed before this begins
            os.read(read, 1)

    try:
        descriptor = Descriptor(read, owner=root)
        reader = threading.Thread(target=receive, name="reader")
        reader.start()
        await descriptor.revoke()
        await anyio.to_thread.run_sync(reader.join)
    finally:
        os.close(read)
        os.close(write)


async def a_mapping(root: Revokable) -> None:
    with tempfile.TemporaryFile() as file:
        file.write(bytes(8192))
        file.flush()
        mapping = Mapping(file.fileno(), 4096, owner=root)
        await mapping.handle.revoke()


async def a_control_server(_: Revokable) -> None:
    """A client may fail, and the server goes on."""
    registry = Registry()

    async def ask(name: str) -> None:
        registry.name(name).open("a")
        async with await connect(path) as control:
            await control.list()
            await control.revoke(name)

    async def serve_on(*, task_status: anyio.abc.TaskStatus[None]) -> None:
        up = False
        try:
            async with anyio.create_task_group() as serving:
                await serving.start(serve, registry, path)
                up = True
                task_status.started()
        except Exception as error:
            if up:
                raise RuntimeError("the server has ended") from error
            raise

    with tempfile.TemporaryDirectory() as folder:
        path = f"{folder}/control.sock"
        async with anyio.create_task_group() as tasks:
            await tasks.start(serve_on)
            try:
                await ask("port")
            except (ControlError, OSError):
                await ask("next")
            tasks.cancel_scope.cancel()


async def a_mounted_tree(_: Revokable) -> None:
    from asyncrevoke.adapters.fuse import mount  # noqa: PLC0415  # which needs libfuse

    tree = Directory("status")
    tree.create("state", show=lambda: "x")
    with tempfile.TemporaryDirectory() as folder:
        async with anyio.create_task_group() as tasks:
            await tasks.start(mount, tree, folder)
            await anyio.run_process(["cat", f"{folder}/state"], check=False)
            tasks.cancel_scope.cancel()


SCENARIOS: dict[str, Scenario] = {
    "FdStream": an_fd_stream,
    "open_pty": an_opened_pty,
    "start_pty": a_started_pty,
    "tty": a_tty,
    "serial, descriptor": a_serial_port("descriptor"),
    "serial, pyserial-asyncio": a_serial_port("pyserial-asyncio"),
    "serial, serialx": a_serial_port("serialx"),
    "serial_device": a_serial_device_that_returns,
    "serial connection": a_serial_connection,
    "wrap_streams": wrapped_streams,
    "watch_devices": device_events,
    "alsa": a_sound_card,
    "descriptor": a_descriptor,
    "mapping": a_mapping,
    **({"fuse": a_mounted_tree} if importlib.util.find_spec("pyfuse3") else {}),
    "control": a_control_server,
}


def main() -> int:
    parser = argparse.ArgumentParser()
    parser.add_argument("names", nargs="*", metavar="NAME", help="of adapters")
    parser.add_argument("--quick", action="store_true", help="let every fourth call fail")
    options = parser.parse_args()
    logging.disable()
    found = all_failed = 0
    print("adapter                    failed wrong")
    for name, scenario in SCENARIOS.items():
        if options.names and name not in options.names:
            continue
        # What is imported and made once is made now.
        wrong = {"0. nothing": findings} if (findings := run(scenario, Fault(0))) else {}
        which = failed = 0
        while True:
            which += 4 if options.quick else 1
            fault = Fault(which)
            findings = run(scenario, fault)
            if not fault.hit:
                break
            failed += 1
            if findings:
                wrong[f"{which}. {fault.hit}"] = findings
        print(f"{name:26} {failed:6} {len(wrong):5}")
        for hit, findings in wrong.items():
            print(f"    {hit}: {'; '.join(findings)}")
        found += len(wrong)
        all_failed += failed
    if not all_failed:
        print("WRONG: nothing was made to fail")
    return int(found > 0 or not all_failed)


if __name__ == "__main__":
    sys.exit(main())
