"""The tools of a request, and which of them may be called.

Source: Anthropic API reference, "Create a Message", `tools`, `tool_choice`; wire.md 1.3, 1.5.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

import msgspec

from capi_core.conversation import CacheMark, FunctionTool, HostedTool, Tool, ToolChoice, ToolMode, ToolRef
from capi_core.protocols.kinds import Protocol
from capi_core.protocols.messages.request_wire import MOST_TYPE, NULL, TYPED, CacheControl, invalid, is_one_of
from capi_core.protocols.reading import read_json

if TYPE_CHECKING:
    from capi_core.fidelity import Ledger

__all__ = ["read_tool_choice", "read_tools"]

_MODES: Final = {"auto": ToolMode.AUTO, "any": ToolMode.REQUIRED, "tool": ToolMode.REQUIRED, "none": ToolMode.NONE}
_PLAIN: Final = (b"", NULL, b"false", b"[]", b'["direct"]')
"""Values of the options below that change nothing."""
_OPTIONS: Final = ("defer_loading", "input_examples", "allowed_callers")


class _Function(msgspec.Struct):
    """A tool that the client runs. `eager_input_streaming` is about the stream only, so nothing is lost with it."""

    name: str
    input_schema: msgspec.Raw = msgspec.Raw()
    description: str | None = None
    strict: bool | None = None
    cache_control: CacheControl | None = None
    defer_loading: msgspec.Raw = msgspec.Raw()
    input_examples: msgspec.Raw = msgspec.Raw()
    allowed_callers: msgspec.Raw = msgspec.Raw()


class _Choice(msgspec.Struct):
    type: str
    name: str | None = None
    disable_parallel_tool_use: bool | None = None


_TOOL_LIST: Final = msgspec.json.Decoder(list[msgspec.Raw] | None)
_FUNCTION: Final = msgspec.json.Decoder(_Function)
_CHOICE: Final = msgspec.json.Decoder(_Choice | None)


def read_tools(raw: bytes, ledger: Ledger) -> list[Tool]:
    """The tools of a request's `tools`. Raises `ProtocolError` (400)."""
    tools = read_json(_TOOL_LIST, raw, "$.tools")
    return [_tool(bytes(tool), f"$.tools[{place}]", ledger) for place, tool in enumerate(tools or [])]


def _tool(raw: bytes, at: str, ledger: Ledger) -> Tool:
    kind = read_json(TYPED, raw, at).type
    if kind not in (None, "custom"):
        if not kind or len(kind) > MOST_TYPE:
            raise invalid(f"{at}.type", f"must be the name of a tool type, of 1 to {MOST_TYPE} characters")
        return HostedTool(Protocol.MESSAGES, kind, raw, kind.startswith("web_search_"), at=at)
    tool = read_json(_FUNCTION, raw, at)
    if not tool.name:
        raise invalid(f"{at}.name", "must not be empty")
    schema = bytes(tool.input_schema)
    if not schema.startswith(b"{"):
        raise invalid(f"{at}.input_schema", "must be an object")
    options = (tool.defer_loading, tool.input_examples, tool.allowed_callers)
    for name, value in zip(_OPTIONS, options, strict=True):
        if not is_one_of(bytes(value), _PLAIN):
            ledger.dropped(f"{at}.{name}", "only Messages has this option of a tool")
    cache = None if tool.cache_control is None else CacheMark(tool.cache_control.ttl)
    return FunctionTool(ToolRef(tool.name), tool.description, schema, tool.strict, cache, at=at)


def read_tool_choice(raw: bytes) -> ToolChoice | None:
    """Which tools may be called; `None` when the request does not say. Raises `ProtocolError` (400)."""
    choice = read_json(_CHOICE, raw, "$.tool_choice")
    if choice is None:
        return None
    mode = _MODES.get(choice.type)
    if mode is None:
        raise invalid("$.tool_choice.type", f"must be one of {', '.join(_MODES)}")
    alone = choice.disable_parallel_tool_use
    parallel = None if alone is None else not alone
    if choice.type != "tool":
        return ToolChoice(mode, (), parallel)
    if not choice.name:
        raise invalid("$.tool_choice.name", "must not be empty")
    return ToolChoice(mode, (ToolRef(choice.name),), parallel)
