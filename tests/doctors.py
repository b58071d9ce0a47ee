"""Doctors and wards: a decision on one row depends on another that is only read."""

from __future__ import annotations

from pydantic import BaseModel
from sqlalchemy.orm import DeclarativeBase

from sa_wfstate import WorkflowStateMixin
from sa_wfstate.dedup import ActionDedupMixin


class Base(DeclarativeBase):
    """The declarative base of these classes."""


class OnCall(BaseModel):
    """Whether a doctor, or a ward, is on call."""

    on_call: bool = True


class Doctor(WorkflowStateMixin[OnCall], Base):
    """One of those of whom at least one is to be on call."""

    __tablename__ = "doctors"


class Ward(WorkflowStateMixin[OnCall], Base):
    """A row of another class."""

    __tablename__ = "wards"


class DoctorDedup(ActionDedupMixin, Base):
    """The actions of doctors that were processed."""

    __tablename__ = "doctor_dedup"
