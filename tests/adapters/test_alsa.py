"""A sound card: card > device > substream, disconnected and freed as ALSA does it (the steps are in adapters/alsa.py)."""

import contextlib
import errno
import itertools
import os
import socket
from collections.abc import AsyncIterator, Callable, Iterator
from typing import Any, Literal

import anyio
import anyio.lowlevel
import pytest

from asyncrevoke import Face, FdStream, Revokable, RevokeDeadlock, RevokedError, open_serial
from asyncrevoke.adapters.alsa import Card, Cards, Device
from asyncrevoke.testing import Subject, check_revokable
from calls import parked, start
from conftest import settle
from ports import serial_line
from sockets import BIG

pytestmark = pytest.mark.anyio

Kind = Literal["descriptor", "stream", "factory"]


@contextlib.contextmanager
def hardware() -> Iterator[tuple[int, socket.socket]]:
    """A descriptor that a substream takes over, and the other end of it."""
    near, far = socket.socketpair()
    with far:
        yield near.detach(), far


@contextlib.asynccontextmanager
async def playing(kind: Kind = "descriptor", **options: Any) -> AsyncIterator[tuple[Card, Device, Face, socket.socket]]:
    """A card with one device and a substream on it, opened in each way."""
    card = Cards().add("usb")
    device = card.device("pcm0", **options)
    with hardware() as (fd, far), anyio.fail_after(20):

        async def factory() -> int:
            await anyio.lowlevel.checkpoint()
            return fd

        if kind == "stream":
            stream = await device.open(FdStream(fd), "playback")
        else:
            stream = await device.open(fd if kind == "descriptor" else factory, "playback")
        try:
            yield card, device, stream, far
        finally:
            await stream.aclose()


@pytest.mark.parametrize("kind", ["descriptor", "stream", "factory"])
async def test_a_substream_keeps_the_contract(kind: Kind) -> None:
    """Whatever its data go by, a substream passes the checker."""

    @contextlib.asynccontextmanager
    async def maker() -> AsyncIterator[Subject]:
        async with playing(kind) as (_, device, stream, far):
            yield Subject(
                stream.handle,
                stream.receive,
                quick=lambda: stream.send(b"x"),
                feed=lambda: far.send(b"x"),
                close=stream.aclose,
                owner=device.node,
                gone=(lambda: stream.fileno() < 0) if isinstance(stream, FdStream) else lambda: stream.handle.released,
            )

    await check_revokable(maker)


@pytest.mark.parametrize("kind", ["descriptor", "stream"])
@pytest.mark.parametrize(
    ("control", "in_flight", "write"), [(False, errno.EBADFD, errno.ENODEV), (True, errno.ENODEV, errno.EINVAL)]
)
async def test_it_answers_as_the_kernel_does(kind: Kind, control: bool, in_flight: int, write: int) -> None:
    """A PCM's reads and writes in flight answer EBADFD, a control device's ENODEV; later ones ENODEV, but to write to a
    control EINVAL.
    """
    async with playing(kind, control=control) as (card, device, stream, _), anyio.create_task_group() as tasks:
        calls = [start(tasks, stream.receive), start(tasks, stream.send, BIG)]
        await parked(stream.handle, 2)
        await card.disconnect("unplugged")
        for call in calls:
            await call.done.wait()
        later = [start(tasks, stream.receive), start(tasks, stream.send, b"x"), start(tasks, device.open, 0)]
        for call in later:
            await call.done.wait()
        assert [call.error.errno for call in calls] == [in_flight] * 2
        assert [call.error.errno for call in later] == [errno.ENODEV, write, errno.ENODEV]
        assert {call.error.reason for call in calls + later} == {"unplugged"}


