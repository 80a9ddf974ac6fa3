"""Devices that come and go: the kernel's events, and a serial device that is opened again whenever it is back."""

from .replugged import SerialDevices as SerialDevices, serial_device as serial_device
from .uevents import (
    DeviceEvent as DeviceEvent,
    DeviceEvents as DeviceEvents,
    parsed as parsed,
    watch_devices as watch_devices,
)
