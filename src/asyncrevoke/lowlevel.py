"""What adapters are made of, ours and yours: nodes and streams, and below them what users of a thing never need.

Adapters import this, and not the package's face, which hands adapters on.
"""

from ._core.errors import RevokeDeadlock as RevokeDeadlock
from ._core.errors import RevokedError as RevokedError
from ._core.observe import Event as Event
from ._core.observe import log_events as log_events
from ._core.observe import observe as observe
from ._core.offloop import OffLoop as OffLoop
from ._core.offloop import in_loop as in_loop
from ._core.offloop import off_loop as off_loop
from ._core.revocation import Report as Report
from ._core.revocation import Revocation as Revocation
from ._core.revocation import User as User
from ._core.revokable import Revokable as Revokable
from ._core.revokable import revoke_all as revoke_all
from ._core.revokable import revoke_threadsafe as revoke_threadsafe
from ._core.revokable import stop_using_threadsafe as stop_using_threadsafe
from ._core.use import Use as Use
from ._core.watch import Watch as Watch
from ._registry.name import Name as Name
from ._registry.place import Place as Place
from ._registry.place import places as places
from ._registry.registry import Registry as Registry
from ._streams.face import Face as Face
from ._streams.face import Owner as Owner
from ._streams.face import answer as answer
from ._streams.face import handle_of as handle_of
from ._streams.fd import Fd as Fd
from ._streams.fd import FdStream as FdStream
from ._streams.shared import Shared as Shared
from ._streams.shared import SharedStream as SharedStream
from ._streams.wrapped import RevokableStream as RevokableStream
