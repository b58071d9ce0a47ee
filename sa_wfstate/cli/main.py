"""The terminal: ``python -m sa_wfstate show|history|diff app.models:Order KEY``.

These commands only read; ``upcast`` is in :mod:`.upcast`. Each imports the mapped
class, also from the working folder, and connects to the database of ``--url`` or of the
environment variable ``SA_WFSTATE_URL``. The output is tables with colours, or JSON with
``--json``. Needs the extra ``cli``.
"""

from __future__ import annotations

import argparse
import json
import os
import sys
from importlib import import_module
from typing import TYPE_CHECKING, Any

from sqlalchemy import NullPool, create_engine, make_url
from sqlalchemy.exc import ArgumentError, DBAPIError, SQLAlchemyError
from sqlalchemy.orm import Session

from ..errors import WorkflowStateError
from ..history.diff import diff_json, follow_patch
from ..history.queries import diff_versions, get_version, list_versions
from ..hooks.application_errors import outline
from ..orm.entity import statements_of
from ..store.api import get_state
from . import upcast as cli_upcast

if TYPE_CHECKING:
    from collections.abc import Sequence

    from rich.console import Console
    from sqlalchemy import URL

    from ..values.snapshot import WorkflowSnapshot


class CommandError(Exception):
    """A command that cannot be done; the text is one line."""


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command in *arguments*, by default those of the process."""
    options = _parser().parse_args(arguments)
    try:
        entity = load_entity(options.entity)
        url = database_url(options.url)
        if options.command == "upcast":
            return cli_upcast.run(url, entity, options)
        engine = create_engine(url, poolclass=NullPool)
        with Session(engine) as session:
            _COMMANDS[options.command](session, entity, options)
    except (CommandError, WorkflowStateError, ImportError) as error:
        reason = " ".join(str(error).split())
    except DBAPIError as error:
        reason = f"the database refused: {outline(error)}"
    except (SQLAlchemyError, OSError, UnicodeError) as error:
        # A driver that is not there, for example, or a name that is no host's.
        shown = isinstance(error, ArgumentError)  # The name of a driver, for example.
        reason = f"cannot connect: {error if shown else outline(error)}"
    else:
        return 0
    print(f"sa_wfstate: {reason}", file=sys.stderr)  # noqa: T201
    return 1


def load_entity(name: str) -> Any:
    """Import the class called *name*, as ``package.module:Class``."""
    module_name, _, class_name = name.partition(":")
    if not class_name:
        raise CommandError(
            f"{name!r} does not name a class; write package.module:Class"
        )
    try:
        module = import_module(module_name)
    except Exception as error:
        reason = f"{type(error).__name__}: {error}"
        raise CommandError(f"cannot import {module_name}: {reason}") from error
    try:
        return getattr(module, class_name)
    except AttributeError:
        raise CommandError(f"{module_name} has no {class_name}") from None


def database_url(given: str | None) -> URL:
    """Return the URL *given*, or that of the environment; plain means psycopg."""
    text = given or os.environ.get("SA_WFSTATE_URL")
    if not text:
        raise CommandError("no database URL; give one with --url or in SA_WFSTATE_URL")
    try:
        url = make_url(text)
    except (ArgumentError, ValueError):
        # Not the text itself, which may hold a password.
        raise CommandError("the database URL cannot be read") from None
    # The part after an @ in a password would be taken for the host, and be shown.
    _, _, after_user = text.partition("://")[2].partition(":")
    if url.password is not None and "@" in after_user.partition("@")[2]:
        raise CommandError(
            "the database URL cannot be read: an @ in a password or an option is "
            "written %40"
        )
    plain = url.drivername == "postgresql"
    return url.set(drivername="postgresql+psycopg") if plain else url


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m sa_wfstate", description="Look at workflows."
    )
    commands = parser.add_subparsers(dest="command", required=True)
    helps = {
        "show": "show a workflow as it is, or as it was",
        "history": "list who changed what, when, by which action",
        "diff": "show what changed between two versions",
    }
    for name, text in helps.items():
        command = commands.add_parser(name, help=text, description=text.capitalize())
        command.add_argument("entity", help="the mapped class, as app.models:Order")
        command.add_argument("key", help="the workflow key")
        command.add_argument("--url", help="of the database, else SA_WFSTATE_URL")
        command.add_argument("--json", action="store_true", help="print JSON")
        if name == "show":
            command.add_argument(
                "--version", type=int, help="a version in the history, not the newest"
            )
        elif name == "history":
            command.add_argument(
                "--limit",
                type=cli_upcast.positive,
                default=20,
                help="at most so many, the newest",
            )
        else:
            command.add_argument("from_version", type=int)
            command.add_argument("to_version", type=int)
    text = "rewrite the rows of older schema versions, online"
    upcast = commands.add_parser("upcast", help=text, description=text.capitalize())
    cli_upcast.add_arguments(upcast)
    return parser


def _show(session: Session, entity: Any, options: argparse.Namespace) -> None:
    if options.version is None:
        snapshot = get_state(session, entity, options.key)
    else:
        snapshot = get_version(session, entity, options.key, options.version)
    facts = _facts(entity, snapshot)
    if options.json:
        _print_json(facts)
        return
    from rich.json import JSON
    from rich.panel import Panel

    title = f"{entity.__name__} {snapshot.workflow_key!r} version {snapshot.version}"
    who = f"{snapshot.updated_at:%Y-%m-%d %H:%M:%S %Z}  {_who(snapshot)}"
    state = JSON(json.dumps(facts["state"]))
    _console().print(Panel(state, title=title, subtitle=who, title_align="left"))


def _history(session: Session, entity: Any, options: argparse.Namespace) -> None:
    # One more than is shown, to compare the oldest with.
    found = list_versions(session, entity, options.key, limit=options.limit + 1)
    rows = [
        (snapshot, _changes(entity, earlier, snapshot))
        for snapshot, earlier in zip(found, [*found[1:], None], strict=True)
    ][: options.limit]
    if options.json:
        keys = ("version", "updated_at", "schema_version", "provenance")
        _print_json(
            [
                {**{key: _facts(entity, one)[key] for key in keys}, "changes": changes}
                for one, changes in rows
            ]
        )
        return
    from rich.table import Table

    table = Table(title=f"{entity.__name__} {options.key!r}", title_justify="left")
    table.add_column("version", justify="right")
    for name in ("written at", "by", "changed"):
        table.add_column(name, overflow="fold")
    for snapshot, changes in rows:
        table.add_row(
            str(snapshot.version),
            f"{snapshot.updated_at:%Y-%m-%d %H:%M:%S}",
            _who(snapshot),
            ", ".join(f"{each['op']} {each['path'] or '/'}" for each in changes),
        )
    _console().print(table)


def _diff(session: Session, entity: Any, options: argparse.Namespace) -> None:
    versions = (options.from_version, options.to_version)
    changes = diff_versions(session, entity, options.key, *versions)
    if options.json:
        _print_json(changes)
        return
    from rich.text import Text

    before = get_version(session, entity, options.key, versions[0])
    console = _console()
    for change, old, new in follow_patch(_dump(entity, before), changes):
        line = Text(f"{change['op']:8}{change['path'] or '/'}")
        for text, style in ((old, "red"), (new, "green")):
            if text is not None:
                line.append("  ").append(text, style=style)
        console.print(line, soft_wrap=True)


def _changes(
    entity: Any, before: WorkflowSnapshot[Any] | None, after: WorkflowSnapshot[Any]
) -> list[dict[str, Any]]:
    """Return the changes; none if the version before is not in the history."""
    if before is None or after.version == 1:
        return [{"op": "add", "path": ""}] if after.version == 1 else []
    return diff_json(_dump(entity, before), _dump(entity, after))


def _facts(entity: Any, snapshot: WorkflowSnapshot[Any]) -> dict[str, Any]:
    # The state as it is stored: Pydantic would omit aliases.
    facts = snapshot.model_dump(mode="json", exclude={"state"})
    return facts | {"state": json.loads(_dump(entity, snapshot))}


def _dump(entity: Any, snapshot: WorkflowSnapshot[Any]) -> str:
    return statements_of(entity).state_type.dump(snapshot.state)


def _who(snapshot: WorkflowSnapshot[Any]) -> str:
    """Return the effect and action of the version, and the rest of its provenance."""
    given = snapshot.provenance.model_dump(mode="json", exclude_none=True)
    given.pop("timestamp")
    names = {"effect_id": "effect", "action_id": "action"}
    return ", ".join(f"{names.get(key, key)} {value}" for key, value in given.items())


def _console() -> Console:
    try:
        from rich.console import Console
    except ImportError as error:
        raise CommandError(
            "tables need rich: pip install 'sa-wfstate[cli]', or use --json"
        ) from error
    return Console(highlight=False)


def _print_json(value: object) -> None:
    json.dump(value, sys.stdout, indent=2)
    sys.stdout.write("\n")


_COMMANDS = {"show": _show, "history": _history, "diff": _diff}
