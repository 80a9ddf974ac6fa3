"""The menu of an attached terminal: keys after the escape key, and lines that are typed into the menu."""

from __future__ import annotations

import codecs
import re
import time
from collections.abc import Callable, Iterator
from typing import Protocol

from asyncrevoke.control.client import Record

from .escape import ESCAPE, KEYS, KEYS_TO_LOOK, MENU, MENU_TO_LOOK, explained
from .person import does
from .settings import Settings

#: The escape key in the forms that a program may ask for: of xterm's modifyOtherKeys, or kitty's, with locks.
_ENCODED = re.compile(rb"\x1b\[(?:27;5;93~|93;(?:5|69|133|197)(?::[12])?u|(93;(?:5|69|133|197):3u))")
#: What a terminal sends by itself or because a program asked: arrows, marks around a paste, the mouse, the focus.
_SEQUENCE = re.compile(rb"\x1b(?:\[M.{3}|[\[O][0-?]*[ -/]*[@-~])", re.DOTALL)
_BREAK = 0.25  # seconds
_LONGEST = 1000  # characters of a line
_ENTER, _CANCEL, _BACK, _CLEAR = b"\r\n", b"\x03\x1b\x1d", b"\x7f\b", 0x15
_ACTS: dict[int, Record] = {
    ord("w"): {"who": True},
    ord("t"): {"take": True},
    ord("g"): {"give": True},
    ord("u"): {"up": True},
    ord("c"): {"interrupt": True},
    ord("q"): {"detach": True},
    ord("."): {"detach": True},
}


class Screen(Protocol):
    """The screen that shows a menu. Its methods never wait, so keys work even if the terminal takes nothing."""

    def say_soon(self, *lines: str) -> None:
        """Show lines of the menu."""

    def ask_soon(self, line: str, *, over: bool = False) -> None:
        """Show the line that is typed into the menu, as it is now or as it ended."""


class Menu:
    """Tells what keys mean, one after the other.

    :ivar waits: whether the escape key came last, and the menu is not shown yet
    :ivar denied: why nothing may be typed or changed here. "": it may, or that is not known yet
    """

    def __init__(self, screen: Screen, *, watches: bool) -> None:
        self.waits = False
        self.denied = "you only watch here" if watches else ""
        self._screen = screen
        self._watches = watches
        self._escaped = False
        self._question = ""
        self._answers: Callable[[str], Record | None] | None = None
        self._typed = ""
        self._decode = codecs.getincrementaldecoder("utf-8")("ignore").decode
        self._then: Callable[[Record], None] | None = None  # called when the port is known

    def keys(self, data: bytes) -> Iterator[bytes | Record]:
        """Yield what to type and what to send. A line that is typed into the menu takes all bytes that came with its end."""
        data = _ENCODED.sub(
            lambda found: b"" if found[1] else bytes([ESCAPE]), data
        )  # releases of keys are dropped here
        if not (self._answers or self._escaped or self._watches or ESCAPE in data):  # a paste
            yield data
            return
        if self._answers or self._escaped:
            data = _SEQUENCE.sub(b"", data)
        for at, key in enumerate(data):
            if self._answers is not None:
                if key in _ENTER + _CANCEL:
                    yield from self._answer(cancelled=key in _CANCEL)
                    return
                self._edit(data[at : at + 1])
            elif self._escaped:
                self._escaped = self.waits = False
                yield from self._choose(key)
            elif key == ESCAPE:
                self._escaped = self.waits = True
            elif key == 3 and self._watches:  # ctrl-C has no other meaning here
                yield {"detach": True}
            else:
                yield data[at : at + 1]

    def show(self) -> None:
        """Show the menu, because no key has come."""
        self.waits = False
        self._screen.say_soon(MENU_TO_LOOK if self.denied else MENU)

    def _choose(self, key: int) -> Iterator[bytes | Record]:
        self._then = None
        if key == ESCAPE:
            yield bytes([key])
        elif key in _CANCEL:
            return
        elif self.denied and key in b"tgbduc":
            self.refused(self.denied)
        elif key in _ACTS:
            yield _ACTS[key]
        elif key == ord("s"):
            self._ask("say: ", lambda text: {"say": text} if text else None)
        elif key == ord("d"):
            self._ask("reason for taking the port down: ", lambda text: {"down": text})
        elif key in b"pl":
            asks = self._ask_settings if key == ord("p") else self._ask_line
            self._then = self._show if self.denied else asks
            yield {"port": True}
        elif key == ord("b"):
            self._then = lambda _: self._screen.say_soon("a break was sent")
            yield {"break": _BREAK}
        else:
            self._screen.say_soon(*explained(KEYS_TO_LOOK if self.denied else KEYS))

    # -- the port --

    def port(self, port: Record) -> None:
        """Take the state of the port: it answers every request about the port."""
        then, self._then = self._then or self._show, None
        then(port)

    def _show(self, port: Record) -> None:
        lines = ", ".join(f"{name.upper()} {'on' if on else 'off'}" for name, on in (port["lines"] or {}).items())
        state = f"{port['path'] or port['device']} is {'down' if port['down'] else port['state']}"
        why = f": {port['reason']}" if port["reason"] else ""
        self._screen.say_soon(f"{state}{why}, {Settings(**port['settings'])}", *([lines] if lines else []))

    def refused(self, why: str) -> None:
        """Say that a request was not carried out."""
        self._then = None
        self._screen.say_soon(f"not done: {why}")

    def _ask_settings(self, port: Record) -> None:
        self._show(port)
        self._ask("settings, such as 115200n8: ", lambda text: {"settings": text} if text else None)

    def _ask_line(self, port: Record) -> None:
        self._show(port)
        lines = port["lines"]
        if lines is None:
            self.refused("it has no modem lines")
            return

        def toggle(text: str) -> Record | None:
            line = text.strip().lower()
            return {"lines": {line: not lines.get(line)}} if line else None

        self._ask("toggle dtr or rts: ", toggle)

    # -- a line that is typed into the menu --

    def _ask(self, question: str, answers: Callable[[str], Record | None]) -> None:
        self._question, self._answers, self._typed = question, answers, ""
        self._screen.ask_soon(question)

    def _edit(self, key: bytes) -> None:
        if key in _BACK:
            self._typed = self._typed[:-1]
        elif key[0] == _CLEAR:
            self._typed = ""
        else:
            text = self._decode(key)
            self._typed = (self._typed + text * text.isprintable())[:_LONGEST]
        self._screen.ask_soon(self._question + self._typed)

    def _answer(self, *, cancelled: bool) -> Iterator[Record]:
        answers, self._answers = self._answers, None
        self._screen.ask_soon(self._question + self._typed, over=True)
        if not cancelled and answers is not None and (record := answers(self._typed)) is not None:
            yield record


def present(who: list[Record], own: str) -> list[str]:
    """Return a line for each person who is attached."""
    now, lines = time.time(), []
    for each in who:
        you = " (you)" if each["name"] == own else ""
        since = time.strftime("%H:%M", time.localtime(now - each["since"]))
        lines.append(f"{each['name']}{you} {does(each)}, here since {since}")
    return lines
