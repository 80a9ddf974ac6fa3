"""A sound card's life: card > device > substream, taken away as ALSA does it.

`snd_card_disconnect` (sound/core/init.c) in its steps, and where each is done here:

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

How long to wait is another matter, and there are the kernel's four answers: `disconnect` for nobody, `disconnect_sync`
until every owner has closed his file, `free_when_closed` for nobody and `free` for the last close; the latter two let go
of the card itself then.
"""

from __future__ import annotations

import dataclasses
import errno
import functools
import inspect
import os
from collections.abc import Awaitable, Callable, Iterable, Iterator
from types import TracebackType
from typing import Any, Self

import anyio.abc

from asyncrevoke import Face, FdStream, Report, Revocation, Revokable, RevokableStream
from asyncrevoke.answers import ALSA, Answers, Pair

#: A control device differs: its read in flight answers ENODEV at once (sound/core/control.c, snd_ctl_read).
CONTROL = dataclasses.replace(
    ALSA, read=Pair(errno.ENODEV, errno.ENODEV), write=Pair(errno.ENODEV, errno.ENODEV), short=False
)

Opened = int | anyio.abc.ByteStream
Source = Opened | Callable[[], Opened | Awaitable[Opened]]


class Cards:
    """The numbers of the cards (`snd_cards[]`): ``cards = Cards(); card = cards.add("USB audio")``; then ``cards[0]``.

    :param limit: how many there may be
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
        private_free: Callable[[], object] | None = None,
    ) -> Card:
        """Register a card, with the lowest number that is free.

        :param owner: what it is plugged into
        :param on_disconnect: is called with the card when it is disconnected, before its devices are
        :param private_free: lets go of the card's own resources, once, when it is freed: after the last close
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


class Card:
    """A card, as `Cards.add` gives it. Closing it is `free`.

    :ivar number: its own until it is disconnected; then another card may have it
    :ivar node: what is taken away
    """

    def __init__(
        self,
        cards: Cards,
        number: int,
        name: str,
        owner: Revokable | None,
        *,
        on_disconnect: Callable[[Card], object] | None,
        private_free: Callable[[], object] | None,
    ) -> None:
        self._cards = cards
        self.number = number
        self._on_disconnect = on_disconnect
        self._private_free = private_free
        self._files: dict[object, None] = {}  # open, or dead and not closed by their owners
        self._freeing = False
        self._gone = False
        name = name or f"card{number}"
        options: dict[str, Any] = {"kick": self._disconnected, "release": self._released, "answers": ALSA}
        self.node = Revokable(name, **options) if owner is None else owner.open(name, **options)

    def device(
        self, name: str, *, control: bool = False, disconnect: Callable[[Revokable], object] | None = None
    ) -> Device:
        """Register a device of the card (`snd_device_new`).

        :param control: it is no PCM: what is waiting on it answers ENODEV
        :param disconnect: is called with its node, and with that of each open substream, when the card is disconnected
        :raises RevokedError: if the card was disconnected
        """
        return Device(self, name, CONTROL if control else ALSA, disconnect)

    def disconnect(self, reason: str = "disconnected") -> Revocation:
        """Take the card away from all who use it. When this returns, nothing new starts and its number is free.

        Waits for nobody; what it returns may be awaited. Models snd_card_disconnect.
        """
        act = self.node.revoke(reason)
        self._cards.remove(self)
        return act

    async def disconnect_sync(self, reason: str = "disconnected") -> Report:
        """Take the card away, and wait until every owner has closed what he had open. snd_card_disconnect_sync.

        Deadlock: raises RevokeDeadlock from inside an operation on the card's.
        Cancellation: ends the waiting; the card is disconnected all the same.
        """
        act = self.disconnect(reason)
        await act.wait_closed()
        return await act

    def free_when_closed(self, reason: str = "freed") -> Revocation:
        """Take the card away; the last close lets go of it. Waits for nobody. snd_card_free_when_closed."""
        act = self.disconnect(reason)
        self._freeing = True
        self._perhaps_free()
        return act

    async def free(self, reason: str = "freed") -> Report:
        """Take the card away, wait for the last close, and let go of it. snd_card_free.

        Deadlock: raises RevokeDeadlock from inside an operation on the card's, where the kernel hangs for good.
        Cancellation: ends the waiting; the last close lets go of it.
        """
        act = self.free_when_closed(reason)
        await act.wait_closed()
        return await act

    async def aclose(self) -> None:
        await self.free("closed by its owner")

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, exc: BaseException | None, tb: TracebackType | None
    ) -> None:
        await self.aclose()

    def __repr__(self) -> str:
        return f"<Card {self.number} of {self.node!r}>"

    def file_add(self, file: object) -> None:
        """A file of the card's was opened. snd_card_file_add."""
        self._files[file] = None

    def file_remove(self, file: object) -> None:
        """Its owner has closed it. snd_card_file_remove."""
        self._files.pop(file, None)
        self._perhaps_free()

    def _disconnected(self, node: Revokable) -> None:
        """The kick of the card, and of what has no kick of its own."""
        if node is self.node:
            self._cards.remove(self)  # it may be its owner that was taken away
            if self._on_disconnect is not None:
                self._on_disconnect(self)

    def _released(self) -> None:
        self._gone = True
        self._perhaps_free()

    def _perhaps_free(self) -> None:
        """The last of three: it is to be freed, all is released, all files are closed. snd_card_do_free."""
        if self._freeing and self._gone and not self._files:
            private_free, self._private_free = self._private_free, None
            if private_free is not None:
                private_free()


class Device:
    """A device of a card, as `Card.device` gives it.

    :ivar node: what substreams are opened on. Whatever else takes an owner may be opened on it, such as `open_serial`
    """

    def __init__(
        self, card: Card, name: str, profile: Answers, disconnect: Callable[[Revokable], object] | None
    ) -> None:
        self._card = card
        self.node = card.node.open(name, kick=disconnect or ..., answers=profile)

    async def open(self, source: Source, name: str = "", *, also: Iterable[Revokable] = ()) -> Face:
        """Open a substream, which its owner has to close: until then the card is not freed.

        :param source: where the data goes: a descriptor, or any AnyIO byte stream, which then belong to the substream; or
            a function that opens one, and may be async. That is an operation on the device
        :param also: further parents, such as a token; whichever goes first takes the substream
        :raises RevokedError: if the card is or was disconnected, also meanwhile; what was opened is closed
        """
        with self.node.using():
            opened = source() if callable(source) else source
            if inspect.isawaitable(opened):
                opened = await opened
        key = object()
        make = functools.partial(self.node.open, at_close=functools.partial(self._card.file_remove, key))
        try:
            if isinstance(opened, int):
                stream: Face = FdStream(opened, make, name=name, also=also)
            else:
                stream = RevokableStream(opened, make, name=name, also=also)
        except BaseException:
            if callable(source):
                await _let_go(opened)
            raise
        self._card.file_add(key)
        return stream

    def __repr__(self) -> str:
        return f"<Device of {self.node!r}>"


async def _let_go(opened: int | anyio.abc.ByteStream) -> None:
    if isinstance(opened, int):
        os.close(opened)
    else:
        await anyio.aclose_forcefully(opened)
