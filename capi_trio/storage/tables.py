"""The tables, as SQLAlchemy Core sees them. The migrations make them; a test holds both to the same shape.

Times are integer milliseconds since the epoch, UTC.
"""

from __future__ import annotations

from typing import Final

import sqlalchemy as sa

__all__ = [
    "TELEMETRY",
    "audit_head",
    "audit_outbox",
    "identities",
    "keys",
    "metadata",
    "usage_events",
    "usage_minutes",
    "usage_writers",
]

metadata: Final = sa.MetaData()

keys: Final = sa.Table(
    "keys",
    metadata,
    sa.Column("id", sa.Text, primary_key=True),
    sa.Column("hash", sa.Text, nullable=False, unique=True),
    sa.Column("tier", sa.Text, nullable=False),
    sa.Column("label", sa.Text, nullable=False),
    sa.Column("owner", sa.Text),
    sa.Column("identity", sa.Text),
    sa.Column("allowed_models", sa.Text, nullable=False),  # a JSON array of names
    sa.Column("rate_limit_override", sa.BigInteger),  # requests per minute
    sa.Column("budget_unit", sa.Text),
    sa.Column("budget_amount", sa.BigInteger),
    sa.Column("budget_period", sa.Text),
    sa.Column("expires_at", sa.BigInteger),
    sa.Column("debug_expires_at", sa.BigInteger),
    sa.Column("created_at", sa.BigInteger, nullable=False),
    sa.Column("revoked_at", sa.BigInteger),
    sa.Column("rotated_from", sa.Text, sa.ForeignKey("keys.id", deferrable=True, initially="DEFERRED")),
    sa.Index("keys_newest", "created_at", "id"),
)

identities: Final = sa.Table(
    "identities",
    metadata,
    sa.Column("id", sa.Text, primary_key=True),
    sa.Column("name", sa.Text, nullable=False),
    sa.Column("host", sa.Text, nullable=False),
    sa.Column("login", sa.Text),
    sa.Column("owner", sa.Text),
    sa.Column("shared", sa.Boolean, nullable=False),
    sa.Column("share_reason", sa.Text),
    sa.Column("state", sa.Text, nullable=False),
    sa.Column("state_reason", sa.Text),
    sa.Column("max_in_flight", sa.BigInteger),  # requests at a time
    sa.Column("created_at", sa.BigInteger, nullable=False),
    sa.Column("updated_at", sa.BigInteger, nullable=False),
    sa.Column("removed_at", sa.BigInteger),
)
# A removed identity's name is free again.
sa.Index(
    "identities_live_name",
    identities.c.name,
    unique=True,
    sqlite_where=identities.c.removed_at.is_(None),
    postgresql_where=identities.c.removed_at.is_(None),
)

# One row for each data directory whose audit files continue from this database. `next_seq` numbers the next change;
# `written_seq` and `written_hash` are of the last line known to be in the files, so that a missing file is noticed.
audit_head: Final = sa.Table(
    "audit_head",
    metadata,
    sa.Column("stream", sa.Text, primary_key=True),
    sa.Column("next_seq", sa.BigInteger, nullable=False),
    sa.Column("written_seq", sa.BigInteger, nullable=False),
    sa.Column("written_hash", sa.Text, nullable=False),
)

# What was changed and is not yet in an audit file.
audit_outbox: Final = sa.Table(
    "audit_outbox",
    metadata,
    sa.Column("stream", sa.Text, primary_key=True),
    sa.Column("seq", sa.BigInteger, primary_key=True, autoincrement=False),
    sa.Column("ts", sa.BigInteger, nullable=False),
    sa.Column("actor_key_id", sa.Text),
    sa.Column("actor_tier", sa.Text),
    sa.Column("action", sa.Text, nullable=False),
    sa.Column("target", sa.Text, nullable=False),
    sa.Column("before", sa.Text),
    sa.Column("after", sa.Text),
    sa.Column("ip", sa.Text),
    sa.Column("user_agent", sa.Text),
    sa.Column("reason", sa.Text),
)

