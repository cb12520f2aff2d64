"""A request in no protocol's shape, as a Responses request.

Source: OpenAI API reference, "Create a model response"; wire.md 1.2, 1.5, 1.8. Stop sequences have no member in
Responses: `Conversation.stop` is left to the gateway, which cuts the text.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

import msgspec

from capi_core.conversation import (
    Conversation,
    OutputKind,
    Reasoning,
    Role,
    Text,
    ThinkingMode,
    Turn,
)
from capi_core.errors import ProtocolError
from capi_core.fidelity import Change, Ledger
from capi_core.protocols.codec import EncodedRequest
from capi_core.protocols.kinds import Protocol
from capi_core.protocols.openai_requests import short_identity, taken_effort, wanted_effort
from capi_core.protocols.responses.item_encoder import ItemEncoder
from capi_core.protocols.responses.tool_encoder import encode_tool_choice, encode_tools
from capi_core.protocols.writing import json_bytes
from capi_core.tool_names import ToolNames

if TYPE_CHECKING:
    from capi_core.target import Target

__all__ = ["encode_request"]

_FEWEST_TOKENS: Final = 16
"""The least `max_output_tokens` that OpenAI takes."""
_SUMMARIES: Final = ("auto", "concise", "detailed")
_VERBOSITIES: Final = ("low", "medium", "high")
_OPENAI: Final = (Protocol.CHAT, Protocol.RESPONSES)


def encode_request(conversation: Conversation, target: Target, ledger: Ledger) -> EncodedRequest:
    """The request for an upstream. Raises `ProtocolError` (400) when nothing is left that could be asked."""
    names = ToolNames()
    request: dict[str, object] = {"model": target.model}
    _put_turns(request, conversation, ItemEncoder(conversation, target, names, ledger))
    tools = encode_tools(conversation.tools, names, ledger)
    if tools:
        request["tools"] = tools
    encode_tool_choice(request, conversation, names, ledger)
    _put_limits(request, conversation, target, ledger)
    _put_reasoning(request, conversation, target, ledger)
    _put_text(request, conversation, ledger)
    _put_identity(request, conversation, ledger)
    request["store"] = False  # the gateway sends whole conversations; nobody could fetch or delete what is stored
    if conversation.stream:
        request["stream"] = True
    return EncodedRequest(json_bytes(request), names)


def _put_turns(request: dict[str, object], conversation: Conversation, encoder: ItemEncoder) -> None:
    """System turns at the start are the instructions; all others stay where they are."""
    leading = 0
    for turn in conversation.turns:
        if turn.role is not Role.SYSTEM or not all(isinstance(block, Text) for block in turn.blocks):
            break
        leading += 1
    items = [item for turn in conversation.turns[leading:] for item in encoder.items(turn)]
    if items:
        instructions = _instructions(conversation.turns[:leading], encoder)
        if instructions:
            request["instructions"] = instructions
    else:  # a request without input is refused: then the system's words are the input
        items = [item for turn in conversation.turns[:leading] for item in encoder.items(turn)]
    if not items:
        raise ProtocolError("nothing is left of the conversation to ask the model", code="empty_conversation")
    request["input"] = items


def _instructions(turns: tuple[Turn, ...], encoder: ItemEncoder) -> str:
    blocks = [block for turn in turns for block in turn.blocks if isinstance(block, Text)]
    for block in blocks:
        encoder.note_cache(block.cache, block.at)
    return "\n\n".join(block.text for block in blocks if block.text)


def _put_limits(request: dict[str, object], conversation: Conversation, target: Target, ledger: Ledger) -> None:
    limit = conversation.max_output_tokens
    if limit is not None:
        most = target.max_output_tokens
        taken = max(limit if most is None else min(limit, most), _FEWEST_TOKENS)
        if taken != limit:
            ledger.add(Change.ALTERED, "$.max_output_tokens", f"the model takes {_FEWEST_TOKENS} to {most or 'any'}")
        request["max_output_tokens"] = taken
    for name, value in (("temperature", conversation.temperature), ("top_p", conversation.top_p)):
        if value is not None and target.sampling:
            request[name] = value
        elif value is not None:
            ledger.dropped(f"$.{name}", "the model takes no sampling parameters")
    if conversation.top_k is not None:
        ledger.dropped("$.top_k", "Responses has no top_k")


def _put_reasoning(request: dict[str, object], conversation: Conversation, target: Target, ledger: Ledger) -> None:
    asked = conversation.reasoning
    thinks = asked.mode in (ThinkingMode.ENABLED, ThinkingMode.ADAPTIVE)
    members: dict[str, object] = {}
    effort = taken_effort(wanted_effort(asked, ledger), target, ledger)
    if effort is not None:
        members["effort"] = effort.value
    summary = asked.summary or ("auto" if thinks else None)  # who turns thinking on expects to read it
    if summary in _SUMMARIES:
        members["summary"] = summary
    if members:
        request["reasoning"] = members
    if asked.encrypted or thinks or _replays(conversation):
        request["include"] = ["reasoning.encrypted_content"]


def _replays(conversation: Conversation) -> bool:
    """Whether reasoning is given back: then the next answer's is wanted too."""
    return any(
        isinstance(block, Reasoning) and block.signature is not None and block.signature.origin is Protocol.RESPONSES
        for turn in conversation.turns
        for block in turn.blocks
    )


def _put_text(request: dict[str, object], conversation: Conversation, ledger: Ledger) -> None:
    members: dict[str, object] = {}
    output = conversation.output
    if output.kind is OutputKind.JSON_OBJECT:
        members["format"] = {"type": "json_object"}
    elif output.kind is OutputKind.JSON_SCHEMA:
        if not output.name:
            ledger.add(Change.DEFAULTED, "$.output.name", "Responses wants a name for a schema")
        schema: dict[str, object] = {
            "type": "json_schema",
            "name": output.name or "answer",
            "schema": msgspec.Raw(output.schema or b"{}"),
        }
        if output.strict is not None:
            schema["strict"] = output.strict
        if output.description is not None:
            schema["description"] = output.description
        members["format"] = schema
    if conversation.verbosity in _VERBOSITIES:
        members["verbosity"] = conversation.verbosity
    elif conversation.verbosity is not None:
        ledger.dropped("$.verbosity", f"Responses has {', '.join(_VERBOSITIES)}")
    if members:
        request["text"] = members


def _put_identity(request: dict[str, object], conversation: Conversation, ledger: Ledger) -> None:
    if conversation.user:
        request["safety_identifier"] = short_identity(conversation.user, "$.user", ledger)
    if conversation.cache_key:
        request["prompt_cache_key"] = short_identity(conversation.cache_key, "$.prompt_cache_key", ledger)
    if conversation.metadata is not None:
        request["metadata"] = msgspec.Raw(conversation.metadata)
    if conversation.service_tier is not None:
        if conversation.protocol in _OPENAI or conversation.service_tier == "auto":
            request["service_tier"] = conversation.service_tier
        else:
            ledger.dropped("$.service_tier", "the tiers of another provider mean nothing here")
