"""Anthropic Messages requests, as prompts or refused."""

from typing import Final

import msgspec
import pytest

from capi_trio.demo import catalog
from capi_trio.demo.answers import Refused, decode
from capi_trio.demo.messages_request import MessagesRequest, check_version, prompt_of
from capi_trio.demo.prompt import Call, JsonMode, Prompt, Role, Tool, ToolChoice, Turn
from capi_trio.demo.seal import seal

HI: Final = {"role": "user", "content": "hi"}
IMAGE: Final = {"type": "image", "source": {"type": "base64", "media_type": "image/png", "data": "AAAA"}}
WEATHER: Final[dict[str, object]] = {
    "name": "get_weather",
    "description": "Weather",
    "input_schema": {"type": "object"},
}
USE: Final = {"type": "tool_use", "id": "toolu_1", "name": "get_weather", "input": {"city": "Paris"}}
RESULT: Final = {"type": "tool_result", "tool_use_id": "toolu_1", "content": "18 °C"}
CALLED: Final = Turn(Role.ASSISTANT, "", calls=(Call("get_weather", ('{"city":"Paris"}',)),))


def decoded(**members: object) -> MessagesRequest:
    return decode(msgspec.json.encode({"messages": [HI], "max_tokens": 5000} | members), MessagesRequest)


def read(model: str = "demo-claude", /, **members: object) -> Prompt:
    return prompt_of(decoded(**members), catalog.find(model))


def refusal(model: str = "demo-claude", /, **members: object) -> str:
    with pytest.raises(Refused) as refused:
        read(model, **members)
    assert refused.value.problem.status == 400
    return refused.value.problem.message


def said(role: str, *blocks: object) -> dict[str, object]:
    return {"role": role, "content": blocks}


def text(words: str) -> dict[str, str]:
    return {"type": "text", "text": words}


@pytest.mark.parametrize("system", ["Be brief.", [text("Be brief.") | {"cache_control": {"type": "ephemeral"}}]])
def test_the_system_prompt_comes_first(system: object) -> None:
    assert read(system=system).turns == (Turn(Role.SYSTEM, "Be brief."), Turn(Role.USER, "hi"))


def test_without_a_system_prompt_there_is_none() -> None:
    assert read().turns == (Turn(Role.USER, "hi"),)
    assert read(system=[]).turns == (Turn(Role.USER, "hi"),)


def test_messages_become_turns() -> None:
    messages = [
        HI,
        {"role": "system", "content": "Speak French."},
        said("assistant", text("a"), text("b")),
        said("user", text("look"), IMAGE, IMAGE),
    ]
    assert read(messages=messages).turns == (
        Turn(Role.USER, "hi"),
        Turn(Role.SYSTEM, "Speak French."),
        Turn(Role.ASSISTANT, "a\nb"),
        Turn(Role.USER, "look", images=2),
    )


@pytest.mark.parametrize(
    ("content", "turn"),
    [
        ("18 °C", Turn(Role.TOOL, "18 °C", name="get_weather")),
        (None, Turn(Role.TOOL, "", name="get_weather")),
        ([text("18 °C"), IMAGE], Turn(Role.TOOL, "18 °C", 1, name="get_weather")),
    ],
)
def test_calls_and_results_become_turns(content: object, turn: Turn) -> None:
    messages = [HI, said("assistant", USE), said("user", RESULT | {"content": content}, text("And now?"))]
    assert read(messages=messages).turns == (Turn(Role.USER, "hi"), CALLED, turn, Turn(Role.USER, "And now?"))


@pytest.mark.parametrize(
    "block",
    [
        {"type": "thinking", "thinking": "Hm.", "signature": seal("Hm.")},
        {"type": "thinking", "thinking": "", "signature": seal("kept back")},
        {"type": "redacted_thinking", "data": seal("Hm.")},
    ],
)
def test_thinking_comes_back_with_its_own_signature(block: dict[str, object]) -> None:
    messages = [HI, said("assistant", block, USE), said("user", RESULT)]
    assert read(messages=messages).turns[1] == CALLED


@pytest.mark.parametrize(
    ("block", "message"),
    [
        ({"type": "thinking", "thinking": "Ha.", "signature": seal("Hm.")}, "Invalid `signature` in `thinking` block"),
        ({"type": "thinking", "thinking": "Hm.", "signature": "foreign"}, "Invalid `signature` in `thinking` block"),
        ({"type": "thinking", "thinking": "", "signature": ""}, "Invalid `signature` in `thinking` block"),
        ({"type": "thinking", "thinking": "Hm."}, "`thinking` and `signature` are required"),
        ({"type": "redacted_thinking", "data": "foreign"}, "Invalid `data` in `redacted_thinking` block"),
        ({"type": "redacted_thinking"}, "Invalid `data` in `redacted_thinking` block"),
    ],
)
def test_foreign_thinking_is_refused(block: dict[str, object], message: str) -> None:
    found = refusal(messages=[HI, said("assistant", block, text("a")), HI])
    assert found.startswith("messages.1.content.0")
    assert message in found


