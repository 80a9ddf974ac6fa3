"""The escape key of an attached terminal, and the help about it."""

ESCAPE = 0x1D  # ctrl-], as in telnet
KEYS = {
    "w": "show who is here",
    "t": "take the keyboard",
    "g": "give the keyboard back",
    "s": "say a line to the others",
    "b": "send a break",
    "p": "show the port's settings, and change them",
    "l": "show the modem lines, and toggle DTR or RTS",
    "d": "take the port down, to lend it to another program",
    "u": "bring the port up again",
    "c": "throw away input that is stuck, and type ctrl-C",
    "q": "detach. A dot does the same",
    "?": "show this help",
    "ctrl-]": "type one ctrl-]",
}
#: For those who only look.
KEYS_TO_LOOK = {key: KEYS[key] for key in ("w", "s", "q", "?")} | {"p": "show the port's settings"}
MENU = "w)ho t)ake g)ive s)ay b)reak p)ort l)ines d)own u)p c)trl-C q)uit ?)help"
MENU_TO_LOOK = "w)ho s)ay p)ort q)uit ?)help"
HINT = "ctrl-] opens a menu, ctrl-] q detaches"


def explained(keys: dict[str, str]) -> list[str]:
    """A line for each key."""
    return [f"{key:6}  {text}" for key, text in keys.items()]
