"""The commands ``show``, ``history``, ``diff`` and ``list``, which only read."""

from __future__ import annotations

import json
from datetime import timedelta
from typing import TYPE_CHECKING, Any

from sqlalchemy import func, select
from sqlalchemy.orm import Session

from ..errors import VersionNotInHistory
from ..history.diff import diff_json, follow_patch
from ..history.queries import diff_versions, get_version, list_versions
from ..orm.entity import statements_of
from ..projection.definition import Projection
from ..row.columns import columns_of
from ..store.api import connection_of, get_state
from . import arguments
from .screen import console, cut, print_json, print_table, short, who
from .targets import CommandError, load

if TYPE_CHECKING:
    import argparse

    from sqlalchemy import Engine

    from ..values.snapshot import WorkflowSnapshot


def add_show(command: argparse.ArgumentParser) -> None:
    """Declare the arguments of ``show``."""
    arguments.add_entity(command)
    arguments.add_key(command)
    command.add_argument(
        "--version", type=arguments.positive, help="a version in the history"
    )


def show(engine: Engine, entity: Any, options: argparse.Namespace) -> int:
    """Show a workflow as it is, or as it was."""
    key = arguments.key_of(entity, options)
    with Session(engine) as session:
        if options.version is None:
            snapshot = get_state(session, entity, key)
        else:
            snapshot = get_version(session, entity, key, options.version)
    facts = _facts(entity, snapshot)
    if options.json:
        print_json(facts)
        return 0
    screen = console()
    from rich.json import JSON
    from rich.panel import Panel
    from rich.text import Text

    title = f"{entity.__name__} {snapshot.workflow_key!r} version {snapshot.version}"
    written = f"{snapshot.updated_at:%Y-%m-%d %H:%M:%S %Z}  {who(snapshot.provenance)}"
    state = JSON(json.dumps(facts["state"]))
    if screen.is_terminal:
        panel = Panel(
            state, title=Text(title), subtitle=Text(written), title_align="left"
        )
        screen.print(panel)
    else:
        for part in (Text(title), Text(written), state):
            screen.print(part, soft_wrap=True)
    return 0


def add_history(command: argparse.ArgumentParser) -> None:
    """Declare the arguments of ``history``."""
    arguments.add_entity(command)
    arguments.add_key(command)
    arguments.add_full(command)
    text = "at most so many, the newest"
    command.add_argument("--limit", type=arguments.positive, default=20, help=text)


def history(engine: Engine, entity: Any, options: argparse.Namespace) -> int:
    """List who changed what, with the values, when, by which action."""
    key = arguments.key_of(entity, options)
    with Session(engine) as session:
        # One more than is shown, to compare the oldest with.
        found = list_versions(session, entity, key, limit=options.limit + 1)
        if not found:
            get_state(session, entity, key)  # Raises for an unknown key.
            raise VersionNotInHistory(entity.__name__, key, None)
    rows = [
        (snapshot, earlier, _changes(entity, earlier, snapshot))
        for snapshot, earlier in zip(found, [*found[1:], None], strict=True)
    ][: options.limit]
    if options.json:
        keys = ("version", "updated_at", "schema_version", "provenance")
        print_json(
            [
                {**{key: _facts(entity, one)[key] for key in keys}, "changes": changes}
                for one, _, changes in rows
            ]
        )
        return 0
    print_table(
        f"{entity.__name__} {key!r}",
        ("version", "written at", "by", "changed"),
        (
            (
                snapshot.version,
                f"{snapshot.updated_at:%Y-%m-%d %H:%M:%S}",
                who(snapshot.provenance, full=options.full),
                "\n".join(_lines(entity, earlier, changes, full=options.full)),
            )
            for snapshot, earlier, changes in rows
        ),
    )
    return 0


def _changes(
    entity: Any, before: WorkflowSnapshot[Any] | None, after: WorkflowSnapshot[Any]
) -> list[dict[str, Any]]:
    """Return the changes; none if the version before is not in the history."""
    if before is None or after.version == 1:
        return [{"op": "add", "path": ""}] if after.version == 1 else []
    return diff_json(_dump(entity, before), _dump(entity, after))


def _lines(
    entity: Any,
    before: WorkflowSnapshot[Any] | None,
    changes: list[dict[str, Any]],
    *,
    full: bool,
) -> list[str]:
    """Return a line per change, with the old value and the new one."""
    if before is None or changes[:1] == [{"op": "add", "path": ""}]:
        return ["created" for _ in changes]
    lines = []
    for change, old, new in follow_patch(_dump(entity, before), changes):
        values = [each if full else cut(each) for each in (old, new) if each]
        lines.append(f"{change['op']} {change['path'] or '/'} {' → '.join(values)}")
    return lines


