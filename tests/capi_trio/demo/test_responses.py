"""OpenAI's Responses, streamed and whole, held against the official SDK's types."""

from typing import Final

import msgspec
import pytest
from openai.types.responses import Response, ResponseStreamEvent
from pydantic import TypeAdapter

from capi_trio.demo import responses
from capi_trio.demo.answers import Refused, Request, World, Write
from capi_trio.demo.app import IdCounter
from capi_trio.demo.seal import seal
from tests.support.asgi_harness import event_data

EVENT: Final = TypeAdapter[ResponseStreamEvent](ResponseStreamEvent)
PARIS: Final = "the weather in Paris"
WEATHER: Final = {
    "type": "function",
    "name": "get_weather",
    "parameters": {"type": "object", "properties": {"city": {"type": "string"}}, "required": ["city"]},
}
SHELL: Final = {"type": "custom", "name": "shell"}
SUMMARY: Final = {"summary": "auto"}
SILENT: Final = {"effort": "none"}
ENCRYPTED: Final = ["reasoning.encrypted_content"]

Event = dict[str, object]


def post(**members: object) -> bytes:
    """The body of the answer to a request with these members, whatever its pace."""
    body = msgspec.json.encode({"model": "demo-gpt", "input": "hi"} | members)
    request = Request("POST", "/v1/responses", (), body)
    answer = responses.answer(request, World(lambda: 1_800_000_000.9, IdCounter(), pace_s=0.02))
    assert answer.status == 200
    return b"".join(step.data for step in answer.steps if isinstance(step, Write))


def whole(**members: object) -> Response:
    return Response.model_validate_json(post(**members))


def stream(**members: object) -> list[Event]:
    """The events, each of them one to the official SDK, with numbers that count up from 0."""
    events = [msgspec.json.decode(data, type=Event) for data in event_data(post(stream=True, **members))]
    for number, event in enumerate(events):
        EVENT.validate_python(event)
        assert event["sequence_number"] == number
    return events


def kinds(events: list[Event]) -> list[str]:
    """The types of the events without `response.`, each run of deltas once."""
    types = [str(event["type"]).removeprefix("response.") for event in events]
    return [kind for index, kind in enumerate(types) if index == 0 or kind != types[index - 1]]


def joined(events: list[Event], kind: str) -> str:
    return "".join(str(event["delta"]) for event in events if event["type"] == f"response.{kind}.delta")


def final(events: list[Event]) -> Response:
    return Response.model_validate(events[-1]["response"])


START: Final = ["created", "in_progress"]
REASONING: Final = ["output_item.added", "output_item.done"]
SUMMARISED: Final = [
    "output_item.added",
    "reasoning_summary_part.added",
    "reasoning_summary_text.delta",
    "reasoning_summary_text.done",
    "reasoning_summary_part.done",
    "output_item.done",
]
TEXT: Final = [
    "output_item.added",
    "content_part.added",
    "output_text.delta",
    "output_text.done",
    "content_part.done",
    "output_item.done",
]


def called(kind: str) -> list[str]:
    return ["output_item.added", f"{kind}.delta", f"{kind}.done", "output_item.done"]


def test_a_whole_answer_is_a_response() -> None:
    response = whole(reasoning=SILENT, instructions="Be brief.", metadata={"a": "b"})
    assert (response.object, response.status, response.model) == ("response", "completed", "demo-gpt")
    assert response.id.startswith("resp_")
    assert response.created_at == 1_800_000_000
    assert "“hi”" in response.output_text
    assert (response.instructions, response.metadata) == ("Be brief.", {"a": "b"})
    (message,) = response.output
    assert message.type == "message"
    assert message.status == "completed"


def test_a_response_repeats_its_request_with_the_servers_defaults() -> None:
    raw = msgspec.json.decode(post(tools=[WEATHER, SHELL]))
    assert raw["tools"] == [WEATHER | {"strict": True}, SHELL]
    assert (raw["tool_choice"], raw["parallel_tool_calls"], raw["store"]) == ("auto", True, True)
    raw = msgspec.json.decode(post(tool_choice="none", store=False, parallel_tool_calls=False, max_output_tokens=99))
    assert (raw["tool_choice"], raw["parallel_tool_calls"], raw["store"]) == ("none", False, False)
    assert raw["max_output_tokens"] == 99


