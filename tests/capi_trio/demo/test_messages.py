"""Anthropic's Messages, streamed and whole, held against the official SDK's types."""

from typing import Final

import msgspec
import pytest
from anthropic.types import Message, RawMessageStreamEvent, Usage
from pydantic import TypeAdapter

from capi_core.errors import Problem
from capi_trio.demo import messages
from capi_trio.demo.answers import Answer, Refused, Request, World, Write
from capi_trio.demo.app import IdCounter
from capi_trio.demo.seal import seal
from tests.support.asgi_harness import event_data

HI: Final = [{"role": "user", "content": "hi"}]
PARIS: Final = [{"role": "user", "content": "the weather in Paris"}]
WEATHER: Final = {
    "name": "get_weather",
    "input_schema": {"type": "object", "properties": {"city": {"type": "string"}}, "required": ["city"]},
}
TIME: Final = {"name": "get_time", "input_schema": {"type": "object"}}
ADAPTIVE: Final = {"type": "adaptive"}
HEADERS: Final = ((b"anthropic-version", b"2026-10-21"),)
EVENT: Final = TypeAdapter[RawMessageStreamEvent](RawMessageStreamEvent)


def request(members: dict[str, object]) -> Request:
    body = msgspec.json.encode({"model": "demo-claude", "messages": HI, "max_tokens": 500} | members)
    return Request("POST", "/v1/messages", HEADERS, body, "req_1")


def bytes_of(answer: Answer) -> bytes:
    assert answer.status == 200
    return b"".join(step.data for step in answer.steps if isinstance(step, Write))


def post(**members: object) -> bytes:
    """The body of the answer to a request with these members, whatever its pace."""
    return bytes_of(messages.answer(request(members), World(lambda: 0.0, IdCounter(), pace_s=0.02)))


def whole(**members: object) -> dict[str, object]:
    found = msgspec.json.decode(post(**members), type=dict[str, object])
    Message.model_validate(found)
    return found


def stream(**members: object) -> list[dict[str, object]]:
    events = [msgspec.json.decode(data, type=dict[str, object]) for data in event_data(post(stream=True, **members))]
    for event in events:
        if event["type"] != "ping":
            EVENT.validate_python(event)
    return events


def at(value: object, *path: str | int) -> object:
    """What lies at that path in a JSON value."""
    for step in path:
        value = value[step]  # type: ignore[index]  # JSON: a wrong path fails the test
    return value


def kinds(events: list[dict[str, object]]) -> list[object]:
    """The types of the events, each run of deltas once."""
    types = [event["type"] for event in events]
    return [kind for index, kind in enumerate(types) if index == 0 or kind != types[index - 1]]


def joined(events: list[dict[str, object]], member: str) -> str:
    deltas = (event["delta"] for event in events if event["type"] == "content_block_delta")
    return "".join(delta.get(member, "") for delta in deltas if isinstance(delta, dict))


BLOCK: Final = ["content_block_start", "content_block_delta", "content_block_stop"]
END: Final = ["message_delta", "message_stop"]


def test_a_whole_answer_is_a_message() -> None:
    message = whole()
    assert at(message, "content", 0, "type") == "text"
    assert "“hi”" in str(at(message, "content", 0, "text"))
    assert (message["role"], message["model"]) == ("assistant", "demo-claude")
    assert (message["stop_reason"], message["stop_sequence"]) == ("end_turn", None)


def test_a_stream_says_the_same_in_anthropics_order() -> None:
    events = stream(thinking=ADAPTIVE)
    assert kinds(events) == ["message_start", "ping", *BLOCK, *BLOCK, *END]
    message = whole(thinking=ADAPTIVE)
    thinking = joined(events, "thinking")
    assert at(message, "content", 0, "thinking") == thinking
    assert at(message, "content", 1, "text") == joined(events, "text")
    signature = {"type": "signature_delta", "signature": seal(thinking)}
    assert [event.get("delta") for event in events].count(signature) == 1
    assert at(message, "content", 0, "signature") == seal(thinking)


