"""What a client keeps of a stream."""

import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from capi_core.protocols.kinds import Protocol
from capi_core.usage import Usage
from capi_trio.client_answers import Answer, Call, Listener
from tests.support.streams import SPENT, answer_stream, chat, named

CALLS = [("call_1", "get_weather", {"city": "Oslo"}), ("call_2", "get_time", {"zone": "CET"})]


def heard(protocol: Protocol, data: bytes) -> Answer:
    listener = Listener(protocol)
    listener.receive_data(data)
    return listener.finish()


@pytest.mark.parametrize("protocol", Protocol)
def test_an_answer_is_heard_whole(protocol: Protocol) -> None:
    answer = heard(protocol, answer_stream(protocol))
    assert (answer.spoke, answer.reasoned, answer.problem) == (True, True, None)
    assert [(call.id, call.name, json.loads(call.arguments)) for call in answer.calls] == CALLS
    assert answer.usage == SPENT


@pytest.mark.parametrize("protocol", Protocol)
@pytest.mark.parametrize("size", [1, 7, 100])
def test_the_chunking_is_no_matter(protocol: Protocol, size: int) -> None:
    data, listener = answer_stream(protocol), Listener(protocol)
    fresh = sum(listener.receive_data(data[at : at + size]) for at in range(0, len(data), size))
    answer, whole = listener.finish(), heard(protocol, data)
    assert (answer.turns, answer.calls, answer.usage) == (whole.turns, whole.calls, whole.usage)
    assert fresh == listener.events > 0


def test_messages_goes_back_with_its_signature_and_its_inputs() -> None:
    (turn,) = heard(Protocol.MESSAGES, answer_stream(Protocol.MESSAGES)).turns
    assert isinstance(turn, dict)
    blocks = turn["content"]
    assert blocks[0] == {"type": "thinking", "thinking": "First things first.", "signature": "SIG"}
    assert [block["input"] for block in blocks if block["type"] == "tool_use"] == [{"city": "Oslo"}, {"zone": "CET"}]


def test_chat_goes_back_with_its_calls_and_text_alone_without() -> None:
    (turn,) = heard(Protocol.CHAT, answer_stream(Protocol.CHAT)).turns
    assert isinstance(turn, dict)
    assert [call["id"] for call in turn["tool_calls"]] == ["call_1", "call_2"]
    said = chat({"choices": [{"index": 0, "delta": {"content": "hi"}}]})
    assert heard(Protocol.CHAT, said).turns == [{"role": "assistant", "content": "hi"}]


def test_responses_goes_back_item_by_item_as_it_came() -> None:
    turns = heard(Protocol.RESPONSES, answer_stream(Protocol.RESPONSES)).turns
    kinds = [turn["type"] for turn in turns if isinstance(turn, dict)]
    assert kinds == ["reasoning", "message", "function_call", "function_call"]


def test_thinking_that_is_not_shown_is_thinking() -> None:
    block = {"type": "redacted_thinking", "data": "x"}
    answer = heard(Protocol.MESSAGES, named({"type": "content_block_start", "index": 0, "content_block": block}))
    assert (answer.reasoned, answer.turns) == (True, [{"role": "assistant", "content": [block]}])


def test_what_only_its_protocol_knows_goes_back_as_it_came() -> None:
    block = {"type": "server_tool_use", "id": "s1", "name": "web_search", "input": {"query": "x"}}
    answer = heard(Protocol.MESSAGES, named({"type": "content_block_start", "index": 0, "content_block": block}))
    assert (answer.calls, answer.turns) == ([], [{"role": "assistant", "content": [block]}])
    item = {"type": "web_search_call", "id": "ws_1", "status": "completed"}
    assert heard(Protocol.RESPONSES, named({"type": "response.output_item.done", "item": item})).turns == [item]


@pytest.mark.parametrize(
    ("protocol", "data", "code"),
    [
        (Protocol.CHAT, chat({"error": {"message": "m", "code": "overloaded"}}), "overloaded"),
        (Protocol.CHAT, chat({"error": "no object"}), ""),
        (Protocol.CHAT, chat({"error": None, "choices": []}), None),
        (Protocol.RESPONSES, named({"type": "error", "code": "server_error"}), "server_error"),
        (Protocol.RESPONSES, named({"type": "error", "error": {"code": "x"}}), "x"),
        (Protocol.RESPONSES, named({"type": "response.failed", "response": {"error": {"code": "y"}}}), "y"),
        (Protocol.RESPONSES, named({"type": "response.failed", "response": {}}), ""),
        (Protocol.MESSAGES, named({"type": "error", "error": {"type": "overloaded_error"}}), "overloaded_error"),
        (Protocol.MESSAGES, named({"type": "error"}), ""),
    ],
)
def test_an_error_in_the_stream_is_heard(protocol: Protocol, data: bytes, code: str | None) -> None:
    assert heard(protocol, data).problem == code


def test_messages_usage_is_put_together() -> None:
    start = {"type": "message_start", "message": {"usage": {"input_tokens": 5, "output_tokens": 0}}}
    end = {"type": "message_delta", "usage": {"output_tokens": 3}}
    assert heard(Protocol.MESSAGES, named(start, end)).usage == Usage(uncached_input=5, output=3)


def test_comments_and_pings_are_keep_alives_and_no_events() -> None:
    listener = Listener(Protocol.MESSAGES)
    assert listener.receive_data(b": keep-alive\n\nevent: ping\ndata: {}\n\nevent: ping\n\n") == 0
    assert (listener.keep_alives, listener.events) == (3, 0)


def test_an_event_without_an_end_is_not_kept_for_ever() -> None:
    listener = Listener(Protocol.CHAT)
    for _ in range(9):
        listener.receive_data(b"data: " + b"x" * 1_000_000)
    assert listener.finish().turns == [{"role": "assistant", "content": ""}]
    assert listener.events == 0


@pytest.mark.parametrize(
    ("arguments", "readable"), [("", True), ("{}", True), ('{"a": 1}', True), ("[]", False), ('{"a', False)]
)
def test_arguments_are_a_json_object(arguments: str, readable: bool) -> None:
    assert Call(arguments=arguments).readable is readable


@pytest.mark.parametrize("protocol", Protocol)
@given(
    st.lists(
        st.one_of(
            st.binary(max_size=40),
            st.dictionaries(
                st.sampled_from(["type", "index", "delta", "choices", "item", "response", "usage", "content_block"]),
                st.recursive(
                    st.none()
                    | st.integers()
                    | st.text(max_size=5)
                    | st.sampled_from(["tool_use", "content_block_delta"]),
                    lambda inner: (
                        st.lists(inner, max_size=2)
                        | st.dictionaries(st.sampled_from(["type", "text", "tool_calls", "function", "delta"]), inner)
                    ),
                    max_leaves=4,
                ),
            ).map(lambda event: b"data: " + json.dumps(event).encode() + b"\n\n"),
        ),
        max_size=5,
    )
)
def test_nothing_that_a_peer_sends_is_raised_on(protocol: Protocol, pieces: list[bytes]) -> None:
    listener = Listener(protocol)
    for piece in pieces:
        listener.receive_data(piece)
    listener.finish()
