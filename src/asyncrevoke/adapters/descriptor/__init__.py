"""A descriptor number, revoked from code that does not know of it."""

from .descriptor import Descriptor as Descriptor
