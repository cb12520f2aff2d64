"""In which protocol a model is asked, and what is known of what it takes.

An upstream says it in its model list (`supported_endpoints`, `capabilities`: Copilot's record, wire.md 1.8); where a
list says nothing, the configuration of the upstream does. The client's own protocol is preferred, because it is exact.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Final, TypeVar

import msgspec
from attrs import field, frozen

from capi_core.errors import ProtocolError
from capi_core.members import decode
from capi_core.protocols.kinds import Protocol
from capi_core.target import ReasoningMember, Target, ThinkingSupport

if TYPE_CHECKING:
    from collections.abc import Mapping

__all__ = ["ModelFacts", "UpstreamTraits", "choose_protocol", "model_facts", "target_for"]

_T = TypeVar("_T")


@frozen
class UpstreamTraits:
    """What the configuration says of an upstream.

    `protocols`: those it speaks. `count_tokens`: it counts tokens for Messages. `strict_fidelity`: a translation that
    loses something is refused. `betas`: `anthropic-beta` values that go with every Messages request. `copilot`: it is
    GitHub Copilot, which wants to be told who began a request, and takes no item ids of other seats (wire.md 1.8).
    """

    protocols: tuple[Protocol, ...] = (Protocol.CHAT,)
    count_tokens: bool = False
    strict_fidelity: bool = False
    ask_usage: bool = True
    reasoning_member: ReasoningMember = ReasoningMember.NONE
    max_tokens_member: str = "max_completion_tokens"
    image_urls: bool = True
    betas: tuple[str, ...] = ()
    copilot: bool = False


@frozen
class ModelFacts:
    """What a model's record says. `protocols` empty: it says nothing about them."""

    protocols: tuple[Protocol, ...] = ()
    max_output_tokens: int | None = None
    thinking: ThinkingSupport = ThinkingSupport.UNKNOWN
    min_thinking_budget: int | None = None
    max_thinking_budget: int | None = None
    efforts: tuple[str, ...] | None = field(default=None)
    images: bool | None = None


class _Limits(msgspec.Struct):
    max_output_tokens: int | None = None


class _Supports(msgspec.Struct):
    vision: bool | None = None
    adaptive_thinking: bool | None = None
    thinking: bool | None = None
    max_thinking_budget: int | None = None
    min_thinking_budget: int | None = None
    reasoning_effort: tuple[str, ...] | bool | None = None


class _Capabilities(msgspec.Struct):
    limits: _Limits = msgspec.field(default_factory=_Limits)
    supports: _Supports = msgspec.field(default_factory=_Supports)


class _Record(msgspec.Struct):
    supported_endpoints: tuple[str, ...] | None = None
    max_tokens: int | None = None
    """Anthropic's model list: the most tokens an answer can have."""


class _CapableRecord(msgspec.Struct):
    capabilities: _Capabilities = msgspec.field(default_factory=_Capabilities)


_RECORD: Final = msgspec.json.Decoder(_Record)
_CAPABLE: Final = msgspec.json.Decoder(_CapableRecord)

_ENDPOINTS: Final[Mapping[str, Protocol]] = {
    "/chat/completions": Protocol.CHAT,
    "/v1/chat/completions": Protocol.CHAT,
    "/responses": Protocol.RESPONSES,
    "/v1/responses": Protocol.RESPONSES,
    "/v1/messages": Protocol.MESSAGES,
    "/messages": Protocol.MESSAGES,
}

_NEAREST: Final[Mapping[Protocol, tuple[Protocol, ...]]] = {
    Protocol.CHAT: (Protocol.CHAT, Protocol.RESPONSES, Protocol.MESSAGES),
    Protocol.RESPONSES: (Protocol.RESPONSES, Protocol.CHAT, Protocol.MESSAGES),
    Protocol.MESSAGES: (Protocol.MESSAGES, Protocol.RESPONSES, Protocol.CHAT),
}
"""For a client of a protocol, the upstream's protocols by how much of a request survives: Responses carries reasoning,
which Messages needs back; Chat has no place for it in general."""


def model_facts(record: bytes | None) -> ModelFacts:
    """Reads a model's raw record. What it does not say, or says in a shape that nobody knows, is unknown."""
    if not record:
        return ModelFacts()
    plain = _decoded(_RECORD, record) or _Record()
    capable = (_decoded(_CAPABLE, record) or _CapableRecord()).capabilities
    supports = capable.supports
    endpoints = plain.supported_endpoints or ()
    protocols = dict.fromkeys(_ENDPOINTS[endpoint] for endpoint in endpoints if endpoint in _ENDPOINTS)
    efforts = supports.reasoning_effort if isinstance(supports.reasoning_effort, tuple) else None
    return ModelFacts(
        protocols=tuple(protocols),
        max_output_tokens=_positive(capable.limits.max_output_tokens) or _positive(plain.max_tokens),
        thinking=_thinking(supports),
        min_thinking_budget=_positive(supports.min_thinking_budget),
        max_thinking_budget=_positive(supports.max_thinking_budget),
        efforts=efforts,
        images=supports.vision,
    )


def choose_protocol(client: Protocol, facts: ModelFacts, traits: UpstreamTraits) -> Protocol:
    """The protocol in which the upstream is asked: the client's own where the model is served in it, else the nearest.

    Raises `ProtocolError` (400, `model_not_served`) when the model is served in none that capi speaks.
    """
    served = facts.protocols or traits.protocols
    for protocol in _NEAREST[client]:
        if protocol in served:
            return protocol
    raise ProtocolError(
        "the upstream serves this model in no protocol that generates text; choose another model",
        code="model_not_served",
        param="model",
    )


def target_for(model: str, facts: ModelFacts, traits: UpstreamTraits) -> Target:
    """What a translated request is encoded for."""
    return Target(
        model=model,
        max_output_tokens=facts.max_output_tokens,
        thinking=facts.thinking,
        min_thinking_budget=facts.min_thinking_budget,
        max_thinking_budget=facts.max_thinking_budget,
        efforts=facts.efforts,
        images=facts.images,
        image_urls=traits.image_urls,
        reasoning_member=traits.reasoning_member,
        max_tokens_member=traits.max_tokens_member,
        ask_usage=traits.ask_usage,
    )


def _decoded(decoder: msgspec.json.Decoder[_T], record: bytes) -> _T | None:
    try:
        return decode(decoder, record)[0]
    except (msgspec.DecodeError, RecursionError, UnicodeError):
        return None


def _thinking(supports: _Supports) -> ThinkingSupport:
    if supports.adaptive_thinking:
        return ThinkingSupport.ADAPTIVE
    if supports.thinking or supports.max_thinking_budget:
        return ThinkingSupport.ENABLED
    return ThinkingSupport.UNKNOWN if supports.thinking is None else ThinkingSupport.NONE


def _positive(count: int | None) -> int | None:
    return count if count is not None and count > 0 else None