async def test_a_serial_port_opened_on_a_device_goes_with_the_card() -> None:
    """What else takes an owner can be a device's data path: a serial port on it answers EBADFD and ENODEV."""
    card = Cards().add()
    with serial_line() as line, anyio.fail_after(20):
        async with open_serial(line.path, owner=card.device("pcm0").node) as port, anyio.create_task_group() as tasks:
            stream = port.open()
            reading = start(tasks, stream.receive)
            await parked(stream.handle)
            await card.free()
            await reading.done.wait()
            with pytest.raises(RevokedError) as later:
                await stream.receive()
            assert (reading.error.errno, later.value.errno) == (errno.EBADFD, errno.ENODEV)


# -- numbers --


async def test_a_number_is_free_before_the_old_files_are_closed() -> None:
    """`disconnect` waits for nobody; a new card takes the number at once, and the old card's files stay dead."""
    cards = Cards()
    old = cards.add()
    with hardware() as (fd, _):
        stream = await old.device("pcm0").open(fd)
        with stream.handle.using():
            old.disconnect()
            new = cards.add()
            assert (new.number, cards[0], len(cards), old.node.released) == (0, new, 1, False)
        old.disconnect()
        assert list(cards) == [new]
        with pytest.raises(RevokedError):
            await stream.receive()
        with pytest.raises(RevokedError) as refused:
            old.device("pcm1")
        assert refused.value.errno == errno.ENODEV
        await stream.aclose()


async def test_the_number_is_free_however_the_card_goes() -> None:
    """The end of what the card is plugged into disconnects it, and so does a revocation of its node."""
    cards, hub = Cards(limit=2), Revokable("hub")
    on_hub, other = cards.add(owner=hub), cards.add()
    assert on_hub.node.path == "hub/card0"
    with pytest.raises(OSError, match="all 2 numbers") as full:
        cards.add()
    assert full.value.errno == errno.ENODEV
    hub.revoke("the hub is gone")
    other.node.revoke()
    assert list(cards) == []
    with pytest.raises(RevokedError):
        cards.add(owner=hub)
    assert [cards.add().number, cards.add().number] == [0, 1]


# -- hooks --


async def test_hooks_run_in_the_order_of_registration() -> None:
    """The card's first, then each device's with its node and those of its substreams; all when everything refuses."""
    log: list[str] = []

    def note(node: Revokable) -> None:
        log.append(node.path)
        assert all(each.revoked for each in (card.node, first.node, second.node))

    cards = Cards()
    card = cards.add("usb", on_disconnect=lambda card: log.append(f"{card.node.path} {len(cards)}"))
    first, second = card.device("pcm0", disconnect=note), card.device("pcm1", disconnect=note)
    with hardware() as (late, _), hardware() as (early, _), hardware() as (closed, _):
        streams = [await second.open(late, "c"), await first.open(early, "b")]
        await (await first.open(closed, "closed")).aclose()
        assert log == []
        await card.disconnect()
        for stream in streams:
            await stream.aclose()
    assert log == ["usb 0", "usb/pcm0", "usb/pcm0/b", "usb/pcm1", "usb/pcm1/c"]


async def test_what_hooks_and_private_free_raise_is_told() -> None:
    """A hook that raises stops neither the others nor the freeing, and whoever awaits that is told of all."""
    log: list[str] = []

    def fail(what: object) -> None:
        log.append(str(what))
        raise ValueError(what)

    card = Cards().add(on_disconnect=lambda _: fail("card"), private_free=lambda: fail("free"))
    card.device("pcm0", disconnect=lambda _: fail("device"))
    with pytest.raises(ExceptionGroup) as caught:
        await card.free()
    assert [str(error) for error in caught.value.exceptions] == log == ["card", "device", "free"]


# -- closing and freeing --


@pytest.mark.parametrize("disconnected", ["before", "by its owner", "not yet"])
@pytest.mark.parametrize("wait", [Card.disconnect_sync, Card.free, Card.aclose])
async def test_it_waits_for_the_last_close(wait: Callable[[Card], Any], disconnected: str) -> None:
    """`disconnect_sync` and `free` return when every owner has closed what he had open, whoever disconnected it."""
    hub = Revokable("hub")
    card = Cards().add(owner=hub)
    device = card.device("pcm0")
    with hardware() as (one, _), hardware() as (two, _), anyio.fail_after(20):
        streams = [await device.open(one), await device.open(two)]
        if disconnected != "not yet":
            await (card.disconnect() if disconnected == "before" else hub.revoke())
        async with anyio.create_task_group() as tasks:
            waiting = start(tasks, wait, card)
            for stream in streams:
                await settle()
                assert not waiting.done.is_set()
                await stream.aclose()
            await waiting.done.wait()
            assert not isinstance(waiting.outcome, Exception)


