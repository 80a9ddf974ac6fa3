"""Several at one share: the keyboard is taken and given back, lines are said, and each can ask who is here."""

import contextlib
import functools
import pathlib
from collections.abc import Mapping
from typing import Any

import anyio
import pytest

from asyncrevoke.console.access import People
from asyncrevoke.console.client import Client
from asyncrevoke.console.console import Console
from asyncrevoke.console.share import Share
from asyncrevoke.control import ControlError
from asyncrevoke.control.lines import decode, encode
from asyncrevoke.lowlevel import Registry
from conftest import settle
from test_console import ECHO, Attached, lab

pytestmark = pytest.mark.anyio


async def asks(client: Attached, **line: Any) -> dict[str, Any]:
    """Send a line, and wait for what is told next."""
    told = len(client.told)
    await client.control.send(line)
    await client.until(lambda: len(client.told) > told)
    return client.told[told]


async def test_keyboard_is_taken_and_given_back(tmp_path: pathlib.Path) -> None:
    """It goes back to whom it was taken from, not to who has been here longest; all are told each time."""
    async with lab(tmp_path, Share("lab", ECHO)) as server:
        oldest, two, three = [await server.attach() for _ in range(3)]
        for client, line, holder in [
            (two, "take", "root-2"),
            (three, "take", "root-3"),
            (three, "give", "root-2"),
            (two, "give", "root-3"),
        ]:
            await client.control.send({line: True})
            for each in (oldest, two, three):
                await each.is_told(keyboard=holder, yours=each.told[0]["attached"] == f"lab/{holder}")
        await two.types(b"lost")
        await three.types(b"three")
        await oldest.hears(b"three")
        assert oldest.output == b"three"


async def test_keyboard_is_given_by_whoever_may_type_to_a_client_with_a_name(tmp_path: pathlib.Path) -> None:
    """All are told, and by whom; it goes back when that client leaves. Giving it to who has it does nothing."""
    async with lab(tmp_path, Share("lab", ECHO)) as server:
        one, two, three = [await server.attach() for _ in range(3)]
        admin = await server.connect()
        for _ in range(2):
            await one.is_told(keyboard="root", yours=True)
            told = len(one.told)
            assert [each async for each in admin.request("give", name="lab", to="root-3")] == [{"ok": True}]
            await one.until(lambda told=told: len(one.told) > told)  # type: ignore[misc]
            assert one.told[told:] == [{"keyboard": "root-3", "yours": False, "reason": "", "by": "root"}]
            await three.is_told(keyboard="root-3", yours=True)
            await two.is_told(keyboard="root-3", yours=False, by="")
            assert [each async for each in admin.request("give", name="lab", to="root-3")] == [{"ok": True}]
            await three.control.send({"give": True})
        await one.is_told(keyboard="root", yours=True)


async def test_keyboard_is_not_given_to_who_may_not_have_it(tmp_path: pathlib.Path) -> None:
    """Who only watches, or is not there. It stays where it is."""
    async with lab(tmp_path, Share("lab", ECHO), Share("empty", ECHO)) as server:
        one, _, admin = await server.attach(), await server.attach("watch"), await server.connect()
        for fields, code, says in (
            ({"to": "root-2"}, "refused", "'root-2' may only watch 'lab'"),
            ({"to": "bob"}, "unknown-path", "'bob' is not attached to 'lab'. Attached: root, root-2"),
            ({"to": "bob", "name": "empty"}, "unknown-path", "'bob' is not attached to 'empty'. Nobody is"),
            ({"to": "bob", "name": "nothing"}, "unknown-path", "no share is named 'nothing'"),
            ({}, "bad-request", "'to' must be text"),
        ):
            with pytest.raises(ControlError) as refused:
                async for _record in admin.request("give", **{"name": "lab"} | fields):
                    pass
            assert refused.value.code == code
            assert str(refused.value).startswith(says)
        assert one.told[-1]["yours"]


