"""An address where a share listens on the network."""

from __future__ import annotations

import ipaddress
import re
from dataclasses import dataclass

_FORM = re.compile(r"((tcp|telnet)(\+tls)?://)?(\[(?P<six>[^]]+)\]|(?P<four>[^:/]+)):(?P<port>\d+)(\?(?P<options>.+))?")
_MODES = {"read-only": "watch", "take": "force"}


@dataclass(frozen=True, slots=True)
class Address:
    """An address of this machine, and what its clients get.

    :ivar telnet: whether telnet with RFC 2217 is spoken. Otherwise the bytes are plain
    :ivar mode: write, watch or force, as for `attach` in the control protocol
    :ivar limit: number of clients that may be connected
    """

    host: str
    port: int
    telnet: bool
    tls: bool
    mode: str
    limit: int

    @classmethod
    def of(cls, text: str) -> Address:
        """Read ``telnet+tls://127.0.0.1:4001?take&limit=5``. Without a protocol it is raw TCP.

        :raises ValueError: if the text is not an address
        """
        if (found := _FORM.fullmatch(text)) is None or not 0 < (port := int(found["port"])) < 65536:
            raise ValueError(f"{text!r} is no address: give telnet://127.0.0.1:4001, tcp://[::1]:4001 or the like")
        host = found["six"] or found["four"].replace("localhost", "127.0.0.1")
        mode, limit = "write", 100
        for option in found["options"].split("&") if found["options"] else ():
            if option in _MODES and mode == "write":
                mode = _MODES[option]
            elif number := re.fullmatch(r"limit=([1-9]\d{0,3})", option):
                limit = int(number[1])
            else:
                raise ValueError(f"{text!r}: {option!r} is none of read-only, take (one of them) and limit=NUMBER")
        return cls(str(ipaddress.ip_address(host)), port, found[2] == "telnet", bool(found[3]), mode, limit)

    @property
    def loopback(self) -> bool:
        """Whether only programs of this machine can connect."""
        return ipaddress.ip_address(self.host).is_loopback

    def __str__(self) -> str:
        return f"{'telnet' if self.telnet else 'tcp'}{'+tls' * self.tls}://{joined(self.host, self.port)}"


def joined(host: str, port: int) -> str:
    """Join an address and a port to one word."""
    return f"[{host}]:{port}" if ":" in host else f"{host}:{port}"
