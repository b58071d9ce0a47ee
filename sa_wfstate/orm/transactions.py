"""A transaction of a session begins or ends: its own, a savepoint, or that of a flush.

SQLAlchemy begins one for each flush, behind every listener of before_flush, and tells
of all kinds by the same events.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from sqlalchemy.orm import Session, SessionTransactionOrigin

from . import rebasing, tracking, unit_of_work
from .session_state import INNER, existing_state_of

if TYPE_CHECKING:
    from sqlalchemy.orm import SessionTransaction


def after_transaction_create(session: Session, transaction: SessionTransaction) -> None:
    known = existing_state_of(session)
    if known is None:
        return
    if transaction.origin is SessionTransactionOrigin.SUBTRANSACTION:
        flush = known.flush
        context = None if flush is None or flush.executing else flush.context
        if flush is None or context is None:
            return
        if rebasing.may_rebase(known, context):
            rebasing.rebase_changed(session, transaction, known, flush, context)
            if known.flush is not flush or flush.executing:
                return  # The SQL of that has begun another one.
        if context.has_work:  # Or the listener of a flush has begun it.
            unit_of_work.prepare(session, transaction, known, flush, context)
    elif transaction.nested:
        known.log.mark(transaction)
    else:
        tracking.look_again(session, known)


def after_transaction_end(session: Session, transaction: SessionTransaction) -> None:
    known = existing_state_of(session)
    if known is None:
        return
    tracking.end_transaction(known, transaction)
    if transaction.origin not in INNER:
        known.log.undo(transaction)  # Nothing is left to undo if it was committed.
        known.log.forget()
        if known.replaced:
            rebasing.forget_replaced(known)
