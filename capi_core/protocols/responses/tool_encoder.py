"""Tools, and the choice of them, as Responses has them.

Source: OpenAI API reference, "Create a model response", `tools`, `tool_choice`; wire.md 1.2, 1.5.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import msgspec

from capi_core.conversation import Conversation, CustomTool, FunctionTool, HostedTool, Tool, ToolMode, ToolRef
from capi_core.fidelity import Change, Ledger
from capi_core.protocols.kinds import Protocol

if TYPE_CHECKING:
    from collections.abc import Iterable

    from capi_core.tool_names import ToolNames

__all__ = ["encode_tool_choice", "encode_tools", "wire_name"]


def wire_name(ref: ToolRef, names: ToolNames, ledger: Ledger, at: str) -> str:
    """The name under which the upstream gets a tool; noted when it is another one."""
    name = names.wire(ref)
    if name != ref.name:
        ledger.add(Change.RENAMED, at, "the upstream takes other names; the answer has the client's")
    return name


def encode_tools(tools: Iterable[Tool], names: ToolNames, ledger: Ledger) -> list[object]:
    """The member `tools`."""
    found = [_tool(tool, names, ledger) for tool in tools]
    return [tool for tool in found if tool is not None]


def _tool(tool: Tool, names: ToolNames, ledger: Ledger) -> object:
    if isinstance(tool, HostedTool):
        return _hosted(tool, ledger)
    members: dict[str, object] = {"name": wire_name(tool.ref, names, ledger, tool.at)}
    if tool.description is not None:
        members["description"] = tool.description
    if isinstance(tool, CustomTool):
        if tool.format is not None:
            members["format"] = msgspec.Raw(tool.format)
        return {"type": "custom", **members}
    if tool.cache is not None:
        ledger.dropped(tool.at, "Responses marks no cache points on tools")
    members["parameters"] = None if tool.parameters is None else msgspec.Raw(tool.parameters)
    members["strict"] = bool(tool.strict)  # required; and without it OpenAI makes schemas strict (wire.md 1.5)
    return {"type": "function", **members}


def _hosted(tool: HostedTool, ledger: Ledger) -> object:
    if tool.protocol is Protocol.RESPONSES:
        return msgspec.Raw(tool.raw)
    if tool.web_search:
        ledger.add(Change.ALTERED, tool.at, "the upstream's own web search, with its own options")
        return {"type": "web_search"}
    ledger.dropped(tool.at, "a tool that only another provider runs")
    return None


def encode_tool_choice(
    request: dict[str, object], conversation: Conversation, names: ToolNames, ledger: Ledger
) -> None:
    """Puts `tool_choice` and `parallel_tool_calls` into `request`: without tools both are refused by OpenAI."""
    choice = conversation.tool_choice
    if choice is None:
        return
    if "tools" not in request:
        if choice.mode is ToolMode.REQUIRED:
            ledger.dropped("$.tool_choice", "there is no tool that could be called")
        return
    if choice.parallel is not None:
        request["parallel_tool_calls"] = choice.parallel
    if not choice.only or choice.mode is ToolMode.NONE:
        request["tool_choice"] = choice.mode.value
        return
    custom = {tool.ref for tool in conversation.tools if isinstance(tool, CustomTool)}
    known = {tool.ref for tool in conversation.tools if isinstance(tool, CustomTool | FunctionTool)}
    only = [
        {"type": "custom" if ref in custom else "function", "name": names.wire(ref)}
        for ref in choice.only
        if ref in known
    ]
    if len(only) < len(choice.only):
        ledger.dropped("$.tool_choice", "it names a tool that is not among the tools")
    if not only:
        request["tool_choice"] = choice.mode.value
    elif len(only) == 1 and choice.mode is ToolMode.REQUIRED:
        request["tool_choice"] = only[0]
    else:
        request["tool_choice"] = {"type": "allowed_tools", "mode": choice.mode.value, "tools": only}
