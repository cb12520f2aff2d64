"""Usage: a row for each request to a model, the sums of each minute, and what was stored last by whom."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Final

import sqlalchemy as sa
from alembic import op

__all__ = ["down_revision", "revision", "upgrade"]

revision = "0003"
down_revision: str | None = "0002"

# Beside the names of things, a row holds nothing but numbers and words of closed sets: no prompt would be accepted.
_NAMES: Final = ("request_id", "key_id", "owner", "identity", "upstream", "model", "upstream_model")
_WORDS: Final = ("operation", "transport", "client_protocol", "upstream_protocol", "usage_source", "outcome")
_SUMS: Final = (
    "requests", "errors", "aborted", "refused", "uncached_input", "cache_read", "cache_write", "output", "reasoning",
    "unknown_usage", "cost_micros", "unknown_cost",
)  # fmt: skip

_VIEW: Final = """
CREATE VIEW events AS SELECT
    id,
    ts,
    key_id,
    COALESCE(model, '') AS model,
    COALESCE(upstream_model, model, '') AS upstream_model,
    CASE WHEN uncached_input IS NOT NULL
        THEN uncached_input + COALESCE(cache_read, 0) + COALESCE(cache_write, 0) END AS prompt_tokens,
    CASE WHEN output IS NOT NULL THEN output + COALESCE(reasoning, 0) END AS completion_tokens,
    COALESCE(status, 0) AS status,
    latency_ms,
    CASE WHEN outcome <> 'ok' THEN outcome END AS error,
    CASE WHEN usage_source = 'none' THEN 1 ELSE 0 END AS usage_unknown
FROM usage_events
"""


def upgrade() -> None:
    """Makes the tables usage_events, usage_minutes and usage_writers, and the view events."""
    _make_events()
    _make_minutes()
    op.create_table(
        "usage_writers",
        sa.Column("stream", sa.Text, primary_key=True),
        sa.Column("batch", sa.Text, nullable=False),
        *_rules("usage_writers", ("stream", "batch"), "length({0}) <= 128"),
    )
    op.execute(_VIEW)


def _make_events() -> None:
    op.create_table(
        "usage_events",
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
        sa.Column("cost_micros", sa.BigInteger),
        *_rules("usage_events", _NAMES, "length({0}) <= 128"),
        *_rules("usage_events", _WORDS, _is_word()),
        *_rules("usage_events", ("ttft_ms", "latency_ms", "queue_ms"), "{0} >= 0"),
    )
    op.create_index("usage_events_ts", "usage_events", ["ts"])
    op.create_index("usage_events_key", "usage_events", ["key_id", "ts"])
    for name in ("model", "identity", "owner"):
        told = sa.text(f"{name} IS NOT NULL")
        op.create_index(f"usage_events_{name}", "usage_events", [name, "ts"], sqlite_where=told, postgresql_where=told)


def _make_minutes() -> None:
    op.create_table(
        "usage_minutes",
        sa.Column("minute", sa.BigInteger, primary_key=True, autoincrement=False),
        sa.Column("key_id", sa.Text, primary_key=True),
        sa.Column("model", sa.Text, primary_key=True),
        sa.Column("upstream", sa.Text, primary_key=True),
        *(sa.Column(name, sa.BigInteger, nullable=False) for name in _SUMS),
        sa.Column("latency", sa.Text, nullable=False),
        sa.Column("ttft", sa.Text, nullable=False),
        sa.CheckConstraint("minute % 60000 = 0", name="usage_minutes_minute"),
        *_rules("usage_minutes", ("key_id", "model", "upstream"), "length({0}) <= 128"),
        *_rules("usage_minutes", ("latency", "ttft"), _is_histogram()),
        # In the order of the primary key, so that a window's rows lie side by side.
        sqlite_with_rowid=False,
    )
    op.create_index("usage_minutes_key", "usage_minutes", ["key_id", "minute"])


def _rules(table: str, columns: tuple[str, ...], rule: str) -> Iterator[sa.CheckConstraint]:
    return (sa.CheckConstraint(rule.format(column), name=f"{table}_{column}") for column in columns)


def _is_word() -> str:
    letters = "{0} NOT GLOB '*[^a-z_]*'" if _on_sqlite() else "{0} !~ '[^a-z_]'"
    return f"length({{0}}) BETWEEN 1 AND 32 AND {letters}"


def _is_histogram() -> str:
    """A JSON object of numbers: `capi_core.histogram` writes no other characters."""
    letters = """{0} NOT GLOB '*[^0-9:,"{{}}]*'""" if _on_sqlite() else """{0} !~ '[^0-9:,"{{}}]'"""
    return f"length({{0}}) <= 65536 AND {letters}"


def _on_sqlite() -> bool:
    return op.get_bind().dialect.name == "sqlite"
