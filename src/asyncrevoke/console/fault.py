"""What is wrong with what people have written, in lines for people."""

import contextlib
from collections.abc import Iterator


class Faults(ValueError):
    """All that is wrong with something. ``args`` has a line for each fault."""

    def __str__(self) -> str:
        return "; ".join(self.args)


@contextlib.contextmanager
def noted(faults: list[str], where: str = "") -> Iterator[None]:
    """Note what is raised inside as faults, each with where it is."""
    found: tuple[str, ...] = ()
    try:
        yield
    except Faults as error:
        found = error.args
    except (OSError, ValueError, TypeError, RecursionError) as error:
        found = (told(error),)
    faults += [f"{where}: {each}" if where else each for each in found]


def told(error: BaseException | str) -> str:
    """Say what is wrong. The name of the file comes first, and the error number is dropped."""
    if isinstance(error, OSError) and error.strerror:
        return f"{error.filename}: {error.strerror}" if error.filename else error.strerror
    return str(error)
