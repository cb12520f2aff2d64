"""A Chat request in no protocol's shape: all of it, or an error, or a note."""

import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from capi_core.conversation import (
    Conversation,
    CustomTool,
    Effort,
    FunctionTool,
    HostedTool,
    OutputFormat,
    OutputKind,
    ReasoningRequest,
    Role,
    Text,
    ThinkingMode,
    ToolChoice,
    ToolMode,
    ToolRef,
    Turn,
)
from capi_core.errors import ProtocolError
from capi_core.fidelity import Ledger
from capi_core.members import JSONObject
from capi_core.protocols.chat.request_decoder import decode_request
from capi_core.protocols.kinds import Protocol

BASE: dict[str, object] = {"model": "m", "messages": [{"role": "user", "content": "hi"}]}
HI = (Turn(Role.USER, (Text("hi"),)),)
F: dict[str, object] = {"type": "function", "function": {"name": "f"}}


def decode(members: dict[str, object], ledger: Ledger | None = None) -> Conversation:
    return decode_request(JSONObject(json.dumps({**BASE, **members}).encode()), ledger or Ledger())


def test_the_least_request() -> None:
    assert decode({}) == Conversation(Protocol.CHAT, "m", HI)


def test_all_members_that_have_a_place() -> None:
    ledger = Ledger()
    found = decode(
        {
            "stream": True,
            "stream_options": {"include_usage": True},
            "max_completion_tokens": 5,
            "max_tokens": 9,
            "temperature": 0.5,
            "top_p": 1,
            "stop": ["a", "", "b"],
            "n": 1,
            "tools": [],
            "tool_choice": "auto",
            "parallel_tool_calls": False,
            "reasoning_effort": "high",
            "response_format": {
                "type": "json_schema",
                "json_schema": {"name": "n", "schema": {"a": 1}, "strict": True, "description": "d"},
            },
            "verbosity": "low",
            "metadata": {"k": "v"},
            "prompt_cache_key": "ck",
            "safety_identifier": "s",
            "user": "u",
            "service_tier": "flex",
            "modalities": ["text"],
            "store": False,
            "frequency_penalty": 0,
            "presence_penalty": 0.0,
            "logit_bias": {},
            "logprobs": False,
            "top_logprobs": 0,
            "seed": None,
        },
        ledger,
    )
    assert found == Conversation(
        Protocol.CHAT,
        "m",
        HI,
        tool_choice=ToolChoice(parallel=False),
        stream=True,
        max_output_tokens=5,
        temperature=0.5,
        top_p=1,
        stop=("a", "b"),
        reasoning=ReasoningRequest(effort=Effort.HIGH),
        output=OutputFormat(OutputKind.JSON_SCHEMA, "n", b'{"a": 1}', True, "d"),
        verbosity="low",
        user="s",
        cache_key="ck",
        service_tier="flex",
        metadata=b'{"k": "v"}',
    )
    assert ledger.entries == ()


def test_small_differences_of_form() -> None:
    off = decode({"reasoning_effort": "none", "user": "u", "stop": "x", "max_tokens": 7, "modalities": []})
    assert off.reasoning == ReasoningRequest(ThinkingMode.OFF, Effort.NONE)
    assert (off.user, off.stop, off.max_output_tokens, off.metadata) == ("u", ("x",), 7, None)
    assert decode({"response_format": {"type": "json_object"}}).output == OutputFormat(OutputKind.JSON_OBJECT)
    assert decode({"response_format": {"type": "text"}}).output == OutputFormat()
    assert decode({"stop": ""}).stop == ()


def test_what_has_no_place_is_noted_with_its_path_and_without_its_value() -> None:
    ledger = Ledger()
    decode({"seed": 5, "store": True, "logprobs": True, "x" * 99: 1, "prediction": {}}, ledger)
    assert [entry.path for entry in ledger] == ["$.seed", "$.store", "$.logprobs", "$.*", "$.prediction"]


def test_every_kind_of_tool() -> None:
    grammar = {"type": "grammar", "grammar": {"definition": "d", "syntax": "lark"}}
    found = decode(
        {
            "tools": [
                {"type": "function", "function": {"name": "f", "description": "d", "parameters": {}, "strict": True}},
                {"function": {"name": "g", "parameters": None}},
                {"type": "custom", "custom": {"name": "p", "description": "d", "format": grammar}},
                {"type": "custom", "custom": {"name": "q", "format": {"type": "text"}}},
                {"type": "custom", "custom": {"name": "r"}},
                {"type": "novel", "a": 1},
            ],
            "functions": [{"name": "h", "parameters": {"a": 1}}],
            "web_search_options": {},
        }
    ).tools
    assert found == (
        FunctionTool(ToolRef("f"), "d", b"{}", True),
        FunctionTool(ToolRef("g")),
        CustomTool(ToolRef("p"), "d", b'{"type":"grammar","syntax":"lark","definition":"d"}'),
        CustomTool(ToolRef("q")),
        CustomTool(ToolRef("r")),
        HostedTool(Protocol.CHAT, "novel", b'{"type": "novel", "a": 1}'),
        FunctionTool(ToolRef("h"), None, b'{"a": 1}'),
        HostedTool(Protocol.CHAT, "web_search_options", b"{}", web_search=True),
    )
    assert [tool.at for tool in found] == [
        *(f"$.tools[{place}]" for place in range(6)),
        "$.functions[0]",
        "$.web_search_options",
    ]
    assert decode({"web_search_options": None}).tools == ()


