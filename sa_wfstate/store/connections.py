"""Connections for calls with their own transaction, from an engine or sessions."""

from __future__ import annotations

from contextlib import contextmanager
from math import ceil
from typing import TYPE_CHECKING, Any

from sqlalchemy import Connection, Engine, text
from sqlalchemy.exc import NotSupportedError

from .._concurrency import refuse_sync
from ..commit_listeners import listeners_of
from ..orm.criteria import filtering
from ..orm.events import attend, on_checkin
from ..orm.routing import bind_arguments, by_shard
from ..row.direct import forget_plans
from ..row.engine_profiles import profile_of, profile_on
from .arguments import require_bind
from .autocommit import Autocommit, checkin

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence
    from contextlib import AbstractContextManager

    from sqlalchemy.ext.asyncio import AsyncEngine, async_sessionmaker
    from sqlalchemy.orm import Mapper, Session, sessionmaker

    from ..row.direct import DriverStatement
    from ..values.keys import Key


AUTOCOMMIT = "AUTOCOMMIT"
READ_COMMITTED = "READ COMMITTED"
IDLE_LIMIT = "idle_in_transaction_session_timeout"


class Connections:
    """Lend connections to the database of the class of *mapper*.

    *keys* are those of the rows that are read and written, all of one shard. *reads*
    allows a database that may lag behind the commits.
    """

    def __init__(self, bind: Engine | sessionmaker[Any], mapper: Mapper[Any]) -> None:
        require_bind(bind)
        if isinstance(bind, Engine):
            attend(bind)
            on_checkin(bind, checkin)
        self._bind = bind
        self._mapper = mapper
        self._filtering: dict[Connection, Session] = {}
        self._plain: bool | None = None
        self._known: dict[Any, DriverStatement | None] = {}

    def autocommit(
        self, keys: Sequence[Key] = (), *, reads: bool = False
    ) -> AbstractContextManager[Connection]:
        """Lend one in autocommit, without the round trips of BEGIN and COMMIT."""
        if isinstance(self._bind, Engine):
            return Autocommit(self._bind, self._known)
        return self._lend(AUTOCOMMIT, keys, reads=reads)

    def commit(self, keys: Sequence[Key] = ()) -> AbstractContextManager[Connection]:
        """Lend one for a single commit, in a transaction if it takes two statements."""
        if self.takes_one_statement():
            return self.autocommit(keys)
        # The compare-and-set itself checks; a stricter level would only refuse.
        return self.transaction(READ_COMMITTED, keys)

    def takes_one_statement(self) -> bool:
        """Return whether a commit of the class may be a single statement."""
        return not (listeners_of(self._mapper) or self.filters())

    @contextmanager
    def transaction(
        self, isolation_level: str | None = None, keys: Sequence[Key] = ()
    ) -> Iterator[Connection]:
        """Lend one in a transaction that is committed unless an error is raised.

        *isolation_level* defaults to that of the engine.
        """
        with self._lend(isolation_level, keys) as connection:
            if not isinstance(self._bind, Engine):
                yield connection  # Its session has begun, and commits.
                return
            with connection.begin():
                yield connection

    @contextmanager
    def _lend(
        self, isolation_level: str | None, keys: Sequence[Key], *, reads: bool = False
    ) -> Iterator[Connection]:
        if isinstance(self._bind, Engine):
            options = isolation(self._bind, isolation_level)
            with self._bind.connect() as connection:
                yield connection.execution_options(**options)
        else:
            session: Session
            with self._bind() as session, session.begin():
                where = bind_arguments(session, self._mapper, keys, reads=reads)
                bind = session.get_bind(**where)
                options = isolation(bind, isolation_level)
                connection = session.connection(
                    bind_arguments={"bind": bind}, execution_options=options
                )
                around = self._filtering.get(connection)
                try:
                    if filtering(session):
                        self._filtering[connection] = session
                    yield connection
                except NotSupportedError:
                    # Not in a transaction of the application: it would be ended.
                    if AUTOCOMMIT in options.values():
                        forget_plans(connection)
                    raise
                finally:
                    self._filtering.pop(connection, None)
                    if around is not None:
                        self._filtering[connection] = around

    def of(self, mapper: Mapper[Any]) -> Connections:
        """Return the connections to the database of another class."""
        return Connections(self._bind, mapper)

    def filtering(self, connection: Connection) -> Session | None:
        """Return the session whose criteria filter reads of *connection*, if any."""
        return self._filtering.get(connection)

    def filters(self) -> bool:
        """Return whether the sessions may filter what they read."""
        if isinstance(self._bind, Engine):
            return False
        with self._bind() as session:
            return filtering(session) is not None

    def by_shard(self, keys: Sequence[Key]) -> list[list[int]]:
        """Group *keys* by the shard of their rows; return their positions."""
        if isinstance(self._bind, Engine):
            return [list(range(len(keys)))]
        with self._bind() as session:
            return by_shard(session, self._mapper, keys)

    def reaches(
        self, connection: Connection, mapper: Mapper[Any], keys: Sequence[Key]
    ) -> bool:
        """Return whether *connection* is to the database of these rows of *mapper*."""
        if isinstance(self._bind, Engine):
            return True
        with self._bind() as session:
            bind = session.get_bind(**bind_arguments(session, mapper, keys))
        return bind.engine.pool is connection.engine.pool

    def shared(self) -> bool:
        """Return whether a transaction may have writes of several callers.

        Sessions may differ from caller to caller. SQLite has one writer at a time.
        """
        bind = self._bind
        return isinstance(bind, Engine) and profile_of(bind.dialect).groups

    def plain(self) -> bool:
        """Return whether one statement may do the work of a shared transaction.

        It runs at READ COMMITTED, and no server with shards can route it. That is asked
        once.
        """
        if self._plain is None and self.shared():
            assert isinstance(self._bind, Engine)  # noqa: S101
            with self._bind.connect() as connection:
                level = connection.get_isolation_level()
                server = profile_on(connection)
                plain = server.groups and server.locks_many
                self._plain = plain and level == READ_COMMITTED
        return bool(self._plain)


