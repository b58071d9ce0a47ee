"""A workflow and all that is beside it, hash-partitioned on one server."""

from __future__ import annotations

from pydantic import BaseModel
from sqlalchemy import MetaData
from sqlalchemy.orm import DeclarativeBase

from sa_wfstate import WorkflowStateMixin
from sa_wfstate.dedup import ActionDedupMixin
from sa_wfstate.history import HistoryMixin
from sa_wfstate.outbox import IntentMixin
from sa_wfstate.projection import ProjectionMixin, WatermarkMixin

BY_KEY = {"postgresql_partition_by": "HASH (workflow_key)"}


class Base(DeclarativeBase):
    metadata = MetaData()


class OrderState(BaseModel):
    status: str = "new"


class Order(WorkflowStateMixin[OrderState], Base):
    __tablename__ = "orders"
    __table_args__ = BY_KEY
    __workflow_indexes__ = ("recent",)


class OrderHistory(HistoryMixin, Base):
    __tablename__ = "order_history"
    __table_args__ = BY_KEY


class OrderAction(ActionDedupMixin, Base):
    __tablename__ = "order_actions"
    __table_args__ = BY_KEY


class OrderIntent(IntentMixin, Base):
    __tablename__ = "order_intents"
    __table_args__ = BY_KEY


class OrderRow(ProjectionMixin, Base):
    __tablename__ = "order_rows"
    __table_args__ = BY_KEY


class Watermark(WatermarkMixin, Base):
    __tablename__ = "watermarks"
