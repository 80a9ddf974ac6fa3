"""An error in one line, for people."""


def told(error: BaseException | str) -> str:
    """Say what is wrong. The name of the file comes first, and the error number is dropped."""
    if isinstance(error, OSError) and error.strerror:
        return f"{error.filename}: {error.strerror}" if error.filename else error.strerror
    return str(error)
