"""A Chat Completions request in no protocol's shape.

Source: OpenAI API reference, "Create chat completion"; wire.md 1.1, 1.5. Members without a place in a `Conversation`
are noted in the ledger unless their value changes nothing; what must not be left out unsaid is refused as
`untranslatable`.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

from capi_core.conversation import (
    Conversation,
    CustomTool,
    Effort,
    FunctionTool,
    HostedTool,
    OutputFormat,
    OutputKind,
    ReasoningRequest,
    ThinkingMode,
    Tool,
    ToolChoice,
    ToolMode,
    ToolRef,
)
from capi_core.protocols.chat.message_decoder import read_messages
from capi_core.protocols.chat.request_wire import CHOICE, FORMAT, REQUEST, TOOL, Choice, NamedTool, Request
from capi_core.protocols.kinds import Protocol
from capi_core.protocols.openai import required_model
from capi_core.protocols.reading import invalid, read_json, untranslatable
from capi_core.protocols.writing import json_bytes

if TYPE_CHECKING:
    import msgspec

    from capi_core.fidelity import Ledger
    from capi_core.members import JSONObject

__all__ = ["decode_request"]

_NULL: Final = b"null"
_EFFORTS: Final = {effort.value: effort for effort in Effort}
_KINDS: Final = {kind.value: kind for kind in OutputKind}
_MODES: Final = {mode.value: mode for mode in ToolMode}
_MOST_NAME: Final = 64
_READ: Final = frozenset({"model", "stream_options", *Request.__struct_fields__})
_NO_OPS: Final = {
    "frequency_penalty": (b"0", b"0.0"),
    "logit_bias": (b"{}",),
    "logprobs": (b"false",),
    "presence_penalty": (b"0", b"0.0"),
    "store": (b"false",),
    "top_logprobs": (b"0",),
}
"""Values of members without a place that change nothing."""


def decode_request(document: JSONObject, ledger: Ledger) -> Conversation:
    """Reads a client's request. Raises `ProtocolError` (400), with the JSON path of what is wrong as `param`."""
    request = read_json(REQUEST, document.text)
    _check(request)
    _note_unread(document, ledger)
    turns = read_messages(request.messages, ledger)
    if not turns:
        raise invalid("$.messages", "must hold at least one message that is not empty")
    tools = _tools(request)
    limit = request.max_completion_tokens if request.max_completion_tokens is not None else request.max_tokens
    stop = [request.stop] if isinstance(request.stop, str) else request.stop or ()
    return Conversation(
        protocol=Protocol.CHAT,
        model=required_model(document),
        turns=tuple(turns),
        tools=tuple(tools),
        tool_choice=_tool_choice(request),
        stream=bool(request.stream),
        max_output_tokens=limit,
        temperature=request.temperature,
        top_p=request.top_p,
        stop=tuple(sequence for sequence in stop if sequence),
        reasoning=_reasoning(request.reasoning_effort),
        output=_output(request),
        verbosity=request.verbosity,
        user=request.safety_identifier or request.user,
        cache_key=request.prompt_cache_key,
        service_tier=request.service_tier,
        metadata=document.get("metadata") if request.metadata is not None else None,
    )


def _check(request: Request) -> None:
    for name in ("max_completion_tokens", "max_tokens", "n"):
        value = getattr(request, name)
        if value is not None and value < 1:
            raise invalid(f"$.{name}", "must be at least 1")
    if request.n is not None and request.n > 1:
        raise untranslatable("$.n", "this upstream's protocol gives one choice: ask several times instead of `n`")
    if request.modalities is not None and not {"text"}.issuperset(request.modalities):
        raise untranslatable("$.modalities", "this upstream's protocol has no audio: ask for text only")


def _note_unread(document: JSONObject, ledger: Ledger) -> None:
    for name in document.names:
        value = document.get(name)
        if name in _READ or value == _NULL or value in _NO_OPS.get(name, ()):
            continue
        shown = name if len(name) <= _MOST_NAME else "*"  # a name may be a text; the ledger holds none
        ledger.dropped(f"$.{shown}", "has no place in the upstream's protocol")


def _reasoning(effort: str | None) -> ReasoningRequest:
    if effort is None:
        return ReasoningRequest()
    found = _EFFORTS.get(effort)
    if found is None:
        raise invalid("$.reasoning_effort", f"must be one of {', '.join(_EFFORTS)}")
    return ReasoningRequest(ThinkingMode.OFF if found is Effort.NONE else ThinkingMode.DEFAULT, found)


