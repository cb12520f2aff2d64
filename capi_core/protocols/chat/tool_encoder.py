"""Tools, and the choice of them, as Chat has them.

Source: OpenAI API reference, "Create chat completion", `tools`, `tool_choice`; wire.md 1.1, 1.5. Custom tools go as
functions: few servers know them, and no stream carries their calls.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

import msgspec

from capi_core.conversation import CustomTool, FunctionTool, HostedTool, Tool, ToolChoice, ToolKind, ToolMode, ToolRef
from capi_core.errors import ProtocolError
from capi_core.fidelity import Change, Ledger
from capi_core.members import JSONObject
from capi_core.protocols.kinds import Protocol
from capi_core.tool_names import CUSTOM_INPUT_SCHEMA

if TYPE_CHECKING:
    from collections.abc import Iterable

    from capi_core.tool_names import ToolNames

__all__ = ["put_tool_choice", "put_tools", "wire_name"]

_OBJECT: Final = b'"object"'
_NO_ARGUMENTS: Final = b'{"type":"object","properties":{}}'


def wire_name(ref: ToolRef, kind: ToolKind, names: ToolNames, ledger: Ledger, at: str) -> str:
    """The name under which the upstream gets a tool; noted when it is another one."""
    name = names.wire(ref, kind)
    if name != ref.name:
        ledger.add(Change.RENAMED, at, "the upstream takes other names; the answer has the client's")
    return name


def put_tools(request: dict[str, object], tools: Iterable[Tool], names: ToolNames, ledger: Ledger) -> None:
    """Puts the members `tools` and `web_search_options` into `request`."""
    encoded: list[object] = []
    seen: set[ToolRef] = set()
    for tool in tools:
        if isinstance(tool, HostedTool):
            _put_hosted(request, tool, encoded, ledger)
        elif tool.ref in seen:
            ledger.dropped(tool.at, "a tool of this name came before")
        else:
            seen.add(tool.ref)
            put = _function(tool, names, ledger) if isinstance(tool, FunctionTool) else _custom(tool, names, ledger)
            encoded.append(put)
    if encoded:
        request["tools"] = encoded


def _function(tool: FunctionTool, names: ToolNames, ledger: Ledger) -> object:
    if tool.cache is not None:
        ledger.dropped(tool.at, "Chat marks no cache points on tools")
    function: dict[str, object] = {"name": wire_name(tool.ref, ToolKind.FUNCTION, names, ledger, tool.at)}
    if tool.description is not None:
        function["description"] = tool.description
    function["parameters"] = msgspec.Raw(_schema(tool.parameters))
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


def _schema(parameters: bytes | None) -> bytes:
    """OpenAI refuses the schema of an object that does not say which properties it has."""
    if parameters is None:
        return _NO_ARGUMENTS
    try:
        schema = JSONObject(parameters)
    except ProtocolError:  # a name twice: the upstream may make of it what it likes
        return parameters
    if schema.get("type") == _OBJECT and schema.get("properties") is None:
        return schema.edit({"properties": b"{}"})
    return parameters


def _put_hosted(request: dict[str, object], tool: HostedTool, encoded: list[object], ledger: Ledger) -> None:
    """Web search is not asked for in place of another provider's: OpenAI refuses the whole request for all models but
    those that are made for it, and agents always have the tool on their list."""
    if tool.protocol is not Protocol.CHAT:
        ledger.dropped(tool.at, "a tool that only another provider runs")
    elif tool.web_search:
        request["web_search_options"] = msgspec.Raw(tool.raw)
    else:
        encoded.append(msgspec.Raw(tool.raw))


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
    asked = dict.fromkeys(choice.only)
    only = [{"type": "function", "function": {"name": names.wire(ref)}} for ref in asked if ref in known]
    if len(only) < len(asked):
        ledger.dropped("$.tool_choice", "it names a tool that is not among the tools")
    if not only or choice.mode is ToolMode.NONE:
        request["tool_choice"] = choice.mode.value
    elif len(only) == 1 and choice.mode is ToolMode.REQUIRED:
        request["tool_choice"] = only[0]
    else:
        allowed = {"mode": choice.mode.value, "tools": only}
        request["tool_choice"] = {"type": "allowed_tools", "allowed_tools": allowed}
