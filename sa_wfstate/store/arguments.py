"""What a function of the application is given by mistake, and what to give instead."""

from __future__ import annotations

from typing import Any

from sqlalchemy import URL, Connection, Engine
from sqlalchemy.orm import Session, scoped_session, sessionmaker

from .._concurrency import refuse_async


def require_session(given: Any) -> None:
    """Raise TypeError unless *given* is a Session, or stands for one."""
    if hasattr(given, "identity_map"):
        return
    what, instead = f"got {_name(given)} where a Session belongs", "open one"
    if isinstance(given, sessionmaker):
        instead = "open one: with sessions() as session"
    elif isinstance(given, (Engine, Connection)):
        instead = "open one: with Session(engine) as session"
    raise TypeError(f"{what}; {instead}")


def require_bind(given: Any) -> None:
    """Raise TypeError unless *given* is an Engine or makes sessions."""
    refuse_async(given)
    _refuse_others(given)


def require_sessions(given: Any) -> None:
    """Raise TypeError unless *given* makes sessions."""
    if isinstance(given, Engine):
        raise TypeError(
            "got an Engine where a sessionmaker belongs; give it sessionmaker(engine)"
        )
    _refuse_others(given)


def _refuse_others(given: Any) -> None:
    if isinstance(given, Engine):
        return
    if isinstance(given, (str, URL)):
        instead = "create_engine(url)"
    elif isinstance(given, (Session, scoped_session)):
        instead = "the Engine, or the sessionmaker that makes such sessions"
    elif isinstance(given, Connection):
        instead = "its engine, or sessionmaker(connection)"
    elif callable(given):
        return
    else:
        instead = "an Engine or a sessionmaker"
    raise TypeError(
        f"got {_name(given)} where an Engine or a sessionmaker belongs, since each "
        f"call has its own transaction; give it {instead}"
    )


def _name(given: object) -> str:
    # Not the value: a URL may hold a password.
    name = type(given).__name__
    return f"an {name}" if name[0] in "AEIOU" else f"a {name}"
