"""Edits inside raw JSON leave all other bytes as they came."""

import json

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from capi_core.members import JSONObject
from capi_core.protocols.splice import edit_items, one_line, without


@pytest.mark.parametrize(
    ("text", "names", "left"),
    [
        (b'{"id":"a","x":1}', {"id"}, b'{"x":1}'),
        (b'{ "id" : "a" , "x" : 1 }', {"id"}, b'{"x" : 1 }'),
        (b'{ "x" : 1 , "id" : "a" }', {"id"}, b'{ "x" : 1 }'),
        (b'{"x":1,"id":{"id":2},"y":[]}', {"id", "z"}, b'{"x":1,"y":[]}'),
        (b'{"id":1}', {"id"}, b"{}"),
        (b'{"\\u0069d":1,"x":"\\ud83d"}', {"id"}, b'{"x":"\\ud83d"}'),
        (b'{"x": 1}', {"id"}, b'{"x": 1}'),
        (b'{"a":1,"b":2,"c":3}', {"a", "b"}, b'{"c":3}'),
    ],
)
def test_members_are_taken_out_with_their_commas(text: bytes, names: set[str], left: bytes) -> None:
    assert without(JSONObject(text), names) == left


@given(st.dictionaries(st.text(max_size=5), st.integers() | st.text(), max_size=6), st.data())
def test_what_is_left_is_what_was_there(members: dict[str, object], data: st.DataObject) -> None:
    names = data.draw(st.sets(st.sampled_from(sorted(members)))) if members else set()
    text = without(JSONObject(json.dumps(members, indent=1).encode()), names)
    assert json.loads(text) == {name: value for name, value in members.items() if name not in names}


@given(st.lists(st.integers() | st.text() | st.lists(st.integers()), max_size=6), st.data())
def test_items_are_kept_replaced_and_taken_out(items: list[object], data: st.DataObject) -> None:
    acts = data.draw(st.lists(st.sampled_from("krd"), min_size=len(items), max_size=len(items)))
    text = json.dumps(items, indent=1).encode()

    def edit(place: int, item: bytes) -> bytes | None:
        assert json.loads(item) == items[place]
        return {"k": item, "r": b'"new"', "d": None}[acts[place]]

    edited = edit_items(text, edit)
    expected = ["new" if act == "r" else item for item, act in zip(items, acts, strict=True) if act != "d"]
    assert json.loads(edited) == expected
    if set(acts) <= {"k"}:
        assert edited == text


def test_an_item_with_half_a_surrogate_pair_stays_as_it_is() -> None:
    assert edit_items(b'["\\ud83d", 1]', lambda place, item: item if not place else b"2") == b'["\\ud83d", 2]'


def test_what_is_no_array_is_refused() -> None:
    with pytest.raises(msgspec.DecodeError):
        edit_items(b"{}", lambda place, item: item)


def test_raw_json_is_put_on_one_line() -> None:
    assert one_line(b'{"a":\r\n 1}') == b'{"a":   1}'
    assert one_line(b'{"a":"\\n"}') == b'{"a":"\\n"}'
