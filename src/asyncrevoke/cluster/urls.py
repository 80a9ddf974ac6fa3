"""Finds the engine of a url."""

import importlib
from typing import Any, cast
from urllib.parse import urlsplit

from .log import Log

#: Module, class and extra of each scheme.
_ENGINES = {
    **dict.fromkeys(("redis", "rediss", "unix", "valkey", "valkeys"), ("redis", "RedisLog", "redis")),
    **dict.fromkeys(("postgresql", "postgres"), ("postgres", "PostgresLog", "postgres")),
    "sqlite": ("sqlite", "SqliteLog", ""),
}


def open_log(url: str, **options: Any) -> Log:
    """Make the log that a url names: ``open_log("redis://host:6379/0")``. It does not connect yet.

    :param options: options of the engine's class
    :raises ValueError: if no engine has the scheme of the url, or the engine refuses the url
    :raises ModuleNotFoundError: if the engine's library is missing. The message says how to install it
    """
    scheme = urlsplit(url).scheme
    if scheme not in _ENGINES:
        raise ValueError(
            f"the url of a log cannot begin with {scheme!r}: give one of {', '.join(_ENGINES)}, as in redis://host:6379/0"
        )
    module, name, extra = _ENGINES[scheme]
    try:
        engine = getattr(importlib.import_module(f".{module}", __package__), name)
    except ModuleNotFoundError as exc:
        if not extra:
            raise
        raise ModuleNotFoundError(f"{scheme}:// needs a library: pip install 'asyncrevoke[{extra}]' ({exc})") from exc
    return cast("Log", engine(url, **options))
