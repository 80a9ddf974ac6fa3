"""Text of others, as it may go into a log or to a terminal."""


def printable(text: str) -> str:
    """A text whose control characters are shown, and do nothing: they begin no line, and tell a terminal nothing."""
    if text.isprintable():
        return text
    return "".join(each if each.isprintable() else repr(each)[1:-1] for each in text)
