"""An error that people read, in one line."""


def told(error: BaseException | str) -> str:
    """What is wrong, with the name of the file first, without its number."""
    if isinstance(error, OSError) and error.strerror:
        return f"{error.filename}: {error.strerror}" if error.filename else error.strerror
    return str(error)
