"""Parsing of YAML to plain values with places."""

from __future__ import annotations

import json
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from mtl_cloud.errors import SpecError
from mtl_cloud.jobspec.tree import Place, merge, override, read_yaml
from mtl_cloud.json_types import Json

TEXT = st.text(st.characters(min_codepoint=32, max_codepoint=0x2FF, exclude_characters="\x7f"), max_size=12).filter(
    lambda text: all(ord(c) < 0x7F or ord(c) > 0x9F for c in text)
)
LEAVES = st.none() | st.booleans() | st.integers(-(10**17), 10**17) | st.floats(allow_nan=False, allow_infinity=False)
VALUES = st.recursive(
    LEAVES | TEXT, lambda inner: st.lists(inner, max_size=4) | st.dictionaries(TEXT, inner, max_size=4), max_leaves=12
)
MAPPINGS = st.dictionaries(TEXT, VALUES, max_size=4)


@settings(max_examples=60, deadline=None)
@given(MAPPINGS, st.sampled_from([None, 1, 3]))
def test_json_is_yaml_and_keeps_its_values(data: dict[str, Any], indent: int | None) -> None:
    tree = read_yaml(json.dumps(data, indent=indent, ensure_ascii=False).encode(), "x")
    assert (tree.data, tree.problems) == (data, ())


@settings(max_examples=60, deadline=None)
@given(MAPPINGS)
def test_each_place_is_where_its_key_is_written(data: dict[str, Any]) -> None:
    text = json.dumps(data, indent=1, ensure_ascii=False)
    lines = text.splitlines()
    tree = read_yaml(text.encode(), "x")
    for loc, place in tree.keys.items():
        assert lines[place.line - 1][place.column - 1 :].startswith(json.dumps(loc[-1], ensure_ascii=False))


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("1e-3", 0.001),
        ("5.0e-4", 0.0005),
        ("1.", 1.0),
        (".5", 0.5),
        ("-7", -7),
        ("007", 7),
        ("yes", "yes"),
        ("on", "on"),
        ("off", "off"),
        ("true", True),
        ("False", False),
        ("~", None),
        ("", None),
        ("null", None),
        ("2026-01-01", "2026-01-01"),
        ("12:30:00", "12:30:00"),
        ("1_000", "1_000"),
        ("0o17", "0o17"),
        (".inf", ".inf"),
        ("'1'", "1"),
        ('"true"', "true"),
        ("9" * 30, 1e30),
    ],
)
def test_scalars_follow_yaml_1_2(text: str, value: object) -> None:
    read = read_yaml(f"a: {text}".encode(), "x").data["a"]
    assert (type(read), read) == (type(value), value)


def test_a_place_is_that_of_the_value_or_for_a_mapping_of_its_name() -> None:
    tree = read_yaml(b"a:\n  b: 1\n  c: [x,\n      y]\n", "f")
    assert tree.place(("a",)) == Place("f", 1, 1)
    assert tree.place(("a", "b")) == Place("f", 2, 6)
    assert tree.place(("a", "b"), key=True) == Place("f", 2, 3)
    assert tree.place(("a", "c", 1)) == Place("f", 4, 7)
    assert tree.place(("a", "absent", "below")) == Place("f", 1, 1)


def test_a_recursive_alias_is_a_mistake_and_not_a_hang() -> None:
    (problem,) = read_yaml(b"a: &a [1, *a]\n", "f").problems
    assert str(problem) == "f:1:1: a[1]: aliases (*name) are not supported; write the value out"


@given(MAPPINGS, MAPPINGS)
@settings(max_examples=40, deadline=None)
def test_merging_keeps_all_that_is_above(below: dict[str, Any], above: dict[str, Any]) -> None:
    merged = merge(below, above)
    assert merge(merged, above) == merged
    assert set(merged) == set(below) | set(above)
    assert merge({}, above) == above
    assert merge(below, {}) == below


def test_merging_is_by_key_at_every_depth_and_lists_are_replaced() -> None:
    below: dict[str, Json] = {"t": {"a": 1, "o": {"x": 1, "y": 2}}, "l": [1, 2]}
    above: dict[str, Json] = {"t": {"b": 2, "o": {"y": 3}}, "l": [3]}
    assert merge(below, above) == {"t": {"a": 1, "b": 2, "o": {"x": 1, "y": 3}}, "l": [3]}


def test_an_option_replaces_its_field_and_its_place() -> None:
    tree = override(
        read_yaml(b"a: {b: {c: 1}}\nl:\n  - x: 1\n  - x: 2\n", "f"), ["a.b={d: 1e-3}", "l.1.x=[3]", "n.m=no"]
    )
    assert tree.data == {"a": {"b": {"d": 0.001}}, "l": [{"x": 1}, {"x": [3]}], "n": {"m": "no"}}
    assert tree.place(("a", "b", "d")) == Place("--set a.b")
    assert tree.place(("l", 1, "x", 0)) == Place("--set l.1.x")
    assert tree.place(("l", 0, "x")) == Place("f", 3, 8)
    assert tree.problems == ()


@pytest.mark.parametrize(
    ("option", "message"),
    [
        ("training.rounds", "--set training.rounds: expected field=value"),
        ("=3", "--set : expected field=value"),
        ("a.b=1", "--set a.b: a is a single value and has no field 'b'"),
        ("l.2=1", "--set l.2: l is a list of 2: give the index of an item, from 0"),
        ("l.x=1", "--set l.x: l is a list of 2: give the index of an item, from 0"),
        ("a=[1", "--set a: not YAML: expected ',' or ']', but got '<stream end>'"),
        ("a=1\nb: 2", "--set a: expected one YAML value"),
    ],
)
def test_a_wrong_option_is_reported_by_itself(option: str, message: str) -> None:
    tree = override(read_yaml(b"a: 1\nl: [1, 2]\n", "f"), [option])
    (problem,) = tree.problems
    assert str(problem).startswith(message)
    assert tree.data == {"a": 1, "l": [1, 2]}


def test_the_input_tree_is_not_changed() -> None:
    tree = read_yaml(b"a: {b: [1]}", "f")
    override(tree, ["a.b.0=2"])
    assert tree.data == {"a": {"b": [1]}}


def test_no_value_is_deeper_than_a_schema_s_reader_can_go() -> None:
    (problem,) = read_yaml(b"a: " + b"[" * 100 + b"]" * 100, "f").problems
    assert problem.message == "nested too deeply"


def test_an_empty_document_has_no_tree() -> None:
    with pytest.raises(SpecError):
        read_yaml(b"\n", "f")
