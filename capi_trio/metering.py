"""From how a request went to the row that it leaves behind."""

from __future__ import annotations

from typing import TYPE_CHECKING, Final, Protocol

from attrs import evolve

from capi_core.commands import Operation, Outcome
from capi_core.price_table import DEFAULT_PRICES
from capi_core.prices import Prices
from capi_core.usage_events import UsageEvent

if TYPE_CHECKING:
    from collections.abc import Callable

    from capi_core.config import Config
    from capi_core.keys import KeyRecord
    from capi_trio.relay import RelayResult
    from capi_trio.request import Call

__all__ = ["Meter", "Note", "usage_event"]

_ANSWERED: Final = frozenset({Outcome.OK, Outcome.CLIENT_GONE})
"""Ends of which the first byte was the model's, and not a refusal's."""


def usage_event(call: Call, key: KeyRecord, result: RelayResult, *, began_ms: int) -> UsageEvent:
    """The row of a request that has ended. `began_ms`: when it began, milliseconds since epoch.

    An upstream that was meant and not asked, because the client left the queue, is none.
    """
    record = result.record
    return UsageEvent(
        ts_ms=began_ms,
        request_id=call.id,
        key_id=key.id,
        owner=key.owner,
        identity=result.identity,
        operation=record.operation,
        transport=call.transport,
        stream=record.stream,
        upstream=record.upstream if result.asked else None,
        upstream_protocol=record.upstream_protocol if result.asked else None,
        model=record.model,
        upstream_model=record.upstream_model,
        usage=record.usage,
        usage_source=record.usage_source,
        status=record.status,
        outcome=record.outcome,
        ttft_ms=result.first_byte_ms if record.outcome in _ANSWERED else None,
        latency_ms=result.latency_ms,
        queue_ms=result.queue_ms,
        losses=record.losses,
        failed_upstreams=len(record.failed_upstreams),
    )


def _is_a_request(event: UsageEvent) -> bool:
    """Whether a plan that is paid by the request counts it, without knowing of its tokens. Counting them is free."""
    return event.outcome is Outcome.OK and event.operation is not Operation.COUNT_TOKENS


class Note(Protocol):
    """What is done with the row of a request, as `Meter.note` does it."""

    def __call__(self, event: UsageEvent, *, named: bool) -> UsageEvent: ...


class Meter:
    """Puts its cost on each row, at the prices of the moment, and hands it on; nothing while telemetry is off.

    A name that is neither an alias nor the upstream's own gives way to the upstream's: the place of any name may be
    taken by the default model, and another spelling of a listed name leaves a client room for words of its own.
    """

    def __init__(self, config: Config, note: Callable[[UsageEvent], None]) -> None:
        self._hand_on = note
        self._on = True
        self._aliases: frozenset[str] = frozenset()
        self._prices = DEFAULT_PRICES
        self.set_config(config)

    def set_config(self, config: Config) -> None:
        """Goes on with other prices and aliases."""
        self._on = config.features.telemetry
        self._aliases = frozenset(config.models)
        self._prices = Prices.configured(config.prices, DEFAULT_PRICES)

    def note(self, event: UsageEvent, *, named: bool) -> UsageEvent:
        """A request has ended. Returns its row, with its cost.

        `named`: the model's names are the operator's or an upstream's; any other is what a client has typed, and is
        not kept.
        """
        if event.model not in (None, event.upstream_model) and event.model not in self._aliases:
            event = evolve(event, model=event.upstream_model)
        if event.upstream_model is not None and (event.usage is not None or _is_a_request(event)):
            event = evolve(event, cost_micros=self._prices.cost(event.usage, event.upstream_model))
        if not named:
            event = evolve(event, model=None, upstream_model=None)
        if self._on:
            self._hand_on(event)
        return event
