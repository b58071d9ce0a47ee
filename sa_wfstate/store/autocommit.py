"""Connections in autocommit, without the round trips of BEGIN and COMMIT."""

from __future__ import annotations

from logging import INFO
from typing import TYPE_CHECKING, Any, Final

from sqlalchemy import Connection, Engine, __version__
from sqlalchemy.dialects.postgresql import psycopg

from .._concurrency import raised_by_signal_handler
from ..orm.events import on_statement
from ..row.direct import DirectConnection
from ..row.engine_profiles import profile_of

if TYPE_CHECKING:
    from collections.abc import Callable

    from ..row.direct import DriverStatement


# SQLAlchemy 2.0 would not wrap the error that a DirectConnection raises again.
_WRAPS_LISTENERS: Final = not __version__.startswith("2.0.")
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

    __slots__ = ("_connection", "_engine", "_known", "_reset")

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
            else engine.connect()
        )
        try:
            if told:
                return connection.execution_options(isolation_level="AUTOCOMMIT")
            lent: Any = connection.connection.dbapi_connection
            if not direct:
                engine.dialect.set_isolation_level(lent, "AUTOCOMMIT")
                self._reset = engine.dialect.reset_isolation_level
            elif not lent.autocommit:
                lent.autocommit = True
                self._reset = _leave_autocommit
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
