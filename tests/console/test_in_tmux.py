"""The console server as two people see it, in two panes of a real terminal emulator."""

import contextlib
import os
import pathlib
import shlex
import shutil
import subprocess
import tempfile
import time
from collections.abc import Iterator

import pytest

from asyncrevoke.console.cli import main
from asyncrevoke.console.escape import MENU
from ports import Plug
from remote import Server, server
from test_cli import COMMAND, folder, sharing  # noqa: F401  # folder: a fixture

pytestmark = pytest.mark.skipif(shutil.which("tmux") is None, reason="needs tmux: apt-get install tmux")

#: What tmux knows of a terminal's state.
STATE = (
    "alternate_on cursor_flag insert_flag keypad_cursor_flag keypad_flag mouse_all_flag mouse_any_flag"
    " mouse_button_flag mouse_sgr_flag mouse_standard_flag origin_flag scroll_region_lower scroll_region_upper wrap_flag"
)


class Pane:
    """A shell in a pane: what is typed there, and what is on its screen."""

    def __init__(self, tmux: list[str], name: str) -> None:
        self._tmux, self._name = tmux, name

    def _run(self, *words: str) -> str:
        return subprocess.run([*self._tmux, *words], capture_output=True, text=True, check=True, timeout=30).stdout

    def types(self, text: str) -> None:
        self._run("send-keys", "-t", self._name, "-l", "--", text)

    def presses(self, *keys: str) -> None:
        self._run("send-keys", "-t", self._name, *keys)

    def attaches(self, *words: str) -> None:
        self.types(shlex.join([*COMMAND, "attach", *words]) + "\r")
        self.sees("attached as ")

    def screen(self, *options: str) -> str:
        return self._run("capture-pane", "-t", self._name, "-p", *options)

    def state(self) -> str:
        return self._run("display-message", "-t", self._name, "-p", " ".join(f"#{{{each}}}" for each in STATE.split()))

    def sees(self, *texts: str, times: int = 1) -> str:
        """Wait until all of that is on the screen, so many times."""
        until = time.monotonic() + 30
        while not all((shown := self.screen()).count(text) >= times for text in texts):
            assert time.monotonic() < until, f"{texts} is not shown, but:\n{shown}"
        return shown

    def clears(self, prompt: str) -> None:
        """Have the shell clear the screen, but for its prompt."""
        self.types("echo anything\r")
        self.sees("\nanything\n")
        self.types("clear\r")
        until = time.monotonic() + 30
        while (shown := self.screen()).split() != [prompt]:
            assert time.monotonic() < until, f"it is not cleared:\n{shown}"


@contextlib.contextmanager
def tmux(where: pathlib.Path, *shells: list[str]) -> Iterator[list[Pane]]:
    """A pane for each shell, side by side."""
    command = ["tmux", "-S", str(where / "tmux"), "-f", os.devnull]
    first, *more = shells
    try:
        # not captured: tmux becomes a server, which would keep our pipes
        subprocess.run([*command, "new-session", "-d", "-x", "201", "-y", "40", *first], check=True, timeout=30)
        for shell in more:
            subprocess.run([*command, "split-window", "-h", *shell], check=True, timeout=30)
        yield [Pane(command, f":.{number}") for number in range(len(shells))]
    finally:
        subprocess.run([*command, "kill-server"], capture_output=True, timeout=30)


@pytest.fixture
def panes(tmp_path: pathlib.Path) -> Iterator[list[Pane]]:
    """Those of alice and bob, each with a shell."""
    names = "alice", "bob"
    shells = [["env", f"PS1={name}$ ", "bash", "--norc", "--noprofile"] for name in names]
    with tmux(tmp_path, *shells) as opened:
        for pane, name in zip(opened, names, strict=True):
            pane.sees(f"{name}$")
        yield opened


SHELL = ("--", "env", "PS1=lab$ ", "bash", "--norc", "--noprofile")


def test_two_share_a_shell(panes: list[Pane]) -> None:
    """The keyboard is taken and given back, a line is said, one is taken off with a reason, and each has a prompt again."""
    alice, bob = panes
    with sharing("--name", "lab", *SHELL):
        alice.attaches()
        alice.sees("[you have the keyboard]", "lab$")
        bob.attaches("lab")
        bob.sees("[root has the keyboard]")
        bob.types("x")
        bob.sees("[not typed: root has the keyboard; ctrl-] t takes it]")
        bob.presses("C-]")
        bob.sees(f"[{MENU}]")
        bob.presses("t")
        bob.sees("[you have the keyboard]")
        alice.sees("[root-2 has the keyboard (taken from you by root-2)]")
        bob.types("echo $((6 * 7))\r")
        alice.sees("\n42\n")
        bob.presses("C-]", "w")
        bob.sees("[root waits for the keyboard, here since ", "[root-2 (you) has the keyboard, here since ")
        bob.presses("C-]", "s")
        bob.types("is it yours?")
        bob.sees("say: is it yours?")
        bob.presses("Enter")
        alice.sees("[root-2 says: is it yours?]")
        alice.presses("C-]", "s")
        alice.sees("say:")
        bob.types("echo meanwhile\r")
        bob.sees("\nmeanwhile\n")
        alice.types("mine")
        assert "meanwhile" not in alice.sees("say: mine")
        alice.presses("Enter")
        alice.sees("say: mine\n", "meanwhile\n")
        bob.sees("[root says: mine]")
        bob.presses("C-]", "g")
        alice.sees("[you have the keyboard]", times=2)
        alice.types("echo back\r")
        bob.sees("\nback\n")
        assert main(["revoke", "lab/root-2", "--reason", "your slot is over"]) == 0
        bob.sees("your slot is over", "bob$")
        bob.types("echo $((6 * 8))\r")
        bob.sees("\n48\n")
        alice.presses("C-]", "q")
        alice.sees("asyncrevoke: lab: detached\nalice$")


