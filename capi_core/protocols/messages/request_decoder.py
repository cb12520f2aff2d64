"""A Messages request in no protocol's shape.

Source: Anthropic API reference, "Create a Message", "Count tokens in a Message"; wire.md 1.3, 1.5. Members without a
place in a `Conversation` are noted in the ledger unless their value changes nothing.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

import msgspec

from capi_core.conversation import (
    Block,
    Conversation,
    Effort,
    OutputFormat,
    OutputKind,
    Reasoning,
    ReasoningRequest,
    Role,
    Text,
    ThinkingMode,
    ToolCall,
    ToolResult,
    Turn,
)
from capi_core.fidelity import Change
from capi_core.protocols.kinds import Protocol
from capi_core.protocols.messages.content_decoder import ContentReader
from capi_core.protocols.messages.request_wire import BILLING_MARK, NULL, invalid, is_one_of
from capi_core.protocols.messages.tool_decoder import read_tool_choice, read_tools
from capi_core.protocols.openai import required_model
from capi_core.protocols.reading import read_json

if TYPE_CHECKING:
    from capi_core.fidelity import Ledger
    from capi_core.members import JSONObject

__all__ = ["decode_request"]

_EFFORTS: Final = {
    effort.value: effort for effort in (Effort.LOW, Effort.MEDIUM, Effort.HIGH, Effort.XHIGH, Effort.MAX)
}
_ROLES: Final = {role.value: role for role in (Role.USER, Role.ASSISTANT, Role.SYSTEM)}
_MOST_NAME: Final = 64


class _Message(msgspec.Struct):
    role: str
    content: str | list[msgspec.Raw]


class _Metadata(msgspec.Struct):
    user_id: str | None = None


class _Thinking(msgspec.Struct):
    type: str
    budget_tokens: int | None = None
    display: str | None = None


class _Format(msgspec.Struct):
    type: str
    schema: msgspec.Raw = msgspec.Raw()


class _OutputConfig(msgspec.Struct):
    effort: str | None = None
    format: _Format | None = None


class _Request(msgspec.Struct):
    messages: list[_Message]
    system: str | list[msgspec.Raw] | None = None
    stream: bool | None = None
    max_tokens: int | None = None
    temperature: float | None = None
    top_p: float | None = None
    top_k: int | None = None
    stop_sequences: list[str] | None = None
    thinking: _Thinking | None = None
    output_config: _OutputConfig | None = None
    output_format: _Format | None = None
    """Where `output_config.format` stood in its beta."""
    metadata: _Metadata | None = None
    service_tier: str | None = None


_REQUEST: Final = msgspec.json.Decoder(_Request)
_NAMES: Final = msgspec.json.Decoder(dict[str, msgspec.Raw])
_READ: Final = frozenset({"model", "tools", "tool_choice", *_Request.__struct_fields__})
_NO_OPS: Final = {
    "context_management": (b"{}", b'{"edits":[]}'),
    "fallbacks": (b"[]",),
    "mcp_servers": (b"[]",),
    "speed": (b'"standard"',),
}


def decode_request(document: JSONObject, ledger: Ledger, *, counting: bool = False) -> Conversation:
    """Reads a client's request; `counting`: one to count its tokens, which needs no `max_tokens`.

    Raises `ProtocolError` (400), with the JSON path of what is wrong as `param`.
    """
    request = read_json(_REQUEST, document.text)
    if request.max_tokens is None and not counting:
        raise invalid("$.max_tokens", "is required")
    if request.max_tokens is not None and request.max_tokens < 1:
        raise invalid("$.max_tokens", "must be at least 1")
    _note_unread(document, ledger)
    blocks = ContentReader(ledger)
    turns = _system(request.system, blocks, ledger) + _turns(request.messages, blocks)
    config = request.output_config or _OutputConfig()
    return Conversation(
        protocol=Protocol.MESSAGES,
        model=required_model(document),
        turns=tuple(turns),
        tools=tuple(read_tools(document.get("tools") or NULL, ledger)),
        tool_choice=read_tool_choice(document.get("tool_choice") or NULL),
        stream=bool(request.stream),
        max_output_tokens=request.max_tokens,
        temperature=request.temperature,
        top_p=request.top_p,
        top_k=request.top_k,
        stop=tuple(request.stop_sequences or ()),
        reasoning=_reasoning(request.thinking, config.effort, ledger),
        output=_format(config.format or request.output_format),
        user=None if request.metadata is None else request.metadata.user_id,
        service_tier=request.service_tier,
    )


def _note_unread(document: JSONObject, ledger: Ledger) -> None:
    found = [(f"$.{_shown(name)}", document.get(name) or NULL) for name in document.names if name not in _READ]
    inside = read_json(_NAMES, document.get("output_config") or b"{}") if document.get("output_config") != NULL else {}
    found += [
        (f"$.output_config.{_shown(name)}", bytes(value))
        for name, value in inside.items()
        if name not in _OutputConfig.__struct_fields__
    ]
    for path, value in found:
        if not is_one_of(value, (NULL, *_NO_OPS.get(path.removeprefix("$."), ()))):
            ledger.dropped(path, "has no place in the upstream's protocol")


def _shown(name: str) -> str:
    return name if len(name) <= _MOST_NAME else "*"  # a name may be a text; the ledger holds none


def _system(given: str | list[msgspec.Raw] | None, reader: ContentReader, ledger: Ledger) -> list[Turn]:
    at = "$.system"
    kept: list[Block] = []
    for block in reader.blocks(given or "", at):
        if not isinstance(block, Text):
            raise invalid(block.at, "a system prompt is made of text")
        kept += _without_billing(block, ledger)
    return [Turn(Role.SYSTEM, tuple(kept), at=at)] if kept else []


def _without_billing(block: Text, ledger: Ledger) -> list[Text]:
    if not block.text.startswith(BILLING_MARK):
        return [block]
    ledger.dropped(block.at, "a billing line that is addressed to Anthropic only")
    rest = block.text.partition("\n")[2].lstrip("\n")
    return [Text(rest, block.cache, at=block.at)] if rest else []


def _turns(messages: list[_Message], reader: ContentReader) -> list[Turn]:
    if not messages:
        raise invalid("$.messages", "must hold at least one message")
    turns = []
    called: set[str] = set()
    for place, message in enumerate(messages):
        at = f"$.messages[{place}]"
        role = _ROLES.get(message.role)
        if role is None:
            raise invalid(f"{at}.role", f"must be one of {', '.join(_ROLES)}")
        blocks = reader.blocks(message.content, f"{at}.content")
        for block in blocks:
            _check_place(role, block, called)
        turns.append(Turn(role, tuple(blocks), at=at))
    return turns


def _check_place(role: Role, block: Block, called: set[str]) -> None:
    """What Anthropic refuses too, and every other protocol has no form for."""
    match block:
        case Text():
            return
        case _ if role is Role.SYSTEM:
            raise invalid(block.at, "a system message is made of text")
        case ToolCall() | Reasoning() if role is Role.USER:
            raise invalid(block.at, "only the assistant thinks and calls tools")
        case ToolResult() if role is Role.ASSISTANT:
            raise invalid(block.at, "a tool_result stands in a message of the user")
        case ToolCall():
            called.add(block.id)
        case ToolResult() if block.call_id not in called:
            raise invalid(f"{block.at}.tool_use_id", "no tool_use before it has this id")


def _reasoning(asked: _Thinking | None, effort: str | None, ledger: Ledger) -> ReasoningRequest:
    known = None if effort is None else _EFFORTS.get(effort)
    if effort is not None and known is None:
        raise invalid("$.output_config.effort", f"must be one of {', '.join(_EFFORTS)}")
    if asked is None:
        return ReasoningRequest(effort=known)
    mode, budget = _mode(asked, ledger)
    summary = asked.display if asked.display in (None, "omitted") else "auto"
    return ReasoningRequest(mode, known, budget, summary)


def _mode(asked: _Thinking, ledger: Ledger) -> tuple[ThinkingMode, int | None]:
    match asked.type:
        case "enabled":
            if asked.budget_tokens is None or asked.budget_tokens < 1:
                raise invalid("$.thinking.budget_tokens", "must be a number of tokens")
            return ThinkingMode.ENABLED, asked.budget_tokens
        case "adaptive":
            return ThinkingMode.ADAPTIVE, None
        case "between_tools":
            ledger.add(Change.ALTERED, "$.thinking.type", "where the model thinks is left to it")
            return ThinkingMode.ADAPTIVE, None
        case "disabled":
            return ThinkingMode.OFF, None
        case _:
            raise invalid("$.thinking.type", "must be enabled, adaptive, between_tools or disabled")


def _format(asked: _Format | None) -> OutputFormat:
    if asked is None:
        return OutputFormat()
    schema = bytes(asked.schema)
    if asked.type != "json_schema" or not schema.startswith(b"{"):
        raise invalid("$.output_config.format", "must be of type json_schema, with a `schema` that is an object")
    return OutputFormat(OutputKind.JSON_SCHEMA, None, schema)
