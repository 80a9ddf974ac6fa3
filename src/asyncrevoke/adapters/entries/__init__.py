"""A tree of named entries with handlers, as in procfs, debugfs and sysfs."""

from .directory import Directory as Directory, Entry as Entry
from .file import Handlers as Handlers, OpenFile as OpenFile, Operation as Operation
