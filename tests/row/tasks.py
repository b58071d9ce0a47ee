"""A mapped class and all that can be kept beside it, shared by tests of this folder."""

from __future__ import annotations

from typing import Any

from pydantic import BaseModel
from sqlalchemy.orm import DeclarativeBase, Mapped, mapped_column

from sa_wfstate import PydanticJSON, WorkflowStateMixin
from sa_wfstate.dedup import ActionDedupMixin
from sa_wfstate.history import HistoryMixin
from sa_wfstate.outbox import IntentMixin
from sa_wfstate.projection import ProjectionMixin


class Base(DeclarativeBase):
    """The declarative base of these classes."""


class Job(BaseModel):
    """The state of a task."""

    status: str = "new"
    note: str = ""
    free: dict[str, Any] = {}


class Task(WorkflowStateMixin[Job], Base):
    """A workflow with one more payload."""

    __tablename__ = "tasks"

    extra: Mapped[Any] = mapped_column(PydanticJSON(Any), nullable=True)


class TaskHistory(HistoryMixin, Base):
    """The versions of tasks."""

    __tablename__ = "task_history"


class TaskActions(ActionDedupMixin, Base):
    """The actions of tasks that were processed."""

    __tablename__ = "task_actions"


class TaskIntents(IntentMixin, Base):
    """The intents of tasks."""

    __tablename__ = "task_intents"


class TaskView(ProjectionMixin, Base):
    """What is shown of tasks."""

    __tablename__ = "task_view"
