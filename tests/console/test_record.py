"""What is recorded of a share: in the log of its output, in the server's own, and in what a victim is told."""

import logging
import pathlib
from collections.abc import Callable

import pytest

from asyncrevoke.console.share import Share
from test_console import ECHO, lab

pytestmark = pytest.mark.anyio


@pytest.fixture
def said(caplog: pytest.LogCaptureFixture) -> Callable[[], list[str]]:
    """What the server has said, but for what its control server does."""
    caplog.set_level(logging.WARNING, "asyncrevoke.control")
    caplog.set_level(logging.INFO, "asyncrevoke")
    return lambda: caplog.messages


async def test_who_is_taken_off_is_told_by_whom_and_why(tmp_path: pathlib.Path) -> None:
    """It alone, or with the whole share; the reason stays as it was given."""
    async with lab(tmp_path, Share("lab", ECHO)) as server:
        alice, bob, admin = await server.attach(), await server.attach(), await server.connect()
        answer = await admin.revoke("lab/root", "her slot is over")
        assert answer["report"]["reason"] == "her slot is over"
        assert await alice.ends() == "root was taken off by root: her slot is over"
        await admin.revoke("lab")
        assert await bob.ends() == "root-2 was taken off by root"


async def test_reason_cannot_tell_another_name(tmp_path: pathlib.Path) -> None:
    """The name that the kernel tells comes first, whatever the reason says."""
    async with lab(tmp_path, Share("lab", ECHO)) as server:
        alice, admin = await server.attach(), await server.connect()
        await admin.revoke("lab/root", "off by carol: enough")
        assert await alice.ends() == "root was taken off by root: off by carol: enough"


async def test_who_loses_the_keyboard_is_told_to_whom_or_by_whom(tmp_path: pathlib.Path) -> None:
    """By force, or by a revocation of the keyboard alone; nobody else is told, and only as long as it is so."""
    async with lab(tmp_path, Share("lab", ECHO)) as server:
        alice, watcher = await server.attach(), await server.attach("watch")
        bob = await server.attach("force")
        await alice.is_told(keyboard="root-3", yours=False, reason="", by="root-3")
        admin = await server.connect()
        await admin.revoke("lab/root-3/keyboard", "hands off")
        await bob.is_told(keyboard="root", yours=False, reason="hands off", by="root")
        for each in (alice, watcher):
            await each.is_told(keyboard="root", yours=each is alice, reason="", by="")


async def test_watch_and_list_tell_by_whom_in_a_field_of_its_own(tmp_path: pathlib.Path) -> None:
    """Of what an operator has taken away; of what went by itself there is no name."""
    async with lab(tmp_path, Share("lab", ECHO)) as server:
        await server.attach()
        bob, admin, watching = await server.attach(), await server.connect(), await server.connect()
        events = watching.watch("lab")
        assert await anext(events) == {"watching": "lab"}
        await bob.control.send({"detach": True})
        await bob.ends()
        await admin.revoke("lab/root", "enough")
        found = {}
        async for event in events:
            found[event["event"], event["path"]] = event["reason"], event["by"]
            if event["path"] == "lab/root" and event["event"] == "released":
                break
        assert found["revoked", "lab/root"] == ("enough", "root")
        assert found["closed", "lab/root-2"] == ("closed by its owner", "")


async def test_server_says_what_happens_once_and_in_one_form(
    tmp_path: pathlib.Path, said: Callable[[], list[str]]
) -> None:
    """Who has come, has the keyboard, was taken off by whom and why, and has gone."""
    async with lab(tmp_path, Share("lab", ECHO)) as server:
        alice, bob, admin = await server.attach(), await server.attach("force"), await server.connect()
        await admin.revoke("lab/root-2/keyboard", "hands off")
        await admin.revoke("lab/root", "her slot is over")
        await alice.ends()
        await bob.control.send({"detach": True})
        await bob.ends()
        await admin.revoke("lab", "maintenance")
    assert said() == [
        "lab: it is here",
        "lab: root has come",
        "lab: root has the keyboard",
        "lab: root-2 has come",
        "lab: root-2 has the keyboard, taken from root by root-2",
        "lab: the keyboard was taken from root-2 by root: hands off",
        "lab: root has the keyboard",
        "lab: nobody has the keyboard",
        "lab: root was taken off by root: her slot is over",
        "lab: root-2 has gone",
        "lab: it was taken away by root: maintenance",
    ]


async def test_server_says_that_a_program_has_ended(tmp_path: pathlib.Path, said: Callable[[], list[str]]) -> None:
    """With its status."""
    async with lab(tmp_path, Share("lab", ("sh", "-c", "read line; exit 3"))) as server:
        alice = await server.attach()
        await alice.is_told(yours=True)
        await alice.types(b"\n")
        await alice.ends()
    assert "lab: it has ended: the program has ended with status 3" in said()
