"""Tools become tools that Anthropic takes, and so does the choice of them."""

import json

import pytest

from capi_core.conversation import (
    CacheMark,
    Conversation,
    CustomTool,
    FunctionTool,
    HostedTool,
    Role,
    Text,
    Tool,
    ToolCall,
    ToolChoice,
    ToolKind,
    ToolMode,
    ToolRef,
    Turn,
)
from capi_core.fidelity import Change, Ledger
from capi_core.protocols.kinds import Protocol
from capi_core.protocols.messages.cache_marks import CacheMarks
from capi_core.protocols.messages.tool_encoder import ToolEncoder
from capi_core.protocols.writing import json_bytes
from capi_core.tool_names import CUSTOM_INPUT_SCHEMA, ToolNames

F, G = FunctionTool(ToolRef("f")), FunctionTool(ToolRef("g"))
ANY = {"type": "object", "properties": {}}
SEARCH = HostedTool(Protocol.RESPONSES, "web_search", b"{}", web_search=True)


class Encoded:
    """The members that a request gets, and what was noted."""

    def __init__(
        self,
        *tools: Tool,
        choice: ToolChoice | None = None,
        thinks: bool = False,
        sender: Protocol = Protocol.CHAT,
        turns: tuple[Turn, ...] = (),
    ) -> None:
        self.ledger = Ledger()
        self.names = ToolNames()
        conversation = Conversation(sender, "m", turns, tools, choice)
        request: dict[str, object] = {}
        ToolEncoder(conversation, self.names, CacheMarks(self.ledger), self.ledger).put(request, thinks=thinks)
        self.request = json.loads(json_bytes(request))

    @property
    def told(self) -> list[str]:
        return [tool["name"] for tool in self.request["tools"]]

    @property
    def noted(self) -> list[tuple[Change, str]]:
        return [(entry.change, entry.path) for entry in self.ledger]


def test_functions() -> None:
    schema = b'{"type": "object", "a": 1}'
    found = Encoded(F, FunctionTool(ToolRef("g"), "d", schema, False, CacheMark()))
    mark = {"cache_control": {"type": "ephemeral"}}
    assert found.request == {
        "tools": [
            {"name": "f", "input_schema": ANY},
            {"name": "g", "description": "d", "input_schema": json.loads(schema), **mark},
        ]
    }
    assert found.noted == []


@pytest.mark.parametrize(
    ("schema", "told"),
    [
        (b'{"properties":{}}', {"properties": {}, "type": "object"}),
        (b'{"type":["object","null"]}', {"type": "object"}),
        (b'{"a":1,"a":2}', ANY),
    ],
)
def test_a_schema_is_of_an_object(schema: bytes, told: object) -> None:
    found = Encoded(FunctionTool(ToolRef("f"), parameters=schema, at="$.t"))
    assert found.request["tools"] == [{"name": "f", "input_schema": told}]
    assert found.noted == [(Change.ALTERED, "$.t")]


def test_strict_is_for_schemas_that_were_written_for_it() -> None:
    tool = FunctionTool(ToolRef("f"), strict=True, at="$.t")
    assert Encoded(tool).noted == [(Change.DROPPED, "$.t.strict")]
    assert Encoded(tool, sender=Protocol.MESSAGES).request["tools"][0]["strict"] is True


def test_custom_tools_go_as_functions_and_are_known_afterwards() -> None:
    past = Turn(Role.ASSISTANT, (ToolCall("c", ToolRef("apply"), "x"),))
    found = Encoded(CustomTool(ToolRef("apply"), "d", b"{}", at="$.t"), CustomTool(ToolRef("plain")), turns=(past,))
    first, second = found.request["tools"]
    assert first == {"name": "apply", "description": "d", "input_schema": json.loads(CUSTOM_INPUT_SCHEMA)}
    assert second["name"] == "plain"
    assert found.names.client("apply") == (ToolRef("apply"), ToolKind.CUSTOM)
    assert found.noted == [(Change.ALTERED, "$.t")]


