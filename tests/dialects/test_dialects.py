"""What works over the dialects of other engines, as far as a PostgreSQL can tell.

The engines themselves are not here. Their dialects talk to a PostgreSQL, and what an
engine lacks by its documentation is refused before it is sent.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

import pytest
from sqlalchemy import create_engine
from sqlalchemy.exc import NoSuchModuleError

from sa_wfstate.row.engine_profiles import profile_on

from ..drives import DRIVES, Base, lose_a_race
from .lacks import LACKS, refuse

if TYPE_CHECKING:
    from collections.abc import Iterator

    from sqlalchemy import URL, Engine

pytestmark = [
    pytest.mark.dialects,
    # The dialect of CockroachDB counts no rows; that a row was written is seen by its
    # RETURNING instead.
    pytest.mark.filterwarnings("ignore:Dialect .* does not support updated rowcount"),
]

FAILS: Final[dict[str, set[str]]] = {
    "cockroachdb": set(),
    "yugabytedb": set(),
    "auroradsql": {
        # Of the application: a savepoint, and a FOR NO KEY UPDATE.
        "savepoint_is_rolled_back",
        "locked_load",
        # On columns of JSON; a MappingError says so.
        "patch_of_one_row",
        "patches_of_each_kind",
        "patches_of_many_rows",
    },
}
"""By engine, the drives that cannot work there."""


@pytest.fixture(params=LACKS)
def other_engine(request: pytest.FixtureRequest, database: URL) -> Iterator[Engine]:
    """Connect to an empty database over the dialect of another engine."""
    name = request.param
    # YugabyteDB is reached by the dialect of PostgreSQL.
    dialect = "postgresql" if name == "yugabytedb" else name
    try:
        engine = create_engine(database.set(drivername=f"{dialect}+psycopg"))
    except NoSuchModuleError:
        pytest.skip(f"the dialect {dialect} is not installed")
    refuse(engine, name)
    with engine.connect() as connection:
        assert profile_on(connection).name == name
    yield engine
    engine.dispose()


def test_public_api_works_without_what_the_engine_lacks(other_engine: Engine) -> None:
    """All drives run, but for those that are listed."""
    with other_engine.connect() as connection:
        name = profile_on(connection).name
    Base.metadata.create_all(other_engine)
    failed: dict[str, str] = {}
    for drive, run in DRIVES.items():
        try:
            run(other_engine)
        except Exception as error:  # noqa: BLE001 - what comes of it is the result
            failed[drive] = f"{type(error).__name__}: {str(error)[:300]}"
    assert {drive: failed[drive] for drive in failed.keys() - FAILS[name]} == {}
    assert failed.keys() == FAILS[name]


def test_second_writer_gets_conflict(other_engine: Engine) -> None:
    """The second writer of a row learns that it has moved."""
    Base.metadata.create_all(other_engine)
    lose_a_race(other_engine)
