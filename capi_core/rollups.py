"""Usage summed up: one row for each minute, key, model and upstream, so that a view over any window reads few rows.

Adding up is the same whatever the order and the grouping: rows of minutes become rows of hours and days, and the rows
of one batch are merged into those that a table holds already.

What is summed are facts that somebody told. What nobody told is counted beside them: with `unknown_usage` above 0 the
tokens and the cost are a lower bound, with `unknown_cost` above 0 the cost is. No sum exceeds `MAX_SUM`, which is all
that a database column holds: an upstream that tells nonsense must not keep a row from being stored.
"""

from __future__ import annotations

import enum
from typing import TYPE_CHECKING, Final, TypeVar

from attrs import field, frozen

from capi_core.commands import Operation, Outcome
from capi_core.histogram import Histogram
from capi_core.usage import UsageSource

if TYPE_CHECKING:
    from collections.abc import Callable, Collection, Hashable, Iterable, Mapping

    from capi_core.usage_events import UsageEvent

__all__ = [
    "ENDINGS",
    "MAX_SUM",
    "Ending",
    "RollupKey",
    "Span",
    "UsageRollup",
    "coarser",
    "fold",
    "is_usage_unknown",
    "merge",
    "merge_all",
    "regroup",
]

MAX_SUM: Final = 2**63 - 1
"""The largest sum; what would be more stays there."""


class Ending(enum.Enum):
    """What an outcome is to whoever reads the sums."""

    SERVED = enum.auto()
    FAILED = enum.auto()
    """An error: the caller did right, and got no answer, or not all of it."""
    ABORTED = enum.auto()
    """The caller went away."""
    REFUSED = enum.auto()
    """The gateway's rules did not allow it. No error rate of an upstream, and no duration worth a percentile."""


ENDINGS: Final[Mapping[Outcome, Ending]] = {
    Outcome.OK: Ending.SERVED,
    Outcome.CLIENT_GONE: Ending.ABORTED,
    Outcome.UPSTREAM_ERROR: Ending.FAILED,
    Outcome.UPSTREAM_BROKE: Ending.FAILED,
    Outcome.UPSTREAM_UNREACHABLE: Ending.FAILED,
    Outcome.TIMEOUT: Ending.FAILED,
    Outcome.SHUTDOWN: Ending.FAILED,
    Outcome.INTERNAL_ERROR: Ending.FAILED,
    Outcome.REFUSED_INVALID: Ending.REFUSED,
    Outcome.REFUSED_MODEL: Ending.REFUSED,
    Outcome.REFUSED_SCOPE: Ending.REFUSED,
    Outcome.REFUSED_RATE: Ending.REFUSED,
    Outcome.REFUSED_TOO_LARGE: Ending.REFUSED,
    Outcome.REFUSED_BUDGET: Ending.REFUSED,
    Outcome.REFUSED_DENIED: Ending.REFUSED,
    Outcome.REFUSED_BUSY: Ending.FAILED,  # nothing was wrong with the request: there was no room for it
}

# With any other outcome a model has done no work that an upstream could bill.
_BILLABLE: Final = frozenset(
    {
        Outcome.OK,
        Outcome.CLIENT_GONE,
        Outcome.UPSTREAM_BROKE,
        Outcome.TIMEOUT,
        Outcome.SHUTDOWN,
        Outcome.INTERNAL_ERROR,
    }
)


class Span(enum.IntEnum):
    """How long a time a row is about, in ms. Each begins where UTC begins a minute, hour or day."""

    MINUTE = 60_000
    HOUR = 3_600_000
    DAY = 86_400_000

    def start(self, ts_ms: int) -> int:
        """When the span that `ts_ms` lies in begins; both are ms since epoch."""
        return ts_ms - ts_ms % self


@frozen(kw_only=True)
class RollupKey:
    """Which requests a row is about. `minute_ms`: the start of their minute (of their first, in a row of an hour or
    day), ms since epoch. `model` and `upstream` as in `UsageEvent`; `None` is a value like any other."""

    minute_ms: int
    key_id: str
    model: str | None
    upstream: str | None

    @classmethod
    def of(cls, event: UsageEvent) -> RollupKey:
        """The key of the row of a minute that this request is in."""
        return cls(
            minute_ms=Span.MINUTE.start(event.ts_ms),
            key_id=event.key_id,
            model=event.model,
            upstream=event.upstream,
        )

    def within(self, span: Span) -> RollupKey:
        """The key of the row of a longer span in which this one's requests are."""
        start = span.start(self.minute_ms)
        return RollupKey(minute_ms=start, key_id=self.key_id, model=self.model, upstream=self.upstream)