CHOSEN = ToolChoice(ToolMode.REQUIRED, (ToolRef("f"),))


@pytest.mark.parametrize(
    ("members", "choice"),
    [
        ({"tool_choice": None}, None),
        ({"parallel_tool_calls": True}, ToolChoice(parallel=True)),
        ({"tool_choice": "none"}, ToolChoice(ToolMode.NONE)),
        ({"tool_choice": "required", "parallel_tool_calls": False}, ToolChoice(ToolMode.REQUIRED, (), False)),
        ({"tool_choice": F}, CHOSEN),
        ({"tool_choice": {"type": "custom", "custom": {"name": "f"}}}, CHOSEN),
        ({"function_call": {"name": "f"}}, CHOSEN),
        ({"tool_choice": None, "function_call": {"name": "f"}}, CHOSEN),
        ({"function_call": "none"}, ToolChoice(ToolMode.NONE)),
        (
            {"tool_choice": {"type": "allowed_tools", "allowed_tools": {"mode": "required", "tools": [F]}}},
            CHOSEN,
        ),
        (
            {"tool_choice": {"type": "allowed_tools", "allowed_tools": {"tools": [F]}}},
            ToolChoice(ToolMode.AUTO, (ToolRef("f"),)),
        ),
    ],
)
def test_the_choice_of_tools(members: dict[str, object], choice: ToolChoice | None) -> None:
    assert decode(members).tool_choice == choice


def schema(value: object) -> dict[str, object]:
    return {"response_format": {"type": "json_schema", "json_schema": value}}


def tool(value: object) -> dict[str, object]:
    return {"tools": [F, value]}


def custom(form: object) -> dict[str, object]:
    return tool({"type": "custom", "custom": {"name": "p", "format": form}})


def allowed(value: object) -> dict[str, object]:
    return {"tool_choice": {"type": "allowed_tools", "allowed_tools": value}}


@pytest.mark.parametrize(
    ("members", "code", "param"),
    [
        ({"n": 2}, "untranslatable", "n"),
        ({"n": 0}, "invalid_request", "n"),
        ({"max_tokens": 0}, "invalid_request", "max_tokens"),
        ({"max_completion_tokens": -1}, "invalid_request", "max_completion_tokens"),
        ({"modalities": ["text", "audio"]}, "untranslatable", "modalities"),
        ({"messages": []}, "invalid_request", "messages"),
        ({"messages": [{"role": "user", "content": ""}]}, "invalid_request", "messages"),
        ({"messages": None}, "invalid_request", "messages"),
        ({"temperature": "hot"}, "invalid_request", "temperature"),
        ({"stop": ["a", None]}, "invalid_request", "stop[1]"),
        ({"metadata": {"a": 1}}, "invalid_request", "metadata[...]"),
        ({"reasoning_effort": "huge"}, "invalid_request", "reasoning_effort"),
        ({"response_format": {"type": "xml"}}, "invalid_request", "response_format.type"),
        (schema(None), "invalid_request", "response_format.json_schema.schema"),
        (schema({"schema": []}), "invalid_request", "response_format.json_schema.schema"),
        (tool(5), "invalid_request", "tools[1]"),
        (tool({"type": ""}), "invalid_request", "tools[1].type"),
        (tool({"type": "function"}), "invalid_request", "tools[1].function"),
        (tool({"type": "custom"}), "invalid_request", "tools[1].custom"),
        (tool({"function": {"name": ""}}), "invalid_request", "tools[1].function.name"),
        (tool({"function": {"name": "f", "parameters": 5}}), "invalid_request", "tools[1].function.parameters"),
        (custom(5), "invalid_request", "tools[1].custom.format"),
        (custom({"type": "grammar"}), "invalid_request", "tools[1].custom.format"),
        (custom({"type": "grammar", "grammar": {}}), "invalid_request", "tools[1].custom.format.grammar"),
        ({"functions": [{"name": ""}]}, "invalid_request", "functions[0].name"),
        ({"functions": [{"name": "f", "parameters": []}]}, "invalid_request", "functions[0].parameters"),
        ({"tool_choice": "perhaps"}, "invalid_request", "tool_choice"),
        ({"tool_choice": {"type": "function"}}, "invalid_request", "tool_choice"),
        ({"function_call": {"name": ""}}, "invalid_request", "function_call"),
        (allowed(None), "invalid_request", "tool_choice.allowed_tools"),
        (allowed({"mode": "x", "tools": [F]}), "invalid_request", "tool_choice.allowed_tools.mode"),
        (allowed({"tools": []}), "invalid_request", "tool_choice.allowed_tools.tools"),
        (allowed({"tools": [F, {}]}), "invalid_request", "tool_choice.allowed_tools.tools[1]"),
        ({"model": ""}, "invalid_model", "model"),
    ],
)
def test_what_is_refused(members: dict[str, object], code: str, param: str) -> None:
    with pytest.raises(ProtocolError) as caught:
        decode(members)
    assert (caught.value.code, caught.value.param, caught.value.status_hint) == (code, param, 400)


