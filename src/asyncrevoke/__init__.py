"""revoke(2) for asyncio: take a port, a terminal or a connection away from code that is still awaiting it."""

# The map of the floors. Imports go down only, and what stands above floor 1 uses public names only.
#
#   4  cli.py           parses and prints
#   3  attach.py        the client's terminal, attached to a share
#   3  console.py       a console server: what is shared over a control socket, and who is attached
#   3  holders.py       who holds a terminal, in all programs, and the kernel's hang-up of it
#   3  control/         take away from outside: a server on a Unix socket, its client, the lines between them
#   3  demo.py          what `asyncrevoke demo` shows
#   2  telemetry.py     an observer that measures, for OpenTelemetry
#   2  testing.py       check_revokable(): the contract, to be run on anybody's resource
#   2  adapters/        one noun per file: pty, tty, serial (by serial_ports), hotplug, asyncio_streams, alsa, entries (by entry_files),
#                      fuse, mapping (with exports), descriptor (with sleepers), membrane
#   1  _observe.py      what happens to a tree, told to observers
#   1  _registry.py     names, keys, paths, generations
#   1  _offloop.py      blocking calls, in threads of their own
#   1  _watch.py        a descriptor watched in the background
#   1  _shared.py       one line for several streams
#   1  _fdstream.py     a stream over a descriptor, kicked by waiter
#   1  _stream.py       a stream over any AnyIO stream, kicked by cancel scope
#   0  _revokable.py    THE protocol: start reading here
#   0  _revocation.py   the awaitable view of one revocation
#   0  _using.py        one operation
#   0  _loop.py         the only file that tells asyncio from trio
#   0  answers.py       the errors, and what dead files answer

from . import answers as answers
from ._fdstream import FdStream as FdStream
from ._observe import Event as Event
from ._observe import log_events as log_events
from ._observe import observe as observe
from ._offloop import OffLoop as OffLoop
from ._offloop import in_loop as in_loop
from ._offloop import off_loop as off_loop
from ._registry import Key as Key
from ._registry import Name as Name
from ._registry import Place as Place
from ._registry import Registry as Registry
from ._registry import places as places
from ._revocation import Report as Report
from ._revocation import Revocation as Revocation
from ._revocation import User as User
from ._revokable import Revokable as Revokable
from ._revokable import revoke_all as revoke_all
from ._revokable import revoke_threadsafe as revoke_threadsafe
from ._revokable import stop_using_threadsafe as stop_using_threadsafe
from ._shared import Shared as Shared
from ._shared import SharedStream as SharedStream
from ._stream import Face as Face
from ._stream import Owner as Owner
from ._stream import RevokableAttribute as RevokableAttribute
from ._stream import RevokableStream as RevokableStream
from ._stream import answer as answer
from ._stream import handle_of as handle_of
from ._using import Use as Use
from ._watch import Watch as Watch
from .answers import RevokeDeadlock as RevokeDeadlock
from .answers import RevokedError as RevokedError

# Adapters come last: they stand on the names above.
from .adapters.pty import PtySession as PtySession  # isort: skip
from .adapters.pty import PtyStream as PtyStream  # isort: skip
from .adapters.pty import open_pty as open_pty  # isort: skip
from .adapters.serial import SerialDevice as SerialDevice  # isort: skip
from .adapters.serial import SerialStream as SerialStream  # isort: skip
from .adapters.serial import open_serial as open_serial  # isort: skip
from .adapters.hotplug import serial_device as serial_device  # isort: skip
from .adapters.hotplug import watch_devices as watch_devices  # isort: skip
from .adapters.tty import Tty as Tty  # isort: skip
