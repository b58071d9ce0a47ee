"""Optimistic locking over HTTP: ETag, If-Match, and problem documents (RFC 9457).

For any web framework; nothing here imports one. A response sends the version of a
workflow as its ETag::

    response.headers["ETag"] = etag(snapshot)

The next request sends it back, and the write is based on that version::

    version = if_match(request.headers.get("If-Match"))
    outcome = try_commit(session, Order, key, expected_version=version, …)

A :class:`~sa_wfstate.versions.RowVersion`, the ``token`` of a commit and an ETag are
one thing: the version and the effect that wrote it. So a workflow that was deleted and
created again has another ETag, although its versions start at 1 again.

An error handler answers each error of the library with :func:`problem`::

    status, body = problem(error, if_match=request.headers.get("If-Match"))
"""

from __future__ import annotations

import re
from http import HTTPStatus
from typing import Any, Final
from urllib.parse import quote, unquote

from .errors import (
    ActionIdReused,
    ConflictReason,
    IfMatchRefused,
    KeyNotAssignable,
    MappingError,
    NestedHandle,
    OutcomeUnknown,
    PayloadError,
    ProjectionBehind,
    QueueFull,
    ReducerGaveUp,
    SchemaVersionAhead,
    StateBehind,
    StateConflict,
    StateReplaced,
    UnflushedChanges,
    UnversionedWrite,
    VersionNotAssignable,
    VersionNotInHistory,
    VersionNotKept,
    VersionNotSeen,
    WorkflowNotFound,
    WorkflowStateError,
    WriteSuppressed,
)
from .orm.mixin import WorkflowStateMixin
from .values.public_names import publish
from .values.row_version import RowVersion
from .values.snapshot import StateCommitted, WorkflowSnapshot

__all__ = ["MEDIA_TYPE", "etag", "if_match", "problem"]

MEDIA_TYPE: Final = "application/problem+json"
"""The media type of the body that :func:`problem` returns."""

_LAST_VERSION = 2**63 - 1
_TAG = re.compile(r'(W/)?"([\x21\x23-\x7e\x80-\xff]*)"')
_SEPARATOR = re.compile(r"[ \t]*,[ \t,]*")
_OURS = re.compile(r"([1-9][0-9]{0,18})(?:-(.+))?")
# The characters of an entity tag, but not "%", which quote() adds.
_SAFE = "!#$&'()*+,/:;<=>?@[]^`{|}~"

STATUS: Final[dict[type[WorkflowStateError], HTTPStatus]] = {
    StateConflict: HTTPStatus.CONFLICT,
    IfMatchRefused: HTTPStatus.PRECONDITION_FAILED,
    WorkflowNotFound: HTTPStatus.NOT_FOUND,
    VersionNotInHistory: HTTPStatus.NOT_FOUND,
    VersionNotKept: HTTPStatus.GONE,
    PayloadError: HTTPStatus.UNPROCESSABLE_ENTITY,
    ActionIdReused: HTTPStatus.UNPROCESSABLE_ENTITY,
    # Another attempt, later or in another process, may succeed.
    ReducerGaveUp: HTTPStatus.SERVICE_UNAVAILABLE,
    QueueFull: HTTPStatus.SERVICE_UNAVAILABLE,
    ProjectionBehind: HTTPStatus.SERVICE_UNAVAILABLE,
    StateBehind: HTTPStatus.SERVICE_UNAVAILABLE,
    SchemaVersionAhead: HTTPStatus.SERVICE_UNAVAILABLE,
    # It may have been committed: not the same as "not done, send it again".
    OutcomeUnknown: HTTPStatus.GATEWAY_TIMEOUT,
    # Mistakes of the program, or of the database's set-up.
    KeyNotAssignable: HTTPStatus.INTERNAL_SERVER_ERROR,
    MappingError: HTTPStatus.INTERNAL_SERVER_ERROR,
    NestedHandle: HTTPStatus.INTERNAL_SERVER_ERROR,
    StateReplaced: HTTPStatus.INTERNAL_SERVER_ERROR,
    UnflushedChanges: HTTPStatus.INTERNAL_SERVER_ERROR,
    UnversionedWrite: HTTPStatus.INTERNAL_SERVER_ERROR,
    VersionNotAssignable: HTTPStatus.INTERNAL_SERVER_ERROR,
    VersionNotSeen: HTTPStatus.INTERNAL_SERVER_ERROR,
    WriteSuppressed: HTTPStatus.INTERNAL_SERVER_ERROR,
}
"""The status of each error; a subclass has that of its base."""


def etag(
    row: WorkflowSnapshot[Any]
    | WorkflowStateMixin[Any]
    | StateCommitted[Any]
    | RowVersion,
) -> str:
    """Return the entity tag of *row*, with its quotes, for the header ``ETag``.

    *row* is a snapshot, an instance (after the flush that changed it), an outcome, or a
    RowVersion. The tag is strong: two rows that have the same tag are the same version.

    >>> etag(RowVersion(7, "effect-1"))
    '"7-effect-1"'
    """
    if isinstance(row, StateCommitted):
        row = row.token
    if isinstance(row, RowVersion):
        version, effect_id = row
    else:
        version, effect_id = row.version, row.provenance.effect_id
    if effect_id is None:
        return f'"{version}"'
    return f'"{version}-{quote(effect_id, safe=_SAFE)}"'