# One row for each request to a model: `capi_core.usage_events.UsageEvent`. Beside the names of things it holds numbers
# and words of closed sets, nothing that a client or a model wrote. Numbered in the order of the commits.
usage_events: Final = sa.Table(
    "usage_events",
    metadata,
    # On SQLite, INTEGER makes it the row's own number; BIGINT would be an index beside it.
    sa.Column("id", sa.BigInteger().with_variant(sa.Integer(), "sqlite"), primary_key=True, autoincrement=False),
    sa.Column("ts", sa.BigInteger, nullable=False),
    sa.Column("request_id", sa.Text, nullable=False),
    sa.Column("key_id", sa.Text, nullable=False),
    sa.Column("owner", sa.Text),
    sa.Column("identity", sa.Text),
    sa.Column("operation", sa.Text, nullable=False),
    sa.Column("transport", sa.Text, nullable=False),
    sa.Column("stream", sa.Boolean, nullable=False),
    sa.Column("client_protocol", sa.Text, nullable=False),
    sa.Column("upstream", sa.Text),
    sa.Column("upstream_protocol", sa.Text),
    sa.Column("model", sa.Text),
    sa.Column("upstream_model", sa.Text),
    sa.Column("uncached_input", sa.BigInteger),
    sa.Column("cache_read", sa.BigInteger),
    sa.Column("cache_write", sa.BigInteger),
    sa.Column("output", sa.BigInteger),
    sa.Column("reasoning", sa.BigInteger),
    sa.Column("usage_source", sa.Text, nullable=False),
    sa.Column("status", sa.Integer),
    sa.Column("outcome", sa.Text, nullable=False),
    sa.Column("ttft_ms", sa.BigInteger),
    sa.Column("latency_ms", sa.BigInteger, nullable=False),
    sa.Column("queue_ms", sa.BigInteger),
    sa.Column("losses", sa.BigInteger, nullable=False),
    sa.Column("failed_upstreams", sa.BigInteger, nullable=False),
    sa.Column("cost_micros", sa.BigInteger),  # millionths of a US dollar
    sa.Index("usage_events_ts", "ts"),
    sa.Index("usage_events_key", "key_id", "ts"),
)
for _column in (usage_events.c.model, usage_events.c.identity, usage_events.c.owner):
    sa.Index(
        f"usage_events_{_column.name}",
        _column,
        usage_events.c.ts,
        sqlite_where=_column.is_not(None),
        postgresql_where=_column.is_not(None),
    )

# The sums of each minute: `capi_core.rollups`. `minute` is its start; no model or upstream is '' here, as no part of a
# primary key can be NULL; `latency` and `ttft` are histograms.
usage_minutes: Final = sa.Table(
    "usage_minutes",
    metadata,
    sa.Column("minute", sa.BigInteger, primary_key=True, autoincrement=False),
    sa.Column("key_id", sa.Text, primary_key=True),
    sa.Column("model", sa.Text, primary_key=True),
    sa.Column("upstream", sa.Text, primary_key=True),
    sa.Column("requests", sa.BigInteger, nullable=False),
    sa.Column("errors", sa.BigInteger, nullable=False),
    sa.Column("aborted", sa.BigInteger, nullable=False),
    sa.Column("refused", sa.BigInteger, nullable=False),
    sa.Column("uncached_input", sa.BigInteger, nullable=False),
    sa.Column("cache_read", sa.BigInteger, nullable=False),
    sa.Column("cache_write", sa.BigInteger, nullable=False),
    sa.Column("output", sa.BigInteger, nullable=False),
    sa.Column("reasoning", sa.BigInteger, nullable=False),
    sa.Column("unknown_usage", sa.BigInteger, nullable=False),
    sa.Column("cost_micros", sa.BigInteger, nullable=False),
    sa.Column("unknown_cost", sa.BigInteger, nullable=False),
    sa.Column("latency", sa.Text, nullable=False),
    sa.Column("ttft", sa.Text, nullable=False),
    sa.Index("usage_minutes_key", "key_id", "minute"),
)

# The batch of requests that each data directory stored last: whether one is there whose COMMIT had no answer.
usage_writers: Final = sa.Table(
    "usage_writers",
    metadata,
    sa.Column("stream", sa.Text, primary_key=True),
    sa.Column("batch", sa.Text, nullable=False),
)

TELEMETRY: Final = frozenset({"usage_events", "usage_minutes", "usage_writers"})
"""Tables that grow with each request, and without which everything but the figures works."""
