"""The serial port of a share: its settings, its lines, breaks, and how it is lent to another program."""

import contextlib
import fcntl
import functools
import json
import os
import pathlib
import termios
import threading
from collections.abc import AsyncIterator, Iterator
from typing import Any

import anyio
import pytest

import test_cli
from asyncrevoke.adapters.hotplug import serial_device
from asyncrevoke.adapters.serial import port
from asyncrevoke.console import shared_port
from asyncrevoke.console.cli import main
from asyncrevoke.console.console import Console
from asyncrevoke.console.settings import Settings
from asyncrevoke.console.share import Share, read_config
from asyncrevoke.control import Control, ControlError
from ports import FarEnd, Plug, serial_line
from remote import Server, server
from test_console import ECHO, Attached, Lab, lab
from test_together import asks

folder = test_cli.folder  # where the sockets are, for each test

# -- settings --


@pytest.mark.parametrize(
    ("text", "settings", "printed"),
    [
        ("115200", Settings(115200), "115200n8"),
        ("115200n8", Settings(115200), "115200n8"),  # the kernel's
        ("9600N81", Settings(9600), "9600n8"),  # ser2net's
        ("9600e72", Settings(9600, 7, "even", 2), "9600e72"),
        ("9600n81.5 xonxoff", Settings(9600, stopbits=1.5, flow="xonxoff"), "9600n81.5 xonxoff"),
        ("115200,n8,rtscts", Settings(115200, flow="rtscts"), "115200n8 rtscts"),
        ("57600 7o2", Settings(57600, 7, "odd", 2), "57600o72"),  # minicom's
        ("115200/8-N-1".replace("-", ""), Settings(115200), "115200n8"),
        ("300 hard", Settings(300, flow="rtscts"), "300n8 rtscts"),  # tio's word
        ("1200s5", Settings(1200, 5, "space"), "1200s5"),
    ],
)
def test_settings_are_read_in_the_spellings_that_people_know(text: str, settings: Settings, printed: str) -> None:
    """And printed in one, which is read again."""
    assert Settings().changed({"settings": text}) == settings
    assert str(settings) == printed
    assert Settings().changed({"settings": printed}) == settings


def test_what_is_not_given_stays() -> None:
    """Of a text, the flow control, and with a rate alone all else; what is given by name counts more than the text."""
    now = Settings(9600, 7, "even", 2, "rtscts")
    assert now.changed({"settings": "300"}) == Settings(300, 7, "even", 2, "rtscts")
    assert now.changed({"settings": "300n8"}) == Settings(300, flow="rtscts")
    given = {"settings": "300n8", "parity": "o", "stopbits": 2.0, "flow": "soft", "databits": None}
    assert now.changed(given) == Settings(300, 8, "odd", 2, "xonxoff")


@pytest.mark.parametrize(
    ("given", "says"),
    [
        ({"settings": "fast"}, "settings = 'fast': give bits per second, parity and bits, such as 115200n8"),
        ({"settings": "9600x8"}, "settings = '9600x8': give bits per second"),
        ({"settings": "9600n9"}, "settings = '9600n9': give bits per second"),
        ({"settings": "9600n8 dsr"}, "flow = 'dsr': give one of none, rtscts, xonxoff"),
        ({"baudrate": 0}, "baudrate = 0: give bits per second, such as 115200"),
        ({"baudrate": True}, "baudrate = True: give bits"),
        ({"baudrate": 2**31}, "baudrate = 2147483648: give bits"),
        ({"databits": 9}, "databits = 9: give one of 5, 6, 7, 8"),
        ({"parity": "evn"}, "parity = 'evn': give one of none, even, odd, mark, space"),
        ({"stopbits": True}, "stopbits = True: give one of 1, 1.5, 2"),
        ({"flow": "cts"}, "flow = 'cts': give one of none, rtscts, xonxoff"),
        (
            {"speed": 9600},
            "'speed' is not a setting: give one of settings, baudrate, databits, parity, stopbits, flow",
        ),
    ],
)
def test_settings_that_are_none_say_what_is_right(given: dict[str, Any], says: str) -> None:
    """What was given is named, and what could be."""
    with pytest.raises(ValueError, match="give ") as info:
        Settings().changed(given)
    assert says in str(info.value)


