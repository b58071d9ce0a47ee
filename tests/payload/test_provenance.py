"""A provenance of a subclass is stored with the keys that it declares."""

from __future__ import annotations

from typing import TYPE_CHECKING
from uuid import UUID

import pytest
from pydantic import SecretStr
from sqlalchemy.orm import Session

from sa_wfstate import (
    CanonicalStore,
    Commit,
    PayloadError,
    Provenance,
    StateCommitted,
    get_state,
    try_commit,
    try_commit_many,
)

from ..orders import Base, Order, OrderState

if TYPE_CHECKING:
    from collections.abc import Callable

    from sqlalchemy import Engine, MetaData


class Leased(Provenance):
    lease_id: UUID


class Secret(Provenance):
    password: SecretStr


LEASE = UUID(int=7)


@pytest.mark.contract
def test_declared_keys_are_stored(
    engine: Engine, create_tables: Callable[[MetaData], None]
) -> None:
    """By each way to write; what is read is a Provenance, and of() makes it one."""
    create_tables(Base.metadata)

    def stored() -> Leased:
        with Session(engine) as session:
            provenance = get_state(session, Order, "o-1").provenance
        assert type(provenance) is Provenance
        assert provenance.model_extra == {"lease_id": str(LEASE), "more": 1}
        return Leased.of(provenance)

    effects = []
    with Session(engine) as session:
        effects.append(Leased.now(lease_id=LEASE, more=1))
        session.add(
            Order(workflow_key="o-1", state=OrderState(), provenance=effects[-1])
        )
        session.commit()
        assert stored() == effects[-1]
        effects.append(Leased.now(lease_id=LEASE, more=1))
        order = session.get_one(Order, "o-1")
        order.state.status, order.provenance = "paid", effects[-1]
        session.commit()
        assert stored() == effects[-1]
        effects.append(Leased.now(lease_id=LEASE, more=1))
        outcome = try_commit(
            session,
            Order,
            base=get_state(session, Order, "o-1"),
            state=OrderState(),
            provenance=effects[-1],
        )
        assert isinstance(outcome, StateCommitted)
        session.commit()
        assert outcome.snapshot == get_state(session, Order, "o-1")
        assert stored() == effects[-1]
        effects.append(Leased.now(lease_id=LEASE, more=1))
        commit = Commit(
            "o-1", expected_version=3, state=OrderState(), provenance=effects[-1]
        )
        try_commit_many(session, Order, [commit])
        session.commit()
        assert stored() == effects[-1]
    again = CanonicalStore(engine, Order).try_commit(
        workflow_key="o-1",
        expected_version=3,
        state=OrderState(),
        provenance=effects[-1],
    )
    assert isinstance(again, StateCommitted)
    assert again.replayed


def test_key_that_json_would_change_is_refused(engine: Engine) -> None:
    """As in a state: the error names it, and shows no payload."""
    with pytest.raises(PayloadError, match=r"Order 'o-1' provenance, at 'password'"):
        CanonicalStore(engine, Order).try_commit(
            workflow_key="o-1",
            expected_version=0,
            state=OrderState(),
            provenance=Secret.now(password="hunter2"),
        )
