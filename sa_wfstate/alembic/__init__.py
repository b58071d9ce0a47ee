"""Alembic: the plugin of generated migrations, and operations for migrations.

The operations are imported on first use: Alembic imports the plugin of this package
while it is itself half imported.
"""

from __future__ import annotations

from importlib import import_module
from typing import Any

__all__ = [
    "create_hash_partitions",
    "create_version_trigger",
    "distribute_table",
    "drop_version_trigger",
    "replace_workflow_indexes",
    "upcast_workflow_state",
]
_OF_SHARDING = {
    "create_hash_partitions",
    "distribute_table",
    "replace_workflow_indexes",
}


def __getattr__(name: str) -> Any:
    if name not in __all__:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    try:
        module = ".sharding" if name in _OF_SHARDING else ".operations"
        return getattr(import_module(module, __name__), name)
    except ModuleNotFoundError as error:
        if error.name != "alembic":
            raise
        message = f"{name} needs Alembic: pip install 'sa-wfstate[alembic]'"
        raise ImportError(message, name="alembic") from error
