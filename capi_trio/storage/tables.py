"""The tables, as SQLAlchemy Core sees them. The migrations make them; a test holds both to the same shape.

Times are integer milliseconds since the epoch, UTC.
"""

from __future__ import annotations

from typing import Final

import sqlalchemy as sa

__all__ = ["audit_head", "audit_outbox", "identities", "keys", "metadata"]

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
