"""What programs do to a terminal, and what puts it back."""

import random

import pytest

from asyncrevoke.console.screen import Screen


def undo(*output: bytes) -> bytes:
    screen = Screen()
    for each in output:
        screen.feed(each)
    return screen.undo()


CHANGES = {
    "nothing": ("plain text\r\n\t\b\x07", ""),
    "cursor movements": ("\x1b[2;3H\x1b[A\x1b[K\x1b[6n\x1b[c\x1bM\x1b7\x1b8", ""),
    "colours and attributes": ("\x1b[1;31mred\x1b[38:2::1:2:3m", "\x1b[m"),
    "line drawing by shifts": ("\x1b)0\x0eqqq", "\x1b)B\x0f"),
    "line drawing in G0": ("\x1b(0qqq", "\x1b(B"),
    "other slots": ("\x1b*0\x1b+A\x1bn", "\x1b*B\x1b+B\x0f"),
    "another coding than UTF-8": ("\x1b%@", "\x1b%G"),
    "insert mode": ("\x1b[4h", "\x1b[4l"),
    "scroll region": ("\x1b[2;5r", "\x1b7\x1b[r\x1b8"),
    "origin mode": ("\x1b[?6h", "\x1b[?6l\x1b[9999;1H\n"),
    "no wrap": ("\x1b[?7l", "\x1b[?7h"),
    "application keypad and cursor keys": ("\x1b=\x1b[?1h", "\x1b>\x1b[?1l"),
    "mouse, focus, paste": (
        "\x1b[?1000;1006h\x1b[?1004h\x1b[?2004h",
        "\x1b[?1000l\x1b[?1004l\x1b[?1006l\x1b[?2004l",
    ),
    "cursor hidden, and a bar": ("\x1b[?25l\x1b[5 q", "\x1b[?25h\x1b[0 q"),
    "kitty's keyboard, pushed": ("\x1b[>1u\x1b[>31u\x1b[<u", "\x1b[<u"),
    "kitty's keyboard, set": ("\x1b[=5;1u", "\x1b[=0u"),
    "modified keys": ("\x1b[>4;2m\x1b[>4;1f", "\x1b[>4f\x1b[>4m"),
    "modified keys, off": ("\x1b[>4n", "\x1b[>4m"),
    "a saved title": ("\x1b[22;2t\x1b]2;vim\x07", "\x1b[23;2t"),
    "palette and colours of the window": ("\x1b]4;1;red\x07\x1b]11;#000\x1b\\", "\x1b]111\x1b\\\x1b]104\x1b\\"),
    "questions about colours": ("\x1b]11;?\x07\x1b]4;1;?\x07", ""),
    "a link": ("\x1b]8;id=7;http://host/\x1b\\text", "\x1b]8;;\x1b\\"),
    "the other screen": ("\x1b[?1049h", "\x1b[?1049l"),
    "saved cursor": ("\x1b[?1048h", ""),
    "a reset": ("\x1b[?1049h\x1b[4h\x0e\x1bc", ""),
}
#: What undoes each, as a program does it that ends well.
ENDS = (
    "\x1b[m\x0f\x1b(B\x1b)B\x1b*B\x1b+B\x1b%G\x1b[4l\x1b[r\x1b[?6l\x1b[?7h\x1b>\x1b[?1l\x1b[?1000;1006l\x1b[?1004l"
    "\x1b[?2004l\x1b[?25h\x1b[0 q\x1b[=0u\x1b[<u\x1b[>4m\x1b[>4f\x1b[23;2t\x1b]8;;\x07\x1b[?1049l"
)


@pytest.mark.parametrize("change", CHANGES)
def test_what_was_changed_is_put_back(change: str) -> None:
    """That, and nothing else, however often it is done."""
    output, back = (each.encode() for each in CHANGES[change])
    assert undo(output) == back
    if "kitty" not in change and "title" not in change:  # which count
        assert undo(output * 20) == back


@pytest.mark.parametrize("change", CHANGES)
def test_what_the_program_puts_back_is_left_alone(change: str) -> None:
    """But for colours, which are reset once one was used, and for those of the window."""
    left = undo(CHANGES[change][0].encode(), ENDS.encode())
    assert left == (b"\x1b]111\x1b\\\x1b]104\x1b\\" if "palette" in change else b"") + b"\x1b[m"


@pytest.mark.parametrize("change", CHANGES)
def test_sequences_may_come_in_pieces(change: str) -> None:
    """Wherever the borders are, also byte by byte."""
    output, back = (each.encode() for each in CHANGES[change])
    for first in range(len(output) + 1):
        for second in range(first, len(output) + 1):
            assert undo(output[:first], output[first:second], output[second:]) == back
    assert undo(*(bytes([each]) for each in output)) == back


def test_order_is_that_in_which_a_terminal_needs_it() -> None:
    """Keys of the other screen are put back there, those of the first after it; then what the return brings back."""
    output = b"\x1b[>1u\x1b[31m\x1b(0\x1b[?25l\x1b[?1049h\x1b[>3u\x1b[>3u\x1b[2;5r\x1b[?6h"
    assert undo(output) == b"\x1b[<u\x1b[<u\x1b[?25h\x1b[?6l\x1b[r\x1b[?1049l\x1b[<u\x1b(B\x1b[m"


def test_keys_of_the_other_screen_are_not_put_back_on_the_first() -> None:
    """The other screen keeps them, and the first one's are not lost."""
    assert undo(b"\x1b[>1u\x1b[?1049h\x1b[>3u\x1b[>3u\x1b[?1049l") == b"\x1b[<u"


def test_pushes_without_end_are_not_remembered() -> None:
    """A terminal keeps few of them, and so do we."""
    assert undo(b"\x1b[>1u" * 10**5) == b"\x1b[<u" * 16


def test_no_output_is_a_fault() -> None:
    """Whatever a program sends, it is read on, and what puts it back stays short."""
    dice = random.Random(19)
    pieces = [b"\x1b", b"[", b"]", b"?", b";", b"9" * 5000, b"4", b"8", b"h", b"l", b"r", b"t", b"u", b"<", b"=", b"22"]
    pieces += [b">", b"m", b" q", b"(", b"\x0e", b"\x9b", b"\x07", b"x" * 300]
    for _ in range(2000):
        screen = Screen()
        for _ in range(20):
            screen.feed(b"".join(dice.choices(pieces, k=10)))
        assert len(screen.undo()) < 2000


def test_what_is_remembered_has_a_bound() -> None:
    """A device that invents modes without end takes no more memory, and no more is written in the end."""
    screen = Screen()
    screen.feed(b"\x1b[?25l")
    for number in range(5000):
        screen.feed(b"\x1b[?%dh\x1b[>%d;1m\x1b[22;%dt" % (number + 3000, number, number))
    assert len(screen.undo()) < 30_000
    screen.feed(b"\x1b[?25h")
    assert b"\x1b[?25h" not in screen.undo()