def isolation(bind: Engine | Connection, isolation_level: str | None) -> dict[str, Any]:
    """Return the option for a level; none where *bind* cannot have it."""
    if isinstance(bind, Connection) and bind.in_transaction():
        return {}  # As in a test: its level cannot be changed any more.
    if (
        isolation_level == READ_COMMITTED
        and not profile_of(bind.dialect).read_committed
    ):
        return {}
    return {"isolation_level": isolation_level} if isolation_level else {}


def limit_lock_waits(connection: Connection, seconds: float = 1.0) -> None:
    """Limit waits of the transaction of *connection* for a lock to *seconds*."""
    if profile_of(connection.dialect).timeouts:
        limit = f"SET LOCAL lock_timeout = {ceil(seconds * 1e3)}"
        connection.execute(text(limit))


def limit_idle_time(connection: Connection, seconds: float) -> None:
    """Make the server end the transaction of *connection* after *seconds* idle."""
    if profile_of(connection.dialect).timeouts:
        connection.execute(text(f"SET LOCAL {IDLE_LIMIT} = {ceil(seconds * 1e3)}"))


def sync_bind(bind: AsyncEngine | async_sessionmaker[Any]) -> Any:
    """Return the Engine of an AsyncEngine, or a factory of its sync sessions."""
    refuse_sync(bind)
    # Only an AsyncEngine has it; importing that class costs applications without async.
    engine = getattr(bind, "sync_engine", None)
    return _SyncSessions(bind) if engine is None else engine


class _SyncSessions:
    """Make the sync sessions of an async_sessionmaker."""

    def __init__(self, sessions: Any) -> None:
        self._sessions = sessions

    def __call__(self) -> Any:
        return self._sessions().sync_session
