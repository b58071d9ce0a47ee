"""Triggers of an application, or of whoever owns the database."""

from __future__ import annotations

from typing import TYPE_CHECKING

from sqlalchemy import text

if TYPE_CHECKING:
    from sqlalchemy import Engine


def before_update(engine: Engine, body: str, *, key: str | None = None) -> None:
    """Have each UPDATE of ``orders``, or of that row, go through *body* first."""
    condition = "" if key is None else f"WHEN (OLD.workflow_key = '{key}')"
    with engine.begin() as connection:
        connection.execute(
            text(
                "CREATE FUNCTION note() RETURNS trigger LANGUAGE plpgsql AS"
                f" $$ BEGIN {body}; END $$"
            )
        )
        connection.execute(
            text(
                "CREATE TRIGGER note BEFORE UPDATE ON orders FOR EACH ROW"
                f" {condition} EXECUTE FUNCTION note()"
            )
        )
