"""celery and procrastinate: a conflict survives the way from worker to caller."""

from __future__ import annotations

from typing import Any

import pytest
from pydantic import BaseModel
from sqlalchemy import Engine
from sqlalchemy.orm import DeclarativeBase, Session, sessionmaker

from sa_wfstate import StateConflict, WorkflowStateMixin, run_transaction


class Base(DeclarativeBase):
    pass


class OrderState(BaseModel):
    status: str = "new"
    paid: int = 0


class Order(WorkflowStateMixin[OrderState], Base):
    __tablename__ = "orders"


@pytest.fixture
def lose(engine: Engine, migrate: Any) -> Any:
    """Return a function that loses a race on order o-1, in a worker."""
    migrate(Base.metadata)
    with Session(engine) as session, session.begin():
        session.add(Order(workflow_key="o-1", state=OrderState()))

    def work() -> None:
        with Session(engine) as one, Session(engine) as two:
            late = one.get_one(Order, "o-1")
            two.get_one(Order, "o-1").state.paid += 1
            two.commit()
            late.state.status = "late"
            one.commit()

    return work


def test_celery_retries_and_hands_the_conflict_over(lose: Any) -> None:
    """autoretry_for takes the class; the result raises it, pickled or eager."""
    celery = pytest.importorskip("celery")
    app = celery.Celery("shop")
    app.conf.update(task_always_eager=True, task_store_eager_result=False)
    attempts = []

    @app.task(autoretry_for=(StateConflict,), max_retries=2, retry_backoff=False)
    def work() -> None:
        attempts.append(1)
        lose()

    result = work.apply(retries=0)
    with pytest.raises(StateConflict) as raised:
        result.get()
    assert len(attempts) == 3
    backend = app.backend
    backend.serializer = "pickle"
    again = backend.exception_to_python(backend.prepare_exception(raised.value))
    assert isinstance(again, StateConflict)
    assert (again.workflow_key, again.actual_version) == ("o-1", 4)


async def test_procrastinate_retries_a_conflict(engine: Engine, lose: Any) -> None:
    """Its retry strategy takes the class; the second attempt wins."""
    procrastinate = pytest.importorskip("procrastinate")
    from procrastinate.testing import InMemoryConnector

    app = procrastinate.App(connector=InMemoryConnector())
    attempts: list[bool] = []
    sessions = sessionmaker(engine)
    retry = procrastinate.RetryStrategy(
        max_attempts=3, retry_exceptions=[StateConflict]
    )

    @app.task(name="work", retry=retry)
    def work() -> None:
        attempts.append(True)
        if len(attempts) == 1:
            lose()
        run_transaction(sessions, pay)

    def pay(session: Session) -> None:
        session.get_one(Order, "o-1").state.status = "paid"

    async with app.open_async():
        await work.defer_async()
        await app.run_worker_async(wait=False, listen_notify=False)
    assert len(attempts) == 2
    with sessions() as session:
        assert session.get_one(Order, "o-1").state.status == "paid"
