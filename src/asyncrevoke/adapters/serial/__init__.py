"""Serial ports that several may use. An unplug revokes the port for all of them."""

from .device import (
    SerialDevice as SerialDevice,
    SerialRevokedError as SerialRevokedError,
    SerialStream as SerialStream,
    open_serial as open_serial,
)
from .lines import ModemLines as ModemLines
