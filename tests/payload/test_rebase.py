"""The merge of two changes: what both win, what rules decide, what is refused."""

from __future__ import annotations

import json
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from pydantic import BaseModel, create_model

from sa_wfstate.errors import MappingError, PayloadError
from sa_wfstate.merging import Rebase, add, append, mine, theirs, union
from sa_wfstate.payload.changes import pointers_of
from sa_wfstate.payload.codec import Codec
from sa_wfstate.payload.rebase import Overlap, merge_texts
from sa_wfstate.values.changes import Changes

SCALARS = st.integers(-2, 2) | st.sampled_from(["", "a", "b"])
LISTS = st.lists(st.integers(0, 2), max_size=3)
DICTS = st.dictionaries(st.sampled_from(["a", "b", "/"]), st.integers(0, 2), max_size=3)
TYPES: dict[Any, st.SearchStrategy[Any]] = {
    int | str: SCALARS,
    list[int]: LISTS,
    dict[str, int]: DICTS,
}
Edit = tuple[tuple[str, ...], Any]
"""A path, and the value to be set there; None removes a key of a dict."""


@st.composite
def models(draw: st.DrawFn, depth: int = 2) -> tuple[Any, Any]:
    """Draw a model, and a strategy for its JSON."""
    fields: dict[str, Any] = {"s": (int | str, ...)}
    values: dict[str, Any] = {"s": SCALARS}
    for name in draw(st.sampled_from(["f", "fg", "fgh"])):
        if depth and draw(st.integers(0, 2)) == 0:
            type_, value = draw(models(depth - 1))
            fields[name], values[name] = (type_ | None, None), st.none() | value
        else:
            type_ = draw(st.sampled_from(list(TYPES)))
            fields[name], values[name] = (type_, ...), TYPES[type_]
    return create_model("Model", **fields), st.fixed_dictionaries(values)


def edits_of(document: Any, path: tuple[str, ...] = ()) -> st.SearchStrategy[Edit]:
    """Return the edits of a part of *document*; of a list only as a whole."""
    edits = []
    for key, value in document.items():
        here = (*path, key)
        if isinstance(value, dict) and set(value) <= {"a", "b", "/"}:
            keys = st.sampled_from(["a", "b", "/"])
            edit = st.tuples(keys, st.none() | st.integers(0, 2))
            edits.append(edit.map(lambda e, here=here: ((*here, e[0]), e[1])))
        elif isinstance(value, dict):
            edits.append(edits_of(value, here))
        elif isinstance(value, list):
            edits.append(LISTS.map(lambda new, here=here: (here, new)))
            more = LISTS.map(lambda new, old=value: [*old, *new])
            edits.append(more.map(lambda new, here=here: (here, new)))
        elif value is not None:
            edits.append(SCALARS.map(lambda new, here=here: (here, new)))
    return st.one_of(edits)


def apply(edits: list[Edit], document: Any) -> Any:
    """Return a copy of *document* with *edits*."""
    document = json.loads(json.dumps(document))
    for path, value in edits:
        part = document
        for key in path[:-1]:
            part = part[key]
        if value is None:
            part.pop(path[-1], None)
        else:
            part[path[-1]] = value
    return document


def effective(edits: list[Edit], before: Any) -> list[Edit]:
    """Return those of *edits* that set another value in the end."""
    return [edit for edit in edits if edit[0] in touched(edits, before)]


def touched(edits: list[Edit], before: Any) -> set[tuple[str, ...]]:
    """Return the paths at which *edits* make a difference."""
    after = apply(edits, before)
    return {path for path, _ in edits if at(path, before) != at(path, after)}


def at(path: tuple[str, ...], document: Any) -> str:
    """Return the JSON of a part."""
    for key in path[:-1]:
        document = document[key]
    return json.dumps(document.get(path[-1]))


@settings(max_examples=100)
@given(st.data())
def test_rebase_is_both_changes_in_either_order(data: st.DataObject) -> None:
    """If they are disjoint; if they are not, it is refused."""
    model, values = data.draw(models())
    codec: Codec[Any] = Codec(model)
    base = data.draw(values)
    edits = st.lists(edits_of(base), max_size=3)
    own, other = (effective(data.draw(edits), base) for _ in range(2))
    texts = [json.dumps(each) for each in (base, apply(own, base), apply(other, base))]
    overlapping = touched(own, base) & touched(other, base)
    changes = Changes(*pointers_of(codec, *texts))
    assert bool(changes.overlapping) == bool(overlapping)
    if overlapping:
        with pytest.raises(Overlap):
            merge_texts(Rebase(), codec, *texts)
        return
    merged, _ = merge_texts(Rebase(), codec, *texts)
    assert merged == codec.load(json.dumps(apply(own, apply(other, base))))
    assert merged == codec.load(json.dumps(apply(other, apply(own, base))))


def merge(rules: dict[str, Any], base: Any, own: Any, other: Any) -> Any:
    """Merge the values of one field."""
    documents = ({} if each is ... else {"x": each} for each in (base, own, other))
    return Rebase(rules).merge(*documents).get("x", ...)


