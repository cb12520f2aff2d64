"""Responses requests, as prompts or refused."""

from typing import Final

import msgspec
import pytest

from capi_trio.demo import catalog
from capi_trio.demo.answers import Refused, decode
from capi_trio.demo.prompt import Call, JsonMode, Prompt, Role, Tool, ToolChoice, Turn
from capi_trio.demo.responses_request import ResponsesRequest, custom_tools, prompt_of
from capi_trio.demo.seal import seal

HI: Final = {"role": "user", "content": "hi"}
IMAGE: Final = {"type": "input_image", "image_url": "data:image/png;base64,AAAA"}
WEATHER: Final = {"type": "function", "name": "get_weather", "description": "Weather", "parameters": {"type": "object"}}
SHELL: Final = {"type": "custom", "name": "shell"}
CALL: Final = {"type": "function_call", "call_id": "call_1", "name": "get_weather", "arguments": "{}"}
OUTPUT: Final = {"type": "function_call_output", "call_id": "call_1", "output": "18 °C"}
RUN: Final = {"type": "custom_tool_call", "call_id": "call_2", "name": "shell", "input": "ls"}
RAN: Final = {"type": "custom_tool_call_output", "call_id": "call_2", "output": "a b"}
USER: Final = Turn(Role.USER, "hi")


def decoded(**members: object) -> ResponsesRequest:
    return decode(msgspec.json.encode({"input": "hi"} | members), ResponsesRequest)


def read(model: str = "demo-gpt", /, **members: object) -> Prompt:
    return prompt_of(decoded(**members), catalog.find(model))


def refusal(model: str = "demo-gpt", /, **members: object) -> tuple[str, str, str | None]:
    with pytest.raises(Refused) as refused:
        read(model, **members)
    problem = refused.value.problem
    assert problem.status == 400
    return problem.message, problem.code, problem.param


def parts(role: str, *content: object) -> dict[str, object]:
    return {"type": "message", "role": role, "content": content}


def test_input_is_a_text_or_items() -> None:
    assert read().turns == (USER,)
    assert read(instructions="Be brief.").turns == (Turn(Role.SYSTEM, "Be brief."), USER)
    items = [
        HI,
        {"role": "developer", "content": "Speak French."},
        parts("system", {"type": "input_text", "text": "Now."}),
        parts("assistant", {"type": "output_text", "text": "a"}, {"type": "refusal", "refusal": "b"}),
        parts("user", {"type": "input_text", "text": "look"}, IMAGE),
    ]
    assert read(input=items).turns == (
        USER,
        Turn(Role.SYSTEM, "Speak French."),
        Turn(Role.SYSTEM, "Now."),
        Turn(Role.ASSISTANT, "a\nb"),
        Turn(Role.USER, "look", 1),
    )


def test_calls_and_their_outputs_become_turns() -> None:
    reasoning = {"type": "reasoning", "id": "rs_1", "summary": [], "encrypted_content": seal("Hm.")}
    ran = RAN | {"output": [{"type": "input_text", "text": "a b"}, IMAGE]}
    assert read(input=[HI, reasoning, CALL, RUN, OUTPUT, ran]).turns == (
        USER,
        Turn(Role.ASSISTANT, "", calls=(Call("get_weather", ("{}",)),)),
        Turn(Role.ASSISTANT, "", calls=(Call("shell", ("ls",)),)),
        Turn(Role.TOOL, "18 °C", name="get_weather"),
        Turn(Role.TOOL, "a b", 1, name="shell"),
    )


@pytest.mark.parametrize("encrypted", [None, seal("Hm.")])
def test_reasoning_may_come_back_without_its_seal_or_with_it(encrypted: str | None) -> None:
    assert read(input=[{"type": "reasoning", "summary": [], "encrypted_content": encrypted}, HI]).turns == (USER,)


@pytest.mark.parametrize(
    ("items", "message", "code"),
    [
        (None, "Missing required parameter: 'input'", "missing_required_parameter"),
        ([], "at least one item", "empty_array"),
        ([{"content": "hi"}], "'input[0].role'", "missing_required_parameter"),
        ([{"role": "user"}], "'input[0].content'", "missing_required_parameter"),
        ([HI, {"type": "item_reference", "id": "x"}], "Invalid value: 'item_reference'", "invalid_value"),
        ([parts("user", {"type": "text", "text": "x"})], "Invalid value: 'text'", "invalid_value"),
        ([parts("assistant", {"type": "input_text", "text": "x"}), HI], "'output_text', 'refusal'", "invalid_value"),
        ([parts("system", IMAGE), HI], "Invalid value: 'input_image'", "invalid_value"),
        ([OUTPUT], "No tool call found for function call output with call_id call_1.", "invalid_request_error"),
        ([RAN], "No tool call found for custom tool call output with call_id call_2.", "invalid_request_error"),
        ([HI, CALL], "No tool output found for function call call_1.", "invalid_request_error"),
        ([CALL, OUTPUT, OUTPUT], "No tool call found", "invalid_request_error"),
        ([CALL | {"name": None}], "needs 'call_id', 'name' and its input", "missing_required_parameter"),
        ([CALL, OUTPUT | {"output": None}], "'input[1].content'", "missing_required_parameter"),
        ([{"type": "reasoning", "encrypted_content": "foreign"}], "could not be verified", "invalid_encrypted_content"),
    ],
)
def test_a_history_that_does_not_hold_together_is_refused(items: object, message: str, code: str) -> None:
    found = refusal(input=items)
    assert message in found[0]
    assert found[1] == code


