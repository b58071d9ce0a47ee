"""Hooks: called by services and workers, for logs and metrics.

Subclass :class:`Hooks` and override the methods of interest, or take one of the
adapters. Durations are in seconds. An error that a hook raises is logged and goes no
further: the state may be committed by then.

The adapters are imported on first use.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

from .base import Hooks

if TYPE_CHECKING:
    from .logging import LoggingHooks
    from .opentelemetry import OpenTelemetryHooks
    from .prometheus import PrometheusHooks

__all__ = ["Hooks", "LoggingHooks", "OpenTelemetryHooks", "PrometheusHooks"]

_ADAPTERS = {
    "LoggingHooks": "logging",
    "OpenTelemetryHooks": "opentelemetry",
    "PrometheusHooks": "prometheus",
}


def __getattr__(name: str) -> Any:
    if name not in _ADAPTERS:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(f".{_ADAPTERS[name]}", __name__), name)
