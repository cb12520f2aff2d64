"""Whole chat completions, in OpenAI's shape and in those that some servers give them."""

import msgspec
from anthropic.types import Message
from openai.types.chat import ChatCompletion

from capi_trio.demo.completion import Choice, Completion, Usage, reasoning_members, whole_json
from capi_trio.demo.faults import Options, Quirk, UsageStyle
from capi_trio.demo.prompt import Call, Finish, Reply
from capi_trio.demo.seal import seal

TEXT = Choice(Reply(("Hm. ",), ("Yes", ", indeed."), (), Finish.STOP, 1, 4), ())
CALLS = (Call("get_weather", ('{"city":', '"Paris"}')), Call("get_time", ("{}",)))
TOOLS = Choice(Reply((), (), CALLS, Finish.TOOL_CALLS, 0, 9), ("call_1", "call_2"))
FIGURES = Usage(9, 4, 1)


def whole(choice: Choice, *quirks: Quirk, usage: UsageStyle = UsageStyle.NORMAL, figures: Usage = FIGURES) -> bytes:
    completion = Completion("chatcmpl-1", 1_800_000_000, "demo-all", (choice,), figures)
    return msgspec.json.encode(whole_json(completion, Options(quirks=frozenset(quirks), usage=usage)))


def test_a_completion_is_one_to_the_official_sdk() -> None:
    completion = ChatCompletion.model_validate_json(whole(TEXT), strict=True)
    (choice,) = completion.choices
    assert (choice.message.content, choice.finish_reason) == ("Yes, indeed.", "stop")
    assert (completion.id, completion.created, completion.model) == ("chatcmpl-1", 1_800_000_000, "demo-all")
    calls = ChatCompletion.model_validate_json(whole(TOOLS), strict=True).choices[0].message.tool_calls
    assert [call.id for call in calls or ()] == ["call_1", "call_2"]


def test_usage_can_be_missing_or_without_its_details() -> None:
    assert "usage" not in msgspec.json.decode(whole(TEXT, usage=UsageStyle.MISSING))
    usage = msgspec.json.decode(whole(TEXT, figures=Usage(9, 4, 1, detailed=False)))["usage"]
    assert usage == {"prompt_tokens": 9, "completion_tokens": 4, "total_tokens": 13}


def test_what_was_written_to_a_cache_is_mentioned_only_if_something_was() -> None:
    def details(usage: Usage) -> object:
        return msgspec.json.decode(whole(TEXT, figures=usage))["usage"]["prompt_tokens_details"]

    assert details(Usage(9, 4, 1)) == {"cached_tokens": 0, "audio_tokens": 0}
    assert details(Usage(9, 4, 1, 3, 2)) == {"cached_tokens": 3, "audio_tokens": 0, "cache_write_tokens": 2}


def test_reasoning_goes_by_two_names() -> None:
    assert reasoning_members("Hm.", frozenset()) == {"reasoning_content": "Hm."}
    named = {"reasoning_text": "Hm.", "reasoning_opaque": seal("Hm.")}
    assert reasoning_members("Hm.", frozenset({Quirk.REASONING_TEXT})) == named
    message = msgspec.json.decode(whole(TEXT, Quirk.REASONING_TEXT))["choices"][0]["message"]
    assert message["reasoning_opaque"] == seal("Hm. ")


def test_text_and_each_call_can_come_in_choices_of_their_own() -> None:
    choices = msgspec.json.decode(whole(TOOLS, Quirk.SPLIT_CHOICES))["choices"]
    assert [len(choice["message"].get("tool_calls", ())) for choice in choices] == [0, 1, 1]
    assert [choice["finish_reason"] for choice in choices] == ["tool_calls"] * 3
    assert not [choice for choice in choices if "index" in choice]
    (text,) = msgspec.json.decode(whole(TEXT, Quirk.SPLIT_CHOICES))["choices"]
    assert text["message"]["content"] == "Yes, indeed."


def test_an_answer_can_come_in_anthropics_shape() -> None:
    message = Message.model_validate_json(whole(TOOLS, Quirk.ANTHROPIC_BODY, figures=Usage(9, 4, 1, 3, 2)))
    assert [block.type for block in message.content] == ["tool_use", "tool_use"]
    assert message.stop_reason == "tool_use"
    assert (message.usage.input_tokens, message.usage.cache_read_input_tokens) == (4, 3)
    assert message.usage.cache_creation_input_tokens == 2
    assert b"choices" not in whole(TEXT, Quirk.ANTHROPIC_BODY)