def test_names_are_made_legal_and_are_told_once() -> None:
    found = Encoded(FunctionTool(ToolRef("spawn", "multi"), at="$.t"), F, FunctionTool(ToolRef("f"), "again", at="$.u"))
    assert len(found.told) == 2
    assert found.names.client(found.told[0]) == (ToolRef("spawn", "multi"), ToolKind.FUNCTION)
    assert found.noted == [(Change.RENAMED, "$.t"), (Change.DROPPED, "$.u")]


def test_hosted_tools() -> None:
    own = HostedTool(Protocol.MESSAGES, "bash_20250124", b'{"type":"bash_20250124","name":"bash"}')
    other = HostedTool(Protocol.RESPONSES, "file_search", b"{}", at="$.t")
    found = Encoded(own, SEARCH, SEARCH, other)
    assert found.request["tools"] == [
        {"type": "bash_20250124", "name": "bash"},
        {"type": "web_search_20250305", "name": "web_search"},
    ]
    assert [change for change, _ in found.noted] == [Change.ALTERED, Change.DROPPED, Change.DROPPED]


@pytest.mark.parametrize(
    ("choice", "told"),
    [
        (None, None),
        (ToolChoice(), {"type": "auto"}),
        (ToolChoice(parallel=False), {"type": "auto", "disable_parallel_tool_use": True}),
        (
            ToolChoice(ToolMode.REQUIRED, parallel=True),
            {"type": "any", "disable_parallel_tool_use": False},
        ),
        (ToolChoice(ToolMode.NONE, (ToolRef("f"),), False), {"type": "none"}),
        (ToolChoice(ToolMode.REQUIRED, (ToolRef("f"),)), {"type": "tool", "name": "f"}),
    ],
)
def test_choices_of_all_tools(choice: ToolChoice | None, told: object) -> None:
    found = Encoded(F, G, choice=choice)
    assert (found.request.get("tool_choice"), found.told, found.noted) == (told, ["f", "g"], [])


def test_a_choice_among_some_leaves_the_others_out() -> None:
    few = (ToolRef("f"), ToolRef("g"))
    found = Encoded(F, G, FunctionTool(ToolRef("h")), SEARCH, choice=ToolChoice(ToolMode.REQUIRED, few))
    assert (found.told, found.request["tool_choice"]) == (["f", "g"], {"type": "any"})
    found = Encoded(F, G, choice=ToolChoice(only=few[:1]))
    assert (found.told, found.request["tool_choice"]) == (["f"], {"type": "auto"})


def test_a_model_that_thinks_is_not_forced() -> None:
    found = Encoded(F, G, choice=ToolChoice(ToolMode.REQUIRED, (ToolRef("f"),)), thinks=True)
    assert (found.told, found.request["tool_choice"]) == (["f"], {"type": "auto"})
    assert found.noted == [(Change.ALTERED, "$.tool_choice")]


def test_a_choice_of_a_tool_that_there_is_not() -> None:
    found = Encoded(F, choice=ToolChoice(ToolMode.REQUIRED, (ToolRef("x"),)))
    assert (found.request["tool_choice"], found.noted) == ({"type": "any"}, [(Change.DROPPED, "$.tool_choice")])
    none = Encoded(choice=ToolChoice(ToolMode.REQUIRED))
    assert (none.request, none.noted) == ({}, [(Change.DROPPED, "$.tool_choice")])
    assert Encoded(choice=ToolChoice()).noted == []


def test_tools_of_past_calls_are_declared_but_not_called() -> None:
    calls = ToolCall("c", ToolRef("f"), "{}", at="$.a"), ToolCall("d", ToolRef("f"), "{}", at="$.b"), Text("x")
    found = Encoded(turns=(Turn(Role.ASSISTANT, calls),))
    assert found.request == {"tools": [{"name": "f", "input_schema": ANY}], "tool_choice": {"type": "none"}}
    assert found.noted == [(Change.SYNTHESISED, "$.a"), (Change.SYNTHESISED, "$.b")]
