"""Tools and the choice of them, as Chat's servers take them."""

import json

import pytest

from capi_core.conversation import (
    CacheMark,
    CustomTool,
    FunctionTool,
    HostedTool,
    Tool,
    ToolChoice,
    ToolKind,
    ToolMode,
    ToolRef,
)
from capi_core.fidelity import Change, Ledger
from capi_core.protocols.chat.tool_encoder import put_tool_choice, put_tools, wire_name
from capi_core.protocols.kinds import Protocol
from capi_core.protocols.writing import json_bytes
from capi_core.tool_names import CUSTOM_INPUT_SCHEMA, ToolNames

F, G = FunctionTool(ToolRef("f")), FunctionTool(ToolRef("g"))


def encode(
    *tools: Tool, choice: ToolChoice | None = None, ledger: Ledger | None = None, names: ToolNames | None = None
) -> dict[str, object]:
    request: dict[str, object] = {}
    names, ledger = names or ToolNames(), ledger or Ledger()
    put_tools(request, tools, names, ledger)
    put_tool_choice(request, choice, tools, names, ledger)
    found = json.loads(json_bytes(request))
    assert isinstance(found, dict)
    return found


def changes(ledger: Ledger) -> list[tuple[Change, str]]:
    return [(entry.change, entry.path) for entry in ledger]


def schema_of(parameters: bytes | None) -> object:
    tools = encode(FunctionTool(ToolRef("f"), parameters=parameters))["tools"]
    assert isinstance(tools, list)
    return tools[0]["function"]["parameters"]


def test_a_function_with_all_it_can_have() -> None:
    ledger = Ledger()
    tool = FunctionTool(ToolRef("f"), "d", b'{"a":1}', True, CacheMark(), at="t")
    assert encode(tool, ledger=ledger) == {
        "tools": [
            {"type": "function", "function": {"name": "f", "description": "d", "parameters": {"a": 1}, "strict": True}}
        ]
    }
    assert changes(ledger) == [(Change.DROPPED, "t")]


@pytest.mark.parametrize(
    ("given", "sent"),
    [
        (None, {"type": "object", "properties": {}}),
        (b'{"type":"object"}', {"type": "object", "properties": {}}),
        (b'{"type":"object","properties":{"a":{}}}', {"type": "object", "properties": {"a": {}}}),
        (b'{"anyOf":[]}', {"anyOf": []}),
        (b'{"type":"object","type":"object"}', {"type": "object"}),
    ],
)
def test_the_schema_of_an_object_says_which_properties_it_has(given: bytes | None, sent: object) -> None:
    assert schema_of(given) == sent


def test_a_custom_tool_goes_as_a_function_with_one_text_and_is_known_again() -> None:
    ledger, names = Ledger(), ToolNames()
    plain = CustomTool(ToolRef("p"))
    grammar = CustomTool(ToolRef("q"), "d", b'{"type":"grammar"}', at="q")
    found = encode(plain, grammar, ledger=ledger, names=names)["tools"]
    schema = json.loads(CUSTOM_INPUT_SCHEMA)
    assert found == [
        {"type": "function", "function": {"name": "p", "parameters": schema}},
        {"type": "function", "function": {"name": "q", "description": "d", "parameters": schema}},
    ]
    assert names.client("p") == (ToolRef("p"), ToolKind.CUSTOM)
    assert changes(ledger) == [(Change.DROPPED, "q")]


def test_a_name_that_is_not_legal_is_another_one_and_noted() -> None:
    ledger, names = Ledger(), ToolNames()
    ref = ToolRef("web search!" * 9, "space")
    name = wire_name(ref, ToolKind.FUNCTION, names, ledger, "t")
    assert len(name) == 64
    assert names.client(name) == (ref, ToolKind.FUNCTION)
    assert changes(ledger) == [(Change.RENAMED, "t")]


def test_the_first_of_two_tools_of_a_name_is_sent() -> None:
    ledger = Ledger()
    again = FunctionTool(ToolRef("f"), "again", at="x")
    spaced = FunctionTool(ToolRef("f", "space"))
    tools = encode(F, again, spaced, ledger=ledger)["tools"]
    assert isinstance(tools, list)
    assert [tool["function"]["name"] for tool in tools] == ["f", "space__f"]
    assert (Change.DROPPED, "x") in changes(ledger)


def test_only_chats_own_hosted_tools_are_sent() -> None:
    ledger = Ledger()
    found = encode(
        HostedTool(Protocol.CHAT, "web_search_options", b'{"search_context_size":"low"}', web_search=True),
        HostedTool(Protocol.CHAT, "novel", b'{"type":"novel"}'),
        HostedTool(Protocol.RESPONSES, "web_search", b"{}", web_search=True, at="w"),
        HostedTool(Protocol.MESSAGES, "code_execution", b"{}", at="c"),
        ledger=ledger,
    )
    assert found == {"web_search_options": {"search_context_size": "low"}, "tools": [{"type": "novel"}]}
    assert changes(ledger) == [(Change.DROPPED, "w"), (Change.DROPPED, "c")]


NAMED_F: dict[str, object] = {"type": "function", "function": {"name": "f"}}
NAMED_G: dict[str, object] = {"type": "function", "function": {"name": "g"}}


def allowed(mode: str, *tools: object) -> dict[str, object]:
    return {"type": "allowed_tools", "allowed_tools": {"mode": mode, "tools": list(tools)}}


@pytest.mark.parametrize(
    ("choice", "sent"),
    [
        (ToolChoice(), "auto"),
        (ToolChoice(ToolMode.REQUIRED), "required"),
        (ToolChoice(ToolMode.NONE), "none"),
        (ToolChoice(ToolMode.NONE, (F.ref,)), "none"),
        (ToolChoice(ToolMode.REQUIRED, (F.ref,)), NAMED_F),
        (ToolChoice(ToolMode.REQUIRED, (F.ref, F.ref)), NAMED_F),
        (ToolChoice(ToolMode.AUTO, (F.ref,)), allowed("auto", NAMED_F)),
        (ToolChoice(ToolMode.REQUIRED, (F.ref, G.ref)), allowed("required", NAMED_F, NAMED_G)),
    ],
)
def test_the_choice_of_tools(choice: ToolChoice, sent: object) -> None:
    ledger = Ledger()
    found = encode(F, G, choice=choice, ledger=ledger)
    assert found["tool_choice"] == sent
    assert "parallel_tool_calls" not in found
    assert ledger.entries == ()


def test_whether_calls_may_be_parallel() -> None:
    assert encode(F, choice=ToolChoice(parallel=False))["parallel_tool_calls"] is False
    assert "tool_choice" not in encode(F)


def test_a_choice_of_tools_that_are_not_there_is_noted() -> None:
    ledger = Ledger()
    gone = ToolChoice(ToolMode.REQUIRED, (ToolRef("gone"),))
    assert encode(F, choice=gone, ledger=ledger)["tool_choice"] == "required"
    assert changes(ledger) == [(Change.DROPPED, "$.tool_choice")]


@pytest.mark.parametrize(("mode", "lost"), [(ToolMode.REQUIRED, 1), (ToolMode.AUTO, 0), (ToolMode.NONE, 0)])
def test_without_tools_there_is_no_choice(mode: ToolMode, lost: int) -> None:
    ledger = Ledger()
    assert encode(choice=ToolChoice(mode, (), True), ledger=ledger) == {}
    assert ledger.losses == lost
