"""What a guard on a row that was only read costs; and a column that does not count.

A decision on another row is compared without a guard, with ``require_version``, and
with a lock on that row from the read on. The action of a service does the same by
``depends_on``. A column of the application is written as one that counts a version, and
as one in ``__unversioned__``.
"""

from __future__ import annotations

from itertools import count
from typing import TYPE_CHECKING, Any

from _harness import compare, postgresql, print_table
from pydantic import BaseModel
from sqlalchemy import create_engine
from sqlalchemy.orm import DeclarativeBase, Mapped, Session

from sa_wfstate import Action, ReducerService, WorkflowStateMixin
from sa_wfstate.versions import depends_on, require_version

if TYPE_CHECKING:
    from collections.abc import Callable

    from sqlalchemy import Engine


class Base(DeclarativeBase):
    pass


class DoctorState(BaseModel):
    shifts: int = 0
    notes: list[str] = ["a note of some length"] * 10


class Doctor(WorkflowStateMixin[DoctorState], Base):
    __tablename__ = "doctors"
    __unversioned__ = frozenset({"hint"})

    ward: Mapped[str | None]
    hint: Mapped[str | None]


NUMBERS = count()


def main() -> None:
    """Measure and print."""
    with postgresql(fsync="off") as url:
        engine = create_engine(url)
        Base.metadata.create_all(engine)
        with Session(engine) as session:
            for key in ("alice", "bob"):
                session.add(Doctor(workflow_key=key, state=DoctorState()))
            session.commit()
        for title, runs in contenders(engine).items():
            first = next(iter(runs))
            print_table(title, {"": compare(runs, baseline=first, rounds=31)})
        engine.dispose()


def contenders(engine: Engine) -> dict[str, dict[str, Callable[[], None]]]:
    """Return what is compared, by table."""
    plain = ReducerService(engine, Doctor, work)
    guarded = ReducerService(engine, Doctor, depends_on(colleague)(work))
    return {
        "A decision on another row": {
            "no guard": lambda: decide(engine),
            "require_version": lambda: decide(engine, guard=True),
            "with_for_update": lambda: decide(engine, with_for_update=True),
        },
        "An action": {
            "no guard": lambda: handle(plain),
            "depends_on": lambda: handle(guarded),
        },
        "A column beside the state": {
            "that counts": lambda: write(engine, "ward"),
            "in __unversioned__": lambda: write(engine, "hint"),
        },
    }


def decide(engine: Engine, *, guard: bool = False, **lock: Any) -> None:
    """Read two rows, write one."""
    with Session(engine) as session:
        alice = session.get_one(Doctor, "alice")
        bob = session.get_one(Doctor, "bob", **lock)
        if guard:
            require_version(session, bob)
        alice.state.shifts = bob.state.shifts + next(NUMBERS)
        session.commit()


def colleague(*_: object) -> list[tuple[type[Doctor], str]]:
    """Name the other row."""
    return [(Doctor, "bob")]


def work(state: DoctorState, _: Action[Any], __: object = ()) -> DoctorState:
    """Take a shift."""
    return state.model_copy(update={"shifts": state.shifts + 1})


def handle(service: ReducerService[DoctorState]) -> None:
    """Handle an action of one key."""
    service.handle(
        Action(workflow_key="alice", action_id=next(NUMBERS), payload=None),
    )


def write(engine: Engine, column: str) -> None:
    """Read a row, set a column of the application."""
    with Session(engine) as session:
        setattr(session.get_one(Doctor, "alice"), column, str(next(NUMBERS)))
        session.commit()


if __name__ == "__main__":
    main()