def test_images_need_a_model_that_sees() -> None:
    assert refusal("demo-chat-mini", input=[parts("user", IMAGE)])[1] == "unsupported_image"


def test_nothing_is_remembered() -> None:
    assert refusal(previous_response_id="resp_1")[1:] == ("previous_response_not_found", "previous_response_id")


@pytest.mark.parametrize(
    ("choice", "mode", "forced", "names"),
    [
        (None, ToolChoice.AUTO, None, ["get_weather", "shell"]),
        ("none", ToolChoice.NONE, None, ["get_weather", "shell"]),
        ("required", ToolChoice.REQUIRED, None, ["get_weather", "shell"]),
        ({"type": "function", "name": "get_weather"}, ToolChoice.REQUIRED, "get_weather", ["get_weather", "shell"]),
        ({"type": "custom", "name": "shell"}, ToolChoice.REQUIRED, "shell", ["get_weather", "shell"]),
        (
            {"type": "allowed_tools", "mode": "required", "tools": [{"type": "custom", "name": "shell"}]},
            ToolChoice.REQUIRED,
            None,
            ["shell"],
        ),
    ],
)
def test_tools_and_their_choice_are_read(
    choice: object, mode: ToolChoice, forced: str | None, names: list[str]
) -> None:
    prompt = read(tools=[WEATHER, {"type": "web_search"}, SHELL], tool_choice=choice)
    assert [tool.name for tool in prompt.tools] == names
    assert (prompt.tool_choice, prompt.forced_tool) == (mode, forced)


def test_a_custom_tool_takes_one_text() -> None:
    assert custom_tools(decoded(tools=[WEATHER, SHELL])) == {"shell"}
    assert custom_tools(decoded()) == frozenset()
    weather, shell = read(tools=[WEATHER, SHELL]).tools
    assert weather == Tool("get_weather", "Weather", {"type": "object"})
    assert shell.schema["required"] == ["input"]


@pytest.mark.parametrize(
    "choice",
    [
        "required",
        {"type": "function", "name": "x"},
        {"type": "function"},
        {"type": "allowed_tools", "tools": []},
        {"type": "allowed_tools", "tools": [{"type": "function", "name": "x"}]},
    ],
)
def test_a_choice_of_no_such_tool_is_refused(choice: object) -> None:
    assert refusal(tool_choice=choice)[1] == "invalid_tool_choice"


def test_a_tool_needs_a_name() -> None:
    assert refusal(tools=[{"type": "function"}])[1:] == ("missing_required_parameter", "tools[0].name")


def test_parallel_calls_can_be_ruled_out() -> None:
    assert read().parallel_calls
    assert not read(parallel_tool_calls=False).parallel_calls


def test_the_token_limit_is_the_smallest_that_applies() -> None:
    assert (read().max_tokens, read().limited) == (32_768, False)
    assert (read(max_output_tokens=16).max_tokens, read(max_output_tokens=16).limited) == (16, True)
    assert read(max_output_tokens=10**6).max_tokens == 32_768
    assert refusal(max_output_tokens=15)[1:] == ("invalid_type", "max_output_tokens")


@pytest.mark.parametrize(
    ("wanted", "mode"),
    [
        (None, None),
        ({"type": "text"}, None),
        ({"type": "json_object"}, JsonMode()),
        ({"type": "json_schema", "name": "n", "schema": {"type": "object"}}, JsonMode({"type": "object"})),
    ],
)
def test_formats(wanted: object, mode: JsonMode | None) -> None:
    assert read(text={"format": wanted, "verbosity": "low"}).json_mode == mode


@pytest.mark.parametrize("member", ["name", "schema"])
def test_a_schema_needs_its_name_and_itself(member: str) -> None:
    wanted = {"type": "json_schema", "name": "n", "schema": {}} | {member: None}
    assert refusal(text={"format": wanted})[2] == f"text.format.{member}"


@pytest.mark.parametrize(("effort", "thoughts"), [(None, 2), ("none", 0), ("low", 1), ("high", 3)])
def test_effort_decides_how_much_it_reasons(effort: str | None, thoughts: int) -> None:
    assert read(reasoning={"effort": effort}).thoughts == thoughts
    assert read("demo-chat", reasoning={"effort": effort}).thoughts == 0
