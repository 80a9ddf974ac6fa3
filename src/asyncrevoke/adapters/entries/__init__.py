"""A tree of named entries with handlers, as in procfs, debugfs and sysfs."""

from .directory import Directory as Directory
from .directory import Entry as Entry
from .file import Handlers as Handlers
from .file import OpenFile as OpenFile
from .file import Operation as Operation
