"""A request in no protocol's shape, as a Messages request.

Source: Anthropic API reference, "Create a Message"; wire.md 1.3, 1.5, 1.8. It is written for `anthropic-version`
2023-06-01: newer ones take no sampling parameters.
"""

from __future__ import annotations

import hashlib
from typing import TYPE_CHECKING, Final

import msgspec

from capi_core.conversation import Conversation, OutputKind
from capi_core.fidelity import Change, Ledger
from capi_core.protocols.codec import EncodedRequest
from capi_core.protocols.kinds import Protocol
from capi_core.protocols.messages.cache_marks import CacheMarks, trim
from capi_core.protocols.messages.content_encoder import ContentEncoder
from capi_core.protocols.messages.thinking_encoder import put_thinking
from capi_core.protocols.messages.tool_encoder import ToolEncoder
from capi_core.protocols.messages.turn_encoder import TurnEncoder, plain
from capi_core.protocols.writing import json_bytes
from capi_core.tool_names import ToolNames

if TYPE_CHECKING:
    from capi_core.target import Target

__all__ = ["DEFAULT_MAX_TOKENS", "encode_request"]

DEFAULT_MAX_TOKENS: Final = 8192
"""`max_tokens` when neither the sender nor the target says: all models that are served today take it."""

_MOST_USER_ID: Final = 256
"""Characters of `metadata.user_id`."""
_LEAST_TOP_P: Final = 0.95
"""The least `top_p` that goes with thinking."""
_TIERS: Final = {"auto": "auto", "default": "standard_only"}


def encode_request(conversation: Conversation, target: Target, ledger: Ledger) -> EncodedRequest:
    """The request for an upstream. Raises `ProtocolError` (400) when nothing is left that could be asked, and for
    images that the target does not take."""
    names = ToolNames()
    tool_marks, marks = CacheMarks(ledger), CacheMarks(ledger)
    tools = ToolEncoder(conversation, names, tool_marks, ledger)
    turns = TurnEncoder(conversation, ContentEncoder(conversation, target, names, marks, ledger), ledger)
    limit = _max_tokens(conversation, target, ledger)
    request: dict[str, object] = {"model": target.model, "max_tokens": limit}
    config: dict[str, object] = {}
    thinks = put_thinking(request, config, conversation, target, turns.messages, limit, ledger)
    tools.put(request, thinks=thinks)
    trim((tool_marks, marks), ledger)
    if turns.system:
        request["system"] = plain(turns.system)
    request["messages"] = [message.encoded() for message in turns.messages]
    _put_sampling(request, conversation, target, ledger, thinks=thinks)
    _put_stop(request, conversation, ledger)
    _put_format(config, conversation, ledger)
    if config:
        request["output_config"] = config
    _put_identity(request, conversation, ledger)
    _note_homeless(conversation, ledger)
    if conversation.stream:
        request["stream"] = True
    return EncodedRequest(json_bytes(request), names)


def _max_tokens(conversation: Conversation, target: Target, ledger: Ledger) -> int:
    wanted, most = conversation.max_output_tokens, target.max_output_tokens
    if wanted is None:
        ledger.add(Change.DEFAULTED, "$.max_tokens", "Anthropic requires a limit: the model's, or one that all take")
        return most or DEFAULT_MAX_TOKENS
    taken = max(wanted if most is None else min(wanted, most), 1)
    if taken != wanted:
        ledger.add(Change.ALTERED, "$.max_tokens", f"the model takes 1 to {most or 'any'}")
    return taken


def _put_sampling(
    request: dict[str, object], conversation: Conversation, target: Target, ledger: Ledger, *, thinks: bool
) -> None:
    temperature, top_p, top_k = conversation.temperature, conversation.top_p, conversation.top_k
    if temperature is not None and temperature > 1:
        ledger.add(Change.ALTERED, "$.temperature", "Anthropic takes 0 to 1")
        temperature = 1.0
    native = conversation.protocol is Protocol.MESSAGES
    refusals = {
        "temperature": "a model that thinks takes no temperature" if thinks else None,
        "top_p": _top_p_refusal(top_p, thinks=thinks, alone=native or temperature is None),
        "top_k": "a model that thinks takes no top_k" if thinks else None,
    }
    for name, value in (("temperature", temperature), ("top_p", top_p), ("top_k", top_k)):
        if value is None:
            continue
        why = refusals[name] if target.sampling else "the model takes no sampling parameters"
        if why is None:
            request[name] = value
        elif (name, value) not in (("temperature", 1), ("top_p", 1)):  # their defaults say nothing
            ledger.dropped(f"$.{name}", why)


def _top_p_refusal(top_p: float | None, *, thinks: bool, alone: bool) -> str | None:
    if thinks and (top_p or 0) < _LEAST_TOP_P:
        return f"a model that thinks takes top_p from {_LEAST_TOP_P} only"
    return None if alone else "models take a temperature or a top_p, not both"


def _put_stop(request: dict[str, object], conversation: Conversation, ledger: Ledger) -> None:
    kept = []
    for place, stop in enumerate(conversation.stop):
        if stop.strip():
            kept.append(stop)
        else:
            ledger.dropped(f"$.stop[{place}]", "Anthropic takes no stop sequence of white space")
    if kept:
        request["stop_sequences"] = kept


def _put_format(config: dict[str, object], conversation: Conversation, ledger: Ledger) -> None:
    output = conversation.output
    if output.kind is OutputKind.JSON_SCHEMA:
        config["format"] = {"type": "json_schema", "schema": msgspec.Raw(output.schema or b"{}")}
    elif output.kind is OutputKind.JSON_OBJECT:
        ledger.dropped("$.output", "Anthropic has no JSON mode without a schema: the prompt alone asks for JSON")


def _put_identity(request: dict[str, object], conversation: Conversation, ledger: Ledger) -> None:
    user, tier = conversation.user, conversation.service_tier
    if user and len(user) > _MOST_USER_ID:
        ledger.add(Change.ALTERED, "$.user", f"longer than {_MOST_USER_ID} characters: a digest is sent")
        user = hashlib.sha256(user.encode("utf-8", "replace")).hexdigest()
    if user:
        request["metadata"] = {"user_id": user}
    if tier is None:
        return
    known = tier if conversation.protocol is Protocol.MESSAGES else _TIERS.get(tier)
    if known is not None:
        request["service_tier"] = known
    else:
        ledger.dropped("$.service_tier", "the tiers of another provider mean nothing here")


def _note_homeless(conversation: Conversation, ledger: Ledger) -> None:
    for name, value, why in (
        ("verbosity", conversation.verbosity, "Messages has no verbosity"),
        ("prompt_cache_key", conversation.cache_key, "Anthropic caches by marks in the prompt, not by a key"),
        ("metadata", conversation.metadata, "Messages has no metadata but the user's id"),
    ):
        if value is not None:
            ledger.dropped(f"$.{name}", why)
