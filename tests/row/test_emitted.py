"""The statements that the library emits can be sent to one shard.

A statement for a caller compares the workflow key with its parameters, so that a
partitioned or distributed table has one place for it. The exceptions are listed here.
"""

from __future__ import annotations

import re
from typing import TYPE_CHECKING, Any, Final

from sqlalchemy import event

from sa_wfstate.store.connections import Connections

from ..drives import DRIVES, Base

if TYPE_CHECKING:
    import pytest
    from sqlalchemy import Engine

BY_KEY: Final = re.compile(
    r"workflow_key = %\(|workflow_key IN \(%\(|workflow_key = any\(%\("
    # Of the rows of an outbox; of a new row, from parameters or arrays.
    r"|\.workflow_key, [^()]*\) IN \(\(%\("
    r"|INSERT INTO \w+ \(workflow_key[^()]*\) (VALUES|SELECT wfs_new)"
)
"""A comparison of the key, or a new row."""

WITHOUT_KEY: Final[dict[str, str]] = {
    "SAVEPOINT": "names no row",
    "SET LOCAL": "names no row",
    "SELECT now() AS now_1": "names no row",
    "FROM pg_extension": "asks what the server is, once for each pool",
    "FROM pg_stat_activity": "a worker asks which transactions are open",
    "SELECT true AS": "names no row",
    "watermarks": "a watermark is of a projection, not of a workflow",
    "DELETE FROM done": "cleanup_expired() looks at the whole log",
    "WITH due AS": "a dispatcher looks for intents of any workflow",
    "WHERE mail.dead_at IS NOT NULL": "revive_dead() of all workflows",
    "FROM kept_history ORDER BY": "trim_history() looks at the whole history",
    "FROM jobs LEFT OUTER JOIN job_rows": "a worker follows the whole table",
    "FROM shown LEFT OUTER JOIN shown_rows": "rebuild() reads the whole table",
    "_rows WHERE NOT (EXISTS (SELECT": "a sweep looks for rows without a workflow",
    "FROM aged WHERE aged.schema_version": "upcast_all() goes from key to key",
    "GROUP BY aged.schema_version": "count_schema_versions() counts all rows",
    "state #>> '{\"status\"}'": "the application's own query",
}
"""Statements without a key, by a part of their text, each with its reason."""

LOCKS_OF_MANY: Final[dict[str, str]] = {
    "ORDER BY jobs.workflow_key FOR UPDATE": "several deletions in one flush",
    "FROM done WHERE done.expires_at": "cleanup_expired() skips rows that are locked",
    "WITH due AS": "a dispatcher leases the intents of a batch",
    "FROM watermarks": "one row of a table that is not distributed",
    "FROM kept_history ORDER BY": "trim_history() skips rows that are locked",
    "FROM aged WHERE aged.schema_version": "upcast_all() locks the rows of a batch",
    "JOIN unnest(": "try_patch_many() validates what it is going to write",
}
"""Statements that lock rows of several keys; Citus refuses those of several shards."""

SAVEPOINTS: Final = {
    "savepoint_is_rolled_back": "of the application",
    "projection_follows": "a worker writes row by row if a batch is refused",
}
"""Drives with savepoints."""

CLOCK: Final = re.compile(r"\b(now|\w+_timestamp)\(\)")


def emitted(engine: Engine) -> dict[str, str]:
    """Run the drives; return what they have sent, and the drive that sent it first."""
    found: dict[str, str] = {}
    running = ""

    def note(_: object, __: object, statement: str, *___: Any) -> None:
        found.setdefault(" ".join(statement.split()), running)

    event.listen(engine, "before_cursor_execute", note)
    for name, drive in DRIVES.items():
        running = name
        drive(engine)
    event.remove(engine, "before_cursor_execute", note)
    return found


def unlisted(statements: list[str], pins: dict[str, str]) -> list[str]:
    """Return those of *statements* that are in no list; each pin must be in use."""
    unused = [pin for pin in pins if not any(pin in each for each in statements)]
    assert unused == []
    return [each for each in statements if not any(pin in each for pin in pins)]


def test_statements_name_their_keys(
    engine: Engine, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Each compares the key, locks one row, and calls no clock where Citus refuses it.

    Citus allows no volatile function in an UPDATE, and no clock at all in what ON
    CONFLICT sets and in what RETURNING returns. It refuses locks in several shards.
    """
    Base.metadata.create_all(engine)
    # There no statement writes to two tables.
    monkeypatch.setattr(Connections, "plain", lambda _: False)
    statements = emitted(engine)
    assert len(statements) > 60
    keyless = [each for each in statements if not BY_KEY.search(each)]
    assert unlisted(keyless, WITHOUT_KEY) == []

    locks = [each for each in statements if re.search(r"FOR (NO KEY )?UPDATE", each)]
    several = [each for each in locks if "workflow_key = %(" not in each]
    assert unlisted(several, LOCKS_OF_MANY) == []

    for statement in statements:
        if "UPDATE " in statement.partition(" SET ")[0]:
            assert "clock_timestamp()" not in statement
        for place in ("DO UPDATE SET", "RETURNING"):
            after = statement.partition(place)[2].partition(" WHERE ")[0]
            assert not CLOCK.search(after), statement

    assert {
        drive for text, drive in statements.items() if "SAVEPOINT" in text
    } == SAVEPOINTS.keys()
