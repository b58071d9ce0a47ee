"""Statements on a connection in autocommit: sent again, or without a context.

SQLAlchemy builds a context and a result for each statement, for its listeners and for
any kind of result: half of the time of a small row. first_row() compiles a statement
once, gives its text to a cursor of the driver, and returns the row. A statement that
needs a context gets one. What fails is raised by SQLAlchemy.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, NamedTuple

from sqlalchemy import Connection, DateTime, Integer, String, Uuid
from sqlalchemy.dialects.postgresql import psycopg
from sqlalchemy.exc import NotSupportedError

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, MutableMapping

    from sqlalchemy import Dialect, Engine


class AutocommitConnection(Connection):
    """A connection in autocommit that outlives a change of the table.

    The server refuses a statement whose columns have had other types when the driver
    prepared it. Then nothing was done, and it is sent once more.
    """

    def execute(self, statement: Any, parameters: Any = None, **options: Any) -> Any:
        """Execute *statement*, whose plan may be of an older table."""
        try:
            return super().execute(statement, parameters, **options)
        except NotSupportedError:
            if isinstance(parameters, list):
                raise  # Some of the rows may have been written.
            forget_plans(self)
        return super().execute(statement, parameters, **options)


def forget_plans(connection: Connection) -> None:
    """Let the driver of *connection*, in autocommit, prepare its statements anew.

    psycopg does after a ROLLBACK only. asyncpg does by itself.
    """
    if isinstance(connection.dialect, psycopg.dialect):
        connection.exec_driver_sql("BEGIN")
        connection.connection.rollback()


class DirectConnection(AutocommitConnection):
    """A connection of an *engine* without listeners, logs and options.

    *known* are the statements that were compiled for it. *before_statement* calls a
    function before each statement of a connection.
    """

    def __init__(
        self,
        engine: Engine,
        known: MutableMapping[Any, DriverStatement | None],
        before_statement: Callable[[Connection, Callable[..., None]], None],
    ) -> None:
        super().__init__(engine)
        self._known_statements = known
        self._before_statement = before_statement

    def first_row(self, statement: Any, parameters: Mapping[str, Any]) -> Any:
        """Return the first row that *statement* returns, None if there is none."""
        known = self._known_statements
        if statement not in known:
            known[statement] = driver_statement(statement, self.dialect)
        prepared = known[statement]
        if prepared is None:
            return self.execute(statement, parameters).first()
        text, constants = prepared
        try:
            cursor: Any = self.connection.cursor()
            self.dialect.do_execute(cursor, text, {**constants, **parameters})
            row = cursor.fetchone()
            cursor.close()
        except BaseException as error:  # noqa: BLE001 - it is raised again
            if isinstance(error, self.dialect.loaded_dbapi.NotSupportedError):
                return self.execute(statement, parameters).first()
            return self._fail([error], statement, parameters)
        return row

    def _fail(
        self, error: list[BaseException], statement: Any, parameters: Mapping[str, Any]
    ) -> Any:
        """Raise *error* as one of *statement*, which is not sent again.

        SQLAlchemy wraps it, tells the listeners of errors, and invalidates what is
        lost: this connection, or all of the pool.
        """

        def fail(*_: object) -> None:
            raise error.pop()  # Kept here, it would be in a cycle.

        self._before_statement(self, fail)
        return self.execute(statement, parameters).first()


class DriverStatement(NamedTuple):
    """The text of a statement for a driver, and the parameters that stay the same."""

    text: str
    constants: dict[str, Any]


_AS_THE_DRIVER = (String, Integer, DateTime, Uuid)
"""The types whose values may need no conversion, whatever the driver calls them."""


def driver_statement(statement: Any, dialect: Dialect) -> DriverStatement | None:
    """Return *statement* for the driver of *dialect*; None if it needs a context.

    It does for defaults that Python makes, for IN, and for types that convert values.
    """
    compiled = statement.compile(dialect=dialect)
    late = compiled.post_compile_params | compiled.literal_execute_params
    if compiled.prefetch or late or compiled.escaped_bind_names:
        return None
    for column in statement.exported_columns:
        type_ = column.type.dialect_impl(dialect)
        plain = isinstance(type_, _AS_THE_DRIVER)
        if not plain or type_.result_processor(dialect, None):
            return None
    constants = {}
    for bind, name in compiled.bind_names.items():
        convert = bind.type.dialect_impl(dialect).bind_processor(dialect)
        if bind.callable or (bind.required and convert):
            return None
        if not bind.required:
            constants[name] = convert(bind.value) if convert else bind.value
    return DriverStatement(str(compiled), constants)


def first_row(
    connection: Connection, statement: Any, parameters: Mapping[str, Any]
) -> Any:
    """Execute *statement* and return its first row, None if there is none.

    It is kept for the next time.
    """
    if isinstance(connection, DirectConnection):
        return connection.first_row(statement, parameters)
    return connection.execute(statement, parameters).first()
