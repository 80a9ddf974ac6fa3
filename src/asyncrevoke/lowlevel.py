"""The parts that adapters are made of, ours and yours: nodes and streams, and lower parts that users of a thing never
need.

Adapters import this module. They do not import the package itself, which exports the adapters.
"""

from ._core.errors import RevokeDeadlock as RevokeDeadlock, RevokedError as RevokedError, printable as printable
from ._core.loop import checkpoint as checkpoint
from ._core.observe import Event as Event, log_events as log_events, observe as observe
from ._core.offloop import (
    OffLoop as OffLoop,
    close_off_loop as close_off_loop,
    in_loop as in_loop,
    off_loop as off_loop,
)
from ._core.resource import Handled as Handled, Resource as Resource
from ._core.revocation import Report as Report, Revocation as Revocation, User as User, users_of as users_of
from ._core.revokable import (
    Revokable as Revokable,
    due as due,
    revoke_all as revoke_all,
    revoke_threadsafe as revoke_threadsafe,
    stop_using_threadsafe as stop_using_threadsafe,
)
from ._core.use import Use as Use, Wait as Wait
from ._core.watch import Deadline as Deadline, HasDescriptor as HasDescriptor, Watch as Watch
from ._registry.name import Name as Name
from ._registry.place import Place as Place, places as places
from ._registry.registry import Registry as Registry
from ._streams.face import Face as Face, Owner as Owner, answer as answer, handle_of as handle_of
from ._streams.fd import Fd as Fd, FdStream as FdStream, os_errors as os_errors
from ._streams.shared import Shared as Shared, SharedOptions as SharedOptions, SharedStream as SharedStream
from ._streams.wrapped import RevokableStream as RevokableStream
