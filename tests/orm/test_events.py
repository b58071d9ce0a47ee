"""What the package listens to, in which order, and from when on."""

from __future__ import annotations

import ast
import subprocess
import sys
from pathlib import Path
from typing import Any

from sqlalchemy.orm import DeclarativeBase, Session

import sa_wfstate
from sa_wfstate import WorkflowStateMixin
from sa_wfstate.orm.events import LISTENERS, METHODS

TABLE = """
Mapper instrument_class: orm.row_keys.instrument_class
object attribute_instrument: orm.events._attribute_instrument
Mapper after_mapper_constructed: orm.attributes.after_mapper_constructed
Mapper after_mapper_constructed: orm.events._class_mapped
Mapper after_mapper_constructed: orm.mixin.after_mapper_constructed
Mapper after_mapper_constructed: orm.events._workflow_mapped
Mapper after_mapper_constructed: orm.schema_version.after_mapper_constructed
Mapper after_mapper_constructed: orm.unversioned.after_mapper_constructed
Mapper after_mapper_constructed: orm.rebasing.after_mapper_constructed
Mapper after_mapper_constructed: row.auxiliary.after_mapper_constructed
Session after_transaction_create: orm.events._transaction_begun
Session after_begin: orm.events._after_begin
Session do_orm_execute: orm.statement_guard.do_orm_execute
Session do_orm_execute: orm.stale_loads.do_orm_execute
WorkflowStateMixin load: orm.version_guard.load
WorkflowStateMixin refresh: orm.stale_loads.refresh
WorkflowStateMixin refresh: orm.version_guard.refresh
WorkflowStateMixin expire: orm.stale_loads.expire
Session detached_to_persistent: orm.tracking.detached_to_persistent
Session before_flush: orm.unit_of_work.before_flush
WorkflowStateMixin before_insert: orm.flush.before_insert
WorkflowStateMixin before_update: orm.flush.before_update
WorkflowStateMixin refresh_flush: orm.flush.refresh_flush
WorkflowStateMixin after_insert: orm.flush.after_write
WorkflowStateMixin after_update: orm.flush.after_update
WorkflowStateMixin before_delete: orm.flush.before_delete
WorkflowStateMixin after_delete: orm.flush.after_write
Session after_flush: orm.unit_of_work.after_flush
Session after_flush: orm.flush.after_flush
Session after_flush_postexec: orm.unit_of_work.after_flush_postexec
Session before_commit: orm.tracking.before_commit
Session after_commit: orm.flush.after_commit
Session after_rollback: orm.attempts.after_rollback
Session after_rollback: orm.tracking.after_rollback
Session after_soft_rollback: orm.tracking.after_soft_rollback
Session after_soft_rollback: orm.conflicts.after_soft_rollback
Session after_transaction_end: orm.events._transaction_ended
"""

SILENT = """
from sqlalchemy.orm import Session
methods = dict(vars(Session))
import sa_wfstate, sa_wfstate.dedup, sa_wfstate.history, sa_wfstate.outbox
import sa_wfstate.projection, sa_wfstate.testing
from sqlalchemy.orm import DeclarativeBase, Mapped, mapped_column

class Base(DeclarativeBase):
    pass

class Plain(Base):
    __tablename__ = "plain"
    id: Mapped[int] = mapped_column(primary_key=True)

dispatch = Session().dispatch
for name in dispatch._event_names:
    assert not list(getattr(dispatch, name)), name
assert methods == {**methods, **vars(Session)}
"""


class Base(DeclarativeBase):
    pass


class Order(WorkflowStateMixin[dict[str, Any]], Base):
    __tablename__ = "orders"


def name_of(listener: Any) -> str:
    """Return the module of *listener* within the package, and its name."""
    module: str = listener.__module__
    return f"{module.removeprefix('sa_wfstate.')}.{listener.__name__}"


def test_table_of_listeners_is_pinned() -> None:
    """No listener is added, lost or moved unseen: what a flush does depends on it."""
    lines = [
        f"{target.__name__} {event}: {name_of(listener)}"
        for target, event, listener, _ in LISTENERS
    ]
    assert lines == TABLE.strip().splitlines()


def test_sqlalchemy_calls_them_in_the_order_of_the_table() -> None:
    """Those of Session come before the listeners that an application adds."""
    dispatch = Session().dispatch
    for event in {event for target, event, *_ in LISTENERS if target is Session}:
        ours = [each[2] for each in LISTENERS if each[:2] == (Session, event)]
        assert list(getattr(dispatch, event))[: len(ours)] == ours


def test_methods_of_session_are_pinned() -> None:
    """Those that send no event."""
    assert {name: name_of(wrapper) for name, wrapper in METHODS.items()} == {
        "_merge": "orm.stale_loads.merge",
        "bulk_save_objects": "orm.statement_guard.bulk_save_objects",
        "_bulk_save_mappings": "orm.statement_guard.bulk_save_mappings",
    }


def test_session_is_left_alone_until_a_workflow_is_mapped() -> None:
    """A program that only imports the package has SQLAlchemy's Session as it is."""
    subprocess.run([sys.executable, "-c", SILENT], check=True)


def test_only_events_registers_listeners() -> None:
    """Every other module exports plain functions."""
    package = Path(sa_wfstate.__file__).parent
    found = set()
    for path in package.rglob("*.py"):
        for node in ast.walk(ast.parse(path.read_text("utf-8"))):
            if isinstance(node, ast.Attribute):
                names = {node.attr}
            elif isinstance(node, ast.ImportFrom):
                of_events = (node.module or "").startswith("sqlalchemy")
                names = {each.name for each in node.names if of_events}
            else:
                continue
            if names & {"event", "listen", "listens_for"}:
                found.add(path.relative_to(package).as_posix())
    assert found == {"orm/events.py"}
