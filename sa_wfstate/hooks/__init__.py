"""Hooks: metrics, tracing and logs of services and workers."""

from .base import Hooks
from .logging import LoggingHooks
from .metrics import OpenTelemetryHooks, PrometheusHooks

__all__ = ["Hooks", "LoggingHooks", "OpenTelemetryHooks", "PrometheusHooks"]
