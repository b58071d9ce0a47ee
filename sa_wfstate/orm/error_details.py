"""An engine with ``hide_parameters`` shows no part of a workflow row in its errors.

SQLAlchemy leaves the parameters out then. The server's own message goes on, though: its
DETAIL quotes the row that breaks a constraint. It is taken out of the errors of writes
to tables that hold payloads, of workflows, histories, projections and outboxes; errors
of other tables are left as they are. So is ``error.orig.diag``, for who asks for it.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from sqlalchemy.sql import visitors
from sqlalchemy.sql.expression import UpdateBase

from ..row.types import PydanticJSON

if TYPE_CHECKING:
    from sqlalchemy import ExceptionContext


def handle_error(context: ExceptionContext) -> None:
    error, original = context.sqlalchemy_exception, context.original_exception
    if error is None or not _holds_payloads(context.execution_context):
        return
    whole = str(original)
    message = whole.partition("\n")[0]
    original.args = (message,)
    error.args = (str(error.args[0]).replace(whole, message),)
    # asyncpg puts its message together when it is shown.
    cause: Any = original.__cause__
    if hasattr(cause, "detail"):
        cause.detail = None


def _holds_payloads(context: Any) -> bool:
    statement = getattr(getattr(context, "compiled", None), "statement", None)
    return statement is not None and any(
        isinstance(part, UpdateBase)
        and any(isinstance(column.type, PydanticJSON) for column in part.table.c)
        for part in visitors.iterate(statement)
    )
