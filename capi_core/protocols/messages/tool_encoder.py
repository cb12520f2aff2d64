"""Tools, and the choice of them, as Messages has them.

Source: Anthropic API reference, "Create a Message", `tools`, `tool_choice`; wire.md 1.3, 1.5.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

import msgspec

from capi_core.conversation import (
    Conversation,
    CustomTool,
    FunctionTool,
    HostedTool,
    Tool,
    ToolCall,
    ToolKind,
    ToolMode,
    ToolRef,
)
from capi_core.errors import ProtocolError
from capi_core.fidelity import Change, Ledger
from capi_core.members import JSONObject
from capi_core.protocols.kinds import Protocol
from capi_core.tool_names import CUSTOM_INPUT_SCHEMA, ToolNames

if TYPE_CHECKING:
    from capi_core.protocols.messages.cache_marks import CacheMarks

__all__ = ["ToolEncoder", "wire_name"]

_ANY_OBJECT: Final = b'{"type":"object","properties":{}}'
_OBJECT: Final = b'"object"'
_WEB_SEARCH: Final = "web_search"
_MODES: Final = {ToolMode.AUTO: "auto", ToolMode.NONE: "none", ToolMode.REQUIRED: "any"}


def wire_name(ref: ToolRef, names: ToolNames, ledger: Ledger, at: str, kind: ToolKind = ToolKind.FUNCTION) -> str:
    """The name under which the upstream gets a tool; noted when it is another one."""
    name = names.wire(ref, kind)
    if name != ref.name:
        ledger.add(Change.RENAMED, at, "the upstream takes other names; the answer has the client's")
    return name


class ToolEncoder:
    """Encodes the tools of one conversation."""

    def __init__(self, conversation: Conversation, names: ToolNames, marks: CacheMarks, ledger: Ledger) -> None:
        self._conversation = conversation
        self._native = conversation.protocol is Protocol.MESSAGES
        self._names = names
        self._marks = marks
        self._ledger = ledger
        self._taken: set[str] = set()
        for tool in conversation.tools:  # before the calls in the history, which may not say of what kind their tool is
            if not isinstance(tool, HostedTool):
                names.wire(tool.ref, _kind(tool))

    def put(self, request: dict[str, object], *, thinks: bool) -> None:
        """Puts `tools` and `tool_choice` into `request`. `thinks`: then Anthropic takes no forced choice."""
        only = self._only()
        choice = self._conversation.tool_choice
        forced = choice is not None and choice.mode is ToolMode.REQUIRED and len(only) == 1 and not thinks
        tools: list[object] = []
        for tool in self._conversation.tools:
            if forced or not only or (not isinstance(tool, HostedTool) and tool.ref in only):
                tools += self._tool(tool)
        if tools:
            request["tools"] = tools
            self._put_choice(request, only, thinks=thinks)
            return
        if choice is not None and choice.mode is ToolMode.REQUIRED:
            self._ledger.dropped("$.tool_choice", "there is no tool that could be called")
        called = self._called()
        if called:  # Anthropic takes no past calls in a request without tools
            request["tools"] = called
            request["tool_choice"] = {"type": "none"}

    def _only(self) -> frozenset[ToolRef]:
        """The tools to which the choice is limited; none when it is not, or names none that there is."""
        choice = self._conversation.tool_choice
        if choice is None or choice.mode is ToolMode.NONE:
            return frozenset()
        known = {tool.ref for tool in self._conversation.tools if not isinstance(tool, HostedTool)}
        only = known.intersection(choice.only)
        if len(only) < len(set(choice.only)):
            self._ledger.dropped("$.tool_choice", "it names a tool that is not among the tools")
        return frozenset(only)

    def _put_choice(self, request: dict[str, object], only: frozenset[ToolRef], *, thinks: bool) -> None:
        choice = self._conversation.tool_choice
        if choice is None:
            return
        told: dict[str, object] = {"type": _MODES[choice.mode]}
        if choice.mode is ToolMode.REQUIRED and thinks:
            self._ledger.add(Change.ALTERED, "$.tool_choice", "a model that thinks cannot be forced to call a tool")
            told["type"] = "auto"
        elif choice.mode is ToolMode.REQUIRED and len(only) == 1:
            told = {"type": "tool", "name": self._names.wire(next(iter(only)))}
        if choice.parallel is not None and choice.mode is not ToolMode.NONE:
            told["disable_parallel_tool_use"] = not choice.parallel
        request["tool_choice"] = told

    def _tool(self, tool: Tool) -> list[object]:
        if isinstance(tool, HostedTool):
            return self._hosted(tool)
        name = wire_name(tool.ref, self._names, self._ledger, tool.at, _kind(tool))
        if name in self._taken:
            self._ledger.dropped(tool.at, "a tool of this name came before")
            return []
        self._taken.add(name)
        part: dict[str, object] = {"name": name}
        if tool.description is not None:
            part["description"] = tool.description
        if isinstance(tool, CustomTool):
            if tool.format is not None:
                self._ledger.add(Change.ALTERED, tool.at, "a custom tool goes as a function, without its grammar")
            part["input_schema"] = msgspec.Raw(CUSTOM_INPUT_SCHEMA)
            return [part]
        part["input_schema"] = msgspec.Raw(self._schema(tool))
        self._put_strict(part, tool)
        return [self._marks.put(part, tool.cache, tool.at)]

    def _put_strict(self, part: dict[str, object], tool: FunctionTool) -> None:
        """Anthropic's `strict` refuses schemas that OpenAI's takes, so it is only sent where it was written for it."""
        if self._native and tool.strict is not None:
            part["strict"] = tool.strict
        elif tool.strict:
            self._ledger.dropped(f"{tool.at}.strict", "what strict schemas may hold differs between the providers")

    def _schema(self, tool: FunctionTool) -> bytes:
        """The schema, with the `type` that Anthropic requires at its top."""
        if tool.parameters is None:
            return _ANY_OBJECT
        try:
            schema = JSONObject(tool.parameters)
        except ProtocolError:
            self._ledger.add(Change.ALTERED, tool.at, "a schema that is no legal JSON object: any arguments are taken")
            return _ANY_OBJECT
        if schema.get("type") == _OBJECT:
            return tool.parameters
        self._ledger.add(Change.ALTERED, tool.at, "the arguments of a tool are an object")
        return schema.edit({"type": _OBJECT})

    def _hosted(self, tool: HostedTool) -> list[object]:
        if tool.protocol is Protocol.MESSAGES:
            return [msgspec.Raw(tool.raw)]
        if not tool.web_search or _WEB_SEARCH in self._taken:
            self._ledger.dropped(tool.at, "a tool that only another provider runs, or one more of its kind")
            return []
        self._taken.add(_WEB_SEARCH)
        self._ledger.add(Change.ALTERED, tool.at, "the upstream's own web search, with its own options")
        return [{"type": "web_search_20250305", "name": _WEB_SEARCH}]

    def _called(self) -> list[object]:
        """Tools for the calls in the history."""
        tools: dict[str, object] = {}
        for turn in self._conversation.turns:
            for block in turn.blocks:
                if isinstance(block, ToolCall):
                    name = self._names.wire(block.tool, block.kind)
                    self._ledger.add(Change.SYNTHESISED, block.at, "a tool is declared for a call that was made of it")
                    tools[name] = {"name": name, "input_schema": msgspec.Raw(_ANY_OBJECT)}
        return list(tools.values())


def _kind(tool: FunctionTool | CustomTool) -> ToolKind:
    return ToolKind.CUSTOM if isinstance(tool, CustomTool) else ToolKind.FUNCTION
