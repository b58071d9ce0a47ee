"""What the database and the clients say of the same commits, and whether it agrees."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass, field
from typing import Any

from pydantic import BaseModel
from sqlalchemy import Engine, text
from sqlalchemy.orm import DeclarativeBase

from sa_wfstate import WorkflowStateMixin
from sa_wfstate.dedup import ActionDedupMixin

AUDIT = """
CREATE TABLE audit (
    workflow_key text, version bigint, effect_id text, action_id text,
    PRIMARY KEY (workflow_key, version)
);
CREATE FUNCTION note() RETURNS trigger LANGUAGE plpgsql AS $$
BEGIN
    INSERT INTO audit
    VALUES (NEW.workflow_key, NEW.version, NEW.provenance->>'effect_id',
            NEW.provenance->>'action_id');
    RETURN NULL;
END $$;
CREATE TRIGGER note AFTER INSERT OR UPDATE ON counters
FOR EACH ROW EXECUTE FUNCTION note();
"""


class Base(DeclarativeBase):
    pass


class Count(BaseModel):
    """How many commits the writer knows of: one more than what it has read."""

    value: int = 1


class Tally(WorkflowStateMixin[Count], Base):
    __tablename__ = "counters"


class TallyActions(ActionDedupMixin, Base):
    __tablename__ = "counter_actions"


class Line(WorkflowStateMixin[Count], Base):
    """Without the trigger, so that what waits for a key is a chain; for services only.

    Each version is one of an action, and its claim says so.
    """

    __tablename__ = "lines"


class LineActions(ActionDedupMixin, Base):
    __tablename__ = "line_actions"


@dataclass
class Claims:
    """What clients were told of their effects."""

    done: dict[str, tuple[str, int]] = field(default_factory=dict)
    not_done: set[str] = field(default_factory=set)
    unknown: set[str] = field(default_factory=set)
    handled: dict[str, tuple[str, int]] = field(default_factory=dict)
    """Of actions."""

    lined: dict[str, tuple[str, int]] = field(default_factory=dict)
    """Of actions of lines."""

    unhandled: set[str] = field(default_factory=set)
    """Actions that a service has given up."""

    replayed: int = 0


def prepare(engine: Engine) -> None:
    """Make the tables, and a trigger that notes each version in its transaction."""
    Base.metadata.create_all(engine)
    with engine.begin() as connection:
        connection.execute(text(AUDIT))


def check(engine: Engine, claims: Claims) -> dict[str, int]:
    """Fail unless nothing was lost, doubled, or told wrongly; return the figures."""
    with engine.connect() as connection:
        audit = connection.execute(text("SELECT * FROM audit ORDER BY 1, 2")).all()
        logged = connection.execute(
            text("SELECT action_id::text, workflow_key, version FROM counter_actions")
        ).all()
        rows = connection.execute(
            text(
                "SELECT workflow_key, version, (state->>'value')::bigint FROM counters"
            )
        ).all()
    chains: dict[str, list[int]] = {}
    check_actions(audit, logged, claims)
    check_lines(engine, claims)
    for key, version, *_ in audit:
        chains.setdefault(key, []).append(version)
    for key, version, value in rows:
        assert chains[key] == list(range(1, version + 1)), f"{key} has gaps"
        assert value == version, f"{key}: {version - value} updates are lost"
    effects = Counter(effect for _, _, effect, _ in audit)
    doubled = {effect for effect, times in effects.items() if times > 1}
    assert not doubled, f"{len(doubled)} effects are doubled"
    written = {
        effect: (key, version)
        for key, version, effect, action in audit
        if action is None
    }
    wrong = {e for e, place in claims.done.items() if written.get(e) != place}
    assert not wrong, f"{len(wrong)} acknowledged effects are not there"
    false = claims.not_done & written.keys()
    assert not false, f"{len(false)} effects are there, though it was denied"
    untold = written.keys() - claims.done.keys() - claims.unknown
    assert not untold, f"{len(untold)} effects are there that nobody was told of"
    return {
        "versions": len(audit),
        "actions": len(claims.handled),
        "actions of lines": len(claims.lined),
        "acknowledged": len(claims.done),
        "replayed": claims.replayed,
        "denied": len(claims.not_done),
        "unknown, done": len(claims.unknown & written.keys()),
        "unknown, not done": len(claims.unknown - written.keys()),
    }


def check_actions(audit: Any, logged: Any, claims: Claims) -> None:
    """Fail unless each action took effect once, and its claim says where."""
    effects = Counter(action for *_, action in audit if action is not None)
    doubled = {action for action, times in effects.items() if times > 1}
    assert not doubled, f"{len(doubled)} actions took effect twice"
    places = {
        action: (key, version)
        for key, version, _, action in audit
        if action is not None
    }
    assert {action: (key, version) for action, key, version in logged} == places
    wrong = {a for a, place in claims.handled.items() if places.get(a) != place}
    assert not wrong, f"{len(wrong)} acknowledged actions are not there"
    untold = places.keys() - claims.handled.keys() - claims.unhandled
    assert not untold, f"{len(untold)} actions are there that no caller was told of"


def check_lines(engine: Engine, claims: Claims) -> None:
    """Fail unless each version of a line is that of one action, as its caller knows."""
    with engine.connect() as connection:
        rows = connection.execute(
            text("SELECT workflow_key, version, (state->>'value')::bigint FROM lines")
        ).all()
        logged = connection.execute(
            text("SELECT action_id::text, workflow_key, version FROM line_actions")
        ).all()
    versions: dict[str, list[int]] = {}
    for _, key, version in logged:
        versions.setdefault(key, []).append(version)
    for key, version, value in rows:
        own = sorted(versions.pop(key))
        assert own == list(range(1, version + 1)), f"{key} has gaps"
        assert value == version + 1, f"{key}: an action is lost, or doubled"
    assert not versions, f"{len(versions)} lines are not there"
    places = {action: (key, version) for action, key, version in logged}
    wrong = {a for a, place in claims.lined.items() if places.get(a) != place}
    assert not wrong, f"{len(wrong)} acknowledged actions of lines are not there"
    untold = places.keys() - claims.lined.keys() - claims.unhandled
    assert not untold, f"{len(untold)} of lines are there that no caller was told of"
