"""A pytest plugin: SQLAlchemy's tests run while a workflow class is mapped.

Its fixtures call ``clear_mappers()``, so the class is mapped anew for each test. Those
of its events remove all listeners from mappers, ours included.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest
from pydantic import BaseModel
from sqlalchemy import event
from sqlalchemy.orm import DeclarativeBase, Mapper

from sa_wfstate import WorkflowStateMixin
from sa_wfstate.orm import attributes, events

if TYPE_CHECKING:
    from collections.abc import Iterator


class OrderState(BaseModel):
    status: str = "new"


@pytest.hookimpl(wrapper=True)
def pytest_runtest_call() -> Iterator[None]:
    """Map a workflow class, and configure it, before the test itself runs."""
    if not event.contains(Mapper, events.MAPPED, attributes.after_mapper_constructed):
        for target, name, listener, options in events.LISTENERS:
            if target in {WorkflowStateMixin, Mapper}:
                event.listen(target, name, listener, **options)

    class Base(DeclarativeBase):
        pass

    class Order(WorkflowStateMixin[OrderState], Base):
        __tablename__ = "sa_wfstate_orders"

    Base.registry.configure()
    try:
        return (yield)
    finally:
        Base.registry.dispose()