@frozen(kw_only=True)
class UsageRollup:
    """The sum of some requests.

    `requests` are all of them; `errors`, `aborted` and `refused` those among them that ended so (`ENDINGS`). Tokens are
    disjoint, as in `Usage`. `unknown_usage`: how many have tokens missing from the sums (`is_usage_unknown`), and
    `unknown_cost` how many of those that may have cost something are missing from `cost_micros`, which is in millionths
    of a US dollar. `latency` is of requests that were not refused, `ttft` of those that were answered at all.
    """

    requests: int = 0
    errors: int = 0
    aborted: int = 0
    refused: int = 0
    uncached_input: int = 0
    cache_read: int = 0
    cache_write: int = 0
    output: int = 0
    reasoning: int = 0
    unknown_usage: int = 0
    cost_micros: int = 0
    unknown_cost: int = 0
    latency: Histogram = field(factory=Histogram)
    ttft: Histogram = field(factory=Histogram)

    @classmethod
    def of(cls, events: Collection[UsageEvent]) -> UsageRollup:
        """The sum of these requests. Raises `LocalError` for a duration that is no number."""
        endings = [ENDINGS[event.outcome] for event in events]
        usages = [event.usage for event in events if event.usage is not None]
        return cls(
            requests=len(endings),
            errors=endings.count(Ending.FAILED),
            aborted=endings.count(Ending.ABORTED),
            refused=endings.count(Ending.REFUSED),
            uncached_input=_sum(usage.uncached_input for usage in usages),
            cache_read=_sum(usage.cache_read for usage in usages),
            cache_write=_sum(usage.cache_write for usage in usages),
            output=_sum(usage.output for usage in usages),
            reasoning=_sum(usage.reasoning for usage in usages),
            unknown_usage=sum(map(is_usage_unknown, events)),
            cost_micros=_sum(event.cost_micros for event in events),
            unknown_cost=sum(event.cost_micros is None and _may_cost(event) for event in events),
            latency=Histogram.of(
                event.latency_ms for event, ending in zip(events, endings, strict=True) if ending is not Ending.REFUSED
            ),
            ttft=Histogram.of(event.ttft_ms for event in events if event.ttft_ms is not None),
        )

    @classmethod
    def merged(cls, rollups: Collection[UsageRollup]) -> UsageRollup:
        """The sum of all requests that these are about; associative and commutative, and `UsageRollup()` is its zero.

        A row costs some microseconds: all at once are cheaper than two at a time.
        """
        return cls(
            requests=_capped(sum(rollup.requests for rollup in rollups)),
            errors=_capped(sum(rollup.errors for rollup in rollups)),
            aborted=_capped(sum(rollup.aborted for rollup in rollups)),
            refused=_capped(sum(rollup.refused for rollup in rollups)),
            uncached_input=_capped(sum(rollup.uncached_input for rollup in rollups)),
            cache_read=_capped(sum(rollup.cache_read for rollup in rollups)),
            cache_write=_capped(sum(rollup.cache_write for rollup in rollups)),
            output=_capped(sum(rollup.output for rollup in rollups)),
            reasoning=_capped(sum(rollup.reasoning for rollup in rollups)),
            unknown_usage=_capped(sum(rollup.unknown_usage for rollup in rollups)),
            cost_micros=_capped(sum(rollup.cost_micros for rollup in rollups)),
            unknown_cost=_capped(sum(rollup.unknown_cost for rollup in rollups)),
            latency=Histogram.merged(rollup.latency for rollup in rollups),
            ttft=Histogram.merged(rollup.ttft for rollup in rollups),
        )


def merge(a: UsageRollup, b: UsageRollup) -> UsageRollup:
    """`UsageRollup.merged` of two: a row of a table, and what a batch adds to it."""
    return UsageRollup.merged((a, b))


def is_usage_unknown(event: UsageEvent) -> bool:
    """Whether tokens may have been spent of which the event does not tell.

    So it is with every request that may have reached a model, unless the upstream told of both sides of it, for the
    finished answer. An embedding has only one side: no model writes it.
    """
    if not _may_cost(event):
        return False
    usage = event.usage
    if usage is None or event.usage_source is not UsageSource.UPSTREAM_FINAL or usage.uncached_input is None:
        return True
    return usage.output is None and event.operation is not Operation.EMBEDDINGS


def _may_cost(event: UsageEvent) -> bool:
    """Whether an upstream may bill it. Counting tokens is free, and no model is asked."""
    asked = event.upstream is not None and event.operation is not Operation.COUNT_TOKENS
    return asked and event.outcome in _BILLABLE


def _sum(values: Iterable[int | None]) -> int:
    return _capped(sum(value for value in values if value))


def _capped(total: int) -> int:
    """Of sums that are not negative this is as associative as adding."""
    return min(total, MAX_SUM)


_Item = TypeVar("_Item")
_Group = TypeVar("_Group", bound="Hashable")


def _grouped(items: Iterable[_Item], by: Callable[[_Item], _Group]) -> dict[_Group, list[_Item]]:
    groups: dict[_Group, list[_Item]] = {}
    for item in items:
        groups.setdefault(by(item), []).append(item)
    return groups


def fold(events: Iterable[UsageEvent]) -> dict[RollupKey, UsageRollup]:
    """The rows of minutes that these requests make; raises as `UsageRollup.of`."""
    return {key: UsageRollup.of(group) for key, group in _grouped(events, RollupKey.of).items()}


def regroup(
    rows: Iterable[tuple[RollupKey, UsageRollup]], by: Callable[[RollupKey], _Group]
) -> dict[_Group, UsageRollup]:
    """The sum of the rows of each group, say of each model or of each key; `by` tells the group of a row."""
    groups = _grouped(rows, lambda row: by(row[0]))
    return {group: UsageRollup.merged([rollup for _, rollup in members]) for group, members in groups.items()}


def merge_all(rows: Iterable[tuple[RollupKey, UsageRollup]]) -> dict[RollupKey, UsageRollup]:
    """Rows with no key twice: those of the same key are merged."""
    return regroup(rows, lambda key: key)


def coarser(rows: Iterable[tuple[RollupKey, UsageRollup]], span: Span) -> dict[RollupKey, UsageRollup]:
    """The rows of longer spans: of hours from those of minutes, of days from those of either."""
    return regroup(rows, lambda key: key.within(span))
