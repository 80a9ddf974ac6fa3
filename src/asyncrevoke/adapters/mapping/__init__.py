"""A file in memory that is taken away, and who keeps views of it."""

from .holders import Holder as Holder
from .mapping import Mapping as Mapping
