"""What requests have used, read back from the sums of their minutes: for the operator, and for a caller about itself.

A window is read a few hours at a time, each in a transaction of its own, so that a year of figures neither fills the
memory nor holds a reader up; and one report at a time, as callers can ask for them as often as they like.
"""

from __future__ import annotations

import enum
import re
from collections.abc import Callable, Mapping
from datetime import UTC, datetime
from functools import partial
from typing import TYPE_CHECKING, Final

import msgspec
import trio
from attrs import field, frozen

from capi_core.errors import CoreError
from capi_core.rollups import RollupKey, Span, UsageRollup, merge, regroup
from capi_trio.storage.usage import UsageRepository

if TYPE_CHECKING:
    import sqlalchemy as sa

    from capi_core.histogram import Histogram
    from capi_trio.storage.database import Database

__all__ = [
    "DEFAULT_SINCE",
    "MAX_DAYS",
    "SPANS",
    "ShowUsage",
    "SinceError",
    "UsageAnswer",
    "UsageBy",
    "UsageFigures",
    "UsageLine",
    "UsageReport",
    "UsageReports",
    "window_start",
]

MAX_DAYS: Final = 400
"""How far back a report may begin."""
DEFAULT_SINCE: Final = "24h"

_UNITS_MS: Final = {"m": Span.MINUTE, "h": Span.HOUR, "d": Span.DAY}
_DURATION: Final = re.compile(r"([0-9]{1,6})([mhd])")
_DATE: Final = re.compile(r"[0-9]{4}-[0-9]{2}-[0-9]{2}")
_ALL_AT_ONCE_MS: Final = 4 * Span.HOUR
_ONE_AT_ONCE_MS: Final = Span.DAY
"""The time of which the sums are read at once: of all keys, and of one."""

_Group = str | int | None


class UsageBy(enum.Enum):
    """What a line of a report is about."""

    KEY = "key"
    MODEL = "model"
    UPSTREAM = "upstream"
    HOUR = "hour"
    DAY = "day"


SPANS: Final[Mapping[UsageBy, Span]] = {UsageBy.HOUR: Span.HOUR, UsageBy.DAY: Span.DAY}
"""How long a time a line is about, where it is about a time."""


class SinceError(CoreError):
    """No report begins then. The message is for whoever asked, and holds nothing of what was asked."""


class UsageFigures(msgspec.Struct, kw_only=True):
    """The sum of some requests, as in `UsageRollup`.

    Tokens and cost are `None` when nobody told of any; with `unknown_usage` above 0 what is there is a lower bound, and
    with `unknown_cost` above 0 the cost is. Durations are in ms, to 5 %; `None`: there are none.
    """

    requests: int
    errors: int
    aborted: int
    refused: int
    uncached_input: int | None
    cache_read: int | None
    cache_write: int | None
    output: int | None
    reasoning: int | None
    unknown_usage: int
    cost_micros: int | None
    unknown_cost: int
    latency_p50_ms: float | None
    latency_p95_ms: float | None
    ttft_p50_ms: float | None

    @staticmethod
    def of(rollup: UsageRollup) -> UsageFigures:
        unknown = rollup.unknown_usage
        return UsageFigures(
            requests=rollup.requests,
            errors=rollup.errors,
            aborted=rollup.aborted,
            refused=rollup.refused,
            uncached_input=_known(rollup.uncached_input, unknown),
            cache_read=_known(rollup.cache_read, unknown),
            cache_write=_known(rollup.cache_write, unknown),
            output=_known(rollup.output, unknown),
            reasoning=_known(rollup.reasoning, unknown),
            unknown_usage=unknown,
            cost_micros=_known(rollup.cost_micros, rollup.unknown_cost),
            unknown_cost=rollup.unknown_cost,
            latency_p50_ms=_percentile(rollup.latency, 50),
            latency_p95_ms=_percentile(rollup.latency, 95),
            ttft_p50_ms=_percentile(rollup.ttft, 50),
        )


class UsageLine(UsageFigures, kw_only=True):
    """The requests of one key (`name` is its id), model or upstream; or of the hour or day from `starts_at`, in ms
    since the epoch. Without either: the requests that led to no model or upstream."""

    name: str | None = None
    label: str | None = None
    starts_at: int | None = None


class UsageReport(msgspec.Struct, kw_only=True):
    """Usage of the minutes that begin from `from_ms` to before `to_ms`, in ms since the epoch.

    Lines of times are in their order and only there for those with requests; others begin with the most requests.
    """

    by: UsageBy
    from_ms: int
    to_ms: int
    lines: list[UsageLine]
    total: UsageFigures


class ShowUsage(msgspec.Struct, tag="usage.show"):
    """Since when: see `window_start`."""

    since: str = DEFAULT_SINCE
    by: UsageBy = UsageBy.KEY


