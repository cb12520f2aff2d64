"""Chat Completions, streamed and whole, held against the official SDK's types."""

from collections.abc import Iterator
from typing import Final

import msgspec
import pytest
from openai.types.chat import ChatCompletion, ChatCompletionChunk

from capi_trio.demo import chat
from capi_trio.demo.answers import Pause, Refused, Request, World, Write
from capi_trio.demo.app import IdCounter
from tests.support.asgi_harness import event_data

HI: Final = [{"role": "user", "content": "hi"}]
WEATHER: Final = {
    "type": "function",
    "function": {
        "name": "get_weather",
        "parameters": {
            "type": "object",
            "properties": {"city": {"type": "string"}, "unit": {"enum": ["c", "f"]}},
            "required": ["city", "unit"],
        },
    },
}
TIME: Final = {"type": "function", "function": {"name": "get_time"}}
ASKED: Final = {"include_usage": True}


def post(**members: object) -> bytes:
    """The body of the answer to a request with these members, whatever its pace."""
    body = msgspec.json.encode({"model": "demo-chat", "messages": HI} | members)
    request = Request("POST", "/v1/chat/completions", (), body)
    answer = chat.answer(request, World(lambda: 1_800_000_000.9, IdCounter(), pace_s=0.02))
    assert answer.status == 200
    return b"".join(step.data for step in answer.steps if isinstance(step, Write))


def whole(**members: object) -> ChatCompletion:
    return ChatCompletion.model_validate_json(post(**members), strict=True)


def stream(**members: object) -> list[ChatCompletionChunk]:
    *chunks, done = event_data(post(stream=True, **members))
    assert done == "[DONE]"
    return [ChatCompletionChunk.model_validate_json(chunk) for chunk in chunks]


def deltas(chunks: list[ChatCompletionChunk], member: str, index: int = 0) -> Iterator[str]:
    for chunk in chunks:
        for choice in chunk.choices:
            if choice.index == index and isinstance(value := getattr(choice.delta, member, None), str):
                yield value


def test_a_whole_answer_is_a_completion() -> None:
    completion = whole()
    assert completion.id.startswith("chatcmpl-")
    assert (completion.object, completion.created) == ("chat.completion", 1_800_000_000)
    assert completion.model == "demo-chat"
    (choice,) = completion.choices
    assert choice.message.role == "assistant"
    assert "“hi”" in (choice.message.content or "")
    assert choice.finish_reason == "stop"


def test_a_stream_says_the_same_as_a_whole_answer() -> None:
    chunks = stream()
    content = whole().choices[0].message.content
    assert "".join(deltas(chunks, "content")) == content
    assert len({chunk.id for chunk in chunks}) == 1
    assert chunks[0].choices[0].delta.role == "assistant"
    assert [choice.finish_reason for chunk in chunks for choice in chunk.choices if choice.finish_reason] == ["stop"]


def test_a_stream_rests_between_content_events_only() -> None:
    body = msgspec.json.encode({"model": "demo-chat", "messages": HI, "stream": True, "demo": {"events": 5}})
    request = Request("POST", "/v1/chat/completions", (), body)
    answer = chat.answer(request, World(lambda: 0.0, IdCounter(), pace_s=0.5))
    assert [step for step in answer.steps if isinstance(step, Pause)] == [Pause(0.5)] * 4


def test_usage_adds_up_and_is_the_same_streamed_or_not() -> None:
    usage = whole(model="demo-reasoner").usage
    assert usage is not None
    assert usage.total_tokens == usage.prompt_tokens + usage.completion_tokens
    assert usage.prompt_tokens_details is not None
    assert usage.prompt_tokens_details.cached_tokens == 0
    assert usage.completion_tokens_details is not None
    assert 0 < (usage.completion_tokens_details.reasoning_tokens or 0) < usage.completion_tokens
    assert stream(model="demo-reasoner", stream_options=ASKED)[-1].usage == usage


