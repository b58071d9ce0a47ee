"""Flask-SQLAlchemy: models derive from ``db.Model``, writers use ``db.session``."""

from __future__ import annotations

from typing import Any

import pytest
from pydantic import BaseModel
from sqlalchemy import Engine
from sqlalchemy.orm import DeclarativeBase, Session, mapped_column

from sa_wfstate import StateConflict, WorkflowStateMixin, get_state

flask = pytest.importorskip("flask")
flask_sqlalchemy = pytest.importorskip("flask_sqlalchemy")


class OrderState(BaseModel):
    status: str = "new"


@pytest.mark.parametrize("version", ["2.x", "3.x"])
def test_conflict_reaches_an_error_handler(
    engine: Engine, migrate: Any, version: str
) -> None:
    """Of models in either style, with ``db.Column`` or with ``Mapped``."""
    if version == "2.x":
        db = flask_sqlalchemy.SQLAlchemy()
        column: Any = db.Column(db.Integer, primary_key=True)
    else:

        class Base(DeclarativeBase):
            pass

        db = flask_sqlalchemy.SQLAlchemy(model_class=Base)
        column = mapped_column(db.Integer, primary_key=True)

    class Order(WorkflowStateMixin[OrderState], db.Model):
        id = column

    app = flask.Flask("shop")
    app.config["SQLALCHEMY_DATABASE_URI"] = engine.url
    db.init_app(app)
    migrate(db.metadata)

    @app.errorhandler(StateConflict)
    def answer(conflict: StateConflict) -> Any:
        return str(conflict), 409

    @app.post("/<status>")
    def write(status: str) -> str:
        order = db.session.scalars(db.select(Order)).one()
        if status == "late":
            with Session(db.engine) as other:
                other.scalars(db.select(Order)).one().state.status = "early"
                other.commit()
        order.state.status = status
        db.session.commit()
        return order.state.status

    with app.app_context():
        db.session.add(Order(workflow_key="o-1", state=OrderState()))
        db.session.commit()
        client = app.test_client()
        assert client.post("/paid").text == "paid"
        lost = client.post("/late")
        assert (lost.status_code, "found 3" in lost.text) == (409, True)
        db.session.rollback()
        assert get_state(db.session, Order, "o-1").state.status == "early"
        db.session.remove()
        db.engine.dispose()
