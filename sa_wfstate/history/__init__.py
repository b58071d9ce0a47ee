"""History: an audit trail of every version, written in each commit's transaction."""

from ..values.public_names import publish
from .queries import (
    diff_versions,
    get_state_as_of,
    get_version,
    list_versions,
    restore_version,
    trim_history,
)
from .table import HistoryMixin, keep_history

__all__ = [
    "HistoryMixin",
    "diff_versions",
    "get_state_as_of",
    "get_version",
    "keep_history",
    "list_versions",
    "restore_version",
    "trim_history",
]

publish(globals())