def test_usage_comes_in_a_last_chunk_without_choices_when_asked_for() -> None:
    *chunks, last = stream(stream_options=ASKED)
    assert last.choices == []
    assert last.usage is not None
    for data in event_data(post(stream=True, stream_options=ASKED))[:-2]:
        assert '"usage":null' in data
    assert chunks[-1].choices[0].finish_reason == "stop"


@pytest.mark.parametrize("options", [None, {}, {"include_usage": False}])
def test_usage_is_not_mentioned_when_not_asked_for(options: object) -> None:
    assert b'"usage"' not in post(stream=True, stream_options=options)


def test_usage_can_be_missing_though_asked_for() -> None:
    demo = {"usage": "missing"}
    assert b'"usage"' not in post(stream=True, stream_options=ASKED, demo=demo)
    assert whole(demo=demo).usage is None


def test_usage_can_come_unasked() -> None:
    *chunks, last = stream(demo={"usage": "unasked"})
    assert (last.choices, last.usage) == ([], whole().usage)
    assert all(chunk.usage is None for chunk in chunks)


def test_usage_can_come_with_the_finish() -> None:
    *chunks, last = stream(n=2, demo={"usage": "with_finish"})
    assert last.choices[0].finish_reason == "stop"
    assert last.usage == whole(n=2).usage
    assert all(chunk.usage is None for chunk in chunks)


def test_usage_can_run_along_on_every_chunk() -> None:
    chunks = stream(model="demo-reasoner", demo={"usage": "every_chunk"})
    counts = [chunk.usage.completion_tokens for chunk in chunks if chunk.usage is not None]
    assert len(counts) == len(chunks)
    assert counts == sorted(counts)
    assert (counts[0], counts[1]) == (0, 1)
    assert chunks[-1].usage == whole(model="demo-reasoner").usage


def test_usage_can_come_after_the_terminator() -> None:
    *_, done, late = event_data(post(stream=True, demo={"usage": "after_done"}))
    assert done == "[DONE]"
    assert ChatCompletionChunk.model_validate_json(late).usage == whole().usage


def test_a_reasoner_thinks_in_reasoning_content_before_it_answers() -> None:
    chunks = stream(model="demo-reasoner")
    kinds = [
        name
        for chunk in chunks
        for choice in chunk.choices
        for name in ("reasoning_content", "content")
        if getattr(choice.delta, name, None)
    ]
    assert kinds == sorted(kinds, reverse=True)
    assert set(kinds) == {"reasoning_content", "content"}
    message = msgspec.json.decode(post(model="demo-reasoner"))["choices"][0]["message"]
    assert message["reasoning_content"] == "".join(deltas(chunks, "reasoning_content"))
    assert "reasoning_content" not in msgspec.json.decode(post())["choices"][0]["message"]


def test_a_tool_call_streams_its_name_once_and_its_arguments_in_fragments() -> None:
    messages = [{"role": "user", "content": "the weather in Paris"}]
    chunks = stream(messages=messages, tools=[WEATHER])
    calls = [call for chunk in chunks for choice in chunk.choices for call in choice.delta.tool_calls or ()]
    first, *rest = calls
    assert first.id is not None
    assert first.function is not None
    assert (first.type, first.function.name, first.function.arguments) == ("function", "get_weather", "")
    assert len(rest) > 1
    assert all(call.id is None and call.index == 0 for call in rest)
    arguments = "".join(call.function.arguments or "" for call in rest if call.function)
    assert msgspec.json.decode(arguments) == {"city": "Paris", "unit": "c"}
    assert chunks[-1].choices[0].finish_reason == "tool_calls"
    assert not any(deltas(chunks, "content"))


def test_several_tools_are_called_side_by_side() -> None:
    messages = [{"role": "user", "content": "weather and time"}]
    members = {"messages": messages, "tools": [WEATHER, TIME], "tool_choice": "required"}
    message = whole(**members).choices[0].message
    assert message.content is None
    assert message.tool_calls is not None
    names = [call.function.name for call in message.tool_calls if call.type == "function"]
    assert names == ["get_weather", "get_time"]
    assert len({call.id for call in message.tool_calls}) == 2
    chunks = stream(**members)
    indexes = [call.index for chunk in chunks for choice in chunk.choices for call in choice.delta.tool_calls or ()]
    assert indexes == sorted(indexes)
    assert set(indexes) == {0, 1}


