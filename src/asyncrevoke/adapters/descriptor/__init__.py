"""A descriptor number that is taken away from code that knows nothing of it."""

from .descriptor import Descriptor as Descriptor
