"""Asks the kernel for each cell of `asyncrevoke.answers`: its bare descriptors are asked, while the thing dies and later."""

import contextlib
import ctypes
import dataclasses
import errno
import fcntl
import functools
import mmap
import os
import pathlib
import select
import struct
import subprocess
import termios
import threading
import time
import tty
from collections.abc import Callable, Iterator

import anyio

from answers_page import BITS
from asyncrevoke.adapters.device.identity import find
from asyncrevoke.adapters.lend import EVDEV, HIDRAW, Means, means_for
from devices import Keyboard, Stick
from outside import Outside, Plug, Usb, gadget, modprobe, there
from unplugs import Row

TIOCVHANGUP = 0x5437
READ, WRITE, USERFAULTFD = 0, 1, 323  # arch/x86/entry/syscalls/syscall_64.tbl
UFFDIO_API, UFFDIO_REGISTER, UFFDIO_COPY = 0xC018AA3F, 0xC020AA00, 0xC028AA03  # include/uapi/linux/userfaultfd.h
LOOP_CTL_ADD, LOOP_CTL_REMOVE = 0x4C80, 0x4C81  # include/uapi/linux/loop.h
UHID_DESTROY, UHID_GET_REPORT, UHID_GET_REPORT_REPLY, UHID_CREATE2 = 1, 9, 10, 11  # include/uapi/linux/uhid.h
HW_PARAMS, SW_PARAMS, PREPARE = 0xC2604111, 0xC0884113, 0x4140  # include/uapi/sound/asound.h
#: What is written to an input device: an event, the end of a report of those; and a report.
EVENT, REPORT = bytes(24), bytes(9)


@dataclasses.dataclass
class Victim:
    """Something that is about to die.

    :ivar reader, writer: its descriptors, which block; None, if it cannot be read
    :ivar path: what is opened again
    :ivar kill: returns when it is dead, or when it has waited for those inside
    :ivar full: has the next write wait, or None, if none ever does
    :ivar waits: whether a read does
    :ivar inside: what is written, if memory of their own can keep those inside who do not wait
    :ivar again: what is opened as long as the dead file is open: the path, or a node of the same number that is kept
    :ivar end: what was killed only in part goes
    """

    reader: int | None
    writer: int
    path: str
    kill: Callable[[], object]
    full: Callable[[], object] | None = None
    waits: bool = True
    inside: bytes = b""
    again: str = ""
    end: Callable[[], object] = lambda: None


Source = Callable[[], contextlib.AbstractContextManager[Victim]]


@contextlib.contextmanager
def opened(path: str, flags: int = os.O_RDWR) -> Iterator[int]:
    fd = os.open(path, flags | os.O_NOCTTY)
    try:
        yield fd
    finally:
        os.close(fd)


# -- what dies, and of what --


@contextlib.contextmanager
def hung_up() -> Iterator[Victim]:
    """A terminal, by TIOCVHANGUP."""
    master, slave = os.openpty()
    tty.setraw(slave)
    path = os.ttyname(slave)
    with opened(path) as other, os.fdopen(master, "rb") as far, os.fdopen(slave, "rb"):
        stop = functools.partial(termios.tcflow, other, termios.TCOOFF)
        hang_up = functools.partial(fcntl.ioctl, other, TIOCVHANGUP)
        yield Victim(slave, slave, path, hang_up, stop, again=path, end=far.close)


@contextlib.contextmanager
def without_master() -> Iterator[Victim]:
    """A terminal whose pty master is closed."""
    master, slave = os.openpty()
    tty.setraw(slave)
    path = os.ttyname(slave)
    with opened(path) as other, os.fdopen(slave, "rb"):
        stop = functools.partial(termios.tcflow, other, termios.TCOOFF)
        yield Victim(slave, slave, path, lambda: os.close(master), stop, again=path)


@contextlib.contextmanager
def unplugged(plug: Plug, *, stalls: bool) -> Iterator[Victim]:
    """A USB serial port. Where its line stalls, nobody reads at the far end; else a longer write is in the way."""

    def occupy() -> None:
        threading.Thread(target=lambda: told(lambda: os.write(fd, bytes(64 << 20)))).start()
        time.sleep(0.02)  # it has begun, whatever the scheduler does

    def fill() -> None:
        os.set_blocking(fd, False)
        quiet = 0
        while quiet < 10:  # some of it may be under way still
            time.sleep(0.02)
            quiet += 1
            with contextlib.suppress(BlockingIOError):
                while os.write(fd, bytes(4096)):
                    quiet = 0
        os.set_blocking(fd, True)

    anyio.run(plug.plug)
    with opened(plug.path) as fd:
        tty.setraw(fd)
        yield Victim(fd, fd, plug.path, lambda: _pulled(plug), fill if stalls else occupy, again=plug.path)


