"""The menu of an attached terminal: what keys mean, and what it shows."""

import contextlib
import os
import pathlib
import threading
from collections.abc import Iterator
from typing import Any

import anyio
import pytest

from asyncrevoke import Registry
from asyncrevoke.console.escape import KEYS, KEYS_TO_LOOK, MENU, MENU_TO_LOOK
from asyncrevoke.console.menu import Menu
from asyncrevoke.control import Request, serve
from test_cli import attach, folder, sharing  # noqa: F401  # folder: a fixture

PORT = {
    "device": "usb-7",
    "path": "/dev/ttyUSB0",
    "settings": {"baudrate": 9600, "parity": "none"},
    "lines": {"dtr": True, "rts": False},
    "state": "live",
    "reason": "",
    "down": False,
}


class Shown:
    """A screen: what a menu has shown there."""

    def __init__(self) -> None:
        self.said: list[str] = []
        self.line: str | None = None

    def say_soon(self, *lines: str) -> None:
        self.said += lines

    def ask_soon(self, line: str, *, over: bool = False) -> None:
        self.line = None if over else line


def chosen(keys: str, *, watches: bool = False) -> list[bytes | dict[str, Any]]:
    """What is typed and sent, if each key comes alone, and a port answers."""
    menu = Menu(Shown(), watches=watches)
    acts: list[bytes | dict[str, Any]] = []
    for key in keys:
        for act in menu.keys(key.encode()):
            acts.append(act)
            if act == {"port": True}:
                menu.port(PORT)
    return acts


@pytest.mark.parametrize(
    ("keys", "acts"),
    [
        ("a\x1d\x1d", [b"a", b"\x1d"]),
        ("\x1dq", [{"detach": True}]),
        ("\x1d.", [{"detach": True}]),
        ("\x1dc", [{"interrupt": True}]),
        ("\x1dw", [{"who": True}]),
        ("\x1dt", [{"take": True}]),
        ("\x1dg", [{"give": True}]),
        ("\x1dsh\xe9\u20aco\r", [{"say": "h\xe9\u20aco"}]),
        ("\x1ds\r", []),
        ("\x1db", [{"break": 0.25}]),
        ("\x1dp9600e7\r", [{"port": True}, {"settings": "9600e7"}]),
        ("\x1dp\r", [{"port": True}]),
        ("\x1dldtr\r", [{"port": True}, {"lines": {"dtr": False}}]),
        ("\x1dlRTS\r", [{"port": True}, {"lines": {"rts": True}}]),
        ("\x1ddflashing\r", [{"down": "flashing"}]),
        ("\x1dd\x03", []),
        ("\x1du", [{"up": True}]),
        ("\x1d?\x1d~", []),
        ("\x1d\x1b", []),
        ("\x1d\x03", []),
    ],
)
def test_each_key_means_one_thing(keys: str, acts: list[Any]) -> None:
    """After the escape key; and then keys are typed as before."""
    assert chosen(keys + "b") == [*acts, b"b"]


def test_all_keys_are_explained() -> None:
    """Each that does something stands in the help, and all but ctrl-] itself in the one line."""
    mean = {chr(key) for key in range(33, 127) if chosen(f"\x1d{chr(key)}x\r")[:1] not in ([b"x"], [])}
    assert mean - {"."} == KEYS.keys() - {"?", "ctrl-]"}
    assert {word[0] for word in MENU.split()} == KEYS.keys() - {"ctrl-]"}
    assert len(MENU) + 2 < 80


