"""Devices that several may use. An unplug revokes the device for all of them."""

from .character import CharacterDevice as CharacterDevice, open_device as open_device
from .device import Device as Device
from .instrument import InstrumentStream as InstrumentStream
from .messages import (
    EventStream as EventStream,
    InputEvent as InputEvent,
    MessageStream as MessageStream,
    ReportStream as ReportStream,
)
from .stream import DeviceStream as DeviceStream