def _pulled(plug: Plug) -> None:
    anyio.run(plug.unplug)
    _until(lambda: not there(plug.path))


@contextlib.contextmanager
def usb_input(outside: Outside, nodes: str, event: bytes) -> Iterator[Victim]:
    """A USB keyboard."""
    plug = Usb(outside, "keyboard", nodes)
    anyio.run(plug.plug)
    with opened(plug.path) as fd:
        number = os.fstat(fd).st_rdev
        above = str(pathlib.Path(f"/sys/dev/char/{os.major(number)}:{os.minor(number)}/device").resolve())

        def pull() -> None:
            _pulled(plug)
            _until(lambda: not there(above))  # which the kernel removes when it has waited for those inside

        yield Victim(fd, fd, plug.path, pull, inside=event, again=plug.path)


@contextlib.contextmanager
def made_input(make: type[Keyboard | Stick], event: bytes, means: Means | None = None) -> Iterator[Victim]:
    """An input device of uinput's or uhid's, which goes, or whose file is revoked."""
    plug = make("vm-dies")
    plug.plug()
    _until(lambda: _found(plug))
    path = _found(plug)
    with opened(path) as fd:
        kill = plug.unplug if means is None else functools.partial(means.take, fd)
        yield Victim(fd, fd, path, kill, inside=event, again=path, end=plug.unplug)


def _found(plug: Keyboard | Stick) -> str:
    with contextlib.suppress(OSError):
        path = find(plug.identity, plug.kind.subsystems)
        return path if there(path) else ""
    return ""


@contextlib.contextmanager
def sound_card() -> Iterator[Victim]:
    """A virtual sound card, which is unbound from its driver. That waits for the last close, so it is a process."""
    modprobe("snd_dummy")
    driver = pathlib.Path("/sys/bus/platform/drivers/snd_dummy")
    _until(lambda: there("/dev/snd/controlC0"))
    unbinding = contextlib.ExitStack()
    with unbinding, pcm("/dev/snd/pcmC0D0c") as reader, pcm("/dev/snd/pcmC0D0p") as writer, kept_node(writer) as node:

        def kill() -> None:
            unbinding.callback(subprocess.Popen(["sh", "-c", f"echo snd_dummy.0 > {driver}/unbind"]).wait)
            _until(lambda: not there("/dev/snd/controlC0"))

        yield Victim(reader, writer, "/dev/snd/pcmC0D0p", kill, lambda: fill_pcm(writer), again=node)
    subprocess.run(["/sbin/modprobe", "-r", "snd_dummy"], check=True)


@contextlib.contextmanager
def usb_audio(outside: Outside) -> Iterator[Victim]:
    """A USB sound card, which can only be played to."""
    modprobe("snd_usb_audio")
    anyio.run(outside.ask, "plug", "sound")
    path = "/dev/snd/pcmC0D0p"
    _until(lambda: there(path))
    with pcm(path) as fd, kept_node(fd) as node:
        kill = functools.partial(anyio.run, outside.ask, "unplug", "sound")
        yield Victim(None, fd, path, kill, lambda: fill_pcm(fd), again=node)
    _until(lambda: not there(path))


@contextlib.contextmanager
def kept_node(fd: int) -> Iterator[str]:
    path = "/dev/kept"
    os.mknod(path, 0o020600, os.fstat(fd).st_rdev)
    try:
        yield path
    finally:
        pathlib.Path(path).unlink()


@contextlib.contextmanager
def pcm(path: str) -> Iterator[int]:
    """Opened. To record, it has periods of eight seconds; what is played does not start, so it is full after `fill_pcm`."""
    with opened(path) as fd:
        masks = struct.pack("8I", 1 << 3, *[0] * 7) + b"\xff" * 7 * 32  # the access is by read and write
        spans = [(0, 0xFFFFFFFF, 0)] * 21
        if path.endswith("c"):
            spans[4] = 8_000_000, 0xFFFFFFFF, 0
        numbers = [number for span in spans for number in span]
        fcntl.ioctl(
            fd,
            HW_PARAMS,
            bytearray(struct.pack("I256s63I6I", 0, masks, *numbers, 0xFFFFFFFF, *[0] * 5).ljust(608, b"\0")),
        )
        if path.endswith("p"):
            fcntl.ioctl(
                fd,
                SW_PARAMS,
                bytearray(struct.pack("3I7Q", 0, 1, 0, 1, 1, 1 << 30, 1 << 30, 0, 0, 0).ljust(136, b"\0")),
            )
        fcntl.ioctl(fd, PREPARE)
        yield fd


