"""Transactional outbox: intents stored with a commit, delivered at least once."""

from ..values.public_names import publish
from ..values.reports import DueIntent
from .dispatcher import IntentDispatcher
from .table import IntentMixin, add_intents, revive_dead, store_intents

__all__ = [
    "DueIntent",
    "IntentDispatcher",
    "IntentMixin",
    "add_intents",
    "revive_dead",
    "store_intents",
]

publish(globals())
