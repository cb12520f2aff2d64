"""Values made up to fit a JSON Schema."""

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from capi_trio.demo.synthesis import subject_of, synthesise


@pytest.mark.parametrize(
    ("text", "subject"),
    [
        ('Search for "red shoes" please', "red shoes"),
        ("Run `ls -l` now", "ls -l"),
        ("Say “yes”", "yes"),
        ("What is the weather in New York today?", "New York"),
        ("weather in Paris", "Paris"),
        ("What now? Tell me.", "What now? Tell me."),
        ("  plain words  ", "plain words"),
        ("", ""),
    ],
)
def test_the_subject_is_a_quotation_else_a_proper_noun_else_all(text: str, subject: str) -> None:
    assert subject_of(text) == subject


@pytest.mark.parametrize(
    ("schema", "value"),
    [
        ({"type": "string"}, "Oslo"),
        ({"type": "string", "minLength": 6}, "Oslo.."),
        ({"type": "string", "maxLength": 2}, "Os"),
        ({"type": "string", "format": "date"}, "2026-01-01"),
        ({"type": "string", "format": "unheard-of"}, "Oslo"),
        ({"type": "integer"}, 3),
        ({"type": "number"}, 3),
        ({"type": "integer", "minimum": 5}, 5),
        ({"type": "integer", "maximum": 2}, 2),
        ({"type": "number", "exclusiveMinimum": 3}, 4),
        ({"type": "number", "exclusiveMaximum": 3}, 2),
        ({"type": "number", "minimum": True, "maximum": 10**400}, 3),
        ({"type": "boolean"}, True),
        ({"type": "null"}, None),
        ({"type": "no-such-type"}, None),
        ({"type": ["null", "boolean"]}, True),
        ({"enum": ["b", "a"]}, "b"),
        ({"const": 0}, 0),
        ({"type": "string", "default": "d"}, "d"),
        ({"anyOf": [{"type": "null"}, {"type": "boolean"}]}, True),
        ({"oneOf": [{"const": 1}, {"const": 2}]}, 1),
        ({"anyOf": [{"type": "null"}], "type": "boolean"}, True),
        ({"type": "array", "items": {"type": "boolean"}}, [True]),
        ({"type": "array", "items": {"type": "boolean"}, "minItems": 3}, [True] * 3),
        ({"type": "array", "maxItems": 0}, []),
        ({"type": "array", "prefixItems": [{"const": 1}, {"const": 2}]}, [1, 2]),
        ({"type": "object"}, {}),
        ({"type": "object", "properties": {"a": {"const": 1}}}, {"a": 1}),
        ({"type": "object", "properties": {"a": {"const": 1}, "b": {"const": 2}}, "required": ["b"]}, {"b": 2}),
        ({"required": ["undescribed"], "type": "object"}, {"undescribed": "Oslo"}),
        ({"properties": {"a": {"const": 1}}}, {"a": 1}),
        ({"items": {"const": 1}}, [1]),
        ({}, "Oslo"),
        ({"$ref": "#/$defs/a~1b", "$defs": {"a/b": {"const": 7}}}, 7),
        ({"$ref": "#/$defs/missing"}, "Oslo"),
        ({"$ref": "https://example.com/schema"}, "Oslo"),
        ({"$ref": 5}, "Oslo"),
    ],
)
def test_a_value_fits_its_schema(schema: dict[str, object], value: object) -> None:
    assert synthesise(schema, "send 3 to Oslo") == value


def test_numbers_come_from_the_text_in_order_then_are_one() -> None:
    numbers = {"type": "object", "properties": {name: {"type": "number"} for name in "abc"}}
    assert synthesise(numbers, "from -2 to 3.5, v1 and 2nd aside") == {"a": -2, "b": 3.5, "c": 1}


def test_a_schema_that_never_ends_gives_a_value_that_does() -> None:
    node: dict[str, object] = {"$ref": "#"}
    tree = {"type": "object", "properties": dict.fromkeys("abcdefgh", node)}
    assert isinstance(synthesise(tree, ""), dict)
    loop = {"$ref": "#"}
    assert synthesise(loop, "") is None


SCHEMAS = st.recursive(
    st.sampled_from([{"type": kind} for kind in ("string", "integer", "number", "boolean", "null")]),
    lambda inner: st.one_of(
        st.builds(lambda items: {"type": "array", "items": items}, inner),
        st.builds(
            lambda members: {"type": "object", "properties": members, "required": list(members)},
            st.dictionaries(st.text(max_size=5), inner, max_size=4),
        ),
    ),
    max_leaves=12,
)
KINDS: dict[object, type | tuple[type, ...]] = {
    "string": str,
    "integer": int,
    "number": (int, float),
    "boolean": bool,
    "null": type(None),
}


def check(schema: dict[str, object], value: object) -> None:
    if schema["type"] == "object":
        assert isinstance(value, dict)
        members = schema["properties"]
        assert isinstance(members, dict)
        assert value.keys() == members.keys()
        for name, member in members.items():
            check(member, value[name])
    elif schema["type"] == "array":
        assert isinstance(value, list)
        items = schema["items"]
        assert isinstance(items, dict)
        for item in value:
            check(items, item)
    else:
        assert isinstance(value, KINDS[schema["type"]])


@given(SCHEMAS, st.text())
def test_every_generated_schema_gets_a_value_of_its_shape(schema: dict[str, object], text: str) -> None:
    check(schema, synthesise(schema, text))


JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False, allow_infinity=False) | st.text(),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=8), inner, max_size=3),
    max_leaves=10,
)
KEYWORDS = st.sampled_from(
    [
        "type",
        "enum",
        "items",
        "anyOf",
        "allOf",
        "$ref",
        "required",
        "properties",
        "minItems",
        "maxItems",
        "minLength",
        "maxLength",
        "minimum",
        "maximum",
        "exclusiveMinimum",
        "format",
        "prefixItems",
    ]
)


@given(st.dictionaries(KEYWORDS, JSON | st.sampled_from(["object", "array", "string", "number", "#"])), st.text())
def test_nonsense_for_a_schema_still_gives_json(schema: dict[str, object], text: str) -> None:
    value = synthesise(schema, text)
    msgspec.json.encode(value)
