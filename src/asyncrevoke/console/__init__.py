"""A console server, and the command line: `asyncrevoke share`, `attach`, `ls`, `revoke`, `demo`."""

from .server import host as host
from .share import Share as Share, read_config as read_config
