"""What is made for a stream has its identity, and what is taken out of it said nothing."""

import json

import pytest

from capi_core.protocols.chat.chunk_repair import Identity, is_nameless, read_identity, without_repeated

CHUNK = b'{"id":"c","created":5,"model":"up","choices":[]}'


def test_a_made_chunk_is_one_of_the_answer() -> None:
    made = json.loads(read_identity(CHUNK, None).chunk(1, delta=b'{"x":1}', reason=b'"stop"'))
    choices = [{"index": 1, "delta": {"x": 1}, "finish_reason": "stop"}]
    assert made == {"id": "c", "object": "chat.completion.chunk", "created": 5, "model": "up", "choices": choices}
    assert json.loads(read_identity(CHUNK, b'"pub"').chunk(0))["model"] == "pub"


def test_what_a_chunk_does_not_say_is_empty() -> None:
    assert read_identity(b"{}", None) == Identity(b'""', b"0", b'""')
    assert read_identity(b'{"id":["a",\n"\\ud83d"]}', None).id == b'["a", "\\ufffd"]'


def test_a_chunk_without_an_id_gets_one() -> None:
    text = b'{"id":"","x":[1]}'
    assert is_nameless(text)
    assert not is_nameless(CHUNK)
    assert not is_nameless(b"{}")
    named = read_identity(CHUNK, None).name(text)
    assert json.loads(named) == {"id": "c", "x": [1], "object": "chat.completion.chunk", "created": 5, "model": "up"}
    twice = b'{"id":"","id":""}'
    assert read_identity(CHUNK, None).name(twice) == twice


STOPPED = {0: "stop"}


@pytest.mark.parametrize(
    "choice",
    [
        b'{"finish_reason":"stop"}',
        b'{"index":0,"delta":{},"finish_reason":"stop"}',
        b'{"index":0,"delta":null,"finish_reason":"stop"}',
        b'{"index":0,"delta":{"role":"assistant","content":"","tool_calls":[],"x":{}},"finish_reason":"stop"}',
    ],
)
def test_a_choice_that_only_finishes_again_is_taken_out(choice: bytes) -> None:
    assert without_repeated(b'{"choices": [%b], "x":1}' % choice, STOPPED) == b'{"choices": [], "x":1}'
    other = b'{"index":1,"delta":{}}'
    assert without_repeated(b'{"choices":[%b,%b]}' % (choice, other), STOPPED) == b'{"choices":[%b]}' % other


@pytest.mark.parametrize(
    "text",
    [
        b'{"choices":[{"index":1,"finish_reason":"stop"}]}',
        b'{"choices":[{"index":0,"finish_reason":"length"}]}',
        b'{"choices":[{"index":0,"finish_reason":null}]}',
        b'{"choices":[{"index":0,"delta":{"content":"x"},"finish_reason":"stop"}]}',
        b'{"choices":[{"index":0,"delta":5,"finish_reason":"stop"}]}',
        b'{"choices":[],"choices":[]}',
        b'{"choices":5}',
        b"{}",
    ],
)
def test_any_other_choice_stays(text: bytes) -> None:
    assert without_repeated(text, STOPPED) == text
