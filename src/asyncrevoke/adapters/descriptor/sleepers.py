"""Threads of this process that sleep in a system call on a descriptor: found in /proc, and woken by a signal.

The signal is SIGURG, which means nothing to code that has not asked for it, with a handler that does nothing. The
kernel begins the interrupted call again, with the same number, which may mean another file by then. poll, select and
calls with a timeout end with EINTR instead. Every caller must expect that, and Python hides it.
"""

import ctypes
import errno
import os
import pathlib
import platform
import signal
import struct
import threading
from collections.abc import Iterator

#: The system calls that may sleep on a descriptor, by machine (asm/unistd_64.h, asm-generic/unistd.h).
_CALLS = {
    "x86_64": """
        read=0 write=1 poll=7 ioctl=16 pread64=17 pwrite64=18 readv=19 writev=20 select=23 sendfile=40 connect=42
        accept=43 sendto=44 recvfrom=45 sendmsg=46 recvmsg=47 fcntl=72 flock=73 fsync=74 fdatasync=75
        restart_syscall=219 epoll_ctl=233 mq_timedsend=242 mq_timedreceive=243 waitid=247 pselect6=270 ppoll=271
        splice=275 tee=276 vmsplice=278 accept4=288 preadv=295 pwritev=296 recvmmsg=299 sendmmsg=307 copy_file_range=326
        preadv2=327 pwritev2=328
    """,
    "aarch64": """
        epoll_ctl=21 fcntl=25 ioctl=29 flock=32 read=63 write=64 readv=65 writev=66 pread64=67 pwrite64=68 preadv=69
        pwritev=70 sendfile=71 pselect6=72 ppoll=73 vmsplice=75 splice=76 tee=77 fsync=82 fdatasync=83 waitid=95
        restart_syscall=128 mq_timedsend=182 mq_timedreceive=183 accept=202 connect=203 sendto=206 recvfrom=207
        sendmsg=211 recvmsg=212 accept4=242 recvmmsg=243 sendmmsg=269 copy_file_range=285 preadv2=286 pwritev2=287
    """,
}
NUMBERS = {
    machine: {name: int(number) for name, _, number in (call.partition("=") for call in calls.split())}
    for machine, calls in _CALLS.items()
}
_NAMES = {number: name for name, number in NUMBERS.get(platform.machine(), {}).items()}
#: The place of the other descriptor, in calls that have two.
_SECOND = {"sendfile": 1, "splice": 2, "tee": 1, "copy_file_range": 2, "epoll_ctl": 2}
_P_PIDFD = 3

_SIGURG = 1 << signal.SIGURG - 1

_libc = ctypes.CDLL(None, use_errno=True)


def check() -> None:
    """Check whether sleepers can be found here.

    :raises NotImplementedError: on other machines than x86_64 and aarch64
    :raises OSError: without /proc, or with another pid namespace's; EACCES if it is not the process's own, as after
        setuid(2)
    """
    if not _NAMES:
        raise NotImplementedError(f"the numbers of the system calls of {platform.machine()} are not known")
    pathlib.Path("/proc/thread-self/syscall").read_text()
    if pathlib.Path("/proc/self").readlink().name != str(os.getpid()):
        raise OSError(errno.ESRCH, "/proc belongs to another pid namespace, where threads have other numbers")


def on(fd: int) -> list[int]:
    """Return the threads that sleep on `fd`, by their numbers.

    Threads in epoll_wait are left out, because that depends on what is in the set. So are those that wait by io_uring.
    """
    return [thread for thread, call in _calls() if call and _names(call, fd)]


def perhaps_on(fd: int) -> list[int]:
    """Return those, and all that may be about to sleep: they run, or go on with a call that SIGSTOP has interrupted."""
    return [
        thread for thread, call in _calls() if not call or _NAMES.get(call[0]) == "restart_syscall" or _names(call, fd)
    ]


