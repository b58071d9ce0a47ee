"""Tables with rows are adopted: the generated migration runs up and down."""

from __future__ import annotations

from importlib import import_module
from pathlib import Path
from typing import TYPE_CHECKING, Any
from uuid import UUID

import pytest
from alembic.util import CommandError
from sqlalchemy import NullPool, create_engine, inspect, make_url
from sqlalchemy.exc import IntegrityError
from sqlalchemy.orm import Session

from sa_wfstate import Provenance, StateCommitted, get_state, try_commit

if TYPE_CHECKING:
    from collections.abc import Callable

NUMBERED = """\
CREATE TABLE orders (id SERIAL PRIMARY KEY, status VARCHAR);
INSERT INTO orders (status) VALUES ('new'), ('paid');
CREATE TABLE notes (id SERIAL PRIMARY KEY, order_id INT NOT NULL REFERENCES orders);
INSERT INTO notes (order_id) VALUES (2)"""
BY_UUID = """\
CREATE TABLE orders (id UUID PRIMARY KEY, status VARCHAR);
INSERT INTO orders VALUES ('00000000-0000-0000-0000-000000000001', 'new'),
    ('00000000-0000-0000-0000-000000000002', 'paid')"""
VERSIONED = """\
CREATE TABLE orders (id SERIAL PRIMARY KEY, order_no VARCHAR NOT NULL UNIQUE,
    lock_version BIGINT NOT NULL DEFAULT 1,
    changed_at TIMESTAMPTZ NOT NULL DEFAULT now(), status VARCHAR);
INSERT INTO orders (order_no, lock_version, status) VALUES
    ('o-1', 4, 'new'), ('o-2', 9, 'paid')"""
BEFORE = {
    "adopt_surrogate_key": (NUMBERED, "orders-2", 1),
    "adopt_uuid_key": (BY_UUID, UUID(int=2), 1),
    "adopt_version_column": (VERSIONED, "o-2", 9),
}


def filled_in(project: Any) -> None:
    """Take the comment away from the template of the generated revision."""
    (path,) = Path(project.folder, "migrations", "versions").glob("*.py")
    text = path.read_text()
    start = text.index("    # op.execute(")
    end = text.index("    # )\n", start) + len("    # )\n")
    template = text[start:end]
    path.write_text(text.replace(template, template.replace("    # ", "    ")))


def described(url: str) -> dict[str, Any]:
    """Return what there is of the table ``orders``."""
    inspector = inspect(create_engine(url, poolclass=NullPool))
    columns = inspector.get_columns("orders")
    return {
        "columns": {c["name"]: (str(c["type"]), c["nullable"]) for c in columns},
        "key": inspector.get_pk_constraint("orders")["constrained_columns"],
        "unique": inspector.get_unique_constraints("orders"),
    }


@pytest.mark.parametrize("options", ["", "render_as_batch=True"], ids=["", "batch"])
@pytest.mark.parametrize("name", BEFORE)
def test_table_with_rows_is_adopted(
    make_project: Callable[..., Any], name: str, options: str
) -> None:
    """With the template filled in; the primary key and foreign keys to it stay."""
    statements, key, version = BEFORE[name]
    project = make_project(name, options)
    project.execute(*statements.split(";\n"))
    before = described(project.url)
    with pytest.raises(CommandError, match="New upgrade operations"):
        project.check()
    revision = project.revise()
    assert "drop" not in revision[: revision.index("def downgrade")]
    with pytest.raises(IntegrityError, match="contains null values"):
        project.upgrade()
    assert described(project.url) == before
    filled_in(project)
    project.upgrade()
    project.check()
    assert described(project.url)["key"] == ["id"]
    order: Any = import_module("models").Order
    engine = create_engine(project.url, poolclass=NullPool)
    with Session(engine) as session:
        snapshot = get_state(session, order, key)
        assert (snapshot.state.status, snapshot.version) == ("paid", version)
        assert snapshot.provenance.effect_id == "adopted"
        outcome = try_commit(
            session,
            order,
            key,
            expected_version=version,
            state=snapshot.state,
            provenance=Provenance.now(),
        )
        assert isinstance(outcome, StateCommitted)
        session.commit()
    project.downgrade()
    assert described(project.url) == before


def test_empty_table_is_adopted_as_it_is(make_project: Callable[..., Any]) -> None:
    """The template is a comment only."""
    project = make_project("adopt_surrogate_key")
    create, _, notes, _ = NUMBERED.split(";\n")
    project.execute(create, notes)
    project.revise()
    project.upgrade()
    project.check()


def test_time_without_a_default_gets_one(make_project: Callable[..., Any]) -> None:
    """A base of the application set ``updated_at`` in Python, and no longer does."""
    project = make_project("adopt_surrogate_key")
    create, _, notes, _ = NUMBERED.split(";\n")
    project.execute(create, "ALTER TABLE orders ADD updated_at TIMESTAMPTZ NOT NULL")
    project.execute(notes)
    project.revise()
    project.upgrade()
    project.check()
    project.execute(
        "INSERT INTO orders (workflow_key, state, provenance) VALUES ('a', '{}', '{}')"
    )
    project.execute("ALTER TABLE orders ALTER updated_at SET DEFAULT clock_timestamp()")
    project.check()  # Another time of the server is as good.
    project.execute("DELETE FROM orders")
    project.downgrade()
    refused = "INSERT INTO orders DEFAULT VALUES"
    with pytest.raises(IntegrityError, match="updated_at"):
        project.execute(refused)


@pytest.mark.parametrize(
    ("name", "lost"),
    [
        ("adopt_uuid_key", "DROP CONSTRAINT orders_pkey"),
        ("adopt_surrogate_key", "DROP CONSTRAINT orders_workflow_key_key"),
        ("adopt_surrogate_key", "ALTER workflow_key DROP NOT NULL"),
    ],
)
def test_check_finds_a_missing_key(
    make_project: Callable[..., Any], name: str, lost: str
) -> None:
    """The primary key, the unique one, or its NOT NULL; and it is made again."""
    project = make_project(name)
    project.revise()
    project.upgrade()
    project.check()
    before = described(project.url)
    project.execute(f"ALTER TABLE orders {lost}")
    with pytest.raises(CommandError, match="New upgrade operations"):
        project.check()
    project.revise("again")
    project.upgrade()
    assert described(project.url) == before


def test_sqlite_batch_mode_adopts_a_table(
    make_project: Callable[..., Any], tmp_path: Path
) -> None:
    """It copies the table, once to add the columns and once to require them."""
    url = make_url(f"sqlite:///{tmp_path}/test.db")
    project = make_project("adopt_surrogate_key", "render_as_batch=True", url=url)
    project.execute(
        "CREATE TABLE orders (id INTEGER NOT NULL PRIMARY KEY, status VARCHAR)",
        "CREATE TABLE notes (id INTEGER NOT NULL PRIMARY KEY,"
        " order_id INTEGER NOT NULL REFERENCES orders (id))",
    )
    project.revise()
    project.upgrade()
    project.check()
    project.downgrade()
    assert set(described(project.url)["columns"]) == {"id", "status"}