@pytest.mark.parametrize(
    ("rule", "base", "own", "other", "merged"),
    [
        (union, ["a", "b"], ["b", "c"], ["d", "a", "b"], ["d", "b", "c"]),
        (union, ["a"], ["a", "b"], ["a", "b"], ["a", "b"]),
        (union, ..., ["a"], ["b"], ["b", "a"]),
        (union, [{"i": 1}], [{"i": 1}, {"i": 2}], [], [{"i": 2}]),
        (union, [1], [1, 1.0], [1, True], [1, True, 1.0]),
        (add, 1, 4, 3, 6),
        (add, 1, 2, 2, 3),
        (add, None, 1, 1, 2),
        (add, ..., 2, 3, 5),
        (add, 5, 4, 3, 2),
        (add, 1.5, 2.0, 2.5, 3.0),
        (add, "1.10", "1.30", "2.10", "2.30"),
        (append, [1], [1, 2], [1, 3], [1, 3, 2]),
        (append, ..., [1], [2], [2, 1]),
        (mine, 1, 2, 3, 2),
        (mine, 1, ..., 3, ...),
        (theirs, 1, 2, 3, 3),
        (theirs, 1, 2, ..., ...),
        (lambda base, own, other: [base, own, other], 1, 2, 3, [1, 2, 3]),
        (lambda base, own, other: [base, own, other], ..., 2, 3, [None, 2, 3]),
    ],
)
def test_rule_decides_what_both_have_changed(
    rule: Any, base: Any, own: Any, other: Any, merged: Any
) -> None:
    """Each rule, also where one side has no value."""
    assert json.dumps([merge({"x": rule}, base, own, other)], default=str) == (
        json.dumps([merged], default=str)
    )


@pytest.mark.parametrize(
    ("rule", "base", "own", "other"),
    [
        (union, ["a"], ["b"], "c"),
        (union, ["a"], ..., {"b": 1}),
        (add, 1, 2, True),
        (add, 1, ..., 2),
        (add, "a", "b", "c"),
        (add, [], [1], [2]),
        (append, [1], [2], [1, 3]),
        (append, [1], [1, 2], []),
        (append, [1], ..., [1, 2]),
    ],
)
def test_rule_refuses_what_it_cannot_merge(
    rule: Any, base: Any, own: Any, other: Any
) -> None:
    """It is a conflict then, as without a rule."""
    with pytest.raises(Overlap):
        merge({"x": rule}, base, own, other)


def test_rule_is_not_asked_for_what_one_side_has_changed() -> None:
    """That is taken as it is, also where the rule would refuse it."""
    assert merge({"x": append}, [1, 2], [2], [1, 2]) == [2]
    assert merge({"x": add}, 1, 1, "b") == "b"


def test_same_value_from_both_overlaps() -> None:
    """Of a counter, one of the two would be lost."""
    with pytest.raises(Overlap):
        merge({}, 1, 2, 2)
    with pytest.raises(Overlap):
        merge({}, 1, ..., ...)


def test_paths_of_rules() -> None:
    """A pointer leads inside, and its star is any key; a rule decides as a whole."""
    rules = Rebase({"/counters/*": add, "/a~1b/c": theirs, "address": mine})
    merged = rules.merge(
        {"counters": {"x": 1}, "a/b": {"c": 1}, "address": {"city": "A", "zip": 1}},
        {
            "counters": {"x": 2, "y": 1},
            "a/b": {"c": 2},
            "address": {"city": "B", "zip": 1},
        },
        {
            "counters": {"x": 5, "y": 2},
            "a/b": {"c": 3},
            "address": {"city": "A", "zip": 2},
        },
    )
    assert merged == {
        "counters": {"x": 6, "y": 3},
        "a/b": {"c": 3},
        "address": {"city": "B", "zip": 1},
    }
    assert Rebase({"": mine}).merge(1, 2, 3) == 2
    assert repr(rules) == "Rebase('/counters/*', '/a~1b/c', 'address')"


@pytest.mark.parametrize("rules", [{"a": 1}, {1: add}])
def test_wrong_rule_fails_at_once(rules: Any) -> None:
    """When it is declared, not when it is needed."""
    with pytest.raises(MappingError, match="Rebase: takes rules by path"):
        Rebase(rules)


class Account(BaseModel):
    paid: int = 0
    limit: int = 100
    secret: str = "x"

    def model_post_init(self, _: object) -> None:
        if self.paid > self.limit:
            raise ValueError(f"secret {self.secret}")


def test_result_is_validated_in_full() -> None:
    """What both may do alone, an invariant forbids together; it shows no payload."""
    texts = '{"paid":0}', '{"paid":80}', '{"limit":50,"secret":"y"}'
    with pytest.raises(PayloadError) as caught:
        merge_texts(Rebase(), Codec[Account](Account), *texts)
    assert "secret y" not in str(caught.value)
