"""WorkflowStateFields: the mixin for a table class of SQLModel.

::

    class OrderState(BaseModel):
        status: str = "new"


    class Order(WorkflowStateFields[OrderState], SQLModel, table=True):
        id: int | None = Field(default=None, primary_key=True)

The columns of a SQLModel are the fields of a Pydantic model, so those of a workflow are
fields here. Everything else is as with
:class:`~sa_wfstate.WorkflowStateMixin`, from which the class derives. The state takes
part in ``model_dump()``, in ``model_validate()`` and in the schema of a response.

A field may be declared again, with another default or another column. A column for the
state has the type :class:`~sa_wfstate.PydanticJSON`::

    class Parcel(WorkflowStateFields[OrderState], SQLModel, table=True):
        workflow_key: str = Field(default_factory=make_key, primary_key=True)
        state: OrderState = Field(
            default_factory=OrderState, sa_type=PydanticJSON(OrderState)
        )
"""

from __future__ import annotations

from datetime import datetime
from typing import TYPE_CHECKING, Any, NoReturn, TypeVar

from sqlalchemy import BigInteger, DateTime, Integer, Text, func, text
from sqlmodel import Field, SQLModel

from .errors import MappingError, VersionNotAssignable
from .orm.mixin import REFUSED, StateT, WorkflowStateMixin, argument_of
from .row.types import PydanticJSON
from .values.provenance import Provenance

__all__ = ["WorkflowStateFields"]

ModelT = TypeVar("ModelT", bound=type[SQLModel])

_NO_TYPE = MappingError(
    "WorkflowStateFields",
    "its state has no type; derive from WorkflowStateFields[YourState]",
)


class _Fields(WorkflowStateMixin[StateT]):
    """The fields, in a class that is no model: so they replace those of the mixin."""

    if not TYPE_CHECKING:
        workflow_key: str = Field(sa_type=Text, nullable=False)
        version: int = Field(
            default=None,
            sa_type=BigInteger,
            nullable=False,
            sa_column_kwargs={"server_default": text("1")},
        )
        state: Any = Field(
            sa_type=PydanticJSON(Any),
            nullable=False,
            sa_column_kwargs={"info": {REFUSED: _NO_TYPE}},
        )
        updated_at: datetime = Field(
            default=None,
            sa_type=DateTime(timezone=True),
            nullable=False,
            sa_column_kwargs={"server_default": func.now(), "onupdate": func.now()},
        )
        schema_version: int = Field(
            default=None,
            sa_type=Integer,
            nullable=False,
            sa_column_kwargs={"server_default": text("1")},
        )
        provenance: Provenance = Field(
            default=None,
            sa_type=PydanticJSON(Provenance, mutable=False),
            nullable=False,
        )


class _NoAttribute:
    """What a model has for a field: no attribute of the class.

    Otherwise Pydantic warns of each field that is declared again, because there is an
    attribute of the name in the mixin.
    """

    def __get__(self, instance: object, owner: type[Any]) -> NoReturn:
        raise AttributeError


def _without_attributes(cls: ModelT) -> ModelT:
    model: type[SQLModel] = cls
    for name in model.model_fields:
        setattr(cls, name, _NoAttribute())
    return cls


@_without_attributes
class WorkflowStateFields(SQLModel, _Fields[StateT]):
    """Make a table class of SQLModel a workflow with a state of type *StateT*.

    The type is given as ``WorkflowStateFields[OrderState]``. It stands before or after
    other bases.
    """

    if not TYPE_CHECKING:

        def __class_getitem__(cls, state_type: Any) -> type[SQLModel]:
            if isinstance(state_type, TypeVar):
                problem = "is given the type itself; SQLModel has no generic tables"
                raise MappingError(cls.__name__, problem)
            name = getattr(state_type, "__name__", str(state_type))
            namespace = {
                "__module__": __name__,
                "__orig_bases__": (WorkflowStateMixin[state_type],),
                "__annotations__": {"state": state_type},
                "state": _state(state_type),
            }
            return type(cls)(f"{cls.__name__}[{name}]", (cls,), namespace)

        def __init_subclass__(cls, **options: Any) -> None:
            super().__init_subclass__(**options)
            if "__state_options__" in vars(cls) and "state" not in vars(cls):
                cls.state = _state(argument_of(cls), **cls.__state_options__)

        def __setattr__(self, name: str, value: Any) -> None:
            # SQLModel does not assign by the attribute, which would refuse it.
            if name == "version" and value is not None:
                raise VersionNotAssignable(type(self).__name__)
            super().__setattr__(name, value)


def _state(type_: Any, **options: Any) -> Any:
    return Field(sa_type=PydanticJSON(type_, **options), nullable=False)
