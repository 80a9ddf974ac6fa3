"""Becomes the program of a pty, in a small interpreter of its own: no large process has to fork for it.

It leads the session, whose terminal is its input. On descriptor 3 it gets what `Program` sends, and says that it has
begun. Then the program runs and 3 is closed, or the error follows.
"""

import ctypes
import marshal
import os
from contextlib import suppress
from typing import Any

CHANNEL = 3
PR_SET_PDEATHSIG = 1  # include/uapi/linux/prctl.h
SIGKILL = 9  # to import `signal` takes half as long again as all of this


def lead() -> None:
    with open(CHANNEL, "rb", closefd=False) as channel:
        host, signums, argv, env, cwd = marshal.load(channel)  # noqa: S302  # from our own parent
    libc = ctypes.CDLL(None)
    libc.prctl(PR_SET_PDEATHSIG, SIGKILL)
    if os.getppid() != host:  # it ended before that
        os._exit(1)
    for signum in signums:
        libc.signal(signum, None)  # the default: the host may ignore it, and so does this interpreter with some
    for fd in map(int, os.listdir("/proc/self/fd")):  # noqa: PTH208  # to import pathlib takes as long again
        if fd >= CHANNEL:
            with suppress(OSError):  # the listing's own is closed
                os.set_inheritable(fd, False)
    os.write(CHANNEL, b".")
    error: tuple[Any, ...]
    name = cwd
    try:
        if cwd is not None:
            os.chdir(cwd)
        name = argv[0]
        os.execvpe(argv[0], argv, env)  # noqa: S606
    except OSError as exc:
        error = (exc.errno, exc.strerror, name)
    except ValueError as exc:
        error = (None, str(exc), name)
    os.write(CHANNEL, marshal.dumps(error))


if __name__ == "__main__":
    lead()
