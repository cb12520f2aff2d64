"""Requests to record, and a database that stores them in memory."""

from __future__ import annotations

import math
from collections.abc import Callable
from itertools import count

import trio
from attrs import evolve

from capi_core.commands import Operation, Outcome
from capi_core.protocols.kinds import Protocol
from capi_core.rollups import UsageRollup
from capi_core.usage import Usage, UsageSource
from capi_core.usage_events import UsageEvent
from capi_trio.recorder import Recorder, RecorderOptions
from capi_trio.storage.usage import UsageBatch

__all__ = ["MINUTE", "FakeSink", "recorder_of", "refusal", "usage_event"]

MINUTE = 1_790_000_040_000
"""The start of a minute in September 2026, in ms since the epoch."""

_PLAIN = UsageEvent(
    ts_ms=MINUTE + 1,
    request_id="req_0",
    key_id="key_a",
    owner="Ann",
    identity="seat",
    operation=Operation.MESSAGES,
    transport="http",
    stream=True,
    upstream="copilot",
    upstream_protocol=Protocol.CHAT,
    model="fast",
    upstream_model="gpt-4.1",
    usage=Usage(uncached_input=100, cache_read=20, cache_write=3, output=40, reasoning=5),
    usage_source=UsageSource.UPSTREAM_FINAL,
    status=200,
    outcome=Outcome.OK,
    ttft_ms=120.4,
    latency_ms=900.6,
    queue_ms=0.2,
    losses=1,
    failed_upstreams=2,
    cost_micros=777,
)


def usage_event(number: object = 0, **changes: object) -> UsageEvent:
    """A request with everything told, `req_<number>`, but for what is given."""
    return evolve(_PLAIN, request_id=f"req_{number}", **changes)  # type: ignore[arg-type]  # the caller's names


def refusal(number: int = 0, **changes: object) -> UsageEvent:
    """A request that was refused before it came to an upstream."""
    nothing: dict[str, object] = dict.fromkeys(
        ("identity", "upstream", "upstream_protocol", "upstream_model", "usage", "ttft_ms", "queue_ms", "cost_micros")
    )
    told = {"usage_source": UsageSource.NONE, "status": 429, "outcome": Outcome.REFUSED_RATE, "latency_ms": 0.5}
    return usage_event(number, **{**nothing, **told, **changes})


class FakeSink:
    """Stores batches in lists. `fail` is asked before each one, and may raise; `slow_s`: how long each takes."""

    def __init__(self, fail: Callable[[], None] = lambda: None, *, slow_s: float = 0.0, old_rows: int = 0) -> None:
        self.fail = fail
        self.batches: list[UsageBatch] = []
        self.at: list[float] = []
        """When each batch was stored, by trio's clock."""
        self.tried: list[UsageBatch] = []
        self.swept: list[tuple[float, int]] = []
        """When rows were removed, and up to which time."""
        self.old_rows = old_rows
        self._slow_s = slow_s

    @property
    def ids(self) -> list[str]:
        """Of the requests with a row, in order."""
        return [event.request_id for batch in self.batches for event in batch.events]

    @property
    def summed(self) -> UsageRollup:
        """The sum of those without one."""
        return UsageRollup.merged([rollup for batch in self.batches for rollup in batch.rollups.values()])

    async def store_usage(self, batch: UsageBatch) -> None:
        self.tried.append(batch)
        with trio.CancelScope(shield=True):  # as work in a thread
            await trio.sleep(self._slow_s)
        self.fail()
        self.batches.append(batch)
        self.at.append(trio.current_time())

    async def sweep_usage(self, before_ms: int) -> int:
        await trio.lowlevel.checkpoint()
        self.fail()
        self.swept.append((trio.current_time(), before_ms))
        removed = min(self.old_rows, 1000)
        self.old_rows -= removed
        return removed


def recorder_of(
    sink: FakeSink,
    options: RecorderOptions | None = None,
    *,
    now_ms: Callable[[], int] = lambda: MINUTE,
    keep_days: Callable[[], int] = lambda: 30,
) -> Recorder:
    """A recorder over `sink` that sweeps no more than once, unless the options say otherwise."""
    numbers = count()
    return Recorder(
        sink,
        now_ms=now_ms,
        keep_days=keep_days,
        new_batch_id=lambda: f"batch_{next(numbers)}",
        options=options or RecorderOptions(sweep_s=math.inf),
    )
