"""An address of the network that a share listens on."""

from __future__ import annotations

import logging
import os
import socket
import ssl

import anyio

from .address import Address
from .share import Share

logger = logging.getLogger("asyncrevoke")


class Listener:
    """A listener of a share on the network.

    :ivar context: context of TLS, if TLS is spoken there
    :ivar warning: says who can do what from other machines, if the address is open to them
    :ivar socket: the socket, once it listens
    :raises ValueError: if the files for TLS cannot be used
    """

    def __init__(self, share: Share, address: Address) -> None:
        self.address = address
        self.context = _context(share) if address.tls else None
        self.socket: socket.socket | None = None
        self._name = share.name
        self.warning = ""
        if not address.loopback:
            who = "who has a certificate" if address.tls and share.tls_clients else "who can reach this machine"
            does = "read" if address.mode == "watch" else "type"
            self.warning = f"{share.name!r} is open to the network on {address}: everybody {who} can {does}"

    def listen(self) -> None:
        """Listen. Clients wait until they are accepted.

        :raises OSError: if the address is in use, or not of this machine. The message names the share and the address
        """
        address = self.address
        family = socket.AF_INET6 if ":" in address.host else socket.AF_INET
        try:
            self.socket = socket.create_server((address.host, address.port), family=family, backlog=1024)
        except OSError as exc:
            why = f"{os.strerror(exc.errno or 0)}: {self._name!r} cannot listen on {address}"
            raise OSError(exc.errno, why) from exc
        self.socket.setblocking(False)
        if self.warning:
            logger.warning("%s", self.warning)

    def close(self) -> None:
        if self.socket is not None:
            anyio.notify_closing(self.socket)  # a waiting task gets ClosedResourceError
            self.socket.close()


def _context(share: Share) -> ssl.SSLContext:
    try:
        context = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH, cafile=share.tls_clients or None)
        context.load_cert_chain(share.tls_certificate, share.tls_key or None, password="")
    except (OSError, ValueError) as exc:  # its message does not name the file
        files = ", ".join(filter(None, (share.tls_certificate, share.tls_key, share.tls_clients)))
        raise ValueError(f"{share.name!r}: no certificate and key of TLS in {files}: {exc}") from exc
    if share.tls_clients:
        context.verify_mode = ssl.CERT_REQUIRED
    return context
