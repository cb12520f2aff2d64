"""Tools and the choice of them, read."""

import json

import pytest

from capi_core.conversation import CustomTool, FunctionTool, HostedTool, Tool, ToolChoice, ToolMode, ToolRef
from capi_core.errors import ProtocolError
from capi_core.fidelity import Ledger
from capi_core.protocols.kinds import Protocol
from capi_core.protocols.responses.tool_decoder import read_additional_tools, read_tool_choice, read_tools

FUNCTION = {"type": "function", "name": "f", "parameters": {"type": "object"}, "strict": True, "description": "d"}
TOOLS: list[Tool] = [
    FunctionTool(ToolRef("f")),
    FunctionTool(ToolRef("g", "n")),
    HostedTool(Protocol.RESPONSES, "x", b"{}"),
]


def tools(*given: object, ledger: Ledger | None = None) -> list[Tool]:
    return read_tools(json.dumps(given).encode(), ledger or Ledger())


def choice(given: object, parallel: bool | None = None, ledger: Ledger | None = None) -> ToolChoice | None:
    return read_tool_choice(json.dumps(given).encode(), TOOLS, parallel, ledger or Ledger())


def test_each_type_of_tool() -> None:
    custom = {"type": "custom", "name": "c", "format": {"type": "grammar"}}
    space = {"type": "namespace", "name": "n", "description": "", "tools": [FUNCTION, custom]}
    search = {"type": "web_search", "external_web_access": True}
    assert tools(
        FUNCTION, custom, space, search, {"type": "shell"}, {"type": "function", "name": "p", "parameters": None}
    ) == [
        FunctionTool(ToolRef("f"), "d", b'{"type": "object"}', True),
        CustomTool(ToolRef("c"), None, b'{"type": "grammar"}'),
        FunctionTool(ToolRef("f", "n"), "d", b'{"type": "object"}', True),
        CustomTool(ToolRef("c", "n"), None, b'{"type": "grammar"}'),
        HostedTool(Protocol.RESPONSES, "web_search", json.dumps(search).encode(), True),
        HostedTool(Protocol.RESPONSES, "shell", b'{"type": "shell"}'),
        FunctionTool(ToolRef("p")),
    ]
    assert read_tools(b"null", Ledger()) == []


def test_options_of_responses_alone_are_noted() -> None:
    ledger = Ledger()
    tools({**FUNCTION, "defer_loading": True, "output_schema": None, "allowed_callers": ["x"]}, ledger=ledger)
    assert [entry.path for entry in ledger] == ["$.tools[0].defer_loading", "$.tools[0].allowed_callers"]


def test_tools_may_come_among_the_items() -> None:
    items = [{"role": "user", "content": ""}, {"type": "additional_tools", "role": "developer", "tools": [FUNCTION]}]
    (found,) = read_additional_tools(json.dumps(items).encode(), Ledger())
    assert found.at == "$.input[1].tools[0]"
    assert read_additional_tools(b'"text"', Ledger()) == []


@pytest.mark.parametrize(
    ("tool", "param"),
    [
        (5, "tools[0]"),
        ({}, "tools[0].type"),
        ({"type": "function"}, "tools[0]"),
        ({"type": "function", "name": ""}, "tools[0].name"),
        ({"type": "function", "name": "f", "parameters": []}, "tools[0].parameters"),
        (
            {"type": "namespace", "name": "n", "tools": [{"type": "custom", "name": "c", "format": "x"}]},
            "tools[0].tools[0].format",
        ),
    ],
)
def test_a_tool_that_is_wrong_is_told_with_its_path(tool: object, param: str) -> None:
    with pytest.raises(ProtocolError) as caught:
        tools(tool)
    assert (caught.value.param, caught.value.status_hint) == (param, 400)


@pytest.mark.parametrize(
    ("given", "parallel", "found"),
    [
        (None, None, None),
        (None, False, ToolChoice(parallel=False)),
        ("required", True, ToolChoice(ToolMode.REQUIRED, (), True)),
        ({"type": "function", "name": "f"}, None, ToolChoice(ToolMode.REQUIRED, (ToolRef("f"),))),
        ({"type": "function", "name": "g"}, None, ToolChoice(ToolMode.REQUIRED, (ToolRef("g", "n"),))),
        ({"type": "custom", "name": "u"}, None, ToolChoice(ToolMode.REQUIRED, (ToolRef("u"),))),
        (
            {
                "type": "allowed_tools",
                "mode": "required",
                "tools": [{"type": "function", "name": "f"}, {"type": "mcp"}],
            },
            None,
            ToolChoice(ToolMode.REQUIRED, (ToolRef("f"),)),
        ),
        ({"type": "allowed_tools"}, None, ToolChoice()),
    ],
)
def test_each_way_to_choose(given: object, parallel: bool | None, found: ToolChoice | None) -> None:
    assert choice(given, parallel) == found


def test_a_hosted_tool_that_is_chosen_is_noted() -> None:
    ledger = Ledger()
    assert choice({"type": "file_search"}, None, ledger) == ToolChoice(ToolMode.REQUIRED)
    assert ledger.losses == 1


@pytest.mark.parametrize(
    ("given", "param"),
    [
        ("maybe", "tool_choice"),
        (5, "tool_choice"),
        ({"type": "function"}, "tool_choice.name"),
        ({"type": "allowed_tools", "mode": "x"}, "tool_choice.mode"),
    ],
)
def test_a_choice_that_is_wrong_is_told_with_its_path(given: object, param: str) -> None:
    with pytest.raises(ProtocolError) as caught:
        choice(given)
    assert (caught.value.param, caught.value.status_hint) == (param, 400)
