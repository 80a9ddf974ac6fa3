"""The faces of asyncio: existing code gains revocation by one changed import.

`create_serial_connection` and `open_serial_connection` stand in for those of pyserial-asyncio and serialx, of which
`asyncrevoke.compat` has the whole surface; `wrap_streams` is for any pair of reader and writer that there is already.
"""

from .connection import (
    connected as connected,
    create_serial_connection as create_serial_connection,
    open_serial_connection as open_serial_connection,
    opened as opened,
    opened_pair as opened_pair,
    translated as translated,
)
from .pair import SerialReader as SerialReader, SerialWriter as SerialWriter
from .transport import SerialTransport as SerialTransport
from .wrapped import wrap_streams as wrap_streams
