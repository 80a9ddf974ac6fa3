"""Devices that come and go: the kernel's events, and a serial device that is opened again whenever it is back."""

from .replugged import SerialDevices as SerialDevices
from .replugged import serial_device as serial_device
from .uevents import DeviceEvent as DeviceEvent
from .uevents import DeviceEvents as DeviceEvents
from .uevents import parsed as parsed
from .uevents import watch_devices as watch_devices
