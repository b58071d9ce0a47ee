"""Connections in autocommit, without the round trips of BEGIN and COMMIT."""

from __future__ import annotations

from logging import INFO
from typing import TYPE_CHECKING, Any, Final

from sqlalchemy import Connection, Engine, __version__
from sqlalchemy.dialects.postgresql import psycopg

from .._concurrency import raised_by_signal_handler
from ..orm.events import on_statement
from ..row.direct import AutocommitConnection, DirectConnection
from ..row.engine_profiles import profile_of

if TYPE_CHECKING:
    from sqlalchemy.pool import ConnectionPoolEntry

    from ..row.direct import DriverStatement


# SQLAlchemy 2.0 would not wrap the error that a DirectConnection raises again.
_WRAPS_LISTENERS: Final = not __version__.startswith("2.0.")
_RESET: Final = "sa_wfstate.reset"
"""Where the pool has what resets the level of a connection that is lent."""
_PSYCOPG: Final = frozenset({psycopg.dialect, psycopg.dialect_async})


class Autocommit:
    """Lends a connection of *engine* in autocommit, in the cheapest of three ways.

    Logs and listeners are told by the execution option of SQLAlchemy, so an engine with
    any has the option. On PostgreSQL, the level alone is what else it does.

    Of psycopg, from SQLAlchemy 2.1 on, it is a DirectConnection, which keeps its
    statements in *known*. asyncpg needs the context of a statement, to know of changed
    tables.
    """

    __slots__ = ("_connection", "_engine", "_known")

    def __init__(
        self, engine: Engine, known: dict[Any, DriverStatement | None]
    ) -> None:
        self._engine = engine
        self._known = known

    def __enter__(self) -> Connection:
        engine = self._engine
        self._connection: Connection
        if _is_told(engine) or not profile_of(engine.dialect).is_postgresql:
            enter = _enter_by_option
            self._connection = AutocommitConnection(engine)
        elif _may_be_direct(engine):
            enter = _enter_by_driver
            self._connection = DirectConnection(engine, self._known, on_statement)
        else:
            enter = _enter_by_dialect
            self._connection = AutocommitConnection(engine)
        try:
            enter(self._connection)
        except BaseException:
            self._connection.close()
            raise
        return self._connection

    def __exit__(self, _: object, error: BaseException | None, __: object) -> None:
        if isinstance(error, Exception) and raised_by_signal_handler(error):
            # Its statement may go on: the error of a ROLLBACK would hide this one.
            self._connection.invalidate()
        self._connection.close()


def _enter_by_option(connection: Connection) -> None:
    connection.execution_options(isolation_level="AUTOCOMMIT")


def _enter_by_dialect(connection: Connection) -> None:
    proxy: Any = connection.connection
    dialect = connection.dialect
    proxy.record_info[_RESET] = dialect.reset_isolation_level
    dialect.set_isolation_level(proxy.dbapi_connection, "AUTOCOMMIT")


def _enter_by_driver(connection: Connection) -> None:
    proxy: Any = connection.connection
    if not proxy.dbapi_connection.autocommit:  # The level of an engine may be.
        proxy.record_info[_RESET] = _leave_autocommit
        proxy.dbapi_connection.autocommit = True


def _leave_autocommit(lent: Any) -> None:
    lent.autocommit = False


def checkin(lent: Any, entry: ConnectionPoolEntry) -> None:
    """Reset the level of a connection that comes back to the pool.

    Only the pool sees each come back: an interrupt may keep __exit__ from its work. As
    with the option, what a SingletonThreadPool lends twice has the level until both
    are back.
    """
    reset = (entry.record_info or {}).pop(_RESET, None)
    if reset is not None and lent is not None:
        try:
            reset(lent)
        except Exception as error:  # noqa: BLE001 - as the pool does with its own
            entry.invalidate(error)


def _is_told(engine: Engine) -> bool:
    """Return whether *engine* logs its statements, or calls listeners with them."""
    told: Any = engine.dispatch
    return bool(
        engine.logger.isEnabledFor(INFO)
        or told.before_cursor_execute
        or told.after_cursor_execute
        or told.before_execute
        or told.after_execute
        or told.engine_connect
        or told.begin
        or told.rollback
        or told.set_connection_execution_options
    )


def _may_be_direct(engine: Engine) -> bool:
    """Return whether nothing but the driver has a part in a statement of *engine*."""
    dialect: Any = engine.dialect
    return (
        _WRAPS_LISTENERS
        and type(engine) is Engine
        and type(dialect) in _PSYCOPG
        and not engine.get_execution_options()
        and not dialect.dispatch.do_execute
    )
