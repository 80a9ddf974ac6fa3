"""A sound card's life: card > device > substream, revoked as ALSA does it.

These are the steps of `snd_card_disconnect` (sound/core/init.c), and what does each of them here:

= =================================================== ================================================================
1 set `shutdown`, under the lock of the file list     the card's node refuses: one step that nothing interrupts
2 give each open file the operations of the shut down the streams' handles refuse, and answer by `answers.ALSA`
3 tell the OSS mixer                                  `on_disconnect` of the card
4 disconnect each device: set the state, wake waits   the kick: card, device, substreams, in the order of registration
5 wait for the interrupt handler                      operations on a device's node are waited for, as all are
6 take the proc files and nodes away                  `on_disconnect`, too
7 free the card's number                              `disconnect` does, before old handles are closed
8 wake the power sleepers, wait for control calls     operations on the card's node: kicked, and waited for
= =================================================== ================================================================

You choose how long to wait, by the kernel's four functions. `disconnect` waits for nobody, and `disconnect_sync` until
every owner has closed its file. `free_when_closed` waits for nobody, and `free` for the last close; both then free the
card itself. Each revokes one of three nodes, one below the other: the card's memory, its list of files, and the card
proper. Every open file is a user of the list until its owner closes it.
"""

from __future__ import annotations

import contextlib
import dataclasses
import errno
import functools
import inspect
import os
from collections.abc import Awaitable, Callable, Iterable, Iterator
from typing import Any

import anyio.abc

from asyncrevoke.answers import ALSA, Answers, Pair
from asyncrevoke.lowlevel import Face, FdStream, Report, Resource, Revocation, Revokable, RevokableStream, RevokedError

#: A control device differs: its read in flight answers ENODEV at once (sound/core/control.c, snd_ctl_read). The kernel's
#: has no write, which is EINVAL for ever; ours has one while it lives.
CONTROL = dataclasses.replace(ALSA, read=Pair(errno.ENODEV, errno.ENODEV), write=Pair(errno.ENODEV, errno.EINVAL))

Opened = int | anyio.abc.ByteStream
Source = Opened | Callable[[], Opened | Awaitable[Opened]]
Release = Callable[[], Awaitable[object] | object]


class Cards:
    """The numbers of the cards (`snd_cards[]`): ``cards = Cards(); card = cards.add("USB audio")``; then ``cards[0]``.

    :param limit: the largest number of cards
    """

    def __init__(self, limit: int = 32) -> None:
        self._limit = limit
        self._cards: dict[int, Card] = {}

    def add(
        self,
        name: str = "",
        *,
        owner: Revokable | None = None,
        on_disconnect: Callable[[Card], object] | None = None,
        private_free: Release | None = None,
    ) -> Card:
        """Register a card, with the lowest number that is free.

        :param owner: the node that it is plugged into
        :param on_disconnect: called with the card when it is disconnected, before its devices are
        :param private_free: frees the card's own resources, once, after the last close. A release, as any node's
        :raises OSError: ENODEV, if all numbers are taken
        :raises RevokedError: if the owner was revoked
        """
        number = next((number for number in range(self._limit) if number not in self._cards), None)
        if number is None:
            raise OSError(errno.ENODEV, f"all {self._limit} numbers of cards are taken")
        card = Card(self, number, name, owner, on_disconnect=on_disconnect, private_free=private_free)
        self._cards[number] = card
        return card

    def __getitem__(self, number: int) -> Card:
        return self._cards[number]

    def __iter__(self) -> Iterator[Card]:
        return iter(list(self._cards.values()))

    def __len__(self) -> int:
        return len(self._cards)

    def remove(self, card: Card) -> None:
        """Free the number, if it is still that card's."""
        if self._cards.get(card.number) is card:
            del self._cards[card.number]


