"""A Messages request becomes a conversation, or an error that tells where it is wrong."""

import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from capi_core.conversation import (
    CacheMark,
    Conversation,
    Effort,
    OutputFormat,
    OutputKind,
    ReasoningRequest,
    Role,
    Text,
    ThinkingMode,
    ToolCall,
    ToolChoice,
    ToolRef,
    ToolResult,
    Turn,
)
from capi_core.errors import ProtocolError
from capi_core.fidelity import Change, Ledger
from capi_core.members import JSONObject
from capi_core.protocols.kinds import Protocol
from capi_core.protocols.messages.request_decoder import decode_request

HI = {"role": "user", "content": "hi"}
LEAST: dict[str, object] = {"model": "m", "max_tokens": 5, "messages": [HI]}
CALL = {"role": "assistant", "content": [{"type": "tool_use", "id": "t", "name": "f", "input": {}}]}
RESULT = {"role": "user", "content": [{"type": "tool_result", "tool_use_id": "t", "content": "r"}]}


def decode(ledger: Ledger | None = None, /, **members: object) -> Conversation:
    return decode_request(JSONObject(json.dumps({**LEAST, **members}).encode()), ledger or Ledger())


def noted(**members: object) -> list[tuple[Change, str]]:
    ledger = Ledger()
    decode(ledger, **members)
    return [(entry.change, entry.path) for entry in ledger]


def refusal(**members: object) -> str | None:
    with pytest.raises(ProtocolError) as caught:
        decode(**members)
    assert caught.value.status_hint == 400
    return caught.value.param


def test_the_least_request() -> None:
    turns = (Turn(Role.USER, (Text("hi"),)),)
    assert decode() == Conversation(Protocol.MESSAGES, "m", turns, max_output_tokens=5)


def test_counting_needs_no_limit() -> None:
    document = JSONObject(b'{"model":"m","messages":[{"role":"user","content":"hi"}],"tools":[]}')
    assert decode_request(document, Ledger(), counting=True).max_output_tokens is None
    with pytest.raises(ProtocolError) as caught:
        decode_request(document, Ledger())
    assert caught.value.param == "max_tokens"


def test_every_member_that_has_a_place() -> None:
    found = decode(
        stream=True,
        temperature=0.5,
        top_p=0.9,
        top_k=3,
        stop_sequences=["x"],
        thinking={"type": "enabled", "budget_tokens": 2000, "display": "omitted"},
        output_config={"effort": "high", "format": {"type": "json_schema", "schema": {"a": 1}}},
        metadata={"user_id": "u"},
        service_tier="standard_only",
        tools=[{"name": "f", "input_schema": {}}],
        tool_choice={"type": "any"},
    )
    assert (found.stream, found.temperature, found.top_p, found.top_k, found.stop) == (True, 0.5, 0.9, 3, ("x",))
    assert found.reasoning == ReasoningRequest(ThinkingMode.ENABLED, Effort.HIGH, 2000, "omitted")
    assert found.output == OutputFormat(OutputKind.JSON_SCHEMA, None, b'{"a": 1}')
    assert (found.user, found.service_tier, len(found.tools)) == ("u", "standard_only", 1)
    assert isinstance(found.tool_choice, ToolChoice)


def test_the_system_prompt_leads_and_system_messages_stay_where_they_are() -> None:
    found = decode(
        system=[{"type": "text", "text": "s", "cache_control": {"type": "ephemeral"}}],
        messages=[HI, {"role": "system", "content": "later"}, CALL, RESULT],
    )
    assert found.turns == (
        Turn(Role.SYSTEM, (Text("s", CacheMark()),)),
        Turn(Role.USER, (Text("hi"),)),
        Turn(Role.SYSTEM, (Text("later"),)),
        Turn(Role.ASSISTANT, (ToolCall("t", ToolRef("f"), "{}"),)),
        Turn(Role.USER, (ToolResult("t", (Text("r"),)),)),
    )
    assert decode(system="s").turns[0] == Turn(Role.SYSTEM, (Text("s"),))
    nothing: tuple[object, ...] = ("", [], None)
    assert [len(decode(system=empty).turns) for empty in nothing] == [1, 1, 1]


def test_the_billing_line_stays_behind() -> None:
    line = "x-anthropic-billing-header: cc_version=2.1;"
    blocks = [{"type": "text", "text": line}, {"type": "text", "text": "s"}]
    assert decode(system=blocks).turns[0] == Turn(Role.SYSTEM, (Text("s"),))
    assert decode(system=f"{line}\n\ns").turns[0] == Turn(Role.SYSTEM, (Text("s"),))
    assert noted(system=line) == [(Change.DROPPED, "$.system")]


@pytest.mark.parametrize(
    ("thinking", "read"),
    [
        (None, ReasoningRequest()),
        ({"type": "adaptive", "display": "summarized"}, ReasoningRequest(ThinkingMode.ADAPTIVE, summary="auto")),
        ({"type": "disabled"}, ReasoningRequest(ThinkingMode.OFF)),
        ({"type": "between_tools"}, ReasoningRequest(ThinkingMode.ADAPTIVE)),
    ],
)
def test_whether_to_think(thinking: object, read: ReasoningRequest) -> None:
    assert decode(thinking=thinking).reasoning == read