def wake(threads: list[int]) -> None:
    """Interrupt the calls of these threads. Threads that block SIGURG sleep on."""
    told = False
    while not told:
        if _is_ignored():
            _libc.signal(signal.SIGURG, _libc.getpid)  # takes no argument, and harms nobody
        for thread in threads:
            _libc.tgkill(os.getpid(), thread, signal.SIGURG)
        told = not _is_ignored()  # else the program, or SA_RESETHAND, has taken its handler away, and signals were lost


def _is_ignored() -> bool:
    present = ctypes.create_string_buffer(1024)
    _libc.sigaction(signal.SIGURG, None, present)
    return ctypes.c_void_p.from_buffer(present).value in (None, signal.SIG_IGN)  # None is SIG_DFL


def unheard(threads: list[int], asleep: list[int]) -> list[int]:
    """Return the threads that may still be in the call that they were in when they were to be woken.

    A thread that has had the signal has left the call. Of a thread that is deaf to it you can only know whether it
    sleeps.
    """
    return [each for each in threads if (each in asleep if is_deaf(each) else _is(each, "SigPnd"))]


def is_deaf(thread: int) -> bool:
    """Whether it blocks SIGURG."""
    return _is(thread, "SigBlk")


def _is(thread: int, which: str) -> bool:
    """Whether SIGURG is in that mask of the thread."""
    try:
        status = pathlib.Path(f"/proc/self/task/{thread}/status").read_text()
    except (FileNotFoundError, ProcessLookupError):
        return False  # it has ended
    return bool(int(status.partition(f"\n{which}:")[2].split()[0], 16) & _SIGURG)


def _calls() -> Iterator[tuple[int, list[int]]]:
    """Yield each other thread of this process with the call it sleeps in: the system call and its arguments, or nothing
    if it runs.
    """
    for thread in _threads() - {threading.get_native_id()}:
        try:
            call = pathlib.Path(f"/proc/self/task/{thread}/syscall").read_text().split()
        except (FileNotFoundError, ProcessLookupError):
            continue  # it has ended
        if call[-2:] != [
            "0x0",
            "0x0",
        ]:  # else a worker of io_uring: it shows the registers of whom it was made by, but no stack
            yield thread, [] if call == ["running"] else [int(each, 0) for each in call]


def _threads() -> set[int]:
    """Return all threads. A listing breaks off where a thread dies meanwhile (fs/proc/base.c, next_tid), so they are
    counted, too.

    Threads that were listed were alive when they were counted, if all are listed again. So as many listed threads are
    all.
    """
    tasks, status = pathlib.Path("/proc/self/task"), pathlib.Path("/proc/self/status")
    while True:
        listed = set(tasks.iterdir())
        count = int(status.read_text().partition("\nThreads:")[2].split()[0])
        if count <= len(listed) and listed <= set(tasks.iterdir()):
            return {int(each.name) for each in listed}


def _names(call: list[int], fd: int) -> bool:
    """Whether `fd` is among the descriptors of the call."""
    number, *arguments = call
    match _NAMES.get(number):
        case "poll" | "ppoll":
            polled = struct.iter_unpack("=iI", _memory(arguments[0], 8 * arguments[1]))
            return any(each == fd for each, _ in polled)
        case "select" | "pselect6":
            sets = (_memory(each + fd // 8, 1) for each in arguments[1:4] if each)
            return fd < arguments[0] and any(each[0] >> fd % 8 & 1 for each in sets if each)
        case "waitid":
            return arguments[0] & 0xFFFFFFFF == _P_PIDFD and arguments[1] & 0xFFFFFFFF == fd
        case None | "restart_syscall":
            return False
        case name:
            return fd in (arguments[0] & 0xFFFFFFFF, arguments[_SECOND.get(name, 0)] & 0xFFFFFFFF)


def _memory(address: int, length: int) -> bytes:
    """Return what is at that address, or nothing if the process that had it there has gone."""
    try:
        with pathlib.Path("/proc/self/mem").open("rb", buffering=0) as memory:
            memory.seek(address)
            return memory.read(length) or b""
    except OSError as exc:
        if exc.errno not in (errno.EIO, errno.EFAULT):
            raise
        return b""