def if_match(header: str | None) -> RowVersion:
    """Return the version that the header ``If-Match`` names.

    Give it to ``expected_version=``. A tag without an effect, ``"7"``, names that
    version by any effect.

    Raises IfMatchRefused for each other answer, with the status to send:

    * 428 if there is no header, or for ``*``: it would overwrite any version;
    * 412 if no tag can match: a weak tag (``W/"7"``) never matches in If-Match, and a
      tag of another origin is none of a workflow;
    * 412 for a list with two versions, since a write has one base;
    * 400 if the header is not a list of entity tags.

    In a list, tags that cannot match are passed over.

    >>> if_match('"7-effect-1"')
    RowVersion(version=7, effect_id='effect-1')
    """
    text = "" if header is None else header.strip(" \t,")
    if text in {"", "*"}:
        raise IfMatchRefused(
            "names no version; send the ETag of the version that was read",
            HTTPStatus.PRECONDITION_REQUIRED,
        )
    found = {version for tag in _tags(text) if (version := _version_of(tag))}
    if not found:
        raise IfMatchRefused(
            "holds no strong tag of a workflow; send the ETag as it was received",
            HTTPStatus.PRECONDITION_FAILED,
        )
    if len(found) > 1:
        raise IfMatchRefused(
            "names several versions; send the one that the change is based on",
            HTTPStatus.PRECONDITION_FAILED,
        )
    return found.pop()


def _tags(text: str) -> list[tuple[bool, str]]:
    """Return each entity tag: whether it is weak, and the text in its quotes."""
    tags, at = [], 0
    while True:
        tag = _TAG.match(text, at)
        if tag is None:
            break
        tags.append((tag[1] is not None, tag[2]))
        if tag.end() == len(text):
            return tags
        separator = _SEPARATOR.match(text, tag.end())
        if separator is None:
            break
        at = separator.end()
    raise IfMatchRefused(
        'is not a list of entity tags; send the ETag with its quotes: "7-…"',
        HTTPStatus.BAD_REQUEST,
    )


def _version_of(tag: tuple[bool, str]) -> RowVersion | None:
    """Return the version that *tag* stands for, None if it can match no row."""
    weak, text = tag
    ours = _OURS.fullmatch(text)
    if weak or ours is None or int(ours[1]) > _LAST_VERSION:
        return None
    return RowVersion(int(ours[1]), None if ours[2] is None else unquote(ours[2]))


def problem(
    error: WorkflowStateError,
    *,
    if_match: str | RowVersion | None = None,
    type_base: str | None = None,
) -> tuple[int, dict[str, Any]]:
    """Return the HTTP status of *error* and a problem document (RFC 9457).

    Send the document as ``application/problem+json``. *if_match* is the header of the
    request, or what it was read as: with it a StateConflict is 412 Precondition Failed,
    because the client named a version, and without it 409 Conflict.

    The document has the members ``type``, ``title``, ``status`` and ``code``, which
    names the error (``"state-conflict"``), and, where a client can do something about
    it, ``detail`` and the fields of the error. It names keys, versions, and the paths
    of declared fields, and holds no payload. *type_base* is the start of the URI of
    your documentation, to which the code is added as ``type``; by default the type is
    ``about:blank``.

    >>> problem(WorkflowNotFound("Order", "order-42"))[0]
    404
    """
    status = _status_of(error)
    if isinstance(error, StateConflict) and if_match is not None:
        status = HTTPStatus.PRECONDITION_FAILED
    code = _code_of(error)
    body: dict[str, Any] = {
        "type": "about:blank" if type_base is None else type_base + code,
        "title": status.phrase,
        "status": int(status),
        "code": code,
    }
    # A mistake of the program is for its log.
    if status is not HTTPStatus.INTERNAL_SERVER_ERROR:
        body["detail"] = str(error)
        body |= _members_of(error)
    return int(status), body


def _status_of(error: WorkflowStateError) -> HTTPStatus:
    if isinstance(error, IfMatchRefused):
        return HTTPStatus(error.status)
    for cls in type(error).__mro__:
        if cls in STATUS:
            return STATUS[cls]
    return HTTPStatus.INTERNAL_SERVER_ERROR


def _code_of(error: WorkflowStateError) -> str:
    known = next((cls for cls in type(error).__mro__ if cls in STATUS), type(error))
    return re.sub(r"(?<!^)(?=[A-Z])", "-", known.__name__).lower()


def _members_of(error: WorkflowStateError) -> dict[str, Any]:
    """Return what a program needs of *error*, besides the text."""
    if isinstance(error, StateConflict):
        members = _conflict(error)
        if error.others:
            members["conflicts"] = [_conflict(each) for each in error.conflicts]
        return members
    if isinstance(error, PayloadError):
        return {"path": error.path}
    names = ("workflow_key", "action_id", "version", "required", "found", "attempts")
    return {
        name: _json(value)
        for name in names
        if (value := getattr(error, name, None)) is not None
    }


def _json(value: object) -> int | str | None:
    return value if isinstance(value, int | None) else str(value)


def _conflict(conflict: StateConflict) -> dict[str, Any]:
    members: dict[str, Any] = {
        "workflow_key": _json(conflict.workflow_key),
        "reason": str(conflict.reason),
        "expected_version": conflict.expected_version,
        "actual_version": conflict.actual_version,
    }
    if conflict.current is not None and conflict.reason is not ConflictReason.MISSING:
        members["etag"] = etag(conflict.current)
    return members


publish(globals())
