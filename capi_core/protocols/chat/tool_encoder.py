"""Tools, and the choice of them, as Chat has them.

Source: OpenAI API reference, "Create chat completion", `tools`, `tool_choice`; wire.md 1.1, 1.5. Custom tools go as
functions: few servers know them, and no stream carries their calls.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

import msgspec

from capi_core.conversation import CustomTool, FunctionTool, HostedTool, Tool, ToolChoice, ToolKind, ToolMode, ToolRef
from capi_core.fidelity import Change, Ledger
from capi_core.protocols.kinds import Protocol
from capi_core.tool_names import CUSTOM_INPUT_SCHEMA

if TYPE_CHECKING:
    from collections.abc import Iterable

    from capi_core.tool_names import ToolNames

__all__ = ["put_tool_choice", "put_tools", "wire_name"]

_NO_ARGUMENTS: Final = b'{"type":"object","properties":{}}'


def wire_name(ref: ToolRef, kind: ToolKind, names: ToolNames, ledger: Ledger, at: str) -> str:
    """The name under which the upstream gets a tool; noted when it is another one."""
    name = names.wire(ref, kind)
    if name != ref.name:
        ledger.add(Change.RENAMED, at, "the upstream takes other names; the answer has the client's")
    return name


def put_tools(request: dict[str, object], tools: Iterable[Tool], names: ToolNames, ledger: Ledger) -> None:
    """Puts the members `tools` and `web_search_options` into `request`."""
    encoded = []
    for tool in tools:
        match tool:
            case FunctionTool():
                encoded.append(_function(tool, names, ledger))
            case CustomTool():
                encoded.append(_custom(tool, names, ledger))
            case HostedTool():
                _put_hosted(request, tool, encoded, ledger)
    if encoded:
        request["tools"] = encoded


def _function(tool: FunctionTool, names: ToolNames, ledger: Ledger) -> object:
    if tool.cache is not None:
        ledger.dropped(tool.at, "Chat marks no cache points on tools")
    function: dict[str, object] = {"name": wire_name(tool.ref, ToolKind.FUNCTION, names, ledger, tool.at)}
    if tool.description is not None:
        function["description"] = tool.description
    function["parameters"] = msgspec.Raw(tool.parameters or _NO_ARGUMENTS)
    if tool.strict is not None:
        function["strict"] = tool.strict
    return {"type": "function", "function": function}


def _custom(tool: CustomTool, names: ToolNames, ledger: Ledger) -> object:
    if tool.format is not None:
        ledger.dropped(tool.at, "a grammar cannot be asked for: the tool goes as a function with a text")
    function: dict[str, object] = {"name": wire_name(tool.ref, ToolKind.CUSTOM, names, ledger, tool.at)}
    if tool.description is not None:
        function["description"] = tool.description
    function["parameters"] = msgspec.Raw(CUSTOM_INPUT_SCHEMA)
    return {"type": "function", "function": function}


def _put_hosted(request: dict[str, object], tool: HostedTool, encoded: list[object], ledger: Ledger) -> None:
    if tool.web_search:
        if tool.protocol is not Protocol.CHAT:
            ledger.add(Change.ALTERED, tool.at, "the upstream's own web search, with its own options")
        request["web_search_options"] = msgspec.Raw(tool.raw if tool.protocol is Protocol.CHAT else b"{}")
    elif tool.protocol is Protocol.CHAT:
        encoded.append(msgspec.Raw(tool.raw))
    else:
        ledger.dropped(tool.at, "a tool that only another provider runs")


def put_tool_choice(
    request: dict[str, object], choice: ToolChoice | None, tools: Iterable[Tool], names: ToolNames, ledger: Ledger
) -> None:
    """Puts `tool_choice` and `parallel_tool_calls` into `request`: without tools both are refused by OpenAI."""
    if choice is None:
        return
    if "tools" not in request:
        if choice.mode is ToolMode.REQUIRED:
            ledger.dropped("$.tool_choice", "there is no tool that could be called")
        return
    if choice.parallel is not None:
        request["parallel_tool_calls"] = choice.parallel
    known = {tool.ref for tool in tools if not isinstance(tool, HostedTool)}
    only = [{"type": "function", "function": {"name": names.wire(ref)}} for ref in choice.only if ref in known]
    if len(only) < len(choice.only):
        ledger.dropped("$.tool_choice", "it names a tool that is not among the tools")
    if not only or choice.mode is ToolMode.NONE:
        request["tool_choice"] = choice.mode.value
    elif len(only) == 1 and choice.mode is ToolMode.REQUIRED:
        request["tool_choice"] = only[0]
    else:
        allowed = {"mode": choice.mode.value, "tools": only}
        request["tool_choice"] = {"type": "allowed_tools", "allowed_tools": allowed}