def test_settings_are_read_from_a_file(tmp_path: pathlib.Path) -> None:
    """As a text, by name, or both; what is wrong is named with the file and the share."""
    file = tmp_path / "lab.toml"
    text = '[share.a]\ndevice = "x"\nsettings = "9600e7"\nflow = "rtscts"\nstopbits = 2\ndtr = false\n'
    file.write_text(text)
    (share,) = read_config(str(file)).shares
    assert share == Share("a", device="x", settings=Settings(9600, 7, "even", 2, "rtscts"), dtr=False)
    for more, says in [
        ("[share.b]\nparity = 'x'", "[share.b]: parity = 'x': give one of none, even"),
        ("[share.b]\nrts = 'on'", "[share.b]: rts must be true or false, and not 'on'"),
        ("[share.b]\ndevce = 'x'", "[share.b]: there is no key 'devce': did you mean device?"),
        ("[share.b]\nzzz = 'x'", "baudrate or databits"),
        ("[share.b]\ncommand = ['sh']\nbaudrate = 300", "'b' is not a serial device: remove its settings and lines"),
        ("[share.b]\ndtr = true", "'b' is not a serial device: remove"),
    ]:
        file.write_text(text + more)
        with pytest.raises(ValueError, match=r"lab\.toml: ") as info:
            read_config(str(file))
        assert says in str(info.value)


# -- a port that is shared --

OFTEN: dict[str, Any] = {"debounce": 0.001, "max_delay": 0.01}


@pytest.fixture
def plug(tmp_path: pathlib.Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Plug]:
    """A device that is looked for all the time."""
    monkeypatch.setattr(shared_port, "serial_device", functools.partial(serial_device, **OFTEN))
    made = Plug(tmp_path / "port")
    yield made
    made.close()


@contextlib.asynccontextmanager
async def sharing(plug: Plug, **options: Any) -> AsyncIterator[tuple[Lab, Control]]:
    """A device that is shared, and open if it is plugged in; and one who asks about it."""
    async with lab(plug.link.parent, Share("lab", device=str(plug.link), **options)) as opened:
        admin = await opened.connect()
        if plug.end is not None:
            await until(admin, state="live")
        yield opened, admin


async def asked(control: Control, **wishes: Any) -> dict[str, Any]:
    """How the port is, when what is wished for is done."""
    (record,) = [record async for record in control.request("port", name="lab", **wishes)]
    return dict(record["port"])


async def until(control: Control, **true: object) -> dict[str, Any]:
    with anyio.fail_after(30):
        while not true.items() <= (state := await asked(control)).items():
            pass
    return state


async def refused(control: Control, **wishes: Any) -> str:
    with pytest.raises(ControlError) as info:
        await asked(control, **wishes)
    return f"{info.value.code}: {info.value}"


async def others_open(plug: Plug) -> None:
    """Who else looks for the device as often has had it open, again and again."""
    with anyio.fail_after(30):
        async with serial_device(str(plug.link), exclusive=False, **OFTEN) as devices:
            for _ in range(5):
                await anext(devices)


async def told(client: Attached, **what: object) -> None:
    """Wait until it has been told that, whatever else."""
    await client.until(lambda: any(what.items() <= each.items() for each in client.told))


def settings_of(end: FarEnd | None) -> list[Any]:
    assert end is not None
    return termios.tcgetattr(end._slave)


def is_free(path: str) -> bool:
    """Whether nobody has it locked."""
    fd = os.open(path, os.O_RDWR | os.O_NOCTTY)
    try:
        fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    finally:
        os.close(fd)
    return True


pytestmark = pytest.mark.anyio