class UsageAnswer(msgspec.Struct, tag="usage"):
    report: UsageReport


def window_start(since: str, now_ms: int) -> int:
    """When a window begins, in ms since the epoch: so long ago (`30m`, `24h`, `7d`), or with a day of UTC, such as
    `2026-11-01`.

    Raises `SinceError` for anything else, for what has not begun yet, and for what is more than `MAX_DAYS` ago.
    """
    start = _parsed(since, now_ms)
    if start is None:
        raise SinceError("since must be a time such as 30m, 24h or 7d, or a day (UTC) such as 2026-11-01")
    if start >= now_ms:
        raise SinceError("since must lie in the past")
    if start < now_ms - MAX_DAYS * Span.DAY:
        raise SinceError(f"since must be at most {MAX_DAYS} days ago")
    return start


def _parsed(since: str, now_ms: int) -> int | None:
    if ago := _DURATION.fullmatch(since):
        return now_ms - int(ago[1]) * _UNITS_MS[ago[2]]
    if not _DATE.fullmatch(since):
        return None
    try:
        day = datetime.strptime(since, "%Y-%m-%d").replace(tzinfo=UTC)
    except ValueError:
        return None
    return int(day.timestamp()) * 1000


@frozen
class UsageReports:
    """Makes reports. `now_ms`: wall clock, ms since the epoch."""

    database: Database
    now_ms: Callable[[], int]
    _turn: trio.CapacityLimiter = field(init=False, factory=lambda: trio.CapacityLimiter(1))

    async def report(
        self, since: str, by: UsageBy, *, key_id: str | None = None, labels: Mapping[str, str] | None = None
    ) -> UsageReport:
        """Usage from `since` (see `window_start`) until now, of one key or of all; the first hour or day is whole.

        `labels`: of keys, by id. Raises `SinceError`, `DatabaseError` and `RowDamaged`.
        """
        now = self.now_ms()
        from_ms = SPANS.get(by, Span.MINUTE).start(window_start(since, now))
        to_ms = Span.MINUTE.start(now) + Span.MINUTE
        async with self._turn:
            sums = await self._sums(from_ms, to_ms, by, key_id)
        return UsageReport(
            by=by,
            from_ms=from_ms,
            to_ms=to_ms,
            lines=[_line(by, group, sums[group], labels or {}) for group in _ordered(sums)],
            total=UsageFigures.of(UsageRollup.merged(sums.values())),
        )

    async def _sums(self, from_ms: int, to_ms: int, by: UsageBy, key_id: str | None) -> dict[_Group, UsageRollup]:
        sums: dict[_Group, UsageRollup] = {}
        at_once = _ALL_AT_ONCE_MS if key_id is None else _ONE_AT_ONCE_MS
        for start in range(from_ms, to_ms, at_once):
            end = min(start + at_once, to_ms)
            part = await self.database.read(partial(_read, from_ms=start, to_ms=end, by=by, key_id=key_id))
            for group, rollup in part.items():
                sums[group] = merge(sums[group], rollup) if group in sums else rollup
        return sums


def _read(
    connection: sa.Connection, *, from_ms: int, to_ms: int, by: UsageBy, key_id: str | None
) -> dict[_Group, UsageRollup]:
    return regroup(UsageRepository(connection).rollups(from_ms, to_ms, key_id), partial(_group, by))


def _group(by: UsageBy, key: RollupKey) -> _Group:
    match by:
        case UsageBy.KEY:
            return key.key_id
        case UsageBy.MODEL:
            return key.model
        case UsageBy.UPSTREAM:
            return key.upstream
        case _:
            return SPANS[by].start(key.minute_ms)


def _ordered(sums: Mapping[_Group, UsageRollup]) -> list[_Group]:
    """Times in their order; names with the most requests first, and requests without one after their equals."""

    def rank(group: _Group) -> tuple[int, str]:
        return (group, "") if isinstance(group, int) else (-sums[group].requests, group or "\U0010ffff")

    return sorted(sums, key=rank)


def _line(by: UsageBy, group: _Group, rollup: UsageRollup, labels: Mapping[str, str]) -> UsageLine:
    figures = msgspec.structs.asdict(UsageFigures.of(rollup))
    if isinstance(group, int):
        return UsageLine(starts_at=group, **figures)
    label = labels.get(group) if by is UsageBy.KEY and group is not None else None
    return UsageLine(name=group, label=label, **figures)


def _known(total: int, unknown: int) -> int | None:
    """A sum of nothing is only 0 when there was nothing to tell."""
    return total if total or not unknown else None


def _percentile(durations: Histogram, percent: int) -> float | None:
    told = durations.percentile(percent)
    return None if told is None else round(told, 1)
