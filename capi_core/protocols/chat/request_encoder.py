"""A request in no protocol's shape, as a Chat Completions request.

Source: OpenAI API reference, "Create chat completion"; wire.md 1.1, 1.5, 1.8. Of more than four stop sequences the
first four are sent; the gateway itself cuts the text at all of them.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

import msgspec

from capi_core.conversation import Conversation, OutputKind
from capi_core.errors import ProtocolError
from capi_core.fidelity import Change, Ledger
from capi_core.protocols.chat.message_encoder import MessageEncoder
from capi_core.protocols.chat.tool_encoder import put_tool_choice, put_tools
from capi_core.protocols.codec import EncodedRequest
from capi_core.protocols.kinds import Protocol
from capi_core.protocols.openai_requests import short_identity, taken_effort, wanted_effort
from capi_core.protocols.writing import json_bytes
from capi_core.tool_names import ToolNames

if TYPE_CHECKING:
    from capi_core.target import Target

__all__ = ["MOST_STOPS", "encode_request"]

MOST_STOPS: Final = 4
"""Stop sequences that Chat takes."""
_VERBOSITIES: Final = ("low", "medium", "high")
_OPENAI: Final = (Protocol.CHAT, Protocol.RESPONSES)


def encode_request(conversation: Conversation, target: Target, ledger: Ledger) -> EncodedRequest:
    """The request for an upstream. Raises `ProtocolError` (400) when nothing is left that could be asked, and for
    images that the model does not take."""
    names = ToolNames()
    request: dict[str, object] = {"model": target.model, "messages": []}
    put_tools(request, conversation.tools, names, ledger)  # before past calls, which may not say of what kind a tool is
    request["messages"] = MessageEncoder(conversation, target, names, ledger).messages
    if not request["messages"]:
        raise ProtocolError("nothing is left of the conversation to ask the model", code="empty_conversation")
    put_tool_choice(request, conversation.tool_choice, conversation.tools, names, ledger)
    _put_limits(request, conversation, target, ledger)
    _put_output(request, conversation, target, ledger)
    _put_identity(request, conversation, ledger)
    if conversation.stream:
        request["stream"] = True
        if target.ask_usage:
            request["stream_options"] = {"include_usage": True}
    return EncodedRequest(json_bytes(request), names)


def _put_limits(request: dict[str, object], conversation: Conversation, target: Target, ledger: Ledger) -> None:
    limit, most = conversation.max_output_tokens, target.max_output_tokens
    if limit is not None:
        taken = limit if most is None else min(limit, most)
        if taken != limit:
            ledger.add(Change.ALTERED, "$.max_output_tokens", f"the model gives {most} tokens at most")
        request[target.max_tokens_member] = taken
    for name, value in (("temperature", conversation.temperature), ("top_p", conversation.top_p)):
        if value is not None and target.sampling:
            request[name] = value
        elif value is not None:
            ledger.dropped(f"$.{name}", "the model takes no sampling parameters")
    if conversation.top_k is not None:
        ledger.dropped("$.top_k", "Chat has no top_k")
    stop = [sequence for sequence in conversation.stop if sequence]
    if stop:
        request["stop"] = stop[:MOST_STOPS]


def _put_output(request: dict[str, object], conversation: Conversation, target: Target, ledger: Ledger) -> None:
    effort = taken_effort(wanted_effort(conversation.reasoning, ledger), target, ledger)
    if effort is not None:
        request["reasoning_effort"] = effort.value
    output = conversation.output
    if output.kind is OutputKind.JSON_OBJECT:
        request["response_format"] = {"type": "json_object"}
    elif output.kind is OutputKind.JSON_SCHEMA:
        if not output.name:
            ledger.add(Change.DEFAULTED, "$.output.name", "Chat wants a name for a schema")
        schema: dict[str, object] = {"name": output.name or "answer", "schema": msgspec.Raw(output.schema or b"{}")}
        if output.strict is not None:
            schema["strict"] = output.strict
        if output.description is not None:
            schema["description"] = output.description
        request["response_format"] = {"type": "json_schema", "json_schema": schema}
    if conversation.verbosity in _VERBOSITIES:
        request["verbosity"] = conversation.verbosity
    elif conversation.verbosity is not None:
        ledger.dropped("$.verbosity", f"Chat has {', '.join(_VERBOSITIES)}")


def _put_identity(request: dict[str, object], conversation: Conversation, ledger: Ledger) -> None:
    if conversation.user:
        request["user"] = short_identity(conversation.user, "$.user", ledger)
    if conversation.cache_key:
        request["prompt_cache_key"] = short_identity(conversation.cache_key, "$.prompt_cache_key", ledger)
    if conversation.metadata is not None:
        ledger.dropped("$.metadata", "OpenAI takes it in Chat for answers that are stored, and none is")
    if conversation.service_tier is not None:
        if conversation.protocol in _OPENAI or conversation.service_tier == "auto":
            request["service_tier"] = conversation.service_tier
        else:
            ledger.dropped("$.service_tier", "the tiers of another provider mean nothing here")