@pytest.mark.parametrize(
    ("messages", "message"),
    [
        (None, "messages: Field required"),
        ([], "at least one message is required"),
        ([HI, {"role": "assistant", "content": "I"}], "does not support assistant message prefill"),
        ([{"role": "user", "content": ""}], "text content blocks must be non-empty"),
        ([said("user", text("hi"), text(""))], "messages.0.content.1: text content blocks must be non-empty"),
        ([said("user", {"type": "mystery"})], "Input tag 'mystery' found"),
        ([HI, said("assistant", IMAGE), HI], "Input tag 'image' found"),
        ([HI, said("system", IMAGE), HI], "Input tag 'image' found"),
        ([said("user", RESULT)], "unexpected `tool_use_id` found in `tool_result` blocks: toolu_1"),
        ([said("user", {"type": "tool_result"})], "unexpected `tool_use_id`"),
        ([HI, said("assistant", USE), HI], "`tool_use` ids were found without `tool_result` blocks immediately after"),
        ([HI, said("assistant", USE), {"role": "system", "content": "x"}, said("user", RESULT)], "immediately after"),
        ([HI, said("assistant", USE), said("user", text("Well."), RESULT)], "immediately after"),
        ([HI, said("assistant", USE), said("user", RESULT, RESULT)], "unexpected `tool_use_id`"),
        ([HI, said("assistant", USE, USE), said("user", RESULT)], "ids must be unique"),
        ([HI, said("assistant", {"type": "tool_use", "id": "a", "name": "b"}), HI], "are required"),
    ],
)
def test_a_history_that_does_not_hold_together_is_refused(messages: object, message: str) -> None:
    assert message in refusal(messages=messages)


def test_images_need_a_model_that_sees() -> None:
    model = catalog.Model("blind", "Blind", "chat", (), 100, 100)
    with pytest.raises(Refused, match="does not accept images"):
        prompt_of(decoded(messages=[said("user", IMAGE)], max_tokens=5), model)


@pytest.mark.parametrize(
    ("choice", "mode", "forced", "parallel"),
    [
        (None, ToolChoice.AUTO, None, True),
        ({"type": "auto", "disable_parallel_tool_use": True}, ToolChoice.AUTO, None, False),
        ({"type": "none"}, ToolChoice.NONE, None, True),
        ({"type": "any"}, ToolChoice.REQUIRED, None, True),
        ({"type": "tool", "name": "get_weather"}, ToolChoice.REQUIRED, "get_weather", True),
    ],
)
def test_tools_and_their_choice_are_read(choice: object, mode: ToolChoice, forced: str | None, parallel: bool) -> None:
    web = {"type": "web_search_20260318", "name": "web_search"}
    prompt = read(tools=[WEATHER, web], tool_choice=choice)
    assert prompt.tools == (Tool("get_weather", "Weather", {"type": "object"}),)
    assert (prompt.tool_choice, prompt.forced_tool, prompt.parallel_calls) == (mode, forced, parallel)


def test_a_choice_without_its_tool_is_refused() -> None:
    assert "while providing `tools`" in refusal(tool_choice={"type": "any"})
    assert "Tool 'x' not found" in refusal(tools=[WEATHER], tool_choice={"type": "tool", "name": "x"})


@pytest.mark.parametrize(
    ("members", "thoughts"),
    [
        ({}, 0),
        ({"thinking": {"type": "disabled"}}, 0),
        ({"thinking": {"type": "adaptive"}}, 3),
        ({"thinking": {"type": "adaptive"}, "output_config": {"effort": "low"}}, 1),
        ({"thinking": {"type": "enabled", "budget_tokens": 1024}}, 1),
        ({"thinking": {"type": "enabled", "budget_tokens": 2048}}, 2),
        ({"thinking": {"type": "enabled", "budget_tokens": 4999}}, 3),
    ],
)
def test_thinking_is_as_long_as_asked_for(members: dict[str, object], thoughts: int) -> None:
    assert read(**members).thoughts == thoughts


@pytest.mark.parametrize(
    ("members", "message"),
    [
        ({"thinking": {"type": "enabled"}}, "greater than or equal to 1024"),
        ({"thinking": {"type": "enabled", "budget_tokens": 1023}}, "greater than or equal to 1024"),
        ({"thinking": {"type": "enabled", "budget_tokens": 5000}}, "must be greater than `thinking.budget_tokens`"),
        (
            {"thinking": {"type": "adaptive"}, "tools": [WEATHER], "tool_choice": {"type": "any"}},
            "Thinking may not be enabled when tool_choice forces tool use",
        ),
        ({"max_tokens": 32_769}, "max_tokens: 32769 > 32768"),
        ({"max_tokens": 0}, "max_tokens"),
    ],
)
def test_limits_are_kept(members: dict[str, object], message: str) -> None:
    assert message in refusal(**members)


def test_a_budget_needs_no_limit_to_be_counted() -> None:
    assert read(max_tokens=None, thinking={"type": "enabled", "budget_tokens": 5000}).thoughts == 3


def test_thinking_needs_a_model_that_thinks() -> None:
    assert "does not support thinking" in refusal("demo-chat", thinking={"type": "adaptive"})


def test_the_rest_is_read() -> None:
    schema = {"type": "object"}
    prompt = read(stop_sequences=["x"], output_config={"format": {"type": "json_schema", "schema": schema}})
    assert prompt.stop == ("x",)
    assert prompt.json_mode == JsonMode(schema)
    assert (prompt.max_tokens, prompt.limited) == (5000, True)


@pytest.mark.parametrize(
    ("version", "members", "message"),
    [
        (None, {}, "anthropic-version: header is required"),
        (b"2020-01-01", {}, '"2020-01-01" is not a valid version'),
        (b"2026-10-21", {"temperature": 1.0}, "temperature: Extra inputs are not permitted"),
        (b"2026-10-21", {"top_p": None}, "top_p: Extra inputs are not permitted"),
        (b"2026-10-21", {"top_k": 3}, "top_k: Extra inputs are not permitted"),
    ],
)
def test_versions_are_checked(version: bytes | None, members: dict[str, object], message: str) -> None:
    with pytest.raises(Refused) as refused:
        check_version(version, decoded(**members))
    assert message in refused.value.problem.message


def test_the_older_version_takes_sampling_and_the_newer_goes_without() -> None:
    check_version(b"2023-06-01", decoded(temperature=1.0, top_p=0.5, top_k=3))
    check_version(b"2026-10-21", decoded())
