"""Hooks: called by services and workers, for logs and metrics.

Subclass :class:`Hooks` and override the methods of interest, or take one of the
adapters. Durations are in seconds. An error that a hook raises is logged and goes no
further: the state may be committed by then.
"""

from .base import Hooks
from .logging import LoggingHooks
from .opentelemetry import OpenTelemetryHooks
from .prometheus import PrometheusHooks

__all__ = ["Hooks", "LoggingHooks", "OpenTelemetryHooks", "PrometheusHooks"]
