"""What is put around methods of Session shows in no call that concerns no workflow."""

from __future__ import annotations

import inspect
from typing import Any

import pytest
from sqlalchemy import create_engine, text, update
from sqlalchemy import inspect as inspect_mapped
from sqlalchemy.exc import NoInspectionAvailable
from sqlalchemy.orm import DeclarativeBase, Mapped, Session, aliased, mapped_column
from sqlalchemy.orm.exc import UnmappedClassError

from sa_wfstate import WorkflowStateMixin


class Base(DeclarativeBase):
    pass


class Order(WorkflowStateMixin[dict[str, Any]], Base):
    __tablename__ = "orders"


class Plain(Base):
    __tablename__ = "plain"

    id: Mapped[int] = mapped_column(primary_key=True)


class Unmapped:
    pass


class Abstract(WorkflowStateMixin[dict[str, Any]]):
    """A workflow class that is not mapped."""


WRAPPED = {
    name: method
    for name, method in vars(Session).items()
    if getattr(method, "__module__", "").startswith("sqlalchemy")
    and hasattr(method, "__wrapped__")
    and "sa_wfstate" in method.__code__.co_filename
}
CALLED = {
    "merge",
    "bulk_save_objects",
    "bulk_insert_mappings",
    "bulk_update_mappings",
} | {"merge_all"} & vars(Session).keys()  # It is new in SQLAlchemy 2.1.
"""What applications call that ends in a wrapped method."""
# Of each one alone, and in a list.
THINGS = [
    None,
    "word",
    7,
    ("a", "tuple"),
    {},
    Plain,
    Order,
    Unmapped,
    Abstract,
    Plain(),
    Unmapped(),
    Abstract(),
    aliased(Plain),
    Plain.id,
    inspect,
    Base.metadata,
    create_engine("sqlite://"),
]
ARGUMENTS = [
    (),
    *[(thing,) for thing in THINGS],
    *[([thing],) for thing in THINGS],
    *[(thing, [{"id": 1}]) for thing in THINGS if thing is not Order],
    *[(Plain, thing) for thing in THINGS],
    (Plain, [], 1, 2, 3, 4, 5),
]


def outcome(name: str, *arguments: Any, original: bool, **options: Any) -> Any:
    """Call a method of a new session; return what it makes or raises."""
    engine = create_engine("sqlite://")
    Base.metadata.create_all(engine)
    with Session(engine) as session, pytest.MonkeyPatch.context() as patch:
        for wrapped in WRAPPED if original else ():
            patch.setattr(Session, wrapped, WRAPPED[wrapped].__wrapped__)
        try:
            made = getattr(session, name)(*arguments, **options)
        except Exception as error:  # noqa: BLE001 - whatever it may be
            made = error
        written = session.query(Plain).count() if session.is_active else None
        held = sorted(type(each).__name__ for each in session)
    engine.dispose()
    return type(made), str(made) if isinstance(made, Exception) else "", written, held


def test_few_methods_are_wrapped() -> None:
    """Those of which no event of SQLAlchemy tells, and what each is needed for."""
    reasons = {
        "_merge": "compares versions, and copies over a row that exists",
        "bulk_save_objects": "sends no mapper event, and stamps no provenance",
        "_bulk_save_mappings": "checks no key, and updates without provenance",
    }
    assert WRAPPED.keys() == reasons.keys()


@pytest.mark.parametrize("name", WRAPPED)
def test_wrapped_method_looks_like_the_original(name: str) -> None:
    """Its signature, name and documentation are those of SQLAlchemy."""
    method, original = getattr(Session, name), getattr(Session, name).__wrapped__
    assert inspect.signature(method) == inspect.signature(original)
    for attribute in ("__name__", "__qualname__", "__module__", "__doc__"):
        assert getattr(method, attribute) == getattr(original, attribute)


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("name", sorted(CALLED))
def test_wrong_arguments_raise_what_sqlalchemy_raises(name: str) -> None:
    """Of whatever is given in place of a workflow, the error is the one without us."""
    for arguments in ARGUMENTS:
        found, expected = (
            outcome(name, *arguments, original=original) for original in (False, True)
        )
        assert found == expected, arguments


@pytest.mark.parametrize("name", sorted(CALLED))
def test_wrong_names_raise_what_sqlalchemy_raises(name: str) -> None:
    """A parameter that is given twice, or that there is not, is refused by its name."""
    first = list(inspect.signature(getattr(Session, name)).parameters)[1]
    for options in (
        {"nonsense": 1},
        {first: [], "nonsense": 1},
        {first: [Plain(id=1)]},
    ):
        found, expected = (
            outcome(name, original=original, **options) for original in (False, True)
        )
        assert found == expected
        found, expected = (
            outcome(name, Plain(id=1), original=original, **options)
            for original in (False, True)
        )
        assert found == expected


def test_wrong_bind_arguments_raise_what_sqlalchemy_raises() -> None:
    """What stands in place of a mapper is for SQLAlchemy to refuse; a class is one."""
    with Session() as session:
        for mapper, error in (
            ("word", NoInspectionAvailable),
            (7, NoInspectionAvailable),
            (Unmapped, UnmappedClassError),
        ):
            for statement in (text("SELECT 1"), update(Order.__table__)):
                with pytest.raises(error):
                    session.execute(statement, bind_arguments={"mapper": mapper})
    engine = create_engine("sqlite://")
    with Session(engine) as session:
        for mapper in (Plain, Order, inspect_mapped(Order)):
            arguments = {"mapper": mapper}
            assert session.scalar(text("SELECT 1"), bind_arguments=arguments) == 1
    engine.dispose()
