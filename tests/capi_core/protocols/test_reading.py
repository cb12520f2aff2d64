"""What is wrong with a peer's JSON is one error with its path; what is wrong with its events is told once."""

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from capi_core.errors import ProtocolError
from capi_core.protocols.reading import EventReader, invalid, is_json, read_json, shown_path, untranslatable

LISTS = msgspec.json.Decoder(dict[str, list[int]])
DONE = frozenset({b"[DONE]"})


def refusal(raw: bytes, at: str = "$", status: int = 400) -> ProtocolError:
    with pytest.raises(ProtocolError) as caught:
        read_json(LISTS, raw, at, status=status)
    return caught.value


def test_json_is_read_also_with_unpaired_surrogates() -> None:
    assert read_json(LISTS, b'{"a":[1]}') == {"a": [1]}
    assert read_json(msgspec.json.Decoder(str), b'"\\ud83d"') == "\ufffd"


@pytest.mark.parametrize(
    ("raw", "at", "param"),
    [
        (b"{", "$", "$"),
        (b"[]", "$", "$"),
        (b'{"a":["x"]}', "$", "[...][0]"),
        (b'{"a":["x"]}', "$.tools[2]", "tools[2][...][0]"),
        (b'{"\xff":[1]}', "$.a", "a"),
    ],
)
def test_what_is_wrong_has_a_path_and_no_value(raw: bytes, at: str, param: str) -> None:
    found = refusal(raw, at)
    assert (found.status_hint, found.code, found.param) == (400, "invalid_request", param)
    assert "x" not in str(found).replace("nested", "").replace("Expected", "")


def test_what_is_nested_too_deeply_has_the_path_of_the_whole() -> None:
    with pytest.raises(ProtocolError) as caught:
        read_json(msgspec.json.Decoder(msgspec.Raw), b"[" * 100_000, "$.deep")
    assert (caught.value.code, caught.value.param) == ("invalid_request", "deep")


def test_an_upstreams_fault_is_not_the_clients() -> None:
    found = refusal(b"[]", status=502)
    assert (found.status_hint, found.code) == (502, "upstream_garbage")


def test_paths_are_shown_as_the_apis_show_them() -> None:
    assert [shown_path(path) for path in ("$", "$.a", "$.a[0].b", "$[0]")] == ["$", "a", "a[0].b", "[0]"]


def test_a_clients_mistake_and_what_cannot_be_had_name_their_place() -> None:
    found = invalid("$.messages[0]", "is empty")
    assert (found.code, found.status_hint, found.param) == ("invalid_request", 400, "messages[0]")
    assert str(found) == "messages[0]: is empty"
    found = untranslatable("$.n", "ask once for each answer")
    assert (found.code, found.status_hint, found.param) == ("untranslatable", 400, "n")


@pytest.mark.parametrize(
    ("text", "expected"),
    [(b"1", True), (b'{"a":"\\ud800"}', True), (b"", False), (b"{}x", False), (b"[" * 9999, False)],
)
def test_what_is_json(text: bytes, expected: bool) -> None:
    assert is_json(text) is expected


def events(stream: bytes, size: int = 1 << 20, most: int = 64) -> tuple[list[bytes | None], str | None]:
    reader = EventReader(max_event_bytes=most)
    found = [event for at in range(0, len(stream), size) for event in reader.receive_data(stream[at : at + size])]
    found += reader.finish(DONE)
    return [event.data for event in found], None if reader.fault is None else reader.fault.code


@given(st.integers(1, 30))
def test_events_with_data_are_given_in_any_chunking(size: int) -> None:
    stream = b": c\n\nevent: ping\n\nid: 1\nretry: 2\n\ndata\n\ndata: a\n\n\n\nevent: e\r\ndata: b\r\n\r\ndata: [DONE]"
    assert events(stream, size) == ([b"a", b"b", b"[DONE]"], None)


@pytest.mark.parametrize(
    ("tail", "given"),
    [
        (b"", []),
        (b'data: {"a":1}', [b'{"a":1}']),
        (b'data: {"a":', []),
        (b"data: 1", []),
        (b": comment", []),
        (b"data: [DONE]\n", [b"[DONE]"]),
    ],
)
def test_a_tail_counts_if_it_is_whole(tail: bytes, given: list[bytes]) -> None:
    assert events(b"data: x\n\n" + tail) == ([b"x", *given], None)


@pytest.mark.parametrize(
    ("bad", "code"), [(b"<html>\n\n", "upstream_garbage"), (b"data: " + b"y" * 99, "upstream_event_too_large")]
)
@pytest.mark.parametrize("size", [1, 7, 1 << 20])
def test_a_fault_is_told_once_after_the_events_before_it(bad: bytes, code: str, size: int) -> None:
    assert events(b"data: x\n\n" + bad + b"\n\ndata: z\n\n", size) == ([b"x"], code)
