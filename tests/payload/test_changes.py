"""Where two JSON documents differ."""

from __future__ import annotations

from typing import Any

import pytest
from pydantic import BaseModel

from sa_wfstate.payload.changes import changes_between, document_of, pointers_of
from sa_wfstate.payload.codec import Codec
from sa_wfstate.values.changes import Changes


@pytest.mark.parametrize(
    ("before", "after", "pointers"),
    [
        ({"a": 1}, {"a": 1}, []),
        ({"a": 1, "b": 2}, {"a": 1, "b": 3}, ["/b"]),
        ({"a": 1}, {"a": 1.0}, ["/a"]),
        ({"a": 1}, {"a": True}, ["/a"]),
        ({"a": {"b": {"c": 1}}}, {"a": {"b": {"c": 2}}}, ["/a/b/c"]),
        ({"a": {"b": 1}}, {"a": None}, ["/a"]),
        ({"a": 1}, {}, ["/a"]),
        ({}, {"a": {"b": 1}}, ["/a"]),
        ({"a": [1, 2]}, {"a": [1, 2, 3, 4]}, ["/a/2", "/a/3"]),
        ({"a": []}, {"a": [1]}, ["/a/0"]),
        ({"a": [1, 2]}, {"a": [1, 3]}, ["/a"]),
        ({"a": [1, 2]}, {"a": [0, 1, 2]}, ["/a"]),
        ({"a": [1, 2]}, {"a": [1]}, ["/a"]),
        ({"a": [{"b": 1}]}, {"a": [{"b": 2}]}, ["/a"]),
        ({"x/y": 1, "m~n": 1}, {"x/y": 2, "m~n": 2}, ["/x~1y", "/m~0n"]),
        ({"": {"": 1}}, {"": {"": 2}}, ["//"]),
        (1, 2, [""]),
        ([1], {"a": 1}, [""]),
    ],
)
def test_paths_of_changes(before: Any, after: Any, pointers: list[str]) -> None:
    """An element of a list is a path of its own only if it was appended."""
    assert [each.pointer for each in changes_between(before, after)] == pointers


def test_a_change_has_both_values() -> None:
    """Which an audit trail shows."""
    (change,) = changes_between({"a": {"b": 1}}, {"a": {"b": None}})
    assert (change.pointer, change.before, change.after) == ("/a/b", 1, None)
    (change,) = changes_between({}, {"a": 1})
    assert (repr(change.before), change.after) == ("ABSENT", 1)


@pytest.mark.parametrize(
    ("mine", "theirs", "overlapping"),
    [
        (["/a"], ["/b"], ()),
        (["/a"], ["/a"], ("/a",)),
        (["/a"], ["/a/b", "/a/c"], ("/a/b", "/a/c")),
        (["/a/b"], ["/a", "/c"], ("/a/b",)),
        (["/a"], ["/ab"], ()),
        ([""], ["/a"], ("/a",)),
        (["customer", "/a"], ["customer"], ("customer",)),
        (["customer"], ["", "/customer"], ()),
        (["/lines"], ["/lines/3"], ("/lines/3",)),
    ],
)
def test_overlaps(mine: list[str], theirs: list[str], overlapping: Any) -> None:
    """A path overlaps with what it is inside of; a column with itself alone."""
    assert Changes(mine, theirs).overlapping == overlapping
    assert Changes(theirs, mine).overlapping == overlapping


def test_repr_shows_no_payload() -> None:
    """A key of a dict is payload, and so may a pointer be."""
    changes = Changes(["/prices/secret"], ["/prices/secret", "/other"])
    assert repr(changes) == "<Changes: 1 mine, 2 theirs, 1 overlapping>"
    assert changes == Changes(["/prices/secret"], ["/other", "/prices/secret"])
    assert len({changes, Changes([], []), Changes([], [])}) == 2


class State(BaseModel):
    tags: set[str] = set()
    nested: dict[str, frozenset[int]] = {}
    added_later: int = 7


def test_texts_are_compared_as_their_type_writes_them() -> None:
    """The order of a set, and a default that the row lacks, are no change."""
    codec = Codec[State](State)
    stored = '{"nested": {"a": [3, 1, 2]}, "tags": ["b", "a"]}'
    same = '{"tags":["a","b"],"nested":{"a":[1,2,3]},"added_later":7}'
    other = '{"tags":["a"],"nested":{"a":[1,2,3]},"added_later":7}'
    assert document_of(codec, stored) == document_of(codec, same)
    assert pointers_of(codec, stored, same, other) == ([], ["/tags"])
