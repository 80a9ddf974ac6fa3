"""A substitute for a descriptor that the kernel cannot take back, or not from the borrower alone: a thread copies."""

from __future__ import annotations

import contextlib
import os
import select
import socket
import stat
from dataclasses import dataclass

from asyncrevoke.linux import eventfd, fcntl, tty
from asyncrevoke.lowlevel import OffLoop, off_loop

from .means import SOCKET, Means, as_socket, is_master, no_means

_COSTS = "A thread of the lender must run, and copies each byte twice more. Data under way is lost."
_PIPE = f"{_COSTS} It is another pipe: as much again is buffered."
_SOCKET = f"{_COSTS} It is a Unix socket: there are no addresses, options or messages, and no end of one direction."
_TERMINAL = f"{_COSTS} It is a pty: settings, modem lines and breaks do not reach the port."


@dataclass(slots=True)
class _Way:
    source: int
    sink: int
    data: bytes = b""  # which has been read, and not been written

    def waits_for(self) -> tuple[int, int]:
        """The descriptor that it waits for, and the events."""
        return (self.sink, select.POLLOUT) if self.data else (self.source, select.POLLIN)

    def go_on(self) -> bool:
        """Read or write once. Return whether it goes on.

        :raises OSError: if it is over because of an error
        """
        try:
            if self.data:
                self.data = self.data[os.write(self.sink, self.data) :]
            else:
                self.data = os.read(self.source, 65536)
                return bool(self.data) or os.isatty(self.source)  # as it is no longer, when it is hung up
        except BlockingIOError:  # another way was waited for, or another program was faster
            pass
        return True


class Relay:
    """A pipe, a socketpair or a pty. Lend its far end. Its near end is closed when it is taken back, or when the
    original ends. Then every copy of the far end is dead.

    :param fd: the original, from which nobody else reads meanwhile. You still own it; it is made non-blocking
    :raises OSError: EOPNOTSUPP, with the reason, if there is no substitute for it
    """

    def __init__(self, fd: int) -> None:
        mode = os.fstat(fd).st_mode
        access = fcntl.fcntl(fd, fcntl.F_GETFL) & os.O_ACCMODE
        with contextlib.ExitStack() as undone:

            def kept(number: int) -> int:
                undone.callback(os.close, number)
                return number

            if stat.S_ISFIFO(mode) and access != os.O_RDWR:
                reads, writes = map(kept, os.pipe())
                self.far, self._near = (reads, writes) if access == os.O_RDONLY else (writes, reads)
                cost = _PIPE
            elif stat.S_ISSOCK(mode) and _type_of(fd) == socket.SOCK_STREAM:
                self.far, self._near = (kept(end.detach()) for end in socket.socketpair())
                cost = _SOCKET
            elif stat.S_ISCHR(mode) and os.isatty(fd) and not is_master(fd):
                self._near, self.far = map(kept, os.openpty())
                tty.setraw(self.far)
                cost = _TERMINAL
            else:
                raise no_means("only pipes, terminals and stream sockets can be relayed: others carry more than bytes")
            self._fd = kept(os.dup(fd))
            self._stop = eventfd(0)
            undone.pop_all()
        self.means = Means("relay", False, True, lambda _: self.far, lambda _: self._close(), cost, self._begin)
        there, back = _Way(self._fd, self._near), _Way(self._near, self._fd)
        self._ways = {os.O_RDONLY: [there], os.O_WRONLY: [back], os.O_RDWR: [there, back]}[access]
        self._copying: OffLoop[None] | None = None

    def _begin(self) -> None:
        for each in self._fd, self._near:
            os.set_blocking(each, False)
        self._copying = off_loop(self._copy)

    def _copy(self) -> None:
        try:
            while not self._stopped():
                for way in [*self._ways]:
                    if not way.go_on():
                        if way.source == self._fd:
                            return
                        self._ways.remove(way)  # the borrower has shut down what it sends, and may receive
        except OSError:  # as where the port is unplugged
            pass
        finally:
            self._end()

    def _stopped(self) -> bool:
        """Wait until data can be copied, or until it must stop. Return whether it must stop."""
        waits = {self._stop: int(select.POLLIN)}
        for fd, event in [way.waits_for() for way in self._ways]:
            waits[fd] = waits.get(fd, 0) | event
        poll = select.poll()
        for fd, events in waits.items():
            poll.register(fd, events)
        return self._stop in dict(poll.poll())

    def _close(self) -> None:
        if self._copying is None:
            self._end()
        else:
            os.eventfd_write(self._stop, 1)
            self._copying.result()
        os.close(self._stop)
        os.close(self._fd)

    def _end(self) -> None:
        if stat.S_ISSOCK(os.fstat(self._near).st_mode):
            SOCKET.take(self._near)
            while os.read(self._near, 65536):  # or the borrower would be told of a reset
                pass
        os.close(self._near)


def _type_of(fd: int) -> int:
    with as_socket(fd) as there:
        return there.type
