"""Take away from outside: a server on a Unix socket that a service embeds, and its client."""

from .access import Access as Access
from .client import Control as Control, connect as connect
from .lines import ControlError as ControlError
from .peer import Peer as Peer
from .request import Command as Command, Request as Request
from .server import serve as serve
from .workers import revoke_in_all as revoke_in_all, serving as serving
