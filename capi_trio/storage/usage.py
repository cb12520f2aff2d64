"""Usage in the database: a row for each request to a model, and the sums of each minute in the same transaction.

The sums hold histograms, which SQL cannot add up; so they are read, merged and written back. That is safe with any
number of replicas, as each writing transaction of any of them begins with the database's one write lock.

What somebody else made up is kept out: a name that is too long, not printable or holds a key is not stored, and a
duration of a clock that was set back is 0.
"""

from __future__ import annotations

import math
import re
from collections.abc import Iterator, Mapping, Sequence
from functools import cache
from typing import Final

import sqlalchemy as sa
from attrs import evolve, field, frozen
from sqlalchemy.dialects import postgresql, sqlite

from capi_core.budgets import Amounts
from capi_core.errors import LocalError
from capi_core.histogram import Histogram
from capi_core.keys import text_fault
from capi_core.rollups import RollupKey, UsageRollup, fold, merge, merge_all
from capi_core.usage import Usage
from capi_core.usage_events import UsageEvent
from capi_trio.storage.errors import RowDamaged
from capi_trio.storage.tables import usage_events, usage_minutes, usage_writers

__all__ = ["MAX_NAME", "SWEEP_ROWS", "UsageBatch", "UsageRepository", "UsageSizes", "storable"]

MAX_NAME: Final = 128
"""The most characters of a name that is stored."""
SWEEP_ROWS: Final = 1000
"""The most requests that one transaction removes: others that want to write wait for no longer than that takes."""

_MAX_MS: Final = 1e12  # 31 years
_WORD: Final = re.compile(r"[a-z_]{1,32}")
_OTHER: Final = "other"
_SUMS: Final = (
    "requests", "errors", "aborted", "refused", "uncached_input", "cache_read", "cache_write", "output", "reasoning",
    "unknown_usage", "cost_micros", "unknown_cost",
)  # fmt: skip
_ROLLUPS_A_QUERY: Final = 400
"""Two parameters each at most; an old SQLite takes 999."""

_KEY: Final = tuple(usage_minutes.primary_key.columns)
_VALUES: Final = tuple(column.name for column in usage_minutes.columns if not column.primary_key)


@frozen
class UsageBatch:
    """What is stored at once. `id`: no other batch has it. `rollups`: of requests that leave no row of their own."""

    id: str
    events: Sequence[UsageEvent]
    rollups: Mapping[RollupKey, UsageRollup] = field(factory=dict)


@frozen
class UsageSizes:
    """How much there is: rows of both tables, the time of the oldest request (ms since the epoch), and the bytes of
    the whole database."""

    events: int
    minutes: int
    oldest_ms: int | None
    database_bytes: int


def storable(event: UsageEvent) -> UsageEvent:
    """The event without what must not be stored. Mostly it is the same one."""
    names = (event.owner, event.identity, event.upstream, event.model, event.upstream_model)
    durations = (event.ttft_ms, event.latency_ms, event.queue_ms)
    if names == tuple(map(_name, names)) and all(ms is None or 0 <= ms <= _MAX_MS for ms in durations):
        return event
    return evolve(
        event,
        owner=_name(event.owner),
        identity=_name(event.identity),
        upstream=_name(event.upstream),
        model=_name(event.model),
        upstream_model=_name(event.upstream_model),
        ttft_ms=None if event.ttft_ms is None else _duration(event.ttft_ms),
        latency_ms=_duration(event.latency_ms),
        queue_ms=None if event.queue_ms is None else _duration(event.queue_ms),
    )


def _name(name: str | None) -> str | None:
    return name if text_fault(name, MAX_NAME) is None else None


def _duration(ms: float) -> float:
    return 0.0 if math.isnan(ms) else min(max(ms, 0.0), _MAX_MS)


_TOKENS: Final = (
    usage_minutes.c.uncached_input
    + usage_minutes.c.cache_read
    + usage_minutes.c.cache_write
    + usage_minutes.c.output
    + usage_minutes.c.reasoning
)