def test_who_only_looks_is_offered_what_he_may_do() -> None:
    """The keys that change something say why not, at once; the port is shown, and nobody asks for its settings."""
    shown = Shown()
    menu = Menu(shown, watches=False)
    menu.denied = "you may look here, and not type"
    for key in set(KEYS) - set(KEYS_TO_LOOK) - {"l", "ctrl-]"}:
        assert list(menu.keys(b"\x1d" + key.encode())) == []
        assert shown.said.pop() == "not done: you may look here, and not type"
    for shows in b"\x1dp", b"\x1dl":
        assert list(menu.keys(shows)) == [{"port": True}]
        menu.port(PORT)
        assert shown.line is None
    shown.said.clear()
    list(menu.keys(b"\x1d?"))
    assert [line.split()[0] for line in shown.said] == [*KEYS_TO_LOOK]
    assert {word[0] for word in MENU_TO_LOOK.split()} == KEYS_TO_LOOK.keys()
    shown.said.clear()
    menu.show()
    assert shown.said == [MENU_TO_LOOK]


def test_who_only_watches_may_leave_by_ctrl_c() -> None:
    """There it has no other meaning; in a line that is typed to us it ends that alone."""
    assert chosen("a\x03", watches=True) == [b"a", {"detach": True}]
    assert chosen("\x1dsno\x03b", watches=True) == [b"b"]


@pytest.mark.parametrize("key", ["\x1b[27;5;93~", "\x1b[93;5u", "\x1b[93;133u", "\x1b[93;5:1u\x1b[93;5:3u"])
def test_escape_key_is_known_in_every_form(key: str) -> None:
    """Also where a program has asked for keys as xterm's modifyOtherKeys or kitty's protocol tells them."""
    menu = Menu(Shown(), watches=False)
    assert list(menu.keys(f"a{key}".encode())) == [b"a"]
    assert menu.waits
    assert list(menu.keys(b"q")) == [{"detach": True}]
    other = f"\x1b[65;5u{key}{key}".encode()
    assert b"".join(each for each in menu.keys(other) if isinstance(each, bytes)) == b"\x1b[65;5u\x1d"


def test_menu_shows_itself_once() -> None:
    """It waits for the next key after that."""
    shown = Shown()
    menu = Menu(shown, watches=False)
    assert list(menu.keys(b"\x1d")) == []
    assert menu.waits
    menu.show()
    assert (shown.said, menu.waits) == ([MENU], False)
    assert list(menu.keys(b"t")) == [{"take": True}]


def test_line_is_edited() -> None:
    """By backspace and ctrl-U; keys that nobody types as text do nothing."""
    assert chosen("\x1dsheX\x7f\x08ello\r") == [{"say": "hello"}]
    assert chosen("\x1dswrong\x15\tright\x01\r") == [{"say": "right"}]


def test_line_may_be_pasted() -> None:
    """Also where a program has asked for marks around a paste."""
    menu = Menu(Shown(), watches=False)
    assert list(menu.keys(b"\x1ds")) == []
    assert list(menu.keys(b"\x1b[200~one\x1b[201~")) == []
    assert list(menu.keys(b"\r")) == [{"say": "one"}]
    assert list(menu.keys(b"\x1b[200~two\x1b[201~")) == [b"\x1b[200~two\x1b[201~"]


def test_rest_of_a_paste_is_not_typed_to_the_program() -> None:
    """What comes in one piece with the end of a line belongs to it; after an escape sequence, too."""
    menu = Menu(Shown(), watches=False)
    assert list(menu.keys(b"\x1dsone\rtwo\r")) == [{"say": "one"}]
    assert list(menu.keys(b"\x1ds")) == []
    assert list(menu.keys(b"\x1b")) == []
    assert list(menu.keys(b"three")) == [b"three"]


@pytest.mark.parametrize("sequence", [b"\x1b[I", b"\x1b[<35;7;7M", b"\x1b[M\x20\x21\x1d", b"\x1b[A", b"\x1bOA"])
def test_what_nobody_types_means_nothing_to_the_menu(sequence: bytes) -> None:
    """The mouse moves, a window gets the focus: the program has asked for that, and the menu goes on."""
    menu = Menu(Shown(), watches=False)
    for keys in b"\x1d", sequence, b"s", sequence, b"hello", sequence:
        assert list(menu.keys(keys)) == []
    assert list(menu.keys(b"\r" + sequence)) == [{"say": "hello"}]
    assert b"".join(each for each in menu.keys(b"\x1b[B") if isinstance(each, bytes)) == b"\x1b[B"


