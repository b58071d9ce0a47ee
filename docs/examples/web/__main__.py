"""Run the shop on a temporary PostgreSQL: ``python -m nox -s web``."""

from __future__ import annotations

import logging
import sys
from pathlib import Path

import uvicorn

sys.path.insert(0, str(Path(__file__).parent))

from shop.app import create_app
from shop.migrate import migrate

from sa_wfstate.testing import temporary_database, temporary_server

logging.basicConfig(level=logging.INFO)
with temporary_server() as server_url, temporary_database(server_url) as url:
    migrate(url)
    text = url.set(drivername="postgresql+asyncpg").render_as_string(
        hide_password=False
    )
    print("The shop opens at http://127.0.0.1:8000/docs; Ctrl-C closes it.")
    uvicorn.run(create_app(text), host="127.0.0.1", port=8000)
