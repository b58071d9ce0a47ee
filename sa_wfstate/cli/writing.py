"""The commands ``restore`` and ``trim``, which write; each asks first."""

from __future__ import annotations

import sys
import time
from typing import TYPE_CHECKING, Any

from sqlalchemy.orm import Session

from ..errors import StateConflict, WorkflowNotFound
from ..history.queries import get_version, restore_version, trim_history
from ..orm.entity import statements_of
from ..store.api import get_state
from ..values.provenance import Provenance
from ..values.row_version import NOTHING, RowVersion
from . import arguments
from .screen import confirm, print_json, say

if TYPE_CHECKING:
    import argparse

    from sqlalchemy import Engine


PROGRESS_INTERVAL = 2.0
"""Seconds between two lines about the progress."""


def add_restore(command: argparse.ArgumentParser) -> None:
    """Declare the arguments of ``restore``."""
    arguments.add_entity(command)
    arguments.add_key(command)
    command.add_argument("version", metavar="VERSION", type=arguments.positive)
    arguments.add_yes(command)


def restore(engine: Engine, entity: Any, options: argparse.Namespace) -> int:
    """Commit the state of an earlier version again, as a new version."""
    key = arguments.key_of(entity, options)
    with Session(engine) as session:
        get_version(session, entity, key, options.version)  # Or it is not there.
        try:
            current = get_state(session, entity, key)
        except WorkflowNotFound:
            expected, now = NOTHING, "deleted"
        else:
            effect_id = current.provenance.effect_id
            expected = RowVersion(current.version, effect_id)
            now = f"at version {current.version}"
        session.rollback()  # No transaction is open while a person thinks.
        name = f"{entity.__name__} {key!r}"
        confirm(
            f"{name} is {now}; commit the state of version {options.version} again?",
            yes=options.yes,
        )
        outcome = restore_version(
            session,
            entity,
            key,
            options.version,
            expected_version=expected,
            provenance=Provenance.now(restored_version=options.version),
        )
        if isinstance(outcome, StateConflict):
            raise outcome
        session.commit()
    if options.json:
        print_json({"workflow_key": arguments.shown(key), "version": outcome.version})
    else:
        say(f"{name} is at version {outcome.version}: that of {options.version} again")
    return 0


def add_trim(command: argparse.ArgumentParser) -> None:
    """Declare the arguments of ``trim``."""
    arguments.add_entity(command)
    command.add_argument(
        "--before",
        metavar="AGE",
        type=arguments.moment,
        required=True,
        help="versions older than that: 90d, or a time",
    )
    text = "rows in one transaction"
    command.add_argument(
        "--batch-size", type=arguments.positive, default=1000, help=text
    )
    arguments.add_yes(command)


def trim(engine: Engine, entity: Any, options: argparse.Namespace) -> int:
    """Delete old versions from the history; the newest of each workflow stays."""
    statements_of(entity)  # Or it is no workflow.
    confirm(
        f"delete the versions of {entity.__name__} from before {options.before}, "
        "except the newest of each workflow?",
        yes=options.yes,
    )
    said = time.monotonic()

    def progress(deleted: int) -> None:
        nonlocal said
        if time.monotonic() - said >= PROGRESS_INTERVAL:
            said = time.monotonic()
            print(f"{deleted:,} versions deleted", file=sys.stderr, flush=True)  # noqa: T201

    deleted = trim_history(
        engine,
        entity,
        before=options.before,
        batch_size=options.batch_size,
        progress=progress,
    )
    if options.json:
        print_json({"deleted": deleted})
    else:
        say(f"{deleted:,} versions deleted")
    return 0