async def test_port_is_opened_as_its_share_says(plug: Plug) -> None:
    """Rate, stop bits, flow control, as the kernel has them; lines that a pty lacks are unknown."""
    end = plug.plug_in()
    async with sharing(plug, settings=Settings(57600, stopbits=2, flow="rtscts"), dtr=False, rts=False) as (_, admin):
        iflag, _, cflag, _, _, speed, _ = settings_of(end)
        assert (speed, bool(cflag & termios.CSTOPB), bool(cflag & termios.CRTSCTS)) == (termios.B57600, True, True)
        assert not iflag & termios.IXON
        assert await asked(admin) == {
            "name": "lab",
            "device": str(plug.link),
            "path": end.path,
            "settings": {"baudrate": 57600, "databits": 8, "parity": "none", "stopbits": 2, "flow": "rtscts"},
            "lines": None,
            "state": "live",
            "reason": "",
            "down": False,
        }


async def test_settings_are_changed_and_kept_over_an_unplug(plug: Plug) -> None:
    """Now, and for the next generation, also those that are changed while the device is away."""
    plug.plug_in()
    async with sharing(plug) as (_, admin):
        state = await asked(admin, settings={"baudrate": 19200, "flow": "xonxoff"})
        assert state["settings"] == {
            "baudrate": 19200,
            "databits": 8,
            "parity": "none",
            "stopbits": 1,
            "flow": "xonxoff",
        }
        assert settings_of(plug.end)[5] == termios.B19200
        assert settings_of(plug.end)[0] & termios.IXON
        plug.unplug()
        away = await until(admin, state="away")
        assert away["reason"].startswith("unplugged: ")
        assert away["path"] is None
        assert (await asked(admin, settings="38400n82"))["settings"]["baudrate"] == 38400
        plug.plug_in()
        await until(admin, state="live")
        iflag, _, cflag, _, _, speed, _ = settings_of(plug.end)
        assert (speed, bool(cflag & termios.CSTOPB), bool(iflag & termios.IXON)) == (termios.B38400, True, True)


async def test_what_a_device_cannot_do_is_refused_and_changes_nothing(plug: Plug) -> None:
    """By the driver, or as it makes no sense, or as the device is away: with what is wrong, and what is right."""
    plug.plug_in()
    async with sharing(plug) as (_, admin):
        before = settings_of(plug.end)
        assert await refused(admin, settings="9600e7") == "refused: 'lab': it does not take these settings"
        assert "a pty has no modem lines" in await refused(admin, lines={"dtr": True})
        nonsense: list[tuple[dict[str, Any], str]] = [
            ({"settings": "9600x"}, "bad-request: settings = '9600x': give bits per second"),
            ({"settings": {"speed": 1}}, "bad-request: 'speed' is not a setting"),
            ({"lines": {"cts": True}}, "bad-request: 'lines' must have 'dtr' or 'rts'"),
            ({"lines": {"dtr": 1}}, "bad-request: 'lines' must have"),
            ({"lines": True}, "bad-request: 'lines' must have"),
            ({"break": 11}, "bad-request: 'break' must be a number from 0 to 10"),
            ({"down": 1}, "bad-request: 'down' must be text"),
            ({"up": 1}, "bad-request: 'up' must be true or false"),
        ]
        for wishes, says in nonsense:
            assert says in await refused(admin, **wishes)
        assert settings_of(plug.end) == before
        assert (await asked(admin))["settings"] == {
            "baudrate": 9600,
            "databits": 8,
            "parity": "none",
            "stopbits": 1,
            "flow": "none",
        }
        await asked(admin, **{"break": 0})  # which a pty takes, and shows nobody
        plug.unplug()
        await until(admin, state="away")
        assert "(generation 1) was revoked: unplugged" in await refused(admin, **{"break": 0})