class Card(Resource):
    """A card, as `Cards.add` returns it. Closing it is `free`.

    The end of something that was opened on it does not disconnect the card: whoever learns of that end does.

    :ivar number: its own until it is disconnected; then another card may have it
    :ivar node: the node that is revoked
    """

    def __init__(
        self,
        cards: Cards,
        number: int,
        name: str,
        owner: Revokable | None,
        *,
        on_disconnect: Callable[[Card], object] | None,
        private_free: Release | None,
    ) -> None:
        self._cards = cards
        self.number = number
        self._on_disconnect = on_disconnect
        name = name or f"card{number}"
        self._memory = Revokable(name, release=private_free)  # struct snd_card
        self._files = self._memory.open()  # its files_list
        self.node = (owner or Revokable()).open(name, also=[self._files], kick=self._disconnected, answers=ALSA)

    def device(
        self, name: str, *, control: bool = False, disconnect: Callable[[Revokable], object] | None = None
    ) -> Device:
        """Register a device of the card (`snd_device_new`).

        :param control: it is not a PCM: a waiting read answers ENODEV
        :param disconnect: called with its node, and with that of each open substream, when the card is disconnected
        :raises RevokedError: with ENODEV, if the card was disconnected
        """
        with _no_device(self.node):
            return Device(self, name, CONTROL if control else ALSA, disconnect)

    def disconnect(self, reason: str = "disconnected") -> Revocation:
        """Revoke the card for everybody. When this returns, nothing new starts and its number is free.

        This waits for nobody; you may await the result. Models snd_card_disconnect.
        """
        return self.node.revoke(reason)

    async def disconnect_sync(self, reason: str = "disconnected") -> Report:
        """Revoke the card, and wait until every owner has closed its files. Models snd_card_disconnect_sync.

        Deadlock: raises RevokeDeadlock from inside an operation on the card's nodes.
        Cancellation: ends the waiting. The card is disconnected all the same.
        """
        return await _closed(self._files.revoke(reason))

    def free_when_closed(self, reason: str = "freed") -> Revocation:
        """Revoke the card; the last close frees it. Models snd_card_free_when_closed.

        This waits for nobody. The result is complete when the card is freed.
        """
        return self._memory.revoke(reason)

    async def free(self, reason: str = "freed") -> Report:
        """Revoke the card, wait for the last close, and free it. Models snd_card_free.

        :raises BaseExceptionGroup: what hooks and `private_free` raised
        Deadlock: raises RevokeDeadlock from inside an operation on the card's nodes, where the kernel hangs for good.
        Cancellation: ends the waiting. The last close frees the card.
        """
        return await _closed(self.free_when_closed(reason))

    async def aclose(self) -> None:
        await self.free("closed by its owner")

    def __repr__(self) -> str:
        return f"<Card {self.number} of {self.node!r}>"

    def open_file(self, device: Revokable, name: str, **options: Any) -> Revokable:
        """Open a file of the card on one of its devices: snd_card_file_add. Its owner's close is
        snd_card_file_remove.
        """
        node = device.open(name, at_close=self._files.stop_using, **options)
        self._files.start_using()
        return node

    def _disconnected(self, node: Revokable) -> None:
        """The kick of the card, and of nodes that have no kick of their own."""
        if node is self.node:
            self._cards.remove(self)  # whichever way it is taken, by its owner's end, too
            if self._on_disconnect is not None:
                self._on_disconnect(self)


class Device:
    """A device of a card, as `Card.device` returns it.

    :ivar node: substreams are opened on it. You may open on it anything that takes an owner, such as a serial port by
        ``open_serial(path, owner=device.node)``. That answers as the card does, and the disconnect itself closes it.
        Only what `open` has opened is waited for until its owner closes it
    """

    def __init__(
        self, card: Card, name: str, profile: Answers, disconnect: Callable[[Revokable], object] | None
    ) -> None:
        self._card = card
        self._disconnect = disconnect
        self.node = card.node.open(name, kick=self._disconnected, answers=profile)

    async def open(self, source: Source, name: str = "", *, also: Iterable[Revokable] = ()) -> Face:
        """Open a substream. Its owner has to close it: until then the card is not freed.

        :param source: the data's other end: a descriptor or any AnyIO byte stream, which the substream then owns. Or a
            function that opens one, and may be async; the call is an operation on the device
        :param also: further parents, such as a token. Whichever is revoked first takes the substream along
        :raises RevokedError: with ENODEV, if the card was disconnected, before or meanwhile. What a function opened is
            closed; anything else you still own
        """
        with _no_device(self.node):
            with self.node.using():
                opened = source() if callable(source) else source
                if inspect.isawaitable(opened):
                    opened = await opened
            make = functools.partial(self._card.open_file, self.node)
            try:
                if isinstance(opened, int):
                    return FdStream(opened, make, name=name, also=also)
                return RevokableStream(opened, make, name=name, also=also)
            except BaseException:
                if callable(source):
                    await _let_go(opened)
                raise

    def _disconnected(self, node: Revokable) -> None:
        """The kick of the device and its substreams. If a substream is closed alone, the device is not disconnected."""
        if self._disconnect is not None and self.node.revoked:
            self._disconnect(node)

    def __repr__(self) -> str:
        return f"<Device of {self.node!r}>"


@contextlib.contextmanager
def _no_device(node: Revokable) -> Iterator[None]:
    """Answer ENODEV to an open on what was disconnected."""
    try:
        yield
    except RevokedError as error:
        if error.node is node:
            error.errno = errno.ENODEV
        raise


async def _closed(act: Revocation) -> Report:
    """Wait for the owners of all files, including those that others have opened on a device's node with an
    `at_close`.
    """
    await act.wait_closed()
    return await act


async def _let_go(opened: int | anyio.abc.ByteStream) -> None:
    if isinstance(opened, int):
        with contextlib.suppress(OSError):  # it is not open
            os.close(opened)
    else:
        await anyio.aclose_forcefully(opened)
