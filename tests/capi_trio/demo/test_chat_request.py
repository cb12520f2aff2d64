"""Chat Completions requests, read into prompts."""

import msgspec
import pytest

from capi_trio.demo import catalog
from capi_trio.demo.answers import Refused, decode
from capi_trio.demo.chat_request import ChatRequest, prompt_of
from capi_trio.demo.prompt import Call, JsonMode, Prompt, Role, ToolChoice, Turn
from capi_trio.demo.seal import seal

HI = [{"role": "user", "content": "hi"}]
TOOLS = [{"type": "function", "function": {"name": name, "parameters": {"type": "object"}}} for name in "ab"]


def read(model: str = "demo-chat", **members: object) -> Prompt:
    request = decode(msgspec.json.encode({"messages": HI} | members), ChatRequest)
    return prompt_of(request, catalog.find(model))


def refusal(model: str = "demo-chat", **members: object) -> tuple[str, str | None]:
    with pytest.raises(Refused) as refused:
        read(model, **members)
    assert refused.value.problem.status == 400
    return refused.value.problem.code, refused.value.problem.param


def call(call_id: str, name: str = "a") -> dict[str, object]:
    return {"id": call_id, "type": "function", "function": {"name": name, "arguments": "{}"}}


def test_messages_become_turns() -> None:
    prompt = read(
        messages=[
            {"role": "system", "content": "s"},
            {"role": "developer", "content": "d"},
            {"role": "user", "content": [
                {"type": "text", "text": "one"},
                {"type": "image_url", "image_url": {"url": "data:,"}},
                {"type": "text", "text": "two"},
            ]},
            {"role": "assistant", "content": None, "tool_calls": [call("c1"), call("c2", "b")]},
            {"role": "tool", "tool_call_id": "c2", "content": "r2"},
            {"role": "tool", "tool_call_id": "c1", "content": [{"type": "text", "text": "r1"}]},
            {"role": "assistant", "content": [{"type": "refusal", "refusal": "no"}]},
            {"role": "function", "name": "old", "content": "r"},
        ]
    )  # fmt: skip
    assert prompt.turns == (
        Turn(Role.SYSTEM, "s"),
        Turn(Role.SYSTEM, "d"),
        Turn(Role.USER, "one\ntwo", images=1),
        Turn(Role.ASSISTANT, "", calls=(Call("a", ("{}",)), Call("b", ("{}",)))),
        Turn(Role.TOOL, "r2", name="b"),
        Turn(Role.TOOL, "r1", name="a"),
        Turn(Role.ASSISTANT, "no"),
        Turn(Role.TOOL, "r", name="old"),
    )


def test_there_must_be_messages() -> None:
    assert refusal(messages=None) == ("missing_required_parameter", "messages")
    assert refusal(messages=[]) == ("empty_array", "messages")


def test_a_tool_result_must_answer_a_call() -> None:
    orphan = {"role": "tool", "tool_call_id": "c1", "content": "r"}
    assert refusal(messages=[*HI, orphan]) == ("invalid_tool_message", "messages[1]")
    nameless = {"role": "tool", "content": "r"}
    assert refusal(messages=[*HI, nameless]) == ("invalid_tool_message", "messages[1]")
    called = {"role": "assistant", "tool_calls": [call("c1")]}
    twice = [*HI, called, orphan, orphan]
    assert refusal(messages=twice) == ("invalid_tool_message", "messages[3]")


def test_every_call_must_be_answered_before_anything_else_is_said() -> None:
    called = {"role": "assistant", "tool_calls": [call("c1"), call("c2")]}
    answer = {"role": "tool", "tool_call_id": "c1", "content": "r"}
    assert refusal(messages=[*HI, called, answer, *HI]) == ("missing_tool_message", "messages[3]")
    assert refusal(messages=[*HI, called, answer]) == ("missing_tool_message", "messages[2]")


def test_images_need_a_model_that_sees() -> None:
    image = [{"role": "user", "content": [{"type": "image_url", "image_url": {"url": "data:,"}}]}]
    assert refusal("demo-chat-mini", messages=image) == ("unsupported_image", "messages[0]")


def test_other_content_is_refused() -> None:
    audio = [{"role": "user", "content": [{"type": "input_audio", "input_audio": {}}]}]
    assert refusal(messages=audio) == ("unsupported_content", "messages[0].content[0]")


