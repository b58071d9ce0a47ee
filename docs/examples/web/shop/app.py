"""The HTTP interface, and the workers that run beside it."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Annotated, Any

from fastapi import Body, Depends, FastAPI, Header, Request, Response
from fastapi.responses import JSONResponse
from sqlalchemy import select
from sqlalchemy.ext.asyncio import AsyncSession, async_sessionmaker, create_async_engine

from sa_wfstate import Action, Provenance, StateConflict, WorkflowStateError, http
from sa_wfstate.asyncio import (
    IntentDispatcher,
    ProjectionWorker,
    ReducerService,
    get_state,
    try_commit,
)
from sa_wfstate.history import list_versions
from sa_wfstate.outbox import DueIntent, store_intents

from .models import (
    Order,
    OrderAction,
    OrderIntent,
    OrderRow,
    OrderState,
    Watermark,
    order_rows,
)
from .reducer import Payload, Refused, decide

log = logging.getLogger("shop")


async def deliver(intent: DueIntent) -> None:
    """Send a receipt; an exception makes the dispatcher try it again."""
    log.info("%s for %s: %s", intent.intent_type, intent.target, intent.payload)


def create_app(database_url: str) -> FastAPI:
    """Make the application for a database that has the tables."""

    @asynccontextmanager
    async def lifespan(app: FastAPI) -> AsyncIterator[None]:
        engine = create_async_engine(database_url)
        stop = asyncio.Event()
        app.state.sessions = async_sessionmaker(engine)
        app.state.service = ReducerService(
            engine,
            Order,
            decide,
            initial=OrderState,
            dedup=OrderAction,
            writers=[store_intents(OrderIntent)],
        )
        async with asyncio.TaskGroup() as workers:
            workers.create_task(
                IntentDispatcher(engine, OrderIntent, deliver).run(stop)
            )
            workers.create_task(
                ProjectionWorker(engine, order_rows, Watermark).run(stop)
            )
            yield
            stop.set()
        await engine.dispose()

    app = FastAPI(title="shop", lifespan=lifespan)
    app.add_exception_handler(WorkflowStateError, answer_error)
    app.add_exception_handler(Refused, answer_refusal)
    app.get("/orders/{key}")(read_order)
    app.post("/orders/{key}/actions")(act)
    app.put("/orders/{key}/note")(set_note)
    app.get("/orders/{key}/history")(read_history)
    app.get("/orders")(list_orders)
    return app


async def answer_error(request: Request, error: Exception) -> Response:
    """Answer an error of the library with a problem document."""
    assert isinstance(error, WorkflowStateError)
    status, body = http.problem(error, if_match=request.headers.get("If-Match"))
    return JSONResponse(body, status, media_type=http.MEDIA_TYPE)


async def answer_refusal(_: Request, error: Exception) -> Response:
    """Answer an action that the reducer has refused."""
    body = {"title": "Conflict", "status": 409, "code": "refused", "detail": str(error)}
    return JSONResponse(body, 409, media_type=http.MEDIA_TYPE)


async def open_session(request: Request) -> AsyncIterator[AsyncSession]:
    """Open a transaction that is committed before the response is sent."""
    async with request.app.state.sessions.begin() as session:
        yield session


InTransaction = Annotated[AsyncSession, Depends(open_session, scope="function")]


async def read_order(
    key: str, session: InTransaction, response: Response
) -> OrderState:
    """Return an order, with its version as the ETag."""
    snapshot = await get_state(session, Order, key)
    response.headers["ETag"] = http.etag(snapshot)
    return snapshot.state


async def act(
    key: str,
    payload: Annotated[Payload, Body()],
    idempotency_key: Annotated[str, Header()],
    request: Request,
    response: Response,
) -> dict[str, Any]:
    """Place, pay or ship: once for each Idempotency-Key, however often it is sent."""
    action = Action(workflow_key=key, action_id=idempotency_key, payload=payload)
    committed = await request.app.state.service.handle(action)
    response.headers["ETag"] = http.etag(committed)
    return {"version": committed.version, "replayed": committed.replayed}


async def set_note(
    key: str,
    note: Annotated[str, Body(embed=True)],
    session: InTransaction,
    response: Response,
    if_match: Annotated[str | None, Header()] = None,
) -> OrderState:
    """Change the note of the version that the client has seen: 412 otherwise."""
    version = http.if_match(if_match)
    snapshot = await get_state(session, Order, key)
    outcome = await try_commit(
        session,
        Order,
        key,
        expected_version=version,
        base=snapshot,
        state=snapshot.state.model_copy(update={"note": note}),
        provenance=Provenance.now(),
    )
    if isinstance(outcome, StateConflict):
        raise outcome
    response.headers["ETag"] = http.etag(outcome)
    return outcome.snapshot.state


async def read_history(key: str, session: InTransaction) -> list[dict[str, Any]]:
    """List who changed an order, when, by which action; the newest first."""
    versions = await session.run_sync(list_versions, Order, key, limit=100)
    return [
        {
            "version": each.version,
            "updated_at": each.updated_at,
            "action_id": each.provenance.action_id,
            "state": each.state,
        }
        for each in versions
    ]


async def list_orders(session: InTransaction, status: str) -> list[dict[str, Any]]:
    """List the orders of a status from the projection, which follows the commits."""
    query = select(OrderRow).where(OrderRow.tag == status).limit(100)
    rows = await session.scalars(query.order_by(OrderRow.workflow_key))
    return [{"key": row.workflow_key, "open": row.open} for row in rows]
