"""A Responses request in no protocol's shape.

Source: OpenAI API reference, "Create a model response"; wire.md 1.2, 1.5. Members without a place in a `Conversation`
are noted in the ledger unless their value changes nothing; what must not be left out unsaid is refused as
`untranslatable`.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

import msgspec

from capi_core.conversation import (
    Conversation,
    Effort,
    OutputFormat,
    OutputKind,
    ReasoningRequest,
    Role,
    Text,
    ThinkingMode,
    Turn,
)
from capi_core.protocols.kinds import Protocol
from capi_core.protocols.openai import required_model
from capi_core.protocols.reading import invalid, read_json, untranslatable
from capi_core.protocols.responses.input_items import read_input
from capi_core.protocols.responses.tool_decoder import read_additional_tools, read_tool_choice, read_tools

if TYPE_CHECKING:
    from capi_core.fidelity import Ledger
    from capi_core.members import JSONObject

__all__ = ["decode_request"]

_NULL: Final = b"null"
_ENCRYPTED: Final = "reasoning.encrypted_content"
_EFFORTS: Final = {effort.value: effort for effort in Effort}
_KINDS: Final = {kind.value: kind for kind in OutputKind}
_MOST_NAME: Final = 64


class _Reasoning(msgspec.Struct):
    effort: str | None = None
    summary: str | None = None
    generate_summary: str | None = None
    context: str | None = None
    mode: str | None = None


class _Format(msgspec.Struct):
    type: str
    name: str | None = None
    schema: msgspec.Raw = msgspec.Raw()
    strict: bool | None = None
    description: str | None = None


class _TextConfig(msgspec.Struct):
    format: _Format | None = None
    verbosity: str | None = None


class _Request(msgspec.Struct):
    instructions: str | None = None
    stream: bool | None = None
    max_output_tokens: int | None = None
    temperature: float | None = None
    top_p: float | None = None
    parallel_tool_calls: bool | None = None
    include: list[str] | None = None
    reasoning: _Reasoning | None = None
    text: _TextConfig | None = None
    metadata: dict[str, str] | None = None
    prompt_cache_key: str | None = None
    safety_identifier: str | None = None
    user: str | None = None
    service_tier: str | None = None


_REQUEST: Final = msgspec.json.Decoder(_Request)

_READ: Final = frozenset({"model", "input", "tools", "tool_choice", *_Request.__struct_fields__})
_UNSAID: Final = frozenset({"stream_options", "client_metadata", "generate"})
"""About the connection or the client itself, not about the answer: nothing is lost with them."""

_NEEDS_STATE: Final = {
    "previous_response_id": "send the whole conversation as `input`",
    "conversation": "send the whole conversation as `input`",
    "prompt": "send the prompt's text as `instructions` and `input`",
    "background": "leave `background` out and read the answer as a stream",
}
_NO_OPS: Final = {
    "background": (b"false",),
    "max_tool_calls": (),
    "moderation": (),
    "store": (b"false",),
    "top_logprobs": (b"0",),
    "truncation": (b'"disabled"',),
}


def decode_request(document: JSONObject, ledger: Ledger) -> Conversation:
    """Reads a client's request. Raises `ProtocolError` (400), with the JSON path of what is wrong as `param`."""
    request = read_json(_REQUEST, document.text)
    _check_state(document)
    _note_unread(document, ledger)
    items = document.get("input") or b"[]"
    turns = read_input(items, ledger)
    if request.instructions:
        at = "$.instructions"
        turns.insert(0, Turn(Role.SYSTEM, (Text(request.instructions, at=at),), at=at))
    if not turns:
        raise invalid("$.input", "must hold at least one message")
    tools = read_tools(document.get("tools") or _NULL, ledger) + read_additional_tools(items, ledger)
    choice = document.get("tool_choice") or _NULL
    text = request.text or _TextConfig()
    return Conversation(
        protocol=Protocol.RESPONSES,
        model=required_model(document),
        turns=tuple(turns),
        tools=tuple(tools),
        tool_choice=read_tool_choice(choice, tools, request.parallel_tool_calls, ledger),
        stream=bool(request.stream),
        max_output_tokens=request.max_output_tokens,
        temperature=request.temperature,
        top_p=request.top_p,
        reasoning=_reasoning(request, ledger),
        output=_format(text.format),
        verbosity=text.verbosity,
        user=request.safety_identifier or request.user,
        cache_key=request.prompt_cache_key,
        service_tier=request.service_tier,
        metadata=document.get("metadata") if request.metadata is not None else None,
    )


def _check_state(document: JSONObject) -> None:
    for name, advice in _NEEDS_STATE.items():
        value = document.get(name)
        if value is not None and value != _NULL and value not in _NO_OPS.get(name, ()):
            raise untranslatable(name, f"`{name}` needs a provider's stored state, which this upstream lacks: {advice}")


def _note_unread(document: JSONObject, ledger: Ledger) -> None:
    for name in document.names:
        if name in _READ or name in _UNSAID or name in _NEEDS_STATE:
            continue
        value = document.get(name)
        if value != _NULL and value not in _NO_OPS.get(name, ()):
            shown = name if len(name) <= _MOST_NAME else "*"  # a name may be a text; the ledger holds none
            ledger.dropped(f"$.{shown}", "has no place in the upstream's protocol")


def _reasoning(request: _Request, ledger: Ledger) -> ReasoningRequest:
    encrypted = _ENCRYPTED in (request.include or ())
    for place, wanted in enumerate(request.include or ()):
        if wanted != _ENCRYPTED:
            ledger.dropped(f"$.include[{place}]", "the upstream's protocol cannot be asked for this")
    asked = request.reasoning
    if asked is None:
        return ReasoningRequest(encrypted=encrypted)
    effort = None
    if asked.effort is not None:
        effort = _EFFORTS.get(asked.effort)
        if effort is None:
            raise invalid("$.reasoning.effort", f"must be one of {', '.join(_EFFORTS)}")
    if asked.context not in (None, "auto"):
        ledger.dropped("$.reasoning.context", "has no place in the upstream's protocol")
    if asked.mode not in (None, "standard"):
        ledger.dropped("$.reasoning.mode", "has no place in the upstream's protocol")
    mode = ThinkingMode.OFF if effort is Effort.NONE else ThinkingMode.DEFAULT
    return ReasoningRequest(mode, effort, None, asked.summary or asked.generate_summary, encrypted)


def _format(asked: _Format | None) -> OutputFormat:
    if asked is None:
        return OutputFormat()
    kind = _KINDS.get(asked.type)
    if kind is None:
        raise invalid("$.text.format.type", f"must be one of {', '.join(_KINDS)}")
    if kind is not OutputKind.JSON_SCHEMA:
        return OutputFormat(kind)
    schema = bytes(asked.schema)
    if not schema.startswith(b"{"):
        raise invalid("$.text.format.schema", "must be an object")
    return OutputFormat(kind, asked.name, schema, asked.strict, asked.description)
