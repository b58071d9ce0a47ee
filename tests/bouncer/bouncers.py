"""A PgBouncer in transaction mode, which gives each transaction the next connection."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import tempfile
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Final

from sqlalchemy import NullPool, create_engine
from sqlalchemy.exc import OperationalError

if TYPE_CHECKING:
    from sqlalchemy import URL

PROGRAM: Final = os.environ.get("SA_WFSTATE_PGBOUNCER") or shutil.which("pgbouncer")
"""The program, if there is one."""


def version() -> tuple[int, int]:
    """Return the version of the program."""
    assert PROGRAM
    command = [PROGRAM, "--version"]
    shown = subprocess.run(command, check=True, capture_output=True, text=True).stdout
    found = re.match(r"PgBouncer (\d+)\.(\d+)", shown)
    assert found, shown
    return int(found[1]), int(found[2])


@contextmanager
def bouncer(url: URL, *, prepared: bool, connections: int = 3) -> Iterator[URL]:
    """Start the program in front of the server of *url*; yield its URL.

    All clients share so many *connections* of the server. With *prepared* it supports
    prepared statements, which it can from 1.21 on.
    """
    assert PROGRAM
    home = Path(tempfile.mkdtemp(prefix="wfs-"))
    # The program refuses to run as root.
    owner = Path(str(url.query["host"])).stat().st_uid
    os.chown(home, owner, -1)
    settings = {
        "listen_addr": "",
        "listen_port": 6432,
        "unix_socket_dir": home,
        "auth_type": "any",
        "pool_mode": "transaction",
        # Two transactions of a client in a row have different server connections.
        "server_round_robin": 1,
        "default_pool_size": connections,
        "min_pool_size": connections,
        "logfile": home / "log",
    }
    if version() >= (1, 21):
        settings["max_prepared_statements"] = 200 if prepared else 0
    there = f"host={url.query['host']} user={url.username}"
    lines = ["[databases]", f"* = {there}", "[pgbouncer]"]
    lines += [f"{name} = {value}" for name, value in settings.items()]
    ini = home / "pgbouncer.ini"
    ini.write_text("\n".join(lines) + "\n")
    process = subprocess.Popen(
        [PROGRAM, "-q", ini], user=owner, stderr=subprocess.DEVNULL
    )
    front = url.set(port=6432, query={"host": str(home)})
    try:
        _wait_for(front, connections, home / "log")
        yield front
    finally:
        process.terminate()
        process.wait()
        shutil.rmtree(home, ignore_errors=True)


def _wait_for(front: URL, connections: int, log: Path) -> None:
    """Wait until each server connection is open."""
    engine = create_engine(front, poolclass=NullPool)
    deadline = time.monotonic() + 20
    while True:
        try:
            with ExitStack() as stack:
                for _ in range(connections):
                    # In a transaction, each needs a connection of its own.
                    stack.enter_context(engine.connect()).exec_driver_sql("SELECT 1")
        except OperationalError as error:
            if time.monotonic() > deadline:
                shown = log.read_text() if log.exists() else "no log"
                raise TimeoutError(shown) from error
            time.sleep(0.1)
        else:
            return
