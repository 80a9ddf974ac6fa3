"""Descriptors lent to another process, and taken back by the kernel's own means, or relayed. The table is in docs/lending.md."""

from .loan import Loan as Loan, lend as lend
from .means import (
    DRIVERS as DRIVERS,
    EVDEV as EVDEV,
    HIDRAW as HIDRAW,
    SOCKET as SOCKET,
    TERMINAL as TERMINAL,
    Means as Means,
    means_for as means_for,
)