def fill_pcm(fd: int) -> None:
    """O_NONBLOCK counts at the opening only: so one that is not started yet takes as much as a descriptor of poll says."""
    poller = select.poll()
    poller.register(fd, select.POLLOUT)
    while dict(poller.poll(0)).get(fd, 0) & select.POLLOUT:
        os.write(fd, bytes(16))


@contextlib.contextmanager
def proc_file() -> Iterator[Victim]:
    """A sound card's file in /proc, when the card goes."""
    modprobe("snd_dummy", "snd_mixer_oss")
    path = "/proc/asound/card0/oss_mixer"
    _until(lambda: there(path))
    with opened(path) as fd:
        unbind = pathlib.Path("/sys/bus/platform/drivers/snd_dummy/unbind")
        yield Victim(fd, fd, path, lambda: unbind.write_text("snd_dummy.0"), waits=False, inside=b"kick", again=path)
    subprocess.run(["/sbin/modprobe", "-r", "snd_dummy"], check=True)


@contextlib.contextmanager
def debug_file() -> Iterator[Victim]:
    """A loop device's file in debugfs, when the device goes."""
    modprobe("loop max_loop=0")
    with opened("/dev/loop-control") as control:
        number = fcntl.ioctl(control, LOOP_CTL_ADD, 77)
        path = f"/sys/kernel/debug/block/loop{number}/state"
        with opened(path) as fd:
            remove = functools.partial(fcntl.ioctl, control, LOOP_CTL_REMOVE, number)
            yield Victim(fd, fd, path, remove, waits=False, inside=b"kick", again=path)  # which this file takes


@contextlib.contextmanager
def sys_file() -> Iterator[Victim]:
    """A network interface's attribute, when the interface goes."""
    modprobe("dummy numdummies=1")
    path = "/sys/class/net/dummy0/mtu"
    with opened(path) as fd:
        yield Victim(
            fd, fd, path, lambda: subprocess.run(["/sbin/modprobe", "-r", "dummy"], check=True), waits=False, again=path
        )


class Battery:
    """A mouse of uhid's with a battery, whose attribute in sysfs asks the device. So a read waits for us, and the removal
    of the attribute, which is the unbinding of its driver, for the read; the removal of the driver, for the unbinding.
    """

    def __init__(self) -> None:
        modprobe("uhid", "hid_generic")
        self.driver = pathlib.Path("/sys/bus/hid/drivers/hid-generic")
        self._fd = os.open("/dev/uhid", os.O_RDWR)
        described = bytes.fromhex(
            "0501 0902 a101 0509 1901 2901 1500 2501 9501 7508 8102 0506 0920 1500 26ff00 9501 7508 8102 c0"
        )
        names = struct.pack("128s64s64s", b"a mouse", b"vm/mouse", b"vm-battery")
        rest = struct.pack("<HHIIII", len(described), 3, 0x1234, 0x5678, 1, 0) + described.ljust(4096, b"\0")
        os.write(self._fd, struct.pack("<I", UHID_CREATE2) + names + rest)
        self._holds = threading.Event()
        self._asked: list[int] = []
        threading.Thread(target=self._serve, daemon=True).start()
        self.charge = pathlib.Path("/sys/class/power_supply/hid-vm-battery-battery/capacity")
        _until(lambda: there(str(self.charge)))
        (self.id,) = (path.name for path in self.driver.glob("0003:1234:5678.*"))
        time.sleep(0.5)  # its driver asks, too, in the beginning
        self._holds.set()

    def _serve(self) -> None:
        with contextlib.suppress(OSError):
            while event := os.read(self._fd, 4380):
                kind, number = struct.unpack_from("<II", event)
                if kind == UHID_GET_REPORT:
                    self._asked.append(number)
                    if not self._holds.is_set():
                        self.go_on()

    def asked(self) -> bool:
        return bool(self._asked)

    def go_on(self) -> None:
        while self._asked:
            reply = struct.pack("<IIHH", UHID_GET_REPORT_REPLY, self._asked.pop(), 0, 2) + b"\0\x50"
            os.write(self._fd, reply)

    def close(self) -> None:
        os.write(self._fd, struct.pack("<I", UHID_DESTROY))
        os.close(self._fd)


