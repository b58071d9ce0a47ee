"""Schema versions: the shapes of a payload, and the steps from one to another.

::

    def v1_to_v2(data):
        data["lines"] = data.pop("items")
        return data


    class Order(WorkflowStateMixin[OrderState], Base):
        __tablename__ = "orders"
        __schema_version__ = 2
        __upcasters__ = {1: v1_to_v2}

An upcaster is a pure function from plain JSON data to plain JSON data; it may change
its argument. ``__upcasters__`` has one for each older version, so that a row of any age
can be read. :class:`Upcaster` adds the same step in SQL.

While two releases run side by side, the new one can go on writing the old shape, with
``__write_schema_version__`` and ``__downcasters__``, one step per version down.

A payload crosses the driver as it is, or as *marked* text: after a ``v``, the JSON list
of its schema version, the key of its row (or null) and itself. A payload at another
version than the current one is always marked.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from inspect import iscoroutinefunction
from typing import TYPE_CHECKING, Any, Final, NamedTuple

from pydantic_core import from_json, to_json

from ..errors import MappingError, PayloadError, SchemaVersionAhead
from ..values.keys import Key, TenantKey

if TYPE_CHECKING:
    from sqlalchemy.orm import Mapper


Step = Callable[[Any], Any]

_decode = json.JSONDecoder().raw_decode

MARK: Final = "v"
"""The first character of a marked text; no JSON starts with it."""

STORED_TWICE: Final = (
    "is a JSON string that holds JSON: a connection's JSON codec encoded it twice; "
    "UPDATE … SET column = CAST(column #>> '{}' AS JSONB) repairs it, see PayloadError "
    "in the reference of errors"
)


class Upcaster(NamedTuple):
    r"""One step in two languages: a function for reading, SQL for rewriting rows.

    *sql* is a PostgreSQL expression over the column ``state`` of type JSONB. With it,
    :func:`~sa_wfstate.upcasting.upcast_all` and migrations need not fetch rows.

    >>> step = Upcaster(lambda data: data | {"lines": []}, "state || '{\"lines\": []}'")
    >>> step({"status": "new"})
    {'status': 'new', 'lines': []}
    """

    function: Step
    sql: str

    def __call__(self, data: Any) -> Any:
        return self.function(data)


class PayloadSchema:
    """The schema versions of one class: the current one, and the steps to it.

    The application sees *version* and stores *write_version*; rows may be as old as
    *oldest*.

    Raises MappingError if a step is missing, is superfluous, or is no function.
    """

    def __init__(
        self,
        entity: str,
        version: int = 1,
        upcasters: Mapping[int, Step] | None = None,
        *,
        write_version: int | None = None,
        downcasters: Mapping[int, Step] | None = None,
        oldest: int = 1,
    ) -> None:
        self.entity = entity
        self.oldest = oldest
        self.version = _checked(entity, "__schema_version__", version)
        self.write_version = self.version
        if write_version is not None:
            name = "__write_schema_version__"
            self.write_version = _checked(entity, name, write_version)
            if write_version > version:
                raise MappingError(entity, f"{name} is beyond __schema_version__")
        up = range(oldest, self.version)
        self.upcasters = _steps(entity, "__upcasters__", upcasters, up)
        self.downcasters = _steps(
            entity,
            "__downcasters__",
            downcasters,
            range(self.version, self.write_version, -1),
        )

    def upcast(
        self,
        data: Any,
        schema_version: int,
        workflow_key: str | None,
        to_version: int | None = None,
    ) -> str:
        """Return the JSON of *data* of *schema_version* in the shape of *to_version*.

        That is the current one by default. Raises PayloadError, which names the row, if
        a step raises or does not return JSON data.
        """
        versions = range(schema_version, to_version or self.version)
        return self._walk(self.upcasters, data, versions, workflow_key)

    def read(self, text: str) -> str:
        """Return the JSON text of the current shape for a *text* that may be marked.

        Raises SchemaVersionAhead if newer code has written it.
        """
        if not text.startswith(MARK):
            return text
        schema_version, workflow_key, payload = _unmark(text)
        if schema_version == self.version:
            return payload
        if self.is_ahead(schema_version):
            raise SchemaVersionAhead(
                self.entity, workflow_key, schema_version, self.version
            )
        return self.upcast(from_json(payload), schema_version, workflow_key)

    def is_ahead(self, schema_version: int) -> bool:
        """Return whether newer code has written a row of *schema_version*."""
        return schema_version > self.version

    def mark(self, text: str, schema_version: int | None, workflow_key: Key) -> str:
        """Mark *text* of a row at *schema_version*, unless it is marked or current."""
        if schema_version in {None, self.version} or text.startswith(MARK):
            return text
        if isinstance(workflow_key, TenantKey):  # It would be a list.
            workflow_key = str(workflow_key)
        return (
            f"{MARK}[{schema_version},{json.dumps(workflow_key, default=str)},{text}]"
        )

    def version_of(self, text: str) -> int:
        """Return the schema version of a *text* that may be marked."""
        return _unmark(text)[0] if text.startswith(MARK) else self.version

    def write(self, text: str) -> str:
        """Return *text*, JSON of the current shape, in the shape that is stored."""
        if self.write_version == self.version:
            return text
        down = range(self.version, self.write_version, -1)
        return self._walk(self.downcasters, from_json(text), down, None)

    def sql(self, old_state: str, schema_version: str) -> str | None:
        """Return SQL for the new state of a row; None if a step has no SQL.

        *old_state* and *schema_version* are the SQL of its columns.
        """
        branches = []
        for version in range(self.oldest, self.write_version):
            state = old_state
            for step in range(version, self.write_version):
                upcaster = self.upcasters[step]
                if not isinstance(upcaster, Upcaster):
                    return None
                inner = f"(SELECT {state} AS state) AS wfs_step"
                state = f"(SELECT {upcaster.sql} FROM {inner})"  # noqa: S608 - the caller's SQL
            branches.append(f"WHEN {version} THEN {state}")
        cases = " ".join(branches)
        return f"CASE {schema_version} {cases} END" if branches else None

    def where(self, text: str) -> str:
        """Return the name of the state in *text*, with its row if it is marked."""
        if not text.startswith(MARK):
            return self.name_of(self.version, None)
        schema_version, workflow_key, _ = _unmark(text)
        return self.name_of(schema_version, workflow_key)

    def name_of(self, schema_version: int | None, workflow_key: str | None) -> str:
        """Return the name of a state for errors, with what is known of its row."""
        who = self.entity if workflow_key is None else f"{self.entity} {workflow_key!r}"
        at = "" if schema_version is None else f" (schema version {schema_version})"
        return f"{who} state{at}"

    def _walk(
        self,
        steps: Mapping[int, Step],
        data: Any,
        versions: range,
        workflow_key: str | None,
    ) -> str:
        problem = ""
        try:
            for version in versions:
                problem = f"the step from version {version} raised"
                data = steps[version](data)
            problem = "dumping the result of the steps raised"
            # Validation and writing refuse a NaN; null would hide it.
            return to_json(data, inf_nan_mode="constants").decode()
        except Exception as error:
            where = self.name_of(versions.start, workflow_key)
            problem = f"{problem} {type(error).__name__}"
            if is_stored_twice(data):
                problem = STORED_TWICE
            raise PayloadError(where, "", problem) from error


def _unmark(text: str) -> tuple[int, Any, str]:
    """Return schema version, workflow key and JSON of the marked *text*."""
    start = len(MARK) + 1
    comma = text.index(",", start)
    workflow_key, end = _decode(text, comma + 1)
    return int(text[start:comma]), workflow_key, text[end + 1 : -1]


def is_stored_twice(data: object) -> bool:
    """Return whether *data*, read from JSON, is the text of a JSON object or array."""
    if not isinstance(data, str) or data[:1] not in {"{", "["}:
        return False
    try:
        from_json(data)
    except ValueError:
        return False
    return True


def schema_of(cls: type[Any]) -> PayloadSchema:
    """Return the schema that *cls* declares; MappingError if it is not one."""
    return PayloadSchema(
        cls.__name__,
        cls.__schema_version__,
        cls.__upcasters__,
        write_version=cls.__write_schema_version__,
        downcasters=cls.__downcasters__,
    )


def _checked(entity: str, name: str, version: object) -> int:
    if type(version) is not int or not 1 <= version < 2**31:  # True is an int
        raise MappingError(entity, f"{name} must be an int from 1, got {version!r}")
    return version


def _steps(
    entity: str, name: str, steps: Mapping[int, Step] | None, versions: range
) -> dict[int, Step]:
    """Check that *steps* holds one function for each of *versions*, and no other."""
    steps = {} if steps is None else steps
    if not isinstance(steps, Mapping):
        problem = f"{name} must be a dict of functions by version"
        raise MappingError(entity, f"{problem}, got {type(steps).__name__}")
    for version in versions:
        if version not in steps:
            raise MappingError(entity, f"{name} has no step from version {version}")
    for version, step in steps.items():
        if type(version) is not int or version not in versions:
            raise MappingError(
                entity,
                f"{name} has a step from version {version!r}, which no payload needs",
            )
        function: Any = step.function if isinstance(step, Upcaster) else step
        if not callable(function) or iscoroutinefunction(function):
            kind = "an async one" if callable(function) else type(function).__name__
            problem = f"{name}[{version}] must be a function of the JSON data"
            raise MappingError(entity, f"{problem}, got {kind}")
    return dict(steps)


def payload_schema(mapper: Mapper[Any]) -> PayloadSchema:
    """Return the schema versions of a workflow class."""
    state_type: Any = mapper.columns["state"].type
    schema: PayloadSchema = state_type.payload_schema
    return schema