def test_device_is_unplugged_and_comes_back(panes: list[Pane]) -> None:
    """Who waits goes on, and who does not has a prompt again, each with the reason. While it is lent, all stay."""
    alice, bob = panes
    short = tempfile.mkdtemp()  # a short path, which a line has room for
    plug = Plug(pathlib.Path(short) / "port")
    with contextlib.closing(plug):
        end = plug.plug_in()
        with sharing("--name", "router", str(plug.link)):
            alice.attaches("--wait")
            alice.sees("[you have the keyboard]")
            bob.attaches()
            bob.sees("[root has the keyboard]")
            end.send(b"login: ")
            bob.sees("login:")
            alice.sees("login:")
            alice.presses("C-]", "d")
            alice.types("flashing\r")
            alice.sees("taking the port down: flashing\n", "is down: flashing, 9600n8]")
            bob.sees("[away: flashing]")
            alice.presses("C-]", "u")
            bob.sees("[back again]")
            alice.sees("[back again]", " is live, 9600n8]")
            plug.unplug()
            bob.sees("'router' is away: ", "bob$")
            end = plug.plug_in()
            alice.sees("[back again]", times=2)
            end.send(b"hello again\r\n")
            alice.sees("hello again")
            alice.types("there\r")
            assert end.received(30) == b"there\r"
            alice.presses("C-]", ".")
            alice.sees("asyncrevoke: router: detached\nalice$")
    shutil.rmtree(short)


def test_port_is_shown_and_changed(panes: list[Pane]) -> None:
    """Its far end has the settings, the lines and the break; who has no keyboard changes nothing."""
    alice, bob = panes
    breaks: list[bool] = []
    with server() as (place, listening), contextlib.closing(Server(listening)) as far:
        far.port._update_break_state = lambda: breaks.append(far.port.break_condition)
        with sharing("--name", "router", f"rfc2217://{place}"):
            while '"state": "live"' not in subprocess.check_output([*COMMAND, "port", "router", "--json"], text=True):
                pass
            alice.attaches("--wait")
            alice.sees("[you have the keyboard]")
            alice.presses("C-]", "p")
            alice.sees(f"[rfc2217://{place} is live, 9600n8]", "settings, such as 115200n8:")
            alice.types("19200e7\r")
            alice.sees("such as 115200n8: 19200e7\n", " is live, 19200e7]")
            assert (far.port.baudrate, far.port.bytesize, far.port.parity) == (19200, 7, "E")
            alice.presses("C-]", "l")
            alice.sees("toggle dtr or rts:")
            alice.types("dtr\r")
            alice.sees("toggle dtr or rts: dtr\n", "DTR off")
            assert (far.port.dtr, far.port.rts) == (False, True)
            alice.presses("C-]", "b")
            alice.sees("[a break was sent]")
            assert breaks == [True, False]
            bob.attaches()
            bob.presses("C-]", "b")
            bob.sees("[not done: that needs the keyboard. You do not have it: take it first]")
            assert breaks == [True, False]


@pytest.mark.parametrize("how", ["detached", "taken off"])
def test_screen_is_as_before(how: str, panes: list[Pane]) -> None:
    """Whatever a program has done to it, the shell's prompt, its keys and its letters are as they were."""
    alice = panes[0]
    alice.clears("alice$")
    before = alice.state(), alice.screen("-e")
    done = (
        r"\e)0\016\e(0\e[4h\e[2;5r\e[?6h\e[?7l\e=\e[?1h\e[?1000;1003;1006h\e[?1004;2004h\e[?25l\e[5 q\e[>4;2m"
        r"\e[>1u\e[31;7m\e]8;;http://host\a\e[?1049h\e[2;5r\e(0"
    )
    with sharing("--name", "lab", "--", "sh", "-c", f"read line; printf '{done}'; echo lqqk; read line"):
        alice.attaches()
        alice.presses("Enter")
        alice.sees("lqqk")
        assert "\x0elqqk" in alice.screen("-e")  # which is a line that is drawn
        assert alice.state() != before[0]
        if how == "detached":
            alice.presses("C-]", "q")
        else:
            assert main(["revoke", "lab/root", "--reason", "taken off"]) == 0
        alice.sees(how, "alice$")
        alice.clears("alice$")
        assert (alice.state(), alice.screen("-e")) == before
        alice.types("echo lqqk\r")
        alice.sees("\nlqqk\n")
