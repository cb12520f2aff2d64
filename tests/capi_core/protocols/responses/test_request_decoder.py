"""A Responses request in no protocol's shape: all of it, or an error, or a note."""

import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from capi_core.conversation import (
    Conversation,
    Effort,
    OutputFormat,
    OutputKind,
    ReasoningRequest,
    Role,
    Text,
    ThinkingMode,
    ToolChoice,
    Turn,
)
from capi_core.errors import ProtocolError
from capi_core.fidelity import Ledger
from capi_core.members import JSONObject
from capi_core.protocols.kinds import Protocol
from capi_core.protocols.responses.request_decoder import decode_request

BASE: dict[str, object] = {"model": "m", "input": "hi"}
HI = (Turn(Role.USER, (Text("hi"),)),)


def decode(members: dict[str, object], ledger: Ledger | None = None) -> Conversation:
    return decode_request(JSONObject(json.dumps({**BASE, **members}).encode()), ledger or Ledger())


def test_the_least_request() -> None:
    assert decode({}) == Conversation(Protocol.RESPONSES, "m", HI)


def test_all_members_that_have_a_place() -> None:
    ledger = Ledger()
    found = decode(
        {
            "instructions": "be",
            "stream": True,
            "max_output_tokens": 5,
            "temperature": 0.5,
            "top_p": 1,
            "tools": [],
            "tool_choice": "auto",
            "parallel_tool_calls": False,
            "reasoning": {"effort": "high", "summary": "auto", "context": "auto", "mode": "standard"},
            "include": ["reasoning.encrypted_content"],
            "text": {
                "format": {"type": "json_schema", "name": "n", "schema": {"a": 1}, "strict": True, "description": "d"},
                "verbosity": "low",
            },
            "metadata": {"k": "v"},
            "prompt_cache_key": "ck",
            "safety_identifier": "s",
            "user": "u",
            "service_tier": "flex",
            "store": False,
            "truncation": "disabled",
            "top_logprobs": 0,
            "background": False,
            "previous_response_id": None,
            "max_tool_calls": None,
            "stream_options": {"include_obfuscation": False},
            "client_metadata": {"x": "y"},
        },
        ledger,
    )
    assert found == Conversation(
        Protocol.RESPONSES,
        "m",
        (Turn(Role.SYSTEM, (Text("be"),)), *HI),
        tool_choice=ToolChoice(parallel=False),
        stream=True,
        max_output_tokens=5,
        temperature=0.5,
        top_p=1,
        reasoning=ReasoningRequest(effort=Effort.HIGH, summary="auto", encrypted=True),
        output=OutputFormat(OutputKind.JSON_SCHEMA, "n", b'{"a": 1}', True, "d"),
        verbosity="low",
        user="s",
        cache_key="ck",
        service_tier="flex",
        metadata=b'{"k": "v"}',
    )
    assert ledger.entries == ()


def test_small_differences_of_form() -> None:
    off = decode({"reasoning": {"effort": "none", "generate_summary": "concise"}, "user": "u"})
    assert off.reasoning == ReasoningRequest(ThinkingMode.OFF, Effort.NONE, summary="concise")
    assert (off.user, off.metadata) == ("u", None)
    assert decode({"reasoning": {}}).reasoning == ReasoningRequest()
    assert decode({"text": {"format": {"type": "json_object"}}}).output == OutputFormat(OutputKind.JSON_OBJECT)
    assert decode({"text": {}}).output == OutputFormat()


def test_what_has_no_place_is_noted_with_its_path_and_without_its_value() -> None:
    ledger = Ledger()
    decode(
        {
            "truncation": "auto",
            "store": True,
            "max_tool_calls": 3,
            "include": ["message.output_text.logprobs"],
            "reasoning": {"context": "all_turns", "mode": "pro"},
            "x" * 99: 1,
            "novel": {},
        },
        ledger,
    )
    assert sorted(entry.path for entry in ledger) == [
        "$.*",
        "$.include[0]",
        "$.max_tool_calls",
        "$.novel",
        "$.reasoning.context",
        "$.reasoning.mode",
        "$.store",
        "$.truncation",
    ]