def test_thinking_can_be_kept_back() -> None:
    omitted = {"type": "adaptive", "display": "omitted"}
    signature = seal(joined(stream(thinking=ADAPTIVE), "thinking"))
    block = {"type": "thinking", "thinking": "", "signature": signature}
    assert at(whole(thinking=omitted), "content", 0) == block
    assert joined(stream(thinking=omitted), "thinking") == ""
    assert joined(stream(thinking=omitted), "signature") == signature


def test_a_tool_is_called() -> None:
    message = whole(messages=PARIS, tools=[WEATHER])
    call = {"type": "tool_use", "id": "toolu_demo00000002", "name": "get_weather", "input": {"city": "Paris"}}
    assert message["content"] == [call]
    assert message["stop_reason"] == "tool_use"
    events = stream(messages=PARIS, tools=[WEATHER])
    assert kinds(events) == ["message_start", "ping", *BLOCK, *END]
    assert events[2]["content_block"] == call | {"input": {}}
    assert joined(events, "partial_json") == '{"city":"Paris"}'


def test_several_tools_are_called_in_blocks_of_their_own() -> None:
    asked: dict[str, object] = {"messages": [{"role": "user", "content": "weather and time"}], "tools": [WEATHER, TIME]}
    events = stream(**asked, tool_choice={"type": "any"})
    assert [event["index"] for event in events if event["type"] == "content_block_start"] == [0, 1]
    one = whole(**asked, tool_choice={"type": "any", "disable_parallel_tool_use": True})
    assert [block["name"] for block in msgspec.convert(one["content"], list[dict[str, object]])] == ["get_weather"]


@pytest.mark.parametrize(
    ("members", "reason", "sequence"),
    [
        ({"max_tokens": 2}, "max_tokens", None),
        ({"stop_sequences": [" said"]}, "stop_sequence", " said"),
        ({"messages": PARIS, "tools": [WEATHER], "max_tokens": 4}, "max_tokens", None),
    ],
)
def test_limits_and_stops_show_in_the_stop_reason(
    members: dict[str, object], reason: str, sequence: str | None
) -> None:
    message = whole(**members)
    assert (message["stop_reason"], message["stop_sequence"]) == (reason, sequence)
    assert stream(**members)[-2]["delta"] == {"stop_reason": reason, "stop_sequence": sequence}


def test_a_call_that_was_cut_short_has_no_input() -> None:
    assert at(whole(messages=PARIS, tools=[WEATHER], max_tokens=4), "content", 0, "input") == {}


def test_usage_is_the_same_streamed_or_not() -> None:
    usage = whole(thinking=ADAPTIVE)["usage"]
    events = stream(thinking=ADAPTIVE)
    assert events[-2]["usage"] == usage
    assert at(events[0], "message", "usage", "output_tokens") == 1
    assert at(events[0], "message", "usage", "input_tokens") == at(usage, "input_tokens")
    figures = Usage.model_validate(usage)
    assert figures.output_tokens_details is not None
    assert 0 < figures.output_tokens_details.thinking_tokens < figures.output_tokens


def test_usage_counts_the_cache_apart() -> None:
    prompt = Usage.model_validate(whole()["usage"]).input_tokens
    usage = Usage.model_validate(whole(demo={"cached": 2, "cache_write": 1})["usage"])
    assert (usage.cache_read_input_tokens, usage.cache_creation_input_tokens) == (2, 1)
    assert usage.input_tokens == prompt - 3
    usage = Usage.model_validate(whole(demo={"cached": 1000, "cache_write": 1000})["usage"])
    assert (usage.cache_read_input_tokens, usage.cache_creation_input_tokens, usage.input_tokens) == (prompt, 0, 0)


def test_usage_can_be_missing() -> None:
    demo = {"usage": "missing"}
    assert b'"usage"' not in post(demo=demo)
    assert b'"usage"' not in post(stream=True, demo=demo)


