"""Projections: read models that follow the commits, and their watermarks."""

from ..values.public_names import publish
from ..values.reports import ProjectionBatch
from .definition import Projection, ProjectionMixin
from .lag import ProjectionLag, measure_lag
from .store import ProjectionRead, ProjectionSource, ProjectionStore
from .sweep import Swept, rebuild
from .watermarks import WatermarkMixin
from .worker import ProjectionWorker

__all__ = [
    "Projection",
    "ProjectionBatch",
    "ProjectionLag",
    "ProjectionMixin",
    "ProjectionRead",
    "ProjectionSource",
    "ProjectionStore",
    "ProjectionWorker",
    "Swept",
    "WatermarkMixin",
    "measure_lag",
    "rebuild",
]

publish(globals())
