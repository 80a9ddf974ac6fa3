"""Ports over the network: a connection in place of a driver's line."""

import contextlib
import socket
import urllib.parse

SCHEMES = ("socket://", "rfc2217://")
FINISHED = "closed by the far end"  # an orderly end
_CONNECT = 5.0  # seconds
#: Half a minute, as the kernel gives a stalled line: then a far end that answers or accepts nothing is noticed.
_OPTIONS = {
    socket.TCP_KEEPIDLE: 10,
    socket.TCP_KEEPINTVL: 5,
    socket.TCP_KEEPCNT: 4,
    socket.TCP_USER_TIMEOUT: 30_000,
    socket.TCP_NODELAY: 1,
}


def address(url: str) -> tuple[str, int]:
    """Return the host and port to connect to.

    :raises ValueError: if the url does not say so
    """
    parts = urllib.parse.urlsplit(url)
    with contextlib.suppress(ValueError):  # the port is no number, or too high a one
        if parts.hostname and parts.port:
            return parts.hostname, parts.port
    raise ValueError(f"{url!r}: expected both host and port, such as {parts.scheme}://localhost:2217")


def connect(url: str) -> socket.socket:
    connection = socket.create_connection(address(url), timeout=_CONNECT)
    keep_alive(connection)
    return connection


def keep_alive(connection: socket.socket) -> None:
    """Let the kernel notice that the far end is gone, even while nothing is sent."""
    connection.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
    for option, value in _OPTIONS.items():
        connection.setsockopt(socket.IPPROTO_TCP, option, value)


def disconnect(connection: socket.socket) -> None:
    """Close the connection, even for others who have the descriptor."""
    with contextlib.suppress(OSError):  # it is over
        connection.shutdown(socket.SHUT_RDWR)
    connection.close()


def why_over(connection: socket.socket) -> str | OSError | None:
    """Why nothing more will come. None if it may, or if data that has come is not received yet."""
    try:
        more = connection.recv(1, socket.MSG_PEEK | socket.MSG_DONTWAIT)
    except BlockingIOError:
        return None
    except OSError as exc:
        return exc
    return None if more else FINISHED