def test_what_has_no_place_is_noted_unless_it_changes_nothing() -> None:
    assert (
        noted(
            context_management={"edits": []},
            mcp_servers=[],
            speed="standard",
            container=None,
            output_config={"task_budget": None},
        )
        == []
    )
    assert noted(thinking={"type": "between_tools"}) == [(Change.ALTERED, "$.thinking.type")]
    assert noted(output_config=None, speed="fast", container="c", inference_geo="us", **{"x" * 65: 1}) == [
        (Change.DROPPED, "$.speed"),
        (Change.DROPPED, "$.container"),
        (Change.DROPPED, "$.inference_geo"),
        (Change.DROPPED, "$.*"),
    ]
    assert noted(output_config={"task_budget": {"total": 1}}) == [(Change.DROPPED, "$.output_config.task_budget")]


def test_the_beta_of_the_output_format_is_read() -> None:
    assert decode(output_format={"type": "json_schema", "schema": {}}).output.kind is OutputKind.JSON_SCHEMA


@pytest.mark.parametrize(
    ("members", "param"),
    [
        ({"messages": []}, "messages"),
        ({"messages": "x"}, "messages"),
        ({"messages": [{"role": "user"}]}, "messages[0]"),
        ({"messages": [{"role": "tool", "content": "x"}]}, "messages[0].role"),
        ({"messages": [{"role": "user", "content": 1}]}, "messages[0].content"),
        ({"messages": [RESULT]}, "messages[0].content[0].tool_use_id"),
        ({"messages": [RESULT, CALL]}, "messages[0].content[0].tool_use_id"),
        ({"messages": [{**CALL, "role": "user"}]}, "messages[0].content[0]"),
        ({"messages": [CALL, {**RESULT, "role": "assistant"}]}, "messages[1].content[0]"),
        ({"messages": [{**CALL, "role": "system"}]}, "messages[0].content[0]"),
        (
            {"messages": [{"role": "user", "content": [{"type": "thinking", "thinking": "x"}]}]},
            "messages[0].content[0]",
        ),
        ({"system": [{"type": "odd"}]}, "system[0]"),
        ({"system": 1}, "system"),
        ({"max_tokens": 0}, "max_tokens"),
        ({"max_tokens": True}, "max_tokens"),
        ({"max_tokens": None}, "max_tokens"),
        ({"model": ""}, "model"),
        ({"stream": 1}, "stream"),
        ({"thinking": {"type": "odd"}}, "thinking.type"),
        ({"thinking": {"type": "enabled"}}, "thinking.budget_tokens"),
        ({"thinking": {"type": "enabled", "budget_tokens": 0}}, "thinking.budget_tokens"),
        ({"output_config": {"effort": "minimal"}}, "output_config.effort"),
        ({"output_config": {"format": {"type": "json_schema"}}}, "output_config.format"),
        ({"output_config": {"format": {"type": "text", "schema": {}}}}, "output_config.format"),
        ({"metadata": {"user_id": 1}}, "metadata.user_id"),
        ({"stop_sequences": [1]}, "stop_sequences[0]"),
    ],
)
def test_what_is_wrong_is_told_with_its_path(members: dict[str, object], param: str) -> None:
    assert refusal(**members) == param


def test_images_of_the_user_are_no_fault() -> None:
    image = {"type": "image", "source": {"type": "url", "url": "https://x"}}
    assert len(decode(messages=[{"role": "user", "content": [image]}]).turns[0].blocks) == 1


words = st.sampled_from(
    ["user", "assistant", "system", "text", "tool_use", "tool_result", "thinking", "document", "content", "t", "auto"]
)
keys = st.sampled_from(
    [
        "type",
        "text",
        "role",
        "content",
        "id",
        "name",
        "input",
        "tool_use_id",
        "source",
        "data",
        "cache_control",
        "thinking",
        "signature",
    ]
)
values = st.recursive(
    st.none() | st.booleans() | st.integers(-2, 2) | words,
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(keys, inner, max_size=4),
    max_leaves=12,
)


def check_client_error(error: ProtocolError) -> None:
    assert error.status_hint == 400


@given(
    st.dictionaries(
        st.sampled_from(["messages", "system", "tools", "tool_choice", "thinking", "output_config", "metadata"]), values
    )
)
def test_any_json_is_a_conversation_or_a_refusal(members: dict[str, object]) -> None:
    try:
        decode(**members)
    except ProtocolError as error:
        check_client_error(error)


@given(st.lists(values, max_size=3), st.sampled_from(["user", "assistant"]))
def test_any_content_is_read_or_refused(content: list[object], role: str) -> None:
    try:
        decode(messages=[CALL, {"role": role, "content": content}])
    except ProtocolError as error:
        check_client_error(error)


@pytest.mark.parametrize(
    "body",
    [
        b'{"model":"m","max_tokens":5,"messages":[{"role":"user","content":%s}]}' % (b"[" * 5000 + b"]" * 5000),
        b'{"model":"m","max_tokens":5,"messages":[{"role":"user","content":[{"type":"text","text":NaN}]}]}',
        b'{"model":"m","max_tokens":5,"max_tokens":5,"messages":[]}',
    ],
)
def test_hostile_json_is_refused(body: bytes) -> None:
    with pytest.raises(ProtocolError) as caught:
        decode_request(JSONObject(body), Ledger())
    assert caught.value.status_hint == 400


def test_half_a_surrogate_pair_reads_as_a_replacement() -> None:
    body = b'{"model":"m","max_tokens":5,"messages":[{"role":"user","content":"\\ud83d!"}]}'
    assert decode_request(JSONObject(body), Ledger()).turns == (Turn(Role.USER, (Text("�!"),)),)
