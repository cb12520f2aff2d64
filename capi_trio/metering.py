"""From how a request went to the row that it leaves behind."""

from __future__ import annotations

from typing import TYPE_CHECKING

from capi_core.usage_events import UsageEvent

if TYPE_CHECKING:
    from capi_core.keys import KeyRecord
    from capi_trio.relay import RelayResult
    from capi_trio.request import Call

__all__ = ["usage_event"]


def usage_event(call: Call, key: KeyRecord, result: RelayResult, *, began_ms: int) -> UsageEvent:
    """The row of a request that has ended. `began_ms`: when it began, milliseconds since epoch.

    The name of a model is kept only when it led somewhere: a name that does not is whatever a client has typed.
    """
    record = result.record
    known = record.upstream is not None
    return UsageEvent(
        ts_ms=began_ms,
        request_id=call.id,
        key_id=key.id,
        owner=key.owner,
        identity=result.identity,
        operation=record.operation,
        transport=call.transport,
        stream=record.stream,
        upstream=record.upstream,
        upstream_protocol=record.upstream_protocol,
        model=record.model if known else None,
        upstream_model=record.upstream_model,
        usage=record.usage,
        usage_source=record.usage_source,
        status=record.status,
        outcome=record.outcome,
        ttft_ms=result.first_byte_ms,
        latency_ms=result.latency_ms,
        queue_ms=result.queue_ms,
        losses=record.losses,
        failed_upstreams=len(record.failed_upstreams),
    )
