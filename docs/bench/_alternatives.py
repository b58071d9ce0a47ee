"""What a user would pick instead of a ReducerService, for groups.py.

Each handles an action exactly once, on the same tables: asyncpg by hand, a Session of
SQLAlchemy with ``version_id_col`` and a retry loop, and DBOS with a workflow for each
action, whose step is a transaction of its datasource.
"""

from __future__ import annotations

import asyncio
import random
from collections.abc import Awaitable, Callable
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from datetime import UTC, datetime, timedelta
from functools import partial
from typing import TYPE_CHECKING, Any, ClassVar
from uuid import UUID, uuid4

from _actions import POOL, OrderState, reducer
from _usual import UsualJSON
from sqlalchemy import DateTime, select
from sqlalchemy.dialects.postgresql import JSONB, insert
from sqlalchemy.exc import IntegrityError
from sqlalchemy.ext.asyncio import async_sessionmaker, create_async_engine
from sqlalchemy.orm import DeclarativeBase, Mapped, mapped_column
from sqlalchemy.orm.exc import StaleDataError

from sa_wfstate import Action

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Mapping

    from sqlalchemy import URL
    from sqlalchemy.ext.asyncio import AsyncSession

Handle = Callable[[Action[int]], Awaitable[object]]

LOCK = "SELECT version, state FROM orders WHERE workflow_key = $1 FOR UPDATE"


@asynccontextmanager
async def open_asyncpg(url: URL) -> AsyncIterator[Handle]:
    """Yield a handler that needs asyncpg alone: a lock, and three statements."""
    import asyncpg

    query = {"host": url.query["host"]} if "host" in url.query else {}
    pool = await asyncpg.create_pool(
        user=url.username,
        password=url.password,
        database=url.database,
        host=query.get("host", url.host),
        port=url.port,
        max_size=POOL,
    )
    yield partial(by_hand, pool)
    await pool.close()


async def by_hand(pool: Any, action: Action[int]) -> None:
    """Handle *action* as an application would without a library."""
    key = action.workflow_key
    async with pool.acquire() as connection, connection.transaction():
        row = await connection.fetchrow(LOCK, key)
        claimed = await connection.fetchval(
            "INSERT INTO order_actions (workflow_key, action_id, result_hash,"
            " expires_at) VALUES ($1, $2, '', now() + interval '6 hours')"
            " ON CONFLICT DO NOTHING RETURNING true",
            key,
            action.action_id,
        )
        assert claimed
        provenance = f'{{"effect_id": "{uuid4()}", "timestamp": "2026-01-01"}}'
        if row is None and await connection.fetchval(
            "INSERT INTO orders (workflow_key, state, provenance)"
            " VALUES ($1, $2, $3) ON CONFLICT DO NOTHING RETURNING true",
            key,
            reducer(OrderState(), action).model_dump_json(),
            provenance,
        ):
            return
        # Another transaction may have inserted it meanwhile.
        row = row or await connection.fetchrow(LOCK, key)
        state = OrderState.model_validate_json(row["state"])
        await connection.execute(
            "UPDATE orders SET version = version + 1, state = $2,"
            " provenance = $3, updated_at = now() WHERE workflow_key = $1",
            key,
            reducer(state, action).model_dump_json(),
            provenance,
        )


class Base(DeclarativeBase):
    pass


def provenance() -> dict[str, Any]:
    """Return where a change comes from."""
    return {"effect_id": str(uuid4()), "timestamp": "2026-01-01"}


class Order(Base):
    """The usual recipe, mapped to the table of the service."""

    __tablename__ = "orders"

    workflow_key: Mapped[str] = mapped_column(primary_key=True)
    version: Mapped[int] = mapped_column()
    state: Mapped[Any] = mapped_column(UsualJSON(OrderState))
    provenance: Mapped[Any] = mapped_column(
        JSONB, default=provenance, onupdate=provenance
    )
    __mapper_args__: ClassVar = {"version_id_col": version}


class Claim(Base):
    """An action that was handled."""

    __tablename__ = "order_actions"

    workflow_key: Mapped[str] = mapped_column(primary_key=True)
    action_id: Mapped[UUID] = mapped_column(primary_key=True)
    result_hash: Mapped[str] = mapped_column(default="")
    expires_at: Mapped[datetime] = mapped_column(DateTime(timezone=True))


def claim_of(action: Action[int]) -> dict[str, Any]:
    """Return the values of a claim, which is kept for six hours."""
    return {
        "workflow_key": action.workflow_key,
        "action_id": action.action_id,
        "expires_at": datetime.now(UTC) + timedelta(hours=6),
    }


@asynccontextmanager
async def open_sessions(url: URL) -> AsyncIterator[Handle]:
    """Yield a handler that repeats a unit of work until its version is current."""
    engine = create_async_engine(url, pool_size=POOL, max_overflow=0)
    yield partial(by_session, async_sessionmaker(engine))
    await engine.dispose()


async def by_session(
    sessions: async_sessionmaker[AsyncSession], action: Action[int]
) -> None:
    """Handle *action* by ``version_id_col``; after a lost race sleep and try again."""
    while True:
        try:
            async with sessions.begin() as session:
                session.add(Claim(**claim_of(action)))
                order = await session.get(Order, action.workflow_key)
                if order is None:
                    state = reducer(OrderState(), action)
                    session.add(Order(workflow_key=action.workflow_key, state=state))
                else:
                    order.state = reducer(order.state, action)
        except (StaleDataError, IntegrityError):
            await asyncio.sleep(random.uniform(0, 0.05))
        else:
            return


@asynccontextmanager
async def open_dbos(url: URL) -> AsyncIterator[Handle]:
    """Yield a handler that starts a workflow of DBOS, named after the action.

    The datasource recognises the conflicts of psycopg only, whatever the case says.
    """
    from dbos import DBOS, AsyncSQLAlchemyDatasource, SetWorkflowID

    url = url.set(drivername="postgresql+psycopg")
    text = url.render_as_string(hide_password=False)
    DBOS(config={"name": "orders", "system_database_url": text, "log_level": "ERROR"})
    engine = create_async_engine(url, pool_size=POOL, max_overflow=0)
    source = await AsyncSQLAlchemyDatasource.create(text, engine=engine)

    @source.transaction(isolation_level="READ COMMITTED")
    async def step(action: Action[int]) -> int:
        session, key = source.sql_session(), str(action.workflow_key)
        lock = select(Order).where(Order.workflow_key == key).with_for_update()
        order = await session.scalar(lock)
        if order is None:
            new = {"workflow_key": key, "version": 1}
            new["state"] = reducer(OrderState(), action)
            add = insert(Order).values(new).on_conflict_do_nothing()
            if await session.scalar(add.returning(Order.version)):
                return 1
            # Another transaction has inserted it meanwhile.
            order = await session.scalar(lock)
        assert order is not None
        order.state = reducer(order.state, action)
        await session.flush()
        return order.version

    @DBOS.workflow()
    async def handle_order(action: Action[int]) -> int:
        return await step(action)

    async def handle(action: Action[int]) -> None:
        with SetWorkflowID(str(action.action_id)):
            await handle_order(action)

    DBOS.launch()
    yield handle
    DBOS.destroy(destroy_registry=True)
    await engine.dispose()


ALTERNATIVES: Mapping[str, Callable[[URL], AbstractAsyncContextManager[Handle]]] = {
    "asyncpg by hand": open_asyncpg,
    "version_id_col": open_sessions,
    "DBOS": open_dbos,
}