async def test_keyboard_goes_back_when_the_taker_leaves(tmp_path: pathlib.Path) -> None:
    """Also then it is for whom it was taken from."""
    async with lab(tmp_path, Share("lab", ECHO)) as server:
        oldest, two, three = [await server.attach() for _ in range(3)]
        await two.control.send({"take": True})
        await oldest.is_told(keyboard="root-2")
        await three.control.send({"take": True})
        await oldest.is_told(keyboard="root-3")
        await three.control.send({"detach": True})
        assert await three.ends() == "detached"
        await oldest.is_told(keyboard="root-2")


async def test_keyboard_that_nobody_else_wants_is_for_the_next_who_comes(tmp_path: pathlib.Path) -> None:
    """Given back to nobody, it may be taken again."""
    async with lab(tmp_path, Share("lab", ECHO)) as server:
        one, _ = [await server.attach(mode) for mode in ("write", "watch")]
        await one.is_told(yours=True)
        await one.control.send({"give": True})
        await one.is_told(keyboard=None, yours=False)
        await one.control.send({"take": True})
        await one.is_told(yours=True)
        await one.control.send({"give": True})
        await one.is_told(keyboard=None)
        two = await server.attach()
        await two.is_told(yours=True)


async def test_what_cannot_be_done_is_refused_and_the_client_stays(tmp_path: pathlib.Path) -> None:
    """Who watches, or whose keyboard was taken away, does not get it by asking; each refusal says why."""
    async with lab(tmp_path, Share("lab", ECHO)) as server:
        watcher = await server.attach("watch")
        await watcher.is_told(keyboard=None)
        assert await asks(watcher, take=True) == {"refused": "take", "message": "you only watch here"}
        assert await asks(watcher, give=True) == {"refused": "give", "message": "you do not have the keyboard"}
        assert await asks(watcher, say="hello") == {"refused": "say", "message": "nobody else is here"}
        one = await server.attach()
        await one.is_told(yours=True)
        assert await asks(one, take=True) == {"refused": "take", "message": "you have the keyboard"}
        admin = await server.connect()
        await admin.revoke("lab/root-2/keyboard", "hands off")
        await one.is_told(yours=False)
        assert await asks(one, take=True) == {"refused": "take", "message": "hands off"}


async def test_line_is_said_to_all_others(tmp_path: pathlib.Path) -> None:
    """They are told who said it; the device gets nothing of it, and one who says it does not hear it."""
    async with lab(tmp_path, Share("lab", ECHO)) as server:
        one, two, watcher = [await server.attach(mode) for mode in ("write", "write", "watch")]
        await watcher.control.send({"say": "is it yours? 50 €"})
        for each in (one, two):
            await each.is_told(said="is it yours? 50 €", by="root-3")
        await one.types(b"typed")
        await watcher.hears(b"typed")
        assert watcher.output == b"typed"
        assert not any("said" in told for told in watcher.told)


@pytest.mark.parametrize("text", ["", "two\nlines", "\x1b[2J", "x" * 1001, 5])
async def test_line_that_would_do_something_to_a_terminal_is_not_said(tmp_path: pathlib.Path, text: object) -> None:
    """It makes no sense to the server."""
    async with lab(tmp_path, Share("lab", ECHO)) as server:
        one, two = [await server.attach() for _ in range(2)]
        await one.control.send({"say": text})
        await one.ends()
        assert isinstance(one.end, ControlError)
        assert one.end.code == "bad-request"
        await two.is_told(yours=True)
        assert not any("said" in told for told in two.told)


async def test_lines_for_who_does_not_read_hold_up_nobody(tmp_path: pathlib.Path) -> None:
    """Of those that wait for a client, the oldest are dropped: memory has an end."""
    async with lab(tmp_path, Share("lab", ECHO)) as server:
        deaf = await server.connect()
        await deaf.send({"v": 1, "do": "attach", "name": "lab"})
        assert "attached" in await deaf.receive()
        one = await server.attach("force")
        for number in range(3000):
            await one.control.send({"say": f"{number:1000}"})
        await one.types(b"typed")
        await one.hears(b"typed")
        heard: list[int] = []
        with anyio.fail_after(30):
            while not heard or heard[-1] != 2999:
                record = await deaf.receive()
                if "said" in record:
                    heard.append(int(record["said"]))
        assert heard == sorted(heard)
        assert len(heard) < 3000


