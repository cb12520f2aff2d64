"""The tools of a request, and which of them may be called.

Source: OpenAI API reference, "Create a model response", `tools`, `tool_choice`; wire.md 1.2.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

import msgspec

from capi_core.conversation import CustomTool, FunctionTool, HostedTool, Tool, ToolChoice, ToolMode, ToolRef
from capi_core.fidelity import Change
from capi_core.protocols.kinds import Protocol
from capi_core.protocols.reading import invalid, read_json
from capi_core.protocols.responses.wire import TYPED

if TYPE_CHECKING:
    from collections.abc import Iterable

    from capi_core.fidelity import Ledger

__all__ = ["read_additional_tools", "read_tool_choice", "read_tools"]

_NULL: Final = b"null"
_MODES: Final = {mode.value: mode for mode in ToolMode}
_PLAIN: Final = (b"", _NULL, b"false", b'["direct"]')
"""Values of the options below that change nothing."""


class _Named(msgspec.Struct):
    """A function or a custom tool. The last members are options that no other protocol has."""

    name: str
    description: str | None = None
    parameters: msgspec.Raw = msgspec.Raw()
    strict: bool | None = None
    format: msgspec.Raw = msgspec.Raw()
    defer_loading: msgspec.Raw = msgspec.Raw()
    output_schema: msgspec.Raw = msgspec.Raw()
    allowed_callers: msgspec.Raw = msgspec.Raw()


_OPTIONS: Final = ("defer_loading", "output_schema", "allowed_callers")


class _Namespace(msgspec.Struct):
    name: str
    tools: list[msgspec.Raw]


class _AdditionalTools(msgspec.Struct):
    tools: list[msgspec.Raw]


class _Choice(msgspec.Struct):
    type: str
    name: str | None = None
    namespace: str | None = None
    mode: str | None = None
    tools: list[_Choice] | None = None


_TOOL_LIST: Final = msgspec.json.Decoder(list[msgspec.Raw] | None)
_ITEM_LIST: Final = msgspec.json.Decoder(str | list[msgspec.Raw])
_NAMED: Final = msgspec.json.Decoder(_Named)
_NAMESPACE: Final = msgspec.json.Decoder(_Namespace)
_ADDITIONAL: Final = msgspec.json.Decoder(_AdditionalTools)
_CHOICE: Final = msgspec.json.Decoder(str | _Choice | None)


def read_tools(raw: bytes, ledger: Ledger) -> list[Tool]:
    """The tools of a request's `tools`. Raises `ProtocolError` (400)."""
    tools = read_json(_TOOL_LIST, raw, "$.tools")
    return [] if tools is None else _tools(tools, "$.tools", None, ledger)


def read_additional_tools(items: bytes, ledger: Ledger) -> list[Tool]:
    """The tools of the items `additional_tools` in a request's `input`. Raises `ProtocolError` (400)."""
    found = read_json(_ITEM_LIST, items, "$.input")
    tools: list[Tool] = []
    for place, item in enumerate(found if isinstance(found, list) else []):
        at = f"$.input[{place}]"
        if read_json(TYPED, bytes(item), at).type == "additional_tools":
            tools += _tools(read_json(_ADDITIONAL, bytes(item), at).tools, f"{at}.tools", None, ledger)
    return tools


def _tools(raws: Iterable[msgspec.Raw], at: str, namespace: str | None, ledger: Ledger) -> list[Tool]:
    tools: list[Tool] = []
    for place, raw in enumerate(raws):
        tools += _tool(bytes(raw), f"{at}[{place}]", namespace, ledger)
    return tools


def _tool(raw: bytes, at: str, namespace: str | None, ledger: Ledger) -> list[Tool]:
    kind = read_json(TYPED, raw, at).type
    if not kind:
        raise invalid(f"{at}.type", "must be the name of a tool type")
    if kind == "namespace" and namespace is None:
        inner = read_json(_NAMESPACE, raw, at)
        return _tools(inner.tools, f"{at}.tools", inner.name, ledger)
    if kind not in ("function", "custom"):
        return [HostedTool(Protocol.RESPONSES, kind, raw, kind.startswith("web_search"), at=at)]
    tool = read_json(_NAMED, raw, at)
    if not tool.name:
        raise invalid(f"{at}.name", "must not be empty")
    options = (tool.defer_loading, tool.output_schema, tool.allowed_callers)
    for name, value in zip(_OPTIONS, options, strict=True):
        if bytes(value) not in _PLAIN:
            ledger.dropped(f"{at}.{name}", "only Responses has this option of a tool")
    ref = ToolRef(tool.name, namespace)
    if kind == "custom":
        return [CustomTool(ref, tool.description, _object(tool.format, f"{at}.format"), at=at)]
    return [FunctionTool(ref, tool.description, _object(tool.parameters, f"{at}.parameters"), tool.strict, at=at)]


def _object(raw: msgspec.Raw, at: str) -> bytes | None:
    value = bytes(raw)
    if value in (b"", _NULL):
        return None
    if not value.startswith(b"{"):
        raise invalid(at, "must be an object")
    return value


def read_tool_choice(raw: bytes, tools: Iterable[Tool], parallel: bool | None, ledger: Ledger) -> ToolChoice | None:
    """Which tools may be called; `None` when neither `tool_choice` nor `parallel_tool_calls` was given.

    Raises `ProtocolError` (400).
    """
    at = "$.tool_choice"
    choice = read_json(_CHOICE, raw, at)
    if choice is None:
        return None if parallel is None else ToolChoice(parallel=parallel)
    if isinstance(choice, str):
        return ToolChoice(_mode(choice, at), (), parallel)
    named = {ref: ref for tool in tools if not isinstance(tool, HostedTool) for ref in (tool.ref,)}
    if choice.type == "allowed_tools":
        refs = [_ref(tool, named, f"{at}.tools[{place}]", ledger) for place, tool in enumerate(choice.tools or [])]
        only = tuple(ref for ref in refs if ref is not None)
        return ToolChoice(_mode(choice.mode or "auto", f"{at}.mode"), only, parallel)
    ref = _ref(choice, named, at, ledger)
    return ToolChoice(ToolMode.REQUIRED, () if ref is None else (ref,), parallel)


def _mode(text: str, at: str) -> ToolMode:
    mode = _MODES.get(text)
    if mode is None:
        raise invalid(at, "must be auto, none or required")
    return mode


def _ref(choice: _Choice, named: dict[ToolRef, ToolRef], at: str, ledger: Ledger) -> ToolRef | None:
    """The tool that a choice names; `None` for one that the provider runs itself: no other can be told to call it."""
    if choice.type not in ("function", "custom"):
        ledger.add(Change.ALTERED, at, "a hosted tool cannot be chosen; any tool may be called instead")
        return None
    if not choice.name:
        raise invalid(f"{at}.name", "must not be empty")
    ref = ToolRef(choice.name, choice.namespace)
    if ref in named:
        return ref
    return next((known for known in named if known.name == choice.name), ref)