def test_tools_and_their_choice_are_read() -> None:
    assert read(tools=TOOLS).tool_choice is ToolChoice.AUTO
    assert [tool.name for tool in read(tools=TOOLS).tools] == ["a", "b"]
    assert read(tools=TOOLS, tool_choice="none").tool_choice is ToolChoice.NONE
    assert read(tools=TOOLS, tool_choice="required").tool_choice is ToolChoice.REQUIRED
    forced = read(tools=TOOLS, tool_choice={"type": "function", "function": {"name": "b"}})
    assert (forced.tool_choice, forced.forced_tool) == (ToolChoice.REQUIRED, "b")
    assert read(tools=TOOLS).parallel_calls
    assert not read(tools=TOOLS, parallel_tool_calls=False).parallel_calls


def test_allowed_tools_leave_the_others_out() -> None:
    allowed = {"mode": "required", "tools": [{"type": "function", "function": {"name": "b"}}]}
    prompt = read(tools=TOOLS, tool_choice={"type": "allowed_tools", "allowed_tools": allowed})
    assert [tool.name for tool in prompt.tools] == ["b"]
    assert prompt.tool_choice is ToolChoice.REQUIRED


@pytest.mark.parametrize(
    ("choice", "code"),
    [
        ({"type": "function", "function": {"name": "c"}}, "invalid_tool_choice"),
        ({"type": "function"}, "invalid_tool_choice"),
        ({"type": "allowed_tools", "allowed_tools": {"mode": "auto", "tools": []}}, "invalid_tool_choice"),
    ],
)
def test_a_choice_of_no_such_tool_is_refused(choice: object, code: str) -> None:
    assert refusal(tools=TOOLS, tool_choice=choice) == (code, "tool_choice")


def test_a_required_call_needs_tools() -> None:
    assert refusal(tool_choice="required") == ("missing_tools", "tool_choice")
    assert read(tool_choice="auto").tools == ()


def test_custom_tools_are_refused() -> None:
    custom = [{"type": "custom", "custom": {"name": "x"}}]
    assert refusal(tools=custom)[0] == "invalid_type"


def test_the_token_limit_is_the_smallest_that_applies() -> None:
    assert read().max_tokens == 32_768
    assert read(max_tokens=5).max_tokens == 5
    assert read(max_completion_tokens=7, max_tokens=5).max_tokens == 7
    assert read("demo-chat-mini", max_tokens=10**6).max_tokens == 4_096
    assert refusal(max_tokens=0) == ("invalid_type", "max_tokens")


def test_stop_is_one_or_up_to_four_sequences() -> None:
    assert read().stop == ()
    assert read(stop="x").stop == ("x",)
    assert read(stop=["x", "y"]).stop == ("x", "y")
    assert refusal(stop=list("abcde")) == ("array_above_max_length", "stop")


def test_response_formats() -> None:
    schema = {"type": "object", "properties": {"a": {"type": "string"}}}
    assert read(response_format={"type": "text"}).json_mode is None
    assert read(response_format={"type": "json_object"}).json_mode == JsonMode()
    wanted = {"type": "json_schema", "json_schema": {"name": "n", "strict": True, "schema": schema}}
    assert read(response_format=wanted).json_mode == JsonMode(schema)
    free = {"type": "json_schema", "json_schema": {"name": "n"}}
    assert read(response_format=free).json_mode == JsonMode({"type": "object"})
    missing = ("missing_required_parameter", "response_format.json_schema")
    assert refusal(response_format={"type": "json_schema"}) == missing


@pytest.mark.parametrize(("effort", "thoughts"), [(None, 2), ("none", 0), ("low", 1), ("medium", 2), ("high", 3)])
def test_effort_decides_how_much_a_reasoner_reasons(effort: str | None, thoughts: int) -> None:
    assert read("demo-reasoner", reasoning_effort=effort).thoughts == thoughts
    assert read("demo-chat", reasoning_effort=effort).thoughts == 0


@pytest.mark.parametrize("n", [0, 9])
def test_up_to_eight_choices(n: int) -> None:
    assert refusal(n=n) == ("invalid_type", "n")


def test_opaque_reasoning_must_be_the_providers_own() -> None:
    said = {"role": "assistant", "content": "a", "reasoning_text": "Hm.", "reasoning_opaque": seal("Hm.")}
    assert read(messages=[*HI, said, *HI]).turns[1] == Turn(Role.ASSISTANT, "a")
    foreign = said | {"reasoning_opaque": "foreign"}
    assert refusal(messages=[*HI, foreign]) == ("invalid_reasoning_opaque", "messages[1]")


def test_a_limit_that_was_asked_for_is_told_from_the_models_own() -> None:
    assert not read().limited
    assert read(max_tokens=5).limited
