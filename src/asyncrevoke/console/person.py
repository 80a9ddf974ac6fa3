"""A person who is attached to a share, in the words that people read."""

from asyncrevoke.control.client import Record


def does(person: Record) -> str:
    """Say what the person does there."""
    return "has the keyboard" if person["keyboard"] else "waits for the keyboard" if person["types"] else "watches"
