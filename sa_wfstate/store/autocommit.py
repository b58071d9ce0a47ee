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
    from collections.abc import Callable

    from sqlalchemy.pool import ConnectionPoolEntry

    from ..row.direct import DriverStatement


# SQLAlchemy 2.0 would not wrap the error that a DirectConnection raises again.
_WRAPS_LISTENERS: Final = not __version__.startswith("2.0.")
_RESET: Final = "sa_wfstate.reset"
"""Where the pool has what resets the level of a connection that is lent."""
_PSYCOPG: Final = frozenset({psycopg.dialect, psycopg.dialect_async})


class Autocommit:
    """Lends a connection of *engine* in autocommit.

    On PostgreSQL, the level is set and reset here: what an execution option of the
    connection does, at a fraction of its price. Logs and listeners are told by the
    option, so an engine with any has the option.

    Of psycopg, from SQLAlchemy 2.1 on, it is a DirectConnection, which keeps its
    statements in *known*. asyncpg needs the context of a statement, to know of changed
    tables.
    """

    __slots__ = ("_connection", "_engine", "_info", "_known", "_reset")

    def __init__(
        self, engine: Engine, known: dict[Any, DriverStatement | None]
    ) -> None:
        self._engine = engine
        self._known = known

    def __enter__(self) -> Connection:
        engine = self._engine
        told = _is_told(engine) or not profile_of(engine.dialect).is_postgresql
        direct = not told and _may_be_direct(engine)
        self._reset: Callable[[Any], None] | None = None
        self._connection = connection = (
            DirectConnection(engine, self._known, on_statement)
            if direct
            else AutocommitConnection(engine)
        )
        try:
            if told:
                return connection.execution_options(isolation_level="AUTOCOMMIT")
            proxy: Any = connection.connection
            lent = proxy.dbapi_connection
            if not direct or not lent.autocommit:
                self._reset = (
                    _leave_autocommit
                    if direct
                    else engine.dialect.reset_isolation_level
                )
                # Also for the pool, if this one is interrupted before it resets.
                self._info = proxy.record_info
                self._info[_RESET] = self._reset
                if direct:
                    lent.autocommit = True
                else:
                    engine.dialect.set_isolation_level(lent, "AUTOCOMMIT")
        except BaseException:
            self._discard()
            raise
        return connection

    def __exit__(self, _: object, error: BaseException | None, __: object) -> None:
        connection = self._connection
        if isinstance(error, Exception) and raised_by_signal_handler(error):
            # Its statement may go on: the error of a ROLLBACK would hide this one.
            connection.invalidate()
        if self._reset is not None and not connection.invalidated:
            try:
                self._reset(connection.connection.dbapi_connection)
                self._info.pop(_RESET, None)
            except Exception:  # noqa: BLE001 - as the pool does with its own resets
                self._discard()
            except BaseException:
                self._discard()
                raise
        connection.close()

    def _discard(self) -> None:
        """Keep the pool from lending a connection whose level is not known."""
        if not self._connection.invalidated:
            self._connection.invalidate()
        self._connection.close()


def _leave_autocommit(lent: Any) -> None:
    lent.autocommit = False


def checkin(lent: Any, entry: ConnectionPoolEntry) -> None:
    """Reset the level of a connection that comes back to the pool without it."""
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