def test_tokens_are_counted_as_they_are_billed() -> None:
    members: dict[str, object] = {"system": "Be brief.", "tools": [WEATHER]}
    counting = request(members | {"max_tokens": None})
    counted = msgspec.json.decode(bytes_of(messages.count_tokens(counting, World(lambda: 0.0, IdCounter(), 0.0))))
    assert counted == {"input_tokens": at(whole(**members), "usage", "input_tokens")}


def test_a_directive_is_not_counted_nor_obeyed_in_counting() -> None:
    world = World(lambda: 0.0, IdCounter(), 0.0)
    said = [{"role": "user", "content": 'hi [[demo {"fault": "end"}]]'}]
    assert bytes_of(messages.count_tokens(request({"messages": said}), world)) == bytes_of(
        messages.count_tokens(request({}), world)
    )
    failing = messages.count_tokens(request({"demo": {"fault": "status", "status": 529}}), world)
    assert failing.status == 529


def test_a_directive_works_in_words() -> None:
    message = whole(messages=[{"role": "user", "content": 'hi [[demo {"events": 1, "cached": 2}]]'}])
    assert at(message, "usage", "cache_read_input_tokens") == 2
    assert "“hi”" in str(at(message, "content", 0, "text"))


@pytest.mark.parametrize(
    ("members", "status", "message"),
    [
        ({"max_tokens": None}, 400, "max_tokens: Field required"),
        ({"model": "demo-gpt"}, 400, "does not support /v1/messages"),
        ({"model": "claude-12"}, 404, "does not exist"),
        ({"messages": [{"role": "user", "content": "x" * 800_001}]}, 400, "prompt is too long"),
    ],
)
def test_what_cannot_be_answered_is_refused(members: dict[str, object], status: int, message: str) -> None:
    with pytest.raises(Refused, match=message) as refused:
        post(**members)
    assert refused.value.problem.status == status


@pytest.mark.parametrize(
    ("status", "kind"),
    [(400, "invalid_request_error"), (401, "authentication_error"), (402, "billing_error"), (403, "permission_error"),
     (404, "not_found_error"), (405, "invalid_request_error"), (409, "conflict_error"), (413, "request_too_large"),
     (429, "rate_limit_error"), (500, "api_error"), (503, "api_error"), (504, "timeout_error"),
     (529, "overloaded_error")],
)  # fmt: skip
def test_errors_have_anthropics_shape(status: int, kind: str) -> None:
    shape = messages.error_shape(request({}))
    assert shape(Problem(status, "code", "What happened.")) == {
        "type": "error",
        "error": {"type": kind, "message": "What happened."},
        "request_id": "req_1",
    }


def test_a_stray_done_can_follow_or_replace_the_stop() -> None:
    after = post(stream=True, demo={"quirks": ["done_after_stop"]})
    assert after.endswith(b'event: message_stop\ndata: {"type":"message_stop"}\n\ndata: [DONE]\n\n')
    instead = post(stream=True, demo={"quirks": ["done_instead_of_stop"]})
    assert b"message_stop" not in instead
    assert event_data(instead)[-1] == "[DONE]"


def test_event_names_can_be_missing() -> None:
    body = post(stream=True, demo={"quirks": ["no_event_names"]})
    assert b"event: " not in body
    assert event_data(body) == event_data(post(stream=True))


def test_a_signature_can_come_in_two_deltas() -> None:
    events = stream(thinking=ADAPTIVE, demo={"quirks": ["split_signature"]})
    deltas = [event for event in events if '"signature_delta"' in msgspec.json.encode(event).decode()]
    assert len(deltas) == 2
    assert joined(events, "signature") == at(whole(thinking=ADAPTIVE), "content", 0, "signature")


def test_thinking_can_be_redacted() -> None:
    demo = {"quirks": ["redacted_thinking"]}
    thinking = joined(stream(thinking=ADAPTIVE), "thinking")
    block = {"type": "redacted_thinking", "data": seal(thinking)}
    assert at(whole(thinking=ADAPTIVE, demo=demo), "content", 0) == block
    events = stream(thinking=ADAPTIVE, demo=demo)
    assert events[2]["content_block"] == block
    assert events[3]["type"] == "content_block_stop"
