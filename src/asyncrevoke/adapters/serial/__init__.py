"""Serial ports that several may use, and that are taken away from all of them when they are unplugged."""

from .device import ModemLines as ModemLines
from .device import SerialDevice as SerialDevice
from .device import SerialRevokedError as SerialRevokedError
from .device import SerialStream as SerialStream
from .device import open_serial as open_serial
