"""Errors of devices, with the name of the device and what to do."""

import errno
from collections.abc import Iterator, Mapping

from asyncrevoke.linux import termios

#: Advice for errors, if the kernel's own words do not say what to do.
HINTS: Mapping[int, str] = {
    errno.ENOENT: "there is no such device: is it plugged in?",
    errno.ENXIO: "the device behind it is gone: wait until it is plugged in again",
    errno.ENODEV: "the device behind it is gone: wait until it is plugged in again",
    errno.EACCES: "permission denied: join the group that owns it, or add a udev rule that gives it to you",
    errno.EPERM: "permission denied: join the group that owns it, or add a udev rule that gives it to you",
    errno.EBUSY: "another program uses it exclusively, or this one does already: find it by `fuser`",
}


def explained(
    device: str, exc: BaseException, hints: Mapping[int, str] = HINTS, kind: type[OSError] = OSError
) -> OSError:
    """Return the error of a failed call, with the device and what to do."""
    number, words = next(filter(None, map(_told, _causes(exc))), (errno.EIO, f"it failed: {exc}"))
    return kind(number, hints.get(number, words), device)


def _causes(exc: BaseException | None) -> Iterator[BaseException]:
    while exc is not None:
        yield exc
        exc = exc.__cause__ or exc.__context__


def _told(exc: BaseException) -> tuple[int, str] | None:
    """Return the kernel's number and words, if the error has them."""
    match exc.args if isinstance(exc, (OSError, termios.error)) else ():
        case int() as number, str() as words:
            return number, words
    return None