def test_port_is_shown_and_refusals_are() -> None:
    """A question that needs the port comes after it; where it is refused there is none."""
    shown = Shown()
    menu = Menu(shown, watches=False)
    list(menu.keys(b"\x1dp"))
    menu.port(PORT)
    assert shown.said == ["/dev/ttyUSB0 is live, 9600n8", "DTR on, RTS off"]
    assert shown.line == "settings, such as 115200n8: "
    list(menu.keys(b"\r\x1dl"))
    shown.said.clear()
    menu.refused("no port")
    assert [*shown.said, shown.line] == ["not done: no port", None]
    menu.port(PORT | {"path": None, "state": "away", "reason": "flashing", "down": True, "lines": None})
    list(menu.keys(b"\x1dl"))
    menu.port(PORT | {"lines": None})
    assert shown.said[1:] == [
        "usb-7 is down: flashing, 9600n8",
        "/dev/ttyUSB0 is live, 9600n8",
        "not done: it has no modem lines",
    ]
    assert shown.line is None


def test_menu_shows_itself_and_is_left() -> None:
    """After a pause, or at once where something is not known; who types on fast does not see it."""
    with sharing("--name", "lab"), attach("lab") as client:
        client.sees("you have the keyboard")
        client.types("\x1d")
        client.sees(f"[{MENU}]")
        client.types("?")
        client.sees("t       take the keyboard")
        client.types("a\x1dw")
        assert MENU not in client.sees("root (you) has the keyboard, here since ")
        client.types("\x1dq")
        assert client.ends("detached") == 0


def test_who_types_without_the_keyboard_is_told_once() -> None:
    """Until it changes hands; and how to get it."""
    with sharing("--name", "lab"), attach("lab") as alice:
        alice.sees("you have the keyboard")
        with attach("lab") as bob:
            bob.sees("root has the keyboard")
            bob.types("lost")
            bob.sees("not typed: root has the keyboard; ctrl-] t takes it")
            bob.types("lost\x1dc")
            bob.types("\x1dt")
            assert "not typed" not in bob.sees("you have the keyboard")
            alice.sees("root-2 has the keyboard")
            bob.types("found")
            assert "lost" not in alice.sees("found")
            bob.types("\x1dg")
            alice.sees("you have the keyboard")
            bob.types("\x1dc")
            bob.sees("not typed: root has the keyboard")
            bob.types("\x1dsbye, alice\r")
            alice.sees("root-2 says: bye, alice")


def test_output_waits_while_a_line_is_typed_to_us() -> None:
    """It comes when the line has ended; a flood is not kept, and the line is shown again below it."""
    program = "sh", "-c", "stty -echo; while read n; do printf '%*d.\\n' $n 0; done"
    with sharing("--name", "lab", "--", *program), attach("lab") as bob, attach("--force", "lab") as alice:
        alice.sees("you have the keyboard")
        bob.types("\x1dshel")
        bob.sees("say: hel")
        alice.types("30\r")
        alice.sees("0.")
        bob.types("l")
        assert "0." not in bob.sees("say: hell")
        bob.types("\x03")
        bob.sees("0.")
        bob.types("\x1dshel")
        bob.sees("say: hel")
        alice.types("99999\r")
        alice.sees("0.")
        bob.sees(" " * 60000)
        bob.sees("say: hel")
        bob.types("\r")
        bob.sees("0.")


def test_output_that_waits_for_a_line_is_shown_in_the_end() -> None:
    """All of it, when the program ends meanwhile; and then the terminal is put back."""
    program = "sh", "-c", r"stty -echo; read line; printf '\033[?25l%60000d last words' 1"
    with sharing("--name", "lab", "--", *program), attach("lab") as bob, attach("--force", "lab") as alice:
        alice.sees("you have the keyboard")
        bob.types("\x1dshel")
        bob.sees("say: hel")
        alice.types("\r")
        alice.sees("last words")
        assert bob.sees("1 last words").count(" ") >= 59999
        bob.sees("\x1b[?25h")
        assert bob.ends("the program has ended") == 0