def add_diff(command: argparse.ArgumentParser) -> None:
    """Declare the arguments of ``diff``."""
    arguments.add_entity(command)
    arguments.add_key(command)
    command.add_argument("from_version", metavar="FROM", type=arguments.positive)
    command.add_argument("to_version", metavar="TO", type=arguments.positive)


def diff(engine: Engine, entity: Any, options: argparse.Namespace) -> int:
    """Show what changed between two versions."""
    key = arguments.key_of(entity, options)
    versions = (options.from_version, options.to_version)
    with Session(engine) as session:
        changes = diff_versions(session, entity, key, *versions)
        before = get_version(session, entity, key, versions[0])
    if options.json:
        print_json(changes)
        return 0
    screen = console()
    from rich.text import Text

    for change, old, new in follow_patch(_dump(entity, before), changes):
        line = Text(f"{change['op']:8}{change['path'] or '/'}")
        for text, style in ((old, "red"), (new, "green")):
            if text is not None:
                line.append("  ").append(text, style=style)
        screen.print(line, soft_wrap=True)
    return 0


def add_list(command: argparse.ArgumentParser) -> None:
    """Declare the arguments of ``list``."""
    arguments.add_entity(command)
    command.add_argument("--tag", help="of the projection; needs --projection")
    command.add_argument(
        "--projection", metavar="NAME", help="a Projection, as app.models:orders"
    )
    command.add_argument(
        "--unchanged-for",
        metavar="AGE",
        type=arguments.moment,
        help="whose version is that old: 12h, 90d, or a time",
    )
    command.add_argument(
        "--schema-version", type=arguments.positive, help="of this one only"
    )
    command.add_argument("--after", metavar="KEY", help="the keys after this one")
    text = "at most so many, in the order of the keys"
    command.add_argument("--limit", type=arguments.positive, default=20, help=text)


def list_workflows(engine: Engine, entity: Any, options: argparse.Namespace) -> int:
    """List workflows by tag, by the age of their version, by schema version."""
    statements = statements_of(entity)
    c = columns_of(statements.table)
    names = ["workflow_key", "version", "updated_at", "schema_version", "provenance"]
    query = select(statements.keys.value, *(getattr(c, name) for name in names[1:]))
    query = query.select_from(statements.table).where(statements.own_rows)
    if options.projection is not None:
        projection = _projection(options.projection)
        projected = projection.table
        key = statements.keys.stored(projection.stored_key)
        query = query.add_columns(projected.c.tag).join(
            projected, projected.c.workflow_key == key
        )
        names.append("tag")
        if options.tag is not None:
            query = query.where(projected.c.tag == options.tag)
    elif options.tag is not None:
        raise CommandError("--tag is a column of a projection; give --projection too")
    if options.schema_version is not None:
        query = query.where(c.schema_version == options.schema_version)
    if options.unchanged_for is not None:
        since = options.unchanged_for
        now = func.now()
        query = query.where(
            c.updated_at < (now - since if isinstance(since, timedelta) else since)
        )
    if options.after is not None:
        after = statements.key_type.parse(statements.entity, options.after)
        query = query.where(statements.keys.after(after))
    query = query.order_by(*statements.keys.columns).limit(options.limit)
    with Session(engine) as session:
        connection = connection_of(session, statements, reads=True)
        rows = [dict(zip(names, row, strict=True)) for row in connection.execute(query)]
    for row in rows:
        provenance = row.pop("provenance")
        row["effect_id"] = provenance.effect_id
        row["workflow_key"] = arguments.shown(row["workflow_key"])
    if options.json:
        print_json(rows)
        return 0
    print_table(
        f"{entity.__name__}, {len(rows)} shown",
        [name.replace("_", " ") for name in rows[0]] if rows else ["no workflow"],
        (
            [
                f"{value:%Y-%m-%d %H:%M:%S}" if name == "updated_at" else short(value)
                for name, value in row.items()
            ]
            for row in rows
        ),
    )
    return 0


def _projection(name: str) -> Projection[Any]:
    projection = load(name)
    if not isinstance(projection, Projection):
        raise CommandError(f"{name} is not a Projection")
    return projection


def _facts(entity: Any, snapshot: WorkflowSnapshot[Any]) -> dict[str, Any]:
    # The state as it is stored: Pydantic would omit aliases.
    facts = snapshot.model_dump(mode="json", exclude={"state"})
    return facts | {"state": json.loads(_dump(entity, snapshot))}


def _dump(entity: Any, snapshot: WorkflowSnapshot[Any]) -> str:
    return statements_of(entity).state_type.dump(snapshot.state)