def in_a_handler(operation: str) -> str:
    """What a read or write of a sysfs file answers that waits in its handler when the file goes."""
    with contextlib.closing(Battery()) as battery, opened(str(battery.charge), os.O_RDONLY) as charge:
        answers = {}

        def answer(call: Callable[[], object], name: str) -> threading.Thread:
            thread = threading.Thread(target=lambda: answers.update({name: told(call)}))
            thread.start()
            return thread

        unbind = functools.partial((battery.driver / "unbind").write_text, battery.id)
        reads = answer(lambda: os.read(charge, 100), "read")
        _until(battery.asked)
        if operation == "read":
            waited = waited_for([reads], unbind, battery.go_on)
        else:
            writes = answer(unbind, "write")
            time.sleep(0.2)
            assert writes.is_alive()
            remove = functools.partial(subprocess.run, ["/sbin/rmmod", "hid_generic"], check=True)
            waited = waited_for([reads, writes], remove, battery.go_on)
    return "FINISHES" if waited and answers[operation] == "done" else f"{answers}, waited for: {waited}"


# -- what is done to them --


def read(victim: Victim) -> object:
    return "" if victim.reader is None else os.read(victim.reader, 4096)


LATER: dict[str, Callable[[Victim], object]] = {
    "read, later": read,
    "write, later": lambda victim: os.write(victim.writer, victim.inside or b"1024"),
    "poll": lambda victim: polled(victim.writer),
    "ioctl": lambda victim: fcntl.ioctl(victim.writer, termios.TCGETS, bytes(64)),
    "mmap": lambda victim: mapped(victim.writer),
}


def polled(fd: int) -> str:
    poller = select.poll()
    poller.register(fd, sum(BITS.values()))
    bits = dict(poller.poll(0)).get(fd, 0)
    return " ".join(name for name, bit in BITS.items() if bits & bit) or "nothing"


def mapped(fd: int) -> str:
    """By the C library: Python's own asks for the size first."""
    libc = ctypes.CDLL(None, use_errno=True)
    libc.mmap.restype = ctypes.c_void_p
    if libc.mmap(None, ctypes.c_size_t(4096), mmap.PROT_READ, mmap.MAP_SHARED, fd, 0) == ctypes.c_void_p(-1).value:
        raise OSError(ctypes.get_errno(), "mmap")
    return "maps"


def reopened(path: str) -> str:
    with opened(path, os.O_RDONLY | os.O_NONBLOCK):
        return "NEXT"


def told(call: Callable[[], object]) -> str:
    """What a call answers, in a word."""
    try:
        answer = call()
    except OSError as exc:
        return errno.errorcode[exc.errno or 0]
    if isinstance(answer, str):
        return answer
    return "EOF" if answer == b"" else "done"


def in_flight(victim: Victim, call: Callable[[], object]) -> str:
    """What a call answers that waits when the victim is killed."""
    answers: list[str] = []
    thread = threading.Thread(target=lambda: answers.append(told(call)), daemon=True)
    thread.start()
    asleep = pathlib.Path(f"/proc/self/task/{thread.native_id}/syscall")
    _until(lambda: answers or not asleep.read_text().startswith("running"))
    time.sleep(0.02)  # it may have slept for a lock
    at_once = bool(answers)
    victim.kill()
    thread.join(10)
    return "does not wait" if at_once else answers[0] if answers else "waits on"


def kept_inside(victim: Victim, number: int) -> str:
    """What a read or write answers that is inside when the victim is killed: the page with its bytes is not there yet."""
    libc = ctypes.CDLL(None, use_errno=True)  # errno is each thread's own
    page = mmap.mmap(-1, mmap.PAGESIZE)
    start = ctypes.addressof(ctypes.c_char.from_buffer(page))
    with os.fdopen(libc.syscall(USERFAULTFD, os.O_CLOEXEC), "rb", buffering=0) as faults:
        fcntl.ioctl(faults, UFFDIO_API, struct.pack("3Q", 0xAA, 0, 0))
        fcntl.ioctl(faults, UFFDIO_REGISTER, struct.pack("4Q", start, mmap.PAGESIZE, 1, 0))
        answers: list[str] = []
        size = len(victim.inside)

        def operate() -> str:
            if libc.syscall(number, victim.writer, ctypes.c_void_p(start), size) <= 0:
                raise OSError(ctypes.get_errno(), "it has failed inside")
            return "FINISHES"

        call = threading.Thread(target=lambda: answers.append(told(operate)))
        call.start()
        if not select.select([faults], [], [], 5)[0]:
            victim.kill()
            return "does not touch the memory"
        faults.read(32)
        content = ctypes.create_string_buffer(victim.inside, mmap.PAGESIZE)
        copy = struct.pack("5Q", start, ctypes.addressof(content), mmap.PAGESIZE, 0, 0)
        waited = waited_for([call], victim.kill, functools.partial(fcntl.ioctl, faults, UFFDIO_COPY, copy))
    return answers[0] if waited or answers[0] != "FINISHES" else "FINISHES, not waited for"