@pytest.mark.parametrize("order", [*itertools.permutations(["close", "close too", "disconnect", "free"])], ids="-".join)
async def test_private_free_runs_once_at_the_last_close(order: tuple[str, ...]) -> None:
    """In whatever order: not before it is to be freed and every owner has closed, and then at once."""
    log: list[str] = []
    card = Cards().add(private_free=lambda: log.append("freed"))
    device = card.device("pcm0")
    with hardware() as (one, _), hardware() as (two, _):
        steps: dict[str, Callable[[], Any]] = {
            "close": (await device.open(one)).handle.close,
            "close too": (await device.open(two)).handle.close,
            "disconnect": card.disconnect,
            "free": card.free_when_closed,
        }
        for number, step in enumerate(order, 1):
            await anyio.lowlevel.checkpoint()
            steps[step]()
            assert log == ["freed"] * ({"close", "close too", "free"} <= set(order[:number]))
        await card.free()
    assert log == ["freed"]


@pytest.mark.parametrize("wait", [Card.disconnect_sync, Card.free])
async def test_freeing_from_inside_is_explained(wait: Callable[[Card], Any]) -> None:
    """An operation on the card's that awaits the freeing gets RevokeDeadlock; the card is taken away all the same."""
    async with playing() as (card, device, stream, _):
        for node in stream.handle, device.node, card.node:
            with pytest.raises(RevokeDeadlock if node is stream.handle else RevokedError), node.using():
                await wait(card)
        await stream.aclose()
        await card.free()


# -- opening --


async def test_a_disconnect_ends_an_opening() -> None:
    """A function that still opens is cancelled; what it opens all the same is closed."""
    card = Cards().add()
    device = card.device("pcm0")
    opened = anyio.Event()

    async def slow() -> int:
        await anyio.sleep_forever()
        return -1

    with hardware() as (fd, far), anyio.fail_after(20):

        async def stubborn() -> int:
            with anyio.CancelScope(shield=True):
                await opened.wait()
            return fd

        async with anyio.create_task_group() as tasks:
            calls = [start(tasks, device.open, slow), start(tasks, device.open, stubborn)]
            await parked(device.node, 2)
            freeing = card.free_when_closed("unplugged")
            await calls[0].done.wait()
            assert not freeing.done()
            opened.set()
            await calls[1].done.wait()
            await freeing
        assert far.recv(1) == b""
        assert [(call.error.errno, call.error.reason) for call in calls] == [(errno.ENODEV, "unplugged")] * 2


@pytest.mark.parametrize("fault", ["raises", "gives what is not open", "token"])
async def test_an_opening_that_fails_leaves_nothing(fault: str) -> None:
    """The error comes through, what was opened is closed, and neither the device nor the freeing is harmed by it."""
    card = Cards().add()
    device, token = card.device("pcm0"), Revokable("token")
    with hardware() as (fd, far), anyio.fail_after(20):

        def factory() -> int:
            if fault == "raises":
                raise OSError(errno.EBUSY, "in use")
            return fd if fault == "token" else 1 << 20

        token.revoke()
        with pytest.raises(OSError) as caught:
            await device.open(factory, also=[token] if fault == "token" else [])
        assert caught.value.errno == {"raises": errno.EBUSY, "token": errno.EIO}.get(fault, errno.EBADF)
        if fault != "token":
            os.close(fd)
        assert far.recv(1) == b""
        assert (device.node.in_use, card.node.unclosed, device.node.revoked) == (0, 0, False)
        await card.free()