@frozen
class UsageRepository:
    """Reads and writes usage over one connection, within its transaction."""

    connection: sa.Connection

    def add(self, batch: UsageBatch, stream: str) -> bool:
        """Stores the batch of the writer `stream`; false when it is the one that this writer stored last.

        The caller holds the write lock. Raises `RowDamaged` when a minute's sums cannot be understood.
        """
        if self._is_stored(batch.id, stream):
            return False
        events = [storable(event) for event in batch.events]
        if events:
            first = (self.connection.execute(sa.select(sa.func.max(usage_events.c.id))).scalar() or 0) + 1
            self.connection.execute(
                usage_events.insert(), [_event_row(number, event) for number, event in enumerate(events, first)]
            )
        sums = fold(events)
        self._add_rollups(merge_all([*sums.items(), *batch.rollups.items()]) if batch.rollups else sums)
        return True

    def rollups(self, from_ms: int, to_ms: int, key_id: str | None = None) -> list[tuple[RollupKey, UsageRollup]]:
        """The sums of the minutes that begin from `from_ms` to before `to_ms`, of one key or of all, oldest first.

        Raises `RowDamaged`.
        """
        query = sa.select(usage_minutes).where(usage_minutes.c.minute >= from_ms, usage_minutes.c.minute < to_ms)
        if key_id is not None:
            query = query.where(usage_minutes.c.key_id == key_id)
        return [_rollup(row) for row in self.connection.execute(query.order_by(*_KEY))]

    def spent(self, key_id: str, from_ms: int) -> Amounts:
        """What a key's requests since `from_ms` (a minute's begin) have cost, as far as it is known."""
        sums = [sa.func.coalesce(sa.func.sum(column), 0) for column in (_TOKENS, usage_minutes.c.cost_micros)]
        found = sa.select(*sums).where(usage_minutes.c.minute >= from_ms, usage_minutes.c.key_id == key_id)
        tokens, money = self.connection.execute(found).one()
        return Amounts(int(tokens), int(money))

    def sweep(self, before_ms: int, limit: int = SWEEP_ROWS) -> int:
        """Removes some of what is from before `before_ms`; returns how many rows. Of `limit` requests or minutes' sums
        the oldest go, and all sums of one minute at once."""
        oldest = (
            sa.select(usage_events.c.id).where(usage_events.c.ts < before_ms).order_by(usage_events.c.ts).limit(limit)
        )
        last = (
            sa.select(usage_minutes.c.minute)
            .where(usage_minutes.c.minute < before_ms)
            .order_by(usage_minutes.c.minute)
            .limit(limit)
            .subquery()
        )
        removed = 0
        for statement in (
            usage_events.delete().where(usage_events.c.id.in_(oldest)),
            usage_minutes.delete().where(
                usage_minutes.c.minute <= sa.select(sa.func.max(last.c.minute)).scalar_subquery()
            ),
        ):
            removed += self.connection.execute(statement).rowcount
        return removed

    def sizes(self) -> UsageSizes:
        """Counts the rows, which takes a while when there are millions."""
        if self.connection.dialect.name == "sqlite":
            size = "SELECT page_count * page_size FROM pragma_page_count, pragma_page_size"
        else:
            size = "SELECT pg_database_size(current_database())"
        events, oldest = self.connection.execute(sa.select(sa.func.count(), sa.func.min(usage_events.c.ts))).one()
        minutes = self.connection.execute(sa.select(sa.func.count()).select_from(usage_minutes)).scalar_one()
        return UsageSizes(events, minutes, oldest, self.connection.execute(sa.text(size)).scalar_one())

    def _is_stored(self, batch_id: str, stream: str) -> bool:
        """Whether the writer's last batch is this one; from now on it is."""
        mine = usage_writers.c.stream == stream
        last = self.connection.execute(sa.select(usage_writers.c.batch).where(mine)).scalar()
        if last is None:
            self.connection.execute(usage_writers.insert().values(stream=stream, batch=batch_id))
        elif last != batch_id:
            self.connection.execute(usage_writers.update().where(mine).values(batch=batch_id))
        return last == batch_id

    def _add_rollups(self, added: Mapping[RollupKey, UsageRollup]) -> None:
        if not added:
            return
        rollups = dict(added)
        for key, stored in self._stored(list(added)):
            rollups[key] = merge(stored, added[key])
        rows = [_rollup_row(key, rollup) for key, rollup in rollups.items()]
        self.connection.execute(_upsert(self.connection.dialect.name), rows)

    def _stored(self, keys: Sequence[RollupKey]) -> Iterator[tuple[RollupKey, UsageRollup]]:
        for at in range(0, len(keys), _ROLLUPS_A_QUERY):
            wanted = {_key_values(key) for key in keys[at : at + _ROLLUPS_A_QUERY]}
            # Not by whole keys: SQLite would read the table from end to end to find each among the wanted ones.
            query = sa.select(usage_minutes).where(
                usage_minutes.c.minute.in_({minute for minute, *_ in wanted}),
                usage_minutes.c.key_id.in_({key_id for _, key_id, *_ in wanted}),
            )
            for row in self.connection.execute(query):
                if tuple(row[: len(_KEY)]) in wanted:
                    yield _rollup(row)


