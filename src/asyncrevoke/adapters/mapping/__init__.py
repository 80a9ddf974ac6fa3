"""A file in memory that can be revoked, and a search for code that keeps views of it."""

from .holders import Holder as Holder
from .mapping import Mapping as Mapping
