"""The shop over HTTP, with a real server; and its reducer without one."""

from __future__ import annotations

import sys
import threading
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any

import httpx2 as httpx
import pytest
import uvicorn
from alembic import command
from sqlalchemy import make_url

from sa_wfstate import Intent
from sa_wfstate.testing import given

FOLDER = str(Path(__file__).parent)
sys.path.insert(0, FOLDER)

from shop.app import create_app
from shop.migrate import config_of, migrate
from shop.models import OrderState
from shop.reducer import Pay, Place, Refused, Ship, decide

if TYPE_CHECKING:
    from collections.abc import Iterator


def test_order_is_placed_paid_and_shipped() -> None:
    """The reducer is a pure function, so its test needs no server."""
    order = given(OrderState(), reducer=decide, workflow_key="o-1")
    order.when(Place(total=30), Pay(amount=30), Ship()).then(
        OrderState(status="shipped", total=30, paid=30),
        [Intent(intent_type="receipt", target="o-1", payload={"amount": 30})],
    )
    with pytest.raises(Refused, match="new cannot ship"):
        order.when(Ship())


def test_revisions_make_the_tables_of_the_models(DATABASE_URL: str) -> None:  # noqa: N803
    """``alembic check`` finds nothing to do."""
    url = make_url(DATABASE_URL)
    migrate(url)
    command.check(config_of(url))


@pytest.fixture
def shop(DATABASE_URL: str) -> Iterator[httpx.Client]:  # noqa: N803
    """Start the server on a database with the tables, and connect to it."""
    url = make_url(DATABASE_URL)
    migrate(url)
    text = url.set(drivername="postgresql+asyncpg").render_as_string(False)
    config = uvicorn.Config(create_app(text), port=0, log_level="warning")
    server = uvicorn.Server(config)
    thread = threading.Thread(target=server.run)
    thread.start()
    try:
        deadline = time.monotonic() + 30
        while not server.started and time.monotonic() < deadline:
            time.sleep(0.02)
        port = server.servers[0].sockets[0].getsockname()[1]
        with httpx.Client(base_url=f"http://127.0.0.1:{port}", timeout=30) as client:
            yield client
    finally:
        server.should_exit = True
        thread.join()


def act(shop: httpx.Client, key: str, id_: str, **payload: Any) -> httpx.Response:
    """Send an action."""
    return shop.post(
        f"/orders/{key}/actions", json=payload, headers={"Idempotency-Key": id_}
    )


def test_an_order_over_http(shop: httpx.Client) -> None:
    """Actions, idempotency, ETags, history, and the projection, in one story."""
    placed = act(shop, "o-1", "place-1", kind="place", total=30)
    assert placed.json() == {"version": 1, "replayed": False}
    again = act(shop, "o-1", "place-1", kind="place", total=30)
    assert again.json() == {"version": 1, "replayed": True}
    reused = act(shop, "o-1", "place-1", kind="place", total=31)
    assert (reused.status_code, reused.json()["code"]) == (422, "action-id-reused")
    refused = act(shop, "o-1", "ship-1", kind="ship")
    assert (refused.status_code, refused.json()["code"]) == (409, "refused")

    seen = shop.get("/orders/o-1")
    assert seen.json()["status"] == "placed"
    assert seen.headers["ETag"] == placed.headers["ETag"] == again.headers["ETag"]
    tag = {"If-Match": seen.headers["ETag"]}
    noted = shop.put("/orders/o-1/note", json={"note": "a gift"}, headers=tag)
    assert (noted.status_code, noted.json()["note"]) == (200, "a gift")
    lost = shop.put("/orders/o-1/note", json={"note": "no gift"}, headers=tag)
    assert lost.status_code == 412
    assert lost.headers["Content-Type"] == "application/problem+json"
    assert (lost.json()["expected_version"], lost.json()["actual_version"]) == (1, 2)
    assert shop.put("/orders/o-1/note", json={"note": ""}).status_code == 428
    assert shop.get("/orders/o-9").status_code == 404

    paid = act(shop, "o-1", "pay-1", kind="pay", amount=30)
    assert paid.json()["version"] == 3
    history = shop.get("/orders/o-1/history").json()
    assert [each["version"] for each in history] == [3, 2, 1]
    assert history[0]["state"]["note"] == "a gift"

    deadline = time.monotonic() + 10
    while not (rows := shop.get("/orders", params={"status": "paid"}).json()):
        assert time.monotonic() < deadline
        time.sleep(0.05)
    assert rows == [{"key": "o-1", "open": 0}]