def _output(request: Request) -> OutputFormat:
    asked = request.response_format
    if asked is None:
        return OutputFormat()
    kind = _KINDS.get(asked.type)
    if kind is None:
        raise invalid("$.response_format.type", f"must be one of {', '.join(_KINDS)}")
    if kind is not OutputKind.JSON_SCHEMA:
        return OutputFormat(kind)
    schema = asked.json_schema
    if schema is None or not bytes(schema.schema).startswith(b"{"):
        raise invalid("$.response_format.json_schema.schema", "must be an object")
    return OutputFormat(kind, schema.name, bytes(schema.schema), schema.strict, schema.description)


def _tools(request: Request) -> list[Tool]:
    tools: list[Tool] = []
    for place, raw in enumerate(request.tools or ()):
        at = f"$.tools[{place}]"
        tool = read_json(TOOL, bytes(raw), at)
        if tool.type == "custom" and tool.custom is not None:
            tools.append(_custom(tool.custom, at))
        elif tool.type == "function" and tool.function is not None:
            tools.append(_function(tool.function, at, f"{at}.function"))
        elif tool.type in ("custom", "function"):
            raise invalid(f"{at}.{tool.type}", "must be an object")
        elif not tool.type:
            raise invalid(f"{at}.type", "must be the name of a tool type")
        else:
            tools.append(HostedTool(Protocol.CHAT, tool.type[:_MOST_NAME], bytes(raw), at=at))
    for place, function in enumerate(request.functions or ()):
        at = f"$.functions[{place}]"
        tools.append(_function(function, at, at))
    search = bytes(request.web_search_options)
    if search and search != _NULL:
        at = "$.web_search_options"
        tools.append(HostedTool(Protocol.CHAT, "web_search_options", search, web_search=True, at=at))
    return tools


def _function(tool: NamedTool, at: str, inner: str) -> FunctionTool:
    """The function of the tool at `at`, whose members are at `inner`."""
    parameters = _object(tool.parameters, f"{inner}.parameters")
    return FunctionTool(_ref(tool, inner), tool.description, parameters, tool.strict, at=at)


def _custom(tool: NamedTool, at: str) -> CustomTool:
    """Chat has the grammar one level deeper than Responses; free text is what a custom tool takes anyway."""
    inner = f"{at}.custom"
    raw = _object(tool.format, f"{inner}.format")
    form = None if raw is None else read_json(FORMAT, raw, f"{inner}.format")
    flat: bytes | None = None
    if form is not None and form.type != "text":
        if form.grammar is None:
            raise invalid(f"{inner}.format", "must be of the type `text`, or have a `grammar`")
        grammar = form.grammar
        flat = json_bytes({"type": "grammar", "syntax": grammar.syntax, "definition": grammar.definition})
    return CustomTool(_ref(tool, inner), tool.description, flat, at=at)


def _ref(tool: NamedTool, at: str) -> ToolRef:
    if not tool.name:
        raise invalid(f"{at}.name", "must not be empty")
    return ToolRef(tool.name)


def _object(raw: msgspec.Raw, at: str) -> bytes | None:
    value = bytes(raw)
    if value in (b"", _NULL):
        return None
    if not value.startswith(b"{"):
        raise invalid(at, "must be an object")
    return value


def _tool_choice(request: Request) -> ToolChoice | None:
    at = "$.tool_choice"
    raw = bytes(request.tool_choice)
    if raw in (b"", _NULL):
        at, raw = "$.function_call", bytes(request.function_call)
    choice = read_json(CHOICE, raw or _NULL, at)
    parallel = request.parallel_tool_calls
    if choice is None:
        return None if parallel is None else ToolChoice(parallel=parallel)
    if isinstance(choice, str):
        return ToolChoice(_mode(choice, at), (), parallel)
    if choice.type == "allowed_tools":
        allowed = choice.allowed_tools
        if allowed is None:
            raise invalid(f"{at}.allowed_tools", "must be an object")
        if not allowed.tools:
            raise invalid(f"{at}.allowed_tools.tools", "must name at least one tool")
        refs = [_chosen(tool, f"{at}.allowed_tools.tools[{place}]") for place, tool in enumerate(allowed.tools)]
        return ToolChoice(_mode(allowed.mode, f"{at}.allowed_tools.mode"), tuple(refs), parallel)
    return ToolChoice(ToolMode.REQUIRED, (_chosen(choice, at),), parallel)


def _mode(text: str, at: str) -> ToolMode:
    mode = _MODES.get(text)
    if mode is None:
        raise invalid(at, f"must be one of {', '.join(_MODES)}")
    return mode


def _chosen(choice: Choice, at: str) -> ToolRef:
    """The tool that a choice names; before there were tools, a function's name stood in it directly."""
    named = choice.function or choice.custom
    name = choice.name if named is None else named.name
    if not name:
        raise invalid(at, "must name a function or a custom tool")
    return ToolRef(name)