@pytest.mark.parametrize(
    ("members", "code", "param"),
    [
        ({"previous_response_id": "r"}, "untranslatable", "previous_response_id"),
        ({"conversation": "c"}, "untranslatable", "conversation"),
        ({"prompt": {"id": "p"}}, "untranslatable", "prompt"),
        ({"background": True}, "untranslatable", "background"),
        ({"input": []}, "invalid_request", "input"),
        ({"input": None}, "invalid_request", "input"),
        ({"input": ""}, "invalid_request", "input"),
        ({"input": 5}, "invalid_request", "input"),
        ({"temperature": "hot"}, "invalid_request", "temperature"),
        ({"metadata": {"a": 1}}, "invalid_request", "metadata[...]"),
        ({"reasoning": {"effort": "huge"}}, "invalid_request", "reasoning.effort"),
        ({"text": {"format": {"type": "xml"}}}, "invalid_request", "text.format.type"),
        ({"text": {"format": {"type": "json_schema", "name": "n"}}}, "invalid_request", "text.format.schema"),
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
    "input": [
        {"type": "message", "id": "msg_0", "role": "developer", "content": [{"type": "input_text", "text": "long"}]},
        {"type": "message", "id": "msg_1", "role": "user", "content": [{"type": "input_text", "text": "say hi"}]},
        {
            "type": "reasoning",
            "id": "rs_mock",
            "summary": [{"type": "summary_text", "text": "mock"}],
            "content": None,
            "encrypted_content": "bW9jay1lbmM=",
        },
        {
            "type": "function_call",
            "status": "completed",
            "id": "fc",
            "name": "exec",
            "arguments": "{}",
            "call_id": "c1",
        },
        {"type": "function_call_output", "id": "fco", "call_id": "c1", "output": "done"},
    ],
    "tools": [
        {"type": "function", "name": "exec", "description": "d", "strict": False, "parameters": {"type": "object"}},
        {"type": "namespace", "name": "multi", "description": "d", "tools": [{"type": "function", "name": "spawn"}]},
        {"type": "web_search", "external_web_access": True},
    ],
    "tool_choice": "auto",
    "parallel_tool_calls": True,
    "reasoning": {"summary": "auto"},
    "store": False,
    "include": ["reasoning.encrypted_content"],
    "prompt_cache_key": "k",
    "client_metadata": {"thread_id": "t"},
}
"""The form of Codex's requests, as captured."""


def test_codex_is_read_without_a_loss() -> None:
    ledger = Ledger()
    found = decode(REAL, ledger)
    assert [turn.role for turn in found.turns] == [Role.DEVELOPER, Role.USER, Role.ASSISTANT, Role.USER]
    assert (len(found.tools), ledger.entries) == (3, ())


values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | st.text(max_size=5),
    lambda inner: (
        st.lists(inner, max_size=3)
        | st.dictionaries(
            st.sampled_from(["type", "role", "content", "text", "id", "name", "call_id"]), inner, max_size=4
        )
    ),
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


def status_of(text: bytes) -> int | None:
    """The status with which a request is refused; `None` when it is read."""
    try:
        decode_request(JSONObject(text), Ledger())
    except ProtocolError as error:
        return error.status_hint
    return None


@given(st.data())
def test_no_request_makes_it_raise_anything_else(data: st.DataObject) -> None:
    text = json.dumps(mutate(mutate(REAL, data), data)).encode()
    assert status_of(text) in (None, 400)


@pytest.mark.parametrize(
    "raw", [b'{"a":' * 500 + b"1" + b"}" * 500, b"NaN", b'"\\ud83d"', b'[{"role":"user","content":"\\ud83d"}]']
)
def test_odd_json_is_read_or_refused(raw: bytes) -> None:
    assert status_of(b'{"model":"m","input":%b}' % raw) in (None, 400)