async def test_a_driver_that_has_other_settings_is_told(plug: Plug) -> None:
    """It has not taken those of the share, as a pty has no parity; or another program has changed them."""
    end = plug.plug_in()
    async with sharing(plug, settings=Settings(9600, 7, "even")) as (_, admin):
        assert (await asked(admin))["reason"] == "the driver has other settings than these"
        assert (await asked(admin, settings="9600n8"))["reason"] == ""
        theirs = settings_of(end)
        theirs[2] |= termios.CSTOPB
        termios.tcsetattr(end._slave, termios.TCSANOW, theirs)
        assert (await asked(admin))["reason"] == "the driver has other settings than these"
        assert (await asked(admin, settings={}))["reason"] == ""


async def test_a_program_has_no_port(tmp_path: pathlib.Path) -> None:
    """Whatever is asked of it is refused, with the reason; who is attached stays."""
    async with lab(tmp_path, Share("lab", ECHO)) as opened:
        client = await opened.attach()
        await told(client, yours=True)
        says = "'lab' is not a serial device: it has no settings, lines or breaks"
        for line in {"break": 0.1}, {"settings": "9600"}, {"lines": {"dtr": True}}, {"down": ""}, {"port": True}:
            assert await asks(client, **line) == {"refused": next(iter(line)), "message": says}
        assert await refused(await opened.connect()) == f"refused: {says}"
        await client.types(b"still here")
        await client.hears(b"still here")


async def test_changing_a_port_needs_the_keyboard_when_attached(plug: Plug) -> None:
    """Who does not have it is refused, stays, and may look; who has it is told how the port is then."""
    plug.plug_in()
    async with sharing(plug) as (opened, _):
        holder, other = await opened.attach(), await opened.attach()
        await told(holder, keyboard="root")
        await told(other, keyboard="root")
        for line in {"break": 0}, {"settings": "300"}, {"lines": {"rts": True}}, {"down": ""}, {"up": True}:
            answer = await asks(other, **line)
            assert answer["refused"] in line
            assert "keyboard" in answer["message"]
        assert (await asks(other, port=True))["port"]["settings"]["baudrate"] == 9600
        assert (await asks(holder, settings={"baudrate": 300}))["port"]["settings"]["baudrate"] == 300
        assert (await asks(holder, **{"break": 0}))["port"]["state"] == "live"
        assert (await asks(holder, settings="nonsense"))["refused"] == "settings"
        assert (await asks(holder, settings="é" * 10_918))["refused"] == "settings"  # a line, and nearly another
        assert settings_of(plug.end)[5] == termios.B300


