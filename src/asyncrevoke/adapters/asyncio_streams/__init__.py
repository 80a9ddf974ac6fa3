"""The interfaces of asyncio: you change one import, and your code gains revocation.

`create_serial_connection` and `open_serial_connection` replace those of pyserial-asyncio and serialx.
`asyncrevoke.compat` has the whole of these libraries. `wrap_streams` is for any existing pair of reader and writer.
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