REAL: dict[str, object] = {
    "model": "gpt-5.4",
    "stream": True,
    "stream_options": {"include_usage": True},
    "messages": [
        {"role": "system", "content": [{"type": "text", "text": "be"}]},
        {
            "role": "user",
            "content": [{"type": "text", "text": "see"}, {"type": "image_url", "image_url": {"url": "https://h/i"}}],
        },
        {
            "role": "assistant",
            "content": None,
            "reasoning_text": "t",
            "reasoning_opaque": "S",
            "tool_calls": [{"id": "c1", "type": "function", "function": {"name": "f", "arguments": "{}"}}],
        },
        {"role": "tool", "tool_call_id": "c1", "content": "done"},
        {"role": "assistant", "content": "ok", "refusal": None},
        {"role": "user", "content": "go on"},
    ],
    "tools": [{"type": "function", "function": {"name": "f", "parameters": {"type": "object"}}}],
    "tool_choice": {"type": "function", "function": {"name": "f"}},
    "max_completion_tokens": 100,
    "temperature": 0.1,
    "stop": ["x"],
    "response_format": {"type": "json_schema", "json_schema": {"name": "n", "schema": {}}},
}


def test_an_agents_request_is_read_without_a_loss() -> None:
    ledger = Ledger()
    found = decode(REAL, ledger)
    roles = [Role.SYSTEM, Role.USER, Role.ASSISTANT, Role.USER, Role.ASSISTANT, Role.USER]
    assert [turn.role for turn in found.turns] == roles
    assert ledger.entries == ()


NAMES = ["type", "role", "content", "text", "id", "name", "tool_calls", "function", "tool_call_id", "image_url", "url"]
values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False, allow_infinity=False) | st.text(max_size=5),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.sampled_from(NAMES), inner, max_size=4),
    max_leaves=8,
)


def mutate(value: object, data: st.DataObject) -> object:
    """The same JSON with a value somewhere in it replaced."""
    if isinstance(value, dict) and value and data.draw(st.integers(0, 3)):
        name = data.draw(st.sampled_from(sorted(value)))
        return {**value, name: mutate(value[name], data)}
    if isinstance(value, list) and value and data.draw(st.integers(0, 3)):
        place = data.draw(st.integers(0, len(value) - 1))
        return [*value[:place], mutate(value[place], data), *value[place + 1 :]]
    return data.draw(values)


def refusal_of(text: bytes) -> ProtocolError | None:
    """The error with which a request is refused; `None` when it is read."""
    try:
        decode_request(JSONObject(text), Ledger())
    except ProtocolError as error:
        return error
    return None


@given(st.data())
def test_no_request_makes_it_raise_anything_but_a_400_with_a_path(data: st.DataObject) -> None:
    mutated = mutate(mutate(REAL, data), data)
    refused = refusal_of(json.dumps(mutated).encode())
    assert refused is None or refused.status_hint == 400
    if refused is not None and isinstance(mutated, dict):
        assert refused.param


@pytest.mark.parametrize(
    "raw",
    [
        b'{"a":' * 500 + b"1" + b"}" * 500,
        b"[" * 5000,
        b"NaN",
        b'"\\ud83d"',
        b'[{"role":"user","content":"\\ud83d"}]',
        b'[{"role":"user","content":"\xff"}]',
        b'[{"role":"\\udc00"}]',
    ],
)
def test_odd_json_is_read_or_refused(raw: bytes) -> None:
    refused = refusal_of(b'{"model":"m","messages":%b}' % raw)
    assert refused is None or refused.status_hint == 400


@pytest.mark.parametrize("number", [b"1e999", b"9" * 30, b"9" * 5000, b"-9e400", b"1.5"])
def test_odd_numbers_are_read_or_refused(number: bytes) -> None:
    for name in (b"max_tokens", b"n", b"temperature"):
        refused = refusal_of(b'{"model":"m","messages":[{"role":"user","content":"a"}],"%b":%b}' % (name, number))
        assert refused is None or refused.status_hint == 400
