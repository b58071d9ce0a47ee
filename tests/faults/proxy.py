"""A proxy between client and server that loses COMMITs, or the answers to them."""

from __future__ import annotations

import asyncio
import random
import tempfile
import threading
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from sqlalchemy import URL

_SOCKET = ".s.PGSQL.{port}"


class Proxy:
    """Forwards a Unix socket to another, and cuts connections at random.

    *at_commit* is the chance that a connection is cut when the client sends a COMMIT or
    a statement that may commit by itself; one half of the COMMITs get through, and only
    their answers are lost. *lost* counts both.
    """

    def __init__(self, target: str, at_commit: float, seed: int) -> None:
        self.lost = {"commit": 0, "answer": 0}
        self._target = target
        self._at_commit = at_commit
        self._random = random.Random(seed)

    async def serve(  # noqa: C901 - each direction sees the end of the other
        self, client: asyncio.StreamReader, back: asyncio.StreamWriter
    ) -> None:
        try:
            answers, server = await asyncio.open_unix_connection(self._target)
        except OSError:
            back.close()
            return
        cut = asyncio.Event()

        async def to_server() -> None:
            while data := await client.read(1 << 16):
                commits = b"COMMIT" in data or b"E\0\0\0" in data
                if commits and self._random.random() < self._at_commit:
                    kind = self._random.choice(["commit", "answer"])
                    self.lost[kind] += 1
                    cut.set()
                    if kind == "commit":
                        return
                server.write(data)
                await server.drain()

        async def to_client() -> None:
            while data := await answers.read(1 << 16):
                if cut.is_set():
                    return
                back.write(data)
                await back.drain()

        tasks = [asyncio.create_task(to_server()), asyncio.create_task(to_client())]
        await asyncio.wait(tasks, return_when=asyncio.FIRST_COMPLETED)
        for task in tasks:
            task.cancel()
        with suppress(Exception):
            await asyncio.gather(*tasks, return_exceptions=True)
        for writer in (server, back):
            writer.close()


@contextmanager
def losing_commits(
    url: URL, *, at_commit: float, seed: int
) -> Iterator[tuple[URL, Proxy]]:
    """Run a Proxy before the server at *url*; yield its URL, and the proxy."""
    port = url.port or 5432
    target = Path(str(url.query["host"]), _SOCKET.format(port=port))
    proxy = Proxy(str(target), at_commit, seed)
    loop = asyncio.new_event_loop()
    with tempfile.TemporaryDirectory(prefix="wfs-") as folder:
        path = Path(folder, _SOCKET.format(port=port))
        server = loop.run_until_complete(asyncio.start_unix_server(proxy.serve, path))
        thread = threading.Thread(target=loop.run_forever)
        thread.start()
        try:
            yield url.update_query_dict({"host": folder}), proxy
        finally:
            loop.call_soon_threadsafe(loop.stop)
            thread.join()
            server.close()
            for task in asyncio.all_tasks(loop):
                task.cancel()
                with suppress(BaseException):
                    loop.run_until_complete(task)
            loop.close()