def test_last_output_is_shown_on_a_slow_terminal() -> None:
    """What the terminal has not shown yet when the program ends is not thrown away."""
    program = "sh", "-c", "stty -echo; read line; printf '%60000d last words' 1"
    with sharing("--name", "lab", "--", *program), attach("lab") as client:
        client.sees("you have the keyboard")
        client.types("\r")
        while "the program has ended" not in client.shown:
            client.shown += os.read(client.master, 16).decode()
        assert "1 last words" in client.shown


@contextlib.contextmanager
def standing_in(path: pathlib.Path, *answers: dict[str, Any]) -> Iterator[list[dict[str, Any]]]:
    """A server with one share, which has a port like this, or gives these answers; all lines of its client."""
    lines: list[dict[str, Any]] = []
    stop = threading.Event()

    async def hold(request: Request) -> dict[str, Any]:
        await request.connection.send({"attached": "lab/root"})
        await request.connection.send({"keyboard": "root", "yours": True, "reason": ""})
        while "detach" not in (line := await request.connection.receive()):
            lines.append(line)
            if answers:
                await request.connection.send(*answers)
            elif "break" in line:
                await request.connection.send({"refused": "break", "message": "it has no line"})
            else:
                await request.connection.send({"port": PORT})
        return {"ended": "detached"}

    async def run() -> None:
        registry = Registry()
        registry.name("lab")
        async with anyio.create_task_group() as tasks:
            await tasks.start(
                lambda task_status: serve(registry, path, commands={"attach": hold}, task_status=task_status)
            )
            started.set()
            while not stop.is_set():
                await anyio.sleep(0.01)
            tasks.cancel_scope.cancel()

    started = threading.Event()
    thread = threading.Thread(target=anyio.run, args=(run,))
    thread.start()
    try:
        assert started.wait(30)
        yield lines
    finally:
        stop.set()
        thread.join()


def test_port_is_asked_changed_and_shown(folder: pathlib.Path) -> None:  # noqa: F811
    """Its settings by a typed line, its lines by their names; what is refused says why."""
    folder.mkdir(0o700)
    with standing_in(folder / "lab.sock") as lines, attach("lab") as client:
        client.sees("you have the keyboard")
        client.types("\x1dp")
        client.sees("[/dev/ttyUSB0 is live, 9600n8]\r\n[DTR on, RTS off]")
        client.sees("settings, such as 115200n8: ")
        client.types("9600e7\r")
        client.sees("/dev/ttyUSB0 is live")
        client.types("\x1dl")
        client.sees("toggle dtr or rts: ")
        client.types("dtr\r")
        client.sees("/dev/ttyUSB0 is live")
        client.types("\x1db")
        client.sees("not done: it has no line")
        client.types("\x1dq")
        assert client.ends("detached") == 0
    assert lines == [{"port": True}, {"settings": "9600e7"}, {"port": True}, {"lines": {"dtr": False}}, {"break": 0.25}]


@pytest.mark.parametrize(
    "nonsense",
    [
        {"who": 5},
        {"who": [5]},
        {"who": [{"name": "root"}]},
        {"who": [{"name": "root", "keyboard": True, "types": True, "since": 1e300}]},
        {"port": {}},
        {"port": 5},
        {"port": PORT | {"settings": {"what": 5}}},
        {"port": PORT | {"lines": 5}},
    ],
)
def test_answer_that_makes_no_sense_ends_it_in_order(nonsense: dict[str, Any], folder: pathlib.Path) -> None:  # noqa: F811
    """It says so, and the terminal is as it was."""
    folder.mkdir(0o700)
    with standing_in(folder / "lab.sock", nonsense), attach("lab") as client:
        client.sees("you have the keyboard")
        client.types("\x1dw")
        assert client.ends("the server sent what makes no sense") == 1
