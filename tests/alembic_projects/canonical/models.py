"""The canonical tables, migrated by the application itself."""

from __future__ import annotations

from sa_wfstate.canonical import CanonicalBase as Base

__all__ = ["Base"]
