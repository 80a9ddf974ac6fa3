"""Devices that several may use, and that are taken away from all of them when they are unplugged."""

from .device import Device as Device
from .stream import DeviceStream as DeviceStream