@pytest.mark.parametrize(
    ("members", "middle"),
    [
        ({"reasoning": SILENT}, TEXT),
        ({}, [*REASONING, *TEXT]),
        ({"reasoning": SUMMARY}, [*SUMMARISED, *TEXT]),
        ({"reasoning": SILENT, "input": PARIS, "tools": [WEATHER]}, called("function_call_arguments")),
        ({"reasoning": SILENT, "input": "a shell", "tools": [SHELL]}, called("custom_tool_call_input")),
    ],
)
def test_a_stream_has_openais_order_and_says_the_same(members: dict[str, object], middle: list[str]) -> None:
    events = stream(**members)
    assert kinds(events) == [*START, *middle, "completed"]
    assert final(events) == whole(**members)
    done = [event["item"] for event in events if event["type"] == "response.output_item.done"]
    assert done == msgspec.json.decode(post(**members))["output"]


def test_deltas_add_up() -> None:
    events = stream(reasoning=SUMMARY)
    reasoning, message = whole(reasoning=SUMMARY).output
    assert reasoning.type == "reasoning"
    assert joined(events, "reasoning_summary_text") == reasoning.summary[0].text
    assert joined(events, "output_text") == whole().output_text
    assert message.type == "message"
    events = stream(input=PARIS, tools=[WEATHER])
    assert joined(events, "function_call_arguments") == '{"city":"Paris"}'


def test_items_begin_empty() -> None:
    events = stream(reasoning=SUMMARY, include=ENCRYPTED)
    reasoning, message = (event["item"] for event in events if event["type"] == "response.output_item.added")
    assert reasoning == {"id": "rs_demo00000002", "type": "reasoning", "summary": []}
    assert message == {
        "id": "msg_demo00000003",
        "type": "message",
        "status": "in_progress",
        "role": "assistant",
        "content": [],
    }
    assert [event["response"]["output"] for event in events[:2] if isinstance(event["response"], dict)] == [[], []]


def test_a_summary_and_a_seal_come_only_when_asked_for() -> None:
    (reasoning, _) = whole().output
    assert reasoning.type == "reasoning"
    assert (reasoning.summary, reasoning.encrypted_content) == ([], None)
    (reasoning, _) = whole(reasoning=SUMMARY, include=ENCRYPTED).output
    assert reasoning.type == "reasoning"
    assert reasoning.encrypted_content == seal(reasoning.summary[0].text)


def test_a_custom_tool_gets_a_text() -> None:
    (call,) = whole(reasoning=SILENT, input='use the shell with "ls -l"', tools=[SHELL]).output
    assert call.type == "custom_tool_call"
    assert (call.name, call.input) == ("shell", "ls -l")


def test_several_tools_are_called_with_ids_of_their_own() -> None:
    members: dict[str, object] = {"input": "weather and shell", "tools": [WEATHER, SHELL], "tool_choice": "required"}
    output = whole(reasoning=SILENT, **members).output
    assert [item.type for item in output] == ["function_call", "custom_tool_call"]
    assert len({item.id for item in output}) == 2
    assert len(whole(reasoning=SILENT, parallel_tool_calls=False, **members).output) == 1


@pytest.mark.parametrize("stream_it", [True, False])
def test_a_response_over_its_limit_is_incomplete(*, stream_it: bool) -> None:
    members: dict[str, object] = {"reasoning": SILENT, "max_output_tokens": 16}
    response = final(stream(**members)) if stream_it else whole(**members)
    assert response.status == "incomplete"
    assert response.incomplete_details is not None
    assert response.incomplete_details.reason == "max_output_tokens"
    (message,) = response.output
    assert message.type == "message"
    assert message.status == "incomplete"
    assert response.usage is not None
    assert response.usage.output_tokens <= 16
    assert kinds(stream(**members))[-1] == "incomplete"


