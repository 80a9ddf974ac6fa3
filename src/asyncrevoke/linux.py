"""Functions and names that only Linux has. Import them from here, so that the error says which module needs which name.

The names of a poll(2) mask are available everywhere. Windows lacks them, and the answers of dead files need them.
"""

import importlib
import sys
from typing import TYPE_CHECKING, Any

POLLIN, POLLPRI, POLLOUT, POLLERR, POLLHUP, POLLNVAL = 1, 2, 4, 8, 16, 32

if TYPE_CHECKING:
    import fcntl as fcntl
    import grp as grp
    import pty as pty
    import pwd as pwd
    import resource as resource
    import termios as termios
    import tty as tty
    from os import O_PATH as O_PATH, eventfd as eventfd, makedev as makedev, pidfd_open as pidfd_open
    from select import EPOLLET as EPOLLET, EPOLLRDHUP as EPOLLRDHUP, epoll as epoll
    from socket import AF_NETLINK as AF_NETLINK, SO_PEERCRED as SO_PEERCRED
else:
    _MODULES = {"fcntl", "grp", "pty", "pwd", "resource", "termios", "tty"}
    _HOMES = {
        **dict.fromkeys(("O_PATH", "eventfd", "makedev", "pidfd_open"), "os"),
        **dict.fromkeys(("EPOLLET", "EPOLLRDHUP", "epoll"), "select"),
        **dict.fromkeys(("AF_NETLINK", "SO_PEERCRED"), "socket"),
    }

    def __getattr__(name: str) -> Any:
        """Import a name when it is first used.

        :raises ImportError: if this system does not have it
        """
        if name not in _MODULES | _HOMES.keys():
            raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
        try:
            home = importlib.import_module(_HOMES.get(name, name))
            return globals().setdefault(name, home if name in _MODULES else getattr(home, name))
        except (ImportError, AttributeError):
            needs = sys._getframe(1).f_globals["__name__"]
            raise ImportError(f"{needs} needs Linux: there is no {name} here", name=name) from None
