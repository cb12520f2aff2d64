"""JSON text of any strings: an unpaired surrogate, which UTF-8 has no bytes for, becomes a question mark."""

import json

from hypothesis import given
from hypothesis import strategies as st

from capi_core.protocols.writing import json_bytes, json_text

texts = st.text(st.characters() | st.sampled_from("\ud83d\udc00"))


def test_half_a_surrogate_pair_is_written_as_a_question_mark() -> None:
    assert json_text("a\ud83d") == b'"a?"'
    assert json.loads(json_bytes({"k\ud83d": ["\ud83d", ("x",), 1]})) == {"k?": ["?", ["x"], 1]}


@given(texts)
def test_a_text_is_written_whole(text: str) -> None:
    whole = text.encode("utf-8", "replace").decode()
    assert json.loads(json_text(text)) == whole
    assert json.loads(json_bytes(text)) == whole


@given(st.recursive(st.none() | st.integers() | texts, lambda inner: st.lists(inner) | st.dictionaries(texts, inner)))
def test_so_are_texts_deep_inside(value: object) -> None:
    json.loads(json_bytes(value))
    assert json.loads(json_bytes({"a": ["\ud83d", ("x",)]})) == {"a": ["?", ["x"]]}