def test_what_was_cut_within_a_custom_tools_text_is_left_out() -> None:
    asked = f'shell "{"x" * 150}"'
    (call,) = whole(reasoning=SILENT, input=asked, tools=[SHELL], max_output_tokens=16).output
    assert call.type == "custom_tool_call"
    assert call.input == ""


def test_usage_has_both_details() -> None:
    usage = whole(demo={"cached": 2, "cache_write": 1}).usage
    assert usage is not None
    assert (usage.input_tokens_details.cached_tokens, usage.input_tokens_details.cache_write_tokens) == (2, 1)
    assert 0 < usage.output_tokens_details.reasoning_tokens < usage.output_tokens
    assert usage.total_tokens == usage.input_tokens + usage.output_tokens
    most = whole(demo={"cached": 1000, "cache_write": 9}).usage
    assert most is not None
    assert most.input_tokens_details.cached_tokens == usage.input_tokens
    assert most.input_tokens_details.cache_write_tokens == 0
    assert whole(demo={"usage": "missing"}).usage is None


def test_json_mode_gives_json() -> None:
    schema = {"type": "object", "properties": {"count": {"type": "integer"}}, "required": ["count"]}
    wanted = {"format": {"type": "json_schema", "name": "n", "schema": schema}}
    assert whole(text=wanted).output_text == '{"count":1}'


def test_a_directive_works_in_words() -> None:
    response = whole(input='hi [[demo {"cached": 2}]]')
    assert response.usage is not None
    assert response.usage.input_tokens_details.cached_tokens == 2
    assert "“hi”" in response.output_text


@pytest.mark.parametrize(
    ("members", "status", "code"),
    [
        ({"model": "demo-claude"}, 400, "unsupported_api_for_model"),
        ({"model": "gpt-12"}, 404, "model_not_found"),
        ({"input": "x" * 800_001}, 400, "context_length_exceeded"),
    ],
)
def test_what_cannot_be_answered_is_refused(members: dict[str, object], status: int, code: str) -> None:
    with pytest.raises(Refused) as refused:
        post(**members)
    assert (refused.value.problem.status, refused.value.problem.code) == (status, code)


def test_ids_can_rotate_while_call_ids_stay() -> None:
    events = stream(input=PARIS, tools=[WEATHER], demo={"quirks": ["rotating_ids"]})
    ids = [str(event["item_id"]) for event in events if "item_id" in event]
    items = [event["item"] for event in events if "item" in event]
    ids += [str(item["id"]) for item in items if isinstance(item, dict)]
    assert len(set(ids)) == len(ids)
    responses_seen = {str(event["response"]["id"]) for event in events if isinstance(event.get("response"), dict)}  # type: ignore[index]  # checked
    assert len(responses_seen) == 3
    calls = {item["call_id"] for item in items if isinstance(item, dict) and "call_id" in item}
    assert len(calls) == 1


def test_a_stream_can_have_only_done_events() -> None:
    events = stream(reasoning=SUMMARY, demo={"quirks": ["done_only"]})
    assert not [event for event in events if str(event["type"]).endswith(".delta")]
    assert final(events) == whole(reasoning=SUMMARY)
    texts = [event["text"] for event in events if event["type"] == "response.output_text.done"]
    assert texts == [whole().output_text]


def test_a_summary_can_stay_empty() -> None:
    demo = {"quirks": ["empty_summary"]}
    assert kinds(stream(reasoning=SUMMARY, demo=demo)) == [*START, *REASONING, *TEXT, "completed"]
    (reasoning, _) = whole(reasoning=SUMMARY, include=ENCRYPTED, demo=demo).output
    assert reasoning.type == "reasoning"
    assert reasoning.summary == []
    assert reasoning.encrypted_content


def test_deltas_can_be_padded() -> None:
    events = stream(demo={"quirks": ["obfuscation"]})
    deltas = [event for event in events if "delta" in event]
    assert {(len(str(event["delta"])) + len(str(event["obfuscation"]))) % 16 for event in deltas} == {0}
    assert joined(events, "output_text") == whole().output_text
