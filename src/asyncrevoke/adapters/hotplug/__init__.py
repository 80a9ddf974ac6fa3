"""Devices that come and go: the kernel's events, and devices that are opened again whenever they are back."""

from .replugged import (
    Devices as Devices,
    SerialDevices as SerialDevices,
    follow_device as follow_device,
    serial_device as serial_device,
)
from .uevents import (
    DeviceEvent as DeviceEvent,
    DeviceEvents as DeviceEvents,
    parsed as parsed,
    watch_devices as watch_devices,
)