def test_a_tools_result_is_answered_in_words() -> None:
    messages: list[dict[str, object]] = [{"role": "user", "content": "the weather in Paris"}]
    message = whole(messages=messages, tools=[WEATHER]).choices[0].message
    assert message.tool_calls is not None
    (call,) = message.tool_calls
    messages += [message.model_dump(exclude_none=True), {"role": "tool", "tool_call_id": call.id, "content": "18 °C"}]
    (choice,) = whole(messages=messages, tools=[WEATHER]).choices
    assert choice.message.content == "get_weather answered: “18 °C”."
    assert choice.finish_reason == "stop"


def test_several_choices_differ_and_take_turns() -> None:
    completion = whole(n=3)
    assert [choice.index for choice in completion.choices] == [0, 1, 2]
    contents = [choice.message.content for choice in completion.choices]
    assert len(set(contents)) == 3
    chunks = stream(n=3)
    assert ["".join(deltas(chunks, "content", index)) for index in range(3)] == contents
    assert [chunk.choices[0].index for chunk in chunks[:9]] == [0, 1, 2] * 3
    assert [chunk.choices[0].finish_reason for chunk in chunks[-3:]] == ["stop"] * 3


def test_limits_and_stops_show_in_the_finish() -> None:
    cut = whole(max_tokens=2)
    assert cut.choices[0].finish_reason == "length"
    assert cut.usage is not None
    assert cut.usage.completion_tokens == 2
    assert stream(max_completion_tokens=2)[-1].choices[0].finish_reason == "length"
    stopped = whole(stop=" said").choices[0]
    assert (stopped.message.content, stopped.finish_reason) == ("You", "stop")


def test_json_mode_gives_json() -> None:
    assert "reply" in msgspec.json.decode(
        whole(response_format={"type": "json_object"}).choices[0].message.content or ""
    )
    schema = {"type": "object", "properties": {"count": {"type": "integer"}}, "required": ["count"]}
    wanted = {"type": "json_schema", "json_schema": {"name": "n", "strict": True, "schema": schema}}
    assert whole(response_format=wanted).choices[0].message.content == '{"count":1}'
    assert "".join(deltas(stream(response_format=wanted), "content")) == '{"count":1}'


@pytest.mark.parametrize("events", [0, 1, 100, 20_000])
def test_the_number_of_content_events_can_be_asked_for(events: int) -> None:
    chunks = stream(demo={"events": events})
    contents = [text for text in deltas(chunks, "content") if text]
    assert len(contents) == events
    assert chunks[-1].choices[0].finish_reason == "stop"


def test_a_prompt_over_the_models_limit_is_refused() -> None:
    with pytest.raises(Refused) as refused:
        post(model="demo-chat-mini", messages=[{"role": "user", "content": "x" * 64_001}])
    problem = refused.value.problem
    assert (problem.status, problem.code, problem.param) == (400, "context_length_exceeded", "messages")


def test_options_reach_the_answer_from_the_member_or_in_words() -> None:
    usage = whole(demo={"cached": 2, "cache_write": 1}).usage
    assert usage is not None
    assert usage.prompt_tokens_details is not None
    assert (usage.prompt_tokens_details.cached_tokens, usage.prompt_tokens_details.cache_write_tokens) == (2, 1)
    said = [{"role": "user", "content": 'hi [[demo {"quirks": ["no_usage_details"]}]]'}]
    choice = whole(messages=said)
    assert choice.usage is not None
    assert choice.usage.prompt_tokens_details is None
    assert "“hi”" in (choice.choices[0].message.content or "")


def test_a_model_of_all_protocols_speaks_this_one() -> None:
    assert (
        "reasoning_text"
        in msgspec.json.decode(post(model="demo-all", demo={"quirks": ["reasoning_text"]}))["choices"][0]["message"]
    )
