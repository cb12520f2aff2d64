"""Tools and the choice of them, written."""

import pytest

from capi_core.conversation import (
    CacheMark,
    Conversation,
    CustomTool,
    FunctionTool,
    HostedTool,
    Tool,
    ToolChoice,
    ToolMode,
    ToolRef,
)
from capi_core.fidelity import Change, Ledger
from capi_core.protocols.kinds import Protocol
from capi_core.protocols.responses.tool_encoder import encode_tool_choice, encode_tools
from capi_core.protocols.writing import json_bytes
from capi_core.tool_names import ToolNames

TOOLS = (FunctionTool(ToolRef("f")), CustomTool(ToolRef("c")))


def tools(*given: Tool, ledger: Ledger | None = None) -> bytes:
    return json_bytes(encode_tools(given, ToolNames(), ledger or Ledger()))


def choose(choice: ToolChoice | None, *given: Tool, ledger: Ledger | None = None) -> dict[str, object]:
    request: dict[str, object] = {"tools": [1]} if given else {}
    conversation = Conversation(Protocol.CHAT, "m", (), given, choice)
    encode_tool_choice(request, conversation, ToolNames(), ledger or Ledger())
    request.pop("tools", None)
    return request


def test_strict_is_always_said() -> None:
    assert tools(FunctionTool(ToolRef("f"), "d", b'{"a":1}', True), FunctionTool(ToolRef("g"))) == (
        b'[{"type":"function","name":"f","description":"d","parameters":{"a":1},"strict":true},'
        b'{"type":"function","name":"g","parameters":null,"strict":false}]'
    )


def test_custom_tools_are_native() -> None:
    assert tools(CustomTool(ToolRef("c"), None, b'{"type":"text"}'), CustomTool(ToolRef("d"))) == (
        b'[{"type":"custom","name":"c","format":{"type":"text"}},{"type":"custom","name":"d"}]'
    )


def test_hosted_tools_are_the_upstreams_own_or_none() -> None:
    ledger = Ledger()
    own = HostedTool(Protocol.RESPONSES, "shell", b'{"type":"shell"}')
    search = HostedTool(Protocol.MESSAGES, "web_search_20250305", b"{}", True, at="s")
    other = HostedTool(Protocol.MESSAGES, "bash", b"{}", at="b")
    assert tools(own, search, other, ledger=ledger) == b'[{"type":"shell"},{"type":"web_search"}]'
    assert [(entry.change, entry.path) for entry in ledger] == [(Change.ALTERED, "s"), (Change.DROPPED, "b")]


def test_names_and_cache_points_that_change_are_noted() -> None:
    ledger = Ledger()
    tools(FunctionTool(ToolRef("a.b"), at="x"), FunctionTool(ToolRef("f"), cache=CacheMark(), at="y"), ledger=ledger)
    assert [(entry.change, entry.path) for entry in ledger] == [(Change.RENAMED, "x"), (Change.DROPPED, "y")]


@pytest.mark.parametrize(
    ("choice", "told"),
    [
        (None, {}),
        (ToolChoice(), {"tool_choice": "auto"}),
        (ToolChoice(ToolMode.NONE, (ToolRef("f"),), False), {"tool_choice": "none", "parallel_tool_calls": False}),
        (ToolChoice(ToolMode.REQUIRED), {"tool_choice": "required"}),
        (ToolChoice(ToolMode.REQUIRED, (ToolRef("f"),)), {"tool_choice": {"type": "function", "name": "f"}}),
        (ToolChoice(ToolMode.REQUIRED, (ToolRef("c"),)), {"tool_choice": {"type": "custom", "name": "c"}}),
        (
            ToolChoice(ToolMode.AUTO, (ToolRef("c"),)),
            {"tool_choice": {"type": "allowed_tools", "mode": "auto", "tools": [{"type": "custom", "name": "c"}]}},
        ),
    ],
)
def test_each_choice(choice: ToolChoice | None, told: dict[str, object]) -> None:
    assert choose(choice, *TOOLS) == told


def test_a_choice_of_what_is_not_there_is_noted() -> None:
    ledger = Ledger()
    assert choose(ToolChoice(ToolMode.REQUIRED, (ToolRef("x"),)), *TOOLS, ledger=ledger) == {"tool_choice": "required"}
    assert choose(ToolChoice(ToolMode.REQUIRED, parallel=True), ledger=ledger) == {}
    assert choose(ToolChoice(), ledger=ledger) == {}
    assert ledger.losses == 2
