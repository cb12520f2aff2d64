"""Tools and the choice of them are read, and what is wrong with one is told with its path."""

import json

import pytest

from capi_core.conversation import CacheMark, FunctionTool, HostedTool, ToolChoice, ToolMode, ToolRef
from capi_core.errors import ProtocolError
from capi_core.fidelity import Change, Ledger
from capi_core.protocols.messages.tool_decoder import read_tool_choice, read_tools

TOOL = {"name": "f", "input_schema": {"type": "object"}}


def choice(value: object) -> ToolChoice | None:
    return read_tool_choice(json.dumps(value).encode())


def test_functions() -> None:
    raw = (
        b'[{"name":"f","input_schema":{ "type":"object"}},{"type":"custom","name":"g","description":"d","strict":true,'
    )
    raw += b'"input_schema":{},"cache_control":{"type":"ephemeral","ttl":"5m"}}]'
    assert read_tools(raw, Ledger()) == [
        FunctionTool(ToolRef("f"), None, b'{ "type":"object"}'),
        FunctionTool(ToolRef("g"), "d", b"{}", True, CacheMark("5m")),
    ]
    assert read_tools(b"null", Ledger()) == []


def test_tools_that_the_provider_knows_pass_unread() -> None:
    given = [{"type": "web_search_20250305", "name": "web_search"}, {"type": "bash_20250124", "name": "bash"}]
    found = read_tools(json.dumps(given).encode(), Ledger())
    assert [(tool.type, tool.web_search) for tool in found if isinstance(tool, HostedTool)] == [
        ("web_search_20250305", True),
        ("bash_20250124", False),
    ]


def test_options_that_change_something_are_noted() -> None:
    ledger = Ledger()
    plain = {"defer_loading": False, "input_examples": [], "allowed_callers": ["direct"], "eager_input_streaming": True}
    read_tools(json.dumps([{**TOOL, **plain}, {**TOOL, "defer_loading": True}]).encode(), ledger)
    assert [(entry.change, entry.path) for entry in ledger] == [(Change.DROPPED, "$.tools[1].defer_loading")]


@pytest.mark.parametrize(
    ("tools", "param"),
    [
        ("x", "tools"),
        ([1], "tools[0]"),
        ([{**TOOL, "type": ""}], "tools[0].type"),
        ([{**TOOL, "type": "x" * 65}], "tools[0].type"),
        ([{**TOOL, "name": ""}], "tools[0].name"),
        ([{"name": "f"}], "tools[0].input_schema"),
        ([{"name": "f", "input_schema": None}], "tools[0].input_schema"),
        ([{"input_schema": {}}], "tools[0]"),
    ],
)
def test_a_wrong_tool_is_told_with_its_path(tools: object, param: str) -> None:
    with pytest.raises(ProtocolError) as caught:
        read_tools(json.dumps(tools).encode(), Ledger())
    assert (caught.value.status_hint, caught.value.param) == (400, param)


@pytest.mark.parametrize(
    ("value", "read"),
    [
        (None, None),
        ({"type": "auto"}, ToolChoice()),
        ({"type": "any", "disable_parallel_tool_use": True}, ToolChoice(ToolMode.REQUIRED, (), False)),
        ({"type": "auto", "disable_parallel_tool_use": False}, ToolChoice(ToolMode.AUTO, (), True)),
        ({"type": "tool", "name": "f"}, ToolChoice(ToolMode.REQUIRED, (ToolRef("f"),))),
        ({"type": "none"}, ToolChoice(ToolMode.NONE)),
    ],
)
def test_choices(value: object, read: ToolChoice | None) -> None:
    assert choice(value) == read


@pytest.mark.parametrize(
    ("value", "param"),
    [
        ("auto", "tool_choice"),
        ({"type": "required"}, "tool_choice.type"),
        ({"type": "tool"}, "tool_choice.name"),
        ({"type": "auto", "disable_parallel_tool_use": 1}, "tool_choice.disable_parallel_tool_use"),
    ],
)
def test_a_wrong_choice_is_told_with_its_path(value: object, param: str) -> None:
    with pytest.raises(ProtocolError) as caught:
        choice(value)
    assert (caught.value.status_hint, caught.value.param) == (400, param)