async def test_each_may_ask_who_is_here(tmp_path: pathlib.Path) -> None:
    """In the order in which they came, with who has the keyboard and who may."""
    async with lab(tmp_path, Share("lab", ECHO)) as server:
        one, two, watcher = [await server.attach(mode) for mode in ("write", "write", "watch")]
        await two.control.send({"take": True})
        await watcher.is_told(keyboard="root-2")
        (who,) = (await asks(watcher, who=True)).values()
        assert [(each["name"], each["keyboard"], each["types"]) for each in who] == [
            ("root", False, True),
            ("root-2", True, True),
            ("root-3", False, False),
        ]
        assert sorted((each["since"] for each in who), reverse=True) == [each["since"] for each in who]
        assert await asks(one, who=True)


async def test_everybody_is_listed_whatever_one_says_of_himself(tmp_path: pathlib.Path) -> None:
    """Who gives the longest origin keeps nobody from asking what is shared, and who is here."""
    async with lab(tmp_path, Share("lab", ECHO)) as server:
        one, *_ = [await server.attach(**{"from": "\U0001f600" * 4000}) for _ in range(2)]
        who = (await asks(one, who=True))["who"]
        assert [each["name"] for each in who] == ["root", "root-2"]
        control = await server.connect()
        (share, _) = [record async for record in control.request("shares")]
        assert [each["name"] for each in share["share"]["who"]] == ["root", "root-2"]


class Silent:
    """The end of somebody who stays, and does nothing."""

    def show_now(self, _data: bytes) -> bytes:
        return b""

    async def show(self, data: bytes) -> None: ...

    async def tell(self, news: Mapping[str, Any]) -> None: ...

    async def hear(self, _client: Client) -> str:
        await anyio.sleep_forever()
        raise AssertionError


async def test_crowd_is_listed_as_far_as_a_line_goes() -> None:
    """However many are attached, and whatever is shared, each may ask; who has been here longest is named."""
    console = Console(Share("lab", device="/dev/" + "\U0001f600" * 5000), Registry(), People())
    console.begin()
    origin = "pts/3 " + "2001:db8::1 " * 10
    async with console.node, anyio.create_task_group() as tasks:
        for _ in range(500):
            client = Client(console, Silent(), "root", writes=False, wait=True, origin=origin)
            tasks.start_soon(functools.partial(client.run, force=False))
        await settle()
        assert len(console.clients) == 500
        told = decode(encode({"share": console.told()}))["share"]
        assert [each["name"] for each in told["who"][:3]] == ["root", "root-2", "root-3"]
        assert len(told["who"]) >= 100
        tasks.cancel_scope.cancel()


class Late(Silent):
    """The end of somebody whose last key comes when he has been taken off, and does not know it yet."""

    def __init__(self, key: str) -> None:
        self._key = key

    async def hear(self, client: Client) -> str:
        typing = client.keyboard.using() if client.keyboard is not None else contextlib.nullcontext()
        with typing:
            client.handle.revoke("enough")
            getattr(client, self._key)()
        raise AssertionError


@pytest.mark.parametrize(("key", "force"), [("take", False), ("discard", True)])
async def test_who_is_taken_off_gets_the_keyboard_no_more(key: str, force: bool) -> None:
    """Whatever was on its way from him: another has it, or has it still."""
    console = Console(Share("lab", device="/dev/no-such-device"), Registry(), People())
    console.begin()
    async with console.node, anyio.create_task_group() as tasks:
        other = Client(console, Silent(), "root", writes=True, wait=True)
        tasks.start_soon(functools.partial(other.run, force=False))
        await settle()
        client = Client(console, Late(key), "root", writes=True, wait=True)
        with pytest.raises(ControlError, match="root-2 was taken off: enough"):
            await client.run(force=force)
        assert console.keyboard is other
        assert other.keyboard is not None
        tasks.cancel_scope.cancel()
