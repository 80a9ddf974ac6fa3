"""Serial ports that several may use, and that are taken away from all of them when they are unplugged."""

from .device import (
    SerialDevice as SerialDevice,
    SerialRevokedError as SerialRevokedError,
    SerialStream as SerialStream,
    open_serial as open_serial,
)
from .lines import ModemLines as ModemLines
