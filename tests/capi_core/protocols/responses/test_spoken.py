"""What comes only whole is said once more, and nothing is said twice."""

import json

import pytest

from capi_core.protocols.responses.spoken import TEXTS, PartKey, Spoken


def event(**members: object) -> bytes:
    return json.dumps({"output_index": 0, **members}).encode()


@pytest.mark.parametrize("kind", TEXTS)
def test_the_end_of_a_text_that_was_never_said_lacks_a_delta(kind: str) -> None:
    text = TEXTS[kind]
    place = {} if text.part is None else {text.part: 2}
    spoken = Spoken()
    delta = spoken.note(f"{kind}.done", event(**place, **{text.whole: "a\n\ud83d"}), "it_1")
    assert delta is not None
    told = json.loads(delta)
    logprobs: dict[str, object] = {"logprobs": []} if kind == "response.output_text" else {}
    expected = {
        "type": f"{kind}.delta",
        "item_id": "it_1",
        "output_index": 0,
        "delta": "a\n\ufffd",
        **place,
        **logprobs,
    }
    assert told == expected
    assert spoken.note(f"{kind}.done", event(**place, **{text.whole: "a"}), "it_1") is None


@pytest.mark.parametrize("kind", TEXTS)
def test_a_text_that_was_said_lacks_nothing(kind: str) -> None:
    spoken = Spoken()
    assert spoken.note(f"{kind}.delta", event(delta="a"), "it_1") is None
    assert PartKey(kind, 0, 0, 0) in spoken
    assert spoken.note(f"{kind}.done", event(**{TEXTS[kind].whole: "a"}), "it_1") is None


def test_parts_and_items_are_texts_of_their_own() -> None:
    spoken = Spoken()
    spoken.note("response.output_text.delta", event(content_index=0), None)
    for place in ({"content_index": 1}, {"output_index": 1}):
        assert spoken.note("response.output_text.done", event(**{"text": "x", **place}), None) is not None
    other = spoken.note("response.refusal.done", event(refusal="x"), None)
    assert other is not None
    assert "item_id" not in json.loads(other)


@pytest.mark.parametrize(
    ("kind", "data"),
    [
        ("response.output_text.done", event(text="")),
        ("response.output_text.done", event(text=None)),
        ("response.output_text.done", event(text=5)),
        ("response.output_text.done", event()),
        ("response.output_text.done", b'{"text":"x"}'),
        ("response.output_text.done", event(text="x", content_index="0")),
        ("response.output_text.done", b"5"),
        ("response.output_text", event(text="")),
        ("response.output_item.done", event(text="x")),
        ("response.created", event(text="x")),
        ("", event(text="x")),
    ],
)
def test_nothing_is_made_of_anything_else(kind: str, data: bytes) -> None:
    assert Spoken().note(kind, data, "it_1") is None


def test_how_many_texts_are_remembered_is_bounded() -> None:
    spoken = Spoken()
    for index in range(5000):
        spoken.note("response.output_text.delta", event(output_index=index), None)
    assert PartKey("response.output_text", 4095, 0, 0) in spoken
    assert PartKey("response.output_text", 4096, 0, 0) not in spoken
    assert spoken.note("response.output_text.done", event(output_index=4999, text="x"), None) is None
