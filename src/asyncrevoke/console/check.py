"""Checks what a file shares. It opens no port, socket, address or log, and starts nothing."""

from collections.abc import Callable, Iterator
from dataclasses import replace
from functools import partial

from .access import people
from .address import joined
from .console import check_source
from .fault import Faults, noted
from .listener import Listener
from .log_file import check_file
from .share import Config, Share, parse_config


def check(path: str, group: str | None) -> Config:
    """Return what a configuration file says.

    :param group: group that the command line gives
    :raises OSError: if the file cannot be read
    :raises Faults: naming the file, and all that is wrong there
    """
    config, faults = parse_config(path)
    faults += [f"{path}: {each}" for each in _faults(replace(config, group=group or config.group))]
    if faults:
        raise Faults(*faults)
    return config


def _faults(config: Config) -> list[str]:
    """Return a line for each thing that is wrong on this machine, with its share and key."""
    faults: list[str] = []
    taken: dict[str, str] = {}
    for group in dict.fromkeys([config.group, *(each.group for each in config.sockets)]):
        with noted(faults, "group"):
            people([f"@{group}"] if group else [])
    for share in config.shares:
        for key, part in _parts(share):
            with noted(faults, f"[share.{share.name}]: {key}"):
                part()
        for each in share.addresses:
            where = joined(each.host, each.port)
            if taken.setdefault(where, share.name) != share.name:
                faults.append(f"[share.{share.name}]: listen: {taken[where]!r} listens on {where} already")
    return list(dict.fromkeys(faults))


def _parts(share: Share) -> Iterator[tuple[str, Callable[[], object]]]:
    """The keys whose values may be wrong on this machine, each with what finds that out."""
    for key in ("look", "type", "revoke"):
        yield from ((key, partial(people, [name])) for name in getattr(share, key) or ())
    yield "device" if share.device else "command", partial(check_source, share)
    yield from (("tls_certificate", partial(Listener, share, each)) for each in share.addresses if each.tls)
    if share.log:
        yield "log", partial(check_file, share.log)
