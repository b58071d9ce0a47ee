"""The command ``wfstate``, which is also ``python -m sa_wfstate``.

::

    wfstate show app.models:Order order-42

Each command imports a name of the application, also from the working folder, and
connects to the database of ``--url``, of the environment variable ``SA_WFSTATE_URL``,
or of ``alembic.ini``; the driver may be an asynchronous one. The output is tables with
colours, or JSON with ``--json``. What cannot be done is said in one line, with the exit
code 1; wrong arguments have the exit code 2. Needs the extra ``cli``.
"""

from __future__ import annotations

import argparse
import os
import sys
from functools import partial
from typing import TYPE_CHECKING, Any, NamedTuple

from sqlalchemy.exc import ArgumentError, DBAPIError, SQLAlchemyError

from ..errors import WorkflowStateError
from ..hooks.application_errors import outline
from ..retry import sqlstate
from . import doctor, reading, upcast, workers, writing
from .targets import (
    CommandError,
    database_url,
    how_to_install,
    load,
    with_engine,
    with_engine_of,
)

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from sqlalchemy import Engine


class _Command(NamedTuple):
    help: str
    add_arguments: Callable[[argparse.ArgumentParser], None]
    run: Callable[[Engine, Any, argparse.Namespace], int]


COMMANDS = {
    "show": _Command(
        "show a workflow as it is, or as it was", reading.add_show, reading.show
    ),
    "history": _Command(
        "list who changed what, when, by which action",
        reading.add_history,
        reading.history,
    ),
    "diff": _Command(
        "show what changed between two versions", reading.add_diff, reading.diff
    ),
    "list": _Command(
        "list workflows by tag, age of the version, schema version",
        reading.add_list,
        reading.list_workflows,
    ),
    "restore": _Command(
        "commit the state of an earlier version again",
        writing.add_restore,
        writing.restore,
    ),
    "upcast": _Command(
        "rewrite the rows of older schema versions, online",
        upcast.add_arguments,
        upcast.run,
    ),
    "dead-letters": _Command(
        "show, retry or drop intents that could not be delivered",
        workers.add_dead_letters,
        workers.dead_letters,
    ),
    "lag": _Command(
        "show how far a projection is behind", workers.add_lag, workers.lag
    ),
    "trim": _Command(
        "delete old versions from the history", writing.add_trim, writing.trim
    ),
    "doctor": _Command(
        "look for what is wrong with a database", doctor.add_arguments, doctor.run
    ),
}
"""The commands by name."""


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command in *arguments*, by default those of the process."""
    options = _parser().parse_args(arguments)
    try:
        call = partial(_run, COMMANDS[options.command].run, _target(options), options)
        given = isinstance(options.entity, list) and doctor.engine_of(options.entity)
        if given:
            return with_engine_of(given, call)
        return with_engine(database_url(options.url), call)
    except KeyboardInterrupt:
        print("sa_wfstate: stopped", file=sys.stderr)  # noqa: T201
        return 130
    except BrokenPipeError:
        # The reader of a pipe has seen enough. Nothing is left to flush at exit.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 1
    except Exception as error:
        reason = _reason(error)
        if reason is None:
            raise
        print(f"sa_wfstate: {reason}", file=sys.stderr)  # noqa: T201
        return 1


def _target(options: argparse.Namespace) -> Any:
    names = options.entity
    return [*map(load, names)] if isinstance(names, list) else load(names)


def _run(
    run: Callable[[Engine, Any, argparse.Namespace], int],
    target: Any,
    options: argparse.Namespace,
    engine: Engine,
) -> int:
    code = run(engine, target, options)
    sys.stdout.flush()
    return code


def _reason(error: Exception) -> str | None:
    """Say in one line why a command cannot be done; None if it is a fault of ours."""
    if isinstance(error, ImportError):
        return " ".join(how_to_install(error).split())
    if isinstance(error, (CommandError, WorkflowStateError)):
        return " ".join(str(error).split())
    # A driver may raise its own error while it connects.
    if isinstance(error, DBAPIError) or sqlstate(error) is not None:
        return f"the database refused: {outline(error)}"
    if isinstance(error, (SQLAlchemyError, OSError, UnicodeError)):
        # A driver that is not there, for example, or a name that is no host's.
        shown = isinstance(error, ArgumentError)  # The name of a driver, for example.
        return f"cannot connect: {error if shown else outline(error)}"
    return None


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="wfstate", description="Look at workflows, and repair them."
    )
    commands = parser.add_subparsers(
        dest="command", required=True, metavar="COMMAND", title="commands"
    )
    for name, (text, add_arguments, _) in COMMANDS.items():
        command = commands.add_parser(name, help=text, description=text.capitalize())
        add_arguments(command)
    return parser