def waited_for(calls: list[threading.Thread], kill: Callable[[], object], go_on: Callable[[], object]) -> bool:
    """Whether the killing waits for calls that are inside. They go on only then."""
    killer = threading.Thread(target=kill)
    killer.start()
    killer.join(0.2)
    waited = killer.is_alive()
    go_on()
    for each in *calls, killer:
        each.join()
    return waited


def asked(source: Source) -> dict[str, str]:
    """Each cell, of a victim of its own where the time of its death matters."""
    found = {}
    for cell, ask in (("read, in flight", reading), ("write, in flight", writing)):
        with source() as victim:
            if answer := ask(victim):
                found[cell] = answer
            else:
                victim.kill()
            victim.end()
    with source() as victim:
        victim.kill()
        if victim.again:
            found["open, draining"] = told(lambda: reopened(victim.again))
        later = {cell: told(functools.partial(call, victim)) for cell, call in LATER.items()}
        found |= {cell: answer for cell, answer in later.items() if answer}
        victim.end()
        found["open, gone"] = told(lambda: reopened(victim.path))
    return found


def reading(victim: Victim) -> str:
    if victim.waits:
        return in_flight(victim, functools.partial(read, victim)) if victim.reader is not None else ""
    return kept_inside(victim, READ) if victim.inside else ""


def writing(victim: Victim) -> str:
    if victim.full is not None:
        victim.full()
        return in_flight(victim, lambda: os.write(victim.writer, b"1024"))
    return kept_inside(victim, WRITE) if victim.inside else ""


def _until(true: Callable[[], object]) -> None:
    begun = time.monotonic()
    while not true():
        assert time.monotonic() - begun < 20
        time.sleep(0.005)


def answers(outside: Outside, _: int) -> Iterator[Row]:
    modprobe("usbhid", "hid_generic", "evdev", "uinput", "uhid")
    cable, acm = Usb(outside, "usb1", "ttyUSB*"), gadget()
    sources: dict[tuple[str, str], Source] = {
        ("TTY", "TIOCVHANGUP"): hung_up,
        ("TTY", "USB unplug, ftdi_sio"): lambda: unplugged(cable, stalls=False),
        ("TTY", "USB unplug, cdc_acm"): lambda: unplugged(acm, stalls=True),
        ("PTY_MASTER_CLOSED", "close of the master"): without_master,
        ("ALSA", "USB unplug, snd_usb_audio"): lambda: usb_audio(outside),
        ("ALSA", "unbind, snd_dummy"): sound_card,
        ("EVDEV", "USB unplug, evdev"): lambda: usb_input(outside, "input/event*", EVENT),
        ("EVDEV", "removed, uinput"): lambda: made_input(Keyboard, EVENT),
        ("EVDEV", "EVIOCREVOKE"): lambda: made_input(Keyboard, EVENT, EVDEV),
        ("HIDRAW", "USB unplug, hidraw"): lambda: usb_input(outside, "hidraw*", REPORT),
        ("HIDRAW", "removed, uhid"): lambda: made_input(Stick, REPORT),
        ("HIDRAW_REVOKED", "HIDIOCREVOKE"): lambda: made_input(Stick, REPORT, HIDRAW),
        ("PROCFS", "sound card removed"): proc_file,
        ("DEBUGFS", "loop device removed"): debug_file,
        ("SYSFS", "interface removed"): sys_file,
    }
    for (profile, cause), source in sources.items():
        cells = {} if cause == "HIDIOCREVOKE" and not has_hidiocrevoke() else asked(source)
        if profile == "SYSFS":
            cells |= {f"{operation}, in flight": in_a_handler(operation) for operation in ("read", "write")}
        yield {"profile": profile, "cause": cause, "cells": cells}


def has_hidiocrevoke() -> bool:
    """Linux 6.12 and later."""
    with made_input(Stick, REPORT) as stick:
        try:
            means_for(stick.writer)
        except OSError:
            return False
        finally:
            stick.end()
    return True
