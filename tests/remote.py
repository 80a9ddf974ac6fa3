"""A device server on the network, with a port whose lines are looped back: pyserial's, which speaks RFC 2217."""

import contextlib
import socket
import threading
from collections.abc import Iterator
from typing import Any

import serial
import serial.rfc2217


@contextlib.contextmanager
def server() -> Iterator[tuple[str, socket.socket]]:
    """The place of a device server on the network, and its listening socket."""
    with socket.create_server(("127.0.0.1", 0)) as listening:
        listening.settimeout(10)
        yield "{}:{}".format(*listening.getsockname()), listening


class Server:
    """pyserial's own server, for one client, before a port whose lines are looped back: RTS to CTS, DTR to DSR.

    :ivar port: as the client has set it
    :ivar came: all data that it was sent, which goes back
    """

    def __init__(self, listening: socket.socket) -> None:
        self.port: Any = serial.serial_for_url("loop://", timeout=0)
        self.came = bytearray()
        self._listening = listening
        self._begun = threading.Event()
        self._thread = threading.Thread(target=self._serve)
        self._thread.start()

    def _serve(self) -> None:
        self._far, _ = self._listening.accept()
        self.manager = manager = serial.rfc2217.PortManager(self.port, self)  # type: ignore[arg-type]  # anything that writes
        self._begun.set()
        with contextlib.suppress(OSError):
            while data := self._far.recv(65536):
                come = b"".join(manager.filter(data))
                self.came += come
                if come:
                    self.write(b"".join(manager.escape(come)))

    def write(self, data: bytes) -> None:
        self._far.sendall(data)

    def shut(self) -> None:
        self._begun.wait(10)
        with contextlib.suppress(OSError):
            self._far.shutdown(socket.SHUT_RDWR)

    def close(self) -> None:
        self.shut()
        self._thread.join(10)
        self._far.close()
        self.port.close()