@pytest.mark.parametrize("may", ["look", "type", ""])
async def test_rights_of_the_share_count(plug: Plug, may: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """To look, and to change, which is to type. What one may not look at is not there."""
    plug.plug_in()
    async with sharing(plug) as (_, admin):
        rights = {"look": {"look"}, "type": {"look", "type"}, "": set()}[may]
        monkeypatch.setattr(Console, "allows", lambda _, __, right: right in rights)
        for wishes in {"break": 0}, {"settings": "300"}, {"down": "x"}, {"up": True}:
            if may == "type":
                await asked(admin, **wishes)
            elif may == "look":
                assert await refused(admin, **wishes) == "forbidden: user 'root' lacks the right 'type' on 'lab'"
            else:
                assert await refused(admin, **wishes) == "unknown-path: no share is named 'lab'. Nothing is shared"
        if may:
            await asked(admin)
        else:
            assert await refused(admin) == "unknown-path: no share is named 'lab'. Nothing is shared"


async def test_a_break_is_held_however_much_comes_meanwhile(plug: Plug) -> None:
    """It ends when it should, or with the keyboard, and not as its stream reads nothing."""
    end = plug.plug_in()
    async with sharing(plug) as (opened, admin):
        client = await opened.attach()
        await told(client, yours=True)
        await client.control.send({"break": 10})
        for count in range(1, 200):
            end.send(bytes(1000))
            await client.until(lambda count=count: len(client.output) == count * 1000)  # type: ignore[misc]
        await admin.revoke("lab/root/keyboard", "hands off")
        await told(client, refused="break")
        (why,) = [each["message"] for each in client.told if "refused" in each]
        assert why.endswith("was revoked: hands off"), why


async def test_a_connection_has_no_settings_and_no_lines(tmp_path: pathlib.Path) -> None:
    """To ask for them is refused, and does not end it."""
    with server() as (place, listening):
        async with lab(tmp_path, Share("lab", device=f"socket://{place}")) as opened:
            admin = await opened.connect()
            assert (await until(admin, state="live"))["lines"] is None
            with listening.accept()[0]:
                for wishes in {"settings": "9600e7"}, {"lines": {"dtr": True}}:
                    assert "refused: 'lab': it is not a serial port" in await refused(admin, **wishes)
                assert (await asked(admin))["state"] == "live"


# -- lent to another program --


async def test_a_port_is_lent_and_nobody_is_taken_off(plug: Plug) -> None:
    """When it is said to be down it is free; what is typed is thrown away; it stays down, whatever is plugged in, until it
    is brought up; then all go on with the next generation, who asked to wait and who did not.
    """
    first = plug.plug_in()
    async with sharing(plug) as (opened, admin):
        clients = [await opened.attach(wait=wait) for wait in (False, True)]
        assert not is_free(first.path)
        state = await asked(admin, down="flashing")
        assert (state["state"], state["reason"], state["down"], state["path"]) == ("away", "flashing", True, None)
        assert is_free(first.path)
        for client in clients:
            await told(client, away="flashing")
        late = await opened.attach(wait=False)
        await told(late, away="flashing")
        await clients[0].types(b"lost")
        plug.unplug()
        second = plug.plug_in()
        await others_open(plug)
        assert (await asked(admin))["down"]
        assert is_free(second.path)
        assert (await asked(admin, up=True))["state"] == "live"
        assert not is_free(second.path)
        for client in *clients, late:
            await told(client, back=2)
        await clients[0].types(b"typed")
        assert await typed_to(second, 5) == b"typed"
        second.send(b"hello")
        for client in *clients, late:
            await client.hears(b"hello")


async def typed_to(end: FarEnd, count: int) -> bytes:
    got = b""
    with anyio.fail_after(30):
        while len(got) < count:
            await anyio.lowlevel.checkpoint()
            got += end.received()
    return got


async def test_a_port_that_is_lent_while_it_opens_is_closed_when_that_is_said(
    plug: Plug, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A driver that takes its time to open it has done so, and has closed it again; it is opened anew when it is wanted."""
    inside, go_on = threading.Event(), threading.Event()

    def slowly(*args: Any) -> None:
        inside.set()
        assert go_on.wait(30)
        open_path(*args)

    open_path = port._open_path
    monkeypatch.setattr(port, "_open_path", slowly)
    end = plug.plug_in()
    async with lab(plug.link.parent, Share("lab", device=str(plug.link))) as opened, anyio.create_task_group() as tasks:
        admin = await opened.connect()
        while not inside.is_set():
            await anyio.lowlevel.checkpoint()
        answer: list[dict[str, Any]] = []

        async def lend() -> None:
            answer.append(await asked(admin, down="flashing"))
            assert is_free(end.path)

        tasks.start_soon(lend)
        client = await opened.attach(wait=False)
        await told(client, away="flashing")
        assert not answer
        go_on.set()
        await told_by(answer)
        assert (await asked(admin, up=True))["state"] == "live"
        await told(client, back=2)


async def told_by(answer: list[dict[str, Any]]) -> None:
    with anyio.fail_after(30):
        while not answer:
            await anyio.lowlevel.checkpoint()


async def test_a_port_that_is_not_there_is_lent_too(plug: Plug, monkeypatch: pytest.MonkeyPatch) -> None:
    """It is not opened when it comes; brought up in vain, it is away until it comes, and nobody is taken off."""
    monkeypatch.setattr(shared_port, "_SOON", 0.01)
    async with sharing(plug) as (opened, admin):
        assert await refused(admin, **{"break": 0}) == "refused: 'lab' has not come yet"
        assert (await asked(admin, down=""))["reason"] == "lent to another program"
        assert (await asked(admin, down="flashing"))["reason"] == "flashing"
        client = await opened.attach(wait=False)
        await told(client, away="flashing")
        end = plug.plug_in()
        await others_open(plug)
        assert (await asked(admin))["down"]
        assert is_free(end.path)
        plug.unplug()
        state = await asked(admin, up=True)
        assert (state["state"], state["reason"], state["down"]) == ("away", "it is not back yet", False)
        plug.plug_in()
        await told(client, back=1)
        assert not (await asked(admin, up=True))["down"]


async def test_who_waits_for_an_unplugged_port_is_told_that_it_is_lent(plug: Plug) -> None:
    """The reason why it is away is the latest."""
    plug.plug_in()
    async with sharing(plug) as (opened, admin):
        client = await opened.attach(wait=True)
        plug.unplug()
        await client.until(lambda: any("unplugged" in str(each.get("away")) for each in client.told))
        await asked(admin, down="flashing")
        await told(client, away="flashing")


async def test_a_port_that_is_lent_can_be_taken_away_for_good(plug: Plug) -> None:
    """The share ends, and all are told."""
    plug.plug_in()
    async with sharing(plug) as (opened, admin):
        client = await opened.attach()
        await asked(admin, down="flashing")
        await admin.revoke("lab", "no more")
        assert await client.ends() == "root was taken off by root: no more"


# -- at the far end of a line: pyserial's server of RFC 2217, whose port has lines and breaks --


@contextlib.asynccontextmanager
async def remote(tmp_path: pathlib.Path, **options: Any) -> AsyncIterator[tuple[Lab, Control, Server]]:
    with server() as (place, listening), contextlib.closing(Server(listening)) as far:
        async with lab(tmp_path, Share("lab", device=f"rfc2217://{place}", **options)) as opened:
            admin = await opened.connect()
            await until(admin, state="live")
            yield opened, admin, far


async def test_the_far_end_has_the_settings_and_lines_of_the_share(tmp_path: pathlib.Path) -> None:
    """From the opening on, and as they are changed."""
    async with remote(tmp_path, settings=Settings(19200, 7, "even", 2, "rtscts"), dtr=False) as (_, admin, far):
        line: Any = far.port
        assert (line.baudrate, line.bytesize, line.parity, line.stopbits) == (19200, 7, "E", 2)
        assert (line.rtscts, line.dtr, line.rts) == (True, False, True)
        lines = (await asked(admin, lines={"dtr": True, "rts": False}))["lines"]
        assert (line.dtr, line.rts) == (True, False)
        assert (lines["dtr"], lines["rts"]) == (True, False)
        assert lines.keys() == {"cts", "dsr", "dcd", "ri", "dtr", "rts"}
        await asked(admin, settings="300o8")
        assert (line.baudrate, line.bytesize, line.parity, line.stopbits) == (300, 8, "O", 1)


async def test_a_break_is_held_at_the_far_end_until_the_keyboard_is_taken(tmp_path: pathlib.Path) -> None:
    """Who loses the keyboard sends no break any more, and stays attached."""
    async with remote(tmp_path) as (opened, admin, far):
        client: Attached = await opened.attach()
        await told(client, yours=True)
        await client.control.send({"break": 10})
        with anyio.fail_after(30):
            while not far.port.break_condition:
                await anyio.lowlevel.checkpoint()
        assert (await admin.revoke("lab/root/keyboard", "hands off"))["done"]
        assert not far.port.break_condition
        await client.until(lambda: any("refused" in each for each in client.told))
        assert client.end is None
        await asked(admin, **{"break": 0})
        assert not far.port.break_condition


# -- on the command line --


def test_command_shows_and_changes_a_port(capsys: pytest.CaptureFixture[str]) -> None:
    """It prints how the port is when all is done: a table for people, a record for programs."""
    with serial_line() as line, test_cli.sharing("--name", "lab", line.path, "--settings", "300n82", "--flow", "soft"):
        while main(["port", "lab", "--json"]) or not json.loads(capsys.readouterr().out)["path"]:
            capsys.readouterr()  # it is not open yet
        assert settings_of(line)[5] == termios.B300
        assert main(["port", "lab"]) == 0
        head, row = capsys.readouterr().out.splitlines()
        assert head.split() == ["NAME", "STATE", "DEVICE", "SETTINGS", "LINES", "REASON"]
        assert row.split() == ["lab", "live", line.path, "300n82", "xonxoff", "unknown"]
        changes = [
            "--settings",
            "9600",
            "--stopbits",
            "1",
            "--flow",
            "none",
            "--break",
            "0.01",
            "--down",
            "for flashing",
        ]
        assert main(["port", "lab", *changes]) == 0
        assert capsys.readouterr().out.splitlines()[1].split()[1:] == [
            *("down", line.path, "9600n8", "unknown", "for", "flashing")
        ]
        assert is_free(line.path)
        assert main(["port", "lab", "--up", "--json"]) == 0
        assert json.loads(capsys.readouterr().out)["state"] == "live"
        assert settings_of(line)[5] == termios.B9600
        for words, says in [
            (["--dtr", "on"], "'lab': it is not a serial port, or its driver cannot do that: a pty has no modem lines"),
            (["--parity", "evn"], "parity = 'evn': give one of none, even, odd, mark, space"),
            (["--settings", "9600n9"], "settings = '9600n9': give bits per second"),
        ]:
            assert main(["port", "lab", *words]) == 1
            out, err = capsys.readouterr()
            assert (out, err[: len(says) + 13]) == ("", f"asyncrevoke: {says}")


@pytest.mark.parametrize(
    ("words", "status", "says"),
    [
        ("port nothing", 1, "no share is named 'nothing'. Looked in "),
        ("port lab --up --down", 2, "not allowed with argument"),
        ("port lab --break soon", 2, "'soon' is not a number of seconds"),
        ("port lab --dtr high", 2, "invalid choice: 'high' (choose from"),
        (
            "share --settings 9600x8 /dev/x",
            1,
            "settings = '9600x8': give bits per second, parity and bits, such as 115200n8",
        ),
        ("share --parity evn /dev/x", 1, "parity = 'evn': give one of none, even"),
        ("share --baudrate 300", 1, "'loopback' is not a serial device: remove its settings and lines"),
        ("share --dtr on -- sh", 1, "'sh' is not a serial device: remove"),
        ("share --config x --flow none", 2, "with --config, give only"),
        ("share --config x --dtr off", 2, "with --config, give only"),
    ],
)
def test_error_of_a_port_is_one_line(words: str, status: int, says: str, capsys: pytest.CaptureFixture[str]) -> None:
    """It names the thing, and what to do."""
    test_cli.test_error_is_one_line(words, status, says, capsys)


class Answering(Control):
    """A server that answers this."""

    def __init__(self, answer: str) -> None:
        self.answer = json.loads(answer)

    async def send(self, record: dict[str, Any]) -> None:
        pass

    async def receive(self) -> dict[str, Any]:
        return dict(self.answer)


@pytest.mark.parametrize(
    "answer", ['{"ok": true}', '{"ok": true, "port": {}}', '{"ok": true, "port": {"name": 1, "down": 0, "lines": []}}']
)
def test_port_that_makes_no_sense_is_told_so(
    answer: str, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Whatever a server answers, there is a line that says so, and no traceback."""

    async def sharing(*_: object) -> Control:
        return Answering(answer)

    monkeypatch.setattr("asyncrevoke.console.sockets.Servers.sharing", sharing)
    assert main(["port", "lab"]) == 1
    assert "the server sent what makes no sense" in capsys.readouterr().err
