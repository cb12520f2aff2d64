"""Whom one request asks, and whom next: the model's upstream, then the fallbacks that the operator gave the alias.

A fallback is asked when the upstream before it failed, or refused for reasons of its own, and the client has nothing of
an answer yet. What a client did wrong is wrong everywhere: that is never asked twice.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

from attrs import field, frozen

from capi_core.aliases import Catalog, MayCall, anybody
from capi_core.commands import ExchangeLimits, Failure, Operation
from capi_core.counting import estimate_request
from capi_core.errors import ProtocolError
from capi_core.planning import Plan, Planner
from capi_core.protocols import embeddings
from capi_core.protocols.kinds import Protocol
from capi_core.protocols.registry import CODECS
from capi_core.routing import UpstreamTraits, model_facts

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

    from capi_core.aliases import Resolution
    from capi_core.members import JSONObject
    from capi_core.protocols.codec import ClientRequest
    from capi_core.protocols.embeddings import EmbeddingsRequest

__all__ = ["Attempts", "Settings", "may_fall_back"]

_UPSTREAMS_OWN: Final = frozenset({401, 402, 407, 408, 429})
"""Statuses below 500 that are about the upstream or the gateway's account there, not about the request."""
_LASTING: Final = frozenset({Failure.SHUTDOWN, Failure.INTERNAL})


def may_fall_back(why: int | Failure) -> bool:
    """Whether another upstream could do better, after a status or a failure of this one."""
    if isinstance(why, Failure):
        return why not in _LASTING
    return why >= 500 or why in _UPSTREAMS_OWN


def _nothing() -> tuple[bytes, ...]:
    return ()


@frozen
class Settings:
    """What an exchange is judged by, besides its request. The same for many requests.

    `traits`: what the configuration says of each upstream. `may_call`: the caller's scope. `hidden`: the secrets of
    the moment, as bytes, that must not reach the client inside an upstream's error text. `count_tokens`: the answer to
    a request for a count that no upstream gives; it gets the request and the upstream's name for the model, and raises
    `ProtocolError` (400).
    """

    catalog: Catalog
    traits: Mapping[str, UpstreamTraits] = field(factory=dict)
    may_call: MayCall = anybody
    limits: ExchangeLimits = field(factory=ExchangeLimits)
    hidden: Callable[[], tuple[bytes, ...]] = field(default=_nothing, repr=False)
    count_tokens: Callable[[JSONObject, str], bytes] = estimate_request


class Attempts:
    """The attempts at one request.

    `model`: the name in the client's request, once it is read. `resolution`: where it leads at present. `failed`: the
    upstreams that were asked before, in order.
    """

    def __init__(self, operation: Operation, settings: Settings, planner: Planner) -> None:
        self.model: str | None = None
        self.resolution: Resolution | None = None
        self.failed: tuple[str, ...] = ()
        self._operation = operation
        self._settings = settings
        self._planner = planner
        self._request: ClientRequest | EmbeddingsRequest | None = None
        self._spare: list[Resolution] = []

    def first(self, body: bytes) -> Plan | bytes:
        """What to ask, or the answer itself where no upstream has to be asked. Raises `ProtocolError`."""
        request: ClientRequest | EmbeddingsRequest
        if self._operation is Operation.EMBEDDINGS:
            request = embeddings.decode_request(body)
        else:
            request = CODECS[self._operation.protocol].read(body)
        self.model, self._request = request.model, request
        resolution = self._settings.catalog.resolve(request.model, self._settings.may_call)
        self.resolution, self._spare = resolution, list(resolution.fallbacks)
        return self._plan(request, resolution)

    def next(self) -> Plan | None:
        """What to ask instead; `None` when there is nobody else who could be asked this."""
        while self._spare and self._request is not None and self.resolution is not None:
            resolution = self._spare.pop(0)
            try:
                plan = self._plan(self._request, resolution)
            except ProtocolError:  # not there: it speaks too little for this request
                continue
            if isinstance(plan, Plan):
                self.failed = (*self.failed, self.resolution.upstream)
                self.resolution = resolution
                return plan
        return None

    def _plan(self, request: ClientRequest | EmbeddingsRequest, resolution: Resolution) -> Plan | bytes:
        if isinstance(request, embeddings.EmbeddingsRequest):
            return self._planner.plan_embeddings(request, resolution)
        settings = self._settings
        traits = settings.traits.get(resolution.upstream, UpstreamTraits())
        record = settings.catalog.record(resolution.upstream, resolution.upstream_model)
        if self._operation is not Operation.COUNT_TOKENS:
            return self._planner.plan(self._operation.protocol, request, resolution, record, traits)
        if traits.count_tokens and Protocol.MESSAGES in (model_facts(record).protocols or traits.protocols):
            return self._planner.pass_count(request, resolution, traits)
        return settings.count_tokens(request.document, resolution.upstream_model)