@cache
def _upsert(dialect: str) -> sa.Insert:
    if dialect == "sqlite":
        lite = sqlite.insert(usage_minutes)
        return lite.on_conflict_do_update(index_elements=_KEY, set_={name: lite.excluded[name] for name in _VALUES})
    insert = postgresql.insert(usage_minutes)
    return insert.on_conflict_do_update(index_elements=_KEY, set_={name: insert.excluded[name] for name in _VALUES})


def _event_row(number: int, event: UsageEvent) -> dict[str, object]:
    usage = event.usage or Usage()
    return {
        "id": number,
        "ts": event.ts_ms,
        "request_id": event.request_id,
        "key_id": event.key_id,
        "owner": event.owner,
        "identity": event.identity,
        "operation": event.operation.name.lower(),
        "transport": event.transport if _WORD.fullmatch(event.transport) else _OTHER,
        "stream": event.stream,
        "client_protocol": event.operation.protocol.value,
        "upstream": event.upstream,
        "upstream_protocol": None if event.upstream_protocol is None else event.upstream_protocol.value,
        "model": event.model,
        "upstream_model": event.upstream_model,
        "uncached_input": usage.uncached_input,
        "cache_read": usage.cache_read,
        "cache_write": usage.cache_write,
        "output": usage.output,
        "reasoning": usage.reasoning,
        "usage_source": event.usage_source.value,
        "status": event.status,
        "outcome": event.outcome.value,
        "ttft_ms": None if event.ttft_ms is None else round(event.ttft_ms),
        "latency_ms": round(event.latency_ms),
        "queue_ms": None if event.queue_ms is None else round(event.queue_ms),
        "losses": event.losses,
        "failed_upstreams": event.failed_upstreams,
        "cost_micros": event.cost_micros,
    }


def _key_values(key: RollupKey) -> tuple[int, str, str, str]:
    return key.minute_ms, key.key_id, key.model or "", key.upstream or ""


def _rollup_row(key: RollupKey, rollup: UsageRollup) -> dict[str, object]:
    named = dict(zip((column.name for column in _KEY), _key_values(key), strict=True))
    sums = {name: getattr(rollup, name) for name in _SUMS}
    return {**named, **sums, "latency": rollup.latency.encode(), "ttft": rollup.ttft.encode()}


def _rollup(row: sa.Row[tuple[object, ...]]) -> tuple[RollupKey, UsageRollup]:
    key = RollupKey(minute_ms=row.minute, key_id=row.key_id, model=row.model or None, upstream=row.upstream or None)
    try:
        latency, ttft = Histogram.decode(row.latency), Histogram.decode(row.ttft)
    except LocalError as error:
        raise RowDamaged(f"the stored usage of minute {row.minute} is damaged: restore a backup") from error
    return key, UsageRollup(latency=latency, ttft=ttft, **{name: getattr(row, name) for name in _SUMS})
