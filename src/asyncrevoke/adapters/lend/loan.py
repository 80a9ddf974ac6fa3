"""A descriptor on loan: sent to another process, and taken back."""

from __future__ import annotations

import array
import contextlib
import errno
import functools
import os
import socket
from collections.abc import Generator
from typing import Any, Self

import anyio

from asyncrevoke.adapters.device.device import why_hung_up
from asyncrevoke.lowlevel import Resource, Revokable, close_off_loop

from .means import Means, means_for
from .relay import Relay


def lend(
    fd: int,
    *,
    to: socket.socket,
    owner: Revokable | None = None,
    name: str = "",
    message: bytes = b"\0",
    relay: bool = False,
) -> Loan:
    """Lend a descriptor: ``async with lend(fd, to=socket, owner=alice): ...``; then ``alice.revoke()`` takes it back.

    ``async with`` or ``await`` lends it. It is taken back when the loan is revoked or closed, or its owner is. When you
    have awaited that, the borrower's descriptor is dead: the kernel was asked. `Loan.means` says how it is taken back.

    You lend an open file. So taking it back affects every copy: those that the borrower has made, handed on, or left to
    its children. The borrower need not run for that. If the lender is killed, what it has lent stays lent. Only relays
    end with the lender.

    :param fd: the descriptor to lend. You still own it
    :param to: a Unix socket with the borrower at its other end, which receives by `socket.recv_fds`
    :param owner: what the loan is opened on
    :param name: for errors and reports
    :param message: the data sent with it, at least a byte
    :param relay: lend a substitute: another pipe for a pipe, a socket for a stream socket, a pty for a terminal. A
        thread copies until it is taken back. You keep yours, but do not read from it meanwhile. `Means.cost` says what
        that costs. `fd` is made non-blocking
    :raises ValueError: if there is no message Lending raises, too:
    :raises OSError: as `means_for`; or the borrower is gone, or has no room for a descriptor
    :raises RevokedError: if the owner was revoked, before or meanwhile
    Cancellation: it is not lent, or taken back.
    """
    if not message:
        raise ValueError("message is empty: give one byte or more")
    return Loan(fd, to, owner, name or f"loan of fd {fd}", message, relay=relay)


class Loan(Resource):
    """A loan, as `lend` returns it. Closing it takes the descriptor back.

    :ivar means: how it is taken back, once it is lent
    """

    means: Means

    def __init__(
        self, fd: int, to: socket.socket, owner: Revokable | None, name: str, message: bytes, *, relay: bool
    ) -> None:
        self._fd = fd
        self._to = to
        self._owner = owner
        self._name = name
        self._message = message
        self._relay = relay

    def __await__(self) -> Generator[Any, Any, Self]:
        """Lend it."""
        return self._lend().__await__()

    async def __aenter__(self) -> Self:
        return await self

    async def _lend(self) -> Self:
        async with (self._owner or Revokable()).opening(self._name) as node:
            self.means = Relay(self._fd).means if self._relay else means_for(self._fd)
            held = self.means.held(self._fd)
            take_back = functools.partial(close_off_loop, functools.partial(self._take, held))
            node.release = take_back if self._relay else functools.partial(os.close, held)
            await self._send(held)
            node.release = take_back
            if self.means.begin is not None:
                self.means.begin()
        self.node = node
        return self

    async def _send(self, held: int) -> None:
        rights = [(socket.SOL_SOCKET, socket.SCM_RIGHTS, array.array("i", [held]))]
        while True:
            try:
                sent = self._to.sendmsg([self._message], rights, socket.MSG_DONTWAIT | socket.MSG_NOSIGNAL)
            except BlockingIOError:
                await anyio.wait_writable(self._to)
            else:
                break
        if sent != len(self._message):
            raise OSError(errno.EMSGSIZE, f"{self._name}: {sent} bytes of the message were sent: make it shorter")

    def _take(self, held: int) -> None:
        """Take it back, and ask the kernel whether that has worked.

        :raises OSError: EBUSY, if it has not
        """
        try:
            with contextlib.suppress(OSError):  # it has gone by itself, as by an unplug; else the kernel tells below
                self.means.take(held)
            if why_hung_up(held) is None:
                raise OSError(errno.EBUSY, f"{self._name}: {self.means.name} has not taken it back")
        finally:
            os.close(held)

    def __repr__(self) -> str:
        return f"<{type(self).__name__} {self._name!r}>"
