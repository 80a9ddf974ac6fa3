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
    """Where a share is reached over the network. It is there once it listens.

    :ivar context: of TLS, if that is spoken there
    :ivar warning: who can do what there from other machines, if it is open to them
    :ivar socket: once it listens
    :raises ValueError: if the files for TLS are none
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
        """Keep whoever comes waiting until somebody accepts.

        :raises OSError: naming the share and the address, if it is taken, or not of this machine
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
            anyio.notify_closing(self.socket)  # whoever waits for it gets ClosedResourceError
            self.socket.close()


def _context(share: Share) -> ssl.SSLContext:
    try:
        context = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH, cafile=share.tls_clients or None)
        context.load_cert_chain(share.tls_certificate, share.tls_key or None, password="")
    except (OSError, ValueError) as exc:  # which do not say of which file
        files = ", ".join(filter(None, (share.tls_certificate, share.tls_key, share.tls_clients)))
        raise ValueError(f"{share.name!r}: no certificate and key of TLS in {files}: {exc}") from exc
    if share.tls_clients:
        context.verify_mode = ssl.CERT_REQUIRED
    return context
