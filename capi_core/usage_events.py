"""The row that each request to a model leaves behind: who asked whom, how it ended, how long it took, what it cost.

Nothing in it is text that a client or a model wrote, but for the name of a model, which is bounded and only kept when
it is one of the gateway's own.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from attrs import frozen

if TYPE_CHECKING:
    from capi_core.commands import Operation, Outcome
    from capi_core.protocols.kinds import Protocol
    from capi_core.usage import Usage, UsageSource

__all__ = ["UsageEvent"]


@frozen(kw_only=True)
class UsageEvent:
    """One request. `None`: it never came to that, or nobody told.

    `ts_ms`: when it began, milliseconds since epoch. `model`: the alias or listed name that the client called.
    `failed_upstreams`: how many were asked before `upstream`, to no avail. Durations are in ms: `ttft_ms` to the first
    event of the answer, `latency_ms` to its end, `queue_ms` for a slot. `losses`: what a translation lost.
    `cost_micros`: at the prices of that moment, in millionths of a US dollar.
    """

    ts_ms: int
    request_id: str
    key_id: str
    owner: str | None = None
    identity: str | None = None
    operation: Operation
    transport: str
    stream: bool
    upstream: str | None = None
    upstream_protocol: Protocol | None = None
    model: str | None = None
    upstream_model: str | None = None
    usage: Usage | None = None
    usage_source: UsageSource
    status: int | None = None
    outcome: Outcome
    ttft_ms: float | None = None
    latency_ms: float
    queue_ms: float | None = None
    losses: int = 0
    failed_upstreams: int = 0
    cost_micros: int | None = None
