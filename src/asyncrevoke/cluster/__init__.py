"""Revocation on every host, over a log that users already run."""

from .cluster import (
    Admission as Admission,
    Cluster as Cluster,
    ClusterEvent as ClusterEvent,
    NotVouchedError as NotVouchedError,
)
from .entry import Entry as Entry, LogError as LogError, LogRefusedError as LogRefusedError, Position as Position
from .log import Batch as Batch, Log as Log, Member as Member
from .memory import MemoryLog as MemoryLog
from .report import ClusterReport as ClusterReport, HostReport as HostReport
from .revoker import Revoker as Revoker
from .urls import open_log as open_log
